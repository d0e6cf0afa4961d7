/* export.h - the quantized model as a Hugging Face folder.
 *
 * dense: every tensor under its own name and in its own type, the quantized linears as
 * s (q - z): any engine loads it. gptq, compressed-tensors: the linears' integers, scales and zeros
 * in place of the weights (packed.h), where the format holds them. Tokenizer and configuration
 * files are copied beside it. */
#pragma once
#include "pool.h"

#define VQ_SHARD_BYTES ((int64_t)5 << 30) /* where a file is cut, as Hugging Face does */

/* Which linears are packed, and how. */
typedef struct vq_export_rule {
    vq_packing packing;     /* format dense: none */
    const vq_backend *host; /* borrowed: works out on the host what is written; set by the caller */
    bool *is_packed;        /* [N * VQ_N_KINDS], by slot */
    vq_list packed, dense;  /* the linears' names */
} vq_export_rule;

/* A tensor of the model's files, and what is written for it: itself, a weight of the same shape, or
 * the parts of a packed linear. */
typedef struct vq_export_unit {
    vq_tensor source;
    const vq_vqlinear *linear; /* borrowed: the stage; NULL: the tensor is copied */
    bool is_packed;
    int64_t first, n; /* of the plan's tensors */
    int32_t shard;    /* of the stage's files */
} vq_export_unit;

/* What a stage writes, cut into files. */
typedef struct vq_export {
    vq_tensor *tensor; /* [n]: name, type and dims */
    int64_t n;
    vq_export_unit *unit; /* [n_units] */
    int64_t n_units;
    int32_t n_shards;
    int64_t bytes; /* of all tensors */
} vq_export;

/* Decides which linears of the whole model are packed: the quantized ones whose shape the format
 * holds and whose type is the embedding's, but q, k, v (gate, up) together or not at all, since
 * engines fuse them.
 * skip: words in the names of linears that are not quantized. Local; the same on every rank.
 * Fails: VQ_EUNSUPPORTED (none can be packed), VQ_EMEM. */
vq_status vq_export_choose(vq_arena *arena, const vq_model *model, const vq_list *skip,
                           const vq_packing *packing, vq_export_rule *rule);

/* Says in the log what stays dense of a model whose packing was chosen, and why, and which engines
 * load the result. Nothing for a dense one. */
void vq_export_say(const vq_model *model, const vq_list *skip, const vq_packing *packing);

/* Plans the stage's part: the tensors of its layers, and those outside the layers on the first
 * stage or the last. Local, pure. Fails: VQ_EMEM. */
vq_status vq_export_plan(vq_arena *arena, vq_stage *stage, const vq_export_rule *rule,
                         vq_export *plan);

/* Writes the stage's files into folder dir: "model.safetensors" if it is the only one of n_files,
 * else model-I-of-N from I = first_file + 1 on. mode: VQ_MODE_HARD, or a baseline's.
 * Local. Fails: VQ_EFILE, VQ_EMEM (disk full), VQ_EUNSUPPORTED (a scale that the format does not
 * hold). */
vq_status vq_export_files(const vq_export *plan, const vq_export_rule *rule, vq_stage *stage,
                          vq_mode mode, const char *dir, int32_t first_file, int32_t n_files);

/* What makes the folder complete, after all files are there: the index if there are several files
 * (it is made from their headers), tokenizer and configuration, which says how linears are packed.
 * config.json comes last. damp: GPTQ's, for its record. Local. */
vq_status vq_export_finish(vq_arena *scratch, const vq_model *model, const vq_export_rule *rule,
                           double damp, const char *dir, int32_t n_files);

/* In every folder that was exported: what tells it from a model that would be lost. */
#define VQ_EXPORT_MARK "vqround.json"

/* Makes dir, or removes what an earlier export left in it: it is incomplete until it is finished;
 * marks it. Local. */
vq_status vq_export_begin(vq_arena *scratch, const char *dir);
