/* lowrank.h - the best approximation of a matrix by a product of two narrow ones. */
#pragma once
#include "arena.h"
#include "backend.h"

/* b1 b2 = the truncated singular value decomposition of a, near enough: the rows of b2 and the
 * columns of b1 share each singular value as its root. By subspace iteration on a few rows more
 * than r, from the same random numbers each time, until an iteration catches less than 1e-5 more of
 * |a|^2 (100 at most).
 *
 * b1  f32 [out, r], out
 * b2  f32 [r, in], out; r <= min(out, in)
 * a   f32 [out, in]
 *
 * All on the host, be too. Same bits for any number of threads. Local. Fails: VQ_EMEM. */
vq_status vq_lowrank_fit(const vq_backend *be, vq_arena *scratch, vq_tensor *b1, vq_tensor *b2,
                         const vq_tensor *a);
