/* test_codebook - logits, indices and counts of one layer's code table. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "arenas.h"
#include "codebook.h"
#include "cpu_backend.h"
#include "error.h"
#include "log.h"
#include "rng.h"

static vq_backend be;

static int setup(void **state)
{
    vq_log_init(VQ_LOG_WARN, 0);
    return open_arenas(state) || vq_cpu_open(&be, 2);
}

static int teardown(void **state)
{
    vq_cpu_close(&be);
    return close_arenas(state);
}

/* A residual: uniform in [0, 1], with the ends, the middle and its neighbours first. */
static vq_tensor random_rest(int64_t out, int64_t in)
{
    const float first[] = {0, 1, 0.5f, nextafterf(0.5f, 0), nextafterf(0.5f, 1), 0x1p-30f};
    vq_tensor t;
    assert_int_equal(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(out, in), &t), VQ_OK);
    for (int64_t i = 0; i < out * in; i++)
        ((float *)t.data)[i] =
            i < VQ_COUNT(first) ? first[i] : (float)vq_rng_uniform(4, 4, (uint64_t)i);
    t.name = "layers.0.mlp.up_proj.weight";
    return t;
}

static vq_codebook_config config(int64_t K, int64_t D)
{
    return (vq_codebook_config){
        .K = K, .D = D, .kmeans = {.iters = 8, .seed = 1234, .max_points_per_centroid = 256}};
}

static int64_t index_at(const vq_tensor *idx, int64_t i)
{
    return idx->dtype == VQ_U16 ? ((uint16_t *)idx->data)[i] : ((uint32_t *)idx->data)[i];
}

static void test_logits_invert_h(void **state)
{
    (void)state;
    vq_arena_reset(&arena, 0);
    vq_tensor rest = random_rest(13, 31), logits;
    int64_t n = 13 * 31, n_vec = (n + 7) / 8;
    assert_int_equal(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(n_vec, 8), &logits), VQ_OK);
    assert_int_equal(vq_codebook_logits(&logits, &rest), VQ_OK);
    const float *a = logits.data, *r = rest.data;
    for (int64_t i = 0; i < n; i++) {
        double h = fmax(0, fmin(1.2 / (1 + exp(-(double)a[i])) - 0.1, 1));
        assert_true(fabs(h - (double)r[i]) < 1e-6);
        assert_true((a[i] >= 0) == (r[i] >= 0.5f));
        assert_true(fabs((double)a[i]) <= 2.3979);
    }
    for (int64_t i = n; i < n_vec * 8; i++) assert_true(a[i] == 0);
    assert_true(a[0] == -a[1] && fabsf(a[0] + 2.3978953f) < 1e-6f);
    assert_true(a[2] == 0 && a[3] < 0 && a[4] > 0);

    float outside[] = {-0.5f, 1.5f}, inside[2];
    vq_tensor o = vq_tensor_1d(outside, VQ_F32, 2), l = vq_tensor_2d(inside, VQ_F32, 1, 2);
    assert_int_equal(vq_codebook_logits(&l, &o), VQ_OK);
    assert_true(inside[0] == a[0] && inside[1] == a[1]);
}

static void check_build(int64_t out, int64_t in, int64_t K, int64_t D, bool round_f16)
{
    vq_arena_reset(&arena, 0);
    vq_tensor rest = random_rest(out, in), logits;
    vq_codebook_config c = config(K, D);
    c.round_f16 = round_f16;
    vq_codebook cb;
    int64_t n = out * in, n_vec = vq_codebook_vectors(&c, n), K_used = vq_codebook_codes(&c, n);
    assert_int_equal(n_vec, (n + D - 1) / D);
    assert_int_equal(K_used, VQ_MIN(K, n_vec));
    assert_int_equal(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(n_vec, D), &logits), VQ_OK);
    assert_int_equal(vq_codebook_logits(&logits, &rest), VQ_OK);

    assert_int_equal(vq_codebook_alloc(&cb, &arena, &c, n), VQ_OK);
    scratch.peak_bytes = 0;
    assert_int_equal(vq_codebook_build(&be, &scratch, &cb, &rest, NULL, &c), VQ_OK);
    assert_int_equal(vq_arena_mark(&scratch), 0);
    const size_t planned = vq_codebook_scratch_bytes(&c, n);
    assert_in_range(scratch.peak_bytes, planned, planned + 8 * VQ_ALIGN); /* gaps of 8 blocks */

    const float *codes = cb.codes.data, *a = logits.data;
    uint64_t total = 0;
    double sum = 0;
    for (int64_t i = 0; i < K_used * D; i++) {
        total += ((uint32_t *)cb.counts.data)[i];
        if (round_f16) assert_true(codes[i] == vq_f16_to_f32(vq_f32_to_f16(codes[i])));
    }
    assert_true(total == (uint64_t)n);
    uint32_t *counts = cb.counts.data;
    for (int64_t p = 0; p < n; p++) {
        int64_t at = index_at(&cb.idx, p / D) * D + p % D;
        counts[at]--;
        sum += ((double)a[p] - (double)codes[at]) * ((double)a[p] - (double)codes[at]);
    }
    for (int64_t i = 0; i < K_used * D; i++) assert_int_equal(counts[i], 0);
    if (n % D == 0 && !round_f16) assert_true(fabs(sum - cb.fit.objective) <= 1e-5 * sum + 1e-4);
}

