/* gptq.h - rounding a linear's weight column by column, each error made up for in the columns that
 * follow, by what its inputs have in common.
 *
 * H = (2 / n) sum x x^T over the inputs x of n calibration sequences; U is the upper triangular
 * factor of (H + damping)^-1 = U^T U. One H and one U serve all linears with the same input
 * (q, k, v; gate, up). The grid always includes 0. Tensors are at be's place, a weight may be on
 * the host; all functions are local; results have the same bits for any number of threads. */
#pragma once
#include "arena.h"
#include "backend.h"

typedef struct vq_gptq_config {
    int bits;
    double percdamp;    /* damping, as a part of H's mean diagonal */
    bool act_order;     /* columns by falling H_ii */
    vq_sweep_rule rule; /* block size, grid, residual */
} vq_gptq_config;

typedef struct vq_gptq_factor {
    vq_tensor u;     /* real [in, in] */
    vq_tensor order; /* i32 [in]: the columns in the order of the sweep */
    vq_tensor dead;  /* u8 [in]: 1 where the input is always 0 */
    double damp;     /* what was added to the diagonal */
} vq_gptq_factor;

/* Makes U and the order of the columns from H. Where H is not positive definite, ten times the
 * damping is tried, up to three times, with a line in the log.
 *
 * f     out; its tensors are in arena
 * h     f64 [in, in], in/out: the lower triangle, from vq_syrk; a diagonal element of 0 becomes 1.
 *       What is above the diagonal is lost
 * name  of the input, for messages
 *
 * Fails: VQ_ENOTFINITE (an element of the diagonal), VQ_EUSAGE (not positive definite), VQ_EMEM. */
vq_status vq_gptq_factor_make(const vq_backend *be, vq_arena *arena, vq_gptq_factor *f,
                              vq_tensor *h, const char *name, const vq_gptq_config *c);

/* vq_gptq_sweep with this factor; its outputs, and what it takes for granted, are there.
 *
 * q      out; from vq_grid_alloc with the same settings
 * w      weight [out, in], in; its name is used in messages
 *
 * Fails: VQ_ENOTFINITE (a weight), VQ_EUNSUPPORTED (a scale above scale_dtype's range). */
vq_status vq_gptq_quantize(const vq_backend *be, vq_quant *q, vq_tensor *ints, vq_tensor *rest,
                           double *error, const vq_tensor *w, const vq_gptq_factor *f,
                           const vq_gptq_config *c);
