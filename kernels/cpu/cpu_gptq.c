/* cpu_gptq - the Hessian of a linear or the moments of its inputs, its inverse's factor, and GPTQ's
 * pass over the columns.
 *
 * The factor is had without inverting: with the order of rows and columns reversed, H = R^T R, and
 * R^-T, reversed back, is the upper triangular U with U^T U = H^-1. All of it is tiles that depend
 * on the size alone, one BLAS call on one thread each.
 *
 * In the sweep rows are independent: a thread takes some and carries them through all columns. Its
 * part of w is kept transposed, so that a vector register holds one column of LANES rows. */
#include <cblas.h>
#include <float.h>
#include <math.h>
#include <omp.h>
#include <string.h>

#include "cpu_lanes.h"
#include "cpu_ops.h"
#include "error.h"

/* --- h += alpha x^T x ------------------------------------------------------------------------ */

#ifdef VQ_CPU_F64
#define BLAS_SYRK cblas_dsyrk
#else
#define BLAS_SYRK cblas_ssyrk
#endif

#define SYRK_TILE 288
#define SYRK_DEPTH 1024 /* rows whose products are summed in real */

vq_status vq_cpu_syrk(void *ctx, vq_tensor *h, const vq_tensor *x, double alpha)
{
    const vq_cpu *cpu = ctx;
    const int64_t n = x->dim[1], rows = x->dim[0], ld = x->stride[0];
    const int64_t tiles = VQ_CEIL_DIV(n, SYRK_TILE);
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, rows *n)) schedule(dynamic, 1)
    for (int64_t task = 0; task < tiles * tiles; task++) {
        const int64_t i = task / tiles * SYRK_TILE, j = task % tiles * SYRK_TILE;
        if (j > i) continue;
        const int64_t height = VQ_MIN(SYRK_TILE, n - i), width = VQ_MIN(SYRK_TILE, n - j);
        real *sum = vq_cpu_slab(cpu);
        for (int64_t r = 0; r < rows; r += SYRK_DEPTH) {
            const real *from = (const real *)x->data + r * ld;
            const int64_t depth = VQ_MIN(SYRK_DEPTH, rows - r);
            if (i == j)
                BLAS_SYRK(CblasRowMajor, CblasLower, CblasTrans, (int)height, (int)depth, 1,
                          from + i, (int)ld, 0, sum, (int)width);
            else
                vq_cpu_blas_gemm(true, false, height, width, depth, 1, from + i, ld, from + j, ld,
                                 0, sum, width);
            for (int64_t a = 0; a < height; a++) {
                double *to = (double *)h->data + (i + a) * n + j;
                const int64_t end = i == j ? a + 1 : width;
                for (int64_t b = 0; b < end; b++) to[b] += alpha * (double)sum[a * width + b];
            }
        }
    }
    return VQ_OK;
}

/* --- by columns ------------------------------------------------------------------------------ */

#define MOMENT_COLUMNS 64

vq_status vq_cpu_moments(void *ctx, vq_tensor *sums, const vq_tensor *x, double alpha)
{
    const vq_cpu *cpu = ctx;
    const int64_t n = x->dim[1], rows = x->dim[0];
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, rows *n)) schedule(static)
    for (int64_t first = 0; first < n; first += MOMENT_COLUMNS) {
        const int64_t end = VQ_MIN(first + MOMENT_COLUMNS, n);
        double *squares = sums->data, *means = squares + n;
        for (int64_t r = 0; r < rows; r++) {
            const real *from = (const real *)x->data + r * x->stride[0];
            for (int64_t j = first; j < end; j++) {
                const double v = (double)from[j];
                squares[j] += alpha * v * v;
                means[j] += alpha * v;
            }
        }
    }
    return VQ_OK;
}

/* --- the factor of the inverse --------------------------------------------------------------- */

#define BLOCK ((int64_t)128) /* columns factored at a time */
#define TILE ((int64_t)256)  /* of the update behind them */

/* One block on the diagonal, a = R^T R in its upper triangle. A pivot that is not above its noise
 * is what rounding left of a zero: false. */
