/* test_reference - loss, gradients, 20 steps and hardened weights against the reference's own code,
 * from its codebooks, indices and tokens, with a live teacher. */
#include <jansson.h>
#include <stdlib.h>

#include "adam.h"
#include "codebook.h"
#include "fixture.h"
#include "golden/tolerance.h"
#include "grid.h"
#include "ints.h"
#include "loss.h"

#ifdef VQ_ON_SHIM
#include "shim.h"
#else
static long shim_waits(void)
{
    return 0;
}
#endif

#define SEQLEN 32

typedef struct student {
    fixture f;
    vq_safetensors file;
    json_t *info;
    vq_config config;
    vq_pool pool;
    vq_tensor ids; /* i32 [n, SEQLEN] */
    vq_kept kept;
    vq_tensor teacher, hidden, dhidden;
} student;

static double number(const student *s, const char *key)
{
    return json_number_value(json_object_get(s->info, key));
}

static vq_tensor part(student *s, const vq_vqlinear *l, const char *what)
{
    char name[256];
    snprintf(name, sizeof name, "%s.%s", l->source->name, what);
    return golden(&s->file, name);
}

static vq_vqlinear *linear_at(student *s, int64_t slot)
{
    return vq_stage_linear(&s->f.stage, slot / VQ_N_KINDS, (vq_linear_kind)(slot % VQ_N_KINDS));
}

/* The reference's grid, indices and codes as one of our linears. Its base leaves the zero out. */
static void load_linear(student *s, int64_t slot)
{
    vq_vqlinear *l = linear_at(s, slot);
    if (!l) return;
    const vq_grid_config grid = {
        .bits = (int)s->config.bits, .group_size = -1, .scale_dtype = VQ_F32};
    const vq_tensor base = part(s, l, "base"), scale = part(s, l, "scale"),
                    zero = part(s, l, "zero"), idx = part(s, l, "idx"),
                    codes = part(s, l, "codebook");
    const int64_t out = base.dim[0], in = base.dim[1], n_vec = idx.dim[0];
    const int qmax = (1 << s->config.bits) - 1;
    vq_pool_attach(&s->pool, slot, l);
    l->quantized = true;
    EXPECT_OK(vq_grid_alloc(&s->f.be, &l->quant, &s->f.arena, &grid, out, in));
    vq_tensor own_idx, counts, own_base = vq_quant_ints(grid.bits, out, in);
    const vq_place place = s->f.be.place;
    EXPECT_OK(vq_tensor_new(&s->f.arena, place, VQ_U16, VQ_DIMS(n_vec), &l->quant.idx));
    EXPECT_OK(
        vq_tensor_new(&s->f.arena, place, VQ_U32, VQ_DIMS(codes.dim[0], codes.dim[1]), &l->counts));
    EXPECT_OK(vq_tensor_new(&s->f.arena, VQ_HOST, VQ_U16, VQ_DIMS(n_vec), &own_idx));
    EXPECT_OK(
        vq_tensor_new(&s->f.arena, VQ_HOST, VQ_U32, VQ_DIMS(codes.dim[0], codes.dim[1]), &counts));
    EXPECT_OK(vq_arena_alloc(&s->f.arena, vq_tensor_bytes(&own_base), &own_base.data));
    for (int64_t i = 0; i < out * in; i++) {
        int q = ((const int8_t *)base.data)[i] + (int)((const float *)zero.data)[i / in];
        int_set(&own_base, in, i, q < -1 ? -1 : q > qmax ? qmax : q);
    }
    for (int64_t i = 0; i < n_vec; i++)
        ((uint16_t *)own_idx.data)[i] = (uint16_t)((const int32_t *)idx.data)[i];
    assert_true(vq_tensor_same_shape(&codes, &l->codes));
    EXPECT_OK(vq_codebook_count(&counts, &own_idx, out * in));
    fixture_put(&s->f, &l->quant.base, own_base.data);
    fixture_put(&s->f, &l->quant.idx, own_idx.data);
    fixture_put(&s->f, &l->quant.scale, scale.data);
    fixture_put(&s->f, &l->quant.zero, zero.data);
    fixture_put(&s->f, &l->codes, codes.data);
    fixture_put(&s->f, &l->counts, counts.data);
}

