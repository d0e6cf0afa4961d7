/* test_gptq_ops - the slots behind GPTQ: the f64 build against loops over the formulas, the f32
 * build for the same bits with 1, 2 and 3 threads. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "arenas.h"
#include "cpu_backend.h"
#include "expect.h"
#include "grid.h"
#include "ints.h"
#include "rng.h"

static vq_tensor new_tensor(vq_dtype dtype, int64_t rows, int64_t columns)
{
    vq_tensor t;
    EXPECT_OK(vq_tensor_new(&arena, VQ_HOST, dtype, VQ_DIMS(rows, columns), &t));
    memset(t.data, 0, vq_tensor_bytes(&t));
    return t;
}

static double get(const vq_tensor *t, int64_t i)
{
    double x = NAN;
    (void)vq_convert(&x, VQ_F64, (const uint8_t *)t->data + (size_t)i * vq_dtype_bytes(t->dtype),
                     t->dtype, 1);
    return x;
}

static void set(vq_tensor *t, int64_t i, double x)
{
    (void)vq_convert((uint8_t *)t->data + (size_t)i * vq_dtype_bytes(t->dtype), t->dtype, &x,
                     VQ_F64, 1);
}

/* Uniform in [-0.5, 0.5). */
static vq_tensor noise(vq_dtype dtype, int64_t rows, int64_t columns, uint64_t seed)
{
    vq_tensor t = new_tensor(dtype, rows, columns);
    for (int64_t i = 0; i < rows * columns; i++)
        set(&t, i, vq_rng_uniform(seed, (uint64_t)i, 0) - 0.5);
    return t;
}

/* --- syrk ------------------------------------------------------------------------------------ */

static const struct {
    int64_t rows, n, gap;
} SYRK[] = {{1, 1, 0}, {3, 5, 2}, {1500, 37, 0}, {70, 200, 1}, {33, 401, 0}};

static void test_syrk(void **state)
{
    (void)state;
    for (int c = 0; c < VQ_COUNT(SYRK); c++) {
        const size_t mark = vq_arena_mark(&arena);
        const int64_t rows = SYRK[c].rows, n = SYRK[c].n, ld = n + SYRK[c].gap;
        vq_backend be;
        vq_tensor x64 = noise(VQ_F64, rows, ld, 1), x32 = noise(VQ_F32, rows, ld, 1), first = {0};
        x64.dim[1] = x32.dim[1] = n;
        vq_tensor h = noise(VQ_F64, n, n, 2);
        const vq_tensor before = noise(VQ_F64, n, n, 2);
        EXPECT_OK(vq_cpu_open_f64(&be, 2));
        EXPECT_OK(vq_syrk(&be, &h, &x64, 0.3));
        vq_cpu_close_f64(&be);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) {
                double sum = 0;
                for (int64_t r = 0; r < rows && j <= i; r++)
                    sum += get(&x64, r * ld + i) * get(&x64, r * ld + j);
                const double expected = get(&before, i * n + j) + 0.3 * sum;
                if (fabs(get(&h, i * n + j) - expected) > 1e-12 * (double)rows)
                    fail_msg("h[%lld, %lld] = %.17g, expected %.17g", (long long)i, (long long)j,
                             get(&h, i * n + j), expected);
            }
        for (int threads = 1; threads <= 3; threads++) {
            vq_tensor h32 = noise(VQ_F64, n, n, 2);
            EXPECT_OK(vq_cpu_open(&be, threads));
            EXPECT_OK(vq_syrk(&be, &h32, &x32, 0.3));
            vq_cpu_close(&be);
            if (threads == 1) {
                first = h32;
                for (int64_t i = 0; i < n * n; i++)
                    assert_true(fabs(get(&h32, i) - get(&h, i)) <= 1e-5 * sqrt((double)rows));
            }
            assert_memory_equal(h32.data, first.data, vq_tensor_bytes(&first));
        }
        vq_arena_reset(&arena, mark);
    }
}

/* --- inverse_factor -------------------------------------------------------------------------- */

