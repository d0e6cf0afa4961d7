/* figures - the series of each figure. */
#include "figures.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

#define MAX_BARS VQ_FIGURE_BARS
#define MARKED 48 /* a line with fewer points shows them */

/* What is being made, from what. */
typedef struct page {
    vq_arena *arena;
    const vq_run_info *runs;
    int64_t n;
    const char *const *label; /* [n] */
    vq_figure *figures;
    int n_figures;
} page;

vq_unit vq_unit_of_time(double most_s)
{
    if (most_s > 4 * 3600) return (vq_unit){"h", 3600};
    if (most_s > 20 * 60) return (vq_unit){"min", 60};
    return most_s > 1 ? (vq_unit){"s", 1} : (vq_unit){"ms", 1e-3};
}

vq_unit vq_unit_of_bytes(double most)
{
    if (most > 2e12) return (vq_unit){"TiB", 1099511627776.0};
    if (most > 2e9) return (vq_unit){"GiB", 1073741824.0};
    return most > 1e6 ? (vq_unit){"MiB", 1048576.0} : (vq_unit){"KiB", 1024.0};
}

static vq_status keep(page *p, const char *text, const char **out)
{
    char *own;
    VQ_TRY(vq_arena_text(p->arena, text, strlen(text), &own));
    *out = own;
    return VQ_OK;
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

/* --- of metrics and layers -------------------------------------------------------------------- */

#define GREY 7 /* in the palette; the others are for what is compared */
#define PALETTE 8

int vq_figures_colour(int64_t i)
{
    return (int)(i + i / (PALETTE - 1));
}

static vq_figure *add_figure(page *p, const char *title, const char *x_label)
{
    vq_figure *f = &p->figures[p->n_figures++];
    *f = (vq_figure){.title = title, .x_label = x_label};
    return f;
}

/* Room for n series, which the figure then has. */
static vq_status make_series(page *p, vq_figure *f, int64_t n, vq_series **series)
{
    VQ_TRY(VQ_NEW(p->arena, n, series));
    memset(*series, 0, (size_t)n * sizeof **series);
    f->series = *series;
    f->n_series = (int)n;
    return VQ_OK;
}

/* A figure without points is taken back. */
static void drop_if_empty(page *p)
{
    const vq_figure *f = &p->figures[p->n_figures - 1];
    for (int s = 0; s < f->n_series; s++)
        for (int64_t i = 0; i < f->series[s].n; i++)
            if (isfinite(f->series[s].y[i]) && (f->bars ? f->series[s].y[i] > 0 : true)) return;
    p->n_figures--;
}

/* One of the curves of metrics.jsonl, a line a run, without what is 0; nothing where no value is
 * above least. */
static vq_status add_curve(page *p, const char *title, size_t offset, double scale, double least)
{
    vq_figure *f = add_figure(p, title, "step");
    vq_series *series;
    int n = 0;
    double most = 0;
    f->log_y = true;
    f->of_runs = p->n > 1;
    VQ_TRY(make_series(p, f, p->n, &series));
    for (int64_t i = 0; i < p->n; i++) {
        const vq_curves *c = &p->runs[i].curves;
        const double *from = *(double *const *)((const char *)c + offset);
        double *y;
        if (c->n == 0) continue;
        VQ_TRY(VQ_NEW(p->arena, c->n, &y));
        for (int64_t j = 0; j < c->n; j++) {
            y[j] = from[j] > 0 ? scale * from[j] : NAN;
            if (y[j] > most) most = y[j];
        }
        series[n++] = (vq_series){
            .label = p->label[i], .colour = vq_figures_colour(i), .n = c->n, .x = c->step, .y = y};
    }
    f->n_series = n;
    if (most <= least) p->n_figures--;
    return VQ_OK;
}

/* Errors of linears: of one run a line a kind of linear, of several the mean of each layer. */
typedef enum error_kind { OF_WEIGHTS, MOVED, OF_CODES, OF_GPTQ } error_kind;

static double error_of(const vq_linear_error *l, error_kind kind)
{
    switch (kind) {
    case OF_WEIGHTS: return 100 * l->error;
    case MOVED: return 100 * l->moved;
    case OF_CODES: return l->codes_rms;
    case OF_GPTQ: return l->gptq_error;
    }
    return NAN;
}

static vq_status kind_series(page *p, const vq_run_info *r, error_kind kind, vq_figure *f)
{
    vq_series *series;
    int n = 0;
    VQ_TRY(make_series(p, f, r->n_linears, &series));
    for (int64_t i = 0; i < r->n_linears; i++) {
        const vq_linear_error *l = &r->linears[i];
        double *x, *y;
        int s = 0;
        while (s < n && strcmp(series[s].label, l->kind) != 0) s++;
        if (s < n || !isfinite(error_of(l, kind))) continue;
        VQ_TRY(VQ_NEW(p->arena, r->n_linears, &x));
        VQ_TRY(VQ_NEW(p->arena, r->n_linears, &y));
        int64_t m = 0;
        for (int64_t j = i; j < r->n_linears; j++) {
            if (strcmp(r->linears[j].kind, l->kind) != 0) continue;
            x[m] = (double)r->linears[j].layer;
            y[m++] = error_of(&r->linears[j], kind);
        }
        series[n] = (vq_series){.label = l->kind, .n = m, .x = x, .y = y, .marked = m < MARKED};
        series[n].colour = vq_figures_colour(n);
        n++;
    }
    f->n_series = n;
    return VQ_OK;
}

static vq_status mean_series(page *p, int64_t run, error_kind kind, vq_series *s)
{
    const vq_run_info *r = &p->runs[run];
    double *x, *y;
    int64_t n = 0, in_layer = 0;
    VQ_TRY(VQ_NEW(p->arena, r->n_linears, &x));
    VQ_TRY(VQ_NEW(p->arena, r->n_linears, &y));
    for (int64_t i = 0; i < r->n_linears; i++) {
        const vq_linear_error *l = &r->linears[i];
        if (!isfinite(error_of(l, kind))) continue;
        if (n == 0 || x[n - 1] != (double)l->layer) {
            x[n] = (double)l->layer;
            y[n++] = 0;
            in_layer = 0;
        }
        in_layer++;
        y[n - 1] += (error_of(l, kind) - y[n - 1]) / (double)in_layer;
    }
    *s = (vq_series){.label = p->label[run],
                     .colour = vq_figures_colour(run),
                     .n = n,
                     .x = x,
                     .y = y,
                     .marked = n < MARKED};
    return VQ_OK;
}

static vq_status add_errors(page *p, const char *title, error_kind kind)
{
    vq_figure *f = add_figure(p, title, "layer");
    vq_series *series;
    f->log_y = true;
    f->of_runs = p->n > 1;
    if (p->n == 1) {
        VQ_TRY(kind_series(p, &p->runs[0], kind, f));
    } else {
        VQ_TRY(make_series(p, f, p->n, &series));
        int n = 0;
        for (int64_t i = 0; i < p->n; i++) {
            VQ_TRY(mean_series(p, i, kind, &series[n]));
            n += series[n].n > 0;
        }
        f->n_series = n;
    }
    drop_if_empty(p);
    return VQ_OK;
}

/* Stacked bars on their way. */
typedef struct bars {
    vq_figure *figure;
    vq_series *series;
    double **value; /* [series][bar] */
    int64_t n;
} bars;

static vq_status begin_bars(page *p, const char *title, const char *unit, int n_series,
                            const char *const *labels, bars *b)
{
    *b = (bars){.figure = add_figure(p, title, "")};
    VQ_TRY(keep(p, unit, &b->figure->x_label));
    VQ_TRY(make_series(p, b->figure, n_series, &b->series));
    VQ_TRY(VQ_NEW(p->arena, n_series, &b->value));
    VQ_TRY(VQ_NEW(p->arena, MAX_BARS, &b->figure->bars));
    for (int s = 0; s < n_series; s++) {
        VQ_TRY(VQ_NEW(p->arena, MAX_BARS, &b->value[s]));
        b->series[s] = (vq_series){.label = labels[s], .colour = s, .y = b->value[s]};
    }
    return VQ_OK;
}

/* The next bar, all 0. False: there are enough. */
static bool add_bar(bars *b, const char *name)
{
    if (b->n == MAX_BARS) return false;
    for (int s = 0; s < b->figure->n_series; s++) b->value[s][b->n] = 0;
    b->figure->bars[b->n++] = name;
    return true;
}

static void end_bars(page *p, bars *b)
{
    b->figure->n_bars = b->n;
    for (int s = 0; s < b->figure->n_series; s++) b->series[s].n = b->n;
    drop_if_empty(p);
}

#define N_PHASES 7
static const char *const phases[N_PHASES] = {"tokens", "init", "blocks", "teacher",
                                             "train",  "eval", "export"};

static double phase_of(const vq_results *r, int phase)
{
    const double s[N_PHASES] = {r->seconds.tokens,  r->seconds.init,  r->seconds.blocks,
                                r->seconds.teacher, r->seconds.train, r->seconds.eval,
                                r->seconds.export};
    return s[phase];
}

/* The phases that any run had, and their names. Returns how many. */
static int phases_had(const page *p, int had[N_PHASES], const char *names[N_PHASES])
{
    int n = 0;
    for (int k = 0; k < N_PHASES; k++) {
        double most = 0;
        for (int64_t i = 0; i < p->n; i++) most = VQ_MAX(most, phase_of(&p->runs[i].results, k));
        if (most == 0) continue;
        names[n] = phases[k];
        had[n++] = k;
    }
    return n;
}

/* Of one run a bar a phase, of several a bar a run. */
static vq_status add_times(page *p)
{
    static const char *const seconds[] = {"time"};
    const vq_unit u = vq_unit_of_time(vq_runs_largest(p->runs, p->n, VQ_VALUE_SECONDS));
    const char *names[N_PHASES];
    int had[N_PHASES];
    const int n = phases_had(p, had, names);
    bars b;
    if (n == 0) return VQ_OK;
    VQ_TRY(
        begin_bars(p, "Time by phase", u.name, p->n == 1 ? 1 : n, p->n == 1 ? seconds : names, &b));
    for (int k = 0; p->n == 1 && k < n; k++)
        if (add_bar(&b, names[k])) b.value[0][k] = phase_of(&p->runs[0].results, had[k]) / u.size;
    for (int64_t i = 0; p->n > 1 && i < p->n; i++)
        if (p->runs[i].has_results && add_bar(&b, p->label[i]))
            for (int k = 0; k < n; k++)
                b.value[k][b.n - 1] = phase_of(&p->runs[i].results, had[k]) / u.size;
    end_bars(p, &b);
    return VQ_OK;
}

static vq_status rank_name(page *p, int64_t rank, const char **name)
{
    char text[32];
    snprintf(text, sizeof text, "rank %lld", (long long)rank);
    return keep(p, text, name);
}

/* Of one run a bar a rank, of several the largest rank of each. */
static vq_status add_memory(page *p)
{
    static const char *const label[] = {"peak memory"};
    const vq_results *one = &p->runs[0].results;
    const vq_unit u = vq_unit_of_bytes(vq_runs_largest(p->runs, p->n, VQ_VALUE_PEAK_BYTES));
    const char *name;
    bars b;
    if (p->n == 1 && one->machine.ranks < 2) return VQ_OK;
    VQ_TRY(begin_bars(p, p->n == 1 ? "Peak memory" : "Peak memory of the largest rank", u.name, 1,
                      label, &b));
    for (int64_t i = 0; p->n == 1 && i < one->machine.ranks; i++) {
        VQ_TRY(rank_name(p, i, &name));
        if (add_bar(&b, name)) b.value[0][i] = one->peak_rss_bytes[i] / u.size;
    }
    for (int64_t i = 0; p->n > 1 && i < p->n; i++)
        if (p->runs[i].has_results && add_bar(&b, p->label[i]))
            b.value[0][b.n - 1] = vq_run_value(&p->runs[i], VQ_VALUE_PEAK_BYTES) / u.size;
    end_bars(p, &b);
    return VQ_OK;
}

/* Adds a rank's shares, in %, to the last bar, of which it is a part of 1 / n. */
static void add_share(bars *b, const vq_results *r, int64_t rank, int64_t n)
{
    const double part = 100 / (double)n;
    b->value[0][b->n - 1] += part * r->compute_ratio[rank];
    b->value[1][b->n - 1] += part * r->sums_ratio[rank];
    b->value[2][b->n - 1] += part * r->messages_ratio[rank];
}

/* Of one run a bar a rank, of several the mean over the ranks of each run that has some. */
static vq_status add_shares(page *p)
{
    static const char *const labels[] = {"compute", "communication: sums and broadcasts",
                                         "waiting for a neighbour's message"};
    const char *name;
    bars b;
    if (vq_runs_largest(p->runs, p->n, VQ_VALUE_RANKS) < 2) return VQ_OK;
    VQ_TRY(begin_bars(p,
                      p->n == 1 ? "Where the training time went"
                                : "Where the training time went, mean of the ranks",
                      "%", VQ_COUNT(labels), labels, &b));
    for (int64_t i = 0; i < p->n; i++) {
        const vq_results *r = &p->runs[i].results;
        const int64_t n = r->machine.ranks;
        if (n < 2 || (p->n > 1 && !add_bar(&b, p->label[i]))) continue;
        for (int64_t j = 0; j < n; j++) {
            VQ_TRY(rank_name(p, j, &name));
            if (p->n > 1 || add_bar(&b, name)) add_share(&b, r, j, p->n > 1 ? n : 1);
        }
    }
    end_bars(p, &b);
    return VQ_OK;
}

/* --- perplexity against bits, or codes -------------------------------------------------------- */

typedef enum axis { BY_BITS, BY_CODES } axis;

static double at_of(const vq_run_info *r, axis a)
{
    return (double)(a == BY_BITS ? r->results.bits : r->results.K);
}

static vq_init_kind init_of(const vq_run_info *r)
{
    return r->has_config ? r->config.init : VQ_INIT_RTN;
}

/* Which settings tell lines apart. */
typedef struct parts {
    bool model, group, init;
} parts;

static parts parts_of(const page *p)
{
    const vq_run_info *first = NULL;
    parts d = {false};
    for (int64_t i = 0; i < p->n; i++) {
        const vq_run_info *r = &p->runs[i];
        if (!r->has_results) continue;
        if (!first) first = r;
        d.model |= strcmp(r->results.model, first->results.model) != 0;
        d.group |= r->results.group_size != first->results.group_size;
        d.init |= init_of(r) != init_of(first);
    }
    return d;
}

/* The settings on which a run's perplexity depends, but for seeds and what the axis is of. */
static uint64_t settings_of(const vq_run_info *r, axis x)
{
    vq_config c = r->config;
    if (!r->has_config) return 0;
    c.bits = c.seed = c.kmeans.seed = 0;
    if (x == BY_CODES) c.K = 0;
    return vq_config_phase_hash(&c, VQ_PHASE_EVAL);
}

/* Those of its integers before any training. */
static uint64_t grid_of(const vq_run_info *r)
{
    vq_config c = r->config;
    if (!r->has_config) return 0;
    c.bits = 0;
    c.method = VQ_METHOD_VQROUND;
    c.init = VQ_INIT_RTN;
    return vq_config_phase_hash(&c, VQ_PHASE_GRID);
}

static bool same_model(const vq_run_info *a, const vq_run_info *b, axis x)
{
    (void)x;
    return !strcmp(a->results.model, b->results.model);
}

static bool same_base(const vq_run_info *a, const vq_run_info *b, axis x)
{
    return same_model(a, b, x) && a->results.group_size == b->results.group_size &&
           grid_of(a) == grid_of(b);
}

static bool same_line(const vq_run_info *a, const vq_run_info *b, axis x)
{
    const vq_results *r = &a->results, *s = &b->results;
    if (strcmp(r->method, s->method) != 0 || !same_base(a, b, x)) return false;
    if (!strcmp(r->method, "rtn") || !strcmp(r->method, "gptq")) return true;
    return r->D == s->D && (x == BY_CODES || r->K == s->K) &&
           settings_of(a, x) == settings_of(b, x);
}

static vq_status line_label(page *p, const vq_run_info *r, const char *base, axis x,
                            const char **out)
{
    const parts d = parts_of(p);
    char text[256] = "";
    int n = 0;
    if (base)
        n = snprintf(text, sizeof text, "%s", base);
    else if (strcmp(r->results.method, "vqround") != 0)
        n = snprintf(text, sizeof text, "method %s", r->results.method);
    else if (x == BY_BITS)
        n = snprintf(text, sizeof text, "K %lld, D %lld", (long long)r->results.K,
                     (long long)r->results.D);
    else
        n = snprintf(text, sizeof text, "D %lld", (long long)r->results.D);
    if (d.init && !base && !strcmp(r->results.method, "vqround"))
        n += snprintf(text + n, sizeof text - (size_t)n, ", from %s",
                      init_of(r) == VQ_INIT_GPTQ ? "GPTQ" : "RTN");
    if (d.group && r->results.group_size > 0)
        n += snprintf(text + n, sizeof text - (size_t)n, ", groups of %lld",
                      (long long)r->results.group_size);
    else if (d.group)
        n += snprintf(text + n, sizeof text - (size_t)n, ", whole rows");
    if (d.model)
        snprintf(text + n, sizeof text - (size_t)n, ", %.100s", last_part(r->results.model));
    return keep(p, text, out);
}

/* The points of the runs that are on a line with runs[first], in order of x; where several are at
 * one x their mean. */
static vq_status take_line(page *p, int64_t first, axis a,
                           bool (*same)(const vq_run_info *, const vq_run_info *, axis),
                           vq_run_value_kind of, vq_series *s)
{
    double *x, *y, *count;
    int64_t n = 0;
    VQ_TRY(VQ_NEW(p->arena, p->n, &x));
    VQ_TRY(VQ_NEW(p->arena, p->n, &y));
    VQ_TRY(VQ_NEW(p->arena, p->n, &count));
    for (int64_t i = first; i < p->n; i++) {
        const vq_run_info *r = &p->runs[i];
        const double at = at_of(r, a), value = vq_run_value(r, of);
        int64_t j = 0;
        if (!isfinite(value) || !same(&p->runs[first], r, a)) continue;
        while (j < n && x[j] < at) j++;
        if (j == n || x[j] != at) {
            memmove(x + j + 1, x + j, (size_t)(n - j) * sizeof *x);
            memmove(y + j + 1, y + j, (size_t)(n - j) * sizeof *y);
            memmove(count + j + 1, count + j, (size_t)(n - j) * sizeof *count);
            x[j] = at;
            y[j] = count[j] = 0;
            n++;
        }
        y[j] += (value - y[j]) / ++count[j];
    }
    *s = (vq_series){.n = n, .x = x, .y = y, .marked = true};
    return VQ_OK;
}

/* A label that several of n lines have says their first runs too. */
static vq_status tell_apart(page *p, vq_series *series, const int64_t *first, int n)
{
    bool *is_shared;
    VQ_TRY(VQ_NEW(p->arena, n, &is_shared));
    for (int i = 0; i < n; i++) {
        is_shared[i] = false;
        for (int j = 0; j < n; j++)
            is_shared[i] |= j != i && !strcmp(series[j].label, series[i].label);
    }
    for (int i = 0; i < n; i++) {
        char text[512];
        if (!is_shared[i]) continue;
        snprintf(text, sizeof text, "%.250s (%.250s)", series[i].label, p->label[first[i]]);
        VQ_TRY(keep(p, text, &series[i].label));
    }
    return VQ_OK;
}

/* A line for each set of runs that belong together, behind the *n series that are there. base NULL:
 * a colour each; else its name and colour. */
static vq_status add_lines(page *p, axis a, const char *base, int colour,
                           bool (*same)(const vq_run_info *, const vq_run_info *, axis),
                           vq_run_value_kind of, vq_series *series, int *n)
{
    vq_series *lines = series + *n;
    int64_t *first;
    int own = 0;
    VQ_TRY(VQ_NEW(p->arena, p->n, &first));
    for (int64_t i = 0; i < p->n; i++) {
        bool is_new = isfinite(vq_run_value(&p->runs[i], of));
        for (int64_t j = 0; j < i && is_new; j++)
            is_new = !isfinite(vq_run_value(&p->runs[j], of)) || !same(&p->runs[j], &p->runs[i], a);
        if (!is_new) continue;
        VQ_TRY(take_line(p, i, a, same, of, &lines[own]));
        VQ_TRY(line_label(p, &p->runs[i], base, a, &lines[own].label));
        lines[own].colour = base ? colour : vq_figures_colour(own);
        first[own++] = i;
    }
    *n += own;
    return tell_apart(p, lines, first, own);
}

static int64_t count_values(const page *p, axis a)
{
    int64_t n = 0;
    for (int64_t i = 0; i < p->n; i++) {
        bool is_new = isfinite(vq_run_value(&p->runs[i], VQ_VALUE_FINAL));
        for (int64_t j = 0; j < i && is_new; j++)
            is_new = !isfinite(vq_run_value(&p->runs[j], VQ_VALUE_FINAL)) ||
                     at_of(&p->runs[j], a) != at_of(&p->runs[i], a);
        n += is_new;
    }
    return n;
}

/* Against the bits; where all runs have the same, against K. */
static axis axis_of(const page *p)
{
    return count_values(p, BY_BITS) > 1 ? BY_BITS : BY_CODES;
}

static vq_status add_perplexities(page *p, const char *title, vq_run_value_kind final,
                                  vq_run_value_kind rtn, vq_run_value_kind gptq)
{
    const axis a = axis_of(p);
    vq_series *series;
    int n = 0;
    if (count_values(p, a) < 2) return VQ_OK;
    vq_figure *f =
        add_figure(p, title, a == BY_BITS ? "bits of a weight" : "K, codes of a codebook");
    f->each_x = f->log_y = true;
    f->log_x = a == BY_CODES;
    VQ_TRY(make_series(p, f, 4 * p->n, &series));
    VQ_TRY(add_lines(p, a, NULL, 0, same_line, final, series, &n));
    VQ_TRY(add_lines(p, a, "RTN", GREY + PALETTE, same_base, rtn, series, &n));
    VQ_TRY(add_lines(p, a, "GPTQ", GREY, same_base, gptq, series, &n));
    if (final == VQ_VALUE_FINAL)
        VQ_TRY(add_lines(p, a, "full precision", GREY + 2 * PALETTE, same_model, VQ_VALUE_FP,
                         series, &n));
    f->n_series = n;
    drop_if_empty(p);
    return VQ_OK;
}

vq_status vq_figures_make(vq_arena *arena, const vq_run_info *runs, int64_t n,
                          const char *const *labels, vq_figure figures[VQ_FIGURES], int *n_figures)
{
    page *p = &(page){.arena = arena, .runs = runs, .n = n, .label = labels, .figures = figures};
    VQ_TRY(add_perplexities(p, axis_of(p) == BY_BITS ? "Perplexity by bits" : "Perplexity by codes",
                            VQ_VALUE_FINAL, VQ_VALUE_RTN, VQ_VALUE_GPTQ));
    VQ_TRY(add_perplexities(p, "Perplexity above full precision, %", VQ_VALUE_FINAL_ABOVE,
                            VQ_VALUE_RTN_ABOVE, VQ_VALUE_GPTQ_ABOVE));
    VQ_TRY(add_curve(p, "Task loss", offsetof(vq_curves, task), 1, 0));
    VQ_TRY(add_curve(p, "Rounding regularizer", offsetof(vq_curves, reg), 1, 0));
    VQ_TRY(add_curve(p, "Beta, the regularizer's exponent", offsetof(vq_curves, beta), 1, 0));
    VQ_TRY(add_errors(p, "Error of the weights, % of their norm", OF_WEIGHTS));
    VQ_TRY(add_errors(p, "Weights not rounded to nearest, %", MOVED));
    VQ_TRY(add_errors(p, "Codebook error before training, RMS of a logit", OF_CODES));
    VQ_TRY(add_errors(p, "GPTQ's error in the layer's outputs", OF_GPTQ));
    VQ_TRY(add_times(p));
    VQ_TRY(add_memory(p));
    VQ_TRY(add_shares(p));
    VQ_TRY(
        add_curve(p, "Waiting of rank 0, % of a step", offsetof(vq_curves, waited_ratio), 100, 1));
    *n_figures = p->n_figures;
    return VQ_OK;
}
