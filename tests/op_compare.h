/* op_compare.h - what tests of op cases compare. Included after cmocka.h. */
#pragma once
#include <stdio.h>

#include "op_cases.h"

static inline const char *case_text(const op_case *c, char text[160])
{
    int n = snprintf(text, 160, "%s (%s) =", c->kind->name, c->kind->sizes);
    for (int i = 0; i < VQ_COUNT(c->size); i++)
        n += snprintf(text + n, (size_t)(160 - n), " %lld", (long long)c->size[i]);
    return text;
}

/* sum (x - y)^2 / sum y^2, or 1 where it is not a number. */
static inline double nmse(const vq_tensor *x, const vq_tensor *y)
{
    double error = 0, size = 0;
    int64_t n = vq_tensor_count(y);
    for (int64_t i = 0; i < n; i++) {
        error += pow(op_get(x, i) - op_get(y, i), 2);
        size += pow(op_get(y, i), 2);
    }
    if (!isfinite(error)) return 1;
    return error == 0 ? 0 : error / fmax(size, 1e-300);
}

static inline void compare(const op_args *got, const op_args *expected, double limit,
                           const char *what, const op_case *c)
{
    char text[160];
    for (int i = 0; i < expected->n_out; i++) {
        double error = nmse(&got->out[i], &expected->out[i]);
        if (!(error <= limit))
            fail_msg("%s: %s: output %d has NMSE %g, expected %g or less", case_text(c, text), what,
                     i, error, limit);
    }
    double error = fabs(got->loss - expected->loss), size = fmax(fabs(expected->loss), 0.25);
    if (!(error <= sqrt(limit) * size))
        fail_msg("%s: %s: the value is %.17g, expected %.17g", case_text(c, text), what, got->loss,
                 expected->loss);
}

/* The gaps between rows belong to somebody else. */
static inline void check_gaps(const op_args *a, const op_case *c)
{
    char text[160];
    for (int i = 0; i < a->n_out; i++) {
        const vq_tensor *t = &a->out[i];
        int64_t row = vq_tensor_count(t) / t->dim[0];
        size_t bytes = vq_dtype_bytes(t->dtype);
        for (int64_t j = 0; j < t->dim[0]; j++)
            for (size_t k = (size_t)row * bytes; k < (size_t)t->stride[0] * bytes; k++)
                if (((uint8_t *)t->data)[(size_t)(j * t->stride[0]) * bytes + k])
                    fail_msg("%s: output %d: something was written after row %lld",
                             case_text(c, text), i, (long long)j);
    }
}

/* The same bits in two runs of a case. what: how the second differs from the first. */
static inline void expect_same_bits(const op_args *first, const op_args *second, const char *what,
                                    const op_case *c)
{
    char text[160];
    for (int i = 0; i < second->n_out; i++) {
        const vq_tensor *t = &second->out[i];
        const size_t bytes = vq_dtype_bytes(t->dtype) * (size_t)(t->dim[0] * t->stride[0]);
        if (memcmp(t->data, first->out[i].data, bytes) != 0)
            fail_msg("%s: output %d has other bits %s", case_text(c, text), i, what);
    }
    if (memcmp(&second->loss, &first->loss, sizeof first->loss) != 0)
        fail_msg("%s: the value has other bits %s", case_text(c, text), what);
}
