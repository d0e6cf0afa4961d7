/* report.h - what a finished run says: the table on stdout, results.json, report.html. */
#pragma once
#include "arena.h"

typedef struct vq_results {
    uint64_t key; /* of the settings and inputs that led to them */
    const char *model, *method, *out;
    int64_t bits, group_size, K, D;
    struct {
        double fp, rtn, gptq, start_soft, start_hard, soft, hard; /* 0: not evaluated */
    } perplexity;
    struct {
        double tokens, init, teacher, train, eval, export, total; /* of this run; train: of all */
    } seconds;
    int64_t steps, trained_parameters, quantized_weights;
    double seconds_per_step;
    double bytes_before, bytes_after; /* of the model's weights; after: packed at `bits` */
    double *peak_rss_bytes;           /* [n_ranks] */
    int n_ranks, n_stages, n_replicas, threads;
} vq_results;

/* RUN/results.json, atomically. Fails: VQ_EFILE, VQ_EMEM. */
vq_status vq_results_write(const vq_results *r, const char *path);

/* Whether path has the results of a finished run with r->key; if so they are in *r, which has its
 * names and settings already. Local. */
bool vq_results_read(vq_arena *arena, const char *path, vq_results *r);

/* The closing table, on stdout. */
void vq_results_print(const vq_results *r);

/* results.json as one line on stdout, for --json. Fails: VQ_EFILE. */
vq_status vq_results_print_json(const char *path);

/* RUN/report.html: the table, and the curves of metrics.jsonl drawn by gnuplot as SVG inside the
 * page. Without gnuplot the table alone, with a line that says so. Fails: VQ_EFILE, VQ_EMEM. */
vq_status vq_report_write(const vq_results *r, const char *run_dir);
