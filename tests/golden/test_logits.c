/* test_logits - the forward of every kind of model against Hugging Face transformers in f32. */
#include "fixture.h"
#include "golden/tolerance.h"
#include "rng.h"

#define MODELS TESTS_DIR "/models/"
#define GOLDEN TESTS_DIR "/golden/logits-"

/* Logits at the golden positions from hidden [T, E_embed], in steps of one token. */
static void check_logits(fixture *f, const vq_tensor *hidden, const vq_safetensors *file)
{
    const vq_tensor logits = golden(file, "logits"), positions = golden(file, "positions");
    const int64_t n = logits.dim[0], V = f->model.config.V;
    vq_tensor ours;
    EXPECT_OK(vq_tensor_new(&f->arena, f->be.place, VQ_F32, VQ_DIMS(n, V), &ours));
    for (int64_t i = 0; i < n; i++) {
        const vq_tensor row = vq_tensor_rows(hidden, ((const int32_t *)positions.data)[i], 1);
        vq_tensor y = vq_tensor_rows(&ours, i, 1);
        EXPECT_OK(vq_gemm(&f->be, &y, &row, false, &f->stage.there->head, true, 1, 0));
    }
    const double error = relative_error(fixture_get(f, &ours), logits.data, n * V);
    if (error > LOGITS_RELATIVE) fail_msg("logits differ by %g, limit %g", error, LOGITS_RELATIVE);
}

static void check_model(const char *dir, const char *name)
{
    fixture f;
    vq_safetensors file;
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s.safetensors", name);
    fixture_open(&f, dir, 64);
    EXPECT_OK(vq_safetensors_open(&f.arena, path, &file));
    const vq_tensor golden_ids = golden(&file, "ids");
    const int64_t T = golden_ids.dim[0];
    const vq_tensor ids = vq_tensor_view2(&golden_ids, 1, T);
    vq_tensor hidden;
    EXPECT_OK(
        vq_tensor_new(&f.arena, f.be.place, f.be.act, VQ_DIMS(T, f.model.config.E_embed), &hidden));
    EXPECT_OK(vq_stage_fwd(&f.stage, VQ_MODE_FLOAT, 1, 0, &ids, &hidden, NULL));
    check_logits(&f, &hidden, &file);
    if (vq_safetensors_find(&file, "hidden")) {
        const vq_tensor expected = golden(&file, "hidden");
        const double error =
            relative_error(fixture_get(&f, &hidden), expected.data, vq_tensor_count(&expected));
        if (error > LOGITS_RELATIVE) fail_msg("hidden states differ by %g", error);
    }
    vq_safetensors_close(&file);
    fixture_close(&f);
}

static void test_model(void **state)
{
    const char *name = *state;
    char dir[512];
    snprintf(dir, sizeof dir, MODELS "%s", name);
    check_model(dir, name);
}

static vq_ops counting; /* the backend's own, with a bring that counts */
static const vq_ops *own_ops;
static double brought_bytes;

static vq_status count_bring(void *ctx, const void *src_host, size_t bytes, void **there)
{
    brought_bytes += (double)bytes;
    return own_ops->bring(ctx, src_host, bytes, there);
}

enum { WINDOWS = 5, T_WINDOW = 24 };

/* The states of B windows that pass together, each a product of its own. */
static void run_windows(fixture *f, const vq_tensor *ids, int64_t first, int64_t B, vq_tensor *out)
{
    vq_kept kept;
    const size_t mark = vq_arena_mark(&f->scratch);
    const vq_tensor own = vq_tensor_rows(ids, first, B);
    vq_tensor rows = vq_tensor_rows(out, first * T_WINDOW, B * T_WINDOW);
    EXPECT_OK(vq_kept_init(&f->scratch, &f->stage, B, T_WINDOW, VQ_KEEP_NOTHING, &kept));
    kept.layer[0].product_rows = T_WINDOW;
    EXPECT_OK(vq_stage_fwd(&f->stage, VQ_MODE_FLOAT, B, 0, &own, &rows, &kept));
    vq_arena_reset(&f->scratch, mark);
}

/* The same bits as one by one, and the weights are brought once for all. */
static void test_together(void **state)
{
    fixture f;
    char dir[512];
    vq_tensor ids, one_by_one, together;
    snprintf(dir, sizeof dir, MODELS "%s", (const char *)*state);
    fixture_open(&f, dir, 64);
    own_ops = f.be.ops;
    counting = *own_ops;
    counting.bring = count_bring;
    f.be.ops = &counting;
    const vq_model_config *c = &f.model.config;
    const int64_t n = WINDOWS * T_WINDOW;
    EXPECT_OK(vq_tensor_new(&f.arena, VQ_HOST, VQ_I32, VQ_DIMS(WINDOWS, T_WINDOW), &ids));
    for (int64_t i = 0; i < n; i++)
        ((int32_t *)ids.data)[i] = (int32_t)(vq_rng_uniform(3, 1, (uint64_t)i) * (double)c->V);
    const vq_place place = f.be.place;
    EXPECT_OK(vq_tensor_new(&f.arena, place, f.be.act, VQ_DIMS(n, c->E_embed), &one_by_one));
    EXPECT_OK(vq_tensor_new(&f.arena, place, f.be.act, VQ_DIMS(n, c->E_embed), &together));
    brought_bytes = 0;
    for (int64_t i = 0; i < WINDOWS; i++) run_windows(&f, &ids, i, 1, &one_by_one);
    const double alone_bytes = brought_bytes;
    brought_bytes = 0;
    run_windows(&f, &ids, 0, WINDOWS, &together);
    assert_true(brought_bytes * WINDOWS == alone_bytes);
    assert_true((brought_bytes > 0) == (place == VQ_DEVICE));
    const void *a = fixture_get(&f, &one_by_one), *b = fixture_get(&f, &together);
    assert_memory_equal(a, b, vq_tensor_bytes(&together));
    fixture_close(&f);
}

static void test_demo(void **state)
{
    (void)state;
    check_model(ROOT_DIR "/configs/demo-model", "demo");
}

#define MODEL(name)                                                                                \
    {                                                                                              \
        name, test_model, NULL, NULL, name                                                         \
    }

#define TOGETHER(name)                                                                             \
    {                                                                                              \
        "together, " name, test_together, NULL, NULL, name                                         \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        MODEL("rand-llama-gqa-tied"), MODEL("rand-llama3-rope"),   MODEL("rand-llama-f16-sharded"),
        MODEL("rand-llama2-bin"),     MODEL("rand-opt-bin"),       MODEL("rand-opt350"),
        MODEL("rand-opt-f32"),        MODEL("rand-qwen3-headdim"), MODEL("rand-qwen3-tied"),
        MODEL("tiny-llama"),          MODEL("tiny-opt"),           MODEL("tiny-qwen3"),
        cmocka_unit_test(test_demo),  TOGETHER("rand-opt350"),     TOGETHER("rand-llama-gqa-tied"),
        TOGETHER("rand-opt-f32"),     TOGETHER("rand-qwen3-tied"),
    };
    return RUN_TESTS(tests);
}
