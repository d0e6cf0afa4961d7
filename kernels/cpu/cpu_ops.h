/* cpu_ops.h - the CPU's slots of vq_ops (contracts: backend.h) and what they share.
 *
 * A slot gets arguments that the wrapper has checked. Work is cut by shape alone; which thread
 * takes which piece may vary, the pieces and the order in which partial sums are added may not. */
#pragma once
#include "arena.h"
#include "backend.h"
#include "cpu_real.h"

/* Scratch that each thread has for itself, for tiles of matrices: elements. */
#define VQ_CPU_SLAB ((int64_t)2 << 20)

/* A loop over less work than this (elements) is not worth waking the threads for. */
#define VQ_CPU_GRAIN 16384

/* The backend's ctx. It lives at the start of its own arena. */
typedef struct vq_cpu {
    vq_arena scratch; /* mark and reset inside one op; allocated outside parallel regions */
    real *slabs;      /* n_threads of VQ_CPU_SLAB; pages are taken when first used */
    int n_threads;    /* for num_threads() of every parallel region */
} vq_cpu;

/* Threads for a loop over `elements`. */
static inline int vq_cpu_threads(const vq_cpu *cpu, int64_t elements)
{
    return elements < VQ_CPU_GRAIN ? 1 : cpu->n_threads;
}

/* The calling thread's slab, inside a parallel region. */
real *vq_cpu_slab(const vq_cpu *cpu);

/* n floats of any type to real. Local, pure. */
void vq_cpu_to_real(real *dst, const void *src, vq_dtype dtype, int64_t n);

/* n integers (vq_quant) of a row, from a column on: where they lie as i8 or i16, or, of halves of
 * bytes, as i8 in unpacked [VQ_CPU_UNPACKED(n)]. */
#define VQ_CPU_UNPACKED(n) ((n) + 2)
static inline const void *vq_cpu_ints(const vq_tensor *ints, int64_t row, int64_t column, int64_t n,
                                      int8_t *restrict unpacked)
{
    const int64_t at = row * ints->dim[1], odd = column % 2, n_bytes = (odd + n + 1) / 2;
    if (ints->dtype == VQ_I16) return (const int16_t *)ints->data + at + column;
    if (ints->dtype == VQ_I8) return (const int8_t *)ints->data + at + column;
    const uint8_t *from = (const uint8_t *)ints->data + at + column / 2;
    for (int64_t i = 0; i < n_bytes; i++) {
        unpacked[2 * i] = (int8_t)((from[i] & 15) - 1);
        unpacked[2 * i + 1] = (int8_t)((from[i] >> 4) - 1);
    }
    return unpacked + odd;
}

/* The other way, into halves of bytes; a row's columns are to come in their order. */
static inline void vq_cpu_pack_ints(vq_tensor *ints, int64_t row, int64_t column, int64_t n,
                                    const int8_t *from)
{
    const int64_t odd = column % 2;
    uint8_t *to = (uint8_t *)ints->data + row * ints->dim[1] + column / 2;
    if (odd) *to++ |= (uint8_t)((from[0] + 1) << 4);
    for (int64_t i = odd; i + 1 < n; i += 2)
        *to++ = (uint8_t)((from[i] + 1) | (from[i + 1] + 1) << 4);
    if ((n - odd) % 2) *to = (uint8_t)(from[n - 1] + 1);
}

/* One BLAS call on the calling thread, row-major: c[m, n] = alpha op(a) op(b) + beta c; ld is the
 * distance of rows. m, n and k fit an int (tiles do). */
void vq_cpu_blas_gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, real alpha,
                      const real *a, int64_t lda, const real *b, int64_t ldb, real beta, real *c,
                      int64_t ldc);

/* dense: cpu_gemm.c */
vq_status vq_cpu_gemm(void *ctx, vq_tensor *c, const vq_tensor *a, bool trans_a, const vq_tensor *b,
                      bool trans_b, double alpha, double beta);

/* dense: cpu_gptq.c */
vq_status vq_cpu_syrk(void *ctx, vq_tensor *h, const vq_tensor *x, double alpha);
vq_status vq_cpu_moments(void *ctx, vq_tensor *sums, const vq_tensor *x, double alpha);
vq_status vq_cpu_inverse_factor(void *ctx, vq_tensor *u, bool *positive, vq_tensor *h,
                                const vq_tensor *order, double damp);

/* layer: cpu_layer.c, cpu_attention.c */
vq_status vq_cpu_embed(void *ctx, vq_tensor *out, const vq_tensor *table, const vq_tensor *ids,
                       bool add);
vq_status vq_cpu_bias_add(void *ctx, vq_tensor *y, const vq_tensor *bias);
vq_status vq_cpu_add(void *ctx, vq_tensor *y, const vq_tensor *x);
vq_status vq_cpu_rmsnorm_fwd(void *ctx, vq_tensor *y, vq_tensor *rstd, const vq_tensor *x,
                             const vq_tensor *weight, double eps);
vq_status vq_cpu_rmsnorm_bwd(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x,
                             const vq_tensor *weight, const vq_tensor *rstd, const vq_tensor *plus);
vq_status vq_cpu_layernorm_fwd(void *ctx, vq_tensor *y, vq_tensor *mean, vq_tensor *rstd,
                               const vq_tensor *x, const vq_tensor *weight, const vq_tensor *bias,
                               double eps);
vq_status vq_cpu_layernorm_bwd(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x,
                               const vq_tensor *weight, const vq_tensor *mean,
                               const vq_tensor *rstd, const vq_tensor *plus);
vq_status vq_cpu_rope(void *ctx, vq_tensor *x, const vq_tensor *cos, const vq_tensor *sin,
                      int64_t first, bool inverse);
