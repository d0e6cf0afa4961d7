/* config - the table of keys, and everything that is made from it: the YAML reader and writer, the
 * command line, --help, the reference, and what tells two runs apart. */
#include "config.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "error.h"
#include "fileio.h"

/* --- the table --- */

typedef enum type { TEXT, LIST, INTEGER, REAL, BOOL, CHOICE } type;

typedef struct key {
    const char *name;
    const char *flags; /* besides the name, separated by spaces; the first is shown; may be NULL */
    const char *group; /* heading in --help */
    type type;
    size_t offset;        /* in vq_config */
    const char *standard; /* the default, as it would be written; NULL = not set */
    double min, max;      /* both inside; of numbers */
    const char *choices;  /* "a|b", in the order of the enum; an integer may have them too */
    const char *unit;     /* of a number; of a text what stands in --help: DIR, FILE */
    const char *help;     /* one line, without a full stop */
    unsigned commands;    /* that take it */
    unsigned required;    /* that do not work without it */
    unsigned phases;      /* whose results depend on it */
    bool command_line_only;
} key;

/* J is the job alone; what else it takes its plan takes too. */
enum {
    J = VQ_QUANTIZE,
    P = VQ_PLAN,
    Q = J | P,
    E = VQ_EVAL,
    T = VQ_TOKENS,
    I = VQ_INSPECT,
    X = VQ_EXPORT,
    R = VQ_REPORT,
    ALL = Q | E | T | I | X
};

/* What a phase makes the later ones use. */
enum {
    FOR_EVAL = VQ_PHASE_EVAL,
    FOR_TRAIN = VQ_PHASE_TRAIN | FOR_EVAL,
    FOR_TEACHER = VQ_PHASE_TEACHER | FOR_TRAIN,
    FOR_BLOCKS = VQ_PHASE_BLOCKS | FOR_TRAIN,
    FOR_CODES = VQ_PHASE_INIT | FOR_TRAIN,
    FOR_INIT = VQ_PHASE_GRID | FOR_CODES,
    FOR_TOKENS = VQ_PHASE_TOKENS | FOR_TEACHER
};

static const char in_model[] = "Model and texts", in_grid[] = "Quantization",
                  in_gptq[] = "GPTQ (--init gptq, --method gptq)", in_codebook[] = "Codebook",
                  in_train[] = "Training", in_eval[] = "Evaluation and export", in_run[] = "Run",
                  in_plan[] = "Plan";

