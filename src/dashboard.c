/* dashboard - from the runs to the page. */
#include "dashboard.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "figures.h"
#include "fileio.h"
#include "log.h"

#define MAX_LEGEND 24
#define MAX_COLUMNS 64

typedef struct page {
    vq_arena *arena;
    FILE *to;
    const char *top; /* where the page lies, if the runs' names begin there; or NULL */
    vq_run_info *runs;
    int64_t n;
    const char **label; /* [n] short names for figures */
    vq_figure figures[VQ_FIGURES];
    int n_figures;
    const char *why; /* there are no figures; or NULL */
} page;

/* --- text ------------------------------------------------------------------------------------ */

static void put_text(FILE *to, const char *text)
{
    for (; *text; text++) switch (*text) {
        case '&': fputs("&amp;", to); break;
        case '<': fputs("&lt;", to); break;
        case '>': fputs("&gt;", to); break;
        case '"': fputs("&quot;", to); break;
        case '\'': fputs("&#39;", to); break;
        default: fputc(*text, to);
        }
}

static void put_url(FILE *to, const char *path)
{
    for (; *path; path++) {
        const char c = *path;
        const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                           (c >= '0' && c <= '9') || strchr("/-._~", c);
        plain ? (void)fputc(c, to) : (void)fprintf(to, "%%%02X", (unsigned)(unsigned char)c);
    }
}

static void put_csv(FILE *to, const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, to);
        return;
    }
    fputc('"', to);
    for (; *text; text++) {
        if (*text == '"') fputc('"', to);
        fputc(*text, to);
    }
    fputc('"', to);
}

static const char *last_part(const char *path)
{
    const char *end = path + strlen(path), *p;
    while (end > path && end[-1] == '/') end--;
    for (p = end; p > path && p[-1] != '/';) p--;
    return *p ? p : path;
}

/* --- settings -------------------------------------------------------------------------------- */

/* Keys that say where and how a run works, not what comes out. */
static bool is_setting(const char *key)
{
    static const char *const others[] = {"out",         "config", "json",      "verbose",
                                         "quiet",       "resume", "max_hours", "comm.",
                                         "checkpoint.", "share.", "plan.",     "eval.run"};
    for (int i = 0; i < VQ_COUNT(others); i++) {
        const size_t n = strlen(others[i]);
        if (!strncmp(key, others[i], n) && (others[i][n - 1] == '.' || !key[n])) return false;
    }
    return true;
}

/* Those that a table of runs has in any case. */
static bool is_main_setting(const char *key)
{
    static const char *const names[] = {"model", "method", "bits", "group_size",  "init",
                                        "D",     "K",      "seed", "train.steps", "train.lr"};
    for (int i = 0; i < VQ_COUNT(names); i++)
        if (!strcmp(key, names[i])) return true;
    return false;
}

static bool uses(const vq_run_info *run, int key)
{
    return run->has_config ? vq_config_uses(&run->config, key) : run->has_results;
}

/* From config.yaml; where that cannot be read, what the results say; "" where it means nothing. */
static const char *setting(const vq_run_info *run, int key, char text[512])
{
    char name[64];
    text[0] = '\0';
    if (!uses(run, key)) return text;
    if (run->has_config) return vq_config_value(&run->config, key, text, 512);
    for (int i = 0; run->has_results && vq_results_field(i, name); i++)
        if (!strcmp(name, vq_config_key(key))) vq_results_value(&run->results, i, text);
    return text;
}

static bool differs(const page *p, int key)
{
    char first[512] = "", text[512];
    bool has_first = false;
    for (int64_t i = 0; i < p->n; i++) {
        if (!uses(&p->runs[i], key)) continue;
        if (has_first && strcmp(setting(&p->runs[i], key, text), first) != 0) return true;
        if (!has_first) setting(&p->runs[i], key, first);
        has_first = true;
    }
    return false;
}

/* --- report.csv ------------------------------------------------------------------------------ */

static bool is_csv_setting(const page *p, int key)
{
    const char *name = vq_config_key(key);
    return is_setting(name) && (is_main_setting(name) || differs(p, key));
}

/* A field of the results that is no setting. */
static bool is_csv_result(const char *name)
{
    static const char *const settings[] = {"model", "method", "bits", "group_size", "K", "D"};
    for (int i = 0; i < VQ_COUNT(settings); i++)
        if (!strcmp(name, settings[i])) return false;
    return true;
}

