/* lock - numbered folders, and a thread that touches a file while one is held. */
#include "lock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fileio.h"

#define BEATS 6      /* in dead_s */
#define MAX_NAME 512 /* of what lies in a lock's folder */

/* Joins a path that was checked to be short enough. */
static const char *join(char out[PATH_MAX], const char *dir, const char *name)
{
    snprintf(out, PATH_MAX, "%.*s/%.*s", PATH_MAX - MAX_NAME, dir, MAX_NAME - 2, name);
    return out;
}

/* Makes an empty file, or sets the time of one to the file server's now. */
static bool touch(const char *path)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return false;
    const bool ok = futimens(fd, NULL) == 0;
    close(fd);
    return ok;
}

static bool modified_s(const char *path, double *s)
{
    struct stat st;
    if (stat(path, &st) != 0) return false;
    *s = (double)st.st_mtim.tv_sec + 1e-9 * (double)st.st_mtim.tv_nsec;
    return true;
}

/* --- who holds it ---------------------------------------------------------------------------- */

/* A process, and where its number means something. */
typedef struct holder {
    char host[256], machine[160];
    long pid;
    unsigned long long start; /* clock ticks: numbers are used again */
} holder;

static bool first_line(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "r");
    const bool ok = file && fgets(text, (int)size, file);
    if (file) fclose(file);
    if (ok) text[strcspn(text, "\n")] = '\0';
    return ok;
}

/* When a process of this machine was started; 0: there is none. */
static unsigned long long start_of(long pid)
{
    char path[64], text[1024];
    unsigned long long start = 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    if (!first_line(path, text, sizeof text)) return 0;
    const char *at = strrchr(text, ')'); /* the name may hold anything */
    for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
    return at && sscanf(at, "%llu", &start) == 1 ? start : 0;
}

/* This process. machine: of this boot and this namespace of process numbers, "-" if not known. */
static holder this_process(void)
{
    holder h = {.pid = (long)getpid(), .machine = "-"};
    char boot[64], space[64];
    const ssize_t n = readlink("/proc/self/ns/pid", space, sizeof space - 1);
    if (gethostname(h.host, sizeof h.host - 1) != 0 || !h.host[0]) strcpy(h.host, "-");
    h.start = start_of(h.pid);
    if (n <= 0 || !h.start) return h;
    space[n] = '\0';
    if (first_line("/proc/sys/kernel/random/boot_id", boot, sizeof boot))
        snprintf(h.machine, sizeof h.machine, "%s/%s", boot, space);
    return h;
}

static bool read_holder(const char *place, holder *h)
{
    char path[PATH_MAX], text[512];
    return first_line(join(path, place, "holder"), text, sizeof text) &&
           sscanf(text, "%255s %ld %llu %159s", h->host, &h->pid, &h->start, h->machine) == 4;
}

static bool write_holder(const char *place)
{
    char path[PATH_MAX];
    const holder h = this_process();
    FILE *file = fopen(join(path, place, "holder"), "w");
    if (!file) return false;
    fprintf(file, "%s %ld %llu %s\n", h.host, h.pid, h.start, h.machine);
    return fclose(file) == 0;
}

/* Whether the holder is known not to run; of other machines nothing is known. */
static bool is_gone(const char *place)
{
    holder h;
    const holder self = this_process();
    return read_holder(place, &h) && strcmp(self.machine, "-") != 0 &&
           strcmp(h.machine, self.machine) == 0 && start_of(h.pid) != h.start;
}

/* The time since the last sign of life, between two times of the file server: clocks differ. */
static double silence_s(const char *path, const char *place)
{
    char now[PATH_MAX], beat[PATH_MAX], name[320];
    const holder self = this_process();
    double now_s, beat_s, silent_s = 0;
    snprintf(name, sizeof name, "now-%s-%ld", self.host, self.pid);
    join(now, path, name);
    if (touch(now) && modified_s(now, &now_s) &&
        (modified_s(join(beat, place, "beat"), &beat_s) || modified_s(place, &beat_s)))
        silent_s = now_s - beat_s;
    unlink(now);
    return silent_s;
}

static bool is_free(const char *path, const char *place, double dead_s)
{
    char name[PATH_MAX];
    return vq_file_exists(join(name, place, "free")) || is_gone(place) ||
           silence_s(path, place) > dead_s;
}

/* The highest number in the lock's folder; 0: none. */
static vq_status last_number(const char *path, long *last)
{
    DIR *dir = opendir(path);
    if (!dir) return vq_file_error(path, "read");
    *last = 0;
    for (struct dirent *e; (e = readdir(dir));) {
        char *end;
        const long n = strtol(e->d_name, &end, 10);
        if (!*end && n > *last) *last = n;
    }
    closedir(dir);
    return VQ_OK;
}

