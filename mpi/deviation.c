/* deviation - sums over weights, and the lines that they make. */
#include "deviation.h"

#include <math.h>
#include <string.h>

#include "error.h"
#include "log.h"
#include "place.h"

enum { SQUARES, ERROR, RTN_ERROR, MOVED, N_SUMS };

/* Row i of a matrix on the host, as f32: in place, or in to. */
static vq_status row_of(const vq_tensor *m, int64_t i, float *to, const float **row)
{
    const vq_tensor one = vq_tensor_rows(m, i, 1);
    *row = m->dtype == VQ_F32 ? one.data : to;
    return m->dtype == VQ_F32 ? VQ_OK : vq_convert(to, VQ_F32, one.data, m->dtype, m->dim[1]);
}

static void add_row(const float *w, const float *q, const float *rtn, int64_t n,
                    double sums[N_SUMS])
{
    for (int64_t j = 0; j < n; j++) {
        const double x = (double)w[j], e = (double)q[j] - x, r = (double)rtn[j] - x;
        sums[SQUARES] += x * x;
        sums[ERROR] += e * e;
        sums[RTN_ERROR] += r * r;
        sums[MOVED] += q[j] != rtn[j];
    }
}

/* A linear's weights in a mode, on the host. */
static vq_status weight_of(vq_job *job, const vq_vqlinear *l, vq_mode mode, vq_tensor *weight)
{
    VQ_TRY(vq_vqlinear_weight(&job->be, l, mode, &job->scratch, weight));
    return vq_place_host(&job->be, &job->scratch, weight, weight);
}

static vq_status compare(vq_job *job, const vq_vqlinear *l, vq_mode mode, double sums[N_SUMS])
{
    const vq_tensor *w = &l->source->weight;
    const int64_t n = w->dim[1];
    const float *row[3];
    vq_tensor q, rtn;
    float *room[3];
    VQ_TRY(weight_of(job, l, mode, &q));
    VQ_TRY(weight_of(job, l, VQ_MODE_RTN, &rtn));
    for (int k = 0; k < 3; k++) VQ_TRY(VQ_NEW(&job->scratch, n, &room[k]));
    for (int64_t i = 0; i < w->dim[0]; i++) {
        VQ_TRY(row_of(w, i, room[0], &row[0]));
        VQ_TRY(row_of(&q, i, room[1], &row[1]));
        VQ_TRY(row_of(&rtn, i, room[2], &row[2]));
        add_row(row[0], row[1], row[2], n, sums);
    }
    return VQ_OK;
}

/* This rank's layers into their places of sums [n_slots, N_SUMS]. */
static vq_status compare_own(vq_job *job, vq_mode mode, double *sums)
{
    const int64_t first = job->stage.first * VQ_N_KINDS, last = job->stage.last * VQ_N_KINDS;
    vq_progress p;
    vq_progress_begin(&p, "errors", job->comm->size > 1 ? "layers of rank 0" : "layers", 0,
                      job->stage.last - job->stage.first);
    for (int64_t slot = first; slot < last; slot++) {
        vq_progress_step(&p, (slot - first) / VQ_N_KINDS, NULL);
        const vq_vqlinear *l =
            vq_stage_linear(&job->stage, slot / VQ_N_KINDS, (vq_linear_kind)(slot % VQ_N_KINDS));
        if (!l || !l->quantized) continue;
        const size_t mark = vq_arena_mark(&job->scratch);
        VQ_TRY(compare(job, l, mode, sums + slot * N_SUMS));
        vq_arena_reset(&job->scratch, mark);
        vq_weights_release(&job->model.weights, &l->source->weight);
    }
    vq_progress_step(&p, p.total, NULL);
    vq_progress_end(&p);
    return VQ_OK;
}

static double relative(double squares, double base)
{
    return base > 0 ? sqrt(squares / base) : 0;
}

static vq_status write_lines(vq_job *job, const double *sums)
{
    char *path;
    vq_writer w;
    VQ_TRY(vq_job_path(job, &path, "layers.jsonl"));
    VQ_TRY(vq_writer_open(path, &w));
    for (int64_t slot = 0; slot < job->pool.n_slots; slot++) {
        const double *s = sums + slot * N_SUMS;
        const vq_tensor *weight =
            &job->model.layers[slot / VQ_N_KINDS].linear[slot % VQ_N_KINDS].weight;
        if (vq_pool_codes(&job->pool, slot) == 0) continue;
        VQ_TRY(vq_writer_printf(&w,
                                "{\"name\": \"%s\", \"error\": %.6g, \"rtn_error\": %.6g, "
                                "\"moved_ratio\": %.6g}\n",
                                vq_pool_name(&job->model, slot), relative(s[ERROR], s[SQUARES]),
                                relative(s[RTN_ERROR], s[SQUARES]),
                                s[MOVED] / (double)vq_tensor_count(weight)));
    }
    return vq_writer_finish(&w);
}

vq_status vq_deviation_write(vq_job *job, vq_mode mode)
{
    const int64_t n = job->pool.n_slots * N_SUMS;
    double *sums;
    const size_t mark = vq_arena_mark(&job->step);
    vq_comm_at(job->comm, "errors of the weights");
    VQ_TRY(vq_comm_agree(job->comm, VQ_NEW(&job->step, n, &sums)));
    memset(sums, 0, (size_t)n * sizeof *sums);
    vq_status status = job->topo.replica == 0 ? compare_own(job, mode, sums) : VQ_OK;
    VQ_TRY(vq_comm_agree(job->comm, status));
    vq_tensor all = vq_tensor_1d(sums, VQ_F64, n);
    VQ_TRY(vq_comm_sum(job->comm, &all));
    status = job->comm->rank == 0 ? write_lines(job, sums) : VQ_OK;
    vq_arena_reset(&job->step, mark);
    return vq_comm_agree(job->comm, status);
}
