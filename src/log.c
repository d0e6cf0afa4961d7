/* log - messages and progress bars on stderr. */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define BAR_WIDTH 24
#define TERMINAL_INTERVAL_S 0.1
#define LOG_INTERVAL_S 10.0

static struct {
    vq_log_level level;
    int rank;
    bool bar_open;       /* the terminal's last line is a bar without a newline */
    vq_progress running; /* a copy: what runs may fail, and never end */
    double shown_s;
    double from, to, part; /* units beyond running.done */
    void (*watcher)(void *ctx);
    void *watcher_ctx;
} state = {.level = VQ_LOG_INFO};

void vq_log_init(vq_log_level level, int rank)
{
    state.level = level;
    state.rank = rank;
}

double vq_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void vq_log(vq_log_level level, const char *fmt, ...)
{
    if (level > state.level || (state.rank != 0 && level != VQ_LOG_ERROR)) return;
    static const char *const prefix[] = {"vqround: error: ", "vqround: warning: ", "", ""};
    char text[4096];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    fprintf(stderr, "%s%s%s\n", state.bar_open ? "\r\033[K" : "", prefix[level], text);
    state.bar_open = false;
}

void vq_progress_begin(vq_progress *p, const char *name, const char *unit, int64_t first,
                       int64_t total)
{
    const double now = vq_seconds();
    *p = (vq_progress){
        .name = name, .unit = unit, .total = total, .done = first, .first = first, .start_s = now};
    state.running = *p;
    state.shown_s = now;
    state.from = state.to = state.part = 0;
}

double vq_progress_units(void)
{
    return (double)state.running.done + state.part;
}

/* Shows what runs, unless it was shown a moment ago or is about to be told by its end. */
static void show(void)
{
    const bool terminal = isatty(STDERR_FILENO);
    const vq_progress *p = &state.running;
    const double now = vq_seconds(), units = vq_progress_units(), total = (double)p->total;
    char eta[32] = "?", bar[BAR_WIDTH + 1];
    if (state.rank != 0 || state.level < VQ_LOG_INFO || (!terminal && p->done >= p->total) ||
        now - state.shown_s < (terminal ? TERMINAL_INTERVAL_S : LOG_INTERVAL_S))
        return;
    state.shown_s = now;
    if (units > (double)p->first)
        vq_duration_text((now - p->start_s) * VQ_MAX(total - units, 0) / (units - (double)p->first),
                         eta);
    const int filled = units < total ? (int)(units * BAR_WIDTH / total) : BAR_WIDTH;
    for (int i = 0; i < BAR_WIDTH; i++) bar[i] = i < filled ? '=' : ' ';
    bar[BAR_WIDTH] = '\0';
    char text[256];
    snprintf(text, sizeof text, "%-8s %s%s%s%lld/%lld %s, %s left%s%s", p->name,
             terminal ? "[" : "", terminal ? bar : "", terminal ? "] " : "", (long long)p->done,
             (long long)p->total, p->unit, eta, p->note[0] ? "  " : "", p->note);
    /* A bar that wraps could not be drawn again. */
    struct winsize size;
    if (terminal && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 &&
        size.ws_col <= sizeof text)
        text[size.ws_col - 1] = '\0';
    fprintf(stderr, terminal ? "\r\033[K%s" : "%s\n", text);
    fflush(stderr);
    state.bar_open = terminal;
}

static void tell_watcher(void)
{
    if (state.watcher) state.watcher(state.watcher_ctx);
}

void vq_progress_watch(void (*f)(void *ctx), void *ctx)
{
    state.watcher = f;
    state.watcher_ctx = ctx;
}

void vq_progress_step(vq_progress *p, int64_t done, const char *fmt, ...)
{
    p->done = done;
    if (fmt) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(p->note, sizeof p->note, fmt, args);
        va_end(args);
    }
    state.running = *p;
    state.from = state.to = state.part = 0;
    tell_watcher();
    show();
}

void vq_progress_span(double from, double to)
{
    state.from = from;
    state.to = to;
}

void vq_progress_part(int64_t i, int64_t n)
{
    tell_watcher();
    if (!state.running.name) return;
    state.part = state.from + (state.to - state.from) * (double)i / (double)n;
    show();
}

void vq_progress_end(vq_progress *p)
{
    char spent[32];
    vq_duration_text(vq_seconds() - p->start_s, spent);
    state.running = (vq_progress){0};
    state.part = 0;
    vq_log(VQ_LOG_INFO, "%-8s %lld %s in %s%s%s", p->name, (long long)(p->done - p->first), p->unit,
           spent, p->note[0] ? "  " : "", p->note);
}

const char *vq_duration_text(double seconds, char text[32])
{
    int64_t s = (int64_t)(seconds + 0.5);
    if (seconds >= 0.0005 && seconds < 0.0995)
        snprintf(text, 32, "%.0fms", 1000 * seconds);
    else if (seconds < 60)
        snprintf(text, 32, "%.1fs", seconds);
    else if (s < 3600)
        snprintf(text, 32, "%dm %02ds", (int)(s / 60), (int)(s % 60));
    else
        snprintf(text, 32, "%lldh %02dm", (long long)(s / 3600), (int)(s % 3600 / 60));
    return text;
}

const char *vq_count_text(double count, char text[32])
{
    if (count < 1e6)
        snprintf(text, 32, "%.0f", count);
    else
        snprintf(text, 32, "%.4g %s", count / (count < 1e9 ? 1e6 : 1e9),
                 count < 1e9 ? "million" : "billion");
    return text;
}

const char *vq_bytes_text(double bytes, char text[32])
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int i = 0;
    for (; bytes >= 1024 && i < VQ_COUNT(unit) - 1; i++) bytes /= 1024;
    snprintf(text, 32, i ? "%.1f %s" : "%.0f %s", bytes, unit[i]);
    return text;
}
