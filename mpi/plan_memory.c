/* plan_memory - what each phase has in memory at its dearest moment, by what the modules take. */
#include "plan_memory.h"

#include <math.h>
#include <string.h>

#include "comm_nccl.h"
#include "cuda_plan.h"
#include "pipeline.h"

#define LOGITS_BYTES (64.0e6)  /* of a chunk of the head's logits */
#define PROGRAM_BYTES (25.0e6) /* code and libraries, HDF5 and MPI at work */
#define THREAD_BYTES (7.0e6)   /* the kernels' and the BLAS' buffers */
#define KEEP_ROOM 0.8          /* of the memory there is: training above it recomputes */

/* On a GPU. */
#define CONTEXT_BYTES (600.0e6)  /* what the driver and CUDA's libraries take of it */
#define PIECE_BYTES (16.0e6)     /* arenas grow by pieces; there are 6 of them */
#define WORKSPACE_BYTES (34.0e6) /* the products' own */
#define HOLD_ROOM 0.9            /* of its memory: weights that would go above it do not stay */

/* Of an NCCL channel for one connection: what its log of allocations names on H100s, 10 and 2 MiB.
 */
#define CHANNEL_BYTES (12.6e6)

const char *vq_plan_phase_name(vq_plan_phase phase)
{
    static const char *const names[VQ_PLAN_N_PHASES] = {"init",  "blocks", "teacher",
                                                        "train", "eval",   "export"};
    return names[phase];
}

/* Pages of embedding and head. */
static double ends_bytes(const vq_model_config *m, double weight, bool is_first, bool is_last)
{
    const double table = (double)(m->V * m->E_embed) * weight;
    const int n = m->tied ? is_first || is_last : is_first + is_last;
    return n * table +
           (is_first && m->family == VQ_OPT ? (double)(m->max_positions * m->E) * weight : 0);
}

/* The largest weight as it is made for a pass: with the logits where these are made too. */
static double made_bytes(const vq_plan_view *v)
{
    const bool twice = vq_config_scatters(v->c); /* and with its columns in another order */
    return v->own.largest * (v->act * (1 + twice) + (v->c->method == VQ_METHOD_LORA ? 4 : 0));
}

/* A forward that keeps nothing, of B windows of T tokens with its messages; quantized: its weights
 * are made for it, RTN's of the model's own, in the order that GPTQ took its columns in. */
static double forward_bytes(const vq_plan_view *v, const vq_stage *stage, int64_t B, int64_t T,
                            bool quantized)
{
    const double in = v->is_first ? 0 : (double)stage->model->config.E;
    const double messages = 2 * (double)(B * T) * (in + (double)vq_stage_out_width(stage)) * v->act;
    return (double)vq_kept_bytes(stage, B, T, VQ_KEEP_NOTHING) + messages +
           (quantized ? made_bytes(v) : 0) +
           (quantized && vq_config_scatters(v->c) ? v->own.largest * v->weight : 0);
}

/* What the kernels take for themselves in a pass of n tokens, with the head of no model, of one, or
 * of teacher and student. */
static double gpu_scratch_bytes(const vq_plan_view *v, int64_t n, int n_models, bool is_backward)
{
    const vq_model_config *m = &v->job.model.config;
    const bool has_codes = vq_config_has_codebook(v->c);
    const vq_cuda_pass pass = {.T = n,
                               .H = m->H,
                               .V = v->is_last && n_models > 0 ? m->V : 0,
                               .E = m->E_embed,
                               .K = has_codes ? v->c->K : 0,
                               .D = v->c->D,
                               .largest = (int64_t)v->own.largest,
                               .act_bytes = (size_t)v->act,
                               .converts = v->in->model->dtype != v->in->act,
                               .is_backward = is_backward,
                               .has_teacher = n_models > 1};
    return (double)vq_cuda_pass_bytes(&pass);
}

/* Logits of the head over n tokens, of one model or of teacher and student; on a GPU what its
 * kernels take. */
static double logits_bytes(const vq_plan_view *v, int64_t n, int n_models)
{
    const double all = (double)(n * n_models * v->job.model.config.V) * 4;
    if (v->in->on_gpu) return gpu_scratch_bytes(v, n, n_models, false);
    return v->is_last ? VQ_MIN(all, LOGITS_BYTES) : 0;
}

