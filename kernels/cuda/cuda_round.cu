/* cuda_round - a quantized linear's weight from its integers and its code table, the table's
 * gradient, the regularizer, and columns in another order.
 *
 * A thread takes N weights that lie together: PACK where rows, groups and addresses allow it,
 * otherwise 1. They are N / PART parts of as many vectors. A large weight's rounding values are
 * computed once a code, into a table that is then looked up; a small one's, where they are needed.
 *
 * The gradient's sum over vectors must repeat to the bit, though shared memory's atomic additions
 * come in any order. So they add integers, whose sums have no order: each block keeps the gradients
 * of its codes as 32-bit fixed-point numbers. Their exponent is the greatest that cannot overflow,
 * from how often the block's most frequent code occurs (counted first) and the greatest |g| so far;
 * where a later turn has a greater one, the table is shifted down. With codes that occur some
 * hundred times a chunk, a number has 22 bits or more below the greatest one. Beside adding floats
 * by atomics, which nvcc makes a loop of compare-and-swap in shared memory, this costs a second
 * reading of the indices (0.25 bytes a weight on top of 2.75 to 4.25) and two barriers a turn.
 * Another way, to sort the vectors by code, would read dw and base in scattered pieces: 2 to 3
 * times the bytes.
 *
 * One value that is not finite makes its chunk's sums NaN, so that the caller's check sees it. */
#include "cuda_device.cuh"
#include "cuda_plan.h"

#define THREADS 256

/* round_bwd: threads of a block, and weights that each takes a turn: what 64 registers hold. */
#define BWD_THREADS VQ_BLOCK_MAX
#define BWD_EACH(N, PART) ((N) == 1 ? 4 : (PART) == PACK ? VQ_CUDA_ROUND_TURN / BWD_THREADS : PACK)

#define STATIC_BYTES ((size_t)1024) /* of shared memory that reductions take at most */

#define PACK 8

/* One quantized linear, for kernels. */
struct layer {
    int64_t out, in, groups, group_size, D;
    const void *base, *idx;
    const float *scale, *zero;
    vq_dtype ints; /* i8, i16 or, for halves of bytes, u8 */
    bool wide_idx; /* u32 */
    bool narrow;   /* fewer than 2^32 weights */
    float qmax;
    int turn_shift, turn_mask; /* slot_of */
};

static layer layer_of(const vq_quant *q, const vq_tensor *w, int64_t D)
{
    layer l = {};
    l.out = w->dim[0], l.in = w->dim[1];
    l.groups = q->scale.dim[1], l.group_size = q->group_size;
    l.D = D;
    l.base = q->base.data, l.idx = q->idx.data;
    l.scale = static_cast<const float *>(q->scale.data);
    l.zero = static_cast<const float *>(q->zero.data);
    l.ints = q->base.dtype, l.wide_idx = q->idx.dtype == VQ_U32;
    l.qmax = float((1 << q->bits) - 1);
    l.narrow = l.out * l.in <= UINT32_MAX;
    for (int d = 2, shift = 4; d <= VQ_WARP; d *= 2, shift--) /* powers of two */
        if (d == D) l.turn_shift = shift, l.turn_mask = d - 1;
    return l;
}

/* Whether packs of PACK weights lie within one row, one group and aligned memory. */
static bool packs_fit(const layer *l, const vq_tensor *weight, const vq_tensor *codes)
{
    return l->in % PACK == 0 && l->out * l->in / PACK <= UINT32_MAX &&
           (l->groups == 1 || l->group_size % PACK == 0) &&
           (uintptr_t(weight->data) | uintptr_t(l->base) | uintptr_t(codes->data)) % 16 == 0;
}

/* Runs the statement with N and PART defined: PART neighbours of a pack lie in one vector. Own
 * codes lie as the weights do. */
