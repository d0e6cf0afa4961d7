/* stream - windows on their way, one message ahead. */
#include "stream.h"

#include "error.h"

void vq_stream_share(const vq_stream *s, int64_t message, int replica, int64_t *first, int64_t *n)
{
    const vq_topo *topo = &s->job->topo;
    const int64_t total = s->windows->n;
    if (s->is_step) {
        /* As a DataLoader without shuffling: the last batch of an epoch is shorter. */
        const int64_t start = message % VQ_CEIL_DIV(total, s->batch) * s->batch;
        vq_topo_share(topo, replica, VQ_MIN(s->batch, total - start), first, n);
        *first += start;
    } else {
        *first = VQ_MIN((message * topo->n_replicas + replica) * s->batch, total);
        *n = VQ_MIN(s->batch, total - *first);
    }
}

int64_t vq_stream_total(const vq_stream *s, int64_t message)
{
    int64_t total = 0, first, n;
    for (int r = 0; r < s->job->topo.n_replicas; r++, total += n)
        vq_stream_share(s, message, r, &first, &n);
    return total;
}

/* Begins message m: rank 0 sends, the others at the ends make ready to receive. */
static vq_status post(vq_stream *s, int64_t m)
{
    vq_job *job = s->job;
    const vq_topo *topo = &job->topo;
    const int64_t T = s->windows->T;
    int64_t first, n;
    if (m >= s->count) return VQ_OK;
    if (job->comm->rank != 0) {
        vq_stream_share(s, m, topo->replica, &first, &n);
        if (!vq_job_is_end(job) || n == 0) return VQ_OK;
        vq_tensor ids = vq_tensor_rows(&s->ids[m % 2], 0, n);
        return vq_comm_receive(job->comm, &ids, 0, VQ_TAG_IDS, &s->in[m % 2]);
    }
    vq_request *request = s->out[m % 2];
    for (int r = 0; r < topo->n_replicas; r++) {
        vq_stream_share(s, m, r, &first, &n);
        const vq_tensor ids = vq_tensor_2d(s->windows->ids + first * T, VQ_I32, n, T);
        for (int end = 0; end < 2; end++, request++) {
            const int to = vq_topo_rank(topo, end ? topo->n_stages - 1 : 0, r);
            const bool is_other_end = end == 0 || topo->n_stages > 1;
            VQ_TRY(vq_comm_wait(job->comm, request)); /* of the message before the last */
            if (n > 0 && to != 0 && is_other_end)
                VQ_TRY(vq_comm_send(job->comm, &ids, to, VQ_TAG_IDS, request));
        }
    }
    return VQ_OK;
}

static vq_status stream_open(vq_arena *arena, vq_stream *s, int64_t max_n)
{
    for (int i = 0; i < 2; i++) {
        VQ_TRY(vq_tensor_new(arena, VQ_HOST, VQ_I32, VQ_DIMS(max_n, s->windows->T), &s->ids[i]));
        const int64_t n_out = 2 * s->job->topo.n_replicas;
        VQ_TRY(VQ_NEW(arena, n_out, &s->out[i]));
        for (int64_t j = 0; j < n_out; j++) s->out[i][j] = (vq_request){0};
    }
    return post(s, s->next);
}

vq_status vq_stream_steps(vq_arena *arena, vq_job *job, const vq_windows *windows, int64_t next,
                          int64_t count, vq_stream *s)
{
    const int64_t batch = job->config->train.batch;
    *s = (vq_stream){.job = job,
                     .windows = windows,
                     .batch = batch,
                     .is_step = true,
                     .next = next,
                     .count = count};
    return stream_open(arena, s, VQ_CEIL_DIV(batch, job->topo.n_replicas));
}

int64_t vq_stream_messages(const vq_job *job, const vq_windows *windows, int64_t batch)
{
    return VQ_CEIL_DIV(VQ_CEIL_DIV(windows->n, batch), job->topo.n_replicas);
}

vq_status vq_stream_pass(vq_arena *arena, vq_job *job, const vq_windows *windows, int64_t batch,
                         int64_t next, int64_t count, vq_stream *s)
{
    *s = (vq_stream){.job = job, .windows = windows, .batch = batch, .next = next, .count = count};
    return stream_open(arena, s, batch);
}

vq_status vq_stream_take(vq_stream *s, int64_t *first, int64_t *n, vq_tensor *ids)
{
    VQ_ASSERT(s->next < s->count);
    const int64_t m = s->next++;
    VQ_TRY(post(s, m + 1));
    vq_stream_share(s, m, s->job->topo.replica, first, n);
    if (s->job->comm->rank == 0) {
        *ids = vq_tensor_2d(s->windows->ids + *first * s->windows->T, VQ_I32, *n, s->windows->T);
    } else {
        VQ_TRY(vq_comm_wait(s->job->comm, &s->in[m % 2]));
        *ids = vq_tensor_rows(&s->ids[m % 2], 0, *n);
    }
    return VQ_OK;
}

vq_status vq_stream_close(vq_stream *s)
{
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2 * s->job->topo.n_replicas; j++)
            VQ_TRY(vq_comm_wait(s->job->comm, &s->out[i][j]));
    return VQ_OK;
}
