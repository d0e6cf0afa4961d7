/* test_report - runs of every kind as one table and one page, and what a failure leaves behind. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "error.h"
#include "run.h"
#include "weights.h"

#define SMALL                                                                                      \
    "--text", CALIB, "--eval-text", HELD_OUT, "--K", "32", "--D", "4", "--nsamples", "3",          \
        "--seqlen", "32", "--lr", "0.05", "--eval-max-windows", "4", "--quiet"

#define ODD "odd <b>&\"'x, y"

static int count(const char *text, const char *word)
{
    int n = 0;
    for (const char *p = text; (p = strstr(p, word)); p += strlen(word)) n++;
    return n;
}

#define EXPECT_IN(text, word)                                                                      \
    do {                                                                                           \
        if (!strstr(text, word)) fail_msg("\"%s\" is missing in: %.2000s", word, text);            \
    } while (0)

/* Field `column` of the CSV's line that begins so, as it stands there. Fields up to it must not
 * hold commas. */
static const char *csv_field(const char *csv, const char *run, const char *column)
{
    static char field[256];
    const char *line = csv;
    int n = 0;
    const char *head = strstr(csv, column);
    if (!head) fail_msg("no column %s in %s", column, csv);
    for (const char *p = csv; p < head; p++) n += *p == ',';
    while (line && strncmp(line, run, strlen(run)) != 0)
        line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL;
    if (!line) fail_msg("no run %s in %s", run, csv);
    for (; n > 0; line++) n -= *line == ',';
    snprintf(field, sizeof field, "%.*s", (int)strcspn(line, ",\r\n"), line);
    return field;
}

/* sweep/ with two finished runs, a failed one without settings, and one that was killed. */
static void make_sweep(void)
{
    remove_all("sweep");
    make_model("rand-llama3-rope", "m");
    RUN_OK("quantize", "--model", "m", "--bits", "2", "--steps", "6", "--out", "sweep/a", SMALL);
    RUN_OK("quantize", "--model", "m", "--bits", "3", "--steps", "4", "--out", "sweep/deep/b",
           SMALL);
    RUN_OK("quantize", "--model", "m", "--bits", "3", "--steps", "4", "--seed", "9", "--out",
           "sweep/killed", SMALL);
    assert_int_equal(remove("sweep/killed/results.json"), 0);
    mkdir("sweep/" ODD, 0777);
    write_text("sweep/" ODD "/error.txt", "137\ntask 1: <Killed>\nfor \"memory\"\n");
    mkdir("sweep/locks", 0777); /* not a run */
}

static void runs_are_tables(void **state)
{
    (void)state;
    make_sweep();
    RUN_OK("report", "sweep", "--json");
    json_t *row = last_json();
    assert_true(json_number(row, "runs") == 4 && json_number(row, "done") == 2);
    assert_true(json_number(row, "failed") == 1 && json_number(row, "unfinished") == 1);
    assert_string_equal(json_string_value(json_object_get(row, "html")), "sweep/report.html");
    json_decref(row);

    char *csv = read_file("sweep/report.csv", NULL), value[64];
    json_t *results = load_json("sweep/deep/b/results.json");
    assert_int_equal(count(csv, "\r\n"), 5);
    assert_string_equal(csv_field(csv, "a,", "state"), "done");
    assert_string_equal(csv_field(csv, "a,", "bits"), "2");
    assert_string_equal(csv_field(csv, "deep/b,", "bits"), "3");
    assert_string_equal(csv_field(csv, "deep/b,", "train.steps"), "4");
    snprintf(value, sizeof value, "%.9g", json_number(results, "perplexity/hard"));
    assert_string_equal(csv_field(csv, "deep/b,", "perplexity.hard"), value);
    snprintf(value, sizeof value, "%.9g", json_number(results, "seconds/total"));
    assert_string_equal(csv_field(csv, "deep/b,", "seconds.total"), value);
    assert_string_equal(csv_field(csv, "deep/b,", "perplexity.gptq"), "");
    assert_string_equal(csv_field(csv, "killed,", "state"), "unfinished");
    EXPECT_IN(csv, "\"odd <b>&\"\"'x, y\",failed,137,\"task 1: <Killed>\nfor \"\"memory\"\"\",");
    free(csv);
    json_decref(results);

    /* The same from one run, several folders, and into a folder that is made. */
    RUN_OK("report", "sweep/a", "--out", "one");
    EXPECT_IN(last.out, "1 done\none/report.html\none/report.csv\n");
    RUN_OK("report", "sweep/a", "sweep/deep", "--out", "new/out", "--json");
    row = last_json();
    assert_true(json_number(row, "runs") == 2);
    json_decref(row);
    csv = read_file("new/out/report.csv", NULL);
    EXPECT_IN(csv, "\nsweep/deep/b,done,");
    free(csv);
}

