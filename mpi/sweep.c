/* sweep - Hessians, rounding, and the windows on to the next layer. */
#include "sweep.h"

#include <math.h>

#include "error.h"
#include "guard.h"
#include "log.h"
#include "place.h"

#define KIND "sweep"
#define LAYOUT 1

/* What the linears of a layer read: each has a Hessian of its own. */
enum { ATTN_IN, ATTN, MLP_IN, ACT };

static const int read_by[VQ_N_KINDS] = {
    [VQ_Q] = ATTN_IN,   [VQ_K] = ATTN_IN, [VQ_V] = ATTN_IN, [VQ_O] = ATTN,
    [VQ_GATE] = MLP_IN, [VQ_UP] = MLP_IN, [VQ_DOWN] = ACT};

/* The linear of a kind if it is to be rounded, or NULL. */
static vq_vqlinear *linear_of(const vq_sweep *s, int64_t layer, int kind)
{
    vq_vqlinear *l = vq_stage_linear(s->stage, layer, (vq_linear_kind)kind);
    return l && l->quantized ? l : NULL;
}

/* --- inputs ---------------------------------------------------------------------------------- */

static int64_t width(const vq_sweep *s)
{
    return s->stage->model->config.E;
}

/* The same rows as the file has them: [windows, T, E]. */
static vq_tensor in_windows(const vq_sweep *s, const vq_tensor *x)
{
    vq_tensor t = vq_tensor_3d(x->data, x->dtype, x->dim[0] / s->T, s->T, width(s));
    t.place = x->place;
    return t;
}

vq_status vq_sweep_open(vq_sweep *s, int64_t n, int64_t n_all, int64_t T, size_t memory_bytes,
                        const char *path)
{
    const vq_backend *be = s->stage->be;
    char size[32];
    VQ_ASSERT(n >= 0 && n_all > 0 && T > 0);
    VQ_ASSERT(!s->grid || !s->quantized);
    s->n = n;
    s->n_all = n_all;
    s->T = T;
    s->inputs = vq_tensor_2d(NULL, be->act, n * T, width(s));
    s->file = (vq_h5){.id = -1};
    if (vq_tensor_bytes(&s->inputs) <= memory_bytes)
        return vq_tensor_new(s->arena, VQ_HOST, be->act, VQ_DIMS(n * T, width(s)), &s->inputs);
    vq_log(VQ_LOG_INFO, "sweep    the layers' inputs (%s) do not fit in memory: they are in %s",
           vq_bytes_text((double)vq_tensor_bytes(&s->inputs), size), path);
    VQ_TRY(vq_h5_create(s->arena, path, KIND, LAYOUT, &s->file));
    const vq_tensor shape = in_windows(s, &s->inputs);
    return vq_h5_make(&s->file, "inputs", &shape);
}

vq_status vq_sweep_set_inputs(vq_sweep *s, int64_t first, const vq_tensor *x)
{
    const vq_backend *be = s->stage->be;
    vq_tensor host;
    if (s->inputs.data) {
        const vq_tensor rows = vq_tensor_rows(&s->inputs, first * s->T, x->dim[0]);
        return vq_download(be, rows.data, x);
    }
    const size_t mark = vq_arena_mark(s->arena);
    VQ_TRY(vq_place_host(be, s->arena, x, &host));
    const vq_tensor rows = in_windows(s, &host);
    VQ_TRY(vq_h5_write_rows(&s->file, "inputs", first, &rows));
    vq_arena_reset(s->arena, mark);
    return VQ_OK;
}

vq_status vq_sweep_get_inputs(const vq_sweep *s, int64_t first, vq_tensor *x)
{
    const vq_backend *be = s->stage->be;
    vq_tensor there;
    if (!s->inputs.data) {
        const vq_tensor rows = in_windows(s, x);
        return vq_place_read_rows(be, s->arena, &s->file, "inputs", first, &rows);
    }
    /* On a device it is on its way while the window before is computed with. */
    const vq_tensor rows = vq_tensor_rows(&s->inputs, first * s->T, x->dim[0]);
    VQ_TRY(vq_bring(be, &rows, &there));
    return vq_copy(be, x, &there);
}

vq_status vq_sweep_embed(vq_sweep *s, const vq_tensor *ids)
{
    const vq_backend *be = s->stage->be;
    for (int64_t i = 0; i < s->n; i++) {
        const size_t mark = vq_arena_mark(s->arena);
        const vq_tensor some = vq_tensor_rows(ids, i, 1);
        vq_tensor x;
        VQ_TRY(vq_tensor_new(s->arena, be->place, be->act, VQ_DIMS(s->T, width(s)), &x));
        VQ_TRY(vq_stage_embed(s->stage, &some, 0, &x));
        VQ_TRY(vq_sweep_set_inputs(s, i, &x));
        vq_arena_reset(s->arena, mark);
    }
    return VQ_OK;
}

