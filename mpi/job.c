/* job - opening and closing what a job works with. */
#include "job.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "comm_staged.h"
#include "cpu_backend.h"
#include "cuda_module.h"
#include "error.h"
#include "log.h"
#include "place.h"

/* Addresses for an arena: pages are taken as they are used. */
static size_t reserve_bytes(void)
{
    return (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
}

/* Of a GPU's free memory, what passes with the model's own weights may hold of these where no plan
 * has said it (eval). */
#define HOLD_RATIO 0.7

/* --- the GPU --------------------------------------------------------------------------------- */

/* How many ranks have this number, and the place of this rank among them. Collective. */
static vq_status count_same(vq_job *job, uint64_t own, int *n_same, int *place)
{
    const int n = job->comm->size;
    const size_t mark = vq_arena_mark(&job->scratch);
    const double mine = (double)(own >> 11); /* exact in f64 */
    double *number;
    VQ_TRY(VQ_NEW(&job->scratch, n, &number));
    VQ_TRY(vq_comm_gather(job->comm, mine, number));
    *n_same = *place = 0;
    for (int i = 0; i < n; i++) {
        *n_same += number[i] == mine;
        *place += i < job->comm->rank && number[i] == mine;
    }
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

/* Whether a GPU's driver is there. Loading CUDA's libraries to find that none is takes half a
 * second and 200 MB. */
static bool may_have_gpu(void)
{
    static const char *const files[] = {"/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"};
    for (int i = 0; i < VQ_COUNT(files); i++)
        if (access(files[i], F_OK) == 0) return true;
    return false;
}

/* The module, where a GPU is wanted and this rank sees one. Without one, auto is the CPU. */
static vq_status find_module(vq_job *job)
{
    const vq_device device = job->config->device;
    job->cuda = NULL;
    if (device == VQ_DEVICE_CPU || (device == VQ_DEVICE_AUTO && !may_have_gpu())) return VQ_OK;
    const vq_status status = vq_cuda_module_open(&job->cuda);
    if (status != VQ_OK && device == VQ_DEVICE_CUDA) return status;
    if (status != VQ_OK) {
        vq_log(VQ_LOG_WARN, "device   the CPU, though a GPU's driver is here: %s",
               vq_error_message());
        vq_error_clear();
    } else if (job->cuda->device_count() == 0 && device == VQ_DEVICE_AUTO) {
        vq_log(VQ_LOG_DEBUG, "device   the CPU: no GPU is seen");
        job->cuda = NULL;
    }
    return VQ_OK;
}

/* Whether all ranks have a GPU: with auto a job does not run on both. Collective. */
static vq_status agree_on_device(vq_job *job)
{
    double lacking = job->cuda == NULL;
    vq_tensor t = vq_tensor_1d(&lacking, VQ_F64, 1);
    VQ_TRY(vq_comm_sum(job->comm, &t));
    if (lacking > 0 && job->cuda)
        vq_log(VQ_LOG_WARN, "device   the CPU: %d ranks see no GPU", (int)lacking);
    if (lacking > 0) job->cuda = NULL;
    return VQ_OK;
}

static vq_status open_device(vq_job *job, int local)
{
    vq_arena *const arenas[VQ_N_ARENAS] = {&job->run, &job->weights, &job->step, &job->scratch};
    const int n = job->cuda->device_count();
    char text[160];
    job->device = n > 0 ? vq_topo_device(local, n) : 0;
    VQ_TRY(job->cuda->open(&job->be, job->device, VQ_BF16));
    VQ_TRY(job->cuda->name(job->device, &job->gpu));
    for (int i = 0; i < VQ_N_ARENAS; i++) {
        VQ_TRY(job->cuda->arena(&job->be, arenas[i]->name, &job->twins[i]));
        arenas[i]->twin = &job->twins[i];
    }
    VQ_TRY(job->cuda->describe(job->device, text, sizeof text));
    vq_log(VQ_LOG_INFO, "device   %s", text);
    return VQ_OK;
}

vq_status vq_job_connect(vq_job *job)
{
    const vq_transport wanted = job->config->comm.transport;
    vq_comm *host = job->comm;
    double shared = job->n_on_device > 1;
    vq_tensor t = vq_tensor_1d(&shared, VQ_F64, 1);
    size_t before, after, total;
    char taken[32];
    if (!job->cuda || host->size == 1) return VQ_OK;
    VQ_TRY(vq_comm_sum(host, &t));
    const bool nccl = wanted == VQ_TRANSPORT_NCCL ||
                      (wanted == VQ_TRANSPORT_AUTO && shared == 0 && job->cuda->comm_nccl);
    VQ_CHECK(!nccl || job->cuda->comm_nccl, VQ_EUNSUPPORTED,
             "--comm nccl: vq_cuda.so was built without NCCL: expected mpi or auto. Build it where "
             "nccl.h is found");
    VQ_TRY(vq_mem_info(&job->be, &before, &total));
    if (nccl)
        VQ_TRY(job->cuda->comm_nccl(&job->own_comm, host, &job->be, &job->topo, job->device,
                                    &job->run));
    else
        VQ_TRY(vq_comm_staged(&job->own_comm, host, &job->be, &job->run));
    job->comm = &job->own_comm;
    VQ_TRY(vq_mem_info(&job->be, &after, &total));
    vq_bytes_text((double)(before - VQ_MIN(before, after)), taken);
    vq_log(VQ_LOG_INFO, "device   tensors between GPUs by %s, which took %s of this one's memory",
           nccl ? "NCCL" : "MPI", taken);
    return VQ_OK;
}

/* The GPU, if the job runs on one, else the CPU. Collective. */
static vq_status open_backend(vq_job *job)
{
    const char *host = job->comm->host;
    int local, place;
    size_t free_bytes, total_bytes;
    VQ_TRY(vq_comm_agree(job->comm, find_module(job)));
    VQ_TRY(agree_on_device(job));
    VQ_TRY(
        count_same(job, vq_hash_bytes(VQ_HASH_START, host, strlen(host)), &job->n_local, &local));
    if (!job->cuda) {
        job->be = job->cpu;
        return VQ_OK;
    }
    VQ_TRY(vq_comm_agree(job->comm, open_device(job, local)));
    /* By name: a rank may see no GPU but its own, as the first. */
    VQ_TRY(count_same(job, job->gpu, &job->n_on_device, &place));
    VQ_TRY(vq_mem_info(&job->be, &free_bytes, &total_bytes));
    job->hold_bytes = HOLD_RATIO * (double)free_bytes / job->n_on_device;
    return VQ_OK;
}

static void close_backend(vq_job *job)
{
    if (job->comm == &job->own_comm) job->comm->ops->close(job->comm->ctx);
    for (int i = 0; i < VQ_N_ARENAS; i++) vq_arena_close(&job->twins[i]);
    if (job->cuda && job->be.ops) job->cuda->close(&job->be);
    if (job->cpu.ops) vq_cpu_close(&job->cpu);
}

/* --- opening --------------------------------------------------------------------------------- */

static vq_status open_memory(vq_job *job)
{
    const struct {
        vq_arena *arena;
        const char *name;
    } arenas[VQ_N_ARENAS] = {{&job->run, "run"},
                             {&job->weights, "model"},
                             {&job->step, "step"},
                             {&job->scratch, "scratch"}};
    for (int i = 0; i < VQ_COUNT(arenas); i++)
        VQ_TRY(vq_arena_init(arenas[i].arena, arenas[i].name, reserve_bytes()));
    return vq_cpu_open(&job->cpu, (int)job->config->threads);
}

static vq_status open_inputs(vq_job *job)
{
    const vq_config *config = job->config;
    VQ_TRY(vq_model_open(&job->run, config->model, &job->model));
    VQ_TRY(vq_topo_make(config, &job->model.config, job->comm->rank, job->comm->size, &job->topo));
    if (!config->teacher.model) return VQ_OK;
    VQ_TRY(vq_model_open(&job->run, config->teacher.model, &job->teacher));
    VQ_TRY(vq_model_require_dense(&job->teacher.config, config->teacher.model));
    VQ_CHECK(job->teacher.config.V == job->model.config.V, VQ_EUSAGE,
             "teacher.model: %s has %lld tokens in its vocabulary, expected the model's %lld. "
             "Choose a teacher with the same tokenizer",
             config->teacher.model, (long long)job->teacher.config.V,
             (long long)job->model.config.V);
    VQ_CHECK(job->teacher.config.N >= job->topo.n_stages, VQ_EUSAGE,
             "teacher.model: %s has %lld layers, expected at least a layer a stage (%d). Use fewer "
             "stages",
             config->teacher.model, (long long)job->teacher.config.N, job->topo.n_stages);
    return VQ_OK;
}

/* Ranks with other weights or settings would work on, to wrong numbers. */
static vq_status check_alike(vq_job *job)
{
    const vq_config *c = job->config;
    const uint64_t layout[] = {(uint64_t)job->topo.n_stages, (uint64_t)job->topo.n_replicas,
                               (uint64_t)c->slices, c->eval.run, c->eval.start};
    const uint64_t settings = vq_hash_bytes(vq_config_phase_hash(c, ~0u), layout, sizeof layout);
    uint64_t own[] = {job->model.fingerprint, job->teacher.fingerprint, settings};
    uint64_t first[VQ_COUNT(own)];
    memcpy(first, own, sizeof first);
    vq_tensor t = vq_tensor_1d(first, VQ_I64, VQ_COUNT(first));
    VQ_TRY(vq_comm_broadcast(job->comm, &t, 0));
    VQ_CHECK(own[0] == first[0], VQ_EFILE,
             "%s: other weights than rank 0 has found there: expected the same on every node. Copy "
             "the model again",
             c->model);
    VQ_CHECK(own[1] == first[1], VQ_EFILE,
             "teacher.model: other weights than rank 0 has found there: expected the same on every "
             "node. Copy the model again");
    VQ_CHECK(own[2] == first[2], VQ_EUSAGE,
             "the command line: other settings than those of rank 0: expected the same. Start all "
             "ranks with the same command");
    return VQ_OK;
}

vq_status vq_job_open(const vq_config *config, vq_comm *comm, vq_job *job)
{
    *job = (vq_job){.config = config, .comm = comm, .together = 1};
    vq_comm_at(comm, "opening %.40s", config->model);
    VQ_TRY(vq_comm_agree(comm, open_memory(job)));
    VQ_TRY(vq_comm_agree(comm, open_inputs(job)));
    VQ_TRY(vq_comm_agree(comm, check_alike(job)));
    return open_backend(job);
}

vq_status vq_job_stage(vq_job *job, const vq_model *model, int64_t T, vq_stage *stage)
{
    size_t mark = vq_arena_mark(&job->scratch);
    int64_t *cut;
    VQ_TRY(VQ_NEW(&job->scratch, job->topo.n_stages + 1, &cut));
    vq_topo_cut(&model->config, job->topo.n_stages, cut);
    const int64_t first = cut[job->topo.stage], last = cut[job->topo.stage + 1];
    vq_arena_reset(&job->scratch, mark);
    /* A GPU is brought whole weights. Here each is unpacked when it is read: it costs little beside
     * a product, and a model of 4 bits takes a quarter of the memory. */
    if (job->be.place == VQ_HOST)
        VQ_TRY(vq_model_check_packed(model, first, last));
    else
        VQ_TRY(vq_model_unpack(&job->weights, &job->scratch, model, first, last));
    return vq_stage_init(&job->run, &job->be, model, first, last, T, &job->scratch, stage);
}

bool vq_job_is_end(const vq_job *job)
{
    return job->topo.stage == 0 || vq_topo_is_last(&job->topo);
}

vq_status vq_job_room(const vq_job *job, double *bytes)
{
    const double given = job->cuda ? 0 : job->config->plan.memory_gib * (double)(1 << 30);
    size_t free_bytes, total_bytes;
    VQ_TRY(vq_mem_info(&job->cpu, &free_bytes, &total_bytes));
    *bytes = (double)free_bytes / job->n_local;
    if (given > 0) *bytes = VQ_MIN(*bytes, given);
    return VQ_OK;
}

static void release_linears(const vq_model *model)
{
    for (int64_t i = 0; model->layers && i < model->config.N * VQ_N_KINDS; i++) {
        const vq_linear *l = &model->layers[i / VQ_N_KINDS].linear[i % VQ_N_KINDS];
        if (l->exists) vq_weights_release(&model->weights, &l->weight);
    }
}

void vq_job_trim(vq_job *job)
{
    vq_arena_trim(&job->step);
    vq_arena_trim(&job->scratch);
    vq_cpu_trim(&job->cpu);
    if (job->cuda) job->cuda->trim(&job->be);
    release_linears(&job->model);
    release_linears(&job->teacher);
}

void vq_job_close(vq_job *job)
{
    vq_model_close(&job->model);
    vq_model_close(&job->teacher);
    close_backend(job);
    vq_arena_close(&job->scratch);
    vq_arena_close(&job->step);
    vq_arena_close(&job->weights);
    vq_arena_close(&job->run);
}

vq_mode vq_job_mode(const vq_job *job)
{
    return job->config->train.rounding == VQ_ROUNDING_HARD ? VQ_MODE_HARD : VQ_MODE_SOFT;
}

vq_status vq_job_path(vq_job *job, char **path, const char *fmt, ...)
{
    char name[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    return vq_path_join(&job->run, job->config->out, name, path);
}

vq_status vq_job_files(vq_arena *arena, const char *dir, const char *prefix, char ***paths,
                       int64_t *n)
{
    int64_t kept = 0;
    VQ_TRY(vq_folder_list(arena, dir, ".h5", paths, n));
    for (int64_t i = 0; i < *n; i++) {
        if (strncmp((*paths)[i], prefix, strlen(prefix)) != 0) continue;
        VQ_TRY(vq_path_join(arena, dir, (*paths)[i], &(*paths)[kept]));
        kept++;
    }
    *n = kept;
    return VQ_OK;
}

vq_status vq_job_send(vq_job *job, const vq_tensor *t, int to, vq_tag tag)
{
    vq_request request = {0};
    VQ_TRY(vq_comm_send(job->comm, t, to, tag, &request));
    return vq_comm_wait(job->comm, &request);
}

vq_status vq_job_receive(vq_job *job, vq_tensor *t, int from, vq_tag tag)
{
    vq_request request = {0};
    VQ_TRY(vq_comm_receive(job->comm, t, from, tag, &request));
    return vq_comm_wait(job->comm, &request);
}

#define SUM_BYTES ((int64_t)256 << 20) /* in one message */

static void add(vq_tensor *to, const vq_tensor *from)
{
    const int64_t n = vq_tensor_count(to);
    for (int64_t i = 0; i < n; i++)
        if (to->dtype == VQ_F32)
            ((float *)to->data)[i] += ((const float *)from->data)[i];
        else
            ((double *)to->data)[i] += ((const double *)from->data)[i];
}

/* A part of the sum: the stage's rank of replica 0 adds, the others send and get the sum. */
static vq_status sum_part(vq_job *job, vq_tensor *part)
{
    const vq_topo *topo = &job->topo;
    const int root = vq_topo_rank(topo, topo->stage, 0);
    const size_t mark = vq_arena_mark(&job->scratch);
    vq_tensor theirs;
    if (topo->replica > 0) {
        VQ_TRY(vq_job_send(job, part, root, VQ_TAG_FORWARD));
        return vq_job_receive(job, part, root, VQ_TAG_FORWARD);
    }
    VQ_TRY(vq_tensor_new(&job->scratch, VQ_HOST, part->dtype, VQ_DIMS(part->dim[0]), &theirs));
    for (int r = 1; r < topo->n_replicas; r++) {
        VQ_TRY(vq_job_receive(job, &theirs, vq_topo_rank(topo, topo->stage, r), VQ_TAG_FORWARD));
        add(part, &theirs);
    }
    for (int r = 1; r < topo->n_replicas; r++)
        VQ_TRY(vq_job_send(job, part, vq_topo_rank(topo, topo->stage, r), VQ_TAG_FORWARD));
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

/* The same of a part anywhere. */
static vq_status sum_part_there(vq_job *job, vq_tensor *part)
{
    const size_t mark = vq_arena_mark(&job->scratch);
    vq_tensor host;
    VQ_TRY(vq_place_host(&job->be, &job->scratch, part, &host));
    VQ_TRY(sum_part(job, &host));
    VQ_TRY(vq_place_back(&job->be, &host, part));
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

vq_status vq_job_sum_replicas(vq_job *job, vq_tensor *t)
{
    const int64_t n = vq_tensor_count(t), most = SUM_BYTES / (int64_t)vq_dtype_bytes(t->dtype);
    VQ_ASSERT(t->dtype == VQ_F32 || t->dtype == VQ_F64);
    VQ_ASSERT(vq_tensor_contiguous(t));
    if (job->topo.n_replicas == 1) return VQ_OK;
    if (vq_comm_knows_replicas(job->comm, t)) return vq_comm_sum_replicas(job->comm, t);
    vq_tensor flat = vq_tensor_1d(t->data, t->dtype, n);
    flat.place = t->place;
    for (int64_t i = 0; i < n; i += most) {
        vq_tensor part = vq_tensor_rows(&flat, i, VQ_MIN(most, n - i));
        VQ_TRY(sum_part_there(job, &part));
    }
    return VQ_OK;
}

bool vq_job_makes_slot(const vq_job *job, int64_t slot)
{
    return job->maker[slot] == job->topo.replica;
}

bool vq_job_has_slot(const vq_job *job, int64_t slot)
{
    const int64_t layer = slot / VQ_N_KINDS;
    return layer >= job->stage.first && layer < job->stage.last &&
           vq_pool_codes(&job->pool, slot) > 0;
}

vq_status vq_job_share_pool(vq_job *job)
{
    vq_pool *pool = &job->pool;
    for (int64_t slot = 0; slot < pool->n_slots; slot++) {
        if (vq_pool_codes(pool, slot) == 0) continue;
        if (job->topo.replica == 0 && vq_job_has_slot(job, slot)) continue;
        vq_tensor codes = vq_pool_part(pool, &pool->codes, slot),
                  factor = vq_pool_scales(pool, &pool->codes, slot);
        VQ_TRY(vq_zero(&job->be, &codes));
        if (factor.data) VQ_TRY(vq_zero(&job->be, &factor));
    }
    return vq_comm_sum(job->comm, &pool->codes);
}
