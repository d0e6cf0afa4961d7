/* backend.h - the op table: all arithmetic on tensors goes through it.
 *
 * A backend (kernels/cpu, kernels/cuda) fills struct vq_ops. Callers use the vq_* functions below,
 * which check shapes, dtypes and place once and then call the slot, so that a backend checks
 * nothing again. There is no silent fallback from one backend to another.
 *
 * Types: "act" is the backend's type of activations and their gradients (be->act), "real" that of
 * codebooks, scales, statistics and sums (be->real): f32 and f32 on the CPU; bf16 and f32 on CUDA;
 * f64 and f64 in the build of the CPU's kernels that tests gradients. "weight" is any float type
 * of a model file (f32, f16, bf16, f64), converted as it is read. Tensors are contiguous unless a
 * function says that it takes row strides.
 *
 * All functions are local. They are queued on the backend's stream: vq_sync before the host reads
 * a device result. Results do not depend on the number of threads: work is cut by shape alone and
 * partial sums are added in a fixed order. All fail with VQ_EINTERNAL (shape, dtype, place) and
 * VQ_EMEM (the backend's scratch memory); a backend may add VQ_EPEER (a lost device).
 *
 * Letters: B sequences, T tokens, E width, F feed-forward width, H heads, G key/value heads, S head
 * width, V vocabulary, K codes, D code width. */
#pragma once
#include "tensor.h"

/* How a quantized linear's rounding is read out of its logits. */
typedef enum vq_round_mode {
    VQ_SOFT, /* r = h(a) = clip(1.2 sigmoid(a) - 0.1, 0, 1) */
    VQ_HARD  /* r = [a >= 0] */
} vq_round_mode;

/* The integers and scales of one quantized linear W[out, in]. Weight (o, i) has the flat position
 * p = o * in + i and the logit codes[idx[p / D]][p % D]; it lies in group i / group_size of its
 * row. groups = ceil(in / group_size).
 *
 * Integers n in [-1, qmax] are kept as i16 [out, in] (8 bits) or i8 [out, in] (4 to 7); with
 * bits <= 3, when n + 1 takes four bits, two in a byte: u8 [out, ceil(in / 2)], where column i has
 * the low half of byte i / 2 of its row if i is even, else the high half. Rows begin with a whole
 * byte: with an odd in the last one's high half is 0. */
typedef struct vq_quant {
    vq_tensor base;     /* integers: floor(w / s) + z, clamped to [-1, qmax] */
    vq_tensor scale;    /* real [out, groups] */
    vq_tensor zero;     /* real [out, groups]; whole numbers */
    vq_tensor idx;      /* u16 or u32 [n_vec], n_vec = ceil(out * in / D); no data: every vector has
                           its own code (K = n_vec), as AdaRound has */
    int bits;           /* qmax = 2^bits - 1 */
    int64_t group_size; /* columns that share a scale: in, or fewer */
} vq_quant;

/* The integers of W[out, in], without data. Pure. */
vq_tensor vq_quant_ints(int bits, int64_t out, int64_t in);

/* How gptq_sweep goes over the columns of a weight. */
typedef struct vq_sweep_rule {
    int64_t block_size; /* columns between two updates of all that follow */
    bool symmetric;
    vq_dtype scale_dtype;
    bool static_groups;    /* a column's group is that of its place in W, found before the sweep;
                              otherwise of its turn, found when that comes */
    bool hessian_residual; /* rest = clamp(u - floor(u) - e, 0, 1) in place of u - floor(u) */
    bool search;           /* grids of vq_grid_search in place of vq_grid_minmax */
    bool weigh;            /* in the search the error of column j's weight counts 1 / U[j, j]^2, as
                              in the sweep's own */
} vq_sweep_rule;

/* Vectors and the codes that these alone may have: rows [first, first + n) of the vectors, rows
 * [code, code + codes) of the codes. Several parts stand in order, of vectors and of codes, and
 * have no row in common; rows may be in none. */
typedef struct vq_kmeans_part {
    int64_t first, n;
    int64_t code, codes; /* codes >= 1 */
} vq_kmeans_part;

