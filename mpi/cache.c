/* cache - the teacher's states, made once. */
#include "cache.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "guard.h"
#include "log.h"
#include "place.h"
#include "share.h"

#define KIND "teacher"
#define LAYOUT 1
#define PREFIX "teacher-"

static const vq_model *teacher_model(const vq_job *job)
{
    return job->teacher.dir ? &job->teacher : &job->model;
}

const vq_tensor *vq_teacher_head(const vq_teacher *t)
{
    return &t->stage.there->head;
}

/* Windows of a step that a replica has at most. */
static int64_t max_micro(const vq_job *job)
{
    return VQ_CEIL_DIV(job->config->train.batch, job->topo.n_replicas);
}

static bool has_cache_duty(const vq_job *job)
{
    return vq_topo_is_last(&job->topo);
}

/* --- making it ------------------------------------------------------------------------------- */

typedef struct writing {
    vq_teacher *teacher;
    vq_h5 file;
    int64_t n, before;  /* rows written into the file; windows before it */
    int64_t not_finite; /* the first window whose states are not finite; -1: none */
    vq_progress progress;
} writing;

/* KL(teacher || cached teacher) of a window, a token. */
static vq_status measure_kl(const vq_teacher *t, const vq_tensor *hidden, const vq_tensor *kept,
                            double *kl)
{
    vq_job *job = t->job;
    const vq_tensor *head = vq_teacher_head(t);
    vq_tensor there;
    *kl = 0;
    VQ_TRY(vq_place_there(&job->be, &job->step, kept, &there));
    VQ_TRY(
        vq_head_kd(&job->be, kl, NULL, hidden, &there, head, head, 1, 1 / (double)hidden->dim[0]));
    return vq_sync(&job->be);
}

static vq_status write_window(writing *w, int64_t window, const vq_tensor *ids, vq_tensor *hidden)
{
    vq_teacher *t = w->teacher;
    vq_job *job = t->job;
    const int64_t T = ids->dim[1], E = hidden->dim[1];
    size_t mark = vq_arena_mark(&job->step);
    double norm;
    vq_tensor kept, host;
    VQ_TRY(vq_norm2(&job->be, &norm, hidden));
    if (!isfinite(norm) && w->not_finite < 0) w->not_finite = window;
    VQ_TRY(vq_tensor_new(&job->step, VQ_HOST, t->dtype, VQ_DIMS(T, E), &kept));
    VQ_TRY(vq_place_host(&job->be, &job->step, hidden, &host));
    VQ_TRY(vq_convert(kept.data, t->dtype, host.data, host.dtype, T * E));
    const vq_tensor rows = vq_tensor_3d(kept.data, t->dtype, 1, T, E);
    VQ_TRY(vq_h5_write_rows(&w->file, "hidden", w->n++, &rows));
    if (window == 0) VQ_TRY(measure_kl(t, hidden, &kept, &t->kl));
    vq_arena_reset(&job->step, mark);
    vq_progress_step(&w->progress,
                     VQ_MIN(w->before + w->n * job->topo.n_replicas, w->progress.total), NULL);
    return VQ_OK;
}

static vq_status write_windows(void *ctx, int64_t first, int64_t count, const vq_tensor *ids,
                               vq_tensor *hidden)
{
    for (int64_t i = 0; i < count; i++) {
        vq_tensor rows = vq_tensor_rows(hidden, i * ids->dim[1], ids->dim[1]);
        VQ_TRY(write_window(ctx, first + i, ids, &rows));
    }
    return VQ_OK;
}

/* The windows that this replica passes in what is left of the stream, in order. */
static vq_status own_windows(const vq_stream *s, vq_arena *arena, int64_t **windows, int64_t *n)
{
    int64_t first, count;
    *n = 0;
    VQ_TRY(VQ_NEW(arena, s->windows->n, windows));
    for (int64_t m = s->next; m < s->count; m++) {
        vq_stream_share(s, m, s->job->topo.replica, &first, &count);
        for (int64_t i = 0; i < count; i++) (*windows)[(*n)++] = first + i;
    }
    return VQ_OK;
}

/* A file that is not there: earlier runs, on other ranks, may have cut the windows otherwise. */
static vq_status new_path(vq_job *job, char **path)
{
    for (int i = 0;; i++) {
        VQ_TRY(vq_job_path(job, path, PREFIX "%04d-%04d.h5", job->comm->rank, i));
        if (!vq_file_exists(*path)) return VQ_OK;
    }
}

