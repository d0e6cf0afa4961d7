/* checkpoint - saving and resuming. */
#include "checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "log.h"

#define KIND "checkpoint"
#define LAYOUT 1
#define PREFIX "ckpt-"
#define SUFFIX ".h5"

static vq_status write_state(vq_h5 *h, const vq_job *job, const vq_adam *adam)
{
    VQ_TRY(vq_h5_set_u64(h, NULL, "key", job->train_key));
    VQ_TRY(vq_h5_set_i64(h, NULL, "step", adam->step));
    VQ_TRY(vq_h5_write(h, "codes", &job->pool.codes));
    VQ_TRY(vq_h5_write(h, "m", &adam->m));
    return vq_h5_write(h, "v", &adam->v);
}

/* The checkpoints of the run, oldest first: their numbers have ten digits, so names sort. */
static vq_status list(vq_job *job, char ***names, int64_t *n)
{
    int64_t kept = 0;
    VQ_TRY(vq_folder_list(&job->scratch, job->config->out, SUFFIX, names, n));
    for (int64_t i = 0; i < *n; i++)
        if (!strncmp((*names)[i], PREFIX, strlen(PREFIX))) (*names)[kept++] = (*names)[i];
    *n = kept;
    return VQ_OK;
}

vq_status vq_checkpoint_save(vq_job *job, const vq_adam *adam)
{
    size_t mark = vq_arena_mark(&job->scratch);
    char *path, **names, name[64];
    int64_t n;
    vq_h5 h;
    snprintf(name, sizeof name, PREFIX "%010lld" SUFFIX, (long long)adam->step);
    VQ_TRY(vq_path_join(&job->scratch, job->config->out, name, &path));
    VQ_TRY(vq_h5_create(&job->scratch, path, KIND, LAYOUT, &h));
    vq_status status = write_state(&h, job, adam);
    if (status) {
        vq_h5_close(&h);
        return status;
    }
    VQ_TRY(vq_h5_finish(&h));
    VQ_TRY(list(job, &names, &n));
    for (int64_t i = 0; i < n - job->config->checkpoint.keep; i++) {
        VQ_TRY(vq_path_join(&job->scratch, job->config->out, names[i], &path));
        unlink(path);
    }
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

static vq_status read_state(const vq_h5 *h, vq_job *job, vq_adam *adam)
{
    VQ_TRY(vq_h5_check_u64(h, "key", job->train_key, "the settings of the training"));
    VQ_TRY(vq_h5_read(h, "codes", &job->pool.codes));
    VQ_TRY(vq_h5_read(h, "m", &adam->m));
    VQ_TRY(vq_h5_read(h, "v", &adam->v));
    return vq_h5_get_i64(h, NULL, "step", &adam->step);
}

vq_status vq_checkpoint_load(vq_job *job, vq_adam *adam)
{
    size_t mark = vq_arena_mark(&job->scratch);
    char **names, *path;
    int64_t n;
    VQ_TRY(list(job, &names, &n));
    vq_status status = VQ_OK;
    if (n > 0) {
        vq_h5 h;
        VQ_TRY(vq_path_join(&job->scratch, job->config->out, names[n - 1], &path));
        VQ_TRY(vq_h5_open(&job->scratch, path, KIND, LAYOUT, &h));
        status = read_state(&h, job, adam);
        vq_h5_close(&h);
        if (!status) vq_log(VQ_LOG_INFO, "resume   from step %lld", (long long)adam->step);
    }
    vq_arena_reset(&job->scratch, mark);
    return status;
}
