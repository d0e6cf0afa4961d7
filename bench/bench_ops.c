/* bench_ops - what each op of a backend costs, beside what the machine can do.
 *
 * usage: bench_ops [--device cpu|cuda] [--threads N] [--seconds S] [--only NAME]
 * A row: op and size, median, least and greatest time, GFLOP/s or GB/s, and the share of the
 * ceiling that was measured at the start of the same run. On the CPU: threads times the peak of
 * one-threaded sgemm for products, y += x over arrays that no cache holds for the rest. On a GPU
 * (GPU 0, bf16, with rows of a 7B model's sizes): a large product in bf16, one in f32 for what is
 * computed in f32, the same y += x. There a time is the mean of runs that are queued one after the
 * other for 2 ms or more; ops that give a number to the host wait for it in every run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "cpu_backend.h"
#include "cpu_ops.h"
#include "cuda_module.h"
#include "log.h"
#include "op_cases.h"

#define SMOL_K 4096 /* SmolLM2-135M: E 576, F 1536, H 9, G 3, V 49152 */

/* What an op is bound by. */
typedef enum bound { PRODUCTS, PRODUCTS_F32, MEMORY } bound;

typedef struct bench_case {
    op_case op;
    const char *note;
    bound by;
    double acts, bytes; /* read and written: elements of act's type, and other bytes */
} bench_case;

#define BY_PRODUCTS PRODUCTS, 0, 0
#define BY_F32 PRODUCTS_F32, 0, 0
#define BY_MEMORY(acts, bytes) MEMORY, acts, bytes

/* round_fwd and round_bwd at 3 bits: w or dw, base, and idx for 8 weights. */
#define ROUND(out, in) BY_MEMORY((double)(out) * (in), (double)(out) * (in) * (0.5 + 2.0 / 8))