static void write_csv(const page *p)
{
    char name[64], text[512], value[64];
    fputs("run,state,code,message", p->to);
    for (int k = 0; vq_config_key(k); k++)
        if (is_csv_setting(p, k)) fprintf(p->to, ",%s", vq_config_key(k));
    for (int f = 0; vq_results_field(f, name); f++)
        if (is_csv_result(name)) fprintf(p->to, ",%s", name);
    fputs(",peak_rss_bytes\r\n", p->to);
    for (int64_t i = 0; i < p->n; i++) {
        const vq_run_info *r = &p->runs[i];
        put_csv(p->to, r->name);
        fprintf(p->to, ",%s,%d,", vq_run_state_name(r->state), r->code);
        put_csv(p->to, r->message);
        for (int k = 0; vq_config_key(k); k++) {
            if (!is_csv_setting(p, k)) continue;
            fputc(',', p->to);
            put_csv(p->to, setting(r, k, text));
        }
        for (int f = 0; vq_results_field(f, name); f++) {
            if (!is_csv_result(name)) continue;
            fputc(',', p->to);
            if (r->has_results) put_csv(p->to, vq_results_value(&r->results, f, value));
        }
        fputc(',', p->to);
        if (r->has_results) fprintf(p->to, "%.0f", vq_results_peak_bytes(&r->results));
        fputs("\r\n", p->to);
    }
}

/* --- figures --------------------------------------------------------------------------------- */

static void put_key(const page *p, int colour, bool is_bar)
{
    if (is_bar)
        fprintf(p->to, "<i class=\"key bar\" style=\"background:%s\"></i>", vq_plot_colour(colour));
    else
        fprintf(p->to, "<i class=\"key\" style=\"border-color:%s;border-top-style:%s\"></i>",
                vq_plot_colour(colour), vq_plot_dash(colour));
}

static void put_legend(const page *p, const vq_series *series, int n, bool is_bar)
{
    fputs("<ul class=\"legend\">", p->to);
    for (int s = 0; s < n; s++) {
        fputs("<li>", p->to);
        put_key(p, series[s].colour, is_bar);
        put_text(p->to, series[s].label);
        fputs("</li>", p->to);
    }
    fputs("</ul>", p->to);
}

/* The runs, for all figures in which they are lines. */
static void put_runs_legend(const page *p)
{
    bool is_used = false;
    for (int i = 0; i < p->n_figures; i++) is_used |= p->figures[i].of_runs;
    if (!is_used) return;
    if (p->n > MAX_LEGEND) {
        fputs("<p class=\"legend\">Runs have the colours that they have in the table.</p>\n",
              p->to);
        return;
    }
    vq_series runs[MAX_LEGEND];
    int n = 0;
    for (int64_t i = 0; i < p->n; i++)
        if (p->runs[i].curves.n > 0 || p->runs[i].n_linears > 0)
            runs[n++] = (vq_series){.label = p->label[i], .colour = vq_figures_colour(i)};
    put_legend(p, runs, n, false);
}

static void put_figure(const page *p, const vq_figure *f)
{
    fputs("<figure><figcaption>", p->to);
    put_text(p->to, f->title);
    fprintf(p->to, "</figcaption>\n%s\n", f->svg);
    if (f->n_series > 1 && !f->of_runs) put_legend(p, f->series, f->n_series, f->bars != NULL);
    if (f->bars && f->n_bars == VQ_FIGURE_BARS)
        fprintf(p->to, "<p class=\"legend\">At most %d are shown.</p>", VQ_FIGURE_BARS);
    fputs("</figure>\n", p->to);
}

static void put_figures(const page *p)
{
    if (p->n_figures == 0) return;
    fputs("<h2>Figures</h2>\n", p->to);
    if (p->why) {
        fputs("<p class=\"note\">No figures: ", p->to);
        put_text(p->to, p->why);
        fputs(".</p>\n", p->to);
        return;
    }
    put_runs_legend(p);
    fputs("<div class=\"figures\">\n", p->to);
    for (int i = 0; i < p->n_figures; i++) put_figure(p, &p->figures[i]);
    fputs("</div>\n", p->to);
}