static void set_perplexity(const char *path, const char *name, double x)
{
    json_t *root = load_json(path);
    json_object_set_new(json_object_get(root, "perplexity"), name, json_real(x));
    assert_int_equal(json_dump_file(root, path, JSON_INDENT(2)), 0);
    json_decref(root);
}

/* A finished run's table, as its command prints it again. */
static void undecided_roundings_are_said(void **state)
{
    (void)state;
    make_sweep();
    for (int i = 0; i < 2; i++) {
        set_perplexity("sweep/a/results.json", "soft", 10);
        set_perplexity("sweep/a/results.json", "hard", i ? 10.6 : 10.4);
        RUN_OK("quantize", "--model", "m", "--bits", "2", "--steps", "6", "--out", "sweep/a",
               SMALL);
        EXPECT_IN(last.out, i ? "10.60" : "10.40");
        assert_true(!strstr(last.out, "undecided when training ended: raise --steps") == !i);
    }
}

/* |Wq - W| / |W| of a linear, from the two models. */
static double error_between(const char *quantized, const char *source, const char *name)
{
    vq_arena arena;
    vq_weights a, b;
    double error = 0, base = 0;
    assert_int_equal(vq_arena_init(&arena, "weights", (size_t)64 << 20), VQ_OK);
    if (vq_weights_open(&arena, quantized, &a) != VQ_OK) fail_msg("%s", vq_error_message());
    if (vq_weights_open(&arena, source, &b) != VQ_OK) fail_msg("%s", vq_error_message());
    const vq_tensor *q = vq_weights_find(&a, text("%s.weight", name)),
                    *w = vq_weights_find(&b, text("%s.weight", name));
    assert_true(q && w && q->dtype == VQ_F32 && w->dtype == VQ_F32);
    for (int64_t i = 0; i < vq_tensor_count(w); i++) {
        const double x = ((const float *)w->data)[i], y = ((const float *)q->data)[i];
        error += (y - x) * (y - x);
        base += x * x;
    }
    vq_weights_close(&a);
    vq_weights_close(&b);
    vq_arena_close(&arena);
    return sqrt(error / base);
}

/* layers.jsonl has every linear once, with the errors of the model that was written. */
static void layers_have_their_errors(void **state)
{
    (void)state;
    make_model("rand-opt-f32", "o");
    static const char *const methods[] = {"vqround", "rtn", "gptq"};
    for (int m = 0; m < 3; m++) {
        char run[32];
        snprintf(run, sizeof run, "layers-%s", methods[m]);
        RUN_OK("quantize", "--model", "o", "--method", methods[m], "--init",
               m == 2 ? "gptq" : "rtn", "--bits", "3", "--steps", "30", "--out", run, SMALL);
        FILE *file = fopen(text("%s/layers.jsonl", run), "r");
        assert_non_null(file);
        json_t *row;
        int n = 0, n_moved = 0;
        for (; (row = json_loadf(file, JSON_DISABLE_EOF_CHECK, NULL)); n++) {
            const char *name = json_string_value(json_object_get(row, "name"));
            const double error = json_number(row, "error"), rtn = json_number(row, "rtn_error"),
                         moved = json_number(row, "moved_ratio");
            const double expected = error_between(text("%s/model", run), "o", name);
            if (fabs(error / expected - 1) > 1e-5)
                fail_msg("%s %s: %g, expected %g", methods[m], name, error, expected);
            assert_true(moved >= 0 && moved < 0.9 && error < 1);
            if (m != 2) assert_true(error >= rtn * (1 - 1e-6)); /* nearest is nearest */
            assert_true(m != 1 || (moved == 0 && error == rtn));
            n_moved += moved > 0;
            json_decref(row);
        }
        fclose(file);
        assert_int_equal(n, 2 * 6); /* two layers */
        assert_true(m == 1 || n_moved > 6);
    }
    RUN_OK("report", "layers-vqround");
    char *page = read_file("layers-vqround/report.html", NULL);
    EXPECT_IN(page, "Error of the weights, % of their norm");
    EXPECT_IN(page, "Weights not rounded to nearest, %");
    EXPECT_IN(page, "fc1</li>");
    free(page);

    /* A baseline has no value where a setting means nothing to it. */
    RUN_OK("report", "layers-vqround", "layers-rtn", "--out", "both");
    char *csv = read_file("both/report.csv", NULL);
    assert_string_equal(csv_field(csv, "layers-rtn,", "bits"), "3");
    assert_string_equal(csv_field(csv, "layers-rtn,", "train.steps"), "");
    assert_string_equal(csv_field(csv, "layers-vqround,", "train.steps"), "30");
    free(csv);
    page = read_file("both/report.html", NULL);
    EXPECT_IN(page, "train.steps&nbsp;<b>30</b>");
    free(page);
}

