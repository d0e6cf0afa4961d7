/* inspect - a look into the files that the program reads and writes. */
#include "inspect.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "error.h"
#include "h5.h"
#include "log.h"
#include "model.h"
#include "report.h"
#include "safetensors.h"

/* What is found goes into one JSON object, which is printed as it is or as indented text. */

static json_t *tensor_json(const vq_tensor *t)
{
    char text[96];
    return json_string(vq_tensor_text(t, text));
}

static vq_status inspect_h5(vq_arena *arena, const char *path, json_t *to)
{
    vq_h5 h;
    char **names;
    int64_t n;
    VQ_TRY(vq_h5_open(arena, path, NULL, 0, &h));
    vq_status status = vq_h5_list_attributes(&h, arena, NULL, &names, &n);
    for (int64_t i = 0; !status && i < n; i++) {
        int64_t integer;
        uint64_t key;
        double real;
        char *text, hex[24];
        if (!strcmp(names[i], "key") && vq_h5_get_u64(&h, NULL, "key", &key) == VQ_OK) {
            snprintf(hex, sizeof hex, "%016" PRIx64, key); /* as in results.json */
            json_object_set_new(to, "key", json_string(hex));
        } else if (vq_h5_get_text(&h, arena, NULL, names[i], &text) == VQ_OK) {
            json_object_set_new(to, names[i], json_string(text));
        } else if (vq_h5_get_i64(&h, NULL, names[i], &integer) == VQ_OK) {
            json_object_set_new(to, names[i], json_integer(integer));
        } else if (vq_h5_get_f64(&h, NULL, names[i], &real) == VQ_OK) {
            json_object_set_new(to, names[i], json_real(real));
        }
        vq_error_clear();
    }
    json_t *datasets = json_object();
    if (!status) status = vq_h5_list(&h, arena, &names, &n);
    for (int64_t i = 0; !status && i < n; i++) {
        vq_tensor t;
        status = vq_h5_shape(&h, names[i], &t);
        if (!status) json_object_set_new(datasets, names[i], tensor_json(&t));
    }
    json_object_set_new(to, "datasets", datasets);
    vq_h5_close(&h);
    return status;
}

static vq_status inspect_safetensors(vq_arena *arena, const char *path, json_t *to)
{
    vq_safetensors s;
    VQ_TRY(vq_safetensors_open(arena, path, &s));
    json_t *tensors = json_object();
    for (int64_t i = 0; i < s.n; i++)
        json_object_set_new(tensors, s.tensor[i].name, tensor_json(&s.tensor[i]));
    json_object_set_new(to, "tensors", tensors);
    vq_safetensors_close(&s);
    return VQ_OK;
}

static vq_status inspect_model(vq_arena *arena, const char *dir, json_t *to)
{
    vq_model m;
    char hex[24];
    VQ_TRY(vq_model_open(arena, dir, &m));
    const vq_model_config *c = &m.config;
    snprintf(hex, sizeof hex, "%016" PRIx64, m.fingerprint);
    json_t *info = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:s, s:I, s:I, s:I, s:I, s:s}",
        "family", vq_family_name(c->family), "layers", (json_int_t)c->N, "hidden_size",
        (json_int_t)c->E, "intermediate_size", (json_int_t)c->F, "heads", (json_int_t)c->H,
        "kv_heads", (json_int_t)c->G, "head_dim", (json_int_t)c->S, "vocab_size", (json_int_t)c->V,
        "max_positions", (json_int_t)c->max_positions, "tied", c->tied, "dtype",
        vq_dtype_name(m.embed.dtype), "weights", (json_int_t)vq_model_weights(c), "linear_weights",
        (json_int_t)(c->N * vq_layer_weights(c)), "bytes", (json_int_t)vq_weights_bytes(&m.weights),
        "files", (json_int_t)m.weights.n_files, "fingerprint", hex);
    json_object_update(to, info);
    json_decref(info);
    if (c->packing.format != VQ_EXPORT_DENSE) {
        json_object_set_new(to, "format", json_string(vq_packing_name(&c->packing)));
        json_object_set_new(to, "bits", json_integer(c->packing.bits));
        json_object_set_new(to, "group_size", json_integer(c->packing.group_size));
        json_object_set_new(to, "symmetric", json_boolean(c->packing.symmetric));
    }
    vq_model_close(&m);
    return VQ_OK;
}

static json_int_t file_bytes(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? (json_int_t)st.st_size : 0;
}

