/* test_ops - every case: the f64 build against the formula, the f32 build against f64, and the
 * same bits for 1, 2 and 3 threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "cpu_backend.h"
#include "op_cases.h"

/* Normalized mean square errors. f32 leaves some 1e-14; what is above 1e-11 is no rounding. */
#define LIMIT_F32 1e-11
#define LIMIT_F64 1e-24

static const op_case CASES[] = {
    /* the three usual products, all kinds of tiles; odd sizes; strides; types of weights */
    {&OP_GEMM, {1, 1, 1, 0, 0, VQ_F32, 0, 0}},
    {&OP_GEMM, {7, 1, 3, 0, 1, VQ_F32, 2, 1}},
    {&OP_GEMM, {1, 13, 5, 1, 0, VQ_F32, 0, 1}},
    {&OP_GEMM, {31, 37, 29, 0, 1, VQ_F16, 3, 1}},
    {&OP_GEMM, {31, 37, 29, 0, 0, VQ_BF16, 3, 0}},
    {&OP_GEMM, {31, 37, 29, 1, 1, VQ_F64, 0, 1}},
    {&OP_GEMM, {131, 257, 67, 0, 1, VQ_F32, 0, 0}},
    {&OP_GEMM, {65, 771, 31, 1, 0, VQ_F32, 5, 1}},
    {&OP_GEMM, {300, 70, 1100, 0, 0, VQ_F16, 0, 0}},
    {&OP_GEMM, {9, 41, 8211, 0, 0, VQ_BF16, 1, 1}}, /* cut along k */
    {&OP_GEMM, {40, 33, 8192, 1, 1, VQ_F32, 0, 0}},
    {&OP_EMBED, {5, 11, 7, VQ_F32, 0}},
    {&OP_EMBED, {130, 17, 301, VQ_F16, 1}},
    {&OP_EMBED, {130, 17, 301, VQ_BF16, 0}},
    {&OP_BIAS_ADD, {1, 1, VQ_F32}},
    {&OP_BIAS_ADD, {77, 331, VQ_F16}},
    {&OP_ADD, {61, 307}},
    {&OP_RMSNORM_FWD, {1, 1, VQ_F32}},
    {&OP_RMSNORM_FWD, {37, 577, VQ_BF16}},
    {&OP_RMSNORM_BWD, {1, 5, VQ_F32, 0, 0}},
    {&OP_RMSNORM_BWD, {37, 577, VQ_F16, 0, 1}},
    {&OP_LAYERNORM_FWD, {3, 2, VQ_F32, 1}},
    {&OP_LAYERNORM_FWD, {37, 577, VQ_F16, 1}},
    {&OP_LAYERNORM_FWD, {37, 577, VQ_F32, 0}},
    {&OP_LAYERNORM_BWD, {3, 5, VQ_F32, 1, 1}},
    {&OP_LAYERNORM_BWD, {37, 577, VQ_F16, 1, 0}},
    {&OP_LAYERNORM_BWD, {37, 577, VQ_F32, 0, 1}},
    {&OP_ROPE, {1, 1, 1, 2, 0, 0}},
    {&OP_ROPE, {2, 67, 5, 34, 3, 0}},
    {&OP_ROPE, {2, 67, 5, 34, 3, 1}},
    {&OP_ATTENTION_FWD, {1, 1, 1, 1, 1, 1, 0}},
    {&OP_ATTENTION_FWD, {2, 70, 70, 3, 3, 17, 0}},
    {&OP_ATTENTION_FWD, {2, 37, 150, 6, 2, 16, 40}},
    {&OP_ATTENTION_FWD, {1, 200, 200, 2, 1, 64, 0}},
    {&OP_ATTENTION_BWD, {1, 1, 1, 1, 1, 1, 0}},
    {&OP_ATTENTION_BWD, {2, 70, 70, 3, 3, 17, 0}},
    {&OP_ATTENTION_BWD, {2, 37, 150, 6, 2, 16, 40}},
    {&OP_ATTENTION_BWD, {1, 300, 301, 2, 1, 64, 0}},
    {&OP_SILU_GATE_FWD, {53, 313}},
    {&OP_SILU_GATE_BWD, {53, 313}},
    {&OP_RELU_FWD, {53, 313}},
    {&OP_RELU_BWD, {53, 313}},
    /* whole and straddling vectors, a short last one, groups, wide integers, own codes */
    {&OP_ROUND_FWD, {96, 128, 64, 8, 3, 128, VQ_U16, 0}},
    {&OP_ROUND_FWD, {96, 128, 64, 8, 3, 32, VQ_U32, 1}},
    {&OP_ROUND_FWD, {131, 2089, 64, 8, 2, 2089, VQ_U32, 0}},
    {&OP_ROUND_FWD, {37, 83, 50, 7, 4, 20, VQ_U16, 0}},
    {&OP_ROUND_FWD, {37, 83, 1, 1, 1, 83, VQ_U16, 1}},
    {&OP_ROUND_FWD, {201, 83, 50, 12, 8, 30, VQ_U32, 0}},
    {&OP_ROUND_FWD, {201, 83, 0, 8, 8, 83, VQ_U32, 0}},
    {&OP_ROUND_FWD, {201, 83, 0, 1, 3, 11, VQ_U32, 1}},
    {&OP_ROUND_BWD, {96, 128, 64, 8, 3, 128, VQ_U16}},
    {&OP_ROUND_BWD, {131, 2089, 64, 8, 2, 2089, VQ_U32}},
    {&OP_ROUND_BWD, {37, 83, 50, 7, 4, 20, VQ_U16}},
    {&OP_ROUND_BWD, {37, 83, 1, 1, 1, 83, VQ_U16}},
    {&OP_ROUND_BWD, {201, 83, 50, 12, 8, 30, VQ_U32}},
    {&OP_ROUND_BWD, {201, 83, 0, 8, 8, 83, VQ_U32}},
    {&OP_ROUND_REG, {1, 1}},
    {&OP_ROUND_REG, {1201, 7}},
    {&OP_ROUND_REG, {1201, 7, 1}},
    {&OP_ROUND_SCALE_FWD, {37, 83, 50, 7, 4, 20, VQ_U16, VQ_F32}},
    {&OP_ROUND_SCALE_FWD, {201, 83, 50, 7, 4, 83, VQ_U16, VQ_BF16}},
    {&OP_ROUND_SCALE_FWD, {201, 83, 50, 7, 4, 1, VQ_U16, VQ_F16}},
    {&OP_ROUND_SCALE_BWD, {96, 128, 64, 8, 3, 128, VQ_U16}},
    {&OP_ROUND_SCALE_BWD, {3, 2089, 64, 8, 2, 2089, VQ_U32}},
    {&OP_ROUND_SCALE_BWD, {37, 83, 50, 7, 4, 20, VQ_U16}},
    {&OP_ROUND_SCALE_BWD, {201, 83, 50, 12, 8, 30, VQ_U32}},
    {&OP_ROUND_SCALE_BWD, {201, 83, 0, 83, 8, 83, VQ_U32}},
    {&OP_GRID_SEARCH, {1, 1, 4, 1, 0, VQ_F32, VQ_F32}},
    {&OP_GRID_SEARCH, {30, 1100, 2, 1100, 0, VQ_F32, VQ_F32}},
    {&OP_GRID_SEARCH, {30, 83, 3, 20, 1, VQ_BF16, VQ_BF16}},
    {&OP_GRID_SEARCH, {30, 83, 8, 32, 0, VQ_F16, VQ_F16}},
    {&OP_GRID_SEARCH, {30, 640, 4, 640, 1, VQ_F16, VQ_F32}},
    {&OP_HEAD_KD, {1, 3, 1, VQ_F32, 0}},
    {&OP_HEAD_KD, {19, 7, 521, VQ_F32, 0}},
    {&OP_HEAD_KD, {37, 5, 1031, VQ_F16, 11}},
    {&OP_HEAD_NLL, {1, 3, 2, VQ_F32}},
    {&OP_HEAD_NLL, {37, 5, 1031, VQ_BF16}},
    {&OP_MSE, {1, 1}},
    {&OP_MSE, {67, 1039}},
    {&OP_ADAM, {20011}},
    {&OP_NORM2, {1}},
    {&OP_NORM2, {200003}},
};

