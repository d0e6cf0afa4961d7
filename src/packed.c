/* packed - the tensors of two formats, written and read. */
#include "packed.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "pack.h"

#define PIECE 1024 /* weights converted at a time */

static const char *const methods[] = {"gptq", "compressed-tensors"}; /* as vq_export_format */

/* --- quantization_config, read ---------------------------------------------------------------- */

/* An object of config.json, and the file in messages. */
typedef struct reader {
    const json_t *object;
    const char *where;
} reader;

/* The place of a text in choices [n]; of an absent one `absent`, or an error where that is -1. */
static vq_status read_choice(const reader *r, const char *key, const char *const *choices, int n,
                             int absent, int *out)
{
    const json_t *value = json_object_get(r->object, key);
    const char *found = json_string_value(value);
    if ((!value || json_is_null(value)) && absent >= 0) {
        *out = absent;
        return VQ_OK;
    }
    for (*out = 0; found && *out < n; ++*out)
        if (!strcmp(found, choices[*out])) return VQ_OK;
    VQ_FAIL(VQ_EUNSUPPORTED,
            "%s: \"quantization_config\": \"%s\" is %s%.64s%s: expected \"%s\"%s%s%s. Use the "
            "original model, or one in another format",
            r->where, key, found ? "\"" : "", found ? found : "no text", found ? "\"" : "",
            choices[0], n > 1 ? " or \"" : "", n > 1 ? choices[1] : "", n > 1 ? "\"" : "");
}

static vq_status read_bits(const reader *r, const char *key, vq_packing *p)
{
    const json_int_t bits = json_integer_value(json_object_get(r->object, key));
    VQ_CHECK(bits == 2 || bits == 3 || bits == 4 || bits == 8, VQ_EUNSUPPORTED,
             "%s: \"quantization_config\": \"%s\" is %lld: expected 2, 3, 4 or 8. Use the original "
             "model, or one of other bits",
             r->where, key, (long long)bits);
    p->bits = (int)bits;
    return VQ_OK;
}

static vq_status read_group_size(const reader *r, vq_packing *p)
{
    const json_int_t size = json_integer_value(json_object_get(r->object, "group_size"));
    VQ_CHECK(
        size == -1 || (size >= 1 && size <= (json_int_t)1 << 31), VQ_EFILE,
        "%s: \"quantization_config\": \"group_size\" is %lld: expected -1 (the whole row) or a "
        "positive whole number. Use the config.json that came with the weights",
        r->where, (long long)size);
    p->group_size = size;
    return VQ_OK;
}

/* Absent keys mean what they meant before they were thought of. */
static vq_status read_gptq(const reader *r, vq_packing *p)
{
    static const char *const versions[] = {"gptq", "gptq_v2"}, *const words[] = {"int32"};
    const bool is_named = json_object_get(r->object, "checkpoint_format") != NULL;
    int version, word;
    VQ_TRY(read_choice(r, is_named ? "checkpoint_format" : "format", versions, 2, 0, &version));
    VQ_TRY(read_choice(r, "pack_dtype", words, 1, 0, &word));
    VQ_TRY(read_bits(r, "bits", p));
    VQ_TRY(read_group_size(r, p));
    p->format = VQ_EXPORT_GPTQ;
    p->less_one = version == 0;
    p->symmetric = !json_is_false(json_object_get(r->object, "sym"));
    p->scattered = json_is_true(json_object_get(r->object, "desc_act"));
    return VQ_OK;
}

static vq_status read_compressed(const reader *r, vq_packing *p)
{
    static const char *const formats[] = {"pack-quantized"}, *const types[] = {"int"};
    static const char *const strategies[] = {"channel", "group"};
    json_t *groups = json_object_get(r->object, "config_groups");
    const json_t *group = json_object_iter_value(json_object_iter(groups));
    const json_t *inputs = json_object_get(group, "input_activations");
    const reader weights = {json_object_get(group, "weights"), r->where};
    int format, type, strategy;
    VQ_TRY(read_choice(r, "format", formats, 1, -1, &format));
    VQ_CHECK(json_object_size(groups) == 1 && json_is_object(weights.object) &&
                 (!inputs || json_is_null(inputs)),
             VQ_EUNSUPPORTED,
             "%s: \"quantization_config\": \"config_groups\" has %zu groups: expected one, with "
             "\"weights\" and without \"input_activations\". Use the original model",
             r->where, json_object_size(groups));
    VQ_TRY(read_choice(&weights, "type", types, 1, 0, &type));
    VQ_TRY(read_choice(&weights, "strategy", strategies, 2, -1, &strategy));
    VQ_TRY(read_bits(&weights, "num_bits", p));
    p->group_size = -1;
    if (strategy == 1) VQ_TRY(read_group_size(&weights, p));
    const char *order = json_string_value(json_object_get(weights.object, "actorder"));
    p->format = VQ_EXPORT_COMPRESSED_TENSORS;
    p->symmetric = !json_is_false(json_object_get(weights.object, "symmetric"));
    p->scattered = strategy == 1 && order && !strcmp(order, "group");
    return VQ_OK;
}

