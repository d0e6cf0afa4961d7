/* vqlinear - one linear of the student. */
#include "vqlinear.h"

#include <string.h>

#include "error.h"
#include "place.h"

const char *vq_mode_name(vq_mode mode)
{
    static const char *const names[VQ_N_MODES] = {"fp", "rtn", "soft", "hard", "gptq"};
    return names[mode];
}

static int64_t rank_of(const vq_vqlinear *l)
{
    return l->codes.dim[0];
}

/* n0 x n1 numbers of codes from element `first` on. */
static vq_tensor part_of(const vq_tensor *codes, int64_t first, int64_t n0, int64_t n1)
{
    const vq_tensor flat = vq_tensor_view2(codes, vq_tensor_count(codes), 1);
    const vq_tensor part = vq_tensor_rows(&flat, first, n0 * n1);
    return vq_tensor_view2(&part, n0, n1);
}

vq_tensor vq_vqlinear_factor1(const vq_vqlinear *l, const vq_tensor *codes)
{
    return part_of(codes, 0, l->source->weight.dim[0], rank_of(l));
}

vq_tensor vq_vqlinear_factor2(const vq_vqlinear *l, const vq_tensor *codes)
{
    const int64_t out = l->source->weight.dim[0], in = l->source->weight.dim[1];
    return part_of(codes, out * rank_of(l), rank_of(l), in);
}

vq_status vq_vqlinear_learn_scale(const vq_backend *be, vq_vqlinear *l, vq_arena *arena)
{
    if (!l->factor.data || l->grid.data) return VQ_OK;
    const vq_tensor *scale = &l->quant.scale;
    VQ_TRY(
        vq_tensor_new(arena, be->place, be->real, VQ_DIMS(scale->dim[0], scale->dim[1]), &l->grid));
    return vq_copy(be, &l->grid, scale);
}

vq_status vq_vqlinear_set_scale(const vq_backend *be, vq_vqlinear *l)
{
    if (!l->grid.data) return VQ_OK;
    return vq_round_scale_fwd(be, &l->quant.scale, &l->grid, &l->factor, l->scale_dtype);
}

/* What the round ops read: the codes, or the product of the factors, made in arena. */
static vq_status logits_of(const vq_backend *be, const vq_vqlinear *l, vq_arena *arena,
                           vq_tensor *logits)
{
    const vq_tensor *w = &l->source->weight;
    *logits = l->codes;
    if (!l->is_factored) return VQ_OK;
    const vq_tensor b1 = vq_vqlinear_factor1(l, &l->codes), b2 = vq_vqlinear_factor2(l, &l->codes);
    VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(w->dim[0], w->dim[1]), logits));
    return vq_gemm(be, logits, &b1, false, &b2, false, 1, 0);
}

/* The weight in the order of quant's columns, from the source's in the same order. */
static vq_status make_weight(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                             const vq_tensor *source, vq_arena *arena, vq_tensor *weight)
{
    if (mode == VQ_MODE_RTN) {
        vq_tensor there;
        VQ_TRY(vq_bring(be, source, &there));
        return vq_grid_round(be, weight, &there, &linear->quant);
    }
    if (mode == VQ_MODE_GPTQ) return vq_grid_value(be, weight, &linear->ints, &linear->quant);
    vq_tensor logits;
    VQ_TRY(logits_of(be, linear, arena, &logits));
    return vq_round_fwd(be, weight, &linear->quant, &logits,
                        mode == VQ_MODE_SOFT ? VQ_SOFT : VQ_HARD);
}

