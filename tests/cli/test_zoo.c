/* test_zoo - every row of configs/reproduce.tsv is planned from its model's config.json alone (the
 * shapes in tests/models/zoo), and takes what its config's "# plan:" line says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "run.h"

#define N_ROWS 56

/* Billions of weights, as their makers count them. */
static const struct {
    const char *name;
    double billions;
} zoo[] = {{"opt-125m", 0.1252},    {"opt-350m", 0.3312},   {"opt-1.3b", 1.3158},
           {"opt-2.7b", 2.6516},    {"opt-6.7b", 6.6585},   {"opt-13b", 12.853},
           {"llama-7b", 6.7384},    {"llama-13b", 13.016},  {"llama-2-7b", 6.7384},
           {"llama-2-13b", 13.016}, {"qwen3-0.6b", 0.5960}, {"qwen3-1.7b", 1.7206},
           {"qwen3-4b", 4.0225},    {"qwen3-8b", 8.1907}};

enum { N_MODELS = sizeof zoo / sizeof *zoo };

static double gib[N_MODELS], hours[N_MODELS]; /* of the dearest row */

static int find_model(const char *name)
{
    for (int i = 0; i < N_MODELS; i++)
        if (!strcmp(zoo[i].name, name)) return i;
    fail_msg("tests/models/zoo has no %s", name);
    return -1;
}

/* What the "# plan:" line of a config says. */
typedef struct planned {
    int ranks, threads;
    double gib, hours, gflops;
} planned;

static planned read_planned(const char *model)
{
    planned p;
    char *file = read_file(text(ROOT_DIR "/configs/%s.yaml", model), NULL);
    const char *line = strstr(file, "# plan: "), *rest = line ? strstr(line, " of ") : NULL;
    if (!rest || sscanf(line, "# plan: %d rank", &p.ranks) != 1 ||
        sscanf(rest, " of %d threads, %lf GiB a rank, %lf h at %lf GFLOP/s", &p.threads, &p.gib,
               &p.hours, &p.gflops) != 4)
        fail_msg("configs/%s.yaml has no \"# plan:\" line", model);
    free(file);
    return p;
}

/* The dearest rank's GiB, and the job's hours. */
static void plan_row(const char *model, const char *bits, const char *init, double *row_gib,
                     double *row_hours)
{
    const planned p = read_planned(model);
    RUN_OK("plan", "--config", text(ROOT_DIR "/configs/%s.yaml", model), "--model",
           text(MODELS "zoo/%s", model), "--bits", bits, "--init", init, "--ranks",
           text("%d", p.ranks), "--threads", text("%d", p.threads), "--plan.gflops",
           text("%g", p.gflops), "--plan.memory_gib", "1000", "--json");
    json_t *plan = last_json();
    const json_t *ranks = json_object_get(plan, "ranks");
    assert_int_equal(json_array_size(ranks), p.ranks);
    *row_gib = 0;
    for (size_t i = 0; i < json_array_size(ranks); i++) {
        const double bytes = json_number(json_array_get(ranks, i), "total_bytes");
        if (bytes / (1 << 30) > *row_gib) *row_gib = bytes / (1 << 30);
    }
    *row_hours = json_number(plan, "seconds/total") / 3600;
    json_decref(plan);
}

static void every_row_is_planned(void **state)
{
    (void)state;
    char *table = read_file(ROOT_DIR "/configs/reproduce.tsv", NULL);
    int rows = -1; /* the line of keys */
    for (char *line = table, *end; (end = strchr(line, '\n')); line = end + 1) {
        char model[64], bits[8], init[8];
        double row_gib, row_hours;
        *end = '\0';
        if (*line == '#' || ++rows == 0) continue;
        if (sscanf(line, "%*s configs/%63[^\t]\t%7s\t%7s", model, bits, init) != 3)
            fail_msg("configs/reproduce.tsv: %s", line);
        *strstr(model, ".yaml") = '\0';
        plan_row(model, bits, init, &row_gib, &row_hours);
        const int i = find_model(model);
        if (row_gib > gib[i]) gib[i] = row_gib;
        if (row_hours > hours[i]) hours[i] = row_hours;
    }
    free(table);
    assert_int_equal(rows, N_ROWS);
}

