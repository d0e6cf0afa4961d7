/* job_on_cpu - whole jobs with --device cuda on the GPU that is none: the same commands, files and
 * results as on the CPU, and a run begun on one that goes on on the other. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define DEADLINE_S 240
#undef VQROUND
#define VQROUND VQROUND_ON_CPU

#include "cli/run.h"

#define PLANNED                                                                                    \
    "--model", ROOT_DIR "/configs/demo-model", "--bits", "3", "--K", "32", "--D", "4",             \
        "--nsamples", "2", "--seqlen", "16", "--steps", "4"
#define JOB(device, out)                                                                           \
    "quantize", PLANNED, "--text", CALIB, "--eval-text", HELD_OUT, "--lr", "0.05",                 \
        "--eval-max-windows", "2", "--checkpoint-every", "2", "--threads", "1", "--quiet",         \
        "--device", device, "--out", out

/* bf16 keeps 8 bits: perplexities of one model agree to about a percent. After training, roundings
 * that are nearly undecided fall to the other side by gradients' noise. */
#define BF16_RELATIVE 0.02
#define HARD_RELATIVE 0.06

static double perplexity(const char *run, const char *of)
{
    json_t *results = load_json(text("%s/results.json", run));
    const double value = json_number(results, text("perplexity/%s", of));
    json_decref(results);
    return value;
}

/* The mean of a number over the lines of layers.jsonl, of which there are as many as linears. */
static double mean_of_layers(const char *run, const char *of)
{
    FILE *file = fopen(text("%s/layers.jsonl", run), "r");
    double sum = 0;
    int n = 0;
    json_t *row;
    assert_non_null(file);
    for (; (row = json_loadf(file, JSON_DISABLE_EOF_CHECK, NULL)); n++) {
        sum += json_number(row, of);
        json_decref(row);
    }
    fclose(file);
    assert_int_equal(n, 6 * 7);
    return sum / n;
}

static void expect_alike(const char *run, const char *other)
{
    const double error = mean_of_layers(run, "rtn_error"),
                 expected = mean_of_layers(other, "rtn_error");
    if (!(fabs(error / expected - 1) <= BF16_RELATIVE))
        fail_msg("%s: the weights' error is %.6g, in %s %.6g", run, error, other, expected);
    static const char *const kinds[] = {"fp", "rtn", "soft", "hard"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const double a = perplexity(run, kinds[i]), b = perplexity(other, kinds[i]);
        if (!(fabs(a - b) <= (i == 3 ? HARD_RELATIVE : BF16_RELATIVE) * b))
            fail_msg("%s: perplexity %s is %.6g, in %s %.6g", run, kinds[i], a, other, b);
    }
}

/* As if the run had ended at its checkpoint of step 2. */
static void take_back(const char *run)
{
    remove_all(text("%s/results.json", run));
    remove_all(text("%s/eval.json", run));
    remove_all(text("%s/model", run));
    const char *last_step = find_name(run, "ckpt-0000000004", ".h5");
    assert_non_null(last_step);
    remove_all(last_step);
    assert_non_null(find_name(run, "ckpt-0000000002", ".h5"));
}

/* A GPU's peak is in all tables, and within the plan: on this one, which has no context, far below.
 */
static void expect_peak_of_gpu(const char *run)
{
    json_t *results = load_json(text("%s/results.json", run));
    const double taken = json_number(results, "peak_gpu_bytes");
    json_decref(results);
    assert_non_null(strstr(last.out, "peak memory") && strstr(last.out, "  GPU "));
    char *page = read_file(text("%s/report.html", run), NULL);
    assert_non_null(strstr(page, "Peak memory of the GPU"));
    free(page);
    RUN_OK("plan", PLANNED, "--device", "cuda", "--plan.memory_gib", "1", "--json");
    json_t *plan = last_json();
    const double planned =
        json_number(json_array_get(json_object_get(plan, "ranks"), 0), "total_bytes");
    json_decref(plan);
    if (!(taken > 32 << 20 && taken < planned)) /* 32 MiB: the products' workspace */
        fail_msg("%.0f bytes of the GPU taken, %.0f planned", taken, planned);
}