static bool factor_block(double *a, int64_t ld, int64_t n, const double *noise)
{
    for (int64_t j = 0; j < n; j++) {
        double *row = a + j * ld;
        if (!(row[j] > noise[j])) return false;
        row[j] = sqrt(row[j]);
        for (int64_t k = j + 1; k < n; k++) row[k] /= row[j];
        for (int64_t i = j + 1; i < n; i++)
            for (int64_t k = i; k < n; k++) a[i * ld + k] -= row[i] * row[k];
    }
    return true;
}

/* a [n, n] = R^T R, in its upper triangle alone. */
static bool factor(const vq_cpu *cpu, double *a, int64_t n, const double *noise)
{
    const int threads = n <= 2 * BLOCK ? 1 : cpu->n_threads;
    for (int64_t k = 0; k < n; k += BLOCK) {
        const int64_t width = VQ_MIN(BLOCK, n - k), first = k + width;
        const int64_t tiles = VQ_CEIL_DIV(n - first, TILE);
        if (!factor_block(a + k * n + k, n, width, noise + k)) return false;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t j = first + t * TILE;
            cblas_dtrsm(CblasRowMajor, CblasLeft, CblasUpper, CblasTrans, CblasNonUnit, (int)width,
                        (int)VQ_MIN(TILE, n - j), 1, a + k * n + k, (int)n, a + k * n + j, (int)n);
        }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (int64_t t = 0; t < tiles * tiles; t++) {
            const int64_t i = first + t / tiles * TILE, j = first + t % tiles * TILE;
            const int height = (int)VQ_MIN(TILE, n - i);
            if (i == j)
                cblas_dsyrk(CblasRowMajor, CblasUpper, CblasTrans, height, (int)width, -1,
                            a + k * n + i, (int)n, 1, a + i * n + i, (int)n);
            else if (i < j)
                cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, height,
                            (int)VQ_MIN(TILE, n - j), (int)width, -1, a + k * n + i, (int)n,
                            a + k * n + j, (int)n, 1, a + i * n + j, (int)n);
        }
    }
    return true;
}

/* Columns [first, first + width) of R^-T from row `first` down, into x [n - first, width]. */
static void invert_columns(const double *a, int64_t n, int64_t first, int64_t width, double *x)
{
    memset(x, 0, (size_t)((n - first) * width) * sizeof *x);
    for (int64_t j = 0; j < width; j++) x[j * width + j] = 1;
    for (int64_t i = first; i < n; i += BLOCK) {
        const int64_t height = VQ_MIN(BLOCK, n - i);
        double *to = x + (i - first) * width;
        if (i > first)
            cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)height, (int)width,
                        (int)(i - first), -1, a + first * n + i, (int)n, x, (int)width, 0, to,
                        (int)width);
        cblas_dtrsm(CblasRowMajor, CblasLeft, CblasUpper, CblasTrans, CblasNonUnit, (int)height,
                    (int)width, 1, a + i * n + i, (int)n, to, (int)width);
    }
}

/* u = the inverse of R^T, both orders reversed. */
static vq_status invert(vq_cpu *cpu, real *u, const double *a, int64_t n)
{
    double *columns;
    VQ_TRY(VQ_NEW(&cpu->scratch, cpu->n_threads * n * BLOCK, &columns));
#pragma omp parallel for num_threads(n <= 2 * BLOCK ? 1 : cpu->n_threads) schedule(dynamic, 1)
    for (int64_t t = 0; t < VQ_CEIL_DIV(n, BLOCK); t++) {
        const int64_t first = t * BLOCK, width = VQ_MIN(BLOCK, n - first);
        double *x = columns + omp_get_thread_num() * n * BLOCK;
        invert_columns(a, n, first, width, x);
        for (int64_t i = 0; i < n; i++) {
            real *to = u + (n - 1 - i) * n + n - 1 - first;
            const int64_t below = VQ_MIN(VQ_MAX(i - first + 1, 0), width);
            for (int64_t j = 0; j < below; j++) to[-j] = (real)x[(i - first) * width + j];
            for (int64_t j = below; j < width; j++) to[-j] = 0;
        }
    }
    return VQ_OK;
}

/* H's upper triangle, where nothing is, takes the reordered H and its factor; the two share the
 * diagonal, so h's own is kept aside. */