typedef struct vq_ops {
    const char *name; /* "cpu" */

    /* memory */
    vq_status (*mem_info)(void *ctx, size_t *free_bytes, size_t *total_bytes);
    vq_status (*mem_peak)(void *ctx, size_t *bytes);
    vq_status (*upload)(void *ctx, void *dst, const void *src_host, size_t bytes);
    vq_status (*bring)(void *ctx, const void *src_host, size_t bytes, void **there);
    vq_status (*download)(void *ctx, void *dst_host, const void *src, size_t bytes);
    vq_status (*copy)(void *ctx, void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                      size_t row_bytes, size_t rows);
    vq_status (*zero)(void *ctx, void *dst, size_t bytes);
    vq_status (*sync)(void *ctx);

    /* dense */
    vq_status (*gemm)(void *ctx, vq_tensor *c, const vq_tensor *a, bool trans_a, const vq_tensor *b,
                      bool trans_b, double alpha, double beta);
    vq_status (*syrk)(void *ctx, vq_tensor *h, const vq_tensor *x, double alpha);
    vq_status (*moments)(void *ctx, vq_tensor *sums, const vq_tensor *x, double alpha);
    vq_status (*inverse_factor)(void *ctx, vq_tensor *u, bool *positive, vq_tensor *h,
                                const vq_tensor *order, double damp);

    /* layer */
    vq_status (*embed)(void *ctx, vq_tensor *out, const vq_tensor *table, const vq_tensor *ids,
                       bool add);
    vq_status (*bias_add)(void *ctx, vq_tensor *y, const vq_tensor *bias);
    vq_status (*add)(void *ctx, vq_tensor *y, const vq_tensor *x);
    vq_status (*rmsnorm_fwd)(void *ctx, vq_tensor *y, vq_tensor *rstd, const vq_tensor *x,
                             const vq_tensor *weight, double eps);
    vq_status (*rmsnorm_bwd)(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x,
                             const vq_tensor *weight, const vq_tensor *rstd, const vq_tensor *plus);
    vq_status (*layernorm_fwd)(void *ctx, vq_tensor *y, vq_tensor *mean, vq_tensor *rstd,
                               const vq_tensor *x, const vq_tensor *weight, const vq_tensor *bias,
                               double eps);
    vq_status (*layernorm_bwd)(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x,
                               const vq_tensor *weight, const vq_tensor *mean,
                               const vq_tensor *rstd, const vq_tensor *plus);
    vq_status (*rope)(void *ctx, vq_tensor *x, const vq_tensor *cos, const vq_tensor *sin,
                      int64_t first, bool inverse);
    vq_status (*attention_fwd)(void *ctx, vq_tensor *out, vq_tensor *lse, const vq_tensor *q,
                               const vq_tensor *k, const vq_tensor *v, double scale);
    vq_status (*attention_bwd)(void *ctx, vq_tensor *dq, vq_tensor *dk, vq_tensor *dv,
                               const vq_tensor *dout, const vq_tensor *q, const vq_tensor *k,
                               const vq_tensor *v, const vq_tensor *out, const vq_tensor *lse,
                               double scale);
    vq_status (*silu_gate_fwd)(void *ctx, vq_tensor *y, const vq_tensor *gate, const vq_tensor *up);
    vq_status (*silu_gate_bwd)(void *ctx, vq_tensor *dgate, vq_tensor *dup, const vq_tensor *dy,
                               const vq_tensor *gate, const vq_tensor *up);
    vq_status (*relu_fwd)(void *ctx, vq_tensor *y, const vq_tensor *x);
    vq_status (*relu_bwd)(void *ctx, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x);

    /* round */
    vq_status (*round_fwd)(void *ctx, vq_tensor *w, const vq_quant *q, const vq_tensor *codes,
                           vq_round_mode mode);
    vq_status (*round_bwd)(void *ctx, vq_tensor *dcodes, const vq_tensor *dw, const vq_quant *q,
                           const vq_tensor *codes);
    vq_status (*round_reg)(void *ctx, double *loss, vq_tensor *dcodes, const vq_tensor *codes,
                           const vq_tensor *counts, double weight, double beta);
    vq_status (*round_scale_fwd)(void *ctx, vq_tensor *scale, const vq_tensor *grid,
                                 const vq_tensor *factor, vq_dtype scale_dtype);
    vq_status (*round_scale_bwd)(void *ctx, vq_tensor *dfactor, const vq_tensor *dw,
                                 const vq_quant *q, const vq_tensor *codes, const vq_tensor *grid);
    vq_status (*arrange)(void *ctx, vq_tensor *to, const vq_tensor *from, const vq_tensor *order,
                         bool back);

    /* init */
    vq_status (*grid_minmax)(void *ctx, vq_tensor *scale, vq_tensor *zero, const vq_tensor *w,
                             int bits, int64_t group_size, bool symmetric, bool include_zero,
                             vq_dtype scale_dtype);
    vq_status (*grid_search)(void *ctx, vq_tensor *scale, vq_tensor *zero, const vq_tensor *w,
                             const vq_tensor *inputs, int bits, int64_t group_size, bool symmetric,
                             vq_dtype scale_dtype);
    vq_status (*grid_split)(void *ctx, vq_tensor *base, vq_tensor *rest, const vq_tensor *w,
                            const vq_tensor *scale, const vq_tensor *zero, int bits,
                            int64_t group_size);
    vq_status (*grid_round)(void *ctx, vq_tensor *out, const vq_tensor *w, const vq_quant *q);
    vq_status (*grid_value)(void *ctx, vq_tensor *out, const vq_tensor *ints, const vq_quant *q);
    vq_status (*gptq_sweep)(void *ctx, vq_quant *q, vq_tensor *ints, vq_tensor *rest, double *error,
                            const vq_tensor *w, const vq_tensor *u, const vq_tensor *order,
                            const vq_tensor *dead, const vq_sweep_rule *rule);
    vq_status (*kmeans_assign)(void *ctx, vq_tensor *idx, double *objective, const vq_tensor *x,
                               const vq_tensor *codes, const vq_kmeans_part *parts,
                               int64_t n_parts);
    vq_status (*kmeans_update)(void *ctx, vq_tensor *codes, vq_tensor *counts, const vq_tensor *x,
                               const vq_tensor *idx, const vq_kmeans_part *parts, int64_t n_parts);

    /* loss */
    vq_status (*head_kd)(void *ctx, double *loss, vq_tensor *dx, const vq_tensor *x,
                         const vq_tensor *x_teacher, const vq_tensor *head,
                         const vq_tensor *head_teacher, double tau, double scale);
    vq_status (*head_nll)(void *ctx, double *loss, vq_tensor *dx, const vq_tensor *x,
                          const vq_tensor *head, const vq_tensor *targets, double scale);
    vq_status (*mse)(void *ctx, double *loss, vq_tensor *dy, const vq_tensor *y,
                     const vq_tensor *target, double scale);

    /* update */
    vq_status (*adam_step)(void *ctx, vq_tensor *param, vq_tensor *m, vq_tensor *v,
                           const vq_tensor *grad, double lr, double beta1, double beta2, double eps,
                           int64_t step);
    vq_status (*norm2)(void *ctx, double *out, const vq_tensor *x);
} vq_ops;

