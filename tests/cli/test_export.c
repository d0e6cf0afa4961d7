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
                                  "--config",
                                  "small.yaml",
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
                                  "--threads",
                                  "2",
                                  "--kmeans.iters",
                                  "5",
                                  "--quiet",
                                  "--format",
                                  format,
                                  "--out",
                                  out,
                                  "--eval-max-windows",
                                  "2"};
    const char *args[MAX_ARGS];
    int n = 0;
    write_text("small.yaml", "train: {steps: 3, lr: 0.05}\n"); /* the flags may say otherwise */
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

/* How many weights of the linears differ between two models; n_packed, out: linears of the second
 * that are packed; total, out: weights. */
static int64_t count_differing(const char *one, const char *other, int *n_packed, int64_t *total)
{
    vq_arena arena, scratch;
    vq_model a, b;
    int64_t differing = 0;
    *n_packed = 0, *total = 0;
    EXPECT_OK(vq_arena_init(&arena, "test", (size_t)1 << 30));
    EXPECT_OK(vq_arena_init(&scratch, "test scratch", (size_t)1 << 30));
    EXPECT_OK(vq_model_open(&arena, one, &a));
    EXPECT_OK(vq_model_open(&arena, other, &b));
    EXPECT_OK(vq_model_unpack(&arena, &scratch, &a, 0, a.config.N));
    EXPECT_OK(vq_model_unpack(&arena, &scratch, &b, 0, b.config.N));
    for (int64_t slot = 0; slot < a.config.N * VQ_N_KINDS; slot++) {
        const vq_tensor *x = &linear_at(&a, slot)->weight, *y = &linear_at(&b, slot)->weight;
        const size_t bytes = vq_dtype_bytes(x->dtype);
        if (!linear_at(&a, slot)->exists) continue;
        *n_packed += linear_at(&b, slot)->packed != NULL;
        assert_true(x->dtype == y->dtype && vq_tensor_same_shape(x, y));
        for (int64_t i = 0; i < vq_tensor_count(x); i++, ++*total)
            differing += memcmp((const uint8_t *)x->data + (size_t)i * bytes,
                                (const uint8_t *)y->data + (size_t)i * bytes, bytes) != 0;
    }
    vq_model_close(&a);
    vq_model_close(&b);
    vq_arena_close(&scratch);
    vq_arena_close(&arena);
    return differing;
}

/* Every linear of both models has the same bits; returns how many the second has packed. */
static int expect_same_weights(const char *one, const char *other)
{
    int n_packed;
    int64_t total;
    const int64_t differing = count_differing(one, other, &n_packed, &total);
    if (differing > 0)
        fail_msg("%s: %lld of %lld weights differ from those of %s", other, (long long)differing,
                 (long long)total, one);
    return n_packed;
}

/* A packed model: everything that a loader asks for, and what export has printed about it. */
static void check_folder(const char *model, const char *source, const char *format, int bits,
                         int group, bool symmetric)
{
    const bool is_gptq = !strcmp(format, "gptq");
    json_t *printed = last_json();
    RUN_OK("inspect", model, "--json");
    json_t *found = last_json(), *config = load_json(text("%s/config.json", model));
    const json_t *how = json_object_get(config, "quantization_config");
    assert_true(json_number(found, "bytes") == json_number(printed, "bytes"));
    assert_string_equal(json_string_value(json_object_get(printed, "format")), format);
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
    json_decref(found);
    json_decref(printed);
}

/* A run's own model is packed, with the bytes that its results say. */
static void check_run(const char *run, const char *source, const char *format)
{
    json_t *results = load_json(text("%s/results.json", run));
    RUN_OK("inspect", text("%s/model", run), "--json");
    json_t *found = last_json();
    assert_true(json_number(found, "bytes") == json_number(results, "model_bytes/after"));
    assert_true(json_number(found, "bytes") < json_number(results, "model_bytes/before"));
    assert_string_equal(json_string_value(json_object_get(found, "format")), format);
    assert_true(exists(text("%s/tokenizer.json", source)) ==
                exists(text("%s/model/tokenizer.json", run)));
    json_decref(found);
    json_decref(results);
}

/* A run exported in every format gives the same model, to the last bit of its weights and of its
 * perplexity. */
