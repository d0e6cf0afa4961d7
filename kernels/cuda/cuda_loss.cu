/* cuda_loss - the losses over the head's logits, in chunks of tokens: product, softmax, loss and
 * gradient of one chunk before the next, so that all logits at once never exist.
 *
 * Logits are f32 whatever act is; their gradient is of act's type, the input of a product. A block
 * takes one token. It goes over the logits once for greatest values and sums (each thread keeps
 * sums for the greatest value it has seen so far, and scales them when it sees a greater one), and
 * once more for the gradient.
 *
 * The squared error of a layer's output is one pass over its elements. */
#include "cuda_device.cuh"
#include "cuda_plan.h"

/* Sums of exponentials relative to the greatest of them. */
struct softmax {
    float top;
    double sum;
};

/* The greatest of top and x; factor: what sums relative to top are multiplied with to be relative
 * to it. NaN in x leaves top alone. */
static __device__ __forceinline__ float raise(float top, float x, float *factor)
{
    *factor = 1;
    if (!(x > top)) return top;
    *factor = vq_exp(top - x);
    return x;
}

template <int N> static __device__ __forceinline__ float greatest(const vq_pack<float, N> &v)
{
    float top = v.x[0];
    for (int j = 1; j < N; j++) top = v.x[j] > top ? v.x[j] : top;
    return top;
}

/* tau^2 KL(p || q) / tau^2 of a token's logits, both divided by tau before; dlogits = (q - p)
 * factor, where it is wanted. */
template <class T, int N>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX)
    kd_rows(double *row_loss, T *dlogits, const float *student, const float *teacher, int64_t V,
            double factor)
{
    typedef vq_pack<float, N> pack;
    const int64_t packs = V / N, row = blockIdx.x * packs;
    const pack *s = reinterpret_cast<const pack *>(student) + row;
    const pack *t = reinterpret_cast<const pack *>(teacher) + row;
    softmax q = {-INFINITY, 0}, p = {-INFINITY, 0};
    double cross = 0; /* sum e^(t - top) (t - s) */
    for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
        const pack a = s[i], b = t[i];
        float q_factor, p_factor;
        q.top = raise(q.top, greatest(a), &q_factor);
        p.top = raise(p.top, greatest(b), &p_factor);
        q.sum *= double(q_factor);
        p.sum *= double(p_factor);
        cross *= double(p_factor);
        for (int j = 0; j < N; j++) {
            const float e = vq_exp(b.x[j] - p.top);
            q.sum += double(vq_exp(a.x[j] - q.top));
            p.sum += double(e);
            cross += double(e * (b.x[j] - a.x[j]));
        }
    }
    const float q_top = vq_block_max(q.top), p_top = vq_block_max(p.top);
    const double q_factor = double(vq_exp(q.top - q_top)), p_factor = double(vq_exp(p.top - p_top));
    const double q_sum = vq_block_sum(q.sum * q_factor);
    const double p_sum = vq_block_sum(p.sum * p_factor);
    cross = vq_block_sum(cross * p_factor);
    if (threadIdx.x == 0)
        row_loss[blockIdx.x] = cross / p_sum + (double(q_top) - double(p_top)) + log(q_sum / p_sum);
    if (!dlogits) return;
    const float q_scale = float(factor / q_sum), p_scale = float(factor / p_sum);
    vq_pack<T, N> *d = reinterpret_cast<vq_pack<T, N> *>(dlogits) + row;
    for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
        const pack a = s[i], b = t[i];
        vq_pack<T, N> y;
        for (int j = 0; j < N; j++)
            y.x[j] =
                vq_store<T>(vq_exp(a.x[j] - q_top) * q_scale - vq_exp(b.x[j] - p_top) * p_scale);
        d[i] = y;
    }
}

/* -log softmax(logits)[target] of a token; dlogits = (softmax - onehot) factor. A target that is
 * not one of the V leaves its token's number in *first_bad, the lowest of all. */
