/* shim_runtime - the CUDA runtime's host functions: memory, streams, events.
 *
 * A stream does what it is given when somebody waits for it, and then no more than that wait needs:
 * who forgets a wait finds other numbers. Under ASan, which knows what memory is in use when a
 * kernel is launched and not when it runs late, and with SHIM_AT_ONCE in the environment, streams
 * with kernels do all at once. With SHIM_ONE_QUEUE what is late is done before the next kernel is
 * launched, as where all streams go through one of the GPU's queues: what cannot come before that
 * kernel has run then never comes.
 *
 * Copies read and write pinned memory when they are done. From pageable memory they read when they
 * are queued, since CUDA stages it; into it they write when they are done, which CUDA allows
 * ("might be synchronous").
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
#define ALWAYS_AT_ONCE true
#else
#define ALWAYS_AT_ONCE false
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

#define PAGE ((size_t)4096)
#define MAX_RANGES 256
#define TOTAL_BYTES ((size_t)8 << 30)

#define MAX_STREAMS 32
#define POLL_NS 100000
#define LIMIT_POLLS (120 * 10000L) /* two minutes */

/* A stream's work up to its number `until`; all zero: nothing. */
typedef struct point {
    cudaStream_t stream;
    long until;
} point;

typedef struct task {
    struct task *next;
    bool (*run)(void *argument);
    point before; /* where run is NULL: to be done first */
    max_align_t argument[];
} task;

/* Its work is numbered by its life long, so that a point stays true when the stream is closed. */
struct shim_stream {
    bool is_open, has_kernels;
    long queued, done;
    task *first, *last; /* [done, queued) */
};

struct shim_event {
    point recorded;
};

/* Device memory that is mapped, an allocation or a piece of reserved addresses; or pinned memory.
 */
typedef struct range {
    char *base;
    size_t bytes;
} range;

static range ranges[MAX_RANGES], pinned[MAX_RANGES];
static int n_ranges, n_pinned, depth = 1; /* of those that have entered; not locked: one for ever */
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

static bool is_in(const range *r, int n, const void *ptr, size_t bytes)
{
    const char *p = ptr;
    for (int i = 0; i < n; i++)
        if (p >= r[i].base && p < r[i].base + r[i].bytes)
            return bytes <= (size_t)(r[i].base + r[i].bytes - p);
    return false;
}

