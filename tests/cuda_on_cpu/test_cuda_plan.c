/* test_cuda_plan - how the kernels cut their work: every weight, code and token once, within the
 * memory that there is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda_plan.h"

#define A100_SHARED ((size_t)163 << 10)
#define MULTIPROCESSORS 132
#define SMALL_SHARED ((size_t)99 << 10) /* compute capability 8.6, 8.9 */

static void check_round_bwd(int64_t n, int64_t K, int64_t D, size_t shared)
{
    const vq_cuda_round_plan p = vq_cuda_plan_round_bwd(n, K, D, shared, MULTIPROCESSORS);
    assert_true(p.chunks >= 1 && p.chunks <= MULTIPROCESSORS && p.chunk % VQ_CUDA_ROUND_TURN == 0);
    assert_true(p.chunks * p.chunk >= n && (p.chunks - 1) * p.chunk < VQ_MAX(n, 1));
    assert_true(p.ranges * p.codes >= K && (p.ranges - 1) * p.codes < K);
    assert_true(p.shared_bytes <= shared && p.shared_bytes == (size_t)(p.codes * D * 4));
    assert_true(p.partial == p.chunks * K * D);
}

static void test_round_bwd(void **state)
{
    (void)state;
    const int64_t weights[] = {1, 16384, 16385, 576 * 1536, 4096 * 11008, (int64_t)28672 * 8192};
    const int64_t codes[][2] = {{1, 1}, {50, 7}, {4096, 8}, {4097, 8}, {65536, 8}, {1, 25000}};
    for (int i = 0; i < VQ_COUNT(weights); i++)
        for (int j = 0; j < VQ_COUNT(codes); j++) {
            check_round_bwd(weights[i], codes[j][0], codes[j][1], A100_SHARED);
            if (codes[j][1] < 25000)
                check_round_bwd(weights[i], codes[j][0], codes[j][1], SMALL_SHARED);
        }
    /* The paper's table fits one block of an A100 or H100, and two of a smaller card. */
    assert_int_equal(vq_cuda_plan_round_bwd(4096 * 11008, 4096, 8, A100_SHARED, 108).ranges, 1);
    assert_int_equal(vq_cuda_plan_round_bwd(4096 * 11008, 4096, 8, SMALL_SHARED, 128).ranges, 2);
    assert_true(vq_cuda_plan_round_bwd(4096 * 11008, 4096, 8, A100_SHARED, 108).chunks > 100);
    /* One code's numbers do not fit: the caller says so. */
    assert_int_equal(vq_cuda_plan_round_bwd(1 << 20, 4, 1 << 16, A100_SHARED, 108).codes, 0);
}

static void test_round_fwd(void **state)
{
    (void)state;
    const int64_t table = 4096 * 8 * 4;
    assert_true(vq_cuda_round_shares_table(4096 * 11008, table, A100_SHARED));
    assert_false(vq_cuda_round_shares_table(4096 * 11008, table, SMALL_SHARED));
    assert_false(vq_cuda_round_shares_table(576 * 1536, table, A100_SHARED));
    assert_true(vq_cuda_round_makes_table(4096 * 11008));
    assert_false(vq_cuda_round_makes_table(576 * 1536));
}

static void test_loss_tokens(void **state)
{
    (void)state;
    const int64_t tokens[] = {1, 63, 64, 65, 2047, 2048, 8192};
    const int64_t logits[] = {1, 2, 1000, 64000, 304000, (int64_t)1 << 30};
    for (int i = 0; i < VQ_COUNT(tokens); i++)
        for (int j = 0; j < VQ_COUNT(logits); j++) {
            const int64_t t = vq_cuda_loss_tokens(tokens[i], logits[j]);
            assert_true(t > 0 && t % 64 == 0);
            assert_true(t <= 256 || t * logits[j] <= ((int64_t)32 << 20) + 64 * logits[j]);
        }
    assert_int_equal(vq_cuda_loss_tokens(2048, 64000), 512);  /* LLaMA: teacher and student */
    assert_int_equal(vq_cuda_loss_tokens(2048, 303872), 256); /* Qwen3 */
    assert_int_equal(vq_cuda_loss_tokens(128, 303872), 128);
}

static void test_sums(void **state)
{
    (void)state;
    assert_int_equal(vq_cuda_sum_blocks(0), 1);
    assert_int_equal(vq_cuda_sum_blocks(1), 1);
    assert_int_equal(vq_cuda_sum_blocks(4097), 2);
    assert_int_equal(vq_cuda_sum_blocks((int64_t)1 << 40), VQ_CUDA_SUM_BLOCKS);
    /* count numbers below 2^fixed_bits add up to at most 2^bits. */
    for (int64_t count = 1; count < (int64_t)1 << 40; count = count * 3 / 2 + 1)
        assert_true((double)count * (double)((int64_t)1 << vq_cuda_fixed_bits(62, count)) <=
                    0x1p62);
    assert_int_equal(vq_cuda_fixed_bits(62, 1), 62);
    assert_int_equal(vq_cuda_fixed_bits(62, 1 << 20), 42);
}

static void test_syrk(void **state)
{
    (void)state;
    assert_int_equal(vq_cuda_syrk_columns(37), 37);
    assert_int_equal(vq_cuda_syrk_columns(11008), 2048);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_bwd),
                                       cmocka_unit_test(test_round_fwd),
                                       cmocka_unit_test(test_loss_tokens),
                                       cmocka_unit_test(test_sums), cmocka_unit_test(test_syrk)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
