/* cusolverDn.h - stand-in for cuSOLVER's dense factorizations: column-major, LAPACK's. */
#pragma once
#include <cuda_runtime_api.h>
#include <library_types.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum cusolverStatus_t {
    CUSOLVER_STATUS_SUCCESS = 0,
    CUSOLVER_STATUS_ALLOC_FAILED = 2,
    CUSOLVER_STATUS_INVALID_VALUE = 3
} cusolverStatus_t;

typedef enum cublasFillMode_t {
    CUBLAS_FILL_MODE_LOWER = 0,
    CUBLAS_FILL_MODE_UPPER = 1
} cublasFillMode_t;
typedef enum cublasDiagType_t { CUBLAS_DIAG_NON_UNIT = 0, CUBLAS_DIAG_UNIT = 1 } cublasDiagType_t;

typedef struct shim_solver *cusolverDnHandle_t;
typedef struct shim_params *cusolverDnParams_t;

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t *handle);
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle);
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream);
cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t *params);
cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t params);

/* a [n, n] = L L^T or U^T U in place, f64. info on the device: 0, or the order of the first leading
 * minor that is not positive definite. */
cusolverStatus_t cusolverDnXpotrf_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                             cublasFillMode_t fill, int64_t n, cudaDataType type_a,
                                             const void *a, int64_t lda, cudaDataType compute,
                                             size_t *device_bytes, size_t *host_bytes);
cusolverStatus_t cusolverDnXpotrf(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                  cublasFillMode_t fill, int64_t n, cudaDataType type_a, void *a,
                                  int64_t lda, cudaDataType compute, void *device_work,
                                  size_t device_bytes, void *host_work, size_t host_bytes,
                                  int *info);

/* a's triangle becomes its inverse, f64. */
cusolverStatus_t cusolverDnXtrtri_bufferSize(cusolverDnHandle_t handle, cublasFillMode_t fill,
                                             cublasDiagType_t diag, int64_t n, cudaDataType type_a,
                                             void *a, int64_t lda, size_t *device_bytes,
                                             size_t *host_bytes);
cusolverStatus_t cusolverDnXtrtri(cusolverDnHandle_t handle, cublasFillMode_t fill,
                                  cublasDiagType_t diag, int64_t n, cudaDataType type_a, void *a,
                                  int64_t lda, void *device_work, size_t device_bytes,
                                  void *host_work, size_t host_bytes, int *info);

#ifdef __cplusplus
}
#endif
