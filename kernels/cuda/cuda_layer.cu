/* cuda_layer - the element-wise and row-wise operations of a decoder layer, each one pass over its
 * tensors: a block takes a row, or a run of elements, and moves up to 16 bytes a thread at once.
 *
 * A norm's backward reads its row twice; the second time it comes from a cache. */
#include "cuda_device.cuh"

#define THREADS 256
#define NORM_THREADS 512 /* at most: 64 registers each would fit twice as many */
#define NORM_BLOCKS 1    /* at least: for more ptxas would put values into memory */

/* --- elements -------------------------------------------------------------------------------- */

/* Elements that a thread moves at once where all of these tensors are walked in step. */
static int common_pack(int64_t width, size_t bytes, const void *a, const void *b, const void *c)
{
    return vq_cuda_pack(width, bytes,
                        reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) |
                            reinterpret_cast<uintptr_t>(c));
}

/* Runs the statement with N defined as the greatest power of two up to 16 / sizeof(T) that is
 * `pack`; odd sizes go one by one. */
#define PACKED(pack, T, ...)                                                                       \
    do {                                                                                           \
        if ((pack) == 16 / static_cast<int>(sizeof(T))) {                                          \
            enum { N = 16 / sizeof(T) };                                                           \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            enum { N = 1 };                                                                        \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)

template <class To, class From> __device__ __forceinline__ To converted(From x)
{
    return vq_store<To>(vq_load(x));
}

template <> __device__ __forceinline__ double converted<double, float>(float x)
{
    return static_cast<double>(x);
}

template <> __device__ __forceinline__ double converted<double, double>(double x)
{
    return x;
}

template <> __device__ __forceinline__ double converted<double, __half>(__half x)
{
    return static_cast<double>(vq_load(x));
}

template <> __device__ __forceinline__ double converted<double, __nv_bfloat16>(__nv_bfloat16 x)
{
    return static_cast<double>(vq_load(x));
}

/* N elements a turn, and those behind the last whole N one by one. */
template <class To, class From, int N>
static __global__ void __launch_bounds__(THREADS)
    convert_kernel(To *__restrict__ to, const From *__restrict__ from, int64_t n)
{
    typedef vq_pack<From, N> source;
    typedef vq_pack<To, N> result;
    for (int64_t i = vq_thread(); i < n / N; i += vq_threads()) {
        const source x = reinterpret_cast<const source *>(from)[i];
        result y;
        for (int j = 0; j < N; j++) y.x[j] = converted<To>(x.x[j]);
        reinterpret_cast<result *>(to)[i] = y;
    }
    for (int64_t i = n / N * N + vq_thread(); i < n; i += vq_threads())
        to[i] = converted<To>(from[i]);
}

template <class To, class From>
static vq_status convert(vq_cuda *cuda, To *to, const From *from, int64_t n)
{
    constexpr int PACK = 16 / int(sizeof(To) > sizeof(From) ? sizeof(To) : sizeof(From));
    if (uintptr_t(to) % (PACK * sizeof(To)) == 0 && uintptr_t(from) % (PACK * sizeof(From)) == 0)
        VQ_LAUNCH(cuda, (convert_kernel<To, From, PACK>), vq_cuda_blocks(n, THREADS * PACK),
                  THREADS, 0, to, from, n);
    else
        VQ_LAUNCH(cuda, (convert_kernel<To, From, 1>), vq_cuda_blocks(n, THREADS), THREADS, 0, to,
                  from, n);
    return VQ_OK;
}

template <class To>
static vq_status convert_to(vq_cuda *cuda, To *to, const void *src, vq_dtype src_dtype, int64_t n)
{
    VQ_FLOAT_TYPE(src_dtype, return convert(cuda, to, static_cast<const T *>(src), n));
    return VQ_OK;
}

vq_status vq_cuda_convert(vq_cuda *cuda, void *dst, vq_dtype dst_dtype, const void *src,
                          vq_dtype src_dtype, int64_t n)
{
    if (n == 0) return VQ_OK;
    VQ_FLOAT_TYPE(dst_dtype, return convert_to(cuda, static_cast<T *>(dst), src, src_dtype, n));
    return VQ_OK;
}

/* out[i] (+)= table[ids[i]]. */
template <class T, class W>
static __global__ void __launch_bounds__(THREADS)
    embed_kernel(T *__restrict__ out, const W *__restrict__ table, const int32_t *__restrict__ ids,
                 int64_t n, int64_t E, bool add)
{
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        const W *row = table + static_cast<int64_t>(ids[i]) * E;
        T *y = out + i * E;
        for (int64_t j = threadIdx.x; j < E; j += THREADS)
            y[j] = add ? vq_store<T>(vq_load(y[j]) + vq_load(row[j])) : converted<T>(row[j]);
    }
}