vq_status vq_cpu_attention_fwd(void *ctx, vq_tensor *out, vq_tensor *lse, const vq_tensor *q,
                               const vq_tensor *k, const vq_tensor *v, double scale);
vq_status vq_cpu_attention_bwd(void *ctx, vq_tensor *dq, vq_tensor *dk, vq_tensor *dv,
                               const vq_tensor *dout, const vq_tensor *q, const vq_tensor *k,
                               const vq_tensor *v, const vq_tensor *out, const vq_tensor *lse,
                               double scale);
vq_status vq_cpu_silu_gate_fwd(void *ctx, vq_tensor *y, const vq_tensor *gate, const vq_tensor *up);
vq_status vq_cpu_silu_gate_bwd(void *ctx, vq_tensor *dgate, vq_tensor *dup, const vq_tensor *dy,
                               const vq_tensor *gate, const vq_tensor *up);
vq_status vq_cpu_relu_fwd(void *ctx, vq_tensor *y, const vq_tensor *x);
vq_status vq_cpu_relu_bwd(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x);

/* round: cpu_round.c */
vq_status vq_cpu_round_fwd(void *ctx, vq_tensor *w, const vq_quant *q, const vq_tensor *codes,
                           vq_round_mode mode);
vq_status vq_cpu_round_bwd(void *ctx, vq_tensor *dcodes, const vq_tensor *dw, const vq_quant *q,
                           const vq_tensor *codes);
vq_status vq_cpu_round_reg(void *ctx, double *loss, vq_tensor *dcodes, const vq_tensor *codes,
                           const vq_tensor *counts, double weight, double beta);
vq_status vq_cpu_round_scale_fwd(void *ctx, vq_tensor *scale, const vq_tensor *grid,
                                 const vq_tensor *factor, vq_dtype scale_dtype);
vq_status vq_cpu_round_scale_bwd(void *ctx, vq_tensor *dfactor, const vq_tensor *dw,
                                 const vq_quant *q, const vq_tensor *codes, const vq_tensor *grid);
vq_status vq_cpu_arrange(void *ctx, vq_tensor *to, const vq_tensor *from, const vq_tensor *order,
                         bool back);

/* The number nearest to s that scale_dtype holds, and f16 too for a bf16 one up to 65504; never 0,
 * since weights are divided by it. Pure. */
real vq_cpu_round_scale(real s, vq_dtype scale_dtype);

/* Scale and zero of a group whose weights lie in [low, high], as vq_grid_minmax says. Pure. */
void vq_cpu_grid_of_range(real low, real high, real qmax, bool symmetric, bool include_zero,
                          vq_dtype scale_dtype, real *scale, real *zero);

/* Scale and zero of a group of n weights, as vq_grid_search says; variance may be NULL, and mean.
 * Pure. */
void vq_cpu_grid_of_weights(const real *w, const real *variance, const real *mean, int64_t n,
                            real qmax, bool symmetric, vq_dtype scale_dtype, real *scale,
                            real *zero);

/* init: cpu_grid.c, cpu_gptq.c, cpu_kmeans.c */
vq_status vq_cpu_grid_minmax(void *ctx, vq_tensor *scale, vq_tensor *zero, const vq_tensor *w,
                             int bits, int64_t group_size, bool symmetric, bool include_zero,
                             vq_dtype scale_dtype);
vq_status vq_cpu_grid_search(void *ctx, vq_tensor *scale, vq_tensor *zero, const vq_tensor *w,
                             const vq_tensor *inputs, int bits, int64_t group_size, bool symmetric,
                             vq_dtype scale_dtype);
vq_status vq_cpu_grid_round(void *ctx, vq_tensor *out, const vq_tensor *w, const vq_quant *q);
vq_status vq_cpu_grid_split(void *ctx, vq_tensor *base, vq_tensor *rest, const vq_tensor *w,
                            const vq_tensor *scale, const vq_tensor *zero, int bits,
                            int64_t group_size);
vq_status vq_cpu_grid_value(void *ctx, vq_tensor *out, const vq_tensor *ints, const vq_quant *q);
vq_status vq_cpu_gptq_sweep(void *ctx, vq_quant *q, vq_tensor *ints, vq_tensor *rest, double *error,
                            const vq_tensor *w, const vq_tensor *u, const vq_tensor *order,
                            const vq_tensor *dead, const vq_sweep_rule *rule);
vq_status vq_cpu_kmeans_assign(void *ctx, vq_tensor *idx, double *objective, const vq_tensor *x,
                               const vq_tensor *codes, const vq_kmeans_part *parts,
                               int64_t n_parts);
vq_status vq_cpu_kmeans_update(void *ctx, vq_tensor *codes, vq_tensor *counts, const vq_tensor *x,
                               const vq_tensor *idx, const vq_kmeans_part *parts, int64_t n_parts);

/* loss: cpu_loss.c */
vq_status vq_cpu_head_kd(void *ctx, double *loss, vq_tensor *dx, const vq_tensor *x,
                         const vq_tensor *x_teacher, const vq_tensor *head,
                         const vq_tensor *head_teacher, double tau, double scale);
vq_status vq_cpu_head_nll(void *ctx, double *loss, vq_tensor *dx, const vq_tensor *x,
                          const vq_tensor *head, const vq_tensor *targets, double scale);
vq_status vq_cpu_mse(void *ctx, double *loss, vq_tensor *dy, const vq_tensor *y,
                     const vq_tensor *target, double scale);

/* update: cpu_adam.c */
vq_status vq_cpu_adam_step(void *ctx, vq_tensor *param, vq_tensor *m, vq_tensor *v,
                           const vq_tensor *grad, double lr, double beta1, double beta2, double eps,
                           int64_t step);
vq_status vq_cpu_norm2(void *ctx, double *out, const vq_tensor *x);
