/* cpu_backend - the table of the CPU's slots, its memory slots, opening and closing. */
#include "cpu_real.h"

#include "cpu_backend.h"

#include <cblas.h>
#include <omp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "cpu_ops.h"
#include "error.h"
#include "memory.h"

/* Addresses, not memory: pages are taken as ops need them. */
#define SCRATCH_BYTES ((size_t)64 << 30)

static vq_status cpu_mem_info(void *ctx, size_t *free_bytes, size_t *total_bytes)
{
    (void)ctx;
    return vq_memory_info("", free_bytes, total_bytes);
}

static vq_status cpu_mem_peak(void *ctx, size_t *bytes)
{
    (void)ctx;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    *bytes = (size_t)usage.ru_maxrss << 10;
    return VQ_OK;
}

static vq_status cpu_move(void *ctx, void *dst, const void *src, size_t bytes)
{
    (void)ctx;
    if (bytes > 0) memmove(dst, src, bytes);
    return VQ_OK;
}

static vq_status cpu_copy(void *ctx, void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                          size_t row_bytes, size_t rows)
{
    for (size_t i = 0; i < rows; i++)
        VQ_TRY(cpu_move(ctx, (uint8_t *)dst + i * dst_pitch, (const uint8_t *)src + i * src_pitch,
                        row_bytes));
    return VQ_OK;
}

static vq_status cpu_bring(void *ctx, const void *src_host, size_t bytes, void **there)
{
    (void)ctx, (void)bytes;
    *there = (void *)(uintptr_t)src_host;
    return VQ_OK;
}

static vq_status cpu_zero(void *ctx, void *dst, size_t bytes)
{
    (void)ctx;
    if (bytes > 0) memset(dst, 0, bytes);
    return VQ_OK;
}

static vq_status cpu_sync(void *ctx)
{
    (void)ctx;
    return VQ_OK;
}

static const vq_ops cpu_ops = {
    .name = "cpu",
    .mem_info = cpu_mem_info,
    .mem_peak = cpu_mem_peak,
    .upload = cpu_move,
    .bring = cpu_bring,
    .download = cpu_move,
    .copy = cpu_copy,
    .zero = cpu_zero,
    .sync = cpu_sync,
    .gemm = vq_cpu_gemm,
    .syrk = vq_cpu_syrk,
    .moments = vq_cpu_moments,
    .inverse_factor = vq_cpu_inverse_factor,
    .embed = vq_cpu_embed,
    .bias_add = vq_cpu_bias_add,
    .add = vq_cpu_add,
    .rmsnorm_fwd = vq_cpu_rmsnorm_fwd,
    .rmsnorm_bwd = vq_cpu_rmsnorm_bwd,
    .layernorm_fwd = vq_cpu_layernorm_fwd,
    .layernorm_bwd = vq_cpu_layernorm_bwd,
    .rope = vq_cpu_rope,
    .attention_fwd = vq_cpu_attention_fwd,
    .attention_bwd = vq_cpu_attention_bwd,
    .silu_gate_fwd = vq_cpu_silu_gate_fwd,
    .silu_gate_bwd = vq_cpu_silu_gate_bwd,
    .relu_fwd = vq_cpu_relu_fwd,
    .relu_bwd = vq_cpu_relu_bwd,
    .round_fwd = vq_cpu_round_fwd,
    .round_bwd = vq_cpu_round_bwd,
    .round_reg = vq_cpu_round_reg,
    .round_scale_fwd = vq_cpu_round_scale_fwd,
    .round_scale_bwd = vq_cpu_round_scale_bwd,
    .arrange = vq_cpu_arrange,
    .grid_minmax = vq_cpu_grid_minmax,
    .grid_search = vq_cpu_grid_search,
    .grid_split = vq_cpu_grid_split,
    .grid_round = vq_cpu_grid_round,
    .grid_value = vq_cpu_grid_value,
    .gptq_sweep = vq_cpu_gptq_sweep,
    .kmeans_assign = vq_cpu_kmeans_assign,
    .kmeans_update = vq_cpu_kmeans_update,
    .head_kd = vq_cpu_head_kd,
    .head_nll = vq_cpu_head_nll,
    .mse = vq_cpu_mse,
    .adam_step = vq_cpu_adam_step,
    .norm2 = vq_cpu_norm2,
};

