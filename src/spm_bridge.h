/* spm_bridge.h - libsentencepiece, which is C++, for C: the only file beside spm_bridge.cpp that
 * knows of it. Compiled where the library is there (VQ_SENTENCEPIECE). */
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vq_spm vq_spm;

/* Reads the bytes of a tokenizer.model. Its own rule for a space in front of a text and for
 * spaces in a row is turned off: the caller does that. Returns 0, or 1 with a reason. */
int vq_spm_open(const void *model, size_t n_bytes, vq_spm **out, char *reason, size_t n_reason);
void vq_spm_close(vq_spm *spm);

int vq_spm_size(const vq_spm *spm);

/* Piece id < size as bytes; they live as long as spm. is_control: <s>, </s> and their like, which
 * no text becomes by itself. */
const char *vq_spm_piece(const vq_spm *spm, int id, size_t *n_bytes, int *is_control);

/* The id of the piece for unknown text. */
int vq_spm_unknown(const vq_spm *spm);

/* The ids of a text; they live until the next call. Returns 0, or 1 if the library failed. */
int vq_spm_encode(vq_spm *spm, const char *text, size_t n_bytes, const int32_t **ids,
                  size_t *count);

#ifdef __cplusplus
}
#endif
