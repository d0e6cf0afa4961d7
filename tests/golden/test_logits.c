/* test_logits - the forward of every kind of model against Hugging Face transformers in f32. */
#include "fixture.h"
#include "golden/tolerance.h"

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

static void test_demo(void **state)
{
    (void)state;
    check_model(ROOT_DIR "/configs/demo-model", "demo");
}

#define MODEL(name)                                                                                \
    {                                                                                              \
        name, test_model, NULL, NULL, name                                                         \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        MODEL("rand-llama-gqa-tied"), MODEL("rand-llama3-rope"),   MODEL("rand-llama-f16-sharded"),
        MODEL("rand-llama2-bin"),     MODEL("rand-opt-bin"),       MODEL("rand-opt350"),
        MODEL("rand-opt-f32"),        MODEL("rand-qwen3-headdim"), MODEL("rand-qwen3-tied"),
        MODEL("tiny-llama"),          MODEL("tiny-opt"),           MODEL("tiny-qwen3"),
        cmocka_unit_test(test_demo),
    };
    return RUN_TESTS(tests);
}
