/* test_share - runs with --share make what they have in common once, also at the same time, with
 * the bits of a run alone; and what happens when the run that makes it is stuck or gone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "run.h"

#define BASE                                                                                       \
    "quantize", "--model", "m", "--text", CALIB, "--eval-text", HELD_OUT, "--D", "4",              \
        "--nsamples", "3", "--seqlen", "32", "--steps", "4", "--lr", "0.05", "--eval-max-windows", \
        "2", "--threads", "1"
#define MODEL "/model/model.safetensors"

/* The folder DIR/WHAT-KEY, of which there must be one. */
static const char *shared(const char *dir, const char *what)
{
    const char *found = NULL;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        if (strncmp(e->d_name, what, strlen(what)) != 0 || strchr(e->d_name, '.')) continue;
        if (found) fail_msg("%s and %s/%s", found, dir, e->d_name);
        found = text("%s/%s", dir, e->d_name);
    }
    closedir(d);
    if (!found) fail_msg("%s has no %s", dir, what);
    return found;
}

/* In how many run folders a shared file is: made once, it is linked. */
static void expect_links(const char *file, int runs)
{
    struct stat st;
    if (stat(file, &st) != 0) fail_msg("%s is not there", file);
    if ((int)st.st_nlink != runs + 1)
        fail_msg("%s is in %d run folders, expected %d", file, (int)st.st_nlink - 1, runs);
}

/* The perplexities of two eval.json, under the same keys. */
static void expect_same_json(const char *a, const char *b)
{
    json_t *p = load_json(a), *q = load_json(b), *row;
    const char *label;
    assert_int_equal(json_object_size(p), json_object_size(q));
    json_object_foreach(p, label, row)
    {
        const json_t *other = json_object_get(q, label);
        if (!json_equal(json_object_get(row, "key"), json_object_get(other, "key")) ||
            json_number(row, "perplexity") != json_number(other, "perplexity"))
            fail_msg("%s and %s differ in %s", a, b, label);
    }
    json_decref(p);
    json_decref(q);
}

static void made_once_by_runs_at_the_same_time(void **state)
{
    (void)state;
    enum { N = 3 };
    pid_t pid[N];
    RUN_OK(BASE, "--K", "16", "--out", "alone");
    for (int i = 0; i < N; i++)
        pid[i] = start(ARGS(BASE, "--K", "16", "--out", text("run%d", i), "--share", "s"));
    for (int i = 0; i < N; i++) finish(pid[i]);
    for (int i = 0; i < N; i++) expect_same_files("alone" MODEL, text("run%d" MODEL, i));
    expect_links(text("%s/tokens.h5", shared("s", "tokens")), N);
    expect_links(text("%s/init-0001-0000.h5", shared("s", "init")), N);
    expect_links(text("%s/teacher-0000-0000.h5", shared("s", "teacher")), N);

    expect_same_json("alone/eval.json", "run0/eval.json");
    expect_same_json("alone/eval.json", "run2/eval.json");

    /* Other codebooks, the same teacher. */
    RUN_OK(BASE, "--K", "24", "--out", "other", "--share", "s");
    expect_words("tokens from another run", "init made for", "eval_fp from another run",
                 "eval_rtn from another run", "teacher from another run", NULL);
    assert_null(find_name("other", "eval-shared", ""));
    expect_links(text("%s/teacher-0000-0000.h5", shared("s", "teacher")), N + 1);
    RUN_OK(BASE, "--K", "24", "--out", "other-alone");
    expect_same_files("other-alone" MODEL, "other" MODEL);
    remove_all("s");
    expect_same_files("alone" MODEL, "run0" MODEL);
}

static void grids_of_gptq_serve_other_codebooks(void **state)
{
    (void)state;
    RUN_OK(BASE, "--init", "gptq", "--K", "24", "--eval-start", "--out", "gptq");
    RUN_OK(BASE, "--init", "gptq", "--K", "16", "--out", "first", "--share", "g");
    expect_words("gptq ", "grid made for", "init made for", NULL);
    RUN_OK(BASE, "--init", "gptq", "--K", "24", "--eval-start", "--out", "second", "--share", "g");
    expect_words("grid from another run", "init made for", NULL);
    if (strstr(last.err, "gptq     ")) fail_msg("GPTQ ran again: %s", last.err);
    expect_same_files("gptq" MODEL, "second" MODEL);
    json_t *a = load_json("gptq/results.json"), *b = load_json("second/results.json");
    assert_true(json_equal(json_object_get(a, "perplexity"), json_object_get(b, "perplexity")));
    json_decref(a);
    json_decref(b);
    assert_null(find_name("first", "grid-", ".h5"));
    expect_links(text("%s/grid-0001-0000.h5", shared("g", "grid")), 0);

    /* Other settings, other grids. */
    RUN_OK(BASE, "--init", "gptq", "--K", "16", "--sym", "--out", "third", "--share", "g");
    expect_words("grid made for", NULL);
}

/* What GPTQ has made of a run that is stopped serves it when it goes on, with its own grids or
 * those that another run has made in the meantime. */