template <class T, int N>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX)
    nll_rows(double *row_loss, unsigned *first_bad, T *dlogits, const float *logits, int64_t V,
             const int32_t *targets, int64_t first, double factor)
{
    typedef vq_pack<float, N> pack;
    const int64_t packs = V / N, row = blockIdx.x * packs;
    const pack *s = reinterpret_cast<const pack *>(logits) + row;
    vq_pack<T, N> *d = reinterpret_cast<vq_pack<T, N> *>(dlogits) + row;
    const int32_t target = targets[first + blockIdx.x];
    if (target < 0 || target >= V) {
        if (threadIdx.x == 0) row_loss[blockIdx.x] = 0;
        if (threadIdx.x == 0 && target != -1) atomicMin(first_bad, unsigned(first + blockIdx.x));
        vq_pack<T, N> zeros;
        for (int j = 0; j < N; j++) zeros.x[j] = vq_store<T>(0);
        for (int64_t i = threadIdx.x; i < packs && dlogits; i += blockDim.x) d[i] = zeros;
        return;
    }
    softmax q = {-INFINITY, 0};
    for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
        const pack a = s[i];
        float raised;
        q.top = raise(q.top, greatest(a), &raised);
        q.sum *= double(raised);
        for (int j = 0; j < N; j++) q.sum += double(vq_exp(a.x[j] - q.top));
    }
    const float top = vq_block_max(q.top);
    const double sum = vq_block_sum(q.sum * double(vq_exp(q.top - top)));
    if (threadIdx.x == 0)
        row_loss[blockIdx.x] = log(sum) + double(top) - double(logits[blockIdx.x * V + target]);
    if (!dlogits) return;
    const float scale = float(factor / sum);
    for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
        const pack a = s[i];
        vq_pack<T, N> y;
        for (int j = 0; j < N; j++) {
            const float g = vq_exp(a.x[j] - top) * scale;
            y.x[j] = vq_store<T>(i * N + j == target ? g - float(factor) : g);
        }
        d[i] = y;
    }
}

/* What a chunk of tokens needs. */
struct chunk_memory {
    int64_t tokens;
    float *student, *teacher; /* [tokens, V]; teacher NULL where there is none */
    void *dlogits;            /* act [tokens, V]; NULL without a gradient */
    double *row_loss;         /* [n], of all tokens */
};

static vq_status take_memory(vq_cuda *cuda, int64_t n, int64_t V, bool teacher, bool gradient,
                             chunk_memory *m)
{
    *m = {};
    m->tokens = vq_cuda_loss_tokens(n, teacher ? 2 * V : V);
    VQ_TRY(VQ_NEW(&cuda->scratch, m->tokens * V, &m->student));
    if (teacher) VQ_TRY(VQ_NEW(&cuda->scratch, m->tokens * V, &m->teacher));
    if (gradient)
        VQ_TRY(
            vq_arena_array(&cuda->scratch, m->tokens * V, vq_dtype_bytes(cuda->act), &m->dlogits));
    return VQ_NEW(&cuda->scratch, n, &m->row_loss);
}

/* The head in x's type, once for all chunks: a product of unlike types would convert it each time.
 */
static vq_status head_for(vq_cuda *cuda, const vq_tensor *head, const vq_tensor *x, vq_tensor *out)
{
    *out = *head;
    if (head->dtype == x->dtype) return VQ_OK;
    const int64_t n = vq_tensor_count(head);
    out->dtype = cuda->act;
    VQ_TRY(vq_arena_array(&cuda->scratch, n, vq_dtype_bytes(cuda->act), &out->data));
    return vq_cuda_convert(cuda, out->data, cuda->act, head->data, head->dtype, n);
}

/* dx's rows from the chunk's gradient. */
static vq_status push_back(vq_cuda *cuda, vq_tensor *dx, int64_t first, int64_t rows,
                           const chunk_memory *m, const vq_tensor *head)
{
    const vq_tensor d = vq_tensor_2d(m->dlogits, cuda->act, rows, head->dim[0]);
    vq_tensor dx_rows = vq_tensor_rows(dx, first, rows);
    return vq_cuda_gemm(cuda, &dx_rows, &d, false, head, false, 1, 0);
}

