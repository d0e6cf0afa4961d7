/* test_bad_input - everything that can be wrong with flags, settings, models, tokenizers, texts and
 * folders: one message with file or key, what was found, what was expected and what to do; the
 * right exit code; nothing half-written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mount.h>

#include <cmocka.h>

#include "run.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* A job that would work; what is wrong follows, or lies in the model "m". */
#define SETTINGS                                                                                   \
    "quantize", "--quiet", "--model", "m", "--text", "text.txt", "--K", "16", "--D", "4",          \
        "--nsamples", "2", "--seqlen", "32", "--steps", "2", "--eval-max-windows", "2"
#define JOB SETTINGS, "--out", "run"

/* Words that a message must have, and its code. */
typedef struct expected {
    int code;
    const char *words[4];
} expected;

static int partial(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    const size_t n = strlen(path);
    (void)st, (void)type, (void)ftw;
    if ((n > 4 && !strcmp(path + n - 4, ".tmp")) ||
        (n > 11 && !strcmp(path + n - 12, "/config.json")))
        fail_msg("%s was left", path);
    return 0;
}

/* The last run failed as expected: one message and nothing else, nothing half-written. */
static void expect_refused(const expected *e, const char *what)
{
    if (last.code != e->code)
        fail_msg("%s: exit code %d, expected %d: %s", what, last.code, e->code, last.err);
    assert_string_equal(last.out, "");
    if (strncmp(last.err, "vqround: error: ", 16) != 0 ||
        strchr(last.err, '\n') != last.err + strlen(last.err) - 1)
        fail_msg("%s: more than one error line: %s", what, last.err);
    for (size_t i = 0; i < COUNT(e->words) && e->words[i]; i++)
        if (!strstr(last.err, e->words[i]))
            fail_msg("%s: \"%s\" is not in: %s", what, e->words[i], last.err);
    if (exists("run")) nftw("run", partial, 16, FTW_PHYS);
    remove_all("run");
}

static int prepare(void **state)
{
    if (enter_folder(state) != 0) return -1;
    make_model("rand-llama3-rope", "good");
    copy_folder("good", "m");
    copy_file(CALIB, "text.txt");
    return 0;
}

static void restore_model(const char *from)
{
    remove_all("m");
    copy_folder(from, "m");
}

/* --- the command line and the settings ------------------------------------------------------- */