/* The weight of a quantized linear in its own columns' order. weight act [out, in], out. */
static vq_status fill_weight(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                             vq_arena *scratch, vq_tensor *weight)
{
    vq_tensor source = linear->source->weight, ordered;
    const int64_t out = source.dim[0], in = source.dim[1];
    const size_t mark = vq_arena_mark(scratch);
    if (!linear->order.data) {
        VQ_TRY(make_weight(be, linear, mode, &source, scratch, weight));
        vq_arena_reset(scratch, mark);
        return VQ_OK;
    }
    VQ_TRY(vq_tensor_new(scratch, be->place, be->act, VQ_DIMS(out, in), &ordered));
    if (mode == VQ_MODE_RTN) {
        vq_tensor there;
        VQ_TRY(vq_bring(be, &linear->source->weight, &there));
        VQ_TRY(vq_tensor_new(scratch, be->place, source.dtype, VQ_DIMS(out, in), &source));
        VQ_TRY(vq_arrange(be, &source, &there, &linear->order, false));
    }
    VQ_TRY(make_weight(be, linear, mode, &source, scratch, &ordered));
    VQ_TRY(vq_arrange(be, weight, &ordered, &linear->order, true));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

static vq_status new_weight(const vq_backend *be, const vq_vqlinear *linear, vq_arena *arena,
                            vq_tensor *weight)
{
    const int64_t *dim = linear->source->weight.dim;
    return vq_tensor_new(arena, be->place, be->act, VQ_DIMS(dim[0], dim[1]), weight);
}

vq_status vq_vqlinear_weight(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                             vq_arena *arena, vq_tensor *weight)
{
    if (!linear->quantized || mode == VQ_MODE_FLOAT)
        return vq_place_there(be, arena, &linear->source->weight, weight);
    VQ_TRY(new_weight(be, linear, arena, weight));
    return fill_weight(be, linear, mode, arena, weight);
}

vq_status vq_vqlinear_make(const vq_backend *be, vq_vqlinear *linear, vq_mode mode, vq_arena *arena,
                           vq_arena *scratch)
{
    VQ_ASSERT(mode != VQ_MODE_FLOAT);
    if (!linear->quantized) return VQ_OK;
    if (!linear->made.data) VQ_TRY(new_weight(be, linear, arena, &linear->made));
    linear->made_mode = mode;
    return fill_weight(be, linear, mode, scratch, &linear->made);
}

vq_status vq_vqlinear_host(const vq_backend *be, vq_arena *arena, const vq_vqlinear *linear,
                           vq_vqlinear *host)
{
    *host = *linear;
    const vq_tensor *const from[] = {&linear->quant.base, &linear->quant.scale, &linear->quant.zero,
                                     &linear->quant.idx,  &linear->codes,       &linear->ints,
                                     &linear->order};
    vq_tensor *const to[] = {&host->quant.base, &host->quant.scale, &host->quant.zero,
                             &host->quant.idx,  &host->codes,       &host->ints,
                             &host->order};
    for (int i = 0; i < VQ_COUNT(from); i++)
        if (from[i]->data) VQ_TRY(vq_place_host(be, arena, from[i], to[i]));
    return VQ_OK;
}

/* The weight for one product: as it was made before, vq_vqlinear_weight's, or the source's on its
 * way through or, on the host, unpacked. */
static vq_status passing_weight(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                                vq_arena *scratch, vq_tensor *w)
{
    const vq_linear *source = linear->source;
    *w = linear->made;
    if (linear->made.data && linear->made_mode == mode) return VQ_OK;
    if (linear->quantized && mode != VQ_MODE_FLOAT)
        return vq_vqlinear_weight(be, linear, mode, scratch, w);
    if (source->weight.data) return vq_bring(be, &source->weight, w);
    VQ_ASSERT(source->packed && be->place == VQ_HOST);
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, source->weight.dtype, 2, source->weight.dim, w));
    return vq_packed_weight(scratch, source->packed, w);
}

