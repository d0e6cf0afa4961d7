/* cpu_adam - the update of the codebooks, and the norm of a gradient.
 *
 * Each operation is the one that torch's single-tensor Adam does, rounded where it rounds: fused
 * where its vector code is fused, constants rounded to f32 after they were computed in f64. The
 * compiler fuses nothing by itself (-std=c11). One difference remains outside our reach: torch
 * builds with MKL take a square root that may be one unit off; ours is the correctly rounded one.
 */
#include "cpu_real.h"

#include <math.h>

#include "cpu_ops.h"
#include "error.h"

#define BLOCK ((int64_t)65536) /* of norm2 */

#ifdef VQ_CPU_F64
#define FMA fma
#define SQRT sqrt
#else
#define FMA fmaf
#define SQRT sqrtf
#endif

vq_status vq_cpu_adam_step(void *ctx, vq_tensor *param, vq_tensor *m, vq_tensor *v,
                           const vq_tensor *grad, double lr, double beta1, double beta2, double eps,
                           int64_t step)
{
    vq_cpu *cpu = ctx;
    int64_t n = vq_tensor_count(param);
    real *p = param->data, *m1 = m->data, *m2 = v->data;
    const real *g = grad->data;
    double correction1 = 1 - pow(beta1, (double)step), correction2 = 1 - pow(beta2, (double)step);
    real weight1 = (real)(1 - beta1), weight2 = (real)(1 - beta2), decay2 = (real)beta2;
    real step_size = (real)(-lr / correction1), root2 = (real)sqrt(correction2);
    real epsilon = (real)eps;
#pragma omp parallel for simd num_threads(vq_cpu_threads(cpu, n)) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        real gi = g[i];
        real mi = FMA(weight1, gi - m1[i], m1[i]);
        real vi = FMA(weight2 * gi, gi, m2[i] * decay2);
        real denominator = SQRT(vi) / root2 + epsilon;
        p[i] += step_size * mi / denominator;
        m1[i] = mi;
        m2[i] = vi;
    }
    return VQ_OK;
}

vq_status vq_cpu_norm2(void *ctx, double *out, const vq_tensor *x)
{
    vq_cpu *cpu = ctx;
    int64_t n = vq_tensor_count(x), n_blocks = VQ_CEIL_DIV(n, BLOCK);
    size_t mark = vq_arena_mark(&cpu->scratch);
    double *partial = NULL;
    VQ_TRY(VQ_NEW(&cpu->scratch, n_blocks, &partial));
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, n)) schedule(static)
    for (int64_t block = 0; block < n_blocks; block++) {
        const real *from = (const real *)x->data + block * BLOCK;
        int64_t size = VQ_MIN(n - block * BLOCK, BLOCK), i = 0;
        double lane[8] = {0};
        for (; i + 8 <= size; i += 8)
            for (int j = 0; j < 8; j++) lane[j] += (double)from[i + j] * (double)from[i + j];
        for (; i < size; i++) lane[0] += (double)from[i] * (double)from[i];
        double sum = 0;
        for (int j = 0; j < 8; j++) sum += lane[j];
        partial[block] = sum;
    }
    *out = 0;
    for (int64_t block = 0; block < n_blocks; block++) *out += partial[block];
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}
