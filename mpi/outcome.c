/* outcome - a job's results from all its ranks, and an earlier job's. */
#include "outcome.h"

#include <stdio.h>

#include "cpu_backend.h"
#include "dashboard.h"
#include "error.h"
#include "exporter.h"
#include "folder.h"
#include "log.h"

void vq_outcome_begin(const vq_job *job, vq_results *r)
{
    static const char *const methods[] = {[VQ_METHOD_VQROUND] = "vqround",
                                          [VQ_METHOD_RTN] = "rtn",
                                          [VQ_METHOD_GPTQ] = "gptq",
                                          [VQ_METHOD_ADAROUND] = "adaround",
                                          [VQ_METHOD_LORA] = "lora"};
    const vq_config *c = job->config;
    *r = (vq_results){.version = VQ_VERSION,
                      .model = c->model,
                      .method = methods[c->method],
                      .out = c->out,
                      .bits = c->bits,
                      .group_size = c->group_size,
                      .K = c->K,
                      .D = c->D,
                      .machine = {.device = job->be.ops->name,
                                  .compiler = __VERSION__,
                                  .ranks = job->comm->size,
                                  .stages = job->topo.n_stages,
                                  .replicas = job->topo.n_replicas,
                                  .threads = vq_cpu_thread_count(&job->cpu)}};
}

/* --- an earlier job's ------------------------------------------------------------------------ */

/* What a finished run depends on, all but the number of ranks. */
static uint64_t results_key(const vq_job *job, const vq_data *data)
{
    uint64_t h = vq_config_phase_hash(job->config, VQ_FOLDER_PHASES);
    h = vq_hash_u64(h, job->config->eval.start);
    h = vq_hash_u64(h, (uint64_t)job->config->export.format);
    h = vq_hash_u64(h, job->model.fingerprint);
    h = vq_hash_u64(h, job->teacher.dir ? job->teacher.fingerprint : job->model.fingerprint);
    return vq_hash_u64(vq_hash_u64(h, data->calib_hash), data->eval_hash);
}

/* What may be done with the model. */
static void say_next(const vq_config *c)
{
    printf("  %-24s vqround eval --model %s/model --text TEXT --seqlen %lld\n", "next", c->out,
           (long long)vq_config_eval_seqlen(c));
    if (c->export.format == VQ_EXPORT_DENSE)
        printf("  %-24s vqround export --run %s --format gptq --out DIR\n", "", c->out);
    puts("");
    fflush(stdout);
}

static vq_status print_results(vq_job *job, const vq_results *r)
{
    char *path;
    if (job->comm->rank != 0) return VQ_OK;
    VQ_TRY(vq_job_path(job, &path, "results.json"));
    if (job->config->json) return vq_results_print_json(path);
    vq_results_print(r);
    say_next(job->config);
    return VQ_OK;
}

vq_status vq_outcome_find(vq_job *job, const vq_data *data, vq_results *r, bool *is_finished)
{
    char *path, *config;
    r->key = results_key(job, data);
    VQ_TRY(vq_job_path(job, &path, "results.json"));
    VQ_TRY(vq_job_path(job, &config, "model/config.json"));
    /* Rank 0 alone looks, so that ranks cannot see different files. */
    int64_t found =
        job->comm->rank == 0 && vq_file_exists(config) && vq_results_read(&job->run, path, r);
    vq_tensor t = vq_tensor_1d(&found, VQ_I64, 1);
    VQ_TRY(vq_comm_broadcast(job->comm, &t, 0));
    *is_finished = found != 0;
    if (!*is_finished) return VQ_OK;
    vq_log(VQ_LOG_INFO, "done     %s is finished: nothing is left to do", job->config->out);
    return vq_comm_agree(job->comm, print_results(job, r));
}

/* --- this job's ------------------------------------------------------------------------------ */

static vq_status gather(vq_job *job, double mine, double **all)
{
    VQ_TRY(VQ_NEW(&job->run, job->comm->size, all));
    return vq_comm_gather(job->comm, mine, *all);
}

/* Every rank's peak on the host, the largest on a GPU. */
static vq_status gather_memory(vq_job *job, vq_results *r)
{
    size_t host_bytes = 0, gpu_bytes = 0;
    double *gpu;
    vq_status status = vq_mem_peak(&job->cpu, &host_bytes);
    if (!status && job->be.place == VQ_DEVICE) status = vq_mem_peak(&job->be, &gpu_bytes);
    VQ_TRY(vq_comm_agree(job->comm, status));
    VQ_TRY(gather(job, (double)host_bytes, &r->peak_rss_bytes));
    VQ_TRY(gather(job, (double)gpu_bytes, &gpu));
    for (int i = 0; i < job->comm->size; i++) r->peak_gpu_bytes = VQ_MAX(r->peak_gpu_bytes, gpu[i]);
    return VQ_OK;
}

static vq_status gather_ranks(vq_job *job, const vq_train_stats *t, vq_results *r)
{
    const double ran_s = t->ran_s > 0 ? t->ran_s : 1; /* none: all ratios are 0 */
    VQ_TRY(gather_memory(job, r));
    VQ_TRY(gather(job, (t->ran_s - t->sums_s - t->messages_s) / ran_s, &r->compute_ratio));
    VQ_TRY(gather(job, t->sums_s / ran_s, &r->sums_ratio));
    return gather(job, t->messages_s / ran_s, &r->messages_ratio);
}

static void count(const vq_job *job, const vq_init_stats *init, double exported_bytes,
                  vq_results *r)
{
    r->trained_parameters = vq_config_learns(job->config) ? init->n_codes : 0;
    r->quantized_weights = init->n_weights;
    r->model_bytes.before = (double)vq_weights_bytes(&job->model.weights);
    r->model_bytes.after = job->config->export.format == VQ_EXPORT_DENSE
                               ? r->model_bytes.before - init->source_bytes + init->packed_bytes
                               : exported_bytes;
}

/* results.json and the report, on rank 0. */
static vq_status write_results(vq_job *job, vq_results *r)
{
    char *path;
    if (job->comm->rank != 0) return VQ_OK;
    VQ_TRY(vq_job_path(job, &path, "results.json"));
    VQ_TRY(vq_results_write(r, path));
    vq_dashboard d;
    VQ_TRY(vq_dashboard_write(&job->config->out, 1, job->config->out, false, NULL, &d));
    return print_results(job, r);
}

vq_status vq_outcome_end(vq_job *job, const vq_init_stats *init, const vq_train_stats *trained,
                         double exported_bytes, vq_results *r)
{
    count(job, init, exported_bytes, r);
    VQ_TRY(gather_ranks(job, trained, r));
    return vq_comm_agree(job->comm, write_results(job, r));
}
