/* test_plan - the plan against what the modules' own functions and the formulas give. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "arenas.h"
#include "error.h"
#include "expect.h"
#include "plan.h"

/* LLaMA with 7 linears of [64, 64] or [128, 64] a layer, in f16. */
static vq_plan_model model_of(int64_t N)
{
    return (vq_plan_model){{.family = VQ_LLAMA,
                            .N = N,
                            .E = 64,
                            .E_embed = 64,
                            .F = 128,
                            .H = 4,
                            .G = 4,
                            .S = 16,
                            .V = 640,
                            .max_positions = 4096,
                            .norm_before = true,
                            .final_norm = true,
                            .rope_theta = 10000},
                           VQ_F16};
}

#define LAYER_WEIGHTS (4 * 64 * 64 + 3 * 128 * 64)

static vq_config defaults(void)
{
    vq_config c;
    assert_int_equal(vq_config_defaults(&arena, &c), VQ_OK);
    c.model = "models/none";
    c.seqlen = 256;
    c.K = 32;
    return c;
}

static vq_plan_input on_ranks(const vq_config *c, const vq_plan_model *m, vq_dtype act, int n_ranks)
{
    return (vq_plan_input){.config = c,
                           .model = m,
                           .teacher = m,
                           .act = act,
                           .n_ranks = n_ranks,
                           .n_nodes = 1,
                           .threads = 1};
}

static vq_plan_input on_gpus(const vq_config *c, const vq_plan_model *m, vq_dtype act, int n_ranks)
{
    vq_plan_input in = on_ranks(c, m, act, n_ranks);
    in.on_gpu = true;
    return in;
}

static vq_plan make(const vq_config *c, const vq_plan_model *m, int n_ranks, int n_nodes,
                    double memory_bytes)
{
    vq_plan_input in = on_ranks(c, m, VQ_F32, n_ranks);
    vq_plan plan;
    in.n_nodes = n_nodes;
    in.memory_bytes = memory_bytes;
    in.gflops = 1;
    EXPECT_OK(vq_plan_make(&arena, &in, &plan));
    return plan;
}

static double sum(const vq_plan_rank *r)
{
    double total = 0;
    for (int i = 0; i < VQ_PLAN_N_PARTS; i++) total += r->bytes[i];
    return total;
}

static void test_parts(void **state)
{
    (void)state;
    const vq_plan_model m = model_of(8);
    vq_config c = defaults();
    c.eval.run = false;
    const vq_plan p = make(&c, &m, 1, 1, 0);
    const vq_plan_rank *r = &p.rank[0];
    assert_int_equal(r->phase, VQ_PLAN_TRAIN);
    assert_int_equal(r->keep, VQ_KEEP_ALL);
    assert_true(fabs(sum(r) - r->total_bytes) < 1);
    assert_true(r->fixed_bytes <= r->total_bytes);
    /* Integers: a byte a weight, two a vector of 8, scale and zero by row, 4 bytes a count. */
    const double rows = 5 * 64 + 2 * 128;
    const double n_codes = 7 * 32 * 8;
    const double integers = 8 * (LAYER_WEIGHTS * (1 + 2.0 / 8) + rows * 8 + n_codes * 4);
    assert_true(fabs(r->bytes[VQ_PLAN_INTEGERS] - integers) < 1);
    /* Codes, gradient and two moments. */
    assert_true(fabs(r->bytes[VQ_PLAN_CODES] - 8 * n_codes * 4 * 4) < 1);
    assert_true(fabs(r->bytes[VQ_PLAN_TEACHER] - 256 * 64 * 2) < 1);
    assert_true(fabs(r->bytes[VQ_PLAN_WEIGHTS] - 2 * 640 * 64 * 2) < 1);
    /* Checkpoints: the kept ones and the next. */
    assert_true(fabs(p.disk_bytes.checkpoints - 3 * 3 * 8 * n_codes * 4) < 1);
    assert_true(fabs(p.disk_bytes.teacher - 128.0 * 256 * 64 * 2) < 1);
    const double others = 2 * 640 * 64; /* norms are not counted */
    assert_true(fabs(p.disk_bytes.model - (8 * LAYER_WEIGHTS + others) * 2) < 1);
    assert_true(p.step.links_within == 0 && p.step.reduce_bytes == 0 && p.step.idle_ratio == 0);
    /* Packed: half a byte a weight, by row a scale of 2 bytes and half of a zero, by column its
     * group. */
    c.export.format = VQ_EXPORT_GPTQ;
    const vq_plan q = make(&c, &m, 1, 1, 0);
    const double packed = LAYER_WEIGHTS / 2.0 + rows * 2.5 + (6 * 64 + 128) * 4;
    assert_true(fabs(q.disk_bytes.model - (8 * packed + others * 2)) < 1);
    assert_true(fabs(q.disk_bytes.total - p.disk_bytes.total + p.disk_bytes.model -
                     q.disk_bytes.model) < 1);
}

