/* test_gptq - one linear in all modes of the sweep, and whole models layer by layer, against the
 * reference's own code. */
#include <jansson.h>
#include <stdlib.h>

#include "fixture.h"

#include "arenas.h"
#include "golden/tolerance.h"
#include "grid.h"
#include "ints.h"
#include "sweep.h"

static float at(const vq_tensor *t, int64_t i)
{
    return ((const float *)t->data)[i];
}

static vq_tensor named(const vq_safetensors *file, const char *name, const char *what)
{
    char whole[320];
    snprintf(whole, sizeof whole, "%s.%s", name, what);
    return golden(file, whole);
}

static vq_tensor new_tensor(vq_dtype dtype, int64_t rows, int64_t columns)
{
    vq_tensor t;
    EXPECT_OK(vq_tensor_new(&arena, VQ_HOST, dtype, VQ_DIMS(rows, columns), &t));
    return t;
}

/* --- one linear ------------------------------------------------------------------------------ */

/* A case of gptq.json and what the sweep gave. */
typedef struct result {
    const char *name;
    vq_gptq_config config;
    vq_grid_config grid;
    vq_gptq_factor factor;
    vq_quant q;
    vq_tensor ints, rest;
    double error;
} result;

static int64_t integer(const json_t *row, const char *key)
{
    return json_integer_value(json_object_get(row, key));
}

static bool is_true(const json_t *row, const char *key)
{
    return json_is_true(json_object_get(row, key));
}

static void read_case(const json_t *row, double percdamp, bool hessian, result *r)
{
    *r = (result){
        .name = json_string_value(json_object_get(row, "name")),
        .grid = {.bits = (int)integer(row, "bits"), .group_size = integer(row, "group_size")},
        .config = {.bits = (int)integer(row, "bits"),
                   .percdamp = percdamp,
                   .act_order = is_true(row, "act_order"),
                   .rule = {.block_size = integer(row, "block_size"),
                            .symmetric = is_true(row, "sym"),
                            .scale_dtype = VQ_F32,
                            .static_groups = is_true(row, "static_groups"),
                            .hessian_residual = hessian,
                            .search = is_true(row, "mse")}}};
}

/* H of the file's inputs, a sequence at a time. */
static vq_tensor hessian_of(const vq_backend *be, const vq_tensor *x)
{
    const int64_t n = x->dim[0], T = x->dim[1], in = x->dim[2];
    vq_tensor h = new_tensor(VQ_F64, in, in);
    EXPECT_OK(vq_zero(be, &h));
    for (int64_t i = 0; i < n; i++) {
        const vq_tensor one = vq_tensor_2d((float *)x->data + i * T * in, VQ_F32, T, in);
        EXPECT_OK(vq_syrk(be, &h, &one, 2.0 / (double)n));
    }
    return h;
}

/* By the slot itself: vq_gptq_quantize refuses one of the cases. */
static void run_case(const vq_backend *be, const vq_tensor *x, const vq_tensor *w, result *r)
{
    const int64_t out = w->dim[0], in = w->dim[1];
    const vq_gptq_factor *f = &r->factor;
    vq_tensor h = hessian_of(be, x);
    EXPECT_OK(vq_gptq_factor_make(be, &arena, &r->factor, &h, r->name, &r->config));
    EXPECT_OK(vq_grid_alloc(be, &r->q, &arena, &r->grid, out, in));
    r->ints = new_tensor(r->q.base.dtype, out, r->q.base.dim[1]);
    r->rest = new_tensor(VQ_F32, out, in);
    EXPECT_OK(vq_gptq_sweep(be, &r->q, &r->ints, &r->rest, &r->error, w, &f->u, &f->order, &f->dead,
                            &r->config.rule));
}

/* The group of the column at turn p of the sweep, as an index into scale and zero of row o. */
static int64_t group_at(const result *r, int64_t o, int64_t p)
{
    const int64_t groups = r->q.scale.dim[1], column = ((const int32_t *)r->factor.order.data)[p];
    return o * groups + (r->config.rule.static_groups ? column : p) / r->q.group_size;
}

/* A weight halfway between two integers may take either, and the row goes another way from there:
 * such a row is left at that column. Symmetric groups have them by nature: the largest |w| that a
 * group begins with is qmax / 2 scales. */
