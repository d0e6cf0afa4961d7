/* kmeans - Lloyd's iterations through the backend, or FAISS; of all vectors, or by their signs. */
#include "kmeans.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "faiss.h"
#include "place.h"
#include "rng.h"

/* The vectors of one pattern of signs: order[first], order[first + 1]... of the sorted ones. */
typedef struct part {
    int64_t first, n, codes, remainder;
} part;

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
    size_t order = aligned((size_t)n * sizeof(uint32_t)), some = (size_t)(n * D) * sizeof(float);
    size_t parts = aligned((size_t)K * sizeof(part)) + aligned((size_t)K * sizeof(part *));
    size_t by_sign = c->by_sign ? 2 * order + parts + aligned(some) : 0;
    return by_sign + aligned(counts) + aligned(before) + aligned(train);
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

/* What an op reads and writes at be's place: the host's tensors themselves, or copies. */
typedef struct there {
    vq_tensor x, codes, idx, counts;
} there;

static vq_status go_there(const vq_backend *be, vq_arena *scratch, const vq_tensor *x,
                          const vq_tensor *codes, const vq_tensor *idx, const vq_tensor *counts,
                          there *t)
{
    *t = (there){.codes = *codes, .idx = *idx, .counts = *counts};
    VQ_TRY(vq_place_there(be, scratch, x, &t->x));
    if (be->place == VQ_HOST) return VQ_OK;
    vq_tensor *const made[] = {&t->codes, &t->idx, &t->counts};
    for (int i = 0; i < VQ_COUNT(made); i++)
        VQ_TRY(vq_tensor_new(scratch, be->place, made[i]->dtype, made[i]->ndim, made[i]->dim,
                             made[i]));
    return VQ_OK;
}

static vq_status to_there(const vq_backend *be, vq_tensor *to, const vq_tensor *host)
{
    return be->place == VQ_HOST ? VQ_OK : vq_upload(be, to, host->data);
}

static vq_status from_there(const vq_backend *be, const vq_tensor *from, vq_tensor *host)
{
    return be->place == VQ_HOST ? VQ_OK : vq_download(be, host->data, from);
}

