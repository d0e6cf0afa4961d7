/* test_fileio - mapping, atomic writing, folders, hashes, and what each says when it fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "arenas.h"
#include "expect.h"
#include "fileio.h"

static void write_text(const char *path, const char *text)
{
    EXPECT_OK(vq_file_write(path, text, strlen(text)));
}

static void maps_and_reads_what_was_written(void **state)
{
    (void)state;
    vq_map map;
    char *text;
    size_t bytes;
    write_text("fileio.txt", "hello");
    assert_false(vq_file_exists("fileio.txt.tmp"));
    EXPECT_OK(vq_file_map("fileio.txt", &map));
    assert_int_equal(map.bytes, 5);
    assert_memory_equal(map.data, "hello", 5);
    vq_file_release(map.data, map.bytes);
    assert_memory_equal(map.data, "hello", 5);
    vq_file_unmap(&map);
    vq_file_unmap(&map);

    EXPECT_OK(vq_file_copy("fileio.txt", "fileio-copy.txt"));
    EXPECT_OK(vq_file_read(&arena, "fileio-copy.txt", &text, &bytes));
    assert_int_equal(bytes, 5);
    assert_string_equal(text, "hello");

    write_text("fileio.txt", "");
    EXPECT_OK(vq_file_map("fileio.txt", &map));
    assert_null(map.data);
    vq_file_unmap(&map);
}

static void bad_paths_say_why(void **state)
{
    (void)state;
    vq_map map;
    char long_path[PATH_MAX + 8];
    EXPECT_ERROR(vq_file_map("no-such.bin", &map), VQ_EFILE, "no-such.bin cannot be read",
                 "no such file", "Check the path");
    EXPECT_ERROR(vq_file_map(".", &map), VQ_EFILE, ". is a folder", "expected a file", "Give");
    write_text("fileio.txt", "version https://git-lfs.github.com/spec/v1\nsize 9\n");
    EXPECT_ERROR(vq_file_map("fileio.txt", &map), VQ_EFILE, "fileio.txt", "Git LFS",
                 "git lfs pull");
    assert_null(map.data);
    EXPECT_ERROR(vq_file_write("no-dir/x", "", 0), VQ_EFILE, "no-dir/x cannot be written",
                 "Check the path");
    write_text("fileio.txt", "x");
    EXPECT_ERROR(vq_file_write("fileio.txt/x", "", 0), VQ_EFILE, "fileio.txt/x");
    memset(long_path, 'a', sizeof long_path - 1);
    long_path[sizeof long_path - 1] = '\0';
    EXPECT_ERROR(vq_file_write(long_path, "", 0), VQ_EFILE, "expected fewer than", "shorter");
    EXPECT_ERROR(vq_make_folders(long_path), VQ_EFILE, "1 to", "Use another path");
    EXPECT_ERROR(vq_make_folders(""), VQ_EFILE, "1 to", "Use another path");
    EXPECT_ERROR(vq_make_folders("fileio.txt/sub"), VQ_EFILE, "fileio.txt", "folder");
}

static void no_permission_names_the_user(void **state)
{
    (void)state;
    EXPECT_OK(vq_make_folders("fileio-locked"));
    assert_int_equal(chmod("fileio-locked", 0500), 0);
    bool root = geteuid() == 0; /* who may write anywhere */
    if (root) assert_int_equal(seteuid(65534), 0);
    vq_status status = vq_file_write("fileio-locked/x", "", 0);
    if (root) assert_int_equal(seteuid(0), 0);
    EXPECT_ERROR(status, VQ_EFILE, "fileio-locked/x", "Permission denied", "permissions");
}

/* /dev/full takes nothing: every flush to it fails as on a full disk. */
static void full_disk_is_a_memory_error(void **state)
{
    (void)state;
    vq_writer w;
    unlink("fileio-full.tmp");
    assert_int_equal(symlink("/dev/full", "fileio-full.tmp"), 0);
    EXPECT_OK(vq_writer_open("fileio-full", &w));
    EXPECT_OK(vq_writer_printf(&w, "%d", 42));
    EXPECT_ERROR(vq_writer_finish(&w), VQ_EMEM, "fileio-full cannot be written", "no space left",
                 "Free some space");
    assert_null(w.file);
    assert_false(vq_file_exists("fileio-full"));
    assert_int_equal(access("fileio-full.tmp", F_OK), -1);
    vq_writer_abandon(&w);
}