#define AT(field) .offset = offsetof(vq_config, field)
#define RANGE(low, high) .min = (low), .max = (high)
#define FROM(low) .min = (low), .max = HUGE_VAL
static const key keys[] = {
    {"model", NULL, in_model, TEXT, AT(model), .unit = "DIR",
     .help = "the Hugging Face model folder: config.json, weights, tokenizer (export: where it is "
             "now, if it has moved)",
     .commands = Q | E | T | X, .required = Q | E | T},
    {"text", NULL, in_model, LIST, AT(text), .unit = "FILE",
     .help = "text to calibrate on (eval: to evaluate on): .txt or .jsonl, also .gz or .zst, or a "
             "folder of them; may be repeated",
     .commands = Q | E | T, .required = J | E | T, .phases = FOR_TOKENS},
    {"eval.text", "eval-text", in_model, LIST, AT(eval.text), .unit = "FILE",
     .help =
         "text to evaluate on; without it the last tenth of --text is held out; may be repeated",
     .commands = Q, .phases = FOR_TOKENS},
    {"out", NULL, in_model, TEXT, AT(out), .unit = "PATH",
     .help = "the run folder to write (tokens: the .h5 file; export: the model folder; report: the "
             "folder of report.html and report.csv)",
     .commands = Q | T | X | R, .required = J | T | X},
    {"run", NULL, in_model, TEXT, AT(run), .unit = "RUN",
     .help = "the folder of a finished run, whose model is exported", .commands = X, .required = X,
     .command_line_only = true},
    {"nsamples", NULL, in_model, INTEGER, AT(nsamples), .standard = "128", RANGE(1, 1 << 20),
     .unit = "windows", .help = "calibration windows", .commands = Q | T, .phases = FOR_TOKENS},
    {"seqlen", NULL, in_model, INTEGER, AT(seqlen), .standard = "2048", RANGE(2, 1 << 20),
     .unit = "tokens", .help = "tokens in a window", .commands = Q | E | T, .phases = FOR_TOKENS},
    {"seed", NULL, in_model, INTEGER, AT(seed), .standard = "0", FROM(0),
     .help = "chooses the calibration windows", .commands = Q | T, .phases = FOR_TOKENS},
    {"calib.mode", NULL, in_model, CHOICE, AT(calib.mode), .standard = "wikitext2",
     .choices = "wikitext2|c4",
     .help =
         "windows from one joined stream (wikitext2), or from documents that are long enough (c4)",
     .commands = Q | T, .phases = FOR_TOKENS},
    {"teacher.model", NULL, in_model, TEXT, AT(teacher.model), .unit = "DIR",
     .help = "the model to learn from; without it the model itself", .commands = Q,
     .phases = FOR_TEACHER},

    {"recipe", NULL, in_grid, CHOICE, AT(recipe), .standard = "paper", .choices = "paper|fast|best",
     .help =
         "a set of defaults: the paper's; the best found for 400 steps; the same levers for 5,000. "
         "Other keys override them",
     .commands = Q},
    {"method", NULL, in_grid, CHOICE, AT(method), .standard = "vqround",
     .choices = "vqround|rtn|gptq|adaround|lora",
     .help =
         "learned rounding out of a codebook; round to nearest and GPTQ, the baselines; or "
         "learned rounding with a logit for each weight (adaround) or logits of low rank (lora)",
     .commands = Q, .phases = FOR_INIT},
    {"bits", NULL, in_grid, INTEGER, AT(bits), .standard = "4", .choices = "2|3|4|8",
     .unit = "bits", .help = "bits of a quantized weight", .commands = Q, .phases = FOR_INIT},
    {"group_size", NULL, in_grid, INTEGER, AT(group_size), .standard = "-1", FROM(-1),
     .unit = "weights", .help = "weights of a row that share a scale; -1 is the whole row",
     .commands = Q, .phases = FOR_INIT},
    {"sym", NULL, in_grid, BOOL, AT(sym), .standard = "false", .help = "symmetric grid",
     .commands = Q, .phases = FOR_INIT},
    {"init", NULL, in_grid, CHOICE, AT(init), .standard = "rtn", .choices = "rtn|gptq",
     .help = "what learned rounding starts from: the weights themselves, or GPTQ's", .commands = Q,
     .phases = FOR_INIT},
    {"skip", NULL, in_grid, LIST, AT(skip), .standard = "lm_head", .unit = "NAME",
     .help = "leave linear layers with this in their name unquantized; may be repeated",
     .commands = Q, .phases = FOR_INIT},
    {"grid.search", "grid", in_grid, CHOICE, AT(grid.search), .standard = "minmax",
     .choices = "minmax|mse|output",
     .help = "a scale spans its weights from the least to the greatest, or the part of that range "
             "that rounds them best (mse), or that changes the linear's outputs least (output), "
             "which helps at any bits",
     .commands = Q, .phases = FOR_INIT},
    {"grid.include_zero", NULL, in_grid, BOOL, AT(grid.include_zero), .standard = "true",
     .help = "every row's range includes 0; needed by packed formats", .commands = Q,
     .phases = FOR_INIT},
    {"grid.scale_dtype", NULL, in_grid, CHOICE, AT(grid.scale_dtype), .standard = "auto",
     .choices = "auto|f32|f16|bf16",
     .help =
         "precision of the scales; auto is one that packed formats hold: bf16 for a bf16 model, "
         "else f16",
     .commands = Q, .phases = FOR_INIT},

    {"gptq.block_size", NULL, in_gptq, INTEGER, AT(gptq.block_size), .standard = "128",
     RANGE(1, 1 << 20), .unit = "columns",
     .help = "columns that are rounded before the rest of the weight is updated", .commands = Q,
     .phases = FOR_INIT},
    {"gptq.percdamp", NULL, in_gptq, REAL, AT(gptq.percdamp), .standard = "0.01", RANGE(0, 100),
     .unit = "of the mean diagonal", .help = "damping of the Hessian", .commands = Q,
     .phases = FOR_INIT},
    {"gptq.act_order", NULL, in_gptq, BOOL, AT(gptq.act_order), .standard = "false",
     .help = "round the columns with the largest inputs first", .commands = Q, .phases = FOR_INIT},
    {"gptq.static_groups", NULL, in_gptq, CHOICE, AT(gptq.static_groups), .standard = "auto",
     .choices = "auto|on|off",
     .help = "find the groups' scales before the sweep instead of on the way; auto is with "
             "act_order, where off scatters a group's columns",
     .commands = Q, .phases = FOR_INIT},
    {"gptq.residual", NULL, in_gptq, CHOICE, AT(gptq.residual), .standard = "exact",
     .choices = "exact|hessian",
     .help = "what the codebook is fitted to: GPTQ's own rounding, or the reference's mix with its "
             "errors",
     .commands = Q, .phases = FOR_INIT},
    {"gptq.propagate", NULL, in_gptq, CHOICE, AT(gptq.propagate), .standard = "auto",
     .choices = "auto|float|quantized",
     .help = "which weights give the next layer's inputs; auto is float to start from, quantized "
             "as a method",
     .commands = Q, .phases = FOR_INIT},

    {"D", NULL, in_codebook, INTEGER, AT(D), .standard = "8", RANGE(1, 64), .unit = "logits",
     .help = "rounding logits in a code", .commands = Q, .phases = FOR_CODES},
    {"K", NULL, in_codebook, INTEGER, AT(K), .standard = "4096", RANGE(1, 1 << 24), .unit = "codes",
     .help = "codes in a layer's codebook", .commands = Q, .phases = FOR_CODES},
    {"kmeans.engine", NULL, in_codebook, CHOICE, AT(kmeans.engine), .standard = "vq",
     .choices = "vq|faiss", .help = "our k-means, or FAISS' (as the paper)", .commands = Q,
     .phases = FOR_CODES},
    {"kmeans.start", NULL, in_codebook, CHOICE, AT(kmeans.start), .standard = "own",
     .choices = "shared|own",
     .help = "start from one codebook made once, or from each layer's own sample", .commands = Q,
     .phases = FOR_CODES},
    {"kmeans.by_sign", "by-sign", in_codebook, BOOL, AT(kmeans.by_sign), .standard = "false",
     .help = "weights share a code only where all are rounded alike at first, so that training "
             "starts from RTN's or GPTQ's own rounding",
     .commands = Q, .phases = FOR_CODES},
    {"kmeans.iters", NULL, in_codebook, INTEGER, AT(kmeans.iters), .standard = "100",
     RANGE(1, 100000), .unit = "iterations", .help = "k-means iterations", .commands = Q,
     .phases = FOR_CODES},
    {"kmeans.seed", NULL, in_codebook, INTEGER, AT(kmeans.seed), .standard = "1234",
     RANGE(0, INT32_MAX), .help = "chooses the k-means sample", .commands = Q, .phases = FOR_CODES},
    {"kmeans.max_points_per_centroid", NULL, in_codebook, INTEGER,
     AT(kmeans.max_points_per_centroid), .standard = "256", RANGE(1, 1 << 20), .unit = "vectors",
     .help = "k-means samples at most this many vectors a code", .commands = Q,
     .phases = FOR_CODES},
    {"kmeans.sharpen", "sharpen", in_codebook, REAL, AT(kmeans.sharpen), .standard = "0",
     RANGE(0, 10), .unit = "of a code",
     .help = "part of themselves by which the first codes move away from 0: roundings start more "
             "decided; 0.5 helps short runs",
     .commands = Q, .phases = FOR_CODES},
    {"kmeans.round_f16", NULL, in_codebook, BOOL, AT(kmeans.round_f16), .standard = "false",
     .help = "round the first codebook to f16, as the reference does", .commands = Q,
     .phases = FOR_CODES},

    {"train.steps", "steps", in_train, INTEGER, AT(train.steps), .standard = "5000", RANGE(0, 1e9),
     .unit = "steps", .help = "training steps; steps times lr of 10 or more hardens well",
     .commands = Q, .phases = FOR_TRAIN},
    {"train.lr", "lr", in_train, REAL, AT(train.lr), .standard = "0.01", RANGE(0, 100),
     .help = "Adam's learning rate", .commands = Q, .phases = FOR_TRAIN},
    {"train.lr_schedule", "lr-schedule", in_train, CHOICE, AT(train.lr_schedule),
     .standard = "constant", .choices = "constant|cosine|linear",
     .help = "whether learning rates stay as they are, or fall to 0 at the end", .commands = Q,
     .phases = FOR_BLOCKS},
    {"train.rounding", "rounding", in_train, CHOICE, AT(train.rounding), .standard = "soft",
     .choices = "soft|hard",
     .help = "train with roundings between down and up, which the regularizer makes final; or with "
             "final ones, whose gradient passes straight through",
     .commands = Q, .phases = FOR_BLOCKS},
    {"train.learn_scale", "learn-scale", in_train, BOOL, AT(train.learn_scale), .standard = "false",
     .help = "train the scale of each row or group along with the rounding", .commands = Q,
     .phases = FOR_BLOCKS},
    {"train.scale_lr", "scale-lr", in_train, REAL, AT(train.scale_lr), .standard = "0.001",
     RANGE(0, 1), .unit = "of a scale", .help = "Adam's learning rate of learned scales",
     .commands = Q, .phases = FOR_BLOCKS},
    {"train.batch", "batch-size", in_train, INTEGER, AT(train.batch), .standard = "1",
     RANGE(1, 65536), .unit = "windows", .help = "windows in a step", .commands = Q,
     .phases = FOR_BLOCKS},
    {"train.loss", "loss", in_train, CHOICE, AT(train.loss), .standard = "kd", .choices = "kd|lm",
     .help = "distillation from the teacher, or next-token loss", .commands = Q,
     .phases = FOR_TRAIN},
    {"train.kd_temperature", NULL, in_train, REAL, AT(train.kd_temperature), .standard = "2",
     RANGE(0.01, 100), .help = "softens both distributions of the distillation", .commands = Q,
     .phases = FOR_TRAIN},
    {"train.kd_alpha", NULL, in_train, REAL, AT(train.kd_alpha), .standard = "1", RANGE(0, 1e6),
     .help = "weight of the distillation loss", .commands = Q, .phases = FOR_TRAIN},
    {"train.round_weight", NULL, in_train, REAL, AT(train.round_weight), .standard = "0.01",
     RANGE(0, 1e6),
     .help = "weight of the rounding regularizer; 0 is off, as it is with hard rounding",
     .commands = Q, .phases = FOR_TRAIN},
    {"train.beta_hi", NULL, in_train, REAL, AT(train.beta_hi), .standard = "20", RANGE(1.01, 1000),
     .help = "the regularizer's exponent at first", .commands = Q, .phases = FOR_BLOCKS},
    {"train.beta_lo", NULL, in_train, REAL, AT(train.beta_lo), .standard = "2", RANGE(1.01, 1000),
     .help = "the regularizer's exponent at the end", .commands = Q, .phases = FOR_BLOCKS},
    {"train.beta_hold", NULL, in_train, REAL, AT(train.beta_hold), .standard = "0.1", RANGE(0, 1),
     .unit = "of the steps", .help = "part of the steps before the regularizer starts",
     .commands = Q, .phases = FOR_BLOCKS},
    {"train.block_steps", "block-steps", in_train, INTEGER, AT(train.block_steps), .standard = "0",
     RANGE(0, 1e9), .unit = "steps",
     .help = "before the training, steps of each layer by itself towards the teacher's layer",
     .commands = Q, .phases = FOR_BLOCKS},
    {"train.block_lr", "block-lr", in_train, REAL, AT(train.block_lr), .standard = "0.01",
     RANGE(0, 100), .help = "Adam's learning rate of those steps", .commands = Q,
     .phases = FOR_BLOCKS},
    {"train.block_round_weight", NULL, in_train, REAL, AT(train.block_round_weight),
     .standard = "0", RANGE(0, 1e6), .help = "weight of the rounding regularizer in those steps",
     .commands = Q, .phases = FOR_BLOCKS},
    {"train.recompute", NULL, in_train, CHOICE, AT(train.recompute), .standard = "auto",
     .choices = "auto|on|off",
     .help = "compute activations again in the backward instead of keeping them; auto decides by "
             "memory",
     .commands = Q},
    {"train.keep_weights", NULL, in_train, CHOICE, AT(train.keep_weights), .standard = "auto",
     .choices = "auto|on|off",
     .help = "make each weight of its codes once a step instead of for each product; auto: on a "
             "GPU whose memory allows it",
     .commands = Q},
    {"train.pool_max", NULL, in_train, INTEGER, AT(train.pool_max), .standard = "67108864", FROM(0),
     .unit = "numbers",
     .help =
         "more trained numbers than this are kept by the ranks of their stage instead of by all "
         "ranks",
     .commands = Q, .phases = FOR_BLOCKS},
    {"teacher.cache", NULL, in_train, BOOL, AT(teacher.cache), .standard = "true",
     .help = "keep the teacher's final hidden states on disk instead of running it each step",
     .commands = Q, .phases = FOR_TEACHER},

    {"eval.run", "eval", in_eval, BOOL, AT(eval.run), .standard = "true",
     .help = "measure perplexity before and after", .commands = Q},
    {"eval.start", "eval-start", in_eval, BOOL, AT(eval.start), .standard = "false",
     .help = "measure the codebook before training too", .commands = Q},
    {"eval.dataset", "dataset", in_eval, CHOICE, AT(eval.dataset), .standard = "stream",
     .choices = "stream|wikitext2|ptb|c4",
     .help = "how the evaluation text's documents are joined: as they are, or as the papers do for "
             "these",
     .commands = Q | E, .phases = FOR_EVAL},
    {"eval.seqlen", NULL, in_eval, INTEGER, AT(eval.seqlen), .standard = "0", RANGE(0, 1 << 20),
     .unit = "tokens", .help = "tokens in an evaluation window; 0 is seqlen", .commands = Q,
     .phases = FOR_EVAL},
    {"eval.max_windows", "eval-max-windows max-windows", in_eval, INTEGER, AT(eval.max_windows),
     .standard = "0", FROM(0), .unit = "windows",
     .help = "evaluate on the first windows only; 0 is all", .commands = Q | E, .phases = FOR_EVAL},
    {"export.format", "format", in_eval, CHOICE, AT(export.format), .standard = "dense",
     .choices = "dense|gptq|compressed-tensors",
     .help = "what the exported model folder holds: weights in the model's precision, which any "
             "engine loads, or packed integers for engines that compute with them",
     .commands = Q | X},

    {"resume", NULL, in_run, BOOL, AT(resume), .standard = "true",
     .help = "go on with what the run folder holds; --no-resume starts anew", .commands = Q},
    {"checkpoint.every", "checkpoint-every", in_run, INTEGER, AT(checkpoint.every),
     .standard = "200", FROM(0), .unit = "steps",
     .help = "steps between checkpoints; 0 is only at the end or on a signal", .commands = Q},
    {"checkpoint.keep", NULL, in_run, INTEGER, AT(checkpoint.keep), .standard = "2", RANGE(1, 1000),
     .unit = "checkpoints", .help = "checkpoints to keep", .commands = Q},
    {"share.dir", "share", in_run, TEXT, AT(share.dir), .unit = "DIR",
     .help =
         "folder where runs find each other's tokens, GPTQ grids, codebooks, teacher states and "
         "first perplexities, each made by the first that needs it",
     .commands = J},
    {"share.dead_s", NULL, in_run, REAL, AT(share.dead_s), .standard = "180", RANGE(0.1, 1e6),
     .unit = "seconds",
     .help = "a run that is silent so long has lost what it was making in share.dir to the next",
     .commands = J},
    {"max_hours", NULL, in_run, REAL, AT(max_hours), .standard = "0", RANGE(0, 1e6),
     .unit = "hours",
     .help = "checkpoint and stop (exit code 75) before this time is over; 0 is no limit",
     .commands = Q},
    {"stages", NULL, in_run, INTEGER, AT(stages), .standard = "0", RANGE(0, 4096),
     .help = "pipeline stages: runs of layers; 0 is chosen from the ranks", .commands = Q | E | X},
    {"replicas", NULL, in_run, INTEGER, AT(replicas), .standard = "0", RANGE(0, 4096),
     .help = "copies of the pipeline, which share a step's windows; 0 is chosen from the ranks",
     .commands = Q},
    {"slices", NULL, in_run, INTEGER, AT(slices), .standard = "1", RANGE(1, 4096),
     .help = "slices of a window that flow through the pipeline one after the other", .commands = Q,
     .phases = FOR_TRAIN},
    {"comm.limit_s", NULL, in_run, REAL, AT(comm.limit_s), .standard = "1800", RANGE(0.1, 1e6),
     .unit = "seconds",
     .help = "a rank that waits so long for another, while none makes progress, ends the job",
     .commands = Q | E | X},
    {"comm.transport", "comm", in_run, CHOICE, AT(comm.transport), .standard = "auto",
     .choices = "auto|mpi|nccl",
     .help = "what carries GPUs' tensors; auto is NCCL where each rank has a GPU of its own",
     .commands = Q | E | X},
    {"device", NULL, in_run, CHOICE, AT(device), .standard = "auto", .choices = "auto|cpu|cuda",
     .help = "where to compute; auto is a GPU where there is one", .commands = ALL},
    {"threads", NULL, in_run, INTEGER, AT(threads), .standard = "0", RANGE(0, 4096),
     .help = "threads of a rank; 0 is all cores it may use", .commands = ALL},
    {"config", NULL, in_run, TEXT, AT(config), .unit = "FILE",
     .help = "read keys from this YAML file; the command line overrides them", .commands = ALL,
     .command_line_only = true},
    {"json", NULL, in_run, BOOL, AT(json), .standard = "false",
     .help = "end stdout with the results as one JSON object on one line", .commands = ALL | R},
    {"verbose", NULL, in_run, BOOL, AT(verbose), .standard = "false",
     .help = "say more while working", .commands = ALL | R},
    {"quiet", NULL, in_run, BOOL, AT(quiet), .standard = "false",
     .help = "show only warnings and errors", .commands = ALL | R},

    {"plan.ranks", "ranks", in_plan, INTEGER, AT(plan.ranks), .standard = "0", RANGE(0, 65536),
     .help = "ranks to plan for; 0 is those of this job", .commands = P},
    {"plan.nodes", "nodes", in_plan, INTEGER, AT(plan.nodes), .standard = "1", RANGE(1, 65536),
     .help = "machines that the ranks fill in order", .commands = P},
    {"plan.memory_gib", NULL, in_plan, REAL, AT(plan.memory_gib), .standard = "0", RANGE(0, 1e6),
     .unit = "GiB",
     .help =
         "memory of a rank, with --device cuda of its GPU; 0 is what this machine (in a job: the "
         "GPU) has free, shared by its ranks",
     .commands = P | Q},
    {"plan.gflops", NULL, in_plan, REAL, AT(plan.gflops), .standard = "0", RANGE(0, 1e9),
     .unit = "GFLOP/s", .help = "speed of a rank's matrix products; 0 is measured here in a second",
     .commands = P},
    {"plan.link_gbs", NULL, in_plan, REAL, AT(plan.link_gbs), .standard = "10", RANGE(1e-3, 1e6),
     .unit = "GB/s", .help = "speed of the links between ranks", .commands = P},
    {"plan.act_bytes", NULL, in_plan, INTEGER, AT(plan.act_bytes), .standard = "4",
     .choices = "2|4", .unit = "bytes",
     .help = "bytes of an activation: 4 on the CPU, 2 on a GPU (bf16)", .commands = P},
};