vq_status vq_cpu_inverse_factor(void *ctx, vq_tensor *u, bool *positive, vq_tensor *h,
                                const vq_tensor *order, double damp)
{
    vq_cpu *cpu = ctx;
    const int64_t n = h->dim[0];
    const int32_t *of = order->data;
    double *a = h->data, *diagonal, *noise;
    const size_t mark = vq_arena_mark(&cpu->scratch);
    VQ_TRY(VQ_NEW(&cpu->scratch, n, &diagonal));
    VQ_TRY(VQ_NEW(&cpu->scratch, n, &noise));
    for (int64_t i = 0; i < n; i++) diagonal[i] = a[i * n + i];
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, n *n))
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = of[n - 1 - i];
        a[i * n + i] = diagonal[row] + damp;
        noise[i] = (double)n * DBL_EPSILON * a[i * n + i];
        for (int64_t j = i + 1; j < n; j++) {
            const int64_t column = of[n - 1 - j];
            a[i * n + j] = a[VQ_MAX(row, column) * n + VQ_MIN(row, column)];
        }
    }
    *positive = factor(cpu, a, n, noise);
    const vq_status status = *positive ? invert(cpu, u->data, a, n) : VQ_OK;
    for (int64_t i = 0; i < n; i++) a[i * n + i] = diagonal[i];
    vq_arena_reset(&cpu->scratch, mark);
    return status;
}

/* --- the sweep ------------------------------------------------------------------------------- */

#define TILES_WANTED 8 /* where there are rows enough: for as many threads */
#define TILE_LANES 16  /* at most so many vectors of rows in a tile */

/* The rows that one thread carries through all columns. Where a row has no weight (the last tile),
 * its weights are 0 and its results are dropped. */
typedef struct rows {
    const vq_sweep_rule *rule;
    const vq_quant *q;
    const vq_tensor *ints, *rest;
    const real *u;
    const int32_t *order;
    const real
        *variance[2]; /* [in] of w's columns, and in the order of the sweep; NULL: all alike */
    const uint8_t *dead;
    int64_t first, n;   /* of w's rows */
    int64_t height;     /* n, up to a multiple of LANES */
    int64_t in, groups; /* columns; groups of them */
    real qmax;
    real *w;             /* [in, height]: columns in the order of the sweep */
    real *e;             /* [block, height]: errors of the block */
    real *scale, *zero;  /* [groups, height] */
    real *row;           /* [in]: one row as it is loaded, or its part in a running group */
    lanes *block;        /* [block]: LANES rows of a block while it is swept */
    double error[LANES]; /* sums of e^2 */
} rows;

/* One column of LANES rows. */
typedef struct column {
    real e[LANES], rest[LANES], base[LANES], n[LANES];
} column;

static bool has_running_groups(const rows *t)
{
    return t->groups > 1 && !t->rule->static_groups;
}

/* The grid of a group of one row, from its n weights and their inputs' variances. */
static void find_grid(const rows *t, int64_t group, int64_t r, const real *w, const real *variance,
                      int64_t n)
{
    const vq_sweep_rule *rule = t->rule;
    real *scale = &t->scale[group * t->height + r], *zero = &t->zero[group * t->height + r];
    real low = 0, high = 0;
    if (rule->search) {
        vq_cpu_grid_of_weights(w, variance, NULL, n, t->qmax, rule->symmetric, rule->scale_dtype,
                               scale, zero);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        low = VQ_MIN(w[i], low);
        high = VQ_MAX(w[i], high);
    }
    vq_cpu_grid_of_range(low, high, t->qmax, rule->symmetric, true, rule->scale_dtype, scale, zero);
}

static const real *variance_from(const real *variance, int64_t first)
{
    return variance ? variance + first : NULL;
}

/* Grids of the row in t->row, for groups of `width` columns in their places. */
static void find_row_grids(const rows *t, int64_t r, int64_t width)
{
    for (int64_t g = 0; g < t->groups; g++)
        find_grid(t, g, r, t->row + g * width, variance_from(t->variance[0], g * width),
                  VQ_MIN(width, t->in - g * width));
}

