/* blocks - two streams of inputs through the layers, the teacher's and the student's. */
#include "blocks.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "adam.h"
#include "error.h"
#include "log.h"
#include "loss.h"
#include "place.h"
#include "stream.h"

#define KIND "blocks"
#define LAYOUT 2
#define PREFIX "blocks-"

typedef struct loop {
    vq_job *job;
    const vq_config *config;
    uint64_t key;              /* of the files */
    const double *missing;     /* [N] layers that are to be trained; the others have been */
    vq_sweep teacher, student; /* their inputs of the layer at work; the teacher's outputs next */
    vq_stream stream;          /* an epoch of steps */
    int64_t *first, *n;        /* [stream.count] this replica's windows of a step, in the sweeps */
    vq_adam adam;
    double *power;  /* [1] mean of |t|^2 over all tokens, of the layer at work */
    double loss[2]; /* of the layer at work: task and regularizer of the running step */
    vq_progress progress;
} loop;

/* --- inputs ---------------------------------------------------------------------------------- */

/* The windows of an epoch of steps, one after the other. */
static vq_status open_sweeps(loop *L, const vq_windows *windows)
{
    vq_job *job = L->job;
    const int64_t epoch = VQ_CEIL_DIV(windows->n, L->config->train.batch);
    double room;
    int64_t n_own = 0, window;
    char *teacher, *student;
    VQ_TRY(VQ_NEW(&job->step, epoch, &L->first));
    VQ_TRY(VQ_NEW(&job->step, epoch, &L->n));
    VQ_TRY(vq_stream_steps(&job->step, job, windows, 0, epoch, &L->stream));
    for (int64_t m = 0; m < epoch; m++) {
        vq_stream_share(&L->stream, m, job->topo.replica, &window, &L->n[m]);
        L->first[m] = n_own;
        n_own += L->n[m];
    }
    const vq_sweep sweep = {.job = job, .stage = &job->stage, .arena = &job->step};
    L->teacher = L->student = sweep;
    VQ_TRY(vq_job_room(job, &room));
    VQ_TRY(vq_job_path(job, &teacher, "sweep-teacher-%04d.h5", job->comm->rank));
    VQ_TRY(vq_job_path(job, &student, "sweep-student-%04d.h5", job->comm->rank));
    VQ_TRY(vq_sweep_open(&L->teacher, n_own, windows->n, windows->T, (size_t)(room / 4), teacher));
    return vq_sweep_open(&L->student, n_own, windows->n, windows->T, (size_t)(room / 4), student);
}

/* The embeddings of the windows are the inputs of layer 0. */
static vq_status embed(loop *L)
{
    vq_job *job = L->job;
    const vq_backend *be = &job->be;
    for (int64_t m = 0; m < L->stream.count; m++) {
        const size_t mark = vq_arena_mark(&job->step);
        int64_t window, n;
        vq_tensor ids, x;
        VQ_TRY(vq_stream_take(&L->stream, &window, &n, &ids));
        if (!vq_stage_is_first(&job->stage) || n == 0) continue;
        VQ_TRY(vq_tensor_new(&job->step, be->place, be->act,
                             VQ_DIMS(n * L->teacher.T, job->model.config.E), &x));
        VQ_TRY(vq_stage_embed(&job->stage, &ids, 0, &x));
        VQ_TRY(vq_sweep_set_inputs(&L->teacher, L->first[m], &x));
        VQ_TRY(vq_sweep_set_inputs(&L->student, L->first[m], &x));
        vq_arena_reset(&job->step, mark);
    }
    return vq_stream_close(&L->stream);
}

static vq_status pass_on(void *ctx, bool on)
{
    loop *L = ctx;
    VQ_TRY(vq_sweep_pass_on(&L->teacher, on));
    return vq_sweep_pass_on(&L->student, on);
}

/* --- files ----------------------------------------------------------------------------------- */

/* Writes or reads the numbers of a slot. */
static vq_status pass_slot(vq_h5 *h, vq_job *job, int64_t slot, bool write)
{
    vq_tensor part[] = {vq_pool_part(&job->pool, &job->pool.codes, slot),
                        vq_pool_scales(&job->pool, &job->pool.codes, slot)};
    static const char *const names[] = {"codes", "factor"};
    char name[320];
    for (int i = 0; i < 2; i++) {
        if (!part[i].data) continue;
        snprintf(name, sizeof name, "%s/%s", vq_pool_name(&job->model, slot), names[i]);
        VQ_TRY(write ? vq_place_write(&job->be, &job->scratch, h, name, &part[i])
                     : vq_place_read(&job->be, &job->scratch, h, name, &part[i]));
    }
    return VQ_OK;
}

