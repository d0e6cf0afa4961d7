/* test_safetensors - reading, writing, and every way a header can be wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "arenas.h"
#include "expect.h"
#include "safetensors.h"

/* A file of this header and n zero bytes of data. */
static vq_status parse(const char *header, size_t n, vq_safetensors *s)
{
    static _Alignas(8) uint8_t file[1024];
    size_t length = strlen(header);
    memset(file, 0, sizeof file);
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)length >> 8 * i);
    memcpy(file + 8, header, length);
    return vq_safetensors_parse(&arena, "t.safetensors", file, 8 + length + n, s);
}

#define BAD(header, n, code, ...)                                                                  \
    EXPECT_ERROR(parse(header, n, &s), code, "t.safetensors", __VA_ARGS__)

static void wrong_headers_are_refused(void **state)
{
    (void)state;
    vq_safetensors s;
    EXPECT_ERROR(vq_safetensors_parse(&arena, "t", (const uint8_t *)"1234", 4, &s), VQ_EFILE,
                 "t has 4 bytes", "expected a safetensors", "again");
    EXPECT_ERROR(vq_safetensors_parse(&arena, "t", (const uint8_t *)"\xff\0\0\0\0\0\0\0{}", 10, &s),
                 VQ_EFILE, "length is 255", "only 2", "download it again");
    EXPECT_ERROR(vq_safetensors_parse(
                     &arena, "t", (const uint8_t *)"\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, &s),
                 VQ_EFILE, "length is 18446744073709551615");
    BAD("{", 0, VQ_EFILE, "not valid", "expected JSON", "again");
    BAD("[]", 0, VQ_EFILE, "{...}", "again");
    BAD("{\"a\xff\": 1}", 0, VQ_EFILE, "0xff", "expected JSON");
    BAD("{\"a\": 1}", 0, VQ_EFILE, "a is not a {...}", "expected dtype");
    BAD("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
        "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
        2, VQ_EFILE, "duplicate", "unique names");
    BAD("{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, VQ_EFILE, "a has no \"dtype\"");
    BAD("{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, VQ_EUNSUPPORTED,
        "a has dtype \"F8_E4M3\"", "expected F32", "unquantized");
    BAD("{\"a\":{\"dtype\":\"U8\",\"shape\":3,\"data_offsets\":[0,1]}}", 1, VQ_EFILE, "\"shape\"");
    BAD("{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,1]}}", 1,
        VQ_EUNSUPPORTED, "a has 5 dims", "at most 4");
    BAD("{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", 1, VQ_EFILE,
        "a has dim 0 = -1", "from 0 up");
    BAD("{\"a\":{\"dtype\":\"U8\",\"shape\":[1.5],\"data_offsets\":[0,1]}}", 1, VQ_EFILE,
        "a has dim 0");
    BAD("{\"a\":{\"dtype\":\"F32\",\"shape\":[1152921504606846976,16],\"data_offsets\":[0,4]}}", 4,
        VQ_EFILE, "dim 1 = 16", "fits the file");
    BAD("{\"a\":{\"dtype\":\"U8\",\"shape\":[1152921504606846976],\"data_offsets\":[0,1]}}", 1,
        VQ_EFILE, "1 bytes of data, expected 1152921504606846976");
    BAD("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, VQ_EFILE, "\"data_offsets\"");
    BAD("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}", 1, VQ_EFILE,
        "begin <= end");
    BAD("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]}}", 1, VQ_EFILE,
        "begin <= end");
    BAD("{\"a\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}", 1, VQ_EFILE,
        "a ends at byte 9", "has only 1", "truncated");
    BAD("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, VQ_EFILE,
        "a has 4 bytes", "expected 8 for f32 [2]");
    BAD("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
        "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
        3, VQ_EFILE, "b overlaps a");
    BAD("{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]},"
        "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
        3, VQ_EFILE, "1 unused bytes before b");
    BAD("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 3, VQ_EFILE,
        "2 unused bytes after");
}

static void right_headers_are_read(void **state)
{
    (void)state;
    vq_safetensors s;
    EXPECT_OK(parse("{}", 0, &s));
    assert_int_equal(s.n, 0);
    assert_null(vq_safetensors_find(&s, "a"));
    /* Listed in another order than the data's, with a scalar and an empty tensor. */
    EXPECT_OK(parse("{\"__metadata__\":{\"format\":\"pt\"},"
                    "\"b\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[4,6]},"
                    "\"e\":{\"dtype\":\"I64\",\"shape\":[0,3],\"data_offsets\":[4,4]},"
                    "\"a\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[0,4]}}",
                    6, &s));
    assert_int_equal(s.n, 3);
    const vq_tensor *b = vq_safetensors_find(&s, "b"), *e = vq_safetensors_find(&s, "e");
    assert_int_equal(b->ndim, 0);
    assert_int_equal(b->dtype, VQ_BF16);
    assert_int_equal(vq_tensor_bytes(b), 2);
    assert_int_equal(vq_tensor_count(e), 0);
    assert_int_equal(((uintptr_t)vq_safetensors_find(&s, "a")->data) % 4, 0); /* was copied */
}

static void written_files_are_read_back(void **state)
{
    (void)state;
    float a[6] = {1, 2, 3, 4, 5, 6};
    uint8_t b[3] = {7, 8, 9};
    double c[2] = {0.5, -0.5};
    vq_tensor list[3] = {vq_tensor_1d(NULL, VQ_U8, 3), vq_tensor_2d(NULL, VQ_F32, 2, 3),
                         vq_tensor_1d(NULL, VQ_F64, 2)};
    list[0].name = "b", list[1].name = "a", list[2].name = "c";
    vq_safetensors_writer w;
    vq_safetensors s;
    EXPECT_OK(vq_safetensors_create(&arena, "safetensors-out.safetensors", list, 3, &w));
    EXPECT_OK(vq_safetensors_put(&w, 1, a, 8));
    EXPECT_OK(vq_safetensors_put(&w, 0, b, 3));
    EXPECT_OK(vq_safetensors_put(&w, 2, c, 16));
    EXPECT_OK(vq_safetensors_put(&w, 1, a + 2, 16));
    EXPECT_OK(vq_safetensors_finish(&w));
    EXPECT_OK(vq_safetensors_open(&arena, "safetensors-out.safetensors", &s));
    assert_int_equal(s.n, 3);
    const vq_tensor *t = vq_safetensors_find(&s, "a");
    assert_int_equal(t->ndim, 2);
    assert_int_equal(t->dim[1], 3);
    assert_memory_equal(t->data, a, sizeof a);
    assert_memory_equal(vq_safetensors_find(&s, "b")->data, b, sizeof b);
    assert_memory_equal(vq_safetensors_find(&s, "c")->data, c, sizeof c);
    assert_true((uint8_t *)t->data > s.map.data && (uint8_t *)t->data < s.map.data + s.map.bytes);
    vq_safetensors_close(&s);
    vq_safetensors_close(&s);
}

static void incomplete_files_do_not_appear(void **state)
{
    (void)state;
    vq_tensor list[1] = {vq_tensor_1d(NULL, VQ_U8, 3)};
    list[0].name = "b";
    vq_safetensors_writer w;
    unlink("safetensors-half.safetensors");
    EXPECT_OK(vq_safetensors_create(&arena, "safetensors-half.safetensors", list, 1, &w));
    EXPECT_OK(vq_safetensors_put(&w, 0, "ab", 2));
    EXPECT_ERROR(vq_safetensors_finish(&w), VQ_EINTERNAL, "b lacks 1 bytes");
    assert_false(vq_file_exists("safetensors-half.safetensors"));
    assert_false(vq_file_exists("safetensors-half.safetensors.tmp"));
    EXPECT_OK(vq_safetensors_create(&arena, "safetensors-half.safetensors", list, 1, &w));
    EXPECT_ERROR(vq_safetensors_put(&w, 0, "abcd", 4), VQ_EINTERNAL, "bug");
    vq_safetensors_abandon(&w);
    assert_false(vq_file_exists("safetensors-half.safetensors.tmp"));
    EXPECT_ERROR(vq_safetensors_create(&arena, "no-dir/x", list, 1, &w), VQ_EFILE, "no-dir/x");
    vq_tensor twice[2] = {list[0], list[0]};
    EXPECT_ERROR(vq_safetensors_create(&arena, "safetensors-half.safetensors", twice, 2, &w),
                 VQ_EMEM, "unique names");
    assert_false(vq_file_exists("safetensors-half.safetensors.tmp"));
}

static void golden_files_open(void **state)
{
    (void)state;
    vq_safetensors s;
    EXPECT_OK(vq_safetensors_open(&arena, TESTS_DIR "/models/tiny-llama/model.safetensors", &s));
    assert_non_null(vq_safetensors_find(&s, "model.embed_tokens.weight"));
    vq_safetensors_close(&s);
    EXPECT_ERROR(vq_safetensors_open(&arena, "no-such.safetensors", &s), VQ_EFILE, "no-such");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_headers_are_refused),
        cmocka_unit_test(right_headers_are_read),
        cmocka_unit_test(written_files_are_read_back),
        cmocka_unit_test(incomplete_files_do_not_appear),
        cmocka_unit_test(golden_files_open),
    };
    return cmocka_run_group_tests(tests, open_arenas, close_arenas);
}
