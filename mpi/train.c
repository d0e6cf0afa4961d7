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
#include "place.h"

/* What a step gives besides the new codes; the same on every rank but for the times. */
typedef struct step_result {
    double task, reg, grad_norm, seconds, waited_s;
    int64_t n_tokens;
    bool stop; /* a rank was asked to stop */
} step_result;

/* The run of steps. */
typedef struct loop {
    vq_job *job;
    const vq_config *config;
    const vq_data *data;
    vq_teacher *teacher;
    vq_adam adam; /* moments of a whole pool on rank 0 alone; the step everywhere */
    vq_pipeline pipeline;
    vq_stream stream;
    int64_t n_sequences; /* in the running step */
    double *sums;        /* [n_slots + N_SUMS] f64: the regularizer by slot, task, stop */
    double *norms;       /* [n_slots] f64: squared, of a stage's gradients; of no whole pool */
    double task;         /* of this rank's sequences in the running step */
    FILE *metrics;       /* rank 0 */
    double seconds;      /* of the steps before a resume */
} loop;

enum { SUM_TASK, SUM_STOP, N_SUMS };

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
    size_t rss_bytes;
    if (!L->metrics) return VQ_OK;
    VQ_TRY(vq_mem_peak(&L->job->cpu, &rss_bytes));
    int written =
        fprintf(L->metrics,
                "{\"step\": %lld, \"loss\": %.9g, \"task\": %.9g, \"reg\": %.9g, \"beta\": %.6g, "
                "\"grad_norm\": %.6g, \"seconds\": %.6g, \"waited_ratio\": %.4g, "
                "\"tokens_per_s\": %.6g, \"rss_bytes\": %zu}\n",
                (long long)step, r->task + r->reg, r->task, r->reg, vq_loss_beta(L->config, step),
                r->grad_norm, r->seconds, r->waited_s / r->seconds,
                (double)r->n_tokens / r->seconds, rss_bytes);
    VQ_CHECK(written > 0 && fflush(L->metrics) == 0, VQ_EMEM,
             "%s/metrics.jsonl: a line could not be written: the disk is full or gone. Make room "
             "and run again: the job goes on from its checkpoint",
             L->config->out);
    return VQ_OK;
}

/* --- one step -------------------------------------------------------------------------------- */

static vq_status task_loss(void *ctx, int64_t micro, int64_t first, const vq_tensor *ids,
                           const vq_tensor *hidden, vq_tensor *dhidden)
{
    loop *L = ctx;
    vq_tensor target;
    VQ_TRY(vq_teacher_rows(L->teacher, micro, first, hidden->dim[0], &target));
    return vq_loss_task(&L->job->stage, L->config, hidden, &target, vq_teacher_head(L->teacher),
                        ids, first, L->n_sequences, &L->task, dhidden);
}

/* The squared norm of a slot's gradient. */
static vq_status slot_norm(loop *L, int64_t slot, double *norm)
{
    const vq_pool *pool = &L->job->pool;
    const vq_tensor grad = vq_pool_part(pool, &pool->grad, slot),
                    scale = vq_pool_scales(pool, &pool->grad, slot);
    double more = 0;
    VQ_TRY(vq_norm2(&L->job->be, norm, &grad));
    if (scale.data) VQ_TRY(vq_norm2(&L->job->be, &more, &scale));
    *norm += more;
    return VQ_OK;
}

/* Keeps the input of a step whose loss or gradient is not finite, and says where it was. All ranks
 * come here alike; rank 0 writes. */
