/* run - the job on one screen. */
#include "run.h"

#include "blocks.h"
#include "deviation.h"
#include "error.h"
#include "evaluate.h"
#include "exporter.h"
#include "folder.h"
#include "guard.h"
#include "inputs.h"
#include "log.h"
#include "outcome.h"
#include "plan_job.h"

/* At the end of a phase, whose file is kept: gives memory back. VQ_ESTOPPED on every rank if a
 * signal reached one. */
static vq_status end_phase(vq_job *job)
{
    vq_job_trim(job);
    return vq_comm_agree(job->comm, vq_guard_check(job->config->out));
}

/* A job that was asked to stop: rank 0 says so, whoever was asked. */
static vq_status say_stopped(const vq_config *c, int rank)
{
    const char *reason = vq_guard_stop(0);
    if (rank != 0) vq_error_clear();
    VQ_CHECK(rank != 0 || vq_error_message()[0], VQ_ESTOPPED,
             "%s: stopped by %s, as asked. Run the same command again to go on", c->out,
             reason ? reason : "another rank");
    return VQ_ESTOPPED;
}

static vq_status evaluate(vq_job *job, const vq_data *data, vq_mode mode, const char *label,
                          uint64_t key, vq_results *r, double *perplexity)
{
    vq_eval_result e = {0};
    /* What no training went into others may need too. */
    const bool share = key != job->train_key;
    VQ_TRY(vq_evaluate_once(job, &job->stage, mode, data, label, key, share, &e));
    *perplexity = e.perplexity;
    r->seconds.eval += e.seconds;
    return end_phase(job);
}

/* Perplexities before training: they cost little, and show early what is to be gained. */
static vq_status evaluate_before(vq_job *job, const vq_data *data, vq_results *r)
{
    const uint64_t model = job->model.fingerprint, grid = job->grid_key, init = job->init_key;
    if (data->eval.n == 0) return VQ_OK;
    VQ_TRY(evaluate(job, data, VQ_MODE_FLOAT, "fp", model, r, &r->perplexity.fp));
    VQ_TRY(evaluate(job, data, VQ_MODE_RTN, "rtn", grid, r, &r->perplexity.rtn));
    const bool learns = vq_config_learns(job->config);
    const bool from_gptq = vq_config_uses_gptq(job->config);
    if (vq_config_needs_ints(job->config))
        VQ_TRY(evaluate(job, data, VQ_MODE_GPTQ, "gptq", grid, r, &r->perplexity.gptq));
    if (!job->config->eval.start || !learns) return VQ_OK;
    VQ_TRY(evaluate(job, data, VQ_MODE_SOFT, "start_soft", init, r, &r->perplexity.start_soft));
    VQ_TRY(evaluate(job, data, VQ_MODE_HARD, "start_hard", init, r, &r->perplexity.start_hard));
    vq_log(VQ_LOG_INFO, "init     the codebook's cost: hard perplexity %.4g (%s) -> %.4g (codes)",
           from_gptq ? r->perplexity.gptq : r->perplexity.rtn, from_gptq ? "GPTQ" : "RTN",
           r->perplexity.start_hard);
    return VQ_OK;
}

static vq_status evaluate_after(vq_job *job, const vq_data *data, vq_results *r)
{
    const uint64_t key = job->train_key;
    if (data->eval.n == 0) return VQ_OK;
    if (vq_job_mode(job) == VQ_MODE_SOFT) /* trained with final roundings the others mean nothing */
        VQ_TRY(evaluate(job, data, VQ_MODE_SOFT, "soft", key, r, &r->perplexity.soft));
    return evaluate(job, data, VQ_MODE_HARD, "hard", key, r, &r->perplexity.hard);
}

/* The layers one by one, where that is asked for. */
static vq_status train_blocks(vq_job *job, const vq_data *data, vq_results *r)
{
    double perplexity;
    if (job->config->train.block_steps == 0) return VQ_OK;
    VQ_TRY(vq_blocks_train(job, data, &r->seconds.blocks));
    VQ_TRY(end_phase(job));
    if (!job->config->eval.start || data->eval.n == 0) return VQ_OK;
    const uint64_t key =
        vq_hash_u64(vq_config_phase_hash(job->config, VQ_PHASE_BLOCKS), job->init_key);
    return evaluate(job, data, vq_job_mode(job), "blocks", key, r, &perplexity);
}

