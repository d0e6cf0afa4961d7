/* cuda_attention - causal attention, forward and backward: blocks of queries against the keys that
 * they see, products by cuBLASLt, softmax by own kernels.
 *
 * A block's scores [heads, queries, keys] are f32, its probabilities of act's type, both in scratch
 * of a size that does not grow with the square of the sequence. One product covers one query head
 * of every group; keys that a whole block cannot see are never multiplied. The backward makes the
 * probabilities again from lse and sums the keys' gradients in f32, so that several blocks, and the
 * heads of a group, round them once. */
#include "cuda_device.cuh"

#define THREADS 256

typedef struct shape {
    int64_t T, T_k, H, G, S, heads; /* heads: of a group */
    int64_t prefix;                 /* keys before the first query */
    int64_t queries;                /* of a block */
} shape;

static shape make_shape(const vq_tensor *q, const vq_tensor *k)
{
    shape s;
    s.T = q->dim[1];
    s.T_k = k->dim[1];
    s.H = q->dim[2];
    s.G = k->dim[2];
    s.S = q->dim[3];
    s.heads = s.H / s.G;
    s.prefix = s.T_k - s.T;
    s.queries = vq_cuda_attention_queries(s.T, s.T_k, s.G);
    return s;
}

/* Rows [t, t + rows) of head h and of every heads-th one after it, of sequence b: the first matrix
 * of a batch over groups. */
static vq_tensor matrix(const vq_tensor *x, int64_t b, int64_t t, int64_t h, int64_t rows)
{
    const int64_t S = x->dim[3], row = x->dim[2] * S;
    char *data = static_cast<char *>(x->data) +
                 static_cast<size_t>(b * x->stride[0] + t * row + h * S) * vq_dtype_bytes(x->dtype);
    vq_tensor m = vq_tensor_2d(data, x->dtype, rows, S);
    m.stride[0] = row;
    m.place = x->place;
    return m;
}

/* One row of scores of query t of head group * heads + member: p = softmax over the keys it sees, 0
 * behind them; lse. */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    softmax_kernel(T *__restrict__ p, float *__restrict__ lse, const float *__restrict__ scores,
                   int64_t rows, int64_t keys, int64_t first, int64_t T_, int64_t prefix,
                   int64_t heads, int64_t member)
{
    const int64_t i = blockIdx.x, group = blockIdx.y, t = first + i, seen = prefix + t + 1;
    const float *s = scores + (group * rows + i) * keys;
    T *out = p + (group * rows + i) * keys;
    float top = s[0];
    for (int64_t u = threadIdx.x; u < seen; u += blockDim.x) top = s[u] > top ? s[u] : top;
    top = vq_block_max(top);
    float sum = 0;
    for (int64_t u = threadIdx.x; u < seen; u += blockDim.x) sum += vq_exp(s[u] - top);
    sum = vq_block_sum(sum);
    const float factor = 1 / sum;
    for (int64_t u = threadIdx.x; u < keys; u += blockDim.x)
        out[u] = vq_store<T>(u < seen ? vq_exp(s[u] - top) * factor : 0);
    if (threadIdx.x == 0) lse[(group * heads + member) * T_ + t] = top + logf(sum);
}

/* mean[b, h, t] = sum_u p dp = dout . out: one warp a row. */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    row_dots_kernel(float *__restrict__ mean, const T *__restrict__ dout, const T *__restrict__ out,
                    int64_t n, int64_t T_, int64_t H, int64_t S)
{
    const int64_t row =
        static_cast<int64_t>(blockIdx.x) * (THREADS / VQ_WARP) + threadIdx.x / VQ_WARP;
    if (row >= n) return; /* the whole warp */
    float sum = 0;
    for (int64_t j = threadIdx.x % VQ_WARP; j < S; j += VQ_WARP)
        sum += vq_load(dout[row * S + j]) * vq_load(out[row * S + j]);
    sum = vq_warp_sum(sum);
    const int64_t b = row / (T_ * H), t = row / H % T_, h = row % H;
    if (threadIdx.x % VQ_WARP == 0) mean[(b * H + h) * T_ + t] = sum;
}

/* From scores and dp: p = exp(score - lse), ds = p (dp - mean), both 0 behind the keys it sees. */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    softmax_bwd_kernel(T *__restrict__ p, T *__restrict__ ds, const float *__restrict__ scores,
                       const float *__restrict__ dp, const float *__restrict__ lse,
                       const float *__restrict__ mean, int64_t rows, int64_t keys, int64_t first,
                       int64_t T_, int64_t prefix, int64_t heads, int64_t member)
{
    const int64_t i = blockIdx.x, group = blockIdx.y, t = first + i, seen = prefix + t + 1;
    const int64_t row = (group * rows + i) * keys, at = (group * heads + member) * T_ + t;
    const float log_sum = lse[at], m = mean[at];
    for (int64_t u = threadIdx.x; u < keys; u += blockDim.x) {
        const float x = u < seen ? vq_exp(scores[row + u] - log_sum) : 0;
        p[row + u] = vq_store<T>(x);
        ds[row + u] = vq_store<T>(u < seen ? x * (dp[row + u] - m) : 0);
    }
}