static vq_status start_file(writing *w, uint64_t key, const vq_tensor *windows, int64_t T)
{
    vq_teacher *t = w->teacher;
    char *path;
    VQ_TRY(new_path(t->job, &path));
    const vq_tensor shape =
        vq_tensor_3d(NULL, t->dtype, windows->dim[0], T, vq_stage_out_width(&t->stage));
    VQ_TRY(vq_h5_create(&t->job->run, path, KIND, LAYOUT, &w->file));
    VQ_TRY(vq_h5_set_u64(&w->file, NULL, "key", key));
    VQ_TRY(vq_h5_write(&w->file, "windows", windows));
    return vq_h5_make(&w->file, "hidden", &shape);
}

static vq_status finish_file(writing *w)
{
    /* Said only here, where nobody waits for this rank's next message. */
    VQ_CHECK(w->not_finite < 0, VQ_ENOTFINITE,
             "%s: the teacher's states of window %lld are not finite: expected numbers. Check the "
             "weights, or leave this text out",
             teacher_model(w->teacher->job)->dir, (long long)w->not_finite);
    if (w->file.id < 0) return VQ_OK;
    VQ_TRY(vq_h5_set_f64(&w->file, NULL, "kl", w->teacher->kl));
    return vq_h5_finish(&w->file);
}

/* The windows of messages [next, count) through the teacher, each replica its own. */
static vq_status run_messages(writing *w, const vq_data *data, int64_t batch, int64_t next,
                              int64_t count, uint64_t key)
{
    vq_teacher *t = w->teacher;
    vq_job *job = t->job;
    vq_stream stream;
    int64_t *own, n;
    VQ_TRY(vq_stream_pass(&job->step, job, &data->calib, batch, next, count, &stream));
    VQ_TRY(own_windows(&stream, &job->step, &own, &n));
    const vq_tensor windows = vq_tensor_1d(own, VQ_I64, n);
    w->n = 0;
    w->before = next * batch * job->topo.n_replicas;
    if (has_cache_duty(job) && n > 0) VQ_TRY(start_file(w, key, &windows, data->calib.T));
    while (stream.next < stream.count) {
        VQ_TRY(vq_pipeline_forward(job, &t->stage, VQ_MODE_FLOAT, &stream, 1, job->together,
                                   write_windows, w));
        vq_progress_step(&w->progress,
                         VQ_MIN(stream.next * batch * job->topo.n_replicas, data->calib.n), NULL);
    }
    VQ_TRY(vq_stream_close(&stream));
    return finish_file(w);
}

/* The same, ended by all ranks alike. */
static vq_status run_part(writing *w, const vq_data *data, int64_t batch, int64_t next,
                          int64_t count, uint64_t key)
{
    vq_job *job = w->teacher->job;
    const double start_s = vq_seconds();
    const size_t mark = vq_arena_mark(&job->step);
    vq_status status = run_messages(w, data, batch, next, count, key);
    vq_h5_close(&w->file);
    if (status != VQ_ENOTFINITE) vq_comm_end(job->comm, status);
    vq_arena_reset(&job->step, mark);
    const int64_t end = count * batch * job->topo.n_replicas;
    if (!status && end < data->calib.n)
        status = vq_guard_unit(job->config->out, "window", end - 1, vq_seconds() - start_s);
    return vq_comm_agree(job->comm, status);
}

/* Whether one of the windows [first, end) is missing. */
static bool is_missing(const double *missing, int64_t first, int64_t end)
{
    for (int64_t i = first; i < end; i++)
        if (missing[i] > 0) return true;
    return false;
}

/* The windows through the teacher, but for parts of which none is missing. */
static vq_status run_teacher(vq_teacher *t, const vq_data *data, const double *missing,
                             uint64_t key)
{
    vq_job *job = t->job;
    /* As many as a replica's share of a step: its stages overlap. */
    const int64_t batch = VQ_CEIL_DIV(max_micro(job), job->together) * job->together;
    const int64_t messages = vq_stream_messages(job, &data->calib, batch),
                  windows = batch * job->topo.n_replicas,
                  step = VQ_CEIL_DIV(messages, VQ_STREAM_PARTS);
    writing w = {.teacher = t, .file.id = -1, .not_finite = -1};
    vq_status status =
        vq_comm_end(job->comm, vq_stage_hold(&t->stage, &job->step, job->hold_bytes));
    vq_progress_begin(&w.progress, "teacher", "windows", 0, data->calib.n);
    for (int64_t next = 0; next < messages && !status; next += step) {
        const int64_t count = VQ_MIN(next + step, messages);
        if (is_missing(missing, next * windows, VQ_MIN(count * windows, data->calib.n)))
            status = run_part(&w, data, batch, next, count, key);
    }
    vq_stage_drop(&t->stage);
    vq_progress_end(&w.progress);
    return status;
}