#define BY_PACK(l, fit, ...)                                                                       \
    do {                                                                                           \
        if (!(fit)) {                                                                              \
            constexpr int N = 1, PART = 1;                                                         \
            __VA_ARGS__;                                                                           \
        } else if (!(l)->idx || (l)->D % PACK == 0) {                                              \
            constexpr int N = PACK, PART = PACK;                                                   \
            __VA_ARGS__;                                                                           \
        } else if ((l)->D % 4 == 0) {                                                              \
            constexpr int N = PACK, PART = 4;                                                      \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            constexpr int N = PACK, PART = 1;                                                      \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)

/* N elements from or to memory, in pieces of at most 16 bytes. */
template <class T, int N> struct elements {
    static constexpr int EACH = N * int(sizeof(T)) <= 16 ? N : 16 / int(sizeof(T));
    vq_pack<T, EACH> piece[N / EACH];

    __device__ __forceinline__ T &operator[](int i)
    {
        return piece[i / EACH].x[i % EACH];
    }
    __device__ __forceinline__ void load(const T *from)
    {
        for (int i = 0; i < N / EACH; i++)
            piece[i] = reinterpret_cast<const vq_pack<T, EACH> *>(from)[i];
    }
    __device__ __forceinline__ void store(T *to) const
    {
        for (int i = 0; i < N / EACH; i++) reinterpret_cast<vq_pack<T, EACH> *>(to)[i] = piece[i];
    }
};

/* Row of the weight p, and the vector that it lies in. Packs are fewer than 2^32, and so are all
 * weights but the largest's: 32-bit divisions do, and take a tenth of the instructions. */
template <int N> static __device__ __forceinline__ int64_t row_of(const layer &l, int64_t p)
{
    if (N == PACK || l.narrow) return uint32_t(p / N) / uint32_t(l.in / N);
    return p / l.in;
}

template <int PART> static __device__ __forceinline__ int64_t vector_of(const layer &l, int64_t p)
{
    if (l.D == PART) return p / PART;
    if (PART == PACK || l.narrow) return uint32_t(p / PART) / uint32_t(l.D / PART);
    return p / l.D;
}

/* The same as they lie in memory, for values that wait for their use: halves would take a register
 * each. */
template <class T, int N> struct raw_elements {
    static constexpr int BYTES = N * int(sizeof(T)), WORDS = BYTES < 4 ? 1 : BYTES / 4;
    uint32_t word[WORDS];

    __device__ __forceinline__ void load(const T *from)
    {
        if constexpr (BYTES < 4)
            word[0] = *reinterpret_cast<const uint16_t *>(from);
        else if constexpr (BYTES == 4)
            word[0] = *reinterpret_cast<const uint32_t *>(from);
        else
            for (int i = 0; i < WORDS; i += 4) {
                const vq_pack<uint32_t, 4> x =
                    *reinterpret_cast<const vq_pack<uint32_t, 4> *>(from + i * N / WORDS);
                for (int j = 0; j < 4; j++) word[i + j] = x.x[j];
            }
    }
    __device__ __forceinline__ T operator[](int i) const
    {
        const uint32_t bits = sizeof(T) == 4 ? word[i] : word[i / 2] >> (i % 2 * 16);
        T x;
        memcpy(&x, &bits, sizeof x); /* the low half first */
        return x;
    }
};

/* The integers of the weights [p, p + N): as they lie in memory, or one as a number. */
template <int N> struct raw_ints {
    uint32_t word[N == PACK ? 4 : 1];

    __device__ __forceinline__ void load(const layer &l, int64_t p)
    {
        if constexpr (N == PACK) {
            if (l.ints == VQ_I16) {
                const vq_pack<uint32_t, 4> x =
                    static_cast<const vq_pack<uint32_t, 4> *>(l.base)[p / PACK];
                for (int i = 0; i < 4; i++) word[i] = x.x[i];
            } else if (l.ints == VQ_I8) {
                const vq_pack<uint32_t, 2> x =
                    static_cast<const vq_pack<uint32_t, 2> *>(l.base)[p / PACK];
                for (int i = 0; i < 2; i++) word[i] = x.x[i];
            } else {
                word[0] = static_cast<const uint32_t *>(l.base)[p / PACK];
            }
        } else if (l.ints == VQ_I16) {
            word[0] = uint32_t(static_cast<const int16_t *>(l.base)[p]);
        } else if (l.ints == VQ_I8) {
            word[0] = uint32_t(static_cast<const int8_t *>(l.base)[p]);
        } else {
            /* An odd row ends with half a byte that is no weight's. */
            const int64_t at = l.in % 2 ? p + row_of<1>(l, p) : p;
            word[0] = uint32_t(vq_half(static_cast<const uint8_t *>(l.base)[at / 2], at));
        }
    }
    __device__ __forceinline__ int at(const layer &l, int i) const
    {
        if (N == 1) return int(word[0]);
        if (l.ints == VQ_I16) return int16_t(word[i / 2] >> (i % 2 * 16));
        if (l.ints == VQ_I8) return int8_t(word[i / 4] >> (i % 4 * 8));
        return int(word[0] >> (i * 4) & 15) - 1;
    }
};

static __device__ __forceinline__ int64_t code_of(const layer &l, int64_t vector)
{
    return l.wide_idx ? int64_t(static_cast<const uint32_t *>(l.idx)[vector])
                      : int64_t(static_cast<const uint16_t *>(l.idx)[vector]);
}

/* The group that weight (row, column) lies in. Fewer than 2^32 columns: a 32-bit division. */
static __device__ __forceinline__ int64_t group_of(const layer &l, int64_t row, int64_t column)
{
    return l.groups == 1 ? row : row * l.groups + uint32_t(column) / uint32_t(l.group_size);
}

static __device__ __forceinline__ float rounding(float code, bool hard)
{
    return hard ? (code >= 0 ? 1.0f : 0.0f) : vq_soft_round(code);
}

static __global__ void __launch_bounds__(THREADS)
    fill_table(float *table, const float *codes, int64_t n, bool hard)
{
    for (int64_t i = vq_thread(); i < n; i += vq_threads()) table[i] = rounding(codes[i], hard);
}

/* Codes, or what stands for them. */
struct codebook {
    const float *value; /* [n] */
    int64_t n;
    bool is_rounded; /* they are rounding values */
    bool hard;
};

/* The part of a vector at weight p. In shared memory a vector's 32 bytes lie in one of 4 places
 * across the banks; half the lanes begin with the second 16 bytes, so that all 8 are used. */
template <int PART, bool SHARED>
static __device__ __forceinline__ void look_up(float *r, const float *table, const layer &l,
                                               int64_t p)
{
    const int64_t vector = vector_of<PART>(l, p);
    const float *from = table + code_of(l, vector) * l.D + (p - vector * l.D);
    if (PART == PACK && SHARED) {
        const int second = threadIdx.x & 1;
        const vq_pack<float, 4> *half = reinterpret_cast<const vq_pack<float, 4> *>(from);
        const vq_pack<float, 4> a = half[second], b = half[1 - second];
        for (int i = 0; i < 4; i++) {
            r[i < PART ? i : 0] = second ? b.x[i] : a.x[i];
            r[i + 4 < PART ? i + 4 : 0] = second ? a.x[i] : b.x[i];
        }
    } else {
        elements<float, PART> values;
        values.load(from);
        for (int i = 0; i < PART; i++) r[i] = values[i];
    }
}

/* q = clamp(base + r, 0, qmax) of the pack at weight p. table: the codes, or their rounding values.
 */
template <int N, int PART, bool SHARED>
static __device__ __forceinline__ void levels(float *q, const layer &l, const float *table,
                                              const codebook &c, int64_t p)
{
    raw_ints<N> base;
    base.load(l, p);
    if (l.idx) {
        for (int i = 0; i < N; i += PART) look_up<PART, SHARED>(q + i, table, l, p + i);
    } else {
        elements<float, N> own;
        own.load(table + p);
        for (int i = 0; i < N; i++) q[i] = own[i];
    }
    if (!SHARED && !c.is_rounded)
        for (int i = 0; i < N; i++) q[i] = rounding(q[i], c.hard);
    for (int i = 0; i < N; i++) {
        q[i] += float(base.at(l, i));
        q[i] = q[i] < 0 ? 0 : q[i];
        q[i] = q[i] > l.qmax ? l.qmax : q[i];
    }
}

/* w = s (clamp(base + r, 0, qmax) - z). SHARED: each block has the rounding values in its shared
 * memory. */
template <class T, int N, int PART, bool SHARED>
static __global__ void __launch_bounds__(SHARED ? VQ_BLOCK_MAX : THREADS, 1)
    fwd(T *w, layer l, codebook c)
{
    VQ_DYNAMIC_SHARED(float, shared);
    const float *table = SHARED ? shared : c.value;
    if (SHARED) {
        constexpr int EACH = PART == 1 ? 1 : 4; /* D is a multiple of PART, or may be odd */
        typedef vq_pack<float, EACH> piece;
        for (int64_t i = threadIdx.x; i < c.n / EACH; i += blockDim.x) {
            piece x = reinterpret_cast<const piece *>(c.value)[i];
            for (int j = 0; j < EACH; j++) x.x[j] = rounding(x.x[j], c.hard);
            reinterpret_cast<piece *>(shared)[i] = x;
        }
        __syncthreads();
    }
    /* Packs are taken in strides: row and column go along without a division. */
    const int64_t packs = l.in / N, stride = vq_threads();
    const int64_t row_stride = stride / packs, column_stride = stride % packs;
    int64_t row = vq_thread() / packs, column = vq_thread() % packs;
    while (row < l.out) {
        const int64_t p = (row * packs + column) * N, group = group_of(l, row, column * N);
        const float s = l.scale[group], z = l.zero[group];
        float q[N];
        levels<N, PART, SHARED>(q, l, table, c, p);
        elements<T, N> result;
        for (int i = 0; i < N; i++) result[i] = vq_store<T>(s * (q[i] - z));
        result.store(w + p);
        row += row_stride;
        column += column_stride;
        if (column >= packs) column -= packs, row++;
    }
}

/* The codebook for kernels that read it from memory: rounding values in scratch for a large weight.
 */
static vq_status make_codebook(vq_cuda *cuda, const layer *l, const vq_tensor *codes, bool hard,
                               codebook *out)
{
    float *table = NULL;
    *out = {static_cast<const float *>(codes->data), vq_tensor_count(codes), false, hard};
    if (!l->idx || !vq_cuda_round_makes_table(l->out * l->in)) return VQ_OK;
    VQ_TRY(VQ_NEW(&cuda->scratch, out->n, &table));
    VQ_LAUNCH(cuda, fill_table, vq_cuda_blocks(out->n, THREADS), THREADS, 0, table, out->value,
              out->n, hard);
    out->value = table;
    out->is_rounded = true;
    return VQ_OK;
}

template <class T, int N, int PART>
static vq_status run_fwd(vq_cuda *cuda, T *w, const layer *l, const vq_tensor *codes, bool hard)
{
    const int64_t n = l->out * l->in, table_bytes = int64_t(vq_tensor_bytes(codes));
    codebook c = {static_cast<const float *>(codes->data), vq_tensor_count(codes), false, hard};
    if (l->idx && vq_cuda_round_shares_table(n, table_bytes, cuda->shared_bytes)) {
        VQ_LAUNCH(cuda, (fwd<T, N, PART, true>), unsigned(cuda->multiprocessors), VQ_BLOCK_MAX,
                  size_t(table_bytes), w, *l, c);
        return VQ_OK;
    }
    VQ_TRY(make_codebook(cuda, l, codes, hard, &c));
    VQ_LAUNCH(cuda, (fwd<T, N, PART, false>), vq_cuda_blocks(n, THREADS * N), THREADS, 0, w, *l, c);
    return VQ_OK;
}

vq_status vq_cuda_round_fwd(void *ctx, vq_tensor *w, const vq_quant *q, const vq_tensor *codes,
                            vq_round_mode mode)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const layer l = layer_of(q, w, codes->dim[1]);
    if (l.out * l.in == 0) return VQ_OK;
    const size_t mark = vq_arena_mark(&cuda->scratch);
    VQ_ACT_TYPE(w->dtype, BY_PACK(&l, packs_fit(&l, w, codes),
                                  VQ_TRY((run_fwd<T, N, PART>(cuda, static_cast<T *>(w->data), &l,
                                                              codes, mode == VQ_HARD)))));
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}

