/* checkpoint - saving and resuming. */
#include "checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "log.h"
#include "place.h"

#define KIND "checkpoint"
#define PART_KIND "checkpoint part"
#define LAYOUT 1
#define PREFIX "ckpt-"
#define PART_PREFIX "state-"
#define SUFFIX ".h5"
#define DIGITS 10 /* of a step in a name, so that names sort */

/* --- a whole pool ---------------------------------------------------------------------------- */

static vq_status write_state(vq_h5 *h, vq_job *job, const vq_adam *adam)
{
    VQ_TRY(vq_h5_set_u64(h, NULL, "key", job->train_key));
    VQ_TRY(vq_h5_set_i64(h, NULL, "step", adam->step));
    if (!job->pool.is_whole) return VQ_OK;
    VQ_TRY(vq_place_write(&job->be, &job->scratch, h, "codes", &job->pool.codes));
    VQ_TRY(vq_place_write(&job->be, &job->scratch, h, "m", &adam->m));
    return vq_place_write(&job->be, &job->scratch, h, "v", &adam->v);
}

static vq_status read_state(const vq_h5 *h, vq_job *job, vq_adam *adam)
{
    VQ_TRY(vq_h5_get_i64(h, NULL, "step", &adam->step));
    if (!job->pool.is_whole) return VQ_OK;
    VQ_TRY(vq_place_read(&job->be, &job->scratch, h, "codes", &job->pool.codes));
    VQ_TRY(vq_place_read(&job->be, &job->scratch, h, "m", &adam->m));
    return vq_place_read(&job->be, &job->scratch, h, "v", &adam->v);
}

/* --- a stage's part -------------------------------------------------------------------------- */

/* Writes or reads a linear's numbers and moments: "NAME/codes", "NAME/m"... and, of learned scales,
 * "NAME/factor", "NAME/factor_m"... */
static vq_status pass_slot(vq_h5 *h, vq_job *job, const vq_adam *adam, int64_t slot, bool write)
{
    const vq_tensor *const whole[] = {&job->pool.codes, &adam->m, &adam->v};
    static const char *const names[][2] = {
        {"codes", "factor"}, {"m", "factor_m"}, {"v", "factor_v"}};
    char name[320];
    for (int i = 0; i < VQ_COUNT(whole); i++)
        for (int scales = 0; scales < 2; scales++) {
            vq_tensor t = scales ? vq_pool_scales(&job->pool, whole[i], slot)
                                 : vq_pool_part(&job->pool, whole[i], slot);
            if (!t.data) continue;
            snprintf(name, sizeof name, "%s/%s", vq_pool_name(&job->model, slot), names[i][scales]);
            VQ_TRY(write ? vq_place_write(&job->be, &job->scratch, h, name, &t)
                         : vq_place_read(&job->be, &job->scratch, h, name, &t));
        }
    return VQ_OK;
}

static vq_status write_part(vq_job *job, const vq_adam *adam)
{
    char *path, name[64];
    vq_h5 h;
    if (job->topo.replica > 0) return VQ_OK;
    snprintf(name, sizeof name, PART_PREFIX "%0*lld-%04d" SUFFIX, DIGITS, (long long)adam->step,
             job->comm->rank);
    VQ_TRY(vq_path_join(&job->scratch, job->config->out, name, &path));
    VQ_TRY(vq_h5_create(&job->scratch, path, PART_KIND, LAYOUT, &h));
    vq_status status = vq_h5_set_u64(&h, NULL, "key", job->train_key);
    for (int64_t slot = 0; slot < job->pool.n_slots && !status; slot++)
        if (vq_job_has_slot(job, slot)) status = pass_slot(&h, job, adam, slot, true);
    if (!status) return vq_h5_finish(&h);
    vq_h5_close(&h);
    return status;
}

