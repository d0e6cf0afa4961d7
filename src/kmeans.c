/* kmeans - Lloyd's iterations through the backend, or FAISS; of all vectors, or by their signs. */
#include "kmeans.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "faiss.h"
#include "place.h"
#include "rng.h"

/* Streams of the counter-based generator; relocation in iteration i draws from RELOCATE + i. */
enum { STREAM_SAMPLE, STREAM_START, STREAM_RELOCATE };

/* Vectors that a thread sorts at a time. */
#define SORT_CHUNK 65536

/* Loops over fewer vectors than this are not worth waking the threads for. */
#define GRAIN 4096

/* A part whose codes still move. */
typedef struct run {
    int64_t part;
    bool last; /* only the means themselves are to come */
} run;

/* A pattern's part, and what is left over of its share of the codes. */
typedef struct share {
    vq_kmeans_part *part;
    int64_t remainder;
} share;

static int64_t training_vectors(const vq_kmeans_config *c, int64_t n, int64_t K)
{
    return c->max_points_per_centroid < n / K ? c->max_points_per_centroid * K : n;
}

static size_t aligned(int64_t count, size_t size)
{
    return VQ_CEIL_DIV((size_t)count * size, VQ_ALIGN) * VQ_ALIGN;
}

size_t vq_kmeans_scratch_bytes(const vq_kmeans_config *c, int64_t n, int64_t K, int64_t D)
{
    /* A part trains on fewer vectors than one more for each of its codes. */
    const int64_t n_train =
        c->by_sign ? VQ_MIN(n, (c->max_points_per_centroid + 1) * K) : training_vectors(c, n, K);
    const int64_t most = c->by_sign ? K : 1;
    const size_t parts = aligned(most, sizeof(vq_kmeans_part)) + aligned(most, sizeof(run)) +
                         2 * aligned(most, sizeof(double));
    const size_t train = c->by_sign || n_train < n ? aligned(n_train * D, sizeof(float)) : 0;
    const size_t fit = parts + train + aligned(K, sizeof(uint32_t)) + aligned(K * D, sizeof(float));
    if (!c->by_sign) return fit;
    return fit + 2 * aligned(n, sizeof(uint32_t)) + aligned(n * D, sizeof(float)) +
           aligned(K, sizeof(vq_kmeans_part)) + aligned(K, sizeof(share)) +
           aligned(256 * VQ_CEIL_DIV(n, SORT_CHUNK), sizeof(uint32_t));
}

