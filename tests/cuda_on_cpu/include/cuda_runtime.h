/* cuda_runtime.h - stand-in for the device language: a .cu file compiles as C++ for the host.
 *
 * Each thread of a block is a fiber; all run on the calling thread, one until it waits for others.
 * Where threads wait for one that has left, or stand at different barriers, the program ends with
 * the kernel, the block, the threads and the lines. */
#pragma once
#include "cuda_runtime_api.h"

#include <math.h>
#include <string.h>

#include <type_traits>

#define __host__
#define __device__
#define __global__
#define __constant__ const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};

struct int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};

static inline float2 make_float2(float x, float y)
{
    return {x, y};
}

static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

/* Of the thread that runs. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

/* --- what vqround's macros need -------------------------------------------------------------- */

/* A launch; its arguments, which body knows, stand behind it. */
struct shim_launch {
    const char *kernel;
    dim3 blocks, threads;
    size_t shared_bytes;
    void (*body)(shim_launch *);
};

extern "C" {

/* Queues a copy of the launch and its arguments, together of these bytes: body(copy) runs once for
 * each thread of each block. */
cudaError_t shim_run(const shim_launch *launch, size_t bytes, cudaStream_t stream);

/* The block's array of this key, made by the first thread that asks. */
void *shim_shared(const void *key, size_t bytes);
void *shim_dynamic_shared(void);

void shim_barrier(const char *file, int line);

/* Copies to shared memory (NULL: zeros) that are made when their thread waits for them. */
void shim_begin_copy(void *shared, const void *from, size_t bytes);
void shim_wait_copies(void);

/* Waits for the lanes of mask. Each lane gives its value; what all gave is at `values` until the
 * lane's next exchange. */
const uint64_t *shim_exchange(unsigned mask, uint64_t value, const char *operation);
}

template <class T> struct shim_same {
    typedef T type;
};

/* Arguments become the kernel's parameters when it is launched. */
template <class... P>
static inline cudaError_t shim_call(const shim_launch &launch, cudaStream_t stream,
                                    void (*kernel)(P...), typename shim_same<P>::type... arguments)
{
    auto call = [=]() { kernel(arguments...); };
    struct whole {
        shim_launch launch;
        decltype(call) run;
    } w = {launch, call};
    static_assert(std::is_trivially_copyable<whole>::value, "arguments are copied as bytes");
    w.launch.body = [](shim_launch *l) { reinterpret_cast<whole *>(l)->run(); };
    return shim_run(&w.launch, sizeof w, stream);
}

#define VQ_LAUNCH(cuda, kernel, blocks, threads, shared_bytes, ...)                                \
    VQ_CUDA(shim_call({#kernel, blocks, threads, size_t(shared_bytes), nullptr}, (cuda)->stream,   \
                      kernel, __VA_ARGS__))
#define VQ_SHARED(type, name, dims)                                                                \
    static char name##_key_;                                                                       \
    typedef type name##_type_ dims;                                                                \
    name##_type_ &name =                                                                           \
        *static_cast<name##_type_ *>(shim_shared(&name##_key_, sizeof(name##_type_)))
#define VQ_DYNAMIC_SHARED(type, name) type *name = static_cast<type *>(shim_dynamic_shared())

/* --- threads of a block and a warp ----------------------------------------------------------- */

#define __syncthreads() shim_barrier(__FILE__, __LINE__)

static inline int __syncthreads_count(int predicate)
{
    VQ_SHARED(int, count, );
    __syncthreads();
    count = 0;
    __syncthreads();
    count += predicate != 0;
    __syncthreads();
    return count;
}

static inline int __syncthreads_or(int predicate)
{
    return __syncthreads_count(predicate) > 0;
}

static inline int __syncthreads_and(int predicate)
{
    return __syncthreads_count(!predicate) == 0;
}

static inline unsigned shim_lane()
{
    return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
}

template <class T> static inline T shim_take(unsigned mask, T value, unsigned lane, const char *op)
{
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a value of 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    const uint64_t *values = shim_exchange(mask, bits, op);
    memcpy(&value, &values[lane], sizeof value);
    return value;
}

template <class T> static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32)
{
    unsigned first = shim_lane() / (unsigned)width * (unsigned)width;
    return shim_take(mask, value, first + (unsigned)lane % (unsigned)width, "__shfl_sync");
}

template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32)
{
    unsigned lane = shim_lane(), other = lane ^ (unsigned)with;
    if (other / (unsigned)width > lane / (unsigned)width) other = lane;
    return shim_take(mask, value, other, "__shfl_xor_sync");
}

