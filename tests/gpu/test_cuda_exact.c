/* test_cuda_exact - what the list of op cases does not ask of the GPU's kernels: the CPU's bits
 * where each operation is rounded alike, GPTQ's sweep beside the CPU's, gradients of very different
 * sizes, and what is not finite, not positive definite or not a token. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "cpu_backend.h"
#include "device.h"
#include "op_compare.h"

#ifdef VQ_ON_SHIM
#include "cuda_ops.h"
#include "cuda_plan.h"
#endif

static device gpu;
static vq_backend cpu;

static int setup(void **state)
{
    (void)state;
    EXPECT_OK(vq_cpu_open(&cpu, 1));
    device_open(&gpu, VQ_F32);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    device_close(&gpu);
    vq_cpu_close(&cpu);
    return 0;
}

static op_args run_on(const vq_backend *be, const op_case *c)
{
    op_args a = {0};
    EXPECT_OK(c->kind->make(be, &gpu.arena, c->size, &a));
    EXPECT_OK(op_run(be, &gpu.arena, c->kind->run, c->size, &a));
    return a;
}

static void test_same_bits(void **state)
{
    (void)state;
    const op_case cases[] = {
        {&OP_GRID_MINMAX, {37, 83, 3, 20, VQ_F32, 0, 1, VQ_F16}},
        {&OP_GRID_MINMAX, {37, 2089, 2, 2089, VQ_F32, 0, 0, VQ_F32}},
        {&OP_GRID_MINMAX, {37, 83, 4, 1, VQ_F16, 1, 1, VQ_BF16}},
        {&OP_GRID_SPLIT, {37, 83, 3, 20, VQ_F32}},
        {&OP_GRID_SPLIT, {37, 2089, 8, 2089, VQ_BF16}},
        {&OP_GRID_ROUND, {37, 83, 3, 20, VQ_F32}},
        {&OP_GRID_VALUE, {37, 83, 8, 20, VQ_F32}},
        {&OP_ROUND_SCALE_FWD, {37, 83, 50, 7, 4, 20, VQ_U16, VQ_BF16}},
        {&OP_ADAM, {20011}},
#ifdef __FMA__ /* the CPU's products are fused then, too */
        {&OP_KMEANS_ASSIGN, {3001, 700, 8}},
        {&OP_KMEANS_ASSIGN, {301, 37, 7}},
        {&OP_KMEANS_ASSIGN, {3001, 200, 8, 7}},
#endif
    };
    for (int i = 0; i < VQ_COUNT(cases); i++) {
        char text[160];
        const size_t mark = vq_arena_mark(&gpu.arena);
        const op_args a = run_on(&cpu, &cases[i]), b = run_on(&gpu.be, &cases[i]);
        for (int j = 0; j < a.n_out; j++)
            if (memcmp(a.out[j].data, b.out[j].data, vq_tensor_bytes(&a.out[j])) != 0)
                fail_msg("%s: output %d has other bits than the CPU's", case_text(&cases[i], text),
                         j);
        vq_arena_reset(&gpu.arena, mark);
    }
}

/* A large weight of more codes than shared memory holds: their rounding values are made first. */
static void test_large_table(void **state)
{
    (void)state;
    const op_case c = {&OP_ROUND_FWD, {4096, 2048, 33000, 8, 3, 2048, VQ_U16, 0}};
    const size_t mark = vq_arena_mark(&gpu.arena);
#ifdef VQ_ON_SHIM
    assert_true(vq_cuda_round_makes_table(c.size[0] * c.size[1]));
#endif
    const op_args expected = run_on(&cpu, &c), a = run_on(&gpu.be, &c);
    if (!(nmse(&a.out[0], &expected.out[0]) <= 1e-12))
        fail_msg("NMSE %g", nmse(&a.out[0], &expected.out[0]));
    vq_arena_reset(&gpu.arena, mark);
}

/* A last bit may decide which way a weight is rounded, and then its row goes on differently. A row
 * of the same integers has the same w / s, base + rest, but for rounding. */
