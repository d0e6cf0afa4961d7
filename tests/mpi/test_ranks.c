/* test_ranks - the whole job on several ranks against one process: the same bits on any number of
 * stages and threads, also when a run goes on in another world; the same numbers to rounding with
 * replicas and with slices. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mpi/small_runs.h"

enum { CODES = 32, WIDTH = 8 };

/* --- stages and threads ---------------------------------------------------------------------- */

static void stages_and_threads(const char *model)
{
    QUANTIZE(0, model, "--steps", "3", "--threads", "1", "--out", "one");
    QUANTIZE(0, model, "--steps", "3", "--threads", "3", "--out", "threads");
    QUANTIZE(2, model, "--steps", "3", "--threads", "2", "--out", "two");
    QUANTIZE(3, model, "--steps", "3", "--threads", "1", "--out", "three");
    QUANTIZE(4, model, "--steps", "3", "--threads", "3", "--out", "four");
    static const char *const others[] = {"threads", "two", "three", "four"};
    for (int i = 0; i < VQ_COUNT(others); i++) expect_same_run("one", others[i], 3);
    expect_same_files("one/layers.jsonl", "four/layers.jsonl");
    /* Each rank wrote its own part, and says what memory it took. */
    assert_true(find_name("four", "teacher-0003-", ".h5") &&
                !find_name("four", "teacher-0000-", ".h5"));
    json_t *r = load_json("four/results.json");
    const json_t *peaks = json_object_get(r, "peak_rss_bytes");
    assert_int_equal(json_array_size(peaks), 4);
    for (size_t i = 0; i < 4; i++)
        assert_true(json_number_value(json_array_get(peaks, i)) > 1 << 20);
    /* Where each rank's time went is all of its time. */
    static const char *const shares[] = {"compute", "sums", "messages"};
    for (size_t i = 0; i < 4; i++) {
        double sum = 0;
        for (int k = 0; k < VQ_COUNT(shares); k++) {
            const json_t *list = json_object_get(json_object_get(r, "train_ratio"), shares[k]);
            const double share = json_number_value(json_array_get(list, i));
            assert_true(share > 0 && share < 1);
            sum += share;
        }
        assert_true(fabs(sum - 1) < 1e-9);
    }
    json_decref(r);
}

/* Begun on 3 stages, gone on on 1 and ended on 2: as if never stopped. */
static void resumed(const char *model)
{
    ONE_STEP(3, model, "--steps", "3", "--threads", "1", "--out", "parts");
    ONE_STEP(0, model, "--steps", "3", "--threads", "3", "--out", "parts");
    QUANTIZE(2, model, "--steps", "3", "--threads", "2", "--out", "parts");
    expect_same_run("one", "parts", 3);
}

static void slices(const char *model)
{
    metrics whole[3], cut[3];
    QUANTIZE(0, model, "--steps", "3", "--slices", "4", "--out", "cut");
    QUANTIZE(3, model, "--steps", "3", "--slices", "4", "--out", "cut3");
    expect_same_run("cut", "cut3", 3);
    assert_int_equal(read_metrics("cut", cut, 3), 3);
    assert_int_equal(read_metrics("one", whole, 3), 3);
    if (fabs(cut[0].loss / whole[0].loss - 1) > 1e-5 ||
        fabs(cut[0].grad_norm / whole[0].grad_norm - 1) > 1e-5)
        fail_msg("4 slices: loss %.9g, gradient %.9g; 1: %.9g, %.9g", cut[0].loss, cut[0].grad_norm,
                 whole[0].loss, whole[0].grad_norm);
}

static void family(const char *model)
{
    stages_and_threads(model);
    resumed(model);
    slices(model);
}

static void test_llama(void **state)
{
    (void)state;
    family(MODELS "tiny-llama");
}

static void test_opt(void **state)
{
    (void)state;
    family(MODELS "tiny-opt");
}

static void test_qwen3(void **state)
{
    (void)state;
    family(MODELS "tiny-qwen3");
}

/* --- going on in another world --------------------------------------------------------------- */

