/* evaluate - windows through the model, and what is known already. */
#include "evaluate.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "guard.h"
#include "log.h"
#include "share.h"

#define KIND "evaluation"
#define LAYOUT 1

/* A pass over the windows. */
typedef struct pass {
    vq_job *job;
    const vq_stage *stage;
    vq_mode mode;
    const vq_windows *windows;
    const vq_eval_kept *kept; /* NULL: nothing is kept */
    double *loss;   /* [windows] f64: sums of next-token losses; zero where another rank has it */
    int64_t known;  /* the first windows' losses are on every rank */
    double seconds; /* that they took earlier runs */
    double start_s;
    vq_progress progress;
} pass;

/* Whether the mode's weights are the model's own, which a GPU is brought: others are made. */
static bool brings(vq_mode mode)
{
    return mode == VQ_MODE_FLOAT || mode == VQ_MODE_RTN;
}

static vq_status window_losses(void *ctx, int64_t first, int64_t count, const vq_tensor *ids,
                               vq_tensor *hidden)
{
    const pass *p = ctx;
    vq_job *job = p->job;
    const int64_t T = ids->dim[1];
    size_t mark = vq_arena_mark(&job->step);
    vq_tensor targets;
    VQ_TRY(vq_tensor_new(&job->step, job->be.place, VQ_I32, VQ_DIMS(T - 1), &targets));
    for (int64_t i = 0; i < count; i++) {
        const vq_tensor rows = vq_tensor_rows(hidden, i * T, T - 1);
        double *loss = &p->loss[first + i];
        VQ_TRY(vq_upload(&job->be, &targets, (int32_t *)ids->data + i * T + 1));
        VQ_TRY(vq_head_nll(&job->be, loss, NULL, &rows, &p->stage->there->head, &targets, 1));
    }
    vq_arena_reset(&job->step, mark);
    return VQ_OK;
}

/* --- parts ------------------------------------------------------------------------------------ */

/* The losses that an earlier run has left, read by rank 0; other files are written over. */
static vq_status read_kept(pass *p)
{
    vq_job *job = p->job;
    vq_tensor known = vq_tensor_1d(&p->known, VQ_I64, 1);
    vq_tensor losses = vq_tensor_1d(p->loss, VQ_F64, p->windows->n);
    uint64_t key = 0;
    vq_h5 h;
    if (!p->kept) return VQ_OK;
    if (job->comm->rank == 0 && vq_file_exists(p->kept->path)) {
        vq_status status = vq_h5_open(&job->step, p->kept->path, KIND, LAYOUT, &h);
        if (!status) status = vq_h5_get_u64(&h, NULL, "key", &key);
        if (!status && key == p->kept->key) {
            status = vq_h5_read(&h, "loss", &losses);
            if (!status) status = vq_h5_get_i64(&h, NULL, "windows", &p->known);
            if (!status) status = vq_h5_get_f64(&h, NULL, "seconds", &p->seconds);
        }
        vq_h5_close(&h);
        if (status || p->known < 0 || p->known > p->windows->n) p->known = 0;
        if (status) vq_error_clear();
    }
    VQ_TRY(vq_comm_broadcast(job->comm, &known, 0));
    return vq_comm_broadcast(job->comm, &losses, 0);
}

static vq_status write_kept(const pass *p, double seconds)
{
    const vq_tensor losses = vq_tensor_1d(p->loss, VQ_F64, p->windows->n);
    vq_h5 h;
    if (!p->kept || p->job->comm->rank != 0) return VQ_OK;
    VQ_TRY(vq_h5_create(&p->job->step, p->kept->path, KIND, LAYOUT, &h));
    vq_status status = vq_h5_set_u64(&h, NULL, "key", p->kept->key);
    if (!status) status = vq_h5_set_i64(&h, NULL, "windows", p->known);
    if (!status) status = vq_h5_set_f64(&h, NULL, "seconds", seconds);
    if (!status) status = vq_h5_write(&h, "loss", &losses);
    if (status) vq_h5_close(&h);
    return status ? status : vq_h5_finish(&h);
}

