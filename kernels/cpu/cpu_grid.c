/* cpu_grid - scale and zero from the range of a group, and where each weight lies between integers.
 *
 * Rows are independent, so any thread may take any row. All arithmetic is in real, in the order of
 * the formulas: a division stays a division, because floor and round see its last bit. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "cpu_lanes.h"
#include "cpu_ops.h"
#include "element.h"
#include "error.h"

/* Half to even, in the width of real: double would not vectorize as well. */
#define VQ_RINT(x)                                                                                 \
    (sizeof(real) == sizeof(float) ? (real)rintf((float)(x)) : (real)rint((double)(x)))

#define PIECE 1024 /* weights converted at a time, into the first-level cache */

/* bf16 keeps more bits than f16 below 2^-17: there f16's are taken, so that a packed file of either
 * type holds the scale. */
real vq_cpu_round_scale(real s, vq_dtype scale_dtype)
{
    const float f16_max = 65504, brief = vq_bf16_to_f32(vq_f32_to_bf16((float)s));
    switch (scale_dtype) {
    case VQ_F16: return (real)VQ_MAX(vq_f16_to_f32(vq_f32_to_f16((float)s)), 0x1p-24f);
    case VQ_BF16:
        if (brief > f16_max) return (real)brief;
        return (real)VQ_MAX(vq_f16_to_f32(vq_f32_to_f16(brief)), 0x1p-24f);
    case VQ_F32: return (real)VQ_MAX((float)s, 0x1p-149f);
    default: return s;
    }
}

/* Least and greatest of n weights, widened from *low and *high. */
static void widen(real *low, real *high, const uint8_t *w, vq_dtype dtype, int64_t n)
{
    real piece[PIECE], least = *low, greatest = *high;
    size_t bytes = vq_dtype_bytes(dtype);
    for (int64_t i = 0; i < n; i += PIECE) {
        int64_t m = VQ_MIN(n - i, PIECE);
        vq_cpu_to_real(piece, w + (size_t)i * bytes, dtype, m);
#pragma omp simd reduction(min : least) reduction(max : greatest)
        for (int64_t j = 0; j < m; j++) {
            least = piece[j] < least ? piece[j] : least;
            greatest = piece[j] > greatest ? piece[j] : greatest;
        }
    }
    *low = least, *high = greatest;
}

void vq_cpu_grid_of_range(real low, real high, real qmax, bool symmetric, bool include_zero,
                          vq_dtype scale_dtype, real *scale, real *zero)
{
    vq_grid_range(&low, &high, symmetric, include_zero);
    *scale = low == high ? 1 : vq_cpu_round_scale((high - low) / qmax, scale_dtype);
    *zero = vq_grid_zero(low, *scale, qmax, symmetric, include_zero);
}

vq_status vq_cpu_grid_minmax(void *ctx, vq_tensor *scale, vq_tensor *zero, const vq_tensor *w,
                             int bits, int64_t group_size, bool symmetric, bool include_zero,
                             vq_dtype scale_dtype)
{
    const vq_cpu *cpu = ctx;
    int64_t out = w->dim[0], in = w->dim[1], groups = scale->dim[1];
    real qmax = (real)((1 << bits) - 1);
    real *s = scale->data, *z = zero->data;
    const uint8_t *weights = w->data;
    size_t bytes = vq_dtype_bytes(w->dtype);

#pragma omp parallel for num_threads(cpu->n_threads) if (out * in > VQ_CPU_GRAIN)
    for (int64_t o = 0; o < out; o++) {
        for (int64_t g = 0; g < groups; g++) {
            int64_t first = g * group_size, at = o * groups + g;
            real low = (real)INFINITY, high = -(real)INFINITY;
            widen(&low, &high, weights + (size_t)(o * in + first) * bytes, w->dtype,
                  VQ_MIN(group_size, in - first));
            vq_cpu_grid_of_range(low, high, qmax, symmetric, include_zero, scale_dtype, &s[at],
                                 &z[at]);
        }
    }
    return VQ_OK;
}

/* --- the search ------------------------------------------------------------------------------ */

#define SHRINKS 80       /* ranges tried: p = 1 - i / 100 */
#define CHECK_EVERY 1024 /* weights between two looks at whether a range has lost already */

/* How far LANES weights are from the grid, in units. */
static inline void distances(real *d, const real *w, real s, real z, real qmax, real unit)
{
    for (int64_t l = 0; l < LANES; l++) {
        const real n = VQ_RINT(w[l] / s) + z, q = n > 0 ? (n < qmax ? n : qmax) : 0;
        d[l] = (s * (q - z) - w[l]) * unit;
    }
}

