/* tokenizer_json.h - the parts of a tokenizer, and reading them from JSON. */
#pragma once
#include "added.h"
#include "bpe.h"
#include "normalize.h"
#include "pretokenize.h"

#define VQ_NORMAL_STEPS 16

/* What stands for a space in front of a word, and begins one: U+2581. */
#define VQ_SPACE_MARK "\xe2\x96\x81"

/* Text is cut at the added tokens that are looked for `before` the normalizer, the rest is
 * normalized, cut at those looked for `after` it, split by `pre`, and each piece goes through bpe
 * or spm. prefix and suffix are what the post-processor adds. */
typedef struct vq_tokenizer {
    vq_added_set added;
    vq_added_trie before, after;
    vq_normal_step normal[VQ_NORMAL_STEPS];
    int n_normal;
    vq_pretokenizer pre;
    bool byte_level;          /* bpe's characters stand for bytes, by GPT-2's table */
    vq_bpe bpe;               /* with spm only its tokens are used */
    struct vq_spm *spm;       /* NULL: bpe */
    bool split_words;         /* no token has a VQ_SPACE_MARK inside: pieces may be cut there */
    int32_t *prefix, *suffix; /* [n_prefix], [n_suffix] */
    int64_t n_prefix, n_suffix;
    int64_t vocab_size; /* until vq_reader_finish: without added tokens */
    const char *kind;
} vq_tokenizer;

/* A file that is being read into a tokenizer. */
typedef struct vq_reader {
    vq_arena *arena;
    const char *where; /* the file's name in messages */
    vq_tokenizer *t;
} vq_reader;

struct json_t;

/* All of these are local and fail with VQ_EFILE (malformed), VQ_EUNSUPPORTED (understood and not
 * supported; file, key, value and what is supported are named) and VQ_EMEM. */

/* A whole tokenizer.json but for vq_reader_finish. */
vq_status vq_reader_json(const vq_reader *r, const struct json_t *root);

/* What follows from the other parts, after the last of them is there. */
vq_status vq_reader_finish(const vq_reader *r);

/* A field that may be left out or null, which means fallback. */
vq_status vq_reader_bool(const vq_reader *r, const struct json_t *object, const char *name,
                         bool fallback, bool *out);

/* The tokens of a {"text": id} object, and room for n_merges. */
vq_status vq_reader_vocab(const vq_reader *r, struct json_t *vocab, size_t n_merges);

/* A merge as "left right"; joined is room to work in. */
vq_status vq_reader_merge(const vq_reader *r, vq_buffer *joined, int32_t rank, const char *line,
                          size_t n);

/* One step more for the normalizer; its texts must live as long as the tokenizer. */
vq_status vq_reader_normal(const vq_reader *r, vq_normal_step step);

/* Adds a token; its id is found, its content copied. One that is there gets the new properties. */
vq_status vq_reader_add(const vq_reader *r, vq_added_token token);

/* The same from an object with its properties, or from its text alone. key is for messages. */
vq_status vq_reader_add_json(const vq_reader *r, const char *key, const struct json_t *value);

/* The id of an added token, -1 if there is none. */
int32_t vq_added_id(const vq_tokenizer *t, const char *content);

/* The character, in UTF-8, that GPT-2's table has for a byte. Returns its size, 1 or 2. */
size_t vq_byte_character(uint8_t byte, char out[4]);