/* What recipes set instead of the defaults, which are the paper's. */
enum { FAST = 1 << VQ_RECIPE_FAST, BEST = 1 << VQ_RECIPE_BEST };

static const struct {
    unsigned recipes;
    const char *name, *value;
} recipes[] = {
    {FAST | BEST, "init", "gptq"},
    {FAST | BEST, "grid.search", "output"},
    {FAST | BEST, "kmeans.by_sign", "true"},
    {FAST | BEST, "train.rounding", "hard"},
    {FAST | BEST, "train.lr_schedule", "cosine"},
    {FAST | BEST, "train.learn_scale", "true"},
    {FAST | BEST, "train.scale_lr", "0.002"},
    {FAST, "train.steps", "400"},
    {FAST, "train.lr", "0.02"},
};

static const struct {
    vq_command command;
    const char *name, *arguments, *help;
} commands[] = {
    {VQ_QUANTIZE, "quantize", "--model DIR --text FILE --out RUN",
     "quantize a model with learned rounding: the whole job, from the text to the new model"},
    {VQ_EVAL, "eval", "--model DIR --text FILE", "perplexity of a model on a text"},
    {VQ_TOKENS, "tokens", "--model DIR --text FILE --out FILE.h5",
     "cut a text into windows of tokens, as quantize does"},
    {VQ_PLAN, "plan", "--model DIR",
     "memory by rank, bytes between ranks, time and disk of a quantize job; loads no weights"},
    {VQ_EXPORT, "export", "--run RUN --format FORMAT --out DIR",
     "the model of a finished run in another format"},
    {VQ_INSPECT, "inspect", "PATH",
     "what a model folder, run folder, checkpoint or .h5 file holds"},
    {VQ_REPORT, "report", "DIR...",
     "compare the runs in some folders: results as a table, curves, figures, failures"},
};

