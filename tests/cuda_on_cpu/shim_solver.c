/* shim_solver - cuSOLVER's factorizations by LAPACK. */
#include <cusolverDn.h>
#include <stdlib.h>

#include "shim.h"

/* LAPACK's, in the OpenBLAS that the program links. */
void dpotrf_(const char *fill, const int *n, double *a, const int *lda, int *info);
void dtrtri_(const char *fill, const char *diag, const int *n, double *a, const int *lda,
             int *info);

struct shim_solver {
    cudaStream_t stream;
};

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t *handle)
{
    *handle = calloc(1, sizeof **handle);
    return *handle ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_ALLOC_FAILED;
}

cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle)
{
    free(handle);
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream)
{
    handle->stream = stream;
    return CUSOLVER_STATUS_SUCCESS;
}

struct shim_params {
    int unused;
};

cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t *params)
{
    *params = calloc(1, sizeof **params);
    return *params ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_ALLOC_FAILED;
}

cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t params)
{
    free(params);
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXpotrf_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                             cublasFillMode_t fill, int64_t n, cudaDataType type_a,
                                             const void *a, int64_t lda, cudaDataType compute,
                                             size_t *device_bytes, size_t *host_bytes)
{
    (void)handle, (void)params, (void)fill, (void)n, (void)type_a, (void)a, (void)lda,
        (void)compute;
    *device_bytes = *host_bytes = 64;
    return CUSOLVER_STATUS_SUCCESS;
}

typedef struct factor {
    char fill, diag;
    int n, ld;
    double *a;
    int *info;
} factor;

static bool run_potrf(void *argument)
{
    const factor *f = argument;
    shim_enter_device();
    dpotrf_(&f->fill, &f->n, f->a, &f->ld, f->info);
    shim_leave_device();
    return true;
}

static bool run_trtri(void *argument)
{
    const factor *f = argument;
    shim_enter_device();
    dtrtri_(&f->fill, &f->diag, &f->n, f->a, &f->ld, f->info);
    shim_leave_device();
    return true;
}

cusolverStatus_t cusolverDnXpotrf(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                  cublasFillMode_t fill, int64_t n, cudaDataType type_a, void *a,
                                  int64_t lda, cudaDataType compute, void *device_work,
                                  size_t device_bytes, void *host_work, size_t host_bytes,
                                  int *info)
{
    (void)device_work, (void)host_work;
    if (!params || type_a != CUDA_R_64F || compute != CUDA_R_64F || device_bytes < 64 ||
        host_bytes < 64)
        return CUSOLVER_STATUS_INVALID_VALUE;
    const factor f = {.fill = fill == CUBLAS_FILL_MODE_LOWER ? 'L' : 'U',
                      .n = (int)n,
                      .ld = (int)lda,
                      .a = a,
                      .info = info};
    shim_queue(handle->stream, run_potrf, &f, sizeof f);
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXtrtri_bufferSize(cusolverDnHandle_t handle, cublasFillMode_t fill,
                                             cublasDiagType_t diag, int64_t n, cudaDataType type_a,
                                             void *a, int64_t lda, size_t *device_bytes,
                                             size_t *host_bytes)
{
    (void)handle, (void)fill, (void)diag, (void)n, (void)type_a, (void)a, (void)lda;
    *device_bytes = *host_bytes = 64;
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnXtrtri(cusolverDnHandle_t handle, cublasFillMode_t fill,
                                  cublasDiagType_t diag, int64_t n, cudaDataType type_a, void *a,
                                  int64_t lda, void *device_work, size_t device_bytes,
                                  void *host_work, size_t host_bytes, int *info)
{
    (void)device_work, (void)host_work;
    if (type_a != CUDA_R_64F || device_bytes < 64 || host_bytes < 64)
        return CUSOLVER_STATUS_INVALID_VALUE;
    const factor f = {.fill = fill == CUBLAS_FILL_MODE_LOWER ? 'L' : 'U',
                      .diag = diag == CUBLAS_DIAG_NON_UNIT ? 'N' : 'U',
                      .n = (int)n,
                      .ld = (int)lda,
                      .a = a,
                      .info = info};
    shim_queue(handle->stream, run_trtri, &f, sizeof f);
    return CUSOLVER_STATUS_SUCCESS;
}
