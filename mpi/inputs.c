/* inputs - the model as the user gave it. */
#include "inputs.h"

#include <string.h>

#include "error.h"
#include "exporter.h"
#include "log.h"

static void say_model(const vq_job *job)
{
    const vq_model_config *m = &job->model.config;
    char count[32];
    vq_log(VQ_LOG_INFO, "model    %s: %s, %lld layers, %s weights in %s", job->config->model,
           vq_family_name(m->family), (long long)m->N,
           vq_count_text((double)vq_model_weights(m), count),
           vq_dtype_name(job->model.embed.dtype));
}

/* What was rounded once has little left to gain, and nothing else shows it in a dense export. */
static vq_status warn_of_export(vq_job *job)
{
    char *mark;
    const size_t before = vq_arena_mark(&job->scratch);
    VQ_TRY(vq_path_join(&job->scratch, job->config->model, VQ_EXPORT_MARK, &mark));
    if (vq_file_exists(mark))
        vq_log(
            VQ_LOG_WARN,
            "%s is a model that vqround has quantized (there is %s): expected the original. Give "
            "its folder, if this is not meant",
            job->config->model, VQ_EXPORT_MARK);
    vq_arena_reset(&job->scratch, before);
    return VQ_OK;
}

/* A word that leaves nothing out is a mistake, unless it is the default. */
static void say_skips(const vq_job *job)
{
    const vq_model *m = &job->model;
    char name[256];
    for (int64_t i = 0; i < job->config->skip.n; i++) {
        const char *word = job->config->skip.item[i];
        const vq_list one = {&job->config->skip.item[i], 1};
        bool is_found = !strcmp(word, "lm_head");
        for (int64_t slot = 0; slot < m->config.N * VQ_N_KINDS && !is_found; slot++) {
            const vq_linear *l = &m->layers[slot / VQ_N_KINDS].linear[slot % VQ_N_KINDS];
            is_found = l->exists && !vq_pool_takes(l->name, &one);
        }
        if (!is_found)
            vq_log(VQ_LOG_WARN,
                   "skip: no linear has \"%s\" in its name, and none is left out by it: expected a "
                   "part of a name such as %s",
                   word, vq_linear_name(&m->config, 0, VQ_Q, name));
    }
}

vq_status vq_inputs_check(vq_job *job)
{
    VQ_TRY(vq_model_require_dense(&job->model.config, job->config->model));
    say_model(job);
    VQ_TRY(warn_of_export(job));
    say_skips(job);
    return vq_export_check(job);
}
