/* init.h - the first phase on the weights: grid, residual, codebook of every linear of the stage.
 *
 * Leaves RUN/init-s00.h5: the start codebook and, by linear, base, idx, counts, scale, zero, codes.
 * Linears are stored by name, so another layout of ranks can read them. */
#pragma once
#include "feed.h"

typedef struct vq_init_stats {
    int64_t n_linears, n_weights; /* quantized */
    int64_t n_codes;              /* trained numbers */
    double source_bytes;          /* of the quantized linears in the model's files */
    double packed_bytes; /* of the quantized linears at `bits`, scales and zeros included */
    double seconds;
} vq_init_stats;

/* Makes or loads the integers and codebooks of the stage's linears and puts them into the stage and
 * the pool; sets job->init_key.
 * Fails: VQ_ENOTFINITE (a weight), VQ_EFILE (an init file of other settings), VQ_EMEM. */
vq_status vq_init_codebooks(vq_job *job, vq_init_stats *stats);
