/* test_tokenizer - each option of tokenizer.json on a vocabulary of a few letters, the other files
 * of a folder, and what is said about files that are broken or not supported. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#include "arenas.h"
#include "expect.h"
#include "fileio.h"
#include "log.h"
#include "tokenizer.h"

#define MODELS TESTS_DIR "/models/"
#define MARK "\xe2\x96\x81"
#define E_ACUTE "\xc3\xa9"

/* a, b, 1 and 2 join as "ab", "ba" and "12"; <u> stands for what is unknown. */
#define VOCAB                                                                                      \
    "{\"a\":0,\"b\":1,\"ab\":2,\"" MARK "\":3,\"" MARK "a\":4,\"<u>\":5,\"1\":6,\"2\":7,"          \
    "\"12\":8,\"ba\":9,\"" E_ACUTE "\":10,\"aba\":11,\"<0xC3>\":12,\"<0xBC>\":13,\"<s>\":14,"      \
    "\" \":15}"
#define MERGES "[\"a b\",[\"b\",\"a\"],\"1 2\",\"" MARK " a\"]"

/* A tokenizer.json: more fields of the model, and of the whole. */
static vq_status parse(const char *model, const char *whole, vq_tokenizer **t)
{
    char json[4096];
    snprintf(json, sizeof json,
             "{\"model\":{\"type\":\"BPE\",\"vocab\":" VOCAB ",\"merges\":" MERGES "%s}%s}", model,
             whole);
    return vq_tokenizer_parse(&arena, "t.json", json, strlen(json), t);
}

static void expect_text(const vq_tokenizer *t, const char *text, const char *expected)
{
    int32_t *ids;
    int64_t count;
    char found[512] = "";
    EXPECT_OK(vq_tokenizer_encode(t, &arena, &scratch, text, strlen(text), &ids, &count));
    for (int64_t i = 0, n = 0; i < count; i++)
        n += snprintf(found + n, sizeof found - (size_t)n, i ? " %d" : "%d", ids[i]);
    assert_string_equal(found, expected);
}

static void expect_ids(const char *model, const char *whole, const char *text, const char *expected)
{
    vq_tokenizer *t;
    EXPECT_OK(parse(model, whole, &t));
    expect_text(t, text, expected);
    vq_tokenizer_close(t);
}

static void merges_go_by_rank(void **state)
{
    (void)state;
    expect_ids("", "", "abab", "2 2");
    expect_ids("", "", "baba", "1 2 0");
    expect_ids("", "", "", "");
    expect_ids("", "", "aba", "2 0");
    expect_ids(",\"ignore_merges\":true", "", "aba", "11");
    expect_ids(",\"ignore_merges\":true", "", "abab", "2 2");
}

static void unknown_characters(void **state)
{
    (void)state;
    expect_ids("", "", "axyb", "2");
    expect_ids(",\"unk_token\":\"<u>\"", "", "axyb", "0 5 5 1");
    expect_ids(",\"unk_token\":\"<u>\",\"fuse_unk\":true", "", "axyb", "0 5 1");
    expect_ids(",\"unk_token\":\"<u>\",\"byte_fallback\":true", "", "a\xc3\xbcy", "0 12 13 5");
    /* A byte that is not UTF-8 is U+FFFD. */
    expect_ids(",\"unk_token\":\"<u>\"", "", "a\xff", "0 5");
    expect_ids(",\"continuing_subword_prefix\":\"<\",\"end_of_word_suffix\":\"s>\"", "", "ab", "0");
}

static void pre_tokenizers(void **state)
{
    (void)state;
#define PRE(fields) ",\"pre_tokenizer\":{" fields "}"
#define SPLIT(pattern, rest) PRE("\"type\":\"Split\",\"pattern\":" pattern "," rest)
#define ISOLATED "\"behavior\":\"Isolated\""
#define REMOVED "\"behavior\":\"Removed\""
    expect_ids("", PRE("\"type\":\"Digits\",\"individual_digits\":true"), "a12", "0 6 7");
    expect_ids("", PRE("\"type\":\"Digits\""), "ab12", "2 8");
    expect_ids("", SPLIT("{\"String\":\"b\"}", ISOLATED), "abab", "0 1 0 1");
    expect_ids("", SPLIT("{\"String\":\".\"}", ISOLATED), "ab.ab", "2 2");
    expect_ids("", SPLIT("{\"Regex\":\"b\"}", REMOVED), "abab", "0 0");
    expect_ids("", SPLIT("{\"Regex\":\"b\"}", REMOVED ",\"invert\":true"), "abab", "1 1");
    expect_ids("", SPLIT("{\"Regex\":\"x*\"}", ISOLATED), "abxxab", "0 1 0 1");
    expect_ids("", SPLIT("{\"Regex\":\"\\\\p{L}{1}\"}", ISOLATED), "ab", "0 1");
    expect_ids("",
               PRE("\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\"},"
                   "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s\"}," REMOVED "}]"),
               "ab ab12", "2 2 8");
}