static vq_status fail_not_finite(loop *L, int64_t step, const step_result *r)
{
    vq_job *job = L->job;
    const bool is_loss = !isfinite(r->task + r->reg);
    const char *where = is_loss ? "the loss" : "the gradient";
    for (int64_t slot = 0; !is_loss && slot < job->pool.n_slots; slot++) {
        if (vq_pool_codes(&job->pool, slot) == 0) continue;
        double norm;
        if (job->pool.is_whole)
            VQ_TRY(slot_norm(L, slot, &norm));
        else
            norm = L->norms[slot];
        if (isfinite(norm)) continue;
        where = vq_pool_name(&job->model, slot);
        break;
    }
    char *path;
    VQ_TRY(vq_job_path(job, &path, "not-finite-%lld.h5", (long long)step));
    if (job->comm->rank == 0) {
        int64_t first, n;
        vq_h5 h;
        vq_stream_share(&L->stream, step, 0, &first, &n);
        const vq_tensor ids = vq_feed_ids(&L->data->calib, first, L->n_sequences);
        VQ_TRY(vq_h5_create(&job->run, path, "step", 1, &h));
        vq_status status = vq_h5_write(&h, "ids", &ids);
        if (!status && job->pool.is_whole)
            status = vq_place_write(&job->be, &job->scratch, &h, "codes", &job->pool.codes);
        if (status) vq_h5_close(&h);
        VQ_TRY(status);
        VQ_TRY(vq_h5_finish(&h));
    }
    VQ_FAIL(VQ_ENOTFINITE,
            "step %lld, %s: task loss %g, regularizer %g: expected finite numbers. The step's "
            "input is in %s; lower --lr, or leave that text out",
            (long long)step, where, r->task, r->reg, path);
}

/* The gradient of a whole pool over all ranks, and its squared norm. */
static vq_status sum_pool(loop *L, double *norm)
{
    VQ_TRY(vq_comm_sum(L->job->comm, &L->job->pool.grad));
    return vq_norm2(&L->job->be, norm, &L->job->pool.grad);
}

/* The gradients that stay in their stages over the replicas, and their squared norm: slot by slot,
 * so that it does not depend on the number of stages. */
static vq_status sum_stages(loop *L, double *norm)
{
    vq_job *job = L->job;
    vq_tensor norms = vq_tensor_1d(L->norms, VQ_F64, job->pool.n_slots);
    VQ_TRY(vq_job_sum_replicas(job, &job->pool.grad));
    for (int64_t i = 0; i < job->pool.n_slots; i++) {
        L->norms[i] = 0;
        if (job->topo.replica == 0 && vq_job_has_slot(job, i))
            VQ_TRY(slot_norm(L, i, &L->norms[i]));
    }
    VQ_TRY(vq_comm_sum(job->comm, &norms));
    *norm = 0;
    for (int64_t i = 0; i < job->pool.n_slots; i++) *norm += L->norms[i];
    return VQ_OK;
}

/* The sums over ranks: each number comes from one rank, or one of each replica, and zeros from the
 * others, so that any number of stages gives the same bits. */
static vq_status sum_up(loop *L, double last_step_s, step_result *r)
{
    vq_job *job = L->job;
    const int64_t n_slots = job->pool.n_slots;
    vq_tensor sums = vq_tensor_1d(L->sums, VQ_F64, n_slots + N_SUMS);
    L->sums[n_slots + SUM_TASK] = L->task;
    L->sums[n_slots + SUM_STOP] = vq_guard_stop(2 * last_step_s) != NULL;
    VQ_TRY(vq_comm_sum(job->comm, &sums));
    r->task = L->sums[n_slots + SUM_TASK];
    r->stop = L->sums[n_slots + SUM_STOP] > 0;
    r->reg = 0;
    for (int64_t i = 0; i < n_slots; i++) r->reg += L->sums[i];
    VQ_TRY(job->pool.is_whole ? sum_pool(L, &r->grad_norm) : sum_stages(L, &r->grad_norm));
    r->grad_norm = sqrt(r->grad_norm);
    return VQ_OK;
}

/* One step on what is trained, by the ranks that have Adam's state; then all that need the numbers
 * have them. */
static vq_status update(loop *L, int64_t step)
{
    vq_job *job = L->job;
    const double share = vq_adam_share(L->config->train.lr_schedule, step, L->config->train.steps);
    if (job->comm->rank == 0 || !job->pool.is_whole)
        VQ_TRY(vq_adam_update(&job->be, &L->adam, &job->pool, share * L->config->train.lr,
                              share * L->config->train.scale_lr));
    else
        L->adam.step++;
    if (job->pool.is_whole) VQ_TRY(vq_comm_broadcast(job->comm, &job->pool.codes, 0));
    return vq_stage_set_scales(&job->stage);
}