/* The indices of all x, once. */
static vq_status assign(const vq_backend *be, vq_arena *scratch, vq_tensor *idx, double *objective,
                        const vq_tensor *x, const vq_tensor *codes)
{
    const size_t mark = vq_arena_mark(scratch);
    const vq_tensor unused = vq_tensor_1d(NULL, VQ_U32, 0);
    there t;
    VQ_TRY(go_there(be, scratch, x, codes, idx, &unused, &t));
    VQ_TRY(to_there(be, &t.codes, codes));
    VQ_TRY(vq_kmeans_assign(be, &t.idx, objective, &t.x, &t.codes));
    VQ_TRY(from_there(be, &t.idx, idx));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

/* The means of all x, once. */
static vq_status update(const vq_backend *be, vq_arena *scratch, vq_tensor *codes,
                        vq_tensor *counts, const vq_tensor *x, const vq_tensor *idx)
{
    const size_t mark = vq_arena_mark(scratch);
    there t;
    VQ_TRY(go_there(be, scratch, x, codes, idx, counts, &t));
    VQ_TRY(to_there(be, &t.codes, codes));
    VQ_TRY(to_there(be, &t.idx, idx));
    VQ_TRY(vq_kmeans_update(be, &t.codes, &t.counts, &t.x, &t.idx));
    VQ_TRY(from_there(be, &t.codes, codes));
    VQ_TRY(from_there(be, &t.counts, counts));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

/* Iterates on codes, the last time to the means themselves; idx [n] and *objective are those of
 * the codes it ends with. On a device only codes and counts come back between iterations. */
static vq_status lloyd(const vq_backend *be, vq_arena *scratch, vq_tensor *codes, vq_tensor *idx,
                       const vq_tensor *x, const vq_kmeans_config *c, double *objective, int *iters)
{
    vq_tensor counts, before;
    there t;
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_U32, VQ_DIMS(codes->dim[0]), &counts));
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_F32, VQ_DIMS(codes->dim[0], codes->dim[1]), &before));
    VQ_TRY(go_there(be, scratch, x, codes, idx, &counts, &t));
    bool last = c->iters == 0;
    for (int i = 0;; i++) {
        double higher = *objective;
        VQ_TRY(to_there(be, &t.codes, codes));
        VQ_TRY(vq_kmeans_assign(be, &t.idx, objective, &t.x, &t.codes));
        *iters = i;
        if (last) return from_there(be, &t.idx, idx);
        last = i + 1 == c->iters || (i > 0 && higher - *objective <= c->min_gain * higher);
        memcpy(before.data, codes->data, vq_tensor_bytes(codes));
        VQ_TRY(vq_kmeans_update(be, &t.codes, &t.counts, &t.x, &t.idx));
        VQ_TRY(from_there(be, &t.codes, codes));
        VQ_TRY(from_there(be, &t.counts, &counts));
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
    return assign(be, scratch, idx, &result->objective, x, codes);
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

/* Over all vectors of x together. */
static vq_status cluster(const vq_backend *be, vq_arena *scratch, vq_tensor *codes, vq_tensor *idx,
                         const vq_tensor *x, const vq_tensor *start, const vq_kmeans_config *c,
                         vq_kmeans_result *result)
{
    const size_t mark = vq_arena_mark(scratch);
    *result = (vq_kmeans_result){.n_train = training_vectors(c, x->dim[0], codes->dim[0])};
    VQ_TRY(c->faiss ? fit_faiss(codes, idx, x, start, c, result)
                    : fit(be, scratch, codes, idx, x, start, c, result));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

/* --- by signs -------------------------------------------------------------------------------- */

/* Bit d of a vector's pattern is [x_d >= 0], as hard rounding reads it. */
static uint64_t pattern_of(const vq_tensor *x, int64_t i)
{
    const int64_t D = x->dim[1];
    const float *v = (const float *)x->data + i * D;
    uint64_t pattern = 0;
    for (int64_t d = 0; d < D; d++) pattern |= (uint64_t)(v[d] >= 0) << d;
    return pattern;
}

/* order [n]: the vectors sorted by pattern, each pattern's in their order. One pass of counting
 * for every eight coordinates; other [n] is scratch. */
static void sort_by_pattern(uint32_t *order, uint32_t *other, const vq_tensor *x)
{
    const int64_t n = x->dim[0], passes = VQ_CEIL_DIV(x->dim[1], 8);
    uint32_t *from = passes % 2 ? other : order, *to = passes % 2 ? order : other;
    for (int64_t i = 0; i < n; i++) from[i] = (uint32_t)i;
    for (int64_t pass = 0; pass < passes; pass++) {
        int64_t next[257] = {0};
        for (int64_t i = 0; i < n; i++) next[(pattern_of(x, i) >> 8 * pass & 255) + 1]++;
        for (int b = 0; b < 256; b++) next[b + 1] += next[b];
        for (int64_t i = 0; i < n; i++)
            to[next[pattern_of(x, from[i]) >> 8 * pass & 255]++] = from[i];
        uint32_t *swap = from;
        from = to, to = swap;
    }
}

/* The parts in the sorted order, at most `most` of them; how many there are altogether. */
static int64_t find_parts(part *parts, int64_t most, const uint32_t *order, const vq_tensor *x)
{
    int64_t n = 0;
    uint64_t last = 0;
    for (int64_t i = 0; i < x->dim[0]; i++) {
        const uint64_t pattern = pattern_of(x, order[i]);
        if (i == 0 || pattern != last) {
            n++;
            if (n <= most) parts[n - 1] = (part){.first = i};
        }
        last = pattern;
        if (n <= most) parts[n - 1].n++;
    }
    return n;
}

/* Largest first, equal ones in order of the parts. */
static int by_remainder(const void *a, const void *b)
{
    const part *const *x = a, *const *y = b;
    if ((*x)->remainder != (*y)->remainder) return (*x)->remainder < (*y)->remainder ? 1 : -1;
    return *x < *y ? -1 : *x > *y;
}

/* One code each, then (K - n) n_p / n_vec more, rounded down, and what is left by largest
 * remainder. No part gets more codes than it has vectors: with K <= n_vec the rounded number is
 * below n_p, and full parts are passed over after that. */
static void share_codes(part *parts, part **sorted, int64_t n, int64_t K, int64_t n_vec)
{
    const int64_t more = K - n;
    int64_t left = more;
    for (int64_t p = 0; p < n; p++) {
        parts[p].codes = 1 + more * parts[p].n / n_vec;
        parts[p].remainder = more * parts[p].n % n_vec;
        left -= parts[p].codes - 1;
        sorted[p] = &parts[p];
    }
    qsort(sorted, (size_t)n, sizeof *sorted, by_remainder);
    for (int64_t i = 0; left > 0; i = (i + 1) % n) {
        if (sorted[i]->codes == sorted[i]->n) continue;
        sorted[i]->codes++;
        left--;
    }
}

/* Clusters each part's vectors, gathered in `some`, into the next of the codes. */
static vq_status fit_parts(const vq_backend *be, vq_arena *scratch, vq_tensor *codes,
                           vq_tensor *idx, const vq_tensor *x, const vq_kmeans_config *c,
                           const part *parts, const uint32_t *order, vq_tensor *some,
                           vq_tensor *some_idx, vq_kmeans_result *result)
{
    const int64_t D = x->dim[1];
    int64_t first = 0;
    for (const part *p = parts; p < parts + result->patterns; p++) {
        const uint32_t *of = order + p->first;
        vq_tensor own = vq_tensor_rows(codes, first, p->codes), v = vq_tensor_rows(some, 0, p->n);
        vq_tensor own_idx = vq_tensor_rows(some_idx, 0, p->n);
        vq_kmeans_result r;
        for (int64_t i = 0; i < p->n; i++)
            memcpy((float *)v.data + i * D, (const float *)x->data + of[i] * D,
                   (size_t)D * sizeof(float));
        VQ_TRY(cluster(be, scratch, &own, &own_idx, &v, NULL, c, &r));
        for (int64_t i = 0; i < p->n; i++)
            ((uint32_t *)idx->data)[of[i]] = (uint32_t)first + ((uint32_t *)own_idx.data)[i];
        first += p->codes;
        result->objective += r.objective;
        result->n_train += r.n_train;
        result->iters = VQ_MAX(result->iters, r.iters);
    }
    return VQ_OK;
}

static double objective_of(const vq_tensor *codes, const vq_tensor *idx, const vq_tensor *x)
{
    const int64_t D = x->dim[1];
    double sum = 0;
    for (int64_t i = 0; i < x->dim[0]; i++) {
        const float *v = (const float *)x->data + i * D;
        const float *code = (const float *)codes->data + ((const uint32_t *)idx->data)[i] * D;
        for (int64_t d = 0; d < D; d++) {
            const double t = (double)(v[d] - code[d]);
            sum += t * t;
        }
    }
    return sum;
}

/* Fewer codes than patterns: all vectors by tanh(x), in `some`. */
static vq_status fit_squashed(const vq_backend *be, vq_arena *scratch, vq_tensor *codes,
                              vq_tensor *idx, const vq_tensor *x, const vq_kmeans_config *c,
                              vq_tensor *some, vq_kmeans_result *result)
{
    const int64_t count = vq_tensor_count(x), patterns = result->patterns;
    vq_tensor counts;
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++)
        ((float *)some->data)[i] = tanhf(((const float *)x->data)[i]);
    VQ_TRY(cluster(be, scratch, codes, idx, some, NULL, c, result));
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_U32, VQ_DIMS(codes->dim[0]), &counts));
    VQ_TRY(update(be, scratch, codes, &counts, x, idx));
    result->objective = objective_of(codes, idx, x);
    result->patterns = patterns;
    return VQ_OK;
}

