/* comm.h - what ranks say to each other: a table with one implementation a transport.
 *
 * comm_self is the world of one rank and needs no MPI; comm_mpi carries a job of many. Every wait
 * has a limit, which begins anew while any rank makes progress (vq_progress_step): when it runs
 * out, or a message has another size than expected, the function fails with VQ_EPEER and says what
 * was waited for, from whom and where the job was. */
#pragma once
#include "tensor.h"

typedef enum vq_tag {
    VQ_TAG_IDS,     /* token ids from rank 0 to both ends of a pipeline */
    VQ_TAG_FORWARD, /* activations to the next stage */
    VQ_TAG_BACKWARD /* gradients to the stage before */
} vq_tag;

/* A message on its way. All zero: none. */
typedef struct vq_request {
    uint64_t handle[2]; /* the transport's own */
    int64_t bytes;      /* expected */
    int peer;
    vq_tag tag;
    bool is_active, is_receive;
    bool by_base; /* the base world has it */
} vq_request;

/* A world over another (its base) is given device tensors alone, and leaves agree, heard and die
 * NULL. */
typedef struct vq_comm_ops {
    /* t (f32 or f64) = sum of all ranks' t, the same bits on every rank. Collective. */
    vq_status (*sum)(void *ctx, vq_tensor *t);
    /* t (f32 or f64) = the sum of the t of this stage's ranks in all replicas, the same bits on
     * each. Collective over them. NULL: this world knows no stages. */
    vq_status (*sum_replicas)(void *ctx, vq_tensor *t);
    /* t = root's t, any type. Collective. */
    vq_status (*broadcast)(void *ctx, vq_tensor *t, int root);
    /* The worst status of all ranks. The rank that has it keeps its message; the others' pending
     * error is cleared, so that it is printed once. Collective. */
    vq_status (*agree)(void *ctx, vq_status status);
    /* Begin a message; t must stay as it is until the wait. In order for each peer and tag. Local.
     */
    vq_status (*send)(void *ctx, const vq_tensor *t, int to, vq_tag tag, vq_request *request);
    vq_status (*receive)(void *ctx, vq_tensor *t, int from, vq_tag tag, vq_request *request);
    /* Until the message is through; nothing for a request that is not active. Local. */
    vq_status (*wait)(void *ctx, vq_request *request);
    /* Whether another rank has made progress since this was asked last; NULL: nobody tells. Local.
     */
    bool (*heard)(void *ctx);
    /* Ends every rank of the job with this code, after the message is printed; of several ranks
     * that die the first speaks. Does not return where there are other ranks. Local. */
    void (*die)(void *ctx, vq_status status);
    void (*close)(void *ctx);
} vq_comm_ops;

typedef struct vq_comm {
    const vq_comm_ops *ops;
    void *ctx;
    /* The world that takes host tensors, agreements and deaths; NULL: this one. borrowed */
    struct vq_comm *base;
    int rank, size; /* of the world */
    char where[64]; /* "train, step 12": for messages */
    char host[64];
    double waited_s; /* in sum, broadcast and wait so far */
    double summed_s; /* of these, in sum and broadcast */
    double limit_s;  /* of one wait without a sign of life */
    /* The run folder, where error.txt keeps the message of a failure; NULL: no run is open.
     * borrowed: config */
    const char *run;
} vq_comm;

/* The world that the launcher made (mpirun, srun), or a world of one rank.
 * Fails: VQ_EPEER, VQ_EUNSUPPORTED (a launcher, but a program built without MPI). */
vq_status vq_comm_open(vq_comm *comm);
void vq_comm_close(vq_comm *comm);

/* The implementations. comm_mpi fills ctx with a pointer to *comm, which must not move. */
void vq_comm_self(vq_comm *comm);
vq_status vq_comm_mpi(vq_comm *comm);

/* A world over base, which stays open and must outlive it: ops and ctx are to be set. */
void vq_comm_over(vq_comm *comm, vq_comm *base);

/* Says where the job is, for the messages of waits and deaths. */
void vq_comm_at(vq_comm *comm, const char *fmt, ...) VQ_PRINTF(2, 3);

vq_status vq_comm_sum(vq_comm *comm, vq_tensor *t);
/* all [size], out: every rank's number. Collective. Fails: as vq_comm_sum. */
vq_status vq_comm_gather(vq_comm *comm, double mine, double *all);
/* Whether the world that takes t sums it over replicas by itself; if so vq_comm_sum_replicas may be
 * called. */
bool vq_comm_knows_replicas(vq_comm *comm, const vq_tensor *t);
vq_status vq_comm_sum_replicas(vq_comm *comm, vq_tensor *t);
vq_status vq_comm_broadcast(vq_comm *comm, vq_tensor *t, int root);
vq_status vq_comm_send(vq_comm *comm, const vq_tensor *t, int to, vq_tag tag, vq_request *request);
vq_status vq_comm_receive(vq_comm *comm, vq_tensor *t, int from, vq_tag tag, vq_request *request);
vq_status vq_comm_wait(vq_comm *comm, vq_request *request);

/* Whether another rank has made progress since this was asked last: who waits may wait on. Local.
 */
bool vq_comm_heard(vq_comm *comm);

/* Ends a piece of work in which every rank works for itself: all ranks learn the worst status.
 * Collective. */
vq_status vq_comm_agree(vq_comm *comm, vq_status status);

/* Ends a piece of work in which ranks wait for each other: a failure here ends the whole job at
 * once, since the others cannot hear of it otherwise. Failures that all ranks have alike
 * (VQ_ESTOPPED, VQ_ENOTFINITE) pass, and rank 0 keeps the message. Local. */
vq_status vq_comm_end(vq_comm *comm, vq_status status);

/* Ends every rank of the job. Does not return where there are other ranks. Local. */
void vq_comm_die(vq_comm *comm, vq_status status);

/* Prints the pending error, if there is one, with rank, host and where the job was, and writes it
 * to comm->run's error.txt: a line with the code, then the message. Local. */
void vq_comm_report(const vq_comm *comm, vq_status status);
