/* checkpoint.h - the state of training on disk: RUN/ckpt-STEP.h5 with the pool, Adam's m and v and
 * the step. The last checkpoint.keep are kept. */
#pragma once
#include "adam.h"
#include "job.h"

/* Writes the state after adam->step steps. Rank 0. Fails: VQ_EFILE, VQ_EMEM (disk full): the
 * checkpoint before is still there. */
vq_status vq_checkpoint_save(vq_job *job, const vq_adam *adam);

/* Loads the newest checkpoint that is whole into pool and adam; adam->step stays 0 when there is
 * none. Fails: VQ_EFILE when the newest carries another key. */
vq_status vq_checkpoint_load(vq_job *job, vq_adam *adam);
