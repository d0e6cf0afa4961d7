/* comm_self - the world of one rank: every sum and every broadcast is there already, and there is
 * nobody to send to (the checks in comm.c see to that). */
#include "comm.h"
#include "error.h"

static vq_status self_sum(void *ctx, vq_tensor *t)
{
    (void)ctx, (void)t;
    return VQ_OK;
}

static vq_status self_broadcast(void *ctx, vq_tensor *t, int root)
{
    (void)ctx, (void)t, (void)root;
    return VQ_OK;
}

static vq_status self_agree(void *ctx, vq_status status)
{
    (void)ctx;
    return status;
}

static vq_status self_send(void *ctx, const vq_tensor *t, int to, vq_tag tag, vq_request *request)
{
    (void)ctx, (void)t, (void)tag, (void)request;
    VQ_ASSERT(to < 0);
    return VQ_OK;
}

static vq_status self_receive(void *ctx, vq_tensor *t, int from, vq_tag tag, vq_request *request)
{
    (void)ctx, (void)t, (void)tag, (void)request;
    VQ_ASSERT(from < 0);
    return VQ_OK;
}

static vq_status self_wait(void *ctx, vq_request *request)
{
    (void)ctx, (void)request;
    return VQ_OK;
}

static void self_die(void *ctx, vq_status status)
{
    (void)ctx, (void)status;
}

static void self_close(void *ctx)
{
    (void)ctx;
}

static const vq_comm_ops self_ops = {.sum = self_sum,
                                     .broadcast = self_broadcast,
                                     .agree = self_agree,
                                     .send = self_send,
                                     .receive = self_receive,
                                     .wait = self_wait,
                                     .die = self_die,
                                     .close = self_close};

void vq_comm_self(vq_comm *comm)
{
    comm->ops = &self_ops;
    comm->rank = 0;
    comm->size = 1;
}
