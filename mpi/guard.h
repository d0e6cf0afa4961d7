/* guard.h - how a job ends early: on a signal or a time limit, after the step or layer at hand.
 *
 * SIGUSR1 (Slurm: --signal=USR1@120), SIGTERM and the first Ctrl-C only set a flag; the training
 * loop sees it at the end of a step, writes a checkpoint and leaves with VQ_ESTOPPED; phases that
 * go layer by layer, or through the windows part by part, see it at the end of one, whose file is
 * there by then; what is left (tokens, the export) is finished first. Who sends it is told so at
 * once. A second Ctrl-C ends the process at once. */
#pragma once
#include "base.h"

/* Installs the handlers and starts the clock; max_hours 0: no limit. says: this process answers a
 * signal with a line on stderr. Local. */
void vq_guard_init(double max_hours, bool says);

/* Why the job should stop now ("signal 10", "max_hours"), or NULL. next_s is what the next step
 * will take: the limit is kept, not passed; -INFINITY: signals alone. */
const char *vq_guard_stop(double next_s);

/* VQ_ESTOPPED if the job should stop now, after unit i ("layer", "window"), whose work is kept;
 * what comes next takes next_s. */
vq_status vq_guard_unit(const char *out, const char *unit, int64_t i, double next_s);

/* Fails so: the job stops after this unit, for this rank's reason or another's. */
vq_status vq_guard_stopped(const char *out, const char *unit, int64_t i, double next_s);

/* VQ_ESTOPPED if a signal came, for the end of a phase: what was made is in the run folder out. */
vq_status vq_guard_check(const char *out);
