/* adam.h - the optimizer of the codebook pool. Rank 0 alone holds its state.
 *
 * torch.optim.Adam with betas 0.9 and 0.99, eps 1e-8, constant rate, no decay. */
#pragma once
#include "pool.h"

typedef struct vq_adam {
    vq_tensor m, v; /* real, as the pool */
    int64_t step;   /* steps taken */
} vq_adam;

/* Takes memory for the state and sets it to zero. Fails: VQ_EMEM. Local. */
vq_status vq_adam_init(vq_arena *arena, const vq_backend *be, const vq_pool *pool, vq_adam *adam);

/* One step on pool->codes by pool->grad. Local. */
vq_status vq_adam_update(const vq_backend *be, vq_adam *adam, vq_pool *pool, double lr);
