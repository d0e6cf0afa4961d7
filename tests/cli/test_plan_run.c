/* test_plan_run - `vqround plan` from config.json alone, for every file in configs/; the plan
 * against the memory that a job took; and a job that does not fit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "run.h"

static void change_size(const char *path, const char *key, int64_t value)
{
    json_t *root = load_json(path);
    json_object_set_new(root, key, json_integer(value));
    assert_int_equal(json_dump_file(root, path, JSON_INDENT(2)), 0);
    json_decref(root);
}

static void test_needs_no_weights(void **state)
{
    (void)state;
    assert_int_equal(mkdir("shapes", 0777), 0);
    copy_file(MODELS "tiny-opt/config.json", "shapes/config.json");
    RUN_OK("plan", "--model", "shapes", "--seqlen", "64", "--ranks", "4", "--nodes", "2",
           "--stages", "2", "--batch-size", "4", "--plan.gflops", "100");
    static const char *const words[] = {"4 ranks on 2 nodes: 2 stages x 2 replicas",
                                        "Memory by rank", "pipeline idle", "100 GFLOP/s a rank",
                                        "\nDisk\n  init "};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strstr(last.out, words[i])) fail_msg("\"%s\" is not in: %s", words[i], last.out);
    RUN_OK("plan", "--model", "shapes", "--seqlen", "64", "--ranks", "2", "--plan.gflops", "100",
           "--json");
    json_t *plan = last_json();
    assert_int_equal(json_array_size(json_object_get(plan, "ranks")), 2);
    assert_true(json_number_value(json_object_get(json_object_get(plan, "step"), "forward_bytes")) >
                0);
    json_decref(plan);
#define IN_STAGES                                                                                  \
    "plan", "--model", "shapes", "--seqlen", "64", "--ranks", "2", "--plan.gflops", "100"
    RUN_OK(IN_STAGES);
    assert_non_null(strstr(last.out, "% (with more --slices less)"));
    RUN_OK(IN_STAGES, "--slices", "8");
    assert_null(strstr(last.out, "--slices"));
    RUN("plan", "--model", "shapes", "--ranks", "2", "--nodes", "3");
    EXPECT_FAILED(2, "--nodes 3", "2 ranks", "--ranks");
}

static void test_configs(void **state)
{
    (void)state;
    int n = 0;
    DIR *dir = opendir(ROOT_DIR "/configs");
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir));) {
        if (!strstr(e->d_name, ".yaml")) continue;
        n++;
        RUN_OK("plan", "--config", text(ROOT_DIR "/configs/%s", e->d_name), "--model",
               MODELS "tiny-llama", "--seqlen", "64", "--plan.gflops", "100");
    }
    closedir(dir);
    assert_true(n > 10);
}

/* --- a model that is large enough to be seen -------------------------------------------------- */

#define E 256
#define F 1024
#define N 12
#define V 98

/* A tensor of the file that is being made: small f16 numbers of both signs. */
static void add_tensor(json_t *header, FILE *data, size_t *at, const char *name, int64_t rows,
                       int64_t cols)
{
    const size_t n = (size_t)(rows * cols), bytes = 2 * n;
    json_object_set_new(header, name,
                        json_pack("{s:s, s:o, s:[I, I]}", "dtype", "F16", "shape",
                                  rows > 1 ? json_pack("[I, I]", (json_int_t)rows, (json_int_t)cols)
                                           : json_pack("[I]", (json_int_t)cols),
                                  "data_offsets", (json_int_t)*at, (json_int_t)(*at + bytes)));
    uint16_t *value = malloc(bytes);
    assert_non_null(value);
    uint32_t r = 1;
    for (size_t i = 0; i < n; i++) {
        r = r * 1664525u + 1013904223u;
        /* 1 in a norm; in a matrix 2^-6 to 2^-5, or its negative. */
        value[i] = rows == 1 ? 0x3c00 : (uint16_t)(0x2400 | (r >> 22) | (r >> 31) << 15);
    }
    assert_int_equal(fwrite(value, 1, bytes, data), bytes);
    free(value);
    *at += bytes;
}

