/* shim_nccl - NCCL between processes of one machine: a message is a file in memory, which its
 * receiver takes away.
 *
 * Sums are taken in the order of the ranks. A stream tries to receive and goes on with other things
 * while nothing has come, as a GPU does (shim_runtime.c). */
#include <fcntl.h>
#include <nccl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

#define POLL_NS 100000
#define LIMIT_POLLS (120 * 10000L) /* two minutes */

struct shim_comm {
    uint64_t id;
    int rank, size, splits;
    long *sent, *taken; /* [size]: messages to and from each rank */
};

/* One rank's part of a message or a collective, on a stream. */
typedef struct transfer {
    ncclComm_t comm;
    const void *from;
    void *to, *sum; /* sum: of the ranks before `next`; NULL: nothing is sent yet */
    size_t count;
    ncclDataType_t type;
    int peer, next;
} transfer;

static void path_of(const struct shim_comm *c, int from, int to, long number, char path[128])
{
    snprintf(path, 128, "/dev/shm/vq-nccl-%016llx-%d-%d-%ld", (unsigned long long)c->id, from, to,
             number);
}

static void give_up(const char *what, const char *path)
{
    fprintf(stderr, "the stand-in of NCCL: %s: %s\n", path, what);
    abort();
}

static void put(struct shim_comm *c, int to, const void *data, size_t bytes)
{
    char path[128], part[136];
    path_of(c, c->rank, to, c->sent[to]++, path);
    snprintf(part, sizeof part, "%s.part", path);
    FILE *file = fopen(part, "wb");
    shim_enter_device();
    const bool is_written = file && fwrite(data, 1, bytes, file) == bytes;
    shim_leave_device();
    if (!is_written || fclose(file) != 0 || rename(part, path) != 0)
        give_up("could not be written", path);
}

/* False: it has not come yet. */
static bool get(struct shim_comm *c, int from, void *data, size_t bytes)
{
    char path[128];
    path_of(c, from, c->rank, c->taken[from], path);
    FILE *file = fopen(path, "rb");
    if (!file) return false;
    c->taken[from]++;
    shim_enter_device();
    const bool is_read = fread(data, 1, bytes, file) == bytes;
    shim_leave_device();
    if (!is_read || fgetc(file) != EOF) give_up("has another size than expected", path);
    fclose(file);
    unlink(path);
    return true;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclSuccess ? "no error" : "an error of the stand-in";
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    const uint64_t number =
        ((uint64_t)getpid() << 40) ^ ((uint64_t)now.tv_sec << 30) ^ (uint64_t)now.tv_nsec;
    memset(id, 0, sizeof *id);
    memcpy(id->internal, &number, sizeof number);
    return ncclSuccess;
}

static ncclResult_t make(ncclComm_t *out, uint64_t id, int size, int rank)
{
    struct shim_comm *c = calloc(1, sizeof *c);
    if (!c) return ncclSystemError;
    *c = (struct shim_comm){.id = id, .rank = rank, .size = size};
    c->sent = calloc((size_t)size, sizeof *c->sent);
    c->taken = calloc((size_t)size, sizeof *c->taken);
    *out = c;
    return c->sent && c->taken ? ncclSuccess : ncclSystemError;
}

static bool is_config(const ncclConfig_t *config)
{
    return !config || (config->maxCTAs >= 1 && config->maxCTAs <= 32);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    uint64_t number;
    memcpy(&number, id.internal, sizeof number);
    while (rank > 0 && getenv("SHIM_NCCL_STUCK")) pause();
    if (getenv("NCCL_COMM_BLOCKING")) return ncclInProgress; /* 0, that is */
    return rank >= 0 && rank < size && is_config(config) ? make(comm, number, size, rank)
                                                         : ncclInvalidArgument;
}

/* Everybody's wish to everybody; then each knows who shares its color, in the order of the keys.
 * The host waits. */
ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *out,
                           ncclConfig_t *config)
{
    const int own[2] = {color, key};
    int size = 0, rank = 0;
    *out = NULL;
    if (!is_config(config)) return ncclInvalidArgument;
    for (int r = 0; r < comm->size; r++) put(comm, r, own, sizeof own);
    for (int r = 0; r < comm->size; r++) {
        const struct timespec pause = {0, POLL_NS};
        int other[2];
        for (long polls = 0; !get(comm, r, other, sizeof other); polls++) {
            if (polls > LIMIT_POLLS) give_up("not every rank splits", "ncclCommSplit");
            nanosleep(&pause, NULL);
        }
        if (other[0] != color) continue;
        size++;
        rank += other[1] < key || (other[1] == key && r < comm->rank);
    }
    const uint64_t id = (comm->id ^ (uint64_t)++comm->splits) * 0x9e3779b97f4a7c15u;
    return color == NCCL_SPLIT_NOCOLOR ? ncclSuccess
                                       : make(out, (id ^ (id >> 29)) + (uint64_t)color, size, rank);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    free(comm->sent);
    free(comm->taken);
    free(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    (void)comm;
    *error = ncclSuccess;
    return ncclSuccess;
}

static size_t bytes_of(ncclDataType_t type)
{
    return type == ncclDouble ? sizeof(double) : type == ncclFloat ? sizeof(float) : 1;
}

static void add(void *sum, const void *x, size_t count, ncclDataType_t type)
{
    for (size_t i = 0; i < count; i++)
        if (type == ncclDouble)
            ((double *)sum)[i] += ((const double *)x)[i];
        else
            ((float *)sum)[i] += ((const float *)x)[i];
}

static bool run_sum(void *argument)
{
    transfer *p = argument;
    struct shim_comm *c = p->comm;
    const size_t bytes = p->count * bytes_of(p->type);
    if (!p->sum) {
        if (!(p->sum = malloc(2 * bytes + 1))) abort();
        for (int r = 0; r < c->size; r++) put(c, r, p->from, bytes);
    }
    void *x = (char *)p->sum + bytes;
    for (; p->next < c->size; p->next++) {
        if (!get(c, p->next, p->next == 0 ? p->sum : x, bytes)) return false;
        if (p->next > 0) add(p->sum, x, p->count, p->type);
    }
    shim_enter_device();
    memcpy(p->to, p->sum, bytes);
    shim_leave_device();
    free(p->sum);
    return true;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    if (op != ncclSum || type == ncclInt8) return ncclInvalidArgument;
    const transfer p = {.comm = comm, .from = from, .to = to, .count = count, .type = type};
    shim_queue(stream, run_sum, &p, sizeof p);
    return ncclSuccess;
}

static bool run_send(void *argument)
{
    const transfer *p = argument;
    put(p->comm, p->peer, p->from, p->count * bytes_of(p->type));
    return true;
}

static bool run_receive(void *argument)
{
    const transfer *p = argument;
    return get(p->comm, p->peer, p->to, p->count * bytes_of(p->type));
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    if (peer < 0 || peer >= comm->size) return ncclInvalidArgument;
    const transfer p = {.comm = comm, .from = from, .count = count, .type = type, .peer = peer};
    shim_queue(stream, run_send, &p, sizeof p);
    return ncclSuccess;
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    if (peer < 0 || peer >= comm->size) return ncclInvalidArgument;
    const transfer p = {.comm = comm, .to = to, .count = count, .type = type, .peer = peer};
    shim_queue(stream, run_receive, &p, sizeof p);
    return ncclSuccess;
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream)
{
    ncclResult_t result = ncclSuccess;
    for (int r = 0; r < comm->size && comm->rank == root && !result; r++)
        result = ncclSend(from, count, type, r, comm, stream);
    return result ? result : ncclRecv(to, count, type, root, comm, stream);
}