template <class T>
static vq_status embed(vq_cuda *cuda, vq_tensor *out, const vq_tensor *table, const vq_tensor *ids,
                       bool add)
{
    T *to = static_cast<T *>(out->data);
    const int32_t *id = static_cast<const int32_t *>(ids->data);
    const int64_t n = out->dim[0], E = out->dim[1];
    const vq_dtype type = table->dtype;
    const void *rows = table->data;
    /* The table's type has another name here: T is taken. */
    if (type == VQ_F64)
        VQ_LAUNCH(cuda, (embed_kernel<T, double>), vq_cuda_blocks(n, 1), THREADS, 0, to,
                  static_cast<const double *>(rows), id, n, E, add);
    else if (type == VQ_F32)
        VQ_LAUNCH(cuda, (embed_kernel<T, float>), vq_cuda_blocks(n, 1), THREADS, 0, to,
                  static_cast<const float *>(rows), id, n, E, add);
    else if (type == VQ_F16)
        VQ_LAUNCH(cuda, (embed_kernel<T, __half>), vq_cuda_blocks(n, 1), THREADS, 0, to,
                  static_cast<const __half *>(rows), id, n, E, add);
    else
        VQ_LAUNCH(cuda, (embed_kernel<T, __nv_bfloat16>), vq_cuda_blocks(n, 1), THREADS, 0, to,
                  static_cast<const __nv_bfloat16 *>(rows), id, n, E, add);
    return VQ_OK;
}

vq_status vq_cuda_embed(void *ctx, vq_tensor *out, const vq_tensor *table, const vq_tensor *ids,
                        bool add)
{
    if (out->dim[0] == 0) return VQ_OK;
    VQ_ACT_TYPE(out->dtype, return embed<T>(static_cast<vq_cuda *>(ctx), out, table, ids, add));
    return VQ_OK;
}

template <class T>
static __global__ void __launch_bounds__(THREADS)
    bias_add_kernel(T *__restrict__ y, const void *__restrict__ bias, vq_dtype type, int64_t n,
                    int64_t E)
{
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x)
        for (int64_t j = threadIdx.x; j < E; j += THREADS)
            y[i * E + j] = vq_store<T>(vq_load(y[i * E + j]) + vq_load_any(bias, type, j));
}

vq_status vq_cuda_bias_add(void *ctx, vq_tensor *y, const vq_tensor *bias)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = y->dim[0], E = y->dim[1];
    VQ_ACT_TYPE(y->dtype, VQ_LAUNCH(cuda, bias_add_kernel<T>, vq_cuda_blocks(n, 1), THREADS, 0,
                                    static_cast<T *>(y->data), bias->data, bias->dtype, n, E));
    return VQ_OK;
}

/* What a pass over equal tensors does to its elements: out from a, b and the old out's places. */
enum element_op { ADD, RELU, RELU_BWD, SILU_GATE };

template <element_op OP> __device__ __forceinline__ float element(float a, float b)
{
    switch (OP) {
    case ADD: return a + b;
    case RELU: return a < 0 ? 0 : a; /* NaN passes */
    case RELU_BWD: return b > 0 ? a : 0;
    default: return vq_silu(a) * b;
    }
}

template <element_op OP, class T, int N>
static __global__ void __launch_bounds__(THREADS)
    element_kernel(T *out, const T *a, const T *b, int64_t n_packs)
{
    typedef vq_pack<T, N> pack;
    const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < n_packs;
         i += step) {
        const pack x = reinterpret_cast<const pack *>(a)[i];
        const pack y = reinterpret_cast<const pack *>(b)[i];
        pack z;
        for (int j = 0; j < N; j++)
            z.x[j] = vq_store<T>(element<OP>(vq_load(x.x[j]), vq_load(y.x[j])));
        reinterpret_cast<pack *>(out)[i] = z;
    }
}

