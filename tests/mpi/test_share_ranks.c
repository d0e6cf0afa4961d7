/* test_share_ranks - what a job of several ranks has made serves jobs of other numbers of ranks,
 * with the bits of a run alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mpi/ranks.h"

#define COMMON                                                                                     \
    LIST("quantize", "--model", MODELS "tiny-llama", "--text", CALIB, "--eval-text", HELD_OUT,     \
         "--bits", "2", "--D", "8", "--kmeans.iters", "5", "--nsamples", "5", "--seqlen", "24",    \
         "--eval-max-windows", "3", "--steps", "3", "--lr", "0.05", "--init", "gptq", "--threads", \
         "1", "--checkpoint-every", "1")

/* A run of n ranks (0: no launcher) to its end. */
#define RUN_RANKS(n, ...)                                                                          \
    do {                                                                                           \
        finish(start_ranks(n, VQROUND, COMMON, LIST(__VA_ARGS__)));                                \
        expect_code(0);                                                                            \
    } while (0)

static void test_other_numbers_of_ranks(void **state)
{
    (void)state;
    RUN_RANKS(0, "--K", "16", "--out", "alone16");
    RUN_RANKS(0, "--K", "32", "--out", "alone32");
    RUN_RANKS(3, "--K", "16", "--out", "three", "--share", "shared");
    expect_words("tokens made", "grid made", "init made", "eval_rtn made", "teacher made", NULL);

    /* Other codebooks from the grids of three ranks. */
    RUN_RANKS(2, "--K", "32", "--out", "two", "--share", "shared");
    expect_words("grid from another run", "init made", "teacher from another run", NULL);
    assert_null(strstr(last.err, "gptq     "));
    expect_same_run("alone32", "two", 3);

    /* All of init from three ranks, or from two. */
    RUN_RANKS(0, "--K", "16", "--out", "one", "--share", "shared");
    expect_words("init from another run", "eval_rtn from another run", NULL);
    expect_same_run("alone16", "one", 3);
    RUN_RANKS(4, "--K", "32", "--out", "four", "--share", "shared");
    expect_words("init from another run", NULL);
    expect_same_run("alone32", "four", 3);
}

/* Two jobs at a time, of which the first to need a thing makes it. */
static void test_jobs_at_the_same_time(void **state)
{
    (void)state;
    const pid_t a =
        start_ranks(2, VQROUND, COMMON, LIST("--K", "16", "--out", "a", "--share", "s"));
    const pid_t b =
        start_ranks(3, VQROUND, COMMON, LIST("--K", "16", "--out", "b", "--share", "s"));
    finish(a);
    expect_code(0);
    finish(b);
    expect_code(0);
    expect_same_run("a", "b", 3);
    struct stat x, y;
    const char *const shared[] = {"tokens.h5", "init-0000-0000.h5"};
    for (int i = 0; i < VQ_COUNT(shared); i++) {
        assert_int_equal(stat(text("a/%s", shared[i]), &x), 0);
        assert_int_equal(stat(text("b/%s", shared[i]), &y), 0);
        if (x.st_ino != y.st_ino) fail_msg("%s was made twice", shared[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_other_numbers_of_ranks, clear_folder),
        cmocka_unit_test_setup(test_jobs_at_the_same_time, clear_folder),
    };
    return cmocka_run_group_tests(tests, enter_world, leave_world);
}
