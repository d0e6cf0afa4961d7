/* test_cuda_eval - an evaluation whose weights do not stay on the GPU: they are brought once for
 * many windows, whose losses have the same bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cpu_backend.h"
#include "device.h"
#include "evaluate.h"
#include "rng.h"

enum { T = 64, MICRO = 2048 / T, WINDOWS = MICRO + 1 };

static vq_ops counting; /* the GPU's, but for bring */
static const vq_ops *gpu_ops;
static int64_t n_brought;

static vq_status count_bring(void *ctx, const void *src_host, size_t bytes, void **there)
{
    n_brought++;
    return gpu_ops->bring(ctx, src_host, bytes, there);
}

typedef struct bed {
    device gpu;
    vq_comm comm;
    vq_job job;
    vq_stage stage;
    int32_t ids[WINDOWS * T];
    vq_windows windows;
} bed;

static int setup(void **state)
{
    static bed b;
    device_open(&b.gpu, VQ_BF16);
    vq_comm_self(&b.comm);
    counting = *b.gpu.be.ops;
    gpu_ops = b.gpu.be.ops;
    counting.bring = count_bring;
    b.gpu.be.ops = &counting;
    b.job = (vq_job){.comm = &b.comm,
                     .be = b.gpu.be,
                     .topo = {.n_stages = 1, .n_replicas = 1},
                     .step = b.gpu.arena,
                     .scratch = b.gpu.scratch};
    EXPECT_OK(vq_model_open(&b.job.step, TESTS_DIR "/models/rand-llama-gqa-tied", &b.job.model));
    EXPECT_OK(vq_stage_init(&b.job.step, &b.job.be, &b.job.model, 0, b.job.model.config.N, T,
                            &b.job.scratch, &b.stage));
    for (int i = 0; i < WINDOWS * T; i++)
        b.ids[i] = (int32_t)(vq_rng_uniform(3, (uint64_t)i, 0) * (double)b.job.model.config.V);
    b.windows = (vq_windows){.n = WINDOWS, .T = T, .ids = b.ids};
    *state = &b;
    return 0;
}

static int teardown(void **state)
{
    bed *b = *state;
    vq_model_close(&b->job.model);
    b->gpu.arena = b->job.step;
    b->gpu.scratch = b->job.scratch;
    b->gpu.be.ops = gpu_ops;
    device_close(&b->gpu);
    return 0;
}

static double perplexity(bed *b, int64_t *brought)
{
    vq_eval_result r;
    n_brought = 0;
    EXPECT_OK(vq_evaluate(&b->job, &b->stage, VQ_MODE_FLOAT, &b->windows, "test", NULL, &r));
    assert_int_equal(r.windows, WINDOWS);
    *brought = n_brought;
    return r.perplexity;
}

static void test_together(void **state)
{
    bed *b = *state;
    int64_t none, one_by_one, at_once;
    const int64_t n_linears = b->job.model.config.N * VQ_N_KINDS;
    vq_tensor *first = &b->job.model.layers[0].linear[0].weight;
    const int64_t rows = first->dim[0];
    b->job.together = 1;
    b->job.hold_bytes = 1e9;
    const double expected = perplexity(b, &none);
    assert_int_equal(none, 0);
    EXPECT_OK(vq_evaluate_together(&b->job, &b->stage, &b->windows));
    assert_int_equal(b->job.together, 1); /* nothing is brought */
    b->job.hold_bytes = 0;
    EXPECT_OK(vq_evaluate_together(&b->job, &b->stage, &b->windows));
    assert_int_equal(b->job.together, 1); /* there is no memory for more */
    assert_true(perplexity(b, &one_by_one) == expected);
    assert_int_equal(one_by_one, 2 * n_linears);
    /* As if a weight were larger than the memory: as many as there are go together. */
    b->job.hold_bytes = 1e9;
    first->dim[0] = 1 << 24;
    EXPECT_OK(vq_evaluate_together(&b->job, &b->stage, &b->windows));
    first->dim[0] = rows;
    assert_int_equal(b->job.together, 2);
    b->job.hold_bytes = 0;
    assert_true(perplexity(b, &at_once) == expected);
    assert_int_equal(at_once, n_linears);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_together)};
    device_require();
    return cmocka_run_group_tests(tests, setup, teardown);
}
