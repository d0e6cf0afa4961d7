/* stage - a run of layers, forward and backward. */
#include "stage.h"

#include <math.h>

#include "error.h"
#include "log.h"
#include "place.h"

bool vq_stage_is_first(const vq_stage *s)
{
    return s->first == 0;
}

bool vq_stage_is_last(const vq_stage *s)
{
    return s->last == s->model->config.N;
}

int64_t vq_stage_out_width(const vq_stage *s)
{
    return vq_stage_is_last(s) ? s->model->config.E_embed : s->model->config.E;
}

vq_vqlinear *vq_stage_linear(vq_stage *s, int64_t layer, vq_linear_kind kind)
{
    vq_vqlinear *linear = &s->block[layer - s->first].linear[kind];
    return linear->source ? linear : NULL;
}

/* The stage's linears in order, those that the family lacks among them. */
static int64_t n_linears(const vq_stage *s)
{
    return (s->last - s->first) * VQ_N_KINDS;
}

static vq_vqlinear *linear_at(const vq_stage *s, int64_t i)
{
    return &s->block[i / VQ_N_KINDS].linear[i % VQ_N_KINDS];
}

vq_status vq_stage_learn_scales(vq_stage *s, vq_arena *arena)
{
    for (int64_t i = 0; i < n_linears(s); i++)
        VQ_TRY(vq_vqlinear_learn_scale(s->be, linear_at(s, i), arena));
    return VQ_OK;
}

vq_status vq_stage_set_scales(vq_stage *s)
{
    for (int64_t i = 0; i < n_linears(s); i++)
        VQ_TRY(vq_vqlinear_set_scale(s->be, linear_at(s, i)));
    return VQ_OK;
}

vq_status vq_stage_make_weights(const vq_stage *s, vq_mode mode, vq_arena *arena)
{
    for (int64_t i = 0; i < n_linears(s); i++)
        VQ_TRY(vq_vqlinear_make(s->be, linear_at(s, i), mode, arena, s->scratch));
    return VQ_OK;
}

void vq_stage_forget_weights(const vq_stage *s)
{
    for (int64_t i = 0; i < n_linears(s); i++) linear_at(s, i)->made = (vq_tensor){0};
}

/* cos and sin of position times frequency, worked out in f64 and rounded once... but the angle
 * itself is rounded to f32, as every model was trained with. */
static vq_status rope_tables(vq_arena *arena, vq_stage *s, int64_t T_max)
{
    const vq_model_config *c = &s->model->config;
    const vq_backend *be = s->be;
    const int64_t half = c->S / 2;
    VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(T_max, half), &s->cos));
    VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(T_max, half), &s->sin));
    size_t mark = vq_arena_mark(s->scratch);
    double *frequency;
    float *cosine, *sine;
    void *real;
    VQ_TRY(VQ_NEW(s->scratch, half, &frequency));
    VQ_TRY(VQ_NEW(s->scratch, T_max * half, &cosine));
    VQ_TRY(VQ_NEW(s->scratch, T_max * half, &sine));
    VQ_TRY(vq_arena_alloc(s->scratch, vq_tensor_bytes(&s->cos), &real));
    vq_rope_frequencies(c, frequency);
    for (int64_t t = 0; t < T_max; t++)
        for (int64_t i = 0; i < half; i++) {
            const double angle = (double)((float)t * (float)frequency[i]);
            cosine[t * half + i] = (float)cos(angle);
            sine[t * half + i] = (float)sin(angle);
        }
    VQ_TRY(vq_convert(real, be->real, cosine, VQ_F32, T_max * half));
    VQ_TRY(vq_upload(be, &s->cos, real));
    VQ_TRY(vq_convert(real, be->real, sine, VQ_F32, T_max * half));
    VQ_TRY(vq_upload(be, &s->sin, real));
    vq_arena_reset(s->scratch, mark);
    return VQ_OK;
}

/* What the stage computes with, at be's place: itself where that is the host, else a copy of the
 * descriptors with everything but the linears' weights uploaded; those come when they are used. */
