/* added.h - added tokens: found in the text before anything else, whole, and with their own ids. */
#pragma once
#include "arena.h"

typedef struct vq_added_token {
    const char *content;
    size_t n_bytes;
    int32_t id;
    bool single_word;    /* only where no word character is next to it */
    bool lstrip, rstrip; /* takes the white space before, behind it along */
    bool normalized;     /* looked for after the normalizer ran, not before */
} vq_added_token;

typedef struct vq_added_set {
    vq_added_token *tokens; /* room for `capacity` */
    int64_t n, capacity;
} vq_added_set;

/* Strings to look for: a node a byte, children in a list. */
typedef struct vq_added_trie {
    struct vq_added_node *nodes;
    bool starts[256]; /* the first bytes that occur */
} vq_added_trie;

/* A trie of n strings, texts[i] standing for tokens[i]; of equal strings the last counts, and
 * empty ones are left out. Fails: VQ_EMEM. */
vq_status vq_added_trie_make(vq_arena *arena, const char *const *texts, const size_t *n_bytes,
                             const vq_added_token *const *tokens, int64_t n, vq_added_trie *out);

/* The next token in text at or after *from, the leftmost, of those the longest; *from is moved
 * behind it. [*start, *end) is the token with the white space it takes along, before it back to
 * `done` at most. White space that one token took can be part of the next one, so *start may be
 * before done, as in Hugging Face's tokenizers. Returns NULL if there is none. */
const vq_added_token *vq_added_next(const vq_added_trie *trie, const char *text, size_t n,
                                    size_t done, size_t *from, size_t *start, size_t *end);
