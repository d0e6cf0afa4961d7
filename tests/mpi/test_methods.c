/* test_methods - other things to train, and layers one by one, on several ranks against one
 * process: the same bits on any number of stages and threads, also when a run goes on in another
 * world. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mpi/small_runs.h"

#define METHOD(...) "--steps", "5", "--method", __VA_ARGS__
#define STAGES_ALONE "--train.pool_max", "0"

/* One process, several worlds, and a run that goes on from one to another. */
#define SAME_EVERYWHERE(...)                                                                       \
    do {                                                                                           \
        QUANTIZE(0, MODELS "tiny-llama", METHOD(__VA_ARGS__), "--threads", "1", "--out", "one");   \
        QUANTIZE(3, MODELS "tiny-llama", METHOD(__VA_ARGS__), "--threads", "2", "--out", "three"); \
        expect_same_run("one", "three", 5);                                                        \
        ONE_STEP(3, MODELS "tiny-llama", METHOD(__VA_ARGS__), "--out", "parts");                   \
        QUANTIZE(2, MODELS "tiny-llama", METHOD(__VA_ARGS__), "--threads", "1", "--out", "parts"); \
        expect_same_run("one", "parts", 5);                                                        \
        clear_folder(NULL);                                                                        \
    } while (0)

static void test_learned_scales(void **state)
{
    (void)state;
    SAME_EVERYWHERE("vqround", "--learn-scale", "--group-size", "16", "--lr-schedule", "cosine");
}

static void test_adaround(void **state)
{
    (void)state;
    SAME_EVERYWHERE("adaround", "--learn-scale", "--init", "gptq", STAGES_ALONE);
}

static void test_lora(void **state)
{
    (void)state;
    SAME_EVERYWHERE("lora");
    SAME_EVERYWHERE("lora", "--learn-scale", "--slices", "3", STAGES_ALONE);
}

static void test_blocks(void **state)
{
    (void)state;
    SAME_EVERYWHERE("vqround", "--block-steps", "4", "--learn-scale", "--batch-size", "2",
                    "--replicas", "1");
    SAME_EVERYWHERE("lora", "--block-steps", "3", "--train.block_round_weight", "0.01",
                    STAGES_ALONE);
}

/* Killed after the layers were trained one by one, and after some were. */
static void test_blocks_are_not_trained_again(void **state)
{
    (void)state;
    struct stat made, found;
    QUANTIZE(2, MODELS "tiny-llama", METHOD("vqround"), "--block-steps", "4", "--out", "whole");
    assert_int_equal(stat("whole/blocks-0000.h5", &made), 0);
    assert_true(exists("whole/blocks-0001.h5") && !find_name("whole", "sweep-", ""));
    remove_all("whole/results.json");
    for (int i = 1; i <= 5; i++) remove_all(text("whole/ckpt-%010d.h5", i));
    copy_folder("whole", "part");
    remove_all("part/blocks-0001.h5");
    QUANTIZE(0, MODELS "tiny-llama", METHOD("vqround"), "--block-steps", "4", "--out", "whole");
    QUANTIZE(0, MODELS "tiny-llama", METHOD("vqround"), "--block-steps", "4", "--out", "part");
    expect_same_run("whole", "part", 5);
    assert_int_equal(stat("whole/blocks-0000.h5", &found), 0);
    assert_true(made.st_ino == found.st_ino);
    finish(start_ranks(0, VQROUND, COMMON(MODELS "tiny-llama"),
                       LIST(METHOD("vqround"), "--block-steps", "5", "--out", "whole")));
    expect_code(2);
    expect_words("train.block_steps (4, now 5)", NULL);
}