static void test_resume_on_other_stages(void **state)
{
    (void)state;
    QUANTIZE(0, MODELS "tiny-llama", "--steps", "5", "--out", "whole");
    ONE_STEP(0, MODELS "tiny-llama", "--steps", "5", "--out", "parts");
    const ino_t init = number_of("parts/init-0003-0000.h5");
    ONE_STEP(3, MODELS "tiny-llama", "--steps", "5", "--threads", "2", "--out", "parts");
    ONE_STEP(2, MODELS "tiny-llama", "--steps", "5", "--threads", "1", "--out", "parts");
    QUANTIZE(4, MODELS "tiny-llama", "--steps", "5", "--threads", "1", "--out", "parts");
    expect_same_run("whole", "parts", 5);
    /* What the one process had made served all later worlds. */
    assert_true(number_of("parts/init-0003-0000.h5") == init &&
                find_name("parts", "teacher-0000-", ".h5"));
    assert_false(find_name("parts", "teacher-0002-", ".h5"));
    /* Parts of the teacher's states by one world after the other, of which some were lost. */
    copy_folder("parts", "lost");
    remove_all("lost/results.json");
    for (int step = 1; step <= 5; step++) remove_all(text("lost/ckpt-%010d.h5", step));
    for (int part = 0; part < 5; part++) remove_all(text("lost/teacher-0000-%04d.h5", part));
    ONE_UNIT(3, MODELS "tiny-llama", "--steps", "5", "--out", "lost");
    ONE_UNIT(2, MODELS "tiny-llama", "--steps", "5", "--out", "lost");
    ONE_UNIT(2, MODELS "tiny-llama", "--steps", "5", "--out", "lost");
    remove_all("lost/teacher-0002-0000.h5");
    ONE_UNIT(0, MODELS "tiny-llama", "--steps", "5", "--out", "lost");
    assert_true(exists("lost/teacher-0000-0000.h5") && exists("lost/teacher-0001-0001.h5"));
    QUANTIZE(0, MODELS "tiny-llama", "--steps", "5", "--out", "lost");
    expect_same_run("whole", "lost", 5);
    /* And the other way round: files of many ranks read by one. */
    ONE_STEP(4, MODELS "tiny-llama", "--steps", "5", "--out", "back");
    QUANTIZE(0, MODELS "tiny-llama", "--steps", "5", "--out", "back");
    expect_same_run("whole", "back", 5);
    assert_true(find_name("back", "teacher-0003-", ".h5"));
    assert_false(find_name("back", "teacher-0000-", ".h5"));
}

/* --- a layout chosen by memory --------------------------------------------------------------- */

#define FOUR_SEQUENCES                                                                             \
    "--batch-size", "4", "--steps", "3", "--threads", "1", "--train.recompute", "on"

/* What `vqround plan` says of four ranks with these options. */
static json_t *plan_of_four(const char *memory_gib, const char *stages)
{
    finish(start_ranks(0, VQROUND,
                       LIST("plan", "--model", MODELS "tiny-llama", "--bits", "2", "--K", "32",
                            "--nsamples", "5", "--seqlen", "24", "--eval-max-windows", "3",
                            "--ranks", "4", "--json", FOUR_SEQUENCES),
                       LIST("--plan.memory_gib", memory_gib, "--stages", stages)));
    expect_code(0);
    return last_json();
}

static double fixed_gib(const char *stages)
{
    json_t *plan = plan_of_four("1000", stages), *ranks = json_object_get(plan, "ranks");
    double bytes = 0;
    for (size_t i = 0; i < 4; i++) bytes += json_number(json_array_get(ranks, i), "fixed_bytes");
    json_decref(plan);
    return bytes / 4 / (double)(1 << 30);
}

static void expect_layout(const char *memory_gib, int stages)
{
    json_t *plan = plan_of_four(memory_gib, "0");
    assert_int_equal((int)json_number(plan, "stages"), stages);
    assert_int_equal((int)json_number(plan, "replicas"), 4 / stages);
    json_decref(plan);
}

/* As many replicas as there is room for: the plan on paper and the job choose alike, and the job
 * then has the layers of what it chose. */
static void test_layout_by_memory(void **state)
{
    (void)state;
    const double one = fixed_gib("1"), two = fixed_gib("2"), four = fixed_gib("4");
    assert_true(four < two && two < one);
    const char *too_few_for_two = text("%.9f", (four + two) / 2);
    expect_layout(too_few_for_two, 4);
    expect_layout(text("%.9f", (two + one) / 2), 2);
    expect_layout(text("%.9f", one * 1.01), 1);
    QUANTIZE(0, MODELS "tiny-llama", FOUR_SEQUENCES, "--out", "one");
    finish(
        start_ranks(4, VQROUND, COMMON(MODELS "tiny-llama"),
                    LIST(FOUR_SEQUENCES, "--plan.memory_gib", too_few_for_two, "--out", "four")));
    expect_code(0);
    expect_words("will be read from disk again and again", NULL);
    json_t *results = load_json("four/results.json");
    assert_true(json_number(results, "machine/stages") == 4 &&
                json_number(results, "machine/replicas") == 1);
    json_decref(results);
    expect_same_run("one", "four", 3);
}

