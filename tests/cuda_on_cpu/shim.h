/* shim.h - the CUDA kernels on the CPU: what tests choose and ask.
 *
 * The kernels and the host code of kernels/cuda are compiled for the host against include/, whose
 * headers stand in for CUDA's; the products are the BLAS's, the factorizations LAPACK's. It is no
 * backend for users: one thread runs everything. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* In which order the threads of a block run between two points where they wait for each other, and
 * the blocks of a launch. A kernel that leaves out a barrier gives other results in other orders.
 */
typedef enum shim_order { SHIM_UP, SHIM_DOWN, SHIM_MIXED } shim_order;
void shim_set_order(shim_order order);

/* Kernels launched so far, and times that the host has waited for a stream. */
long shim_launches(void);
long shim_waits(void);

/* Locks device memory against host code, which then ends with SIGSEGV where it reads or writes it.
 * Costs two system calls over all device memory a kernel; off at first. */
void shim_lock_device(bool lock);

/* Whether the GPU can map memory into reserved addresses, and whether what is mapped may be used;
 * both at first. */
void shim_map_memory(bool can);
void shim_allow_access(bool may);

/* Times that cuBLASLt was asked for an algorithm. */
long shim_choices(void);

/* The stand-ins' own: run with a copy of argument[bytes] when the stream comes to it, which stays
 * there until run returns true. */
struct shim_stream;
void shim_queue(struct shim_stream *stream, bool (*run)(void *argument), const void *argument,
                size_t bytes);

/* The stand-ins' own: the stream is to be given a kernel. */
void shim_before_kernel(struct shim_stream *stream);

/* The stand-ins' own: until shim_leave_device the caller may touch device memory; nested. */
void shim_enter_device(void);
void shim_leave_device(void);

#ifdef __cplusplus
}
#endif