static double layers(const vq_plan_view *v)
{
    return (double)(v->job.stage.last - v->job.stage.first);
}

/* The linears of a layer, as they are in the model's files. */
static double layer_bytes(const vq_plan_view *v)
{
    return v->own.weights * v->weight / layers(v);
}

/* What layers that go one by one read of these files: of the embedding the rows of the text's
 * tokens; a linear's pages go when its integers come. */
static double swept_bytes(const vq_plan_view *v)
{
    const vq_model_config *m = &v->job.model.config;
    const double tokens = (double)v->c->nsamples * (double)v->c->seqlen,
                 table = ends_bytes(m, v->weight, v->is_first, false),
                 rows = tokens * (double)m->E * v->weight;
    return VQ_MIN(table, 2 * rows) +
           VQ_MAX(layer_bytes(v) - v->own.integers / layers(v), v->own.largest * v->weight);
}

/* Inputs, of GPTQ and outputs of the widest linear. */
static int64_t widest(const vq_model_config *m)
{
    return VQ_MAX(VQ_MAX(m->F, m->H * m->S), m->E);
}

/* On a GPU the layers' inputs wait on the host, and the layer at work has its weights there. */
static double sweep_bytes(const vq_plan_view *v)
{
    const vq_model_config *m = &v->job.model.config;
    const vq_config *c = v->c;
    const double E = (double)m->E, attn = (double)(m->H * m->S), F = (double)m->F;
    const double n = (double)widest(m);
    const double hessians = 8 * (2 * E * E + attn * attn + F * F), factor = n * n * 4;
    const double windows = (double)VQ_CEIL_DIV(c->nsamples, v->job.topo.n_replicas);
    const double inputs = windows * (double)c->seqlen * E * v->act;
    const double pass = (double)vq_acts_bytes(&v->job.be, m, 1, c->seqlen) +
                        (double)c->seqlen * E * v->act + (v->in->on_gpu ? layer_bytes(v) : 0);
    const double ints = vq_config_needs_ints(c) ? 0 : v->own.weights / layers(v);
    const double room = v->in->memory_bytes / 2;
    const double kept = v->in->on_gpu || (room > 0 && inputs > room) ? 0 : inputs;
    return vq_config_uses_gptq(c) ? hessians + factor + kept + VQ_MAX(pass, ints) : kept + pass;
}

/* What k-means takes beside the residual. On a GPU its vectors, those that train, and indices. */
static double codebook_bytes(const vq_plan_view *v)
{
    const vq_config *c = v->c;
    const vq_codebook_config codebook = vq_plan_codebook(c);
    const int64_t n = (int64_t)v->own.largest, n_vec = vq_codebook_vectors(&codebook, n);
    const double sample =
        (double)VQ_MIN(n_vec, c->kmeans.max_points_per_centroid * c->K) * (double)c->D * 4;
    if (v->in->on_gpu) return v->own.largest * 4 + sample + 4 * (double)n_vec;
    return (double)vq_codebook_scratch_bytes(&codebook, n) + 8 * (double)n_vec +
           (c->kmeans.engine == VQ_KMEANS_FAISS ? 2 * sample : 0);
}

/* On a GPU: what the kernels take of it, and two weights or windows on their way. */
static double start_bytes(const vq_plan_view *v)
{
    const vq_config *c = v->c;
    const vq_model_config *m = &v->job.model.config;
    const double window = vq_config_sweeps(c) ? (double)(c->seqlen * m->E) * v->act : 0;
    const double factor = vq_config_uses_gptq(c) ? (double)vq_cuda_factor_bytes(widest(m)) : 0;
    return VQ_MAX(factor, gpu_scratch_bytes(v, c->seqlen, 0, false)) +
           2 * VQ_MAX(v->own.largest * v->weight, window);
}

static double init_bytes(const vq_plan_view *v)
{
    const vq_config *c = v->c;
    const double residual = v->own.largest * 4, again = vq_config_scatters(c) ? residual : 0;
    double bytes = residual + VQ_MAX(vq_config_has_codebook(c) ? codebook_bytes(v) : 0, again);
    if (vq_config_sweeps(c)) bytes += sweep_bytes(v);
    if (v->in->on_gpu) return bytes + start_bytes(v);
    return bytes + (c->method == VQ_METHOD_LORA ? v->own.largest * 4 : 0); /* the logits */
}

