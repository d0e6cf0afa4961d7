/* test_block - the gradient of whole models' layers against central differences in f64, for each
 * kind of logits, learned scales and scattered groups, with the regularizer's; and the same loss
 * and gradients in slices, with recomputation, with weights made once, and for several sequences at
 * once. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "cpu_backend.h"
#include "expect.h"
#include "grid.h"
#include "pool.h"
#include "rng.h"

#define N_CODES 12
#define WIDTH 8
#define T 7
#define BITS 3
#define GROUP 16
#define STEP 1e-6
#define RELATIVE 1e-6 /* truncation is about STEP^2, cancellation 1e-16 / STEP of the loss */

typedef struct setup {
    const char *model;
    vq_pool_kind kind;
    bool learns_scale, scatters;
} setup;

typedef struct bed {
    vq_arena arena, scratch;
    vq_backend be;
    vq_model model;
    vq_stage stage;
    vq_pool pool;
    vq_tensor ids, hidden, dhidden, teacher;
} bed;

static void fill(vq_tensor *t, uint64_t stream, double low, double high)
{
    for (int64_t i = 0; i < vq_tensor_count(t); i++)
        ((double *)t->data)[i] = low + (high - low) * vq_rng_uniform(1, stream, (uint64_t)i);
}

/* The columns of w in an order of chance, in the linear and in a copy of w. */
static void scatter(bed *b, int64_t slot, vq_vqlinear *l, vq_tensor *w)
{
    const vq_tensor source = *w;
    const int64_t in = w->dim[1];
    EXPECT_OK(vq_tensor_new(&b->arena, VQ_HOST, VQ_I32, VQ_DIMS(in), &l->order));
    int32_t *order = l->order.data;
    for (int64_t j = 0; j < in; j++) {
        const int64_t other = vq_rng_below(6, (uint64_t)slot, (uint64_t)j, j + 1);
        order[j] = order[other];
        order[other] = (int32_t)j;
    }
    EXPECT_OK(vq_arena_alloc(&b->arena, vq_tensor_bytes(w), &w->data));
    EXPECT_OK(vq_arrange(&b->be, w, &source, &l->order, false));
}

static void quantize(bed *b, const setup *set, int64_t slot)
{
    vq_vqlinear *l =
        vq_stage_linear(&b->stage, slot / VQ_N_KINDS, (vq_linear_kind)(slot % VQ_N_KINDS));
    if (!l) return;
    vq_tensor source = l->source->weight, *w = &source;
    if (set->scatters) scatter(b, slot, l, w);
    const vq_grid_config grid = {
        .bits = BITS, .group_size = GROUP, .include_zero = true, .scale_dtype = VQ_F32};
    const int64_t n_vec = VQ_CEIL_DIV(vq_tensor_count(w), WIDTH);
    vq_tensor rest;
    EXPECT_OK(vq_grid_alloc(&b->be, &l->quant, &b->arena, &grid, w->dim[0], w->dim[1]));
    EXPECT_OK(vq_tensor_new(&b->arena, VQ_HOST, VQ_F64, VQ_DIMS(w->dim[0], w->dim[1]), &rest));
    EXPECT_OK(vq_grid_make(&b->be, &l->quant, &rest, w, NULL, &grid));
    l->quantized = true;
    l->scale_dtype = VQ_F64; /* central differences see no rounding */
    vq_pool_attach(&b->pool, slot, l);
    EXPECT_OK(vq_vqlinear_learn_scale(&b->be, l, &b->arena));
    if (b->pool.kind != VQ_POOL_CODES) return;
    EXPECT_OK(vq_tensor_new(&b->arena, VQ_HOST, VQ_U16, VQ_DIMS(n_vec), &l->quant.idx));
    for (int64_t i = 0; i < n_vec; i++)
        ((uint16_t *)l->quant.idx.data)[i] =
            (uint16_t)vq_rng_below(2, (uint64_t)slot, (uint64_t)i, l->codes.dim[0]);
}

