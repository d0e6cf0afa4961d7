/* h5 - datasets and attributes through HDF5's serial library. */
#include "h5.h"

#define H5_USE_110_API /* HDF5 1.10 to 1.14 look alike */
#include <errno.h>
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"

#define KIND_KEY "kind"
#define VERSION_KEY "layout_version"
#define DTYPE_KEY "dtype"
#define NAME_BYTES 1024                /* of a dataset, with its groups */
#define CHUNK_BYTES ((hsize_t)1 << 20) /* HDF5 keeps as much of a dataset in memory */

/* --- errors --- */

/* What HDF5 says went wrong. */
typedef struct cause {
    char text[256]; /* the beginning: a long path may fill it */
    bool no_space, no_memory;
} cause;

static herr_t first_error(unsigned n, const H5E_error2_t *e, void *to)
{
    cause *c = to;
    /* Walking upward, the first is the deepest: the cause. */
    if (n > 0 || !e->desc) return 0;
    snprintf(c->text, sizeof c->text, "%s", e->desc);
    c->no_space = strstr(e->desc, strerror(ENOSPC)) || strstr(e->desc, strerror(EDQUOT));
    c->no_memory = strstr(e->desc, "memory allocation failed") || strstr(e->desc, strerror(ENOMEM));
    return 0;
}

/* Fails with what HDF5 said last about object of the file. */
static vq_status h5_failed(const vq_h5 *h, const char *object, const char *did)
{
    cause c = {.text = "no reason given"};
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first_error, &c);
    H5Eclear2(H5E_DEFAULT);
    VQ_CHECK(!c.no_space, VQ_EMEM,
             "%s: %s cannot be %s: no space left on its disk. Free some space, or choose another "
             "folder",
             h->path, object, did);
    VQ_CHECK(!c.no_memory, VQ_EMEM,
             "%s: %s cannot be %s: the system refused HDF5 memory. Lower seqlen or the batch, or "
             "use more stages",
             h->path, object, did);
    VQ_FAIL(VQ_EFILE,
            "%s: %s cannot be %s: %s. Expected a whole file of vqround; if it is damaged delete it "
            "and run again",
            h->path, object, did, c.text);
}

#define VQ_H5(call, h, object, did)                                                                \
    do {                                                                                           \
        if ((call) < 0) return h5_failed(h, object, did);                                          \
    } while (0)

static const char *object_name(const char *object)
{
    return object ? object : "the file";
}

/* --- files --- */

static vq_status closed(vq_arena *arena, const char *path, bool writing, vq_h5 *out)
{
    char *kept;
    *out = (vq_h5){.id = -1, .writing = writing};
    VQ_TRY(vq_arena_text(arena, path, strlen(path), &kept));
    out->path = kept;
    /* Files are closed here. What is left of one that could not be written out would crash HDF5's
     * own closing at the end of the program. */
    H5dont_atexit();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    return VQ_OK;
}

static hid_t access_without_locks(void)
{
    hid_t list = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_file_locking(list, 0, 1);
    H5Pset_fclose_degree(list, H5F_CLOSE_STRONG);
    return list;
}

vq_status vq_h5_create(vq_arena *arena, const char *path, const char *kind, int64_t version,
                       vq_h5 *out)
{
    char temporary[PATH_MAX];
    VQ_TRY(closed(arena, path, true, out));
    /* The system says more clearly than HDF5 why a file cannot be made. */
    VQ_TRY(vq_file_temporary(path, temporary));
    FILE *probe = fopen(temporary, "wbe");
    if (!probe) return vq_file_error(path, "written");
    fclose(probe);
    hid_t access = access_without_locks();
    H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110); /* its own data has checksums */
    hid_t how = H5Pcreate(H5P_FILE_CREATE);
    H5Pset_obj_track_times(how, 0);
    out->id = H5Fcreate(temporary, H5F_ACC_TRUNC, how, access);
    vq_status status = out->id < 0 ? h5_failed(out, "the file", "made") : VQ_OK;
    H5Pclose(how); /* which forgets the error */
    H5Pclose(access);
    if (status == VQ_OK) status = vq_h5_set_text(out, NULL, KIND_KEY, kind);
    if (status == VQ_OK) status = vq_h5_set_i64(out, NULL, VERSION_KEY, version);
    if (status != VQ_OK) {
        vq_h5_close(out);
        unlink(temporary);
    }
    return status;
}

