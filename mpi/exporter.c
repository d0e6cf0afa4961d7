/* exporter - stages to files. */
#include "exporter.h"

#include <string.h>

#include "error.h"
#include "log.h"

/* The number of this stage's first file, and of all files: every stage's count goes into its place
 * of a sum. */
static vq_status number_files(vq_job *job, int32_t n_own, int32_t *first, int32_t *n_files)
{
    double *counts;
    size_t mark = vq_arena_mark(&job->scratch);
    VQ_TRY(VQ_NEW(&job->scratch, job->topo.n_stages, &counts));
    memset(counts, 0, (size_t)job->topo.n_stages * sizeof *counts);
    if (job->topo.replica == 0) counts[job->topo.stage] = n_own;
    vq_tensor sum = vq_tensor_1d(counts, VQ_F64, job->topo.n_stages);
    VQ_TRY(vq_comm_sum(job->comm, &sum));
    *first = *n_files = 0;
    for (int s = 0; s < job->topo.n_stages; s++) {
        if (s < job->topo.stage) *first += (int32_t)counts[s];
        *n_files += (int32_t)counts[s];
    }
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

vq_status vq_export_model(vq_job *job, vq_mode mode, const char *dir)
{
    const bool is_leader = job->comm->rank == 0;
    const double start_s = vq_seconds();
    char spent[32];
    int32_t first, n_files;
    vq_export plan;
    size_t mark = vq_arena_mark(&job->step);
    vq_comm_at(job->comm, "export");
    vq_status status = vq_export_plan(&job->step, &job->stage, &plan);
    if (!status && is_leader) status = vq_export_begin(&job->scratch, dir);
    VQ_TRY(vq_comm_agree(job->comm, status));
    VQ_TRY(number_files(job, plan.n_shards, &first, &n_files));
    if (job->topo.replica == 0)
        status = vq_export_files(&plan, &job->stage, mode, dir, first, n_files);
    VQ_TRY(vq_comm_agree(job->comm, status));
    if (is_leader) status = vq_export_finish(&job->scratch, &job->model, dir, n_files);
    VQ_TRY(vq_comm_agree(job->comm, status));
    vq_arena_reset(&job->step, mark);
    vq_log(VQ_LOG_INFO, "export   %s in %s", dir, vq_duration_text(vq_seconds() - start_s, spent));
    return VQ_OK;
}
