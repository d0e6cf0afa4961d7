/* test_textio - every kind of text file, folders, the held-out part, and what broken files say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <cmocka.h>

#include "arenas.h"
#include "expect.h"
#include "fileio.h"
#include "textio.h"
#include "utf8.h"

#define ROWS "{\"text\": \"one\"}\n\n{\"text\": \"t\\u00fc\\nwo\", \"n\": 10000000000000000000000}"

static void write_plain(const char *path, const char *text)
{
    EXPECT_OK(vq_file_write(path, text, strlen(text)));
}

/* text as `members` gzip members, the last `cut` bytes left out. */
static void write_gz(const char *path, const char *text, int members, size_t cut)
{
    unlink(path);
    for (int i = 0; i < members; i++) {
        gzFile f = gzopen(path, "ab");
        assert_int_equal(gzwrite(f, text, (unsigned)strlen(text)), strlen(text));
        gzclose(f);
    }
    if (cut) {
        char *data;
        size_t n;
        EXPECT_OK(vq_file_read(&arena, path, &data, &n));
        EXPECT_OK(vq_file_write(path, data, n - cut));
    }
}

static void write_zst(const char *path, const char *text, int frames, size_t cut)
{
    const size_t bound = ZSTD_compressBound(strlen(text));
    char *data;
    size_t n = 0;
    EXPECT_OK(VQ_NEW(&arena, (int64_t)bound * frames, &data));
    for (int i = 0; i < frames; i++) n += ZSTD_compress(data + n, bound, text, strlen(text), 1);
    EXPECT_OK(vq_file_write(path, data, n - cut));
}

static vq_status read_one(const char *path, vq_text *text)
{
    return vq_text_read(&arena, &scratch, &path, 1, text);
}

static void expect_document(const vq_text *text, int64_t i, const char *data, const char *path)
{
    const vq_document *d = &text->documents[i];
    assert_true(i < text->n);
    assert_int_equal(d->n_bytes, strlen(data));
    assert_memory_equal(d->data, data, strlen(data));
    assert_non_null(strstr(d->path, path));
}

static void reads_each_kind(void **state)
{
    (void)state;
    static const char *const rows[] = {"t-rows.jsonl", "t-rows.json.gz", "t-rows.jsonl.zst"};
    static const char *const texts[] = {"t-a.txt", "t-a.txt.gz", "t-a.txt.zst"};
    vq_text text;
    write_plain(texts[0], "plain\n");
    write_gz(texts[1], "plain\n", 1, 0);
    write_zst(texts[2], "plain\n", 1, 0);
    write_plain(rows[0], ROWS);
    write_gz(rows[1], ROWS, 1, 0);
    write_zst(rows[2], ROWS, 1, 0);
    for (int i = 0; i < 3; i++) {
        EXPECT_OK(read_one(texts[i], &text));
        assert_int_equal(text.n, 1);
        assert_int_equal(text.n_bytes, 6);
        assert_false(text.documents[0].is_row);
        expect_document(&text, 0, "plain\n", texts[i]);
        EXPECT_OK(read_one(rows[i], &text));
        assert_int_equal(text.n, 2);
        assert_true(text.documents[1].is_row);
        expect_document(&text, 0, "one", rows[i]);
        expect_document(&text, 1, "t\xc3\xbc\nwo", rows[i]);
    }
    const char *both[] = {rows[0], texts[0]};
    EXPECT_OK(vq_text_read(&arena, &scratch, both, 2, &text));
    assert_int_equal(text.n, 3);
    expect_document(&text, 2, "plain\n", texts[0]);
    assert_int_equal(scratch.used_bytes, 0);
}

static void reads_several_members_and_long_lines(void **state)
{
    (void)state;
    enum { n = 3 << 20 };
    vq_text text;
    char *line;
    write_gz("t-two.txt.gz", "half ", 2, 0);
    EXPECT_OK(read_one("t-two.txt.gz", &text));
    expect_document(&text, 0, "half half ", "t-two");
    write_zst("t-two.txt.zst", "half ", 3, 0);
    EXPECT_OK(read_one("t-two.txt.zst", &text));
    expect_document(&text, 0, "half half half ", "t-two");

    EXPECT_OK(VQ_NEW(&arena, n + 1, &line));
    memset(line, 'x', n);
    line[n] = '\0';
    memcpy(line, "{\"text\":\"", 9);
    memcpy(line + n - 3, "\"}\n", 3);
    write_plain("t-long.jsonl", line);
    EXPECT_OK(read_one("t-long.jsonl", &text));
    assert_int_equal(text.n, 1);
    assert_int_equal(text.n_bytes, n - 12);
}

static void reads_a_folder_by_name(void **state)
{
    (void)state;
    vq_text text;
    EXPECT_OK(vq_make_folders("t-folder/sub.txt"));
    write_plain("t-folder/b.txt", "second");
    write_plain("t-folder/a.jsonl", "{\"sentence\": \"first\"}\n");
    write_plain("t-folder/notes.md", "not read");
    EXPECT_OK(read_one("t-folder", &text));
    assert_int_equal(text.n, 2);
    expect_document(&text, 0, "first", "t-folder/a.jsonl");
    expect_document(&text, 1, "second", "t-folder/b.txt");
    EXPECT_OK(vq_make_folders("t-none"));
    EXPECT_ERROR(read_one("t-none", &text), VQ_EUSAGE, "t-none", "no texts", ".jsonl", "Name");
}

