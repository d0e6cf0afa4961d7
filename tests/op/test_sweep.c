/* test_sweep - GPTQ through small models: better than rounding to nearest in every linear, the same
 * bits however it runs, and what it says when it cannot. */
#include "config.h"
#include "fixture.h"
#include "grid.h"
#include "rng.h"
#include "sweep.h"

enum { WINDOWS = 8, SEQLEN = 32 };

/* A model with every linear marked, and token windows for it. */
typedef struct swept {
    fixture f;
    vq_gptq_config config;
    vq_grid_config grid;
    vq_tensor ids;
    vq_sweep sweep;
    uint64_t hash; /* of all integers and rests */
    int64_t n_linears;
} swept;

static uint64_t mix(uint64_t h, const vq_tensor *t)
{
    const uint8_t *byte = t->data;
    for (size_t i = 0; i < vq_tensor_bytes(t); i++) h = (h ^ byte[i]) * 0x100000001b3u;
    return h;
}

static vq_status take(void *ctx, vq_vqlinear *l, const vq_tensor *rest, double error)
{
    swept *s = ctx;
    assert_true(isfinite(error));
    s->hash = mix(mix(mix(s->hash, rest), &l->quant.base), &l->quant.scale);
    if (!s->sweep.grid) s->hash = mix(s->hash, &l->ints);
    s->n_linears++;
    return VQ_OK;
}

static void swept_open(swept *s, const char *model, int bits, int64_t group_size, int threads)
{
    char path[512];
    snprintf(path, sizeof path, TESTS_DIR "/models/%s", model);
    *s = (swept){.hash = 0xcbf29ce484222325u};
    fixture_open(&s->f, path, SEQLEN);
    vq_cpu_close(&s->f.be);
    EXPECT_OK(vq_cpu_open(&s->f.be, threads));
    s->grid = (vq_grid_config){.bits = bits, .group_size = group_size, .scale_dtype = VQ_F32};
    s->config = (vq_gptq_config){
        .bits = bits, .percdamp = 0.01, .rule = {.block_size = 128, .scale_dtype = VQ_F32}};
    EXPECT_OK(vq_tensor_new(&s->f.arena, VQ_HOST, VQ_I32, VQ_DIMS(WINDOWS, SEQLEN), &s->ids));
    for (int64_t i = 0; i < WINDOWS * SEQLEN; i++)
        ((int32_t *)s->ids.data)[i] =
            (int32_t)(vq_rng_uniform(17, (uint64_t)i, 0) * (double)s->f.model.config.V);
    for (int64_t slot = 0; slot < s->f.model.config.N * VQ_N_KINDS; slot++) {
        vq_vqlinear *l = vq_stage_linear(&s->f.stage, slot / VQ_N_KINDS, slot % VQ_N_KINDS);
        if (!l) continue;
        const vq_tensor *w = &l->source->weight;
        EXPECT_OK(vq_grid_alloc(&s->f.be, &l->quant, &s->f.arena, &s->grid, w->dim[0], w->dim[1]));
        EXPECT_OK(vq_tensor_new(&s->f.arena, VQ_HOST, l->quant.base.dtype, 2, l->quant.base.dim,
                                &l->ints));
        l->quantized = true;
    }
}

/* search: a grid by the outputs in GPTQ's place. */
static void sweep_open(swept *s, bool quantized, bool search, size_t memory_bytes)
{
    s->grid.include_zero = s->grid.search = search;
    s->sweep = (vq_sweep){.stage = &s->f.stage,
                          .config = &s->config,
                          .grid = search ? &s->grid : NULL,
                          .quantized = quantized,
                          .take = take,
                          .ctx = s,
                          .arena = &s->f.arena};
    EXPECT_OK(vq_sweep_open(&s->sweep, WINDOWS, WINDOWS, SEQLEN, memory_bytes, "sweep.h5"));
    EXPECT_OK(vq_sweep_embed(&s->sweep, &s->ids));
}

