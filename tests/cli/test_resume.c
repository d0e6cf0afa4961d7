/* test_resume - jobs that are killed, stopped, started again, or find files that are not theirs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "run.h"

/* The job of these tests; its settings may be followed by others. */
#define BASE                                                                                       \
    "quantize", "--model", "m", "--text", CALIB, "--K", "32", "--D", "4", "--nsamples", "3",       \
        "--seqlen", "32", "--eval-max-windows", "2", "--threads", "1", "--checkpoint-every", "10"
#define JOB BASE, "--bits", "3", "--lr", "0.02", "--steps", "80", "--out"
#define SHORT BASE, "--bits", "3", "--lr", "0.05", "--steps", "6", "--quiet", "--out"

/* The numbers of metrics.jsonl that do not depend on the machine. */
static void expect_same_metrics(const char *a, const char *b)
{
    static const char *const numbers[] = {"step", "loss", "task", "reg", "beta", "grad_norm"};
    FILE *x = fopen(text("%s/metrics.jsonl", a), "r"), *y = fopen(text("%s/metrics.jsonl", b), "r");
    assert_non_null(x);
    assert_non_null(y);
    json_t *p, *q;
    do {
        p = json_loadf(x, JSON_DISABLE_EOF_CHECK, NULL);
        q = json_loadf(y, JSON_DISABLE_EOF_CHECK, NULL);
        if (!p != !q) fail_msg("the metrics of %s and %s have other numbers of steps", a, b);
        for (size_t i = 0; p && i < sizeof numbers / sizeof *numbers; i++)
            if (json_number(p, numbers[i]) != json_number(q, numbers[i]))
                fail_msg("%s differs in step %g", numbers[i], json_number(p, "step"));
        json_decref(p);
        json_decref(q);
    } while (p);
    fclose(x);
    fclose(y);
}

static void expect_same_runs(const char *a, const char *b)
{
    expect_same_files(text("%s/model/model.safetensors", a), text("%s/model/model.safetensors", b));
    expect_same_metrics(a, b);
    json_t *p = load_json(text("%s/results.json", a)), *q = load_json(text("%s/results.json", b));
    assert_true(json_equal(json_object_get(p, "perplexity"), json_object_get(q, "perplexity")));
    json_decref(p);
    json_decref(q);
}

/* The undisturbed runs, and a model. */
static int make_runs(void **state)
{
    if (enter_folder(state) != 0) return -1;
    make_model("rand-llama3-rope", "m");
    finish(start(ARGS(JOB, "calm", "--quiet")));
    if (last.code != 0) return -1;
    finish(start(ARGS(SHORT, "short")));
    return last.code;
}

/* Waits until a file of that name (beginning and end) is in the folder or the program has ended;
 * false in the second case. */
static bool wait_for(pid_t pid, const char *dir, const char *name, const char *end)
{
    while (!find_name(dir, name, end)) {
        if (has_ended(pid)) return false;
        sleep_ms(1);
    }
    return true;
}

static void kill_now(pid_t pid)
{
    kill(pid, SIGKILL);
    finish(pid);
}

/* Each start is killed in another phase: after the settings, while the codebooks are made, in the
 * teacher, in the first and in later steps, when it evaluates, when it exports. */
static void killed_in_every_phase(void **state)
{
    (void)state;
    static const struct {
        const char *dir, *name, *end;
    } moments[] = {{"killed", "config", ".yaml"},
                   {"killed", "tokens", ".h5"},
                   {"killed", "init-0000-", ".tmp"},
                   {"killed", "init-0000-", ".h5"},
                   {"killed", "init-0001-", ".tmp"},
                   {"killed", "init-0001-", ".h5"},
                   {"killed", "teacher-", ".h5"},
                   {"killed", "metrics", ".jsonl"},
                   {"killed", "ckpt-0000000010", ".tmp"},
                   {"killed", "ckpt-0000000040", ".h5"},
                   {"killed", "ckpt-0000000080", ".h5"},
                   {"killed", "model", ""},
                   {"killed/model", "model.safetensors", ""},
                   {"killed/model", "tokenizer", ""},
                   {"killed/model", "config", ".json"}};
    int n_killed = 0;
    for (size_t i = 0; i < sizeof moments / sizeof *moments; i++) {
        pid_t pid = start(ARGS(JOB, "killed"));
        if (!wait_for(pid, moments[i].dir, moments[i].name, moments[i].end)) {
            expect_code(0); /* it was faster than we looked */
            continue;
        }
        kill_now(pid);
        n_killed += last.code == 128 + SIGKILL;
    }
    assert_true(n_killed >= 6);
    RUN_OK(JOB, "killed", "--quiet");
    assert_string_equal(last.err, "");
    expect_same_runs("calm", "killed");
    assert_null(find_name("killed", "", ".tmp"));
    assert_null(find_name("killed/model", "", ".tmp"));
}

