/* fileio - files through the system's own calls, so that every error is seen. */
#include "fileio.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "error.h"

#define COPY_BYTES ((size_t)1 << 20)

vq_status vq_file_error(const char *path, const char *did)
{
    int e = errno;
    switch (e) {
    case ENOSPC:
    case EDQUOT:
        VQ_FAIL(VQ_EMEM,
                "%s cannot be %s: no space left on its disk (%s). Free some space, or choose "
                "another folder",
                path, did, strerror(e));
    case ENOENT:
    case ENOTDIR:
        VQ_FAIL(VQ_EFILE,
                "%s cannot be %s: there is no such file or folder, expected one. Check the path",
                path, did);
    case EACCES:
    case EPERM:
    case EROFS:
        VQ_FAIL(VQ_EFILE,
                "%s cannot be %s: %s for user %d. Change its permissions (ls -l), or choose "
                "another path",
                path, did, strerror(e), (int)geteuid());
    default:
        VQ_FAIL(VQ_EFILE, "%s cannot be %s: %s. Check the path and its disk", path, did,
                strerror(e));
    }
}

/* Opens a plain file for reading, and its size. */
static vq_status open_plain(const char *path, int *fd, size_t *bytes)
{
    struct stat st;
    /* A pipe of that name must not block the program. */
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0) return vq_file_error(path, "read");
    if (fstat(*fd, &st) != 0) {
        vq_status status = vq_file_error(path, "read");
        close(*fd);
        return status;
    }
    if (!S_ISREG(st.st_mode)) {
        close(*fd);
        VQ_FAIL(VQ_EFILE, "%s is %s, expected a file. Give the path of a file", path,
                S_ISDIR(st.st_mode) ? "a folder" : "a device or a pipe");
    }
    *bytes = (size_t)st.st_size;
    return VQ_OK;
}

/* What a clone without Git LFS leaves in a large file's place. */
static bool is_lfs_pointer(const vq_map *map)
{
    static const char start[] = "version https://git-lfs.github.com/spec/";
    return map->bytes >= sizeof start - 1 && !memcmp(map->data, start, sizeof start - 1);
}

vq_status vq_file_map(const char *path, vq_map *out)
{
    int fd;
    *out = (vq_map){0};
    VQ_TRY(open_plain(path, &fd, &out->bytes));
    vq_status status = VQ_OK;
    if (out->bytes > 0) {
        void *data = mmap(NULL, out->bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED)
            status = vq_file_error(path, "mapped");
        else
            out->data = data;
    }
    close(fd);
    VQ_TRY(status);
    if (!is_lfs_pointer(out)) return VQ_OK;
    vq_file_unmap(out);
    VQ_FAIL(VQ_EFILE,
            "%s is a pointer of Git LFS, expected the file. Run \"git lfs pull\" in its folder, or "
            "download it again",
            path);
}

void vq_file_unmap(vq_map *map)
{
    if (map->data) munmap(map->data, map->bytes);
    *map = (vq_map){0};
}

void vq_file_release(const void *data, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)data + page - 1) / page * page;
    uintptr_t to = ((uintptr_t)data + bytes) / page * page;
    if (from < to) madvise((void *)from, to - from, MADV_DONTNEED);
}

vq_status vq_file_align(vq_arena *arena, const void *data, size_t bytes, size_t alignment,
                        void **out)
{
    if (((uintptr_t)data & (alignment - 1)) == 0) {
        *out = (void *)(uintptr_t)data;
        return VQ_OK;
    }
    VQ_TRY(vq_arena_alloc(arena, bytes, out));
    memcpy(*out, data, bytes);
    return VQ_OK;
}

/* Reads exactly n bytes; a file that shrank meanwhile is an error. */
static vq_status read_all(int fd, const char *path, char *to, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = read(fd, to + done, n - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return vq_file_error(path, "read");
        VQ_CHECK(got > 0, VQ_EFILE,
                 "%s ended after %zu bytes, expected %zu. Something is writing it: try again when "
                 "that is done",
                 path, done, n);
        done += (size_t)got;
    }
    return VQ_OK;
}

vq_status vq_file_read(vq_arena *arena, const char *path, char **out, size_t *bytes)
{
    int fd;
    VQ_TRY(open_plain(path, &fd, bytes));
    vq_status status = vq_arena_alloc(arena, *bytes + 1, (void **)out);
    if (status == VQ_OK) status = read_all(fd, path, *out, *bytes);
    if (status == VQ_OK) (*out)[*bytes] = '\0';
    close(fd);
    return status;
}

vq_status vq_file_temporary(const char *path, char out[PATH_MAX])
{
    int n = snprintf(out, PATH_MAX, "%s.tmp", path);
    VQ_CHECK(n < PATH_MAX, VQ_EFILE,
             "%.64s...: the path has %d bytes, expected fewer than %d. Use a shorter one", path, n,
             PATH_MAX);
    return VQ_OK;
}

