/* plan - sums over phases, links and operations. */
#include "plan.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "codebook.h"
#include "cpu_backend.h"
#include "error.h"
#include "grid.h"
#include "log.h"

#define GIB ((double)(1 << 30))
#define MIB ((double)(1 << 20))

#define BATCH_TOKENS 2048      /* of windows that go together in evaluation */
#define LOGITS_BYTES (64.0e6)  /* of a chunk of the head's logits */
#define PROGRAM_BYTES (25.0e6) /* code and libraries, HDF5 and MPI at work */
#define THREAD_BYTES (7.0e6)   /* the kernels' and the BLAS' buffers */
#define KEEP_ROOM 0.8          /* of the memory there is: training above it recomputes */

/* Operations that take as long as making a weight from its code, or adding its gradient to it. */
#define ROUND_FLOPS 60.0
/* Passes of our k-means over its sample, from its own start and from the shared one; and how long
 * one of its operations takes beside one of a matrix product. */
#define KMEANS_PASSES_OWN 10.0
#define KMEANS_PASSES_SHARED 4.0
#define KMEANS_COST 2.0

const char *vq_plan_phase_name(vq_plan_phase phase)
{
    static const char *const names[VQ_PLAN_N_PHASES] = {"init",  "blocks", "teacher",
                                                        "train", "eval",   "export"};
    return names[phase];
}

/* --- sizes ----------------------------------------------------------------------------------- */

static bool has_codebook(const vq_config *c)
{
    return c->method == VQ_METHOD_VQROUND;
}

static bool has_teacher(const vq_config *c)
{
    return vq_config_learns(c) && c->train.loss == VQ_LOSS_KD;
}

static bool keeps_ints(const vq_config *c)
{
    return c->method == VQ_METHOD_GPTQ || (vq_config_uses_gptq(c) && c->eval.start);
}

static int64_t eval_seqlen(const vq_config *c)
{
    return c->eval.seqlen ? c->eval.seqlen : c->seqlen;
}

static vq_codebook_config codebook_config(const vq_config *c)
{
    return (vq_codebook_config){
        .K = c->K,
        .D = c->D,
        .kmeans = {.max_points_per_centroid = c->kmeans.max_points_per_centroid,
                   .by_sign = c->kmeans.by_sign}};
}

/* What is summed over a run of layers. */
typedef struct sums {
    double weights, quantized;      /* of linears */
    double integers, counts, codes; /* bytes; codes: what is trained, once */
    double largest;                 /* weights of the largest linear */
} sums;

static sums sum_layers(const vq_config *c, const vq_model_config *m, int64_t first, int64_t last)
{
    const vq_grid_config grid = {.bits = (int)c->bits, .group_size = c->group_size};
    const vq_codebook_config codebook = codebook_config(c);
    const vq_pool_rule rule = vq_pool_rule_of(c);
    const double int_bytes = (double)vq_dtype_bytes(vq_grid_base_dtype((int)c->bits));
    sums s = {0};
    for (int64_t i = first * VQ_N_KINDS; i < last * VQ_N_KINDS; i++) {
        const vq_linear_kind kind = (vq_linear_kind)(i % VQ_N_KINDS);
        char name[256];
        int64_t out, in;
        if (!vq_linear_shape(m, kind, &out, &in)) continue;
        const double n = (double)(out * in);
        s.weights += n;
        s.largest = VQ_MAX(s.largest, n);
        if (!vq_pool_takes(vq_linear_name(m, i / VQ_N_KINDS, kind, name), &c->skip)) continue;
        s.quantized += n;
        s.integers += (double)vq_grid_bytes(&grid, out, in) + (keeps_ints(c) ? n * int_bytes : 0);
        if (!vq_config_learns(c)) continue;
        const vq_pool_slot slot = vq_pool_shape(&rule, out, in);
        s.codes += (double)(slot.n * slot.width + slot.out * slot.groups) * sizeof(float);
        s.integers += (double)(slot.out * slot.groups) * sizeof(float); /* the first scales */
        if (!has_codebook(c)) continue;
        const int64_t K = vq_codebook_codes(&codebook, out * in);
        s.integers += (double)(K * c->D) * sizeof(uint32_t) +
                      (double)(vq_codebook_vectors(&codebook, out * in) *
                               (int64_t)vq_dtype_bytes(vq_codebook_idx_dtype(K)));
    }
    return s;
}

/* Whether every rank holds everything that is trained. */
static bool is_pool_whole(const vq_config *c, const sums *all)
{
    return all->codes <= (double)c->train.pool_max * sizeof(float);
}

/* A rank's own view: its place, and an empty stage of a model for functions that need shapes. */
typedef struct view {
    const vq_plan_input *in;
    const vq_config *c;
    vq_job job;       /* with topology, backend types, shapes and stage alone */
    vq_model teacher; /* its shapes */
    vq_stage teacher_stage;
    sums own, teacher_own, all;
    double act, weight, teacher_weight; /* bytes of an element */
    int max_micro;
    bool is_first, is_last;
} view;

static void make_view(view *v, const vq_plan_input *in, const vq_topo *topo, const vq_topo *teacher)
{
    const vq_config *c = in->config;
    const vq_model_config *m = &in->model->config;
    *v = (view){.in = in,
                .c = c,
                .own = sum_layers(c, m, topo->first, topo->last),
                .teacher_own = sum_layers(c, &in->teacher->config, teacher->first, teacher->last),
                .all = sum_layers(c, m, 0, m->N),
                .act = (double)vq_dtype_bytes(in->act),
                .weight = (double)vq_dtype_bytes(in->model->dtype),
                .teacher_weight = (double)vq_dtype_bytes(in->teacher->dtype),
                .max_micro = (int)VQ_CEIL_DIV(c->train.batch, topo->n_replicas),
                .is_first = topo->stage == 0,
                .is_last = vq_topo_is_last(topo)};
    v->job = (vq_job){.config = c, .topo = *topo, .be = {.act = in->act, .real = VQ_F32}};
    v->job.model.config = *m;
    v->teacher.config = in->teacher->config;
    v->job.stage = (vq_stage){
        .be = &v->job.be, .model = &v->job.model, .first = topo->first, .last = topo->last};
    v->teacher_stage = (vq_stage){
        .be = &v->job.be, .model = &v->teacher, .first = teacher->first, .last = teacher->last};
}

/* --- memory ---------------------------------------------------------------------------------- */

/* Pages of embedding and head. */
static double ends_bytes(const vq_model_config *m, double weight, bool is_first, bool is_last)
{
    const double table = (double)(m->V * m->E_embed) * weight;
    const int n = m->tied ? is_first || is_last : is_first + is_last;
    return n * table +
           (is_first && m->family == VQ_OPT ? (double)(m->max_positions * m->E) * weight : 0);
}

