/* test_topo - which rank has what: cuts against every other way to cut, the choice of stages and
 * replicas, and what is said to a world that does not fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "expect.h"
#include "topo.h"

static vq_model_config model_of(int64_t N, int64_t V)
{
    return (vq_model_config){.family = VQ_LLAMA,
                             .N = N,
                             .E = 64,
                             .E_embed = 64,
                             .F = 128,
                             .H = 4,
                             .G = 4,
                             .S = 16,
                             .V = V};
}

/* Layers that cost as much as the head. */
static double head_of(const vq_model_config *c)
{
    return (double)(c->V * c->E_embed) / (double)vq_layer_weights(c);
}

/* --- cuts ------------------------------------------------------------------------------------ */

/* The least that the slowest of n stages can have of `layers` layers and the head. */
static double best_slowest(int64_t layers, int n, double head)
{
    double best = 1e30;
    if (n == 1) return (double)layers + head;
    for (int64_t own = 1; own <= layers - (n - 1); own++) {
        const double rest = best_slowest(layers - own, n - 1, head);
        best = VQ_MIN(best, VQ_MAX((double)own, rest));
    }
    return best;
}

static void test_cuts_are_the_best(void **state)
{
    (void)state;
    static const int64_t vocabularies[] = {16, 640, 2048, 5000};
    int64_t cut[16];
    for (int v = 0; v < VQ_COUNT(vocabularies); v++)
        for (int64_t N = 1; N <= 10; N++)
            for (int n = 1; n <= N; n++) {
                const vq_model_config c = model_of(N, vocabularies[v]);
                double slowest = 0;
                vq_topo_cut(&c, n, cut);
                assert_int_equal(cut[0], 0);
                assert_int_equal(cut[n], N);
                for (int s = 0; s < n; s++) {
                    if (cut[s + 1] <= cut[s])
                        fail_msg("%lld layers, stage %d of %d has none", (long long)N, s, n);
                    const double own = (double)(cut[s + 1] - cut[s]);
                    slowest = VQ_MAX(slowest, own + (s == n - 1 ? head_of(&c) : 0));
                }
                const double best = best_slowest(N, n, head_of(&c));
                if (slowest > best + 1e-12)
                    fail_msg("%lld layers, %d stages, head of %.2f layers: slowest stage %.2f, the "
                             "best cut has %.2f",
                             (long long)N, n, head_of(&c), slowest, best);
            }
}

static void test_head_counts_on_the_last(void **state)
{
    (void)state;
    int64_t cut[5];
    const vq_model_config c = model_of(12, 3 * 640); /* a layer has 64 x 640 weights */
    assert_true(head_of(&c) > 2.9 && head_of(&c) < 3.1);
    vq_topo_cut(&c, 3, cut);
    const int64_t wanted[] = {0, 5, 10, 12};
    assert_memory_equal(cut, wanted, sizeof wanted);
}

/* --- places ---------------------------------------------------------------------------------- */

static vq_config config_of(int64_t stages, int64_t replicas, int64_t batch)
{
    return (vq_config){.stages = stages, .replicas = replicas, .train.batch = batch};
}

static void test_every_rank_has_a_place(void **state)
{
    (void)state;
    const vq_model_config c = model_of(4, 64);
    const vq_config config = config_of(4, 3, 3);
    bool seen[4][3] = {{false}};
    for (int rank = 0; rank < 12; rank++) {
        vq_topo t;
        EXPECT_OK(vq_topo_make(&config, &c, rank, 12, &t));
        assert_int_equal(t.n_stages, 4);
        assert_int_equal(t.n_replicas, 3);
        assert_int_equal(vq_topo_rank(&t, t.stage, t.replica), rank);
        assert_int_equal(t.first, t.stage);
        assert_int_equal(t.last, t.stage + 1);
        assert_int_equal(vq_topo_is_last(&t), t.stage == 3);
        assert_false(seen[t.stage][t.replica]);
        seen[t.stage][t.replica] = true;
        /* Stages of a replica are neighbours: they share a node where they can. */
        if (t.stage > 0) assert_int_equal(vq_topo_rank(&t, t.stage - 1, t.replica), rank - 1);
    }
}

