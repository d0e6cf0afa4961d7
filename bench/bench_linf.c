/* bench_linf - how near three small descriptions of a layer's rounding logits come to them:
 * bench_linf MODEL_DIR [BITS [EVERY]]
 *
 * The paper's claim is that at equal size a codebook's largest error is below that of low rank and
 * of Kronecker products, in every layer. For every EVERY-th linear (1) of a model's decoder layers
 * a row of CSV for each description of A, the logits h^-1(rest) of the RTN grid, by about K D
 * numbers (K 4096, D 8; a codebook's indices are not counted, as they are not in the paper):
 *
 *   codebook    k-means
 *   by_sign     k-means within each pattern of signs
 *   svd         the truncated SVD of rank K D / (out + in)
 *   kronecker   one product B x C, split so that its parts have the number nearest to K D
 *   kroneckers  the sum of as many products as K D allows, split into the smallest parts
 *
 * The nearest sum of R Kronecker products is the truncated SVD of rank R of A with its blocks as
 * rows (Van Loan and Pitsianis). Columns: parameters, max |A - A~|, max |h(A) - h(A~)|, the
 * Frobenius norm of A - A~ over that of A, and the part of signs that differ. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "codebook.h"
#include "cpu_backend.h"
#include "error.h"
#include "grid.h"
#include "weights.h"

enum { K = 4096, D = 8 };

/* LAPACK's, in the BLAS that is linked: eigenvectors il to iu of a symmetric matrix. */
extern void dsyevr_(const char *jobz, const char *range, const char *uplo, const int *n, double *a,
                    const int *lda, const double *vl, const double *vu, const int *il,
                    const int *iu, const double *abstol, int *m, double *w, double *z,
                    const int *ldz, int *isuppz, double *work, const int *lwork, int *iwork,
                    const int *liwork, int *info);

static vq_arena run;
static vq_backend be;

static vq_tensor new_matrix(vq_dtype dtype, int64_t rows, int64_t cols)
{
    vq_tensor t;
    RUN(vq_tensor_new(&run, VQ_HOST, dtype, VQ_DIMS(rows, cols), &t));
    memset(t.data, 0, vq_tensor_bytes(&t));
    return t;
}

static double h_of(double a)
{
    return fmin(fmax(1.2 / (1 + exp(-a)) - 0.1, 0), 1);
}

/* --- low rank -------------------------------------------------------------------------------- */

/* The `rank` eigenvectors of the greatest eigenvalues of x^T x, as rows: f32 [rank, n]. */
static vq_tensor leading_vectors(const vq_tensor *x, int64_t rank)
{
    const int n = (int)x->dim[1], first = n - (int)rank + 1, size = 26 * n, ints = 10 * n;
    const double none = 0;
    vq_tensor gram = new_matrix(VQ_F64, n, n), vectors = new_matrix(VQ_F64, rank, n);
    vq_tensor out = new_matrix(VQ_F32, rank, n), values = new_matrix(VQ_F64, 1, n);
    vq_tensor work = new_matrix(VQ_F64, 1, size), iwork = new_matrix(VQ_I32, 1, ints);
    vq_tensor support = new_matrix(VQ_I32, 1, 2 * n);
    int found, info;
    RUN(vq_syrk(&be, &gram, x, 1));
    /* The lower triangle of rows is the upper one of columns. */
    dsyevr_("V", "I", "U", &n, gram.data, &n, &none, &none, &first, &n, &none, &found, values.data,
            vectors.data, &n, support.data, work.data, &size, iwork.data, &ints, &info);
    if (info != 0 || found != rank) {
        fprintf(stderr, "bench_linf: dsyevr: info %d, %d vectors\n", info, found);
        exit(VQ_EINTERNAL);
    }
    RUN(vq_convert(out.data, VQ_F32, vectors.data, VQ_F64, rank * n));
    return out;
}

