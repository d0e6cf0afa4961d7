/* cuda_backend - memory, stream and libraries of one GPU.
 *
 * Device arenas reserve addresses and map memory into them as they grow, as arenas do on the host:
 * the driver's functions for that are looked up at run time, so that nothing links the driver. */
#include "cuda_backend.h"

#include <cuda.h>
#include <stdio.h>
#include <string.h>

#include "cuda_ops.h"
#include "fileio.h"

/* What is mapped at once. Each piece can be given back alone. */
#define STEP_BYTES ((size_t)16 << 20)

/* Addresses of the host's arena. Only cuSOLVER knows how much of it it takes. */
#define HOST_BYTES ((size_t)1 << 30)

/* The oldest driver interface that has all functions below. */
#define DRIVER_VERSION 11020

/* --- errors ---------------------------------------------------------------------------------- */

/* "rmsnorm_fwd" of "vq_cuda_rmsnorm_fwd" */
static const char *op_name(const char *function)
{
    return strncmp(function, "vq_cuda_", 8) ? function : function + 8;
}

vq_status vq_cuda_check(cudaError_t code, const char *op, const char *call)
{
    if (code != cudaSuccess) (void)cudaGetLastError(); /* it is no later launch's */
    VQ_CHECK(
        code != cudaErrorMemoryAllocation, VQ_EMEM,
        "%s on the GPU: out of memory in %.60s. Lower seqlen or the batch, use more stages, or "
        "end what else runs on this GPU",
        op_name(op), call);
    VQ_CHECK(code == cudaSuccess, VQ_EPEER,
             "%s on the GPU: %s in %.60s: expected a working GPU. Look at nvidia-smi and the "
             "system's log, or run with --device cpu",
             op_name(op), cudaGetErrorString(code), call);
    return VQ_OK;
}

vq_status vq_cuda_check_blas(cublasStatus_t code, const char *op, const char *call)
{
    VQ_CHECK(code == CUBLAS_STATUS_SUCCESS, VQ_EPEER,
             "%s on the GPU: cuBLASLt says %s in %.60s: expected a product. Look whether the CUDA "
             "libraries fit the driver, or run with --device cpu",
             op_name(op), cublasGetStatusString(code), call);
    return VQ_OK;
}

vq_status vq_cuda_check_solver(cusolverStatus_t code, const char *op, const char *call)
{
    VQ_CHECK(code == CUSOLVER_STATUS_SUCCESS, VQ_EPEER,
             "%s on the GPU: cuSOLVER says %d in %.60s: expected a factorization. Look whether the "
             "CUDA libraries fit the driver, or run with --device cpu",
             op_name(op), (int)code, call);
    return VQ_OK;
}

/* --- device arenas --------------------------------------------------------------------------- */

typedef struct driver {
    CUresult (*reserve)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long);
    CUresult (*address_free)(CUdeviceptr, size_t);
    CUresult (*create)(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *,
                       unsigned long long);
    CUresult (*release)(CUmemGenericAllocationHandle);
    CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long);
    CUresult (*unmap)(CUdeviceptr, size_t);
    CUresult (*set_access)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t);
    CUresult (*granularity)(size_t *, const CUmemAllocationProp *,
                            CUmemAllocationGranularity_flags);
    CUresult (*attribute)(int *, CUdevice_attribute, CUdevice);
} driver;

/* The backend with what lies behind its arenas. */
typedef struct state {
    vq_cuda cuda;
    vq_pages pages;
    driver driver;
    size_t peak_bytes; /* of the device's memory, when it was last looked at */
} state;

/* A driver's function; toolkits older than 12.5 look for their own interface's. */
static cudaError_t find_function(const char *name, void **function,
                                 enum cudaDriverEntryPointQueryResult *found)
{
#if CUDART_VERSION >= 12050
    return cudaGetDriverEntryPointByVersion(name, function, DRIVER_VERSION, cudaEnableDefault,
                                            found);
#else
    return cudaGetDriverEntryPoint(name, function, cudaEnableDefault, found);
#endif
}

