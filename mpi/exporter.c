/* exporter - stages to files. */
#include "exporter.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "error.h"
#include "init.h"
#include "log.h"
#include "train.h"

vq_mode vq_export_mode(const vq_config *config)
{
    return config->method == VQ_METHOD_RTN    ? VQ_MODE_RTN
           : config->method == VQ_METHOD_GPTQ ? VQ_MODE_GPTQ
                                              : VQ_MODE_HARD;
}

vq_status vq_export_check_place(const vq_config *config, const char *dir, const char *key,
                                const char *input)
{
    struct stat in, out;
    if (!input || stat(input, &in) != 0 || stat(dir, &out) != 0) return VQ_OK;
    VQ_CHECK(in.st_dev != out.st_dev || in.st_ino != out.st_ino, VQ_EUSAGE,
             "--out %s: the quantized model goes into %s, which is the %s to read: expected a "
             "folder that is not in use. Choose another --out",
             config->out, dir, key);
    return VQ_OK;
}

vq_status vq_export_check_stranger(vq_arena *scratch, const vq_config *config, const char *dir)
{
    char *model, *mark;
    const size_t at = vq_arena_mark(scratch);
    VQ_TRY(vq_path_join(scratch, dir, "config.json", &model));
    VQ_TRY(vq_path_join(scratch, dir, VQ_EXPORT_MARK, &mark));
    VQ_CHECK(!vq_file_exists(model) || vq_file_exists(mark), VQ_EUSAGE,
             "--out %s: the quantized model goes into %s, where a model is that vqround has not "
             "written (there is no %s): expected a new folder, or an earlier result. Choose "
             "another --out",
             config->out, dir, VQ_EXPORT_MARK);
    vq_arena_reset(scratch, at);
    return VQ_OK;
}

vq_status vq_export_check(vq_job *job)
{
    const vq_config *c = job->config;
    const vq_packing packing = vq_packing_of(c);
    const vq_scale_dtype scale = c->grid.scale_dtype;
    const vq_dtype model = job->model.embed.dtype;
    const bool fits = model == VQ_F32 || scale == VQ_SCALE_AUTO || scale == VQ_SCALE_BF16 ||
                      (scale == VQ_SCALE_F16 && model == VQ_F16);
    char where[256];
    VQ_CHECK(
        c->export.format != VQ_EXPORT_COMPRESSED_TENSORS || fits, VQ_EUSAGE,
        "%s = %s: %s is %s, and compressed-tensors stores scales in the model's type: expected "
        "auto or %s. Leave it out",
        vq_config_where(c, "grid.scale_dtype", where), scale == VQ_SCALE_F32 ? "f32" : "f16",
        c->model, vq_dtype_name(model), vq_dtype_name(model));
    vq_export_rule rule;
    size_t mark = vq_arena_mark(&job->scratch);
    VQ_TRY(vq_export_choose(&job->scratch, &job->model, &c->skip, &packing, &rule));
    vq_arena_reset(&job->scratch, mark);
    vq_export_say(&job->model, &c->skip, &packing);
    return VQ_OK;
}

/* The number of this stage's first file, and of all files and bytes: every stage's go into their
 * places of a sum. */
static vq_status number_files(vq_job *job, const vq_export *own, int32_t *first, int32_t *n_files,
                              double *bytes)
{
    const int n = job->topo.n_stages;
    double *counts;
    size_t mark = vq_arena_mark(&job->scratch);
    VQ_TRY(VQ_NEW(&job->scratch, n + 1, &counts));
    memset(counts, 0, (size_t)(n + 1) * sizeof *counts);
    if (job->topo.replica == 0) {
        counts[job->topo.stage] = own->n_shards;
        counts[n] = (double)own->bytes;
    }
    vq_tensor sum = vq_tensor_1d(counts, VQ_F64, n + 1);
    VQ_TRY(vq_comm_sum(job->comm, &sum));
    *first = *n_files = 0;
    for (int s = 0; s < n; s++) {
        if (s < job->topo.stage) *first += (int32_t)counts[s];
        *n_files += (int32_t)counts[s];
    }
    *bytes = counts[n];
    vq_arena_reset(&job->scratch, mark);
    return VQ_OK;
}

static vq_status plan(vq_job *job, vq_export_rule *rule, vq_export *p)
{
    const vq_packing packing = vq_packing_of(job->config);
    VQ_TRY(vq_export_choose(&job->step, &job->model, &job->config->skip, &packing, rule));
    rule->host = &job->cpu;
    return vq_export_plan(&job->step, &job->stage, rule, p);
}