static const bench_case CASES[] = {
    {{&OP_GEMM, {512, 1536, 576, 0, 1, VQ_F32}}, "up, forward", BY_PRODUCTS},
    {{&OP_GEMM, {512, 1536, 576, 0, 1, VQ_F16}}, "up, forward, f16", BY_PRODUCTS},
    {{&OP_GEMM, {512, 576, 576, 0, 1, VQ_F32}}, "q, forward", BY_PRODUCTS},
    {{&OP_GEMM, {512, 192, 576, 0, 1, VQ_F32}}, "k, forward", BY_PRODUCTS},
    {{&OP_GEMM, {512, 576, 1536, 0, 0, VQ_F32}}, "up, dx", BY_PRODUCTS},
    {{&OP_GEMM, {1536, 576, 512, 1, 0, VQ_F32}}, "up, dW", BY_PRODUCTS},
    {{&OP_GEMM, {576, 576, 512, 1, 0, VQ_F32}}, "q, dW", BY_PRODUCTS},
    {{&OP_GEMM, {512, 11008, 4096, 0, 1, VQ_F16}}, "7B up, forward, f16", BY_PRODUCTS},
    {{&OP_GEMM, {512, 4096, 11008, 0, 0, VQ_F32}}, "7B up, dx", BY_PRODUCTS},
    {{&OP_ATTENTION_FWD, {1, 512, 512, 9, 3, 64}}, "", BY_PRODUCTS},
    {{&OP_ATTENTION_BWD, {1, 512, 512, 9, 3, 64}}, "", BY_PRODUCTS},
    {{&OP_ATTENTION_FWD, {1, 2048, 2048, 32, 32, 128}}, "7B", BY_PRODUCTS},
    {{&OP_ATTENTION_BWD, {1, 2048, 2048, 32, 32, 128}}, "7B", BY_PRODUCTS},
    {{&OP_HEAD_KD, {512, 576, 49152, VQ_F16, 0}}, "", BY_PRODUCTS},
    {{&OP_HEAD_NLL, {512, 576, 49152, VQ_F16}}, "", BY_PRODUCTS},
    {{&OP_ROUND_FWD, {1536, 576, SMOL_K, 8, 3, 576, VQ_U16, 0}}, "", ROUND(1536, 576)},
    {{&OP_ROUND_BWD, {1536, 576, SMOL_K, 8, 3, 576, VQ_U16}}, "", ROUND(1536, 576)},
    {{&OP_ROUND_FWD, {11008, 4096, SMOL_K, 8, 3, 4096, VQ_U16, 0}}, "7B", ROUND(11008, 4096)},
    {{&OP_ROUND_BWD, {11008, 4096, SMOL_K, 8, 3, 4096, VQ_U16}}, "7B", ROUND(11008, 4096)},
    {{&OP_ROUND_REG, {SMOL_K, 8}}, "", BY_MEMORY(0, SMOL_K * 8 * 16.0)},
    {{&OP_ROUND_SCALE_BWD, {1536, 576, SMOL_K, 8, 3, 576, VQ_U16}}, "", ROUND(1536, 576)},
    {{&OP_ARRANGE, {11008, 4096, 0, VQ_F32, 0}}, "7B", BY_MEMORY(2.0 * 11008 * 4096, 0)},
    {{&OP_ARRANGE, {11008, 4096, 0, VQ_F32, 1}}, "7B, back", BY_MEMORY(2.0 * 11008 * 4096, 0)},
    {{&OP_GRID_MINMAX, {1536, 576, 3, 576, VQ_BF16, 0, 1, VQ_F32}},
     "",
     BY_MEMORY(0, 1536 * 576 * 2.0)},
    {{&OP_GRID_SPLIT, {1536, 576, 3, 576, VQ_BF16}}, "", BY_MEMORY(0, 1536 * 576 * 6.5)},
    {{&OP_GRID_SEARCH, {1536, 576, 3, 576, 0, VQ_BF16, VQ_BF16, 0}}, "", BY_F32},
    {{&OP_GRID_SEARCH, {1536, 576, 3, 576, 0, VQ_BF16, VQ_BF16, 1}}, "by inputs", BY_F32},
    {{&OP_GRID_SEARCH, {1536, 576, 3, 64, 0, VQ_BF16, VQ_BF16, 0}}, "groups of 64", BY_F32},
    {{&OP_KMEANS_ASSIGN, {110592, SMOL_K, 8}}, "up", BY_F32},
    {{&OP_KMEANS_UPDATE, {110592, SMOL_K, 8}}, "up", BY_MEMORY(0, 110592 * 36.0)},
    {{&OP_KMEANS_ASSIGN, {110592, SMOL_K, 8, 256}}, "up, by signs", BY_F32},
    {{&OP_KMEANS_UPDATE, {110592, SMOL_K, 8, 256}}, "up, by signs", BY_MEMORY(0, 110592 * 36.0)},
    {{&OP_SYRK, {512, 1536}}, "down", BY_PRODUCTS},
    {{&OP_MOMENTS, {512, 1536}}, "down", BY_MEMORY(512 * 1536, 0)},
    {{&OP_INVERSE_FACTOR, {1536, 0}}, "down, f64", BY_F32},
    {{&OP_GPTQ_SWEEP, {576, 1536, 3, 1536, VQ_BF16, 128, 0, 0}}, "down", BY_F32},
    {{&OP_MSE, {512, 576}}, "", BY_MEMORY(3 * 512 * 576, 0)},
    {{&OP_ADAM, {210 * SMOL_K * 8}}, "all codebooks", BY_MEMORY(0, 210 * SMOL_K * 8 * 28.0)},
    {{&OP_NORM2, {210 * SMOL_K * 8}}, "all codebooks", BY_MEMORY(0, 210 * SMOL_K * 8 * 4.0)},
    {{&OP_RMSNORM_FWD, {512, 576, VQ_F32}}, "", BY_MEMORY(2 * 512 * 576, 0)},
    {{&OP_RMSNORM_BWD, {512, 576, VQ_F32, 0, 1}}, "", BY_MEMORY(4 * 512 * 576, 0)},
    {{&OP_LAYERNORM_FWD, {512, 4096, VQ_F32, 1}}, "", BY_MEMORY(2 * 512 * 4096, 0)},
    {{&OP_ROPE, {1, 512, 9, 64, 0, 0}}, "", BY_MEMORY(2 * 512 * 576, 0)},
    {{&OP_SILU_GATE_FWD, {512, 1536}}, "", BY_MEMORY(3 * 512 * 1536, 0)},
    {{&OP_SILU_GATE_BWD, {512, 1536}}, "", BY_MEMORY(5 * 512 * 1536, 0)},
    {{&OP_EMBED, {512, 49152, 576, VQ_F16}}, "", BY_MEMORY(512 * 576, 512 * 576 * 2.0)},
};

