/* fuzz_pickle - any bytes as a pytorch_model.bin, or as the pickle inside one; the first and last
 * element of every tensor that is accepted are read. */
#include "stored_zip.h"
#include "torchbin.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(const uint8_t *data, size_t size)
{
    vq_arena arena;
    vq_torchbin t;
    volatile uint64_t sum = 0;
    if (vq_arena_init(&arena, "fuzz", (size_t)1 << 28) != VQ_OK) return;
    if (vq_torchbin_parse(&arena, "fuzz", data, size, &t) == VQ_OK) {
        for (int64_t i = 0; i < t.n; i++) {
            const vq_tensor *x = &t.tensor[i];
            const uint8_t *last = x->data;
            if (vq_tensor_count(x) == 0) continue;
            for (int d = 0; d < x->ndim; d++)
                last += (size_t)((x->dim[d] - 1) * x->stride[d]) * vq_dtype_bytes(x->dtype);
            sum = vq_hash_bytes(sum, x->data, vq_dtype_bytes(x->dtype));
            sum = vq_hash_bytes(sum, last, vq_dtype_bytes(x->dtype));
        }
    }
    vq_arena_close(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static stored_zip z;
    read_all(data, size);
    if (size > sizeof z.data / 2) return 0;
    z.size = z.directory_size = 0;
    z.entries = 0;
    zip_add(&z, "a/data.pkl", data, size, 0);
    zip_add(&z, "a/data/0", "0123456789abcdef", 16, 0);
    zip_end(&z);
    read_all(z.data, z.size);
    return 0;
}
