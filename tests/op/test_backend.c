/* test_backend - the checks in front of the slots, and the CPU's memory slots. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <omp.h>

#include "cpu_backend.h"
#include "error.h"

static vq_backend be;
static float buffer[8][64];

static vq_tensor matrix(int i, int64_t rows, int64_t cols)
{
    vq_tensor t = vq_tensor_2d(buffer[i], VQ_F32, rows, cols);
    t.name = "probe";
    return t;
}

static vq_tensor vector(int i, int64_t n)
{
    return vq_tensor_1d(buffer[i], VQ_F32, n);
}

/* The call fails as our own bug, and its message holds all the parts given. */
#define FAILS(call, ...)                                                                           \
    do {                                                                                           \
        assert_int_equal(call, VQ_EINTERNAL);                                                      \
        const char *parts[] = {__VA_ARGS__, "report it"};                                          \
        for (int part_ = 0; part_ < VQ_COUNT(parts); part_++)                                      \
            if (!strstr(vq_error_message(), parts[part_]))                                         \
                fail_msg("no \"%s\" in: %s", parts[part_], vq_error_message());                    \
    } while (0)

static void test_shapes(void **state)
{
    (void)state;
    vq_tensor c = matrix(0, 2, 3), a = matrix(1, 2, 4), b = matrix(2, 4, 3), bt = matrix(2, 3, 4);
    assert_int_equal(vq_gemm(&be, &c, &a, false, &b, false, 1, 0), VQ_OK);
    assert_int_equal(vq_gemm(&be, &c, &a, false, &bt, true, 1, 0), VQ_OK);
    FAILS(vq_gemm(&be, &c, &a, false, &bt, false, 1, 0), "gemm", "b (probe)", "f32 [3, 4]",
          "[4, 3]");
    FAILS(vq_gemm(&be, &c, &a, true, &b, false, 1, 0), "gemm", "a (probe)", "f32 [2, 4]");

    vq_tensor x = matrix(0, 4, 5), y = matrix(1, 4, 5), w = vector(2, 5), r = vector(3, 4);
    vq_tensor w6 = vector(2, 6);
    assert_int_equal(vq_rmsnorm_fwd(&be, &y, &r, &x, &w, 1e-5), VQ_OK);
    FAILS(vq_rmsnorm_fwd(&be, &y, &r, &x, &w6, 1e-5), "rmsnorm_fwd", "weight", "f32 [6]", "[5]");
    FAILS(vq_rmsnorm_fwd(&be, &y, &w, &x, &w, 1e-5), "rmsnorm_fwd", "rstd", "f32 [5]", "f32 [4]");
    FAILS(vq_layernorm_fwd(&be, &y, &r, &r, &x, &w, NULL, 1e-5), "layernorm_fwd", "bias",
          "missing");

    vq_tensor q = vq_tensor_4d(buffer[0], VQ_F32, 1, 4, 2, 2);
    vq_tensor k = vq_tensor_4d(buffer[1], VQ_F32, 1, 3, 2, 2);
    vq_tensor lse = vq_tensor_3d(buffer[2], VQ_F32, 1, 2, 4);
    FAILS(vq_attention_fwd(&be, &q, &lse, &q, &k, &k, 1), "k->dim[1] >= T");
}

static void test_types_and_places(void **state)
{
    (void)state;
    vq_tensor x = matrix(0, 4, 5), y = matrix(1, 4, 5), b = vector(2, 5);
    vq_tensor half = y, away = y, gaps = matrix(1, 4, 5), nothing = y;
    half.dtype = VQ_F16;
    FAILS(vq_add(&be, &x, &half), "add", "x (probe)", "f16 [4, 5]", "expected f32 [4, 5]");
    away.place = VQ_DEVICE;
    FAILS(vq_add(&be, &x, &away), "on the device", "expected it on the host");
    gaps.stride[0] = 6;
    FAILS(vq_add(&be, &x, &gaps), "gaps between its rows");
    nothing.data = NULL;
    FAILS(vq_add(&be, &x, &nothing), "has no data");
    b.dtype = VQ_I32;
    FAILS(vq_bias_add(&be, &x, &b), "bias", "i32 [5]", "expected f32 or f16 or bf16 or f64 [5]");

    vq_tensor table = matrix(2, 3, 5);
    int32_t numbers[4] = {0, 1, 2, 3};
    vq_tensor ids = vq_tensor_1d(numbers, VQ_I32, 4);
    assert_int_equal(vq_embed(&be, &x, &table, &ids, false), VQ_EINTERNAL);
    assert_non_null(strstr(vq_error_message(), "ids[3] is 3, expected 0 to 2"));
    double loss = 0;
    assert_int_equal(vq_head_nll(&be, &loss, NULL, &x, &table, &ids, 1), VQ_EINTERNAL);
    assert_non_null(strstr(vq_error_message(), "targets[3] is 3, expected -1 to 2"));
}