/* Flushes the folder that path is in, so that a rename survives a power cut. A file system that
 * cannot flush a folder has nothing to flush. */
static void sync_folder_of(const char *path)
{
    char dir[PATH_MAX] = ".";
    const char *slash = strrchr(path, '/');
    if (slash) snprintf(dir, sizeof dir, "%.*s", (int)VQ_MAX(slash - path, 1), path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

vq_status vq_file_commit(const char *temporary, const char *path)
{
    vq_status status = VQ_OK;
    int fd = open(temporary, O_RDONLY | O_CLOEXEC);
    bool flushed = fd >= 0 && fsync(fd) == 0;
    if (!flushed) status = vq_file_error(temporary, "flushed to the disk");
    if (fd >= 0) close(fd);
    if (flushed && rename(temporary, path) != 0) status = vq_file_error(path, "replaced");
    if (status != VQ_OK) {
        unlink(temporary);
        return status;
    }
    sync_folder_of(path);
    return VQ_OK;
}

vq_status vq_writer_open(const char *path, vq_writer *w)
{
    char temporary[PATH_MAX];
    w->file = NULL;
    VQ_TRY(vq_file_temporary(path, temporary));
    memcpy(w->path, path, strlen(path) + 1);
    w->file = fopen(temporary, "wbe");
    return w->file ? VQ_OK : vq_file_error(path, "written");
}

void vq_writer_abandon(vq_writer *w)
{
    char temporary[PATH_MAX];
    if (!w->file) return;
    fclose(w->file);
    w->file = NULL;
    if (vq_file_temporary(w->path, temporary) == VQ_OK) unlink(temporary);
}

/* The error of the system call that just failed; the writer is closed. */
static vq_status writer_failed(vq_writer *w)
{
    vq_status status = vq_file_error(w->path, "written");
    vq_writer_abandon(w);
    return status;
}

vq_status vq_writer_put(vq_writer *w, const void *data, size_t bytes)
{
    VQ_ASSERT(w->file);
    return fwrite(data, 1, bytes, w->file) == bytes ? VQ_OK : writer_failed(w);
}

vq_status vq_writer_put_at(vq_writer *w, int64_t offset, const void *data, size_t bytes)
{
    VQ_ASSERT(w->file);
    if (ftello(w->file) != offset && fseeko(w->file, offset, SEEK_SET) != 0)
        return writer_failed(w);
    return vq_writer_put(w, data, bytes);
}

vq_status vq_writer_printf(vq_writer *w, const char *fmt, ...)
{
    VQ_ASSERT(w->file);
    va_list args;
    va_start(args, fmt);
    int n = vfprintf(w->file, fmt, args);
    va_end(args);
    return n >= 0 ? VQ_OK : writer_failed(w);
}

vq_status vq_writer_reserve(vq_writer *w, int64_t bytes)
{
    VQ_ASSERT(w->file);
    if (bytes == 0 || fallocate(fileno(w->file), 0, 0, bytes) == 0) return VQ_OK;
    bool full = errno == ENOSPC || errno == EDQUOT || errno == EFBIG;
    return full ? writer_failed(w) : VQ_OK;
}

vq_status vq_writer_finish(vq_writer *w)
{
    char temporary[PATH_MAX];
    VQ_ASSERT(w->file);
    VQ_TRY(vq_file_temporary(w->path, temporary));
    errno = EIO; /* of a write that failed before this one */
    if (fflush(w->file) != 0 || ferror(w->file)) return writer_failed(w);
    FILE *file = w->file;
    w->file = NULL;
    if (fclose(file) != 0) {
        vq_status status = vq_file_error(w->path, "written");
        unlink(temporary);
        return status;
    }
    return vq_file_commit(temporary, w->path);
}

vq_status vq_file_write(const char *path, const void *data, size_t bytes)
{
    vq_writer w;
    VQ_TRY(vq_writer_open(path, &w));
    VQ_TRY(vq_writer_put(&w, data, bytes));
    return vq_writer_finish(&w);
}

vq_status vq_file_copy(const char *from, const char *to)
{
    vq_map map;
    vq_writer w;
    VQ_TRY(vq_file_map(from, &map));
    vq_status status = vq_writer_open(to, &w);
    for (size_t done = 0; status == VQ_OK && done < map.bytes; done += COPY_BYTES) {
        size_t n = VQ_MIN(COPY_BYTES, map.bytes - done);
        status = vq_writer_put(&w, map.data + done, n);
        vq_file_release(map.data + done, n);
    }
    if (status == VQ_OK) status = vq_writer_finish(&w);
    vq_file_unmap(&map);
    return status;
}

bool vq_file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

bool vq_is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

vq_status vq_make_folders(const char *path)
{
    char part[PATH_MAX];
    size_t n = strlen(path);
    VQ_CHECK(n > 0 && n < sizeof part, VQ_EFILE,
             "\"%.64s\" is the name of a folder to make: expected 1 to %d bytes. Use another path",
             path, PATH_MAX - 1);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0777) == 0 || (errno == EEXIST && vq_is_folder(part))) continue;
        /* Above the last part "permission denied" may hide a folder that is there. */
        if (path[i] == '/' && vq_is_folder(part)) continue;
        VQ_CHECK(errno != EEXIST, VQ_EFILE,
                 "%s cannot be made as a folder: it is a file, expected a folder or nothing "
                 "there. Choose another path",
                 part);
        return vq_file_error(part, "made as a folder");
    }
    return VQ_OK;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool listed(const char *name, const char *suffix)
{
    size_t n = strlen(name), m = strlen(suffix);
    return strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && n >= m &&
           strcmp(name + n - m, suffix) == 0;
}

