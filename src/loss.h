/* loss.h - what is minimised: the task loss of the last stage and the rounding regularizer.
 *
 *   kd:  alpha tau^2 sum over tokens of KL(softmax(teacher / tau) || softmax(student / tau)),
 *        divided by the number of sequences in the step
 *   lm:  the mean cross-entropy of the next token over the step's targets
 *   reg: round_weight sum over all weights of 1 - |2 h(a) - 1|^beta, once a step */
#pragma once
#include "config.h"
#include "pool.h"

/* beta of a step (counted from 0) out of the training's, or of `steps`: beta_hi while step <= hold
 * steps, then falling by (beta_hi - beta_lo) step / steps. */
double vq_loss_beta(const vq_config *config, int64_t step);
double vq_loss_beta_of(const vq_config *config, int64_t step, int64_t steps);

/* Whether the regularizer is on in this step: from a tenth of the steps, if it has a weight and
 * roundings are soft. */
bool vq_loss_has_reg(const vq_config *config, int64_t step);
bool vq_loss_is_on(int64_t step, int64_t steps); /* whatever its weight */

/* The task loss of tokens [first, first + n) of one sequence and its gradient, on the last stage.
 *
 * hidden   act [n, E_embed]: lm_head's input
 * teacher  float [n, E_teacher]: the teacher's (kd; not read for lm)
 * head_teacher  the teacher's lm_head
 * ids      i32 [T] on the host, the whole sequence (lm: the targets are the next ids)
 * n_sequences  in the whole step, over all micro-batches and replicas
 * loss     added to, f64; there after vq_sync
 * dhidden  act as hidden, out; NULL: the value alone */
vq_status vq_loss_task(const vq_stage *stage, const vq_config *config, const vq_tensor *hidden,
                       const vq_tensor *teacher, const vq_tensor *head_teacher,
                       const vq_tensor *ids, int64_t first, int64_t n_sequences, double *loss,
                       vq_tensor *dhidden);

/* The regularizer of the stage's linears: its value by slot into by_slot [n_slots] (others are left
 * alone), there after vq_sync; its gradient added to theirs. */
vq_status vq_loss_reg(vq_stage *stage, const vq_config *config, int64_t step, double *by_slot);
