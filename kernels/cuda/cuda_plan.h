/* cuda_plan.h - how the kernels of rounding, losses, k-means and GPTQ cut their work, and what that
 * takes of scratch memory: pure functions of shapes, tested without a GPU. */
#pragma once
#ifdef __cplusplus
extern "C" {
#endif
#include "base.h"

/* Blocks that make partial sums over n elements; their order is that of the elements. */
#define VQ_CUDA_SUM_BLOCKS 1024
int64_t vq_cuda_sum_blocks(int64_t n);

/* round_fwd: whether each block makes a table of rounding values in its shared memory; for a small
 * weight that would cost more than reading codes through the caches. Where it does not: whether a
 * table is made first, in scratch; for a small weight the launch would cost more than rounding what
 * is read. */
bool vq_cuda_round_shares_table(int64_t n_weights, int64_t table_bytes, size_t shared_bytes);
bool vq_cuda_round_makes_table(int64_t n_weights);

/* round_bwd: blocks [chunks, ranges]. Each goes over one chunk of the weight and adds to the
 * gradients of one range of codes, in its shared memory. One fills a multiprocessor: there are no
 * more chunks than these, whose order is that of the sum. */
#define VQ_CUDA_ROUND_TURN 16384 /* weights that a block takes at a time */
typedef struct vq_cuda_round_plan {
    int64_t chunks, chunk; /* number, and weights of each: a multiple of VQ_CUDA_ROUND_TURN */
    int64_t ranges, codes; /* number, and codes of each */
    size_t shared_bytes;   /* of a block */
    int64_t partial;       /* floats of scratch: the chunks' tables */
} vq_cuda_round_plan;
vq_cuda_round_plan vq_cuda_plan_round_bwd(int64_t n_weights, int64_t K, int64_t D,
                                          size_t shared_bytes, int multiprocessors);

/* Losses: tokens of a chunk, all chunks but the last being equal, when a token has `logits`
 * logits. */
int64_t vq_cuda_loss_tokens(int64_t n, int64_t logits);

/* What a pass of T tokens takes of scratch memory at most, for `vqround plan`: that of its dearest
 * op. */
typedef struct vq_cuda_pass {
    int64_t T, H, V, E; /* V 0: without the head */
    int64_t K, D;       /* of its codebooks; 0: none */
    int64_t largest;    /* weights of its largest linear */
    size_t act_bytes;
    bool converts;                 /* the model's weights are of another type than activations */
    bool is_backward, has_teacher; /* the head's loss is with a teacher's states */
} vq_cuda_pass;
size_t vq_cuda_pass_bytes(const vq_cuda_pass *pass);

/* Bits that a fixed-point number may have if `count` of them must add up within `bits` bits. */
int vq_cuda_fixed_bits(int bits, int64_t count);

/* syrk: columns of h that are multiplied at a time; scratch is n times this, floats. */
int64_t vq_cuda_syrk_columns(int64_t n);

/* inverse_factor: scratch for inputs of n columns, more than GPTQ's other ops take for linears of
 * at most as many inputs and outputs. What cuSOLVER takes beside the matrix it says at run time
 * alone: planned is as much again. */
size_t vq_cuda_factor_bytes(int64_t n);

#ifdef __cplusplus
}
#endif