static void killed_again_and_again(void **state)
{
    (void)state;
    for (long ms = 40; ms < 4000; ms += ms / 3) {
        pid_t pid = start(ARGS(JOB, "often"));
        sleep_ms(ms);
        kill(pid, SIGKILL);
        finish(pid);
        if (last.code == 0) break;
    }
    RUN_OK(JOB, "often", "--quiet");
    expect_same_runs("calm", "often");
}

static void signals_stop_after_a_step(void **state)
{
    (void)state;
    static const struct {
        int number;
        const char *name;
    } signals[] = {{SIGUSR1, "signal 10"}, {SIGTERM, "signal 15"}};
    for (int i = 0; i < 2; i++) {
        const char *out = text("stopped%d", i);
        pid_t pid = start(ARGS(JOB, out));
        assert_true(wait_for(pid, out, "ckpt-0000000010", ".h5"));
        kill(pid, signals[i].number);
        finish(pid);
        expect_code(75);
        assert_string_equal(last.out, "");
        expect_words(out, signals[i].name, "of 80", "Run the same command again", NULL);
        assert_null(strstr(last.err, "error"));
        assert_non_null(find_name(out, "ckpt-", ".h5"));
        assert_false(exists(text("%s/model", out)));
        RUN_OK(JOB, out);
        expect_words("resume   from step", NULL);
        expect_same_runs("calm", out);
    }
}

/* In another phase the signal is heeded at its end; nothing of it is lost. */
static void signals_stop_after_a_phase(void **state)
{
    (void)state;
    pid_t pid = start(ARGS(JOB, "early"));
    assert_true(wait_for(pid, "early", "config", ".yaml"));
    kill(pid, SIGTERM);
    finish(pid);
    expect_code(75);
    expect_words("early", "signal 15", "Run the same command again", NULL);
    expect_words("\nstop     is asked for: at the end of this step, layer or phase", NULL);
    assert_non_null(find_name("early", "init-", ".h5"));
    assert_null(find_name("early", "ckpt-", ".h5"));
    RUN_OK(JOB, "early", "--quiet");
    expect_same_runs("calm", "early");
}

static void time_limit_stops(void **state)
{
    (void)state;
    RUN(SHORT, "limited", "--max-hours", "1e-9");
    expect_code(75);
    expect_words("limited", "max_hours", "after layer 0", "Run the same command again", NULL);
    for (int window = 0; window < 2; window++) {
        RUN(SHORT, "limited", "--max-hours", "1e-9");
        expect_code(75);
        expect_words("limited", "max_hours", text("after window %d,", window), NULL);
    }
    assert_true(!exists("limited/ckpt-0000000001.h5"));
    RUN(SHORT, "limited", "--max-hours", "1e-9");
    expect_code(75);
    expect_words("limited", "max_hours", "after step 1 of 6", "Run the same command again", NULL);
    assert_true(exists("limited/ckpt-0000000001.h5"));
    RUN(SHORT, "limited", "--max-hours", "1e-9");
    expect_code(75);
    RUN_OK(SHORT, "limited");
    expect_same_runs("short", "limited");
}

/* --- layer by layer -------------------------------------------------------------------------- */

#define N_LAYERS 4
#define LAYERS                                                                                     \
    "quantize", "--model", MODELS "tiny-llama", "--text", CALIB, "--K", "32", "--D", "8",          \
        "--nsamples", "3", "--seqlen", "24", "--eval-max-windows", "2", "--threads", "1",          \
        "--kmeans.iters", "10", "--bits", "2", "--steps", "2"

/* What makes layers: codebooks alone, and GPTQ with what the layers before gave or would give,
 * its integers kept or not, and groups of scattered columns. */
