/* export.h - the quantized model as a Hugging Face folder.
 *
 * dense: every tensor under its own name and in its own type, the quantized linears as
 * s (q - z): any engine loads it. Tokenizer and configuration files are copied beside it. */
#pragma once
#include "pool.h"

#define VQ_SHARD_BYTES ((int64_t)5 << 30) /* where a file is cut, as Hugging Face does */

/* Writes folder `dir`: model.safetensors, or shards with an index, and the model's other files.
 * The folder is complete when config.json is there: it is written last. mode is VQ_MODE_HARD, or
 * VQ_MODE_RTN for the baseline.
 * Local. Fails: VQ_EFILE, VQ_EMEM (disk full; what was written so far is removed). */
vq_status vq_export_dense(vq_stage *stage, vq_mode mode, const char *dir);