/* out = OP(a, b); all may be one. */
template <element_op OP>
static vq_status elements(void *ctx, vq_tensor *out, const vq_tensor *a, const vq_tensor *b)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = vq_tensor_count(out);
    const int pack = common_pack(n, vq_dtype_bytes(out->dtype), out->data, a->data, b->data);
    if (n == 0) return VQ_OK;
    VQ_ACT_TYPE(
        out->dtype,
        PACKED(pack, T,
               VQ_LAUNCH(cuda, (element_kernel<OP, T, N>), vq_cuda_blocks(n / N, THREADS), THREADS,
                         0, static_cast<T *>(out->data), static_cast<const T *>(a->data),
                         static_cast<const T *>(b->data), n / N)));
    return VQ_OK;
}

vq_status vq_cuda_add(void *ctx, vq_tensor *y, const vq_tensor *x)
{
    return elements<ADD>(ctx, y, y, x);
}

/* --- norms ----------------------------------------------------------------------------------- */

/* Threads of a row's block. */
static int norm_threads(int64_t E, int pack)
{
    return VQ_MIN(vq_cuda_row_threads(E, pack), NORM_THREADS);
}

/* y = (x - mean) rstd weight + bias; without CENTERED mean is 0. weight and bias may be NULL. */
template <class T, int N, bool CENTERED>
static __global__ void __launch_bounds__(NORM_THREADS, NORM_BLOCKS)
    norm_fwd_kernel(T *y, float *mean, float *rstd, const T *x, const void *weight,
                    vq_dtype weight_type, const void *bias, vq_dtype bias_type, int64_t n,
                    int64_t E, double eps)
{
    typedef vq_pack<T, N> pack;
    const int64_t n_packs = E / N;
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        const pack *in = reinterpret_cast<const pack *>(x + i * E);
        pack *out = reinterpret_cast<pack *>(y + i * E);
        float mu = 0;
        if (CENTERED) {
            float sum = 0;
            for (int64_t j = threadIdx.x; j < n_packs; j += blockDim.x) {
                const pack p = in[j];
                for (int l = 0; l < N; l++) sum += vq_load(p.x[l]);
            }
            mu = vq_block_sum(sum) / static_cast<float>(E);
        }
        /* The variance from the centered row: the two-moment formula cancels. */
        float squares = 0;
        for (int64_t j = threadIdx.x; j < n_packs; j += blockDim.x) {
            const pack p = in[j];
            for (int l = 0; l < N; l++) {
                const float d = vq_load(p.x[l]) - mu;
                squares += d * d;
            }
        }
        const double var = static_cast<double>(vq_block_sum(squares)) / static_cast<double>(E);
        const float r = static_cast<float>(1 / sqrt(var + eps));
        if (threadIdx.x == 0) {
            rstd[i] = r;
            if (CENTERED) mean[i] = mu;
        }
        for (int64_t j = threadIdx.x; j < n_packs; j += blockDim.x) {
            const pack p = in[j];
            pack q;
            for (int l = 0; l < N; l++) {
                float v = (vq_load(p.x[l]) - mu) * r;
                if (weight) v *= vq_load_any(weight, weight_type, j * N + l);
                if (bias) v += vq_load_any(bias, bias_type, j * N + l);
                q.x[l] = vq_store<T>(v);
            }
            out[j] = q;
        }
    }
}

/* dx = plus + rstd (g - mean(g) - xhat mean(g xhat)),  g = dy weight; without CENTERED mean(g) is
 * left out. dx may be dy or plus, which may be NULL. */
