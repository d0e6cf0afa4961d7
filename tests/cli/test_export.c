/* test_export - models in packed formats: read back they are the dense export to the last bit, they
 * say what they are, and what a format cannot hold is dense or refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expect.h"
#include "model.h"
#include "run.h"

#define MAX_ARGS 64
#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

static const char *const formats[] = {"gptq", "compressed-tensors"};

/* A job of less than a second with these settings. */
static void quantize(const char *model, const char *const *settings, const char *format,
                     const char *out)
{
    const char *const common[] = {VQROUND,
                                  "quantize",
                                  "--model",
                                  model,
                                  "--text",
                                  CALIB,
                                  "--eval-text",
                                  HELD_OUT,
                                  "--K",
                                  "32",
                                  "--D",
                                  "4",
                                  "--nsamples",
                                  "2",
                                  "--seqlen",
                                  "32",
                                  "--steps",
                                  "3",
                                  "--lr",
                                  "0.05",
                                  "--threads",
                                  "2",
                                  "--quiet",
                                  "--kmeans.iters",
                                  "5",
                                  "--format",
                                  format,
                                  "--out",
                                  out,
                                  "--eval-max-windows",
                                  "2"};
    const char *args[MAX_ARGS];
    int n = 0;
    for (size_t i = 0; i < sizeof common / sizeof *common; i++) args[n++] = common[i];
    for (; *settings; settings++) args[n++] = *settings;
    args[n] = NULL;
    finish(start(args));
}

static double perplexity_of(const char *model)
{
    RUN_OK("eval", "--model", model, "--text", HELD_OUT, "--seqlen", "32", "--max-windows", "4",
           "--json", "--quiet");
    json_t *row = last_json();
    const double perplexity = json_number(row, "perplexity");
    json_decref(row);
    return perplexity;
}

static const vq_linear *linear_at(const vq_model *m, int64_t slot)
{
    return &m->layers[slot / VQ_N_KINDS].linear[slot % VQ_N_KINDS];
}

/* Every linear of both models has the same bits; returns how many the second has packed. */
static int expect_same_weights(const char *dense, const char *packed)
{
    vq_arena arena, scratch;
    vq_model a, b;
    int n = 0;
    EXPECT_OK(vq_arena_init(&arena, "test", (size_t)1 << 30));
    EXPECT_OK(vq_arena_init(&scratch, "test scratch", (size_t)1 << 30));
    EXPECT_OK(vq_model_open(&arena, dense, &a));
    EXPECT_OK(vq_model_open(&arena, packed, &b));
    EXPECT_OK(vq_model_unpack(&arena, &scratch, &b, 0, b.config.N));
    for (int64_t slot = 0; slot < a.config.N * VQ_N_KINDS; slot++) {
        const vq_linear *x = linear_at(&a, slot), *y = linear_at(&b, slot);
        if (!x->exists) continue;
        assert_null(x->packed);
        n += y->packed != NULL;
        assert_true(x->weight.dtype == y->weight.dtype);
        assert_true(vq_tensor_same_shape(&x->weight, &y->weight));
        if (memcmp(x->weight.data, y->weight.data, vq_tensor_bytes(&x->weight)) != 0)
            fail_msg("%s: %s differs from that of %s", packed, x->name, dense);
    }
    vq_model_close(&a);
    vq_model_close(&b);
    vq_arena_close(&scratch);
    vq_arena_close(&arena);
    return n;
}

