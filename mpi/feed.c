/* feed - texts to token windows, and windows to steps. */
#include "feed.h"

#include "error.h"
#include "log.h"
#include "share.h"
#include "tokenizer_files.h"

#define HOLD_OUT 0.1
#define KIND "tokens"
#define LAYOUT 1

vq_tensor vq_feed_ids(const vq_windows *w, int64_t first, int64_t count)
{
    return vq_tensor_2d(w->ids + first * w->T, VQ_I32, count, w->T);
}

static vq_status read_text(vq_job *job, const vq_list *paths, vq_text *text)
{
    return vq_text_read(&job->step, &job->scratch, paths->item, paths->n, text);
}

/* A wrong tokenizer is found here, before anything is made from its ids. */
static vq_status check_ids(const vq_job *job, const vq_windows *w)
{
    const int64_t V = job->model.config.V;
    for (int64_t i = 0; i < w->n * w->T; i++)
        VQ_CHECK(w->ids[i] >= 0 && w->ids[i] < V, VQ_EFILE,
                 "%s: its tokenizer makes id %d of the text, expected 0 to %lld, the model's "
                 "vocabulary. Use the tokenizer files that came with the weights",
                 job->model.dir, w->ids[i], (long long)V - 1);
    return VQ_OK;
}

static vq_status eval_windows(vq_job *job, const vq_tokenizer *tokenizer, const vq_text *text,
                              vq_data *data)
{
    const vq_config *c = job->config;
    VQ_TRY(vq_eval_windows(&job->run, &job->scratch, tokenizer, text, c->eval.dataset,
                           vq_config_eval_seqlen(c), c->eval.max_windows, &data->eval));
    VQ_TRY(check_ids(job, &data->eval));
    data->eval_hash = vq_windows_hash(&data->eval);
    return VQ_OK;
}

/* Whether an evaluation text is cut from the calibration text. */
static bool holds_out(const vq_config *c)
{
    return c->eval.run && c->eval.text.n == 0;
}

/* What tokens.h5 depends on: settings, model, tokenizer, and the texts' names and sizes. */
static vq_status tokens_key(vq_job *job, uint64_t *key)
{
    const vq_config *c = job->config;
    uint64_t h = vq_config_phase_hash(c, VQ_PHASE_TOKENS);
    h = vq_hash_u64(h, job->model.fingerprint);
    VQ_TRY(vq_tokenizer_hash(h, &job->scratch, job->model.dir, &h));
    h = vq_hash_u64(h, holds_out(c));
    for (int i = 0; i < c->text.n; i++) VQ_TRY(vq_hash_path(h, &job->scratch, c->text.item[i], &h));
    *key = h;
    return VQ_OK;
}

static vq_status write_windows(vq_job *job, const char *path, uint64_t key, const vq_windows *w)
{
    vq_h5 h;
    VQ_TRY(vq_h5_create(&job->run, path, KIND, LAYOUT, &h));
    const vq_tensor ids = vq_tensor_2d(w->ids, VQ_I32, w->n, w->T);
    const vq_tensor document = vq_tensor_1d(w->document, VQ_I64, w->n);
    const vq_tensor offset = vq_tensor_1d(w->offset, VQ_I64, w->n);
    vq_status status = vq_h5_set_u64(&h, NULL, "key", key);
    if (!status) status = vq_h5_set_text(&h, NULL, "model", job->model.dir);
    if (!status) status = vq_h5_write(&h, "ids", &ids);
    if (!status) status = vq_h5_write(&h, "document", &document);
    if (!status) status = vq_h5_write(&h, "offset", &offset);
    if (!status) return vq_h5_finish(&h);
    vq_h5_close(&h);
    return status;
}

