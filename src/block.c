/* block - a decoder layer from the ops of the backend. */
#include "block.h"

#include <math.h>

#include "error.h"

/* --- memory ---------------------------------------------------------------------------------- */

static bool is_opt(const vq_model_config *c)
{
    return c->family == VQ_OPT;
}

vq_status vq_acts_init(vq_arena *arena, const vq_backend *be, const vq_model_config *c, int64_t B,
                       int64_t T, vq_acts *a)
{
    const int64_t n = B * T, q_width = c->H * c->S, k_width = c->G * c->S;
    *a = (vq_acts){.B = B, .T = T, .product_rows = n};
    const struct {
        vq_tensor *t;
        int64_t width;
        bool wanted;
    } acts[] = {
        {&a->x, c->E, true},
        {&a->attn_in, c->E, c->norm_before},
        {&a->sum1, c->E, true},
        {&a->mid, c->E, !c->norm_before},
        {&a->mlp_in, c->E, c->norm_before},
        {&a->sum2, c->E, !c->norm_before},
        {&a->q_raw, q_width, c->qk_norm},
        {&a->k_raw, k_width, c->qk_norm},
        {&a->q, q_width, true},
        {&a->k, k_width, true},
        {&a->v, k_width, true},
        {&a->attn, q_width, true},
        {&a->gate, c->F, !is_opt(c)},
        {&a->up, c->F, !is_opt(c)},
        {&a->act, c->F, true},
    };
    for (int i = 0; i < VQ_COUNT(acts); i++)
        if (acts[i].wanted)
            VQ_TRY(vq_tensor_new(arena, be->place, be->act, VQ_DIMS(n, acts[i].width), acts[i].t));
    const struct {
        vq_tensor *t;
        int64_t count;
    } stats[] = {
        {&a->mean1, is_opt(c) ? n : 0},
        {&a->rstd1, n},
        {&a->mean2, is_opt(c) ? n : 0},
        {&a->rstd2, n},
        {&a->q_rstd, c->qk_norm ? n * c->H : 0},
        {&a->k_rstd, c->qk_norm ? n * c->G : 0},
        {&a->lse, n * c->H},
    };
    for (int i = 0; i < VQ_COUNT(stats); i++)
        if (stats[i].count)
            VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(stats[i].count), stats[i].t));
    if (c->norm_before) {
        a->mid = a->sum1;
    } else {
        a->attn_in = a->x;
        a->mlp_in = a->mid;
    }
    if (!c->qk_norm) {
        a->q_raw = a->q;
        a->k_raw = a->k;
    }
    return VQ_OK;
}

size_t vq_acts_bytes(const vq_backend *be, const vq_model_config *c, int64_t B, int64_t T)
{
    const int64_t qk = c->qk_norm;
    const int64_t wide = 4 * c->E + (is_opt(c) ? 1 : 3) * c->F + (c->H + c->G) * c->S * (2 + qk);
    const int64_t narrow = (is_opt(c) ? 4 : 2) + c->H + qk * (c->H + c->G);
    return (size_t)(B * T) *
           ((size_t)wide * vq_dtype_bytes(be->act) + (size_t)narrow * vq_dtype_bytes(be->real));
}

vq_status vq_act_grads_init(vq_arena *arena, const vq_backend *be, const vq_model_config *c,
                            int64_t B, int64_t T, vq_act_grads *g)
{
    const int64_t n = B * T;
    *g = (vq_act_grads){0};
    const struct {
        vq_tensor *t;
        int64_t width;
        bool wanted;
    } grads[] = {
        {&g->dq, c->H * c->S, true}, {&g->dk, c->G * c->S, true},   {&g->dv, c->G * c->S, true},
        {&g->dsum1, c->E, true},     {&g->dgate, c->F, !is_opt(c)}, {&g->dup, c->F, true},
        {&g->dsum2, c->E, true},
    };
    for (int i = 0; i < VQ_COUNT(grads); i++)
        if (grads[i].wanted)
            VQ_TRY(
                vq_tensor_new(arena, be->place, be->act, VQ_DIMS(n, grads[i].width), grads[i].t));
    VQ_TRY(vq_zero(be, &g->dk));
    return vq_zero(be, &g->dv);
}

