/* cpu_layer - the element-wise and row-wise operations of a decoder layer: threads take rows. */
#include "cpu_real.h"

#include "cpu_lanes.h"
#include "cpu_ops.h"
#include "element.h"
#include "error.h"

/* A small vector (a norm's weight, a bias) as real: its own data, or a copy in scratch. */
static vq_status as_real(vq_cpu *cpu, const vq_tensor *t, const real **out)
{
    *out = t ? t->data : NULL;
    if (!t || t->dtype == VQ_REAL) return VQ_OK;
    real *copy = NULL;
    VQ_TRY(VQ_NEW(&cpu->scratch, t->dim[0], &copy));
    vq_cpu_to_real(copy, t->data, t->dtype, t->dim[0]);
    *out = copy;
    return VQ_OK;
}

vq_status vq_cpu_embed(void *ctx, vq_tensor *out, const vq_tensor *table, const vq_tensor *ids,
                       bool add)
{
    vq_cpu *cpu = ctx;
    int64_t n = out->dim[0], E = out->dim[1], V = table->dim[0];
    const int32_t *id = ids->data;
    for (int64_t i = 0; i < n; i++)
        VQ_CHECK(id[i] >= 0 && id[i] < V, VQ_EINTERNAL,
                 "embed: ids[%lld] is %d, expected 0 to %lld. The tokens do not belong to this "
                 "model: use its own tokenizer",
                 (long long)i, (int)id[i], (long long)V - 1);
    size_t bytes = vq_dtype_bytes(table->dtype);
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, n *E)) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        real *y = (real *)out->data + i * E, part[256];
        const uint8_t *row = (const uint8_t *)table->data + (size_t)(id[i] * E) * bytes;
        if (!add) {
            vq_cpu_to_real(y, row, table->dtype, E);
            continue;
        }
        for (int64_t j = 0; j < E; j += VQ_COUNT(part)) {
            int64_t width = VQ_MIN(E - j, VQ_COUNT(part));
            vq_cpu_to_real(part, row + (size_t)j * bytes, table->dtype, width);
            for (int64_t l = 0; l < width; l++) y[j + l] += part[l];
        }
    }
    return VQ_OK;
}

vq_status vq_cpu_bias_add(void *ctx, vq_tensor *y, const vq_tensor *bias)
{
    vq_cpu *cpu = ctx;
    int64_t n = y->dim[0], E = y->dim[1];
    size_t mark = vq_arena_mark(&cpu->scratch);
    const real *b = NULL;
    VQ_TRY(as_real(cpu, bias, &b));
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, n *E)) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        real *row = (real *)y->data + i * E;
        for (int64_t j = 0; j < E; j++) row[j] += b[j];
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

vq_status vq_cpu_add(void *ctx, vq_tensor *y, const vq_tensor *x)
{
    vq_cpu *cpu = ctx;
    int64_t n = vq_tensor_count(y);
    real *to = y->data;
    const real *from = x->data;
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, n)) schedule(static)
    for (int64_t i = 0; i < n; i++) to[i] += from[i];
    return VQ_OK;
}

/* --- norms ----------------------------------------------------------------------------------- */

vq_status vq_cpu_rmsnorm_fwd(void *ctx, vq_tensor *y, vq_tensor *rstd, const vq_tensor *x,
                             const vq_tensor *weight, double eps)
{
    vq_cpu *cpu = ctx;
    int64_t n = x->dim[0], E = x->dim[1];
    size_t mark = vq_arena_mark(&cpu->scratch);
    const real *w = NULL;
    VQ_TRY(as_real(cpu, weight, &w));
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, n *E)) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const real *in = (const real *)x->data + i * E;
        real *out = (real *)y->data + i * E;
        real r = (real)(1 / sqrt((double)lanes_dot(in, in, E) / (double)E + eps));
        ((real *)rstd->data)[i] = r;
#pragma omp simd
        for (int64_t j = 0; j < E; j++) out[j] = in[j] * r * w[j];
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