typedef struct vq_backend {
    const vq_ops *ops;
    void *ctx; /* the backend's own */
    vq_place place;
    vq_dtype act;
    vq_dtype real;
} vq_backend;

/* --- memory ---------------------------------------------------------------------------------- */

vq_status vq_mem_info(const vq_backend *be, size_t *free_bytes, size_t *total_bytes);
/* The most memory so far: on the host of this process, on a device of all that uses it, its driver
 * and libraries and other processes too. */
vq_status vq_mem_peak(const vq_backend *be, size_t *bytes);
vq_status vq_upload(const vq_backend *be, vq_tensor *dst, const void *src_host);
/* there = t at be's place, for what is queued before the next call of this function; itself where t
 * is there already. On a device it arrives while what was queued before computes: for weights that
 * are not kept there. t, on the host, may change when this returns. */
vq_status vq_bring(const vq_backend *be, const vq_tensor *t, vq_tensor *there);

vq_status vq_download(const vq_backend *be, void *dst_host, const vq_tensor *src);
/* dst = src, of one type and shape; the first dimension of each may have a stride. */
vq_status vq_copy(const vq_backend *be, vq_tensor *dst, const vq_tensor *src);
vq_status vq_zero(const vq_backend *be, vq_tensor *dst);
vq_status vq_sync(const vq_backend *be);

/* --- dense ----------------------------------------------------------------------------------- */

/* c = alpha op(a) op(b) + beta c,  op(x) = x or its transpose.
 *
 * c  act or real [m, n]          in/out; beta = 0 does not read it
 * a  act or weight [m, k] ([k, m] with trans_a)
 * b  act or weight [k, n] ([n, k] with trans_b)
 *
 * The first dimension of each may have a stride. Order of the sums over k: a function of m, n and k
 * alone. The usual three: y = x W^T (trans_b), dx = dy W, dW = dy^T x (trans_a). */
