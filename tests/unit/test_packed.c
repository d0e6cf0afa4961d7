/* test_packed - linears in GPTQ's layout and compressed-tensors': words made by hand, everything
 * there and back, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "arenas.h"
#include "expect.h"
#include "pack.h"
#include "packed.h"
#include "rng.h"

#define OUT 32
#define IN 96

/* A linear's numbers: scales that f16 and bf16 hold. */
static uint8_t q[OUT * IN];
static float scale[OUT * IN], zero[OUT * IN];

static void fill_numbers(const vq_packing *p)
{
    const int64_t groups = vq_packing_groups(p, IN);
    for (int64_t i = 0; i < OUT * IN; i++)
        q[i] = (uint8_t)vq_rng_below(1, (uint64_t)p->bits, (uint64_t)i, 1 << p->bits);
    for (int64_t i = 0; i < OUT * groups; i++) {
        scale[i] = (float)(128 + vq_rng_below(2, 0, (uint64_t)i, 128)) * 0x1p-14f;
        zero[i] = p->symmetric ? (float)(1 << (p->bits - 1))
                               : (float)vq_rng_below(3, 0, (uint64_t)i, 1 << p->bits);
    }
}

static void allocate(vq_packed *packed)
{
    for (int k = 0; k < VQ_N_PARTS; k++)
        if (packed->part[k].ndim > 0)
            EXPECT_OK(
                vq_arena_alloc(&arena, vq_tensor_bytes(&packed->part[k]), &packed->part[k].data));
}

static void make(const vq_packing *p, vq_dtype dtype, vq_packed *packed)
{
    fill_numbers(p);
    vq_packed_describe(p, OUT, IN, dtype, packed);
    allocate(packed);
    EXPECT_OK(vq_packed_fill(&arena, packed, q, scale, zero, NULL, "layer"));
}

static int64_t bytes_of(const vq_packed *packed)
{
    int64_t bytes = 0;
    for (int k = 0; k < VQ_N_PARTS; k++)
        if (packed->part[k].ndim > 0) bytes += (int64_t)vq_tensor_bytes(&packed->part[k]);
    return bytes;
}

/* The weight of packed is s (q - z), with group[i] of each column. */
static void expect_weight(const vq_packed *packed, vq_dtype dtype, const int32_t *group)
{
    const int64_t groups = vq_packing_groups(&packed->packing, IN);
    vq_tensor weight;
    uint16_t half;
    EXPECT_OK(vq_tensor_new(&arena, VQ_HOST, dtype, VQ_DIMS(OUT, IN), &weight));
    EXPECT_OK(vq_packed_weight(&arena, packed, &weight));
    for (int64_t o = 0; o < OUT; o++)
        for (int64_t i = 0; i < IN; i++) {
            const int64_t g = o * groups + (group ? group[i] : i / (IN / groups));
            const float w = scale[g] * ((float)q[o * IN + i] - zero[g]);
            if (dtype == VQ_F32) {
                assert_true(((const float *)weight.data)[o * IN + i] == w);
                continue;
            }
            half = dtype == VQ_F16 ? vq_f32_to_f16(w) : vq_f32_to_bf16(w);
            assert_int_equal(((const uint16_t *)weight.data)[o * IN + i], half);
        }
}

static void there_and_back(void **state)
{
    (void)state;
    static const int bits[] = {2, 3, 4, 8};
    static const int64_t group_sizes[] = {-1, 32, 96, 8};
    static const vq_dtype dtypes[] = {VQ_F16, VQ_BF16, VQ_F32};
    for (int f = VQ_EXPORT_GPTQ; f <= VQ_EXPORT_COMPRESSED_TENSORS; f++)
        for (int b = 0; b < 4; b++)
            for (int g = 0; g < 4; g++)
                for (int symmetric = 0; symmetric < 2; symmetric++)
                    for (int d = 0; d < 3; d++) {
                        const vq_packing p = {.format = (vq_export_format)f,
                                              .bits = bits[b],
                                              .group_size = group_sizes[g],
                                              .symmetric = symmetric,
                                              .less_one = f == VQ_EXPORT_GPTQ && symmetric};
                        vq_packed packed;
                        vq_arena_reset(&arena, 0);
                        make(&p, dtypes[d], &packed);
                        expect_weight(&packed, dtypes[d], NULL);
                        /* values and scales, at least, and nothing a file would not need */
                        const int64_t least = OUT * IN * bits[b] / 8;
                        const int64_t bytes = bytes_of(&packed);
                        assert_true(bytes > least);
                        assert_true(bytes <
                                    least + OUT * vq_packing_groups(&p, IN) * 5 + IN * 4 + 16 + 4);
                    }
}