static void test_quant(void **state)
{
    (void)state;
    static uint8_t base[64];
    static uint32_t idx[64];
    vq_tensor w = matrix(0, 4, 6), codes = matrix(1, 3, 8);
    vq_quant q = {.base = vq_tensor_2d(base, VQ_U8, 4, 3),
                  .scale = matrix(2, 4, 2),
                  .zero = matrix(3, 4, 2),
                  .idx = vq_tensor_1d(idx, VQ_U32, 3),
                  .bits = 3,
                  .group_size = 4};
    assert_int_equal(vq_round_fwd(&be, &w, &q, &codes, VQ_HARD), VQ_OK);
    vq_quant bad = q;
    bad.group_size = 6;
    FAILS(vq_round_fwd(&be, &w, &bad, &codes, VQ_HARD), "round_fwd", "scale", "[4, 1]");
    bad = q;
    bad.bits = 8;
    FAILS(vq_round_fwd(&be, &w, &bad, &codes, VQ_HARD), "base", "u8 [4, 3]", "expected i16 [4, 6]");
    bad = q;
    bad.base = vq_tensor_2d(base, VQ_I8, 4, 6);
    FAILS(vq_round_fwd(&be, &w, &bad, &codes, VQ_HARD), "base", "i8 [4, 6]", "expected u8 [4, 3]");
    bad = q;
    bad.bits = 4;
    bad.base = vq_tensor_2d(base, VQ_I16, 4, 6);
    FAILS(vq_round_fwd(&be, &w, &bad, &codes, VQ_HARD), "base", "i16 [4, 6]", "expected i8 [4, 6]");
    FAILS(vq_grid_value(&be, &w, &bad.base, &bad), "ints", "i16 [4, 6]", "expected i8 [4, 6]");
    bad = q;
    bad.idx.data = NULL;
    assert_int_equal(vq_round_fwd(&be, &w, &bad, &codes, VQ_HARD), VQ_OK);
    vq_tensor few = matrix(1, 2, 8);
    FAILS(vq_round_fwd(&be, &w, &bad, &few, VQ_HARD), "codes", "f32 [2, 8]", "expected f32 [3, 8]");
    double loss = 0;
    vq_tensor counts = vq_tensor_2d(idx, VQ_U32, 3, 8);
    FAILS(vq_round_reg(&be, &loss, NULL, &codes, &counts, 1, 1), "beta > 1");
    vq_tensor scale = matrix(4, 4, 2), factor = matrix(5, 4, 2), other = matrix(5, 4, 1);
    assert_int_equal(vq_round_scale_fwd(&be, &scale, &q.scale, &factor, VQ_BF16), VQ_OK);
    FAILS(vq_round_scale_fwd(&be, &scale, &q.scale, &other, VQ_BF16), "round_scale_fwd", "factor",
          "f32 [4, 1]", "f32 [4, 2]");
    FAILS(vq_round_scale_bwd(&be, &other, &w, &q, &codes, &scale), "round_scale_bwd", "dfactor",
          "f32 [4, 1]", "f32 [4, 2]");
    vq_tensor wide = matrix(4, 4, 7);
    FAILS(vq_mse(&be, &loss, NULL, &w, &wide, 1), "mse", "target", "f32 [4, 7]", "f32 [4, 6]");
}

/* Ranks share cores: loops outside the backend's ops have no more threads than it. */
static void test_threads(void **state)
{
    (void)state;
    for (int n = 1; n <= 3; n++) {
        vq_backend with;
        assert_int_equal(vq_cpu_open(&with, n), VQ_OK);
        assert_int_equal(vq_cpu_thread_count(&with), n);
        assert_int_equal(omp_get_max_threads(), n);
        vq_cpu_close(&with);
    }
}

static void test_memory(void **state)
{
    (void)state;
    size_t free_bytes = 0, total_bytes = 0, before = 0, after = 0;
    const size_t bytes = (size_t)32 << 20;
    assert_int_equal(vq_mem_info(&be, &free_bytes, &total_bytes), VQ_OK);
    assert_true(free_bytes > 0 && free_bytes <= total_bytes);

    vq_arena big;
    void *block = NULL;
    assert_int_equal(vq_mem_peak(&be, &before), VQ_OK);
    assert_int_equal(vq_arena_init(&big, "big", 2 * (before + bytes)), VQ_OK);
    assert_int_equal(vq_arena_alloc(&big, before + bytes, &block), VQ_OK);
    memset(block, 1, before + bytes); /* more than there was room for under the peak */
    vq_arena_close(&big);
    assert_int_equal(vq_mem_peak(&be, &after), VQ_OK);
    assert_in_range(after, before + bytes, total_bytes);

    vq_tensor x = matrix(0, 4, 5), y = matrix(1, 4, 5), z = matrix(1, 5, 4);
    float host[20], back[20] = {0};
    for (int i = 0; i < 20; i++) host[i] = (float)i;
    assert_int_equal(vq_upload(&be, &x, host), VQ_OK);
    assert_int_equal(vq_copy(&be, &y, &x), VQ_OK);
    assert_int_equal(vq_download(&be, back, &y), VQ_OK);
    assert_memory_equal(host, back, sizeof host);
    /* The diagonal of x's first four columns to y's second column, and nothing else. */
    vq_tensor diagonal = matrix(0, 4, 1), column = matrix(1, 4, 1);
    diagonal.stride[0] = 6;
    column.data = (float *)column.data + 1;
    column.stride[0] = 5;
    assert_int_equal(vq_copy(&be, &column, &diagonal), VQ_OK);
    for (int i = 0; i < 20; i++)
        assert_true(buffer[1][i] == (i % 5 == 1 ? host[i / 5 * 6] : host[i]));
    assert_int_equal(vq_zero(&be, &y), VQ_OK);
    assert_int_equal(vq_sync(&be), VQ_OK);
    assert_true(buffer[1][7] == 0.0f);
    FAILS(vq_copy(&be, &z, &x), "copy", "dst (probe)", "f32 [5, 4]", "f32 [4, 5]");

    assert_true(vq_cpu_scratch_peak(&be) > 0);
}

static int open_backend(void **state)
{
    (void)state;
    return vq_cpu_open(&be, 0) == VQ_OK ? 0 : 1;
}

static int close_backend(void **state)
{
    (void)state;
    vq_cpu_close(&be);
    vq_cpu_close(&be); /* a second time does nothing */
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes),
                                       cmocka_unit_test(test_types_and_places),
                                       cmocka_unit_test(test_quant), cmocka_unit_test(test_threads),
                                       cmocka_unit_test(test_memory)};
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