/* --- finding it ------------------------------------------------------------------------------ */

/* Notes which windows an open file has. */
static vq_status index_file(vq_teacher *t, int64_t f, uint64_t key, int64_t n_windows)
{
    vq_tensor windows;
    double kl;
    size_t mark = vq_arena_mark(&t->job->scratch);
    VQ_TRY(vq_h5_check_u64(&t->file[f], "key", key, "the teacher and its tokens"));
    VQ_TRY(vq_h5_load(&t->file[f], &t->job->scratch, "windows", &windows));
    VQ_TRY(vq_h5_get_f64(&t->file[f], NULL, "kl", &kl));
    t->kl = VQ_MAX(t->kl, kl);
    for (int64_t i = 0; i < vq_tensor_count(&windows); i++) {
        const int64_t window = ((const int64_t *)windows.data)[i];
        VQ_CHECK(windows.dtype == VQ_I64 && window >= 0 && window < n_windows, VQ_EFILE,
                 "%s: \"windows\" names window %lld: expected 0 to %lld. Delete the file and run "
                 "again",
                 t->file[f].path, (long long)window, (long long)n_windows - 1);
        t->in_file[window] = (int32_t)f;
        t->row[window] = i;
    }
    vq_arena_reset(&t->job->scratch, mark);
    return VQ_OK;
}

/* Opens all teacher files of the run folder. Last stages only. */
static vq_status open_files(vq_teacher *t, uint64_t key, int64_t n_windows)
{
    vq_job *job = t->job;
    char **paths;
    int64_t n;
    VQ_TRY(vq_job_files(&job->run, job->config->out, PREFIX, &paths, &n));
    VQ_TRY(VQ_NEW(&job->run, n, &t->file));
    VQ_TRY(VQ_NEW(&job->run, n_windows, &t->in_file));
    VQ_TRY(VQ_NEW(&job->run, n_windows, &t->row));
    for (int64_t i = 0; i < n_windows; i++) t->in_file[i] = -1;
    for (t->n_files = 0; t->n_files < n; t->n_files++) {
        VQ_TRY(vq_h5_open(&job->run, paths[t->n_files], KIND, LAYOUT, &t->file[t->n_files]));
        vq_status status = index_file(t, t->n_files, key, n_windows);
        if (status) {
            t->n_files++; /* closed with the others */
            return status;
        }
    }
    return VQ_OK;
}

/* How many last stages miss each window, and how many windows are missed. Collective. */
static vq_status find_all(vq_teacher *t, uint64_t key, int64_t n_windows, double *missing,
                          int64_t *n_missing)
{
    vq_job *job = t->job;
    vq_status status = VQ_OK;
    memset(missing, 0, (size_t)n_windows * sizeof *missing);
    if (has_cache_duty(job)) {
        status = open_files(t, key, n_windows);
        for (int64_t i = 0; !status && i < n_windows; i++) missing[i] = t->in_file[i] < 0;
    }
    VQ_TRY(vq_comm_agree(job->comm, status));
    vq_tensor sum = vq_tensor_1d(missing, VQ_F64, n_windows);
    VQ_TRY(vq_comm_sum(job->comm, &sum));
    *n_missing = 0;
    for (int64_t i = 0; i < n_windows; i++) *n_missing += missing[i] > 0;
    return VQ_OK;
}

/* Makes the states, or finds that they are there. Collective. */
static vq_status find_or_make(vq_teacher *t, const vq_data *data, uint64_t key)
{
    vq_job *job = t->job;
    const int64_t n = data->calib.n;
    const size_t mark = vq_arena_mark(&job->step);
    int64_t n_missing;
    double *missing;
    VQ_TRY(VQ_NEW(&job->step, n, &missing));
    VQ_TRY(find_all(t, key, n, missing, &n_missing));
    if (n_missing > 0) {
        if (n_missing < n)
            vq_log(VQ_LOG_INFO, "teacher  %lld of %lld windows from an earlier run",
                   (long long)(n - n_missing), (long long)n);
        vq_teacher_close(t);
        VQ_TRY(run_teacher(t, data, missing, key));
        VQ_TRY(find_all(t, key, n, missing, &n_missing));
        VQ_ASSERT(n_missing == 0);
    }
    vq_arena_reset(&job->step, mark);
    return VQ_OK;
}

