/* test_schedule - every schedule up to 8 stages x 16 sequences x 16 slices: each step once and in
 * order, no stage waits in a circle, memory within its bound; slices of equal cost; idle times
 * against formulas. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "error.h"
#include "expect.h"
#include "schedule.h"

enum { STAGES = 8, MICRO = 16, SLICES = 16, STEPS = MICRO * (2 * SLICES + 1) };

static vq_step lists[STAGES][STEPS];

static int setup(void **state)
{
    static vq_arena arena;
    *state = &arena;
    return vq_arena_init(&arena, "test", (size_t)1 << 28);
}

static int teardown(void **state)
{
    vq_arena_close(*state);
    return 0;
}

#define FAIL_AT(what)                                                                              \
    fail_msg("%s: stage %d of %d, %d sequences, %d slices, step %lld", what, stage, n_stages,      \
             n_micro, n_slices, (long long)i)

/* One stage's list alone: every step once, in an order that its data allow, within the memory that
 * the pipeline takes: set micro % n_sets is free when a sequence begins. */
static void check_list(const vq_step *list, int stage, int n_stages, int n_micro, int n_slices)
{
    const int n_sets = vq_schedule_in_flight(stage, n_stages, n_micro);
    const int64_t n_steps = vq_schedule_count(n_micro, n_slices);
    int forwards[MICRO] = {0}, backwards[MICRO] = {0}, in_set[STAGES];
    bool has_codes[MICRO] = {false};
    assert_int_equal(n_steps, n_micro * (2 * n_slices + 1));
    assert_int_equal(n_sets, VQ_MIN(n_micro, n_stages - stage));
    for (int s = 0; s < STAGES; s++) in_set[s] = -1;
    for (int64_t i = 0; i < n_steps; i++) {
        const vq_step s = list[i];
        if (s.micro < 0 || s.micro >= n_micro) FAIL_AT("a sequence that is not there");
        if (s.kind == VQ_FORWARD) {
            if (s.slice != forwards[s.micro]++) FAIL_AT("forwards not in order");
            if (s.slice == 0) {
                if (in_set[s.micro % n_sets] >= 0) FAIL_AT("more sequences in flight than sets");
                in_set[s.micro % n_sets] = s.micro;
            }
        } else if (s.kind == VQ_BACKWARD) {
            if (forwards[s.micro] != n_slices) FAIL_AT("a backward before the last forward");
            if (s.slice != n_slices - 1 - backwards[s.micro]++) FAIL_AT("backwards not in reverse");
        } else {
            if (s.kind != VQ_CODES || s.slice != 0) FAIL_AT("an unknown step");
            if (backwards[s.micro] != n_slices) FAIL_AT("codes before the last backward");
            if (has_codes[s.micro]) FAIL_AT("codes twice");
            has_codes[s.micro] = true;
            in_set[s.micro % n_sets] = -1;
        }
    }
    for (int m = 0; m < n_micro; m++) assert_true(has_codes[m]);
}

/* Neighbours send and receive the same messages in the same order. */
static void check_order(int n_stages, int n_micro, int n_slices)
{
    const int64_t n_steps = vq_schedule_count(n_micro, n_slices);
    for (int stage = 0; stage + 1 < n_stages; stage++)
        for (int kind = VQ_FORWARD; kind <= VQ_BACKWARD; kind++)
            for (int64_t i = 0, j = 0; i < n_steps; i++) {
                if (lists[stage][i].kind != (vq_step_kind)kind) continue;
                while (j < n_steps && lists[stage + 1][j].kind != (vq_step_kind)kind) j++;
                if (j == n_steps || lists[stage][i].micro != lists[stage + 1][j].micro ||
                    lists[stage][i].slice != lists[stage + 1][j].slice)
                    FAIL_AT("another message than the neighbour's");
                j++;
            }
}

/* Runs all lists as stages do: a step waits for its message, and a sequence's results may be
 * overwritten only when the neighbour has taken those of the set's last owner. */
