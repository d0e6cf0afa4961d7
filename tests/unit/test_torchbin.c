/* test_torchbin - a file of torch.save, and pickles and zips that must be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "arenas.h"
#include "expect.h"
#include "stored_zip.h"
#include "torchbin.h"

#define SAMPLE TESTS_DIR "/unit/torch_sample.bin" /* written by make_torch_sample.py */

static const vq_tensor *find(const vq_torchbin *t, const char *name)
{
    for (int64_t i = 0; i < t->n; i++)
        if (strcmp(t->tensor[i].name, name) == 0) return &t->tensor[i];
    fail_msg("%s is missing", name);
    return NULL;
}

static void check_shape(const vq_tensor *t, const char *expected)
{
    char text[96];
    assert_string_equal(vq_tensor_text(t, text), expected);
}

static void torch_sample_is_read(void **state)
{
    (void)state;
    vq_torchbin t;
    EXPECT_OK(vq_torchbin_open(&arena, SAMPLE, &t));
    assert_int_equal(t.n, 12);
    for (int64_t i = 1; i < t.n; i++)
        assert_true(strcmp(t.tensor[i - 1].name, t.tensor[i].name) < 0);
    const vq_tensor *f32 = find(&t, "f32"), *row = find(&t, "row"),
                    *turned = find(&t, "transposed");
    check_shape(f32, "f32 [4, 6]");
    for (int i = 0; i < 24; i++) assert_true(((const float *)f32->data)[i] == (float)i);
    check_shape(row, "f32 [6]");
    assert_ptr_equal(row->data, (const float *)f32->data + 6); /* one storage, in the file */
    assert_true((uint8_t *)row->data > t.map.data);
    check_shape(turned, "f32 [6, 4]");
    assert_int_equal(turned->stride[0], 1);
    assert_int_equal(turned->stride[1], 6);
    assert_false(vq_tensor_contiguous(turned));
    check_shape(find(&t, "parameter"), "f32 [1, 2]");
    assert_true(((const float *)find(&t, "parameter")->data)[1] == -2.5f);
    check_shape(find(&t, "f16"), "f16 [3]");
    assert_true(vq_f16_to_f32(((const uint16_t *)find(&t, "f16")->data)[2]) == 65504.0f);
    check_shape(find(&t, "bf16"), "bf16 [2, 1]");
    assert_true(vq_bf16_to_f32(((const uint16_t *)find(&t, "bf16")->data)[1]) == -3.0f);
    assert_true(*(const double *)find(&t, "f64")->data == 1e300);
    assert_true(*(const int64_t *)find(&t, "i64")->data == INT64_C(1) << 40);
    check_shape(find(&t, "u8"), "u8 [2]");
    check_shape(find(&t, "bool"), "bool [2]");
    check_shape(find(&t, "scalar"), "f32 []");
    assert_true(*(const float *)find(&t, "scalar")->data == 7.0f);
    check_shape(find(&t, "empty"), "f32 [0, 3]");
    vq_torchbin_close(&t);
}

/* A file whose pickle is this. */
static vq_status parse(const char *pickle, size_t n)
{
    static stored_zip z;
    vq_torchbin t;
    z.size = z.directory_size = 0;
    z.entries = 0;
    zip_add(&z, "m/data.pkl", pickle, n, 0);
    zip_add(&z, "m/data/0", "0123456789abcdef", 16, 0);
    zip_end(&z);
    return vq_torchbin_parse(&arena, "m.bin", z.data, z.size, &t);
}

#define PICKLE(text) parse("\x80\x02" text, sizeof text + 1)
#define BAD(text, code, ...) EXPECT_ERROR(PICKLE(text), code, "m.bin", __VA_ARGS__)

/* 'name' -> rebuild(storage of n floats, offset, dims, strides, False, OrderedDict()) */
#define NAMED "}X\1\0\0\0w"
#define REBUILD "ctorch._utils\n_rebuild_tensor_v2\n("
#define STORAGE(n)                                                                                 \
    "(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"                                             \
    "0X\3\0\0\0cpuK" n "tQ"
#define REST                                                                                       \
    "\x89"                                                                                         \
    "ccollections\nOrderedDict\n)RtR"
#define TENSOR(n, offset, dims, strides)                                                           \
    NAMED REBUILD STORAGE(n)                                                                       \
    offset dims strides REST "s."

