/* model - config.json and tensor names of the three families. */
#include "model.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "fileio.h"

/* What differs in names between the families. */
typedef struct family_names {
    const char *architecture, *model_type;
    const char *linear[VQ_N_KINDS];
    const char *norm1, *norm2;
    const char *embed, *final_norm;
} family_names;

#define LLAMA_LINEARS                                                                              \
    {                                                                                              \
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",            \
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"                                        \
    }

static const family_names families[] = {
    [VQ_LLAMA] = {"LlamaForCausalLM", "llama", LLAMA_LINEARS, "input_layernorm",
                  "post_attention_layernorm", "model.embed_tokens", "model.norm"},
    [VQ_OPT] = {"OPTForCausalLM",
                "opt",
                {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
                 NULL, "fc1", "fc2"},
                "self_attn_layer_norm",
                "final_layer_norm",
                "model.decoder.embed_tokens",
                "model.decoder.final_layer_norm"},
    [VQ_QWEN3] = {"Qwen3ForCausalLM", "qwen3", LLAMA_LINEARS, "input_layernorm",
                  "post_attention_layernorm", "model.embed_tokens", "model.norm"},
};

#define SUPPORTED "LlamaForCausalLM, OPTForCausalLM and Qwen3ForCausalLM"

const char *vq_family_name(vq_family family)
{
    return families[family].model_type;
}

/* --- config.json ----------------------------------------------------------------------------- */

/* The object that is being read, and its name in messages. */
typedef struct reader {
    const json_t *object;
    const char *where;
} reader;

static bool is_set(const reader *r, const char *key)
{
    const json_t *v = json_object_get(r->object, key);
    return v && !json_is_null(v);
}

/* A value as it stands in the file, or the beginning of it. */
static const char *value_text(const json_t *v, char text[64])
{
    const size_t n = json_dumpb(v, text, 63, JSON_ENCODE_ANY | JSON_COMPACT);
    text[VQ_MIN(n, (size_t)63)] = '\0';
    return text;
}

/* A positive whole number; 0 as fallback means that the key must be there. */
static vq_status get_size(const reader *r, const char *key, int64_t fallback, int64_t *out)
{
    const json_t *v = json_object_get(r->object, key);
    char found[64];
    if ((!v || json_is_null(v)) && fallback) {
        *out = fallback;
        return VQ_OK;
    }
    VQ_CHECK(v && !json_is_null(v), VQ_EFILE,
             "%s: no key \"%s\": expected a whole number. Use the config.json that came with the "
             "weights",
             r->where, key);
    VQ_CHECK(json_is_integer(v) && json_integer_value(v) > 0 &&
                 json_integer_value(v) <= (json_int_t)1 << 31,
             VQ_EFILE,
             "%s: \"%s\" is %s: expected a whole number from 1 to 2^31. Use the config.json that "
             "came with the weights",
             r->where, key, value_text(v, found));
    *out = json_integer_value(v);
    return VQ_OK;
}

static vq_status get_number(const reader *r, const char *key, double fallback, double *out)
{
    const json_t *v = json_object_get(r->object, key);
    char found[64];
    *out = fallback;
    if (!v || json_is_null(v)) return VQ_OK;
    VQ_CHECK(json_is_number(v) && isfinite(json_number_value(v)) && json_number_value(v) > 0,
             VQ_EFILE,
             "%s: \"%s\" is %s: expected a positive number. Use the config.json that came with the "
             "weights",
             r->where, key, value_text(v, found));
    *out = json_number_value(v);
    return VQ_OK;
}

static vq_status get_bool(const reader *r, const char *key, bool fallback, bool *out)
{
    const json_t *v = json_object_get(r->object, key);
    char found[64];
    *out = fallback;
    if (!v || json_is_null(v)) return VQ_OK;
    VQ_CHECK(json_is_boolean(v), VQ_EFILE,
             "%s: \"%s\" is %s: expected true or false. Use the config.json that came with the "
             "weights",
             r->where, key, value_text(v, found));
    *out = json_is_true(v);
    return VQ_OK;
}

