/* op_cases.h - one list of op cases with three uses: values against plain loops in f64, equal bits
 * for any number of threads (tests/op), and time (bench/bench_ops.c).
 *
 * A case is an op and its sizes. make() builds arguments from a seed: the same numbers for every
 * backend, rounded to f32 so that each holds them exactly (weights in half precision, to that).
 * run() calls the op. reference(), on arguments made for f64, is the formula written plainly; where
 * it is NULL the f64 build of the CPU's kernels is the reference, whose backward functions
 * test_gradients checks. */
#pragma once
#include <math.h>
#include <string.h>

#include "backend.h"
#include "error.h"
#include "grid.h"
#include "ints.h"
#include "rng.h"

typedef struct op_args {
    vq_tensor in[8], out[5];
    int n_in, n_out;
    vq_quant quant;
    double loss;
} op_args;

typedef struct op_kind {
    const char *name;
    const char *sizes; /* what size[] holds */
    vq_status (*make)(const vq_backend *be, vq_arena *arena, const int64_t *size, op_args *a);
    vq_status (*run)(const vq_backend *be, const int64_t *size, op_args *a);
    void (*reference)(const int64_t *size, op_args *a);
    double (*flops)(const int64_t *size); /* NULL: the op is bound by memory, not arithmetic */
} op_kind;

typedef struct op_case {
    const op_kind *kind;
    int64_t size[8];
} op_case;

/* --- elements -------------------------------------------------------------------------------- */

/* The place of element i in row-major order; only the first dimension may have gaps. */
static inline int64_t op_place(const vq_tensor *t, int64_t i)
{
    int64_t row = vq_tensor_count(t) / t->dim[0];
    return i / row * t->stride[0] + i % row;
}

static inline double op_get(const vq_tensor *t, int64_t i)
{
    int64_t at = op_place(t, i);
    switch (t->dtype) {
    case VQ_F32: return (double)((const float *)t->data)[at];
    case VQ_F64: return ((const double *)t->data)[at];
    case VQ_F16: return (double)vq_f16_to_f32(((const uint16_t *)t->data)[at]);
    case VQ_BF16: return (double)vq_bf16_to_f32(((const uint16_t *)t->data)[at]);
    case VQ_I8: return ((const int8_t *)t->data)[at];
    case VQ_I16: return ((const int16_t *)t->data)[at];
    case VQ_I32: return ((const int32_t *)t->data)[at];
    case VQ_U8: return ((const uint8_t *)t->data)[at];
    case VQ_U16: return ((const uint16_t *)t->data)[at];
    default: return ((const uint32_t *)t->data)[at];
    }
}

static inline void op_set(vq_tensor *t, int64_t i, double x)
{
    int64_t at = op_place(t, i);
    switch (t->dtype) {
    case VQ_F32: ((float *)t->data)[at] = (float)x; break;
    case VQ_F64: ((double *)t->data)[at] = x; break;
    case VQ_F16: ((uint16_t *)t->data)[at] = vq_f32_to_f16((float)x); break;
    case VQ_BF16: ((uint16_t *)t->data)[at] = vq_f32_to_bf16((float)x); break;
    case VQ_I8: ((int8_t *)t->data)[at] = (int8_t)x; break;
    case VQ_I16: ((int16_t *)t->data)[at] = (int16_t)x; break;
    case VQ_I32: ((int32_t *)t->data)[at] = (int32_t)x; break;
    case VQ_U8: ((uint8_t *)t->data)[at] = (uint8_t)x; break;
    case VQ_U16: ((uint16_t *)t->data)[at] = (uint16_t)x; break;
    default: ((uint32_t *)t->data)[at] = (uint32_t)x;
    }
}

/* Uniform in [low, high), the numbers of stream `stream`; whole numbers in integer tensors. */
static inline void op_fill(vq_tensor *t, uint64_t stream, double low, double high)
{
    int64_t n = vq_tensor_count(t);
    for (int64_t i = 0; i < n; i++) {
        double x = low + (high - low) * vq_rng_uniform(7, stream, (uint64_t)i);
        op_set(t, i, vq_dtype_is_float(t->dtype) ? (double)(float)x : floor(x));
    }
}

/* The next input or output, filled with numbers in [low, high); gap is left after each row. */
static inline vq_status op_tensor(vq_arena *arena, op_args *a, bool output, vq_dtype dtype,
                                  double low, double high, int64_t gap, int ndim,
                                  const int64_t *dim)
{
    vq_tensor *t = output ? &a->out[a->n_out++] : &a->in[a->n_in++];
    int64_t row = 1;
    for (int i = 1; i < ndim; i++) row *= dim[i];
    VQ_TRY(vq_tensor_new(arena, VQ_HOST, dtype, 2, (int64_t[]){dim[0], row + gap}, t));
    uint8_t *data = t->data;
    memset(data, 0, vq_tensor_bytes(t));
    *t = ndim == 1   ? vq_tensor_1d(data, dtype, dim[0])
         : ndim == 2 ? vq_tensor_2d(data, dtype, dim[0], dim[1])
         : ndim == 3 ? vq_tensor_3d(data, dtype, dim[0], dim[1], dim[2])
                     : vq_tensor_4d(data, dtype, dim[0], dim[1], dim[2], dim[3]);
    t->stride[0] = row + gap;
    op_fill(t, (uint64_t)(output ? 100 + a->n_out : a->n_in), low, high);
    return VQ_OK;
}

typedef vq_status (*op_run_fn)(const vq_backend *be, const int64_t *size, op_args *a);

/* Copies the elements and gaps of t, on the host, to a tensor on be's device, or back. */
static inline vq_status op_move(const vq_backend *be, vq_tensor *there, const vq_tensor *t,
                                bool back)
{
    vq_tensor all = vq_tensor_2d(there->data, t->dtype, t->dim[0], t->stride[0]);
    all.place = be->place;
    return back ? vq_download(be, t->data, &all) : vq_upload(be, &all, t->data);
}

/* Arguments that lie on the host, on be's device: copies of them in arena, or themselves. */
static inline vq_status op_to_device(const vq_backend *be, vq_arena *arena, const op_args *a,
                                     op_args *there)
{
    *there = *a;
    if (be->place == VQ_HOST) return VQ_OK;
    vq_tensor *const part[] = {&there->quant.base, &there->quant.scale, &there->quant.zero,
                               &there->quant.idx};
    for (int i = 0; i < a->n_in + a->n_out; i++) {
        const vq_tensor *t = i < a->n_in ? &a->in[i] : &a->out[i - a->n_in];
        vq_tensor *to = i < a->n_in ? &there->in[i] : &there->out[i - a->n_in], all;
        VQ_TRY(vq_tensor_new(arena, be->place, t->dtype, VQ_DIMS(t->dim[0], t->stride[0]), &all));
        to->data = all.data;
        to->place = be->place;
        VQ_TRY(op_move(be, to, t, false));
        for (int j = 0; j < VQ_COUNT(part); j++)
            if (part[j]->data == t->data) *part[j] = *to;
    }
    return VQ_OK;
}

/* Runs an op whose arguments lie on the host: on be's device with copies of them, and back. */
static inline vq_status op_run(const vq_backend *be, vq_arena *arena, op_run_fn run,
                               const int64_t *size, op_args *a)
{
    if (be->place == VQ_HOST) return run(be, size, a);
    op_args there;
    size_t mark = vq_arena_mark(arena);
    VQ_TRY(op_to_device(be, arena, a, &there));
    VQ_TRY(run(be, size, &there));
    a->loss = there.loss;
    for (int i = 0; i < a->n_out; i++) VQ_TRY(op_move(be, &there.out[i], &a->out[i], true));
    vq_arena_reset(arena, mark);
    return VQ_OK;
}

#define OP_IN(dtype, low, high, ...)                                                               \
    VQ_TRY(op_tensor(arena, a, false, dtype, low, high, 0, VQ_DIMS(__VA_ARGS__)))
#define OP_OUT(dtype, ...) VQ_TRY(op_tensor(arena, a, true, dtype, -1, 1, 0, VQ_DIMS(__VA_ARGS__)))
#define OP_IN_GAP(dtype, gap, ...)                                                                 \
    VQ_TRY(op_tensor(arena, a, false, dtype, -1, 1, gap, VQ_DIMS(__VA_ARGS__)))
#define OP_OUT_GAP(dtype, gap, ...)                                                                \
    VQ_TRY(op_tensor(arena, a, true, dtype, -1, 1, gap, VQ_DIMS(__VA_ARGS__)))

/* Integers (vq_quant) in [low, high) of a weight [out, in]. */
static inline vq_status op_ints(vq_arena *arena, op_args *a, bool output, int64_t bits, int low,
                                double high, int64_t out, int64_t in)
{
    const vq_tensor ints = vq_quant_ints((int)bits, out, in);
    VQ_TRY(op_tensor(arena, a, output, ints.dtype, low, high, 0, 2, ints.dim));
    if (ints.dtype != VQ_U8) return VQ_OK;
    vq_tensor *t = output ? &a->out[a->n_out - 1] : &a->in[a->n_in - 1];
    for (int64_t i = 0; i < out * in; i++)
        int_set(t, in, i, low + (int)((high - low) * vq_rng_uniform(7, 99, (uint64_t)i)));
    return VQ_OK;
}

/* What VQ_F32 in a list of cases means: "the backend's own type". */
static inline vq_dtype op_dtype(const vq_backend *be, int64_t dtype)
{
    return dtype == VQ_F32 ? be->act : (vq_dtype)dtype;
}

/* --- gemm: size = m, n, k, trans_a, trans_b, type of b, gap of rows, beta != 0 ---------------- */