static vq_status move_model(vq_arena *arena, vq_stage *s)
{
    const vq_model *m = s->model;
    s->there = m;
    if (s->be->place == VQ_HOST) return VQ_OK;
    vq_model *there;
    VQ_TRY(VQ_NEW(arena, 1, &there));
    *there = *m;
    VQ_TRY(VQ_NEW(arena, m->config.N, &there->layers));
    const bool is_first = vq_stage_is_first(s), is_last = vq_stage_is_last(s);
    const struct {
        vq_tensor *t;
        bool is_wanted;
    } ends[] = {{&there->embed, is_first},
                {&there->positions, is_first},
                {&there->project_in, is_first},
                {&there->project_out, is_last},
                {&there->final_norm_weight, is_last},
                {&there->final_norm_bias, is_last}};
    for (int i = 0; i < VQ_COUNT(ends); i++)
        if (ends[i].is_wanted && ends[i].t->data)
            VQ_TRY(vq_place_there(s->be, arena, ends[i].t, ends[i].t));
    if (is_last && is_first && m->head.data == m->embed.data)
        there->head = there->embed;
    else if (is_last)
        VQ_TRY(vq_place_there(s->be, arena, &m->head, &there->head));
    for (int64_t l = 0; l < m->config.N; l++) {
        vq_layer *layer = &there->layers[l];
        *layer = m->layers[l];
        vq_tensor *const norms[] = {&layer->norm1_weight, &layer->norm1_bias, &layer->norm2_weight,
                                    &layer->norm2_bias,   &layer->q_norm,     &layer->k_norm};
        if (l < s->first || l >= s->last) continue;
        for (int i = 0; i < VQ_COUNT(norms); i++)
            if (norms[i]->data) VQ_TRY(vq_place_there(s->be, arena, norms[i], norms[i]));
        for (int k = 0; k < VQ_N_KINDS; k++) {
            vq_tensor *bias = &layer->linear[k].bias;
            if (bias->data) VQ_TRY(vq_place_there(s->be, arena, bias, bias));
        }
    }
    s->there = there;
    return VQ_OK;
}

vq_status vq_stage_init(vq_arena *arena, const vq_backend *be, const vq_model *model, int64_t first,
                        int64_t last, int64_t T_max, vq_arena *scratch, vq_stage *s)
{
    const vq_model_config *c = &model->config;
    VQ_ASSERT(first >= 0 && first < last && last <= c->N);
    VQ_CHECK(T_max <= c->max_positions, VQ_EUSAGE,
             "%s: seqlen = %lld: expected at most max_position_embeddings = %lld. Lower --seqlen",
             model->dir, (long long)T_max, (long long)c->max_positions);
    *s = (vq_stage){.be = be, .model = model, .first = first, .last = last, .scratch = scratch};
    VQ_TRY(move_model(arena, s));
    if (c->rope_theta > 0) VQ_TRY(rope_tables(arena, s, T_max));
    VQ_TRY(VQ_NEW(arena, last - first, &s->block));
    for (int64_t l = first; l < last; l++) {
        vq_block *b = &s->block[l - first];
        const vq_layer *layer = &s->there->layers[l];
        *b = (vq_block){.be = be, .config = c, .layer = layer};
        if (c->rope_theta > 0) b->cos = &s->cos, b->sin = &s->sin;
        for (int k = 0; k < VQ_N_KINDS; k++)
            if (layer->linear[k].exists) b->linear[k].source = &layer->linear[k];
    }
    return VQ_OK;
}

static vq_status hold(const vq_stage *s, int64_t first, int64_t last, vq_arena *arena,
                      double room_bytes)
{
    if (s->be->place == VQ_HOST) return VQ_OK;
    for (int64_t i = first * VQ_N_KINDS; i < last * VQ_N_KINDS; i++) {
        vq_linear *l = &s->there->layers[i / VQ_N_KINDS].linear[i % VQ_N_KINDS];
        const double bytes = l->exists ? (double)vq_tensor_bytes(&l->weight) : 0;
        if (!l->exists || bytes > room_bytes) continue;
        VQ_TRY(vq_place_there(s->be, arena, &l->weight, &l->weight));
        room_bytes -= bytes;
    }
    return VQ_OK;
}

vq_status vq_stage_hold(const vq_stage *s, vq_arena *arena, double room_bytes)
{
    return hold(s, s->first, s->last, arena, room_bytes);
}

vq_status vq_stage_hold_layer(const vq_stage *s, int64_t layer, vq_arena *arena)
{
    return hold(s, layer, layer + 1, arena, INFINITY);
}

void vq_stage_drop(const vq_stage *s)
{
    if (s->be->place == VQ_HOST) return;
    for (int64_t i = s->first * VQ_N_KINDS; i < s->last * VQ_N_KINDS; i++)
        s->there->layers[i / VQ_N_KINDS].linear[i % VQ_N_KINDS].weight =
            s->model->layers[i / VQ_N_KINDS].linear[i % VQ_N_KINDS].weight;
}

/* --- what a backward needs ------------------------------------------------------------------- */