/* The packed model of a run: bytes as the run says, and everything that a loader asks for. */
static void check_packed(const char *run, const char *source, const char *format, int bits,
                         int group, bool symmetric)
{
    const bool is_gptq = !strcmp(format, "gptq");
    const char *model = text("%s/model", run);
    RUN_OK("inspect", model, "--json");
    json_t *found = last_json(), *results = load_json(text("%s/results.json", run));
    json_t *config = load_json(text("%s/config.json", model));
    const json_t *how = json_object_get(config, "quantization_config");
    assert_true(json_number(found, "bytes") == json_number(results, "model_bytes/after"));
    assert_string_equal(json_string_value(json_object_get(found, "format")), format);
    assert_true(json_number(found, "bits") == bits && json_number(found, "group_size") == group);
    assert_true(json_is_true(json_object_get(found, "symmetric")) == symmetric);
    assert_string_equal(json_string_value(json_object_get(how, "quant_method")), format);
    assert_int_equal(exists(text("%s/quantize_config.json", model)), is_gptq);
    assert_null(find_name(model, "", ".tmp"));
    if (is_gptq) {
        json_t *beside = load_json(text("%s/quantize_config.json", model));
        assert_true(json_equal(beside, (json_t *)(uintptr_t)how));
        assert_string_equal(json_string_value(json_object_get(how, "checkpoint_format")),
                            symmetric ? "gptq" : "gptq_v2");
        assert_true(json_number(how, "bits") == bits);
        json_decref(beside);
    } else {
        assert_true(json_number(how, "config_groups/group_0/weights/num_bits") == bits);
    }
    json_object_del(config, "quantization_config"); /* the rest is the model's */
    json_t *original = load_json(text("%s/config.json", source));
    assert_true(json_equal(config, original));
    json_decref(original);
    json_decref(config);
    json_decref(results);
    json_decref(found);
}

/* Dense and packed runs of the same settings give the same model, to the last bit of its weights
 * and of its perplexity. */
static void packed_is_dense(void **state)
{
    (void)state;
    static const struct {
        const char *model;
        int bits, group;
        bool symmetric;
        const char *method, *init;
        int n_packed; /* of gptq and of compressed-tensors */
    } cases[] = {
        {MODELS "tiny-qwen3", 4, 64, false, "vqround", "rtn", 28},
        {MODELS "tiny-qwen3", 3, -1, true, "rtn", "rtn", 28},
        {MODELS "tiny-opt", 2, 32, false, "gptq", "rtn", 24},
        {MODELS "tiny-opt", 8, -1, true, "vqround", "gptq", 24},
        /* 688 is no multiple of 32: down keeps its columns, at 3 bits the whole MLP stays dense */
        {MODELS "tiny-llama", 4, 32, true, "vqround", "rtn", 24},
        {MODELS "tiny-llama", 3, 32, false, "rtn", "rtn", 16},
        {ROOT_DIR "/configs/demo-model", 2, -1, false, "rtn", "rtn", 24},
        {MODELS "rand-llama-gqa-tied", 8, -1, false, "vqround", "rtn", 14}, /* f32 */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *const *settings =
            LIST("--bits", text("%d", cases[i].bits), "--group-size", text("%d", cases[i].group),
                 cases[i].symmetric ? "--sym" : "--no-sym", "--method", cases[i].method, "--init",
                 cases[i].init);
        const char *model = cases[i].model;
        if (strstr(model, "rand-")) {
            make_model("rand-llama-gqa-tied", "m");
            model = "m";
        }
        remove_all("dense");
        quantize(model, settings, "dense", "dense");
        expect_code(0);
        const double expected = perplexity_of("dense/model");
        for (int f = 0; f < 2; f++) {
            remove_all("packed");
            quantize(model, settings, formats[f], "packed");
            expect_code(0);
            const int n = expect_same_weights("dense/model", "packed/model");
            if (n != cases[i].n_packed)
                fail_msg("case %zu, %s: %d linears are packed", i, formats[f], n);
            assert_true(perplexity_of("packed/model") == expected);
            check_packed("packed", model, formats[f], cases[i].bits, cases[i].group,
                         cases[i].symmetric);
        }
    }
}

