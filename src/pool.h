/* pool.h - everything that is trained, in one block, with its gradient: each linear's rounding
 * logits and, where scales are learned, the factors of its scales.
 *
 * Slot layer * VQ_N_KINDS + kind is that linear's; a linear that is not quantized has an empty one.
 * Every rank holds the whole pool (13B: 280 codebooks of 32,768 floats, 37 MB) and fills the
 * gradient of its own layers; one all-reduce then sums it. A pool too large for that holds the
 * layers of its rank's stage alone. */
#pragma once
#include "config.h"
#include "stage.h"

/* What stands for a linear's logits. */
typedef enum vq_pool_kind {
    VQ_POOL_CODES,  /* a codebook [K, D]: fewer codes where there are fewer vectors */
    VQ_POOL_LOGITS, /* one for each weight, [out, in]: AdaRound */
    VQ_POOL_FACTORS /* B1 [out, r], then B2 [r, in], for the logits B1 B2: LoRA. As many numbers as
                       a codebook would have, r = K D / (out + in), but at least 1 */
} vq_pool_kind;

typedef struct vq_pool_rule {
    vq_pool_kind kind;
    int64_t K, D;
    int64_t group_size;  /* weights of a row that share a learned scale (-1: all); 0: not learned */
    const vq_list *skip; /* words of linears that are not quantized */
    int64_t first, last; /* the layers held here */
    bool is_part;        /* they are a stage's, each of which holds its own */
} vq_pool_rule;

/* A linear's shapes; all zero: not quantized. */
typedef struct vq_pool_slot {
    int64_t out, in;
    int64_t n, width; /* its numbers, as a matrix: codes, rows of W, or r rows of out + in */
    int64_t groups;   /* learned scales in a row */
} vq_pool_slot;

typedef struct vq_pool {
    vq_pool_kind kind;
    int64_t n_slots;    /* N * VQ_N_KINDS */
    vq_pool_slot *slot; /* [n_slots], of the whole model */
    int64_t n_params;   /* of the whole model */
    /* [n_slots + 1]: slot i's logits are the elements [offset[i], offset[i + 1]) of codes and grad;
     * the factors of its scales [scale_offset[i], scale_offset[i + 1]), behind all logits. */
    int64_t *offset, *scale_offset;
    bool is_whole;   /* every rank holds all layers */
    vq_tensor codes; /* real: all logits, then all factors */
    vq_tensor grad;  /* the same */
} vq_pool;

/* Whether linear `name` is quantized: no word of skip is part of it. */
bool vq_pool_takes(const char *name, const vq_list *skip);

/* The shapes of linear W[out, in]. Pure. */
vq_pool_slot vq_pool_shape(const vq_pool_rule *rule, int64_t out, int64_t in);

/* The rule of a method and its settings; the layers are left to be set. Pure. */
vq_pool_rule vq_pool_rule_of(const vq_config *config);

/* Numbers in the layers [first, last) of a model. Pure. */
int64_t vq_pool_count(const vq_model_config *model, const vq_pool_rule *rule);

/* Lays the pool out and takes memory for codes and gradient; the factors are 1.
 * Fails: VQ_EUSAGE (no linear is left to quantize), VQ_EMEM. Local. */
vq_status vq_pool_init(vq_arena *arena, const vq_backend *be, const vq_model *model,
                       const vq_pool_rule *rule, vq_pool *pool);

/* Rows of a slot's logits (codes of a codebook): 0 when it is empty. */
int64_t vq_pool_codes(const vq_pool *pool, int64_t slot);

/* A slot's [n, width] part of a tensor laid out as the pool (codes, grad, Adam's m), and the
 * factors of its scales, [out, groups]; no data where they are not learned. Of held layers only. */
vq_tensor vq_pool_part(const vq_pool *pool, const vq_tensor *whole, int64_t slot);
vq_tensor vq_pool_scales(const vq_pool *pool, const vq_tensor *whole, int64_t slot);

/* The factors of all slots, 1-dimensional; of no elements where scales are not learned. And what
 * is before them: all logits. */
vq_tensor vq_pool_all_scales(const vq_pool *pool, const vq_tensor *whole);
vq_tensor vq_pool_all_codes(const vq_pool *pool, const vq_tensor *whole);

/* What a held layer has of it: its logits, or the factors of its scales; 1-dimensional. */
vq_tensor vq_pool_layer(const vq_pool *pool, const vq_tensor *whole, int64_t layer, bool scales);

/* Connects a linear with its slot: codes, factor, and their gradients. */
void vq_pool_attach(const vq_pool *pool, int64_t slot, vq_vqlinear *linear);

/* The name of a slot's linear. */
const char *vq_pool_name(const vq_model *model, int64_t slot);