/* --- the table of runs ------------------------------------------------------------------------ */

static void head_cell(const page *p, const char *name, const char *unit_name, bool is_number)
{
    fprintf(p->to, "<th%s>", is_number ? " class=\"n\"" : "");
    put_text(p->to, name);
    if (*unit_name) fprintf(p->to, " <small>%s</small>", unit_name);
    fputs("</th>", p->to);
}

/* A column of numbers. */
typedef struct column {
    const char *name, *unit;
    vq_run_value_kind of;
    double size; /* of the unit */
    int decimals;
    bool only_if_many; /* and not where all are 1 */
} column;

static void put_number(const page *p, const column *c, const vq_run_info *r)
{
    const double x = vq_run_value(r, c->of);
    if (isfinite(x))
        fprintf(p->to, "<td class=\"n\" data-v=\"%.9g\">%.*f</td>", x, c->decimals, x / c->size);
    else
        fputs("<td class=\"n\"></td>", p->to);
}

static bool is_number(const char *text)
{
    return *text && strspn(text, "+-0123456789.e") == strlen(text);
}

/* Of a setting: a number, a word, or a path, of which the end tells. */
static void put_setting(const page *p, int key, const vq_run_info *r)
{
    char text[512];
    setting(r, key, text);
    const bool number = is_number(text);
    fprintf(p->to, number ? "<td class=\"n\" data-v=\"%s\">" : "<td>", text);
    put_text(p->to, strchr(text, '/') ? last_part(text) : text);
    fputs("</td>", p->to);
}

static bool is_number_key(const page *p, int key)
{
    char text[512];
    for (int64_t i = 0; i < p->n; i++)
        if (*setting(&p->runs[i], key, text)) return is_number(text);
    return false;
}

/* The run's own page, if it lies below this one. */
static void put_name(const page *p, int64_t i)
{
    const vq_run_info *r = &p->runs[i];
    char *path;
    const bool linked = p->top && vq_path_join(p->arena, r->dir, "report.html", &path) == VQ_OK &&
                        vq_file_exists(path);
    fputs("<th scope=\"row\">", p->to);
    put_key(p, vq_figures_colour(i), false);
    if (linked) {
        fputs("<a href=\"", p->to);
        put_url(p->to, r->name);
        fputs("/report.html\">", p->to);
    }
    put_text(p->to, r->name);
    fprintf(p->to, "%s</th>", linked ? "</a>" : "");
}

static int columns_of(const page *p, column columns[MAX_COLUMNS])
{
    const vq_unit time = vq_unit_of_time(vq_runs_largest(p->runs, p->n, VQ_VALUE_SECONDS)),
                  step = vq_unit_of_time(vq_runs_largest(p->runs, p->n, VQ_VALUE_STEP_SECONDS)),
                  peak = vq_unit_of_bytes(vq_runs_largest(p->runs, p->n, VQ_VALUE_PEAK_BYTES)),
                  gpu = vq_unit_of_bytes(vq_runs_largest(p->runs, p->n, VQ_VALUE_GPU_BYTES)),
                  packed = vq_unit_of_bytes(vq_runs_largest(p->runs, p->n, VQ_VALUE_PACKED_BYTES));
    const column all[] = {
        {"Full precision", "perplexity", VQ_VALUE_FP, 1, 2, false},
        {"RTN", "perplexity", VQ_VALUE_RTN, 1, 2, false},
        {"GPTQ", "perplexity", VQ_VALUE_GPTQ, 1, 2, false},
        {"Soft", "perplexity", VQ_VALUE_SOFT, 1, 2, false},
        {"Hard", "perplexity", VQ_VALUE_HARD, 1, 2, false},
        {"Steps", "", VQ_VALUE_STEPS, 1, 0, false},
        {"Trained", "parameters", VQ_VALUE_TRAINED, 1, 0, false},
        {"Packed", packed.name, VQ_VALUE_PACKED_BYTES, packed.size, 1, false},
        {"Time", time.name, VQ_VALUE_SECONDS, time.size, 1, false},
        {"Step time", step.name, VQ_VALUE_STEP_SECONDS, step.size, 1, false},
        {"Peak memory", peak.name, VQ_VALUE_PEAK_BYTES, peak.size, 1, false},
        {"GPU memory", gpu.name, VQ_VALUE_GPU_BYTES, gpu.size, 1, false},
        {"Ranks", "", VQ_VALUE_RANKS, 1, 0, true},
    };
    int n = 0;
    for (int i = 0; i < VQ_COUNT(all); i++)
        if (vq_runs_largest(p->runs, p->n, all[i].of) > (all[i].only_if_many ? 1 : 0))
            columns[n++] = all[i];
    return n;
}