/* The text of a key that must have one value, if it is there at all. */
static vq_status expect_text(const reader *r, const char *key, const char *expected)
{
    const json_t *v = json_object_get(r->object, key);
    if (!v || json_is_null(v)) return VQ_OK;
    char found[64];
    VQ_CHECK(json_is_string(v) && !strcmp(json_string_value(v), expected), VQ_EUNSUPPORTED,
             "%s: \"%s\" is %s: only \"%s\" is supported. Choose another model", r->where, key,
             value_text(v, found), expected);
    return VQ_OK;
}

static vq_status read_rope(const reader *r, vq_model_config *c)
{
    /* transformers 5 keeps everything in rope_parameters; before, theta stood at the top and the
     * scaling in rope_scaling. */
    static const char *const keys[] = {"rope_parameters", "rope_scaling"};
    VQ_TRY(get_number(r, "rope_theta", 10000.0, &c->rope_theta));
    double rotary = 1;
    VQ_TRY(get_number(r, "partial_rotary_factor", 1, &rotary));
    for (int i = 0; i < VQ_COUNT(keys); i++) {
        if (!is_set(r, keys[i])) continue;
        char where[512], found[64];
        snprintf(where, sizeof where, "%s: %s", r->where, keys[i]);
        const reader rope = {json_object_get(r->object, keys[i]), where};
        VQ_CHECK(json_is_object(rope.object), VQ_EFILE,
                 "%s is %s: expected an object {...}. Use the config.json that came with the "
                 "weights",
                 where, value_text(rope.object, found));
        VQ_TRY(get_number(&rope, "rope_theta", c->rope_theta, &c->rope_theta));
        VQ_TRY(get_number(&rope, "partial_rotary_factor", rotary, &rotary));
        const json_t *type = json_object_get(rope.object, "rope_type");
        if (!type) type = json_object_get(rope.object, "type");
        const char *kind = json_is_string(type) ? json_string_value(type) : "default";
        if (!strcmp(kind, "llama3")) {
            static const char *const need[] = {"factor", "low_freq_factor", "high_freq_factor",
                                               "original_max_position_embeddings"};
            double *const to[] = {&c->rope_scaling.factor, &c->rope_scaling.low_freq_factor,
                                  &c->rope_scaling.high_freq_factor,
                                  &c->rope_scaling.original_max_positions};
            for (int j = 0; j < VQ_COUNT(need); j++) {
                VQ_CHECK(is_set(&rope, need[j]), VQ_EFILE,
                         "%s: no key \"%s\": expected it for rope type llama3. Use the config.json "
                         "that came with the weights",
                         where, need[j]);
                VQ_TRY(get_number(&rope, need[j], 0, to[j]));
            }
            VQ_CHECK(
                c->rope_scaling.high_freq_factor > c->rope_scaling.low_freq_factor, VQ_EFILE,
                "%s: high_freq_factor is %g and low_freq_factor %g: expected the first above the "
                "second. Use the config.json that came with the weights",
                where, c->rope_scaling.high_freq_factor, c->rope_scaling.low_freq_factor);
        } else {
            VQ_CHECK(!strcmp(kind, "default"), VQ_EUNSUPPORTED,
                     "%s: rope_type is \"%s\": only \"default\" and \"llama3\" are supported. "
                     "Choose another model",
                     where, kind);
        }
    }
    VQ_CHECK(rotary == 1, VQ_EUNSUPPORTED,
             "%s: \"partial_rotary_factor\" is %g: only 1 is supported. Choose another model",
             r->where, rotary);
    return VQ_OK;
}

static vq_status refuse_sliding_window(const reader *r)
{
    bool use;
    VQ_TRY(get_bool(r, "use_sliding_window", false, &use));
    VQ_CHECK(!use, VQ_EUNSUPPORTED,
             "%s: \"use_sliding_window\" is true: only full attention is supported. Choose another "
             "model",
             r->where);
    const json_t *types = json_object_get(r->object, "layer_types"), *type;
    size_t i;
    json_array_foreach(types, i, type)
    {
        const char *text = json_string_value(type);
        VQ_CHECK(text && !strcmp(text, "full_attention"), VQ_EUNSUPPORTED,
                 "%s: \"layer_types\"[%zu] is \"%s\": only \"full_attention\" is supported. Choose "
                 "another model",
                 r->where, i, text ? text : "not text");
    }
    return VQ_OK;
}

