/* backend - the checks in front of the slots: shapes, dtypes and place, once for all backends.
 *
 * What a check finds is always a mistake of the program, not of its user. */
#include "backend.h"

#include <stdio.h>
#include <string.h>

#include "error.h"

#define TYPE(t) (1u << (t))
#define FLOATS (TYPE(VQ_F32) | TYPE(VQ_F16) | TYPE(VQ_BF16) | TYPE(VQ_F64))
#define ACT TYPE(be->act)
#define REAL TYPE(be->real)
#define ANY ((int64_t)-1)

/* "f32 or f16 [4, 8]" */
static void expected_text(unsigned types, int ndim, const int64_t *dim, char *out, size_t size)
{
    size_t n = 0;
    out[0] = '\0';
    for (int t = 0; t < VQ_N_DTYPES && n < size; t++)
        if (types & TYPE(t))
            n += (size_t)snprintf(out + n, size - n, "%s%s", n ? " or " : "",
                                  vq_dtype_name((vq_dtype)t));
    for (int i = 0; i < ndim && n < size; i++)
        n += (size_t)(dim[i] == ANY ? snprintf(out + n, size - n, "%sany", i ? ", " : " [")
                                    : snprintf(out + n, size - n, "%s%lld", i ? ", " : " [",
                                               (long long)dim[i]));
    if (n < size) (void)snprintf(out + n, size - n, "]");
}

/* Rows of the first dimension may be apart; the elements of one may not. */
static bool rows_contiguous(const vq_tensor *t)
{
    if (t->dim[0] == 0) return true;
    vq_tensor row = *t;
    row.dim[0] = 1;
    row.stride[0] = 1;
    for (int i = 1; i < t->ndim; i++) row.stride[0] *= t->dim[i];
    return vq_tensor_contiguous(&row) && (t->dim[0] == 1 || t->stride[0] >= row.stride[0]);
}

static vq_status check(const vq_backend *be, const char *op, const char *argument,
                       const vq_tensor *t, unsigned types, bool strided, int ndim,
                       const int64_t *dim)
{
    char is[96], expected[160];
    expected_text(types, ndim, dim, expected, sizeof expected);
    VQ_CHECK(t, VQ_EINTERNAL,
             "%s: %s is missing, expected %s. This is a bug of vqround: please report it", op,
             argument, expected);
    bool fits = (types & TYPE(t->dtype)) && t->ndim == ndim;
    for (int i = 0; i < ndim && fits; i++)
        fits = t->dim[i] >= 0 && (dim[i] == ANY || t->dim[i] == dim[i]);
    const char *name = t->name ? t->name : "a tensor";
    VQ_CHECK(fits, VQ_EINTERNAL,
             "%s: %s (%s) is %s, expected %s. This is a bug of vqround: please report it", op,
             argument, name, vq_tensor_text(t, is), expected);
    VQ_CHECK(t->place == be->place, VQ_EINTERNAL,
             "%s: %s (%s) is on the %s, expected it on the %s. This is a bug of vqround: please "
             "report it",
             op, argument, name, t->place == VQ_HOST ? "host" : "device",
             be->place == VQ_HOST ? "host" : "device");
    VQ_CHECK(strided ? rows_contiguous(t) : vq_tensor_contiguous(t), VQ_EINTERNAL,
             "%s: %s (%s) has gaps between its %s, expected none. This is a bug of vqround: please "
             "report it",
             op, argument, name, strided ? "elements" : "rows");
    VQ_CHECK(t->data || vq_tensor_count(t) == 0, VQ_EINTERNAL,
             "%s: %s (%s) has no data, expected %s. This is a bug of vqround: please report it", op,
             argument, name, expected);
    return VQ_OK;
}

/* The argument t of the function, with these types and dims; its name and the function's stand in
 * the message ("vq_" left out). */
