/* cuda_kmeans - the nearest code of every vector, and the codes as means.
 *
 * |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2): the nearest code has the greatest score x.c - |c|^2 / 2,
 * D fused multiply-adds a code. Codes are taken in groups of 8, so that a score costs one more
 * maximum and only a group a comparison; which code of the best group it was is found at the end,
 * by its exact distance. A thread keeps several vectors in registers, and each number of a code
 * that is read from shared memory, the same for all lanes, serves all of them. Operations and
 * order are cpu_kmeans.c's, and so are the bits where the CPU fuses too. All parts are one launch.
 */
#include "cuda_device.cuh"
#include "cuda_plan.h"
#include "parts.h"

#define THREADS 128
#define GROUP 8         /* codes that are compared at once */
#define TILE 64         /* groups that are brought to shared memory at once */
#define ADD_VECTORS 256 /* vectors that a block adds to the sums of their codes */

/* A thread per place of a group of codes: -|c|^2 / 2, then each coordinate of the group's codes.
 * The last code stands in all places that are left: being the highest of equals there it is never
 * found. */
static __global__ void __launch_bounds__(THREADS)
    pack_codes(float *packed, const float *codes, int64_t n_groups, int64_t D,
               const vq_kmeans_part *parts, int64_t n_parts)
{
    for (int64_t i = vq_thread(); i < n_groups * GROUP; i += vq_threads()) {
        const int64_t g = i / GROUP, j = i - g * GROUP;
        const vq_part_block of = vq_part_block_at(parts, n_parts, VQ_PART_CODES, GROUP, g);
        if (of.n <= 0) continue;
        const float *c = codes + (of.first + VQ_MIN(j, of.n - 1)) * D;
        float *to = packed + g * (D + 1) * GROUP + j;
        double norm = 0;
        for (int64_t d = 0; d < D; d++) {
            to[(d + 1) * GROUP] = c[d];
            norm += double(c[d]) * double(c[d]);
        }
        *to = float(-0.5 * norm);
    }
}

/* Better than the best group so far? Then it is. */
static __device__ __forceinline__ void compare_group(const float *score, int group, float *best,
                                                     int *best_group)
{
    float top = score[0];
    for (int j = 1; j < GROUP; j++) top = fmaxf(score[j], top);
    if (top > *best) *best = top, *best_group = group;
}

/* The nearest code of a group by distance, the lowest among equals. */
static __device__ int nearest_in_group(float *distance, const float *packed, int64_t D,
                                       const float *x)
{
    float d2[GROUP] = {0};
    for (int64_t d = 0; d < D; d++)
        for (int j = 0; j < GROUP; j++) {
            const float t = x[d] - packed[(d + 1) * GROUP + j];
            d2[j] += __fmul_rn(t, t);
        }
    int best = 0;
    *distance = d2[0];
    for (int j = 1; j < GROUP; j++)
        if (d2[j] < *distance) best = j, *distance = d2[j];
    return best;
}

/* A block's vectors: THREADS * EACH or fewer of one part, and the part's groups of codes. */
typedef struct own_part {
    int64_t first, end, code;
    int n_groups;
    const float *packed;
} own_part;

static __device__ own_part own_part_of(const vq_kmeans_part *parts, int64_t n_parts, int64_t size,
                                       const float *packed, int64_t D)
{
    const vq_part_block of =
        vq_part_block_at(parts, n_parts, VQ_PART_VECTORS, size, int64_t(blockIdx.x));
    const vq_kmeans_part *part = &parts[of.part];
    const int64_t group = vq_part_first(parts, of.part, VQ_PART_CODES, GROUP);
    const own_part own = {of.first, of.first + of.n, part->code,
                          int(VQ_CEIL_DIV(part->codes, GROUP)), packed + group * (D + 1) * GROUP};
    return own;
}

