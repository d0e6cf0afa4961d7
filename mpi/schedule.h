/* schedule.h - what a stage does in a step, in order: a pure function.
 *
 * 1F1B over the step's sequences (micro-batches): a stage runs ahead by as many forwards as there
 * are stages after it, then takes a forward and a backward in turn, so that no more sequences are
 * in flight than that. Each sequence may pass in slices of tokens: forwards in order, then
 * backwards in reverse, since keys get gradients from all later queries; the codebooks' gradient
 * comes once a sequence, after its last backward, when the gradient has left for the stage before.
 */
#pragma once
#include "model.h"

typedef enum vq_step_kind { VQ_FORWARD, VQ_BACKWARD, VQ_CODES } vq_step_kind;

typedef struct vq_step {
    vq_step_kind kind;
    int micro, slice; /* VQ_CODES: slice 0 */
} vq_step;

/* Steps of one stage: n_micro (2 n_slices + 1). */
int64_t vq_schedule_count(int n_micro, int n_slices);

/* The steps of stage `stage` of n_stages, out [vq_schedule_count]. */
void vq_schedule_make(int stage, int n_stages, int n_micro, int n_slices, vq_step *out);

/* Sequences that a stage holds at once at most. */
int vq_schedule_in_flight(int stage, int n_stages, int n_micro);

/* Cuts T tokens into n_slices of about equal cost: a later token attends to more keys.
 * cut [n_slices + 1], out. n_slices <= T. */
void vq_slice_cut(const vq_model_config *config, int64_t T, int n_slices, int64_t *cut);

/* Times of the simulation below, of a whole sequence in one stage. */
typedef struct vq_stage_cost {
    double forward_s, backward_s, codes_s; /* backward: of the input alone */
    double message_s;                      /* from one stage to the next, a whole sequence */
} vq_stage_cost;

/* The part of a step, from its first to its last work, in which the average stage has nothing to
 * do. share [n_slices]: each slice's part of a sequence's cost. cost [n_stages]. Messages travel
 * while both stages work. Fails: VQ_EMEM (scratch), VQ_EINTERNAL (the stages wait in a circle). */
vq_status vq_schedule_idle(vq_arena *scratch, int n_stages, int n_micro, int n_slices,
                           const double *share, const vq_stage_cost *cost, double *idle);