/* --- other ranks ----------------------------------------------------------------------------- */

/* Rank 0, which alone has the windows, deals them out to the first stages. */
static vq_status embed_share(vq_sweep *s, const vq_windows *windows)
{
    const vq_topo *topo = &s->job->topo;
    vq_tensor ids;
    int64_t first, n;
    if (s->job->comm->rank > 0) {
        VQ_TRY(vq_tensor_new(s->arena, VQ_HOST, VQ_I32, VQ_DIMS(s->n, s->T), &ids));
        VQ_TRY(vq_job_receive(s->job, &ids, 0, VQ_TAG_IDS));
        return vq_sweep_embed(s, &ids);
    }
    for (int r = 1; r < topo->n_replicas; r++) {
        vq_topo_share(topo, r, s->n_all, &first, &n);
        ids = vq_feed_ids(windows, first, n);
        VQ_TRY(vq_job_send(s->job, &ids, vq_topo_rank(topo, 0, r), VQ_TAG_IDS));
    }
    ids = vq_feed_ids(windows, 0, s->n);
    return vq_sweep_embed(s, &ids);
}

vq_status vq_sweep_pass_on(vq_sweep *s, bool on)
{
    const vq_topo *topo = &s->job->topo;
    const vq_backend *be = s->stage->be;
    const int peer = vq_topo_rank(topo, topo->stage + (on ? 1 : -1), topo->replica);
    for (int64_t i = 0; i < s->n; i++) {
        const size_t mark = vq_arena_mark(s->arena);
        vq_tensor x;
        VQ_TRY(vq_tensor_new(s->arena, be->place, be->act, VQ_DIMS(s->T, width(s)), &x));
        if (on) {
            VQ_TRY(vq_sweep_get_inputs(s, i, &x));
            VQ_TRY(vq_job_send(s->job, &x, peer, VQ_TAG_FORWARD));
        } else {
            VQ_TRY(vq_job_receive(s->job, &x, peer, VQ_TAG_FORWARD));
            VQ_TRY(vq_sweep_set_inputs(s, i, &x));
        }
        vq_arena_reset(s->arena, mark);
    }
    return VQ_OK;
}

/* --- one layer ------------------------------------------------------------------------------- */

#define PASS_PART 0.4 /* of a layer's progress, for a pass of the windows */

static vq_status add_inputs(vq_sweep *s, vq_tensor *hessian, const vq_tensor *x)
{
    if (s->grid) return vq_moments(s->stage->be, hessian, x, 1 / (double)(s->n_all * s->T));
    return vq_syrk(s->stage->be, hessian, x, 2 / (double)s->n_all);
}

/* All windows through the layer. hessian: what is read adds to those that have data; may be NULL.
 * keep: the outputs become the inputs of the next layer. Windows go one at a time: products of
 * matrices have the same shapes then, and the same bits, on any number of replicas. */
static vq_status pass(vq_sweep *s, int64_t layer, vq_mode mode, vq_tensor *hessian, bool keep)
{
    const vq_stage *stage = s->stage;
    const vq_backend *be = stage->be;
    const size_t layer_mark = vq_arena_mark(s->arena);
    if (mode == VQ_MODE_FLOAT) VQ_TRY(vq_stage_hold_layer(stage, layer, s->arena));
    for (int64_t i = 0; i < s->n; i++) {
        const size_t mark = vq_arena_mark(s->arena);
        vq_acts acts;
        vq_tensor y;
        VQ_TRY(vq_acts_init(s->arena, be, &stage->model->config, 1, s->T, &acts));
        VQ_TRY(vq_tensor_new(s->arena, be->place, be->act, VQ_DIMS(s->T, width(s)), &y));
        VQ_TRY(vq_sweep_get_inputs(s, i, &acts.x));
        VQ_TRY(vq_block_fwd(&stage->block[layer - stage->first], mode, stage->scratch, &acts, 0,
                            s->T, &y));
        const vq_tensor *const read[VQ_N_READ] = {[ATTN_IN] = &acts.attn_in,
                                                  [ATTN] = &acts.attn,
                                                  [MLP_IN] = &acts.mlp_in,
                                                  [ACT] = &acts.act};
        for (int r = 0; r < VQ_N_READ && hessian; r++)
            if (hessian[r].data) VQ_TRY(add_inputs(s, &hessian[r], read[r]));
        if (keep) VQ_TRY(vq_sweep_set_inputs(s, i, &y));
        vq_arena_reset(s->arena, mark);
        vq_progress_part(i + 1, s->n);
    }
    vq_stage_drop(stage);
    vq_arena_reset(s->arena, layer_mark);
    return VQ_OK;
}