/* --- the gradient ---------------------------------------------------------------------------- */

/* Whether the gradient passes: 0 <= base + r <= qmax. Only base = -1 and base = qmax depend on r.
 * A code's flags say it for these two. */
#define PASSES_LOW 1
#define PASSES_HIGH 2

static __device__ __forceinline__ uint8_t flags_of(float r, float qmax)
{
    return uint8_t((-1 + r >= 0 ? PASSES_LOW : 0) | (qmax + r <= qmax ? PASSES_HIGH : 0));
}

static __device__ __forceinline__ bool passes(int base, int qmax, unsigned flags)
{
    return base < 0 ? (flags & PASSES_LOW) != 0 : base < qmax || (flags & PASSES_HIGH) != 0;
}

static __global__ void __launch_bounds__(THREADS)
    fill_flags(uint8_t *flags, const float *codes, int64_t n, float qmax)
{
    for (int64_t i = vq_thread(); i < n; i += vq_threads())
        flags[i] = flags_of(vq_soft_round(codes[i]), qmax);
}

/* Every vector has its own code: dcodes += h' s [...] dw, weight by weight. */
template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    bwd_own(float *dcodes, const T *dw, layer l, const float *codes)
{
    const int64_t packs = l.in / N, stride = vq_threads();
    const int64_t row_stride = stride / packs, column_stride = stride % packs;
    int64_t row = vq_thread() / packs, column = vq_thread() % packs;
    while (row < l.out) {
        const int64_t p = (row * packs + column) * N;
        const float s = l.scale[group_of(l, row, column * N)];
        raw_ints<N> base;
        elements<T, N> g;
        elements<float, N> code, sum;
        base.load(l, p);
        g.load(dw + p);
        code.load(codes + p);
        sum.load(dcodes + p);
        for (int i = 0; i < N; i++)
            if (passes(base.at(l, i), int(l.qmax), flags_of(vq_soft_round(code[i]), l.qmax)))
                sum[i] = sum[i] + vq_soft_round_grad(code[i]) * (s * vq_load(g[i]));
        sum.store(dcodes + p);
        row += row_stride;
        column += column_stride;
        if (column >= packs) column -= packs, row++;
    }
}

