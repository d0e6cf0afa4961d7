/* pipeline.h - running micro-batches through the stages: forward only, or by the training schedule.
 *
 * What passes between stages is begun without blocking: a stage has the next message posted before
 * it computes, and its own results on the way while it goes on. */
#pragma once
#include "schedule.h"
#include "stream.h"

/* On the last stage, for windows [first, first + count): ids i32 [count, T] (host), hidden act
 * [count * T, E_embed]. */
typedef vq_status (*vq_hidden_fn)(void *ctx, int64_t first, int64_t count, const vq_tensor *ids,
                                  vq_tensor *hidden);

/* Windows of T tokens that are one micro-batch of an evaluation: each weight is made once for them.
 * Pure. */
int64_t vq_pipeline_windows(int64_t T);

/* One message of the stream through the stages, `together` micro-batches of `micro` windows at a
 * time, for which each weight is brought or made once; how many go together changes no bits.
 * Nothing is kept. Collective over the replica. Fails: VQ_EPEER, and what f fails with. */
vq_status vq_pipeline_forward(vq_job *job, const vq_stage *stage, vq_mode mode, vq_stream *stream,
                              int64_t micro, int64_t together, vq_hidden_fn f, void *ctx);

/* What the training schedule needs. */
typedef struct vq_pipeline {
    vq_job *job;
    vq_mode mode; /* of the student */
    int64_t T;
    int n_slices;
    int64_t *cut;                           /* [n_slices + 1] */
    int n_sets, max_micro;                  /* sequences in flight; sequences a step at most */
    struct vq_set *set;                     /* [n_sets] */
    vq_tensor from_before[2], from_next[2]; /* act [longest slice, E], where messages arrive */
    vq_request before_request[2], next_request[2];
    vq_step *step; /* the schedule */
} vq_pipeline;

/* The loss of tokens [first, first + n) of the step's sequence `micro`, on the last stage.
 * ids i32 [T]; hidden, dhidden act [n, E_embed]; dhidden is out. */
typedef vq_status (*vq_loss_fn)(void *ctx, int64_t micro, int64_t first, const vq_tensor *ids,
                                const vq_tensor *hidden, vq_tensor *dhidden);

/* Memory for at most max_micro sequences of T tokens a step and replica. */
vq_status vq_pipeline_init(vq_arena *arena, vq_job *job, int64_t T, int max_micro, int n_slices,
                           vq_keep keep, vq_pipeline *p);

/* Bytes that it takes. */
size_t vq_pipeline_bytes(const vq_job *job, int64_t T, int max_micro, vq_keep keep);

/* Forward and backward of n_micro sequences, ids i32 [n_micro, T] at the ends: adds to the
 * gradients of the stage's codebooks. Collective over the replica. Fails: VQ_EPEER, what f does. */
vq_status vq_pipeline_step(vq_pipeline *p, int n_micro, const vq_tensor *ids, vq_loss_fn f,
                           void *ctx);
