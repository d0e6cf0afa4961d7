/* faiss - k-means by FAISS's C API. */
#include "faiss.h"

#include <faiss/c_api/Clustering_c.h>
#include <faiss/c_api/IndexFlat_c.h>
#include <faiss/c_api/error_c.h>
#include <string.h>

#include "error.h"

#define CHUNK 4096 /* vectors assigned at a time */

/* A call of the C API: 0, or a code whose text is FAISS's last error. */
#define TRY_FAISS(call)                                                                            \
    VQ_CHECK((call) == 0, VQ_EINTERNAL,                                                            \
             "k-means: FAISS failed: %s. Set kmeans.engine to vq, which does without it",          \
             faiss_get_last_error())

static vq_status assign(const FaissIndex *index, vq_tensor *idx, double *objective,
                        const vq_tensor *x)
{
    int64_t n = x->dim[0], D = x->dim[1];
    idx_t label[CHUNK];
    float distance[CHUNK];
    double sum = 0;
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t m = VQ_MIN(n - i, CHUNK);
        TRY_FAISS(faiss_Index_search(index, m, (const float *)x->data + i * D, 1, distance, label));
        for (int64_t j = 0; j < m; j++) {
            ((uint32_t *)idx->data)[i + j] = (uint32_t)label[j];
            sum += (double)distance[j];
        }
    }
    if (objective) *objective = sum;
    return VQ_OK;
}

static vq_status cluster(FaissClustering *clustering, FaissIndex *index, vq_tensor *codes,
                         vq_tensor *idx, double *objective, const vq_tensor *x)
{
    float *centroids;
    size_t n_floats;
    TRY_FAISS(faiss_Clustering_train(clustering, x->dim[0], x->data, index));
    faiss_Clustering_centroids(clustering, &centroids, &n_floats);
    VQ_ASSERT(n_floats == (size_t)vq_tensor_count(codes));
    memcpy(codes->data, centroids, vq_tensor_bytes(codes));
    return assign(index, idx, objective, x);
}

vq_status vq_faiss_kmeans(vq_tensor *codes, vq_tensor *idx, double *objective, const vq_tensor *x,
                          int iters, int seed, int max_points_per_centroid)
{
    int K, D;
    VQ_TRY(vq_int(codes->dim[0], "K", &K));
    VQ_TRY(vq_int(codes->dim[1], "D", &D));
    FaissClusteringParameters parameters;
    faiss_ClusteringParameters_init(&parameters);
    parameters.niter = iters;
    parameters.seed = seed;
    parameters.min_points_per_centroid = 1; /* no warning on FAISS's own stderr */
    parameters.max_points_per_centroid = max_points_per_centroid;

    FaissIndexFlatL2 *index = NULL;
    FaissClustering *clustering = NULL;
    TRY_FAISS(faiss_IndexFlatL2_new_with(&index, D));
    int failed = faiss_Clustering_new_with_params(&clustering, D, K, &parameters);
    vq_status status = failed ? vq_error_set(VQ_EINTERNAL, __FILE__, __LINE__,
                                             "k-means: FAISS refused K %d, D %d: %s. Lower K", K, D,
                                             faiss_get_last_error())
                              : cluster(clustering, index, codes, idx, objective, x);
    if (clustering) faiss_Clustering_free(clustering);
    faiss_IndexFlatL2_free(index);
    return status;
}
