/* bench_ops - what each op of the CPU backend costs, beside what the machine can do.
 *
 * usage: bench_ops [--threads N] [--seconds S] [--only NAME]
 * A row: op and size, median, least and greatest time, GFLOP/s or GB/s, and the share of the
 * ceiling that was measured at the start of the same run: threads times the peak of one-threaded
 * sgemm for products, a copy of memory for the rest. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_backend.h"
#include "cpu_ops.h"
#include "log.h"
#include "op_cases.h"

#define SMOL_K 4096 /* SmolLM2-135M: E 576, F 1536, H 9, G 3, V 49152 */

typedef struct bench_case {
    op_case op;
    const char *note;
    double bytes; /* read and written, for ops bound by memory; 0: products */
} bench_case;

/* Bytes per weight of round_fwd and round_bwd: w or dw, base, and idx for 8 weights. */
#define ROUND_BYTES(out, in) ((double)(out) * (in) * (4 + 1 + 2.0 / 8))

static const bench_case CASES[] = {
    {{&OP_GEMM, {512, 1536, 576, 0, 1, VQ_F32}}, "up, forward", 0},
    {{&OP_GEMM, {512, 1536, 576, 0, 1, VQ_F16}}, "up, forward, f16", 0},
    {{&OP_GEMM, {512, 576, 576, 0, 1, VQ_F32}}, "q, forward", 0},
    {{&OP_GEMM, {512, 192, 576, 0, 1, VQ_F32}}, "k, forward", 0},
    {{&OP_GEMM, {512, 576, 1536, 0, 0, VQ_F32}}, "up, dx", 0},
    {{&OP_GEMM, {1536, 576, 512, 1, 0, VQ_F32}}, "up, dW", 0},
    {{&OP_GEMM, {576, 576, 512, 1, 0, VQ_F32}}, "q, dW", 0},
    {{&OP_GEMM, {512, 11008, 4096, 0, 1, VQ_F16}}, "7B up, forward, f16", 0},
    {{&OP_GEMM, {512, 4096, 11008, 0, 0, VQ_F32}}, "7B up, dx", 0},
    {{&OP_ATTENTION_FWD, {1, 512, 512, 9, 3, 64}}, "", 0},
    {{&OP_ATTENTION_BWD, {1, 512, 512, 9, 3, 64}}, "", 0},
    {{&OP_ATTENTION_FWD, {1, 2048, 2048, 32, 32, 128}}, "7B", 0},
    {{&OP_ATTENTION_BWD, {1, 2048, 2048, 32, 32, 128}}, "7B", 0},
    {{&OP_HEAD_KD, {512, 576, 49152, VQ_F16, 0}}, "", 0},
    {{&OP_HEAD_NLL, {512, 576, 49152, VQ_F16}}, "", 0},
    {{&OP_ROUND_FWD, {1536, 576, SMOL_K, 8, 3, 576, VQ_U16, 0}}, "", ROUND_BYTES(1536, 576)},
    {{&OP_ROUND_BWD, {1536, 576, SMOL_K, 8, 3, 576, VQ_U16}}, "", ROUND_BYTES(1536, 576)},
    {{&OP_ROUND_FWD, {11008, 4096, SMOL_K, 8, 3, 4096, VQ_U16, 0}}, "7B", ROUND_BYTES(11008, 4096)},
    {{&OP_ROUND_BWD, {11008, 4096, SMOL_K, 8, 3, 4096, VQ_U16}}, "7B", ROUND_BYTES(11008, 4096)},
    {{&OP_ROUND_REG, {SMOL_K, 8}}, "", SMOL_K * 8 * 16.0},
    {{&OP_ROUND_SCALE_BWD, {1536, 576, SMOL_K, 8, 3, 576, VQ_U16}}, "", ROUND_BYTES(1536, 576)},
    {{&OP_GRID_SEARCH, {1536, 576, 3, 576, 0, VQ_BF16, VQ_BF16}}, "", 0},
    {{&OP_GRID_SEARCH, {1536, 576, 3, 64, 0, VQ_BF16, VQ_BF16}}, "groups of 64", 0},
    {{&OP_MSE, {512, 576}}, "", 512 * 576 * 12.0},
    {{&OP_ADAM, {210 * SMOL_K * 8}}, "all codebooks", 210 * SMOL_K * 8 * 28.0},
    {{&OP_NORM2, {210 * SMOL_K * 8}}, "all codebooks", 210 * SMOL_K * 8 * 4.0},
    {{&OP_RMSNORM_FWD, {512, 576, VQ_F32}}, "", 512 * 576 * 8.0},
    {{&OP_RMSNORM_BWD, {512, 576, VQ_F32, 0, 1}}, "", 512 * 576 * 16.0},
    {{&OP_LAYERNORM_FWD, {512, 4096, VQ_F32, 1}}, "", 512 * 4096 * 8.0},
    {{&OP_ROPE, {1, 512, 9, 64, 0, 0}}, "", 512 * 576 * 8.0},
    {{&OP_SILU_GATE_FWD, {512, 1536}}, "", 512 * 1536 * 12.0},
    {{&OP_SILU_GATE_BWD, {512, 1536}}, "", 512 * 1536 * 20.0},
    {{&OP_EMBED, {512, 49152, 576, VQ_F16}}, "", 512 * 576 * 6.0},
};

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

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