static void check_case(const vq_safetensors *file, const result *r)
{
    const bool by_hessian = r->config.rule.hessian_residual;
    const vq_tensor exact = named(file, r->name, "rest_exact"),
                    rest = by_hessian ? named(file, r->name, "rest_hessian") : exact,
                    base = named(file, r->name, "base"), weight = named(file, r->name, "weight"),
                    scale = named(file, r->name, "last_scale"),
                    zero = named(file, r->name, "last_zero");
    const int64_t out = weight.dim[0], in = weight.dim[1];
    const int qmax = (1 << r->q.bits) - 1;
    int n_ties = 0;
    for (int64_t o = 0; o < out; o++) {
        bool is_tie = false;
        for (int64_t p = 0; p < in && !is_tie; p++) {
            const int64_t i = o * in + ((const int32_t *)r->factor.order.data)[p];
            const int64_t g = group_at(r, o, p);
            const float s = at(&r->q.scale, g), z = at(&r->q.zero, g);
            const float ours = s * ((float)int_at(&r->ints, in, i) - z);
            const int b = int_at(&base, in, i) + (int)z;
            assert_int_equal(int_at(&r->q.base, in, i), b < -1 ? -1 : b > qmax ? qmax : b);
            is_tie = fabsf(at(&exact, i) - 0.5f) < GPTQ_TIE &&
                     fabsf(fabsf(ours - at(&weight, i)) / s - 1) < 0.01f;
            if (!is_tie && fabsf(ours - at(&weight, i)) > 0.01f * s)
                fail_msg("%s [%lld, %lld]: weight %.9g, the reference %.9g, scale %.9g", r->name,
                         (long long)o, (long long)(i % in), (double)ours, (double)at(&weight, i),
                         (double)s);
            if ((!is_tie || !by_hessian) && fabsf(at(&r->rest, i) - at(&rest, i)) > GPTQ_REST)
                fail_msg("%s [%lld, %lld]: rest %.9g, the reference %.9g", r->name, (long long)o,
                         (long long)(i % in), (double)at(&r->rest, i), (double)at(&rest, i));
        }
        n_ties += is_tie;
        if (is_tie) continue;
        const int64_t last = group_at(r, o, in - 1);
        if (fabsf(at(&r->q.scale, last) / at(&scale, o) - 1) > GPTQ_SCALE_RELATIVE)
            fail_msg("%s row %lld: scale %.9g, the reference %.9g", r->name, (long long)o,
                     (double)at(&r->q.scale, last), (double)at(&scale, o));
        assert_true(at(&r->q.zero, last) == at(&zero, o));
    }
    assert_in_range(n_ties, 0, 1);
}

/* Every case's results by 1, 2 and 3 threads. */
static void test_one_linear(void **state)
{
    (void)state;
    vq_safetensors file;
    EXPECT_OK(vq_safetensors_open(&arena, TESTS_DIR "/golden/gptq.safetensors", &file));
    json_t *info = json_load_file(TESTS_DIR "/golden/gptq.json", 0, NULL);
    const double percdamp = json_number_value(json_object_get(info, "percdamp"));
    const vq_tensor x = golden(&file, "x"), w = golden(&file, "weight");
    const json_t *cases = json_object_get(info, "cases");
    assert_int_equal(json_array_size(cases), 11);
    for (int mode = 0; mode < 2 * 11; mode++) {
        const size_t mark = vq_arena_mark(&arena);
        result first, r;
        for (int threads = 1; threads <= 3; threads++) {
            vq_backend be;
            EXPECT_OK(vq_cpu_open(&be, threads));
            read_case(json_array_get(cases, (size_t)mode / 2), percdamp, mode % 2, &r);
            run_case(&be, &x, &w, &r);
            vq_cpu_close(&be);
            if (threads == 1) {
                first = r;
                check_case(&file, &r);
                continue;
            }
            assert_memory_equal(r.ints.data, first.ints.data, vq_tensor_bytes(&r.ints));
            assert_memory_equal(r.rest.data, first.rest.data, vq_tensor_bytes(&r.rest));
            assert_memory_equal(&r.error, &first.error, sizeof r.error);
        }
        vq_arena_reset(&arena, mark);
    }
    json_decref(info);
    vq_safetensors_close(&file);
}

static void test_hessian(void **state)
{
    (void)state;
    vq_safetensors file;
    vq_backend be;
    EXPECT_OK(vq_cpu_open(&be, 2));
    EXPECT_OK(vq_safetensors_open(&arena, TESTS_DIR "/golden/gptq.safetensors", &file));
    const vq_tensor x = golden(&file, "x"), theirs = golden(&file, "hessian");
    const vq_tensor ours = hessian_of(&be, &x);
    const int64_t n = theirs.dim[0];
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++) {
            const double h = ((const double *)ours.data)[i * n + j];
            const double size =
                sqrt((double)at(&theirs, i * n + i) * (double)at(&theirs, j * n + j));
            if (fabs(h - (double)at(&theirs, i * n + j)) > GPTQ_HESSIAN_RELATIVE * size)
                fail_msg("H[%lld, %lld] = %.9g, the reference %.9g", (long long)i, (long long)j, h,
                         (double)at(&theirs, i * n + j));
        }
    vq_safetensors_close(&file);
    vq_cpu_close(&be);
}

