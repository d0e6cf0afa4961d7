/* plan_print - the plan as tables, as JSON, and in two lines of a log. */
#include "plan_print.h"

#include <jansson.h>
#include <stdio.h>

#include "log.h"

#define GIB ((double)(1 << 30))
#define MIB ((double)(1 << 20))

static const char *keep_name(vq_keep keep)
{
    static const char *const names[] = {[VQ_KEEP_NOTHING] = "nothing",
                                        [VQ_KEEP_INPUTS] = "computed again",
                                        [VQ_KEEP_ALL] = "all kept",
                                        [VQ_KEEP_SLICES] = "all kept, in slices"};
    return names[keep];
}

/* In GiB, or in MiB where that says more. */
static void print_memory(const vq_plan *p)
{
    double most = 0;
    for (int i = 0; i < p->input.n_ranks; i++) most = VQ_MAX(most, p->rank[i].total_bytes);
    const bool in_gib = most >= GIB;
    printf("\nMemory %sby rank in its dearest phase, %s (activations: %s; weights: made %s)\n",
           p->input.on_gpu ? "of the GPUs " : "", in_gib ? "GiB" : "MiB",
           keep_name(p->rank[0].keep),
           p->rank[0].keeps_weights ? "once a step" : "for each product");
    printf("%5s %5s %9s  %-8s %8s %8s %8s %8s %8s %8s %8s %8s\n", "rank", "node", "layers", "phase",
           "weights", "integers", "codes", "kept", "teacher", "work", "program", "total");
    for (int i = 0; i < p->input.n_ranks; i++) {
        const vq_plan_rank *r = &p->rank[i];
        const double unit = in_gib ? GIB : MIB;
        char layers[32];
        snprintf(layers, sizeof layers, "%lld-%lld", (long long)r->topo.first,
                 (long long)r->topo.last - 1);
        printf("%5d %5d %9s  %-8s", i, r->node, layers, vq_plan_phase_name(r->phase));
        for (int k = 0; k < VQ_PLAN_N_PARTS; k++)
            printf(" %8.*f", in_gib ? 2 : 1, r->bytes[k] / unit);
        printf(" %8.*f\n", in_gib ? 2 : 1, r->total_bytes / unit);
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
    else if (slow && !p->input.on_gpu)
        printf("%d of %d ranks fit into %s without the model's weights: these are read from disk "
               "again and again\n",
               slow, p->input.n_ranks, text);
    else
        printf("All fit into %s a rank\n", text);
}

/* The float weights, which the teacher's pass and the evaluation of the model as it was go through.
 */
static void print_hold(const vq_plan *p)
{
    double hold = 0, own = 0;
    char stay[32], all[32];
    for (int i = 0; i < p->input.n_ranks; i++) {
        hold += p->rank[i].hold_bytes;
        own += p->rank[i].own_bytes;
    }
    if (own == 0) return;
    vq_bytes_text(hold, stay);
    vq_bytes_text(own, all);
    if (hold < own)
        printf("Of %s of the model's own weights %s stay on the GPUs in passes with them, the rest "
               "comes from the host for %lld windows at a time\n",
               all, stay, (long long)p->rank[0].together);
    else
        printf("All %s of the model's own weights stay on the GPUs in passes with them\n", all);
}

static const char *flops_text(double flops, char text[32])
{
    static const char *const units[] = {"GFLOP", "TFLOP", "PFLOP"};
    int i = 0;
    for (flops /= 1e9; flops >= 1000 && i < VQ_COUNT(units) - 1; i++) flops /= 1000;
    snprintf(text, 32, "%.4g %s", flops, units[i]);
    return text;
}

/* What helps a pipeline that waits for its one window. */
static const char *idle_hint(const vq_plan *p)
{
    const bool waits = p->n_stages > 1 && p->input.config->slices == 1 && p->step.idle_ratio > 0.3;
    return waits ? " (with more --slices less)" : "";
}

static void print_step(const vq_plan *p)
{
    char forward[32], backward[32], pool[32], spent[32], flops[32];
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
    printf("  operations         %s\n", flops_text(p->step.flops, flops));
    printf("  pipeline idle      %.1f %%%s\n", 100 * p->step.idle_ratio, idle_hint(p));
    if (p->step.seconds > 0)
        printf("  time               %s at %.4g GFLOP/s a rank\n",
               vq_duration_text(p->step.seconds, spent), p->input.gflops);
}

/* A line for a number; none for 0. */
static void print_row(const char *name, double value, const char *(*text_of)(double, char[32]))
{
    char text[32];
    if (value > 0) printf("  %-14s %14s\n", name, text_of(value, text));
}

static void print_time(const vq_plan *p)
{
    if (p->seconds.total == 0) return;
    printf("\nTime\n");
    print_row("init", p->seconds.init, vq_duration_text);
    print_row("blocks", p->seconds.blocks, vq_duration_text);
    print_row("teacher", p->seconds.teacher, vq_duration_text);
    print_row("train", p->seconds.train, vq_duration_text);
    print_row("evaluation", p->seconds.eval, vq_duration_text);
    print_row("in all", p->seconds.total, vq_duration_text);
    if (p->input.config->eval.run && p->seconds.eval == 0)
        printf("  The evaluation is not counted: how long its text is shows when it is read; "
               "--eval-max-windows bounds it\n");
}

static void print_disk(const vq_plan *p)
{
    printf("\nDisk\n");
    print_row("init", p->disk_bytes.init, vq_bytes_text);
    print_row("teacher", p->disk_bytes.teacher, vq_bytes_text);
    print_row("checkpoints", p->disk_bytes.checkpoints, vq_bytes_text);
    print_row("model", p->disk_bytes.model, vq_bytes_text);
    print_row("in all", p->disk_bytes.total, vq_bytes_text);
}

void vq_plan_print(const vq_plan *p)
{
    const vq_model_config *m = &p->input.model->config;
    char count[32];
    printf("%s: %s, %lld layers, %s weights in %s; to %lld bits\n", p->input.config->model,
           vq_family_name(m->family), (long long)m->N,
           vq_count_text((double)vq_model_weights(m), count), vq_dtype_name(p->input.model->dtype),
           (long long)p->input.config->bits);
    printf("%d rank%s on %d node%s: %d stage%s x %d replica%s\n", p->input.n_ranks,
           p->input.n_ranks == 1 ? "" : "s", p->input.n_nodes, p->input.n_nodes == 1 ? "" : "s",
           p->n_stages, p->n_stages == 1 ? "" : "s", p->n_replicas, p->n_replicas == 1 ? "" : "s");
    print_memory(p);
    print_fit(p);
    print_hold(p);
    if (vq_config_learns(p->input.config)) print_step(p);
    print_time(p);
    print_disk(p);
}

static json_t *rank_json(const vq_plan_rank *r)
{
    static const char *const parts[VQ_PLAN_N_PARTS] = {"weights", "integers", "codes",  "kept",
                                                       "teacher", "work",     "program"};
    json_t *bytes = json_object();
    for (int k = 0; k < VQ_PLAN_N_PARTS; k++)
        json_object_set_new(bytes, parts[k], json_real(r->bytes[k]));
    return json_pack("{s:i, s:i, s:i, s:[I, I], s:s, s:b, s:b, s:o, s:f, s:f, s:f, s:f, s:I}",
                     "node", r->node, "stage", r->topo.stage, "replica", r->topo.replica, "layers",
                     (json_int_t)r->topo.first, (json_int_t)r->topo.last, "phase",
                     vq_plan_phase_name(r->phase), "recompute", r->keep == VQ_KEEP_INPUTS,
                     "keep_weights", r->keeps_weights, "bytes", bytes, "total_bytes",
                     r->total_bytes, "fixed_bytes", r->fixed_bytes, "hold_bytes", r->hold_bytes,
                     "own_bytes", r->own_bytes, "together", (json_int_t)r->together);
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

void vq_plan_log(const vq_plan *p)
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
               "%.0f %% idle%s",
               vq_bytes_text(p->step.backward_bytes, forward),
               vq_bytes_text(p->step.reduce_bytes, pool), 100 * p->step.idle_ratio, idle_hint(p));
}