static double train_work_bytes(const vq_plan_view *v, vq_keep keep)
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
    const int n_models = vq_config_has_teacher(c) ? 2 : 1;
    const double heads = 8 * (double)(VQ_CEIL_DIV(24, m->H) * c->seqlen) * attn;
    const double ops = v->in->on_gpu ? gpu_scratch_bytes(v, n, n_models, true)
                                     : VQ_MAX(logits_bytes(v, n, n_models), heads);
    const double messages = v->job.topo.n_stages > 1 ? 4 * T * E * v->act : 0;
    return T * E * v->act + again + grads + backward + messages + ops;
}

/* Both streams' inputs, which on a GPU wait on the host, and a layer's forward and backward. */
static double blocks_bytes(const vq_plan_view *v)
{
    const vq_config *c = v->c;
    const vq_model_config *m = &v->job.model.config;
    const double n = (double)c->seqlen * (double)m->E * v->act;
    const double inputs = (double)VQ_CEIL_DIV(c->nsamples, v->job.topo.n_replicas) * n;
    const double room = v->in->memory_bytes / 4;
    const double step = (double)(vq_acts_bytes(&v->job.be, m, v->max_micro, c->seqlen) +
                                 vq_act_grads_bytes(&v->job.be, m, v->max_micro, c->seqlen));
    const double work = step + 4 * v->max_micro * n + 3 * made_bytes(v);
    if (v->in->on_gpu)
        return work + layer_bytes(v) + 2 * v->max_micro * n +
               gpu_scratch_bytes(v, v->max_micro * c->seqlen, 0, true);
    return work + (room > 0 && inputs > room ? 0 : 2 * inputs);
}

/* The linears' own weights, as they are in the model's files, that passes of a phase go through. */
static double own_bytes(const vq_plan_view *v, vq_plan_phase phase)
{
    const bool caches = vq_config_has_teacher(v->c) && v->c->teacher.cache;
    if (phase == VQ_PLAN_EVAL) return v->own.weights * v->weight;
    if (phase == VQ_PLAN_CACHE ||
        (phase == VQ_PLAN_TRAIN && vq_config_has_teacher(v->c) && !caches))
        return v->teacher_own.weights * v->teacher_weight;
    return 0;
}

/* What is chosen by memory. */
typedef struct choice {
    vq_keep keep;
    bool keeps_weights;
    double hold;      /* on a GPU: of the linears' own weights what stays there */
    int64_t together; /* micro-batches that pass for each bringing of the rest */
} choice;

/* Two weights on their way, where not all stay on the GPU. */
static double passing_bytes(const vq_plan_view *v, vq_plan_phase phase, double hold)
{
    return own_bytes(v, phase) > hold
               ? 2 * VQ_MAX(v->own.largest * v->weight, v->teacher_own.largest * v->teacher_weight)
               : 0;
}

/* What NCCL takes: to each neighbour a communicator either way, and those of the sums, which have a
 * ring and a tree of up to three neighbours. */
static double nccl_bytes(const vq_plan_view *v)
{
    const vq_topo *topo = &v->job.topo;
    const int links = 2 * ((topo->stage > 0) + !v->is_last);
    const int sums = 1 + (topo->n_replicas > 1);
    if (v->in->n_ranks == 1 || v->c->comm.transport == VQ_TRANSPORT_MPI) return 0;
    return CHANNEL_BYTES * (links * VQ_NCCL_LINK_CHANNELS + sums * VQ_NCCL_SUM_CHANNELS * (2 + 3));
}

/* On a GPU embedding and head stay from the beginning, and so does what the kernels are. */
static void move_to_gpu(const vq_plan_view *v, vq_plan_phase phase, double hold, double ends,
                        double *part)
{
    part[VQ_PLAN_WEIGHTS] = ends + VQ_MIN(own_bytes(v, phase), hold);
    part[VQ_PLAN_WORK] += passing_bytes(v, phase, hold);
    part[VQ_PLAN_PROGRAM] = CONTEXT_BYTES + WORKSPACE_BYTES + 3 * PIECE_BYTES + nccl_bytes(v);
}

