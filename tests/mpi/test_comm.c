/* test_comm - what ranks say to each other, under mpiexec with 1 to 4 ranks. Numbers are whole, so
 * sums are exact and compared with ==. A failure on any rank ends the program with its message. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <cmocka.h>

#include "expect.h"
#include "log.h"
#include "mpi/world.h"

enum { N = 5000 };

static void test_world(void **state)
{
    (void)state;
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");
    if (size) assert_int_equal(comm.size, atoi(size));
    assert_true(comm.rank >= 0 && comm.rank < comm.size);
}

static void test_sums(void **state)
{
    (void)state;
    static float x[N];
    static double y[N];
    const int n = comm.size;
    for (int i = 0; i < N; i++) {
        x[i] = (float)(i % 100 * (comm.rank + 1));
        y[i] = (double)i * 1e6 + comm.rank;
    }
    vq_tensor t = vq_tensor_1d(x, VQ_F32, N), u = vq_tensor_2d(y, VQ_F64, N / 10, 10);
    EXPECT_OK(vq_comm_sum(&comm, &t));
    EXPECT_OK(vq_comm_sum(&comm, &u));
    for (int i = 0; i < N; i++) {
        if (x[i] != (float)(i % 100 * n * (n + 1) / 2)) fail_msg("f32 %d: %g", i, (double)x[i]);
        if (y[i] != (double)i * 1e6 * n + n * (n - 1) / 2) fail_msg("f64 %d: %g", i, y[i]);
    }
    vq_tensor none = vq_tensor_1d(x, VQ_F32, 0);
    EXPECT_OK(vq_comm_sum(&comm, &none));
}

/* One rank's number and zeros of the others: the number itself, to the bit. */
static void test_sum_with_zeros(void **state)
{
    (void)state;
    float x[3] = {0, 0, 0};
    if (comm.rank == comm.size - 1) x[0] = 0.1f, x[1] = 1e-42f, x[2] = -3.4e38f;
    vq_tensor t = vq_tensor_1d(x, VQ_F32, 3);
    EXPECT_OK(vq_comm_sum(&comm, &t));
    assert_true(x[0] == 0.1f && x[1] == 1e-42f && x[2] == -3.4e38f);
}

static void test_broadcasts(void **state)
{
    (void)state;
    for (int root = 0; root < comm.size; root++) {
        float x[100];
        int64_t word = comm.rank == root ? INT64_MIN + root : 0;
        uint8_t bytes[3] = {0};
        for (int i = 0; i < 100; i++) x[i] = (float)(comm.rank == root ? i + root : -1);
        if (comm.rank == root) memcpy(bytes, "abc", 3);
        vq_tensor t = vq_tensor_1d(x, VQ_F32, 100), u = vq_tensor_1d(&word, VQ_I64, 1);
        vq_tensor v = vq_tensor_1d(bytes, VQ_U8, 3);
        EXPECT_OK(vq_comm_broadcast(&comm, &t, root));
        EXPECT_OK(vq_comm_broadcast(&comm, &u, root));
        EXPECT_OK(vq_comm_broadcast(&comm, &v, root));
        for (int i = 0; i < 100; i++) assert_true(x[i] == (float)(i + root));
        assert_true(word == INT64_MIN + root);
        assert_memory_equal(bytes, "abc", 3);
    }
}

/* Messages of a tag come in the order in which they were sent, whatever goes on with other tags and
 * however long they are: around the ring, several under way at once. */
