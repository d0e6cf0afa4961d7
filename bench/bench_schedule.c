/* bench_schedule - how long stages wait in a step: bench_schedule MODEL_DIR [SEQLEN [MESSAGE_GBS]]
 *
 * Measures an inner decoder layer on all threads: forward, gradient of its input, gradient of its
 * codes (4 bits, K 4096, D 8, codes at random), whole and in slices. Then simulates 2 to 64 stages
 * of one such layer each, the loss left out, with messages of a layer's activations at MESSAGE_GBS
 * (10) GB/s, and prints the idle share of the average stage by batch and slices. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "cpu_backend.h"
#include "error.h"
#include "grid.h"
#include "log.h"
#include "pool.h"
#include "rng.h"
#include "schedule.h"

enum { ROUNDS = 9, MAX_SLICES = 16, MAX_STAGES = 64 };

static vq_arena arena, scratch;
static vq_backend be;
static vq_model model;
static vq_stage stage;
static vq_pool pool;

static void fill(vq_tensor *t, uint64_t stream)
{
    for (int64_t i = 0; i < vq_tensor_count(t); i++)
        ((float *)t->data)[i] = (float)(2 * vq_rng_uniform(1, stream, (uint64_t)i) - 1);
}

static void quantize(int64_t slot)
{
    const vq_grid_config grid = {
        .bits = 4, .group_size = -1, .include_zero = true, .scale_dtype = VQ_F32};
    vq_vqlinear *l =
        vq_stage_linear(&stage, slot / VQ_N_KINDS, (vq_linear_kind)(slot % VQ_N_KINDS));
    vq_tensor rest;
    if (!l) return;
    const vq_tensor *w = &l->source->weight;
    const int64_t n_vec = VQ_CEIL_DIV(vq_tensor_count(w), 8);
    RUN(vq_grid_alloc(&be, &l->quant, &arena, &grid, w->dim[0], w->dim[1]));
    RUN(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(w->dim[0], w->dim[1]), &rest));
    RUN(vq_grid_make(&be, &l->quant, &rest, w, NULL, &grid));
    RUN(vq_tensor_new(&arena, VQ_HOST, VQ_U16, VQ_DIMS(n_vec), &l->quant.idx));
    vq_pool_attach(&pool, slot, l);
    for (int64_t i = 0; i < n_vec; i++)
        ((uint16_t *)l->quant.idx.data)[i] =
            (uint16_t)vq_rng_below(2, (uint64_t)slot, (uint64_t)i, l->codes.dim[0]);
    l->quantized = true;
}

/* Notes the time since *at_s where it is the least so far. */
static void lap(double *at_s, double *least_s)
{
    const double now_s = vq_seconds();
    *least_s = VQ_MIN(*least_s, now_s - *at_s);
    *at_s = now_s;
}

/* Times of a sequence that passes in slices, each piece's least of some rounds; what a slice takes
 * of them goes into share. */
static vq_stage_cost measure(int64_t T, int n_slices, double *share)
{
    const int64_t E = model.config.E;
    const size_t mark = vq_arena_mark(&arena);
    double forward_s[MAX_SLICES], backward_s[MAX_SLICES];
    vq_stage_cost cost = {.codes_s = 1e9};
    int64_t cut[MAX_SLICES + 1];
    vq_kept kept;
    vq_tensor in, out, dout, din;
    vq_tensor *const all[] = {&in, &out, &dout, &din};
    for (int i = 0; i < VQ_COUNT(all); i++) {
        RUN(vq_tensor_new(&arena, VQ_HOST, VQ_F32, VQ_DIMS(T, E), all[i]));
        fill(all[i], (uint64_t)i);
    }
    RUN(vq_kept_init(&arena, &stage, 1, T, n_slices > 1 ? VQ_KEEP_SLICES : VQ_KEEP_ALL, &kept));
    vq_slice_cut(&model.config, T, n_slices, cut);
    for (int i = 0; i < n_slices; i++) forward_s[i] = backward_s[i] = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        double at_s = vq_seconds();
        for (int i = 0; i < n_slices; i++) {
            const int64_t n = cut[i + 1] - cut[i];
            vq_tensor x = vq_tensor_rows(&in, cut[i], n), y = vq_tensor_rows(&out, cut[i], n);
            RUN(vq_stage_fwd(&stage, VQ_MODE_SOFT, 1, cut[i], &x, &y, &kept));
            lap(&at_s, &forward_s[i]);
        }
        for (int i = n_slices - 1; i >= 0; i--) {
            const int64_t n = cut[i + 1] - cut[i];
            vq_tensor dy = vq_tensor_rows(&dout, cut[i], n), dx = vq_tensor_rows(&din, cut[i], n);
            RUN(vq_stage_bwd(&stage, &kept, cut[i], &dy, &dx));
            lap(&at_s, &backward_s[i]);
        }
        RUN(vq_stage_bwd_codes(&stage, &kept));
        lap(&at_s, &cost.codes_s);
    }
    for (int i = 0; i < n_slices; i++) {
        cost.forward_s += forward_s[i];
        cost.backward_s += backward_s[i];
    }
    for (int i = 0; i < n_slices; i++)
        share[i] = (forward_s[i] + backward_s[i]) / (cost.forward_s + cost.backward_s);
    vq_arena_reset(&arena, mark);
    return cost;
}

