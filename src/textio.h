/* textio.h - texts to calibrate and evaluate on, from files or folders, as a list of documents.
 *
 * A .txt file is one document. A .jsonl file (also .json with one object a line, as C4's shards
 * are named) has a document a line, in the field "text", or in "sentence" where there is no
 * "text". Either may end in .gz or .zst. */
#pragma once
#include "arena.h"

typedef struct vq_document {
    const char *data; /* any bytes; the tokenizer repairs what is not UTF-8 */
    int64_t n_bytes;
    const char *path; /* where it came from */
    bool is_row;      /* a line of a .jsonl file, not a whole file */
} vq_document;

typedef struct vq_text {
    vq_document *documents;
    int64_t n;
    int64_t n_bytes; /* of all documents */
} vq_text;

/* Reads every path in order; of a folder, the files with the names above, sorted by name.
 *
 * arena    takes the documents and their list
 * scratch  is used up to twice the longest file or line, and reset
 *
 * Fails: VQ_EFILE (missing, empty, a NUL byte in a .txt, not JSON, no "text" field, truncated or
 * corrupt compressed data), VQ_EUSAGE (no path, a file of another kind, a folder without texts),
 * VQ_EMEM. Local. */
vq_status vq_text_read(vq_arena *arena, vq_arena *scratch, const char *const *paths, int n_paths,
                       vq_text *out);

/* Cuts the last `ratio` of the bytes off for evaluation. The cut is at the end of a line, or of a
 * document; where a document has no line end it is between two characters. The pieces point into
 * text. Fails: VQ_EFILE (a part would be empty), VQ_EMEM. Local. */
vq_status vq_text_hold_out(vq_arena *arena, const vq_text *text, double ratio, vq_text *calib,
                           vq_text *eval);