/* How many columns stand before the settings: many settings would put them out of sight. */
static int perplexities_of(const column *columns, int n)
{
    int n_first = 0;
    while (n_first < n && !strcmp(columns[n_first].unit, "perplexity")) n_first++;
    return n_first;
}

static bool all_done(const page *p)
{
    for (int64_t i = 0; i < p->n; i++)
        if (p->runs[i].state != VQ_RUN_DONE) return false;
    return true;
}

static void put_row(const page *p, int64_t i, const column *columns, int n_columns)
{
    const vq_run_info *r = &p->runs[i];
    const char *state = vq_run_state_name(r->state);
    fputs("<tr>", p->to);
    put_name(p, i);
    if (!all_done(p)) fprintf(p->to, "<td><span class=\"%s\">%s</span></td>", state, state);
    const int n_first = perplexities_of(columns, n_columns);
    for (int c = 0; c < n_first; c++) put_number(p, &columns[c], r);
    for (int k = 0; vq_config_key(k); k++)
        if (is_setting(vq_config_key(k)) && differs(p, k)) put_setting(p, k, r);
    for (int c = n_first; c < n_columns; c++) put_number(p, &columns[c], r);
    fputs("</tr>\n", p->to);
}

static void put_table(const page *p)
{
    column columns[MAX_COLUMNS];
    const int n_columns = columns_of(p, columns);
    fputs("<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Results\">"
          "<table class=\"runs\">\n<thead><tr>",
          p->to);
    head_cell(p, "Run", "", false);
    if (!all_done(p)) head_cell(p, "State", "", false);
    const int n_first = perplexities_of(columns, n_columns);
    for (int c = 0; c < n_first; c++) head_cell(p, columns[c].name, columns[c].unit, true);
    for (int k = 0; vq_config_key(k); k++)
        if (is_setting(vq_config_key(k)) && differs(p, k))
            head_cell(p, vq_config_key(k), "", is_number_key(p, k));
    for (int c = n_first; c < n_columns; c++) head_cell(p, columns[c].name, columns[c].unit, true);
    fputs("</tr></thead>\n<tbody>\n", p->to);
    for (int64_t i = 0; i < p->n; i++) put_row(p, i, columns, n_columns);
    fputs("</tbody>\n</table></div>\n", p->to);
}

/* --- other parts of the page ------------------------------------------------------------------ */

/* Settings that are the same everywhere. */
static void put_common(const page *p)
{
    char text[512];
    int n = 0;
    for (int k = 0; vq_config_key(k); k++) {
        if (!is_main_setting(vq_config_key(k)) || differs(p, k)) continue;
        const vq_run_info *first = NULL;
        for (int64_t i = p->n; i-- > 0;)
            if (uses(&p->runs[i], k)) first = &p->runs[i];
        if (!first) continue;
        if (n++ == 0) fprintf(p->to, "<p class=\"common\">%s", p->n > 1 ? "The same in all: " : "");
        fputs(" <span>", p->to);
        put_text(p->to, vq_config_key(k));
        fputs("&nbsp;<b>", p->to);
        put_text(p->to, setting(first, k, text));
        fputs("</b></span>", p->to);
    }
    if (n > 0) fputs("</p>\n", p->to);
}

static void put_message(const page *p, const vq_run_info *r)
{
    fprintf(p->to, "<article class=\"message %s\"><h3>", vq_run_state_name(r->state));
    put_text(p->to, r->name);
    fprintf(p->to, " <span class=\"%s\">%s", vq_run_state_name(r->state),
            vq_run_state_name(r->state));
    if (r->state == VQ_RUN_FAILED) fprintf(p->to, ", code %d", r->code);
    fputs("</span></h3><p>", p->to);
    put_text(p->to, r->message);
    fputs("</p>", p->to);
    if (r->steps_done > 0 && r->has_config)
        fprintf(p->to, "<p>%lld of %lld steps are done.</p>", (long long)r->steps_done,
                (long long)r->config.train.steps);
    fputs("</article>\n", p->to);
}

