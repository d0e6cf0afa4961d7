/* test_job - whole jobs through the command line: what they leave, and that it is right. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "run.h"

/* A job of a second or less; its settings may be followed by more. */
#define SMALL                                                                                      \
    "--text", CALIB, "--eval-text", HELD_OUT, "--K", "32", "--D", "4", "--nsamples", "3",          \
        "--seqlen", "32", "--steps", "6", "--lr", "0.05", "--eval-max-windows", "4", "--quiet"

static const char *const results_numbers[] = {
    "perplexity/fp",    "perplexity/rtn",     "perplexity/soft",    "perplexity/hard",
    "seconds/tokens",   "seconds/init",       "seconds/teacher",    "seconds/train",
    "seconds/eval",     "seconds/export",     "seconds/total",      "steps",
    "seconds_per_step", "trained_parameters", "model_bytes/before", "model_bytes/after"};

static void expect_near(double a, double b, double relative)
{
    if (!(fabs(a - b) <= relative * fabs(b))) fail_msg("%.9g, expected %.9g", a, b);
}

/* The perplexity of a model folder on the small job's evaluation windows, from eval --json. */
static double perplexity_of(const char *model)
{
    RUN_OK("eval", "--model", model, "--text", HELD_OUT, "--seqlen", "32", "--max-windows", "4",
           "--json", "--quiet");
    assert_string_equal(last.err, "");
    json_t *row = last_json();
    assert_true(json_number(row, "windows") == 4);
    assert_true(json_number(row, "tokens") == 4 * 32);
    assert_true(json_number(row, "seconds") > 0);
    const double perplexity = json_number(row, "perplexity");
    json_decref(row);
    return perplexity;
}

/* metrics.jsonl has each step once, in order. */
static void check_metrics(const char *run, int steps)
{
    char *metrics = read_file(text("%s/metrics.jsonl", run), NULL), *line = metrics, *end;
    int n = 0;
    for (; (end = strchr(line, '\n')); line = end + 1, n++) {
        json_t *row = json_loadb(line, (size_t)(end - line), 0, NULL);
        assert_true(json_number(row, "step") == n);
        assert_true(isfinite(json_number(row, "loss")) && json_number(row, "seconds") >= 0);
        json_decref(row);
    }
    assert_int_equal(n, steps);
    assert_int_equal(*line, '\0');
    free(metrics);
}

