/* ranks_on_cpu - jobs of several ranks on the GPU that is none, which they share: tensors go
 * through the host. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#undef VQROUND
#define VQROUND VQROUND_ON_CPU

#include "mpi/small_runs.h"

#define ON_GPU                                                                                     \
    "--device", "cuda", "--steps", "2", "--batch-size", "2", "--replicas", "2", "--no-eval"

/* Gradients that stay in their stage are added up by its replicas on the host: where the numbers
 * are kept changes none of them. */
static void test_parts_are_the_pool(void **state)
{
    (void)state;
    metrics x[2], y[2];
    QUANTIZE(2, MODELS "tiny-llama", ON_GPU, "--method", "adaround", "--out", "whole");
    QUANTIZE(2, MODELS "tiny-llama", ON_GPU, "--method", "adaround", "--train.pool_max", "0",
             "--out", "parts");
    read_metrics("whole", x, 2);
    read_metrics("parts", y, 2);
    for (int i = 0; i < 2; i++)
        if (x[i].loss != y[i].loss || x[i].reg != y[i].reg)
            fail_msg("step %d: loss %.9g, regularizer %.9g; with a whole pool %.9g, %.9g", i,
                     y[i].loss, y[i].reg, x[i].loss, x[i].reg);
    expect_same_model("whole/model", "parts/model");
}

static void test_layers_one_by_one_are_refused(void **state)
{
    (void)state;
    finish(start_ranks(2, VQROUND, COMMON(MODELS "tiny-llama"),
                       LIST(ON_GPU, "--block-steps", "2", "--out", "blocks")));
    expect_code(8);
    expect_words("train.block_steps = 2 on a GPU", "expected 0", "--device cpu", NULL);
    assert_null(find_name("blocks", "init-", ""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_parts_are_the_pool, clear_folder),
        cmocka_unit_test_teardown(test_layers_one_by_one_are_refused, clear_folder),
    };
    return cmocka_run_group_tests(tests, enter_world, leave_world);
}
