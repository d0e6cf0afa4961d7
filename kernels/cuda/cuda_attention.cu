/* cuda_attention - causal attention, forward and backward, scores living in registers alone.
 *
 * A block of 4 warps takes 64 queries of a head and goes over the keys that they see in tiles; the
 * softmax is carried along by its greatest score and sum so far (Dao 2023, FlashAttention-2). The
 * backward makes the probabilities again from lse, twice: once by blocks of queries for dq, once by
 * blocks of keys, over all query heads of their group, for dk and dv. That is 7 products where 5
 * would do with atomic additions, whose bits would not repeat.
 *
 * Products are the tensor cores' (cuda_mma.cuh), so of halves; rows in shared memory are 8 elements
 * longer than heads are wide: then neither the 8 rows of a fragment nor those of a transposed one
 * meet in a bank. The next tile is on its way while one is multiplied. What is f32 (tests), or
 * wider than 128, goes by plain kernels: a thread a query or key, its scores made again for each
 * part of the head. */
#include "cuda_mma.cuh"

#define THREADS 128
#define WARPS (THREADS / VQ_WARP)
#define ROWS 64 /* of a block: 16 a warp */
#define PAD 8
#define MOST_WIDE 128 /* head width of the tensor cores' kernels */
#define LOG2_E 1.4426950408889634f

/* Blocks of the forward that registers are to do for, 0: unasked. A multiprocessor's shared memory
 * holds 3 of the widest, an A100's 2. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define FWD_BLOCKS(WIDE) ((WIDE) > 64 ? 3 : 0)
#else
#define FWD_BLOCKS(WIDE) 0
#endif

/* One call, for kernels. */
struct shape {
    int64_t T, T_k, prefix;    /* prefix: keys before the first query */
    int64_t k_batch, dk_batch; /* elements from one sequence's keys (their gradients) to the next */
    int64_t H, G, S, heads;    /* heads: of a group */
    float scale;
    bool vectors; /* rows may be read 16 bytes at a time */
};

static shape make_shape(const vq_tensor *q, const vq_tensor *k, double scale)
{
    shape s = {};
    s.T = q->dim[1], s.T_k = k->dim[1], s.prefix = s.T_k - s.T;
    s.k_batch = s.dk_batch = k->stride[0];
    s.H = q->dim[2], s.G = k->dim[2], s.S = q->dim[3], s.heads = s.H / s.G;
    s.scale = float(scale);
    return s;
}

/* Whether all rows of a tensor begin at multiples of 16 bytes. */
static bool is_aligned(const vq_tensor *x)
{
    const size_t bytes = vq_dtype_bytes(x->dtype);
    return uintptr_t(x->data) % 16 == 0 && size_t(x->dim[3]) * bytes % 16 == 0 &&
           size_t(x->stride[0]) * bytes % 16 == 0;
}

/* --- tiles and fragments --------------------------------------------------------------------- */

/* Begins to bring rows [0, n) of from into a tile of `rows` rows of WIDE + PAD elements; zeros
 * behind rows and heads. The block's threads; vq_wait_copies and a barrier follow. */
template <class T, int WIDE>
static __device__ __forceinline__ void load_tile(T *tile, const T *from, int64_t stride, int64_t n,
                                                 int rows, const shape &s)
{
    constexpr int PACKS = WIDE / 8;
    for (int i = threadIdx.x; i < rows * PACKS; i += THREADS) {
        const int row = i / PACKS, column = i % PACKS * 8;
        const T *source = from + row * stride + column;
        T *to = tile + row * (WIDE + PAD) + column;
        if (s.vectors)
            vq_begin_copy<16>(to, source, row < n && column < s.S);
        else
            for (int j = 0; j < 8; j++)
                to[j] = row < n && column + j < s.S ? source[j] : vq_store<T>(0);
    }
}

/* The same for two tensors, into tiles that lie one after the other. */
template <class T, int WIDE>
static __device__ __forceinline__ void load_two(T *tiles, const T *a, const T *b, int64_t stride,
                                                int64_t n, int rows, const shape &s)
{
    load_tile<T, WIDE>(tiles, a, stride, n, rows, s);
    load_tile<T, WIDE>(tiles + rows * (WIDE + PAD), b, stride, n, rows, s);
}

/* The turn of rows [u0, u0 + N) of keys and values: waits for their tiles, which are returned, the
 * values' behind the keys', and begins to bring the next turn's, if there is one before row `end`.
 * at: row 0 of both. */
