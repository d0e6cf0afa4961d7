/* checkpoint.h - the state of training on disk: RUN/ckpt-STEP.h5 with the pool, Adam's m and v and
 * the step. The last checkpoint.keep are kept.
 *
 * Of a pool that is shared out among the stages each has its part in RUN/state-STEP-RANK.h5, by
 * linear, and ckpt-STEP.h5, with the step alone, is written when all of them are there. */
#pragma once
#include "adam.h"
#include "job.h"

/* Writes the state after adam->step steps. Collective. Fails: VQ_EFILE, VQ_EMEM (disk full): the
 * checkpoint before is still there. */
vq_status vq_checkpoint_save(vq_job *job, const vq_adam *adam);

/* Loads the newest checkpoint that is whole into pool and adam, with a warning for each that is
 * passed over; adam->step, on every rank, stays 0 when there is none at all. Of a whole pool the
 * moments are read on rank 0 alone. Collective: all ranks fail alike.
 * Fails: VQ_EFILE when it carries another key, or none is whole and has all its parts. */
vq_status vq_checkpoint_load(vq_job *job, vq_adam *adam);