static void bed_open(bed *b, const setup *set, int64_t B)
{
    char dir[512];
    const vq_list skip = {0};
    snprintf(dir, sizeof dir, TESTS_DIR "/models/%s", set->model);
    *b = (bed){0};
    EXPECT_OK(vq_arena_init(&b->arena, "test", (size_t)1 << 30));
    EXPECT_OK(vq_arena_init(&b->scratch, "scratch", (size_t)1 << 30));
    EXPECT_OK(vq_cpu_open_f64(&b->be, 2));
    EXPECT_OK(vq_model_open(&b->arena, dir, &b->model));
    const vq_model_config *c = &b->model.config;
    EXPECT_OK(vq_stage_init(&b->arena, &b->be, &b->model, 0, c->N, T, &b->scratch, &b->stage));
    const vq_pool_rule rule = {.kind = set->kind,
                               .K = N_CODES,
                               .D = WIDTH,
                               .group_size = set->learns_scale ? GROUP : 0,
                               .skip = &skip,
                               .last = c->N};
    EXPECT_OK(vq_pool_init(&b->arena, &b->be, &b->model, &rule, &b->pool));
    vq_tensor codes = vq_pool_all_codes(&b->pool, &b->pool.codes),
              factors = vq_pool_all_scales(&b->pool, &b->pool.codes);
    fill(&codes, 3, -2, 2);
    fill(&factors, 4, 0.9, 1.1);
    for (int64_t slot = 0; slot < b->pool.n_slots; slot++) quantize(b, set, slot);
    EXPECT_OK(vq_tensor_new(&b->arena, VQ_HOST, VQ_I32, VQ_DIMS(B, T), &b->ids));
    for (int64_t i = 0; i < B * T; i++)
        ((int32_t *)b->ids.data)[i] = (int32_t)vq_rng_below(4, 0, (uint64_t)i, c->V);
    vq_tensor *const acts[] = {&b->hidden, &b->dhidden, &b->teacher};
    for (int i = 0; i < 3; i++)
        EXPECT_OK(vq_tensor_new(&b->arena, VQ_HOST, VQ_F64, VQ_DIMS(B * T, c->E_embed), acts[i]));
    fill(&b->teacher, 5, -1, 1);
}

static void bed_close(bed *b)
{
    vq_model_close(&b->model);
    vq_cpu_close_f64(&b->be);
    vq_arena_close(&b->scratch);
    vq_arena_close(&b->arena);
}

static double loss_of(bed *b, vq_kept *kept, vq_tensor *dhidden)
{
    double loss = 0;
    EXPECT_OK(vq_stage_set_scales(&b->stage));
    EXPECT_OK(vq_stage_fwd(&b->stage, VQ_MODE_SOFT, b->ids.dim[0], 0, &b->ids, &b->hidden, kept));
    EXPECT_OK(vq_head_kd(&b->be, &loss, dhidden, &b->hidden, &b->teacher, &b->model.head,
                         &b->model.head, 2, 1));
    return loss;
}

static double backward(bed *b, bool recompute)
{
    vq_kept kept;
    EXPECT_OK(vq_kept_init(&b->arena, &b->stage, b->ids.dim[0], T,
                           recompute ? VQ_KEEP_INPUTS : VQ_KEEP_ALL, &kept));
    EXPECT_OK(vq_zero(&b->be, &b->pool.grad));
    const double loss = loss_of(b, &kept, &b->dhidden);
    EXPECT_OK(vq_stage_bwd(&b->stage, &kept, 0, &b->dhidden, NULL));
    return loss;
}

/* The regularizer's value; its gradient is added. */
static double regularize(bed *b)
{
    double loss = 0;
    for (int64_t slot = 0; slot < b->pool.n_slots; slot++) {
        const vq_vqlinear *l =
            vq_stage_linear(&b->stage, slot / VQ_N_KINDS, (vq_linear_kind)(slot % VQ_N_KINDS));
        if (l) EXPECT_OK(vq_vqlinear_reg(&b->be, l, &b->scratch, &loss, 0.003, 5));
    }
    return loss;
}

/* The gradient of numbers [first, last) of the pool, some of them, by central differences. */
static void check_gradient(bed *b, const double *grad, int64_t first, int64_t last, int64_t step,
                           const char *name)
{
    double largest = 0;
    for (int64_t i = first; i < last; i++) largest = fmax(largest, fabs(grad[i]));
    assert_true(largest > 0);
    for (int64_t i = first + 1; i < last; i += step) {
        double *number = (double *)b->pool.codes.data + i;
        const double at = *number;
        *number = at + STEP;
        const double above = loss_of(b, NULL, NULL) + regularize(b);
        *number = at - STEP;
        const double below = loss_of(b, NULL, NULL) + regularize(b);
        *number = at;
        const double expected = (above - below) / (2 * STEP);
        if (!(fabs(grad[i] - expected) <= RELATIVE * largest + 1e-8))
            fail_msg("%s[%lld]: gradient %.12g, by differences %.12g", name, (long long)(i - first),
                     grad[i], expected);
    }
}

