/* init - grids and codebooks, made or read back. */
#include "init.h"

#include <stdio.h>
#include <string.h>

#include "codebook.h"
#include "error.h"
#include "grid.h"
#include "log.h"

#define KIND "init"
#define LAYOUT 1

/* The settings in the form that grid and codebook take. */
typedef struct settings {
    vq_grid_config grid;
    vq_codebook_config codebook;
} settings;

static settings settings_of(const vq_config *c, vq_dtype model_dtype)
{
    static const vq_dtype scale_dtype[] = {
        [VQ_SCALE_F32] = VQ_F32, [VQ_SCALE_F16] = VQ_F16, [VQ_SCALE_BF16] = VQ_BF16};
    return (settings){
        .grid = {.bits = (int)c->bits,
                 .group_size = c->group_size,
                 .symmetric = c->sym,
                 .include_zero = c->grid.include_zero,
                 .scale_dtype = c->grid.scale_dtype == VQ_SCALE_AUTO
                                    ? model_dtype
                                    : scale_dtype[c->grid.scale_dtype]},
        .codebook = {.K = c->K,
                     .D = c->D,
                     .round_f16 = c->kmeans.round_f16,
                     .kmeans = {.faiss = c->kmeans.engine == VQ_KMEANS_FAISS,
                                .min_gain = VQ_KMEANS_MIN_GAIN,
                                .iters = (int)c->kmeans.iters,
                                .seed = (uint64_t)c->kmeans.seed,
                                .max_points_per_centroid = c->kmeans.max_points_per_centroid}}};
}

/* One linear's tensors, by their names in the file. */
typedef struct part {
    const char *name;
    vq_tensor *tensor;
} part;

#define N_PARTS 6

static void parts_of(vq_vqlinear *l, part parts[N_PARTS])
{
    const part all[N_PARTS] = {{"base", &l->quant.base}, {"scale", &l->quant.scale},
                               {"zero", &l->quant.zero}, {"idx", &l->quant.idx},
                               {"counts", &l->counts},   {"codes", &l->codes}};
    memcpy(parts, all, sizeof all);
}

/* Connects slot's linear to the pool and takes memory for its integers. */
static vq_status prepare_linear(vq_job *job, const settings *set, int64_t slot, vq_vqlinear *l)
{
    const vq_tensor *w = &l->source->weight;
    const int64_t n_weights = vq_tensor_count(w), n_codes = vq_pool_codes(&job->pool, slot);
    const int64_t n_vec = VQ_CEIL_DIV(n_weights, set->codebook.D);
    VQ_TRY(vq_grid_alloc(&job->be, &l->quant, &job->weights, &set->grid, w->dim[0], w->dim[1]));
    VQ_TRY(vq_tensor_new(&job->weights, job->be.place, vq_codebook_idx_dtype(n_codes),
                         VQ_DIMS(n_vec), &l->quant.idx));
    VQ_TRY(vq_tensor_new(&job->weights, job->be.place, VQ_U32, VQ_DIMS(n_codes, set->codebook.D),
                         &l->counts));
    l->codes = vq_pool_part(&job->pool, &job->pool.codes, slot);
    l->dcodes = vq_pool_part(&job->pool, &job->pool.grad, slot);
    l->quantized = true;
    return VQ_OK;
}

static vq_status residual(vq_job *job, const settings *set, vq_vqlinear *l, vq_tensor *rest)
{
    vq_tensor w = l->source->weight;
    w.name = l->source->name;
    VQ_TRY(vq_tensor_new(&job->scratch, job->be.place, job->be.real, VQ_DIMS(w.dim[0], w.dim[1]),
                         rest));
    rest->name = l->source->name;
    VQ_TRY(vq_grid_make(&job->be, &l->quant, rest, &w, &set->grid));
    vq_file_release(w.data, vq_tensor_bytes(&w));
    return VQ_OK;
}

/* The start codebook: from the first linear of layer 0 that has the most weights. Residuals have
 * nearly the same distribution in every linear, so one long k-means serves them all. */