vq_status vq_kept_init(vq_arena *arena, const vq_stage *s, int64_t B, int64_t T, vq_keep keep,
                       vq_kept *k)
{
    const vq_model_config *c = &s->model->config;
    const vq_backend *be = s->be;
    const int64_t n_layers = s->last - s->first, n = B * T;
    const bool recompute = keep == VQ_KEEP_INPUTS || keep == VQ_KEEP_NOTHING;
    *k = (vq_kept){.B = B, .T = T, .recompute = recompute};
    VQ_TRY(VQ_NEW(arena, recompute ? 1 : n_layers, &k->layer));
    VQ_TRY(VQ_NEW(arena, n_layers, &k->input));
    for (int64_t l = 0; l < (recompute ? 1 : n_layers); l++)
        VQ_TRY(vq_acts_init(arena, be, c, B, T, &k->layer[l]));
    for (int64_t l = 0; l < n_layers; l++)
        if (keep == VQ_KEEP_INPUTS && l > 0)
            VQ_TRY(vq_tensor_new(arena, be->place, be->act, VQ_DIMS(n, c->E), &k->input[l]));
        else /* a layer has read its input before it writes its output */
            k->input[l] = k->layer[recompute ? 0 : l].x;
    if (keep == VQ_KEEP_SLICES) {
        VQ_TRY(VQ_NEW(arena, n_layers, &k->grads));
        for (int64_t l = 0; l < n_layers; l++)
            VQ_TRY(vq_act_grads_init(arena, be, c, B, T, &k->grads[l]));
    }
    if (!vq_stage_is_last(s)) return VQ_OK;
    if (c->final_norm || c->E_embed != c->E)
        VQ_TRY(vq_tensor_new(arena, be->place, be->act, VQ_DIMS(n, c->E), &k->final_in));
    if (c->final_norm) {
        if (c->E_embed != c->E)
            VQ_TRY(vq_tensor_new(arena, be->place, be->act, VQ_DIMS(n, c->E), &k->final_out));
        VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(n), &k->final_mean));
        VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(n), &k->final_rstd));
    }
    return VQ_OK;
}

size_t vq_kept_bytes(const vq_stage *s, int64_t B, int64_t T, vq_keep keep)
{
    const vq_model_config *c = &s->model->config;
    const size_t n_layers = (size_t)(s->last - s->first);
    const size_t row = (size_t)(B * T * c->E) * vq_dtype_bytes(s->be->act);
    const size_t acts = vq_acts_bytes(s->be, c, B, T);
    size_t total = keep == VQ_KEEP_NOTHING  ? acts
                   : keep == VQ_KEEP_INPUTS ? acts + (n_layers - 1) * row
                                            : n_layers * acts;
    if (keep == VQ_KEEP_SLICES) total += n_layers * vq_act_grads_bytes(s->be, c, B, T);
    if (vq_stage_is_last(s)) total += 2 * row + 2 * (size_t)(B * T) * vq_dtype_bytes(s->be->real);
    return total;
}

/* --- ends of the model ----------------------------------------------------------------------- */

static vq_status upload_ids(const vq_stage *s, const int32_t *ids, int64_t n, vq_tensor *out)
{
    VQ_TRY(vq_tensor_new(s->scratch, s->be->place, VQ_I32, VQ_DIMS(n), out));
    return vq_upload(s->be, out, ids);
}

/* y = x w^T, each sequence of T tokens by itself (vq_acts: product_rows). */
static vq_status project(const vq_stage *s, const vq_tensor *x, const vq_tensor *w, int64_t T,
                         vq_tensor *y)
{
    for (int64_t i = 0; i < x->dim[0]; i += T) {
        const vq_tensor from = vq_tensor_rows(x, i, T);
        vq_tensor to = vq_tensor_rows(y, i, T);
        VQ_TRY(vq_gemm(s->be, &to, &from, false, w, true, 1, 0));
    }
    return VQ_OK;
}