template <class T, int WIDE, int N>
static __device__ __forceinline__ const T *take_turn(T *tiles, int side, const T *k, const T *v,
                                                     int64_t at, int64_t row, int64_t u0,
                                                     int64_t end, const shape &s)
{
    constexpr int BOTH = 2 * N * (WIDE + PAD);
    const int64_t next = u0 + N;
    vq_wait_copies();
    __syncthreads(); /* this turn's are there, and those of the one before are read */
    at += next * row;
    if (next < end)
        load_two<T, WIDE>(tiles + (side ^ 1) * BOTH, k + at, v + at, row, s.T_k - next, N, s);
    return tiles + side * BOTH;
}

/* a: the tile's rows [row, row + 16), columns [column, column + 16). */
template <class T, int WIDE>
static __device__ __forceinline__ void load_a(uint32_t *a, const T *tile, int row, int column)
{
    const int lane = threadIdx.x % VQ_WARP;
    const T *at = tile + (row + lane / 4) * (WIDE + PAD) + column + lane % 4 * 2;
    a[0] = vq_pair_at(at);
    a[1] = vq_pair_at(at + 8 * (WIDE + PAD));
    a[2] = vq_pair_at(at + 8);
    a[3] = vq_pair_at(at + 8 * (WIDE + PAD) + 8);
}

/* b: transposed, the tile's rows [row, row + 8), columns [column, column + 16). */
template <class T, int WIDE>
static __device__ __forceinline__ void load_b(uint32_t *b, const T *tile, int row, int column)
{
    const int lane = threadIdx.x % VQ_WARP;
    const T *at = tile + (row + lane / 4) * (WIDE + PAD) + column + lane % 4 * 2;
    b[0] = vq_pair_at(at);
    b[1] = vq_pair_at(at + 8);
}

/* out [16, WIDE] += a[0..4] [16, 16] of the tile's rows [row, row + 16). */
template <class T, int WIDE>
static __device__ __forceinline__ void add_rows(float (*out)[4], const uint32_t *a, const T *tile,
                                                int row)
{
    const int lane = threadIdx.x % VQ_WARP;
    const T *at = tile + (row + lane % 16) * (WIDE + PAD) + lane / 16 * 8;
    VQ_UNROLL
    for (int j = 0; j < WIDE / 8; j += 2) {
        uint32_t b[4];
        vq_load_transposed(b, at + j * 8);
        vq_mma<T>(out[j], a, b);
        vq_mma<T>(out[j + 1], a, b + 2);
    }
}

/* out [16, 8 N] += own rows times the tile's rows, transposed: scores. own: fragments of WIDE
 * columns. */
template <class T, int WIDE, int N>
static __device__ __forceinline__ void add_scores(float (*out)[4], const uint32_t (*own)[4],
                                                  const T *tile)
{
    VQ_UNROLL
    for (int k = 0; k < WIDE / 16; k++) {
        VQ_UNROLL
        for (int j = 0; j < N; j++) {
            uint32_t b[2];
            load_b<T, WIDE>(b, tile, j * 8, k * 16);
            vq_mma<T>(out[j], own[k], b);
        }
    }
}

/* Two neighbouring tiles of a product as a of the next. */
template <class T> static __device__ __forceinline__ void round_a(uint32_t *a, const float (*d)[4])
{
    a[0] = vq_pair<T>(d[0][0], d[0][1]);
    a[1] = vq_pair<T>(d[0][2], d[0][3]);
    a[2] = vq_pair<T>(d[1][0], d[1][1]);
    a[3] = vq_pair<T>(d[1][2], d[1][3]);
}

/* Of a tile of n columns those up to `last`: the elements (j, i) of a lane's fragments with
 * j * 8 + i % 2 <= this. In 32 bits: 64 would take several instructions an element, and registers.
 */
static __device__ __forceinline__ int last_seen(int64_t last, int n, int lane)
{
    return int(VQ_MAX(VQ_MIN(last, n), -1)) - lane % 4 * 2;
}

/* Over the 4 lanes that share a row. */
static __device__ __forceinline__ float row_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(VQ_ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(VQ_ALL_LANES, x, 2));
}

static __device__ __forceinline__ float row_sum(float x)
{
    x += __shfl_xor_sync(VQ_ALL_LANES, x, 1);
    return x + __shfl_xor_sync(VQ_ALL_LANES, x, 2);
}

/* Rows of a warp's fragments, [16, WIDE], to `to` (+)=, times factor[row / 8]; n of the rows are
 * there. */
