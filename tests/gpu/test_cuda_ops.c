/* test_cuda_ops - every case of op_cases.h through the GPU's kernels: values against the formula or
 * the f64 build of the CPU's kernels, for each type of activations, and equal bits in whatever
 * order the threads of a block run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "cpu_backend.h"
#include "device.h"
#include "op_compare.h"

/* Normalized mean square errors by the type of activations. One rounding of a result to t bits
 * leaves about 4^-t / 12: f32 (24 bits) 3e-16, f16 (11) 2e-8, bf16 (8) 1.3e-6. Sums in f32 and
 * roundings inside an op (probabilities, logits' gradients, dP) add some of the same. */
static const struct {
    vq_dtype act;
    double limit;
} TYPES[] = {{VQ_F32, 1e-11}, {VQ_F16, 4e-7}, {VQ_BF16, 2.5e-5}};

static const char *only; /* ops to run; NULL: all */

/* The arguments' values, in another backend's types. */
static void copy_values(op_args *to, const op_args *from)
{
    for (int i = 0; i < from->n_in; i++)
        for (int64_t j = 0; j < vq_tensor_count(&from->in[i]); j++)
            op_set(&to->in[i], j, op_get(&from->in[i], j));
    for (int i = 0; i < from->n_out; i++)
        for (int64_t j = 0; j < vq_tensor_count(&from->out[i]); j++)
            op_set(&to->out[i], j, op_get(&from->out[i], j));
}

static void run_case(vq_arena *arena, const vq_backend *be, double limit, const op_case *c)
{
    char text[160];
    const op_kind *kind = c->kind;
    vq_backend cpu;
    op_args expected = {0}, first = {0};
    size_t mark = vq_arena_mark(arena);
    /* The kernels of the halves are those of f32 with other loads and stores. */
    const int runs = be->act == VQ_F32 ? DEVICE_RUNS : be->act == VQ_BF16 ? 2 : 1;
    for (int run = 0; run < runs; run++) {
        op_args a = {0};
        device_run(run);
        device_lock(be->act == VQ_F32 && run == 0); /* host code is the same for all */
        EXPECT_OK(kind->make(be, arena, c->size, &a));
        if (run == 0) {
            assert_int_equal(vq_cpu_open_f64(&cpu, 1), VQ_OK);
            EXPECT_OK(kind->make(&cpu, arena, c->size, &expected));
            copy_values(&expected, &a);
            if (kind->reference)
                kind->reference(c->size, &expected);
            else
                EXPECT_OK(kind->run(&cpu, c->size, &expected));
            vq_cpu_close_f64(&cpu);
        }
        if (op_run(be, arena, kind->run, c->size, &a) != VQ_OK)
            fail_msg("%s: %s", case_text(c, text), vq_error_message());
        if (run == 0) {
            compare(&a, &expected, limit, vq_dtype_name(be->act), c);
            check_gaps(&a, c);
            first = a;
            continue;
        }
        snprintf(text, sizeof text, "in run %d (%s)", run, vq_dtype_name(be->act));
        expect_same_bits(&first, &a, text, c);
    }
    vq_arena_reset(arena, mark);
}

static void test_cases(void **state)
{
    (void)state;
    for (int t = 0; t < VQ_COUNT(TYPES); t++) {
        device d;
        device_open(&d, TYPES[t].act);
        for (int i = 0; i < VQ_COUNT(OP_CASES); i++)
            if (!only || strstr(OP_CASES[i].kind->name, only))
                run_case(&d.arena, &d.be, TYPES[t].limit, &OP_CASES[i]);
#ifdef VQ_ON_SHIM
        assert_true(shim_launches() > 0);
#endif
        device_close(&d);
    }
}

/* usage: test_cuda_ops [PART OF AN OP'S NAME] */
int main(int argc, char **argv)
{
    if (argc > 1) only = argv[1];
    device_require();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