vq_status vq_packing_parse(const json_t *config, const char *where, vq_packing *p)
{
    const reader r = {config, where};
    int method;
    *p = (vq_packing){0};
    VQ_TRY(read_choice(&r, "quant_method", methods, 2, -1, &method));
    return method == 0 ? read_gptq(&r, p) : read_compressed(&r, p);
}

/* --- quantization_config, written ------------------------------------------------------------- */

static json_t *list_json(const vq_list *list)
{
    json_t *array = json_array();
    for (int i = 0; i < list->n; i++) json_array_append_new(array, json_string(list->item[i]));
    return array;
}

/* {"-:^model\\.layers\\.0...$": {}}: what GPTQModel and vLLM leave alone. */
static json_t *exceptions_json(const vq_list *dense)
{
    json_t *object = json_object();
    for (int i = 0; i < dense->n; i++) {
        char pattern[512];
        size_t n = (size_t)snprintf(pattern, 8, "-:^");
        for (const char *p = dense->item[i]; *p && n < sizeof pattern - 4; p++) {
            if (*p == '.') pattern[n++] = '\\';
            pattern[n++] = *p;
        }
        pattern[n++] = '$';
        pattern[n] = '\0';
        json_object_set_new(object, pattern, json_object());
    }
    return object;
}

static json_t *gptq_json(const vq_packing *p, const vq_list *packed, const vq_list *dense,
                         double damp)
{
    const char *version = p->less_one ? "gptq" : "gptq_v2";
    json_t *root = json_pack(
        "{s:i, s:I, s:b, s:b, s:b, s:s, s:s, s:s, s:s, s:s, s:b, s:f, s:b, s:{s:[s]}}", "bits",
        p->bits, "group_size", (json_int_t)p->group_size, "desc_act", p->scattered, "sym",
        p->symmetric, "lm_head", 0, "quant_method", "gptq", "method", "gptq", "checkpoint_format",
        version, "format", version, "pack_dtype", "int32", "true_sequential", 1, "damp_percent",
        damp, "static_groups", 0, "meta", "quantizer", "vqround:" VQ_VERSION);
    if (dense->n == 0) return root;
    json_object_set_new(root, "dynamic", exceptions_json(dense));
    /* The same, for optimum. */
    json_object_set_new(root, "modules_in_block_to_quantize", json_pack("[o]", list_json(packed)));
    return root;
}

static json_t *compressed_json(const vq_packing *p, const vq_list *dense)
{
    const bool whole = p->group_size < 0;
    json_t *ignore = list_json(dense);
    json_array_insert_new(ignore, 0, json_string("lm_head"));
    json_t *weights =
        json_pack("{s:i, s:s, s:b, s:s, s:o, s:b, s:o, s:s}", "num_bits", p->bits, "type", "int",
                  "symmetric", p->symmetric, "strategy", whole ? "channel" : "group", "group_size",
                  whole ? json_null() : json_integer(p->group_size), "dynamic", 0, "actorder",
                  json_null(), "observer", "minmax");
    return json_pack("{s:s, s:s, s:s, s:n, s:n, s:o, s:{s:{s:[s], s:n, s:n, s:o}}}", "quant_method",
                     "compressed-tensors", "format", "pack-quantized", "quantization_status",
                     "compressed", "global_compression_ratio", "kv_cache_scheme", "ignore", ignore,
                     "config_groups", "group_0", "targets", "Linear", "input_activations",
                     "output_activations", "weights", weights);
}

vq_status vq_packing_json(const vq_packing *p, const vq_list *packed, const vq_list *dense,
                          double damp, json_t **config)
{
    *config =
        p->format == VQ_EXPORT_GPTQ ? gptq_json(p, packed, dense, damp) : compressed_json(p, dense);
    VQ_ASSERT(*config);
    return VQ_OK;
}

vq_packing vq_packing_of(const vq_config *c)
{
    if (c->export.format == VQ_EXPORT_DENSE) return (vq_packing){0};
    return (vq_packing){.format = c->export.format,
                        .bits = (int)c->bits,
                        .group_size = c->group_size,
                        .symmetric = c->sym,
                        .less_one = c->export.format == VQ_EXPORT_GPTQ && c->sym,
                        .scattered = vq_config_scatters(c)};
}

