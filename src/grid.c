/* grid - the integer grid of a linear layer. */
#include "grid.h"

#include <math.h>

#include "error.h"

static int64_t width_of_group(const vq_grid_config *c, int64_t in)
{
    return c->group_size < 0 ? in : VQ_MIN(c->group_size, in);
}

int64_t vq_grid_groups(const vq_grid_config *c, int64_t in)
{
    return VQ_CEIL_DIV(in, width_of_group(c, in));
}

size_t vq_grid_bytes(const vq_grid_config *c, int64_t out, int64_t in)
{
    const vq_tensor ints = vq_quant_ints(c->bits, out, in);
    size_t base = vq_tensor_bytes(&ints);
    size_t scale = (size_t)(out * vq_grid_groups(c, in)) * vq_dtype_bytes(VQ_F32);
    return VQ_CEIL_DIV(base, VQ_ALIGN) * VQ_ALIGN + 2 * VQ_CEIL_DIV(scale, VQ_ALIGN) * VQ_ALIGN;
}

vq_status vq_grid_alloc(const vq_backend *be, vq_quant *q, vq_arena *arena, const vq_grid_config *c,
                        int64_t out, int64_t in)
{
    VQ_ASSERT(c->bits >= 2 && c->bits <= 8);
    VQ_ASSERT(c->group_size == -1 || c->group_size >= 1);
    VQ_ASSERT(out >= 1 && in >= 1);
    int64_t groups = vq_grid_groups(c, in);
    *q = (vq_quant){.bits = c->bits, .group_size = width_of_group(c, in)};
    const vq_tensor ints = vq_quant_ints(c->bits, out, in);
    VQ_TRY(vq_tensor_new(arena, be->place, ints.dtype, ints.ndim, ints.dim, &q->base));
    VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(out, groups), &q->scale));
    return vq_tensor_new(arena, be->place, be->real, VQ_DIMS(out, groups), &q->zero);
}

#define PIECE 1024

/* The place and value of the first element that is not finite; its place is their number where all
 * are. By pieces, wherever t is. */
static vq_status first_not_finite(const vq_backend *be, const vq_tensor *t, int64_t *at,
                                  double *value)
{
    const int64_t n = vq_tensor_count(t);
    const vq_tensor flat = vq_tensor_view2(t, n, 1);
    double values[PIECE], raw[PIECE];
    for (int64_t i = 0; i < n; i += PIECE) {
        const vq_tensor some = vq_tensor_rows(&flat, i, VQ_MIN(PIECE, n - i));
        if (t->place != VQ_HOST) VQ_TRY(vq_download(be, raw, &some));
        VQ_TRY(vq_convert(values, VQ_F64, t->place == VQ_HOST ? some.data : raw, t->dtype,
                          some.dim[0]));
        for (int64_t j = 0; j < some.dim[0]; j++) {
            *at = i + j;
            *value = values[j];
            if (!isfinite(*value)) return VQ_OK;
        }
    }
    *at = n;
    return VQ_OK;
}

vq_status vq_grid_check_finite(const vq_backend *be, const vq_quant *q, const vq_tensor *w,
                               vq_dtype scale_dtype)
{
    const char *name = w->name ? w->name : "weight";
    const int64_t in = w->dim[1], groups = q->scale.dim[1];
    int64_t i;
    double value;
    VQ_TRY(first_not_finite(be, w, &i, &value));
    VQ_CHECK(i == vq_tensor_count(w), VQ_ENOTFINITE,
             "%s: row %lld, column %lld is %g, expected a finite number. The file is damaged, or "
             "the model was saved after it diverged: get it again",
             name, (long long)(i / in), (long long)(i % in), value);
    VQ_TRY(first_not_finite(be, &q->scale, &i, &value));
    VQ_CHECK(i == vq_tensor_count(&q->scale), VQ_EUNSUPPORTED,
             "%s: row %lld, group %lld: weights span more than %s can hold as a scale. Set "
             "grid.scale_dtype to f32 or bf16",
             name, (long long)(i / groups), (long long)(i % groups), vq_dtype_name(scale_dtype));
    return VQ_OK;
}

vq_status vq_grid_make(const vq_backend *be, vq_quant *q, vq_tensor *rest, const vq_tensor *w,
                       const vq_tensor *inputs, const vq_grid_config *c)
{
    vq_tensor there;
    VQ_ASSERT(!c->search || c->include_zero);
    VQ_TRY(vq_bring(be, w, &there));
    if (c->search)
        VQ_TRY(vq_grid_search(be, &q->scale, &q->zero, &there, inputs, c->bits, q->group_size,
                              c->symmetric, c->scale_dtype));
    else
        VQ_TRY(vq_grid_minmax(be, &q->scale, &q->zero, &there, c->bits, q->group_size, c->symmetric,
                              c->include_zero, c->scale_dtype));
    VQ_TRY(vq_grid_split(be, &q->base, rest, &there, &q->scale, &q->zero, c->bits, q->group_size));
    /* The rest of a weight is finite unless the weight or its scale is not, and so is their sum of
     * squares, which needs no second pass over weights of 16 bits. */
    double sum_rest, sum_scale;
    VQ_TRY(vq_norm2(be, &sum_rest, rest));
    VQ_TRY(vq_norm2(be, &sum_scale, &q->scale));
    if (isfinite(sum_rest) && isfinite(sum_scale)) return VQ_OK;
    return vq_grid_check_finite(be, q, w, c->scale_dtype);
}
