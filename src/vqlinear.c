/* vqlinear - one linear of the student. */
#include "vqlinear.h"

#include "error.h"

const char *vq_mode_name(vq_mode mode)
{
    static const char *const names[VQ_N_MODES] = {"fp", "rtn", "soft", "hard", "gptq"};
    return names[mode];
}

vq_status vq_vqlinear_weight(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                             vq_arena *arena, vq_tensor *weight)
{
    const vq_tensor *source = &linear->source->weight;
    if (!linear->quantized || mode == VQ_MODE_FLOAT) {
        *weight = *source;
        return VQ_OK;
    }
    VQ_TRY(
        vq_tensor_new(arena, be->place, be->act, VQ_DIMS(source->dim[0], source->dim[1]), weight));
    if (mode == VQ_MODE_RTN) return vq_grid_round(be, weight, source, &linear->quant);
    if (mode == VQ_MODE_GPTQ) return vq_grid_value(be, weight, &linear->ints, &linear->quant);
    return vq_round_fwd(be, weight, &linear->quant, &linear->codes,
                        mode == VQ_MODE_SOFT ? VQ_SOFT : VQ_HARD);
}

vq_status vq_vqlinear_fwd(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                          vq_arena *scratch, const vq_tensor *x, vq_tensor *y)
{
    size_t mark = vq_arena_mark(scratch);
    vq_tensor w;
    VQ_TRY(vq_vqlinear_weight(be, linear, mode, scratch, &w));
    VQ_TRY(vq_gemm(be, y, x, false, &w, true, 1, 0));
    if (linear->source->bias.data) VQ_TRY(vq_bias_add(be, y, &linear->source->bias));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

vq_status vq_vqlinear_bwd_input(const vq_backend *be, const vq_vqlinear *linear, vq_mode mode,
                                vq_arena *scratch, const vq_tensor *dy, vq_tensor *dx, bool add)
{
    size_t mark = vq_arena_mark(scratch);
    vq_tensor w;
    VQ_TRY(vq_vqlinear_weight(be, linear, mode, scratch, &w));
    VQ_TRY(vq_gemm(be, dx, dy, false, &w, false, 1, add ? 1 : 0));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

vq_status vq_vqlinear_bwd_codes(const vq_backend *be, const vq_vqlinear *linear, vq_arena *scratch,
                                const vq_tensor *x, const vq_tensor *dy)
{
    if (!linear->quantized) return VQ_OK;
    size_t mark = vq_arena_mark(scratch);
    vq_tensor dw, dcodes = linear->dcodes;
    VQ_TRY(vq_tensor_new(scratch, be->place, be->act, VQ_DIMS(dy->dim[1], x->dim[1]), &dw));
    VQ_TRY(vq_gemm(be, &dw, dy, true, x, false, 1, 0));
    VQ_TRY(vq_round_bwd(be, &dcodes, &dw, &linear->quant, &linear->codes));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}