const char *vq_packing_name(const vq_packing *p)
{
    return p->format == VQ_EXPORT_DENSE ? "dense" : methods[p->format - VQ_EXPORT_GPTQ];
}

/* --- shapes ----------------------------------------------------------------------------------- */

static int64_t width_of_group(const vq_packing *p, int64_t in)
{
    return p->group_size < 0 ? in : p->group_size;
}

int64_t vq_packing_groups(const vq_packing *p, int64_t in)
{
    return VQ_CEIL_DIV(in, width_of_group(p, in));
}

bool vq_packing_holds(const vq_packing *p, int64_t out, int64_t in, char why[128])
{
    const int64_t whole = p->bits == 3 ? 32 : 32 / p->bits, group = width_of_group(p, in);
    if (out % whole != 0 || in % whole != 0)
        snprintf(why, 128, "%lld x %lld is no multiple of %lld both ways", (long long)out,
                 (long long)in, (long long)whole);
    else if (in % group != 0)
        snprintf(why, 128, "groups of %lld do not divide its %lld columns", (long long)group,
                 (long long)in);
    else
        return true;
    return false;
}

static vq_tensor part_of(const char *name, vq_dtype dtype, int64_t n0, int64_t n1)
{
    vq_tensor t = n1 ? vq_tensor_2d(NULL, dtype, n0, n1) : vq_tensor_1d(NULL, dtype, n0);
    t.name = name;
    return t;
}

void vq_packed_describe(const vq_packing *p, int64_t out, int64_t in, vq_dtype dtype,
                        vq_packed *packed)
{
    const int64_t groups = vq_packing_groups(p, in);
    const int64_t words_in = vq_pack_words(in, p->bits), words_out = vq_pack_words(out, p->bits);
    vq_tensor *part = packed->part;
    *packed = (vq_packed){.packing = *p, .out = out, .in = in};
    if (p->format == VQ_EXPORT_GPTQ) {
        part[VQ_VALUES] = part_of("qweight", VQ_I32, words_in, out);
        part[VQ_SCALES] = part_of("scales", VQ_F16, groups, out);
        part[VQ_ZEROS] = part_of("qzeros", VQ_I32, groups, words_out);
        part[VQ_GROUPS] = part_of("g_idx", VQ_I32, in, 0);
        return;
    }
    part[VQ_VALUES] = part_of("weight_packed", VQ_I32, out, words_in);
    part[VQ_SCALES] = part_of("weight_scale", dtype, out, groups);
    if (!p->symmetric) part[VQ_ZEROS] = part_of("weight_zero_point", VQ_I32, words_out, groups);
    if (p->scattered) part[VQ_GROUPS] = part_of("weight_g_idx", VQ_I32, in, 0);
    part[VQ_SHAPE] = part_of("weight_shape", VQ_I64, 2, 0);
}

/* --- writing ---------------------------------------------------------------------------------- */

/* GPTQ has a linear's columns as rows: the distance of a row's words, and of rows. */
static int64_t word_stride(const vq_packed *p)
{
    return p->packing.format == VQ_EXPORT_GPTQ ? p->out : 1;
}

static int64_t row_stride(const vq_packed *p)
{
    return p->packing.format == VQ_EXPORT_GPTQ ? 1 : vq_pack_words(p->in, p->packing.bits);
}

/* The place of row o's scale of group g. */
static int64_t scale_at(const vq_packed *p, int64_t groups, int64_t o, int64_t g)
{
    return p->packing.format == VQ_EXPORT_GPTQ ? g * p->out + o : o * groups + g;
}

static vq_status put_scales(vq_packed *p, const float *scale, const char *name)
{
    vq_tensor *t = &p->part[VQ_SCALES];
    const int64_t groups = vq_packing_groups(&p->packing, p->in);
    const size_t bytes = vq_dtype_bytes(t->dtype);
    for (int64_t o = 0; o < p->out; o++)
        for (int64_t g = 0; g < groups; g++) {
            uint8_t *at = (uint8_t *)t->data + (size_t)scale_at(p, groups, o, g) * bytes;
            const float s = scale[o * groups + g];
            float back;
            VQ_TRY(vq_convert(at, t->dtype, &s, VQ_F32, 1));
            VQ_TRY(vq_convert(&back, VQ_F32, at, t->dtype, 1));
            VQ_CHECK(
                back == s, VQ_EUNSUPPORTED,
                "%s: row %lld, group %lld has the scale %.9g, which is not exact in %s: "
                "expected one that the format holds. Quantize with grid.scale_dtype = auto, or "
                "export it dense",
                name, (long long)o, (long long)g, (double)s, vq_dtype_name(t->dtype));
        }
    return VQ_OK;
}