static vq_status run_step(loop *L, int64_t step, step_result *r)
{
    vq_job *job = L->job;
    const double start_s = vq_seconds(), waited_s = job->comm->waited_s, last_step_s = r->seconds;
    int64_t first, n;
    vq_tensor ids;
    vq_comm_at(job->comm, "train, step %lld", (long long)step);
    VQ_TRY(vq_stream_take(&L->stream, &first, &n, &ids));
    L->n_sequences = vq_stream_total(&L->stream, step);
    L->task = 0;
    VQ_TRY(vq_zero(&job->be, &job->pool.grad));
    memset(L->sums, 0, (size_t)(job->pool.n_slots + N_SUMS) * sizeof *L->sums);
    VQ_TRY(vq_teacher_step(L->teacher, first, n));
    if (job->keeps_weights)
        VQ_TRY(vq_stage_make_weights(&job->stage, vq_job_mode(job), &job->step));
    VQ_TRY(vq_pipeline_step(&L->pipeline, (int)n, &ids, task_loss, L));
    if (vq_loss_has_reg(L->config, step) && job->topo.replica == 0)
        VQ_TRY(vq_loss_reg(&job->stage, L->config, step, L->sums));
    VQ_TRY(vq_sync(&job->be)); /* the losses are there */
    VQ_TRY(sum_up(L, last_step_s, r));
    if (!isfinite(r->task + r->reg + r->grad_norm)) return fail_not_finite(L, step, r);
    VQ_TRY(update(L, step));
    r->n_tokens = L->n_sequences * L->data->calib.T;
    r->seconds = vq_seconds() - start_s;
    r->waited_s = job->comm->waited_s - waited_s;
    return VQ_OK;
}

/* --- the loop -------------------------------------------------------------------------------- */

/* What all ranks need of rank 0's pool, and the streams. */
static vq_status start_streams(loop *L)
{
    vq_job *job = L->job;
    const int64_t steps = L->config->train.steps;
    if (job->pool.is_whole) VQ_TRY(vq_comm_broadcast(job->comm, &job->pool.codes, 0));
    VQ_TRY(vq_stage_set_scales(&job->stage));
    VQ_TRY(vq_stream_steps(&job->step, job, &L->data->calib, L->adam.step, steps, &L->stream));
    return vq_teacher_start(L->teacher, L->data, &job->step, L->adam.step, steps);
}

static vq_status run_steps(loop *L, vq_train_stats *stats)
{
    VQ_TRY(start_streams(L));
    const int64_t steps = L->config->train.steps, every = L->config->checkpoint.every;
    const double start_s = vq_seconds();
    const double waited_s = L->job->comm->waited_s, summed_s = L->job->comm->summed_s;
    step_result r = {0};
    vq_progress p;
    vq_progress_begin(&p, "train", "steps", L->adam.step, steps);
    for (int64_t step = L->adam.step; step < steps; step++) {
        VQ_TRY(run_step(L, step, &r));
        VQ_TRY(write_metrics(L, step, &r));
        L->seconds += r.seconds;
        vq_progress_step(&p, step + 1, "task %.4g  reg %.4g  beta %.1f", r.task, r.reg,
                         vq_loss_beta(L->config, step));
        const bool is_end = step + 1 == steps, stop = r.stop && !is_end;
        if (is_end || stop || (every > 0 && (step + 1) % every == 0))
            VQ_TRY(vq_checkpoint_save(L->job, &L->adam));
        VQ_CHECK(!stop, VQ_ESTOPPED,
                 "%s: stopped by %s after step %lld of %lld, as asked. Run the same command again "
                 "to go on",
                 L->config->out,
                 vq_guard_stop(2 * r.seconds) ? vq_guard_stop(2 * r.seconds) : "another rank",
                 (long long)step + 1, (long long)steps);
    }
    if (p.done > p.first) vq_progress_end(&p);
    if (steps == 0) VQ_TRY(vq_checkpoint_save(L->job, &L->adam)); /* what the layers' own gave */
    VQ_TRY(vq_stream_close(&L->stream));
    stats->ran_s = vq_seconds() - start_s;
    stats->sums_s = L->job->comm->summed_s - summed_s;
    stats->messages_s = L->job->comm->waited_s - waited_s - stats->sums_s;
    stats->steps = steps;
    stats->seconds = L->seconds;
    return VQ_OK;
}

