/* test_pack - values packed into words: by hand, and there and back for every width and length. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "pack.h"
#include "rng.h"

#define MAX 100
#define MARK 0xdeadbeefu

static void words_made_by_hand(void **state)
{
    (void)state;
    static const struct {
        int bits, n;
        uint8_t value[33];
        uint32_t word[4];
    } cases[] = {
        {2, 5, {1, 2, 3, 0, 1}, {0x139}},
        {4, 9, {1, 2, 3, 4, 5, 6, 7, 8, 15}, {0x87654321, 0xf}},
        {8, 5, {0x12, 0x34, 0x56, 0x78, 0x9a}, {0x78563412, 0x9a}},
        /* Value 10 has two bits in word 0 and one in word 1, value 21 one in word 1 and two in 2.
         */
        {3, 33, {[10] = 7}, {0xc0000000, 0x1}},
        {3, 33, {[21] = 7}, {0, 0x80000000, 0x3}},
        {3, 33, {[10] = 1, [21] = 4, [31] = 5, [32] = 6}, {0x40000000, 0, 0xa0000002, 0x6}},
        {3, 11, {7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7}, {0xffffffff, 0x1}},
        {8, 0, {0}, {0}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const int64_t n = cases[c].n, words = vq_pack_words(n, cases[c].bits);
        uint32_t word[5] = {MARK, MARK, MARK, MARK, MARK};
        uint8_t value[33];
        vq_pack(word, 1, cases[c].value, n, cases[c].bits);
        for (int64_t i = 0; i < words; i++)
            if (word[i] != cases[c].word[i])
                fail_msg("case %zu: word %d is %08x, expected %08x", c, (int)i, word[i],
                         cases[c].word[i]);
        assert_int_equal(word[words], MARK);
        vq_unpack(value, word, 1, n, cases[c].bits);
        assert_memory_equal(value, cases[c].value, (size_t)n);
    }
}

static void there_and_back(void **state)
{
    (void)state;
    static const int64_t strides[] = {1, 3};
    for (int bits = 1; bits <= 8; bits++)
        for (int64_t n = 0; n <= MAX; n++)
            for (int s = 0; s < 2; s++) {
                uint8_t value[MAX], back[MAX + 1];
                uint32_t word[3 * MAX];
                const int64_t words = vq_pack_words(n, bits);
                assert_true(words * 32 >= n * bits && (words - 1) * 32 < n * bits);
                for (int64_t i = 0; i < n; i++)
                    value[i] =
                        (uint8_t)(vq_rng_bits(7, (uint64_t)bits, (uint64_t)i) >> (64 - bits));
                for (int i = 0; i < VQ_COUNT(word); i++) word[i] = MARK;
                vq_pack(word, strides[s], value, n, bits);
                for (int64_t i = 0; i < VQ_COUNT(word); i++)
                    if (i % strides[s] != 0 || i >= words * strides[s])
                        assert_int_equal(word[i], MARK);
                if (words > 0 && words * 32 > n * bits)
                    assert_int_equal(word[(words - 1) * strides[s]] >> (n * bits % 32), 0);
                back[n] = 0xa5;
                vq_unpack(back, word, strides[s], n, bits);
                assert_memory_equal(back, value, (size_t)n);
                assert_int_equal(back[n], 0xa5);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(words_made_by_hand),
                                       cmocka_unit_test(there_and_back)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