vq_status vq_cuda_head_kd(void *ctx, double *loss, vq_tensor *dx, const vq_tensor *x,
                          const vq_tensor *x_teacher, const vq_tensor *head,
                          const vq_tensor *head_teacher, double tau, double scale)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = x->dim[0], V = head->dim[0];
    if (n == 0) return VQ_OK;
    const size_t mark = vq_arena_mark(&cuda->scratch);
    chunk_memory m;
    vq_tensor own, other; /* the heads */
    VQ_TRY(take_memory(cuda, n, V, true, dx != NULL, &m));
    VQ_TRY(head_for(cuda, head, x, &own));
    if (head_teacher->data == head->data && head_teacher->dtype != x_teacher->dtype)
        other = own;
    else
        VQ_TRY(head_for(cuda, head_teacher, x_teacher, &other));
    for (int64_t first = 0; first < n; first += m.tokens) {
        const int64_t rows = VQ_MIN(n - first, m.tokens);
        vq_tensor s = vq_tensor_2d(m.student, VQ_F32, rows, V);
        vq_tensor t = vq_tensor_2d(m.teacher, VQ_F32, rows, V);
        const vq_tensor x_rows = vq_tensor_rows(x, first, rows);
        const vq_tensor teacher_rows = vq_tensor_rows(x_teacher, first, rows);
        VQ_TRY(vq_cuda_gemm(cuda, &s, &x_rows, false, &own, true, 1 / tau, 0));
        VQ_TRY(vq_cuda_gemm(cuda, &t, &teacher_rows, false, &other, true, 1 / tau, 0));
        if (V % 4 == 0)
            VQ_ACT_TYPE(cuda->act,
                        VQ_LAUNCH(cuda, (kd_rows<T, 4>), unsigned(rows), vq_cuda_row_threads(V, 4),
                                  0, m.row_loss + first, static_cast<T *>(m.dlogits), m.student,
                                  m.teacher, V, tau * scale));
        else
            VQ_ACT_TYPE(cuda->act,
                        VQ_LAUNCH(cuda, (kd_rows<T, 1>), unsigned(rows), vq_cuda_row_threads(V, 1),
                                  0, m.row_loss + first, static_cast<T *>(m.dlogits), m.student,
                                  m.teacher, V, tau * scale));
        if (dx) VQ_TRY(push_back(cuda, dx, first, rows, &m, &own));
    }
    VQ_TRY(vq_cuda_sum_later(cuda, loss, tau * tau * scale, m.row_loss, n));
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}

