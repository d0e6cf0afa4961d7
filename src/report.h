/* report.h - what a finished run says: results.json, and the table on stdout. */
#pragma once
#include "arena.h"

typedef struct vq_results {
    uint64_t key; /* of the settings and inputs that led to them */
    const char *version, *model, *method, *out;
    int64_t bits, group_size, K, D;
    struct {
        double fp, rtn, gptq, start_soft, start_hard, soft, hard; /* 0: not evaluated */
    } perplexity;
    struct {
        double tokens, init, blocks, teacher, train, eval, export,
            total; /* of this run; train: of all */
    } seconds;
    int64_t steps, trained_parameters, quantized_weights;
    double seconds_per_step;
    struct {
        double before, after; /* of the model's weights; after: packed at `bits` */
    } model_bytes;
    double peak_gpu_bytes; /* of the rank with the most; 0: no GPU */
    /* By rank. The ratios are of the time of the training steps: in computation, in sums and
     * broadcasts, and waiting for a neighbour's message; 0 without steps. */
    double *peak_rss_bytes, *compute_ratio, *sums_ratio, *messages_ratio; /* [machine.ranks] */
    struct {
        const char *device, *compiler;
        int64_t ranks, stages, replicas, threads;
    } machine;
} vq_results;

/* RUN/results.json, atomically. Fails: VQ_EFILE, VQ_EMEM. */
vq_status vq_results_write(const vq_results *r, const char *path);

/* All of a results.json into *r but `out`; what is not in it is 0 or "".
 * Fails: VQ_EFILE (missing, not JSON), VQ_EMEM. Local. */
vq_status vq_results_load(vq_arena *arena, const char *path, vq_results *r);

/* Whether path has the results of a finished run with r->key; if so they are in *r. Local. */
bool vq_results_read(vq_arena *arena, const char *path, vq_results *r);

/* The perplexities by their names, in the table's order; 0: not evaluated. */
typedef struct vq_results_row {
    const char *label;
    double perplexity;
} vq_results_row;
#define VQ_RESULTS_ROWS 7
void vq_results_rows(const vq_results *r, vq_results_row rows[VQ_RESULTS_ROWS]);

/* That of the model that was written: 0 if it was not evaluated. */
double vq_results_final(const vq_results *r);

/* The largest rank's peak memory on the host, in bytes. */
double vq_results_peak_bytes(const vq_results *r);

/* Field i of results.json as a table has it ("perplexity.fp"), NULL after the last; and its value,
 * "" where there is none. Lists by rank are left out. */
const char *vq_results_field(int i, char name[64]);
const char *vq_results_value(const vq_results *r, int i, char text[64]);

/* The closing table, on stdout. */
void vq_results_print(const vq_results *r);

/* results.json as one line on stdout, for --json. Fails: VQ_EFILE. */
vq_status vq_results_print_json(const char *path);