static vq_status check_key(const vq_h5 *h, vq_job *job, uint64_t key)
{
    uint64_t found;
    char *model;
    VQ_TRY(vq_h5_get_u64(h, NULL, "key", &found));
    VQ_TRY(vq_h5_get_text(h, &job->run, NULL, "model", &model));
    VQ_CHECK(found == key, VQ_EFILE,
             "%s was made from another model or text: with model %s, now %s, or a text or the "
             "tokenizer has changed: expected the same. Choose another --out, or give --no-resume "
             "to start anew",
             h->path, model, job->model.dir);
    return VQ_OK;
}

static vq_status load(const vq_h5 *h, vq_job *job, vq_windows *w)
{
    vq_tensor ids, document, offset;
    char found[96];
    VQ_TRY(vq_h5_load(h, &job->run, "ids", &ids));
    VQ_TRY(vq_h5_load(h, &job->run, "document", &document));
    VQ_TRY(vq_h5_load(h, &job->run, "offset", &offset));
    VQ_CHECK(ids.dtype == VQ_I32 && ids.ndim == 2, VQ_EFILE,
             "%s: \"ids\" is %s: expected i32 [n, T]. Delete the file and run again", h->path,
             vq_tensor_text(&ids, found));
    *w = (vq_windows){ids.dim[0], ids.dim[1], ids.data, document.data, offset.data};
    return VQ_OK;
}

/* key NULL: the file is taken as it is. */
static vq_status read_windows(vq_job *job, const char *path, const uint64_t *key, vq_windows *w)
{
    vq_h5 h;
    VQ_TRY(vq_h5_open(&job->run, path, KIND, LAYOUT, &h));
    vq_status status = key ? check_key(&h, job, *key) : VQ_OK;
    if (!status) status = load(&h, job, w);
    vq_h5_close(&h);
    return status;
}

static vq_status make_windows(vq_job *job, const vq_tokenizer *tokenizer, const vq_text *text,
                              vq_windows *w)
{
    const vq_config *c = job->config;
    VQ_TRY(vq_calib_windows(&job->run, &job->scratch, tokenizer, text, c->calib.mode, c->nsamples,
                            c->seqlen, (uint64_t)c->seed, w));
    return check_ids(job, w);
}

static vq_status prepare(vq_job *job, const vq_tokenizer *tokenizer, vq_data *data)
{
    const vq_config *c = job->config;
    char *path;
    uint64_t key;
    vq_text text = {0}, calib_text, eval_text;
    VQ_TRY(vq_job_path(job, &path, "tokens.h5"));
    VQ_TRY(tokens_key(job, &key));
    const bool have = vq_file_exists(path);
    if (!have || holds_out(c)) VQ_TRY(read_text(job, &c->text, &text));
    calib_text = text;
    if (holds_out(c)) {
        VQ_TRY(vq_text_hold_out(&job->step, &text, HOLD_OUT, &calib_text, &eval_text));
        vq_log(VQ_LOG_INFO,
               "eval     no --eval-text: the last tenth of the text is held out for it");
    } else if (c->eval.run) {
        VQ_TRY(read_text(job, &c->eval.text, &eval_text));
    }
    if (c->eval.run) VQ_TRY(eval_windows(job, tokenizer, &eval_text, data));
    if (have) {
        VQ_TRY(read_windows(job, path, &key, &data->calib));
    } else {
        VQ_TRY(make_windows(job, tokenizer, &calib_text, &data->calib));
        VQ_TRY(write_windows(job, path, key, &data->calib));
    }
    vq_log(VQ_LOG_INFO, "tokens   %lld windows of %lld to calibrate on%s (%s)",
           (long long)data->calib.n, (long long)data->calib.T, have ? ", from tokens.h5" : "",
           vq_tokenizer_kind(tokenizer));
    data->calib_hash = vq_windows_hash(&data->calib);
    return VQ_OK;
}

/* Runs f with the model's tokenizer; texts lie in the step arena meanwhile. */
static vq_status with_tokenizer(vq_job *job, const vq_list *paths, vq_data *data,
                                vq_status (*f)(vq_job *, const vq_tokenizer *, const vq_list *,
                                               vq_data *))
{
    size_t mark = vq_arena_mark(&job->step);
    vq_tokenizer *tokenizer;
    VQ_TRY(vq_tokenizer_open(&job->step, job->model.dir, &tokenizer));
    vq_status status = f(job, tokenizer, paths, data);
    vq_tokenizer_close(tokenizer);
    vq_arena_reset(&job->step, mark);
    vq_arena_trim(&job->step);
    return status;
}

