/* config.h - every setting of the program: one table of keys, read from YAML and the command line.
 *
 * The table in config.c gives each key its flag, type, default, limits, help, the subcommands that
 * take it and the phases whose results depend on it. struct vq_config mirrors the dotted names:
 * key "train.lr" is config.train.lr. The command line beats the file, the file beats the default.
 * In YAML a key is nested or dotted; on the command line it is --train.lr=0.1 or --train.lr 0.1,
 * or its short flag --lr 0.1; '-' and '_' are the same there, and a bool is --sym or --no-sym. */
#pragma once
#include <stdio.h>

#include "arena.h"

typedef struct vq_list {
    const char **item; /* [n] */
    int n;
} vq_list;

/* The values of the choices, in the order of the table. */
typedef enum vq_recipe { VQ_RECIPE_PAPER, VQ_RECIPE_FAST, VQ_RECIPE_BEST } vq_recipe;
typedef enum vq_method {
    VQ_METHOD_VQROUND,
    VQ_METHOD_RTN,
    VQ_METHOD_GPTQ,
    VQ_METHOD_ADAROUND,
    VQ_METHOD_LORA
} vq_method;
typedef enum vq_init_kind { VQ_INIT_RTN, VQ_INIT_GPTQ } vq_init_kind;
typedef enum vq_calib_mode {
    VQ_CALIB_WIKITEXT2, /* the documents joined by blank lines, windows at random places */
    VQ_CALIB_C4         /* a window each from documents, chosen at random, that are long enough */
} vq_calib_mode;
typedef enum vq_grid_search_kind {
    VQ_SEARCH_MINMAX, /* the whole range */
    VQ_SEARCH_MSE,    /* the part of it that rounds the weights best */
    VQ_SEARCH_OUTPUT  /* the part of it that gives the best outputs: by what the inputs are like */
} vq_grid_search_kind;
typedef enum vq_scale_dtype {
    VQ_SCALE_AUTO, /* bf16 for a bf16 model, else f16: exact in packed files */
    VQ_SCALE_F32,
    VQ_SCALE_F16,
    VQ_SCALE_BF16
} vq_scale_dtype;
typedef enum vq_kmeans_engine {
    VQ_KMEANS_VQ,   /* ours: fast, from start codes if there are some, same bits everywhere */
    VQ_KMEANS_FAISS /* the reference's */
} vq_kmeans_engine;
typedef enum vq_kmeans_start { VQ_START_SHARED, VQ_START_OWN } vq_kmeans_start;
typedef enum vq_loss_kind { VQ_LOSS_KD, VQ_LOSS_LM } vq_loss_kind;
typedef enum vq_rounding {
    VQ_ROUNDING_SOFT, /* h(a), which the regularizer pulls to 0 or 1 */
    VQ_ROUNDING_HARD  /* 0 or 1, with the gradient of h(a) */
} vq_rounding;
typedef enum vq_lr_schedule { VQ_LR_CONSTANT, VQ_LR_COSINE, VQ_LR_LINEAR } vq_lr_schedule;
typedef enum vq_switch { VQ_AUTO, VQ_ON, VQ_OFF } vq_switch;
typedef enum vq_residual {
    VQ_RESIDUAL_EXACT,  /* u - floor(u): hard rounding is GPTQ's own */
    VQ_RESIDUAL_HESSIAN /* clamp(u - floor(u) - e, 0, 1), the reference's */
} vq_residual;
typedef enum vq_propagate {
    VQ_PROPAGATE_AUTO,
    VQ_PROPAGATE_FLOAT,
    VQ_PROPAGATE_QUANTIZED
} vq_propagate;
typedef enum vq_dataset {
    VQ_DATASET_STREAM,    /* the documents joined by blank lines; one file: as it is */
    VQ_DATASET_WIKITEXT2, /* rows joined by blank lines; a text file has a row a line */
    VQ_DATASET_PTB,       /* sentences joined by spaces; a text file has a sentence a line */
    VQ_DATASET_C4         /* the first 1,100 documents joined by spaces, cut to 256 windows */
} vq_dataset;
typedef enum vq_export_format {
    VQ_EXPORT_DENSE, /* the model's own type */
    VQ_EXPORT_GPTQ,
    VQ_EXPORT_COMPRESSED_TENSORS
} vq_export_format;
typedef enum vq_transport { VQ_TRANSPORT_AUTO, VQ_TRANSPORT_MPI, VQ_TRANSPORT_NCCL } vq_transport;
typedef enum vq_device { VQ_DEVICE_AUTO, VQ_DEVICE_CPU, VQ_DEVICE_CUDA } vq_device;

