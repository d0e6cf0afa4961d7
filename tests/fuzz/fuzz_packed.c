/* fuzz_packed - a quantization_config, and any bytes as the tensors that it asks for: what is
 * accepted is unpacked. */
#include <jansson.h>
#include <string.h>

#include "error.h"
#include "packed.h"

#define OUT 32
#define IN 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Tensors filled with the bytes, over and over. */
static vq_status unpack(vq_arena *arena, const vq_packing *packing, const uint8_t *data,
                        size_t size)
{
    vq_packed packed;
    vq_tensor weight;
    vq_packed_describe(packing, OUT, IN, VQ_BF16, &packed);
    for (int k = 0; k < VQ_N_PARTS; k++) {
        vq_tensor *t = &packed.part[k];
        if (t->ndim == 0) continue;
        VQ_TRY(vq_arena_alloc(arena, vq_tensor_bytes(t), &t->data));
        for (size_t i = 0; i < vq_tensor_bytes(t); i++)
            ((uint8_t *)t->data)[i] = size > 0 ? data[i % size] : 0;
    }
    const int64_t shape[] = {OUT, IN};
    if (packed.part[VQ_SHAPE].data && size % 2 == 0)
        memcpy(packed.part[VQ_SHAPE].data, shape, sizeof shape);
    VQ_TRY(vq_tensor_new(arena, VQ_HOST, VQ_BF16, VQ_DIMS(OUT, IN), &weight));
    return vq_packed_weight(arena, &packed, &weight);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    vq_arena arena;
    vq_packing packing;
    json_error_t e;
    if (vq_arena_init(&arena, "fuzz", (size_t)1 << 28) != VQ_OK) return 0;
    json_t *root = json_loadb((const char *)data, size, JSON_DISABLE_EOF_CHECK, &e);
    if (root && vq_packing_parse(root, "fuzz", &packing) == VQ_OK) {
        const size_t used = (size_t)e.position; /* where the object ended */
        (void)unpack(&arena, &packing, data + used, size - used);
    }
    json_decref(root);
    vq_arena_close(&arena);
    return 0;
}
