/* cuda_adam - the update of the codebooks, the norm of a gradient, and sums of partial sums. */
#include "cuda_device.cuh"
#include "cuda_plan.h"

#define THREADS 256

/* What cpu_adam.c does, operation by operation: nvcc would fuse products and sums that are rounded
 * apart there, __fmul_rn keeps it from that. */
static __global__ void __launch_bounds__(THREADS)
    adam(float *param, float *m, float *v, const float *grad, int64_t n, float weight1,
         float weight2, float decay2, float step_size, float root2, float epsilon)
{
    for (int64_t i = vq_thread(); i < n; i += vq_threads()) {
        const float g = grad[i];
        const float mi = fmaf(weight1, g - m[i], m[i]);
        const float vi = fmaf(__fmul_rn(weight2, g), g, __fmul_rn(v[i], decay2));
        const float denominator = sqrtf(vi) / root2 + epsilon;
        param[i] += __fmul_rn(step_size, mi) / denominator;
        m[i] = mi;
        v[i] = vi;
    }
}

vq_status vq_cuda_adam_step(void *ctx, vq_tensor *param, vq_tensor *m, vq_tensor *v,
                            const vq_tensor *grad, double lr, double beta1, double beta2,
                            double eps, int64_t step)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = vq_tensor_count(param);
    if (n == 0) return VQ_OK;
    const double correction1 = 1 - pow(beta1, double(step));
    const double correction2 = 1 - pow(beta2, double(step));
    VQ_LAUNCH(cuda, adam, vq_cuda_blocks(n, THREADS), THREADS, 0, static_cast<float *>(param->data),
              static_cast<float *>(m->data), static_cast<float *>(v->data),
              static_cast<const float *>(grad->data), n, float(1 - beta1), float(1 - beta2),
              float(beta2), float(-lr / correction1), float(sqrt(correction2)), float(eps));
    return VQ_OK;
}

template <class T>
static __global__ void __launch_bounds__(THREADS) norm2(double *partial, const T *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = vq_thread(); i < n; i += vq_threads()) {
        const double xi = vq_load(x[i]);
        sum += xi * xi;
    }
    sum = vq_block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

vq_status vq_cuda_norm2(void *ctx, double *out, const vq_tensor *x)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = vq_tensor_count(x), blocks = vq_cuda_sum_blocks(n);
    const size_t mark = vq_arena_mark(&cuda->scratch);
    double *partial = NULL;
    VQ_TRY(VQ_NEW(&cuda->scratch, blocks, &partial));
    VQ_ACT_TYPE(x->dtype, VQ_LAUNCH(cuda, norm2<T>, unsigned(blocks), THREADS, 0, partial,
                                    static_cast<const T *>(x->data), n));
    vq_status status = vq_cuda_sum(cuda, out, partial, blocks);
    vq_arena_reset(&cuda->scratch, mark);
    return status;
}

static __global__ void __launch_bounds__(VQ_BLOCK_MAX)
    sum_all(double *out, const double *partial, int64_t n)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
    sum = vq_block_sum(sum);
    if (threadIdx.x == 0) *out = sum;
}

vq_status vq_cuda_sum_later(vq_cuda *cuda, double *out, double factor, const double *partial,
                            int64_t n)
{
    if (cuda->n_later == VQ_CUDA_LATER) VQ_TRY(vq_cuda_settle(cuda));
    const int i = cuda->n_later++;
    cuda->later[i].out = out;
    cuda->later[i].factor = factor;
    VQ_LAUNCH(cuda, sum_all, 1, VQ_BLOCK_MAX, 0, cuda->totals + i, partial, n);
    return VQ_OK;
}

vq_status vq_cuda_settle(vq_cuda *cuda)
{
    double totals[VQ_CUDA_LATER];
    const int n = cuda->n_later;
    cuda->n_later = 0;
    if (n > 0)
        VQ_TRY(vq_cuda_fetch(cuda, totals, cuda->totals, size_t(n) * sizeof *totals));
    else
        VQ_CUDA(cudaStreamSynchronize(cuda->stream));
    for (int i = 0; i < n; i++) *cuda->later[i].out += cuda->later[i].factor * totals[i];
    return VQ_OK;
}

vq_status vq_cuda_sum(vq_cuda *cuda, double *out, const double *partial, int64_t n)
{
    const size_t mark = vq_arena_mark(&cuda->scratch);
    double *total = NULL;
    VQ_TRY(VQ_NEW(&cuda->scratch, 1, &total));
    VQ_LAUNCH(cuda, sum_all, 1, VQ_BLOCK_MAX, 0, total, partial, n);
    vq_status status = vq_cuda_fetch(cuda, out, total, sizeof *out);
    vq_arena_reset(&cuda->scratch, mark);
    return status;
}
