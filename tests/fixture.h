/* fixture.h - what golden tests share: memory, the CPU backend, a model and all its layers as one
 * stage. */
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
#include "safetensors.h"
#include "stage.h"

typedef struct fixture {
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
    EXPECT_OK(vq_cpu_open(&f->be, 2));
    EXPECT_OK(vq_model_open(&f->arena, model_dir, &f->model));
    EXPECT_OK(vq_stage_init(&f->arena, &f->be, &f->model, 0, f->model.config.N, T, &f->scratch,
                            &f->stage));
}

static inline void fixture_close(fixture *f)
{
    vq_model_close(&f->model);
    vq_cpu_close(&f->be);
    vq_arena_close(&f->scratch);
    vq_arena_close(&f->arena);
}

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