static void test_order(void **state)
{
    (void)state;
    enum { MESSAGES = 6, LONG = 20000 };
    static int32_t out[2][MESSAGES][LONG], in[2][MESSAGES][LONG];
    static const vq_tag tags[] = {VQ_TAG_FORWARD, VQ_TAG_BACKWARD};
    vq_request send[2][MESSAGES] = {{{.peer = 0}}}, receive[2][MESSAGES] = {{{.peer = 0}}};
    const int next = (comm.rank + 1) % comm.size;
    const int before = (comm.rank + comm.size - 1) % comm.size;
    if (comm.size == 1) return;
    for (int k = 0; k < MESSAGES; k++)
        for (int g = 0; g < 2; g++) {
            const int n = k % 2 ? LONG : 10; /* by the fast way, and by the long one */
            for (int i = 0; i < n; i++) out[g][k][i] = 1000 * comm.rank + 10 * k + g;
            vq_tensor from = vq_tensor_1d(out[g][k], VQ_I32, n);
            vq_tensor to = vq_tensor_1d(in[g][k], VQ_I32, n);
            EXPECT_OK(vq_comm_receive(&comm, &to, before, tags[g], &receive[g][k]));
            EXPECT_OK(vq_comm_send(&comm, &from, next, tags[g], &send[g][k]));
        }
    for (int g = 1; g >= 0; g--) /* waited for the other way round */
        for (int k = 0; k < MESSAGES; k++) {
            EXPECT_OK(vq_comm_wait(&comm, &receive[g][k]));
            EXPECT_OK(vq_comm_wait(&comm, &send[g][k]));
            assert_false(receive[g][k].is_active);
            for (int i = 0; i < (k % 2 ? LONG : 10); i++)
                if (in[g][k][i] != 1000 * before + 10 * k + g)
                    fail_msg("message %d: %d from rank %d", k, in[g][k][i], before);
        }
    EXPECT_OK(vq_comm_wait(&comm, &send[0][0])); /* of a message that is through: nothing */
}

/* A peer cannot make us take more or fewer bytes than we have asked for. */
static void test_wrong_size(void **state)
{
    (void)state;
    static const int sizes[] = {40, 10, 0}; /* beside the 20 expected */
    float x[64] = {0}, y[64];
    char found[64];
    if (comm.size < 2) return;
    vq_comm_at(&comm, "train, step 7");
    for (int i = 0; i < VQ_COUNT(sizes); i++) {
        vq_request r = {.peer = 0};
        if (comm.rank == 0) {
            vq_tensor t = vq_tensor_1d(x, VQ_F32, sizes[i]);
            EXPECT_OK(vq_comm_send(&comm, &t, 1, VQ_TAG_BACKWARD, &r));
            EXPECT_OK(vq_comm_wait(&comm, &r));
        } else if (comm.rank == 1) {
            for (int j = 0; j < 64; j++) y[j] = -1;
            vq_tensor t = vq_tensor_1d(y, VQ_F32, 20);
            EXPECT_OK(vq_comm_receive(&comm, &t, 0, VQ_TAG_BACKWARD, &r));
            snprintf(found, sizeof found,
                     sizes[i] > 20 ? "80 bytes of gradients from rank 0 failed"
                                   : "rank 0 sent %d bytes of",
                     4 * sizes[i]);
            EXPECT_ERROR(vq_comm_wait(&comm, &r), VQ_EPEER, "gradients", found);
            for (int j = 20; j < 64; j++) assert_true(y[j] == -1);
        }
    }
    EXPECT_OK(vq_comm_agree(&comm, VQ_OK));
}

/* --- more bytes than an int counts ----------------------------------------------------------- */

enum { LONG_RANKS = 2 };

/* Addresses of a tensor of so many bytes: pages are taken where they are written. */
static vq_tensor reserve(int64_t bytes)
{
    void *data = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_ptr_not_equal(data, MAP_FAILED);
    return vq_tensor_1d(data, VQ_U8, bytes);
}

/* Marks [n] of a long tensor, the last at its end: written, or looked for. */
static void mark(const vq_tensor *t, int first, bool look)
{
    const int64_t places[] = {0, 1 << 30, INT_MAX, (int64_t)INT_MAX + 1, t->dim[0] - 1};
    for (int i = 0; i < VQ_COUNT(places); i++) {
        uint8_t *at = (uint8_t *)t->data + places[i];
        if (look)
            assert_int_equal(*at, first + i);
        else
            *at = (uint8_t)(first + i);
    }
}

