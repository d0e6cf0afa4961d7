/* test_calib - which windows are chosen, against Python's random; how data sets are joined. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>

#include "arenas.h"
#include "calib.h"
#include "expect.h"
#include "rng.h"

static vq_tokenizer *tokenizer;
static json_t *golden;

static int64_t number(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

static int64_t item(const json_t *array, int64_t i)
{
    return json_integer_value(json_array_get(array, (size_t)i));
}

static vq_text text_of(vq_document *documents, int64_t n)
{
    vq_text text = {documents, n, 0};
    for (int64_t i = 0; i < n; i++) text.n_bytes += documents[i].n_bytes;
    return text;
}

/* n tokens: in this vocabulary a digit is one. */
static vq_document digits(int64_t n)
{
    char *data;
    EXPECT_OK(VQ_NEW(&arena, n, &data));
    for (int64_t i = 0; i < n; i++) data[i] = (char)('0' + i * i % 7);
    return (vq_document){data, n, "digits.txt", true};
}

static void expect_window(const vq_windows *w, int64_t i, const vq_text *text, int64_t document,
                          int64_t offset)
{
    int32_t *ids;
    int64_t count;
    const vq_document *d = &text->documents[document];
    assert_int_equal(w->document[i], document);
    assert_int_equal(w->offset[i], offset);
    EXPECT_OK(vq_tokenizer_encode(tokenizer, &arena, &scratch, d->data, (size_t)d->n_bytes, &ids,
                                  &count));
    assert_int_equal(count, d->n_bytes);
    assert_memory_equal(w->ids + i * w->T, ids + offset, (size_t)w->T * sizeof *ids);
}

static void python_draws_the_same(void **state)
{
    (void)state;
    const json_t *streams = json_object_get(golden, "stream");
    vq_py_random random;
    assert_true(json_array_size(streams) > 0);
    for (size_t i = 0; i < json_array_size(streams); i++) {
        const json_t *one = json_array_get(streams, i), *starts = json_object_get(one, "starts");
        vq_py_random_seed(&random, (uint64_t)number(one, "seed"));
        for (int64_t k = 0; k < (int64_t)json_array_size(starts); k++)
            assert_int_equal(
                vq_py_randint(&random, 0, number(one, "tokens") - number(one, "seqlen") - 1),
                item(starts, k));
    }
}

static void stream_windows_are_the_references(void **state)
{
    (void)state;
    const json_t *streams = json_object_get(golden, "stream");
    for (size_t i = 0; i < json_array_size(streams); i++) {
        const json_t *one = json_array_get(streams, i), *starts = json_object_get(one, "starts");
        if (number(one, "tokens") > 10000) continue;
        vq_document document = digits(number(one, "tokens"));
        vq_text text = text_of(&document, 1);
        vq_windows w;
        const int64_t n = (int64_t)json_array_size(starts);
        EXPECT_OK(vq_calib_windows(&arena, &scratch, tokenizer, &text, VQ_CALIB_WIKITEXT2, n,
                                   number(one, "seqlen"), (uint64_t)number(one, "seed"), &w));
        for (int64_t k = 0; k < n; k++) expect_window(&w, k, &text, 0, item(starts, k));
    }
    assert_int_equal(scratch.used_bytes, 0);
}

static void document_windows_are_the_references(void **state)
{
    (void)state;
    const json_t *cases = json_object_get(golden, "documents");
    assert_true(json_array_size(cases) > 0);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *one = json_array_get(cases, i), *lengths = json_object_get(one, "lengths"),
                     *windows = json_object_get(one, "windows");
        const int64_t n_documents = (int64_t)json_array_size(lengths),
                      n = (int64_t)json_array_size(windows);
        vq_document *documents;
        vq_windows w;
        EXPECT_OK(VQ_NEW(&arena, n_documents, &documents));
        for (int64_t k = 0; k < n_documents; k++) documents[k] = digits(item(lengths, k));
        vq_text text = text_of(documents, n_documents);
        EXPECT_OK(vq_calib_windows(&arena, &scratch, tokenizer, &text, VQ_CALIB_C4, n,
                                   number(one, "seqlen"), (uint64_t)number(one, "seed"), &w));
        for (int64_t k = 0; k < n; k++) {
            const json_t *window = json_array_get(windows, (size_t)k);
            expect_window(&w, k, &text, item(window, 0), item(window, 1));
        }
    }
    assert_int_equal(scratch.used_bytes, 0);
}

static void short_texts_say_by_how_much(void **state)
{
    (void)state;
    vq_document documents[2] = {digits(9), digits(10)};
    vq_text one = text_of(&documents[1], 1), two = text_of(documents, 2);
    vq_windows w;
    EXPECT_ERROR(
        vq_calib_windows(&arena, &scratch, tokenizer, &one, VQ_CALIB_WIKITEXT2, 4, 10, 0, &w),
        VQ_EFILE, "digits.txt", "has 10 tokens", "seqlen = 10", "lower --seqlen");
    EXPECT_ERROR(vq_calib_windows(&arena, &scratch, tokenizer, &two, VQ_CALIB_C4, 4, 10, 0, &w),
                 VQ_EFILE, "2 documents", "has 10 tokens", "seqlen = 10", "calib.mode");
    EXPECT_ERROR(vq_eval_windows(&arena, &scratch, tokenizer, &one, VQ_DATASET_STREAM, 11, 0, &w),
                 VQ_EFILE, "digits.txt", "10 tokens to evaluate on", "seqlen = 11", "longer text");
    EXPECT_ERROR(
        vq_calib_windows(&arena, &scratch, tokenizer, &one, VQ_CALIB_WIKITEXT2, 0, 10, 0, &w),
        VQ_EUSAGE, "nsamples = 0", "expected");
    EXPECT_OK(vq_calib_windows(&arena, &scratch, tokenizer, &one, VQ_CALIB_WIKITEXT2, 4, 9, 0, &w));
}