/* The largest weight as it is made for a pass: with the logits where these are made too. */
static double made_bytes(const view *v)
{
    const bool twice = vq_config_scatters(v->c); /* and with its columns in another order */
    return v->own.largest * (v->act * (1 + twice) + (v->c->method == VQ_METHOD_LORA ? 4 : 0));
}

/* A forward that keeps nothing, of B windows of T tokens with its messages; quantized: its weights
 * are made for it. */
static double forward_bytes(const view *v, const vq_stage *stage, int64_t B, int64_t T,
                            bool quantized)
{
    const double in = v->is_first ? 0 : (double)stage->model->config.E;
    const double messages = 2 * (double)(B * T) * (in + (double)vq_stage_out_width(stage)) * v->act;
    return (double)vq_kept_bytes(stage, B, T, VQ_KEEP_NOTHING) + messages +
           (quantized ? made_bytes(v) : 0);
}

/* Logits of the head over n tokens, of one model or of teacher and student. */
static double logits_bytes(const view *v, int64_t n, int n_models)
{
    const double all = (double)(n * n_models * v->job.model.config.V) * 4;
    return v->is_last ? VQ_MIN(all, LOGITS_BYTES) : 0;
}

static double gptq_bytes(const view *v)
{
    const vq_model_config *m = &v->job.model.config;
    const vq_config *c = v->c;
    const int64_t widest = VQ_MAX(m->F, m->H * m->S);
    const double E = (double)m->E, attn = (double)(m->H * m->S), F = (double)m->F;
    const double n = (double)VQ_MAX(widest, m->E);
    const double hessians = 8 * (2 * E * E + attn * attn + F * F), factor = n * n * (4 + 8);
    const double windows = (double)VQ_CEIL_DIV(c->nsamples, v->job.topo.n_replicas);
    const double inputs = windows * (double)c->seqlen * E * v->act;
    const double pass =
        (double)vq_acts_bytes(&v->job.be, m, 1, c->seqlen) + (double)c->seqlen * E * v->act;
    const double ints = v->own.weights / (double)(v->job.stage.last - v->job.stage.first);
    const double room = v->in->memory_bytes / 2;
    return hessians + factor + (room > 0 && inputs > room ? 0 : inputs) + VQ_MAX(pass, ints);
}

static double init_bytes(const view *v)
{
    const vq_config *c = v->c;
    const vq_codebook_config codebook = codebook_config(c);
    const int64_t n = (int64_t)v->own.largest, n_vec = vq_codebook_vectors(&codebook, n);
    double bytes = v->own.largest * 4;                            /* the residual */
    if (c->method == VQ_METHOD_LORA) bytes += v->own.largest * 4; /* the logits */
    if (has_codebook(c)) {
        const double sample =
            (double)VQ_MIN(n_vec, c->kmeans.max_points_per_centroid * c->K) * (double)c->D * 4;
        bytes += (double)vq_codebook_scratch_bytes(&codebook, n) + 8 * (double)n_vec;
        if (c->kmeans.engine == VQ_KMEANS_FAISS) bytes += 2 * sample;
    }
    return bytes + (vq_config_uses_gptq(c) ? gptq_bytes(v) : 0);
}

static double train_work_bytes(const view *v, vq_keep keep)
{
    const vq_config *c = v->c;
    const vq_model_config *m = &v->job.model.config;
    int64_t n = c->seqlen;
    if (keep == VQ_KEEP_SLICES) n = VQ_CEIL_DIV(3 * n, 2 * c->slices); /* the longest */
    const double T = (double)n, E = (double)m->E, attn = (double)(m->H * m->S);
    const double weight =
        made_bytes(v) + (c->method == VQ_METHOD_LORA ? v->own.largest * 4 : 0); /* and gradient */
    const double grads =
        keep == VQ_KEEP_SLICES ? 0 : (double)vq_act_grads_bytes(&v->job.be, m, 1, c->seqlen);
    const double again = keep == VQ_KEEP_INPUTS ? T * E * v->act : 0;
    const double backward = T * (E + VQ_MAX((double)m->F, attn)) * v->act + weight;
    const double heads = 8 * (double)(VQ_CEIL_DIV(24, m->H) * c->seqlen) * attn;
    const double messages = v->job.topo.n_stages > 1 ? 4 * T * E * v->act : 0;
    return T * E * v->act + again + grads + backward + messages +
           VQ_MAX(logits_bytes(v, n, has_teacher(c) ? 2 : 1), heads);
}

/* Both streams' inputs, and a layer's forward and backward. */
static double blocks_bytes(const view *v)
{
    const vq_config *c = v->c;
    const vq_model_config *m = &v->job.model.config;
    const double n = (double)c->seqlen * (double)m->E * v->act;
    const double inputs = (double)VQ_CEIL_DIV(c->nsamples, v->job.topo.n_replicas) * n;
    const double room = v->in->memory_bytes / 4;
    const double step = (double)(vq_acts_bytes(&v->job.be, m, v->max_micro, c->seqlen) +
                                 vq_act_grads_bytes(&v->job.be, m, v->max_micro, c->seqlen));
    return (room > 0 && inputs > room ? 0 : 2 * inputs) + step + 4 * v->max_micro * n +
           3 * made_bytes(v);
}

