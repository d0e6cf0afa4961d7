/* fuzz_safetensors - any bytes as a .safetensors file; every byte of what is accepted is read. */
#include "safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    vq_arena arena;
    vq_safetensors s;
    volatile uint64_t sum = 0;
    if (vq_arena_init(&arena, "fuzz", (size_t)1 << 28) != VQ_OK) return 0;
    if (vq_safetensors_parse(&arena, "fuzz", data, size, &s) == VQ_OK)
        for (int64_t i = 0; i < s.n; i++)
            sum = vq_hash_bytes(sum, s.tensor[i].data, vq_tensor_bytes(&s.tensor[i]));
    vq_arena_close(&arena);
    return 0;
}
