/* bench_model - a model folder of random weights, for speed only:
 *   bench_model CONFIG_DIR TOKENIZER_DIR OUT [LAYERS]
 *
 * CONFIG_DIR has the config.json of a LLaMA model, which gives the shapes and the type of the
 * weights (LAYERS: fewer layers than it says); the tokenizer's files come from TOKENIZER_DIR. The
 * numbers are nearly normal with standard deviation 1 / sqrt(inputs), so that activations keep
 * their size from layer to layer. They are made once and repeated, at a distance that is no
 * multiple of a row. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "model.h"
#include "rng.h"
#include "safetensors.h"

enum { NUMBERS = 1048573, PATH_BYTES = 4096 }; /* a prime */

static const char *const tokenizer_files[] = {"tokenizer.json", "tokenizer_config.json",
                                              "tokenizer.model", "generation_config.json"};

typedef struct maker {
    vq_arena arena;
    vq_model_config config;
    vq_dtype dtype;
    vq_tensor *tensor; /* to write; data: none */
    int64_t n;
    float *numbers; /* [NUMBERS], of deviation 1 */
    void *piece;    /* the same, of one tensor's deviation and type */
} maker;

/* Another tensor [rows, columns], or [columns] where rows is 0. */
static vq_status add(maker *m, int64_t rows, int64_t columns, const char *name)
{
    char *copy;
    VQ_TRY(vq_arena_text(&m->arena, name, strlen(name), &copy));
    vq_tensor *t = &m->tensor[m->n++];
    *t = rows ? vq_tensor_2d(NULL, m->dtype, rows, columns) : vq_tensor_1d(NULL, m->dtype, columns);
    t->name = copy;
    return VQ_OK;
}

static vq_status list_tensors(maker *m)
{
    const vq_model_config *c = &m->config;
    char name[256 + 16];
    VQ_TRY(VQ_NEW(&m->arena, c->N * (VQ_N_KINDS + 2) + 3, &m->tensor));
    VQ_TRY(add(m, c->V, c->E, "model.embed_tokens.weight"));
    for (int64_t layer = 0; layer < c->N; layer++) {
        for (int kind = 0; kind < VQ_N_KINDS; kind++) {
            int64_t out, in;
            char linear[256];
            (void)vq_linear_shape(c, (vq_linear_kind)kind, &out, &in);
            snprintf(name, sizeof name, "%s.weight",
                     vq_linear_name(c, layer, (vq_linear_kind)kind, linear));
            VQ_TRY(add(m, out, in, name));
        }
        snprintf(name, sizeof name, "model.layers.%lld.input_layernorm.weight", (long long)layer);
        VQ_TRY(add(m, 0, c->E, name));
        snprintf(name, sizeof name, "model.layers.%lld.post_attention_layernorm.weight",
                 (long long)layer);
        VQ_TRY(add(m, 0, c->E, name));
    }
    VQ_TRY(add(m, 0, c->E, "model.norm.weight"));
    return c->tied ? VQ_OK : add(m, c->V, c->E, "lm_head.weight");
}

static vq_status write_tensor(maker *m, vq_safetensors_writer *w, int64_t i)
{
    const vq_tensor *t = &m->tensor[i];
    const float deviation = t->ndim == 2 ? 1 / sqrtf((float)t->dim[1]) : 0;
    float *scaled;
    const size_t mark = vq_arena_mark(&m->arena);
    VQ_TRY(VQ_NEW(&m->arena, NUMBERS, &scaled));
    for (int64_t j = 0; j < NUMBERS; j++)
        scaled[j] = t->ndim == 2 ? m->numbers[j] * deviation : 1; /* norms' weights are 1 */
    VQ_TRY(vq_convert(m->piece, m->dtype, scaled, VQ_F32, NUMBERS));
    const int64_t n = vq_tensor_count(t);
    for (int64_t done = 0; done < n; done += NUMBERS)
        VQ_TRY(vq_safetensors_put(w, i, m->piece,
                                  (size_t)VQ_MIN(NUMBERS, n - done) * vq_dtype_bytes(m->dtype)));
    vq_arena_reset(&m->arena, mark);
    return VQ_OK;
}

