/* test_cuda_sweep - GPTQ, and grids by the inputs, through small models on a GPU beside the CPU:
 * the same integers but for a few, and the same bits however it runs. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "codebook.h"
#include "cpu_backend.h"
#include "device.h"
#include "ints.h"
#include "place.h"
#include "rng.h"
#include "sweep.h"

enum { WINDOWS = 3, SEQLEN = 24, BITS = 3, MAX_LINEARS = 16 };

/* How a model is swept. */
typedef struct rule {
    const char *model;
    int64_t group_size;
    bool act_order, scattered, quantized, by_output; /* scattered: groups are found on the way */
} rule;

/* A linear that was rounded, on the host; ints: where GPTQ has none, base. */
typedef struct rounded {
    vq_tensor ints, scale, rest;
} rounded;

typedef struct swept {
    const vq_backend *be;
    bool by_output;
    rounded linear[MAX_LINEARS]; /* in the order that they were rounded in */
    int n;
    double error; /* of all layers */
} swept;

static device gpu;
static vq_backend cpu;
static vq_arena kept; /* what was rounded */

static int setup(void **state)
{
    (void)state;
    EXPECT_OK(vq_cpu_open(&cpu, 1));
    EXPECT_OK(vq_arena_init(&kept, "rounded", (size_t)1 << 30));
    device_open(&gpu, VQ_F32);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    device_close(&gpu);
    vq_arena_close(&kept);
    vq_cpu_close(&cpu);
    return 0;
}

static vq_status keep(const vq_backend *be, const vq_tensor *t, vq_tensor *copy)
{
    VQ_TRY(vq_tensor_new(&kept, VQ_HOST, t->dtype, t->ndim, t->dim, copy));
    return vq_download(be, copy->data, t);
}

/* Integers and residual in the order of the weight's columns. */
static vq_status put_back(const vq_backend *be, const vq_tensor *order, rounded *r)
{
    vq_tensor host, *const parts[] = {&r->ints, &r->rest};
    VQ_TRY(keep(be, order, &host));
    for (int i = 0; i < VQ_COUNT(parts); i++) {
        const vq_tensor was = *parts[i];
        VQ_TRY(vq_tensor_new(&kept, VQ_HOST, was.dtype, was.ndim, was.dim, parts[i]));
        VQ_TRY(vq_arrange(&cpu, parts[i], &was, &host, true));
    }
    return VQ_OK;
}

static vq_status take(void *ctx, vq_vqlinear *l, const vq_tensor *rest, double error)
{
    swept *s = ctx;
    (void)error;
    assert_true(s->n < MAX_LINEARS && rest->place == s->be->place);
    rounded *r = &s->linear[s->n++];
    VQ_TRY(keep(s->be, s->by_output ? &l->quant.base : &l->ints, &r->ints));
    VQ_TRY(keep(s->be, &l->quant.scale, &r->scale));
    VQ_TRY(keep(s->be, rest, &r->rest));
    if (l->order.data) VQ_TRY(put_back(s->be, &l->order, r));
    char *name;
    VQ_TRY(vq_arena_text(&kept, l->source->name, strlen(l->source->name), &name));
    r->ints.name = name;
    return VQ_OK;
}

static void mark_linears(const vq_backend *be, vq_stage *stage, const vq_grid_config *grid,
                         bool scattered)
{
    for (int64_t slot = 0; slot < stage->last * VQ_N_KINDS; slot++) {
        vq_vqlinear *l = vq_stage_linear(stage, slot / VQ_N_KINDS, slot % VQ_N_KINDS);
        if (!l) continue;
        const vq_tensor *w = &l->source->weight;
        EXPECT_OK(vq_grid_alloc(be, &l->quant, &gpu.arena, grid, w->dim[0], w->dim[1]));
        l->quantized = true;
        if (scattered)
            EXPECT_OK(vq_tensor_new(&gpu.arena, be->place, VQ_I32, VQ_DIMS(w->dim[1]), &l->order));
    }
}