static const char *const makers[][3] = {
    {"--init=rtn", "--eval-start", "--sym"},
    {"--grid=output", "--method=lora", "--learn-scale"},
    {"--init=gptq", "--kmeans.engine=faiss", "--group-size=16"},
    {"--init=gptq", "--gptq.propagate=quantized", "--no-eval-start"},
    {"--method=gptq", "--gptq.act_order", "--group-size=16"},
    {"--init=gptq", "--gptq.act_order=true", "--gptq.static_groups=off"},
};

#define MAKER(i) makers[i][0], makers[i][1], makers[i][2]

/* The layer's file is there or not, and those of the layers before are still the same. */
static void expect_layers(const char *out, const char *start, int n, ino_t number[N_LAYERS])
{
    for (int l = 0; l < N_LAYERS; l++) {
        const char *path = find_name(out, text("%s%04d", start, l), ".h5");
        if (!path != (l >= n))
            fail_msg("%d layers in %s, but of %s%04d %s", n, out, start, l, path);
        if (l < n - 1 && number_of(path) != number[l]) fail_msg("%s was made again", path);
        if (l == n - 1) number[l] = number_of(path);
    }
}

/* A time limit that has passed stops after every layer; the next start goes on with the next one,
 * to the bits of a run that was never stopped. */
static void every_layer_is_kept(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++) {
        ino_t number[N_LAYERS];
        RUN_OK(LAYERS, MAKER(i), "--out", "whole", "--quiet");
        for (int layer = 0; layer < N_LAYERS - 1; layer++) {
            RUN(LAYERS, MAKER(i), "--out", "parts", "--max-hours", "1e-9");
            expect_code(75);
            expect_words("parts", "stopped by max_hours", text("after layer %d,", layer), NULL);
            if (layer > 0) expect_words(text("%d of 4 layers from an earlier run", layer), NULL);
            expect_layers("parts", "init-", layer + 1, number);
            assert_null(find_name("parts", "", ".tmp"));
            assert_null(find_name("parts", "sweep-", ""));
        }
        RUN_OK(LAYERS, MAKER(i), "--out", "parts");
        expect_words("3 of 4 layers from an earlier run", NULL);
        expect_layers("parts", "init-", N_LAYERS, number);
        expect_same_files("whole/model/model.safetensors", "parts/model/model.safetensors");
        expect_same_files("whole/layers.jsonl", "parts/layers.jsonl");
        json_t *p = load_json("whole/results.json"), *q = load_json("parts/results.json");
        assert_true(json_equal(json_object_get(p, "perplexity"), json_object_get(q, "perplexity")));
        json_decref(p);
        json_decref(q);
        remove_all("whole");
        remove_all("parts");
    }
}

/* The same of layers that are trained one by one. */
static void every_trained_layer_is_kept(void **state)
{
    (void)state;
    static const char *const more[][2] = {{"--learn-scale", "--init=gptq"},
                                          {"--rounding=hard", "--method=adaround"}};
#define BLOCKS(i) LAYERS, "--block-steps", "3", more[i][0], more[i][1], "--out"
    for (size_t i = 0; i < sizeof more / sizeof *more; i++) {
        ino_t number[N_LAYERS];
        RUN_OK(BLOCKS(i), "whole", "--quiet");
        RUN_OK(BLOCKS(i), "parts", "--quiet");
        expect_same_runs("whole", "parts");
        remove_all("parts/results.json");
        for (int step = 1; step <= 2; step++) remove_all(text("parts/ckpt-%010d.h5", step));
        for (int layer = 0; layer < N_LAYERS; layer++)
            remove_all(text("parts/blocks-%04d.h5", layer));
        for (int layer = 0; layer < N_LAYERS - 1; layer++) {
            RUN(BLOCKS(i), "parts", "--max-hours", "1e-9");
            expect_code(75);
            expect_words("parts", "stopped by max_hours", text("after layer %d,", layer), NULL);
            if (layer > 0)
                expect_words(text("blocks   %d of 4 layers from an earlier run", layer), NULL);
            expect_layers("parts", "blocks-", layer + 1, number);
        }
        RUN_OK(BLOCKS(i), "parts");
        expect_words("blocks   3 of 4 layers from an earlier run", NULL);
        expect_layers("parts", "blocks-", N_LAYERS, number);
        expect_same_runs("whole", "parts");
        remove_all("whole");
        remove_all("parts");
    }
#undef BLOCKS
}

