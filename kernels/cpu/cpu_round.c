/* cpu_round - a quantized linear's weight from its integers and its code table, the table's
 * gradient, the regularizer, and columns in another order.
 *
 * The weight is walked in blocks of a row's columns, small enough for the first-level cache: codes
 * are copied vector by vector into a block of rounding values, and the rest is plain arithmetic on
 * blocks. A vector may begin in one row and end in the next; sums over its elements may be cut
 * anywhere. */
#include "cpu_real.h"

#include "cpu_lanes.h"
#include "cpu_ops.h"
#include "element.h"
#include "error.h"

#define INLINE static inline __attribute__((always_inline))

#define BLOCK 2048    /* columns */
#define MAX_CHUNKS 64 /* of round_bwd */
#define VECTORS_PER_CODE                                                                           \
    2 /* a chunk's at least, so that adding the chunks' tables costs little                        \
       */
#define REG_BLOCK ((int64_t)1024)

/* Constant arguments make variants of these inlined functions: D = 8 and the type of idx. */
INLINE int64_t code_of(const vq_tensor *idx, int64_t v, bool wide)
{
    return wide ? (int64_t)((const uint32_t *)idx->data)[v]
                : (int64_t)((const uint16_t *)idx->data)[v];
}

/* r[0, n) = table[idx[p / D]][p % D] from the flat position p on. */
INLINE void gather(real *r, const real *table, const vq_tensor *idx, int64_t p, int64_t n,
                   int64_t D, bool wide)
{
    int64_t v = p / D, i = 0;
    if (p % D) {
        i = VQ_MIN(D - p % D, n);
        memcpy(r, table + code_of(idx, v++, wide) * D + p % D, (size_t)i * sizeof *r);
    }
    for (; i + D <= n; i += D)
        memcpy(r + i, table + code_of(idx, v++, wide) * D, (size_t)D * sizeof *r);
    if (i < n) memcpy(r + i, table + code_of(idx, v, wide) * D, (size_t)(n - i) * sizeof *r);
}

/* table[idx[p / D]][p % D] += g[0, n) */
INLINE void scatter(real *table, const real *g, const vq_tensor *idx, int64_t p, int64_t n,
                    int64_t D, bool wide)
{
    int64_t v = p / D, d = p % D;
    for (int64_t i = 0; i < n; v++) {
        real *code = table + code_of(idx, v, wide) * D;
        if (d == 0 && n - i >= D) {
            for (int64_t j = 0; j < D; j++) code[j] += g[i + j];
            i += D;
        } else {
            for (; d < D && i < n; d++, i++) code[d] += g[i];
            d = 0;
        }
    }
}

static void gather_any(real *r, const real *table, const vq_tensor *idx, int64_t p, int64_t n,
                       int64_t D)
{
    bool wide = idx->dtype == VQ_U32;
    if (D == 8 && wide)
        gather(r, table, idx, p, n, 8, true);
    else if (D == 8)
        gather(r, table, idx, p, n, 8, false);
    else
        gather(r, table, idx, p, n, D, wide);
}

static void scatter_any(real *table, const real *g, const vq_tensor *idx, int64_t p, int64_t n,
                        int64_t D)
{
    bool wide = idx->dtype == VQ_U32;
    if (D == 8 && wide)
        scatter(table, g, idx, p, n, 8, true);
    else if (D == 8)
        scatter(table, g, idx, p, n, 8, false);
    else
        scatter(table, g, idx, p, n, D, wide);
}

static void rounding(real *r, const real *codes, int64_t n, vq_round_mode mode)
{
    if (mode == VQ_HARD)
        for (int64_t i = 0; i < n; i++) r[i] = codes[i] >= 0 ? 1 : 0;
    else
        for (int64_t i = 0; i < n; i++) r[i] = vq_soft_round(codes[i]);
}

/* The rounding values of all codes. */
static vq_status make_table(vq_cpu *cpu, const vq_tensor *codes, vq_round_mode mode, real **out)
{
    int64_t n = vq_tensor_count(codes);
    VQ_TRY(VQ_NEW(&cpu->scratch, n, out));
    real *table = *out;
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, n)) schedule(static)
    for (int64_t i = 0; i < n; i += BLOCK)
        rounding(table + i, (const real *)codes->data + i, VQ_MIN(n - i, BLOCK), mode);
    return VQ_OK;
}

