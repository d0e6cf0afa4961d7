/* init - grids and codebooks, made or read back. */
#include "init.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "codebook.h"
#include "error.h"
#include "grid.h"
#include "log.h"
#include "lowrank.h"
#include "place.h"
#include "share.h"
#include "sweep.h"

#define KIND "init"
#define LAYOUT 2
#define PREFIX "init-"
#define GRID_KIND "grid" /* what a sweep gives, for runs with other codebooks */
#define GRID_PREFIX "grid-"

/* The settings in the form that grid and codebook take. */
typedef struct settings {
    vq_grid_config grid;
    vq_gptq_config gptq;
    vq_codebook_config codebook;
} settings;

static settings settings_of(const vq_config *c, vq_dtype model_dtype)
{
    static const vq_dtype scale_dtype[] = {
        [VQ_SCALE_F32] = VQ_F32, [VQ_SCALE_F16] = VQ_F16, [VQ_SCALE_BF16] = VQ_BF16};
    const vq_dtype scale = c->grid.scale_dtype != VQ_SCALE_AUTO ? scale_dtype[c->grid.scale_dtype]
                           : model_dtype == VQ_BF16             ? VQ_BF16
                                                                : VQ_F16;
    const vq_switch groups = c->gptq.static_groups;
    return (settings){
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

/* One linear's tensors, by their names in the file; those that a run does not have have no data. */
typedef struct part {
    const char *name;
    vq_tensor *tensor;
} part;

#define N_PARTS 8

static void parts_of(vq_vqlinear *l, part parts[N_PARTS])
{
    const part all[N_PARTS] = {{"base", &l->quant.base}, {"scale", &l->quant.scale},
                               {"zero", &l->quant.zero}, {"idx", &l->quant.idx},
                               {"counts", &l->counts},   {"codes", &l->codes},
                               {"ints", &l->ints},       {"order", &l->order}};
    memcpy(parts, all, sizeof all);
}

/* Connects slot's linear to the pool and takes memory for its integers. */
static vq_status prepare_linear(vq_job *job, const settings *set, int64_t slot, vq_vqlinear *l)
{
    const vq_tensor *w = &l->source->weight;
    const int64_t n_weights = vq_tensor_count(w), n_codes = vq_pool_codes(&job->pool, slot);
    const int64_t n_vec = VQ_CEIL_DIV(n_weights, set->codebook.D);
    l->scale_dtype = set->grid.scale_dtype;
    VQ_TRY(vq_grid_alloc(&job->be, &l->quant, &job->weights, &set->grid, w->dim[0], w->dim[1]));
    l->quantized = true;
    if (vq_config_scatters(job->config) && l->quant.group_size < w->dim[1])
        VQ_TRY(vq_tensor_new(&job->weights, job->be.place, VQ_I32, VQ_DIMS(w->dim[1]), &l->order));
    if (vq_config_needs_ints(job->config))
        VQ_TRY(vq_tensor_new(&job->weights, job->be.place, l->quant.base.dtype, 2,
                             l->quant.base.dim, &l->ints));
    if (!vq_config_learns(job->config)) return VQ_OK;
    vq_pool_attach(&job->pool, slot, l);
    if (!vq_config_has_codebook(job->config)) return VQ_OK;
    VQ_TRY(vq_tensor_new(&job->weights, job->be.place, vq_codebook_idx_dtype(n_codes),
                         VQ_DIMS(n_vec), &l->quant.idx));
    return vq_tensor_new(&job->weights, job->be.place, VQ_U32, VQ_DIMS(n_codes, set->codebook.D),
                         &l->counts);
}

static vq_status residual(vq_job *job, const settings *set, vq_vqlinear *l, vq_tensor *rest)
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

/* Rank 0, which has layer 0, makes the start codebook; all ranks get it. It has no data where the
 * linears are too small for one, or each is to have its own start. */
static vq_status make_start(vq_job *job, const settings *set, vq_tensor *start)
{
    const vq_config *c = job->config;
    vq_status status = VQ_OK;
    *start = (vq_tensor){0};
    if (!vq_config_has_codebook(c) || c->kmeans.engine != VQ_KMEANS_VQ ||
        c->kmeans.start != VQ_START_SHARED)
        return VQ_OK;
    vq_tensor codes;
    int64_t has_start = 0;
    VQ_TRY(vq_tensor_new(&job->run, VQ_HOST, job->be.real,
                         VQ_DIMS(set->codebook.K, set->codebook.D), &codes));
    if (job->comm->rank == 0) {
        vq_vqlinear *l = start_linear(job);
        has_start = l && vq_codebook_codes(&set->codebook, vq_tensor_count(&l->source->weight)) ==
                             set->codebook.K;
        size_t mark = vq_arena_mark(&job->scratch);
        vq_tensor rest;
        if (has_start) status = residual(job, set, l, &rest);
        if (has_start && !status)
            status = vq_codebook_start(&job->be, &job->scratch, &codes, &rest, &set->codebook);
        vq_arena_reset(&job->scratch, mark);
    }
    VQ_TRY(vq_comm_agree(job->comm, status));
    vq_tensor flag = vq_tensor_1d(&has_start, VQ_I64, 1);
    VQ_TRY(vq_comm_broadcast(job->comm, &flag, 0));
    VQ_TRY(vq_comm_broadcast(job->comm, &codes, 0));
    if (has_start) *start = codes;
    return VQ_OK;
}

static vq_status write_linear(vq_job *job, vq_h5 *h, vq_vqlinear *l)
{
    part parts[N_PARTS];
    char name[320];
    parts_of(l, parts);
    for (int i = 0; i < N_PARTS; i++) {
        if (!parts[i].tensor->data) continue;
        snprintf(name, sizeof name, "%s/%s", l->source->name, parts[i].name);
        VQ_TRY(vq_place_write(&job->be, &job->scratch, h, name, parts[i].tensor));
    }
    return VQ_OK;
}

static vq_status read_linear(vq_job *job, const vq_h5 *h, vq_vqlinear *l)
{
    part parts[N_PARTS];
    char name[320];
    parts_of(l, parts);
    for (int i = 0; i < N_PARTS; i++) {
        if (!parts[i].tensor->data) continue;
        snprintf(name, sizeof name, "%s/%s", l->source->name, parts[i].name);
        VQ_TRY(vq_place_read(&job->be, &job->scratch, h, name, parts[i].tensor));
    }
    return VQ_OK;
}

/* Calls each(slot's linear) for the quantized linears of the stage in order. */
#define FOR_EACH_LINEAR(job, slot, l)                                                              \
    for (int64_t slot = (job)->stage.first * VQ_N_KINDS; slot < (job)->stage.last * VQ_N_KINDS;    \
         slot++)                                                                                   \
        if (vq_pool_codes(&(job)->pool, slot) > 0 &&                                               \
            (l = vq_stage_linear(&(job)->stage, slot / VQ_N_KINDS,                                 \
                                 (vq_linear_kind)(slot % VQ_N_KINDS))))

/* Replicas of a stage have the same linears; nothing is made twice. The largest linear that is left
 * goes to the replica with the least to do. */
static vq_status share_linears(vq_job *job)
{
    const int64_t n_slots = job->pool.n_slots;
    int64_t *load;
    VQ_TRY(VQ_NEW(&job->run, n_slots, &job->maker));
    VQ_TRY(VQ_NEW(&job->scratch, job->topo.n_replicas, &load));
    for (int r = 0; r < job->topo.n_replicas; r++) load[r] = 0;
    for (int64_t i = 0; i < n_slots; i++) job->maker[i] = -1;
    for (;;) {
        vq_vqlinear *l, *largest = NULL;
        int64_t at = 0;
        int least = 0;
        FOR_EACH_LINEAR(job, slot, l)
        {
            if (job->maker[slot] >= 0) continue;
            if (largest &&
                vq_tensor_count(&l->source->weight) <= vq_tensor_count(&largest->source->weight))
                continue;
            largest = l;
            at = slot;
        }
        if (!largest) return VQ_OK;
        for (int r = 1; r < job->topo.n_replicas; r++)
            if (load[r] < load[least]) least = r;
        load[least] += vq_tensor_count(&largest->source->weight);
        job->maker[at] = least;
    }
}

static bool is_mine(const vq_job *job, int64_t slot)
{
    return job->maker[slot] == job->topo.replica;
}

/* What making a linear needs. */
typedef struct maker {
    vq_job *job;
    const settings *set;
    const vq_tensor *start;
    vq_h5 file;
    vq_h5 grid_out;  /* closed unless other runs are to have the grids */
    vq_h5 *grids;    /* [n_grids] another run's; none: they are made */
    int64_t n_grids; /* opened */
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
    VQ_TRY(write_linear(m->job, &m->file, l));
    snprintf(name, sizeof name, "%s/codes", l->source->name);
    return has_codes ? vq_h5_set_f64(&m->file, name, "kmeans_objective", cb.fit.objective) : VQ_OK;
}

/* A linear's grid and residual, without its codebook, for other runs. */
static vq_status offer_grid(maker *m, vq_vqlinear *l, const vq_tensor *rest, double error)
{
    vq_vqlinear grid = {.source = l->source, .quant = l->quant, .ints = l->ints, .order = l->order};
    char name[320];
    grid.quant.idx.data = NULL;
    VQ_TRY(write_linear(m->job, &m->grid_out, &grid));
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
        VQ_TRY(read_linear(job, &m->grids[i], &grid));
        VQ_TRY(vq_place_read(&job->be, &job->scratch, &m->grids[i], name, rest));
        return vq_h5_get_f64(&m->grids[i], name, "gptq_error", error);
    }
    VQ_FAIL(VQ_EFILE,
            "%s: no grid of %s: expected one of each linear. Delete the folder and run again",
            m->grids[0].path, l->source->name);
}

static bool is_rounded_here(void *ctx, const vq_vqlinear *l)
{
    const maker *m = ctx;
    vq_vqlinear *other;
    FOR_EACH_LINEAR(m->job, slot, other)
    {
        if (other == l) return is_mine(m->job, slot);
    }
    return false;
}

/* This rank's share by what its linears read. */
static vq_status sweep_share(maker *m, const vq_data *data)
{
    const vq_config *c = m->job->config;
    const bool uses_gptq = vq_config_uses_gptq(c),
               is_quantized = c->gptq.propagate == VQ_PROPAGATE_AUTO
                                  ? c->method == VQ_METHOD_GPTQ
                                  : c->gptq.propagate == VQ_PROPAGATE_QUANTIZED;
    vq_sweep s = {.job = m->job,
                  .stage = &m->job->stage,
                  .config = &m->set->gptq,
                  .grid = uses_gptq ? NULL : &m->set->grid,
                  .quantized = uses_gptq && is_quantized,
                  .take = keep_rounded,
                  .is_mine = is_rounded_here,
                  .ctx = m,
                  .arena = &m->job->step};
    return vq_sweep_run(&s, &data->calib);
}

/* This rank's share by rounding to nearest, or with another run's grids. */
static vq_status make_share(maker *m)
{
    vq_job *job = m->job;
    vq_vqlinear *l;
    int64_t n = 0, done = 0;
    FOR_EACH_LINEAR(job, slot, l) n += is_mine(job, slot);
    vq_progress p;
    vq_progress_begin(&p, "init", job->comm->size > 1 ? "linears of rank 0" : "linears", 0, n);
    FOR_EACH_LINEAR(job, slot, l)
    {
        if (!is_mine(job, slot)) continue;
        size_t mark = vq_arena_mark(&job->scratch);
        vq_tensor rest;
        if (m->n_grids > 0) {
            double error;
            VQ_TRY(find_grid(m, l, &rest, &error));
            VQ_TRY(keep_rounded(m, l, &rest, error));
        } else {
            VQ_TRY(residual(job, m->set, l, &rest));
            VQ_TRY(keep_linear(m, l, &rest));
        }
        vq_arena_reset(&job->scratch, mark);
        vq_progress_step(&p, ++done, "%s", l->source->name);
    }
    p.note[0] = '\0';
    vq_progress_end(&p);
    return VQ_OK;
}

/* Opens what another run has left of the grids, or the file that is to have them. */
static vq_status open_grids(maker *m, const vq_share *share)
{
    vq_job *job = m->job;
    char **paths, *path;
    int64_t n;
    if (!share->is_found) {
        VQ_TRY(vq_job_path(job, &path, GRID_PREFIX "%04d.h5", job->comm->rank));
        return vq_h5_create(&job->run, path, GRID_KIND, LAYOUT, &m->grid_out);
    }
    VQ_TRY(vq_job_files(&job->run, share->dir, GRID_PREFIX, &paths, &n));
    VQ_TRY(VQ_NEW(&job->run, n, &m->grids));
    for (; m->n_grids < n; m->n_grids++)
        VQ_TRY(vq_h5_open(&job->run, paths[m->n_grids], GRID_KIND, LAYOUT, &m->grids[m->n_grids]));
    return VQ_OK;
}

static vq_status fill_file(maker *m, const vq_data *data, const vq_share *share)
{
    vq_job *job = m->job;
    char *path;
    VQ_TRY(vq_job_path(job, &path, PREFIX "%04d.h5", job->comm->rank));
    VQ_TRY(vq_h5_create(&job->run, path, KIND, LAYOUT, &m->file));
    VQ_TRY(vq_h5_set_u64(&m->file, NULL, "key", job->init_key));
    if (m->start->data && job->comm->rank == 0) VQ_TRY(vq_h5_write(&m->file, "start", m->start));
    if (share->dir) VQ_TRY(open_grids(m, share));
    VQ_TRY(vq_config_sweeps(job->config) && m->n_grids == 0 ? sweep_share(m, data) : make_share(m));
    if (m->grid_out.id >= 0) VQ_TRY(vq_h5_finish(&m->grid_out));
    return vq_h5_finish(&m->file);
}

/* Makes this rank's share and writes it. */
static vq_status make_file(vq_job *job, const settings *set, const vq_data *data,
                           const vq_tensor *start, const vq_share *share)
{
    maker m = {.job = job, .set = set, .start = start, .file = {.id = -1}, .grid_out = {.id = -1}};
    vq_status status = fill_file(&m, data, share);
    vq_h5_close(&m.file);
    vq_h5_close(&m.grid_out);
    for (int64_t i = 0; i < m.n_grids; i++) vq_h5_close(&m.grids[i]);
    return status;
}

/* The run has no use for its grid file: its init file has all but the residual. */
static vq_status remove_grid(vq_job *job)
{
    char *path;
    VQ_TRY(vq_job_path(job, &path, GRID_PREFIX "%04d.h5", job->comm->rank));
    return unlink(path) == 0 || errno == ENOENT ? VQ_OK : vq_file_error(path, "removed");
}

/* Makes all files. Grids by the inputs are shared with runs of other codebooks; others take less
 * time to make than to read. Collective. */
static vq_status make_files(vq_job *job, const settings *set, const vq_data *data)
{
    const vq_config *c = job->config;
    vq_tensor start;
    vq_share share = {.job = job};
    VQ_TRY(make_start(job, set, &start));
    if (vq_config_sweeps(c) && vq_config_learns(c))
        VQ_TRY(vq_share_begin(job, GRID_KIND, job->grid_key, GRID_PREFIX, false, &share));
    vq_comm_at(job->comm, "init");
    VQ_TRY(
        vq_share_end(&share, vq_comm_agree(job->comm, make_file(job, set, data, &start, &share))));
    return share.dir ? vq_comm_agree(job->comm, remove_grid(job)) : VQ_OK;
}

/* Reads what it finds of the stage's linears in the run's init files, but not again what this rank
 * has just made; how many it did not find. */
static vq_status read_files(vq_job *job, bool are_made, int64_t *missing)
{
    vq_vqlinear *l;
    char **paths, name[320];
    int64_t n;
    bool *found;
    size_t mark = vq_arena_mark(&job->scratch);
    VQ_TRY(vq_job_files(&job->scratch, job->config->out, PREFIX, &paths, &n));
    VQ_TRY(VQ_NEW(&job->scratch, job->pool.n_slots, &found));
    memset(found, 0, (size_t)job->pool.n_slots * sizeof *found);
    FOR_EACH_LINEAR(job, slot, l) found[slot] = are_made && is_mine(job, slot);
    for (int64_t i = 0; i < n; i++) {
        vq_h5 h;
        VQ_TRY(vq_h5_open(&job->scratch, paths[i], KIND, LAYOUT, &h));
        vq_status status =
            vq_h5_check_u64(&h, "key", job->init_key,
                            "the model's weights, bits, groups, K and D, and GPTQ's windows");
        FOR_EACH_LINEAR(job, slot, l)
        {
            snprintf(name, sizeof name, "%s/base", l->source->name);
            if (status || found[slot] || !vq_h5_has(&h, name)) continue;
            status = read_linear(job, &h, l);
            found[slot] = true;
        }
        vq_h5_close(&h);
        VQ_TRY(status);
    }
    *missing = 0;
    FOR_EACH_LINEAR(job, slot, l) *missing += !found[slot];
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

/* Whether the run folder has every linear, then read by the ranks that need it. Collective. */
static vq_status read_all(vq_job *job, bool are_made, bool *all)
{
    int64_t missing = 0;
    VQ_TRY(vq_comm_agree(job->comm, read_files(job, are_made, &missing)));
    double total = (double)missing;
    vq_tensor sum = vq_tensor_1d(&total, VQ_F64, 1);
    VQ_TRY(vq_comm_sum(job->comm, &sum));
    *all = total == 0;
    return VQ_OK;
}

/* What is trained, and the layers whose part this rank holds. */
static vq_pool_rule pool_rule(const vq_job *job)
{
    vq_pool_rule rule = vq_pool_rule_of(job->config);
    rule.last = job->model.config.N;
    if (vq_pool_count(&job->model.config, &rule) <= job->config->train.pool_max) return rule;
    rule.first = job->stage.first;
    rule.last = job->stage.last;
    rule.is_part = true;
    return rule;
}

static vq_status prepare_linears(vq_job *job, const settings *set, vq_init_stats *stats)
{
    const vq_config *c = job->config;
    vq_vqlinear *l;
    const vq_pool_rule rule = pool_rule(job);
    VQ_TRY(vq_pool_init(&job->run, &job->be, &job->model, &rule, &job->pool));
    FOR_EACH_LINEAR(job, slot, l) VQ_TRY(prepare_linear(job, set, slot, l));
    size_t mark = vq_arena_mark(&job->scratch);
    VQ_TRY(share_linears(job));
    vq_arena_reset(&job->scratch, mark);
    for (int64_t slot = 0; slot < job->pool.n_slots; slot++) {
        if (vq_pool_codes(&job->pool, slot) == 0) continue;
        const vq_tensor *w = &job->model.layers[slot / VQ_N_KINDS].linear[slot % VQ_N_KINDS].weight;
        const int64_t n = vq_tensor_count(w);
        stats->n_linears++;
        stats->n_weights += n;
        stats->source_bytes += (double)vq_tensor_bytes(w);
        stats->packed_bytes +=
            (double)(n * c->bits) / 8 +
            (double)(w->dim[0] * vq_grid_groups(&set->grid, w->dim[1])) * (2 + (double)c->bits / 8);
    }
    stats->n_codes = job->pool.n_params;
    return VQ_OK;
}

/* Reads the codebooks, making them first where the run folder does not have them. Collective. */
static vq_status find_or_make(vq_job *job, const settings *set, const vq_data *data)
{
    bool all;
    VQ_TRY(read_all(job, false, &all));
    if (all) {
        vq_log(VQ_LOG_INFO, "init     codebooks from an earlier run");
        return VQ_OK;
    }
    VQ_TRY(make_files(job, set, data));
    VQ_TRY(read_all(job, true, &all));
    VQ_ASSERT(all);
    return VQ_OK;
}

static void set_keys(vq_job *job, const vq_data *data)
{
    const struct {
        vq_phase phase;
        uint64_t *key;
    } keys[] = {{VQ_PHASE_GRID, &job->grid_key}, {VQ_PHASE_INIT, &job->init_key}};
    for (int i = 0; i < VQ_COUNT(keys); i++) {
        *keys[i].key =
            vq_hash_u64(vq_config_phase_hash(job->config, keys[i].phase), job->model.fingerprint);
        if (vq_config_sweeps(job->config))
            *keys[i].key = vq_hash_u64(*keys[i].key, data->calib_hash);
    }
}

/* The keys, and room for all that is made or read. Collective. */
static vq_status prepare(vq_job *job, const settings *set, const vq_data *data,
                         vq_init_stats *stats)
{
    *stats = (vq_init_stats){0};
    vq_comm_at(job->comm, "init");
    set_keys(job, data);
    return vq_comm_agree(job->comm, prepare_linears(job, set, stats));
}

vq_status vq_init_read(vq_job *job, const vq_data *data, vq_init_stats *stats)
{
    const settings set = settings_of(job->config, job->model.embed.dtype);
    bool all;
    VQ_TRY(prepare(job, &set, data, stats));
    VQ_TRY(read_all(job, false, &all));
    VQ_CHECK(all, VQ_EFILE,
             "%s: its " PREFIX "*.h5 lack linears of the model: expected a finished run. Run the "
             "same quantize command again to finish it",
             job->config->out);
    return vq_config_learns(job->config) && job->pool.is_whole ? vq_job_share_pool(job) : VQ_OK;
}

vq_status vq_init_codebooks(vq_job *job, const vq_data *data, vq_init_stats *stats)
{
    const settings set = settings_of(job->config, job->model.embed.dtype);
    const double start_s = vq_seconds();
    vq_share share;
    VQ_TRY(prepare(job, &set, data, stats));
    VQ_TRY(vq_share_begin(job, KIND, job->init_key, PREFIX, true, &share));
    vq_comm_at(job->comm, "init");
    VQ_TRY(vq_share_end(&share, find_or_make(job, &set, data)));
    if (vq_config_learns(job->config) && job->pool.is_whole) VQ_TRY(vq_job_share_pool(job));
    vq_arena_trim(&job->scratch);
    stats->seconds = vq_seconds() - start_s;
    return VQ_OK;
}
