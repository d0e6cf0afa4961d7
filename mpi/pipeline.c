/* pipeline - micro-batches through the stages. */
#include "pipeline.h"

#include "error.h"
#include "log.h"

static int neighbour(const vq_job *job, int by)
{
    return vq_topo_rank(&job->topo, job->topo.stage + by, job->topo.replica);
}

static bool is_first(const vq_job *job)
{
    return job->topo.stage == 0;
}

static bool is_last(const vq_job *job)
{
    return vq_topo_is_last(&job->topo);
}

/* Between stages computing is over before a message is waited for, so that times spent on either
 * can be told apart; one stage queues all of a step at once. */
static vq_status finish(const vq_job *job)
{
    return job->topo.n_stages > 1 ? vq_sync(&job->be) : VQ_OK;
}

/* --- forward only ---------------------------------------------------------------------------- */

#define MICRO_TOKENS 2048

int64_t vq_pipeline_windows(int64_t T)
{
    return VQ_MAX(1, MICRO_TOKENS / T);
}

/* B windows through the stage, micro by micro where there are products. */
static vq_status pass(const vq_stage *stage, vq_mode mode, int64_t B, int64_t micro, int64_t T,
                      const vq_tensor *in, vq_tensor *out)
{
    vq_kept kept;
    const size_t mark = vq_arena_mark(stage->scratch);
    VQ_TRY(vq_kept_init(stage->scratch, stage, B, T, VQ_KEEP_NOTHING, &kept));
    kept.layer[0].product_rows = micro * T;
    VQ_TRY(vq_stage_fwd(stage, mode, B, 0, in, out, &kept));
    vq_arena_reset(stage->scratch, mark);
    return VQ_OK;
}

vq_status vq_pipeline_forward(vq_job *job, const vq_stage *stage, vq_mode mode, vq_stream *stream,
                              int64_t micro, int64_t together, vq_hidden_fn f, void *ctx)
{
    const vq_backend *be = &job->be;
    const int64_t T = stream->windows->T, E = stage->model->config.E, chunk = micro * together;
    int64_t first, count;
    vq_tensor ids, in[2], out[2];
    vq_request receive[2] = {{.peer = 0}}, send[2] = {{.peer = 0}};
    size_t mark = vq_arena_mark(&job->step);
    VQ_TRY(vq_stream_take(stream, &first, &count, &ids));
    for (int i = 0; i < 2; i++) {
        VQ_TRY(vq_tensor_new(&job->step, be->place, be->act, VQ_DIMS(chunk * T, E), &in[i]));
        VQ_TRY(vq_tensor_new(&job->step, be->place, be->act,
                             VQ_DIMS(chunk * T, vq_stage_out_width(stage)), &out[i]));
    }
    const int64_t n_chunks = VQ_CEIL_DIV(count, chunk);
    for (int64_t k = 0; k < n_chunks; k++) {
        /* The chunk after this one may arrive meanwhile. */
        for (int64_t j = k == 0 ? 0 : k + 1; j <= k + 1 && j < n_chunks && !is_first(job); j++) {
            vq_tensor rows = vq_tensor_rows(&in[j % 2], 0, VQ_MIN(chunk, count - j * chunk) * T);
            VQ_TRY(vq_comm_receive(job->comm, &rows, neighbour(job, -1), VQ_TAG_FORWARD,
                                   &receive[j % 2]));
        }
        const int64_t B = VQ_MIN(chunk, count - k * chunk);
        const vq_tensor rows = vq_tensor_rows(&in[k % 2], 0, B * T);
        const vq_tensor chunk_ids = vq_tensor_rows(&ids, k * chunk, B);
        vq_tensor y = vq_tensor_rows(&out[k % 2], 0, B * T);
        VQ_TRY(vq_comm_wait(job->comm, &receive[k % 2]));
        VQ_TRY(vq_comm_wait(job->comm, &send[k % 2]));
        vq_progress_span(0, (double)(B * job->topo.n_replicas));
        VQ_TRY(pass(stage, mode, B, micro, T, is_first(job) ? &chunk_ids : &rows, &y));
        VQ_TRY(finish(job));
        if (is_last(job))
            VQ_TRY(f(ctx, first + k * chunk, B, &chunk_ids, &y));
        else
            VQ_TRY(vq_comm_send(job->comm, &y, neighbour(job, 1), VQ_TAG_FORWARD, &send[k % 2]));
    }
    for (int i = 0; i < 2; i++) VQ_TRY(vq_comm_wait(job->comm, &send[i]));
    vq_arena_reset(&job->step, mark);
    return VQ_OK;
}

/* --- training -------------------------------------------------------------------------------- */

/* A sequence in flight. */
typedef struct vq_set {
    vq_kept kept;
    vq_tensor out, dout;             /* act [T, width of what the stage gives] */
    vq_tensor din;                   /* act [T, E]; not on the first stage */
    vq_request *to_next, *to_before; /* [n_slices] */
} vq_set;

