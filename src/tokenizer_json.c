/* tokenizer_json - the parts of tokenizer.json, one function each, and what follows from them. */
#include "tokenizer_json.h"

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "utf8.h"

static vq_status malformed(const vq_reader *r, const char *key, const char *expected)
{
    VQ_FAIL(VQ_EFILE, "%s: %s is missing or malformed, expected %s. Get the file again", r->where,
            key, expected);
}

static vq_status unsupported(const vq_reader *r, const char *key, const json_t *value,
                             const char *supported)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    vq_status status =
        vq_error_set(VQ_EUNSUPPORTED, __FILE__, __LINE__,
                     "%s: %s = %.80s is not supported, expected %s. Use a model whose tokenizer "
                     "has one of these",
                     r->where, key, text ? text : "?", supported);
    free(text);
    return status;
}

/* A field that may be left out or null; then *out is fallback. */
vq_status vq_reader_bool(const vq_reader *r, const json_t *object, const char *name, bool fallback,
                         bool *out)
{
    const json_t *value = json_object_get(object, name);
    *out = value && !json_is_null(value) ? json_is_true(value) : fallback;
    return value && !json_is_null(value) && !json_is_boolean(value)
               ? malformed(r, name, "true or false")
               : VQ_OK;
}

/* The same for text, NULL where there is none. It is json's own. */
static vq_status get_text(const vq_reader *r, const json_t *object, const char *name,
                          const char **out)
{
    const json_t *value = json_object_get(object, name);
    *out = json_string_value(value);
    return value && !json_is_null(value) && !*out ? malformed(r, name, "a string") : VQ_OK;
}

static const char *type_of(const json_t *object)
{
    const char *type = json_string_value(json_object_get(object, "type"));
    return type ? type : "";
}

static vq_status copy_text(const vq_reader *r, const char *text, const char **out)
{
    char *copy;
    VQ_TRY(vq_arena_text(r->arena, text, strlen(text), &copy));
    *out = copy;
    return VQ_OK;
}

/* Added tokens */

/* Adds a token, or gives one of the same content new properties, its id unchanged. New contents
 * that are not in the vocabulary get the ids behind it. */
vq_status vq_reader_add(const vq_reader *r, vq_added_token token)
{
    vq_added_set *set = &r->t->added;
    int32_t next = (int32_t)r->t->vocab_size;
    if (token.n_bytes == 0) return VQ_OK;
    for (int64_t i = 0; i < set->n; i++) {
        vq_added_token *known = &set->tokens[i];
        next = VQ_MAX(next, known->id + 1);
        if (known->n_bytes != token.n_bytes ||
            memcmp(known->content, token.content, token.n_bytes) != 0)
            continue;
        token.id = known->id;
        token.content = known->content;
        *known = token;
        return VQ_OK;
    }
    if (set->n == set->capacity) {
        vq_added_token *old = set->tokens;
        set->capacity = VQ_MAX(2 * set->capacity, 64);
        VQ_TRY(VQ_NEW(r->arena, set->capacity, &set->tokens));
        if (set->n) memcpy(set->tokens, old, (size_t)set->n * sizeof *old);
    }
    char *copy;
    VQ_TRY(vq_arena_text(r->arena, token.content, token.n_bytes, &copy));
    int32_t id = vq_bpe_find(&r->t->bpe, copy, token.n_bytes);
    token.content = copy;
    token.id = id >= 0 ? id : next;
    set->tokens[set->n++] = token;
    return VQ_OK;
}

int32_t vq_added_id(const vq_tokenizer *t, const char *content)
{
    for (int64_t i = 0; i < t->added.n; i++)
        if (strcmp(t->added.tokens[i].content, content) == 0) return t->added.tokens[i].id;
    return -1;
}

/* A token as tokenizer.json's added_tokens and the other files' objects have it, or only its text,
 * as a special token. */