/* What a turn reads of one pack, before anything is done with it. */
template <class T, int N, int PART> struct pack_in {
    raw_elements<T, N> dw;
    raw_ints<N> base;
    int code[N / PART]; /* of its parts; -1: nothing here for this block */
};

/* This thread's packs of the turn that begins with weight from + turn, up to from + n. */
template <class T, int N, int PART>
static __device__ __forceinline__ void read_turn(pack_in<T, N, PART> *in, const T *dw,
                                                 const layer &l, int64_t from, int turn, int n,
                                                 int first_code, int n_codes)
{
    for (int j = 0; j < BWD_EACH(N, PART) / N; j++) {
        const int at = turn + (j * BWD_THREADS + int(threadIdx.x)) * N;
        const int64_t p = from + at;
        bool has_any = false;
        for (int k = 0; k < N / PART; k++) {
            int code = -1;
            if (at < n) code = int(code_of(l, vector_of<PART>(l, p + k * PART))) - first_code;
            const bool is_own = unsigned(code) < unsigned(n_codes);
            in[j].code[k] = is_own ? code : -1;
            has_any = has_any || is_own;
        }
        if (!has_any) continue;
        in[j].dw.load(dw + p);
        in[j].base.load(l, p);
    }
}

/* Where (code, d) stands in the block's table. With 8 numbers a code, all lanes that add the same d
 * would meet in 4 of the 32 banks; so d is turned by higher bits of the code. */
