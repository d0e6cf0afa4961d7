/* lowrank - subspace iteration: products on the backend, the few rows between them in f64. */
#include "lowrank.h"

#include <math.h>
#include <string.h>

#include "error.h"
#include "rng.h"

#define MORE 8 /* rows than wanted: singular values near the last one are found sooner */
#define MAX_ITERATIONS 100
#define MIN_GAIN 1e-5
#define SWEEPS 30 /* of Jacobi's rotations, at most */

static double dot(const float *x, const float *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)y[i];
    return sum;
}

/* The rows of t made orthonormal, in order, each twice against those before; a row that depends on
 * them becomes 0. */
static void orthonormalize(vq_tensor *t)
{
    const int64_t rows = t->dim[0], n = t->dim[1];
    float *data = t->data;
    for (int64_t i = 0; i < rows; i++) {
        float *x = data + i * n;
        const double before = sqrt(dot(x, x, n));
        for (int pass = 0; pass < 2; pass++)
            for (int64_t j = 0; j < i; j++) {
                const float *y = data + j * n;
                const float along = (float)dot(x, y, n);
                for (int64_t k = 0; k < n; k++) x[k] -= along * y[k];
            }
        const double norm = sqrt(dot(x, x, n));
        const float by = norm > 1e-6 * before ? (float)(1 / norm) : 0;
        for (int64_t k = 0; k < n; k++) x[k] *= by;
    }
}

/* Eigenvalues and eigenvectors (the rows of v) of the symmetric g [n, n], which is destroyed. */
static void jacobi(double *g, double *v, int64_t n)
{
    for (int64_t i = 0; i < n * n; i++) v[i] = i % (n + 1) == 0;
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        double off = 0, all = 0;
        for (int64_t i = 0; i < n * n; i++) {
            all += g[i] * g[i];
            if (i % (n + 1) != 0) off += g[i] * g[i];
        }
        if (off <= 1e-28 * all) return;
        for (int64_t p = 0; p < n; p++)
            for (int64_t q = p + 1; q < n; q++) {
                if (g[p * n + q] == 0) continue;
                const double theta = (g[q * n + q] - g[p * n + p]) / (2 * g[p * n + q]);
                const double t = copysign(1, theta) / (fabs(theta) + sqrt(theta * theta + 1));
                const double c = 1 / sqrt(t * t + 1), s = t * c;
                for (int64_t k = 0; k < n; k++) {
                    const double x = g[k * n + p], y = g[k * n + q];
                    g[k * n + p] = c * x - s * y;
                    g[k * n + q] = s * x + c * y;
                }
                for (int64_t k = 0; k < n; k++) {
                    const double x = g[p * n + k], y = g[q * n + k];
                    g[p * n + k] = c * x - s * y;
                    g[q * n + k] = s * x + c * y;
                    const double a = v[p * n + k], b = v[q * n + k];
                    v[p * n + k] = c * a - s * b;
                    v[q * n + k] = s * a + c * b;
                }
            }
    }
}

/* left [l, out]: orthonormal rows that a's columns nearly lie in; right [l, in] = left a. */
static vq_status iterate(const vq_backend *be, vq_tensor *left, vq_tensor *right,
                         const vq_tensor *a)
{
    double caught = 0;
    for (int i = 0; i < MAX_ITERATIONS; i++) {
        const double before = caught;
        orthonormalize(right);
        VQ_TRY(vq_gemm(be, left, right, false, a, true, 1, 0));
        orthonormalize(left);
        VQ_TRY(vq_gemm(be, right, left, false, a, false, 1, 0));
        VQ_TRY(vq_norm2(be, &caught, right));
        if (caught - before <= MIN_GAIN * caught) return VQ_OK;
    }
    return VQ_OK;
}

/* The r largest of left^T right's singular triples, shared out to b1 and b2. */
static vq_status truncate(vq_arena *scratch, vq_tensor *b1, vq_tensor *b2, const vq_tensor *left,
                          const vq_tensor *right)
{
    const int64_t r = b2->dim[0], l = left->dim[0], out = left->dim[1], in = right->dim[1];
    const float *u = left->data, *c = right->data;
    float *to1 = b1->data, *to2 = b2->data;
    double *g, *v;
    VQ_TRY(VQ_NEW(scratch, l * l, &g));
    VQ_TRY(VQ_NEW(scratch, l * l, &v));
    for (int64_t i = 0; i < l; i++)
        for (int64_t j = 0; j < l; j++) g[i * l + j] = dot(c + i * in, c + j * in, in);
    jacobi(g, v, l);
    for (int64_t k = 0; k < r; k++) {
        int64_t best = 0;
        for (int64_t i = 1; i < l; i++)
            if (g[i * l + i] > g[best * l + best]) best = i;
        const double *x = v + best * l, sigma = sqrt(fmax(g[best * l + best], 0));
        g[best * l + best] = -1; /* taken */
        for (int64_t o = 0; o < out; o++) {
            double sum = 0;
            for (int64_t i = 0; i < l; i++) sum += x[i] * (double)u[i * out + o];
            to1[o * r + k] = (float)(sum * sqrt(sigma));
        }
        for (int64_t p = 0; p < in; p++) {
            double sum = 0;
            for (int64_t i = 0; i < l; i++) sum += x[i] * (double)c[i * in + p];
            to2[k * in + p] = sigma > 0 ? (float)(sum / sqrt(sigma)) : 0;
        }
    }
    return VQ_OK;
}

vq_status vq_lowrank_fit(const vq_backend *be, vq_arena *scratch, vq_tensor *b1, vq_tensor *b2,
                         const vq_tensor *a)
{
    const int64_t out = a->dim[0], in = a->dim[1], r = b2->dim[0];
    const int64_t l = VQ_MIN(r + MORE, VQ_MIN(out, in));
    VQ_ASSERT(a->dtype == VQ_F32 && r >= 1 && r <= l && b1->dim[1] == r);
    const size_t mark = vq_arena_mark(scratch);
    vq_tensor left, right;
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_F32, VQ_DIMS(l, out), &left));
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_F32, VQ_DIMS(l, in), &right));
    for (int64_t i = 0; i < l * in; i++)
        ((float *)right.data)[i] = (float)(vq_rng_uniform(1, 0, (uint64_t)i) - 0.5);
    VQ_TRY(iterate(be, &left, &right, a));
    VQ_TRY(truncate(scratch, b1, b2, &left, &right));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}
