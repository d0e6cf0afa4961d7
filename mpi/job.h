/* job.h - what every phase of a job is given: settings, memory, backend, ranks, model, run folder.
 */
#pragma once
#include "comm.h"
#include "h5.h"
#include "pool.h"
#include "topo.h"

#define VQ_N_ARENAS 4

typedef struct vq_job {
    const vq_config *config; /* borrowed: main */
    vq_comm *comm;           /* borrowed: main, or own */
    vq_topo topo;
    vq_backend be;                     /* computes: cpu, or a GPU's */
    vq_backend cpu;                    /* works on the host: files, what is not for a GPU */
    vq_arena run;                      /* the whole life */
    vq_arena weights;                  /* codes, indices, scales */
    vq_arena step;                     /* activations kept for the backward */
    vq_arena scratch;                  /* inside one function */
    const struct vq_cuda_module *cuda; /* NULL: no GPU */
    int device;                        /* the GPU of this rank, of those that it sees */
    uint64_t gpu;                      /* names it among those of all ranks */
    int n_local;                       /* ranks on this node */
    int n_on_device;                   /* ranks that have this one's GPU */
    vq_arena twins[VQ_N_ARENAS];       /* of the four arenas, on the GPU */
    vq_comm own_comm;                  /* carries the GPU's tensors */
    vq_model model;
    vq_model teacher; /* dir NULL: the model is its own teacher */
    vq_stage stage;   /* this rank's layers */
    vq_pool pool;
    int *maker;         /* [n_slots] the replica that makes a linear's codebook */
    double hold_bytes;  /* of the linears' own weights that passes with them keep on the GPU */
    int64_t together;   /* micro-batches that pass for each bringing of the others, by the plan
                           or vq_evaluate_together; the same on all ranks */
    vq_keep keep;       /* what training keeps of a sequence, by the plan */
    bool keeps_weights; /* for all of a step, by the plan */
    uint64_t grid_key;  /* of the grids, GPTQ's or not */
    uint64_t init_key, train_key; /* what the files of these phases must carry */
} vq_job;

/* Opens backend and model, and finds this rank's place. Collective: all ranks fail alike.
 * Fails: any input's code. vq_job_close may follow a failure. */
vq_status vq_job_open(const vq_config *config, vq_comm *comm, vq_job *job);
void vq_job_close(vq_job *job);

/* Opens what carries tensors between the ranks' GPUs, by the layout of ranks that was found; before
 * that job->comm takes host tensors alone. Nothing without GPUs. Collective. */
vq_status vq_job_connect(vq_job *job);

/* This rank's layers of a model (the job's, or the teacher's) for windows of at most T tokens. */
vq_status vq_job_stage(vq_job *job, const vq_model *model, int64_t T, vq_stage *stage);

/* Whether this rank has the first or the last layers of its replica. */
bool vq_job_is_end(const vq_job *job);

/* This rank's share of the host's free memory, or of what the settings say that the plan may count
 * on. Local. Fails: as vq_mem_info. */
vq_status vq_job_room(const vq_job *job, double *bytes);

/* Gives back the memory that a phase used and the next one may not: what arenas hold above what is
 * in use, and the pages of the linears' weights. Local. */
void vq_job_trim(vq_job *job);

/* How the student rounds in training. */
vq_mode vq_job_mode(const vq_job *job);

/* RUN/name in the job's run arena. */
vq_status vq_job_path(vq_job *job, char **path, const char *fmt, ...) VQ_PRINTF(3, 4);

/* The files DIR/prefix*.h5, sorted: full paths in arena. */
vq_status vq_job_files(vq_arena *arena, const char *dir, const char *prefix, char ***paths,
                       int64_t *n);

/* A whole message to or from another rank. Local. Fails: VQ_EPEER. */
vq_status vq_job_send(vq_job *job, const vq_tensor *t, int to, vq_tag tag);
vq_status vq_job_receive(vq_job *job, vq_tensor *t, int from, vq_tag tag);

/* Whether a quantized linear is in one of this rank's layers. */
bool vq_job_has_slot(const vq_job *job, int64_t slot);

/* Whether this replica, of those of its stage, makes that linear's codebook. */
bool vq_job_makes_slot(const vq_job *job, int64_t slot);

/* Every rank gets the numbers of all layers in a whole pool: each slot's from the rank of the first
 * replica that has its layer. Collective. */
vq_status vq_job_share_pool(vq_job *job);

/* t (f32 or f64) = the sum of the t of this stage's ranks in all replicas, the same bits on each:
 * added in the order of the replicas, between GPUs by NCCL in its own. Collective over the stage.
 * Fails: VQ_EPEER. */
vq_status vq_job_sum_replicas(vq_job *job, vq_tensor *t);