static void check_progress(int n_stages, int n_micro, int n_slices)
{
    static bool done[2][STAGES][MICRO][SLICES];
    const int64_t n_steps = vq_schedule_count(n_micro, n_slices);
    int64_t at[STAGES] = {0}, left = n_stages * n_steps;
    memset(done, 0, sizeof done);
    while (left > 0) {
        const int64_t before = left;
        for (int stage = 0; stage < n_stages; stage++) {
            const int n_sets = vq_schedule_in_flight(stage, n_stages, n_micro);
            for (; at[stage] < n_steps; at[stage]++, left--) {
                const vq_step s = lists[stage][at[stage]];
                if (s.kind == VQ_CODES) continue;
                const int from = stage + (s.kind == VQ_FORWARD ? -1 : 1);
                const int to = stage + (s.kind == VQ_FORWARD ? 1 : -1);
                const bool waits = from >= 0 && from < n_stages;
                const bool overwrites = to >= 0 && to < n_stages && s.micro >= n_sets;
                if (waits && !done[s.kind][from][s.micro][s.slice]) break;
                if (overwrites && !done[s.kind][to][s.micro - n_sets][s.slice]) break;
                done[s.kind][stage][s.micro][s.slice] = true;
            }
        }
        if (left == before)
            fail_msg("%d stages, %d sequences, %d slices wait for each other with %lld steps left",
                     n_stages, n_micro, n_slices, (long long)left);
    }
}

static void test_all_schedules(void **state)
{
    (void)state;
    for (int n_stages = 1; n_stages <= STAGES; n_stages++)
        for (int n_micro = 1; n_micro <= MICRO; n_micro++)
            for (int n_slices = 1; n_slices <= SLICES; n_slices++) {
                for (int stage = 0; stage < n_stages; stage++) {
                    vq_schedule_make(stage, n_stages, n_micro, n_slices, lists[stage]);
                    check_list(lists[stage], stage, n_stages, n_micro, n_slices);
                }
                check_order(n_stages, n_micro, n_slices);
                check_progress(n_stages, n_micro, n_slices);
            }
}

static void test_empty(void **state)
{
    (void)state;
    assert_int_equal(vq_schedule_count(0, 4), 0);
    vq_schedule_make(0, 2, 0, 4, lists[0]); /* a replica without sequences in this step */
}

/* --- slices ---------------------------------------------------------------------------------- */

static const vq_model_config small = {.family = VQ_LLAMA,
                                      .N = 4,
                                      .E = 64,
                                      .E_embed = 64,
                                      .F = 172,
                                      .H = 4,
                                      .G = 2,
                                      .S = 16,
                                      .V = 320};

/* Products of the first t tokens, in multiply-adds: weights, and attention to all keys before. */
static double cost_of(const vq_model_config *c, int64_t t)
{
    return (double)vq_layer_weights(c) * (double)t + (double)(c->H * c->S * t * t);
}

static void test_slices_of_equal_cost(void **state)
{
    (void)state;
    static const int64_t lengths[] = {1, 2, 3, 16, 17, 40, 64, 333, 2048};
    int64_t cut[SLICES + 1];
    for (int i = 0; i < VQ_COUNT(lengths); i++)
        for (int n = 1; n <= VQ_MIN(SLICES, lengths[i]); n++) {
            const int64_t T = lengths[i];
            vq_slice_cut(&small, T, n, cut);
            assert_int_equal(cut[0], 0);
            assert_int_equal(cut[n], T);
            for (int s = 0; s < n; s++) {
                if (cut[s + 1] <= cut[s])
                    fail_msg("T %lld, %d slices: slice %d is empty", (long long)T, n, s);
                if (T < 4 * n) continue; /* whole tokens are too coarse there */
                const double wanted = cost_of(&small, T) / n;
                const double got = cost_of(&small, cut[s + 1]) - cost_of(&small, cut[s]);
                const double token = cost_of(&small, T) - cost_of(&small, T - 1);
                if (fabs(got - wanted) > token)
                    fail_msg("T %lld, %d slices: slice %d costs %g, expected %g within %g",
                             (long long)T, n, s, got, wanted, token);
            }
        }
    /* Where attention counts, later slices are shorter. */
    vq_slice_cut(&small, 2048, 8, cut);
    for (int s = 0; s < 7; s++) assert_true(cut[s + 2] - cut[s + 1] < cut[s + 1] - cut[s]);
}

