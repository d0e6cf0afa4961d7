/* cuda_gemm - matrix products by cuBLASLt: row-major c = op(a) op(b) is its column-major
 * c^T = op(b)^T op(a)^T. Operands of half precision are multiplied as they are and summed in f32.
 *
 * Which of its algorithms runs is asked once for each shape and kept: asking costs more than a
 * small product, and the answer depends on the shape alone. An operand of another type than the
 * products' is converted into scratch before. */
#include <string.h>

#include "cuda_ops.h"

#define ENTRIES 1024 /* kept; a power of two. A job has some ten shapes a layer kind */

/* All that the choice depends on. No padding: compared as bytes. */
typedef struct key {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t trans_a, trans_b, type_ab, type_c;
    int32_t align_a, align_b, align_c, keeps_c; /* bytes that divide the addresses; beta != 0 */
} key;

typedef struct entry {
    key key; /* m = 0: free */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algo;
} entry;

struct vq_cuda_gemm_cache {
    entry entry[ENTRIES];
    int used;
    cublasLtMatmulPreference_t preference;
};

vq_status vq_cuda_gemm_open(vq_cuda *cuda)
{
    const uint64_t bytes = VQ_CUDA_WORKSPACE;
    /* A product that is cut along k is summed in f32, not in the type of c. */
    const uint32_t sums = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    VQ_TRY(VQ_NEW(&cuda->memory, 1, &cuda->gemm_cache));
    memset(cuda->gemm_cache, 0, sizeof *cuda->gemm_cache);
    VQ_CUBLAS(cublasLtMatmulPreferenceCreate(&cuda->gemm_cache->preference));
    VQ_CUBLAS(cublasLtMatmulPreferenceSetAttribute(cuda->gemm_cache->preference,
                                                   CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                                   sizeof bytes));
    VQ_CUBLAS(cublasLtMatmulPreferenceSetAttribute(cuda->gemm_cache->preference,
                                                   CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                   &sums, sizeof sums));
    return VQ_OK;
}

static void forget(entry *e)
{
    if (e->a) (void)cublasLtMatrixLayoutDestroy(e->a);
    if (e->b) (void)cublasLtMatrixLayoutDestroy(e->b);
    if (e->c) (void)cublasLtMatrixLayoutDestroy(e->c);
    if (e->desc) (void)cublasLtMatmulDescDestroy(e->desc);
    *e = (entry){0};
}

static void forget_all(vq_cuda_gemm_cache *cache)
{
    for (int i = 0; i < ENTRIES; i++) forget(&cache->entry[i]);
    cache->used = 0;
}

void vq_cuda_gemm_close(vq_cuda *cuda)
{
    if (!cuda->gemm_cache) return;
    forget_all(cuda->gemm_cache);
    if (cuda->gemm_cache->preference)
        (void)cublasLtMatmulPreferenceDestroy(cuda->gemm_cache->preference);
    cuda->gemm_cache = NULL;
}

static cudaDataType type_of(vq_dtype dtype)
{
    switch (dtype) {
    case VQ_F64: return CUDA_R_64F;
    case VQ_F32: return CUDA_R_32F;
    case VQ_F16: return CUDA_R_16F;
    default: return CUDA_R_16BF;
    }
}

/* The largest power of two that divides an address, of those that an arena promises: where a tensor
 * happens to lie beyond that must not choose the order of a sum. */
static int32_t align_of(const void *ptr)
{
    const uintptr_t at = (uintptr_t)ptr;
    return at % VQ_ALIGN ? (int32_t)(at & -at) : (int32_t)VQ_ALIGN;
}

static vq_status make_layout(int32_t type, int64_t rows, int64_t columns, int64_t ld,
                             cublasLtMatrixLayout_t *out)
{
    VQ_CUBLAS(
        cublasLtMatrixLayoutCreate(out, (cudaDataType)type, (uint64_t)rows, (uint64_t)columns, ld));
    return VQ_OK;
}

/* What cuBLASLt calls a is our b, and the other way round. */
static vq_status choose(vq_cuda *cuda, const key *k, entry *e)
{
    const bool wide = k->type_ab == CUDA_R_64F;
    const cublasOperation_t op_a = k->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                            op_b = k->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        uint32_t bytes;
    } align[] = {{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)k->align_b},
                 {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)k->align_a},
                 {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)k->align_c},
                 {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)k->align_c}};
    const cublasLtMatmulPreference_t preference = cuda->gemm_cache->preference;
    for (int i = 0; i < VQ_COUNT(align); i++)
        VQ_CUBLAS(cublasLtMatmulPreferenceSetAttribute(preference, align[i].name, &align[i].bytes,
                                                       sizeof align[i].bytes));
    VQ_CUBLAS(cublasLtMatmulDescCreate(&e->desc, wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                       wide ? CUDA_R_64F : CUDA_R_32F));
    VQ_CUBLAS(
        cublasLtMatmulDescSetAttribute(e->desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_b, sizeof op_b));
    VQ_CUBLAS(
        cublasLtMatmulDescSetAttribute(e->desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_a, sizeof op_a));
    VQ_TRY(
        make_layout(k->type_ab, k->trans_b ? k->k : k->n, k->trans_b ? k->n : k->k, k->ldb, &e->b));
    VQ_TRY(
        make_layout(k->type_ab, k->trans_a ? k->m : k->k, k->trans_a ? k->k : k->m, k->lda, &e->a));
    VQ_TRY(make_layout(k->type_c, k->n, k->m, k->ldc, &e->c));
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    VQ_CUBLAS(cublasLtMatmulAlgoGetHeuristic(cuda->blas, e->desc, e->b, e->a, e->c, e->c,
                                             preference, 1, &result, &found));
    VQ_CHECK(found == 1 && result.state == CUBLAS_STATUS_SUCCESS, VQ_EUNSUPPORTED,
             "gemm on the GPU: cuBLASLt has no product [%lld, %lld] x [%lld, %lld] (types %d, %d): "
             "expected one. Run with --device cpu, and please report it",
             (long long)k->m, (long long)k->k, (long long)k->k, (long long)k->n, k->type_ab,
             k->type_c);
    e->algo = result.algo;
    return VQ_OK;
}