/* One row of both norms' backward: plus + rstd (g - mean(g) - xhat mean(g xhat)), where
 * xhat = (x - mean) rstd; without `centered`, mean and mean(g) are left out; plus may be NULL. */
static inline void norm_bwd_row(real *dx, const real *dy, const real *x, const real *w, real mean,
                                real rstd, int64_t E, bool centered, const real *plus)
{
    lanes sum_g = {0}, sum_gx = {0};
    for (int64_t j = 0; j < E; j += LANES) {
        int64_t width = VQ_MIN(E - j, LANES);
        bool whole = width == LANES;
        lanes g = whole ? lanes_load(dy + j) : lanes_load_part(dy + j, width);
        lanes xs = whole ? lanes_load(x + j) : lanes_load_part(x + j, width);
        if (w) g *= whole ? lanes_load(w + j) : lanes_load_part(w + j, width);
        sum_g += g;
        sum_gx += g * (xs - mean) * rstd; /* g is 0 beyond the row's end */
    }
    real mean_g = centered ? lanes_total(&sum_g) / (real)E : 0;
    real mean_gx = lanes_total(&sum_gx) / (real)E;
#pragma omp simd
    for (int64_t j = 0; j < E; j++) {
        real g = w ? dy[j] * w[j] : dy[j];
        real d = rstd * (g - mean_g - (x[j] - mean) * rstd * mean_gx);
        dx[j] = plus ? plus[j] + d : d;
    }
}

vq_status vq_cpu_rmsnorm_bwd(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x,
                             const vq_tensor *weight, const vq_tensor *rstd, const vq_tensor *plus)
{
    vq_cpu *cpu = ctx;
    int64_t n = x->dim[0], E = x->dim[1];
    size_t mark = vq_arena_mark(&cpu->scratch);
    const real *w = NULL;
    VQ_TRY(as_real(cpu, weight, &w));
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, n *E)) schedule(static)
    for (int64_t i = 0; i < n; i++)
        norm_bwd_row((real *)dx->data + i * E, (const real *)dy->data + i * E,
                     (const real *)x->data + i * E, w, 0, ((const real *)rstd->data)[i], E, false,
                     plus ? (const real *)plus->data + i * E : NULL);
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

vq_status vq_cpu_layernorm_fwd(void *ctx, vq_tensor *y, vq_tensor *mean, vq_tensor *rstd,
                               const vq_tensor *x, const vq_tensor *weight, const vq_tensor *bias,
                               double eps)
{
    vq_cpu *cpu = ctx;
    int64_t n = x->dim[0], E = x->dim[1];
    size_t mark = vq_arena_mark(&cpu->scratch);
    const real *w = NULL, *b = NULL;
    VQ_TRY(as_real(cpu, weight, &w));
    VQ_TRY(as_real(cpu, bias, &b));
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, n *E)) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const real *in = (const real *)x->data + i * E;
        real *out = (real *)y->data + i * E;
        /* The variance from the centered row: the two-moment formula cancels. */
        real mu = lanes_sum(in, E) / (real)E;
        lanes squares = {0};
        int64_t j = 0;
        for (; j + LANES <= E; j += LANES) {
            lanes d = lanes_load(in + j) - mu;
            squares += d * d;
        }
        real rest = 0;
        for (; j < E; j++) rest += (in[j] - mu) * (in[j] - mu);
        double var = (double)(lanes_total(&squares) + rest) / (double)E;
        real r = (real)(1 / sqrt(var + eps));
        ((real *)mean->data)[i] = mu;
        ((real *)rstd->data)[i] = r;
        if (w)
            for (j = 0; j < E; j++) out[j] = (in[j] - mu) * r * w[j] + b[j];
        else
            for (j = 0; j < E; j++) out[j] = (in[j] - mu) * r;
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