/* The losses of the windows of messages [next, count), on every rank; each must be a number. */
static vq_status run_messages(pass *p, int64_t micro, int64_t together, int64_t next, int64_t count)
{
    vq_job *job = p->job;
    const vq_windows *w = p->windows;
    const int64_t batch = micro * together, windows = batch * job->topo.n_replicas,
                  first = next * windows, end = VQ_MIN(count * windows, w->n);
    vq_stream stream;
    memset(p->loss + first, 0, (size_t)(end - first) * sizeof *p->loss);
    VQ_TRY(vq_stream_pass(&job->step, job, w, batch, next, count, &stream));
    while (stream.next < stream.count) {
        VQ_TRY(vq_pipeline_forward(job, p->stage, p->mode, &stream, micro, together, window_losses,
                                   p));
        vq_progress_step(&p->progress, VQ_MIN(w->n, stream.next * windows), NULL);
    }
    VQ_TRY(vq_stream_close(&stream));
    vq_tensor losses = vq_tensor_1d(p->loss + first, VQ_F64, end - first);
    VQ_TRY(vq_comm_sum(job->comm, &losses));
    for (int64_t i = first; i < end; i++)
        VQ_CHECK(isfinite(p->loss[i]), VQ_ENOTFINITE,
                 "%s: window %lld of the evaluation has the loss %g in mode %s: expected a finite "
                 "number. Check the weights",
                 p->stage->model->dir, (long long)i, p->loss[i], vq_mode_name(p->mode));
    p->known = end;
    return VQ_OK;
}

/* The same, ended by all ranks alike: what is known is kept, and a job that is asked to stops. */
static vq_status run_part(pass *p, int64_t micro, int64_t together, int64_t next, int64_t count)
{
    vq_job *job = p->job;
    const double start_s = vq_seconds();
    const size_t mark = vq_arena_mark(&job->step);
    VQ_TRY(vq_comm_end(job->comm, run_messages(p, micro, together, next, count)));
    vq_status status = VQ_OK;
    if (p->kept && p->known < p->windows->n) {
        status = write_kept(p, p->seconds + vq_seconds() - p->start_s);
        if (!status)
            status =
                vq_guard_unit(job->config->out, "window", p->known - 1, vq_seconds() - start_s);
    }
    vq_arena_reset(&job->step, mark);
    return vq_comm_agree(job->comm, status);
}

/* The losses of all windows, on every rank. Earlier ranks may have dealt the windows otherwise: a
 * message that is known in part is passed again. */
static vq_status run_pass(pass *p)
{
    vq_job *job = p->job;
    const int64_t micro = vq_pipeline_windows(p->windows->T),
                  together = brings(p->mode) ? job->together : 1,
                  windows = micro * together * job->topo.n_replicas,
                  messages = vq_stream_messages(job, p->windows, micro * together),
                  step = VQ_CEIL_DIV(messages, VQ_STREAM_PARTS);
    if (p->known == p->windows->n) return VQ_OK;
    for (int64_t next = p->known / windows; next < messages; next += step)
        VQ_TRY(run_part(p, micro, together, next, VQ_MIN(next + step, messages)));
    return VQ_OK;
}

/* --- a pass ----------------------------------------------------------------------------------- */

/* A number for every sum of losses: files in JSON have no infinity. */
static double perplexity_of(double total, int64_t n)
{
    return exp(VQ_MIN(total / (double)n, 700));
}

vq_status vq_evaluate(vq_job *job, const vq_stage *stage, vq_mode mode, const vq_windows *w,
                      const char *label, const vq_eval_kept *kept, vq_eval_result *r)
{
    double total = 0;
    size_t mark = vq_arena_mark(&job->step);
    pass p = {.job = job,
              .stage = stage,
              .mode = mode,
              .windows = w,
              .kept = kept,
              .start_s = vq_seconds()};
    vq_comm_at(job->comm, "evaluation, %s", vq_mode_name(mode));
    if (brings(mode))
        VQ_TRY(vq_comm_end(job->comm, vq_stage_hold(stage, &job->step, job->hold_bytes)));
    else if (job->keeps_weights)
        VQ_TRY(vq_comm_end(job->comm, vq_stage_make_weights(stage, mode, &job->step)));
    VQ_TRY(VQ_NEW(&job->step, w->n, &p.loss));
    VQ_TRY(read_kept(&p));
    vq_progress_begin(&p.progress, "eval", "windows", p.known, w->n);
    vq_progress_step(&p.progress, p.known, "%s", label);
    vq_status status = run_pass(&p);
    vq_stage_drop(stage);
    vq_stage_forget_weights(stage);
    for (int64_t i = 0; i < w->n; i++) total += p.loss[i];
    vq_arena_reset(&job->step, mark);
    if (status) return status;
    *r = (vq_eval_result){.perplexity = perplexity_of(total, w->n * (w->T - 1)),
                          .windows = w->n,
                          .tokens = w->n * w->T,
                          .seconds = p.seconds + vq_seconds() - p.start_s};
    vq_progress_step(&p.progress, w->n, "%s perplexity %.4g", label, r->perplexity);
    vq_progress_end(&p.progress);
    return VQ_OK;
}