/* A permutation of n. */
static vq_tensor shuffled(int64_t n, uint64_t seed)
{
    vq_tensor t;
    EXPECT_OK(vq_tensor_new(&arena, VQ_HOST, VQ_I32, VQ_DIMS(n), &t));
    int32_t *p = t.data;
    for (int64_t i = 0; i < n; i++) p[i] = (int32_t)i;
    for (int64_t i = n - 1; i > 0 && seed; i--) {
        const int64_t j = (int64_t)(vq_rng_uniform(seed, (uint64_t)i, 3) * (double)(i + 1));
        const int32_t swap = p[i];
        p[i] = p[j], p[j] = swap;
    }
    return t;
}

/* The second moments of correlated inputs, f64 [n, n]: rank `rank` at most. */
static vq_tensor moments(int64_t n, int64_t rank)
{
    vq_backend be;
    vq_tensor h = new_tensor(VQ_F64, n, n), x = noise(VQ_F64, rank, n, 5);
    for (int64_t i = 0; i < rank * n; i++) set(&x, i, get(&x, i) + 0.3 * get(&x, i / n * n));
    EXPECT_OK(vq_cpu_open_f64(&be, 1));
    EXPECT_OK(vq_syrk(&be, &h, &x, 1));
    vq_cpu_close_f64(&be);
    return h;
}

static void test_inverse_factor(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 2, 37, 128, 129, 300, 515};
    for (int c = 0; c < VQ_COUNT(sizes); c++) {
        const size_t mark = vq_arena_mark(&arena);
        const int64_t n = sizes[c];
        const double damp = 0.05;
        const vq_tensor order = shuffled(n, 7);
        vq_tensor h = moments(n, n / 2 + 1);
        const int32_t *of = order.data;
        vq_tensor u = new_tensor(VQ_F64, n, n), first = {0};
        vq_backend be;
        bool positive;
        EXPECT_OK(vq_cpu_open_f64(&be, 3));
        EXPECT_OK(vq_inverse_factor(&be, &u, &positive, &h, &order, damp));
        assert_true(positive);
        /* H U^T U = 1, by columns of v = U^T (U e). */
        double *v = new_tensor(VQ_F64, 2, n).data, *w = v + n;
        for (int64_t k = 0; k<n; k += n> 100 ? 17 : 1) {
            for (int64_t i = 0; i < n; i++) v[i] = get(&u, i * n + k);
            for (int64_t i = 0; i < n; i++) {
                w[i] = 0;
                for (int64_t j = 0; j <= i; j++) w[i] += get(&u, j * n + i) * v[j];
                if (i > 0) assert_true(get(&u, i * n + i - 1) == 0);
            }
            for (int64_t i = 0; i < n; i++) {
                double sum = damp * w[i];
                for (int64_t j = 0; j < n; j++)
                    sum += get(&h, VQ_MAX(of[i], of[j]) * n + VQ_MIN(of[i], of[j])) * w[j];
                if (fabs(sum - (i == k)) > 1e-9)
                    fail_msg("n %lld: (H U^T U)[%lld, %lld] = %.17g", (long long)n, (long long)i,
                             (long long)k, sum);
            }
        }
        vq_cpu_close_f64(&be);
        for (int threads = 1; threads <= 3; threads++) {
            vq_tensor u32 = new_tensor(VQ_F32, n, n);
            EXPECT_OK(vq_cpu_open(&be, threads));
            EXPECT_OK(vq_inverse_factor(&be, &u32, &positive, &h, &order, damp));
            vq_cpu_close(&be);
            if (threads == 1) first = u32;
            for (int64_t i = 0; i < n * n; i++) assert_true(get(&u32, i) == (float)get(&u, i));
            assert_memory_equal(u32.data, first.data, vq_tensor_bytes(&first));
        }
        vq_arena_reset(&arena, mark);
    }
}

static void test_not_positive(void **state)
{
    (void)state;
    const int64_t sizes[] = {2, 60, 300};
    vq_backend be;
    EXPECT_OK(vq_cpu_open(&be, 2));
    for (int c = 0; c < VQ_COUNT(sizes); c++) {
        const int64_t n = sizes[c];
        vq_tensor h = moments(n, VQ_MAX(1, n / 2)), u = new_tensor(VQ_F32, n, n);
        const vq_tensor order = shuffled(n, 0);
        bool positive = true;
        EXPECT_OK(vq_inverse_factor(&be, &u, &positive, &h, &order, 0)); /* half its rank */
        assert_false(positive);
        EXPECT_OK(vq_inverse_factor(&be, &u, &positive, &h, &order, 0.01));
        assert_true(positive);
        set(&h, n, get(&h, 0) + get(&h, n + 1) + 1); /* |h10|^2 > h00 h11 */
        EXPECT_OK(vq_inverse_factor(&be, &u, &positive, &h, &order, 0.01));
        assert_false(positive);
    }
    vq_cpu_close(&be);
}