/* --- replicas -------------------------------------------------------------------------------- */

/* The norm of each linear's part of the first gradient, which Adam's first moment is a tenth of. */
static void expect_gradients(const char *a, const char *b, double limit)
{
    const size_t mark = vq_arena_mark(&arena);
    const vq_tensor x = read_checkpoint(a, 1, "m"), y = read_checkpoint(b, 1, "m");
    const float *p = x.data, *q = y.data;
    const int64_t n = vq_tensor_count(&x), each = CODES * WIDTH;
    assert_true(vq_tensor_same_shape(&x, &y) && n % each == 0 && x.dtype == VQ_F32);
    for (int64_t i = 0; i < n; i += each) {
        double norm_x = 0, norm_y = 0;
        for (int64_t j = i; j < i + each; j++) {
            norm_x += (double)p[j] * (double)p[j];
            norm_y += (double)q[j] * (double)q[j];
        }
        if (fabs(sqrt(norm_y / norm_x) - 1) > limit)
            fail_msg("linear %lld: the gradient of %s is %.9g, of %s %.9g", (long long)(i / each),
                     a, sqrt(norm_x), b, sqrt(norm_y));
    }
    vq_arena_reset(&arena, mark);
}

static void expect_near(const char *a, const char *b, int steps)
{
    metrics x[64], y[64];
    assert_int_equal(read_metrics(a, x, 64), steps);
    assert_int_equal(read_metrics(b, y, 64), steps);
    for (int i = 0; i < steps; i += steps - 1) {
        const double limit = i == 0 ? 1e-6 : 1e-4;
        if (fabs(y[i].loss / x[i].loss - 1) > limit)
            fail_msg("step %d: %s has the loss %.9g, %s %.9g: expected within %g", i, a, x[i].loss,
                     b, y[i].loss, limit);
    }
    expect_gradients(a, b, 1e-6);
}

/* 5 windows in batches of 4: the second step of an epoch has one sequence, and most replicas none.
 */
static void test_replicas(void **state)
{
    (void)state;
    make_model("rand-llama-gqa-tied", "model");
    QUANTIZE(0, "model", "--steps", "20", "--batch-size", "4", "--out", "one");
    QUANTIZE(4, "model", "--steps", "20", "--batch-size", "4", "--threads", "1", "--out", "four");
    QUANTIZE(4, "model", "--steps", "20", "--batch-size", "4", "--threads", "1", "--stages", "2",
             "--out", "square");
    QUANTIZE(3, "model", "--steps", "20", "--batch-size", "4", "--threads", "1", "--replicas", "3",
             "--slices", "2", "--out", "three");
    expect_near("one", "four", 20);
    expect_near("one", "square", 20);
    metrics x[20], y[20];
    read_metrics("one", x, 20);
    read_metrics("three", y, 20);
    assert_true(fabs(y[0].loss / x[0].loss - 1) < 1e-5 && fabs(y[19].loss / x[19].loss - 1) < 1e-4);
    /* Nothing was made twice: each replica's part is in its own file. */
    assert_true(exists("four/init-0000-0003.h5") && find_name("four", "teacher-0003-", ".h5"));
    assert_true(find_name("square", "teacher-0001-", ".h5") &&
                find_name("square", "teacher-0003-", ".h5"));
    assert_false(find_name("square", "teacher-0000-", ".h5") ||
                 find_name("square", "teacher-0002-", ".h5"));
    /* Started as replicas and finished by one process. */
    ONE_STEP(4, "model", "--steps", "20", "--batch-size", "4", "--stages", "2", "--out", "mixed");
    QUANTIZE(0, "model", "--steps", "20", "--batch-size", "4", "--out", "mixed");
    expect_near("one", "mixed", 20);
    assert_false(find_name("mixed", "teacher-0000-", ".h5"));
}

/* --- other ways to train --------------------------------------------------------------------- */

/* One process and two stages with the same further options. */
#define SAME_ON_TWO(...)                                                                           \
    do {                                                                                           \
        QUANTIZE(0, "model", "--steps", "3", "--batch-size", "2", __VA_ARGS__, "--out", "a");      \
        QUANTIZE(2, "model", "--steps", "3", "--batch-size", "2", "--stages", "2", __VA_ARGS__,    \
                 "--out", "b");                                                                    \
        expect_same_run("a", "b", 3);                                                              \
        remove_all("a");                                                                           \
        remove_all("b");                                                                           \
    } while (0)