static void test_same_as_the_cpu(void **state)
{
    (void)state;
    RUN_OK(JOB("cpu", "cpu"));
    json_t *results = load_json("cpu/results.json");
    assert_true(json_is_null(json_object_get(results, "peak_gpu_bytes")));
    json_decref(results);
    RUN_OK(JOB("cuda", "gpu"));
    expect_peak_of_gpu("gpu");
    expect_alike("gpu", "cpu");
    assert_true(exists("gpu/init-0000-0000.h5") && exists("gpu/teacher-0000-0000.h5"));
    RUN_OK("eval", "--model", "gpu/model", "--text", HELD_OUT, "--seqlen", "16", "--max-windows",
           "2", "--device", "cuda", "--json", "--quiet");
    json_t *row = last_json();
    const double found = json_number(row, "perplexity"), hard = perplexity("gpu", "hard");
    json_decref(row);
    if (!(fabs(found - hard) <= BF16_RELATIVE * hard))
        fail_msg("the exported model's perplexity is %.6g, the run's %.6g", found, hard);
}

#define TEACHER                                                                                    \
    "--model", ROOT_DIR "/configs/demo-model", "--bits", "3", "--K", "32", "--D", "4",             \
        "--nsamples", "8", "--seqlen", "16", "--steps", "2", "--batch-size", "4", "--no-eval",     \
        "--device", "cuda"

/* A little less memory than for all weights and a window: how many windows pass together is then
 * more than one. */
static double scarce_gib(const char *cache)
{
    for (double gib = 0.75; gib > 0.6; gib -= 0.001) {
        RUN_OK("plan", TEACHER, cache, "--plan.memory_gib", text("%.3f", gib), "--json");
        json_t *plan = last_json();
        const json_t *rank = json_array_get(json_object_get(plan, "ranks"), 0);
        const bool is_scarce = json_number(rank, "hold_bytes") < json_number(rank, "own_bytes");
        const double together = json_number(rank, "together");
        json_decref(plan);
        if (is_scarce && together > 1) return gib;
        if (is_scarce) fail_msg("at %.3f GiB %g windows pass together", gib, together);
    }
    fail_msg("all weights stay at any memory");
    return 0;
}

/* Where weights are brought, for several windows at a time: the teacher's states have the same
 * bits, and so has all that comes of them. */
static void test_windows_together(void **state)
{
    (void)state;
    static const struct {
        const char *cache, *held, *brought;
    } runs[] = {{"--teacher.cache", "held", "brought"},
                {"--no-teacher.cache", "held-live", "brought-live"}};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        RUN_OK("quantize", TEACHER, runs[i].cache, "--text", CALIB, "--threads", "1", "--quiet",
               "--out", runs[i].held);
        RUN_OK("quantize", TEACHER, runs[i].cache, "--text", CALIB, "--threads", "1", "--quiet",
               "--out", runs[i].brought, "--plan.memory_gib",
               text("%.3f", scarce_gib(runs[i].cache)));
        expect_same_files(text("%s/model/model.safetensors", runs[i].held),
                          text("%s/model/model.safetensors", runs[i].brought));
    }
}

static void test_resumes_on_the_other(void **state)
{
    (void)state;
    copy_folder("cpu", "cpu-gpu");
    take_back("cpu-gpu");
    RUN_OK(JOB("cuda", "cpu-gpu"));
    expect_alike("cpu-gpu", "cpu");
    copy_folder("gpu", "gpu-cpu");
    take_back("gpu-cpu");
    RUN_OK(JOB("cpu", "gpu-cpu"));
    expect_alike("gpu-cpu", "cpu");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_as_the_cpu),
                                       cmocka_unit_test(test_windows_together),
                                       cmocka_unit_test(test_resumes_on_the_other)};
    return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
