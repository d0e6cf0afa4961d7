/* test_tokens - ids of awkward texts, of a whole page of them, and of a line of 1 MiB, against what
 * Hugging Face's tokenizers and sentencepiece give. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <jansson.h>

#include "arenas.h"
#include "expect.h"
#include "fileio.h"
#include "tokenizer.h"

#define GOLDEN TESTS_DIR "/golden/"
#define MODELS TESTS_DIR "/models/"

static void expect_ids(const vq_tokenizer *t, const char *name, const char *text, size_t n,
                       const json_t *expected)
{
    int32_t *ids;
    int64_t count;
    EXPECT_OK(vq_tokenizer_encode(t, &arena, &scratch, text, n, &ids, &count));
    for (int64_t i = 0; i < VQ_MIN(count, (int64_t)json_array_size(expected)); i++) {
        const int64_t id = json_integer_value(json_array_get(expected, (size_t)i));
        if (ids[i] != id)
            fail_msg("%s: id %lld is %d, expected %lld", name, (long long)i, ids[i], (long long)id);
    }
    if (count != (int64_t)json_array_size(expected))
        fail_msg("%s: %lld ids, expected %zu", name, (long long)count, json_array_size(expected));
}

static void check_case(const vq_tokenizer *t, const json_t *one)
{
    const char *hex = json_string_value(json_object_get(one, "hex"));
    const size_t n = strlen(hex) / 2;
    char *text;
    EXPECT_OK(VQ_NEW(&arena, (int64_t)n, &text));
    for (size_t i = 0; i < n; i++)
        text[i] = (char)strtoul((const char[]){hex[2 * i], hex[2 * i + 1], 0}, NULL, 16);
    expect_ids(t, json_string_value(json_object_get(one, "name")), text, n,
               json_object_get(one, "ids"));
}

static void check_long_line(const vq_tokenizer *t, const json_t *root)
{
    const char *piece = json_string_value(json_object_get(root, "long_line_piece"));
    const json_t *expected = json_object_get(root, "long_line");
    const int64_t repeats = json_integer_value(json_object_get(root, "long_line_repeats"));
    const size_t n = strlen(piece);
    char *text, hash[17];
    int32_t *ids;
    int64_t count;
    EXPECT_OK(VQ_NEW(&arena, repeats * (int64_t)n, &text));
    for (int64_t i = 0; i < repeats; i++) memcpy(text + i * (int64_t)n, piece, n);
    EXPECT_OK(vq_tokenizer_encode(t, &arena, &scratch, text, (size_t)repeats * n, &ids, &count));
    assert_int_equal(count, json_integer_value(json_object_get(expected, "count")));
    snprintf(hash, sizeof hash, "%016llx",
             (unsigned long long)vq_hash_bytes(VQ_HASH_START, ids, (size_t)count * sizeof *ids));
    assert_string_equal(hash, json_string_value(json_object_get(expected, "fnv1a64")));
}

static void check_tokenizer(const char *model_dir, const char *name)
{
    char path[512], *torture;
    size_t n;
    vq_tokenizer *t;
    json_error_t error;
    EXPECT_OK(vq_tokenizer_open(&arena, model_dir, &t));
    snprintf(path, sizeof path, GOLDEN "tokens-%s.json", name);
    json_t *root = json_load_file(path, 0, &error);
    if (!root) fail_msg("%s: %s", path, error.text);
    const json_t *cases = json_object_get(root, "cases");
    assert_true(json_array_size(cases) > 0);
    for (size_t i = 0; i < json_array_size(cases); i++) check_case(t, json_array_get(cases, i));
    EXPECT_OK(vq_file_read(&arena, GOLDEN "torture.txt", &torture, &n));
    expect_ids(t, "torture.txt", torture, n, json_object_get(root, "torture"));
    check_long_line(t, root);
    json_decref(root);
    vq_tokenizer_close(t);
}

static void demo(void **state)
{
    (void)state;
    check_tokenizer(ROOT_DIR "/configs/demo-model", "demo");
}

static void tiny_llama_json(void **state)
{
    (void)state;
    check_tokenizer(MODELS "tiny-llama", "tiny-llama-json");
}

static void tiny_llama_model(void **state)
{
    (void)state;
    static const char *const files[] = {"tokenizer.model", "tokenizer_config.json"};
    vq_tokenizer *t;
    EXPECT_OK(vq_make_folders("tokens-llama"));
    for (int i = 0; i < VQ_COUNT(files); i++) {
        char from[512], to[512];
        snprintf(from, sizeof from, MODELS "tiny-llama/%s", files[i]);
        snprintf(to, sizeof to, "tokens-llama/%s", files[i]);
        EXPECT_OK(vq_file_copy(from, to));
    }
    const vq_status status = vq_tokenizer_open(&arena, "tokens-llama", &t);
    if (status == VQ_EUNSUPPORTED) {
        EXPECT_ERROR(status, VQ_EUNSUPPORTED, "tokens-llama/tokenizer.model", "libsentencepiece");
        skip();
    }
    vq_tokenizer_close(t);
    check_tokenizer("tokens-llama", "tiny-llama-model");
}

static void tiny_opt(void **state)
{
    (void)state;
    check_tokenizer(MODELS "tiny-opt", "tiny-opt");
}

static void tiny_qwen3(void **state)
{
    (void)state;
    check_tokenizer(MODELS "tiny-qwen3", "tiny-qwen3");
}

static void smollm2(void **state)
{
    (void)state;
    check_tokenizer(MODELS "smollm2-tokenizer", "smollm2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(demo),     cmocka_unit_test(tiny_llama_json),
        cmocka_unit_test(tiny_opt), cmocka_unit_test(tiny_llama_model),
        cmocka_unit_test(smollm2),  cmocka_unit_test(tiny_qwen3),
    };
    return cmocka_run_group_tests(tests, open_arenas, close_arenas);
}