static void swept_close(swept *s)
{
    vq_sweep_close(&s->sweep);
    fixture_close(&s->f);
}

/* --- against rounding to nearest ------------------------------------------------------------- */

/* The inputs of a layer's linears, by kind: act [WINDOWS * SEQLEN, in]. */
static void run_layer(swept *s, int64_t layer, vq_acts *acts, vq_tensor read[VQ_N_KINDS])
{
    const int64_t n = WINDOWS * SEQLEN;
    vq_tensor y;
    EXPECT_OK(vq_acts_init(&s->f.arena, &s->f.be, &s->f.model.config, WINDOWS, SEQLEN, acts));
    EXPECT_OK(vq_tensor_new(&s->f.arena, VQ_HOST, VQ_F32, VQ_DIMS(n, acts->x.dim[1]), &y));
    EXPECT_OK(vq_sweep_get_inputs(&s->sweep, 0, &acts->x));
    EXPECT_OK(
        vq_block_fwd(&s->f.stage.block[layer], VQ_MODE_FLOAT, &s->f.scratch, acts, 0, SEQLEN, &y));
    const vq_tensor by_kind[VQ_N_KINDS] = {
        [VQ_Q] = acts->attn_in, [VQ_K] = acts->attn_in,   [VQ_V] = acts->attn_in,
        [VQ_O] = acts->attn,    [VQ_GATE] = acts->mlp_in, [VQ_UP] = acts->mlp_in,
        [VQ_DOWN] = acts->act};
    memcpy(read, by_kind, sizeof by_kind);
}

/* |x (w - W)^T|^2; w becomes w - W. */
static double output_error(swept *s, const vq_tensor *x, vq_tensor *w, const vq_tensor *source)
{
    const int64_t n = vq_tensor_count(w);
    vq_tensor own, y;
    double error;
    EXPECT_OK(vq_tensor_new(&s->f.arena, VQ_HOST, VQ_F32, VQ_DIMS(w->dim[0], w->dim[1]), &own));
    EXPECT_OK(vq_tensor_new(&s->f.arena, VQ_HOST, VQ_F32, VQ_DIMS(x->dim[0], w->dim[0]), &y));
    EXPECT_OK(vq_convert(own.data, VQ_F32, source->data, source->dtype, n));
    for (int64_t i = 0; i < n; i++) ((float *)w->data)[i] -= ((const float *)own.data)[i];
    EXPECT_OK(vq_gemm(&s->f.be, &y, x, false, w, true, 1, 0));
    EXPECT_OK(vq_norm2(&s->f.be, &error, &y));
    return error;
}

/* What rounding to nearest on its own grid would give: of the whole range, or searched. */
static double rtn_error(swept *s, const vq_vqlinear *l, const vq_tensor *x, bool search)
{
    const vq_tensor *source = &l->source->weight;
    const int64_t out = source->dim[0], in = source->dim[1];
    vq_grid_config grid = s->grid;
    vq_quant q;
    vq_tensor w, rest;
    grid.include_zero = true;
    grid.search = search;
    EXPECT_OK(vq_grid_alloc(&s->f.be, &q, &s->f.arena, &grid, out, in));
    EXPECT_OK(vq_tensor_new(&s->f.arena, VQ_HOST, VQ_F32, VQ_DIMS(out, in), &rest));
    EXPECT_OK(vq_tensor_new(&s->f.arena, VQ_HOST, VQ_F32, VQ_DIMS(out, in), &w));
    EXPECT_OK(vq_grid_make(&s->f.be, &q, &rest, source, NULL, &grid));
    EXPECT_OK(vq_grid_round(&s->f.be, &w, source, &q));
    return output_error(s, x, &w, source);
}

/* Rounds a layer: its linears' output errors in this mode, and rtn_error beside them; 0 where the
 * layer has no such linear. */
