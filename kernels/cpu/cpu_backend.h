/* cpu_backend.h - the op table on the CPU: BLAS for dense algebra, OpenMP and SIMD for the rest.
 *
 * Compiled twice: with real = float for users, and with -DVQ_CPU_F64 (real = double, all names with
 * the suffix _f64) for the tests of gradients by central differences. */
#pragma once
#include "backend.h"

/* Opens the backend with n_threads OpenMP threads (0: as many as the cores this process may use);
 * so many have other loops of the calling thread from then on, whatever OMP_NUM_THREADS says. BLAS
 * is held to one thread: parallelism is over tiles that depend on the shape alone. Fails: VQ_EMEM.
 * Close gives its scratch memory back. Local. */
vq_status vq_cpu_open(vq_backend *be, int n_threads);
void vq_cpu_close(vq_backend *be);

/* Gives the pages of scratch memory that is not in use back to the system. */
void vq_cpu_trim(const vq_backend *be);

/* Threads that it runs with. */
int vq_cpu_thread_count(const vq_backend *be);

/* Bytes of scratch memory at the peak so far. */
size_t vq_cpu_scratch_peak(const vq_backend *be);

#ifdef VQ_TESTING
vq_status vq_cpu_open_f64(vq_backend *be, int n_threads);
void vq_cpu_close_f64(vq_backend *be);
#endif