/* LLaMA-7B, a step of 2,048 tokens, and its init: E 4096, F 11008, H 32, V 32000, 224 linears. A
 * CPU would take minutes. */
#define TOKENS 2048
#define VECTORS (256 * SMOL_K) /* that k-means samples */
#define POOL (224 * SMOL_K * 8)

static const bench_case GPU_CASES[] = {
    {{&OP_GEMM, {TOKENS, 4096, 4096, 0, 1, VQ_F32}}, "7B q, forward", BY_PRODUCTS},
    {{&OP_GEMM, {TOKENS, 11008, 4096, 0, 1, VQ_F32}}, "7B up, forward", BY_PRODUCTS},
    {{&OP_GEMM, {TOKENS, 4096, 11008, 0, 0, VQ_F32}}, "7B up, dx", BY_PRODUCTS},
    {{&OP_GEMM, {11008, 4096, TOKENS, 1, 0, VQ_F32}}, "7B up, dW", BY_PRODUCTS},
    {{&OP_GEMM, {TOKENS, 4096, 11008, 0, 1, VQ_F32}}, "7B down, forward", BY_PRODUCTS},
    {{&OP_HEAD_KD, {TOKENS, 4096, 32000, VQ_BF16, 0}}, "7B", BY_PRODUCTS},
    {{&OP_HEAD_NLL, {TOKENS, 4096, 32000, VQ_BF16}}, "7B", BY_PRODUCTS},
    {{&OP_ROUND_FWD, {4096, 4096, SMOL_K, 8, 3, 4096, VQ_U16, 0}}, "7B q", ROUND(4096, 4096)},
    {{&OP_ROUND_BWD, {4096, 4096, SMOL_K, 8, 3, 4096, VQ_U16}}, "7B q", ROUND(4096, 4096)},
    {{&OP_ROUND_FWD, {4096, 4096, SMOL_K, 4, 3, 4096, VQ_U16, 0}},
     "7B q, D 4",
     BY_MEMORY(4096 * 4096, 4096 * 4096)},
    {{&OP_ROUND_BWD, {4096, 4096, SMOL_K, 4, 3, 4096, VQ_U16}},
     "7B q, D 4",
     BY_MEMORY(4096 * 4096, 4096 * 4096)},
    {{&OP_ROUND_FWD, {11008, 4096, 0, 8, 3, 4096, VQ_U16, 0}},
     "7B, own codes",
     BY_MEMORY(11008 * 4096, 11008 * 4096 * 4.5)},
    {{&OP_ROUND_BWD, {11008, 4096, 0, 8, 3, 4096, VQ_U16}},
     "7B, own codes",
     BY_MEMORY(11008 * 4096, 11008 * 4096 * 12.5)},
    {{&OP_ROUND_BWD, {11008, 4096, 65536, 8, 3, 4096, VQ_U32}},
     "7B, 65,536 codes",
     BY_MEMORY(11008 * 4096, 11008 * 4096 * 1.0)},
    {{&OP_ROUND_SCALE_BWD, {11008, 4096, SMOL_K, 8, 3, 4096, VQ_U16}}, "7B", ROUND(11008, 4096)},
    {{&OP_RMSNORM_FWD, {TOKENS, 4096, VQ_F32}}, "7B", BY_MEMORY(2 * TOKENS * 4096, 0)},
    {{&OP_RMSNORM_BWD, {TOKENS, 4096, VQ_F32, 0, 1}}, "7B", BY_MEMORY(4 * TOKENS * 4096, 0)},
    {{&OP_ROPE, {1, TOKENS, 32, 128, 0, 0}}, "7B", BY_MEMORY(2 * TOKENS * 4096, 0)},
    {{&OP_SILU_GATE_FWD, {TOKENS, 11008}}, "7B", BY_MEMORY(3 * TOKENS * 11008, 0)},
    {{&OP_SILU_GATE_BWD, {TOKENS, 11008}}, "7B", BY_MEMORY(5 * TOKENS * 11008, 0)},
    {{&OP_MSE, {TOKENS, 4096}}, "7B", BY_MEMORY(3 * TOKENS * 4096, 0)},
    {{&OP_ADAM, {POOL}}, "7B, all codebooks", BY_MEMORY(0, POOL * 28.0)},
    {{&OP_NORM2, {POOL}}, "7B, all codebooks", BY_MEMORY(0, POOL * 4.0)},
    {{&OP_GRID_MINMAX, {11008, 4096, 3, 128, VQ_BF16, 0, 1, VQ_F32}},
     "7B",
     BY_MEMORY(0, 11008 * 4096 * 2.0)},
    {{&OP_GRID_SPLIT, {11008, 4096, 3, 4096, VQ_BF16}}, "7B", BY_MEMORY(0, 11008 * 4096 * 6.5)},
    {{&OP_GRID_SEARCH, {11008, 4096, 3, 128, 0, VQ_BF16, VQ_BF16, 0}}, "7B", BY_F32},
    {{&OP_KMEANS_ASSIGN, {VECTORS, SMOL_K, 8}}, "7B, an iteration", BY_F32},
    {{&OP_KMEANS_UPDATE, {VECTORS, SMOL_K, 8}}, "7B", BY_MEMORY(0, VECTORS * 36.0)},
    {{&OP_KMEANS_ASSIGN, {VECTORS, SMOL_K, 8, 256}}, "7B, by signs", BY_MEMORY(0, VECTORS * 36.0)},
    {{&OP_KMEANS_UPDATE, {VECTORS, SMOL_K, 8, 256}}, "7B, by signs", BY_MEMORY(0, VECTORS * 36.0)},
    {{&OP_SYRK, {TOKENS, 4096}}, "7B q", BY_PRODUCTS},
    {{&OP_SYRK, {TOKENS, 11008}}, "7B down", BY_PRODUCTS},
    {{&OP_MOMENTS, {TOKENS, 11008}}, "7B down", BY_MEMORY(TOKENS * 11008, 0)},
    {{&OP_INVERSE_FACTOR, {4096, 0}}, "7B q, f64", BY_F32},
    {{&OP_INVERSE_FACTOR, {11008, 0}}, "7B down, f64", BY_F32},
    {{&OP_GPTQ_SWEEP, {4096, 4096, 3, 4096, VQ_BF16, 128, 0, 0}}, "7B q", BY_F32},
    {{&OP_GPTQ_SWEEP, {4096, 11008, 3, 128, VQ_BF16, 128, 0, 0}}, "7B down, groups", BY_F32},
};

