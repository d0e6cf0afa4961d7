/* plan_time.h - operations of the stages, and the time that a step and the phases take. */
#pragma once
#include "plan_view.h"

/* Operations of a stage: of one sequence through it, the head's in forward, and of its init. */
typedef struct vq_plan_work {
    double forward, backward, codes;
    double teacher; /* its forward */
    double init;    /* grids and codebooks */
} vq_plan_work;

/* What a step sends, computes and takes. */
typedef struct vq_plan_step {
    int64_t links_within, links_between;  /* neighbouring stages on one node, on two */
    double forward_bytes, backward_bytes; /* over each such link */
    double reduce_bytes, broadcast_bytes; /* the pool's gradient; its codes */
    double ids_bytes;                     /* that rank 0 sends */
    double flops;                         /* of all ranks */
    double idle_ratio;                    /* of the stages, while the pipeline is at work */
    double seconds;                       /* 0: not known */
} vq_plan_step;

typedef struct vq_plan_seconds {
    double init, blocks, teacher, train, eval, total; /* 0: not known */
} vq_plan_seconds;

/* keep, keeps_weights: what training keeps for the backward, and of the weights that it makes. */
vq_plan_work vq_plan_work_of(const vq_plan_view *v, vq_keep keep, bool keeps_weights);

/* Operations, idle share and time of a step whose bytes are there. topo: any rank's; by_stage
 * [topo->n_stages]. Without a speed the time stays 0. Fails: VQ_EMEM (arena). */
vq_status vq_plan_step_time(vq_arena *arena, const vq_plan_input *in, const vq_topo *topo,
                            const vq_plan_work *by_stage, vq_plan_step *step);

/* The times of the phases; all stay 0 without a speed. */
void vq_plan_times(const vq_plan_input *in, const vq_topo *topo, const vq_plan_work *by_stage,
                   const vq_plan_step *step, vq_plan_seconds *seconds);
