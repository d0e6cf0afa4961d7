/* test_hessians - the Hessians that replicas sum up beside those of one rank that has all windows;
 * layers that stages take in turn. Under mpiexec: every rank is a replica, or a stage. */
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "fixture.h"
#include "guard.h"
#include "log.h"
#include "mpi/world.h"
#include "rng.h"
#include "sweep.h"

enum { WINDOWS = 7, SEQLEN = 40 };

/* Opens a sweep over windows [first, first + n) of the same made-up ids. */
static void open_sweep(fixture *f, vq_sweep *s, int64_t first, int64_t n)
{
    vq_tensor ids;
    s->stage = &f->stage;
    s->arena = &f->arena;
    EXPECT_OK(vq_tensor_new(&f->arena, VQ_HOST, VQ_I32, VQ_DIMS(WINDOWS, SEQLEN), &ids));
    for (int64_t i = 0; i < WINDOWS * SEQLEN; i++)
        ((int32_t *)ids.data)[i] =
            (int32_t)(vq_rng_uniform(5, (uint64_t)i, 0) * (double)f->model.config.V);
    const vq_tensor own = vq_tensor_rows(&ids, first, n);
    EXPECT_OK(vq_sweep_open(s, n, WINDOWS, SEQLEN, SIZE_MAX, "not written"));
    EXPECT_OK(vq_sweep_embed(s, &own));
}

/* Windows go one at a time, so the order of their sums in f64 is all that differs. */
static void expect_near(const vq_tensor *whole, const vq_tensor *summed)
{
    const int64_t n = whole->dim[0];
    const double *x = whole->data, *y = summed->data;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++) {
            const double size = sqrt(x[i * n + i] * x[j * n + j]);
            if (!(fabs(y[i * n + j] - x[i * n + j]) <= 1e-12 * size))
                fail_msg("H[%lld, %lld] = %.17g of %d replicas, of one %.17g", (long long)i,
                         (long long)j, y[i * n + j], comm.size, x[i * n + j]);
        }
}

static void expect_same_everywhere(const vq_tensor *h)
{
    const int64_t n = vq_tensor_count(h);
    double *copy = malloc(vq_tensor_bytes(h));
    vq_tensor t = vq_tensor_1d(copy, VQ_F64, n);
    memcpy(copy, h->data, vq_tensor_bytes(h));
    EXPECT_OK(vq_comm_broadcast(&comm, &t, 0));
    assert_memory_equal(copy, h->data, vq_tensor_bytes(h));
    free(copy);
}

static void hessians_of(const char *model)
{
    fixture f;
    char path[512];
    int n_hessians = 0;
    snprintf(path, sizeof path, TESTS_DIR "/models/%s", model);
    fixture_open(&f, path, SEQLEN);
    const int64_t N = f.model.config.N;
    for (int64_t slot = 0; slot < N * VQ_N_KINDS; slot++) {
        vq_vqlinear *l = vq_stage_linear(&f.stage, slot / VQ_N_KINDS, slot % VQ_N_KINDS);
        if (l) l->quantized = true;
    }
    vq_job job = {.comm = &comm,
                  .be = f.be,
                  .topo = {.n_stages = 1, .n_replicas = comm.size, .replica = comm.rank}};
    vq_sweep whole = {0}, share = {.job = &job};
    int64_t first, n;
    EXPECT_OK(vq_arena_init(&job.scratch, "sums", (size_t)1 << 30));
    vq_topo_share(&job.topo, comm.rank, WINDOWS, &first, &n);
    assert_true(n > 0 && (comm.size == 1 || n < WINDOWS));
    open_sweep(&f, &whole, 0, WINDOWS);
    open_sweep(&f, &share, first, n);
    for (int64_t layer = 0; layer < N; layer++) {
        vq_tensor x[VQ_N_READ], y[VQ_N_READ];
        EXPECT_OK(vq_sweep_hessians(&whole, layer, x));
        EXPECT_OK(vq_sweep_hessians(&share, layer, y));
        for (int r = 0; r < VQ_N_READ; r++, n_hessians++) {
            expect_near(&x[r], &y[r]);
            expect_same_everywhere(&y[r]);
        }
    }
    assert_int_equal(n_hessians, 4 * N);
    vq_sweep_close(&whole);
    vq_sweep_close(&share);
    vq_arena_close(&job.scratch);
    fixture_close(&f);
}