vq_status vq_sweep_pass(vq_sweep *s, int64_t layer, vq_mode mode)
{
    return pass(s, layer, mode, NULL, true);
}

static vq_status make_hessians(vq_sweep *s, int64_t layer, vq_tensor *hessian)
{
    for (int k = 0; k < VQ_N_KINDS; k++) {
        const vq_vqlinear *l = linear_of(s, layer, k);
        vq_tensor *h = &hessian[read_by[k]];
        if (!l || h->data) continue;
        const int64_t in = l->source->weight.dim[1];
        VQ_TRY(
            vq_tensor_new(s->arena, s->stage->be->place, VQ_F64, VQ_DIMS(s->grid ? 2 : in, in), h));
        VQ_TRY(vq_zero(s->stage->be, h));
    }
    return VQ_OK;
}

vq_status vq_sweep_hessians(vq_sweep *s, int64_t layer, vq_tensor hessian[VQ_N_READ])
{
    for (int r = 0; r < VQ_N_READ; r++) hessian[r] = (vq_tensor){0};
    VQ_TRY(make_hessians(s, layer, hessian));
    VQ_TRY(pass(s, layer, VQ_MODE_FLOAT, hessian, !s->quantized));
    for (int r = 0; r < VQ_N_READ; r++)
        if (hessian[r].data && s->job) VQ_TRY(vq_job_sum_replicas(s->job, &hessian[r]));
    return VQ_OK;
}

static bool is_mine(const vq_sweep *s, const vq_vqlinear *l)
{
    return !s->is_mine || s->is_mine(s->ctx, l);
}

/* The weights of other replicas' linears are made too where the next layer's inputs need them. */
static bool is_wanted(const vq_sweep *s, const vq_vqlinear *l)
{
    return s->quantized || is_mine(s, l);
}

/* The columns of t in the order of the sweep. */
static vq_status arrange(vq_sweep *s, const vq_tensor *order, vq_tensor *t)
{
    const size_t mark = vq_arena_mark(s->stage->scratch);
    const vq_backend *be = s->stage->be;
    vq_tensor was;
    VQ_TRY(vq_tensor_new(s->stage->scratch, be->place, t->dtype, t->ndim, t->dim, &was));
    VQ_TRY(vq_copy(be, &was, t));
    VQ_TRY(vq_arrange(be, t, &was, order, false));
    vq_arena_reset(s->stage->scratch, mark);
    return VQ_OK;
}

/* Running groups of scattered columns become runs: the linear keeps the order of the sweep. */
static vq_status keep_order(vq_sweep *s, vq_vqlinear *l, const vq_gptq_factor *f, vq_tensor *rest)
{
    if (!l->order.data) return VQ_OK;
    VQ_TRY(vq_copy(s->stage->be, &l->order, &f->order));
    VQ_TRY(arrange(s, &l->order, &l->quant.base));
    VQ_TRY(arrange(s, &l->order, &l->ints));
    return arrange(s, &l->order, rest);
}

