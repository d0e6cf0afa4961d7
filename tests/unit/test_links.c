/* test_links - which ranks share a GPU, and how neighbouring stages are paired for links of two. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "topo.h"

static void test_device(void **state)
{
    (void)state;
    assert_int_equal(vq_topo_device(0, 1), 0);
    assert_int_equal(vq_topo_device(3, 1), 0); /* the launcher shows each rank just one */
    assert_int_equal(vq_topo_device(3, 8), 3);
    assert_int_equal(vq_topo_device(9, 8), 1);
}

static void test_shared_gpu(void **state)
{
    (void)state;
    const uint64_t own[] = {5, 9, 7, 1}, shared[] = {5, 9, 7, 9, 5};
    int a = -1, b = -1;
    assert_false(vq_topo_shares_gpu(own, 4, &a, &b));
    assert_false(vq_topo_shares_gpu(own, 1, &a, &b));
    assert_true(vq_topo_shares_gpu(shared, 5, &a, &b));
    assert_int_equal(a, 0);
    assert_int_equal(b, 4);
}

/* Every boundary between stages of a replica has exactly one pair, of the two ranks beside it. */
static void test_pairs(void **state)
{
    (void)state;
    for (int n_stages = 1; n_stages <= 9; n_stages++)
        for (int n_replicas = 1; n_replicas <= 3; n_replicas++) {
            int members[2][32] = {{0}};
            for (int rank = 0; rank < n_stages * n_replicas; rank++) {
                const vq_topo topo = {.n_stages = n_stages,
                                      .n_replicas = n_replicas,
                                      .stage = rank % n_stages,
                                      .replica = rank / n_stages};
                int links = 0;
                for (int parity = 0; parity < 2; parity++) {
                    int place;
                    const int pair = vq_topo_pair(&topo, parity, &place);
                    if (pair < 0) continue;
                    links++;
                    members[parity][pair] += 1 + place; /* one of each place: 1 + 2 */
                    assert_int_equal(pair, rank - place);
                }
                assert_int_equal(links, (topo.stage > 0) + (topo.stage < n_stages - 1));
            }
            for (int rank = 0; rank < n_stages * n_replicas; rank++) {
                const bool has_next = rank % n_stages < n_stages - 1;
                const int parity = rank % n_stages % 2;
                assert_int_equal(members[parity][rank], has_next ? 3 : 0);
                assert_int_equal(members[1 - parity][rank], 0);
            }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_device),
                                       cmocka_unit_test(test_shared_gpu),
                                       cmocka_unit_test(test_pairs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