/* The lines are for people and for slurm/reproduce.sbatch, which asks for a fifth more. */
static void configs_say_what_is_planned(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        const planned p = read_planned(zoo[i].name);
        if (gib[i] > 1.1 * p.gib || gib[i] < 0.9 * p.gib || hours[i] > 1.1 * p.hours ||
            hours[i] < 0.9 * p.hours)
            fail_msg("configs/%s.yaml says %.1f GiB and %.1f h, the plan %.1f GiB and %.1f h: "
                     "correct its \"# plan:\" line",
                     zoo[i].name, p.gib, p.hours, gib[i], hours[i]);
    }
}

static void shapes_have_the_right_size(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++) {
        RUN_OK("plan", "--model", text(MODELS "zoo/%s", zoo[i].name), "--plan.gflops", "1000",
               "--threads", "1");
        const char *at = strstr(last.out, " layers, ");
        char unit[16] = "";
        double billions = 0;
        if (!at || sscanf(at, " layers, %lf %15s weights", &billions, unit) != 2)
            fail_msg("no weights in: %s", last.out);
        if (!strcmp(unit, "million")) billions /= 1000;
        if (billions < 0.999 * zoo[i].billions || billions > 1.001 * zoo[i].billions)
            fail_msg("%s has %g billion weights, expected %g", zoo[i].name, billions,
                     zoo[i].billions);
    }
}

/* At 3 bits, when most weights are brought, for many windows at a time. */
static void large_models_at_3_bits(void **state)
{
    (void)state;
    static const char *const rows[][2] = {{"llama-2-70b", "79"}, {"llama-13b", "23.5"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        RUN_OK("plan", "--model", text(MODELS "zoo/%s", rows[i][0]), "--device", "cuda", "--ranks",
               "1", "--plan.memory_gib", rows[i][1], "--bits", "3", "--seqlen", "2048", "--json");
        json_t *plan = last_json();
        const json_t *rank = json_array_get(json_object_get(plan, "ranks"), 0);
        const double total = json_number(rank, "total_bytes") / (1 << 30),
                     together = json_number(rank, "together");
        if (total > atof(rows[i][1]) || together < 8)
            fail_msg("%s: %.1f GiB of %s, %g windows together", rows[i][0], total, rows[i][1],
                     together);
        json_decref(plan);
    }
}

/* The GPUs that the largest models of the paper are to fit, by what their drivers say they have. */
static void large_models_fit_gpus(void **state)
{
    (void)state;
    static const struct {
        const char *model, *ranks, *gib;
        double own; /* GiB of a rank's own weights, at least */
        bool holds; /* all of them stay there */
    } rows[] = {{"llama-2-7b", "1", "79", 12, true},
                {"llama-13b", "1", "79", 23, true},
                {"llama-13b", "1", "39.4", 23, false},
                {"opt-13b", "1", "39.4", 23, false},
                {"llama-2-70b", "2", "79", 63, false}};
    static const char *const inits[] = {"rtn", "gptq"};
    for (size_t i = 0; i < 2 * sizeof rows / sizeof *rows; i++) {
        RUN_OK("plan", "--init", inits[i % 2], "--block-steps", "100", "--model",
               text(MODELS "zoo/%s", rows[i / 2].model), "--device", "cuda", "--ranks",
               rows[i / 2].ranks, "--plan.memory_gib", rows[i / 2].gib, "--bits", "4", "--seqlen",
               "2048", "--json");
        json_t *plan = last_json(), *ranks = json_object_get(plan, "ranks"), *rank;
        size_t r;
        assert_int_equal(json_number(plan, "replicas"), 1);
        json_array_foreach(ranks, r, rank)
        {
            const double total = json_number(rank, "total_bytes") / (1 << 30),
                         hold = json_number(rank, "hold_bytes") / (1 << 30),
                         weights = json_number(rank, "bytes/integers") / (1 << 30);
            if (total > atof(rows[i / 2].gib) || (hold >= rows[i / 2].own) != rows[i / 2].holds)
                fail_msg("%s from %s, rank %zu: %.1f GiB of %s, %.1f of them own weights",
                         rows[i / 2].model, inits[i % 2], r, total, rows[i / 2].gib, hold);
            assert_true(weights > 0);
        }
        json_decref(plan);
    }
    RUN("plan", "--model", MODELS "zoo/llama-2-7b", "--device", "cuda", "--ranks", "1");
    EXPECT_FAILED(2, "plan.memory_gib", "--device cuda", "--plan.memory_gib 79");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_have_the_right_size),  cmocka_unit_test(every_row_is_planned),
        cmocka_unit_test(configs_say_what_is_planned), cmocka_unit_test(large_models_fit_gpus),
        cmocka_unit_test(large_models_at_3_bits),
    };
    return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
