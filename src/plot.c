/* plot - one gnuplot for all figures of a page. */
#include "plot.h"

#include <errno.h>
#include <math.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "error.h"

#define WIDTH 420
#define HEIGHT 265
#define BAR_HEIGHT 21
#define BELOW_BARS 54
#define LOG_SPAN 20 /* a logarithmic axis is for data that spans more */
#define TITLE_MAX 32

/* Each has a contrast of 3 or more on a white and on a nearly black page. */
static const char *const palette[] = {"#2f7fd0", "#cf6a12", "#2a9a6b", "#d0487a",
                                      "#8a6ad8", "#1796a6", "#a5850f", "#7f8894"};
static const char *const dashes[] = {"solid", "dashed", "dotted"};

const char *vq_plot_colour(int number)
{
    return palette[number % VQ_COUNT(palette)];
}

const char *vq_plot_dash(int number)
{
    return dashes[number / VQ_COUNT(palette) % VQ_COUNT(dashes)];
}

/* --- the script ------------------------------------------------------------------------------ */

/* A text between single quotes: one line, cut to n bytes at a character's end. */
static void put_quoted(FILE *to, const char *text, int n)
{
    fputc('\'', to);
    for (int i = 0; text[i]; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (i >= n && (c & 0xc0) != 0x80) {
            fputs("...", to);
            break;
        }
        if (c == '\'') fputc('\'', to);
        fputc(c < ' ' || c == 0x7f ? ' ' : c, to);
    }
    fputc('\'', to);
}

static bool is_shown(const vq_figure *f, double x, double y)
{
    return isfinite(x) && isfinite(y) && (!f->log_x || x > 0);
}

static void limits(const vq_figure *f, bool of_x, double *low, double *high)
{
    *low = HUGE_VAL;
    *high = -HUGE_VAL;
    for (int s = 0; s < f->n_series; s++)
        for (int64_t i = 0; i < f->series[s].n; i++) {
            const double x = f->series[s].x[i], y = f->series[s].y[i];
            if (!is_shown(f, x, y)) continue;
            *low = VQ_MIN(*low, of_x ? x : y);
            *high = VQ_MAX(*high, of_x ? x : y);
        }
}

/* Marks at 1, 2 and 5 times the powers of ten, or at the powers alone. */
static void put_log_marks(FILE *to, double low, double high)
{
    static const double steps[] = {1, 2, 5};
    const bool all = high < 1000 * low;
    int n = 0;
    fputs("set ytics (", to);
    for (int p = (int)floor(log10(low)); p <= (int)ceil(log10(high)); p++)
        for (int i = 0; i < (all ? VQ_COUNT(steps) : 1); i++) {
            const double at = steps[i] * pow(10, p);
            fprintf(to, "%s'%g' %.17g", n++ > 0 ? ", " : "", at, at);
        }
    fputs(")\n", to);
}

/* Marks at each x that occurs; few are expected. */
static void put_x_marks(FILE *to, const vq_figure *f)
{
    double seen[64];
    int n = 0;
    fputs("set xtics (", to);
    for (int s = 0; s < f->n_series; s++)
        for (int64_t i = 0; i < f->series[s].n && n < VQ_COUNT(seen); i++) {
            const double x = f->series[s].x[i];
            int at = 0;
            while (at < n && seen[at] != x) at++;
            if (at < n) continue;
            fprintf(to, "%s%g", n > 0 ? ", " : "", x);
            seen[n++] = x;
        }
    fputs(")\n", to);
}

static void put_style(FILE *to, const vq_series *s)
{
    static const char *const types[] = {"1", "(7,4)", "(1.5,3)"};
    fprintf(to, " lw 2 dt %s lc rgb '%s'%s title ", types[s->colour / VQ_COUNT(palette) % 3],
            vq_plot_colour(s->colour), s->marked ? " pt 7 ps 0.55" : "");
    put_quoted(to, s->label, TITLE_MAX);
}

static void put_lines(FILE *to, const vq_figure *f)
{
    double low, high;
    limits(f, true, &low, &high);
    if (low == high) fprintf(to, "set xrange [%.17g:%.17g]\n", low - 0.5, high + 0.5);
    if (high - low <= 10) fputs("set xtics 1\n", to);
    if (f->log_x) fputs("set logscale x\n", to);
    if (f->each_x) {
        put_x_marks(to, f);
        if (low < high)
            f->log_x ? fprintf(to, "set xrange [%g:%g]\n", low / 1.2, high * 1.2)
                     : fprintf(to, "set xrange [%g:%g]\n", low - 0.2, high + 0.2);
    }
    limits(f, false, &low, &high);
    if (f->log_y && low > 0 && high > LOG_SPAN * low) {
        fputs("set logscale y\n", to);
        fprintf(to, "set yrange [%.7g:%.7g]\n", 0.9 * low, 1.1 * high);
        put_log_marks(to, low, high);
    }
    fputs("plot ", to);
    for (int s = 0; s < f->n_series; s++) {
        fprintf(to, "%s'-' with %s", s > 0 ? ", " : "",
                f->series[s].marked ? "linespoints" : "lines");
        put_style(to, &f->series[s]);
    }
    fputc('\n', to);
    for (int s = 0; s < f->n_series; s++) {
        for (int64_t i = 0; i < f->series[s].n; i++)
            if (is_shown(f, f->series[s].x[i], f->series[s].y[i]))
                fprintf(to, "%.7g %.7g\n", f->series[s].x[i], f->series[s].y[i]);
        fputs("e\n", to);
    }
}