/* And of the teacher's states, in parts of the windows: here one each. */
static void every_part_of_the_teacher_is_kept(void **state)
{
    (void)state;
    RUN_OK(LAYERS, "--out", "whole", "--quiet");
    RUN_OK(LAYERS, "--out", "parts", "--quiet");
    remove_all("parts/results.json");
    for (int step = 1; step <= 2; step++) remove_all(text("parts/ckpt-%010d.h5", step));
    for (int part = 0; part < 3; part++) remove_all(text("parts/teacher-0000-%04d.h5", part));
    ino_t number[3];
    for (int part = 0; part < 3; part++) {
        RUN(LAYERS, "--out", "parts", "--max-hours", "1e-9");
        expect_code(75);
        if (part > 0) expect_words(text("teacher  %d of 3 windows from", part), NULL);
        expect_words(part < 2 ? text("after window %d,", part) : "after step 1", NULL);
        for (int i = 0; i < part; i++)
            assert_true(number_of(text("parts/teacher-0000-%04d.h5", i)) == number[i]);
        number[part] = number_of(text("parts/teacher-0000-%04d.h5", part));
        assert_false(exists(text("parts/teacher-0000-%04d.h5", part + 1)));
    }
    remove_all("parts/ckpt-0000000001.h5");
    remove_all("parts/teacher-0000-0001.h5");
    RUN_OK(LAYERS, "--out", "parts");
    expect_words("teacher  2 of 3 windows from an earlier run", NULL);
    expect_same_runs("whole", "parts");
    for (int part = 0; part < 3; part++)
        expect_same_files(text("whole/teacher-0000-%04d.h5", part),
                          text("parts/teacher-0000-%04d.h5", part));
    remove_all("whole");
    remove_all("parts");
}

/* Killed while a layer is made and when it is there, again and again. */
static void killed_in_every_layer(void **state)
{
    (void)state;
    static const char *const starts[] = {"init-", "blocks-"}, *const ends[] = {".tmp", ".h5"};
    int n_killed = 0;
#define KILLED LAYERS, "--init", "gptq", "--block-steps", "20", "--out"
    RUN_OK(KILLED, "whole", "--quiet");
    for (int i = 0; i < 2 * N_LAYERS * 2; i++) {
        const char *start_of = text("%s%04d", starts[i / (2 * N_LAYERS)], i / 2 % N_LAYERS);
        pid_t pid = start(ARGS(KILLED, "felled"));
        if (!wait_for(pid, "felled", start_of, ends[i % 2])) {
            expect_code(0); /* it was faster than we looked */
            continue;
        }
        kill_now(pid);
        n_killed += last.code == 128 + SIGKILL;
    }
    assert_true(n_killed > 0);
    RUN_OK(KILLED, "felled", "--quiet");
    expect_same_runs("whole", "felled");
    assert_null(find_name("felled", "", ".tmp"));
    remove_all("whole");
#undef KILLED
}

/* A layer that is missing or half-written is made again, alone; one that is damaged is refused. */
static void missing_layers_alone_are_made(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++) {
        RUN_OK(LAYERS, MAKER(i), "--out", "whole", "--quiet");
        copy_folder("whole", "parts");
        remove_all("parts/results.json");
        for (int step = 1; step <= 2; step++) remove_all(text("parts/ckpt-%010d.h5", step));
        const ino_t first = number_of("parts/init-0000-0000.h5"),
                    third = number_of("parts/init-0002-0000.h5");
        remove_all("parts/init-0001-0000.h5");
        assert_int_equal(rename("parts/init-0003-0000.h5", "parts/init-0003-0000.h5.tmp"), 0);
        RUN_OK(LAYERS, MAKER(i), "--out", "parts");
        expect_words("2 of 4 layers from an earlier run", NULL);
        assert_true(number_of("parts/init-0000-0000.h5") == first);
        assert_true(number_of("parts/init-0002-0000.h5") == third);
        for (int l = 0; l < N_LAYERS; l++)
            expect_same_files(text("whole/init-%04d-0000.h5", l),
                              text("parts/init-%04d-0000.h5", l));
        expect_same_files("whole/model/model.safetensors", "parts/model/model.safetensors");
        remove_all("parts/results.json");
        assert_int_equal(truncate("parts/init-0002-0000.h5", 1000), 0);
        RUN(LAYERS, MAKER(i), "--out", "parts", "--quiet");
        EXPECT_FAILED(3, "parts/init-0002-0000.h5", "Expected a whole file", "delete it");
        remove_all("whole");
        remove_all("parts");
    }
}

