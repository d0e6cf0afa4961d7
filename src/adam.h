/* adam.h - the optimizer of the pool: torch.optim.Adam with betas 0.9 and 0.99, eps 1e-8, no decay.
 * Of a whole pool rank 0 alone holds its state, of a stage's part every rank of the stage. */
#pragma once
#include "pool.h"

typedef struct vq_adam {
    vq_tensor m, v; /* real, as the pool */
    int64_t step;   /* steps taken */
} vq_adam;

/* Takes memory for the state and sets it to zero. Fails: VQ_EMEM. Local. */
vq_status vq_adam_init(vq_arena *arena, const vq_backend *be, const vq_pool *pool, vq_adam *adam);

/* The part of the learning rate that step `step` of `steps` (from 0) takes: 1 throughout, falling
 * in a straight line, or as half a cosine, to 0 after the last. Pure. */
double vq_adam_share(vq_lr_schedule schedule, int64_t step, int64_t steps);

/* One step on pool->codes by pool->grad: the logits with rate lr, the factors of learned scales
 * with scale_lr. Local. */
vq_status vq_adam_update(const vq_backend *be, vq_adam *adam, vq_pool *pool, double lr,
                         double scale_lr);

/* The same for what one layer has of the pool. Local. */
vq_status vq_adam_update_layer(const vq_backend *be, vq_adam *adam, vq_pool *pool, int64_t layer,
                               double lr, double scale_lr);
