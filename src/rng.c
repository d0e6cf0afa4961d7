/* rng - SplitMix64 over a counter, and CPython's Mersenne Twister. */
#include "rng.h"

/* Finaliser of SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t vq_rng_bits(uint64_t seed, uint64_t stream, uint64_t counter)
{
    return mix(mix(mix(seed) ^ stream) ^ counter);
}

double vq_rng_uniform(uint64_t seed, uint64_t stream, uint64_t counter)
{
    return (double)(vq_rng_bits(seed, stream, counter) >> 11) * 0x1p-53;
}

int64_t vq_rng_below(uint64_t seed, uint64_t stream, uint64_t counter, int64_t n)
{
    return (int64_t)(vq_rng_bits(seed, stream, counter) % (uint64_t)n);
}

/* MT19937 (Matsumoto, Nishimura 1998), seeded as CPython seeds it from an int. */
#define MT_N 624
#define MT_M 397

static void mt_init(vq_py_random *r, uint32_t s)
{
    r->state[0] = s;
    for (uint32_t i = 1; i < MT_N; i++)
        r->state[i] = 1812433253u * (r->state[i - 1] ^ (r->state[i - 1] >> 30)) + i;
    r->next = MT_N;
}

void vq_py_random_seed(vq_py_random *r, uint64_t seed)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t n_key = key[1] ? 2 : 1, j = 0, i = 1;
    mt_init(r, 19650218u);
    uint32_t *s = r->state;
    for (int k = 0; k < MT_N; k++) {
        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1664525u)) + key[j] + j;
        if (++i >= MT_N) s[0] = s[MT_N - 1], i = 1;
        if (++j >= n_key) j = 0;
    }
    for (int k = 0; k < MT_N - 1; k++) {
        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1566083941u)) - i;
        if (++i >= MT_N) s[0] = s[MT_N - 1], i = 1;
    }
    s[0] = 0x80000000u;
}

static uint32_t mt_next(vq_py_random *r)
{
    uint32_t *s = r->state;
    if (r->next >= MT_N) {
        for (int i = 0; i < MT_N; i++) {
            uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % MT_N] & 0x7fffffffu);
            s[i] = s[(i + MT_M) % MT_N] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
        }
        r->next = 0;
    }
    uint32_t y = s[r->next++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

/* getrandbits(k) for k <= 64: words from the lowest up, the last one shifted. */
static uint64_t mt_bits(vq_py_random *r, int k)
{
    if (k <= 32) return mt_next(r) >> (32 - k);
    uint64_t low = mt_next(r);
    return low | (uint64_t)(mt_next(r) >> (64 - k)) << 32;
}

int64_t vq_py_randint(vq_py_random *r, int64_t low, int64_t high)
{
    uint64_t n = (uint64_t)(high - low) + 1;
    int k = 0;
    while (k < 64 && n >> k) k++;
    uint64_t x = mt_bits(r, k);
    while (x >= n) x = mt_bits(r, k);
    return low + (int64_t)x;
}