/* An evaluation of few windows takes less than one of many that pass together. */
static void test_windows_of_an_evaluation(void **state)
{
    (void)state;
    const vq_plan_model m = model_of(8);
    vq_config c = defaults();
    c.method = VQ_METHOD_RTN;
    c.eval.seqlen = 64;
    const vq_plan all = make(&c, &m, 1, 1, 0);
    c.eval.max_windows = 1;
    const vq_plan one = make(&c, &m, 1, 1, 0);
    c.eval.max_windows = 2048 / 64;
    const vq_plan many = make(&c, &m, 1, 1, 0);
    assert_int_equal(all.rank[0].phase, VQ_PLAN_EVAL);
    assert_true(one.rank[0].total_bytes < all.rank[0].total_bytes);
    assert_true(many.rank[0].total_bytes == all.rank[0].total_bytes);
}

/* Stages share out layers; only rank 0 has Adam, only the last the teacher's states. */
static void test_stages(void **state)
{
    (void)state;
    const vq_plan_model m = model_of(16);
    vq_config c = defaults();
    c.train.batch = 4;
    c.eval.run = false;
    const vq_plan whole = make(&c, &m, 1, 1, 0);
    c.stages = 4;
    const vq_plan p = make(&c, &m, 8, 2, 0);
    double integers = 0;
    assert_int_equal(p.n_stages, 4);
    assert_int_equal(p.n_replicas, 2);
    for (int i = 0; i < 4; i++) integers += p.rank[i].bytes[VQ_PLAN_INTEGERS];
    assert_true(fabs(integers - whole.rank[0].bytes[VQ_PLAN_INTEGERS]) < 1);
    assert_true(p.rank[0].bytes[VQ_PLAN_CODES] == 2 * p.rank[4].bytes[VQ_PLAN_CODES]);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(p.rank[i].node, i / 4);
        assert_true((p.rank[i].bytes[VQ_PLAN_TEACHER] > 0) == (i % 4 == 3));
        assert_true(p.rank[i].total_bytes < whole.rank[0].total_bytes);
    }
    /* Two replicas of four stages: three links each, all on one node. A link carries a replica's
     * two sequences. */
    assert_int_equal(p.step.links_within, 6);
    assert_int_equal(p.step.links_between, 0);
    assert_true(p.step.forward_bytes == 2.0 * 256 * 64 * 4);
    assert_true(p.step.backward_bytes == p.step.forward_bytes);
    assert_true(p.step.reduce_bytes == 16 * 7 * 32 * 8 * 4);
    assert_true(p.step.ids_bytes == 3 * 2 * 256 * 4);
    const vq_plan apart = make(&c, &m, 8, 4, 0);
    assert_int_equal(apart.step.links_within, 4);
    assert_int_equal(apart.step.links_between, 2);
}

