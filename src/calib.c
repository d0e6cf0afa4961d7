/* calib - texts joined, tokenized, and cut into windows. */
#include "calib.h"

#include <string.h>

#include "error.h"
#include "fileio.h"
#include "log.h"
#include "rng.h"

#define C4_EVAL_DOCUMENTS 1100
#define C4_EVAL_WINDOWS 256

static vq_status new_windows(vq_arena *arena, int64_t n, int64_t T, vq_windows *w)
{
    VQ_CHECK(n > 0 && T > 0 && n <= INT64_MAX / T, VQ_EUSAGE,
             "nsamples = %lld, seqlen = %lld: expected positive numbers of windows that fit into "
             "memory. Choose smaller ones",
             (long long)n, (long long)T);
    *w = (vq_windows){.n = n, .T = T};
    VQ_TRY(VQ_NEW(arena, n * T, &w->ids));
    VQ_TRY(VQ_NEW(arena, n, &w->document));
    return VQ_NEW(arena, n, &w->offset);
}

static void put_window(vq_windows *w, int64_t i, const int32_t *ids, int64_t document,
                       int64_t offset)
{
    memcpy(w->ids + i * w->T, ids + offset, (size_t)w->T * sizeof *ids);
    w->document[i] = document;
    w->offset[i] = offset;
}

/* How documents become one text. */
typedef struct joining {
    const char *separator;
    bool cut_lines;  /* a document that is a file is a row a line */
    bool keep_lines; /* such a row keeps its line end, unless it is blank */
    int64_t most;    /* documents, 0 = all */
} joining;

static const joining joinings[] = {
    [VQ_DATASET_STREAM] = {.separator = "\n\n"},
    [VQ_DATASET_WIKITEXT2] = {.separator = "\n\n", .cut_lines = true, .keep_lines = true},
    [VQ_DATASET_PTB] = {.separator = " ", .cut_lines = true},
    [VQ_DATASET_C4] = {.separator = " ", .most = C4_EVAL_DOCUMENTS}};

/* One row more. With to = NULL only the bytes are counted. */
static int64_t join_row(const joining *j, char *to, int64_t at, int64_t *n_rows, const char *row,
                        int64_t n)
{
    int64_t n_separator = (*n_rows)++ > 0 ? (int64_t)strlen(j->separator) : 0;
    if (to) {
        memcpy(to + at, j->separator, (size_t)n_separator);
        memcpy(to + at + n_separator, row, (size_t)n);
    }
    return at + n_separator + n;
}

/* What the reference's data sets make of a line: WikiText's rows keep the newline and blank ones
 * are empty; PTB's sentences are stripped. */
static void trim_row(const joining *j, const char **row, int64_t *n)
{
    const char *s = *row, *end = s + *n;
    while (s < end && strchr(" \t\r\n\v\f", *s)) s++;
    if (j->keep_lines && s < end) return;
    while (end > s && strchr(" \t\r\n\v\f", end[-1])) end--;
    *row = s;
    *n = end - s;
}

static int64_t join(const joining *j, const vq_text *text, char *to)
{
    int64_t n = 0, n_rows = 0, n_documents = j->most ? VQ_MIN(j->most, text->n) : text->n;
    for (int64_t i = 0; i < n_documents; i++) {
        const vq_document *d = &text->documents[i];
        if (!j->cut_lines || d->is_row) {
            n = join_row(j, to, n, &n_rows, d->data, d->n_bytes);
            continue;
        }
        const char *line = d->data, *end = line + d->n_bytes;
        while (line < end) {
            const char *newline = memchr(line, '\n', (size_t)(end - line)), *row = line;
            int64_t n_row = (newline ? newline + 1 : end) - line;
            line += n_row;
            trim_row(j, &row, &n_row);
            n = join_row(j, to, n, &n_rows, row, n_row);
        }
    }
    return n;
}

/* The joined text's ids. */
static vq_status tokenize(vq_arena *arena, vq_arena *scratch, const vq_tokenizer *tokenizer,
                          const vq_text *text, const joining *j, int32_t **ids, int64_t *count)
{
    size_t mark = vq_arena_mark(scratch);
    int64_t n = join(j, text, NULL);
    char *joined;
    VQ_TRY(VQ_NEW(scratch, n, &joined));
    join(j, text, joined);
    vq_status status =
        vq_tokenizer_encode(tokenizer, arena, scratch, joined, (size_t)n, ids, count);
    vq_arena_reset(scratch, mark);
    return status;
}