/* All layers of a model; the inputs in memory, or with memory_bytes = 0 in a file. */
static swept sweep(const vq_backend *be, const rule *r, size_t memory_bytes)
{
    const size_t mark = vq_arena_mark(&gpu.arena);
    const vq_grid_config grid = {.bits = BITS,
                                 .group_size = r->group_size,
                                 .include_zero = true,
                                 .search = r->by_output,
                                 .scale_dtype = VQ_F32};
    const vq_gptq_config gptq = {.bits = BITS,
                                 .percdamp = 0.01,
                                 .act_order = r->act_order,
                                 .rule = {.block_size = 32,
                                          .static_groups = r->act_order && !r->scattered,
                                          .scale_dtype = VQ_F32}};
    swept s = {.be = be, .by_output = r->by_output};
    char path[512], inputs[32];
    int32_t ids[WINDOWS * SEQLEN];
    vq_model model;
    vq_stage stage;
    snprintf(path, sizeof path, TESTS_DIR "/models/%s", r->model);
    EXPECT_OK(vq_model_open(&gpu.arena, path, &model));
    EXPECT_OK(
        vq_stage_init(&gpu.arena, be, &model, 0, model.config.N, SEQLEN, &gpu.scratch, &stage));
    mark_linears(be, &stage, &grid, r->scattered);
    for (int i = 0; i < WINDOWS * SEQLEN; i++)
        ids[i] = (int32_t)(vq_rng_uniform(17, (uint64_t)i, 0) * (double)model.config.V);
    const vq_tensor windows = vq_tensor_2d(ids, VQ_I32, WINDOWS, SEQLEN);
    vq_sweep w = {.stage = &stage,
                  .config = &gptq,
                  .grid = r->by_output ? &grid : NULL,
                  .quantized = r->quantized,
                  .take = take,
                  .ctx = &s,
                  .arena = &gpu.arena};
    snprintf(inputs, sizeof inputs, "sweep-%d.h5", (int)getpid()); /* tests share the folder */
    EXPECT_OK(vq_sweep_open(&w, WINDOWS, WINDOWS, SEQLEN, memory_bytes, inputs));
    assert_int_equal(w.inputs.data != NULL, memory_bytes > 0);
    EXPECT_OK(vq_sweep_embed(&w, &windows));
    for (int64_t layer = 0; layer < model.config.N; layer++) {
        double error;
        EXPECT_OK(vq_sweep_layer(&w, layer, &error));
        s.error += error;
    }
    vq_sweep_close(&w);
    vq_model_close(&model);
    vq_arena_reset(&gpu.arena, mark);
    assert_true(s.n >= 6 * model.config.N);
    return s;
}

static void expect_same(const swept *a, const swept *b)
{
    assert_int_equal(a->n, b->n);
    for (int i = 0; i < a->n; i++) {
        const rounded *x = &a->linear[i], *y = &b->linear[i];
        assert_memory_equal(x->ints.data, y->ints.data, vq_tensor_bytes(&x->ints));
        assert_memory_equal(x->scale.data, y->scale.data, vq_tensor_bytes(&x->scale));
        assert_memory_equal(x->rest.data, y->rest.data, vq_tensor_bytes(&x->rest));
    }
}

/* A sum in another order may move a weight over a border, and then its row goes on differently: at
 * most 2 of 1,000 integers. */
static void expect_near(const rule *r, const swept *a, const swept *b)
{
    int64_t n = 0, n_different = 0;
    assert_int_equal(a->n, b->n);
    for (int i = 0; i < a->n; i++) {
        const rounded *x = &a->linear[i], *y = &b->linear[i];
        assert_string_equal(x->ints.name, y->ints.name);
        const int64_t in = x->rest.dim[1];
        for (int64_t j = 0; j < vq_tensor_count(&x->rest); j++, n++)
            n_different += int_at(&x->ints, in, j) != int_at(&y->ints, in, j);
    }
    if (n_different * 500 > n || !(fabs(a->error - b->error) <= 1e-3 * a->error))
        fail_msg("%s: %lld of %lld integers differ from the CPU's, the error is %.9g and %.9g",
                 r->model, (long long)n_different, (long long)n, b->error, a->error);
}