/* --- whole models ---------------------------------------------------------------------------- */

#define SEQLEN 32

typedef struct model_run {
    fixture f;
    vq_safetensors file;
    const char *option;
    float scale_limit; /* relative */
    int64_t n_linears, n_weights, n_different;
} model_run;

static bool is_near(float ours, float theirs, float limit)
{
    return fabsf(ours - theirs) <= limit;
}

/* The grid, base and rest of a linear, found with full-precision inputs. */
static vq_status check_grid(void *ctx, vq_vqlinear *l, const vq_tensor *rest, double error)
{
    model_run *run = ctx;
    const char *name = l->source->name;
    const vq_tensor scale = named(&run->file, name, "scale"),
                    zero = named(&run->file, name, "zero"), base = named(&run->file, name, "base"),
                    mixed = named(&run->file, name, "rest_hessian");
    const int64_t n = vq_tensor_count(&base), in = base.dim[1];
    const int qmax = (1 << l->quant.bits) - 1;
    assert_memory_equal(l->quant.scale.data, scale.data, vq_tensor_bytes(&scale));
    assert_memory_equal(l->quant.zero.data, zero.data, vq_tensor_bytes(&zero));
    assert_true(error > 0 && isfinite(error));
    for (int64_t i = 0; i < n; i++) {
        const int b = int_at(&base, in, i) + (int)at(&zero, i / in);
        if (int_at(&l->quant.base, in, i) != (b < -1     ? -1
                                              : b > qmax ? qmax
                                                         : b) ||
            !is_near(at(rest, i), at(&mixed, i), GPTQ_MODEL_REST))
            fail_msg("%s [%lld, %lld]: base %d, rest %.9g; the reference %d, %.9g", name,
                     (long long)(i / in), (long long)(i % in), int_at(&l->quant.base, in, i),
                     (double)at(rest, i), b, (double)at(&mixed, i));
    }
    run->n_linears++;
    run->n_weights += n;
    return VQ_OK;
}

/* The weights of GPTQ proper. */
static vq_status check_weight(void *ctx, vq_vqlinear *l, const vq_tensor *rest, double error)
{
    model_run *run = ctx;
    const vq_tensor theirs = named(&run->file, l->source->name, "weight");
    const int64_t n = vq_tensor_count(&theirs), in = theirs.dim[1];
    vq_tensor ours;
    (void)rest, (void)error;
    EXPECT_OK(vq_vqlinear_weight(&run->f.be, l, VQ_MODE_GPTQ, &arena, &ours));
    for (int64_t i = 0; i < n; i++)
        if (!is_near(at(&ours, i), at(&theirs, i), 0.01f * at(&l->quant.scale, i / in)))
            fail_msg("%s [%lld, %lld]: weight %.9g, the reference %.9g", l->source->name,
                     (long long)(i / in), (long long)(i % in), (double)at(&ours, i),
                     (double)at(&theirs, i));
    run->n_linears++;
    run->n_weights += n;
    return VQ_OK;
}

/* Every group's grid, and the integers of GPTQ proper with one of the options. */
static vq_status check_option(void *ctx, vq_vqlinear *l, const vq_tensor *rest, double error)
{
    model_run *run = ctx;
    char name[256];
    snprintf(name, sizeof name, "%s.%s", run->option, l->source->name);
    const vq_tensor scale = named(&run->file, name, "scale"),
                    zero = named(&run->file, name, "zero"), ints = named(&run->file, name, "ints");
    const int64_t n = vq_tensor_count(&ints), in = ints.dim[1], groups = scale.dim[1];
    (void)rest, (void)error;
    assert_true(vq_tensor_same_shape(&scale, &l->quant.scale));
    for (int64_t i = 0; i < vq_tensor_count(&scale); i++)
        if (fabsf(at(&l->quant.scale, i) / at(&scale, i) - 1) > run->scale_limit ||
            at(&l->quant.zero, i) != at(&zero, i))
            fail_msg("%s row %lld, group %lld: scale %.9g, zero %g; the reference %.9g, %g", name,
                     (long long)(i / groups), (long long)(i % groups),
                     (double)at(&l->quant.scale, i), (double)at(&l->quant.zero, i),
                     (double)at(&scale, i), (double)at(&zero, i));
    for (int64_t i = 0; i < n; i++) {
        const int differs = int_at(&l->ints, in, i) - int_at(&ints, in, i);
        if (differs) {
            print_message("%s [%lld, %lld]: %d, the reference %d\n", name, (long long)(i / in),
                          (long long)(i % in), int_at(&l->ints, in, i), int_at(&ints, in, i));
            assert_in_range(differs + 1, 0, 2);
        }
        run->n_different += differs != 0;
    }
    run->n_linears++;
    run->n_weights += n;
    return VQ_OK;
}