vq_status vq_command_find(const char *name, vq_command *out);

const char *vq_command_name(vq_command command)
{
    for (int i = 0; i < VQ_COUNT(commands); i++)
        if (commands[i].command == command) return commands[i].name;
    return "";
}

/* --- names --- */

#define NAME_MAX_COMPARED 63

/* How many letters to change, add or remove to get from a to b. */
static int edit_distance(const char *a, const char *b)
{
    int row[NAME_MAX_COMPARED + 1];
    int n = (int)strnlen(a, NAME_MAX_COMPARED), m = (int)strnlen(b, NAME_MAX_COMPARED);
    for (int j = 0; j <= m; j++) row[j] = j;
    for (int i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = VQ_MIN(replaced, VQ_MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[m];
}

static const char *last_part(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

/* The key most like name; a right last part in a wrong section is near too. */
static const key *nearest_key(const char *name, unsigned command)
{
    const key *best = NULL;
    int least = 0;
    for (int i = 0; i < VQ_COUNT(keys); i++) {
        if (!(keys[i].commands & command)) continue;
        int whole = edit_distance(name, keys[i].name);
        int part = 1 + edit_distance(last_part(name), last_part(keys[i].name));
        int flag = keys[i].flags ? edit_distance(name, keys[i].flags) : whole;
        int d = VQ_MIN(whole, VQ_MIN(part, flag));
        if (best && d >= least) continue;
        best = &keys[i];
        least = d;
    }
    return best;
}

vq_status vq_command_find(const char *name, vq_command *out)
{
    int best = 0;
    for (int i = 0; i < VQ_COUNT(commands); i++) {
        if (strcmp(commands[i].name, name) == 0) {
            *out = commands[i].command;
            return VQ_OK;
        }
        if (edit_distance(name, commands[i].name) < edit_distance(name, commands[best].name))
            best = i;
    }
    VQ_FAIL(VQ_EUSAGE,
            "vqround %s: there is no such subcommand, expected one such as %s, the nearest. See "
            "\"vqround --help\"",
            name, commands[best].name);
}

static const key *find_key(const char *name)
{
    for (int i = 0; i < VQ_COUNT(keys); i++)
        if (strcmp(keys[i].name, name) == 0) return &keys[i];
    return NULL;
}

/* The same n letters; on the command line '-' and '_' are one. */
static bool same_flag(const char *a, const char *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (a[i] != b[i] && !(strchr("-_", a[i]) && b[i] && strchr("-_", b[i]))) return false;
    return true;
}

static const key *find_flag(const char *flag, size_t n)
{
    for (int i = 0; i < VQ_COUNT(keys); i++) {
        if (strlen(keys[i].name) == n && same_flag(flag, keys[i].name, n)) return &keys[i];
        for (const char *f = keys[i].flags; f; f = strchr(f, ' ') ? strchr(f, ' ') + 1 : NULL)
            if (strcspn(f, " ") == n && same_flag(flag, f, n)) return &keys[i];
    }
    return NULL;
}

/* The flag as --help shows it, without "--". */
static const char *shown_flag(const key *k, char text[64])
{
    snprintf(text, 64, "%s", k->flags ? k->flags : k->name);
    text[strcspn(text, " ")] = '\0';
    for (char *p = text; *p; p++)
        if (*p == '_') *p = '-';
    return text;
}

/* --- values --- */

static void *field(const vq_config *config, const key *k)
{
    return (char *)(uintptr_t)config + k->offset;
}

static int key_index(const key *k)
{
    return (int)(k - keys);
}

/* "2, 3, 4 or 8" from "2|3|4|8". */
static void choices_text(const char *choices, char text[128])
{
    int n = 0;
    for (const char *p = choices; *p && n < 120; p++) {
        if (*p != '|')
            text[n++] = *p;
        else
            n += sprintf(text + n, "%s", strchr(p + 1, '|') ? ", " : " or ");
    }
    text[n] = '\0';
}

/* Where value stands in "a|b|c", or -1. */
static int choice_index(const char *choices, const char *value)
{
    size_t n = strlen(value);
    int index = 0;
    for (const char *p = choices;; p++, index++) {
        size_t m = strcspn(p, "|");
        if (m == n && memcmp(p, value, n) == 0) return index;
        p += m;
        if (!*p) return -1;
    }
}

static void expected_text(const key *k, char text[128])
{
    const char *number = k->type == REAL ? "a number" : "an integer";
    if (k->choices)
        choices_text(k->choices, text);
    else if (k->type == BOOL)
        snprintf(text, 128, "true or false");
    else if (k->type == INTEGER || k->type == REAL)
        isinf(k->max) ? snprintf(text, 128, "%s from %g up", number, k->min)
                      : snprintf(text, 128, "%s from %g to %.10g", number, k->min, k->max);
    else
        snprintf(text, 128, "a text that is not empty (%s)", k->unit);
}

static bool is_one_of(const char *value, const char *const list[3])
{
    return !strcmp(value, list[0]) || !strcmp(value, list[1]) || !strcmp(value, list[2]);
}

static bool parse_bool(const char *value, bool *out)
{
    *out = is_one_of(value, (const char *const[]){"true", "on", "yes"});
    return *out || is_one_of(value, (const char *const[]){"false", "off", "no"});
}

static bool in_range(const key *k, double value)
{
    return k->choices || (value >= k->min && value <= k->max);
}

static bool parse_number(const key *k, const char *value, void *out)
{
    char *end;
    if (strspn(value, "+-0123456789.eE") != strlen(value)) return false; /* no hex, no inf */
    errno = 0;
    if (k->type == REAL) {
        double d = strtod(value, &end);
        if (end == value || *end || errno == ERANGE || !in_range(k, d)) return false;
        *(double *)out = d;
    } else {
        long long n = strtoll(value, &end, 10);
        if (end == value || *end || errno == ERANGE || !in_range(k, (double)n)) return false;
        *(int64_t *)out = n;
    }
    return true;
}

/* Sets a key, or appends to a list. False: the value is none of its. */
static vq_status assign(vq_arena *arena, vq_config *config, const key *k, const char *value,
                        bool *valid)
{
    void *to = field(config, k);
    *valid = true;
    switch (k->type) {
    case TEXT: {
        char *copy;
        *valid = *value != '\0';
        VQ_TRY(vq_arena_text(arena, value, strlen(value), &copy));
        *(const char **)to = copy;
        return VQ_OK;
    }
    case LIST: {
        vq_list *list = to, longer = {.n = list->n + 1};
        char *copy;
        *valid = *value != '\0';
        VQ_TRY(vq_arena_text(arena, value, strlen(value), &copy));
        VQ_TRY(VQ_NEW(arena, longer.n, &longer.item));
        if (list->n > 0) memcpy(longer.item, list->item, (size_t)list->n * sizeof *list->item);
        longer.item[list->n] = copy;
        *list = longer;
        return VQ_OK;
    }
    case BOOL: *valid = parse_bool(value, to); return VQ_OK;
    case CHOICE: {
        int index = choice_index(k->choices, value);
        *valid = index >= 0;
        if (*valid) *(int *)to = index; /* an enum: enumerators are ints from 0 */
        return VQ_OK;
    }
    case INTEGER:
        *valid = !k->choices || choice_index(k->choices, value) >= 0;
        *valid = *valid && parse_number(k, value, to);
        return VQ_OK;
    case REAL: *valid = parse_number(k, value, to); return VQ_OK;
    }
    return VQ_OK;
}

/* assign with the error of a wrong value; where is "a.yaml:14 bits" or "--bits". */
static vq_status set(vq_arena *arena, vq_config *config, const key *k, const char *where,
                     const char *value, const char *command)
{
    bool valid;
    char expected[128];
    VQ_TRY(assign(arena, config, k, value, &valid));
    if (valid) return VQ_OK;
    expected_text(k, expected);
    VQ_FAIL(VQ_EUSAGE, "%s = %.64s: expected %s. Change it, or see \"vqround %s --help\"", where,
            value, expected, command);
}

vq_status vq_config_defaults(vq_arena *arena, vq_config *out)
{
    *out = (vq_config){0};
    VQ_TRY(VQ_NEW(arena, VQ_COUNT(keys), &out->origin));
    for (int i = 0; i < VQ_COUNT(keys); i++) {
        out->origin[i] = NULL;
        if (keys[i].standard)
            VQ_TRY(set(arena, out, &keys[i], keys[i].name, keys[i].standard, "quantize"));
    }
    return VQ_OK;
}

/* --- YAML --- */

/* A scalar, or the beginning or end of something. */
typedef struct item {
    yaml_event_type_t type;
    int line;
    const char *text; /* of a scalar */
    bool null;
} item;

typedef struct reader {
    vq_arena *arena;
    const char *path;
    vq_config *config;
    yaml_parser_t parser;
    int line_of[VQ_COUNT(keys)]; /* where each key stands in this file; 0 = not yet */
} reader;

#define YAML_ADVICE "Change it, or see \"vqround quantize --help\""

static bool means_null(const yaml_event_t *e)
{
    const char *text = (const char *)e->data.scalar.value;
    return e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           is_one_of(text, (const char *const[]){"", "~", "null"});
}

static vq_status next(reader *r, item *out)
{
    yaml_event_t e;
    if (!yaml_parser_parse(&r->parser, &e)) {
        const char *problem = r->parser.problem ? r->parser.problem : "not readable";
        VQ_FAIL(
            VQ_EUSAGE,
            "%s:%d: %s; expected YAML lines such as \"key: value\", indented by spaces. Correct it",
            r->path, (int)VQ_MAX(r->parser.problem_mark.line, r->parser.mark.line) + 1, problem);
    }
    vq_status status = VQ_OK;
    *out = (item){.type = e.type, .line = (int)e.start_mark.line + 1};
    if (e.type == YAML_SCALAR_EVENT) {
        size_t n = e.data.scalar.length;
        char *text = NULL;
        status = vq_arena_text(r->arena, (const char *)e.data.scalar.value, n, &text);
        if (status == VQ_OK && strlen(text) != n)
            status = vq_error_set(VQ_EUSAGE, __FILE__, __LINE__,
                                  "%s:%d: a text has a NUL character, expected none. Correct it",
                                  r->path, out->line);
        out->text = text;
        out->null = means_null(&e);
    }
    yaml_event_delete(&e);
    return status;
}

/* The first key that begins with "name.": name is a section then. */
static const key *first_below(const char *name)
{
    size_t n = strlen(name);
    for (int i = 0; i < VQ_COUNT(keys); i++)
        if (strncmp(keys[i].name, name, n) == 0 && keys[i].name[n] == '.') return &keys[i];
    return NULL;
}

static vq_status unknown_key(const reader *r, int line, const char *name)
{
    const key *below = first_below(name);
    VQ_CHECK(
        !below, VQ_EUSAGE,
        "%s:%d %s has a value and is a section: expected keys below it, such as %s. " YAML_ADVICE,
        r->path, line, name, below->name + strlen(name) + 1);
    VQ_FAIL(VQ_EUSAGE,
            "%s:%d %s: there is no such key, expected one such as %s, the nearest. " YAML_ADVICE,
            r->path, line, name, nearest_key(name, ALL)->name);
}

/* The value of key name, whose first item is v. */
static vq_status read_value(reader *r, const char *name, int line, item v)
{
    const key *k = find_key(name);
    char where[PATH_MAX + 128], *origin;
    if (!k) return unknown_key(r, line, name);
    int *seen = &r->line_of[key_index(k)];
    VQ_CHECK(!k->command_line_only, VQ_EUSAGE,
             "%s:%d %s: expected on the command line only. Remove it", r->path, line, name);
    VQ_CHECK(!*seen, VQ_EUSAGE,
             "%s:%d %s is there twice, first in line %d: expected once. Remove one", r->path, line,
             name, *seen);
    *seen = line;
    int n = snprintf(where, sizeof where, "%s:%d", r->path, line);
    VQ_TRY(vq_arena_text(r->arena, where, strlen(where), &origin));
    r->config->origin[key_index(k)] = origin;
    snprintf(where + n, sizeof where - (size_t)n, " %s", name);

    if (k->type == LIST) *(vq_list *)field(r->config, k) = (vq_list){0};
    if (k->type == TEXT && v.null) *(const char **)field(r->config, k) = NULL;
    if ((k->type == LIST || k->type == TEXT) && v.null) return VQ_OK;
    if (v.type == YAML_SCALAR_EVENT) return set(r->arena, r->config, k, where, v.text, "quantize");
    if (k->type == LIST && v.type == YAML_SEQUENCE_START_EVENT) {
        VQ_TRY(next(r, &v));
        while (v.type == YAML_SCALAR_EVENT) {
            VQ_TRY(set(r->arena, r->config, k, where, v.text, "quantize"));
            VQ_TRY(next(r, &v));
        }
        if (v.type == YAML_SEQUENCE_END_EVENT) return VQ_OK;
    }
    VQ_FAIL(VQ_EUSAGE, "%s: expected %s. " YAML_ADVICE, where,
            k->type == LIST ? "a text, or a list of texts" : "one value, not a list or section");
}

/* The keys of a mapping up to its end; prefix is "" or a section's name. */
static vq_status read_mapping(reader *r, const char *prefix)
{
    item k, v;
    for (;;) {
        VQ_TRY(next(r, &k));
        if (k.type == YAML_MAPPING_END_EVENT) return VQ_OK;
        VQ_CHECK(k.type == YAML_SCALAR_EVENT, VQ_EUSAGE,
                 "%s:%d: a key that is no text, expected \"key: value\". " YAML_ADVICE, r->path,
                 k.line);
        char name[128];
        int n = snprintf(name, sizeof name, "%s%s%s", prefix, *prefix ? "." : "", k.text);
        if (n >= (int)sizeof name) return unknown_key(r, k.line, name);
        VQ_TRY(next(r, &v));
        if (v.type == YAML_MAPPING_START_EVENT && !find_key(name)) {
            if (!first_below(name)) return unknown_key(r, k.line, name);
            VQ_TRY(read_mapping(r, name)); /* as deep as names have dots */
        } else if (v.null && !find_key(name) && first_below(name)) {
            continue; /* a section whose keys are comments */
        } else {
            VQ_TRY(read_value(r, name, k.line, v));
        }
    }
}

static vq_status read_stream(reader *r)
{
    item v;
    VQ_TRY(next(r, &v)); /* the stream's start */
    VQ_TRY(next(r, &v));
    if (v.type == YAML_STREAM_END_EVENT) return VQ_OK;
    VQ_TRY(next(r, &v));
    if (v.type == YAML_MAPPING_START_EVENT)
        VQ_TRY(read_mapping(r, ""));
    else
        VQ_CHECK(v.type == YAML_SCALAR_EVENT && v.null, VQ_EUSAGE,
                 "%s:%d: expected lines such as \"key: value\". " YAML_ADVICE, r->path, v.line);
    VQ_TRY(next(r, &v)); /* the document's end */
    VQ_TRY(next(r, &v));
    VQ_CHECK(v.type == YAML_STREAM_END_EVENT, VQ_EUSAGE,
             "%s:%d: a second YAML document, expected one. Remove it", r->path, v.line);
    return VQ_OK;
}

vq_status vq_config_parse_yaml(vq_arena *arena, const char *path, const char *text, size_t bytes,
                               vq_config *config)
{
    reader r = {.arena = arena, .path = path, .config = config};
    VQ_CHECK(yaml_parser_initialize(&r.parser), VQ_EMEM,
             "%s cannot be read: expected memory for the YAML parser. Free some memory", path);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, bytes);
    vq_status status = read_stream(&r);
    yaml_parser_delete(&r.parser);
    return status;
}

vq_status vq_config_read_yaml(vq_arena *arena, const char *path, vq_config *config)
{
    char *text;
    size_t bytes;
    VQ_TRY(vq_file_read(arena, path, &text, &bytes));
    return vq_config_parse_yaml(arena, path, text, bytes, config);
}

/* --- the command line --- */

static bool is_flag(const char *arg)
{
    return arg[0] == '-' && arg[1] == '-' && arg[2] != '\0';
}

/* The key of "--name" or "--no-name"; *negated in the second case. */
static vq_status flag_key(const char *arg, size_t n, vq_command command, const key **out,
                          bool *negated)
{
    const char *name = vq_command_name(command);
    char shown[64], typed[64];
    *negated = false;
    *out = find_flag(arg + 2, n - 2);
    if (!*out && n > 5 && strncmp(arg, "--no-", 5) == 0) {
        const key *k = find_flag(arg + 5, n - 5);
        *negated = k && k->type == BOOL;
        if (*negated) *out = k;
    }
    if (!*out) {
        snprintf(typed, sizeof typed, "%.*s", (int)VQ_MIN(n - 2, (size_t)63), arg + 2);
        VQ_FAIL(VQ_EUSAGE,
                "%.*s: there is no such flag, expected one such as --%s, the nearest. See "
                "\"vqround %s --help\"",
                (int)n, arg, shown_flag(nearest_key(typed, command), shown), name);
    }
    VQ_CHECK((*out)->commands & command, VQ_EUSAGE,
             "%.*s is a flag of other subcommands, expected one of vqround %s. Remove it, or see "
             "\"vqround %s --help\"",
             (int)n, arg, name, name);
    return VQ_OK;
}

/* One flag at argv[*i]; *i moves to the next argument. */
static vq_status read_flag(vq_arena *arena, vq_command command, int argc, const char *const *argv,
                           int *i, vq_config *config)
{
    const char *arg = argv[(*i)++], *name = vq_command_name(command), *value = NULL;
    const key *k = NULL;
    size_t n = strcspn(arg, "=");
    char expected[128], *origin;
    bool negated = false;
    VQ_TRY(flag_key(arg, n, command, &k, &negated));
    VQ_CHECK(!negated || !arg[n], VQ_EUSAGE,
             "%s: expected --no-... without a value. Remove \"%s\", or see \"vqround %s --help\"",
             arg, arg + n, name);
    if (arg[n])
        value = arg + n + 1;
    else if (k->type != BOOL && *i < argc && !is_flag(argv[*i]))
        value = argv[(*i)++];
    else if (k->type == BOOL && !negated && *i < argc && parse_bool(argv[*i], &(bool){false}))
        value = argv[(*i)++];
    else if (k->type == BOOL)
        value = negated ? "false" : "true";
    expected_text(k, expected);
    VQ_CHECK(value, VQ_EUSAGE, "%s has no value: expected %s. Add it, or see \"vqround %s --help\"",
             arg, expected, name);

    const char **from = &config->origin[key_index(k)];
    bool again = *from && is_flag(*from);
    VQ_CHECK(!again || k->type == LIST, VQ_EUSAGE, "%.*s is given twice: expected once. Remove one",
             (int)n, arg);
    if (!again && k->type == LIST) *(vq_list *)field(config, k) = (vq_list){0};
    VQ_TRY(vq_arena_text(arena, arg, n, &origin));
    *from = origin;
    return set(arena, config, k, origin, value, name);
}

vq_status vq_config_parse_args(vq_arena *arena, vq_command command, int argc,
                               const char *const *argv, vq_config *config)
{
    VQ_TRY(VQ_NEW(arena, argc, &config->args.item));
    config->args.n = 0;
    for (int i = 0; i < argc;) {
        const char *arg = argv[i];
        if (!strcmp(arg, "--help") || !strcmp(arg, "-h")) {
            config->help = true;
            i++;
        } else if (is_flag(arg)) {
            VQ_TRY(read_flag(arena, command, argc, argv, &i, config));
        } else {
            VQ_CHECK(arg[0] != '-' || !find_flag(arg + 1, strcspn(arg + 1, "=")), VQ_EUSAGE,
                     "vqround %s: %s: expected flags with two dashes. Write -%s, or see \"vqround "
                     "%s --help\"",
                     vq_command_name(command), arg, arg, vq_command_name(command));
            VQ_CHECK(command & (VQ_INSPECT | VQ_REPORT) && arg[0] != '-', VQ_EUSAGE,
                     "vqround %s: \"%s\" stands alone, expected flags such as --text FILE. Put its "
                     "flag in front, or see \"vqround %s --help\"",
                     vq_command_name(command), arg, vq_command_name(command));
            config->args.item[config->args.n++] = arg;
            i++;
        }
    }
    return VQ_OK;
}

/* --- checks --- */

const char *vq_config_where(const vq_config *config, const char *name, char text[256])
{
    const key *k = find_key(name);
    const char *origin = k && config->origin ? config->origin[key_index(k)] : NULL;
    if (!origin)
        snprintf(text, 256, "%s (default)", name);
    else if (is_flag(origin))
        snprintf(text, 256, "%s", origin);
    else
        snprintf(text, 256, "%s %s", origin, name);
    return text;
}

bool vq_config_learns(const vq_config *config)
{
    return config->method != VQ_METHOD_RTN && config->method != VQ_METHOD_GPTQ;
}

bool vq_config_uses_gptq(const vq_config *config)
{
    return config->method == VQ_METHOD_GPTQ ||
           (vq_config_learns(config) && config->init == VQ_INIT_GPTQ);
}

bool vq_config_needs_ints(const vq_config *config)
{
    return config->method == VQ_METHOD_GPTQ || (vq_config_uses_gptq(config) && config->eval.start);
}

bool vq_config_has_codebook(const vq_config *config)
{
    return config->method == VQ_METHOD_VQROUND;
}

bool vq_config_has_teacher(const vq_config *config)
{
    return vq_config_learns(config) && config->train.loss == VQ_LOSS_KD;
}

int64_t vq_config_eval_seqlen(const vq_config *config)
{
    return config->eval.seqlen ? config->eval.seqlen : config->seqlen;
}

bool vq_config_sweeps(const vq_config *config)
{
    return vq_config_uses_gptq(config) || config->grid.search == VQ_SEARCH_OUTPUT;
}

bool vq_config_scatters(const vq_config *config)
{
    return vq_config_uses_gptq(config) && config->gptq.act_order && config->group_size > 0 &&
           config->gptq.static_groups == VQ_OFF;
}

static vq_status check_gptq(const vq_config *config)
{
    char where[256], other[256];
    VQ_CHECK(config->method != VQ_METHOD_RTN || config->init == VQ_INIT_RTN ||
                 config->recipe != VQ_RECIPE_PAPER, /* a recipe is for what is learned, if it is */
             VQ_EUSAGE,
             "%s = gptq: with %s = rtn expected rtn, since nothing is learned. Leave it out, or "
             "give --method gptq",
             vq_config_where(config, "init", where), vq_config_where(config, "method", other));
    return VQ_OK;
}

/* What a packed format cannot hold must not be made. */
static vq_status check_export(const vq_config *config)
{
    char where[256], other[256];
    if (config->export.format == VQ_EXPORT_DENSE) return VQ_OK;
    VQ_CHECK(config->grid.include_zero, VQ_EUSAGE,
             "%s = false: its zeros may leave the grid, and no packed format (%s) has room for "
             "them: expected true. Leave it out, or export dense",
             vq_config_where(config, "grid.include_zero", where),
             vq_config_where(config, "export.format", other));
    VQ_CHECK(config->export.format != VQ_EXPORT_COMPRESSED_TENSORS || !vq_config_scatters(config),
             VQ_EUSAGE,
             "%s = off: with gptq.act_order and groups their columns are scattered, which "
             "compressed-tensors' readers have dropped (%s): expected on or auto. Leave it out, or "
             "export gptq or dense",
             vq_config_where(config, "gptq.static_groups", where),
             vq_config_where(config, "export.format", other));
    VQ_CHECK(config->export.format != VQ_EXPORT_GPTQ || config->grid.scale_dtype != VQ_SCALE_F32,
             VQ_EUSAGE,
             "%s = f32: GPTQ's files (%s) have scales in f16: expected auto, f16 or bf16. Leave it "
             "out, or export dense",
             vq_config_where(config, "grid.scale_dtype", where),
             vq_config_where(config, "export.format", other));
    return VQ_OK;
}

vq_status vq_config_check(const vq_config *config, vq_command command)
{
    const char *name = vq_command_name(command);
    char where[256], other[256], flag[64];
    for (int i = 0; i < VQ_COUNT(keys); i++) {
        const key *k = &keys[i];
        if (!(k->required & command)) continue;
        bool there = k->type == LIST ? ((vq_list *)field(config, k))->n > 0
                                     : *(const char **)field(config, k) != NULL;
        VQ_CHECK(there, VQ_EUSAGE,
                 "vqround %s: --%s is missing, expected --%s %s: %s. Add it, or see \"vqround %s "
                 "--help\"",
                 name, shown_flag(k, flag), flag, k->unit, k->help, name);
    }
    VQ_CHECK(command != VQ_INSPECT || config->args.n == 1, VQ_EUSAGE,
             "vqround inspect: %d paths are given, expected one. See \"vqround inspect --help\"",
             config->args.n);
    VQ_CHECK(command != VQ_REPORT || config->args.n > 0, VQ_EUSAGE,
             "vqround report: no folder is given, expected run folders or folders that hold them. "
             "Add them, or see \"vqround report --help\"");
    VQ_CHECK(config->group_size != 0, VQ_EUSAGE,
             "%s = 0: expected -1 (the whole row) or a positive number. Change it, or see "
             "\"vqround %s --help\"",
             vq_config_where(config, "group_size", where), name);
    VQ_CHECK(config->eval.seqlen != 1, VQ_EUSAGE,
             "%s = 1: expected 0 (as seqlen) or at least 2, since a window's first token is not "
             "predicted. Change it, or see \"vqround %s --help\"",
             vq_config_where(config, "eval.seqlen", where), name);
    VQ_TRY(check_gptq(config));
    VQ_CHECK(config->grid.search == VQ_SEARCH_MINMAX || config->grid.include_zero, VQ_EUNSUPPORTED,
             "%s = %s: expected minmax with grid.include_zero = false (%s), since a range shrinks "
             "towards 0. Leave one of them out",
             vq_config_where(config, "grid.search", where),
             config->grid.search == VQ_SEARCH_MSE ? "mse" : "output",
             vq_config_where(config, "grid.include_zero", other));
    VQ_CHECK(
        !config->kmeans.by_sign || config->kmeans.start == VQ_START_OWN, VQ_EUNSUPPORTED,
        "%s = shared: expected own with kmeans.by_sign (%s), since each layer shares its codes "
        "out by its own signs. Leave it out",
        vq_config_where(config, "kmeans.start", where),
        vq_config_where(config, "kmeans.by_sign", other));
    VQ_CHECK(config->train.beta_lo <= config->train.beta_hi, VQ_EUSAGE,
             "%s = %g: expected at most train.beta_hi = %g (%s). Change one of them",
             vq_config_where(config, "train.beta_lo", where), config->train.beta_lo,
             config->train.beta_hi, vq_config_where(config, "train.beta_hi", other));
    VQ_CHECK(!config->quiet || !config->verbose, VQ_EUSAGE,
             "%s and %s exclude each other: expected one of them. Remove one",
             vq_config_where(config, "quiet", where), vq_config_where(config, "verbose", other));
    return check_export(config);
}

/* The recipe's values in the place of the defaults. */
static vq_status apply_recipe(vq_arena *arena, vq_recipe recipe, vq_config *out)
{
    for (int i = 0; i < VQ_COUNT(recipes); i++) {
        const key *k = find_key(recipes[i].name);
        if (!(recipes[i].recipes & (1u << recipe))) continue;
        VQ_ASSERT(k);
        out->origin[key_index(k)] = recipe == VQ_RECIPE_FAST ? "recipe fast" : "recipe best";
        VQ_TRY(set(arena, out, k, k->name, recipes[i].value, "quantize"));
    }
    return VQ_OK;
}

vq_status vq_config_load(vq_arena *arena, vq_command command, int argc, const char *const *argv,
                         vq_config *out)
{
    vq_config first, second;
    VQ_TRY(vq_config_defaults(arena, &first));
    /* Once for --config and --recipe alone: the file comes before the other flags, and the recipe
     * before both. */
    VQ_TRY(vq_config_parse_args(arena, command, argc, argv, &first));
    VQ_TRY(vq_config_defaults(arena, out));
    if (first.help) {
        out->help = true;
        return VQ_OK;
    }
    second = first;
    if (first.config) {
        VQ_TRY(vq_config_defaults(arena, &second));
        VQ_TRY(vq_config_read_yaml(arena, first.config, &second));
        VQ_TRY(vq_config_parse_args(arena, command, argc, argv, &second));
    }
    VQ_TRY(apply_recipe(arena, second.recipe, out));
    if (first.config) VQ_TRY(vq_config_read_yaml(arena, first.config, out));
    VQ_TRY(vq_config_parse_args(arena, command, argc, argv, out));
    return vq_config_check(out, command);
}

/* --- writing and comparing --- */

static void print_quoted(FILE *file, const char *text)
{
    fputc('"', file);
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '"' || *p == '\\')
            fprintf(file, "\\%c", *p);
        else if (*p < 0x20 || *p == 0x7f)
            fprintf(file, "\\x%02x", *p);
        else
            fputc(*p, file);
    }
    fputc('"', file);
}

