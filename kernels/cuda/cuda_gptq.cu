/* cuda_gptq - the Hessian of a linear or the moments of its inputs, the factor of its inverse, and
 * GPTQ's pass over the columns.
 *
 * The factor is had without inverting: with the order of rows and columns reversed, H = L L^T, and
 * L^-1, reversed back, is the upper triangular U with U^T U = H^-1. cuSOLVER's matrices are
 * column-major: its upper triangle is our lower one.
 *
 * In the sweep rows are independent. A warp carries one row through SWEEP columns in registers,
 * column by column; errors reach what follows by a product. A block of the rule may be longer than
 * SWEEP: then its own columns are brought up to date after every SWEEP, what lies behind it once.
 */
#include "cuda_device.cuh"
#include "cuda_plan.h"

#include <float.h>

#define THREADS 256

/* --- h += alpha x^T x ------------------------------------------------------------------------ */

#define SYRK_DEPTH 1024 /* rows whose products are summed in f32 */

/* Columns [first, first + width) of h, from row `first` on: the lower triangle += alpha sum. */
static __global__ void __launch_bounds__(THREADS)
    add_lower(double *h, const float *sum, int64_t n, int64_t first, int64_t width, double alpha)
{
    for (int64_t row = first + blockIdx.x; row < n; row += gridDim.x)
        for (int64_t j = threadIdx.x; j < VQ_MIN(width, row - first + 1); j += blockDim.x)
            h[row * n + first + j] += alpha * double(sum[(row - first) * width + j]);
}

vq_status vq_cuda_syrk(void *ctx, vq_tensor *h, const vq_tensor *x, double alpha)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t rows = x->dim[0], n = x->dim[1];
    if (rows * n == 0) return VQ_OK;
    const int64_t columns = vq_cuda_syrk_columns(n);
    const size_t mark = vq_arena_mark(&cuda->scratch);
    float *sum = NULL;
    VQ_TRY(VQ_NEW(&cuda->scratch, n * columns, &sum));
    for (int64_t r = 0; r < rows; r += SYRK_DEPTH) {
        const vq_tensor piece = vq_tensor_rows(x, r, VQ_MIN(SYRK_DEPTH, rows - r));
        for (int64_t j = 0; j < n; j += columns) {
            vq_tensor left = piece, right = piece;
            left.data = right.data =
                static_cast<uint8_t *>(piece.data) + size_t(j) * vq_dtype_bytes(x->dtype);
            left.dim[1] = n - j, right.dim[1] = VQ_MIN(columns, n - j);
            vq_tensor product = vq_tensor_2d(sum, VQ_F32, n - j, right.dim[1]);
            VQ_TRY(vq_cuda_gemm(cuda, &product, &left, true, &right, false, 1, 0));
            VQ_LAUNCH(cuda, add_lower, vq_cuda_blocks(n - j, 1), THREADS, 0,
                      static_cast<double *>(h->data), sum, n, j, right.dim[1], alpha);
        }
    }
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}

/* --- by columns ------------------------------------------------------------------------------ */

#define MOMENT_WARPS 16 /* of a block: each takes every 16th row of 32 columns */

template <class T>
static __global__ void __launch_bounds__(MOMENT_WARPS *VQ_WARP)
    add_moments(double *sums, const T *x, int64_t rows, int64_t n, int64_t stride, double alpha)
{
    VQ_SHARED(double, part, [2][MOMENT_WARPS][VQ_WARP]);
    const int lane = threadIdx.x % VQ_WARP, warp = threadIdx.x / VQ_WARP;
    for (int64_t first = int64_t(blockIdx.x) * VQ_WARP; first < n;
         first += int64_t(gridDim.x) * VQ_WARP) {
        const int64_t j = first + lane;
        double squares = 0, sum = 0;
        for (int64_t r = warp; r < rows && j < n; r += MOMENT_WARPS) {
            const double v = vq_load(x[r * stride + j]);
            squares += v * v;
            sum += v;
        }
        part[0][warp][lane] = squares;
        part[1][warp][lane] = sum;
        __syncthreads();
        if (warp < 2 && j < n) {
            double total = 0;
            for (int w = 0; w < MOMENT_WARPS; w++) total += part[warp][w][lane];
            sums[warp * n + j] += alpha * total;
        }
        __syncthreads();
    }
}

