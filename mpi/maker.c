/* maker - grids and codebooks of layers. */
#include "maker.h"

#include <stdio.h>
#include <unistd.h>

#include "error.h"
#include "guard.h"
#include "log.h"
#include "lowrank.h"
#include "place.h"
#include "share.h"
#include "sweep.h"

#define KIND "init"
#define LAYOUT 3
#define PREFIX "init-"
#define START_KIND "start"
#define START PREFIX "start.h5"
#define GRID_KIND "grid" /* what a sweep gives, for runs with other codebooks */
#define GRID_PREFIX "grid-"
#define SETTINGS "the model's weights, bits, groups, K and D, and GPTQ's windows"

vq_maker_settings vq_maker_settings_of(const vq_config *c, vq_dtype model_dtype)
{
    static const vq_dtype scale_dtype[] = {
        [VQ_SCALE_F32] = VQ_F32, [VQ_SCALE_F16] = VQ_F16, [VQ_SCALE_BF16] = VQ_BF16};
    const vq_dtype scale = c->grid.scale_dtype != VQ_SCALE_AUTO ? scale_dtype[c->grid.scale_dtype]
                           : model_dtype == VQ_BF16             ? VQ_BF16
                                                                : VQ_F16;
    const vq_switch groups = c->gptq.static_groups;
    return (vq_maker_settings){
        .grid = {.bits = (int)c->bits,
                 .group_size = c->group_size,
                 .symmetric = c->sym,
                 .include_zero = c->grid.include_zero,
                 .scale_dtype = scale,
                 .search = c->grid.search != VQ_SEARCH_MINMAX},
        .gptq = {.bits = (int)c->bits,
                 .percdamp = c->gptq.percdamp,
                 .act_order = c->gptq.act_order,
                 .rule = {.block_size = c->gptq.block_size,
                          .symmetric = c->sym,
                          .scale_dtype = scale,
                          .static_groups =
                              groups == VQ_ON || (groups == VQ_AUTO && c->gptq.act_order),
                          .hessian_residual = c->gptq.residual == VQ_RESIDUAL_HESSIAN,
                          .search = c->grid.search != VQ_SEARCH_MINMAX,
                          .weigh = c->grid.search == VQ_SEARCH_OUTPUT}},
        .codebook = {.K = c->K,
                     .D = c->D,
                     .round_f16 = c->kmeans.round_f16,
                     .sharpen = c->kmeans.sharpen,
                     .kmeans = {.faiss = c->kmeans.engine == VQ_KMEANS_FAISS,
                                .by_sign = c->kmeans.by_sign,
                                .min_gain = VQ_KMEANS_MIN_GAIN,
                                .iters = (int)c->kmeans.iters,
                                .seed = (uint64_t)c->kmeans.seed,
                                .max_points_per_centroid = c->kmeans.max_points_per_centroid}}};
}

/* A linear on the grid that rounds to nearest, and what it leaves. rest real [out, in], made in
 * scratch. */
static vq_status residual(vq_job *job, const vq_maker_settings *set, vq_vqlinear *l,
                          vq_tensor *rest)
{
    vq_tensor w = l->source->weight;
    w.name = l->source->name;
    VQ_TRY(vq_tensor_new(&job->scratch, job->be.place, job->be.real, VQ_DIMS(w.dim[0], w.dim[1]),
                         rest));
    rest->name = l->source->name;
    VQ_TRY(vq_grid_make(&job->be, &l->quant, rest, &w, NULL, &set->grid));
    vq_weights_release(&job->model.weights, &w);
    return VQ_OK;
}

/* --- the codebook that k-means starts from ---------------------------------------------------- */

/* The linear whose residual the start codebook is fitted to: the first of layer 0 that has the most
 * weights. Residuals have nearly the same distribution in every linear, so one long k-means serves
 * them all. */