/* With as few digits, from six up, as bring the same number back. */
static void print_real(FILE *file, double value)
{
    char text[32];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    fputs(text, file);
}

static void print_choice(FILE *file, const char *choices, int index)
{
    for (; index > 0; index--) choices = strchr(choices, '|') + 1;
    fprintf(file, "%.*s", (int)strcspn(choices, "|"), choices);
}

/* A value as YAML. */
static void print_value(FILE *file, const vq_config *config, const key *k)
{
    const void *at = field(config, k);
    const vq_list *list = at;
    const char *text;
    switch (k->type) {
    case TEXT:
        memcpy(&text, at, sizeof text);
        text ? print_quoted(file, text) : (void)fputs("null", file);
        break;
    case LIST:
        fputc('[', file);
        for (int i = 0; i < list->n; i++) {
            if (i > 0) fputs(", ", file);
            print_quoted(file, list->item[i]);
        }
        fputc(']', file);
        break;
    case INTEGER: fprintf(file, "%lld", (long long)*(const int64_t *)at); break;
    case REAL: print_real(file, *(const double *)at); break;
    case BOOL: fputs(*(const bool *)at ? "true" : "false", file); break;
    case CHOICE: print_choice(file, k->choices, *(const int *)at); break;
    }
}

/* All keys of a section ("" = those without), nested under its name. */
static void print_section(FILE *file, const vq_config *config, const char *section, size_t n)
{
    if (n > 0) fprintf(file, "%.*s:\n", (int)n, section);
    for (int i = 0; i < VQ_COUNT(keys); i++) {
        const char *name = keys[i].name, *last = last_part(name);
        size_t own = last == name ? 0 : (size_t)(last - name - 1);
        if (own != n || strncmp(name, section, n) != 0 || keys[i].command_line_only) continue;
        fprintf(file, "%s%s: ", n > 0 ? "  " : "", last);
        print_value(file, config, &keys[i]);
        fputc('\n', file);
    }
}