static void compare_sweeps(const op_case *c, const op_args *a, const op_args *b)
{
    char text[160];
    const int64_t in = c->size[1];
    const bool hessian = c->size[6] & 4;
    int64_t others = 0;
    for (int64_t o = 0; o < c->size[0]; o++) {
        bool same = true;
        for (int64_t i = o * in; i < (o + 1) * in; i++)
            same = same && int_at(&a->out[1], in, i) == int_at(&b->out[1], in, i);
        others += !same;
        for (int64_t i = o * in; i < (o + 1) * in && same; i++) {
            const double x = int_at(&a->out[0], in, i) + op_get(&a->out[2], i);
            const double y = int_at(&b->out[0], in, i) + op_get(&b->out[2], i);
            /* A rest that is near 0 or 1 may be either, with the Hessian's residual too. */
            if (!(fabs(x - y) <= 1e-3) && !(hessian && fabs(fabs(x - y) - 1) <= 1e-3))
                fail_msg("%s: [%lld, %lld]: base + rest = %.9g, expected %.9g", case_text(c, text),
                         (long long)o, (long long)(i - o * in), y, x);
        }
    }
    if (others > c->size[0] / 20)
        fail_msg("%s: %lld rows have other integers than the CPU's, expected some",
                 case_text(c, text), (long long)others);
    if (!(fabs(a->loss - b->loss) <= 1e-3 * a->loss))
        fail_msg("%s: the error is %.9g, expected %.9g", case_text(c, text), b->loss, a->loss);
    if (others) return;
    for (int j = 3; j < 5; j++)
        if (!(nmse(&b->out[j], &a->out[j]) <= 1e-9))
            fail_msg("%s: output %d has NMSE %g", case_text(c, text), j,
                     nmse(&b->out[j], &a->out[j]));
}

static void test_sweep(void **state)
{
    (void)state;
    /* whole rows, running and static groups, blocks shorter and longer than what a warp holds */
    const op_case cases[] = {
        {&OP_GPTQ_SWEEP, {1, 1, 4, 1, VQ_F32, 128, 0, 0}},
        {&OP_GPTQ_SWEEP, {5, 37, 3, 37, VQ_F32, 16, 0, 0}},
        {&OP_GPTQ_SWEEP, {201, 83, 2, 83, VQ_F16, 128, 1 + 4, 11}},
        {&OP_GPTQ_SWEEP, {201, 83, 3, 20, VQ_BF16, 32, 0, 0}},
        {&OP_GPTQ_SWEEP, {40, 83, 4, 16, VQ_F32, 7, 1 + 4, 5}},
        {&OP_GPTQ_SWEEP, {40, 200, 8, 64, VQ_F32, 128, 2, 70}},
        {&OP_GPTQ_SWEEP, {40, 500, 4, 100, VQ_F32, 300, 0, 70}},
        {&OP_GPTQ_SWEEP, {40, 300, 4, 300, VQ_F32, 1 << 20, 0, 0}},
        {&OP_GPTQ_SWEEP, {30, 131, 8, 1, VQ_F32, 1, 2, 0}},
        {&OP_GPTQ_SWEEP, {40, 83, 2, 83, VQ_F32, 32, 8, 0}},
        {&OP_GPTQ_SWEEP, {40, 83, 3, 20, VQ_BF16, 32, 1 + 8, 5}},
        {&OP_GPTQ_SWEEP, {40, 83, 2, 20, VQ_F16, 32, 2 + 8, 5}},
    };
    for (int i = 0; i < VQ_COUNT(cases); i++) {
        const size_t mark = vq_arena_mark(&gpu.arena);
        const op_args expected = run_on(&cpu, &cases[i]);
        op_args first = {0};
        for (int run = 0; run < DEVICE_RUNS; run++) {
            device_run(run);
            const op_args a = run_on(&gpu.be, &cases[i]);
            if (run == 0) {
                compare_sweeps(&cases[i], &expected, &a);
                first = a;
            }
            for (int j = 0; j < a.n_out; j++)
                assert_memory_equal(a.out[j].data, first.out[j].data, vq_tensor_bytes(&a.out[j]));
            assert_memory_equal(&a.loss, &first.loss, sizeof a.loss);
        }
        device_run(0);
        vq_arena_reset(&gpu.arena, mark);
    }
}