static const char *case_text(const op_case *c, char text[160])
{
    int n = snprintf(text, 160, "%s (%s) =", c->kind->name, c->kind->sizes);
    for (int i = 0; i < VQ_COUNT(c->size); i++)
        n += snprintf(text + n, (size_t)(160 - n), " %lld", (long long)c->size[i]);
    return text;
}

/* sum (x - y)^2 / sum y^2, or 1 where it is not a number. */
static double nmse(const vq_tensor *x, const vq_tensor *y)
{
    double error = 0, size = 0;
    int64_t n = vq_tensor_count(y);
    for (int64_t i = 0; i < n; i++) {
        error += pow(op_get(x, i) - op_get(y, i), 2);
        size += pow(op_get(y, i), 2);
    }
    if (!isfinite(error)) return 1;
    return error == 0 ? 0 : error / fmax(size, 1e-300);
}

static void compare(const op_args *got, const op_args *expected, double limit, const char *what,
                    const op_case *c)
{
    char text[160];
    for (int i = 0; i < expected->n_out; i++) {
        double error = nmse(&got->out[i], &expected->out[i]);
        if (!(error <= limit))
            fail_msg("%s: %s: output %d has NMSE %g, expected %g or less", case_text(c, text), what,
                     i, error, limit);
    }
    double error = fabs(got->loss - expected->loss), size = fmax(fabs(expected->loss), 0.25);
    if (!(error <= sqrt(limit) * size))
        fail_msg("%s: %s: the value is %.17g, expected %.17g", case_text(c, text), what, got->loss,
                 expected->loss);
}