vq_status vq_config_write_yaml(const vq_config *config, const char *path, int argc,
                               const char *const *argv)
{
    vq_writer w;
    VQ_TRY(vq_writer_open(path, &w));
    fprintf(w.file, "# vqround %s\n# command:", VQ_VERSION);
    for (int i = 0; i < argc; i++) {
        fputc(' ', w.file);
        bool plain =
            *argv[i] && strspn(argv[i], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                        "0123456789-_=./,:+@") == strlen(argv[i]);
        plain ? (void)fputs(argv[i], w.file) : print_quoted(w.file, argv[i]);
    }
    fputc('\n', w.file);
    print_section(w.file, config, "", 0);
    for (int i = 0; i < VQ_COUNT(keys); i++) {
        size_t n = strcspn(keys[i].name, ".");
        bool first = keys[i].name[n] == '.';
        for (int j = 0; j < i && first; j++)
            first = strncmp(keys[j].name, keys[i].name, n + 1) != 0;
        if (first) print_section(w.file, config, keys[i].name, n);
    }
    return vq_writer_finish(&w);
}

const char *vq_config_key(int i)
{
    return i < VQ_COUNT(keys) ? keys[i].name : NULL;
}

bool vq_config_uses(const vq_config *config, int i)
{
    const unsigned before_training = VQ_PHASE_GRID | VQ_PHASE_TOKENS;
    return vq_config_learns(config) || !(keys[i].phases & VQ_PHASE_TRAIN) ||
           (keys[i].phases & before_training);
}