static void packed_is_dense(void **state)
{
    (void)state;
    static const struct {
        const char *model;
        int bits, group;
        bool symmetric;
        const char *method, *init;
        int n_packed; /* of gptq and of compressed-tensors */
        const char *more;
    } cases[] = {
        {MODELS "tiny-qwen3", 3, -1, true, "rtn", "rtn", 28, NULL},
        {MODELS "tiny-opt", 2, 32, false, "gptq", "rtn", 24, NULL},
        /* 688 is no multiple of 32: down keeps its columns, at 3 bits the whole MLP stays dense */
        {MODELS "tiny-llama", 8, 32, true, "vqround", "rtn", 24, NULL},
        {MODELS "tiny-llama", 3, 32, false, "rtn", "rtn", 16, NULL},
        {ROOT_DIR "/configs/demo-model", 2, -1, false, "rtn", "rtn", 24, NULL},
        {MODELS "rand-llama-gqa-tied", 8, -1, false, "lora", "rtn", 14, NULL}, /* f32 */
        {MODELS "tiny-qwen3", 2, 64, false, "vqround", "gptq", 28, "--learn-scale"},
        {MODELS "tiny-qwen3", 3, -1, false, "adaround", "rtn", 28, "--learn-scale"},
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
        remove_all("run");
        remove_all("to");
        quantize(model, settings, formats[i % 2], "run");
        expect_code(0);
        check_run("run", model, formats[i % 2]);
        RUN_OK("export", "--run", "run", "--out", "to/dense", "--quiet");
        assert_string_equal(last.err, "");
        const double expected = perplexity_of("to/dense");
        for (int f = 0; f < 2; f++) {
            const char *to = text("to/%s", formats[f]);
            RUN_OK("export", "--run", "run", "--format", formats[f], "--out", to, "--json");
            check_folder(to, model, formats[f], cases[i].bits, cases[i].group, cases[i].symmetric);
            const int n = expect_same_weights("to/dense", to);
            if (n != cases[i].n_packed)
                fail_msg("case %zu, %s: %d linears are packed", i, formats[f], n);
            assert_true(perplexity_of(to) == expected);
        }
        expect_same_files(text("to/%s/model.safetensors", formats[i % 2]),
                          "run/model/model.safetensors");
    }
}

/* The groups of a linear's columns, from a gptq file; whether they are runs. */
static bool has_runs(const char *model, const char *linear, int32_t group)
{
    vq_arena arena;
    vq_weights w;
    bool runs = true;
    EXPECT_OK(vq_arena_init(&arena, "test", (size_t)64 << 20));
    EXPECT_OK(vq_weights_open(&arena, model, &w));
    const vq_tensor *t = vq_weights_find(&w, text("%s.g_idx", linear));
    assert_non_null(t);
    for (int32_t i = 0; i < t->dim[0]; i++)
        runs = runs && ((const int32_t *)t->data)[i] == i / group;
    vq_weights_close(&w);
    vq_arena_close(&arena);
    return runs;
}

/* Act-order with groups found on the way: each column says its group. A logit for each weight that
 * is not trained gives GPTQ's own integers again, but for exact ties. */
