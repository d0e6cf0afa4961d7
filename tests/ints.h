/* ints.h - the integers of a weight (vq_quant) one by one, on the host. */
#pragma once
#include "tensor.h"

/* The i-th of a weight with `in` columns. */
static inline int int_at(const vq_tensor *t, int64_t in, int64_t i)
{
    const int64_t row = i / in, column = i % in;
    switch (t->dtype) {
    case VQ_I8: return ((const int8_t *)t->data)[i];
    case VQ_I16: return ((const int16_t *)t->data)[i];
    default:
        return (((const uint8_t *)t->data)[row * t->dim[1] + column / 2] >> column % 2 * 4 & 15) -
               1;
    }
}

static inline void int_set(vq_tensor *t, int64_t in, int64_t i, int n)
{
    const int64_t row = i / in, column = i % in;
    uint8_t *byte = (uint8_t *)t->data + row * t->dim[1] + column / 2;
    switch (t->dtype) {
    case VQ_I8: ((int8_t *)t->data)[i] = (int8_t)n; return;
    case VQ_I16: ((int16_t *)t->data)[i] = (int16_t)n; return;
    default: *byte = (uint8_t)(column % 2 ? (*byte & 15) | (n + 1) << 4 : n + 1);
    }
}