/* A finished run: its files, its results, and a model that another eval finds as good. */
static void check_run(const char *run, const char *source, double tolerance)
{
    static const char *const files[] = {"config.yaml",       "tokens.h5",
                                        "report.html",       "results.json",
                                        "model/config.json", "model/model.safetensors"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (!exists(text("%s/%s", run, files[i]))) fail_msg("%s lacks %s", run, files[i]);
    assert_non_null(find_name(run, "init-", ".h5"));
    assert_non_null(find_name(run, "teacher-", ".h5"));
    assert_non_null(find_name(run, "ckpt-", ".h5"));
    assert_null(find_name(run, "", ".tmp"));
    assert_null(find_name(text("%s/model", run), "", ".tmp"));
    expect_same_files(text("%s/model/config.json", run), text("%s/config.json", source));
    check_metrics(run, 6);

    json_t *results = load_json(text("%s/results.json", run));
    for (size_t i = 0; i < sizeof results_numbers / sizeof *results_numbers; i++)
        assert_true(json_number(results, results_numbers[i]) > 0);
    assert_true(json_number(results, "steps") == 6);
    assert_true(json_number(results, "model_bytes/after") <
                json_number(results, "model_bytes/before"));
    assert_true(json_number(results, "seconds/train") <= json_number(results, "seconds/total"));
    assert_true(json_is_integer(json_array_get(json_object_get(results, "peak_rss_bytes"), 0)));
    expect_near(perplexity_of(source), json_number(results, "perplexity/fp"), 1e-7);
    expect_near(perplexity_of(text("%s/model", run)), json_number(results, "perplexity/hard"),
                tolerance);
    json_decref(results);
}

static void families_are_quantized(void **state)
{
    (void)state;
    static const struct {
        const char *model, *bits, *group, *sym, *more;
        double tolerance; /* the exported weights are rounded to the model's type */
    } cases[] = {
        {"rand-llama3-rope", "4", "-1", "--no-sym", "--no-eval-start", 0.01},
        {"rand-llama-f16-sharded", "3", "16", "--sym", "--eval-start", 0.002},
        {"rand-llama2-bin", "8", "-1", "--no-sym", "--no-eval-start", 0.002},
        {"rand-llama-gqa-tied", "2", "-1", "--no-sym", "--no-eval-start", 1e-6},
        {"rand-opt-f32", "2", "8", "--no-sym", "--no-eval-start", 1e-6},
        {"rand-opt-bin", "3", "-1", "--sym", "--no-eval-start", 0.002},
        {"rand-opt350", "4", "16", "--no-sym", "--no-eval-start", 0.002},
        {"rand-qwen3-tied", "3", "-1", "--no-sym", "--eval-start", 1e-6},
        {"rand-qwen3-headdim", "4", "-1", "--sym", "--no-eval-start", 0.01},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        make_model(cases[i].model, "m");
        remove_all("run");
        RUN_OK("quantize", "--model", "m", "--bits", cases[i].bits, "--group-size", cases[i].group,
               cases[i].sym, cases[i].more, "--out", "run", SMALL);
        assert_string_equal(last.err, "");
        assert_non_null(strstr(last.out, "VQRound, hard"));
        assert_non_null(strstr(last.out, "run/model"));
        assert_non_null(strstr(last.out, " %\n")); /* above full precision */
        assert_non_null(strstr(last.out, "vqround export --run run --format gptq --out DIR\n"));
        check_run("run", "m", cases[i].tolerance);
        json_t *results = load_json("run/results.json");
        const bool with_start = !strcmp(cases[i].more, "--eval-start");
        assert_int_equal(
            json_is_real(json_object_get(json_object_get(results, "perplexity"), "start_hard")),
            with_start);
        json_decref(results);
    }
}

/* With real tokenizers, and the texts' last tenth held out. */
static void trained_models_are_quantized(void **state)
{
    (void)state;
    static const char *const models[] = {MODELS "tiny-opt", ROOT_DIR "/configs/demo-model"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        remove_all("run");
        RUN_OK("quantize", "--model", models[i], "--text", CALIB, "--bits", "3", "--out", "run",
               "--K", "32", "--nsamples", "2", "--seqlen", "32", "--steps", "2",
               "--eval-max-windows", "2");
        expect_words("last tenth", "tokens ", "init ", "train ", "export ", NULL);
        json_t *results = load_json("run/results.json");
        const double fp = json_number(results, "perplexity/fp");
        assert_true(json_number(results, "perplexity/hard") < 2 * fp);
        json_decref(results);
    }
}

static void threads_do_not_change_bits(void **state)
{
    (void)state;
    const char *const threads[] = {"1", "2", "3"};
    for (int i = 0; i < 3; i++) {
        const char *out = text("t%s", threads[i]);
        RUN_OK("quantize", "--model", ROOT_DIR "/configs/demo-model", "--text", CALIB, "--no-eval",
               "--bits", "2", "--K", "64", "--nsamples", "2", "--seqlen", "48", "--steps", "3",
               "--quiet", "--threads", threads[i], "--out", out);
        if (i == 0) continue;
        static const char *const files[] = {"model/model.safetensors", "tokens.h5"};
        for (size_t j = 0; j < sizeof files / sizeof *files; j++)
            expect_same_files(text("%s/%s", out, files[j]), text("t1/%s", files[j]));
        for (int layer = 0; layer < 2; layer++)
            expect_same_files(text("%s/init-%04d-0000.h5", out, layer),
                              text("t1/init-%04d-0000.h5", layer));
        expect_same_files(find_name(out, "teacher-", ".h5"), find_name("t1", "teacher-", ".h5"));
        expect_same_files(find_name(out, "ckpt-", ".h5"), find_name("t1", "ckpt-", ".h5"));
    }
    json_t *results = load_json("t1/results.json");
    assert_true(json_is_null(json_object_get(json_object_get(results, "perplexity"), "fp")));
    json_decref(results);
}

/* Codes of one pattern of signs each: hard rounding before training is the start's own. */
static void codes_by_sign_cost_nothing(void **state)
{
    (void)state;
    static const char *const starts[] = {"rtn", "gptq"};
    make_model("rand-opt-f32", "m");
    for (int i = 0; i < 2; i++) {
        remove_all("run");
        RUN_OK("quantize", "--model", "m", "--bits", "3", "--group-size", "20", "--init", starts[i],
               "--by-sign", "--eval-start", "--out", "run", SMALL);
        json_t *results = load_json("run/results.json");
        expect_near(json_number(results, "perplexity/start_hard"),
                    json_number(results, text("perplexity/%s", starts[i])), 1e-6);
        json_decref(results);
    }
}

/* Every method with every size of groups, on widths of 256 and 688: what is written is what was
 * measured, and small groups round better than whole rows. */
static void groups_serve_every_method(void **state)
{
    (void)state;
    static const struct {
        const char *method, *measured;
    } methods[] = {
        {"rtn", "perplexity/rtn"}, {"gptq", "perplexity/gptq"}, {"vqround", "perplexity/hard"}};
    static const char *const sizes[] = {"-1", "128", "64", "32"};
    for (int m = 0; m < 3; m++) {
        double whole = 0;
        for (int i = 0; i < 4; i++) {
            remove_all("run");
            RUN_OK("quantize", "--model", MODELS "tiny-llama", "--bits", "2", "--method",
                   methods[m].method, "--group-size", sizes[i], "--by-sign", "--out", "run", SMALL);
            json_t *results = load_json("run/results.json");
            const double perplexity = json_number(results, methods[m].measured);
            expect_near(perplexity_of("run/model"), perplexity, 0.01);
            json_decref(results);
            if (i == 0) whole = perplexity;
            if (i == 3 && !(perplexity < whole))
                fail_msg("%s: %g with groups of 32, %g with whole rows", methods[m].method,
                         perplexity, whole);
        }
    }
}

static void methods_and_losses(void **state)
{
    (void)state;
    make_model("rand-opt-f32", "m");
    RUN_OK("quantize", "--model", "m", "--method", "rtn", "--out", "rtn", SMALL);
    json_t *results = load_json("rtn/results.json");
    expect_near(perplexity_of("rtn/model"), json_number(results, "perplexity/rtn"), 1e-6);
    assert_true(json_is_null(json_object_get(json_object_get(results, "perplexity"), "hard")));
    assert_true(json_number(results, "trained_parameters") == 0);
    assert_null(find_name("rtn", "ckpt-", ".h5"));
    json_decref(results);

    RUN_OK("quantize", "--model", "m", "--loss", "lm", "--out", "lm", SMALL);
    assert_null(find_name("lm", "teacher-", ".h5"));
    check_metrics("lm", 6);

    /* The cache is in the model's own f32, so both ways give the same bits. */
    RUN_OK("quantize", "--model", "m", "--out", "cached", SMALL);
    RUN_OK("quantize", "--model", "m", "--no-teacher.cache", "--out", "live", SMALL);
    assert_null(find_name("live", "teacher-", ".h5"));
    expect_same_files("cached/model/model.safetensors", "live/model/model.safetensors");

    /* The model as another's teacher: the same as its own. */
    copy_folder("m", "twin");
    RUN_OK("quantize", "--model", "m", "--teacher.model", "twin", "--out", "taught", SMALL);
    expect_same_files("cached/model/model.safetensors", "taught/model/model.safetensors");
    make_model("rand-opt-f32", "other");
    json_t *config = load_json("other/config.json");
    json_object_set_new(config, "vocab_size", json_integer(100));
    assert_int_equal(json_dump_file(config, "other/config.json", 0), 0);
    json_decref(config);
    RUN("quantize", "--model", "m", "--teacher.model", "other", "--out", "untaught", SMALL);
    EXPECT_FAILED(3, "other", "embed_tokens", "expected", "Use the config.json");
    RUN("quantize", "--model", "m", "--teacher.model", ROOT_DIR "/configs/demo-model", "--out",
        "untaught", SMALL);
    EXPECT_FAILED(2, "teacher.model", "vocabulary", "expected", "Choose a teacher");
    assert_false(exists("untaught"));
}

/* Layers trained one by one alone, without steps of the whole: what is trained is exported, also
 * later. */
static void blocks_alone(void **state)
{
    (void)state;
    make_model("rand-qwen3-tied", "m");
    RUN_OK("quantize", "--model", "m", "--text", CALIB, "--eval-text", HELD_OUT, "--K", "32", "--D",
           "4", "--nsamples", "3", "--seqlen", "32", "--eval-max-windows", "4", "--quiet",
           "--steps", "0", "--block-steps", "10", "--block-lr", "0.1", "--rounding", "hard",
           "--learn-scale", "--bits", "2", "--out", "blocks");
    assert_non_null(find_name("blocks", "blocks-", ".h5"));
    RUN_OK("export", "--run", "blocks", "--out", "later", "--quiet");
    expect_same_files("blocks/model/model.safetensors", "later/model.safetensors");
    json_t *r = load_json("blocks/results.json");
    assert_true(json_number(r, "seconds/blocks") > 0 && json_number(r, "steps") == 0);
    json_decref(r);
}

/* Every way of learning beats rounding to nearest, and says how many numbers it trained; what is
 * exported is what was trained, learned scales too. */
static void learned_rounding_beats_rtn(void **state)
{
    (void)state;
    static const struct {
        const char *method, *scales, *steps, *lr;
    } runs[] = {{"vqround", "--learn-scale", "150", "0.05"},
                {"vqround", "--rounding=hard", "100", "0.03"},
                {"adaround", "--no-learn-scale", "100", "0.05"},
                {"lora", "--learn-scale", "300", "0.02"}};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        RUN_OK("quantize", "--config", ROOT_DIR "/configs/demo.yaml", "--model",
               ROOT_DIR "/configs/demo-model", "--text", CALIB, "--eval-text", HELD_OUT, "--grid",
               "minmax", "--nsamples", "32", "--eval-max-windows", "20", "--method", runs[i].method,
               runs[i].scales, "--steps", runs[i].steps, "--lr", runs[i].lr, "--out", "learned",
               "--quiet");
        json_t *results = load_json("learned/results.json");
        const double hard = json_number(results, "perplexity/hard"),
                     rtn = json_number(results, "perplexity/rtn"),
                     weights = json_number(results, "quantized_weights"),
                     trained = json_number(results, "trained_parameters");
        if (!(hard < rtn)) fail_msg("%s: %g, RTN has %g", runs[i].method, hard, rtn);
        if (!strcmp(runs[i].method, "adaround"))
            assert_true(trained == weights);
        else
            assert_true(trained < weights);
        RUN_OK("eval", "--model", "learned/model", "--text", HELD_OUT, "--seqlen", "128",
               "--max-windows", "20", "--json", "--quiet");
        json_t *again = last_json();
        expect_near(json_number(again, "perplexity"), hard, 1e-3);
        json_decref(again);
        json_decref(results);
        remove_all("learned");
    }
}

