/* world.h - tests that run in every rank of a world, whose main is
 *   world_open(20);
 *   return world_close(cmocka_run_group_tests(tests, NULL, NULL)); */
#pragma once
#include <stdio.h>
#include <stdlib.h>

#include "comm.h"
#include "error.h"

static vq_comm comm;

/* The world that the launcher made, whose waits take limit_s seconds at most. */
static void world_open(double limit_s)
{
    if (vq_comm_open(&comm) != VQ_OK) {
        fprintf(stderr, "%s\n", vq_error_message());
        exit(1);
    }
    comm.limit_s = limit_s;
}

/* main's exit code. A rank that failed ends the world: the others may be waiting for it. */
static int world_close(int failed)
{
    if (failed)
        vq_comm_die(&comm, vq_error_set(VQ_EINTERNAL, __FILE__, __LINE__,
                                        "%d tests failed on this rank, see above", failed));
    vq_comm_close(&comm);
    return failed;
}
