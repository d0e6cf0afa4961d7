/* train - the loop over steps. */
#include "train.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint.h"
#include "error.h"
#include "guard.h"
#include "log.h"
#include "loss.h"

/* What a step gives besides the new codes. */
typedef struct step_result {
    double task, reg, grad_norm, seconds;
    int64_t n_tokens;
} step_result;

/* The run of steps. */
typedef struct loop {
    vq_job *job;
    const vq_config *config;
    const vq_data *data;
    const vq_teacher *teacher;
    vq_adam adam;
    vq_kept kept;
    vq_tensor hidden, dhidden; /* act [T, E_embed] */
    double *by_slot;           /* [n_slots]: the regularizer */
    FILE *metrics;
    double seconds; /* of the steps before a resume */
} loop;

/* --- metrics.jsonl --------------------------------------------------------------------------- */

/* Opens the file for steps after `step`, with the lines of the steps before that are on file; those
 * after a checkpoint are cut off, so that the file has each step once. */
static vq_status open_metrics(loop *L)
{
    vq_job *job = L->job;
    char *path, *text, *end;
    size_t n;
    VQ_TRY(vq_job_path(job, &path, "metrics.jsonl"));
    size_t mark = vq_arena_mark(&job->scratch);
    if (vq_file_exists(path)) {
        VQ_TRY(vq_file_read(&job->scratch, path, &text, &n));
        char *line = text;
        for (; (end = strchr(line, '\n')); line = end + 1) {
            json_t *row = json_loadb(line, (size_t)(end - line), 0, NULL);
            const json_t *step = json_object_get(row, "step"), *s = json_object_get(row, "seconds");
            bool keep = json_is_integer(step) && json_integer_value(step) < L->adam.step;
            if (keep) L->seconds += json_number_value(s);
            json_decref(row);
            if (!keep) break;
        }
        VQ_TRY(vq_file_write(path, text, (size_t)(line - text)));
    }
    vq_arena_reset(&job->scratch, mark);
    L->metrics = fopen(path, "a");
    return L->metrics ? VQ_OK : vq_file_error(path, "written");
}

static vq_status write_metrics(loop *L, int64_t step, const step_result *r)
{
    int written = fprintf(L->metrics,
                          "{\"step\": %lld, \"loss\": %.9g, \"task\": %.9g, \"reg\": %.9g, "
                          "\"beta\": %.6g, \"grad_norm\": %.6g, \"seconds\": %.6g, "
                          "\"tokens_per_s\": %.6g, \"rss_bytes\": %lld}\n",
                          (long long)step, r->task + r->reg, r->task, r->reg,
                          vq_loss_beta(L->config, step), r->grad_norm, r->seconds,
                          (double)r->n_tokens / r->seconds, (long long)vq_peak_rss_bytes());
    VQ_CHECK(written > 0 && fflush(L->metrics) == 0, VQ_EMEM,
             "%s/metrics.jsonl: a line could not be written: the disk is full or gone. Make room "
             "and run again: the job goes on from its checkpoint",
             L->config->out);
    return VQ_OK;
}

/* --- one step -------------------------------------------------------------------------------- */

/* Forward and backward of one sequence. */
static vq_status run_sequence(loop *L, int64_t sequence, int64_t n_sequences, double *task)
{
    vq_job *job = L->job;
    size_t mark = vq_arena_mark(&job->step);
    const vq_tensor ids = vq_feed_ids(&L->data->calib, sequence, 1);
    vq_tensor target = {0};
    if (L->config->train.loss == VQ_LOSS_KD)
        VQ_TRY(vq_teacher_hidden(job, L->teacher, L->data, sequence, 1, &job->step, &target));
    VQ_TRY(vq_stage_fwd(&job->stage, VQ_MODE_SOFT, &ids, &L->hidden, &L->kept));
    VQ_TRY(vq_loss_task(&job->stage, L->config, &L->hidden, &target, vq_teacher_head(job), &ids,
                        n_sequences, task, &L->dhidden));
    VQ_TRY(vq_stage_bwd(&job->stage, &L->kept, &L->dhidden, NULL));
    vq_arena_reset(&job->step, mark);
    return VQ_OK;
}

/* Keeps the input of a step whose loss or gradient is not finite, and says where it was. */
static vq_status fail_not_finite(loop *L, int64_t step, int64_t first, int64_t count,
                                 const step_result *r)
{
    vq_job *job = L->job;
    const char *where = isfinite(r->task + r->reg) ? "the gradient" : "the loss";
    for (int64_t slot = 0; isfinite(r->task + r->reg) && slot < job->pool.n_slots; slot++) {
        if (vq_pool_codes(&job->pool, slot) == 0) continue;
        const vq_tensor grad = vq_pool_part(&job->pool, &job->pool.grad, slot);
        double norm;
        VQ_TRY(vq_norm2(&job->be, &norm, &grad));
        if (isfinite(norm)) continue;
        where = vq_pool_name(&job->model, slot);
        break;
    }
    char *path;
    vq_h5 h;
    VQ_TRY(vq_job_path(job, &path, "not-finite-%lld.h5", (long long)step));
    VQ_TRY(vq_h5_create(&job->run, path, "step", 1, &h));
    const vq_tensor ids = vq_feed_ids(&L->data->calib, first, count);
    vq_status status = vq_h5_write(&h, "ids", &ids);
    if (!status) status = vq_h5_write(&h, "codes", &job->pool.codes);
    if (!status)
        status = vq_h5_finish(&h);
    else
        vq_h5_close(&h);
    VQ_TRY(status);
    VQ_FAIL(VQ_ENOTFINITE,
            "step %lld, %s: task loss %g, regularizer %g: expected finite numbers. The step's "
            "input is in %s; lower --lr, or leave that text out",
            (long long)step, where, r->task, r->reg, path);
}