vq_status vq_cuda_moments(void *ctx, vq_tensor *sums, const vq_tensor *x, double alpha)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t rows = x->dim[0], n = x->dim[1];
    if (rows * n == 0) return VQ_OK;
    VQ_ACT_TYPE(x->dtype, VQ_LAUNCH(cuda, add_moments<T>, vq_cuda_blocks(n, VQ_WARP),
                                    MOMENT_WARPS * VQ_WARP, 0, static_cast<double *>(sums->data),
                                    static_cast<const T *>(x->data), rows, n, x->stride[0], alpha));
    return VQ_OK;
}

/* --- the factor of the inverse --------------------------------------------------------------- */

/* a's lower triangle = H + damp I in reversed order; noise = what rounding may leave of a pivot
 * that is 0. */
static __global__ void __launch_bounds__(THREADS)
    reverse(double *a, double *noise, const double *h, const int32_t *order, int64_t n, double damp)
{
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        const int64_t row = order[n - 1 - i];
        for (int64_t j = threadIdx.x; j <= i; j += blockDim.x) {
            const int64_t column = order[n - 1 - j];
            double x = h[VQ_MAX(row, column) * n + VQ_MIN(row, column)];
            if (i == j) {
                x += damp;
                noise[i] = double(n) * DBL_EPSILON * x;
            }
            a[i * n + j] = x;
        }
    }
}

/* *lost = 1 where the factor's pivot is not above its noise. */
static __global__ void __launch_bounds__(THREADS)
    check_pivots(int *lost, const double *a, const double *noise, int64_t n)
{
    for (int64_t i = vq_thread(); i < n; i += vq_threads()) {
        const double root = a[i * n + i];
        if (!(root * root > noise[i])) atomicOr(lost, 1);
    }
}

/* u = a's lower triangle, both orders reversed. */
static __global__ void __launch_bounds__(THREADS) reverse_back(float *u, const double *a, int64_t n)
{
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x)
        for (int64_t j = threadIdx.x; j < n; j += blockDim.x)
            u[i * n + j] = j < i ? 0 : float(a[(n - 1 - i) * n + n - 1 - j]);
}

/* Both factorizations' scratch, the larger of the two, and their parameters. */
struct solver {
    cusolverDnParams_t params;
    size_t factor_bytes, inverse_bytes, factor_host_bytes, inverse_host_bytes;
    void *work, *host_work;
    int *found; /* device: info of the two; whether pivots are lost */
};

#define WORK_ALIGN ((size_t)256) /* what cudaMalloc would give */

static vq_status prepare(vq_cuda *cuda, solver *s, double *a, int64_t n)
{
    VQ_CUSOLVER(cusolverDnXpotrf_bufferSize(cuda->solver, s->params, CUBLAS_FILL_MODE_UPPER, n,
                                            CUDA_R_64F, a, n, CUDA_R_64F, &s->factor_bytes,
                                            &s->factor_host_bytes));
    VQ_CUSOLVER(cusolverDnXtrtri_bufferSize(cuda->solver, CUBLAS_FILL_MODE_UPPER,
                                            CUBLAS_DIAG_NON_UNIT, n, CUDA_R_64F, a, n,
                                            &s->inverse_bytes, &s->inverse_host_bytes));
    VQ_TRY(vq_arena_alloc(&cuda->scratch, VQ_MAX(s->factor_bytes, s->inverse_bytes) + WORK_ALIGN,
                          &s->work));
    s->work = reinterpret_cast<void *>(VQ_CEIL_DIV(uintptr_t(s->work), WORK_ALIGN) * WORK_ALIGN);
    VQ_TRY(vq_arena_alloc(&cuda->memory, VQ_MAX(s->factor_host_bytes, s->inverse_host_bytes),
                          &s->host_work));
    VQ_TRY(VQ_NEW(&cuda->scratch, 3, &s->found));
    VQ_CUDA(cudaMemsetAsync(s->found, 0, 3 * sizeof *s->found, cuda->stream));
    return VQ_OK;
}

