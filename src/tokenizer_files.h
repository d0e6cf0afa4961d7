/* tokenizer_files.h - the parts of a tokenizer, and reading them from a model folder's files. */
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
 * or spm. The arrays before and after it are what the post-processor adds. */
typedef struct vq_tokenizer {
    vq_added_set added;
    vq_added_trie before, after;
    vq_normal_step normal[VQ_NORMAL_STEPS];
    int n_normal;
    vq_pretokenizer pre;
    bool byte_level; /* bpe's characters stand for bytes, by GPT-2's table */
    vq_bpe bpe;
    struct vq_spm *spm; /* NULL: bpe */
    bool split_words;   /* no token goes on over a VQ_SPACE_MARK, so pieces may be cut there */
    int32_t *prefix, *suffix; /* [n_prefix], [n_suffix] */
    int64_t n_prefix, n_suffix;
    int64_t vocab_size;
    const char *kind;
} vq_tokenizer;

/* Fills *t, which must be zero, from the files of a folder, or from the bytes of one
 * tokenizer.json. After a failure t can be closed like any other. Fails as vq_tokenizer_open. */
vq_status vq_tokenizer_read_folder(vq_arena *arena, const char *dir, vq_tokenizer *t);
vq_status vq_tokenizer_read_json(vq_arena *arena, const char *where, const char *json,
                                 size_t n_bytes, vq_tokenizer *t);

/* Gives back what libraries hold for t. */
void vq_tokenizer_release(vq_tokenizer *t);

/* The character, in UTF-8, that GPT-2's table has for a byte. Returns its size, 1 or 2. */
size_t vq_byte_character(uint8_t byte, char out[4]);
