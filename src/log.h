/* log.h - what the program says while it works: messages and progress, on stderr.
 *
 * In a job of many ranks only rank 0 speaks, except for VQ_LOG_ERROR. On a terminal progress is a
 * bar that is drawn again; in a log file it is a line now and then. */
#pragma once
#include "base.h"

typedef enum vq_log_level { VQ_LOG_ERROR, VQ_LOG_WARN, VQ_LOG_INFO, VQ_LOG_DEBUG } vq_log_level;

/* Sets the level up to which messages are shown, and this process's rank (others than 0 show
 * only errors). The default is VQ_LOG_INFO, rank 0. Local. */
void vq_log_init(vq_log_level level, int rank);

/* Writes one line. Local. */
void vq_log(vq_log_level level, const char *fmt, ...) VQ_PRINTF(2, 3);

/* Seconds of a clock that only goes forward. */
double vq_seconds(void);

/* A running phase of `total` units of work. */
typedef struct vq_progress {
    const char *name; /* borrowed: the caller */
    const char *unit; /* borrowed: "windows", "steps" */
    int64_t total, done, first;
    double start_s;
    char note[96];
} vq_progress;

/* Starts a phase; first is what a resumed phase has done already. */
void vq_progress_begin(vq_progress *p, const char *name, const char *unit, int64_t first,
                       int64_t total);

/* done units are finished; fmt (may be NULL) is a short note such as the loss. */
void vq_progress_step(vq_progress *p, int64_t done, const char *fmt, ...) VQ_PRINTF(3, 4);

/* What is at work takes the running phase from `from` to `to` units beyond those that are done;
 * then parts of it: i of n are through. A unit may take minutes; where no phase runs, nothing. */
void vq_progress_span(double from, double to);
void vq_progress_part(int64_t i, int64_t n);

/* Units that are through in the running phase, with parts; 0 where none runs. */
double vq_progress_units(void);

/* f is called at every sign of progress, by the thread that makes it; NULL: nothing is. */
void vq_progress_watch(void (*f)(void *ctx), void *ctx);

/* Ends the phase with a line that says how long it took. */
void vq_progress_end(vq_progress *p);

/* "1h 02m", "3m 20s", "4.2s", "35ms" into text. Returns text. */
const char *vq_duration_text(double seconds, char text[32]);

/* "6.738 billion", "1.153 million", "512" into text. Returns text. */
const char *vq_count_text(double count, char text[32]);

/* "1.5 GiB" into text. Returns text. */
const char *vq_bytes_text(double bytes, char text[32]);
