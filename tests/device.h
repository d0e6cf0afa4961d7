/* device.h - the GPU that a test runs on: the kernels on the CPU (VQ_ON_SHIM), or a real one
 * through the module. Included after cmocka.h. */
#pragma once
#include <stdio.h>
#include <stdlib.h>

#include "cuda_module.h"
#include "expect.h"

#ifdef VQ_ON_SHIM
#include "cuda_backend.h"
#include "shim.h"
#endif

#define NO_GPU 77 /* exit code: ctest's "skipped" */

typedef struct device {
    vq_cuda_module module;
    vq_backend be;
    vq_arena arena, scratch, twin, scratch_twin;
} device;

static inline vq_status device_module(vq_cuda_module *m)
{
#ifdef VQ_ON_SHIM
    *m = (vq_cuda_module){.device_count = vq_cuda_device_count,
                          .open = vq_cuda_open,
                          .close = vq_cuda_close,
                          .arena = vq_cuda_arena};
#else
    const vq_cuda_module *found;
    VQ_TRY(vq_cuda_module_open(&found));
    *m = *found;
#endif
    return VQ_OK;
}

/* Runs whose results must have equal bits: on the CPU the threads of a block run in another order
 * in each, on a GPU in whatever order they do. */
#define DEVICE_RUNS 3

static inline void device_run(int run)
{
#ifdef VQ_ON_SHIM
    shim_set_order((shim_order)(SHIM_UP + run));
#else
    (void)run;
#endif
}

/* Whether host code that touches the device's memory is caught. */
static inline void device_lock(bool lock)
{
#ifdef VQ_ON_SHIM
    shim_lock_device(lock);
#else
    (void)lock;
#endif
}

/* Ends the test, skipped and not silent, where there is no GPU. */
static inline void device_require(void)
{
    vq_cuda_module m;
    const vq_status status = device_module(&m);
    if (status == VQ_OK && m.device_count() > 0) return;
    fprintf(stderr,
            "SKIPPED, NOT TESTED: no GPU here%s%s. The kernels ran on the CPU alone "
            "(tests/cuda_on_cpu); run this on a machine with a GPU\n",
            status ? ": " : "", status ? vq_error_message() : "");
    exit(NO_GPU);
}

/* The backend with activations of this type, and two arenas with twins. */
static inline void device_open(device *d, vq_dtype act)
{
    *d = (device){0};
    EXPECT_OK(device_module(&d->module));
    EXPECT_OK(d->module.open(&d->be, 0, act));
    EXPECT_OK(vq_arena_init(&d->arena, "test", (size_t)4 << 30));
    EXPECT_OK(vq_arena_init(&d->scratch, "test scratch", (size_t)4 << 30));
    EXPECT_OK(d->module.arena(&d->be, "test on the device", &d->twin));
    EXPECT_OK(d->module.arena(&d->be, "test scratch on the device", &d->scratch_twin));
    d->arena.twin = &d->twin;
    d->scratch.twin = &d->scratch_twin;
}

static inline void device_close(device *d)
{
    vq_arena_close(&d->scratch_twin);
    vq_arena_close(&d->twin);
    vq_arena_close(&d->scratch);
    vq_arena_close(&d->arena);
    d->module.close(&d->be);
}
