/* ranks_on_cpu - jobs of several ranks on the GPU that is none, which they share: tensors go
 * through the host, or as if each had its own by the stand-in of NCCL. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#undef VQROUND
#define VQROUND VQROUND_ON_CPU

#include "mpi/small_runs.h"

#define ON_GPU                                                                                     \
    "--device", "cuda", "--comm", "mpi", "--steps", "2", "--batch-size", "2", "--replicas", "2",   \
        "--no-eval"

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

/* What two runs' linears started from, each by one rank: the part of this name, or NULL: all. */
static void expect_same_start(const char *a, const char *b, const char *part)
{
    const size_t mark = vq_arena_mark(&arena);
    int64_t n, n_same = 0;
    for (int layer = 0; layer < 2; layer++) {
        vq_h5 x, y;
        char **names;
        EXPECT_OK(vq_h5_open(&arena, text("%s/init-%04d-0000.h5", a, layer), NULL, 0, &x));
        EXPECT_OK(vq_h5_open(&arena, text("%s/init-%04d-0000.h5", b, layer), NULL, 0, &y));
        EXPECT_OK(vq_h5_list(&y, &arena, &names, &n));
        for (int64_t i = 0; i < n; i++) {
            const char *end = strrchr(names[i], '/');
            vq_tensor t, u;
            if (!end || (part && strcmp(end + 1, part) != 0)) continue;
            EXPECT_OK(vq_h5_load(&x, &arena, names[i], &t));
            EXPECT_OK(vq_h5_load(&y, &arena, names[i], &u));
            t.name = names[i];
            expect_same_tensor(a, b, &t, &u);
            n_same++;
        }
        vq_h5_close(&x);
        vq_h5_close(&y);
    }
    vq_arena_reset(&arena, mark);
    assert_true(n_same >= (part ? 14 : 3 * 14));
}

/* The start: GPTQ or grids by the inputs, codebooks, layers one by one. */
#define START(device, ...)                                                                         \
    "--device", device, "--steps", "3", "--block-steps", "2", "--batch-size", "2", "--replicas",   \
        "1", "--learn-scale", "--threads", "1", __VA_ARGS__

/* Any number of stages starts with the same bits; and what was made on the GPU, the CPU goes on
 * with, and packs into the same files, also where groups' columns are scattered. */
static void test_start_by_stages(void **state)
{
    (void)state;
    static const char *const starts[][4] = {
        {"--init", "gptq", "--grid", "output"},
        {"--init", "rtn", "--grid", "output"},
        {"--init=gptq", "--gptq.act_order", "--gptq.static_groups=off", "--group-size=16"}};
    make_model("rand-llama-gqa-tied", "model");
    for (int i = 0; i < VQ_COUNT(starts); i++) {
        const char *const *s = starts[i];
        QUANTIZE(0, "model", START("cuda", s[0], s[1], s[2], s[3]), "--out", "one");
        QUANTIZE(2, "model", START("cuda", s[0], s[1], s[2], s[3]), "--stages", "2", "--out",
                 "two");
        expect_same_run("one", "two", 3);
        assert_null(find_name("one", "sweep-", ""));
        remove_all("one/results.json");
        remove_all(text("one/ckpt-%010d.h5", 3));
        const ino_t init = number_of("one/init-0000-0000.h5"),
                    blocks = number_of("one/blocks-0000.h5");
        QUANTIZE(2, "model", START("cpu", s[0], s[1], s[2], s[3]), "--out", "one");
        assert_true(number_of("one/init-0000-0000.h5") == init);
        assert_true(number_of("one/blocks-0000.h5") == blocks);
        RUN_OK("export", "--run", "two", "--format", "gptq", "--device", "cuda", "--out", "there",
               "--quiet");
        RUN_OK("export", "--run", "two", "--format", "gptq", "--device", "cpu", "--out", "here",
               "--quiet");
        expect_same_model("there", "here");
        static const char *const folders[] = {"one", "two", "there", "here"};
        for (int j = 0; j < VQ_COUNT(folders); j++) remove_all(folders[j]);
    }
}

#define BASELINE                                                                                   \
    "--device", "cuda", "--method", "gptq", "--batch-size", "2", "--no-eval", "--gptq.propagate"

#define BETWEEN(comm, stages, replicas)                                                            \
    "--device", "cuda", "--comm", comm, "--stages", stages, "--replicas", replicas, "--steps",     \
        "3", "--block-steps", "2", "--batch-size", "2", "--init", "gptq", "--learn-scale",         \
        "--threads", "1"

/* Whatever carries tensors between the GPUs: Hessians, inputs, gradients, codes. Of two replicas
 * the order of a sum has no effect. Also where a receive that is begun holds up the kernels that
 * follow, and each sequence's gradient is the answer to the one sequence that was sent. */
static void test_nccl(void **state)
{
    (void)state;
    static const struct {
        int ranks;
        const char *stages, *replicas;
        bool has_one_queue;
    } layouts[] = {{2, "2", "1", false}, {2, "1", "2", false}, {4, "2", "2", true}};
    make_model("rand-llama-gqa-tied", "model");
    for (int i = 0; i < VQ_COUNT(layouts); i++) {
        const char *stages = layouts[i].stages, *replicas = layouts[i].replicas;
        if (layouts[i].has_one_queue) assert_int_equal(setenv("SHIM_ONE_QUEUE", "", 1), 0);
        QUANTIZE(layouts[i].ranks, "model", BETWEEN("mpi", stages, replicas), "--out", "mpi");
        QUANTIZE(layouts[i].ranks, "model", BETWEEN("nccl", stages, replicas), "--out", "nccl");
        expect_same_run("mpi", "nccl", 3);
        remove_all("mpi");
        remove_all("nccl");
        unsetenv("SHIM_ONE_QUEUE");
    }
}