/* One group's zeros, as they are stored, into value [out]. */
static vq_status take_zeros(const vq_packed *p, const float *zero, int64_t g, uint8_t *value)
{
    const int64_t groups = vq_packing_groups(&p->packing, p->in);
    const int qmax = (1 << p->packing.bits) - 1;
    for (int64_t o = 0; o < p->out; o++) {
        const float z = zero[o * groups + g];
        VQ_ASSERT(z >= 0 && z <= (float)qmax && z == (float)(int)z);
        VQ_ASSERT(!p->packing.symmetric || (int)z == (qmax + 1) / 2);
        VQ_ASSERT(!p->packing.less_one || z >= 1);
        value[o] = (uint8_t)((int)z - p->packing.less_one);
    }
    return VQ_OK;
}

static vq_status put_zeros(vq_arena *scratch, vq_packed *p, const float *zero)
{
    const int64_t groups = vq_packing_groups(&p->packing, p->in);
    const bool is_gptq = p->packing.format == VQ_EXPORT_GPTQ;
    const int64_t words = vq_pack_words(p->out, p->packing.bits);
    uint32_t *to = p->part[VQ_ZEROS].data;
    uint8_t *value;
    VQ_TRY(VQ_NEW(scratch, p->out, &value));
    for (int64_t g = 0; g < groups; g++) {
        VQ_TRY(take_zeros(p, zero, g, value));
        if (to)
            vq_pack(is_gptq ? to + g * words : to + g, is_gptq ? 1 : groups, value, p->out,
                    p->packing.bits);
    }
    return VQ_OK;
}