static vq_status read_opt(const reader *r, vq_model_config *c)
{
    bool enable_bias, affine, removed;
    VQ_TRY(expect_text(r, "activation_function", "relu"));
    VQ_TRY(get_size(r, "ffn_dim", 0, &c->F));
    VQ_TRY(get_size(r, "word_embed_proj_dim", c->E, &c->E_embed));
    VQ_TRY(get_bool(r, "tie_word_embeddings", true, &c->tied));
    VQ_TRY(get_bool(r, "do_layer_norm_before", true, &c->norm_before));
    VQ_TRY(get_bool(r, "_remove_final_layer_norm", false, &removed));
    VQ_TRY(get_bool(r, "enable_bias", true, &enable_bias));
    VQ_TRY(get_bool(r, "layer_norm_elementwise_affine", true, &affine));
    VQ_CHECK(enable_bias && affine, VQ_EUNSUPPORTED,
             "%s: \"%s\" is false: only true is supported for OPT. Choose another model", r->where,
             enable_bias ? "layer_norm_elementwise_affine" : "enable_bias");
    c->G = c->H;
    c->S = c->E / c->H;
    VQ_CHECK(c->E % c->H == 0, VQ_EFILE,
             "%s: hidden_size is %lld: expected a multiple of num_attention_heads = %lld. Use the "
             "config.json that came with the weights",
             r->where, (long long)c->E, (long long)c->H);
    c->final_norm = c->norm_before && !removed;
    c->attention_bias = c->mlp_bias = true;
    c->norm_eps = 1e-5;
    return VQ_OK;
}

static vq_status read_llama(const reader *r, vq_model_config *c)
{
    VQ_TRY(expect_text(r, "hidden_act", "silu"));
    VQ_TRY(refuse_sliding_window(r));
    VQ_TRY(get_size(r, "intermediate_size", 0, &c->F));
    VQ_TRY(get_size(r, "num_key_value_heads", c->H, &c->G));
    VQ_TRY(get_size(r, "head_dim", c->family == VQ_QWEN3 ? 128 : c->E / c->H, &c->S));
    VQ_TRY(get_bool(r, "tie_word_embeddings", false, &c->tied));
    VQ_TRY(get_bool(r, "attention_bias", false, &c->attention_bias));
    if (c->family == VQ_LLAMA) VQ_TRY(get_bool(r, "mlp_bias", false, &c->mlp_bias));
    VQ_TRY(get_number(r, "rms_norm_eps", 1e-6, &c->norm_eps));
    VQ_CHECK(
        c->H % c->G == 0 && c->S % 2 == 0, VQ_EFILE,
        "%s: num_attention_heads is %lld, num_key_value_heads %lld, head_dim %lld: expected the "
        "first to be a multiple of the second, and the third even. Use the config.json that "
        "came with the weights",
        r->where, (long long)c->H, (long long)c->G, (long long)c->S);
    c->E_embed = c->E;
    c->norm_before = c->final_norm = true;
    c->qk_norm = c->family == VQ_QWEN3;
    return read_rope(r, c);
}

static vq_status read_config(const reader *r, vq_model_config *c)
{
    const json_t *list = json_object_get(r->object, "architectures");
    const char *architecture = json_string_value(json_array_get(list, 0));
    const char *type = json_string_value(json_object_get(r->object, "model_type"));
    int family = -1;
    for (int i = 0; i < VQ_COUNT(families); i++)
        if (architecture ? !strcmp(architecture, families[i].architecture)
                         : type && !strcmp(type, families[i].model_type))
            family = i;
    VQ_CHECK(family >= 0, VQ_EUNSUPPORTED,
             "%s: \"architectures\" names %s: supported are " SUPPORTED ". Choose another model",
             r->where,
             architecture ? architecture
             : type       ? type
                          : "nothing");
    *c = (vq_model_config){.family = (vq_family)family};
    if (is_set(r, "quantization_config"))
        VQ_TRY(vq_packing_parse(json_object_get(r->object, "quantization_config"), r->where,
                                &c->packing));
    VQ_TRY(get_size(r, "num_hidden_layers", 0, &c->N));
    VQ_TRY(get_size(r, "hidden_size", 0, &c->E));
    VQ_TRY(get_size(r, "num_attention_heads", 0, &c->H));
    VQ_TRY(get_size(r, "vocab_size", 0, &c->V));
    VQ_TRY(get_size(r, "max_position_embeddings", 2048, &c->max_positions));
    return family == VQ_OPT ? read_opt(r, c) : read_llama(r, c);
}