size_t vq_act_grads_bytes(const vq_backend *be, const vq_model_config *c, int64_t B, int64_t T)
{
    const int64_t width = (c->H + 2 * c->G) * c->S + 2 * c->E + (is_opt(c) ? 1 : 2) * c->F;
    return (size_t)(B * T * width) * vq_dtype_bytes(be->act);
}

/* --- one slice ------------------------------------------------------------------------------- */

/* The rows that a pass works on. */
typedef struct slice {
    const vq_block *block;
    const vq_model_config *c;
    const vq_backend *be;
    vq_mode mode;
    vq_arena *scratch;
    int64_t B, first, n; /* n tokens of each of B sequences */
    int64_t product_rows;
} slice;

/* Whether the activations have these tokens; several sequences pass whole. */
static bool slice_fits(const vq_acts *a, int64_t first, int64_t n)
{
    return first >= 0 && n > 0 && first + n <= a->T && (a->B == 1 || n == a->T);
}

/* The slice's rows of a tensor that has `per` rows for each token. */
static vq_tensor rows(const slice *s, const vq_tensor *t, int64_t per)
{
    return t->data ? vq_tensor_rows(t, s->first * per, s->B * s->n * per) : *t;
}

/* [B, n, heads, S] of the slice's rows; with all_keys, of all tokens up to the slice's end. */
static vq_tensor heads(const slice *s, const vq_tensor *t, int64_t n_heads, bool all_keys)
{
    vq_tensor r = all_keys ? vq_tensor_rows(t, 0, s->B * (s->first + s->n)) : rows(s, t, 1);
    return vq_tensor_view4(&r, s->B, all_keys ? s->first + s->n : s->n, n_heads, s->c->S);
}

/* The slice's part of lse: [H, n] blocks one after another in the order of the slices. */
static vq_tensor lse_part(const slice *s, const vq_acts *a)
{
    vq_tensor r = vq_tensor_rows(&a->lse, s->first * s->c->H, s->B * s->n * s->c->H);
    vq_tensor v = vq_tensor_3d(r.data, r.dtype, s->B, s->c->H, s->n);
    v.place = r.place;
    return v;
}

static vq_status linear_fwd(const slice *s, vq_linear_kind kind, const vq_tensor *x, vq_tensor *y)
{
    return vq_vqlinear_fwd(s->be, &s->block->linear[kind], s->mode, s->scratch, s->product_rows, x,
                           y);
}

static vq_status linear_bwd(const slice *s, vq_linear_kind kind, const vq_tensor *dy, vq_tensor *dx,
                            bool add)
{
    return vq_vqlinear_bwd_input(s->be, &s->block->linear[kind], s->mode, s->scratch, dy, dx, add);
}

/* norm 1 or 2 of the slice: RMS or layer norm, by family. */
static vq_status norm_fwd(const slice *s, int which, const vq_acts *a, const vq_tensor *x,
                          vq_tensor *y)
{
    const vq_layer *l = s->block->layer;
    const vq_tensor *weight = which == 1 ? &l->norm1_weight : &l->norm2_weight;
    const vq_tensor *bias = which == 1 ? &l->norm1_bias : &l->norm2_bias;
    vq_tensor mean = rows(s, which == 1 ? &a->mean1 : &a->mean2, 1);
    vq_tensor rstd = rows(s, which == 1 ? &a->rstd1 : &a->rstd2, 1);
    if (is_opt(s->c))
        return vq_layernorm_fwd(s->be, y, &mean, &rstd, x, weight, bias, s->c->norm_eps);
    return vq_rmsnorm_fwd(s->be, y, &rstd, x, weight, s->c->norm_eps);
}

static vq_status norm_bwd(const slice *s, int which, const vq_acts *a, const vq_tensor *x,
                          const vq_tensor *dy, const vq_tensor *plus, vq_tensor *dx)
{
    const vq_layer *l = s->block->layer;
    const vq_tensor *weight = which == 1 ? &l->norm1_weight : &l->norm2_weight;
    const vq_tensor mean = rows(s, which == 1 ? &a->mean1 : &a->mean2, 1);
    const vq_tensor rstd = rows(s, which == 1 ? &a->rstd1 : &a->rstd2, 1);
    if (is_opt(s->c)) return vq_layernorm_bwd(s->be, dx, dy, x, weight, &mean, &rstd, plus);
    return vq_rmsnorm_bwd(s->be, dx, dy, x, weight, &rstd, plus);
}