const char *vq_lock_holder(const char *path, char text[320])
{
    char place[PATH_MAX], name[32];
    holder h;
    long last = 0;
    snprintf(text, 320, "an unknown process");
    if (last_number(path, &last) != VQ_OK) {
        vq_error_clear();
        return text;
    }
    snprintf(name, sizeof name, "%ld", last);
    if (read_holder(join(place, path, name), &h))
        snprintf(text, 320, "%s process %ld", h.host, h.pid);
    return text;
}

/* --- holding it ------------------------------------------------------------------------------ */

static struct timespec after(double s)
{
    struct timespec t;
    double whole;
    clock_gettime(CLOCK_REALTIME, &t);
    const double part = modf(s + 1e-9 * (double)t.tv_nsec, &whole);
    return (struct timespec){t.tv_sec + (time_t)whole, (long)(part * 1e9)};
}

static void *beat(void *arg)
{
    vq_lock *lock = arg;
    char path[PATH_MAX];
    join(path, lock->place, "beat");
    pthread_mutex_lock(&lock->mutex);
    while (!lock->is_over) {
        const struct timespec next = after(lock->beat_s);
        touch(path);
        pthread_cond_timedwait(&lock->changed, &lock->mutex, &next);
    }
    pthread_mutex_unlock(&lock->mutex);
    return NULL;
}

/* Starts the thread, which takes no signals: those are for the one that works. */
static bool start_beat(vq_lock *lock)
{
    sigset_t all, before;
    pthread_mutex_init(&lock->mutex, NULL);
    pthread_cond_init(&lock->changed, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const bool ok = pthread_create(&lock->thread, NULL, beat, lock) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return ok;
}

/* Makes the place with this process's name in it; false: another was first. */
static vq_status make_place(const char *path, const char *place, bool *made)
{
    char name[320], temporary[PATH_MAX], file[PATH_MAX];
    const holder self = this_process();
    snprintf(name, sizeof name, "new-%s-%ld", self.host, self.pid);
    join(temporary, path, name);
    if (mkdir(temporary, 0777) != 0 && errno != EEXIST) return vq_file_error(temporary, "made");
    if (!write_holder(temporary)) return vq_file_error(temporary, "written to");
    *made = rename(temporary, place) == 0;
    if (*made) return VQ_OK;
    const bool lost = errno == ENOTEMPTY || errno == EEXIST;
    vq_status status = lost ? VQ_OK : vq_file_error(place, "made");
    unlink(join(file, temporary, "holder"));
    rmdir(temporary);
    return status;
}

static void give_up(vq_lock *lock)
{
    char path[PATH_MAX];
    touch(join(path, lock->place, "free"));
    lock->place[0] = '\0';
}

vq_status vq_lock_try(const char *path, double dead_s, vq_lock *lock, bool *taken)
{
    char name[32], place[PATH_MAX];
    long last = 0;
    *taken = false;
    *lock = (vq_lock){.beat_s = dead_s / BEATS};
    VQ_CHECK(strlen(path) < PATH_MAX - 2 * MAX_NAME, VQ_EFILE,
             "%s: the path of a lock has %zu bytes, expected fewer than %d. Use a shorter path",
             path, strlen(path), PATH_MAX - 2 * MAX_NAME);
    VQ_TRY(vq_make_folders(path));
    VQ_TRY(last_number(path, &last));
    snprintf(name, sizeof name, "%ld", last);
    if (last > 0 && !is_free(path, join(place, path, name), dead_s)) return VQ_OK;
    snprintf(name, sizeof name, "%ld", last + 1);
    VQ_TRY(make_place(path, join(place, path, name), taken));
    if (!*taken) return VQ_OK;
    memcpy(lock->place, place, sizeof place);
    *taken = start_beat(lock);
    if (*taken) return VQ_OK;
    give_up(lock);
    VQ_FAIL(VQ_EMEM,
            "%s: no thread can be started for the lock: expected one more. Raise the limit of "
            "processes (ulimit -u)",
            path);
}

void vq_lock_free(vq_lock *lock)
{
    if (!lock->place[0]) return;
    pthread_mutex_lock(&lock->mutex);
    lock->is_over = true;
    pthread_cond_signal(&lock->changed);
    pthread_mutex_unlock(&lock->mutex);
    pthread_join(lock->thread, NULL);
    pthread_mutex_destroy(&lock->mutex);
    pthread_cond_destroy(&lock->changed);
    give_up(lock);
}