static void test_long_messages(void **state)
{
    (void)state;
    const double limit_s = comm.limit_s;
    if (comm.size != LONG_RANKS) return;
    vq_tensor t = reserve(((int64_t)1 << 31) + 12345);
    vq_request r = {0};
    comm.limit_s = 300;
    if (comm.rank == 0) {
        mark(&t, 10, false);
        EXPECT_OK(vq_comm_send(&comm, &t, 1, VQ_TAG_FORWARD, &r));
    } else {
        EXPECT_OK(vq_comm_receive(&comm, &t, 0, VQ_TAG_FORWARD, &r));
    }
    EXPECT_OK(vq_comm_wait(&comm, &r));
    mark(&t, 10, true);
    if (comm.rank == 0) mark(&t, 20, false);
    EXPECT_OK(vq_comm_broadcast(&comm, &t, 0));
    mark(&t, 20, true);
    munmap(t.data, (size_t)t.dim[0]);
    comm.limit_s = limit_s;
}

/* In several pieces: every element once. */
static void test_long_sum(void **state)
{
    (void)state;
    enum { MANY = (1 << 26) + 1000 };
    if (comm.size != LONG_RANKS) return;
    vq_tensor t = reserve((int64_t)MANY * 4);
    t = vq_tensor_1d(t.data, VQ_F32, MANY);
    float *x = t.data;
    for (int64_t i = 0; i < MANY; i++) x[i] = (float)(i % 1000 + comm.rank);
    EXPECT_OK(vq_comm_sum(&comm, &t));
    for (int64_t i = 0; i < MANY; i++)
        if (x[i] != (float)(2 * (i % 1000) + 1)) fail_msg("%lld: %g", (long long)i, (double)x[i]);
    munmap(t.data, vq_tensor_bytes(&t));
}

/* --- what became of others ------------------------------------------------------------------- */

/* Every rank learns the worst status; the message stays where it was made. */
static void test_agree(void **state)
{
    (void)state;
    EXPECT_OK(vq_comm_agree(&comm, VQ_OK));
    for (int owner = 0; owner < comm.size; owner++) {
        vq_status status = VQ_OK;
        if (comm.rank == owner) status = vq_error_set(VQ_EFILE, __FILE__, __LINE__, "mine");
        assert_int_equal(vq_comm_agree(&comm, status), VQ_EFILE);
        assert_string_equal(vq_error_message(), comm.rank == owner ? "mine" : "");
        vq_error_clear();
    }
    /* Different failures: the worst code's owner speaks. */
    vq_status mine = comm.rank == 0 ? VQ_EMEM : VQ_EFILE;
    mine = vq_error_set(mine, __FILE__, __LINE__, "rank %d", comm.rank);
    assert_int_equal(vq_comm_agree(&comm, mine), VQ_EMEM);
    assert_string_equal(vq_error_message(), comm.rank == 0 ? "rank 0" : "");
    vq_error_clear();
    /* The same failure everywhere is said once. */
    mine = vq_error_set(VQ_EUSAGE, __FILE__, __LINE__, "all");
    assert_int_equal(vq_comm_agree(&comm, mine), VQ_EUSAGE);
    assert_string_equal(vq_error_message(), comm.rank == 0 ? "all" : "");
    vq_error_clear();
}

/* What all ranks have alike passes, and one of them has the message. */
static void test_end(void **state)
{
    (void)state;
    EXPECT_OK(vq_comm_end(&comm, VQ_OK));
    static const vq_status alike[] = {VQ_ESTOPPED, VQ_ENOTFINITE};
    for (int i = 0; i < VQ_COUNT(alike); i++) {
        vq_status status = vq_error_set(alike[i], __FILE__, __LINE__, "alike");
        assert_int_equal(vq_comm_end(&comm, status), alike[i]);
        vq_error_clear();
    }
}

static void test_waiting_is_counted(void **state)
{
    (void)state;
    const double before = comm.waited_s;
    double x = 1;
    vq_tensor t = vq_tensor_1d(&x, VQ_F64, 1);
    if (comm.rank == comm.size - 1) nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    EXPECT_OK(vq_comm_sum(&comm, &t));
    assert_true(x == comm.size);
    if (comm.rank != comm.size - 1) assert_true(comm.waited_s - before > 0.02);
}