/* Bytes a second of y += x over arrays that no cache holds. */
static vq_status memory_peak(const vq_backend *be, vq_arena *arena, double *out)
{
    int64_t n = (int64_t)32 << 20;
    vq_tensor x, y;
    size_t mark = vq_arena_mark(arena);
    VQ_TRY(vq_tensor_new(arena, VQ_HOST, be->act, VQ_DIMS(n), &x));
    VQ_TRY(vq_tensor_new(arena, VQ_HOST, be->act, VQ_DIMS(n), &y));
    VQ_TRY(vq_zero(be, &x));
    VQ_TRY(vq_zero(be, &y));
    double best = INFINITY;
    for (int i = 0; i < 5; i++) {
        double start = vq_seconds();
        VQ_TRY(vq_add(be, &y, &x));
        best = fmin(best, vq_seconds() - start);
    }
    *out = 3 * (double)vq_tensor_bytes(&x) / best;
    vq_arena_reset(arena, mark);
    return VQ_OK;
}

static vq_status bench(const vq_backend *be, vq_arena *arena, const bench_case *c, double seconds,
                       double flops_peak, double bytes_peak)
{
    enum { MOST = 1000 };
    double time[MOST], begun = 0;
    op_args a = {0};
    const op_kind *kind = c->op.kind;
    size_t mark = vq_arena_mark(arena);
    VQ_TRY(kind->make(be, arena, c->op.size, &a));
    VQ_TRY(kind->run(be, c->op.size, &a)); /* touches all pages */
    begun = vq_seconds();
    int n = 0;
    while (n < MOST && (n < 3 || vq_seconds() - begun < seconds)) {
        double start = vq_seconds();
        VQ_TRY(kind->run(be, c->op.size, &a));
        time[n++] = vq_seconds() - start;
    }
    qsort(time, (size_t)n, sizeof *time, compare_doubles);
    vq_arena_reset(arena, mark);

    char size[80] = "";
    for (int i = 0, used = 0; i < VQ_COUNT(c->op.size); i++)
        used += snprintf(size + used, sizeof size - (size_t)used, "%s%lld", i ? " " : "",
                         (long long)c->op.size[i]);
    double work = kind->flops ? kind->flops(c->op.size) : c->bytes;
    double rate = work / time[n / 2], peak = kind->flops ? flops_peak : bytes_peak;
    printf("%-14s %-34s %-20s %9.3f %9.3f %9.3f %8.1f %-7s %4.0f %%\n", kind->name, size, c->note,
           time[n / 2] * 1e3, time[0] * 1e3, time[n - 1] * 1e3, rate * 1e-9,
           kind->flops ? "GFLOP/s" : "GB/s", 100 * rate / peak);
    return VQ_OK;
}

static vq_status run(int threads, double seconds, const char *only)
{
    vq_arena arena;
    vq_backend be;
    double flops = 0, bytes = 0;
    VQ_TRY(vq_arena_init(&arena, "bench", (size_t)16 << 30));
    VQ_TRY(vq_cpu_open(&be, threads));
    int n_threads = ((const vq_cpu *)be.ctx)->n_threads;
    VQ_TRY(sgemm_peak(&arena, &flops));
    VQ_TRY(memory_peak(&be, &arena, &bytes));
    flops *= n_threads;
    printf("threads %d, products' ceiling %.1f GFLOP/s, memory's %.1f GB/s\n", n_threads,
           flops * 1e-9, bytes * 1e-9);
    printf("%-14s %-34s %-20s %9s %9s %9s %8s %-7s %s\n", "op", "size", "", "median ms", "min ms",
           "max ms", "rate", "", "share");
    for (int i = 0; i < VQ_COUNT(CASES); i++)
        if (!only || strstr(CASES[i].op.kind->name, only))
            VQ_TRY(bench(&be, &arena, &CASES[i], seconds, flops, bytes));
    vq_cpu_close(&be);
    vq_arena_close(&arena);
    return VQ_OK;
}

int main(int argc, char **argv)
{
    int threads = 0;
    double seconds = 0.3;
    const char *only = NULL;
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 < argc && strcmp(argv[i], "--threads") == 0) {
            threads = atoi(argv[i + 1]);
        } else if (i + 1 < argc && strcmp(argv[i], "--seconds") == 0) {
            seconds = atof(argv[i + 1]);
        } else if (i + 1 < argc && strcmp(argv[i], "--only") == 0) {
            only = argv[i + 1];
        } else {
            fprintf(stderr, "bench_ops: %s: expected --threads N, --seconds S or --only NAME\n",
                    argv[i]);
            return VQ_EUSAGE;
        }
    }
    vq_status status = run(threads, seconds, only);
    if (status != VQ_OK) fprintf(stderr, "bench_ops: %s\n", vq_error_message());
    return (int)status;
}
