/* test_gradients - every backward against central differences, in f64, with the code users run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cpu_backend.h"
#include "op_cases.h"

/* Step and limit: the truncation error is about STEP^2, the rounding error 1e-16 / STEP. */
#define STEP 1e-5
#define LIMIT 1e-7 /* of the gradient's largest element */

static vq_arena arena;
static vq_backend be;

static double dot(const vq_tensor *x, const vq_tensor *y)
{
    double sum = 0;
    int64_t n = vq_tensor_count(x);
    for (int64_t i = 0; i < n; i++) sum += op_get(x, i) * op_get(y, i);
    return sum;
}

/* A tensor like another one, for a forward's result. */
static vq_tensor like(const vq_tensor *t)
{
    vq_tensor out;
    assert_int_equal(vq_tensor_new(&arena, VQ_HOST, t->dtype, t->ndim, t->dim, &out), VQ_OK);
    return out;
}

/* Each function: the scalar whose gradient the case's backward claims to compute. */
static double rmsnorm_value(const int64_t *s, op_args *a)
{
    (void)s;
    vq_tensor y = like(&a->in[0]), rstd = like(&a->out[1]);
    assert_int_equal(vq_rmsnorm_fwd(&be, &y, &rstd, &a->in[0], &a->in[1], 1e-5), VQ_OK);
    return dot(&y, &a->in[2]);
}

static double layernorm_value(const int64_t *s, op_args *a)
{
    vq_tensor y = like(&a->in[0]), rstd = like(&a->out[1]), mean = like(&a->out[1]);
    assert_int_equal(vq_layernorm_fwd(&be, &y, &mean, &rstd, &a->in[0], s[3] ? &a->in[1] : NULL,
                                      s[3] ? &a->in[2] : NULL, 1e-5),
                     VQ_OK);
    return dot(&y, &a->in[3]);
}

static double attention_value(const int64_t *s, op_args *a)
{
    vq_tensor out = like(&a->in[0]), lse = like(&a->in[4]);
    assert_int_equal(
        vq_attention_fwd(&be, &out, &lse, &a->in[0], &a->in[1], &a->in[2], attention_scale(s)),
        VQ_OK);
    return dot(&out, &a->in[5]);
}

static double silu_gate_value(const int64_t *s, op_args *a)
{
    (void)s;
    vq_tensor y = like(&a->in[0]);
    assert_int_equal(vq_silu_gate_fwd(&be, &y, &a->in[0], &a->in[1]), VQ_OK);
    return dot(&y, &a->in[2]);
}

static double relu_value(const int64_t *s, op_args *a)
{
    (void)s;
    vq_tensor y = like(&a->in[0]);
    assert_int_equal(vq_relu_fwd(&be, &y, &a->in[0]), VQ_OK);
    return dot(&y, &a->in[2]);
}

static double round_value(const int64_t *s, op_args *a)
{
    (void)s;
    vq_tensor w = like(&a->out[0]);
    assert_int_equal(vq_round_fwd(&be, &w, &a->quant, &a->in[0], VQ_SOFT), VQ_OK);
    return dot(&w, &a->out[0]);
}

static double round_reg_value(const int64_t *s, op_args *a)
{
    double loss = 0;
    assert_int_equal(vq_round_reg(&be, &loss, NULL, &a->in[0], s[2] ? NULL : &a->in[1], 0.01, 7.3),
                     VQ_OK);
    return loss;
}

/* By the factors: the weight is made with the learned scales. */
static double round_scale_value(const int64_t *s, op_args *a)
{
    vq_quant q = a->quant;
    (void)s;
    q.scale = like(&a->in[2]);
    assert_int_equal(vq_round_scale_fwd(&be, &q.scale, &a->in[5], &a->in[6], VQ_F64), VQ_OK);
    vq_tensor w = like(&a->out[0]);
    assert_int_equal(vq_round_fwd(&be, &w, &q, &a->in[0], VQ_SOFT), VQ_OK);
    return dot(&w, &a->out[0]);
}