/* The start codebook, which all linears share, is kept by itself. */
static void start_is_kept(void **state)
{
    (void)state;
#define START                                                                                      \
    "quantize", "--model", ROOT_DIR "/configs/demo-model", "--text", CALIB, "--no-eval", "--bits", \
        "2", "--K", "64", "--kmeans.start", "shared", "--nsamples", "2", "--seqlen", "48",         \
        "--steps", "1", "--threads", "2", "--out"
    RUN_OK(START, "whole", "--quiet");
    RUN(START, "parts", "--max-hours", "1e-9");
    expect_code(75);
    const ino_t number = number_of("parts/init-start.h5");
    RUN_OK(START, "parts", "--quiet");
    assert_true(number_of("parts/init-start.h5") == number);
    expect_same_files("whole/init-start.h5", "parts/init-start.h5");
    expect_same_files("whole/init-0001-0000.h5", "parts/init-0001-0000.h5");
    expect_same_files("whole/model/model.safetensors", "parts/model/model.safetensors");
    remove_all("parts/results.json");
    remove_all("parts/init-0001-0000.h5");
    assert_int_equal(truncate("parts/init-start.h5", 1000), 0);
    RUN(START, "parts", "--quiet");
    EXPECT_FAILED(3, "parts/init-start.h5", "Expected a whole file", "delete it");
#undef START
}

/* --- files that are not ours ----------------------------------------------------------------- */

static void other_settings_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *flag, *word;
    } others[] = {{"--group-size=8", "group_size (-1, now 8)"},
                  {"--sym", "sym (false, now true)"},
                  {"--seed=3", "seed (0, now 3)"},
                  {"--loss=lm", "train.loss (kd, now lm)"},
                  {"--method=rtn", "method (vqround, now rtn)"},
                  {"--eval-text=" HELD_OUT, "eval.text ([]"},
                  {"--teacher.model=m", "teacher.model (null"},
                  {"--kmeans.iters=7", "kmeans.iters (100, now 7)"}};
    char *before = read_file("short/config.yaml", NULL);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        RUN(SHORT, "short", others[i].flag);
        EXPECT_FAILED(2, "short/config.yaml", others[i].word, "other settings", "another --out");
    }
    RUN("quantize", "--model", "m", "--text", HELD_OUT, "--bits", "2", "--K", "8", "--lr", "1",
        "--quiet", "--out", "short");
    EXPECT_FAILED(2, "short/config.yaml", "text (", "bits (3, now 2)", "K (32, now 8)",
                  "train.lr (0.05, now 1)", "another --out");
    char *after = read_file("short/config.yaml", NULL);
    assert_string_equal(before, after);
    free(before);
    free(after);
}

static void other_inputs_are_refused(void **state)
{
    (void)state;
    size_t bytes;
    copy_folder("m", "m2");
    copy_file(CALIB, "text.txt");
#define OTHER                                                                                      \
    "quantize", "--model", "m2", "--text", "text.txt", "--K", "32", "--D", "4", "--nsamples", "3", \
        "--seqlen", "32", "--eval-max-windows", "2", "--bits", "3", "--steps", "2", "--quiet",     \
        "--out", "inputs"
    RUN_OK(OTHER);
    free(read_file("m2/model.safetensors", &bytes));
    damage("m2/model.safetensors", bytes - 60, 2); /* a weight */
    RUN(OTHER);
    EXPECT_FAILED(3, "inputs/tokens.h5", "model m2", "expected the same", "another --out",
                  "--no-resume");
    copy_file("m/model.safetensors", "m2/model.safetensors");
    RUN_OK(OTHER);
    write_text("m2/special_tokens_map.json", "{\"pad_token\": \"of no text\"}");
    RUN(OTHER);
    EXPECT_FAILED(3, "inputs/tokens.h5", "or the tokenizer has changed", "another --out");
    unlink("m2/special_tokens_map.json");
    RUN_OK(OTHER);
    char *calib = read_file(CALIB, &bytes);
    write_file("text.txt", calib, bytes - 100);
    free(calib);
    RUN(OTHER);
    EXPECT_FAILED(3, "inputs/tokens.h5", "or the tokenizer has changed", "another --out");
#undef OTHER
}

