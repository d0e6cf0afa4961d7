/* safetensors - reading and writing one .safetensors file. */
#include "safetensors.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "log.h"

#define LENGTH_BYTES 8
#define HEADER_MAX ((uint64_t)100 << 20) /* what other readers take */

static const char *const dtype_names[VQ_N_DTYPES] = {
    [VQ_F32] = "F32", [VQ_F16] = "F16", [VQ_BF16] = "BF16", [VQ_F64] = "F64",
    [VQ_I8] = "I8",   [VQ_I16] = "I16", [VQ_I32] = "I32",   [VQ_I64] = "I64",
    [VQ_U8] = "U8",   [VQ_U16] = "U16", [VQ_U32] = "U32",   [VQ_BOOL] = "BOOL",
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const vq_tensor *)a)->name, ((const vq_tensor *)b)->name);
}

/* In the order of the file; of two that start together the empty one is first. */
static int by_place(const void *a, const void *b)
{
    const vq_tensor *s = a, *t = b;
    if (s->data != t->data) return (uintptr_t)s->data < (uintptr_t)t->data ? -1 : 1;
    size_t m = vq_tensor_bytes(s), n = vq_tensor_bytes(t);
    return (m > n) - (m < n);
}

static vq_status read_dtype(const char *path, const char *name, const json_t *value, vq_dtype *out)
{
    const char *text = json_string_value(value);
    VQ_CHECK(text, VQ_EFILE,
             "%s: %s has no \"dtype\" text, expected one such as \"F16\". Download the file again",
             path, name);
    for (int i = 0; i < VQ_N_DTYPES; i++) {
        if (strcmp(text, dtype_names[i]) != 0) continue;
        *out = (vq_dtype)i;
        return VQ_OK;
    }
    VQ_FAIL(VQ_EUNSUPPORTED,
            "%s: %s has dtype \"%.32s\", expected F32, F16, BF16, F64, BOOL, or I or U of 8 to 32 "
            "bits or I64. Use the model in its original, unquantized precision",
            path, name, text);
}

/* dims into t, and their bytes without overflow. */
static vq_status read_shape(const char *path, const char *name, const json_t *shape, vq_tensor *t,
                            uint64_t *bytes)
{
    VQ_CHECK(json_is_array(shape), VQ_EFILE,
             "%s: %s has no \"shape\" list, expected one of numbers. Download the file again", path,
             name);
    size_t ndim = json_array_size(shape);
    VQ_CHECK(ndim <= VQ_MAX_NDIM, VQ_EUNSUPPORTED,
             "%s: %s has %zu dims, expected at most %d. Use a model of a supported family", path,
             name, ndim, VQ_MAX_NDIM);
    *bytes = vq_dtype_bytes(t->dtype);
    for (size_t i = 0; i < ndim; i++) {
        json_t *dim = json_array_get(shape, i);
        json_int_t n = json_integer_value(dim);
        VQ_CHECK(json_is_integer(dim) && n >= 0 &&
                     !__builtin_mul_overflow(*bytes, (uint64_t)n, bytes) && *bytes <= INT64_MAX,
                 VQ_EFILE,
                 "%s: %s has dim %zu = %lld in \"shape\": expected a number from 0 up that fits "
                 "the file. Download the file again",
                 path, name, i, (long long)n);
        t->dim[i] = n;
    }
    t->ndim = (int)ndim;
    int64_t stride = 1;
    for (int i = VQ_MAX_NDIM - 1; i >= 0; i--) {
        if (i >= t->ndim) t->dim[i] = 1;
        t->stride[i] = stride;
        stride *= t->dim[i];
    }
    return VQ_OK;
}

static vq_status read_entry(vq_arena *arena, const char *path, const char *key, json_t *entry,
                            const uint8_t *data, uint64_t data_bytes, vq_tensor *t)
{
    char *name, text[96];
    uint64_t bytes = 0;
    VQ_TRY(vq_arena_text(arena, key, strlen(key), &name));
    *t = (vq_tensor){.name = name, .place = VQ_HOST};
    VQ_CHECK(
        json_is_object(entry), VQ_EFILE,
        "%s: %s is not a {...} in the header, expected dtype, shape and data_offsets. Download "
        "the file again",
        path, name);
    VQ_TRY(read_dtype(path, name, json_object_get(entry, "dtype"), &t->dtype));
    VQ_TRY(read_shape(path, name, json_object_get(entry, "shape"), t, &bytes));
    json_t *offsets = json_object_get(entry, "data_offsets");
    json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    json_int_t begin = json_integer_value(first), end = json_integer_value(last);
    VQ_CHECK(json_array_size(offsets) == 2 && json_is_integer(first) && json_is_integer(last) &&
                 begin >= 0 && begin <= end,
             VQ_EFILE,
             "%s: %s has wrong \"data_offsets\", expected [begin, end] with 0 <= begin <= end. "
             "Download the file again",
             path, name);
    VQ_CHECK((uint64_t)end <= data_bytes, VQ_EFILE,
             "%s: %s ends at byte %lld of the data, but the file has only %llu. It is truncated: "
             "expected all of the data; download it again",
             path, name, (long long)end, (unsigned long long)data_bytes);
    VQ_CHECK((uint64_t)(end - begin) == bytes, VQ_EFILE,
             "%s: %s has %lld bytes of data, expected %llu for %s. Download the file again", path,
             name, (long long)(end - begin), (unsigned long long)bytes, vq_tensor_text(t, text));
    t->data = (void *)(uintptr_t)(data + begin);
    return VQ_OK;
}

