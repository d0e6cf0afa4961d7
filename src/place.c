/* place - tensors there and back. */
#include "place.h"

#include "error.h"

vq_status vq_place_room(vq_arena *arena, const vq_tensor *t, vq_tensor *host)
{
    const vq_tensor from = *t;
    *host = from;
    if (from.place == VQ_HOST) return VQ_OK;
    VQ_TRY(vq_tensor_new(arena, VQ_HOST, from.dtype, from.ndim, from.dim, host));
    host->name = from.name;
    return VQ_OK;
}

vq_status vq_place_back(const vq_backend *be, const vq_tensor *host, vq_tensor *t)
{
    return t->place == VQ_HOST ? VQ_OK : vq_upload(be, t, host->data);
}

vq_status vq_place_host(const vq_backend *be, vq_arena *arena, const vq_tensor *t, vq_tensor *host)
{
    const vq_tensor from = *t; /* host may be t */
    VQ_TRY(vq_place_room(arena, &from, host));
    return from.place == VQ_HOST ? VQ_OK : vq_download(be, host->data, &from);
}

vq_status vq_place_there(const vq_backend *be, vq_arena *arena, const vq_tensor *t,
                         vq_tensor *there)
{
    const vq_tensor from = *t; /* there may be t */
    *there = from;
    if (from.place == be->place) return VQ_OK;
    VQ_TRY(vq_tensor_new(arena, be->place, from.dtype, from.ndim, from.dim, there));
    there->name = from.name;
    return vq_upload(be, there, from.data);
}

vq_status vq_place_write(const vq_backend *be, vq_arena *scratch, vq_h5 *h, const char *name,
                         const vq_tensor *t)
{
    vq_tensor host;
    size_t mark = vq_arena_mark(scratch);
    VQ_TRY(vq_place_host(be, scratch, t, &host));
    VQ_TRY(vq_h5_write(h, name, &host));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

vq_status vq_place_read(const vq_backend *be, vq_arena *scratch, const vq_h5 *h, const char *name,
                        vq_tensor *t)
{
    vq_tensor host;
    size_t mark = vq_arena_mark(scratch);
    VQ_TRY(vq_place_room(scratch, t, &host));
    VQ_TRY(vq_h5_read(h, name, &host));
    VQ_TRY(vq_place_back(be, &host, t));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

vq_status vq_place_read_rows(const vq_backend *be, vq_arena *scratch, const vq_h5 *h,
                             const char *name, int64_t first, const vq_tensor *rows)
{
    vq_tensor host, there = *rows;
    size_t mark = vq_arena_mark(scratch);
    VQ_TRY(vq_place_room(scratch, rows, &host));
    VQ_TRY(vq_h5_read_rows(h, name, first, &host));
    VQ_TRY(vq_place_back(be, &host, &there));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}
