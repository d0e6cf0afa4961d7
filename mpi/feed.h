/* feed.h - the token windows of a job: made once on rank 0, kept in tokens.h5, streamed by step. */
#pragma once
#include "calib.h"
#include "job.h"

/* Rank 0 alone holds the windows' ids; the others know how many there are and of what length. */
typedef struct vq_data {
    vq_windows calib; /* [nsamples, seqlen] */
    vq_windows eval;  /* n = 0 when evaluation is off */
    uint64_t calib_hash, eval_hash;
} vq_data;

/* Makes the windows from config.text (and config.eval.text, or the last tenth of the text), or
 * reads the calibration windows back from RUN/tokens.h5 when its key fits.
 * Collective: rank 0 works, all fail alike. Fails: VQ_EFILE (texts; a tokens.h5 of other settings),
 * VQ_EUNSUPPORTED (tokenizer), VQ_EMEM. */
vq_status vq_feed_prepare(vq_job *job, vq_data *data);

/* The calibration windows of RUN/tokens.h5, whatever became of the texts, for a run that is
 * finished. Collective. Fails: VQ_EFILE, VQ_EMEM. */
vq_status vq_feed_read(vq_job *job, vq_data *data);

/* The evaluation windows alone, for `vqround eval`. Collective. */
vq_status vq_feed_eval(vq_job *job, const vq_list *paths, vq_data *data);

/* Makes windows from a job's texts and writes them to `path`, for `vqround tokens`. Collective;
 * windows is filled on rank 0. */
vq_status vq_feed_write(vq_job *job, const char *path, vq_windows *windows);

/* Windows [first, first + count) as i32 [count, T]. */
vq_tensor vq_feed_ids(const vq_windows *windows, int64_t first, int64_t count);
