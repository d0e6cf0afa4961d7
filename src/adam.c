/* adam - the optimizer of the pool. */
#include "adam.h"

#include <math.h>

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

double vq_adam_share(vq_lr_schedule schedule, int64_t step, int64_t steps)
{
    const double done = (double)step / (double)steps;
    switch (schedule) {
    case VQ_LR_COSINE: return (1 + cos(3.14159265358979323846 * done)) / 2;
    case VQ_LR_LINEAR: return 1 - done;
    case VQ_LR_CONSTANT: break;
    }
    return 1;
}

/* A run of the pool's numbers; all four are the same run. */
static vq_status step_part(const vq_backend *be, const vq_adam *adam, vq_tensor codes, vq_tensor m,
                           vq_tensor v, const vq_tensor grad, double lr)
{
    if (codes.dim[0] == 0) return VQ_OK;
    return vq_adam_step(be, &codes, &m, &v, &grad, lr, BETA1, BETA2, EPS, adam->step);
}

vq_status vq_adam_update(const vq_backend *be, vq_adam *adam, vq_pool *pool, double lr,
                         double scale_lr)
{
    adam->step++;
    VQ_TRY(step_part(be, adam, vq_pool_all_codes(pool, &pool->codes),
                     vq_pool_all_codes(pool, &adam->m), vq_pool_all_codes(pool, &adam->v),
                     vq_pool_all_codes(pool, &pool->grad), lr));
    return step_part(be, adam, vq_pool_all_scales(pool, &pool->codes),
                     vq_pool_all_scales(pool, &adam->m), vq_pool_all_scales(pool, &adam->v),
                     vq_pool_all_scales(pool, &pool->grad), scale_lr);
}

vq_status vq_adam_update_layer(const vq_backend *be, vq_adam *adam, vq_pool *pool, int64_t layer,
                               double lr, double scale_lr)
{
    adam->step++;
    for (int scales = 0; scales < 2; scales++)
        VQ_TRY(step_part(be, adam, vq_pool_layer(pool, &pool->codes, layer, scales),
                         vq_pool_layer(pool, &adam->m, layer, scales),
                         vq_pool_layer(pool, &adam->v, layer, scales),
                         vq_pool_layer(pool, &pool->grad, layer, scales), scales ? scale_lr : lr));
    return VQ_OK;
}
