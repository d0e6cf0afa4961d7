/* weights.h - the weights of a Hugging Face model folder, whatever files they are in.
 *
 * Looked for in this order: model.safetensors, model.safetensors.index.json, pytorch_model.bin,
 * pytorch_model.bin.index.json, one *.safetensors of another name. Files are mapped: opening reads
 * headers only, and a tensor's pages come when they are used. */
#pragma once
#include "fileio.h"
#include "tensor.h"

typedef struct vq_weights {
    const char *dir;
    vq_tensor *tensor; /* [n], sorted by name; views into the files */
    int32_t *file;     /* [n], the file each is in */
    int64_t n;
    const char **path; /* [n_files] */
    vq_map *map;       /* [n_files] */
    int64_t n_files;
} vq_weights;

/* Opens a model folder, or one .safetensors or .bin file. Descriptors lie in the arena.
 * Fails: VQ_EFILE (no weights, a missing shard, a malformed file), VQ_EUNSUPPORTED, VQ_EMEM.
 * After a failure nothing is open. Local. */
vq_status vq_weights_open(vq_arena *arena, const char *dir, vq_weights *out);
void vq_weights_close(vq_weights *w);

/* The tensor of that name, or NULL. */
const vq_tensor *vq_weights_find(const vq_weights *w, const char *name);

/* The file that tensor (one of w->tensor) is in, for messages. */
const char *vq_weights_path(const vq_weights *w, const vq_tensor *tensor);

/* A number that changes when the weights do: names, types, shapes, and the first and last 4 KiB of
 * each tensor. Not the place or the time of the files. */
uint64_t vq_weights_fingerprint(const vq_weights *w);

/* Bytes of all tensors. */
int64_t vq_weights_bytes(const vq_weights *w);

/* Gives up the memory pages of a tensor (one of w->tensor, or a copy of its descriptor) after use;
 * it may be read again. A tensor that is not in the files, as one that was copied to align it,
 * stays. */
void vq_weights_release(const vq_weights *w, const vq_tensor *tensor);