static void make_large_model(const char *dir)
{
    json_t *header = json_object();
    size_t at = 0;
    make_model("tiny-llama", dir);
    write_tokenizer(text("%s/tokenizer.json", dir));
    const char *config = text("%s/config.json", dir);
    change_size(config, "hidden_size", E);
    change_size(config, "intermediate_size", F);
    change_size(config, "num_hidden_layers", N);
    change_size(config, "num_attention_heads", E / 32);
    change_size(config, "num_key_value_heads", E / 32);
    change_size(config, "vocab_size", V);
    change_size(config, "max_position_embeddings", 4096);
    FILE *data = fopen("data", "wb");
    assert_non_null(data);
    static const char *const square[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                         "self_attn.o_proj"};
    for (int l = 0; l < N; l++) {
        for (int k = 0; k < 4; k++)
            add_tensor(header, data, &at, text("model.layers.%d.%s.weight", l, square[k]), E, E);
        add_tensor(header, data, &at, text("model.layers.%d.mlp.gate_proj.weight", l), F, E);
        add_tensor(header, data, &at, text("model.layers.%d.mlp.up_proj.weight", l), F, E);
        add_tensor(header, data, &at, text("model.layers.%d.mlp.down_proj.weight", l), E, F);
        add_tensor(header, data, &at, text("model.layers.%d.input_layernorm.weight", l), 1, E);
        add_tensor(header, data, &at, text("model.layers.%d.post_attention_layernorm.weight", l), 1,
                   E);
    }
    add_tensor(header, data, &at, "model.embed_tokens.weight", V, E);
    add_tensor(header, data, &at, "lm_head.weight", V, E);
    add_tensor(header, data, &at, "model.norm.weight", 1, E);
    assert_int_equal(fclose(data), 0);

    char *json = json_dumps(header, JSON_COMPACT), *bytes = read_file("data", NULL);
    uint64_t length = (strlen(json) + 7) / 8 * 8;
    FILE *file = fopen(text("%s/model.safetensors", dir), "wb");
    assert_non_null(file);
    fwrite(&length, 1, sizeof length, file);
    fprintf(file, "%-*s", (int)length, json);
    assert_int_equal(fwrite(bytes, 1, at, file), at);
    assert_int_equal(fclose(file), 0);
    free(json);
    free(bytes);
    json_decref(header);
}

static double first_number(const json_t *root, const char *array, const char *key)
{
    const json_t *item = json_array_get(json_object_get(root, array), 0);
    return json_number_value(key ? json_object_get(item, key) : item);
}

/* Within 15 %, where activations are most of it. */
static void test_peak_is_as_planned(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* the sanitizer's own memory is most of it */
#endif
    const char *settings[] = {
        "--model",   "large",          "--text",  CALIB,       "--K",        "16",
        "--seqlen",  "1024",           "--steps", "1",         "--nsamples", "1",
        "--no-eval", "--kmeans.iters", "1",       "--threads", "2",          "--json"};
    const int n = (int)(sizeof settings / sizeof *settings);
    const char *plan_args[32] = {VQROUND, "plan", "--plan.gflops", "100"};
    const char *job_args[32] = {VQROUND, "quantize", "--out", "run"};
    memcpy(plan_args + 4, settings, sizeof settings);
    memcpy(job_args + 4, settings, sizeof settings);
    plan_args[n + 4] = job_args[n + 4] = NULL;
    make_large_model("large");
    finish(start(plan_args));
    expect_code(0);
    json_t *plan = last_json();
    finish(start(job_args));
    expect_code(0);
    expect_words("plan ", "of memory at most", (const char *)NULL);
    json_t *results = last_json();
    const double planned = first_number(plan, "ranks", "total_bytes");
    const double taken = first_number(results, "peak_rss_bytes", NULL);
    if (!(fabs(planned / taken - 1) <= 0.15))
        fail_msg("%.0f bytes planned, %.0f bytes taken: expected 15 %%", planned, taken);
    json_decref(plan);
    json_decref(results);
}