/* to += from, rows of to apart. */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    add_f32_kernel(T *to, const float *__restrict__ from, int64_t n)
{
    const int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < n; i += step)
        to[i] = vq_store<T>(vq_load(to[i]) + from[i]);
}

/* A matrix of scores' memory. */
static vq_tensor block_of(void *data, vq_dtype dtype, int64_t rows, int64_t keys)
{
    vq_tensor m = vq_tensor_2d(data, dtype, rows, keys);
    m.place = VQ_DEVICE;
    return m;
}

static int row_threads(int64_t keys)
{
    return VQ_MIN(vq_cuda_row_threads(keys, 1), THREADS);
}

/* Memory for the scores (f32) or probabilities of one block. */
static vq_status new_scores(vq_cuda *cuda, const shape *s, vq_dtype dtype, void **out)
{
    return vq_arena_array(&cuda->scratch, s->G * s->queries * s->T_k, vq_dtype_bytes(dtype), out);
}

vq_status vq_cuda_attention_fwd(void *ctx, vq_tensor *out, vq_tensor *lse, const vq_tensor *q,
                                const vq_tensor *k, const vq_tensor *v, double scale)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const shape s = make_shape(q, k);
    size_t mark = vq_arena_mark(&cuda->scratch);
    void *scores, *p;
    VQ_TRY(new_scores(cuda, &s, VQ_F32, &scores));
    VQ_TRY(new_scores(cuda, &s, q->dtype, &p));
    for (int64_t b = 0; b < q->dim[0]; b++) {
        for (int64_t first = 0; first < s.T; first += s.queries) {
            const int64_t rows = VQ_MIN(s.queries, s.T - first), keys = s.prefix + first + rows;
            vq_tensor score_rows = block_of(scores, VQ_F32, rows, keys);
            vq_tensor p_rows = block_of(p, q->dtype, rows, keys);
            const vq_tensor k_rows = matrix(k, b, 0, 0, keys), v_rows = matrix(v, b, 0, 0, keys);
            /* Elements from one group to the next. */
            const int64_t of_q = s.heads * s.S, of_k = s.S, of_p = rows * keys;
            const vq_cuda_batch qk = {s.G, of_q, of_k, of_p}, pv = {s.G, of_p, of_k, of_q};
            for (int64_t member = 0; member < s.heads; member++) {
                const vq_tensor q_rows = matrix(q, b, first, member, rows);
                vq_tensor out_rows = matrix(out, b, first, member, rows);
                VQ_TRY(vq_cuda_gemm_batched(cuda, &score_rows, &q_rows, false, &k_rows, true, scale,
                                            0, &qk));
                float *lse_rows = static_cast<float *>(lse->data) + b * s.H * s.T;
                VQ_ACT_TYPE(q->dtype,
                            VQ_LAUNCH(cuda, softmax_kernel<T>,
                                      dim3(static_cast<unsigned>(rows), static_cast<unsigned>(s.G)),
                                      row_threads(keys), 0, static_cast<T *>(p), lse_rows,
                                      static_cast<const float *>(scores), rows, keys, first, s.T,
                                      s.prefix, s.heads, member));
                VQ_TRY(vq_cuda_gemm_batched(cuda, &out_rows, &p_rows, false, &v_rows, false, 1, 0,
                                            &pv));
            }
        }
    }
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}

/* What the backward has in scratch. */
typedef struct bwd_memory {
    void *scores, *dp;      /* f32 */
    void *p, *ds;           /* act */
    float *mean;            /* [B, H, T] */
    float *dk_sum, *dv_sum; /* [T_k, G, S], of one sequence */
} bwd_memory;

static vq_status take_memory(vq_cuda *cuda, const shape *s, vq_dtype act, int64_t B, bwd_memory *m)
{
    VQ_TRY(new_scores(cuda, s, VQ_F32, &m->scores));
    VQ_TRY(new_scores(cuda, s, VQ_F32, &m->dp));
    VQ_TRY(new_scores(cuda, s, act, &m->p));
    VQ_TRY(new_scores(cuda, s, act, &m->ds));
    VQ_TRY(VQ_NEW(&cuda->scratch, B * s->H * s->T, &m->mean));
    VQ_TRY(VQ_NEW(&cuda->scratch, s->T_k * s->G * s->S, &m->dk_sum));
    return VQ_NEW(&cuda->scratch, s->T_k * s->G * s->S, &m->dv_sum);
}

