/* cuda_device.cuh - what the .cu files share: launches, loads and stores, sums over a warp or
 * block.
 *
 * The files compile with nvcc, and as C++ for the host with the stand-ins of tests/cuda_on_cpu: no
 * <<<>>>, no __shared__ outside these macros. */
#pragma once
#include "cuda_ops.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda_geometry.h"

typedef float real;
#include "element.h"

/* Queues kernel(arguments) on cuda's stream; a kernel with several template arguments stands in
 * parentheses. shared_bytes: of the memory behind VQ_DYNAMIC_SHARED. Returns from the caller on
 * failure.
 *
 * VQ_SHARED(float, tile, [32][33]); makes an array of the block; not cleared.
 * VQ_DYNAMIC_SHARED(float, table); makes `table` point to the launch's shared_bytes: one a kernel,
 * aligned to 16 bytes. */
#ifdef __CUDACC__
/* A block has 48 KiB without asking for more, VQ_SHARED's arrays among them: these may be 16. */
#define VQ_SHARED_UNASKED ((size_t)32 << 10)
#define VQ_LAUNCH(cuda, kernel, blocks, threads, shared_bytes, ...)                                \
    do {                                                                                           \
        if ((size_t)(shared_bytes) > VQ_SHARED_UNASKED)                                            \
            VQ_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,      \
                                         (int)(shared_bytes)));                                    \
        kernel<<<blocks, threads, shared_bytes, (cuda)->stream>>>(__VA_ARGS__);                    \
        VQ_CUDA(cudaGetLastError());                                                               \
    } while (0)
#define VQ_SHARED(type, name, dims) __shared__ type name dims
#define VQ_DYNAMIC_SHARED(type, name)                                                              \
    extern __shared__ __align__(16) unsigned char vq_dynamic_shared[];                             \
    type *name = reinterpret_cast<type *>(vq_dynamic_shared)
#endif

/* The number of this thread in the launch, and how many there are; both along x:
 * for (int64_t i = vq_thread(); i < n; i += vq_threads()). */
