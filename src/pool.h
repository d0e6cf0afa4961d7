/* pool.h - the codebooks of all linears of the model in one block, with its gradient.
 *
 * Every rank holds the whole pool (13B: 280 codebooks of 32,768 floats, 37 MB) and fills the
 * gradient of its own layers; one all-reduce then sums it. Slot layer * VQ_N_KINDS + kind is that
 * linear's part; a linear that is not quantized has an empty one. */
#pragma once
#include "config.h"
#include "stage.h"

typedef struct vq_pool {
    int64_t n_slots; /* N * VQ_N_KINDS */
    int64_t *offset; /* [n_slots + 1]: slot i has elements [offset[i], offset[i + 1]) */
    int64_t K, D;    /* codes a linear at most, and their width */
    vq_tensor codes; /* real [offset[n_slots]] */
    vq_tensor grad;  /* the same */
} vq_pool;

/* Whether linear `name` is quantized: no word of skip is part of it. */
bool vq_pool_takes(const char *name, const vq_list *skip);

/* Lays the pool out for codebooks of K codes of width D (a linear with fewer vectors than K has as
 * many codes as vectors) and takes memory for codes and gradient. Fails: VQ_EMEM. Local. */
vq_status vq_pool_init(vq_arena *arena, const vq_backend *be, const vq_model *model,
                       const vq_list *skip, int64_t K, int64_t D, vq_pool *pool);

/* Codes of a slot: 0 when it is empty. */
int64_t vq_pool_codes(const vq_pool *pool, int64_t slot);

/* A slot's [K, D] part of a tensor laid out as the pool (codes, grad, Adam's m). */
vq_tensor vq_pool_part(const vq_pool *pool, const vq_tensor *whole, int64_t slot);

/* The name of a slot's linear. */
const char *vq_pool_name(const vq_model *model, int64_t slot);