static void test_recompute_by_memory(void **state)
{
    (void)state;
    const vq_plan_model m = model_of(32);
    vq_config c = defaults();
    c.seqlen = 4096;
    const vq_plan all = make(&c, &m, 1, 1, 0);
    const vq_plan some = make(&c, &m, 1, 1, all.rank[0].total_bytes);
    assert_int_equal(all.rank[0].keep, VQ_KEEP_ALL);
    assert_int_equal(some.rank[0].keep, VQ_KEEP_INPUTS);
    assert_true(some.rank[0].total_bytes < 0.5 * all.rank[0].total_bytes);
    assert_true(some.step.flops > all.step.flops);
    c.train.recompute = VQ_OFF;
    assert_int_equal(make(&c, &m, 1, 1, 1).rank[0].keep, VQ_KEEP_ALL);
    c.train.recompute = VQ_ON;
    assert_int_equal(make(&c, &m, 1, 1, 0).rank[0].keep, VQ_KEEP_INPUTS);
    c.slices = 4;
    assert_int_equal(make(&c, &m, 1, 1, 0).rank[0].keep, VQ_KEEP_SLICES);
}

/* Weights are made once a step on a GPU with the memory for it, after the activations have theirs;
 * elsewhere where it is asked for. */
static void test_kept_weights(void **state)
{
    (void)state;
    const vq_plan_model m = model_of(100);
    const double weights = 100.0 * LAYER_WEIGHTS * 4;
    vq_config c = defaults();
    c.eval.run = false;
    c.train.batch = 4;
    const vq_plan each = make(&c, &m, 1, 1, 0);
    c.train.keep_weights = VQ_ON;
    const vq_plan once = make(&c, &m, 1, 1, 0);
    const double kept = each.rank[0].bytes[VQ_PLAN_KEPT];
    assert_false(each.rank[0].keeps_weights);
    assert_true(once.rank[0].keeps_weights);
    assert_true(once.rank[0].bytes[VQ_PLAN_KEPT] == kept + weights);
    assert_true(once.step.flops < each.step.flops);
    c.train.keep_weights = VQ_AUTO;
    vq_plan_input in = on_gpus(&c, &m, VQ_F32, 1);
    vq_plan p;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    assert_true(p.rank[0].keeps_weights);
    const double all = p.rank[0].total_bytes;
    in.memory_bytes = (all - weights / 2) / 0.8;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    assert_true(!p.rank[0].keeps_weights && p.rank[0].keep == VQ_KEEP_ALL);
    in.memory_bytes = all / 0.79;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    assert_true(p.rank[0].keeps_weights);
    c.train.keep_weights = VQ_OFF;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    assert_false(p.rank[0].keeps_weights);
    /* A teacher whose own weights would have to make room for them comes first. */
    c.teacher.cache = false;
    c.train.recompute = VQ_OFF;
    in.memory_bytes = 0;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    c.train.keep_weights = VQ_AUTO;
    in.memory_bytes = p.rank[0].total_bytes / 0.85;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    assert_true(!p.rank[0].keeps_weights && p.rank[0].hold_bytes == p.rank[0].own_bytes);
}

/* Slices fill the pipeline, and so do more sequences. */
static void test_idle(void **state)
{
    (void)state;
    const vq_plan_model m = model_of(32);
    vq_config c = defaults();
    c.seqlen = 2048;
    c.stages = 8;
    const double one = make(&c, &m, 8, 1, 0).step.idle_ratio;
    c.slices = 8;
    const double sliced = make(&c, &m, 8, 1, 0).step.idle_ratio;
    c.slices = 1;
    c.train.batch = 32;
    const vq_plan many = make(&c, &m, 8, 1, 0);
    assert_true(one > 0.7 && one < 0.9);
    assert_true(sliced < 0.75 * one);
    assert_true(many.step.idle_ratio < 0.3);
    assert_true(many.seconds.train == many.step.seconds * 5000);
}