vq_status vq_reader_add_json(const vq_reader *r, const char *key, const json_t *value)
{
    vq_added_token token = {0};
    bool special;
    const json_t *content = json_is_string(value) ? value : json_object_get(value, "content");
    if (!json_is_string(content)) return malformed(r, key, "a token: its text or its properties");
    token.content = json_string_value(content);
    token.n_bytes = json_string_length(content);
    VQ_TRY(vq_reader_bool(r, value, "special", false, &special));
    VQ_TRY(vq_reader_bool(r, value, "single_word", false, &token.single_word));
    VQ_TRY(vq_reader_bool(r, value, "lstrip", false, &token.lstrip));
    VQ_TRY(vq_reader_bool(r, value, "rstrip", false, &token.rstrip));
    VQ_TRY(vq_reader_bool(r, value, "normalized", !special && !json_is_string(value),
                          &token.normalized));
    return vq_reader_add(r, token);
}

static vq_status read_added_tokens(const vq_reader *r, const json_t *list)
{
    if (list && !json_is_array(list)) return malformed(r, "added_tokens", "a list");
    for (size_t i = 0; i < json_array_size(list); i++)
        VQ_TRY(vq_reader_add_json(r, "added_tokens", json_array_get(list, i)));
    return VQ_OK;
}

/* The model */

/* Takes the tokens of a {"text": id} object. */
vq_status vq_reader_vocab(const vq_reader *r, json_t *vocab, size_t n_merges)
{
    const char *text;
    json_t *id;
    size_t n_bytes = 0;
    if (!json_is_object(vocab)) return malformed(r, "vocab", "an object of tokens and ids");
    json_object_foreach(vocab, text, id) n_bytes += strlen(text);
    VQ_TRY(vq_bpe_init(&r->t->bpe, r->arena, (int64_t)json_object_size(vocab), (int64_t)n_merges));
    char *copy;
    VQ_TRY(VQ_NEW(r->arena, (int64_t)n_bytes, &copy));
    json_object_foreach(vocab, text, id)
    {
        json_int_t value = json_integer_value(id);
        VQ_CHECK(json_is_integer(id) && value >= 0 && value < INT32_MAX / 2, VQ_EFILE,
                 "%s: the id of \"%.64s\" is no integer from 0 to 2^30, expected a token's place "
                 "in the embedding. Get the file again",
                 r->where, text);
        size_t n = strlen(text);
        memcpy(copy, text, n);
        vq_bpe_put(&r->t->bpe, copy, n, (int32_t)value);
        copy += n;
    }
    r->t->vocab_size = r->t->bpe.n_tokens;
    return VQ_OK;
}

/* left and right, joined, must be a token too. */
static vq_status read_merge(const vq_reader *r, vq_buffer *joined, int32_t rank, const char *left,
                            size_t n_left, const char *right, size_t n_right)
{
    vq_bpe *b = &r->t->bpe;
    size_t skip = VQ_MIN(strlen(b->prefix), n_right);
    joined->n_bytes = 0;
    VQ_TRY(vq_buffer_put(joined, r->arena, left, n_left));
    VQ_TRY(vq_buffer_put(joined, r->arena, right + skip, n_right - skip));
    int32_t left_id = vq_bpe_find(b, left, n_left), right_id = vq_bpe_find(b, right, n_right);
    int32_t id = vq_bpe_find(b, joined->data, joined->n_bytes);
    VQ_CHECK(left_id >= 0 && right_id >= 0 && id >= 0, VQ_EFILE,
             "%s: merge %d joins \"%.*s\" and \"%.*s\", and these or the result are not in the "
             "vocabulary, expected all three there. Get the tokenizer's files again",
             r->where, rank, (int)VQ_MIN(n_left, (size_t)64), left,
             (int)VQ_MIN(n_right, (size_t)64), right);
    vq_bpe_put_merge(b, left_id, right_id, rank, id);
    return VQ_OK;
}