/* --- gptq_sweep ------------------------------------------------------------------------------ */

typedef struct sweep_case {
    int64_t out, in;
    int bits;
    int64_t group_size;
    vq_dtype w_dtype;
    bool ordered;
    vq_sweep_rule rule;
} sweep_case;

#define RULE(block, symmetric, dtype, statics, hessian, search, weigh)                             \
    {                                                                                              \
        block, symmetric, dtype, statics, hessian, search, weigh                                   \
    }

static const sweep_case SWEEP[] = {
    {1, 1, 4, 1, VQ_F32, false, RULE(128, false, VQ_F32, false, false, false, false)},
    {5, 37, 3, 37, VQ_F32, false, RULE(16, false, VQ_F32, false, false, false, false)},
    {201, 83, 2, 83, VQ_F16, true, RULE(128, true, VQ_F16, false, true, false, false)},
    {201, 83, 3, 20, VQ_BF16, false, RULE(32, false, VQ_BF16, false, false, false, false)},
    {40, 83, 4, 16, VQ_F32, true, RULE(7, true, VQ_F32, false, true, false, false)},
    {40, 200, 8, 64, VQ_F32, true, RULE(128, false, VQ_F16, true, false, false, false)},
    {300, 131, 8, 1, VQ_F32, false, RULE(1, false, VQ_F32, true, false, false, false)},
    {40, 83, 2, 83, VQ_F32, true, RULE(32, false, VQ_F32, false, false, true, false)},
    {40, 83, 3, 20, VQ_BF16, false, RULE(32, true, VQ_BF16, false, false, true, false)},
    {40, 83, 2, 20, VQ_F16, true, RULE(32, false, VQ_F16, true, false, true, false)},
    {40, 83, 2, 83, VQ_F32, true, RULE(32, false, VQ_F32, false, false, true, true)},
    {40, 83, 3, 20, VQ_BF16, true, RULE(32, true, VQ_BF16, false, false, true, true)},
    {40, 83, 2, 20, VQ_F16, true, RULE(32, false, VQ_F16, true, false, true, true)},
};

typedef struct swept {
    vq_quant q;
    vq_tensor ints, rest;
    double error;
} swept;

typedef struct sweep_input {
    vq_tensor w, u, order, dead;
} sweep_input;

static sweep_input make_input(const sweep_case *c, vq_dtype real)
{
    sweep_input a = {.w = noise(c->w_dtype, c->out, c->in, 11),
                     .u = new_tensor(real, c->in, c->in),
                     .order = shuffled(c->in, c->ordered ? 13 : 0)};
    EXPECT_OK(vq_tensor_new(&arena, VQ_HOST, VQ_U8, VQ_DIMS(c->in), &a.dead));
    for (int64_t i = 0; i < c->in; i++) ((uint8_t *)a.dead.data)[i] = i % 29 == 3;
    for (int64_t i = 0; i < c->in; i++) { /* a row of one sign, and one of zeros */
        if (c->out > 1) set(&a.w, c->in + i, fabs(get(&a.w, c->in + i)) + 0.01);
        if (c->out > 4) set(&a.w, 4 * c->in + i, 0);
    }
    vq_tensor h = moments(c->in, 2 * c->in);
    vq_backend be;
    bool positive;
    EXPECT_OK(real == VQ_F64 ? vq_cpu_open_f64(&be, 1) : vq_cpu_open(&be, 1));
    EXPECT_OK(vq_inverse_factor(&be, &a.u, &positive, &h, &a.order, 0.01));
    real == VQ_F64 ? vq_cpu_close_f64(&be) : vq_cpu_close(&be);
    return a;
}

