/* ranks.h - running vqround under mpiexec, and comparing what runs leave. Included after cmocka.h.
 */
#pragma once
#include <math.h>

#include "cli/run.h"
#include "expect.h"
#include "h5.h"
#include "weights.h"

#define MAX_ARGS 80

static vq_arena arena;

/* Ranks may share cores, whoever runs the tests. */
static inline int enter_world(void **state)
{
    static const char *const settings[][2] = {{"OMPI_ALLOW_RUN_AS_ROOT", "1"},
                                              {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
                                              {"OMPI_MCA_rmaps_base_oversubscribe", "1"},
                                              {"OMPI_MCA_hwloc_base_binding_policy", "none"}};
    for (int i = 0; i < VQ_COUNT(settings); i++) setenv(settings[i][0], settings[i][1], 1);
    EXPECT_OK(vq_arena_init(&arena, "test", (size_t)1 << 30));
    return enter_folder(state);
}

static inline int leave_world(void **state)
{
    vq_arena_close(&arena);
    return leave_folder(state);
}

/* Between tests: everything in the test's folder. */
static inline int clear_folder(void **state)
{
    (void)state;
    remove_all(work_folder);
    return mkdir(work_folder, 0777) || chdir(work_folder);
}

/* Starts `program` as n ranks; 0 is without a launcher. common and more end with NULL. */
static inline pid_t start_ranks(int n, const char *program, const char *const *common,
                                const char *const *more)
{
    const char *args[MAX_ARGS];
    int count = 0;
    if (n > 0) {
        args[count++] = MPIEXEC;
        args[count++] = "-n";
        args[count++] = text("%d", n);
    }
    args[count++] = program;
    for (; *common; common++) args[count++] = *common;
    for (; *more; more++) args[count++] = *more;
    assert_true(count < MAX_ARGS);
    args[count] = NULL;
    return start(args);
}

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

/* A run of n ranks (0: no launcher) to its end; COMMON(model) are the options that all runs
 * of the program have. */
#define QUANTIZE(n, model, ...)                                                                    \
    do {                                                                                           \
        finish(start_ranks(n, VQROUND, COMMON(model), LIST(__VA_ARGS__)));                         \
        expect_code(0);                                                                            \
        assert_string_equal(last.err, "");                                                         \
    } while (0)

/* --- what a run leaves ----------------------------------------------------------------------- */

/* One line of metrics.jsonl. */
typedef struct metrics {
    double loss, task, reg, grad_norm;
} metrics;

/* Reads RUN/metrics.jsonl, at most `max` lines, with steps 0, 1, 2...; returns how many. */
static inline int read_metrics(const char *run, metrics *m, int max)
{
    char *lines = read_file(text("%s/metrics.jsonl", run), NULL);
    int n = 0;
    for (char *line = lines, *end; (end = strchr(line, '\n')); line = end + 1, n++) {
        json_t *row = json_loadb(line, (size_t)(end - line), 0, NULL);
        assert_true(row && n < max);
        if (json_number(row, "step") != n)
            fail_msg("%s/metrics.jsonl: line %d has step %g", run, n + 1, json_number(row, "step"));
        m[n] = (metrics){json_number(row, "loss"), json_number(row, "task"),
                         json_number(row, "reg"), json_number(row, "grad_norm")};
        json_decref(row);
    }
    free(lines);
    return n;
}

/* A tensor of RUN/ckpt-STEP.h5, in the test's arena. */
static inline vq_tensor read_checkpoint(const char *run, int step, const char *name)
{
    vq_h5 h;
    vq_tensor t;
    EXPECT_OK(vq_h5_open(&arena, text("%s/ckpt-%010d.h5", run, step), "checkpoint", 1, &h));
    EXPECT_OK(vq_h5_load(&h, &arena, name, &t));
    vq_h5_close(&h);
    return t;
}

static inline void expect_same_tensor(const char *a, const char *b, const vq_tensor *x,
                                      const vq_tensor *y)
{
    if (x->dtype != y->dtype || !vq_tensor_same_shape(x, y) ||
        memcmp(x->data, y->data, vq_tensor_bytes(x)) != 0)
        fail_msg("%s and %s have another %s", a, b, x->name ? x->name : "tensor");
}

/* The weights of two model folders, whatever files they are in. */
static inline void expect_same_model(const char *a, const char *b)
{
    vq_weights x, y;
    EXPECT_OK(vq_weights_open(&arena, a, &x));
    EXPECT_OK(vq_weights_open(&arena, b, &y));
    assert_int_equal(x.n, y.n);
    for (int64_t i = 0; i < x.n; i++) {
        assert_string_equal(x.tensor[i].name, y.tensor[i].name);
        expect_same_tensor(a, b, &x.tensor[i], &y.tensor[i]);
    }
    vq_weights_close(&x);
    vq_weights_close(&y);
}

/* Whether what is trained is in the checkpoint itself, and not in its stages' parts. */
static inline bool is_checkpoint_whole(const char *run, int step)
{
    vq_h5 h;
    EXPECT_OK(vq_h5_open(&arena, text("%s/ckpt-%010d.h5", run, step), "checkpoint", 1, &h));
    const bool has = vq_h5_has(&h, "codes");
    vq_h5_close(&h);
    return has;
}

/* Two runs that must be equal bit for bit: every step, the state after the last, perplexities, and
 * the quantized model. */
static inline void expect_same_run(const char *a, const char *b, int steps)
{
    enum { MAX = 64 };
    static metrics x[MAX], y[MAX];
    static const char *const states[] = {"codes", "m", "v"};
    const size_t mark = vq_arena_mark(&arena);
    assert_int_equal(read_metrics(a, x, MAX), steps);
    assert_int_equal(read_metrics(b, y, MAX), steps);
    for (int i = 0; i < steps; i++)
        if (memcmp(&x[i], &y[i], sizeof x[i]) != 0)
            fail_msg("step %d: %s has loss %.9g, gradient %.9g; %s has %.9g, %.9g", i, a, x[i].loss,
                     x[i].grad_norm, b, y[i].loss, y[i].grad_norm);
    assert_true(is_checkpoint_whole(a, steps) == is_checkpoint_whole(b, steps));
    for (int i = 0; i < VQ_COUNT(states) && is_checkpoint_whole(a, steps); i++) {
        vq_tensor s = read_checkpoint(a, steps, states[i]),
                  t = read_checkpoint(b, steps, states[i]);
        s.name = states[i];
        expect_same_tensor(a, b, &s, &t);
    }
    json_t *p = load_json(text("%s/results.json", a)), *q = load_json(text("%s/results.json", b));
    if (!json_equal(json_object_get(p, "perplexity"), json_object_get(q, "perplexity")))
        fail_msg("%s and %s have other perplexities", a, b);
    json_decref(p);
    json_decref(q);
    expect_same_model(text("%s/model", a), text("%s/model", b));
    vq_arena_reset(&arena, mark);
}

/* A part of a linear, from whichever of the run's init files it is in. */
static inline vq_tensor load_part(const char *run, const char *name, const char *what,
                                  double *error)
{
    vq_tensor t = {0};
    char **names;
    int64_t n;
    EXPECT_OK(vq_folder_list(&arena, run, ".h5", &names, &n));
    for (int64_t i = 0; i < n; i++) {
        vq_h5 h;
        const char *whole = text("%s/%s", name, what);
        if (strncmp(names[i], "init-", 5) != 0) continue;
        EXPECT_OK(vq_h5_open(&arena, text("%s/%s", run, names[i]), NULL, 0, &h));
        if (vq_h5_has(&h, whole)) {
            assert_null(t.data); /* nothing is made twice */
            EXPECT_OK(vq_h5_load(&h, &arena, whole, &t));
            EXPECT_OK(vq_h5_get_f64(&h, text("%s/base", name), "gptq_error", error));
        }
        vq_h5_close(&h);
    }
    if (!t.data) fail_msg("%s lacks %s/%s", run, name, what);
    return t;
}

/* Runs of GPTQ, a's by one rank: integers the same but for one in ten thousand; where all are, the
 * errors of the two sweeps, which are sums over the inverse of H, within 1e-6. */
static inline void expect_near_run(const char *a, const char *b)
{
    char **names;
    int64_t n = 0, n_linears = 0, n_weights = 0, n_different = 0;
    const size_t mark = vq_arena_mark(&arena);
    for (int layer = 0; exists(text("%s/init-%04d-0000.h5", a, layer)); layer++) {
        vq_h5 h;
        EXPECT_OK(vq_h5_open(&arena, text("%s/init-%04d-0000.h5", a, layer), NULL, 0, &h));
        EXPECT_OK(vq_h5_list(&h, &arena, &names, &n));
        vq_h5_close(&h);
        for (int64_t i = 0; i < n; i++) {
            char *end = strrchr(names[i], '/');
            if (!end || strcmp(end, "/ints") != 0) continue;
            double x, y;
            *end = '\0';
            const vq_tensor p = load_part(a, names[i], "ints", &x),
                            q = load_part(b, names[i], "ints", &y);
            assert_true(vq_tensor_same_shape(&p, &q) && p.dtype == VQ_U8); /* two in a byte */
            int64_t differ = 0;
            for (int64_t j = 0; j < vq_tensor_count(&p); j++) {
                const int both = ((uint8_t *)p.data)[j] ^ ((uint8_t *)q.data)[j];
                differ += ((both & 15) != 0) + (both > 15);
            }
            if (differ == 0 && fabs(y / x - 1) > 1e-6)
                fail_msg("%s: the error of %s is %.9g, of %s %.9g", names[i], a, x, b, y);
            n_linears++;
            n_weights += 2 * vq_tensor_count(&p);
            n_different += differ;
        }
    }
    assert_true(n_linears >= 6 && n_weights > 0);
    if (n_different * 10000 >= n_weights)
        fail_msg("%s and %s: %lld of %lld integers differ", a, b, (long long)n_different,
                 (long long)n_weights);
    vq_arena_reset(&arena, mark);
}