/* y = the nearest matrix to x of that rank. */
static void truncate_rank(vq_tensor *y, const vq_tensor *x, int64_t rank)
{
    const int64_t rows = x->dim[0], cols = x->dim[1];
    const size_t mark = vq_arena_mark(&run);
    if (cols > rows) { /* the smaller of the two products x^T x and x x^T */
        vq_tensor t = new_matrix(VQ_F32, cols, rows), u = new_matrix(VQ_F32, cols, rows);
        for (int64_t i = 0; i < rows * cols; i++)
            ((float *)t.data)[i % cols * rows + i / cols] = ((const float *)x->data)[i];
        truncate_rank(&u, &t, rank);
        for (int64_t i = 0; i < rows * cols; i++)
            ((float *)y->data)[i] = ((const float *)u.data)[i % cols * rows + i / cols];
    } else {
        const vq_tensor v = leading_vectors(x, rank);
        vq_tensor parts = new_matrix(VQ_F32, rows, rank);
        RUN(vq_gemm(&be, &parts, x, false, &v, true, 1, 0));
        RUN(vq_gemm(&be, y, &parts, false, &v, false, 1, 0));
    }
    vq_arena_reset(&run, mark);
}

/* --- Kronecker products ---------------------------------------------------------------------- */

/* B is [out / block_rows, in / block_cols], C [block_rows, block_cols]. */
typedef struct split {
    int64_t block_rows, block_cols, parameters; /* of one product */
} split;

/* The split whose number of parameters is nearest to `wanted`; among equals the squarest blocks:
 * those of one row or column would make the SVD. */
static split choose_split(int64_t out, int64_t in, int64_t wanted)
{
    split best = {0};
    for (int64_t r = 1; r <= out; r++)
        for (int64_t c = 1; c <= in; c++) {
            if (out % r || in % c) continue;
            const int64_t p = r * c + out / r * (in / c);
            const int64_t off = llabs(p - wanted) - llabs(best.parameters - wanted);
            const int64_t longer = VQ_MAX(r, c) - VQ_MAX(best.block_rows, best.block_cols);
            if (best.parameters == 0 || off < 0 || (off == 0 && longer < 0))
                best = (split){r, c, p};
        }
    return best;
}

/* Where element i of A is in the matrix whose rows are A's blocks. */
static int64_t place_of(int64_t i, int64_t in, const split *s)
{
    const int64_t row = i / in, col = i % in, blocks = in / s->block_cols;
    const int64_t block = row / s->block_rows * blocks + col / s->block_cols;
    return block * s->block_rows * s->block_cols + row % s->block_rows * s->block_cols +
           col % s->block_cols;
}

static void kroneckers(vq_tensor *y, const vq_tensor *x, const split *s, int64_t terms)
{
    const int64_t n = vq_tensor_count(x), size = s->block_rows * s->block_cols;
    const size_t mark = vq_arena_mark(&run);
    vq_tensor t = new_matrix(VQ_F32, n / size, size), u = new_matrix(VQ_F32, n / size, size);
    for (int64_t i = 0; i < n; i++)
        ((float *)t.data)[place_of(i, x->dim[1], s)] = ((const float *)x->data)[i];
    truncate_rank(&u, &t, terms);
    for (int64_t i = 0; i < n; i++)
        ((float *)y->data)[i] = ((const float *)u.data)[place_of(i, x->dim[1], s)];
    vq_arena_reset(&run, mark);
}

/* --- rows of CSV ----------------------------------------------------------------------------- */

static void print_row(const char *method, const vq_tensor *a, const vq_tensor *y,
                      int64_t parameters)
{
    const float *x = a->data, *z = y->data;
    double worst = 0, worst_h = 0, error = 0, size = 0;
    int64_t flips = 0, n = vq_tensor_count(a);
    for (int64_t i = 0; i < n; i++) {
        const double p = (double)x[i], q = (double)z[i];
        worst = fmax(worst, fabs(p - q));
        worst_h = fmax(worst_h, fabs(h_of(p) - h_of(q)));
        error += (p - q) * (p - q);
        size += p * p;
        flips += (p >= 0) != (q >= 0);
    }
    printf("%s,%lld,%lld,%s,%lld,%.4f,%.4f,%.4f,%.4f\n", a->name, (long long)a->dim[0],
           (long long)a->dim[1], method, (long long)parameters, worst, worst_h, sqrt(error / size),
           (double)flips / (double)n);
    fflush(stdout);
}