static vq_status gemm_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    OP_IN_GAP(be->act, s[6], s[3] ? s[2] : s[0], s[3] ? s[0] : s[2]);
    OP_IN_GAP(op_dtype(be, s[5]), s[6], s[4] ? s[1] : s[2], s[4] ? s[2] : s[1]);
    OP_OUT_GAP(be->act, s[6], s[0], s[1]);
    return VQ_OK;
}

static vq_status gemm_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_gemm(be, &a->out[0], &a->in[0], s[3], &a->in[1], s[4], s[7] ? 0.75 : 1,
                   s[7] ? 0.5 : 0);
}

static void gemm_reference(const int64_t *s, op_args *a)
{
    for (int64_t i = 0; i < s[0]; i++)
        for (int64_t j = 0; j < s[1]; j++) {
            double sum = 0;
            for (int64_t k = 0; k < s[2]; k++)
                sum += op_get(&a->in[0], s[3] ? k * s[0] + i : i * s[2] + k) *
                       op_get(&a->in[1], s[4] ? j * s[2] + k : k * s[1] + j);
            double old = op_get(&a->out[0], i * s[1] + j);
            op_set(&a->out[0], i * s[1] + j, s[7] ? 0.75 * sum + 0.5 * old : sum);
        }
}

static double gemm_flops(const int64_t *s)
{
    return 2.0 * (double)s[0] * (double)s[1] * (double)s[2];
}

/* --- embed, bias_add, add -------------------------------------------------------------------- */

static vq_status embed_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    OP_IN(op_dtype(be, s[3]), -1, 1, s[1], s[2]);
    OP_IN(VQ_I32, 0, (double)s[1], s[0]);
    OP_OUT(be->act, s[0], s[2]);
    return VQ_OK;
}

static vq_status embed_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_embed(be, &a->out[0], &a->in[0], &a->in[1], s[4]);
}

static void embed_reference(const int64_t *s, op_args *a)
{
    for (int64_t i = 0; i < s[0] * s[2]; i++) {
        int64_t id = (int64_t)op_get(&a->in[1], i / s[2]);
        op_set(&a->out[0], i,
               (s[4] ? op_get(&a->out[0], i) : 0) + op_get(&a->in[0], id * s[2] + i % s[2]));
    }
}

static vq_status bias_add_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    OP_IN(op_dtype(be, s[2]), -1, 1, s[1]);
    OP_OUT(be->act, s[0], s[1]);
    return VQ_OK;
}

static vq_status bias_add_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_bias_add(be, &a->out[0], &a->in[0]);
}

static void bias_add_reference(const int64_t *s, op_args *a)
{
    for (int64_t i = 0; i < s[0] * s[1]; i++)
        op_set(&a->out[0], i, op_get(&a->out[0], i) + op_get(&a->in[0], i % s[1]));
}

static vq_status add_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    OP_IN(be->act, -1, 1, s[0], s[1]);
    OP_OUT(be->act, s[0], s[1]);
    return VQ_OK;
}

static vq_status add_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_add(be, &a->out[0], &a->in[0]);
}

static void add_reference(const int64_t *s, op_args *a)
{
    for (int64_t i = 0; i < s[0] * s[1]; i++)
        op_set(&a->out[0], i, op_get(&a->out[0], i) + op_get(&a->in[0], i));
}

/* --- norms: size = n, E, type of weight, affine, add ------------------------------------------ */

static vq_status rmsnorm_fwd_make(const vq_backend *be, vq_arena *arena, const int64_t *s,
                                  op_args *a)
{
    OP_IN(be->act, -2, 3, s[0], s[1]);
    OP_IN(op_dtype(be, s[2]), 0.5, 1.5, s[1]);
    OP_OUT(be->act, s[0], s[1]);
    OP_OUT(be->real, s[0]);
    return VQ_OK;
}

static vq_status rmsnorm_fwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_rmsnorm_fwd(be, &a->out[0], &a->out[1], &a->in[0], &a->in[1], 1e-5);
}

static void rmsnorm_fwd_reference(const int64_t *s, op_args *a)
{
    for (int64_t i = 0; i < s[0]; i++) {
        double sum = 0;
        for (int64_t j = 0; j < s[1]; j++) sum += pow(op_get(&a->in[0], i * s[1] + j), 2);
        double rstd = 1 / sqrt(sum / (double)s[1] + 1e-5);
        op_set(&a->out[1], i, rstd);
        for (int64_t j = 0; j < s[1]; j++)
            op_set(&a->out[0], i * s[1] + j,
                   op_get(&a->in[0], i * s[1] + j) * rstd * op_get(&a->in[1], j));
    }
}

/* What a norm's backward adds to: nothing, what dx was, or another tensor. */
static const vq_tensor *norm_plus(const op_args *a, int other, int64_t which)
{
    return which == 0 ? NULL : which == 1 ? &a->out[0] : &a->in[other];
}

static vq_status rmsnorm_bwd_make(const vq_backend *be, vq_arena *arena, const int64_t *s,
                                  op_args *a)
{
    VQ_TRY(rmsnorm_fwd_make(be, arena, s, a)); /* in: x, weight; out: y (then dx), rstd */
    VQ_TRY(op_run(be, arena, rmsnorm_fwd_run, s, a));
    OP_IN(be->act, -1, 1, s[0], s[1]); /* dy */
    OP_IN(be->act, -1, 1, s[0], s[1]); /* plus */
    op_fill(&a->out[0], 200, -1, 1);
    return VQ_OK;
}

static vq_status rmsnorm_bwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_rmsnorm_bwd(be, &a->out[0], &a->in[2], &a->in[0], &a->in[1], &a->out[1],
                          norm_plus(a, 3, s[4]));
}

static vq_status layernorm_fwd_make(const vq_backend *be, vq_arena *arena, const int64_t *s,
                                    op_args *a)
{
    VQ_TRY(rmsnorm_fwd_make(be, arena, s, a));
    OP_IN(op_dtype(be, s[2]), -1, 1, s[1]); /* bias */
    OP_OUT(be->real, s[0]);                 /* mean */
    return VQ_OK;
}

static vq_status layernorm_fwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_layernorm_fwd(be, &a->out[0], &a->out[2], &a->out[1], &a->in[0],
                            s[3] ? &a->in[1] : NULL, s[3] ? &a->in[2] : NULL, 1e-5);
}

static void layernorm_fwd_reference(const int64_t *s, op_args *a)
{
    for (int64_t i = 0; i < s[0]; i++) {
        double mean = 0, var = 0;
        for (int64_t j = 0; j < s[1]; j++) mean += op_get(&a->in[0], i * s[1] + j);
        mean /= (double)s[1];
        for (int64_t j = 0; j < s[1]; j++) var += pow(op_get(&a->in[0], i * s[1] + j) - mean, 2);
        double rstd = 1 / sqrt(var / (double)s[1] + 1e-5);
        op_set(&a->out[1], i, rstd);
        op_set(&a->out[2], i, mean);
        for (int64_t j = 0; j < s[1]; j++) {
            double y = (op_get(&a->in[0], i * s[1] + j) - mean) * rstd;
            op_set(&a->out[0], i * s[1] + j,
                   s[3] ? y * op_get(&a->in[1], j) + op_get(&a->in[2], j) : y);
        }
    }
}

static vq_status layernorm_bwd_make(const vq_backend *be, vq_arena *arena, const int64_t *s,
                                    op_args *a)
{
    VQ_TRY(layernorm_fwd_make(be, arena, s, a));
    VQ_TRY(op_run(be, arena, layernorm_fwd_run, s, a));
    OP_IN(be->act, -1, 1, s[0], s[1]); /* dy */
    OP_IN(be->act, -1, 1, s[0], s[1]); /* plus */
    op_fill(&a->out[0], 200, -1, 1);
    return VQ_OK;
}

static vq_status layernorm_bwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_layernorm_bwd(be, &a->out[0], &a->in[3], &a->in[0], s[3] ? &a->in[1] : NULL,
                            &a->out[2], &a->out[1], norm_plus(a, 4, s[4]));
}

/* --- rope: size = B, T, H, S, first, inverse -------------------------------------------------- */

static vq_status rope_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    OP_OUT(be->act, s[0], s[1], s[2], s[3]);
    OP_IN(be->real, -1, 1, s[4] + s[1] + 1, s[3] / 2);
    OP_IN(be->real, -1, 1, s[4] + s[1] + 1, s[3] / 2);
    return VQ_OK;
}

static vq_status rope_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_rope(be, &a->out[0], &a->in[0], &a->in[1], s[4], s[5]);
}

static void rope_reference(const int64_t *s, op_args *a)
{
    int64_t half = s[3] / 2;
    for (int64_t head = 0; head < s[0] * s[1] * s[2]; head++)
        for (int64_t i = 0; i < half; i++) {
            int64_t row = s[4] + head / s[2] % s[1], at = head * s[3] + i;
            double c = op_get(&a->in[0], row * half + i), n = op_get(&a->in[1], row * half + i);
            double x1 = op_get(&a->out[0], at), x2 = op_get(&a->out[0], at + half);
            if (s[5]) n = -n;
            op_set(&a->out[0], at, x1 * c - x2 * n);
            op_set(&a->out[0], at + half, x2 * c + x1 * n);
        }
}

/* --- attention: size = B, T, T_k, H, G, S, gap -------------------------------------------------
 */

static vq_status attention_fwd_make(const vq_backend *be, vq_arena *arena, const int64_t *s,
                                    op_args *a)
{
    OP_IN(be->act, -2, 2, s[0], s[1], s[3], s[5]);
    OP_IN_GAP(be->act, s[6], s[0], s[2], s[4], s[5]);
    OP_IN_GAP(be->act, s[6], s[0], s[2], s[4], s[5]);
    OP_OUT(be->act, s[0], s[1], s[3], s[5]);
    OP_OUT(be->real, s[0], s[3], s[1]);
    return VQ_OK;
}

