/* cuda_module.h - the GPU's code, in a library of its own that is opened when a GPU is asked for.
 *
 * vq_cuda.so holds kernels/cuda and comm_nccl and needs the CUDA libraries; the program needs
 * neither, so that one program starts everywhere. The module calls back into the program for
 * errors, arenas, tensors and log: both must come from one build. */
#pragma once
#include "comm.h"
#include "topo.h"

#include "backend.h"

#define VQ_CUDA_ABI 6
#define VQ_CUDA_SYMBOL "vq_cuda_module_table"

typedef struct vq_cuda_module {
    int abi;             /* VQ_CUDA_ABI; looked at before anything else is */
    size_t sizes;        /* VQ_CUDA_SIZES of its build */
    const char *version; /* VQ_VERSION of its build */
    int (*device_count)(void);
    vq_status (*describe)(int device, char *text, size_t size);
    vq_status (*name)(int device, uint64_t *name);
    vq_status (*open)(vq_backend *be, int device, vq_dtype act);
    void (*close)(vq_backend *be);
    vq_status (*arena)(const vq_backend *be, const char *name, vq_arena *arena);
    void (*trim)(const vq_backend *be);
    /* NULL: built without NCCL */
    vq_status (*comm_nccl)(vq_comm *comm, vq_comm *host, const vq_backend *be, const vq_topo *topo,
                           int device, vq_arena *memory);
} vq_cuda_module;

/* A number that differs when a struct that both sides use does. */
#define VQ_CUDA_SIZES                                                                              \
    (((sizeof(vq_ops) * 1021 + sizeof(vq_tensor)) * 1021 + sizeof(vq_quant)) * 1021 +              \
     sizeof(vq_arena) + sizeof(vq_comm) + sizeof(vq_comm_ops) + sizeof(vq_topo) +                  \
     sizeof(vq_sweep_rule) + sizeof(vq_kmeans_part))

/* Opens the module: vq_cuda.so beside the program, or in ../lib/vqround. It stays open.
 * Fails: VQ_EUNSUPPORTED (none there, one of another build, or CUDA libraries that it lacks; the
 * loader's words are in the message). Local. */
vq_status vq_cuda_module_open(const vq_cuda_module **out);
