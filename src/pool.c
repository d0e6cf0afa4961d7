/* pool - where each linear's trained numbers lie. */
#include "pool.h"

#include <string.h>

#include "error.h"

bool vq_pool_takes(const char *name, const vq_list *skip)
{
    for (int i = 0; i < skip->n; i++)
        if (strstr(name, skip->item[i])) return false;
    return true;
}

vq_pool_slot vq_pool_shape(const vq_pool_rule *rule, int64_t out, int64_t in)
{
    const int64_t n_codes = VQ_MIN(rule->K, VQ_CEIL_DIV(out * in, rule->D));
    vq_pool_slot s = {.out = out, .in = in};
    switch (rule->kind) {
    case VQ_POOL_CODES: s.n = n_codes, s.width = rule->D; break;
    case VQ_POOL_LOGITS: s.n = out, s.width = in; break;
    case VQ_POOL_FACTORS:
        s.n = VQ_MIN(VQ_MAX(1, n_codes * rule->D / (out + in)), VQ_MIN(out, in));
        s.width = out + in;
        break;
    }
    if (rule->group_size != 0)
        s.groups = rule->group_size < 0 ? 1 : VQ_CEIL_DIV(in, rule->group_size);
    return s;
}

static int64_t logits_of(const vq_pool_slot *s)
{
    return s->n * s->width;
}

static int64_t scales_of(const vq_pool_slot *s)
{
    return s->out * s->groups;
}

vq_pool_rule vq_pool_rule_of(const vq_config *c)
{
    return (vq_pool_rule){.kind = c->method == VQ_METHOD_ADAROUND ? VQ_POOL_LOGITS
                                  : c->method == VQ_METHOD_LORA   ? VQ_POOL_FACTORS
                                                                  : VQ_POOL_CODES,
                          .K = c->K,
                          .D = c->D,
                          .group_size = c->train.learn_scale ? c->group_size : 0,
                          .skip = &c->skip};
}

int64_t vq_pool_count(const vq_model_config *model, const vq_pool_rule *rule)
{
    int64_t n = 0;
    for (int64_t i = rule->first * VQ_N_KINDS; i < rule->last * VQ_N_KINDS; i++) {
        const vq_linear_kind kind = (vq_linear_kind)(i % VQ_N_KINDS);
        char name[256];
        int64_t out, in;
        if (!vq_linear_shape(model, kind, &out, &in) ||
            !vq_pool_takes(vq_linear_name(model, i / VQ_N_KINDS, kind, name), rule->skip))
            continue;
        const vq_pool_slot s = vq_pool_shape(rule, out, in);
        n += logits_of(&s) + scales_of(&s);
    }
    return n;
}

static vq_status fill_ones(vq_arena *arena, const vq_backend *be, vq_tensor *t)
{
    const size_t mark = vq_arena_mark(arena);
    const int64_t n = vq_tensor_count(t);
    float *ones;
    void *real;
    if (n == 0) return VQ_OK;
    VQ_TRY(VQ_NEW(arena, n, &ones));
    VQ_TRY(vq_arena_alloc(arena, vq_tensor_bytes(t), &real));
    for (int64_t i = 0; i < n; i++) ones[i] = 1;
    VQ_TRY(vq_convert(real, t->dtype, ones, VQ_F32, n));
    VQ_TRY(vq_upload(be, t, real));
    VQ_TRY(vq_sync(be));
    vq_arena_reset(arena, mark);
    return VQ_OK;
}

