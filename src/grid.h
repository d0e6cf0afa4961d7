/* grid.h - the integer grid of a linear layer: scale, zero, base and the residual to round.
 *
 * w = s (base - z + rest): base says between which two integers a weight lies, rest in [0, 1] how
 * far it is from the lower one. Rounding to nearest (RTN) rounds rest by itself; VQRound learns it.
 * Tensors are at be's place, a weight may be on the host; all functions are local. */
#pragma once
#include "arena.h"
#include "backend.h"

typedef struct vq_grid_config {
    int bits;             /* 2 to 8 */
    int64_t group_size;   /* columns that share a scale; -1: the whole row */
    bool symmetric;       /* zero in the middle, as GPTQ's sym */
    bool include_zero;    /* widen the range to hold 0; false is the reference's RTN grid */
    vq_dtype scale_dtype; /* f32, f16 or bf16: what the scale will be stored as */
    bool search;          /* shrink the range to the part that rounds best; needs include_zero */
} vq_grid_config;

/* Scales per row: ceil(in / group_size). Pure. */
int64_t vq_grid_groups(const vq_grid_config *c, int64_t in);

/* What vq_grid_alloc takes from its arena where real is f32. Pure. */
size_t vq_grid_bytes(const vq_grid_config *c, int64_t out, int64_t in);

/* q's base, scale and zero for W[out, in], not set; q has no idx yet.
 * Fails: VQ_EINTERNAL (a setting out of range), VQ_EMEM. */
vq_status vq_grid_alloc(const vq_backend *be, vq_quant *q, vq_arena *arena, const vq_grid_config *c,
                        int64_t out, int64_t in);

/* The grid of w, and where w lies in it: vq_grid_minmax or vq_grid_search, then vq_grid_split.
 *
 * q     out; from vq_grid_alloc with the same c
 * rest  real [out, in], out: in [0, 1]
 * w     weight [out, in], in; its name is used in messages
 * inputs  real [2, in], in: the variances of what the columns multiply, and its means: of a search
 *         by what becomes of outputs; NULL: by the weights alone
 *
 * A bf16 scale is one that f16 holds as well, but above 65504: packed files have either. A scale
 * that scale_dtype would round to 0 is its least positive number instead: such a group's
 * weights are all but 0, and they stay so. With include_zero or symmetric, z is within [0, qmax].
 * Fails: VQ_ENOTFINITE (a weight), VQ_EUNSUPPORTED (a scale above scale_dtype's range). */
vq_status vq_grid_make(const vq_backend *be, vq_quant *q, vq_tensor *rest, const vq_tensor *w,
                       const vq_tensor *inputs, const vq_grid_config *c);

/* Looks for the first weight of w, then the first of q's scales, that is not finite: a pass over
 * both, for when a result says that there may be one.
 * Fails: VQ_ENOTFINITE (a weight), VQ_EUNSUPPORTED (a scale above scale_dtype's range). */
vq_status vq_grid_check_finite(const vq_backend *be, const vq_quant *q, const vq_tensor *w,
                               vq_dtype scale_dtype);