static double attention_scale(const int64_t *s)
{
    return 1 / sqrt((double)s[5]);
}

static vq_status attention_fwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_attention_fwd(be, &a->out[0], &a->out[1], &a->in[0], &a->in[1], &a->in[2],
                            attention_scale(s));
}

static void attention_fwd_reference(const int64_t *s, op_args *a)
{
    int64_t B = s[0], T = s[1], T_k = s[2], H = s[3], G = s[4], S = s[5];
    for (int64_t row = 0; row < B * H * T; row++) {
        int64_t t = row % T, h = row / T % H, b = row / T / H, g = h / (H / G);
        int64_t seen = T_k - T + t + 1, q = ((b * T + t) * H + h) * S;
        double top = -INFINITY, sum = 0;
        for (int pass = 0; pass < 3; pass++) {
            if (pass == 2)
                for (int64_t j = 0; j < S; j++) op_set(&a->out[0], q + j, 0);
            for (int64_t u = 0; u < seen; u++) {
                int64_t k = ((b * T_k + u) * G + g) * S;
                double dot = 0;
                for (int64_t j = 0; j < S; j++)
                    dot += op_get(&a->in[0], q + j) * op_get(&a->in[1], k + j);
                dot *= attention_scale(s);
                if (pass == 0) top = fmax(top, dot);
                if (pass == 1) sum += exp(dot - top);
                if (pass == 2)
                    for (int64_t j = 0; j < S; j++)
                        op_set(&a->out[0], q + j,
                               op_get(&a->out[0], q + j) +
                                   exp(dot - top) / sum * op_get(&a->in[2], k + j));
            }
        }
        op_set(&a->out[1], row, top + log(sum));
    }
}

/* Products over the pairs that the causal mask leaves. */
static double attention_fwd_flops(const int64_t *s)
{
    double pairs = (double)s[1] * ((double)(s[2] - s[1]) + 0.5 * (double)(s[1] + 1));
    return 4 * (double)s[0] * (double)s[3] * (double)s[5] * pairs;
}

static double attention_bwd_flops(const int64_t *s)
{
    return 2.5 * attention_fwd_flops(s);
}

static vq_status attention_bwd_make(const vq_backend *be, vq_arena *arena, const int64_t *s,
                                    op_args *a)
{
    op_args fwd = {0};
    VQ_TRY(attention_fwd_make(be, arena, s, &fwd));
    VQ_TRY(op_run(be, arena, attention_fwd_run, s, &fwd));
    memcpy(a->in, fwd.in, sizeof a->in);
    a->in[3] = fwd.out[0];
    a->in[4] = fwd.out[1];
    a->n_in = 5;
    OP_IN(be->act, -1, 1, s[0], s[1], s[3], s[5]); /* dout */
    OP_OUT(be->act, s[0], s[1], s[3], s[5]);
    OP_OUT_GAP(be->act, s[6], s[0], s[2], s[4], s[5]);
    OP_OUT_GAP(be->act, s[6], s[0], s[2], s[4], s[5]);
    return VQ_OK;
}

static vq_status attention_bwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_attention_bwd(be, &a->out[0], &a->out[1], &a->out[2], &a->in[5], &a->in[0], &a->in[1],
                            &a->in[2], &a->in[3], &a->in[4], attention_scale(s));
}

/* --- activations: size = n, F ----------------------------------------------------------------- */

static vq_status silu_gate_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    OP_IN(be->act, -8, 8, s[0], s[1]);
    OP_IN(be->act, -1, 1, s[0], s[1]);
    OP_IN(be->act, -1, 1, s[0], s[1]); /* dy */
    OP_OUT(be->act, s[0], s[1]);
    OP_OUT(be->act, s[0], s[1]);
    return VQ_OK;
}

static vq_status silu_gate_fwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_silu_gate_fwd(be, &a->out[0], &a->in[0], &a->in[1]);
}

static void silu_gate_fwd_reference(const int64_t *s, op_args *a)
{
    for (int64_t i = 0; i < s[0] * s[1]; i++) {
        double x = op_get(&a->in[0], i);
        op_set(&a->out[0], i, x / (1 + exp(-x)) * op_get(&a->in[1], i));
    }
}

static vq_status silu_gate_bwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_silu_gate_bwd(be, &a->out[0], &a->out[1], &a->in[2], &a->in[0], &a->in[1]);
}

static vq_status relu_fwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_relu_fwd(be, &a->out[0], &a->in[0]);
}

static void relu_fwd_reference(const int64_t *s, op_args *a)
{
    for (int64_t i = 0; i < s[0] * s[1]; i++) op_set(&a->out[0], i, fmax(op_get(&a->in[0], i), 0));
}

static vq_status relu_bwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_relu_bwd(be, &a->out[0], &a->in[2], &a->in[0]);
}

static void relu_bwd_reference(const int64_t *s, op_args *a)
{
    for (int64_t i = 0; i < s[0] * s[1]; i++)
        op_set(&a->out[0], i, op_get(&a->in[0], i) > 0 ? op_get(&a->in[2], i) : 0);
}

/* --- round: size = out, in, K (0: own codes), D, bits, group, type of idx, hard ----------------
 */

static vq_status round_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    int64_t n_vec = VQ_CEIL_DIV(s[0] * s[1], s[3]), K = s[2] ? s[2] : n_vec;
    int64_t groups = VQ_CEIL_DIV(s[1], s[5]);
    double qmax = (double)((1 << s[4]) - 1);
    OP_IN(be->real, -2.6, 2.6, K, s[3]);
    VQ_TRY(op_ints(arena, a, false, s[4], -1, qmax + 1, s[0], s[1]));
    OP_IN(be->real, 0.01, 0.02, s[0], groups);
    OP_IN(be->real, 0, qmax, s[0], groups);
    OP_IN((vq_dtype)(s[2] ? s[6] : VQ_U32), 0, (double)K, n_vec);
    OP_OUT(be->act, s[0], s[1]); /* w, or dw as it is filled */
    OP_OUT(be->real, K, s[3]);   /* dcodes */
    int64_t n_zeros = s[0] * groups;
    for (int64_t i = 0; i < n_zeros; i++) op_set(&a->in[3], i, floor(op_get(&a->in[3], i)));
    a->quant = (vq_quant){.base = a->in[1],
                          .scale = a->in[2],
                          .zero = a->in[3],
                          .idx = a->in[4],
                          .bits = (int)s[4],
                          .group_size = s[5]};
    if (s[2] == 0) a->quant.idx.data = NULL;
    return VQ_OK;
}

static vq_status round_fwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_round_fwd(be, &a->out[0], &a->quant, &a->in[0], s[7] ? VQ_HARD : VQ_SOFT);
}

static void round_fwd_reference(const int64_t *s, op_args *a)
{
    double qmax = (double)((1 << s[4]) - 1);
    for (int64_t p = 0; p < s[0] * s[1]; p++) {
        int64_t group = p / s[1] * VQ_CEIL_DIV(s[1], s[5]) + p % s[1] / s[5];
        int64_t code = s[2] ? (int64_t)op_get(&a->in[4], p / s[3]) : p / s[3];
        double logit = op_get(&a->in[0], code * s[3] + p % s[3]);
        double r = fmin(fmax(1.2 / (1 + exp(-logit)) - 0.1, 0), 1);
        if (s[7]) r = logit >= 0;
        double q = fmin(fmax(int_at(&a->in[1], s[1], p) + r, 0), qmax);
        op_set(&a->out[0], p, op_get(&a->in[2], group) * (q - op_get(&a->in[3], group)));
    }
}

static vq_status round_bwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_round_bwd(be, &a->out[1], &a->out[0], &a->quant, &a->in[0]);
}

/* in: as round_make, then the first scales and the factors; out: w or dw, dcodes, dfactor */
static vq_status round_scale_make(const vq_backend *be, vq_arena *arena, const int64_t *s,
                                  op_args *a)
{
    int64_t groups = VQ_CEIL_DIV(s[1], s[5]);
    VQ_TRY(round_make(be, arena, s, a));
    OP_IN(be->real, 0.01, 0.02, s[0], groups);
    OP_IN(be->real, 0.5, 1.5, s[0], groups);
    OP_OUT(be->real, s[0], groups);
    return VQ_OK;
}

static vq_status round_scale_fwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_round_scale_fwd(be, &a->out[2], &a->in[5], &a->in[6], (vq_dtype)s[7]);
}

static void round_scale_fwd_reference(const int64_t *s, op_args *a)
{
    int64_t n = vq_tensor_count(&a->out[2]);
    for (int64_t i = 0; i < n; i++) {
        double x = op_get(&a->in[5], i) * op_get(&a->in[6], i);
        float f = (float)x;
        op_set(&a->out[2], i,
               s[7] == VQ_BF16  ? (double)vq_bf16_to_f32(vq_f32_to_bf16(f))
               : s[7] == VQ_F16 ? (double)vq_f16_to_f32(vq_f32_to_f16(f))
                                : (double)f);
    }
}

static vq_status round_scale_bwd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_round_scale_bwd(be, &a->out[2], &a->out[0], &a->quant, &a->in[0], &a->in[5]);
}

static void round_scale_bwd_reference(const int64_t *s, op_args *a)
{
    double qmax = (double)((1 << s[4]) - 1);
    for (int64_t p = 0; p < s[0] * s[1]; p++) {
        int64_t group = p / s[1] * VQ_CEIL_DIV(s[1], s[5]) + p % s[1] / s[5];
        int64_t code = s[2] ? (int64_t)op_get(&a->in[4], p / s[3]) : p / s[3];
        double logit = op_get(&a->in[0], code * s[3] + p % s[3]);
        double r = fmin(fmax(1.2 / (1 + exp(-logit)) - 0.1, 0), 1);
        double q = fmin(fmax(int_at(&a->in[1], s[1], p) + r, 0), qmax) - op_get(&a->in[3], group);
        op_set(&a->out[2], group,
               op_get(&a->out[2], group) + op_get(&a->in[5], group) * op_get(&a->out[0], p) * q);
    }
}