static vq_status pass_layer(vq_h5 *h, vq_job *job, int64_t layer, bool write)
{
    for (int64_t slot = layer * VQ_N_KINDS; slot < (layer + 1) * VQ_N_KINDS; slot++)
        if (vq_job_has_slot(job, slot)) VQ_TRY(pass_slot(h, job, slot, write));
    return VQ_OK;
}

static vq_status path_of(vq_job *job, int64_t layer, char **path)
{
    return vq_job_path(job, path, PREFIX "%04lld.h5", (long long)layer);
}

/* Replicas have the same numbers: one of them keeps a layer. */
static vq_status write_layer(loop *L, int64_t layer)
{
    vq_job *job = L->job;
    char *path;
    vq_h5 h;
    if (job->topo.replica > 0) return VQ_OK;
    VQ_TRY(path_of(job, layer, &path));
    VQ_TRY(vq_h5_create(&job->run, path, KIND, LAYOUT, &h));
    vq_status status = vq_h5_set_u64(&h, NULL, "key", L->key);
    if (!status) status = pass_layer(&h, job, layer, true);
    if (!status) return vq_h5_finish(&h);
    vq_h5_close(&h);
    return status;
}

/* Reads the layers of the stage that an earlier run has trained; missing: 1 for the others. */
static vq_status read_layers(vq_job *job, uint64_t key, double *missing)
{
    for (int64_t i = job->stage.first; i < job->stage.last; i++) {
        char *path;
        vq_h5 h;
        VQ_TRY(path_of(job, i, &path));
        missing[i] = !vq_file_exists(path);
        if (missing[i] > 0) continue;
        VQ_TRY(vq_h5_open(&job->run, path, KIND, LAYOUT, &h));
        vq_status status = vq_h5_check_u64(&h, "key", key, "the settings of the layers' training");
        if (!status) status = pass_layer(&h, job, i, false);
        vq_h5_close(&h);
        VQ_TRY(status);
    }
    return VQ_OK;
}

/* The same on all ranks: missing is above 0 where a rank lacks a layer. Collective. */
static vq_status find_layers(vq_job *job, uint64_t key, double *missing, int64_t *n_missing)
{
    const int64_t N = job->model.config.N;
    for (int64_t i = 0; i < N; i++) missing[i] = 0;
    VQ_TRY(vq_comm_agree(job->comm, read_layers(job, key, missing)));
    vq_tensor sum = vq_tensor_1d(missing, VQ_F64, N);
    VQ_TRY(vq_comm_sum(job->comm, &sum));
    *n_missing = 0;
    for (int64_t i = 0; i < N; i++) *n_missing += missing[i] > 0;
    if (*n_missing < N)
        vq_log(VQ_LOG_INFO, "blocks   %lld of %lld layers from an earlier run",
               (long long)(N - *n_missing), (long long)N);
    return VQ_OK;
}

/* --- a layer --------------------------------------------------------------------------------- */

/* The teacher's inputs become its outputs; their mean square. */
static vq_status run_teacher(loop *L, int64_t layer)
{
    vq_job *job = L->job;
    const vq_sweep *s = &L->teacher;
    vq_tensor power = vq_tensor_1d(L->power, VQ_F64, 1);
    VQ_TRY(vq_sweep_pass(&L->teacher, layer, VQ_MODE_FLOAT));
    *L->power = 0;
    for (int64_t i = 0; i < s->n; i++) {
        const size_t mark = vq_arena_mark(&job->step);
        double norm;
        vq_tensor t;
        VQ_TRY(vq_tensor_new(&job->step, job->be.place, job->be.act,
                             VQ_DIMS(s->T, job->model.config.E), &t));
        VQ_TRY(vq_sweep_get_inputs(s, i, &t));
        VQ_TRY(vq_norm2(&job->be, &norm, &t));
        *L->power += norm;
        vq_arena_reset(&job->step, mark);
    }
    VQ_TRY(vq_job_sum_replicas(job, &power));
    *L->power /= (double)(s->n_all * s->T);
    return VQ_OK;
}