/* Beside the weights that stay on a GPU, and of what these may take: activations. */
#define PASS_RATIO 0.2
#define DOUBLINGS 7

static double linears_bytes(const vq_stage *stage)
{
    double bytes = 0;
    for (int64_t i = stage->first * VQ_N_KINDS; i < stage->last * VQ_N_KINDS; i++) {
        const vq_linear *l = &stage->model->layers[i / VQ_N_KINDS].linear[i % VQ_N_KINDS];
        if (l->exists) bytes += (double)vq_tensor_bytes(&l->weight);
    }
    return bytes;
}

/* Of B windows in vq_pipeline_forward. */
static double pass_bytes(const vq_stage *stage, int64_t B, int64_t T)
{
    const int64_t width = stage->model->config.E + vq_stage_out_width(stage);
    return (double)vq_kept_bytes(stage, B, T, VQ_KEEP_NOTHING) +
           2 * (double)(B * T * width) * (double)vq_dtype_bytes(stage->be->act);
}

vq_status vq_evaluate_together(vq_job *job, const vq_stage *stage, const vq_windows *w)
{
    const int64_t micro = vq_pipeline_windows(w->T), own = VQ_CEIL_DIV(w->n, job->topo.n_replicas);
    const double bytes = linears_bytes(stage);
    double ranks[1 + DOUBLINGS]; /* that are brought weights; whose memory lets 2^i go together */
    char stay[32], all[32];
    job->together = 1;
    if (job->be.place == VQ_HOST) return VQ_OK;
    ranks[0] = bytes > job->hold_bytes;
    for (int i = 1; i <= DOUBLINGS; i++)
        ranks[i] = pass_bytes(stage, micro << i, w->T) <= PASS_RATIO * job->hold_bytes;
    vq_tensor sums = vq_tensor_1d(ranks, VQ_F64, 1 + DOUBLINGS);
    VQ_TRY(vq_comm_sum(job->comm, &sums));
    for (int i = 1; i <= DOUBLINGS && ranks[0] > 0; i++)
        if (ranks[i] == job->comm->size && micro << (i - 1) < own) job->together = 1 << i;
    if (ranks[0] > 0)
        vq_log(VQ_LOG_INFO,
               "eval     %s of %s of weights stay on the GPU, %lld windows go together",
               vq_bytes_text(VQ_MIN(bytes, job->hold_bytes), stay), vq_bytes_text(bytes, all),
               (long long)VQ_MIN(micro * job->together, own));
    return VQ_OK;
}

#define SHARED "eval-shared.json"

/* --- eval.json: {"fp": {"key": "...", "perplexity": ..., ...}, ...} --------------------------- */

static bool find_result(const json_t *all, const char *label, const char *key, vq_eval_result *r)
{
    const json_t *row = json_object_get(all, label);
    const char *found = json_string_value(json_object_get(row, "key"));
    if (!found || strcmp(found, key) != 0) return false;
    *r = (vq_eval_result){.perplexity = json_number_value(json_object_get(row, "perplexity")),
                          .windows = json_integer_value(json_object_get(row, "windows")),
                          .tokens = json_integer_value(json_object_get(row, "tokens")),
                          .seconds = json_number_value(json_object_get(row, "seconds"))};
    return true;
}

