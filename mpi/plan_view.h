/* plan_view.h - what is planned, and what one rank sees of it: its layers, and shapes alone. */
#pragma once
#include "codebook.h"
#include "job.h"

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
    bool on_gpu;                  /* a rank's memory is its GPU's */
    int n_ranks, n_nodes;         /* ranks fill the nodes in order */
    int threads;                  /* of a rank */
    double memory_bytes;          /* that a rank may take; 0: not known, no limit */
    double gflops;                /* of a rank; 0: not known, no times */
} vq_plan_input;

/* What is summed over a run of layers. */
typedef struct vq_plan_sums {
    double weights, quantized;   /* of linears */
    double integers, codes;      /* bytes; codes: what is trained, once */
    double gptq;                 /* bytes of GPTQ's integers, which its files have in any case */
    double largest;              /* weights of the largest linear */
    double packed, packed_bytes; /* weights that the exported model has packed, and their bytes */
} vq_plan_sums;

/* A rank's own view: its place, and an empty stage of a model for functions that need shapes. */
typedef struct vq_plan_view {
    const vq_plan_input *in; /* borrowed */
    const vq_config *c;      /* borrowed: in */
    vq_job job;              /* with topology, backend types, shapes and stage alone */
    vq_model teacher;        /* its shapes */
    vq_stage teacher_stage;
    vq_plan_sums own, teacher_own, all;
    double act, weight, teacher_weight; /* bytes of an element */
    int max_micro;                      /* sequences of a step at most */
    bool is_first, is_last;
} vq_plan_view;

/* The view from this place among the model's layers, and among the teacher's. v points into itself:
 * it must not move. */
void vq_plan_see(vq_plan_view *v, const vq_plan_input *in, const vq_topo *topo,
                 const vq_topo *teacher);

/* Over the layers [first, last) of a model. */
vq_plan_sums vq_plan_sum(const vq_config *c, const vq_model_config *m, int64_t first, int64_t last);

/* Whether every rank holds everything that is trained; all: the sums over the model. */
bool vq_plan_pool_is_whole(const vq_config *c, const vq_plan_sums *all);

/* The settings that sizes of codebooks depend on. */
vq_codebook_config vq_plan_codebook(const vq_config *c);
