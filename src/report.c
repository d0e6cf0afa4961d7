/* report - results.json and the closing table. One list of fields serves writing and reading. */
#include "report.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "fileio.h"
#include "log.h"

/* --- the fields ------------------------------------------------------------------------------ */

/* OR_NULL: a real of which 0 is null. The last two are lists by rank. */
typedef enum kind { TEXT, COUNT, REAL, OR_NULL, BYTES, RATIOS } kind;

typedef struct field {
    const char *section, *name; /* "" is the top */
    kind kind;
    size_t offset; /* in vq_results */
} field;

#define TOP(kind, name)                                                                            \
    {                                                                                              \
        "", #name, kind, offsetof(vq_results, name)                                                \
    }
#define IN(section, kind, name)                                                                    \
    {                                                                                              \
#section, #name, kind, offsetof(vq_results, section.name)                                  \
    }
#define RATIO(name)                                                                                \
    {                                                                                              \
        "train_ratio", #name, RATIOS, offsetof(vq_results, name##_ratio)                           \
    }

static const field fields[] = {
    TOP(TEXT, version),
    TOP(TEXT, model),
    TOP(TEXT, method),
    TOP(COUNT, bits),
    TOP(COUNT, group_size),
    TOP(COUNT, K),
    TOP(COUNT, D),
    IN(perplexity, OR_NULL, fp),
    IN(perplexity, OR_NULL, rtn),
    IN(perplexity, OR_NULL, gptq),
    IN(perplexity, OR_NULL, start_soft),
    IN(perplexity, OR_NULL, start_hard),
    IN(perplexity, OR_NULL, soft),
    IN(perplexity, OR_NULL, hard),
    IN(seconds, REAL, tokens),
    IN(seconds, REAL, init),
    IN(seconds, REAL, blocks),
    IN(seconds, REAL, teacher),
    IN(seconds, REAL, train),
    IN(seconds, REAL, eval),
    IN(seconds, REAL, export),
    IN(seconds, REAL, total),
    TOP(COUNT, steps),
    TOP(REAL, seconds_per_step),
    TOP(COUNT, trained_parameters),
    TOP(COUNT, quantized_weights),
    IN(model_bytes, REAL, before),
    IN(model_bytes, REAL, after),
    TOP(BYTES, peak_rss_bytes),
    TOP(OR_NULL, peak_gpu_bytes),
    RATIO(compute),
    RATIO(sums),
    RATIO(messages),
    IN(machine, TEXT, device),
    IN(machine, COUNT, ranks),
    IN(machine, COUNT, stages),
    IN(machine, COUNT, replicas),
    IN(machine, COUNT, threads),
    IN(machine, TEXT, compiler),
};

static void *place(const vq_results *r, const field *f)
{
    return (char *)(uintptr_t)r + f->offset;
}

static bool is_list(const field *f)
{
    return f->kind == BYTES || f->kind == RATIOS;
}

static const char *key_text(uint64_t key, char text[24])
{
    snprintf(text, 24, "%016" PRIx64, key);
    return text;
}

/* --- results.json ---------------------------------------------------------------------------- */

static json_t *value_json(const vq_results *r, const field *f)
{
    const void *at = place(r, f);
    const double real = f->kind == REAL || f->kind == OR_NULL ? *(const double *)at : 0;
    json_t *list;
    switch (f->kind) {
    case TEXT: return json_string(*(const char *const *)at);
    case COUNT: return json_integer((json_int_t) * (const int64_t *)at);
    case REAL: return json_real(real);
    case OR_NULL: return real > 0 ? json_real(real) : json_null();
    case BYTES:
    case RATIOS:
        list = json_array();
        for (int64_t i = 0; i < r->machine.ranks; i++) {
            const double x = (*(double *const *)at)[i];
            json_array_append_new(list,
                                  f->kind == BYTES ? json_integer((json_int_t)x) : json_real(x));
        }
        return list;
    }
    return NULL;
}

