/* test_ops - every case: the f64 build against the formula, the f32 build against f64, and the
 * same bits for 1, 2 and 3 threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "cpu_backend.h"
#include "op_compare.h"

/* Normalized mean square errors. f32 leaves some 1e-14; what is above 1e-11 is no rounding. */
#define LIMIT_F32 1e-11
#define LIMIT_F64 1e-24

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
        snprintf(text, sizeof text, "with %d threads than with 1", threads);
        expect_same_bits(&first, &a, text, c);
    }
    vq_arena_reset(arena, mark);
}

static void test_cases(void **state)
{
    (void)state;
    vq_arena arena;
    assert_int_equal(vq_arena_init(&arena, "test", (size_t)4 << 30), VQ_OK);
    for (int i = 0; i < VQ_COUNT(OP_CASES); i++) run_case(&arena, &OP_CASES[i]);
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
