/* vqlinear.h - one linear of the student: its integers and logits, and its weight in each mode.
 *
 * Forward of one quantized linear: y = x Wq^T + bias, Wq = s (clamp(base + r, 0, qmax) - z). The
 * logits behind r are read out of a codebook, or are one for each weight (quant.idx has no data),
 * or the product of two factors. */
#pragma once
#include "backend.h"
#include "model.h"

/* Which weights a pass runs with. */
typedef enum vq_mode {
    VQ_MODE_FLOAT, /* the model's own: the teacher, and the perplexity before */
    VQ_MODE_RTN,   /* rounded to nearest on the student's grid: the baseline */
    VQ_MODE_SOFT,  /* the student in training, roundings between down and up */
    VQ_MODE_HARD,  /* the student as it is exported; it may be trained so too */
    VQ_MODE_GPTQ,  /* GPTQ's own integers: the other baseline, and what the student starts from */
    VQ_N_MODES
} vq_mode;

const char *vq_mode_name(vq_mode mode); /* "fp", "rtn", "soft", "hard", "gptq" */

typedef struct vq_vqlinear {
    const vq_linear *source; /* borrowed: the model */
    bool quantized;          /* false: the source's weight in every mode (a skip keyword) */
    vq_quant quant;
    bool is_factored;  /* codes is B1 [out, r] and then B2 [r, in], and the logits are B1 B2 */
    vq_tensor codes;   /* real [K, D], [out, in] or [r, out + in]; borrowed: the pool */
    vq_tensor dcodes;  /* as codes; borrowed: the pool's gradient */
    vq_tensor counts;  /* u32 [K, D]; no data: each logit is one weight's */
    vq_tensor grid;    /* real [out, groups]: quant.scale before training; no data: not learned */
    vq_tensor factor;  /* real [out, groups]: of the learned scale; borrowed: the pool */
    vq_tensor dfactor; /* the same; borrowed: the pool's gradient */
    vq_dtype scale_dtype; /* what quant.scale is rounded to */
    vq_tensor ints;       /* as quant.base: GPTQ's own integers; no data: not kept */
    vq_tensor order;      /* i32 [in]: column j of quant, logits and ints is column order[j] of
                             the weight, so that groups are runs; no data: they are the same */
    vq_tensor made;       /* act [out, in]: the weight in made_mode as it was last made; no data:
                             each product makes its own */
    vq_mode made_mode;
} vq_vqlinear;

/* The two factors in a tensor as codes. */
vq_tensor vq_vqlinear_factor1(const vq_vqlinear *linear, const vq_tensor *codes); /* [out, r] */
vq_tensor vq_vqlinear_factor2(const vq_vqlinear *linear, const vq_tensor *codes); /* [r, in] */

/* Begins to learn the scales: grid becomes a copy of quant.scale in arena. Nothing where the linear
 * has no factors, or has begun. */
vq_status vq_vqlinear_learn_scale(const vq_backend *be, vq_vqlinear *linear, vq_arena *arena);

/* quant.scale of the present factors; to be called when they have changed. Nothing where the scales
 * are not learned. */
vq_status vq_vqlinear_set_scale(const vq_backend *be, vq_vqlinear *linear);

/* The weight in `mode`: the source's own tensor (a copy of it at be's place, in its
 * own type), or one made in arena (act [out, in]). */
vq_status vq_vqlinear_weight(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                             vq_arena *arena, vq_tensor *weight);

/* Makes the weight in `mode` once for all passes until it is made again, which must follow when
 * codes or scales have changed: in room from arena, taken at first. Passes in another mode make
 * their own. Nothing for a linear that is not quantized. */
vq_status vq_vqlinear_make(const vq_backend *be, vq_vqlinear *linear, vq_mode mode, vq_arena *arena,
                           vq_arena *scratch);

/* The linear with what its weight is made of on the host, in arena: for files, which hold the
 * weight in more digits than a device's act. Gradients and counts stay where they are. */
vq_status vq_vqlinear_host(const vq_backend *be, vq_arena *arena, const vq_vqlinear *linear,
                           vq_vqlinear *host);

/* y = x W^T + bias.  x act [n, in]; y act [n, out]. The weight is brought or made once, or was made
 * by vq_vqlinear_make; a product takes product_rows of the n. */
vq_status vq_vqlinear_fwd(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                          vq_arena *scratch, int64_t product_rows, const vq_tensor *x,
                          vq_tensor *y);

/* dx (+)= dy W.  The gradient of the input alone. */
vq_status vq_vqlinear_bwd_input(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                                vq_arena *scratch, const vq_tensor *dy, vq_tensor *dx, bool add);

/* dcodes += the gradient of dW = dy^T x by the codes, as if rounding were soft; dfactor that by the
 * factors of learned scales. Nothing for a linear that is not quantized. dW exists for the time of
 * this call.
 */
vq_status vq_vqlinear_bwd_codes(const vq_backend *be, const vq_vqlinear *linear, vq_arena *scratch,
                                const vq_tensor *x, const vq_tensor *dy);

/* The regularizer over the linear's weights: loss += its value (there after vq_sync), dcodes += its
 * gradient. */
vq_status vq_vqlinear_reg(const vq_backend *be, const vq_vqlinear *linear, vq_arena *scratch,
                          double *loss, double weight, double beta);
