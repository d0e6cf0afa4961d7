/* lock.h - a lock between processes on any machines that see one folder, also over NFS, where
 * flock may not hold.
 *
 * A lock is a folder; who holds it made the highest number in it, a folder with the holder's name,
 * which is renamed to its place: that is atomic, and fails where one is there. The next one may do
 * so when that number is free, or when its holder is dead: its process is gone from this machine,
 * or nothing was heard of it for dead_s. No number is ever taken away, so two who both find a
 * holder dead cannot both win. */
#pragma once
#include <limits.h>
#include <pthread.h>

#include "error.h"

/* A lock that may be held. Must not move while it is. */
typedef struct vq_lock {
    char place[PATH_MAX]; /* "": not held */
    double beat_s;
    pthread_t thread; /* tells the others that we live */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool is_over;
} vq_lock;

/* Takes the lock `path`, or finds that another process has it. dead_s: a holder that is silent so
 * long is dead; above the time for which NFS clients keep attributes (60 s). Local.
 * Fails: VQ_EFILE (the folder cannot be made or written), VQ_EMEM. */
vq_status vq_lock_try(const char *path, double dead_s, vq_lock *lock, bool *taken);

/* Gives a lock back that is held, and does nothing to another. A process that ends without it
 * counts as dead. Local. */
void vq_lock_free(vq_lock *lock);

/* Who holds the lock or held it last, "HOST process PID", into text. Returns text. */
const char *vq_lock_holder(const char *path, char text[320]);
