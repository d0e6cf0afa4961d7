/* guard.h - how a job ends early: on a signal or a time limit, after the step at hand.
 *
 * SIGUSR1 (Slurm: --signal=USR1@120), SIGTERM and the first Ctrl-C only set a flag; the training
 * loop sees it at the end of a step, writes a checkpoint and leaves with VQ_ESTOPPED; other phases
 * are finished first, since their files are whole or not there. Who sends it is told so at once. A
 * second Ctrl-C ends the process at once. */
#pragma once
#include "base.h"

/* Installs the handlers and starts the clock; max_hours 0: no limit. says: this process answers a
 * signal with a line on stderr. Local. */
void vq_guard_init(double max_hours, bool says);

/* Why the job should stop now ("signal 10", "max_hours"), or NULL. next_s is what the next step
 * will take: the limit is kept, not passed. */
const char *vq_guard_stop(double next_s);

/* VQ_ESTOPPED if a signal came, for the end of a phase: what was made is in the run folder out. */
vq_status vq_guard_check(const char *out);
