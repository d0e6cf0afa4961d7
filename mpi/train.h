/* train.h - the codebooks trained end to end by distilling the teacher.
 *
 * Leaves checkpoints and RUN/metrics.jsonl, a line a step: step, loss, task, reg, beta, grad_norm,
 * seconds, waited_ratio (rank 0's share of the step spent waiting for other ranks), tokens_per_s,
 * rss_bytes. */
#pragma once
#include "cache.h"

typedef struct vq_train_stats {
    int64_t steps;  /* done in all, over every resume */
    double seconds; /* of those steps */
    /* Of the steps that this process ran: all of their time on this rank, and what of it went into
     * sums and broadcasts, and into waiting for a neighbour's message. */
    double ran_s, sums_s, messages_s;
} vq_train_stats;

/* All steps from the newest checkpoint on. Sets job->train_key.
 * Fails: VQ_ESTOPPED (a signal or the time limit, after a checkpoint); VQ_ENOTFINITE (with step,
 * linear, and the file that holds the step's input); VQ_EFILE; VQ_EMEM. */
vq_status vq_train(vq_job *job, const vq_data *data, vq_teacher *teacher, vq_train_stats *stats);

/* The codes after the last step, as the newest checkpoint has them, for a run that is finished.
 * Sets job->train_key. Collective. Fails: VQ_EFILE (no checkpoint of the last step, or of other
 * settings), VQ_EMEM. */
vq_status vq_train_restore(vq_job *job, const vq_data *data);
