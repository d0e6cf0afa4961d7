/* kmeans.h - k-means: K codes that stand for many vectors.
 *
 * Our own engine is Lloyd's iteration through the backend with steps that go beyond the means
 * (kmeans.c says why that is safe), FAISS the reference's and the oracle. */
#pragma once
#include "arena.h"
#include "backend.h"

/* A min_gain that ends within 1 % of FAISS after 100 iterations, or below it (bench_kmeans). */
#define VQ_KMEANS_MIN_GAIN 1e-3

typedef struct vq_kmeans_config {
    bool faiss;      /* the reference's engine; else ours, which is faster, takes start codes and
                        gives the same bits everywhere */
    int iters;       /* at most */
    double min_gain; /* ours makes its last iteration after one that lowers the objective by less
                        than this part of it; 0: after one that does not lower it */
    uint64_t seed;
    int64_t max_points_per_centroid; /* at most this times K vectors train the codes */
    bool by_sign;                    /* vectors share a code only with those of the same signs */
} vq_kmeans_config;

typedef struct vq_kmeans_result {
    double objective; /* sum of squared distances of all vectors to their codes */
    int64_t n_train;  /* vectors that trained the codes */
    int iters;        /* iterations done; by sign, the most of any pattern */
    int64_t patterns; /* of signs among the vectors; 0: not looked at */
} vq_kmeans_result;

/* Bytes that vq_kmeans takes from its scratch arena at the peak; by sign an upper bound, for as
 * many patterns as codes. Pure. */
size_t vq_kmeans_scratch_bytes(const vq_kmeans_config *c, int64_t n, int64_t K, int64_t D);

/* Fits codes to x, and assigns every vector its nearest.
 *
 * codes   f32 [K, D], out
 * idx     u32 [n], out: the lowest k among equally near
 * x       f32 [n, D], in; finite, n >= K
 * start   f32 [K, D], in: codes to begin from; NULL: vectors drawn from x by the seed
 * result  out; may be NULL
 *
 * All tensors are on the host; be may be a device's, to which scratch's twin belongs. A code that
 * no vector is nearest to moves onto a vector drawn by the seed, so that dense regions get it.
 * Local. Same bits for any number of threads.
 *
 * by_sign: the vectors are parted by the pattern of their signs, [x >= 0] of each coordinate, and
 * each part is clustered by itself, all at the same time, so that every vector has the signs of its
 * code, and the nearest of those that have. Every pattern that occurs gets one code, and its share
 * of the others by largest remainder; codes lie in the order of the patterns (coordinate 0 counts
 * least). Where there are fewer codes than patterns, signs cannot all be kept: then all vectors are
 * clustered together by tanh(x), where a changed sign costs more beside the distances between large
 * coordinates, and a code is the mean of its vectors. D is at most 64.
 *
 * Fails: VQ_EMEM; VQ_EUNSUPPORTED (FAISS, or by_sign, with a start). */
vq_status vq_kmeans(const vq_backend *be, vq_arena *scratch, vq_tensor *codes, vq_tensor *idx,
                    const vq_tensor *x, const vq_tensor *start, const vq_kmeans_config *c,
                    vq_kmeans_result *result);
