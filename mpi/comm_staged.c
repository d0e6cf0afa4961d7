/* comm_staged - device tensors between ranks through buffers on the host.
 *
 * A message on its way holds a buffer until its wait, which uploads what was received. Buffers are
 * kept and taken again: a job's messages have few sizes. */
#include "comm_staged.h"

#include <string.h>

#include "error.h"

#define MAX_BUFFERS 1024

typedef struct buffer {
    void *data;
    size_t bytes;
    bool is_taken;
    vq_request request; /* of the base world */
    vq_tensor target;   /* a receive's */
} buffer;

typedef struct state {
    const vq_comm *comm;
    const vq_backend *be;
    vq_arena *memory;
    buffer *buffers; /* [MAX_BUFFERS] */
    int n_buffers;
} state;

/* A free buffer of at least these bytes: the smallest there is, or a new one. */
static vq_status take(state *s, size_t bytes, buffer **out)
{
    *out = NULL;
    for (int i = 0; i < s->n_buffers; i++) {
        buffer *b = &s->buffers[i];
        if (!b->is_taken && b->bytes >= bytes && (!*out || b->bytes < (*out)->bytes)) *out = b;
    }
    if (!*out) {
        VQ_ASSERT(s->n_buffers < MAX_BUFFERS);
        buffer *b = &s->buffers[s->n_buffers];
        VQ_TRY(vq_arena_alloc(s->memory, bytes, &b->data));
        b->bytes = bytes;
        s->n_buffers++;
        *out = b;
    }
    (*out)->is_taken = true;
    return VQ_OK;
}

/* The same elements on the host. */
static vq_tensor on_host(const vq_tensor *t, void *data)
{
    vq_tensor host = *t;
    host.data = data;
    host.place = VQ_HOST;
    return host;
}

static vq_status staged_sum(void *ctx, vq_tensor *t)
{
    state *s = ctx;
    buffer *b;
    VQ_TRY(take(s, vq_tensor_bytes(t), &b));
    vq_tensor host = on_host(t, b->data);
    VQ_TRY(vq_download(s->be, b->data, t));
    VQ_TRY(vq_comm_sum(s->comm->base, &host));
    VQ_TRY(vq_upload(s->be, t, b->data));
    b->is_taken = false;
    return VQ_OK;
}

static vq_status staged_broadcast(void *ctx, vq_tensor *t, int root)
{
    state *s = ctx;
    buffer *b;
    VQ_TRY(take(s, vq_tensor_bytes(t), &b));
    vq_tensor host = on_host(t, b->data);
    if (s->comm->rank == root) VQ_TRY(vq_download(s->be, b->data, t));
    VQ_TRY(vq_comm_broadcast(s->comm->base, &host, root));
    if (s->comm->rank != root) VQ_TRY(vq_upload(s->be, t, b->data));
    b->is_taken = false;
    return VQ_OK;
}

/* Begins a message; the request names its buffer. */
static vq_status begin(state *s, const vq_tensor *t, int peer, vq_tag tag, bool is_receive,
                       vq_request *request)
{
    buffer *b;
    VQ_TRY(take(s, vq_tensor_bytes(t), &b));
    vq_tensor host = on_host(t, b->data);
    b->target = *t;
    if (!is_receive) VQ_TRY(vq_download(s->be, b->data, t));
    VQ_TRY(is_receive ? vq_comm_receive(s->comm->base, &host, peer, tag, &b->request)
                      : vq_comm_send(s->comm->base, &host, peer, tag, &b->request));
    *request = b->request;
    request->handle[0] = (uint64_t)(uintptr_t)b;
    return VQ_OK;
}

static vq_status staged_send(void *ctx, const vq_tensor *t, int to, vq_tag tag, vq_request *request)
{
    return begin(ctx, t, to, tag, false, request);
}

static vq_status staged_receive(void *ctx, vq_tensor *t, int from, vq_tag tag, vq_request *request)
{
    return begin(ctx, t, from, tag, true, request);
}

static vq_status staged_wait(void *ctx, vq_request *request)
{
    state *s = ctx;
    buffer *b = (buffer *)(uintptr_t)request->handle[0];
    VQ_TRY(vq_comm_wait(s->comm->base, &b->request));
    if (request->is_receive) VQ_TRY(vq_upload(s->be, &b->target, b->data));
    b->is_taken = false;
    request->is_active = false;
    return VQ_OK;
}

static void staged_close(void *ctx)
{
    (void)ctx;
}

static const vq_comm_ops staged_ops = {.sum = staged_sum,
                                       .broadcast = staged_broadcast,
                                       .send = staged_send,
                                       .receive = staged_receive,
                                       .wait = staged_wait,
                                       .close = staged_close};

vq_status vq_comm_staged(vq_comm *comm, vq_comm *host, const vq_backend *be, vq_arena *memory)
{
    state *s;
    vq_comm_over(comm, host);
    VQ_TRY(VQ_NEW(memory, 1, &s));
    *s = (state){.comm = comm, .be = be, .memory = memory};
    VQ_TRY(VQ_NEW(memory, MAX_BUFFERS, &s->buffers));
    memset(s->buffers, 0, MAX_BUFFERS * sizeof *s->buffers);
    comm->ops = &staged_ops;
    comm->ctx = s;
    return VQ_OK;
}