/* Forward and backward of this replica's windows of a step: loss and gradients are added to. */
static vq_status pass_windows(loop *L, int64_t layer, int64_t m, double scale)
{
    vq_job *job = L->job;
    const vq_backend *be = &job->be;
    const vq_model_config *c = &job->model.config;
    const vq_block *block = &job->stage.block[layer - job->stage.first];
    const int64_t T = L->student.T, n = L->n[m];
    const size_t mark = vq_arena_mark(&job->step);
    vq_acts acts;
    vq_act_grads grads;
    vq_tensor y, target;
    if (n == 0) return VQ_OK;
    VQ_TRY(vq_acts_init(&job->step, be, c, n, T, &acts));
    VQ_TRY(vq_act_grads_init(&job->step, be, c, n, T, &grads));
    VQ_TRY(vq_tensor_new(&job->step, be->place, be->act, VQ_DIMS(n * T, c->E), &y));
    VQ_TRY(vq_tensor_new(&job->step, be->place, be->act, VQ_DIMS(n * T, c->E), &target));
    VQ_TRY(vq_sweep_get_inputs(&L->student, L->first[m], &acts.x));
    VQ_TRY(vq_sweep_get_inputs(&L->teacher, L->first[m], &target));
    VQ_TRY(vq_block_fwd(block, vq_job_mode(job), &job->scratch, &acts, 0, T, &y));
    VQ_TRY(vq_mse(be, &L->loss[0], &y, &y, &target, scale));
    VQ_TRY(vq_block_bwd(block, vq_job_mode(job), &job->scratch, &acts, &grads, 0, T, &y, NULL));
    VQ_TRY(vq_block_bwd_codes(block, &job->scratch, &acts, &grads));
    vq_arena_reset(&job->step, mark);
    return VQ_OK;
}

static vq_status regularize(loop *L, int64_t layer, int64_t step)
{
    const vq_config *c = L->config;
    const double beta = vq_loss_beta_of(c, step, c->train.block_steps);
    if (c->train.rounding == VQ_ROUNDING_HARD || c->train.block_round_weight <= 0 ||
        L->job->topo.replica > 0 || !vq_loss_is_on(step, c->train.block_steps))
        return VQ_OK;
    for (int k = 0; k < VQ_N_KINDS; k++) {
        const vq_vqlinear *l = vq_stage_linear(&L->job->stage, layer, (vq_linear_kind)k);
        if (l && l->quantized)
            VQ_TRY(vq_vqlinear_reg(&L->job->be, l, &L->job->scratch, &L->loss[1],
                                   c->train.block_round_weight, beta));
    }
    return VQ_OK;
}

static vq_status set_scales(loop *L, int64_t layer)
{
    for (int k = 0; k < VQ_N_KINDS; k++) {
        vq_vqlinear *l = vq_stage_linear(&L->job->stage, layer, (vq_linear_kind)k);
        if (l) VQ_TRY(vq_vqlinear_set_scale(&L->job->be, l));
    }
    return VQ_OK;
}

static vq_status run_step(loop *L, int64_t layer, int64_t step)
{
    vq_job *job = L->job;
    const vq_config *c = L->config;
    const int64_t m = step % L->stream.count;
    const double share = vq_adam_share(c->train.lr_schedule, step, c->train.block_steps);
    const double scale = 1 / (*L->power * (double)vq_stream_total(&L->stream, m));
    vq_tensor grad[2], loss = vq_tensor_1d(L->loss, VQ_F64, 2);
    for (int i = 0; i < 2; i++) {
        grad[i] = vq_pool_layer(&job->pool, &job->pool.grad, layer, i);
        VQ_TRY(vq_zero(&job->be, &grad[i]));
    }
    L->loss[0] = L->loss[1] = 0;
    VQ_TRY(pass_windows(L, layer, m, isfinite(scale) ? scale : 1));
    VQ_TRY(regularize(L, layer, step));
    VQ_TRY(vq_sync(&job->be)); /* the losses are there */
    VQ_TRY(vq_job_sum_replicas(job, &loss));
    for (int i = 0; i < 2; i++) VQ_TRY(vq_job_sum_replicas(job, &grad[i]));
    VQ_CHECK(isfinite(L->loss[0] + L->loss[1]), VQ_ENOTFINITE,
             "layer %lld, step %lld of its own training: error %g, regularizer %g: expected finite "
             "numbers. Lower --block-lr",
             (long long)layer, (long long)step, L->loss[0], L->loss[1]);
    VQ_TRY(vq_adam_update_layer(&job->be, &L->adam, &job->pool, layer, share * c->train.block_lr,
                                share * c->train.scale_lr));
    return set_scales(L, layer);
}

