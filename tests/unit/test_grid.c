/* test_grid - the integer grid against formulas worked out one weight at a time. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "arenas.h"
#include "cpu_backend.h"
#include "error.h"
#include "grid.h"
#include "ints.h"
#include "rng.h"

enum { OUT = 9, IN = 37 };

static vq_backend be;

static int setup(void **state)
{
    return open_arenas(state) || vq_cpu_open(&be, 2);
}

static int teardown(void **state)
{
    vq_cpu_close(&be);
    return close_arenas(state);
}

/* Rows of every kind a range can be. */
static void fill(float *w, int bits)
{
    for (int64_t o = 0; o < OUT; o++) {
        for (int64_t i = 0; i < IN; i++) {
            float u = (float)vq_rng_uniform(7, (uint64_t)o, (uint64_t)i);
            float *x = &w[o * IN + i];
            switch (o) {
            case 0: *x = 0; break;
            case 1: *x = 0.5f + u; break;
            case 2: *x = -0.5f - u; break;
            case 3: *x = 0.375f; break;
            case 4: *x = -0.375f; break;
            case 5: /* s = 1 exactly, all others halfway between two integers */
                *x = i == 0 ? -1.0f : i == 1 ? (float)((1 << bits) - 2) : (float)(i % 5) - 0.5f;
                break;
            case 6: *x = (u - 0.5f) * 1e-9f; break;
            default: *x = (u - 0.5f) * 0.3f;
            }
        }
    }
}

static double round_to(double s, vq_dtype dtype)
{
    if (dtype == VQ_F16) return (double)vq_f16_to_f32(vq_f32_to_f16((float)s));
    if (dtype == VQ_BF16) { /* what f16 holds too, since packed files have either */
        const float brief = vq_bf16_to_f32(vq_f32_to_bf16((float)s));
        return (double)(brief > 65504 ? brief : vq_f16_to_f32(vq_f32_to_f16(brief)));
    }
    return (double)(float)s;
}

/* f32 arithmetic done in f64 and rounded after each operation: the same numbers. */
static void expect_group(const vq_grid_config *c, const double *w, int64_t n, double *s, double *z)
{
    double low = w[0], high = w[0], qmax = (1 << c->bits) - 1;
    for (int64_t i = 0; i < n; i++) low = fmin(low, w[i]), high = fmax(high, w[i]);
    if (c->include_zero || c->symmetric) low = fmin(low, 0), high = fmax(high, 0);
    if (c->symmetric) {
        high = fmax(-low, high);
        if (low < 0) low = -high;
    }
    if (c->include_zero || c->symmetric) {
        if (low == 0 && high == 0) low = -1, high = 1;
        *s = (double)(float)((double)(float)(high - low) / qmax);
    } else {
        *s = (double)(float)((double)(float)(high - low) / qmax);
        if (*s == 0) *s = 1;
    }
    *s = round_to(*s, c->scale_dtype);
    if (*s == 0) *s = c->scale_dtype == VQ_F32 ? 0x1p-149 : 0x1p-24;
    *z = c->symmetric ? (qmax + 1) / 2 : rint((double)(float)(-low / *s));
    if (c->include_zero || c->symmetric) *z = fmax(0, fmin(*z, qmax));
}

static int base_at(const vq_quant *q, int64_t i)
{
    return int_at(&q->base, IN, i);
}

static double clamp(double x, double qmax)
{
    return fmax(0, fmin(x, qmax));
}