static void flags(void **state)
{
    (void)state;
    static const struct {
        const char *flag, *value;
        expected e;
    } cases[] = {
        {"--bits", "9", {2, {"--bits = 9", "expected 2, 3, 4 or 8", "quantize --help"}}},
        {"--bits", "", {2, {"--bits", "expected 2, 3, 4 or 8"}}},
        {"--group-size", "0", {2, {"--group-size = 0", "expected -1", "--help"}}},
        {"--group-size", "x", {2, {"--group-size = x", "expected an integer", "--help"}}},
        {"--kmeans.iters", "0", {2, {"--kmeans.iters = 0", "from 1", "--help"}}},
        {"--lr", "nan", {2, {"--lr = nan", "expected a number", "--help"}}},
        {"--lr", "1e999", {2, {"--lr = 1e999", "expected a number", "--help"}}},
        {"--batch-size", "0", {2, {"--batch-size = 0", "expected", "--help"}}},
        {"--eval.seqlen", "1", {2, {"--eval.seqlen = 1", "at least 2", "--help"}}},
        {"--seed", "-1", {2, {"--seed = -1", "expected", "--help"}}},
        {"--method", "gtpq", {2, {"--method = gtpq", "expected vqround", "--help"}}},
        {"--train.rounding", "firm", {2, {"--train.rounding", "firm", "soft or hard"}}},
        {"--lr-schedule", "step", {2, {"--lr-schedule", "constant, cosine or linear"}}},
        {"--recipe", "slow", {2, {"--recipe", "paper, fast or best"}}},
        {"--scale-lr", "2", {2, {"--scale-lr", "0 to 1"}}},
        {"--train.beta_lo", "30", {2, {"train.beta_lo", "beta_hi = 20", "Change one"}}},
        {"--stages", "2", {2, {"--stages 2", "expected", "Leave"}}},
        {"--replicas", "3", {2, {"--replicas 3", "expected", "Leave"}}},
        {"--device", "cuda", {8, {"--device cuda", "expected", "--device cpu"}}},
        {"--stps", "4", {2, {"--stps", "--steps", "--help"}}},
        {"--sed", "4", {2, {"--sed", "--seed", "--help"}}},
        {"--sym=perhaps", NULL, {2, {"--sym = perhaps", "true or false", "--help"}}},
        {"--bits", NULL, {2, {"--bits", "no value", "expected", "--help"}}},
        {"-bits=3", NULL, {2, {"-bits=3", "two dashes", "--bits=3", "--help"}}},
        {"stray", NULL, {2, {"\"stray\" stands alone", "expected flags", "--help"}}},
        {"--K", "8", {2, {"--K", "twice", "Remove one"}}},
        {"--config", "none.yaml", {3, {"none.yaml", "no such file", "expected", "Check"}}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        RUN(JOB, cases[i].flag, cases[i].value);
        expect_refused(&cases[i].e, cases[i].flag);
        assert_false(exists("run"));
    }
    static const struct {
        const char *args[6];
        expected e;
    } lines[] = {
        {{"quantize"}, {2, {"--model is missing", "expected", "Add it", "--help"}}},
        {{"quantize", "--model", "m"}, {2, {"--text is missing", "expected", "Add it"}}},
        {{"quantize", "--model", "m", "--text", "t"}, {2, {"--out is missing", "Add it"}}},
        {{"quantize", "--K", "0"}, {2, {"--K = 0", "from 1", "--help"}}},
        {{"quantize", "--K", "100000000"}, {2, {"--K = 100000000", "to 16777216", "--help"}}},
        {{"quantize", "--D", "65"}, {2, {"--D = 65", "from 1 to 64", "--help"}}},
        {{"quantize", "--D", "0"}, {2, {"--D = 0", "from 1 to 64", "--help"}}},
        {{"quantize", "--seqlen", "1"}, {2, {"--seqlen = 1", "from 2", "--help"}}},
        {{"quantize", "--nsamples", "0"}, {2, {"--nsamples = 0", "from 1", "--help"}}},
        {{"eval", "--K", "4"}, {2, {"--K", "other subcommands", "eval --help"}}},
        {{"inspect"}, {2, {"0 paths", "expected one", "--help"}}},
        {{"inspect", "a", "b"}, {2, {"2 paths", "expected one", "--help"}}},
        {{"inspect", "none"}, {3, {"none", "no such", "expected", "Check"}}},
        {{"inspect", "text.txt"}, {8, {"text.txt", "expected", "Give"}}},
        {{"inspect", "."}, {3, {"config.json", "expected", "Give"}}},
        {{"quntize"}, {2, {"quntize", "no such subcommand", "quantize", "--help"}}},
        {{"evla", "--model", "m"}, {2, {"evla", "eval", "--help"}}},
    };
    for (size_t i = 0; i < COUNT(lines); i++) {
        const char *const *a = lines[i].args;
        RUN(a[0], a[1], a[2], a[3], a[4], a[5]);
        expect_refused(&lines[i].e, a[0]);
    }
}

static void help_and_usage(void **state)
{
    (void)state;
    static const char *const commands[][4] = {
        {"quantize", "--bits 2|3|4|8", "(default 4 bits)", "(default 2048 tokens)"},
        {"eval", "--seqlen N", "(default 2048 tokens)", "--dataset"},
        {"tokens", "--nsamples N", "(default 128 windows)", "--out PATH"},
        {"inspect", "PATH", "--[no-]json", "(default false)"}};
    for (size_t i = 0; i < COUNT(commands); i++) {
        RUN_OK(commands[i][0], "--help");
        assert_string_equal(last.err, "");
        for (int j = 0; j < 4; j++)
            if (!strstr(last.out, commands[i][j]))
                fail_msg("%s --help lacks %s", commands[i][0], commands[i][j]);
        char *help = strdup(last.out);
        RUN_OK(commands[i][0], "-h");
        assert_string_equal(last.out, help);
        free(help);
    }
    finish(start((const char *const[]){VQROUND, NULL}));
    expect_code(2);
    assert_string_equal(last.out, "");
    expect_words("Usage: vqround SUBCOMMAND", "quantize", "inspect", "--help", NULL);
    char *usage = strdup(last.err);
    RUN_OK("--help");
    assert_string_equal(last.out, usage);
    RUN_OK("help", "eval");
    assert_non_null(strstr(last.out, "Usage: vqround eval"));
    free(usage);
    RUN_OK("--version");
    assert_ptr_equal(strstr(last.out, "vqround 0."), last.out);
}

static void settings_files(void **state)
{
    (void)state;
    static const struct {
        const char *yaml;
        expected e;
    } cases[] = {
        {"model: m\nbits: 9\n", {2, {"c.yaml:2 bits = 9", "expected 2, 3, 4 or 8", "--help"}}},
        {"modle: m\n", {2, {"c.yaml:1 modle", "model", "nearest", "--help"}}},
        {"train:\n  setps: 3\n", {2, {"c.yaml:2 train.setps", "train.steps", "--help"}}},
        {"bits: [2, 3]\n", {2, {"c.yaml:1 bits", "expected one value", "--help"}}},
        {"bits: 2\nbits: 3\n", {2, {"c.yaml:2 bits", "twice", "line 1", "Remove"}}},
        {"model: [\n", {2, {"c.yaml:1 model", "expected", "--help"}}},
        {"train: {steps: 3\n", {2, {"c.yaml:", "expected YAML", "Correct"}}},
        {"train:\n\tsteps: 3\n", {2, {"c.yaml:2", "indented by spaces", "Correct"}}},
        {"model: 'm\n", {2, {"c.yaml:", "expected YAML", "Correct"}}},
        {"- bits\n", {2, {"c.yaml:1", "expected lines", "--help"}}},
        {"\xff\xfe\x01", {2, {"c.yaml:", "expected YAML", "Correct"}}},
        {"config: d.yaml\n", {2, {"c.yaml:1 config", "command line only", "Remove"}}},
        {"bits: 3\n---\nbits: 2\n", {2, {"c.yaml:2", "second YAML document", "Remove"}}},
        {"bits: 3\n", {2, {"--model is missing", "expected", "Add it"}}},
        {"train:\n  # steps: 3\n", {2, {"--model is missing", "expected", "Add it"}}},
        {"train: 3\n", {2, {"c.yaml:1 train", "is a section", "such as steps", "--help"}}},
        {"kmeans:\n  by_sign:\n    a: 1\n", {2, {"c.yaml:2 kmeans.by_sign", "expected", "--help"}}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        write_text("c.yaml", cases[i].yaml);
        RUN("quantize", "--config", "c.yaml");
        expect_refused(&cases[i].e, cases[i].yaml);
    }
}

/* --- the model's folder ---------------------------------------------------------------------- */

/* A change of m/config.json: key gets the value (JSON), or goes where that is NULL. */
typedef struct setting {
    const char *key, *value;
    expected e;
} setting;

static void expect_changes_refused(const char *model, const setting *changes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        restore_model(model);
        json_t *config = load_json("m/config.json");
        json_object_del(config, changes[i].key);
        if (changes[i].value)
            json_object_set_new(config, changes[i].key,
                                json_loads(changes[i].value, JSON_DECODE_ANY, NULL));
        assert_int_equal(json_dump_file(config, "m/config.json", 0), 0);
        json_decref(config);
        RUN(JOB);
        expect_refused(&changes[i].e, text("%s: %s", changes[i].key, changes[i].value));
        assert_false(exists("run"));
    }
    restore_model("good");
}

#define CAME "Use the config.json that came with"
static void model_settings(void **state)
{
    (void)state;
    static const setting llama[] = {
        {"architectures", "[\"GPT2LMHeadModel\"]", {8, {"architectures", "GPT2", "supported"}}},
        {"use_sliding_window", "true", {8, {"use_sliding_window", "only full", "Choose"}}},
        {"layer_types", "[\"sliding_attention\"]", {8, {"layer_types", "only", "Choose"}}},
        {"quantization_config", "{\"bits\": 4}", {8, {"quantization_config", "expected", "Use"}}},
        {"rope_scaling",
         "{\"rope_type\": \"yarn\", \"factor\": 2}",
         {8, {"yarn", "only", "Choose"}}},
        {"rope_scaling", "{\"rope_type\": \"llama3\"}", {3, {"rope_scaling", "factor", CAME}}},
        {"rope_scaling", "7", {3, {"rope_scaling", "object", CAME}}},
        {"partial_rotary_factor", "0.5", {8, {"partial_rotary_factor", "0.5", "Choose"}}},
        {"hidden_act", "\"gelu\"", {8, {"hidden_act", "gelu", "silu", "Choose"}}},
        {"hidden_size", NULL, {3, {"config.json", "hidden_size", "expected", CAME}}},
        {"hidden_size", "\"64\"", {3, {"hidden_size", "whole number", CAME}}},
        {"hidden_size", "-64", {3, {"hidden_size", "is -64", "whole number", CAME}}},
        {"hidden_size", "96", {3, {"m: ", "expected", "96", CAME}}},
        {"intermediate_size", "1", {3, {"gate_proj", "expected [1, ", CAME}}},
        {"num_key_value_heads", "3", {3, {"num_key_value_heads", "multiple", CAME}}},
        {"num_hidden_layers", "3", {3, {"layers.2.", "no tensor", CAME}}},
        {"num_hidden_layers", "2000000000", {3, {"num_hidden_layers", "2000000000", CAME}}},
        {"vocab_size", "2147483648", {3, {"embed_tokens", "expected [2147483648", CAME}}},
        {"vocab_size", "1e3", {3, {"vocab_size", "whole number", CAME}}},
        {"tie_word_embeddings", "\"yes\"", {3, {"tie_word", "is \"yes\"", "true or false", CAME}}},
        {"attention_bias", "true", {3, {"q_proj.bias", "no tensor", CAME}}},
        {"rms_norm_eps", "\"x\"", {3, {"rms_norm_eps", "positive number", CAME}}},
        {"max_position_embeddings",
         "16",
         {2, {"seqlen = 32", "max_position_embeddings = 16", "Lower --seqlen"}}},
    };
    static const setting opt[] = {
        {"activation_function", "\"gelu\"", {8, {"activation_function", "gelu", "relu"}}},
        {"enable_bias", "false", {8, {"enable_bias", "only true", "Choose"}}},
        {"word_embed_proj_dim", "16", {3, {"embed_tokens", "expected", CAME}}},
        {"max_position_embeddings", "62", {3, {"embed_positions", "expected [64", CAME}}},
    };
    static const setting qwen[] = {
        {"head_dim", "7", {3, {"head_dim", "even", CAME}}},
        {"head_dim", "32", {3, {"_proj", "expected", CAME}}},
        {"use_sliding_window", "true", {8, {"use_sliding_window", "only full", "Choose"}}},
    };
    expect_changes_refused("good", llama, COUNT(llama));
    make_model("rand-opt-f32", "opt");
    expect_changes_refused("opt", opt, COUNT(opt));
    make_model("rand-qwen3-headdim", "qwen");
    expect_changes_refused("qwen", qwen, COUNT(qwen));
}

static void model_folders(void **state)
{
    (void)state;
    RUN("eval", "--quiet", "--model", "none", "--text", "text.txt");
    expect_refused(&(expected){3, {"none: no such folder", "config.json", "Check"}}, "");
    RUN("eval", "--quiet", "--model", "owner/name", "--text", "text.txt");
    expect_refused(&(expected){3, {"owner/name: no such folder", "hf download owner/name"}}, "");
    RUN("plan", "--quiet", "--model", "owner/name");
    expect_refused(&(expected){3, {"owner/name: no such folder", "hf download owner/name"}}, "");
    if (mkdir("models--a--b", 0777) != 0 || mkdir("models--a--b/snapshots", 0777) != 0)
        fail_msg("mkdir: %s", strerror(errno));
    RUN("eval", "--quiet", "--model", "models--a--b", "--text", "text.txt");
    expect_refused(&(expected){3, {"models--a--b is", "expected", "models--a--b/snapshots"}}, "");
    if (mkdir("made", 0777) != 0) fail_msg("mkdir: %s", strerror(errno));
    copy_folder("good", "made/model");
    RUN("eval", "--quiet", "--model", "made", "--text", "text.txt");
    expect_refused(&(expected){3, {"made is a run's folder", "expected", "Give made/model"}}, "");
    RUN("eval", "--quiet", "--model", "text.txt", "--text", "text.txt");
    expect_refused(&(expected){3, {"text.txt is a file", "expected", "Give the folder"}}, "");
    static const struct {
        const char *file, *contents; /* NULL: removed */
        expected e;
    } cases[] = {
        {"config.json", NULL, {3, {"m: no config.json", "expected", "Check"}}},
        {"config.json", "{\"a\": ", {3, {"m/config.json:1", "not JSON", "again"}}},
        {"config.json", "", {3, {"m/config.json:1", "not JSON", "again"}}},
        {"config.json", "[]", {3, {"m/config.json", "expected a JSON object", "again"}}},
        {"config.json", "{}", {8, {"m/config.json", "architectures", "supported", "Choose"}}},
        {"model.safetensors", NULL, {3, {"m has 0", "expected model.safetensors", "Give"}}},
        {"model.safetensors", "", {3, {"m/model.safetensors", "0 bytes", "expected", "again"}}},
        {"model.safetensors", "not weights at all", {3, {"length", "download it again"}}},
        {"tokenizer.json", NULL, {3, {"m", "tokenizer", "expected"}}},
        {"tokenizer.json", "{\"model\": ", {3, {"m/tokenizer.json", "xpected"}}},
        {"tokenizer.json", "[1]", {3, {"m/tokenizer.json", "xpected"}}},
        {"tokenizer.json", "{\"model\": {\"type\": \"Unigram\"}}", {8, {"tokenizer", "Unigram"}}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        restore_model("good");
        if (cases[i].contents)
            write_text(text("m/%s", cases[i].file), cases[i].contents);
        else
            unlink(text("m/%s", cases[i].file));
        RUN(JOB);
        expect_refused(&cases[i].e, text("%s = %s", cases[i].file, cases[i].contents));
        assert_false(exists("run/tokens.h5"));
    }
    restore_model("good");
    json_t *root = load_json("m/tokenizer.json");
    json_object_set_new(json_object_get(json_object_get(root, "model"), "vocab"), "e",
                        json_integer(160));
    assert_int_equal(json_dump_file(root, "m/tokenizer.json", 0), 0);
    json_decref(root);
    RUN(JOB);
    expect_refused(&(expected){3, {"m: ", "id 160", "expected 0 to 159", "tokenizer files"}}, "id");
    RUN("eval", "--quiet", "--model", "m", "--text", "text.txt", "--seqlen", "32");
    expect_refused(&(expected){3, {"m: ", "id 160", "expected 0 to 159", "tokenizer files"}}, "id");
    restore_model("good");
}

/* --- weights --------------------------------------------------------------------------------- */

#define TENSOR "model.layers.1.mlp.up_proj.weight"

typedef void edit(json_t *header, uint8_t *data, size_t *n);

/* Rewrites a safetensors file after edit changed its header and its n bytes of data. */
static void edit_weights(const char *path, edit *change)
{
    size_t bytes;
    char *file = read_file(path, &bytes);
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--) length = length << 8 | (uint8_t)file[i];
    json_t *header = json_loadb(file + 8, (size_t)length, 0, NULL);
    assert_non_null(header);
    uint8_t *data = (uint8_t *)file + 8 + length;
    size_t n = bytes - 8 - (size_t)length;
    change(header, data, &n);
    char *text_ = json_dumps(header, JSON_COMPACT);
    const size_t text_n = strlen(text_), padded = (text_n + 7) / 8 * 8;
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    for (int i = 0; i < 8; i++) fputc((int)(padded >> 8 * i & 0xff), out);
    fprintf(out, "%-*s", (int)padded, text_);
    fwrite(data, 1, n, out);
    assert_int_equal(fclose(out), 0);
    free(text_);
    json_decref(header);
    free(file);
}

static json_t *entry(json_t *header, const char *name)
{
    json_t *found = json_object_get(header, name);
    if (!found) fail_msg("no %s in the header", name);
    return found;
}

static json_int_t offset_of(json_t *header, const char *name, size_t which)
{
    return json_integer_value(
        json_array_get(json_object_get(entry(header, name), "data_offsets"), which));
}

static void put_bf16(json_t *header, uint8_t *data, const char *name, json_int_t at, uint16_t bits)
{
    uint8_t *to = data + offset_of(header, name, 0) + 2 * at;
    to[0] = (uint8_t)(bits & 0xff);
    to[1] = (uint8_t)(bits >> 8);
}

static void swap_shape(json_t *h, uint8_t *data, size_t *n)
{
    (void)data, (void)n;
    json_t *shape = json_object_get(entry(h, TENSOR), "shape");
    json_array_append(shape, json_array_get(shape, 0));
    json_array_remove(shape, 0);
}

static void make_integers(json_t *h, uint8_t *data, size_t *n)
{
    (void)data, (void)n;
    json_object_set_new(entry(h, TENSOR), "dtype", json_string("I16"));
}

static void make_f8(json_t *h, uint8_t *data, size_t *n)
{
    (void)data, (void)n;
    json_object_set_new(entry(h, TENSOR), "dtype", json_string("F8_E4M3"));
}

static void make_huge(json_t *h, uint8_t *data, size_t *n)
{
    (void)data, (void)n;
    json_object_set_new(entry(h, TENSOR), "shape", json_pack("[I]", (json_int_t)1 << 60));
}

static void make_overlap(json_t *h, uint8_t *data, size_t *n)
{
    (void)data, (void)n;
    const json_int_t first = offset_of(h, TENSOR, 0), end = offset_of(h, TENSOR, 1);
    json_object_set_new(entry(h, TENSOR), "data_offsets", json_pack("[I,I]", first - 16, end - 16));
}

static void point_beyond(json_t *h, uint8_t *data, size_t *n)
{
    (void)data;
    const json_int_t size = offset_of(h, TENSOR, 1) - offset_of(h, TENSOR, 0);
    json_object_set_new(entry(h, TENSOR), "data_offsets",
                        json_pack("[I,I]", (json_int_t)*n, (json_int_t)*n + size));
}

static void drop_data(json_t *h, uint8_t *data, size_t *n)
{
    (void)h, (void)data;
    *n /= 2;
}

static void add_data(json_t *h, uint8_t *data, size_t *n)
{
    (void)h, (void)data;
    *n -= 1;
}

static void rename_tensor(json_t *h, uint8_t *data, size_t *n)
{
    (void)data, (void)n;
    json_object_set(h, "unknown.weight", entry(h, TENSOR));
    json_object_del(h, TENSOR);
}

static void nan_in_linear(json_t *h, uint8_t *data, size_t *n)
{
    (void)n;
    put_bf16(h, data, TENSOR, 5, 0x7fc0);
}

static void infinity_in_linear(json_t *h, uint8_t *data, size_t *n)
{
    (void)n;
    put_bf16(h, data, TENSOR, 5, 0xff80);
}

static void nan_in_norm(json_t *h, uint8_t *data, size_t *n)
{
    (void)n;
    put_bf16(h, data, "model.norm.weight", 3, 0x7fc0);
}

static void weights(void **state)
{
    (void)state;
    static const struct {
        edit *change;
        expected e;
    } cases[] = {
        {swap_shape, {3, {TENSOR " is bf16 [", "expected [", CAME}}},
        {make_integers, {3, {TENSOR " is i16", "expected", "f16 or bf16"}}},
        {make_f8, {8, {"m/model.safetensors", TENSOR, "F8_E4M3", "expected F32"}}},
        {make_huge, {3, {TENSOR, "expected", "1152921504606846976", "ownload"}}},
        {make_overlap, {3, {"m/model.safetensors", "overlaps", "expected", "Download"}}},
        {point_beyond, {3, {TENSOR, "ends at byte", "has only", "truncated"}}},
        {drop_data, {3, {"m/model.safetensors", "ends at byte", "has only", "truncated"}}},
        {add_data, {3, {"m/model.safetensors", "ends at byte", "has only", "truncated"}}},
        {rename_tensor, {3, {"no tensor " TENSOR, "config.json asks", CAME}}},
        {nan_in_linear,
         {7,
          {"model.layers.1.mlp.up_proj", "column 5 is", "nan, expected a finite", "get it again"}}},
        {infinity_in_linear,
         {7, {"model.layers.1.mlp.up_proj", "-inf, expected a finite", "get it again"}}},
        {nan_in_norm, {7, {"m: ", "nan", "expected a finite", "Check the weights"}}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        restore_model("good");
        edit_weights("m/model.safetensors", cases[i].change);
        RUN(JOB);
        expect_refused(&cases[i].e, text("case %zu", i));
        if (cases[i].e.code != 7) continue;
        RUN(JOB, "--no-eval");
        expect_refused(&(expected){7, {"finite", "expected"}}, text("case %zu", i));
    }
    /* A header that says it is longer than the file. */
    restore_model("good");
    size_t n;
    char *file = read_file("m/model.safetensors", &n);
    file[6] = 1;
    write_file("m/model.safetensors", file, n);
    free(file);
    RUN(JOB);
    expect_refused(&(expected){3, {"m/model.safetensors", "length is", "only", "again"}}, "length");
    restore_model("good");
}

/* A head so large that a wrong token costs thousands of nats. */
static void make_loud(json_t *h, uint8_t *data, size_t *n)
{
    (void)n;
    const json_int_t end = offset_of(h, "lm_head.weight", 1);
    for (json_int_t i = offset_of(h, "lm_head.weight", 0); i < end; i += 2) {
        data[i] = (uint8_t)(data[i] & 0x7f);
        data[i + 1] = (uint8_t)((data[i + 1] & 0x80) | 0x48); /* bf16: 2^17 to 2^18 */
    }
}

/* A loss whose exponential is beyond any number is no infinity in a file: JSON has none, and what
 * was found is kept. */
static void huge_losses(void **state)
{
    (void)state;
    restore_model("good");
    edit_weights("m/model.safetensors", make_loud);
    RUN_OK("eval", "--quiet", "--model", "m", "--text", "text.txt", "--seqlen", "32",
           "--max-windows", "2", "--json");
    json_t *row = last_json();
    const double perplexity = json_number_value(json_object_get(row, "perplexity"));
    if (!(perplexity > 1e300)) fail_msg("perplexity %g in: %s", perplexity, last.out);
    json_decref(row);
    RUN_OK(JOB, "--method", "rtn");
    json_t *kept = load_json("run/eval.json");
    assert_true(json_is_number(json_object_get(json_object_get(kept, "rtn"), "perplexity")));
    json_decref(kept);
    remove_all("run");
    restore_model("good");
}

/* --- packed models --------------------------------------------------------------------------- */

#define PACKED "model.layers.1.mlp.up_proj"

static void drop_g_idx(json_t *h, uint8_t *data, size_t *n)
{
    (void)data, (void)n;
    json_object_set(h, "unknown", entry(h, PACKED ".g_idx"));
    json_object_del(h, PACKED ".g_idx");
}

static void drop_values(json_t *h, uint8_t *data, size_t *n)
{
    (void)data, (void)n;
    json_object_set(h, "unknown", entry(h, PACKED ".qweight"));
    json_object_del(h, PACKED ".qweight");
}

static void flatten_values(json_t *h, uint8_t *data, size_t *n)
{
    (void)data, (void)n;
    json_object_set_new(entry(h, PACKED ".qweight"), "shape", json_pack("[i]", 64 / 8 * 88));
}

static void float_zeros(json_t *h, uint8_t *data, size_t *n)
{
    (void)data, (void)n;
    json_object_set_new(entry(h, PACKED ".qzeros"), "dtype", json_string("F32"));
}

static void put_group(json_t *h, uint8_t *data, size_t *n)
{
    (void)n;
    data[offset_of(h, PACKED ".g_idx", 0) + 4 * 9] = 8;
}

static void infinite_scale(json_t *h, uint8_t *data, size_t *n)
{
    (void)n;
    put_bf16(h, data, PACKED ".scales", 3, 0x7c00); /* f16's infinity */
}

static void other_shape(json_t *h, uint8_t *data, size_t *n)
{
    (void)n;
    data[offset_of(h, PACKED ".weight_shape", 0)] = 87;
}

/* Two models of 4 bits in groups of 8 whose files, or whose config.json, are wrong. */
static void packed_models(void **state)
{
    (void)state;
    static const char *const formats[] = {"gptq", "compressed-tensors"};
    for (int f = 0; f < 2; f++) {
        RUN_OK(SETTINGS, "--method", "rtn", "--no-eval", "--bits", "4", "--group-size", "8",
               "--format", formats[f], "--out", formats[f]);
        RUN_OK("eval", "--quiet", "--model", text("%s/model", formats[f]), "--text", "text.txt",
               "--seqlen", "32", "--max-windows", "1");
    }
    static const struct {
        int format;
        edit *change;
        expected e;
    } cases[] = {
        {0, drop_g_idx, {3, {"m: no tensor " PACKED ".g_idx", "expected the parts", CAME}}},
        {0, drop_values, {3, {"m: no tensor " PACKED ".qweight", "expected the parts", CAME}}},
        {0,
         flatten_values,
         {3,
          {PACKED ".qweight is i32 [704]", "expected i32 [8, 88]", "bits and group size", CAME}}},
        {0, float_zeros, {3, {PACKED ".qzeros is f32 [8, 11]", "expected i32 [8, 11]", CAME}}},
        {0, put_group, {3, {"m: " PACKED ".g_idx: column 9 is in group 8", "0 to 7", "again"}}},
        {0, infinite_scale, {7, {"m: ", "expected a finite", "Check the weights"}}},
        {1, other_shape, {3, {PACKED ".weight_shape: it says 87 x 64", "expected 88 x 64"}}},
        {1, drop_data, {3, {"m/model.safetensors", "ends at byte", "has only", "truncated"}}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        restore_model(text("%s/model", formats[cases[i].format]));
        edit_weights("m/model.safetensors", cases[i].change);
        RUN("eval", "--quiet", "--model", "m", "--text", "text.txt", "--seqlen", "32");
        expect_refused(&cases[i].e, text("packed case %zu", i));
    }
    static const struct {
        const char *key, *value;
        expected e;
    } settings[] = {
        {"bits", "8", {3, {"qweight is i32 [8, 64]", "expected i32 [16, 64]", CAME}}},
        {"bits", "5", {8, {"m/config.json", "\"bits\" is 5", "expected 2, 3, 4 or 8", "Use"}}},
        {"group_size", "64", {3, {"expected f16 [1, 64]", "bits and group size", CAME}}},
        {"group_size", "0", {3, {"m/config.json", "\"group_size\" is 0", "expected -1", CAME}}},
        {"quant_method", "\"awq\"", {8, {"m/config.json", "\"awq\"", "expected \"gptq\"", "Use"}}},
    };
    for (size_t i = 0; i < COUNT(settings); i++) {
        restore_model("gptq/model");
        json_t *config = load_json("m/config.json");
        json_object_set_new(json_object_get(config, "quantization_config"), settings[i].key,
                            json_loads(settings[i].value, JSON_DECODE_ANY, NULL));
        assert_int_equal(json_dump_file(config, "m/config.json", 0), 0);
        json_decref(config);
        RUN("eval", "--quiet", "--model", "m", "--text", "text.txt", "--seqlen", "32");
        expect_refused(&settings[i].e, text("%s: %s", settings[i].key, settings[i].value));
    }
    /* What is packed is no model to quantize, to plan for, or to learn from. */
    restore_model("gptq/model");
    const expected packed = {8, {"quantized already", "expected f32, f16", "Use the original"}};
    RUN(JOB);
    expect_refused(&packed, "quantize");
    assert_false(exists("run"));
    RUN("plan", "--quiet", "--model", "m");
    expect_refused(&packed, "plan");
    RUN("quantize", "--quiet", "--model", "good", "--text", "text.txt", "--out", "run",
        "--teacher.model", "m");
    expect_refused(&packed, "teacher");
    restore_model("good");
}

static void shards(void **state)
{
    (void)state;
    make_model("rand-llama-f16-sharded", "sharded");
    const char *const second = "m/model-00002-of-00002.safetensors";
    const char *const index = "m/model.safetensors.index.json";
    restore_model("sharded");
    unlink(second);
    RUN(JOB);
    expect_refused(&(expected){3, {"m: shard model-00002", "missing", "expected", "Download"}}, "");

    static const struct {
        const char *shard; /* for every tensor of the second one */
        expected e;
    } cases[] = {
        {"\"model-00003-of-00002.safetensors\"", {3, {"model-00003", "missing", "Download"}}},
        {"\"../m/model-00002-of-00002.safetensors\"", {3, {"../m", "expected", "ownload"}}},
        {"\"model-00001-of-00002.safetensors\"", {3, {"00001", "index.json", "again"}}},
        {"7", {3, {"index.json", "no text", "expected", "again"}}}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        restore_model("sharded");
        json_t *root = load_json(index), *map = json_object_get(root, "weight_map"), *shard;
        const char *name;
        void *next;
        json_object_foreach_safe(map, next, name, shard)
        {
            if (!strstr(json_string_value(shard), "00002-of")) continue;
            json_object_set_new(map, name, json_loads(cases[i].shard, JSON_DECODE_ANY, NULL));
        }
        assert_int_equal(json_dump_file(root, index, 0), 0);
        json_decref(root);
        RUN(JOB);
        expect_refused(&cases[i].e, cases[i].shard);
    }
    restore_model("sharded");
    write_text(index, "{\"weight_map\": {");
    RUN(JOB);
    expect_refused(&(expected){3, {"index.json:1", "expected a JSON index", "again"}}, "index");
    write_text(index, "{}");
    RUN(JOB);
    expect_refused(&(expected){3, {"index.json", "weight_map", "expected", "again"}}, "index");

    make_model("rand-opt-bin", "bin");
    restore_model("bin");
    size_t n;
    char *file = read_file("m/pytorch_model.bin", &n);
    write_file("m/pytorch_model.bin", file, n / 2);
    RUN(JOB);
    expect_refused(&(expected){3, {"m/pytorch_model.bin", "xpected"}}, "half a .bin");
    write_text("m/pytorch_model.bin", "not a zip file");
    RUN(JOB);
    expect_refused(&(expected){3, {"m/pytorch_model.bin", "xpected"}}, "no .bin");
    free(file);
    restore_model("good");
}

/* --- texts and places ------------------------------------------------------------------------ */

static void texts(void **state)
{
    (void)state;
    mkdir("empty", 0777);
    static const struct {
        const char *name, *contents;
        size_t n;
        expected e;
    } cases[] = {
        {"none.txt", NULL, 0, {3, {"none.txt", "no such file", "expected", "Check"}}},
        {"none.jsonl.gz", NULL, 0, {3, {"none.jsonl.gz", "no such file", "Check"}}},
        {"empty.txt", "", 0, {3, {"empty.txt", "empty", "expected some", "Name"}}},
        {"short.txt", "only this.", 10, {3, {"short.txt", "tokens", "seqlen = 32", "longer"}}},
        {"nul.txt",
         "some text\0and more of it\n",
         24,
         {3, {"nul.txt", "NUL at byte 9", "expected text", "Convert"}}},
        {"rows.jsonl",
         "{\"body\": \"x\"}\n",
         14,
         {3, {"rows.jsonl:1", "no string \"text\"", "expected", "Name"}}},
        {"bad.jsonl",
         "{\"text\": \"x\"}\n{\"text\": \n",
         24,
         {3, {"bad.jsonl:2", "expected one JSON object a line", "Correct"}}},
        {"bad.txt.gz",
         "\x1f\x8b\x08\0\0\0\0\0\0\3garbage",
         17,
         {3, {"bad.txt.gz", "expected a whole compressed file", "Get"}}},
        {"plain.txt.gz",
         "this is no gzip file",
         20,
         {3, {"plain.txt.gz", "expected a whole compressed file", "Get"}}},
        {"bad.txt.zst",
         "this is no zstd file",
         20,
         {3, {"bad.txt.zst", "expected a whole compressed file", "Get"}}},
        {"page.pdf", "%PDF", 4, {2, {"page.pdf", "expected .txt or .jsonl", "Rename"}}},
        {"empty", NULL, 0, {2, {"empty", "no texts", "expected", "Name"}}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        if (cases[i].contents) write_file(cases[i].name, cases[i].contents, cases[i].n);
        RUN("quantize", "--quiet", "--model", "m", "--text", cases[i].name, "--seqlen", "32",
            "--no-eval", "--out", "run");
        expect_refused(&cases[i].e, cases[i].name);
        RUN("eval", "--quiet", "--model", "m", "--text", cases[i].name, "--seqlen", "32");
        expect_refused(&cases[i].e, cases[i].name);
        RUN("tokens", "--quiet", "--model", "m", "--text", cases[i].name, "--seqlen", "32", "--out",
            "run");
        expect_refused(&cases[i].e, cases[i].name);
        RUN(JOB, "--eval-text", cases[i].name);
        expect_refused(&cases[i].e, cases[i].name);
    }
    RUN("eval", "--quiet", "--model", "m", "--text", "text.txt", "--seqlen", "5000");
    expect_refused(&(expected){2, {"seqlen = 5000", "max_position", "512", "Lower"}}, "seqlen");
    RUN(JOB, "--eval.seqlen", "5000");
    expect_refused(&(expected){2, {"seqlen = 5000", "max_position", "512", "Lower"}}, "seqlen");
    RUN("quantize", "--quiet", "--model", "m", "--text", "rows.jsonl", "--calib.mode", "c4",
        "--no-eval", "--seqlen", "32", "--out", "run");
    expect_refused(&(expected){3, {"rows.jsonl:1", "no string"}}, "c4");
    write_text("rows.jsonl", "{\"text\": \"too short\"}\n");
    RUN("quantize", "--quiet", "--model", "m", "--text", "rows.jsonl", "--calib.mode", "c4",
        "--no-eval", "--seqlen", "32", "--out", "run");
    expect_refused(&(expected){3, {"rows.jsonl", "longest", "seqlen = 32", "Give longer"}}, "c4");
}

#define PLACED                                                                                     \
    "quantize", "--quiet", "--model", "m", "--text", "text.txt", "--seqlen", "32", "--out"

/* Work is done; a word that leaves nothing out is said. */
static void words_to_skip(void **state)
{
    (void)state;
    RUN_OK(JOB, "--method", "rtn", "--no-eval", "--skip", "mlpp", "--skip", "v_proj", "--skip",
           "lm_head");
    expect_words("warning: skip: no linear has \"mlpp\"", "expected", "layers.0.self_attn.q_proj",
                 NULL);
    assert_null(strstr(last.err, "v_proj\""));
    assert_null(strstr(last.err, "lm_head"));
    assert_non_null(strstr(last.out, "size of the weights"));
    assert_null(strstr(last.out, "perplexity")); /* a table's head without a row */
    RUN_OK("quantize", "--model", "run/model", "--text", "text.txt", "--nsamples", "2", "--seqlen",
           "32", "--method", "rtn", "--no-eval", "--out", "again");
    expect_words("warning: run/model is a model that vqround has quantized", "the original", NULL);
    remove_all("again");
    remove_all("run");
}

/* Windows that lie on each other are said, and no error. */
static void few_tokens(void **state)
{
    (void)state;
#define TOKENS "tokens", "--model", "m", "--text", "text.txt", "--seqlen", "32", "--out", "few.h5"
    RUN_OK(TOKENS, "--nsamples", "4096");
    expect_words("warning: text.txt: ", "are few for 4096 windows of 32", "a longer text", NULL);
    RUN_OK(TOKENS, "--nsamples", "2");
    assert_null(strstr(last.err, "are few for"));
}

static void places(void **state)
{
    (void)state;
    write_text("file", "x");
    RUN(PLACED, "file");
    expect_refused(&(expected){3, {"file cannot be made", "it is a file", "Choose"}}, "a file");
    RUN(PLACED, "file/run");
    expect_refused(&(expected){3, {"file", "cannot be made as a folder"}}, "below a file");
    RUN(PLACED, "/proc/run");
    expect_refused(&(expected){3, {"/proc/run cannot be made as a folder", "path"}}, "/proc");
    RUN("tokens", "--quiet", "--model", "m", "--text", "text.txt", "--seqlen", "32", "--out",
        "none/tokens.h5");
    expect_refused(&(expected){3, {"none/tokens.h5", "expected", "Check"}}, "no folder");
    char *contents = read_file("file", NULL);
    assert_string_equal(contents, "x");
    free(contents);
    if (mkdir("locked", 0555) != 0) fail_msg("mkdir: %s", strerror(errno));
    if (geteuid() != 0) {
        RUN(PLACED, "locked/run");
        expect_refused(&(expected){3, {"locked/run", "ermission", "Change its permissions"}}, "");
    }
    /* Results that cannot be printed are no success. */
    const char *command = "exec " VQROUND " eval --model m --text text.txt --seqlen 32 --quiet "
                          "--max-windows 2 --json > /dev/full";
    finish(start((const char *const[]){"/bin/sh", "-c", command, NULL}));
    expect_refused(&(expected){4, {"stdout", "could not be written", "Expected", "check"}}, "full");
}

/* A small disk in memory; false where the system does not let us mount one. */
static bool mount_disk(const char *options, unsigned long flags_)
{
    mkdir("disk", 0777);
    if (mount("tmpfs", "disk", "tmpfs", flags_, options) == 0) return true;
    print_message("mount: %s: the tests of full and read-only disks are SKIPPED\n",
                  strerror(errno));
    return false;
}

static void read_only_disk(void **state)
{
    (void)state;
    if (!mount_disk("size=100k", MS_RDONLY)) skip();
    RUN(PLACED, "disk/run");
    umount("disk");
    expect_refused(&(expected){3, {"disk/run", "Read-only", "choose another path"}}, "read-only");
}

/* Fills up in one phase after the other; with room again the run goes on to the same bits. */
static void full_disk(void **state)
{
    (void)state;
    static const char *const sizes[] = {"8k", "16k", "60k", "160k", "180k", "200k", "300k", "400k"};
    remove_all("run");
    RUN_OK(JOB);
    for (size_t i = 0; i < COUNT(sizes); i++) {
        if (!mount_disk(text("size=%s", sizes[i]), 0)) skip();
        RUN(SETTINGS, "--out", "disk/run");
        const int code = last.code;
        char *message = strdup(last.err);
        const bool half = exists("disk/run") && find_name("disk/run", "", ".tmp");
        if (exists("disk/run/model/config.json"))
            expect_same_files("disk/run/model/model.safetensors", "run/model/model.safetensors");
        assert_int_equal(mount("tmpfs", "disk", "tmpfs", MS_REMOUNT, "size=8m"), 0);
        RUN(SETTINGS, "--out", "disk/run");
        const int second = last.code;
        if (second == 0) copy_file("disk/run/model/model.safetensors", "after.safetensors");
        umount("disk");
        if (code == 0) {
            free(message);
            break;
        }
        if (i == 0 && !strstr(message, "disk/run: the run will write")) /* what was planned */
            fail_msg("%s: no warning of the disk: %s", sizes[i], message);
        if (code != 4 || !strstr(message, "disk/run") || !strstr(message, "space") || half)
            fail_msg("%s: exit code %d, half a file: %d: %s", sizes[i], code, half, message);
        free(message);
        assert_int_equal(second, 0);
        expect_same_files("after.safetensors", "run/model/model.safetensors");
    }
}

/* A test that failed may have left its disk. */
static int clean_up(void **state)
{
    umount("disk");
    return leave_folder(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flags),          cmocka_unit_test(help_and_usage),
        cmocka_unit_test(settings_files), cmocka_unit_test(model_settings),
        cmocka_unit_test(model_folders),  cmocka_unit_test(weights),
        cmocka_unit_test(huge_losses),    cmocka_unit_test(words_to_skip),
        cmocka_unit_test(packed_models),  cmocka_unit_test(shards),
        cmocka_unit_test(texts),          cmocka_unit_test(places),
        cmocka_unit_test(few_tokens),     cmocka_unit_test(read_only_disk),
        cmocka_unit_test(full_disk),
    };
    return cmocka_run_group_tests(tests, prepare, clean_up);
}
