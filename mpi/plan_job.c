/* plan_job - the machine there is, and the layout that fits it. */
#include "plan_job.h"

#include <stdio.h>
#include <unistd.h>

#include "cpu_backend.h"
#include "error.h"
#include "fileio.h"
#include "log.h"
#include "plan_print.h"

#define GIB ((double)(1 << 30))

/* --- the machine ----------------------------------------------------------------------------- */

/* GFLOP/s of matrix products on this machine with a rank's threads, in about a second. */
static vq_status measure(const vq_backend *be, vq_arena *scratch, double *gflops)
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
    if (in->on_gpu) {
        VQ_CHECK(
            c->plan.memory_gib > 0, VQ_EUSAGE,
            "plan.memory_gib: with --device cuda expected the memory of a rank's GPU. Give it, "
            "as --plan.memory_gib 79 for one of 80 GB");
        in->memory_bytes = c->plan.memory_gib * GIB;
        in->gflops = c->plan.gflops;
        in->threads = 1;
        return VQ_OK;
    }
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
        status = measure(&be, scratch, &in->gflops);
        in->gflops *= VQ_MIN(1, cores / (on_node * in->threads));
    }
    vq_cpu_close(&be);
    return status;
}

static vq_status plan_here(vq_arena *arena, const vq_config *c, const vq_comm *comm)
{
    const bool on_gpu = c->device == VQ_DEVICE_CUDA;
    vq_plan_model model, teacher;
    vq_plan plan;
    vq_plan_input in = {.config = c,
                        .model = &model,
                        .teacher = &model,
                        .act = c->plan.act_bytes == 2 || on_gpu ? VQ_BF16 : VQ_F32,
                        .on_gpu = on_gpu,
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
    char name[256] = "";
    (void)gethostname(name, sizeof name - 1);
    const uint64_t number = job->cuda ? job->gpu : vq_hash_text(VQ_HASH_START, name);
    return (double)(number >> 12);
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
    const vq_plan_rank *own = &p->rank[job->comm->rank];
    char needed[32], have[32], lack[32];
    vq_bytes_text(need.fixed, needed);
    vq_bytes_text(free_bytes, have);
    vq_bytes_text(need.fixed - free_bytes, lack);
    VQ_CHECK(job->comm->rank != leader || need.fixed <= free_bytes, VQ_EMEM,
             "memory: the plan of %d rank%s on this machine is %s and %s are free: %s short. Use "
             "more --stages on more machines%s, or lower seqlen or train.batch; \"vqround plan\" "
             "shows what takes it",
             need.n, need.n == 1 ? "" : "s", needed, have, lack,
             own->keeps_weights         ? ", set train.keep_weights to off"
             : own->keep == VQ_KEEP_ALL ? ", set train.recompute to on"
                                        : "");
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
                              .on_gpu = job->cuda != NULL,
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

/* Nodes with other memory may plan otherwise: the least, since messages are of as many windows on
 * all. Collective. */
static vq_status agree_on_passes(vq_job *job, int64_t mine)
{
    const int n = job->comm->size;
    const size_t mark = vq_arena_mark(&job->scratch);
    double *all;
    VQ_TRY(VQ_NEW(&job->scratch, n, &all));
    VQ_TRY(vq_comm_gather(job->comm, (double)mine, all));
    job->together = mine;
    for (int i = 0; i < n; i++) job->together = VQ_MIN(job->together, (int64_t)all[i]);
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

/* Hours may lie between the plan and the file that finds its disk full. */
static vq_status warn_of_disk(vq_job *job, const vq_plan *p)
{
    double files, model, free_bytes;
    char *path, needed[32], have[32];
    VQ_TRY(vq_job_path(job, &path, "model"));
    VQ_TRY(vq_folder_bytes(&job->scratch, job->config->out, &files));
    VQ_TRY(vq_folder_bytes(&job->scratch, path, &model));
    VQ_TRY(vq_disk_free(job->config->out, &free_bytes));
    double need = p->disk_bytes.total - files - model;
    if (job->config->share.dir) need -= p->disk_bytes.init + p->disk_bytes.teacher; /* links */
    if (need > free_bytes)
        vq_log(VQ_LOG_WARN,
               "%s: the run will write %s more, and its disk has %s free. Make room, or choose "
               "another --out",
               job->config->out, vq_bytes_text(need, needed), vq_bytes_text(free_bytes, have));
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
    job->keeps_weights = plan.rank[job->comm->rank].keeps_weights;
    job->hold_bytes = plan.rank[job->comm->rank].hold_bytes;
    VQ_TRY(agree_on_passes(job, plan.rank[job->comm->rank].together));
    vq_plan_log(&plan);
    vq_status status = check_node(job, &plan, host, free_bytes);
    if (!status && job->comm->rank == 0) status = warn_of_disk(job, &plan);
    return vq_comm_agree(job->comm, status);
}

vq_status vq_plan_job(vq_job *job)
{
    double *host;
    const size_t mark = vq_arena_mark(&job->scratch);
    vq_comm_at(job->comm, "plan");
    VQ_TRY(VQ_NEW(&job->scratch, job->comm->size, &host));
    VQ_TRY(vq_comm_gather(job->comm, memory_number(job), host));
    VQ_TRY(choose_layout(job, host));
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}