/* Of a whole pool rank 0 has them alone. */
static bool has_moments(const vq_job *job)
{
    return job->comm->rank == 0 || !job->pool.is_whole;
}

static vq_status open_state(loop *L)
{
    vq_job *job = L->job;
    const int64_t T = L->data->calib.T;
    const int max_micro = (int)VQ_CEIL_DIV(L->config->train.batch, job->topo.n_replicas);
    VQ_CHECK(L->config->slices <= T, VQ_EUSAGE,
             "--slices %lld: a window has %lld tokens: expected at most one slice a token. Lower "
             "--slices",
             (long long)L->config->slices, (long long)T);
    VQ_TRY(vq_pipeline_init(&job->step, job, T, max_micro, (int)L->config->slices, job->keep,
                            &L->pipeline));
    VQ_TRY(VQ_NEW(&job->step, job->pool.n_slots + N_SUMS, &L->sums));
    VQ_TRY(VQ_NEW(&job->step, job->pool.n_slots, &L->norms));
    VQ_TRY(vq_stage_learn_scales(&job->stage, &job->weights));
    return has_moments(job) ? vq_adam_init(&job->run, &job->be, &job->pool, &L->adam) : VQ_OK;
}

/* What the checkpoints of this job carry. */
static uint64_t key_of(const vq_job *job, const vq_data *data)
{
    uint64_t h = vq_hash_u64(vq_config_phase_hash(job->config, VQ_PHASE_TRAIN), job->init_key);
    h = vq_hash_u64(h, data->calib_hash);
    return vq_hash_u64(h, job->teacher.dir ? job->teacher.fingerprint : job->model.fingerprint);
}

static vq_status prepare(loop *L)
{
    vq_job *job = L->job;
    job->train_key = key_of(job, L->data);
    VQ_TRY(vq_comm_agree(job->comm, open_state(L)));
    VQ_TRY(vq_checkpoint_load(job, &L->adam));
    return vq_comm_agree(job->comm, job->comm->rank == 0 ? open_metrics(L) : VQ_OK);
}

static vq_status make_room(vq_job *job, vq_adam *adam)
{
    VQ_TRY(vq_stage_learn_scales(&job->stage, &job->weights));
    return has_moments(job) ? vq_adam_init(&job->run, &job->be, &job->pool, adam) : VQ_OK;
}

static vq_status check_finished(const vq_job *job, const vq_adam *adam)
{
    const int64_t steps = job->config->train.steps;
    VQ_CHECK(adam->step == steps, VQ_EFILE,
             "%s: its newest checkpoint is of step %lld of %lld: expected a finished run. Run the "
             "same quantize command again to finish it",
             job->config->out, (long long)adam->step, (long long)steps);
    return VQ_OK;
}

/* What is trained as the newest checkpoint has it, on the ranks that have Adam's state. */
static vq_status load_last(vq_job *job)
{
    vq_adam adam = {0};
    VQ_TRY(vq_comm_agree(job->comm, make_room(job, &adam)));
    VQ_TRY(vq_checkpoint_load(job, &adam));
    return vq_comm_agree(job->comm, check_finished(job, &adam));
}

vq_status vq_train_restore(vq_job *job, const vq_data *data)
{
    vq_comm_at(job->comm, "train");
    job->train_key = key_of(job, data);
    VQ_TRY(load_last(job));
    if (job->pool.is_whole) VQ_TRY(vq_comm_broadcast(job->comm, &job->pool.codes, 0));
    return vq_stage_set_scales(&job->stage);
}

vq_status vq_train(vq_job *job, const vq_data *data, vq_teacher *teacher, vq_train_stats *stats)
{
    loop L = {.job = job, .config = job->config, .data = data, .teacher = teacher};
    size_t mark = vq_arena_mark(&job->step);
    *stats = (vq_train_stats){0};
    vq_comm_at(job->comm, "train");
    vq_status status = prepare(&L);
    if (!status) status = vq_comm_end(job->comm, run_steps(&L, stats));
    if (L.metrics) fclose(L.metrics);
    vq_stage_forget_weights(&job->stage);
    vq_arena_reset(&job->step, mark);
    vq_arena_trim(&job->step);
    return status;
}
