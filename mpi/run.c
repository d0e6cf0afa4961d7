/* run - the job on one screen. */
#include "run.h"

#include <stdio.h>
#include <string.h>

#include "blocks.h"
#include "cpu_backend.h"
#include "dashboard.h"
#include "deviation.h"
#include "error.h"
#include "evaluate.h"
#include "exporter.h"
#include "folder.h"
#include "guard.h"
#include "init.h"
#include "log.h"
#include "plan_job.h"
#include "train.h"

/* At the end of a phase, whose file is kept: gives memory back. VQ_ESTOPPED on every rank if a
 * signal reached one. */
static vq_status end_phase(vq_job *job)
{
    vq_job_trim(job);
    return vq_comm_agree(job->comm, vq_guard_check(job->config->out));
}

/* A job that was asked to stop: rank 0 says so, whoever was asked. */
static vq_status say_stopped(const vq_config *c, int rank)
{
    const char *reason = vq_guard_stop(0);
    if (rank != 0) vq_error_clear();
    VQ_CHECK(rank != 0 || vq_error_message()[0], VQ_ESTOPPED,
             "%s: stopped by %s, as asked. Run the same command again to go on", c->out,
             reason ? reason : "another rank");
    return VQ_ESTOPPED;
}

static vq_status evaluate(vq_job *job, const vq_data *data, vq_mode mode, const char *label,
                          uint64_t key, vq_results *r, double *perplexity)
{
    vq_eval_result e = {0};
    /* What no training went into others may need too. */
    const bool share = key != job->train_key;
    VQ_TRY(vq_evaluate_once(job, &job->stage, mode, data, label, key, share, &e));
    *perplexity = e.perplexity;
    r->seconds.eval += e.seconds;
    return end_phase(job);
}

/* Perplexities before training: they cost little, and show early what is to be gained. */
static vq_status evaluate_before(vq_job *job, const vq_data *data, vq_results *r)
{
    const uint64_t model = job->model.fingerprint, grid = job->grid_key, init = job->init_key;
    if (data->eval.n == 0) return VQ_OK;
    VQ_TRY(evaluate(job, data, VQ_MODE_FLOAT, "fp", model, r, &r->perplexity.fp));
    VQ_TRY(evaluate(job, data, VQ_MODE_RTN, "rtn", grid, r, &r->perplexity.rtn));
    const bool learns = vq_config_learns(job->config);
    const bool from_gptq = vq_config_uses_gptq(job->config);
    if (vq_config_needs_ints(job->config))
        VQ_TRY(evaluate(job, data, VQ_MODE_GPTQ, "gptq", grid, r, &r->perplexity.gptq));
    if (!job->config->eval.start || !learns) return VQ_OK;
    VQ_TRY(evaluate(job, data, VQ_MODE_SOFT, "start_soft", init, r, &r->perplexity.start_soft));
    VQ_TRY(evaluate(job, data, VQ_MODE_HARD, "start_hard", init, r, &r->perplexity.start_hard));
    vq_log(VQ_LOG_INFO, "init     the codebook's cost: hard perplexity %.4g (%s) -> %.4g (codes)",
           from_gptq ? r->perplexity.gptq : r->perplexity.rtn, from_gptq ? "GPTQ" : "RTN",
           r->perplexity.start_hard);
    return VQ_OK;
}

static vq_status evaluate_after(vq_job *job, const vq_data *data, vq_results *r)
{
    const uint64_t key = job->train_key;
    if (data->eval.n == 0) return VQ_OK;
    if (vq_job_mode(job) == VQ_MODE_SOFT) /* trained with final roundings the others mean nothing */
        VQ_TRY(evaluate(job, data, VQ_MODE_SOFT, "soft", key, r, &r->perplexity.soft));
    return evaluate(job, data, VQ_MODE_HARD, "hard", key, r, &r->perplexity.hard);
}

/* The layers one by one, where that is asked for. */
static vq_status train_blocks(vq_job *job, const vq_data *data, vq_results *r)
{
    double perplexity;
    if (job->config->train.block_steps == 0) return VQ_OK;
    VQ_TRY(vq_blocks_train(job, data, &r->seconds.blocks));
    VQ_TRY(end_phase(job));
    if (!job->config->eval.start || data->eval.n == 0) return VQ_OK;
    const uint64_t key =
        vq_hash_u64(vq_config_phase_hash(job->config, VQ_PHASE_BLOCKS), job->init_key);
    return evaluate(job, data, vq_job_mode(job), "blocks", key, r, &perplexity);
}