static void test_gradient(void **state)
{
    const setup *set = *state;
    bed b;
    double *grad;
    bed_open(&b, set, 2);
    const int64_t n = vq_tensor_count(&b.pool.grad);
    EXPECT_OK(VQ_NEW(&b.arena, n, &grad));
    backward(&b, false);
    regularize(&b);
    memcpy(grad, b.pool.grad.data, (size_t)n * sizeof *grad);
    for (int64_t slot = 0; slot < b.pool.n_slots; slot++) {
        const int64_t *at = &b.pool.offset[slot], *scale = &b.pool.scale_offset[slot];
        const char *name = vq_pool_name(&b.model, slot);
        if (at[1] == at[0]) continue;
        check_gradient(&b, grad, at[0], at[1], VQ_MAX(31, (at[1] - at[0]) / 6), name);
        if (set->learns_scale)
            check_gradient(&b, grad, scale[0], scale[1], VQ_MAX(1, (scale[1] - scale[0]) / 4),
                           name);
    }
    bed_close(&b);
}

static void check_same(const double *a, const double *b, int64_t n, double limit, const char *what)
{
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(a[i] - b[i]) <= limit * (1 + fabs(b[i]))))
            fail_msg("%s: element %lld is %.17g, expected %.17g", what, (long long)i, a[i], b[i]);
}

/* Recomputed activations are the same bits. */
static void test_recompute(void **state)
{
    bed b;
    double *kept;
    bed_open(&b, *state, 1);
    const int64_t n = vq_tensor_count(&b.pool.grad);
    EXPECT_OK(VQ_NEW(&b.arena, n, &kept));
    const double loss = backward(&b, false);
    memcpy(kept, b.pool.grad.data, (size_t)n * sizeof *kept);
    assert_true(backward(&b, true) == loss);
    assert_memory_equal(kept, b.pool.grad.data, (size_t)n * sizeof *kept);
    bed_close(&b);
}

/* Weights that are made once give the same bits; they are what they were until they are made again,
 * and serve their own mode alone. */
static void test_made(void **state)
{
    bed b;
    double *grad;
    vq_tensor hard;
    bed_open(&b, *state, 2);
    const vq_vqlinear *q = vq_stage_linear(&b.stage, 0, VQ_Q);
    const size_t bytes = vq_tensor_bytes(&b.pool.grad);
    vq_tensor codes = vq_pool_all_codes(&b.pool, &b.pool.codes);
    EXPECT_OK(VQ_NEW(&b.arena, vq_tensor_count(&b.pool.grad), &grad));
    const double loss = backward(&b, false);
    memcpy(grad, b.pool.grad.data, bytes);
    EXPECT_OK(vq_stage_make_weights(&b.stage, VQ_MODE_SOFT, &b.arena));
    const void *room = q->made.data;
    for (int recompute = 0; recompute < 2; recompute++) {
        assert_true(backward(&b, recompute) == loss);
        assert_memory_equal(grad, b.pool.grad.data, bytes);
    }
    fill(&codes, 9, -2, 2);
    assert_true(loss_of(&b, NULL, NULL) == loss);
    EXPECT_OK(vq_stage_make_weights(&b.stage, VQ_MODE_SOFT, &b.arena));
    assert_ptr_equal(q->made.data, room);
    const double other = backward(&b, false);
    memcpy(grad, b.pool.grad.data, bytes);
    assert_true(other != loss);
    EXPECT_OK(vq_stage_make_weights(&b.stage, VQ_MODE_HARD, &b.arena));
    EXPECT_OK(vq_vqlinear_weight(&b.be, q, VQ_MODE_HARD, &b.scratch, &hard));
    assert_memory_equal(hard.data, q->made.data, vq_tensor_bytes(&hard));
    for (int is_forgotten = 0; is_forgotten < 2; is_forgotten++) {
        assert_true(backward(&b, false) == other); /* soft ones are made for each product */
        assert_memory_equal(grad, b.pool.grad.data, bytes);
        vq_stage_forget_weights(&b.stage);
    }
    bed_close(&b);
}

/* All layers in slices of 3, 2 and 2 tokens against whole sequences; twice, since what the slices
 * add up must be cleared for the next sequence. */