/* What the machine can do: FLOP/s by bound, bytes/s. */
typedef struct peaks {
    double by[3];
} peaks;

/* One-threaded sgemm at its best size, in FLOP/s. */
static vq_status sgemm_peak(vq_arena *arena, double *out)
{
    enum { N = 1024 };
    float *m[3];
    size_t mark = vq_arena_mark(arena);
    for (int i = 0; i < 3; i++) {
        VQ_TRY(VQ_NEW(arena, N * N, &m[i]));
        memset(m[i], 0, N * N * sizeof *m[i]);
    }
    double best = INFINITY;
    for (int i = 0; i < 10; i++) {
        double start = vq_seconds();
        vq_cpu_blas_gemm(false, false, N, N, N, 1, m[0], N, m[1], N, 0, m[2], N);
        best = fmin(best, vq_seconds() - start);
    }
    *out = 2.0 * N * N * N / best;
    vq_arena_reset(arena, mark);
    return VQ_OK;
}

/* Seconds of one run, of `repeats` that are queued one after the other. */
static vq_status time_of(const vq_backend *be, const op_case *c, op_args *a, int64_t repeats,
                         double *seconds)
{
    const double start = vq_seconds();
    for (int64_t i = 0; i < repeats; i++) VQ_TRY(c->kind->run(be, c->size, a));
    VQ_TRY(vq_sync(be));
    *seconds = (vq_seconds() - start) / (double)repeats;
    return VQ_OK;
}

/* The shortest of some runs. */
static vq_status best_time(const vq_backend *be, const op_case *c, op_args *a, double *seconds)
{
    *seconds = INFINITY;
    for (int i = 0; i < 6; i++) {
        double now;
        VQ_TRY(time_of(be, c, a, 1, &now));
        *seconds = fmin(*seconds, now);
    }
    return VQ_OK;
}

