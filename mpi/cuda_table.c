/* cuda_table - the table by which the program reaches what is in vq_cuda.so; compiled into it. */
#include "cuda_backend.h"
#include "cuda_module.h"

#ifdef VQ_NCCL
#include "comm_nccl.h"
#endif

extern const vq_cuda_module vq_cuda_module_table;

const vq_cuda_module vq_cuda_module_table = {
    .abi = VQ_CUDA_ABI,
    .sizes = VQ_CUDA_SIZES,
    .version = VQ_VERSION,
    .device_count = vq_cuda_device_count,
    .describe = vq_cuda_describe,
    .name = vq_cuda_name,
    .open = vq_cuda_open,
    .close = vq_cuda_close,
    .arena = vq_cuda_arena,
    .trim = vq_cuda_trim,
#ifdef VQ_NCCL
    .comm_nccl = vq_comm_nccl,
#endif
};
