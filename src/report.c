/* report - results.json, the closing table, and a page with the curves. */
#include "report.h"

#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "fileio.h"
#include "log.h"

/* The rows of the table, in its order. */
typedef struct row {
    const char *label;
    double perplexity;
} row;

#define N_ROWS 7

static void rows_of(const vq_results *r, row rows[N_ROWS])
{
    const row all[N_ROWS] = {{"full precision", r->perplexity.fp},
                             {"RTN", r->perplexity.rtn},
                             {"GPTQ", r->perplexity.gptq},
                             {"codebook, step 0, soft", r->perplexity.start_soft},
                             {"codebook, step 0, hard", r->perplexity.start_hard},
                             {"VQRound, soft", r->perplexity.soft},
                             {"VQRound, hard", r->perplexity.hard}};
    memcpy(rows, all, sizeof all);
}

/* The largest rank's. */
static double peak_memory(const vq_results *r)
{
    double peak = 0;
    for (int i = 0; i < r->n_ranks; i++) peak = VQ_MAX(peak, r->peak_rss_bytes[i]);
    return peak;
}

static json_t *or_null(double x)
{
    return x > 0 ? json_real(x) : json_null();
}

static const char *key_text(uint64_t key, char text[24])
{
    snprintf(text, 24, "%016" PRIx64, key);
    return text;
}

static json_t *results_json(const vq_results *r)
{
    char key[24];
    json_t *root = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I}", "version", VQ_VERSION,
                             "key", key_text(r->key, key), "model", r->model, "method", r->method,
                             "bits", (json_int_t)r->bits, "group_size", (json_int_t)r->group_size,
                             "K", (json_int_t)r->K, "D", (json_int_t)r->D);
    json_object_set_new(
        root, "perplexity",
        json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "fp", or_null(r->perplexity.fp), "rtn",
                  or_null(r->perplexity.rtn), "gptq", or_null(r->perplexity.gptq), "start_soft",
                  or_null(r->perplexity.start_soft), "start_hard",
                  or_null(r->perplexity.start_hard), "soft", or_null(r->perplexity.soft), "hard",
                  or_null(r->perplexity.hard)));
    json_object_set_new(
        root, "seconds",
        json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "tokens", r->seconds.tokens, "init",
                  r->seconds.init, "teacher", r->seconds.teacher, "train", r->seconds.train, "eval",
                  r->seconds.eval, "export", r->seconds.export, "total", r->seconds.total));
    json_t *ranks = json_array();
    for (int i = 0; i < r->n_ranks; i++)
        json_array_append_new(ranks, json_integer((json_int_t)r->peak_rss_bytes[i]));
    json_object_set_new(root, "peak_rss_bytes", ranks);
    json_object_set_new(root, "steps", json_integer((json_int_t)r->steps));
    json_object_set_new(root, "seconds_per_step", json_real(r->seconds_per_step));
    json_object_set_new(root, "trained_parameters",
                        json_integer((json_int_t)r->trained_parameters));
    json_object_set_new(root, "quantized_weights", json_integer((json_int_t)r->quantized_weights));
    json_object_set_new(
        root, "model_bytes",
        json_pack("{s:f, s:f}", "before", r->bytes_before, "after", r->bytes_after));
    json_object_set_new(root, "machine",
                        json_pack("{s:s, s:i, s:i, s:i, s:i, s:s}", "device", "cpu", "ranks",
                                  r->n_ranks, "stages", r->n_stages, "replicas", r->n_replicas,
                                  "threads", r->threads, "compiler", __VERSION__));
    return root;
}

vq_status vq_results_write(const vq_results *r, const char *path)
{
    json_t *root = results_json(r);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    VQ_ASSERT(text);
    vq_status status = vq_file_write(path, text, strlen(text));
    free(text);
    return status;
}