static vq_vqlinear *start_linear(vq_job *job)
{
    vq_vqlinear *best = NULL;
    for (int k = 0; k < VQ_N_KINDS; k++) {
        vq_vqlinear *l = vq_stage_linear(&job->stage, job->stage.first, (vq_linear_kind)k);
        if (l && l->quantized &&
            (!best || vq_tensor_count(&l->source->weight) > vq_tensor_count(&best->source->weight)))
            best = l;
    }
    return best;
}

static vq_status read_start(vq_job *job, const char *path, vq_tensor *codes)
{
    vq_h5 h;
    VQ_TRY(vq_h5_open(&job->run, path, START_KIND, LAYOUT, &h));
    vq_status status = vq_h5_check_u64(&h, "key", job->init_key, SETTINGS);
    if (!status) status = vq_h5_read(&h, "codes", codes);
    vq_h5_close(&h);
    return status;
}

static vq_status write_start(vq_job *job, const char *path, const vq_tensor *codes)
{
    vq_h5 h;
    VQ_TRY(vq_h5_create(&job->run, path, START_KIND, LAYOUT, &h));
    vq_status status = vq_h5_set_u64(&h, NULL, "key", job->init_key);
    if (!status) status = vq_h5_write(&h, "codes", codes);
    if (!status) return vq_h5_finish(&h);
    vq_h5_close(&h);
    return status;
}

/* Rank 0, which has layer 0: the start codebook as an earlier run has left it, or made and left.
 * There is none where the linears are too small for it. */
static vq_status find_start(vq_job *job, const vq_maker_settings *set, vq_tensor *codes,
                            bool *has_start)
{
    vq_vqlinear *l = start_linear(job);
    const size_t mark = vq_arena_mark(&job->scratch);
    vq_tensor rest;
    char *path;
    *has_start = l && vq_codebook_codes(&set->codebook, vq_tensor_count(&l->source->weight)) ==
                          set->codebook.K;
    if (!*has_start) return VQ_OK;
    VQ_TRY(vq_job_path(job, &path, START));
    if (vq_file_exists(path)) return read_start(job, path, codes);
    VQ_TRY(residual(job, set, l, &rest));
    VQ_TRY(vq_codebook_start(&job->be, &job->scratch, codes, &rest, &set->codebook));
    vq_arena_reset(&job->scratch, mark);
    return write_start(job, path, codes);
}

/* All ranks get rank 0's start codebook. It has no data where there is none, or each linear is to
 * have its own. */
static vq_status share_start(vq_job *job, const vq_maker_settings *set, vq_tensor *start)
{
    const vq_config *c = job->config;
    bool is_found = false;
    *start = (vq_tensor){0};
    if (!vq_config_has_codebook(c) || c->kmeans.engine != VQ_KMEANS_VQ ||
        c->kmeans.start != VQ_START_SHARED)
        return VQ_OK;
    vq_tensor codes;
    VQ_TRY(vq_tensor_new(&job->run, VQ_HOST, job->be.real,
                         VQ_DIMS(set->codebook.K, set->codebook.D), &codes));
    VQ_TRY(vq_comm_agree(job->comm,
                         job->comm->rank == 0 ? find_start(job, set, &codes, &is_found) : VQ_OK));
    int64_t has_start = is_found;
    vq_tensor flag = vq_tensor_1d(&has_start, VQ_I64, 1);
    VQ_TRY(vq_comm_broadcast(job->comm, &flag, 0));
    VQ_TRY(vq_comm_broadcast(job->comm, &codes, 0));
    if (has_start) *start = codes;
    return VQ_OK;
}

/* --- making ---------------------------------------------------------------------------------- */

/* The kind's files; `part` is what a linear has there in any case. */
static vq_shelf shelf_of(const char *kind, const char *prefix, const char *part, uint64_t key)
{
    return (vq_shelf){.kind = kind,
                      .prefix = prefix,
                      .part = part,
                      .settings = SETTINGS,
                      .layout = LAYOUT,
                      .key = key};
}

