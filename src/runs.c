/* runs - reading back what runs leave. */
#include "runs.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "error.h"
#include "h5.h"
#include "log.h"

#define CURVE_POINTS 240 /* more than a figure shows */
#define MAX_DEPTH 16
#define LINEARS 256 /* room for so many more, when it is full */

const char *vq_run_state_name(vq_run_state state)
{
    static const char *const names[] = {[VQ_RUN_DONE] = "done",
                                        [VQ_RUN_STOPPED] = "stopped",
                                        [VQ_RUN_FAILED] = "failed",
                                        [VQ_RUN_UNFINISHED] = "unfinished"};
    return names[state];
}

/* How much x is above base, in %; 0: not known. */
static double above(double x, double base)
{
    return x > 0 && base > 0 ? 100 * (x / base - 1) : 0;
}

double vq_run_value(const vq_run_info *run, vq_run_value_kind kind)
{
    const vq_results *r = &run->results;
    double x = 0;
    switch (kind) {
    case VQ_VALUE_FP: x = r->perplexity.fp; break;
    case VQ_VALUE_RTN: x = r->perplexity.rtn; break;
    case VQ_VALUE_GPTQ: x = r->perplexity.gptq; break;
    case VQ_VALUE_SOFT: x = r->perplexity.soft; break;
    case VQ_VALUE_HARD: x = r->perplexity.hard; break;
    case VQ_VALUE_FINAL: x = vq_results_final(r); break;
    case VQ_VALUE_FINAL_ABOVE: x = above(vq_results_final(r), r->perplexity.fp); break;
    case VQ_VALUE_RTN_ABOVE: x = above(r->perplexity.rtn, r->perplexity.fp); break;
    case VQ_VALUE_GPTQ_ABOVE: x = above(r->perplexity.gptq, r->perplexity.fp); break;
    case VQ_VALUE_SECONDS: x = r->seconds.total; break;
    case VQ_VALUE_STEP_SECONDS: x = r->seconds_per_step; break;
    case VQ_VALUE_PEAK_BYTES: x = vq_results_peak_bytes(r); break;
    case VQ_VALUE_GPU_BYTES: x = r->peak_gpu_bytes; break;
    case VQ_VALUE_PACKED_BYTES: x = r->model_bytes.after; break;
    case VQ_VALUE_TRAINED: x = (double)r->trained_parameters; break;
    case VQ_VALUE_STEPS: x = (double)(run->has_results ? r->steps : run->steps_done); break;
    case VQ_VALUE_RANKS: x = (double)r->machine.ranks; break;
    }
    return x > 0 ? x : NAN;
}

double vq_runs_largest(const vq_run_info *runs, int64_t n, vq_run_value_kind kind)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        const double x = vq_run_value(&runs[i], kind);
        if (x > most) most = x;
    }
    return most;
}

static vq_status join(vq_arena *arena, const vq_run_info *run, const char *name, char **path)
{
    return vq_path_join(arena, run->dir, name, path);
}

static vq_status copy(vq_arena *arena, const char *text, const char **out)
{
    char *own;
    VQ_TRY(vq_arena_text(arena, text, strlen(text), &own));
    *out = own;
    return VQ_OK;
}

/* The pending error, which is then no longer one, says what is wrong with the run; if that is done
 * all the same, it is a warning. Out of memory stays an error. */
static vq_status blame(vq_arena *arena, vq_run_info *run, vq_status status)
{
    if (status == VQ_OK || status == VQ_EMEM) return status;
    if (run->state == VQ_RUN_DONE) {
        vq_log(VQ_LOG_WARN, "%s", vq_error_message());
    } else {
        run->state = VQ_RUN_FAILED;
        run->code = (int)status;
        VQ_TRY(copy(arena, vq_error_message(), &run->message));
    }
    vq_error_clear();
    return VQ_OK;
}

/* --- settings, results, message -------------------------------------------------------------- */

static vq_status method_of(vq_arena *arena, const vq_config *c, const char **out)
{
    char text[64] = "";
    for (int i = 0; vq_config_key(i); i++)
        if (!strcmp(vq_config_key(i), "method")) vq_config_value(c, i, text, sizeof text);
    return copy(arena, text, out);
}

static vq_status read_config(vq_arena *arena, vq_run_info *run)
{
    vq_config *c = &run->config;
    char *path;
    VQ_TRY(join(arena, run, "config.yaml", &path));
    if (!vq_file_exists(path)) return VQ_OK;
    VQ_TRY(vq_config_defaults(arena, c));
    VQ_TRY(vq_config_read_yaml(arena, path, c));
    run->has_config = true;
    if (run->has_results) return VQ_OK;
    run->results.model = c->model ? c->model : "";
    VQ_TRY(method_of(arena, c, &run->results.method));
    run->results.bits = c->bits;
    run->results.group_size = c->group_size;
    run->results.K = c->K;
    run->results.D = c->D;
    return VQ_OK;
}

