/* base.h - the types and constants that every file uses.
 *
 * Status codes are exit codes: a function that fails returns one, and main() returns the same
 * number to the shell. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VQ_VERSION "0.1.0"

typedef enum vq_status {
    VQ_OK = 0,
    VQ_EUSAGE = 2,       /* command line or configuration */
    VQ_EFILE = 3,        /* an input file: missing, truncated, wrong contents */
    VQ_EMEM = 4,         /* memory or disk space */
    VQ_EINTERNAL = 5,    /* our bug */
    VQ_EPEER = 6,        /* another rank or the network */
    VQ_ENOTFINITE = 7,   /* a loss, gradient or weight is NaN or infinite */
    VQ_EUNSUPPORTED = 8, /* understood, and not supported */
    VQ_ESTOPPED = 75     /* stopped by a signal or a time limit after a checkpoint: run again */
} vq_status;

#define VQ_MIN(a, b) ((a) < (b) ? (a) : (b))
#define VQ_MAX(a, b) ((a) > (b) ? (a) : (b))
#define VQ_CEIL_DIV(a, b) (((a) + (b)-1) / (b))
#define VQ_COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

/* printf-style argument checking. */
#define VQ_PRINTF(fmt, first) __attribute__((format(printf, fmt, first)))