/* LANES of n from the i-th on; those behind the end are 0. */
static inline const real *piece_of(const real *from, int64_t i, int64_t n, real *piece)
{
    if (n - i >= LANES) return from + i;
    memset(piece, 0, LANES * sizeof *piece);
    return memcpy(piece, from + i, (size_t)(n - i) * sizeof *piece);
}

/* The sum of all errors; once it is above `least` any number that is. */
static real error_of(const real *w, const real *variance, const real *mean, int64_t n, real s,
                     real z, real qmax, real unit, real least)
{
    real sum[LANES] = {0}, bias[LANES] = {0}, d[LANES], piece[LANES], total = 0;
    for (int64_t i = 0; i < n; i += LANES) {
        distances(d, piece_of(w, i, n, piece), s, z, qmax, unit);
        if (variance) {
            const real *v = piece_of(variance, i, n, piece);
            for (int64_t l = 0; l < LANES; l++) sum[l] += v[l] * d[l] * d[l];
        } else {
            for (int64_t l = 0; l < LANES; l++) sum[l] += vq_power_2_4(d[l]);
        }
        if (mean) {
            const real *m = piece_of(mean, i, n, piece);
            for (int64_t l = 0; l < LANES; l++) bias[l] += m[l] * d[l];
        }
        if ((i + LANES) % CHECK_EVERY && i + LANES < n) continue;
        total = lanes_sum(sum, LANES);
        if (total > least) return total;
    }
    const real all = lanes_sum(bias, LANES);
    return total + all * all;
}

void vq_cpu_grid_of_weights(const real *w, const real *variance, const real *mean, int64_t n,
                            real qmax, bool symmetric, vq_dtype scale_dtype, real *scale,
                            real *zero)
{
    real low = 0, high = 0, least = (real)INFINITY, unit = 0;
    for (int64_t i = 0; i < n; i++) {
        low = VQ_MIN(w[i], low);
        high = VQ_MAX(w[i], high);
    }
    for (int i = 0; i < SHRINKS; i++) {
        const real p = (real)(1 - (double)i / 100);
        real s, z;
        vq_cpu_grid_of_range(p * low, p * high, qmax, symmetric, true, scale_dtype, &s, &z);
        if (i == 0) *scale = s, *zero = z, unit = 1 / s; /* steps: squares stay in range */
        const real error = error_of(w, variance, mean, n, s, z, qmax, unit, least);
        if (error < least) least = error, *scale = s, *zero = z;
    }
}

