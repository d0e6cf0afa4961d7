/* kmeans - Lloyd's iterations through the backend, or FAISS. */
#include "kmeans.h"

#include <string.h>

#include "error.h"
#include "faiss.h"
#include "rng.h"

/* Streams of the counter-based generator; relocation in iteration i draws from RELOCATE + i. */
enum { STREAM_SAMPLE, STREAM_START, STREAM_RELOCATE };

static int64_t training_vectors(const vq_kmeans_config *c, int64_t n, int64_t K)
{
    return c->max_points_per_centroid < n / K ? c->max_points_per_centroid * K : n;
}

static size_t aligned(size_t bytes)
{
    return VQ_CEIL_DIV(bytes, VQ_ALIGN) * VQ_ALIGN;
}

size_t vq_kmeans_scratch_bytes(const vq_kmeans_config *c, int64_t n, int64_t K, int64_t D)
{
    int64_t n_train = training_vectors(c, n, K);
    size_t counts = (size_t)K * sizeof(uint32_t), before = (size_t)(K * D) * sizeof(float);
    size_t train = n_train < n ? (size_t)(n_train * D) * sizeof(float) : 0;
    return aligned(counts) + aligned(before) + aligned(train);
}

/* One vector at random from each of out's many equal stretches of x: all different, in order. */
static void sample(vq_tensor *out, const vq_tensor *x, uint64_t seed, uint64_t stream)
{
    int64_t m = out->dim[0], n = x->dim[0], D = x->dim[1];
    for (int64_t i = 0; i < m; i++) {
        int64_t first = i * n / m, end = (i + 1) * n / m;
        int64_t from = first + vq_rng_below(seed, stream, (uint64_t)i, end - first);
        memcpy((float *)out->data + i * D, (const float *)x->data + from * D,
               (size_t)D * sizeof(float));
    }
}

/* A code without vectors moves onto one drawn at random. Dense regions draw most, and a pile of
 * equal vectors (a layer's rows of zeros) cannot hold a code for ever as it could if the code with
 * most vectors were split. */
static void relocate_empty(vq_tensor *codes, const uint32_t *counts, const vq_tensor *x,
                           uint64_t seed, int iteration)
{
    int64_t K = codes->dim[0], D = codes->dim[1];
    for (int64_t k = 0; k < K; k++) {
        if (counts[k] > 0) continue;
        uint64_t stream = STREAM_RELOCATE + (uint64_t)iteration;
        int64_t from = vq_rng_below(seed, stream, (uint64_t)k, x->dim[0]);
        memcpy((float *)codes->data + k * D, (const float *)x->data + from * D,
               (size_t)D * sizeof(float));
    }
}

/* How far beyond the mean of its vectors a code moves, as a part of the way there. Below 1 the
 * objective cannot rise: with the indices held, a code that goes from c to m + r (m - c), m being
 * the mean, changes its part by (r^2 - 1) n |m - c|^2. Large steps make for fewer of them, and end
 * better than at the nearest place where means no longer move. */
#define BEYOND 0.9f

static void move_beyond(vq_tensor *codes, const float *before)
{
    float *code = codes->data;
    for (int64_t i = 0; i < vq_tensor_count(codes); i++) code[i] += BEYOND * (code[i] - before[i]);
}

/* Iterates on codes, the last time to the means themselves; idx [n] and *objective are those of
 * the codes it ends with. */
static vq_status lloyd(const vq_backend *be, vq_arena *scratch, vq_tensor *codes, vq_tensor *idx,
                       const vq_tensor *x, const vq_kmeans_config *c, double *objective, int *iters)
{
    vq_tensor counts, before;
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_U32, VQ_DIMS(codes->dim[0]), &counts));
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_F32, VQ_DIMS(codes->dim[0], codes->dim[1]), &before));
    bool last = c->iters == 0;
    for (int i = 0;; i++) {
        double higher = *objective;
        VQ_TRY(vq_kmeans_assign(be, idx, objective, x, codes));
        *iters = i;
        if (last) return VQ_OK;
        last = i + 1 == c->iters || (i > 0 && higher - *objective <= c->min_gain * higher);
        memcpy(before.data, codes->data, vq_tensor_bytes(codes));
        VQ_TRY(vq_kmeans_update(be, codes, &counts, x, idx));
        if (!last) move_beyond(codes, before.data);
        relocate_empty(codes, counts.data, x, c->seed, i);
    }
}

static vq_status fit(const vq_backend *be, vq_arena *scratch, vq_tensor *codes, vq_tensor *idx,
                     const vq_tensor *x, const vq_tensor *start, const vq_kmeans_config *c,
                     vq_kmeans_result *result)
{
    int64_t n = x->dim[0], D = x->dim[1], n_train = result->n_train;
    vq_tensor train = *x;
    if (n_train < n) {
        VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_F32, VQ_DIMS(n_train, D), &train));
        sample(&train, x, c->seed, STREAM_SAMPLE);
    }
    if (start)
        memcpy(codes->data, start->data, vq_tensor_bytes(codes));
    else
        sample(codes, &train, c->seed, STREAM_START);
    vq_tensor train_idx = vq_tensor_rows(idx, 0, n_train);
    VQ_TRY(lloyd(be, scratch, codes, &train_idx, &train, c, &result->objective, &result->iters));
    if (n_train == n) return VQ_OK;
    return vq_kmeans_assign(be, idx, &result->objective, x, codes);
}

static vq_status fit_faiss(vq_tensor *codes, vq_tensor *idx, const vq_tensor *x,
                           const vq_tensor *start, const vq_kmeans_config *c,
                           vq_kmeans_result *result)
{
    int seed, max_points;
    VQ_CHECK(!start, VQ_EUNSUPPORTED,
             "kmeans.engine = faiss with kmeans.start = shared: FAISS cannot begin from given "
             "codes, expected start = own. Set kmeans.start to own, or the engine to vq");
    VQ_TRY(vq_int((int64_t)c->seed, "kmeans.seed", &seed));
    VQ_TRY(vq_int(c->max_points_per_centroid, "kmeans.max_points_per_centroid", &max_points));
    result->iters = c->iters;
    return vq_faiss_kmeans(codes, idx, &result->objective, x, c->iters, seed, max_points);
}

vq_status vq_kmeans(const vq_backend *be, vq_arena *scratch, vq_tensor *codes, vq_tensor *idx,
                    const vq_tensor *x, const vq_tensor *start, const vq_kmeans_config *c,
                    vq_kmeans_result *result)
{
    int64_t n = x->dim[0], D = x->dim[1], K = codes->dim[0];
    VQ_ASSERT(be->place == VQ_HOST && x->dtype == VQ_F32 && codes->dtype == VQ_F32);
    VQ_ASSERT(idx->dtype == VQ_U32 && idx->dim[0] == n && codes->dim[1] == D);
    VQ_ASSERT(K >= 1 && n >= K && c->iters >= 0 && c->max_points_per_centroid >= 1);
    VQ_ASSERT(!start || vq_tensor_same_shape(start, codes));

    size_t mark = vq_arena_mark(scratch);
    vq_kmeans_result r = {.n_train = training_vectors(c, n, K)};
    VQ_TRY(c->faiss ? fit_faiss(codes, idx, x, start, c, &r)
                    : fit(be, scratch, codes, idx, x, start, c, &r));
    vq_arena_reset(scratch, mark);
    if (result) *result = r;
    return VQ_OK;
}
