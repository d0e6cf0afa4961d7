/* log - messages and progress bars on stderr. */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BAR_WIDTH 24
#define TERMINAL_INTERVAL_S 0.1
#define LOG_INTERVAL_S 10.0

static struct {
    vq_log_level level;
    int rank;
    bool bar_open; /* the terminal's last line is a bar without a newline */
} state = {VQ_LOG_INFO, 0, false};

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
    double now = vq_seconds();
    *p = (vq_progress){.name = name,
                       .unit = unit,
                       .total = total,
                       .done = first,
                       .first = first,
                       .start_s = now,
                       .shown_s = now};
}

static void show(vq_progress *p, bool terminal)
{
    char eta[32] = "?", bar[BAR_WIDTH + 1];
    double spent = vq_seconds() - p->start_s;
    if (p->done > p->first)
        vq_duration_text(spent * (double)(p->total - p->done) / (double)(p->done - p->first), eta);
    int filled = p->total > 0 ? (int)(p->done * BAR_WIDTH / p->total) : BAR_WIDTH;
    for (int i = 0; i < BAR_WIDTH; i++) bar[i] = i < filled ? '=' : ' ';
    bar[BAR_WIDTH] = '\0';
    if (terminal) {
        fprintf(stderr, "\r\033[K%-8s [%s] %lld/%lld %s, %s left  %s", p->name, bar,
                (long long)p->done, (long long)p->total, p->unit, eta, p->note);
        fflush(stderr);
        state.bar_open = true;
    } else {
        fprintf(stderr, "%-8s %lld/%lld %s, %s left  %s\n", p->name, (long long)p->done,
                (long long)p->total, p->unit, eta, p->note);
    }
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
    bool terminal = isatty(STDERR_FILENO);
    double now = vq_seconds();
    if (state.rank != 0 || state.level < VQ_LOG_INFO ||
        now - p->shown_s < (terminal ? TERMINAL_INTERVAL_S : LOG_INTERVAL_S))
        return;
    p->shown_s = now;
    show(p, terminal);
}

void vq_progress_end(vq_progress *p)
{
    char spent[32];
    vq_duration_text(vq_seconds() - p->start_s, spent);
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