/* What the formats' readers expect, word by word. */
static void words_made_by_hand(void **state)
{
    (void)state;
    static const struct {
        int bits;
        bool less_one;
        uint32_t zeros;
    } middles[] = {{4, true, 0x77777777},  {8, true, 0x7f7f7f7f},  {2, true, 0x55555555},
                   {4, false, 0x88888888}, {8, false, 0x80808080}, {2, false, 0xaaaaaaaa}};
    vq_packed packed;
    for (int i = 0; i < VQ_COUNT(middles); i++) {
        const vq_packing p = {.format = VQ_EXPORT_GPTQ,
                              .bits = middles[i].bits,
                              .group_size = 32,
                              .symmetric = true,
                              .less_one = middles[i].less_one};
        vq_arena_reset(&arena, 0);
        make(&p, VQ_F16, &packed);
        const uint32_t *zeros = packed.part[VQ_ZEROS].data;
        for (int64_t k = 0; k < vq_tensor_count(&packed.part[VQ_ZEROS]); k++)
            assert_int_equal(zeros[k], middles[i].zeros);
    }
    vq_arena_reset(&arena, 0);
    const vq_packing gptq = {.format = VQ_EXPORT_GPTQ, .bits = 4, .group_size = 32};
    make(&gptq, VQ_F16, &packed);
    const uint32_t *words = packed.part[VQ_VALUES].data;
    const int32_t *groups = packed.part[VQ_GROUPS].data;
    /* Word [1, 5] has columns 8 to 15 of row 5; g_idx is a column's number over the group's size.
     */
    for (int j = 0; j < 8; j++)
        assert_int_equal(words[1 * OUT + 5] >> 4 * j & 15, q[5 * IN + 8 + j]);
    for (int i = 0; i < IN; i++) assert_int_equal(groups[i], i / 32);
    assert_int_equal(((const uint16_t *)packed.part[VQ_SCALES].data)[2 * OUT + 7],
                     vq_f32_to_f16(scale[7 * 3 + 2]));
    assert_int_equal(((const uint32_t *)packed.part[VQ_ZEROS].data)[2 * 4 + 1] >> 12 & 15,
                     zero[11 * 3 + 2]);
    vq_packing compressed = gptq;
    compressed.format = VQ_EXPORT_COMPRESSED_TENSORS;
    vq_arena_reset(&arena, 0);
    make(&compressed, VQ_BF16, &packed);
    words = packed.part[VQ_VALUES].data;
    for (int j = 0; j < 8; j++)
        assert_int_equal(words[5 * 12 + 1] >> 4 * j & 15, q[5 * IN + 8 + j]);
    assert_int_equal(((const uint16_t *)packed.part[VQ_SCALES].data)[7 * 3 + 2],
                     vq_f32_to_bf16(scale[7 * 3 + 2]));
    assert_int_equal(((const uint32_t *)packed.part[VQ_ZEROS].data)[1 * 3 + 2] >> 12 & 15,
                     zero[11 * 3 + 2]);
    const int64_t *shape = packed.part[VQ_SHAPE].data;
    assert_true(shape[0] == OUT && shape[1] == IN);
    assert_int_equal(packed.part[VQ_GROUPS].ndim, 0);
    /* Rows whose zeros do not fill the last word: the format allows it. */
    vq_packed_describe(&compressed, 3, 8, VQ_F16, &packed);
    assert_int_equal(packed.part[VQ_ZEROS].dim[0], 1);
}

/* Files of others: version 1 with zeros of 0, whose borrow runs into the next field, and columns
 * whose groups are mixed. */