static void finished_run_is_not_done_again(void **state)
{
    (void)state;
    make_model("rand-llama3-rope", "m");
    RUN_OK("quantize", "--model", "m", "--out", "again", SMALL);
    char *table = strdup(last.out);
    static const char *const files[] = {"again/results.json", "again/report.html",
                                        "again/model/model.safetensors", "again/metrics.jsonl"};
    struct stat before[sizeof files / sizeof *files], after;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        assert_int_equal(stat(files[i], &before[i]), 0);
    RUN_OK("quantize", "--model", "m", "--out", "again", SMALL);
    assert_string_equal(last.out, table);
    free(table);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        assert_int_equal(stat(files[i], &after), 0);
        if (after.st_ino != before[i].st_ino) fail_msg("%s was written again", files[i]);
    }
    RUN_OK("quantize", "--model", "m", "--out", "again", "--json", SMALL);
    json_t *row = last_json(), *results = load_json("again/results.json");
    assert_true(json_equal(row, results));
    json_decref(row);
    json_decref(results);

    /* Another question about the same run: only that is answered. */
    RUN_OK("quantize", "--model", "m", "--out", "again", "--eval-start", SMALL);
    assert_non_null(strstr(last.out, "step 0, hard"));
    RUN_OK("quantize", "--config", "again/config.yaml", "--quiet");
    assert_non_null(strstr(last.out, "step 0, hard"));
}