vq_status vq_cpu_grid_search(void *ctx, vq_tensor *scale, vq_tensor *zero, const vq_tensor *w,
                             const vq_tensor *inputs, int bits, int64_t group_size, bool symmetric,
                             vq_dtype scale_dtype)
{
    vq_cpu *cpu = ctx;
    const real *variance = inputs ? inputs->data : NULL,
               *mean = inputs ? variance + w->dim[1] : NULL;
    const int64_t out = w->dim[0], in = w->dim[1], groups = scale->dim[1];
    const real qmax = (real)((1 << bits) - 1);
    const size_t bytes = vq_dtype_bytes(w->dtype);
    const int threads = vq_cpu_threads(cpu, out * in);
    const int64_t width = VQ_MIN(group_size, in);
    real *memory;
    const size_t mark = vq_arena_mark(&cpu->scratch);
    VQ_TRY(VQ_NEW(&cpu->scratch, threads * width, &memory));
#pragma omp parallel for num_threads(threads)
    for (int64_t o = 0; o < out; o++) {
        real *group = memory + omp_get_thread_num() * width;
        for (int64_t g = 0; g < groups; g++) {
            const int64_t first = g * group_size, n = VQ_MIN(group_size, in - first);
            vq_cpu_to_real(group, (const uint8_t *)w->data + (size_t)(o * in + first) * bytes,
                           w->dtype, n);
            vq_cpu_grid_of_weights(group, variance ? variance + first : NULL,
                                   mean ? mean + first : NULL, n, qmax, symmetric, scale_dtype,
                                   (real *)scale->data + o * groups + g,
                                   (real *)zero->data + o * groups + g);
        }
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

/* --- where weights lie ----------------------------------------------------------------------- */

/* One group of one row. A weight that is NaN gives base -1 and rest NaN. */
#define SPLIT(type, to)                                                                            \
    do {                                                                                           \
        type *b = (type *)(to);                                                                    \
        for (int64_t j = 0; j < m; j++) {                                                          \
            real u = piece[j] / s, below = (real)floor(u), q = below + z;                          \
            r[j] = u - below;                                                                      \
            b[j] = (type)(q > -1 ? (q < qmax ? q : qmax) : -1);                                    \
        }                                                                                          \
    } while (0)

vq_status vq_cpu_grid_split(void *ctx, vq_tensor *base, vq_tensor *rest, const vq_tensor *w,
                            const vq_tensor *scale, const vq_tensor *zero, int bits,
                            int64_t group_size)
{
    const vq_cpu *cpu = ctx;
    int64_t out = w->dim[0], in = w->dim[1], groups = scale->dim[1];
    real qmax = (real)((1 << bits) - 1);
    size_t bytes = vq_dtype_bytes(w->dtype);

#pragma omp parallel for num_threads(cpu->n_threads) if (out * in > VQ_CPU_GRAIN)
    for (int64_t o = 0; o < out; o++) {
        real piece[PIECE];
        int8_t unpacked[PIECE];
        for (int64_t g = 0; g < groups; g++) {
            real s = ((const real *)scale->data)[o * groups + g];
            real z = ((const real *)zero->data)[o * groups + g];
            int64_t end = VQ_MIN((g + 1) * group_size, in);
            for (int64_t i = g * group_size; i < end; i += PIECE) {
                int64_t at = o * in + i, m = VQ_MIN(end - i, PIECE);
                real *r = (real *)rest->data + at;
                vq_cpu_to_real(piece, (const uint8_t *)w->data + (size_t)at * bytes, w->dtype, m);
                if (base->dtype == VQ_I16)
                    SPLIT(int16_t, (int16_t *)base->data + at);
                else if (base->dtype == VQ_I8)
                    SPLIT(int8_t, (int8_t *)base->data + at);
                else
                    SPLIT(int8_t, unpacked);
                if (base->dtype == VQ_U8) vq_cpu_pack_ints(base, o, i, m, unpacked);
            }
        }
    }
    return VQ_OK;
}

vq_status vq_cpu_grid_round(void *ctx, vq_tensor *out, const vq_tensor *w, const vq_quant *q)
{
    const vq_cpu *cpu = ctx;
    int64_t rows = w->dim[0], in = w->dim[1], groups = q->scale.dim[1];
    real qmax = (real)((1 << q->bits) - 1);
    size_t bytes = vq_dtype_bytes(w->dtype);

#pragma omp parallel for num_threads(cpu->n_threads) if (rows * in > VQ_CPU_GRAIN)
    for (int64_t o = 0; o < rows; o++) {
        real *y = (real *)out->data + o * in;
        vq_cpu_to_real(y, (const uint8_t *)w->data + (size_t)(o * in) * bytes, w->dtype, in);
        for (int64_t g = 0; g < groups; g++) {
            real s = ((const real *)q->scale.data)[o * groups + g];
            real z = ((const real *)q->zero.data)[o * groups + g];
            int64_t end = VQ_MIN((g + 1) * q->group_size, in);
            for (int64_t i = g * q->group_size; i < end; i++) {
                real n = VQ_RINT(y[i] / s) + z;
                y[i] = s * (VQ_MAX(0, VQ_MIN(n, qmax)) - z);
            }
        }
    }
    return VQ_OK;
}

vq_status vq_cpu_grid_value(void *ctx, vq_tensor *out, const vq_tensor *ints, const vq_quant *q)
{
    const vq_cpu *cpu = ctx;
    int64_t rows = out->dim[0], in = out->dim[1], groups = q->scale.dim[1];
#pragma omp parallel for num_threads(cpu->n_threads) if (rows * in > VQ_CPU_GRAIN)
    for (int64_t o = 0; o < rows; o++) {
        int8_t unpacked[VQ_CPU_UNPACKED(PIECE)];
        for (int64_t g = 0; g < groups; g++) {
            real s = ((const real *)q->scale.data)[o * groups + g];
            real z = ((const real *)q->zero.data)[o * groups + g];
            int64_t end = VQ_MIN((g + 1) * q->group_size, in);
            for (int64_t i = g * q->group_size; i < end; i += PIECE) {
                const int64_t n = VQ_MIN(end - i, PIECE);
                const void *from = vq_cpu_ints(ints, o, i, n, unpacked);
                real *w = (real *)out->data + o * in + i;
                if (ints->dtype == VQ_I16)
                    for (int64_t j = 0; j < n; j++)
                        w[j] = s * ((real)((const int16_t *)from)[j] - z);
                else
                    for (int64_t j = 0; j < n; j++)
                        w[j] = s * ((real)((const int8_t *)from)[j] - z);
            }
        }
    }
    return VQ_OK;
}
