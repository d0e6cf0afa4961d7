/* folder.h - the run folder: one job at a time works in it, and all of it belongs to the same
 * settings. */
#pragma once
#include "job.h"
#include "lock.h"

typedef struct vq_folder {
    vq_lock lock; /* RUN/lock; must not move while it is open */
} vq_folder;

/* The settings that all files of a folder have in common: those of these phases. */
#define VQ_FOLDER_PHASES (VQ_PHASE_TOKENS | VQ_PHASE_INIT | VQ_PHASE_TEACHER | VQ_PHASE_TRAIN)

/* Makes the run folder, or finds that it belongs to the same settings, and takes its lock; removes
 * what an earlier run left half-written, with --no-resume all of its files; writes config.yaml.
 * Another job in the folder that may be dead is waited for, share.dead_s at most. Rank 0.
 * Fails: VQ_EUSAGE (another job works in it; other settings; the model to read, or one that no run
 * has made, lies where the new one goes), VQ_EFILE, VQ_ESTOPPED (a signal while waiting). */
vq_status vq_folder_open(vq_job *job, int argc, const char *const *argv, vq_folder *folder);

/* Gives the lock back. May be called for a folder that was not opened. */
void vq_folder_close(vq_folder *folder);
