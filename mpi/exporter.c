/* exporter - stages to files. */
#include "exporter.h"

#include <string.h>

#include "error.h"
#include "log.h"

/* What the settings make of the linears. */
static vq_packing packing_of(const vq_config *c)
{
    if (c->export.format == VQ_EXPORT_DENSE) return (vq_packing){0};
    return (vq_packing){.format = c->export.format,
                        .bits = (int)c->bits,
                        .group_size = c->group_size,
                        .symmetric = c->sym,
                        .less_one = c->export.format == VQ_EXPORT_GPTQ && c->sym};
}

vq_status vq_export_check(vq_job *job)
{
    const vq_config *c = job->config;
    const vq_packing packing = packing_of(c);
    const vq_scale_dtype scale = c->grid.scale_dtype;
    const vq_dtype model = job->model.embed.dtype;
    const bool fits = model == VQ_F32 || scale == VQ_SCALE_AUTO || scale == VQ_SCALE_BF16 ||
                      (scale == VQ_SCALE_F16 && model == VQ_F16);
    char where[256];
    VQ_CHECK(
        c->export.format != VQ_EXPORT_COMPRESSED_TENSORS || fits, VQ_EUSAGE,
        "%s = %s: %s is %s, and compressed-tensors stores scales in the model's type: expected "
        "auto or %s. Leave it out",
        vq_config_where(c, "grid.scale_dtype", where), scale == VQ_SCALE_F32 ? "f32" : "f16",
        c->model, vq_dtype_name(model), vq_dtype_name(model));
    vq_export_rule rule;
    size_t mark = vq_arena_mark(&job->scratch);
    VQ_TRY(vq_export_choose(&job->scratch, &job->model, &c->skip, &packing, &rule));
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

/* The number of this stage's first file, and of all files and bytes: every stage's go into their
 * places of a sum. */
static vq_status number_files(vq_job *job, const vq_export *own, int32_t *first, int32_t *n_files,
                              double *bytes)
{
    const int n = job->topo.n_stages;
    double *counts;
    size_t mark = vq_arena_mark(&job->scratch);
    VQ_TRY(VQ_NEW(&job->scratch, n + 1, &counts));
    memset(counts, 0, (size_t)(n + 1) * sizeof *counts);
    if (job->topo.replica == 0) {
        counts[job->topo.stage] = own->n_shards;
        counts[n] = (double)own->bytes;
    }
    vq_tensor sum = vq_tensor_1d(counts, VQ_F64, n + 1);
    VQ_TRY(vq_comm_sum(job->comm, &sum));
    *first = *n_files = 0;
    for (int s = 0; s < n; s++) {
        if (s < job->topo.stage) *first += (int32_t)counts[s];
        *n_files += (int32_t)counts[s];
    }
    *bytes = counts[n];
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

static vq_status plan(vq_job *job, vq_export_rule *rule, vq_export *p)
{
    const vq_packing packing = packing_of(job->config);
    VQ_TRY(vq_export_choose(&job->step, &job->model, &job->config->skip, &packing, rule));
    return vq_export_plan(&job->step, &job->stage, rule, p);
}

vq_status vq_export_model(vq_job *job, vq_mode mode, const char *dir, double *bytes)
{
    const bool is_leader = job->comm->rank == 0;
    const double start_s = vq_seconds(), damp = job->config->gptq.percdamp;
    char spent[32], size[32];
    int32_t first, n_files;
    vq_export_rule rule;
    vq_export p;
    size_t mark = vq_arena_mark(&job->step);
    vq_comm_at(job->comm, "export");
    vq_status status = plan(job, &rule, &p);
    if (!status && is_leader) status = vq_export_begin(&job->scratch, dir);
    VQ_TRY(vq_comm_agree(job->comm, status));
    VQ_TRY(number_files(job, &p, &first, &n_files, bytes));
    if (job->topo.replica == 0)
        status = vq_export_files(&p, &rule, &job->stage, mode, dir, first, n_files);
    VQ_TRY(vq_comm_agree(job->comm, status));
    /* Loaders ask for a damping between 0 and 1, also where there was none. */
    if (is_leader)
        status = vq_export_finish(&job->scratch, &job->model, &rule,
                                  damp > 0 && damp < 1 ? damp : 0.01, dir, n_files);
    VQ_TRY(vq_comm_agree(job->comm, status));
    vq_arena_reset(&job->step, mark);
    vq_log(VQ_LOG_INFO, "export   %s, %s in %s", dir, vq_bytes_text(*bytes, size),
           vq_duration_text(vq_seconds() - start_s, spent));
    return VQ_OK;
}
