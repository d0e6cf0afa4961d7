/* schedule - 1F1B with token slices, and its simulation. */
#include "schedule.h"

#include "error.h"

int64_t vq_schedule_count(int n_micro, int n_slices)
{
    return (int64_t)n_micro * (2 * n_slices + 1);
}

int vq_schedule_in_flight(int stage, int n_stages, int n_micro)
{
    return VQ_MIN(n_micro, n_stages - stage);
}

static vq_step *forward(vq_step *to, int micro, int n_slices)
{
    for (int i = 0; i < n_slices; i++) *to++ = (vq_step){VQ_FORWARD, micro, i};
    return to;
}

static vq_step *backward(vq_step *to, int micro, int n_slices)
{
    for (int i = n_slices - 1; i >= 0; i--) *to++ = (vq_step){VQ_BACKWARD, micro, i};
    *to++ = (vq_step){VQ_CODES, micro, 0};
    return to;
}

void vq_schedule_make(int stage, int n_stages, int n_micro, int n_slices, vq_step *out)
{
    const int ahead = vq_schedule_in_flight(stage, n_stages, n_micro) - 1;
    for (int m = 0; m < ahead; m++) out = forward(out, m, n_slices);
    for (int m = 0; m < n_micro; m++) {
        if (m + ahead < n_micro) out = forward(out, m + ahead, n_slices);
        out = backward(out, m, n_slices);
    }
}

void vq_slice_cut(const vq_model_config *c, int64_t T, int n_slices, int64_t *cut)
{
    /* Cost of the first t tokens: t weights' worth of products, and t^2 / 2 of attention. */
    const double linear = (double)vq_layer_weights(c), attend = (double)(c->H * c->S);
    const double total = linear * (double)T + attend * (double)T * (double)T;
    cut[0] = 0;
    for (int i = 1; i <= n_slices; i++) {
        const double wanted = total * i / n_slices;
        int64_t t = cut[i - 1] + 1;
        while (t < T && linear * (double)t + attend * (double)t * (double)t < wanted) t++;
        cut[i] = VQ_MIN(t, T - (n_slices - i)); /* a token is left for each slice to come */
    }
    cut[n_slices] = T;
}

/* A stage on its way through its list. */
typedef struct runner {
    vq_step *step;
    int64_t at;      /* the next step */
    double now_s;    /* when the last one ended */
    double *done[2]; /* [n_micro n_slices] by VQ_FORWARD, VQ_BACKWARD: when; negative: not yet */
} runner;

static double spent_s(const vq_stage_cost *cost, const vq_step *step, const double *share)
{
    return step->kind == VQ_FORWARD    ? share[step->slice] * cost->forward_s
           : step->kind == VQ_BACKWARD ? share[step->slice] * cost->backward_s
                                       : cost->codes_s;
}

/* Takes stage s as far as the messages that have come allow; returns the time spent. */
static double advance(runner *run, int s, int n_stages, int n_slices, int64_t n_steps,
                      const double *share, const vq_stage_cost *cost)
{
    runner *r = &run[s];
    double busy_s = 0;
    for (; r->at < n_steps; r->at++) {
        const vq_step *step = &r->step[r->at];
        const int64_t piece = (int64_t)step->micro * n_slices + step->slice;
        const int from = step->kind == VQ_FORWARD ? s - 1 : s + 1;
        const bool has_message = step->kind != VQ_CODES && from >= 0 && from < n_stages;
        if (has_message) {
            const double sent_s = run[from].done[step->kind][piece];
            if (sent_s < 0) break;
            r->now_s = VQ_MAX(r->now_s, sent_s + share[step->slice] * cost[s].message_s);
        }
        busy_s += spent_s(&cost[s], step, share);
        r->now_s += spent_s(&cost[s], step, share);
        if (step->kind != VQ_CODES) r->done[step->kind][piece] = r->now_s;
    }
    return busy_s;
}

vq_status vq_schedule_idle(vq_arena *scratch, int n_stages, int n_micro, int n_slices,
                           const double *share, const vq_stage_cost *cost, double *idle)
{
    const int64_t n_steps = vq_schedule_count(n_micro, n_slices);
    const int64_t n_pieces = (int64_t)n_micro * n_slices;
    double busy_s = 0, end_s = 0;
    runner *run;
    size_t mark = vq_arena_mark(scratch);
    VQ_TRY(VQ_NEW(scratch, n_stages, &run));
    for (int s = 0; s < n_stages; s++) {
        run[s] = (runner){0};
        VQ_TRY(VQ_NEW(scratch, n_steps, &run[s].step));
        vq_schedule_make(s, n_stages, n_micro, n_slices, run[s].step);
        for (int kind = 0; kind < 2; kind++) {
            VQ_TRY(VQ_NEW(scratch, n_pieces, &run[s].done[kind]));
            for (int64_t i = 0; i < n_pieces; i++) run[s].done[kind][i] = -1;
        }
    }
    for (int64_t left = n_stages * n_steps; left > 0;) {
        const int64_t before = left;
        for (int s = 0; s < n_stages; s++) {
            const int64_t at = run[s].at;
            busy_s += advance(run, s, n_stages, n_slices, n_steps, share, cost);
            left -= run[s].at - at;
        }
        VQ_ASSERT(left < before);
    }
    for (int s = 0; s < n_stages; s++) end_s = VQ_MAX(end_s, run[s].now_s);
    *idle = end_s > 0 ? 1 - busy_s / (end_s * n_stages) : 0;
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}
