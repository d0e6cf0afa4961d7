/* comm_mpi - the world of an MPI job.
 *
 * Everything is begun without blocking and then polled against the clock: a lost rank would leave
 * a blocking call waiting for ever. While it polls a rank gives its core away, so that ranks may
 * share cores. */
#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm.h"
#include "error.h"
#include "log.h"

#define SPIN_POLLS 2000  /* before a waiting rank sleeps between polls */
#define SLEEP_NS 50000   /* 50 us: little beside a message of a layer's activations */
#define ABORT_LIMIT_S 20 /* then the process ends without MPI */
#define DEATH_TAG 100    /* beside those of vq_tag */
#define DEATH_POLLS 20   /* 1 ms */

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

/* Polls until the request is through or the limit has passed. */
static vq_status poll(const vq_comm *comm, MPI_Request *request, MPI_Status *result,
                      const char *what)
{
    const double start_s = vq_seconds();
    const struct timespec pause = {0, SLEEP_NS};
    for (int64_t polls = 0;; polls++) {
        int done = 0;
        VQ_TRY(check(MPI_Test(request, &done, result), what));
        if (done) return VQ_OK;
        if (vq_seconds() - start_s > comm->limit_s) break;
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

/* Whether another rank has said that it is dying. */
static bool is_dying_elsewhere(void)
{
    const struct timespec pause = {0, SLEEP_NS};
    int found = 0;
    for (int i = 0; i < DEATH_POLLS && !found; i++) {
        MPI_Iprobe(MPI_ANY_SOURCE, DEATH_TAG, MPI_COMM_WORLD, &found, MPI_STATUS_IGNORE);
        nanosleep(&pause, NULL);
    }
    return found;
}

/* When one rank is lost the others run out of time together: the first tells them, speaks and ends
 * the job, which ends those that only wait here. */
static void mpi_die(void *ctx, vq_status status)
{
    const vq_comm *comm = ctx;
    alarm(ABORT_LIMIT_S);
    while (is_dying_elsewhere()) pause();
    for (int r = 0; r < comm->size; r++) {
        MPI_Request request;
        if (r != comm->rank) MPI_Isend(NULL, 0, MPI_BYTE, r, DEATH_TAG, MPI_COMM_WORLD, &request);
    }
    vq_comm_report(comm, status);
    fflush(NULL);
    MPI_Abort(MPI_COMM_WORLD, (int)status);
    _exit((int)status);
}

static MPI_Datatype type_of(const vq_tensor *t)
{
    return t->dtype == VQ_F64 ? MPI_DOUBLE : MPI_FLOAT;
}

static vq_status mpi_sum(void *ctx, vq_tensor *t)
{
    const vq_comm *comm = ctx;
    MPI_Request request;
    int n;
    VQ_TRY(vq_int(vq_tensor_count(t), "elements of a sum", &n));
    VQ_TRY(check(
        MPI_Iallreduce(MPI_IN_PLACE, t->data, n, type_of(t), MPI_SUM, MPI_COMM_WORLD, &request),
        "a sum"));
    return poll(comm, &request, MPI_STATUS_IGNORE, "a sum");
}

static vq_status mpi_broadcast(void *ctx, vq_tensor *t, int root)
{
    const vq_comm *comm = ctx;
    MPI_Request request;
    char what[64];
    int n;
    snprintf(what, sizeof what, "a broadcast from rank %d", root);
    VQ_TRY(vq_int((int64_t)vq_tensor_bytes(t), "bytes of a broadcast", &n));
    VQ_TRY(check(MPI_Ibcast(t->data, n, MPI_BYTE, root, MPI_COMM_WORLD, &request), what));
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
                       vq_request *request, int *n)
{
    *request = (vq_request){.bytes = (int64_t)vq_tensor_bytes(t),
                            .peer = peer,
                            .tag = tag,
                            .is_active = true,
                            .is_receive = is_receive};
    return vq_int(request->bytes, "bytes of a message", n);
}

static vq_status mpi_send(void *ctx, const vq_tensor *t, int to, vq_tag tag, vq_request *request)
{
    MPI_Request r;
    int n;
    (void)ctx;
    VQ_TRY(begin(t, to, tag, false, request, &n));
    VQ_TRY(
        check(MPI_Isend(t->data, n, MPI_BYTE, to, (int)tag, MPI_COMM_WORLD, &r), tag_names[tag]));
    memcpy(request->handle, &r, sizeof r);
    return VQ_OK;
}

static vq_status mpi_receive(void *ctx, vq_tensor *t, int from, vq_tag tag, vq_request *request)
{
    MPI_Request r;
    int n;
    (void)ctx;
    VQ_TRY(begin(t, from, tag, true, request, &n));
    VQ_TRY(
        check(MPI_Irecv(t->data, n, MPI_BYTE, from, (int)tag, MPI_COMM_WORLD, &r), tag_names[tag]));
    memcpy(request->handle, &r, sizeof r);
    return VQ_OK;
}

static vq_status mpi_wait(void *ctx, vq_request *request)
{
    const vq_comm *comm = ctx;
    MPI_Request r;
    MPI_Status result;
    char what[96];
    int n = 0;
    memcpy(&r, request->handle, sizeof r);
    snprintf(what, sizeof what, "%lld bytes of %s %s rank %d", (long long)request->bytes,
             tag_names[request->tag], request->is_receive ? "from" : "to", request->peer);
    VQ_TRY(poll(comm, &r, &result, what));
    request->is_active = false;
    if (!request->is_receive) return VQ_OK;
    VQ_TRY(check(MPI_Get_count(&result, MPI_BYTE, &n), what));
    VQ_CHECK(n == request->bytes, VQ_EPEER,
             "rank %d sent %d bytes of %s, expected %lld. Start every rank with the same program "
             "and the same command",
             request->peer, n, tag_names[request->tag], (long long)request->bytes);
    return VQ_OK;
}

static void mpi_close(void *ctx)
{
    (void)ctx;
    MPI_Finalize();
}

static const vq_comm_ops mpi_ops = {.sum = mpi_sum,
                                    .broadcast = mpi_broadcast,
                                    .agree = mpi_agree,
                                    .send = mpi_send,
                                    .receive = mpi_receive,
                                    .wait = mpi_wait,
                                    .die = mpi_die,
                                    .close = mpi_close};

vq_status vq_comm_mpi(vq_comm *comm)
{
    int granted;
    VQ_CHECK(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &granted) == MPI_SUCCESS &&
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
    return VQ_OK;
}
