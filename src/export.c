/* export - the model folder, dense or packed. */
#include "export.h"

#include <jansson.h>
#include <math.h>
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
static const vq_vqlinear *linear_of(vq_stage *stage, const vq_tensor *t, int64_t *slot)
{
    const char *at = strstr(t->name, "layers.");
    if (!at) return NULL;
    const int64_t layer = strtoll(at + strlen("layers."), NULL, 10);
    if (layer < stage->first || layer >= stage->last) return NULL;
    for (int k = 0; k < VQ_N_KINDS; k++) {
        const vq_vqlinear *l = vq_stage_linear(stage, layer, (vq_linear_kind)k);
        *slot = layer * VQ_N_KINDS + k;
        if (l && l->quantized && l->source->weight.data == t->data) return l;
    }
    return NULL;
}

/* Buffers that old checkpoints carry and no loader wants. */
static bool is_stray(const vq_tensor *t)
{
    return strstr(t->name, "rotary_emb.inv_freq") != NULL;
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

/* --- which linears are packed ------------------------------------------------------------------
 */

/* Linears that engines put into one, and so load packed together or not at all. */
static const int fused_set[VQ_N_KINDS] = {
    [VQ_Q] = 0, [VQ_K] = 0, [VQ_V] = 0, [VQ_O] = 1, [VQ_GATE] = 2, [VQ_UP] = 2, [VQ_DOWN] = 3};

/* Whether a slot's linear can be packed by itself; if it is quantized and cannot, why. */
static bool can_pack(const vq_model *m, const vq_list *skip, const vq_packing *p, int64_t slot,
                     char why[128])
{
    const vq_linear *l = &m->layers[slot / VQ_N_KINDS].linear[slot % VQ_N_KINDS];
    const vq_tensor *w = &l->weight;
    why[0] = '\0';
    if (!vq_pool_takes(l->name, skip)) return false;
    if (w->dtype == m->embed.dtype) return vq_packing_holds(p, w->dim[0], w->dim[1], why);
    snprintf(why, 128, "it is %s and the embedding %s", vq_dtype_name(w->dtype),
             vq_dtype_name(m->embed.dtype));
    return false;
}

/* Whether a slot's linear is packed; if it is quantized and not, why. */
static bool decide(const vq_model *m, const vq_list *skip, const vq_packing *p, int64_t slot,
                   char why[128])
{
    char other_why[128];
    const vq_linear *linear = m->layers[slot / VQ_N_KINDS].linear;
    const int64_t first = slot - slot % VQ_N_KINDS;
    if (!can_pack(m, skip, p, slot, why)) return false;
    for (int k = 0; k < VQ_N_KINDS; k++) {
        if (!linear[k].exists || fused_set[k] != fused_set[slot - first] ||
            can_pack(m, skip, p, first + k, other_why))
            continue;
        snprintf(why, 128, "engines load it together with %.80s, which is dense", linear[k].name);
        return false;
    }
    return true;
}

/* Says which engines load the result. */
static void say_who_loads(const vq_packing *p)
{
    const bool has_kernels = p->bits == 4 || p->bits == 8;
    const int64_t g = p->group_size;
    const char *vllm = "vLLM does too";
    if (p->format == VQ_EXPORT_GPTQ) {
        if (!has_kernels)
            vllm = "vLLM does not, which takes 4 and 8 bits in this format";
        else if (!p->symmetric)
            vllm = "vLLM does not, which takes symmetric grids (--sym) in this format";
        else if (g != -1 && g != 32 && g != 64 && g != 128)
            vllm = "vLLM does not, which takes groups of 32, 64 or 128, or the whole row";
        vq_log(VQ_LOG_INFO, "export   gptq%s: GPTQModel and transformers load it; %s",
               p->less_one ? "" : "_v2", vllm);
        return;
    }
    if (!has_kernels)
        vllm = p->symmetric
                   ? "vLLM from 2026 on computes with it"
                   : "vLLM does not, which takes 2 and 3 bits with symmetric grids (--sym)";
    const char *transformers = p->symmetric ? "unpacks it"
                               : p->bits == 3
                                   ? "does not load it (asymmetric, 3 bits)"
                                   : "unpacks it with compressed-tensors before 0.18 (asymmetric)";
    vq_log(VQ_LOG_INFO, "export   compressed-tensors: transformers %s; %s", transformers, vllm);
}

/* A line for each kind of linear that stays dense: the first, how many, and the first's reason. */
static void say_what_stays(const vq_model *m, const vq_list *skip, const vq_packing *p)
{
    for (int k = 0; k < VQ_N_KINDS; k++) {
        char why[128], first_why[128];
        int64_t n = 0, first = 0;
        for (int64_t layer = 0; layer < m->config.N && m->layers[0].linear[k].exists; layer++) {
            if (decide(m, skip, p, layer * VQ_N_KINDS + k, why) || !why[0]) continue;
            if (n++ > 0) continue;
            first = layer;
            memcpy(first_why, why, sizeof why);
        }
        if (n > 0)
            vq_log(VQ_LOG_WARN, "export   %s stays dense, as in %lld of %lld layers: %s",
                   m->layers[first].linear[k].name, (long long)n, (long long)m->config.N,
                   first_why);
    }
}

vq_status vq_export_choose(vq_arena *arena, const vq_model *m, const vq_list *skip,
                           const vq_packing *packing, vq_export_rule *rule)
{
    const int64_t n = m->config.N * VQ_N_KINDS;
    char why[128], last_why[128] = "none is quantized";
    *rule = (vq_export_rule){.packing = *packing};
    VQ_TRY(VQ_NEW(arena, n, &rule->is_packed));
    memset(rule->is_packed, 0, (size_t)n * sizeof *rule->is_packed);
    if (packing->format == VQ_EXPORT_DENSE) return VQ_OK;
    VQ_TRY(VQ_NEW(arena, n, &rule->packed.item));
    VQ_TRY(VQ_NEW(arena, n + 2, &rule->dense.item));
    if (m->project_in.data) { /* OPT-350M's: in no decoder layer, but linears to a loader */
        rule->dense.item[rule->dense.n++] = "model.decoder.project_in";
        rule->dense.item[rule->dense.n++] = "model.decoder.project_out";
    }
    for (int64_t slot = 0; slot < n; slot++) {
        const vq_linear *l = &m->layers[slot / VQ_N_KINDS].linear[slot % VQ_N_KINDS];
        if (!l->exists) continue;
        rule->is_packed[slot] = decide(m, skip, packing, slot, why);
        vq_list *list = rule->is_packed[slot] ? &rule->packed : &rule->dense;
        list->item[list->n++] = l->name;
        if (why[0]) memcpy(last_why, why, sizeof why);
    }
    VQ_CHECK(rule->packed.n > 0, VQ_EUNSUPPORTED,
             "export.format: no linear of %s can be packed: %s. Expected one at least: export "
             "dense, or change --bits, --group-size or --skip",
             m->dir, last_why);
    return VQ_OK;
}

void vq_export_say(const vq_model *m, const vq_list *skip, const vq_packing *packing)
{
    if (packing->format == VQ_EXPORT_DENSE) return;
    say_what_stays(m, skip, packing);
    say_who_loads(packing);
}

/* --- what a stage writes -----------------------------------------------------------------------
 */

/* The tensors written for a unit, without data, into tensor. Returns how many. */
static vq_status describe(vq_arena *arena, const vq_stage *stage, const vq_packing *packing,
                          const vq_export_unit *u, vq_tensor *tensor, int64_t *n)
{
    const size_t stem = strlen(u->source.name) - strlen("weight");
    vq_packed packed;
    *n = 1;
    tensor[0] = u->source;
    if (!u->is_packed) return VQ_OK;
    *n = 0;
    vq_packed_describe(packing, u->source.dim[0], u->source.dim[1], stage->model->embed.dtype,
                       &packed);
    for (int k = 0; k < VQ_N_PARTS; k++) {
        char name[512], *kept;
        if (packed.part[k].ndim == 0) continue;
        const int length =
            snprintf(name, sizeof name, "%.*s%s", (int)stem, u->source.name, packed.part[k].name);
        VQ_ASSERT(length > 0 && (size_t)length < sizeof name);
        VQ_TRY(vq_arena_text(arena, name, (size_t)length, &kept));
        tensor[*n] = packed.part[k];
        tensor[(*n)++].name = kept;
    }
    return VQ_OK;
}

vq_status vq_export_plan(vq_arena *arena, vq_stage *stage, const vq_export_rule *rule, vq_export *p)
{
    const vq_weights *w = &stage->model->weights;
    int64_t in_shard = 0;
    *p = (vq_export){.n_shards = 1};
    VQ_TRY(VQ_NEW(arena, w->n * VQ_N_PARTS, &p->tensor));
    VQ_TRY(VQ_NEW(arena, w->n, &p->unit));
    for (int64_t i = 0; i < w->n; i++) {
        if (is_stray(&w->tensor[i]) || !is_own(stage, &w->tensor[i])) continue;
        vq_export_unit *u = &p->unit[p->n_units++];
        int64_t slot, bytes = 0;
        *u = (vq_export_unit){.source = w->tensor[i], .first = p->n};
        u->linear = linear_of(stage, &w->tensor[i], &slot);
        u->is_packed = u->linear && rule->is_packed[slot];
        VQ_TRY(describe(arena, stage, &rule->packing, u, &p->tensor[p->n], &u->n));
        for (int64_t k = 0; k < u->n; k++)
            bytes += (int64_t)vq_tensor_bytes(&p->tensor[u->first + k]);
        if (in_shard > 0 && in_shard + bytes > VQ_SHARD_BYTES) {
            p->n_shards++;
            in_shard = 0;
        }
        in_shard += bytes;
        p->bytes += bytes;
        p->n += u->n;
        u->shard = p->n_shards - 1;
    }
    return VQ_OK;
}

/* --- the files ---------------------------------------------------------------------------------
 */

/* A host tensor's elements as f32: its own, or a copy. */
static vq_status to_f32(vq_stage *stage, const vq_tensor *t, float **out)
{
    *out = t->data;
    if (t->dtype == VQ_F32) return VQ_OK;
    VQ_TRY(VQ_NEW(stage->scratch, vq_tensor_count(t), out));
    return vq_convert(*out, VQ_F32, t->data, t->dtype, vq_tensor_count(t));
}

/* Each column's group where they are not runs, else NULL. */
static vq_status groups_of(vq_arena *scratch, const vq_vqlinear *l, int32_t **out)
{
    const int32_t *order = l->order.data;
    *out = NULL;
    if (!order) return VQ_OK;
    VQ_TRY(VQ_NEW(scratch, l->order.dim[0], out));
    for (int64_t j = 0; j < l->order.dim[0]; j++)
        (*out)[order[j]] = (int32_t)(j / l->quant.group_size);
    return VQ_OK;
}

/* The integers q of weights w = s (q - z), whatever made these: |q - z| is below 256, so that even
 * in bf16 w / s is nearer to it than to its neighbours. The first weight off the grid, or -1. */
static int64_t find_codes(const vq_quant *quant, const float *w, int64_t in, const float *scale,
                          const float *zero, const int32_t *group, uint8_t *q)
{
    const int64_t out = quant->scale.dim[0], groups = quant->scale.dim[1];
    const float qmax = (float)((1 << quant->bits) - 1);
    int64_t bad = INT64_MAX;
#pragma omp parallel for reduction(min : bad)
    for (int64_t o = 0; o < out; o++)
        for (int64_t i = 0; i < in; i++) {
            const int64_t at = o * in + i,
                          g = o * groups + (group ? group[i] : i / quant->group_size);
            const float u = w[at] / scale[g], code = rintf(u) + zero[g];
            const bool is_on = code >= 0 && code <= qmax && fabsf(u - rintf(u)) < 0.499f;
            q[at] = is_on ? (uint8_t)code : 0;
            if (!is_on) bad = VQ_MIN(bad, at);
        }
    return bad < INT64_MAX ? bad : -1;
}

/* The parts of a packed linear, tensors `at` and following of the writer. */
static vq_status put_packed(const vq_export_rule *rule, vq_stage *stage, vq_mode mode,
                            const vq_export_unit *u, vq_safetensors_writer *writer, int64_t at)
{
    vq_vqlinear own;
    const vq_vqlinear *l = &own;
    vq_tensor weight;
    float *w, *scale, *zero;
    int32_t *group;
    uint8_t *q;
    vq_packed packed;
    VQ_TRY(vq_vqlinear_host(stage->be, stage->scratch, u->linear, &own));
    VQ_TRY(vq_vqlinear_weight(rule->host, l, mode, stage->scratch, &weight));
    VQ_TRY(to_f32(stage, &weight, &w));
    VQ_TRY(to_f32(stage, &l->quant.scale, &scale));
    VQ_TRY(to_f32(stage, &l->quant.zero, &zero));
    VQ_TRY(VQ_NEW(stage->scratch, vq_tensor_count(&weight), &q));
    VQ_TRY(groups_of(stage->scratch, l, &group));
    const int64_t bad = find_codes(&l->quant, w, weight.dim[1], scale, zero, group, q);
    VQ_CHECK(bad < 0, VQ_EINTERNAL,
             "%s: weight %lld is %.9g: expected one on its grid. This is a bug of vqround: please "
             "report it",
             l->source->name, (long long)bad, (double)w[bad]);
    vq_packed_describe(&rule->packing, u->source.dim[0], u->source.dim[1],
                       stage->model->embed.dtype, &packed);
    for (int k = 0; k < VQ_N_PARTS; k++)
        if (packed.part[k].ndim > 0)
            VQ_TRY(vq_arena_alloc(stage->scratch, vq_tensor_bytes(&packed.part[k]),
                                  &packed.part[k].data));
    VQ_TRY(vq_packed_fill(stage->scratch, &packed, q, scale, zero, group, l->source->name));
    for (int k = 0; k < VQ_N_PARTS; k++)
        if (packed.part[k].ndim > 0)
            VQ_TRY(vq_safetensors_put(writer, at++, packed.part[k].data,
                                      vq_tensor_bytes(&packed.part[k])));
    return VQ_OK;
}

static vq_status put_dense(const vq_export_rule *rule, vq_stage *stage, vq_mode mode,
                           const vq_export_unit *u, vq_safetensors_writer *writer, int64_t at)
{
    vq_vqlinear own;
    vq_tensor w;
    void *out;
    VQ_TRY(vq_vqlinear_host(stage->be, stage->scratch, u->linear, &own));
    VQ_TRY(vq_vqlinear_weight(rule->host, &own, mode, stage->scratch, &w));
    VQ_TRY(vq_arena_alloc(stage->scratch, vq_tensor_bytes(&u->source), &out));
    VQ_TRY(vq_convert(out, u->source.dtype, w.data, w.dtype, vq_tensor_count(&u->source)));
    return vq_safetensors_put(writer, at, out, vq_tensor_bytes(&u->source));
}

static vq_status put_unit(const vq_export_rule *rule, vq_stage *stage, vq_mode mode,
                          const vq_export_unit *u, vq_safetensors_writer *writer, int64_t at)
{
    const vq_tensor *t = &u->source;
    size_t mark = vq_arena_mark(stage->scratch);
    if (!u->linear) {
        VQ_CHECK(vq_tensor_contiguous(t), VQ_EUNSUPPORTED,
                 "%s: %s is stored transposed: expected rows one after another. Save the model "
                 "again with save_pretrained",
                 stage->model->dir, t->name);
        return vq_safetensors_put(writer, at, t->data, vq_tensor_bytes(t));
    }
    VQ_TRY(u->is_packed ? put_packed(rule, stage, mode, u, writer, at)
                        : put_dense(rule, stage, mode, u, writer, at));
    vq_arena_reset(stage->scratch, mark);
    return VQ_OK;
}

static void file_name(int32_t file, int32_t n_files, char name[64])
{
    if (n_files == 1)
        snprintf(name, 64, "model.safetensors");
    else
        snprintf(name, 64, "model-%05d-of-%05d.safetensors", file + 1, n_files);
}

static vq_status write_shard(const vq_export *p, const vq_export_rule *rule, vq_stage *stage,
                             vq_mode mode, int32_t shard, const char *path)
{
    int64_t first = 0, last, n = 0;
    while (first < p->n_units && p->unit[first].shard != shard) first++;
    for (last = first; last < p->n_units && p->unit[last].shard == shard; last++)
        n += p->unit[last].n;
    const int64_t start = first < last ? p->unit[first].first : 0;
    vq_safetensors_writer writer;
    VQ_TRY(vq_safetensors_create(stage->scratch, path, &p->tensor[start], n, &writer));
    for (int64_t i = first; i < last; i++) {
        const vq_export_unit *u = &p->unit[i];
        vq_status status = put_unit(rule, stage, mode, u, &writer, u->first - start);
        if (status) {
            vq_safetensors_abandon(&writer);
            return status;
        }
    }
    return vq_safetensors_finish(&writer);
}

vq_status vq_export_files(const vq_export *p, const vq_export_rule *rule, vq_stage *stage,
                          vq_mode mode, const char *dir, int32_t first_file, int32_t n_files)
{
    size_t mark = vq_arena_mark(stage->scratch);
    for (int32_t s = 0; s < p->n_shards; s++) {
        char *path, name[64];
        file_name(first_file + s, n_files, name);
        VQ_TRY(vq_path_join(stage->scratch, dir, name, &path));
        VQ_TRY(write_shard(p, rule, stage, mode, s, path));
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

/* config.json with quantization_config in front of what the model's has, which stays to the byte;
 * for GPTQ quantize_config.json too, which older loaders read. */
static vq_status write_configs(vq_arena *scratch, const vq_model *model, const vq_export_rule *rule,
                               double damp, const char *dir)
{
    char *from, *to, *beside, *text, *whole;
    size_t n;
    json_t *config;
    VQ_TRY(vq_path_join(scratch, model->dir, "config.json", &from));
    VQ_TRY(vq_path_join(scratch, dir, "config.json", &to));
    VQ_TRY(vq_path_join(scratch, dir, "quantize_config.json", &beside));
    VQ_TRY(vq_file_read(scratch, from, &text, &n));
    VQ_TRY(vq_packing_json(&rule->packing, &rule->packed, &rule->dense, damp, &config));
    char *packing = json_dumps(config, JSON_INDENT(2));
    json_decref(config);
    VQ_ASSERT(packing);
    const char *brace = strchr(text, '{');
    const size_t bytes = n + strlen(packing) + 64;
    vq_status status = brace ? vq_arena_alloc(scratch, bytes, (void **)&whole) : VQ_EINTERNAL;
    if (!status) {
        const int length =
            snprintf(whole, bytes, "{\n\"quantization_config\": %s,%s", packing, brace + 1);
        if (rule->packing.format == VQ_EXPORT_GPTQ)
            status = vq_file_write(beside, packing, strlen(packing));
        if (!status) status = vq_file_write(to, whole, (size_t)length);
    }
    free(packing);
    return status;
}

vq_status vq_export_finish(vq_arena *scratch, const vq_model *model, const vq_export_rule *rule,
                           double damp, const char *dir, int32_t n_files)
{
    size_t mark = vq_arena_mark(scratch);
    if (n_files > 1) VQ_TRY(write_index(scratch, dir, n_files));
    for (int i = 0; i < VQ_COUNT(companions); i++)
        VQ_TRY(copy_beside(scratch, model, dir, companions[i]));
    VQ_TRY(rule->packing.format == VQ_EXPORT_DENSE
               ? copy_beside(scratch, model, dir, "config.json")
               : write_configs(scratch, model, rule, damp, dir));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

vq_status vq_export_begin(vq_arena *scratch, const char *dir)
{
    size_t mark = vq_arena_mark(scratch);
    char **names, *path;
    int64_t n;
    VQ_TRY(vq_make_folders(dir));
    static const char mark_text[] = "{\n  \"vqround\": \"" VQ_VERSION "\"\n}\n";
    VQ_TRY(vq_path_join(scratch, dir, VQ_EXPORT_MARK, &path));
    VQ_TRY(vq_file_write(path, mark_text, strlen(mark_text)));
    static const char *const configs[] = {"config.json", "quantize_config.json"};
    for (int i = 0; i < VQ_COUNT(configs); i++) {
        VQ_TRY(vq_path_join(scratch, dir, configs[i], &path));
        unlink(path);
    }
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
