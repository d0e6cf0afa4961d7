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

/* The tensors in the order of the layers: shards then hold whole layers where they can. */
typedef struct plan {
    vq_tensor *tensor; /* [n] */
    int32_t *shard;    /* [n] */
    int64_t n;
    int32_t n_shards;
    int64_t total_bytes;
} plan;

static vq_status make_plan(vq_stage *stage, plan *p)
{
    const vq_weights *w = &stage->model->weights;
    *p = (plan){.n_shards = 1};
    VQ_TRY(VQ_NEW(stage->scratch, w->n, &p->tensor));
    VQ_TRY(VQ_NEW(stage->scratch, w->n, &p->shard));
    int64_t in_shard = 0;
    for (int64_t i = 0; i < w->n; i++) {
        if (is_stray(&w->tensor[i])) continue;
        const int64_t bytes = (int64_t)vq_tensor_bytes(&w->tensor[i]);
        if (in_shard > 0 && in_shard + bytes > VQ_SHARD_BYTES) {
            p->n_shards++;
            in_shard = 0;
        }
        in_shard += bytes;
        p->total_bytes += bytes;
        p->shard[p->n] = p->n_shards - 1;
        p->tensor[p->n++] = w->tensor[i];
    }
    return VQ_OK;
}

static void shard_name(const plan *p, int32_t shard, char name[64])
{
    if (p->n_shards == 1)
        snprintf(name, 64, "model.safetensors");
    else
        snprintf(name, 64, "model-%05d-of-%05d.safetensors", shard + 1, p->n_shards);
}

static vq_status write_shard(vq_stage *stage, vq_mode mode, const plan *p, int32_t shard,
                             const char *path)
{
    int64_t first = 0, n = 0;
    while (p->shard[first] != shard) first++;
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

static vq_status write_index(const plan *p, const char *path)
{
    json_t *map = json_object();
    char name[64];
    for (int64_t i = 0; i < p->n; i++) {
        shard_name(p, p->shard[i], name);
        json_object_set_new(map, p->tensor[i].name, json_string(name));
    }
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)p->total_bytes,
                             "weight_map", map);
    char *text = json_dumps(root, JSON_INDENT(2));
    json_decref(root);
    VQ_ASSERT(text);
    vq_status status = vq_file_write(path, text, strlen(text));
    free(text);
    return status;
}

static vq_status copy_beside(vq_stage *stage, const char *dir, const char *name)
{
    char *from, *to;
    VQ_TRY(vq_path_join(stage->scratch, stage->model->dir, name, &from));
    VQ_TRY(vq_path_join(stage->scratch, dir, name, &to));
    return vq_file_exists(from) ? vq_file_copy(from, to) : VQ_OK;
}

static vq_status write_folder(vq_stage *stage, vq_mode mode, const char *dir)
{
    plan p;
    char *path, name[64];
    VQ_TRY(vq_make_folders(dir));
    VQ_TRY(vq_path_join(stage->scratch, dir, "config.json", &path));
    unlink(path);
    VQ_TRY(make_plan(stage, &p));
    vq_progress progress;
    vq_progress_begin(&progress, "export", "files", 0, p.n_shards);
    for (int32_t s = 0; s < p.n_shards; s++) {
        shard_name(&p, s, name);
        VQ_TRY(vq_path_join(stage->scratch, dir, name, &path));
        VQ_TRY(write_shard(stage, mode, &p, s, path));
        vq_progress_step(&progress, s + 1, NULL);
    }
    if (p.n_shards > 1) {
        VQ_TRY(vq_path_join(stage->scratch, dir, "model.safetensors.index.json", &path));
        VQ_TRY(write_index(&p, path));
    }
    for (int i = 0; i < VQ_COUNT(companions); i++) VQ_TRY(copy_beside(stage, dir, companions[i]));
    VQ_TRY(copy_beside(stage, dir, "config.json"));
    vq_progress_step(&progress, p.n_shards, "%s", dir);
    vq_progress_end(&progress);
    return VQ_OK;
}

vq_status vq_export_dense(vq_stage *stage, vq_mode mode, const char *dir)
{
    size_t mark = vq_arena_mark(stage->scratch);
    vq_status status = write_folder(stage, mode, dir);
    vq_arena_reset(stage->scratch, mark);
    return status;
}
