/* share - folders by key, which one run makes and the others read. */
#include "share.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "guard.h"
#include "log.h"

#define POLL_MS 500
#define LAYOUT 2 /* of the files that phases leave: those of other versions are not found */

static vq_status link_file(const char *from, const char *to)
{
    if (link(from, to) == 0) return VQ_OK;
    /* A run that was stopped in the middle has a part of what is here as a whole. */
    if (errno == EEXIST && unlink(to) == 0 && link(from, to) == 0) return VQ_OK;
    return vq_file_copy(from, to); /* another disk, or one without links */
}

static bool is_whole(const char *name)
{
    const size_t n = strlen(name);
    return n < 4 || strcmp(name + n - 4, ".tmp") != 0;
}

/* Links FROM/prefix* into TO, as they are named there. */
static vq_status link_files(vq_arena *scratch, const char *from, const char *to, const char *prefix)
{
    char **names, *source, *target;
    int64_t n;
    const size_t mark = vq_arena_mark(scratch);
    VQ_TRY(vq_folder_list(scratch, from, "", &names, &n));
    for (int64_t i = 0; i < n; i++) {
        if (strncmp(names[i], prefix, strlen(prefix)) != 0 || !is_whole(names[i])) continue;
        VQ_TRY(vq_path_join(scratch, from, names[i], &source));
        VQ_TRY(vq_path_join(scratch, to, names[i], &target));
        VQ_TRY(link_file(source, target));
    }
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

static vq_status remove_folder(vq_arena *scratch, const char *path)
{
    char **names, *file;
    int64_t n;
    VQ_TRY(vq_folder_list(scratch, path, "", &names, &n));
    for (int64_t i = 0; i < n; i++) {
        VQ_TRY(vq_path_join(scratch, path, names[i], &file));
        if (unlink(file) != 0) return vq_file_error(file, "removed");
    }
    return rmdir(path) == 0 ? VQ_OK : vq_file_error(path, "removed");
}

/* Rank 0: whether the files are there; otherwise whether this run is to make them. */
static vq_status look(vq_share *s, bool link)
{
    const vq_config *c = s->job->config;
    char path[PATH_MAX];
    bool taken;
    s->is_found = vq_is_folder(s->dir);
    if (!s->is_found) {
        VQ_CHECK(snprintf(path, sizeof path, "%s.lock", s->dir) < (int)sizeof path, VQ_EFILE,
                 "%s: the path is too long for a lock beside it. Use a shorter --share", s->dir);
        VQ_TRY(vq_lock_try(path, c->share.dead_s, &s->lock, &taken));
        s->is_found = vq_is_folder(s->dir); /* by who had the lock until now */
        if (s->is_found) vq_lock_free(&s->lock);
    }
    if (!s->is_found) return VQ_OK;
    vq_log(VQ_LOG_INFO, "share    %s from another run (%s)", s->what, s->dir);
    return link ? link_files(&s->job->scratch, s->dir, c->out, s->prefix) : VQ_OK;
}

static void say_waiting(const vq_share *s)
{
    char path[PATH_MAX], holder[320];
    snprintf(path, sizeof path, "%.*s.lock", PATH_MAX - 8, s->dir);
    vq_log(VQ_LOG_INFO, "share    waiting for %s, which %s makes (%s)", s->what,
           vq_lock_holder(path, holder), path);
}

vq_status vq_share_begin(vq_job *job, const char *what, uint64_t key, const char *prefix, bool link,
                         vq_share *s)
{
    const bool is_leader = job->comm->rank == 0;
    char name[64];
    *s = (vq_share){.job = job, .what = what, .prefix = prefix};
    if (!job->config->share.dir) return VQ_OK;
    vq_comm_at(job->comm, "share, %s", what);
    vq_tensor t = vq_tensor_1d(&key, VQ_I64, 1);
    VQ_TRY(vq_comm_broadcast(job->comm, &t, 0));
    snprintf(name, sizeof name, "%s-%016" PRIx64, what, vq_hash_u64(key, LAYOUT));
    VQ_TRY(vq_path_join(&job->run, job->config->share.dir, name, &s->dir));
    for (int64_t tries = 0;; tries++) {
        vq_status status = vq_guard_check(job->config->out);
        if (!status && is_leader) status = look(s, link);
        status = vq_comm_agree(job->comm, status);
        int64_t state[] = {s->is_found, s->lock.place[0] != '\0'};
        t = vq_tensor_1d(state, VQ_I64, 2);
        if (!status) status = vq_comm_broadcast(job->comm, &t, 0);
        if (status) vq_lock_free(&s->lock);
        VQ_TRY(status);
        s->is_found = state[0] != 0;
        if (state[0] || state[1]) return VQ_OK;
        if (is_leader && tries == 0) say_waiting(s);
        nanosleep(&(struct timespec){0, POLL_MS * 1000000}, NULL);
    }
}

/* Rank 0: the folder with links to RUN/prefix*, made beside its place and renamed. A run that
 * took over from this one while it was silent may have been first: its files are as good. */
static vq_status offer(vq_share *s)
{
    vq_arena *scratch = &s->job->scratch;
    char made[PATH_MAX];
    const size_t mark = vq_arena_mark(scratch);
    VQ_CHECK(snprintf(made, sizeof made, "%s.new-%.64s-%ld", s->dir, s->job->comm->host,
                      (long)getpid()) < (int)sizeof made,
             VQ_EFILE, "%s: the path is too long for a folder beside it. Use a shorter --share",
             s->dir);
    VQ_TRY(vq_make_folders(made));
    VQ_TRY(link_files(scratch, s->job->config->out, made, s->prefix));
    if (rename(made, s->dir) != 0) {
        VQ_CHECK(vq_is_folder(s->dir), VQ_EFILE,
                 "%s cannot be renamed to %s (%s): expected a folder that runs may write. Check "
                 "--share",
                 made, s->dir, strerror(errno));
        VQ_TRY(remove_folder(scratch, made));
    }
    vq_log(VQ_LOG_INFO, "share    %s made for other runs (%s)", s->what, s->dir);
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

vq_status vq_share_end(vq_share *s, vq_status status)
{
    if (!s->dir) return status;
    if (status || s->is_found) {
        vq_lock_free(&s->lock);
        return status;
    }
    status = s->job->comm->rank == 0 ? offer(s) : VQ_OK;
    vq_lock_free(&s->lock);
    return vq_comm_agree(s->job->comm, status);
}