/* --- idle time ------------------------------------------------------------------------------- */

static double idle_of(void **state, int n_stages, int n_micro, int n_slices, vq_stage_cost each)
{
    vq_stage_cost cost[64];
    double share[64], idle;
    for (int s = 0; s < n_stages; s++) cost[s] = each;
    for (int i = 0; i < n_slices; i++) share[i] = 1.0 / n_slices;
    EXPECT_OK(vq_schedule_idle(*state, n_stages, n_micro, n_slices, share, cost, &idle));
    return idle;
}

static void expect_idle(double got, double wanted, const char *what, int S, int M, int n)
{
    if (fabs(got - wanted) > 1e-12)
        fail_msg("%s: %d stages, %d sequences, %d slices: idle %.6f, expected %.6f", what, S, M, n,
                 got, wanted);
}

static void test_idle_by_formula(void **state)
{
    const vq_stage_cost plain = {.forward_s = 1, .backward_s = 2};
    for (int S = 1; S <= STAGES; S++)
        for (int n = 1; n <= MICRO; n++) {
            /* Each stage waits for S - 1 sequences (slices) to come and go. */
            const double bubble = (double)(S - 1) / (n + S - 1);
            expect_idle(idle_of(state, S, n, 1, plain), bubble, "1F1B", S, n, 1);
            expect_idle(idle_of(state, S, 1, n, plain), bubble, "slices", S, 1, n);
            /* A message each way over every border, nothing else to do meanwhile. */
            const vq_stage_cost slow = {.forward_s = 1, .backward_s = 2, .message_s = 0.5};
            expect_idle(idle_of(state, S, 1, 1, slow), 1 - 3 / (3.0 * S + S - 1), "messages", S, 1,
                        1);
            /* The codes of stage s are made while the gradient goes on: the first stage's come
             * last, alone. */
            const vq_stage_cost codes = {.forward_s = 1, .backward_s = 1, .codes_s = 1};
            expect_idle(idle_of(state, S, 1, 1, codes), 1 - 3.0 / (2.0 * S + 1), "codes", S, 1, 1);
        }
}

static void test_idle_of_uneven_stages(void **state)
{
    /* The slowest stage is never idle between its first and last work when there is enough. */
    const vq_stage_cost cost[] = {{.forward_s = 1, .backward_s = 2},
                                  {.forward_s = 2, .backward_s = 4}};
    const double share[] = {1};
    double idle;
    const int M = 8;
    EXPECT_OK(vq_schedule_idle(*state, 2, M, 1, share, cost, &idle));
    /* 1 before it begins, 8 x 6 of its own, 2 after it: 51; busy 24 + 48. */
    expect_idle(idle, 1 - 72.0 / (2 * 51), "uneven", 2, M, 1);
    EXPECT_OK(vq_schedule_idle(*state, 1, M, 1, share, cost, &idle));
    expect_idle(idle, 0, "one stage", 1, M, 1);
}

/* What the project promises for a decoder's costs: forward 1, gradient of the input 1, gradient of
 * the codes 1 (a product each). */
static void test_idle_of_deep_pipelines(void **state)
{
    const vq_stage_cost layer = {.forward_s = 1, .backward_s = 1, .codes_s = 1};
    const double whole = idle_of(state, 8, 1, 1, layer), sliced = idle_of(state, 8, 1, 16, layer);
    const double batch = idle_of(state, 8, 8, 16, layer);
    print_message("8 stages: batch 1 %.1f %%, with 16 slices %.1f %%, batch 8 and 16 slices "
                  "%.1f %%\n",
                  100 * whole, 100 * sliced, 100 * batch);
    assert_true(sliced < 0.35 && sliced < whole);
    assert_true(batch < 0.10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_schedules),         cmocka_unit_test(test_empty),
        cmocka_unit_test(test_slices_of_equal_cost),  cmocka_unit_test(test_idle_by_formula),
        cmocka_unit_test(test_idle_of_uneven_stages), cmocka_unit_test(test_idle_of_deep_pipelines),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