static void put_messages(const page *p)
{
    if (all_done(p)) return;
    fputs("<h2>Not done</h2>\n<div class=\"messages\">\n", p->to);
    for (int64_t i = 0; i < p->n; i++)
        if (p->runs[i].state != VQ_RUN_DONE) put_message(p, &p->runs[i]);
    fputs("</div>\n", p->to);
}

static void put_tile(const page *p, const char *name, const char *value, const char *more)
{
    fprintf(p->to, "<div class=\"tile\"><h3>%s</h3><p>%s</p><small>", name, value);
    put_text(p->to, more);
    fputs("</small></div>\n", p->to);
}

static void put_tiles(const page *p, const vq_results *r)
{
    const double final = vq_results_final(r);
    char a[64], b[64], more[192];
    fputs("<div class=\"tiles\">\n", p->to);
    snprintf(a, sizeof a, "%.2f", final);
    snprintf(more, sizeof more, "RTN %.2f, full precision %.2f", r->perplexity.rtn,
             r->perplexity.fp);
    if (final > 0) put_tile(p, "Perplexity", a, more);
    snprintf(more, sizeof more, "packed at %lld bits; %s before", (long long)r->bits,
             vq_bytes_text(r->model_bytes.before, b));
    put_tile(p, "Size of the weights", vq_bytes_text(r->model_bytes.after, a), more);
    snprintf(more, sizeof more, "%lld training steps in %s", (long long)r->steps,
             vq_duration_text(r->seconds.train, b));
    put_tile(p, "Time", vq_duration_text(r->seconds.total, a), more);
    if (r->machine.ranks == 1)
        snprintf(more, sizeof more, "1 rank, threads: %lld", (long long)r->machine.threads);
    else
        snprintf(more, sizeof more, "the largest of %lld ranks", (long long)r->machine.ranks);
    put_tile(p, "Peak memory", vq_bytes_text(vq_results_peak_bytes(r), a), more);
    if (r->peak_gpu_bytes > 0)
        put_tile(p, "Peak memory of the GPU", vq_bytes_text(r->peak_gpu_bytes, a), more);
    fputs("</div>\n", p->to);
}

static void put_perplexities(const page *p, const vq_results *r)
{
    vq_results_row rows[VQ_RESULTS_ROWS];
    vq_results_rows(r, rows);
    if (!(vq_results_final(r) > 0)) return;
    fputs("<table>\n<thead><tr>", p->to);
    head_cell(p, "Model", "", false);
    head_cell(p, "Perplexity", "", true);
    fputs("</tr></thead>\n<tbody>\n", p->to);
    for (int i = 0; i < VQ_RESULTS_ROWS; i++)
        if (rows[i].perplexity > 0)
            fprintf(p->to, "<tr><th scope=\"row\">%s</th><td class=\"n\">%.2f</td></tr>\n",
                    rows[i].label, rows[i].perplexity);
    fputs("</tbody>\n</table>\n", p->to);
}

static void put_settings(const page *p, const vq_run_info *r)
{
    char text[512];
    if (!r->has_config) return;
    fputs("<details><summary>All settings</summary><dl>", p->to);
    for (int k = 0; vq_config_key(k); k++) {
        if (!*setting(r, k, text)) continue;
        fprintf(p->to, "<div><dt>%s</dt><dd>", vq_config_key(k));
        put_text(p->to, text);
        fputs("</dd></div>", p->to);
    }
    fputs("</dl></details>\n", p->to);
}