static void metaspace(void **state)
{
    (void)state;
#define METASPACE(scheme)                                                                          \
    PRE("\"type\":\"Metaspace\",\"replacement\":\"" MARK "\",\"prepend_scheme\":\"" scheme "\"")
#define CUT ",\"added_tokens\":[{\"id\":14,\"content\":\"<s>\",\"special\":true}]"
    expect_ids("", METASPACE("always") CUT, "a a<s>a", "4 4 14 4");
    expect_ids("", METASPACE("first") CUT, "a a<s>a", "4 4 14 0");
    expect_ids("", METASPACE("never") CUT, "a a<s> a", "0 4 14 4");
    expect_ids("", METASPACE("always"), " a  a", "4 3 4");
    expect_ids("",
               ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\","
               "\"prepend\":\"" MARK "\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},"
               "\"content\":\"" MARK "\"}]}" CUT,
               " a<s>a", "3 4 14 4");
}

static void words_grow_together_where_a_character_vanishes(void **state)
{
    (void)state;
    static const char json[] = "{\"model\":{\"vocab\":{\"" MARK "\":0,\"" MARK MARK
                               "\":1},\"merges\":[[\"" MARK "\",\"" MARK "\"]]}}";
    vq_tokenizer *t;
    EXPECT_OK(vq_tokenizer_parse(&arena, "t.json", json, sizeof json - 1, &t));
    expect_text(t, MARK "x" MARK, "1");
    vq_tokenizer_close(t);
}

static void normalizers(void **state)
{
    (void)state;
#define NFC ",\"normalizer\":{\"type\":\"NFC\"}"
    expect_ids("", NFC, "ae\xcc\x81z", "0 10");
    expect_ids("", "", "ae\xcc\x81z", "0");
    expect_ids("",
               ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"xx\"},"
               "\"content\":\"b\"}",
               "axxx", "2");
}

static void added_tokens(void **state)
{
    (void)state;
#define ADDED(text, fields) ",\"added_tokens\":[{\"content\":\"" text "\"" fields "}]"
    vq_tokenizer *t;
    expect_ids("", ADDED("new", ""), "anewb", "0 16 1");
    expect_ids("", ADDED("ba", ""), "abab", "0 9 1");
    expect_ids("", ADDED("new", ",\"lstrip\":true"), "a  newb", "0 16 1");
    expect_ids("", ADDED("new", ",\"rstrip\":true"), "anew\n b", "0 16 1");
    expect_ids("", ADDED("new", ",\"single_word\":true"), "anew new.", "0 15 16");
    expect_ids("", NFC ADDED("e\\u0301", ",\"normalized\":true"), "a" E_ACUTE "b", "0 16 1");
    expect_ids("", NFC ADDED("e\\u0301", ",\"normalized\":false"), "a" E_ACUTE "b", "0 10 1");
    expect_ids("", ",\"added_tokens\":[{\"content\":\"n\"},{\"content\":\"ne\"}]", "nene n",
               "17 17 15 16");
    /* The second token takes the space that the first one took already. */
    static const char *const normalized[] = {"true", "false"};
    for (int i = 0; i < 2; i++) {
        char whole[256];
        snprintf(whole, sizeof whole,
                 ",\"added_tokens\":[{\"content\":\"new\",\"rstrip\":true,\"normalized\":%s},"
                 "{\"content\":\" b\",\"normalized\":%s}]",
                 normalized[i], normalized[i]);
        expect_ids("", whole, "anew ba", "0 16 17 0");
    }
    EXPECT_OK(parse("", ADDED("new", ""), &t));
    assert_non_null(strstr(vq_tokenizer_kind(t), "tokenizer.json"));
    vq_tokenizer_close(t);
}