/* OpenBLAS takes a work buffer for each thread at that thread's first product and keeps it; where
 * it gets none it asks again for ever. So all buffers are taken here, after a look whether there is
 * room for them. */
#define BLAS_BUFFER_BYTES ((size_t)136 << 20) /* a little more than 128 MiB of addresses */
#define BLAS_SIDE 256 /* of a product that keeps its buffer until the others have theirs */

static vq_status take_blas_buffers(int n_threads, real *slabs)
{
    const size_t bytes = (size_t)n_threads * BLAS_BUFFER_BYTES;
    void *room = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    VQ_CHECK(room != MAP_FAILED, VQ_EMEM,
             "cpu: the system refused %zu bytes of addresses for the BLAS's work buffers, expected "
             "room for one of %zu a thread. Raise the limit (ulimit -d, ulimit -v), or lower "
             "--threads",
             bytes, BLAS_BUFFER_BYTES);
    munmap(room, bytes);
#pragma omp parallel num_threads(n_threads)
    {
        real *square = slabs + omp_get_thread_num() * VQ_CPU_SLAB;
        memset(square, 0, (size_t)(2 * BLAS_SIDE * BLAS_SIDE) * sizeof *square);
#pragma omp barrier
        vq_cpu_blas_gemm(false, false, BLAS_SIDE, BLAS_SIDE, BLAS_SIDE, 1, square, BLAS_SIDE,
                         square, BLAS_SIDE, 0, square + BLAS_SIDE * BLAS_SIDE, BLAS_SIDE);
    }
    return VQ_OK;
}

vq_status vq_cpu_open(vq_backend *be, int n_threads)
{
    int threads = n_threads > 0 ? n_threads : omp_get_num_procs();
    vq_arena arena;
    vq_cpu *cpu = NULL;
    VQ_TRY(vq_arena_init(&arena, "cpu scratch", SCRATCH_BYTES));
    vq_status status = VQ_NEW(&arena, 1, &cpu);
    real *slabs = NULL;
    if (status == VQ_OK) status = VQ_NEW(&arena, threads * VQ_CPU_SLAB, &slabs);
    openblas_set_num_threads(1);
    omp_set_num_threads(threads); /* of others' loops, which have no backend; BLAS sets it too */
    if (status == VQ_OK) status = take_blas_buffers(threads, slabs);
    if (status != VQ_OK) {
        vq_arena_close(&arena);
        return status;
    }
    *cpu = (vq_cpu){.scratch = arena, .slabs = slabs, .n_threads = threads};
    *be = (vq_backend){
        .ops = &cpu_ops, .ctx = cpu, .place = VQ_HOST, .act = VQ_REAL, .real = VQ_REAL};
    return VQ_OK;
}

void vq_cpu_close(vq_backend *be)
{
    if (!be->ctx) return;
    vq_arena arena = ((vq_cpu *)be->ctx)->scratch;
    vq_arena_close(&arena);
    *be = (vq_backend){0};
}

void vq_cpu_trim(const vq_backend *be)
{
    vq_arena_trim(&((vq_cpu *)be->ctx)->scratch);
}

size_t vq_cpu_scratch_peak(const vq_backend *be)
{
    return ((const vq_cpu *)be->ctx)->scratch.peak_bytes;
}

real *vq_cpu_slab(const vq_cpu *cpu)
{
    return cpu->slabs + omp_get_thread_num() * VQ_CPU_SLAB;
}

int vq_cpu_thread_count(const vq_backend *be)
{
    return ((const vq_cpu *)be->ctx)->n_threads;
}
