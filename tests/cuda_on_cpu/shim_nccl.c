/* shim_nccl - NCCL between processes of one machine: a message is a file in memory, which its
 * receiver takes away.
 *
 * Sums are taken in the order of the ranks. Sends and collectives are done at once; a receive when
 * somebody waits for it, so that who reads before finds other numbers. */
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

#define LIMIT_S 120

struct shim_comm {
    uint64_t id;
    int rank, size, splits;
    long *sent, *taken; /* [size]: messages to and from each rank */
};

typedef struct receive {
    ncclComm_t comm;
    void *to;
    size_t bytes;
    int from;
} receive;

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

static void get(struct shim_comm *c, int from, void *data, size_t bytes)
{
    const struct timespec pause = {0, 100000};
    char path[128];
    FILE *file;
    path_of(c, from, c->rank, c->taken[from]++, path);
    for (long polls = 0; !(file = fopen(path, "rb")); polls++) {
        if (polls > LIMIT_S * 10000L) give_up("did not come", path);
        nanosleep(&pause, NULL);
    }
    shim_enter_device();
    const bool is_read = fread(data, 1, bytes, file) == bytes;
    shim_leave_device();
    if (!is_read || fgetc(file) != EOF) give_up("has another size than expected", path);
    fclose(file);
    unlink(path);
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

/* Everybody's wish to everybody; then each knows who shares its color, in the order of the keys. */
ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *out,
                           ncclConfig_t *config)
{
    const int own[2] = {color, key};
    int size = 0, rank = 0;
    *out = NULL;
    if (!is_config(config)) return ncclInvalidArgument;
    for (int r = 0; r < comm->size; r++) put(comm, r, own, sizeof own);
    for (int r = 0; r < comm->size; r++) {
        int other[2];
        get(comm, r, other, sizeof other);
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

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    const size_t bytes = count * bytes_of(type);
    (void)stream;
    if (op != ncclSum || type == ncclInt8) return ncclInvalidArgument;
    void *sum = calloc(2, bytes + 1), *x = (char *)sum + bytes;
    if (!sum) return ncclSystemError;
    for (int r = 0; r < comm->size; r++) put(comm, r, from, bytes);
    for (int r = 0; r < comm->size; r++) {
        get(comm, r, r == 0 ? sum : x, bytes);
        if (r > 0) add(sum, x, count, type);
    }
    shim_enter_device();
    memcpy(to, sum, bytes);
    shim_leave_device();
    free(sum);
    return ncclSuccess;
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream)
{
    const size_t bytes = count * bytes_of(type);
    (void)stream;
    for (int r = 0; r < comm->size && comm->rank == root; r++) put(comm, r, from, bytes);
    get(comm, root, to, bytes);
    return ncclSuccess;
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    (void)stream;
    if (peer < 0 || peer >= comm->size) return ncclInvalidArgument;
    put(comm, peer, from, count * bytes_of(type));
    return ncclSuccess;
}

static void run_receive(void *argument)
{
    receive *r = argument;
    get(r->comm, r->from, r->to, r->bytes);
    free(r);
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    if (peer < 0 || peer >= comm->size) return ncclInvalidArgument;
    receive *r = malloc(sizeof *r);
    if (!r) return ncclSystemError;
    *r = (receive){.comm = comm, .to = to, .bytes = count * bytes_of(type), .from = peer};
    shim_queue(stream, run_receive, r);
    return ncclSuccess;
}