static void templates(void **state)
{
    (void)state;
#define TEMPLATE(single)                                                                           \
    "\"type\":\"TemplateProcessing\",\"single\":[" single "],\"special_tokens\":{\"<s>\":{"        \
    "\"ids\":[14]},\"two\":{\"ids\":[6,7]}}"
#define SPECIAL(name) "{\"SpecialToken\":{\"id\":\"" name "\"}}"
#define TEXT "{\"Sequence\":{\"id\":\"A\"}}"
#define POST(fields) ",\"post_processor\":{" fields "}"
    expect_ids("", POST(TEMPLATE(SPECIAL("<s>") "," SPECIAL("two") "," TEXT "," SPECIAL("two"))),
               "ab", "14 6 7 2 6 7");
    expect_ids("", POST(TEMPLATE(SPECIAL("<s>") "," TEXT)), "", "14");
    expect_ids("",
               POST("\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{" TEMPLATE(
                   SPECIAL("<s>") "," TEXT) "}]"),
               "a", "14 0");
}

#define EXPECT_REFUSED(model, whole, code, ...)                                                    \
    do {                                                                                           \
        vq_tokenizer *refused;                                                                     \
        EXPECT_ERROR(parse(model, whole, &refused), code, "t.json", __VA_ARGS__);                  \
        assert_null(refused);                                                                      \
    } while (0)

static void what_is_not_supported_is_named(void **state)
{
    (void)state;
    static const char unigram[] = "{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}";
    vq_tokenizer *t;
    EXPECT_ERROR(vq_tokenizer_parse(&arena, "t.json", unigram, sizeof unigram - 1, &t),
                 VQ_EUNSUPPORTED, "t.json", "model.type = \"Unigram\"", "\"BPE\"", "Use a model");
    EXPECT_REFUSED(",\"dropout\":0.1", "", VQ_EUNSUPPORTED, "model.dropout = 0.1", "null");
    EXPECT_REFUSED("", ",\"normalizer\":{\"type\":\"Lowercase\"}", VQ_EUNSUPPORTED,
                   "normalizer = {\"type\":\"Lowercase\"}", "NFC", "Use a model");
    EXPECT_REFUSED("",
                   ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},"
                   "\"content\":\"\"}",
                   VQ_EUNSUPPORTED, "normalizer.pattern", "Regex", "String");
    EXPECT_REFUSED("", PRE("\"type\":\"Whitespace\""), VQ_EUNSUPPORTED, "pre_tokenizer",
                   "Whitespace", "ByteLevel");
    EXPECT_REFUSED("",
                   PRE("\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},"
                       "{\"type\":\"Digits\"}]"),
                   VQ_EUNSUPPORTED, "Digits", "ByteLevel as the last step");
    EXPECT_REFUSED("", SPLIT("{\"String\":\"a\"}", "\"behavior\":\"MergedWithNext\""),
                   VQ_EUNSUPPORTED, "MergedWithNext", "Isolated");
    EXPECT_REFUSED("", SPLIT("{\"Regex\":\"[a-z&&[^b]]\"}", ISOLATED), VQ_EUNSUPPORTED, "&&",
                   "Oniguruma", "Write the pattern");
    EXPECT_REFUSED("", SPLIT("{\"Regex\":\"a{1,2}+\"}", ISOLATED), VQ_EUNSUPPORTED, "}+");
    EXPECT_REFUSED("", SPLIT("{\"Regex\":\"(a\"}", ISOLATED), VQ_EUNSUPPORTED, "PCRE2 says", "(a",
                   "Write the pattern");
    EXPECT_REFUSED(
        "", PRE("\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"always\""),
        VQ_EUNSUPPORTED, "replacement", MARK);
    EXPECT_REFUSED("", METASPACE("sometimes"), VQ_EUNSUPPORTED, "sometimes", "first");
    EXPECT_REFUSED("", POST("\"type\":\"BertProcessing\""), VQ_EUNSUPPORTED, "post_processor",
                   "BertProcessing", "TemplateProcessing");
    EXPECT_REFUSED("", POST(TEMPLATE(TEXT "," TEXT)), VQ_EUNSUPPORTED, "post_processor.single",
                   "once");
}