static vq_status write_weights(maker *m, const char *path)
{
    vq_safetensors_writer w;
    VQ_TRY(VQ_NEW(&m->arena, NUMBERS, &m->numbers));
    VQ_TRY(vq_arena_array(&m->arena, NUMBERS, vq_dtype_bytes(m->dtype), &m->piece));
    for (uint64_t j = 0; j < NUMBERS; j++) { /* the sum of 12 has deviation 1 */
        double sum = -6;
        for (uint64_t k = 0; k < 12; k++) sum += vq_rng_uniform(1, j, k);
        m->numbers[j] = (float)sum;
    }
    VQ_TRY(vq_safetensors_create(&m->arena, path, m->tensor, m->n, &w));
    for (int64_t i = 0; i < m->n; i++) VQ_TRY(write_tensor(m, &w, i));
    return vq_safetensors_finish(&w);
}

/* config.json, with another number of layers where one is given. */
static vq_status write_config(maker *m, const char *text, size_t size, int64_t layers,
                              const char *path)
{
    static const char key[] = "\"num_hidden_layers\":";
    const char *at = strstr(text, key);
    VQ_CHECK(layers == 0 || at, VQ_EFILE,
             "%s: no num_hidden_layers in config.json, expected one to replace by LAYERS. Leave "
             "LAYERS out",
             path);
    if (layers == 0) return vq_file_write(path, text, size);
    vq_writer w;
    const char *rest = at + sizeof key - 1 + strcspn(at + sizeof key - 1, ",}\n");
    m->config.N = layers;
    VQ_TRY(vq_writer_open(path, &w));
    VQ_TRY(vq_writer_put(&w, text, (size_t)(at - text)));
    VQ_TRY(vq_writer_printf(&w, "%s %lld", key, (long long)layers));
    VQ_TRY(vq_writer_put(&w, rest, size - (size_t)(rest - text)));
    return vq_writer_finish(&w);
}

static vq_status make(maker *m, const char *from, const char *tokenizer, const char *out,
                      int64_t layers)
{
    char path[PATH_BYTES], other[PATH_BYTES], *text;
    size_t size;
    snprintf(path, sizeof path, "%s/config.json", from);
    VQ_TRY(vq_file_read(&m->arena, path, &text, &size));
    VQ_TRY(vq_model_config_parse(text, size, path, &m->config));
    VQ_CHECK(m->config.family == VQ_LLAMA && !m->config.attention_bias && !m->config.mlp_bias,
             VQ_EUNSUPPORTED, "%s: a model of family %s, expected llama without biases", path,
             vq_family_name(m->config.family));
    m->dtype = vq_model_config_dtype(text, size);
    VQ_TRY(vq_make_folders(out));
    snprintf(path, sizeof path, "%s/config.json", out);
    VQ_TRY(write_config(m, text, size, layers, path));
    for (int i = 0; i < VQ_COUNT(tokenizer_files); i++) {
        snprintf(path, sizeof path, "%s/%s", tokenizer, tokenizer_files[i]);
        snprintf(other, sizeof other, "%s/%s", out, tokenizer_files[i]);
        FILE *f = fopen(path, "rb");
        if (!f) continue;
        (void)fclose(f);
        VQ_TRY(vq_file_copy(path, other));
    }
    VQ_TRY(list_tensors(m));
    snprintf(path, sizeof path, "%s/model.safetensors", out);
    return write_weights(m, path);
}

int main(int argc, char **argv)
{
    maker m = {.n = 0};
    if (argc < 4 || argc > 5) {
        fprintf(stderr, "usage: bench_model CONFIG_DIR TOKENIZER_DIR OUT [LAYERS]\n");
        return VQ_EUSAGE;
    }
    vq_status status = vq_arena_init(&m.arena, "bench", (size_t)1 << 30);
    if (status == VQ_OK)
        status = make(&m, argv[1], argv[2], argv[3], argc > 4 ? atoll(argv[4]) : 0);
    if (status != VQ_OK) fprintf(stderr, "bench_model: %s\n", vq_error_message());
    vq_arena_close(&m.arena);
    return (int)status;
}