static void test_slices(void **state)
{
    static const int64_t cut[] = {0, 3, 5, 7};
    bed b;
    vq_kept kept;
    double *expected, *hidden;
    bed_open(&b, *state, 1);
    const int64_t n = vq_tensor_count(&b.pool.grad), E = b.model.config.E_embed;
    EXPECT_OK(VQ_NEW(&b.arena, n, &expected));
    EXPECT_OK(VQ_NEW(&b.arena, T * E, &hidden));
    backward(&b, false);
    memcpy(expected, b.pool.grad.data, (size_t)n * sizeof *expected);
    memcpy(hidden, b.hidden.data, (size_t)(T * E) * sizeof *hidden);
    EXPECT_OK(vq_kept_init(&b.arena, &b.stage, 1, T, VQ_KEEP_SLICES, &kept));
    for (int pass = 0; pass < 2; pass++) {
        EXPECT_OK(vq_zero(&b.be, &b.pool.grad));
        EXPECT_OK(vq_zero(&b.be, &b.hidden));
        for (int i = 0; i < 3; i++) {
            const int64_t rows = cut[i + 1] - cut[i];
            const vq_tensor ids = vq_tensor_2d((int32_t *)b.ids.data + cut[i], VQ_I32, 1, rows);
            vq_tensor out = vq_tensor_rows(&b.hidden, cut[i], rows);
            EXPECT_OK(vq_stage_fwd(&b.stage, VQ_MODE_SOFT, 1, cut[i], &ids, &out, &kept));
        }
        for (int i = 2; i >= 0; i--) {
            const vq_tensor dout = vq_tensor_rows(&b.dhidden, cut[i], cut[i + 1] - cut[i]);
            EXPECT_OK(vq_stage_bwd(&b.stage, &kept, cut[i], &dout, NULL));
        }
        EXPECT_OK(vq_stage_bwd_codes(&b.stage, &kept));
        check_same(b.hidden.data, hidden, T * E, 1e-12, "output");
        check_same(b.pool.grad.data, expected, n, 1e-11, "gradient of the codes");
    }
    bed_close(&b);
}

/* A run of layers cut in two stages gives the bits of one. */
static void test_stages(void **state)
{
    bed b;
    vq_stage first, second;
    vq_kept kept_first, kept_second;
    vq_tensor between, dbetween, hidden;
    double *expected;
    bed_open(&b, *state, 1);
    const vq_model_config *c = &b.model.config;
    const int64_t n = vq_tensor_count(&b.pool.grad);
    EXPECT_OK(VQ_NEW(&b.arena, n, &expected));
    backward(&b, false);
    memcpy(expected, b.pool.grad.data, (size_t)n * sizeof *expected);
    EXPECT_OK(vq_zero(&b.be, &b.pool.grad));

    EXPECT_OK(vq_stage_init(&b.arena, &b.be, &b.model, 0, 1, T, &b.scratch, &first));
    EXPECT_OK(vq_stage_init(&b.arena, &b.be, &b.model, 1, c->N, T, &b.scratch, &second));
    for (int64_t l = 0; l < c->N; l++)
        for (int k = 0; k < VQ_N_KINDS; k++) {
            const vq_vqlinear *whole = vq_stage_linear(&b.stage, l, (vq_linear_kind)k);
            if (whole) *vq_stage_linear(l == 0 ? &first : &second, l, (vq_linear_kind)k) = *whole;
        }
    EXPECT_OK(vq_tensor_new(&b.arena, VQ_HOST, VQ_F64, VQ_DIMS(T, c->E), &between));
    EXPECT_OK(vq_tensor_new(&b.arena, VQ_HOST, VQ_F64, VQ_DIMS(T, c->E), &dbetween));
    EXPECT_OK(vq_tensor_new(&b.arena, VQ_HOST, VQ_F64, VQ_DIMS(T, c->E_embed), &hidden));
    EXPECT_OK(vq_kept_init(&b.arena, &first, 1, T, VQ_KEEP_ALL, &kept_first));
    EXPECT_OK(vq_kept_init(&b.arena, &second, 1, T, VQ_KEEP_ALL, &kept_second));
    EXPECT_OK(vq_stage_fwd(&first, VQ_MODE_SOFT, 1, 0, &b.ids, &between, &kept_first));
    EXPECT_OK(vq_stage_fwd(&second, VQ_MODE_SOFT, 1, 0, &between, &hidden, &kept_second));
    assert_memory_equal(hidden.data, b.hidden.data, vq_tensor_bytes(&hidden));
    EXPECT_OK(vq_stage_bwd(&second, &kept_second, 0, &b.dhidden, &dbetween));
    EXPECT_OK(vq_stage_bwd(&first, &kept_first, 0, &dbetween, NULL));
    assert_memory_equal(expected, b.pool.grad.data, (size_t)n * sizeof *expected);
    bed_close(&b);
}