const char *vq_config_value(const vq_config *config, int i, char *text, size_t size)
{
    const key *k = &keys[i];
    const void *at = field(config, k);
    const vq_list *list = at;
    FILE *file = fmemopen(text, size, "w");
    text[0] = '\0';
    if (!file) return text;
    if (k->type == TEXT)
        fputs(*(const char *const *)at ? *(const char *const *)at : "", file);
    else if (k->type == LIST)
        for (int j = 0; j < list->n; j++) fprintf(file, "%s%s", j > 0 ? " " : "", list->item[j]);
    else
        print_value(file, config, k);
    fclose(file);
    text[size - 1] = '\0';
    return text;
}

static uint64_t hash_value(uint64_t h, const vq_config *config, const key *k)
{
    const void *at = field(config, k);
    const vq_list *list = at;
    const char *text;
    uint64_t bits;
    switch (k->type) {
    case TEXT: memcpy(&text, at, sizeof text); return vq_hash_text(h, text ? text : "");
    case LIST:
        for (int i = 0; i < list->n; i++) h = vq_hash_text(h, list->item[i]);
        return vq_hash_u64(h, (uint64_t)list->n);
    case INTEGER: return vq_hash_u64(h, (uint64_t) * (const int64_t *)at);
    case REAL: memcpy(&bits, at, sizeof bits); return vq_hash_u64(h, bits);
    case BOOL: return vq_hash_u64(h, *(const bool *)at);
    case CHOICE: return vq_hash_u64(h, (uint64_t) * (const int *)at);
    }
    return h;
}

