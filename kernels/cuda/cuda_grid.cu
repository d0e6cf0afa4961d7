/* cuda_grid - scale and zero from the range of a group, and where each weight lies between
 * integers.
 *
 * A block takes one group, or one row. Divisions, products and sums are rounded one by one, as on
 * the CPU: floor and round see their last bit. */
#include "cuda_device.cuh"

/* Least and greatest of a group, then its grid. What is NaN is not seen. */
struct grid_rule {
    int64_t out, in, groups, group_size;
    int64_t first_group, n_groups; /* those to find */
    float qmax;
    bool symmetric, include_zero;
    vq_dtype scale_dtype;
};

template <class T>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX)
    find_grids(float *scale, float *zero, const T *w, const uint8_t *dead, grid_rule rule)
{
    for (int64_t b = blockIdx.x; b < rule.out * rule.n_groups; b += gridDim.x) {
        const int64_t row = b / rule.n_groups, group = rule.first_group + b % rule.n_groups;
        const int64_t first = group * rule.group_size;
        const int64_t end = VQ_MIN(first + rule.group_size, rule.in);
        float low = INFINITY, high = -INFINITY;
        for (int64_t i = first + threadIdx.x; i < end; i += blockDim.x) {
            if (dead && dead[i]) continue;
            const float x = vq_load(w[row * rule.in + i]);
            low = x < low ? x : low;
            high = x > high ? x : high;
        }
        low = -vq_block_max(-low);
        high = vq_block_max(high);
        if (threadIdx.x > 0) continue;
        vq_grid_range(&low, &high, rule.symmetric, rule.include_zero);
        const float s =
            low == high ? 1 : vq_round_scale((high - low) / rule.qmax, rule.scale_dtype);
        scale[row * rule.groups + group] = s;
        zero[row * rule.groups + group] =
            vq_grid_zero(low, s, rule.qmax, rule.symmetric, rule.include_zero);
    }
}

vq_status vq_cuda_find_grids(vq_cuda *cuda, vq_quant *q, const vq_tensor *w, bool symmetric,
                             bool include_zero, vq_dtype scale_dtype, const uint8_t *dead,
                             int64_t first_group, int64_t n_groups)
{
    grid_rule rule = {};
    rule.out = w->dim[0], rule.in = w->dim[1];
    rule.groups = q->scale.dim[1], rule.group_size = q->group_size;
    rule.first_group = first_group, rule.n_groups = n_groups;
    rule.qmax = float((1 << q->bits) - 1);
    rule.symmetric = symmetric, rule.include_zero = include_zero, rule.scale_dtype = scale_dtype;
    if (rule.out * n_groups == 0) return VQ_OK;
    const int threads = vq_cuda_row_threads(VQ_MIN(rule.group_size, rule.in), 1);
    VQ_FLOAT_TYPE(w->dtype,
                  VQ_LAUNCH(cuda, find_grids<T>, vq_cuda_blocks(rule.out * n_groups, 1), threads, 0,
                            static_cast<float *>(q->scale.data), static_cast<float *>(q->zero.data),
                            static_cast<const T *>(w->data), dead, rule));
    return VQ_OK;
}

vq_status vq_cuda_grid_minmax(void *ctx, vq_tensor *scale, vq_tensor *zero, const vq_tensor *w,
                              int bits, int64_t group_size, bool symmetric, bool include_zero,
                              vq_dtype scale_dtype)
{
    vq_quant q = {};
    q.scale = *scale, q.zero = *zero, q.bits = bits, q.group_size = group_size;
    return vq_cuda_find_grids(static_cast<vq_cuda *>(ctx), &q, w, symmetric, include_zero,
                              scale_dtype, NULL, 0, scale->dim[1]);
}

/* --- by rows --------------------------------------------------------------------------------- */

/* A row-wise kernel's loops: rows by blocks, columns by threads, with the weight's place p and its
 * group's scale s and zero z. */
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

template <class F> static __device__ __forceinline__ void for_each_weight(const grid &g, F f)
{
    for (int64_t row = blockIdx.x; row < g.out; row += gridDim.x)
        for (int64_t i = threadIdx.x; i < g.in; i += blockDim.x) {
            const int64_t group = g.groups == 1 ? 0 : uint32_t(i) / uint32_t(g.group_size);
            const int64_t at = row * g.groups + group;
            f(row * g.in + i, g.scale[at], g.zero[at]);
        }
}

/* A weight that is NaN gives base -1 and rest NaN. */
template <class T, class I>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX)
    split(I *base, float *rest, const T *w, grid g)
{
    for_each_weight(g, [&](int64_t p, float s, float z) {
        const float u = vq_load(w[p]) / s, below = floorf(u), n = below + z;
        rest[p] = u - below;
        base[p] = I(n > -1 ? (n < g.qmax ? n : g.qmax) : -1);
    });
}

template <class T, class A>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX) round_nearest(A *out, const T *w, grid g)
{
    for_each_weight(g, [&](int64_t p, float s, float z) {
        const float n = rintf(vq_load(w[p]) / s) + z;
        const float below = n < g.qmax ? n : g.qmax;
        out[p] = vq_store<A>(s * ((0 > below ? 0 : below) - z));
    });
}

template <class A, class I>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX) value(A *out, const I *ints, grid g)
{
    for_each_weight(
        g, [&](int64_t p, float s, float z) { out[p] = vq_store<A>(s * (float(ints[p]) - z)); });
}

#define BY_ROWS(kernel, ...)                                                                       \
    VQ_LAUNCH(cuda, kernel, vq_cuda_blocks(g.out, 1), vq_cuda_row_threads(g.in, 1), 0, __VA_ARGS__)

vq_status vq_cuda_grid_split(void *ctx, vq_tensor *base, vq_tensor *rest, const vq_tensor *w,
                             const vq_tensor *scale, const vq_tensor *zero, int bits,
                             int64_t group_size)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const grid g = grid_of(w, scale, zero, bits, group_size);
    float *r = static_cast<float *>(rest->data);
    if (g.out * g.in == 0) return VQ_OK;
    if (base->dtype == VQ_I8)
        VQ_FLOAT_TYPE(w->dtype, BY_ROWS((split<T, int8_t>), static_cast<int8_t *>(base->data), r,
                                        static_cast<const T *>(w->data), g));
    else
        VQ_FLOAT_TYPE(w->dtype, BY_ROWS((split<T, int16_t>), static_cast<int16_t *>(base->data), r,
                                        static_cast<const T *>(w->data), g));
    return VQ_OK;
}

template <class A>
static vq_status run_round(vq_cuda *cuda, A *out, const vq_tensor *w, const grid &g)
{
    VQ_FLOAT_TYPE(w->dtype,
                  BY_ROWS((round_nearest<T, A>), out, static_cast<const T *>(w->data), g));
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
    if (ints->dtype == VQ_I8)
        VQ_ACT_TYPE(out->dtype, BY_ROWS((value<T, int8_t>), static_cast<T *>(out->data),
                                        static_cast<const int8_t *>(ints->data), g));
    else
        VQ_ACT_TYPE(out->dtype, BY_ROWS((value<T, int16_t>), static_cast<T *>(out->data),
                                        static_cast<const int16_t *>(ints->data), g));
    return VQ_OK;
}