/* All parts in one phase. */
static void phase_bytes(const view *v, vq_plan_phase phase, vq_keep keep, double *part)
{
    const vq_config *c = v->c;
    const bool caches = has_teacher(c) && c->teacher.cache,
               is_other = v->in->teacher != v->in->model;
    const bool is_leader = v->job.topo.stage + v->job.topo.replica == 0;
    const int64_t T = c->seqlen, T_eval = eval_seqlen(c);
    const double linears = v->own.weights * v->weight;
    const bool is_whole = is_pool_whole(c, &v->all);
    const double pool = is_whole ? v->all.codes : v->own.codes;
    const double teacher_linears = v->teacher_own.weights * v->teacher_weight;
    const double ends = ends_bytes(&v->job.model.config, v->weight, v->is_first, v->is_last);
    const double teacher_ends =
        ends_bytes(&v->teacher.config, v->teacher_weight, v->is_first && is_other, v->is_last);
    const double states =
        (double)(VQ_MIN(v->max_micro, c->nsamples) * T * v->teacher.config.E_embed);
    const int64_t longest = VQ_MAX(T, c->eval.run ? T_eval : 0);
    memset(part, 0, VQ_PLAN_N_PARTS * sizeof *part);
    part[VQ_PLAN_PROGRAM] = PROGRAM_BYTES + THREAD_BYTES * v->in->threads +
                            16 * (double)(longest * v->job.model.config.S / 2) +
                            (is_leader ? 4 * (double)(c->nsamples * T) : 0);
    part[VQ_PLAN_INTEGERS] = v->own.integers;
    part[VQ_PLAN_CODES] = 2 * pool;
    if (phase == VQ_PLAN_BLOCKS || (phase >= VQ_PLAN_TRAIN && (is_leader || !is_whole)))
        part[VQ_PLAN_CODES] += 2 * pool;
    switch (phase) {
    case VQ_PLAN_INIT:
        part[VQ_PLAN_WEIGHTS] = v->own.largest * v->weight;
        if (vq_config_uses_gptq(c))
            part[VQ_PLAN_WEIGHTS] = linears / (double)(v->job.stage.last - v->job.stage.first) +
                                    (v->is_first ? ends : 0);
        part[VQ_PLAN_WORK] = init_bytes(v);
        break;
    case VQ_PLAN_BLOCKS:
        part[VQ_PLAN_WEIGHTS] =
            linears / (double)(v->job.stage.last - v->job.stage.first) + (v->is_first ? ends : 0);
        part[VQ_PLAN_WORK] = blocks_bytes(v);
        break;
    case VQ_PLAN_CACHE:
        part[VQ_PLAN_WEIGHTS] = teacher_linears + (is_other ? teacher_ends : ends);
        part[VQ_PLAN_WORK] =
            forward_bytes(v, &v->teacher_stage, 1, T, false) + logits_bytes(v, T, 2);
        break;
    case VQ_PLAN_TRAIN:
        part[VQ_PLAN_WEIGHTS] = ends + (is_other ? teacher_ends : 0);
        part[VQ_PLAN_KEPT] = (double)vq_pipeline_bytes(&v->job, T, v->max_micro, keep);
        part[VQ_PLAN_WORK] = train_work_bytes(v, keep);
        if (!has_teacher(c)) break;
        if (v->is_last) part[VQ_PLAN_TEACHER] = states * (caches ? v->teacher_weight : v->act);
        if (caches) break;
        part[VQ_PLAN_WEIGHTS] += teacher_linears;
        part[VQ_PLAN_TEACHER] += forward_bytes(v, &v->teacher_stage, 1, T, false);
        break;
    case VQ_PLAN_EVAL:
        part[VQ_PLAN_WEIGHTS] = linears + ends;
        part[VQ_PLAN_WORK] =
            forward_bytes(v, &v->job.stage, VQ_MAX(1, BATCH_TOKENS / T_eval), T_eval, true) +
            logits_bytes(v, T_eval, 1);
        break;
    case VQ_PLAN_EXPORT:
        part[VQ_PLAN_WEIGHTS] = ends + (c->method == VQ_METHOD_RTN ? linears : 0);
        part[VQ_PLAN_WORK] = v->own.largest * (2 * v->act + v->weight);
        break;
    case VQ_PLAN_N_PHASES: break;
    }
}

static bool has_phase(const vq_config *c, vq_plan_phase phase)
{
    switch (phase) {
    case VQ_PLAN_BLOCKS: return vq_config_learns(c) && c->train.block_steps > 0;
    case VQ_PLAN_CACHE: return has_teacher(c) && c->teacher.cache;
    case VQ_PLAN_TRAIN: return vq_config_learns(c);
    case VQ_PLAN_EVAL: return c->eval.run;
    default: return true;
    }
}

static double sum_parts(const double *part)
{
    double total = 0;
    for (int i = 0; i < VQ_PLAN_N_PARTS; i++) total += part[i];
    return total;
}

static vq_keep choose_keep(const view *v)
{
    const vq_switch recompute = v->c->train.recompute;
    double part[VQ_PLAN_N_PARTS];
    if (v->c->slices > 1) return VQ_KEEP_SLICES;
    if (recompute != VQ_AUTO) return recompute == VQ_ON ? VQ_KEEP_INPUTS : VQ_KEEP_ALL;
    phase_bytes(v, VQ_PLAN_TRAIN, VQ_KEEP_ALL, part);
    const double room = v->in->memory_bytes * KEEP_ROOM;
    return room > 0 && sum_parts(part) > room ? VQ_KEEP_INPUTS : VQ_KEEP_ALL;
}

static void plan_rank(const view *v, vq_plan_rank *r)
{
    r->keep = choose_keep(v);
    for (int phase = 0; phase < VQ_PLAN_N_PHASES; phase++) {
        double part[VQ_PLAN_N_PARTS];
        if (!has_phase(v->c, (vq_plan_phase)phase)) continue;
        phase_bytes(v, (vq_plan_phase)phase, r->keep, part);
        const double total = sum_parts(part);
        r->fixed_bytes = VQ_MAX(r->fixed_bytes, total - part[VQ_PLAN_WEIGHTS]);
        if (total <= r->total_bytes) continue;
        r->total_bytes = total;
        r->phase = (vq_plan_phase)phase;
        memcpy(r->bytes, part, sizeof part);
    }
}

/* --- operations and time --------------------------------------------------------------------- */

/* Of one sequence through a stage. */
typedef struct work {
    double forward, backward, codes; /* operations, the head's in forward */
    double teacher;                  /* its forward */
} work;

static work stage_work(const view *v, vq_keep keep)
{
    const vq_model_config *m = &v->job.model.config, *t = &v->teacher.config;
    const double T = (double)v->c->seqlen,
                 layers = (double)(v->job.stage.last - v->job.stage.first);
    const double attend = layers * 2 * T * T * (double)(m->H * m->S);
    const double round = ROUND_FLOPS * v->own.quantized * (double)v->c->slices;
    const double head = v->is_last ? 2 * T * (double)(m->V * m->E_embed) : 0;
    const double teacher_layers = (double)(v->teacher_stage.last - v->teacher_stage.first);
    work w = {.forward = 2 * T * v->own.weights + attend + round,
              .codes = 2 * T * v->own.quantized + 2 * ROUND_FLOPS * v->own.quantized,
              .teacher = 2 * T * v->teacher_own.weights +
                         teacher_layers * 2 * T * T * (double)(t->H * t->S)};
    w.backward = w.forward + 1.5 * attend + (keep == VQ_KEEP_INPUTS ? w.forward : 0);
    w.forward += (has_teacher(v->c) ? 3 : 2) * head;
    return w;
}