/* The stage's linears from the parts of a step, whoever wrote them. */
static vq_status read_parts(vq_job *job, const vq_adam *adam)
{
    char **paths, prefix[32], name[320];
    int64_t n;
    bool *found;
    snprintf(prefix, sizeof prefix, PART_PREFIX "%0*lld-", DIGITS, (long long)adam->step);
    VQ_TRY(vq_job_files(&job->scratch, job->config->out, prefix, &paths, &n));
    VQ_TRY(VQ_NEW(&job->scratch, job->pool.n_slots, &found));
    for (int64_t slot = 0; slot < job->pool.n_slots; slot++)
        found[slot] = !vq_job_has_slot(job, slot);
    for (int64_t i = 0; i < n; i++) {
        vq_h5 h;
        VQ_TRY(vq_h5_open(&job->scratch, paths[i], PART_KIND, LAYOUT, &h));
        vq_status status =
            vq_h5_check_u64(&h, "key", job->train_key, "the settings of the training");
        for (int64_t slot = 0; slot < job->pool.n_slots && !status; slot++) {
            snprintf(name, sizeof name, "%s/codes", vq_pool_name(&job->model, slot));
            if (found[slot] || !vq_h5_has(&h, name)) continue;
            status = pass_slot(&h, job, adam, slot, false);
            found[slot] = true;
        }
        vq_h5_close(&h);
        VQ_TRY(status);
    }
    for (int64_t slot = 0; slot < job->pool.n_slots; slot++)
        VQ_CHECK(found[slot], VQ_EFILE,
                 "%s/%s*%s: %s is in none of them: expected every linear in the parts of a "
                 "checkpoint. Delete the checkpoint of step %lld to go on from the one before",
                 job->config->out, prefix, SUFFIX, vq_pool_name(&job->model, slot),
                 (long long)adam->step);
    return VQ_OK;
}

/* --- files ----------------------------------------------------------------------------------- */

/* The names that begin so, oldest first. */
static vq_status list(vq_job *job, const char *prefix, char ***names, int64_t *n)
{
    int64_t kept = 0;
    VQ_TRY(vq_folder_list(&job->scratch, job->config->out, SUFFIX, names, n));
    for (int64_t i = 0; i < *n; i++)
        if (!strncmp((*names)[i], prefix, strlen(prefix))) (*names)[kept++] = (*names)[i];
    *n = kept;
    return VQ_OK;
}

/* Removes the checkpoints but the newest `keep`, and all parts of steps that then have none: those
 * of a save that came to no end too. */
static vq_status clean(vq_job *job, int64_t keep)
{
    char **names, **parts, *path;
    int64_t n, n_parts;
    VQ_TRY(list(job, PREFIX, &names, &n));
    VQ_TRY(list(job, PART_PREFIX, &parts, &n_parts));
    for (int64_t i = 0; i < n - keep; i++) {
        VQ_TRY(vq_path_join(&job->scratch, job->config->out, names[i], &path));
        unlink(path);
    }
    for (int64_t i = 0; i < n_parts; i++) {
        bool is_kept = false;
        for (int64_t j = VQ_MAX(n - keep, 0); j < n && !is_kept; j++)
            is_kept = !strncmp(parts[i] + strlen(PART_PREFIX), names[j] + strlen(PREFIX), DIGITS);
        VQ_TRY(vq_path_join(&job->scratch, job->config->out, parts[i], &path));
        if (!is_kept) unlink(path);
    }
    return VQ_OK;
}

static vq_status save(vq_job *job, const vq_adam *adam)
{
    char *path, name[64];
    vq_h5 h;
    snprintf(name, sizeof name, PREFIX "%0*lld" SUFFIX, DIGITS, (long long)adam->step);
    VQ_TRY(vq_path_join(&job->scratch, job->config->out, name, &path));
    VQ_TRY(vq_h5_create(&job->scratch, path, KIND, LAYOUT, &h));
    vq_status status = write_state(&h, job, adam);
    if (status) {
        vq_h5_close(&h);
        return status;
    }
    VQ_TRY(vq_h5_finish(&h));
    return clean(job, job->config->checkpoint.keep);
}