/* A report without curves, and not a job that dies at its end. */
static void gnuplot_may_be_missing(void **state)
{
    (void)state;
    make_model("rand-opt-f32", "m");
    const char *command = "PATH=/none exec " VQROUND " quantize --model m --text " CALIB
                          " --K 16 --D 4 --nsamples 2 --seqlen 16 --steps 300 --no-eval --quiet"
                          " --threads 1 --out plain";
    finish(start((const char *const[]){"/bin/sh", "-c", command, NULL}));
    expect_code(0);
    char *page = read_file("plain/report.html", NULL);
    assert_non_null(strstr(page, "gnuplot was not found"));
    free(page);
}

static void evaluation_options(void **state)
{
    (void)state;
    make_model("rand-llama3-rope", "m");
    const char *const datasets[] = {"stream", "wikitext2", "ptb", "c4"};
    double perplexity[4];
    write_text("rows.jsonl",
               "{\"text\": \"first document, long enough to be of some use here\"}\n"
               "{\"text\": \"second document, also of some length, for a window\"}\n");
    for (int i = 0; i < 4; i++) {
        RUN_OK("eval", "--model", "m", "--text", "rows.jsonl", "--text", HELD_OUT, "--dataset",
               datasets[i], "--seqlen", "64", "--max-windows", "8", "--json");
        json_t *row = last_json();
        perplexity[i] = json_number(row, "perplexity");
        assert_true(perplexity[i] > 1 && perplexity[i] < 1e5);
        json_decref(row);
    }
    assert_true(perplexity[0] != perplexity[2] && perplexity[0] != perplexity[1]);
    RUN_OK("eval", "--model", "m", "--text", HELD_OUT, "--seqlen", "64", "--max-windows", "2");
    assert_ptr_equal(strstr(last.out, "perplexity "), last.out);
}