static bool on_device(const void *ptr, size_t bytes)
{
    return is_in(ranges, n_ranges, ptr, bytes);
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

/* --- what streams are given ------------------------------------------------------------------ */

static struct shim_stream streams[MAX_STREAMS];
static long n_polls; /* since something was done */

static point end_of(cudaStream_t stream)
{
    return (point){stream, stream->queued};
}

static bool is_done(point p)
{
    return !p.stream || p.stream->done >= p.until;
}

/* Does what the point needs and nothing else. False: some of it cannot be done yet. */
static bool advance(point p)
{
    while (!is_done(p)) {
        task *t = p.stream->first;
        if (t->run ? !t->run(t->argument) : !advance(t->before)) return false;
        p.stream->first = t->next;
        p.stream->done++;
        n_polls = 0;
        free(t);
    }
    return true;
}

/* What all streams can do, since another process may wait for it; and gives time to that process.
 */
static void poll_all(void)
{
    const struct timespec pause = {0, POLL_NS};
    for (int i = 0; i < MAX_STREAMS; i++) (void)advance(end_of(&streams[i]));
    if (n_polls++ > LIMIT_POLLS) {
        fprintf(stderr, "the stand-in of CUDA: a stream waits for what no other process sends\n");
        abort();
    }
    nanosleep(&pause, NULL);
}

static void finish(point p)
{
    while (!advance(p)) poll_all();
}

static void finish_all(void)
{
    for (int i = 0; i < MAX_STREAMS; i++) finish(end_of(&streams[i]));
}

static bool has(const char *setting)
{
    return getenv(setting) != NULL;
}

static task *new_task(size_t bytes)
{
    task *t = calloc(1, sizeof *t + bytes);
    if (!t) abort();
    return t;
}

static void add_task(cudaStream_t stream, task *t)
{
    if (is_done(end_of(stream)))
        stream->first = t;
    else
        stream->last->next = t;
    stream->last = t;
    stream->queued++;
    if (stream->has_kernels && (ALWAYS_AT_ONCE || has("SHIM_AT_ONCE"))) finish(end_of(stream));
}

void shim_queue(cudaStream_t stream, bool (*run)(void *argument), const void *argument,
                size_t bytes)
{
    task *t = new_task(bytes);
    t->run = run;
    memcpy(t->argument, argument, bytes);
    add_task(stream, t);
}

void shim_before_kernel(cudaStream_t stream)
{
    stream->has_kernels = true;
    if (has("SHIM_ONE_QUEUE")) finish_all();
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
    finish_all();
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
    *out = n_pinned < MAX_RANGES ? malloc(bytes) : NULL;
    if (!*out) return cudaErrorMemoryAllocation;
    pinned[n_pinned++] = (range){*out, bytes};
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *ptr)
{
    int i = 0;
    while (i < n_pinned && pinned[i].base != ptr) i++;
    if (i == n_pinned) return cudaErrorInvalidValue;
    pinned[i] = pinned[--n_pinned];
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

typedef struct copy {
    void *dst;
    const void *src;
    void *staged; /* src where it is this task's own, else NULL */
    size_t dst_pitch, src_pitch, width, height;
} copy;

static bool run_copy(void *argument)
{
    const copy *c = argument;
    shim_enter_device();
    for (size_t i = 0; i < c->height; i++)
        memmove((char *)c->dst + i * c->dst_pitch, (const char *)c->src + i * c->src_pitch,
                c->width);
    shim_leave_device();
    free(c->staged);
    return true;
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t stream)
{
    if (width == 0 || height == 0) return cudaSuccess;
    const size_t src_bytes = (height - 1) * src_pitch + width;
    if (dst_pitch < width || src_pitch < width ||
        !kind_fits(dst, (height - 1) * dst_pitch + width, src, src_bytes, kind))
        return cudaErrorInvalidValue;
    copy c = {dst, src, NULL, dst_pitch, src_pitch, width, height};
    if (!on_device(src, src_bytes) && !is_in(pinned, n_pinned, src, src_bytes)) {
        c.src = c.staged = malloc(src_bytes);
        if (!c.staged) return cudaErrorMemoryAllocation;
        memcpy(c.staged, src, src_bytes);
    }
    shim_queue(stream, run_copy, &c, sizeof c);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    return cudaMemcpy2DAsync(dst, bytes, src, bytes, bytes, 1, kind, stream);
}

typedef struct fill {
    void *dst;
    int value;
    size_t bytes;
} fill;

static bool run_fill(void *argument)
{
    const fill *f = argument;
    shim_enter_device();
    memset(f->dst, f->value, f->bytes);
    shim_leave_device();
    return true;
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream)
{
    if (bytes == 0) return cudaSuccess;
    if (!on_device(dst, bytes)) return cudaErrorInvalidValue;
    shim_queue(stream, run_fill, &(fill){dst, value, bytes}, sizeof(fill));
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

/* Does not wait, as CUDA's: what is queued and uses this memory ends with SIGSEGV. */
static CUresult mem_unmap(CUdeviceptr at, size_t bytes)
{
    drop_range((char *)(uintptr_t)at, bytes);
    if (mprotect((void *)(uintptr_t)at, bytes, PROT_NONE) != 0) abort();
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
                                    .multiProcessorCount = 108};
    const pid_t own = getenv("SHIM_ONE_GPU") ? 0 : getpid(); /* else one for each process */
    memcpy(prop->uuid.bytes, &own, sizeof own);
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    (void)flags;
    for (int i = 0; i < MAX_STREAMS; i++)
        if (!streams[i].is_open && is_done(end_of(&streams[i]))) {
            *stream = &streams[i];
            (*stream)->is_open = true;
            (*stream)->has_kernels = false;
            return cudaSuccess;
        }
    return cudaErrorMemoryAllocation;
}

/* Does not wait, as CUDA's. */
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    stream->is_open = false;
    return cudaSuccess;
}

static long n_waits;

long shim_waits(void)
{
    return n_waits;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    n_waits++;
    finish(end_of(stream));
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    (void)flags;
    task *t = new_task(0);
    t->before = event->recorded;
    add_task(stream, t);
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
    event->recorded = end_of(stream);
    return cudaSuccess;
}

/* What nobody has waited for before is not ready when it is asked for first. */
cudaError_t cudaEventQuery(cudaEvent_t event)
{
    if (is_done(event->recorded)) return cudaSuccess;
    if (!advance(event->recorded)) poll_all();
    return cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    finish(event->recorded);
    return cudaSuccess;
}