vq_status vq_pipeline_init(vq_arena *arena, vq_job *job, int64_t T, int max_micro, int n_slices,
                           vq_keep keep, vq_pipeline *p)
{
    const vq_backend *be = &job->be;
    const int64_t E = job->model.config.E, width = vq_stage_out_width(&job->stage);
    int64_t longest = 0;
    *p = (vq_pipeline){
        .job = job, .mode = vq_job_mode(job), .T = T, .n_slices = n_slices, .max_micro = max_micro};
    p->n_sets = vq_schedule_in_flight(job->topo.stage, job->topo.n_stages, max_micro);
    VQ_TRY(VQ_NEW(arena, n_slices + 1, &p->cut));
    vq_slice_cut(&job->model.config, T, n_slices, p->cut);
    for (int i = 0; i < n_slices; i++) longest = VQ_MAX(longest, p->cut[i + 1] - p->cut[i]);
    VQ_TRY(VQ_NEW(arena, vq_schedule_count(max_micro, n_slices), &p->step));
    VQ_TRY(VQ_NEW(arena, p->n_sets, &p->set));
    for (int i = 0; i < p->n_sets; i++) {
        vq_set *set = &p->set[i];
        *set = (vq_set){0};
        VQ_TRY(vq_kept_init(arena, &job->stage, 1, T, keep, &set->kept));
        VQ_TRY(vq_tensor_new(arena, be->place, be->act, VQ_DIMS(T, width), &set->out));
        VQ_TRY(vq_tensor_new(arena, be->place, be->act, VQ_DIMS(T, width), &set->dout));
        VQ_TRY(vq_tensor_new(arena, be->place, be->act, VQ_DIMS(T, E), &set->din));
        VQ_TRY(VQ_NEW(arena, n_slices, &set->to_next));
        VQ_TRY(VQ_NEW(arena, n_slices, &set->to_before));
        for (int j = 0; j < n_slices; j++) set->to_next[j] = set->to_before[j] = (vq_request){0};
    }
    for (int i = 0; i < 2 && job->topo.n_stages > 1; i++) {
        VQ_TRY(vq_tensor_new(arena, be->place, be->act, VQ_DIMS(longest, E), &p->from_before[i]));
        VQ_TRY(vq_tensor_new(arena, be->place, be->act, VQ_DIMS(longest, E), &p->from_next[i]));
    }
    return VQ_OK;
}

size_t vq_pipeline_bytes(const vq_job *job, int64_t T, int max_micro, vq_keep keep)
{
    const size_t n_sets =
        (size_t)vq_schedule_in_flight(job->topo.stage, job->topo.n_stages, max_micro);
    const int64_t width = job->model.config.E + 2 * vq_stage_out_width(&job->stage);
    return n_sets * (vq_kept_bytes(&job->stage, 1, T, keep) +
                     (size_t)(T * width) * vq_dtype_bytes(job->be.act));
}

static vq_tensor slice_rows(const vq_pipeline *p, const vq_tensor *t, int slice)
{
    return vq_tensor_rows(t, p->cut[slice], p->cut[slice + 1] - p->cut[slice]);
}

/* Makes ready to receive what step i needs: arrivals are counted from the step's begin. */
static vq_status post(vq_pipeline *p, int64_t i, int *n_before, int *n_next)
{
    const vq_job *job = p->job;
    const vq_step *s = &p->step[i];
    const int64_t n = p->cut[s->slice + 1] - p->cut[s->slice];
    if (s->kind == VQ_FORWARD && !is_first(job)) {
        const int at = (*n_before)++ % 2;
        vq_tensor rows = vq_tensor_rows(&p->from_before[at], 0, n);
        return vq_comm_receive(job->comm, &rows, neighbour(job, -1), VQ_TAG_FORWARD,
                               &p->before_request[at]);
    }
    if (s->kind == VQ_BACKWARD && !is_last(job)) {
        const int at = (*n_next)++ % 2;
        vq_tensor rows = vq_tensor_rows(&p->from_next[at], 0, n);
        return vq_comm_receive(job->comm, &rows, neighbour(job, 1), VQ_TAG_BACKWARD,
                               &p->next_request[at]);
    }
    return VQ_OK;
}