static double mse_value(const int64_t *s, op_args *a)
{
    (void)s;
    double loss = 0;
    assert_int_equal(vq_mse(&be, &loss, NULL, &a->in[0], &a->in[1], 0.125), VQ_OK);
    return loss;
}

static double head_kd_value(const int64_t *s, op_args *a)
{
    double loss = 0;
    assert_int_equal(vq_head_kd(&be, &loss, NULL, &a->in[0], &a->in[2], &a->in[1],
                                s[4] ? &a->in[3] : &a->in[1], 2, 0.125),
                     VQ_OK);
    return loss;
}

static double head_nll_value(const int64_t *s, op_args *a)
{
    (void)s;
    double loss = 0;
    assert_int_equal(vq_head_nll(&be, &loss, NULL, &a->in[0], &a->in[1], &a->in[4], 0.125), VQ_OK);
    return loss;
}

typedef struct gradient_case {
    op_case op;
    double (*value)(const int64_t *size, op_args *a);
    struct {
        int input, output;
        bool added; /* the output held something before */
    } pair[3];
    int n_pairs;
} gradient_case;

static const gradient_case CASES[] = {
    {{&OP_RMSNORM_BWD, {3, 7, VQ_F32, 0, 0}}, rmsnorm_value, {{0, 0, false}}, 1},
    {{&OP_RMSNORM_BWD, {3, 37, VQ_F16, 0, 1}}, rmsnorm_value, {{0, 0, true}}, 1},
    {{&OP_LAYERNORM_BWD, {3, 7, VQ_F32, 0, 0}}, layernorm_value, {{0, 0, false}}, 1},
    {{&OP_LAYERNORM_BWD, {3, 37, VQ_BF16, 1, 1}}, layernorm_value, {{0, 0, true}}, 1},
    {{&OP_ATTENTION_BWD, {1, 5, 5, 2, 2, 3, 0}},
     attention_value,
     {{0, 0, false}, {1, 1, true}, {2, 2, true}},
     3},
    {{&OP_ATTENTION_BWD, {2, 66, 71, 4, 2, 2, 9}}, /* more than one block, prefix, groups */
     attention_value,
     {{0, 0, false}, {1, 1, true}, {2, 2, true}},
     3},
    {{&OP_SILU_GATE_BWD, {3, 29}}, silu_gate_value, {{0, 0, false}, {1, 1, false}}, 2},
    {{&OP_RELU_BWD, {3, 29}}, relu_value, {{0, 0, false}}, 1},
    {{&OP_ROUND_BWD, {16, 24, 9, 8, 3, 24, VQ_U16}}, round_value, {{0, 1, true}}, 1},
    {{&OP_ROUND_BWD, {13, 21, 9, 5, 2, 8, VQ_U32}}, round_value, {{0, 1, true}}, 1},
    {{&OP_ROUND_BWD, {13, 21, 0, 8, 8, 8, VQ_U32}}, round_value, {{0, 1, true}}, 1},
    {{&OP_ROUND_REG, {41, 5}}, round_reg_value, {{0, 0, true}}, 1},
    {{&OP_ROUND_REG, {41, 5, 1}}, round_reg_value, {{0, 0, true}}, 1},
    {{&OP_ROUND_SCALE_BWD, {16, 24, 9, 8, 3, 24, VQ_U16}}, round_scale_value, {{6, 2, true}}, 1},
    {{&OP_ROUND_SCALE_BWD, {13, 21, 9, 5, 2, 8, VQ_U32}}, round_scale_value, {{6, 2, true}}, 1},
    {{&OP_ROUND_SCALE_BWD, {13, 21, 0, 21, 8, 8, VQ_U32}}, round_scale_value, {{6, 2, true}}, 1},
    {{&OP_HEAD_KD, {3, 7, 61, VQ_F32, 0}}, head_kd_value, {{0, 0, false}}, 1},
    {{&OP_HEAD_KD, {3, 7, 61, VQ_F16, 4}}, head_kd_value, {{0, 0, false}}, 1},
    {{&OP_MSE, {5, 7}}, mse_value, {{0, 0, false}}, 1},
    {{&OP_HEAD_NLL, {4, 7, 61, VQ_F32}}, head_nll_value, {{0, 0, false}}, 1},
};

