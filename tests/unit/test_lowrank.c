/* test_lowrank - the product of two factors against matrices whose best approximation is known. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "arenas.h"
#include "cpu_backend.h"
#include "expect.h"
#include "lowrank.h"
#include "rng.h"

static vq_backend be;

static vq_tensor matrix(int64_t rows, int64_t cols)
{
    vq_tensor t;
    EXPECT_OK(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(rows, cols), &t));
    EXPECT_OK(vq_zero(&be, &t));
    return t;
}

static double error2(const vq_tensor *a, const vq_tensor *b1, const vq_tensor *b2)
{
    vq_tensor rest = matrix(a->dim[0], a->dim[1]);
    double norm;
    EXPECT_OK(vq_copy(&be, &rest, a));
    EXPECT_OK(vq_gemm(&be, &rest, b1, false, b2, false, -1, 1));
    EXPECT_OK(vq_norm2(&be, &norm, &rest));
    return norm;
}

/* a = sum of value_k cos-column_k cos-row_k: the discrete cosine bases are orthonormal, so the
 * values are a's singular values and the best error of rank r is the sum of the later squares. */
static vq_tensor with_values(int64_t out, int64_t in, const double *value, int64_t n)
{
    vq_tensor a = matrix(out, in);
    float *x = a.data;
    const double pi = acos(-1.0);
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < out * in; i++)
            x[i] += (float)(value[k] * 2 / sqrt((double)(out * in)) *
                            cos(pi * (double)((k + 1) * (2 * (i / in) + 1)) / (double)(2 * out)) *
                            cos(pi * (double)((k + 1) * (2 * (i % in) + 1)) / (double)(2 * in)));
    return a;
}

static void check(const vq_tensor *a, int64_t r, double expected, double limit)
{
    vq_tensor b1 = matrix(a->dim[0], r), b2 = matrix(r, a->dim[1]);
    EXPECT_OK(vq_lowrank_fit(&be, &arena, &b1, &b2, a));
    const double is = error2(a, &b1, &b2);
    if (!(is >= expected * (1 - 1e-3) - 1e-6 && is <= expected * (1 + limit) + 1e-6))
        fail_msg("rank %lld: squared error %g, expected %g", (long long)r, is, expected);
    /* Each singular value is shared alike. */
    double norm1, norm2;
    EXPECT_OK(vq_norm2(&be, &norm1, &b1));
    EXPECT_OK(vq_norm2(&be, &norm2, &b2));
    assert_true(fabs(norm1 / norm2 - 1) < 1e-4);
}

static void test_known_values(void **state)
{
    (void)state;
    const double value[] = {9, 7, 5, 3, 2, 1.5, 1, 0.5};
    const vq_tensor a = with_values(40, 57, value, 8), wide = with_values(12, 300, value, 8);
    double rest = 0;
    for (int r = 7; r >= 1; r--) {
        rest += value[r] * value[r];
        check(&a, r, rest, 1e-3);
        check(&wide, r, rest, 1e-3);
    }
    check(&a, 8, 0, 0);
}

/* A matrix of random numbers has no gap between its singular values; still the error is below that
 * of any choice of r rows, and at full rank it is none. */
static void test_random(void **state)
{
    (void)state;
    vq_tensor a = matrix(30, 20);
    double norm;
    for (int64_t i = 0; i < 600; i++)
        ((float *)a.data)[i] = (float)vq_rng_uniform(3, 0, (uint64_t)i) - 0.5f;
    EXPECT_OK(vq_norm2(&be, &norm, &a));
    vq_tensor b1 = matrix(30, 5), b2 = matrix(5, 20);
    EXPECT_OK(vq_lowrank_fit(&be, &arena, &b1, &b2, &a));
    assert_true(error2(&a, &b1, &b2) < norm * 15 / 20 * 0.85);
    check(&a, 20, 0, 0);
    vq_tensor zeros = matrix(30, 20);
    EXPECT_OK(vq_lowrank_fit(&be, &arena, &b1, &b2, &zeros));
    assert_true(error2(&zeros, &b1, &b2) == 0);
}

int main(void)
{
    open_arenas(NULL);
    EXPECT_OK(vq_cpu_open(&be, 2));
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_known_values),
                                       cmocka_unit_test(test_random)};
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    vq_cpu_close(&be);
    close_arenas(NULL);
    return failed;
}
