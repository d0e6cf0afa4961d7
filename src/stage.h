/* stage.h - a run of decoder layers [first, last), with the embedding when it begins with layer 0
 * and the final norm when it ends with layer N - 1: what one rank of the pipeline holds.
 *
 * What passes between stages is act [B*T, E]. The last stage gives lm_head's input, act [B*T,
 * E_embed]: after the final norm (OPT-350M has none) and OPT's project_out. */
#pragma once
#include "block.h"

typedef struct vq_stage {
    const vq_backend *be;  /* borrowed */
    const vq_model *model; /* borrowed: names, files, sizes */
    const vq_model *there; /* the same, with all but the linears' weights at be's place */
    int64_t first, last;   /* layers [first, last) */
    vq_block *block;       /* [last - first] */
    vq_tensor cos, sin;    /* real [T_max, S / 2] */
    vq_arena *scratch;     /* borrowed */
} vq_stage;

/* What a forward keeps of one micro-batch for its backward. */
typedef struct vq_kept {
    int64_t B, T;
    vq_mode mode;        /* of the forward */
    bool recompute;      /* keep each layer's input alone, run it again in the backward */
    vq_acts *layer;      /* [n_layers], or layer[0] alone, reused, with recompute */
    vq_act_grads *grads; /* [n_layers] when slices pass; NULL: sequences pass whole */
    vq_tensor *input;    /* [n_layers] act [B*T, E]: each layer's input */
    vq_tensor final_in;  /* act [B*T, E]: the last layer's output, on the last stage */
    vq_tensor final_out; /* act [B*T, E]: after the final norm, where project_out follows */
    vq_tensor final_mean, final_rstd; /* real [B*T] */
} vq_kept;

/* How a micro-batch passes and what is kept of it. */
typedef enum vq_keep {
    VQ_KEEP_NOTHING, /* forward only: one layer's activations serve all layers */
    VQ_KEEP_INPUTS,  /* recompute in the backward */
    VQ_KEEP_ALL,
    VQ_KEEP_SLICES /* all, and the gradients of all layers until the sequence is through: B = 1 */
} vq_keep;

/* Sets the stage up in arena, with rotary tables for T_max tokens. No linear is quantized yet:
 * vq_stage_linear gives each to whoever loads its codes.
 * Fails: VQ_EUSAGE (T_max above the model's positions), VQ_EMEM. Local. */
vq_status vq_stage_init(vq_arena *arena, const vq_backend *be, const vq_model *model, int64_t first,
                        int64_t last, int64_t T_max, vq_arena *scratch, vq_stage *stage);

/* The linear of a kind in layer `layer` (counted in the model), or NULL if the family has none. */
vq_vqlinear *vq_stage_linear(vq_stage *stage, int64_t layer, vq_linear_kind kind);

/* Begins to learn the scales of the stage's linears, where they have factors; then makes the scales
 * of the present factors. */
vq_status vq_stage_learn_scales(vq_stage *stage, vq_arena *arena);
vq_status vq_stage_set_scales(vq_stage *stage);

/* Makes the weights of the stage's linears in `mode`, so that passes in it need not make them for
 * each product; to be called again when codes or scales have changed. The room is taken from arena
 * at first; vq_stage_forget_weights must come before that is given back. */
vq_status vq_stage_make_weights(const vq_stage *stage, vq_mode mode, vq_arena *arena);
void vq_stage_forget_weights(const vq_stage *stage);

/* Uploads the linears' own weights into arena's twin, in their order, as many as fit into
 * room_bytes: passes with them need not bring these each time. Until vq_stage_drop, which must come
 * before anything reads them on the host (writing files). Nothing on the host. Fails: VQ_EMEM. */
vq_status vq_stage_hold(const vq_stage *stage, vq_arena *arena, double room_bytes);
vq_status vq_stage_hold_layer(const vq_stage *stage, int64_t layer, vq_arena *arena); /* all */
void vq_stage_drop(const vq_stage *stage);

bool vq_stage_is_first(const vq_stage *stage);
bool vq_stage_is_last(const vq_stage *stage);

/* Columns of what the stage gives: E, or E_embed on the last. */
int64_t vq_stage_out_width(const vq_stage *stage);

vq_status vq_kept_init(vq_arena *arena, const vq_stage *stage, int64_t B, int64_t T, vq_keep keep,
                       vq_kept *kept);
size_t vq_kept_bytes(const vq_stage *stage, int64_t B, int64_t T, vq_keep keep);

/* What goes into layer 0: the embedding of the ids (through project_in), plus OPT's learned
 * positions from `first` on.  ids i32 [B, n] on the host; x act [B*n, E], out.
 * Fails: VQ_EFILE (a token id outside the vocabulary). */
vq_status vq_stage_embed(const vq_stage *stage, const vq_tensor *ids, int64_t first, vq_tensor *x);

/* Forward of tokens [first, first + n) of each of B sequences: whole (first 0, n = T), or one
 * sequence in slices, in order.
 *
 * in    i32 [B, n] token ids on the first stage (host), else act [B*n, E]
 * out   act [B*n, E or E_embed], out
 * kept  what a backward needs, out; NULL: nothing is kept and the sequences are whole; then B is
 *       said by `B`
 *
 * Fails: VQ_EINTERNAL; VQ_EFILE (a token id outside the vocabulary). */
vq_status vq_stage_fwd(const vq_stage *stage, vq_mode mode, int64_t B, int64_t first,
                       const vq_tensor *in, vq_tensor *out, vq_kept *kept);

/* Backward of the same tokens in the forward's mode, layers from last to first; slices in reverse.
 * Adds to the gradients of the stage's codebooks when the sequences pass whole; with slices
 * vq_stage_bwd_codes does, after the last one. Hard rounding passes its gradient straight through,
 * as if it were soft.
 * dout  act as out
 * din   act [B*n, E], out; not written on the first stage (may be NULL there) */
vq_status vq_stage_bwd(const vq_stage *stage, vq_kept *kept, int64_t first, const vq_tensor *dout,
                       vq_tensor *din);

/* The codebooks' gradient of a sequence that passed in slices; nothing otherwise. */
vq_status vq_stage_bwd_codes(const vq_stage *stage, vq_kept *kept);