static void abandoned_file_leaves_the_old_one(void **state)
{
    (void)state;
    vq_writer w;
    vq_map map;
    write_text("fileio.txt", "old");
    EXPECT_OK(vq_writer_open("fileio.txt", &w));
    EXPECT_OK(vq_writer_put(&w, "new and longer", 14));
    vq_writer_abandon(&w);
    assert_false(vq_file_exists("fileio.txt.tmp"));
    EXPECT_OK(vq_file_map("fileio.txt", &map));
    assert_int_equal(map.bytes, 3);
    vq_file_unmap(&map);
}

static void writes_at_offsets(void **state)
{
    (void)state;
    vq_writer w;
    char *text;
    size_t bytes;
    EXPECT_OK(vq_writer_open("fileio.txt", &w));
    EXPECT_OK(vq_writer_reserve(&w, 6));
    EXPECT_OK(vq_writer_put_at(&w, 3, "def", 3));
    EXPECT_OK(vq_writer_put_at(&w, 0, "abc", 3));
    EXPECT_OK(vq_writer_finish(&w));
    EXPECT_OK(vq_file_read(&arena, "fileio.txt", &text, &bytes));
    assert_string_equal(text, "abcdef");
}

static void folders_are_made_and_listed(void **state)
{
    (void)state;
    char **names, *path;
    int64_t n;
    EXPECT_OK(vq_make_folders("fileio-dir/a/b/"));
    EXPECT_OK(vq_make_folders("fileio-dir/a/b"));
    assert_true(vq_is_folder("fileio-dir/a/b"));
    write_text("fileio-dir/z.txt", "");
    write_text("fileio-dir/b.txt", "");
    EXPECT_OK(vq_folder_list(&arena, "fileio-dir", ".txt", &names, &n));
    assert_int_equal(n, 2);
    assert_string_equal(names[0], "b.txt");
    assert_string_equal(names[1], "z.txt");
    EXPECT_OK(vq_folder_list(&arena, "fileio-dir", "", &names, &n));
    assert_int_equal(n, 3);
    EXPECT_ERROR(vq_folder_list(&arena, "no-dir", "", &names, &n), VQ_EFILE, "no-dir", "listed");
    EXPECT_OK(vq_path_join(&arena, "a", "b", &path));
    assert_string_equal(path, "a/b");
    EXPECT_OK(vq_path_join(&arena, "a/", "b", &path));
    assert_string_equal(path, "a/b");
    EXPECT_OK(vq_path_join(&arena, "", "b", &path));
    assert_string_equal(path, "b");
}

static void unaligned_data_is_copied(void **state)
{
    (void)state;
    _Alignas(8) uint8_t bytes[16] = {0, 1, 2, 3, 4};
    void *at;
    EXPECT_OK(vq_file_align(&arena, bytes + 4, 4, 4, &at));
    assert_ptr_equal(at, bytes + 4);
    EXPECT_OK(vq_file_align(&arena, bytes + 1, 4, 4, &at));
    assert_ptr_not_equal(at, bytes + 1);
    assert_memory_equal(at, bytes + 1, 4);
}

/* The published test values of FNV-1a. */
static void hashes_are_fnv(void **state)
{
    (void)state;
    assert_true(vq_hash_bytes(VQ_HASH_START, "", 0) == UINT64_C(0xcbf29ce484222325));
    assert_true(vq_hash_bytes(VQ_HASH_START, "a", 1) == UINT64_C(0xaf63dc4c8601ec8c));
    assert_true(vq_hash_bytes(VQ_HASH_START, "foobar", 6) == UINT64_C(0x85944171f73967e8));
    assert_true(vq_hash_text(vq_hash_text(VQ_HASH_START, "ab"), "c") !=
                vq_hash_text(vq_hash_text(VQ_HASH_START, "a"), "bc"));
    assert_true(vq_hash_u64(VQ_HASH_START, 1) != vq_hash_u64(VQ_HASH_START, UINT64_C(1) << 32));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps_and_reads_what_was_written),
        cmocka_unit_test(bad_paths_say_why),
        cmocka_unit_test(no_permission_names_the_user),
        cmocka_unit_test(full_disk_is_a_memory_error),
        cmocka_unit_test(abandoned_file_leaves_the_old_one),
        cmocka_unit_test(writes_at_offsets),
        cmocka_unit_test(folders_are_made_and_listed),
        cmocka_unit_test(unaligned_data_is_copied),
        cmocka_unit_test(hashes_are_fnv),
    };
    return cmocka_run_group_tests(tests, open_arenas, close_arenas);
}
