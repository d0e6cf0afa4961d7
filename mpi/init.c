/* init - grids and codebooks, made or read back. */
#include "init.h"

#include "error.h"
#include "log.h"
#include "maker.h"
#include "share.h"

/* Connects slot's linear to the pool and takes memory for its integers. */
static vq_status prepare_linear(vq_job *job, const vq_maker_settings *set, int64_t slot,
                                vq_vqlinear *l)
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
        VQ_FOR_EACH_LINEAR(job, slot, l)
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

static vq_status prepare_linears(vq_job *job, const vq_maker_settings *set, vq_init_stats *stats)
{
    const vq_config *c = job->config;
    vq_vqlinear *l;
    const vq_pool_rule rule = pool_rule(job);
    VQ_TRY(vq_pool_init(&job->run, &job->be, &job->model, &rule, &job->pool));
    VQ_FOR_EACH_LINEAR(job, slot, l) VQ_TRY(prepare_linear(job, set, slot, l));
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

/* Says what is not made again. */
static void say_found(const vq_job *job, const double *missing)
{
    int64_t n = 0, n_found = 0;
    for (int64_t i = 0; i < job->model.config.N; i++) {
        bool is_quantized = false;
        for (int k = 0; k < VQ_N_KINDS; k++)
            is_quantized = is_quantized || vq_pool_codes(&job->pool, i * VQ_N_KINDS + k) > 0;
        n += is_quantized;
        n_found += is_quantized && missing[i] == 0;
    }
    if (n_found == n)
        vq_log(VQ_LOG_INFO, "init     codebooks from an earlier run");
    else if (n_found > 0)
        vq_log(VQ_LOG_INFO, "init     %lld of %lld layers from an earlier run", (long long)n_found,
               (long long)n);
}

/* Reads the codebooks, making them first where the run folder does not have them. Collective. */
static vq_status find_or_make(vq_job *job, const vq_maker_settings *set, const vq_data *data)
{
    const vq_shelf inits = vq_maker_shelf(job);
    double *missing;
    VQ_TRY(VQ_NEW(&job->run, job->model.config.N, &missing));
    VQ_TRY(vq_shelf_look(job, &inits, true, false, missing));
    say_found(job, missing);
    if (vq_shelf_is_whole(job, missing)) return VQ_OK;
    VQ_TRY(vq_maker_run(job, set, data, missing));
    VQ_TRY(vq_shelf_look(job, &inits, true, true, missing));
    VQ_ASSERT(vq_shelf_is_whole(job, missing));
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
static vq_status prepare(vq_job *job, const vq_maker_settings *set, const vq_data *data,
                         vq_init_stats *stats)
{
    *stats = (vq_init_stats){0};
    vq_comm_at(job->comm, "init");
    set_keys(job, data);
    return vq_comm_agree(job->comm, prepare_linears(job, set, stats));
}

vq_status vq_init_read(vq_job *job, const vq_data *data, vq_init_stats *stats)
{
    const vq_maker_settings set = vq_maker_settings_of(job->config, job->model.embed.dtype);
    double *missing;
    VQ_TRY(prepare(job, &set, data, stats));
    VQ_TRY(VQ_NEW(&job->run, job->model.config.N, &missing));
    const vq_shelf inits = vq_maker_shelf(job);
    VQ_TRY(vq_shelf_look(job, &inits, true, false, missing));
    VQ_CHECK(vq_shelf_is_whole(job, missing), VQ_EFILE,
             "%s: its %s*.h5 lack linears of the model: expected a finished run. Run the same "
             "quantize command again to finish it",
             job->config->out, inits.prefix);
    return vq_config_learns(job->config) && job->pool.is_whole ? vq_job_share_pool(job) : VQ_OK;
}

vq_status vq_init_codebooks(vq_job *job, const vq_data *data, vq_init_stats *stats)
{
    const vq_maker_settings set = vq_maker_settings_of(job->config, job->model.embed.dtype);
    const double start_s = vq_seconds();
    vq_share share;
    VQ_TRY(prepare(job, &set, data, stats));
    const vq_shelf inits = vq_maker_shelf(job);
    VQ_TRY(vq_share_begin(job, inits.kind, job->init_key, inits.prefix, true, &share));
    vq_comm_at(job->comm, "init");
    VQ_TRY(vq_share_end(&share, find_or_make(job, &set, data)));
    VQ_TRY(vq_comm_agree(job->comm, job->comm->rank == 0 ? vq_maker_tidy(job) : VQ_OK));
    if (vq_config_learns(job->config) && job->pool.is_whole) VQ_TRY(vq_job_share_pool(job));
    vq_arena_trim(&job->scratch);
    stats->seconds = vq_seconds() - start_s;
    return VQ_OK;
}