static void run_sweep(const vq_backend *be, const sweep_case *c, const sweep_input *a, swept *s)
{
    const int64_t groups = VQ_CEIL_DIV(c->in, c->group_size);
    const vq_tensor ints = vq_quant_ints(c->bits, c->out, c->in);
    *s = (swept){.q = {.base = new_tensor(ints.dtype, c->out, ints.dim[1]),
                       .scale = new_tensor(be->real, c->out, groups),
                       .zero = new_tensor(be->real, c->out, groups),
                       .bits = c->bits,
                       .group_size = c->group_size},
                 .ints = new_tensor(ints.dtype, c->out, ints.dim[1]),
                 .rest = new_tensor(be->real, c->out, c->in)};
    EXPECT_OK(vq_gptq_sweep(be, &s->q, &s->ints, &s->rest, &s->error, &a->w, &a->u, &a->order,
                            &a->dead, &c->rule));
}

/* Scale and zero of n weights by the slots that are tested elsewhere. */
static void find_grid(const vq_backend *be, const sweep_case *c, double *w, double *variance,
                      int64_t n, double *s, double *z)
{
    double *both = new_tensor(VQ_F64, 2, n).data; /* means are 0 */
    const vq_tensor row = vq_tensor_2d(w, VQ_F64, 1, n), by = vq_tensor_2d(both, VQ_F64, 2, n);
    vq_tensor scale = vq_tensor_2d(s, VQ_F64, 1, 1), zero = vq_tensor_2d(z, VQ_F64, 1, 1);
    memset(both, 0, 2 * (size_t)n * sizeof *both);
    memcpy(both, variance, (size_t)n * sizeof *both);
    if (c->rule.search)
        EXPECT_OK(vq_grid_search(be, &scale, &zero, &row, c->rule.weigh ? &by : NULL, c->bits, n,
                                 c->rule.symmetric, c->rule.scale_dtype));
    else
        EXPECT_OK(vq_grid_minmax(be, &scale, &zero, &row, c->bits, n, c->rule.symmetric, true,
                                 c->rule.scale_dtype));
}

/* One row, a column at a time; the sweep's block only decides what a running group sees. */
static double sweep_row(const vq_backend *be, const sweep_case *c, const sweep_input *a, int64_t o,
                        const swept *got)
{
    const int64_t in = c->in, groups = VQ_CEIL_DIV(in, c->group_size), size = c->group_size;
    const double qmax = (1 << c->bits) - 1;
    double *w = new_tensor(VQ_F64, 1, in).data, *seen = new_tensor(VQ_F64, 1, in).data;
    double *s = new_tensor(VQ_F64, 1, groups).data, *z = new_tensor(VQ_F64, 1, groups).data;
    const int32_t *order = a->order.data;
    /* As the sweep goes, and by their places in w. */
    double *by_turn = new_tensor(VQ_F64, 1, in).data, *by_place = new_tensor(VQ_F64, 1, in).data;
    double error = 0;
    for (int64_t p = 0; p < in; p++)
        by_place[order[p]] = by_turn[p] = 1 / (get(&a->u, p * in + p) * get(&a->u, p * in + p));
    for (int64_t i = 0; i < in; i++) w[i] = get(&a->w, o * in + i);
    if (groups == 1) find_grid(be, c, w, by_place, in, s, z);
    for (int64_t i = 0; i < in; i++)
        if (((const uint8_t *)a->dead.data)[i]) w[i] = 0;
    for (int64_t g = 0; g < groups && groups > 1 && c->rule.static_groups; g++)
        find_grid(be, c, w + g * size, by_place + g * size, VQ_MIN(size, in - g * size), &s[g],
                  &z[g]);
    memcpy(seen, w, (size_t)in * sizeof *w);
    for (int64_t p = 0; p < in; p++) w[p] = seen[order[p]];
    for (int64_t p = 0; p < in; p++) {
        if (p % c->rule.block_size == 0) memcpy(seen, w, (size_t)in * sizeof *w);
        const int64_t i = order[p];
        const int64_t g = groups == 1 ? 0 : (c->rule.static_groups ? i : p) / size;
        if (groups > 1 && !c->rule.static_groups && p % size == 0)
            find_grid(be, c, seen + p, by_turn + p, VQ_MIN(size, in - p), &s[g], &z[g]);
        const double u = w[p] / s[g], n = fmax(0, fmin(rint(u) + z[g], qmax));
        const double e = (w[p] - s[g] * (n - z[g])) / get(&a->u, p * in + p);
        const double exact = u - floor(u);
        const double rest = c->rule.hessian_residual ? fmax(0, fmin(exact - e, 1)) : exact;
        const double base = fmax(-1, fmin(floor(u) + z[g], qmax));
        for (int64_t k = p + 1; k < in; k++) w[k] -= e * get(&a->u, p * in + k);
        error += e * e;
        if ((double)int_at(&got->ints, in, o * in + i) != n ||
            (double)int_at(&got->q.base, in, o * in + i) != base ||
            fabs(get(&got->rest, o * in + i) - rest) > 1e-8)
            fail_msg("[%lld, %lld]: %d, base %d, rest %.17g; expected %g, %g, %.17g", (long long)o,
                     (long long)i, int_at(&got->ints, in, o * in + i),
                     int_at(&got->q.base, in, o * in + i), get(&got->rest, o * in + i), n, base,
                     rest);
    }
    for (int64_t g = 0; g < groups; g++) {
        assert_true(fabs(get(&got->q.scale, o * groups + g) - s[g]) <= 1e-12 * s[g]);
        assert_true(get(&got->q.zero, o * groups + g) == z[g]);
    }
    return error;
}