static vq_status save_result(json_t *all, const char *path, const char *label, const char *key,
                             const vq_eval_result *r)
{
    json_object_set_new(all, label,
                        json_pack("{s:s, s:f, s:I, s:I, s:f}", "key", key, "perplexity",
                                  r->perplexity, "windows", (json_int_t)r->windows, "tokens",
                                  (json_int_t)r->tokens, "seconds", r->seconds));
    char *text = json_dumps(all, JSON_INDENT(2));
    VQ_ASSERT(text);
    vq_status status = vq_file_write(path, text, strlen(text));
    free(text);
    return status;
}

/* Rank 0: one result from or into a file of its own, for other runs. */
static vq_status load_shared(vq_job *job, const char *dir, const char *label, const char *key,
                             vq_eval_result *r)
{
    char *path;
    VQ_TRY(vq_path_join(&job->run, dir, SHARED, &path));
    json_t *all = json_load_file(path, 0, NULL);
    const bool found = find_result(all, label, key, r);
    json_decref(all);
    VQ_CHECK(found, VQ_EFILE, "%s: no result %s of key %s: expected it. Delete the folder it is in",
             path, label, key);
    return VQ_OK;
}

static vq_status save_shared(vq_job *job, const char *label, const char *key,
                             const vq_eval_result *r)
{
    char *path;
    json_t *all = json_object();
    vq_status status = vq_job_path(job, &path, SHARED);
    if (!status) status = save_result(all, path, label, key, r);
    json_decref(all);
    return status;
}

/* The others have links to it. */
static void remove_shared(vq_job *job)
{
    char *path;
    if (vq_job_path(job, &path, SHARED) == VQ_OK) (void)unlink(path);
}

/* Evaluates, or takes what another run has found. */
static vq_status evaluate_shared(vq_job *job, const vq_stage *stage, vq_mode mode,
                                 const vq_data *data, const char *label, const vq_eval_kept *kept,
                                 const char *key_text, vq_eval_result *r)
{
    const bool is_leader = job->comm->rank == 0;
    vq_share share;
    char what[32];
    snprintf(what, sizeof what, "eval_%s", label);
    VQ_TRY(vq_share_begin(job, what, kept->key, SHARED, false, &share));
    vq_status status = VQ_OK;
    if (share.is_found) {
        if (is_leader) status = load_shared(job, share.dir, label, key_text, r);
    } else {
        status = vq_evaluate(job, stage, mode, &data->eval, label, kept, r);
        if (!status && share.dir && is_leader) status = save_shared(job, label, key_text, r);
    }
    status = vq_share_end(&share, vq_comm_agree(job->comm, status));
    if (share.dir && is_leader) remove_shared(job);
    return status;
}

vq_status vq_evaluate_once(vq_job *job, const vq_stage *stage, vq_mode mode, const vq_data *data,
                           const char *label, uint64_t key, bool share, vq_eval_result *r)
{
    const bool is_writer = job->comm->rank == 0;
    vq_eval_kept kept = {.key = vq_hash_u64(key, data->eval_hash)};
    char *path, key_text[24];
    VQ_TRY(vq_job_path(job, &path, "eval.json"));
    VQ_TRY(vq_job_path(job, &kept.path, "eval-%s.h5", label));
    snprintf(key_text, sizeof key_text, "%016" PRIx64, kept.key);
    json_t *all = is_writer ? json_load_file(path, 0, NULL) : NULL;
    if (!json_is_object(all)) {
        json_decref(all);
        all = json_object();
    }
    /* Rank 0 alone looks, so that ranks cannot see different files. */
    int64_t found = find_result(all, label, key_text, r);
    vq_tensor t = vq_tensor_1d(&found, VQ_I64, 1);
    vq_status status = vq_comm_broadcast(job->comm, &t, 0);
    if (!status && !found) {
        status = share ? evaluate_shared(job, stage, mode, data, label, &kept, key_text, r)
                       : vq_evaluate(job, stage, mode, &data->eval, label, &kept, r);
        if (!status)
            status = vq_comm_agree(job->comm,
                                   is_writer ? save_result(all, path, label, key_text, r) : VQ_OK);
        if (!status && is_writer) (void)unlink(kept.path);
    }
    json_decref(all);
    return status;
}
