/* tokenizer_files.h - a tokenizer from the files of a model's folder. */
#pragma once
#include "tokenizer_json.h"

/* Fills *t, which must be zero, from a folder, or from the bytes of one tokenizer.json. After a
 * failure t must be released like any other. Fails as vq_tokenizer_open. Local. */
vq_status vq_tokenizer_read_folder(vq_arena *arena, const char *dir, vq_tokenizer *t);
vq_status vq_tokenizer_read_json(vq_arena *arena, const char *where, const char *json,
                                 size_t n_bytes, vq_tokenizer *t);

/* h continued with all files that a folder's tokenizer may be read from: other ids come of other
 * files. Fails: VQ_EFILE, VQ_EMEM. Local. */
vq_status vq_tokenizer_hash(uint64_t h, vq_arena *scratch, const char *dir, uint64_t *out);

/* Gives back what libraries hold for t. */
void vq_tokenizer_release(vq_tokenizer *t);
