/* init.h - the first phase on the weights: grid, residual, codebook of every linear.
 *
 * Each rank makes a share of its stage's linears, layer after layer, and leaves
 * RUN/init-LAYER-REPLICA.h5 with its share of a layer: by linear's name base, scale, zero, with
 * codebooks idx, counts, codes, with GPTQ its own integers, ints; and rank 0 the start codebook,
 * init-start.h5. Any layout of ranks can read them, and goes on with the layers that lack a
 * linear. */
#pragma once
#include "feed.h"

typedef struct vq_init_stats {
    int64_t n_linears, n_weights; /* quantized, in the whole model */
    int64_t n_codes;              /* trained numbers */
    double source_bytes;          /* of the quantized linears in the model's files */
    double packed_bytes; /* of the quantized linears at `bits`, scales and zeros included */
    double seconds;
} vq_init_stats;

/* Collective. Makes or loads the integers and codebooks of the stage's linears and puts them into
 * the stage; the pool gets the codes of all layers; sets job->grid_key and init_key. Fails:
 * VQ_ENOTFINITE (a weight), VQ_EFILE (an init file of other settings), VQ_EMEM, VQ_ESTOPPED (asked
 * for, after a layer). */
vq_status vq_init_codebooks(vq_job *job, const vq_data *data, vq_init_stats *stats);

/* The same from a run folder that has them all. Collective. Fails: VQ_EFILE (a linear is missing,
 * or was made with other settings), VQ_EMEM. */
vq_status vq_init_read(vq_job *job, const vq_data *data, vq_init_stats *stats);
