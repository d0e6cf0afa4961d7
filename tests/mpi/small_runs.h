/* small_runs.h - runs of a few steps that keep every checkpoint. Included after cmocka.h. */
#pragma once
#include "mpi/ranks.h"

/* What all runs here have in common; checkpoints of every step stay. */
#define COMMON(model)                                                                              \
    LIST("quantize", "--model", model, "--text", CALIB, "--eval-text", HELD_OUT, "--bits", "2",    \
         "--K", "32", "--D", "8", "--kmeans.iters", "10", "--nsamples", "5", "--seqlen", "24",     \
         "--eval-max-windows", "3", "--lr", "0.05", "--checkpoint-every", "1",                     \
         "--checkpoint.keep", "100", "--quiet")

/* Runs until max_hours, which has passed after a layer or a step. */
#define ONE_UNIT(n, model, ...)                                                                    \
    do {                                                                                           \
        finish(start_ranks(n, VQROUND, COMMON(model), LIST("--max-hours", "1e-9", __VA_ARGS__)));  \
        expect_code(75);                                                                           \
        expect_words("stopped by max_hours", "Run the same command again", NULL);                  \
    } while (0)

/* The same, again and again until it was a step. */
#define ONE_STEP(n, model, ...)                                                                    \
    do {                                                                                           \
        ONE_UNIT(n, model, __VA_ARGS__);                                                           \
    } while (!strstr(last.err, "after step"))
