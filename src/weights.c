/* weights - one table of tensors over the files of a model folder. */
#include "weights.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "safetensors.h"
#include "torchbin.h"

#define ADVICE "Give the folder of a downloaded Hugging Face model, with all of its weight files"

static bool ends_with(const char *text, const char *suffix)
{
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const vq_tensor *)a)->name, ((const vq_tensor *)b)->name);
}

static vq_status open_file(vq_arena *arena, const char *path, vq_map *map, vq_tensor **tensor,
                           int64_t *n)
{
    if (ends_with(path, ".safetensors")) {
        vq_safetensors s;
        VQ_TRY(vq_safetensors_open(arena, path, &s));
        *map = s.map, *tensor = s.tensor, *n = s.n;
    } else {
        vq_torchbin t;
        VQ_TRY(vq_torchbin_open(arena, path, &t));
        *map = t.map, *tensor = t.tensor, *n = t.n;
    }
    return VQ_OK;
}

static vq_status open_single(vq_arena *arena, const char *path, vq_weights *w)
{
    VQ_TRY(VQ_NEW(arena, 1, &w->path));
    VQ_TRY(VQ_NEW(arena, 1, &w->map));
    w->path[0] = path;
    VQ_TRY(open_file(arena, path, &w->map[0], &w->tensor, &w->n));
    w->n_files = 1;
    VQ_TRY(VQ_NEW(arena, w->n, &w->file));
    if (w->n > 0) memset(w->file, 0, (size_t)w->n * sizeof *w->file);
    return VQ_OK;
}

/* A name and its shard, as the index has them. */
typedef struct placed {
    const char *name, *shard;
} placed;

static int by_shard(const void *a, const void *b)
{
    const placed *p = a, *q = b;
    int order = strcmp(p->shard, q->shard);
    return order ? order : strcmp(p->name, q->name);
}

/* Opens the shard of p[0..n), and takes these tensors from it. */
static vq_status open_shard(vq_arena *arena, const char *index, const placed *p, int64_t n,
                            vq_weights *w)
{
    char *path;
    vq_tensor *tensor = NULL;
    int64_t n_tensors = 0;
    VQ_TRY(vq_path_join(arena, w->dir, p->shard, &path));
    VQ_CHECK(!strchr(p->shard, '/') &&
                 (ends_with(p->shard, ".safetensors") || ends_with(p->shard, ".bin")),
             VQ_EFILE,
             "%s: shard \"%s\" of %s: expected the name of a .safetensors or .bin file in the same "
             "folder. Download the index again",
             index, p->shard, p->name);
    VQ_CHECK(vq_file_exists(path), VQ_EFILE,
             "%s: shard %s is missing; %s names it for %lld tensors, expected it in the same "
             "folder. Download it too",
             w->dir, p->shard, index, (long long)n);
    VQ_TRY(open_file(arena, path, &w->map[w->n_files], &tensor, &n_tensors));
    w->path[w->n_files++] = path;
    for (int64_t i = 0; i < n; i++) {
        vq_tensor key = {.name = p[i].name};
        vq_tensor *found = bsearch(&key, tensor, (size_t)n_tensors, sizeof key, by_name);
        VQ_CHECK(found, VQ_EFILE,
                 "%s: %s is not there, but %s says so. Expected index and shards of one model: "
                 "download both again",
                 path, p[i].name, index);
        w->tensor[w->n++] = *found;
    }
    return VQ_OK;
}

static vq_status read_index(vq_arena *arena, const char *path, json_t *root, vq_weights *w)
{
    const char *name;
    json_t *shard, *map = json_object_get(root, "weight_map");
    placed *p;
    int64_t n = 0;
    VQ_CHECK(json_object_size(map) > 0, VQ_EFILE,
             "%s has no \"weight_map\", expected {name: shard, ...}. Download the index again",
             path);
    VQ_TRY(VQ_NEW(arena, (int64_t)json_object_size(map), &p));
    VQ_TRY(VQ_NEW(arena, (int64_t)json_object_size(map), &w->tensor));
    json_object_foreach(map, name, shard)
    {
        VQ_CHECK(json_is_string(shard), VQ_EFILE,
                 "%s: the shard of %s is no text, expected a file name. Download the index again",
                 path, name);
        p[n++] = (placed){name, json_string_value(shard)};
    }
    qsort(p, (size_t)n, sizeof *p, by_shard);
    int64_t n_shards = 1;
    for (int64_t i = 1; i < n; i++) n_shards += strcmp(p[i].shard, p[i - 1].shard) != 0;
    VQ_TRY(VQ_NEW(arena, n_shards, &w->path));
    VQ_TRY(VQ_NEW(arena, n_shards, &w->map));
    for (int64_t i = 0, next; i < n; i = next) {
        for (next = i + 1; next < n && strcmp(p[next].shard, p[i].shard) == 0;) next++;
        VQ_TRY(open_shard(arena, path, p + i, next - i, w));
    }
    qsort(w->tensor, (size_t)n, sizeof *w->tensor, by_name);

    /* Sorting mixed the shards: a tensor's file is the one whose shard the index names. */
    VQ_TRY(VQ_NEW(arena, n, &w->file));
    for (int64_t i = 0; i < n; i++) {
        const char *file = json_string_value(json_object_get(map, w->tensor[i].name));
        w->file[i] = 0;
        while (strcmp(last_part(w->path[w->file[i]]), file) != 0) w->file[i]++;
    }
    return VQ_OK;
}

