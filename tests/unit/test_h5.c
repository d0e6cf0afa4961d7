/* test_h5 - datasets, rows, attributes, keys; and files that are not what they should be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "arenas.h"
#include "expect.h"
#include "h5.h"

static void start(vq_h5 *h, const char *path)
{
    EXPECT_OK(vq_h5_create(&arena, path, "test", 3, h));
}

static void every_dtype_comes_back(void **state)
{
    (void)state;
    vq_h5 h;
    vq_tensor t, found;
    uint8_t data[6 * 8];
    char name[32];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i & 1);
    start(&h, "h5-types.h5");
    for (int type = 0; type < VQ_N_DTYPES; type++) {
        snprintf(name, sizeof name, "layer/%s", vq_dtype_name((vq_dtype)type));
        t = vq_tensor_2d(data, (vq_dtype)type, 2, 3);
        EXPECT_OK(vq_h5_write(&h, name, &t));
    }
    t = vq_tensor_1d(data, VQ_F32, 0);
    EXPECT_OK(vq_h5_write(&h, "empty", &t));
    t.ndim = 0;
    EXPECT_OK(vq_h5_write(&h, "scalar", &t));
    EXPECT_OK(vq_h5_finish(&h));
    assert_false(vq_file_exists("h5-types.h5.tmp"));

    EXPECT_OK(vq_h5_open(&arena, "h5-types.h5", "test", 3, &h));
    for (int type = 0; type < VQ_N_DTYPES; type++) {
        snprintf(name, sizeof name, "layer/%s", vq_dtype_name((vq_dtype)type));
        EXPECT_OK(vq_h5_load(&h, &arena, name, &found));
        t = vq_tensor_2d(data, (vq_dtype)type, 2, 3);
        assert_int_equal(found.dtype, type);
        assert_true(vq_tensor_same_shape(&t, &found) && vq_tensor_contiguous(&found));
        assert_memory_equal(found.data, data, vq_tensor_bytes(&t));
    }
    EXPECT_OK(vq_h5_load(&h, &arena, "empty", &found));
    assert_int_equal(vq_tensor_count(&found), 0);
    EXPECT_OK(vq_h5_load(&h, &arena, "scalar", &found));
    assert_int_equal(found.ndim, 0);
    assert_memory_equal(found.data, data, 4);
    vq_h5_close(&h);
}

/* Halves must be what others read as halves: 16-bit floats of HDF5. */
static void halves_are_numbers_to_hdf5(void **state)
{
    (void)state;
    vq_h5 h;
    uint16_t half[4] = {vq_f32_to_f16(1.5f), vq_f32_to_f16(-65504.0f), vq_f32_to_f16(6e-8f), 0};
    vq_tensor t = vq_tensor_1d(half, VQ_F16, 4), found;
    start(&h, "h5-half.h5");
    EXPECT_OK(vq_h5_write(&h, "half", &t));
    EXPECT_OK(vq_h5_finish(&h));
    EXPECT_OK(vq_h5_open(&arena, "h5-half.h5", "test", 3, &h));
    EXPECT_OK(vq_h5_shape(&h, "half", &found));
    assert_int_equal(found.dtype, VQ_F16);
    assert_null(found.data);
    vq_h5_close(&h);
}

