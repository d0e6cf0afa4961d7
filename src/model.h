/* model.h - a Hugging Face model folder as sizes and named tensors: LLaMA, OPT, Qwen3; dense, or
 * with packed linears.
 *
 * Opening a model maps its files and reads none of the weights: a rank touches only the layers that
 * it runs. The tensors are views in the files' own types ([out, in] for a linear). */
#pragma once
#include "packed.h"
#include "weights.h"

typedef enum vq_family { VQ_LLAMA, VQ_OPT, VQ_QWEN3 } vq_family;

#define VQ_OPT_POSITION_OFFSET 2 /* rows of OPT's position table before that of token 0 */

/* The linears of a decoder layer, in the order of their codebooks in the pool. */
typedef enum vq_linear_kind {
    VQ_Q,
    VQ_K,
    VQ_V,
    VQ_O,
    VQ_GATE, /* not in OPT */
    VQ_UP,   /* OPT: fc1 */
    VQ_DOWN, /* OPT: fc2 */
    VQ_N_KINDS
} vq_linear_kind;

typedef struct vq_model_config {
    vq_family family;
    int64_t N;                     /* decoder layers */
    int64_t E;                     /* width */
    int64_t E_embed;               /* of the embedding and lm_head; E but for OPT-350M */
    int64_t F;                     /* feed-forward width */
    int64_t H, G, S;               /* heads, key/value heads, head width */
    int64_t V;                     /* vocabulary */
    int64_t max_positions;         /* 0: any */
    bool tied;                     /* lm_head is the embedding */
    bool attention_bias, mlp_bias; /* their linears have one */
    bool norm_before;              /* OPT's do_layer_norm_before; true elsewhere */
    bool final_norm;               /* false for OPT with the norm after (350M) */
    bool qk_norm;                  /* Qwen3: RMS norm of each head's q and k */
    double norm_eps;
    double rope_theta; /* 0: learned positions (OPT) */
    struct {           /* "llama3" rope scaling; factor 0: none */
        double factor, low_freq_factor, high_freq_factor, original_max_positions;
    } rope_scaling;
    vq_packing packing; /* of the linears that are packed; all zero: the model is dense */
} vq_model_config;

typedef struct vq_linear {
    const char *name; /* as in the checkpoint without ".weight": "model.layers.0.mlp.up_proj" */
    vq_tensor weight; /* [out, in]; no data: packed */
    vq_tensor bias;   /* [out]; no data: none */
    bool exists;      /* the family has this kind */
    const vq_packed *packed; /* NULL: the weight is in the files as it is */
} vq_linear;

typedef struct vq_layer {
    vq_linear linear[VQ_N_KINDS];
    vq_tensor norm1_weight, norm1_bias; /* [E]; before (or OPT-350M: after) attention */
    vq_tensor norm2_weight, norm2_bias; /* [E]; of the feed-forward part */
    vq_tensor q_norm, k_norm;           /* [S], Qwen3 */
} vq_layer;

typedef struct vq_model {
    const char *dir;
    vq_model_config config;
    vq_weights weights;
    uint64_t fingerprint;  /* of the config and the files' contents, for phase keys */
    vq_layer *layers;      /* [N] */
    vq_tensor embed;       /* [V, E_embed] */
    vq_tensor positions;   /* OPT: [max_positions + 2, E] */
    vq_tensor project_in;  /* OPT-350M: [E, E_embed]; no data: none */
    vq_tensor project_out; /* OPT-350M: [E_embed, E] */
    vq_tensor final_norm_weight, final_norm_bias; /* [E] */
    vq_tensor head;                               /* [V, E_embed]; the embedding when tied */
} vq_model;

/* Reads config.json of folder dir into arena: its path, its text and the text's bytes.
 * Fails: VQ_EFILE (it is not there, and what dir is instead), VQ_EMEM. Local. */
vq_status vq_model_config_read(vq_arena *arena, const char *dir, char **path, char **text,
                               size_t *n);

/* Reads config.json and maps the weights of folder dir. Everything is in arena.
 * Fails: VQ_EFILE (missing or malformed file, missing tensor, wrong shape), VQ_EUNSUPPORTED (an
 * architecture or option that we do not compute, with its key and what is supported). Local. */
vq_status vq_model_open(vq_arena *arena, const char *dir, vq_model *model);
void vq_model_close(vq_model *model);

/* Whether the packed linears of layers [first, last) can be unpacked. Fails: VQ_EFILE. Local. */
vq_status vq_model_check_packed(const vq_model *model, int64_t first, int64_t last);

/* The weights of layers [first, last) that are packed, in arena, in the type of the embedding.
 * Fails: VQ_EFILE (a packed tensor whose contents are wrong), VQ_EMEM. Local. */
vq_status vq_model_unpack(vq_arena *arena, vq_arena *scratch, const vq_model *model, int64_t first,
                          int64_t last);

/* What quantizes or learns from a model needs its weights as they were.
 * Fails: VQ_EUNSUPPORTED (a packed model; where names its config.json). Pure. */
vq_status vq_model_require_dense(const vq_model_config *config, const char *where);

/* Parses config.json alone (n bytes; where names it in messages). */
vq_status vq_model_config_parse(const char *text, size_t n, const char *where,
                                vq_model_config *config);

const char *vq_family_name(vq_family family);

/* The type of the weights that config.json (n bytes, parsed before) names; f32 where it does not.
 */
vq_dtype vq_model_config_dtype(const char *text, size_t n);

/* "model.layers.0.mlp.up_proj": the name of a linear that the family has, into text. Returns text.
 */
const char *vq_linear_name(const vq_model_config *config, int64_t layer, vq_linear_kind kind,
                           char text[256]);

/* Shape of a kind of linear in this model: out and in; false if the family has none. */
bool vq_linear_shape(const vq_model_config *config, vq_linear_kind kind, int64_t *out, int64_t *in);

/* Weights in one decoder layer's linears, and in the whole model (tied tensors once). */
int64_t vq_layer_weights(const vq_model_config *config);
int64_t vq_model_weights(const vq_model_config *config);

/* Inverse frequencies of the rotary embedding, out [S / 2] (f64), with the scaling applied:
 * theta^(-2i/S); llama3 divides the slow ones by factor and blends between the two bounds. */
void vq_rope_frequencies(const vq_model_config *config, double *out);