vq_status vq_results_write(const vq_results *r, const char *path)
{
    char key[24];
    json_t *root = json_pack("{s:s}", "key", key_text(r->key, key)), *section;
    for (int i = 0; i < VQ_COUNT(fields); i++) {
        const field *f = &fields[i];
        section = *f->section ? json_object_get(root, f->section) : root;
        if (!section) json_object_set_new(root, f->section, section = json_object());
        json_object_set_new(section, f->name, value_json(r, f));
    }
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    VQ_ASSERT(text);
    vq_status status = vq_file_write(path, text, strlen(text));
    free(text);
    return status;
}

static vq_status read_field(vq_arena *arena, vq_results *r, const field *f, const json_t *value)
{
    void *to = place(r, f);
    const char *found = json_is_string(value) ? json_string_value(value) : "";
    const double real = json_number_value(value);
    char *text;
    double *list;
    switch (f->kind) {
    case TEXT:
        VQ_TRY(vq_arena_text(arena, found, strlen(found), &text));
        *(const char **)to = text;
        return VQ_OK;
    case COUNT: *(int64_t *)to = json_integer_value(value); return VQ_OK;
    case REAL:
    case OR_NULL: *(double *)to = real; return VQ_OK;
    case BYTES:
    case RATIOS:
        VQ_TRY(VQ_NEW(arena, r->machine.ranks, &list));
        for (int64_t i = 0; i < r->machine.ranks; i++)
            list[i] = json_number_value(json_array_get(value, (size_t)i));
        *(double **)to = list;
        return VQ_OK;
    }
    return VQ_OK;
}

static vq_status read_root(vq_arena *arena, const json_t *root, vq_results *r)
{
    const char *key = json_string_value(json_object_get(root, "key"));
    const int64_t n_ranks = (int64_t)json_array_size(json_object_get(root, "peak_rss_bytes"));
    r->key = key ? strtoull(key, NULL, 16) : 0;
    r->machine.ranks = n_ranks; /* the lists' length */
    for (int i = 0; i < VQ_COUNT(fields); i++) {
        const field *f = &fields[i];
        const json_t *section = *f->section ? json_object_get(root, f->section) : root;
        VQ_TRY(read_field(arena, r, f, json_object_get(section, f->name)));
    }
    r->machine.ranks = n_ranks;
    return VQ_OK;
}

static vq_status load_json(const char *path, json_t **root)
{
    json_error_t e;
    *root = json_load_file(path, 0, &e);
    if (json_is_object(*root)) return VQ_OK;
    const char *found = *root ? "not an object" : e.text;
    json_decref(*root);
    VQ_FAIL(VQ_EFILE, "%s:%d: %s: expected the results of a run. Delete it and run again", path,
            VQ_MAX(e.line, 1), found);
}

vq_status vq_results_load(vq_arena *arena, const char *path, vq_results *r)
{
    json_t *root;
    VQ_TRY(load_json(path, &root));
    vq_status status = read_root(arena, root, r);
    json_decref(root);
    return status;
}

bool vq_results_read(vq_arena *arena, const char *path, vq_results *r)
{
    vq_results found = {.out = r->out};
    const bool same = vq_results_load(arena, path, &found) == VQ_OK && found.key == r->key;
    if (same) *r = found;
    vq_error_clear();
    return same;
}

vq_status vq_results_print_json(const char *path)
{
    json_t *root;
    VQ_TRY(load_json(path, &root));
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    VQ_ASSERT(text);
    puts(text);
    free(text);
    return VQ_OK;
}

/* --- as tables ------------------------------------------------------------------------------- */

const char *vq_results_field(int i, char name[64])
{
    for (int j = 0; j < VQ_COUNT(fields); j++) {
        if (is_list(&fields[j]) || i-- > 0) continue;
        const char *section = fields[j].section;
        snprintf(name, 64, "%s%s%s", section, *section ? "." : "", fields[j].name);
        return name;
    }
    return NULL;
}