static void expect_choice(int64_t stages, int64_t replicas, int64_t batch, int size, int want_s,
                          int want_r)
{
    const vq_model_config c = model_of(8, 64);
    const vq_config config = config_of(stages, replicas, batch);
    vq_topo t;
    EXPECT_OK(vq_topo_make(&config, &c, 0, size, &t));
    if (t.n_stages != want_s || t.n_replicas != want_r)
        fail_msg("%d ranks, batch %lld: %d stages x %d replicas, expected %d x %d", size,
                 (long long)batch, t.n_stages, t.n_replicas, want_s, want_r);
}

static void test_choice(void **state)
{
    (void)state;
    expect_choice(0, 0, 1, 1, 1, 1);
    expect_choice(0, 0, 1, 4, 4, 1); /* one sequence: only a pipeline helps */
    expect_choice(0, 0, 4, 4, 1, 4);
    expect_choice(0, 0, 2, 8, 4, 2);
    expect_choice(0, 0, 3, 8, 4, 2); /* 3 does not divide 8 */
    expect_choice(0, 0, 64, 6, 1, 6);
    expect_choice(2, 0, 4, 8, 2, 4);
    expect_choice(0, 4, 4, 8, 2, 4);
    expect_choice(8, 2, 2, 16, 8, 2);
}

static void test_worlds_that_do_not_fit(void **state)
{
    (void)state;
    const vq_model_config c = model_of(4, 64);
    vq_topo t;
    vq_config config = config_of(3, 2, 2);
    EXPECT_ERROR(vq_topo_make(&config, &c, 0, 4, &t), VQ_EUSAGE, "--stages 3 --replicas 2",
                 "has 4 ranks", "start 6 ranks");
    config = config_of(3, 0, 2);
    EXPECT_ERROR(vq_topo_make(&config, &c, 0, 4, &t), VQ_EUSAGE, "--stages 3", "has 4 ranks",
                 "expected stages x replicas = 4", "start 3 ranks");
    config = config_of(2, 0, 1);
    EXPECT_ERROR(vq_topo_make(&config, &c, 0, 1, &t), VQ_EUSAGE, "--stages 2",
                 "has 1 rank:", "start 2 ranks");
    config = config_of(0, 8, 8);
    EXPECT_ERROR(vq_topo_make(&config, &c, 0, 4, &t), VQ_EUSAGE, "--replicas 8", "start 8 ranks");
    config = config_of(0, 0, 1);
    EXPECT_ERROR(vq_topo_make(&config, &c, 0, 6, &t), VQ_EUSAGE, "6 stages, by the ranks",
                 "has 4 layers", "fewer ranks", "--replicas");
    config = config_of(6, 0, 1);
    EXPECT_ERROR(vq_topo_make(&config, &c, 0, 6, &t), VQ_EUSAGE, "--stages 6: ", "has 4 layers");
    config = config_of(2, 4, 3);
    EXPECT_ERROR(vq_topo_make(&config, &c, 0, 8, &t), VQ_EUSAGE, "--replicas 4", "3 sequences",
                 "--batch-size");
}

static void test_shares(void **state)
{
    (void)state;
    for (int n = 1; n <= 6; n++)
        for (int64_t count = 0; count <= 20; count++) {
            const vq_topo t = {.n_stages = 1, .n_replicas = n};
            int64_t next = 0, least = count, most = 0;
            for (int r = 0; r < n; r++) {
                int64_t first, share;
                vq_topo_share(&t, r, count, &first, &share);
                assert_int_equal(first, next);
                next += share;
                least = VQ_MIN(least, share);
                most = VQ_MAX(most, share);
            }
            assert_int_equal(next, count);
            assert_true(most - least <= 1);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuts_are_the_best),
        cmocka_unit_test(test_head_counts_on_the_last),
        cmocka_unit_test(test_every_rank_has_a_place),
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_worlds_that_do_not_fit),
        cmocka_unit_test(test_shares),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