static double number(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

bool vq_results_read(vq_arena *arena, const char *path, vq_results *r)
{
    char key[24];
    json_t *root = json_load_file(path, 0, NULL);
    const char *found = json_string_value(json_object_get(root, "key"));
    const json_t *perplexity = json_object_get(root, "perplexity");
    const json_t *seconds = json_object_get(root, "seconds");
    const json_t *bytes = json_object_get(root, "model_bytes");
    const json_t *ranks = json_object_get(root, "peak_rss_bytes");
    const int n = (int)json_array_size(ranks);
    const bool same = found && !strcmp(found, key_text(r->key, key)) &&
                      VQ_NEW(arena, n, &r->peak_rss_bytes) == VQ_OK;
    if (same) {
        r->perplexity.fp = number(perplexity, "fp");
        r->perplexity.rtn = number(perplexity, "rtn");
        r->perplexity.gptq = number(perplexity, "gptq");
        r->perplexity.start_soft = number(perplexity, "start_soft");
        r->perplexity.start_hard = number(perplexity, "start_hard");
        r->perplexity.soft = number(perplexity, "soft");
        r->perplexity.hard = number(perplexity, "hard");
        r->seconds.train = number(seconds, "train");
        r->seconds.total = number(seconds, "total");
        r->steps = (int64_t)number(root, "steps");
        r->trained_parameters = (int64_t)number(root, "trained_parameters");
        r->bytes_before = number(bytes, "before");
        r->bytes_after = number(bytes, "after");
        for (int i = 0; i < n; i++)
            r->peak_rss_bytes[i] = json_number_value(json_array_get(ranks, (size_t)i));
        r->n_ranks = n;
    }
    json_decref(root);
    return same;
}

vq_status vq_results_print_json(const char *path)
{
    json_t *root = json_load_file(path, 0, NULL);
    VQ_CHECK(root, VQ_EFILE, "%s: not JSON: expected the results of a run. Delete it and run again",
             path);
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    VQ_ASSERT(text);
    puts(text);
    free(text);
    return VQ_OK;
}

void vq_results_print(const vq_results *r)
{
    row rows[N_ROWS];
    char a[32], b[32];
    rows_of(r, rows);
    printf("\n%s, %lld bits, %s", r->model, (long long)r->bits, r->method);
    if (r->trained_parameters)
        printf(", K %lld, D %lld, %lld steps", (long long)r->K, (long long)r->D,
               (long long)r->steps);
    printf("\n\n  %-24s %12s\n", "", "perplexity");
    for (int i = 0; i < N_ROWS; i++)
        if (rows[i].perplexity > 0) printf("  %-24s %12.2f\n", rows[i].label, rows[i].perplexity);
    printf("\n  %-24s %12s -> %s packed\n", "size of the weights",
           vq_bytes_text(r->bytes_before, a), vq_bytes_text(r->bytes_after, b));
    printf("  %-24s %12s (training %s)\n", "time", vq_duration_text(r->seconds.total, a),
           vq_duration_text(r->seconds.train, b));
    printf("  %-24s %12s\n", "peak memory", vq_bytes_text(peak_memory(r), a));
    printf("  %-24s %s/model\n  %-24s %s/report.html\n\n", "model", r->out, "report", r->out);
    fflush(stdout);
}

/* --- report.html ----------------------------------------------------------------------------- */

/* The curves of metrics.jsonl as columns for gnuplot: step task reg beta. */
static vq_status write_columns(const char *metrics, FILE *to)
{
    json_t *line;
    FILE *from = fopen(metrics, "r");
    if (!from) return vq_file_error(metrics, "read");
    while ((line = json_loadf(from, JSON_DISABLE_EOF_CHECK, NULL))) {
        fprintf(to, "%g %g %g %g\n", json_number_value(json_object_get(line, "step")),
                json_number_value(json_object_get(line, "task")),
                json_number_value(json_object_get(line, "reg")),
                json_number_value(json_object_get(line, "beta")));
        json_decref(line);
    }
    fclose(from);
    fputs("e\n", to);
    return VQ_OK;
}

/* Draws one column of the metrics against the step into svg. False without gnuplot. */
static bool draw(const char *metrics, const char *svg, const char *title, int column)
{
    /* Where gnuplot is missing the shell ends at once: writing to it must not end us too. */
    const struct sigaction ignore = {.sa_handler = SIG_IGN};
    struct sigaction before;
    char command[] = "gnuplot 2>/dev/null";
    FILE *plot = popen(command, "w");
    if (!plot) return false;
    sigaction(SIGPIPE, &ignore, &before);
    fprintf(plot,
            "set terminal svg size 640,300 dynamic font 'sans-serif,12' background '#ffffff'\n"
            "set output '%s'\nset key off\nset grid lc rgb '#dddddd'\nset xlabel 'step'\n"
            "set ylabel '%s'\nplot '-' using 1:%d with lines lw 1.5 lc rgb '#1f6fb4'\n",
            svg, title, column);
    bool ok = write_columns(metrics, plot) == VQ_OK;
    ok = pclose(plot) == 0 && ok && vq_file_exists(svg);
    sigaction(SIGPIPE, &before, NULL);
    return ok;
}

static vq_status add_curves(vq_arena *arena, vq_writer *w, const char *run_dir)
{
    static const char *const titles[] = {"task loss", "regularizer", "beta"};
    char *metrics, *svg, *text;
    size_t n;
    VQ_TRY(vq_path_join(arena, run_dir, "metrics.jsonl", &metrics));
    VQ_TRY(vq_path_join(arena, run_dir, "curve.svg", &svg));
    if (!vq_file_exists(metrics)) return VQ_OK;
    for (int i = 0; i < VQ_COUNT(titles); i++) {
        if (!draw(metrics, svg, titles[i], i + 2))
            return vq_writer_printf(w, "<p>No curves: gnuplot was not found.</p>\n");
        VQ_TRY(vq_file_read(arena, svg, &text, &n));
        unlink(svg);
        const char *body = strstr(text, "<svg");
        VQ_TRY(vq_writer_printf(w, "<figure><figcaption>%s</figcaption>%s</figure>\n", titles[i],
                                body ? body : ""));
    }
    return VQ_OK;
}

static vq_status write_page(vq_arena *arena, vq_writer *w, const vq_results *r, const char *run_dir)
{
    row rows[N_ROWS];
    char a[32];
    rows_of(r, rows);
    VQ_TRY(vq_writer_printf(
        w,
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
        "<title>vqround: %s</title>\n<style>:root{color-scheme:light dark}"
        "body{font:16px/1.5 sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td{padding:.2rem 1rem .2rem 0;border-bottom:1px solid "
        "#8886}"
        "td+td{text-align:right;font-variant-numeric:tabular-nums}figure{margin:1.5rem 0}"
        "svg{max-width:100%%;height:auto}</style>\n<h1>%s</h1>\n<p>%s, %lld bits",
        r->out, r->out, r->model, (long long)r->bits));
    if (r->trained_parameters)
        VQ_TRY(vq_writer_printf(w, ", K %lld, D %lld, %lld steps, %lld trained parameters",
                                (long long)r->K, (long long)r->D, (long long)r->steps,
                                (long long)r->trained_parameters));
    VQ_TRY(vq_writer_printf(w, "</p>\n<table>\n<tr><td></td><td>perplexity</td></tr>\n"));
    for (int i = 0; i < N_ROWS; i++)
        if (rows[i].perplexity > 0)
            VQ_TRY(vq_writer_printf(w, "<tr><td>%s</td><td>%.2f</td></tr>\n", rows[i].label,
                                    rows[i].perplexity));
    VQ_TRY(vq_writer_printf(w, "</table>\n<table>\n<tr><td>weights before</td><td>%s</td></tr>\n",
                            vq_bytes_text(r->bytes_before, a)));
    VQ_TRY(vq_writer_printf(w, "<tr><td>weights after, packed</td><td>%s</td></tr>\n",
                            vq_bytes_text(r->bytes_after, a)));
    VQ_TRY(vq_writer_printf(w, "<tr><td>time</td><td>%s</td></tr>\n",
                            vq_duration_text(r->seconds.total, a)));
    VQ_TRY(vq_writer_printf(w, "<tr><td>peak memory</td><td>%s</td></tr>\n</table>\n",
                            vq_bytes_text(peak_memory(r), a)));
    VQ_TRY(add_curves(arena, w, run_dir));
    return vq_writer_printf(w, "</html>\n");
}

vq_status vq_report_write(const vq_results *r, const char *run_dir)
{
    vq_arena arena = {0};
    vq_writer w;
    char *path;
    VQ_TRY(vq_arena_init(&arena, "report", (size_t)256 << 20));
    vq_status status = vq_path_join(&arena, run_dir, "report.html", &path);
    if (!status) status = vq_writer_open(path, &w);
    if (!status) {
        status = write_page(&arena, &w, r, run_dir);
        if (status)
            vq_writer_abandon(&w);
        else
            status = vq_writer_finish(&w);
    }
    vq_arena_close(&arena);
    return status;
}