static vq_status train(vq_job *job, const vq_data *data, vq_results *r, vq_train_stats *stats)
{
    vq_teacher teacher;
    VQ_TRY(train_blocks(job, data, r));
    VQ_TRY(vq_cache_teacher(job, data, &teacher));
    vq_status status = end_phase(job);
    if (!status) status = vq_train(job, data, &teacher, stats);
    vq_teacher_close(&teacher);
    r->seconds.teacher = teacher.seconds;
    r->seconds.train = stats->seconds;
    r->steps = stats->steps;
    r->seconds_per_step = stats->steps ? stats->seconds / (double)stats->steps : 0;
    return status;
}

static vq_status export_model(vq_job *job, double *bytes, vq_results *r)
{
    const vq_mode mode = vq_export_mode(job->config);
    const double start_s = vq_seconds();
    char *dir;
    VQ_TRY(vq_job_path(job, &dir, "model"));
    VQ_TRY(vq_deviation_write(job, mode));
    VQ_TRY(vq_export_model(job, mode, dir, bytes));
    r->seconds.export = vq_seconds() - start_s;
    return VQ_OK;
}

static vq_status open_folder(vq_job *job, vq_folder *folder, int argc, const char *const *argv)
{
    const bool is_leader = job->comm->rank == 0;
    VQ_TRY(vq_comm_agree(job->comm, is_leader ? vq_folder_open(job, argc, argv, folder) : VQ_OK));
    job->comm->run = job->config->out; /* ours from here on: where an error is written down */
    return VQ_OK;
}

static vq_status run(vq_job *job, vq_folder *folder, int argc, const char *const *argv)
{
    const vq_config *c = job->config;
    const int64_t T_max = VQ_MAX(c->seqlen, c->eval.run ? c->eval.seqlen : 0);
    const double start_s = vq_seconds();
    vq_train_stats trained = {0};
    vq_results r;
    vq_data data;
    vq_init_stats init;
    bool is_finished;
    double exported_bytes;

    VQ_TRY(vq_inputs_check(job));
    VQ_TRY(open_folder(job, folder, argc, argv));
    VQ_TRY(vq_plan_job(job)); /* may choose the layout: links and stage come after */
    VQ_TRY(vq_job_connect(job));
    VQ_TRY(vq_comm_agree(job->comm, vq_job_stage(job, &job->model, T_max, &job->stage)));
    vq_outcome_begin(job, &r);

    VQ_TRY(vq_feed_prepare(job, &data));
    vq_job_trim(job);
    r.seconds.tokens = vq_seconds() - start_s;
    VQ_TRY(vq_outcome_find(job, &data, &r, &is_finished));
    if (is_finished) return VQ_OK;

    VQ_TRY(vq_init_codebooks(job, &data, &init));
    r.seconds.init = init.seconds;
    VQ_TRY(end_phase(job));
    VQ_TRY(evaluate_before(job, &data, &r));
    if (vq_config_learns(c)) {
        VQ_TRY(train(job, &data, &r, &trained));
        VQ_TRY(evaluate_after(job, &data, &r));
    }
    VQ_TRY(export_model(job, &exported_bytes, &r));
    r.seconds.total = vq_seconds() - start_s;
    return vq_outcome_end(job, &init, &trained, exported_bytes, &r);
}

vq_status vq_run(const vq_config *config, vq_comm *comm, int argc, const char *const *argv)
{
    vq_job job;
    vq_folder folder = {0};
    vq_guard_init(config->max_hours, comm->rank == 0 && !config->quiet);
    vq_status status = vq_job_open(config, comm, &job);
    if (!status) status = run(&job, &folder, argc, argv);
    if (status == VQ_ESTOPPED) status = say_stopped(config, comm->rank);
    vq_folder_close(&folder);
    vq_job_close(&job);
    return status;
}