static const char style[] =
    ":root{color-scheme:light dark;--page:#fff;--ink:#1d2329;--soft:#5b6570;--line:#dfe3e8;"
    "--card:#f7f8fa;--link:#1f62ad;--done:#1a7f4b;--failed:#c02f2f;--stopped:#96640a}"
    "@media(prefers-color-scheme:dark){:root{--page:#14171b;--ink:#e4e8ec;--soft:#9ba5b0;"
    "--line:#2d343c;--card:#1b2026;--link:#7db4f0;--done:#52c48a;--failed:#f08080;"
    "--stopped:#dba843}}"
    "*{box-sizing:border-box}"
    "body{margin:0 auto;max-width:88rem;padding:1.5rem clamp(.9rem,2.5vw,2.5rem) 3rem;"
    "background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}"
    "h1{font-size:1.5rem;line-height:1.25;margin:0 0 .25rem;overflow-wrap:anywhere}"
    "h2{font-size:1.1rem;margin:2.2rem 0 .7rem}h3{font-size:.95rem;margin:0}"
    "p{margin:.4rem 0}a{color:var(--link)}small,.soft,.note,.common,.legend{color:var(--soft)}"
    ".common span{margin-right:.9rem;display:inline-block;overflow-wrap:anywhere}"
    ".common b{color:var(--ink);font-weight:600}"
    ".wide{overflow-x:auto;border:1px solid var(--line);border-radius:6px}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.88rem}"
    "th,td{padding:.38rem .6rem;text-align:left;white-space:nowrap;border-bottom:1px solid "
    "var(--line)}tbody tr:last-child>*{border-bottom:0}tbody th{font-weight:500}"
    "thead th{vertical-align:top;white-space:normal;font-weight:600;background:var(--card)}"
    "thead small{display:block;font-weight:400}.n{text-align:right}"
    ".runs{width:100%}.runs tbody tr:hover>*{background:var(--card)}"
    ".runs th:first-child{position:sticky;left:0;background:var(--page);max-width:48vw;"
    "overflow:hidden;text-overflow:ellipsis}.runs thead th:first-child{background:var(--card)}"
    "th button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer;"
    "text-align:inherit;text-decoration:underline dotted;text-underline-offset:.2em;"
    "text-decoration-color:var(--soft)}th button small{text-decoration:none}"
    "th[aria-sort=ascending] span::after{content:'\\a0\\2191'}"
    "th[aria-sort=descending] span::after{content:'\\a0\\2193'}"
    ".key{display:inline-block;width:1.15rem;height:0;border-top:3px solid;vertical-align:middle;"
    "margin-right:.45rem}"
    ".key.bar{border:0;width:.7rem;height:.7rem;border-radius:2px;vertical-align:-.05em}"
    ".figures{margin-top:1rem}"
    ".done{color:var(--done)}.failed{color:var(--failed)}.stopped,.unfinished{color:var(--stopped)}"
    ".messages{display:grid;gap:.7rem}"
    ".message{border:1px solid var(--line);border-left:4px solid;border-radius:4px;"
    "padding:.6rem .9rem;background:var(--card)}"
    ".message h3,.message p{color:var(--ink);overflow-wrap:anywhere}"
    ".message p{white-space:pre-wrap}.message span{font-weight:500;margin-left:.5rem}"
    ".figures{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,25rem),"
    "1fr));align-items:start;grid-auto-flow:dense}"
    "figure{margin:0;padding:.8rem .9rem;border:1px solid var(--line);border-radius:6px;"
    "min-width:0}figcaption{font-weight:600;font-size:.92rem;margin-bottom:.3rem}"
    ".legend{list-style:none;margin:.4rem 0 0;padding:0;display:flex;flex-wrap:wrap;"
    "gap:.1rem 1rem;font-size:.82rem}.legend li{overflow-wrap:anywhere;min-width:0}"
    ".tiles{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,11rem),"
    "1fr));margin:1.2rem 0}.tile{border:1px solid var(--line);border-radius:6px;padding:.7rem "
    ".9rem}.tile h3{font-weight:500;color:var(--soft);font-size:.85rem}"
    ".tile p{font-size:1.6rem;line-height:1.3;margin:.1rem 0;font-weight:600;"
    "font-variant-numeric:tabular-nums}"
    "details{margin-top:1.5rem}summary{cursor:pointer;font-weight:600}"
    "dl{columns:3 20rem;font-size:.85rem}dl div{display:flex;justify-content:space-between;"
    "gap:1rem;border-bottom:1px solid var(--line);break-inside:avoid}dt{color:var(--soft)}"
    "dd{margin:0;text-align:right;overflow-wrap:anywhere}";

