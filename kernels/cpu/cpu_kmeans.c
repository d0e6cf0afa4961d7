/* cpu_kmeans - the nearest code of every vector, and the codes as means.
 *
 * |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2): the nearest code has the greatest score x.c - |c|^2 / 2,
 * D fused multiply-adds a code. One SIMD lane holds one vector, so that no sum crosses lanes; a
 * code's numbers are broadcast from memory, and GROUP codes at a time keep the multiply-adds
 * independent. Which code of a group it was is found afterwards, by its exact distance. */
#pragma GCC optimize("fp-contract=fast") /* -std=c11 would forbid fused multiply-adds */

#include <math.h>
#include <string.h>

#include "cpu_ops.h"
#include "error.h"

#if defined(__AVX512F__)
#define VEC_BYTES 64
#elif defined(__AVX__)
#define VEC_BYTES 32
#else
#define VEC_BYTES 16
#endif
#ifdef VQ_CPU_F64
typedef int64_t lane;
#else
typedef int32_t lane;
#endif
typedef real vec __attribute__((vector_size(VEC_BYTES)));
typedef lane mask __attribute__((vector_size(VEC_BYTES)));

enum {
    LANES = VEC_BYTES / sizeof(real),
    GROUP = 8,
    BLOCK = 256,   /* vectors a thread takes at a time; a multiple of LANES */
    MAX_WIDTH = 64 /* coordinates handled at a time where there may be any number of them */
};

/* take ? a : b, lane by lane; the compiler makes one blend of it. */
static inline vec vec_select(mask take, vec a, vec b)
{
    return (vec)((take & (mask)a) | (~take & (mask)b));
}

static inline vec vec_max(vec a, vec b)
{
    return vec_select(a > b, a, b);
}

/* The group with the greatest score, the lowest among equals, for the LANES vectors of
 * x [D][LANES]. packed: see pack_codes. Inlined with D known where D is common. */
static inline __attribute__((always_inline)) mask
nearest_group(const real *packed, int64_t n_groups, int64_t D, const vec *x)
{
    vec best = (real)-INFINITY - (vec){0};
    mask group = {0};
    for (lane g = 0; g < n_groups; g++) {
        vec s[GROUP];
        for (int j = 0; j < GROUP; j++) s[j] = packed[j] - (vec){0};
        packed += GROUP;
        for (int64_t d = 0; d < D; d++, packed += GROUP)
            for (int j = 0; j < GROUP; j++) s[j] += x[d] * packed[j];
        vec top = vec_max(vec_max(vec_max(s[0], s[1]), vec_max(s[2], s[3])),
                          vec_max(vec_max(s[4], s[5]), vec_max(s[6], s[7])));
        mask better = top > best;
        group = (better & g) | (~better & group);
        best = vec_select(better, top, best);
    }
    return group;
}

static mask nearest_group_8(const real *packed, int64_t n_groups, const vec *x)
{
    return nearest_group(packed, n_groups, 8, x);
}

static mask nearest_group_any(const real *packed, int64_t n_groups, int64_t D, const vec *x)
{
    return nearest_group(packed, n_groups, D, x);
}

/* Groups of GROUP codes: first -|c|^2 / 2 of each, then each coordinate of all of them. What fills
 * up the last group has score -inf. */
static void pack_codes(real *packed, const real *codes, int64_t K, int64_t D)
{
    for (int64_t first = 0; first < K; first += GROUP, packed += (D + 1) * GROUP) {
        for (int64_t j = 0; j < GROUP; j++) {
            const real *c = codes + (first + j) * D;
            bool fill = first + j >= K;
            double norm = 0;
            for (int64_t d = 0; d < D; d++) {
                packed[(d + 1) * GROUP + j] = fill ? 0 : c[d];
                if (!fill) norm += (double)c[d] * (double)c[d];
            }
            packed[j] = fill ? (real)-INFINITY : (real)(-0.5 * norm);
        }
    }
}

/* The nearest of a group's first n codes to x, by distance. */
static int nearest_in_group(real *distance, const real *packed, int64_t n, int64_t D, const real *x)
{
    real d2[GROUP] = {0};
    for (int64_t d = 0; d < D; d++)
        for (int j = 0; j < GROUP; j++) {
            real t = x[d] - packed[(d + 1) * GROUP + j];
            d2[j] += t * t;
        }
    int best = 0;
    for (int j = 1; j < n; j++)
        if (d2[j] < d2[best]) best = j;
    *distance = d2[best];
    return best;
}