#define WANT(t, types, ...)                                                                        \
    VQ_TRY(check(be, __func__ + 3, #t, t, types, false, VQ_DIMS(__VA_ARGS__)))
#define WANT_ROWS(t, types, ...)                                                                   \
    VQ_TRY(check(be, __func__ + 3, #t, t, types, true, VQ_DIMS(__VA_ARGS__)))
#define WANT_LIKE(t, types, like)                                                                  \
    VQ_TRY(check(be, __func__ + 3, #t, t, types, false, (like)->ndim, (like)->dim))

/* --- memory ---------------------------------------------------------------------------------- */

vq_status vq_mem_info(const vq_backend *be, size_t *free_bytes, size_t *total_bytes)
{
    return be->ops->mem_info(be->ctx, free_bytes, total_bytes);
}

vq_status vq_mem_peak(const vq_backend *be, size_t *bytes)
{
    return be->ops->mem_peak(be->ctx, bytes);
}

vq_status vq_upload(const vq_backend *be, vq_tensor *dst, const void *src_host)
{
    WANT_LIKE(dst, TYPE(dst->dtype), dst);
    return be->ops->upload(be->ctx, dst->data, src_host, vq_tensor_bytes(dst));
}

vq_status vq_bring(const vq_backend *be, const vq_tensor *t, vq_tensor *there)
{
    const vq_tensor from = *t; /* there may be t */
    *there = from;
    if (from.place == be->place) return VQ_OK;
    VQ_ASSERT(from.place == VQ_HOST && vq_tensor_contiguous(&from));
    there->place = be->place;
    return be->ops->bring(be->ctx, from.data, vq_tensor_bytes(&from), &there->data);
}

vq_status vq_download(const vq_backend *be, void *dst_host, const vq_tensor *src)
{
    WANT_LIKE(src, TYPE(src->dtype), src);
    return be->ops->download(be->ctx, dst_host, src->data, vq_tensor_bytes(src));
}

vq_status vq_copy(const vq_backend *be, vq_tensor *dst, const vq_tensor *src)
{
    const bool gaps = !vq_tensor_contiguous(src) || !vq_tensor_contiguous(dst);
    const size_t bytes = vq_tensor_bytes(src), element = vq_dtype_bytes(src->dtype);
    const size_t rows = gaps && src->dim[0] > 1 ? (size_t)src->dim[0] : 1;
    VQ_TRY(check(be, "copy", "src", src, TYPE(src->dtype), true, src->ndim, src->dim));
    VQ_TRY(check(be, "copy", "dst", dst, TYPE(src->dtype), true, src->ndim, src->dim));
    return be->ops->copy(be->ctx, dst->data, (size_t)dst->stride[0] * element, src->data,
                         (size_t)src->stride[0] * element, bytes / rows, rows);
}

vq_status vq_zero(const vq_backend *be, vq_tensor *dst)
{
    WANT_LIKE(dst, TYPE(dst->dtype), dst);
    return be->ops->zero(be->ctx, dst->data, vq_tensor_bytes(dst));
}

vq_status vq_sync(const vq_backend *be)
{
    return be->ops->sync(be->ctx);
}

/* --- dense ----------------------------------------------------------------------------------- */

vq_status vq_gemm(const vq_backend *be, vq_tensor *c, const vq_tensor *a, bool trans_a,
                  const vq_tensor *b, bool trans_b, double alpha, double beta)
{
    WANT_ROWS(c, ACT | REAL, ANY, ANY);
    WANT_ROWS(a, FLOATS, ANY, ANY);
    int64_t m = c->dim[0], n = c->dim[1], k = a->dim[trans_a ? 0 : 1];
    WANT_ROWS(a, FLOATS, trans_a ? k : m, trans_a ? m : k);
    WANT_ROWS(b, FLOATS, trans_b ? n : k, trans_b ? k : n);
    VQ_ASSERT(m > 0 && n > 0 && k > 0);
    return be->ops->gemm(be->ctx, c, a, trans_a, b, trans_b, alpha, beta);
}

vq_status vq_syrk(const vq_backend *be, vq_tensor *h, const vq_tensor *x, double alpha)
{
    WANT_ROWS(x, ACT, ANY, ANY);
    WANT(h, TYPE(VQ_F64), x->dim[1], x->dim[1]);
    return be->ops->syrk(be->ctx, h, x, alpha);
}

vq_status vq_moments(const vq_backend *be, vq_tensor *sums, const vq_tensor *x, double alpha)
{
    WANT_ROWS(x, ACT, ANY, ANY);
    WANT(sums, TYPE(VQ_F64), 2, x->dim[1]);
    return be->ops->moments(be->ctx, sums, x, alpha);
}

vq_status vq_inverse_factor(const vq_backend *be, vq_tensor *u, bool *positive, vq_tensor *h,
                            const vq_tensor *order, double damp)
{
    WANT(h, TYPE(VQ_F64), ANY, ANY);
    WANT(h, TYPE(VQ_F64), h->dim[0], h->dim[0]);
    WANT_LIKE(u, REAL, h);
    WANT(order, TYPE(VQ_I32), h->dim[0]);
    VQ_ASSERT(positive && h->dim[0] > 0 && damp >= 0);
    return be->ops->inverse_factor(be->ctx, u, positive, h, order, damp);
}

/* --- layer ----------------------------------------------------------------------------------- */

vq_status vq_embed(const vq_backend *be, vq_tensor *out, const vq_tensor *table,
                   const vq_tensor *ids, bool add)
{
    WANT(out, ACT, ANY, ANY);
    WANT(table, FLOATS, ANY, out->dim[1]);
    WANT(ids, TYPE(VQ_I32), out->dim[0]);
    return be->ops->embed(be->ctx, out, table, ids, add);
}

vq_status vq_bias_add(const vq_backend *be, vq_tensor *y, const vq_tensor *bias)
{
    WANT(y, ACT, ANY, ANY);
    WANT(bias, FLOATS, y->dim[1]);
    return be->ops->bias_add(be->ctx, y, bias);
}

vq_status vq_add(const vq_backend *be, vq_tensor *y, const vq_tensor *x)
{
    WANT_LIKE(y, ACT, y);
    WANT_LIKE(x, ACT, y);
    return be->ops->add(be->ctx, y, x);
}

vq_status vq_rmsnorm_fwd(const vq_backend *be, vq_tensor *y, vq_tensor *rstd, const vq_tensor *x,
                         const vq_tensor *weight, double eps)
{
    WANT(x, ACT, ANY, ANY);
    WANT(y, ACT, x->dim[0], x->dim[1]);
    WANT(weight, FLOATS, x->dim[1]);
    WANT(rstd, REAL, x->dim[0]);
    return be->ops->rmsnorm_fwd(be->ctx, y, rstd, x, weight, eps);
}

vq_status vq_rmsnorm_bwd(const vq_backend *be, vq_tensor *dx, const vq_tensor *dy,
                         const vq_tensor *x, const vq_tensor *weight, const vq_tensor *rstd,
                         const vq_tensor *plus)
{
    WANT(x, ACT, ANY, ANY);
    WANT(dx, ACT, x->dim[0], x->dim[1]);
    WANT(dy, ACT, x->dim[0], x->dim[1]);
    if (plus) WANT(plus, ACT, x->dim[0], x->dim[1]);
    WANT(weight, FLOATS, x->dim[1]);
    WANT(rstd, REAL, x->dim[0]);
    return be->ops->rmsnorm_bwd(be->ctx, dx, dy, x, weight, rstd, plus);
}

vq_status vq_layernorm_fwd(const vq_backend *be, vq_tensor *y, vq_tensor *mean, vq_tensor *rstd,
                           const vq_tensor *x, const vq_tensor *weight, const vq_tensor *bias,
                           double eps)
{
    WANT(x, ACT, ANY, ANY);
    WANT(y, ACT, x->dim[0], x->dim[1]);
    WANT(mean, REAL, x->dim[0]);
    WANT(rstd, REAL, x->dim[0]);
    if (weight || bias) {
        WANT(weight, FLOATS, x->dim[1]);
        WANT(bias, FLOATS, x->dim[1]);
    }
    return be->ops->layernorm_fwd(be->ctx, y, mean, rstd, x, weight, bias, eps);
}

vq_status vq_layernorm_bwd(const vq_backend *be, vq_tensor *dx, const vq_tensor *dy,
                           const vq_tensor *x, const vq_tensor *weight, const vq_tensor *mean,
                           const vq_tensor *rstd, const vq_tensor *plus)
{
    WANT(x, ACT, ANY, ANY);
    WANT(dx, ACT, x->dim[0], x->dim[1]);
    WANT(dy, ACT, x->dim[0], x->dim[1]);
    if (plus) WANT(plus, ACT, x->dim[0], x->dim[1]);
    WANT(mean, REAL, x->dim[0]);
    WANT(rstd, REAL, x->dim[0]);
    if (weight) WANT(weight, FLOATS, x->dim[1]);
    return be->ops->layernorm_bwd(be->ctx, dx, dy, x, weight, mean, rstd, plus);
}

vq_status vq_rope(const vq_backend *be, vq_tensor *x, const vq_tensor *cos, const vq_tensor *sin,
                  int64_t first, bool inverse)
{
    WANT(x, ACT, ANY, ANY, ANY, ANY);
    VQ_ASSERT(x->dim[3] % 2 == 0);
    WANT(cos, REAL, ANY, x->dim[3] / 2);
    WANT(sin, REAL, cos->dim[0], x->dim[3] / 2);
    VQ_ASSERT(first >= 0 && first + x->dim[1] <= cos->dim[0]);
    return be->ops->rope(be->ctx, x, cos, sin, first, inverse);
}

vq_status vq_attention_fwd(const vq_backend *be, vq_tensor *out, vq_tensor *lse, const vq_tensor *q,
                           const vq_tensor *k, const vq_tensor *v, double scale)
{
    WANT(q, ACT, ANY, ANY, ANY, ANY);
    int64_t B = q->dim[0], T = q->dim[1], H = q->dim[2], S = q->dim[3];
    WANT_ROWS(k, ACT, B, ANY, ANY, S);
    VQ_ASSERT(k->dim[1] >= T && k->dim[2] > 0 && H % k->dim[2] == 0);
    WANT_ROWS(v, ACT, B, k->dim[1], k->dim[2], S);
    WANT_LIKE(out, ACT, q);
    WANT(lse, REAL, B, H, T);
    return be->ops->attention_fwd(be->ctx, out, lse, q, k, v, scale);
}

vq_status vq_attention_bwd(const vq_backend *be, vq_tensor *dq, vq_tensor *dk, vq_tensor *dv,
                           const vq_tensor *dout, const vq_tensor *q, const vq_tensor *k,
                           const vq_tensor *v, const vq_tensor *out, const vq_tensor *lse,
                           double scale)
{
    WANT(q, ACT, ANY, ANY, ANY, ANY);
    int64_t B = q->dim[0], T = q->dim[1], H = q->dim[2], S = q->dim[3];
    WANT_ROWS(k, ACT, B, ANY, ANY, S);
    int64_t T_k = k->dim[1], G = k->dim[2];
    VQ_ASSERT(T_k >= T && G > 0 && H % G == 0);
    WANT_ROWS(v, ACT, B, T_k, G, S);
    WANT_ROWS(dk, ACT, B, T_k, G, S);
    WANT_ROWS(dv, ACT, B, T_k, G, S);
    WANT_LIKE(dq, ACT, q);
    WANT_LIKE(dout, ACT, q);
    WANT_LIKE(out, ACT, q);
    WANT(lse, REAL, B, H, T);
    VQ_ASSERT(dq->data != dout->data || vq_tensor_count(dq) == 0);
    return be->ops->attention_bwd(be->ctx, dq, dk, dv, dout, q, k, v, out, lse, scale);
}

vq_status vq_silu_gate_fwd(const vq_backend *be, vq_tensor *y, const vq_tensor *gate,
                           const vq_tensor *up)
{
    WANT_LIKE(gate, ACT, gate);
    WANT_LIKE(up, ACT, gate);
    WANT_LIKE(y, ACT, gate);
    return be->ops->silu_gate_fwd(be->ctx, y, gate, up);
}

vq_status vq_silu_gate_bwd(const vq_backend *be, vq_tensor *dgate, vq_tensor *dup,
                           const vq_tensor *dy, const vq_tensor *gate, const vq_tensor *up)
{
    WANT_LIKE(gate, ACT, gate);
    WANT_LIKE(up, ACT, gate);
    WANT_LIKE(dy, ACT, gate);
    WANT_LIKE(dgate, ACT, gate);
    WANT_LIKE(dup, ACT, gate);
    return be->ops->silu_gate_bwd(be->ctx, dgate, dup, dy, gate, up);
}

vq_status vq_relu_fwd(const vq_backend *be, vq_tensor *y, const vq_tensor *x)
{
    WANT_LIKE(x, ACT, x);
    WANT_LIKE(y, ACT, x);
    return be->ops->relu_fwd(be->ctx, y, x);
}

vq_status vq_relu_bwd(const vq_backend *be, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x)
{
    WANT_LIKE(x, ACT, x);
    WANT_LIKE(dy, ACT, x);
    WANT_LIKE(dx, ACT, x);
    return be->ops->relu_bwd(be->ctx, dx, dy, x);
}

/* --- round ----------------------------------------------------------------------------------- */

vq_tensor vq_quant_ints(int bits, int64_t out, int64_t in)
{
    if (bits <= 3) return vq_tensor_2d(NULL, VQ_U8, out, VQ_CEIL_DIV(in, 2));
    return vq_tensor_2d(NULL, bits <= 7 ? VQ_I8 : VQ_I16, out, in);
}

static vq_status check_ints(const vq_backend *be, const char *op, const char *argument,
                            const vq_tensor *t, int bits, int64_t out, int64_t in)
{
    const vq_tensor like = vq_quant_ints(bits, out, in);
    return check(be, op, argument, t, TYPE(like.dtype), false, like.ndim, like.dim);
}

#define WANT_INTS(t, bits, out, in) VQ_TRY(check_ints(be, __func__ + 3, #t, t, bits, out, in))

static vq_status check_quant(const vq_backend *be, const char *op, const vq_quant *q,
                             const vq_tensor *weight, const char *weight_name,
                             const vq_tensor *codes)
{
#define PART(name, t, types, ...) VQ_TRY(check(be, op, name, t, types, false, VQ_DIMS(__VA_ARGS__)))
    PART(weight_name, weight, ACT, ANY, ANY);
    PART("codes", codes, REAL, ANY, ANY);
    int64_t out = weight->dim[0], in = weight->dim[1], K = codes->dim[0], D = codes->dim[1];
    VQ_ASSERT(K > 0 && D > 0 && q->bits >= 1 && q->bits <= 8 && q->group_size > 0);
    int64_t groups = VQ_CEIL_DIV(in, q->group_size), n_vec = VQ_CEIL_DIV(out * in, D);
    VQ_TRY(check_ints(be, op, "base", &q->base, q->bits, out, in));
    PART("scale", &q->scale, REAL, out, groups);
    PART("zero", &q->zero, REAL, out, groups);
    if (q->idx.data)
        PART("idx", &q->idx, TYPE(VQ_U16) | TYPE(VQ_U32), n_vec);
    else
        PART("codes", codes, REAL, n_vec, D);
#undef PART
    return VQ_OK;
}

vq_status vq_round_fwd(const vq_backend *be, vq_tensor *w, const vq_quant *q,
                       const vq_tensor *codes, vq_round_mode mode)
{
    VQ_TRY(check_quant(be, "round_fwd", q, w, "w", codes));
    return be->ops->round_fwd(be->ctx, w, q, codes, mode);
}

vq_status vq_round_bwd(const vq_backend *be, vq_tensor *dcodes, const vq_tensor *dw,
                       const vq_quant *q, const vq_tensor *codes)
{
    VQ_TRY(check_quant(be, "round_bwd", q, dw, "dw", codes));
    WANT_LIKE(dcodes, REAL, codes);
    return be->ops->round_bwd(be->ctx, dcodes, dw, q, codes);
}

vq_status vq_round_reg(const vq_backend *be, double *loss, vq_tensor *dcodes,
                       const vq_tensor *codes, const vq_tensor *counts, double weight, double beta)
{
    WANT(codes, REAL, ANY, ANY);
    if (counts) WANT_LIKE(counts, TYPE(VQ_U32), codes);
    if (dcodes) WANT_LIKE(dcodes, REAL, codes);
    VQ_ASSERT(loss && beta > 1);
    return be->ops->round_reg(be->ctx, loss, dcodes, codes, counts, weight, beta);
}

vq_status vq_round_scale_fwd(const vq_backend *be, vq_tensor *scale, const vq_tensor *grid,
                             const vq_tensor *factor, vq_dtype scale_dtype)
{
    WANT(grid, REAL, ANY, ANY);
    WANT_LIKE(scale, REAL, grid);
    WANT_LIKE(factor, REAL, grid);
    VQ_ASSERT(vq_dtype_is_float(scale_dtype));
    return be->ops->round_scale_fwd(be->ctx, scale, grid, factor, scale_dtype);
}

vq_status vq_round_scale_bwd(const vq_backend *be, vq_tensor *dfactor, const vq_tensor *dw,
                             const vq_quant *q, const vq_tensor *codes, const vq_tensor *grid)
{
    VQ_TRY(check_quant(be, "round_scale_bwd", q, dw, "dw", codes));
    WANT_LIKE(dfactor, REAL, &q->scale);
    WANT_LIKE(grid, REAL, &q->scale);
    return be->ops->round_scale_bwd(be->ctx, dfactor, dw, q, codes, grid);
}

vq_status vq_arrange(const vq_backend *be, vq_tensor *to, const vq_tensor *from,
                     const vq_tensor *order, bool back)
{
    WANT(order, TYPE(VQ_I32), ANY);
    const int64_t in = order->dim[0];
    const unsigned types = FLOATS | TYPE(VQ_I8) | TYPE(VQ_I16) | TYPE(VQ_U8);
    WANT(from, types, ANY, from->dtype == VQ_U8 ? VQ_CEIL_DIV(in, 2) : in);
    WANT_LIKE(to, TYPE(from->dtype), from);
    VQ_ASSERT(to->data != from->data);
    return be->ops->arrange(be->ctx, to, from, order, back);
}

/* --- init ------------------------------------------------------------------------------------ */

vq_status vq_grid_minmax(const vq_backend *be, vq_tensor *scale, vq_tensor *zero,
                         const vq_tensor *w, int bits, int64_t group_size, bool symmetric,
                         bool include_zero, vq_dtype scale_dtype)
{
    WANT(w, FLOATS, ANY, ANY);
    VQ_ASSERT(group_size > 0 && bits >= 1 && bits <= 8 && vq_dtype_is_float(scale_dtype));
    WANT(scale, REAL, w->dim[0], VQ_CEIL_DIV(w->dim[1], group_size));
    WANT_LIKE(zero, REAL, scale);
    return be->ops->grid_minmax(be->ctx, scale, zero, w, bits, group_size, symmetric, include_zero,
                                scale_dtype);
}

vq_status vq_grid_search(const vq_backend *be, vq_tensor *scale, vq_tensor *zero,
                         const vq_tensor *w, const vq_tensor *inputs, int bits, int64_t group_size,
                         bool symmetric, vq_dtype scale_dtype)
{
    WANT(w, FLOATS, ANY, ANY);
    if (inputs) WANT(inputs, REAL, 2, w->dim[1]);
    VQ_ASSERT(group_size > 0 && bits >= 1 && bits <= 8 && vq_dtype_is_float(scale_dtype));
    WANT(scale, REAL, w->dim[0], VQ_CEIL_DIV(w->dim[1], group_size));
    WANT_LIKE(zero, REAL, scale);
    return be->ops->grid_search(be->ctx, scale, zero, w, inputs, bits, group_size, symmetric,
                                scale_dtype);
}

vq_status vq_grid_split(const vq_backend *be, vq_tensor *base, vq_tensor *rest, const vq_tensor *w,
                        const vq_tensor *scale, const vq_tensor *zero, int bits, int64_t group_size)
{
    WANT(w, FLOATS, ANY, ANY);
    VQ_ASSERT(group_size > 0 && bits >= 1 && bits <= 8);
    WANT_INTS(base, bits, w->dim[0], w->dim[1]);
    WANT_LIKE(rest, REAL, w);
    WANT(scale, REAL, w->dim[0], VQ_CEIL_DIV(w->dim[1], group_size));
    WANT_LIKE(zero, REAL, scale);
    return be->ops->grid_split(be->ctx, base, rest, w, scale, zero, bits, group_size);
}

vq_status vq_grid_round(const vq_backend *be, vq_tensor *out, const vq_tensor *w, const vq_quant *q)
{
    WANT(w, FLOATS, ANY, ANY);
    VQ_ASSERT(q->group_size > 0 && q->bits >= 1 && q->bits <= 8);
    WANT_LIKE(out, ACT, w);
    WANT(&q->scale, REAL, w->dim[0], VQ_CEIL_DIV(w->dim[1], q->group_size));
    WANT_LIKE(&q->zero, REAL, &q->scale);
    return be->ops->grid_round(be->ctx, out, w, q);
}

vq_status vq_grid_value(const vq_backend *be, vq_tensor *out, const vq_tensor *ints,
                        const vq_quant *q)
{
    WANT(out, ACT, ANY, ANY);
    VQ_ASSERT(q->group_size > 0 && q->bits >= 1 && q->bits <= 8);
    WANT_INTS(ints, q->bits, out->dim[0], out->dim[1]);
    const vq_tensor *scale = &q->scale, *zero = &q->zero;
    WANT(scale, REAL, out->dim[0], VQ_CEIL_DIV(out->dim[1], q->group_size));
    WANT_LIKE(zero, REAL, scale);
    return be->ops->grid_value(be->ctx, out, ints, q);
}

vq_status vq_gptq_sweep(const vq_backend *be, vq_quant *q, vq_tensor *ints, vq_tensor *rest,
                        double *error, const vq_tensor *w, const vq_tensor *u,
                        const vq_tensor *order, const vq_tensor *dead, const vq_sweep_rule *rule)
{
    WANT(w, FLOATS, ANY, ANY);
    const int64_t in = w->dim[1];
    VQ_ASSERT(error && q->group_size > 0 && q->bits >= 1 && q->bits <= 8);
    VQ_ASSERT(rule->block_size > 0 && vq_dtype_is_float(rule->scale_dtype));
    const vq_tensor *base = &q->base, *scale = &q->scale, *zero = &q->zero;
    WANT_INTS(base, q->bits, w->dim[0], in);
    WANT_INTS(ints, q->bits, w->dim[0], in);
    WANT_LIKE(rest, REAL, w);
    WANT(scale, REAL, w->dim[0], VQ_CEIL_DIV(in, q->group_size));
    WANT_LIKE(zero, REAL, scale);
    WANT(u, REAL, in, in);
    WANT(order, TYPE(VQ_I32), in);
    WANT(dead, TYPE(VQ_U8), in);
    return be->ops->gptq_sweep(be->ctx, q, ints, rest, error, w, u, order, dead, rule);
}

/* The rows of the last part end below n and K if all parts stand in order. */
static bool parts_fit(const vq_kmeans_part *parts, int64_t n_parts, int64_t n, int64_t K)
{
    int64_t first = 0, code = 0;
    for (const vq_kmeans_part *p = parts; p < parts + n_parts; p++) {
        if (p->first < first || p->n < 0 || p->code < code || p->codes < 1) return false;
        first = p->first + p->n, code = p->code + p->codes;
    }
    return first <= n && code <= K;
}

vq_status vq_kmeans_assign(const vq_backend *be, vq_tensor *idx, double *objective,
                           const vq_tensor *x, const vq_tensor *codes, const vq_kmeans_part *parts,
                           int64_t n_parts)
{
    WANT(x, REAL, ANY, ANY);
    WANT(codes, REAL, ANY, x->dim[1]);
    VQ_ASSERT(codes->dim[0] > 0 && codes->dim[0] <= UINT32_MAX && objective);
    VQ_ASSERT(n_parts > 0 && parts_fit(parts, n_parts, x->dim[0], codes->dim[0]));
    WANT(idx, TYPE(VQ_U32), x->dim[0]);
    return be->ops->kmeans_assign(be->ctx, idx, objective, x, codes, parts, n_parts);
}

vq_status vq_kmeans_update(const vq_backend *be, vq_tensor *codes, vq_tensor *counts,
                           const vq_tensor *x, const vq_tensor *idx, const vq_kmeans_part *parts,
                           int64_t n_parts)
{
    WANT(x, REAL, ANY, ANY);
    WANT(codes, REAL, ANY, x->dim[1]);
    WANT(counts, TYPE(VQ_U32), codes->dim[0]);
    WANT(idx, TYPE(VQ_U32), x->dim[0]);
    VQ_ASSERT(n_parts > 0 && parts_fit(parts, n_parts, x->dim[0], codes->dim[0]));
    return be->ops->kmeans_update(be->ctx, codes, counts, x, idx, parts, n_parts);
}

/* --- loss ------------------------------------------------------------------------------------ */

vq_status vq_head_kd(const vq_backend *be, double *loss, vq_tensor *dx, const vq_tensor *x,
                     const vq_tensor *x_teacher, const vq_tensor *head,
                     const vq_tensor *head_teacher, double tau, double scale)
{
    WANT(x, ACT, ANY, ANY);
    WANT(x_teacher, FLOATS, x->dim[0], ANY);
    WANT(head, FLOATS, ANY, x->dim[1]);
    WANT(head_teacher, FLOATS, head->dim[0], x_teacher->dim[1]);
    if (dx) WANT_LIKE(dx, ACT, x);
    VQ_ASSERT(loss && tau > 0 && head->dim[0] > 0);
    return be->ops->head_kd(be->ctx, loss, dx, x, x_teacher, head, head_teacher, tau, scale);
}

vq_status vq_head_nll(const vq_backend *be, double *loss, vq_tensor *dx, const vq_tensor *x,
                      const vq_tensor *head, const vq_tensor *targets, double scale)
{
    WANT(x, ACT, ANY, ANY);
    WANT(head, FLOATS, ANY, x->dim[1]);
    WANT(targets, TYPE(VQ_I32), x->dim[0]);
    if (dx) WANT_LIKE(dx, ACT, x);
    VQ_ASSERT(loss && head->dim[0] > 0);
    return be->ops->head_nll(be->ctx, loss, dx, x, head, targets, scale);
}

vq_status vq_mse(const vq_backend *be, double *loss, vq_tensor *dy, const vq_tensor *y,
                 const vq_tensor *target, double scale)
{
    WANT(y, ACT, ANY, ANY);
    WANT_LIKE(target, ACT, y);
    if (dy) WANT_LIKE(dy, ACT, y);
    VQ_ASSERT(loss);
    return be->ops->mse(be->ctx, loss, dy, y, target, scale);
}

/* --- update ---------------------------------------------------------------------------------- */

vq_status vq_adam_step(const vq_backend *be, vq_tensor *param, vq_tensor *m, vq_tensor *v,
                       const vq_tensor *grad, double lr, double beta1, double beta2, double eps,
                       int64_t step)
{
    WANT_LIKE(param, REAL, param);
    WANT_LIKE(m, REAL, param);
    WANT_LIKE(v, REAL, param);
    WANT_LIKE(grad, REAL, param);
    VQ_ASSERT(step >= 1);
    return be->ops->adam_step(be->ctx, param, m, v, grad, lr, beta1, beta2, eps, step);
}

vq_status vq_norm2(const vq_backend *be, double *out, const vq_tensor *x)
{
    WANT_LIKE(x, ACT | REAL, x);
    return be->ops->norm2(be->ctx, out, x);
}