static __device__ __forceinline__ int slot_of(const layer &l, int code, int d)
{
    return code * int(l.D) + (d ^ (code >> l.turn_shift & l.turn_mask));
}

/* |x| < 2^exponent; x finite, by its bits without the sign. */
static __device__ __forceinline__ int exponent_of(uint32_t bits)
{
    return int(bits >> 23) - 126;
}

/* 2^e for e in [-126, 127]. */
static __device__ __forceinline__ float power_of_two(int e)
{
    return vq_bits_f32(uint32_t(e + 127) << 23);
}

/* How often the most frequent of the block's codes occurs among the vectors that begin before
 * `end` and end after `from`. Uses and leaves count [n_codes]. */
static __device__ uint32_t most_frequent(uint32_t *count, const layer &l, int64_t from, int64_t end,
                                         int64_t first_code, int64_t n_codes)
{
    for (int64_t i = threadIdx.x; i < n_codes; i += blockDim.x) count[i] = 0;
    __syncthreads();
    for (int64_t v = from / l.D + threadIdx.x; v * l.D < end; v += blockDim.x) {
        const int64_t code = code_of(l, v) - first_code;
        if (code >= 0 && code < n_codes) atomicAdd(&count[code], 1u);
    }
    __syncthreads();
    uint32_t most = 0;
    for (int64_t i = threadIdx.x; i < n_codes; i += blockDim.x)
        most = count[i] > most ? count[i] : most;
    return vq_block_max(most);
}