/* Each rank's number has its own place on all. */
static void test_gather(void **state)
{
    (void)state;
    double all[8] = {0};
    assert_true(comm.size <= 8);
    EXPECT_OK(vq_comm_gather(&comm, 10.5 + comm.rank, all));
    for (int i = 0; i < comm.size; i++) assert_true(all[i] == 10.5 + i);
}

/* A wait goes on beyond its limit while another rank makes progress. */
static void test_signs_of_life(void **state)
{
    (void)state;
    const double limit_s = comm.limit_s;
    double x = 1;
    vq_tensor t = vq_tensor_1d(&x, VQ_F64, 1);
    vq_progress p;
    comm.limit_s = 2.5; /* a busy machine keeps a rank from its core for a while */
    vq_progress_begin(&p, "test", "steps", 0, 28);
    for (int i = 0; i < 28 && comm.rank == comm.size - 1; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 150000000}, NULL);
        vq_progress_step(&p, i, NULL);
    }
    EXPECT_OK(vq_comm_sum(&comm, &t));
    assert_true(x == comm.size);
    comm.limit_s = limit_s;
}

/* --- a world over this one ------------------------------------------------------------------- */

static int n_sums_above;

static vq_status sum_above(void *ctx, vq_tensor *t)
{
    (void)ctx;
    assert_int_equal(t->place, VQ_DEVICE);
    n_sums_above++;
    return VQ_OK;
}

static vq_status never(void *ctx, vq_request *request)
{
    (void)ctx, (void)request;
    fail_msg("a host tensor's message is waited for by the base world");
    return VQ_EINTERNAL;
}

/* Host tensors, agreements and the place in the job go to the base, device tensors do not. */
static void test_over(void **state)
{
    (void)state;
    static const vq_comm_ops ops = {.sum = sum_above, .wait = never};
    const int n = comm.size, next = (comm.rank + 1) % n, before = (comm.rank + n - 1) % n;
    vq_comm above;
    vq_comm_over(&above, &comm);
    above.ops = &ops;
    double x = 1, sent = comm.rank, got = -1;
    vq_tensor t = vq_tensor_1d(&x, VQ_F64, 1);
    EXPECT_OK(vq_comm_sum(&above, &t));
    assert_true(x == n);
    t.place = VQ_DEVICE;
    EXPECT_OK(vq_comm_sum(&above, &t));
    assert_int_equal(n_sums_above, 1);
    EXPECT_OK(vq_comm_agree(&above, VQ_OK));
    vq_comm_at(&above, "over, %d", 7);
    assert_string_equal(comm.where, "over, 7");
    if (n == 1) return;
    vq_tensor out = vq_tensor_1d(&sent, VQ_F64, 1), in = vq_tensor_1d(&got, VQ_F64, 1);
    vq_request sending = {0}, receiving = {0};
    EXPECT_OK(vq_comm_receive(&above, &in, before, VQ_TAG_FORWARD, &receiving));
    EXPECT_OK(vq_comm_send(&above, &out, next, VQ_TAG_FORWARD, &sending));
    EXPECT_OK(vq_comm_wait(&above, &receiving));
    EXPECT_OK(vq_comm_wait(&above, &sending));
    assert_true(got == before && !sending.is_active);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_world),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_sum_with_zeros),
        cmocka_unit_test(test_broadcasts),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_wrong_size),
        cmocka_unit_test(test_long_messages),
        cmocka_unit_test(test_long_sum),
        cmocka_unit_test(test_agree),
        cmocka_unit_test(test_end),
        cmocka_unit_test(test_waiting_is_counted),
        cmocka_unit_test(test_gather),
        cmocka_unit_test(test_signs_of_life),
        cmocka_unit_test(test_over),
    };
    world_open(20);
    return world_close(cmocka_run_group_tests(tests, NULL, NULL));
}