static void test_other_settings(void **state)
{
    (void)state;
    make_model("rand-qwen3-tied", "model");
    make_model("rand-llama3-rope", "teacher");
    SAME_ON_TWO("--loss", "lm");
    SAME_ON_TWO("--rounding", "hard", "--block-steps", "2");
    SAME_ON_TWO("--no-teacher.cache");
    SAME_ON_TWO("--teacher.model", "teacher");
    SAME_ON_TWO("--teacher.model", "teacher", "--no-teacher.cache", "--slices", "3");
    SAME_ON_TWO("--train.recompute", "on", "--kmeans.start", "own");
    SAME_ON_TWO("--by-sign", "--grid", "mse", "--group-size", "20");
    make_model("rand-opt350", "model"); /* projections at both ends */
    SAME_ON_TWO("--slices", "24");
}

/* Weights made once a step or for each product: the same bits, also where a run changes its mind.
 */
#define SAME_WEIGHTS(...)                                                                          \
    do {                                                                                           \
        QUANTIZE(0, "model", "--steps", "3", "--batch-size", "2", __VA_ARGS__, "--out", "a");      \
        ONE_STEP(2, "model", "--steps", "3", "--batch-size", "2", "--stages", "2",                 \
                 "--train.keep_weights", "on", __VA_ARGS__, "--out", "b");                         \
        ONE_STEP(2, "model", "--steps", "3", "--batch-size", "2", "--stages", "2", __VA_ARGS__,    \
                 "--out", "b");                                                                    \
        QUANTIZE(2, "model", "--steps", "3", "--batch-size", "2", "--stages", "2",                 \
                 "--train.keep_weights", "on", __VA_ARGS__, "--out", "b");                         \
        expect_same_run("a", "b", 3);                                                              \
        remove_all("a");                                                                           \
        remove_all("b");                                                                           \
    } while (0)

static void test_kept_weights(void **state)
{
    (void)state;
    make_model("rand-qwen3-tied", "model");
    SAME_WEIGHTS("--learn-scale", "--slices", "3");
    SAME_WEIGHTS("--rounding", "hard", "--train.recompute", "on", "--by-sign");
    SAME_WEIGHTS("--method", "lora", "--no-teacher.cache");
}

static void test_eval(void **state)
{
    (void)state;
    json_t *result[3];
    static const int ranks[] = {0, 3, 2};
    for (int i = 0; i < 3; i++) {
        finish(start_ranks(ranks[i], VQROUND,
                           LIST("eval", "--model", MODELS "tiny-opt", "--text", HELD_OUT,
                                "--seqlen", "32", "--max-windows", "5", "--json", "--quiet"),
                           LIST("--threads", text("%d", i + 1))));
        expect_code(0);
        result[i] = last_json();
        assert_true(json_number(result[i], "perplexity") == json_number(result[0], "perplexity"));
        assert_true(json_number(result[i], "windows") == 5);
    }
    for (int i = 0; i < 3; i++) json_decref(result[i]);
}

#define EVALUATIONS(out)                                                                           \
    LIST("quantize", "--model", MODELS "tiny-llama", "--text", CALIB, "--eval-text", HELD_OUT,     \
         "--bits", "2", "--nsamples", "5", "--seqlen", "24", "--method", "gptq", "--eval.seqlen",  \
         "512", "--eval-max-windows", "9", "--batch-size", "2", "--threads", "1", "--out", out)

static double perplexity(const char *run, const char *label)
{
    json_t *all = load_json(text("%s/eval.json", run));
    const double found = json_number(all, text("%s/perplexity", label));
    assert_int_equal((int)json_number(all, text("%s/windows", label)), 9);
    json_decref(all);
    return found;
}

/* Four windows go together: three evaluations that are stopped twice each, and gone on with by
 * another world, whose windows may be dealt otherwise. Files of other weights, or of none, are
 * begun anew. */