/* What is printed: who loads the result, and what stays dense. */
static void engines_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *format, *settings[5], *words[3];
    } cases[] = {
        {"gptq", {"--bits", "4", "--sym"}, {"gptq: GPTQModel", "vLLM does too"}},
        {"gptq", {"--bits", "4"}, {"gptq_v2: GPTQModel", "vLLM does not", "--sym"}},
        {"gptq", {"--bits", "2", "--sym"}, {"gptq: ", "vLLM does not", "4 and 8 bits"}},
        {"gptq",
         {"--bits", "8", "--sym", "--group-size", "16"},
         {"vLLM does not", "groups of 32, 64 or 128"}},
        {"compressed-tensors", {"--bits", "4"}, {"compressed-tensors", "vLLM does too"}},
        {"compressed-tensors", {"--bits", "2"}, {"vLLM does not", "2 and 3 bits", "--sym"}},
        {"compressed-tensors", {"--bits", "3", "--sym"}, {"vLLM from 2026 on"}},
        {"gptq",
         {"--bits", "4", "--group-size", "128"},
         {"dense, in 4 of 4 layers: model.layers.0.mlp.down_proj", "groups of 128", "688"}},
        {"compressed-tensors",
         {"--bits", "4", "--skip", "k_proj"},
         {"model.layers.0.self_attn.q_proj", "together with model.layers.0.self_attn.k_proj"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *const *s = cases[i].settings;
        remove_all("run");
        RUN_OK("quantize", "--model", MODELS "tiny-llama", "--text", CALIB, "--method", "rtn",
               "--no-eval", "--nsamples", "2", "--seqlen", "32", "--out", "run", "--format",
               cases[i].format, s[0], s[1], s[2], s[3], s[4]);
        expect_words(cases[i].words[0], cases[i].words[1], cases[i].words[2], NULL);
    }
    /* The linears that are dense are in the lists of each kind of loader. */
    json_t *config = load_json("run/model/config.json");
    const json_t *ignore =
        json_object_get(json_object_get(config, "quantization_config"), "ignore");
    assert_int_equal(json_array_size(ignore), 1 + 3 * 4);
    assert_string_equal(json_string_value(json_array_get(ignore, 1)),
                        "model.layers.0.self_attn.q_proj");
    json_decref(config);
}

static void another_format_later(void **state)
{
    (void)state;
    const char *const *settings = LIST("--bits", "4");
    quantize(MODELS "tiny-opt", settings, "gptq", "again");
    expect_code(0);
    copy_folder("again/model", "first");
    quantize(MODELS "tiny-opt", settings, "dense", "again");
    expect_code(0);
    assert_false(exists("again/model/quantize_config.json"));
    assert_int_equal(expect_same_weights("again/model", "first"), 24);
    expect_same_files("again/model/config.json", MODELS "tiny-opt/config.json");
}

static void refused(void **state)
{
    (void)state;
    static const struct {
        const char *model, *format, *settings[5];
        int code;
        const char *words[4];
    } cases[] = {
        {"tiny-opt",
         "gptq",
         {"--no-grid.include_zero"},
         2,
         {"--no-grid.include_zero = false", "expected true", "--format", "export dense"}},
        {"tiny-opt",
         "gptq",
         {"--grid.scale_dtype", "f32"},
         2,
         {"--grid.scale_dtype = f32", "expected auto", "export dense"}},
        {"tiny-qwen3",
         "compressed-tensors",
         {"--grid.scale_dtype", "f16"},
         2,
         {"--grid.scale_dtype = f16", "bf16", "expected auto or bf16", "Leave it out"}},
        {"tiny-opt",
         "compressed-tensors",
         {"--grid.scale_dtype", "f32"},
         2,
         {"--grid.scale_dtype = f32", "f16", "expected auto or f16", "Leave it out"}},
        {"tiny-opt",
         "gptq",
         {"--group-size", "48"},
         8,
         {"no linear", "groups of 48", "Expected one", "export dense"}},
        {"tiny-opt", "awq", {NULL}, 2, {"--format = awq", "dense, gptq or", "--help"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        quantize(text(MODELS "%s", cases[i].model), cases[i].settings, cases[i].format, "no");
        const char *const *w = cases[i].words;
        EXPECT_FAILED(cases[i].code, w[0], w[1], w[2], w[3]);
        assert_false(exists("no"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_is_dense), cmocka_unit_test(engines_are_named),
        cmocka_unit_test(another_format_later), cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