/* A mistake in the first start leaves nothing that the corrected one stumbles over. */
static void mistakes_can_be_corrected(void **state)
{
    (void)state;
    static const char *const mistakes[][2] = {
        {"--text", "no-such.txt"}, {"--eval-text", "no-such.txt"}, {"--eval.seqlen", "100000"}};
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        remove_all("corrected");
        RUN(SHORT, "corrected", mistakes[i][0], mistakes[i][1]);
        assert_true(last.code == 2 || last.code == 3);
        RUN_OK(SHORT, "corrected");
        expect_same_runs("short", "corrected");
    }
}

static void no_resume_starts_anew(void **state)
{
    (void)state;
    copy_folder("short", "anew");
    write_text("anew/model/model-00001-of-00002.safetensors", "of another model");
    write_text("anew/model/vocab.json", "of another model");
    write_text("anew/blocks-0000.h5", "of other settings");
    write_text("anew/notes.txt", "the user's own");
    RUN_OK(SHORT, "anew", "--no-resume", "--sym");
    RUN_OK(SHORT, "fresh", "--sym");
    expect_same_runs("fresh", "anew");
    assert_false(exists("anew/model/model-00001-of-00002.safetensors"));
    assert_false(exists("anew/model/vocab.json"));
    assert_false(exists("anew/blocks-0000.h5"));
    assert_true(exists("anew/notes.txt"));
}

static void settings_can_be_used_again(void **state)
{
    (void)state;
    RUN_OK("quantize", "--config", "short/config.yaml", "--out", "reread");
    expect_same_runs("short", "reread");
}

/* A source model in the place of the export would be lost. */
static void model_is_not_overwritten(void **state)
{
    (void)state;
    mkdir("place", 0777);
    copy_folder("m", "place/model");
    RUN("quantize", "--model", "place/model", "--text", CALIB, "--seqlen", "32", "--quiet", "--out",
        "place");
    EXPECT_FAILED(2, "--out place", "place/model", "expected", "another --out");
    expect_same_files("m/model.safetensors", "place/model/model.safetensors");
    expect_same_files("m/config.json", "place/model/config.json");
    assert_int_equal(symlink("../m", "place/link"), 0);
    assert_int_equal(rename("place/model", "place/was"), 0);
    assert_int_equal(rename("place/link", "place/model"), 0);
    RUN(SHORT, "place");
    EXPECT_FAILED(2, "--out place", "another --out");
    assert_true(exists("m/config.json"));
    /* Nor a model that nobody reads, and no run has made. */
    mkdir("stranger", 0777);
    copy_folder("m", "stranger/model");
    for (int anew = 0; anew < 2; anew++) {
        if (anew)
            RUN(SHORT, "stranger", "--no-resume");
        else
            RUN(SHORT, "stranger");
        EXPECT_FAILED(2, "--out stranger", "stranger/model", "vqround has not written",
                      "another --out");
        expect_same_files("m/model.safetensors", "stranger/model/model.safetensors");
        expect_same_files("m/config.json", "stranger/model/config.json");
        assert_false(exists("stranger/config.yaml"));
    }
    /* Nor are a run's files put beside a model's. */
    RUN(SHORT, "stranger/model");
    EXPECT_FAILED(2, "--out stranger/model", "config.json", "another --out");
    assert_false(exists("stranger/model/config.yaml"));
}

/* A file of the short run, damaged; what else is removed so that it is read. */
static const struct {
    const char *start, *other;
} kept[] = {{"tokens.h5", NULL}, {"init-", NULL}, {"teacher-", "ckpt-"}, {"ckpt-", NULL}};

static const char *prepare_damaged(size_t i)
{
    remove_all("hurt");
    copy_folder("short", "hurt");
    unlink("hurt/results.json");
    unlink("hurt/eval.json");
    const char *other;
    while (kept[i].other && (other = find_name("hurt", kept[i].other, ".h5"))) unlink(other);
    const char *path = find_name("hurt", kept[i].start, ".h5");
    if (!path) fail_msg("the run has no %s file", kept[i].start);
    return path;
}

/* Either the damage is found, or the results are the same all the same. */
static void expect_no_wrong_numbers(const char *path)
{
    RUN(SHORT, "hurt");
    if (last.code == 0)
        expect_same_runs("short", "hurt");
    else
        EXPECT_FAILED(3, path, "xpected", "elete");
}