static void stopped_runs_go_on_with_grids(void **state)
{
    (void)state;
#define GPTQ(k, out) BASE, "--init", "gptq", "--K", k, "--out", out
    RUN_OK(GPTQ("16", "alone16"));
    RUN_OK(GPTQ("24", "alone24"));
    RUN(GPTQ("16", "stopped"), "--share", "h", "--max-hours", "1e-9");
    expect_code(75);
    expect_words("after layer 0", NULL);
    copy_folder("stopped", "behind");
    assert_true(exists("stopped/grid-0000-0000.h5") && exists("behind/init-0000-0000.h5"));
    const ino_t init = number_of("stopped/init-0000-0000.h5"),
                grid = number_of("stopped/grid-0000-0000.h5");

    RUN_OK(GPTQ("16", "stopped"), "--share", "h");
    expect_words("1 of 2 layers from an earlier run", "grid made for", "init made for", NULL);
    assert_true(number_of("stopped/init-0000-0000.h5") == init);
    assert_true(number_of(text("%s/grid-0000-0000.h5", shared("h", "grid"))) == grid);
    assert_null(find_name("stopped", "grid-", ".h5"));
    expect_same_files("alone16" MODEL, "stopped" MODEL);

    RUN_OK(GPTQ("24", "ahead"), "--share", "h");
    expect_words("grid from another run", NULL);
    expect_same_files("alone24" MODEL, "ahead" MODEL);

    /* Without the codebooks of the run that was first. */
    const char *grids = shared("h", "grid");
    assert_int_equal(mkdir("h2", 0777), 0);
    assert_int_equal(rename(grids, text("h2%s", strchr(grids, '/'))), 0);
    const ino_t late = number_of("behind/init-0000-0000.h5");
    RUN_OK(GPTQ("16", "behind"), "--share", "h2");
    expect_words("1 of 2 layers from an earlier run", "grid from another run", NULL);
    if (strstr(last.err, "gptq     ")) fail_msg("GPTQ ran again: %s", last.err);
    assert_true(number_of("behind/init-0000-0000.h5") == late);
    assert_null(find_name("behind", "grid-", ".h5"));
    expect_same_files("alone16" MODEL, "behind" MODEL);

    /* A run that made its first layers for itself alone makes their grids for others. */
    RUN(GPTQ("16", "private"), "--max-hours", "1e-9");
    expect_code(75);
    RUN_OK(GPTQ("16", "private"), "--share", "h3");
    expect_words("grid made for", NULL);
    assert_true(exists(text("%s/grid-0000-0000.h5", shared("h3", "grid"))));
    expect_same_files("alone16" MODEL, "private" MODEL);
#undef GPTQ
}

static bool is_said(const char *words)
{
    char *said = read_file("stderr.txt", NULL);
    const bool found = strstr(said, words);
    free(said);
    return found;
}

static void holder_that_is_silent_loses_what_it_makes(void **state)
{
    (void)state;
    RUN_OK(BASE, "--K", "16", "--out", "gone", "--share", "w");
    const char *teacher = shared("w", "teacher"), *place = text("%s.lock/50", teacher);
    assert_int_equal(rename(teacher, "away"), 0);
    assert_int_equal(mkdir(place, 0777), 0);
    write_text(text("%s/holder", place), "elsewhere 1 1 another/boot\n");
    write_text(text("%s/beat", place), "");
    const pid_t pid = start(ARGS(BASE, "--K", "16", "--out", "late", "--share", "w"));
    for (int i = 0; i < 5000 && !is_said("waiting for teacher, which elsewhere process 1"); i++)
        sleep_ms(2);
    kill(pid, SIGTERM);
    finish(pid);
    expect_code(75);
    expect_words("waiting for teacher, which elsewhere process 1", "stopped by signal", NULL);

    const struct timespec old[] = {{time(NULL) - 60, 0}, {time(NULL) - 60, 0}};
    assert_int_equal(utimensat(AT_FDCWD, text("%s/beat", place), old, 0), 0);
    RUN_OK(BASE, "--K", "16", "--out", "late", "--share", "w", "--share.dead_s", "20");
    expect_words("teacher made for other runs", NULL);
    expect_same_files("gone" MODEL, "late" MODEL);
    expect_links(text("%s/teacher-0000-0000.h5", shared("w", "teacher")), 1);
}

static void run_that_is_killed_leaves_it_to_the_next(void **state)
{
    (void)state;
    const pid_t pid = start(ARGS(BASE, "--K", "16", "--out", "killed", "--share", "k"));
    for (int i = 0; i < 5000 && !find_name("k", "init-", ".lock"); i++) sleep_ms(2);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    RUN_OK(BASE, "--K", "16", "--out", "next", "--share", "k");
    RUN_OK(BASE, "--K", "16", "--out", "killed", "--share", "k");
    expect_same_files("killed" MODEL, "next" MODEL);
}

static void bad_folder_says_why(void **state)
{
    (void)state;
    write_text("file", "x");
    RUN(BASE, "--K", "16", "--out", "bad", "--share", "file", "--quiet");
    EXPECT_FAILED(3, "file cannot be made", "it is a file", "Choose");
}

static int enter_with_model(void **state)
{
    if (enter_folder(state) != 0) return -1;
    make_model("rand-llama3-rope", "m");
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(made_once_by_runs_at_the_same_time),
        cmocka_unit_test(grids_of_gptq_serve_other_codebooks),
        cmocka_unit_test(stopped_runs_go_on_with_grids),
        cmocka_unit_test(holder_that_is_silent_loses_what_it_makes),
        cmocka_unit_test(run_that_is_killed_leaves_it_to_the_next),
        cmocka_unit_test(bad_folder_says_why),
    };
    return cmocka_run_group_tests(tests, enter_with_model, leave_folder);
}
