/* torchbin.h - pytorch_model.bin: a zip of storages and a pickle that describes the tensors.
 *
 * A pickle is a program. This reader is a machine for the few operations that torch.save writes;
 * it calls nothing, and any name outside its list is refused. The storages are not copied: the
 * zip keeps them uncompressed, so tensors are views into the mapped file. */
#pragma once
#include "fileio.h"
#include "tensor.h"

typedef struct vq_torchbin {
    const char *path;
    vq_map map;        /* empty when parsed from memory */
    vq_tensor *tensor; /* [n], sorted by name; strides as saved, so not always contiguous */
    int64_t n;
} vq_torchbin;

/* Opens path. What is not a tensor at the top level of the saved dictionary is left out.
 * Fails: VQ_EFILE (malformed zip or pickle, sizes that do not fit their storage),
 * VQ_EUNSUPPORTED (a name outside the list, files from before PyTorch 1.6, compressed entries,
 * big-endian), VQ_EMEM. Local. */
vq_status vq_torchbin_open(vq_arena *arena, const char *path, vq_torchbin *out);
void vq_torchbin_close(vq_torchbin *t);

/* The same on a file's bytes in memory, which must outlive *out; path is for messages. */
vq_status vq_torchbin_parse(vq_arena *arena, const char *path, const uint8_t *data, size_t bytes,
                            vq_torchbin *out);