vq_status vq_h5_finish(vq_h5 *h)
{
    char temporary[PATH_MAX];
    VQ_ASSERT(h->writing && h->id >= 0);
    VQ_TRY(vq_file_temporary(h->path, temporary));
    vq_status status = VQ_OK;
    if (H5Fflush(h->id, H5F_SCOPE_GLOBAL) < 0) status = h5_failed(h, "the file", "written");
    if (H5Fclose(h->id) < 0 && status == VQ_OK) status = h5_failed(h, "the file", "closed");
    h->id = -1;
    if (status == VQ_OK) return vq_file_commit(temporary, h->path);
    unlink(temporary);
    return status;
}

vq_status vq_h5_open(vq_arena *arena, const char *path, const char *kind, int64_t version,
                     vq_h5 *out)
{
    vq_map map;
    VQ_TRY(closed(arena, path, false, out));
    VQ_TRY(vq_file_map(path, &map)); /* for the system's own errors */
    vq_file_unmap(&map);
    hid_t access = access_without_locks();
    out->id = H5Fopen(path, H5F_ACC_RDONLY, access);
    vq_status status = out->id < 0 ? h5_failed(out, "the file", "opened as HDF5") : VQ_OK;
    H5Pclose(access);
    if (status != VQ_OK || !kind) return status;
    int64_t found = 0;
    status = vq_h5_check_text(out, KIND_KEY, kind, "the kind of file");
    if (status == VQ_OK) status = vq_h5_get_i64(out, NULL, VERSION_KEY, &found);
    if (status == VQ_OK && found != version)
        status = vq_error_set(VQ_EFILE, __FILE__, __LINE__,
                              "%s has version %lld of the layout of %s, expected %lld. It was "
                              "written by another vqround: use that one, or delete the file and "
                              "run again",
                              path, (long long)found, kind, (long long)version);
    if (status != VQ_OK) vq_h5_close(out);
    return status;
}

void vq_h5_close(vq_h5 *h)
{
    char temporary[PATH_MAX];
    if (h->id < 0) return;
    H5Fclose(h->id);
    h->id = -1;
    if (h->writing && vq_file_temporary(h->path, temporary) == VQ_OK) unlink(temporary);
}

/* --- types --- */

/* A new HDF5 type for dtype in a file or (little-endian machines only) in memory. */
static hid_t make_type(vq_dtype dtype)
{
    switch (dtype) {
    case VQ_F64: return H5Tcopy(H5T_IEEE_F64LE);
    case VQ_I8: return H5Tcopy(H5T_STD_I8LE);
    case VQ_I16: return H5Tcopy(H5T_STD_I16LE);
    case VQ_I32: return H5Tcopy(H5T_STD_I32LE);
    case VQ_I64: return H5Tcopy(H5T_STD_I64LE);
    case VQ_BOOL:
    case VQ_U8: return H5Tcopy(H5T_STD_U8LE);
    case VQ_BF16:
    case VQ_U16: return H5Tcopy(H5T_STD_U16LE);
    case VQ_U32: return H5Tcopy(H5T_STD_U32LE);
    case VQ_F16: {
        hid_t type = H5Tcopy(H5T_IEEE_F32LE);
        H5Tset_fields(type, 15, 10, 5, 0, 10); /* sign, exponent, mantissa: first bit and size */
        H5Tset_size(type, 2);
        H5Tset_ebias(type, 15);
        return type;
    }
    default: return H5Tcopy(H5T_IEEE_F32LE);
    }
}

static bool marked(vq_dtype dtype)
{
    return dtype == VQ_BF16 || dtype == VQ_BOOL;
}