static void test_replicas(void **state)
{
    (void)state;
    hessians_of("tiny-llama");
    hessians_of("tiny-opt");
    hessians_of("tiny-qwen3");
}

/* --- in turn --------------------------------------------------------------------------------- */

enum { LAYERS = 12, LAYER_MS = 330, STOP_AT = 5 };

/* A stage's layers, and how many are done of all: what stages hand on. */
typedef struct turns {
    vq_job *job;
    vq_progress progress;
    double done;
    int64_t stop_at; /* the layer in which a signal comes; -1: none does */
} turns;

static vq_status pass_turn(void *ctx, bool on)
{
    turns *t = ctx;
    vq_tensor done = vq_tensor_1d(&t->done, VQ_F64, 1);
    return on ? vq_job_send(t->job, &done, comm.rank + 1, VQ_TAG_FORWARD)
              : vq_job_receive(t->job, &done, comm.rank - 1, VQ_TAG_FORWARD);
}

static vq_status take_turn(void *ctx, int64_t l, bool *is_made)
{
    turns *t = ctx;
    *is_made = true;
    if (l == t->stop_at) raise(SIGUSR1);
    assert_true(l >= t->job->stage.first && l < t->job->stage.last);
    assert_true(t->done == (double)l);
    nanosleep(&(struct timespec){.tv_nsec = LAYER_MS * 1000000}, NULL);
    vq_progress_step(&t->progress, (int64_t)++t->done, NULL);
    return VQ_OK;
}

/* A job whose ranks are stages. */
static vq_job staged(const vq_config *config)
{
    return (vq_job){.comm = &comm,
                    .config = config,
                    .model.config.N = LAYERS,
                    .topo = {.n_stages = comm.size, .n_replicas = 1, .stage = comm.rank},
                    .stage.first = LAYERS * comm.rank / comm.size,
                    .stage.last = LAYERS * (comm.rank + 1) / comm.size};
}

/* All layers together take longer than a rank may wait for another; one does not. */
static void test_layers_in_turn(void **state)
{
    (void)state;
    const double limit_s = comm.limit_s;
    const vq_config config = {.out = "run"};
    vq_job job = staged(&config);
    turns t = {.job = &job, .stop_at = -1};
    vq_progress_begin(&t.progress, "test", "layers", 0, LAYERS);
    comm.limit_s = 2.5; /* a busy machine keeps a rank from its core for a while */
    assert_true(LAYERS * LAYER_MS > 1.5 * 2500);
    EXPECT_OK(vq_sweep_in_turn(&job, pass_turn, take_turn, &t));
    assert_true(t.done == (double)job.stage.last);
    EXPECT_OK(vq_comm_agree(&comm, VQ_OK)); /* the first waits for the last */
    comm.limit_s = limit_s;
}

/* A signal ends the turns after the layer at work, on its stage and those that wait. */
static void test_stop_in_turn(void **state)
{
    (void)state;
    const vq_config config = {.out = "run"};
    vq_job job = staged(&config);
    turns t = {.job = &job, .stop_at = STOP_AT};
    vq_guard_init(0, false);
    vq_progress_begin(&t.progress, "test", "layers", 0, LAYERS);
    const vq_status status = vq_sweep_in_turn(&job, pass_turn, take_turn, &t);
    if (job.stage.last <= STOP_AT) {
        assert_int_equal(status, VQ_OK);
        assert_true(t.done == (double)job.stage.last);
    } else {
        assert_int_equal(status, VQ_ESTOPPED);
        assert_non_null(strstr(vq_error_message(), "run: stopped by"));
        assert_non_null(strstr(vq_error_message(), "after layer 5"));
        assert_true(t.done == (job.stage.first <= STOP_AT ? STOP_AT + 1 : 0));
    }
    assert_int_equal(vq_comm_agree(&comm, status), VQ_ESTOPPED);
    vq_error_clear();
    vq_guard_init(0, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_replicas),
                                       cmocka_unit_test(test_layers_in_turn),
                                       cmocka_unit_test(test_stop_in_turn)};
    world_open(60);
    return world_close(cmocka_run_group_tests(tests, NULL, NULL));
}
