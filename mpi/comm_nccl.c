/* comm_nccl - device tensors between ranks.
 *
 * NCCL has streams of its own. Each call makes its stream wait for what the backend has queued; the
 * backend's stream needs to wait for nothing, since every wait here is the host's.
 *
 * Nothing waits blindly: every wait polls the event, NCCL's own error and the clock; while NCCL
 * connects, another thread looks at the clock. On an error the job dies as a whole (guard.h), so
 * communicators are not aborted: that can hang by itself. */
#include "comm_nccl.h"

#include <cuda_runtime_api.h>
#include <errno.h>
#include <nccl.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include "cuda_backend.h"
#include "error.h"
#include "log.h"

#if NCCL_VERSION_CODE < NCCL_VERSION(2, 18, 1)
#error "NCCL is older than 2.18.1, which has no ncclCommSplit: use a newer one, or hide nccl.h"
#endif

#define POLLS_A_CLOCK 1024 /* polls between two looks at the clock */

enum { TO_BEFORE, TO_NEXT, N_SIDES }; /* neighbours */
enum { FORWARD, BACKWARD, N_WAYS };   /* of the data: one communicator and stream each */

typedef struct link {
    ncclComm_t comm; /* of two ranks; NULL: no neighbour */
    cudaStream_t stream;
    int other; /* the neighbour's place in comm */
} link;

typedef struct state {
    vq_comm *comm;
    const vq_backend *be;
    ncclComm_t all, replicas; /* replicas: this stage's; NULL: there is one */
    cudaStream_t stream;
    link links[N_SIDES][N_WAYS];
    int neighbour[N_SIDES]; /* ranks; -1: none */
} state;

static vq_status check_cuda(cudaError_t code, const char *what)
{
    VQ_CHECK(code == cudaSuccess, VQ_EPEER,
             "%s failed: %s: expected a working GPU. Look at the node's GPU, or run with --device "
             "cpu",
             what, cudaGetErrorString(code));
    return VQ_OK;
}

static vq_status check_nccl(ncclResult_t code, const char *what)
{
    VQ_CHECK(code != ncclInProgress, VQ_EUNSUPPORTED,
             "%s: NCCL returned before it was done: expected calls that wait. Unset "
             "NCCL_COMM_BLOCKING",
             what);
    VQ_CHECK(code == ncclSuccess, VQ_EPEER,
             "%s failed: %s: expected NCCL to reach every rank. Look for the first message of "
             "another rank",
             what, ncclGetErrorString(code));
    return VQ_OK;
}

/* Until what was queued before the event is done. */
static vq_status wait_event(const state *s, ncclComm_t nccl, cudaEvent_t event, const char *what,
                            int peer)
{
    double start_s = vq_seconds();
    for (int64_t polls = 1;; polls++) {
        cudaError_t code = cudaEventQuery(event);
        if (code != cudaErrorNotReady) return check_cuda(code, what);
        ncclResult_t failure = ncclSuccess;
        VQ_TRY(check_nccl(ncclCommGetAsyncError(nccl, &failure), what));
        VQ_TRY(check_nccl(failure, what));
        const bool is_late =
            polls % POLLS_A_CLOCK == 0 && vq_seconds() - start_s > s->comm->limit_s;
        if (is_late && vq_comm_heard(s->comm)) {
            start_s = vq_seconds();
            continue;
        }
        VQ_CHECK(!is_late, VQ_EPEER,
                 "waited %.4g s for %s with rank %d (-1: all): expected an answer by then. Look "
                 "whether every rank still runs, or raise --comm.limit_s",
                 s->comm->limit_s, what, peer);
        sched_yield();
    }
}

/* Waits for all that is on the stream. */
static vq_status drain(const state *s, ncclComm_t nccl, cudaStream_t stream, const char *what,
                       int peer)
{
    cudaEvent_t event;
    VQ_TRY(check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), what));
    vq_status status = check_cuda(cudaEventRecord(event, stream), what);
    if (!status) status = wait_event(s, nccl, event, what, peer);
    cudaEventDestroy(event);
    return status;
}

static ncclDataType_t type_of(const vq_tensor *t)
{
    return t->dtype == VQ_F64 ? ncclDouble : ncclFloat;
}

