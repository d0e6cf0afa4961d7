/* tokenizer_files - which files a folder has, and what each kind of tokenizer adds to them. */
#include "tokenizer_files.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "fileio.h"
#include "spm_bridge.h"

/* Qwen's splitting rule: like GPT-2's, but letters take one character before them along, digits
 * stand alone, and a run of punctuation takes the newlines behind it along. */
static const char qwen_pattern[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{"
                                   "N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
                                   "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/* Reads a file as JSON with jansson's flags. The caller gives *out back with json_decref. */
static vq_status load_json(const char *path, size_t flags, json_t **out)
{
    vq_map map;
    json_error_t error;
    *out = NULL;
    VQ_TRY(vq_file_map(path, &map));
    json_t *root = map.bytes ? json_loadb((const char *)map.data, map.bytes, flags, &error) : NULL;
    if (!map.bytes) error = (json_error_t){.text = "the file is empty"};
    vq_file_unmap(&map);
    VQ_CHECK(root, VQ_EFILE, "%s:%d: %s, expected JSON. Get the file again", path, error.line,
             error.text);
    *out = root;
    return VQ_OK;
}

/* tokenizer_config.json and special_tokens_map.json */

static const char *const special_names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                            "pad_token", "cls_token", "mask_token"};

/* What they are where no file says: nothing beside a tokenizer.json, otherwise by class. */
static const char *const no_names[VQ_COUNT(special_names)] = {0};
static const char *const gpt2_names[VQ_COUNT(special_names)] = {"<|endoftext|>", "<|endoftext|>",
                                                                "<|endoftext|>"};
static const char *const qwen_names[VQ_COUNT(special_names)] = {
    [1] = "<|endoftext|>", [2] = "<|endoftext|>", [4] = "<|endoftext|>"};

typedef struct settings {
    json_t *config; /* tokenizer_config.json, NULL where there is none */
    json_t *map;    /* special_tokens_map.json, which stands above it */
    json_t *added;  /* added_tokens.json: {"text": id} */
    const char *config_path;
} settings;

static const json_t *setting(const settings *s, const char *name)
{
    const json_t *value = json_object_get(s->map, name);
    return value ? value : json_object_get(s->config, name);
}

/* The text of a special token: fallback where no file says, NULL where one says null. */
static const char *special_text(const settings *s, const char *name, const char *fallback)
{
    const json_t *value = setting(s, name);
    if (!value) return fallback;
    return json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
}

typedef struct numbered {
    const char *key;
    const json_t *value;
    double id;
} numbered;

static int by_id(const void *a, const void *b)
{
    double x = ((const numbered *)a)->id, y = ((const numbered *)b)->id;
    return (x > y) - (x < y);
}

/* Adds the tokens of an object by rising id: {"5": {"content": ...}} or {"text": 5}. */
static vq_status add_numbered(const vq_reader *r, const char *key, json_t *object, bool id_first)
{
    numbered *list;
    const char *name;
    json_t *value;
    int64_t n = 0;
    VQ_TRY(VQ_NEW(r->arena, (int64_t)json_object_size(object), &list));
    json_object_foreach(object, name, value) list[n++] =
        (numbered){name, value, id_first ? atof(name) : json_number_value(value)};
    qsort(list, (size_t)n, sizeof *list, by_id);
    for (int64_t i = 0; i < n; i++)
        VQ_TRY(id_first ? vq_reader_add_json(r, key, list[i].value)
                        : vq_reader_add(r, (vq_added_token){.content = list[i].key,
                                                            .n_bytes = strlen(list[i].key),
                                                            .normalized = true}));
    return VQ_OK;
}

/* Adds what the settings name beside the tokenizer's own. fallback[i] is the text of
 * special_names[i] where they do not name it, or NULL. */
static vq_status add_special_tokens(const vq_reader *r, const settings *s,
                                    const char *const *fallback)
{
    static const char *const lists[] = {"extra_special_tokens", "additional_special_tokens"};
    json_t *decoder = json_object_get(s->config, "added_tokens_decoder");
    if (decoder)
        VQ_TRY(add_numbered(r, "added_tokens_decoder", decoder, true));
    else
        VQ_TRY(add_numbered(r, "added_tokens.json", s->added, false));
    for (int i = 0; i < VQ_COUNT(special_names); i++) {
        const json_t *value = setting(s, special_names[i]);
        const char *name = special_text(s, special_names[i], fallback[i]);
        /* A name for a token that is there says nothing new about it. */
        if (!name || vq_added_id(r->t, name) >= 0) continue;
        VQ_TRY(value
                   ? vq_reader_add_json(r, special_names[i], value)
                   : vq_reader_add(r, (vq_added_token){.content = name, .n_bytes = strlen(name)}));
    }
    for (int i = 0; i < VQ_COUNT(lists); i++) {
        const json_t *list = setting(s, lists[i]);
        for (size_t k = 0; k < json_array_size(list); k++)
            VQ_TRY(vq_reader_add_json(r, lists[i], json_array_get(list, k)));
    }
    return VQ_OK;
}

/* The id of a special token, -1 where there is none. */
static int32_t special_id(const vq_tokenizer *t, const settings *s, const char *name,
                          const char *fallback)
{
    const char *text = special_text(s, name, fallback);
    return text ? vq_added_id(t, text) : -1;
}

/* bos and eos around the text where the settings ask for it and name them. */
static vq_status add_bos_eos(const vq_reader *r, const settings *s, const char *const *fallback,
                             bool add_bos)
{
    bool add_eos;
    vq_tokenizer *t = r->t;
    VQ_TRY(vq_reader_bool(r, s->config, "add_bos_token", add_bos, &add_bos));
    VQ_TRY(vq_reader_bool(r, s->config, "add_eos_token", false, &add_eos));
    VQ_TRY(VQ_NEW(r->arena, 1, &t->prefix));
    VQ_TRY(VQ_NEW(r->arena, 1, &t->suffix));
    t->prefix[0] = special_id(t, s, "bos_token", fallback[0]);
    t->suffix[0] = special_id(t, s, "eos_token", fallback[1]);
    t->n_prefix = add_bos && t->prefix[0] >= 0;
    t->n_suffix = add_eos && t->suffix[0] >= 0;
    return VQ_OK;
}

vq_status vq_tokenizer_read_json(vq_arena *arena, const char *where, const char *json,
                                 size_t n_bytes, vq_tokenizer *t)
{
    json_error_t error;
    json_t *root = json_loadb(json, n_bytes, 0, &error);
    VQ_CHECK(root, VQ_EFILE, "%s:%d: %s, expected JSON. Get the file again", where, error.line,
             error.text);
    const vq_reader r = {arena, where, t};
    vq_status status = vq_reader_json(&r, root);
    json_decref(root);
    return status == VQ_OK ? vq_reader_finish(&r) : status;
}

static vq_status from_json(vq_arena *arena, const char *path, const settings *s, vq_tokenizer *t)
{
    json_t *root;
    const vq_reader r = {arena, path, t};
    VQ_TRY(load_json(path, 0, &root));
    vq_status status = vq_reader_json(&r, root);
    json_decref(root);
    VQ_TRY(status);
    const vq_reader config = {arena, s->config_path, t};
    VQ_TRY(add_special_tokens(&config, s, no_names));
    return vq_reader_finish(&r);
}

/* merges.txt: a merge a line, in the order of their ranks, below a line "#version...". */
static vq_status read_merges_text(const vq_reader *r, const char *text, size_t n_bytes)
{
    vq_buffer joined = {0};
    const char *end = text + n_bytes;
    for (int32_t rank = 0; text < end;) {
        const char *line = text, *newline = memchr(line, '\n', (size_t)(end - line));
        size_t n = (size_t)((newline ? newline : end) - line);
        text = line + n + 1;
        if (n > 0 && line[n - 1] == '\r') n--;
        if (n == 0 || (n >= 8 && memcmp(line, "#version", 8) == 0)) continue;
        VQ_TRY(vq_reader_merge(r, &joined, rank++, line, n));
    }
    return VQ_OK;
}

/* The class that the folder names, without "Fast"; by the model where it names none. */
static vq_status find_class(vq_arena *arena, const char *dir, const settings *s, char name[64])
{
    const char *class = json_string_value(setting(s, "tokenizer_class"));
    char *path;
    json_t *config;
    if (class) {
        snprintf(name, 64, "%s", class);
        size_t n = strlen(name);
        if (n > 4 && strcmp(name + n - 4, "Fast") == 0) name[n - 4] = '\0';
        return VQ_OK;
    }
    VQ_TRY(vq_path_join(arena, dir, "config.json", &path));
    snprintf(name, 64, "GPT2Tokenizer");
    if (!vq_file_exists(path)) return VQ_OK;
    VQ_TRY(load_json(path, 0, &config));
    const char *type = json_string_value(json_object_get(config, "model_type"));
    if (type && strncmp(type, "qwen", 4) == 0) snprintf(name, 64, "Qwen2Tokenizer");
    json_decref(config);
    return VQ_OK;
}

/* GPT-2's and Qwen's tokenizers are all rules but for vocabulary and merges. */
static vq_status read_vocab_merges(const vq_reader *r, json_t *vocab, const char *merges_path,
                                   const char *dir, const settings *s)
{
    char class[64], *text;
    size_t n_bytes;
    bool add_space;
    vq_pretokenizer *pre = &r->t->pre;
    VQ_TRY(find_class(r->arena, dir, s, class));
    bool is_qwen = strcmp(class, "Qwen2Tokenizer") == 0;
    const char *const *names = is_qwen ? qwen_names : gpt2_names;
    VQ_CHECK(is_qwen || strcmp(class, "GPT2Tokenizer") == 0, VQ_EUNSUPPORTED,
             "%s: tokenizer_class = %s with vocab.json and merges.txt, expected GPT2Tokenizer or "
             "Qwen2Tokenizer. Save the tokenizer as tokenizer.json",
             s->config_path, class);
    VQ_TRY(vq_file_read(r->arena, merges_path, &text, &n_bytes));
    VQ_TRY(vq_reader_vocab(r, vocab, n_bytes / 4));
    const vq_reader merges = {r->arena, merges_path, r->t};
    VQ_TRY(read_merges_text(&merges, text, n_bytes));
    const vq_reader config = {r->arena, s->config_path, r->t};
    VQ_TRY(vq_reader_bool(&config, s->config, "add_prefix_space", false, &add_space));
    VQ_TRY(vq_pretokenizer_init(pre));
    if (is_qwen) {
        VQ_TRY(vq_reader_normal(r, (vq_normal_step){.kind = VQ_NORMAL_NFC}));
        VQ_TRY(vq_pretokenizer_split(pre, r->arena, r->where, qwen_pattern, true, true));
    }
    if (add_space) VQ_TRY(vq_pretokenizer_mark(pre, r->where, " ", VQ_PREPEND_ALWAYS, false));
    if (!is_qwen)
        VQ_TRY(vq_pretokenizer_split(pre, r->arena, r->where, vq_gpt2_pattern, true, true));
    r->t->byte_level = true;
    VQ_TRY(add_special_tokens(&config, s, names));
    VQ_TRY(add_bos_eos(&config, s, names, false));
    r->t->kind = "byte-level BPE of vocab.json and merges.txt";
    return vq_reader_finish(r);
}

static vq_status from_vocab(vq_arena *arena, const char *dir, const char *vocab_path,
                            const settings *s, vq_tokenizer *t)
{
    char *merges_path;
    json_t *vocab;
    const vq_reader r = {arena, vocab_path, t};
    VQ_TRY(vq_path_join(arena, dir, "merges.txt", &merges_path));
    VQ_TRY(load_json(vocab_path, 0, &vocab));
    vq_status status = read_vocab_merges(&r, vocab, merges_path, dir, s);
    json_decref(vocab);
    return status;
}

#ifdef VQ_SENTENCEPIECE
static const char *const llama_names[VQ_COUNT(special_names)] = {"<s>", "</s>", "<unk>"};

/* The pieces as tokens, those that no text becomes by itself as added ones. */
static vq_status read_pieces(const vq_reader *r)
{
    vq_tokenizer *t = r->t;
    int size = vq_spm_size(t->spm), is_control;
    size_t n;
    VQ_TRY(vq_bpe_init(&t->bpe, r->arena, size, 0));
    for (int id = 0; id < size; id++) {
        const char *piece = vq_spm_piece(t->spm, id, &n, &is_control);
        vq_bpe_put(&t->bpe, piece, n, id);
        if (is_control || id == vq_spm_unknown(t->spm))
            VQ_TRY(vq_reader_add(r, (vq_added_token){.content = piece, .n_bytes = n}));
    }
    t->vocab_size = size;
    t->bpe.unk_id = vq_spm_unknown(t->spm);
    return VQ_OK;
}

/* LLaMA's rules: a mark in the place of each space. The legacy ones put another before each text
 * between special tokens; the later ones only before the first, unless it starts with one. */
static vq_status read_spm(const vq_reader *r, const settings *s)
{
    bool legacy, add_space;
    vq_tokenizer *t = r->t;
    const vq_reader config = {r->arena, s->config_path, t};
    VQ_TRY(vq_pretokenizer_init(&t->pre));
    VQ_TRY(read_pieces(r));
    VQ_TRY(vq_reader_bool(&config, s->config, "legacy", true, &legacy));
    VQ_TRY(vq_reader_bool(&config, s->config, "add_prefix_space", true, &add_space));
    if (legacy && add_space)
        VQ_TRY(
            vq_reader_normal(r, (vq_normal_step){.kind = VQ_NORMAL_PREPEND, .to = VQ_SPACE_MARK}));
    VQ_TRY(vq_pretokenizer_mark(&t->pre, r->where, VQ_SPACE_MARK,
                                legacy || !add_space ? VQ_PREPEND_NEVER : VQ_PREPEND_FIRST, true));
    VQ_TRY(add_special_tokens(&config, s, llama_names));
    VQ_TRY(add_bos_eos(&config, s, llama_names, true));
    r->t->kind = "sentencepiece of tokenizer.model";
    return vq_reader_finish(r);
}

static vq_status from_spm(vq_arena *arena, const char *path, const settings *s, vq_tokenizer *t)
{
    vq_map map;
    char reason[256] = "";
    const char *class = json_string_value(setting(s, "tokenizer_class"));
    const vq_reader r = {arena, path, t};
    VQ_CHECK(!class || strncmp(class, "LlamaTokenizer", 14) == 0, VQ_EUNSUPPORTED,
             "%s: tokenizer_class = %s with a tokenizer.model, expected LlamaTokenizer. Save the "
             "tokenizer as tokenizer.json",
             s->config_path, class);
    VQ_TRY(vq_file_map(path, &map));
    int failed = vq_spm_open(map.data, map.bytes, &t->spm, reason, sizeof reason);
    vq_file_unmap(&map);
    VQ_CHECK(!failed, VQ_EFILE,
             "%s: libsentencepiece cannot read it (%s), expected a sentencepiece model. Get the "
             "file again",
             path, reason);
    return read_spm(&r, s);
}
#else
static vq_status from_spm(vq_arena *arena, const char *path, const settings *s, vq_tokenizer *t)
{
    (void)arena, (void)s, (void)t;
    VQ_FAIL(VQ_EUNSUPPORTED,
            "%s: this build has no libsentencepiece, expected a tokenizer.json beside it. Install "
            "libsentencepiece-dev and build again, or save the tokenizer as tokenizer.json",
            path);
}
#endif

static vq_status from_folder(vq_arena *arena, const char *dir, const settings *s, vq_tokenizer *t)
{
    static const struct {
        const char *name;
        int kind;
    } files[] = {{"tokenizer.json", 0}, {"vocab.json", 1}, {"tokenizer.model", 2}};
    for (int i = 0; i < VQ_COUNT(files); i++) {
        char *path;
        VQ_TRY(vq_path_join(arena, dir, files[i].name, &path));
        if (!vq_file_exists(path)) continue;
        if (files[i].kind == 0) return from_json(arena, path, s, t);
        if (files[i].kind == 1) return from_vocab(arena, dir, path, s, t);
        return from_spm(arena, path, s, t);
    }
    VQ_FAIL(VQ_EFILE,
            "%s: no tokenizer there, expected tokenizer.json, vocab.json with merges.txt, or "
            "tokenizer.model. Copy the tokenizer's files into the model's folder",
            dir);
}

vq_status vq_tokenizer_hash(uint64_t h, vq_arena *scratch, const char *dir, uint64_t *out)
{
    static const char *const names[] = {
        "tokenizer.json",  "tokenizer_config.json",   "vocab.json",       "merges.txt",
        "tokenizer.model", "special_tokens_map.json", "added_tokens.json"};
    const size_t mark = vq_arena_mark(scratch);
    for (int i = 0; i < VQ_COUNT(names); i++) {
        char *path;
        vq_map map;
        VQ_TRY(vq_path_join(scratch, dir, names[i], &path));
        if (!vq_file_exists(path)) continue;
        VQ_TRY(vq_file_map(path, &map));
        h = vq_hash_bytes(vq_hash_text(h, names[i]), map.data, map.bytes);
        vq_file_unmap(&map);
    }
    vq_arena_reset(scratch, mark);
    *out = h;
    return VQ_OK;
}

static vq_status load_optional(vq_arena *arena, const char *dir, const char *name, json_t **out,
                               const char **path_out)
{
    char *path;
    VQ_TRY(vq_path_join(arena, dir, name, &path));
    if (path_out) *path_out = path;
    /* model_max_length may be 10^30, which is no integer of any size. */
    return vq_file_exists(path) ? load_json(path, JSON_DECODE_INT_AS_REAL, out) : VQ_OK;
}

static vq_status load_settings(vq_arena *arena, const char *dir, settings *s)
{
    VQ_TRY(load_optional(arena, dir, "tokenizer_config.json", &s->config, &s->config_path));
    /* Where the first names all added tokens itself, the older files are not looked at. */
    if (json_object_get(s->config, "added_tokens_decoder")) return VQ_OK;
    VQ_TRY(load_optional(arena, dir, "special_tokens_map.json", &s->map, NULL));
    return load_optional(arena, dir, "added_tokens.json", &s->added, NULL);
}

vq_status vq_tokenizer_read_folder(vq_arena *arena, const char *dir, vq_tokenizer *t)
{
    settings s = {0};
    vq_status status = load_settings(arena, dir, &s);
    if (status == VQ_OK) status = from_folder(arena, dir, &s, t);
    json_decref(s.config);
    json_decref(s.map);
    json_decref(s.added);
    return status;
}

void vq_tokenizer_release(vq_tokenizer *t)
{
    vq_pretokenizer_close(&t->pre);
#ifdef VQ_SENTENCEPIECE
    if (t->spm) vq_spm_close(t->spm);
    t->spm = NULL;
#endif
}