static void test_build(void **state)
{
    (void)state;
    check_build(24, 40, 16, 8, false);
    check_build(24, 40, 16, 8, true);
    check_build(7, 13, 5, 8, false);  /* the last vector is padded, others straddle rows */
    check_build(7, 13, 5, 3, true);   /* 91 = 30 * 3 + 1 */
    check_build(3, 5, 4096, 8, true); /* two vectors, two codes */
    check_build(1, 1, 1, 1, false);
}

static void test_fewer_vectors_than_codes(void **state)
{
    (void)state;
    vq_arena_reset(&arena, 0);
    vq_tensor rest = random_rest(4, 8), start;
    vq_codebook_config c = config(16, 8);
    vq_codebook cb;
    assert_int_equal(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(16, 8), &start), VQ_OK);
    memset(start.data, 0, vq_tensor_bytes(&start));
    assert_int_equal(vq_codebook_alloc(&cb, &arena, &c, 32), VQ_OK);
    assert_int_equal(cb.codes.dim[0], 4);
    assert_int_equal(vq_codebook_build(&be, &scratch, &cb, &rest, &start, &c), VQ_OK);
    assert_true(cb.fit.objective == 0);
}

static void test_wide_indices(void **state)
{
    (void)state;
    assert_int_equal(vq_codebook_idx_dtype(65536), VQ_U16);
    assert_int_equal(vq_codebook_idx_dtype(65537), VQ_U32);
    uint32_t idx[] = {2, 0, 2, 1}, counts[3 * 4];
    vq_tensor i = vq_tensor_1d(idx, VQ_U32, 4), c = vq_tensor_2d(counts, VQ_U32, 3, 4);
    assert_int_equal(vq_codebook_count(&c, &i, 14), VQ_OK);
    const uint32_t expected[] = {1, 1, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2};
    assert_memory_equal(counts, expected, sizeof expected);
    idx[1] = 3; /* an index from a damaged file is not used */
    assert_int_equal(vq_codebook_count(&c, &i, 14), VQ_EINTERNAL);
    vq_error_clear();
}

static void test_shared_start(void **state)
{
    (void)state;
    vq_arena_reset(&arena, 0);
    vq_tensor rest = random_rest(64, 96), start;
    vq_codebook_config c = config(32, 8);
    c.kmeans.iters = 30;
    vq_codebook own, shared;
    assert_int_equal(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(32, 8), &start), VQ_OK);
    assert_int_equal(vq_codebook_alloc(&own, &arena, &c, 64 * 96), VQ_OK);
    assert_int_equal(vq_codebook_alloc(&shared, &arena, &c, 64 * 96), VQ_OK);
    assert_int_equal(vq_codebook_start(&be, &scratch, &start, &rest, &c), VQ_OK);
    assert_int_equal(vq_codebook_build(&be, &scratch, &own, &rest, NULL, &c), VQ_OK);
    assert_memory_equal(own.codes.data, start.data, vq_tensor_bytes(&start));
    c.kmeans.iters = 0; /* only assigned: the codes stay those of the start */
    assert_int_equal(vq_codebook_build(&be, &scratch, &shared, &rest, &start, &c), VQ_OK);
    assert_memory_equal(shared.codes.data, start.data, vq_tensor_bytes(&start));
    assert_true(shared.fit.objective == own.fit.objective);
}