static vq_status find_driver(driver *d)
{
    const struct {
        const char *name;
        void *function;
    } wanted[] = {{"cuMemAddressReserve", &d->reserve},
                  {"cuMemAddressFree", &d->address_free},
                  {"cuMemCreate", &d->create},
                  {"cuMemRelease", &d->release},
                  {"cuMemMap", &d->map},
                  {"cuMemUnmap", &d->unmap},
                  {"cuMemSetAccess", &d->set_access},
                  {"cuMemGetAllocationGranularity", &d->granularity},
                  {"cuDeviceGetAttribute", &d->attribute}};
    for (int i = 0; i < VQ_COUNT(wanted); i++) {
        enum cudaDriverEntryPointQueryResult found;
        VQ_CUDA(find_function(wanted[i].name, (void **)wanted[i].function, &found));
        VQ_CHECK(found == cudaDriverEntryPointSuccess, VQ_EUNSUPPORTED,
                 "--device cuda: the driver has no %s: expected one of CUDA 12.0 or newer. Update "
                 "the driver, or run with --device cpu",
                 wanted[i].name);
    }
    return VQ_OK;
}

/* What pieces of a device's memory are. */
static CUmemAllocationProp piece_of(int device)
{
    return (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                 .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}};
}

/* Some virtual machines' GPUs (vGPU profiles, old WSL) have the functions and cannot do it. What a
 * piece must be a multiple of, the device says. */
static vq_status check_maps_memory(const driver *d, int device)
{
    const CUmemAllocationProp piece = piece_of(device);
    size_t multiple = 0;
    int maps = 0;
    const CUresult code =
        d->attribute(&maps, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device);
    VQ_CHECK(code == CUDA_SUCCESS && maps, VQ_EUNSUPPORTED,
             "--device cuda: GPU %d cannot map memory into reserved addresses: expected one that "
             "can, as all but some of virtual machines do. Ask for a whole GPU, or run with "
             "--device cpu",
             device);
    VQ_CHECK(
        d->granularity(&multiple, &piece, CU_MEM_ALLOC_GRANULARITY_MINIMUM) == CUDA_SUCCESS &&
            multiple > 0 && STEP_BYTES % multiple == 0,
        VQ_EUNSUPPORTED,
        "--device cuda: GPU %d maps multiples of %zu bytes: expected a divisor of %zu. Run with "
        "--device cpu, and please report it",
        device, multiple, STEP_BYTES);
    return VQ_OK;
}

static vq_status device_reserve(void *ctx, size_t bytes, void **base)
{
    const state *s = ctx;
    CUdeviceptr at;
    VQ_CHECK(s->driver.reserve(&at, bytes, 0, 0, 0) == CUDA_SUCCESS, VQ_EMEM,
             "%zu bytes of GPU addresses could not be reserved: expected a driver that maps "
             "memory. Run with --device cpu",
             bytes);
    *base = (void *)(uintptr_t)at; // NOLINT: what the driver calls a pointer
    return VQ_OK;
}

/* What is used of the device falls when pages are given back, and only then: so it is enough to
 * look before that, and when the peak is asked for. */
static cudaError_t look_at_memory(state *s)
{
    size_t free_bytes, total_bytes;
    const cudaError_t code = cudaMemGetInfo(&free_bytes, &total_bytes);
    if (code == cudaSuccess) s->peak_bytes = VQ_MAX(s->peak_bytes, total_bytes - free_bytes);
    return code;
}

static void device_give_back(void *ctx, void *from, size_t bytes)
{
    state *s = ctx;
    (void)cudaStreamSynchronize(s->cuda.stream); /* what is queued may use it */
    (void)look_at_memory(s);
    for (size_t done = 0; done < bytes; done += STEP_BYTES)
        (void)s->driver.unmap((CUdeviceptr)(uintptr_t)from + done, STEP_BYTES);
}