/* partial[chunk][first_code ..][D] = sum over the chunk's vectors of s [...] dw. */
template <class T, int N, int PART>
static __global__ void __launch_bounds__(BWD_THREADS)
    bwd(float *partial, const T *dw, layer l, const uint8_t *flags, int64_t K, int64_t chunk,
        int64_t range)
{
    VQ_DYNAMIC_SHARED(int32_t, table);
    constexpr int EACH = BWD_EACH(N, PART), TURN = EACH * BWD_THREADS;
    const int64_t from = blockIdx.x * chunk;
    const int n = int(VQ_MIN(chunk, l.out * l.in - from)), first_code = int(blockIdx.y * range);
    const int n_codes = int(VQ_MIN(range, K - first_code));
    const int D = int(l.D), n_slots = n_codes * D, qmax = int(l.qmax);

    const uint32_t most =
        most_frequent(reinterpret_cast<uint32_t *>(table), l, from, from + n, first_code, n_codes);
    int bits = 30; /* of one number, so that `most` of them stay below 2^30 */
    for (uint32_t times = 1; times < most; times *= 2) bits--;
    for (int i = threadIdx.x; i < n_slots; i += BWD_THREADS) table[i] = 0;

    const int UNSET = 1 << 20;
    int exponent = UNSET; /* numbers in the table are times 2^exponent */
    bool finite = true;
    pack_in<T, N, PART> in[EACH / N];
    read_turn<T, N, PART>(in, dw, l, from, 0, n, first_code, n_codes);
    for (int turn = 0; turn < n; turn += TURN) {
        float g[EACH];
        int slot[EACH / PART];
        uint32_t greatest = 0;
        for (int j = 0; j < EACH / PART; j++) {
            const pack_in<T, N, PART> &pack = in[j * PART / N];
            const int k = j % (N / PART), code = pack.code[k];
            slot[j] = -1;
            if (code < 0) continue;
            const int64_t first = from + turn + (j * PART / N * BWD_THREADS + int(threadIdx.x)) * N;
            const int64_t row = row_of<N>(l, first), p = first + k * PART;
            const int d = int(p - vector_of<PART>(l, p) * D);
            const float s = l.scale[group_of(l, row, first - row * l.in)];
            elements<uint8_t, PART> flag;
            flag.load(flags + (first_code + code) * D + d);
            slot[j] = slot_of(l, code, d);
            for (int i = 0; i < PART; i++) {
                const float x = s * vq_load(pack.dw[k * PART + i]);
                const bool is_in = passes(pack.base.at(l, k * PART + i), qmax, flag[i]);
                g[j * PART + i] = is_in ? x : 0;
                const uint32_t size = __float_as_uint(fabsf(g[j * PART + i]));
                greatest = size > greatest ? size : greatest;
            }
        }
        /* The next turn's reading goes on while this one's numbers are added. */
        read_turn<T, N, PART>(in, dw, l, from, turn + TURN, n, first_code, n_codes);
        greatest = vq_block_max(greatest); /* all additions of the last turn are done, too */
        if (greatest == 0) continue;
        if (greatest >= 0x7f800000u) {
            finite = false;
            break;
        }
        const int fits = VQ_MIN(bits - exponent_of(greatest), 120);
        if (fits < exponent) {
            const int down = VQ_MIN(exponent - fits, 31);
            if (exponent != UNSET)
                for (int i = threadIdx.x; i < n_slots; i += BWD_THREADS)
                    table[i] = int32_t((int64_t(table[i]) + (int64_t(1) << (down - 1))) >> down);
            exponent = fits;
            __syncthreads();
        }
        const float factor = power_of_two(exponent);
        for (int j = 0; j < EACH / PART; j++)
            if (slot[j] >= 0)
                for (int i = 0; i < PART; i++)
                    atomicAdd(&table[slot[j] ^ i], __float2int_rn(g[j * PART + i] * factor));
    }
    __syncthreads();
    const float factor = exponent == UNSET ? 0 : power_of_two(-exponent);
    partial += (blockIdx.x * K + first_code) * l.D;
    for (int i = threadIdx.x; i < n_slots; i += BWD_THREADS)
        partial[i] = finite ? float(table[slot_of(l, i / D, i % D)]) * factor : NAN;
}

/* dcodes += h' times the sum of the chunks' tables, in their order. */
static __global__ void __launch_bounds__(THREADS)
    add_chunks(float *dcodes, const float *partial, int64_t chunks, const float *codes, int64_t n)
{
    for (int64_t i = vq_thread(); i < n; i += vq_threads()) {
        float sum = 0;
        for (int64_t c = 0; c < chunks; c++) sum += partial[c * n + i];
        dcodes[i] += vq_soft_round_grad(codes[i]) * sum;
    }
}

template <class T>
static vq_status run_bwd_own(vq_cuda *cuda, float *dcodes, const T *dw, const layer *l,
                             const float *codes, bool packs)
{
    const int64_t n = l->out * l->in;
    if (packs)
        VQ_LAUNCH(cuda, (bwd_own<T, PACK>), vq_cuda_blocks(n, THREADS * PACK), THREADS, 0, dcodes,
                  dw, *l, codes);
    else
        VQ_LAUNCH(cuda, (bwd_own<T, 1>), vq_cuda_blocks(n, THREADS), THREADS, 0, dcodes, dw, *l,
                  codes);
    return VQ_OK;
}