static void rows_are_written_and_read(void **state)
{
    (void)state;
    vq_h5 h;
    int32_t data[4 * 3], back[2 * 3];
    for (int i = 0; i < 12; i++) data[i] = i;
    vq_tensor all = vq_tensor_2d(data, VQ_I32, 4, 3), two = vq_tensor_2d(back, VQ_I32, 2, 3);
    start(&h, "h5-rows.h5");
    EXPECT_OK(vq_h5_make(&h, "r", &all));
    for (int64_t first = 2; first >= 0; first -= 2) {
        vq_tensor rows = vq_tensor_rows(&all, first, 2);
        EXPECT_OK(vq_h5_write_rows(&h, "r", first, &rows));
    }
    EXPECT_ERROR(vq_h5_write_rows(&h, "r", 3, &two), VQ_EFILE, "h5-rows.h5", "r has 4 rows",
                 "expected 2 from row 3");
    EXPECT_OK(vq_h5_finish(&h));
    EXPECT_OK(vq_h5_open(&arena, "h5-rows.h5", "test", 3, &h));
    EXPECT_OK(vq_h5_read_rows(&h, "r", 1, &two));
    assert_memory_equal(back, data + 3, sizeof back);
    EXPECT_OK(vq_h5_read(&h, "r", &all));
    EXPECT_ERROR(vq_h5_read_rows(&h, "r", -1, &two), VQ_EFILE, "r has 4 rows", "delete");
    vq_tensor wrong = vq_tensor_2d(back, VQ_I32, 3, 2);
    EXPECT_ERROR(vq_h5_read_rows(&h, "r", 0, &wrong), VQ_EFILE, "r is i32 [3, 3]",
                 "expected i32 [3, 2]", "delete");
    EXPECT_ERROR(vq_h5_read(&h, "r", &wrong), VQ_EFILE, "r is i32 [4, 3]", "expected i32 [3, 2]");
    wrong = vq_tensor_2d(data, VQ_F32, 4, 3);
    EXPECT_ERROR(vq_h5_read(&h, "r", &wrong), VQ_EFILE, "r is i32 [4, 3]", "expected f32 [4, 3]");
    EXPECT_ERROR(vq_h5_read(&h, "s/r", &wrong), VQ_EFILE, "s/r is missing", "run again");
    vq_h5_close(&h);
}

static void attributes_and_lists(void **state)
{
    (void)state;
    vq_h5 h;
    int8_t one = 1;
    int64_t i = 0, n;
    uint64_t u = 0;
    double d = 0;
    char *text, **names;
    vq_tensor t = vq_tensor_1d(&one, VQ_I8, 1);
    start(&h, "h5-attributes.h5");
    EXPECT_OK(vq_h5_write(&h, "b/y", &t));
    EXPECT_OK(vq_h5_write(&h, "b/x", &t));
    EXPECT_OK(vq_h5_write(&h, "a", &t));
    EXPECT_OK(vq_h5_set_i64(&h, NULL, "step", 1));
    EXPECT_OK(vq_h5_set_i64(&h, NULL, "step", -7));
    EXPECT_OK(vq_h5_set_u64(&h, NULL, "key", UINT64_MAX));
    EXPECT_OK(vq_h5_set_f64(&h, "b/x", "beta", 0.1));
    EXPECT_OK(vq_h5_set_text(&h, "b/x", "name", "q_proj \xc3\xa4"));
    EXPECT_OK(vq_h5_set_text(&h, NULL, "none", ""));
    EXPECT_OK(vq_h5_finish(&h));

    EXPECT_OK(vq_h5_open(&arena, "h5-attributes.h5", NULL, 0, &h));
    EXPECT_OK(vq_h5_list(&h, &arena, &names, &n));
    assert_int_equal(n, 3);
    assert_string_equal(names[0], "a");
    assert_string_equal(names[1], "b/x");
    assert_string_equal(names[2], "b/y");
    EXPECT_OK(vq_h5_list_attributes(&h, &arena, NULL, &names, &n));
    assert_int_equal(n, 5);
    assert_string_equal(names[0], "key");
    EXPECT_OK(vq_h5_get_i64(&h, NULL, "step", &i));
    assert_true(i == -7);
    EXPECT_OK(vq_h5_get_u64(&h, NULL, "key", &u));
    assert_true(u == UINT64_MAX);
    EXPECT_OK(vq_h5_get_f64(&h, "b/x", "beta", &d));
    assert_true(d == 0.1);
    EXPECT_OK(vq_h5_get_text(&h, &arena, "b/x", "name", &text));
    assert_string_equal(text, "q_proj \xc3\xa4");
    EXPECT_OK(vq_h5_get_text(&h, &arena, NULL, "none", &text));
    assert_string_equal(text, "");
    assert_true(vq_h5_has_attribute(&h, NULL, "kind"));
    assert_false(vq_h5_has_attribute(&h, "no/such", "kind"));
    assert_true(vq_h5_has(&h, "b"));
    assert_false(vq_h5_has(&h, "b/z"));
    assert_false(vq_h5_has(&h, ""));
    EXPECT_ERROR(vq_h5_get_i64(&h, "b/x", "none", &i), VQ_EFILE, "attribute none of b/x is missing",
                 "expected", "run again");
    EXPECT_ERROR(vq_h5_get_f64(&h, NULL, "step", &d), VQ_EFILE, "step of the file",
                 "expected a number");
    EXPECT_ERROR(vq_h5_get_text(&h, &arena, NULL, "step", &text), VQ_EFILE, "expected a text");
    EXPECT_OK(vq_h5_check_u64(&h, "key", UINT64_MAX, "the model's weights"));
    EXPECT_ERROR(vq_h5_check_u64(&h, "key", 5, "the model's weights"), VQ_EFILE, "h5-attributes.h5",
                 "the model's weights differs", "key is 18446744073709551615, expected 5",
                 "Choose another --out");
    EXPECT_ERROR(vq_h5_check_text(&h, "kind", "tokens", "the kind"), VQ_EFILE,
                 "kind is \"test\", expected \"tokens\"");
    vq_h5_close(&h);
    vq_h5_close(&h);
}