static void check_case(const vq_grid_config *c, vq_dtype w_dtype)
{
    size_t mark = vq_arena_mark(&arena);
    float f32[OUT * IN];
    double expected[OUT * IN];
    fill(f32, c->bits);
    vq_tensor w, rest, rounded;
    vq_quant q;
    assert_int_equal(vq_tensor_new(&arena, VQ_HOST, w_dtype, VQ_DIMS(OUT, IN), &w), VQ_OK);
    assert_int_equal(vq_convert(w.data, w_dtype, f32, VQ_F32, OUT * IN), VQ_OK);
    assert_int_equal(vq_convert(expected, VQ_F64, w.data, w_dtype, OUT * IN), VQ_OK);
    assert_int_equal(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(OUT, IN), &rest), VQ_OK);
    assert_int_equal(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(OUT, IN), &rounded), VQ_OK);
    size_t before = vq_arena_mark(&arena);
    assert_int_equal(vq_grid_alloc(&be, &q, &arena, c, OUT, IN), VQ_OK);
    size_t used = vq_arena_mark(&arena) - before, planned = vq_grid_bytes(c, OUT, IN);
    assert_in_range(used, planned, planned + 3 * VQ_ALIGN); /* ASan's gaps */
    assert_int_equal(vq_grid_make(&be, &q, &rest, &w, NULL, c), VQ_OK);
    assert_int_equal(vq_grid_round(&be, &rounded, &w, &q), VQ_OK);

    int64_t width = c->group_size < 0 ? IN : VQ_MIN(c->group_size, IN);
    int64_t groups = vq_grid_groups(c, IN);
    double qmax = (1 << c->bits) - 1;
    assert_int_equal(groups, (IN + width - 1) / width);
    for (int64_t o = 0; o < OUT; o++) {
        for (int64_t g = 0; g < groups; g++) {
            double s, z;
            int64_t end = VQ_MIN((g + 1) * width, IN), at = o * groups + g;
            expect_group(c, expected + o * IN + g * width, end - g * width, &s, &z);
            assert_true((double)((float *)q.scale.data)[at] == s);
            assert_true((double)((float *)q.zero.data)[at] == z);
            for (int64_t i = o * IN + g * width; i < o * IN + end; i++) {
                double u = (double)(float)(expected[i] / s), below = floor(u);
                double r = (double)((float *)rest.data)[i];
                assert_true(r == (double)(float)(u - below) && r >= 0 && r <= 1);
                assert_true(base_at(&q, i) == fmax(-1, fmin(below + z, qmax)));
                for (double t = 0; t <= 1; t += 0.25)
                    assert_true(clamp(base_at(&q, i) + t, qmax) == clamp(below + z + t, qmax));
                double nearest = s * (clamp(rint(u) + z, qmax) - z);
                assert_true((double)((float *)rounded.data)[i] == (double)(float)nearest);
            }
        }
    }
    vq_arena_reset(&arena, mark);
}

static void test_grid_equals_formulas(void **state)
{
    (void)state;
    const int bits[] = {2, 3, 4, 7, 8};
    const int64_t group_sizes[] = {-1, 8, 5, 1, 100};
    const vq_dtype weights[] = {VQ_F32, VQ_F16, VQ_BF16};
    for (int b = 0; b < VQ_COUNT(bits); b++)
        for (int g = 0; g < VQ_COUNT(group_sizes); g++)
            for (int kind = 0; kind < 4; kind++)
                for (int w = 0; w < VQ_COUNT(weights); w++)
                    for (int s = 0; s < VQ_COUNT(weights); s++) {
                        vq_grid_config c = {.bits = bits[b],
                                            .group_size = group_sizes[g],
                                            .symmetric = kind & 1,
                                            .include_zero = kind & 2,
                                            .scale_dtype = weights[s]};
                        check_case(&c, weights[w]);
                    }
}

/* sum |s (q - z) - w|^2.4 of one group on its grid. */
static double error_of(const vq_quant *q, int64_t o, int64_t g, const double *w)
{
    const int64_t groups = q->scale.dim[1], n = VQ_MIN(q->group_size, IN - g * q->group_size);
    const double s = (double)((float *)q->scale.data)[o * groups + g];
    const double z = (double)((float *)q->zero.data)[o * groups + g], qmax = (1 << q->bits) - 1;
    double error = 0;
    for (int64_t i = 0; i < n; i++) {
        const double x = w[o * IN + g * q->group_size + i];
        error += pow(fabs(s * (clamp(rint(x / s) + z, qmax) - z) - x), 2.4);
    }
    return error;
}

/* Searched scales lie within a fifth of the range's and the whole of it, in scale_dtype, and round
 * no worse; at 2 bits most rows get a better one. */
static void test_search(void **state)
{
    (void)state;
    static const vq_dtype dtypes[] = {VQ_F32, VQ_F16, VQ_BF16};
    static const int64_t group_sizes[] = {-1, 8, 100};
    float f32[OUT * IN];
    double w[OUT * IN];
    int64_t better = 0, all = 0;
    for (int i = 0; i < 3 * 3 * 2; i++) {
        vq_grid_config c = {.bits = 2 + i % 2,
                            .group_size = group_sizes[i / 2 % 3],
                            .symmetric = i % 2,
                            .include_zero = true,
                            .scale_dtype = dtypes[i / 6]};
        vq_tensor t, rest;
        vq_quant whole, part;
        vq_arena_reset(&arena, 0);
        fill(f32, c.bits);
        t = vq_tensor_2d(f32, VQ_F32, OUT, IN);
        assert_int_equal(vq_convert(w, VQ_F64, f32, VQ_F32, OUT * IN), VQ_OK);
        assert_int_equal(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(OUT, IN), &rest), VQ_OK);
        assert_int_equal(vq_grid_alloc(&be, &whole, &arena, &c, OUT, IN), VQ_OK);
        assert_int_equal(vq_grid_alloc(&be, &part, &arena, &c, OUT, IN), VQ_OK);
        assert_int_equal(vq_grid_make(&be, &whole, &rest, &t, NULL, &c), VQ_OK);
        c.search = true;
        assert_int_equal(vq_grid_make(&be, &part, &rest, &t, NULL, &c), VQ_OK);
        for (int64_t g = 0; g < OUT * vq_grid_groups(&c, IN); g++) {
            const int64_t o = g / vq_grid_groups(&c, IN), at = g % vq_grid_groups(&c, IN);
            const double s = (double)((float *)part.scale.data)[g];
            const double s_whole = (double)((float *)whole.scale.data)[g];
            const double before = error_of(&whole, o, at, w), after = error_of(&part, o, at, w);
            assert_true(s == round_to(s, c.scale_dtype) && s <= s_whole);
            assert_true(s >= 0.2 * s_whole || o == 6); /* subnormal in f16 */
            assert_true(after <= before * (1 + 1e-5));
            better += after < 0.99 * before;
            all++;
        }
    }
    assert_in_range(better, all / 3, all);
}