/* Gradients that grow along the weight by 2^40: the fixed-point numbers are shifted again and
 * again, and what is small beside the greatest may be lost, nothing else. */
static void test_gradients_of_all_sizes(void **state)
{
    (void)state;
    const op_case c = {&OP_ROUND_BWD, {64, 2048, 40, 8, 3, 2048, VQ_U16}};
    op_args of[2];
    memset(of, 0, sizeof of);
    const vq_backend *be[] = {&cpu, &gpu.be};
    for (int b = 0; b < 2; b++) {
        op_args *a = &of[b];
        EXPECT_OK(c.kind->make(be[b], &gpu.arena, c.size, a));
        float *dw = a->out[0].data;
        const int64_t n = vq_tensor_count(&a->out[0]);
        for (int64_t i = 0; i < n; i++) dw[i] = ldexpf(dw[i], (int)(i * 40 / n) - 60);
        EXPECT_OK(op_run(be[b], &gpu.arena, c.kind->run, c.size, a));
    }
    assert_true(nmse(&of[1].out[1], &of[0].out[1]) <= 1e-11);
    vq_arena_reset(&gpu.arena, 0);
}

/* NaN and infinity reach the result, so that the caller's check sees them. */
static void test_not_finite(void **state)
{
    (void)state;
    const op_case cases[] = {{&OP_HEAD_KD, {5, 7, 1000, VQ_F32, 0}},
                             {&OP_HEAD_NLL, {5, 7, 1001, VQ_F32}},
                             {&OP_MSE, {4, 250}},
                             {&OP_NORM2, {1000}},
                             {&OP_ROUND_BWD, {96, 128, 64, 8, 3, 128, VQ_U16}},
                             {&OP_ROUND_BWD, {96, 128, 0, 8, 3, 128, VQ_U16}},
                             {&OP_KMEANS_UPDATE, {301, 7, 8}}};
    for (int i = 0; i < VQ_COUNT(cases); i++)
        for (int j = 0; j < 2; j++) {
            op_args a = {0};
            const bool bwd = cases[i].kind == &OP_ROUND_BWD;
            EXPECT_OK(cases[i].kind->make(&gpu.be, &gpu.arena, cases[i].size, &a));
            if (cases[i].kind == &OP_HEAD_NLL) op_set(&a.in[4], 0, 1);
            if (bwd) op_set(&a.in[0], 3, 0), op_set(&a.in[1], 3, 1);
            op_set(bwd ? &a.out[0] : &a.in[0], 3, j ? NAN : INFINITY);
            EXPECT_OK(op_run(&gpu.be, &gpu.arena, cases[i].kind->run, cases[i].size, &a));
            double sum = a.loss;
            for (int64_t k = 0; a.n_out > 1 && k < vq_tensor_count(&a.out[1]); k++)
                sum += op_get(&a.out[1], k);
            if (sum - sum == 0) {
                char text[160];
                fail_msg("%s: %g is lost", case_text(&cases[i], text), j ? (double)NAN : INFINITY);
            }
            vq_arena_reset(&gpu.arena, 0);
        }
}