/* a, in its lower triangle, becomes its factor's inverse, if it is positive definite. */
static vq_status factor_and_invert(vq_cuda *cuda, const solver *s, double *a, const double *noise,
                                   int64_t n, bool *positive)
{
    int found[3];
    VQ_CUSOLVER(cusolverDnXpotrf(cuda->solver, s->params, CUBLAS_FILL_MODE_UPPER, n, CUDA_R_64F, a,
                                 n, CUDA_R_64F, s->work, s->factor_bytes, s->host_work,
                                 s->factor_host_bytes, s->found));
    VQ_LAUNCH(cuda, check_pivots, vq_cuda_blocks(n, THREADS), THREADS, 0, s->found + 2, a, noise,
              n);
    VQ_TRY(vq_cuda_fetch(cuda, found, s->found, sizeof found));
    *positive = found[0] == 0 && found[2] == 0;
    if (!*positive) return VQ_OK;
    VQ_CUSOLVER(cusolverDnXtrtri(cuda->solver, CUBLAS_FILL_MODE_UPPER, CUBLAS_DIAG_NON_UNIT, n,
                                 CUDA_R_64F, a, n, s->work, s->inverse_bytes, s->host_work,
                                 s->inverse_host_bytes, s->found + 1));
    VQ_TRY(vq_cuda_fetch(cuda, found, s->found, sizeof found));
    *positive = found[1] == 0;
    return VQ_OK;
}

vq_status vq_cuda_inverse_factor(void *ctx, vq_tensor *u, bool *positive, vq_tensor *h,
                                 const vq_tensor *order, double damp)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const int64_t n = h->dim[0];
    const size_t mark = vq_arena_mark(&cuda->scratch), host_mark = vq_arena_mark(&cuda->memory);
    double *a = NULL, *noise = NULL;
    VQ_TRY(VQ_NEW(&cuda->scratch, n * n, &a));
    VQ_TRY(VQ_NEW(&cuda->scratch, n, &noise));
    VQ_LAUNCH(cuda, reverse, vq_cuda_blocks(n, 1), THREADS, 0, a, noise,
              static_cast<const double *>(h->data), static_cast<const int32_t *>(order->data), n,
              damp);
    solver s = {};
    VQ_CUSOLVER(cusolverDnCreateParams(&s.params));
    vq_status status = prepare(cuda, &s, a, n);
    if (status == VQ_OK) status = factor_and_invert(cuda, &s, a, noise, n, positive);
    VQ_CUSOLVER(cusolverDnDestroyParams(s.params));
    if (status == VQ_OK && *positive)
        VQ_LAUNCH(cuda, reverse_back, vq_cuda_blocks(n, 1), THREADS, 0,
                  static_cast<float *>(u->data), a, n);
    vq_arena_reset(&cuda->memory, host_mark);
    vq_arena_reset(&cuda->scratch, mark);
    return status;
}

/* --- the sweep ------------------------------------------------------------------------------- */

#define SWEEP 128 /* columns that a warp holds: SWEEP / VQ_WARP a lane */
#define LANE_COLUMNS (SWEEP / VQ_WARP)
#define SWEEP_THREADS 128

struct sweep {
    int64_t out, in, groups, group_size, block; /* block: columns of the rule's, at most in */
    float qmax;
    bool running, hessian; /* groups of the sweep's order; the residual */
    float *w;              /* [out, in], columns in the order of the sweep; then both integers */
    float *e;              /* [out, block]: errors of the block */
    const float *u;
    const int32_t *order;
    const float *scale, *zero;
    float *rest;
    double *row_error; /* [out]: sums of e^2 */
};

/* Columns of w, as f32, by places or in the order of the sweep; those that are dead are 0. */
template <class T>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX)
    load_columns(float *to, const T *w, const int32_t *order, const uint8_t *dead, int64_t out,
                 int64_t in)
{
    for (int64_t row = blockIdx.x; row < out; row += gridDim.x)
        for (int64_t p = threadIdx.x; p < in; p += blockDim.x) {
            const int64_t i = order[p];
            to[row * in + p] = dead[i] ? 0 : vq_load(w[row * in + i]);
        }
}

/* What is known of a column once it is rounded. */
struct rounded {
    float e, rest, base, n;
};

static __device__ __forceinline__ rounded round_weight(float w, float s, float z, float diagonal,
                                                       float qmax, bool hessian)
{
    rounded r;
    const float u = w / s, below = floorf(u), q = rintf(u) + z, base = below + z;
    r.n = q > 0 ? (q < qmax ? q : qmax) : 0;
    r.e = (w - __fmul_rn(s, r.n - z)) / diagonal;
    r.rest = u - below;
    if (hessian) {
        r.rest -= r.e;
        r.rest = r.rest > 0 ? (r.rest < 1 ? r.rest : 1) : 0;
    }
    r.base = base > -1 ? (base < qmax ? base : qmax) : -1;
    return r;
}

/* A column's integers as one number, whole and below 2^24. */
static __device__ __forceinline__ float both_ints(const rounded &r)
{
    return r.n * 512 + (r.base + 1);
}