static vq_status device_commit(void *ctx, void *from, size_t bytes)
{
    const state *s = ctx;
    const CUmemAllocationProp prop = piece_of(s->cuda.device);
    const CUmemAccessDesc access = {.location = prop.location,
                                    .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    for (size_t done = 0; done < bytes; done += STEP_BYTES) {
        const CUdeviceptr at = (CUdeviceptr)(uintptr_t)from + done;
        CUmemGenericAllocationHandle piece;
        CUresult code = s->driver.create(&piece, STEP_BYTES, &prop, 0);
        if (code == CUDA_SUCCESS) {
            code = s->driver.map(at, STEP_BYTES, 0, piece, 0);
            (void)s->driver.release(piece); /* the mapping keeps it */
            const bool is_mapped = code == CUDA_SUCCESS;
            if (is_mapped) code = s->driver.set_access(at, STEP_BYTES, &access, 1);
            if (is_mapped && code != CUDA_SUCCESS) (void)s->driver.unmap(at, STEP_BYTES);
        }
        if (code == CUDA_SUCCESS) continue;
        if (done) device_give_back(ctx, from, done);
        VQ_FAIL(VQ_EMEM,
                "GPU %d refused %zu more bytes (CUDA driver error %d). Lower seqlen or the batch, "
                "use more stages, or end what else runs on this GPU",
                s->cuda.device, bytes, (int)code);
    }
    return VQ_OK;
}

static void device_release(void *ctx, void *base, size_t bytes)
{
    const state *s = ctx;
    (void)s->driver.address_free((CUdeviceptr)(uintptr_t)base, bytes);
}

vq_status vq_cuda_arena(const vq_backend *be, const char *name, vq_arena *arena)
{
    const state *s = be->ctx;
    size_t free_bytes, total_bytes;
    VQ_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
    return vq_arena_init_on(arena, &s->pages, name, total_bytes);
}

/* --- slots: memory --------------------------------------------------------------------------- */

static vq_status cuda_mem_info(void *ctx, size_t *free_bytes, size_t *total_bytes)
{
    (void)ctx;
    VQ_CUDA(cudaMemGetInfo(free_bytes, total_bytes));
    return VQ_OK;
}

static vq_status cuda_mem_peak(void *ctx, size_t *bytes)
{
    state *s = ctx;
    VQ_CUDA(look_at_memory(s));
    *bytes = s->peak_bytes;
    return VQ_OK;
}

static vq_status cuda_upload(void *ctx, void *dst, const void *src_host, size_t bytes)
{
    vq_cuda *cuda = ctx;
    return vq_cuda_send(cuda, cuda->stream, dst, src_host, bytes);
}

static vq_status cuda_download(void *ctx, void *dst_host, const void *src, size_t bytes)
{
    return vq_cuda_take(ctx, dst_host, src, bytes);
}

static vq_status cuda_copy(void *ctx, void *dst, size_t dst_pitch, const void *src,
                           size_t src_pitch, size_t row_bytes, size_t rows)
{
    vq_cuda *cuda = ctx;
    if (dst == src) return VQ_OK;
    if (rows == 1)
        VQ_CUDA(cudaMemcpyAsync(dst, src, row_bytes, cudaMemcpyDeviceToDevice, cuda->stream));
    else
        VQ_CUDA(cudaMemcpy2DAsync(dst, dst_pitch, src, src_pitch, row_bytes, rows,
                                  cudaMemcpyDeviceToDevice, cuda->stream));
    return VQ_OK;
}

static vq_status cuda_zero(void *ctx, void *dst, size_t bytes)
{
    vq_cuda *cuda = ctx;
    VQ_CUDA(cudaMemsetAsync(dst, 0, bytes, cuda->stream));
    return VQ_OK;
}

static vq_status cuda_sync(void *ctx)
{
    vq_cuda *cuda = ctx;
    return vq_cuda_settle(cuda);
}

vq_status vq_cuda_fetch(vq_cuda *cuda, void *dst_host, const void *src, size_t bytes)
{
    VQ_ASSERT(bytes <= VQ_CUDA_STAGING);
    VQ_CUDA(cudaMemcpyAsync(cuda->staging, src, bytes, cudaMemcpyDeviceToHost, cuda->stream));
    VQ_CUDA(cudaStreamSynchronize(cuda->stream));
    memcpy(dst_host, cuda->staging, bytes);
    return VQ_OK;
}

static const vq_ops cuda_ops = {
    .name = "cuda",
    .mem_info = cuda_mem_info,
    .mem_peak = cuda_mem_peak,
    .upload = cuda_upload,
    .bring = vq_cuda_bring_weight,
    .download = cuda_download,
    .copy = cuda_copy,
    .zero = cuda_zero,
    .sync = cuda_sync,
    .gemm = vq_cuda_gemm,
    .syrk = vq_cuda_syrk,
    .moments = vq_cuda_moments,
    .inverse_factor = vq_cuda_inverse_factor,
    .embed = vq_cuda_embed,
    .bias_add = vq_cuda_bias_add,
    .add = vq_cuda_add,
    .rmsnorm_fwd = vq_cuda_rmsnorm_fwd,
    .rmsnorm_bwd = vq_cuda_rmsnorm_bwd,
    .layernorm_fwd = vq_cuda_layernorm_fwd,
    .layernorm_bwd = vq_cuda_layernorm_bwd,
    .rope = vq_cuda_rope,
    .attention_fwd = vq_cuda_attention_fwd,
    .attention_bwd = vq_cuda_attention_bwd,
    .silu_gate_fwd = vq_cuda_silu_gate_fwd,
    .silu_gate_bwd = vq_cuda_silu_gate_bwd,
    .relu_fwd = vq_cuda_relu_fwd,
    .relu_bwd = vq_cuda_relu_bwd,
    .round_fwd = vq_cuda_round_fwd,
    .round_bwd = vq_cuda_round_bwd,
    .round_reg = vq_cuda_round_reg,
    .round_scale_fwd = vq_cuda_round_scale_fwd,
    .round_scale_bwd = vq_cuda_round_scale_bwd,
    .arrange = vq_cuda_arrange,
    .grid_minmax = vq_cuda_grid_minmax,
    .grid_search = vq_cuda_grid_search,
    .grid_split = vq_cuda_grid_split,
    .grid_round = vq_cuda_grid_round,
    .grid_value = vq_cuda_grid_value,
    .gptq_sweep = vq_cuda_gptq_sweep,
    .kmeans_assign = vq_cuda_kmeans_assign,
    .kmeans_update = vq_cuda_kmeans_update,
    .head_kd = vq_cuda_head_kd,
    .head_nll = vq_cuda_head_nll,
    .mse = vq_cuda_mse,
    .adam_step = vq_cuda_adam_step,
    .norm2 = vq_cuda_norm2,
};

/* --- opening --------------------------------------------------------------------------------- */

int vq_cuda_device_count(void)
{
    int n = 0;
    /* Without a driver this is an error of any kind, and the number is not set. */
    return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
}

vq_status vq_cuda_describe(int device, char *text, size_t size)
{
    struct cudaDeviceProp prop;
    VQ_CUDA(cudaGetDeviceProperties(&prop, device));
    snprintf(text, size, "%s, %.1f GiB, compute capability %d.%d", prop.name,
             (double)prop.totalGlobalMem / (1 << 30), prop.major, prop.minor);
    return VQ_OK;
}

vq_status vq_cuda_name(int device, uint64_t *name)
{
    struct cudaDeviceProp prop;
    VQ_CUDA(cudaGetDeviceProperties(&prop, device));
    *name = VQ_HASH_START;
    *name = vq_hash_bytes(*name, prop.uuid.bytes, sizeof prop.uuid.bytes);
    return VQ_OK;
}

static vq_status open_device(state *s)
{
    vq_cuda *cuda = &s->cuda;
    struct cudaDeviceProp prop;
    VQ_CUDA(cudaSetDevice(cuda->device));
    VQ_CUDA(cudaGetDeviceProperties(&prop, cuda->device));
    VQ_CHECK(prop.major >= 8, VQ_EUNSUPPORTED,
             "--device cuda: GPU %d is a %s of compute capability %d.%d, expected 8.0 or newer "
             "(A100, H100...). Use another GPU, or --device cpu",
             cuda->device, prop.name, prop.major, prop.minor);
    cuda->multiprocessors = prop.multiProcessorCount;
    cuda->shared_bytes = prop.sharedMemPerBlockOptin;
    VQ_TRY(find_driver(&s->driver));
    VQ_TRY(check_maps_memory(&s->driver, cuda->device));
    s->pages = (vq_pages){.ctx = s,
                          .step_bytes = STEP_BYTES,
                          .reserve = device_reserve,
                          .commit = device_commit,
                          .give_back = device_give_back,
                          .release = device_release};
    VQ_CUDA(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking));
    VQ_CUDA(cudaEventCreateWithFlags(&cuda->queued, cudaEventDisableTiming));
    VQ_TRY(vq_arena_init_on(&cuda->scratch, &s->pages, "GPU scratch", prop.totalGlobalMem));
    VQ_TRY(vq_arena_init_on(&cuda->slots, &s->pages, "GPU weights", prop.totalGlobalMem));
    VQ_TRY(vq_cuda_bring_open(cuda));
    VQ_CUDA(cudaMalloc(&cuda->workspace, VQ_CUDA_WORKSPACE + VQ_CUDA_LATER * sizeof(double)));
    cuda->totals = (double *)((uint8_t *)cuda->workspace + VQ_CUDA_WORKSPACE);
    VQ_CUDA(cudaHostAlloc(&cuda->staging, VQ_CUDA_STAGING, cudaHostAllocDefault));
    VQ_CUBLAS(cublasLtCreate(&cuda->blas));
    VQ_CUSOLVER(cusolverDnCreate(&cuda->solver));
    VQ_CUSOLVER(cusolverDnSetStream(cuda->solver, cuda->stream));
    return vq_cuda_gemm_open(cuda);
}