/* Bytes a second of y += x over arrays that no cache holds. */
static vq_status memory_peak(const vq_backend *be, vq_arena *arena, double *out)
{
    const op_case c = {&OP_ADD, {(int64_t)64 << 10, 1024}};
    const double n = (double)c.size[0] * (double)c.size[1];
    op_args a = {.n_in = 0};
    double best;
    size_t mark = vq_arena_mark(arena);
    for (int i = 0; i < 2; i++) {
        vq_tensor *t = i ? &a.out[0] : &a.in[0];
        VQ_TRY(vq_tensor_new(arena, be->place, be->act, VQ_DIMS(c.size[0], c.size[1]), t));
        VQ_TRY(vq_zero(be, t));
    }
    VQ_TRY(best_time(be, &c, &a, &best));
    *out = 3 * n * (double)vq_dtype_bytes(be->act) / best;
    vq_arena_reset(arena, mark);
    return VQ_OK;
}

/* FLOP/s of a large product of this type, summed in f32. Not of zeros: a GPU multiplies them with
 * less power, and so at a higher clock. */
static vq_status product_peak(const vq_backend *be, vq_arena *arena, vq_dtype dtype, double *out)
{
    const op_case c = {&OP_GEMM, {8192, 8192, 8192, 0, 1, dtype, 0, 0}};
    vq_tensor numbers;
    op_args a = {.n_in = 0};
    double best;
    size_t mark = vq_arena_mark(arena);
    VQ_TRY(vq_tensor_new(arena, VQ_HOST, dtype, VQ_DIMS(c.size[0], c.size[1]), &numbers));
    op_fill(&numbers, 1, -1, 1);
    for (int i = 0; i < 3; i++) {
        vq_tensor *t = i < 2 ? &a.in[i] : &a.out[0];
        VQ_TRY(vq_tensor_new(arena, be->place, dtype, VQ_DIMS(c.size[0], c.size[1]), t));
        VQ_TRY(vq_upload(be, t, numbers.data));
    }
    VQ_TRY(best_time(be, &c, &a, &best));
    *out = gemm_flops(c.size) / best;
    vq_arena_reset(arena, mark);
    return VQ_OK;
}

#define BATCH_S 2e-3 /* of runs on a device between two waits for it */

static vq_status bench(const vq_backend *be, vq_arena *arena, const bench_case *c, double seconds,
                       const peaks *peak)
{
    enum { MOST = 1000 };
    double time[MOST], begun = 0, once = 0;
    op_args host = {.n_in = 0}, a;
    const op_kind *kind = c->op.kind;
    size_t mark = vq_arena_mark(arena);
    VQ_TRY(kind->make(be, arena, c->op.size, &host));
    VQ_TRY(op_to_device(be, arena, &host, &a));
    for (int i = 0; i < 2; i++) VQ_TRY(time_of(be, &c->op, &a, 1, &once)); /* touches all pages */
    const int64_t repeats = be->place == VQ_HOST ? 1 : VQ_MAX((int64_t)(BATCH_S / once), 1);
    begun = vq_seconds();
    int n = 0;
    while (n < MOST && (n < 3 || vq_seconds() - begun < seconds))
        VQ_TRY(time_of(be, &c->op, &a, repeats, &time[n++]));
    qsort(time, (size_t)n, sizeof *time, by_value);
    vq_arena_reset(arena, mark);

    char size[80] = "";
    for (int i = 0, used = 0; i < VQ_COUNT(c->op.size); i++)
        used += snprintf(size + used, sizeof size - (size_t)used, "%s%lld", i ? " " : "",
                         (long long)c->op.size[i]);
    const double bytes = c->acts * (double)vq_dtype_bytes(be->act) + c->bytes;
    const double work = c->by == MEMORY ? bytes : kind->flops(c->op.size);
    const double rate = work / time[n / 2];
    printf("%-15s %-34s %-20s %9.3f %9.3f %9.3f %8.1f %-7s %4.0f %%\n", kind->name, size, c->note,
           time[n / 2] * 1e3, time[0] * 1e3, time[n - 1] * 1e3, rate * 1e-9,
           c->by == MEMORY ? "GB/s" : "GFLOP/s", 100 * rate / peak->by[c->by]);
    fflush(stdout);
    return VQ_OK;
}