/* The tensors fill the data exactly. Leaves them in the order of the file. */
static vq_status check_places(const char *path, vq_tensor *tensor, int64_t n, const uint8_t *data,
                              uint64_t data_bytes)
{
    const uint8_t *place = data;
    if (n > 0) qsort(tensor, (size_t)n, sizeof *tensor, by_place);
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *at = tensor[i].data;
        VQ_CHECK(at >= place, VQ_EFILE,
                 "%s: %s overlaps %s, expected tensors one after the other. Download the file "
                 "again",
                 path, tensor[i].name, tensor[i - 1].name);
        VQ_CHECK(
            at == place, VQ_EFILE,
            "%s: there are %lld unused bytes before %s, expected none. Download the file again",
            path, (long long)(at - place), tensor[i].name);
        place = at + vq_tensor_bytes(&tensor[i]);
    }
    VQ_CHECK(place == data + data_bytes, VQ_EFILE,
             "%s: there are %lld unused bytes after the last tensor, expected none. Download the "
             "file again",
             path, (long long)(data + data_bytes - place));
    return VQ_OK;
}

static vq_status read_header(vq_arena *arena, json_t *header, const uint8_t *data,
                             uint64_t data_bytes, vq_safetensors *s)
{
    const char *key;
    json_t *entry;
    int64_t copied = 0;
    VQ_TRY(VQ_NEW(arena, (int64_t)json_object_size(header), &s->tensor));
    json_object_foreach(header, key, entry)
    {
        if (strcmp(key, "__metadata__") == 0) continue;
        VQ_TRY(read_entry(arena, s->path, key, entry, data, data_bytes, &s->tensor[s->n]));
        s->n++;
    }
    VQ_TRY(check_places(s->path, s->tensor, s->n, data, data_bytes));
    for (int64_t i = 0; i < s->n; i++) {
        vq_tensor *t = &s->tensor[i];
        const void *was = t->data;
        VQ_TRY(vq_file_align(arena, was, vq_tensor_bytes(t), vq_dtype_bytes(t->dtype), &t->data));
        copied += t->data != was;
    }
    if (copied > 0)
        vq_log(VQ_LOG_WARN, "%s: %lld tensors are not aligned in the file, and were copied",
               s->path, (long long)copied);
    if (s->n > 0) qsort(s->tensor, (size_t)s->n, sizeof *s->tensor, by_name);
    return VQ_OK;
}

vq_status vq_safetensors_parse(vq_arena *arena, const char *path, const uint8_t *data, size_t bytes,
                               vq_safetensors *out)
{
    uint64_t length = 0;
    json_error_t e;
    *out = (vq_safetensors){.path = path};
    VQ_CHECK(bytes >= LENGTH_BYTES, VQ_EFILE,
             "%s has %zu bytes, expected a safetensors file (at least %d). Download it again", path,
             bytes, LENGTH_BYTES);
    for (int i = 0; i < LENGTH_BYTES; i++) length |= (uint64_t)data[i] << 8 * i;
    VQ_CHECK(length <= bytes - LENGTH_BYTES, VQ_EFILE,
             "%s: the header's length is %llu bytes, but only %zu follow. It is truncated, or no "
             "safetensors file: download it again",
             path, (unsigned long long)length, bytes - LENGTH_BYTES);
    VQ_CHECK(length <= HEADER_MAX, VQ_EFILE,
             "%s: the header's length is %llu bytes, expected at most %llu. Download it again",
             path, (unsigned long long)length, (unsigned long long)HEADER_MAX);
    json_t *header =
        json_loadb((const char *)data + LENGTH_BYTES, (size_t)length, JSON_REJECT_DUPLICATES, &e);
    VQ_CHECK(
        header, VQ_EFILE,
        "%s: the header at byte %d is not valid: %s; expected JSON with unique names. Download "
        "the file again",
        path, e.position, e.text);
    vq_status status;
    if (json_is_object(header))
        status = read_header(arena, header, data + LENGTH_BYTES + length,
                             bytes - LENGTH_BYTES - length, out);
    else
        status = vq_error_set(VQ_EFILE, __FILE__, __LINE__,
                              "%s: the header is not a JSON {...} of tensors as expected. Download "
                              "the file again",
                              path);
    json_decref(header);
    return status;
}