static void test_not_positive(void **state)
{
    (void)state;
    const int64_t n = 60;
    op_args a = {0};
    EXPECT_OK(inverse_factor_make(&gpu.be, &gpu.arena, (int64_t[]){n, 7}, &a));
    for (int64_t i = 0; i < n * n; i++) op_set(&a.in[0], i, 1); /* rank 1: only damping helps */
    EXPECT_OK(op_run(&gpu.be, &gpu.arena, inverse_factor_run, (int64_t[]){n, 7}, &a));
    assert_true(a.loss == 1);
    for (int64_t i = 0; i < n; i++) op_set(&a.in[0], i * n + i, 1 - 0.05); /* less the damping */
    EXPECT_OK(op_run(&gpu.be, &gpu.arena, inverse_factor_run, (int64_t[]){n, 7}, &a));
    assert_true(a.loss == 0);
    for (int64_t i = 0; i < n; i++) op_set(&a.in[0], i * n + i, 1);
    op_set(&a.in[0], n, 2); /* h10^2 > h00 h11 */
    EXPECT_OK(op_run(&gpu.be, &gpu.arena, inverse_factor_run, (int64_t[]){n, 7}, &a));
    assert_true(a.loss == 0);
    vq_arena_reset(&gpu.arena, 0);
}

static void test_bad_targets(void **state)
{
    (void)state;
    const op_case c = {&OP_HEAD_NLL, {70, 7, 100, VQ_F32}};
    op_args a = {0};
    EXPECT_OK(c.kind->make(&gpu.be, &gpu.arena, c.size, &a));
    op_set(&a.in[4], 69, -2);
    op_set(&a.in[4], 66, 100);
    EXPECT_ERROR(op_run(&gpu.be, &gpu.arena, c.kind->run, c.size, &a), VQ_EINTERNAL,
                 "targets[66] is 100", "-1 to 99", "tokenizer");
    vq_arena_reset(&gpu.arena, 0);
}

/* Large logits do not overflow; the same logits have no loss; dx may be left out. */
static void test_large_logits(void **state)
{
    (void)state;
    vq_tensor x, head, target;
    const float values[2] = {1000, -1000}, weights[4] = {1, 0, 0, 1};
    const int32_t targets[1] = {1};
    EXPECT_OK(vq_tensor_new(&gpu.arena, VQ_DEVICE, VQ_F32, VQ_DIMS(1, 2), &x));
    EXPECT_OK(vq_tensor_new(&gpu.arena, VQ_DEVICE, VQ_F32, VQ_DIMS(2, 2), &head));
    EXPECT_OK(vq_tensor_new(&gpu.arena, VQ_DEVICE, VQ_I32, VQ_DIMS(1), &target));
    EXPECT_OK(vq_upload(&gpu.be, &x, values));
    EXPECT_OK(vq_upload(&gpu.be, &head, weights));
    EXPECT_OK(vq_upload(&gpu.be, &target, targets));
    double loss = 0;
    EXPECT_OK(vq_head_nll(&gpu.be, &loss, NULL, &x, &head, &target, 1));
    assert_float_equal(loss, 2000, 0);
    loss = 0;
    EXPECT_OK(vq_head_kd(&gpu.be, &loss, NULL, &x, &x, &head, &head, 2, 1));
    EXPECT_OK(vq_sync(&gpu.be));
    assert_float_equal(loss, 0, 0);
    vq_arena_reset(&gpu.arena, 0);
}

/* Losses are there when somebody asks: the host waits for none of them, but where they are many. */
static void test_losses_later(void **state)
{
    (void)state;
    enum { N = 300 };
    const float values[3] = {1, 2, 3};
    double loss[N];
    vq_tensor y, target;
    EXPECT_OK(vq_tensor_new(&gpu.arena, VQ_DEVICE, VQ_F32, VQ_DIMS(1, 3), &y));
    EXPECT_OK(vq_tensor_new(&gpu.arena, VQ_DEVICE, VQ_F32, VQ_DIMS(1, 3), &target));
    EXPECT_OK(vq_upload(&gpu.be, &y, values));
    EXPECT_OK(vq_zero(&gpu.be, &target));
#ifdef VQ_ON_SHIM
    const long waits = shim_waits();
#endif
    for (int i = 0; i < N; i++) {
        loss[i] = 1;
        EXPECT_OK(vq_mse(&gpu.be, &loss[i], NULL, &y, &target, i));
    }
#ifdef VQ_ON_SHIM
    assert_true(shim_waits() - waits <= 1);
#endif
    EXPECT_OK(vq_sync(&gpu.be));
    for (int i = 0; i < N; i++) assert_true(loss[i] == 1 + 14.0 * i);
    vq_arena_reset(&gpu.arena, 0);
}