#define BY_TWO                                                                                     \
    LIST("quantize", "--model", "model", "--text", CALIB, "--bits", "2", "--K", "32", "--D", "8",  \
         "--nsamples", "2", "--seqlen", "24", "--steps", "0", "--stages", "2", "--device", "cuda", \
         "--no-eval")

/* What carries tensors where nothing is asked for: NCCL, as each rank has a GPU of its own, though
 * each sees one alone. Where they have one GPU it is MPI, and NCCL refuses; and where NCCL's calls
 * return before they are done. */
static void test_own_gpus(void **state)
{
    (void)state;
    make_model("rand-llama-gqa-tied", "model");
    for (int i = 0; i < 2; i++) {
        if (i) assert_int_equal(setenv("SHIM_ONE_GPU", "", 1), 0);
        finish(start_ranks(2, VQROUND, BY_TWO, LIST("--out", text("run%d", i))));
        expect_code(0);
        expect_words(i ? "tensors between GPUs by MPI" : "tensors between GPUs by NCCL", NULL);
    }
    finish(start_ranks(2, VQROUND, BY_TWO, LIST("--comm", "nccl", "--out", "run")));
    unsetenv("SHIM_ONE_GPU");
    expect_code(8);
    expect_words("ranks 0 and 1 have the same GPU", "Start fewer ranks a node", NULL);
    assert_int_equal(setenv("NCCL_COMM_BLOCKING", "0", 1), 0);
    finish(start_ranks(2, VQROUND, BY_TWO, LIST("--out", "run")));
    unsetenv("NCCL_COMM_BLOCKING");
    expect_code(8);
    expect_words("expected calls that wait", "Unset NCCL_COMM_BLOCKING", NULL);
}

/* A network on which NCCL does not get to the others: its calls never return. */
static void test_stuck_start(void **state)
{
    (void)state;
    make_model("rand-llama-gqa-tied", "model");
    assert_int_equal(setenv("SHIM_NCCL_STUCK", "", 1), 0);
    finish(start_ranks(2, VQROUND, BY_TWO, LIST("--comm.limit_s", "3", "--out", "run")));
    unsetenv("SHIM_NCCL_STUCK");
    expect_code(6);
    expect_words("waited 3 s for NCCL's start", "--comm mpi", NULL);
    char *error = read_file("run/error.txt", NULL);
    assert_true(atoi(error) == 6 && strstr(error, "NCCL's start"));
    free(error);
}

/* Replicas sum up their Hessians through the host. */
static void test_gptq_by_replicas(void **state)
{
    (void)state;
    make_model("rand-llama-gqa-tied", "model");
    for (int i = 0; i < 2; i++) {
        const char *propagate = i ? "quantized" : "float";
        QUANTIZE(0, "model", BASELINE, propagate, "--out", "one");
        QUANTIZE(2, "model", BASELINE, propagate, "--replicas", "2", "--out", "two");
        expect_near_run("one", "two");
        remove_all("one");
        remove_all("two");
    }
}

/* The grids of a run serve others, with other codebooks and on the other device. */
static void test_shared_grids(void **state)
{
    (void)state;
    make_model("rand-llama-gqa-tied", "model");
    QUANTIZE(0, "model", START("cuda", "--init", "gptq"), "--out", "alone");
    QUANTIZE(0, "model", START("cuda", "--init", "gptq"), "--kmeans.seed", "2", "--share", "s",
             "--out", "first");
    QUANTIZE(2, "model", START("cuda", "--init", "gptq"), "--share", "s", "--out", "second");
    expect_same_run("alone", "second", 3);
    QUANTIZE(0, "model", START("cpu", "--init", "gptq"), "--kmeans.seed", "3", "--share", "s",
             "--out", "third");
    expect_same_start("alone", "third", "base");
}

/* Nothing of the start by rounding to nearest is a sum of activations: the CPU's bits, where its
 * products are fused as the GPU's are. */
static void test_start_from_rtn(void **state)
{
    (void)state;
#ifdef __FMA__
    static const char *const methods[] = {"adaround", "lora", "vqround"};
    static const char *const devices[] = {"cpu", "cuda"};
    make_model("rand-llama-gqa-tied", "model");
    for (int i = 0; i < VQ_COUNT(methods); i++) {
        for (int j = 0; j < 2; j++)
            QUANTIZE(0, "model", "--method", methods[i], "--device", devices[j], "--steps", "1",
                     "--no-eval", "--threads", "1", "--out", devices[j]);
        expect_same_start("cpu", "cuda", NULL);
        for (int j = 0; j < 2; j++) remove_all(devices[j]);
    }
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_parts_are_the_pool, clear_folder),
        cmocka_unit_test_teardown(test_start_by_stages, clear_folder),
        cmocka_unit_test_teardown(test_nccl, clear_folder),
        cmocka_unit_test_teardown(test_own_gpus, clear_folder),
        cmocka_unit_test_teardown(test_stuck_start, clear_folder),
        cmocka_unit_test_teardown(test_gptq_by_replicas, clear_folder),
        cmocka_unit_test_teardown(test_shared_grids, clear_folder),
        cmocka_unit_test_teardown(test_start_from_rtn, clear_folder),
    };
    return cmocka_run_group_tests(tests, enter_world, leave_world);
}