static void tokens_are_quantize_tokens(void **state)
{
    (void)state;
    make_model("rand-llama3-rope", "m");
    RUN_OK("tokens", "--model", "m", "--text", CALIB, "--nsamples", "5", "--seqlen", "16", "--out",
           "odd \"name\".h5", "--json", "--quiet");
    json_t *row = last_json();
    assert_true(json_number(row, "windows") == 5 && json_number(row, "tokens") == 80);
    assert_string_equal(json_string_value(json_object_get(row, "file")), "odd \"name\".h5");
    json_decref(row);
    RUN_OK("tokens", "--model", "m", "--text", CALIB, "--nsamples", "5", "--seqlen", "16",
           "--calib.mode", "c4", "--seed", "7", "--out", "c4.h5");
    assert_non_null(strstr(last.out, "c4.h5: 5 windows of 16 tokens"));
}

static void inspect_reads_what_jobs_write(void **state)
{
    (void)state;
    make_model("rand-llama-f16-sharded", "m");
    RUN_OK("quantize", "--model", "m", "--out", "seen", SMALL);
    const char *const paths[] = {"m",
                                 "seen",
                                 "seen/model",
                                 "seen/tokens.h5",
                                 find_name("seen", "init-", ".h5"),
                                 find_name("seen", "teacher-", ".h5"),
                                 find_name("seen", "ckpt-", ".h5"),
                                 "seen/model/model.safetensors"};
    const char *const words[] = {"family", "results", "family",   "ids",
                                 "scale",  "hidden",  "datasets", "tensors"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        RUN_OK("inspect", paths[i]);
        if (!strstr(last.out, words[i])) fail_msg("%s: no %s in %s", paths[i], words[i], last.out);
        RUN_OK("inspect", "--json", paths[i]);
        json_t *row = last_json();
        if (!strchr(last.out, '\n') || strchr(last.out, '\n')[1]) fail_msg("not one line");
        const char *key = json_string_value(json_object_get(row, "key"));
        if (strstr(paths[i], ".h5") && (!key || strspn(key, "0123456789abcdef") != 16))
            fail_msg("%s: the key is %s, expected 16 hexadecimal digits", paths[i], key);
        json_decref(row);
    }
    RUN_OK("inspect", "seen");
    if (!strstr(last.out, "results:\n") || !strstr(last.out, "iB)\n"))
        fail_msg("no results, or no sizes of files, in %s", last.out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(families_are_quantized),
        cmocka_unit_test(trained_models_are_quantized),
        cmocka_unit_test(threads_do_not_change_bits),
        cmocka_unit_test(codes_by_sign_cost_nothing),
        cmocka_unit_test(groups_serve_every_method),
        cmocka_unit_test(methods_and_losses),
        cmocka_unit_test(blocks_alone),
        cmocka_unit_test(learned_rounding_beats_rtn),
        cmocka_unit_test(finished_run_is_not_done_again),
        cmocka_unit_test(gnuplot_may_be_missing),
        cmocka_unit_test(evaluation_options),
        cmocka_unit_test(tokens_are_quantize_tokens),
        cmocka_unit_test(inspect_reads_what_jobs_write),
    };
    return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
