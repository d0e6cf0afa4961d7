/* fixture.h - what golden tests share: memory, a backend, a model and all its layers as one stage.
 *
 * The backend is the CPU's, or with VQ_TEST_DEVICE a GPU's with f32 activations (device.h). Tensors
 * lie at its place: fixture_put and fixture_get are the way there and back. */
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "cpu_backend.h"
#include "expect.h"
#include "place.h"
#include "safetensors.h"
#include "stage.h"

#ifdef VQ_TEST_DEVICE
#include "device.h"
#endif

typedef struct fixture {
#ifdef VQ_TEST_DEVICE
    device device;
#endif
    vq_arena arena, scratch;
    vq_backend be;
    vq_model model;
    vq_stage stage;
} fixture;

static inline void fixture_open(fixture *f, const char *model_dir, int64_t T)
{
    *f = (fixture){0};
    EXPECT_OK(vq_arena_init(&f->arena, "test", (size_t)4 << 30));
    EXPECT_OK(vq_arena_init(&f->scratch, "test scratch", (size_t)4 << 30));
#ifdef VQ_TEST_DEVICE
    device_open(&f->device, VQ_F32);
    f->be = f->device.be;
    f->arena.twin = &f->device.twin;
    f->scratch.twin = &f->device.scratch_twin;
#else
    EXPECT_OK(vq_cpu_open(&f->be, 2));
#endif
    EXPECT_OK(vq_model_open(&f->arena, model_dir, &f->model));
    EXPECT_OK(vq_stage_init(&f->arena, &f->be, &f->model, 0, f->model.config.N, T, &f->scratch,
                            &f->stage));
}

static inline void fixture_close(fixture *f)
{
    vq_model_close(&f->model);
#ifdef VQ_TEST_DEVICE
    device_close(&f->device);
#else
    vq_cpu_close(&f->be);
#endif
    vq_arena_close(&f->scratch);
    vq_arena_close(&f->arena);
}

/* The elements of t, which are on the host, to where the backend has t. */
static inline void fixture_put(const fixture *f, vq_tensor *t, const void *elements)
{
    EXPECT_OK(vq_upload(&f->be, t, elements));
}

/* The elements of t on the host. */
static inline const void *fixture_get(fixture *f, const vq_tensor *t)
{
    vq_tensor host;
    EXPECT_OK(vq_place_host(&f->be, &f->arena, t, &host));
    return host.data;
}

/* The end of main(). Skipped, and said so, where the tests need a GPU and none is there. */
#ifdef VQ_TEST_DEVICE
#define RUN_TESTS(tests) (device_require(), cmocka_run_group_tests(tests, NULL, NULL))
#else
#define RUN_TESTS(tests) cmocka_run_group_tests(tests, NULL, NULL)
#endif

static inline vq_tensor golden(const vq_safetensors *file, const char *name)
{
    const vq_tensor *t = vq_safetensors_find(file, name);
    if (!t) fail_msg("golden file has no tensor %s", name);
    return *t;
}

/* |a - b| / |b|, over n numbers. */
static inline double relative_error(const float *a, const float *b, int64_t n)
{
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return sqrt(difference / (size > 0 ? size : 1));
}