/* Both ways to keep the inputs, threads in another order: the same bits. */
static void test_like_the_cpu(void **state)
{
    (void)state;
    const rule rules[] = {{.model = "rand-llama-gqa-tied", .group_size = -1, .quantized = true},
                          {.model = "rand-qwen3-headdim", .group_size = 16, .act_order = true},
                          {.model = "rand-opt350", .group_size = 20, .quantized = true},
                          {.model = "rand-llama-gqa-tied",
                           .group_size = 16,
                           .act_order = true,
                           .scattered = true,
                           .quantized = true},
                          {.model = "rand-llama-gqa-tied", .group_size = 20, .by_output = true}};
    for (int i = 0; i < VQ_COUNT(rules); i++) {
        const size_t mark = vq_arena_mark(&kept);
        const swept expected = sweep(&cpu, &rules[i], SIZE_MAX);
        device_run(0);
        device_lock(i % 2 == 1);
        const swept memory = sweep(&gpu.be, &rules[i], SIZE_MAX);
        device_lock(false);
        device_run(1 + i % 2);
        const swept file = sweep(&gpu.be, &rules[i], 0);
        expect_near(&rules[i], &expected, &memory);
        expect_same(&memory, &file);
        vq_arena_reset(&kept, mark);
    }
}

/* A codebook of a residual on the GPU, and all that it is made of there: where the CPU's products
 * are fused too, with its bits. */
static void check_codebook(int64_t K, int iters, bool by_sign)
{
    const vq_codebook_config c = {.K = K,
                                  .D = 4,
                                  .sharpen = 0.1,
                                  .kmeans = {.min_gain = VQ_KMEANS_MIN_GAIN,
                                             .iters = iters,
                                             .seed = 3,
                                             .max_points_per_centroid = 10,
                                             .by_sign = by_sign}};
    const size_t mark = vq_arena_mark(&gpu.arena);
    const int64_t n = 30 * 37, n_vec = vq_codebook_vectors(&c, n);
    vq_codebook host, there = {0};
    vq_tensor rest, rest_there;
    EXPECT_OK(vq_tensor_new(&gpu.arena, VQ_HOST, VQ_F32, VQ_DIMS(30, 37), &rest));
    for (int64_t i = 0; i < n; i++)
        ((float *)rest.data)[i] = (float)vq_rng_uniform(4, (uint64_t)i, 0);
    EXPECT_OK(vq_codebook_alloc(&host, &gpu.arena, &c, n));
    EXPECT_OK(vq_place_there(&gpu.be, &gpu.arena, &rest, &rest_there));
    const vq_place place = gpu.be.place;
    EXPECT_OK(vq_tensor_new(&gpu.arena, place, VQ_F32, VQ_DIMS(c.K, c.D), &there.codes));
    EXPECT_OK(vq_tensor_new(&gpu.arena, place, VQ_U32, VQ_DIMS(c.K, c.D), &there.counts));
    EXPECT_OK(vq_tensor_new(&gpu.arena, place, VQ_U16, VQ_DIMS(n_vec), &there.idx));
    EXPECT_OK(vq_codebook_build(&cpu, &gpu.scratch, &host, &rest, NULL, &c));
    device_lock(true);
    EXPECT_OK(vq_codebook_build(&gpu.be, &gpu.scratch, &there, &rest_there, NULL, &c));
    EXPECT_OK(vq_place_host(&gpu.be, &gpu.arena, &there.codes, &there.codes));
    EXPECT_OK(vq_place_host(&gpu.be, &gpu.arena, &there.counts, &there.counts));
    EXPECT_OK(vq_place_host(&gpu.be, &gpu.arena, &there.idx, &there.idx));
    device_lock(false);
    if (!(fabs(there.fit.objective - host.fit.objective) <= 0.02 * host.fit.objective))
        fail_msg("the objective is %.9g, the CPU's %.9g", there.fit.objective, host.fit.objective);
    int64_t counted = 0;
    for (int64_t i = 0; i < c.K * c.D; i++) counted += ((uint32_t *)there.counts.data)[i];
    assert_int_equal(counted, n);
#ifdef __FMA__
    assert_memory_equal(there.codes.data, host.codes.data, vq_tensor_bytes(&host.codes));
    assert_memory_equal(there.idx.data, host.idx.data, vq_tensor_bytes(&host.idx));
#endif
    vq_arena_reset(&gpu.arena, mark);
}