static void what_is_malformed_is_named(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"", "t.json:"},
        {"{\"model\":", "expected JSON"},
        {"{}", "model is missing"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{}}}", "model.merges"},
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}}", "vocab"},
        {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "the id of \"a\""},
        {"{\"model\":{\"vocab\":{\"a\":1.5},\"merges\":[]}}", "the id of \"a\""},
        {"{\"model\":{\"vocab\":{\"a\":4000000000},\"merges\":[]}}", "the id of \"a\""},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", "merge 0 is \"a\""},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a a\"]}}", "merge 0"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", "model.merges"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", "not in the vocabulary"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"fuse_unk\":1}}", "fuse_unk"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"u\"}}",
         "model.unk_token = \"u\""},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":{}}", "added_tokens"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"added_tokens\":[1]}", "added_tokens"},
    };
    for (int i = 0; i < VQ_COUNT(bad); i++) {
        vq_tokenizer *t;
        EXPECT_ERROR(vq_tokenizer_parse(&arena, "t.json", bad[i][0], strlen(bad[i][0]), &t),
                     VQ_EFILE, "t.json", bad[i][1], "expected", "again");
    }
    EXPECT_REFUSED("", POST(TEMPLATE(SPECIAL("gone") "," TEXT)), VQ_EFILE,
                   "post_processor.special_tokens");
    EXPECT_REFUSED("", SPLIT("{}", ISOLATED), VQ_EFILE, "pre_tokenizer.pattern");
    EXPECT_REFUSED("", ",\"normalizer\":{\"type\":\"Prepend\"}", VQ_EFILE, "normalizer.prepend");
}

