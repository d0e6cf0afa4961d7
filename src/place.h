/* place.h - tensors between a backend's place and the host, and the host's files.
 *
 * Files are read and written on the host; a tensor of a device goes through a copy there. All
 * functions are local and wait for what is queued. */
#pragma once
#include "backend.h"
#include "h5.h"

/* host (which may be t) = t itself where it is on the host, else a copy in arena (host memory). */
vq_status vq_place_host(const vq_backend *be, vq_arena *arena, const vq_tensor *t, vq_tensor *host);

/* there (which may be t) = t itself where it is at be's place, else a copy in arena's twin. Rows
 * contiguous. */
vq_status vq_place_there(const vq_backend *be, vq_arena *arena, const vq_tensor *t,
                         vq_tensor *there);

/* host (which may be t) = t itself where it is on the host, else room for its elements in arena;
 * and t = host, where the two are not one. */
vq_status vq_place_room(vq_arena *arena, const vq_tensor *t, vq_tensor *host);
vq_status vq_place_back(const vq_backend *be, const vq_tensor *host, vq_tensor *t);

/* vq_h5_write, vq_h5_read and vq_h5_read_rows of a tensor anywhere; scratch is left as it was. */
vq_status vq_place_write(const vq_backend *be, vq_arena *scratch, vq_h5 *h, const char *name,
                         const vq_tensor *t);
vq_status vq_place_read(const vq_backend *be, vq_arena *scratch, const vq_h5 *h, const char *name,
                        vq_tensor *t);
vq_status vq_place_read_rows(const vq_backend *be, vq_arena *scratch, const vq_h5 *h,
                             const char *name, int64_t first, const vq_tensor *rows);
