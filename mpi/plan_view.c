/* plan_view - sums over the layers of a model, none of which is read. */
#include "plan_view.h"

#include "grid.h"

vq_codebook_config vq_plan_codebook(const vq_config *c)
{
    return (vq_codebook_config){
        .K = c->K,
        .D = c->D,
        .kmeans = {.max_points_per_centroid = c->kmeans.max_points_per_centroid,
                   .by_sign = c->kmeans.by_sign}};
}

/* What the exported model has of a linear in a packed format, beside its bias; 0: it stays dense.
 */
static double packed_bytes(const vq_config *c, int64_t out, int64_t in)
{
    const vq_packing packing = vq_packing_of(c);
    char why[128];
    vq_packed p;
    double bytes = 0;
    if (packing.format == VQ_EXPORT_DENSE || !vq_packing_holds(&packing, out, in, why)) return 0;
    vq_packed_describe(&packing, out, in, VQ_F16, &p);
    for (int i = 0; i < VQ_N_PARTS; i++)
        if (p.part[i].ndim > 0) bytes += (double)vq_tensor_bytes(&p.part[i]);
    return bytes;
}

vq_plan_sums vq_plan_sum(const vq_config *c, const vq_model_config *m, int64_t first, int64_t last)
{
    const vq_grid_config grid = {.bits = (int)c->bits, .group_size = c->group_size};
    const vq_codebook_config codebook = vq_plan_codebook(c);
    const vq_pool_rule rule = vq_pool_rule_of(c);
    vq_plan_sums s = {0};
    for (int64_t i = first * VQ_N_KINDS; i < last * VQ_N_KINDS; i++) {
        const vq_linear_kind kind = (vq_linear_kind)(i % VQ_N_KINDS);
        char name[256];
        int64_t out, in;
        if (!vq_linear_shape(m, kind, &out, &in)) continue;
        const double n = (double)(out * in);
        s.weights += n;
        s.largest = VQ_MAX(s.largest, n);
        if (!vq_pool_takes(vq_linear_name(m, i / VQ_N_KINDS, kind, name), &c->skip)) continue;
        s.quantized += n;
        const double packed = packed_bytes(c, out, in);
        s.packed += packed > 0 ? n : 0;
        s.packed_bytes += packed;
        const vq_tensor ints = vq_quant_ints((int)c->bits, out, in);
        s.gptq += vq_config_uses_gptq(c) ? (double)vq_tensor_bytes(&ints) : 0;
        s.integers += (double)vq_grid_bytes(&grid, out, in) +
                      (vq_config_needs_ints(c) ? (double)vq_tensor_bytes(&ints) : 0) +
                      (vq_config_scatters(c) ? (double)in * sizeof(int32_t) : 0);
        if (!vq_config_learns(c)) continue;
        const vq_pool_slot slot = vq_pool_shape(&rule, out, in);
        s.codes += (double)(slot.n * slot.width + slot.out * slot.groups) * sizeof(float);
        s.integers += (double)(slot.out * slot.groups) * sizeof(float); /* the first scales */
        if (!vq_config_has_codebook(c)) continue;
        const int64_t K = vq_codebook_codes(&codebook, out * in);
        s.integers += (double)(K * c->D) * sizeof(uint32_t) +
                      (double)(vq_codebook_vectors(&codebook, out * in) *
                               (int64_t)vq_dtype_bytes(vq_codebook_idx_dtype(K)));
    }
    return s;
}

bool vq_plan_pool_is_whole(const vq_config *c, const vq_plan_sums *all)
{
    return all->codes <= (double)c->train.pool_max * sizeof(float);
}

void vq_plan_see(vq_plan_view *v, const vq_plan_input *in, const vq_topo *topo,
                 const vq_topo *teacher)
{
    const vq_config *c = in->config;
    const vq_model_config *m = &in->model->config;
    *v = (vq_plan_view){.in = in,
                        .c = c,
                        .own = vq_plan_sum(c, m, topo->first, topo->last),
                        .teacher_own =
                            vq_plan_sum(c, &in->teacher->config, teacher->first, teacher->last),
                        .all = vq_plan_sum(c, m, 0, m->N),
                        .act = (double)vq_dtype_bytes(in->act),
                        .weight = (double)vq_dtype_bytes(in->model->dtype),
                        .teacher_weight = (double)vq_dtype_bytes(in->teacher->dtype),
                        .max_micro = (int)VQ_CEIL_DIV(c->train.batch, topo->n_replicas),
                        .is_first = topo->stage == 0,
                        .is_last = vq_topo_is_last(topo)};
    v->job = (vq_job){.config = c, .topo = *topo, .be = {.act = in->act, .real = VQ_F32}};
    v->job.model.config = *m;
    v->teacher.config = in->teacher->config;
    v->job.stage = (vq_stage){
        .be = &v->job.be, .model = &v->job.model, .first = topo->first, .last = topo->last};
    v->teacher_stage = (vq_stage){
        .be = &v->job.be, .model = &v->teacher, .first = teacher->first, .last = teacher->last};
}