/* A click on a heading sorts by that column, a second one the other way; empty cells stay last. */
static const char script[] =
    "for (const table of document.querySelectorAll('.runs')) {\n"
    "  const heads = [...table.tHead.rows[0].cells];\n"
    "  const value = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent;\n"
    "  heads.forEach((head, i) => {\n"
    "    const button = document.createElement('button');\n"
    "    const arrow = document.createElement('span');\n"
    "    button.append(head.firstChild, arrow);\n"
    "    button.append(...head.childNodes);\n"
    "    head.append(button);\n"
    "    button.onclick = () => {\n"
    "      const up = head.getAttribute('aria-sort') != 'ascending';\n"
    "      heads.forEach(h => h.removeAttribute('aria-sort'));\n"
    "      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');\n"
    "      const rows = [...table.tBodies[0].rows];\n"
    "      rows.sort((a, b) => {\n"
    "        const x = value(a, i), y = value(b, i);\n"
    "        if (x === '' || y === '') return (x === '') - (y === '');\n"
    "        const order = isNaN(x) || isNaN(y)\n"
    "          ? x.localeCompare(y, undefined, {numeric: true}) : x - y;\n"
    "        return up ? order : -order;\n"
    "      });\n"
    "      table.tBodies[0].append(...rows);\n"
    "    };\n"
    "  });\n"
    "}\n";

static void put_summary(const page *p, const vq_dashboard *d)
{
    fprintf(p->to, "<p class=\"soft\">%lld runs:", (long long)d->n_runs);
    for (int s = 0, n = 0; s <= VQ_RUN_UNFINISHED; s++) {
        const char *name = vq_run_state_name((vq_run_state)s);
        if (d->n_in_state[s] > 0)
            fprintf(p->to, "%s <span class=\"%s\">%lld %s</span>", n++ > 0 ? "," : "", name,
                    (long long)d->n_in_state[s], name);
    }
    fputs("</p>\n", p->to);
}

static void write_page(const page *p, const vq_dashboard *d, const char *title)
{
    const vq_run_info *one = p->n == 1 ? &p->runs[0] : NULL;
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
          "<meta name=\"generator\" content=\"vqround " VQ_VERSION "\">\n<title>",
          p->to);
    put_text(p->to, title);
    fprintf(p->to, " - vqround</title>\n<style>%s%s</style>\n</head>\n<body>\n<h1>", style,
            VQ_PLOT_CSS);
    put_text(p->to, title);
    fputs("</h1>\n", p->to);
    if (one) {
        put_common(p);
        put_messages(p);
        if (one->has_results) {
            put_tiles(p, &one->results);
            put_perplexities(p, &one->results);
        }
    } else {
        put_summary(p, d);
        put_common(p);
        put_table(p);
        put_messages(p);
    }
    put_figures(p);
    if (one) put_settings(p, one);
    fprintf(p->to, "<script>\n%s</script>\n</body>\n</html>\n", one ? "" : script);
}

/* --- as text ---------------------------------------------------------------------------------- */

static void print_perplexity(FILE *to, double x)
{
    x > 0 ? fprintf(to, " %9.2f", x) : fprintf(to, " %9s", "-");
}

/* The main numbers of each run. */
static void print_table(const page *p, FILE *to)
{
    size_t width = strlen("run");
    for (int64_t i = 0; i < p->n; i++) width = VQ_MAX(width, strlen(p->runs[i].name));
    fprintf(to, "%-*s  %-10s %-8s %4s %9s %9s %9s %8s %9s\n", (int)width, "run", "state", "method",
            "bits", "full", "RTN", "quantized", "above", "time");
    for (int64_t i = 0; i < p->n; i++) {
        const vq_run_info *run = &p->runs[i];
        const vq_results *r = &run->results;
        char text[32];
        fprintf(to, "%-*s  %-10s %-8s", (int)width, run->name, vq_run_state_name(run->state),
                r->method ? r->method : "-");
        r->bits > 0 ? fprintf(to, " %4lld", (long long)r->bits) : fprintf(to, " %4s", "-");
        print_perplexity(to, vq_run_value(run, VQ_VALUE_FP));
        print_perplexity(to, vq_run_value(run, VQ_VALUE_RTN));
        print_perplexity(to, vq_run_value(run, VQ_VALUE_FINAL));
        const double fp = vq_run_value(run, VQ_VALUE_FP), x = vq_run_value(run, VQ_VALUE_FINAL),
                     seconds = vq_run_value(run, VQ_VALUE_SECONDS);
        snprintf(text, sizeof text, "%+.1f %%", 100 * (x / fp - 1));
        fprintf(to, " %8s", isnan(x / fp) ? "-" : text);
        fprintf(to, " %9s\n", seconds > 0 ? vq_duration_text(seconds, text) : "-");
    }
    fputs("\n", to);
}