/* The joined text of a data set has the ids of `expected`. */
static void expect_joined(vq_dataset dataset, const vq_text *text, const char *expected)
{
    int32_t *ids;
    int64_t count;
    vq_windows w;
    EXPECT_OK(
        vq_tokenizer_encode(tokenizer, &arena, &scratch, expected, strlen(expected), &ids, &count));
    EXPECT_OK(vq_eval_windows(&arena, &scratch, tokenizer, text, dataset, 1, 0, &w));
    assert_int_equal(w.n, count);
    assert_memory_equal(w.ids, ids, (size_t)count * sizeof *ids);
}

static void data_sets_are_joined_as_the_reference_does(void **state)
{
    (void)state;
    static const char lines[] = " = A = \n \n b c \n";
    vq_document file = {lines, sizeof lines - 1, "f.txt", false};
    vq_document rows[] = {{"x", 1, "r", true}, {"", 0, "r", true}, {"y\n", 2, "r", true}};
    const vq_text one = text_of(&file, 1), three = text_of(rows, 3);
    expect_joined(VQ_DATASET_STREAM, &one, lines);
    expect_joined(VQ_DATASET_STREAM, &three, "x\n\n\n\ny\n");
    expect_joined(VQ_DATASET_WIKITEXT2, &one, " = A = \n\n\n\n\n b c \n");
    expect_joined(VQ_DATASET_WIKITEXT2, &three, "x\n\n\n\ny\n");
    expect_joined(VQ_DATASET_PTB, &one, "= A =  b c");
    expect_joined(VQ_DATASET_C4, &one, lines);
    expect_joined(VQ_DATASET_C4, &three, "x  y\n");
}

static void c4_is_cut(void **state)
{
    (void)state;
    enum { n = 1101 };
    vq_document documents[n];
    for (int i = 0; i < n; i++) documents[i] = (vq_document){"7", 1, "r", true};
    const vq_text text = text_of(documents, n);
    vq_windows w;
    EXPECT_OK(vq_eval_windows(&arena, &scratch, tokenizer, &text, VQ_DATASET_C4, 1, 0, &w));
    assert_int_equal(w.n, 256);
    /* " 7" is two tokens here, so 1,100 documents are 2,199. */
    EXPECT_OK(vq_eval_windows(&arena, &scratch, tokenizer, &text, VQ_DATASET_C4, 2199, 0, &w));
    assert_int_equal(w.n, 1);
    EXPECT_ERROR(vq_eval_windows(&arena, &scratch, tokenizer, &text, VQ_DATASET_C4, 2200, 0, &w),
                 VQ_EFILE, "2199 tokens to evaluate on");
}

static void evaluation_takes_whole_windows(void **state)
{
    (void)state;
    vq_document document = digits(107);
    const vq_text text = text_of(&document, 1);
    vq_windows w, again;
    EXPECT_OK(vq_eval_windows(&arena, &scratch, tokenizer, &text, VQ_DATASET_STREAM, 10, 0, &w));
    assert_int_equal(w.n, 10);
    assert_int_equal(w.T, 10);
    for (int64_t i = 0; i < w.n; i++) expect_window(&w, i, &text, 0, 10 * i);
    EXPECT_OK(
        vq_eval_windows(&arena, &scratch, tokenizer, &text, VQ_DATASET_STREAM, 10, 0, &again));
    assert_true(vq_windows_hash(&w) == vq_windows_hash(&again));
    again.ids[99] ^= 1;
    assert_true(vq_windows_hash(&w) != vq_windows_hash(&again));
    EXPECT_OK(
        vq_eval_windows(&arena, &scratch, tokenizer, &text, VQ_DATASET_STREAM, 10, 3, &again));
    assert_int_equal(again.n, 3);
    assert_true(vq_windows_hash(&w) != vq_windows_hash(&again));
}

static int setup(void **state)
{
    json_error_t error;
    golden = json_load_file(TESTS_DIR "/golden/windows.json", 0, &error);
    return !golden || open_arenas(state) ||
           vq_tokenizer_open(&arena, TESTS_DIR "/models/tiny-qwen3", &tokenizer) != VQ_OK;
}

static int teardown(void **state)
{
    json_decref(golden);
    vq_tokenizer_close(tokenizer);
    return close_arenas(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(python_draws_the_same),
        cmocka_unit_test(stream_windows_are_the_references),
        cmocka_unit_test(document_windows_are_the_references),
        cmocka_unit_test(short_texts_say_by_how_much),
        cmocka_unit_test(data_sets_are_joined_as_the_reference_does),
        cmocka_unit_test(c4_is_cut),
        cmocka_unit_test(evaluation_takes_whole_windows),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
