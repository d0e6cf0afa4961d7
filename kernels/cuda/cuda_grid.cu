/* cuda_grid - scale and zero from the range of a group, and where each weight lies between
 * integers.
 *
 * A block takes one group, or one row. Divisions, products and sums are rounded one by one, as on
 * the CPU: floor and round see their last bit. */
#include "cuda_device.cuh"

/* The groups whose grids are wanted. */
struct groups {
    int64_t out, in, n, size; /* n: of a row */
    int64_t first, wanted;    /* of a row's */
    float qmax;
    vq_cuda_grid_rule rule;
};

/* The grid of weights in [low, high]. */
static __device__ __forceinline__ void grid_of_range(const groups &g, float low, float high,
                                                     float *s, float *z)
{
    vq_grid_range(&low, &high, g.rule.symmetric, g.rule.include_zero);
    *s = low == high ? 1 : vq_round_scale((high - low) / g.qmax, g.rule.scale_dtype);
    *z = vq_grid_zero(low, *s, g.qmax, g.rule.symmetric, g.rule.include_zero);
}

#define SHRINKS 80 /* ranges tried: p = 1 - i / 100 */

/* Each range in turn, by the block: errors in units of the first scale, whose squares stay in
 * range. The grid of the least error, the first among equals; all threads get it. */
template <class T>
static __device__ void search(const groups &g, const T *w, const float *variance, const float *mean,
                              const uint8_t *dead, int64_t n, float low, float high, float *scale,
                              float *zero)
{
    float least = INFINITY, unit = 0;
    for (int i = 0; i < SHRINKS; i++) {
        const float p = float(1 - double(i) / 100);
        float s, z, sum = 0, bias = 0;
        grid_of_range(g, p * low, p * high, &s, &z);
        if (i == 0) *scale = s, *zero = z, unit = 1 / s;
        for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
            if (dead && dead[j]) continue;
            const float x = vq_load(w[j]), level = rintf(x / s) + z;
            const float q = level > 0 ? (level < g.qmax ? level : g.qmax) : 0;
            const float d = (s * (q - z) - x) * unit;
            sum += variance ? variance[j] * d * d : vq_power_2_4(d);
            if (mean) bias += mean[j] * d;
        }
        sum = vq_block_sum(sum);
        if (mean) {
            bias = vq_block_sum(bias);
            sum += bias * bias;
        }
        if (sum < least) least = sum, *scale = s, *zero = z;
    }
}

/* A block takes a group. What is NaN is not seen. */
template <class T>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX)
    find_grids(float *scale, float *zero, const T *w, const uint8_t *dead, groups g)
{
    for (int64_t b = blockIdx.x; b < g.out * g.wanted; b += gridDim.x) {
        const int64_t row = b / g.wanted, group = g.first + b % g.wanted, first = group * g.size;
        const int64_t n = VQ_MIN(g.size, g.in - first), at = row * g.n + group;
        const T *from = w + row * g.in + first;
        const uint8_t *none = dead ? dead + first : NULL;
        float low = g.rule.search ? 0 : INFINITY, high = -low, s, z;
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
            if (none && none[i]) continue;
            const float x = vq_load(from[i]);
            low = x < low ? x : low;
            high = x > high ? x : high;
        }
        low = -vq_block_max(-low);
        high = vq_block_max(high);
        if (g.rule.search)
            search(g, from, g.rule.variance ? g.rule.variance + first : NULL,
                   g.rule.mean ? g.rule.mean + first : NULL, none, n, low, high, &s, &z);
        else
            grid_of_range(g, low, high, &s, &z);
        if (threadIdx.x == 0) scale[at] = s, zero[at] = z;
    }
}

vq_status vq_cuda_find_grids(vq_cuda *cuda, vq_quant *q, const vq_tensor *w,
                             const vq_cuda_grid_rule *rule, const uint8_t *dead,
                             int64_t first_group, int64_t n_groups)
{
    groups g = {};
    g.out = w->dim[0], g.in = w->dim[1], g.n = q->scale.dim[1], g.size = q->group_size;
    g.first = first_group, g.wanted = n_groups;
    g.qmax = float((1 << q->bits) - 1);
    g.rule = *rule;
    if (g.out * n_groups == 0) return VQ_OK;
    const int threads = vq_cuda_row_threads(VQ_MIN(g.size, g.in), 1);
    VQ_FLOAT_TYPE(w->dtype,
                  VQ_LAUNCH(cuda, find_grids<T>, vq_cuda_blocks(g.out * n_groups, 1), threads, 0,
                            static_cast<float *>(q->scale.data), static_cast<float *>(q->zero.data),
                            static_cast<const T *>(w->data), dead, g));
    return VQ_OK;
}

static vq_status find_all(void *ctx, vq_tensor *scale, vq_tensor *zero, const vq_tensor *w,
                          int bits, int64_t group_size, const vq_cuda_grid_rule *rule)
{
    vq_quant q = {};
    q.scale = *scale, q.zero = *zero, q.bits = bits, q.group_size = group_size;
    return vq_cuda_find_grids(static_cast<vq_cuda *>(ctx), &q, w, rule, NULL, 0, scale->dim[1]);
}

vq_status vq_cuda_grid_minmax(void *ctx, vq_tensor *scale, vq_tensor *zero, const vq_tensor *w,
                              int bits, int64_t group_size, bool symmetric, bool include_zero,
                              vq_dtype scale_dtype)
{
    const vq_cuda_grid_rule rule = {symmetric, include_zero, false, scale_dtype, NULL, NULL};
    return find_all(ctx, scale, zero, w, bits, group_size, &rule);
}