/* One block of queries of one query head of every group: dq, and its part of the keys' sums. */
static vq_status backward_block(vq_cuda *cuda, const shape *s, const bwd_memory *m, int64_t b,
                                int64_t first, int64_t member, vq_tensor *dq, vq_tensor *dk_sum,
                                vq_tensor *dv_sum, const vq_tensor *dout, const vq_tensor *q,
                                const vq_tensor *k, const vq_tensor *v, const vq_tensor *lse,
                                double scale)
{
    const int64_t rows = VQ_MIN(s->queries, s->T - first), keys = s->prefix + first + rows;
    vq_tensor score_rows = block_of(m->scores, VQ_F32, rows, keys);
    vq_tensor dp_rows = block_of(m->dp, VQ_F32, rows, keys);
    const vq_tensor p_rows = block_of(m->p, q->dtype, rows, keys);
    const vq_tensor ds_rows = block_of(m->ds, q->dtype, rows, keys);
    const vq_tensor k_rows = matrix(k, b, 0, 0, keys), v_rows = matrix(v, b, 0, 0, keys);
    const vq_tensor q_rows = matrix(q, b, first, member, rows);
    const vq_tensor dout_rows = matrix(dout, b, first, member, rows);
    vq_tensor dq_rows = matrix(dq, b, first, member, rows);
    vq_tensor dk_rows = matrix(dk_sum, 0, 0, 0, keys), dv_rows = matrix(dv_sum, 0, 0, 0, keys);
    const int64_t of_q = s->heads * s->S, of_k = s->S, of_p = rows * keys;
    const vq_cuda_batch qk = {s->G, of_q, of_k, of_p}, pq = {s->G, of_p, of_q, of_k},
                        pk = {s->G, of_p, of_k, of_q};
    const int64_t at = b * s->H * s->T;

    VQ_TRY(vq_cuda_gemm_batched(cuda, &score_rows, &q_rows, false, &k_rows, true, scale, 0, &qk));
    VQ_TRY(vq_cuda_gemm_batched(cuda, &dp_rows, &dout_rows, false, &v_rows, true, 1, 0, &qk));
    VQ_ACT_TYPE(q->dtype,
                VQ_LAUNCH(cuda, softmax_bwd_kernel<T>,
                          dim3(static_cast<unsigned>(rows), static_cast<unsigned>(s->G)),
                          row_threads(keys), 0, static_cast<T *>(m->p), static_cast<T *>(m->ds),
                          static_cast<const float *>(m->scores), static_cast<const float *>(m->dp),
                          static_cast<const float *>(lse->data) + at, m->mean + at, rows, keys,
                          first, s->T, s->prefix, s->heads, member));
    VQ_TRY(vq_cuda_gemm_batched(cuda, &dv_rows, &p_rows, true, &dout_rows, false, 1, 1, &pq));
    VQ_TRY(vq_cuda_gemm_batched(cuda, &dk_rows, &ds_rows, true, &q_rows, false, scale, 1, &pq));
    return vq_cuda_gemm_batched(cuda, &dq_rows, &ds_rows, false, &k_rows, false, scale, 0, &pk);
}

static vq_status add_sum(vq_cuda *cuda, vq_tensor *to, int64_t b, const float *sum, int64_t n)
{
    VQ_ACT_TYPE(to->dtype, VQ_LAUNCH(cuda, add_f32_kernel<T>, vq_cuda_blocks(n, THREADS), THREADS,
                                     0, static_cast<T *>(to->data) + b * to->stride[0], sum, n));
    return VQ_OK;
}

vq_status vq_cuda_attention_bwd(void *ctx, vq_tensor *dq, vq_tensor *dk, vq_tensor *dv,
                                const vq_tensor *dout, const vq_tensor *q, const vq_tensor *k,
                                const vq_tensor *v, const vq_tensor *out, const vq_tensor *lse,
                                double scale)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const shape s = make_shape(q, k);
    const int64_t B = q->dim[0], n_rows = B * s.T * s.H, n_keys = s.T_k * s.G * s.S;
    if (n_rows == 0) return VQ_OK;
    size_t mark = vq_arena_mark(&cuda->scratch);
    bwd_memory m;
    VQ_TRY(take_memory(cuda, &s, q->dtype, B, &m));
    vq_tensor dk_sum = vq_tensor_4d(m.dk_sum, VQ_F32, 1, s.T_k, s.G, s.S);
    vq_tensor dv_sum = vq_tensor_4d(m.dv_sum, VQ_F32, 1, s.T_k, s.G, s.S);
    VQ_ACT_TYPE(q->dtype,
                VQ_LAUNCH(cuda, row_dots_kernel<T>, vq_cuda_blocks(n_rows, THREADS / VQ_WARP),
                          THREADS, 0, m.mean, static_cast<const T *>(dout->data),
                          static_cast<const T *>(out->data), n_rows, s.T, s.H, s.S));
    const size_t bytes = static_cast<size_t>(n_keys) * sizeof *m.dk_sum;
    for (int64_t b = 0; b < B; b++) {
        VQ_CUDA(cudaMemsetAsync(m.dk_sum, 0, bytes, cuda->stream));
        VQ_CUDA(cudaMemsetAsync(m.dv_sum, 0, bytes, cuda->stream));
        for (int64_t first = 0; first < s.T; first += s.queries)
            for (int64_t member = 0; member < s.heads; member++)
                VQ_TRY(backward_block(cuda, &s, &m, b, first, member, dq, &dk_sum, &dv_sum, dout, q,
                                      k, v, lse, scale));
        VQ_TRY(add_sum(cuda, dk, b, m.dk_sum, n_keys));
        VQ_TRY(add_sum(cuda, dv, b, m.dv_sum, n_keys));
    }
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}