/* "left right", with one space. */
vq_status vq_reader_merge(const vq_reader *r, vq_buffer *joined, int32_t rank, const char *line,
                          size_t n)
{
    const char *space = memchr(line, ' ', n);
    size_t n_left = space ? (size_t)(space - line) : 0;
    VQ_CHECK(n_left > 0 && n_left + 1 < n && !memchr(space + 1, ' ', n - n_left - 1), VQ_EFILE,
             "%s: merge %d is \"%.*s\", expected two tokens with a space between them. Get the "
             "file again",
             r->where, rank, (int)VQ_MIN(n, (size_t)64), line);
    return read_merge(r, joined, rank, line, n_left, space + 1, n - n_left - 1);
}

static vq_status read_merges(const vq_reader *r, const json_t *merges)
{
    vq_buffer joined = {0};
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const json_t *merge = json_array_get(merges, i), *left = json_array_get(merge, 0),
                     *right = json_array_get(merge, 1);
        if (json_is_string(merge))
            VQ_TRY(vq_reader_merge(r, &joined, (int32_t)i, json_string_value(merge),
                                   json_string_length(merge)));
        else if (json_array_size(merge) == 2 && json_is_string(left) && json_is_string(right))
            VQ_TRY(read_merge(r, &joined, (int32_t)i, json_string_value(left),
                              json_string_length(left), json_string_value(right),
                              json_string_length(right)));
        else
            return malformed(r, "model.merges",
                             "a list of \"left right\" or [\"left\", \"right\"]");
    }
    return VQ_OK;
}

static vq_status read_model(const vq_reader *r, const json_t *model)
{
    vq_bpe *b = &r->t->bpe;
    const json_t *merges = json_object_get(model, "merges"),
                 *dropout = json_object_get(model, "dropout"),
                 *type = json_object_get(model, "type");
    const char *prefix, *suffix, *unknown;
    if (!json_is_object(model)) return malformed(r, "model", "an object");
    if (type && strcmp(type_of(model), "BPE") != 0)
        return unsupported(r, "model.type", type, "\"BPE\"");
    if (!json_is_array(merges)) return malformed(r, "model.merges", "a list");
    if (json_is_number(dropout) && json_number_value(dropout) != 0)
        return unsupported(r, "model.dropout", dropout, "null");
    VQ_TRY(vq_reader_vocab(r, json_object_get(model, "vocab"), json_array_size(merges)));
    VQ_TRY(get_text(r, model, "continuing_subword_prefix", &prefix));
    VQ_TRY(get_text(r, model, "end_of_word_suffix", &suffix));
    VQ_TRY(get_text(r, model, "unk_token", &unknown));
    VQ_TRY(vq_reader_bool(r, model, "fuse_unk", false, &b->fuse_unk));
    VQ_TRY(vq_reader_bool(r, model, "byte_fallback", false, &b->byte_fallback));
    VQ_TRY(vq_reader_bool(r, model, "ignore_merges", false, &b->whole_first));
    if (prefix) VQ_TRY(copy_text(r, prefix, &b->prefix));
    if (suffix) VQ_TRY(copy_text(r, suffix, &b->suffix));
    if (unknown) b->unk_id = vq_bpe_find(b, unknown, strlen(unknown));
    vq_bpe_set_fallback(b);
    return read_merges(r, merges);
}

/* A model that names a token for unknown characters has it, or knows every byte. */
static vq_status check_unknown(const vq_reader *r, const json_t *unknown)
{
    const vq_bpe *b = &r->t->bpe;
    bool complete = r->t->byte_level || b->byte_fallback;
    char text[4];
    for (int i = 0; i < 256; i++) {
        size_t n = vq_byte_character((uint8_t)i, text);
        if ((r->t->byte_level ? vq_bpe_find(b, text, n) : b->byte_id[i]) < 0) complete = false;
    }
    VQ_CHECK(!json_is_string(unknown) || b->unk_id >= 0 || complete, VQ_EFILE,
             "%s: model.unk_token = \"%s\" is not in the vocabulary, expected it there. Get the "
             "file again",
             r->where, json_string_value(unknown));
    return VQ_OK;
}