static vq_status make_start(vq_job *job, const settings *set, vq_tensor *start)
{
    vq_vqlinear *best = NULL;
    for (int k = 0; k < VQ_N_KINDS; k++) {
        vq_vqlinear *l = vq_stage_linear(&job->stage, job->stage.first, (vq_linear_kind)k);
        if (l && l->quantized &&
            (!best || vq_tensor_count(&l->source->weight) > vq_tensor_count(&best->source->weight)))
            best = l;
    }
    *start = (vq_tensor){0};
    if (!best ||
        vq_codebook_codes(&set->codebook, vq_tensor_count(&best->source->weight)) < set->codebook.K)
        return VQ_OK; /* too small for a start: each linear has its own */
    VQ_TRY(vq_tensor_new(&job->run, job->be.place, job->be.real,
                         VQ_DIMS(set->codebook.K, set->codebook.D), start));
    size_t mark = vq_arena_mark(&job->scratch);
    vq_tensor rest;
    VQ_TRY(residual(job, set, best, &rest));
    VQ_TRY(vq_codebook_start(&job->be, &job->scratch, start, &rest, &set->codebook));
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

static vq_status make_linear(vq_job *job, const settings *set, const vq_tensor *start,
                             vq_vqlinear *l, double *objective)
{
    size_t mark = vq_arena_mark(&job->scratch);
    vq_tensor rest;
    VQ_TRY(residual(job, set, l, &rest));
    vq_codebook cb = {.codes = l->codes, .counts = l->counts, .idx = l->quant.idx};
    VQ_TRY(vq_codebook_build(&job->be, &job->scratch, &cb, &rest, start->data ? start : NULL,
                             &set->codebook));
    *objective = cb.fit.objective;
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

static vq_status write_linear(vq_h5 *h, vq_vqlinear *l, double objective)
{
    part parts[N_PARTS];
    char name[320];
    parts_of(l, parts);
    for (int i = 0; i < N_PARTS; i++) {
        snprintf(name, sizeof name, "%s/%s", l->source->name, parts[i].name);
        VQ_TRY(vq_h5_write(h, name, parts[i].tensor));
    }
    return vq_h5_set_f64(h, name, "kmeans_objective", objective);
}

static vq_status read_linear(const vq_h5 *h, vq_vqlinear *l)
{
    part parts[N_PARTS];
    char name[320];
    parts_of(l, parts);
    for (int i = 0; i < N_PARTS; i++) {
        snprintf(name, sizeof name, "%s/%s", l->source->name, parts[i].name);
        VQ_TRY(vq_h5_read(h, name, parts[i].tensor));
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

static vq_status make_all(vq_job *job, const settings *set, vq_h5 *h)
{
    vq_vqlinear *l;
    vq_tensor start = {0};
    int64_t n = 0, done = 0;
    FOR_EACH_LINEAR(job, slot, l) n++;
    VQ_TRY(vq_h5_set_u64(h, NULL, "key", job->init_key));
    if (job->config->kmeans.engine == VQ_KMEANS_VQ && job->config->kmeans.start == VQ_START_SHARED)
        VQ_TRY(make_start(job, set, &start));
    if (start.data) VQ_TRY(vq_h5_write(h, "start", &start));
    vq_progress p;
    vq_progress_begin(&p, "init", "linears", 0, n);
    FOR_EACH_LINEAR(job, slot, l)
    {
        double objective;
        VQ_TRY(make_linear(job, set, &start, l, &objective));
        VQ_TRY(write_linear(h, l, objective));
        vq_progress_step(&p, ++done, "%s", l->source->name);
    }
    p.note[0] = '\0';
    vq_progress_end(&p);
    return VQ_OK;
}

static vq_status read_all(vq_job *job, const char *path)
{
    vq_vqlinear *l;
    vq_h5 h;
    VQ_TRY(vq_h5_open(&job->run, path, KIND, LAYOUT, &h));
    vq_status status =
        vq_h5_check_u64(&h, "key", job->init_key, "the model's weights, bits, groups, K and D");
    FOR_EACH_LINEAR(job, slot, l)
    {
        if (!status) status = read_linear(&h, l);
    }
    vq_h5_close(&h);
    if (!status) vq_log(VQ_LOG_INFO, "init     codebooks from %s", path);
    return status;
}

vq_status vq_init_codebooks(vq_job *job, vq_init_stats *stats)
{
    const vq_config *c = job->config;
    const settings set = settings_of(c, job->model.embed.dtype);
    const double start_s = vq_seconds();
    vq_vqlinear *l;
    char *path;
    *stats = (vq_init_stats){0};
    VQ_TRY(vq_pool_init(&job->run, &job->be, &job->model, &c->skip, c->K, c->D, &job->pool));
    job->init_key = vq_hash_u64(vq_config_phase_hash(c, VQ_PHASE_INIT), job->model.fingerprint);
    FOR_EACH_LINEAR(job, slot, l)
    {
        VQ_TRY(prepare_linear(job, &set, slot, l));
        const int64_t n = vq_tensor_count(&l->source->weight);
        stats->n_linears++;
        stats->n_weights += n;
        stats->n_codes += vq_tensor_count(&l->codes);
        stats->source_bytes += (double)vq_tensor_bytes(&l->source->weight);
        stats->packed_bytes += (double)(n * c->bits) / 8 +
                               (double)vq_tensor_count(&l->quant.scale) * (2 + (double)c->bits / 8);
    }
    VQ_TRY(vq_job_path(job, &path, "init-s00.h5"));
    if (vq_file_exists(path)) {
        VQ_TRY(read_all(job, path));
    } else {
        vq_h5 h;
        VQ_TRY(vq_h5_create(&job->run, path, KIND, LAYOUT, &h));
        vq_status status = make_all(job, &set, &h);
        if (status) vq_h5_close(&h);
        VQ_TRY(status);
        VQ_TRY(vq_h5_finish(&h));
    }
    vq_arena_trim(&job->scratch);
    stats->seconds = vq_seconds() - start_s;
    return VQ_OK;
}