vq_status vq_model_config_parse(const char *text, size_t n, const char *where,
                                vq_model_config *config)
{
    json_error_t error;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &error);
    VQ_CHECK(root, VQ_EFILE, "%s:%d: not JSON: %s: expected an object {...}. Copy the file again",
             where, error.line, error.text);
    const reader r = {root, where};
    vq_status status = json_is_object(root)
                           ? read_config(&r, config)
                           : vq_error_set(VQ_EFILE, __FILE__, __LINE__,
                                          "%s: expected a JSON object. Copy the file again", where);
    json_decref(root);
    return status;
}

vq_status vq_model_require_dense(const vq_model_config *config, const char *where)
{
    VQ_CHECK(config->packing.format == VQ_EXPORT_DENSE, VQ_EUNSUPPORTED,
             "%s: \"quantization_config\" says that the model is quantized already: expected f32, "
             "f16 or bf16 weights. Use the original model",
             where);
    return VQ_OK;
}

vq_dtype vq_model_config_dtype(const char *text, size_t n)
{
    static const struct {
        const char *name;
        vq_dtype dtype;
    } types[] = {{"float16", VQ_F16}, {"bfloat16", VQ_BF16}};
    json_t *root = json_loadb(text, n, 0, NULL);
    const char *name = json_string_value(json_object_get(root, "dtype")); /* transformers 5 */
    if (!name) name = json_string_value(json_object_get(root, "torch_dtype"));
    vq_dtype dtype = VQ_F32;
    for (int i = 0; name && i < VQ_COUNT(types); i++)
        if (!strcmp(name, types[i].name)) dtype = types[i].dtype;
    json_decref(root);
    return dtype;
}

/* What the names of a layer's tensors begin with. */
static const char *layer_prefix(const vq_model_config *c, int64_t layer, char prefix[64])
{
    snprintf(prefix, 64, "model.%slayers.%d.", c->family == VQ_OPT ? "decoder." : "", (int)layer);
    return prefix;
}

const char *vq_linear_name(const vq_model_config *c, int64_t layer, vq_linear_kind kind,
                           char text[256])
{
    char prefix[64];
    snprintf(text, 256, "%s%s", layer_prefix(c, layer, prefix), families[c->family].linear[kind]);
    return text;
}

bool vq_linear_shape(const vq_model_config *c, vq_linear_kind kind, int64_t *out, int64_t *in)
{
    const int64_t shape[VQ_N_KINDS][2] = {
        [VQ_Q] = {c->H * c->S, c->E}, [VQ_K] = {c->G * c->S, c->E}, [VQ_V] = {c->G * c->S, c->E},
        [VQ_O] = {c->E, c->H * c->S}, [VQ_GATE] = {c->F, c->E},     [VQ_UP] = {c->F, c->E},
        [VQ_DOWN] = {c->E, c->F}};
    *out = shape[kind][0];
    *in = shape[kind][1];
    return families[c->family].linear[kind] != NULL;
}

int64_t vq_layer_weights(const vq_model_config *c)
{
    int64_t total = 0, out, in;
    for (int k = 0; k < VQ_N_KINDS; k++)
        if (vq_linear_shape(c, (vq_linear_kind)k, &out, &in)) total += out * in;
    return total;
}

int64_t vq_model_weights(const vq_model_config *c)
{
    int64_t total = c->N * vq_layer_weights(c) + (c->tied ? 1 : 2) * c->V * c->E_embed;
    if (c->family == VQ_OPT) total += (c->max_positions + VQ_OPT_POSITION_OFFSET) * c->E;
    if (c->E_embed != c->E) total += 2 * c->E * c->E_embed;
    return total;
}

void vq_rope_frequencies(const vq_model_config *c, double *out)
{
    const double two_pi = 6.283185307179586;
    for (int64_t i = 0; i < c->S / 2; i++) {
        double f = pow(c->rope_theta, -2.0 * (double)i / (double)c->S);
        if (c->rope_scaling.factor > 0) {
            double turns = c->rope_scaling.original_max_positions * f / two_pi;
            double low = c->rope_scaling.low_freq_factor, high = c->rope_scaling.high_freq_factor;
            double keep = (turns - low) / (high - low); /* share of the unscaled frequency */
            keep = VQ_MIN(VQ_MAX(keep, 0.0), 1.0);
            f = (1 - keep) * f / c->rope_scaling.factor + keep * f;
        }
        out[i] = f;
    }
}