static vq_status do_prepare(vq_job *job, const vq_tokenizer *t, const vq_list *paths, vq_data *data)
{
    (void)paths;
    return prepare(job, t, data);
}

static vq_status do_eval(vq_job *job, const vq_tokenizer *t, const vq_list *paths, vq_data *data)
{
    vq_text text;
    VQ_TRY(read_text(job, paths, &text));
    return eval_windows(job, t, &text, data);
}

static vq_status do_read(vq_job *job, const vq_tokenizer *t, const vq_list *paths, vq_data *data)
{
    char *path;
    (void)t, (void)paths;
    VQ_TRY(vq_job_path(job, &path, "tokens.h5"));
    VQ_TRY(read_windows(job, path, NULL, &data->calib));
    data->calib_hash = vq_windows_hash(&data->calib);
    return VQ_OK;
}

static vq_status do_windows(vq_job *job, const vq_tokenizer *t, const vq_list *paths, vq_data *data)
{
    vq_text text;
    VQ_TRY(read_text(job, paths, &text));
    return make_windows(job, t, &text, &data->calib);
}

/* Rank 0 works with the tokenizer; then all ranks know the sizes. */
static vq_status on_rank_0(vq_job *job, const vq_list *paths, vq_data *data,
                           vq_status (*f)(vq_job *, const vq_tokenizer *, const vq_list *,
                                          vq_data *))
{
    vq_status status = VQ_OK;
    *data = (vq_data){0};
    vq_comm_at(job->comm, "tokens");
    if (job->comm->rank == 0) status = with_tokenizer(job, paths, data, f);
    VQ_TRY(vq_comm_agree(job->comm, status));
    int64_t sizes[] = {data->calib.n,
                       data->calib.T,
                       data->eval.n,
                       data->eval.T,
                       (int64_t)data->calib_hash,
                       (int64_t)data->eval_hash};
    vq_tensor t = vq_tensor_1d(sizes, VQ_I64, VQ_COUNT(sizes));
    VQ_TRY(vq_comm_broadcast(job->comm, &t, 0));
    data->calib.n = sizes[0];
    data->calib.T = sizes[1];
    data->eval.n = sizes[2];
    data->eval.T = sizes[3];
    data->calib_hash = (uint64_t)sizes[4];
    data->eval_hash = (uint64_t)sizes[5];
    return VQ_OK;
}

vq_status vq_feed_prepare(vq_job *job, vq_data *data)
{
    vq_share share;
    uint64_t key = 0;
    VQ_TRY(vq_comm_agree(job->comm, job->comm->rank == 0 ? tokens_key(job, &key) : VQ_OK));
    VQ_TRY(vq_share_begin(job, KIND, key, KIND, true, &share));
    return vq_share_end(&share, on_rank_0(job, NULL, data, do_prepare));
}

vq_status vq_feed_read(vq_job *job, vq_data *data)
{
    return on_rank_0(job, NULL, data, do_read);
}

vq_status vq_feed_eval(vq_job *job, const vq_list *paths, vq_data *data)
{
    return on_rank_0(job, paths, data, do_eval);
}

static vq_status write_for_tokens(vq_job *job, const char *path, const vq_windows *windows)
{
    uint64_t key;
    if (job->comm->rank != 0) return VQ_OK;
    VQ_TRY(tokens_key(job, &key));
    return write_windows(job, path, key, windows);
}

vq_status vq_feed_write(vq_job *job, const char *path, vq_windows *windows)
{
    vq_data data;
    VQ_TRY(on_rank_0(job, &job->config->text, &data, do_windows));
    *windows = data.calib;
    return vq_comm_agree(job->comm, write_for_tokens(job, path, windows));
}