/* Of a stage's grids and codebooks. */
static double init_work(const view *v)
{
    const vq_config *c = v->c;
    const vq_model_config *m = &v->job.model.config;
    const double layers = (double)(v->job.stage.last - v->job.stage.first);
    const double n = (double)c->nsamples * (double)c->seqlen, E = (double)m->E, F = (double)m->F;
    double flops = 0;
    if (has_codebook(c)) {
        const double n_vec = v->own.quantized / (double)c->D;
        const double n_linears = v->own.codes / (double)(c->K * c->D * 4);
        const double sample =
            VQ_MIN(n_linears * (double)(c->kmeans.max_points_per_centroid * c->K), n_vec);
        double passes = (double)c->kmeans.iters;
        if (c->kmeans.engine == VQ_KMEANS_VQ)
            passes = VQ_MIN(passes, c->kmeans.start == VQ_START_OWN ? KMEANS_PASSES_OWN
                                                                    : KMEANS_PASSES_SHARED);
        /* A vector is compared with its own pattern's codes alone where there are enough. */
        const double patterns = c->kmeans.by_sign ? exp2((double)c->D) : 1;
        const double codes = (double)c->K / (patterns <= (double)c->K ? patterns : 1);
        flops = KMEANS_COST * 2 * codes * (double)c->D * (passes * sample + n_vec);
    }
    if (!vq_config_uses_gptq(c)) return flops;
    return flops + 2 * n * v->own.weights + layers * n * (3 * E * E + F * F) +
           layers * (2 * F * F * F + 8 * E * E * E + 10 * E * E * F);
}

/* Operations a second. Without a speed the idle share is still that of the operations. */
static double speed_of(const vq_plan *p)
{
    return p->input.gflops > 0 ? p->input.gflops * 1e9 : 1;
}

static bool runs_teacher(const vq_config *c)
{
    return has_teacher(c) && !c->teacher.cache;
}

static double slowest_teacher(const vq_plan *p, const work *by_stage)
{
    double slowest = 0;
    for (int s = 0; s < p->n_stages; s++) slowest = VQ_MAX(slowest, by_stage[s].teacher);
    return slowest / speed_of(p);
}

static vq_status plan_step(vq_arena *arena, vq_plan *p, const work *by_stage)
{
    const vq_plan_input *in = &p->input;
    const vq_config *c = in->config;
    const double speed = speed_of(p), link = c->plan.link_gbs * 1e9, n = in->n_ranks;
    const int n_micro = (int)VQ_CEIL_DIV(c->train.batch, p->n_replicas);
    double busy = 0, teacher = 0;
    vq_stage_cost *cost;
    double *share;
    const size_t mark = vq_arena_mark(arena);
    VQ_TRY(VQ_NEW(arena, p->n_stages, &cost));
    VQ_TRY(VQ_NEW(arena, c->slices, &share));
    for (int64_t i = 0; i < c->slices; i++) share[i] = 1 / (double)c->slices;
    for (int s = 0; s < p->n_stages; s++) {
        const work *w = &by_stage[s];
        cost[s] = (vq_stage_cost){.forward_s = w->forward / speed,
                                  .backward_s = w->backward / speed,
                                  .codes_s = w->codes / speed};
        if (in->gflops > 0) cost[s].message_s = p->step.backward_bytes / n_micro / link;
        busy += w->forward + w->backward + w->codes;
        if (runs_teacher(c)) teacher += w->teacher;
    }
    VQ_TRY(vq_schedule_idle(arena, p->n_stages, n_micro, (int)c->slices, share, cost,
                            &p->step.idle_ratio));
    vq_arena_reset(arena, mark);
    p->step.flops = (busy + teacher) * (double)c->train.batch;
    if (in->gflops == 0) return VQ_OK;
    p->step.seconds = busy * n_micro / speed / p->n_stages / (1 - p->step.idle_ratio) +
                      (2 * (n - 1) / n * p->step.reduce_bytes + p->step.broadcast_bytes) / link;
    if (runs_teacher(c))
        p->step.seconds += slowest_teacher(p, by_stage) * (n_micro + p->n_stages - 1);
    return VQ_OK;
}

static void plan_seconds(vq_plan *p, const work *by_stage, const double *init)
{
    const vq_config *c = p->input.config;
    const double stages = p->n_stages, replicas = p->n_replicas;
    double slowest_init = 0, slowest_forward = 0;
    if (p->input.gflops == 0) return;
    for (int s = 0; s < p->n_stages; s++) {
        slowest_init = VQ_MAX(slowest_init, init[s] / speed_of(p));
        slowest_forward = VQ_MAX(slowest_forward, by_stage[s].forward / speed_of(p));
    }
    p->seconds.init = slowest_init / replicas;
    if (has_teacher(c) && c->teacher.cache)
        p->seconds.teacher =
            slowest_teacher(p, by_stage) * ((double)c->nsamples / replicas + stages - 1);
    if (vq_config_learns(c)) {
        /* The stages one after the other. */
        const double passes =
            (double)c->train.block_steps * (double)VQ_CEIL_DIV(c->train.batch, p->n_replicas);
        for (int s = 0; s < p->n_stages; s++)
            p->seconds.blocks += passes *
                                 (by_stage[s].forward + by_stage[s].backward + by_stage[s].codes) /
                                 speed_of(p);
        p->seconds.train = p->step.seconds * (double)c->train.steps;
    }
    if (c->eval.run) {
        const int passes = vq_config_learns(c) ? 4 : c->method == VQ_METHOD_GPTQ ? 3 : 2;
        p->seconds.eval = slowest_forward * passes * (double)c->eval.max_windows / replicas *
                          (double)eval_seqlen(c) / (double)c->seqlen;
    }
    p->seconds.total = p->seconds.init + p->seconds.blocks + p->seconds.teacher + p->seconds.train +
                       p->seconds.eval;
}

/* --- links and disk -------------------------------------------------------------------------- */

static void plan_links(vq_plan *p)
{
    const vq_plan_input *in = &p->input;
    const vq_config *c = in->config;
    const double row = (double)(c->seqlen * in->model->config.E) * (double)vq_dtype_bytes(in->act);
    const double micro = (double)VQ_CEIL_DIV(c->train.batch, p->n_replicas);
    const double teacher = has_teacher(c) && !c->teacher.cache ? micro * row : 0;
    for (int r = 0; r + 1 < in->n_ranks; r++) {
        if (vq_topo_is_last(&p->rank[r].topo)) continue;
        if (p->rank[r].node == p->rank[r + 1].node)
            p->step.links_within++;
        else
            p->step.links_between++;
    }
    if (!vq_config_learns(c)) return;
    if (p->n_stages > 1) {
        p->step.forward_bytes = micro * row + teacher;
        p->step.backward_bytes = micro * row;
    }
    if (in->n_ranks == 1) return;
    const sums all = sum_layers(c, &in->model->config, 0, in->model->config.N);
    if (is_pool_whole(c, &all))
        p->step.reduce_bytes = p->step.broadcast_bytes = all.codes;
    else if (p->n_replicas > 1)
        p->step.reduce_bytes = all.codes / p->n_stages;
    const double ends = (p->n_stages > 1 ? 2.0 : 1.0) * p->n_replicas - 1;
    p->step.ids_bytes = ends * micro * (double)c->seqlen * 4;
}