template <class T, int N, bool CENTERED>
static __global__ void __launch_bounds__(NORM_THREADS, NORM_BLOCKS)
    norm_bwd_kernel(T *dx, const T *dy, const T *x, const void *weight, vq_dtype weight_type,
                    const float *mean, const float *rstd, const T *plus, int64_t n, int64_t E)
{
    typedef vq_pack<T, N> pack;
    const int64_t n_packs = E / N;
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        const pack *in = reinterpret_cast<const pack *>(x + i * E);
        const pack *d = reinterpret_cast<const pack *>(dy + i * E);
        const pack *old = reinterpret_cast<const pack *>(plus + i * E);
        pack *out = reinterpret_cast<pack *>(dx + i * E);
        const float mu = CENTERED ? mean[i] : 0, r = rstd[i];
        float sum_g = 0, sum_gx = 0;
        for (int64_t j = threadIdx.x; j < n_packs; j += blockDim.x) {
            const pack p = in[j], q = d[j];
            for (int l = 0; l < N; l++) {
                float g = vq_load(q.x[l]);
                if (weight) g *= vq_load_any(weight, weight_type, j * N + l);
                sum_g += g;
                sum_gx += g * (vq_load(p.x[l]) - mu) * r;
            }
        }
        const float mean_g = CENTERED ? vq_block_sum(sum_g) / static_cast<float>(E) : 0;
        const float mean_gx = vq_block_sum(sum_gx) / static_cast<float>(E);
        for (int64_t j = threadIdx.x; j < n_packs; j += blockDim.x) {
            const pack p = in[j], q = d[j];
            pack more = {}, result;
            if (plus) more = old[j];
            for (int l = 0; l < N; l++) {
                float g = vq_load(q.x[l]);
                if (weight) g *= vq_load_any(weight, weight_type, j * N + l);
                float v = r * (g - mean_g - (vq_load(p.x[l]) - mu) * r * mean_gx);
                if (plus) v += vq_load(more.x[l]);
                result.x[l] = vq_store<T>(v);
            }
            out[j] = result;
        }
    }
}

template <bool CENTERED>
static vq_status norm_fwd(void *ctx, vq_tensor *y, float *mean, vq_tensor *rstd, const vq_tensor *x,
                          const vq_tensor *weight, const vq_tensor *bias, double eps)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = x->dim[0], E = x->dim[1];
    const int pack = common_pack(E, vq_dtype_bytes(x->dtype), x->data, y->data, NULL);
    if (n == 0) return VQ_OK;
    VQ_ACT_TYPE(
        x->dtype,
        PACKED(pack, T,
               VQ_LAUNCH(cuda, (norm_fwd_kernel<T, N, CENTERED>), vq_cuda_blocks(n, 1),
                         norm_threads(E, N), 0, static_cast<T *>(y->data), mean,
                         static_cast<float *>(rstd->data), static_cast<const T *>(x->data),
                         weight ? weight->data : NULL, weight ? weight->dtype : VQ_F32,
                         bias ? bias->data : NULL, bias ? bias->dtype : VQ_F32, n, E, eps)));
    return VQ_OK;
}

template <bool CENTERED>
static vq_status norm_bwd(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x,
                          const vq_tensor *weight, const float *mean, const vq_tensor *rstd,
                          const vq_tensor *plus)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = x->dim[0], E = x->dim[1];
    const size_t bytes = vq_dtype_bytes(x->dtype);
    const void *more = plus ? plus->data : NULL;
    const int pack = VQ_MIN(common_pack(E, bytes, x->data, dx->data, dy->data),
                            common_pack(E, bytes, more, NULL, NULL));
    if (n == 0) return VQ_OK;
    VQ_ACT_TYPE(x->dtype,
                PACKED(pack, T,
                       VQ_LAUNCH(cuda, (norm_bwd_kernel<T, N, CENTERED>), vq_cuda_blocks(n, 1),
                                 norm_threads(E, N), 0, static_cast<T *>(dx->data),
                                 static_cast<const T *>(dy->data), static_cast<const T *>(x->data),
                                 weight ? weight->data : NULL, weight ? weight->dtype : VQ_F32,
                                 mean, static_cast<const float *>(rstd->data),
                                 static_cast<const T *>(more), n, E)));
    return VQ_OK;
}

vq_status vq_cuda_rmsnorm_fwd(void *ctx, vq_tensor *y, vq_tensor *rstd, const vq_tensor *x,
                              const vq_tensor *weight, double eps)
{
    return norm_fwd<false>(ctx, y, NULL, rstd, x, weight, NULL, eps);
}

vq_status vq_cuda_rmsnorm_bwd(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x,
                              const vq_tensor *weight, const vq_tensor *rstd, const vq_tensor *plus)
{
    return norm_bwd<false>(ctx, dx, dy, x, weight, NULL, rstd, plus);
}

vq_status vq_cuda_layernorm_fwd(void *ctx, vq_tensor *y, vq_tensor *mean, vq_tensor *rstd,
                                const vq_tensor *x, const vq_tensor *weight, const vq_tensor *bias,
                                double eps)
{
    return norm_fwd<true>(ctx, y, static_cast<float *>(mean->data), rstd, x, weight, bias, eps);
}