static void wrong_files_are_refused(void **state)
{
    (void)state;
    vq_h5 h;
    int32_t data[1000] = {1};
    vq_tensor t = vq_tensor_1d(data, VQ_I32, 1000);
    start(&h, "h5-whole.h5");
    EXPECT_OK(vq_h5_write(&h, "x", &t));
    EXPECT_OK(vq_h5_finish(&h));
    EXPECT_ERROR(vq_h5_open(&arena, "h5-whole.h5", "tokens", 3, &h), VQ_EFILE, "h5-whole.h5",
                 "expected \"tokens\"");
    EXPECT_ERROR(vq_h5_open(&arena, "h5-whole.h5", "test", 4, &h), VQ_EFILE, "version 3",
                 "expected 4", "run again");
    EXPECT_ERROR(vq_h5_open(&arena, "no-such.h5", "test", 3, &h), VQ_EFILE, "no-such.h5",
                 "no such file", "Check the path");
    EXPECT_ERROR(vq_h5_open(&arena, ".", "test", 3, &h), VQ_EFILE, "is a folder");
    EXPECT_ERROR(vq_h5_create(&arena, "no-dir/x.h5", "test", 3, &h), VQ_EFILE, "no-dir/x.h5",
                 "cannot be written", "Check the path");
    vq_h5_close(&h);

    vq_map map;
    EXPECT_OK(vq_file_map("h5-whole.h5", &map));
    EXPECT_OK(vq_file_write("h5-cut.h5", map.data, map.bytes - 100));
    EXPECT_ERROR(vq_h5_open(&arena, "h5-cut.h5", "test", 3, &h), VQ_EFILE, "h5-cut.h5",
                 "opened as HDF5", "truncated", "run again");
    EXPECT_OK(vq_file_write("h5-cut.h5", map.data, 50));
    EXPECT_ERROR(vq_h5_open(&arena, "h5-cut.h5", "test", 3, &h), VQ_EFILE, "opened as HDF5");
    EXPECT_OK(vq_file_write("h5-cut.h5", "text", 4));
    EXPECT_ERROR(vq_h5_open(&arena, "h5-cut.h5", "test", 3, &h), VQ_EFILE, "opened as HDF5",
                 "run again");
    vq_file_unmap(&map);
}

static void abandoned_files_do_not_appear(void **state)
{
    (void)state;
    vq_h5 h;
    unlink("h5-left.h5");
    start(&h, "h5-left.h5");
    assert_true(vq_file_exists("h5-left.h5.tmp"));
    vq_h5_close(&h);
    assert_false(vq_file_exists("h5-left.h5.tmp"));
    assert_false(vq_file_exists("h5-left.h5"));
}