vq_status vq_gemm(const vq_backend *be, vq_tensor *c, const vq_tensor *a, bool trans_a,
                  const vq_tensor *b, bool trans_b, double alpha, double beta);

/* h += alpha x^T x.  The lower triangle of h is read and written, the rest left alone.
 * h f64 [n, n]; x act [rows, n], rows may have a stride. Products are summed in real over at most
 * 1,024 rows, those sums in f64 in their order. */
vq_status vq_syrk(const vq_backend *be, vq_tensor *h, const vq_tensor *x, double alpha);

/* sums[0] += alpha sum x^2,  sums[1] += alpha sum x,  column by column.
 * sums f64 [2, n]; x act [rows, n], rows may have a stride. In f64, in a fixed order. */
vq_status vq_moments(const vq_backend *be, vq_tensor *sums, const vq_tensor *x, double alpha);

/* The upper triangular U with U^T U = (H + damp I)^-1,  H[i, j] = h[order[i], order[j]].
 *
 * u         real [n, n], out; zeros below the diagonal
 * positive  out: whether H + damp I is positive definite, no pivot being lost in rounding; if not,
 *           u is not set
 * h         f64 [n, n], in/out: its lower triangle, which stays; what is above the diagonal is lost
 * order     i32 [n]: a permutation
 *
 * In f64 up to the last rounding. Synchronous. */
vq_status vq_inverse_factor(const vq_backend *be, vq_tensor *u, bool *positive, vq_tensor *h,
                            const vq_tensor *order, double damp);

/* --- layer ----------------------------------------------------------------------------------- */

/* out[n] (+)= table[ids[n]].  out act [n, E]; table weight [V, E]; ids i32 [n], each in [0, V): on
 * a device that is the caller's to know, a check would wait for it. */
vq_status vq_embed(const vq_backend *be, vq_tensor *out, const vq_tensor *table,
                   const vq_tensor *ids, bool add);

/* y[n] += bias.  y act [n, E]; bias weight [E]. */
vq_status vq_bias_add(const vq_backend *be, vq_tensor *y, const vq_tensor *bias);

/* y += x.  act, same shape. */
vq_status vq_add(const vq_backend *be, vq_tensor *y, const vq_tensor *x);

/* y = x * rstd * weight,  rstd = 1 / sqrt(mean(x^2) + eps), by rows.
 * x, y act [n, E] (y may be x when no backward follows); weight [E]; rstd real [n], out. */
vq_status vq_rmsnorm_fwd(const vq_backend *be, vq_tensor *y, vq_tensor *rstd, const vq_tensor *x,
                         const vq_tensor *weight, double eps);

/* dx = plus + rstd (g - xhat mean(g xhat)),  g = dy * weight, xhat = x rstd.  dx may be dy or plus;
 * plus act [n, E] or NULL: none. */
vq_status vq_rmsnorm_bwd(const vq_backend *be, vq_tensor *dx, const vq_tensor *dy,
                         const vq_tensor *x, const vq_tensor *weight, const vq_tensor *rstd,
                         const vq_tensor *plus);

/* y = (x - mean) rstd * weight + bias,  rstd = 1 / sqrt(var(x) + eps), var biased.
 * weight and bias may both be NULL (no affine part). */
vq_status vq_layernorm_fwd(const vq_backend *be, vq_tensor *y, vq_tensor *mean, vq_tensor *rstd,
                           const vq_tensor *x, const vq_tensor *weight, const vq_tensor *bias,
                           double eps);

/* dx = plus + rstd (g - mean(g) - xhat mean(g xhat)),  g = dy * weight.  dx may be dy or plus; plus
 * as vq_rmsnorm_bwd's. */
vq_status vq_layernorm_bwd(const vq_backend *be, vq_tensor *dx, const vq_tensor *dy,
                           const vq_tensor *x, const vq_tensor *weight, const vq_tensor *mean,
                           const vq_tensor *rstd, const vq_tensor *plus);

/* Rotates each head's halves: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 = x[.. S/2].
 * inverse turns back (the backward).
 * x act [B, T, H, S], in place; cos, sin real [T_max, S / 2]; token t uses row first + t. */
vq_status vq_rope(const vq_backend *be, vq_tensor *x, const vq_tensor *cos, const vq_tensor *sin,
                  int64_t first, bool inverse);