vq_status vq_checkpoint_save(vq_job *job, const vq_adam *adam)
{
    const size_t mark = vq_arena_mark(&job->scratch);
    if (!job->pool.is_whole) {
        const vq_status status = write_part(job, adam);
        vq_comm_end(job->comm, status);
        VQ_TRY(vq_comm_agree(job->comm, status)); /* then every part is there */
    }
    if (job->comm->rank == 0) VQ_TRY(save(job, adam));
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

/* is_other: it is whole, but of other settings. */
static vq_status load_one(vq_job *job, const char *path, vq_adam *adam, bool *is_other)
{
    vq_h5 h;
    *is_other = false;
    VQ_TRY(vq_h5_open(&job->scratch, path, KIND, LAYOUT, &h));
    vq_status status = vq_h5_check_u64(&h, "key", job->train_key, "the settings of the training");
    *is_other = status != VQ_OK && vq_h5_has_attribute(&h, NULL, "key");
    if (!status) status = read_state(&h, job, adam);
    vq_h5_close(&h);
    return status || job->pool.is_whole ? status : read_parts(job, adam);
}

/* How many ranks say so. */
static vq_status count_ranks(vq_job *job, const bool says[2], double n[2])
{
    for (int i = 0; i < 2; i++) n[i] = says[i];
    vq_tensor t = vq_tensor_1d(n, VQ_F64, 2);
    return vq_comm_sum(job->comm, &t);
}

/* From rank 0's list, so that all ranks try the same; one that a rank cannot read is none. */
static vq_status load_newest(vq_job *job, vq_adam *adam, char **names, int64_t n)
{
    const bool has_state = job->pool.is_whole ? job->comm->rank == 0 : true;
    char name[64] = {0}, others[512], *path;
    vq_tensor count = vq_tensor_1d(&n, VQ_I64, 1), bytes = vq_tensor_1d(name, VQ_U8, sizeof name);
    VQ_TRY(vq_comm_broadcast(job->comm, &count, 0));
    for (int64_t i = n - 1; i >= 0; i--) {
        bool is_other = false;
        double failed[2];
        vq_status status = VQ_OK;
        if (job->comm->rank == 0) snprintf(name, sizeof name, "%s", names[i]);
        VQ_TRY(vq_comm_broadcast(job->comm, &bytes, 0));
        VQ_TRY(vq_path_join(&job->scratch, job->config->out, name, &path));
        if (has_state) status = load_one(job, path, adam, &is_other);
        const bool is_final = status && (status != VQ_EFILE || is_other || i == 0);
        VQ_TRY(count_ranks(job, (bool[]){status != VQ_OK, is_final}, failed));
        if (failed[0] == 0) return VQ_OK;
        if (failed[1] > 0) return vq_comm_agree(job->comm, status);
        snprintf(others, sizeof others, "%s: %.0f of %d ranks cannot read their part of it", path,
                 failed[0], job->comm->size);
        vq_log(VQ_LOG_WARN, "resume   %s. It is passed over for the checkpoint before it",
               status ? vq_error_message() : others);
        vq_error_clear();
    }
    return VQ_OK;
}

vq_status vq_checkpoint_load(vq_job *job, vq_adam *adam)
{
    const size_t mark = vq_arena_mark(&job->scratch);
    char **names = NULL;
    int64_t n = 0;
    vq_tensor step = vq_tensor_1d(&adam->step, VQ_I64, 1);
    VQ_TRY(vq_comm_agree(job->comm, job->comm->rank == 0 ? list(job, PREFIX, &names, &n) : VQ_OK));
    VQ_TRY(load_newest(job, adam, names, n));
    VQ_TRY(vq_comm_broadcast(job->comm, &step, 0));
    if (adam->step > 0) vq_log(VQ_LOG_INFO, "resume   from step %lld", (long long)adam->step);
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}