static vq_status read_results(vq_arena *arena, vq_run_info *run)
{
    char *path;
    vq_results found = {.out = run->dir};
    VQ_TRY(join(arena, run, "results.json", &path));
    if (!vq_file_exists(path)) return VQ_OK;
    VQ_TRY(vq_results_load(arena, path, &found));
    run->results = found;
    run->has_results = true;
    run->state = VQ_RUN_DONE;
    run->message = "";
    return VQ_OK;
}

static vq_status read_message(vq_arena *arena, vq_run_info *run)
{
    char *path, *text, *end;
    size_t n;
    VQ_TRY(join(arena, run, "error.txt", &path));
    if (!vq_file_exists(path)) return VQ_OK;
    VQ_TRY(vq_file_read(arena, path, &text, &n));
    const long code = strtol(text, &end, 10);
    while (n > 0 && text[n - 1] == '\n') text[--n] = '\0';
    run->code = (int)code;
    run->state = code == VQ_ESTOPPED ? VQ_RUN_STOPPED : VQ_RUN_FAILED;
    run->message = *end == '\n' ? end + 1 : text;
    return VQ_OK;
}

/* Gives take every line of a .jsonl in the run's folder, if it is there, that is an object: one
 * that is being written, or is damaged, is passed over. */
static vq_status each_line(vq_arena *arena, const vq_run_info *run, const char *name,
                           vq_status (*take)(void *ctx, const json_t *row), void *ctx)
{
    char *path, *line = NULL;
    size_t room = 0;
    vq_status status = VQ_OK;
    VQ_TRY(join(arena, run, name, &path));
    if (!vq_file_exists(path)) return VQ_OK;
    FILE *file = fopen(path, "r");
    if (!file) return vq_file_error(path, "read");
    while (!status && getline(&line, &room, file) > 0) {
        json_t *row = json_loads(line, 0, NULL);
        if (json_is_object(row)) status = take(ctx, row);
        json_decref(row);
    }
    free(line);
    fclose(file);
    return status;
}

/* --- curves ---------------------------------------------------------------------------------- */

#define N_CURVES 5

/* Sums of the lines so far; each time they are too many two neighbours become one. */
typedef struct buckets {
    double sum[N_CURVES][2 * CURVE_POINTS];
    int64_t width, n, filled; /* lines in a bucket; buckets; lines in the last */
    int64_t steps;            /* that are done */
} buckets;

static void halve(buckets *b)
{
    for (int c = 0; c < N_CURVES; c++)
        for (int64_t i = 0; i < CURVE_POINTS; i++)
            b->sum[c][i] = b->sum[c][2 * i] + b->sum[c][2 * i + 1];
    b->n = CURVE_POINTS;
    b->width *= 2;
    b->filled = b->width;
}

static vq_status take_step(void *ctx, const json_t *row)
{
    static const char *const names[N_CURVES] = {"step", "task", "reg", "beta", "waited_ratio"};
    const json_t *step = json_object_get(row, "step");
    buckets *b = ctx;
    if (!json_is_integer(step)) return VQ_OK;
    b->steps = json_integer_value(step) + 1;
    if (b->n == 2 * CURVE_POINTS && b->filled == b->width) halve(b);
    if (b->n == 0 || b->filled == b->width) {
        for (int c = 0; c < N_CURVES; c++) b->sum[c][b->n] = 0;
        b->n++;
        b->filled = 0;
    }
    b->filled++;
    for (int c = 0; c < N_CURVES; c++)
        b->sum[c][b->n - 1] += json_number_value(json_object_get(row, names[c]));
    return VQ_OK;
}

static vq_status take_curves(vq_arena *arena, const buckets *b, vq_curves *out)
{
    double **const curve[N_CURVES] = {&out->step, &out->task, &out->reg, &out->beta,
                                      &out->waited_ratio};
    out->n = b->n;
    for (int c = 0; c < N_CURVES; c++) {
        VQ_TRY(VQ_NEW(arena, b->n, curve[c]));
        for (int64_t i = 0; i < b->n; i++)
            (*curve[c])[i] = b->sum[c][i] / (double)(i + 1 < b->n ? b->width : b->filled);
    }
    return VQ_OK;
}