/* Causal attention; head h reads key/value head h / (H / G).
 * out[t] = sum_{u <= t + P} softmax_u(scale q[t].k[u]) v[u],  P = T_k - T: keys before the queries
 * (0 without slices).
 * q, out act [B, T, H, S]; k, v act [B, T_k, G, S]; lse real [B, H, T], out: the log of the sum of
 * exponentials, for the backward. k and v may have a stride in the first dimension (a longer
 * buffer). Never holds [T, T_k] for more than a block of queries. */
vq_status vq_attention_fwd(const vq_backend *be, vq_tensor *out, vq_tensor *lse, const vq_tensor *q,
                           const vq_tensor *k, const vq_tensor *v, double scale);

/* dq = ..., dk += ..., dv += ...: a key's gradient is the sum over all slices' queries.
 * dq act [B, T, H, S], out, may not be dout; dk, dv act [B, T_k, G, S], in/out, strides as k. */
vq_status vq_attention_bwd(const vq_backend *be, vq_tensor *dq, vq_tensor *dk, vq_tensor *dv,
                           const vq_tensor *dout, const vq_tensor *q, const vq_tensor *k,
                           const vq_tensor *v, const vq_tensor *out, const vq_tensor *lse,
                           double scale);

/* y = silu(gate) * up,  silu(x) = x sigmoid(x).  act [n, F]; y may be gate when no backward
 * follows. */
vq_status vq_silu_gate_fwd(const vq_backend *be, vq_tensor *y, const vq_tensor *gate,
                           const vq_tensor *up);
vq_status vq_silu_gate_bwd(const vq_backend *be, vq_tensor *dgate, vq_tensor *dup,
                           const vq_tensor *dy, const vq_tensor *gate, const vq_tensor *up);

/* y = max(x, 0); y may be x.  dx = dy [x > 0]; dx may be dy; x may be the forward's y. */
vq_status vq_relu_fwd(const vq_backend *be, vq_tensor *y, const vq_tensor *x);
vq_status vq_relu_bwd(const vq_backend *be, vq_tensor *dx, const vq_tensor *dy, const vq_tensor *x);

/* --- round: VQRound sections 3 and 4 --------------------------------------------------------- */

/* w = s (clamp(base + r, 0, qmax) - z),  r = h(a) or [a >= 0], a = codes[idx].
 * w act [out, in], out; codes real [K, D]. */
vq_status vq_round_fwd(const vq_backend *be, vq_tensor *w, const vq_quant *q,
                       const vq_tensor *codes, vq_round_mode mode);

/* dcodes[k, d] += h'(codes[k, d]) sum_{v: idx[v] = k} s [0 <= base + r <= qmax] dw, at (v, d);
 * h' is that of the sigmoid where its unclipped value is in [0, 1], else 0 (as torch's clamp).
 * dcodes real [K, D], in/out; dw act [out, in]. The sum over vectors is taken in a fixed order. */
vq_status vq_round_bwd(const vq_backend *be, vq_tensor *dcodes, const vq_tensor *dw,
                       const vq_quant *q, const vq_tensor *codes);

/* loss += weight R,  dcodes += weight dR/dcodes,
 * R = sum_{k, d} counts[k, d] (1 - |2 h(codes[k, d]) - 1|^beta): the regularizer over all weights,
 * each code once. counts u32 [K, D]: how many weights read this logit (padding is not counted);
 * NULL: one each. loss on the host, there after vq_sync. dcodes may be NULL (the value alone). */
vq_status vq_round_reg(const vq_backend *be, double *loss, vq_tensor *dcodes,
                       const vq_tensor *codes, const vq_tensor *counts, double weight, double beta);

/* scale = grid factor, rounded to scale_dtype, never 0 (its least number instead): a learned scale.
 * scale real [out, groups], out; grid, factor real [out, groups]: the first scale, and what it is
 * multiplied with. */
vq_status vq_round_scale_fwd(const vq_backend *be, vq_tensor *scale, const vq_tensor *grid,
                             const vq_tensor *factor, vq_dtype scale_dtype);

/* dfactor[o, g] += grid[o, g] sum_{i in group g} dw[o, i] (clamp(base + r, 0, qmax) - z), r = h(a):
 * the gradient of round_fwd (VQ_SOFT) by the factor of round_scale_fwd, as if that did not round.
 * dfactor real [out, groups], in/out; dw act [out, in]; grid real [out, groups]; codes as
 * vq_round_fwd. Sums in a fixed order. */
