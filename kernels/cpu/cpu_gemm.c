/* cpu_gemm - matrix products: BLAS, one thread per tile, tiles chosen from the shape alone.
 *
 * A BLAS that is given several threads cuts the matrices by their number, and its results differ in
 * the last bits. Here OpenMP runs over tiles of c, each one a chain of BLAS calls over blocks of k.
 * A tile of a half-precision weight is converted just before its product: next to the 2 mt or 2 nt
 * operations that an element takes part in, this is not seen. */
#include "cpu_real.h"

#include <cblas.h>

#if defined(__F16C__) && defined(__AVX__)
#include <immintrin.h>
#endif

#include "cpu_ops.h"
#include "error.h"

#ifdef VQ_CPU_F64
#define BLAS_GEMM cblas_dgemm
#else
#define BLAS_GEMM cblas_sgemm
#endif

/* Tiles of c from large to small: the first that makes `enough` tiles is taken. A large product can
 * feed many cores at no cost; a small one is slower in small tiles, as each packs its operands
 * anew, and stops at fewer. */
static const struct {
    int64_t rows, cols, enough;
} TILES[] = {{512, 512, 48}, {512, 256, 48}, {256, 144, 8}, {128, 96, 4}, {64, 64, 0}};

/* Blocks of k; two converted tiles of at most 768 rows (1.5 times 512) by this fit a slab. */
#define K_BLOCK 1024

/* A product with a small c and a long k (the head's gradient) is cut along k too, into SLICES
 * pieces of work of at least K_SLICE, whose partial sums are added in order. */
#define SLICES 12
#define K_SLICE 4096
#define SLICED_MAX (512 * 1024)

void vq_cpu_to_real(real *dst, const void *src, vq_dtype dtype, int64_t n)
{
    switch (dtype) {
    case VQ_F32: {
        const float *x = src;
        for (int64_t i = 0; i < n; i++) dst[i] = (real)x[i];
        break;
    }
    case VQ_F64: {
        const double *x = src;
        for (int64_t i = 0; i < n; i++) dst[i] = (real)x[i];
        break;
    }
    case VQ_BF16: {
        const uint16_t *x = src;
        for (int64_t i = 0; i < n; i++) {
            union {
                uint32_t u;
                float f;
            } bits = {.u = (uint32_t)x[i] << 16};
            dst[i] = (real)bits.f;
        }
        break;
    }
    default: { /* VQ_F16 */ const uint16_t *x = src; int64_t i = 0;
#if defined(__F16C__) && defined(__AVX__)
        for (; i + 8 <= n; i += 8) {
            float eight[8];
            _mm256_storeu_ps(eight, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
            for (int j = 0; j < 8; j++) dst[i + j] = (real)eight[j];
        }
#endif
        for (; i < n; i++) dst[i] = (real)vq_f16_to_f32(x[i]);
    }
    }
}

void vq_cpu_blas_gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, real alpha,
                      const real *a, int64_t lda, const real *b, int64_t ldb, real beta, real *c,
                      int64_t ldc)
{
    BLAS_GEMM(CblasRowMajor, trans_a ? CblasTrans : CblasNoTrans,
              trans_b ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, alpha, a, (int)lda, b,
              (int)ldb, beta, c, (int)ldc);
}

/* A block of an operand as real: in place where it is, otherwise converted into scratch. */
static const real *block(const vq_tensor *t, int64_t row, int64_t col, int64_t rows, int64_t cols,
                         real *scratch, int64_t *ld)
{
    int64_t stride = t->stride[0], at = row * stride + col;
    if (t->dtype == VQ_REAL) {
        *ld = stride;
        return (const real *)t->data + at;
    }
    size_t bytes = vq_dtype_bytes(t->dtype);
    for (int64_t i = 0; i < rows; i++)
        vq_cpu_to_real(scratch + i * cols,
                       (const uint8_t *)t->data + (size_t)(at + i * stride) * bytes, t->dtype,
                       cols);
    *ld = cols;
    return scratch;
}

/* n in equal pieces of about size, at least one; and where piece i begins. */
static int64_t pieces(int64_t n, int64_t size)
{
    return VQ_MAX((n + size / 2) / size, 1);
}

