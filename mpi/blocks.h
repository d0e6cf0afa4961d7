/* blocks.h - each layer trained by itself, before the training end to end.
 *
 * Layer after layer, train.block_steps steps of Adam on its logits (and learned scales) make it
 * give what the teacher's layer gives, from the student's own input: the loss of a step is
 *
 *   sum over tokens of |y - t|^2 / (mean over all tokens of |t|^2), divided by the number of
 *   sequences in the step
 *
 * plus block_round_weight times the regularizer. Then the student's input of the next layer is what
 * this one gives, rounded as in the training. The windows of a step are those of the training's; a
 * stage begins when the one before hands it the teacher's and the student's inputs of its first
 * layer, and replicas add up their gradients: any number of stages gives the same bits.
 *
 * Each layer leaves RUN/blocks-LAYER.h5: by linear's name codes and, of learned scales, factor. A
 * run that was ended goes on with the layers that lack theirs. */
#pragma once
#include "sweep.h"

/* Trains the layers or reads what an earlier run trained, on all ranks of the pool. Collective.
 * Fails: VQ_ENOTFINITE (with the layer); VQ_EFILE, VQ_EMEM, VQ_EPEER; VQ_ESTOPPED (asked for, after
 * a layer). */
vq_status vq_blocks_train(vq_job *job, const vq_data *data, double *seconds);