/* An order of chance, and where it has put each column. */
static inline void op_shuffle(vq_tensor *order, vq_tensor *turn)
{
    int32_t *at = order->data;
    for (int64_t j = 0; j < order->dim[0]; j++) {
        const int64_t other = vq_rng_below(7, 98, (uint64_t)j, j + 1);
        at[j] = at[other];
        at[other] = (int32_t)j;
    }
    for (int64_t j = 0; j < order->dim[0]; j++) ((int32_t *)turn->data)[at[j]] = (int32_t)j;
}

/* size = out, in, bits of integers (0: floats), type of floats, back. in: a weight, an order and
 * the way back from it */
static vq_status arrange_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    if (s[2]) {
        VQ_TRY(op_ints(arena, a, false, s[2], -1, (double)(1 << s[2]), s[0], s[1]));
        VQ_TRY(op_ints(arena, a, true, s[2], -1, 0, s[0], s[1]));
    } else {
        OP_IN(op_dtype(be, s[3]), -1, 1, s[0], s[1]);
        OP_OUT(op_dtype(be, s[3]), s[0], s[1]);
    }
    OP_IN(VQ_I32, 0, 1, s[1]);
    OP_IN(VQ_I32, 0, 1, s[1]);
    op_shuffle(&a->in[1], &a->in[2]);
    return VQ_OK;
}

static vq_status arrange_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_arrange(be, &a->out[0], &a->in[0], &a->in[1], s[4]);
}

static void arrange_reference(const int64_t *s, op_args *a)
{
    for (int64_t p = 0; p < s[0] * s[1]; p++) {
        const int64_t from = p / s[1] * s[1] + (int64_t)op_get(&a->in[s[4] ? 2 : 1], p % s[1]);
        if (s[2])
            int_set(&a->out[0], s[1], p, int_at(&a->in[0], s[1], from));
        else
            op_set(&a->out[0], p, op_get(&a->in[0], from));
    }
}

/* size = K, D, whether all counts are one (NULL) */
static vq_status round_reg_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    OP_IN(be->real, -2.6, 2.6, s[0], s[1]);
    OP_IN(VQ_U32, 0, 100, s[0], s[1]);
    OP_OUT(be->real, s[0], s[1]);
    return VQ_OK;
}

static vq_status round_reg_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    a->loss = 0.25;
    VQ_TRY(vq_round_reg(be, &a->loss, &a->out[0], &a->in[0], s[2] ? NULL : &a->in[1], 0.01, 7.3));
    return vq_sync(be);
}

/* --- init: size = out, in, bits, group, type of w ----------------------------------------------
 */

/* in: w, scale, zero, ints; out: base, rest, the weight's value */
static vq_status grid_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    const int64_t groups = VQ_CEIL_DIV(s[1], s[3]);
    const double qmax = (double)((1 << s[2]) - 1);
    OP_IN(op_dtype(be, s[4]), -1, 1, s[0], s[1]);
    OP_IN(be->real, 0.05, 0.1, s[0], groups);
    OP_IN(be->real, 0, qmax, s[0], groups);
    VQ_TRY(op_ints(arena, a, false, s[2], 0, qmax + 1, s[0], s[1]));
    VQ_TRY(op_ints(arena, a, true, s[2], 0, 1, s[0], s[1]));
    OP_OUT(be->real, s[0], s[1]);
    OP_OUT(be->act, s[0], s[1]);
    const int64_t n_zeros = s[0] * groups;
    for (int64_t i = 0; i < n_zeros; i++) op_set(&a->in[2], i, floor(op_get(&a->in[2], i)));
    a->quant =
        (vq_quant){.scale = a->in[1], .zero = a->in[2], .bits = (int)s[2], .group_size = s[3]};
    return VQ_OK;
}

static vq_status grid_split_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_grid_split(be, &a->out[0], &a->out[1], &a->in[0], &a->quant.scale, &a->quant.zero,
                         (int)s[2], s[3]);
}

static vq_status grid_round_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_grid_round(be, &a->out[2], &a->in[0], &a->quant);
}

static vq_status grid_value_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_grid_value(be, &a->out[2], &a->in[3], &a->quant);
}

/* Which of the three ops' outputs are wanted. */
static void grid_reference(const int64_t *s, op_args *a, bool split, bool ints)
{
    const double qmax = (double)((1 << s[2]) - 1);
    for (int64_t p = 0; p < s[0] * s[1]; p++) {
        const int64_t group = p / s[1] * VQ_CEIL_DIV(s[1], s[3]) + p % s[1] / s[3];
        const double scale = op_get(&a->in[1], group), zero = op_get(&a->in[2], group);
        const double u = op_get(&a->in[0], p) / scale;
        const double n = ints ? int_at(&a->in[3], s[1], p) : fmax(0, fmin(rint(u) + zero, qmax));
        if (split) {
            int_set(&a->out[0], s[1], p, (int)fmax(-1, fmin(floor(u) + zero, qmax)));
            op_set(&a->out[1], p, u - floor(u));
        } else {
            op_set(&a->out[2], p, scale * (n - zero));
        }
    }
}

static void grid_split_reference(const int64_t *s, op_args *a)
{
    grid_reference(s, a, true, false);
}

static void grid_round_reference(const int64_t *s, op_args *a)
{
    grid_reference(s, a, false, false);
}

static void grid_value_reference(const int64_t *s, op_args *a)
{
    grid_reference(s, a, false, true);
}

/* size goes on: symmetric, include_zero, type of scale */
static vq_status grid_minmax_make(const vq_backend *be, vq_arena *arena, const int64_t *s,
                                  op_args *a)
{
    const int64_t groups = VQ_CEIL_DIV(s[1], s[3]);
    OP_IN(op_dtype(be, s[4]), -0.3, 1, s[0], s[1]);
    OP_OUT(be->real, s[0], groups);
    OP_OUT(be->real, s[0], groups);
    return VQ_OK;
}

static vq_status grid_minmax_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_grid_minmax(be, &a->out[0], &a->out[1], &a->in[0], (int)s[2], s[3], s[5], s[6],
                          (vq_dtype)s[7]);
}

/* size = out, in, bits, group, symmetric, type of w, type of scale, with inputs. Rows of many sizes
 * and kinds: small and large, of one sign, of zeros, with an outlier.
 */
static vq_status grid_search_make(const vq_backend *be, vq_arena *arena, const int64_t *s,
                                  op_args *a)
{
    const int64_t groups = VQ_CEIL_DIV(s[1], s[3]);
    OP_IN(op_dtype(be, s[5]), -1, 1, s[0], s[1]);
    OP_IN(be->real, 0, 2, 2, s[1]);
    OP_OUT(be->real, s[0], groups);
    OP_OUT(be->real, s[0], groups);
    for (int64_t i = 0; i < 2 * s[1]; i++) /* some are 0, some large */
        op_set(&a->in[1], i, i % 13 == 5 ? 0 : pow(op_get(&a->in[1], i), 3));
    for (int64_t i = 0; i < s[0] * s[1]; i++) {
        const int64_t o = i / s[1];
        const double u = op_get(&a->in[0], i), x = u * u * u * exp2((double)(o % 9) - 7);
        op_set(&a->in[0], i,
               o % 7 == 1   ? fabs(x) + 0.01
               : o % 7 == 2 ? -fabs(x)
               : o % 7 == 3 ? 0
               : i % 19     ? x
                            : 3 * x);
    }
    return VQ_OK;
}

static vq_status grid_search_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    return vq_grid_search(be, &a->out[0], &a->out[1], &a->in[0], s[7] ? &a->in[1] : NULL, (int)s[2],
                          s[3], s[4], s[6] == VQ_F32 ? be->real : (vq_dtype)s[6]);
}

static void grid_search_reference(const int64_t *s, op_args *a)
{
    const double qmax = (double)((1 << s[2]) - 1);
    const int64_t groups = VQ_CEIL_DIV(s[1], s[3]);
    for (int64_t at = 0; at < s[0] * groups; at++) {
        const int64_t first = at / groups * s[1] + at % groups * s[3];
        const int64_t end = VQ_MIN(first + s[3], (at / groups + 1) * s[1]);
        double low = 0, high = 0, least = INFINITY;
        for (int64_t i = first; i < end; i++) {
            low = fmin(low, op_get(&a->in[0], i));
            high = fmax(high, op_get(&a->in[0], i));
        }
        if (s[4]) high = fmax(high, -low), low = low < 0 ? -high : 0;
        if (low == high) low = -1, high = 1;
        for (int p = 100; p > 20; p--) {
            double scale = (p / 100. * high - p / 100. * low) / qmax, error = 0, bias = 0;
            if (s[6] == VQ_F16) scale = (double)vq_f16_to_f32(vq_f32_to_f16((float)scale));
            if (s[6] == VQ_BF16) scale = (double)vq_bf16_to_f32(vq_f32_to_bf16((float)scale));
            const double zero = s[4] ? (qmax + 1) / 2 : rint(-(p / 100. * low) / scale);
            for (int64_t i = first; i < end; i++) {
                const double w = op_get(&a->in[0], i);
                const double q = fmin(fmax(rint(w / scale) + zero, 0), qmax);
                const double d = scale * (q - zero) - w;
                error += s[7] ? op_get(&a->in[1], i % s[1]) * d * d : pow(fabs(d), 2.4);
                if (s[7]) bias += op_get(&a->in[1], s[1] + i % s[1]) * d;
            }
            error += bias * bias;
            if (!(error < least)) continue;
            least = error;
            op_set(&a->out[0], at, scale);
            op_set(&a->out[1], at, zero);
        }
    }
}