vq_status vq_cache_teacher(vq_job *job, const vq_data *data, vq_teacher *t)
{
    const vq_model *model = teacher_model(job);
    const double start_s = vq_seconds();
    vq_share share;
    *t = (vq_teacher){.job = job, .dtype = model->embed.dtype};
    vq_comm_at(job->comm, "teacher");
    /* The same model: the same tensors; windows are as long at most. */
    if (!job->teacher.dir)
        t->stage = job->stage;
    else
        VQ_TRY(vq_comm_agree(job->comm, vq_job_stage(job, model, data->calib.T, &t->stage)));
    if (job->config->train.loss != VQ_LOSS_KD || !job->config->teacher.cache) return VQ_OK;
    uint64_t key = vq_hash_u64(vq_hash_u64(VQ_HASH_START, model->fingerprint), data->calib_hash);
    VQ_TRY(vq_share_begin(job, KIND, key, PREFIX, true, &share));
    vq_comm_at(job->comm, "teacher");
    VQ_TRY(vq_share_end(&share, find_or_make(t, data, key)));
    t->is_cached = true;
    t->seconds = vq_seconds() - start_s;
    if (has_cache_duty(job) && job->comm->rank == 0)
        vq_log(VQ_LOG_INFO, "teacher  KL to its cache %.2g a token", t->kl);
    return VQ_OK;
}

void vq_teacher_close(vq_teacher *t)
{
    for (int64_t i = 0; i < t->n_files; i++) vq_h5_close(&t->file[i]);
    if (!t->is_cached && t->stream.windows) vq_stage_drop(&t->stage);
    t->n_files = 0;
    t->is_cached = false;
}

/* --- using it -------------------------------------------------------------------------------- */

vq_status vq_teacher_start(vq_teacher *t, const vq_data *data, vq_arena *arena, int64_t next,
                           int64_t count)
{
    vq_job *job = t->job;
    if (job->config->train.loss != VQ_LOSS_KD) return VQ_OK;
    if (has_cache_duty(job))
        VQ_TRY(vq_tensor_new(arena, job->be.place, t->is_cached ? t->dtype : job->be.act,
                             VQ_DIMS(max_micro(job), data->calib.T, vq_stage_out_width(&t->stage)),
                             &t->hidden));
    if (t->is_cached) return VQ_OK;
    VQ_TRY(vq_stage_hold(&t->stage, arena, job->hold_bytes));
    return vq_stream_steps(arena, job, &data->calib, next, count, &t->stream);
}

/* Takes windows of the running step from the teacher itself. */
static vq_status keep_windows(void *ctx, int64_t first, int64_t count, const vq_tensor *ids,
                              vq_tensor *hidden)
{
    vq_teacher *t = ctx;
    int64_t step_first, n;
    (void)ids;
    vq_stream_share(&t->stream, t->stream.next - 1, t->job->topo.replica, &step_first, &n);
    const vq_tensor windows = vq_tensor_rows(&t->hidden, first - step_first, count);
    vq_tensor to = vq_tensor_view2(&windows, hidden->dim[0], hidden->dim[1]);
    return vq_copy(&t->job->be, &to, hidden);
}

/* The cached states of the step's windows before number `end`. */
static vq_status read_windows(vq_teacher *t, int64_t end)
{
    for (; t->n_read < end; t->n_read++) {
        const int64_t window = t->first + t->n_read;
        const vq_tensor states = vq_tensor_rows(&t->hidden, t->n_read, 1);
        VQ_TRY(vq_place_read_rows(&t->job->be, &t->job->scratch, &t->file[t->in_file[window]],
                                  "hidden", t->row[window], &states));
    }
    return VQ_OK;
}

vq_status vq_teacher_step(vq_teacher *t, int64_t first, int64_t n)
{
    vq_job *job = t->job;
    if (job->config->train.loss != VQ_LOSS_KD) return VQ_OK;
    if (!t->is_cached)
        return vq_pipeline_forward(job, &t->stage, VQ_MODE_FLOAT, &t->stream, 1,
                                   VQ_MIN(job->together, max_micro(job)), keep_windows, t);
    t->first = first;
    t->n_read = 0;
    return has_cache_duty(job) && job->topo.n_stages > 1 ? read_windows(t, n) : VQ_OK;
}

vq_status vq_teacher_rows(vq_teacher *t, int64_t micro, int64_t first, int64_t n, vq_tensor *rows)
{
    *rows = (vq_tensor){0};
    if (!t->hidden.data) return VQ_OK;
    if (t->is_cached) VQ_TRY(read_windows(t, micro + 1));
    const vq_tensor window = vq_tensor_rows(&t->hidden, micro, 1);
    const vq_tensor states = vq_tensor_view2(&window, window.dim[1], window.dim[2]);
    *rows = vq_tensor_rows(&states, first, n);
    return VQ_OK;
}