static void damaged_files_give_no_wrong_numbers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        const char *path = prepare_damaged(i);
        size_t bytes;
        free(read_file(path, &bytes));
        for (size_t cut = 0; cut < 2; cut++) {
            path = prepare_damaged(i);
            assert_int_equal(truncate(path, (off_t)(bytes * cut / 2)), 0);
            RUN(SHORT, "hurt");
            EXPECT_FAILED(3, path, "Expected a whole file", "delete it and run again");
        }
        for (size_t part = 1; part < 6; part++) {
            path = prepare_damaged(i);
            damage(path, bytes * part / 6, 8);
            expect_no_wrong_numbers(path);
        }
        unlink(path);
        RUN_OK(SHORT, "hurt");
        expect_same_runs("short", "hurt");
    }
}

static void leftovers_do_not_disturb(void **state)
{
    (void)state;
    copy_folder("short", "left");
    unlink("left/results.json");
    unlink(find_name("left", "teacher-", ".h5"));
    const char *const left[] = {"left/ckpt-0000000003.h5.tmp", "left/init-0000-0000.h5.tmp",
                                "left/results.json.tmp", "left/teacher-0000-0000.h5.tmp",
                                "left/model/model.safetensors.tmp"};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) write_text(left[i], "half");
    write_text("left/eval.json", "{\"fp\": {\"key\"");
    RUN_OK(SHORT, "left");
    expect_same_runs("short", "left");
    for (size_t i = 0; i < sizeof left / sizeof *left; i++)
        if (exists(left[i])) fail_msg("%s is still there", left[i]);
}

/* The newest checkpoint that is whole is gone on from; the same bits come of it. */
static void damaged_checkpoints_are_passed_over(void **state)
{
    (void)state;
    pid_t pid = start(ARGS(JOB, "older"));
    assert_true(wait_for(pid, "older", "ckpt-0000000020", ".h5"));
    kill_now(pid);
    char newest[PATH_MAX] = "", before[PATH_MAX] = "";
    for (int step = 10; step <= 80; step += 10) {
        const char *path = text("older/ckpt-%010d.h5", step);
        if (!exists(path)) continue;
        snprintf(before, sizeof before, "%s", newest);
        snprintf(newest, sizeof newest, "%s", path);
    }
    assert_true(before[0] && newest[0]);
    truncate(newest, 1000);
    RUN_OK(JOB, "older");
    expect_words(newest, "passed over", "resume   from step", NULL);
    expect_same_runs("calm", "older");
}

static void one_job_at_a_time(void **state)
{
    (void)state;
    pid_t first = start(ARGS(JOB, "shared"));
    assert_true(wait_for(first, "shared", "tokens", ".h5"));
    kill(first, SIGSTOP);
    pid_t second = start(ARGS(JOB, "shared"));
    while (!has_ended(second)) sleep_ms(10);
    EXPECT_FAILED(2, "--out shared", "another job works in this folder", "process",
                  "expected to be alone", "give another --out");
    kill(first, SIGCONT);
    finish(first);
    expect_code(0);
    expect_same_runs("calm", "shared");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_in_every_phase),
        cmocka_unit_test(killed_again_and_again),
        cmocka_unit_test(signals_stop_after_a_step),
        cmocka_unit_test(signals_stop_after_a_phase),
        cmocka_unit_test(time_limit_stops),
        cmocka_unit_test(every_layer_is_kept),
        cmocka_unit_test(every_trained_layer_is_kept),
        cmocka_unit_test(every_part_of_the_teacher_is_kept),
        cmocka_unit_test(killed_in_every_layer),
        cmocka_unit_test(missing_layers_alone_are_made),
        cmocka_unit_test(start_is_kept),
        cmocka_unit_test(other_settings_are_refused),
        cmocka_unit_test(other_inputs_are_refused),
        cmocka_unit_test(mistakes_can_be_corrected),
        cmocka_unit_test(no_resume_starts_anew),
        cmocka_unit_test(settings_can_be_used_again),
        cmocka_unit_test(model_is_not_overwritten),
        cmocka_unit_test(damaged_files_give_no_wrong_numbers),
        cmocka_unit_test(leftovers_do_not_disturb),
        cmocka_unit_test(damaged_checkpoints_are_passed_over),
        cmocka_unit_test(one_job_at_a_time),
    };
    return cmocka_run_group_tests(tests, make_runs, leave_folder);
}
