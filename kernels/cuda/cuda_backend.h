/* cuda_backend.h - the op table on a GPU: cuBLASLt for products, own kernels for the rest.
 *
 * act is bf16 for users (f16 and f32 in tests), real f32; products and sums of activations are
 * accumulated in f32, losses and norms in f64. All slots queue on one stream; those that give a
 * number to the host wait for it. Results repeat to the bit on one kind of card. */
#pragma once
#include "backend.h"

/* Opens GPU `device` with this type of activations (VQ_BF16, VQ_F16, VQ_F32).
 * Fails: VQ_EUNSUPPORTED (no such GPU, or one older than compute capability 8.0), VQ_EMEM.
 * Close gives all its memory back. Local. */
vq_status vq_cuda_open(vq_backend *be, int device, vq_dtype act);
void vq_cuda_close(vq_backend *be);

/* GPUs that this process may use; 0 where there is no driver. */
int vq_cuda_device_count(void);

/* "NVIDIA H100 80GB HBM3, 79.2 GiB, compute capability 9.0" into text. */
vq_status vq_cuda_describe(int device, char *text, size_t size);

/* A number that names GPU `device` among all GPUs of all machines. */
vq_status vq_cuda_name(int device, uint64_t *name);

/* An arena of device memory: the twin of a host arena. Lives no longer than the backend. */
vq_status vq_cuda_arena(const vq_backend *be, const char *name, vq_arena *arena);

/* What another stream (cudaStream_t) is given from now on begins when all that is queued on be is
 * done. */
vq_status vq_cuda_before(const vq_backend *be, void *stream);

/* Gives scratch memory that is not in use back to the device. */
void vq_cuda_trim(const vq_backend *be);