vq_status vq_cuda_open(vq_backend *be, int device, vq_dtype act)
{
    *be = (vq_backend){0};
    VQ_ASSERT(act == VQ_BF16 || act == VQ_F16 || act == VQ_F32);
    int n = vq_cuda_device_count();
    VQ_CHECK(n > 0, VQ_EUNSUPPORTED,
             "--device cuda: this process sees no GPU (%s): expected an NVIDIA GPU and its driver. "
             "Look at nvidia-smi and CUDA_VISIBLE_DEVICES, or run with --device cpu",
             cudaGetErrorString(cudaGetDeviceCount(&n)));
    VQ_CHECK(device >= 0 && device < n, VQ_EUNSUPPORTED,
             "--device cuda: GPU %d is wanted, this process sees %d: expected one for each rank of "
             "the node. Start fewer ranks a node",
             device, n);
    vq_arena memory;
    state *s = NULL;
    VQ_TRY(vq_arena_init(&memory, "GPU backend", HOST_BYTES));
    vq_status status = VQ_NEW(&memory, 1, &s);
    if (status != VQ_OK) {
        vq_arena_close(&memory);
        return status;
    }
    *s = (state){.cuda = {.device = device, .act = act, .memory = memory}};
    *be = (vq_backend){.ops = &cuda_ops, .ctx = s, .place = VQ_DEVICE, .act = act, .real = VQ_F32};
    status = open_device(s);
    if (status != VQ_OK) vq_cuda_close(be);
    return status;
}