/* Of dividing, rounding and the power, each range. */
static double grid_search_flops(const int64_t *s)
{
    return 80 * 36 * (double)s[0] * (double)s[1];
}

/* As many parts as s[3] says (0: one), with rows that none has after some. */
#define KMEANS_PARTS 256
static int64_t kmeans_parts(const int64_t *s, vq_kmeans_part parts[KMEANS_PARTS])
{
    const int64_t n = s[3] ? s[3] : 1;
    for (int64_t p = 0; p < n; p++) {
        const int64_t first = s[0] * p / n, code = s[1] * p / n;
        const int64_t rows = s[0] * (p + 1) / n - first, codes = s[1] * (p + 1) / n - code;
        parts[p] = (vq_kmeans_part){first, rows - (p % 3 == 1 && rows > 0), code,
                                    codes - (p % 3 == 2 && codes > 1)};
    }
    return n;
}

/* size = n, K, D, parts; in: x, codes, idx; out: idx, codes, counts */
static vq_status kmeans_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    vq_kmeans_part parts[KMEANS_PARTS];
    const int64_t n_parts = kmeans_parts(s, parts);
    OP_IN(be->real, -1, 1, s[0], s[2]);
    OP_IN(be->real, -1, 1, s[1], s[2]);
    OP_IN(VQ_U32, 0, (double)s[1], s[0]);
    OP_OUT(VQ_U32, s[0]);
    OP_OUT(be->real, s[1], s[2]);
    OP_OUT(VQ_U32, s[1]);
    op_fill(&a->out[0], 200, 0, 2);
    op_fill(&a->out[2], 201, 0, 2);
    for (const vq_kmeans_part *p = parts; p < parts + n_parts; p++)
        for (int64_t i = p->first; i < p->first + p->n; i++)
            op_set(&a->in[2], i, (double)(p->code + (int64_t)op_get(&a->in[2], i) % p->codes));
    return VQ_OK;
}

static vq_status kmeans_assign_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    vq_kmeans_part parts[KMEANS_PARTS];
    double objective[KMEANS_PARTS];
    const int64_t n_parts = kmeans_parts(s, parts);
    VQ_TRY(vq_kmeans_assign(be, &a->out[0], objective, &a->in[0], &a->in[1], parts, n_parts));
    a->loss = 0;
    for (int64_t p = 0; p < n_parts; p++) a->loss += (double)(1 + p) * objective[p];
    return VQ_OK;
}

static void kmeans_assign_reference(const int64_t *s, op_args *a)
{
    vq_kmeans_part parts[KMEANS_PARTS];
    const int64_t n_parts = kmeans_parts(s, parts);
    a->loss = 0;
    for (const vq_kmeans_part *p = parts; p < parts + n_parts; p++)
        for (int64_t i = p->first; i < p->first + p->n; i++) {
            double least = INFINITY;
            for (int64_t k = p->code; k < p->code + p->codes; k++) {
                double sum = 0;
                for (int64_t d = 0; d < s[2]; d++)
                    sum +=
                        pow(op_get(&a->in[0], i * s[2] + d) - op_get(&a->in[1], k * s[2] + d), 2);
                if (sum < least) least = sum, op_set(&a->out[0], i, (double)k);
            }
            a->loss += (double)(1 + p - parts) * least;
        }
}

static double kmeans_assign_flops(const int64_t *s)
{
    return 2.0 * (double)s[0] * (double)s[1] * (double)s[2] / (double)(s[3] ? s[3] : 1);
}

static vq_status kmeans_update_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    vq_kmeans_part parts[KMEANS_PARTS];
    const int64_t n_parts = kmeans_parts(s, parts);
    return vq_kmeans_update(be, &a->out[1], &a->out[2], &a->in[0], &a->in[2], parts, n_parts);
}

static void kmeans_update_reference(const int64_t *s, op_args *a)
{
    vq_kmeans_part parts[KMEANS_PARTS];
    const int64_t n_parts = kmeans_parts(s, parts);
    for (int64_t k = 0; k < s[1]; k++) op_set(&a->out[2], k, 0);
    for (const vq_kmeans_part *p = parts; p < parts + n_parts; p++)
        for (int64_t k = p->code; k < p->code + p->codes; k++)
            for (int64_t d = 0; d < s[2]; d++) {
                double sum = 0, count = 0;
                for (int64_t i = p->first; i < p->first + p->n; i++)
                    if ((int64_t)op_get(&a->in[2], i) == k)
                        sum += op_get(&a->in[0], i * s[2] + d), count++;
                if (count > 0) op_set(&a->out[1], k * s[2] + d, sum / count);
                op_set(&a->out[2], k, count);
            }
}

/* size = rows, n, gap */
static vq_status syrk_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    OP_IN_GAP(be->act, s[2], s[0], s[1]);
    OP_OUT(VQ_F64, s[1], s[1]);
    return VQ_OK;
}

static vq_status syrk_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_syrk(be, &a->out[0], &a->in[0], 0.3);
}

static void syrk_reference(const int64_t *s, op_args *a)
{
    for (int64_t i = 0; i < s[1]; i++)
        for (int64_t j = 0; j <= i; j++) {
            double sum = 0;
            for (int64_t r = 0; r < s[0]; r++)
                sum += op_get(&a->in[0], r * s[1] + i) * op_get(&a->in[0], r * s[1] + j);
            op_set(&a->out[0], i * s[1] + j, op_get(&a->out[0], i * s[1] + j) + 0.3 * sum);
        }
}

static double syrk_flops(const int64_t *s)
{
    return (double)s[0] * (double)s[1] * (double)s[1];
}

static vq_status moments_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    OP_IN_GAP(be->act, s[2], s[0], s[1]);
    OP_OUT(VQ_F64, 2, s[1]);
    return VQ_OK;
}

static vq_status moments_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_moments(be, &a->out[0], &a->in[0], 0.3);
}

static void moments_reference(const int64_t *s, op_args *a)
{
    for (int64_t j = 0; j < s[1]; j++) {
        double sum[2] = {0};
        for (int64_t r = 0; r < s[0]; r++) {
            const double x = op_get(&a->in[0], r * s[1] + j);
            sum[0] += x * x;
            sum[1] += x;
        }
        for (int i = 0; i < 2; i++)
            op_set(&a->out[0], i * s[1] + j, op_get(&a->out[0], i * s[1] + j) + 0.3 * sum[i]);
    }
}

/* size = n, by how much the order is rotated; the value is whether h is positive definite */
static vq_status inverse_factor_make(const vq_backend *be, vq_arena *arena, const int64_t *s,
                                     op_args *a)
{
    OP_IN(VQ_F64, -1, 1, s[0], s[0]);
    OP_IN(VQ_I32, 0, 1, s[0]);
    OP_OUT(be->real, s[0], s[0]);
    for (int64_t i = 0; i < s[0]; i++) {
        op_set(&a->in[0], i * s[0] + i, (double)s[0]); /* above the sum of the row's others */
        op_set(&a->in[1], i, (double)((i + s[1]) % s[0]));
    }
    return VQ_OK;
}

static vq_status inverse_factor_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    bool positive = false;
    VQ_TRY(vq_inverse_factor(be, &a->out[0], &positive, &a->in[0], &a->in[1], 0.05));
    a->loss = positive;
    return VQ_OK;
}

static double inverse_factor_flops(const int64_t *s)
{
    return 2.0 / 3 * pow((double)s[0], 3);
}

/* size = out, in, bits, group, type of w, block, how (1 symmetric + 2 static groups + 4 hessian +
 * 8 search),
 * by how much the order is rotated; in: w, u, order, dead; out: base, ints, rest, scale, zero */
static vq_status gptq_sweep_make(const vq_backend *be, vq_arena *arena, const int64_t *s,
                                 op_args *a)
{
    const int64_t groups = VQ_CEIL_DIV(s[1], s[3]);
    OP_IN(op_dtype(be, s[4]), -1, 1, s[0], s[1]);
    OP_IN(be->real, -0.1, 0.1, s[1], s[1]);
    OP_IN(VQ_I32, 0, 1, s[1]);
    OP_IN(VQ_U8, 0, 1.03, s[1]);
    VQ_TRY(op_ints(arena, a, true, s[2], 0, 1, s[0], s[1]));
    VQ_TRY(op_ints(arena, a, true, s[2], 0, 1, s[0], s[1]));
    OP_OUT(be->real, s[0], s[1]);
    OP_OUT(be->real, s[0], groups);
    OP_OUT(be->real, s[0], groups);
    for (int64_t i = 0; i < s[1]; i++) {
        op_set(&a->in[2], i, (double)((i + s[7]) % s[1]));
        op_set(&a->in[1], i * s[1] + i, 0.5 + (double)(i % 7) / 8);
        for (int64_t j = 0; j < i; j++) op_set(&a->in[1], i * s[1] + j, 0);
    }
    a->quant = (vq_quant){.base = a->out[0],
                          .scale = a->out[3],
                          .zero = a->out[4],
                          .bits = (int)s[2],
                          .group_size = s[3]};
    return VQ_OK;
}

static vq_status gptq_sweep_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    const vq_sweep_rule rule = {.block_size = s[5],
                                .symmetric = s[6] & 1,
                                .scale_dtype = VQ_F32,
                                .static_groups = s[6] & 2,
                                .hessian_residual = s[6] & 4,
                                .search = s[6] & 8};
    return vq_gptq_sweep(be, &a->quant, &a->out[1], &a->out[2], &a->loss, &a->in[0], &a->in[1],
                         &a->in[2], &a->in[3], &rule);
}

