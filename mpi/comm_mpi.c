/* comm_mpi - the world of an MPI job.
 *
 * Everything is begun without blocking and then polled against the clock: a lost rank would leave
 * a blocking call waiting for ever. While it polls a rank gives its core away, so that ranks may
 * share cores. */
#include <limits.h>
#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm.h"
#include "error.h"
#include "log.h"

#define UNIT_BYTES ((int64_t)1 << 30)   /* of a message of more bytes than an int counts */
#define SUM_ELEMENTS ((int64_t)1 << 26) /* added up at a time */
#define SPIN_POLLS 2000                 /* before a waiting rank sleeps between polls */
#define SLEEP_NS 50000   /* 50 us: little beside a message of a layer's activations */
#define ABORT_LIMIT_S 20 /* then the process ends without MPI */
#define DEATH_TAG 100    /* beside those of vq_tag */
#define LIFE_TAG 101
#define LISTEN_S 0.001 /* for a rank that is dying already */
#define TOGETHER_S 1.0 /* in which ranks that waited for the same one run out of time */

_Static_assert(sizeof(MPI_Request) <= sizeof(((vq_request *)0)->handle), "vq_request is too small");

static const char *const tag_names[] = {"token ids", "activations", "gradients"};

static vq_status check(int code, const char *what)
{
    if (code == MPI_SUCCESS) return VQ_OK;
    char text[MPI_MAX_ERROR_STRING];
    int n = 0;
    MPI_Error_string(code, text, &n);
    VQ_FAIL(VQ_EPEER,
            "%s failed: %.*s: expected every rank to answer. Look for the first message of another "
            "rank, and start all ranks with "
            "the same command",
            what, n, text);
}

/* --- signs of life --------------------------------------------------------------------------- */

/* A rank that makes progress tells the others, several times in a limit: they wait on. */
static void say_alive(void *ctx)
{
    const vq_comm *comm = ctx;
    static double said_s;
    const double now_s = vq_seconds();
    if (now_s - said_s < comm->limit_s / 4) return;
    said_s = now_s;
    for (int r = 0; r < comm->size; r++) {
        MPI_Request request;
        if (r != comm->rank &&
            MPI_Isend(NULL, 0, MPI_BYTE, r, LIFE_TAG, MPI_COMM_WORLD, &request) == MPI_SUCCESS)
            MPI_Request_free(&request);
    }
}

