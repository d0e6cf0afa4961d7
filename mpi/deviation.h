/* deviation.h - how far the rounded weights of each linear are from the model's own. */
#pragma once
#include "job.h"

/* Compares the weights of `mode` and those rounded to nearest on the same grid with the model's,
 * and writes RUN/layers.jsonl on rank 0: a line a quantized linear, by layer, with
 *
 *   name        as in the checkpoint, "model.layers.0.mlp.up_proj"
 *   error       |Wq - W| / |W|
 *   rtn_error   the same of the weights rounded to nearest
 *   moved_ratio share of the weights that are not rounded to nearest
 *
 * Each rank does its own layers, one matrix at a time. Collective.
 * Fails: VQ_EFILE, VQ_EMEM, as vq_vqlinear_weight. */
vq_status vq_deviation_write(vq_job *job, vq_mode mode);
