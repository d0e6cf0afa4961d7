/* test_adam - five steps against torch's own Adam, to the bit (tests/golden/golden_adam.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cpu_backend.h"
#include "error.h"
#include "safetensors.h"

static void test_torch(void **state)
{
    (void)state;
    vq_arena arena;
    vq_backend be;
    vq_safetensors golden;
    assert_int_equal(vq_arena_init(&arena, "test", (size_t)1 << 30), VQ_OK);
    assert_int_equal(vq_cpu_open(&be, 2), VQ_OK);
    if (vq_safetensors_open(&arena, TESTS_DIR "/golden/adam.safetensors", &golden) != VQ_OK)
        fail_msg("%s", vq_error_message());

    const vq_tensor *grad = vq_safetensors_find(&golden, "grad");
    const vq_tensor *start = vq_safetensors_find(&golden, "start");
    assert_non_null(grad);
    assert_non_null(start);
    int64_t steps = grad->dim[0], n = grad->dim[1];
    const char *names[] = {"fma.param", "fma.m", "fma.v"}; /* torch's code for AVX2 and later */
    vq_tensor ours[3];
    for (int i = 0; i < 3; i++) {
        assert_int_equal(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(n), &ours[i]), VQ_OK);
        assert_int_equal(vq_zero(&be, &ours[i]), VQ_OK);
    }
    assert_int_equal(vq_copy(&be, &ours[0], start), VQ_OK);

    for (int64_t step = 0; step < steps; step++) {
        vq_tensor row = vq_tensor_1d((float *)grad->data + step * n, VQ_F32, n);
        assert_int_equal(
            vq_adam_step(&be, &ours[0], &ours[1], &ours[2], &row, 1e-2, 0.9, 0.99, 1e-8, step + 1),
            VQ_OK);
        for (int i = 0; i < 3; i++) {
            const vq_tensor *t = vq_safetensors_find(&golden, names[i]);
            assert_non_null(t);
            const float *expected = (const float *)t->data + step * n, *got = ours[i].data;
            for (int64_t j = 0; j < n; j++)
                if (memcmp(&got[j], &expected[j], sizeof *got) != 0)
                    fail_msg("%s[%lld][%lld] is %a, expected %a", names[i], (long long)step,
                             (long long)j, (double)got[j], (double)expected[j]);
        }
    }
    vq_safetensors_close(&golden);
    vq_cpu_close(&be);
    vq_arena_close(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_torch)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