/* q or k from its projection to what attention reads: the norm of each head, then rotation. */
static vq_status place_heads_fwd(const slice *s, const vq_tensor *raw, vq_tensor *out,
                                 const vq_tensor *weight, const vq_tensor *rstd, int64_t n_heads)
{
    if (s->c->qk_norm) {
        const vq_tensor from = rows(s, raw, 1);
        const vq_tensor x = vq_tensor_view2(&from, s->B * s->n * n_heads, s->c->S);
        vq_tensor to = rows(s, out, 1), y = vq_tensor_view2(&to, x.dim[0], x.dim[1]);
        vq_tensor r = rows(s, rstd, n_heads);
        VQ_TRY(vq_rmsnorm_fwd(s->be, &y, &r, &x, weight, s->c->norm_eps));
    }
    if (!s->block->cos) return VQ_OK;
    vq_tensor x = heads(s, out, n_heads, false);
    return vq_rope(s->be, &x, s->block->cos, s->block->sin, s->first, false);
}

static vq_status place_heads_bwd(const slice *s, vq_tensor *d, const vq_tensor *raw,
                                 const vq_tensor *weight, const vq_tensor *rstd, int64_t n_heads)
{
    if (s->block->cos) {
        vq_tensor x = heads(s, d, n_heads, false);
        VQ_TRY(vq_rope(s->be, &x, s->block->cos, s->block->sin, s->first, true));
    }
    if (!s->c->qk_norm) return VQ_OK;
    const vq_tensor from = rows(s, raw, 1);
    const vq_tensor x = vq_tensor_view2(&from, s->B * s->n * n_heads, s->c->S);
    vq_tensor dr = rows(s, d, 1), dx = vq_tensor_view2(&dr, x.dim[0], x.dim[1]);
    const vq_tensor r = rows(s, rstd, n_heads);
    return vq_rmsnorm_bwd(s->be, &dx, &dx, &x, weight, &r, NULL);
}

/* --- forward --------------------------------------------------------------------------------- */

static vq_status attention_fwd(const slice *s, vq_acts *a, const vq_tensor *attn_in,
                               vq_tensor *attn)
{
    const vq_layer *l = s->block->layer;
    const vq_model_config *c = s->c;
    vq_tensor q_raw = rows(s, &a->q_raw, 1), k_raw = rows(s, &a->k_raw, 1), v = rows(s, &a->v, 1);
    VQ_TRY(linear_fwd(s, VQ_Q, attn_in, &q_raw));
    VQ_TRY(linear_fwd(s, VQ_K, attn_in, &k_raw));
    VQ_TRY(linear_fwd(s, VQ_V, attn_in, &v));
    VQ_TRY(place_heads_fwd(s, &a->q_raw, &a->q, &l->q_norm, &a->q_rstd, c->H));
    VQ_TRY(place_heads_fwd(s, &a->k_raw, &a->k, &l->k_norm, &a->k_rstd, c->G));
    const vq_tensor q4 = heads(s, &a->q, c->H, false), k4 = heads(s, &a->k, c->G, true),
                    v4 = heads(s, &a->v, c->G, true);
    vq_tensor out = heads(s, &a->attn, c->H, false), lse = lse_part(s, a);
    *attn = rows(s, &a->attn, 1);
    return vq_attention_fwd(s->be, &out, &lse, &q4, &k4, &v4, 1 / sqrt((double)c->S));
}

static vq_status mlp_fwd(const slice *s, vq_acts *a, const vq_tensor *mlp_in, vq_tensor *y)
{
    vq_tensor gate = rows(s, &a->gate, 1), up = rows(s, &a->up, 1), act = rows(s, &a->act, 1);
    if (is_opt(s->c)) {
        VQ_TRY(linear_fwd(s, VQ_UP, mlp_in, &act));
        VQ_TRY(vq_relu_fwd(s->be, &act, &act));
    } else {
        VQ_TRY(linear_fwd(s, VQ_GATE, mlp_in, &gate));
        VQ_TRY(linear_fwd(s, VQ_UP, mlp_in, &up));
        VQ_TRY(vq_silu_gate_fwd(s->be, &act, &gate, &up));
    }
    return linear_fwd(s, VQ_DOWN, &act, y);
}

