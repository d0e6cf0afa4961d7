/* test_weights - model folders of every kind, and what is wrong with them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "arenas.h"
#include "expect.h"
#include "safetensors.h"
#include "weights.h"

static void write_text(const char *path, const char *text)
{
    EXPECT_OK(vq_file_write(path, text, strlen(text)));
}

/* A .safetensors file with tensors a [2, 3] f32, b [4] f16 and c [1] i64, or the first n. */
static void write_shard(const char *path, const char *const *names, int64_t n, float first)
{
    float a[6] = {first, 1, 2, 3, 4, 5};
    uint16_t b[4] = {1, 2, 3, 4};
    int64_t c = 7;
    vq_tensor list[3] = {vq_tensor_2d(a, VQ_F32, 2, 3), vq_tensor_1d(b, VQ_F16, 4),
                         vq_tensor_1d(&c, VQ_I64, 1)};
    vq_safetensors_writer w;
    for (int64_t i = 0; i < n; i++) list[i].name = names[i];
    EXPECT_OK(vq_safetensors_create(&arena, path, list, n, &w));
    for (int64_t i = 0; i < n; i++)
        EXPECT_OK(vq_safetensors_put(&w, i, list[i].data, vq_tensor_bytes(&list[i])));
    EXPECT_OK(vq_safetensors_finish(&w));
}

static const char *const abc[] = {"a", "b", "c"};

static void check_every_file(const char *dir, int64_t files, const char *name)
{
    vq_weights w;
    char path[512];
    snprintf(path, sizeof path, TESTS_DIR "/models/%s", dir);
    EXPECT_OK(vq_weights_open(&arena, path, &w));
    assert_int_equal(w.n_files, files);
    assert_non_null(vq_weights_find(&w, name));
    assert_null(vq_weights_find(&w, "no.such.weight"));
    for (int64_t i = 0; i < w.n; i++) {
        assert_ptr_equal(vq_weights_find(&w, w.tensor[i].name), &w.tensor[i]);
        const vq_map *map = &w.map[w.file[i]];
        assert_true((uint8_t *)w.tensor[i].data >= map->data &&
                    (uint8_t *)w.tensor[i].data + vq_tensor_bytes(&w.tensor[i]) <=
                        map->data + map->bytes);
        assert_int_equal(access(vq_weights_path(&w, &w.tensor[i]), R_OK), 0);
        vq_weights_release(&w, &w.tensor[i]);
    }
    uint64_t fingerprint = vq_weights_fingerprint(&w);
    vq_weights_close(&w);
    EXPECT_OK(vq_weights_open(&arena, path, &w));
    assert_true(vq_weights_fingerprint(&w) == fingerprint);
    vq_weights_close(&w);
}

static void all_kinds_of_folders_open(void **state)
{
    (void)state;
    check_every_file("tiny-llama", 1, "model.embed_tokens.weight");
    check_every_file("rand-llama-f16-sharded", 2, "model.embed_tokens.weight");
    check_every_file("rand-opt-bin", 1, "decoder.embed_tokens.weight");
    check_every_file("rand-llama2-bin", 2, "model.embed_tokens.weight");
    check_every_file("tiny-llama/model.safetensors", 1, "model.embed_tokens.weight");
}

static void tensors_are_found_and_read_again(void **state)
{
    (void)state;
    vq_weights w;
    EXPECT_OK(vq_make_folders("weights-one"));
    write_shard("weights-one/other-name.safetensors", abc, 3, 0);
    EXPECT_OK(vq_weights_open(&arena, "weights-one", &w));
    const vq_tensor *t = vq_weights_find(&w, "a");
    assert_non_null(t);
    assert_non_null(strstr(vq_weights_path(&w, t), "other-name.safetensors"));
    assert_true(((const float *)t->data)[5] == 5.0f);
    vq_weights_release(&w, t);
    assert_true(((const float *)t->data)[5] == 5.0f);
    assert_null(vq_weights_find(&w, "d"));
    vq_weights_close(&w);
}