static void student_open(student *s, const char *name)
{
    char path[512];
    *s = (student){0};
    snprintf(path, sizeof path, TESTS_DIR "/models/%s", name);
    fixture_open(&s->f, path, SEQLEN);
    snprintf(path, sizeof path, TESTS_DIR "/golden/vq-%s.safetensors", name);
    EXPECT_OK(vq_safetensors_open(&s->f.arena, path, &s->file));
    snprintf(path, sizeof path, TESTS_DIR "/golden/vq-%s.json", name);
    assert_non_null(s->info = json_load_file(path, 0, NULL));
    s->config.bits = (int64_t)number(s, "bits");
    s->config.train.steps = (int64_t)json_array_size(json_object_get(s->info, "steps"));
    s->config.train.kd_temperature = number(s, "tau");
    s->config.train.kd_alpha = 1;
    s->config.train.round_weight = number(s, "lambda");
    s->config.train.beta_hi = 20;
    s->config.train.beta_lo = 2;
    s->config.train.beta_hold = 0.1;
    s->config.train.lr = number(s, "lr");
    const vq_list skip = {0};
    const vq_pool_rule rule = {.K = (int64_t)number(s, "K"),
                               .D = (int64_t)number(s, "D"),
                               .skip = &skip,
                               .last = s->f.model.config.N};
    EXPECT_OK(vq_pool_init(&s->f.arena, &s->f.be, &s->f.model, &rule, &s->pool));
    for (int64_t slot = 0; slot < s->pool.n_slots; slot++) load_linear(s, slot);
    const int64_t E = s->f.model.config.E_embed;
    s->ids = golden(&s->file, "ids");
    EXPECT_OK(vq_kept_init(&s->f.arena, &s->f.stage, 1, SEQLEN, VQ_KEEP_ALL, &s->kept));
    vq_tensor *const acts[] = {&s->teacher, &s->hidden, &s->dhidden};
    for (int i = 0; i < 3; i++)
        EXPECT_OK(vq_tensor_new(&s->f.arena, s->f.be.place, VQ_F32, VQ_DIMS(SEQLEN, E), acts[i]));
}

static void student_close(student *s)
{
    json_decref(s->info);
    vq_safetensors_close(&s->file);
    fixture_close(&s->f);
}

/* Task loss and gradients (added to the pool's) of sample i. */
static double run_sample(student *s, int64_t i)
{
    const vq_tensor ids = vq_tensor_rows(&s->ids, i, 1);
    const vq_tensor *head = &s->f.stage.there->head;
    double loss = 0;
    EXPECT_OK(vq_stage_fwd(&s->f.stage, VQ_MODE_FLOAT, 1, 0, &ids, &s->teacher, NULL));
    EXPECT_OK(vq_stage_fwd(&s->f.stage, VQ_MODE_SOFT, 1, 0, &ids, &s->hidden, &s->kept));
    EXPECT_OK(vq_loss_task(&s->f.stage, &s->config, &s->hidden, &s->teacher, head, &ids, 0, 1,
                           &loss, &s->dhidden));
    EXPECT_OK(vq_stage_bwd(&s->f.stage, &s->kept, 0, &s->dhidden, NULL));
    EXPECT_OK(vq_sync(&s->f.be));
    return loss;
}

static void check_close(const char *what, double ours, double theirs, double relative)
{
    if (!(fabs(ours - theirs) <= relative * fabs(theirs)))
        fail_msg("%s: %.9g, the reference %.9g, limit %g relative", what, ours, theirs, relative);
}

/* Every linear's gradient against tensor `what` of the golden file; then the gradient is cleared.
 */
static void check_gradients(student *s, const char *what)
{
    for (int64_t slot = 0; slot < s->pool.n_slots; slot++) {
        const vq_vqlinear *l = linear_at(s, slot);
        if (!l) continue;
        const vq_tensor theirs = part(s, l, what);
        const double error =
            relative_error(fixture_get(&s->f, &l->dcodes), theirs.data, vq_tensor_count(&theirs));
        if (error > GRADIENT_RELATIVE)
            fail_msg("%s.%s differs by %g, limit %g", l->source->name, what, error,
                     GRADIENT_RELATIVE);
    }
    EXPECT_OK(vq_zero(&s->f.be, &s->pool.grad));
}

static void test_first_step(void **state)
{
    student s;
    student_open(&s, *state);
    EXPECT_OK(vq_zero(&s.f.be, &s.pool.grad));
    check_close("kd loss", run_sample(&s, 0), number(&s, "kd_loss"), LOSS_RELATIVE);
    check_gradients(&s, "grad");

    s.config.train.loss = VQ_LOSS_LM;
    check_close("lm loss", run_sample(&s, 0), number(&s, "lm_loss"), LOSS_RELATIVE);
    check_gradients(&s, "grad_lm");

    double reg = 0;
    for (int64_t slot = 0; slot < s.pool.n_slots; slot++) {
        vq_vqlinear *l = linear_at(&s, slot);
        if (l)
            EXPECT_OK(vq_round_reg(&s.f.be, &reg, &l->dcodes, &l->codes, &l->counts,
                                   number(&s, "lambda"), number(&s, "reg_beta")));
    }
    EXPECT_OK(vq_sync(&s.f.be));
    check_close("regularizer", reg / number(&s, "lambda"), number(&s, "reg"), LOSS_RELATIVE);
    check_gradients(&s, "grad_reg");
    student_close(&s);
}