static void equal_runs_make_equal_files(void **state)
{
    (void)state;
    vq_h5 h;
    vq_map a, b;
    float data[3] = {1, 2, 3};
    vq_tensor t = vq_tensor_1d(data, VQ_F32, 3);
    for (int i = 0; i < 2; i++) {
        start(&h, i ? "h5-second.h5" : "h5-first.h5");
        EXPECT_OK(vq_h5_write(&h, "g/x", &t));
        EXPECT_OK(vq_h5_finish(&h));
    }
    EXPECT_OK(vq_file_map("h5-first.h5", &a));
    EXPECT_OK(vq_file_map("h5-second.h5", &b));
    assert_int_equal(a.bytes, b.bytes);
    assert_memory_equal(a.data, b.data, a.bytes);
    vq_file_unmap(&a);
    vq_file_unmap(&b);
}

#define LETTERS_50 "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeee"

/* Whatever the path: HDF5's own message has it before the reason. Needs the right to mount. */
static void full_disk_is_a_memory_error(void **state)
{
    (void)state;
    static float data[1 << 18];
    vq_tensor t = vq_tensor_1d(data, VQ_F32, 1 << 18);
    char folder[] =
        "h5-small/" LETTERS_50 "/" LETTERS_50 "/" LETTERS_50 "/" LETTERS_50 "/" LETTERS_50,
         path[512];
    EXPECT_OK(vq_make_folders("h5-small"));
    if (mount("none", "h5-small", "tmpfs", 0, "size=256k") != 0) skip();
    for (int is_long = 0; is_long < 2; is_long++) {
        vq_h5 h;
        snprintf(path, sizeof path, "%s/x.h5", is_long ? folder : "h5-small");
        vq_status status = is_long ? vq_make_folders(folder) : VQ_OK;
        if (status == VQ_OK) start(&h, path);
        if (status == VQ_OK) status = vq_h5_write(&h, "x", &t);
        if (status == VQ_OK) status = vq_h5_finish(&h);
        vq_h5_close(&h);
        bool there = vq_file_exists(path) || vq_file_exists(strcat(path, ".tmp"));
        if (is_long || status == VQ_OK || there) umount("h5-small");
        EXPECT_ERROR(status, VQ_EMEM, "/x.h5", "no space left", "Free some space");
        assert_false(there);
    }
}

/* Small datasets until the disk is full, then the end of the program. */
static void fill_disk(void)
{
    static float data[4096];
    const vq_tensor t = vq_tensor_1d(data, VQ_F32, 4096);
    vq_status status = VQ_OK;
    vq_h5 h;
    start(&h, "h5-small/x.h5");
    for (int i = 0; status == VQ_OK; i++) {
        char name[32];
        snprintf(name, sizeof name, "g%d/x%d", i / 7, i);
        status = vq_h5_write(&h, name, &t);
    }
    vq_h5_close(&h);
    exit(status);
}

/* Wherever it was full, the program ends with its own code. Needs the right to mount. */
static void full_disk_is_no_crash(void **state)
{
    (void)state;
    EXPECT_OK(vq_make_folders("h5-small"));
    for (int kib = 960; kib <= 1040; kib += 8) {
        char size[32];
        int code;
        snprintf(size, sizeof size, "size=%dk", kib);
        if (mount("none", "h5-small", "tmpfs", 0, size) != 0) skip();
        const pid_t child = fork();
        if (child == 0) fill_disk();
        assert_true(child > 0 && waitpid(child, &code, 0) == child);
        umount("h5-small");
        if (!WIFEXITED(code) || WEXITSTATUS(code) != VQ_EMEM)
            fail_msg("a disk of %d KiB: wait status %x, expected exit code 4", kib, code);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_dtype_comes_back),
        cmocka_unit_test(halves_are_numbers_to_hdf5),
        cmocka_unit_test(rows_are_written_and_read),
        cmocka_unit_test(attributes_and_lists),
        cmocka_unit_test(wrong_files_are_refused),
        cmocka_unit_test(abandoned_files_do_not_appear),
        cmocka_unit_test(equal_runs_make_equal_files),
        cmocka_unit_test(full_disk_is_a_memory_error),
        cmocka_unit_test(full_disk_is_no_crash),
    };
    return cmocka_run_group_tests(tests, open_arenas, close_arenas);
}