/* The dtype of a dataset, and its name in HDF5's words when it is none of ours. */
static vq_status find_dtype(const vq_h5 *h, const char *name, hid_t set, vq_dtype *out)
{
    hid_t type = H5Dget_type(set);
    int found = -1;
    for (int i = 0; i < VQ_N_DTYPES && found < 0; i++) {
        hid_t ours = make_type((vq_dtype)i);
        if (!marked((vq_dtype)i) && H5Tequal(type, ours) > 0) found = i;
        H5Tclose(ours);
    }
    H5Tclose(type);
    VQ_CHECK(found >= 0, VQ_EFILE,
             "%s: dataset %s has a type that is none of vqround's (f16, f32, f64, integers), "
             "expected one. Use a file that vqround wrote",
             h->path, name);
    *out = (vq_dtype)found;
    if (!vq_h5_has_attribute(h, name, DTYPE_KEY)) return VQ_OK;
    if (*out == VQ_U16) *out = VQ_BF16;
    if (*out == VQ_U8) *out = VQ_BOOL;
    return VQ_OK;
}

/* --- datasets --- */

/* Opens a dataset, with its dtype and dims. *set is to be closed. */
static vq_status open_set(const vq_h5 *h, const char *name, hid_t *set, vq_tensor *shape)
{
    hsize_t dim[VQ_MAX_NDIM];
    VQ_ASSERT(h->id >= 0);
    *shape = (vq_tensor){.name = name, .place = VQ_HOST};
    VQ_CHECK(vq_h5_has(h, name), VQ_EFILE,
             "%s: dataset %s is missing, expected it there. Delete the file and run again", h->path,
             name);
    *set = H5Dopen2(h->id, name, H5P_DEFAULT);
    VQ_H5(*set, h, name, "opened");
    vq_status status = find_dtype(h, name, *set, &shape->dtype);
    hid_t space = H5Dget_space(*set);
    int ndim = H5Sget_simple_extent_ndims(space);
    if (status == VQ_OK && (ndim < 0 || ndim > VQ_MAX_NDIM))
        status = vq_error_set(VQ_EFILE, __FILE__, __LINE__,
                              "%s: dataset %s has %d dims, expected at most %d. Use a file that "
                              "vqround wrote",
                              h->path, name, ndim, VQ_MAX_NDIM);
    if (status == VQ_OK) {
        shape->ndim = ndim;
        H5Sget_simple_extent_dims(space, dim, NULL);
        int64_t stride = 1;
        for (int i = VQ_MAX_NDIM - 1; i >= 0; i--) {
            shape->dim[i] = i < ndim ? (int64_t)dim[i] : 1;
            shape->stride[i] = stride;
            stride *= shape->dim[i];
        }
    }
    H5Sclose(space);
    if (status != VQ_OK) H5Dclose(*set);
    return status;
}

static vq_status check_same(const vq_h5 *h, const char *name, const vq_tensor *found,
                            const vq_tensor *t)
{
    char is[96], expected[96];
    VQ_CHECK(found->dtype == t->dtype && vq_tensor_same_shape(found, t), VQ_EFILE,
             "%s: dataset %s is %s, expected %s. It belongs to another model or setting: delete "
             "the file and run again",
             h->path, name, vq_tensor_text(found, is), vq_tensor_text(t, expected));
    return VQ_OK;
}

typedef enum direction { READ, WRITE } direction;

/* Moves rows [first, first + n) of the first dim of an open dataset; n < 0 is all of it. */
static vq_status move(const vq_h5 *h, const char *name, hid_t set, direction way, int64_t first,
                      int64_t n, const vq_tensor *t)
{
    hid_t type = make_type(t->dtype), memory = H5S_ALL, file = H5S_ALL;
    if (vq_tensor_count(t) == 0) {
        H5Tclose(type);
        return VQ_OK;
    }
    herr_t e = 0;
    if (n >= 0) {
        hsize_t start[VQ_MAX_NDIM] = {(hsize_t)first}, count[VQ_MAX_NDIM] = {0};
        for (int i = 0; i < t->ndim; i++) count[i] = (hsize_t)t->dim[i];
        file = H5Dget_space(set);
        memory = H5Screate_simple(t->ndim, count, NULL);
        e = H5Sselect_hyperslab(file, H5S_SELECT_SET, start, NULL, count, NULL);
    }
    if (e >= 0)
        e = way == READ ? H5Dread(set, type, memory, file, H5P_DEFAULT, t->data)
                        : H5Dwrite(set, type, memory, file, H5P_DEFAULT, t->data);
    vq_status status = e < 0 ? h5_failed(h, name, way == READ ? "read" : "written") : VQ_OK;
    if (n >= 0) {
        H5Sclose(file);
        H5Sclose(memory);
    }
    H5Tclose(type);
    return status;
}