static vq_status read_curves(vq_arena *arena, vq_run_info *run)
{
    buckets *b;
    VQ_TRY(VQ_NEW(arena, 1, &b));
    b->width = 1;
    b->n = b->filled = b->steps = 0;
    VQ_TRY(each_line(arena, run, "metrics.jsonl", take_step, b));
    run->steps_done = b->steps;
    return take_curves(arena, b, &run->curves);
}

/* --- errors by layer ------------------------------------------------------------------------- */

/* Of "model.layers.3.mlp.up_proj": layer 3, "up_proj". */
static void parse_name(vq_linear_error *l)
{
    const char *dot = strrchr(l->name, '.');
    l->kind = dot ? dot + 1 : l->name;
    for (const char *p = l->name; *p; p++)
        if (*p == '.' && p[1] >= '0' && p[1] <= '9') l->layer = strtoll(p + 1, NULL, 10);
}

/* The linear of that name, of n letters; a new one if there is none yet. */
static vq_status linear_of(vq_arena *arena, vq_run_info *run, const char *name, size_t n,
                           vq_linear_error **out)
{
    char *own;
    for (int64_t i = 0; i < run->n_linears; i++) {
        *out = &run->linears[i];
        if (!strncmp((*out)->name, name, n) && !(*out)->name[n]) return VQ_OK;
    }
    if (run->n_linears % LINEARS == 0) {
        vq_linear_error *more;
        VQ_TRY(VQ_NEW(arena, run->n_linears + LINEARS, &more));
        if (run->n_linears > 0) memcpy(more, run->linears, (size_t)run->n_linears * sizeof *more);
        run->linears = more;
    }
    VQ_TRY(vq_arena_text(arena, name, n, &own));
    *out = &run->linears[run->n_linears++];
    **out = (vq_linear_error){
        .name = own, .error = NAN, .moved = NAN, .codes_rms = NAN, .gptq_error = NAN};
    parse_name(*out);
    return VQ_OK;
}

static double attribute(const vq_h5 *h, const char *object, const char *key)
{
    double value;
    if (vq_h5_has(h, object) && vq_h5_has_attribute(h, object, key) &&
        vq_h5_get_f64(h, object, key, &value) == VQ_OK)
        return value;
    vq_error_clear();
    return NAN;
}

/* What an init file says: its datasets are NAME/base, NAME/codes. */
static vq_status read_init(vq_arena *arena, const vq_h5 *h, vq_run_info *run)
{
    static const char suffix[] = "/base";
    char **names, codes[320];
    int64_t n;
    VQ_TRY(vq_h5_list(h, arena, &names, &n));
    for (int64_t i = 0; i < n; i++) {
        const size_t length = strlen(names[i]), m = strlen(suffix);
        vq_linear_error *l;
        vq_tensor shape;
        if (length < m || strcmp(names[i] + length - m, suffix) != 0) continue;
        VQ_TRY(linear_of(arena, run, names[i], length - m, &l));
        VQ_TRY(vq_h5_shape(h, names[i], &shape));
        snprintf(codes, sizeof codes, "%s/codes", l->name);
        l->codes_rms = sqrt(attribute(h, codes, "kmeans_objective") /
                            (double)VQ_MAX(1, vq_tensor_count(&shape)));
        l->gptq_error = attribute(h, names[i], "gptq_error");
    }
    return VQ_OK;
}

static vq_status read_init_files(vq_arena *arena, vq_run_info *run)
{
    char **files, *path;
    int64_t n;
    VQ_TRY(vq_folder_list(arena, run->dir, ".h5", &files, &n));
    for (int64_t i = 0; i < n; i++) {
        vq_h5 h;
        if (strncmp(files[i], "init-", 5) != 0) continue;
        VQ_TRY(join(arena, run, files[i], &path));
        VQ_TRY(vq_h5_open(arena, path, NULL, 0, &h));
        vq_status status = read_init(arena, &h, run);
        vq_h5_close(&h);
        VQ_TRY(status);
    }
    return VQ_OK;
}

