/* cuda_geometry.h - how much of the device a launch takes, and how its work is cut: pure functions
 * of shapes, tested without a GPU. */
#pragma once
#ifdef __cplusplus
extern "C" {
#endif
#include "base.h"

#define VQ_WARP 32
#define VQ_BLOCK_MAX 1024              /* threads of a block */
#define VQ_GRID_MAX ((int64_t)1 << 30) /* blocks in x that we ask for at most: kernels stride */

/* Threads for one row of `width` elements of which a thread takes `pack` at a time: whole warps,
 * enough to go over the row in a few turns, as each reduction costs the same. */
int vq_cuda_row_threads(int64_t width, int64_t pack);

/* Blocks for n pieces of work, `per_block` in each: at least 1, at most VQ_GRID_MAX. */
unsigned vq_cuda_blocks(int64_t n, int64_t per_block);

/* Elements that a thread may move at once as one of at most 16 bytes: the largest power of two
 * such that `width` elements of `bytes` bytes, and the address `align`, are multiples of it. */
int vq_cuda_pack(int64_t width, size_t bytes, uintptr_t align);

#ifdef __cplusplus
}
#endif