static void test_codebook(void **state)
{
    (void)state;
    check_codebook(16, 5, false);
    check_codebook(50, 30, true); /* patterns end one after the other */
    check_codebook(12, 5, true);  /* fewer codes than patterns */
}

/* What is wrong with a weight or the inputs is said as on the host. */
static vq_status quantize(float value, double moment, vq_dtype scale_dtype)
{
    enum { OUT = 3, IN = 4 };
    float weight[OUT * IN];
    double moments[IN * IN];
    vq_tensor w = vq_tensor_2d(weight, VQ_F32, OUT, IN), h, ints, rest;
    const vq_grid_config grid = {.bits = 4, .group_size = -1};
    const vq_gptq_config config = {
        .bits = 4, .percdamp = 0.01, .rule = {.block_size = 2, .scale_dtype = scale_dtype}};
    const vq_place there = gpu.be.place;
    vq_gptq_factor f;
    vq_quant q;
    double error;
    const size_t mark = vq_arena_mark(&gpu.arena);
    for (int i = 0; i < OUT * IN; i++) weight[i] = 0.1f * (float)(i % 5) - 0.2f;
    for (int i = 0; i < IN * IN; i++) moments[i] = i % (IN + 1) ? 0.5 : 1;
    weight[2 * IN + 1] = value;
    moments[2 * IN + 2] = moment;
    w.name = "down_proj.weight";
    EXPECT_OK(vq_grid_alloc(&gpu.be, &q, &gpu.arena, &grid, OUT, IN));
    EXPECT_OK(vq_tensor_new(&gpu.arena, there, VQ_F64, VQ_DIMS(IN, IN), &h));
    EXPECT_OK(vq_tensor_new(&gpu.arena, there, q.base.dtype, 2, q.base.dim, &ints));
    EXPECT_OK(vq_tensor_new(&gpu.arena, there, VQ_F32, VQ_DIMS(OUT, IN), &rest));
    EXPECT_OK(vq_upload(&gpu.be, &h, moments));
    vq_status status = vq_gptq_factor_make(&gpu.be, &gpu.arena, &f, &h, "down_proj", &config);
    if (!status) status = vq_gptq_quantize(&gpu.be, &q, &ints, &rest, &error, &w, &f, &config);
    vq_arena_reset(&gpu.arena, mark);
    return status;
}

static void test_refusals(void **state)
{
    (void)state;
    EXPECT_OK(quantize(0.1f, 1, VQ_F32));
    EXPECT_ERROR(quantize(0.1f, NAN, VQ_F32), VQ_ENOTFINITE, "down_proj", "column 2", "nan");
    EXPECT_ERROR(quantize(NAN, 1, VQ_F32), VQ_ENOTFINITE, "down_proj.weight: row 2, column 1");
    EXPECT_ERROR(quantize(1e7f, 1, VQ_F16), VQ_EUNSUPPORTED, "down_proj.weight: row 2, group 0",
                 "Set grid.scale_dtype");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_like_the_cpu),
                                       cmocka_unit_test(test_codebook),
                                       cmocka_unit_test(test_refusals)};
    device_require();
    return cmocka_run_group_tests(tests, setup, teardown);
}