static void test_sweep(void **state)
{
    (void)state;
    for (int i = 0; i < VQ_COUNT(SWEEP); i++) {
        const sweep_case *c = &SWEEP[i];
        const size_t mark = vq_arena_mark(&arena);
        vq_backend be;
        swept got, first = {0};
        sweep_input a = make_input(c, VQ_F64);
        EXPECT_OK(vq_cpu_open_f64(&be, 2));
        run_sweep(&be, c, &a, &got);
        double error = 0;
        for (int64_t o = 0; o < c->out; o++) error += sweep_row(&be, c, &a, o, &got);
        assert_true(fabs(error - got.error) <= 1e-9 * error);
        vq_cpu_close_f64(&be);

        a = make_input(c, VQ_F32);
        for (int threads = 1; threads <= 3; threads++) {
            EXPECT_OK(vq_cpu_open(&be, threads));
            run_sweep(&be, c, &a, &got);
            vq_cpu_close(&be);
            if (threads == 1) first = got;
            assert_memory_equal(got.ints.data, first.ints.data, vq_tensor_bytes(&got.ints));
            assert_memory_equal(got.q.base.data, first.q.base.data, vq_tensor_bytes(&got.q.base));
            assert_memory_equal(got.rest.data, first.rest.data, vq_tensor_bytes(&got.rest));
            assert_memory_equal(got.q.scale.data, first.q.scale.data,
                                vq_tensor_bytes(&got.q.scale));
            assert_memory_equal(&got.error, &first.error, sizeof got.error);
        }
        vq_arena_reset(&arena, mark);
    }
}

static void test_grid_value(void **state)
{
    (void)state;
    enum { OUT = 7, IN = 45, SIZE = 20, GROUPS = 3 };
    vq_backend be;
    EXPECT_OK(vq_cpu_open(&be, 2));
    for (int bits = 2; bits <= 8; bits += 3) {
        const vq_tensor shape = vq_quant_ints(bits, OUT, IN);
        vq_tensor ints = new_tensor(shape.dtype, OUT, shape.dim[1]);
        vq_tensor out = new_tensor(VQ_F32, OUT, IN);
        vq_quant q = {.scale = noise(VQ_F32, OUT, GROUPS, 3),
                      .zero = new_tensor(VQ_F32, OUT, GROUPS),
                      .bits = bits,
                      .group_size = SIZE};
        for (int64_t i = 0; i < OUT * GROUPS; i++) set(&q.zero, i, (double)(i % (1 << bits)));
        for (int64_t i = 0; i < OUT * IN; i++) int_set(&ints, IN, i, (int)(i % (1 << bits)));
        EXPECT_OK(vq_grid_value(&be, &out, &ints, &q));
        for (int64_t i = 0; i < OUT * IN; i++) {
            const int64_t g = i / IN * GROUPS + i % IN / SIZE;
            const double w = get(&q.scale, g) * ((double)(i % (1 << bits)) - get(&q.zero, g));
            assert_true(get(&out, i) == (float)w);
        }
    }
    vq_cpu_close(&be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_syrk), cmocka_unit_test(test_inverse_factor),
        cmocka_unit_test(test_not_positive), cmocka_unit_test(test_sweep),
        cmocka_unit_test(test_grid_value)};
    return cmocka_run_group_tests(tests, open_arenas, close_arenas);
}