/* The gaps between rows belong to somebody else. */
static void check_gaps(const op_args *a, const op_case *c)
{
    char text[160];
    for (int i = 0; i < a->n_out; i++) {
        const vq_tensor *t = &a->out[i];
        int64_t row = vq_tensor_count(t) / t->dim[0];
        size_t bytes = vq_dtype_bytes(t->dtype);
        for (int64_t j = 0; j < t->dim[0]; j++)
            for (size_t k = (size_t)row * bytes; k < (size_t)t->stride[0] * bytes; k++)
                if (((uint8_t *)t->data)[(size_t)(j * t->stride[0]) * bytes + k])
                    fail_msg("%s: output %d: something was written after row %lld",
                             case_text(c, text), i, (long long)j);
    }
}

static void run_case(vq_arena *arena, const op_case *c)
{
    char text[160];
    const op_kind *kind = c->kind;
    vq_backend be;
    op_args expected = {0}, got = {0}, first = {0};
    size_t mark = vq_arena_mark(arena);

    assert_int_equal(vq_cpu_open_f64(&be, 2), VQ_OK);
    assert_int_equal(kind->make(&be, arena, c->size, &got), VQ_OK);
    if (kind->run(&be, c->size, &got) != VQ_OK)
        fail_msg("%s: %s", case_text(c, text), vq_error_message());
    if (kind->reference) {
        assert_int_equal(kind->make(&be, arena, c->size, &expected), VQ_OK);
        kind->reference(c->size, &expected);
        compare(&got, &expected, LIMIT_F64, "f64 against the formula", c);
        check_gaps(&got, c);
    } else {
        expected = got;
    }
    vq_cpu_close_f64(&be);

    for (int threads = 1; threads <= 3; threads++) {
        op_args a = {0};
        assert_int_equal(vq_cpu_open(&be, threads), VQ_OK);
        assert_int_equal(kind->make(&be, arena, c->size, &a), VQ_OK);
        if (kind->run(&be, c->size, &a) != VQ_OK)
            fail_msg("%s: %s", case_text(c, text), vq_error_message());
        vq_cpu_close(&be);
        if (threads == 1) {
            compare(&a, &expected, LIMIT_F32, "f32 against f64", c);
            first = a;
            continue;
        }
        for (int i = 0; i < a.n_out; i++) {
            size_t bytes =
                vq_dtype_bytes(a.out[i].dtype) * (size_t)(a.out[i].dim[0] * a.out[i].stride[0]);
            if (memcmp(a.out[i].data, first.out[i].data, bytes) != 0)
                fail_msg("%s: output %d has other bits with %d threads than with 1",
                         case_text(c, text), i, threads);
        }
        if (memcmp(&a.loss, &first.loss, sizeof a.loss) != 0)
            fail_msg("%s: the value has other bits with %d threads than with 1", case_text(c, text),
                     threads);
    }
    vq_arena_reset(arena, mark);
}