/* Makes the grid of a [4, IN] of 0.1 with one other value; the status. */
static vq_status make_with(float value, int64_t row, int64_t column, vq_dtype scale_dtype,
                           bool search, vq_quant *q)
{
    static float data[4 * IN], rest_data[4 * IN];
    for (int64_t i = 0; i < 4 * IN; i++) data[i] = 0.1f;
    data[row * IN + column] = value;
    vq_tensor w = vq_tensor_2d(data, VQ_F32, 4, IN), rest = vq_tensor_2d(rest_data, VQ_F32, 4, IN);
    w.name = "layers.7.mlp.down_proj.weight";
    vq_grid_config c = {.bits = 4,
                        .group_size = -1,
                        .include_zero = true,
                        .scale_dtype = scale_dtype,
                        .search = search};
    vq_arena_reset(&arena, 0);
    assert_int_equal(vq_grid_alloc(&be, q, &arena, &c, 4, IN), VQ_OK);
    return vq_grid_make(&be, q, &rest, &w, NULL, &c);
}

static void test_not_finite(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    vq_quant q;
    for (int i = 0; i < 2 * VQ_COUNT(bad); i++) {
        assert_int_equal(make_with(bad[i / 2], 3, 11, VQ_F32, i % 2, &q), VQ_ENOTFINITE);
        const char *message = vq_error_message();
        assert_non_null(strstr(message, "layers.7.mlp.down_proj.weight: row 3, column 11"));
        assert_non_null(strstr(message, "expected a finite number"));
        assert_non_null(strstr(message, "get it again"));
    }
}

static void test_scale_out_of_range(void **state)
{
    (void)state;
    vq_quant q;
    assert_int_equal(make_with(1e7f, 2, 0, VQ_F16, false, &q), VQ_EUNSUPPORTED);
    assert_non_null(strstr(vq_error_message(), "layers.7.mlp.down_proj.weight: row 2, group 0"));
    assert_non_null(strstr(vq_error_message(), "Set grid.scale_dtype to f32 or bf16"));
    assert_int_equal(make_with(1e7f, 2, 0, VQ_BF16, false, &q), VQ_OK);
    vq_error_clear();
}

/* Scales down to the least of f16 are exact in both types. */
static void test_bf16_scales_are_f16_scales(void **state)
{
    (void)state;
    const vq_grid_config c = {
        .bits = 4, .group_size = 1, .include_zero = true, .scale_dtype = VQ_BF16};
    enum { N = 64 };
    float weights[N], rest_data[N];
    for (int i = 0; i < N; i++) weights[i] = (1 + (float)i / N) * ldexpf(1, i - 46);
    const vq_tensor w = vq_tensor_2d(weights, VQ_F32, 1, N);
    vq_tensor rest = vq_tensor_2d(rest_data, VQ_F32, 1, N);
    vq_quant q;
    vq_arena_reset(&arena, 0);
    assert_int_equal(vq_grid_alloc(&be, &q, &arena, &c, 1, N), VQ_OK);
    assert_int_equal(vq_grid_make(&be, &q, &rest, &w, NULL, &c), VQ_OK);
    for (int i = 0; i < N; i++) {
        const float s = ((const float *)q.scale.data)[i];
        assert_true(s > 0 && s == vq_bf16_to_f32(vq_f32_to_bf16(s)));
        assert_true(s == vq_f16_to_f32(vq_f32_to_f16(s)));
        assert_true(fabsf(s * 15 - weights[i]) <= fmaxf(weights[i] * 0x1p-8f, 15 * 0x1p-25f) ||
                    s == 0x1p-24f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grid_equals_formulas),
        cmocka_unit_test(test_search),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_scale_out_of_range),
        cmocka_unit_test(test_bf16_scales_are_f16_scales),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
