/* report - results.json, the closing table, and a page with the curves. */
#include "report.h"

#include <jansson.h>
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

#define N_ROWS 6

static void rows_of(const vq_results *r, row rows[N_ROWS])
{
    const row all[N_ROWS] = {{"full precision", r->perplexity.fp},
                             {"RTN", r->perplexity.rtn},
                             {"codebook, step 0, soft", r->perplexity.start_soft},
                             {"codebook, step 0, hard", r->perplexity.start_hard},
                             {"VQRound, soft", r->perplexity.soft},
                             {"VQRound, hard", r->perplexity.hard}};
    memcpy(rows, all, sizeof all);
}

static json_t *or_null(double x)
{
    return x > 0 ? json_real(x) : json_null();
}

vq_status vq_results_write(const vq_results *r, const char *path)
{
    json_t *root = json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I, s:I,"
        " s:{s:o, s:o, s:o, s:o, s:o, s:o},"
        " s:{s:f, s:f, s:f, s:f, s:f, s:f, s:f},"
        " s:[I], s:I, s:f, s:I, s:I, s:{s:f, s:f}, s:{s:s, s:i, s:s}}",
        "version", VQ_VERSION, "model", r->model, "method", r->method, "bits", (json_int_t)r->bits,
        "group_size", (json_int_t)r->group_size, "K", (json_int_t)r->K, "D", (json_int_t)r->D,
        "perplexity", "fp", or_null(r->perplexity.fp), "rtn", or_null(r->perplexity.rtn),
        "start_soft", or_null(r->perplexity.start_soft), "start_hard",
        or_null(r->perplexity.start_hard), "soft", or_null(r->perplexity.soft), "hard",
        or_null(r->perplexity.hard), "seconds", "tokens", r->seconds.tokens, "init",
        r->seconds.init, "teacher", r->seconds.teacher, "train", r->seconds.train, "eval",
        r->seconds.eval, "export", r->seconds.export, "total", r->seconds.total, "peak_rss_bytes",
        (json_int_t)r->peak_rss_bytes, "steps", (json_int_t)r->steps, "seconds_per_step",
        r->seconds_per_step, "trained_parameters", (json_int_t)r->trained_parameters,
        "quantized_weights", (json_int_t)r->quantized_weights, "model_bytes", "before",
        r->bytes_before, "after", r->bytes_after, "machine", "device", "cpu", "threads", r->threads,
        "compiler", __VERSION__);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    VQ_ASSERT(text);
    vq_status status = vq_file_write(path, text, strlen(text));
    free(text);
    return status;
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
        if (rows[i].perplexity > 0) printf("  %-24s %12.4g\n", rows[i].label, rows[i].perplexity);
    printf("\n  %-24s %12s -> %s packed\n", "size of the weights",
           vq_bytes_text(r->bytes_before, a), vq_bytes_text(r->bytes_after, b));
    printf("  %-24s %12s (training %s)\n", "time", vq_duration_text(r->seconds.total, a),
           vq_duration_text(r->seconds.train, b));
    printf("  %-24s %12s\n", "peak memory", vq_bytes_text((double)r->peak_rss_bytes, a));
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
    char command[] = "gnuplot 2>/dev/null";
    FILE *plot = popen(command, "w");
    if (!plot) return false;
    fprintf(plot,
            "set terminal svg size 640,300 dynamic font 'sans-serif,12' background '#ffffff'\n"
            "set output '%s'\nset key off\nset grid lc rgb '#dddddd'\nset xlabel 'step'\n"
            "set ylabel '%s'\nplot '-' using 1:%d with lines lw 1.5 lc rgb '#1f6fb4'\n",
            svg, title, column);
    bool ok = write_columns(metrics, plot) == VQ_OK;
    return pclose(plot) == 0 && ok && vq_file_exists(svg);
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
            VQ_TRY(vq_writer_printf(w, "<tr><td>%s</td><td>%.4g</td></tr>\n", rows[i].label,
                                    rows[i].perplexity));
    VQ_TRY(vq_writer_printf(w, "</table>\n<table>\n<tr><td>weights before</td><td>%s</td></tr>\n",
                            vq_bytes_text(r->bytes_before, a)));
    VQ_TRY(vq_writer_printf(w, "<tr><td>weights after, packed</td><td>%s</td></tr>\n",
                            vq_bytes_text(r->bytes_after, a)));
    VQ_TRY(vq_writer_printf(w, "<tr><td>time</td><td>%s</td></tr>\n",
                            vq_duration_text(r->seconds.total, a)));
    VQ_TRY(vq_writer_printf(w, "<tr><td>peak memory</td><td>%s</td></tr>\n</table>\n",
                            vq_bytes_text((double)r->peak_rss_bytes, a)));
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