vq_status vq_vqlinear_fwd(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                          vq_arena *scratch, int64_t product_rows, const vq_tensor *x, vq_tensor *y)
{
    size_t mark = vq_arena_mark(scratch);
    vq_tensor w;
    VQ_TRY(passing_weight(be, linear, mode, scratch, &w));
    for (int64_t i = 0; i < x->dim[0]; i += product_rows) {
        const int64_t n = VQ_MIN(product_rows, x->dim[0] - i);
        const vq_tensor from = vq_tensor_rows(x, i, n);
        vq_tensor to = vq_tensor_rows(y, i, n);
        VQ_TRY(vq_gemm(be, &to, &from, false, &w, true, 1, 0));
    }
    if (linear->source->bias.data) VQ_TRY(vq_bias_add(be, y, &linear->source->bias));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

vq_status vq_vqlinear_bwd_input(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                                vq_arena *scratch, const vq_tensor *dy, vq_tensor *dx, bool add)
{
    size_t mark = vq_arena_mark(scratch);
    vq_tensor w;
    VQ_TRY(passing_weight(be, linear, mode, scratch, &w));
    VQ_TRY(vq_gemm(be, dx, dy, false, &w, false, 1, add ? 1 : 0));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

/* Where the round ops add the gradient of the logits: dcodes, or zeros made in arena. */
static vq_status dlogits_of(const vq_backend *be, const vq_vqlinear *l, vq_arena *arena,
                            vq_tensor *dlogits)
{
    const vq_tensor *w = &l->source->weight;
    *dlogits = l->dcodes;
    if (!l->is_factored) return VQ_OK;
    VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(w->dim[0], w->dim[1]), dlogits));
    return vq_zero(be, dlogits);
}

/* The gradient of the logits B1 B2 into that of the factors. */
static vq_status take_dlogits(const vq_backend *be, const vq_vqlinear *l, const vq_tensor *dlogits)
{
    if (!l->is_factored) return VQ_OK;
    const vq_tensor b1 = vq_vqlinear_factor1(l, &l->codes), b2 = vq_vqlinear_factor2(l, &l->codes);
    vq_tensor db1 = vq_vqlinear_factor1(l, &l->dcodes), db2 = vq_vqlinear_factor2(l, &l->dcodes);
    VQ_TRY(vq_gemm(be, &db1, dlogits, false, &b2, true, 1, 1));
    return vq_gemm(be, &db2, &b1, true, dlogits, false, 1, 1);
}

vq_status vq_vqlinear_bwd_codes(const vq_backend *be, const vq_vqlinear *linear, vq_arena *scratch,
                                const vq_tensor *x, const vq_tensor *dy)
{
    if (!linear->quantized) return VQ_OK;
    size_t mark = vq_arena_mark(scratch);
    vq_tensor dw, dweight, logits, dlogits, dfactor = linear->dfactor;
    VQ_TRY(vq_tensor_new(scratch, be->place, be->act, VQ_DIMS(dy->dim[1], x->dim[1]), &dweight));
    VQ_TRY(vq_gemm(be, &dweight, dy, true, x, false, 1, 0));
    dw = dweight;
    if (linear->order.data) {
        VQ_TRY(vq_tensor_new(scratch, be->place, be->act, VQ_DIMS(dy->dim[1], x->dim[1]), &dw));
        VQ_TRY(vq_arrange(be, &dw, &dweight, &linear->order, false));
    }
    VQ_TRY(logits_of(be, linear, scratch, &logits));
    VQ_TRY(dlogits_of(be, linear, scratch, &dlogits));
    VQ_TRY(vq_round_bwd(be, &dlogits, &dw, &linear->quant, &logits));
    if (linear->grid.data)
        VQ_TRY(vq_round_scale_bwd(be, &dfactor, &dw, &linear->quant, &logits, &linear->grid));
    VQ_TRY(take_dlogits(be, linear, &dlogits));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

vq_status vq_vqlinear_reg(const vq_backend *be, const vq_vqlinear *linear, vq_arena *scratch,
                          double *loss, double weight, double beta)
{
    size_t mark = vq_arena_mark(scratch);
    vq_tensor logits, dlogits;
    VQ_TRY(logits_of(be, linear, scratch, &logits));
    VQ_TRY(dlogits_of(be, linear, scratch, &dlogits));
    VQ_TRY(vq_round_reg(be, loss, &dlogits, &logits, linear->counts.data ? &linear->counts : NULL,
                        weight, beta));
    VQ_TRY(take_dlogits(be, linear, &dlogits));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}
