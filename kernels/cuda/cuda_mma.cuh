/* cuda_mma.cuh - products of a warp on tensor cores: PTX's mma.m16n8k16, and ldmatrix; and copies
 * to shared memory that go on while a thread computes: cp.async.
 *
 * With lane = 4 g + t, each register holding two neighbours along the row of a [16, 16], along the
 * column of b [16, 8]:
 *
 *   a[0] (g, 2t)   a[1] (g + 8, 2t)   a[2] (g, 2t + 8)   a[3] (g + 8, 2t + 8)
 *   b[0] (2t, g)   b[1] (2t + 8, g)
 *   d[0] (g, 2t)   d[1] (g, 2t + 1)   d[2] (g + 8, 2t)   d[3] (g + 8, 2t + 1)
 *
 * So d of one product is a of the next: two neighbours of its tiles, rounded, are one a. */
#pragma once
#include "cuda_device.cuh"

/* The loop's arrays stay in registers. */
#ifdef __CUDACC__
#define VQ_UNROLL _Pragma("unroll")
#else
#define VQ_UNROLL
#endif

/* d [16, 8] += a b, products of T summed in f32. All lanes. */
template <class T>
__device__ __forceinline__ void vq_mma(float *d, const uint32_t *a, const uint32_t *b);

/* The 8 x 8 matrices m = 0..3 of shared memory, transposed: m[i] has (2t, g) and (2t + 1, g) of
 * matrix i. Lane l gives the address of row l % 8 of matrix l / 8: 8 elements, aligned to 16 bytes.
 * All lanes. */
__device__ __forceinline__ void vq_load_transposed(uint32_t *m, const void *row);

/* Begins to copy BYTES (16, aligned to it, or 4) from device to shared memory; zeros where it is
 * not there, whose address is not read. The thread's own are through after vq_wait_copies, and
 * others' after the barrier that follows theirs. */
template <int BYTES>
__device__ __forceinline__ void vq_begin_copy(void *shared, const void *from, bool is_there);
__device__ __forceinline__ void vq_wait_copies();

#ifdef __CUDACC__
#define VQ_MMA(type, name)                                                                         \
    template <>                                                                                    \
    __device__ __forceinline__ void vq_mma<type>(float *d, const uint32_t *a, const uint32_t *b)   \
    {                                                                                              \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 "                \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"             \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));          \
    }
VQ_MMA(__half, "f16")
VQ_MMA(__nv_bfloat16, "bf16")
#undef VQ_MMA

__device__ __forceinline__ void vq_load_transposed(uint32_t *m, const void *row)
{
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(at)
                 : "memory");
}

template <int BYTES>
__device__ __forceinline__ void vq_begin_copy(void *shared, const void *from, bool is_there)
{
    static_assert(BYTES == 4 || BYTES == 16, "what cp.async copies here");
    const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const uint64_t source = __cvta_generic_to_global(from);
    const int size = is_there ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(source),
                     "r"(size)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(source),
                     "r"(size)
                     : "memory");
}

__device__ __forceinline__ void vq_wait_copies()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}
#else
template <int BYTES>
__device__ __forceinline__ void vq_begin_copy(void *shared, const void *from, bool is_there)
{
    shim_begin_copy(shared, is_there ? from : nullptr, BYTES);
}

__device__ __forceinline__ void vq_wait_copies()
{
    shim_wait_copies();
}

/* By the definition, with what the other lanes have. */
template <class T> static inline float shim_half(uint64_t pair, int which)
{
    const uint16_t bits = static_cast<uint16_t>(pair >> (16 * which));
    T x;
    memcpy(&x, &bits, sizeof x);
    return vq_load(x);
}

template <class T>
__device__ __forceinline__ void vq_mma(float *d, const uint32_t *a, const uint32_t *b)
{
    const int g = static_cast<int>(shim_lane() / 4), t = static_cast<int>(shim_lane() % 4);
    uint64_t a01[32], a23[32], b01[32];
    memcpy(a01, shim_exchange(VQ_ALL_LANES, a[0] | uint64_t(a[1]) << 32, "vq_mma"), sizeof a01);
    memcpy(a23, shim_exchange(VQ_ALL_LANES, a[2] | uint64_t(a[3]) << 32, "vq_mma"), sizeof a23);
    memcpy(b01, shim_exchange(VQ_ALL_LANES, b[0] | uint64_t(b[1]) << 32, "vq_mma"), sizeof b01);
    for (int i = 0; i < 4; i++) {
        const int low_row = i / 2, column = 2 * t + i % 2;
        for (int k = 0; k < 16; k++) {
            const int at = 4 * g + k % 8 / 2, from = 4 * column + k % 8 / 2;
            const uint64_t row = k < 8 ? a01[at] : a23[at];
            d[i] +=
                shim_half<T>(row, 2 * low_row + k % 2) * shim_half<T>(b01[from], k / 8 * 2 + k % 2);
        }
    }
}

__device__ __forceinline__ void vq_load_transposed(uint32_t *m, const void *row)
{
    const int g = static_cast<int>(shim_lane() / 4), t = static_cast<int>(shim_lane() % 4);
    uint64_t rows[32];
    memcpy(rows,
           shim_exchange(VQ_ALL_LANES, reinterpret_cast<uintptr_t>(row), "vq_load_transposed"),
           sizeof rows);
    for (int i = 0; i < 4; i++) {
        uint16_t low, high;
        memcpy(&low, reinterpret_cast<const uint16_t *>(rows[8 * i + 2 * t]) + g, sizeof low);
        memcpy(&high, reinterpret_cast<const uint16_t *>(rows[8 * i + 2 * t + 1]) + g, sizeof high);
        m[i] = low | uint32_t(high) << 16;
    }
}
#endif

/* Two numbers as neighbours of a register. */
template <class T> __device__ __forceinline__ uint32_t vq_pair(float low, float high)
{
    const vq_pack<T, 2> pair = {{vq_store<T>(low), vq_store<T>(high)}};
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

/* The register at two neighbours in memory, aligned to 4 bytes. */
template <class T> __device__ __forceinline__ uint32_t vq_pair_at(const T *x)
{
    const vq_pack<T, 2> pair = *reinterpret_cast<const vq_pack<T, 2> *>(x);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}