static vq_status run_step(loop *L, int64_t step, step_result *r)
{
    vq_job *job = L->job;
    const double start_s = vq_seconds();
    int64_t first, count;
    *r = (step_result){0};
    vq_feed_step(L->config, step, &first, &count);
    r->n_tokens = count * L->data->calib.T;
    VQ_TRY(vq_zero(&job->be, &job->pool.grad));
    for (int64_t i = 0; i < count; i++) VQ_TRY(run_sequence(L, first + i, count, &r->task));
    if (vq_loss_has_reg(L->config, step)) {
        VQ_TRY(vq_loss_reg(&job->stage, L->config, step, L->by_slot));
        for (int64_t i = 0; i < job->pool.n_slots; i++) r->reg += L->by_slot[i];
    }
    VQ_TRY(job->comm.ops->sum(job->comm.ctx, &job->pool.grad));
    VQ_TRY(vq_norm2(&job->be, &r->grad_norm, &job->pool.grad));
    if (!isfinite(r->task + r->reg + r->grad_norm))
        return fail_not_finite(L, step, first, count, r);
    r->grad_norm = sqrt(r->grad_norm);
    VQ_TRY(vq_adam_update(&job->be, &L->adam, &job->pool, L->config->train.lr));
    VQ_TRY(job->comm.ops->broadcast(job->comm.ctx, &job->pool.codes, 0));
    r->seconds = vq_seconds() - start_s;
    return VQ_OK;
}

/* --- the loop -------------------------------------------------------------------------------- */

static vq_status run_steps(loop *L, vq_train_stats *stats)
{
    const int64_t steps = L->config->train.steps, every = L->config->checkpoint.every;
    step_result r = {0};
    vq_progress p;
    vq_progress_begin(&p, "train", "steps", L->adam.step, steps);
    for (int64_t step = L->adam.step; step < steps; step++) {
        VQ_TRY(run_step(L, step, &r));
        VQ_TRY(write_metrics(L, step, &r));
        L->seconds += r.seconds;
        vq_progress_step(&p, step + 1, "task %.4g  reg %.4g  beta %.1f", r.task, r.reg,
                         vq_loss_beta(L->config, step));
        const bool is_end = step + 1 == steps;
        const char *why = is_end ? NULL : vq_guard_stop(2 * r.seconds);
        if (is_end || why || (every > 0 && (step + 1) % every == 0))
            VQ_TRY(vq_checkpoint_save(L->job, &L->adam));
        VQ_CHECK(!why, VQ_ESTOPPED,
                 "%s: stopped by %s after step %lld of %lld, as asked. Run the same command again "
                 "to go on",
                 L->config->out, why, (long long)step + 1, (long long)steps);
    }
    if (p.done > p.first) vq_progress_end(&p);
    stats->steps = steps;
    stats->seconds = L->seconds;
    stats->last_task = r.task;
    return VQ_OK;
}

/* Keep all activations when they take less than half of the free memory. */
static vq_status want_recompute(const loop *L, int64_t T, bool *recompute)
{
    size_t free_bytes, total_bytes;
    VQ_TRY(vq_mem_info(&L->job->be, &free_bytes, &total_bytes));
    *recompute = L->config->train.recompute == VQ_ON ||
                 (L->config->train.recompute == VQ_AUTO &&
                  vq_kept_bytes(&L->job->stage, 1, T, false) > free_bytes / 2);
    return VQ_OK;
}

static vq_status prepare(loop *L, vq_train_stats *stats)
{
    vq_job *job = L->job;
    const int64_t T = L->data->calib.T, E = vq_stage_out_width(&job->stage);
    bool recompute;
    job->train_key = vq_hash_u64(vq_config_phase_hash(L->config, VQ_PHASE_TRAIN), job->init_key);
    job->train_key = vq_hash_u64(job->train_key, L->data->calib_hash);
    job->train_key = vq_hash_u64(job->train_key, job->teacher.dir ? job->teacher.fingerprint
                                                                  : job->model.fingerprint);
    VQ_TRY(vq_adam_init(&job->run, &job->be, &job->pool, &L->adam));
    VQ_TRY(vq_checkpoint_load(job, &L->adam));
    VQ_TRY(want_recompute(L, T, &recompute));
    stats->kept_bytes = (int64_t)vq_kept_bytes(&job->stage, 1, T, recompute);
    VQ_TRY(vq_kept_init(&job->step, &job->stage, 1, T, recompute, &L->kept));
    VQ_TRY(vq_tensor_new(&job->step, job->be.place, job->be.act, VQ_DIMS(T, E), &L->hidden));
    VQ_TRY(vq_tensor_new(&job->step, job->be.place, job->be.act, VQ_DIMS(T, E), &L->dhidden));
    VQ_TRY(VQ_NEW(&job->step, job->pool.n_slots, &L->by_slot));
    memset(L->by_slot, 0, (size_t)job->pool.n_slots * sizeof *L->by_slot);
    return open_metrics(L);
}

vq_status vq_train(vq_job *job, const vq_data *data, const vq_teacher *teacher,
                   vq_train_stats *stats)
{
    loop L = {.job = job, .config = job->config, .data = data, .teacher = teacher};
    size_t mark = vq_arena_mark(&job->step);
    *stats = (vq_train_stats){0};
    vq_status status = prepare(&L, stats);
    if (!status) status = run_steps(&L, stats);
    if (L.metrics) fclose(L.metrics);
    vq_arena_reset(&job->step, mark);
    vq_arena_trim(&job->step);
    return status;
}