static vq_status move_all(const vq_h5 *h, const char *name, direction way, const vq_tensor *t)
{
    hid_t set;
    vq_tensor found;
    VQ_ASSERT(t->place == VQ_HOST && vq_tensor_contiguous(t));
    VQ_TRY(open_set(h, name, &set, &found));
    vq_status status = check_same(h, name, &found, t);
    if (status == VQ_OK) status = move(h, name, set, way, 0, -1, t);
    if (H5Dclose(set) < 0 && status == VQ_OK) status = h5_failed(h, name, "closed");
    return status;
}

static vq_status move_rows(const vq_h5 *h, const char *name, direction way, int64_t first,
                           const vq_tensor *rows)
{
    hid_t set;
    vq_tensor found;
    VQ_ASSERT(rows->place == VQ_HOST && rows->ndim > 0 && vq_tensor_contiguous(rows));
    VQ_TRY(open_set(h, name, &set, &found));
    int64_t n = rows->dim[0], there = found.dim[0];
    found.dim[0] = n; /* any number of rows, but the same rows */
    vq_status status = check_same(h, name, &found, rows);
    if (status == VQ_OK && (first < 0 || first > there - n))
        status = vq_error_set(VQ_EFILE, __FILE__, __LINE__,
                              "%s: dataset %s has %lld rows, expected %lld from row %lld on. It "
                              "belongs to another setting: delete the file and run again",
                              h->path, name, (long long)there, (long long)n, (long long)first);
    if (status == VQ_OK) status = move(h, name, set, way, first, n, rows);
    if (H5Dclose(set) < 0 && status == VQ_OK) status = h5_failed(h, name, "closed");
    return status;
}

/* Makes the groups that are in the way to dataset `name`. They carry no times: the same run makes
 * the same file. */
static vq_status make_groups(vq_h5 *h, const char *name)
{
    char part[NAME_BYTES];
    hid_t how = H5Pcreate(H5P_GROUP_CREATE);
    H5Pset_obj_track_times(how, 0);
    vq_status status = VQ_OK;
    for (const char *p = strchr(name, '/'); p && status == VQ_OK; p = strchr(p + 1, '/')) {
        snprintf(part, sizeof part, "%.*s", (int)(p - name), name);
        if (H5Lexists(h->id, part, H5P_DEFAULT) > 0) continue;
        hid_t group = H5Gcreate2(h->id, part, H5P_DEFAULT, how, H5P_DEFAULT);
        if (group < 0 || H5Gclose(group) < 0) status = h5_failed(h, part, "made");
    }
    H5Pclose(how);
    return status;
}

/* Stores a dataset in chunks, each with a checksum: a file that rotted on its disk is refused. */
static herr_t add_checksums(hid_t how, const vq_tensor *shape, const hsize_t *dim)
{
    hsize_t chunk[VQ_MAX_NDIM], rest = (hsize_t)vq_tensor_bytes(shape);
    if (shape->ndim == 0 || rest == 0) return 0;
    for (int i = 0; i < shape->ndim; i++) {
        rest /= dim[i]; /* bytes of one step along this dim */
        chunk[i] = VQ_MIN(dim[i], VQ_MAX(CHUNK_BYTES / rest, 1));
    }
    if (H5Pset_chunk(how, shape->ndim, chunk) < 0) return -1;
    return H5Pset_fletcher32(how);
}