static vq_status train(vq_job *job, const vq_data *data, vq_results *r, vq_train_stats *stats)
{
    vq_teacher teacher;
    VQ_TRY(train_blocks(job, data, r));
    VQ_TRY(vq_cache_teacher(job, data, &teacher));
    vq_status status = end_phase(job);
    if (!status) status = vq_train(job, data, &teacher, stats);
    vq_teacher_close(&teacher);
    r->seconds.teacher = teacher.seconds;
    r->seconds.train = stats->seconds;
    r->steps = stats->steps;
    r->seconds_per_step = stats->steps ? stats->seconds / (double)stats->steps : 0;
    return status;
}

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

/* Whether the run is finished already; rank 0, which looks, then has its results. */
static vq_status find_results(vq_job *job, vq_results *r, int64_t *found)
{
    char *path, *config;
    VQ_TRY(vq_job_path(job, &path, "results.json"));
    VQ_TRY(vq_job_path(job, &config, "model/config.json"));
    *found = job->comm->rank == 0 && vq_file_exists(config) && vq_results_read(&job->run, path, r);
    vq_tensor t = vq_tensor_1d(found, VQ_I64, 1);
    return vq_comm_broadcast(job->comm, &t, 0);
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

/* Every rank's number, from its place in a sum. */
static vq_status gather(vq_job *job, double mine, double **all)
{
    const int n = job->comm->size;
    VQ_TRY(VQ_NEW(&job->run, n, all));
    memset(*all, 0, (size_t)n * sizeof **all);
    (*all)[job->comm->rank] = mine;
    vq_tensor sum = vq_tensor_1d(*all, VQ_F64, n);
    return vq_comm_sum(job->comm, &sum);
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
    r->machine.ranks = job->comm->size;
    VQ_TRY(gather_memory(job, r));
    VQ_TRY(gather(job, (t->ran_s - t->sums_s - t->messages_s) / ran_s, &r->compute_ratio));
    VQ_TRY(gather(job, t->sums_s / ran_s, &r->sums_ratio));
    return gather(job, t->messages_s / ran_s, &r->messages_ratio);
}

static void say_model(const vq_job *job)
{
    const vq_model_config *m = &job->model.config;
    char count[32];
    vq_log(VQ_LOG_INFO, "model    %s: %s, %lld layers, %s weights in %s", job->config->model,
           vq_family_name(m->family), (long long)m->N,
           vq_count_text((double)vq_model_weights(m), count),
           vq_dtype_name(job->model.embed.dtype));
}

/* What was rounded once has little left to gain, and nothing else shows it in a dense export. */
static vq_status warn_of_export(vq_job *job)
{
    char *mark;
    const size_t before = vq_arena_mark(&job->scratch);
    VQ_TRY(vq_path_join(&job->scratch, job->config->model, VQ_EXPORT_MARK, &mark));
    if (vq_file_exists(mark))
        vq_log(
            VQ_LOG_WARN,
            "%s is a model that vqround has quantized (there is %s): expected the original. Give "
            "its folder, if this is not meant",
            job->config->model, VQ_EXPORT_MARK);
    vq_arena_reset(&job->scratch, before);
    return VQ_OK;
}

/* A word that leaves nothing out is a mistake, unless it is the default. */
static void say_skips(const vq_job *job)
{
    const vq_model *m = &job->model;
    char name[256];
    for (int64_t i = 0; i < job->config->skip.n; i++) {
        const char *word = job->config->skip.item[i];
        const vq_list one = {&job->config->skip.item[i], 1};
        bool is_found = !strcmp(word, "lm_head");
        for (int64_t slot = 0; slot < m->config.N * VQ_N_KINDS && !is_found; slot++) {
            const vq_linear *l = &m->layers[slot / VQ_N_KINDS].linear[slot % VQ_N_KINDS];
            is_found = l->exists && !vq_pool_takes(l->name, &one);
        }
        if (!is_found)
            vq_log(VQ_LOG_WARN,
                   "skip: no linear has \"%s\" in its name, and none is left out by it: expected a "
                   "part of a name such as %s",
                   word, vq_linear_name(&m->config, 0, VQ_Q, name));
    }
}

static vq_status run(vq_job *job, vq_folder *folder, int argc, const char *const *argv)
{
    const vq_config *c = job->config;
    static const char *const methods[] = {[VQ_METHOD_VQROUND] = "vqround",
                                          [VQ_METHOD_RTN] = "rtn",
                                          [VQ_METHOD_GPTQ] = "gptq",
                                          [VQ_METHOD_ADAROUND] = "adaround",
                                          [VQ_METHOD_LORA] = "lora"};
    const bool learns = vq_config_learns(c);
    const int64_t T_max = VQ_MAX(c->seqlen, c->eval.run ? c->eval.seqlen : 0);
    const double start_s = vq_seconds();
    vq_results r = {.version = VQ_VERSION,
                    .model = c->model,
                    .method = methods[c->method],
                    .out = c->out,
                    .bits = c->bits,
                    .group_size = c->group_size,
                    .K = c->K,
                    .D = c->D,
                    .machine = {.device = job->be.ops->name,
                                .compiler = __VERSION__,
                                .threads = vq_cpu_thread_count(&job->cpu)}};
    vq_train_stats trained = {0};
    vq_data data;
    vq_init_stats init;
    int64_t is_finished;
    double exported_bytes;
    char *model_dir;

    VQ_TRY(vq_model_require_dense(&job->model.config, c->model));
    say_model(job);
    VQ_TRY(warn_of_export(job));
    say_skips(job);
    VQ_TRY(vq_export_check(job));
    vq_status opened = VQ_OK;
    if (job->comm->rank == 0) opened = vq_folder_open(job, argc, argv, folder);
    VQ_TRY(vq_comm_agree(job->comm, opened));
    job->comm->run = c->out;
    VQ_TRY(vq_plan_job(job)); /* may choose the layout: links and stage come after */
    VQ_TRY(vq_job_connect(job));
    VQ_TRY(vq_comm_agree(job->comm, vq_job_stage(job, &job->model, T_max, &job->stage)));
    r.machine.stages = job->topo.n_stages;
    r.machine.replicas = job->topo.n_replicas;
    VQ_TRY(vq_feed_prepare(job, &data));
    vq_job_trim(job);
    r.seconds.tokens = vq_seconds() - start_s;
    r.key = results_key(job, &data);
    VQ_TRY(find_results(job, &r, &is_finished));
    if (is_finished) {
        vq_log(VQ_LOG_INFO, "done     %s is finished: nothing is left to do", c->out);
        return vq_comm_agree(job->comm, print_results(job, &r));
    }
    VQ_TRY(vq_init_codebooks(job, &data, &init));
    r.seconds.init = init.seconds;
    VQ_TRY(end_phase(job));
    VQ_TRY(evaluate_before(job, &data, &r));
    if (learns) {
        VQ_TRY(train(job, &data, &r, &trained));
        VQ_TRY(evaluate_after(job, &data, &r));
    }
    const double export_s = vq_seconds();
    VQ_TRY(vq_deviation_write(job, vq_export_mode(c)));
    VQ_TRY(vq_job_path(job, &model_dir, "model"));
    VQ_TRY(vq_export_model(job, vq_export_mode(c), model_dir, &exported_bytes));
    r.seconds.export = vq_seconds() - export_s;

    r.trained_parameters = learns ? init.n_codes : 0;
    r.quantized_weights = init.n_weights;
    r.model_bytes.before = (double)vq_weights_bytes(&job->model.weights);
    r.model_bytes.after = c->export.format == VQ_EXPORT_DENSE
                              ? r.model_bytes.before - init.source_bytes + init.packed_bytes
                              : exported_bytes;
    r.seconds.total = vq_seconds() - start_s;
    VQ_TRY(gather_ranks(job, &trained, &r));
    return vq_comm_agree(job->comm, write_results(job, &r));
}

vq_status vq_run(const vq_config *config, vq_comm *comm, int argc, const char *const *argv)
{
    vq_job job;
    vq_folder folder = {0};
    vq_guard_init(config->max_hours, comm->rank == 0 && !config->quiet);
    vq_status status = vq_job_open(config, comm, &job);
    if (!status) status = run(&job, &folder, argc, argv);
    if (status == VQ_ESTOPPED) status = say_stopped(config, comm->rank);
    vq_folder_close(&folder);
    vq_job_close(&job);
    return status;
}