static void well_formed_pickles_pass(void **state)
{
    (void)state;
    EXPECT_OK(PICKLE(TENSOR("\4", "K\0", "K\4\x85", "K\1\x85")));
    EXPECT_OK(PICKLE(TENSOR("\4", "K\1", "K\3K\1\x86", "K\1K\1\x86")));
    /* Protocol 4: frames, short text, names from the stack, numbered memo, other values. */
    EXPECT_OK(PICKLE("\x95\x10\0\0\0\0\0\0\0}\x94(\x8c\1w" REBUILD
                     "(\x8c\7storage\x8c\5torch\x8c\x0c"
                     "FloatStorage\x93\x8c\1"
                     "0\x8c\3cpuK\2tQK\0"
                     "K\2\x85\x94K\1\x85" REST "\x8c\1xN\x8c\1yG\0\0\0\0\0\0\0\0\x8c\1z]K\1a"
                     "\x8c\1lC\1a\x8c\1n\x8a\2\1\2\x8c\1th\1u."));
}

static void foreign_names_are_refused(void **state)
{
    (void)state;
    BAD("cos\nsystem\nX\2\0\0\0ls\x85R.", VQ_EUNSUPPORTED, "os.system", "refused",
        "expected only tensors", "safetensors");
    BAD("\x8c\2os\x8c\6system\x93.", VQ_EUNSUPPORTED, "os.system", "refused");
    BAD("cbuiltins\neval\n.", VQ_EUNSUPPORTED, "builtins.eval", "refused");
    BAD("ctorch\nFloatStorage2\n.", VQ_EUNSUPPORTED, "torch.FloatStorage2");
    BAD("NN\x93.", VQ_EFILE, "a name that is no text");
    BAD("i\n", VQ_EFILE, "an operation that torch.save does not write");
}

static void broken_pickles_are_refused(void **state)
{
    (void)state;
    EXPECT_ERROR(parse("", 0), VQ_EFILE, "its end inside an operation");
    BAD("", VQ_EFILE, "its end inside an operation", "at byte 2 of 2", "download it again");
    BAD("X\xff\0\0\0w", VQ_EFILE, "its end inside an operation");
    BAD("cos", VQ_EFILE, "its end inside a name");
    BAD("0.", VQ_EFILE, "without its values");
    BAD("(0.", VQ_EFILE, "without its values");
    BAD("N(\x85.", VQ_EFILE, "without its values");
    BAD("t.", VQ_EFILE, "without its mark");
    BAD("h\5.", VQ_EFILE, "never set");
    BAD("Nr\xff\xff\xff\xff.", VQ_EFILE, "out of range");
    BAD("q\0.", VQ_EFILE, "nothing to remember");
    BAD("NNN.", VQ_EFILE, "other than a dictionary");
    BAD("K\1.", VQ_EFILE, "other than a dictionary");
    BAD("NNNs.", VQ_EFILE, "no dictionary");
    BAD("}(Nu.", VQ_EFILE, "no dictionary");
    BAD("K\1Nb.", VQ_EFILE, "attributes of something");
    BAD("}Na.", VQ_EFILE, "no list");
    BAD("}(Ne.", VQ_EFILE, "no list");
    BAD("NNR.", VQ_EFILE, "no function");
    BAD("ccollections\nOrderedDict\nN\x85R.", VQ_EFILE, "OrderedDict made from");
    BAD("ctorch\nFloatStorage\n)R.", VQ_EFILE, "a call of a storage type");
    BAD("ctorch._utils\n_rebuild_parameter\n)R.", VQ_EFILE, "parameter");
    BAD("ctorch._utils\n_rebuild_tensor_v2\n)R.", VQ_EFILE, "description of a tensor");
    BAD("NQ.", VQ_EFILE, "description of a storage");
    BAD("\x8a\x09"
        "123456789.",
        VQ_EFILE, "more than 64 bits");
    BAD("}.", VQ_EFILE, "no tensor at its top level", "state_dict");
    BAD(NAMED "}s.", VQ_EFILE, "no tensor at its top level");
}