static void fingerprint_sees_names_and_data(void **state)
{
    (void)state;
    vq_weights w;
    uint64_t seen[3];
    const char *const names[][3] = {{"a", "b", "c"}, {"a", "b", "c"}, {"a", "x", "c"}};
    EXPECT_OK(vq_make_folders("weights-print"));
    for (int i = 0; i < 3; i++) {
        write_shard("weights-print/model.safetensors", names[i], 3, i == 0 ? 0 : 1);
        EXPECT_OK(vq_weights_open(&arena, "weights-print", &w));
        seen[i] = vq_weights_fingerprint(&w);
        vq_weights_close(&w);
    }
    assert_true(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2]);
    /* The same weights in two files are the same weights. */
    EXPECT_OK(vq_make_folders("weights-shards"));
    unlink("weights-shards/m2.safetensors");
    write_shard("weights-shards/m1.safetensors", (const char *const[]){"a", "b", "c"}, 3, 1);
    write_text("weights-shards/model.safetensors.index.json",
               "{\"weight_map\": {\"b\": \"m1.safetensors\", \"c\": \"m1.safetensors\", "
               "\"a\": \"m1.safetensors\"}}");
    EXPECT_OK(vq_weights_open(&arena, "weights-shards", &w));
    assert_true(vq_weights_fingerprint(&w) == seen[1]);
    vq_weights_close(&w);
}

static void open_with_index(const char *index, const char *a, const char *b, const char *c)
{
    vq_weights w;
    write_text("weights-shards/model.safetensors.index.json", index);
    EXPECT_ERROR(vq_weights_open(&arena, "weights-shards", &w), VQ_EFILE, "weights-shards", a, b,
                 c);
    assert_int_equal(w.n_files, 0);
}

static void wrong_folders_are_refused(void **state)
{
    (void)state;
    vq_weights w;
    EXPECT_ERROR(vq_weights_open(&arena, "no/such-model", &w), VQ_EFILE, "no/such-model",
                 "no such folder", "downloaded Hugging Face model");
    EXPECT_OK(vq_make_folders("weights-none"));
    EXPECT_ERROR(vq_weights_open(&arena, "weights-none", &w), VQ_EFILE, "weights-none has 0",
                 "expected model.safetensors", "downloaded Hugging Face model");
    write_text("weights-text.txt", "x");
    EXPECT_ERROR(vq_weights_open(&arena, "weights-text.txt", &w), VQ_EFILE, "weights-text.txt",
                 "neither a folder", "Give");

    EXPECT_OK(vq_make_folders("weights-shards"));
    write_shard("weights-shards/m1.safetensors", abc, 2, 0);
    unlink("weights-shards/m2.safetensors");
    open_with_index("{\"weight_map\": {\"a\": \"m1.safetensors\", \"d\": \"m2.safetensors\", "
                    "\"e\": \"m2.safetensors\"}}",
                    "shard m2.safetensors is missing",
                    "model.safetensors.index.json names it for 2 tensors", "Download it too");
    open_with_index("{\"weight_map\": {\"z\": \"m1.safetensors\"}}",
                    "m1.safetensors: z is not there", "index.json says so", "again");
    open_with_index("{\"weight_map\": {\"a\": \"../m1.safetensors\"}}",
                    "shard \"../m1.safetensors\"", "expected the name of", "again");
    open_with_index("{\"weight_map\": {\"a\": 1}}", "shard of a is no text", "expected", "again");
    open_with_index("{\"weight_map\": {}}", "no \"weight_map\"", "expected", "again");
    open_with_index("{\"weight_map\":\n {\"a\": ", "index.json:2", "expected a JSON index",
                    "again");

    /* A truncated file, as an interrupted download leaves it. */
    vq_map map;
    write_shard("weights-none/model.safetensors", abc, 3, 0);
    EXPECT_OK(vq_file_map("weights-none/model.safetensors", &map));
    EXPECT_OK(vq_file_write("weights-none/cut.safetensors", map.data, map.bytes - 4));
    vq_file_unmap(&map);
    EXPECT_ERROR(vq_weights_open(&arena, "weights-none/cut.safetensors", &w), VQ_EFILE,
                 "cut.safetensors", "truncated", "download it again");
    unlink("weights-none/cut.safetensors");
    unlink("weights-none/model.safetensors");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_kinds_of_folders_open),
        cmocka_unit_test(tensors_are_found_and_read_again),
        cmocka_unit_test(fingerprint_sees_names_and_data),
        cmocka_unit_test(wrong_folders_are_refused),
    };
    return cmocka_run_group_tests(tests, open_arenas, close_arenas);
}
