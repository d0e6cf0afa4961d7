/* shim_blas - cuBLASLt's product by the BLAS: operands are widened, accumulated, and rounded once.
 */
#include <cblas.h>
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"
#include "tensor.h"

struct shim_blas {
    int unused;
};

static double get(const void *x, cudaDataType type, int64_t i)
{
    switch (type) {
    case CUDA_R_64F: return ((const double *)x)[i];
    case CUDA_R_32F: return (double)((const float *)x)[i];
    case CUDA_R_16F: return (double)vq_f16_to_f32(((const uint16_t *)x)[i]);
    default: return (double)vq_bf16_to_f32(((const uint16_t *)x)[i]);
    }
}

static void set(void *x, cudaDataType type, int64_t i, double value)
{
    switch (type) {
    case CUDA_R_64F: ((double *)x)[i] = value; break;
    case CUDA_R_32F: ((float *)x)[i] = (float)value; break;
    case CUDA_R_16F: ((uint16_t *)x)[i] = vq_f32_to_f16((float)value); break;
    default: ((uint16_t *)x)[i] = vq_f32_to_bf16((float)value);
    }
}

const char *cublasGetStatusString(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS         ? "success"
           : status == CUBLAS_STATUS_ALLOC_FAILED  ? "allocation failed"
           : status == CUBLAS_STATUS_NOT_SUPPORTED ? "not supported"
                                                   : "invalid value";
}

#define CREATE(out)                                                                                \
    ((*(out) = calloc(1, sizeof **(out))) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED)

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    return CREATE(handle);
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    if (CREATE(out) != CUBLAS_STATUS_SUCCESS) return CUBLAS_STATUS_ALLOC_FAILED;
    (*out)->compute = compute;
    (*out)->scale = scale;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    free(desc);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t which,
                                              const void *value, size_t bytes)
{
    cublasOperation_t *field =
        which == CUBLASLT_MATMUL_DESC_TRANSA ? &desc->trans_a : &desc->trans_b;
    if (bytes != sizeof *field) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    if (CREATE(out) != CUBLAS_STATUS_SUCCESS) return CUBLAS_STATUS_ALLOC_FAILED;
    **out = (struct shim_layout){.type = type, .rows = rows, .cols = cols, .ld = ld};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    free(layout);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out)
{
    return CREATE(out);
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    free(preference);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t which,
                                                    const void *value, size_t bytes)
{
    if (which != CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
        return bytes == sizeof(uint32_t) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
    if (bytes != sizeof preference->workspace_bytes) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&preference->workspace_bytes, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

/* The combinations of types that vqround uses and cuBLASLt knows; shapes that fit. */
static bool supported(const struct shim_matmul *desc, const struct shim_layout *a,
                      const struct shim_layout *b, const struct shim_layout *c,
                      const struct shim_layout *d)
{
    uint64_t m = desc->trans_a ? a->cols : a->rows, k = desc->trans_a ? a->rows : a->cols;
    bool wide = a->type == CUDA_R_64F;
    return a->type == b->type && c->type == d->type &&
           (c->type == a->type || c->type == CUDA_R_32F) &&
           desc->compute == (wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F) &&
           desc->scale == (wide ? CUDA_R_64F : CUDA_R_32F) &&
           k == (desc->trans_b ? b->cols : b->rows) && m == d->rows &&
           d->cols == (desc->trans_b ? b->rows : b->cols) && a->ld >= (int64_t)a->rows &&
           b->ld >= (int64_t)b->rows && d->ld >= (int64_t)d->rows && m > 0 && k > 0 && d->cols > 0;
}

static long n_choices;

long shim_choices(void)
{
    return n_choices;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results, int *found)
{
    (void)handle, (void)preference;
    n_choices++;
    *found = 0;
    if (wanted < 1 || !supported(desc, a, b, c, d)) return CUBLAS_STATUS_NOT_SUPPORTED;
    *results = (cublasLtMatmulHeuristicResult_t){.state = CUBLAS_STATUS_SUCCESS};
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

static double *widen(const void *x, const struct shim_layout *l)
{
    double *wide = malloc((size_t)(l->rows * l->cols) * sizeof *wide);
    for (uint64_t j = 0; wide && j < l->cols; j++)
        for (uint64_t i = 0; i < l->rows; i++)
            wide[j * l->rows + i] = get(x, l->type, (int64_t)j * l->ld + (int64_t)i);
    return wide;
}

typedef struct product {
    struct shim_matmul desc;
    struct shim_layout a_layout, b_layout, d_layout;
    const void *a, *b;
    void *d;
    double factor, keep;
} product;

static bool run_product(void *argument)
{
    const product *p = argument;
    const struct shim_layout *to = &p->d_layout;
    const int64_t m = (int64_t)to->rows, n = (int64_t)to->cols;
    const int64_t k = (int64_t)(p->desc.trans_a ? p->a_layout.rows : p->a_layout.cols);
    shim_enter_device();
    double *x = widen(p->a, &p->a_layout), *y = widen(p->b, &p->b_layout);
    double *sums = malloc((size_t)(m * n) * sizeof *sums);
    if (!x || !y || !sums) abort();
    cblas_dgemm(CblasColMajor, p->desc.trans_a ? CblasTrans : CblasNoTrans,
                p->desc.trans_b ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, p->factor, x,
                (int)p->a_layout.rows, y, (int)p->b_layout.rows, 0, sums, (int)m);
    for (int64_t j = 0; j < n; j++)
        for (int64_t row = 0; row < m; row++) {
            int64_t at = j * to->ld + row;
            double old = p->keep != 0 ? p->keep * get(p->d, to->type, at) : 0;
            set(p->d, to->type, at, sums[j * m + row] + old);
        }
    shim_leave_device();
    free(x);
    free(y);
    free(sums);
    return true;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    (void)handle, (void)algo, (void)workspace, (void)workspace_bytes;
    if (!supported(desc, a_layout, b_layout, c_layout, d_layout) || (const void *)d != c)
        return CUBLAS_STATUS_INVALID_VALUE;
    const product p = {.desc = *desc,
                       .a_layout = *a_layout,
                       .b_layout = *b_layout,
                       .d_layout = *d_layout,
                       .a = a,
                       .b = b,
                       .d = d,
                       .factor = get(alpha, desc->scale, 0),
                       .keep = get(beta, desc->scale, 0)};
    shim_queue(stream, run_product, &p, sizeof p);
    return CUBLAS_STATUS_SUCCESS;
}