static void tensors_outside_their_storage_are_refused(void **state)
{
    (void)state;
    BAD(TENSOR("\5", "K\0", "K\4\x85", "K\1\x85"), VQ_EFILE, "m/data/0 has 16 bytes",
        "expected 5 elements of f32");
    BAD(TENSOR("\4", "K\0", "K\5\x85", "K\1\x85"), VQ_EFILE, "outside its storage of 4", "again");
    BAD(TENSOR("\4", "K\1", "K\4\x85", "K\1\x85"), VQ_EFILE, "offset 1", "outside its storage");
    BAD(TENSOR("\4", "K\0", "K\4\x85", "K\2\x85"), VQ_EFILE, "outside its storage");
    BAD(TENSOR("\4", "J\xff\xff\xff\xff", "K\1\x85", "K\1\x85"), VQ_EFILE, "offset -1");
    BAD(TENSOR("\4", "K\0", "J\xff\xff\xff\xff\x85", "K\1\x85"), VQ_EFILE, "first dim -1");
    BAD(TENSOR("\4", "K\0", "K\2\x85", "J\xff\xff\xff\xff\x85"), VQ_EFILE, "outside its storage");
    /* 2^60 elements of stride 0 or 1, and a product that overflows */
    BAD(TENSOR("\4", "K\0", "\x8a\x08\0\0\0\0\0\0\0\x10\x85", "K\0\x85"), VQ_EFILE,
        "first dim 1152921504606846976");
    BAD(TENSOR("\4", "K\0", "\x8a\x08\0\0\0\0\0\0\0\x10K\x20\x86", "K\1K\1\x86"), VQ_EFILE,
        "outside its storage");
    BAD(TENSOR("\4", "K\0", "(K\1K\1K\1K\1K\1t", "(K\1K\1K\1K\1K\1t"), VQ_EUNSUPPORTED, "5 dims",
        "at most 4");
    BAD(NAMED REBUILD "(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
                      "9X\3\0\0\0cpuK\1tQ"
                      "K\0)"
                      ")" REST "s.",
        VQ_EFILE, "no m/data/9", "Download it again");
    BAD("}(X\1\0\0\0w" REBUILD STORAGE("\1") "K\0))" REST "q\0X\1\0\0\0wh\0u.", VQ_EFILE,
        "w is there twice");
    BAD("}K\1" REBUILD STORAGE("\1") "K\0))" REST "s.", VQ_EFILE, "tensor 0", "no proper name");
}

/* Byte `at` from the end of the sample, changed. */
static void broken_zips_are_refused(void **state)
{
    (void)state;
    vq_map map;
    vq_torchbin t;
    uint8_t *copy;
    EXPECT_OK(vq_file_map(SAMPLE, &map));
    EXPECT_OK(vq_arena_alloc(&arena, map.bytes, (void **)&copy));
    memcpy(copy, map.data, map.bytes);
    for (size_t n = 0; n < map.bytes; n += n < 64 ? 1 : 31)
        EXPECT_ERROR(vq_torchbin_parse(&arena, "t.bin", copy, n, &t), VQ_EFILE, "t.bin",
                     "download it again");
    uint8_t *end = copy + map.bytes - 22, *directory;
    uint32_t offset;
    memcpy(&offset, end + 16, 4);
    directory = copy + offset;

    directory[10] = 8; /* deflated */
    EXPECT_ERROR(vq_torchbin_parse(&arena, "t.bin", copy, map.bytes, &t), VQ_EUNSUPPORTED,
                 "data.pkl is compressed", "torch.save");
    directory[10] = 0;
    directory[23] = directory[27] = 0x7f; /* 2 GiB long */
    EXPECT_ERROR(vq_torchbin_parse(&arena, "t.bin", copy, map.bytes, &t), VQ_EFILE, "beyond",
                 "truncated");
    directory[23] = directory[27] = 0;
    directory[0] = 0;
    EXPECT_ERROR(vq_torchbin_parse(&arena, "t.bin", copy, map.bytes, &t), VQ_EFILE,
                 "wrong directory entry");
    directory[0] = 'P';
    directory[45] = 0x7f;
    EXPECT_ERROR(vq_torchbin_parse(&arena, "t.bin", copy, map.bytes, &t), VQ_EFILE,
                 "wrong local header");
    directory[45] = 0;
    copy[0] = 0x80;
    EXPECT_ERROR(vq_torchbin_parse(&arena, "t.bin", copy, map.bytes, &t), VQ_EUNSUPPORTED,
                 "before 1.6", "expected the zip format", "torch.save");
    vq_file_unmap(&map);
}

static void big_endian_is_refused(void **state)
{
    (void)state;
    static stored_zip z;
    vq_torchbin t;
    zip_add(&z, "data.pkl", "}.", 2, 0);
    zip_add(&z, "byteorder", "big", 3, 0);
    zip_end(&z);
    EXPECT_ERROR(vq_torchbin_parse(&arena, "b.bin", z.data, z.size, &t), VQ_EUNSUPPORTED, "b.bin",
                 "big-endian", "expected little-endian");
    z = (stored_zip){0};
    zip_add(&z, "mydata.pkl", "}.", 2, 0);
    zip_end(&z);
    EXPECT_ERROR(vq_torchbin_parse(&arena, "b.bin", z.data, z.size, &t), VQ_EFILE, "no data.pkl");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(torch_sample_is_read),
        cmocka_unit_test(well_formed_pickles_pass),
        cmocka_unit_test(foreign_names_are_refused),
        cmocka_unit_test(broken_pickles_are_refused),
        cmocka_unit_test(tensors_outside_their_storage_are_refused),
        cmocka_unit_test(broken_zips_are_refused),
        cmocka_unit_test(big_endian_is_refused),
    };
    return cmocka_run_group_tests(tests, open_arenas, close_arenas);
}
