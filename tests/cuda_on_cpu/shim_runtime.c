/* shim_runtime - the CUDA runtime's host functions: memory, streams, events.
 *
 * All is done at once but for copies from the host on a stream that is not the first, and what is
 * queued by shim_queue: these are done when somebody waits for them, so that who forgets to finds
 * other numbers. With SHIM_ONE_QUEUE in the environment they are done before the next kernel, as
 * where all streams go through one of the GPU's queues: what cannot come before that kernel has run
 * then never comes.
 *
 * Locked device memory is PROT_NONE except while a kernel or a copy runs. Fresh memory holds
 * NaNs; each allocation ends at a guard: whole pages, and under ASan the exact end. */
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

#define PAGE ((size_t)4096)
#define MAX_RANGES 256
#define TOTAL_BYTES ((size_t)8 << 30)

#define MAX_LATE 64
#define MAX_STREAMS 32

struct shim_stream {
    bool is_late;
    long queued, done; /* copies and functions */
    struct {
        void (*run)(void *argument); /* NULL: a copy */
        void *dst;                   /* or the argument */
        const void *src;
        size_t bytes;
    } late[MAX_LATE]; /* [done, queued), each at its number modulo MAX_LATE */
};

struct shim_event {
    double at_s;
    cudaStream_t stream; /* NULL: not recorded */
    long queued;         /* of what is late on the stream, before it */
};

/* Device memory that is mapped: an allocation, or a piece of reserved addresses. */
typedef struct range {
    char *base;
    size_t bytes;
} range;

static range ranges[MAX_RANGES];
static int n_ranges, depth = 1; /* of those that have entered; not locked: one for ever */
static bool locks;
static size_t used_bytes;

static void lock_all(int protection)
{
    for (int i = 0; i < n_ranges; i++)
        if (mprotect(ranges[i].base, ranges[i].bytes, protection) != 0) {
            perror("mprotect of device memory");
            abort();
        }
}

void shim_enter_device(void)
{
    if (depth++ == 0) lock_all(PROT_READ | PROT_WRITE);
}

void shim_leave_device(void)
{
    if (--depth == 0) lock_all(PROT_NONE);
}

void shim_lock_device(bool lock)
{
    if (lock == locks) return;
    locks = lock;
    if (lock)
        shim_leave_device();
    else
        shim_enter_device();
}

static bool on_device(const void *ptr, size_t bytes)
{
    const char *p = ptr;
    for (int i = 0; i < n_ranges; i++)
        if (p >= ranges[i].base && p < ranges[i].base + ranges[i].bytes)
            return bytes <= (size_t)(ranges[i].base + ranges[i].bytes - p);
    return false;
}

/* Adds a range, or makes the one that ends at base longer. */
static cudaError_t add_range(char *base, size_t bytes)
{
    if (used_bytes + bytes > TOTAL_BYTES) return cudaErrorMemoryAllocation;
    int i = 0;
    while (i < n_ranges && ranges[i].base + ranges[i].bytes != base) i++;
    if (i == MAX_RANGES) return cudaErrorMemoryAllocation;
    if (i == n_ranges) ranges[n_ranges++] = (range){.base = base};
    ranges[i].bytes += bytes;
    used_bytes += bytes;
    return cudaSuccess;
}

static void drop_range(char *base, size_t bytes)
{
    for (int i = 0; i < n_ranges; i++)
        if (ranges[i].base == base) {
            ranges[i].base += bytes;
            ranges[i].bytes -= bytes;
            used_bytes -= bytes;
            if (ranges[i].bytes == 0) ranges[i] = ranges[--n_ranges];
            return;
        }
    fprintf(stderr, "device memory at %p was given back, and was not allocated\n", (void *)base);
    abort();
}

/* --- memory ---------------------------------------------------------------------------------- */

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    *free_bytes = TOTAL_BYTES - used_bytes;
    *total_bytes = TOTAL_BYTES;
    return cudaSuccess;
}

static cudaError_t last_error; /* of cudaMalloc: kept until somebody asks for it */

cudaError_t cudaGetLastError(void)
{
    const cudaError_t code = last_error;
    last_error = cudaSuccess;
    return code;
}

