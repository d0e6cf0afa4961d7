/* test_browser - reports in a real browser, headless Chromium: no script errors, everything to be
 * seen and nothing beside the page, sorting; narrow and wide, light and dark. Skipped (77) where
 * there is no Chromium, or none that stays up: a browser that a signal ends before it has shown the
 * page says nothing of the page, and is started again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "run.h"

/* A text as the value of an attribute. */
static void put_attribute(FILE *to, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) switch (text[i]) {
        case '&': fputs("&amp;", to); break;
        case '"': fputs("&quot;", to); break;
        default: fputc(text[i], to);
        }
}

/* The page with the check in it, before its own script, and what is wanted of it: in a frame, since
 * Chromium's own window cannot be as narrow as a telephone. */
static void write_checked(const char *report, int width, bool is_dark)
{
    char *page = read_file(report, NULL);
    char *check = read_file(TESTS_DIR "/cli/browser_check.js", NULL);
    char *head = strstr(page, "</head>");
    int figures = 0;
    for (const char *p = page; (p = strstr(p, "<figure>")); p++) figures++;
    assert_non_null(head);
    FILE *file = fopen("checked.html", "w");
    assert_non_null(file);
    fprintf(file,
            "<!DOCTYPE html><style>:root{color-scheme:light dark}iframe{border:0}</style>"
            "<body style=\"margin:0\"><iframe width=\"%d\" height=\"1200\" srcdoc=\"",
            width);
    put_attribute(file, page, (size_t)(head - page));
    fprintf(file, "<script>const wanted = {width: %d, dark: %s, figures: %d};\n", width,
            is_dark ? "true" : "false", figures);
    put_attribute(file, check, strlen(check));
    fputs("</script>\n", file);
    put_attribute(file, head, strlen(head));
    fputs("\"></iframe></body>\n", file);
    assert_int_equal(fclose(file), 0);
    free(check);
    free(page);
}

/* What the check left in the page, as chromium wrote it. */
static void expect_pass(const char *what)
{
    char *found = strstr(last.out, "<pre id=\"check\">");
    if (!found) fail_msg("%s: no check in the page: %s\n%s", what, last.out, last.err);
    found += strlen("<pre id=\"check\">");
    char *end = strstr(found, "</pre>");
    assert_non_null(end);
    *end = '\0';
    if (strcmp(found, "PASS") != 0) fail_msg("%s: %s", what, found);
    if (strstr(last.err, "CONSOLE")) fail_msg("%s: %s", what, last.err);
}

enum { TRIES = 4 };
static int exit_code; /* 77: the browser did not stay up */

static void start_browser(int width, bool is_dark)
{
    static int profile; /* a new one each time: nothing is left from a browser that fell */
    const char *scheme = is_dark ? "--blink-settings=preferredColorScheme=0"
                                 : "--blink-settings=preferredColorScheme=1";
    printf("browser %d: %d px, %s\n", ++profile, width, is_dark ? "dark" : "light");
    finish(start((const char *const[]){
        "/usr/bin/env", "chromium", "--headless=new", "--no-sandbox", "--disable-gpu",
        "--no-first-run", "--disable-extensions", "--disable-background-networking",
        "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr",
        text("--user-data-dir=%s/chromium-%d", work_folder, profile), "--window-size=1500,1200",
        scheme, "--dump-dom", text("file://%s/checked.html", work_folder), NULL}));
}

/* False: the browser fell each time, and nothing was seen. */
static bool look_at(const char *report, int width, bool is_dark)
{
    write_checked(report, width, is_dark);
    for (int i = 0; i < TRIES; i++) {
        start_browser(width, is_dark);
        bool has_fallen = last.code >= 128, has_shown = strstr(last.out, "</html>");
        if (has_fallen && !has_shown) continue;
        if (!has_fallen) expect_code(0);
        expect_pass(text("%s, %d px, %s", report, width, is_dark ? "dark" : "light"));
        return true;
    }
    return false;
}

#define QUANTIZE(out, bits, ...)                                                                   \
    RUN_OK("quantize", "--config", ROOT_DIR "/configs/demo.yaml", "--model",                       \
           ROOT_DIR "/configs/demo-model", "--text", CALIB, "--eval-text", HELD_OUT, "--out", out, \
           "--bits", bits, "--steps", "12", "--K", "32", "--nsamples", "4", "--eval-max-windows",  \
           "2", "--kmeans.iters", "3", "--quiet", __VA_ARGS__)

static void reports_in_a_browser(void **state)
{
    (void)state;
    QUANTIZE("runs/two", "2", "--no-eval-start");
    QUANTIZE("runs/three-with-a-name-that-is-longer-than-any-name-should-be", "3", "--init",
             "gptq");
    QUANTIZE("runs/four", "4", "--seed", "3");
    QUANTIZE("runs/killed", "4", "--seed", "4");
    assert_int_equal(remove("runs/killed/results.json"), 0);
    mkdir("runs/failed", 0777);
    write_text("runs/failed/error.txt",
               "3\n/a/path/without/any/place/to/break/it/that/is/as/long/as/paths/on/clusters/are/"
               "model-00001-of-00004.safetensors cannot be read: <i>there is no such file</i>\n");
    RUN_OK("report", "runs");
    /* As after a job of ranks, which this test does not need MPI for. */
    json_t *results = load_json("runs/two/results.json");
    json_t *ratio = json_pack("{s:[f, f], s:[f, f], s:[f, f]}", "compute", 0.5, 0.25, "sums", 0.25,
                              0.25, "messages", 0.25, 0.5);
    json_object_set_new(results, "train_ratio", ratio);
    json_object_set_new(results, "peak_rss_bytes", json_pack("[i, i]", 50000000, 60000000));
    assert_int_equal(json_dump_file(results, "runs/two/results.json", 0), 0);
    json_decref(results);
    RUN_OK("report", "runs/two");
    RUN_OK("report", "runs");
    static const char *const pages[] = {"runs/report.html", "runs/two/report.html"};
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
            if (!look_at(pages[i], j % 2 ? 1400 : 400, j / 2)) {
                fprintf(stderr, "SKIPPED: chromium was ended by signal %d, %d times: %s\n",
                        last.code - 128, TRIES, last.err);
                exit_code = 77;
                return;
            }
}

int main(void)
{
    if (system("command -v chromium >/dev/null 2>&1") != 0) {
        fputs("SKIPPED: reports were not looked at in a browser: chromium is not installed\n",
              stderr);
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(reports_in_a_browser)};
    int failed = cmocka_run_group_tests(tests, enter_folder, leave_folder);
    return failed ? failed : exit_code;
}