/* All windows through all layers of the model. */
static void sweep_model(model_run *run, const char *name, const vq_grid_config *grid,
                        const vq_gptq_config *config, bool quantized, vq_sweep_fn take)
{
    char path[512];
    snprintf(path, sizeof path, TESTS_DIR "/models/%s", name);
    fixture_open(&run->f, path, SEQLEN);
    const vq_tensor ids = golden(&run->file, "ids");
    const int64_t N = run->f.model.config.N;
    for (int64_t i = 0; i < N * VQ_N_KINDS; i++) {
        vq_vqlinear *l = vq_stage_linear(&run->f.stage, i / VQ_N_KINDS, (int)(i % VQ_N_KINDS));
        if (!l) continue;
        const vq_tensor *w = &l->source->weight;
        EXPECT_OK(vq_grid_alloc(&run->f.be, &l->quant, &arena, grid, w->dim[0], w->dim[1]));
        l->quantized = true;
    }
    vq_sweep s = {.stage = &run->f.stage,
                  .config = config,
                  .quantized = quantized,
                  .take = take,
                  .ctx = run,
                  .arena = &run->f.arena};
    EXPECT_OK(vq_sweep_open(&s, ids.dim[0], ids.dim[0], SEQLEN, SIZE_MAX, "sweep.h5"));
    EXPECT_OK(vq_sweep_embed(&s, &ids));
    for (int64_t layer = 0; layer < N; layer++) {
        double error;
        EXPECT_OK(vq_sweep_layer(&s, layer, &error));
    }
    vq_sweep_close(&s);
    assert_true(run->n_linears >= 6 * N && run->n_weights > 0);
    fixture_close(&run->f);
}

static void run_model(const char *name, int bits, bool symmetric, bool quantized)
{
    const vq_grid_config grid = {.bits = bits, .group_size = -1};
    const vq_gptq_config config = {.bits = bits,
                                   .percdamp = 0.01,
                                   .rule = {.block_size = 128,
                                            .symmetric = symmetric,
                                            .scale_dtype = VQ_F32,
                                            .hessian_residual = true}};
    model_run run = {0};
    char path[512];
    snprintf(path, sizeof path, TESTS_DIR "/golden/gptq-%s.safetensors", name);
    EXPECT_OK(vq_safetensors_open(&arena, path, &run.file));
    sweep_model(&run, name, &grid, &config, quantized, quantized ? check_weight : check_grid);
    vq_safetensors_close(&run.file);
}

/* Two layers of each family, with every option. `ties`: integers that differ, over all options. */
static void run_options(const char *name, int64_t ties)
{
    char path[512];
    json_t *info = json_load_file(TESTS_DIR "/golden/gptq.json", 0, NULL);
    const json_t *options = json_object_get(info, "options");
    const size_t n = json_array_size(options);
    model_run run = {0};
    snprintf(path, sizeof path, TESTS_DIR "/golden/gptq-options-%s.safetensors", name);
    EXPECT_OK(vq_safetensors_open(&arena, path, &run.file));
    assert_int_equal(n, 11);
    for (size_t i = 0; i < n; i++) {
        const size_t mark = vq_arena_mark(&arena);
        result r;
        read_case(json_array_get(options, i), 0.01, false, &r);
        run.option = r.name;
        const bool is_running = r.grid.group_size > 0 && !r.config.rule.static_groups;
        run.scale_limit = is_running ? GPTQ_MODEL_SCALE_RELATIVE : 0;
        sweep_model(&run, name, &r.grid, &r.config, true, check_option);
        vq_arena_reset(&arena, mark);
    }
    assert_int_equal(run.n_different, ties);
    vq_safetensors_close(&run.file);
    json_decref(info);
}

static void test_options(void **state)
{
    (void)state;
    run_options("rand-llama-gqa-tied", 0);
    run_options("rand-opt-f32", 0);
    run_options("rand-qwen3-tied", 0);
}

static void test_opt(void **state)
{
    run_model("rand-opt-f32", 3, false, *state != NULL);
}

static void test_qwen3(void **state)
{
    run_model("rand-qwen3-tied", 4, true, *state != NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hessian),
        cmocka_unit_test(test_one_linear),
        cmocka_unit_test(test_options),
        {"OPT, full-precision inputs", test_opt, NULL, NULL, NULL},
        {"OPT, quantized inputs", test_opt, NULL, NULL, &arena},
        {"Qwen3, full-precision inputs", test_qwen3, NULL, NULL, NULL},
        {"Qwen3, quantized inputs", test_qwen3, NULL, NULL, &arena},
    };
    return cmocka_run_group_tests(tests, open_arenas, close_arenas);
}