/* All parts in one phase. */
static void phase_bytes(const vq_plan_view *v, vq_plan_phase phase, choice by, double *part)
{
    const vq_config *c = v->c;
    const bool caches = vq_config_has_teacher(c) && c->teacher.cache,
               is_other = v->in->teacher != v->in->model;
    const bool is_leader = v->job.topo.stage + v->job.topo.replica == 0;
    const int64_t T = c->seqlen, T_eval = vq_config_eval_seqlen(c);
    const double linears = v->own.weights * v->weight;
    const bool is_whole = vq_plan_pool_is_whole(c, &v->all);
    const double pool = is_whole ? v->all.codes : v->own.codes;
    const double teacher_linears = v->teacher_own.weights * v->teacher_weight;
    const double ends = ends_bytes(&v->job.model.config, v->weight, v->is_first, v->is_last);
    const double teacher_ends =
        ends_bytes(&v->teacher.config, v->teacher_weight, v->is_first && is_other, v->is_last);
    const double states =
        (double)(VQ_MIN(v->max_micro, c->nsamples) * T * v->teacher.config.E_embed);
    const int64_t longest = VQ_MAX(T, c->eval.run ? T_eval : 0);
    /* On a GPU room is taken, on a host it is used. */
    const int64_t most = v->in->on_gpu ? 0 : c->eval.max_windows,
                  at_once = by.together * vq_pipeline_windows(T_eval);
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
        if (vq_config_sweeps(c)) part[VQ_PLAN_WEIGHTS] = swept_bytes(v);
        part[VQ_PLAN_WORK] = init_bytes(v);
        break;
    case VQ_PLAN_BLOCKS:
        part[VQ_PLAN_WEIGHTS] = layer_bytes(v) + (v->is_first ? ends : 0);
        part[VQ_PLAN_WORK] = blocks_bytes(v);
        break;
    case VQ_PLAN_CACHE:
        part[VQ_PLAN_WEIGHTS] = teacher_linears + (is_other ? teacher_ends : ends);
        part[VQ_PLAN_WORK] =
            forward_bytes(v, &v->teacher_stage, by.together, T, false) + logits_bytes(v, T, 2);
        break;
    case VQ_PLAN_TRAIN:
        part[VQ_PLAN_WEIGHTS] = ends + (is_other ? teacher_ends : 0);
        part[VQ_PLAN_KEPT] = (double)vq_pipeline_bytes(&v->job, T, v->max_micro, by.keep);
        if (by.keeps_weights) part[VQ_PLAN_KEPT] += v->own.quantized * v->act;
        part[VQ_PLAN_WORK] = train_work_bytes(v, by.keep);
        if (!vq_config_has_teacher(c)) break;
        if (v->is_last) part[VQ_PLAN_TEACHER] = states * (caches ? v->teacher_weight : v->act);
        if (caches) break;
        part[VQ_PLAN_WEIGHTS] += teacher_linears;
        part[VQ_PLAN_TEACHER] +=
            forward_bytes(v, &v->teacher_stage, VQ_MIN(by.together, v->max_micro), T, false);
        break;
    case VQ_PLAN_EVAL:
        part[VQ_PLAN_WEIGHTS] = linears + ends;
        part[VQ_PLAN_WORK] =
            forward_bytes(v, &v->job.stage, most > 0 ? VQ_MIN(at_once, most) : at_once, T_eval,
                          true) +
            logits_bytes(v, T_eval, 1);
        break;
    case VQ_PLAN_EXPORT:
        part[VQ_PLAN_WEIGHTS] = ends + (c->method == VQ_METHOD_RTN ? linears : 0);
        part[VQ_PLAN_WORK] = v->own.largest * (2 * v->act + v->weight);
        break;
    case VQ_PLAN_N_PHASES: break;
    }
    if (v->in->on_gpu)
        move_to_gpu(v, phase, by.hold,
                    ends + (is_other && phase > VQ_PLAN_BLOCKS ? teacher_ends : 0), part);
}