/* One vector at random from each of out's many equal stretches of x: all different, in order. */
static void sample(vq_tensor *out, const vq_tensor *x, uint64_t seed, uint64_t stream)
{
    int64_t m = out->dim[0], n = x->dim[0], D = x->dim[1];
#pragma omp parallel for if (m > GRAIN)
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
                        const vq_tensor *x, const vq_tensor *codes, const vq_kmeans_part *parts,
                        int64_t n_parts)
{
    const size_t mark = vq_arena_mark(scratch);
    const vq_tensor unused = vq_tensor_1d(NULL, VQ_U32, 0);
    there t;
    VQ_TRY(go_there(be, scratch, x, codes, idx, &unused, &t));
    VQ_TRY(to_there(be, &t.codes, codes));
    VQ_TRY(vq_kmeans_assign(be, &t.idx, objective, &t.x, &t.codes, parts, n_parts));
    VQ_TRY(from_there(be, &t.idx, idx));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

static vq_kmeans_part whole(const vq_tensor *x, const vq_tensor *codes)
{
    return (vq_kmeans_part){.n = x->dim[0], .codes = codes->dim[0]};
}

/* The means of all x, once. */
static vq_status update(const vq_backend *be, vq_arena *scratch, vq_tensor *codes,
                        vq_tensor *counts, const vq_tensor *x, const vq_tensor *idx)
{
    const size_t mark = vq_arena_mark(scratch);
    const vq_kmeans_part all = whole(x, codes);
    there t;
    VQ_TRY(go_there(be, scratch, x, codes, idx, counts, &t));
    VQ_TRY(to_there(be, &t.codes, codes));
    VQ_TRY(to_there(be, &t.idx, idx));
    VQ_TRY(vq_kmeans_update(be, &t.codes, &t.counts, &t.x, &t.idx, &all, 1));
    VQ_TRY(from_there(be, &t.codes, codes));
    VQ_TRY(from_there(be, &t.counts, counts));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

/* Keeps of the runs, whose parts' objectives are now `now` and were `objective`, those that go on,
 * and says of each whether the means are to be its last; i is the number of the iteration. */
static int64_t go_on(run *runs, vq_kmeans_part *parts, int64_t n, const double *now, int i,
                     const vq_kmeans_config *c, double *objective)
{
    int64_t left = 0;
    for (int64_t a = 0; a < n; a++) {
        run r = runs[a];
        const double higher = objective[r.part];
        objective[r.part] = now[a];
        if (r.last) continue;
        r.last = i + 1 >= c->iters || (i > 0 && higher - now[a] <= c->min_gain * higher);
        parts[left] = parts[a];
        runs[left++] = r;
    }
    return left;
}

/* Iterates on the codes of all parts at once, each until its own end, the last time to the means
 * themselves; idx [n] and objective [n_parts] are those of the codes it ends with. What parts holds
 * is lost. On a device only codes and counts come back between iterations. */
static vq_status lloyd(const vq_backend *be, vq_arena *scratch, vq_tensor *codes, vq_tensor *idx,
                       const vq_tensor *x, const vq_kmeans_config *c, vq_kmeans_part *parts,
                       int64_t n_parts, double *objective, int *iters)
{
    vq_tensor counts, before;
    double *now;
    run *runs;
    there t;
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_U32, VQ_DIMS(codes->dim[0]), &counts));
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_F32, VQ_DIMS(codes->dim[0], codes->dim[1]), &before));
    VQ_TRY(VQ_NEW(scratch, n_parts, &now));
    VQ_TRY(VQ_NEW(scratch, n_parts, &runs));
    VQ_TRY(go_there(be, scratch, x, codes, idx, &counts, &t));
    for (int64_t p = 0; p < n_parts; p++) {
        runs[p] = (run){.part = p, .last = c->iters == 0};
        objective[p] = 0;
    }
    int64_t n = n_parts;
    for (int i = 0;; i++) {
        VQ_TRY(to_there(be, &t.codes, codes));
        VQ_TRY(vq_kmeans_assign(be, &t.idx, now, &t.x, &t.codes, parts, n));
        n = go_on(runs, parts, n, now, i, c, objective);
        *iters = i;
        if (n == 0) return from_there(be, &t.idx, idx);
        memcpy(before.data, codes->data, vq_tensor_bytes(codes));
        VQ_TRY(vq_kmeans_update(be, &t.codes, &t.counts, &t.x, &t.idx, parts, n));
        VQ_TRY(from_there(be, &t.codes, codes));
        VQ_TRY(from_there(be, &t.counts, &counts));
        for (int64_t a = 0; a < n; a++) {
            const vq_kmeans_part *p = &parts[a];
            const vq_tensor vectors = vq_tensor_rows(x, p->first, p->n);
            vq_tensor own = vq_tensor_rows(codes, p->code, p->codes);
            if (!runs[a].last)
                move_beyond(&own, (const float *)before.data + p->code * codes->dim[1]);
            relocate_empty(&own, (const uint32_t *)counts.data + p->code, &vectors, c->seed, i);
        }
    }
}

static vq_status fit(const vq_backend *be, vq_arena *scratch, vq_tensor *codes, vq_tensor *idx,
                     const vq_tensor *x, const vq_tensor *start, const vq_kmeans_config *c,
                     const vq_kmeans_part *parts, int64_t n_parts, double *objective,
                     vq_kmeans_result *result)
{
    const int64_t n = x->dim[0], D = x->dim[1];
    int64_t n_train = 0;
    vq_tensor train = *x;
    vq_kmeans_part *trained;
    VQ_TRY(VQ_NEW(scratch, n_parts, &trained));
    for (int64_t p = 0; p < n_parts; p++) {
        trained[p] = parts[p];
        trained[p].first = n_train;
        n_train += trained[p].n = training_vectors(c, parts[p].n, parts[p].codes);
    }
    if (n_train < n) VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_F32, VQ_DIMS(n_train, D), &train));
