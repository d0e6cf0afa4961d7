/* cpu_kmeans - the nearest code of every vector, and the codes as means.
 *
 * |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2): the nearest code has the greatest score x.c - |c|^2 / 2,
 * D fused multiply-adds a code. One SIMD lane holds one vector, so that no sum crosses lanes; a
 * code's numbers are broadcast from memory, and GROUP codes at a time keep the multiply-adds
 * independent. Which code of a group it was is found afterwards, by its exact distance. */

#include <math.h>
#include <string.h>

#include "cpu_ops.h"
#include "error.h"
#include "parts.h"

#if defined(__AVX512F__)
#include <immintrin.h>
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
    BLOCK = 256, /* vectors that a thread takes at a time; a multiple of LANES */
    RANGE = 256  /* codes whose means a thread takes at a time */
};

/* One number of each of a group's codes. */
typedef real octet __attribute__((vector_size(GROUP * sizeof(real))));

/* The greater of a and b, lane by lane. */
static inline vec vec_max(vec a, vec b)
{
#if defined(__AVX512F__) && !defined(VQ_CPU_F64)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    const mask take = a > b;
    return (vec)((take & (mask)a) | (~take & (mask)b));
#endif
}

#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast") /* -std=c11 would forbid fused multiply-adds */

/* The group with the greatest score, the lowest among equals, for the LANES vectors of
 * x [D][LANES]. packed: see pack_group. Inlined with D known where D is common. */
static inline __attribute__((always_inline)) mask
nearest_group_of(const real *packed, int64_t n_groups, int64_t D, const vec *x)
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
        best = vec_max(top, best);
    }
    return group;
}

static mask nearest_group_8(const real *packed, int64_t n_groups, const vec *x)
{
    return nearest_group_of(packed, n_groups, 8, x);
}

static mask nearest_group(const real *packed, int64_t n_groups, int64_t D, const vec *x)
{
    return nearest_group_of(packed, n_groups, D, x);
}

#pragma GCC pop_options

/* A group of n codes: first -|c|^2 / 2 of each, then each coordinate of all of them. The last code
 * stands in all places that are left: being the highest of equals there it is never found. */
static void pack_group(real *packed, const real *codes, int64_t n, int64_t D)
{
    for (int64_t j = 0; j < GROUP; j++) {
        const real *c = codes + VQ_MIN(j, n - 1) * D;
        double norm = 0;
        for (int64_t d = 0; d < D; d++) {
            packed[(d + 1) * GROUP + j] = c[d];
            norm += (double)c[d] * (double)c[d];
        }
        packed[j] = (real)(-0.5 * norm);
    }
}

/* The squared distances of x to a group's codes. */
static inline void distances_to(octet *d2, const real *packed, int64_t D, const real *x)
{
    octet sum = {0};
    for (int64_t d = 0; d < D; d++) {
        const octet t = x[d] - *(const octet *)(packed + (d + 1) * GROUP);
        sum += t * t;
    }
    *d2 = sum;
}

/* idx of the LANES or fewer vectors from x on, the groups' codes being first_code and those after
 * it; *sum += their distances. tile [D]. Inlined as nearest_group_of. */
static inline __attribute__((always_inline)) void
assign_tile(uint32_t *idx, double *sum, const real *x, int64_t n, int64_t D, int64_t first_code,
            const real *packed, int64_t n_groups, vec *tile)
{
    memset(tile, 0, (size_t)D * sizeof *tile);
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < D; d++) tile[d][i] = x[i * D + d];
    const mask group =
        D == 8 ? nearest_group_8(packed, n_groups, tile) : nearest_group(packed, n_groups, D, tile);
    for (int64_t i = 0; i < n; i++) {
        octet d2;
        distances_to(&d2, packed + group[i] * GROUP * (D + 1), D, x + i * D);
        real least = d2[0];
        int best = 0; /* without branches, which nobody could foresee */
        for (int j = 1; j < GROUP; j++) least = d2[j] < least ? d2[j] : least;
        for (int j = GROUP - 1; j >= 0; j--) best = d2[j] <= least ? j : best;
        idx[i] = (uint32_t)(first_code + group[i] * GROUP + best);
        *sum += (double)least;
    }
}