vq_status vq_cuda_round_bwd(void *ctx, vq_tensor *dcodes, const vq_tensor *dw, const vq_quant *q,
                            const vq_tensor *codes)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t K = codes->dim[0], D = codes->dim[1], n = K * D;
    const layer l = layer_of(q, dw, D);
    const float *code = static_cast<const float *>(codes->data);
    float *sum = static_cast<float *>(dcodes->data);
    const bool fit = packs_fit(&l, dw, codes);
    if (l.out * l.in == 0) return VQ_OK;
    if (!l.idx) {
        VQ_ACT_TYPE(dw->dtype, VQ_TRY((run_bwd_own<T>(cuda, sum, static_cast<const T *>(dw->data),
                                                      &l, code, fit && uintptr_t(sum) % 16 == 0))));
        return VQ_OK;
    }
    const vq_cuda_round_plan plan = vq_cuda_plan_round_bwd(
        l.out * l.in, K, D, cuda->shared_bytes - STATIC_BYTES, cuda->multiprocessors);
    VQ_CHECK(plan.codes > 0, VQ_EUNSUPPORTED,
             "round_bwd: codes of %lld numbers, expected at most %zu on this GPU, what its shared "
             "memory holds. Use a smaller D",
             (long long)D, (cuda->shared_bytes - STATIC_BYTES) / sizeof(int32_t));
    const size_t mark = vq_arena_mark(&cuda->scratch);
    const dim3 blocks(unsigned(plan.chunks), unsigned(plan.ranges));
    float *partial = NULL;
    uint8_t *flags = NULL;
    VQ_TRY(VQ_NEW(&cuda->scratch, plan.partial, &partial));
    VQ_TRY(VQ_NEW(&cuda->scratch, n, &flags));
    VQ_LAUNCH(cuda, fill_flags, vq_cuda_blocks(n, THREADS), THREADS, 0, flags, code, n, l.qmax);
    VQ_ACT_TYPE(
        dw->dtype,
        BY_PACK(&l, fit,
                VQ_LAUNCH(cuda, (bwd<T, N, PART>), blocks, BWD_THREADS, plan.shared_bytes, partial,
                          static_cast<const T *>(dw->data), l, flags, K, plan.chunk, plan.codes)));
    VQ_LAUNCH(cuda, add_chunks, vq_cuda_blocks(n, THREADS), THREADS, 0, sum, partial, plan.chunks,
              code, n);
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}

/* --- the regularizer ------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS)
    reg(double *partial, float *dcodes, const float *codes, const uint32_t *counts, int64_t n,
        double weight, double beta)
{
    double sum = 0;
    for (int64_t i = vq_thread(); i < n; i += vq_threads()) {
        const double t = 2 * double(vq_soft_round(codes[i])) - 1;
        const double times = counts ? double(counts[i]) : 1;
        const double power = pow(fabs(t), beta - 1);
        sum += times * (1 - power * fabs(t));
        /* d|t|^beta / da = beta |t|^(beta - 1) sign(t) 2 h'; 0 at t = 0, as beta > 1. */
        if (dcodes)
            dcodes[i] -= float(weight * times * beta * copysign(power, t) * 2 *
                               double(vq_soft_round_grad(codes[i])));
    }
    sum = vq_block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

vq_status vq_cuda_round_reg(void *ctx, double *loss, vq_tensor *dcodes, const vq_tensor *codes,
                            const vq_tensor *counts, double weight, double beta)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = vq_tensor_count(codes), blocks = vq_cuda_sum_blocks(n);
    const size_t mark = vq_arena_mark(&cuda->scratch);
    double *partial = NULL;
    VQ_TRY(VQ_NEW(&cuda->scratch, blocks, &partial));
    VQ_LAUNCH(cuda, reg, unsigned(blocks), THREADS, 0, partial,
              static_cast<float *>(dcodes ? dcodes->data : NULL),
              static_cast<const float *>(codes->data),
              static_cast<const uint32_t *>(counts ? counts->data : NULL), n, weight, beta);
    VQ_TRY(vq_cuda_sum_later(cuda, loss, weight, partial, blocks));
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}

/* --- a learned scale ------------------------------------------------------------------------- */

static __global__ void __launch_bounds__(THREADS)
    scale_fwd(float *scale, const float *grid, const float *factor, int64_t n, vq_dtype scale_dtype)
{
    for (int64_t i = vq_thread(); i < n; i += vq_threads())
        scale[i] = vq_round_scale(grid[i] * factor[i], scale_dtype);
}

vq_status vq_cuda_round_scale_fwd(void *ctx, vq_tensor *scale, const vq_tensor *grid,
                                  const vq_tensor *factor, vq_dtype scale_dtype)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = vq_tensor_count(grid);
    VQ_LAUNCH(cuda, scale_fwd, vq_cuda_blocks(n, THREADS), THREADS, 0,
              static_cast<float *>(scale->data), static_cast<const float *>(grid->data),
              static_cast<const float *>(factor->data), n, scale_dtype);
    return VQ_OK;
}

/* dfactor += grid sum dw (q - z); a block takes one group. */
template <class T, int N, int PART>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX)
    scale_bwd(float *dfactor, const T *dw, layer l, codebook c, const float *grid)
{
    const int64_t size = l.groups == 1 ? l.in : l.group_size;
    for (int64_t group = blockIdx.x; group < l.out * l.groups; group += gridDim.x) {
        const int64_t row = group / l.groups, first = group % l.groups * size;
        const int64_t end = VQ_MIN(first + size, l.in);
        const float z = l.zero[group];
        double sum = 0;
        for (int64_t i = first + threadIdx.x * N; i < end; i += int64_t(blockDim.x) * N) {
            float q[N], part = 0;
            elements<T, N> g;
            levels<N, PART, false>(q, l, c.value, c, row * l.in + i);
            g.load(dw + row * l.in + i);
            for (int j = 0; j < N; j++) part = fmaf(q[j] - z, vq_load(g[j]), part);
            sum += double(part);
        }
        sum = vq_block_sum(sum);
        if (threadIdx.x == 0) dfactor[group] += grid[group] * float(sum);
    }
}