vq_status vq_cpu_kmeans_assign(void *ctx, vq_tensor *idx, double *objective, const vq_tensor *x,
                               const vq_tensor *codes)
{
    vq_cpu *cpu = ctx;
    int64_t n = x->dim[0], D = x->dim[1], K = codes->dim[0];
    int64_t n_groups = VQ_CEIL_DIV(K, GROUP), n_blocks = VQ_CEIL_DIV(n, BLOCK);
    size_t mark = vq_arena_mark(&cpu->scratch);
    real *packed;
    double *partial;
    vec *lanes;
    VQ_TRY(VQ_NEW(&cpu->scratch, n_groups * GROUP * (D + 1), &packed));
    VQ_TRY(VQ_NEW(&cpu->scratch, n_blocks, &partial));
    VQ_TRY(VQ_NEW(&cpu->scratch, n_blocks * D, &lanes));
    pack_codes(packed, codes->data, K, D);

#pragma omp parallel for schedule(dynamic) num_threads(cpu->n_threads) if (n * K > VQ_CPU_GRAIN)
    for (int64_t b = 0; b < n_blocks; b++) {
        int64_t end = VQ_MIN((b + 1) * BLOCK, n);
        vec *tile = lanes + b * D;
        double sum = 0;
        for (int64_t first = b * BLOCK; first < end; first += LANES) {
            int64_t m = VQ_MIN(end - first, LANES);
            const real *from = (const real *)x->data + first * D;
            memset(tile, 0, (size_t)D * sizeof *tile);
            for (int64_t i = 0; i < m; i++)
                for (int64_t d = 0; d < D; d++) tile[d][i] = from[i * D + d];
            mask group = D == 8 ? nearest_group_8(packed, n_groups, tile)
                                : nearest_group_any(packed, n_groups, D, tile);
            for (int64_t i = 0; i < m; i++) {
                int64_t k = (int64_t)group[i] * GROUP;
                real distance;
                k += nearest_in_group(&distance, packed + k * (D + 1), VQ_MIN(K - k, GROUP), D,
                                      from + i * D);
                ((uint32_t *)idx->data)[first + i] = (uint32_t)k;
                sum += (double)distance;
            }
        }
        partial[b] = sum;
    }
    if (objective) {
        *objective = 0;
        for (int64_t b = 0; b < n_blocks; b++) *objective += partial[b];
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

/* Vectors are first sorted by code (counting sort), so that each code sums its own in order of
 * their position, whatever the number of threads. */
vq_status vq_cpu_kmeans_update(void *ctx, vq_tensor *codes, vq_tensor *counts, const vq_tensor *x,
                               const vq_tensor *idx)
{
    vq_cpu *cpu = ctx;
    int64_t n = x->dim[0], D = x->dim[1], K = codes->dim[0];
    const uint32_t *code_of = idx->data;
    uint32_t *count = counts->data;
    size_t mark = vq_arena_mark(&cpu->scratch);
    int64_t *end, *order;
    VQ_TRY(VQ_NEW(&cpu->scratch, K, &end));
    VQ_TRY(VQ_NEW(&cpu->scratch, n, &order));

    memset(count, 0, (size_t)K * sizeof *count);
    for (int64_t i = 0; i < n; i++) count[code_of[i]]++;
    int64_t start = 0;
    for (int64_t k = 0; k < K; k++) end[k] = start, start += count[k];
    for (int64_t i = 0; i < n; i++) order[end[code_of[i]]++] = i;

#pragma omp parallel for schedule(dynamic, 64) num_threads(cpu->n_threads) if (n * D > VQ_CPU_GRAIN)
    for (int64_t k = 0; k < K; k++) {
        if (count[k] == 0) continue;
        for (int64_t d0 = 0; d0 < D; d0 += MAX_WIDTH) {
            int64_t width = VQ_MIN(D - d0, MAX_WIDTH);
            double sum[MAX_WIDTH] = {0};
            for (int64_t i = end[k] - count[k]; i < end[k]; i++) {
                const real *v = (const real *)x->data + order[i] * D + d0;
                for (int64_t d = 0; d < width; d++) sum[d] += (double)v[d];
            }
            real *c = (real *)codes->data + k * D + d0;
            for (int64_t d = 0; d < width; d++) c[d] = (real)(sum[d] / count[k]);
        }
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}