vq_shelf vq_maker_shelf(const vq_job *job)
{
    return shelf_of(KIND, PREFIX, "base", job->init_key);
}

static vq_shelf grid_shelf(const vq_job *job)
{
    return shelf_of(GRID_KIND, GRID_PREFIX, "rest", job->grid_key);
}

/* What making a linear needs. */
typedef struct maker {
    vq_job *job;
    const vq_maker_settings *set;
    const vq_tensor *start;
    const double *missing; /* [N] a layer that lacks nothing is not made again */
    const vq_share *share; /* of the grids */
    bool is_quantized;     /* what a layer reads has passed through quantized layers */
    vq_h5 file, grid_out;  /* of the layer at work; the latter only if other runs are to have it */
    vq_h5 *grids;          /* [n_grids] of the layer at work: another run's */
    int64_t n_grids;       /* opened */
    size_t mark;           /* of what a layer takes of the step's memory */
} maker;

/* The logits of rest: themselves, or their best approximation of the factors' rank; by the host. */
static vq_status fit_logits(vq_job *job, vq_vqlinear *l, const vq_tensor *rest)
{
    const size_t mark = vq_arena_mark(&job->scratch);
    vq_tensor from, codes, logits;
    VQ_TRY(vq_place_host(&job->be, &job->scratch, rest, &from));
    VQ_TRY(vq_place_room(&job->scratch, &l->codes, &codes));
    logits = codes;
    if (l->is_factored)
        VQ_TRY(vq_tensor_new(&job->scratch, VQ_HOST, VQ_F32, VQ_DIMS(rest->dim[0], rest->dim[1]),
                             &logits));
    VQ_TRY(vq_codebook_logits(&logits, &from));
    if (l->is_factored) {
        vq_tensor b1 = vq_vqlinear_factor1(l, &codes), b2 = vq_vqlinear_factor2(l, &codes);
        VQ_TRY(vq_lowrank_fit(&job->cpu, &job->scratch, &b1, &b2, &logits));
    }
    VQ_TRY(vq_place_back(&job->be, &codes, &l->codes));
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

/* A linear whose grid is made: its logits from rest, and both into the file. */
static vq_status keep_linear(maker *m, vq_vqlinear *l, const vq_tensor *rest)
{
    vq_codebook cb = {.codes = l->codes, .counts = l->counts, .idx = l->quant.idx};
    char name[320];
    const bool has_codes = vq_config_has_codebook(m->job->config);
    if (vq_config_learns(m->job->config) && !has_codes) VQ_TRY(fit_logits(m->job, l, rest));
    if (has_codes)
        VQ_TRY(vq_codebook_build(&m->job->be, &m->job->scratch, &cb, rest,
                                 m->start->data ? m->start : NULL, &m->set->codebook));
    VQ_TRY(vq_shelf_write(m->job, &m->file, l));
    snprintf(name, sizeof name, "%s/codes", l->source->name);
    return has_codes ? vq_h5_set_f64(&m->file, name, "kmeans_objective", cb.fit.objective) : VQ_OK;
}

/* A linear's grid and residual, without its codebook, for other runs. */
static vq_status offer_grid(maker *m, vq_vqlinear *l, const vq_tensor *rest, double error)
{
    vq_vqlinear grid = {.source = l->source, .quant = l->quant, .ints = l->ints, .order = l->order};
    char name[320];
    grid.quant.idx.data = NULL;
    VQ_TRY(vq_shelf_write(m->job, &m->grid_out, &grid));
    snprintf(name, sizeof name, "%s/rest", l->source->name);
    VQ_TRY(vq_place_write(&m->job->be, &m->job->scratch, &m->grid_out, name, rest));
    return vq_h5_set_f64(&m->grid_out, name, "gptq_error", error);
}

/* The same, as the sweep hands it over. */
static vq_status keep_rounded(void *ctx, vq_vqlinear *l, const vq_tensor *rest, double error)
{
    maker *m = ctx;
    char name[320];
    VQ_TRY(keep_linear(m, l, rest));
    if (m->grid_out.id >= 0) VQ_TRY(offer_grid(m, l, rest, error));
    if (!vq_config_uses_gptq(m->job->config)) return VQ_OK;
    snprintf(name, sizeof name, "%s/base", l->source->name);
    return vq_h5_set_f64(&m->file, name, "gptq_error", error);
}

/* Another run's grid and residual of a linear, whose error is kept as if it was made here. */
static vq_status find_grid(maker *m, vq_vqlinear *l, vq_tensor *rest, double *error)
{
    vq_job *job = m->job;
    const vq_tensor *w = &l->source->weight;
    vq_vqlinear grid = {.source = l->source, .quant = l->quant, .ints = l->ints, .order = l->order};
    char name[320];
    grid.quant.idx.data = NULL;
    snprintf(name, sizeof name, "%s/rest", l->source->name);
    for (int64_t i = 0; i < m->n_grids; i++) {
        if (!vq_h5_has(&m->grids[i], name)) continue;
        VQ_TRY(vq_tensor_new(&job->scratch, job->be.place, job->be.real,
                             VQ_DIMS(w->dim[0], w->dim[1]), rest));
        rest->name = l->source->name;
        VQ_TRY(vq_shelf_read(job, &m->grids[i], &grid));
        VQ_TRY(vq_place_read(&job->be, &job->scratch, &m->grids[i], name, rest));
        return vq_h5_get_f64(&m->grids[i], name, "gptq_error", error);
    }
    VQ_FAIL(VQ_EFILE,
            "%s: no grid of %s: expected one of each linear. Delete the folder and run again",
            m->share->dir, l->source->name);
}

/* Room for the integers of a layer that are not kept beyond it. */
static vq_status take_ints(maker *m, int64_t layer)
{
    vq_job *job = m->job;
    for (int k = 0; k < VQ_N_KINDS; k++) {
        vq_vqlinear *l = vq_stage_linear(&job->stage, layer, (vq_linear_kind)k);
        if (!vq_job_has_slot(job, layer * VQ_N_KINDS + k) || l->ints.data) continue;
        VQ_TRY(vq_tensor_new(&job->step, job->be.place, l->quant.base.dtype, 2, l->quant.base.dim,
                             &l->ints));
    }
    return VQ_OK;
}

static void drop_ints(maker *m, int64_t layer)
{
    for (int k = 0; k < VQ_N_KINDS && !vq_config_needs_ints(m->job->config); k++) {
        vq_vqlinear *l = vq_stage_linear(&m->job->stage, layer, (vq_linear_kind)k);
        if (l) l->ints = (vq_tensor){0};
    }
}

/* Opens what another run has of a layer's grids. */
static vq_status open_grids(maker *m, int64_t layer)
{
    vq_job *job = m->job;
    const vq_shelf grids = grid_shelf(job);
    char **paths;
    int64_t n;
    VQ_TRY(vq_shelf_files(&job->step, &grids, m->share->dir, layer, &paths, &n));
    VQ_TRY(VQ_NEW(&job->step, n, &m->grids));
    for (; m->n_grids < n; m->n_grids++)
        VQ_TRY(vq_h5_open(&job->step, paths[m->n_grids], GRID_KIND, LAYOUT, &m->grids[m->n_grids]));
    return vq_config_uses_gptq(job->config) ? take_ints(m, layer) : VQ_OK;
}

/* Starts the files of a layer in which this rank has a share. */
static vq_status open_layer(maker *m, int64_t layer)
{
    vq_job *job = m->job;
    const vq_shelf inits = vq_maker_shelf(job), grids = grid_shelf(job);
    bool has_share = false;
    for (int k = 0; k < VQ_N_KINDS; k++)
        has_share = has_share || vq_job_makes_slot(job, layer * VQ_N_KINDS + k);
    if (!has_share) return VQ_OK;
    if (m->share->is_found) VQ_TRY(open_grids(m, layer));
    VQ_TRY(vq_shelf_create(job, &inits, layer, &m->file));
    return m->share->dir && !m->share->is_found ? vq_shelf_create(job, &grids, layer, &m->grid_out)
                                                : VQ_OK;
}

/* Before a layer, for the sweep: one that lacks nothing only passes its inputs on, with quantized
 * propagation as its integers give them. */
static vq_status begin_layer(void *ctx, int64_t layer, bool *is_found)
{
    maker *m = ctx;
    vq_job *job = m->job;
    const vq_shelf inits = vq_maker_shelf(job);
    bool found[VQ_N_KINDS] = {0};
    m->mark = vq_arena_mark(&job->step);
    *is_found = m->missing[layer] == 0;
    if (!*is_found) return open_layer(m, layer);
    if (!m->is_quantized || vq_config_needs_ints(job->config)) return VQ_OK;
    VQ_TRY(take_ints(m, layer));
    return vq_shelf_read_layer(job, &inits, layer, true, found);
}

/* After it: its files appear, the grids first, so that a layer that lacks nothing has them. */
static vq_status end_layer(void *ctx, int64_t layer)
{
    maker *m = ctx;
    for (; m->n_grids > 0; m->n_grids--) vq_h5_close(&m->grids[m->n_grids - 1]);
    drop_ints(m, layer);
    vq_arena_reset(&m->job->step, m->mark);
    if (m->grid_out.id >= 0) VQ_TRY(vq_h5_finish(&m->grid_out));
    return m->file.id >= 0 ? vq_h5_finish(&m->file) : VQ_OK;
}

static bool is_rounded_here(void *ctx, const vq_vqlinear *l)
{
    const maker *m = ctx;
    vq_vqlinear *other;
    VQ_FOR_EACH_LINEAR(m->job, slot, other)
    {
        if (other == l) return vq_job_makes_slot(m->job, slot);
    }
    return false;
}

/* This rank's share by what its linears read. */
static vq_status sweep_share(maker *m, const vq_data *data)
{
    vq_sweep s = {.job = m->job,
                  .stage = &m->job->stage,
                  .config = &m->set->gptq,
                  .grid = vq_config_uses_gptq(m->job->config) ? NULL : &m->set->grid,
                  .quantized = m->is_quantized,
                  .begin = begin_layer,
                  .take = keep_rounded,
                  .end = end_layer,
                  .is_mine = is_rounded_here,
                  .ctx = m,
                  .arena = &m->job->step};
    return vq_sweep_run(&s, &data->calib);
}

/* A linear by rounding to nearest, or with another run's grid. */
static vq_status make_linear(maker *m, vq_vqlinear *l)
{
    vq_job *job = m->job;
    const size_t mark = vq_arena_mark(&job->scratch);
    vq_tensor rest;
    double error;
    if (m->share->is_found) {
        VQ_TRY(find_grid(m, l, &rest, &error));
        VQ_TRY(keep_rounded(m, l, &rest, error));
    } else {
        VQ_TRY(residual(job, m->set, l, &rest));
        VQ_TRY(keep_linear(m, l, &rest));
    }
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

/* This rank's share of the layers that lack something, without a sweep. */
static vq_status make_share(maker *m)
{
    vq_job *job = m->job;
    vq_progress p;
    vq_vqlinear *l;
    int64_t n = 0, done = 0;
    VQ_FOR_EACH_LINEAR(job, slot, l)
    n += vq_job_makes_slot(job, slot) && m->missing[slot / VQ_N_KINDS] > 0;
    vq_progress_begin(&p, "init", job->comm->size > 1 ? "linears of rank 0" : "linears", 0, n);
    for (int64_t i = job->stage.first; i < job->stage.last; i++) {
        const double start_s = vq_seconds();
        bool is_found;
        VQ_TRY(begin_layer(m, i, &is_found));
        for (int k = 0; k < VQ_N_KINDS && !is_found; k++) {
            if (!vq_job_makes_slot(job, i * VQ_N_KINDS + k)) continue;
            l = vq_stage_linear(&job->stage, i, (vq_linear_kind)k);
            VQ_TRY(make_linear(m, l));
            vq_progress_step(&p, ++done, "%s", l->source->name);
        }
        VQ_TRY(end_layer(m, i));
        if (!is_found && done < n)
            VQ_TRY(vq_guard_unit(job->config->out, "layer", i, vq_seconds() - start_s));
    }
    p.note[0] = '\0';
    vq_progress_end(&p);
    return VQ_OK;
}

/* Makes this rank's share and writes it. */
static vq_status make_layers(vq_job *job, const vq_maker_settings *set, const vq_data *data,
                             const vq_tensor *start, const double *missing, const vq_share *share)
{
    const vq_config *c = job->config;
    maker m = {.job = job,
               .set = set,
               .start = start,
               .missing = missing,
               .share = share,
               .is_quantized =
                   vq_config_uses_gptq(c) && (c->gptq.propagate == VQ_PROPAGATE_AUTO
                                                  ? c->method == VQ_METHOD_GPTQ
                                                  : c->gptq.propagate == VQ_PROPAGATE_QUANTIZED),
               .file.id = -1,
               .grid_out.id = -1};
    vq_status status =
        vq_config_sweeps(c) && !share->is_found ? sweep_share(&m, data) : make_share(&m);
    vq_h5_close(&m.file);
    vq_h5_close(&m.grid_out);
    for (int64_t i = 0; i < m.n_grids; i++) vq_h5_close(&m.grids[i]);
    return status;
}

/* Grids that other runs are to have are made again where the run folder lacks them. Collective. */
static vq_status add_missing_grids(vq_job *job, double *missing)
{
    const vq_shelf grids = grid_shelf(job);
    const size_t mark = vq_arena_mark(&job->step);
    double *lacks;
    VQ_TRY(VQ_NEW(&job->step, job->model.config.N, &lacks));
    VQ_TRY(vq_shelf_look(job, &grids, false, false, lacks));
    for (int64_t i = 0; i < job->model.config.N; i++) missing[i] += lacks[i];
    vq_arena_reset(&job->step, mark);
    return VQ_OK;
}

/* Makes what is missing. Grids by the inputs are shared with runs of other codebooks; others take
 * less time to make than to read. Collective. */
vq_status vq_maker_run(vq_job *job, const vq_maker_settings *set, const vq_data *data,
                       double *missing)
{
    const vq_config *c = job->config;
    vq_tensor start;
    vq_share share = {.job = job};
    vq_status status = VQ_OK;
    VQ_TRY(share_start(job, set, &start));
    if (vq_config_sweeps(c) && vq_config_learns(c))
        VQ_TRY(vq_share_begin(job, GRID_KIND, job->grid_key, GRID_PREFIX, false, &share));
    vq_comm_at(job->comm, "init");
    if (share.dir && !share.is_found) status = add_missing_grids(job, missing);
    if (!status)
        status = vq_comm_agree(job->comm, make_layers(job, set, data, &start, missing, &share));
    return vq_share_end(&share, status);
}

vq_status vq_maker_tidy(vq_job *job)
{
    char **paths;
    int64_t n;
    const size_t mark = vq_arena_mark(&job->scratch);
    VQ_TRY(vq_job_files(&job->scratch, job->config->out, GRID_PREFIX, &paths, &n));
    for (int64_t i = 0; i < n; i++)
        if (unlink(paths[i]) != 0) return vq_file_error(paths[i], "removed");
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}
