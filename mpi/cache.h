/* cache.h - the teacher's final hidden states, kept so that the teacher runs once.
 *
 * lm_head is not quantized, so its input is all that is needed to have the teacher's logits again:
 * 6 to 148 times less than the logits. RUN/teacher-s00.h5 holds "hidden" [n, T, E_embed] in the
 * model's own type. With teacher.cache off the teacher runs in every step. */
#pragma once
#include "feed.h"

typedef struct vq_teacher {
    vq_stage stage; /* its layers */
    bool is_cached;
    vq_h5 file;     /* open for reading while is_cached */
    vq_dtype dtype; /* of the cached states */
    double kl;      /* between the teacher and its cached self, tau 1, a token, first window */
    double seconds;
} vq_teacher;

/* Runs the teacher over the calibration windows, or finds what an earlier run left. Nothing is done
 * for the lm loss.
 * Fails: VQ_ENOTFINITE (a state that is not finite, with its window), VQ_EFILE, VQ_EMEM. */
vq_status vq_cache_teacher(vq_job *job, const vq_data *data, vq_teacher *teacher);

/* The teacher's states of windows [first, first + count): act or the cache's type
 * [count * T, E_embed], in arena. */
vq_status vq_teacher_hidden(vq_job *job, const vq_teacher *teacher, const vq_data *data,
                            int64_t first, int64_t count, vq_arena *arena, vq_tensor *hidden);
void vq_teacher_close(vq_teacher *teacher);

/* The teacher's lm_head. */
const vq_tensor *vq_teacher_head(const vq_job *job);