/* idx and the sum of distances of a block's vectors. D known. */
template <int D, int EACH>
static __global__ void __launch_bounds__(THREADS)
    assign(uint32_t *idx, double *partial, const float *x, const float *packed,
           const vq_kmeans_part *parts, int64_t n_parts)
{
    typedef vq_pack<float, 4> pack;
    constexpr int GROUP_PACKS = (D + 1) * GROUP / 4;
    VQ_SHARED(pack, tile, [TILE * GROUP_PACKS]);
    const own_part own = own_part_of(parts, n_parts, THREADS * EACH, packed, D);
    if (own.first >= own.end) return;
    const pack *codes = reinterpret_cast<const pack *>(own.packed);
    const int64_t first = own.first + threadIdx.x;
    float v[EACH][D], best[EACH];
    int group[EACH];
    for (int e = 0; e < EACH; e++) {
        const int64_t i = VQ_MIN(first + int64_t(e) * THREADS, own.end - 1);
        for (int d = 0; d < D; d++) v[e][d] = x[i * D + d];
        best[e] = -INFINITY;
        group[e] = 0;
    }
    for (int begin = 0; begin < own.n_groups; begin += TILE) {
        const int size = VQ_MIN(TILE, own.n_groups - begin);
        __syncthreads();
        for (int i = threadIdx.x; i < size * GROUP_PACKS; i += THREADS)
            tile[i] = codes[int64_t(begin) * GROUP_PACKS + i];
        __syncthreads();
        for (int g = 0; g < size; g++) {
            const pack *from = &tile[g * GROUP_PACKS];
            float score[EACH][GROUP];
            for (int e = 0; e < EACH; e++)
                for (int j = 0; j < GROUP; j++) score[e][j] = from[j / 4].x[j % 4];
            for (int d = 0; d < D; d++) {
                from += GROUP / 4;
                for (int half = 0; half < GROUP / 4; half++) {
                    const pack c = from[half];
                    for (int j = 0; j < 4; j++)
                        for (int e = 0; e < EACH; e++)
                            score[e][half * 4 + j] = fmaf(v[e][d], c.x[j], score[e][half * 4 + j]);
                }
            }
            for (int e = 0; e < EACH; e++) compare_group(score[e], begin + g, &best[e], &group[e]);
        }
    }
    double sum = 0;
    for (int e = 0; e < EACH; e++) {
        const int64_t i = first + int64_t(e) * THREADS, k = int64_t(group[e]) * GROUP;
        if (i >= own.end) continue;
        float distance;
        const int nearest = nearest_in_group(&distance, own.packed + k * (D + 1), D, x + i * D);
        idx[i] = uint32_t(own.code + k + nearest);
        sum += double(distance);
    }
    sum = vq_block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/* The same for any D, a vector a thread: codes and vectors from the caches. */
static __global__ void __launch_bounds__(THREADS)
    assign_any(uint32_t *idx, double *partial, const float *x, const float *packed,
               const vq_kmeans_part *parts, int64_t n_parts, int64_t D)
{
    const own_part own = own_part_of(parts, n_parts, THREADS, packed, D);
    if (own.first >= own.end) return;
    const int64_t i = own.first + threadIdx.x;
    const float *v = x + VQ_MIN(i, own.end - 1) * D, *from = own.packed;
    float best = -INFINITY;
    int group = 0;
    for (int g = 0; g < own.n_groups; g++) {
        float score[GROUP];
        for (int j = 0; j < GROUP; j++) score[j] = from[j];
        from += GROUP;
        for (int64_t d = 0; d < D; d++, from += GROUP)
            for (int j = 0; j < GROUP; j++) score[j] = fmaf(v[d], from[j], score[j]);
        compare_group(score, g, &best, &group);
    }
    const int64_t k = int64_t(group) * GROUP;
    float distance;
    const int nearest = nearest_in_group(&distance, own.packed + k * (D + 1), D, v);
    if (i < own.end) idx[i] = uint32_t(own.code + k + nearest);
    const double sum = vq_block_sum(i < own.end ? double(distance) : 0.0);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/* objective[p] = the sum of what part p's blocks of `size` vectors found. */
static __global__ void __launch_bounds__(THREADS)
    sum_parts(double *objective, const double *partial, const vq_kmeans_part *parts,
              int64_t n_parts, int64_t size)
{
    for (int64_t p = blockIdx.x; p < n_parts; p += gridDim.x) {
        const double *of = partial + vq_part_first(parts, p, VQ_PART_VECTORS, size);
        double sum = 0;
        for (int64_t b = threadIdx.x; b < VQ_CEIL_DIV(parts[p].n, size); b += THREADS) sum += of[b];
        sum = vq_block_sum(sum);
        if (threadIdx.x == 0) objective[p] = sum;
    }
}

static vq_status parts_there(vq_cuda *cuda, const vq_kmeans_part *parts, int64_t n_parts,
                             vq_kmeans_part **there)
{
    VQ_TRY(VQ_NEW(&cuda->scratch, n_parts, there));
    return vq_cuda_send(cuda, cuda->stream, *there, parts, size_t(n_parts) * sizeof *parts);
}

#define ASSIGN(kernel, ...)                                                                        \
    VQ_LAUNCH(cuda, kernel, unsigned(blocks), THREADS, 0, static_cast<uint32_t *>(idx->data),      \
              partial, static_cast<const float *>(x->data), packed, __VA_ARGS__)

vq_status vq_cuda_kmeans_assign(void *ctx, vq_tensor *idx, double *objective, const vq_tensor *x,
                                const vq_tensor *codes, const vq_kmeans_part *parts,
                                int64_t n_parts)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t D = x->dim[1], K = codes->dim[0];
    const int64_t size = THREADS * (D == 4 || D == 8 ? 4 : D == 16 ? 2 : 1);
    const int64_t n_groups = vq_part_blocks(K, n_parts, GROUP);
    const int64_t blocks = vq_part_blocks(x->dim[0], n_parts, size);
    const size_t mark = vq_arena_mark(&cuda->scratch);
    float *packed = NULL;
    double *partial = NULL, *sums = NULL;
    vq_kmeans_part *of = NULL;
    VQ_TRY(VQ_NEW(&cuda->scratch, n_groups * GROUP * (D + 1), &packed));
    VQ_TRY(VQ_NEW(&cuda->scratch, blocks, &partial));
    VQ_TRY(VQ_NEW(&cuda->scratch, n_parts, &sums));
    VQ_TRY(parts_there(cuda, parts, n_parts, &of));
    VQ_LAUNCH(cuda, pack_codes, vq_cuda_blocks(n_groups * GROUP, THREADS), THREADS, 0, packed,
              static_cast<const float *>(codes->data), n_groups, D, of, n_parts);
    if (D == 4)
        ASSIGN((assign<4, 4>), of, n_parts);
    else if (D == 8)
        ASSIGN((assign<8, 4>), of, n_parts);
    else if (D == 16)
        ASSIGN((assign<16, 2>), of, n_parts);
    else
        ASSIGN(assign_any, of, n_parts, D);
    VQ_LAUNCH(cuda, sum_parts, vq_cuda_blocks(n_parts, 1), THREADS, 0, sums, partial, of, n_parts,
              size);
    VQ_TRY(vq_cuda_take(cuda, objective, sums, size_t(n_parts) * sizeof *sums));
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}

/* --- the means ------------------------------------------------------------------------------- */

/* Sums are taken as 64-bit integers: whatever the order of the additions, they are the same. The
 * greatest |x| fixes the numbers' exponent so that n of them cannot overflow; with a million
 * vectors they have 42 bits below it, 18 more than x itself. */
#define SUM_BITS 62

/* *bits = the greatest |x|, by its bits, of those that are finite. */
static __global__ void __launch_bounds__(THREADS)
    find_greatest(uint32_t *bits, const float *x, int64_t n)
{
    uint32_t most = 0;
    for (int64_t i = vq_thread(); i < n; i += vq_threads()) {
        const uint32_t size = __float_as_uint(fabsf(x[i]));
        most = size > most && size < 0x7f800000u ? size : most;
    }
    most = vq_block_max(most);
    if (threadIdx.x == 0) atomicMax(bits, most);
}

/* Numbers are times 2^this: |x| < 2^(the exponent of greatest + 1), n of them below 2^SUM_BITS. */
static __device__ __forceinline__ int exponent_of(uint32_t greatest, int bits)
{
    return bits - (int(greatest >> 23) - 126);
}

/* What is not finite is marked in bad[K]. A block takes ADD_VECTORS of one part. */
static __global__ void __launch_bounds__(THREADS)
    add_up(unsigned long long *sum, uint32_t *counts, uint32_t *bad, const float *x,
           const uint32_t *idx, int64_t D, const vq_kmeans_part *parts, int64_t n_parts,
           const uint32_t *greatest, int bits)
{
    const vq_part_block of =
        vq_part_block_at(parts, n_parts, VQ_PART_VECTORS, ADD_VECTORS, int64_t(blockIdx.x));
    const double factor = ldexp(1.0, exponent_of(*greatest, bits));
    for (int64_t i = of.first * D + threadIdx.x; i < (of.first + of.n) * D; i += THREADS) {
        const int64_t v = i / D, d = i - v * D, k = idx[v];
        if (d == 0) atomicAdd(&counts[k], 1u);
        const float xi = x[i];
        if (__float_as_uint(fabsf(xi)) >= 0x7f800000u) {
            atomicOr(&bad[k], 1u);
            continue;
        }
        const int64_t number = int64_t(rint(double(xi) * factor));
        atomicAdd(&sum[k * D + d], static_cast<unsigned long long>(number));
    }
}

static __global__ void __launch_bounds__(THREADS)
    take_means(float *codes, const unsigned long long *sum, const uint32_t *counts,
               const uint32_t *bad, int64_t n, int64_t D, const uint32_t *greatest, int bits)
{
    const double factor = ldexp(1.0, -exponent_of(*greatest, bits));
    for (int64_t i = vq_thread(); i < n; i += vq_threads()) {
        const int64_t k = i / D;
        if (counts[k] == 0) continue;
        const double total = double(static_cast<long long>(sum[i])) * factor;
        codes[i] = bad[k] ? NAN : float(total / double(counts[k]));
    }
}

vq_status vq_cuda_kmeans_update(void *ctx, vq_tensor *codes, vq_tensor *counts, const vq_tensor *x,
                                const vq_tensor *idx, const vq_kmeans_part *parts, int64_t n_parts)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = x->dim[0], D = x->dim[1], K = codes->dim[0];
    const int bits = vq_cuda_fixed_bits(SUM_BITS, n);
    const float *from = static_cast<const float *>(x->data);
    uint32_t *count = static_cast<uint32_t *>(counts->data), *marks = NULL;
    unsigned long long *sum = NULL;
    vq_kmeans_part *of = NULL;
    const size_t mark = vq_arena_mark(&cuda->scratch);
    VQ_CUDA(cudaMemsetAsync(count, 0, size_t(K) * sizeof *count, cuda->stream));
    VQ_TRY(VQ_NEW(&cuda->scratch, K * D, &sum));
    VQ_TRY(VQ_NEW(&cuda->scratch, K + 1, &marks)); /* bad, and the greatest |x| */
    VQ_TRY(parts_there(cuda, parts, n_parts, &of));
    VQ_CUDA(cudaMemsetAsync(sum, 0, size_t(K * D) * sizeof *sum, cuda->stream));
    VQ_CUDA(cudaMemsetAsync(marks, 0, size_t(K + 1) * sizeof *marks, cuda->stream));
    VQ_LAUNCH(cuda, find_greatest, unsigned(vq_cuda_sum_blocks(n * D)), THREADS, 0, marks + K, from,
              n * D);
    VQ_LAUNCH(cuda, add_up, unsigned(vq_part_blocks(n, n_parts, ADD_VECTORS)), THREADS, 0, sum,
              count, marks, from, static_cast<const uint32_t *>(idx->data), D, of, n_parts,
              marks + K, bits);
    VQ_LAUNCH(cuda, take_means, vq_cuda_blocks(K * D, THREADS), THREADS, 0,
              static_cast<float *>(codes->data), sum, count, marks, K * D, D, marks + K, bits);
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}