/* Weights on their way, of many sizes, each read once; the host's are changed at once. */
static void test_bring(void **state)
{
    (void)state;
    enum { MOST = 5 << 20 }; /* of u32: more than two pinned pieces */
    const int64_t sizes[] = {1, 3 << 20, 77, MOST, MOST - 3, 12345, 2 << 20, 5};
    vq_tensor copy[VQ_COUNT(sizes)], there;
    uint32_t *host, *found;
    EXPECT_OK(VQ_NEW(&gpu.arena, MOST, &host));
    EXPECT_OK(VQ_NEW(&gpu.arena, MOST, &found));
    for (int i = 0; i < VQ_COUNT(sizes); i++) {
        for (int64_t j = 0; j < sizes[i]; j++) host[j] = (uint32_t)(j * 7 + i);
        const vq_tensor weight = vq_tensor_1d(host, VQ_U32, sizes[i]);
        EXPECT_OK(vq_tensor_new(&gpu.arena, VQ_DEVICE, VQ_U32, VQ_DIMS(sizes[i]), &copy[i]));
        EXPECT_OK(vq_bring(&gpu.be, &weight, &there));
        assert_int_equal(there.place, VQ_DEVICE);
        memset(host, 0xff, (size_t)sizes[i] * sizeof *host);
        EXPECT_OK(vq_copy(&gpu.be, &copy[i], &there));
    }
    EXPECT_OK(vq_bring(&gpu.be, &copy[0], &there)); /* is there already */
    assert_ptr_equal(there.data, copy[0].data);
    for (int i = 0; i < VQ_COUNT(sizes); i++) {
        EXPECT_OK(vq_download(&gpu.be, found, &copy[i]));
        for (int64_t j = 0; j < sizes[i]; j++)
            if (found[j] != (uint32_t)(j * 7 + i))
                fail_msg("weight %d of %lld: [%lld] is %u", i, (long long)sizes[i], (long long)j,
                         found[j]);
    }
    vq_arena_reset(&gpu.arena, 0);
}

/* The diagonal of a matrix out and, changed, back in. */
static void test_strided_copy(void **state)
{
    (void)state;
    enum { N = 300 };
    const size_t mark = vq_arena_mark(&gpu.arena);
    double *host, diagonal[N];
    vq_tensor h, d;
    EXPECT_OK(VQ_NEW(&gpu.arena, N * N, &host));
    for (int i = 0; i < N * N; i++) host[i] = i;
    EXPECT_OK(vq_tensor_new(&gpu.arena, VQ_DEVICE, VQ_F64, VQ_DIMS(N, N), &h));
    EXPECT_OK(vq_tensor_new(&gpu.arena, VQ_DEVICE, VQ_F64, VQ_DIMS(N, 1), &d));
    vq_tensor in_place = vq_tensor_2d(h.data, VQ_F64, N, 1);
    in_place.place = VQ_DEVICE;
    in_place.stride[0] = N + 1;
    EXPECT_OK(vq_upload(&gpu.be, &h, host));
    EXPECT_OK(vq_copy(&gpu.be, &d, &in_place));
    EXPECT_OK(vq_download(&gpu.be, diagonal, &d));
    for (int i = 0; i < N; i++) {
        assert_true(diagonal[i] == i * (N + 1));
        diagonal[i] = -1;
    }
    EXPECT_OK(vq_upload(&gpu.be, &d, diagonal));
    EXPECT_OK(vq_copy(&gpu.be, &in_place, &d));
    EXPECT_OK(vq_download(&gpu.be, host, &h));
    for (int i = 0; i < N * N; i++) assert_true(host[i] == (i % (N + 1) ? i : -1));
    vq_arena_reset(&gpu.arena, mark);
}