vq_status vq_packed_fill(vq_arena *scratch, vq_packed *p, const uint8_t *q, const float *scale,
                         const float *zero, const int32_t *group, const char *name)
{
    const int64_t width = width_of_group(&p->packing, p->in);
    VQ_ASSERT(!group || p->packing.scattered);
    size_t mark = vq_arena_mark(scratch);
    VQ_TRY(put_scales(p, scale, name));
    VQ_TRY(put_zeros(scratch, p, zero));
    uint32_t *words = p->part[VQ_VALUES].data;
#pragma omp parallel for
    for (int64_t o = 0; o < p->out; o++)
        vq_pack(words + o * row_stride(p), word_stride(p), q + o * p->in, p->in, p->packing.bits);
    int32_t *groups = p->part[VQ_GROUPS].data;
    for (int64_t i = 0; groups && i < p->in; i++)
        groups[i] = group ? group[i] : (int32_t)(i / width);
    int64_t *shape = p->part[VQ_SHAPE].data;
    if (shape) shape[0] = p->out, shape[1] = p->in;
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

/* --- reading ---------------------------------------------------------------------------------- */

/* Zeros by group and row, u8 [groups, out]. */
static vq_status get_zeros(vq_arena *arena, const vq_packed *p, uint8_t **out)
{
    const int64_t groups = vq_packing_groups(&p->packing, p->in);
    const int64_t words = vq_pack_words(p->out, p->packing.bits);
    const bool is_gptq = p->packing.format == VQ_EXPORT_GPTQ;
    const int bits = p->packing.bits;
    const uint32_t *from = p->part[VQ_ZEROS].data;
    VQ_TRY(VQ_NEW(arena, groups * p->out, out));
    if (!from) {
        memset(*out, 1 << (bits - 1), (size_t)(groups * p->out));
        return VQ_OK;
    }
    uint32_t *word;
    /* Version 1 subtracted 1 from whole words, where a 0 borrows from the next value. At 3 bits,
     * with values in two words, each value wraps around by itself. */
    const uint32_t mask = (1u << bits) - 1;
    const uint32_t one = p->packing.less_one && bits != 3 ? UINT32_MAX / mask : 0;
    VQ_TRY(VQ_NEW(arena, words, &word));
    for (int64_t g = 0; g < groups; g++) {
        uint8_t *zero = *out + g * p->out;
        for (int64_t i = 0; i < words; i++)
            word[i] = (is_gptq ? from[g * words + i] : from[i * groups + g]) + one;
        vq_unpack(zero, word, 1, p->out, bits);
        for (int64_t o = 0; p->packing.less_one && bits == 3 && o < p->out; o++)
            zero[o] = (uint8_t)((zero[o] + 1) & (int)mask);
    }
    return VQ_OK;
}

vq_status vq_packed_check(const vq_packed *p)
{
    const int64_t n = vq_packing_groups(&p->packing, p->in);
    const int64_t *shape = p->part[VQ_SHAPE].data;
    const int32_t *group = p->part[VQ_GROUPS].data;
    VQ_CHECK(
        !shape || (shape[0] == p->out && shape[1] == p->in), VQ_EFILE,
        "%s: it says %lld x %lld: expected %lld x %lld as the other tensors. Download the file "
        "again, or use the config.json that came with it",
        p->part[VQ_SHAPE].name, (long long)shape[0], (long long)shape[1], (long long)p->out,
        (long long)p->in);
    for (int64_t i = 0; group && i < p->in; i++)
        VQ_CHECK(group[i] >= 0 && group[i] < n, VQ_EFILE,
                 "%s: column %lld is in group %d: expected 0 to %lld. Download the file again, or "
                 "use the config.json that came with it",
                 p->part[VQ_GROUPS].name, (long long)i, group[i], (long long)n - 1);
    return VQ_OK;
}

/* Each column's group. */
static vq_status get_groups(vq_arena *arena, const vq_packed *p, int32_t **out)
{
    const int64_t width = width_of_group(&p->packing, p->in);
    const int32_t *from = p->part[VQ_GROUPS].data;
    VQ_TRY(VQ_NEW(arena, p->in, out));
    for (int64_t i = 0; i < p->in; i++) (*out)[i] = from ? from[i] : (int32_t)(i / width);
    return VQ_OK;
}

/* Row o: s (q - z), with the row's values, scales and zeros ready. */
static void make_row(const vq_packed *p, int64_t o, const uint8_t *q, const float *scale,
                     const uint8_t *zero, const int32_t *group, vq_tensor *weight)
{
    uint8_t *to = (uint8_t *)weight->data + (size_t)(o * p->in) * vq_dtype_bytes(weight->dtype);
    float piece[PIECE];
    for (int64_t i = 0; i < p->in; i += PIECE) {
        const int64_t n = VQ_MIN(p->in - i, PIECE);
        for (int64_t j = 0; j < n; j++) {
            const int32_t g = group[i + j];
            piece[j] = scale[g] * (float)(q[i + j] - zero[g * p->out + o]);
        }
        (void)vq_convert(to + (size_t)i * vq_dtype_bytes(weight->dtype), weight->dtype, piece,
                         VQ_F32, n);
    }
}

/* Rows [first, last), with room for a row's values and scales. */
static void make_rows(const vq_packed *p, int64_t first, int64_t last, uint8_t *q, float *scale,
                      const uint8_t *zero, const int32_t *group, vq_tensor *weight)
{
    const vq_tensor *s = &p->part[VQ_SCALES];
    const int64_t groups = vq_packing_groups(&p->packing, p->in);
    const uint32_t *words = p->part[VQ_VALUES].data;
    for (int64_t o = first; o < last; o++) {
        vq_unpack(q, words + o * row_stride(p), word_stride(p), p->in, p->packing.bits);
        for (int64_t g = 0; g < groups; g++) {
            const size_t at = (size_t)scale_at(p, groups, o, g) * vq_dtype_bytes(s->dtype);
            (void)vq_convert(&scale[g], VQ_F32, (const uint8_t *)s->data + at, s->dtype, 1);
        }
        make_row(p, o, q, scale, zero, group, weight);
    }
}

#define ROWS 64 /* that a thread takes at a time */

vq_status vq_packed_weight(vq_arena *scratch, const vq_packed *p, vq_tensor *weight)
{
    const int64_t groups = vq_packing_groups(&p->packing, p->in);
    const int64_t tasks = VQ_CEIL_DIV(p->out, ROWS);
    uint8_t *zero, *q;
    int32_t *group;
    float *scale;
    VQ_ASSERT(vq_dtype_is_float(weight->dtype) && vq_dtype_is_float(p->part[VQ_SCALES].dtype));
    VQ_TRY(vq_packed_check(p));
    size_t mark = vq_arena_mark(scratch);
    VQ_TRY(get_groups(scratch, p, &group));
    VQ_TRY(get_zeros(scratch, p, &zero));
    VQ_TRY(VQ_NEW(scratch, tasks * p->in, &q));
    VQ_TRY(VQ_NEW(scratch, tasks * groups, &scale));
#pragma omp parallel for
    for (int64_t t = 0; t < tasks; t++)
        make_rows(p, t * ROWS, VQ_MIN((t + 1) * ROWS, p->out), q + t * p->in, scale + t * groups,
                  zero, group, weight);
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}