vq_status vq_h5_make(vq_h5 *h, const char *name, const vq_tensor *shape)
{
    hsize_t dim[VQ_MAX_NDIM];
    VQ_ASSERT(h->writing && h->id >= 0 && !vq_h5_has(h, name));
    for (int i = 0; i < shape->ndim; i++) dim[i] = (hsize_t)shape->dim[i];
    VQ_TRY(make_groups(h, name));
    hid_t how = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_obj_track_times(how, 0);
    hid_t type = make_type(shape->dtype);
    hid_t space = shape->ndim ? H5Screate_simple(shape->ndim, dim, NULL) : H5Screate(H5S_SCALAR);
    hid_t set = -1;
    if (add_checksums(how, shape, dim) >= 0)
        set = H5Dcreate2(h->id, name, type, space, H5P_DEFAULT, how, H5P_DEFAULT);
    vq_status status = set < 0 ? h5_failed(h, name, "made") : VQ_OK;
    H5Sclose(space);
    H5Tclose(type);
    H5Pclose(how);
    if (set >= 0) H5Dclose(set);
    if (status == VQ_OK && marked(shape->dtype))
        status = vq_h5_set_text(h, name, DTYPE_KEY, vq_dtype_name(shape->dtype));
    return status;
}

vq_status vq_h5_write(vq_h5 *h, const char *name, const vq_tensor *t)
{
    VQ_TRY(vq_h5_make(h, name, t));
    return move_all(h, name, WRITE, t);
}

vq_status vq_h5_write_rows(vq_h5 *h, const char *name, int64_t first, const vq_tensor *rows)
{
    VQ_ASSERT(h->writing);
    return move_rows(h, name, WRITE, first, rows);
}

vq_status vq_h5_read(const vq_h5 *h, const char *name, const vq_tensor *t)
{
    return move_all(h, name, READ, t);
}

vq_status vq_h5_read_rows(const vq_h5 *h, const char *name, int64_t first, const vq_tensor *rows)
{
    return move_rows(h, name, READ, first, rows);
}

vq_status vq_h5_load(const vq_h5 *h, vq_arena *arena, const char *name, vq_tensor *out)
{
    VQ_TRY(vq_h5_shape(h, name, out));
    VQ_TRY(vq_arena_array(arena, vq_tensor_count(out), vq_dtype_bytes(out->dtype), &out->data));
    return move_all(h, name, READ, out);
}

vq_status vq_h5_shape(const vq_h5 *h, const char *name, vq_tensor *out)
{
    hid_t set;
    VQ_TRY(open_set(h, name, &set, out));
    H5Dclose(set);
    return VQ_OK;
}

bool vq_h5_has(const vq_h5 *h, const char *name)
{
    /* HDF5 wants every group on the way to be there before it is asked for what is in it. */
    char part[NAME_BYTES];
    size_t n = strlen(name);
    if (n == 0 || n >= sizeof part) return false;
    for (size_t i = 1; i <= n; i++) {
        if (name[i] != '/' && name[i] != '\0') continue;
        memcpy(part, name, i);
        part[i] = '\0';
        if (H5Lexists(h->id, part, H5P_DEFAULT) <= 0) return false;
    }
    return H5Oexists_by_name(h->id, name, H5P_DEFAULT) > 0;
}

/* --- lists --- */

/* Names as HDF5 hands them over, counted (names NULL) or kept. */
typedef struct listing {
    vq_arena *arena;
    char **names;
    int64_t n;
    vq_status status;
} listing;

static void list_name(listing *l, const char *name)
{
    if (l->names && l->status == VQ_OK)
        l->status = vq_arena_text(l->arena, name, strlen(name), &l->names[l->n]);
    l->n++;
}

static herr_t list_dataset(hid_t id, const char *name, const H5O_info_t *info, void *to)
{
    (void)id;
    if (info->type == H5O_TYPE_DATASET) list_name(to, name);
    return 0;
}

