/* packed.h - linears in the packed formats of other engines: GPTQ's (auto-gptq, GPTQModel) and
 * compressed-tensors' pack-quantized.
 *
 * w = s (q - z), rounded once to the model's type, so that a packed model is bit for bit the dense
 * one. For W[out, in] at b bits, with in columns cut into groups of g, instead of NAME.weight:
 *
 * | part   | gptq    | dims                    | compressed-tensors | dims                  |
 * |--------|---------|--------------------------|--------------------|----------------------|
 * | values | qweight | words(in) x out          | weight_packed      | out x words(in)      |
 * | scales | scales  | groups x out, f16        | weight_scale       | out x groups, model's|
 * | zeros  | qzeros  | groups x words(out)      | weight_zero_point  | words(out) x groups  |
 * | groups | g_idx   | in: each column's group  | weight_g_idx       | the same             |
 * | shape  |         |                          | weight_shape       | 2: out, in           |
 *
 * words(n) = ceil(n b / 32), as vq_pack has them; all whole numbers i32, the shape i64. Version 1
 * of GPTQ's format stores z - 1, version 2 z. compressed-tensors has zeros when it is
 * asymmetric, and groups only where they are not runs of columns: these are read, but its later
 * versions do not know them, so none are written. */
#pragma once
#include "arena.h"
#include "config.h"
#include "tensor.h"

/* What a model's quantization_config says. All zero: the model is dense. */
typedef struct vq_packing {
    vq_export_format format;
    int bits;           /* 2, 3, 4 or 8 */
    int64_t group_size; /* columns; -1: the whole row */
    bool symmetric;     /* every z is 2^(bits - 1) */
    bool less_one;      /* GPTQ's version 1 */
    bool scattered;     /* groups are not runs of columns (act-order) */
} vq_packing;

enum vq_part { VQ_VALUES, VQ_SCALES, VQ_ZEROS, VQ_GROUPS, VQ_SHAPE, VQ_N_PARTS };

typedef struct vq_packed {
    vq_packing packing;
    int64_t out, in;
    vq_tensor part[VQ_N_PARTS]; /* ndim 0: the format has no such part */
} vq_packed;

struct json_t;

/* What the settings make of the linears. */
vq_packing vq_packing_of(const vq_config *config);

/* Reads config.json's quantization_config; where names the file in messages.
 * Fails: VQ_EFILE (a value is missing or wrong), VQ_EUNSUPPORTED (another format). */
vq_status vq_packing_parse(const struct json_t *config, const char *where, vq_packing *packing);

/* What quantization_config should say; the caller owns the object. packed names the linears that
 * are packed, dense those that are not; damp is GPTQ's, for the record. Fails: VQ_EMEM. */
vq_status vq_packing_json(const vq_packing *packing, const vq_list *packed, const vq_list *dense,
                          double damp, struct json_t **config);

/* "dense", "gptq", "compressed-tensors": the format as config.json and --format call it. */
const char *vq_packing_name(const vq_packing *packing);

/* Groups of a row. */
int64_t vq_packing_groups(const vq_packing *packing, int64_t in);

/* Whether engines take a linear of that shape: out and in fill whole words (at 3 bits 32 values),
 * and groups divide in. If not, why[128] says so. */
bool vq_packing_holds(const vq_packing *packing, int64_t out, int64_t in, char why[128]);

/* The parts' names, types and dims, without data. dtype: the model's. */
void vq_packed_describe(const vq_packing *packing, int64_t out, int64_t in, vq_dtype dtype,
                        vq_packed *packed);

/* Fills the parts, whose data the caller has put there.
 *
 * q      u8 [out, in]
 * scale  f32 [out, groups]
 * zero   f32 [out, groups], whole numbers in [0, 2^bits - 1]
 * group  i32 [in], each column's group; NULL: runs of columns
 * name   of the linear, for messages
 *
 * Fails: VQ_EUNSUPPORTED (a scale that its type in the file does not hold exactly), VQ_EINTERNAL (a
 * zero off the grid, or not the middle when symmetric). Local. */
vq_status vq_packed_fill(vq_arena *scratch, vq_packed *packed, const uint8_t *q, const float *scale,
                         const float *zero, const int32_t *group, const char *name);

/* What can only be told from the parts' contents: the shape, each column's group.
 * Fails: VQ_EFILE. Local. */
vq_status vq_packed_check(const vq_packed *packed);

/* The weight again, weight->dtype [out, in]; part names are those in the file.
 * Fails: VQ_EFILE (a column's group outside the groups, another shape than the tensors'), VQ_EMEM.
 * Local. */
vq_status vq_packed_weight(vq_arena *scratch, const vq_packed *packed, vq_tensor *weight);