/* What was given back again is in the peak, whether or not it was asked for in between. */
static void test_peak_of_memory(void **state)
{
    (void)state;
    const size_t bytes = (size_t)64 << 20;
    size_t free_bytes, total_bytes, peak;
    vq_tensor t;
    vq_arena_trim(&gpu.arena);
    EXPECT_OK(vq_mem_info(&gpu.be, &free_bytes, &total_bytes));
    const size_t used = total_bytes - free_bytes;
    EXPECT_OK(vq_tensor_new(&gpu.arena, VQ_DEVICE, VQ_U8, VQ_DIMS((int64_t)bytes), &t));
    vq_arena_reset(&gpu.arena, 0);
    vq_arena_trim(&gpu.arena);
    EXPECT_OK(vq_mem_peak(&gpu.be, &peak));
    assert_in_range(peak, used + bytes, total_bytes);
    EXPECT_OK(vq_mem_info(&gpu.be, &free_bytes, &total_bytes));
    assert_true(total_bytes - free_bytes < used + bytes);
}

#ifdef VQ_ON_SHIM
/* What `vqround plan` says of the kernels' own memory: never less than they take, and no more than
 * half as much again. */
static void expect_planned(const op_case *c, const vq_cuda_pass *pass, int64_t rows)
{
    char text[160];
    device d;
    op_args a = {0};
    device_open(&d, VQ_BF16);
    EXPECT_OK(c->kind->make(&d.be, &d.arena, c->size, &a));
    EXPECT_OK(op_run(&d.be, &d.arena, c->kind->run, c->size, &a));
    const double took = (double)((const vq_cuda *)d.be.ctx)->scratch.peak_bytes;
    const double planned = (double)vq_cuda_pass_bytes(pass);
    /* Each of its tensors may be rounded up. */
    if (took > planned + 16 * VQ_ALIGN || took < planned / 1.5)
        fail_msg("%s: %.0f bytes of scratch memory, planned for %lld tokens: %.0f",
                 case_text(c, text), took, (long long)rows, planned);
    device_close(&d);
}

/* The scratch memory of one run of a case's op. */
static double scratch_of(const op_case *c)
{
    vq_arena *scratch = &((vq_cuda *)gpu.be.ctx)->scratch;
    const size_t mark = vq_arena_mark(&gpu.arena);
    scratch->peak_bytes = 0;
    (void)run_on(&gpu.be, c);
    vq_arena_reset(&gpu.arena, mark);
    return (double)scratch->peak_bytes;
}

/* GPTQ on a linear as wide as it is high, in one block: no op takes more than is planned for the
 * factor, whose solver takes less here than on a GPU. */
static void test_factor_is_planned(void **state)
{
    (void)state;
    const int64_t n = 160;
    const op_case cases[] = {{&OP_INVERSE_FACTOR, {n, 0}},
                             {&OP_SYRK, {100, n, 0}},
                             {&OP_GPTQ_SWEEP, {n, n, 3, n, VQ_F16, n, 0, 0}}};
    const double planned = (double)vq_cuda_factor_bytes(n);
    for (int i = 0; i < VQ_COUNT(cases); i++) {
        const double took = scratch_of(&cases[i]);
        if (took > planned)
            fail_msg("%s takes %.0f bytes, planned %.0f", cases[i].kind->name, took, planned);
        assert_true(i > 0 || took >= planned / 2);
    }
}

static void test_scratch_is_planned(void **state)
{
    (void)state;
    const op_case kd = {&OP_HEAD_KD, {100, 32, 640, VQ_BF16, 0}};
    const op_case attention = {&OP_ATTENTION_BWD, {1, 200, 200, 4, 2, 64, 0}};
    const op_case round = {&OP_ROUND_BWD, {256, 512, 256, 8, 3, 512, VQ_U16}};
    const vq_cuda_pass head = {
        .T = 100, .V = 640, .E = 32, .act_bytes = 2, .is_backward = true, .has_teacher = true};
    const vq_cuda_pass layer = {.T = 200, .H = 4, .act_bytes = 2, .is_backward = true};
    const vq_cuda_pass codes = {
        .K = 256, .D = 8, .largest = 256 * 512, .act_bytes = 2, .is_backward = true};
    expect_planned(&kd, &head, head.T);
    expect_planned(&attention, &layer, layer.T);
    expect_planned(&round, &codes, 0);
}

