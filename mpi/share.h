/* share.h - what runs have in common is made by one of them (--share DIR).
 *
 * A phase that others may need asks first: share_begin finds its files in DIR/WHAT-KEY, or lets one
 * run make them, or waits while another does. The folder of a key appears complete or not at all;
 * only who holds DIR/WHAT-KEY.lock makes it, and a holder that dies loses the lock (lock.h). Files
 * are hard links into the run folder, or copies on another disk. Without --share nothing is done.
 */
#pragma once
#include "job.h"
#include "lock.h"

typedef struct vq_share {
    vq_job *job;
    const char *what, *prefix; /* borrowed */
    char *dir;                 /* DIR/WHAT-KEY, in the run arena; NULL: nothing is shared */
    bool is_found;             /* the files are there */
    vq_lock lock;              /* on rank 0 of the run that makes them */
} vq_share;

/* Before a phase whose files RUN/prefix* depend on `key` alone (rank 0's counts). Then is_found,
 * with links to the files in the run folder when `link`, or this run makes them. The struct must
 * not move until share_end. Collective. Fails: VQ_ESTOPPED (a signal while waiting), VQ_EFILE,
 * VQ_EMEM. */
vq_status vq_share_begin(vq_job *job, const char *what, uint64_t key, const char *prefix, bool link,
                         vq_share *share);

/* After it: offers what this run made, or, when the phase failed, lets another run try. Returns
 * status, or how offering failed. Collective. */
vq_status vq_share_end(vq_share *share, vq_status status);
