/* shelf - a file of each layer and replica. */
#include "shelf.h"

#include <stdio.h>
#include <string.h>

#include "error.h"
#include "place.h"

/* One linear's tensors, by their names in the file; those that a run does not have have no data. */
typedef struct part {
    const char *name;
    vq_tensor *tensor;
} part;

#define N_PARTS 8

static void parts_of(vq_vqlinear *l, part parts[N_PARTS])
{
    const part all[N_PARTS] = {{"base", &l->quant.base}, {"scale", &l->quant.scale},
                               {"zero", &l->quant.zero}, {"idx", &l->quant.idx},
                               {"counts", &l->counts},   {"codes", &l->codes},
                               {"ints", &l->ints},       {"order", &l->order}};
    memcpy(parts, all, sizeof all);
}

static vq_status pass_parts(vq_job *job, vq_h5 *h, vq_vqlinear *l, bool write)
{
    part parts[N_PARTS];
    char name[320];
    parts_of(l, parts);
    for (int i = 0; i < N_PARTS; i++) {
        if (!parts[i].tensor->data) continue;
        snprintf(name, sizeof name, "%s/%s", l->source->name, parts[i].name);
        VQ_TRY(write ? vq_place_write(&job->be, &job->scratch, h, name, parts[i].tensor)
                     : vq_place_read(&job->be, &job->scratch, h, name, parts[i].tensor));
    }
    return VQ_OK;
}

vq_status vq_shelf_write(vq_job *job, vq_h5 *h, vq_vqlinear *l)
{
    return pass_parts(job, h, l, true);
}

vq_status vq_shelf_read(vq_job *job, vq_h5 *h, vq_vqlinear *l)
{
    return pass_parts(job, h, l, false);
}

vq_status vq_shelf_files(vq_arena *arena, const vq_shelf *s, const char *dir, int64_t layer,
                         char ***paths, int64_t *n)
{
    char start[64];
    snprintf(start, sizeof start, "%s%04lld-", s->prefix, (long long)layer);
    return vq_job_files(arena, dir, start, paths, n);
}

vq_status vq_shelf_create(vq_job *job, const vq_shelf *s, int64_t layer, vq_h5 *h)
{
    char *path;
    VQ_TRY(vq_job_path(job, &path, "%s%04lld-%04d.h5", s->prefix, (long long)layer,
                       job->topo.replica));
    VQ_TRY(vq_h5_create(&job->run, path, s->kind, s->layout, h));
    return vq_h5_set_u64(h, NULL, "key", s->key);
}

vq_status vq_shelf_read_layer(vq_job *job, const vq_shelf *s, int64_t layer, bool read,
                              bool found[VQ_N_KINDS])
{
    char **paths, name[320];
    int64_t n;
    const size_t mark = vq_arena_mark(&job->scratch);
    VQ_TRY(vq_shelf_files(&job->scratch, s, job->config->out, layer, &paths, &n));
    for (int64_t i = 0; i < n; i++) {
        vq_h5 h;
        VQ_TRY(vq_h5_open(&job->scratch, paths[i], s->kind, s->layout, &h));
        vq_status status = vq_h5_check_u64(&h, "key", s->key, s->settings);
        for (int k = 0; k < VQ_N_KINDS && !status; k++) {
            if (found[k] || !vq_job_has_slot(job, layer * VQ_N_KINDS + k)) continue;
            vq_vqlinear *l = vq_stage_linear(&job->stage, layer, (vq_linear_kind)k);
            snprintf(name, sizeof name, "%s/%s", l->source->name, s->part);
            if (!vq_h5_has(&h, name)) continue;
            if (read) status = vq_shelf_read(job, &h, l);
            found[k] = true;
        }
        vq_h5_close(&h);
        VQ_TRY(status);
    }
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

vq_status vq_shelf_look(vq_job *job, const vq_shelf *s, bool read, bool are_made, double *missing)
{
    vq_status status = VQ_OK;
    for (int64_t i = 0; i < job->model.config.N; i++) missing[i] = 0;
    for (int64_t i = job->stage.first; i < job->stage.last && !status; i++) {
        bool found[VQ_N_KINDS];
        for (int k = 0; k < VQ_N_KINDS; k++)
            found[k] = are_made && vq_job_makes_slot(job, i * VQ_N_KINDS + k);
        status = vq_shelf_read_layer(job, s, i, read, found);
        for (int k = 0; k < VQ_N_KINDS; k++)
            missing[i] += vq_job_has_slot(job, i * VQ_N_KINDS + k) && !found[k];
    }
    VQ_TRY(vq_comm_agree(job->comm, status));
    vq_tensor sum = vq_tensor_1d(missing, VQ_F64, job->model.config.N);
    return vq_comm_sum(job->comm, &sum);
}

bool vq_shelf_is_whole(const vq_job *job, const double *missing)
{
    for (int64_t i = 0; i < job->model.config.N; i++)
        if (missing[i] > 0) return false;
    return true;
}
