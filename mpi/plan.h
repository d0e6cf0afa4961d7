/* plan.h - what a job will need, worked out from config.json and the settings alone.
 *
 * Memory of every rank in its dearest phase, bytes that pass between ranks in a step, the idle
 * share of the pipeline, operations, time, and the disk that the run folder takes. Nothing of the
 * model but its shapes is read. Texts are not looked at: what reading and tokenizing them takes, on
 * rank 0 before the other phases, is not in the plan. */
#pragma once
#include "pipeline.h"

/* What takes a rank's memory. */
typedef enum vq_plan_part {
    VQ_PLAN_WEIGHTS,  /* pages of the model's files; the system may take them back */
    VQ_PLAN_INTEGERS, /* base, scale, zero, indices, counts of its layers */
    VQ_PLAN_CODES,    /* the pool, its gradient, on rank 0 Adam's moments */
    VQ_PLAN_KEPT,     /* activations for the backward */
    VQ_PLAN_TEACHER,  /* the teacher's states of a step */
    VQ_PLAN_WORK,     /* inside functions, and messages on their way */
    VQ_PLAN_PROGRAM,  /* libraries, threads, tables */
    VQ_PLAN_N_PARTS
} vq_plan_part;

typedef enum vq_plan_phase {
    VQ_PLAN_INIT,
    VQ_PLAN_BLOCKS, /* the layers one by one */
    VQ_PLAN_CACHE,  /* the teacher's pass */
    VQ_PLAN_TRAIN,
    VQ_PLAN_EVAL,
    VQ_PLAN_EXPORT,
    VQ_PLAN_N_PHASES
} vq_plan_phase;

const char *vq_plan_phase_name(vq_plan_phase phase);

/* The shapes of a model and the type of its weights. */
typedef struct vq_plan_model {
    vq_model_config config;
    vq_dtype dtype;
} vq_plan_model;

/* What is to be planned. */
typedef struct vq_plan_input {
    const vq_config *config;      /* borrowed */
    const vq_plan_model *model;   /* borrowed */
    const vq_plan_model *teacher; /* borrowed; model itself where there is no other */
    vq_dtype act;                 /* of activations */
    int n_ranks, n_nodes;         /* ranks fill the nodes in order */
    int threads;                  /* of a rank */
    double memory_bytes;          /* that a rank may take; 0: not known, no limit */
    double gflops;                /* of a rank; 0: not known, no times */
} vq_plan_input;

typedef struct vq_plan_rank {
    vq_topo topo;
    int node;
    vq_keep keep;                  /* what training keeps for the backward */
    vq_plan_phase phase;           /* in which it takes most */
    double bytes[VQ_PLAN_N_PARTS]; /* then */
    double total_bytes;            /* their sum */
    double fixed_bytes;            /* most over the phases without what the system can take back */
} vq_plan_rank;

typedef struct vq_plan {
    vq_plan_input input;
    vq_plan_rank *rank; /* [n_ranks] */
    int n_stages, n_replicas;
    struct {                                  /* in a step */
        int64_t links_within, links_between;  /* neighbouring stages on one node, on two */
        double forward_bytes, backward_bytes; /* over each such link */
        double reduce_bytes, broadcast_bytes; /* the pool's gradient; its codes */
        double ids_bytes;                     /* that rank 0 sends */
        double flops;                         /* of all ranks */
        double idle_ratio;                    /* of the stages, while the pipeline is at work */
        double seconds;                       /* 0: not known */
    } step;
    struct {
        double init, blocks, teacher, train, eval, total; /* 0: not known */
    } seconds;
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

/* GFLOP/s of matrix products on this machine with a rank's threads, in about a second. Local. */
vq_status vq_plan_measure(const vq_backend *be, vq_arena *scratch, double *gflops);

/* The tables, or one JSON object on one line. */
void vq_plan_print(const vq_plan *plan);
void vq_plan_print_json(const vq_plan *plan);

/* `vqround plan`: reads, measures, prints; on rank 0, for --ranks or the ranks of this job. Fails:
 * as the above. */
vq_status vq_plan_run(const vq_config *config, const vq_comm *comm);

/* Plans an open job, says so in the log, and sets job->keep. Where neither stages nor replicas were
 * given it also sets job->topo: the most replicas, of those that the batch can share, for which
 * every node has the memory. Collective.
 * Fails: VQ_EMEM on every rank when the ranks of a node need more memory than it has free: before
 * anything is loaded, with the number short and the keys that lower it. */
vq_status vq_plan_job(vq_job *job);