/* The grid of a running group that begins with column p of the sweep, for rows [r, r + LANES). */
static void find_running_grid(const rows *t, int64_t p, int64_t r)
{
    const int64_t n = VQ_MIN(t->q->group_size, t->in - p);
    for (int64_t l = 0; l < LANES; l++) {
        for (int64_t k = 0; k < n; k++) t->row[k] = t->w[(p + k) * t->height + r + l];
        find_grid(t, p / t->q->group_size, r + l, t->row, variance_from(t->variance[1], p), n);
    }
}

static void load(const rows *t, const vq_tensor *w)
{
    const size_t row_bytes = (size_t)t->in * vq_dtype_bytes(w->dtype);
    const bool whole = t->groups == 1;
    for (int64_t r = 0; r < t->height; r++) {
        if (r < t->n)
            vq_cpu_to_real(t->row, (const uint8_t *)w->data + (size_t)(t->first + r) * row_bytes,
                           w->dtype, t->in);
        else
            memset(t->row, 0, (size_t)t->in * sizeof *t->row);
        if (whole) find_row_grids(t, r, t->in);
        for (int64_t i = 0; i < t->in; i++)
            if (t->dead[i]) t->row[i] = 0;
        if (!whole && t->rule->static_groups) find_row_grids(t, r, t->q->group_size);
        for (int64_t p = 0; p < t->in; p++) t->w[p * t->height + r] = t->row[t->order[p]];
    }
}

static void round_column(const real *w, const real *s, const real *z, real diagonal, real qmax,
                         bool hessian, column *c)
{
    for (int64_t l = 0; l < LANES; l++) {
        const real u = w[l] / s[l], below = (real)floor(u), q = (real)rint(u) + z[l];
        const real base = below + z[l], n = q > 0 ? (q < qmax ? q : qmax) : 0;
        const real e = (w[l] - s[l] * (n - z[l])) / diagonal;
        real rest = u - below;
        if (hessian) {
            rest -= e;
            rest = rest > 0 ? (rest < 1 ? rest : 1) : 0;
        }
        c->e[l] = e, c->rest[l] = rest, c->n[l] = n;
        c->base[l] = base > -1 ? (base < qmax ? base : qmax) : -1;
    }
}

/* Halves of a byte, which was 0, come one by one. */
static void put_int(const vq_tensor *ints, int64_t row, int64_t i, real n)
{
    const int64_t at = row * ints->dim[1];
    switch (ints->dtype) {
    case VQ_I16: ((int16_t *)ints->data)[at + i] = (int16_t)n; return;
    case VQ_I8: ((int8_t *)ints->data)[at + i] = (int8_t)n; return;
    default: ((uint8_t *)ints->data)[at + i / 2] |= (uint8_t)((int)(n + 1) << i % 2 * 4);
    }
}

static void store(const rows *t, int64_t p, int64_t r, const column *c)
{
    const int64_t i = t->order[p];
    for (int64_t l = 0; l < VQ_MIN(LANES, t->n - r); l++) {
        const int64_t row = t->first + r + l;
        ((real *)t->rest->data)[row * t->in + i] = c->rest[l];
        put_int(&t->q->base, row, i, c->base[l]);
        put_int(t->ints, row, i, c->n[l]);
    }
}

/* Columns [from, to) of LANES rows, each error made up for within the block. */
static void sweep_block(rows *t, int64_t from, int64_t to, int64_t r)
{
    const int64_t size = t->q->group_size;
    lanes *w = t->block;
    column c;
    for (int64_t p = from; p < to; p++) w[p - from] = lanes_load(t->w + p * t->height + r);
    for (int64_t p = from; p < to; p++) {
        if (has_running_groups(t) && p % size == 0) find_running_grid(t, p, r);
        const int64_t group = t->groups == 1           ? 0
                              : t->rule->static_groups ? t->order[p] / size
                                                       : p / size;
        const int64_t at = group * t->height + r;
        const real *u = t->u + p * t->in;
        real now[LANES];
        memcpy(now, &w[p - from], sizeof now);
        round_column(now, t->scale + at, t->zero + at, u[p], t->qmax, t->rule->hessian_residual,
                     &c);
        memcpy(t->e + (p - from) * t->height + r, c.e, sizeof c.e);
        for (int64_t l = 0; l < LANES; l++) t->error[l] += (double)c.e[l] * (double)c.e[l];
        const lanes e = lanes_load(c.e);
        for (int64_t k = p + 1; k < to; k++) w[k - from] -= e * u[k];
        store(t, p, r, &c);
    }
}