static double gptq_sweep_flops(const int64_t *s)
{
    return (double)s[0] * (double)s[1] * (double)s[1];
}

/* --- loss: size = n, E, V, type of head, E of the teacher (0: its head is the student's) -------
 */

static vq_status head_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    OP_IN(be->act, -1, 1, s[0], s[1]);
    OP_IN(op_dtype(be, s[3]), -1, 1, s[2], s[1]);
    OP_IN(s[4] ? VQ_F16 : be->act, -1, 1, s[0], s[4] ? s[4] : s[1]);
    OP_IN(op_dtype(be, s[3]), -1, 1, s[4] ? s[2] : 1, s[4] ? s[4] : 1);
    OP_IN(VQ_I32, -1, (double)s[2], s[0]);
    OP_OUT(be->act, s[0], s[1]);
    return VQ_OK;
}

static vq_status head_kd_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    a->loss = 0.25;
    VQ_TRY(vq_head_kd(be, &a->loss, &a->out[0], &a->in[0], &a->in[2], &a->in[1],
                      s[4] ? &a->in[3] : &a->in[1], 2, 0.125));
    return vq_sync(be);
}

static double head_kd_flops(const int64_t *s)
{
    return (double)s[0] * (double)s[2] * (4.0 * (double)s[1] + 2.0 * (double)(s[4] ? s[4] : s[1]));
}

static vq_status head_nll_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    a->loss = 0.25;
    return vq_head_nll(be, &a->loss, &a->out[0], &a->in[0], &a->in[1], &a->in[4], 0.125);
}

static double head_nll_flops(const int64_t *s)
{
    return 4.0 * (double)s[0] * (double)s[2] * (double)s[1];
}

static double op_logit(const vq_tensor *x, const vq_tensor *head, int64_t i, int64_t v)
{
    double sum = 0;
    for (int64_t j = 0; j < x->dim[1]; j++)
        sum += op_get(x, i * x->dim[1] + j) * op_get(head, v * x->dim[1] + j);
    return sum;
}

static double op_log_sum(const vq_tensor *x, const vq_tensor *head, int64_t i, double tau)
{
    double sum = 0; /* the cases' logits are small: no shift needed */
    for (int64_t v = 0; v < head->dim[0]; v++) sum += exp(op_logit(x, head, i, v) / tau);
    return log(sum);
}

/* Value and gradient, from the definitions. */
static void head_kd_reference(const int64_t *s, op_args *a)
{
    const vq_tensor *x = &a->in[0], *head = &a->in[1], *y = &a->in[2];
    const vq_tensor *head_t = s[4] ? &a->in[3] : &a->in[1];
    double tau = 2, scale = 0.125;
    a->loss = 0.25;
    for (int64_t i = 0; i < s[0]; i++) {
        double log_q = op_log_sum(x, head, i, tau), log_p = op_log_sum(y, head_t, i, tau);
        for (int64_t j = 0; j < s[1]; j++) op_set(&a->out[0], i * s[1] + j, 0);
        for (int64_t v = 0; v < s[2]; v++) {
            double q = op_logit(x, head, i, v) / tau - log_q;
            double p = op_logit(y, head_t, i, v) / tau - log_p;
            a->loss += tau * tau * scale * exp(p) * (p - q);
            for (int64_t j = 0; j < s[1]; j++)
                op_set(&a->out[0], i * s[1] + j,
                       op_get(&a->out[0], i * s[1] + j) +
                           tau * scale * (exp(q) - exp(p)) * op_get(head, v * s[1] + j));
        }
    }
}

static void head_nll_reference(const int64_t *s, op_args *a)
{
    const vq_tensor *x = &a->in[0], *head = &a->in[1];
    a->loss = 0.25;
    for (int64_t i = 0; i < s[0]; i++) {
        int64_t target = (int64_t)op_get(&a->in[4], i);
        double log_sum = op_log_sum(x, head, i, 1);
        for (int64_t j = 0; j < s[1]; j++) op_set(&a->out[0], i * s[1] + j, 0);
        if (target < 0) continue;
        for (int64_t v = 0; v < s[2]; v++) {
            double q = op_logit(x, head, i, v) - log_sum;
            if (v == target) a->loss -= 0.125 * q;
            for (int64_t j = 0; j < s[1]; j++)
                op_set(&a->out[0], i * s[1] + j,
                       op_get(&a->out[0], i * s[1] + j) +
                           0.125 * (exp(q) - (v == target)) * op_get(head, v * s[1] + j));
        }
    }
}

/* size = n, E */
static vq_status mse_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    OP_IN(be->act, -1, 1, s[0], s[1]);
    OP_IN(be->act, -1, 1, s[0], s[1]);
    OP_OUT(be->act, s[0], s[1]);
    return VQ_OK;
}

static vq_status mse_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    a->loss = 0.25;
    VQ_TRY(vq_mse(be, &a->loss, &a->out[0], &a->in[0], &a->in[1], 0.125));
    return vq_sync(be);
}

static void mse_reference(const int64_t *s, op_args *a)
{
    a->loss = 0.25;
    for (int64_t i = 0; i < s[0] * s[1]; i++) {
        double error = op_get(&a->in[0], i) - op_get(&a->in[1], i);
        a->loss += 0.125 * error * error;
        op_set(&a->out[0], i, 0.25 * error);
    }
}

/* --- update: size = n --------------------------------------------------------------------------
 */

static vq_status adam_make(const vq_backend *be, vq_arena *arena, const int64_t *s, op_args *a)
{
    OP_IN(be->real, -1, 1, s[0]);
    for (int i = 0; i < 3; i++) OP_OUT(be->real, s[0]);
    op_fill(&a->out[2], 300, 0, 1);
    return VQ_OK;
}

static vq_status adam_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_adam_step(be, &a->out[0], &a->out[1], &a->out[2], &a->in[0], 0.01, 0.9, 0.99, 1e-8,
                        3);
}

static void adam_reference(const int64_t *s, op_args *a)
{
    for (int64_t i = 0; i < s[0]; i++) {
        double g = op_get(&a->in[0], i);
        double m = 0.9 * op_get(&a->out[1], i) + 0.1 * g;
        double v = 0.99 * op_get(&a->out[2], i) + 0.01 * g * g;
        double root = sqrt(v / (1 - pow(0.99, 3)));
        op_set(&a->out[0], i, op_get(&a->out[0], i) - 0.01 * m / (1 - pow(0.9, 3)) / (root + 1e-8));
        op_set(&a->out[1], i, m);
        op_set(&a->out[2], i, v);
    }
}

static vq_status norm2_run(const vq_backend *be, const int64_t *s, op_args *a)
{
    (void)s;
    return vq_norm2(be, &a->loss, &a->in[0]);
}

static void norm2_reference(const int64_t *s, op_args *a)
{
    a->loss = 0;
    for (int64_t i = 0; i < s[0]; i++) a->loss += pow(op_get(&a->in[0], i), 2);
}

/* --- the kinds ---------------------------------------------------------------------------------
 */

static const op_kind OP_GEMM = {
    "gemm", "m n k ta tb type gap beta", gemm_make, gemm_run, gemm_reference, gemm_flops};
static const op_kind OP_EMBED = {"embed",   "n V E type add", embed_make,
                                 embed_run, embed_reference,  NULL};
static const op_kind OP_BIAS_ADD = {"bias_add",   "n E type",         bias_add_make,
                                    bias_add_run, bias_add_reference, NULL};
static const op_kind OP_ADD = {"add", "n E", add_make, add_run, add_reference, NULL};
static const op_kind OP_RMSNORM_FWD = {
    "rmsnorm_fwd", "n E type", rmsnorm_fwd_make, rmsnorm_fwd_run, rmsnorm_fwd_reference, NULL};
static const op_kind OP_RMSNORM_BWD = {
    "rmsnorm_bwd", "n E type - plus", rmsnorm_bwd_make, rmsnorm_bwd_run, NULL, NULL};
static const op_kind OP_LAYERNORM_FWD = {"layernorm_fwd",         "n E type affine",
                                         layernorm_fwd_make,      layernorm_fwd_run,
                                         layernorm_fwd_reference, NULL};
static const op_kind OP_LAYERNORM_BWD = {
    "layernorm_bwd", "n E type affine plus", layernorm_bwd_make, layernorm_bwd_run, NULL, NULL};
static const op_kind OP_ROPE = {"rope",   "B T H S first inverse", rope_make,
                                rope_run, rope_reference,          NULL};
static const op_kind OP_ATTENTION_FWD = {"attention_fwd",         "B T T_k H G S gap",
                                         attention_fwd_make,      attention_fwd_run,
                                         attention_fwd_reference, attention_fwd_flops};
static const op_kind OP_ATTENTION_BWD = {
    "attention_bwd",    "B T T_k H G S gap", attention_bwd_make, attention_bwd_run, NULL,
    attention_bwd_flops};
static const op_kind OP_SILU_GATE_FWD = {
    "silu_gate_fwd", "n F", silu_gate_make, silu_gate_fwd_run, silu_gate_fwd_reference, NULL};
static const op_kind OP_SILU_GATE_BWD = {"silu_gate_bwd",   "n F", silu_gate_make,
                                         silu_gate_bwd_run, NULL,  NULL};
static const op_kind OP_RELU_FWD = {"relu_fwd",         "n F", silu_gate_make, relu_fwd_run,
                                    relu_fwd_reference, NULL};
static const op_kind OP_RELU_BWD = {"relu_bwd",         "n F", silu_gate_make, relu_bwd_run,
                                    relu_bwd_reference, NULL};