static void plan_disk(vq_plan *p)
{
    const vq_plan_input *in = &p->input;
    const vq_config *c = in->config;
    const sums all = sum_layers(c, &in->model->config, 0, in->model->config.N);
    p->disk_bytes.init = all.integers + all.codes;
    if (vq_config_learns(c) && c->train.block_steps > 0) p->disk_bytes.init += all.codes;
    if (has_teacher(c) && c->teacher.cache)
        p->disk_bytes.teacher = (double)(c->nsamples * c->seqlen * in->teacher->config.E_embed) *
                                (double)vq_dtype_bytes(in->teacher->dtype);
    /* The one that is being written comes before the oldest goes. */
    if (vq_config_learns(c))
        p->disk_bytes.checkpoints = (double)(c->checkpoint.keep + 1) * 3 * all.codes;
    p->disk_bytes.model =
        (double)vq_model_weights(&in->model->config) * (double)vq_dtype_bytes(in->model->dtype);
    p->disk_bytes.total = p->disk_bytes.init + p->disk_bytes.teacher + p->disk_bytes.checkpoints +
                          p->disk_bytes.model;
}

vq_status vq_plan_make(vq_arena *arena, const vq_plan_input *in, vq_plan *p)
{
    work *by_stage;
    double *init;
    vq_topo teacher;
    view *v;
    *p = (vq_plan){.input = *in};
    VQ_TRY(VQ_NEW(arena, in->n_ranks, &p->rank));
    VQ_TRY(VQ_NEW(arena, in->n_ranks, &by_stage));
    VQ_TRY(VQ_NEW(arena, in->n_ranks, &init));
    VQ_TRY(VQ_NEW(arena, 1, &v));
    for (int i = 0; i < in->n_ranks; i++) {
        vq_plan_rank *r = &p->rank[i];
        *r = (vq_plan_rank){.node = (int)((int64_t)i * in->n_nodes / in->n_ranks)};
        VQ_TRY(vq_topo_make(in->config, &in->model->config, i, in->n_ranks, &r->topo));
        VQ_CHECK(in->teacher->config.N >= r->topo.n_stages, VQ_EUSAGE,
                 "teacher.model has %lld layers, expected at least a layer a stage (%d). Use fewer "
                 "stages",
                 (long long)in->teacher->config.N, r->topo.n_stages);
        VQ_TRY(vq_topo_make(in->config, &in->teacher->config, i, in->n_ranks, &teacher));
        make_view(v, in, &r->topo, &teacher);
        plan_rank(v, r);
        if (r->topo.replica > 0) continue;
        by_stage[r->topo.stage] = stage_work(v, r->keep);
        init[r->topo.stage] = init_work(v);
    }
    p->n_stages = p->rank[0].topo.n_stages;
    p->n_replicas = p->rank[0].topo.n_replicas;
    plan_links(p);
    plan_disk(p);
    if (vq_config_learns(in->config)) VQ_TRY(plan_step(arena, p, by_stage));
    plan_seconds(p, by_stage, init);
    return VQ_OK;
}

vq_status vq_plan_model_read(vq_arena *arena, const char *dir, vq_plan_model *model)
{
    char *path, *text;
    size_t n;
    VQ_TRY(vq_path_join(arena, dir, "config.json", &path));
    VQ_TRY(vq_file_read(arena, path, &text, &n));
    VQ_TRY(vq_model_config_parse(text, n, path, &model->config));
    VQ_TRY(vq_model_require_dense(&model->config, path));
    model->dtype = vq_model_config_dtype(text, n);
    return VQ_OK;
}

/* --- the machine ----------------------------------------------------------------------------- */

vq_status vq_plan_measure(const vq_backend *be, vq_arena *scratch, double *gflops)
{
    const int64_t m = 512, n = 2048, k = 2048; /* as a layer's products */
    const double flops = 2.0 * (double)(m * n * k), limit_s = 0.7;
    vq_tensor x, w, y;
    const size_t mark = vq_arena_mark(scratch);
    VQ_TRY(vq_tensor_new(scratch, be->place, be->act, VQ_DIMS(m, k), &x));
    VQ_TRY(vq_tensor_new(scratch, be->place, be->act, VQ_DIMS(n, k), &w));
    VQ_TRY(vq_tensor_new(scratch, be->place, be->act, VQ_DIMS(m, n), &y));
    VQ_TRY(vq_zero(be, &x));
    VQ_TRY(vq_zero(be, &w));
    VQ_TRY(vq_gemm(be, &y, &x, false, &w, true, 1, 0)); /* threads and buffers are there then */
    int count = 0;
    const double start_s = vq_seconds();
    double spent_s = 0;
    for (; spent_s < limit_s; count++) {
        VQ_TRY(vq_gemm(be, &y, &x, false, &w, true, 1, 0));
        VQ_TRY(vq_sync(be));
        spent_s = vq_seconds() - start_s;
    }
    vq_arena_reset(scratch, mark);
    *gflops = flops * count / spent_s / 1e9;
    return VQ_OK;
}

/* --- printing -------------------------------------------------------------------------------- */

static const char *keep_name(vq_keep keep)
{
    static const char *const names[] = {[VQ_KEEP_NOTHING] = "nothing",
                                        [VQ_KEEP_INPUTS] = "computed again",
                                        [VQ_KEEP_ALL] = "all kept",
                                        [VQ_KEEP_SLICES] = "all kept, in slices"};
    return names[keep];
}

static void print_memory(const vq_plan *p)
{
    printf("\nMemory by rank in its dearest phase, GiB (activations: %s)\n",
           keep_name(p->rank[0].keep));
    printf("%5s %5s %9s  %-8s %8s %8s %8s %8s %8s %8s %8s %8s\n", "rank", "node", "layers", "phase",
           "weights", "integers", "codes", "kept", "teacher", "work", "program", "total");
    for (int i = 0; i < p->input.n_ranks; i++) {
        const vq_plan_rank *r = &p->rank[i];
        char layers[32];
        snprintf(layers, sizeof layers, "%lld-%lld", (long long)r->topo.first,
                 (long long)r->topo.last - 1);
        printf("%5d %5d %9s  %-8s", i, r->node, layers, vq_plan_phase_name(r->phase));
        for (int k = 0; k < VQ_PLAN_N_PARTS; k++) printf(" %8.3f", r->bytes[k] / GIB);
        printf(" %8.3f\n", r->total_bytes / GIB);
    }
}