typedef struct vq_config {
    /* Texts that were not given are NULL; the meaning of every key is in config.c's table. */
    const char *model;
    vq_list text;
    const char *out;
    const char *run; /* the run folder that `vqround export` reads */
    vq_recipe recipe;
    vq_method method;
    vq_init_kind init;
    int64_t bits, group_size; /* group_size -1: the whole row */
    bool sym;
    int64_t D, K;
    vq_list skip;
    int64_t nsamples, seqlen, seed;
    struct {
        vq_calib_mode mode;
    } calib;
    struct {
        vq_grid_search_kind search;
        bool include_zero;
        vq_scale_dtype scale_dtype;
    } grid;
    struct {
        int64_t block_size;
        double percdamp;
        bool act_order;
        vq_switch static_groups;
        vq_residual residual;
        vq_propagate propagate;
    } gptq;
    struct {
        vq_kmeans_engine engine;
        vq_kmeans_start start;
        int64_t iters, seed, max_points_per_centroid;
        bool by_sign, round_f16;
        double sharpen;
    } kmeans;
    struct {
        int64_t steps, batch, pool_max;
        double lr, scale_lr;
        vq_lr_schedule lr_schedule;
        vq_rounding rounding;
        bool learn_scale;
        int64_t block_steps;
        double block_lr, block_round_weight;
        vq_loss_kind loss;
        double kd_temperature, kd_alpha;
        double round_weight, beta_hi, beta_lo, beta_hold;
        vq_switch recompute, keep_weights;
    } train;
    struct {
        const char *model;
        bool cache;
    } teacher;
    struct {
        vq_list text;
        int64_t max_windows, seqlen;
        vq_dataset dataset;
        bool run, start;
    } eval;
    struct {
        vq_export_format format;
    } export;
    struct {
        int64_t every, keep;
    } checkpoint;
    struct {
        int64_t ranks, nodes, act_bytes;
        double memory_gib, gflops, link_gbs;
    } plan;
    struct {
        const char *dir;
        double dead_s;
    } share;
    double max_hours;
    bool resume;
    int64_t stages, replicas, slices;
    struct {
        double limit_s;
        vq_transport transport;
    } comm;
    vq_device device;
    int64_t threads;
    bool json, verbose, quiet;
    const char *config; /* the YAML file read */

    vq_list args;        /* what stood on the command line without a flag */
    bool help;           /* --help was asked for: nothing was checked for completeness */
    const char **origin; /* [keys] where each was set, "a.yaml:14" or "--lr"; NULL = default */
} vq_config;

/* Subcommands, as bits of the table's masks. */
typedef enum vq_command {
    VQ_QUANTIZE = 1,
    VQ_EVAL = 2,
    VQ_TOKENS = 4,
    VQ_INSPECT = 8,
    VQ_PLAN = 16,
    VQ_EXPORT = 32,
    VQ_REPORT = 64
} vq_command;

/* Phases, as bits of the table's masks. */
typedef enum vq_phase {
    VQ_PHASE_TOKENS = 1,
    VQ_PHASE_INIT = 2,
    VQ_PHASE_TEACHER = 4,
    VQ_PHASE_TRAIN = 8,
    VQ_PHASE_EVAL = 16,
    VQ_PHASE_GRID = 32, /* the part of init that comes before the codebooks */
    VQ_PHASE_BLOCKS = 64
} vq_phase;

