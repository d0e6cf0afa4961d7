/* test_faults - harm done to one rank of four: the whole job ends within seconds, with the right
 * code and at most one message of ours, no process stays behind, and the same command goes on to
 * the same bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "log.h"
#include "mpi/ranks.h"

#define LIMIT_S 30 /* for a job to end; about 2 on an idle machine */

#define COMMON                                                                                     \
    LIST("quantize", "--text", CALIB, "--eval-text", HELD_OUT, "--bits", "2", "--K", "32",         \
         "--kmeans.iters", "10", "--nsamples", "4", "--seqlen", "24", "--eval-max-windows", "2",   \
         "--threads", "1", "--quiet")

/* So many steps that a job is always in the middle of them. */
#define LONG "--steps", "1000000", "--checkpoint-every", "1"

/* --- processes ------------------------------------------------------------------------------- */

/* One file of /proc/PID as text with spaces for NULs; "" when it is gone. */
static const char *proc_text(const char *pid, const char *name)
{
    static char data[1 << 16];
    FILE *file = fopen(text("/proc/%s/%s", pid, name), "r");
    const size_t n = file ? fread(data, 1, sizeof data - 1, file) : 0;
    if (file) fclose(file);
    for (size_t i = 0; i < n; i++)
        if (data[i] == '\0') data[i] = ' ';
    data[n] = '\0';
    return data;
}

/* The first process of this test's folder that runs vqround as that rank (-1: any), or 0. */
static pid_t find_rank(int rank)
{
    DIR *d = opendir("/proc");
    assert_non_null(d);
    pid_t found = 0;
    for (struct dirent *e; !found && (e = readdir(d));) {
        char path[PATH_MAX];
        if (e->d_name[0] < '0' || e->d_name[0] > '9') continue;
        ssize_t n = readlink(text("/proc/%s/cwd", e->d_name), path, sizeof path - 1);
        if (n < 0 || strncmp(path, work_folder, (size_t)n) != 0 || work_folder[n]) continue;
        n = readlink(text("/proc/%s/exe", e->d_name), path, sizeof path - 1);
        if (n < 0 || strncmp(path, VQROUND, (size_t)n) != 0 || VQROUND[n]) continue;
        const char *own = strstr(proc_text(e->d_name, "environ"), "OMPI_COMM_WORLD_RANK=");
        if (rank < 0 || (own && atoi(strchr(own, '=') + 1) == rank)) found = atoi(e->d_name);
    }
    closedir(d);
    return found;
}

/* Starts four ranks on a run folder, and waits until they have trained for a few steps. */
static pid_t start_training(const char *out, const char *const *more)
{
    const char *args[MAX_ARGS] = {"--model", "model", "--out", out, LONG};
    int n = 8;
    while (*more) args[n++] = *more++;
    pid_t pid = start_ranks(4, VQROUND, COMMON, args);
    for (int i = 0; i < DEADLINE_S * 100; i++) {
        char *lines = exists(text("%s/metrics.jsonl", out))
                          ? read_file(text("%s/metrics.jsonl", out), NULL)
                          : strdup("");
        const bool runs = strstr(lines, "\"step\": 3,");
        free(lines);
        if (runs) return pid;
        if (has_ended(pid)) fail_msg("the job ended with code %d: %s", last.code, last.err);
        sleep_ms(10);
    }
    fail_msg("no step in %d s", DEADLINE_S);
    return 0;
}

/* Waits for the end of a job, which must come in time and leave nothing. */
static void expect_end(pid_t pid)
{
    const double start_s = vq_seconds();
    while (!has_ended(pid)) {
        if (vq_seconds() - start_s > LIMIT_S) {
            kill(pid, SIGTERM);
            finish(pid);
            fail_msg("the job had not ended after %d s: %s", LIMIT_S, last.err);
        }
        sleep_ms(10);
    }
    for (int i = 0; find_rank(-1); i++) {
        if (i == 200) {
            pid = find_rank(-1);
            kill(pid, SIGKILL);
            fail_msg("process %d was left behind", (int)pid);
        }
        sleep_ms(10);
    }
}

/* How many lines are errors of ours (the launcher has its own). */
static int count_errors(void)
{
    int n = 0;
    for (const char *at = last.err; (at = strstr(at, "vqround: error: ")); at++) n++;
    return n;
}