int vq_config_diff(const vq_config *a, const vq_config *b, unsigned phases, char *text, size_t size)
{
    int n = 0;
    char *made = NULL;
    size_t bytes = 0;
    FILE *file = open_memstream(&made, &bytes);
    for (int i = 0; i < VQ_COUNT(keys); i++) {
        const key *k = &keys[i];
        if (!(k->phases & phases) ||
            hash_value(VQ_HASH_START, a, k) == hash_value(VQ_HASH_START, b, k))
            continue;
        if (file) {
            fprintf(file, "%s%s (", n > 0 ? ", " : "", k->name);
            print_value(file, a, k);
            fputs(", now ", file);
            print_value(file, b, k);
            fputc(')', file);
        }
        n++;
    }
    if (file) fclose(file);
    snprintf(text, size, "%s", made ? made : "");
    free(made);
    return n;
}

uint64_t vq_config_phase_hash(const vq_config *config, unsigned phases)
{
    uint64_t h = VQ_HASH_START;
    for (int i = 0; i < VQ_COUNT(keys); i++)
        if (keys[i].phases & phases)
            h = hash_value(vq_hash_text(h, keys[i].name), config, &keys[i]);
    return h;
}

/* --- help and reference --- */

#define HELP_COLUMN 34
#define HELP_WIDTH 100

/* What stands for the value: DIR, N, X, a|b; nothing for a bool. */
static const char *value_name(const key *k)
{
    switch (k->type) {
    case TEXT:
    case LIST: return k->unit;
    case INTEGER: return k->choices ? k->choices : "N";
    case REAL: return "X";
    case CHOICE: return k->choices;
    case BOOL: break;
    }
    return "";
}

static const char *negatable(const key *k)
{
    return k->type == BOOL ? "[no-]" : "";
}

/* The help with default and unit, in one line. */
static void describe(const key *k, char *text, size_t size)
{
    const char *unit = k->type == INTEGER || k->type == REAL ? k->unit : NULL;
    int n = unit ? (int)strlen(unit) : 0;
    if (!k->standard) {
        snprintf(text, size, "%s", k->help);
        return;
    }
    if (n > 0 && !strcmp(k->standard, "1") && unit[n - 1] == 's') n--; /* 1 window */
    snprintf(text, size, "%s (default %s%s%.*s)", k->help, k->standard, n > 0 ? " " : "", n,
             n > 0 ? unit : "");
}

/* Words of text from the current column on, broken at HELP_WIDTH. */
static void print_wrapped(FILE *file, const char *text, int column)
{
    int at = column;
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (at > HELP_COLUMN && at + 1 + n > HELP_WIDTH) {
            fprintf(file, "\n%*s", HELP_COLUMN, "");
            at = HELP_COLUMN;
        }
        at += fprintf(file, "%s%.*s", at > HELP_COLUMN ? " " : "", n, text);
        text += n;
        text += strspn(text, " ");
    }
    fputc('\n', file);
}

static void print_key_help(FILE *file, const key *k)
{
    char flag[64], left[128], text[512];
    const char *value = value_name(k);
    snprintf(left, sizeof left, "  --%s%s%s%s", negatable(k), shown_flag(k, flag),
             *value ? " " : "", value);
    fprintf(file, "%-*s", HELP_COLUMN, left);
    if (strlen(left) >= HELP_COLUMN) fprintf(file, "\n%*s", HELP_COLUMN, "");
    describe(k, text, sizeof text);
    print_wrapped(file, text, HELP_COLUMN);
}

void vq_config_print_help(FILE *file, unsigned command)
{
    for (int i = 0; i < VQ_COUNT(commands); i++)
        if (commands[i].command == command)
            fprintf(file, "Usage: vqround %s %s [options]\n\n%s\n", commands[i].name,
                    commands[i].arguments, commands[i].help);
    if (command == 0) {
        fputs("Usage: vqround SUBCOMMAND [options]\n\n"
              "Quantizes large language models with learned rounding.\n\n",
              file);
        for (int i = 0; i < VQ_COUNT(commands); i++)
            fprintf(file, "  %-10s %s\n", commands[i].name, commands[i].help);
        fputs("\n\"vqround SUBCOMMAND --help\" shows its options, \"vqround --version\" the "
              "version.\n",
              file);
        return;
    }
    const char *group = NULL;
    for (int i = 0; i < VQ_COUNT(keys); i++) {
        if (!(keys[i].commands & command)) continue;
        if (group != keys[i].group) fprintf(file, "\n%s\n", keys[i].group);
        group = keys[i].group;
        print_key_help(file, &keys[i]);
    }
    if (command == VQ_QUANTIZE)
        fputs("\nAn option may also be written with its YAML key, as in --train.lr=0.01.\n", file);
}

/* Text with what the format reads as its own escaped. */
static void print_escaped(FILE *file, vq_reference format, const char *text)
{
    for (; *text; text++) {
        bool special = format == VQ_ROFF ? *text == '-' || *text == '\\' : *text == '|';
        if (special) fputc('\\', file);
        fputc(*text, file);
    }
}

static void print_reference_row(FILE *file, vq_reference format, const key *k)
{
    char flag[64], text[512];
    describe(k, text, sizeof text);
    if (format == VQ_ROFF) {
        fputs(".TP\n\\fB\\-\\-", file);
        print_escaped(file, format, negatable(k));
        print_escaped(file, format, shown_flag(k, flag));
        fputs("\\fR \\fI", file);
        print_escaped(file, format, value_name(k));
        fprintf(file, "\\fR (%s)\n", k->name);
        print_escaped(file, format, text);
        fputc('\n', file);
        return;
    }
    fprintf(file, "| `%s` | `--%s%s%s", k->name, negatable(k), shown_flag(k, flag),
            *value_name(k) ? " " : "");
    print_escaped(file, format, value_name(k));
    fputs("` | ", file);
    print_escaped(file, format, text);
    fputs(" | ", file);
    for (int i = 0, n = 0; i < VQ_COUNT(commands); i++)
        if (k->commands & commands[i].command)
            fprintf(file, "%s%s", n++ ? ", " : "", commands[i].name);
    fputs(" |\n", file);
}

/* What may stand behind a flag: choices, or "DIR" and "FILE" for paths. */
static void print_bash_values(FILE *file, const key *k)
{
    char flag[64];
    const bool is_path = k->type == TEXT || k->type == LIST;
    if (is_path ? strcmp(k->unit, "NAME") == 0 : !k->choices) return;
    fprintf(file, "    --%s", shown_flag(k, flag));
    if (strcmp(flag, k->name) != 0) fprintf(file, " | --%s", k->name);
    fputs(") echo \"", file);
    for (const char *c = is_path ? k->unit : k->choices; *c; c++) fputc(*c == '|' ? ' ' : *c, file);
    fputs("\" ;;\n", file);
}

static void print_bash(FILE *file)
{
    char flag[64];
    fputs("_vqround_words() { # SUBCOMMAND\n    case $1 in\n", file);
    for (int c = 0; c < VQ_COUNT(commands); c++) {
        fprintf(file, "    %s) echo \"--help", commands[c].name);
        for (int i = 0; i < VQ_COUNT(keys); i++) {
            if (!(keys[i].commands & commands[c].command)) continue;
            fprintf(file, " --%s", shown_flag(&keys[i], flag));
            if (keys[i].type == BOOL) fprintf(file, " --no-%s", flag);
        }
        fputs("\" ;;\n", file);
    }
    fputs("    \"\") echo \"--help --version", file);
    for (int c = 0; c < VQ_COUNT(commands); c++) fprintf(file, " %s", commands[c].name);
    fputs("\" ;;\n    esac\n}\n\n_vqround_values() { # FLAG\n    case $1 in\n", file);
    for (int i = 0; i < VQ_COUNT(keys); i++) print_bash_values(file, &keys[i]);
    fputs("    esac\n}\n", file);
}

void vq_config_print_reference(FILE *file, vq_reference format)
{
    const char *group = NULL;
    if (format == VQ_BASH) {
        print_bash(file);
        return;
    }
    for (int i = 0; i < VQ_COUNT(keys); i++) {
        if (group != keys[i].group)
            fprintf(file,
                    format == VQ_ROFF ? ".SS %s\n"
                                      : "\n### %s\n\n| key | flag | meaning | subcommands |\n"
                                        "|---|---|---|---|\n",
                    keys[i].group);
        group = keys[i].group;
        print_reference_row(file, format, &keys[i]);
    }
}
