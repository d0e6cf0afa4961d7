/* guard - signals and the time limit. */
#include "guard.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "log.h"

#define ANSWER                                                                                     \
    "stop     is asked for: at the end of this step, layer or phase, whose work is kept\n"

static volatile sig_atomic_t caught;
static const char *answer; /* to the first signal: a phase may take much longer than a step */
static double limit_s, start_s;

static void on_signal(int number)
{
    if (caught && number == SIGINT) {
        signal(SIGINT, SIG_DFL);
        raise(SIGINT);
    }
    const int e = errno;
    if (!caught && answer && write(STDERR_FILENO, answer, strlen(answer)) < 0) answer = NULL;
    errno = e;
    caught = number;
}

void vq_guard_init(double max_hours, bool says)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    static const int numbers[] = {SIGUSR1, SIGTERM, SIGINT};
    for (int i = 0; i < VQ_COUNT(numbers); i++) sigaction(numbers[i], &action, NULL);
    caught = 0;
    answer = !says ? NULL : isatty(STDERR_FILENO) ? "\r\033[K" ANSWER : ANSWER;
    limit_s = max_hours * 3600;
    start_s = vq_seconds();
}

const char *vq_guard_stop(double next_s)
{
    static char text[32];
    if (caught) {
        snprintf(text, sizeof text, "signal %d", (int)caught);
        return text;
    }
    return limit_s > 0 && vq_seconds() - start_s + next_s > limit_s ? "max_hours" : NULL;
}

vq_status vq_guard_stopped(const char *out, const char *unit, int64_t i, double next_s)
{
    const char *reason = vq_guard_stop(next_s);
    VQ_FAIL(VQ_ESTOPPED,
            "%s: stopped by %s after %s %lld, as asked. Run the same command again to go on", out,
            reason ? reason : "another rank", unit, (long long)i);
}

vq_status vq_guard_unit(const char *out, const char *unit, int64_t i, double next_s)
{
    return vq_guard_stop(next_s) ? vq_guard_stopped(out, unit, i, next_s) : VQ_OK;
}

vq_status vq_guard_check(const char *out)
{
    VQ_CHECK(!caught, VQ_ESTOPPED,
             "%s: stopped by signal %d, as asked. Run the same command again to go on", out,
             (int)caught);
    return VQ_OK;
}