vq_status vq_block_fwd(const vq_block *block, vq_mode mode, vq_arena *scratch, vq_acts *a,
                       int64_t first, int64_t n, vq_tensor *y)
{
    VQ_ASSERT(slice_fits(a, first, n));
    const slice s = {block, block->config, block->be, mode,           scratch,
                     a->B,  first,         n,         a->product_rows};
    const bool before = block->config->norm_before;
    const vq_tensor x = rows(&s, &a->x, 1);
    vq_tensor attn_in = rows(&s, &a->attn_in, 1), sum1 = rows(&s, &a->sum1, 1),
              mid = rows(&s, &a->mid, 1), mlp_in = rows(&s, &a->mlp_in, 1), attn;

    if (before) VQ_TRY(norm_fwd(&s, 1, a, &x, &attn_in));
    VQ_TRY(attention_fwd(&s, a, &attn_in, &attn));
    VQ_TRY(linear_fwd(&s, VQ_O, &attn, &sum1));
    VQ_TRY(vq_add(s.be, &sum1, &x));

    if (before) {
        VQ_TRY(norm_fwd(&s, 2, a, &mid, &mlp_in));
        VQ_TRY(mlp_fwd(&s, a, &mlp_in, y));
        return vq_add(s.be, y, &mid);
    }
    vq_tensor sum2 = rows(&s, &a->sum2, 1);
    VQ_TRY(norm_fwd(&s, 1, a, &sum1, &mid));
    VQ_TRY(mlp_fwd(&s, a, &mid, &sum2));
    VQ_TRY(vq_add(s.be, &sum2, &mid));
    return norm_fwd(&s, 2, a, &sum2, y);
}

/* --- backward -------------------------------------------------------------------------------- */

/* dmlp_in from dsum2. */
static vq_status mlp_bwd(const slice *s, const vq_acts *a, vq_act_grads *g, vq_tensor *dmlp_in)
{
    const vq_tensor act = rows(s, &a->act, 1), dsum2 = rows(s, &g->dsum2, 1);
    vq_tensor dup = rows(s, &g->dup, 1), dgate = rows(s, &g->dgate, 1), dact;
    VQ_TRY(
        vq_tensor_new(s->scratch, s->be->place, s->be->act, VQ_DIMS(act.dim[0], s->c->F), &dact));
    VQ_TRY(linear_bwd(s, VQ_DOWN, &dsum2, &dact, false));
    if (is_opt(s->c)) {
        VQ_TRY(vq_relu_bwd(s->be, &dup, &dact, &act));
        return linear_bwd(s, VQ_UP, &dup, dmlp_in, false);
    }
    const vq_tensor gate = rows(s, &a->gate, 1), up = rows(s, &a->up, 1);
    VQ_TRY(vq_silu_gate_bwd(s->be, &dgate, &dup, &dact, &gate, &up));
    VQ_TRY(linear_bwd(s, VQ_UP, &dup, dmlp_in, false));
    return linear_bwd(s, VQ_GATE, &dgate, dmlp_in, true);
}

/* dq, dk, dv at the projections' outputs from dsum1. The slices after this one have added their
 * share to this one's dk and dv, those before will not: the rows are complete. */
static vq_status attention_bwd(const slice *s, const vq_acts *a, vq_act_grads *g)
{
    const vq_layer *l = s->block->layer;
    const vq_model_config *c = s->c;
    const vq_tensor dsum1 = rows(s, &g->dsum1, 1);
    vq_tensor dattn;
    VQ_TRY(vq_tensor_new(s->scratch, s->be->place, s->be->act, VQ_DIMS(dsum1.dim[0], c->H * c->S),
                         &dattn));
    VQ_TRY(linear_bwd(s, VQ_O, &dsum1, &dattn, false));
    const vq_tensor dout = vq_tensor_view4(&dattn, s->B, s->n, c->H, c->S);
    const vq_tensor q = heads(s, &a->q, c->H, false), k = heads(s, &a->k, c->G, true),
                    v = heads(s, &a->v, c->G, true), out = heads(s, &a->attn, c->H, false),
                    lse = lse_part(s, a);
    vq_tensor dq = heads(s, &g->dq, c->H, false), dk = heads(s, &g->dk, c->G, true),
              dv = heads(s, &g->dv, c->G, true);
    VQ_TRY(vq_attention_bwd(s->be, &dq, &dk, &dv, &dout, &q, &k, &v, &out, &lse,
                            1 / sqrt((double)c->S)));
    VQ_TRY(place_heads_bwd(s, &g->dq, &a->q_raw, &l->q_norm, &a->q_rstd, c->H));
    return place_heads_bwd(s, &g->dk, &a->k_raw, &l->k_norm, &a->k_rstd, c->G);
}