/* Whether the ranks have the memory. */
static void print_fit(const vq_plan *p)
{
    const double have = p->input.memory_bytes;
    char text[32];
    int too_big = 0, slow = 0;
    for (int i = 0; i < p->input.n_ranks; i++) {
        too_big += p->rank[i].fixed_bytes > have;
        slow += p->rank[i].total_bytes > have;
    }
    if (have == 0) return;
    vq_bytes_text(have, text);
    if (too_big)
        printf("%d of %d ranks do not fit into %s: use more stages, set train.recompute to on, or "
               "lower seqlen or train.batch\n",
               too_big, p->input.n_ranks, text);
    else if (slow)
        printf("%d of %d ranks fit into %s without the model's weights: these are read from disk "
               "again and again\n",
               slow, p->input.n_ranks, text);
    else
        printf("All fit into %s a rank\n", text);
}

static void print_step(const vq_plan *p)
{
    char forward[32], backward[32], pool[32], spent[32];
    printf("\nA step of %lld x %lld tokens\n", (long long)p->input.config->train.batch,
           (long long)p->input.config->seqlen);
    if (p->n_stages > 1)
        printf("  between stages     %s forward and %s backward over each of %lld links within "
               "nodes and %lld between nodes\n",
               vq_bytes_text(p->step.forward_bytes, forward),
               vq_bytes_text(p->step.backward_bytes, backward), (long long)p->step.links_within,
               (long long)p->step.links_between);
    if (p->input.n_ranks > 1)
        printf("  among all ranks    %s summed, %s broadcast\n",
               vq_bytes_text(p->step.reduce_bytes, pool),
               vq_bytes_text(p->step.broadcast_bytes, backward));
    printf("  operations         %.4g TFLOP\n", p->step.flops / 1e12);
    printf("  pipeline idle      %.1f %%\n", 100 * p->step.idle_ratio);
    if (p->step.seconds > 0)
        printf("  time               %s at %.4g GFLOP/s a rank\n",
               vq_duration_text(p->step.seconds, spent), p->input.gflops);
}

static void print_rest(const vq_plan *p)
{
    char a[32], b[32], c[32], d[32], e[32];
    if (p->seconds.total > 0) {
        printf("\nTime: init %s", vq_duration_text(p->seconds.init, a));
        if (p->seconds.blocks > 0) printf(", blocks %s", vq_duration_text(p->seconds.blocks, a));
        printf(", teacher %s, train %s", vq_duration_text(p->seconds.teacher, b),
               vq_duration_text(p->seconds.train, c));
        if (p->seconds.eval > 0) printf(", eval %s", vq_duration_text(p->seconds.eval, d));
        printf("; in all %s%s\n", vq_duration_text(p->seconds.total, e),
               p->seconds.eval > 0 ? "" : ", evaluation not counted");
    }
    printf("\nDisk: init %s, teacher %s, checkpoints %s, model %s; in all %s\n",
           vq_bytes_text(p->disk_bytes.init, a), vq_bytes_text(p->disk_bytes.teacher, b),
           vq_bytes_text(p->disk_bytes.checkpoints, c), vq_bytes_text(p->disk_bytes.model, d),
           vq_bytes_text(p->disk_bytes.total, e));
}

void vq_plan_print(const vq_plan *p)
{
    const vq_model_config *m = &p->input.model->config;
    printf("%s: %s, %lld layers, %.4g billion weights in %s; %lld bits\n", p->input.config->model,
           vq_family_name(m->family), (long long)m->N, (double)vq_model_weights(m) / 1e9,
           vq_dtype_name(p->input.model->dtype), (long long)p->input.config->bits);
    printf("%d rank%s on %d node%s: %d stage%s x %d replica%s\n", p->input.n_ranks,
           p->input.n_ranks == 1 ? "" : "s", p->input.n_nodes, p->input.n_nodes == 1 ? "" : "s",
           p->n_stages, p->n_stages == 1 ? "" : "s", p->n_replicas, p->n_replicas == 1 ? "" : "s");
    print_memory(p);
    print_fit(p);
    if (vq_config_learns(p->input.config)) print_step(p);
    print_rest(p);
}

static json_t *rank_json(const vq_plan_rank *r)
{
    static const char *const parts[VQ_PLAN_N_PARTS] = {"weights", "integers", "codes",  "kept",
                                                       "teacher", "work",     "program"};
    json_t *bytes = json_object();
    for (int k = 0; k < VQ_PLAN_N_PARTS; k++)
        json_object_set_new(bytes, parts[k], json_real(r->bytes[k]));
    return json_pack("{s:i, s:i, s:i, s:[I, I], s:s, s:b, s:o, s:f, s:f}", "node", r->node, "stage",
                     r->topo.stage, "replica", r->topo.replica, "layers", (json_int_t)r->topo.first,
                     (json_int_t)r->topo.last, "phase", vq_plan_phase_name(r->phase), "recompute",
                     r->keep == VQ_KEEP_INPUTS, "bytes", bytes, "total_bytes", r->total_bytes,
                     "fixed_bytes", r->fixed_bytes);
}

void vq_plan_print_json(const vq_plan *p)
{
    json_t *ranks = json_array();
    for (int i = 0; i < p->input.n_ranks; i++) json_array_append_new(ranks, rank_json(&p->rank[i]));
    json_t *step = json_pack(
        "{s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "links_within",
        (json_int_t)p->step.links_within, "links_between", (json_int_t)p->step.links_between,
        "forward_bytes", p->step.forward_bytes, "backward_bytes", p->step.backward_bytes,
        "reduce_bytes", p->step.reduce_bytes, "broadcast_bytes", p->step.broadcast_bytes,
        "ids_bytes", p->step.ids_bytes, "flops", p->step.flops, "idle_ratio", p->step.idle_ratio,
        "seconds", p->step.seconds);
    json_t *seconds =
        json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "init", p->seconds.init, "blocks",
                  p->seconds.blocks, "teacher", p->seconds.teacher, "train", p->seconds.train,
                  "eval", p->seconds.eval, "total", p->seconds.total);
    json_t *disk = json_pack("{s:f, s:f, s:f, s:f, s:f}", "init", p->disk_bytes.init, "teacher",
                             p->disk_bytes.teacher, "checkpoints", p->disk_bytes.checkpoints,
                             "model", p->disk_bytes.model, "total", p->disk_bytes.total);
    json_t *root = json_pack("{s:i, s:i, s:f, s:o, s:o, s:o, s:o}", "stages", p->n_stages,
                             "replicas", p->n_replicas, "gflops", p->input.gflops, "ranks", ranks,
                             "step", step, "seconds", seconds, "disk_bytes", disk);
    json_dumpf(root, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(root);
}

