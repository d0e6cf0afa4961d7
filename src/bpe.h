/* bpe.h - byte-pair encoding of one piece of text: characters to ids, then merges by rank.
 *
 * The merges run over a linked list with a heap of candidates, so a piece of n characters costs
 * n log n, however long it is. Equal ranks go from left to right. */
#pragma once
#include "arena.h"

typedef struct vq_bpe_token {
    const char *text;
    uint32_t n_bytes;
    int32_t id;
} vq_bpe_token;

typedef struct vq_bpe_merge {
    int32_t left, right;
    int32_t rank, id; /* rank < 0: an empty slot */
} vq_bpe_merge;

typedef struct vq_bpe {
    vq_bpe_token *tokens; /* hash table of n_slots, text NULL where empty */
    vq_bpe_merge *merges; /* hash table */
    int64_t token_mask, merge_mask;
    int64_t n_tokens;
    int32_t max_id;
    /* What a tokenizer.json says of its model; texts are "" where there is none. */
    const char *prefix; /* before every character but the first of a piece */
    const char *suffix; /* after the last character of a piece */
    int32_t unk_id;     /* -1: characters that are not there are left out */
    bool fuse_unk;      /* a run of unknown characters is one unk_id */
    bool byte_fallback; /* unknown characters become <0x00> to <0xFF> where these are there */
    bool whole_first;   /* a piece that is a token needs no merges */
    int32_t byte_id[256];
} vq_bpe;

/* Room for that many tokens and merges. Fails: VQ_EMEM. */
vq_status vq_bpe_init(vq_bpe *b, vq_arena *arena, int64_t n_tokens, int64_t n_merges);

/* Adds a token, or gives one that is there a new id. text must live as long as b; id >= 0. */
void vq_bpe_put(vq_bpe *b, const char *text, size_t n_bytes, int32_t id);

/* Looks up <0x00> to <0xFF>: after the last vq_bpe_put where byte_fallback is set. */
void vq_bpe_set_fallback(vq_bpe *b);

/* The id of a token, -1 if there is none. */
int32_t vq_bpe_find(const vq_bpe *b, const char *text, size_t n_bytes);

/* left followed by right becomes id, before all merges of a higher rank. */
void vq_bpe_put_merge(vq_bpe *b, int32_t left, int32_t right, int32_t rank, int32_t id);

/* Memory that encoding uses again and again; all zero but the arena at the start. */
typedef struct vq_bpe_work {
    vq_arena *arena; /* grows in here */
    struct vq_bpe_symbol *symbols;
    struct vq_bpe_candidate *heap;
    int32_t *ids; /* what vq_bpe_encode found */
    int64_t n_ids, capacity;
} vq_bpe_work;

/* The ids of one piece, valid UTF-8, into work->ids.
 * Fails: VQ_EMEM, VQ_EUNSUPPORTED (a piece of more than 2^29 bytes). Local. */
vq_status vq_bpe_encode(const vq_bpe *b, vq_bpe_work *work, const char *text, size_t n_bytes);