/* The block's rounding values: from the table, or from each weight's own code. */
static void block_rounding(real *r, const real *table, const vq_tensor *codes, const vq_tensor *idx,
                           int64_t p, int64_t n, vq_round_mode mode)
{
    if (table)
        gather_any(r, table, idx, p, n, codes->dim[1]);
    else
        rounding(r, (const real *)codes->data + p, n, mode);
}

/* w = s (clamp(base + r, 0, qmax) - z) */
INLINE void dequantize(real *w, const real *r, const void *base, bool wide, real s, real z,
                       real qmax, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        real q = (real)(wide ? ((const int16_t *)base)[i] : ((const int8_t *)base)[i]) + r[i];
        q = q < 0 ? 0 : q;
        q = q > qmax ? qmax : q;
        w[i] = s * (q - z);
    }
}

/* q = clamp(base + r, 0, qmax) - z, into r's place. */
INLINE void level(real *r, const void *base, bool wide, real z, real qmax, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        real q = (real)(wide ? ((const int16_t *)base)[i] : ((const int8_t *)base)[i]) + r[i];
        q = q < 0 ? 0 : q;
        q = q > qmax ? qmax : q;
        r[i] = q - z;
    }
}

/* g = s [0 <= base + r <= qmax] dw, into r's place. */
INLINE void weight_grad(real *r, const real *dw, const void *base, bool wide, real s, real qmax,
                        int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        real q = (real)(wide ? ((const int16_t *)base)[i] : ((const int8_t *)base)[i]) + r[i];
        r[i] = q >= 0 && q <= qmax ? s * dw[i] : 0;
    }
}

