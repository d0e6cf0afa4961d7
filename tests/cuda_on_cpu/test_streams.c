/* test_streams - when the stand-in's streams do what they are given: as late as CUDA allows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <cuda_runtime_api.h>
#include <string.h>

enum { N = 4096 };

static cudaStream_t stream, other;
static cudaEvent_t event;
static uint8_t *pinned, *device;

static int open_all(void **state)
{
    (void)state;
    return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) ||
           cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking) ||
           cudaEventCreateWithFlags(&event, cudaEventDisableTiming) ||
           cudaHostAlloc((void **)&pinned, N, cudaHostAllocDefault) ||
           cudaMalloc((void **)&device, N);
}

static int close_all(void **state)
{
    (void)state;
    return cudaFree(device) || cudaFreeHost(pinned) || cudaEventDestroy(event) ||
           cudaStreamDestroy(other) || cudaStreamDestroy(stream);
}

static void expect_all(const uint8_t *found, uint8_t value)
{
    for (int i = 0; i < N; i++) assert_int_equal(found[i], value);
}

static void fill(cudaStream_t s, int value)
{
    assert_int_equal(cudaMemsetAsync(device, value, N, s), cudaSuccess);
}

static void copy(cudaStream_t s, void *to, const void *from, cudaMemcpyKind kind)
{
    assert_int_equal(cudaMemcpyAsync(to, from, N, kind, s), cudaSuccess);
}

static void wait_for(cudaStream_t s)
{
    assert_int_equal(cudaStreamSynchronize(s), cudaSuccess);
}

/* Pinned memory is read and written when the stream comes to it, pageable memory read at once. */
static void test_host_memory(void **state)
{
    (void)state;
    uint8_t pageable[N];
    const uint8_t *sources[] = {pinned, pageable};
    for (int i = 0; i < 2; i++) {
        memset(pinned, 1, N);
        memset(pageable, 1, N);
        copy(stream, device, sources[i], cudaMemcpyHostToDevice);
        memset(pinned, 2, N);
        memset(pageable, 2, N);
        copy(stream, pinned, device, cudaMemcpyDeviceToHost);
        expect_all(pinned, 2);
        wait_for(stream);
        expect_all(pinned, i == 0 ? 2 : 1);
    }
    fill(stream, 3);
    copy(stream, pageable, device, cudaMemcpyDeviceToHost);
    expect_all(pageable, 2);
    wait_for(stream);
    expect_all(pageable, 3);
}

/* A stream that waits for an event waits for what the event had recorded then, and for no more. */
static void test_events(void **state)
{
    (void)state;
    fill(stream, 1);
    assert_int_equal(cudaEventRecord(event, stream), cudaSuccess);
    assert_int_equal(cudaStreamWaitEvent(other, event, 0), cudaSuccess);
    fill(stream, 2);
    assert_int_equal(cudaEventRecord(event, stream), cudaSuccess);
    copy(other, pinned, device, cudaMemcpyDeviceToHost);
    wait_for(other);
    expect_all(pinned, 1);
    assert_int_equal(cudaEventSynchronize(event), cudaSuccess);
    copy(other, pinned, device, cudaMemcpyDeviceToHost);
    wait_for(other);
    expect_all(pinned, 2);
    fill(stream, 3); /* nobody waits for it */
    copy(other, pinned, device, cudaMemcpyDeviceToHost);
    wait_for(other);
    expect_all(pinned, 2);
}

static void test_query(void **state)
{
    (void)state;
    assert_int_equal(cudaEventQuery(event), cudaSuccess); /* nothing is recorded */
    fill(stream, 1);
    assert_int_equal(cudaEventRecord(event, stream), cudaSuccess);
    assert_int_equal(cudaEventQuery(event), cudaErrorNotReady);
    assert_int_equal(cudaEventQuery(event), cudaSuccess);
}

/* A stream that is closed still does what it was given; memory is given back after that. */
static void test_close(void **state)
{
    (void)state;
    cudaStream_t closed;
    void *more;
    memset(pinned, 0, N);
    assert_int_equal(cudaMalloc(&more, N), cudaSuccess);
    assert_int_equal(cudaStreamCreateWithFlags(&closed, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaMemsetAsync(more, 5, N, closed), cudaSuccess);
    copy(closed, pinned, more, cudaMemcpyDeviceToHost);
    assert_int_equal(cudaStreamDestroy(closed), cudaSuccess);
    expect_all(pinned, 0);
    assert_int_equal(cudaFree(more), cudaSuccess);
    expect_all(pinned, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_host_memory, open_all, close_all),
        cmocka_unit_test_setup_teardown(test_events, open_all, close_all),
        cmocka_unit_test_setup_teardown(test_query, open_all, close_all),
        cmocka_unit_test_setup_teardown(test_close, open_all, close_all)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