/* Normalizer and pre-tokenizer */

vq_status vq_reader_normal(const vq_reader *r, vq_normal_step step)
{
    VQ_CHECK(r->t->n_normal < VQ_NORMAL_STEPS, VQ_EUNSUPPORTED,
             "%s: normalizer has more than %d steps, expected a handful. Use a model with a "
             "simpler tokenizer",
             r->where, VQ_NORMAL_STEPS);
    step.n_from = step.from ? strlen(step.from) : 0;
    step.n_to = step.to ? strlen(step.to) : 0;
    r->t->normal[r->t->n_normal++] = step;
    return VQ_OK;
}

static vq_status read_normalizer(const vq_reader *r, const json_t *n)
{
    const char *type = type_of(n);
    vq_normal_step step = {.kind = VQ_NORMAL_NFC};
    if (!n || json_is_null(n)) return VQ_OK;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(n, "normalizers");
        if (!json_is_array(list)) return malformed(r, "normalizer.normalizers", "a list");
        for (size_t i = 0; i < json_array_size(list); i++)
            VQ_TRY(read_normalizer(r, json_array_get(list, i)));
        return VQ_OK;
    }
    if (strcmp(type, "NFC") == 0) return vq_reader_normal(r, step);
    if (strcmp(type, "Prepend") == 0) {
        step.kind = VQ_NORMAL_PREPEND;
        VQ_TRY(get_text(r, n, "prepend", &step.to));
        if (!step.to) return malformed(r, "normalizer.prepend", "a string");
        VQ_TRY(copy_text(r, step.to, &step.to));
        return vq_reader_normal(r, step);
    }
    if (strcmp(type, "Replace") == 0) {
        const json_t *pattern = json_object_get(n, "pattern");
        step.kind = VQ_NORMAL_REPLACE;
        VQ_TRY(get_text(r, pattern, "String", &step.from));
        VQ_TRY(get_text(r, n, "content", &step.to));
        if (!step.from || !*step.from)
            return unsupported(r, "normalizer.pattern", pattern, "{\"String\": \"...\"}");
        if (!step.to) return malformed(r, "normalizer.content", "a string");
        VQ_TRY(copy_text(r, step.from, &step.from));
        VQ_TRY(copy_text(r, step.to, &step.to));
        return vq_reader_normal(r, step);
    }
    return unsupported(r, "normalizer", n, "NFC, Prepend, Replace, Sequence or null");
}

static vq_status read_byte_level(const vq_reader *r, const json_t *p)
{
    bool add_space, use_regex;
    vq_pretokenizer *pre = &r->t->pre;
    VQ_TRY(vq_reader_bool(r, p, "add_prefix_space", true, &add_space));
    VQ_TRY(vq_reader_bool(r, p, "use_regex", true, &use_regex));
    r->t->byte_level = true;
    if (add_space) VQ_TRY(vq_pretokenizer_mark(pre, r->where, " ", VQ_PREPEND_ALWAYS, false));
    return use_regex ? vq_pretokenizer_split(pre, r->arena, r->where, vq_gpt2_pattern, true, true)
                     : VQ_OK;
}

