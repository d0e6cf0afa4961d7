/* h5.h - the HDF5 files of a run folder: datasets that are vq_tensors, and attributes.
 *
 * The only file that knows HDF5. A file being written appears when vq_h5_finish succeeds. Every
 * file carries what kind it is and the version of its layout. Dataset names may hold '/': the
 * groups are made as needed. f16 is a 16-bit HDF5 float; bf16 and bool, which HDF5 does not have,
 * are u16 and u8 with an attribute "dtype". HDF5's library is not thread-safe: one thread at a
 * time. File locking is off, since network file systems often lack it. All functions are local. */
#pragma once
#include "fileio.h"
#include "tensor.h"

typedef struct vq_h5 {
    int64_t id;       /* HDF5's handle; -1 when closed */
    const char *path; /* in the arena */
    bool writing;
} vq_h5;

/* Starts path as a file of this kind ("tokens", "checkpoint"...) and layout version.
 * Fails: VQ_EFILE, VQ_EMEM (disk full). */
vq_status vq_h5_create(vq_arena *arena, const char *path, const char *kind, int64_t version,
                       vq_h5 *out);

/* Makes the file appear: flush, close, rename. The handle is closed in any case. */
vq_status vq_h5_finish(vq_h5 *h);

/* Opens path for reading. kind NULL takes any (inspect).
 * Fails: VQ_EFILE (missing, truncated, not HDF5, of another kind or version). */
vq_status vq_h5_open(vq_arena *arena, const char *path, const char *kind, int64_t version,
                     vq_h5 *out);

/* Closes; a file that was not finished is removed. May be called again. */
void vq_h5_close(vq_h5 *h);

/* Writes a whole contiguous tensor as dataset `name`. */
vq_status vq_h5_write(vq_h5 *h, const char *name, const vq_tensor *t);

/* Makes dataset `name` with shape's dtype and dims (its data is not used), to be filled by
 * vq_h5_write_rows: rows [first, first + rows->dim[0]) of the first dim. */
vq_status vq_h5_make(vq_h5 *h, const char *name, const vq_tensor *shape);
vq_status vq_h5_write_rows(vq_h5 *h, const char *name, int64_t first, const vq_tensor *rows);

/* Reads dataset `name` into t, which has its dtype and shape.
 * Fails: VQ_EFILE with found and expected. */
vq_status vq_h5_read(const vq_h5 *h, const char *name, const vq_tensor *t);
vq_status vq_h5_read_rows(const vq_h5 *h, const char *name, int64_t first, const vq_tensor *rows);

/* Reads dataset `name`, whatever its dtype and shape, into the arena. */
vq_status vq_h5_load(const vq_h5 *h, vq_arena *arena, const char *name, vq_tensor *out);

/* dtype and dims of a dataset; data is NULL. */
vq_status vq_h5_shape(const vq_h5 *h, const char *name, vq_tensor *out);
bool vq_h5_has(const vq_h5 *h, const char *name);

/* The names of all datasets, "group/name", sorted. */
vq_status vq_h5_list(const vq_h5 *h, vq_arena *arena, char ***names, int64_t *n);

/* Attributes of the file (object NULL) or of a dataset. Setting replaces. */
vq_status vq_h5_set_i64(vq_h5 *h, const char *object, const char *key, int64_t value);
vq_status vq_h5_set_u64(vq_h5 *h, const char *object, const char *key, uint64_t value);
vq_status vq_h5_set_f64(vq_h5 *h, const char *object, const char *key, double value);
vq_status vq_h5_set_text(vq_h5 *h, const char *object, const char *key, const char *value);
vq_status vq_h5_get_i64(const vq_h5 *h, const char *object, const char *key, int64_t *value);
vq_status vq_h5_get_u64(const vq_h5 *h, const char *object, const char *key, uint64_t *value);
vq_status vq_h5_get_f64(const vq_h5 *h, const char *object, const char *key, double *value);
vq_status vq_h5_get_text(const vq_h5 *h, vq_arena *arena, const char *object, const char *key,
                         char **value);
bool vq_h5_has_attribute(const vq_h5 *h, const char *object, const char *key);

/* The names of the file's (object NULL) or a dataset's attributes, sorted. */
vq_status vq_h5_list_attributes(const vq_h5 *h, vq_arena *arena, const char *object, char ***names,
                                int64_t *n);

/* Compares an attribute of the file with what it must be. what says in words what it stands for
 * ("the model's weights"). Fails: VQ_EFILE, with what differs and what to do. */
vq_status vq_h5_check_u64(const vq_h5 *h, const char *key, uint64_t expected, const char *what);
vq_status vq_h5_check_text(const vq_h5 *h, const char *key, const char *expected, const char *what);