static void check_case(const gradient_case *c)
{
    op_args a = {0};
    double *before[3];
    const int64_t *s = c->op.size;
    assert_int_equal(c->op.kind->make(&be, &arena, s, &a), VQ_OK);
    for (int j = 0; j < c->n_pairs; j++) {
        const vq_tensor *out = &a.out[c->pair[j].output];
        int64_t n = vq_tensor_count(out);
        assert_int_equal(VQ_NEW(&arena, n, &before[j]), VQ_OK);
        for (int64_t i = 0; i < n; i++) before[j][i] = c->pair[j].added ? op_get(out, i) : 0;
    }
    assert_int_equal(c->op.kind->run(&be, s, &a), VQ_OK);

    for (int j = 0; j < c->n_pairs; j++) {
        vq_tensor *x = &a.in[c->pair[j].input];
        const vq_tensor *grad = &a.out[c->pair[j].output];
        int64_t n = vq_tensor_count(x);
        double largest = 0, worst = 0;
        assert_int_equal(vq_tensor_count(grad), n);
        for (int64_t i = 0; i < n; i++) {
            double old = op_get(x, i), claimed = op_get(grad, i) - before[j][i];
            size_t mark = vq_arena_mark(&arena);
            op_set(x, i, old + STEP);
            double above = c->value(s, &a);
            op_set(x, i, old - STEP);
            double below = c->value(s, &a);
            op_set(x, i, old);
            vq_arena_reset(&arena, mark);
            worst = fmax(worst, fabs((above - below) / (2 * STEP) - claimed));
            largest = fmax(largest, fabs(claimed));
        }
        if (!(worst <= LIMIT * largest) || largest == 0)
            fail_msg("%s, case %d, input %d: error %g, expected %g or less (largest gradient %g)",
                     c->op.kind->name, (int)(c - CASES), c->pair[j].input, worst, LIMIT * largest,
                     largest);
    }
}

static void test_gradients(void **state)
{
    (void)state;
    assert_int_equal(vq_arena_init(&arena, "test", (size_t)1 << 30), VQ_OK);
    assert_int_equal(vq_cpu_open_f64(&be, 2), VQ_OK);
    for (int i = 0; i < VQ_COUNT(CASES); i++) check_case(&CASES[i]);
    vq_cpu_close_f64(&be);
    vq_arena_close(&arena);
}

/* The rotation's backward is its inverse: turning there and back, with unit (cos, sin), changes
 * nothing, and the inner product of two turned vectors stays what it was. */
static void test_rope(void **state)
{
    (void)state;
    const int64_t size[] = {2, 5, 3, 8, 2, 0}, back[] = {2, 5, 3, 8, 2, 1};
    op_args a = {0}, b = {0};
    assert_int_equal(vq_arena_init(&arena, "test", (size_t)1 << 30), VQ_OK);
    assert_int_equal(vq_cpu_open_f64(&be, 2), VQ_OK);
    assert_int_equal(rope_make(&be, &arena, size, &a), VQ_OK);
    assert_int_equal(rope_make(&be, &arena, size, &b), VQ_OK);
    int64_t n_angles = vq_tensor_count(&a.in[0]), n = vq_tensor_count(&a.out[0]);
    for (int64_t i = 0; i < n_angles; i++)
        op_set(&a.in[1], i, sqrt(1 - pow(op_get(&a.in[0], i), 2)));
    assert_int_equal(rope_run(&be, size, &a), VQ_OK);
    double turned = dot(&a.out[0], &a.out[0]);
    assert_true(fabs(turned - dot(&b.out[0], &b.out[0])) < 1e-12 * turned);
    assert_int_equal(rope_run(&be, back, &a), VQ_OK);
    for (int64_t i = 0; i < n; i++)
        assert_true(fabs(op_get(&a.out[0], i) - op_get(&b.out[0], i)) < 1e-14);
    vq_cpu_close_f64(&be);
    vq_arena_close(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gradients),
                                       cmocka_unit_test(test_rope)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