/* Scattered columns are the same weights in their own places, in every mode. */
static void test_places(void **state)
{
    bed b;
    bed_open(&b, *state, 1);
    const vq_mode modes[] = {VQ_MODE_RTN, VQ_MODE_SOFT, VQ_MODE_HARD};
    for (int m = 0; m < VQ_COUNT(modes); m++)
        for (int64_t slot = 0; slot < b.pool.n_slots; slot++) {
            const vq_vqlinear *l =
                vq_stage_linear(&b.stage, slot / VQ_N_KINDS, (vq_linear_kind)(slot % VQ_N_KINDS));
            if (!l) continue;
            const size_t mark = vq_arena_mark(&b.scratch);
            const int64_t out = l->source->weight.dim[0], in = l->source->weight.dim[1];
            vq_vqlinear plain = *l; /* of a source whose columns are in quant's order */
            vq_linear source = *l->source;
            vq_tensor scattered, runs;
            plain.order = (vq_tensor){0};
            plain.source = &source;
            EXPECT_OK(
                vq_arena_alloc(&b.scratch, vq_tensor_bytes(&source.weight), &source.weight.data));
            EXPECT_OK(vq_arrange(&b.be, &source.weight, &l->source->weight, &l->order, false));
            EXPECT_OK(vq_vqlinear_weight(&b.be, l, modes[m], &b.scratch, &scattered));
            EXPECT_OK(vq_vqlinear_weight(&b.be, &plain, modes[m], &b.scratch, &runs));
            const int32_t *order = l->order.data;
            int64_t moved = 0;
            for (int64_t j = 0; j < in; j++) moved += order[j] != j;
            assert_true(moved > in / 2);
            for (int64_t i = 0; i < out * in; i++)
                assert_true(((const double *)runs.data)[i] ==
                            ((const double *)scattered.data)[i / in * in + order[i % in]]);
            vq_arena_reset(&b.scratch, mark);
        }
    bed_close(&b);
}

#define SETUP(what, test, ...)                                                                     \
    {                                                                                              \
        what, test, NULL, NULL, &(setup)                                                           \
        {                                                                                          \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }
#define MODEL(name)                                                                                \
    SETUP("gradient, " name, test_gradient, name, VQ_POOL_CODES, false, false),                    \
        SETUP("recompute, " name, test_recompute, name, VQ_POOL_CODES, false, false),              \
        SETUP("slices, " name, test_slices, name, VQ_POOL_CODES, false, false),                    \
        SETUP("stages, " name, test_stages, name, VQ_POOL_CODES, false, false)

int main(void)
{
    const struct CMUnitTest tests[] = {
        MODEL("rand-llama-gqa-tied"),
        MODEL("rand-opt-f32"),
        MODEL("rand-opt350"),
        MODEL("rand-qwen3-tied"),
        MODEL("rand-llama3-rope"),
        SETUP("learned scales", test_gradient, "rand-llama-gqa-tied", VQ_POOL_CODES, true, false),
        SETUP("own logits", test_gradient, "rand-qwen3-tied", VQ_POOL_LOGITS, true, false),
        SETUP("factors", test_gradient, "rand-opt-f32", VQ_POOL_FACTORS, false, false),
        SETUP("factors and scales", test_gradient, "rand-llama-gqa-tied", VQ_POOL_FACTORS, true,
              false),
        SETUP("places", test_places, "rand-llama3-rope", VQ_POOL_CODES, false, true),
        SETUP("scattered", test_gradient, "rand-llama-gqa-tied", VQ_POOL_CODES, true, true),
        SETUP("scattered factors", test_gradient, "rand-opt-f32", VQ_POOL_FACTORS, false, true),
        SETUP("slices, scattered", test_slices, "rand-qwen3-tied", VQ_POOL_CODES, true, true),
        SETUP("slices, factors", test_slices, "rand-llama-gqa-tied", VQ_POOL_FACTORS, true, false),
        SETUP("made, scattered", test_made, "rand-qwen3-tied", VQ_POOL_CODES, false, true),
        SETUP("made, factors", test_made, "rand-opt-f32", VQ_POOL_FACTORS, false, false),
        SETUP("made, own logits", test_made, "rand-llama-gqa-tied", VQ_POOL_LOGITS, false, false),
        SETUP("stages, factors", test_stages, "rand-qwen3-tied", VQ_POOL_FACTORS, true, false),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