/* Codes after training, but for elements whose first gradient is noise: Adam's first step is lr
 * times its sign. */
static void check_codes(student *s)
{
    for (int64_t slot = 0; slot < s->pool.n_slots; slot++) {
        const vq_vqlinear *l = linear_at(s, slot);
        if (!l) continue;
        const vq_tensor first = part(s, l, "codebook"), last = part(s, l, "codebook20"),
                        grad = part(s, l, "grad");
        const float *ours = fixture_get(&s->f, &l->codes), *c0 = first.data, *c20 = last.data,
                    *g = grad.data;
        const int64_t n = vq_tensor_count(&first);
        double largest = 0, difference = 0, moved = 0;
        for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)g[i]));
        for (int64_t i = 0; i < n; i++) {
            if (fabs((double)g[i]) < GRADIENT_NOISE * largest) continue;
            difference += pow((double)ours[i] - (double)c20[i], 2);
            moved += pow((double)c20[i] - (double)c0[i], 2);
        }
        if (sqrt(difference) > CODES20_RELATIVE * sqrt(moved))
            fail_msg("%s: codes after 20 steps differ by %g of the way, limit %g", l->source->name,
                     sqrt(difference / moved), CODES20_RELATIVE);
    }
}

static void test_twenty_steps(void **state)
{
    student s;
    vq_adam adam;
    student_open(&s, *state);
    EXPECT_OK(vq_adam_init(&s.f.arena, &s.f.be, &s.pool, &adam));
    const json_t *steps = json_object_get(s.info, "steps");
    double *by_slot;
    EXPECT_OK(VQ_NEW(&s.f.arena, s.pool.n_slots, &by_slot));
    for (int64_t step = 0; step < s.config.train.steps; step++) {
        const json_t *theirs = json_array_get(steps, (size_t)step);
        const long waits = shim_waits();
        EXPECT_OK(vq_zero(&s.f.be, &s.pool.grad));
        double loss = run_sample(&s, step % s.ids.dim[0]);
        check_close("task loss of a step", loss, json_number_value(json_object_get(theirs, "task")),
                    LOSS20_RELATIVE);
        memset(by_slot, 0, (size_t)s.pool.n_slots * sizeof *by_slot);
        if (vq_loss_has_reg(&s.config, step))
            EXPECT_OK(vq_loss_reg(&s.f.stage, &s.config, step, by_slot));
        EXPECT_OK(vq_sync(&s.f.be));
        for (int64_t i = 0; i < s.pool.n_slots; i++) loss += by_slot[i];
        check_close("loss of a step", loss, json_number_value(json_object_get(theirs, "total")),
                    LOSS20_RELATIVE);
        check_close("beta", vq_loss_beta(&s.config, step),
                    json_number_value(json_object_get(theirs, "beta")), 1e-12);
        EXPECT_OK(vq_adam_update(&s.f.be, &adam, &s.pool, s.config.train.lr, 0));
        /* Twice for the losses: for no linear, and for no ids. The first step finds memory. */
        if (step > 0 && shim_waits() - waits > 2)
            fail_msg("step %lld: the host waited %ld times, expected at most 2", (long long)step,
                     shim_waits() - waits);
    }
    check_codes(&s);
    student_close(&s);
}

/* The reference's final codes, hardened. */
static void test_hardened(void **state)
{
    student s;
    student_open(&s, *state);
    for (int64_t slot = 0; slot < s.pool.n_slots; slot++) {
        vq_vqlinear *l = linear_at(&s, slot);
        if (!l) continue;
        const vq_tensor codes = part(&s, l, "codebook20"), hard = part(&s, l, "hard");
        vq_tensor w;
        fixture_put(&s.f, &l->codes, codes.data);
        EXPECT_OK(vq_vqlinear_weight(&s.f.be, l, VQ_MODE_HARD, &s.f.arena, &w));
        assert_memory_equal(fixture_get(&s.f, &w), hard.data, vq_tensor_bytes(&hard));
    }
    student_close(&s);
}

#define MODEL(name)                                                                                \
    {"first step, " name, test_first_step, NULL, NULL, name},                                      \
        {"20 steps, " name, test_twenty_steps, NULL, NULL, name},                                  \
    {                                                                                              \
        "hardened, " name, test_hardened, NULL, NULL, name                                         \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {MODEL("rand-llama-gqa-tied"), MODEL("rand-opt-f32"),
                                       MODEL("rand-qwen3-tied")};
    return RUN_TESTS(tests);
}