/* --- tensors --------------------------------------------------------------------------------- */

/* Checkpoints leave out the leading "model." (facebook/opt-*), or add one (a head model saved
 * whole). */
static const vq_tensor *find(const vq_model *m, const char *name)
{
    const char *prefix = "model.";
    const vq_tensor *t = vq_weights_find(&m->weights, name);
    if (!t && !strncmp(name, prefix, strlen(prefix)))
        t = vq_weights_find(&m->weights, name + strlen(prefix));
    return t;
}

static vq_status check_rows(const vq_model *m, const char *name, const vq_tensor *t)
{
    VQ_CHECK(vq_tensor_contiguous(t), VQ_EUNSUPPORTED,
             "%s: %s is stored transposed: expected rows one after another. Save the model again "
             "with save_pretrained",
             m->dir, name);
    return VQ_OK;
}

static vq_status get(const vq_model *m, const char *name, int ndim, int64_t n0, int64_t n1,
                     vq_tensor *out)
{
    const vq_tensor *t = find(m, name);
    const vq_tensor expected =
        ndim == 1 ? vq_tensor_1d(NULL, VQ_F32, n0) : vq_tensor_2d(NULL, VQ_F32, n0, n1);
    VQ_CHECK(t, VQ_EFILE,
             "%s: no tensor %s, which config.json asks for. Use the config.json that came with "
             "these weights",
             m->dir, name);
    char found[96], wanted[96];
    VQ_CHECK(vq_dtype_is_float(t->dtype) && vq_tensor_same_shape(t, &expected), VQ_EFILE,
             "%s: %s is %s, expected %s in f32, f16 or bf16. Use the config.json that came with "
             "these weights",
             m->dir, name, vq_tensor_text(t, found),
             strchr(vq_tensor_text(&expected, wanted), '['));
    VQ_TRY(check_rows(m, name, t));
    *out = *t;
    return VQ_OK;
}

/* prefix and suffix in one. */
static const char *join(char name[256], const char *prefix, const char *suffix)
{
    snprintf(name, 256, "%.200s%.50s", prefix, suffix);
    return name;
}

static vq_status get_norm(const vq_model *m, const char *prefix, int64_t width, vq_tensor *weight,
                          vq_tensor *bias)
{
    char name[256];
    VQ_TRY(get(m, join(name, prefix, ".weight"), 1, width, 1, weight));
    *bias = (vq_tensor){0};
    if (m->config.family != VQ_OPT) return VQ_OK;
    return get(m, join(name, prefix, ".bias"), 1, width, 1, bias);
}

/* One tensor of a packed linear; what describes it gives way to what is there. Scales may be of any
 * float type. */
static vq_status get_part(const vq_model *m, const char *linear, vq_tensor *part)
{
    char name[256], suffix[64], found[96], wanted[96];
    snprintf(suffix, sizeof suffix, ".%s", part->name);
    const vq_tensor *t = find(m, join(name, linear, suffix));
    VQ_CHECK(t, VQ_EFILE,
             "%s: no tensor %s, expected the parts of a packed linear, or %s.weight. Use the "
             "config.json that came with these weights",
             m->dir, name, linear);
    const bool is_alike =
        vq_dtype_is_float(part->dtype) ? vq_dtype_is_float(t->dtype) : t->dtype == part->dtype;
    VQ_CHECK(is_alike && vq_tensor_same_shape(t, part), VQ_EFILE,
             "%s: %s is %s, expected %s for the bits and group size in config.json. Use the "
             "config.json that came with these weights",
             m->dir, name, vq_tensor_text(t, found), vq_tensor_text(part, wanted));
    VQ_TRY(check_rows(m, name, t));
    *part = *t;
    return VQ_OK;
}