template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32)
{
    unsigned lane = shim_lane(), other = lane + by;
    if (other / (unsigned)width != lane / (unsigned)width) other = lane;
    return shim_take(mask, value, other, "__shfl_down_sync");
}

template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32)
{
    unsigned lane = shim_lane();
    unsigned other = lane % (unsigned)width < by ? lane : lane - by;
    return shim_take(mask, value, other, "__shfl_up_sync");
}

static inline unsigned __ballot_sync(unsigned mask, int predicate)
{
    const uint64_t *values = shim_exchange(mask, predicate != 0, "__ballot_sync");
    unsigned votes = 0;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1 && values[i]) votes |= 1u << i;
    return votes;
}

static inline int __any_sync(unsigned mask, int predicate)
{
    return __ballot_sync(mask, predicate) != 0;
}

static inline int __all_sync(unsigned mask, int predicate)
{
    return __ballot_sync(mask, predicate) == mask;
}

template <class T> static inline unsigned __match_any_sync(unsigned mask, T value)
{
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    const uint64_t *values = shim_exchange(mask, bits, "__match_any_sync");
    unsigned same = 0;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1 && values[i] == bits) same |= 1u << i;
    return same;
}

static inline void __syncwarp(unsigned mask = 0xffffffffu)
{
    (void)shim_exchange(mask, 0, "__syncwarp");
}

#define __threadfence() ((void)0)
#define __threadfence_block() ((void)0)

/* --- atomics: fibers change only where they wait --------------------------------------------- */

#define SHIM_ATOMIC(name, ...)                                                                     \
    template <class T> static inline T name(T *at, typename shim_same<T>::type value)              \
    {                                                                                              \
        T old = *at;                                                                               \
        *at = __VA_ARGS__;                                                                         \
        return old;                                                                                \
    }
SHIM_ATOMIC(atomicAdd, (T)(old + value))
SHIM_ATOMIC(atomicMin, value < old ? value : old)
SHIM_ATOMIC(atomicMax, value > old ? value : old)
SHIM_ATOMIC(atomicExch, value)
SHIM_ATOMIC(atomicOr, (T)(old | value))
SHIM_ATOMIC(atomicAnd, (T)(old &value))
#undef SHIM_ATOMIC

template <class T>
static inline T atomicCAS(T *at, typename shim_same<T>::type expected,
                          typename shim_same<T>::type value)
{
    T old = *at;
    if (old == expected) *at = value;
    return old;
}

/* --- arithmetic ------------------------------------------------------------------------------ */

template <class T> static inline T __ldg(const T *at)
{
    return *at;
}

static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}

static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

static inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}

static inline unsigned __float_as_uint(float x)
{
    unsigned u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float __uint_as_float(unsigned u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline int __float_as_int(float x)
{
    return (int)__float_as_uint(x);
}

static inline float __int_as_float(int i)
{
    return __uint_as_float((unsigned)i);
}

static inline float rsqrtf(float x)
{
    return 1 / sqrtf(x);
}

static inline double rsqrt(double x)
{
    return 1 / sqrt(x);
}

#define __expf(x) expf(x)
#define __logf(x) logf(x)

static inline float __fdividef(float a, float b)
{
    return a / b;
}

/* One operation, one rounding: the host's compiler is told not to contract (-ffp-contract=off). */
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}

static inline float __fsub_rn(float a, float b)
{
    return a - b;
}

static inline float __fmul_rn(float a, float b)
{
    return a * b;
}

static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}

static inline float __fsqrt_rn(float x)
{
    return sqrtf(x);
}

static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}

static inline double __dadd_rn(double a, double b)
{
    return a + b;
}

static inline double __dmul_rn(double a, double b)
{
    return a * b;
}

static inline int __float2int_rn(float x)
{
    return (int)rintf(x);
}

#define SHIM_MIN_MAX(T)                                                                            \
    static inline T min(T a, T b)                                                                  \
    {                                                                                              \
        return b < a ? b : a;                                                                      \
    }                                                                                              \
    static inline T max(T a, T b)                                                                  \
    {                                                                                              \
        return a < b ? b : a;                                                                      \
    }
SHIM_MIN_MAX(int)
SHIM_MIN_MAX(unsigned)
SHIM_MIN_MAX(long)
SHIM_MIN_MAX(unsigned long)
#undef SHIM_MIN_MAX

static inline float max(float a, float b)
{
    return fmaxf(a, b);
}

static inline float min(float a, float b)
{
    return fminf(a, b);
}

template <class F> static inline cudaError_t cudaFuncSetAttribute(F *, cudaFuncAttribute, int)
{
    return cudaSuccess;
}