static int64_t begin(int64_t n, int64_t count, int64_t i)
{
    /* Multiples of 16 keep all pieces but the last on whole vectors. */
    int64_t size = (VQ_CEIL_DIV(n, count) + 15) / 16 * 16;
    return VQ_MIN(i * size, n);
}

typedef struct plan {
    int64_t rows, cols, slices; /* numbers of tiles down, across, and of slices of k */
} plan;

static plan make_plan(int64_t m, int64_t n, int64_t k)
{
    plan p = {0};
    for (int i = 0; i < VQ_COUNT(TILES); i++) {
        p.rows = pieces(m, TILES[i].rows);
        p.cols = pieces(n, TILES[i].cols);
        int64_t tiles = p.rows * p.cols;
        p.slices = 1;
        if (m * n <= SLICED_MAX)
            p.slices = VQ_MAX(VQ_MIN(VQ_CEIL_DIV(SLICES, tiles), k / K_SLICE), 1);
        if (tiles * p.slices >= (p.slices > 1 ? SLICES : TILES[i].enough)) break;
    }
    return p;
}

vq_status vq_cpu_gemm(void *ctx, vq_tensor *c, const vq_tensor *a, bool trans_a, const vq_tensor *b,
                      bool trans_b, double alpha, double beta)
{
    vq_cpu *cpu = ctx;
    int64_t m = c->dim[0], n = c->dim[1], k = a->dim[trans_a ? 0 : 1];
    plan p = make_plan(m, n, k);
    size_t mark = vq_arena_mark(&cpu->scratch);
    real *partial = NULL;
    if (p.slices > 1) VQ_TRY(VQ_NEW(&cpu->scratch, p.slices * m * n, &partial));

    int64_t n_tasks = p.rows * p.cols * p.slices;
    int threads = (double)m * (double)n * (double)k < 1e5 ? 1 : cpu->n_threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < n_tasks; task++) {
        int64_t slice = task / (p.rows * p.cols), tile = task % (p.rows * p.cols);
        int64_t i = tile % p.rows, j = tile / p.rows;
        int64_t row = begin(m, p.rows, i), rows = begin(m, p.rows, i + 1) - row;
        int64_t col = begin(n, p.cols, j), cols = begin(n, p.cols, j + 1) - col;
        int64_t k_from = begin(k, p.slices, slice), k_end = begin(k, p.slices, slice + 1);
        if (rows == 0 || cols == 0) continue;

        int64_t ldc = partial ? n : c->stride[0], at = row * ldc + col;
        real *out = partial ? partial + slice * m * n + at : (real *)c->data + at;
        real factor = partial ? 1 : (real)alpha, keep = partial ? 0 : (real)beta;
        real *slab_a = vq_cpu_slab(cpu), *slab_b = slab_a + VQ_CPU_SLAB / 2;
        int64_t n_blocks = VQ_CEIL_DIV(k_end - k_from, K_BLOCK);
        for (int64_t s = 0; s < n_blocks; s++) {
            int64_t ks = k_from + begin(k_end - k_from, n_blocks, s);
            int64_t depth = k_from + begin(k_end - k_from, n_blocks, s + 1) - ks, lda, ldb;
            const real *x = trans_a ? block(a, ks, row, depth, rows, slab_a, &lda)
                                    : block(a, row, ks, rows, depth, slab_a, &lda);
            const real *y = trans_b ? block(b, col, ks, cols, depth, slab_b, &ldb)
                                    : block(b, ks, col, depth, cols, slab_b, &ldb);
            vq_cpu_blas_gemm(trans_a, trans_b, rows, cols, depth, factor, x, lda, y, ldb,
                             s == 0 ? keep : 1, out, ldc);
        }
    }
    if (partial) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < m; i++) {
            real *to = (real *)c->data + i * c->stride[0], *sum = partial + i * n;
            for (int64_t s = 1; s < p.slices; s++)
                for (int64_t j = 0; j < n; j++) sum[j] += partial[(s * m + i) * n + j];
            if (beta == 0)
                for (int64_t j = 0; j < n; j++) to[j] = (real)alpha * sum[j];
            else
                for (int64_t j = 0; j < n; j++) to[j] = (real)alpha * sum[j] + (real)beta * to[j];
        }
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}