static vq_status fit_by_sign(const vq_backend *be, vq_arena *scratch, vq_tensor *codes,
                             vq_tensor *idx, const vq_tensor *x, const vq_tensor *start,
                             const vq_kmeans_config *c, vq_kmeans_result *result)
{
    const int64_t n = x->dim[0], D = x->dim[1], K = codes->dim[0];
    uint32_t *order, *other;
    part *parts, **sorted;
    vq_tensor some;
    VQ_ASSERT(D <= 64 && n <= UINT32_MAX);
    VQ_CHECK(!start, VQ_EUNSUPPORTED,
             "kmeans.by_sign = true with kmeans.start = shared: a layer's patterns of signs have "
             "numbers of codes of their own, expected start = own. Set kmeans.start to own");
    VQ_TRY(VQ_NEW(scratch, n, &order));
    VQ_TRY(VQ_NEW(scratch, n, &other));
    VQ_TRY(VQ_NEW(scratch, K, &parts));
    VQ_TRY(VQ_NEW(scratch, K, &sorted));
    sort_by_pattern(order, other, x);
    *result = (vq_kmeans_result){.patterns = find_parts(parts, K, order, x)};
    if (result->patterns > K) {
        VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_F32, VQ_DIMS(n, D), &some));
        return fit_squashed(be, scratch, codes, idx, x, c, &some, result);
    }
    int64_t largest = 0;
    for (int64_t p = 0; p < result->patterns; p++) largest = VQ_MAX(largest, parts[p].n);
    vq_tensor some_idx = vq_tensor_1d(other, VQ_U32, n);
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_F32, VQ_DIMS(largest, D), &some));
    share_codes(parts, sorted, result->patterns, K, n);
    return fit_parts(be, scratch, codes, idx, x, c, parts, order, &some, &some_idx, result);
}

vq_status vq_kmeans(const vq_backend *be, vq_arena *scratch, vq_tensor *codes, vq_tensor *idx,
                    const vq_tensor *x, const vq_tensor *start, const vq_kmeans_config *c,
                    vq_kmeans_result *result)
{
    int64_t n = x->dim[0], D = x->dim[1], K = codes->dim[0];
    VQ_ASSERT(x->place == VQ_HOST && x->dtype == VQ_F32 && codes->dtype == VQ_F32);
    VQ_ASSERT(idx->dtype == VQ_U32 && idx->dim[0] == n && codes->dim[1] == D);
    VQ_ASSERT(K >= 1 && n >= K && c->iters >= 0 && c->max_points_per_centroid >= 1);
    VQ_ASSERT(!start || vq_tensor_same_shape(start, codes));

    size_t mark = vq_arena_mark(scratch);
    vq_kmeans_result r;
    VQ_TRY(c->by_sign ? fit_by_sign(be, scratch, codes, idx, x, start, c, &r)
                      : cluster(be, scratch, codes, idx, x, start, c, &r));
    vq_arena_reset(scratch, mark);
    if (result) *result = r;
    return VQ_OK;
}