static vq_status open_index(vq_arena *arena, const char *path, vq_weights *w)
{
    char *text;
    size_t bytes;
    json_error_t e;
    VQ_TRY(vq_file_read(arena, path, &text, &bytes));
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &e);
    VQ_CHECK(root, VQ_EFILE, "%s:%d: %s; expected a JSON index. Download it again", path, e.line,
             e.text);
    vq_status status = read_index(arena, path, root, w);
    json_decref(root);
    return status;
}

static vq_status open_folder(vq_arena *arena, vq_weights *w)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json",
                                        "pytorch_model.bin", "pytorch_model.bin.index.json"};
    char *path, **others;
    int64_t n;
    for (int i = 0; i < VQ_COUNT(names); i++) {
        VQ_TRY(vq_path_join(arena, w->dir, names[i], &path));
        if (!vq_file_exists(path)) continue;
        return ends_with(path, ".json") ? open_index(arena, path, w) : open_single(arena, path, w);
    }
    VQ_TRY(vq_folder_list(arena, w->dir, ".safetensors", &others, &n));
    VQ_CHECK(n == 1, VQ_EFILE,
             "%s has %lld .safetensors files and none of the usual names: expected %s, %s, %s or "
             "%s. " ADVICE,
             w->dir, (long long)n, names[0], names[1], names[2], names[3]);
    VQ_TRY(vq_path_join(arena, w->dir, others[0], &path));
    return open_single(arena, path, w);
}

vq_status vq_weights_open(vq_arena *arena, const char *dir, vq_weights *out)
{
    char *kept;
    *out = (vq_weights){0};
    VQ_TRY(vq_arena_text(arena, dir, strlen(dir), &kept));
    out->dir = kept;
    VQ_CHECK(vq_file_exists(dir), VQ_EFILE,
             "%s: there is no such folder, expected a model's. " ADVICE, dir);
    vq_status status;
    if (vq_is_folder(dir))
        status = open_folder(arena, out);
    else if (ends_with(dir, ".safetensors") || ends_with(dir, ".bin"))
        status = open_single(arena, kept, out);
    else
        status = vq_error_set(
            VQ_EFILE, __FILE__, __LINE__,
            "%s is neither a folder nor a .safetensors or .bin file, as expected. " ADVICE, dir);
    if (status != VQ_OK) vq_weights_close(out);
    return status;
}

void vq_weights_close(vq_weights *w)
{
    for (int64_t i = 0; i < w->n_files; i++) vq_file_unmap(&w->map[i]);
    *w = (vq_weights){0};
}

const vq_tensor *vq_weights_find(const vq_weights *w, const char *name)
{
    vq_tensor key = {.name = name};
    return w->n > 0 ? bsearch(&key, w->tensor, (size_t)w->n, sizeof key, by_name) : NULL;
}

const char *vq_weights_path(const vq_weights *w, const vq_tensor *tensor)
{
    return w->path[w->file[tensor - w->tensor]];
}

uint64_t vq_weights_fingerprint(const vq_weights *w)
{
    uint64_t h = vq_hash_u64(VQ_HASH_START, (uint64_t)w->n);
    for (int64_t i = 0; i < w->n; i++) {
        const vq_tensor *t = &w->tensor[i];
        size_t bytes = vq_tensor_contiguous(t) ? vq_tensor_bytes(t) : 0;
        size_t ends = VQ_MIN(bytes, (size_t)4096);
        h = vq_hash_text(vq_hash_text(h, t->name), vq_dtype_name(t->dtype));
        for (int d = 0; d < t->ndim; d++) h = vq_hash_u64(h, (uint64_t)t->dim[d]);
        h = vq_hash_bytes(h, t->data, ends);
        h = vq_hash_bytes(h, (const uint8_t *)t->data + (bytes - ends), ends);
    }
    return h;
}

void vq_weights_release(const vq_weights *w, const vq_tensor *tensor)
{
    if (!vq_tensor_contiguous(tensor)) return;
    for (int64_t i = 0; i < w->n_files; i++) {
        uintptr_t at = (uintptr_t)tensor->data - (uintptr_t)w->map[i].data;
        if (at < w->map[i].bytes) vq_file_release(tensor->data, vq_tensor_bytes(tensor));
    }
}

int64_t vq_weights_bytes(const vq_weights *w)
{
    int64_t total = 0;
    for (int64_t i = 0; i < w->n; i++) total += (int64_t)vq_tensor_bytes(&w->tensor[i]);
    return total;
}
