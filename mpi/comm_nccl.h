/* comm_nccl.h - the world of GPUs: sums, broadcasts and messages of device tensors by NCCL.
 *
 * Stands over the host's world (comm_mpi), which carries host tensors and agreements and hands the
 * NCCL ids around. Each pair of neighbouring stages has a communicator and a stream a direction, so
 * that a receive that was posted early cannot hold up a send. */
#pragma once
#include "comm.h"
#include "topo.h"

#include "backend.h"

/* NCCL's channels, at most: of a communicator of two neighbours, and of one that sums. Each takes
 * memory for every connection, and a multiprocessor while it is at work; a message of some MiB
 * between the steps of a layer needs no more. */
#define VQ_NCCL_LINK_CHANNELS 4
#define VQ_NCCL_SUM_CHANNELS 8

/* Opens the world on device `device` of this rank, which be computes on: what be was given before
 * is done before a sum, broadcast or message begins. host: the ranks' MPI world. Both borrowed,
 * must outlive comm. memory: takes the implementation's state. A number has gone along every link
 * and into every sum: NCCL has its memory, and a network that carries nothing has shown it.
 * Collective. Fails: VQ_EUNSUPPORTED (two ranks on one GPU: use --comm mpi), VQ_EPEER. */
vq_status vq_comm_nccl(vq_comm *comm, vq_comm *host, const vq_backend *be, const vq_topo *topo,
                       int device, vq_arena *memory);