static const op_kind OP_ROUND_FWD = {"round_fwd",         "out in K D bits group idx hard",
                                     round_make,          round_fwd_run,
                                     round_fwd_reference, NULL};
static const op_kind OP_ROUND_BWD = {
    "round_bwd", "out in K D bits group idx", round_make, round_bwd_run, NULL, NULL};
static const op_kind OP_ROUND_REG = {"round_reg",   "K D ones", round_reg_make,
                                     round_reg_run, NULL,       NULL};
static const op_kind OP_ROUND_SCALE_FWD = {
    "round_scale_fwd",   "out in K D bits group idx type", round_scale_make,
    round_scale_fwd_run, round_scale_fwd_reference,        NULL};
static const op_kind OP_ROUND_SCALE_BWD = {"round_scale_bwd",         "out in K D bits group idx",
                                           round_scale_make,          round_scale_bwd_run,
                                           round_scale_bwd_reference, NULL};
static const op_kind OP_ARRANGE = {"arrange",   "out in bits type back", arrange_make,
                                   arrange_run, arrange_reference,       NULL};
static const op_kind OP_GRID_MINMAX = {"grid_minmax",
                                       "out in bits group type symmetric zero scale",
                                       grid_minmax_make,
                                       grid_minmax_run,
                                       NULL,
                                       NULL};
static const op_kind OP_GRID_SEARCH = {
    "grid_search",         "out in bits group sym type scale_type inputs",
    grid_search_make,      grid_search_run,
    grid_search_reference, grid_search_flops};
static const op_kind OP_GRID_SPLIT = {"grid_split",   "out in bits group type", grid_make,
                                      grid_split_run, grid_split_reference,     NULL};
static const op_kind OP_GRID_ROUND = {"grid_round",   "out in bits group type", grid_make,
                                      grid_round_run, grid_round_reference,     NULL};
static const op_kind OP_GRID_VALUE = {"grid_value",   "out in bits group",  grid_make,
                                      grid_value_run, grid_value_reference, NULL};
static const op_kind OP_KMEANS_ASSIGN = {
    "kmeans_assign",   "n K D parts",           kmeans_make,
    kmeans_assign_run, kmeans_assign_reference, kmeans_assign_flops};
static const op_kind OP_KMEANS_UPDATE = {"kmeans_update",   "n K D parts",           kmeans_make,
                                         kmeans_update_run, kmeans_update_reference, NULL};
static const op_kind OP_SYRK = {"syrk",   "rows n gap",   syrk_make,
                                syrk_run, syrk_reference, syrk_flops};
static const op_kind OP_MOMENTS = {"moments",   "rows n gap",      moments_make,
                                   moments_run, moments_reference, NULL};
static const op_kind OP_INVERSE_FACTOR = {"inverse_factor",   "n rotated", inverse_factor_make,
                                          inverse_factor_run, NULL,        inverse_factor_flops};
/* Not in the list: a last bit decides which way a tie is rounded, and with it all that follows. */
static const op_kind OP_GPTQ_SWEEP = {"gptq_sweep",
                                      "out in bits group type block how rotated",
                                      gptq_sweep_make,
                                      gptq_sweep_run,
                                      NULL,
                                      gptq_sweep_flops};
static const op_kind OP_HEAD_KD = {"head_kd",   "n E V type E_teacher", head_make,
                                   head_kd_run, head_kd_reference,      head_kd_flops};
static const op_kind OP_HEAD_NLL = {"head_nll",   "n E V type",       head_make,
                                    head_nll_run, head_nll_reference, head_nll_flops};
static const op_kind OP_MSE = {"mse", "n E", mse_make, mse_run, mse_reference, NULL};
static const op_kind OP_ADAM = {"adam_step", "n", adam_make, adam_run, adam_reference, NULL};
static const op_kind OP_NORM2 = {"norm2", "n", adam_make, norm2_run, norm2_reference, NULL};

/* --- the list ----------------------------------------------------------------------------------
 */