vq_status vq_safetensors_open(vq_arena *arena, const char *path, vq_safetensors *out)
{
    vq_map map;
    char *kept;
    *out = (vq_safetensors){0};
    VQ_TRY(vq_arena_text(arena, path, strlen(path), &kept));
    VQ_TRY(vq_file_map(path, &map));
    vq_status status = vq_safetensors_parse(arena, kept, map.data, map.bytes, out);
    out->map = map;
    if (status != VQ_OK) vq_safetensors_close(out);
    return status;
}

void vq_safetensors_close(vq_safetensors *s)
{
    vq_file_unmap(&s->map);
    *s = (vq_safetensors){0};
}

const vq_tensor *vq_safetensors_find(const vq_safetensors *s, const char *name)
{
    vq_tensor key = {.name = name};
    return s->n > 0 ? bsearch(&key, s->tensor, (size_t)s->n, sizeof key, by_name) : NULL;
}

/* The header's text; the offsets of the data go into w->offset and w->end, from the data's start.
 * Fails: VQ_EMEM. */
static vq_status make_header(vq_safetensors_writer *w, char **text, size_t *bytes)
{
    json_t *header = json_object();
    int failed = json_object_set_new(header, "__metadata__", json_pack("{s:s}", "format", "pt"));
    int64_t end = 0;
    for (size_t size = 8; size > 0; size /= 2) {
        for (int64_t i = 0; i < w->n; i++) {
            const vq_tensor *t = &w->tensor[i];
            if (vq_dtype_bytes(t->dtype) != size) continue;
            w->offset[i] = end;
            w->end[i] = end += (int64_t)vq_tensor_bytes(t);
            json_t *shape = json_array();
            for (int d = 0; d < t->ndim; d++)
                failed |= json_array_append_new(shape, json_integer(t->dim[d]));
            failed |= json_object_set_new(
                header, t->name,
                json_pack("{s:s, s:o, s:[I,I]}", "dtype", dtype_names[t->dtype], "shape", shape,
                          "data_offsets", (json_int_t)w->offset[i], (json_int_t)end));
        }
    }
    failed |= json_object_size(header) != (size_t)w->n + 1; /* a name came twice */
    *text = failed ? NULL : json_dumps(header, JSON_COMPACT);
    json_decref(header);
    VQ_CHECK(*text, VQ_EMEM,
             "%s: the header of %lld tensors could not be made: expected enough memory and "
             "unique names in UTF-8. Check the names in the model's weights",
             w->file.path, (long long)w->n);
    *bytes = strlen(*text);
    return VQ_OK;
}

static vq_status write_header(vq_safetensors_writer *w, const char *text, size_t bytes)
{
    uint8_t length[LENGTH_BYTES];
    size_t padded = (bytes + 7) / 8 * 8;
    int64_t start = (int64_t)(LENGTH_BYTES + padded), end = start;
    for (int i = 0; i < LENGTH_BYTES; i++) length[i] = (uint8_t)(padded >> 8 * i);
    for (int64_t i = 0; i < w->n; i++) {
        w->offset[i] += start;
        w->end[i] += start;
        end = VQ_MAX(end, w->end[i]);
    }
    VQ_TRY(vq_writer_reserve(&w->file, end));
    VQ_TRY(vq_writer_put(&w->file, length, sizeof length));
    VQ_TRY(vq_writer_put(&w->file, text, bytes));
    return vq_writer_put(&w->file, "        ", padded - bytes);
}

vq_status vq_safetensors_create(vq_arena *arena, const char *path, const vq_tensor *tensor,
                                int64_t n, vq_safetensors_writer *w)
{
    char *text = NULL;
    size_t bytes = 0;
    *w = (vq_safetensors_writer){.tensor = tensor, .n = n};
    VQ_TRY(VQ_NEW(arena, n, &w->offset));
    VQ_TRY(VQ_NEW(arena, n, &w->end));
    VQ_TRY(vq_writer_open(path, &w->file));
    vq_status status = make_header(w, &text, &bytes);
    if (status == VQ_OK) {
        status = write_header(w, text, bytes);
        free(text);
    }
    if (status != VQ_OK) vq_safetensors_abandon(w);
    return status;
}

vq_status vq_safetensors_put(vq_safetensors_writer *w, int64_t i, const void *data, size_t bytes)
{
    VQ_ASSERT(i >= 0 && i < w->n && (int64_t)bytes <= w->end[i] - w->offset[i]);
    VQ_TRY(vq_writer_put_at(&w->file, w->offset[i], data, bytes));
    w->offset[i] += (int64_t)bytes;
    return VQ_OK;
}

vq_status vq_safetensors_finish(vq_safetensors_writer *w)
{
    for (int64_t i = 0; i < w->n; i++) {
        if (w->offset[i] == w->end[i]) continue;
        vq_safetensors_abandon(w);
        VQ_FAIL(VQ_EINTERNAL,
                "%s: %s lacks %lld bytes, expected all before the file is finished. This is a bug "
                "of vqround: please report it",
                w->file.path, w->tensor[i].name, (long long)(w->end[i] - w->offset[i]));
    }
    return vq_writer_finish(&w->file);
}

void vq_safetensors_abandon(vq_safetensors_writer *w)
{
    vq_writer_abandon(&w->file);
}