static double real_or_nan(const json_t *row, const char *key)
{
    const json_t *value = json_object_get(row, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

/* What take_layer adds to. */
typedef struct layers {
    vq_arena *arena;
    vq_run_info *run;
} layers;

static vq_status take_layer(void *ctx, const json_t *row)
{
    const layers *to = ctx;
    const char *name = json_string_value(json_object_get(row, "name"));
    vq_linear_error *l;
    if (!name) return VQ_OK;
    VQ_TRY(linear_of(to->arena, to->run, name, strlen(name), &l));
    l->error = real_or_nan(row, "error");
    l->moved = real_or_nan(row, "moved_ratio");
    return VQ_OK;
}

static int by_layer(const void *a, const void *b)
{
    const vq_linear_error *x = a, *y = b;
    return x->layer != y->layer ? (x->layer < y->layer ? -1 : 1) : strcmp(x->kind, y->kind);
}

static vq_status read_errors(vq_arena *arena, vq_run_info *run)
{
    vq_status status = each_line(arena, run, "layers.jsonl", take_layer, &(layers){arena, run});
    if (!status) status = read_init_files(arena, run);
    if (run->n_linears > 0)
        qsort(run->linears, (size_t)run->n_linears, sizeof *run->linears, by_layer);
    return status;
}

/* --- folders --------------------------------------------------------------------------------- */

/* Reads one run folder. Damaged files make it a failed run that says so. */
static vq_status read_run(vq_arena *arena, const char *dir, const char *name, vq_run_info *run)
{
    *run = (vq_run_info){.dir = dir,
                         .name = name,
                         .state = VQ_RUN_UNFINISHED,
                         .message = "no results and no message: the run is at work, or was killed",
                         .results = {.version = "",
                                     .model = "",
                                     .method = "",
                                     .out = dir,
                                     .machine = {.device = "", .compiler = ""}}};
    VQ_TRY(blame(arena, run, read_results(arena, run)));
    VQ_TRY(blame(arena, run, read_config(arena, run)));
    VQ_TRY(blame(arena, run, read_message(arena, run)));
    VQ_TRY(blame(arena, run, read_curves(arena, run)));
    return blame(arena, run, read_errors(arena, run));
}

static bool is_run(vq_arena *arena, const char *dir)
{
    static const char *const files[] = {"config.yaml", "results.json", "error.txt"};
    for (int i = 0; i < VQ_COUNT(files); i++) {
        char *path;
        if (vq_path_join(arena, dir, files[i], &path) == VQ_OK && vq_file_exists(path)) return true;
    }
    return false;
}

/* Numbers in names by their value. */
static int by_name(const void *a, const void *b)
{
    const vq_run_info *x = a, *y = b;
    return strverscmp(x->name, y->name);
}

/* A folder, and not a link to one. */
static bool is_own_folder(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* The folders found, as a list that grows. */
typedef struct found {
    const char **dirs;
    int64_t n, room;
} found;

static vq_status add(vq_arena *arena, found *f, const char *dir)
{
    if (f->n == f->room) {
        const char **more;
        VQ_TRY(VQ_NEW(arena, f->room = VQ_MAX(64, 2 * f->room), &more));
        if (f->n > 0) memcpy(more, f->dirs, (size_t)f->n * sizeof *more);
        f->dirs = more;
    }
    f->dirs[f->n++] = dir;
    return VQ_OK;
}

static vq_status search(vq_arena *arena, const char *dir, int depth, found *f)
{
    char **names, *path;
    int64_t n;
    if (is_run(arena, dir)) return add(arena, f, dir);
    if (depth == MAX_DEPTH) return VQ_OK;
    VQ_TRY(vq_folder_list(arena, dir, "", &names, &n));
    for (int64_t i = 0; i < n; i++) {
        VQ_TRY(vq_path_join(arena, dir, names[i], &path));
        if (is_own_folder(path)) VQ_TRY(search(arena, path, depth + 1, f));
    }
    return VQ_OK;
}

/* What of dir stands below top. */
static const char *name_below(const char *dir, const char *top)
{
    const char *name = dir + strlen(top);
    while (*name == '/') name++;
    return *name ? name : dir;
}

vq_status vq_runs_find(vq_arena *arena, const char *const *dirs, int n_dirs, vq_run_info **runs,
                       int64_t *n)
{
    found f = {0};
    for (int i = 0; i < n_dirs; i++) {
        const int64_t before = f.n;
        VQ_CHECK(
            vq_is_folder(dirs[i]), VQ_EFILE,
            "%s: no such folder: expected a run folder, or one that holds some. Check the path",
            dirs[i]);
        VQ_TRY(search(arena, dirs[i], 0, &f));
        VQ_CHECK(f.n > before, VQ_EFILE,
                 "%s: no run is in this folder: expected one with config.yaml, results.json or "
                 "error.txt in it. Give the --out of \"vqround quantize\", or a folder above",
                 dirs[i]);
    }
    VQ_TRY(VQ_NEW(arena, f.n, runs));
    *n = f.n;
    for (int64_t i = 0; i < f.n; i++) {
        const char *name = f.dirs[i];
        if (n_dirs == 1) name = name_below(name, dirs[0]);
        VQ_TRY(read_run(arena, f.dirs[i], name, &(*runs)[i]));
    }
    qsort(*runs, (size_t)*n, sizeof **runs, by_name);
    return VQ_OK;
}
