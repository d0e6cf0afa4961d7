/* pool - where each linear's codebook lies. */
#include "pool.h"

#include <string.h>

#include "error.h"

bool vq_pool_takes(const char *name, const vq_list *skip)
{
    for (int i = 0; i < skip->n; i++)
        if (strstr(name, skip->item[i])) return false;
    return true;
}

vq_status vq_pool_init(vq_arena *arena, const vq_backend *be, const vq_model *model,
                       const vq_list *skip, int64_t K, int64_t D, vq_pool *pool)
{
    const int64_t n_slots = model->config.N * VQ_N_KINDS;
    *pool = (vq_pool){.n_slots = n_slots, .K = K, .D = D};
    VQ_TRY(VQ_NEW(arena, n_slots + 1, &pool->offset));
    pool->offset[0] = 0;
    for (int64_t i = 0; i < n_slots; i++) {
        const vq_linear *linear = &model->layers[i / VQ_N_KINDS].linear[i % VQ_N_KINDS];
        int64_t n_codes = 0;
        if (linear->exists && vq_pool_takes(linear->name, skip))
            n_codes = VQ_MIN(K, VQ_CEIL_DIV(vq_tensor_count(&linear->weight), D));
        pool->offset[i + 1] = pool->offset[i] + n_codes * D;
    }
    const int64_t n = pool->offset[n_slots];
    VQ_CHECK(n > 0, VQ_EUSAGE,
             "skip: no linear of %s is left to quantize. Give fewer words to --skip", model->dir);
    VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(n), &pool->codes));
    return vq_tensor_new(arena, be->place, be->real, VQ_DIMS(n), &pool->grad);
}

int64_t vq_pool_codes(const vq_pool *pool, int64_t slot)
{
    return (pool->offset[slot + 1] - pool->offset[slot]) / pool->D;
}

vq_tensor vq_pool_part(const vq_pool *pool, const vq_tensor *whole, int64_t slot)
{
    const int64_t n_codes = vq_pool_codes(pool, slot);
    const vq_tensor part = vq_tensor_rows(whole, pool->offset[slot], n_codes * pool->D);
    return vq_tensor_view2(&part, n_codes, pool->D);
}

const char *vq_pool_name(const vq_model *model, int64_t slot)
{
    return model->layers[slot / VQ_N_KINDS].linear[slot % VQ_N_KINDS].name;
}