#pragma omp parallel for schedule(dynamic) if (n_parts > 1 && n > GRAIN)
    for (int64_t p = 0; p < n_parts; p++) {
        const vq_tensor own = vq_tensor_rows(x, parts[p].first, parts[p].n);
        vq_tensor some = vq_tensor_rows(&train, trained[p].first, trained[p].n);
        vq_tensor first = vq_tensor_rows(codes, parts[p].code, parts[p].codes);
        if (n_train < n) sample(&some, &own, c->seed, STREAM_SAMPLE);
        if (!start) sample(&first, &some, c->seed, STREAM_START);
    }
    if (start) memcpy(codes->data, start->data, vq_tensor_bytes(codes));
    vq_tensor train_idx = vq_tensor_rows(idx, 0, n_train);
    result->n_train = n_train;
    VQ_TRY(lloyd(be, scratch, codes, &train_idx, &train, c, trained, n_parts, objective,
                 &result->iters));
    if (n_train == n) return VQ_OK;
    return assign(be, scratch, idx, objective, x, codes, parts, n_parts);
}

static vq_status fit_faiss(vq_tensor *codes, vq_tensor *idx, const vq_tensor *x,
                           const vq_tensor *start, const vq_kmeans_config *c,
                           const vq_kmeans_part *parts, int64_t n_parts, double *objective,
                           vq_kmeans_result *result)
{
    int seed, max_points;
    VQ_CHECK(!start, VQ_EUNSUPPORTED,
             "kmeans.engine = faiss with kmeans.start = shared: FAISS cannot begin from given "
             "codes, expected start = own. Set kmeans.start to own, or the engine to vq");
    VQ_TRY(vq_int((int64_t)c->seed, "kmeans.seed", &seed));
    VQ_TRY(vq_int(c->max_points_per_centroid, "kmeans.max_points_per_centroid", &max_points));
    result->iters = c->iters;
    for (int64_t p = 0; p < n_parts; p++) {
        const vq_kmeans_part *of = &parts[p];
        const vq_tensor own = vq_tensor_rows(x, of->first, of->n);
        vq_tensor own_codes = vq_tensor_rows(codes, of->code, of->codes);
        vq_tensor own_idx = vq_tensor_rows(idx, of->first, of->n);
        VQ_TRY(
            vq_faiss_kmeans(&own_codes, &own_idx, &objective[p], &own, c->iters, seed, max_points));
        for (int64_t i = 0; i < of->n; i++) ((uint32_t *)own_idx.data)[i] += (uint32_t)of->code;
        result->n_train += training_vectors(c, of->n, of->codes);
    }
    return VQ_OK;
}