/* Everything in the page, nothing outside it, and texts as texts. */
static void runs_are_a_page(void **state)
{
    (void)state;
    make_sweep();
    RUN_OK("report", "sweep");
    EXPECT_IN(last.out, "killed          unfinished");
    EXPECT_IN(last.out, "    2 done\n");
    char *page = read_file("sweep/report.html", NULL);
    EXPECT_IN(page, "odd &lt;b&gt;&amp;&quot;&#39;x, y");
    EXPECT_IN(page, "task 1: &lt;Killed&gt;\nfor &quot;memory&quot;");
    EXPECT_IN(page, "failed, code 137");
    EXPECT_IN(page, "<span class=\"unfinished\">unfinished</span>");
    EXPECT_IN(page, "4 of 4 steps are done");
    EXPECT_IN(page, "<a href=\"deep/b/report.html\">deep/b</a>");
    EXPECT_IN(page, "Perplexity by bits");
    EXPECT_IN(page, "K 32, D 4");
    EXPECT_IN(page, "Codebook error");
    assert_null(strstr(page, "<b>&\""));
    assert_null(strstr(page, "<Killed>"));
    assert_int_equal(count(page, "<figure>"), count(page, "</svg>"));
    assert_true(count(page, "<figure>") >= 7);
    assert_int_equal(count(page, "http"), count(page, "http://www.w3.org/")); /* names of SVG */
    static const char *const loads[] = {" src=", "<link", "@import", "url("};
    for (size_t i = 0; i < sizeof loads / sizeof *loads; i++) assert_null(strstr(page, loads[i]));
    free(page);

    /* The page that a run writes itself: as report writes it. */
    char *own = read_file("sweep/a/report.html", NULL);
    EXPECT_IN(own, "VQRound, hard");
    EXPECT_IN(own, "Peak memory");
    EXPECT_IN(own, "All settings");
    RUN_OK("report", "sweep/a");
    page = read_file("sweep/a/report.html", NULL);
    assert_string_equal(own, page);
    free(own);
    free(page);
}

/* Whether the page has a line of that name in a figure's legend. */
static bool has_line(const char *page, const char *name)
{
    return strstr(page, text("%s</li>", name)) != NULL;
}

/* A line is of runs that differ in bits and seeds alone. */
static void lines_are_of_like_runs(void **state)
{
    (void)state;
    static const struct {
        const char *name, *bits, *steps, *seed;
    } runs[] = {
        {"a2", "2", "4", "0"}, {"a3", "3", "4", "0"}, {"b3", "3", "4", "1"}, {"c3", "3", "5", "0"}};
    make_model("rand-llama3-rope", "m");
    for (int i = 0; i < 3; i++)
        RUN_OK("quantize", "--model", "m", "--bits", runs[i].bits, "--steps", runs[i].steps,
               "--seed", runs[i].seed, "--out", text("like/%s", runs[i].name), SMALL);
    RUN_OK("report", "like");
    char *page = read_file("like/report.html", NULL);
    assert_true(has_line(page, "K 32, D 4") && has_line(page, ">RTN"));
    free(page);
    RUN_OK("quantize", "--model", "m", "--bits", runs[3].bits, "--steps", runs[3].steps, "--seed",
           runs[3].seed, "--out", text("like/%s", runs[3].name), SMALL);
    RUN_OK("report", "like");
    page = read_file("like/report.html", NULL);
    assert_true(has_line(page, "K 32, D 4 (a2)") && has_line(page, "K 32, D 4 (c3)"));
    assert_true(!has_line(page, "K 32, D 4") && has_line(page, ">RTN"));
    /* What came out stands before the settings. */
    assert_true(strstr(page, ">Hard") < strstr(page, ">train.steps"));
    free(page);
}

