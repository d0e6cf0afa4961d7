/* plan_time - operations counted, and what they cost: constants measured on our own kernels. */
#include "plan_time.h"

#include <math.h>

#include "error.h"
#include "schedule.h"

/* Operations that take as long as making a weight from its code, or adding its gradient to it. */
#define ROUND_FLOPS 60.0
/* Passes of our k-means over its sample, from any start. Its operations take as long as those of a
 * matrix product; FAISS's, longer. */
#define KMEANS_PASSES 16.0
#define KMEANS_FAISS_COST 5.0
/* What a pass takes for a vector beside its comparisons, as such operations, and what each vector
 * takes once: its logits, sorting by signs, counting. */
#define KMEANS_VECTOR_FLOPS 1700.0
#define KMEANS_ONCE_FLOPS 5300.0
/* The same of all arithmetic in f32 and f64 on a GPU, beside its products in bf16: by the data
 * sheets of A100 and H100. */
#define GPU_EXACT_COST 16.0
/* And what products do there while a weight's bytes pass the memory: between their two numbers. */
#define GPU_ROUND_FLOPS 300.0

static double init_work(const vq_plan_view *v)
{
    const vq_config *c = v->c;
    const vq_model_config *m = &v->job.model.config;
    const double layers = (double)(v->job.stage.last - v->job.stage.first);
    const double n = (double)c->nsamples * (double)c->seqlen, E = (double)m->E, F = (double)m->F;
    const bool on_gpu = v->in->on_gpu;
    double flops = 0;
    if (vq_config_has_codebook(c)) {
        const double n_vec = v->own.quantized / (double)c->D;
        const double n_linears = v->own.codes / (double)(c->K * c->D * 4);
        const double sample =
            VQ_MIN(n_linears * (double)(c->kmeans.max_points_per_centroid * c->K), n_vec);
        const bool faiss = c->kmeans.engine == VQ_KMEANS_FAISS;
        const double iters = (double)c->kmeans.iters;
        const double passes = faiss ? iters : VQ_MIN(iters, KMEANS_PASSES);
        /* A vector is compared with its own pattern's codes alone where there are enough. */
        const double patterns = c->kmeans.by_sign ? exp2((double)c->D) : 1;
        const double codes = (double)c->K / (patterns <= (double)c->K ? patterns : 1);
        const double compare = 2 * codes * (double)c->D;
        const double a_pass = on_gpu  ? GPU_EXACT_COST * compare
                              : faiss ? KMEANS_FAISS_COST * compare
                                      : compare + KMEANS_VECTOR_FLOPS;
        flops = (passes * sample + n_vec) * a_pass + (on_gpu ? 0 : n_vec * KMEANS_ONCE_FLOPS);
    }
    if (vq_config_sweeps(c)) flops += 2 * n * v->own.weights;
    if (!vq_config_uses_gptq(c)) return flops;
    return flops + layers * n * (3 * E * E + F * F) +
           (on_gpu ? GPU_EXACT_COST : 1) * layers *
               (2 * F * F * F + 8 * E * E * E + 10 * E * E * F);
}

vq_plan_work vq_plan_work_of(const vq_plan_view *v, vq_keep keep, bool keeps_weights)
{
    const vq_model_config *m = &v->job.model.config, *t = &v->teacher.config;
    const double T = (double)v->c->seqlen,
                 layers = (double)(v->job.stage.last - v->job.stage.first);
    const double attend = layers * 2 * T * T * (double)(m->H * m->S);
    const double a_round = (v->in->on_gpu ? GPU_ROUND_FLOPS : ROUND_FLOPS) * v->own.quantized;
    const double round = keeps_weights ? a_round / v->max_micro : a_round * (double)v->c->slices;
    const double pass = 2 * T * v->own.weights + attend;
    const double head = v->is_last ? 2 * T * (double)(m->V * m->E_embed) : 0;
    const double teacher_layers = (double)(v->teacher_stage.last - v->teacher_stage.first);
    vq_plan_work w = {.forward = pass + round,
                      .init = init_work(v),
                      .codes = 2 * T * v->own.quantized + 2 * a_round,
                      .teacher = 2 * T * v->teacher_own.weights +
                                 teacher_layers * 2 * T * T * (double)(t->H * t->S)};
    w.backward =
        (pass + (keeps_weights ? 0 : round)) * (keep == VQ_KEEP_INPUTS ? 2 : 1) + 1.5 * attend;
    w.forward += (vq_config_has_teacher(v->c) ? 3 : 2) * head;
    return w;
}