static void files_of_others(void **state)
{
    (void)state;
    static const int bits[] = {2, 3, 4, 8};
    for (int b = 0; b < 4; b++) {
        vq_packing p = {.format = VQ_EXPORT_GPTQ, .bits = bits[b], .group_size = 32};
        const uint32_t mask = (1u << p.bits) - 1;
        vq_packed packed;
        vq_arena_reset(&arena, 0);
        make(&p, VQ_F16, &packed);
        uint32_t *zeros = packed.part[VQ_ZEROS].data;
        const int64_t words = vq_pack_words(OUT, p.bits);
        for (int64_t g = 0; g < 3; g++) {
            uint8_t value[OUT];
            vq_unpack(value, zeros + g * words, 1, OUT, p.bits);
            for (int o = 0; o < OUT; o++) value[o] = (uint8_t)((value[o] - 1) & (int)mask);
            if (p.bits == 3)
                vq_pack(zeros + g * words, 1, value, OUT, p.bits);
            else
                for (int64_t i = 0; i < words; i++) zeros[g * words + i] -= UINT32_MAX / mask;
        }
        packed.packing.less_one = true;
        expect_weight(&packed, VQ_F16, NULL);

        int32_t *groups = packed.part[VQ_GROUPS].data;
        for (int i = 0; i < IN; i++) groups[i] = i % 3;
        expect_weight(&packed, VQ_F16, groups);
    }
    /* [0, 5, 0, 15] less one at 4 bits, as auto-gptq subtracts. */
    vq_packing p = {.format = VQ_EXPORT_GPTQ, .bits = 4, .group_size = -1};
    vq_packed packed;
    vq_arena_reset(&arena, 0);
    make(&p, VQ_F32, &packed);
    static const float known[8] = {0, 5, 0, 15, 1, 1, 1, 1};
    memcpy(zero, known, sizeof known);
    uint32_t *word = packed.part[VQ_ZEROS].data;
    word[0] = 0x0000df3fu; /* 15, 3, 15, 13, and 0 in the others */
    packed.packing.less_one = true;
    for (int o = 8; o < OUT; o++) zero[o] = (float)(((word[o / 8] >> 4 * (o % 8)) + 1) & 15);
    vq_tensor weight;
    EXPECT_OK(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(OUT, IN), &weight));
    EXPECT_OK(vq_packed_weight(&arena, &packed, &weight));
    for (int o = 0; o < 8; o++)
        assert_true(((const float *)weight.data)[o * IN] ==
                    scale[o] * ((float)q[o * IN] - known[o]));
}

static void expect_refused(vq_status status, vq_status expected, const char *const *words)
{
    assert_int_equal(status, expected);
    for (; *words; words++)
        if (!strstr(vq_error_message(), *words))
            fail_msg("\"%s\" is not in: %s", *words, vq_error_message());
    vq_error_clear();
}

static void bad_contents(void **state)
{
    (void)state;
    vq_packing p = {.format = VQ_EXPORT_GPTQ, .bits = 4, .group_size = 32};
    vq_packed packed;
    vq_tensor weight;
    vq_arena_reset(&arena, 0);
    EXPECT_OK(vq_tensor_new(&arena, VQ_HOST, VQ_F16, VQ_DIMS(OUT, IN), &weight));
    make(&p, VQ_F16, &packed);
    int32_t *groups = packed.part[VQ_GROUPS].data;
    static const int32_t bad[] = {3, -1, INT32_MAX, INT32_MIN};
    for (int i = 0; i < VQ_COUNT(bad); i++) {
        groups[17] = bad[i];
        expect_refused(vq_packed_weight(&arena, &packed, &weight), VQ_EFILE,
                       (const char *[]){"g_idx: column 17", "expected 0 to 2", "Download", NULL});
    }
    groups[17] = 0;
    fill_numbers(&p);
    scale[3 * 5 + 1] = 1.0f / 3;
    expect_refused(vq_packed_fill(&arena, &packed, q, scale, zero, NULL, "layer"), VQ_EUNSUPPORTED,
                   (const char *[]){"layer: row 5, group 1", "0.333333343", "not exact in f16",
                                    "grid.scale_dtype = auto", NULL});
    fill_numbers(&p);
    zero[7] = 16;
    expect_refused(vq_packed_fill(&arena, &packed, q, scale, zero, NULL, "layer"), VQ_EINTERNAL,
                   (const char *[]){"expected", "bug", NULL});
    p.format = VQ_EXPORT_COMPRESSED_TENSORS;
    make(&p, VQ_F16, &packed);
    ((int64_t *)packed.part[VQ_SHAPE].data)[1] = 100;
    expect_refused(
        vq_packed_weight(&arena, &packed, &weight), VQ_EFILE,
        (const char *[]){"weight_shape: it says 32 x 100", "expected 32 x 96", "Download", NULL});
}