__device__ __forceinline__ int64_t vq_thread()
{
    return int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ int64_t vq_threads()
{
    return int64_t(gridDim.x) * blockDim.x;
}

/* --- elements -------------------------------------------------------------------------------- */

/* A float type to float and back, round to nearest even. */
__device__ __forceinline__ float vq_load(float x)
{
    return x;
}

__device__ __forceinline__ float vq_load(__half x)
{
    return __half2float(x);
}

__device__ __forceinline__ float vq_load(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}

__device__ __forceinline__ float vq_load(double x)
{
    return static_cast<float>(x);
}

template <class T> __device__ __forceinline__ T vq_store(float x);

template <> __device__ __forceinline__ float vq_store<float>(float x)
{
    return x;
}

template <> __device__ __forceinline__ __half vq_store<__half>(float x)
{
    return __float2half(x);
}

template <> __device__ __forceinline__ __nv_bfloat16 vq_store<__nv_bfloat16>(float x)
{
    return __float2bfloat16(x);
}

/* Element i of a vector whose type is known at run time only (a norm's weight, a bias). */
__device__ __forceinline__ float vq_load_any(const void *x, vq_dtype dtype, int64_t i)
{
    switch (dtype) {
    case VQ_F32: return static_cast<const float *>(x)[i];
    case VQ_F16: return vq_load(static_cast<const __half *>(x)[i]);
    case VQ_BF16: return vq_load(static_cast<const __nv_bfloat16 *>(x)[i]);
    default: return vq_load(static_cast<const double *>(x)[i]);
    }
}

/* The number nearest to s that scale_dtype holds, and f16 too for a bf16 one up to 65504, so that a
 * packed file of either type holds the scale; never 0, since weights are divided by it. */
__device__ __forceinline__ float vq_round_scale(float s, vq_dtype scale_dtype)
{
    if (scale_dtype == VQ_BF16) {
        s = vq_load(vq_store<__nv_bfloat16>(s));
        if (s > 65504) return s;
    }
    if (scale_dtype != VQ_F16 && scale_dtype != VQ_BF16) return s > 0x1p-149f ? s : 0x1p-149f;
    s = vq_load(vq_store<__half>(s));
    return s > 0x1p-24f ? s : 0x1p-24f;
}

/* A weight's integers (vq_quant): I is int8_t, int16_t or, for two in a byte, uint8_t, the one
 * without a sign. */
__device__ __forceinline__ int vq_half(uint8_t byte, int64_t column)
{
    return (byte >> (column % 2 * 4) & 15) - 1;
}

template <class I>
__device__ __forceinline__ int vq_load_int(const I *ints, int64_t in, int64_t row, int64_t column)
{
    if (I(-1) > 0) return vq_half(uint8_t(ints[row * ((in + 1) / 2) + column / 2]), column);
    return ints[row * in + column];
}

/* Columns 2 i and 2 i + 1 are one thread's, in this order; *low keeps the first one's half. */
template <class I>
__device__ __forceinline__ void vq_store_int(I *ints, int64_t in, int64_t row, int64_t column,
                                             int n, int *low)
{
    if (I(-1) < 0) {
        ints[row * in + column] = I(n);
    } else if (column % 2 == 0) {
        *low = n + 1;
        if (column + 1 == in) ints[row * ((in + 1) / 2) + column / 2] = I(*low);
    } else {
        ints[row * ((in + 1) / 2) + column / 2] = I(*low | (n + 1) << 4);
    }
}

/* N elements that are moved at once; N of them are at most 16 bytes. */
template <class T, int N> struct alignas(sizeof(T) * N) vq_pack {
    T x[N];
};

/* Runs the statement with T defined as the type of act, or as any float type. */
#define VQ_ACT_TYPE(dtype, ...)                                                                    \
    do {                                                                                           \
        switch (dtype) {                                                                           \
        case VQ_F32: {                                                                             \
            typedef float T;                                                                       \
            __VA_ARGS__;                                                                           \
            break;                                                                                 \
        }                                                                                          \
        case VQ_F16: {                                                                             \
            typedef __half T;                                                                      \
            __VA_ARGS__;                                                                           \
            break;                                                                                 \
        }                                                                                          \
        default: {                                                                                 \
            typedef __nv_bfloat16 T;                                                               \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
        }                                                                                          \
    } while (0)

#define VQ_FLOAT_TYPE(dtype, ...)                                                                  \
    do {                                                                                           \
        if ((dtype) == VQ_F64) {                                                                   \
            typedef double T;                                                                      \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            VQ_ACT_TYPE(dtype, __VA_ARGS__);                                                       \
        }                                                                                          \
    } while (0)

/* Runs the statement with I defined as the type of a weight's integers. */
#define VQ_INT_TYPE(dtype, ...)                                                                    \
    do {                                                                                           \
        if ((dtype) == VQ_I16) {                                                                   \
            typedef int16_t I;                                                                     \
            __VA_ARGS__;                                                                           \
        } else if ((dtype) == VQ_I8) {                                                             \
            typedef int8_t I;                                                                      \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            typedef uint8_t I;                                                                     \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)

/* --- sums in a fixed order ------------------------------------------------------------------- */

#define VQ_ALL_LANES 0xffffffffu

/* Every lane gets the sum (the greatest) of all 32 lanes; all must take part. */
template <class T> __device__ __forceinline__ T vq_warp_sum(T x)
{
    for (int lane = VQ_WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(VQ_ALL_LANES, x, lane);
    return x;
}

template <class T> __device__ __forceinline__ T vq_warp_max(T x)
{
    for (int lane = VQ_WARP / 2; lane > 0; lane /= 2) {
        T other = __shfl_xor_sync(VQ_ALL_LANES, x, lane);
        x = other > x ? other : x;
    }
    return x;
}

/* Every thread gets the sum (the greatest) over the block, of whole warps along x; all threads
 * must take part. */
template <class T> __device__ __forceinline__ T vq_block_sum(T x)
{
    VQ_SHARED(T, part, [VQ_WARP]);
    int warps = static_cast<int>(blockDim.x) / VQ_WARP;
    x = vq_warp_sum(x);
    if (warps == 1) return x;
    if (threadIdx.x % VQ_WARP == 0) part[threadIdx.x / VQ_WARP] = x;
    __syncthreads();
    T lane = static_cast<int>(threadIdx.x % VQ_WARP) < warps ? part[threadIdx.x % VQ_WARP] : T(0);
    __syncthreads(); /* part may be written again */
    return vq_warp_sum(lane);
}

template <class T> __device__ __forceinline__ T vq_block_max(T x)
{
    VQ_SHARED(T, part, [VQ_WARP]);
    int warps = static_cast<int>(blockDim.x) / VQ_WARP;
    x = vq_warp_max(x);
    if (warps == 1) return x;
    if (threadIdx.x % VQ_WARP == 0) part[threadIdx.x / VQ_WARP] = x;
    __syncthreads();
    T lane = part[static_cast<int>(threadIdx.x % VQ_WARP) < warps ? threadIdx.x % VQ_WARP : 0];
    __syncthreads(); /* part may be written again */
    return vq_warp_max(lane);
}