/* A linear that is left out has no integers, no code; a baseline has none of training. */
static void test_less_to_do(void **state)
{
    (void)state;
    const vq_plan_model m = model_of(4);
    vq_config c = defaults();
    const vq_plan p = make(&c, &m, 2, 1, 0);
    const char *words[] = {"down_proj", "layers.0."};
    c.skip = (vq_list){words, 2};
    const vq_plan q = make(&c, &m, 2, 1, 0);
    assert_true(p.step.reduce_bytes == 4 * 7 * 32 * 8 * 4);
    assert_true(q.step.reduce_bytes == 3 * 6 * 32 * 8 * 4);
    assert_true(q.step.flops < p.step.flops);
    c.method = VQ_METHOD_RTN;
    const vq_plan r = make(&c, &m, 2, 1, 0);
    assert_true(r.step.flops == 0 && r.disk_bytes.checkpoints == 0 && r.disk_bytes.teacher == 0);
    assert_int_not_equal(r.rank[0].phase, VQ_PLAN_TRAIN);
}

/* On a GPU the model's own weights are held as far as memory goes; what is left needs two on their
 * way. */
static void test_gpu(void **state)
{
    (void)state;
    const vq_plan_model m = model_of(1000);
    vq_config c = defaults();
    c.seqlen = c.eval.seqlen = 16;
    c.train.recompute = VQ_ON;
    vq_plan_input in = on_gpus(&c, &m, VQ_F16, 1);
    vq_plan p;
    const double own = 1000.0 * LAYER_WEIGHTS * 2;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    assert_true(p.rank[0].own_bytes == own && p.rank[0].hold_bytes == own);
    in.memory_bytes = (p.rank[0].fixed_bytes + own) / 0.89;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    assert_true(p.rank[0].hold_bytes == own);
    const double fixed = p.rank[0].fixed_bytes;
    c.nsamples = 1;
    in.memory_bytes = (fixed + own / 2) / 0.9;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    assert_true(p.rank[0].together == 1);
    assert_true(p.rank[0].hold_bytes > own / 4 && p.rank[0].hold_bytes < 3 * own / 4);
    assert_true(p.rank[0].total_bytes <= in.memory_bytes);
    assert_true(fabs(sum(&p.rank[0]) - p.rank[0].total_bytes) < 1);
    /* Of 128 windows many pass together: fewer weights stay, and yet less is brought. */
    const double brought = own - p.rank[0].hold_bytes;
    c.nsamples = 128;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    const double times = 128.0 / (double)p.rank[0].together;
    assert_true(p.rank[0].together > 1 && p.rank[0].total_bytes <= in.memory_bytes);
    assert_true((own - p.rank[0].hold_bytes) * times < brought * 128 / 2);
    in.memory_bytes = fixed / 2;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    assert_true(p.rank[0].together == 1 && p.rank[0].hold_bytes == 0 &&
                p.rank[0].fixed_bytes > in.memory_bytes);
}

/* NCCL takes memory for every neighbour and for sums over the replicas; MPI takes none. */
static void test_nccl(void **state)
{
    (void)state;
    const vq_plan_model m = model_of(8);
    vq_config c = defaults();
    vq_plan_input in = on_gpus(&c, &m, VQ_BF16, 4);
    vq_plan p, q;
    c.stages = 4;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    const double end = p.rank[0].bytes[VQ_PLAN_PROGRAM], middle = p.rank[1].bytes[VQ_PLAN_PROGRAM];
    assert_true(p.rank[2].bytes[VQ_PLAN_PROGRAM] == middle && middle > end);
    assert_true(p.rank[3].bytes[VQ_PLAN_PROGRAM] == end);
    c.stages = 1;
    c.train.batch = 4;
    EXPECT_OK(vq_plan_make(&arena, &in, &q));
    c.comm.transport = VQ_TRANSPORT_MPI;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    const double none = p.rank[0].bytes[VQ_PLAN_PROGRAM];
    assert_true(q.rank[0].bytes[VQ_PLAN_PROGRAM] > none && none < end);
    in.n_ranks = 1;
    c.comm.transport = VQ_TRANSPORT_AUTO;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    assert_true(p.rank[0].bytes[VQ_PLAN_PROGRAM] == none);
}