template <class T, int WIDE>
static __device__ __forceinline__ void store_rows(T *to, int64_t stride, const float (*d)[4],
                                                  const float *factor, int64_t n, bool add,
                                                  const shape &s)
{
    const int lane = threadIdx.x % VQ_WARP;
    VQ_UNROLL
    for (int j = 0; j < WIDE / 8; j++) {
        VQ_UNROLL
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i / 2 * 8, column = j * 8 + lane % 4 * 2 + i % 2;
            if (row >= n || column >= s.S) continue;
            T *at = to + row * stride + column;
            const float x = d[j][i] * factor[i / 2];
            *at = vq_store<T>(add ? vq_load(*at) + x : x);
        }
    }
}

/* --- forward --------------------------------------------------------------------------------- */

#define FWD_KEYS 64

template <class T, int WIDE>
static __global__ void __launch_bounds__(THREADS, FWD_BLOCKS(WIDE))
    attend(T *out, float *lse, const T *q, const T *k, const T *v, shape s)
{
    constexpr int TILE = FWD_KEYS * (WIDE + PAD);
    VQ_DYNAMIC_SHARED(T, tiles); /* keys, values, and those that come next: the queries first */
    const int warp = threadIdx.x / VQ_WARP, lane = threadIdx.x % VQ_WARP;
    const int64_t b = blockIdx.z, h = blockIdx.y, group = h / s.heads;
    const int64_t t0 = int64_t(gridDim.x - 1 - blockIdx.x) * ROWS; /* the longest begin first */
    const int64_t n = VQ_MIN(ROWS, s.T - t0), keys = s.prefix + t0 + n;
    const int64_t first = ((b * s.T + t0) * s.H + h) * s.S, row0 = t0 + warp * 16 + lane / 4;
    const int64_t key0 = b * s.k_batch + group * s.S, row = s.G * s.S;
    const float to_log2 = s.scale * LOG2_E;

    uint32_t own[WIDE / 16][4];
    load_tile<T, WIDE>(tiles + 2 * TILE, q + first, s.H * s.S, n, ROWS, s);
    load_two<T, WIDE>(tiles, k + key0, v + key0, row, s.T_k, FWD_KEYS, s);
    vq_wait_copies();
    __syncthreads();
    VQ_UNROLL
    for (int j = 0; j < WIDE / 16; j++)
        load_a<T, WIDE>(own[j], tiles + 2 * TILE, warp * 16, j * 16);

    float sum[WIDE / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {};
    int side = 0;
    for (int64_t u0 = 0; u0 < keys; u0 += FWD_KEYS, side ^= 1) {
        const T *k_tile = take_turn<T, WIDE, FWD_KEYS>(tiles, side, k, v, key0, row, u0, keys, s);
        const T *v_tile = k_tile + TILE;
        float p[FWD_KEYS / 8][4] = {}, most[2] = {top[0], top[1]};
        add_scores<T, WIDE, FWD_KEYS / 8>(p, own, k_tile);
        const int last[2] = {last_seen(s.prefix + row0 - u0, FWD_KEYS, lane),
                             last_seen(s.prefix + row0 + 8 - u0, FWD_KEYS, lane)};
        VQ_UNROLL
        for (int j = 0; j < FWD_KEYS / 8; j++) {
            VQ_UNROLL
            for (int i = 0; i < 4; i++) {
                p[j][i] = j * 8 + i % 2 <= last[i / 2] ? p[j][i] * to_log2 : -INFINITY;
                most[i / 2] = fmaxf(most[i / 2], p[j][i]);
            }
        }
        float factor[2];
        VQ_UNROLL
        for (int i = 0; i < 2; i++) {
            most[i] = row_max(most[i]); /* finite: every query sees the first key */
            factor[i] = exp2f(top[i] - most[i]);
            top[i] = most[i];
            total[i] *= factor[i];
        }
        VQ_UNROLL
        for (int j = 0; j < FWD_KEYS / 8; j++) {
            VQ_UNROLL
            for (int i = 0; i < 4; i++) {
                p[j][i] = exp2f(p[j][i] - top[i / 2]);
                total[i / 2] += p[j][i];
            }
        }
        VQ_UNROLL
        for (int j = 0; j < WIDE / 8; j++) {
            VQ_UNROLL
            for (int i = 0; i < 4; i++) sum[j][i] *= factor[i / 2];
        }
        VQ_UNROLL
        for (int j = 0; j < FWD_KEYS / 16; j++) {
            uint32_t a[4];
            round_a<T>(a, p + 2 * j);
            add_rows<T, WIDE>(sum, a, v_tile, j * 16);
        }
    }
    float factor[2];
    for (int i = 0; i < 2; i++) {
        const int64_t t = row0 + i * 8;
        total[i] = row_sum(total[i]);
        factor[i] = 1 / total[i];
        if (lane % 4 == 0 && t < s.T)
            lse[(b * s.H + h) * s.T + t] = (top[i] + log2f(total[i])) / LOG2_E;
    }
    store_rows<T, WIDE>(out + first + warp * 16 * s.H * s.S, s.H * s.S, sum, factor, n - warp * 16,
                        false, s);
}

/* --- backward -------------------------------------------------------------------------------- */

#define BWD_OTHERS 32 /* keys, or queries, that a block goes over at a time: ROWS / 2 */

/* mean[b, h, t] = sum_u p dp = dout . out: one warp a row. */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    row_dots(float *mean, const T *dout, const T *out, int64_t n, shape s)
{
    const int64_t row = vq_thread() / VQ_WARP;
    if (row >= n) return; /* the whole warp */
    float sum = 0;
    for (int64_t j = threadIdx.x % VQ_WARP; j < s.S; j += VQ_WARP)
        sum += vq_load(dout[row * s.S + j]) * vq_load(out[row * s.S + j]);
    sum = vq_warp_sum(sum);
    const int64_t b = row / (s.T * s.H), t = row / s.H % s.T, h = row % s.H;
    if (threadIdx.x % VQ_WARP == 0) mean[(b * s.H + h) * s.T + t] = sum;
}

/* p = exp(score - lse) and ds = p (dp - mean) in place of scores and dp; 0 where a key is not seen.
 */
static __device__ __forceinline__ void make_ds(float *p, float *dp, bool seen, float to_log2,
                                               float lse2, float mean)
{
    *p = seen ? exp2f(fmaf(*p, to_log2, -lse2)) : 0;
    *dp = *p * (*dp - mean);
}

template <class T, int WIDE>
static __global__ void __launch_bounds__(THREADS)
    attend_back_q(T *dq, const T *dout, const T *q, const T *k, const T *v, const float *lse,
                  const float *mean, shape s)
{
    constexpr int TILE = BWD_OTHERS * (WIDE + PAD);
    VQ_DYNAMIC_SHARED(T, tiles); /* keys, values, and those that come next: own rows first */
    const int warp = threadIdx.x / VQ_WARP, lane = threadIdx.x % VQ_WARP;
    const int64_t b = blockIdx.z, h = blockIdx.y, group = h / s.heads;
    const int64_t t0 = int64_t(gridDim.x - 1 - blockIdx.x) * ROWS;
    const int64_t n = VQ_MIN(ROWS, s.T - t0), keys = s.prefix + t0 + n;
    const int64_t first = ((b * s.T + t0) * s.H + h) * s.S, row0 = t0 + warp * 16 + lane / 4;
    const int64_t key0 = b * s.k_batch + group * s.S, row = s.G * s.S;
    const float to_log2 = s.scale * LOG2_E;

    uint32_t own_q[WIDE / 16][4], own_d[WIDE / 16][4];
    load_two<T, WIDE>(tiles, q + first, dout + first, s.H * s.S, n, ROWS, s);
    vq_wait_copies();
    __syncthreads();
    VQ_UNROLL
    for (int j = 0; j < WIDE / 16; j++) {
        load_a<T, WIDE>(own_q[j], tiles, warp * 16, j * 16);
        load_a<T, WIDE>(own_d[j], tiles, ROWS + warp * 16, j * 16);
    }
    __syncthreads();
    load_two<T, WIDE>(tiles, k + key0, v + key0, row, s.T_k, BWD_OTHERS, s);

    float lse2[2], m[2];
    for (int i = 0; i < 2; i++) {
        const int64_t t = row0 + i * 8, at = (b * s.H + h) * s.T + t;
        lse2[i] = t < s.T ? lse[at] * LOG2_E : 0;
        m[i] = t < s.T ? mean[at] : 0;
    }
    float sum[WIDE / 8][4] = {};
    int side = 0;
    for (int64_t u0 = 0; u0 < keys; u0 += BWD_OTHERS, side ^= 1) {
        const T *k_tile = take_turn<T, WIDE, BWD_OTHERS>(tiles, side, k, v, key0, row, u0, keys, s);
        const T *v_tile = k_tile + TILE;
        float p[BWD_OTHERS / 8][4] = {}, ds[BWD_OTHERS / 8][4] = {};
        add_scores<T, WIDE, BWD_OTHERS / 8>(p, own_q, k_tile);
        add_scores<T, WIDE, BWD_OTHERS / 8>(ds, own_d, v_tile);
        int last[2];
        for (int i = 0; i < 2; i++) {
            const int64_t t = row0 + i * 8;
            last[i] = t < s.T ? last_seen(s.prefix + t - u0, BWD_OTHERS, lane) : -1;
        }
        VQ_UNROLL
        for (int j = 0; j < BWD_OTHERS / 8; j++) {
            VQ_UNROLL
            for (int i = 0; i < 4; i++)
                make_ds(&p[j][i], &ds[j][i], j * 8 + i % 2 <= last[i / 2], to_log2, lse2[i / 2],
                        m[i / 2]);
        }
        VQ_UNROLL
        for (int j = 0; j < BWD_OTHERS / 16; j++) {
            uint32_t a[4];
            round_a<T>(a, ds + 2 * j);
            add_rows<T, WIDE>(sum, a, k_tile, j * 16);
        }
    }
    const float factor[2] = {s.scale, s.scale};
    store_rows<T, WIDE>(dq + first + warp * 16 * s.H * s.S, s.H * s.S, sum, factor, n - warp * 16,
                        false, s);
}

template <class T, int WIDE>
static __global__ void __launch_bounds__(THREADS)
    attend_back_kv(T *dk, T *dv, const T *dout, const T *q, const T *k, const T *v,
                   const float *lse, const float *mean, shape s)
{
    constexpr int TILE = BWD_OTHERS * (WIDE + PAD);
    VQ_DYNAMIC_SHARED(T, k_tile); /* own rows; queries, their gradients, and those that come next */
    VQ_SHARED(float, stats, [2][2][BWD_OTHERS]); /* theirs: lse and mean */
    T *v_tile = k_tile + ROWS * (WIDE + PAD), *tiles = v_tile + ROWS * (WIDE + PAD);
    const int warp = threadIdx.x / VQ_WARP, lane = threadIdx.x % VQ_WARP;
    const int64_t b = blockIdx.z, group = blockIdx.y, u0 = int64_t(blockIdx.x) * ROWS;
    const int64_t n = VQ_MIN(ROWS, s.T_k - u0), row = s.G * s.S, row0 = u0 + warp * 16 + lane / 4;
    const int64_t at_k = b * s.k_batch + u0 * row + group * s.S;
    const int64_t begin = VQ_MAX(u0 - s.prefix, 0) / BWD_OTHERS * BWD_OTHERS;
    const float to_log2 = s.scale * LOG2_E;
    /* The queries from `begin` on of one head after the other. */
    const int a_head = int(VQ_CEIL_DIV(s.T - begin, BWD_OTHERS)), n_tiles = int(s.heads) * a_head;
    const auto load = [&](int tile) {
        const int64_t h = group * s.heads + tile / a_head;
        const int64_t t0 = begin + int64_t(tile % a_head) * BWD_OTHERS, t = t0 + threadIdx.x;
        const int64_t first = ((b * s.T + t0) * s.H + h) * s.S, at = (b * s.H + h) * s.T + t;
        const int side = tile % 2;
        load_two<T, WIDE>(tiles + side * 2 * TILE, q + first, dout + first, s.H * s.S, s.T - t0,
                          BWD_OTHERS, s);
        if (threadIdx.x < BWD_OTHERS) {
            vq_begin_copy<4>(&stats[side][0][threadIdx.x], lse + at, t < s.T);
            vq_begin_copy<4>(&stats[side][1][threadIdx.x], mean + at, t < s.T);
        }
    };

    load_two<T, WIDE>(k_tile, k + at_k, v + at_k, row, n, ROWS, s);
    load(0);
    float dk_sum[WIDE / 8][4] = {}, dv_sum[WIDE / 8][4] = {};
    for (int tile = 0; tile < n_tiles; tile++) {
        const T *q_tile = tiles + tile % 2 * 2 * TILE, *d_tile = q_tile + TILE;
        const float *lse_tile = stats[tile % 2][0], *m = stats[tile % 2][1];
        const int64_t t0 = begin + int64_t(tile % a_head) * BWD_OTHERS;
        vq_wait_copies();
        __syncthreads(); /* this tile is there, and the one before is read */
        if (tile + 1 < n_tiles) load(tile + 1);
        float p[BWD_OTHERS / 8][4] = {}, ds[BWD_OTHERS / 8][4] = {};
        VQ_UNROLL
        for (int j = 0; j < WIDE / 16; j++) {
            uint32_t own_k[4], own_v[4], other[2];
            load_a<T, WIDE>(own_k, k_tile, warp * 16, j * 16);
            load_a<T, WIDE>(own_v, v_tile, warp * 16, j * 16);
            VQ_UNROLL
            for (int i = 0; i < BWD_OTHERS / 8; i++) {
                load_b<T, WIDE>(other, q_tile, i * 8, j * 16);
                vq_mma<T>(p[i], own_k, other);
                load_b<T, WIDE>(other, d_tile, i * 8, j * 16);
                vq_mma<T>(ds[i], own_v, other);
            }
        }
        /* Queries see a key from the one on that has its place. */
        const int last = last_seen(s.T - 1 - t0, BWD_OTHERS, lane);
        const int before[2] = {last_seen(row0 - s.prefix - 1 - t0, BWD_OTHERS, lane),
                               last_seen(row0 + 8 - s.prefix - 1 - t0, BWD_OTHERS, lane)};
        VQ_UNROLL
        for (int j = 0; j < BWD_OTHERS / 8; j++) {
            VQ_UNROLL
            for (int i = 0; i < 4; i++) {
                const int at = j * 8 + i % 2, column = at + lane % 4 * 2;
                make_ds(&p[j][i], &ds[j][i], before[i / 2] < at && at <= last, to_log2,
                        lse_tile[column] * LOG2_E, m[column]);
            }
        }
        VQ_UNROLL
        for (int j = 0; j < BWD_OTHERS / 16; j++) {
            uint32_t a[4];
            round_a<T>(a, p + 2 * j);
            add_rows<T, WIDE>(dv_sum, a, d_tile, j * 16);
            round_a<T>(a, ds + 2 * j);
            add_rows<T, WIDE>(dk_sum, a, q_tile, j * 16);
        }
    }
    const float once[2] = {1, 1}, factor[2] = {s.scale, s.scale};
    const int64_t to = b * s.dk_batch + (u0 + warp * 16) * row + group * s.S;
    store_rows<T, WIDE>(dk + to, row, dk_sum, factor, n - warp * 16, true, s);
    store_rows<T, WIDE>(dv + to, row, dv_sum, once, n - warp * 16, true, s);
}

/* --- plain kernels --------------------------------------------------------------------------- */

#define PART 32 /* of a head, at a time */

template <class T> static __device__ float dot(const T *x, const T *y, int64_t n)
{
    float sum = 0;
    for (int64_t j = 0; j < n; j++) sum = fmaf(vq_load(x[j]), vq_load(y[j]), sum);
    return sum;
}

/* A thread's row of [B, rows, heads]. */
struct place {
    int64_t b, row, head;
};

static __device__ place place_of(int64_t i, int64_t rows, int64_t heads)
{
    return {i / (rows * heads), i / heads % rows, i % heads};
}

template <class T>
static __global__ void __launch_bounds__(THREADS)
    attend_plain(T *out, float *lse, const T *q, const T *k, const T *v, int64_t n, shape s)
{
    if (vq_thread() >= n) return;
    const place at = place_of(vq_thread(), s.T, s.H);
    const int64_t stride = s.G * s.S, from = at.b * s.k_batch + at.head / s.heads * s.S;
    const int64_t keys = s.prefix + at.row + 1, own = vq_thread() * s.S;
    float top = -INFINITY, total = 0;
    for (int64_t u = 0; u < keys; u++) {
        const float x = s.scale * dot(q + own, k + from + u * stride, s.S);
        if (x > top) total *= vq_exp(top - x), top = x;
        total += vq_exp(x - top);
    }
    const float log_sum = top + logf(total);
    lse[(at.b * s.H + at.head) * s.T + at.row] = log_sum;
    for (int64_t j = 0; j < s.S; j += PART) {
        const int64_t wide = VQ_MIN(PART, s.S - j);
        float sum[PART] = {};
        for (int64_t u = 0; u < keys; u++) {
            const float p = vq_exp(s.scale * dot(q + own, k + from + u * stride, s.S) - log_sum);
            for (int64_t i = 0; i < wide; i++) sum[i] += p * vq_load(v[from + u * stride + j + i]);
        }
        for (int64_t i = 0; i < wide; i++) out[own + j + i] = vq_store<T>(sum[i]);
    }
}

template <class T>
static __global__ void __launch_bounds__(THREADS, 1)
    plain_back_q(T *dq, const T *dout, const T *q, const T *k, const T *v, const float *lse,
                 const float *mean, int64_t n, shape s)
{
    if (vq_thread() >= n) return;
    const place at = place_of(vq_thread(), s.T, s.H);
    const int64_t stride = s.G * s.S, from = at.b * s.k_batch + at.head / s.heads * s.S;
    const int64_t stats = (at.b * s.H + at.head) * s.T + at.row, own = vq_thread() * s.S;
    for (int64_t j = 0; j < s.S; j += PART) {
        const int64_t wide = VQ_MIN(PART, s.S - j);
        float sum[PART] = {};
        for (int64_t u = 0; u <= s.prefix + at.row; u++) {
            const T *key = k + from + u * stride;
            const float p = vq_exp(s.scale * dot(q + own, key, s.S) - lse[stats]);
            const float ds = p * (dot(dout + own, v + from + u * stride, s.S) - mean[stats]);
            for (int64_t i = 0; i < wide; i++) sum[i] += ds * vq_load(key[j + i]);
        }
        for (int64_t i = 0; i < wide; i++) dq[own + j + i] = vq_store<T>(s.scale * sum[i]);
    }
}

template <class T>
static __global__ void __launch_bounds__(THREADS)
    plain_back_kv(T *dk, T *dv, const T *dout, const T *q, const T *k, const T *v, const float *lse,
                  const float *mean, int64_t n, shape s)
{
    if (vq_thread() >= n) return;
    const place at = place_of(vq_thread(), s.T_k, s.G);
    const int64_t key = (at.row * s.G + at.head) * s.S, own = at.b * s.k_batch + key;
    const int64_t to = at.b * s.dk_batch + key, begin = VQ_MAX(at.row - s.prefix, 0);
    for (int64_t j = 0; j < s.S; j += PART) {
        const int64_t wide = VQ_MIN(PART, s.S - j);
        float dk_sum[PART] = {}, dv_sum[PART] = {};
        for (int64_t h = at.head * s.heads; h < (at.head + 1) * s.heads; h++)
            for (int64_t t = begin; t < s.T; t++) {
                const int64_t query = ((at.b * s.T + t) * s.H + h) * s.S;
                const int64_t stats = (at.b * s.H + h) * s.T + t;
                const float p = vq_exp(s.scale * dot(q + query, k + own, s.S) - lse[stats]);
                const float ds = p * (dot(dout + query, v + own, s.S) - mean[stats]);
                for (int64_t i = 0; i < wide; i++) {
                    dk_sum[i] += ds * vq_load(q[query + j + i]);
                    dv_sum[i] += p * vq_load(dout[query + j + i]);
                }
            }
        for (int64_t i = 0; i < wide; i++) {
            T *a = dk + to + j + i, *b = dv + to + j + i;
            *a = vq_store<T>(vq_load(*a) + s.scale * dk_sum[i]);
            *b = vq_store<T>(vq_load(*b) + dv_sum[i]);
        }
    }
}

/* --- slots ----------------------------------------------------------------------------------- */

/* Runs the statement with WIDE defined as the least of the tensor cores' kernels' widths that a
 * head fits into. */
#define BY_WIDTH(S, ...)                                                                           \
    do {                                                                                           \
        if ((S) <= 32) {                                                                           \
            constexpr int WIDE = 32;                                                               \
            __VA_ARGS__;                                                                           \
        } else if ((S) <= 64) {                                                                    \
            constexpr int WIDE = 64;                                                               \
            __VA_ARGS__;                                                                           \
        } else if ((S) <= 96) {                                                                    \
            constexpr int WIDE = 96;                                                               \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            constexpr int WIDE = MOST_WIDE;                                                        \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)

#define TILE_BYTES(rows) (size_t(rows) * (WIDE + PAD) * sizeof(T))

/* Blocks of ROWS rows of so many heads. */
static dim3 blocks_of(int64_t rows, int64_t heads, int64_t B)
{
    return dim3(unsigned(VQ_CEIL_DIV(rows, ROWS)), unsigned(heads), unsigned(B));
}

template <class T>
static vq_status run_fwd(vq_cuda *cuda, T *out, float *lse, const T *q, const T *k, const T *v,
                         int64_t B, const shape &s)
{
    const int64_t n = B * s.T * s.H;
    if constexpr (sizeof(T) == 2)
        if (s.S <= MOST_WIDE) {
            BY_WIDTH(s.S, VQ_LAUNCH(cuda, (attend<T, WIDE>), blocks_of(s.T, s.H, B), THREADS,
                                    TILE_BYTES(4 * FWD_KEYS), out, lse, q, k, v, s));
            return VQ_OK;
        }
    VQ_LAUNCH(cuda, attend_plain<T>, vq_cuda_blocks(n, THREADS), THREADS, 0, out, lse, q, k, v, n,
              s);
    return VQ_OK;
}

vq_status vq_cuda_attention_fwd(void *ctx, vq_tensor *out, vq_tensor *lse, const vq_tensor *q,
                                const vq_tensor *k, const vq_tensor *v, double scale)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    shape s = make_shape(q, k, scale);
    s.vectors = is_aligned(q) && is_aligned(k) && is_aligned(v);
    if (q->dim[0] * s.T == 0) return VQ_OK;
    VQ_ACT_TYPE(q->dtype,
                VQ_TRY(run_fwd(cuda, static_cast<T *>(out->data), static_cast<float *>(lse->data),
                               static_cast<const T *>(q->data), static_cast<const T *>(k->data),
                               static_cast<const T *>(v->data), q->dim[0], s)));
    return VQ_OK;
}

template <class T>
static vq_status run_bwd(vq_cuda *cuda, T *dq, T *dk, T *dv, const T *dout, const T *q, const T *k,
                         const T *v, const T *out, const float *lse, float *mean, int64_t B,
                         const shape &s)
{
    const int64_t n = B * s.T * s.H, n_keys = B * s.T_k * s.G;
    VQ_LAUNCH(cuda, row_dots<T>, vq_cuda_blocks(n, WARPS), THREADS, 0, mean, dout, out, n, s);
    if constexpr (sizeof(T) == 2)
        if (s.S <= MOST_WIDE) {
            BY_WIDTH(s.S, VQ_LAUNCH(cuda, (attend_back_q<T, WIDE>), blocks_of(s.T, s.H, B), THREADS,
                                    TILE_BYTES(4 * BWD_OTHERS), dq, dout, q, k, v, lse, mean, s));
            BY_WIDTH(s.S, VQ_LAUNCH(cuda, (attend_back_kv<T, WIDE>), blocks_of(s.T_k, s.G, B),
                                    THREADS, TILE_BYTES(2 * ROWS + 4 * BWD_OTHERS), dk, dv, dout, q,
                                    k, v, lse, mean, s));
            return VQ_OK;
        }
    VQ_LAUNCH(cuda, plain_back_q<T>, vq_cuda_blocks(n, THREADS), THREADS, 0, dq, dout, q, k, v, lse,
              mean, n, s);
    VQ_LAUNCH(cuda, plain_back_kv<T>, vq_cuda_blocks(n_keys, THREADS), THREADS, 0, dk, dv, dout, q,
              k, v, lse, mean, n_keys, s);
    return VQ_OK;
}

vq_status vq_cuda_attention_bwd(void *ctx, vq_tensor *dq, vq_tensor *dk, vq_tensor *dv,
                                const vq_tensor *dout, const vq_tensor *q, const vq_tensor *k,
                                const vq_tensor *v, const vq_tensor *out, const vq_tensor *lse,
                                double scale)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    shape s = make_shape(q, k, scale);
    s.dk_batch = dk->stride[0];
    s.vectors = is_aligned(q) && is_aligned(k) && is_aligned(v) && is_aligned(dout);
    if (q->dim[0] * s.T == 0) return VQ_OK;
    const size_t mark = vq_arena_mark(&cuda->scratch);
    float *mean = NULL;
    VQ_TRY(VQ_NEW(&cuda->scratch, q->dim[0] * s.T * s.H, &mean));
    VQ_ACT_TYPE(q->dtype,
                VQ_TRY(run_bwd(cuda, static_cast<T *>(dq->data), static_cast<T *>(dk->data),
                               static_cast<T *>(dv->data), static_cast<const T *>(dout->data),
                               static_cast<const T *>(q->data), static_cast<const T *>(k->data),
                               static_cast<const T *>(v->data), static_cast<const T *>(out->data),
                               static_cast<const float *>(lse->data), mean, q->dim[0], s)));
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}
