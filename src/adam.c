/* adam - the optimizer of the pool. */
#include "adam.h"

#include "error.h"

#define BETA1 0.9
#define BETA2 0.99
#define EPS 1e-8

vq_status vq_adam_init(vq_arena *arena, const vq_backend *be, const vq_pool *pool, vq_adam *adam)
{
    const int64_t n = pool->codes.dim[0];
    adam->step = 0;
    VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(n), &adam->m));
    VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(n), &adam->v));
    VQ_TRY(vq_zero(be, &adam->m));
    return vq_zero(be, &adam->v);
}

vq_status vq_adam_update(const vq_backend *be, vq_adam *adam, vq_pool *pool, double lr)
{
    return vq_adam_step(be, &pool->codes, &adam->m, &adam->v, &pool->grad, lr, BETA1, BETA2, EPS,
                        ++adam->step);
}