vq_status vq_cpu_round_fwd(void *ctx, vq_tensor *w, const vq_quant *q, const vq_tensor *codes,
                           vq_round_mode mode)
{
    vq_cpu *cpu = ctx;
    int64_t out = w->dim[0], in = w->dim[1], groups = q->scale.dim[1];
    bool wide = q->base.dtype == VQ_I16;
    real qmax = (real)((1 << q->bits) - 1), *table = NULL;
    size_t mark = vq_arena_mark(&cpu->scratch);
    if (q->idx.data) VQ_TRY(make_table(cpu, codes, mode, &table));

#pragma omp parallel for num_threads(vq_cpu_threads(cpu, out *in)) schedule(static)
    for (int64_t o = 0; o < out; o++) {
        real r[BLOCK];
        int8_t unpacked[VQ_CPU_UNPACKED(BLOCK)];
        for (int64_t col = 0; col < in;) {
            int64_t group = col / q->group_size;
            int64_t n = VQ_MIN(VQ_MIN(in, (group + 1) * q->group_size) - col, BLOCK);
            int64_t p = o * in + col;
            real s = ((const real *)q->scale.data)[o * groups + group];
            real z = ((const real *)q->zero.data)[o * groups + group];
            const void *base = vq_cpu_ints(&q->base, o, col, n, unpacked);
            block_rounding(r, table, codes, &q->idx, p, n, mode);
            if (wide)
                dequantize((real *)w->data + p, r, base, true, s, z, qmax, n);
            else
                dequantize((real *)w->data + p, r, base, false, s, z, qmax, n);
            col += n;
        }
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

vq_status vq_cpu_round_bwd(void *ctx, vq_tensor *dcodes, const vq_tensor *dw, const vq_quant *q,
                           const vq_tensor *codes)
{
    vq_cpu *cpu = ctx;
    int64_t out = dw->dim[0], in = dw->dim[1], groups = q->scale.dim[1];
    int64_t K = codes->dim[0], D = codes->dim[1];
    bool wide = q->base.dtype == VQ_I16, own = !q->idx.data;
    real qmax = (real)((1 << q->bits) - 1), *table = NULL, *partial = NULL;
    int64_t rows = 1; /* of a chunk */
    if (!own) {
        int64_t vectors = VQ_MAX(q->idx.dim[0] / MAX_CHUNKS, VECTORS_PER_CODE * K);
        rows = VQ_MAX(VQ_CEIL_DIV(vectors * D, in), 1);
    }
    int64_t n_chunks = VQ_CEIL_DIV(out, rows);
    size_t mark = vq_arena_mark(&cpu->scratch);
    if (!own) {
        VQ_TRY(make_table(cpu, codes, VQ_SOFT, &table));
        VQ_TRY(VQ_NEW(&cpu->scratch, n_chunks * K * D, &partial));
    }

#pragma omp parallel for num_threads(vq_cpu_threads(cpu, out *in)) schedule(static, 1)
    for (int64_t chunk = 0; chunk < n_chunks; chunk++) {
        real r[BLOCK], *sums = own ? NULL : partial + chunk * K * D;
        int8_t unpacked[VQ_CPU_UNPACKED(BLOCK)];
        if (sums) memset(sums, 0, (size_t)(K * D) * sizeof *sums);
        for (int64_t o = chunk * rows; o < VQ_MIN((chunk + 1) * rows, out); o++) {
            for (int64_t col = 0; col < in;) {
                int64_t group = col / q->group_size;
                int64_t n = VQ_MIN(VQ_MIN(in, (group + 1) * q->group_size) - col, BLOCK);
                int64_t p = o * in + col;
                real s = ((const real *)q->scale.data)[o * groups + group];
                const void *base = vq_cpu_ints(&q->base, o, col, n, unpacked);
                block_rounding(r, table, codes, &q->idx, p, n, VQ_SOFT);
                if (wide)
                    weight_grad(r, (const real *)dw->data + p, base, true, s, qmax, n);
                else
                    weight_grad(r, (const real *)dw->data + p, base, false, s, qmax, n);
                if (sums) {
                    scatter_any(sums, r, &q->idx, p, n, D);
                } else {
                    real *d = (real *)dcodes->data + p;
                    const real *a = (const real *)codes->data + p;
                    for (int64_t i = 0; i < n; i++) d[i] += vq_soft_round_grad(a[i]) * r[i];
                }
                col += n;
            }
        }
    }
    if (!own) {
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, K *D)) schedule(static)
        for (int64_t i = 0; i < K * D; i += BLOCK) {
            int64_t n = VQ_MIN(K * D - i, BLOCK);
            real *sum = partial + i, *d = (real *)dcodes->data + i;
            const real *a = (const real *)codes->data + i;
            for (int64_t chunk = 1; chunk < n_chunks; chunk++) {
                const real *more = sum + chunk * K * D;
                for (int64_t j = 0; j < n; j++) sum[j] += more[j];
            }
            for (int64_t j = 0; j < n; j++) d[j] += vq_soft_round_grad(a[j]) * sum[j];
        }
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

vq_status vq_cpu_round_reg(void *ctx, double *loss, vq_tensor *dcodes, const vq_tensor *codes,
                           const vq_tensor *counts, double weight, double beta)
{
    vq_cpu *cpu = ctx;
    int64_t n = vq_tensor_count(codes), n_blocks = VQ_CEIL_DIV(n, REG_BLOCK);
    size_t mark = vq_arena_mark(&cpu->scratch);
    double *partial = NULL;
    VQ_TRY(VQ_NEW(&cpu->scratch, n_blocks, &partial));
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, 16 * n)) schedule(static)
    for (int64_t block = 0; block < n_blocks; block++) {
        int64_t first = block * REG_BLOCK, size = VQ_MIN(n - first, REG_BLOCK);
        const real *a = (const real *)codes->data + first;
        const uint32_t *count = counts ? (const uint32_t *)counts->data + first : NULL;
        real h[REG_BLOCK], slope[REG_BLOCK];
        for (int64_t i = 0; i < size; i++) {
            h[i] = vq_soft_round(a[i]);
            slope[i] = vq_soft_round_grad(a[i]);
        }
        double sum = 0;
        for (int64_t i = 0; i < size; i++) {
            double t = 2 * (double)h[i] - 1;
            double power = pow(fabs(t), beta - 1), times = count ? (double)count[i] : 1;
            sum += times * (1 - power * fabs(t));
            /* d|t|^beta / da = beta |t|^(beta - 1) sign(t) 2 h'; 0 at t = 0, as beta > 1. */
            if (dcodes)
                ((real *)dcodes->data)[first + i] -=
                    (real)(weight * times * beta * copysign(power, t) * 2 * (double)slope[i]);
        }
        partial[block] = sum;
    }
    for (int64_t block = 0; block < n_blocks; block++) *loss += weight * partial[block];
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

vq_status vq_cpu_round_scale_fwd(void *ctx, vq_tensor *scale, const vq_tensor *grid,
                                 const vq_tensor *factor, vq_dtype scale_dtype)
{
    const vq_cpu *cpu = ctx;
    const int64_t n = vq_tensor_count(grid);
    const real *first = grid->data, *f = factor->data;
    real *s = scale->data;
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, n)) schedule(static)
    for (int64_t i = 0; i < n; i++) s[i] = vq_cpu_round_scale(first[i] * f[i], scale_dtype);
    return VQ_OK;
}

