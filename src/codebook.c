/* codebook - fitting a layer's code table to its residual. */
#include "codebook.h"

#include <math.h>
#include <string.h>

#include "error.h"
#include "log.h"
#include "place.h"

int64_t vq_codebook_vectors(const vq_codebook_config *c, int64_t n_weights)
{
    return VQ_CEIL_DIV(n_weights, c->D);
}

int64_t vq_codebook_codes(const vq_codebook_config *c, int64_t n_weights)
{
    return VQ_MIN(c->K, vq_codebook_vectors(c, n_weights));
}

vq_dtype vq_codebook_idx_dtype(int64_t K)
{
    return K <= 65536 ? VQ_U16 : VQ_U32;
}

static size_t aligned(int64_t count, size_t size)
{
    return VQ_CEIL_DIV((size_t)count * size, VQ_ALIGN) * VQ_ALIGN;
}

size_t vq_codebook_scratch_bytes(const vq_codebook_config *c, int64_t n_weights)
{
    int64_t n_vec = vq_codebook_vectors(c, n_weights), K = vq_codebook_codes(c, n_weights);
    return aligned(n_vec * c->D, sizeof(float)) + aligned(n_vec, sizeof(uint32_t)) +
           vq_kmeans_scratch_bytes(&c->kmeans, n_vec, K, c->D);
}

vq_status vq_codebook_alloc(vq_codebook *cb, vq_arena *arena, const vq_codebook_config *c,
                            int64_t n_weights)
{
    VQ_ASSERT(c->K >= 1 && c->D >= 1 && n_weights >= 1);
    int64_t n_vec = vq_codebook_vectors(c, n_weights), K = vq_codebook_codes(c, n_weights);
    *cb = (vq_codebook){0};
    VQ_TRY(vq_tensor_new(arena, VQ_HOST, VQ_F32, VQ_DIMS(K, c->D), &cb->codes));
    VQ_TRY(vq_tensor_new(arena, VQ_HOST, VQ_U32, VQ_DIMS(K, c->D), &cb->counts));
    return vq_tensor_new(arena, VQ_HOST, vq_codebook_idx_dtype(K), VQ_DIMS(n_vec), &cb->idx);
}

/* h^-1(rest) = -ln(1.2 / (rest + 0.1) - 1) = ln((0.6 + t) / (0.6 - t)) with t = rest - 0.5: in this
 * form 0.5 gives 0 exactly, and the sign is that of t. */
static float logit(float rest)
{
    double t = (double)VQ_MAX(0.0f, VQ_MIN(rest, 1.0f)) - 0.5;
    return (float)log((0.6 + t) / (0.6 - t));
}

vq_status vq_codebook_logits(vq_tensor *logits, const vq_tensor *rest)
{
    int64_t n = vq_tensor_count(rest), padded = vq_tensor_count(logits);
    VQ_ASSERT(rest->dtype == VQ_F32 && logits->dtype == VQ_F32);
    VQ_ASSERT(n <= padded && padded - n < logits->dim[1]);
    const float *r = rest->data;
    float *a = logits->data;
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++) a[i] = logit(r[i]);
    for (int64_t i = n; i < padded; i++) a[i] = 0;
    return VQ_OK;
}

static int64_t index_at(const vq_tensor *idx, int64_t i)
{
    return idx->dtype == VQ_U16 ? ((const uint16_t *)idx->data)[i]
                                : ((const uint32_t *)idx->data)[i];
}

vq_status vq_codebook_count(vq_tensor *counts, const vq_tensor *idx, int64_t n_weights)
{
    int64_t K = counts->dim[0], D = counts->dim[1], n_vec = idx->dim[0];
    uint32_t *count = counts->data;
    VQ_ASSERT(idx->dtype == VQ_U16 || idx->dtype == VQ_U32);
    VQ_ASSERT(n_vec == VQ_CEIL_DIV(n_weights, D));
    memset(count, 0, vq_tensor_bytes(counts));
    for (int64_t i = 0; i < n_vec; i++) {
        const int64_t k = index_at(idx, i);
        VQ_ASSERT(k < K);
        count[k * D]++;
    }
    for (int64_t i = 0; i < K * D; i++) count[i] = count[i / D * D];
    for (int64_t p = n_weights; p < n_vec * D; p++) count[index_at(idx, n_vec - 1) * D + p % D]--;
    return VQ_OK;
}