/* Operations a second. Without a speed the idle share is still that of the operations. */
static double speed_of(const vq_plan_input *in)
{
    return in->gflops > 0 ? in->gflops * 1e9 : 1;
}

static bool runs_teacher(const vq_config *c)
{
    return vq_config_has_teacher(c) && !c->teacher.cache;
}

static double slowest_teacher(const vq_plan_work *by_stage, const vq_topo *topo)
{
    double slowest = 0;
    for (int s = 0; s < topo->n_stages; s++) slowest = VQ_MAX(slowest, by_stage[s].teacher);
    return slowest;
}

vq_status vq_plan_step_time(vq_arena *arena, const vq_plan_input *in, const vq_topo *topo,
                            const vq_plan_work *by_stage, vq_plan_step *step)
{
    const vq_config *c = in->config;
    const double speed = speed_of(in), link = c->plan.link_gbs * 1e9, n = in->n_ranks;
    const int n_micro = (int)VQ_CEIL_DIV(c->train.batch, topo->n_replicas);
    double busy = 0, teacher = 0;
    vq_stage_cost *cost;
    double *share;
    const size_t mark = vq_arena_mark(arena);
    VQ_TRY(VQ_NEW(arena, topo->n_stages, &cost));
    VQ_TRY(VQ_NEW(arena, c->slices, &share));
    for (int64_t i = 0; i < c->slices; i++) share[i] = 1 / (double)c->slices;
    for (int s = 0; s < topo->n_stages; s++) {
        const vq_plan_work *w = &by_stage[s];
        cost[s] = (vq_stage_cost){.forward_s = w->forward / speed,
                                  .backward_s = w->backward / speed,
                                  .codes_s = w->codes / speed};
        if (in->gflops > 0) cost[s].message_s = step->backward_bytes / n_micro / link;
        busy += w->forward + w->backward + w->codes;
        if (runs_teacher(c)) teacher += w->teacher;
    }
    VQ_TRY(vq_schedule_idle(arena, topo->n_stages, n_micro, (int)c->slices, share, cost,
                            &step->idle_ratio));
    vq_arena_reset(arena, mark);
    step->flops = (busy + teacher) * (double)c->train.batch;
    if (in->gflops == 0) return VQ_OK;
    step->seconds = busy * n_micro / speed / topo->n_stages / (1 - step->idle_ratio) +
                    (2 * (n - 1) / n * step->reduce_bytes + step->broadcast_bytes) / link;
    if (runs_teacher(c))
        step->seconds += slowest_teacher(by_stage, topo) / speed * (n_micro + topo->n_stages - 1);
    return VQ_OK;
}

void vq_plan_times(const vq_plan_input *in, const vq_topo *topo, const vq_plan_work *by_stage,
                   const vq_plan_step *step, vq_plan_seconds *seconds)
{
    const vq_config *c = in->config;
    const double speed = speed_of(in), stages = topo->n_stages, replicas = topo->n_replicas;
    double slowest_init = 0, slowest_forward = 0;
    if (in->gflops == 0) return;
    for (int s = 0; s < topo->n_stages; s++) {
        slowest_init = VQ_MAX(slowest_init, by_stage[s].init / speed);
        slowest_forward = VQ_MAX(slowest_forward, by_stage[s].forward / speed);
    }
    seconds->init = slowest_init / replicas;
    if (vq_config_has_teacher(c) && c->teacher.cache)
        seconds->teacher =
            slowest_teacher(by_stage, topo) / speed * ((double)c->nsamples / replicas + stages - 1);
    if (vq_config_learns(c)) {
        /* The stages one after the other. */
        const double passes =
            (double)c->train.block_steps * (double)VQ_CEIL_DIV(c->train.batch, topo->n_replicas);
        for (int s = 0; s < topo->n_stages; s++)
            seconds->blocks +=
                passes * (by_stage[s].forward + by_stage[s].backward + by_stage[s].codes) / speed;
        seconds->train = step->seconds * (double)c->train.steps;
    }
    if (c->eval.run) {
        const int passes = vq_config_learns(c) ? 4 : c->method == VQ_METHOD_GPTQ ? 3 : 2;
        seconds->eval = slowest_forward * passes * (double)c->eval.max_windows / replicas *
                        (double)vq_config_eval_seqlen(c) / (double)c->seqlen;
    }
    seconds->total =
        seconds->init + seconds->blocks + seconds->teacher + seconds->train + seconds->eval;
}
