/* bench.h - what the programs of bench/ share. */
#pragma once
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "error.h"

/* The call, or the program's end with its message. */
#define RUN(call)                                                                                  \
    do {                                                                                           \
        vq_status run_status_ = (call);                                                            \
        if (run_status_ != VQ_OK) {                                                                \
            fprintf(stderr, "%s: %s\n", program_invocation_short_name, vq_error_message());        \
            exit(run_status_);                                                                     \
        }                                                                                          \
    } while (0)

static inline int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