static vq_status run_forward(vq_pipeline *p, const vq_step *s, const vq_tensor *ids, int arrived,
                             vq_loss_fn f, void *ctx)
{
    vq_job *job = p->job;
    vq_set *set = &p->set[s->micro % p->n_sets];
    const int64_t first = p->cut[s->slice], n = p->cut[s->slice + 1] - first;
    vq_tensor out = slice_rows(p, &set->out, s->slice), dout = slice_rows(p, &set->dout, s->slice);
    VQ_TRY(vq_comm_wait(job->comm, &set->to_next[s->slice]));
    if (is_first(job)) {
        const vq_tensor own =
            vq_tensor_2d((int32_t *)ids->data + s->micro * p->T + first, VQ_I32, 1, n);
        VQ_TRY(vq_stage_fwd(&job->stage, p->mode, 1, first, &own, &out, &set->kept));
    } else {
        const vq_tensor in = vq_tensor_rows(&p->from_before[arrived % 2], 0, n);
        VQ_TRY(vq_comm_wait(job->comm, &p->before_request[arrived % 2]));
        VQ_TRY(vq_stage_fwd(&job->stage, p->mode, 1, first, &in, &out, &set->kept));
    }
    VQ_TRY(finish(job));
    if (!is_last(job))
        return vq_comm_send(job->comm, &out, neighbour(job, 1), VQ_TAG_FORWARD,
                            &set->to_next[s->slice]);
    const vq_tensor sequence = vq_tensor_1d((int32_t *)ids->data + s->micro * p->T, VQ_I32, p->T);
    return f(ctx, s->micro, first, &sequence, &out, &dout);
}

static vq_status run_backward(vq_pipeline *p, const vq_step *s, int arrived)
{
    vq_job *job = p->job;
    vq_set *set = &p->set[s->micro % p->n_sets];
    const int64_t first = p->cut[s->slice], n = p->cut[s->slice + 1] - first;
    vq_tensor dout = slice_rows(p, &set->dout, s->slice), din = slice_rows(p, &set->din, s->slice);
    if (!is_last(job)) {
        dout = vq_tensor_rows(&p->from_next[arrived % 2], 0, n);
        VQ_TRY(vq_comm_wait(job->comm, &p->next_request[arrived % 2]));
    }
    VQ_TRY(vq_comm_wait(job->comm, &set->to_before[s->slice]));
    VQ_TRY(vq_stage_bwd(&job->stage, &set->kept, first, &dout, &din));
    VQ_TRY(finish(job));
    if (is_first(job)) return VQ_OK;
    return vq_comm_send(job->comm, &din, neighbour(job, -1), VQ_TAG_BACKWARD,
                        &set->to_before[s->slice]);
}

/* Whether the next stage cannot send what step `wanted` receives before step `now` has sent to it:
 * it takes as many sequences ahead as its place lets it. */
static bool is_answer(const vq_pipeline *p, int n_micro, const vq_step *wanted, const vq_step *now)
{
    const vq_topo *topo = &p->job->topo;
    if (is_last(p->job) || wanted->kind != VQ_BACKWARD || now->kind != VQ_FORWARD) return false;
    return now->micro <
           wanted->micro + vq_schedule_in_flight(topo->stage + 1, topo->n_stages, n_micro);
}

vq_status vq_pipeline_step(vq_pipeline *p, int n_micro, const vq_tensor *ids, vq_loss_fn f,
                           void *ctx)
{
    vq_job *job = p->job;
    VQ_ASSERT(n_micro <= p->max_micro);
    const int64_t n_steps = vq_schedule_count(n_micro, p->n_slices);
    int n_before = 0, n_next = 0, forwards = 0, backwards = 0;
    int64_t posted = 0;
    vq_schedule_make(job->topo.stage, job->topo.n_stages, n_micro, p->n_slices, p->step);
    for (int64_t i = 0; i < n_steps; i++) {
        /* This step's message and the next one's; the codes need none. Never one that answers what
         * is still to be sent: a receive that is begun may hold up what a GPU is given after it. */
        int64_t until = VQ_MIN(i + 1, n_steps - 1);
        if (p->step[until].kind == VQ_CODES) until = VQ_MIN(until + 1, n_steps - 1);
        if (is_answer(p, n_micro, &p->step[until], &p->step[i])) until = i;
        for (; posted <= until; posted++) VQ_TRY(post(p, posted, &n_before, &n_next));
        const vq_step *s = &p->step[i];
        vq_progress_span((double)i / (double)n_steps, (double)(i + 1) / (double)n_steps);
        if (s->kind == VQ_FORWARD)
            VQ_TRY(run_forward(p, s, ids, forwards++, f, ctx));
        else if (s->kind == VQ_BACKWARD)
            VQ_TRY(run_backward(p, s, backwards++));
        else
            VQ_TRY(vq_stage_bwd_codes(&job->stage, &p->set[s->micro % p->n_sets].kept));
    }
    VQ_TRY(finish(job));
    for (int i = 0; i < p->n_sets; i++)
        for (int j = 0; j < p->n_slices; j++) {
            VQ_TRY(vq_comm_wait(job->comm, &p->set[i].to_next[j]));
            VQ_TRY(vq_comm_wait(job->comm, &p->set[i].to_before[j]));
        }
    return VQ_OK;
}