vq_status vq_pool_init(vq_arena *arena, const vq_backend *be, const vq_model *model,
                       const vq_pool_rule *rule, vq_pool *pool)
{
    const int64_t n_slots = model->config.N * VQ_N_KINDS;
    *pool = (vq_pool){.kind = rule->kind, .n_slots = n_slots, .is_whole = !rule->is_part};
    VQ_TRY(VQ_NEW(arena, n_slots, &pool->slot));
    VQ_TRY(VQ_NEW(arena, n_slots + 1, &pool->offset));
    VQ_TRY(VQ_NEW(arena, n_slots + 1, &pool->scale_offset));
    pool->offset[0] = 0;
    for (int64_t i = 0; i < n_slots; i++) {
        const vq_linear *linear = &model->layers[i / VQ_N_KINDS].linear[i % VQ_N_KINDS];
        const int64_t layer = i / VQ_N_KINDS;
        pool->slot[i] = (vq_pool_slot){0};
        if (linear->exists && vq_pool_takes(linear->name, rule->skip))
            pool->slot[i] = vq_pool_shape(rule, linear->weight.dim[0], linear->weight.dim[1]);
        const bool is_held = layer >= rule->first && layer < rule->last;
        pool->offset[i + 1] = pool->offset[i] + (is_held ? logits_of(&pool->slot[i]) : 0);
        pool->n_params += logits_of(&pool->slot[i]) + scales_of(&pool->slot[i]);
    }
    VQ_CHECK(pool->n_params > 0, VQ_EUSAGE,
             "skip: no linear of %s is left to quantize: expected one at least. Give fewer words "
             "to --skip",
             model->dir);
    pool->scale_offset[0] = pool->offset[n_slots];
    for (int64_t i = 0; i < n_slots; i++)
        pool->scale_offset[i + 1] =
            pool->scale_offset[i] +
            (pool->offset[i + 1] > pool->offset[i] ? scales_of(&pool->slot[i]) : 0);
    const int64_t n = pool->scale_offset[n_slots];
    VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(n), &pool->codes));
    VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(n), &pool->grad));
    vq_tensor scales = vq_pool_all_scales(pool, &pool->codes);
    return fill_ones(arena, be, &scales);
}

int64_t vq_pool_codes(const vq_pool *pool, int64_t slot)
{
    return pool->slot[slot].n;
}

vq_tensor vq_pool_part(const vq_pool *pool, const vq_tensor *whole, int64_t slot)
{
    const vq_pool_slot *s = &pool->slot[slot];
    const vq_tensor part = vq_tensor_rows(whole, pool->offset[slot], logits_of(s));
    return vq_tensor_view2(&part, s->n, s->width);
}

vq_tensor vq_pool_scales(const vq_pool *pool, const vq_tensor *whole, int64_t slot)
{
    const vq_pool_slot *s = &pool->slot[slot];
    if (s->groups == 0) return (vq_tensor){0};
    const vq_tensor part = vq_tensor_rows(whole, pool->scale_offset[slot], scales_of(s));
    return vq_tensor_view2(&part, s->out, s->groups);
}

vq_tensor vq_pool_all_scales(const vq_pool *pool, const vq_tensor *whole)
{
    const int64_t n = pool->offset[pool->n_slots];
    return vq_tensor_rows(whole, n, pool->scale_offset[pool->n_slots] - n);
}

vq_tensor vq_pool_all_codes(const vq_pool *pool, const vq_tensor *whole)
{
    return vq_tensor_rows(whole, 0, pool->offset[pool->n_slots]);
}

vq_tensor vq_pool_layer(const vq_pool *pool, const vq_tensor *whole, int64_t layer, bool scales)
{
    const int64_t *offset = (scales ? pool->scale_offset : pool->offset) + layer * VQ_N_KINDS;
    return vq_tensor_rows(whole, offset[0], offset[VQ_N_KINDS] - offset[0]);
}

void vq_pool_attach(const vq_pool *pool, int64_t slot, vq_vqlinear *l)
{
    l->codes = vq_pool_part(pool, &pool->codes, slot);
    l->dcodes = vq_pool_part(pool, &pool->grad, slot);
    l->is_factored = pool->kind == VQ_POOL_FACTORS;
    l->factor = vq_pool_scales(pool, &pool->codes, slot);
    l->dfactor = vq_pool_scales(pool, &pool->grad, slot);
}

const char *vq_pool_name(const vq_model *model, int64_t slot)
{
    return model->layers[slot / VQ_N_KINDS].linear[slot % VQ_N_KINDS].name;
}
