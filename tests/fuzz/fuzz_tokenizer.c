/* fuzz_tokenizer - any bytes as a tokenizer.json; what can be read then encodes a short text. */
#include "tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] =
        "Hello, world's  12 \n\n e\xcc\x81 \xe2\x96\x81x \xf0\x9f\x98\x80 \xff<s>the end</s> ";
    vq_arena arena = {0}, scratch = {0};
    vq_tokenizer *t = NULL;
    int32_t *ids;
    int64_t count;
    if (vq_arena_init(&arena, "fuzz", (size_t)1 << 30) == VQ_OK &&
        vq_arena_init(&scratch, "fuzz scratch", (size_t)1 << 30) == VQ_OK &&
        vq_tokenizer_parse(&arena, "fuzz", (const char *)data, size, &t) == VQ_OK)
        (void)vq_tokenizer_encode(t, &arena, &scratch, text, sizeof text - 1, &ids, &count);
    vq_tokenizer_close(t);
    vq_arena_close(&arena);
    vq_arena_close(&scratch);
    return 0;
}
