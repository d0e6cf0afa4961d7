/* comm_staged.h - the world of GPUs without NCCL: device tensors go through the host's memory, and
 * MPI carries them. Two ranks may have the same GPU. */
#pragma once
#include "comm.h"

#include "backend.h"

/* Opens the world over the ranks' own, host: borrowed, as be is; both outlive comm. memory takes
 * buffers as large as the largest tensors sent. Local. Fails: VQ_EMEM. */
vq_status vq_comm_staged(vq_comm *comm, vq_comm *host, const vq_backend *be, vq_arena *memory);