vq_status vq_cuda_head_nll(void *ctx, double *loss, vq_tensor *dx, const vq_tensor *x,
                           const vq_tensor *head, const vq_tensor *targets, double scale)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = x->dim[0], V = head->dim[0];
    const int32_t *target = static_cast<const int32_t *>(targets->data);
    if (n == 0) return VQ_OK;
    const size_t mark = vq_arena_mark(&cuda->scratch);
    chunk_memory m;
    unsigned *first_bad = NULL, bad = 0;
    vq_tensor own;
    VQ_TRY(take_memory(cuda, n, V, false, dx != NULL, &m));
    VQ_TRY(head_for(cuda, head, x, &own));
    VQ_TRY(VQ_NEW(&cuda->scratch, 1, &first_bad));
    VQ_CUDA(cudaMemsetAsync(first_bad, 0xff, sizeof *first_bad, cuda->stream));
    for (int64_t first = 0; first < n; first += m.tokens) {
        const int64_t rows = VQ_MIN(n - first, m.tokens);
        vq_tensor s = vq_tensor_2d(m.student, VQ_F32, rows, V);
        const vq_tensor x_rows = vq_tensor_rows(x, first, rows);
        VQ_TRY(vq_cuda_gemm(cuda, &s, &x_rows, false, &own, true, 1, 0));
        if (V % 4 == 0)
            VQ_ACT_TYPE(cuda->act,
                        VQ_LAUNCH(cuda, (nll_rows<T, 4>), unsigned(rows), vq_cuda_row_threads(V, 4),
                                  0, m.row_loss + first, first_bad, static_cast<T *>(m.dlogits),
                                  m.student, V, target, first, scale));
        else
            VQ_ACT_TYPE(cuda->act,
                        VQ_LAUNCH(cuda, (nll_rows<T, 1>), unsigned(rows), vq_cuda_row_threads(V, 1),
                                  0, m.row_loss + first, first_bad, static_cast<T *>(m.dlogits),
                                  m.student, V, target, first, scale));
        if (dx) VQ_TRY(push_back(cuda, dx, first, rows, &m, &own));
    }
    double total = 0;
    VQ_TRY(vq_cuda_sum(cuda, &total, m.row_loss, n));
    VQ_TRY(vq_cuda_fetch(cuda, &bad, first_bad, sizeof bad));
    if (bad != ~0u) {
        int32_t found = 0;
        VQ_TRY(vq_cuda_fetch(cuda, &found, target + bad, sizeof found));
        VQ_FAIL(VQ_EINTERNAL,
                "head_nll: targets[%u] is %d, expected -1 to %lld. The tokens do not belong to "
                "this model: use its own tokenizer",
                bad, int(found), (long long)V - 1);
    }
    *loss += scale * total;
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}

/* --- the squared error ----------------------------------------------------------------------- */

#define MSE_THREADS 256

template <class T, int N>
static __global__ void __launch_bounds__(MSE_THREADS)
    squared_error(double *partial, T *dy, const T *y, const T *target, int64_t n, float slope)
{
    typedef vq_pack<T, N> pack;
    double sum = 0;
    for (int64_t i = vq_thread(); i < n / N; i += vq_threads()) {
        const pack a = reinterpret_cast<const pack *>(y)[i];
        const pack b = reinterpret_cast<const pack *>(target)[i];
        pack d;
        for (int j = 0; j < N; j++) {
            const float error = vq_load(a.x[j]) - vq_load(b.x[j]);
            sum += double(__fmul_rn(error, error));
            d.x[j] = vq_store<T>(slope * error);
        }
        if (dy) reinterpret_cast<pack *>(dy)[i] = d;
    }
    sum = vq_block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class T>
static vq_status run_squared_error(vq_cuda *cuda, double *partial, int64_t blocks, T *dy,
                                   const T *y, const T *target, int64_t n, float slope)
{
    constexpr int PACK = 16 / int(sizeof(T));
    if (vq_cuda_pack(n, sizeof(T), uintptr_t(dy) | uintptr_t(y) | uintptr_t(target)) == PACK)
        VQ_LAUNCH(cuda, (squared_error<T, PACK>), unsigned(blocks), MSE_THREADS, 0, partial, dy, y,
                  target, n, slope);
    else
        VQ_LAUNCH(cuda, (squared_error<T, 1>), unsigned(blocks), MSE_THREADS, 0, partial, dy, y,
                  target, n, slope);
    return VQ_OK;
}

vq_status vq_cuda_mse(void *ctx, double *loss, vq_tensor *dy, const vq_tensor *y,
                      const vq_tensor *target, double scale)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = vq_tensor_count(y), blocks = vq_cuda_sum_blocks(n);
    const size_t mark = vq_arena_mark(&cuda->scratch);
    double *partial = NULL;
    VQ_TRY(VQ_NEW(&cuda->scratch, blocks, &partial));
    VQ_ACT_TYPE(y->dtype, VQ_TRY(run_squared_error(
                              cuda, partial, blocks, static_cast<T *>(dy ? dy->data : NULL),
                              static_cast<const T *>(y->data), static_cast<const T *>(target->data),
                              n, float(2 * scale))));
    VQ_TRY(vq_cuda_sum_later(cuda, loss, scale, partial, blocks));
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}