static void layer_errors(swept *s, int64_t layer, vq_mode mode, bool search,
                         double ours[VQ_N_KINDS], double rtn[VQ_N_KINDS])
{
    vq_acts acts;
    vq_tensor read[VQ_N_KINDS];
    double error;
    run_layer(s, layer, &acts, read);
    EXPECT_OK(vq_sweep_layer(&s->sweep, layer, &error));
    for (int k = 0; k < VQ_N_KINDS; k++) {
        const vq_vqlinear *l = vq_stage_linear(&s->f.stage, layer, (vq_linear_kind)k);
        vq_tensor w;
        ours[k] = rtn[k] = 0;
        if (!l) continue;
        EXPECT_OK(vq_vqlinear_weight(&s->f.be, l, mode, &s->f.arena, &w));
        ours[k] = output_error(s, &read[k], &w, &l->source->weight);
        rtn[k] = rtn_error(s, l, &read[k], search);
    }
}

static void check_below_rtn(const char *model, int64_t group_size, bool act_order, bool search)
{
    swept s;
    swept_open(&s, model, 3, group_size, 2);
    s.config.act_order = s.config.rule.static_groups = act_order;
    s.config.rule.search = search;
    sweep_open(&s, false, false, SIZE_MAX);
    for (int64_t layer = 0; layer < s.f.model.config.N; layer++) {
        double ours[VQ_N_KINDS], rtn[VQ_N_KINDS];
        layer_errors(&s, layer, VQ_MODE_GPTQ, search, ours, rtn);
        for (int k = 0; k < VQ_N_KINDS; k++) {
            const vq_vqlinear *l = vq_stage_linear(&s.f.stage, layer, (vq_linear_kind)k);
            if (l && !(ours[k] < rtn[k]))
                fail_msg("%s, groups of %lld: output error %g, rounding to nearest %g",
                         l->source->name, (long long)group_size, ours[k], rtn[k]);
        }
    }
    swept_close(&s);
}

/* Widths of 256, 688 and 768: not all sizes of groups divide them. */
static void test_below_rtn(void **state)
{
    (void)state;
    static const char *const models[] = {"tiny-llama", "tiny-opt", "tiny-qwen3"};
    static const int64_t group_sizes[] = {-1, 32, 64, 128};
    for (int m = 0; m < 3; m++)
        for (int g = 0; g < 4; g++)
            check_below_rtn(models[m], group_sizes[g], (m + g) % 2, m == 2 && g == 1);
    check_below_rtn("tiny-llama", 20, true, false);
    check_below_rtn("rand-opt350", 32, false, false);
    check_below_rtn("rand-opt350", -1, true, true);
}

/* A grid by the outputs changes them less than the whole range's, in almost every linear: its
 * measure leaves out only how inputs vary together. */
static void test_by_output(void **state)
{
    (void)state;
    static const char *const models[] = {"tiny-llama", "tiny-opt", "tiny-qwen3"};
    for (int m = 0; m < 6; m++) {
        swept s;
        double sum = 0;
        int64_t n = 0, worse = 0;
        swept_open(&s, models[m / 2], 2, m % 2 ? 64 : -1, 2);
        sweep_open(&s, false, true, SIZE_MAX);
        for (int64_t layer = 0; layer < s.f.model.config.N; layer++) {
            double ours[VQ_N_KINDS], rtn[VQ_N_KINDS];
            layer_errors(&s, layer, VQ_MODE_RTN, false, ours, rtn);
            for (int k = 0; k < VQ_N_KINDS; k++) {
                if (rtn[k] == 0) continue;
                sum += ours[k] / rtn[k];
                worse += ours[k] > rtn[k];
                n++;
            }
        }
        assert_true(n >= 6 * s.f.model.config.N);
        if (sum > (m % 2 ? 0.8 : 0.65) * (double)n || (double)worse > 0.1 * (double)n)
            fail_msg("%s, groups of %lld: %.3g of the whole range's error, %lld of %lld worse",
                     models[m / 2], (long long)s.grid.group_size, sum / (double)n, (long long)worse,
                     (long long)n);
        swept_close(&s);
    }
}

