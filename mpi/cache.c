/* cache - the teacher's states, made once. */
#include "cache.h"

#include <math.h>

#include "error.h"
#include "log.h"

#define KIND "teacher"
#define LAYOUT 1

static const vq_model *teacher_model(const vq_job *job)
{
    return job->teacher.dir ? &job->teacher : &job->model;
}

const vq_tensor *vq_teacher_head(const vq_job *job)
{
    return &teacher_model(job)->head;
}

/* The teacher's own forward, act [count * T, E_embed]. */
static vq_status run_teacher(const vq_teacher *t, const vq_data *data, int64_t first, int64_t count,
                             vq_arena *arena, vq_tensor *hidden)
{
    const vq_backend *be = t->stage.be;
    const vq_tensor ids = vq_feed_ids(&data->calib, first, count);
    VQ_TRY(vq_tensor_new(arena, be->place, be->act,
                         VQ_DIMS(count * data->calib.T, vq_stage_out_width(&t->stage)), hidden));
    return vq_stage_fwd(&t->stage, VQ_MODE_FLOAT, &ids, hidden, NULL);
}

vq_status vq_teacher_hidden(vq_job *job, const vq_teacher *t, const vq_data *data, int64_t first,
                            int64_t count, vq_arena *arena, vq_tensor *hidden)
{
    if (!t->is_cached) return run_teacher(t, data, first, count, arena, hidden);
    const int64_t E = vq_stage_out_width(&t->stage), T = data->calib.T;
    VQ_TRY(vq_tensor_new(arena, job->be.place, t->dtype, VQ_DIMS(count * T, E), hidden));
    const vq_tensor rows = vq_tensor_3d(hidden->data, t->dtype, count, T, E);
    return vq_h5_read_rows(&t->file, "hidden", first, &rows);
}

/* KL(teacher || cached teacher) of the first window, a token. */
static vq_status measure_kl(vq_job *job, const vq_tensor *hidden, const vq_tensor *kept, double *kl)
{
    *kl = 0;
    const vq_tensor *head = vq_teacher_head(job);
    return vq_head_kd(&job->be, kl, NULL, hidden, kept, head, head, 1, 1 / (double)hidden->dim[0]);
}

static vq_status fill(vq_job *job, vq_teacher *t, const vq_data *data, vq_h5 *h)
{
    const int64_t n = data->calib.n, T = data->calib.T, E = vq_stage_out_width(&t->stage);
    const vq_tensor shape = vq_tensor_3d(NULL, t->dtype, n, T, E);
    VQ_TRY(vq_h5_make(h, "hidden", &shape));
    vq_progress p;
    vq_progress_begin(&p, "teacher", "windows", 0, n);
    for (int64_t i = 0; i < n; i++) {
        size_t mark = vq_arena_mark(&job->step);
        vq_tensor hidden, kept;
        double norm;
        VQ_TRY(run_teacher(t, data, i, 1, &job->step, &hidden));
        VQ_TRY(vq_norm2(&job->be, &norm, &hidden));
        VQ_CHECK(isfinite(norm), VQ_ENOTFINITE,
                 "%s: the teacher's states of window %lld are not finite: expected numbers. Check "
                 "the weights, or leave this text out",
                 teacher_model(job)->dir, (long long)i);
        VQ_TRY(vq_tensor_new(&job->step, VQ_HOST, t->dtype, VQ_DIMS(T, E), &kept));
        VQ_TRY(vq_convert(kept.data, t->dtype, hidden.data, hidden.dtype, T * E));
        const vq_tensor rows = vq_tensor_3d(kept.data, t->dtype, 1, T, E);
        VQ_TRY(vq_h5_write_rows(h, "hidden", i, &rows));
        if (i == 0) VQ_TRY(measure_kl(job, &hidden, &kept, &t->kl));
        vq_arena_reset(&job->step, mark);
        vq_progress_step(&p, i + 1, NULL);
    }
    VQ_TRY(vq_h5_set_f64(h, NULL, "kl", t->kl));
    vq_progress_step(&p, n, "KL to its cache %.2g a token", t->kl);
    vq_progress_end(&p);
    return VQ_OK;
}

static vq_status make(vq_job *job, vq_teacher *t, const vq_data *data, const char *path,
                      uint64_t key)
{
    vq_h5 h;
    VQ_TRY(vq_h5_create(&job->run, path, KIND, LAYOUT, &h));
    vq_status status = vq_h5_set_u64(&h, NULL, "key", key);
    if (!status) status = fill(job, t, data, &h);
    if (status) {
        vq_h5_close(&h);
        return status;
    }
    return vq_h5_finish(&h);
}

vq_status vq_cache_teacher(vq_job *job, const vq_data *data, vq_teacher *t)
{
    const vq_model *model = teacher_model(job);
    const double start_s = vq_seconds();
    char *path;
    *t = (vq_teacher){.file.id = -1, .dtype = model->embed.dtype};
    VQ_TRY(vq_job_stage(job, model, data->calib.T, &t->stage));
    if (job->config->train.loss != VQ_LOSS_KD || !job->config->teacher.cache) return VQ_OK;
    uint64_t key = vq_hash_u64(vq_hash_u64(VQ_HASH_START, model->fingerprint), data->calib_hash);
    VQ_TRY(vq_job_path(job, &path, "teacher-s00.h5"));
    if (!vq_file_exists(path)) VQ_TRY(make(job, t, data, path, key));
    VQ_TRY(vq_h5_open(&job->run, path, KIND, LAYOUT, &t->file));
    vq_status status = vq_h5_check_u64(&t->file, "key", key, "the teacher and its tokens");
    if (!status) status = vq_h5_get_f64(&t->file, NULL, "kl", &t->kl);
    if (status) vq_teacher_close(t);
    t->is_cached = status == VQ_OK;
    t->seconds = vq_seconds() - start_s;
    return status;
}

void vq_teacher_close(vq_teacher *t)
{
    vq_h5_close(&t->file);
    t->is_cached = false;
}