static void broken_files_say_why(void **state)
{
    (void)state;
    vq_text text;
    EXPECT_ERROR(vq_text_read(&arena, &scratch, NULL, 0, &text), VQ_EUSAGE, "--text", "expected");
    EXPECT_ERROR(read_one("t-missing.txt", &text), VQ_EFILE, "t-missing.txt", "no such file");
    EXPECT_ERROR(read_one("t-missing.txt.zst", &text), VQ_EFILE, "t-missing.txt.zst");
    EXPECT_ERROR(read_one("t-image.png", &text), VQ_EUSAGE, "t-image.png", ".txt", "Rename");
    write_plain("t-empty.txt", "");
    EXPECT_ERROR(read_one("t-empty.txt", &text), VQ_EFILE, "t-empty.txt", "empty", "Name");
    write_plain("t-empty.jsonl", "\n{\"text\": \"\"}\n");
    EXPECT_ERROR(read_one("t-empty.jsonl", &text), VQ_EFILE, "t-empty.jsonl", "empty");
    EXPECT_OK(vq_file_write("t-nul.txt", "ab\0c", 4));
    EXPECT_ERROR(read_one("t-nul.txt", &text), VQ_EFILE, "t-nul.txt", "NUL at byte 2", "Convert");
    write_plain("t-bad.jsonl", "{\"text\": \"a\"}\n{\"text\": \n");
    EXPECT_ERROR(read_one("t-bad.jsonl", &text), VQ_EFILE, "t-bad.jsonl:2", "JSON", "Correct");
    write_plain("t-field.jsonl", "{\"text\": \"a\"}\n\n{\"body\": 1}\n");
    EXPECT_ERROR(read_one("t-field.jsonl", &text), VQ_EFILE, "t-field.jsonl:3", "\"text\"", "Name");
    write_plain("t-array.jsonl", "[1]");
    EXPECT_ERROR(read_one("t-array.jsonl", &text), VQ_EFILE, "t-array.jsonl:1", "\"text\"");
    write_plain("t-not.txt.gz", "no gzip at all");
    EXPECT_ERROR(read_one("t-not.txt.gz", &text), VQ_EFILE, "t-not.txt.gz", "gzip", "again");
    write_plain("t-not.txt.zst", "no zstd at all");
    EXPECT_ERROR(read_one("t-not.txt.zst", &text), VQ_EFILE, "t-not.txt.zst", "again");
    write_gz("t-cut.txt.gz", "some text that is cut off", 1, 9);
    EXPECT_ERROR(read_one("t-cut.txt.gz", &text), VQ_EFILE, "t-cut.txt.gz: unexpected end",
                 "again");
    write_zst("t-cut.txt.zst", "some text that is cut off", 1, 3);
    EXPECT_ERROR(read_one("t-cut.txt.zst", &text), VQ_EFILE, "t-cut.txt.zst", "too early");
    assert_int_equal(scratch.used_bytes, 0);
}

static void rows_may_hold_broken_utf8(void **state)
{
    (void)state;
    vq_text text;
    write_plain("t-utf8.jsonl", "{\"text\": \"a\xffz\"}\r\n");
    EXPECT_OK(read_one("t-utf8.jsonl", &text));
    expect_document(&text, 0, "a\xef\xbf\xbdz", "t-utf8");
}

static vq_text text_of(vq_document *documents, int64_t n)
{
    vq_text text = {documents, n, 0};
    for (int64_t i = 0; i < n; i++) text.n_bytes += documents[i].n_bytes;
    return text;
}

static void holds_out_the_end(void **state)
{
    (void)state;
    vq_document one = {"0123456\n01\n345\n789", 18, "x", false}, rows[3], *d;
    vq_text text = text_of(&one, 1), calib, eval;
    EXPECT_OK(vq_text_hold_out(&arena, &text, 0.5, &calib, &eval));
    expect_document(&calib, 0, "0123456\n01\n", "x");
    expect_document(&eval, 0, "345\n789", "x");
    assert_int_equal(calib.n_bytes + eval.n_bytes, 18);

    for (int i = 0; i < 3; i++) rows[i] = (vq_document){"\xc3\xbc\xc3\xbc\xc3\xbc", 6, "r", true};
    text = text_of(rows, 3);
    EXPECT_OK(vq_text_hold_out(&arena, &text, 0.4, &calib, &eval));
    assert_int_equal(calib.n, 2);
    assert_int_equal(eval.n, 1);
    /* No line ends, and it is the last document: between two characters. */
    EXPECT_OK(vq_text_hold_out(&arena, &text, 0.2, &calib, &eval));
    d = &eval.documents[0];
    assert_int_equal(eval.n, 1);
    assert_int_equal(vq_utf8_valid(d->data, (size_t)d->n_bytes), d->n_bytes);
    assert_int_equal(calib.n_bytes, 14);

    one = (vq_document){"x", 1, "x", false};
    text = text_of(&one, 1);
    EXPECT_ERROR(vq_text_hold_out(&arena, &text, 0.1, &calib, &eval), VQ_EFILE, "--text", "1 bytes",
                 "--eval-text");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_each_kind),
        cmocka_unit_test(reads_several_members_and_long_lines),
        cmocka_unit_test(reads_a_folder_by_name),
        cmocka_unit_test(broken_files_say_why),
        cmocka_unit_test(rows_may_hold_broken_utf8),
        cmocka_unit_test(holds_out_the_end),
    };
    return cmocka_run_group_tests(tests, open_arenas, close_arenas);
}