vq_status vq_cuda_grid_search(void *ctx, vq_tensor *scale, vq_tensor *zero, const vq_tensor *w,
                              const vq_tensor *inputs, int bits, int64_t group_size, bool symmetric,
                              vq_dtype scale_dtype)
{
    const float *variance = inputs ? static_cast<const float *>(inputs->data) : NULL;
    const vq_cuda_grid_rule rule = {symmetric,   true,     true,
                                    scale_dtype, variance, inputs ? variance + w->dim[1] : NULL};
    return find_all(ctx, scale, zero, w, bits, group_size, &rule);
}

/* --- by rows --------------------------------------------------------------------------------- */

/* A row-wise kernel's loops: rows by blocks, columns by threads, N beside each other by one, with
 * its group's scale s and zero z. */
struct grid {
    int64_t out, in, groups, group_size;
    const float *scale, *zero;
    float qmax;
};

static grid grid_of(const vq_tensor *w, const vq_tensor *scale, const vq_tensor *zero, int bits,
                    int64_t group_size)
{
    grid g = {};
    g.out = w->dim[0], g.in = w->dim[1], g.groups = scale->dim[1], g.group_size = group_size;
    g.scale = static_cast<const float *>(scale->data);
    g.zero = static_cast<const float *>(zero->data);
    g.qmax = float((1 << bits) - 1);
    return g;
}

template <int N, class F> static __device__ __forceinline__ void for_each_weight(const grid &g, F f)
{
    for (int64_t row = blockIdx.x; row < g.out; row += gridDim.x)
        for (int64_t first = threadIdx.x * N; first < g.in; first += int64_t(blockDim.x) * N)
            for (int64_t i = first; i < VQ_MIN(first + N, g.in); i++) {
                const int64_t group = g.groups == 1 ? 0 : uint32_t(i) / uint32_t(g.group_size);
                const int64_t at = row * g.groups + group;
                f(row, i, g.scale[at], g.zero[at]);
            }
}

#define ROW_BLOCKS 1 /* at least: for more ptxas would put values into memory */

/* A weight that is NaN gives base -1 and rest NaN. */
template <class T, class I>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX, ROW_BLOCKS)
    split(I *base, float *rest, const T *w, grid g)
{
    int low = 0;
    for_each_weight<2>(g, [&](int64_t row, int64_t i, float s, float z) {
        const int64_t p = row * g.in + i;
        const float u = vq_load(w[p]) / s, below = floorf(u), n = below + z;
        rest[p] = u - below;
        vq_store_int(base, g.in, row, i, int(n > -1 ? (n < g.qmax ? n : g.qmax) : -1), &low);
    });
}

template <class T, class A>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX, ROW_BLOCKS)
    round_nearest(A *out, const T *w, grid g)
{
    for_each_weight<1>(g, [&](int64_t row, int64_t i, float s, float z) {
        const int64_t p = row * g.in + i;
        const float n = rintf(vq_load(w[p]) / s) + z;
        const float below = n < g.qmax ? n : g.qmax;
        out[p] = vq_store<A>(s * ((0 > below ? 0 : below) - z));
    });
}

template <class A, class I>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX, ROW_BLOCKS)
    value(A *out, const I *ints, grid g)
{
    for_each_weight<1>(g, [&](int64_t row, int64_t i, float s, float z) {
        out[row * g.in + i] = vq_store<A>(s * (float(vq_load_int(ints, g.in, row, i)) - z));
    });
}

#define BY_ROWS(kernel, each, ...)                                                                 \
    VQ_LAUNCH(cuda, kernel, vq_cuda_blocks(g.out, 1), vq_cuda_row_threads(g.in, each), 0,          \
              __VA_ARGS__)

vq_status vq_cuda_grid_split(void *ctx, vq_tensor *base, vq_tensor *rest, const vq_tensor *w,
                             const vq_tensor *scale, const vq_tensor *zero, int bits,
                             int64_t group_size)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const grid g = grid_of(w, scale, zero, bits, group_size);
    float *r = static_cast<float *>(rest->data);
    if (g.out * g.in == 0) return VQ_OK;
    VQ_INT_TYPE(base->dtype,
                VQ_FLOAT_TYPE(w->dtype, BY_ROWS((split<T, I>), 2, static_cast<I *>(base->data), r,
                                                static_cast<const T *>(w->data), g)));
    return VQ_OK;
}

template <class A>
static vq_status run_round(vq_cuda *cuda, A *out, const vq_tensor *w, const grid &g)
{
    VQ_FLOAT_TYPE(w->dtype,
                  BY_ROWS((round_nearest<T, A>), 1, out, static_cast<const T *>(w->data), g));
    return VQ_OK;
}

vq_status vq_cuda_grid_round(void *ctx, vq_tensor *out, const vq_tensor *w, const vq_quant *q)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const grid g = grid_of(w, &q->scale, &q->zero, q->bits, q->group_size);
    if (g.out * g.in == 0) return VQ_OK;
    VQ_ACT_TYPE(out->dtype, VQ_TRY(run_round(cuda, static_cast<T *>(out->data), w, g)));
    return VQ_OK;
}

vq_status vq_cuda_grid_value(void *ctx, vq_tensor *out, const vq_tensor *ints, const vq_quant *q)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const grid g = grid_of(out, &q->scale, &q->zero, q->bits, q->group_size);
    if (g.out * g.in == 0) return VQ_OK;
    VQ_INT_TYPE(ints->dtype,
                VQ_ACT_TYPE(out->dtype, BY_ROWS((value<T, I>), 1, static_cast<T *>(out->data),
                                                static_cast<const I *>(ints->data), g)));
    return VQ_OK;
}