static void test_evaluations_in_parts(void **state)
{
    (void)state;
    static const char *const labels[] = {"fp", "rtn", "gptq"};
    static const struct {
        int ranks;
        const char *stages;
    } worlds[] = {{0, "1"}, {2, "2"}, {2, "1"}, {4, "2"}};
    int stops = 0;
    finish(start_ranks(0, VQROUND, EVALUATIONS("whole"), LIST("--quiet")));
    expect_code(0);
    for (int i = 0; i < 40; i++) {
        const int world = i % VQ_COUNT(worlds);
        finish(
            start_ranks(worlds[world].ranks, VQROUND, EVALUATIONS("parts"),
                        LIST("--quiet", "--stages", worlds[world].stages, "--max-hours", "1e-9")));
        if (last.code == 0) break;
        expect_code(75);
        if (!strstr(last.err, "after window")) continue;
        if (++stops == 1) copy_file("parts/eval-fp.h5", "parts/eval-rtn.h5");
        if (stops == 1) write_text("parts/eval-gptq.h5", "no HDF5");
    }
    expect_code(0);
    assert_true(stops >= 4);
    for (int i = 0; i < VQ_COUNT(labels); i++) {
        assert_true(perplexity("parts", labels[i]) == perplexity("whole", labels[i]));
        assert_false(exists(text("parts/eval-%s.h5", labels[i])));
    }
    expect_same_model("whole/model", "parts/model");
}

/* Packed models: written by two stages and by one, exported again by three, evaluated by two. The
 * tensors are the same, whichever files they are in. */
static void test_packed(void **state)
{
    (void)state;
    static const char *const formats[] = {"gptq", "compressed-tensors"};
    QUANTIZE(0, MODELS "tiny-llama", "--steps", "2", "--group-size", "16", "--out", "dense");
    for (int f = 0; f < 2; f++) {
        const char *one = text("one-%d", f), *two = text("two-%d", f), *three = text("three-%d", f);
        QUANTIZE(0, MODELS "tiny-llama", "--steps", "2", "--group-size", "16", "--format",
                 formats[f], "--out", one);
        QUANTIZE(2, MODELS "tiny-llama", "--steps", "2", "--group-size", "16", "--format",
                 formats[f], "--out", two);
        expect_same_run(one, two, 2);
        finish(start_ranks(3, VQROUND, LIST("export", "--quiet", "--run", "dense"),
                           LIST("--format", formats[f], "--out", three)));
        expect_code(0);
        expect_same_model(text("%s/model", one), three);
        assert_true(exists(text("%s/model-00003-of-00003.safetensors", three)));
        json_t *p = load_json(text("%s/results.json", one)),
               *q = load_json(text("%s/results.json", two));
        assert_true(json_number(p, "model_bytes/after") == json_number(q, "model_bytes/after"));
        json_decref(p);
        json_decref(q);
        double perplexity[2];
        for (int i = 0; i < 2; i++) {
            finish(start_ranks(i ? 2 : 0, VQROUND,
                               LIST("eval", "--text", HELD_OUT, "--seqlen", "32", "--max-windows",
                                    "4", "--json", "--quiet", "--model"),
                               LIST(i ? three : "dense/model")));
            expect_code(0);
            json_t *row = last_json();
            perplexity[i] = json_number(row, "perplexity");
            json_decref(row);
        }
        assert_true(perplexity[0] == perplexity[1]);
    }
    /* What was trained stage by stage is found in the parts of other stages. */
    QUANTIZE(2, MODELS "tiny-llama", "--steps", "2", "--method", "adaround", "--train.pool_max",
             "1", "--learn-scale", "--out", "parts");
    finish(start_ranks(3, VQROUND, LIST("export", "--quiet", "--run", "parts"),
                       LIST("--out", "parts-dense")));
    expect_code(0);
    expect_same_model("parts/model", "parts-dense");
    /* All ranks end with one message when the run is not there. */
    finish(
        start_ranks(2, VQROUND, LIST("export", "--quiet", "--run", "none"), LIST("--out", "to")));
    expect_words("none: there is no config.yaml", "expected", "Check", NULL);
    expect_code(3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_llama, clear_folder),
        cmocka_unit_test_teardown(test_opt, clear_folder),
        cmocka_unit_test_teardown(test_qwen3, clear_folder),
        cmocka_unit_test_teardown(test_resume_on_other_stages, clear_folder),
        cmocka_unit_test_teardown(test_layout_by_memory, clear_folder),
        cmocka_unit_test_teardown(test_replicas, clear_folder),
        cmocka_unit_test_teardown(test_other_settings, clear_folder),
        cmocka_unit_test_teardown(test_kept_weights, clear_folder),
        cmocka_unit_test_teardown(test_eval, clear_folder),
        cmocka_unit_test_teardown(test_evaluations_in_parts, clear_folder),
        cmocka_unit_test_teardown(test_packed, clear_folder),
    };
    return cmocka_run_group_tests(tests, enter_world, leave_world);
}