/* What the start takes of a GPU, where no phase after it takes more: GPTQ's Hessians in f64, their
 * factor while it is made and then in f32, the layer's weights; and layers one by one. */
static void test_start_on_gpu(void **state)
{
    (void)state;
    const vq_plan_model m = model_of(2);
    vq_config c = defaults();
    c.method = VQ_METHOD_GPTQ;
    c.eval.run = false;
    c.seqlen = 16;
    vq_plan_input in = on_gpus(&c, &m, VQ_BF16, 1);
    in.gflops = 1;
    vq_plan p, host;
    EXPECT_OK(vq_plan_make(&arena, &in, &p));
    const double hessians = 8.0 * (3 * 64 * 64 + 128 * 128), factor = 128 * 128 * (4 + 2 * 8.0);
    const double rest = 128 * 64 * 4, two_weights = 2 * 128 * 64 * 2, layer = LAYER_WEIGHTS * 2;
    const double least = hessians + factor + rest + two_weights + layer;
    assert_int_equal(p.rank[0].phase, VQ_PLAN_INIT);
    assert_true(p.rank[0].bytes[VQ_PLAN_WORK] >= least);
    assert_true(p.rank[0].bytes[VQ_PLAN_WORK] <= 1.2 * least);
    /* Windows wait on the host; arithmetic that is not of bf16 takes longer. */
    c.nsamples *= 100;
    vq_plan more;
    EXPECT_OK(vq_plan_make(&arena, &in, &more));
    assert_true(more.rank[0].total_bytes == p.rank[0].total_bytes);
    c.nsamples /= 100;
    in.on_gpu = false;
    EXPECT_OK(vq_plan_make(&arena, &in, &host));
    assert_true(p.seconds.init > host.seconds.init);
}

/* Ours ends by itself; by signs a vector is compared with few codes, if there are enough of them.
 */
static void test_time_of_kmeans(void **state)
{
    (void)state;
    const vq_plan_model m = model_of(2);
    vq_config c = defaults();
    c.method = VQ_METHOD_VQROUND;
    c.K = 2048;
    const double own = make(&c, &m, 1, 1, 0).seconds.init;
    c.kmeans.iters = 1000;
    assert_true(make(&c, &m, 1, 1, 0).seconds.init == own);
    c.kmeans.by_sign = true;
    assert_true(make(&c, &m, 1, 1, 0).seconds.init < own / 4);
    c.D = 16; /* more patterns than codes */
    const double together = make(&c, &m, 1, 1, 0).seconds.init;
    assert_true(together > own / 2 && together < 2 * own);
    c.D = 8;
    c.kmeans.by_sign = false;
    c.kmeans.engine = VQ_KMEANS_FAISS;
    const double faiss = make(&c, &m, 1, 1, 0).seconds.init;
    c.kmeans.iters = 1;
    assert_true(faiss > 20 * own && make(&c, &m, 1, 1, 0).seconds.init < faiss / 100);
}

static void test_bad_world(void **state)
{
    (void)state;
    const vq_plan_model m = model_of(4);
    vq_config c = defaults();
    const vq_plan_input in = {&c, &m, &m, VQ_F32, false, 5, 1, 1, 0, 0};
    vq_plan plan;
    EXPECT_ERROR(vq_plan_make(&arena, &in, &plan), VQ_EUSAGE, "4 layers");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_stages),
        cmocka_unit_test(test_windows_of_an_evaluation),
        cmocka_unit_test(test_idle),
        cmocka_unit_test(test_recompute_by_memory),
        cmocka_unit_test(test_kept_weights),
        cmocka_unit_test(test_gpu),
        cmocka_unit_test(test_nccl),
        cmocka_unit_test(test_start_on_gpu),
        cmocka_unit_test(test_time_of_kmeans),
        cmocka_unit_test(test_bad_world),
        cmocka_unit_test(test_less_to_do),
    };
    return cmocka_run_group_tests(tests, open_arenas, close_arenas);
}
