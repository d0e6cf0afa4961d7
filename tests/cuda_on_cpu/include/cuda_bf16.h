/* cuda_bf16.h - stand-in for the bfloat16 type: bits, and the conversions of tensor.h. */
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
float vq_bf16_to_f32(uint16_t h);
uint16_t vq_f32_to_bf16(float f);
}

struct __nv_bfloat16 {
    uint16_t bits;
};

static inline float __bfloat162float(__nv_bfloat16 x)
{
    return vq_bf16_to_f32(x.bits);
}

static inline __nv_bfloat16 __float2bfloat16(float x)
{
    return {vq_f32_to_bf16(x)};
}
#endif