/* More than a legend or a figure of bars takes; numbers in names in order. */
static void many_runs(void **state)
{
    (void)state;
    make_sweep();
    for (int i = 0; i < 50; i++) {
        mkdir(text("sweep/r%d", i), 0777);
        copy_file("sweep/a/results.json", text("sweep/r%d/results.json", i));
        copy_file("sweep/a/metrics.jsonl", text("sweep/r%d/metrics.jsonl", i));
    }
    RUN_OK("report", "sweep", "--json");
    json_t *row = last_json();
    assert_true(json_number(row, "runs") == 54 && json_number(row, "done") == 52);
    json_decref(row);
    char *page = read_file("sweep/report.html", NULL);
    EXPECT_IN(page, "Runs have the colours that they have in the table");
    EXPECT_IN(page, "At most 40 are shown");
    assert_true(strstr(page, ">r9<") < strstr(page, ">r10<"));
    free(page);
}

static void report_without_gnuplot(void **state)
{
    (void)state;
    make_sweep();
    const char *command = "PATH=/none exec " VQROUND " report sweep";
    finish(start((const char *const[]){"/bin/sh", "-c", command, NULL}));
    expect_code(0);
    expect_words("warning", "no figures", "gnuplot was not found", "gnuplot-nox", NULL);
    char *page = read_file("sweep/report.html", NULL);
    EXPECT_IN(page, "No figures: gnuplot was not found");
    EXPECT_IN(page, "deep/b");
    assert_null(strstr(page, "<svg"));
    free(page);

    mkdir("broken", 0777);
    write_text("broken/gnuplot", "#!/bin/sh\necho 'out of <order>' >&2\nexit 3\n");
    assert_int_equal(chmod("broken/gnuplot", 0755), 0);
    command = "PATH=broken:/usr/bin:/bin exec " VQROUND " report sweep";
    finish(start((const char *const[]){"/bin/sh", "-c", command, NULL}));
    expect_code(0);
    page = read_file("sweep/report.html", NULL);
    EXPECT_IN(page, "gnuplot ended with code 3: out of &lt;order&gt;");
    free(page);
}

/* A file that is not what it should be costs its part of the report. */
static void damaged_files(void **state)
{
    (void)state;
    make_sweep();
    write_text("sweep/a/results.json", "{\"key\": \"1\",");
    write_text("sweep/killed/config.yaml", "bits: 99\n");
    RUN_OK("report", "sweep", "--json");
    json_t *row = last_json();
    assert_true(json_number(row, "failed") == 3 && json_number(row, "done") == 1);
    json_decref(row);
    char *page = read_file("sweep/report.html", NULL);
    EXPECT_IN(page, "sweep/a/results.json:1:");
    EXPECT_IN(page, "Delete it and run again");
    EXPECT_IN(page, "config.yaml:1 bits = 99: expected 2, 3, 4 or 8");
    free(page);

    make_sweep();
    write_text("sweep/deep/b/init-0000-0000.h5", "no HDF5");
    char *metrics = read_file("sweep/a/metrics.jsonl", NULL);
    metrics[strlen(metrics) - 40] = '\0'; /* as it is while it is written */
    write_text("sweep/a/metrics.jsonl", metrics);
    free(metrics);
    write_text("sweep/killed/results.json", "[]");
    RUN_OK("report", "sweep", "--json");
    expect_words("warning", "init-0000-0000.h5", NULL);
    row = last_json();
    assert_true(json_number(row, "failed") == 2 && json_number(row, "done") == 2);
    json_decref(row);

    /* Settings that cannot be read: those in the results are known all the same. */
    write_text("sweep/deep/b/config.yaml", "of: another version\n");
    RUN_OK("report", "sweep");
    expect_words("warning", "deep/b/config.yaml", NULL);
    char *csv = read_file("sweep/report.csv", NULL);
    assert_string_equal(csv_field(csv, "deep/b,", "state"), "done");
    assert_string_equal(csv_field(csv, "deep/b,", "bits"), "3");
    assert_string_equal(csv_field(csv, "deep/b,", "train.steps"), "");
    free(csv);

    /* Wrong types and lengths are no numbers, and no crash. */
    write_text(
        "sweep/killed/results.json",
        "{\"key\": 7, \"model\": [], \"bits\": \"x\", \"method\": \"gptq\", \"perplexity\": 3,"
        " \"peak_rss_bytes\": [1], \"train_ratio\": {\"sums\": []}, \"machine\":"
        " {\"ranks\": 1000000000000}}");
    RUN_OK("report", "sweep", "--json");
    row = last_json();
    assert_true(json_number(row, "done") == 3);
    json_decref(row);
}