vq_status vq_cpu_kmeans_assign(void *ctx, vq_tensor *idx, double *objective, const vq_tensor *x,
                               const vq_tensor *codes, const vq_kmeans_part *parts, int64_t n_parts)
{
    vq_cpu *cpu = ctx;
    const int64_t D = x->dim[1], group_reals = GROUP * (D + 1);
    const int64_t n_groups = vq_part_blocks(codes->dim[0], n_parts, GROUP);
    const int64_t n_blocks = vq_part_blocks(x->dim[0], n_parts, BLOCK);
    size_t mark = vq_arena_mark(&cpu->scratch);
    real *packed;
    double *partial;
    VQ_ASSERT(D * LANES <= VQ_CPU_SLAB);
    VQ_TRY(VQ_NEW(&cpu->scratch, n_groups * group_reals, &packed));
    VQ_TRY(VQ_NEW(&cpu->scratch, n_blocks, &partial));
    int64_t work = 0;
    for (int64_t p = 0; p < n_parts; p++) work += parts[p].n * parts[p].codes;

#pragma omp parallel num_threads(vq_cpu_threads(cpu, work))
    {
#pragma omp for
        for (int64_t g = 0; g < n_groups; g++) {
            const vq_part_block of = vq_part_block_at(parts, n_parts, VQ_PART_CODES, GROUP, g);
            if (of.n > 0)
                pack_group(packed + g * group_reals, (const real *)codes->data + of.first * D, of.n,
                           D);
        }
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < n_blocks; b++) {
            const vq_part_block of = vq_part_block_at(parts, n_parts, VQ_PART_VECTORS, BLOCK, b);
            const vq_kmeans_part *part = &parts[of.part];
            const int64_t end = of.first + of.n, n_own = VQ_CEIL_DIV(part->codes, GROUP);
            const real *own =
                packed + vq_part_first(parts, of.part, VQ_PART_CODES, GROUP) * group_reals;
            vec *tile = (vec *)vq_cpu_slab(cpu);
            double sum = 0;
            for (int64_t i = of.first; i < end; i += LANES) {
                uint32_t *to = (uint32_t *)idx->data + i;
                const real *v = (const real *)x->data + i * D;
                const int64_t n = VQ_MIN(end - i, LANES);
                if (D == 8)
                    assign_tile(to, &sum, v, n, 8, part->code, own, n_own, tile);
                else
                    assign_tile(to, &sum, v, n, D, part->code, own, n_own, tile);
            }
            partial[b] = sum;
        }
    }
    for (int64_t p = 0; p < n_parts; p++) {
        const double *of = partial + vq_part_first(parts, p, VQ_PART_VECTORS, BLOCK);
        objective[p] = 0;
        for (int64_t b = 0; b < VQ_CEIL_DIV(parts[p].n, BLOCK); b++) objective[p] += of[b];
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

/* Adds the vectors [first, end) whose codes are the n from `code` on to the sums [n][D + 1] of
 * these, the last of each being their number. Which ones they are is found first, without branches,
 * which nobody could foresee. */
static void add_up(double *sums, const real *x, const uint32_t *code_of, int64_t first, int64_t end,
                   int64_t D, int64_t code, int64_t n)
{
    int64_t found[BLOCK];
    for (int64_t begin = first; begin < end; begin += BLOCK) {
        int64_t n_found = 0;
        for (int64_t i = begin; i < VQ_MIN(begin + BLOCK, end); i++) {
            found[n_found] = i;
            n_found += code_of[i] - (uint32_t)code < (uint32_t)n;
        }
        for (int64_t f = 0; f < n_found; f++) {
            const real *v = x + found[f] * D;
            double *sum = sums + (code_of[found[f]] - code) * (D + 1);
            for (int64_t d = 0; d < D; d++) sum[d] += (double)v[d];
            sum[D]++;
        }
    }
}

/* A thread goes over all of a part's vectors for a range of its codes, so that each code sums its
 * own in the order of their position, whatever the number of threads. Their number stands beside
 * the sum: threads that count in one line of the cache would wait for each other. */
vq_status vq_cpu_kmeans_update(void *ctx, vq_tensor *codes, vq_tensor *counts, const vq_tensor *x,
                               const vq_tensor *idx, const vq_kmeans_part *parts, int64_t n_parts)
{
    vq_cpu *cpu = ctx;
    const int64_t D = x->dim[1], K = codes->dim[0];
    const int64_t n_ranges = vq_part_blocks(K, n_parts, RANGE);
    size_t mark = vq_arena_mark(&cpu->scratch);
    double *sums;
    VQ_TRY(VQ_NEW(&cpu->scratch, K * (D + 1), &sums));
    memset(counts->data, 0, vq_tensor_bytes(counts));

#pragma omp parallel for schedule(dynamic) num_threads(vq_cpu_threads(cpu, x->dim[0] * D))
    for (int64_t r = 0; r < n_ranges; r++) {
        const vq_part_block of = vq_part_block_at(parts, n_parts, VQ_PART_CODES, RANGE, r);
        const vq_kmeans_part *part = &parts[of.part];
        if (of.n <= 0) continue;
        double *own = sums + of.first * (D + 1);
        memset(own, 0, (size_t)(of.n * (D + 1)) * sizeof *own);
        add_up(own, x->data, idx->data, part->first, part->first + part->n, D, of.first, of.n);
        for (int64_t k = 0; k < of.n; k++) {
            const double *sum = own + k * (D + 1);
            real *c = (real *)codes->data + (of.first + k) * D;
            for (int64_t d = 0; d < D && sum[D] > 0; d++) c[d] = (real)(sum[d] / sum[D]);
            ((uint32_t *)counts->data)[of.first + k] = (uint32_t)sum[D];
        }
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}