/* The job has failed with one message that has all the words. */
#define EXPECT_ONE_ERROR(code, ...)                                                                \
    do {                                                                                           \
        expect_code(code);                                                                         \
        if (count_errors() != 1) fail_msg("%d errors: %s", count_errors(), last.err);              \
        expect_words(__VA_ARGS__, (const char *)NULL);                                             \
    } while (0)

/* The failure is written down in the run folder as it was printed: by one rank, and whole. */
static void expect_written(const char *run, int code)
{
    char *error = read_file(text("%s/error.txt", run), NULL);
    const char *message = strchr(error, '\n');
    assert_non_null(message);
    assert_int_equal(atoi(error), code);
    if (!strstr(last.err, message + 1)) fail_msg("%s is not in: %s", message + 1, last.err);
    free(error);
    assert_false(exists(text("%s/error.txt.tmp", run)));
}

static const char *host(void)
{
    static char name[256];
    gethostname(name, sizeof name - 1);
    return name;
}

/* A script that starts vqround, but for rank 2 after `before` and with `more` at its end. */
static void write_wrapper(const char *before, const char *more)
{
    write_text("wrapper", text("#!/bin/sh\nmore='--model model'\n"
                               "if [ \"$OMPI_COMM_WORLD_RANK\" = 2 ]; then more='%s'; %s; fi\n"
                               "exec " VQROUND " \"$@\" $more\n",
                               more, before));
    chmod("wrapper", 0755);
}

static pid_t start_wrapped(const char *const *more)
{
    return start_ranks(4, text("%s/wrapper", work_folder), COMMON, more);
}

static int prepare(void **state)
{
    (void)state;
    make_model("tiny-llama", "model");
    return 0;
}

/* --- inputs ---------------------------------------------------------------------------------- */

static void test_bad_model_on_one_rank(void **state)
{
    (void)state;
    size_t n;
    make_model("tiny-llama", "bad");
    char *data = read_file("model/model.safetensors", &n);
    write_file("bad/model.safetensors", data, n / 2);
    free(data);
    write_wrapper("true", "--model bad");
    expect_end(start_wrapped(LIST("--out", "run")));
    EXPECT_ONE_ERROR(3, "rank 2 of 4 on", host(), "bad/model.safetensors");
}

/* A copy of the model on one node that is another one. */
static void test_other_model_on_one_rank(void **state)
{
    (void)state;
    size_t n;
    make_model("tiny-llama", "other");
    char *data = read_file("model/model.safetensors", &n);
    data[n - 1] ^= 1;
    write_file("other/model.safetensors", data, n);
    free(data);
    write_wrapper("true", "--model other");
    expect_end(start_wrapped(LIST("--out", "run")));
    EXPECT_ONE_ERROR(3, "rank 2 of 4 on", "other", "rank 0");
}

static void test_other_settings_on_one_rank(void **state)
{
    (void)state;
    write_wrapper("true", "--model model --lr 0.5");
    expect_end(start_wrapped(LIST("--out", "run")));
    EXPECT_ONE_ERROR(2, "rank 2 of 4 on", "the same command");
    write_wrapper("true", "--model model --stages 3");
    expect_end(start_wrapped(LIST("--out", "run")));
    EXPECT_ONE_ERROR(2, "rank 2 of 4 on", "--stages 3");
}

static void test_world_that_does_not_fit(void **state)
{
    (void)state;
    expect_end(
        start_ranks(4, VQROUND, COMMON, LIST("--model", "model", "--out", "run", "--stages", "3")));
    EXPECT_ONE_ERROR(2, "--stages 3", "the job has 4 ranks", "start 3 ranks");
    expect_end(start_ranks(6, VQROUND, COMMON, LIST("--model", "model", "--out", "run")));
    EXPECT_ONE_ERROR(2, "6 stages, by the ranks", "has 4 layers");
}