/* What the driver refuses is given back, and asked for again. */
static void test_refused_memory(void **state)
{
    (void)state;
    vq_arena arena;
    void *at = NULL;
    EXPECT_OK(vq_cuda_arena(&gpu.be, "refused", &arena));
    shim_allow_access(false);
    EXPECT_ERROR(vq_arena_alloc(&arena, 1, &at), VQ_EMEM, "arena refused", "GPU 0 refused",
                 "use more stages");
    shim_allow_access(true);
    EXPECT_OK(vq_arena_alloc(&arena, 1, &at));
    vq_arena_close(&arena);
    EXPECT_ERROR(vq_cuda_check(cudaMalloc(&at, SIZE_MAX), "vq_cuda_test", "cudaMalloc"), VQ_EMEM,
                 "test on the GPU: out of memory in cudaMalloc");
    assert_int_equal(cudaGetLastError(), cudaSuccess); /* said once: the next launch is well */
}

/* A product's algorithm is that of its shape, wherever an arena has put its tensors. */
static void test_product_by_shape(void **state)
{
    (void)state;
    enum { M = 5, N = 3, K = 7, PLACES = 256 / VQ_ALIGN };
    uint8_t *memory = NULL;
    long choices = 0;
    const size_t mark = vq_arena_mark(&gpu.twin);
    EXPECT_OK(vq_arena_alloc(&gpu.twin, 1 << 16, (void **)&memory));
    EXPECT_OK(gpu.be.ops->zero(gpu.be.ctx, memory, 1 << 16));
    memory += 256 - (uintptr_t)memory % 256;
    for (int i = 0; i < PLACES; i++) {
        uint8_t *at = memory + (size_t)i * VQ_ALIGN;
        vq_tensor a = vq_tensor_2d(at, VQ_F32, M, K), b = vq_tensor_2d(at + 4096, VQ_F32, K, N),
                  c = vq_tensor_2d(at + 8192, VQ_F32, M, N);
        a.place = b.place = c.place = VQ_DEVICE;
        EXPECT_OK(vq_gemm(&gpu.be, &c, &a, false, &b, false, 1, 0));
        if (i == 0) choices = shim_choices();
    }
    assert_int_equal(shim_choices(), choices);
    vq_arena_reset(&gpu.twin, mark);
}

static void test_no_mapped_memory(void **state)
{
    (void)state;
    vq_backend be;
    shim_map_memory(false);
    EXPECT_ERROR(vq_cuda_open(&be, 0, VQ_BF16), VQ_EUNSUPPORTED, "GPU 0 cannot map memory",
                 "expected one that can", "--device cpu");
    shim_map_memory(true);
}
#endif

int main(void)
{
    device_require();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits),
                                       cmocka_unit_test(test_large_table),
                                       cmocka_unit_test(test_sweep),
                                       cmocka_unit_test(test_gradients_of_all_sizes),
                                       cmocka_unit_test(test_not_finite),
                                       cmocka_unit_test(test_not_positive),
                                       cmocka_unit_test(test_bad_targets),
                                       cmocka_unit_test(test_losses_later),
                                       cmocka_unit_test(test_bring),
                                       cmocka_unit_test(test_strided_copy),
                                       cmocka_unit_test(test_peak_of_memory),
#ifdef VQ_ON_SHIM
                                       cmocka_unit_test(test_no_mapped_memory),
                                       cmocka_unit_test(test_refused_memory),
                                       cmocka_unit_test(test_product_by_shape),
                                       cmocka_unit_test(test_scratch_is_planned),
                                       cmocka_unit_test(test_factor_is_planned),
#endif
                                       cmocka_unit_test(test_large_logits)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
