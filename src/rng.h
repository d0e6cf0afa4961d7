/* rng.h - random numbers that depend on nothing but their seed and place.
 *
 * The counter-based generator gives number i of a stream without the ones before it, so ranks and
 * threads draw the same numbers in any order. The Mersenne Twister is Python's `random`, so that
 * calibration windows are the reference's. */
#pragma once
#include "base.h"

/* Number `counter` of the stream (seed, stream): 64 uniform bits. Local, pure. */
uint64_t vq_rng_bits(uint64_t seed, uint64_t stream, uint64_t counter);

/* The same as a uniform number in [0, 1). */
double vq_rng_uniform(uint64_t seed, uint64_t stream, uint64_t counter);

/* The same as an integer in [0, n), n >= 1. */
int64_t vq_rng_below(uint64_t seed, uint64_t stream, uint64_t counter, int64_t n);

/* Python's random.Random(seed) for 0 <= seed < 2^63: MT19937 with init_by_array. */
typedef struct vq_py_random {
    uint32_t state[624];
    int next;
} vq_py_random;

void vq_py_random_seed(vq_py_random *r, uint64_t seed);

/* random.randint(low, high), both ends included; high - low < 2^63. Bits as CPython's
 * _randbelow_with_getrandbits draws them. */
int64_t vq_py_randint(vq_py_random *r, int64_t low, int64_t high);