/* A weight that is not finite shows first where all ranks wait for each other. */
static void test_teacher_not_finite(void **state)
{
    (void)state;
    vq_weights w;
    size_t n;
    make_model("tiny-llama", "bad");
    char *data = read_file("model/model.safetensors", &n);
    EXPECT_OK(vq_weights_open(&arena, "model", &w));
    const vq_tensor *t = vq_weights_find(&w, "model.norm.weight");
    assert_true(t && t->dtype == VQ_F16);
    const uint16_t nan = 0x7e00;
    memcpy(data + ((const char *)t->data - (const char *)w.map[0].data), &nan, sizeof nan);
    vq_weights_close(&w);
    write_file("bad/model.safetensors", data, n);
    free(data);
    expect_end(start_ranks(4, VQROUND, COMMON, LIST("--model", "bad", "--out", "run")));
    EXPECT_ONE_ERROR(7, "bad", "finite");
    expect_written("run", 7);
    expect_end(
        start_ranks(4, VQROUND, COMMON, LIST("--model", "bad", "--out", "run2", "--no-eval")));
    EXPECT_ONE_ERROR(7, "bad", "window 0", "finite");
    expect_end(start_ranks(4, VQROUND, COMMON,
                           LIST("--model", "bad", "--out", "run3", "--no-eval", "--loss", "lm")));
    EXPECT_ONE_ERROR(7, "step 0", "loss", "not-finite-0.h5");
    assert_true(exists("run3/not-finite-0.h5"));
}

static void test_bad_checkpoint(void **state)
{
    (void)state;
    while (!exists("run/ckpt-0000000001.h5")) {
        expect_end(start_ranks(
            2, VQROUND, COMMON,
            LIST("--model", "model", "--steps", "2", "--out", "run", "--max-hours", "1e-9")));
        expect_code(75);
    }
    write_text("run/ckpt-0000000001.h5", "nothing");
    expect_end(
        start_ranks(3, VQROUND, COMMON, LIST("--model", "model", "--steps", "2", "--out", "run")));
    EXPECT_ONE_ERROR(3, "rank 0 of 3 on", "ckpt-0000000001.h5");
}

/* --- memory ---------------------------------------------------------------------------------- */

static void test_no_addresses(void **state)
{
    (void)state;
    write_wrapper("ulimit -v 1000000", "--model model");
    expect_end(start_wrapped(LIST("--out", "run")));
    EXPECT_ONE_ERROR(4, "rank 2 of 4 on", host(), "ulimit -v");
}

/* Memory that runs out in the middle of a phase: rank 2 may hold what it takes to open the job and
 * a little more. How much that is depends on the libraries, so limits are raised until one lets it
 * open. */
static void test_no_memory_in_a_phase(void **state)
{
    (void)state;
    for (int mib = 256; mib < 1024; mib += 12) {
        write_wrapper(text("ulimit -d %d", mib * 1024), "--model model");
        expect_end(start_wrapped(
            LIST("--out", text("run%d", mib), "--eval.seqlen", "512", "--steps", "2")));
        if (last.code == 0) fail_msg("%d MiB were enough: no limit stopped a phase", mib);
        EXPECT_ONE_ERROR(4, "rank 2 of 4 on", host(), "refused");
        if (!strstr(last.err, "opening")) return;
    }
    fail_msg("the job could not be opened");
}

/* --- lost ranks ------------------------------------------------------------------------------ */

/* The job that was ended goes on elsewhere, step by step as one that nobody disturbed. */
static void expect_same_steps(const char *run)
{
    char *a, *b;
    pid_t pid = start_training("calm", LIST("--resume"));
    kill(pid, SIGUSR1);
    expect_end(pid);
    expect_code(75);
    a = read_file("calm/metrics.jsonl", NULL);
    b = read_file(text("%s/metrics.jsonl", run), NULL);
    int steps = 0;
    for (char *p = a, *q = b; (p = strstr(p, "\"loss\"")) && (q = strstr(q, "\"loss\"")); steps++) {
        const size_t n = (size_t)(strstr(p, ", \"seconds\"") - p);
        if (strncmp(p, q, n) != 0) fail_msg("step %d: %.*s and %.*s", steps, (int)n, p, (int)n, q);
        p += n, q += n;
    }
    assert_true(steps > 4);
    free(a);
    free(b);
    remove_all("calm");
}

/* Goes on with a run for some steps more on `n` ranks, until a signal to the launcher. */
static void go_on(const char *out)
{
    const char *lines = text("%s/metrics.jsonl", out);
    struct stat before, now;
    assert_int_equal(stat(lines, &before), 0);
    pid_t pid = start_ranks(2, VQROUND, COMMON, LIST("--model", "model", "--out", out, LONG));
    for (int i = 0; i < DEADLINE_S * 100; i++) {
        if (stat(lines, &now) == 0 && now.st_size > before.st_size + 400) break;
        if (has_ended(pid)) fail_msg("the job ended with code %d: %s", last.code, last.err);
        sleep_ms(10);
    }
    kill(pid, SIGUSR1);
    expect_end(pid);
    expect_code(75);
    assert_int_equal(count_errors(), 0);
    expect_words("stopped by signal 10", "Run the same command again", NULL);
}

