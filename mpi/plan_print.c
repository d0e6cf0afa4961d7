/* plan_print - the plan as tables, as JSON, and in two lines of a log. */
#include "plan_print.h"

#include <jansson.h>
#include <stdio.h>

#include "log.h"

#define GIB ((double)(1 << 30))

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
               "%.0f %% idle",
               vq_bytes_text(p->step.backward_bytes, forward),
               vq_bytes_text(p->step.reduce_bytes, pool), 100 * p->step.idle_ratio);
}