vq_status vq_cuda_round_scale_bwd(void *ctx, vq_tensor *dfactor, const vq_tensor *dw,
                                  const vq_quant *q, const vq_tensor *codes, const vq_tensor *grid)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const layer l = layer_of(q, dw, codes->dim[1]);
    if (l.out * l.in == 0) return VQ_OK;
    const size_t mark = vq_arena_mark(&cuda->scratch);
    codebook c;
    VQ_TRY(make_codebook(cuda, &l, codes, false, &c));
    VQ_ACT_TYPE(
        dw->dtype,
        BY_PACK(&l, packs_fit(&l, dw, codes),
                VQ_LAUNCH(cuda, (scale_bwd<T, N, PART>), vq_cuda_blocks(l.out * l.groups, 1),
                          vq_cuda_row_threads(VQ_MIN(l.group_size, l.in), N), 0,
                          static_cast<float *>(dfactor->data), static_cast<const T *>(dw->data), l,
                          c, static_cast<const float *>(grid->data))));
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}

/* --- columns in another order ---------------------------------------------------------------- */

#define ARRANGE_BLOCKS 256 /* at most, where rows go through scratch */

/* A block takes a row: memory is read and written in runs, and `row` between them, an element a
 * column, in any order. HALVES: of two columns in a byte. room: in place of shared memory, a row a
 * block. */
template <class T, bool HALVES>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX)
    arrange(T *to, const T *from, const int32_t *order, int64_t out, int64_t in, bool back, T *room)
{
    VQ_DYNAMIC_SHARED(T, shared);
    T *row = room ? room + blockIdx.x * in : shared;
    const int64_t wide = HALVES ? (in + 1) / 2 : in; /* of a row of `to` and `from` */
    for (int64_t o = blockIdx.x; o < out; o += gridDim.x) {
        for (int64_t j = threadIdx.x; j < in; j += blockDim.x)
            row[back ? order[j] : j] = HALVES
                                           ? T(uint8_t(from[o * wide + j / 2]) >> (j % 2 * 4) & 15)
                                           : from[o * wide + j];
        __syncthreads();
        for (int64_t i = threadIdx.x; i < wide; i += blockDim.x) {
            const int64_t j = HALVES ? 2 * i : i;
            T x = row[back ? j : order[j]];
            if (HALVES && j + 1 < in) x = T(x | row[back ? j + 1 : order[j + 1]] << 4);
            to[o * wide + i] = x;
        }
        __syncthreads(); /* the row may be written again */
    }
}

template <class T, bool HALVES>
static vq_status run_arrange(vq_cuda *cuda, vq_tensor *to, const vq_tensor *from,
                             const vq_tensor *order, bool back)
{
    const int64_t out = from->dim[0], in = order->dim[0];
    size_t shared_bytes = size_t(in) * sizeof(T);
    int64_t blocks = vq_cuda_blocks(out, 1);
    T *room = NULL;
    const size_t mark = vq_arena_mark(&cuda->scratch);
    if (shared_bytes > cuda->shared_bytes) {
        shared_bytes = 0;
        blocks = VQ_MIN(blocks, ARRANGE_BLOCKS);
        VQ_TRY(VQ_NEW(&cuda->scratch, blocks * in, &room));
    }
    VQ_LAUNCH(cuda, (arrange<T, HALVES>), unsigned(blocks), vq_cuda_row_threads(in, 1),
              shared_bytes, static_cast<T *>(to->data), static_cast<const T *>(from->data),
              static_cast<const int32_t *>(order->data), out, in, back, room);
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}

vq_status vq_cuda_arrange(void *ctx, vq_tensor *to, const vq_tensor *from, const vq_tensor *order,
                          bool back)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    if (vq_tensor_count(from) == 0) return VQ_OK;
    if (from->dtype == VQ_U8) return run_arrange<uint8_t, true>(cuda, to, from, order, back);
    switch (vq_dtype_bytes(from->dtype)) {
    case 1: return run_arrange<uint8_t, false>(cuda, to, from, order, back);
    case 2: return run_arrange<uint16_t, false>(cuda, to, from, order, back);
    case 4: return run_arrange<uint32_t, false>(cuda, to, from, order, back);
    default: return run_arrange<uint64_t, false>(cuda, to, from, order, back);
    }
}
