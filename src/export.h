/* export.h - the quantized model as a Hugging Face folder.
 *
 * dense: every tensor under its own name and in its own type, the quantized linears as
 * s (q - z): any engine loads it. Tokenizer and configuration files are copied beside it. */
#pragma once
#include "pool.h"

#define VQ_SHARD_BYTES ((int64_t)5 << 30) /* where a file is cut, as Hugging Face does */

/* What a stage writes: its tensors, cut into files. */
typedef struct vq_export {
    vq_tensor *tensor; /* [n], views of the model's files */
    int32_t *shard;    /* [n], of the stage's files */
    int64_t n;
    int32_t n_shards;
} vq_export;

/* Plans the stage's part: the tensors of its layers, and those outside the layers on the first
 * stage or the last. Local, pure. Fails: VQ_EMEM. */
vq_status vq_export_plan(vq_arena *arena, const vq_stage *stage, vq_export *plan);

/* Writes the stage's files into folder dir: "model.safetensors" if it is the only one of n_files,
 * else model-I-of-N from I = first_file + 1 on. mode: VQ_MODE_HARD, or a baseline's.
 * Local. Fails: VQ_EFILE, VQ_EMEM (disk full). */
vq_status vq_export_files(const vq_export *plan, vq_stage *stage, vq_mode mode, const char *dir,
                          int32_t first_file, int32_t n_files);

/* What makes the folder complete, after all files are there: the index if there are several files
 * (it is made from their headers), tokenizer and configuration. config.json comes last. Local. */
vq_status vq_export_finish(vq_arena *scratch, const vq_model *model, const char *dir,
                           int32_t n_files);

/* Removes what an earlier export left in dir: it is incomplete until it is finished. Local. */
vq_status vq_export_begin(vq_arena *scratch, const char *dir);
