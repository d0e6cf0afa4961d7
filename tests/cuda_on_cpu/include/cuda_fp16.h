/* cuda_fp16.h - stand-in for the half precision type: bits, and the conversions of tensor.h. */
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
float vq_f16_to_f32(uint16_t h);
uint16_t vq_f32_to_f16(float f);
}

struct __half {
    uint16_t bits;
};

static inline float __half2float(__half x)
{
    return vq_f16_to_f32(x.bits);
}

static inline __half __float2half(float x)
{
    return {vq_f32_to_f16(x)};
}
#endif