/* GPTQ and the layers' own training, each start in another world and stopped after one layer. */
static void test_layers_go_on_elsewhere(void **state)
{
    (void)state;
    static const int worlds[] = {3, 0, 2, 4, 2};
    static const char *const more[][3] = {{"vqround", "--init=gptq", "--gptq.propagate=quantized"},
                                          {"lora", "--init=gptq", "--train.pool_max=0"}};
#define BLOCKS(i) METHOD(more[i][0], more[i][1], more[i][2]), "--block-steps", "3", "--out"
    for (int i = 0; i < VQ_COUNT(more); i++) {
        int n = 0;
        QUANTIZE(0, MODELS "tiny-llama", BLOCKS(i), "whole");
        for (int found = 0; found < 3; found++) /* GPTQ, but for the last layer */
            ONE_UNIT(worlds[n++ % 5], MODELS "tiny-llama", BLOCKS(i), "parts");
        assert_true(exists("parts/init-0002-0000.h5") && !exists("parts/init-0003-0000.h5"));
        for (int found = 0; found < 3; found++)
            ONE_UNIT(worlds[n++ % 5], MODELS "tiny-llama", BLOCKS(i), "parts");
        assert_true(exists("parts/blocks-0002.h5") && !exists("parts/blocks-0003.h5"));
        ONE_STEP(worlds[n++ % 5], MODELS "tiny-llama", BLOCKS(i), "parts");
        assert_true(exists("parts/blocks-0003.h5") && !find_name("parts", "sweep-", ""));
        QUANTIZE(2, MODELS "tiny-llama", BLOCKS(i), "parts");
        expect_same_run("whole", "parts", 5);
        clear_folder(NULL);
    }
#undef BLOCKS
}

/* Replicas share a layer's linears: it is whole when all of their files are there. */
static void test_layers_of_replicas_go_on(void **state)
{
    (void)state;
    static const char *const more[][2] = {{"--init=gptq", "--gptq.propagate=quantized"},
                                          {"--init=rtn", "--grid=output"},
                                          {"--init=rtn", "--grid=minmax"}};
#define SQUARE(i)                                                                                  \
    METHOD("vqround"), more[i][0], more[i][1], "--batch-size", "4", "--stages", "2", "--out"
    for (int i = 0; i < VQ_COUNT(more); i++) {
        QUANTIZE(4, MODELS "tiny-llama", SQUARE(i), "whole");
        ONE_UNIT(4, MODELS "tiny-llama", SQUARE(i), "parts");
        ino_t first = number_of("parts/init-0000-0001.h5");
        remove_all("parts/init-0000-0000.h5");
        ONE_UNIT(4, MODELS "tiny-llama", SQUARE(i), "parts");
        assert_true(exists("parts/init-0000-0000.h5"));
        assert_true(number_of("parts/init-0000-0001.h5") != first);
        first = number_of("parts/init-0000-0001.h5");
        QUANTIZE(4, MODELS "tiny-llama", SQUARE(i), "parts");
        assert_true(number_of("parts/init-0000-0001.h5") == first);
        expect_same_run("whole", "parts", 5);
        clear_folder(NULL);
    }
#undef SQUARE
}

/* Where the numbers are kept changes none of them. */
static void test_parts_are_the_pool(void **state)
{
    (void)state;
    QUANTIZE(2, MODELS "tiny-llama", METHOD("adaround"), "--out", "whole");
    QUANTIZE(2, MODELS "tiny-llama", METHOD("adaround"), STAGES_ALONE, "--out", "parts");
    assert_true(is_checkpoint_whole("whole", 5) && !is_checkpoint_whole("parts", 5));
    assert_true(exists("parts/state-0000000005-0001.h5"));
    expect_same_model("whole/model", "parts/model");
    /* The parts of a checkpoint go with it, and what a killed save left with the next one. */
    write_text("parts/state-0000000009-0000.h5", "");
    remove_all("parts/model");
    remove_all("parts/results.json");
    remove_all("parts/ckpt-0000000005.h5");
    QUANTIZE(3, MODELS "tiny-llama", METHOD("adaround"), STAGES_ALONE, "--out", "parts");
    assert_null(find_name("parts", "state-0000000009", ""));
    expect_same_model("whole/model", "parts/model");
    finish(start_ranks(0, VQROUND, COMMON(MODELS "tiny-llama"),
                       LIST(METHOD("adaround"), "--out", "parts")));
    expect_code(2);
    expect_words("train.pool_max", NULL);
}

/* A part that is missing or that one rank alone finds damaged: all ranks go on from the checkpoint
 * before, in whatever world, unless there is none. */