/* Each part of x by itself. */
static vq_status cluster(const vq_backend *be, vq_arena *scratch, vq_tensor *codes, vq_tensor *idx,
                         const vq_tensor *x, const vq_tensor *start, const vq_kmeans_config *c,
                         const vq_kmeans_part *parts, int64_t n_parts, vq_kmeans_result *result)
{
    const size_t mark = vq_arena_mark(scratch);
    double *objective;
    *result = (vq_kmeans_result){0};
    VQ_TRY(VQ_NEW(scratch, n_parts, &objective));
    VQ_TRY(c->faiss ? fit_faiss(codes, idx, x, start, c, parts, n_parts, objective, result)
                    : fit(be, scratch, codes, idx, x, start, c, parts, n_parts, objective, result));
    for (int64_t p = 0; p < n_parts; p++) result->objective += objective[p];
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

/* --- by signs -------------------------------------------------------------------------------- */

/* Bit d of a vector's pattern is [x_d >= 0], as hard rounding reads it; here of coordinates
 * [first, end). */
static uint64_t signs_of(const float *v, int64_t first, int64_t end)
{
    uint64_t signs = 0;
    for (int64_t d = first; d < end; d++) signs |= (uint64_t)(v[d] >= 0) << (d - first);
    return signs;
}

static uint64_t pattern_of(const vq_tensor *x, int64_t i)
{
    return signs_of((const float *)x->data + i * x->dim[1], 0, x->dim[1]);
}

/* order [n]: the vectors sorted by pattern, each pattern's in their order. One pass of counting
 * for every eight coordinates, in chunks that know where theirs go; other [n] is scratch. */
static vq_status sort_by_pattern(vq_arena *scratch, uint32_t *order, uint32_t *other,
                                 const vq_tensor *x)
{
    const int64_t n = x->dim[0], D = x->dim[1], passes = VQ_CEIL_DIV(D, 8);
    const int64_t n_chunks = VQ_CEIL_DIV(n, SORT_CHUNK);
    const float *v = x->data;
    uint32_t *from = passes % 2 ? other : order, *to = passes % 2 ? order : other;
    const size_t mark = vq_arena_mark(scratch);
    uint32_t(*next)[256];
    VQ_TRY(VQ_NEW(scratch, n_chunks, &next));
    for (int64_t i = 0; i < n; i++) from[i] = (uint32_t)i;
    for (int64_t first = 0; first < D; first += 8) {
        const int64_t end = VQ_MIN(first + 8, D);
        memset(next, 0, (size_t)n_chunks * sizeof *next);
#pragma omp parallel for
        for (int64_t c = 0; c < n_chunks; c++)
            for (int64_t i = c * SORT_CHUNK; i < VQ_MIN((c + 1) * SORT_CHUNK, n); i++)
                next[c][signs_of(v + from[i] * D, first, end)]++;
        uint32_t at = 0;
        for (int b = 0; b < 256; b++)
            for (int64_t c = 0; c < n_chunks; c++) {
                const uint32_t count = next[c][b];
                next[c][b] = at;
                at += count;
            }
#pragma omp parallel for
        for (int64_t c = 0; c < n_chunks; c++)
            for (int64_t i = c * SORT_CHUNK; i < VQ_MIN((c + 1) * SORT_CHUNK, n); i++)
                to[next[c][signs_of(v + from[i] * D, first, end)]++] = from[i];
        uint32_t *swap = from;
        from = to, to = swap;
    }
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

/* One past the last vector in the sorted order that has the first one's pattern: in steps that
 * double, then halve. */
static int64_t end_of_pattern(const uint32_t *order, const vq_tensor *x, int64_t first)
{
    const uint64_t pattern = pattern_of(x, order[first]);
    int64_t last = first, step = 1;
    for (bool widen = true; step > 0; step = widen ? 2 * step : step / 2)
        if (last + step < x->dim[0] && pattern_of(x, order[last + step]) == pattern)
            last += step;
        else
            widen = false;
    return last + 1;
}

/* The patterns' vectors in the sorted order, `most` patterns at most; how many there are
 * altogether. */
static int64_t find_parts(vq_kmeans_part *parts, int64_t most, const uint32_t *order,
                          const vq_tensor *x)
{
    int64_t n = 0;
    for (int64_t first = 0, end; first < x->dim[0]; first = end, n++) {
        end = end_of_pattern(order, x, first);
        if (n < most) parts[n] = (vq_kmeans_part){.first = first, .n = end - first};
    }
    return n;
}

/* Largest first, equal ones in order of the parts. */
static int by_remainder(const void *a, const void *b)
{
    const share *x = a, *y = b;
    if (x->remainder != y->remainder) return x->remainder < y->remainder ? 1 : -1;
    return x->part < y->part ? -1 : x->part > y->part;
}

/* One code each, then (K - n) n_p / n_vec more, rounded down, and what is left by largest
 * remainder. No part gets more codes than it has vectors: with K <= n_vec the rounded number is
 * below n_p, and full parts are passed over after that. */
static void share_codes(vq_kmeans_part *parts, share *shares, int64_t n, int64_t K, int64_t n_vec)
{
    const int64_t more = K - n;
    int64_t left = more, code = 0;
    for (int64_t p = 0; p < n; p++) {
        parts[p].codes = 1 + more * parts[p].n / n_vec;
        shares[p] = (share){.part = &parts[p], .remainder = more * parts[p].n % n_vec};
        left -= parts[p].codes - 1;
    }
    qsort(shares, (size_t)n, sizeof *shares, by_remainder);
    for (int64_t i = 0; left > 0; i = (i + 1) % n) {
        if (shares[i].part->codes == shares[i].part->n) continue;
        shares[i].part->codes++;
        left--;
    }
    for (int64_t p = 0; p < n; code += parts[p++].codes) parts[p].code = code;
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
    const int64_t count = vq_tensor_count(x);
    const vq_kmeans_part all = whole(x, codes);
    vq_tensor counts;
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++)
        ((float *)some->data)[i] = tanhf(((const float *)x->data)[i]);
    VQ_TRY(cluster(be, scratch, codes, idx, some, NULL, c, &all, 1, result));
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_U32, VQ_DIMS(codes->dim[0]), &counts));
    VQ_TRY(update(be, scratch, codes, &counts, x, idx));
    result->objective = objective_of(codes, idx, x);
    return VQ_OK;
}

