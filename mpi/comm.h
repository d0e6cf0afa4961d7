/* comm.h - what ranks say to each other: a table with one implementation a transport.
 *
 * comm_self is the job of one rank; it needs no MPI. All functions are collective over the world
 * and in the same order on every rank. Fails: VQ_EPEER (a lost rank or a time limit). */
#pragma once
#include "tensor.h"

typedef struct vq_comm_ops {
    /* t = sum of all ranks' t, the same bits everywhere. */
    vq_status (*sum)(void *ctx, vq_tensor *t);
    /* t = root's t. */
    vq_status (*broadcast)(void *ctx, vq_tensor *t, int root);
    /* The worst status of all ranks; that rank's message is the pending error everywhere. */
    vq_status (*agree)(void *ctx, vq_status status);
    void (*close)(void *ctx);
} vq_comm_ops;

typedef struct vq_comm {
    const vq_comm_ops *ops;
    void *ctx;
    int rank, size; /* of the world */
} vq_comm;

/* The world of one rank. */
vq_comm vq_comm_self(void);
