/* schedule - 1F1B with token slices, and its simulation. */
#include "schedule.h"

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

/* When piece (stage, micro, slice) of a kind ends. */
static double *end_of(double *work, vq_step_kind kind, int n_stages, int n_micro, int n_slices,
                      int stage, int micro, int slice)
{
    return &work[(((int64_t)kind * n_stages + stage) * n_micro + micro) * n_slices + slice];
}

double vq_schedule_idle(int n_stages, int n_micro, int n_slices, const double *share,
                        const vq_stage_cost *cost, double *work)
{
#define END(kind, stage, micro, slice)                                                             \
    (*end_of(work, kind, n_stages, n_micro, n_slices, stage, micro, slice))
    const int64_t n_steps = vq_schedule_count(n_micro, n_slices);
    const int64_t n_work = (int64_t)3 * n_stages * n_micro * n_slices;
    double busy = 0, last = 0;
    for (int64_t i = 0; i < n_work; i++) work[i] = -1;
    /* Each stage goes through its list; a pass over the stages moves everyone as far as the
     * messages that have come allow. The lists are derived again instead of kept. */
    for (bool moved = true; moved;) {
        moved = false;
        for (int s = 0; s < n_stages; s++) {
            double now = 0;
            const int ahead = vq_schedule_in_flight(s, n_stages, n_micro) - 1;
            int fm = 0, fs = 0, bm = 0, bs = n_slices - 1; /* next forward, next backward */
            for (int64_t i = 0; i < n_steps; i++) {
                const bool is_forward = fm < n_micro && fm <= bm + ahead;
                double ready = 0, spent, *end;
                if (is_forward) {
                    end = &END(VQ_FORWARD, s, fm, fs);
                    if (s > 0) ready = END(VQ_FORWARD, s - 1, fm, fs);
                    spent = share[fs] * cost[s].forward_s;
                    if (s > 0 && ready >= 0) ready += share[fs] * cost[s].message_s;
                    if (++fs == n_slices) fm++, fs = 0;
                } else if (bs >= 0) {
                    end = &END(VQ_BACKWARD, s, bm, bs);
                    if (s < n_stages - 1) ready = END(VQ_BACKWARD, s + 1, bm, bs);
                    spent = share[bs] * cost[s].backward_s;
                    if (s < n_stages - 1 && ready >= 0) ready += share[bs] * cost[s].message_s;
                    bs--;
                } else {
                    end = &END(VQ_CODES, s, bm, 0);
                    spent = cost[s].codes_s;
                    bm++, bs = n_slices - 1;
                }
                if (*end < 0) {
                    if (ready < 0) break;
                    *end = VQ_MAX(now, ready) + spent;
                    busy += spent;
                    moved = true;
                }
                now = *end;
            }
            last = VQ_MAX(last, now);
        }
    }
#undef END
    return last > 0 ? 1 - busy / (last * n_stages) : 0;
}
