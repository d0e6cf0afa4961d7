/* tensor.h - a descriptor of an array: where, what type, what shape. It never owns the data. */
#pragma once
#include "arena.h"

typedef enum vq_dtype {
    VQ_F32,
    VQ_F16,
    VQ_BF16,
    VQ_F64,
    VQ_I8,
    VQ_I16,
    VQ_I32,
    VQ_I64,
    VQ_U8,
    VQ_U16,
    VQ_U32,
    VQ_BOOL,
    VQ_N_DTYPES
} vq_dtype;

typedef enum vq_place { VQ_HOST, VQ_DEVICE } vq_place;

#define VQ_MAX_NDIM 4

typedef struct vq_tensor {
    void *data; /* borrowed: an arena, a mapped file */
    int64_t dim[VQ_MAX_NDIM];
    int64_t stride[VQ_MAX_NDIM]; /* in elements; row-major unless a view says otherwise */
    vq_dtype dtype;
    int ndim;
    vq_place place;
    const char *name; /* borrowed; for messages; may be NULL */
} vq_tensor;

size_t vq_dtype_bytes(vq_dtype dtype);
const char *vq_dtype_name(vq_dtype dtype); /* "f32", "bf16"... */
bool vq_dtype_is_float(vq_dtype dtype);

/* A contiguous row-major descriptor over data (host), of 1 to 4 dims. */
vq_tensor vq_tensor_1d(void *data, vq_dtype dtype, int64_t n0);
vq_tensor vq_tensor_2d(void *data, vq_dtype dtype, int64_t n0, int64_t n1);
vq_tensor vq_tensor_3d(void *data, vq_dtype dtype, int64_t n0, int64_t n1, int64_t n2);
vq_tensor vq_tensor_4d(void *data, vq_dtype dtype, int64_t n0, int64_t n1, int64_t n2, int64_t n3);

/* The dims of a shape where a function takes `int ndim, const int64_t *dim`. */
#define VQ_DIMS(...)                                                                               \
    VQ_COUNT(((int64_t[]){__VA_ARGS__})), (int64_t[])                                              \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

/* A contiguous tensor in memory of an arena, or of its twin on the device; not cleared.
 * VQ_TRY(vq_tensor_new(arena, be->place, be->act, VQ_DIMS(n, E), &t)). Fails: VQ_EMEM. */
vq_status vq_tensor_new(vq_arena *arena, vq_place place, vq_dtype dtype, int ndim,
                        const int64_t *dim, vq_tensor *out);

int64_t vq_tensor_count(const vq_tensor *t); /* elements */
size_t vq_tensor_bytes(const vq_tensor *t);  /* of the elements, without gaps */
bool vq_tensor_contiguous(const vq_tensor *t);
bool vq_tensor_same_shape(const vq_tensor *a, const vq_tensor *b);

/* Rows [first, first + n) of the first dimension. */
vq_tensor vq_tensor_rows(const vq_tensor *t, int64_t first, int64_t n);

/* The same contiguous elements under another shape (the counts must be equal). */
vq_tensor vq_tensor_view2(const vq_tensor *t, int64_t n0, int64_t n1);
vq_tensor vq_tensor_view4(const vq_tensor *t, int64_t n0, int64_t n1, int64_t n2, int64_t n3);

/* "f16 [4096, 11008]" into text. Returns text. */
const char *vq_tensor_text(const vq_tensor *t, char text[96]);

/* Half-precision and bfloat16 bits <-> float, round to nearest even. */
float vq_f16_to_f32(uint16_t h);
uint16_t vq_f32_to_f16(float f);
float vq_bf16_to_f32(uint16_t h);
uint16_t vq_f32_to_bf16(float f);

/* n elements of one float type to another. Fails: VQ_EINTERNAL for a type that is no float.
 * Local, pure. */
vq_status vq_convert(void *dst, vq_dtype dst_dtype, const void *src, vq_dtype src_dtype, int64_t n);