static const op_case OP_CASES[] = {
    /* the three usual products, all kinds of tiles; odd sizes; strides; types of weights */
    {&OP_GEMM, {1, 1, 1, 0, 0, VQ_F32, 0, 0}},
    {&OP_GEMM, {7, 1, 3, 0, 1, VQ_F32, 2, 1}},
    {&OP_GEMM, {1, 13, 5, 1, 0, VQ_F32, 0, 1}},
    {&OP_GEMM, {31, 37, 29, 0, 1, VQ_F16, 3, 1}},
    {&OP_GEMM, {31, 37, 29, 0, 0, VQ_BF16, 3, 0}},
    {&OP_GEMM, {31, 37, 29, 1, 1, VQ_F64, 0, 1}},
    {&OP_GEMM, {131, 257, 67, 0, 1, VQ_F32, 0, 0}},
    {&OP_GEMM, {65, 771, 31, 1, 0, VQ_F32, 5, 1}},
    {&OP_GEMM, {300, 70, 1100, 0, 0, VQ_F16, 0, 0}},
    {&OP_GEMM, {9, 41, 8211, 0, 0, VQ_BF16, 1, 1}}, /* cut along k */
    {&OP_GEMM, {40, 33, 8192, 1, 1, VQ_F32, 0, 0}},
    {&OP_EMBED, {5, 11, 7, VQ_F32, 0}},
    {&OP_EMBED, {130, 17, 301, VQ_F16, 1}},
    {&OP_EMBED, {130, 17, 301, VQ_BF16, 0}},
    {&OP_BIAS_ADD, {1, 1, VQ_F32}},
    {&OP_BIAS_ADD, {77, 331, VQ_F16}},
    {&OP_ADD, {61, 307}},
    {&OP_RMSNORM_FWD, {1, 1, VQ_F32}},
    {&OP_RMSNORM_FWD, {37, 577, VQ_BF16}},
    {&OP_RMSNORM_BWD, {1, 5, VQ_F32, 0, 0}},
    {&OP_RMSNORM_BWD, {37, 577, VQ_F16, 0, 1}},
    {&OP_LAYERNORM_FWD, {3, 2, VQ_F32, 1}},
    {&OP_LAYERNORM_FWD, {37, 577, VQ_F16, 1}},
    {&OP_LAYERNORM_FWD, {37, 577, VQ_F32, 0}},
    {&OP_RMSNORM_BWD, {37, 576, VQ_BF16, 0, 2}},
    {&OP_LAYERNORM_BWD, {3, 5, VQ_F32, 1, 1}},
    {&OP_LAYERNORM_BWD, {37, 577, VQ_F16, 1, 0}},
    {&OP_LAYERNORM_BWD, {37, 577, VQ_F32, 0, 1}},
    {&OP_LAYERNORM_BWD, {37, 577, VQ_F32, 1, 2}},
    {&OP_ROPE, {1, 1, 1, 2, 0, 0}},
    {&OP_ROPE, {2, 67, 5, 34, 3, 0}},
    {&OP_ROPE, {2, 67, 5, 34, 3, 1}},
    {&OP_ATTENTION_FWD, {1, 1, 1, 1, 1, 1, 0}},
    {&OP_ATTENTION_FWD, {2, 70, 70, 3, 3, 17, 0}},
    {&OP_ATTENTION_FWD, {2, 37, 150, 6, 2, 16, 40}},
    {&OP_ATTENTION_FWD, {1, 200, 200, 2, 1, 64, 0}},
    {&OP_ATTENTION_FWD, {1, 70, 133, 2, 1, 80, 8}},
    {&OP_ATTENTION_FWD, {1, 65, 65, 2, 2, 128, 0}},
    {&OP_ATTENTION_FWD, {1, 33, 40, 2, 1, 136, 0}},
    {&OP_ATTENTION_BWD, {1, 1, 1, 1, 1, 1, 0}},
    {&OP_ATTENTION_BWD, {2, 70, 70, 3, 3, 17, 0}},
    {&OP_ATTENTION_BWD, {2, 37, 150, 6, 2, 16, 40}},
    {&OP_ATTENTION_BWD, {1, 300, 301, 2, 1, 64, 0}},
    {&OP_ATTENTION_BWD, {1, 70, 133, 2, 1, 80, 8}},
    {&OP_ATTENTION_BWD, {1, 65, 65, 2, 2, 128, 0}},
    {&OP_ATTENTION_BWD, {1, 33, 40, 2, 1, 136, 0}},
    {&OP_SILU_GATE_FWD, {53, 313}},
    {&OP_SILU_GATE_BWD, {53, 313}},
    {&OP_RELU_FWD, {53, 313}},
    {&OP_RELU_BWD, {53, 313}},
    /* whole and straddling vectors, a short last one, groups, wide integers, own codes */
    {&OP_ROUND_FWD, {96, 128, 64, 8, 3, 128, VQ_U16, 0}},
    {&OP_ROUND_FWD, {96, 128, 64, 8, 3, 32, VQ_U32, 1}},
    {&OP_ROUND_FWD, {131, 2089, 64, 8, 2, 2089, VQ_U32, 0}},
    {&OP_ROUND_FWD, {37, 83, 50, 7, 4, 20, VQ_U16, 0}},
    {&OP_ROUND_FWD, {37, 83, 1, 1, 1, 83, VQ_U16, 1}},
    {&OP_ROUND_FWD, {201, 83, 50, 12, 8, 30, VQ_U32, 0}},
    {&OP_ROUND_FWD, {201, 83, 0, 8, 8, 83, VQ_U32, 0}},
    {&OP_ROUND_FWD, {201, 83, 0, 1, 3, 11, VQ_U32, 1}},
    {&OP_ROUND_FWD, {64, 512, 4, 8, 3, 512, VQ_U16, 0}},
    {&OP_ROUND_FWD, {64, 512, 30, 16, 3, 64, VQ_U16, 0}},
    {&OP_ROUND_FWD, {201, 88, 0, 8, 8, 88, VQ_U32, 0}},
    {&OP_ROUND_FWD, {37, 83, 50, 7, 3, 11, VQ_U16, 0}},
    {&OP_ROUND_FWD, {201, 88, 0, 8, 2, 8, VQ_U32, 0}},
    {&OP_ROUND_FWD, {96, 128, 64, 4, 3, 32, VQ_U32, 0}},
    {&OP_ROUND_FWD, {64, 512, 4, 4, 2, 512, VQ_U16, 1}},
    {&OP_ROUND_FWD, {61, 128, 50, 12, 8, 24, VQ_U16, 0}},
    {&OP_ROUND_FWD, {64, 512, 8, 1, 3, 512, VQ_U16, 0}},
    {&OP_ROUND_FWD, {64, 504, 4, 7, 2, 72, VQ_U32, 0}},
    {&OP_ROUND_BWD, {96, 128, 64, 8, 3, 128, VQ_U16}},
    {&OP_ROUND_BWD, {37, 83, 50, 7, 3, 11, VQ_U16}},
    {&OP_ROUND_BWD, {131, 2089, 64, 8, 2, 2089, VQ_U32}},
    {&OP_ROUND_BWD, {37, 83, 50, 7, 4, 20, VQ_U16}},
    {&OP_ROUND_BWD, {37, 83, 1, 1, 1, 83, VQ_U16}},
    {&OP_ROUND_BWD, {201, 83, 50, 12, 8, 30, VQ_U32}},
    {&OP_ROUND_BWD, {201, 83, 0, 8, 8, 83, VQ_U32}},
    {&OP_ROUND_BWD, {131, 2088, 64, 8, 2, 72, VQ_U32}},
    {&OP_ROUND_BWD, {64, 512, 30, 16, 2, 512, VQ_U16}},
    {&OP_ROUND_BWD, {64, 512, 6000, 8, 2, 512, VQ_U16}},
    {&OP_ROUND_BWD, {201, 88, 0, 8, 8, 88, VQ_U32}},
    {&OP_ROUND_BWD, {96, 128, 64, 4, 3, 32, VQ_U32}},
    {&OP_ROUND_BWD, {61, 128, 50, 12, 8, 24, VQ_U16}},
    {&OP_ROUND_BWD, {64, 512, 8, 1, 2, 512, VQ_U16}},
    {&OP_ROUND_BWD, {64, 504, 30, 7, 2, 72, VQ_U32}},
    {&OP_ROUND_BWD, {128, 512, 11000, 4, 3, 512, VQ_U16}},
    {&OP_ROUND_REG, {1, 1}},
    {&OP_ROUND_REG, {1201, 7}},
    {&OP_ROUND_REG, {1201, 7, 1}},
    {&OP_ROUND_SCALE_FWD, {37, 83, 50, 7, 4, 20, VQ_U16, VQ_F32}},
    {&OP_ROUND_SCALE_FWD, {201, 83, 50, 7, 4, 83, VQ_U16, VQ_BF16}},
    {&OP_ROUND_SCALE_FWD, {201, 83, 50, 7, 4, 1, VQ_U16, VQ_F16}},
    {&OP_ROUND_SCALE_BWD, {96, 128, 64, 8, 3, 128, VQ_U16}},
    {&OP_ROUND_SCALE_BWD, {3, 2089, 64, 8, 2, 2089, VQ_U32}},
    {&OP_ROUND_SCALE_BWD, {37, 83, 50, 7, 4, 20, VQ_U16}},
    {&OP_ROUND_SCALE_BWD, {37, 83, 50, 7, 3, 11, VQ_U16}},
    {&OP_ROUND_SCALE_BWD, {201, 83, 50, 12, 8, 30, VQ_U32}},
    {&OP_ROUND_SCALE_BWD, {201, 83, 0, 83, 8, 83, VQ_U32}},
    {&OP_ROUND_SCALE_BWD, {20, 96, 0, 8, 8, 32, VQ_U32}},
    {&OP_ROUND_SCALE_BWD, {20, 96, 64, 4, 3, 32, VQ_U16}},
    {&OP_ROUND_SCALE_BWD, {20, 96, 64, 1, 3, 96, VQ_U16}},
    {&OP_ARRANGE, {1, 1, 0, VQ_F32, 0}},
    {&OP_ARRANGE, {37, 83, 0, VQ_F32, 0}},
    {&OP_ARRANGE, {37, 84, 0, VQ_BF16, 1}},
    {&OP_ARRANGE, {37, 83, 0, VQ_F64, 1}},
    {&OP_ARRANGE, {37, 83, 3, 0, 0}},
    {&OP_ARRANGE, {37, 84, 3, 0, 1}},
    {&OP_ARRANGE, {3, 83, 2, 0, 1}},
    {&OP_ARRANGE, {5, 2089, 4, 0, 0}},
    {&OP_ARRANGE, {5, 2089, 8, 0, 1}},
    {&OP_ARRANGE, {2, 60000, 0, VQ_F32, 0}}, /* a row is more than shared memory */
    {&OP_ARRANGE, {2, 60000, 0, VQ_F32, 1}},
    {&OP_GRID_MINMAX, {1, 1, 4, 1, VQ_F32, 0, 0, VQ_F32}},
    {&OP_GRID_MINMAX, {37, 83, 3, 20, VQ_F16, 0, 1, VQ_F16}},
    {&OP_GRID_MINMAX, {37, 2089, 2, 2089, VQ_BF16, 0, 0, VQ_F32}},
    {&OP_GRID_MINMAX, {37, 83, 4, 83, VQ_F32, 1, 1, VQ_BF16}},
    {&OP_GRID_SEARCH, {1, 1, 4, 1, 0, VQ_F32, VQ_F32, 0}},
    {&OP_GRID_SEARCH, {9, 1100, 2, 1100, 0, VQ_F32, VQ_F32, 0}},
    {&OP_GRID_SEARCH, {30, 83, 3, 20, 1, VQ_BF16, VQ_BF16, 0}},
    {&OP_GRID_SEARCH, {30, 83, 8, 32, 0, VQ_F16, VQ_F16, 0}},
    {&OP_GRID_SEARCH, {9, 640, 4, 640, 1, VQ_F16, VQ_F32, 0}},
    {&OP_GRID_SEARCH, {9, 1100, 2, 1100, 0, VQ_F32, VQ_F32, 1}},
    {&OP_GRID_SEARCH, {30, 83, 3, 20, 1, VQ_BF16, VQ_BF16, 1}},
    {&OP_GRID_SPLIT, {1, 1, 4, 1, VQ_F32}},
    {&OP_GRID_SPLIT, {37, 83, 3, 20, VQ_F16}},
    {&OP_GRID_SPLIT, {5, 2089, 2, 11, VQ_F32}},
    {&OP_GRID_SPLIT, {3, 2089, 8, 2089, VQ_BF16}},
    {&OP_GRID_ROUND, {37, 83, 3, 20, VQ_F16}},
    {&OP_GRID_ROUND, {3, 2089, 8, 2089, VQ_F32}},
    {&OP_GRID_VALUE, {37, 83, 3, 20}},
    {&OP_GRID_VALUE, {5, 2089, 2, 11}},
    {&OP_GRID_VALUE, {3, 2089, 8, 2089}},
    {&OP_KMEANS_ASSIGN, {1, 1, 1}},
    {&OP_KMEANS_ASSIGN, {1031, 700, 8}},
    {&OP_KMEANS_ASSIGN, {301, 37, 4}},
    {&OP_KMEANS_ASSIGN, {301, 37, 16}},
    {&OP_KMEANS_ASSIGN, {301, 37, 7}},
    {&OP_KMEANS_ASSIGN, {3001, 200, 8, 5}},
    {&OP_KMEANS_ASSIGN, {301, 75, 8, 75}},
    {&OP_KMEANS_ASSIGN, {301, 37, 16, 3}},
    {&OP_KMEANS_ASSIGN, {1301, 300, 3, 4}},
    {&OP_KMEANS_UPDATE, {1, 3, 1}},
    {&OP_KMEANS_UPDATE, {3001, 70, 8}},
    {&OP_KMEANS_UPDATE, {301, 137, 7}},
    {&OP_KMEANS_UPDATE, {3001, 1200, 8, 3}},
    {&OP_KMEANS_UPDATE, {301, 75, 7, 75}},
    {&OP_SYRK, {1, 1, 0}},
    {&OP_SYRK, {1500, 37, 3}},
    {&OP_SYRK, {70, 200, 1}},
    {&OP_MOMENTS, {1, 1, 0}},
    {&OP_MOMENTS, {37, 203, 3}},
    {&OP_INVERSE_FACTOR, {1, 0}},
    {&OP_INVERSE_FACTOR, {131, 17}},
    {&OP_HEAD_KD, {1, 3, 1, VQ_F32, 0}},
    {&OP_HEAD_KD, {19, 7, 521, VQ_F32, 0}},
    {&OP_HEAD_KD, {37, 5, 1031, VQ_F16, 11}},
    {&OP_HEAD_KD, {70, 8, 1032, VQ_F32, 0}},
    {&OP_HEAD_NLL, {1, 3, 2, VQ_F32}},
    {&OP_HEAD_NLL, {37, 5, 1031, VQ_BF16}},
    {&OP_HEAD_NLL, {70, 8, 1032, VQ_F32}},
    {&OP_MSE, {1, 1}},
    {&OP_MSE, {67, 1039}},
    {&OP_MSE, {64, 1040}},
    {&OP_ADAM, {20011}},
    {&OP_NORM2, {1}},
    {&OP_NORM2, {200003}},
};