/* The states of 65,536 windows are more than any memory: said before anything is read. */
/* What the first phases leave takes the room on disk that the plan says. */
static void test_disk_is_as_planned(void **state)
{
    (void)state;
    static const char *const starts[][3] = {{"--init=rtn", "--method=vqround", "--eval-start"},
                                            {"--init=gptq", "--method=adaround", "--eval-start"},
                                            {"--init=gptq", "--no-eval-start", "--block-steps=1"},
                                            {"--init=rtn", "--method=gptq", "--no-eval-start"}};
#define DISK                                                                                       \
    "--model", MODELS "tiny-llama", "--bits", "2", "--D", "8", "--K", "512", "--kmeans.iters",     \
        "2", "--nsamples", "2", "--seqlen", "16", "--steps", "1", starts[i][0], starts[i][1],      \
        starts[i][2]
    for (int i = 0; i < 4; i++) {
        double bytes = 0;
        RUN_OK("plan", DISK, "--json");
        json_t *plan = last_json();
        const double planned = json_number(plan, "disk_bytes/init");
        json_decref(plan);
        RUN_OK("quantize", DISK, "--text", CALIB, "--no-eval", "--quiet", "--out", "disk");
        for (int layer = 0; layer < 4; layer++) {
            const char *const paths[] = {text("disk/init-%04d-0000.h5", layer),
                                         text("disk/blocks-%04d.h5", layer)};
            struct stat st;
            for (int k = 0; k < 2; k++)
                if (stat(paths[k], &st) == 0) bytes += (double)st.st_size;
        }
        if (!(fabs(bytes / planned - 1) < 0.05))
            fail_msg("%s %s %s: %.0f bytes planned, files of %.0f: expected 5 %%", starts[i][0],
                     starts[i][1], starts[i][2], planned, bytes);
        remove_all("disk");
    }
#undef DISK
}

static void test_does_not_fit(void **state)
{
    (void)state;
    make_model("tiny-llama", "long");
    change_size("long/config.json", "max_position_embeddings", 8192);
    RUN("quantize", "--model", "long", "--text", CALIB, "--out", "run-long", "--seqlen", "8192",
        "--nsamples", "65536", "--batch-size", "65536", "--no-teacher.cache", "--quiet");
    EXPECT_FAILED(4, "memory:", "GiB short", "train.batch", "vqround plan");
    assert_false(exists("run-long/tokens.h5"));
}

/* What a plan keeps out of the memory that it was given stays out of it. */
static void test_inputs_in_a_file(void **state)
{
    (void)state;
    make_model("tiny-llama", "small");
    const char *roomy[] = {"--plan.memory_gib", "1"}, *narrow[] = {"--plan.memory_gib", "0.04"};
    for (int i = 0; i < 2; i++) {
        const char **memory = i ? narrow : roomy, *out = i ? "narrow" : "roomy";
        RUN_OK("quantize", "--model", "small", "--text", CALIB, "--out", out, "--method", "rtn",
               "--grid", "output", "--bits", "3", "--nsamples", "170", "--seqlen", "128",
               "--no-eval", "--threads", "1", memory[0], memory[1]);
        assert_int_equal(strstr(last.err, "do not fit in memory: they are in") != NULL, i);
    }
    expect_same_files("narrow/model/model.safetensors", "roomy/model/model.safetensors");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_needs_no_weights),   cmocka_unit_test(test_configs),
        cmocka_unit_test(test_peak_is_as_planned), cmocka_unit_test(test_disk_is_as_planned),
        cmocka_unit_test(test_does_not_fit),       cmocka_unit_test(test_inputs_in_a_file),
    };
    return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