static void wrong_commands(void **state)
{
    (void)state;
    mkdir("empty", 0777);
    mkdir("empty/inside", 0777);
    RUN("report");
    EXPECT_FAILED(2, "no folder is given", "vqround report --help");
    RUN("report", "none");
    EXPECT_FAILED(3, "none: no such folder", "Check the path");
    assert_false(exists("none"));
    RUN("report", "empty");
    EXPECT_FAILED(3, "empty: no run is in this folder", "config.yaml", "Give the --out");
    assert_false(exists("empty/report.html"));
    mkdir("run", 0777);
    write_text("run/error.txt", "3\nno\n");
    RUN("report", "run", "empty");
    EXPECT_FAILED(3, "empty: no run is in this folder");
    write_text("file", "");
    RUN("report", "run", "--out", "file/in");
    EXPECT_FAILED(3, "file", "made as a folder");
    mkdir("taken", 0777);
    mkdir("taken/report.html", 0777);
    RUN("report", "run", "--out", "taken");
    EXPECT_FAILED(3, "report.html cannot be");
    RUN("report", "run", "--bits", "3");
    EXPECT_FAILED(2, "--bits is a flag of other subcommands", "vqround report --help");
}

static void failures_leave_their_message(void **state)
{
    (void)state;
    make_model("rand-llama3-rope", "m");
    write_text("short.txt", "a few words");
#define FEW "--nsamples", "2", "--seqlen", "16", "--steps", "2", "--no-eval", "--quiet", "--K", "16"
    RUN("quantize", "--model", "m", "--text", "short.txt", "--out", "run", FEW);
    EXPECT_FAILED(3, "short.txt");
    const char *message = strstr(last.err, "error: ") + strlen("error: ");
    char *error = read_file("run/error.txt", NULL);
    assert_string_equal(error, text("3\n%s", message));
    free(error);
    RUN_OK("report", "run", "--json");
    json_t *row = last_json();
    assert_true(json_number(row, "failed") == 1);
    json_decref(row);

    /* The next start removes it; one that is stopped leaves its own. */
    RUN("quantize", "--model", "m", "--text", CALIB, "--max-hours", "1e-9", "--out", "run", FEW);
    expect_code(75);
    error = read_file("run/error.txt", NULL);
    assert_true(!strncmp(error, "75\n", 3) && strstr(error, "max_hours"));
    free(error);
    RUN_OK("report", "run", "--json");
    row = last_json();
    assert_true(json_number(row, "stopped") == 1);
    json_decref(row);

    /* Other settings are an error of the command, not of the run. */
    RUN("quantize", "--model", "m", "--text", CALIB, "--bits", "2", "--out", "run", FEW);
    EXPECT_FAILED(2, "a run with other settings is in this folder");
    error = read_file("run/error.txt", NULL);
    assert_true(!strncmp(error, "75\n", 3));
    free(error);
    RUN_OK("quantize", "--model", "m", "--text", CALIB, "--out", "run", FEW);
    assert_false(exists("run/error.txt"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_are_tables),          cmocka_unit_test(runs_are_a_page),
        cmocka_unit_test(layers_have_their_errors), cmocka_unit_test(undecided_roundings_are_said),
        cmocka_unit_test(lines_are_of_like_runs),   cmocka_unit_test(many_runs),
        cmocka_unit_test(report_without_gnuplot),   cmocka_unit_test(damaged_files),
        cmocka_unit_test(wrong_commands),           cmocka_unit_test(failures_leave_their_message),
    };
    return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