vq_status vq_folder_list(vq_arena *arena, const char *path, const char *suffix, char ***names,
                         int64_t *n)
{
    DIR *dir = opendir(path);
    if (!dir) return vq_file_error(path, "listed");
    int64_t room = 0;
    while (readdir(dir)) room++;
    rewinddir(dir);
    vq_status status = VQ_NEW(arena, room, names);
    *n = 0;
    for (struct dirent *e; status == VQ_OK && *n < room && (e = readdir(dir));) {
        if (!listed(e->d_name, suffix)) continue;
        status = vq_arena_text(arena, e->d_name, strlen(e->d_name), &(*names)[*n]);
        if (status == VQ_OK) ++*n;
    }
    closedir(dir);
    if (status == VQ_OK && *n > 0) qsort(*names, (size_t)*n, sizeof **names, by_text);
    return status;
}

vq_status vq_folder_bytes(vq_arena *scratch, const char *path, double *bytes)
{
    char **names, *inside;
    int64_t n;
    struct stat info;
    const size_t mark = vq_arena_mark(scratch);
    *bytes = 0;
    if (!vq_is_folder(path)) return VQ_OK;
    VQ_TRY(vq_folder_list(scratch, path, "", &names, &n));
    for (int64_t i = 0; i < n; i++) {
        VQ_TRY(vq_path_join(scratch, path, names[i], &inside));
        if (stat(inside, &info) == 0 && S_ISREG(info.st_mode)) *bytes += (double)info.st_size;
    }
    vq_arena_reset(scratch, mark);
    return VQ_OK;
}

vq_status vq_disk_free(const char *path, double *bytes)
{
    struct statvfs disk;
    if (statvfs(path, &disk) != 0) return vq_file_error(path, "asked for its free space");
    *bytes = (double)disk.f_bavail * (double)disk.f_frsize;
    return VQ_OK;
}

vq_status vq_path_join(vq_arena *arena, const char *dir, const char *name, char **out)
{
    size_t n = strlen(dir), m = strlen(name);
    bool slash = n > 0 && dir[n - 1] != '/';
    VQ_TRY(vq_arena_alloc(arena, n + slash + m + 1, (void **)out));
    memcpy(*out, dir, n);
    if (slash) (*out)[n++] = '/';
    memcpy(*out + n, name, m + 1);
    return VQ_OK;
}

uint64_t vq_hash_bytes(uint64_t h, const void *data, size_t bytes)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < bytes; i++) h = (h ^ p[i]) * UINT64_C(0x100000001b3);
    return h;
}

uint64_t vq_hash_u64(uint64_t h, uint64_t value)
{
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(value >> 8 * i);
    return vq_hash_bytes(h, bytes, sizeof bytes);
}

uint64_t vq_hash_text(uint64_t h, const char *text)
{
    return vq_hash_bytes(h, text, strlen(text) + 1);
}

vq_status vq_hash_path(uint64_t h, vq_arena *scratch, const char *path, uint64_t *out)
{
    struct stat info;
    if (stat(path, &info) != 0) return vq_file_error(path, "read");
    h = vq_hash_text(h, path);
    if (S_ISDIR(info.st_mode)) {
        size_t mark = vq_arena_mark(scratch);
        char **names, *inside;
        int64_t n;
        VQ_TRY(vq_folder_list(scratch, path, "", &names, &n));
        for (int64_t i = 0; i < n; i++) {
            VQ_TRY(vq_path_join(scratch, path, names[i], &inside));
            if (vq_is_folder(inside)) continue;
            VQ_TRY(vq_hash_path(h, scratch, inside, &h));
        }
        vq_arena_reset(scratch, mark);
    } else {
        h = vq_hash_u64(h, (uint64_t)info.st_size);
    }
    *out = h;
    return VQ_OK;
}