static void scattered_groups(void **state)
{
    (void)state;
    const char *const *const settings[] = {
        LIST("--bits", "3", "--group-size", "64", "--gptq.act_order", "--gptq.static_groups", "off",
             "--method", "gptq", "--gptq.propagate", "float"),
        LIST("--bits", "3", "--group-size", "64", "--gptq.act_order", "--gptq.static_groups", "off",
             "--method", "adaround", "--init", "gptq", "--steps", "0"),
        LIST("--bits", "3", "--group-size", "64", "--gptq.act_order", "--gptq.static_groups", "off",
             "--init", "gptq", "--learn-scale")};
    static const char *const runs[] = {"scattered-gptq", "scattered-own", "scattered-codes"};
    for (int i = 0; i < 3; i++) {
        quantize(MODELS "tiny-qwen3", settings[i], "gptq", runs[i]);
        expect_code(0);
        RUN_OK("export", "--run", runs[i], "--out", "scattered-dense", "--quiet");
        const char *model = text("%s/model", runs[i]);
        assert_int_equal(expect_same_weights("scattered-dense", model), 28);
        assert_true(perplexity_of(model) == perplexity_of("scattered-dense"));
        assert_false(has_runs(model, "model.layers.1.mlp.up_proj", 64));
        json_t *config = load_json(text("%s/config.json", model));
        const json_t *how = json_object_get(config, "quantization_config");
        assert_true(json_is_true(json_object_get(how, "desc_act")));
        json_decref(config);
    }
    int n_packed;
    int64_t total;
    assert_true(1e4 * (double)count_differing("scattered-gptq/model", "scattered-own/model",
                                              &n_packed, &total) <
                (double)total);
    /* Static groups stay runs, and say so. */
    quantize(MODELS "tiny-qwen3",
             LIST("--bits", "3", "--group-size", "64", "--gptq.act_order", "--method", "gptq"),
             "gptq", "static");
    expect_code(0);
    assert_true(has_runs("static/model", "model.layers.1.mlp.up_proj", 64));
    json_t *config = load_json("static/model/quantize_config.json");
    assert_true(json_is_false(json_object_get(config, "desc_act")));
    json_decref(config);
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
        {"compressed-tensors", {"--bits", "4"}, {"tensors before 0.18", "vLLM does too"}},
        {"compressed-tensors", {"--bits", "3"}, {"transformers does not load it"}},
        {"compressed-tensors", {"--bits", "2"}, {"vLLM does not", "2 and 3 bits", "--sym"}},
        {"compressed-tensors", {"--bits", "3", "--sym"}, {"unpacks it; vLLM from 2026 on"}},
        {"gptq",
         {"--bits", "4", "--group-size", "128"},
         {"model.layers.0.mlp.down_proj stays dense, as in 4 of 4 layers", "groups of 128", "688"}},
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
        const char *model, *format, *settings[6];
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
        {"tiny-opt",
         "compressed-tensors",
         {"--method", "gptq", "--gptq.static_groups=off", "--gptq.act_order", "--group-size=64"},
         2,
         {"--gptq.static_groups = off", "scattered", "expected on or auto", "export gptq"}},
        {"tiny-opt", "awq", {NULL}, 2, {"--format = awq", "dense, gptq or", "--help"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        quantize(text(MODELS "%s", cases[i].model), cases[i].settings, cases[i].format, "no");
        const char *const *w = cases[i].words;
        EXPECT_FAILED(cases[i].code, w[0], w[1], w[2], w[3]);
        assert_false(exists("no"));
    }
}

/* A run that is not there, not finished, of another model; a place that is in use. */
static void bad_runs(void **state)
{
    (void)state;
    make_model("rand-llama3-rope", "source");
    quantize("source", LIST("--bits", "4"), "dense", "good");
    expect_code(0);
    RUN("export", "--run", "good");
    EXPECT_FAILED(2, "--out is missing", "expected", "Add it");
    RUN("export", "--out", "to");
    EXPECT_FAILED(2, "--run is missing", "expected", "Add it");
    RUN("export", "--run", "none", "--out", "to");
    EXPECT_FAILED(3, "none: there is no config.yaml", "expected the folder", "Check");
    RUN("export", "--run", "good/model", "--out", "to");
    EXPECT_FAILED(3, "good/model: there is no config.yaml", "expected the folder", "Check");
    RUN("export", "--run", "good", "--out", "source");
    EXPECT_FAILED(2, "--out source", "the model to read", "expected", "Choose another");
    RUN("export", "--run", "good", "--out", "good");
    EXPECT_FAILED(2, "--out good", "the run to read", "expected", "Choose another");
    RUN("export", "--run", "good", "--model", MODELS "tiny-opt", "--out", "to");
    EXPECT_FAILED(3, "good/init-0000-0000.h5", "the model's weights", "expected");
    assert_false(exists("to/config.json"));
    make_model("rand-llama3-rope", "stranger");
    RUN("export", "--run", "good", "--out", "stranger");
    EXPECT_FAILED(2, "--out stranger", "vqround.json", "expected a new folder", "another --out");
    expect_same_files("stranger/model.safetensors", "source/model.safetensors");
    expect_same_files("stranger/config.json", "source/config.json");

    RUN_OK("export", "--run", "good", "--format", "gptq", "--out", "to");
    expect_words("export   gptq_v2", NULL);
    assert_non_null(strstr(last.out, "to: gptq, "));
    assert_true(rename("source", "moved") == 0);
    RUN("export", "--run", "good", "--out", "to");
    EXPECT_FAILED(3, "source: no such folder", "expected", "Check");
    RUN_OK("export", "--run", "good", "--model", "moved", "--out", "to", "--quiet");
    assert_false(exists("to/quantize_config.json"));
    expect_same_files("to/model.safetensors", "good/model/model.safetensors");
    expect_same_files("to/config.json", "moved/config.json");

    const char *checkpoint = find_name("good", "ckpt-", ".h5");
    assert_true(rename(checkpoint, "kept.h5") == 0);
    RUN("export", "--run", "good", "--model", "moved", "--out", "to");
    EXPECT_FAILED(3, "good: ", "step 0 of 3", "expected a finished run", "quantize command again");
    assert_true(rename("kept.h5", checkpoint) == 0);
    unlink("good/init-0001-0000.h5");
    RUN("export", "--run", "good", "--model", "moved", "--out", "to");
    EXPECT_FAILED(3, "good: ", "init-*.h5 lack", "expected a finished run",
                  "quantize command again");
    unlink("good/tokens.h5");
    RUN("export", "--run", "good", "--model", "moved", "--out", "to");
    EXPECT_FAILED(3, "good/tokens.h5", "expected");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_is_dense),   cmocka_unit_test(scattered_groups),
        cmocka_unit_test(engines_are_named), cmocka_unit_test(another_format_later),
        cmocka_unit_test(refused),           cmocka_unit_test(bad_runs)};
    return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
