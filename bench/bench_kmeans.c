/* bench_kmeans - what the codebooks of a model cost:
 * bench_kmeans MODEL_DIR [BITS [FAISS_LAYERS [by_sign]]]
 *
 * Builds the codebook of every linear in a decoder layer (K 4096, D 8) and prints a row for each
 * shape: time of a layer, GFLOP/s of the assignments (2 D K flop a vector and iteration) and their
 * share of the machine's measured peak of fused multiply-adds. The last line has the processor time
 * beside the clock's: on a shared machine the first, divided by the threads, tells more.
 * FAISS_LAYERS (0) linears, spread over the model, are also fitted by FAISS with 100 iterations, to
 * compare objectives. With by_sign vectors share codes by the signs of their logits; a vector is
 * then compared with its own pattern's codes alone. */
#pragma GCC optimize("fp-contract=fast")

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"
#include "codebook.h"
#include "cpu_backend.h"
#include "error.h"
#include "grid.h"
#include "log.h"
#include "weights.h"

enum { MAX_SHAPES = 16, MAX_LINEARS = 1024, LANES = 16, CHAINS = 12, ROUNDS = 1 << 20 };

typedef struct shape {
    int64_t out, in;
    int n;
    double grid_s, seconds[MAX_LINEARS], cpu_s, flop, objective;
    int64_t iters;
} shape;

static vq_arena run, scratch;
static vq_backend be;

typedef float vec __attribute__((vector_size(4 * LANES)));

/* GFLOP/s of independent fused multiply-adds on all threads, the best of five. */
static double peak_gflops(void)
{
    double best = 0;
    for (int repeat = 0; repeat < 5; repeat++) {
        double sink = 0, start = vq_seconds();
#pragma omp parallel reduction(+ : sink)
        {
            /* Lanes and chains that differ and are all used: otherwise the compiler does one. */
            vec sum[CHAINS], x;
            for (int l = 0; l < LANES; l++) x[l] = 0.5f - (float)l * 0x1p-10f;
            for (int c = 0; c < CHAINS; c++) sum[c] = x * (float)c;
            for (int i = 0; i < ROUNDS; i++)
                for (int c = 0; c < CHAINS; c++) sum[c] = sum[c] * x + x;
            for (int c = 0; c < CHAINS; c++)
                for (int l = 0; l < LANES; l++) sink += (double)sum[c][l];
        }
        double flop = 2.0 * LANES * CHAINS * ROUNDS * omp_get_max_threads();
        if (sink > 0) best = VQ_MAX(best, flop / (vq_seconds() - start) * 1e-9);
    }
    return best;
}

