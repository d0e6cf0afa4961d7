/* element.h - the arithmetic of one element that the kernels of both backends share.
 *
 * The including file has defined the type real: float, or double in the tests' build. All of it is
 * plain arithmetic without branches or calls, so loops over it vectorize. */
#pragma once
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define VQ_HD __host__ __device__ __forceinline__
#else
#define VQ_HD static inline __attribute__((always_inline))
#endif

/* The range that the rounding function stretches the sigmoid to (algorithm: zeta, gamma). */
#define VQ_ZETA 1.1
#define VQ_GAMMA (-0.1)

/* a b + c, in one rounding where the machine has it. */
VQ_HD float vq_muladd_f32(float a, float b, float c)
{
#if defined(__CUDACC__) || defined(FP_FAST_FMAF)
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

VQ_HD float vq_bits_f32(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* e^x to about a unit in the last place; 0, infinity, NaN and subnormal results as exp() gives
 * them. x = n ln 2 + r, |r| <= ln 2 / 2; e^r by a polynomial whose relative error is even. */
VQ_HD float vq_exp_f32(float x)
{
    const float shift = 0x1.8p23f; /* adding it rounds to a whole number, in the low bits */
    x = x > 89.0f ? 89.0f : x;     /* e^89 is infinite; comparisons let NaN pass */
    x = x < -104.0f ? -104.0f : x; /* e^-104 rounds to 0 */
    float t = vq_muladd_f32(x, 0x1.715476p+0f, shift), n = t - shift;
    float r = vq_muladd_f32(n, -0x1.63p-1f, x); /* exact: 8 + 9 bits */
    r = vq_muladd_f32(n, 0x1.bd0106p-13f, r);
    float q = vq_muladd_f32(0x1.6a23dp-10f, r, 0x1.123a2p-7f);
    q = vq_muladd_f32(q, r, 0x1.5558f2p-5f);
    q = vq_muladd_f32(q, r, 0x1.555492p-3f);
    q = vq_muladd_f32(q, r, 0x1.fffffcp-2f);
    q = vq_muladd_f32(r * r, q, r) + 1.0f;
    /* 2^n in two factors, each a normal number, so that the one rounding is the last product's. */
    uint32_t bits;
    memcpy(&bits, &t, sizeof bits);
    int32_t whole = (int32_t)(bits - 0x4b400000u), half = whole >> 1;
    return q * vq_bits_f32((uint32_t)(half + 127) << 23) *
           vq_bits_f32((uint32_t)(whole - half + 127) << 23);
}

VQ_HD real vq_exp(real x)
{
    return sizeof(real) == sizeof(float) ? (real)vq_exp_f32((float)x) : (real)exp((double)x);
}

VQ_HD real vq_sigmoid(real x)
{
    return 1 / (1 + vq_exp(-x));
}

/* r = h(a) = clip((zeta - gamma) sigmoid(a) + gamma, 0, 1). NaN stays NaN. */
VQ_HD real vq_soft_round(real a)
{
    real u = (real)(VQ_ZETA - VQ_GAMMA) * vq_sigmoid(a) + (real)VQ_GAMMA;
    u = u < 0 ? 0 : u;
    return u > 1 ? 1 : u;
}

/* dh / da; where h is clipped 0, the bounds themselves not, as torch's clamp. */
VQ_HD real vq_soft_round_grad(real a)
{
    real s = vq_sigmoid(a), u = (real)(VQ_ZETA - VQ_GAMMA) * s + (real)VQ_GAMMA;
    return u < 0 || u > 1 ? 0 : (real)(VQ_ZETA - VQ_GAMMA) * s * (1 - s);
}

VQ_HD real vq_silu(real x)
{
    return x * vq_sigmoid(x);
}

VQ_HD real vq_silu_grad(real x)
{
    real s = vq_sigmoid(x);
    return s * (1 + x * (1 - s));
}

/* The range that a group's grid spans (contract: vq_grid_minmax), from its least and greatest
 * weight. */
VQ_HD void vq_grid_range(real *low, real *high, bool symmetric, bool include_zero)
{
    real least = *low, greatest = *high;
    if (include_zero || symmetric) {
        least = least < 0 ? least : 0;
        greatest = greatest > 0 ? greatest : 0;
    }
    if (symmetric) {
        greatest = -least > greatest ? -least : greatest;
        least = least < 0 ? -greatest : 0;
    }
    if (least == greatest && (include_zero || symmetric)) least = -1, greatest = 1;
    *low = least, *high = greatest;
}

/* The zero of a grid that begins at low. A scale far off its exact value (a subnormal f16) must not
 * push it off the grid. */
VQ_HD real vq_grid_zero(real low, real scale, real qmax, bool symmetric, bool include_zero)
{
    real zero = symmetric ? (qmax + 1) / 2 : (real)rint((double)(-low / scale));
    if (include_zero || symmetric) {
        zero = zero < qmax ? zero : qmax;
        zero = 0 > zero ? 0 : zero;
    }
    return zero;
}

/* |d|^2.4 = x^2 y^4 with x = d^2 and y = x^(-1/5): y from the bits of x, whose fifth is nearly that
 * of the logarithm, to 3 %, then by Newton's steps, which square 3 times the error. pow() takes
 * twenty times as long. x = 0 gives a finite y, and so 0. */
#ifdef VQ_CPU_F64
typedef int64_t vq_real_bits;
#define VQ_ROOT_BITS (1.2 * (1023 - 0.049) * 0x1p52) /* of 1, less what makes errors even */
#define VQ_ROOT_STEPS 5
#else
typedef int32_t vq_real_bits;
#define VQ_ROOT_BITS (1.2f * (127 - 0.049f) * 0x1p23f)
#define VQ_ROOT_STEPS 3
#endif

VQ_HD real vq_power_2_4(real d)
{
    const real x = d * d;
    vq_real_bits b;
    real y;
    memcpy(&b, &x, sizeof b);
    b = (vq_real_bits)(VQ_ROOT_BITS - (real)0.2 * (real)b);
    memcpy(&y, &b, sizeof y);
    for (int i = 0; i < VQ_ROOT_STEPS; i++) {
        const real y2 = y * y;
        y *= (real)1.2 - (real)0.2 * x * (y2 * y2) * y;
    }
    return x * x * ((y * y) * (y * y));
}