/* x = embedding of the ids (through project_in), plus OPT's learned positions. */
vq_status vq_stage_embed(const vq_stage *s, const vq_tensor *ids, int64_t first, vq_tensor *x)
{
    const vq_model *m = s->there;
    const int64_t T = ids->dim[1], n = ids->dim[0] * T;
    const int32_t *id = ids->data;
    for (int64_t i = 0; i < n; i++)
        VQ_CHECK(id[i] >= 0 && id[i] < m->config.V, VQ_EFILE,
                 "%s: token %lld has id %d, expected 0 to %lld. The tokenizer is not this model's: "
                 "use the files that came with the weights",
                 m->dir, (long long)i, id[i], (long long)m->config.V - 1);
    size_t mark = vq_arena_mark(s->scratch);
    vq_tensor ids_there, narrow;
    VQ_TRY(upload_ids(s, id, n, &ids_there));
    if (m->project_in.data) {
        VQ_TRY(vq_tensor_new(s->scratch, s->be->place, s->be->act, VQ_DIMS(n, m->config.E_embed),
                             &narrow));
        VQ_TRY(vq_embed(s->be, &narrow, &m->embed, &ids_there, false));
        VQ_TRY(project(s, &narrow, &m->project_in, T, x));
    } else {
        VQ_TRY(vq_embed(s->be, x, &m->embed, &ids_there, false));
    }
    if (m->positions.data) {
        int32_t *position;
        VQ_TRY(VQ_NEW(s->scratch, n, &position));
        for (int64_t i = 0; i < n; i++)
            position[i] = (int32_t)(first + i % T) + VQ_OPT_POSITION_OFFSET;
        VQ_TRY(upload_ids(s, position, n, &ids_there));
        VQ_TRY(vq_embed(s->be, x, &m->positions, &ids_there, true));
    }
    vq_arena_reset(s->scratch, mark);
    return VQ_OK;
}

static bool has_final(const vq_stage *s)
{
    return s->model->config.final_norm || s->there->project_out.data;
}

/* The rows of tokens [first, first + n) of a kept tensor. */
static vq_tensor rows(const vq_tensor *t, const vq_kept *k, int64_t first, int64_t n)
{
    return t->data ? vq_tensor_rows(t, first, k->B * n) : *t;
}

/* lm_head's input from the last layer's output in k->final_in. */
static vq_status final_fwd(const vq_stage *s, vq_kept *k, int64_t first, int64_t n, vq_tensor *out)
{
    const vq_model *m = s->there;
    const vq_model_config *c = &m->config;
    const vq_tensor in = rows(&k->final_in, k, first, n);
    vq_tensor normed = rows(&k->final_out, k, first, n), mean = rows(&k->final_mean, k, first, n),
              rstd = rows(&k->final_rstd, k, first, n);
    const vq_tensor *x = &in;
    if (c->final_norm) {
        vq_tensor *y = m->project_out.data ? &normed : out;
        if (m->final_norm_bias.data)
            VQ_TRY(vq_layernorm_fwd(s->be, y, &mean, &rstd, x, &m->final_norm_weight,
                                    &m->final_norm_bias, c->norm_eps));
        else
            VQ_TRY(vq_rmsnorm_fwd(s->be, y, &rstd, x, &m->final_norm_weight, c->norm_eps));
        x = y;
    }
    return m->project_out.data ? project(s, x, &m->project_out, n, out) : VQ_OK;
}

/* dx of the last layer's output. */
static vq_status final_bwd(const vq_stage *s, const vq_kept *k, int64_t first, int64_t n,
                           const vq_tensor *dout, vq_tensor *dx)
{
    const vq_model *m = s->there;
    const vq_tensor x = rows(&k->final_in, k, first, n), mean = rows(&k->final_mean, k, first, n),
                    rstd = rows(&k->final_rstd, k, first, n);
    const vq_tensor *dy = dout;
    if (m->project_out.data) {
        VQ_TRY(vq_gemm(s->be, dx, dout, false, &m->project_out, false, 1, 0));
        dy = dx;
    }
    if (!m->config.final_norm) return VQ_OK;
    if (m->final_norm_bias.data)
        return vq_layernorm_bwd(s->be, dx, dy, &x, &m->final_norm_weight, &mean, &rstd, NULL);
    return vq_rmsnorm_bwd(s->be, dx, dy, &x, &m->final_norm_weight, &rstd, NULL);
}

/* --- the run of layers ----------------------------------------------------------------------- */

/* The activations of layer l, with its input in place. */
static vq_acts *acts_of(const vq_stage *s, vq_kept *k, int64_t l)
{
    vq_acts *acts = &k->layer[k->recompute ? 0 : l];
    acts->x = k->input[l];
    if (!s->model->config.norm_before) acts->attn_in = acts->x;
    return acts;
}