/* Logits and indices in scratch, codes wherever on the host the caller has them. */
static vq_status fit(const vq_backend *be, vq_arena *scratch, vq_tensor *codes, vq_tensor *idx,
                     const vq_tensor *rest, const vq_tensor *start, const vq_kmeans_config *c,
                     vq_kmeans_result *result)
{
    int64_t D = codes->dim[1], n_vec = VQ_CEIL_DIV(vq_tensor_count(rest), D);
    vq_tensor logits, host;
    VQ_TRY(vq_place_host(be, scratch, rest, &host));
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_U32, VQ_DIMS(n_vec), idx));
    VQ_TRY(vq_tensor_new(scratch, VQ_HOST, VQ_F32, VQ_DIMS(n_vec, D), &logits));
    VQ_TRY(vq_codebook_logits(&logits, &host));
    return vq_kmeans(be, scratch, codes, idx, &logits, start, c, result);
}

vq_status vq_codebook_start(const vq_backend *be, vq_arena *scratch, vq_tensor *start,
                            const vq_tensor *rest, const vq_codebook_config *c)
{
    size_t mark = vq_arena_mark(scratch);
    vq_kmeans_config full = c->kmeans;
    full.faiss = false;
    full.min_gain = 0;
    vq_tensor idx;
    VQ_TRY(fit(be, scratch, start, &idx, rest, NULL, &full, NULL));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

vq_status vq_codebook_build(const vq_backend *be, vq_arena *scratch, vq_codebook *cb,
                            const vq_tensor *rest, const vq_tensor *start,
                            const vq_codebook_config *c)
{
    int64_t n_weights = vq_tensor_count(rest), K = vq_codebook_codes(c, n_weights);
    const char *name = rest->name ? rest->name : "a layer";
    VQ_ASSERT(cb->codes.dim[0] == K && cb->codes.dim[1] == c->D);
    if (K < c->K) {
        vq_log(VQ_LOG_INFO, "%s: %lld codes instead of K = %lld, one for each of its vectors", name,
               (long long)K, (long long)c->K);
        start = NULL;
    }

    size_t mark = vq_arena_mark(scratch);
    vq_codebook host;
    vq_tensor idx;
    VQ_TRY(vq_place_room(scratch, &cb->codes, &host.codes));
    VQ_TRY(vq_place_room(scratch, &cb->counts, &host.counts));
    VQ_TRY(vq_place_room(scratch, &cb->idx, &host.idx));
    vq_status status = fit(be, scratch, &host.codes, &idx, rest, start, &c->kmeans, &cb->fit);
    if (status != VQ_OK) return vq_error_context(status, "%s", name);
    if (cb->fit.patterns > K)
        vq_log(VQ_LOG_INFO, "%s: %lld codes for %lld patterns of signs: not all are kept", name,
               (long long)K, (long long)cb->fit.patterns);
    for (int64_t i = 0; i < idx.dim[0]; i++) {
        uint32_t k = ((const uint32_t *)idx.data)[i];
        if (host.idx.dtype == VQ_U16)
            ((uint16_t *)host.idx.data)[i] = (uint16_t)k;
        else
            ((uint32_t *)host.idx.data)[i] = k;
    }

    float *codes = host.codes.data;
    const float most = logit(1), factor = (float)(1 + c->sharpen);
    for (int64_t i = 0; i < K * c->D && c->sharpen > 0; i++)
        codes[i] = VQ_MAX(-most, VQ_MIN(codes[i] * factor, most));
    if (c->round_f16)
        for (int64_t i = 0; i < K * c->D; i++) codes[i] = vq_f16_to_f32(vq_f32_to_f16(codes[i]));
    VQ_TRY(vq_codebook_count(&host.counts, &host.idx, n_weights));
    VQ_TRY(vq_place_back(be, &host.codes, &cb->codes));
    VQ_TRY(vq_place_back(be, &host.counts, &cb->counts));
    VQ_TRY(vq_place_back(be, &host.idx, &cb->idx));
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}