static herr_t list_attribute(hid_t id, const char *name, const H5A_info_t *info, void *to)
{
    (void)id;
    (void)info;
    list_name(to, name);
    return 0;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static vq_status end_list(listing *l, char ***names, int64_t *n)
{
    VQ_TRY(l->status);
    if (l->n > 0) qsort(l->names, (size_t)l->n, sizeof *l->names, by_text);
    *names = l->names;
    *n = l->n;
    return VQ_OK;
}

vq_status vq_h5_list(const vq_h5 *h, vq_arena *arena, char ***names, int64_t *n)
{
    listing l = {.arena = arena};
    VQ_ASSERT(h->id >= 0);
    VQ_H5(H5Ovisit2(h->id, H5_INDEX_NAME, H5_ITER_NATIVE, list_dataset, &l, H5O_INFO_BASIC), h,
          "the file", "listed");
    VQ_TRY(VQ_NEW(arena, l.n, &l.names));
    l.n = 0;
    VQ_H5(H5Ovisit2(h->id, H5_INDEX_NAME, H5_ITER_NATIVE, list_dataset, &l, H5O_INFO_BASIC), h,
          "the file", "listed");
    return end_list(&l, names, n);
}

vq_status vq_h5_list_attributes(const vq_h5 *h, vq_arena *arena, const char *object, char ***names,
                                int64_t *n)
{
    listing l = {.arena = arena};
    const char *name = object ? object : ".";
    VQ_ASSERT(h->id >= 0);
    VQ_H5(H5Aiterate_by_name(h->id, name, H5_INDEX_NAME, H5_ITER_NATIVE, NULL, list_attribute, &l,
                             H5P_DEFAULT),
          h, object_name(object), "listed");
    VQ_TRY(VQ_NEW(arena, l.n, &l.names));
    l.n = 0;
    VQ_H5(H5Aiterate_by_name(h->id, name, H5_INDEX_NAME, H5_ITER_NATIVE, NULL, list_attribute, &l,
                             H5P_DEFAULT),
          h, object_name(object), "listed");
    return end_list(&l, names, n);
}

/* --- attributes --- */

bool vq_h5_has_attribute(const vq_h5 *h, const char *object, const char *key)
{
    return H5Aexists_by_name(h->id, object ? object : ".", key, H5P_DEFAULT) > 0;
}

static vq_status set_attribute(vq_h5 *h, const char *object, const char *key, hid_t type,
                               const void *value)
{
    const char *name = object ? object : ".";
    VQ_ASSERT(h->writing && h->id >= 0);
    if (vq_h5_has_attribute(h, object, key))
        VQ_H5(H5Adelete_by_name(h->id, name, key, H5P_DEFAULT), h, key, "replaced");
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t attribute =
        H5Acreate_by_name(h->id, name, key, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    vq_status status = VQ_OK;
    if (attribute < 0 || H5Awrite(attribute, type, value) < 0)
        status = h5_failed(h, key, "written");
    if (attribute >= 0) H5Aclose(attribute);
    H5Sclose(space);
    return status;
}

vq_status vq_h5_set_i64(vq_h5 *h, const char *object, const char *key, int64_t value)
{
    return set_attribute(h, object, key, H5T_STD_I64LE, &value);
}

vq_status vq_h5_set_u64(vq_h5 *h, const char *object, const char *key, uint64_t value)
{
    return set_attribute(h, object, key, H5T_STD_U64LE, &value);
}

vq_status vq_h5_set_f64(vq_h5 *h, const char *object, const char *key, double value)
{
    return set_attribute(h, object, key, H5T_IEEE_F64LE, &value);
}

static hid_t text_type(size_t bytes)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, bytes);
    H5Tset_cset(type, H5T_CSET_UTF8);
    return type;
}

vq_status vq_h5_set_text(vq_h5 *h, const char *object, const char *key, const char *value)
{
    hid_t type = text_type(strlen(value) + 1);
    vq_status status = set_attribute(h, object, key, type, value);
    H5Tclose(type);
    return status;
}

