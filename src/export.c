/* export - the dense folder. */
#include "export.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "log.h"
#include "safetensors.h"

/* Everything beside the weights that a loader may ask for. */
static const char *const companions[] = {"generation_config.json",
                                         "tokenizer.json",
                                         "tokenizer_config.json",
                                         "tokenizer.model",
                                         "vocab.json",
                                         "merges.txt",
                                         "special_tokens_map.json",
                                         "added_tokens.json",
                                         "chat_template.jinja",
                                         "chat_template.json",
                                         "preprocessor_config.json"};

/* The linear whose weight is tensor t of the files, or NULL. */
static const vq_vqlinear *linear_of(vq_stage *stage, const vq_tensor *t)
{
    const char *at = strstr(t->name, "layers.");
    if (!at) return NULL;
    const int64_t layer = strtoll(at + strlen("layers."), NULL, 10);
    if (layer < stage->first || layer >= stage->last) return NULL;
    for (int k = 0; k < VQ_N_KINDS; k++) {
        const vq_vqlinear *l = vq_stage_linear(stage, layer, (vq_linear_kind)k);
        if (l && l->quantized && l->source->weight.data == t->data) return l;
    }
    return NULL;
}

/* Buffers that old checkpoints carry and no loader wants. */
static bool is_stray(const vq_tensor *t)
{
    return strstr(t->name, "rotary_emb.inv_freq") != NULL;
}

static vq_status put_tensor(vq_stage *stage, vq_mode mode, vq_safetensors_writer *writer, int64_t i,
                            const vq_tensor *t)
{
    const vq_vqlinear *l = linear_of(stage, t);
    if (!l) {
        VQ_CHECK(vq_tensor_contiguous(t), VQ_EUNSUPPORTED,
                 "%s: %s is stored transposed: expected rows one after another. Save the model "
                 "again with save_pretrained",
                 stage->model->dir, t->name);
        return vq_safetensors_put(writer, i, t->data, vq_tensor_bytes(t));
    }
    const vq_backend *be = stage->be;
    size_t mark = vq_arena_mark(stage->scratch);
    vq_tensor w;
    void *host, *out;
    VQ_TRY(vq_vqlinear_weight(be, l, mode, stage->scratch, &w));
    VQ_TRY(vq_arena_alloc(stage->scratch, vq_tensor_bytes(&w), &host));
    VQ_TRY(vq_download(be, host, &w));
    VQ_TRY(vq_arena_alloc(stage->scratch, vq_tensor_bytes(t), &out));
    VQ_TRY(vq_convert(out, t->dtype, host, be->act, vq_tensor_count(t)));
    VQ_TRY(vq_safetensors_put(writer, i, out, vq_tensor_bytes(t)));
    vq_arena_reset(stage->scratch, mark);
    return VQ_OK;
}

/* The layer that a tensor belongs to; -1: none, before the layers; N: none, after them. */
static int64_t layer_of(const vq_model *m, const vq_tensor *t)
{
    const char *at = strstr(t->name, "layers.");
    if (at) return strtoll(at + strlen("layers."), NULL, 10);
    const vq_tensor *const after[] = {&m->final_norm_weight, &m->final_norm_bias, &m->project_out,
                                      &m->head};
    for (int i = 0; i < VQ_COUNT(after); i++)
        if (t->data == after[i]->data && t->data != m->embed.data) return m->config.N;
    return -1;
}

static bool is_own(const vq_stage *stage, const vq_tensor *t)
{
    const int64_t layer = layer_of(stage->model, t);
    if (layer < 0) return vq_stage_is_first(stage);
    if (layer >= stage->model->config.N) return vq_stage_is_last(stage);
    return layer >= stage->first && layer < stage->last;
}

vq_status vq_export_plan(vq_arena *arena, const vq_stage *stage, vq_export *p)
{
    const vq_weights *w = &stage->model->weights;
    int64_t in_shard = 0;
    *p = (vq_export){.n_shards = 1};
    VQ_TRY(VQ_NEW(arena, w->n, &p->tensor));
    VQ_TRY(VQ_NEW(arena, w->n, &p->shard));
    for (int64_t i = 0; i < w->n; i++) {
        if (is_stray(&w->tensor[i]) || !is_own(stage, &w->tensor[i])) continue;
        const int64_t bytes = (int64_t)vq_tensor_bytes(&w->tensor[i]);
        if (in_shard > 0 && in_shard + bytes > VQ_SHARD_BYTES) {
            p->n_shards++;
            in_shard = 0;
        }
        in_shard += bytes;
        p->shard[p->n] = p->n_shards - 1;
        p->tensor[p->n++] = w->tensor[i];
    }
    return VQ_OK;
}