/* The subcommand of that name. Fails: VQ_EUSAGE, with the nearest name. */
vq_status vq_command_find(const char *name, vq_command *out);
const char *vq_command_name(vq_command command);

/* The whole way: defaults, the file of --config, then argv[0..argc), which starts after the
 * subcommand; then everything is checked: ranges, keys that exclude each other, keys the
 * subcommand needs. Strings lie in the arena.
 * Fails: VQ_EUSAGE; the message has FILE:LINE or the flag, what was found and expected, and what
 * to do. VQ_EFILE (the YAML file is missing), VQ_EMEM. Local. */
vq_status vq_config_load(vq_arena *arena, vq_command command, int argc, const char *const *argv,
                         vq_config *out);

/* Its parts. parse_yaml reads `bytes` of text as a file called path (for messages) into *config;
 * keys that are not in it keep their value. */
vq_status vq_config_defaults(vq_arena *arena, vq_config *out);
vq_status vq_config_parse_yaml(vq_arena *arena, const char *path, const char *text, size_t bytes,
                               vq_config *config);
vq_status vq_config_read_yaml(vq_arena *arena, const char *path, vq_config *config);
vq_status vq_config_parse_args(vq_arena *arena, vq_command command, int argc,
                               const char *const *argv, vq_config *config);
vq_status vq_config_check(const vq_config *config, vq_command command);

/* Whether the method trains rounding logits: all but the baselines. */
bool vq_config_learns(const vq_config *config);

/* Whether GPTQ makes the grid: as the method, or as the start of learned rounding. */
bool vq_config_uses_gptq(const vq_config *config);

/* Whether GPTQ's own integers are evaluated or exported. */
bool vq_config_needs_ints(const vq_config *config);

/* Whether what is trained is codebooks. */
bool vq_config_has_codebook(const vq_config *config);

/* Whether a teacher's predictions are the aim of training. */
bool vq_config_has_teacher(const vq_config *config);

/* Tokens of a window in evaluation. */
int64_t vq_config_eval_seqlen(const vq_config *config);

/* Whether the grid depends on the calibration windows: GPTQ's, and one that is searched by output.
 */
bool vq_config_sweeps(const vq_config *config);

/* Whether a group's columns are not neighbours: act-order with groups found on the way. */
bool vq_config_scatters(const vq_config *config);

/* Where a key was set, for the first part of a message: "a.yaml:14 seqlen", "--seqlen", or
 * "seqlen (default)", into text. Returns text. */
const char *vq_config_where(const vq_config *config, const char *key, char text[256]);

/* Writes every key with its value, atomically, as YAML that vq_config_read_yaml reads back to the
 * same values; version and command line as comments. */
vq_status vq_config_write_yaml(const vq_config *config, const char *path, int argc,
                               const char *const *argv);

/* The keys on which the results of any phase in the mask depend and that differ, as
 * "bits (4, now 3), K (4096, now 512)" with a's value first, into text (cut to size).
 * Returns how many differ. */
int vq_config_diff(const vq_config *a, const vq_config *b, unsigned phases, char *text,
                   size_t size);

/* A hash of the values of those keys. */
uint64_t vq_config_phase_hash(const vq_config *config, unsigned phases);

/* Whether key i may change what comes out: a baseline has no codebooks and no training. */
bool vq_config_uses(const vq_config *config, int i);

/* Key i, NULL after the last; and its value as text without quotes, a list's items with blanks
 * between them, "" where it is not set, into text (cut to size). Returns text. */
const char *vq_config_key(int i);
const char *vq_config_value(const vq_config *config, int i, char *text, size_t size);

/* What --help prints: of the program (command 0) or of a subcommand. */
void vq_config_print_help(FILE *file, unsigned command);

/* The reference of all keys: for docs/keys.md, the man page, and what bash completes (the functions
 * _vqround_words SUBCOMMAND and _vqround_values FLAG). */
typedef enum vq_reference { VQ_MARKDOWN, VQ_ROFF, VQ_BASH } vq_reference;
void vq_config_print_reference(FILE *file, vq_reference format);