/* An empty folder, whatever an earlier run left in it. */
static void new_folder(const char *dir)
{
    static const char *const names[] = {
        "tokenizer.json",          "vocab.json",       "merges.txt", "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json"};
    EXPECT_OK(vq_make_folders(dir));
    for (int i = 0; i < VQ_COUNT(names); i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
}

/* Writes files into it, {name, contents}..., ended by NULL. */
static void put_files(const char *dir, ...)
{
    va_list files;
    va_start(files, dir);
    for (const char *name; (name = va_arg(files, const char *));) {
        const char *text = va_arg(files, const char *);
        char path[256];
        snprintf(path, sizeof path, "%s/%s", dir, name);
        EXPECT_OK(vq_file_write(path, text, strlen(text)));
    }
    va_end(files);
}

static void expect_folder(const char *dir, const char *text, const char *expected)
{
    vq_tokenizer *t;
    EXPECT_OK(vq_tokenizer_open(&arena, dir, &t));
    expect_text(t, text, expected);
    vq_tokenizer_close(t);
}

#define LETTERS "{\"a\":0,\"b\":1,\"ab\":2,\"\\u0120\":3,\"</s>\":4}"
#define LETTER_MERGES "#version: 0.2\na b\r\n"

static void other_files_name_special_tokens(void **state)
{
    (void)state;
    new_folder("tok-json");
    put_files("tok-json", "tokenizer.json",
              "{\"model\":{\"vocab\":" VOCAB ",\"merges\":" MERGES "}}", "tokenizer_config.json",
              "{\"add_bos_token\":true,\"model_max_length\":1000000000000000019884624838656,"
              "\"bos_token\":\"<s>\",\"pad_token\":{\"content\":\"P\",\"lstrip\":true},"
              "\"additional_special_tokens\":[\"X\"],\"eos_token\":null}",
              NULL);
    expect_folder("tok-json", "a  P<s>X", "0 16 14 17");

    new_folder("tok-gpt2");
    put_files("tok-gpt2", "vocab.json", LETTERS, "merges.txt", LETTER_MERGES, NULL);
    expect_folder("tok-gpt2", "ab a<|endoftext|></s>", "2 3 0 5");
    put_files("tok-gpt2", "special_tokens_map.json",
              "{\"bos_token\":\"</s>\",\"eos_token\":\"</s>\",\"unk_token\":\"</s>\"}",
              "added_tokens.json", "{\"N\":6,\"M\":5}", "tokenizer_config.json",
              "{\"add_bos_token\":true,\"tokenizer_class\":\"GPT2TokenizerFast\","
              "\"add_prefix_space\":true}",
              NULL);
    expect_folder("tok-gpt2", "abMN</s>", "4 3 2 5 6 4");
    put_files("tok-gpt2", "tokenizer_config.json",
              "{\"added_tokens_decoder\":{\"10\":{\"content\":\"b\"},\"9\":{\"content\":\"c\"}},"
              "\"bos_token\":\"a\",\"eos_token\":\"a\",\"unk_token\":\"a\","
              "\"add_bos_token\":true,\"add_eos_token\":true}",
              NULL);
    expect_folder("tok-gpt2", "cbM", "0 5 1 0");
    put_files("tok-gpt2", "tokenizer_config.json", "{\"add_bos_token\":true,\"bos_token\":null}",
              "special_tokens_map.json", "{}", NULL);
    expect_folder("tok-gpt2", "b", "1");
}

static void qwen_without_a_tokenizer_json(void **state)
{
    (void)state;
    new_folder("tok-qwen");
    put_files("tok-qwen", "vocab.json", "{\"1\":0,\"11\":1,\"\\u00c3\":2,\"\\u00a9\":3}",
              "merges.txt", "1 1\n", "config.json", "{\"model_type\":\"qwen3\"}", NULL);
    expect_folder("tok-qwen", "11e\xcc\x81<|endoftext|>", "0 0 2 3 4");
}

static void broken_folders_say_why(void **state)
{
    (void)state;
    vq_tokenizer *t;
    new_folder("tok-none");
    EXPECT_ERROR(vq_tokenizer_open(&arena, "tok-none", &t), VQ_EFILE, "tok-none",
                 "no tokenizer there", "tokenizer.json", "Copy");
    new_folder("tok-half");
    put_files("tok-half", "vocab.json", LETTERS, NULL);
    EXPECT_ERROR(vq_tokenizer_open(&arena, "tok-half", &t), VQ_EFILE, "tok-half/merges.txt");
    put_files("tok-half", "merges.txt", "a b c\n", NULL);
    EXPECT_ERROR(vq_tokenizer_open(&arena, "tok-half", &t), VQ_EFILE, "tok-half/merges.txt",
                 "merge 0");
    put_files("tok-half", "merges.txt", LETTER_MERGES, "tokenizer_config.json",
              "{\"tokenizer_class\":\"BertTokenizer\"}", NULL);
    EXPECT_ERROR(vq_tokenizer_open(&arena, "tok-half", &t), VQ_EUNSUPPORTED,
                 "tok-half/tokenizer_config.json", "BertTokenizer", "GPT2Tokenizer", "Save");
    put_files("tok-half", "tokenizer_config.json", "{", NULL);
    EXPECT_ERROR(vq_tokenizer_open(&arena, "tok-half", &t), VQ_EFILE,
                 "tok-half/tokenizer_config.json:1", "expected JSON");
    new_folder("tok-spm");
    put_files("tok-spm", "tokenizer.model", "this is no model", NULL);
    assert_int_not_equal(vq_tokenizer_open(&arena, "tok-spm", &t), VQ_OK);
    assert_non_null(strstr(vq_error_message(), "tok-spm/tokenizer.model"));
    assert_non_null(strstr(vq_error_message(), "libsentencepiece"));
}

/* A word of 300,000 letters, a run of spaces, marks in a row: nothing may be quadratic. */
static void long_runs_are_not_quadratic(void **state)
{
    (void)state;
    enum { n = 300000 };
    char *text;
    int32_t *ids;
    int64_t count;
    vq_tokenizer *t;
    EXPECT_OK(VQ_NEW(&arena, n, &text));
    EXPECT_OK(vq_tokenizer_open(&arena, MODELS "tiny-qwen3", &t));
    const double start_s = vq_seconds();
    for (int kind = 0; kind < 3; kind++) {
        static const char *const runs[] = {"ab", "  ", "\xcc\x81\xcc\xa3"};
        for (size_t i = 0; i < n; i++) text[i] = runs[kind][i % strlen(runs[kind])];
        EXPECT_OK(vq_tokenizer_encode(t, &arena, &scratch, text, n, &ids, &count));
        assert_true(count > 0);
    }
    /* Milliseconds, or many minutes. */
    assert_true(vq_seconds() - start_s < 60);
    vq_tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_go_by_rank),
        cmocka_unit_test(unknown_characters),
        cmocka_unit_test(pre_tokenizers),
        cmocka_unit_test(metaspace),
        cmocka_unit_test(words_grow_together_where_a_character_vanishes),
        cmocka_unit_test(normalizers),
        cmocka_unit_test(added_tokens),
        cmocka_unit_test(templates),
        cmocka_unit_test(what_is_not_supported_is_named),
        cmocka_unit_test(what_is_malformed_is_named),
        cmocka_unit_test(other_files_name_special_tokens),
        cmocka_unit_test(qwen_without_a_tokenizer_json),
        cmocka_unit_test(broken_folders_say_why),
        cmocka_unit_test(long_runs_are_not_quadratic),
    };
    return cmocka_run_group_tests(tests, open_arenas, close_arenas);
}
