/* fuzz_config - any bytes as a YAML file of keys, and as a command line of words. */
#include <string.h>

#include "config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define WORDS_MAX 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    vq_arena arena;
    vq_config config;
    char *text;
    const char *word[WORDS_MAX];
    int n = 0;
    if (vq_arena_init(&arena, "fuzz", (size_t)1 << 30) != VQ_OK) return 0;
    if (vq_config_defaults(&arena, &config) == VQ_OK)
        (void)vq_config_parse_yaml(&arena, "fuzz.yaml", (const char *)data, size, &config);
    if (vq_arena_text(&arena, (const char *)data, size, &text) == VQ_OK &&
        vq_config_defaults(&arena, &config) == VQ_OK) {
        for (char *p = strtok(text, " \n"); p && n < WORDS_MAX; p = strtok(NULL, " \n"))
            word[n++] = p;
        if (vq_config_parse_args(&arena, VQ_QUANTIZE, n, word, &config) == VQ_OK)
            (void)vq_config_check(&config, VQ_QUANTIZE);
    }
    vq_arena_close(&arena);
    return 0;
}
