/* tensor - descriptors, and conversion between float types. */
#include "tensor.h"

#include <stdio.h>
#include <string.h>

#include "error.h"

static const struct {
    const char *name;
    size_t bytes;
    bool is_float;
} dtypes[VQ_N_DTYPES] = {
    [VQ_F32] = {"f32", 4, true},  [VQ_F16] = {"f16", 2, true},  [VQ_BF16] = {"bf16", 2, true},
    [VQ_F64] = {"f64", 8, true},  [VQ_I8] = {"i8", 1, false},   [VQ_I16] = {"i16", 2, false},
    [VQ_I32] = {"i32", 4, false}, [VQ_I64] = {"i64", 8, false}, [VQ_U8] = {"u8", 1, false},
    [VQ_U16] = {"u16", 2, false}, [VQ_U32] = {"u32", 4, false}, [VQ_BOOL] = {"bool", 1, false},
};

size_t vq_dtype_bytes(vq_dtype dtype)
{
    return dtypes[dtype].bytes;
}

const char *vq_dtype_name(vq_dtype dtype)
{
    return dtypes[dtype].name;
}

bool vq_dtype_is_float(vq_dtype dtype)
{
    return dtypes[dtype].is_float;
}

static vq_tensor make(void *data, vq_dtype dtype, int ndim, const int64_t *dim)
{
    vq_tensor t = {.data = data, .dtype = dtype, .ndim = ndim, .place = VQ_HOST};
    int64_t stride = 1;
    for (int i = VQ_MAX_NDIM - 1; i >= 0; i--) {
        t.dim[i] = i < ndim ? dim[i] : 1;
        t.stride[i] = i < ndim ? stride : 1;
        if (i < ndim) stride *= dim[i];
    }
    return t;
}

vq_tensor vq_tensor_1d(void *data, vq_dtype dtype, int64_t n0)
{
    return make(data, dtype, 1, (int64_t[]){n0});
}

vq_tensor vq_tensor_2d(void *data, vq_dtype dtype, int64_t n0, int64_t n1)
{
    return make(data, dtype, 2, (int64_t[]){n0, n1});
}

vq_tensor vq_tensor_3d(void *data, vq_dtype dtype, int64_t n0, int64_t n1, int64_t n2)
{
    return make(data, dtype, 3, (int64_t[]){n0, n1, n2});
}

vq_tensor vq_tensor_4d(void *data, vq_dtype dtype, int64_t n0, int64_t n1, int64_t n2, int64_t n3)
{
    return make(data, dtype, 4, (int64_t[]){n0, n1, n2, n3});
}

vq_status vq_tensor_new(vq_arena *arena, vq_place place, vq_dtype dtype, int ndim,
                        const int64_t *dim, vq_tensor *out)
{
    int64_t count = 1;
    for (int i = 0; i < ndim; i++) count *= dim[i];
    *out = make(NULL, dtype, ndim, dim);
    out->place = place;
    return place == VQ_HOST ? vq_arena_array(arena, count, vq_dtype_bytes(dtype), &out->data)
                            : vq_arena_array_twin(arena, count, vq_dtype_bytes(dtype), &out->data);
}

int64_t vq_tensor_count(const vq_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->dim[i];
    return n;
}

size_t vq_tensor_bytes(const vq_tensor *t)
{
    return (size_t)vq_tensor_count(t) * vq_dtype_bytes(t->dtype);
}

bool vq_tensor_contiguous(const vq_tensor *t)
{
    int64_t stride = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        if (t->dim[i] != 1 && t->stride[i] != stride) return false;
        stride *= t->dim[i];
    }
    return true;
}

bool vq_tensor_same_shape(const vq_tensor *a, const vq_tensor *b)
{
    if (a->ndim != b->ndim) return false;
    for (int i = 0; i < a->ndim; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

vq_tensor vq_tensor_rows(const vq_tensor *t, int64_t first, int64_t n)
{
    vq_tensor v = *t;
    v.data = (char *)t->data + (size_t)(first * t->stride[0]) * vq_dtype_bytes(t->dtype);
    v.dim[0] = n;
    return v;
}

static vq_tensor view(const vq_tensor *t, vq_tensor shape)
{
    shape.place = t->place;
    shape.name = t->name;
    return shape;
}

vq_tensor vq_tensor_view2(const vq_tensor *t, int64_t n0, int64_t n1)
{
    return view(t, vq_tensor_2d(t->data, t->dtype, n0, n1));
}

vq_tensor vq_tensor_view4(const vq_tensor *t, int64_t n0, int64_t n1, int64_t n2, int64_t n3)
{
    return view(t, vq_tensor_4d(t->data, t->dtype, n0, n1, n2, n3));
}

const char *vq_tensor_text(const vq_tensor *t, char text[96])
{
    int n = snprintf(text, 96, "%s [", vq_dtype_name(t->dtype));
    for (int i = 0; i < t->ndim; i++)
        n += snprintf(text + n, 96 - (size_t)n, "%s%lld", i ? ", " : "", (long long)t->dim[i]);
    snprintf(text + n, 96 - (size_t)n, "]");
    return text;
}

static float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint32_t to_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

float vq_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    /* Scaling by 2^112 moves the exponent's bias and makes subnormals normal, exactly. */
    return from_bits(sign | to_bits(from_bits(rest << 13) * 0x1p112f));
}

uint16_t vq_f32_to_f16(float f)
{
    uint32_t u = to_bits(f), sign = u >> 16 & 0x8000, rest = u & 0x7fffffffu;
    if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x47800000u) return (uint16_t)(sign | 0x7c00); /* 65536 and above */
    if (rest < 0x38800000u) {
        /* Subnormal: adding 0.5 leaves the rounded mantissa in the low bits. */
        return (uint16_t)(sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((rest - 0x38000000u + 0xfffu + (rest >> 13 & 1)) >> 13));
}

float vq_bf16_to_f32(uint16_t h)
{
    return from_bits((uint32_t)h << 16);
}

uint16_t vq_f32_to_bf16(float f)
{
    uint32_t u = to_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

static float load(const void *src, vq_dtype dtype, int64_t i)
{
    switch (dtype) {
    case VQ_F16: return vq_f16_to_f32(((const uint16_t *)src)[i]);
    case VQ_BF16: return vq_bf16_to_f32(((const uint16_t *)src)[i]);
    case VQ_F64: return (float)((const double *)src)[i];
    default: return ((const float *)src)[i];
    }
}

vq_status vq_convert(void *dst, vq_dtype dst_dtype, const void *src, vq_dtype src_dtype, int64_t n)
{
    VQ_ASSERT(vq_dtype_is_float(dst_dtype) && vq_dtype_is_float(src_dtype));
    if (dst_dtype == src_dtype) {
        memcpy(dst, src, (size_t)n * vq_dtype_bytes(dst_dtype));
        return VQ_OK;
    }
    switch (dst_dtype) {
    case VQ_F16:
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)dst)[i] = vq_f32_to_f16(load(src, src_dtype, i));
        break;
    case VQ_BF16:
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)dst)[i] = vq_f32_to_bf16(load(src, src_dtype, i));
        break;
    case VQ_F64:
        for (int64_t i = 0; i < n; i++) ((double *)dst)[i] = (double)load(src, src_dtype, i);
        break;
    default:
        for (int64_t i = 0; i < n; i++) ((float *)dst)[i] = load(src, src_dtype, i);
    }
    return VQ_OK;
}