void vq_cuda_close(vq_backend *be)
{
    if (!be->ctx) return;
    vq_cuda *cuda = &((state *)be->ctx)->cuda;
    if (cuda->stream) (void)cudaStreamSynchronize(cuda->stream);
    vq_cuda_gemm_close(cuda);
    vq_cuda_bring_close(cuda);
    if (cuda->solver) (void)cusolverDnDestroy(cuda->solver);
    if (cuda->blas) (void)cublasLtDestroy(cuda->blas);
    if (cuda->staging) (void)cudaFreeHost(cuda->staging);
    (void)cudaFree(cuda->workspace);
    vq_arena_close(&cuda->slots);
    vq_arena_close(&cuda->scratch);
    if (cuda->queued) (void)cudaEventDestroy(cuda->queued);
    if (cuda->stream) (void)cudaStreamDestroy(cuda->stream);
    vq_arena memory = cuda->memory;
    vq_arena_close(&memory);
    *be = (vq_backend){0};
}

vq_status vq_cuda_before(const vq_backend *be, void *stream)
{
    const vq_cuda *cuda = &((const state *)be->ctx)->cuda;
    VQ_CUDA(cudaEventRecord(cuda->queued, cuda->stream));
    VQ_CUDA(cudaStreamWaitEvent((cudaStream_t)stream, cuda->queued, 0));
    return VQ_OK;
}

void vq_cuda_trim(const vq_backend *be)
{
    vq_cuda *cuda = &((state *)be->ctx)->cuda;
    vq_arena_trim(&cuda->scratch);
    (void)vq_cuda_bring_trim(cuda); /* a lost device is seen by the next op */
}
