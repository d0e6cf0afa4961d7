/* test_gptq_ranks - GPTQ on several ranks against one process: the same bits on any number of
 * stages and threads; with replicas, which sum their Hessians in another order, the same but for
 * the few integers that lie between two. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mpi/ranks.h"

#define COMMON(model)                                                                              \
    LIST("quantize", "--model", model, "--text", CALIB, "--eval-text", HELD_OUT, "--bits", "3",    \
         "--nsamples", "7", "--seqlen", "48", "--eval-max-windows", "3", "--batch-size", "4",      \
         "--checkpoint-every", "1", "--quiet")

/* --- stages ---------------------------------------------------------------------------------- */

/* One process, and 2 and 4 stages, with the same further options. */
#define BASELINE(model, ...)                                                                       \
    do {                                                                                           \
        QUANTIZE(0, model, "--method", "gptq", __VA_ARGS__, "--threads", "2", "--out", "one");     \
        QUANTIZE(2, model, "--method", "gptq", __VA_ARGS__, "--threads", "1", "--stages", "2",     \
                 "--out", "two");                                                                  \
        QUANTIZE(4, model, "--method", "gptq", __VA_ARGS__, "--threads", "3", "--stages", "4",     \
                 "--out", "four");                                                                 \
        expect_same_model("one/model", "two/model");                                               \
        expect_same_model("one/model", "four/model");                                              \
        assert_true(exists("four/init-0003.h5") && !exists("one/init-0001.h5"));                   \
        clear_folder(NULL);                                                                        \
    } while (0)

static void test_stages(void **state)
{
    (void)state;
    BASELINE(MODELS "tiny-llama", "--group-size", "64", "--grid", "mse");
    BASELINE(MODELS "tiny-opt", "--gptq.act_order", "--gptq.propagate", "float");
    BASELINE(MODELS "tiny-qwen3", "--sym", "--gptq.act_order", "--group-size", "100", "--grid",
             "output");
}

/* A grid by the outputs, without GPTQ, is made in the same way; GPTQ's settings mean nothing then.
 */
static void test_stages_by_output(void **state)
{
    (void)state;
    static const char *const out[] = {"one", "two", "four"};
    for (int i = 0; i < 3; i++)
        QUANTIZE(i == 0 ? 0 : 2 * i, MODELS "tiny-opt", "--grid", "output", "--group-size", "100",
                 "--gptq.propagate", i == 1 ? "quantized" : "auto", "--K", "64", "--D", "4",
                 "--kmeans.iters", "5", "--steps", "2", "--stages", text("%d", i == 0 ? 1 : 2 * i),
                 "--threads", "1", "--out", out[i]);
    expect_same_run("one", "two", 2);
    expect_same_run("one", "four", 2);
}

static void test_stages_as_a_start(void **state)
{
    (void)state;
    static const char *const out[] = {"one", "two", "four"};
    for (int i = 0; i < 3; i++)
        QUANTIZE(i == 0 ? 0 : 2 * i, MODELS "tiny-llama", "--init", "gptq", "--group-size", "128",
                 "--gptq.act_order", "--gptq.static_groups", "off", "--K", "64", "--D", "4",
                 "--by-sign", "--kmeans.iters", "5", "--steps", "2", "--eval-start", "--stages",
                 text("%d", i == 0 ? 1 : 2 * i), "--threads", "1", "--out", out[i]);
    expect_same_run("one", "two", 2);
    expect_same_run("one", "four", 2);
}

/* --- replicas -------------------------------------------------------------------------------- */

/* Every linear of a run, from whichever rank's file it is in: name/what. */
static vq_tensor load_part(const char *run, int n_files, const char *name, const char *what,
                           double *error)
{
    vq_tensor t = {0};
    for (int i = 0; i < n_files; i++) {
        vq_h5 h;
        const char *whole = text("%s/%s", name, what);
        EXPECT_OK(vq_h5_open(&arena, text("%s/init-%04d.h5", run, i), NULL, 0, &h));
        if (vq_h5_has(&h, whole)) {
            assert_null(t.data); /* nothing is made twice */
            EXPECT_OK(vq_h5_load(&h, &arena, whole, &t));
            EXPECT_OK(vq_h5_get_f64(&h, text("%s/base", name), "gptq_error", error));
        }
        vq_h5_close(&h);
    }
    if (!t.data) fail_msg("%s lacks %s/%s", run, name, what);
    return t;
}

/* Integers the same but for one in ten thousand; where all are, the errors of the two sweeps, which
 * are sums over the inverse of H, within 1e-6. */
static void expect_near_run(const char *a, const char *b, int n_files)
{
    char **names;
    int64_t n, n_linears = 0, n_weights = 0, n_different = 0;
    vq_h5 h;
    const size_t mark = vq_arena_mark(&arena);
    EXPECT_OK(vq_h5_open(&arena, text("%s/init-0000.h5", a), NULL, 0, &h));
    EXPECT_OK(vq_h5_list(&h, &arena, &names, &n));
    vq_h5_close(&h);
    for (int64_t i = 0; i < n; i++) {
        char *end = strrchr(names[i], '/');
        if (!end || strcmp(end, "/ints") != 0) continue;
        double x, y;
        *end = '\0';
        const vq_tensor p = load_part(a, 1, names[i], "ints", &x),
                        q = load_part(b, n_files, names[i], "ints", &y);
        assert_true(vq_tensor_same_shape(&p, &q) && p.dtype == VQ_U8); /* two in a byte */
        int64_t differ = 0;
        for (int64_t j = 0; j < vq_tensor_count(&p); j++) {
            const int both = ((uint8_t *)p.data)[j] ^ ((uint8_t *)q.data)[j];
            differ += ((both & 15) != 0) + (both > 15);
        }
        if (differ == 0 && fabs(y / x - 1) > 1e-6)
            fail_msg("%s: the error of %s is %.9g, of %s %.9g", names[i], a, x, b, y);
        n_linears++;
        n_weights += 2 * vq_tensor_count(&p);
        n_different += differ;
    }
    assert_true(n_linears >= 6 && n_weights > 0);
    if (n_different * 10000 >= n_weights)
        fail_msg("%s and %s: %lld of %lld integers differ", a, b, (long long)n_different,
                 (long long)n_weights);
    vq_arena_reset(&arena, mark);
}

static void replicas(const char *model, const char *propagate)
{
    QUANTIZE(0, model, "--method", "gptq", "--gptq.propagate", propagate, "--threads", "2", "--out",
             "one");
    QUANTIZE(3, model, "--method", "gptq", "--gptq.propagate", propagate, "--threads", "1",
             "--replicas", "3", "--out", "three");
    QUANTIZE(4, model, "--method", "gptq", "--gptq.propagate", propagate, "--threads", "1",
             "--replicas", "2", "--stages", "2", "--out", "square");
    expect_near_run("one", "three", 3);
    expect_near_run("one", "square", 4);
    clear_folder(NULL);
}

static void test_replicas(void **state)
{
    (void)state;
    replicas(MODELS "tiny-llama", "float");
    replicas(MODELS "tiny-opt", "quantized");
    replicas(MODELS "tiny-qwen3", "float");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_stages, clear_folder),
        cmocka_unit_test_teardown(test_stages_by_output, clear_folder),
        cmocka_unit_test_teardown(test_stages_as_a_start, clear_folder),
        cmocka_unit_test_teardown(test_replicas, clear_folder),
    };
    return cmocka_run_group_tests(tests, enter_world, leave_world);
}
