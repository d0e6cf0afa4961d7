/* vqlinear.h - one linear of the student: its integers and codebook, and its weight in each mode.
 *
 * Forward of one quantized linear: y = x Wq^T + bias, Wq = s (clamp(base + r, 0, qmax) - z). */
#pragma once
#include "backend.h"
#include "model.h"

/* Which weights a pass runs with. */
typedef enum vq_mode {
    VQ_MODE_FLOAT, /* the model's own: the teacher, and the perplexity before */
    VQ_MODE_RTN,   /* rounded to nearest on the student's grid: the baseline */
    VQ_MODE_SOFT,  /* the student in training */
    VQ_MODE_HARD,  /* the student as it is exported */
    VQ_MODE_GPTQ,  /* GPTQ's own integers: the other baseline, and what the student starts from */
    VQ_N_MODES
} vq_mode;

const char *vq_mode_name(vq_mode mode); /* "fp", "rtn", "soft", "hard", "gptq" */

typedef struct vq_vqlinear {
    const vq_linear *source; /* borrowed: the model */
    bool quantized;          /* false: the source's weight in every mode (a skip keyword) */
    vq_quant quant;
    vq_tensor codes;  /* real [K, D]; borrowed: the pool */
    vq_tensor dcodes; /* real [K, D]; borrowed: the pool's gradient */
    vq_tensor counts; /* u32 [K, D] */
    vq_tensor ints;   /* as quant.base [out, in]: GPTQ's own integers; no data: not kept */
} vq_vqlinear;

/* The weight in `mode`: the source's own tensor, or one made in arena (act [out, in]). */
vq_status vq_vqlinear_weight(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                             vq_arena *arena, vq_tensor *weight);

/* y = x W^T + bias.  x act [n, in]; y act [n, out]. */
vq_status vq_vqlinear_fwd(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                          vq_arena *scratch, const vq_tensor *x, vq_tensor *y);

/* dx (+)= dy W.  The gradient of the input alone. */
vq_status vq_vqlinear_bwd_input(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                                vq_arena *scratch, const vq_tensor *dy, vq_tensor *dx, bool add);

/* dcodes += the codebook's gradient of dW = dy^T x (VQ_MODE_SOFT). Nothing for a linear that is not
 * quantized. dW exists for the time of this call. */
vq_status vq_vqlinear_bwd_codes(const vq_backend *be, const vq_vqlinear *linear, vq_arena *scratch,
                                const vq_tensor *x, const vq_tensor *dy);
