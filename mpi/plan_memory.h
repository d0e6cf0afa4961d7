/* plan_memory.h - the memory of a rank, by phase and by what takes it. */
#pragma once
#include "plan_view.h"

/* What takes a rank's memory. */
typedef enum vq_plan_part {
    VQ_PLAN_WEIGHTS,  /* pages of the model's files, which the system may take back; on a GPU
                         embedding and head, and the linears' own weights that stay there */
    VQ_PLAN_INTEGERS, /* base, scale, zero, indices, counts of its layers */
    VQ_PLAN_CODES,    /* the pool, its gradient, on rank 0 Adam's moments */
    VQ_PLAN_KEPT,     /* activations for the backward, and weights made for all of a step */
    VQ_PLAN_TEACHER,  /* the teacher's states of a step */
    VQ_PLAN_WORK,     /* inside functions, and messages on their way */
    VQ_PLAN_PROGRAM,  /* libraries, threads, tables; on a GPU its context */
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

typedef struct vq_plan_rank {
    vq_topo topo;
    int node;
    vq_keep keep;                  /* what training keeps for the backward */
    bool keeps_weights;            /* and whether what a step makes of the codes */
    vq_plan_phase phase;           /* in which it takes most */
    double bytes[VQ_PLAN_N_PARTS]; /* then */
    double total_bytes;            /* their sum */
    double fixed_bytes; /* most over the phases without what the system can take back, or without
                           the linears' own weights on a GPU */
    double hold_bytes;  /* on a GPU: of the linears' own weights that stay there in the passes with
                           them; the others are brought each time */
    double own_bytes;   /* on a GPU: all of these weights */
    int64_t together;   /* micro-batches that pass for each bringing of them; all ranks' */
} vq_plan_rank;

/* Adds to brought[i] the bytes that this rank's GPU is brought of the linears' own weights in a
 * pass of the calibration's windows when 2^i micro-batches go together; infinite where that does
 * not fit. */
#define VQ_PLAN_TOGETHER 7
void vq_plan_brought(const vq_plan_view *v, double brought[VQ_PLAN_TOGETHER]);

/* Decides r->keep, r->keeps_weights and r->hold_bytes and fills in what follows it; the members
 * before it and r->together are the caller's. */
void vq_plan_memory(const vq_plan_view *v, vq_plan_rank *r);