static vq_status sum_over(const state *s, ncclComm_t ranks, vq_tensor *t)
{
    VQ_TRY(vq_cuda_before(s->be, s->stream));
    VQ_TRY(check_nccl(ncclAllReduce(t->data, t->data, (size_t)vq_tensor_count(t), type_of(t),
                                    ncclSum, ranks, s->stream),
                      "a sum"));
    return drain(s, ranks, s->stream, "a sum", -1);
}

static vq_status nccl_sum(void *ctx, vq_tensor *t)
{
    const state *s = ctx;
    return sum_over(s, s->all, t);
}

static vq_status nccl_sum_replicas(void *ctx, vq_tensor *t)
{
    const state *s = ctx;
    return s->replicas ? sum_over(s, s->replicas, t) : VQ_OK;
}

static vq_status nccl_broadcast(void *ctx, vq_tensor *t, int root)
{
    const state *s = ctx;
    VQ_TRY(vq_cuda_before(s->be, s->stream));
    VQ_TRY(check_nccl(
        ncclBroadcast(t->data, t->data, vq_tensor_bytes(t), ncclInt8, root, s->all, s->stream),
        "a broadcast"));
    return drain(s, s->all, s->stream, "a broadcast", root);
}

/* The link that a message takes. */
static vq_status find_link(const state *s, int peer, vq_tag tag, const link **out)
{
    for (int side = 0; side < N_SIDES; side++)
        if (s->neighbour[side] == peer && tag != VQ_TAG_IDS) {
            *out = &s->links[side][tag == VQ_TAG_FORWARD ? FORWARD : BACKWARD];
            return VQ_OK;
        }
    VQ_FAIL(VQ_EINTERNAL,
            "rank %d has no GPU link to rank %d: expected a neighbouring stage. This is a bug of "
            "vqround: please report it",
            s->comm->rank, peer);
}

/* A message begun on its link's stream; the request keeps the event that ends it. */
static vq_status begin(state *s, const vq_tensor *t, int peer, vq_tag tag, bool is_receive,
                       vq_request *request)
{
    const link *l;
    cudaEvent_t event;
    VQ_TRY(find_link(s, peer, tag, &l));
    VQ_TRY(vq_cuda_before(s->be, l->stream));
    const size_t bytes = vq_tensor_bytes(t);
    VQ_TRY(check_nccl(is_receive ? ncclRecv(t->data, bytes, ncclInt8, l->other, l->comm, l->stream)
                                 : ncclSend(t->data, bytes, ncclInt8, l->other, l->comm, l->stream),
                      "a message"));
    VQ_TRY(check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "a message"));
    VQ_TRY(check_cuda(cudaEventRecord(event, l->stream), "a message"));
    *request = (vq_request){.handle = {(uint64_t)(uintptr_t)event, (uint64_t)(uintptr_t)l},
                            .bytes = (int64_t)bytes,
                            .peer = peer,
                            .tag = tag,
                            .is_active = true,
                            .is_receive = is_receive};
    return VQ_OK;
}

static vq_status nccl_send(void *ctx, const vq_tensor *t, int to, vq_tag tag, vq_request *request)
{
    return begin(ctx, t, to, tag, false, request);
}

static vq_status nccl_receive(void *ctx, vq_tensor *t, int from, vq_tag tag, vq_request *request)
{
    return begin(ctx, t, from, tag, true, request);
}

static vq_status nccl_wait(void *ctx, vq_request *request)
{
    const state *s = ctx;
    const cudaEvent_t event = (cudaEvent_t)(uintptr_t)request->handle[0];
    const link *l = (const link *)(uintptr_t)request->handle[1];
    VQ_TRY(
        wait_event(s, l->comm, event, request->is_receive ? "a receive" : "a send", request->peer));
    request->is_active = false;
    return check_cuda(cudaEventDestroy(event), "a message");
}

static void nccl_close(void *ctx)
{
    state *s = ctx;
    for (int side = 0; side < N_SIDES; side++)
        for (int way = 0; way < N_WAYS; way++) {
            link *l = &s->links[side][way];
            if (!l->comm) continue;
            ncclCommDestroy(l->comm);
            cudaStreamDestroy(l->stream);
        }
    if (s->replicas) ncclCommDestroy(s->replicas);
    ncclCommDestroy(s->all);
    cudaStreamDestroy(s->stream);
}

