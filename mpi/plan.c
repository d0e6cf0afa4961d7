/* plan - the parts of the plan put together; links and disk. */
#include "plan.h"

#include "error.h"

static void plan_links(vq_plan *p)
{
    const vq_plan_input *in = &p->input;
    const vq_config *c = in->config;
    const double row = (double)(c->seqlen * in->model->config.E) * (double)vq_dtype_bytes(in->act);
    const double micro = (double)VQ_CEIL_DIV(c->train.batch, p->n_replicas);
    const double teacher = vq_config_has_teacher(c) && !c->teacher.cache ? micro * row : 0;
    for (int r = 0; r + 1 < in->n_ranks; r++) {
        if (vq_topo_is_last(&p->rank[r].topo)) continue;
        if (p->rank[r].node == p->rank[r + 1].node)
            p->step.links_within++;
        else
            p->step.links_between++;
    }
    if (!vq_config_learns(c)) return;
    if (p->n_stages > 1) {
        p->step.forward_bytes = micro * row + teacher;
        p->step.backward_bytes = micro * row;
    }
    if (in->n_ranks == 1) return;
    const vq_plan_sums all = vq_plan_sum(c, &in->model->config, 0, in->model->config.N);
    if (vq_plan_pool_is_whole(c, &all))
        p->step.reduce_bytes = p->step.broadcast_bytes = all.codes;
    else if (p->n_replicas > 1)
        p->step.reduce_bytes = all.codes / p->n_stages;
    const double ends = (p->n_stages > 1 ? 2.0 : 1.0) * p->n_replicas - 1;
    p->step.ids_bytes = ends * micro * (double)c->seqlen * 4;
}

static void plan_disk(vq_plan *p)
{
    const vq_plan_input *in = &p->input;
    const vq_config *c = in->config;
    const vq_plan_sums all = vq_plan_sum(c, &in->model->config, 0, in->model->config.N);
    p->disk_bytes.init =
        all.integers + all.codes + (vq_config_needs_ints(c) ? 0 : all.gptq); /* in integers */
    if (vq_config_learns(c) && c->train.block_steps > 0) p->disk_bytes.init += all.codes;
    if (vq_config_has_teacher(c) && c->teacher.cache)
        p->disk_bytes.teacher = (double)(c->nsamples * c->seqlen * in->teacher->config.E_embed) *
                                (double)vq_dtype_bytes(in->teacher->dtype);
    /* The one that is being written comes before the oldest goes. */
    if (vq_config_learns(c))
        p->disk_bytes.checkpoints = (double)(c->checkpoint.keep + 1) * 3 * all.codes;
    p->disk_bytes.model = ((double)vq_model_weights(&in->model->config) - all.packed) *
                              (double)vq_dtype_bytes(in->model->dtype) +
                          all.packed_bytes;
    p->disk_bytes.total = p->disk_bytes.init + p->disk_bytes.teacher + p->disk_bytes.checkpoints +
                          p->disk_bytes.model;
}

/* The view from rank i. */
static vq_status see(const vq_plan *p, int i, vq_plan_view *v)
{
    const vq_plan_input *in = &p->input;
    vq_topo topo, teacher;
    VQ_TRY(vq_topo_make(in->config, &in->model->config, i, in->n_ranks, &topo));
    VQ_CHECK(in->teacher->config.N >= topo.n_stages, VQ_EUSAGE,
             "teacher.model has %lld layers, expected at least a layer a stage (%d). Use fewer "
             "stages",
             (long long)in->teacher->config.N, topo.n_stages);
    VQ_TRY(vq_topo_make(in->config, &in->teacher->config, i, in->n_ranks, &teacher));
    vq_plan_see(v, in, &topo, &teacher);
    return VQ_OK;
}

/* How many micro-batches go together, so that the ranks' GPUs are brought the least. */
static vq_status choose_together(const vq_plan *p, vq_plan_view *v, int64_t *together)
{
    double brought[VQ_PLAN_TOGETHER] = {0};
    int best = 0;
    for (int i = 0; i < p->input.n_ranks; i++) {
        VQ_TRY(see(p, i, v));
        vq_plan_brought(v, brought);
    }
    for (int i = 1; i < VQ_PLAN_TOGETHER; i++)
        if (brought[i] < brought[best]) best = i;
    *together = (int64_t)1 << best;
    return VQ_OK;
}

vq_status vq_plan_make(vq_arena *arena, const vq_plan_input *in, vq_plan *p)
{
    vq_plan_work *by_stage;
    vq_plan_view *v;
    int64_t together;
    *p = (vq_plan){.input = *in};
    VQ_TRY(VQ_NEW(arena, in->n_ranks, &p->rank));
    VQ_TRY(VQ_NEW(arena, in->n_ranks, &by_stage));
    VQ_TRY(VQ_NEW(arena, 1, &v));
    VQ_TRY(choose_together(p, v, &together));
    for (int i = 0; i < in->n_ranks; i++) {
        vq_plan_rank *r = &p->rank[i];
        VQ_TRY(see(p, i, v));
        *r = (vq_plan_rank){.topo = v->job.topo,
                            .node = (int)((int64_t)i * in->n_nodes / in->n_ranks),
                            .together = together};
        vq_plan_memory(v, r);
        if (r->topo.replica > 0) continue;
        by_stage[r->topo.stage] = vq_plan_work_of(v, r->keep, r->keeps_weights);
    }
    const vq_topo *topo = &p->rank[0].topo;
    p->n_stages = topo->n_stages;
    p->n_replicas = topo->n_replicas;
    plan_links(p);
    plan_disk(p);
    if (vq_config_learns(in->config))
        VQ_TRY(vq_plan_step_time(arena, in, topo, by_stage, &p->step));
    vq_plan_times(in, topo, by_stage, &p->step, &p->seconds);
    return VQ_OK;
}

vq_status vq_plan_model_read(vq_arena *arena, const char *dir, vq_plan_model *model)
{
    char *path, *text;
    size_t n;
    VQ_TRY(vq_model_config_read(arena, dir, &path, &text, &n));
    VQ_TRY(vq_model_config_parse(text, n, path, &model->config));
    VQ_TRY(vq_model_require_dense(&model->config, path));
    model->dtype = vq_model_config_dtype(text, n);
    return VQ_OK;
}
