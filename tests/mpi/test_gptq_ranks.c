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

static void replicas(const char *model, const char *propagate)
{
    QUANTIZE(0, model, "--method", "gptq", "--gptq.propagate", propagate, "--threads", "2", "--out",
             "one");
    QUANTIZE(3, model, "--method", "gptq", "--gptq.propagate", propagate, "--threads", "1",
             "--replicas", "3", "--out", "three");
    QUANTIZE(4, model, "--method", "gptq", "--gptq.propagate", propagate, "--threads", "1",
             "--replicas", "2", "--stages", "2", "--out", "square");
    expect_near_run("one", "three");
    expect_near_run("one", "square");
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