static vq_status bench_all(const vq_backend *be, vq_arena *arena, const bench_case *cases, int n,
                           double seconds, const char *only, const peaks *peak)
{
    for (int i = 0; i < n; i++)
        if (!only || strstr(cases[i].op.kind->name, only))
            VQ_TRY(bench(be, arena, &cases[i], seconds, peak));
    return VQ_OK;
}

static void print_heads(const peaks *peak)
{
    printf("ceilings: products %.1f GFLOP/s, in f32 %.1f, memory %.1f GB/s\n",
           peak->by[PRODUCTS] * 1e-9, peak->by[PRODUCTS_F32] * 1e-9, peak->by[MEMORY] * 1e-9);
    printf("%-15s %-34s %-20s %9s %9s %9s %8s %-7s %s\n", "op", "size", "", "median ms", "min ms",
           "max ms", "rate", "", "share");
}

static vq_status run_cpu(vq_arena *arena, int threads, double seconds, const char *only)
{
    vq_backend be;
    peaks peak;
    VQ_TRY(vq_cpu_open(&be, threads));
    const int n_threads = vq_cpu_thread_count(&be);
    VQ_TRY(sgemm_peak(arena, &peak.by[PRODUCTS]));
    VQ_TRY(memory_peak(&be, arena, &peak.by[MEMORY]));
    peak.by[PRODUCTS] *= n_threads;
    peak.by[PRODUCTS_F32] = peak.by[PRODUCTS];
    printf("CPU, threads %d; ", n_threads);
    print_heads(&peak);
    VQ_TRY(bench_all(&be, arena, CASES, VQ_COUNT(CASES), seconds, only, &peak));
    vq_cpu_close(&be);
    return VQ_OK;
}

static vq_status run_gpu(vq_arena *arena, double seconds, const char *only)
{
    const vq_cuda_module *cuda;
    vq_backend be;
    vq_arena twin;
    peaks peak;
    char text[160];
    VQ_TRY(vq_cuda_module_open(&cuda));
    VQ_TRY(cuda->open(&be, 0, VQ_BF16));
    VQ_TRY(cuda->describe(0, text, sizeof text));
    VQ_TRY(cuda->arena(&be, "bench on the device", &twin));
    arena->twin = &twin;
    VQ_TRY(product_peak(&be, arena, be.act, &peak.by[PRODUCTS]));
    VQ_TRY(product_peak(&be, arena, VQ_F32, &peak.by[PRODUCTS_F32]));
    VQ_TRY(memory_peak(&be, arena, &peak.by[MEMORY]));
    printf("%s; ", text);
    print_heads(&peak);
    VQ_TRY(bench_all(&be, arena, CASES, VQ_COUNT(CASES), seconds, only, &peak));
    VQ_TRY(bench_all(&be, arena, GPU_CASES, VQ_COUNT(GPU_CASES), seconds, only, &peak));
    arena->twin = NULL;
    vq_arena_close(&twin);
    cuda->close(&be);
    return VQ_OK;
}

int main(int argc, char **argv)
{
    int threads = 0;
    double seconds = 0.3;
    const char *only = NULL, *device = "cpu";
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 < argc && strcmp(argv[i], "--threads") == 0) {
            threads = atoi(argv[i + 1]);
        } else if (i + 1 < argc && strcmp(argv[i], "--seconds") == 0) {
            seconds = atof(argv[i + 1]);
        } else if (i + 1 < argc && strcmp(argv[i], "--only") == 0) {
            only = argv[i + 1];
        } else if (i + 1 < argc && strcmp(argv[i], "--device") == 0) {
            device = argv[i + 1];
        } else {
            fprintf(stderr,
                    "bench_ops: %s: expected --device cpu or cuda, --threads N, --seconds S or "
                    "--only NAME\n",
                    argv[i]);
            return VQ_EUSAGE;
        }
    }
    vq_arena arena;
    vq_status status = vq_arena_init(&arena, "bench", (size_t)32 << 30);
    if (status == VQ_OK)
        status = strcmp(device, "cuda") == 0 ? run_gpu(&arena, seconds, only)
                                             : run_cpu(&arena, threads, seconds, only);
    if (status != VQ_OK) fprintf(stderr, "bench_ops: %s\n", vq_error_message());
    return (int)status;
}