/* A pattern's vectors side by side, in `some`, and their indices back to their places. Both loops
 * go through memory in as many streams as there are patterns; order is no longer needed when place
 * [n], its inverse, is known. */
static vq_status fit_sorted(const vq_backend *be, vq_arena *scratch, vq_tensor *codes,
                            vq_tensor *idx, const vq_tensor *x, const vq_kmeans_config *c,
                            const vq_kmeans_part *parts, int64_t n_parts, uint32_t *order,
                            uint32_t *place, vq_tensor *some, vq_kmeans_result *result)
{
    const int64_t n = x->dim[0], D = x->dim[1];
#pragma omp parallel for if (n > GRAIN)
    for (int64_t i = 0; i < n; i++) place[order[i]] = (uint32_t)i;
#pragma omp parallel for if (n > GRAIN)
    for (int64_t i = 0; i < n; i++)
        memcpy((float *)some->data + place[i] * D, (const float *)x->data + i * D,
               (size_t)D * sizeof(float));
    vq_tensor some_idx = vq_tensor_1d(order, VQ_U32, n);
    VQ_TRY(cluster(be, scratch, codes, &some_idx, some, NULL, c, parts, n_parts, result));
#pragma omp parallel for if (n > GRAIN)
    for (int64_t i = 0; i < n; i++) ((uint32_t *)idx->data)[i] = order[place[i]];
    return VQ_OK;
}

static vq_status fit_by_sign(const vq_backend *be, vq_arena *scratch, vq_tensor *codes,
                             vq_tensor *idx, const vq_tensor *x, const vq_tensor *start,
                             const vq_kmeans_config *c, vq_kmeans_result *result)
{
    const int64_t n = x->dim[0], D = x->dim[1], K = codes->dim[0];
    uint32_t *order, *other;
    vq_kmeans_part *parts;
    share *shares;
    vq_tensor some;
    VQ_ASSERT(D <= 64 && n <= UINT32_MAX);
    VQ_CHECK(!start, VQ_EUNSUPPORTED,
             "kmeans.by_sign = true with kmeans.start = shared: a layer's patterns of signs have "
             "numbers of codes of their own, expected start = own. Set kmeans.start to own");
    VQ_TRY(VQ_NEW(scratch, n, &order));
    VQ_TRY(VQ_NEW(scratch, n, &other));
    VQ_TRY(VQ_NEW(scratch, K, &parts));
    VQ_TRY(VQ_NEW(scratch, K, &shares));
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_F32, VQ_DIMS(n, D), &some));
    VQ_TRY(sort_by_pattern(scratch, order, other, x));
    const int64_t patterns = find_parts(parts, K, order, x);
    if (patterns > K) {
        VQ_TRY(fit_squashed(be, scratch, codes, idx, x, c, &some, result));
    } else {
        share_codes(parts, shares, patterns, K, n);
        VQ_TRY(fit_sorted(be, scratch, codes, idx, x, c, parts, patterns, order, other, &some,
                          result));
    }
    result->patterns = patterns;
    return VQ_OK;
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

    const size_t mark = vq_arena_mark(scratch);
    const vq_kmeans_part all = whole(x, codes);
    vq_kmeans_result r;
    VQ_TRY(c->by_sign ? fit_by_sign(be, scratch, codes, idx, x, start, c, &r)
                      : cluster(be, scratch, codes, idx, x, start, c, &all, 1, &r));
    vq_arena_reset(scratch, mark);
    if (result) *result = r;
    return VQ_OK;
}