/* --- however it runs ------------------------------------------------------------------------- */

static uint64_t hash_of_run(const char *model, bool quantized, bool search, int threads,
                            size_t memory_bytes)
{
    swept s;
    swept_open(&s, model, 4, 24, threads);
    sweep_open(&s, quantized, search, memory_bytes);
    assert_int_equal(s.sweep.inputs.data != NULL, memory_bytes > 0);
    for (int64_t layer = 0; layer < s.f.model.config.N; layer++) {
        double error;
        EXPECT_OK(vq_sweep_layer(&s.sweep, layer, &error));
    }
    /* The last layer's outputs count too. */
    vq_tensor x;
    EXPECT_OK(vq_tensor_new(&s.f.arena, VQ_HOST, VQ_F32,
                            VQ_DIMS(WINDOWS * SEQLEN, s.f.model.config.E), &x));
    EXPECT_OK(vq_sweep_get_inputs(&s.sweep, 0, &x));
    const uint64_t hash = mix(s.hash, &x);
    assert_true(s.n_linears >= 6 * s.f.model.config.N);
    swept_close(&s);
    return hash;
}

static void test_same_bits(void **state)
{
    (void)state;
    static const char model[] = "rand-llama-gqa-tied";
    for (int i = 0; i < 3; i++) {
        const bool quantized = i == 1, search = i == 2;
        const uint64_t hash = hash_of_run(model, quantized, search, 1, SIZE_MAX);
        assert_true(hash_of_run(model, quantized, search, 2, SIZE_MAX) == hash);
        assert_true(hash_of_run(model, quantized, search, 3, SIZE_MAX) == hash);
        assert_true(hash_of_run(model, quantized, search, 1, 0) == hash); /* by a file */
        FILE *left = fopen("sweep.h5", "r");
        assert_null(left);
    }
}

/* A linear that a skip word names keeps its weight, and its input needs no Hessian. */
static void test_skipped(void **state)
{
    (void)state;
    swept s;
    double error;
    swept_open(&s, "rand-qwen3-tied", 4, -1, 2);
    for (int64_t layer = 0; layer < s.f.model.config.N; layer++)
        vq_stage_linear(&s.f.stage, layer, VQ_DOWN)->quantized = false;
    sweep_open(&s, true, false, SIZE_MAX);
    for (int64_t layer = 0; layer < s.f.model.config.N; layer++)
        EXPECT_OK(vq_sweep_layer(&s.sweep, layer, &error));
    assert_int_equal(s.n_linears, 6 * s.f.model.config.N);
    swept_close(&s);
}

/* --- what it says ---------------------------------------------------------------------------- */

enum { OUT = 3, IN = 4 };

/* GPTQ of a [3, 4] weight with one value changed, and H with a diagonal of d and `off` elsewhere.
 */
static vq_status quantize(double d, double off, double percdamp, float value, vq_dtype scale_dtype)
{
    vq_arena arena;
    vq_backend be;
    float weight[OUT * IN], rest_data[OUT * IN];
    double moments[IN * IN];
    int8_t ints_data[OUT * IN];
    vq_tensor w = vq_tensor_2d(weight, VQ_F32, OUT, IN), h = vq_tensor_2d(moments, VQ_F64, IN, IN),
              rest = vq_tensor_2d(rest_data, VQ_F32, OUT, IN),
              ints = vq_tensor_2d(ints_data, VQ_I8, OUT, IN);
    const vq_grid_config grid = {.bits = 4, .group_size = -1};
    const vq_gptq_config config = {
        .bits = 4, .percdamp = percdamp, .rule = {.block_size = 2, .scale_dtype = scale_dtype}};
    vq_gptq_factor f;
    vq_quant q;
    double error;
    for (int i = 0; i < OUT * IN; i++) weight[i] = 0.1f * (float)(i % 5) - 0.2f;
    for (int i = 0; i < IN * IN; i++) moments[i] = i % (IN + 1) ? off : d;
    weight[2 * IN + 1] = value;
    w.name = "layers.7.mlp.down_proj.weight";
    EXPECT_OK(vq_arena_init(&arena, "test", (size_t)1 << 28));
    EXPECT_OK(vq_cpu_open(&be, 1));
    EXPECT_OK(vq_grid_alloc(&be, &q, &arena, &grid, OUT, IN));
    vq_status status = vq_gptq_factor_make(&be, &arena, &f, &h, "layers.7.mlp.down_proj", &config);
    if (!status) status = vq_gptq_quantize(&be, &q, &ints, &rest, &error, &w, &f, &config);
    vq_cpu_close(&be);
    vq_arena_close(&arena);
    return status;
}

