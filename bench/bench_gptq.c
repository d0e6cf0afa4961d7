/* bench_gptq - what GPTQ of a linear costs: bench_gptq [OUT IN TOKENS]...
 *
 * Per shape the Hessian of TOKENS inputs, a sequence of SEQUENCE after the other (TOKENS IN^2 flop:
 * one triangle), the factor of its inverse (2/3 IN^3, f64) and the sweep (OUT IN^2), each the least
 * processor time of RUNS, with the share of the machine's peak of sgemm measured so; at the end the
 * peak memory, beside that before the first shape. gptq_reference.py does the same with the
 * reference's code. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#include "bench.h"
#include "cpu_backend.h"
#include "error.h"
#include "gptq.h"
#include "grid.h"
#include "rng.h"

enum { RUNS = 5, SEQUENCE = 512, PEAK_SIZE = 1024 };

static vq_arena arena;
static vq_backend be;

static void fill(const vq_tensor *t, uint64_t seed)
{
    for (int64_t i = 0; i < vq_tensor_count(t); i++)
        ((float *)t->data)[i] = (float)vq_rng_uniform(seed, (uint64_t)i, 0) - 0.5f;
}

static vq_tensor noise(int64_t rows, int64_t columns, uint64_t seed)
{
    vq_tensor t;
    RUN(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(rows, columns), &t));
    fill(&t, seed);
    return t;
}

/* Of all threads together: other programs on the machine add little to it. */
static double processor_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double peak_mb(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss * 1024e-6;
}

static double least(const double *seconds)
{
    double best = seconds[0];
    for (int i = 1; i < RUNS; i++) best = VQ_MIN(best, seconds[i]);
    return best;
}

static double peak_gflops(void)
{
    const size_t mark = vq_arena_mark(&arena);
    const vq_tensor a = noise(PEAK_SIZE, PEAK_SIZE, 1), b = noise(PEAK_SIZE, PEAK_SIZE, 2);
    vq_tensor c = noise(PEAK_SIZE, PEAK_SIZE, 3);
    double seconds[RUNS];
    for (int i = 0; i < RUNS; i++) {
        const double start = processor_seconds();
        RUN(vq_gemm(&be, &c, &a, false, &b, false, 1, 0));
        seconds[i] = processor_seconds() - start;
    }
    vq_arena_reset(&arena, mark);
    return 2 * pow(PEAK_SIZE, 3) / least(seconds) * 1e-9;
}

static void print_part(const char *name, double seconds, double flop, double peak)
{
    const double gflops = flop / seconds * 1e-9;
    printf(" | %s %9.2f ms %6.1f GFLOP/s %4.0f%%", name, seconds * 1e3, gflops,
           100 * gflops / peak);
}

static void bench_shape(int64_t out, int64_t in, int64_t tokens, double peak)
{
    const size_t mark = vq_arena_mark(&arena);
    const vq_grid_config grid = {.bits = 4, .group_size = -1};
    const vq_gptq_config config = {
        .bits = 4, .percdamp = 0.01, .rule = {.block_size = 128, .scale_dtype = VQ_F32}};
    const vq_tensor x = noise(VQ_MIN(SEQUENCE, tokens), in, 4), w = noise(out, in, 5);
    vq_tensor rest = noise(out, in, 6), h, ints;
    vq_quant q;
    double hessian[RUNS], factor[RUNS], sweep[RUNS], error;
    RUN(vq_tensor_new(&arena, VQ_HOST, VQ_F64, VQ_DIMS(in, in), &h));
    RUN(vq_grid_alloc(&be, &q, &arena, &grid, out, in));
    RUN(vq_tensor_new(&arena, VQ_HOST, q.base.dtype, VQ_DIMS(out, in), &ints));
    for (int i = 0; i < RUNS; i++) {
        const size_t run_mark = vq_arena_mark(&arena);
        vq_gptq_factor f;
        RUN(vq_zero(&be, &h));
        hessian[i] = 0;
        for (int64_t t = 0; t < tokens; t += SEQUENCE) {
            const vq_tensor sequence = vq_tensor_rows(&x, 0, VQ_MIN(SEQUENCE, tokens - t));
            fill(&sequence, (uint64_t)(100 + t));
            const double begin = processor_seconds();
            RUN(vq_syrk(&be, &h, &sequence, 1));
            hessian[i] += processor_seconds() - begin;
        }
        const double start = processor_seconds();
        RUN(vq_gptq_factor_make(&be, &arena, &f, &h, "bench", &config));
        factor[i] = processor_seconds() - start;
        RUN(vq_gptq_quantize(&be, &q, &ints, &rest, &error, &w, &f, &config));
        sweep[i] = processor_seconds() - start - factor[i];
        vq_arena_reset(&arena, run_mark);
    }
    const double n = (double)in;
    const double parts[] = {least(hessian), least(factor), least(sweep)};
    printf("%6lld %6lld %6lld", (long long)out, (long long)in, (long long)tokens);
    print_part("hessian", parts[0], (double)tokens * n * n, peak);
    print_part("factor", parts[1], 2 * n * n * n / 3, peak);
    print_part("sweep", parts[2], (double)out * n * n, peak);
    printf(" | all %9.2f ms\n", (parts[0] + parts[1] + parts[2]) * 1e3);
    vq_arena_reset(&arena, mark);
}

int main(int argc, char **argv)
{
    static const int64_t smollm2[][3] = {
        {576, 576, 8192}, {192, 576, 8192}, {1536, 576, 8192}, {576, 1536, 8192}};
    if ((argc - 1) % 3 != 0) {
        fprintf(stderr, "usage: bench_gptq [OUT IN TOKENS]...\n");
        return VQ_EUSAGE;
    }
    RUN(vq_arena_init(&arena, "bench", (size_t)64 << 30));
    RUN(vq_cpu_open(&be, omp_get_max_threads()));
    const double peak = peak_gflops();
    printf("%d threads, sgemm %.0f GFLOP/s\n%6s %6s %6s\n", omp_get_max_threads(), peak, "out",
           "in", "tokens");
    const double start_mb = peak_mb();
    for (int i = 0; i < VQ_COUNT(smollm2) && argc == 1; i++)
        bench_shape(smollm2[i][0], smollm2[i][1], smollm2[i][2], peak);
    for (int i = 1; i + 2 < argc; i += 3)
        bench_shape(strtoll(argv[i], NULL, 10), strtoll(argv[i + 1], NULL, 10),
                    strtoll(argv[i + 2], NULL, 10), peak);
    printf("peak memory %.0f MB, %.0f before\n", peak_mb(), start_mb);
    vq_cpu_close(&be);
    vq_arena_close(&arena);
    return VQ_OK;
}