static vq_status read_split(const vq_reader *r, const json_t *p)
{
    const json_t *pattern = json_object_get(p, "pattern"),
                 *behavior = json_object_get(p, "behavior");
    const char *regex, *text;
    bool invert;
    VQ_TRY(get_text(r, pattern, "Regex", &regex));
    VQ_TRY(get_text(r, pattern, "String", &text));
    VQ_TRY(vq_reader_bool(r, p, "invert", false, &invert));
    if (!regex && !text) return malformed(r, "pre_tokenizer.pattern", "a Regex or a String");
    const char *kind = json_is_string(behavior) ? json_string_value(behavior) : "";
    bool isolated = strcmp(kind, "Isolated") == 0;
    if (!isolated && strcmp(kind, "Removed") != 0)
        return unsupported(r, "pre_tokenizer.behavior", behavior, "\"Isolated\" or \"Removed\"");
    if (!regex) {
        vq_buffer quoted = {0};
        if (!*text) return unsupported(r, "pre_tokenizer.pattern", pattern, "text");
        for (const char *s = text; *s; s++) {
            if (ispunct((uint8_t)*s)) VQ_TRY(vq_buffer_put(&quoted, r->arena, "\\", 1));
            VQ_TRY(vq_buffer_put(&quoted, r->arena, s, 1));
        }
        VQ_TRY(vq_buffer_put(&quoted, r->arena, "", 1));
        regex = quoted.data;
    }
    return vq_pretokenizer_split(&r->t->pre, r->arena, r->where, regex, isolated || invert,
                                 isolated || !invert);
}

static vq_status read_metaspace(const vq_reader *r, const json_t *p)
{
    static const struct {
        const char *name;
        vq_prepend prepend;
    } schemes[] = {
        {"always", VQ_PREPEND_ALWAYS}, {"first", VQ_PREPEND_FIRST}, {"never", VQ_PREPEND_NEVER}};
    const char *mark, *scheme;
    bool add_space, split;
    VQ_TRY(get_text(r, p, "replacement", &mark));
    VQ_TRY(get_text(r, p, "prepend_scheme", &scheme));
    VQ_TRY(vq_reader_bool(r, p, "add_prefix_space", true, &add_space));
    VQ_TRY(vq_reader_bool(r, p, "split", true, &split));
    if (!mark || strcmp(mark, VQ_SPACE_MARK) != 0)
        return unsupported(r, "pre_tokenizer.replacement", json_object_get(p, "replacement"),
                           "\"" VQ_SPACE_MARK "\"");
    vq_prepend prepend = add_space ? VQ_PREPEND_ALWAYS : VQ_PREPEND_NEVER;
    int i = 0;
    while (scheme && i < VQ_COUNT(schemes) && strcmp(scheme, schemes[i].name) != 0) i++;
    if (i == VQ_COUNT(schemes))
        return unsupported(r, "pre_tokenizer.prepend_scheme", json_object_get(p, "prepend_scheme"),
                           "\"always\", \"first\" or \"never\"");
    if (scheme) prepend = schemes[i].prepend;
    VQ_TRY(vq_pretokenizer_mark(&r->t->pre, r->where, VQ_SPACE_MARK, prepend, true));
    return split ? vq_pretokenizer_split(&r->t->pre, r->arena, r->where,
                                         VQ_SPACE_MARK "[^" VQ_SPACE_MARK "]*", true, true)
                 : VQ_OK;
}

static vq_status read_pretokenizer(const vq_reader *r, const json_t *p)
{
    const char *type = type_of(p);
    if (!p || json_is_null(p)) return VQ_OK;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(p, "pretokenizers");
        if (!json_is_array(list)) return malformed(r, "pre_tokenizer.pretokenizers", "a list");
        for (size_t i = 0; i < json_array_size(list); i++)
            VQ_TRY(read_pretokenizer(r, json_array_get(list, i)));
        return VQ_OK;
    }
    /* What comes behind it would see its characters for bytes. */
    if (r->t->byte_level) return unsupported(r, "pre_tokenizer", p, "ByteLevel as the last step");
    if (strcmp(type, "ByteLevel") == 0) return read_byte_level(r, p);
    if (strcmp(type, "Split") == 0) return read_split(r, p);
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(r, p);
    if (strcmp(type, "Digits") == 0) {
        bool individual;
        VQ_TRY(vq_reader_bool(r, p, "individual_digits", false, &individual));
        return vq_pretokenizer_split(&r->t->pre, r->arena, r->where,
                                     individual ? "\\p{N}" : "\\p{N}+", true, true);
    }
    return unsupported(r, "pre_tokenizer", p,
                       "ByteLevel, Split, Digits, Metaspace, Sequence or null");
}