vq_status vq_export_model(vq_job *job, vq_mode mode, const char *dir, double *bytes)
{
    const bool is_leader = job->comm->rank == 0;
    const double start_s = vq_seconds(), damp = job->config->gptq.percdamp;
    char spent[32], size[32];
    int32_t first, n_files;
    vq_export_rule rule;
    vq_export p;
    size_t mark = vq_arena_mark(&job->step);
    vq_comm_at(job->comm, "export");
    vq_status status = plan(job, &rule, &p);
    if (!status && is_leader) status = vq_export_begin(&job->scratch, dir);
    VQ_TRY(vq_comm_agree(job->comm, status));
    VQ_TRY(number_files(job, &p, &first, &n_files, bytes));
    if (job->topo.replica == 0)
        status = vq_export_files(&p, &rule, &job->stage, mode, dir, first, n_files);
    VQ_TRY(vq_comm_agree(job->comm, status));
    /* Loaders ask for a damping between 0 and 1, also where there was none. */
    if (is_leader)
        status = vq_export_finish(&job->scratch, &job->model, &rule,
                                  damp > 0 && damp < 1 ? damp : 0.01, dir, n_files);
    VQ_TRY(vq_comm_agree(job->comm, status));
    vq_arena_reset(&job->step, mark);
    vq_log(VQ_LOG_INFO, "export   %s, %s in %s", dir, vq_bytes_text(*bytes, size),
           vq_duration_text(vq_seconds() - start_s, spent));
    return VQ_OK;
}

/* --- a finished run ----------------------------------------------------------------------------
 */

/* The run's settings, with what this command says about where, how and on what. */
static vq_status settings_of_run(vq_arena *arena, const vq_config *own, vq_config *c)
{
    char *path;
    VQ_TRY(vq_path_join(arena, own->run, "config.yaml", &path));
    VQ_CHECK(vq_file_exists(path), VQ_EFILE,
             "%s: there is no config.yaml in it: expected the folder that quantize wrote (its "
             "--out). Check the path",
             own->run);
    VQ_TRY(vq_config_defaults(arena, c));
    VQ_TRY(vq_config_read_yaml(arena, path, c));
    const vq_packing format = {.format = own->export.format};
    const char *const flags[] = {"--format", vq_packing_name(&format)}; /* so messages name it */
    VQ_TRY(vq_config_parse_args(arena, VQ_QUANTIZE, VQ_COUNT(flags), flags, c));
    if (own->model) c->model = own->model;
    c->out = own->run;
    c->stages = own->stages;
    c->replicas = 0;
    c->comm = own->comm;
    c->device = own->device;
    c->threads = own->threads;
    VQ_TRY(vq_config_check(c, VQ_QUANTIZE));
    VQ_TRY(vq_export_check_place(own, own->out, "model", c->model));
    VQ_TRY(vq_export_check_place(own, own->out, "teacher.model", c->teacher.model));
    VQ_TRY(vq_export_check_place(own, own->out, "run", own->run));
    return vq_export_check_stranger(arena, own, own->out);
}

static vq_status export_job(vq_job *job, const char *dir, double *bytes)
{
    const vq_config *c = job->config;
    vq_data data;
    vq_init_stats init;
    VQ_TRY(vq_model_require_dense(&job->model.config, c->model));
    VQ_TRY(vq_export_check(job));
    VQ_TRY(vq_job_connect(job));
    VQ_TRY(vq_comm_agree(job->comm, vq_job_stage(job, &job->model, 1, &job->stage)));
    VQ_TRY(vq_feed_read(job, &data));
    VQ_TRY(vq_init_read(job, &data, &init));
    if (vq_config_learns(c)) VQ_TRY(vq_train_restore(job, &data));
    return vq_export_model(job, vq_export_mode(c), dir, bytes);
}

static void print_export(const vq_config *config, double bytes, double seconds)
{
    const vq_packing format = {.format = config->export.format};
    char size[32];
    if (!config->json) {
        printf("%s: %s, %s\n", config->out, vq_packing_name(&format), vq_bytes_text(bytes, size));
        return;
    }
    json_t *row =
        json_pack("{s:s, s:s, s:I, s:f}", "out", config->out, "format", vq_packing_name(&format),
                  "bytes", (json_int_t)bytes, "seconds", seconds);
    json_dumpf(row, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(row);
}

vq_status vq_export_run(const vq_config *config, vq_comm *comm)
{
    const double start_s = vq_seconds();
    double bytes = 0;
    vq_arena arena;
    vq_config c;
    vq_job job = {0};
    VQ_TRY(vq_arena_init(&arena, "settings", (size_t)64 << 20));
    vq_status status = vq_comm_agree(comm, settings_of_run(&arena, config, &c));
    if (!status) status = vq_job_open(&c, comm, &job);
    if (!status) status = export_job(&job, config->out, &bytes);
    vq_job_close(&job);
    vq_arena_close(&arena);
    if (!status && comm->rank == 0) print_export(config, bytes, vq_seconds() - start_s);
    return status;
}