static void shapes(void **state)
{
    (void)state;
    static const struct {
        int bits;
        int64_t group_size, out, in;
        const char *why; /* NULL: held */
    } cases[] = {
        {4, -1, 8, 16, NULL},
        {4, 32, 8, 96, NULL},
        {3, -1, 32, 64, NULL},
        {2, -1, 16, 48, NULL},
        {8, 4, 4, 12, NULL},
        {4, -1, 12, 16, "no multiple of 8"},
        {4, -1, 16, 20, "no multiple of 8"},
        {3, -1, 48, 64, "no multiple of 32"},
        {2, -1, 16, 24, "no multiple of 16"},
        {8, -1, 6, 8, "no multiple of 4"},
        {4, 64, 8, 96, "groups of 64 do not divide its 96 columns"},
        {4, 128, 8, 96, "groups of 128 do not divide"},
    };
    for (int i = 0; i < VQ_COUNT(cases); i++) {
        const vq_packing p = {
            .format = VQ_EXPORT_GPTQ, .bits = cases[i].bits, .group_size = cases[i].group_size};
        char why[128];
        const bool held = vq_packing_holds(&p, cases[i].out, cases[i].in, why);
        assert_int_equal(held, cases[i].why == NULL);
        if (!held && !strstr(why, cases[i].why)) fail_msg("case %d: %s", i, why);
    }
}

static vq_status parse(const char *text, vq_packing *p)
{
    json_t *root = json_loads(text, 0, NULL);
    if (!root) fail_msg("not JSON: %s", text);
    const vq_status status = vq_packing_parse(root, "config.json", p);
    json_decref(root);
    return status;
}

