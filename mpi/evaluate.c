/* evaluate - windows through the model, and what is known already. */
#include "evaluate.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "log.h"

#define BATCH_TOKENS                                                                               \
    2048 /* windows of fewer tokens go together: each weight is made once for all */

/* Sum of the next-token losses of `count` windows, by window. */
static vq_status run_batch(vq_job *job, const vq_stage *stage, vq_mode mode, const vq_windows *w,
                           int64_t first, int64_t count, double *loss)
{
    const vq_backend *be = &job->be;
    const int64_t T = w->T, E = vq_stage_out_width(stage);
    const vq_tensor ids = vq_feed_ids(w, first, count);
    size_t mark = vq_arena_mark(&job->step);
    vq_tensor hidden, targets;
    int32_t *target;
    VQ_TRY(vq_tensor_new(&job->step, be->place, be->act, VQ_DIMS(count * T, E), &hidden));
    VQ_TRY(vq_tensor_new(&job->step, be->place, VQ_I32, VQ_DIMS(T - 1), &targets));
    VQ_TRY(vq_stage_fwd(stage, mode, &ids, &hidden, NULL));
    for (int64_t i = 0; i < count; i++) {
        const vq_tensor rows = vq_tensor_rows(&hidden, i * T, T - 1);
        target = w->ids + (first + i) * T + 1;
        VQ_TRY(vq_upload(be, &targets, target));
        loss[i] = 0;
        VQ_TRY(vq_head_nll(be, &loss[i], NULL, &rows, &stage->model->head, &targets, 1));
        VQ_CHECK(isfinite(loss[i]), VQ_ENOTFINITE,
                 "%s: window %lld of the evaluation has the loss %g in mode %s: expected a finite "
                 "number. Check the weights",
                 stage->model->dir, (long long)(first + i), loss[i], vq_mode_name(mode));
    }
    vq_arena_reset(&job->step, mark);
    return VQ_OK;
}

vq_status vq_evaluate(vq_job *job, const vq_stage *stage, vq_mode mode, const vq_windows *w,
                      const char *label, vq_eval_result *r)
{
    const int64_t batch = VQ_MAX(1, BATCH_TOKENS / w->T);
    const double start_s = vq_seconds();
    double total = 0, *loss;
    size_t mark = vq_arena_mark(&job->step);
    VQ_TRY(VQ_NEW(&job->step, batch, &loss));
    vq_progress p;
    vq_progress_begin(&p, "eval", "windows", 0, w->n);
    for (int64_t i = 0; i < w->n; i += batch) {
        const int64_t count = VQ_MIN(batch, w->n - i);
        VQ_TRY(run_batch(job, stage, mode, w, i, count, loss));
        for (int64_t j = 0; j < count; j++) total += loss[j];
        vq_progress_step(&p, i + count, "%s", label);
    }
    vq_arena_reset(&job->step, mark);
    *r = (vq_eval_result){.perplexity = exp(total / (double)(w->n * (w->T - 1))),
                          .windows = w->n,
                          .tokens = w->n * w->T,
                          .seconds = vq_seconds() - start_s};
    vq_progress_step(&p, w->n, "%s perplexity %.4g", label, r->perplexity);
    vq_progress_end(&p);
    return VQ_OK;
}

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

vq_status vq_evaluate_once(vq_job *job, const vq_stage *stage, vq_mode mode, const vq_data *data,
                           const char *label, uint64_t key, vq_eval_result *r)
{
    char *path, key_text[24];
    VQ_TRY(vq_job_path(job, &path, "eval.json"));
    snprintf(key_text, sizeof key_text, "%016" PRIx64, vq_hash_u64(key, data->eval_hash));
    json_t *all = json_load_file(path, 0, NULL);
    if (!json_is_object(all)) {
        json_decref(all);
        all = json_object();
    }
    vq_status status = VQ_OK;
    if (!find_result(all, label, key_text, r)) {
        status = vq_evaluate(job, stage, mode, &data->eval, label, r);
        if (!status) status = save_result(all, path, label, key_text, r);
    }
    json_decref(all);
    return status;
}
