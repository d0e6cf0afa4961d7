/* job.h - what every phase of a job is given: settings, memory, backend, ranks, model, run folder.
 */
#pragma once
#include "comm.h"
#include "config.h"
#include "h5.h"
#include "pool.h"

typedef struct vq_job {
    const vq_config *config; /* borrowed: main */
    vq_comm comm;
    vq_backend be;
    vq_arena run;     /* the whole life */
    vq_arena weights; /* codes, indices, scales */
    vq_arena step;    /* activations kept for the backward, teacher's cache */
    vq_arena scratch; /* inside one function */
    vq_model model;
    vq_model teacher; /* dir NULL: the model is its own teacher */
    vq_stage stage;   /* this rank's layers */
    vq_pool pool;
    uint64_t init_key, train_key; /* what the files of these phases must carry */
} vq_job;

/* Opens backend, ranks and model, and sets up the stage for windows of T tokens.
 * Collective. Fails: any input's code. vq_job_close may follow a failure. */
vq_status vq_job_open(const vq_config *config, vq_job *job);

/* The stage: every layer of the model, for windows of at most T tokens. */
vq_status vq_job_stage(vq_job *job, const vq_model *model, int64_t T, vq_stage *stage);
void vq_job_close(vq_job *job);

/* RUN/name in the job's run arena; %s of fmt... */
vq_status vq_job_path(vq_job *job, char **path, const char *fmt, ...) VQ_PRINTF(3, 4);

/* Highest resident memory of this process so far, in bytes. */
int64_t vq_peak_rss_bytes(void);