static void test_damaged_parts_are_passed_over(void **state)
{
    (void)state;
    static const char part[] = "hurt/state-0000000005-0001.h5";
    size_t bytes;
    QUANTIZE(2, MODELS "tiny-llama", METHOD("adaround"), STAGES_ALONE, "--out", "calm");
    free(read_file("calm/state-0000000005-0001.h5", &bytes));
    for (int i = 0; i < 4; i++) {
        copy_folder("calm", "hurt");
        remove_all("hurt/model");
        remove_all("hurt/results.json");
        if (i == 0) damage(part, bytes / 2, 8);
        if (i == 1) assert_int_equal(truncate(part, (off_t)bytes / 2), 0);
        if (i >= 2) remove_all(part);
        if (i == 3) damage("hurt/state-0000000004-0000.h5", 0, 8);
        finish(start_ranks(i == 1 ? 0 : 2, VQROUND, COMMON(MODELS "tiny-llama"),
                           LIST(METHOD("adaround"), STAGES_ALONE, "--out", "hurt")));
        expect_code(0);
        expect_words("0000000005", "It is passed over for the checkpoint before it", NULL);
        expect_words(i == 1 ? part : "1 of 2 ranks cannot read their part", NULL);
        if (i == 3) expect_words("hurt/state-0000000004-0000.h5", NULL);
        expect_same_run("calm", "hurt", 5);
        remove_all("hurt");
    }
    copy_folder("calm", "hurt");
    for (int step = 1; step < 5; step++) remove_all(text("hurt/ckpt-%010d.h5", step));
    remove_all("hurt/results.json");
    remove_all(part);
    finish(start_ranks(2, VQROUND, COMMON(MODELS "tiny-llama"),
                       LIST(METHOD("adaround"), STAGES_ALONE, "--out", "hurt")));
    expect_code(3);
    expect_words("hurt/state-0000000005-", "is in none of them", "Delete the checkpoint of step 5",
                 NULL);
}

/* Replicas of a stage add up their gradients among themselves. */
static void test_replicas_of_parts(void **state)
{
    (void)state;
    metrics x[6], y[6];
    make_model("rand-llama-gqa-tied", "model");
    QUANTIZE(0, "model", "--steps", "6", "--batch-size", "4", "--method", "adaround", STAGES_ALONE,
             "--learn-scale", "--out", "one");
    QUANTIZE(4, "model", "--steps", "6", "--batch-size", "4", "--method", "adaround", STAGES_ALONE,
             "--learn-scale", "--threads", "1", "--stages", "2", "--out", "square");
    read_metrics("one", x, 6);
    read_metrics("square", y, 6);
    for (int i = 0; i < 6; i += 5)
        if (fabs(y[i].loss / x[i].loss - 1) > 1e-4 ||
            fabs(y[i].grad_norm / x[i].grad_norm - 1) > (i ? 1e-2 : 1e-5))
            fail_msg("step %d: loss %.9g, gradient %.9g; one process has %.9g, %.9g", i, y[i].loss,
                     y[i].grad_norm, x[i].loss, x[i].grad_norm);
    QUANTIZE(0, "model", "--steps", "6", "--batch-size", "4", "--block-steps", "5", "--out",
             "blocks");
    QUANTIZE(4, "model", "--steps", "6", "--batch-size", "4", "--block-steps", "5", "--threads",
             "1", "--stages", "2", "--out", "blocks4");
    read_metrics("blocks", x, 6);
    read_metrics("blocks4", y, 6);
    if (fabs(y[0].loss / x[0].loss - 1) > 1e-4)
        fail_msg("after blocks the loss is %.9g, of one process %.9g", y[0].loss, x[0].loss);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_learned_scales, clear_folder),
        cmocka_unit_test_teardown(test_adaround, clear_folder),
        cmocka_unit_test_teardown(test_lora, clear_folder),
        cmocka_unit_test_teardown(test_blocks, clear_folder),
        cmocka_unit_test_teardown(test_blocks_are_not_trained_again, clear_folder),
        cmocka_unit_test_teardown(test_layers_go_on_elsewhere, clear_folder),
        cmocka_unit_test_teardown(test_layers_of_replicas_go_on, clear_folder),
        cmocka_unit_test_teardown(test_parts_are_the_pool, clear_folder),
        cmocka_unit_test_teardown(test_damaged_parts_are_passed_over, clear_folder),
        cmocka_unit_test_teardown(test_replicas_of_parts, clear_folder),
    };
    return cmocka_run_group_tests(tests, enter_world, leave_world);
}