static vq_status get_packed(vq_arena *arena, const vq_model *m, int64_t out, int64_t in,
                            vq_linear *linear)
{
    vq_packed *packed;
    VQ_TRY(VQ_NEW(arena, 1, &packed));
    vq_packed_describe(&m->config.packing, out, in, m->embed.dtype, packed);
    for (int i = 0; i < VQ_N_PARTS; i++)
        if (packed->part[i].ndim > 0) VQ_TRY(get_part(m, linear->name, &packed->part[i]));
    linear->packed = packed;
    linear->weight = vq_tensor_2d(NULL, m->embed.dtype, out, in);
    return VQ_OK;
}

/* Dense where NAME.weight is there: a packed model may have such linears. */
static vq_status get_weight(vq_arena *arena, const vq_model *m, int64_t out, int64_t in,
                            vq_linear *linear)
{
    char name[256];
    join(name, linear->name, ".weight");
    if (m->config.packing.format != VQ_EXPORT_DENSE && !find(m, name))
        return get_packed(arena, m, out, in, linear);
    return get(m, name, 2, out, in, &linear->weight);
}

static vq_status get_layer(vq_arena *arena, vq_model *m, int64_t index)
{
    const vq_model_config *c = &m->config;
    const family_names *names = &families[c->family];
    vq_layer *layer = &m->layers[index];
    char prefix[64], name[256];
    layer_prefix(c, index, prefix);
    for (int k = 0; k < VQ_N_KINDS; k++) {
        vq_linear *linear = &layer->linear[k];
        int64_t out, in;
        *linear = (vq_linear){.exists = vq_linear_shape(c, (vq_linear_kind)k, &out, &in)};
        if (!linear->exists) continue;
        vq_linear_name(c, index, (vq_linear_kind)k, name);
        VQ_TRY(vq_arena_text(arena, name, strlen(name), (char **)&linear->name));
        VQ_TRY(get_weight(arena, m, out, in, linear));
        if (k <= VQ_O ? c->attention_bias : c->mlp_bias)
            VQ_TRY(get(m, join(name, linear->name, ".bias"), 1, out, 1, &linear->bias));
    }
    VQ_TRY(get_norm(m, join(name, prefix, names->norm1), c->E, &layer->norm1_weight,
                    &layer->norm1_bias));
    VQ_TRY(get_norm(m, join(name, prefix, names->norm2), c->E, &layer->norm2_weight,
                    &layer->norm2_bias));
    if (c->qk_norm) {
        VQ_TRY(get(m, join(name, prefix, "self_attn.q_norm.weight"), 1, c->S, 1, &layer->q_norm));
        VQ_TRY(get(m, join(name, prefix, "self_attn.k_norm.weight"), 1, c->S, 1, &layer->k_norm));
    }
    return VQ_OK;
}

static vq_status get_tensors(vq_arena *arena, vq_model *m)
{
    const vq_model_config *c = &m->config;
    const family_names *names = &families[c->family];
    char name[256];
    VQ_TRY(get(m, join(name, names->embed, ".weight"), 2, c->V, c->E_embed, &m->embed));
    if (c->family == VQ_OPT)
        VQ_TRY(get(m, "model.decoder.embed_positions.weight", 2,
                   c->max_positions + VQ_OPT_POSITION_OFFSET, c->E, &m->positions));
    if (c->E_embed != c->E) {
        VQ_TRY(get(m, "model.decoder.project_in.weight", 2, c->E, c->E_embed, &m->project_in));
        VQ_TRY(get(m, "model.decoder.project_out.weight", 2, c->E_embed, c->E, &m->project_out));
    }
    if (c->final_norm)
        VQ_TRY(get_norm(m, names->final_norm, c->E, &m->final_norm_weight, &m->final_norm_bias));
    m->head = m->embed;
    if (!c->tied) VQ_TRY(get(m, "lm_head.weight", 2, c->V, c->E_embed, &m->head));
    VQ_CHECK(c->N <= m->weights.n, VQ_EFILE,
             "%s: \"num_hidden_layers\" is %lld, but there are only %lld tensors: expected several "
             "for each layer. Use the config.json that came with these weights",
             m->dir, (long long)c->N, (long long)m->weights.n);
    VQ_TRY(VQ_NEW(arena, c->N, &m->layers));
    memset(m->layers, 0, (size_t)c->N * sizeof *m->layers); /* a family leaves some out */
    for (int64_t i = 0; i < c->N; i++) VQ_TRY(get_layer(arena, m, i));
    return VQ_OK;
}