/* How much of bar i the series before s take. */
static double start_of(const vq_figure *f, int s, int64_t i)
{
    double sum = 0;
    for (int t = 0; t < s; t++)
        if (isfinite(f->series[t].y[i])) sum += f->series[t].y[i];
    return sum;
}

/* A round number, about a quarter of x: the distance of the marks from 0 to x. */
static double quarter(double x)
{
    const double power = pow(10, floor(log10(x / 4))), rest = x / 4 / power;
    return power * (rest > 5 ? 10 : rest > 2 ? 5 : rest > 1 ? 2 : 1);
}

static double bars_height(const vq_figure *f)
{
    return (double)(4 + BAR_HEIGHT * f->n_bars + BELOW_BARS);
}

static void put_bars(FILE *to, const vq_figure *f)
{
    double most = 0;
    for (int64_t i = 0; i < f->n_bars; i++) most = VQ_MAX(most, start_of(f, f->n_series, i));
    if (most > 0) fprintf(to, "set xtics %.7g\n", quarter(most));
    const double height = bars_height(f);
    fprintf(to, "set tmargin at screen %g\nset bmargin at screen %g\n", 1 - 4 / height,
            BELOW_BARS / height);
    fprintf(to, "set border 0\nset yrange [%lld.5:-0.5]\nset xrange [0:*]\nset ytics (",
            (long long)f->n_bars - 1);
    for (int64_t i = 0; i < f->n_bars; i++) {
        if (i > 0) fputs(", ", to);
        put_quoted(to, f->bars[i], TITLE_MAX);
        fprintf(to, " %lld", (long long)i);
    }
    fputs(")\nset style fill solid 1 noborder\nplot ", to);
    for (int s = 0; s < f->n_series; s++) {
        fprintf(to, "%s'-' using 1:2:3:4:5:6 with boxxyerror", s > 0 ? ", " : "");
        put_style(to, &f->series[s]);
    }
    fputc('\n', to);
    for (int s = 0; s < f->n_series; s++) {
        for (int64_t i = 0; i < f->n_bars; i++) {
            const double start = start_of(f, s, i), y = f->series[s].y[i];
            if (isfinite(y) && y > 0)
                fprintf(to, "%.7g %lld %.7g %.7g %.3f %.3f\n", start, (long long)i, start,
                        start + y, (double)i - 0.33, (double)i + 0.33);
        }
        fputs("e\n", to);
    }
}

static void put_figure(FILE *to, const vq_figure *f)
{
    const long long height = f->bars ? (long long)bars_height(f) : HEIGHT;
    fprintf(to,
            "reset\nset terminal svg size %d,%lld dynamic font 'sans-serif,13' noenhanced\n"
            "set encoding utf8\nset key off\nset tics nomirror scale 0 textcolor rgb '#777777'\n"
            "set border 1 lc rgb '#777777' lw 0.8\nset datafile missing 'nan'\n"
            "set grid %s lt 1 dt solid lw 1 lc rgb '#cccccc'\nset xlabel ",
            WIDTH, height, f->bars ? "x" : "y");
    put_quoted(to, f->x_label, 200);
    fputs(" textcolor rgb '#777777'\n", to);
    f->bars ? put_bars(to, f) : put_lines(to, f);
}

/* --- gnuplot --------------------------------------------------------------------------------- */

/* Runs gnuplot with these files as stdin, stdout and stderr. Its exit code; 127: it is missing. */
static int run_gnuplot(const int files[3])
{
    extern char **environ;
    char name[] = "gnuplot", plain[] = "-d"; /* without the user's settings */
    char *const args[] = {name, plain, NULL};
    posix_spawn_file_actions_t actions;
    pid_t pid;
    int status;
    if (posix_spawn_file_actions_init(&actions) != 0) return 127;
    for (int i = 0; i < 3; i++) posix_spawn_file_actions_adddup2(&actions, files[i], i);
    const int failed = posix_spawnp(&pid, name, &actions, NULL, args, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed) return 127;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) return 127;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* What a program wrote into a file in memory. */
static vq_status read_back(vq_arena *arena, int file, char **text)
{
    struct stat st;
    VQ_ASSERT(fstat(file, &st) == 0);
    VQ_TRY(vq_arena_alloc(arena, (size_t)st.st_size + 1, (void **)text));
    const ssize_t n = pread(file, *text, (size_t)st.st_size, 0);
    (*text)[VQ_MAX(n, 0)] = '\0';
    return VQ_OK;
}

