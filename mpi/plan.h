/* plan.h - what a job will need, worked out from config.json and the settings alone.
 *
 * Memory of every rank in its dearest phase, bytes that pass between ranks in a step, the idle
 * share of the pipeline, operations, time, and the disk that the run folder takes. Nothing of the
 * model but its shapes is read. Texts are not looked at: what reading and tokenizing them takes, on
 * rank 0 before the other phases, is not in the plan. */
#pragma once
#include "plan_memory.h"
#include "plan_time.h"

typedef struct vq_plan {
    vq_plan_input input;
    vq_plan_rank *rank; /* [n_ranks] */
    int n_stages, n_replicas;
    vq_plan_step step;
    vq_plan_seconds seconds;
    struct {
        double init, teacher, checkpoints, model, total;
    } disk_bytes;
} vq_plan;

/* The shapes of the model in folder dir: its config.json, parsed. Fails: VQ_EFILE, VQ_EUNSUPPORTED.
 */
vq_status vq_plan_model_read(vq_arena *arena, const char *dir, vq_plan_model *model);

/* Works the plan out. Pure but for the arena. Fails: VQ_EUSAGE (ranks, stages and replicas do not
 * fit), VQ_EMEM. */
vq_status vq_plan_make(vq_arena *arena, const vq_plan_input *input, vq_plan *plan);