static const vq_comm_ops nccl_ops = {.sum = nccl_sum,
                                     .sum_replicas = nccl_sum_replicas,
                                     .broadcast = nccl_broadcast,
                                     .send = nccl_send,
                                     .receive = nccl_receive,
                                     .wait = nccl_wait,
                                     .close = nccl_close};

/* --- opening --------------------------------------------------------------------------------- */

/* A thread that ends the job when NCCL's start, whose calls block, takes longer than a wait may. */
typedef struct watch {
    vq_comm *host;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    bool is_over;
} watch;

static vq_status fail_late(const vq_comm *host)
{
    VQ_FAIL(VQ_EPEER,
            "waited %.4g s for NCCL's start: expected it to reach every rank by then. Look at the "
            "network that NCCL_DEBUG=INFO says it takes (NCCL_SOCKET_IFNAME chooses one), use "
            "--comm mpi, or raise --comm.limit_s",
            host->limit_s);
}

static void *look_at_clock(void *ctx)
{
    watch *w = ctx;
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += (time_t)w->host->limit_s + 1;
    pthread_mutex_lock(&w->lock);
    for (int code = 0; !w->is_over && code != ETIMEDOUT;)
        code = pthread_cond_timedwait(&w->ended, &w->lock, &end);
    if (!w->is_over) vq_comm_die(w->host, fail_late(w->host));
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static vq_status begin_watch(watch *w, vq_comm *host)
{
    pthread_condattr_t by;
    *w = (watch){.host = host, .lock = PTHREAD_MUTEX_INITIALIZER};
    pthread_condattr_init(&by);
    pthread_condattr_setclock(&by, CLOCK_MONOTONIC);
    pthread_cond_init(&w->ended, &by);
    VQ_CHECK(pthread_create(&w->thread, NULL, look_at_clock, w) == 0, VQ_EMEM,
             "a thread could not be started: expected room for one more. Raise the limit of "
             "processes (ulimit -u)");
    return VQ_OK;
}

static void end_watch(watch *w)
{
    pthread_mutex_lock(&w->lock);
    w->is_over = true;
    pthread_cond_signal(&w->ended);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
}

/* Every rank's GPU, from its place in a sum: as two halves, which f64 holds exactly. */
static vq_status check_own_gpu(const state *s, int device, vq_arena *memory)
{
    const int n = s->comm->size;
    uint64_t own = 0, *gpu;
    double *halves;
    int a, b;
    size_t mark = vq_arena_mark(memory);
    VQ_TRY(VQ_NEW(memory, 2 * n, &halves));
    VQ_TRY(VQ_NEW(memory, n, &gpu));
    VQ_TRY(vq_comm_agree(s->comm->base, vq_cuda_name(device, &own)));
    for (int i = 0; i < 2 * n; i++) halves[i] = 0;
    halves[2 * s->comm->rank] = (double)(own >> 32);
    halves[2 * s->comm->rank + 1] = (double)(own & UINT32_MAX);
    vq_tensor t = vq_tensor_1d(halves, VQ_F64, 2 * n);
    VQ_TRY(vq_comm_sum(s->comm->base, &t));
    for (int i = 0; i < n; i++)
        gpu[i] = (uint64_t)halves[2 * i] << 32 | (uint64_t)halves[2 * i + 1];
    VQ_CHECK(!vq_topo_shares_gpu(gpu, n, &a, &b), VQ_EUNSUPPORTED,
             "ranks %d and %d have the same GPU: expected a GPU a rank, as NCCL does. Start fewer "
             "ranks a node",
             a, b);
    vq_arena_reset(memory, mark);
    return VQ_OK;
}

static ncclConfig_t with_channels(int most)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.maxCTAs = most;
    return config;
}

