/* outcome.h - what a job has come to: results.json, the report and the closing table. */
#pragma once
#include "feed.h"
#include "init.h"
#include "report.h"
#include "train.h"

/* What is known of the results before the work, of a job with its layout. Pure. */
void vq_outcome_begin(const vq_job *job, vq_results *r);

/* Whether the run folder has the results of these settings and texts already, on any number of
 * ranks: if so they are printed, and in *r on rank 0. Sets r->key. Collective. */
vq_status vq_outcome_find(vq_job *job, const vq_data *data, vq_results *r, bool *is_finished);

/* Completes the results by what all ranks know, writes and prints them. The model is in its place.
 * Collective. Fails: VQ_EFILE, VQ_EMEM. */
vq_status vq_outcome_end(vq_job *job, const vq_init_stats *init, const vq_train_stats *trained,
                         double exported_bytes, vq_results *r);
