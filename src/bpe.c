/* bpe - vocabulary and merges as hash tables, and the merge loop. */
#include "bpe.h"

#include <stdio.h>
#include <string.h>

#include "error.h"
#include "fileio.h"
#include "utf8.h"

#define PIECE_MAX_BYTES ((size_t)1 << 29)

typedef struct vq_bpe_symbol {
    int32_t id; /* -1: merged into the one before it */
    int32_t previous, next;
} symbol;

typedef struct vq_bpe_candidate {
    uint64_t order; /* rank, then place */
    int32_t id;
} candidate;

static int64_t slots_for(int64_t n)
{
    int64_t slots = 16;
    while (slots < 2 * n) slots *= 2;
    return slots;
}

vq_status vq_bpe_init(vq_bpe *b, vq_arena *arena, int64_t n_tokens, int64_t n_merges)
{
    int64_t token_slots = slots_for(n_tokens), merge_slots = slots_for(n_merges);
    *b = (vq_bpe){.prefix = "",
                  .suffix = "",
                  .unk_id = -1,
                  .max_id = -1,
                  .token_mask = token_slots - 1,
                  .merge_mask = merge_slots - 1};
    VQ_TRY(VQ_NEW(arena, token_slots, &b->tokens));
    VQ_TRY(VQ_NEW(arena, merge_slots, &b->merges));
    memset(b->tokens, 0, (size_t)token_slots * sizeof *b->tokens);
    for (int64_t i = 0; i < merge_slots; i++) b->merges[i].rank = -1;
    return VQ_OK;
}

static vq_bpe_token *token_slot(const vq_bpe *b, const char *text, size_t n)
{
    uint64_t i = vq_hash_bytes(VQ_HASH_START, text, n);
    for (;; i++) {
        vq_bpe_token *t = &b->tokens[i & (uint64_t)b->token_mask];
        if (!t->text || (t->n_bytes == n && memcmp(t->text, text, n) == 0)) return t;
    }
}

void vq_bpe_put(vq_bpe *b, const char *text, size_t n_bytes, int32_t id)
{
    vq_bpe_token *t = token_slot(b, text, n_bytes);
    if (!t->text) b->n_tokens++;
    *t = (vq_bpe_token){text, (uint32_t)n_bytes, id};
    b->max_id = VQ_MAX(b->max_id, id);
}

int32_t vq_bpe_find(const vq_bpe *b, const char *text, size_t n_bytes)
{
    const vq_bpe_token *t = token_slot(b, text, n_bytes);
    return t->text ? t->id : -1;
}

void vq_bpe_set_fallback(vq_bpe *b)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[8];
        int n = snprintf(name, sizeof name, "<0x%02X>", byte);
        b->byte_id[byte] = vq_bpe_find(b, name, (size_t)n);
    }
}

static vq_bpe_merge *merge_slot(const vq_bpe *b, int32_t left, int32_t right)
{
    uint64_t i = (((uint64_t)(uint32_t)left << 32) | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    for (i >>= 24;; i++) {
        vq_bpe_merge *m = &b->merges[i & (uint64_t)b->merge_mask];
        if (m->rank < 0 || (m->left == left && m->right == right)) return m;
    }
}

void vq_bpe_put_merge(vq_bpe *b, int32_t left, int32_t right, int32_t rank, int32_t id)
{
    *merge_slot(b, left, right) = (vq_bpe_merge){left, right, rank, id};
}

/* Room for n symbols. */
static vq_status reserve(vq_bpe_work *w, int64_t n)
{
    if (n <= w->capacity) return VQ_OK;
    n = VQ_MAX(VQ_MAX(n, 2 * w->capacity), 256);
    VQ_TRY(VQ_NEW(w->arena, n, &w->symbols));
    VQ_TRY(VQ_NEW(w->arena, n, &w->ids));
    /* A candidate for each pair of neighbours; a merge takes one out and puts at most two in. */
    VQ_TRY(VQ_NEW(w->arena, 2 * n, &w->heap));
    w->capacity = n;
    return VQ_OK;
}

static int64_t push(candidate *heap, int64_t n, candidate c)
{
    int64_t i = n;
    for (; i > 0 && c.order < heap[(i - 1) / 2].order; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = c;
    return n + 1;
}

/* Takes heap[0] out of n candidates. */
static int64_t pop(candidate *heap, int64_t n)
{
    candidate last = heap[--n];
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1].order < heap[child].order) child++;
        if (last.order <= heap[child].order) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return n;
}

/* Adds the merge of the symbols at place and after it, if there is one. */
static int64_t propose(const vq_bpe *b, const vq_bpe_work *w, int64_t n_heap, int32_t place)
{
    const symbol *s = &w->symbols[place];
    const vq_bpe_merge *m = merge_slot(b, s->id, w->symbols[s->next].id);
    if (m->rank < 0) return n_heap;
    return push(w->heap, n_heap,
                (candidate){(uint64_t)(uint32_t)m->rank << 32 | (uint32_t)place, m->id});
}

