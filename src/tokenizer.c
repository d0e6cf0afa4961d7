/* tokenizer - the way of a text through the parts, with a cache of the words met before. */
#include "tokenizer.h"

#include <string.h>

#include "error.h"
#include "fileio.h"
#include "spm_bridge.h"
#include "tokenizer_files.h"
#include "utf8.h"

#define CACHED_WORD_BYTES 48
#define CACHE_SLOTS_FIRST 256
#define CACHE_SLOTS_MOST ((int64_t)1 << 20)
#define POOL_BYTES ((size_t)64 << 10)
#define CHUNK_IDS 16384

typedef struct cached_word {
    const char *text; /* NULL: an empty slot */
    const int32_t *ids;
    uint64_t hash;
    uint32_t n_bytes, n_ids;
} cached_word;

typedef struct id_chunk {
    struct id_chunk *next;
    int64_t n;
    int32_t ids[CHUNK_IDS];
} id_chunk;

/* One text on its way. Everything lies in the scratch arena. */
typedef struct encoder {
    const vq_tokenizer *t;
    vq_arena *scratch;
    id_chunk *first, *last;
    int64_t n_ids;
    cached_word *cache;
    int64_t cache_slots, n_cached;
    char *pool; /* for the cache's words and ids */
    size_t pool_left;
    vq_buffer normal[2], characters;
    vq_pretoken_work pre;
    vq_bpe_work bpe;
} encoder;

vq_status vq_tokenizer_open(vq_arena *arena, const char *model_dir, vq_tokenizer **out)
{
    vq_tokenizer *t;
    VQ_TRY(VQ_NEW(arena, 1, &t));
    *t = (vq_tokenizer){0};
    vq_status status = vq_tokenizer_read_folder(arena, model_dir, t);
    if (status != VQ_OK) vq_tokenizer_release(t);
    *out = status == VQ_OK ? t : NULL;
    return status;
}

vq_status vq_tokenizer_parse(vq_arena *arena, const char *where, const char *json, size_t n_bytes,
                             vq_tokenizer **out)
{
    vq_tokenizer *t;
    VQ_TRY(VQ_NEW(arena, 1, &t));
    *t = (vq_tokenizer){0};
    vq_status status = vq_tokenizer_read_json(arena, where, json, n_bytes, t);
    if (status != VQ_OK) vq_tokenizer_release(t);
    *out = status == VQ_OK ? t : NULL;
    return status;
}

void vq_tokenizer_close(vq_tokenizer *t)
{
    if (t) vq_tokenizer_release(t);
}

const char *vq_tokenizer_kind(const vq_tokenizer *t)
{
    return t->kind;
}

static vq_status put_ids(encoder *e, const int32_t *ids, int64_t n)
{
    e->n_ids += n;
    while (n > 0) {
        if (!e->last || e->last->n == CHUNK_IDS) {
            id_chunk *chunk;
            VQ_TRY(VQ_NEW(e->scratch, 1, &chunk));
            chunk->next = NULL;
            chunk->n = 0;
            if (e->last)
                e->last->next = chunk;
            else
                e->first = chunk;
            e->last = chunk;
        }
        int64_t some = VQ_MIN(n, CHUNK_IDS - e->last->n);
        memcpy(e->last->ids + e->last->n, ids, (size_t)some * sizeof *ids);
        e->last->n += some;
        ids += some;
        n -= some;
    }
    return VQ_OK;
}

/* The ids of a word, valid until the next one. */
static vq_status find_ids(encoder *e, const char *word, size_t n, const int32_t **ids,
                          int64_t *n_ids)
{
#ifdef VQ_SENTENCEPIECE
    if (e->t->spm) {
        size_t count;
        VQ_CHECK(vq_spm_encode(e->t->spm, word, n, ids, &count) == 0, VQ_EMEM,
                 "text: libsentencepiece failed on a word of %zu bytes, expected it to have "
                 "memory for it. Break the text into documents",
                 n);
        *n_ids = (int64_t)count;
        return VQ_OK;
    }
#endif
    if (e->t->byte_level) {
        VQ_TRY(vq_buffer_reserve(&e->characters, e->scratch, 2 * n + 4));
        e->characters.n_bytes = 0;
        for (size_t i = 0; i < n; i++)
            e->characters.n_bytes +=
                vq_byte_character((uint8_t)word[i], e->characters.data + e->characters.n_bytes);
        word = e->characters.data;
        n = e->characters.n_bytes;
    }
    VQ_TRY(vq_bpe_encode(&e->t->bpe, &e->bpe, word, n));
    *ids = e->bpe.ids;
    *n_ids = e->bpe.n_ids;
    return VQ_OK;
}

static cached_word *cache_slot(const encoder *e, const char *word, size_t n, uint64_t hash)
{
    for (uint64_t i = hash;; i++) {
        cached_word *c = &e->cache[i & (uint64_t)(e->cache_slots - 1)];
        if (!c->text || (c->hash == hash && c->n_bytes == n && memcmp(c->text, word, n) == 0))
            return c;
    }
}

/* Doubles the cache when it is half full. */
static vq_status grow_cache(encoder *e)
{
    cached_word *old = e->cache;
    int64_t n_old = e->cache_slots;
    if (n_old && (2 * e->n_cached < n_old || n_old == CACHE_SLOTS_MOST)) return VQ_OK;
    e->cache_slots = n_old ? 2 * n_old : CACHE_SLOTS_FIRST;
    VQ_TRY(VQ_NEW(e->scratch, e->cache_slots, &e->cache));
    memset(e->cache, 0, (size_t)e->cache_slots * sizeof *e->cache);
    for (int64_t i = 0; i < n_old; i++)
        if (old[i].text) *cache_slot(e, old[i].text, old[i].n_bytes, old[i].hash) = old[i];
    return VQ_OK;
}