static vq_status stream_windows(vq_arena *arena, vq_arena *scratch, const vq_tokenizer *tokenizer,
                                const vq_text *text, int64_t nsamples, int64_t seqlen,
                                uint64_t seed, vq_windows *out)
{
    vq_py_random random;
    int32_t *ids;
    int64_t count;
    VQ_TRY(new_windows(arena, nsamples, seqlen, out));
    size_t mark = vq_arena_mark(arena);
    VQ_TRY(tokenize(arena, scratch, tokenizer, text, &joinings[VQ_DATASET_STREAM], &ids, &count));
    VQ_CHECK(count > seqlen, VQ_EFILE,
             "%s: the text has %lld tokens, expected more than seqlen = %lld. Give a longer text, "
             "or lower --seqlen",
             text->documents[0].path, (long long)count, (long long)seqlen);
    if (count < nsamples * seqlen / 2)
        vq_log(VQ_LOG_WARN,
               "%s: %lld tokens are few for %lld windows of %lld, which overlap: a longer text "
               "calibrates better",
               text->documents[0].path, (long long)count, (long long)nsamples, (long long)seqlen);
    vq_py_random_seed(&random, seed);
    for (int64_t i = 0; i < nsamples; i++)
        put_window(out, i, ids, 0, vq_py_randint(&random, 0, count - seqlen - 1));
    vq_arena_reset(arena, mark);
    return VQ_OK;
}

static vq_status document_windows(vq_arena *arena, vq_arena *scratch, const vq_tokenizer *tokenizer,
                                  const vq_text *text, int64_t nsamples, int64_t seqlen,
                                  uint64_t seed, vq_windows *out)
{
    vq_py_random random;
    int64_t n_short = 0, longest = 0;
    bool *is_short;
    VQ_TRY(new_windows(arena, nsamples, seqlen, out));
    size_t scratch_mark = vq_arena_mark(scratch);
    VQ_TRY(VQ_NEW(scratch, text->n, &is_short));
    memset(is_short, 0, (size_t)text->n * sizeof *is_short);
    vq_py_random_seed(&random, seed);
    for (int64_t i = 0; i < nsamples;) {
        int64_t k = vq_py_randint(&random, 0, text->n - 1), count;
        const vq_document *d = &text->documents[k];
        if (is_short[k]) continue;
        int32_t *ids;
        size_t mark = vq_arena_mark(arena);
        VQ_TRY(vq_tokenizer_encode(tokenizer, arena, scratch, d->data, (size_t)d->n_bytes, &ids,
                                   &count));
        if (count > seqlen) {
            put_window(out, i++, ids, k, vq_py_randint(&random, 0, count - seqlen - 1));
        } else {
            is_short[k] = true;
            n_short++;
            longest = VQ_MAX(longest, count);
        }
        vq_arena_reset(arena, mark);
        VQ_CHECK(n_short < text->n, VQ_EFILE,
                 "%s: the longest of %lld documents has %lld tokens, expected more than seqlen = "
                 "%lld. Give longer documents, lower --seqlen, or use --calib.mode wikitext2, "
                 "which joins them",
                 d->path, (long long)text->n, (long long)longest, (long long)seqlen);
    }
    vq_arena_reset(scratch, scratch_mark);
    return VQ_OK;
}

vq_status vq_calib_windows(vq_arena *arena, vq_arena *scratch, const vq_tokenizer *tokenizer,
                           const vq_text *text, vq_calib_mode mode, int64_t nsamples,
                           int64_t seqlen, uint64_t seed, vq_windows *out)
{
    VQ_ASSERT(text->n > 0);
    return mode == VQ_CALIB_C4
               ? document_windows(arena, scratch, tokenizer, text, nsamples, seqlen, seed, out)
               : stream_windows(arena, scratch, tokenizer, text, nsamples, seqlen, seed, out);
}

vq_status vq_eval_windows(vq_arena *arena, vq_arena *scratch, const vq_tokenizer *tokenizer,
                          const vq_text *text, vq_dataset dataset, int64_t seqlen,
                          int64_t max_windows, vq_windows *out)
{
    int32_t *ids;
    int64_t count;
    VQ_ASSERT(text->n > 0 && (int)dataset < VQ_COUNT(joinings));
    VQ_TRY(tokenize(arena, scratch, tokenizer, text, &joinings[dataset], &ids, &count));
    int64_t n = seqlen > 0 ? count / seqlen : 0;
    if (dataset == VQ_DATASET_C4) n = VQ_MIN(n, C4_EVAL_WINDOWS);
    if (max_windows > 0) n = VQ_MIN(n, max_windows);
    VQ_CHECK(
        n > 0, VQ_EFILE,
        "%s: %lld tokens to evaluate on, expected at least seqlen = %lld. Give a longer text, or "
        "lower the sequence length",
        text->documents[0].path, (long long)count, (long long)seqlen);
    /* Whole windows from the start: the ids lie as they should. */
    *out = (vq_windows){.n = n, .T = seqlen, .ids = ids};
    VQ_TRY(VQ_NEW(arena, n, &out->document));
    VQ_TRY(VQ_NEW(arena, n, &out->offset));
    for (int64_t i = 0; i < n; i++) {
        out->document[i] = 0;
        out->offset[i] = i * seqlen;
    }
    return VQ_OK;
}

uint64_t vq_windows_hash(const vq_windows *w)
{
    uint64_t h = vq_hash_u64(vq_hash_u64(VQ_HASH_START, (uint64_t)w->n), (uint64_t)w->T);
    return vq_hash_bytes(h, w->ids, (size_t)(w->n * w->T) * sizeof *w->ids);
}