static void merge_all(const vq_bpe *b, vq_bpe_work *w, int32_t n)
{
    symbol *s = w->symbols;
    int64_t n_heap = 0;
    for (int32_t i = 0; i + 1 < n; i++) n_heap = propose(b, w, n_heap, i);
    while (n_heap > 0) {
        int32_t place = (int32_t)(uint32_t)w->heap[0].order, id = w->heap[0].id;
        n_heap = pop(w->heap, n_heap);
        int32_t right = s[place].next;
        if (s[place].id < 0 || right < 0) continue;
        /* The pair may be another one by now. What counts is what it would become: two pairs
         * with one result share their place in the queue, as in Hugging Face's tokenizers. */
        const vq_bpe_merge *m = merge_slot(b, s[place].id, s[right].id);
        if (m->rank < 0 || m->id != id) continue;
        s[place].id = id;
        s[place].next = s[right].next;
        s[right].id = -1;
        if (s[place].next >= 0) {
            s[s[place].next].previous = place;
            n_heap = propose(b, w, n_heap, place);
        }
        if (s[place].previous >= 0) n_heap = propose(b, w, n_heap, s[place].previous);
    }
}

/* The id of the character text[i, i + n_char) of a piece, with the model's prefix and suffix. */
static int32_t find_character(const vq_bpe *b, const char *text, size_t n, size_t i, size_t n_char)
{
    const char *prefix = i > 0 ? b->prefix : "", *suffix = i + n_char == n ? b->suffix : "";
    if (!*prefix && !*suffix) return vq_bpe_find(b, text + i, n_char);
    char name[128];
    int n_name = snprintf(name, sizeof name, "%s%.*s%s", prefix, (int)n_char, text + i, suffix);
    return n_name < (int)sizeof name ? vq_bpe_find(b, name, (size_t)n_name) : -1;
}

/* Writes the byte tokens of a character. Returns how many, 0 where one of them is missing. */
static int32_t fall_back(const vq_bpe *b, const char *text, size_t n_char, int32_t *ids)
{
    for (size_t i = 0; i < n_char; i++) {
        ids[i] = b->byte_id[(uint8_t)text[i]];
        if (ids[i] < 0) return 0;
    }
    return (int32_t)n_char;
}

static int64_t count_characters(const char *text, size_t n)
{
    int64_t count = 0;
    for (size_t i = 0; i < n; i++) count += ((uint8_t)text[i] & 0xc0) != 0x80;
    return count;
}

vq_status vq_bpe_encode(const vq_bpe *b, vq_bpe_work *w, const char *text, size_t n_bytes)
{
    VQ_CHECK(n_bytes <= PIECE_MAX_BYTES, VQ_EUNSUPPORTED,
             "text: a piece of %zu bytes without a place to split it, expected at most %zu. Break "
             "the text into documents",
             n_bytes, PIECE_MAX_BYTES);
    VQ_TRY(
        reserve(w, b->byte_fallback ? (int64_t)n_bytes + 1 : count_characters(text, n_bytes) + 1));
    w->n_ids = 0;
    if (b->whole_first) {
        int32_t whole = vq_bpe_find(b, text, n_bytes);
        if (whole >= 0) {
            w->ids[w->n_ids++] = whole;
            return VQ_OK;
        }
    }
    int32_t n = 0;
    bool unknown = false; /* an unk_id is still to be written */
    for (size_t i = 0, n_char; i < n_bytes; i += n_char) {
        vq_utf8_decode(text + i, n_bytes - i, &n_char);
        int32_t id = find_character(b, text, n_bytes, i, n_char), bytes[4], n_fallback;
        if (id >= 0) {
            if (unknown) w->symbols[n++].id = b->unk_id;
            unknown = false;
            w->symbols[n++].id = id;
        } else if (b->byte_fallback && (n_fallback = fall_back(b, text + i, n_char, bytes)) > 0) {
            for (int32_t k = 0; k < n_fallback; k++) w->symbols[n++].id = bytes[k];
        } else if (b->unk_id >= 0) {
            if (unknown && !b->fuse_unk) w->symbols[n++].id = b->unk_id;
            unknown = true;
        }
    }
    if (unknown) w->symbols[n++].id = b->unk_id;
    for (int32_t i = 0; i < n; i++) {
        w->symbols[i].previous = i - 1;
        w->symbols[i].next = i + 1 < n ? i + 1 : -1;
    }
    merge_all(b, w, n);
    for (int32_t i = 0; n > 0 && i >= 0; i = w->symbols[i].next)
        w->ids[w->n_ids++] = w->symbols[i].id;
    return VQ_OK;
}