static void test_error_names_the_layer(void **state)
{
    (void)state;
    vq_arena_reset(&arena, 0);
    vq_tensor rest = random_rest(64, 96), start;
    vq_codebook_config c = config(32, 8);
    c.kmeans.faiss = true;
    vq_codebook cb;
    assert_int_equal(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(32, 8), &start), VQ_OK);
    memset(start.data, 0, vq_tensor_bytes(&start));
    assert_int_equal(vq_codebook_alloc(&cb, &arena, &c, 64 * 96), VQ_OK);
    assert_int_equal(vq_codebook_build(&be, &scratch, &cb, &rest, &start, &c), VQ_EUNSUPPORTED);
    assert_non_null(strstr(vq_error_message(), "layers.0.mlp.up_proj.weight: kmeans.engine"));
    vq_error_clear();
    vq_arena_reset(&scratch, 0);
}

/* Hard rounding by the fitted codes is that of the residual itself, also in the last, padded
 * vector; scratch stays within its bound where all vectors have the same signs. */
static void test_by_sign(void **state)
{
    (void)state;
    const int64_t out = 31, in = 45, n = out * in;
    for (int same = 0; same < 2; same++) {
        vq_arena_reset(&arena, 0);
        vq_tensor rest = random_rest(out, in);
        vq_codebook_config c = config(96, 4);
        c.kmeans.by_sign = true;
        vq_codebook cb;
        for (int64_t p = 0; p < n && same; p++) ((float *)rest.data)[p] *= 0.49f;
        assert_int_equal(vq_codebook_alloc(&cb, &arena, &c, n), VQ_OK);
        scratch.peak_bytes = 0;
        assert_int_equal(vq_codebook_build(&be, &scratch, &cb, &rest, NULL, &c), VQ_OK);
        assert_in_range(scratch.peak_bytes, 1, vq_codebook_scratch_bytes(&c, n) + 10 * VQ_ALIGN);
        for (int64_t p = 0; p < n; p++) {
            const int64_t at = index_at(&cb.idx, p / c.D) * c.D + p % c.D;
            assert_true((((float *)cb.codes.data)[at] >= 0) == (((float *)rest.data)[p] >= 0.5f));
        }
        assert_int_equal(cb.fit.patterns, same ? 2 : 16); /* what pads the last counts as >= 0 */
    }
}

/* The same codes, 1.5 times as far from 0 but within h^-1's range; signs and indices stay. */
static void test_sharpen(void **state)
{
    (void)state;
    vq_arena_reset(&arena, 0);
    vq_tensor rest = random_rest(64, 96);
    vq_codebook_config c = config(600, 8);
    vq_codebook plain, sharp;
    int64_t at_the_end = 0;
    assert_int_equal(vq_codebook_alloc(&plain, &arena, &c, 64 * 96), VQ_OK);
    assert_int_equal(vq_codebook_alloc(&sharp, &arena, &c, 64 * 96), VQ_OK);
    assert_int_equal(vq_codebook_build(&be, &scratch, &plain, &rest, NULL, &c), VQ_OK);
    c.sharpen = 0.5;
    assert_int_equal(vq_codebook_build(&be, &scratch, &sharp, &rest, NULL, &c), VQ_OK);
    assert_memory_equal(sharp.idx.data, plain.idx.data, vq_tensor_bytes(&plain.idx));
    for (int64_t i = 0; i < 600 * 8; i++) {
        const float a = ((float *)plain.codes.data)[i], b = ((float *)sharp.codes.data)[i];
        const float end = logf(11), expected = fmaxf(-end, fminf(1.5f * a, end));
        assert_true(fabsf(b - expected) < 1e-6f && (b >= 0) == (a >= 0));
        at_the_end += fabsf(b) > 2.3978f;
    }
    assert_in_range(at_the_end, 1, 600 * 8 - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_invert_h),
        cmocka_unit_test(test_build),
        cmocka_unit_test(test_fewer_vectors_than_codes),
        cmocka_unit_test(test_wide_indices),
        cmocka_unit_test(test_shared_start),
        cmocka_unit_test(test_by_sign),
        cmocka_unit_test(test_sharpen),
        cmocka_unit_test(test_error_names_the_layer),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
