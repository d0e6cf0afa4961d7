/* block.h - one decoder layer, forward and backward, for all three families.
 *
 * With the norms before (LLaMA, Qwen3, OPT):  sum1 = x + O(attention(norm1(x))),
 *                                             sum2 = sum1 + mlp(norm2(sum1)),  y = sum2.
 * With the norms after (OPT-350M):            mid = norm1(x + O(attention(x))),
 *                                             y = norm2(mid + mlp(mid)).
 * mlp(x) = DOWN(silu(GATE x) * UP x), or DOWN(relu(UP x)) for OPT.
 *
 * A sequence may pass in slices of tokens [first, first + n): the forward in order, the backward in
 * reverse; keys and values of the slices before are kept in the activations. Several sequences at
 * once (B > 1) pass whole. Rows of activations are [B, T] flattened. All functions are local. */
#pragma once
#include "vqlinear.h"

typedef struct vq_block {
    const vq_backend *be;
    const vq_model_config *config;
    const vq_layer *layer;          /* borrowed: the model */
    vq_vqlinear linear[VQ_N_KINDS]; /* one for each kind that the family has */
    const vq_tensor *cos, *sin;     /* real [T_max, S / 2]; borrowed: the stage; NULL for OPT */
} vq_block;

/* What the forward keeps for the backward. Tensors named together are one where the family makes
 * them equal (attn_in is x with the norms after; q_raw is q without q_norm...). */
typedef struct vq_acts {
    int64_t B, T;
    int64_t product_rows; /* of one product with a weight, B*T unless it is set: sequences that pass
                             together for the weights' sake give the bits that they give alone */
    vq_tensor x;          /* act [B*T, E], the layer's input */
    vq_tensor attn_in, mid, mlp_in;       /* act [B*T, E] */
    vq_tensor sum1, sum2;                 /* act [B*T, E] */
    vq_tensor q_raw, q, attn;             /* act [B*T, H*S] */
    vq_tensor k_raw, k, v;                /* act [B*T, G*S] */
    vq_tensor gate, up, act;              /* act [B*T, F]; OPT: act alone */
    vq_tensor mean1, rstd1, mean2, rstd2; /* real [B*T] */
    vq_tensor q_rstd, k_rstd;             /* real [B*T*H], [B*T*G] */
    vq_tensor lse;                        /* real [B*H*T] */
} vq_acts;

/* The gradient at each linear's output, kept until its codebook's gradient is taken. */
typedef struct vq_act_grads {
    vq_tensor dq, dk, dv; /* act [B*T, H*S], [B*T, G*S] */
    vq_tensor dsum1;      /* act [B*T, E]: O */
    vq_tensor dgate, dup; /* act [B*T, F] */
    vq_tensor dsum2;      /* act [B*T, E]: DOWN */
} vq_act_grads;

/* Takes memory for B sequences of T tokens. */
vq_status vq_acts_init(vq_arena *arena, const vq_backend *be, const vq_model_config *config,
                       int64_t B, int64_t T, vq_acts *acts);
size_t vq_acts_bytes(const vq_backend *be, const vq_model_config *config, int64_t B, int64_t T);

/* The same for the gradients; dk and dv are set to zero. */
vq_status vq_act_grads_init(vq_arena *arena, const vq_backend *be, const vq_model_config *config,
                            int64_t B, int64_t T, vq_act_grads *grads);

size_t vq_act_grads_bytes(const vq_backend *be, const vq_model_config *config, int64_t B,
                          int64_t T);

/* Tokens [first, first + n) from acts->x (filled by the caller) to acts->sum2 or, with the norms
 * after, to y. y act [B*n, E] is the layer's output and is always written; it may be the next
 * layer's x. With B > 1: first = 0, n = T. */
vq_status vq_block_fwd(const vq_block *block, vq_mode mode, vq_arena *scratch, vq_acts *acts,
                       int64_t first, int64_t n, vq_tensor *y);

/* The same tokens back: dx from dy, both act [B*n, E]; dx may be dy; NULL when nobody needs it (the
 * embedding is frozen). Fills the rows of grads. */
vq_status vq_block_bwd(const vq_block *block, vq_mode mode, vq_arena *scratch, const vq_acts *acts,
                       vq_act_grads *grads, int64_t first, int64_t n, const vq_tensor *dy,
                       vq_tensor *dx);

/* After all slices of a sequence: every codebook's gradient from the kept inputs and grads, added
 * to dcodes in the order of the kinds. */
vq_status vq_block_bwd_codes(const vq_block *block, vq_arena *scratch, const vq_acts *acts,
                             const vq_act_grads *grads);