/* Copies a word and its ids where they stay. */
static vq_status keep(encoder *e, cached_word *slot, const char *word, size_t n, uint64_t hash,
                      const int32_t *ids, int64_t n_ids)
{
    size_t ids_bytes = (size_t)n_ids * sizeof *ids, bytes = ids_bytes + (n + 3) / 4 * 4;
    if (bytes > POOL_BYTES) return VQ_OK;
    if (bytes > e->pool_left) {
        VQ_TRY(VQ_NEW(e->scratch, (int64_t)POOL_BYTES, &e->pool));
        e->pool_left = POOL_BYTES;
    }
    char *copy = e->pool;
    if (n_ids) memcpy(copy, ids, ids_bytes);
    memcpy(copy + ids_bytes, word, n);
    e->pool += bytes;
    e->pool_left -= bytes;
    *slot = (cached_word){copy + ids_bytes, (const int32_t *)(const void *)copy, hash, (uint32_t)n,
                          (uint32_t)n_ids};
    e->n_cached++;
    return VQ_OK;
}

static vq_status encode_word(encoder *e, const char *word, size_t n)
{
    const int32_t *ids;
    int64_t n_ids;
    if (n > CACHED_WORD_BYTES) {
        VQ_TRY(find_ids(e, word, n, &ids, &n_ids));
        return put_ids(e, ids, n_ids);
    }
    uint64_t hash = vq_hash_bytes(VQ_HASH_START, word, n);
    VQ_TRY(grow_cache(e));
    cached_word *slot = cache_slot(e, word, n, hash);
    if (slot->text) return put_ids(e, slot->ids, slot->n_ids);
    VQ_TRY(find_ids(e, word, n, &ids, &n_ids));
    if (2 * e->n_cached < e->cache_slots) VQ_TRY(keep(e, slot, word, n, hash, ids, n_ids));
    return put_ids(e, ids, n_ids);
}

/* A piece from the pre-tokenizer. Where no token goes on over a mark, the words between them are
 * encoded one by one: the same ids, and most words are in the cache. */
static vq_status encode_piece(void *context, const char *piece, size_t n)
{
    encoder *e = context;
    const size_t n_mark = strlen(VQ_SPACE_MARK);
    while (e->t->split_words) {
        size_t i = 0;
        while (n - i >= n_mark && memcmp(piece + i, VQ_SPACE_MARK, n_mark) == 0) i += n_mark;
        const char *next = memmem(piece + i, n - i, VQ_SPACE_MARK, n_mark);
        if (!next) break;
        VQ_TRY(encode_word(e, piece, (size_t)(next - piece)));
        n -= (size_t)(next - piece);
        piece = next;
    }
    return encode_word(e, piece, n);
}

/* The text between added tokens, after the normalizer. */
static vq_status encode_normal(encoder *e, const char *text, size_t n, bool is_start)
{
    size_t done = 0, from = 0, start, end;
    const vq_added_token *token;
    while ((token = vq_added_next(&e->t->after, text, n, done, &from, &start, &end))) {
        if (done < start)
            VQ_TRY(vq_pretokenize(&e->t->pre, &e->pre, text + done, start - done,
                                  is_start && done == 0));
        VQ_TRY(put_ids(e, &token->id, 1));
        done = end;
    }
    return vq_pretokenize(&e->t->pre, &e->pre, text + done, n - done, is_start && done == 0);
}

static vq_status encode_plain(encoder *e, const char *text, size_t n, bool is_start)
{
    VQ_TRY(vq_normalize(e->t->normal, e->t->n_normal, e->scratch, e->normal, text, n, &text, &n));
    return encode_normal(e, text, n, is_start);
}

static vq_status encode_text(encoder *e, const char *text, size_t n)
{
    size_t done = 0, from = 0, start, end;
    const vq_added_token *token;
    VQ_TRY(vq_utf8_repair(e->scratch, text, n, &text, &n));
    VQ_TRY(put_ids(e, e->t->prefix, e->t->n_prefix));
    while ((token = vq_added_next(&e->t->before, text, n, done, &from, &start, &end))) {
        if (done < start) VQ_TRY(encode_plain(e, text + done, start - done, done == 0));
        VQ_TRY(put_ids(e, &token->id, 1));
        done = end;
    }
    VQ_TRY(encode_plain(e, text + done, n - done, done == 0));
    return put_ids(e, e->t->suffix, e->t->n_suffix);
}

static vq_status collect(const encoder *e, vq_arena *arena, int32_t **ids, int64_t *count)
{
    *count = 0;
    VQ_TRY(VQ_NEW(arena, e->n_ids, ids));
    for (const id_chunk *c = e->first; c; c = c->next) {
        memcpy(*ids + *count, c->ids, (size_t)c->n * sizeof **ids);
        *count += c->n;
    }
    return VQ_OK;
}

vq_status vq_tokenizer_encode(const vq_tokenizer *t, vq_arena *arena, vq_arena *scratch,
                              const char *text, size_t n_bytes, int32_t **ids, int64_t *count)
{
    VQ_ASSERT(arena != scratch);
    size_t mark = vq_arena_mark(scratch);
    encoder *e;
    VQ_TRY(VQ_NEW(scratch, 1, &e));
    *e = (encoder){.t = t,
                   .scratch = scratch,
                   .pre = {.arena = scratch, .emit = encode_piece, .context = e},
                   .bpe = {.arena = scratch}};
    vq_status status = encode_text(e, text, n_bytes);
    if (status == VQ_OK) status = collect(e, arena, ids, count);
    vq_arena_reset(scratch, mark);
    return status;
}
