/* cuda_ops.h - the GPU's slots of vq_ops (contracts: backend.h) and what they share; for C and .cu.
 *
 * A slot gets arguments that the wrapper has checked. It queues on cuda->stream and returns, unless
 * it gives a number to the host. How work is cut, and so the order of every sum, depends on shapes
 * alone: launch geometry and sizes of scratch are pure functions (cuda_geometry.h). */
#pragma once
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cusolverDn.h>

#ifdef __cplusplus
extern "C" {
#endif
#include "arena.h"
#include "backend.h"
#include "error.h"

/* Bytes of host memory for numbers on their way from the device. */
#define VQ_CUDA_STAGING ((size_t)64 << 10)

/* What cuBLASLt may use while it multiplies. */
#define VQ_CUDA_WORKSPACE ((size_t)32 << 20)

/* Sums that may wait for the host. */
#define VQ_CUDA_LATER 256

typedef struct vq_cuda_gemm_cache vq_cuda_gemm_cache; /* cuda_gemm.c */
typedef struct vq_cuda_bring vq_cuda_bring;           /* cuda_bring.c */

/* The backend's ctx. It lives on the host, at the start of its arena `memory`. */
typedef struct vq_cuda {
    int device;
    vq_dtype act;
    cudaStream_t stream;
    cudaEvent_t queued; /* what another stream waits for: vq_cuda_before */
    vq_arena memory;    /* host */
    vq_arena scratch; /* device: mark and reset inside one op. What is queued runs in order, so what
                         the next op takes is no longer read */
    vq_arena slots;   /* device: where weights on their way are read (cuda_bring.c) */
    vq_cuda_bring *bring;
    void *staging;   /* pinned host memory, VQ_CUDA_STAGING bytes: vq_cuda_fetch's */
    void *workspace; /* device, VQ_CUDA_WORKSPACE bytes */
    double *totals;  /* device, behind it: [n_later] sums that the host has not read yet */
    struct {
        double *out, factor; /* *out += factor times the sum */
    } later[VQ_CUDA_LATER];
    int n_later;
    cublasLtHandle_t blas;
    cusolverDnHandle_t solver;
    vq_cuda_gemm_cache *gemm_cache;
    int multiprocessors; /* sums may depend on it: as products do, on GPUs of another kind */
    size_t shared_bytes; /* of a block at most: sharedMemPerBlockOptin */
} vq_cuda;

/* What a CUDA, cuBLASLt or cuSOLVER call gave, as a status with a message; op: the calling
 * function's name, call: the text of the call. Fails: VQ_EMEM (no memory on the device), VQ_EPEER
 * (the device or its driver). */
vq_status vq_cuda_check(cudaError_t code, const char *op, const char *call);
vq_status vq_cuda_check_blas(cublasStatus_t code, const char *op, const char *call);
vq_status vq_cuda_check_solver(cusolverStatus_t code, const char *op, const char *call);

#define VQ_CUDA(call) VQ_TRY(vq_cuda_check((call), __func__, #call))
#define VQ_CUBLAS(call) VQ_TRY(vq_cuda_check_blas((call), __func__, #call))
#define VQ_CUSOLVER(call) VQ_TRY(vq_cuda_check_solver((call), __func__, #call))

/* The cache of chosen products (cuda_gemm.c). */
vq_status vq_cuda_gemm_open(vq_cuda *cuda);
void vq_cuda_gemm_close(vq_cuda *cuda);

/* Host memory to the device: pinned pieces, and the weights that do not stay (cuda_bring.c). Open
 * may fail half-way, close follows all the same; trim gives the slots' memory back. */
vq_status vq_cuda_bring_open(vq_cuda *cuda);
void vq_cuda_bring_close(vq_cuda *cuda);
vq_status vq_cuda_bring_trim(vq_cuda *cuda);

/* Queues a copy on a stream; src, on the host, may change when this returns. */
vq_status vq_cuda_send(vq_cuda *cuda, cudaStream_t stream, void *dst, const void *src,
                       size_t bytes);

/* bytes from the device to the host, of any number, through pinned pieces too. */
vq_status vq_cuda_take(vq_cuda *cuda, void *dst_host, const void *src, size_t bytes);

/* The same of at most VQ_CUDA_STAGING bytes, when all that is queued before is done. */
vq_status vq_cuda_fetch(vq_cuda *cuda, void *dst_host, const void *src, size_t bytes);

/* The sum of n partial sums in the device's memory, in a fixed order, when all that is queued
 * before is done (cuda_adam.cu). */
vq_status vq_cuda_sum(vq_cuda *cuda, double *out_host, const double *partial, int64_t n);

/* *out_host += factor times that sum at the next vq_cuda_settle: nothing waits for it now. */
vq_status vq_cuda_sum_later(vq_cuda *cuda, double *out_host, double factor, const double *partial,
                            int64_t n);

/* When all that is queued is done: the sums that wait for it (cuda_adam.cu). */
vq_status vq_cuda_settle(vq_cuda *cuda);

/* How a group's grid is found: by vq_grid_minmax or, with search, vq_grid_search. */
typedef struct vq_cuda_grid_rule {
    bool symmetric, include_zero, search;
    vq_dtype scale_dtype;
    const float *variance, *mean; /* [in], device: of the search; may be NULL */
} vq_cuda_grid_rule;

/* The grids of q's groups [first_group, first_group + n_groups) into its scale and zero, with q's
 * bits, without the columns that dead (device, may be NULL) marks (cuda_grid.cu). */
vq_status vq_cuda_find_grids(vq_cuda *cuda, vq_quant *q, const vq_tensor *w,
                             const vq_cuda_grid_rule *rule, const uint8_t *dead,
                             int64_t first_group, int64_t n_groups);

/* n floats of any type to any other, queued (cuda_layer.cu). */
vq_status vq_cuda_convert(vq_cuda *cuda, void *dst, vq_dtype dst_dtype, const void *src,
                          vq_dtype src_dtype, int64_t n);

/* memory: cuda_bring.c */
vq_status vq_cuda_bring_weight(void *ctx, const void *src_host, size_t bytes, void **there);

/* dense: cuda_gemm.c. c may be f32 whatever act is (logits). */
vq_status vq_cuda_gemm(void *ctx, vq_tensor *c, const vq_tensor *a, bool trans_a,
                       const vq_tensor *b, bool trans_b, double alpha, double beta);

/* dense: cuda_gptq.cu */
vq_status vq_cuda_syrk(void *ctx, vq_tensor *h, const vq_tensor *x, double alpha);
vq_status vq_cuda_moments(void *ctx, vq_tensor *sums, const vq_tensor *x, double alpha);
vq_status vq_cuda_inverse_factor(void *ctx, vq_tensor *u, bool *positive, vq_tensor *h,
                                 const vq_tensor *order, double damp);

/* layer: cuda_layer.cu, cuda_attention.cu */
vq_status vq_cuda_embed(void *ctx, vq_tensor *out, const vq_tensor *table, const vq_tensor *ids,
                        bool add);
vq_status vq_cuda_bias_add(void *ctx, vq_tensor *y, const vq_tensor *bias);
vq_status vq_cuda_add(void *ctx, vq_tensor *y, const vq_tensor *x);
vq_status vq_cuda_rmsnorm_fwd(void *ctx, vq_tensor *y, vq_tensor *rstd, const vq_tensor *x,
                              const vq_tensor *weight, double eps);
vq_status vq_cuda_rmsnorm_bwd(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x,
                              const vq_tensor *weight, const vq_tensor *rstd,
                              const vq_tensor *plus);
vq_status vq_cuda_layernorm_fwd(void *ctx, vq_tensor *y, vq_tensor *mean, vq_tensor *rstd,
                                const vq_tensor *x, const vq_tensor *weight, const vq_tensor *bias,
                                double eps);
vq_status vq_cuda_layernorm_bwd(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x,
                                const vq_tensor *weight, const vq_tensor *mean,
                                const vq_tensor *rstd, const vq_tensor *plus);
vq_status vq_cuda_rope(void *ctx, vq_tensor *x, const vq_tensor *cos, const vq_tensor *sin,
                       int64_t first, bool inverse);
vq_status vq_cuda_attention_fwd(void *ctx, vq_tensor *out, vq_tensor *lse, const vq_tensor *q,
                                const vq_tensor *k, const vq_tensor *v, double scale);
vq_status vq_cuda_attention_bwd(void *ctx, vq_tensor *dq, vq_tensor *dk, vq_tensor *dv,
                                const vq_tensor *dout, const vq_tensor *q, const vq_tensor *k,
                                const vq_tensor *v, const vq_tensor *out, const vq_tensor *lse,
                                double scale);
vq_status vq_cuda_silu_gate_fwd(void *ctx, vq_tensor *y, const vq_tensor *gate,
                                const vq_tensor *up);
vq_status vq_cuda_silu_gate_bwd(void *ctx, vq_tensor *dgate, vq_tensor *dup, const vq_tensor *dy,
                                const vq_tensor *gate, const vq_tensor *up);
vq_status vq_cuda_relu_fwd(void *ctx, vq_tensor *y, const vq_tensor *x);
vq_status vq_cuda_relu_bwd(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x);

/* round: cuda_round.cu */
vq_status vq_cuda_round_fwd(void *ctx, vq_tensor *w, const vq_quant *q, const vq_tensor *codes,
                            vq_round_mode mode);
vq_status vq_cuda_round_bwd(void *ctx, vq_tensor *dcodes, const vq_tensor *dw, const vq_quant *q,
                            const vq_tensor *codes);
vq_status vq_cuda_round_reg(void *ctx, double *loss, vq_tensor *dcodes, const vq_tensor *codes,
                            const vq_tensor *counts, double weight, double beta);
vq_status vq_cuda_round_scale_fwd(void *ctx, vq_tensor *scale, const vq_tensor *grid,
                                  const vq_tensor *factor, vq_dtype scale_dtype);
vq_status vq_cuda_round_scale_bwd(void *ctx, vq_tensor *dfactor, const vq_tensor *dw,
                                  const vq_quant *q, const vq_tensor *codes, const vq_tensor *grid);
vq_status vq_cuda_arrange(void *ctx, vq_tensor *to, const vq_tensor *from, const vq_tensor *order,
                          bool back);

/* init: cuda_grid.cu, cuda_gptq.cu, cuda_kmeans.cu */
vq_status vq_cuda_grid_minmax(void *ctx, vq_tensor *scale, vq_tensor *zero, const vq_tensor *w,
                              int bits, int64_t group_size, bool symmetric, bool include_zero,
                              vq_dtype scale_dtype);
vq_status vq_cuda_grid_search(void *ctx, vq_tensor *scale, vq_tensor *zero, const vq_tensor *w,
                              const vq_tensor *inputs, int bits, int64_t group_size, bool symmetric,
                              vq_dtype scale_dtype);
vq_status vq_cuda_grid_round(void *ctx, vq_tensor *out, const vq_tensor *w, const vq_quant *q);
vq_status vq_cuda_grid_split(void *ctx, vq_tensor *base, vq_tensor *rest, const vq_tensor *w,
                             const vq_tensor *scale, const vq_tensor *zero, int bits,
                             int64_t group_size);
vq_status vq_cuda_grid_value(void *ctx, vq_tensor *out, const vq_tensor *ints, const vq_quant *q);
vq_status vq_cuda_gptq_sweep(void *ctx, vq_quant *q, vq_tensor *ints, vq_tensor *rest,
                             double *error, const vq_tensor *w, const vq_tensor *u,
                             const vq_tensor *order, const vq_tensor *dead,
                             const vq_sweep_rule *rule);
vq_status vq_cuda_kmeans_assign(void *ctx, vq_tensor *idx, double *objective, const vq_tensor *x,
                                const vq_tensor *codes, const vq_kmeans_part *parts,
                                int64_t n_parts);
vq_status vq_cuda_kmeans_update(void *ctx, vq_tensor *codes, vq_tensor *counts, const vq_tensor *x,
                                const vq_tensor *idx, const vq_kmeans_part *parts, int64_t n_parts);

/* loss: cuda_loss.cu */
vq_status vq_cuda_head_kd(void *ctx, double *loss, vq_tensor *dx, const vq_tensor *x,
                          const vq_tensor *x_teacher, const vq_tensor *head,
                          const vq_tensor *head_teacher, double tau, double scale);
vq_status vq_cuda_head_nll(void *ctx, double *loss, vq_tensor *dx, const vq_tensor *x,
                           const vq_tensor *head, const vq_tensor *targets, double scale);
vq_status vq_cuda_mse(void *ctx, double *loss, vq_tensor *dy, const vq_tensor *y,
                      const vq_tensor *target, double scale);

/* update: cuda_adam.cu */
vq_status vq_cuda_adam_step(void *ctx, vq_tensor *param, vq_tensor *m, vq_tensor *v,
                            const vq_tensor *grad, double lr, double beta1, double beta2,
                            double eps, int64_t step);
vq_status vq_cuda_norm2(void *ctx, double *out, const vq_tensor *x);

#ifdef __cplusplus
}
#endif