int main(int argc, char **argv)
{
    static const int batches[] = {1, 8}, slices[] = {1, 4, 16};
    const vq_list skip = {0};
    double share[VQ_COUNT(slices)][MAX_SLICES];
    vq_stage_cost cost[VQ_COUNT(slices)];
    if (argc < 2) {
        fprintf(stderr, "usage: bench_schedule MODEL_DIR [SEQLEN [MESSAGE_GBS]]\n");
        return VQ_EUSAGE;
    }
    const int64_t T = argc > 2 ? atoll(argv[2]) : 512;
    const double gbs = argc > 3 ? atof(argv[3]) : 10;
    RUN(vq_arena_init(&arena, "bench", (size_t)16 << 30));
    RUN(vq_arena_init(&scratch, "scratch", (size_t)16 << 30));
    RUN(vq_cpu_open(&be, omp_get_max_threads()));
    RUN(vq_model_open(&arena, argv[1], &model));
    RUN(vq_stage_init(&arena, &be, &model, 1, 2, T, &scratch, &stage));
    const vq_pool_rule rule = {.K = 4096, .D = 8, .skip = &skip, .last = model.config.N};
    RUN(vq_pool_init(&arena, &be, &model, &rule, &pool));
    fill(&pool.codes, 9);
    for (int64_t slot = VQ_N_KINDS; slot < 2 * VQ_N_KINDS; slot++) quantize(slot);

    printf("%s, a layer, %lld tokens, %d threads\n", argv[1], (long long)T, omp_get_max_threads());
    printf("slices   forward ms  backward ms  codes ms\n");
    for (int i = 0; i < VQ_COUNT(slices); i++) {
        cost[i] = measure(T, slices[i], share[i]);
        cost[i].message_s = (double)(T * model.config.E * 4) / (gbs * 1e9);
        printf("%6d %12.2f %12.2f %9.2f\n", slices[i], 1e3 * cost[i].forward_s,
               1e3 * cost[i].backward_s, 1e3 * cost[i].codes_s);
    }
    printf("\nidle share of the average stage, %%\nbatch slices");
    for (int n = 2; n <= MAX_STAGES; n *= 2) printf(" %3d stages", n);
    putchar('\n');
    for (int b = 0; b < VQ_COUNT(batches); b++)
        for (int i = 0; i < VQ_COUNT(slices); i++) {
            printf("%5d %6d", batches[b], slices[i]);
            for (int n = 2; n <= MAX_STAGES; n *= 2) {
                vq_stage_cost each[MAX_STAGES];
                double idle;
                for (int s = 0; s < n; s++) each[s] = cost[i];
                RUN(vq_schedule_idle(&scratch, n, batches[b], slices[i], share[i], each, &idle));
                printf(" %10.1f", 100 * idle);
            }
            putchar('\n');
        }
    vq_model_close(&model);
    vq_cpu_close(&be);
    vq_arena_close(&scratch);
    vq_arena_close(&arena);
    return 0;
}
