/* normalize.h - what a tokenizer does to the characters before it splits the text. */
#pragma once
#include "arena.h"

/* Bytes that grow in an arena and are used again and again; all zero at the start. */
typedef struct vq_buffer {
    char *data;
    size_t n_bytes, capacity;
} vq_buffer;

/* Makes room for n_bytes in all; what was there stays. Fails: VQ_EMEM. */
vq_status vq_buffer_reserve(vq_buffer *b, vq_arena *arena, size_t n_bytes);

/* Adds n bytes at the end. Fails: VQ_EMEM. */
vq_status vq_buffer_put(vq_buffer *b, vq_arena *arena, const char *data, size_t n);

typedef enum vq_normal_kind {
    VQ_NORMAL_NFC,     /* Unicode's canonical composition */
    VQ_NORMAL_PREPEND, /* `to` before a text that is not empty */
    VQ_NORMAL_REPLACE  /* every `from` becomes `to` */
} vq_normal_kind;

typedef struct vq_normal_step {
    vq_normal_kind kind;
    const char *from, *to;
    size_t n_from, n_to;
} vq_normal_step;

/* Runs the steps one after another over valid UTF-8. *out is text itself, or in one of the two
 * buffers, which the next call uses again. Fails: VQ_EMEM. Local, pure. */
vq_status vq_normalize(const vq_normal_step *steps, int n_steps, vq_arena *arena,
                       vq_buffer buffers[2], const char *text, size_t n, const char **out,
                       size_t *n_out);
