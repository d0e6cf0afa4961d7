/* main - the subcommands. */
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dashboard.h"
#include "error.h"
#include "evaluate.h"
#include "exporter.h"
#include "guard.h"
#include "inspect.h"
#include "log.h"
#include "plan_job.h"
#include "run.h"

static vq_status quantize(const vq_config *config, vq_comm *comm, int argc, const char *const *argv)
{
    return vq_run(config, comm, argc, argv);
}

static vq_status do_eval(vq_job *job)
{
    vq_data data;
    vq_stage stage;
    vq_eval_result r;
    VQ_TRY(vq_feed_eval(job, &job->config->text, &data));
    VQ_TRY(vq_job_connect(job));
    VQ_TRY(vq_comm_agree(job->comm, vq_job_stage(job, &job->model, data.eval.T, &stage)));
    VQ_TRY(vq_evaluate_together(job, &stage, &data.eval));
    VQ_TRY(vq_evaluate(job, &stage, VQ_MODE_FLOAT, &data.eval, job->model.dir, NULL, &r));
    if (job->comm->rank != 0) return VQ_OK;
    if (job->config->json)
        printf("{\"perplexity\": %.9g, \"tokens\": %lld, \"windows\": %lld, \"seconds\": %.6g}\n",
               r.perplexity, (long long)r.tokens, (long long)r.windows, r.seconds);
    else
        printf("perplexity %.6g  (%lld windows of %lld tokens)\n", r.perplexity,
               (long long)r.windows, (long long)data.eval.T);
    return VQ_OK;
}

