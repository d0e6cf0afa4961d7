/* calib.h - texts to windows of token ids: what a model is calibrated and evaluated on. */
#pragma once
#include "config.h"
#include "textio.h"
#include "tokenizer.h"

typedef struct vq_windows {
    int64_t n, T;      /* windows, tokens a window */
    int32_t *ids;      /* [n, T] */
    int64_t *document; /* [n] the document each came from; 0 where all were joined into one */
    int64_t *offset;   /* [n] its first token there */
} vq_windows;

/* nsamples windows of seqlen tokens for calibration: the windows that Python's random, seeded with
 * seed, chooses in the reference. A document of exactly seqlen tokens is passed over. The arena
 * takes the windows, scratch is reset.
 *
 * Fails: VQ_EFILE (texts too short; the message has both lengths), VQ_EMEM. Local. */
vq_status vq_calib_windows(vq_arena *arena, vq_arena *scratch, const vq_tokenizer *tokenizer,
                           const vq_text *text, vq_calib_mode mode, int64_t nsamples,
                           int64_t seqlen, uint64_t seed, vq_windows *out);

/* The whole windows of seqlen tokens that the joined text has, at most max_windows (0 = all), for
 * the perplexity. Fails: VQ_EFILE (text too short), VQ_EMEM. Local. */
vq_status vq_eval_windows(vq_arena *arena, vq_arena *scratch, const vq_tokenizer *tokenizer,
                          const vq_text *text, vq_dataset dataset, int64_t seqlen,
                          int64_t max_windows, vq_windows *out);

/* A hash of shape and ids, for phase keys. */
uint64_t vq_windows_hash(const vq_windows *w);
