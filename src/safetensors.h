/* safetensors.h - one .safetensors file: a reader that maps it, and a writer.
 *
 * The file is a 64-bit little-endian length, that many bytes of JSON (name -> dtype, shape,
 * data_offsets), and the data, which the tensors must fill without gaps or overlaps. Everything
 * in the header is checked before anything is used. */
#pragma once
#include "fileio.h"
#include "tensor.h"

typedef struct vq_safetensors {
    const char *path;
    vq_map map;        /* empty when parsed from memory */
    vq_tensor *tensor; /* [n], sorted by name; views into the file */
    int64_t n;
} vq_safetensors;

/* Opens path; names and descriptors lie in the arena, the data stays in the file. A tensor that is
 * not aligned in the file is copied to the arena.
 * Fails: VQ_EFILE (malformed: the message names the tensor), VQ_EUNSUPPORTED (a dtype or a number
 * of dims that vq_tensor does not have), VQ_EMEM. Local. */
vq_status vq_safetensors_open(vq_arena *arena, const char *path, vq_safetensors *out);
void vq_safetensors_close(vq_safetensors *s);

/* The same on a file's bytes in memory, which must outlive *out; path is for messages. */
vq_status vq_safetensors_parse(vq_arena *arena, const char *path, const uint8_t *data, size_t bytes,
                               vq_safetensors *out);

/* The tensor of that name, or NULL. */
const vq_tensor *vq_safetensors_find(const vq_safetensors *s, const char *name);

typedef struct vq_safetensors_writer {
    vq_writer file;
    const vq_tensor *tensor; /* borrowed: the caller */
    int64_t *offset;         /* [n] in the file, of the next byte of each tensor */
    int64_t *end;            /* [n] */
    int64_t n;
} vq_safetensors_writer;

/* Starts path with tensor[0..n): name, dtype and dims are used, data is not. Disk space for all is
 * taken now where the file system can. Wider types come first in the file, so that everything is
 * aligned. The metadata is {"format": "pt"}, which transformers asks for.
 * Fails: VQ_EFILE, VQ_EMEM (disk full). Local. */
vq_status vq_safetensors_create(vq_arena *arena, const char *path, const vq_tensor *tensor,
                                int64_t n, vq_safetensors_writer *w);

/* The next bytes of tensor i; tensors in any order, each in as many calls as wanted.
 * Fails: VQ_EMEM, VQ_EFILE (both close the writer), VQ_EINTERNAL (more than the tensor takes). */
vq_status vq_safetensors_put(vq_safetensors_writer *w, int64_t i, const void *data, size_t bytes);

/* Checks that every tensor is complete, and makes the file appear. */
vq_status vq_safetensors_finish(vq_safetensors_writer *w);

/* Removes what was written. Nothing happens after finish. */
void vq_safetensors_abandon(vq_safetensors_writer *w);