vq_status vq_round_scale_bwd(const vq_backend *be, vq_tensor *dfactor, const vq_tensor *dw,
                             const vq_quant *q, const vq_tensor *codes, const vq_tensor *grid);

/* to[o, j] = from[o, order[j]]; back: to[o, order[j]] = from[o, j]. The columns of a weight in
 * another order, or in their own again.
 * from, to [out, in] of one type, any float or a weight's integers (vq_quant), apart from each
 * other; order i32 [in]: a permutation. */
vq_status vq_arrange(const vq_backend *be, vq_tensor *to, const vq_tensor *from,
                     const vq_tensor *order, bool back);

/* --- init ------------------------------------------------------------------------------------ */

/* Scale and zero of every row's groups from the least and greatest weight.
 * asymmetric: s = (max - min) / qmax, z = round(-min / s); symmetric: max = |w|max, min = -max if
 * the group has a negative weight, else 0; s = (max - min) / qmax, z = (qmax + 1) / 2.
 * include_zero (always so for symmetric): min <= 0 <= max, and an all-zero group is [-1, 1];
 * without it s = 0 becomes 1. s is rounded to scale_dtype before z is computed, bf16 up to 65504 to
 * what f16 holds too, and an s > 0 that would become 0 is the least number that remains; with
 * include_zero, z stays within [0, qmax] then too. Rounding is half to even; all arithmetic in
 * real. scale, zero real [out, groups], out; w weight [out, in]. */
vq_status vq_grid_minmax(const vq_backend *be, vq_tensor *scale, vq_tensor *zero,
                         const vq_tensor *w, int bits, int64_t group_size, bool symmetric,
                         bool include_zero, vq_dtype scale_dtype);

/* Scale and zero of every row's groups from the part of their range that rounds them best: those of
 * vq_grid_minmax with include_zero for p min and p max, with the p of 1, 0.99, ... 0.21 that has
 * the least sum over the group of |d|^2.4 (GPTQ's mse), or, with inputs, of v d^2 and the square of
 * the sum of m d: what d = s (clamp(round(w / s) + z, 0, qmax) - z) - w does to the output where
 * the inputs have variances v and means m, and no more in common. The largest p among equals; a
 * group whose sums are not finite keeps p = 1. scale, zero real [out, groups], out; w weight [out,
 * in]; inputs real [2, in]: v, then m; or NULL. Sums in real, in a fixed order. */
vq_status vq_grid_search(const vq_backend *be, vq_tensor *scale, vq_tensor *zero,
                         const vq_tensor *w, const vq_tensor *inputs, int bits, int64_t group_size,
                         bool symmetric, vq_dtype scale_dtype);

/* base = clamp(floor(w / s) + z, -1, qmax),  rest = w / s - floor(w / s) in [0, 1].
 * base integers of w's shape (vq_quant), rest real [out, in], both out. */
vq_status vq_grid_split(const vq_backend *be, vq_tensor *base, vq_tensor *rest, const vq_tensor *w,
                        const vq_tensor *scale, const vq_tensor *zero, int bits,
                        int64_t group_size);

/* out = s (clamp(round(w / s) + z, 0, qmax) - z): rounding to nearest, halves to even, on q's grid.
 * out act [out, in]; w weight [out, in]; of q scale, zero, bits and group_size are read. */
vq_status vq_grid_round(const vq_backend *be, vq_tensor *out, const vq_tensor *w,
                        const vq_quant *q);

/* out = s (ints - z): the weight of given integers.
 * out act [out, in]; ints as q's base, each in [0, qmax]; of q scale, zero, bits and group_size are
 * read. */
vq_status vq_grid_value(const vq_backend *be, vq_tensor *out, const vq_tensor *ints,
                        const vq_quant *q);

/* GPTQ: rounds one column of w after the other, in the order order[0], order[1]..., and makes up
 * for each one's error in those that follow:
 *
 *   u = w / s,  n = clamp(round(u) + z, 0, qmax),  e = (w - s (n - z)) / U[j, j],
 *   w_k -= e U[j, k] for all k after j
 *
 * with the grid of vq_grid_minmax with include_zero, or of vq_grid_search: of whole rows before the
 * sweep where one group spans the row; by groups as the rule says, a running group's from what w is
 * when the last block of columns was finished.
 *
 * q      out: base = clamp(floor(u) + z, -1, qmax), scale, zero; bits and group_size are read.
 *        Groups are runs of columns of w, but with running groups runs in the order of the sweep
 * ints   as base, out: n
 * rest   real [out, in], out: u - floor(u) in [0, 1], or as the rule says
 * error  out: the sum of e^2, which is that of squared output errors over the inputs behind U (and
 *        damping); not finite when a weight or scale is not. Fixed order
 * w      weight [out, in]
 * u      real [in, in]: from vq_inverse_factor with the same order
 * dead   u8 [in]: 1 for columns whose input is always 0: their weights become 0, after whole rows'
 *        grids were found
 *
 * Arithmetic in real, in the order of the formulas. Synchronous. */