static vq_status round_linear(vq_sweep *s, vq_vqlinear *l, const vq_gptq_factor *f, double *error)
{
    const vq_backend *be = s->stage->be;
    vq_arena *scratch = s->stage->scratch;
    vq_tensor w = l->source->weight, ints = l->ints, rest;
    const size_t mark = vq_arena_mark(scratch);
    double own;
    w.name = l->source->name;
    if (!ints.data) {
        /* Read only while this layer is at work: kept with what it needs. */
        VQ_TRY(
            vq_tensor_new(s->arena, be->place, l->quant.base.dtype, 2, l->quant.base.dim, &ints));
        l->ints = ints;
    }
    VQ_TRY(vq_tensor_new(scratch, be->place, be->real, VQ_DIMS(w.dim[0], w.dim[1]), &rest));
    rest.name = w.name;
    VQ_TRY(vq_gptq_quantize(be, &l->quant, &ints, &rest, &own, &w, f, s->config));
    vq_weights_release(&s->stage->model->weights, &w);
    VQ_TRY(keep_order(s, l, f, &rest));
    if (is_mine(s, l)) {
        VQ_TRY(s->take(s->ctx, l, &rest, own));
        *error += own;
    }
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

/* Variances and means of the inputs from the means of their squares and their own. */
static vq_status read_inputs(vq_sweep *s, const vq_tensor *sums, vq_tensor *inputs)
{
    const vq_backend *be = s->stage->be;
    const int64_t n = sums->dim[1];
    vq_tensor host;
    double *variance;
    VQ_TRY(vq_tensor_new(s->stage->scratch, be->place, be->real, VQ_DIMS(2, n), inputs));
    const size_t mark = vq_arena_mark(s->arena);
    VQ_TRY(VQ_NEW(s->arena, 2 * n, &variance));
    VQ_TRY(vq_download(be, variance, sums));
    for (int64_t j = 0; j < n; j++) {
        const double mean = variance[n + j], rest = variance[j] - mean * mean;
        variance[j] = rest > 0 ? rest : 0;
    }
    VQ_TRY(vq_place_room(s->arena, inputs, &host));
    VQ_TRY(vq_convert(host.data, host.dtype, variance, VQ_F64, 2 * n));
    VQ_TRY(vq_place_back(be, &host, inputs));
    vq_arena_reset(s->arena, mark);
    return VQ_OK;
}

static vq_status round_nearest(vq_sweep *s, vq_vqlinear *l, const vq_tensor *sums)
{
    const vq_backend *be = s->stage->be;
    vq_arena *scratch = s->stage->scratch;
    vq_tensor w = l->source->weight, inputs, rest;
    const size_t mark = vq_arena_mark(scratch);
    VQ_TRY(read_inputs(s, sums, &inputs));
    VQ_TRY(vq_tensor_new(scratch, be->place, be->real, VQ_DIMS(w.dim[0], w.dim[1]), &rest));
    rest.name = w.name = l->source->name;
    VQ_TRY(vq_grid_make(be, &l->quant, &rest, &w, &inputs, s->grid));
    vq_weights_release(&s->stage->model->weights, &w);
    VQ_TRY(s->take(s->ctx, l, &rest, 0));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

/* Every linear, those that read the same one after the other, with one factor. */
static vq_status round_layer(vq_sweep *s, int64_t layer, vq_tensor *hessian, double *error)
{
    int64_t n_begun = 0;
    for (int r = 0; r < VQ_N_READ; r++) {
        if (!hessian[r].data) continue;
        const size_t mark = vq_arena_mark(s->stage->scratch);
        vq_gptq_factor f = {0};
        for (int k = 0; k < VQ_N_KINDS; k++) {
            vq_vqlinear *l = linear_of(s, layer, k);
            if (!l || read_by[k] != r || !is_wanted(s, l)) continue;
            vq_progress_part(n_begun++, VQ_N_KINDS);
            if (s->grid) {
                VQ_TRY(round_nearest(s, l, &hessian[r]));
                continue;
            }
            if (!f.u.data)
                VQ_TRY(vq_gptq_factor_make(s->stage->be, s->stage->scratch, &f, &hessian[r],
                                           l->source->name, s->config));
            VQ_TRY(round_linear(s, l, &f, error));
        }
        vq_arena_reset(s->stage->scratch, mark);
    }
    return VQ_OK;
}

vq_status vq_sweep_layer(vq_sweep *s, int64_t layer, double *error)
{
    const size_t mark = vq_arena_mark(s->arena);
    vq_tensor hessian[VQ_N_READ];
    bool is_kept[VQ_N_KINDS] = {0};
    *error = 0;
    for (int k = 0; k < VQ_N_KINDS; k++) {
        const vq_vqlinear *l = linear_of(s, layer, k);
        is_kept[k] = l && l->ints.data;
    }
    vq_progress_span(0, PASS_PART);
    VQ_TRY(vq_sweep_hessians(s, layer, hessian));
    vq_progress_span(PASS_PART, s->quantized ? 1 - PASS_PART : 1);
    VQ_TRY(round_layer(s, layer, hessian, error));
    vq_progress_span(1 - PASS_PART, 1);
    if (s->quantized) VQ_TRY(pass(s, layer, VQ_MODE_GPTQ, NULL, true));
    for (int k = 0; k < VQ_N_KINDS; k++) {
        vq_vqlinear *l = linear_of(s, layer, k);
        if (l && !is_kept[k]) l->ints = (vq_tensor){0};
    }
    vq_arena_reset(s->arena, mark);
    return VQ_OK;
}

void vq_sweep_close(vq_sweep *s)
{
    vq_h5_close(&s->file);
}

/* --- all layers ------------------------------------------------------------------------------ */

/* Whether one of the stage's ranks is to stop. */
static vq_status ask(vq_job *job, double next_s, bool *stop)
{
    double asked = vq_guard_stop(next_s) != NULL;
    vq_tensor t = vq_tensor_1d(&asked, VQ_F64, 1);
    VQ_TRY(vq_job_sum_replicas(job, &t));
    *stop = asked > 0;
    return VQ_OK;
}

/* Tells the next stage (on) that the job stops after a layer, or not (-1); or hears it. */
static vq_status pass_stop(vq_job *job, bool on, int64_t *after)
{
    const vq_topo *topo = &job->topo;
    const int peer = vq_topo_rank(topo, topo->stage + (on ? 1 : -1), topo->replica);
    vq_tensor t = vq_tensor_1d(after, VQ_I64, 1);
    return on ? vq_job_send(job, &t, peer, VQ_TAG_FORWARD)
              : vq_job_receive(job, &t, peer, VQ_TAG_FORWARD);
}

vq_status vq_sweep_in_turn(vq_job *job, vq_status (*pass_on)(void *ctx, bool on),
                           vq_status (*layer)(void *ctx, int64_t l, bool *is_made), void *ctx)
{
    const int64_t first = job->stage.first, last = job->stage.last, N = job->model.config.N;
    int64_t after = -1;
    double next_s = -INFINITY;
    vq_status status = first > 0 ? pass_stop(job, false, &after) : VQ_OK;
    if (!status && after < 0 && first > 0) status = pass_on(ctx, false);
    for (int64_t l = first; l < last && !status && after < 0; l++) {
        const double start_s = vq_seconds();
        bool is_made, stop = false;
        status = layer(ctx, l, &is_made);
        if (!status && is_made) next_s = vq_seconds() - start_s;
        if (!status && l + 1 < N) status = ask(job, next_s, &stop);
        if (stop) after = l;
    }
    if (!status && last < N) status = pass_stop(job, true, &after);
    if (!status && after < 0 && last < N) status = pass_on(ctx, true);
    if (status) vq_comm_die(job->comm, status);
    if (!status && after >= 0) status = vq_guard_stopped(job->config->out, "layer", after, next_s);
    return status;
}

/* A sweep on its way. */
typedef struct run {
    vq_sweep *sweep;
    const vq_windows *windows;
    vq_progress progress;
} run;

static vq_status pass_on(void *ctx, bool on)
{
    return vq_sweep_pass_on(((run *)ctx)->sweep, on);
}

static vq_status run_layer(void *ctx, int64_t layer, bool *is_made)
{
    run *r = ctx;
    vq_sweep *s = r->sweep;
    const int64_t done = layer + 1 - s->stage->first;
    bool is_found = false;
    double error;
    if (layer == 0) VQ_TRY(embed_share(s, r->windows));
    vq_comm_at(s->job->comm, "%s, layer %lld", r->progress.name, (long long)layer);
    if (s->begin) VQ_TRY(s->begin(s->ctx, layer, &is_found));
    if (is_found)
        VQ_TRY(vq_sweep_pass(s, layer, s->quantized ? VQ_MODE_GPTQ : VQ_MODE_FLOAT));
    else
        VQ_TRY(vq_sweep_layer(s, layer, &error));
    if (s->end) VQ_TRY(s->end(s->ctx, layer));
    *is_made = !is_found;
    if (is_found || s->grid)
        vq_progress_step(&r->progress, done, "layer %lld", (long long)layer);
    else
        vq_progress_step(&r->progress, done, "output error %.3g", error);
    return VQ_OK;
}

vq_status vq_sweep_run(vq_sweep *s, const vq_windows *windows)
{
    vq_job *job = s->job;
    double room;
    int64_t first, n;
    char *path;
    const size_t mark = vq_arena_mark(s->arena);
    run r = {.sweep = s, .windows = windows};
    vq_topo_share(&job->topo, job->topo.replica, windows->n, &first, &n);
    VQ_TRY(vq_job_room(job, &room));
    VQ_TRY(vq_job_path(job, &path, "sweep-%04d.h5", job->comm->rank));
    VQ_TRY(vq_comm_agree(job->comm,
                         vq_sweep_open(s, n, windows->n, windows->T, (size_t)(room / 2), path)));
    vq_progress_begin(&r.progress, s->grid ? "grid" : "gptq", "layers", 0,
                      s->stage->last - s->stage->first);
    const vq_status status = vq_sweep_in_turn(job, pass_on, run_layer, &r);
    vq_progress_end(&r.progress);
    vq_sweep_close(s);
    vq_arena_reset(s->arena, mark);
    return status;
}
