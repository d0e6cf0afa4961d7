/* run - the job on one screen. */
#include "run.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cpu_backend.h"
#include "error.h"
#include "evaluate.h"
#include "export.h"
#include "guard.h"
#include "init.h"
#include "log.h"
#include "report.h"
#include "train.h"

#define PHASES (VQ_PHASE_TOKENS | VQ_PHASE_INIT | VQ_PHASE_TEACHER | VQ_PHASE_TRAIN)

/* Removes what an earlier run left: only files that a run makes. */
static vq_status clear_folder(vq_job *job)
{
    static const char *const patterns[] = {"config.yaml", "tokens.h5",    "init-",
                                           "teacher-",    "ckpt-",        "metrics.jsonl",
                                           "eval.json",   "results.json", "report.html"};
    char **names, *path;
    int64_t n;
    VQ_TRY(vq_folder_list(&job->run, job->config->out, "", &names, &n));
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < VQ_COUNT(patterns); j++) {
            if (strncmp(names[i], patterns[j], strlen(patterns[j])) != 0) continue;
            VQ_TRY(vq_job_path(job, &path, "%s", names[i]));
            if (unlink(path) != 0) return vq_file_error(path, "removed");
        }
    return VQ_OK;
}

/* Makes the run folder, or finds that it belongs to the same settings. */
static vq_status open_folder(vq_job *job, int argc, const char *const *argv)
{
    const vq_config *c = job->config;
    char *path, differs[1024];
    VQ_TRY(vq_make_folders(c->out));
    if (!c->resume) VQ_TRY(clear_folder(job));
    VQ_TRY(vq_job_path(job, &path, "config.yaml"));
    if (vq_file_exists(path)) {
        vq_config before;
        VQ_TRY(vq_config_defaults(&job->run, &before));
        VQ_TRY(vq_config_read_yaml(&job->run, path, &before));
        VQ_CHECK(vq_config_diff(&before, c, PHASES, differs, sizeof differs) == 0, VQ_EUSAGE,
                 "%s: a run with other settings is in this folder: %s. Give another --out, or the "
                 "same settings to resume",
                 path, differs);
    }
    return vq_config_write_yaml(c, path, argc, argv);
}

/* Perplexities before training: they cost little, and show early what is to be gained. */
static vq_status evaluate_before(vq_job *job, const vq_data *data, vq_results *r)
{
    const vq_stage *stage = &job->stage;
    vq_eval_result e;
    if (data->eval.n == 0) return VQ_OK;
    VQ_TRY(vq_evaluate_once(job, stage, VQ_MODE_FLOAT, data, "fp", job->model.fingerprint, &e));
    r->perplexity.fp = e.perplexity;
    VQ_TRY(vq_evaluate_once(job, stage, VQ_MODE_RTN, data, "rtn", job->init_key, &e));
    r->perplexity.rtn = e.perplexity;
    if (!job->config->eval.start || job->config->method == VQ_METHOD_RTN) return VQ_OK;
    VQ_TRY(vq_evaluate_once(job, stage, VQ_MODE_SOFT, data, "start_soft", job->init_key, &e));
    r->perplexity.start_soft = e.perplexity;
    VQ_TRY(vq_evaluate_once(job, stage, VQ_MODE_HARD, data, "start_hard", job->init_key, &e));
    r->perplexity.start_hard = e.perplexity;
    return VQ_OK;
}

static vq_status evaluate_after(vq_job *job, const vq_data *data, vq_results *r)
{
    vq_eval_result e;
    if (data->eval.n == 0) return VQ_OK;
    VQ_TRY(vq_evaluate_once(job, &job->stage, VQ_MODE_SOFT, data, "soft", job->train_key, &e));
    r->perplexity.soft = e.perplexity;
    VQ_TRY(vq_evaluate_once(job, &job->stage, VQ_MODE_HARD, data, "hard", job->train_key, &e));
    r->perplexity.hard = e.perplexity;
    return VQ_OK;
}

static vq_status train(vq_job *job, const vq_data *data, vq_results *r)
{
    vq_teacher teacher;
    vq_train_stats stats;
    VQ_TRY(vq_cache_teacher(job, data, &teacher));
    vq_status status = vq_train(job, data, &teacher, &stats);
    vq_teacher_close(&teacher);
    r->seconds.teacher = teacher.seconds;
    r->seconds.train = stats.seconds;
    r->steps = stats.steps;
    r->seconds_per_step = stats.steps ? stats.seconds / (double)stats.steps : 0;
    return status;
}

static vq_status finish(vq_job *job, vq_results *r)
{
    char *path;
    r->peak_rss_bytes = vq_peak_rss_bytes();
    VQ_TRY(vq_job_path(job, &path, "results.json"));
    VQ_TRY(vq_results_write(r, path));
    VQ_TRY(vq_report_write(r, job->config->out));
    if (job->config->json) return vq_results_print_json(path);
    vq_results_print(r);
    return VQ_OK;
}

static vq_status run(vq_job *job, int argc, const char *const *argv)
{
    const vq_config *c = job->config;
    const bool is_vqround = c->method == VQ_METHOD_VQROUND;
    const double start_s = vq_seconds();
    vq_results r = {.model = c->model,
                    .method = is_vqround ? "vqround" : "rtn",
                    .out = c->out,
                    .bits = c->bits,
                    .group_size = c->group_size,
                    .K = c->K,
                    .D = c->D,
                    .threads = vq_cpu_thread_count(&job->be)};
    vq_data data;
    vq_init_stats init;
    char *model_dir;

    VQ_TRY(open_folder(job, argc, argv));
    VQ_TRY(vq_job_path(job, &model_dir, "model"));
    VQ_TRY(vq_feed_prepare(job, &data));
    r.seconds.tokens = vq_seconds() - start_s;
    VQ_TRY(vq_job_stage(job, &job->model, VQ_MAX(data.calib.T, data.eval.T), &job->stage));
    VQ_TRY(vq_init_codebooks(job, &init));
    r.seconds.init = init.seconds;
    VQ_TRY(evaluate_before(job, &data, &r));
    if (is_vqround) {
        VQ_TRY(train(job, &data, &r));
        VQ_TRY(evaluate_after(job, &data, &r));
    }
    const double export_s = vq_seconds();
    VQ_TRY(vq_export_dense(&job->stage, is_vqround ? VQ_MODE_HARD : VQ_MODE_RTN, model_dir));
    r.seconds.export = vq_seconds() - export_s;

    r.trained_parameters = is_vqround ? init.n_codes : 0;
    r.quantized_weights = init.n_weights;
    r.bytes_before = (double)vq_weights_bytes(&job->model.weights);
    r.bytes_after = r.bytes_before - init.source_bytes + init.packed_bytes;
    r.seconds.total = vq_seconds() - start_s;
    return finish(job, &r);
}

vq_status vq_run(const vq_config *config, int argc, const char *const *argv)
{
    vq_job job;
    vq_guard_init(config->max_hours);
    vq_status status = vq_job_open(config, &job);
    if (!status) status = run(&job, argc, argv);
    vq_job_close(&job);
    return status;
}
