/* comm - choosing the transport, and what all transports share. */
#include "comm.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "fileio.h"
#include "log.h"

#define LIMIT_S 1800.0 /* a stage of a large model on a CPU may compute for minutes */

/* Whether a launcher started this process as one of several. */
static bool has_launcher(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"};
    for (int i = 0; i < VQ_COUNT(names); i++)
        if (getenv(names[i])) return true;
    return false;
}

vq_status vq_comm_open(vq_comm *comm)
{
    *comm = (vq_comm){.limit_s = LIMIT_S};
    gethostname(comm->host, sizeof comm->host - 1);
    if (!has_launcher()) {
        vq_comm_self(comm);
        return VQ_OK;
    }
#ifdef VQ_MPI
    return vq_comm_mpi(comm);
#else
    VQ_FAIL(VQ_EUNSUPPORTED,
            "mpirun or srun: this program was built without MPI: expected to be started alone. "
            "Install Open MPI and build again, or start it without the launcher");
#endif
}

void vq_comm_close(vq_comm *comm)
{
    if (comm->ops) comm->ops->close(comm->ctx);
    comm->ops = NULL;
}

void vq_comm_over(vq_comm *comm, vq_comm *base)
{
    *comm = *base;
    comm->base = base;
}

/* The world that takes what lies at this place. */
static vq_comm *world_of(vq_comm *comm, vq_place place)
{
    return comm->base && place == VQ_HOST ? comm->base : comm;
}

/* Both worlds know: either may have to say it. */
void vq_comm_at(vq_comm *comm, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(comm->where, sizeof comm->where, fmt, args);
    va_end(args);
    if (comm->base) memcpy(comm->base->where, comm->where, sizeof comm->where);
}

static void add_collective(vq_comm *comm, double start_s)
{
    const double seconds = vq_seconds() - start_s;
    comm->waited_s += seconds;
    comm->summed_s += seconds;
}

typedef vq_status (*sum_fn)(void *ctx, vq_tensor *t);

static vq_status sum_by(vq_comm *comm, const vq_comm *world, sum_fn sum, vq_tensor *t)
{
    VQ_ASSERT((t->dtype == VQ_F32 || t->dtype == VQ_F64) && vq_tensor_contiguous(t));
    const double start_s = vq_seconds();
    vq_status status = sum(world->ctx, t);
    add_collective(comm, start_s);
    return status;
}

vq_status vq_comm_sum(vq_comm *comm, vq_tensor *t)
{
    const vq_comm *world = world_of(comm, t->place);
    return sum_by(comm, world, world->ops->sum, t);
}

vq_status vq_comm_gather(vq_comm *comm, double mine, double *all)
{
    for (int i = 0; i < comm->size; i++) all[i] = i == comm->rank ? mine : 0;
    vq_tensor sum = vq_tensor_1d(all, VQ_F64, comm->size);
    return vq_comm_sum(comm, &sum);
}

bool vq_comm_knows_replicas(vq_comm *comm, const vq_tensor *t)
{
    return world_of(comm, t->place)->ops->sum_replicas != NULL;
}

vq_status vq_comm_sum_replicas(vq_comm *comm, vq_tensor *t)
{
    const vq_comm *world = world_of(comm, t->place);
    return sum_by(comm, world, world->ops->sum_replicas, t);
}

vq_status vq_comm_broadcast(vq_comm *comm, vq_tensor *t, int root)
{
    VQ_ASSERT(vq_tensor_contiguous(t) && root >= 0 && root < comm->size);
    const double start_s = vq_seconds();
    const vq_comm *world = world_of(comm, t->place);
    vq_status status = world->ops->broadcast(world->ctx, t, root);
    add_collective(comm, start_s);
    return status;
}

vq_status vq_comm_send(vq_comm *comm, const vq_tensor *t, int to, vq_tag tag, vq_request *request)
{
    VQ_ASSERT(vq_tensor_contiguous(t) && to >= 0 && to < comm->size && to != comm->rank &&
              !request->is_active);
    const vq_comm *world = world_of(comm, t->place);
    VQ_TRY(world->ops->send(world->ctx, t, to, tag, request));
    request->by_base = world != comm;
    return VQ_OK;
}

vq_status vq_comm_receive(vq_comm *comm, vq_tensor *t, int from, vq_tag tag, vq_request *request)
{
    VQ_ASSERT(vq_tensor_contiguous(t) && from >= 0 && from < comm->size && from != comm->rank &&
              !request->is_active);
    const vq_comm *world = world_of(comm, t->place);
    VQ_TRY(world->ops->receive(world->ctx, t, from, tag, request));
    request->by_base = world != comm;
    return VQ_OK;
}

vq_status vq_comm_wait(vq_comm *comm, vq_request *request)
{
    if (!request->is_active) return VQ_OK;
    const double start_s = vq_seconds();
    const vq_comm *world = request->by_base ? comm->base : comm;
    vq_status status = world->ops->wait(world->ctx, request);
    comm->waited_s += vq_seconds() - start_s;
    return status;
}

vq_status vq_comm_agree(vq_comm *comm, vq_status status)
{
    const vq_comm *world = world_of(comm, VQ_HOST);
    return world->ops->agree(world->ctx, status);
}

vq_status vq_comm_end(vq_comm *comm, vq_status status)
{
    if (status != VQ_OK && status != VQ_ESTOPPED && status != VQ_ENOTFINITE)
        vq_comm_die(comm, status);
    if (status != VQ_OK && comm->rank != 0) vq_error_clear();
    return status;
}

void vq_comm_die(vq_comm *comm, vq_status status)
{
    const vq_comm *world = world_of(comm, VQ_HOST);
    world->ops->die(world->ctx, status);
}

bool vq_comm_heard(vq_comm *comm)
{
    const vq_comm *world = world_of(comm, VQ_HOST);
    return world->ops->heard && world->ops->heard(world->ctx);
}

/* A failure that cannot be written down either has been printed. */
static void write_error(const char *run, vq_status status, const char *message)
{
    char path[PATH_MAX], *text = NULL;
    size_t n = 0;
    FILE *file = open_memstream(&text, &n);
    if (file) fprintf(file, "%d\n%s\n", (int)status, message);
    if (file && fclose(file) == 0 && snprintf(path, sizeof path, "%s/error.txt", run) < PATH_MAX)
        vq_file_write(path, text, n);
    free(text);
}

void vq_comm_report(const vq_comm *comm, vq_status status)
{
    char message[2560] = "";
    if (status == VQ_OK || !vq_error_message()[0]) return;
    if (status != VQ_ESTOPPED && comm->size > 1)
        snprintf(message, sizeof message, "rank %d of %d on %s, %s: ", comm->rank, comm->size,
                 comm->host, comm->where);
    const size_t n = strlen(message);
    snprintf(message + n, sizeof message - n, "%s", vq_error_message());
    vq_log(status == VQ_ESTOPPED ? VQ_LOG_WARN : VQ_LOG_ERROR, "%s", message);
    vq_log(VQ_LOG_DEBUG, "(%s, from %s)", vq_status_name(status), vq_error_origin());
    if (comm->run) write_error(comm->run, status, message);
}
