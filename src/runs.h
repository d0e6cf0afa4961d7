/* runs.h - run folders as they are found on disk, finished or not, for reports.
 *
 * A run folder is one with config.yaml, results.json or error.txt. error.txt is what a failure
 * leaves: a line with the exit code, then the message; the next start of the run removes it. */
#pragma once
#include "config.h"
#include "report.h"

typedef enum vq_run_state {
    VQ_RUN_DONE,
    VQ_RUN_STOPPED,   /* after a checkpoint, to be run again */
    VQ_RUN_FAILED,    /* with a message */
    VQ_RUN_UNFINISHED /* running, or ended without a word */
} vq_run_state;

/* The lines of metrics.jsonl; of many steps, the means of equal stretches. */
typedef struct vq_curves {
    int64_t n;
    double *step, *task, *reg, *beta, *waited_ratio; /* [n] */
} vq_curves;

/* A quantized linear. NAN: not known. */
typedef struct vq_linear_error {
    const char *name; /* "model.layers.0.self_attn.q_proj" */
    int64_t layer;
    const char *kind;  /* "q_proj" */
    double error;      /* of the final weights, relative to their norm */
    double moved;      /* share of the weights not rounded to nearest */
    double codes_rms;  /* of a logit's distance to its code, before training */
    double gptq_error; /* GPTQ's error in the layer's outputs, summed */
} vq_linear_error;

typedef struct vq_run_info {
    const char *dir;  /* as a path from here */
    const char *name; /* the path below the folder that was searched; that folder's for itself */
    vq_run_state state;
    int code;            /* of a failure */
    const char *message; /* why it is not done; "" if it is */
    bool has_config, has_results;
    vq_config config;   /* has_config */
    vq_results results; /* without has_results only what the settings say */
    int64_t steps_done;
    vq_curves curves;
    vq_linear_error *linears; /* by layer, then kind */
    int64_t n_linears;
} vq_run_info;

/* "done", "failed"... */
const char *vq_run_state_name(vq_run_state state);

/* Numbers of a run, for tables and figures. */
typedef enum vq_run_value_kind {
    VQ_VALUE_FP, /* perplexities */
    VQ_VALUE_RTN,
    VQ_VALUE_GPTQ,
    VQ_VALUE_SOFT,
    VQ_VALUE_HARD,
    VQ_VALUE_FINAL,       /* of the model that was written */
    VQ_VALUE_FINAL_ABOVE, /* full precision's, in % of that */
    VQ_VALUE_RTN_ABOVE,
    VQ_VALUE_GPTQ_ABOVE,
    VQ_VALUE_SECONDS,
    VQ_VALUE_STEP_SECONDS,
    VQ_VALUE_PEAK_BYTES, /* of the largest rank */
    VQ_VALUE_GPU_BYTES,
    VQ_VALUE_PACKED_BYTES,
    VQ_VALUE_TRAINED, /* parameters */
    VQ_VALUE_STEPS,   /* done */
    VQ_VALUE_RANKS
} vq_run_value_kind;

/* NAN where it is not known; otherwise above 0. */
double vq_run_value(const vq_run_info *run, vq_run_value_kind kind);

/* Of n runs; 0 where none is known. */
double vq_runs_largest(const vq_run_info *runs, int64_t n, vq_run_value_kind kind);

/* All run folders in dirs, sorted by name (run-2 before run-10): the folders themselves, or what
 * they hold at any depth (in a run folder, and through links, nothing is looked for). Fails:
 * VQ_EFILE (not a folder; no run in it), VQ_EMEM. Local. */
vq_status vq_runs_find(vq_arena *arena, const char *const *dirs, int n_dirs, vq_run_info **runs,
                       int64_t *n);
