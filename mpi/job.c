/* job - opening and closing what a job works with. */
#include "job.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cpu_backend.h"
#include "error.h"
#include "log.h"

/* Addresses for an arena: pages are taken as they are used. */
static size_t reserve_bytes(void)
{
    return (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
}

static vq_status open_backend(const vq_config *config, vq_backend *be)
{
    VQ_CHECK(config->device != VQ_DEVICE_CUDA, VQ_EUNSUPPORTED,
             "--device cuda: this program was built without CUDA: expected cpu or auto. Build it "
             "where nvcc is found");
    return vq_cpu_open(be, (int)config->threads);
}

vq_status vq_job_open(const vq_config *config, vq_job *job)
{
    *job = (vq_job){.config = config, .comm = vq_comm_self()};
    const struct {
        vq_arena *arena;
        const char *name;
    } arenas[] = {{&job->run, "run"},
                  {&job->weights, "model"},
                  {&job->step, "step"},
                  {&job->scratch, "scratch"}};
    for (int i = 0; i < VQ_COUNT(arenas); i++)
        VQ_TRY(vq_arena_init(arenas[i].arena, arenas[i].name, reserve_bytes()));
    VQ_CHECK(
        config->stages * config->replicas == job->comm.size && config->slices == 1, VQ_EUSAGE,
        "--stages %lld --replicas %lld --slices %lld: this job has one rank: expected 1, 1 and "
        "1. Leave them out",
        (long long)config->stages, (long long)config->replicas, (long long)config->slices);
    VQ_TRY(open_backend(config, &job->be));
    VQ_TRY(vq_model_open(&job->run, config->model, &job->model));
    if (!config->teacher.model) return VQ_OK;
    VQ_TRY(vq_model_open(&job->run, config->teacher.model, &job->teacher));
    VQ_CHECK(job->teacher.config.V == job->model.config.V, VQ_EUSAGE,
             "teacher.model: %s has %lld tokens in its vocabulary, expected the model's %lld. "
             "Choose a teacher with the same tokenizer",
             config->teacher.model, (long long)job->teacher.config.V,
             (long long)job->model.config.V);
    return VQ_OK;
}

vq_status vq_job_stage(vq_job *job, const vq_model *model, int64_t T, vq_stage *stage)
{
    return vq_stage_init(&job->run, &job->be, model, 0, model->config.N, T, &job->scratch, stage);
}

void vq_job_close(vq_job *job)
{
    vq_model_close(&job->model);
    vq_model_close(&job->teacher);
    if (job->be.ops) vq_cpu_close(&job->be);
    if (job->comm.ops) job->comm.ops->close(job->comm.ctx);
    vq_arena_close(&job->scratch);
    vq_arena_close(&job->step);
    vq_arena_close(&job->weights);
    vq_arena_close(&job->run);
}

vq_status vq_job_path(vq_job *job, char **path, const char *fmt, ...)
{
    char name[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    return vq_path_join(&job->run, job->config->out, name, path);
}

int64_t vq_peak_rss_bytes(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (int64_t)usage.ru_maxrss * 1024;
}