/* A layer that has been trained: its outputs become the inputs of the next. */
static vq_status pass_trained(loop *L, int64_t layer)
{
    VQ_TRY(set_scales(L, layer));
    VQ_TRY(vq_sweep_pass(&L->teacher, layer, VQ_MODE_FLOAT));
    VQ_TRY(vq_sweep_pass(&L->student, layer, vq_job_mode(L->job)));
    vq_progress_step(&L->progress, layer + 1 - L->job->stage.first, "layer %lld", (long long)layer);
    return VQ_OK;
}

static vq_status train_layer(void *ctx, int64_t layer, bool *is_made)
{
    loop *L = ctx;
    vq_job *job = L->job;
    const int64_t steps = L->config->train.block_steps, epoch = L->stream.count;
    vq_comm_at(job->comm, "blocks, layer %lld", (long long)layer);
    *is_made = L->missing[layer] > 0;
    if (!*is_made) return pass_trained(L, layer);
    VQ_TRY(run_teacher(L, layer));
    L->adam.step = 0;
    double before = 0, after = 0;
    /* Of the first steps and the last, as many as an epoch has, or half of all. */
    const int64_t some = VQ_MAX(1, VQ_MIN(epoch, steps / 2));
    for (int64_t step = 0; step < steps; step++) {
        VQ_TRY(run_step(L, layer, step));
        const double error = L->loss[0] / (double)(L->student.T * some);
        if (step < some) before += error;
        if (step >= steps - some) after += error;
    }
    VQ_TRY(write_layer(L, layer));
    VQ_TRY(vq_sweep_pass(&L->student, layer, vq_job_mode(job)));
    vq_progress_step(&L->progress, layer + 1 - job->stage.first, "relative error %.3g -> %.3g",
                     before, after);
    return VQ_OK;
}

/* --- all layers ------------------------------------------------------------------------------ */

static vq_status train_layers(loop *L)
{
    const vq_stage *stage = &L->job->stage;
    VQ_TRY(vq_comm_end(L->job->comm, embed(L)));
    vq_progress_begin(&L->progress, "blocks", "layers", 0, stage->last - stage->first);
    const vq_status status = vq_sweep_in_turn(L->job, pass_on, train_layer, L);
    vq_progress_end(&L->progress);
    return status;
}

static vq_status open_loop(loop *L, const vq_windows *windows)
{
    VQ_TRY(VQ_NEW(&L->job->step, 1, &L->power));
    VQ_TRY(vq_adam_init(&L->job->step, &L->job->be, &L->job->pool, &L->adam));
    return open_sweeps(L, windows);
}

/* Trains the layers of this stage that are missing and leaves their files. */
static vq_status train_stage(vq_job *job, const vq_data *data, uint64_t key, const double *missing)
{
    loop L = {.job = job, .config = job->config, .key = key, .missing = missing};
    const size_t mark = vq_arena_mark(&job->step);
    L.teacher.file.id = L.student.file.id = -1;
    VQ_TRY(vq_comm_agree(job->comm, open_loop(&L, &data->calib)));
    const vq_status status = train_layers(&L);
    vq_sweep_close(&L.teacher);
    vq_sweep_close(&L.student);
    vq_arena_reset(&job->step, mark);
    return vq_comm_agree(job->comm, status);
}

vq_status vq_blocks_train(vq_job *job, const vq_data *data, double *seconds)
{
    const double start_s = vq_seconds();
    int64_t n_missing;
    double *missing;
    uint64_t key = vq_hash_u64(vq_config_phase_hash(job->config, VQ_PHASE_BLOCKS), job->init_key);
    key = vq_hash_u64(key, data->calib_hash);
    vq_comm_at(job->comm, "blocks");
    VQ_TRY(VQ_NEW(&job->run, job->model.config.N, &missing));
    VQ_TRY(vq_comm_agree(job->comm, vq_stage_learn_scales(&job->stage, &job->weights)));
    VQ_TRY(find_layers(job, key, missing, &n_missing));
    if (n_missing > 0) VQ_TRY(train_stage(job, data, key, missing));
    VQ_TRY(vq_stage_set_scales(&job->stage));
    *seconds = vq_seconds() - start_s;
    return job->pool.is_whole ? vq_job_share_pool(job) : VQ_OK;
}