vq_status vq_block_bwd(const vq_block *block, vq_mode mode, vq_arena *scratch, const vq_acts *a,
                       vq_act_grads *g, int64_t first, int64_t n, const vq_tensor *dy,
                       vq_tensor *dx)
{
    VQ_ASSERT(slice_fits(a, first, n));
    const slice s = {block, block->config, block->be, mode,           scratch,
                     a->B,  first,         n,         a->product_rows};
    size_t mark = vq_arena_mark(scratch);
    const bool before = block->config->norm_before;
    const vq_tensor x = rows(&s, &a->x, 1), sum1 = rows(&s, &a->sum1, 1),
                    mid = rows(&s, &a->mid, 1);
    vq_tensor dsum2 = rows(&s, &g->dsum2, 1), dsum1 = rows(&s, &g->dsum1, 1), din;
    VQ_TRY(vq_tensor_new(scratch, s.be->place, s.be->act, VQ_DIMS(x.dim[0], s.c->E), &din));

    if (before) {
        VQ_TRY(vq_copy(s.be, &dsum2, dy));
    } else {
        const vq_tensor sum2 = rows(&s, &a->sum2, 1);
        VQ_TRY(norm_bwd(&s, 2, a, &sum2, dy, NULL, &dsum2));
    }
    VQ_TRY(mlp_bwd(&s, a, g, &din));

    /* din becomes the gradient of mid, dsum1 that of the first sum. */
    if (before) {
        VQ_TRY(norm_bwd(&s, 2, a, &mid, &din, &dsum2, &dsum1));
    } else {
        VQ_TRY(vq_add(s.be, &din, &dsum2));
        VQ_TRY(norm_bwd(&s, 1, a, &sum1, &din, NULL, &dsum1));
    }
    VQ_TRY(attention_bwd(&s, a, g));

    if (dx) {
        const vq_tensor dq = rows(&s, &g->dq, 1), dk = rows(&s, &g->dk, 1),
                        dv = rows(&s, &g->dv, 1);
        VQ_TRY(linear_bwd(&s, VQ_Q, &dq, &din, false));
        VQ_TRY(linear_bwd(&s, VQ_K, &dk, &din, true));
        VQ_TRY(linear_bwd(&s, VQ_V, &dv, &din, true));
        if (before) {
            VQ_TRY(norm_bwd(&s, 1, a, &x, &din, &dsum1, dx));
        } else {
            VQ_TRY(vq_copy(s.be, dx, &dsum1));
            VQ_TRY(vq_add(s.be, dx, &din));
        }
    }
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

vq_status vq_block_bwd_codes(const vq_block *block, vq_arena *scratch, const vq_acts *a,
                             const vq_act_grads *g)
{
    const struct {
        const vq_tensor *x, *dy;
    } part[VQ_N_KINDS] = {
        [VQ_Q] = {&a->attn_in, &g->dq},      [VQ_K] = {&a->attn_in, &g->dk},
        [VQ_V] = {&a->attn_in, &g->dv},      [VQ_O] = {&a->attn, &g->dsum1},
        [VQ_GATE] = {&a->mlp_in, &g->dgate}, [VQ_UP] = {&a->mlp_in, &g->dup},
        [VQ_DOWN] = {&a->act, &g->dsum2},
    };
    for (int k = 0; k < VQ_N_KINDS; k++)
        if (block->linear[k].source)
            VQ_TRY(vq_vqlinear_bwd_codes(block->be, &block->linear[k], scratch, part[k].x,
                                         part[k].dy));
    return VQ_OK;
}
