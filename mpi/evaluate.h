/* evaluate.h - perplexity of the model in one of its modes.
 *
 * exp of the mean next-token loss over whole windows; each window's first token is not predicted.
 */
#pragma once
#include "pipeline.h"

typedef struct vq_eval_result {
    double perplexity;       /* finite: 1e304 where the mean loss is above 700 */
    int64_t windows, tokens; /* tokens: of the windows, predicted or not */
    double seconds;
} vq_eval_result;

/* Where the losses so far are kept, and of which weights and text they are. */
typedef struct vq_eval_kept {
    char *path;
    uint64_t key;
} vq_eval_kept;

/* Runs the windows through the stages, dealt out to the replicas. Collective. label names the pass
 * in the progress line. kept: NULL, or the losses are kept each sixteenth of the windows, where a
 * job that is asked to stops (VQ_ESTOPPED); a file of this key is gone on with, on any ranks, to
 * the same bits. Fails: VQ_ENOTFINITE (a window whose loss is not finite), VQ_EINTERNAL, VQ_EMEM,
 * VQ_EFILE. */
vq_status vq_evaluate(vq_job *job, const vq_stage *stage, vq_mode mode, const vq_windows *windows,
                      const char *label, const vq_eval_kept *kept, vq_eval_result *result);

/* Sets job->together where no plan has: where GPUs do not keep all of the stages' own weights, as
 * many micro-batches of these windows as their memory lets pass for each bringing of the rest.
 * Collective. Fails: VQ_EPEER. */
vq_status vq_evaluate_together(vq_job *job, const vq_stage *stage, const vq_windows *windows);

/* vq_evaluate, kept in RUN/eval.json under label: a result that is there with the same key is not
 * computed again. key: of the weights that the mode uses. share: other runs may need it too
 * (share.h). */
vq_status vq_evaluate_once(vq_job *job, const vq_stage *stage, vq_mode mode, const vq_data *data,
                           const char *label, uint64_t key, bool share, vq_eval_result *result);