/* A run folder: the results if it is finished, and its files. */
static vq_status inspect_run(vq_arena *arena, const char *dir, json_t *to)
{
    char **names, *path;
    int64_t n;
    VQ_TRY(vq_path_join(arena, dir, "results.json", &path));
    json_t *results = json_load_file(path, 0, NULL), *files = json_object();
    if (results) json_object_set_new(to, "results", results);
    json_object_set_new(to, "files", files);
    VQ_TRY(vq_folder_list(arena, dir, "", &names, &n));
    for (int64_t i = 0; i < n; i++) {
        VQ_TRY(vq_path_join(arena, dir, names[i], &path));
        const size_t length = strlen(names[i]);
        json_t *file = json_object();
        json_object_set_new(files, names[i], file);
        if (!vq_is_folder(path)) json_object_set_new(file, "bytes", json_integer(file_bytes(path)));
        if (length > 3 && !strcmp(names[i] + length - 3, ".h5")) {
            VQ_TRY(inspect_h5(arena, path, file));
            if (json_object_size(json_object_get(file, "datasets")) > 16)
                json_object_set_new(
                    file, "datasets",
                    json_integer((json_int_t)json_object_size(json_object_get(file, "datasets"))));
        }
    }
    return VQ_OK;
}

static bool has_file(vq_arena *arena, const char *dir, const char *name)
{
    char *path;
    return vq_path_join(arena, dir, name, &path) == VQ_OK && vq_file_exists(path);
}

static vq_status inspect_path(vq_arena *arena, const char *path, json_t *to)
{
    if (vq_is_folder(path)) {
        if (has_file(arena, path, "config.yaml")) return inspect_run(arena, path, to);
        if (has_file(arena, path, "config.json")) return inspect_model(arena, path, to);
        VQ_FAIL(VQ_EFILE,
                "%s: a folder with neither config.json (a model) nor config.yaml (a run): expected "
                "one of them. Give the folder above or below",
                path);
    }
    const char *dot = strrchr(path, '.');
    if (dot && !strcmp(dot, ".h5")) return inspect_h5(arena, path, to);
    if (dot && !strcmp(dot, ".safetensors")) return inspect_safetensors(arena, path, to);
    VQ_CHECK(vq_file_exists(path), VQ_EFILE,
             "%s: no such file or folder: expected a model, a run, a .h5 or a .safetensors. Check "
             "the path",
             path);
    VQ_FAIL(VQ_EUNSUPPORTED,
            "%s: expected a model or run folder, a .h5 or a .safetensors file. Give one of these",
            path);
}

/* Numbers as people read them: six digits, bytes with their unit too. */
static void print_number(const json_t *value, bool is_bytes)
{
    const double number = json_number_value(value);
    char text[32];
    if (json_is_integer(value))
        printf("%lld", (long long)json_integer_value(value));
    else
        printf(is_bytes ? "%.0f" : "%.6g", number);
    if (is_bytes && number >= 1024) printf(" (%s)", vq_bytes_text(number, text));
}

/* key: value lines, deeper levels indented. is_bytes: the numbers in it are. */
static void print_text(const json_t *object, int depth, bool is_bytes)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        const size_t n = strlen(key), m = strlen("bytes");
        const bool has_bytes = is_bytes || (n >= m && !strcmp(key + n - m, "bytes"));
        printf("%*s%s:", 2 * depth, "", key);
        if (json_is_object(value)) {
            puts("");
            print_text(value, depth + 1, has_bytes);
        } else if (json_is_string(value)) {
            printf(" %s\n", json_string_value(value));
        } else if (json_is_number(value)) {
            putchar(' ');
            print_number(value, has_bytes);
            puts("");
        } else if (json_is_number(json_array_get(value, 0))) {
            for (size_t i = 0; i < json_array_size(value); i++) {
                fputs(i > 0 ? ", " : " ", stdout);
                print_number(json_array_get(value, i), has_bytes);
            }
            puts("");
        } else {
            char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
            printf(" %s\n", text ? text : "");
            free(text);
        }
    }
}

vq_status vq_inspect(const char *path, bool json)
{
    vq_arena arena;
    VQ_TRY(vq_arena_init(&arena, "inspect", (size_t)4 << 30));
    json_t *to = json_object();
    vq_status status = inspect_path(&arena, path, to);
    if (!status && json) {
        char *text = json_dumps(to, JSON_COMPACT);
        puts(text ? text : "{}");
        free(text);
    } else if (!status) {
        print_text(to, 0, false);
    }
    json_decref(to);
    vq_arena_close(&arena);
    return status;
}
