/* pack - a stream of bits. */
#include "pack.h"

int64_t vq_pack_words(int64_t n, int bits)
{
    return VQ_CEIL_DIV(n * bits, 32);
}

void vq_pack(uint32_t *word, int64_t stride, const uint8_t *value, int64_t n, int bits)
{
    uint64_t stream = 0;
    int have = 0;
    for (int64_t i = 0; i < n; i++) {
        stream |= (uint64_t)value[i] << have;
        have += bits;
        if (have < 32) continue;
        *word = (uint32_t)stream;
        word += stride;
        stream >>= 32;
        have -= 32;
    }
    if (have > 0) *word = (uint32_t)stream;
}

void vq_unpack(uint8_t *value, const uint32_t *word, int64_t stride, int64_t n, int bits)
{
    const uint32_t mask = (1u << bits) - 1;
    uint64_t stream = 0;
    int have = 0;
    for (int64_t i = 0; i < n; i++) {
        if (have < bits) {
            stream |= (uint64_t)*word << have;
            word += stride;
            have += 32;
        }
        value[i] = (uint8_t)(stream & mask);
        stream >>= bits;
        have -= bits;
    }
}