static vq_status do_tokens(vq_job *job)
{
    vq_windows w;
    VQ_TRY(vq_feed_write(job, job->config->out, &w));
    if (job->comm->rank != 0) return VQ_OK;
    if (job->config->json) {
        json_t *row = json_pack("{s:I, s:I, s:s}", "windows", (json_int_t)w.n, "tokens",
                                (json_int_t)(w.n * w.T), "file", job->config->out);
        json_dumpf(row, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(row);
    } else {
        printf("%s: %lld windows of %lld tokens\n", job->config->out, (long long)w.n,
               (long long)w.T);
    }
    return VQ_OK;
}

static vq_status with_job(const vq_config *config, vq_comm *comm, vq_status (*f)(vq_job *))
{
    vq_job job;
    vq_status status = vq_job_open(config, comm, &job);
    if (!status) status = f(&job);
    vq_job_close(&job);
    return status;
}

static vq_status eval(const vq_config *config, vq_comm *comm, int argc, const char *const *argv)
{
    (void)argc, (void)argv;
    return with_job(config, comm, do_eval);
}

static vq_status tokens(const vq_config *config, vq_comm *comm, int argc, const char *const *argv)
{
    (void)argc, (void)argv;
    return with_job(config, comm, do_tokens);
}

static vq_status plan(const vq_config *config, vq_comm *comm, int argc, const char *const *argv)
{
    (void)argc, (void)argv;
    return vq_plan_run(config, comm);
}

static vq_status export(const vq_config *config, vq_comm *comm, int argc, const char *const *argv)
{
    (void)argc, (void)argv;
    return vq_export_run(config, comm);
}

static vq_status inspect(const vq_config *config, vq_comm *comm, int argc, const char *const *argv)
{
    (void)argc, (void)argv;
    if (comm->rank != 0) return VQ_OK;
    return vq_inspect(config->args.item[0], config->json);
}

/* Into the one folder given, or the working folder. */
static vq_status report(const vq_config *config, vq_comm *comm, int argc, const char *const *argv)
{
    (void)argc, (void)argv;
    const vq_list *dirs = &config->args;
    vq_dashboard d;
    if (comm->rank != 0) return VQ_OK;
    const char *out = config->out ? config->out : dirs->n == 1 ? dirs->item[0] : ".";
    VQ_TRY(vq_dashboard_write(dirs->item, dirs->n, out, true, config->json ? NULL : stdout, &d));
    if (*d.no_figures) vq_log(VQ_LOG_WARN, "the report has no figures: %s", d.no_figures);
    if (config->json) {
        json_t *row = json_pack("{s:I, s:s, s:s}", "runs", (json_int_t)d.n_runs, "html", d.html,
                                "csv", d.csv);
        for (int s = 0; s < VQ_COUNT(d.n_in_state); s++)
            json_object_set_new(row, vq_run_state_name((vq_run_state)s),
                                json_integer((json_int_t)d.n_in_state[s]));
        json_dumpf(row, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(row);
        return VQ_OK;
    }
    for (int s = 0; s < VQ_COUNT(d.n_in_state); s++)
        if (d.n_in_state[s] > 0)
            printf("%5lld %s\n", (long long)d.n_in_state[s], vq_run_state_name((vq_run_state)s));
    printf("%s\n%s\n", d.html, d.csv);
    return VQ_OK;
}

static const struct {
    vq_command command;
    vq_status (*run)(const vq_config *config, vq_comm *comm, int argc, const char *const *argv);
} commands[] = {{VQ_QUANTIZE, quantize}, {VQ_EVAL, eval},     {VQ_TOKENS, tokens},
                {VQ_PLAN, plan},         {VQ_EXPORT, export}, {VQ_INSPECT, inspect},
                {VQ_REPORT, report}};

static vq_status read_command(vq_arena *arena, int argc, const char *const *argv,
                              vq_command *command, vq_config *config)
{
    VQ_TRY(vq_command_find(argv[1], command));
    return vq_config_load(arena, *command, argc - 2, argv + 2, config);
}

static vq_status run_command(vq_arena *arena, vq_comm *comm, int argc, const char *const *argv)
{
    vq_command command;
    vq_config config;
    vq_comm_at(comm, "the command line");
    VQ_TRY(vq_comm_agree(comm, read_command(arena, argc, argv, &command, &config)));
    if (config.help) {
        if (comm->rank == 0) vq_config_print_help(stdout, command);
        return VQ_OK;
    }
    comm->limit_s = config.comm.limit_s;
    vq_log_init(config.quiet     ? VQ_LOG_WARN
                : config.verbose ? VQ_LOG_DEBUG
                                 : VQ_LOG_INFO,
                comm->rank);
    for (int i = 0; i < VQ_COUNT(commands); i++)
        if (commands[i].command == command) return commands[i].run(&config, comm, argc, argv);
    return VQ_OK;
}

/* libgomp reads before main() how long a thread spins where it waits. Its default is long, which
 * is ruinous when cores are shared (ranks or jobs side by side: 7 times slower was seen), so the
 * program starts itself once more with a short spin, unless the user has chosen. */
static void choose_waiting(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    char self[PATH_MAX];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0 || setenv("GOMP_SPINCOUNT", "3000", 1) != 0) return;
    self[n] = '\0';
    execv(self, argv); /* by its name, which is what ps and top show */
}

/* Results that were not written are no success: a full disk, a closed pipe. */
static vq_status flush_output(void)
{
    errno = EIO; /* of a write that failed before this one */
    VQ_CHECK(fflush(stdout) == 0 && !ferror(stdout), VQ_EMEM,
             "stdout: the results could not be written: %s. Expected room for them: check where "
             "the output goes",
             strerror(errno));
    return VQ_OK;
}

int main(int argc, char **argv)
{
    static char help[] = "--help";
    choose_waiting(argv);
    const char *first = argc > 1 ? argv[1] : "";
    const bool asks = !strcmp(first, "--help") || !strcmp(first, "-h") || !strcmp(first, "help");
    if (asks && argc == 3) { /* "vqround help quantize" */
        argv[1] = argv[2];
        argv[2] = help;
    } else if (argc < 2 || asks) {
        vq_config_print_help(argc < 2 ? stderr : stdout, 0);
        return argc < 2 ? VQ_EUSAGE : VQ_OK;
    }
    if (!strcmp(first, "--version")) {
        puts("vqround " VQ_VERSION);
        return VQ_OK;
    }
    vq_arena arena = {0};
    vq_comm comm;
    vq_status status = vq_comm_open(&comm);
    if (!status) {
        status = vq_arena_init(&arena, "config", (size_t)64 << 20);
        if (!status) status = run_command(&arena, &comm, argc, (const char *const *)argv);
        if (!status) status = flush_output();
        /* A world that has lost a rank cannot be left in order. */
        if (status == VQ_EPEER) vq_comm_die(&comm, status);
    }
    vq_comm_report(&comm, status);
    vq_arena_close(&arena);
    vq_comm_close(&comm);
    return (int)status;
}