/* --- the layout ------------------------------------------------------------------------------ */

/* The next smaller number of replicas with whole stages, none with less than a layer; 0: none. */
static int fewer_replicas(int n_ranks, int64_t layers, int replicas)
{
    while (--replicas > 0)
        if (n_ranks % replicas == 0 && n_ranks / replicas <= layers) return replicas;
    return 0;
}

/* Bytes that the ranks of a node need, without what the system can take back and with it. */
typedef struct node_need {
    double fixed, total;
    int n;
} node_need;

/* Whether the ranks of every node have the memory. */
static bool fits_memory(const vq_plan *p)
{
    for (int i = 0; i < p->input.n_ranks; i++) {
        node_need need = {0};
        for (int j = 0; j < p->input.n_ranks; j++)
            if (p->rank[j].node == p->rank[i].node) {
                need.n++;
                need.fixed += p->rank[j].fixed_bytes;
            }
        if (need.fixed > p->input.memory_bytes * need.n) return false;
    }
    return true;
}

/* The plan of the layout that a job on such machines would choose (choose_layout). */
static vq_status plan_layout(vq_arena *arena, vq_plan_input *in, vq_plan *plan)
{
    const bool is_free = !in->config->stages && !in->config->replicas;
    const int64_t layers = VQ_MIN(in->model->config.N, in->teacher->config.N);
    vq_config *tried;
    VQ_TRY(VQ_NEW(arena, 1, &tried));
    *tried = *in->config;
    in->config = tried;
    VQ_TRY(vq_plan_make(arena, in, plan));
    int replicas = plan->n_replicas;
    while (is_free && !fits_memory(plan)) {
        replicas = fewer_replicas(in->n_ranks, layers, replicas);
        if (!replicas) break;
        tried->replicas = replicas;
        tried->stages = in->n_ranks / replicas;
        VQ_TRY(vq_plan_make(arena, in, plan));
    }
    return VQ_OK;
}

/* --- the subcommand -------------------------------------------------------------------------- */

/* Memory and speed of a rank as the settings say, or as this machine has them: what ranks on one
 * node share is divided. */
static vq_status fill_machine(const vq_config *c, vq_arena *scratch, vq_plan_input *in)
{
    const int on_node = (int)VQ_CEIL_DIV(in->n_ranks, in->n_nodes);
    vq_backend be;
    size_t free_bytes, total_bytes;
    VQ_TRY(vq_cpu_open(&be, (int)c->threads));
    in->threads = vq_cpu_thread_count(&be);
    in->memory_bytes = c->plan.memory_gib * GIB;
    in->gflops = c->plan.gflops;
    vq_status status = VQ_OK;
    if (in->memory_bytes == 0) {
        status = vq_mem_info(&be, &free_bytes, &total_bytes);
        in->memory_bytes = (double)free_bytes / on_node;
    }
    if (!status && in->gflops == 0) {
        const double cores = (double)sysconf(_SC_NPROCESSORS_ONLN);
        status = vq_plan_measure(&be, scratch, &in->gflops);
        in->gflops *= VQ_MIN(1, cores / (on_node * in->threads));
    }
    vq_cpu_close(&be);
    return status;
}

static vq_status plan_here(vq_arena *arena, const vq_config *c, const vq_comm *comm)
{
    vq_plan_model model, teacher;
    vq_plan plan;
    vq_plan_input in = {.config = c,
                        .model = &model,
                        .teacher = &model,
                        .act = c->plan.act_bytes == 2 ? VQ_BF16 : VQ_F32,
                        .n_ranks = c->plan.ranks ? (int)c->plan.ranks : comm->size,
                        .n_nodes = (int)c->plan.nodes};
    VQ_CHECK(
        in.n_nodes <= in.n_ranks, VQ_EUSAGE,
        "--nodes %d: there are %d ranks: expected at least one a node. Raise --ranks, or lower "
        "--nodes",
        in.n_nodes, in.n_ranks);
    VQ_TRY(vq_plan_model_read(arena, c->model, &model));
    if (c->teacher.model) {
        VQ_TRY(vq_plan_model_read(arena, c->teacher.model, &teacher));
        in.teacher = &teacher;
    }
    VQ_CHECK(c->seqlen <= model.config.max_positions, VQ_EUSAGE,
             "%s: seqlen = %lld: expected at most max_position_embeddings = %lld. Lower --seqlen",
             c->model, (long long)c->seqlen, (long long)model.config.max_positions);
    VQ_TRY(fill_machine(c, arena, &in));
    VQ_TRY(plan_layout(arena, &in, &plan));
    if (c->json)
        vq_plan_print_json(&plan);
    else
        vq_plan_print(&plan);
    return VQ_OK;
}

vq_status vq_plan_run(const vq_config *config, const vq_comm *comm)
{
    vq_arena arena = {0};
    if (comm->rank != 0) return VQ_OK;
    VQ_TRY(vq_arena_init(&arena, "plan", (size_t)1 << 30));
    vq_status status = plan_here(&arena, config, comm);
    vq_arena_close(&arena);
    return status;
}

/* --- an open job ----------------------------------------------------------------------------- */

/* A number that two ranks share if they have one memory, exact in an f64: of the same machine, or
 * of the same GPU of it. */
static double memory_number(const vq_job *job)
{
    char name[256 + 16] = "";
    (void)gethostname(name, 255);
    if (job->cuda) (void)snprintf(name + strlen(name), 16, "/%d", job->device);
    return (double)(vq_hash_text(VQ_HASH_START, name) >> 12);
}

/* Every rank's host. Collective. */
static vq_status gather_hosts(vq_job *job, double *host)
{
    const int n = job->comm->size;
    memset(host, 0, (size_t)n * sizeof *host);
    host[job->comm->rank] = memory_number(job);
    vq_tensor sum = vq_tensor_1d(host, VQ_F64, n);
    return vq_comm_sum(job->comm, &sum);
}

static int count_nodes(const double *host, int n)
{
    int n_nodes = 0;
    for (int i = 0; i < n; i++) {
        int j = 0;
        while (j < i && host[j] != host[i]) j++;
        n_nodes += j == i;
    }
    return n_nodes;
}