vq_status vq_stage_fwd(const vq_stage *s, vq_mode mode, int64_t B, int64_t first,
                       const vq_tensor *in, vq_tensor *out, vq_kept *kept)
{
    const bool is_first = vq_stage_is_first(s), has_end = vq_stage_is_last(s) && has_final(s);
    VQ_ASSERT(in->dtype == (is_first ? VQ_I32 : s->be->act) && in->ndim == 2);
    const int64_t n = is_first ? in->dim[1] : in->dim[0] / B;
    const int64_t n_layers = s->last - s->first;
    VQ_ASSERT(kept ? kept->B == B && first + n <= kept->T : first == 0);
    size_t mark = vq_arena_mark(s->scratch);
    vq_kept forward_only;
    if (!kept) {
        VQ_TRY(vq_kept_init(s->scratch, s, B, n, VQ_KEEP_NOTHING, &forward_only));
        kept = &forward_only;
    }
    VQ_ASSERT(!kept->recompute || n == kept->T);
    kept->mode = mode;
    vq_tensor x = rows(&kept->input[0], kept, first, n);
    if (is_first)
        VQ_TRY(vq_stage_embed(s, in, first, &x));
    else
        VQ_TRY(vq_copy(s->be, &x, in));
    for (int64_t l = 0; l < n_layers; l++) {
        const bool is_end = l == n_layers - 1;
        vq_tensor y = !is_end   ? rows(&kept->input[l + 1], kept, first, n)
                      : has_end ? rows(&kept->final_in, kept, first, n)
                                : *out;
        VQ_TRY(vq_block_fwd(&s->block[l], mode, s->scratch, acts_of(s, kept, l), first, n, &y));
        vq_progress_part(l + 1, n_layers);
    }
    if (has_end) VQ_TRY(final_fwd(s, kept, first, n, out));
    vq_arena_reset(s->scratch, mark);
    return VQ_OK;
}

/* One layer back: dx in place, and its codebooks' gradient unless slices pass. */
static vq_status layer_bwd(const vq_stage *s, vq_kept *k, int64_t l, int64_t first, int64_t n,
                           vq_tensor *dx)
{
    const vq_block *block = &s->block[l];
    const bool is_wanted = l > 0 || !vq_stage_is_first(s);
    vq_acts *acts = acts_of(s, k, l);
    if (k->grads)
        return vq_block_bwd(block, k->mode, s->scratch, acts, &k->grads[l], first, n, dx,
                            is_wanted ? dx : NULL);
    size_t mark = vq_arena_mark(s->scratch);
    vq_act_grads grads;
    if (k->recompute) {
        vq_tensor y;
        VQ_TRY(vq_tensor_new(s->scratch, s->be->place, s->be->act, VQ_DIMS(dx->dim[0], dx->dim[1]),
                             &y));
        VQ_TRY(vq_block_fwd(block, k->mode, s->scratch, acts, 0, k->T, &y));
    }
    VQ_TRY(vq_act_grads_init(s->scratch, s->be, &s->model->config, k->B, k->T, &grads));
    VQ_TRY(vq_block_bwd(block, k->mode, s->scratch, acts, &grads, first, n, dx,
                        is_wanted ? dx : NULL));
    VQ_TRY(vq_block_bwd_codes(block, s->scratch, acts, &grads));
    vq_arena_reset(s->scratch, mark);
    return VQ_OK;
}

vq_status vq_stage_bwd(const vq_stage *s, vq_kept *kept, int64_t first, const vq_tensor *dout,
                       vq_tensor *din)
{
    const int64_t n = dout->dim[0] / kept->B;
    VQ_ASSERT(kept->grads || n == kept->T);
    size_t mark = vq_arena_mark(s->scratch);
    vq_tensor dx;
    VQ_TRY(vq_tensor_new(s->scratch, s->be->place, s->be->act,
                         VQ_DIMS(dout->dim[0], s->model->config.E), &dx));
    if (vq_stage_is_last(s) && has_final(s))
        VQ_TRY(final_bwd(s, kept, first, n, dout, &dx));
    else
        VQ_TRY(vq_copy(s->be, &dx, dout));
    for (int64_t l = s->last - s->first - 1; l >= 0; l--) {
        VQ_TRY(layer_bwd(s, kept, l, first, n, &dx));
        vq_progress_part(s->last - s->first - l, s->last - s->first);
    }
    if (!vq_stage_is_first(s)) VQ_TRY(vq_copy(s->be, din, &dx));
    vq_arena_reset(s->scratch, mark);
    return VQ_OK;
}

vq_status vq_stage_bwd_codes(const vq_stage *s, vq_kept *kept)
{
    for (int64_t l = s->last - s->first - 1; kept->grads && l >= 0; l--) {
        vq_act_grads *grads = &kept->grads[l];
        VQ_TRY(vq_block_bwd_codes(&s->block[l], s->scratch, acts_of(s, kept, l), grads));
        VQ_TRY(vq_zero(s->be, &grads->dk));
        VQ_TRY(vq_zero(s->be, &grads->dv));
    }
    return VQ_OK;
}
