/* codebook.h - the rounding logits of a linear layer as indices into a small table.
 *
 * Weight p of W (row by row) has the logit codes[idx[p / D]][p % D]. The codes are fitted by
 * k-means to the logits h^-1(rest) and then trained; idx never changes afterwards.
 * h(a) = clip(1.2 sigmoid(a) - 0.1, 0, 1). Tensors are on the host unless a function says that they
 * may be at be's place; all functions are local. */
#pragma once
#include "kmeans.h"

typedef struct vq_codebook_config {
    int64_t K, D;
    bool round_f16; /* round the fitted codes to f16 once, as the reference does */
    double sharpen; /* before that move them away from 0 by this part of themselves, at most to
                       h^-1(0) and h^-1(1): h has no gradient beyond */
    vq_kmeans_config kmeans;
} vq_codebook_config;

typedef struct vq_codebook {
    vq_tensor codes;  /* f32 [K, D] */
    vq_tensor counts; /* u32 [K, D]: how many weights read this logit */
    vq_tensor idx;    /* u16 (K <= 65536) or u32 [n_vec] */
    vq_kmeans_result fit;
} vq_codebook;

/* Vectors of a layer of n_weights = out * in: ceil(n_weights / D). Pure. */
int64_t vq_codebook_vectors(const vq_codebook_config *c, int64_t n_weights);

/* Codes of such a layer: K, or its number of vectors where that is less. Pure. */
int64_t vq_codebook_codes(const vq_codebook_config *c, int64_t n_weights);

/* u16 where K codes allow it, else u32. Pure. */
vq_dtype vq_codebook_idx_dtype(int64_t K);

/* What vq_codebook_build takes from scratch at the peak. Pure. */
size_t vq_codebook_scratch_bytes(const vq_codebook_config *c, int64_t n_weights);

/* cb's codes, counts and idx for a layer of n_weights, not set. Fails: VQ_EMEM. */
vq_status vq_codebook_alloc(vq_codebook *cb, vq_arena *arena, const vq_codebook_config *c,
                            int64_t n_weights);

/* logits = h^-1(rest), then zeros to the end of the last vector. A logit is >= 0 exactly where
 * rest >= 0.5; rest 0 and 1 give -2.398 and 2.398, and what lies outside [0, 1] gives the same.
 * logits f32 [n_vec, D], out; rest f32 with n_vec * D - D < n <= n_vec * D elements. */
vq_status vq_codebook_logits(vq_tensor *logits, const vq_tensor *rest);

/* counts[k, d] = how many weights read codes[k, d]: what pads the last vector reads nothing.
 * counts u32 [K, D], out; idx u16 or u32 [n_vec], each below K. */
vq_status vq_codebook_count(vq_tensor *counts, const vq_tensor *idx, int64_t n_weights);

/* The codes one full k-means fits to a residual: a start for every layer with the same K and D,
 * since residuals have nearly the same distribution everywhere. Always our own engine, all
 * c->kmeans.iters iterations.
 * start f32 [K, D], out; rest f32 [out, in] with at least K vectors, on the host or at be's place.
 * Fails: VQ_EMEM. */
vq_status vq_codebook_start(const vq_backend *be, vq_arena *scratch, vq_tensor *start,
                            const vq_tensor *rest, const vq_codebook_config *c);

/* Fits cb to a layer's residual: logits, k-means, indices, counts.
 *
 * cb     out; as from vq_codebook_alloc with the same c, on the host or at be's place
 * rest   f32 [out, in], in, on the host or at be's place; its name is used in messages
 * start  f32 [c->K, D], in: from vq_codebook_start, or NULL. A layer with fewer than K vectors does
 *        not use it (K is lowered to their number, with a line in the log)
 *
 * Same bits for any number of threads with our own engine. Fails: as vq_kmeans. */
vq_status vq_codebook_build(const vq_backend *be, vq_arena *scratch, vq_codebook *cb,
                            const vq_tensor *rest, const vq_tensor *start,
                            const vq_codebook_config *c);