/* Of all threads. */
static double cpu_seconds(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

static bool is_linear(const vq_tensor *t)
{
    return t->ndim == 2 && strstr(t->name, "layers.") &&
           (strstr(t->name, "_proj.weight") || strstr(t->name, "fc1.weight") ||
            strstr(t->name, "fc2.weight"));
}

static shape *shape_of(shape *shapes, const vq_tensor *w)
{
    shape *s = shapes;
    while (s->n && (s->out != w->dim[0] || s->in != w->dim[1])) s++;
    s->out = w->dim[0], s->in = w->dim[1];
    return s;
}

/* One linear: its grid, then its codebook. */
static void bench_linear(shape *s, const vq_tensor *w, int bits, bool with_faiss, bool by_sign)
{
    vq_grid_config grid = {
        .bits = bits, .group_size = -1, .include_zero = true, .scale_dtype = VQ_F16};
    vq_codebook_config c = {.K = 4096,
                            .D = 8,
                            .kmeans = {.iters = 100,
                                       .min_gain = VQ_KMEANS_MIN_GAIN,
                                       .seed = 1234,
                                       .by_sign = by_sign,
                                       .max_points_per_centroid = 256}};
    int64_t n = w->dim[0] * w->dim[1];
    size_t mark = vq_arena_mark(&run);
    vq_quant q;
    vq_codebook cb;
    vq_tensor rest;
    RUN(vq_grid_alloc(&be, &q, &run, &grid, w->dim[0], w->dim[1]));
    RUN(vq_tensor_new(&run, VQ_HOST, VQ_F32, VQ_DIMS(w->dim[0], w->dim[1]), &rest));
    RUN(vq_codebook_alloc(&cb, &run, &c, n));
    rest.name = w->name;

    double start = vq_seconds();
    RUN(vq_grid_make(&be, &q, &rest, w, NULL, &grid));
    double made = vq_seconds(), cpu = cpu_seconds();
    RUN(vq_codebook_build(&be, &scratch, &cb, &rest, NULL, &c));
    double end = vq_seconds();
    s->cpu_s += cpu_seconds() - cpu;
    s->grid_s += made - start;
    s->seconds[s->n++] = end - made;
    s->iters += cb.fit.iters;
    s->objective += cb.fit.objective;
    s->flop += 2.0 * (double)n * (double)cb.codes.dim[0] * (cb.fit.iters + 1) /
               (double)VQ_MAX(cb.fit.patterns, 1);

    if (with_faiss) {
        double objective = cb.fit.objective;
        c.kmeans.faiss = true;
        start = vq_seconds();
        RUN(vq_codebook_build(&be, &scratch, &cb, &rest, NULL, &c));
        printf("%s: ours %.1f in %.2f s, FAISS %.1f in %.2f s, ours / FAISS %.4f\n", w->name,
               objective, end - made, cb.fit.objective, vq_seconds() - start,
               objective / cb.fit.objective);
    }
    vq_arena_reset(&run, mark);
}

int main(int argc, char **argv)
{
    static shape shapes[MAX_SHAPES + 1];
    if (argc < 2) {
        fprintf(stderr, "usage: bench_kmeans MODEL_DIR [BITS [FAISS_LAYERS [by_sign]]]\n");
        return VQ_EUSAGE;
    }
    int bits = argc > 2 ? atoi(argv[2]) : 4, n_faiss = argc > 3 ? atoi(argv[3]) : 0;
    vq_weights weights;
    RUN(vq_arena_init(&run, "run", (size_t)64 << 30));
    RUN(vq_arena_init(&scratch, "scratch", (size_t)64 << 30));
    RUN(vq_cpu_open(&be, omp_get_max_threads()));
    RUN(vq_weights_open(&run, argv[1], &weights));

    int n_linears = 0, at = 0;
    for (int64_t i = 0; i < weights.n; i++) n_linears += is_linear(&weights.tensor[i]);
    double peak = peak_gflops(), start = vq_seconds();
    for (int64_t i = 0; i < weights.n && at < MAX_LINEARS; i++) {
        if (!is_linear(&weights.tensor[i])) continue;
        bool with_faiss = n_faiss > 0 && at % VQ_MAX(n_linears / n_faiss, 1) == 0;
        bench_linear(shape_of(shapes, &weights.tensor[i]), &weights.tensor[i], bits, with_faiss,
                     argc > 4 && strcmp(argv[4], "by_sign") == 0);
        at++;
    }
    printf("%d linears, %d bits, %d threads, peak %.0f GFLOP/s, %.1f s%s\n", at, bits,
           omp_get_max_threads(), peak, vq_seconds() - start, n_faiss ? " with FAISS" : "");
    printf("%6s %6s %4s %8s | %8s %8s %8s s a layer | %6s %8s %6s | %10s\n", "out", "in", "n",
           "grid ms", "median", "min", "max", "iters", "GFLOP/s", "share", "objective");
    double total = 0, cpu = 0, flop = 0;
    for (shape *s = shapes; s->n; s++) {
        double sum = 0;
        for (int i = 0; i < s->n; i++) sum += s->seconds[i];
        qsort(s->seconds, (size_t)s->n, sizeof *s->seconds, by_value);
        printf(
            "%6lld %6lld %4d %8.2f | %8.3f %8.3f %8.3f           | %6.1f %8.1f %5.1f%% | %10.0f\n",
            (long long)s->out, (long long)s->in, s->n, s->grid_s / s->n * 1e3, s->seconds[s->n / 2],
            s->seconds[0], s->seconds[s->n - 1], (double)s->iters / s->n, s->flop / sum * 1e-9,
            s->flop / sum * 1e-9 / peak * 100, s->objective / s->n);
        total += sum, cpu += s->cpu_s, flop += s->flop;
    }
    printf("codebooks: %.1f s (%.1f s of processor time), %.1f GFLOP/s, %.1f%% of the peak\n",
           total, cpu, flop / total * 1e-9, flop / total * 1e-9 / peak * 100);
    vq_weights_close(&weights);
    vq_cpu_close(&be);
    vq_arena_close(&scratch);
    vq_arena_close(&run);
    return VQ_OK;
}
