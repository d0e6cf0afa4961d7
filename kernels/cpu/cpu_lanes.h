/* cpu_lanes.h - sums of rows in a fixed order, by vectors of LANES elements.
 *
 * A loop that the compiler vectorizes by itself may treat the elements before an aligned address
 * apart, and then its sum depends on where the array lies. Here lane i always adds the elements
 * i, i + LANES, ... and the lanes are added in order, whatever the address and the machine. */
#pragma once
#include <string.h>

#include "cpu_real.h"

/* Everything here is inlined: how the ABI would return a vector does not matter. */
#pragma GCC diagnostic ignored "-Wpsabi"
#define LANES_FN static inline __attribute__((always_inline))

#define LANES ((int64_t)(64 / sizeof(real)))

typedef real lanes __attribute__((vector_size(64)));

LANES_FN lanes lanes_load(const real *x)
{
    lanes v;
    memcpy(&v, x, sizeof v);
    return v;
}

/* The n < LANES elements at x, then zeros. */
LANES_FN lanes lanes_load_part(const real *x, int64_t n)
{
    lanes v = {0};
    memcpy(&v, x, (size_t)n * sizeof *x);
    return v;
}

LANES_FN real lanes_total(const lanes *v)
{
    real sum = 0;
    for (int64_t i = 0; i < LANES; i++) sum += (*v)[i];
    return sum;
}

LANES_FN real lanes_sum(const real *x, int64_t n)
{
    lanes sum = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sum += lanes_load(x + i);
    sum += lanes_load_part(x + i, n - i);
    return lanes_total(&sum);
}

/* sum x y */
LANES_FN real lanes_dot(const real *x, const real *y, int64_t n)
{
    lanes sum = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sum += lanes_load(x + i) * lanes_load(y + i);
    sum += lanes_load_part(x + i, n - i) * lanes_load_part(y + i, n - i);
    return lanes_total(&sum);
}