vq_status vq_cpu_round_scale_bwd(void *ctx, vq_tensor *dfactor, const vq_tensor *dw,
                                 const vq_quant *q, const vq_tensor *codes, const vq_tensor *grid)
{
    vq_cpu *cpu = ctx;
    int64_t out = dw->dim[0], in = dw->dim[1], groups = q->scale.dim[1];
    bool wide = q->base.dtype == VQ_I16;
    real qmax = (real)((1 << q->bits) - 1), *table = NULL;
    size_t mark = vq_arena_mark(&cpu->scratch);
    if (q->idx.data) VQ_TRY(make_table(cpu, codes, VQ_SOFT, &table));

#pragma omp parallel for num_threads(vq_cpu_threads(cpu, out *in)) schedule(static)
    for (int64_t o = 0; o < out; o++) {
        real r[BLOCK];
        int8_t unpacked[VQ_CPU_UNPACKED(BLOCK)];
        for (int64_t g = 0; g < groups; g++) {
            const int64_t at = o * groups + g, end = VQ_MIN((g + 1) * q->group_size, in);
            const real z = ((const real *)q->zero.data)[at];
            double sum = 0;
            for (int64_t col = g * q->group_size; col < end; col += BLOCK) {
                const int64_t n = VQ_MIN(end - col, BLOCK), p = o * in + col;
                const void *base = vq_cpu_ints(&q->base, o, col, n, unpacked);
                block_rounding(r, table, codes, &q->idx, p, n, VQ_SOFT);
                if (wide)
                    level(r, base, true, z, qmax, n);
                else
                    level(r, base, false, z, qmax, n);
                sum += (double)lanes_dot(r, (const real *)dw->data + p, n);
            }
            ((real *)dfactor->data)[at] += ((const real *)grid->data)[at] * (real)sum;
        }
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

/* One row; a constant size makes a variant of the loop. */
INLINE void arrange_row(uint8_t *to, const uint8_t *from, const int32_t *order, bool back,
                        int64_t n, size_t size)
{
    for (int64_t j = 0; j < n; j++) {
        const size_t at = (size_t)j * size, place = (size_t)order[j] * size;
        memcpy(to + (back ? place : at), from + (back ? at : place), size);
    }
}

/* One row of halves of bytes (vq_quant). */
static void arrange_halves(uint8_t *to, const uint8_t *from, const int32_t *order, bool back,
                           int64_t n)
{
    memset(to, 0, (size_t)VQ_CEIL_DIV(n, 2));
    for (int64_t j = 0; j < n; j++) {
        const int64_t at = back ? j : order[j], place = back ? order[j] : j;
        to[place / 2] |= (uint8_t)((from[at / 2] >> at % 2 * 4 & 15) << place % 2 * 4);
    }
}

vq_status vq_cpu_arrange(void *ctx, vq_tensor *to, const vq_tensor *from, const vq_tensor *order,
                         bool back)
{
    const vq_cpu *cpu = ctx;
    const int64_t out = from->dim[0], in = order->dim[0];
    const size_t size = vq_dtype_bytes(from->dtype), row = (size_t)from->dim[1] * size;
    const int32_t *columns = order->data;
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, out *in)) schedule(static)
    for (int64_t o = 0; o < out; o++) {
        uint8_t *t = (uint8_t *)to->data + (size_t)o * row;
        const uint8_t *f = (const uint8_t *)from->data + (size_t)o * row;
        if (from->dtype == VQ_U8)
            arrange_halves(t, f, columns, back, in);
        else if (size == 4)
            arrange_row(t, f, columns, back, in, 4);
        else if (size == 1)
            arrange_row(t, f, columns, back, in, 1);
        else
            arrange_row(t, f, columns, back, in, size);
    }
    return VQ_OK;
}