static void log_plan(const vq_plan *p)
{
    char most[32], least[32], forward[32], pool[32], disk[32];
    int dearest = 0, cheapest = 0;
    for (int i = 1; i < p->input.n_ranks; i++) {
        if (p->rank[i].total_bytes > p->rank[dearest].total_bytes) dearest = i;
        if (p->rank[i].total_bytes < p->rank[cheapest].total_bytes) cheapest = i;
    }
    vq_bytes_text(p->rank[dearest].total_bytes, most);
    vq_bytes_text(p->rank[cheapest].total_bytes, least);
    vq_bytes_text(p->disk_bytes.total, disk);
    const char *phase = vq_plan_phase_name(p->rank[dearest].phase);
    if (p->input.n_ranks == 1) {
        vq_log(VQ_LOG_INFO, "plan     %s of memory at most (in phase %s), %s of disk", most, phase,
               disk);
        return;
    }
    vq_log(VQ_LOG_INFO,
           "plan     %d stages x %d replicas; memory %s (rank %d) to %s (rank %d, in phase %s); %s "
           "of disk",
           p->n_stages, p->n_replicas, least, cheapest, most, dearest, phase, disk);
    if (vq_config_learns(p->input.config))
        vq_log(VQ_LOG_INFO,
               "plan     a step sends %s each way between stages, sums and broadcasts %s; pipeline "
               "%.0f %% idle",
               vq_bytes_text(p->step.backward_bytes, forward),
               vq_bytes_text(p->step.reduce_bytes, pool), 100 * p->step.idle_ratio);
}

/* What this rank's node needs; *leader: the first of its ranks. */
static node_need need_of_node(const vq_job *job, const vq_plan *p, const double *host, int *leader)
{
    node_need need = {0};
    *leader = -1;
    for (int i = 0; i < job->comm->size; i++) {
        if (host[i] != host[job->comm->rank]) continue;
        if (*leader < 0) *leader = i;
        need.n++;
        need.fixed += p->rank[i].fixed_bytes;
        need.total += p->rank[i].total_bytes;
    }
    return need;
}

/* Whether the ranks on this rank's node fit its memory. */
static vq_status check_node(const vq_job *job, const vq_plan *p, const double *host,
                            double free_bytes)
{
    int leader;
    const node_need need = need_of_node(job, p, host, &leader);
    char needed[32], have[32], lack[32];
    vq_bytes_text(need.fixed, needed);
    vq_bytes_text(free_bytes, have);
    vq_bytes_text(need.fixed - free_bytes, lack);
    VQ_CHECK(job->comm->rank != leader || need.fixed <= free_bytes, VQ_EMEM,
             "memory: the plan of %d rank%s on this machine is %s and %s are free: %s short. Use "
             "more --stages on more machines%s, or lower seqlen or train.batch; \"vqround plan\" "
             "shows what takes it",
             need.n, need.n == 1 ? "" : "s", needed, have, lack,
             p->rank[job->comm->rank].keep == VQ_KEEP_ALL ? ", set train.recompute to on" : "");
    if (job->comm->rank == 0 && need.total > free_bytes)
        vq_log(VQ_LOG_WARN,
               "plan     %s with the model's own weights, and %s are free: weights will be read "
               "from disk again and again. More stages on more machines would be faster",
               vq_bytes_text(need.total, needed), have);
    return VQ_OK;
}

/* The plan of the job with these settings. free_bytes: of this rank's node. */
static vq_status plan_job(vq_job *job, const vq_config *config, const double *host, vq_plan *plan,
                          double *free_bytes)
{
    const vq_plan_model model = {job->model.config, job->model.embed.dtype},
                        teacher = {job->teacher.config, job->teacher.embed.dtype};
    const int size = job->comm->size, rank = job->comm->rank;
    size_t available, total;
    int on_node = 0;
    for (int i = 0; i < size; i++) on_node += host[i] == host[rank];
    VQ_TRY(vq_mem_info(&job->be, &available, &total));
    *free_bytes = (double)available;
    if (config->plan.memory_gib > 0)
        *free_bytes = VQ_MIN(*free_bytes, config->plan.memory_gib * GIB * on_node);
    const vq_plan_input in = {.config = config,
                              .model = &model,
                              .teacher = job->teacher.dir ? &teacher : &model,
                              .act = job->be.act,
                              .n_ranks = size,
                              .n_nodes = count_nodes(host, size),
                              .threads = vq_cpu_thread_count(&job->cpu),
                              .memory_bytes = *free_bytes / on_node};
    return vq_plan_make(&job->scratch, &in, plan);
}

/* Whether every node has the memory. Collective. */
static vq_status fits(vq_job *job, const vq_plan *plan, const double *host, double free_bytes,
                      bool *all)
{
    int leader;
    double lacking = need_of_node(job, plan, host, &leader).fixed > free_bytes;
    vq_tensor sum = vq_tensor_1d(&lacking, VQ_F64, 1);
    VQ_TRY(vq_comm_sum(job->comm, &sum));
    *all = lacking == 0;
    return VQ_OK;
}

/* Replicas need no pipeline, stages need less memory: where the user has not chosen, as many
 * replicas as fit. */
static vq_status choose_layout(vq_job *job, const double *host)
{
    vq_config tried = *job->config;
    const bool is_free = !tried.stages && !tried.replicas;
    const int64_t layers =
        job->teacher.dir ? VQ_MIN(job->model.config.N, job->teacher.config.N) : job->model.config.N;
    vq_plan plan;
    double free_bytes = 0;
    for (int replicas = job->topo.n_replicas;;) {
        bool all;
        tried.replicas = replicas;
        tried.stages = job->comm->size / replicas;
        vq_status status =
            vq_topo_make(&tried, &job->model.config, job->comm->rank, job->comm->size, &job->topo);
        if (!status) status = plan_job(job, &tried, host, &plan, &free_bytes);
        VQ_TRY(vq_comm_agree(job->comm, status));
        VQ_TRY(fits(job, &plan, host, free_bytes, &all));
        replicas = fewer_replicas(job->comm->size, layers, replicas);
        if (all || !is_free || !replicas) break;
    }
    job->keep = plan.rank[job->comm->rank].keep;
    log_plan(&plan);
    return vq_comm_agree(job->comm, check_node(job, &plan, host, free_bytes));
}

vq_status vq_plan_job(vq_job *job)
{
    double *host;
    const size_t mark = vq_arena_mark(&job->scratch);
    vq_comm_at(job->comm, "plan");
    VQ_TRY(VQ_NEW(&job->scratch, job->comm->size, &host));
    VQ_TRY(gather_hosts(job, host));
    VQ_TRY(choose_layout(job, host));
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}