/* --- all of it -------------------------------------------------------------------------------- */

static bool is_separator(char c)
{
    return strchr("-_/. ", c) != NULL;
}

/* The names without what all have in common at both ends, cut between words. */
static vq_status make_labels(page *p)
{
    VQ_TRY(VQ_NEW(p->arena, p->n, &p->label));
    const char *first = p->runs[0].name;
    size_t head = p->n > 1 ? strlen(first) : 0, tail = head;
    for (int64_t i = 1; i < p->n; i++) {
        const char *name = p->runs[i].name;
        const size_t n = strlen(name), m = strlen(first);
        size_t same = 0;
        while (same < head && same < n && name[same] == first[same]) same++;
        head = same;
        for (same = 0; same < tail && same < n && name[n - 1 - same] == first[m - 1 - same];)
            same++;
        tail = same;
    }
    while (head > 0 && !is_separator(first[head - 1])) head--;
    while (tail > 0 && !is_separator(first[strlen(first) - tail])) tail--;
    for (int64_t i = 0; i < p->n; i++)
        if (strlen(p->runs[i].name) <= head + tail) head = tail = 0;
    for (int64_t i = 0; i < p->n; i++) {
        const char *name = p->runs[i].name;
        char *own;
        VQ_TRY(vq_arena_text(p->arena, name + head, strlen(name) - head - tail, &own));
        p->label[i] = own;
    }
    return VQ_OK;
}

/* Opens DIR/name for what write then prints. */
static vq_status write_file(page *p, const char *out, const char *name, char path[PATH_MAX],
                            const vq_dashboard *d, const char *title)
{
    vq_writer w;
    char *joined;
    VQ_TRY(vq_path_join(p->arena, out, name, &joined));
    snprintf(path, PATH_MAX, "%s", joined);
    VQ_TRY(vq_writer_open(path, &w));
    p->to = w.file;
    title ? write_page(p, d, title) : write_csv(p);
    return vq_writer_finish(&w);
}

static vq_status write_all(page *p, const char *const *dirs, int n_dirs, const char *out,
                           bool with_csv, FILE *table, vq_dashboard *d)
{
    char title[512] = "Runs in";
    VQ_TRY(vq_runs_find(p->arena, dirs, n_dirs, &p->runs, &p->n));
    VQ_TRY(vq_make_folders(out));
    d->n_runs = p->n;
    for (int64_t i = 0; i < p->n; i++) d->n_in_state[p->runs[i].state]++;
    if (n_dirs == 1 && !strcmp(dirs[0], out)) p->top = out;
    VQ_TRY(make_labels(p));
    VQ_TRY(vq_figures_make(p->arena, p->runs, p->n, p->label, p->figures, &p->n_figures));
    VQ_TRY(vq_plot_draw(p->arena, p->figures, p->n_figures, &p->why));
    if (p->why) snprintf(d->no_figures, sizeof d->no_figures, "%s", p->why);
    for (int i = 0; i < n_dirs; i++) {
        const size_t n = strlen(title);
        snprintf(title + n, sizeof title - n, "%s %s", i > 0 ? "," : "", dirs[i]);
    }
    VQ_TRY(write_file(p, out, "report.html", d->html, d, p->n == 1 ? p->runs[0].dir : title));
    if (with_csv) VQ_TRY(write_file(p, out, "report.csv", d->csv, d, NULL));
    if (table) print_table(p, table);
    return VQ_OK;
}

vq_status vq_dashboard_write(const char *const *dirs, int n_dirs, const char *out, bool with_csv,
                             FILE *table, vq_dashboard *d)
{
    vq_arena arena = {0};
    *d = (vq_dashboard){0};
    VQ_TRY(vq_arena_init(&arena, "report", (size_t)4 << 30));
    page *p;
    vq_status status = VQ_NEW(&arena, 1, &p);
    if (!status) {
        *p = (page){.arena = &arena};
        status = write_all(p, dirs, n_dirs, out, with_csv, table, d);
    }
    vq_arena_close(&arena);
    return status;
}