const char *vq_results_value(const vq_results *r, int i, char text[64])
{
    int j = 0;
    for (; is_list(&fields[j]) || i-- > 0; j++) continue;
    const void *at = place(r, &fields[j]);
    text[0] = '\0';
    switch (fields[j].kind) {
    case TEXT: snprintf(text, 64, "%s", *(const char *const *)at); break;
    case COUNT: snprintf(text, 64, "%lld", (long long)*(const int64_t *)at); break;
    case OR_NULL:
        if (!(*(const double *)at > 0)) break;
        /* fall through */
    case REAL: snprintf(text, 64, "%.9g", *(const double *)at); break;
    case BYTES:
    case RATIOS: break;
    }
    return text;
}

void vq_results_rows(const vq_results *r, vq_results_row rows[VQ_RESULTS_ROWS])
{
    const bool is_adaround = !strcmp(r->method, "adaround"), is_lora = !strcmp(r->method, "lora");
    const vq_results_row all[VQ_RESULTS_ROWS] = {
        {"full precision", r->perplexity.fp},
        {"RTN", r->perplexity.rtn},
        {"GPTQ", r->perplexity.gptq},
        {"codebook, step 0, soft", r->perplexity.start_soft},
        {"codebook, step 0, hard", r->perplexity.start_hard},
        {is_adaround ? "AdaRound, soft"
         : is_lora   ? "LoRA, soft"
                     : "VQRound, soft",
         r->perplexity.soft},
        {is_adaround ? "AdaRound, hard"
         : is_lora   ? "LoRA, hard"
                     : "VQRound, hard",
         r->perplexity.hard}};
    memcpy(rows, all, sizeof all);
}

double vq_results_final(const vq_results *r)
{
    if (!strcmp(r->method, "rtn")) return r->perplexity.rtn;
    return !strcmp(r->method, "gptq") ? r->perplexity.gptq : r->perplexity.hard;
}

double vq_results_peak_bytes(const vq_results *r)
{
    double peak = 0;
    for (int64_t i = 0; i < r->machine.ranks; i++) peak = VQ_MAX(peak, r->peak_rss_bytes[i]);
    return peak;
}

#define UNDECIDED 1.05 /* hard above soft */

void vq_results_print(const vq_results *r)
{
    vq_results_row rows[VQ_RESULTS_ROWS];
    char a[32], b[32];
    vq_results_rows(r, rows);
    printf("\n%s, %lld bits, %s", r->model, (long long)r->bits, r->method);
    if (r->trained_parameters)
        printf(", K %lld, D %lld, %lld steps", (long long)r->K, (long long)r->D,
               (long long)r->steps);
    puts("\n");
    bool any = false;
    for (int i = 0; i < VQ_RESULTS_ROWS; i++) {
        const double x = rows[i].perplexity, fp = r->perplexity.fp;
        if (!(x > 0)) continue;
        if (!any) printf("  %-24s %12s\n", "", "perplexity");
        any = true;
        printf("  %-24s %12.2f", rows[i].label, x);
        if (i > 0 && fp > 0) printf("  %+.1f %%", 100 * (x / fp - 1));
        puts("");
    }
    if (r->perplexity.hard > UNDECIDED * r->perplexity.soft && r->perplexity.soft > 0)
        printf("\n  Roundings were undecided when training ended: raise --steps or --lr\n");
    printf("%s  %-24s %12s  %s packed\n", any ? "\n" : "", "size of the weights",
           vq_bytes_text(r->model_bytes.before, a), vq_bytes_text(r->model_bytes.after, b));
    printf("  %-24s %12s  training %s\n", "time", vq_duration_text(r->seconds.total, a),
           vq_duration_text(r->seconds.train, b));
    printf("  %-24s %12s", "peak memory", vq_bytes_text(vq_results_peak_bytes(r), a));
    if (r->peak_gpu_bytes > 0) printf("  GPU %s", vq_bytes_text(r->peak_gpu_bytes, b));
    puts("");
    printf("\n  %-24s %s/model\n  %-24s %s/report.html\n", "model", r->out, "report", r->out);
    fflush(stdout);
}