vq_status vq_gptq_sweep(const vq_backend *be, vq_quant *q, vq_tensor *ints, vq_tensor *rest,
                        double *error, const vq_tensor *w, const vq_tensor *u,
                        const vq_tensor *order, const vq_tensor *dead, const vq_sweep_rule *rule);

/* idx[i] = argmin_k |x[i] - codes[k]|^2 over the codes of i's part, the lowest k among equals;
 * objective[p] = sum of part p's least distances. idx of vectors in no part stays.
 * idx u32 [n]; objective [n_parts], on the host; x real [n, D]; codes real [K, D]; parts
 * [n_parts], on the host. Synchronous. */
vq_status vq_kmeans_assign(const vq_backend *be, vq_tensor *idx, double *objective,
                           const vq_tensor *x, const vq_tensor *codes, const vq_kmeans_part *parts,
                           int64_t n_parts);

/* codes[k] = mean of the x assigned to k, counts[k] = their number; a code with none, or of no
 * part, keeps its place and has count 0. idx as vq_kmeans_assign gives it for these parts. Sums in
 * f64 in a fixed order.  codes real [K, D]; counts u32 [K], out. */
vq_status vq_kmeans_update(const vq_backend *be, vq_tensor *codes, vq_tensor *counts,
                           const vq_tensor *x, const vq_tensor *idx, const vq_kmeans_part *parts,
                           int64_t n_parts);

/* --- loss ------------------------------------------------------------------------------------ */

/* loss += sum_n tau^2 KL(p_n || q_n) * scale,  p = softmax(x_teacher head_teacher^T / tau),
 * q = softmax(x head^T / tau);  dx = d loss / d x.
 * x, dx act [n, E]; x_teacher any float [n, E_teacher]; head weight [V, E], head_teacher weight
 * [V, E_teacher] (may be head). dx may be NULL. In chunks of tokens: the [n, V] logits never exist
 * whole. Sums in f64. loss on the host, there after vq_sync. */
vq_status vq_head_kd(const vq_backend *be, double *loss, vq_tensor *dx, const vq_tensor *x,
                     const vq_tensor *x_teacher, const vq_tensor *head,
                     const vq_tensor *head_teacher, double tau, double scale);

/* loss += sum_n -log softmax(x head^T)[targets[n]] * scale; a target of -1 is left out;
 * dx = d loss / d x (may be NULL). targets i32 [n]. Otherwise as vq_head_kd, but synchronous. */
vq_status vq_head_nll(const vq_backend *be, double *loss, vq_tensor *dx, const vq_tensor *x,
                      const vq_tensor *head, const vq_tensor *targets, double scale);

/* loss += scale |y - target|^2;  dy = 2 scale (y - target) (may be NULL).
 * y, dy, target act [n, E]; dy may be y or target. Sum in f64, in a fixed order. loss on the host,
 * there after vq_sync. */
vq_status vq_mse(const vq_backend *be, double *loss, vq_tensor *dy, const vq_tensor *y,
                 const vq_tensor *target, double scale);

/* --- update ---------------------------------------------------------------------------------- */

/* One step of Adam, to the bit as torch.optim.Adam's single-tensor path in f32:
 * m += (g - m)(1 - beta1);  v = beta2 v + (1 - beta2) g g;
 * param -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps).
 * real [n], all of one shape; step counts from 1. */
vq_status vq_adam_step(const vq_backend *be, vq_tensor *param, vq_tensor *m, vq_tensor *v,
                       const vq_tensor *grad, double lr, double beta1, double beta2, double eps,
                       int64_t step);

/* out = sum of squares, in f64, fixed order; NaN or infinite when an element is. x real or act of
 * any shape. Synchronous. */
vq_status vq_norm2(const vq_backend *be, double *out, const vq_tensor *x);