/* Whether a name may be one of the Hub's: OWNER/MODEL. */
static bool is_hub_name(const char *dir)
{
    const char *slash = strchr(dir, '/');
    return slash && slash != dir && slash[1] && !strchr(slash + 1, '/') && dir[0] != '.' &&
           dir[0] != '~';
}

vq_status vq_model_config_read(vq_arena *arena, const char *dir, char **path, char **text,
                               size_t *n)
{
    char *run, *cached;
    VQ_TRY(vq_path_join(arena, dir, "config.json", path));
    VQ_TRY(vq_path_join(arena, dir, "snapshots", &cached));
    VQ_TRY(vq_path_join(arena, dir, "model/config.json", &run));
    VQ_CHECK(vq_file_exists(dir) || !is_hub_name(dir), VQ_EFILE,
             "%s: no such folder: expected a model that is on this machine. Check the path; one "
             "of the Hugging Face Hub comes by \"hf download %s --local-dir DIR\"",
             dir, dir);
    VQ_CHECK(vq_file_exists(dir), VQ_EFILE,
             "%s: no such folder: expected a model's, with config.json in it. Check the path", dir);
    VQ_CHECK(vq_is_folder(dir), VQ_EFILE,
             "%s is a file: expected a model's folder. Give the folder that it is in", dir);
    VQ_CHECK(vq_file_exists(*path) || !vq_file_exists(run), VQ_EFILE,
             "%s is a run's folder: expected a model's. Give %s/model", dir, dir);
    VQ_CHECK(
        vq_file_exists(*path) || !vq_is_folder(cached), VQ_EFILE,
        "%s is a model in the Hugging Face cache: expected the folder of one version. Give the "
        "one that is in %s",
        dir, cached);
    VQ_CHECK(vq_file_exists(*path), VQ_EFILE,
             "%s: no config.json in this folder: expected a Hugging Face model's. Check the path, "
             "or get the file",
             dir);
    return vq_file_read(arena, *path, text, n);
}

vq_status vq_model_open(vq_arena *arena, const char *dir, vq_model *m)
{
    char *path, *text;
    size_t n;
    *m = (vq_model){0};
    VQ_TRY(vq_arena_text(arena, dir, strlen(dir), (char **)&m->dir));
    VQ_TRY(vq_model_config_read(arena, dir, &path, &text, &n));
    VQ_TRY(vq_model_config_parse(text, n, path, &m->config));
    VQ_TRY(vq_weights_open(arena, dir, &m->weights));
    vq_status status = get_tensors(arena, m);
    if (status != VQ_OK) {
        vq_model_close(m);
        return status;
    }
    m->fingerprint = vq_hash_bytes(vq_weights_fingerprint(&m->weights), text, n);
    return VQ_OK;
}

vq_status vq_model_check_packed(const vq_model *m, int64_t first, int64_t last)
{
    for (int64_t i = first * VQ_N_KINDS; i < last * VQ_N_KINDS; i++) {
        const vq_linear *l = &m->layers[i / VQ_N_KINDS].linear[i % VQ_N_KINDS];
        const vq_status status = l->packed ? vq_packed_check(l->packed) : VQ_OK;
        if (status) return vq_error_context(status, "%s", m->dir);
    }
    return VQ_OK;
}

vq_status vq_model_unpack(vq_arena *arena, vq_arena *scratch, const vq_model *m, int64_t first,
                          int64_t last)
{
    for (int64_t i = first * VQ_N_KINDS; i < last * VQ_N_KINDS; i++) {
        vq_linear *l = &m->layers[i / VQ_N_KINDS].linear[i % VQ_N_KINDS];
        if (!l->packed || l->weight.data) continue;
        VQ_TRY(vq_arena_alloc(arena, vq_tensor_bytes(&l->weight), &l->weight.data));
        const vq_status status = vq_packed_weight(scratch, l->packed, &l->weight);
        if (status) return vq_error_context(status, "%s", m->dir);
        for (int k = 0; k < VQ_N_PARTS; k++)
            if (l->packed->part[k].data) vq_weights_release(&m->weights, &l->packed->part[k]);
    }
    return VQ_OK;
}

void vq_model_close(vq_model *m)
{
    vq_weights_close(&m->weights);
}