/* 1 / U[j, j]^2, what of an input's square those behind it do not tell, in both orders:
 * variance [2 in]. */
static void read_variances(real *variance, const vq_tensor *u, const int32_t *order)
{
    const int64_t in = u->dim[0];
    for (int64_t p = 0; p < in; p++) {
        const real diagonal = ((const real *)u->data)[p * in + p];
        variance[order[p]] = variance[in + p] = 1 / (diagonal * diagonal);
    }
}

static double sweep_rows(rows *t, const vq_tensor *w)
{
    const int64_t height = t->height, block = t->rule->block_size;
    load(t, w);
    for (int64_t from = 0; from < t->in; from += block) {
        const int64_t to = VQ_MIN(from + block, t->in);
        for (int64_t r = 0; r < height; r += LANES) sweep_block(t, from, to, r);
        if (to < t->in)
            vq_cpu_blas_gemm(true, false, t->in - to, height, to - from, -1,
                             t->u + from * t->in + to, t->in, t->e, height, 1, t->w + to * height,
                             height);
    }
    for (int64_t r = 0; r < t->n; r++)
        for (int64_t g = 0; g < t->groups; g++) {
            const int64_t at = (t->first + r) * t->groups + g;
            ((real *)t->q->scale.data)[at] = t->scale[g * height + r];
            ((real *)t->q->zero.data)[at] = t->zero[g * height + r];
        }
    double error = 0;
    for (int64_t l = 0; l < LANES; l++) error += t->error[l];
    return error;
}

vq_status vq_cpu_gptq_sweep(void *ctx, vq_quant *q, vq_tensor *ints, vq_tensor *rest, double *error,
                            const vq_tensor *w, const vq_tensor *u, const vq_tensor *order,
                            const vq_tensor *dead, const vq_sweep_rule *rule)
{
    vq_cpu *cpu = ctx;
    const int64_t out = w->dim[0], in = w->dim[1], groups = q->scale.dim[1];
    const int64_t block = VQ_MIN(rule->block_size, in);
    const int64_t vectors = VQ_CEIL_DIV(out, TILES_WANTED * LANES);
    const int64_t height = LANES * VQ_MIN(vectors, TILE_LANES), tiles = VQ_CEIL_DIV(out, height);
    const int threads = vq_cpu_threads(cpu, out * in);
    const int64_t per_thread =
        (in + block + 2 * groups) * height + block * LANES + VQ_CEIL_DIV(in, LANES) * LANES;
    real *memory, *variance = NULL;
    double *errors;
    const size_t mark = vq_arena_mark(&cpu->scratch);
    if (rule->weigh) {
        VQ_TRY(VQ_NEW(&cpu->scratch, 2 * in, &variance));
        read_variances(variance, u, order->data);
    }
    VQ_TRY(VQ_NEW(&cpu->scratch, threads * per_thread, &memory));
    VQ_TRY(VQ_NEW(&cpu->scratch, tiles, &errors));
    memset(q->base.data, 0, vq_tensor_bytes(&q->base)); /* for put_int */
    memset(ints->data, 0, vq_tensor_bytes(ints));

#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < tiles; i++) {
        real *own = memory + omp_get_thread_num() * per_thread;
        rows t = {.rule = rule,
                  .q = q,
                  .ints = ints,
                  .rest = rest,
                  .u = u->data,
                  .order = order->data,
                  .variance = {variance, variance_from(variance, in)},
                  .dead = dead->data,
                  .first = i * height,
                  .n = VQ_MIN(height, out - i * height),
                  .in = in,
                  .groups = groups,
                  .qmax = (real)((1 << q->bits) - 1)};
        t.height = VQ_CEIL_DIV(t.n, LANES) * LANES;
        t.w = own, own += in * height;
        t.e = own, own += block * height;
        t.scale = own, own += groups * height;
        t.zero = own, own += groups * height;
        t.block = (lanes *)(void *)own, own += block * LANES;
        t.row = own;
        errors[i] = sweep_rows(&t, w);
    }
    *error = 0;
    for (int64_t i = 0; i < tiles; i++) *error += errors[i];
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}
