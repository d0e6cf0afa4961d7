/* folder - whose the run folder is, and what is in it. */
#include "folder.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "exporter.h"
#include "guard.h"
#include "log.h"

#define POLL_MS 500
#define LATE_S 10  /* beyond share.dead_s, for clocks and a file server's memory */
#define ENDING_S 5 /* a job that was killed may be ending */

/* Whether a run makes a file of that name. */
static bool is_ours(const char *name)
{
    static const char *const starts[] = {
        "config.yaml", "tokens.h5",    "init-",       "sweep-",        "grid-",     "state-",
        "teacher-",    "ckpt-",        "not-finite-", "metrics.jsonl", "eval.json", "eval-",
        "error.txt",   "results.json", "report.",     "layers.jsonl",  "blocks-"};
    for (int i = 0; i < VQ_COUNT(starts); i++)
        if (!strncmp(name, starts[i], strlen(starts[i]))) return true;
    return false;
}

/* Removes what an earlier run left: with --no-resume all of its files, and the exported model's
 * config.json, without which nobody takes that model for the new run's; otherwise only files that
 * it was writing when it was killed. */
static vq_status clear_folder(vq_job *job)
{
    const bool all = !job->config->resume;
    char **names, *path;
    int64_t n;
    VQ_TRY(vq_job_path(job, &path, "model/config.json"));
    if (all && vq_file_exists(path) && unlink(path) != 0) return vq_file_error(path, "removed");
    VQ_TRY(vq_folder_list(&job->run, job->config->out, all ? "" : ".tmp", &names, &n));
    for (int64_t i = 0; i < n; i++) {
        if (!is_ours(names[i])) continue;
        VQ_TRY(vq_job_path(job, &path, "%s", names[i]));
        if (unlink(path) != 0) return vq_file_error(path, "removed");
    }
    return VQ_OK;
}

/* Whether the lock's holder is a process of this machine: then it lives, or is about to end. */
static bool is_held_here(const vq_job *job, const char *holder)
{
    const size_t n = strlen(job->comm->host);
    return !strncmp(holder, job->comm->host, n) && holder[n] == ' ';
}

static vq_status lock_folder(vq_job *job, vq_folder *folder)
{
    const vq_config *c = job->config;
    const struct timespec pause = {.tv_nsec = POLL_MS * 1000000};
    const double start_s = vq_seconds();
    char *path, holder[320];
    bool taken;
    VQ_TRY(vq_job_path(job, &path, "lock"));
    for (bool said = false;; said = true) {
        VQ_TRY(vq_lock_try(path, c->share.dead_s, &folder->lock, &taken));
        if (taken) return VQ_OK;
        vq_lock_holder(path, holder);
        const double limit_s = is_held_here(job, holder) ? ENDING_S : c->share.dead_s + LATE_S;
        VQ_CHECK(vq_seconds() - start_s < limit_s, VQ_EUSAGE,
                 "--out %s: another job works in this folder (%s): expected to be alone. Wait for "
                 "its end, or give another --out",
                 c->out, holder);
        if (!said)
            vq_log(VQ_LOG_INFO, "wait     for %s to leave %s, %.4g s at most", holder, c->out,
                   limit_s);
        VQ_TRY(vq_guard_check(c->out));
        nanosleep(&pause, NULL);
    }
}

/* Whether the folder's files, if it has any, are of these settings. */
static vq_status check_settings(vq_job *job, const char *config_path)
{
    char *tokens, differs[1024];
    vq_config before;
    VQ_TRY(vq_job_path(job, &tokens, "tokens.h5"));
    /* Before the first phase is through, other settings lose nothing. */
    if (!vq_file_exists(config_path) || !vq_file_exists(tokens)) return VQ_OK;
    VQ_TRY(vq_config_defaults(&job->run, &before));
    VQ_TRY(vq_config_read_yaml(&job->run, config_path, &before));
    VQ_CHECK(vq_config_diff(&before, job->config, VQ_FOLDER_PHASES, differs, sizeof differs) == 0,
             VQ_EUSAGE,
             "%s: a run with other settings is in this folder: %s. Give another --out, or the "
             "same settings to resume",
             config_path, differs);
    return VQ_OK;
}

/* A run's files among a model's would be taken for parts of it. */
static vq_status check_no_model(vq_job *job)
{
    char *path;
    VQ_TRY(vq_job_path(job, &path, "config.json"));
    VQ_CHECK(!vq_file_exists(path), VQ_EUSAGE,
             "--out %s: a model's folder (there is a config.json): expected a folder for the run "
             "alone. Choose another --out",
             job->config->out);
    return VQ_OK;
}

vq_status vq_folder_open(vq_job *job, int argc, const char *const *argv, vq_folder *folder)
{
    const vq_config *c = job->config;
    char *path, *error, *model;
    VQ_TRY(vq_job_path(job, &model, "model"));
    VQ_TRY(vq_export_check_place(c, model, "model", c->model));
    VQ_TRY(vq_export_check_place(c, model, "teacher.model", c->teacher.model));
    VQ_TRY(vq_job_path(job, &path, "config.yaml"));
    VQ_TRY(check_no_model(job));
    VQ_TRY(vq_export_check_stranger(&job->run, c, model));
    VQ_TRY(vq_make_folders(c->out));
    VQ_TRY(lock_folder(job, folder));
    VQ_TRY(clear_folder(job));
    VQ_TRY(check_settings(job, path));
    VQ_TRY(vq_job_path(job, &error, "error.txt"));
    if (vq_file_exists(error) && unlink(error) != 0) return vq_file_error(error, "removed");
    return vq_config_write_yaml(c, path, argc, argv);
}

void vq_folder_close(vq_folder *folder)
{
    vq_lock_free(&folder->lock);
}