/* Columns [from, to) of one row, at most SWEEP, by a warp; block_from: where their block begins. */
static __global__ void __launch_bounds__(SWEEP_THREADS)
    sweep_columns(sweep t, int from, int to, int block_from)
{
    const int lane = threadIdx.x % VQ_WARP;
    const int64_t row = vq_thread() / VQ_WARP;
    if (row >= t.out) return;
    float w[LANE_COLUMNS], *own = t.w + row * t.in;
    rounded mine[LANE_COLUMNS];
    for (int c = 0; c < LANE_COLUMNS; c++) {
        const int p = from + c * VQ_WARP + lane;
        w[c] = p < to ? own[p] : 0;
        mine[c] = {};
    }
    double error = 0;
    for (int c = 0; c < LANE_COLUMNS; c++)
        for (int l = 0; l < VQ_WARP; l++) {
            const int p = from + c * VQ_WARP + l;
            if (p >= to) break;
            const int place = t.running ? p : t.order[p];
            const int64_t at =
                row * t.groups + (t.groups == 1 ? 0 : uint32_t(place) / uint32_t(t.group_size));
            const float *u = t.u + int64_t(p) * t.in;
            const float now = __shfl_sync(VQ_ALL_LANES, w[c], l);
            const rounded r = round_weight(now, t.scale[at], t.zero[at], u[p], t.qmax, t.hessian);
            if (lane == l) mine[c] = r;
            error += double(r.e) * double(r.e);
            for (int k = c; k < LANE_COLUMNS; k++) {
                const int column = from + k * VQ_WARP + lane;
                if (column > p && column < to) w[k] = fmaf(-r.e, u[column], w[k]);
            }
        }
    for (int c = 0; c < LANE_COLUMNS; c++) {
        const int p = from + c * VQ_WARP + lane;
        if (p >= to) break;
        t.e[row * t.block + p - block_from] = mine[c].e;
        t.rest[row * t.in + t.order[p]] = mine[c].rest;
        own[p] = both_ints(mine[c]);
    }
    if (lane == 0) t.row_error[row] = (from == 0 ? 0 : t.row_error[row]) + error;
}

/* w's columns [from, to) -= the errors of the columns [first, end) times their rows of U. */
static vq_status update(vq_cuda *cuda, const sweep *t, int64_t block_from, int64_t first,
                        int64_t end, int64_t from, int64_t to)
{
    if (from >= to) return VQ_OK;
    vq_tensor w = vq_tensor_2d(t->w + from, VQ_F32, t->out, to - from);
    vq_tensor e = vq_tensor_2d(t->e + first - block_from, VQ_F32, t->out, end - first);
    vq_tensor u = vq_tensor_2d(const_cast<float *>(t->u) + first * t->in + from, VQ_F32,
                               end - first, to - from);
    w.stride[0] = u.stride[0] = t->in;
    e.stride[0] = t->block;
    return vq_cuda_gemm(cuda, &w, &e, false, &u, false, -1, 1);
}

static vq_status sweep_block(vq_cuda *cuda, const sweep *t, int64_t from, int64_t to)
{
    const unsigned blocks = vq_cuda_blocks(t->out * VQ_WARP, SWEEP_THREADS);
    for (int64_t p = from; p < to; p += SWEEP) {
        const int64_t end = VQ_MIN(p + SWEEP, to);
        VQ_LAUNCH(cuda, sweep_columns, blocks, SWEEP_THREADS, 0, *t, int(p), int(end), int(from));
        VQ_TRY(update(cuda, t, from, p, end, end, to));
    }
    return update(cuda, t, from, from, to, to, t->in);
}

static __global__ void __launch_bounds__(THREADS)
    invert_order(int32_t *turn, const int32_t *order, int64_t in)
{
    for (int64_t p = vq_thread(); p < in; p += vq_threads()) turn[order[p]] = int32_t(p);
}

/* What the sweep has left in w, by places. */
template <class I>
static __global__ void __launch_bounds__(VQ_BLOCK_MAX)
    store_ints(I *base, I *ints, const float *w, const int32_t *turn, int64_t out, int64_t in)
{
    const int n = int(in);
    int low_base = 0, low = 0;
    for (int64_t row = blockIdx.x; row < out; row += gridDim.x)
        for (int first = threadIdx.x * 2; first < n; first += blockDim.x * 2)
            for (int i = first; i < VQ_MIN(first + 2, n); i++) {
                const int both = int(w[row * in + turn[i]]);
                vq_store_int(base, in, row, i, both % 512 - 1, &low_base);
                vq_store_int(ints, in, row, i, both / 512, &low);
            }
}