/* --- the SVG --------------------------------------------------------------------------------- */

/* Whether the line at p is a group without anything in it; *end is then behind it. */
static bool is_empty_group(const char *p, const char **end)
{
    const char *line = strchr(p, '\n');
    if (strncmp(p, "<g ", 3) != 0 || !line || strncmp(line + 1, "</g>\n", 5) != 0) return false;
    *end = line + 6;
    return true;
}

/* Where an attribute id="..." at p ends, or NULL: in one page ids would be there twice. Those of
 * the markers are the same in every figure, and are kept in the first. */
static const char *after_id(const char *p)
{
    static const char *const ids[] = {" id=\"gnuplot_canvas\"", " id=\"gnuplot_plot_"};
    for (int i = 0; i < VQ_COUNT(ids); i++) {
        if (strncmp(p, ids[i], strlen(ids[i])) != 0) continue;
        const char *end = strchr(p + 5, '"');
        return end ? end + 1 : NULL;
    }
    return NULL;
}

/* Copies one figure without what a page does not need. */
static void copy_svg(char *to, const char *from, const char *end, bool is_first)
{
    static const char *const cuts[][2] = {
        {"<title>Gnuplot</title>", "</title>"}, {"<desc>", "</desc>"}, {"<defs>", "</defs>"}};
    const char *next;
    for (const char *p = from; p < end;) {
        next = after_id(p);
        for (int i = 0; !next && i < VQ_COUNT(cuts); i++) {
            if (strncmp(p, cuts[i][0], strlen(cuts[i][0])) != 0) continue;
            if (is_first && i == 2) continue;
            next = strstr(p, cuts[i][1]);
            if (next) next += strlen(cuts[i][1]);
        }
        if (next || is_empty_group(p, &next) || (*p == '\n' && p[1] == '\n' && (next = p + 1)))
            p = next;
        else
            *to++ = *p++;
    }
    *to = '\0';
}

/* Cuts gnuplot's output into its figures. */
static vq_status take_figures(vq_arena *arena, const char *text, vq_figure *figures, int n)
{
    for (int i = 0; i < n; i++) {
        const char *start = strstr(text, "<svg"), *end = start ? strstr(start, "</svg>") : NULL;
        figures[i].svg = NULL;
        if (!end) continue;
        end += strlen("</svg>");
        VQ_TRY(vq_arena_alloc(arena, (size_t)(end - start) + 1, (void **)&figures[i].svg));
        copy_svg(figures[i].svg, start, end, i == 0);
        text = end;
    }
    return VQ_OK;
}

static vq_status draw(vq_arena *arena, vq_figure *figures, int n, const int files[3],
                      const char **why)
{
    char *output, *errors, *text;
    FILE *script = fdopen(dup(files[0]), "w");
    VQ_CHECK(script, VQ_EMEM, "gnuplot's script: %s: expected room in memory. Free some memory",
             strerror(errno));
    for (int i = 0; i < n; i++) put_figure(script, &figures[i]);
    VQ_CHECK(fclose(script) == 0, VQ_EMEM,
             "gnuplot's script: %s: expected room in memory. Free some memory", strerror(errno));
    VQ_ASSERT(lseek(files[0], 0, SEEK_SET) == 0);
    const int code = run_gnuplot(files);
    VQ_TRY(read_back(arena, files[1], &output));
    VQ_TRY(read_back(arena, files[2], &errors));
    VQ_TRY(take_figures(arena, output, figures, n));
    *why = NULL;
    if (code == 0 && n > 0 && figures[n - 1].svg) return VQ_OK;
    for (int i = 0; i < n; i++) figures[i].svg = NULL;
    *why = "gnuplot was not found: install it (Debian: gnuplot-nox), then run vqround report again";
    if (code == 127) return VQ_OK;
    VQ_TRY(vq_arena_alloc(arena, 512, (void **)&text));
    while (*errors == '\n') errors++;
    snprintf(text, 512, "gnuplot ended with code %d: %.400s", code, errors);
    *why = text;
    return VQ_OK;
}

vq_status vq_plot_draw(vq_arena *arena, vq_figure *figures, int n, const char **why)
{
    int files[3];
    vq_status status = VQ_OK;
    *why = NULL;
    if (n == 0) return VQ_OK;
    for (int i = 0; i < 3; i++) files[i] = memfd_create("gnuplot", MFD_CLOEXEC);
    if (files[0] < 0 || files[1] < 0 || files[2] < 0)
        status = vq_error_set(VQ_EMEM, __FILE__, __LINE__,
                              "gnuplot's files: %s: expected room in memory. Free some memory",
                              strerror(errno));
    else
        status = draw(arena, figures, n, files, why);
    for (int i = 0; i < 3; i++)
        if (files[i] >= 0) close(files[i]);
    return status;
}