/* Post-processor */

/* Puts the ids of a template's special token behind or before those that are there. */
static vq_status put_special(const vq_reader *r, const json_t *processor, const json_t *name,
                             bool before_text, int32_t **ids, int64_t *n)
{
    const char *id = json_string_value(name);
    const json_t *special =
                     json_object_get(json_object_get(processor, "special_tokens"), id ? id : ""),
                 *list = json_object_get(special, "ids");
    if (!json_is_array(list))
        return malformed(r, "post_processor.special_tokens", "the ids of each special token");
    int64_t more = (int64_t)json_array_size(list);
    int32_t *grown, *added;
    VQ_TRY(VQ_NEW(r->arena, *n + more, &grown));
    /* A template around another one adds its ids outside of it; within a template they come in
     * the order they are written, which the caller keeps by going outwards. */
    if (*n) memcpy(grown + (before_text ? more : 0), *ids, (size_t)*n * sizeof **ids);
    added = grown + (before_text ? 0 : *n);
    for (int64_t i = 0; i < more; i++) {
        const json_t *value = json_array_get(list, (size_t)i);
        json_int_t number = json_integer_value(value);
        if (!json_is_integer(value) || number < 0 || number > INT32_MAX / 2)
            return malformed(r, "post_processor.special_tokens.ids", "a list of ids");
        added[i] = (int32_t)number;
    }
    *ids = grown;
    *n += more;
    return VQ_OK;
}

static vq_status read_template(const vq_reader *r, const json_t *p)
{
    const json_t *single = json_object_get(p, "single");
    int64_t n = (int64_t)json_array_size(single), text = -1;
    for (int64_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(single, (size_t)i);
        const char *id =
            json_string_value(json_object_get(json_object_get(item, "Sequence"), "id"));
        if (id && (text >= 0 || strcmp(id, "A") != 0))
            return unsupported(r, "post_processor.single", single, "the text (A) once");
        if (id)
            text = i;
        else if (!json_object_get(item, "SpecialToken"))
            return malformed(r, "post_processor.single", "SpecialToken and Sequence");
    }
    if (text < 0) return unsupported(r, "post_processor.single", single, "the text (A) once");
    for (int64_t i = text - 1; i >= 0; i--)
        VQ_TRY(put_special(
            r, p,
            json_object_get(json_object_get(json_array_get(single, (size_t)i), "SpecialToken"),
                            "id"),
            true, &r->t->prefix, &r->t->n_prefix));
    for (int64_t i = text + 1; i < n; i++)
        VQ_TRY(put_special(
            r, p,
            json_object_get(json_object_get(json_array_get(single, (size_t)i), "SpecialToken"),
                            "id"),
            false, &r->t->suffix, &r->t->n_suffix));
    return VQ_OK;
}

static vq_status read_postprocessor(const vq_reader *r, const json_t *p)
{
    const char *type = type_of(p);
    if (!p || json_is_null(p) || strcmp(type, "ByteLevel") == 0) return VQ_OK;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(p, "processors");
        if (!json_is_array(list)) return malformed(r, "post_processor.processors", "a list");
        for (size_t i = 0; i < json_array_size(list); i++)
            VQ_TRY(read_postprocessor(r, json_array_get(list, i)));
        return VQ_OK;
    }
    if (strcmp(type, "TemplateProcessing") == 0) return read_template(r, p);
    return unsupported(r, "post_processor", p, "TemplateProcessing, ByteLevel, Sequence or null");
}

/* The whole */