static void print_codebook(const vq_tensor *a, const vq_tensor *rest, bool by_sign)
{
    const int64_t n = vq_tensor_count(a);
    const vq_codebook_config c = {.K = K,
                                  .D = D,
                                  .kmeans = {.iters = 100,
                                             .min_gain = VQ_KMEANS_MIN_GAIN,
                                             .seed = 1234,
                                             .max_points_per_centroid = 256,
                                             .by_sign = by_sign}};
    const size_t mark = vq_arena_mark(&run);
    vq_tensor y = new_matrix(VQ_F32, a->dim[0], a->dim[1]);
    vq_codebook cb;
    RUN(vq_codebook_alloc(&cb, &run, &c, n));
    RUN(vq_codebook_build(&be, &run, &cb, rest, NULL, &c));
    for (int64_t i = 0; i < n; i++)
        ((float *)y.data)[i] =
            ((const float *)cb.codes.data)[((const uint16_t *)cb.idx.data)[i / D] * D + i % D];
    print_row(by_sign ? "by_sign" : "codebook", a, &y, vq_tensor_count(&cb.codes));
    vq_arena_reset(&run, mark);
}

static void study(const vq_tensor *w, int bits)
{
    const int64_t out = w->dim[0], in = w->dim[1];
    const vq_grid_config grid = {
        .bits = bits, .group_size = -1, .include_zero = true, .scale_dtype = VQ_F16};
    const size_t mark = vq_arena_mark(&run);
    vq_tensor rest = new_matrix(VQ_F32, out, in), padded, a, y = new_matrix(VQ_F32, out, in);
    vq_quant q;
    RUN(vq_grid_alloc(&be, &q, &run, &grid, out, in));
    RUN(vq_grid_make(&be, &q, &rest, w, NULL, &grid));
    padded = new_matrix(VQ_F32, VQ_CEIL_DIV(out * in, D), D);
    RUN(vq_codebook_logits(&padded, &rest));
    a = vq_tensor_2d(padded.data, VQ_F32, out, in);
    a.name = w->name;

    print_codebook(&a, &rest, false);
    print_codebook(&a, &rest, true);
    const int64_t rank = VQ_MAX(K * D / (out + in), 1);
    truncate_rank(&y, &a, rank);
    print_row("svd", &a, &y, rank * (out + in));
    const split one = choose_split(out, in, K * D), least = choose_split(out, in, 0);
    kroneckers(&y, &a, &one, 1);
    print_row("kronecker", &a, &y, one.parameters);
    const int64_t terms = VQ_MAX(K * D / least.parameters, 1);
    kroneckers(&y, &a, &least, terms);
    print_row("kroneckers", &a, &y, terms * least.parameters);
    vq_arena_reset(&run, mark);
}

static bool is_linear(const vq_tensor *t)
{
    return t->ndim == 2 && strstr(t->name, "layers.") &&
           (strstr(t->name, "_proj.weight") || strstr(t->name, "fc1.weight") ||
            strstr(t->name, "fc2.weight"));
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: bench_linf MODEL_DIR [BITS [EVERY]]\n");
        return VQ_EUSAGE;
    }
    const int bits = argc > 2 ? atoi(argv[2]) : 3, every = argc > 3 ? atoi(argv[3]) : 1;
    vq_weights weights;
    int n = 0;
    RUN(vq_arena_init(&run, "run", (size_t)64 << 30));
    RUN(vq_cpu_open(&be, omp_get_max_threads()));
    RUN(vq_weights_open(&run, argv[1], &weights));
    printf("linear,out,in,method,parameters,max_logit,max_h,frobenius,flips\n");
    for (int64_t i = 0; i < weights.n; i++)
        if (is_linear(&weights.tensor[i]) && n++ % every == 0) study(&weights.tensor[i], bits);
    vq_weights_close(&weights);
    vq_cpu_close(&be);
    vq_arena_close(&run);
    return VQ_OK;
}