static void test_cases(void **state)
{
    (void)state;
    vq_arena arena;
    assert_int_equal(vq_arena_init(&arena, "test", (size_t)4 << 30), VQ_OK);
    for (int i = 0; i < VQ_COUNT(CASES); i++) run_case(&arena, &CASES[i]);
    vq_arena_close(&arena);
}

/* Numbers that are not finite reach the result, so that the caller's check sees them. */
static void test_not_finite(void **state)
{
    (void)state;
    vq_arena arena;
    vq_backend be;
    assert_int_equal(vq_arena_init(&arena, "test", (size_t)1 << 30), VQ_OK);
    assert_int_equal(vq_cpu_open(&be, 2), VQ_OK);
    const op_case cases[] = {{&OP_HEAD_KD, {5, 7, 1000, VQ_F32, 0}},
                             {&OP_HEAD_NLL, {5, 7, 1000, VQ_F32}},
                             {&OP_MSE, {4, 250}},
                             {&OP_NORM2, {1000}}};
    for (int i = 0; i < VQ_COUNT(cases); i++)
        for (int j = 0; j < 2; j++) {
            op_args a = {0};
            assert_int_equal(cases[i].kind->make(&be, &arena, cases[i].size, &a), VQ_OK);
            if (cases[i].kind == &OP_HEAD_NLL) op_set(&a.in[4], 0, 1);
            op_set(&a.in[0], 3, j ? NAN : INFINITY);
            assert_int_equal(cases[i].kind->run(&be, cases[i].size, &a), VQ_OK);
            assert_true(a.loss - a.loss != 0); /* NaN or infinite */
        }
    vq_cpu_close(&be);
    vq_arena_close(&arena);
}

/* A head's softmax does not overflow, and dx may be left out. */
static void test_large_logits(void **state)
{
    (void)state;
    vq_backend be;
    assert_int_equal(vq_cpu_open(&be, 2), VQ_OK);
    float x[2] = {1000, -1000}, head[4] = {1, 0, 0, 1};
    int32_t target = 1;
    vq_tensor tx = vq_tensor_2d(x, VQ_F32, 1, 2), th = vq_tensor_2d(head, VQ_F32, 2, 2);
    vq_tensor tt = vq_tensor_1d(&target, VQ_I32, 1);
    double loss = 0;
    assert_int_equal(vq_head_nll(&be, &loss, NULL, &tx, &th, &tt, 1), VQ_OK);
    assert_float_equal(loss, 2000, 0);
    loss = 0;
    assert_int_equal(vq_head_kd(&be, &loss, NULL, &tx, &tx, &th, &th, 2, 1), VQ_OK);
    assert_float_equal(loss, 0, 0);
    vq_cpu_close(&be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases),
                                       cmocka_unit_test(test_not_finite),
                                       cmocka_unit_test(test_large_logits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