vq_status vq_reader_json(const vq_reader *r, const json_t *root)
{
    const json_t *model = json_object_get(root, "model");
    VQ_TRY(vq_pretokenizer_init(&r->t->pre));
    VQ_TRY(read_model(r, model));
    VQ_TRY(read_normalizer(r, json_object_get(root, "normalizer")));
    VQ_TRY(read_pretokenizer(r, json_object_get(root, "pre_tokenizer")));
    VQ_TRY(check_unknown(r, json_object_get(model, "unk_token")));
    VQ_TRY(read_postprocessor(r, json_object_get(root, "post_processor")));
    r->t->kind = r->t->byte_level ? "byte-level BPE of tokenizer.json" : "BPE of tokenizer.json";
    return read_added_tokens(r, json_object_get(root, "added_tokens"));
}

/* Whether no token has a mark behind another character, and no character vanishes between two of
 * them: then words never grow together. */
static bool tokens_keep_words(const vq_bpe *b)
{
    size_t n_mark = strlen(VQ_SPACE_MARK);
    if (b->unk_id < 0 || b->whole_first || *b->prefix || *b->suffix ||
        vq_bpe_find(b, VQ_SPACE_MARK, n_mark) < 0)
        return false;
    for (int64_t i = 0; i <= b->token_mask; i++) {
        const vq_bpe_token *t = &b->tokens[i];
        for (size_t k = 1; t->text && k + n_mark <= t->n_bytes; k++)
            if (memcmp(t->text + k, VQ_SPACE_MARK, n_mark) == 0 &&
                (k < n_mark || memcmp(t->text + k - n_mark, VQ_SPACE_MARK, n_mark) != 0))
                return false;
    }
    return true;
}

/* What follows from the parts: tries, sizes. */
vq_status vq_reader_finish(const vq_reader *r)
{
    vq_tokenizer *t = r->t;
    int64_t n = t->added.n, n_before = 0, n_after = 0, max_id = t->bpe.max_id;
    const vq_added_token **tokens[2];
    const char **texts[2];
    size_t *sizes[2];
    for (int i = 0; i < 2; i++) {
        VQ_TRY(VQ_NEW(r->arena, n, &tokens[i]));
        VQ_TRY(VQ_NEW(r->arena, n, &texts[i]));
        VQ_TRY(VQ_NEW(r->arena, n, &sizes[i]));
    }
    for (int64_t i = 0; i < n; i++) {
        const vq_added_token *token = &t->added.tokens[i];
        int after = token->normalized;
        int64_t k = after ? n_after++ : n_before++;
        tokens[after][k] = token;
        texts[after][k] = token->content;
        sizes[after][k] = token->n_bytes;
        max_id = VQ_MAX(max_id, token->id);
        /* After the normalizer a token is looked for as the normalizer leaves it. */
        if (after) {
            vq_buffer buffers[2] = {{0}, {0}};
            VQ_TRY(vq_normalize(t->normal, t->n_normal, r->arena, buffers, token->content,
                                token->n_bytes, &texts[1][k], &sizes[1][k]));
        }
    }
    VQ_TRY(vq_added_trie_make(r->arena, texts[0], sizes[0], tokens[0], n_before, &t->before));
    VQ_TRY(vq_added_trie_make(r->arena, texts[1], sizes[1], tokens[1], n_after, &t->after));
    t->vocab_size = VQ_MAX(t->vocab_size, max_id + 1);
    t->split_words = !t->byte_level && tokens_keep_words(&t->bpe);
    return VQ_OK;
}

size_t vq_byte_character(uint8_t byte, char out[4])
{
    /* Printable Latin-1 stands for itself; the other 68 bytes are U+0100 and on, in order. */
    int32_t code = byte;
    if (byte <= 0x20)
        code = 0x100 + byte;
    else if (byte >= 0x7f && byte <= 0xa0)
        code = 0x121 + byte - 0x7f;
    else if (byte == 0xad)
        code = 0x143;
    return vq_utf8_encode(code, out);
}