/* Opens an attribute of one of HDF5's classes; *id is to be closed. */
static vq_status open_attribute(const vq_h5 *h, const char *object, const char *key,
                                H5T_class_t class, const char *class_name, hid_t *id, size_t *bytes)
{
    VQ_ASSERT(h->id >= 0);
    VQ_CHECK(vq_h5_has_attribute(h, object, key), VQ_EFILE,
             "%s: attribute %s of %s is missing, expected it there. Use a file that vqround wrote, "
             "or delete it and run again",
             h->path, key, object_name(object));
    *id = H5Aopen_by_name(h->id, object ? object : ".", key, H5P_DEFAULT, H5P_DEFAULT);
    VQ_H5(*id, h, key, "opened");
    hid_t type = H5Aget_type(*id), space = H5Aget_space(*id);
    bool right = H5Tget_class(type) == class && H5Sget_simple_extent_npoints(space) == 1 &&
                 (class != H5T_STRING || H5Tis_variable_str(type) == 0);
    *bytes = H5Tget_size(type);
    H5Sclose(space);
    H5Tclose(type);
    if (!right) H5Aclose(*id);
    VQ_CHECK(right, VQ_EFILE,
             "%s: attribute %s of %s has another type, expected %s. Use a file that vqround wrote",
             h->path, key, object_name(object), class_name);
    return VQ_OK;
}

static vq_status get_number(const vq_h5 *h, const char *object, const char *key, H5T_class_t class,
                            const char *class_name, hid_t type, void *value)
{
    hid_t id;
    size_t bytes;
    VQ_TRY(open_attribute(h, object, key, class, class_name, &id, &bytes));
    vq_status status = H5Aread(id, type, value) < 0 ? h5_failed(h, key, "read") : VQ_OK;
    H5Aclose(id);
    return status;
}

vq_status vq_h5_get_i64(const vq_h5 *h, const char *object, const char *key, int64_t *value)
{
    return get_number(h, object, key, H5T_INTEGER, "an integer", H5T_STD_I64LE, value);
}

vq_status vq_h5_get_u64(const vq_h5 *h, const char *object, const char *key, uint64_t *value)
{
    return get_number(h, object, key, H5T_INTEGER, "an integer", H5T_STD_U64LE, value);
}

vq_status vq_h5_get_f64(const vq_h5 *h, const char *object, const char *key, double *value)
{
    return get_number(h, object, key, H5T_FLOAT, "a number", H5T_IEEE_F64LE, value);
}

vq_status vq_h5_get_text(const vq_h5 *h, vq_arena *arena, const char *object, const char *key,
                         char **value)
{
    hid_t id;
    size_t bytes = 0;
    VQ_TRY(open_attribute(h, object, key, H5T_STRING, "a text", &id, &bytes));
    vq_status status = vq_arena_alloc(arena, bytes + 1, (void **)value);
    if (status == VQ_OK) {
        hid_t type = text_type(bytes + 1); /* always ends with a NUL */
        if (H5Aread(id, type, *value) < 0) status = h5_failed(h, key, "read");
        H5Tclose(type);
    }
    H5Aclose(id);
    return status;
}

/* --- keys --- */

vq_status vq_h5_check_u64(const vq_h5 *h, const char *key, uint64_t expected, const char *what)
{
    uint64_t found = 0;
    VQ_TRY(vq_h5_get_u64(h, NULL, key, &found));
    VQ_CHECK(found == expected, VQ_EFILE,
             "%s: %s differs: attribute %s is %llu, expected %llu. Choose another --out, or delete "
             "this file and run again",
             h->path, what, key, (unsigned long long)found, (unsigned long long)expected);
    return VQ_OK;
}

vq_status vq_h5_check_text(const vq_h5 *h, const char *key, const char *expected, const char *what)
{
    char buffer[256];
    hid_t id;
    size_t bytes;
    VQ_TRY(open_attribute(h, NULL, key, H5T_STRING, "a text", &id, &bytes));
    hid_t type = text_type(sizeof buffer); /* a longer one is cut, and differs */
    vq_status status = H5Aread(id, type, buffer) < 0 ? h5_failed(h, key, "read") : VQ_OK;
    H5Tclose(type);
    H5Aclose(id);
    VQ_TRY(status);
    VQ_CHECK(strcmp(buffer, expected) == 0, VQ_EFILE,
             "%s: %s differs: attribute %s is \"%s\", expected \"%s\". Choose another --out, or "
             "delete this file and run again",
             h->path, what, key, buffer, expected);
    return VQ_OK;
}