vq_status vq_cpu_layernorm_bwd(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x,
                               const vq_tensor *weight, const vq_tensor *mean,
                               const vq_tensor *rstd, const vq_tensor *plus)
{
    vq_cpu *cpu = ctx;
    int64_t n = x->dim[0], E = x->dim[1];
    size_t mark = vq_arena_mark(&cpu->scratch);
    const real *w = NULL;
    VQ_TRY(as_real(cpu, weight, &w));
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, n *E)) schedule(static)
    for (int64_t i = 0; i < n; i++)
        norm_bwd_row((real *)dx->data + i * E, (const real *)dy->data + i * E,
                     (const real *)x->data + i * E, w, ((const real *)mean->data)[i],
                     ((const real *)rstd->data)[i], E, true,
                     plus ? (const real *)plus->data + i * E : NULL);
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

/* --- positions ------------------------------------------------------------------------------- */

vq_status vq_cpu_rope(void *ctx, vq_tensor *x, const vq_tensor *cos, const vq_tensor *sin,
                      int64_t first, bool inverse)
{
    vq_cpu *cpu = ctx;
    int64_t rows = x->dim[0] * x->dim[1], T = x->dim[1], H = x->dim[2], half = x->dim[3] / 2;
    real sign = inverse ? -1 : 1;
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, rows *H *half)) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const real *c = (const real *)cos->data + (first + row % T) * half;
        const real *s = (const real *)sin->data + (first + row % T) * half;
        for (int64_t h = 0; h < H; h++) {
            real *x1 = (real *)x->data + (row * H + h) * 2 * half, *x2 = x1 + half;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                real u = x1[i], v = x2[i], turn = sign * s[i];
                x1[i] = u * c[i] - v * turn;
                x2[i] = v * c[i] + u * turn;
            }
        }
    }
    return VQ_OK;
}

/* --- activations ----------------------------------------------------------------------------- */

vq_status vq_cpu_silu_gate_fwd(void *ctx, vq_tensor *y, const vq_tensor *gate, const vq_tensor *up)
{
    vq_cpu *cpu = ctx;
    int64_t n = vq_tensor_count(y);
    real *out = y->data;
    const real *g = gate->data, *u = up->data;
#pragma omp parallel for simd num_threads(vq_cpu_threads(cpu, n)) schedule(static)
    for (int64_t i = 0; i < n; i++) out[i] = vq_silu(g[i]) * u[i];
    return VQ_OK;
}

vq_status vq_cpu_silu_gate_bwd(void *ctx, vq_tensor *dgate, vq_tensor *dup, const vq_tensor *dy,
                               const vq_tensor *gate, const vq_tensor *up)
{
    vq_cpu *cpu = ctx;
    int64_t n = vq_tensor_count(dy);
    real *dg = dgate->data, *du = dup->data;
    const real *d = dy->data, *g = gate->data, *u = up->data;
#pragma omp parallel for simd num_threads(vq_cpu_threads(cpu, n)) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        real slope = vq_silu_grad(g[i]), value = vq_silu(g[i]), dyi = d[i];
        dg[i] = dyi * u[i] * slope;
        du[i] = dyi * value;
    }
    return VQ_OK;
}

vq_status vq_cpu_relu_fwd(void *ctx, vq_tensor *y, const vq_tensor *x)
{
    vq_cpu *cpu = ctx;
    int64_t n = vq_tensor_count(y);
    real *out = y->data;
    const real *in = x->data;
    /* Written so that NaN passes. */
#pragma omp parallel for simd num_threads(vq_cpu_threads(cpu, n)) schedule(static)
    for (int64_t i = 0; i < n; i++) out[i] = in[i] < 0 ? 0 : in[i];
    return VQ_OK;
}

vq_status vq_cpu_relu_bwd(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x)
{
    vq_cpu *cpu = ctx;
    int64_t n = vq_tensor_count(dx);
    real *out = dx->data;
    const real *d = dy->data, *in = x->data;
#pragma omp parallel for simd num_threads(vq_cpu_threads(cpu, n)) schedule(static)
    for (int64_t i = 0; i < n; i++) out[i] = in[i] > 0 ? d[i] : 0;
    return VQ_OK;
}