vq_status vq_cuda_layernorm_bwd(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x,
                                const vq_tensor *weight, const vq_tensor *mean,
                                const vq_tensor *rstd, const vq_tensor *plus)
{
    return norm_bwd<true>(ctx, dx, dy, x, weight, static_cast<const float *>(mean->data), rstd,
                          plus);
}

/* --- positions ------------------------------------------------------------------------------- */

/* A block takes a token; n of them, T_ a sequence. */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    rope_kernel(T *x, const float *__restrict__ cos, const float *__restrict__ sin, int64_t n,
                int64_t T_, int H, int half, int64_t first, float sign)
{
    for (int64_t token = blockIdx.x; token < n; token += gridDim.x) {
        const int64_t row = (first + token % T_) * half;
        for (int i = threadIdx.x; i < H * half; i += THREADS) {
            const int head = i / half, j = i - head * half;
            T *x1 = x + (token * H + head) * 2 * half + j, *x2 = x1 + half;
            const float u = vq_load(*x1), v = vq_load(*x2);
            const float c = cos[row + j], turn = sign * sin[row + j];
            *x1 = vq_store<T>(u * c - v * turn);
            *x2 = vq_store<T>(v * c + u * turn);
        }
    }
}

vq_status vq_cuda_rope(void *ctx, vq_tensor *x, const vq_tensor *cos, const vq_tensor *sin,
                       int64_t first, bool inverse)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = x->dim[0] * x->dim[1];
    if (vq_tensor_count(x) == 0) return VQ_OK;
    VQ_ACT_TYPE(x->dtype,
                VQ_LAUNCH(cuda, rope_kernel<T>, vq_cuda_blocks(n, 1), THREADS, 0,
                          static_cast<T *>(x->data), static_cast<const float *>(cos->data),
                          static_cast<const float *>(sin->data), n, x->dim[1], int(x->dim[2]),
                          int(x->dim[3] / 2), first, inverse ? -1.0f : 1.0f));
    return VQ_OK;
}

/* --- activations ----------------------------------------------------------------------------- */

vq_status vq_cuda_silu_gate_fwd(void *ctx, vq_tensor *y, const vq_tensor *gate, const vq_tensor *up)
{
    return elements<SILU_GATE>(ctx, y, gate, up);
}

template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    silu_gate_bwd_kernel(T *dgate, T *dup, const T *dy, const T *gate, const T *up, int64_t n_packs)
{
    typedef vq_pack<T, N> pack;
    const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < n_packs;
         i += step) {
        const pack d = reinterpret_cast<const pack *>(dy)[i];
        const pack g = reinterpret_cast<const pack *>(gate)[i];
        const pack u = reinterpret_cast<const pack *>(up)[i];
        pack dg, du;
        for (int j = 0; j < N; j++) {
            const float at = vq_load(g.x[j]), by = vq_load(d.x[j]);
            dg.x[j] = vq_store<T>(by * vq_load(u.x[j]) * vq_silu_grad(at));
            du.x[j] = vq_store<T>(by * vq_silu(at));
        }
        reinterpret_cast<pack *>(dgate)[i] = dg;
        reinterpret_cast<pack *>(dup)[i] = du;
    }
}

vq_status vq_cuda_silu_gate_bwd(void *ctx, vq_tensor *dgate, vq_tensor *dup, const vq_tensor *dy,
                                const vq_tensor *gate, const vq_tensor *up)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = vq_tensor_count(dy);
    const size_t bytes = vq_dtype_bytes(dy->dtype);
    const int pack = VQ_MIN(common_pack(n, bytes, dgate->data, dup->data, dy->data),
                            common_pack(n, bytes, gate->data, up->data, NULL));
    if (n == 0) return VQ_OK;
    VQ_ACT_TYPE(
        dy->dtype,
        PACKED(pack, T,
               VQ_LAUNCH(cuda, (silu_gate_bwd_kernel<T, N>), vq_cuda_blocks(n / N, THREADS),
                         THREADS, 0, static_cast<T *>(dgate->data), static_cast<T *>(dup->data),
                         static_cast<const T *>(dy->data), static_cast<const T *>(gate->data),
                         static_cast<const T *>(up->data), n / N)));
    return VQ_OK;
}

vq_status vq_cuda_relu_fwd(void *ctx, vq_tensor *y, const vq_tensor *x)
{
    return elements<RELU>(ctx, y, x, x);
}

vq_status vq_cuda_relu_bwd(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x)
{
    return elements<RELU_BWD>(ctx, dx, dy, x);
}