/* One page before the memory holds its size; the page after it is never mapped. */
cudaError_t cudaMalloc(void **out, size_t bytes)
{
    if (bytes > TOTAL_BYTES) return last_error = cudaErrorMemoryAllocation;
    size_t pages = (bytes + PAGE - 1) / PAGE * PAGE + (bytes == 0 ? PAGE : 0);
    char *base = mmap(NULL, pages + 2 * PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return cudaErrorMemoryAllocation;
    memcpy(base, &pages, sizeof pages);
    memset(base + PAGE, 0xff, pages);
    cudaError_t code = add_range(base + PAGE, pages);
    if (code != cudaSuccess || mprotect(base + PAGE + pages, PAGE, PROT_NONE) != 0) {
        munmap(base, pages + 2 * PAGE);
        return cudaErrorMemoryAllocation;
    }
    ASAN_POISON_MEMORY_REGION(base + PAGE + bytes, pages - bytes);
    if (depth == 0 && mprotect(base + PAGE, pages, PROT_NONE) != 0) abort();
    *out = base + PAGE;
    return cudaSuccess;
}

cudaError_t cudaFree(void *ptr)
{
    if (!ptr) return cudaSuccess;
    size_t pages;
    char *base = (char *)ptr - PAGE;
    memcpy(&pages, base, sizeof pages);
    drop_range(ptr, pages);
    ASAN_UNPOISON_MEMORY_REGION(base, pages + 2 * PAGE);
    munmap(base, pages + 2 * PAGE);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned flags)
{
    (void)flags;
    *out = malloc(bytes);
    return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void *ptr)
{
    free(ptr);
    return cudaSuccess;
}

static bool kind_fits(const void *dst, size_t dst_bytes, const void *src, size_t src_bytes,
                      cudaMemcpyKind kind)
{
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    return kind == cudaMemcpyDefault ||
           (on_device(dst, dst_bytes) == to_device && on_device(src, src_bytes) == from_device);
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t stream)
{
    (void)stream;
    if (width == 0 || height == 0) return cudaSuccess;
    if (dst_pitch < width || src_pitch < width ||
        !kind_fits(dst, (height - 1) * dst_pitch + width, src, (height - 1) * src_pitch + width,
                   kind))
        return cudaErrorInvalidValue;
    shim_enter_device();
    for (size_t i = 0; i < height; i++)
        memmove((char *)dst + i * dst_pitch, (const char *)src + i * src_pitch, width);
    shim_leave_device();
    return cudaSuccess;
}

/* What is late on the stream, before number `until`. */
static void catch_up(cudaStream_t stream, long until)
{
    for (; stream && stream->done < until; stream->done++) {
        const int at = (int)(stream->done % MAX_LATE);
        if (stream->late[at].run) {
            stream->late[at].run(stream->late[at].dst);
            continue;
        }
        shim_enter_device();
        memcpy(stream->late[at].dst, stream->late[at].src, stream->late[at].bytes);
        shim_leave_device();
    }
}

static int next_late(cudaStream_t stream)
{
    catch_up(stream, stream->queued + 1 - MAX_LATE);
    return (int)(stream->queued++ % MAX_LATE);
}

void shim_queue(cudaStream_t stream, void (*run)(void *argument), void *argument)
{
    const int at = next_late(stream);
    stream->late[at].run = run;
    stream->late[at].dst = argument;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    if (stream && stream->is_late && kind == cudaMemcpyHostToDevice) {
        if (!kind_fits(dst, bytes, src, bytes, kind)) return cudaErrorInvalidValue;
        const int at = next_late(stream);
        stream->late[at].run = NULL;
        stream->late[at].dst = dst;
        stream->late[at].src = src;
        stream->late[at].bytes = bytes;
        return cudaSuccess;
    }
    return cudaMemcpy2DAsync(dst, bytes, src, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream)
{
    (void)stream;
    if (bytes == 0) return cudaSuccess;
    if (!on_device(dst, bytes)) return cudaErrorInvalidValue;
    shim_enter_device();
    memset(dst, value, bytes);
    shim_leave_device();
    return cudaSuccess;
}

/* --- the driver's mapping of reserved addresses ---------------------------------------------- */

static CUresult mem_reserve(CUdeviceptr *out, size_t bytes, size_t alignment, CUdeviceptr wanted,
                            unsigned long long flags)
{
    (void)alignment, (void)wanted, (void)flags;
    void *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    *out = (CUdeviceptr)(uintptr_t)base;
    return CUDA_SUCCESS;
}

static CUresult mem_address_free(CUdeviceptr at, size_t bytes)
{
    ASAN_UNPOISON_MEMORY_REGION((void *)(uintptr_t)at, bytes);
    munmap((void *)(uintptr_t)at, bytes);
    return CUDA_SUCCESS;
}

static CUresult mem_create(CUmemGenericAllocationHandle *handle, size_t bytes,
                           const CUmemAllocationProp *prop, unsigned long long flags)
{
    (void)prop, (void)flags;
    *handle = 1;
    return used_bytes + bytes > TOTAL_BYTES ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

static CUresult mem_release(CUmemGenericAllocationHandle handle)
{
    (void)handle;
    return CUDA_SUCCESS;
}

static CUresult mem_map(CUdeviceptr at, size_t bytes, size_t offset,
                        CUmemGenericAllocationHandle handle, unsigned long long flags)
{
    (void)offset, (void)handle, (void)flags;
    if (on_device((void *)(uintptr_t)at, 1)) return CUDA_ERROR_ALREADY_MAPPED;
    return add_range((char *)(uintptr_t)at, bytes) == cudaSuccess ? CUDA_SUCCESS
                                                                  : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult mem_unmap(CUdeviceptr at, size_t bytes)
{
    drop_range((char *)(uintptr_t)at, bytes);
    return CUDA_SUCCESS;
}

static bool allows_access = true;

void shim_allow_access(bool may)
{
    allows_access = may;
}

static CUresult mem_set_access(CUdeviceptr at, size_t bytes, const CUmemAccessDesc *access,
                               size_t count)
{
    (void)access, (void)count;
    if (!allows_access) return CUDA_ERROR_OUT_OF_MEMORY;
    if (mprotect((void *)(uintptr_t)at, bytes, PROT_READ | PROT_WRITE) != 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    ASAN_UNPOISON_MEMORY_REGION((void *)(uintptr_t)at, bytes);
    memset((void *)(uintptr_t)at, 0xff, bytes);
    ASAN_POISON_MEMORY_REGION((void *)(uintptr_t)at, bytes);
    if (depth == 0 && mprotect((void *)(uintptr_t)at, bytes, PROT_NONE) != 0) abort();
    return CUDA_SUCCESS;
}

static CUresult mem_granularity(size_t *bytes, const CUmemAllocationProp *prop,
                                CUmemAllocationGranularity_flags flags)
{
    (void)prop, (void)flags;
    *bytes = (size_t)2 << 20;
    return CUDA_SUCCESS;
}

static bool maps_memory = true;

void shim_map_memory(bool can)
{
    maps_memory = can;
}

static CUresult device_attribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    (void)attribute, (void)device;
    *value = maps_memory;
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult *result)
{
    (void)version, (void)flags;
    static const struct {
        const char *name;
        void (*function)(void);
    } known[] = {{"cuMemAddressReserve", (void (*)(void))mem_reserve},
                 {"cuMemAddressFree", (void (*)(void))mem_address_free},
                 {"cuMemCreate", (void (*)(void))mem_create},
                 {"cuMemRelease", (void (*)(void))mem_release},
                 {"cuMemMap", (void (*)(void))mem_map},
                 {"cuMemUnmap", (void (*)(void))mem_unmap},
                 {"cuMemSetAccess", (void (*)(void))mem_set_access},
                 {"cuMemGetAllocationGranularity", (void (*)(void))mem_granularity},
                 {"cuDeviceGetAttribute", (void (*)(void))device_attribute}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (strcmp(symbol, known[i].name) == 0) {
            memcpy(function, &known[i].function, sizeof *function);
            *result = cudaDriverEntryPointSuccess;
            return cudaSuccess;
        }
    *result = cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

/* --- device, streams, events ----------------------------------------------------------------- */

const char *cudaGetErrorString(cudaError_t code)
{
    switch (code) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNotReady: return "device not ready";
    }
    return "unknown error";
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device)
{
    if (device != 0) return cudaErrorInvalidDevice;
    *prop = (struct cudaDeviceProp){.name = "a CPU in place of a GPU",
                                    .totalGlobalMem = TOTAL_BYTES,
                                    .sharedMemPerBlockOptin = (size_t)163 << 10,
                                    .major = 8,
                                    .multiProcessorCount = 2};
    const pid_t own = getenv("SHIM_ONE_GPU") ? 0 : getpid(); /* else one for each process */
    memcpy(prop->uuid.bytes, &own, sizeof own);
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

static cudaStream_t streams[MAX_STREAMS];
static int n_streams;

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    (void)flags;
    *stream = n_streams < MAX_STREAMS ? calloc(1, sizeof **stream) : NULL;
    if (!*stream) return cudaErrorMemoryAllocation;
    (*stream)->is_late = n_streams > 0;
    streams[n_streams++] = *stream;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    int i = 0;
    catch_up(stream, stream->queued);
    while (streams[i] != stream) i++;
    streams[i] = streams[--n_streams];
    free(stream);
    return cudaSuccess;
}

void shim_before_kernel(void)
{
    static int has_one_queue = -1;
    if (has_one_queue < 0) has_one_queue = getenv("SHIM_ONE_QUEUE") != NULL;
    for (int i = 0; i < n_streams && has_one_queue; i++) catch_up(streams[i], streams[i]->queued);
}

static long n_waits;

long shim_waits(void)
{
    return n_waits;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    n_waits++;
    catch_up(stream, stream->queued);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    (void)stream, (void)flags;
    catch_up(event->stream, event->queued);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    (void)flags;
    *event = calloc(1, sizeof **event);
    return *event ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    event->stream = stream;
    event->queued = stream->queued;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    event->at_s = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    return cudaEventSynchronize(event);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    catch_up(event->stream, event->queued);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end)
{
    *ms = (float)(1e3 * (end->at_s - begin->at_s));
    return cudaSuccess;
}