static bool has_phase(const vq_config *c, vq_plan_phase phase)
{
    switch (phase) {
    case VQ_PLAN_BLOCKS: return vq_config_learns(c) && c->train.block_steps > 0;
    case VQ_PLAN_CACHE: return vq_config_has_teacher(c) && c->teacher.cache;
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

/* Whether training fits what may be used of the memory. */
static bool fits_training(const vq_plan_view *v, choice by)
{
    const double room = v->in->memory_bytes * KEEP_ROOM;
    double part[VQ_PLAN_N_PARTS];
    phase_bytes(v, VQ_PLAN_TRAIN, by, part);
    return room == 0 || sum_parts(part) <= room;
}

/* Activations first: to compute them again costs more. Weights where a teacher's own stay too,
 * which the bus would bring. On a host, to read a weight from memory takes as long as to make it.
 */
static choice choose_keep(const vq_plan_view *v)
{
    const vq_switch recompute = v->c->train.recompute, weights = v->c->train.keep_weights;
    choice by = {.keep = v->c->slices > 1     ? VQ_KEEP_SLICES
                         : recompute == VQ_ON ? VQ_KEEP_INPUTS
                                              : VQ_KEEP_ALL,
                 .keeps_weights = weights == VQ_ON,
                 .together = 1};
    if (by.keep == VQ_KEEP_ALL && recompute == VQ_AUTO && !fits_training(v, by))
        by.keep = VQ_KEEP_INPUTS;
    if (weights != VQ_AUTO || !v->in->on_gpu) return by;
    choice more = by;
    more.keeps_weights = true;
    more.hold = INFINITY;
    by.keeps_weights = fits_training(v, more);
    return by;
}

/* As much as every phase has the memory for; below 0: not even for what passes. */
static double choose_hold(const vq_plan_view *v, choice by, double most)
{
    const double room = v->in->memory_bytes * HOLD_ROOM;
    double hold = most;
    for (int i = 0; i < VQ_PLAN_N_PHASES && room > 0; i++) {
        const vq_plan_phase phase = (vq_plan_phase)i;
        double part[VQ_PLAN_N_PARTS];
        if (!has_phase(v->c, phase) || own_bytes(v, phase) == 0) continue;
        by.hold = INFINITY;
        phase_bytes(v, phase, by, part);
        if (sum_parts(part) <= room) continue;
        by.hold = 0;
        phase_bytes(v, phase, by, part);
        hold = VQ_MIN(hold, room - sum_parts(part));
    }
    return hold;
}

static double own_of(const vq_plan_view *v)
{
    double own = 0;
    for (int i = 0; i < VQ_PLAN_N_PHASES && v->in->on_gpu; i++)
        if (has_phase(v->c, (vq_plan_phase)i)) own = VQ_MAX(own, own_bytes(v, (vq_plan_phase)i));
    return own;
}

void vq_plan_brought(const vq_plan_view *v, double brought[VQ_PLAN_TOGETHER])
{
    const int64_t n = VQ_CEIL_DIV(v->c->nsamples, v->job.topo.n_replicas);
    choice by = choose_keep(v);
    const double own = own_of(v);
    for (int i = 0; i < VQ_PLAN_TOGETHER && own > 0; i++) {
        by.together = (int64_t)1 << i;
        const double hold = choose_hold(v, by, own);
        const bool fits = i == 0 || (hold >= 0 && by.together <= n);
        brought[i] +=
            fits ? (own - VQ_MAX(hold, 0)) * (double)VQ_CEIL_DIV(n, by.together) : INFINITY;
    }
}

void vq_plan_memory(const vq_plan_view *v, vq_plan_rank *r)
{
    choice by = choose_keep(v);
    by.together = r->together;
    r->keep = by.keep;
    r->keeps_weights = by.keeps_weights;
    r->own_bytes = own_of(v);
    r->hold_bytes = by.hold = VQ_MAX(choose_hold(v, by, r->own_bytes), 0);
    for (int phase = 0; phase < VQ_PLAN_N_PHASES; phase++) {
        double part[VQ_PLAN_N_PARTS];
        if (!has_phase(v->c, (vq_plan_phase)phase)) continue;
        phase_bytes(v, (vq_plan_phase)phase, by, part);
        const double total = sum_parts(part);
        const double loose = v->in->on_gpu
                                 ? VQ_MIN(own_bytes(v, (vq_plan_phase)phase), r->hold_bytes)
                                 : part[VQ_PLAN_WEIGHTS];
        r->fixed_bytes = VQ_MAX(r->fixed_bytes, total - loose);
        if (total <= r->total_bytes) continue;
        r->total_bytes = total;
        r->phase = (vq_plan_phase)phase;
        memcpy(r->bytes, part, sizeof part);
    }
}
