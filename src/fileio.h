/* fileio.h - whole files: mapped, read, written under a temporary name, copied; folders; hashes.
 *
 * A file that others may read appears complete or not at all: it is written as NAME.tmp, flushed
 * to the disk and renamed. Errors say what the system said; a full disk is VQ_EMEM, everything
 * else about a file is VQ_EFILE. */
#pragma once
#include <limits.h>
#include <stdio.h>

#include "arena.h"

/* A file mapped read-only into memory. */
typedef struct vq_map {
    uint8_t *data; /* page-aligned; NULL when the file is empty */
    size_t bytes;
} vq_map;

/* Maps all of path. Fails: VQ_EFILE (missing, not a plain file, unreadable, a pointer of Git LFS in
 * the file's place). Local. */
vq_status vq_file_map(const char *path, vq_map *out);
void vq_file_unmap(vq_map *map);

/* Gives up the pages that hold [data, data + bytes) of a mapped file, which lowers the resident
 * size; a later read brings them back from the file. Pages shared with neighbours stay. Other
 * memory would lose its contents. */
void vq_file_release(const void *data, size_t bytes);

/* data where it is aligned to `alignment` (a power of two), otherwise a copy in the arena: mapped
 * formats do not promise alignment, C does. Fails: VQ_EMEM. */
vq_status vq_file_align(vq_arena *arena, const void *data, size_t bytes, size_t alignment,
                        void **out);

/* All of path in the arena, with a NUL after it that *bytes does not count.
 * Fails: VQ_EFILE, VQ_EMEM. Local. */
vq_status vq_file_read(vq_arena *arena, const char *path, char **out, size_t *bytes);

/* A file on its way: `path` appears only when vq_writer_finish succeeds. */
typedef struct vq_writer {
    FILE *file; /* may be printed to directly; NULL after finish and abandon */
    char path[PATH_MAX];
} vq_writer;

/* Opens PATH.tmp. One writer at a time per path. After a failure of any of these functions
 * the temporary file is gone and the writer is closed. Fails: VQ_EFILE, VQ_EMEM (disk full). */
vq_status vq_writer_open(const char *path, vq_writer *w);
vq_status vq_writer_put(vq_writer *w, const void *data, size_t bytes);
vq_status vq_writer_put_at(vq_writer *w, int64_t offset, const void *data, size_t bytes);
vq_status vq_writer_printf(vq_writer *w, const char *fmt, ...) VQ_PRINTF(2, 3);

/* Takes disk space for `bytes` now, so that a full disk is known before the work is done. Where
 * the file system cannot reserve, nothing happens. */
vq_status vq_writer_reserve(vq_writer *w, int64_t bytes);

/* Flushes to the disk and renames to path. */
vq_status vq_writer_finish(vq_writer *w);

/* Removes the temporary file. Nothing happens after finish, abandon or a failure. */
void vq_writer_abandon(vq_writer *w);

/* bytes of data as the whole of path, atomically. */
vq_status vq_file_write(const char *path, const void *data, size_t bytes);

/* Copies the contents of a plain file, atomically. */
vq_status vq_file_copy(const char *from, const char *to);

/* The last step of an atomic write done by a library: flushes temporary, renames it to path and
 * flushes the folder. On failure temporary is removed. */
vq_status vq_file_commit(const char *temporary, const char *path);

/* "PATH.tmp" into out. Fails: VQ_EFILE (too long). */
vq_status vq_file_temporary(const char *path, char out[PATH_MAX]);

/* Fails with what errno says about path. did is what was tried, as in "cannot be DID". */
vq_status vq_file_error(const char *path, const char *did);

bool vq_file_exists(const char *path); /* of any kind */
bool vq_is_folder(const char *path);

/* Makes a folder and those above it; one that is there is fine. Fails: VQ_EFILE, VQ_EMEM. */
vq_status vq_make_folders(const char *path);

/* The names in a folder that end in suffix ("" = all), sorted, without "." and "..".
 * Fails: VQ_EFILE, VQ_EMEM. */
vq_status vq_folder_list(vq_arena *arena, const char *path, const char *suffix, char ***names,
                         int64_t *n);

/* Bytes of the plain files in a folder, none where it is absent, and those that its disk has free
 * for this user. Fails: VQ_EFILE, VQ_EMEM. */
vq_status vq_folder_bytes(vq_arena *scratch, const char *path, double *bytes);
vq_status vq_disk_free(const char *path, double *bytes);

/* "DIR/NAME" in the arena; name alone when dir is "". */
vq_status vq_path_join(vq_arena *arena, const char *dir, const char *name, char **out);

/* FNV-1a, 64 bits, continued from h: vq_hash_text(vq_hash_u64(VQ_HASH_START, n), name). For keys
 * that tell settings apart, not against an adversary. */
#define VQ_HASH_START UINT64_C(0xcbf29ce484222325)
uint64_t vq_hash_bytes(uint64_t h, const void *data, size_t bytes);
uint64_t vq_hash_u64(uint64_t h, uint64_t value);    /* the same on every byte order */
uint64_t vq_hash_text(uint64_t h, const char *text); /* with its NUL, so "ab","c" != "a","bc" */

/* h continued with the names and sizes of a file, or of the files in a folder: tells cheaply
 * whether an input is another one. Fails: VQ_EFILE (missing), VQ_EMEM. */
vq_status vq_hash_path(uint64_t h, vq_arena *scratch, const char *path, uint64_t *out);