/* What we write is read as it was; and what others write. */
static void configurations(void **state)
{
    (void)state;
    const char *name = "model.layers.0.mlp.up_proj";
    const vq_list none = {NULL, 0}, one = {&name, 1};
    for (int f = VQ_EXPORT_GPTQ; f <= VQ_EXPORT_COMPRESSED_TENSORS; f++)
        for (int k = 0; k < 8; k++) {
            const vq_packing p = {.format = (vq_export_format)f,
                                  .bits = 3,
                                  .group_size = k & 1 ? 64 : -1,
                                  .symmetric = k & 2,
                                  .less_one = f == VQ_EXPORT_GPTQ && (k & 2)};
            vq_packing back;
            json_t *root;
            EXPECT_OK(vq_packing_json(&p, &one, k & 4 ? &one : &none, 0.01, &root));
            EXPECT_OK(vq_packing_parse(root, "config.json", &back));
            assert_true(back.format == p.format && back.bits == p.bits);
            assert_true(back.group_size == p.group_size && back.symmetric == p.symmetric);
            assert_true(back.less_one == p.less_one && !back.scattered);
            char *text = json_dumps(root, 0);
            const char *pattern = f == VQ_EXPORT_GPTQ
                                      ? "\"-:^model\\\\.layers\\\\.0\\\\.mlp\\\\.up_proj$\": {}"
                                      : "\"lm_head\", \"model.layers.0.mlp.up_proj\"";
            assert_int_equal(strstr(text, pattern) != NULL, (k & 4) != 0);
            free(text);
            json_decref(root);
        }
    vq_packing p;
    EXPECT_OK(parse("{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 128, "
                    "\"desc_act\": true, \"model_name_or_path\": null}",
                    &p));
    assert_true(p.less_one && p.symmetric && p.scattered && p.group_size == 128);
#define CT(weights)                                                                                \
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\", "                  \
    "\"config_groups\": {\"g\": {\"targets\": [\"Linear\"], \"weights\": {" weights "}}}}"
    EXPECT_OK(parse(CT("\"num_bits\": 8, \"strategy\": \"group\", \"group_size\": 32, "
                       "\"actorder\": \"group\""),
                    &p));
    assert_true(p.bits == 8 && p.scattered && p.symmetric && !p.less_one);
    EXPECT_OK(parse(CT("\"num_bits\": 8, \"strategy\": \"group\", \"group_size\": 32, "
                       "\"actorder\": \"static\""),
                    &p));
    assert_false(p.scattered);

    static const struct {
        const char *text;
        vq_status status;
        const char *words[4];
    } bad[] = {
        {"{}", VQ_EUNSUPPORTED, {"\"quant_method\" is no text", "expected \"gptq\"", "Use"}},
        {"{\"quant_method\": \"awq\"}", VQ_EUNSUPPORTED, {"\"awq\"", "expected", "Use"}},
        {"{\"quant_method\": 4}", VQ_EUNSUPPORTED, {"no text", "expected", "Use"}},
        {"{\"quant_method\": \"gptq\", \"bits\": 5, \"group_size\": -1}",
         VQ_EUNSUPPORTED,
         {"\"bits\" is 5", "expected 2, 3, 4 or 8", "Use"}},
        {"{\"quant_method\": \"gptq\", \"bits\": \"4\", \"group_size\": -1}",
         VQ_EUNSUPPORTED,
         {"\"bits\" is 0", "expected", "Use"}},
        {"{\"quant_method\": \"gptq\", \"bits\": 4}",
         VQ_EFILE,
         {"\"group_size\" is 0", "expected -1", "Use"}},
        {"{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": -2}",
         VQ_EFILE,
         {"\"group_size\" is -2", "expected -1", "Use"}},
        {"{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 32, "
         "\"checkpoint_format\": \"marlin\"}",
         VQ_EUNSUPPORTED,
         {"\"marlin\"", "expected \"gptq\" or \"gptq_v2\"", "Use"}},
        {"{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 32, \"pack_dtype\": \"int8\"}",
         VQ_EUNSUPPORTED,
         {"\"pack_dtype\" is \"int8\"", "expected \"int32\"", "Use"}},
        {"{\"quant_method\": \"compressed-tensors\", \"format\": \"float-quantized\"}",
         VQ_EUNSUPPORTED,
         {"float-quantized", "expected \"pack-quantized\"", "Use"}},
        {"{\"quant_method\": \"compressed-tensors\", \"format\": \"pack-quantized\"}",
         VQ_EUNSUPPORTED,
         {"has 0 groups", "expected one", "Use"}},
        {CT("\"num_bits\": 8"), VQ_EUNSUPPORTED, {"\"strategy\"", "expected \"channel\"", "Use"}},
        {CT("\"num_bits\": 8, \"strategy\": \"tensor\""),
         VQ_EUNSUPPORTED,
         {"\"tensor\"", "expected \"channel\" or \"group\"", "Use"}},
        {CT("\"num_bits\": 8, \"strategy\": \"group\""),
         VQ_EFILE,
         {"\"group_size\" is 0", "expected -1", "Use"}},
        {CT("\"num_bits\": 8, \"strategy\": \"group\", \"type\": \"float\""),
         VQ_EUNSUPPORTED,
         {"\"type\" is \"float\"", "expected \"int\"", "Use"}},
    };
    for (int i = 0; i < VQ_COUNT(bad); i++)
        expect_refused(parse(bad[i].text, &p), bad[i].status, bad[i].words);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(there_and_back),  cmocka_unit_test(words_made_by_hand),
        cmocka_unit_test(files_of_others), cmocka_unit_test(bad_contents),
        cmocka_unit_test(shapes),          cmocka_unit_test(configurations)};
    return cmocka_run_group_tests(tests, open_arenas, close_arenas);
}