static void test_killed(void **state)
{
    (void)state;
    pid_t pid = start_training("run", LIST("--resume"));
    kill(find_rank(2), SIGKILL);
    expect_end(pid);
    expect_code(137);
    assert_int_equal(count_errors(), 0); /* it could not say anything; the launcher does */
    go_on("run");
    expect_same_steps("run");
}

/* In the middle of GPTQ: what is there of it stays, and is not made again. */
static void test_killed_in_gptq(void **state)
{
    (void)state;
    static const char *const runs[] = {"killed", "stopped"};
    static const char *const layers[] = {"killed/init-0000-0000.h5", "stopped/init-0000-0000.h5"};
    for (int i = 0; i < 2; i++) {
        const char *const *more =
            LIST("--model", "model", "--init", "gptq", "--out", runs[i], LONG);
        pid_t pid = start_ranks(4, VQROUND, COMMON, more);
        while (!exists(layers[i])) {
            if (has_ended(pid)) fail_msg("the job ended with code %d: %s", last.code, last.err);
            sleep_ms(1);
        }
        const ino_t number = number_of(layers[i]);
        kill(i == 0 ? find_rank(2) : pid, i == 0 ? SIGKILL : SIGUSR1);
        expect_end(pid);
        expect_code(i == 0 ? 137 : 75);
        assert_int_equal(count_errors(), 0);
        expect_end(start_ranks(2, VQROUND, COMMON,
                               LIST("--model", "model", "--init", "gptq", "--out", runs[i], LONG,
                                    "--max-hours", "1e-9")));
        expect_code(75);
        expect_words("stopped by max_hours", "Run the same command again", NULL);
        expect_written(runs[i], 75);
        assert_true(number_of(layers[i]) == number);
    }
}

static void test_crashed(void **state)
{
    (void)state;
    pid_t pid = start_training("run", LIST("--resume"));
    kill(find_rank(1), SIGSEGV);
    expect_end(pid);
    expect_code(139);
    assert_int_equal(count_errors(), 0);
}

static void test_asleep(void **state)
{
    (void)state;
    pid_t pid = start_training("run", LIST("--comm.limit_s", "3"));
    kill(find_rank(2), SIGSTOP);
    expect_end(pid);
    EXPECT_ONE_ERROR(6, "of 4 on", host(), "train, step", "waited 3 s for", "--comm.limit_s");
    expect_written("run", 6);
}

/* Asleep before the first step, where ranks wait in sums and agreements. */
static void test_asleep_early(void **state)
{
    (void)state;
    write_wrapper("kill -STOP $$", "--model model");
    /* The stopped shell never enters MPI: the launcher's world is incomplete, and it is ended by
     * the one who started it. */
    pid_t pid = start_wrapped(LIST("--out", "run", "--comm.limit_s", "3"));
    sleep_ms(1000);
    kill(pid, SIGTERM);
    expect_end(pid);
    assert_true(last.code != 0);
}

/* --- asked to stop --------------------------------------------------------------------------- */

static void test_signal_to_one_rank(void **state)
{
    (void)state;
    pid_t pid = start_training("run", LIST("--resume"));
    kill(find_rank(3), SIGUSR1);
    expect_end(pid);
    expect_code(75);
    assert_int_equal(count_errors(), 0);
    expect_words("stopped by", "Run the same command again", NULL);
    expect_written("run", 75);
    assert_non_null(find_name("run", "ckpt-", ".h5"));
    go_on("run");
    expect_same_steps("run");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(f) cmocka_unit_test_setup_teardown(f, prepare, clear_folder)
        TEST(test_bad_model_on_one_rank),
        TEST(test_other_model_on_one_rank),
        TEST(test_other_settings_on_one_rank),
        TEST(test_world_that_does_not_fit),
        TEST(test_teacher_not_finite),
        TEST(test_bad_checkpoint),
        TEST(test_no_addresses),
        TEST(test_no_memory_in_a_phase),
        TEST(test_killed),
        TEST(test_killed_in_gptq),
        TEST(test_crashed),
        TEST(test_asleep),
        TEST(test_asleep_early),
        TEST(test_signal_to_one_rank),
    };
    return cmocka_run_group_tests(tests, enter_world, leave_world);
}