/* 1 / U[j, j]^2 of w's columns, and behind them in the order of the sweep: variance [2 in]. */
static __global__ void __launch_bounds__(THREADS)
    read_variances(float *variance, const float *u, const int32_t *order, int64_t in)
{
    for (int64_t p = vq_thread(); p < in; p += vq_threads()) {
        const float diagonal = u[p * in + p];
        variance[order[p]] = variance[in + p] = 1 / (diagonal * diagonal);
    }
}

vq_status vq_cuda_gptq_sweep(void *ctx, vq_quant *q, vq_tensor *ints, vq_tensor *rest,
                             double *error, const vq_tensor *w, const vq_tensor *u,
                             const vq_tensor *order, const vq_tensor *dead,
                             const vq_sweep_rule *rule)
{
    vq_cuda *cuda = static_cast<vq_cuda *>(ctx);
    const uint8_t *is_dead = static_cast<const uint8_t *>(dead->data);
    vq_cuda_grid_rule grid = {rule->symmetric, true, rule->search, rule->scale_dtype, NULL, NULL};
    *error = 0;
    if (vq_tensor_count(w) == 0) return VQ_OK;
    sweep t = {};
    int32_t *turn = NULL;
    t.out = w->dim[0], t.in = w->dim[1];
    t.groups = q->scale.dim[1], t.group_size = q->group_size;
    t.block = VQ_MIN(rule->block_size, t.in);
    t.qmax = float((1 << q->bits) - 1);
    t.running = t.groups > 1 && !rule->static_groups, t.hessian = rule->hessian_residual;
    t.u = static_cast<const float *>(u->data);
    t.order = static_cast<const int32_t *>(order->data);
    t.scale = static_cast<const float *>(q->scale.data);
    t.zero = static_cast<const float *>(q->zero.data);
    t.rest = static_cast<float *>(rest->data);
    const size_t mark = vq_arena_mark(&cuda->scratch);
    VQ_TRY(VQ_NEW(&cuda->scratch, t.out * t.in, &t.w));
    VQ_TRY(VQ_NEW(&cuda->scratch, t.out * t.block, &t.e));
    VQ_TRY(VQ_NEW(&cuda->scratch, t.out, &t.row_error));
    VQ_TRY(VQ_NEW(&cuda->scratch, t.in, &turn));
    if (rule->weigh) {
        float *variance;
        VQ_TRY(VQ_NEW(&cuda->scratch, 2 * t.in, &variance));
        VQ_LAUNCH(cuda, read_variances, vq_cuda_blocks(t.in, THREADS), THREADS, 0, variance, t.u,
                  t.order, t.in);
        grid.variance = variance + (t.running ? t.in : 0);
    }
    VQ_FLOAT_TYPE(w->dtype,
                  VQ_LAUNCH(cuda, load_columns<T>, vq_cuda_blocks(t.out, 1),
                            vq_cuda_row_threads(t.in, 1), 0, t.w, static_cast<const T *>(w->data),
                            t.order, is_dead, t.out, t.in));
    /* Grids hold 0, so that leaving out dead columns is the same as reading them as 0. */
    if (!t.running)
        VQ_TRY(vq_cuda_find_grids(cuda, q, w, &grid, t.groups > 1 ? is_dead : NULL, 0, t.groups));
    const vq_tensor swept = vq_tensor_2d(t.w, VQ_F32, t.out, t.in);
    for (int64_t from = 0; from < t.in; from += t.block) {
        const int64_t to = VQ_MIN(from + t.block, t.in);
        if (t.running) {
            const int64_t first = VQ_CEIL_DIV(from, t.group_size);
            VQ_TRY(vq_cuda_find_grids(cuda, q, &swept, &grid, NULL, first,
                                      VQ_CEIL_DIV(to, t.group_size) - first));
        }
        VQ_TRY(sweep_block(cuda, &t, from, to));
    }
    VQ_LAUNCH(cuda, invert_order, vq_cuda_blocks(t.in, THREADS), THREADS, 0, turn, t.order, t.in);
    VQ_INT_TYPE(ints->dtype,
                VQ_LAUNCH(cuda, store_ints<I>, vq_cuda_blocks(t.out, 1),
                          vq_cuda_row_threads(t.in, 2), 0, static_cast<I *>(q->base.data),
                          static_cast<I *>(ints->data), t.w, turn, t.out, t.in));
    VQ_TRY(vq_cuda_sum(cuda, error, t.row_error, t.out));
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}
