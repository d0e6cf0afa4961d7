/* bench_comm - a step's two collectives among ranks, the sum of the gradient and the broadcast of
 * the codes, beside MPI's own blocking calls on the same bytes:
 *   mpiexec -n 4 bench_comm [MEGABYTES (37: the codes of a 13B model)] [REPEATS (10)]
 * For each the median, least and longest time of the slowest rank, and bytes / time. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "comm.h"
#include "error.h"
#include "log.h"

static vq_comm comm;

typedef struct row {
    const char *name;
    vq_status (*run)(vq_tensor *t);
} row;

static vq_status our_sum(vq_tensor *t)
{
    return vq_comm_sum(&comm, t);
}

static vq_status our_broadcast(vq_tensor *t)
{
    return vq_comm_broadcast(&comm, t, 0);
}

static vq_status mpi_allreduce(vq_tensor *t)
{
    const int n = (int)vq_tensor_count(t);
    MPI_Allreduce(MPI_IN_PLACE, t->data, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    return VQ_OK;
}

static vq_status mpi_bcast(vq_tensor *t)
{
    MPI_Bcast(t->data, (int)vq_tensor_count(t), MPI_FLOAT, 0, MPI_COMM_WORLD);
    return VQ_OK;
}

/* One row of the table; the first run is not counted. */
static vq_status measure(const row *r, vq_tensor *t, double *seconds, int repeats)
{
    for (int i = -1; i < repeats; i++) {
        memset(t->data, 0, vq_tensor_bytes(t));
        MPI_Barrier(MPI_COMM_WORLD);
        double s = vq_seconds();
        VQ_TRY(r->run(t));
        s = vq_seconds() - s;
        MPI_Allreduce(MPI_IN_PLACE, &s, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
        if (i >= 0) seconds[i] = s;
    }
    qsort(seconds, (size_t)repeats, sizeof *seconds, by_value);
    const double median = seconds[repeats / 2];
    if (comm.rank == 0)
        printf("%-14s %8.1f %8.1f %8.1f %8.2f\n", r->name, 1e3 * median, 1e3 * seconds[0],
               1e3 * seconds[repeats - 1], (double)vq_tensor_bytes(t) / median / 1e9);
    return VQ_OK;
}

static vq_status run(int64_t megabytes, int repeats)
{
    static const row rows[] = {{"vq_comm_sum", our_sum},
                               {"MPI_Allreduce", mpi_allreduce},
                               {"vq_broadcast", our_broadcast},
                               {"MPI_Bcast", mpi_bcast}};
    vq_arena arena;
    vq_tensor t;
    double *seconds;
    VQ_TRY(vq_arena_init(&arena, "bench", (size_t)megabytes * 1000000 + ((size_t)1 << 20)));
    VQ_TRY(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(megabytes * 250000), &t));
    VQ_TRY(VQ_NEW(&arena, repeats, &seconds));
    if (comm.rank == 0)
        printf("%lld MB, %d ranks\n%-14s %8s %8s %8s %8s\n", (long long)megabytes, comm.size,
               "operation", "ms", "least", "most", "GB/s");
    for (int i = 0; i < VQ_COUNT(rows); i++) VQ_TRY(measure(&rows[i], &t, seconds, repeats));
    vq_arena_close(&arena);
    return VQ_OK;
}

int main(int argc, char **argv)
{
    const int64_t megabytes = argc > 1 ? atoll(argv[1]) : 37;
    const int repeats = argc > 2 ? atoi(argv[2]) : 10;
    if (argc > 3 || megabytes < 1 || repeats < 1) {
        fprintf(stderr, "usage: mpiexec -n RANKS bench_comm [MEGABYTES [REPEATS]]\n");
        return VQ_EUSAGE;
    }
    vq_status status = vq_comm_open(&comm);
    if (!status && comm.size == 1) {
        fprintf(stderr, "bench_comm: one rank has nobody to talk to. Start it with mpiexec -n 4\n");
        vq_comm_close(&comm);
        return VQ_EUSAGE;
    }
    if (!status) status = run(megabytes, repeats);
    if (status) vq_comm_report(&comm, status);
    vq_comm_close(&comm);
    return status;
}