static void test_refusals(void **state)
{
    (void)state;
    EXPECT_OK(quantize(1, 0.5, 0, 0.1f, VQ_F32));
    EXPECT_OK(quantize(1, 1, 0, 0.1f, VQ_F32));    /* singular: more damping helps */
    EXPECT_OK(quantize(0, 0, 0.01, 0.1f, VQ_F32)); /* nothing but zeros comes in */
    EXPECT_ERROR(quantize(1, 90, 0.01, 0.1f, VQ_F32), VQ_EUSAGE, "layers.7.mlp.down_proj",
                 "with a damping of 10", "Raise gptq.percdamp");
    EXPECT_ERROR(quantize(NAN, 0, 0.01, 0.1f, VQ_F32), VQ_ENOTFINITE, "layers.7.mlp.down_proj",
                 "column 0", "nan", "Check the weights");
    EXPECT_ERROR(quantize(1, 0.5, 0.01, NAN, VQ_F32), VQ_ENOTFINITE,
                 "layers.7.mlp.down_proj.weight: row 2, column 1", "get it again");
    EXPECT_ERROR(quantize(1, 0.5, 0.01, 1e7f, VQ_F16), VQ_EUNSUPPORTED,
                 "layers.7.mlp.down_proj.weight: row 2, group 0", "Set grid.scale_dtype");
}

static vq_status load(vq_arena *arena, const char *const *extra, int n)
{
    const char *argv[16] = {"--model", "m", "--text", "t", "--out", "r"};
    vq_config config;
    for (int i = 0; i < n; i++) argv[6 + i] = extra[i];
    return vq_config_load(arena, VQ_QUANTIZE, 6 + n, argv, &config);
}

#define LOAD(...)                                                                                  \
    load(&arena, (const char *const[]){__VA_ARGS__}, VQ_COUNT(((const char *const[]){__VA_ARGS__})))

static void test_settings(void **state)
{
    (void)state;
    vq_arena arena;
    EXPECT_OK(vq_arena_init(&arena, "test", (size_t)1 << 24));
    EXPECT_OK(LOAD("--init", "gptq", "--gptq.act_order", "--group-size", "64"));
    EXPECT_OK(LOAD("--method", "gptq", "--gptq.act_order", "--gptq.static_groups", "off"));
    EXPECT_OK(LOAD("--gptq.act_order", "--gptq.static_groups", "off", "--group-size", "64"));
    EXPECT_OK(LOAD("--method", "gptq", "--gptq.act_order", "--gptq.static_groups", "off",
                   "--group-size", "64", "--format", "gptq"));
    EXPECT_ERROR(LOAD("--method", "gptq", "--gptq.act_order", "--gptq.static_groups", "off",
                      "--group-size", "64", "--format", "compressed-tensors"),
                 VQ_EUSAGE, "--gptq.static_groups = off", "--format", "Leave it out");
    EXPECT_ERROR(LOAD("--method", "rtn", "--init", "gptq"), VQ_EUSAGE, "--init = gptq",
                 "give --method gptq");
    vq_arena_close(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_below_rtn), cmocka_unit_test(test_by_output),
        cmocka_unit_test(test_same_bits), cmocka_unit_test(test_skipped),
        cmocka_unit_test(test_refusals),  cmocka_unit_test(test_settings)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