static uint64_t hash_of(const key *k)
{
    uint64_t words[sizeof *k / sizeof(uint64_t)], hash = 0;
    memcpy(words, k, sizeof *k);
    for (int i = 0; i < VQ_COUNT(words); i++) {
        hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    return hash;
}

static vq_status find(vq_cuda *cuda, const key *k, entry **out)
{
    vq_cuda_gemm_cache *cache = cuda->gemm_cache;
    uint64_t at = hash_of(k) % ENTRIES;
    while (cache->entry[at].key.m && memcmp(&cache->entry[at].key, k, sizeof *k) != 0)
        at = (at + 1) % ENTRIES;
    *out = &cache->entry[at];
    if ((*out)->key.m) return VQ_OK;
    if (cache->used == ENTRIES / 2) {
        forget_all(cache);
        *out = &cache->entry[hash_of(k) % ENTRIES];
    }
    vq_status status = choose(cuda, k, *out);
    if (status != VQ_OK) {
        forget(*out);
        return status;
    }
    (*out)->key = *k;
    cache->used++;
    return VQ_OK;
}

/* x, or a copy of it in `type`. */
static vq_status as_type(vq_cuda *cuda, const vq_tensor *x, vq_dtype type, vq_tensor *out)
{
    *out = *x;
    if (x->dtype == type) return VQ_OK;
    /* With gaps: their elements are converted too, but for those after the last row. */
    const int64_t n = (x->dim[0] - 1) * x->stride[0] + x->dim[1];
    out->dtype = type;
    VQ_TRY(vq_arena_array(&cuda->scratch, n, vq_dtype_bytes(type), &out->data));
    return vq_cuda_convert(cuda, out->data, type, x->data, x->dtype, n);
}

vq_status vq_cuda_gemm(void *ctx, vq_tensor *c, const vq_tensor *a, bool trans_a,
                       const vq_tensor *b, bool trans_b, double alpha, double beta)
{
    vq_cuda *cuda = ctx;
    const int64_t m = c->dim[0], n = c->dim[1], k = a->dim[trans_a ? 0 : 1];
    if (m == 0 || n == 0) return VQ_OK;
    /* cuBLASLt gives c in the operands' type, or halves' products in f32. */
    const bool fit = a->dtype == b->dtype &&
                     (a->dtype == c->dtype || (c->dtype == VQ_F32 && a->dtype != VQ_F64));
    const vq_dtype type = fit ? a->dtype : c->dtype == VQ_F32 ? cuda->act : c->dtype;
    vq_tensor x, y;
    size_t mark = vq_arena_mark(&cuda->scratch);
    VQ_TRY(as_type(cuda, a, type, &x));
    VQ_TRY(as_type(cuda, b, type, &y));
    const key wanted = {.m = m,
                        .n = n,
                        .k = k,
                        .lda = VQ_MAX(x.stride[0], x.dim[1]),
                        .ldb = VQ_MAX(y.stride[0], y.dim[1]),
                        .ldc = VQ_MAX(c->stride[0], n),
                        .trans_a = trans_a,
                        .trans_b = trans_b,
                        .type_ab = type_of(type),
                        .type_c = type_of(c->dtype),
                        .align_a = align_of(x.data),
                        .align_b = align_of(y.data),
                        .align_c = align_of(c->data),
                        .keeps_c = beta != 0};
    entry *e = NULL;
    VQ_TRY(find(cuda, &wanted, &e));
    const float alpha_f32 = (float)alpha, beta_f32 = (float)beta;
    const bool wide = type == VQ_F64;
    VQ_CUBLAS(cublasLtMatmul(
        cuda->blas, e->desc, wide ? (const void *)&alpha : (const void *)&alpha_f32, y.data, e->b,
        x.data, e->a, wide ? (const void *)&beta : (const void *)&beta_f32, c->data, e->c, c->data,
        e->c, &e->algo, cuda->workspace, VQ_CUDA_WORKSPACE, cuda->stream));
    vq_arena_reset(&cuda->scratch, mark);
    return VQ_OK;
}