/* Whether another rank has said so since this was asked last. */
static bool mpi_heard(void *ctx)
{
    (void)ctx;
    bool heard = false;
    for (int found = 1; found; heard = heard || found) {
        found = 0;
        MPI_Iprobe(MPI_ANY_SOURCE, LIFE_TAG, MPI_COMM_WORLD, &found, MPI_STATUS_IGNORE);
        if (found)
            MPI_Recv(NULL, 0, MPI_BYTE, MPI_ANY_SOURCE, LIFE_TAG, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
    }
    return heard;
}

/* --- waiting --------------------------------------------------------------------------------- */

/* Polls until the request is through, or the limit has passed without a sign of life. */
static vq_status poll(const vq_comm *comm, MPI_Request *request, MPI_Status *result,
                      const char *what)
{
    double start_s = vq_seconds();
    const struct timespec pause = {0, SLEEP_NS};
    for (int64_t polls = 0;; polls++) {
        int done = 0;
        VQ_TRY(check(MPI_Test(request, &done, result), what));
        if (done) return VQ_OK;
        const double now_s = vq_seconds();
        if (now_s - start_s > comm->limit_s) {
            if (!mpi_heard(NULL)) break;
            start_s = now_s;
        }
        if (polls < SPIN_POLLS)
            sched_yield(); /* for a whole time slice where ranks share a core */
        else
            nanosleep(&pause, NULL);
    }
    VQ_FAIL(VQ_EPEER,
            "waited %.4g s for %s: expected an answer by then. Look whether every rank still runs, "
            "or raise --comm.limit_s",
            comm->limit_s, what);
}

/* The lowest rank that says within limit_s that it is dying; comm->size: none does. */
static int dying_elsewhere(const vq_comm *comm, double limit_s)
{
    const double start_s = vq_seconds();
    const struct timespec pause = {0, SLEEP_NS};
    int lowest = comm->size;
    do {
        MPI_Status heard;
        int found = 0;
        MPI_Iprobe(MPI_ANY_SOURCE, DEATH_TAG, MPI_COMM_WORLD, &found, &heard);
        if (found) {
            MPI_Recv(NULL, 0, MPI_BYTE, heard.MPI_SOURCE, DEATH_TAG, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
            lowest = VQ_MIN(lowest, heard.MPI_SOURCE);
        } else {
            nanosleep(&pause, NULL);
        }
    } while (vq_seconds() - start_s < limit_s);
    return lowest;
}

static _Noreturn void wait_for_end(void)
{
    for (;;) pause();
}

/* One rank speaks and ends the job, which ends those that only wait here: the first that tells the
 * others. When a rank is lost the others run out of time together: of these the lowest. */
static void mpi_die(void *ctx, vq_status status)
{
    const vq_comm *comm = ctx;
    alarm(ABORT_LIMIT_S);
    if (dying_elsewhere(comm, LISTEN_S) < comm->size) wait_for_end();
    for (int r = 0; r < comm->size; r++) {
        MPI_Request request;
        if (r != comm->rank) MPI_Isend(NULL, 0, MPI_BYTE, r, DEATH_TAG, MPI_COMM_WORLD, &request);
    }
    if (status == VQ_EPEER && dying_elsewhere(comm, TOGETHER_S) < comm->rank) wait_for_end();
    vq_comm_report(comm, status);
    fflush(NULL);
    MPI_Abort(MPI_COMM_WORLD, (int)status);
    _exit((int)status);
}

static MPI_Datatype type_of(const vq_tensor *t)
{
    return t->dtype == VQ_F64 ? MPI_DOUBLE : MPI_FLOAT;
}

/* The next elements of a sum, [first, first + n). */
static vq_status sum_some(const vq_comm *comm, const vq_tensor *t, int64_t first, int64_t n)
{
    MPI_Request request;
    void *data = (char *)t->data + (size_t)first * vq_dtype_bytes(t->dtype);
    VQ_TRY(check(
        MPI_Iallreduce(MPI_IN_PLACE, data, (int)n, type_of(t), MPI_SUM, MPI_COMM_WORLD, &request),
        "a sum"));
    return poll(comm, &request, MPI_STATUS_IGNORE, "a sum");
}

static vq_status mpi_sum(void *ctx, vq_tensor *t)
{
    const int64_t n = vq_tensor_count(t);
    for (int64_t i = 0; i < n; i += SUM_ELEMENTS)
        VQ_TRY(sum_some(ctx, t, i, VQ_MIN(SUM_ELEMENTS, n - i)));
    return VQ_OK;
}

/* MPI counts in int: what is longer is one element of a type of its own, units and a rest. */
typedef struct extent {
    MPI_Datatype type;
    int n;
} extent;

static vq_status open_extent(int64_t bytes, const char *what, extent *e)
{
    *e = (extent){MPI_BYTE, 1};
    if (bytes <= INT_MAX) {
        e->n = (int)bytes;
        return VQ_OK;
    }
    MPI_Datatype part[2] = {MPI_BYTE, MPI_BYTE};
    const int n[2] = {(int)(bytes / UNIT_BYTES), (int)(bytes % UNIT_BYTES)};
    const MPI_Aint at[2] = {0, n[0] * UNIT_BYTES};
    VQ_TRY(check(MPI_Type_contiguous((int)UNIT_BYTES, MPI_BYTE, &part[0]), what));
    VQ_TRY(check(MPI_Type_create_struct(2, n, at, part, &e->type), what));
    VQ_TRY(check(MPI_Type_free(&part[0]), what));
    return check(MPI_Type_commit(&e->type), what);
}

/* A message that was begun keeps what it needs. */
static vq_status close_extent(extent *e, const char *what)
{
    return e->type == MPI_BYTE ? VQ_OK : check(MPI_Type_free(&e->type), what);
}

static vq_status mpi_broadcast(void *ctx, vq_tensor *t, int root)
{
    const vq_comm *comm = ctx;
    MPI_Request request;
    extent e;
    char what[64];
    snprintf(what, sizeof what, "a broadcast from rank %d", root);
    VQ_TRY(open_extent((int64_t)vq_tensor_bytes(t), what, &e));
    VQ_TRY(check(MPI_Ibcast(t->data, e.n, e.type, root, MPI_COMM_WORLD, &request), what));
    VQ_TRY(close_extent(&e, what));
    return poll(comm, &request, MPI_STATUS_IGNORE, what);
}

static vq_status mpi_agree(void *ctx, vq_status status)
{
    const vq_comm *comm = ctx;
    int mine[2] = {(int)status, comm->rank}, worst[2];
    MPI_Request request;
    int code = MPI_Iallreduce(mine, worst, 1, MPI_2INT, MPI_MAXLOC, MPI_COMM_WORLD, &request);
    vq_status agreed = check(code, "an agreement");
    if (!agreed) agreed = poll(comm, &request, MPI_STATUS_IGNORE, "an agreement");
    if (agreed) mpi_die(ctx, agreed);
    if (worst[0] != VQ_OK && worst[1] != comm->rank) vq_error_clear();
    return (vq_status)worst[0];
}

static vq_status begin(const vq_tensor *t, int peer, vq_tag tag, bool is_receive,
                       vq_request *request)
{
    MPI_Request r;
    extent e;
    *request = (vq_request){.bytes = (int64_t)vq_tensor_bytes(t),
                            .peer = peer,
                            .tag = tag,
                            .is_active = true,
                            .is_receive = is_receive};
    VQ_TRY(open_extent(request->bytes, tag_names[tag], &e));
    VQ_TRY(check(is_receive ? MPI_Irecv(t->data, e.n, e.type, peer, (int)tag, MPI_COMM_WORLD, &r)
                            : MPI_Isend(t->data, e.n, e.type, peer, (int)tag, MPI_COMM_WORLD, &r),
                 tag_names[tag]));
    memcpy(request->handle, &r, sizeof r);
    return close_extent(&e, tag_names[tag]);
}

static vq_status mpi_send(void *ctx, const vq_tensor *t, int to, vq_tag tag, vq_request *request)
{
    (void)ctx;
    return begin(t, to, tag, false, request);
}

static vq_status mpi_receive(void *ctx, vq_tensor *t, int from, vq_tag tag, vq_request *request)
{
    (void)ctx;
    return begin(t, from, tag, true, request);
}

static vq_status mpi_wait(void *ctx, vq_request *request)
{
    const vq_comm *comm = ctx;
    MPI_Request r;
    MPI_Status result;
    char what[96];
    MPI_Count n = 0;
    memcpy(&r, request->handle, sizeof r);
    snprintf(what, sizeof what, "%lld bytes of %s %s rank %d", (long long)request->bytes,
             tag_names[request->tag], request->is_receive ? "from" : "to", request->peer);
    VQ_TRY(poll(comm, &r, &result, what));
    request->is_active = false;
    if (!request->is_receive) return VQ_OK;
    VQ_TRY(check(MPI_Get_elements_x(&result, MPI_BYTE, &n), what));
    VQ_CHECK(n == request->bytes, VQ_EPEER,
             "rank %d sent %lld bytes of %s, expected %lld. Start every rank with the same program "
             "and the same command",
             request->peer, (long long)n, tag_names[request->tag], (long long)request->bytes);
    return VQ_OK;
}

static void mpi_close(void *ctx)
{
    (void)ctx;
    vq_progress_watch(NULL, NULL);
    mpi_heard(NULL); /* what nobody took */
    MPI_Finalize();
}

static const vq_comm_ops mpi_ops = {.sum = mpi_sum,
                                    .broadcast = mpi_broadcast,
                                    .agree = mpi_agree,
                                    .send = mpi_send,
                                    .receive = mpi_receive,
                                    .wait = mpi_wait,
                                    .heard = mpi_heard,
                                    .die = mpi_die,
                                    .close = mpi_close};

vq_status vq_comm_mpi(vq_comm *comm)
{
    int granted;
    /* While this thread waits in NCCL, another may end the job (comm_nccl.c). */
    VQ_CHECK(MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &granted) == MPI_SUCCESS &&
                 granted >= MPI_THREAD_FUNNELED,
             VQ_EPEER,
             "MPI did not start: expected a world with MPI_THREAD_FUNNELED. Under Slurm use "
             "srun --mpi=pmix");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &comm->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &comm->size);
    comm->ops = &mpi_ops;
    comm->ctx = comm;
    vq_comm_at(comm, "start");
    vq_progress_watch(say_alive, comm);
    return VQ_OK;
}
