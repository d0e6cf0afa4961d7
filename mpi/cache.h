/* cache.h - the teacher's final hidden states, kept so that the teacher runs once.
 *
 * lm_head is not quantized, so its input is all that is needed to have the teacher's logits again:
 * 6 to 148 times less than the logits. Part by part each replica's last stage writes
 * RUN/teacher-RANK-PART.h5 with "hidden" [n, T, E_embed] of its windows in the model's own type,
 * and which windows they are; any later layout of ranks can read them, and makes the parts that
 * lack one. With teacher.cache off the teacher runs in every step. */
#pragma once
#include "pipeline.h"

typedef struct vq_teacher {
    vq_job *job;
    vq_stage stage; /* its layers on this rank */
    bool is_cached;
    vq_dtype dtype; /* of the cached states */
    vq_h5 *file;    /* [n_files] open for reading while is_cached, on last stages */
    int64_t n_files;
    int32_t *in_file;      /* [n_windows] the file that has a window; -1: none */
    int64_t *row;          /* [n_windows] and where */
    vq_stream stream;      /* without a cache: the windows of each step again */
    vq_tensor hidden;      /* the step's states: [max_micro, T, E_embed] */
    int64_t first, n_read; /* the step's first window, and how many of its windows are in hidden */
    double kl; /* between the teacher and its cached self, tau 1, a token, first window */
    double seconds;
} vq_teacher;

/* Runs the teacher over the calibration windows, or finds what an earlier run left. Nothing is done
 * for the lm loss. Collective.
 * Fails: VQ_ENOTFINITE (a state that is not finite, with its window), VQ_EFILE, VQ_EMEM,
 * VQ_ESTOPPED (asked for, after a part). */
vq_status vq_cache_teacher(vq_job *job, const vq_data *data, vq_teacher *teacher);

/* Makes ready for the steps [next, count) of training; memory in arena. Collective. */
vq_status vq_teacher_start(vq_teacher *teacher, const vq_data *data, vq_arena *arena, int64_t next,
                           int64_t count);

/* Begins the next step, of windows [first, first + n) on this replica: their states come into
 * teacher->hidden on the last stage, which waits for the other stages then; a stage alone reads
 * each when it is asked for, while its GPU is at work on the forward pass. Collective over the
 * replica. */
vq_status vq_teacher_step(vq_teacher *teacher, int64_t first, int64_t n);

/* Tokens [first, first + n) of the step's sequence `micro`: float [n, E_embed]; no data where there
 * is no teacher. Fails: VQ_EFILE. Local. */
vq_status vq_teacher_rows(vq_teacher *teacher, int64_t micro, int64_t first, int64_t n,
                          vq_tensor *rows);

void vq_teacher_close(vq_teacher *teacher);

/* The teacher's lm_head, where the job computes. */
const vq_tensor *vq_teacher_head(const vq_teacher *teacher);