/* The communicators to both neighbours. All ranks split alike; those without a pair stand aside. */
static vq_status open_links(state *s, const vq_topo *topo)
{
    ncclConfig_t config = with_channels(VQ_NCCL_LINK_CHANNELS);
    for (int parity = 0; parity < 2; parity++) {
        int place;
        const int pair = vq_topo_pair(topo, parity, &place);
        const int side = place == 0 ? TO_NEXT : TO_BEFORE;
        for (int way = 0; way < N_WAYS; way++) {
            link unused = {0}, *l = pair < 0 ? &unused : &s->links[side][way];
            VQ_TRY(check_nccl(ncclCommSplit(s->all, pair < 0 ? NCCL_SPLIT_NOCOLOR : pair, place,
                                            &l->comm, &config),
                              "a link"));
            if (pair < 0) continue;
            l->other = 1 - place;
            s->neighbour[side] =
                vq_topo_rank(topo, topo->stage + (place == 0 ? 1 : -1), topo->replica);
            VQ_TRY(check_cuda(cudaStreamCreateWithFlags(&l->stream, cudaStreamNonBlocking),
                              "a stream"));
        }
    }
    return VQ_OK;
}

/* A number that comes from one neighbour, if there is one, and then goes to the other. */
static vq_status pass_on(state *s, vq_tensor *number, int from, int to, vq_tag tag)
{
    vq_request request;
    if (s->neighbour[from] >= 0) {
        VQ_TRY(begin(s, number, s->neighbour[from], tag, true, &request));
        VQ_TRY(nccl_wait(s, &request));
    }
    if (s->neighbour[to] < 0) return VQ_OK;
    VQ_TRY(begin(s, number, s->neighbour[to], tag, false, &request));
    return nccl_wait(s, &request);
}

/* A number through the stages and back, and into the sums: NCCL connects and takes its memory at
 * first use, while both sides wait. */
static vq_status try_out(state *s, vq_arena *memory)
{
    const size_t mark = vq_arena_mark(memory);
    vq_tensor number;
    VQ_TRY(vq_tensor_new(memory, VQ_DEVICE, VQ_F32, VQ_DIMS(1), &number));
    VQ_TRY(vq_zero(s->be, &number));
    VQ_TRY(pass_on(s, &number, TO_BEFORE, TO_NEXT, VQ_TAG_FORWARD));
    VQ_TRY(pass_on(s, &number, TO_NEXT, TO_BEFORE, VQ_TAG_BACKWARD));
    VQ_TRY(nccl_sum_replicas(s, &number));
    VQ_TRY(nccl_sum(s, &number));
    vq_arena_reset(memory, mark);
    return VQ_OK;
}

static vq_status connect(state *s, const ncclUniqueId *id, const vq_topo *topo, vq_arena *memory)
{
    ncclConfig_t config = with_channels(VQ_NCCL_SUM_CHANNELS);
    const vq_comm *comm = s->comm;
    VQ_TRY(check_nccl(ncclCommInitRankConfig(&s->all, comm->size, *id, comm->rank, &config),
                      "NCCL's start"));
    VQ_TRY(check_cuda(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), "a stream"));
    VQ_TRY(open_links(s, topo));
    if (topo->n_replicas > 1)
        VQ_TRY(check_nccl(ncclCommSplit(s->all, topo->stage, topo->replica, &s->replicas, &config),
                          "the replicas' link"));
    return try_out(s, memory);
}

vq_status vq_comm_nccl(vq_comm *comm, vq_comm *host, const vq_backend *be, const vq_topo *topo,
                       int device, vq_arena *memory)
{
    state *s;
    watch start;
    ncclUniqueId id = {{0}};
    vq_comm_over(comm, host);
    VQ_TRY(VQ_NEW(memory, 1, &s));
    *s = (state){.comm = comm, .be = be, .neighbour = {-1, -1}};
    VQ_TRY(vq_comm_agree(host, check_cuda(cudaSetDevice(device), "choosing the GPU")));
    VQ_TRY(check_own_gpu(s, device, memory));
    vq_status status = VQ_OK;
    if (comm->rank == 0) status = check_nccl(ncclGetUniqueId(&id), "NCCL's start");
    vq_tensor bytes = vq_tensor_1d(&id, VQ_I8, (int64_t)sizeof id);
    VQ_TRY(vq_comm_broadcast(host, &bytes, 0));
    /* All have it then: who waits in NCCL no longer passes it on. */
    VQ_TRY(vq_comm_agree(host, status));
    VQ_TRY(begin_watch(&start, host));
    status = connect(s, &id, topo, memory);
    end_watch(&start);
    VQ_TRY(status);
    comm->ops = &nccl_ops;
    comm->ctx = s;
    return VQ_OK;
}