static void file_name(int32_t file, int32_t n_files, char name[64])
{
    if (n_files == 1)
        snprintf(name, 64, "model.safetensors");
    else
        snprintf(name, 64, "model-%05d-of-%05d.safetensors", file + 1, n_files);
}

static vq_status write_shard(const vq_export *p, vq_stage *stage, vq_mode mode, int32_t shard,
                             const char *path)
{
    int64_t first = 0, n = 0;
    while (first < p->n && p->shard[first] != shard) first++;
    while (first + n < p->n && p->shard[first + n] == shard) n++;
    vq_safetensors_writer writer;
    VQ_TRY(vq_safetensors_create(stage->scratch, path, &p->tensor[first], n, &writer));
    for (int64_t i = first; i < first + n; i++) {
        vq_status status = put_tensor(stage, mode, &writer, i - first, &p->tensor[i]);
        if (status) {
            vq_safetensors_abandon(&writer);
            return status;
        }
    }
    return vq_safetensors_finish(&writer);
}

vq_status vq_export_files(const vq_export *p, vq_stage *stage, vq_mode mode, const char *dir,
                          int32_t first_file, int32_t n_files)
{
    size_t mark = vq_arena_mark(stage->scratch);
    for (int32_t s = 0; s < p->n_shards; s++) {
        char *path, name[64];
        file_name(first_file + s, n_files, name);
        VQ_TRY(vq_path_join(stage->scratch, dir, name, &path));
        VQ_TRY(write_shard(p, stage, mode, s, path));
    }
    vq_arena_reset(stage->scratch, mark);
    return VQ_OK;
}

/* Adds the tensors of a written file to the index. */
static vq_status index_file(vq_arena *scratch, const char *dir, const char *name, json_t *map,
                            int64_t *bytes)
{
    char *path;
    vq_safetensors file;
    VQ_TRY(vq_path_join(scratch, dir, name, &path));
    VQ_TRY(vq_safetensors_open(scratch, path, &file));
    for (int64_t i = 0; i < file.n; i++) {
        json_object_set_new(map, file.tensor[i].name, json_string(name));
        *bytes += (int64_t)vq_tensor_bytes(&file.tensor[i]);
    }
    vq_safetensors_close(&file);
    return VQ_OK;
}

static vq_status write_index(vq_arena *scratch, const char *dir, int32_t n_files)
{
    vq_status status = VQ_OK;
    json_t *map = json_object();
    int64_t bytes = 0;
    for (int32_t i = 0; !status && i < n_files; i++) {
        char name[64];
        file_name(i, n_files, name);
        status = index_file(scratch, dir, name, map, &bytes);
    }
    json_t *root =
        json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)bytes, "weight_map", map);
    char *path, *text = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS);
    json_decref(root);
    if (!status) status = vq_path_join(scratch, dir, "model.safetensors.index.json", &path);
    if (!status) status = vq_file_write(path, text, strlen(text));
    free(text);
    return status;
}

static vq_status copy_beside(vq_arena *scratch, const vq_model *model, const char *dir,
                             const char *name)
{
    char *from, *to;
    VQ_TRY(vq_path_join(scratch, model->dir, name, &from));
    VQ_TRY(vq_path_join(scratch, dir, name, &to));
    if (vq_file_exists(from)) return vq_file_copy(from, to);
    unlink(to); /* of another model exported here before */
    return VQ_OK;
}

vq_status vq_export_finish(vq_arena *scratch, const vq_model *model, const char *dir,
                           int32_t n_files)
{
    size_t mark = vq_arena_mark(scratch);
    if (n_files > 1) VQ_TRY(write_index(scratch, dir, n_files));
    for (int i = 0; i < VQ_COUNT(companions); i++)
        VQ_TRY(copy_beside(scratch, model, dir, companions[i]));
    VQ_TRY(copy_beside(scratch, model, dir, "config.json"));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

vq_status vq_export_begin(vq_arena *scratch, const char *dir)
{
    size_t mark = vq_arena_mark(scratch);
    char **names, *path;
    int64_t n;
    VQ_TRY(vq_make_folders(dir));
    VQ_TRY(vq_path_join(scratch, dir, "config.json", &path));
    unlink(path);
    VQ_TRY(vq_folder_list(scratch, dir, "", &names, &n));
    for (int64_t i = 0; i < n; i++) {
        if (strncmp(names[i], "model", strlen("model")) != 0 || !strstr(names[i], ".safetensors"))
            continue;
        VQ_TRY(vq_path_join(scratch, dir, names[i], &path));
        if (unlink(path) != 0) return vq_file_error(path, "removed");
    }
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}
