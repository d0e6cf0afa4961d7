/* torchbin - the zip's directory, a machine for the pickle, and the tensors it describes.
 *
 * The directory is read here rather than by a library because what is wanted is where an entry
 * lies in the mapped file, so that gigabytes of storages are used in place. */
#include "torchbin.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

/* --- the zip --- */

#define END_BYTES 22       /* end of central directory, without its comment */
#define LOCATOR64_BYTES 20 /* says where the 64-bit end record is */
#define END64_BYTES 56
#define CENTRAL_BYTES 46
#define LOCAL_BYTES 30
#define COMMENT_MAX 65535

typedef struct entry {
    const char *name; /* in the scratch arena */
    const uint8_t *data;
    uint64_t bytes;
} entry;

typedef struct archive {
    const char *path;
    const uint8_t *data;
    size_t bytes;
    entry *entry; /* [n], sorted by name */
    int64_t n;
} archive;

static uint64_t little(const uint8_t *p, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)p[i] << 8 * i;
    return value;
}

static bool has_signature(const archive *a, uint64_t at, size_t bytes, uint64_t signature)
{
    return at <= a->bytes && bytes <= a->bytes - at && little(a->data + at, 4) == signature;
}

static vq_status broken_zip(const archive *a, const char *what)
{
    VQ_FAIL(VQ_EFILE,
            "%s: the zip %s; expected a whole file of torch.save. It is damaged or truncated: "
            "download it again",
            a->path, what);
}

/* Where the central directory is, and how many entries it has. */
static vq_status find_directory(const archive *a, uint64_t *at, uint64_t *n)
{
    size_t reach = VQ_MIN(a->bytes, (size_t)(END_BYTES + COMMENT_MAX));
    for (size_t back = END_BYTES; back <= reach; back++) {
        size_t end = a->bytes - back;
        if (!has_signature(a, end, END_BYTES, 0x06054b50)) continue;
        *n = little(a->data + end + 10, 2);
        *at = little(a->data + end + 16, 4);
        if (end < LOCATOR64_BYTES ||
            !has_signature(a, end - LOCATOR64_BYTES, LOCATOR64_BYTES, 0x07064b50))
            return VQ_OK;
        uint64_t end64 = little(a->data + end - LOCATOR64_BYTES + 8, 8);
        if (!has_signature(a, end64, END64_BYTES, 0x06064b50))
            return broken_zip(a, "has a wrong 64-bit end record");
        *n = little(a->data + end64 + 32, 8);
        *at = little(a->data + end64 + 48, 8);
        return VQ_OK;
    }
    return broken_zip(a, "has no end record");
}

/* Takes from the 64-bit extra field the numbers that are 0xffffffff in the record, in this order.
 */
static void read_extra64(const uint8_t *extra, size_t bytes, uint64_t *number[3])
{
    while (bytes >= 4) {
        size_t id = (size_t)little(extra, 2), n = (size_t)little(extra + 2, 2);
        if (n > bytes - 4) return;
        const uint8_t *field = extra + 4;
        size_t left = n;
        for (int i = 0; id == 1 && i < 3; i++) {
            if (*number[i] != UINT32_MAX || left < 8) continue;
            *number[i] = little(field, 8);
            field += 8;
            left -= 8;
        }
        extra += 4 + n;
        bytes -= 4 + n;
    }
}

/* One record of the central directory at *at, which moves to the next. */
static vq_status read_entry(const archive *a, vq_arena *scratch, uint64_t *at, entry *out)
{
    if (!has_signature(a, *at, CENTRAL_BYTES, 0x02014b50))
        return broken_zip(a, "has a wrong directory entry");
    const uint8_t *p = a->data + *at;
    uint64_t method = little(p + 10, 2), packed = little(p + 20, 4), bytes = little(p + 24, 4);
    uint64_t local = little(p + 42, 4);
    size_t name = (size_t)little(p + 28, 2), extra = (size_t)little(p + 30, 2);
    size_t rest = name + extra + (size_t)little(p + 32, 2);
    if (rest > a->bytes - *at - CENTRAL_BYTES) return broken_zip(a, "ends inside its directory");
    read_extra64(p + CENTRAL_BYTES + name, extra, (uint64_t *[]){&bytes, &packed, &local});
    *at += CENTRAL_BYTES + rest;

    char *text;
    VQ_TRY(vq_arena_text(scratch, (const char *)p + CENTRAL_BYTES, name, &text));
    VQ_CHECK(
        method == 0 && (little(p + 8, 2) & 1) == 0, VQ_EUNSUPPORTED,
        "%s: %s is compressed or encrypted (method %llu), expected plain storage as torch.save "
        "writes. Load it in Python and save it again with torch.save",
        a->path, text, (unsigned long long)method);
    if (!has_signature(a, local, LOCAL_BYTES, 0x04034b50))
        return broken_zip(a, "has a wrong local header");
    uint64_t start =
        local + LOCAL_BYTES + little(a->data + local + 26, 2) + little(a->data + local + 28, 2);
    VQ_CHECK(packed == bytes && start <= a->bytes && bytes <= a->bytes - start, VQ_EFILE,
             "%s: %s has %llu bytes at %llu, beyond the file's %zu. It is truncated: expected all "
             "of the data; download it again",
             a->path, text, (unsigned long long)bytes, (unsigned long long)start, a->bytes);
    *out = (entry){text, a->data + start, bytes};
    return VQ_OK;
}

static int by_entry_name(const void *a, const void *b)
{
    return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

static const entry *find_entry(const archive *a, const char *name)
{
    entry key = {.name = name};
    return a->n > 0 ? bsearch(&key, a->entry, (size_t)a->n, sizeof key, by_entry_name) : NULL;
}

static vq_status read_archive(archive *a, vq_arena *scratch)
{
    uint64_t at = 0, n = 0;
    VQ_CHECK(a->bytes == 0 || a->data[0] != 0x80, VQ_EUNSUPPORTED,
             "%s is a pickle without a zip, as PyTorch before 1.6 wrote: expected the zip format. "
             "Convert it: python3 -c \"import torch; f = '%s'; "
             "torch.save(torch.load(f, weights_only=True), f)\"",
             a->path, a->path);
    VQ_TRY(find_directory(a, &at, &n));
    if (n > a->bytes / CENTRAL_BYTES) return broken_zip(a, "has a wrong number of entries");
    VQ_TRY(VQ_NEW(scratch, (int64_t)n, &a->entry));
    for (; a->n < (int64_t)n; a->n++) VQ_TRY(read_entry(a, scratch, &at, &a->entry[a->n]));
    if (n > 0) qsort(a->entry, (size_t)n, sizeof *a->entry, by_entry_name);
    return VQ_OK;
}

/* --- the pickle --- */

typedef enum kind {
    UNSET, /* of the memo */
    MARK,
    NOTHING, /* None, and values that no tensor is made of: floats, bytes, lists */
    INTEGER,
    TEXT,
    TUPLE,
    DICT,
    GLOBAL,
    STORAGE,
    TENSOR
} kind;

typedef struct value {
    kind kind;
    union {
        int64_t integer;
        struct {
            const char *at; /* in the file */
            size_t bytes;
        } text;
        struct {
            const struct value *item;
            size_t n;
        } tuple;
        struct dict *dict;
        const struct global *global;
        const struct storage *storage;
        const vq_tensor *tensor;
    };
} value;

typedef struct pair {
    value key, value;
    struct pair *next;
} pair;

typedef struct dict {
    pair *first, *last;
} dict;

typedef struct storage {
    const uint8_t *data;
    int64_t n;
    vq_dtype dtype;
} storage;

/* All names a pickle may use. */
typedef struct global {
    const char *module, *name;
    enum { MAKES_DICT, MAKES_TENSOR, MAKES_PARAMETER, STORAGE_TYPE } use;
    vq_dtype dtype;
} global;

static const global globals[] = {
    {"collections", "OrderedDict", MAKES_DICT, 0},
    {"torch._utils", "_rebuild_tensor_v2", MAKES_TENSOR, 0},
    {"torch._utils", "_rebuild_parameter", MAKES_PARAMETER, 0},
    {"torch", "FloatStorage", STORAGE_TYPE, VQ_F32},
    {"torch", "HalfStorage", STORAGE_TYPE, VQ_F16},
    {"torch", "BFloat16Storage", STORAGE_TYPE, VQ_BF16},
    {"torch", "DoubleStorage", STORAGE_TYPE, VQ_F64},
    {"torch", "CharStorage", STORAGE_TYPE, VQ_I8},
    {"torch", "ShortStorage", STORAGE_TYPE, VQ_I16},
    {"torch", "IntStorage", STORAGE_TYPE, VQ_I32},
    {"torch", "LongStorage", STORAGE_TYPE, VQ_I64},
    {"torch", "ByteStorage", STORAGE_TYPE, VQ_U8},
    {"torch", "BoolStorage", STORAGE_TYPE, VQ_BOOL},
};

typedef struct machine {
    const archive *archive;
    const char *prefix; /* of the entries' names, "" or "NAME/" */
    vq_arena *scratch;
    const uint8_t *code;
    size_t bytes, at; /* of the code */
    value *stack;     /* [bytes]: an operation pushes at most one value */
    size_t depth;
    value *memo; /* [bytes]: an operation keeps at most one value */
    size_t kept;
} machine;

#define PICKLE_MAX ((uint64_t)16 << 20)
#define SCRATCH_PER_BYTE 512 /* an operation of one byte may take an arena's smallest block */

static vq_status broken(const machine *m, const char *what)
{
    VQ_FAIL(VQ_EFILE,
            "%s: the pickle has %s at byte %zu of %zu; expected a dictionary of tensors as "
            "torch.save writes. It is damaged: download it again",
            m->archive->path, what, m->at, m->bytes);
}

static vq_status take(machine *m, uint64_t n, const uint8_t **out)
{
    if (n > m->bytes - m->at) return broken(m, "its end inside an operation");
    *out = m->code + m->at;
    m->at += (size_t)n;
    return VQ_OK;
}

static vq_status take_number(machine *m, int bytes, uint64_t *out)
{
    const uint8_t *p = NULL;
    VQ_TRY(take(m, (uint64_t)bytes, &p));
    *out = little(p, bytes);
    return VQ_OK;
}

/* Text up to a newline, without it. */
static vq_status take_line(machine *m, value *out)
{
    const uint8_t *from = m->code + m->at, *end = memchr(from, '\n', m->bytes - m->at);
    if (!end) return broken(m, "its end inside a name");
    *out = (value){TEXT, .text = {(const char *)from, (size_t)(end - from)}};
    m->at += out->text.bytes + 1;
    return VQ_OK;
}

static vq_status push(machine *m, value v)
{
    VQ_ASSERT(m->depth < m->bytes);
    m->stack[m->depth++] = v;
    return VQ_OK;
}

static vq_status pop(machine *m, value *out)
{
    if (m->depth == 0 || m->stack[m->depth - 1].kind == MARK)
        return broken(m, "an operation without its values");
    *out = m->stack[--m->depth];
    return VQ_OK;
}

/* The values above the topmost mark, which goes away with them. */
static vq_status pop_marked(machine *m, const value **item, size_t *n)
{
    size_t i = m->depth;
    while (i > 0 && m->stack[i - 1].kind != MARK) i--;
    if (i == 0) return broken(m, "an operation without its mark");
    *item = m->stack + i;
    *n = m->depth - i;
    m->depth = i - 1;
    return VQ_OK;
}

static vq_status remember(machine *m, uint64_t index)
{
    if (m->depth == 0) return broken(m, "nothing to remember");
    if (index >= m->bytes) return broken(m, "a memo number out of range");
    m->memo[index] = m->stack[m->depth - 1];
    return VQ_OK;
}

static vq_status recall(machine *m, uint64_t index)
{
    if (index >= m->bytes || m->memo[index].kind == UNSET)
        return broken(m, "a memo number that was never set");
    return push(m, m->memo[index]);
}

static vq_status push_text(machine *m, int length_bytes)
{
    const uint8_t *p = NULL;
    uint64_t n = 0;
    VQ_TRY(take_number(m, length_bytes, &n));
    VQ_TRY(take(m, n, &p));
    return push(m, (value){TEXT, .text = {(const char *)p, (size_t)n}});
}

static vq_status push_nothing(machine *m, uint64_t bytes)
{
    const uint8_t *p;
    VQ_TRY(take(m, bytes, &p));
    return push(m, (value){.kind = NOTHING});
}

static vq_status push_integer(machine *m, int bytes, bool is_signed)
{
    uint64_t n = 0;
    VQ_TRY(take_number(m, bytes, &n));
    if (is_signed && bytes > 0 && bytes < 8 && n >> (8 * bytes - 1)) n |= UINT64_MAX << 8 * bytes;
    return push(m, (value){INTEGER, .integer = (int64_t)n});
}

static vq_status push_tuple(machine *m, const value *item, size_t n)
{
    value *copy;
    VQ_TRY(VQ_NEW(m->scratch, (int64_t)n, &copy));
    if (n > 0) memcpy(copy, item, n * sizeof *copy);
    return push(m, (value){TUPLE, .tuple = {copy, n}});
}

static vq_status push_last(machine *m, size_t n)
{
    value item[3] = {{.kind = UNSET}};
    for (size_t i = n; i-- > 0;) VQ_TRY(pop(m, &item[i]));
    return push_tuple(m, item, n);
}

static vq_status push_dict(machine *m)
{
    dict *d;
    VQ_TRY(VQ_NEW(m->scratch, 1, &d));
    *d = (dict){0};
    return push(m, (value){DICT, .dict = d});
}

static vq_status set_items(machine *m, const value *item, size_t n)
{
    if (m->depth == 0 || m->stack[m->depth - 1].kind != DICT || n % 2 != 0)
        return broken(m, "entries of something that is no dictionary");
    dict *d = m->stack[m->depth - 1].dict;
    for (size_t i = 0; i < n; i += 2) {
        pair *p;
        VQ_TRY(VQ_NEW(m->scratch, 1, &p));
        *p = (pair){item[i], item[i + 1], NULL};
        *(d->last ? &d->last->next : &d->first) = p;
        d->last = p;
    }
    return VQ_OK;
}

/* What was appended to a list is of no use here. */
static vq_status drop_appended(machine *m)
{
    if (m->depth == 0 || m->stack[m->depth - 1].kind != NOTHING)
        return broken(m, "an append to something that is no list");
    return VQ_OK;
}

static bool text_is(const value *v, const char *text)
{
    return v->kind == TEXT && v->text.bytes == strlen(text) &&
           memcmp(v->text.at, text, v->text.bytes) == 0;
}

static vq_status push_global(machine *m, const value *module, const value *name)
{
    for (int i = 0; i < VQ_COUNT(globals); i++)
        if (text_is(module, globals[i].module) && text_is(name, globals[i].name))
            return push(m, (value){GLOBAL, .global = &globals[i]});
    if (module->kind != TEXT || name->kind != TEXT) return broken(m, "a name that is no text");
    VQ_FAIL(VQ_EUNSUPPORTED,
            "%s: the pickle wants to use %.*s.%.*s, which is refused: expected only tensors, "
            "OrderedDict and storages. Load it in Python only if you trust it, and save its "
            "state_dict alone, best as safetensors",
            m->archive->path, (int)VQ_MIN(module->text.bytes, (size_t)64), module->text.at,
            (int)VQ_MIN(name->text.bytes, (size_t)64), name->text.at);
}

/* ("storage", type, key, device, count) -> the entry of that key. */
static vq_status push_storage(machine *m)
{
    value id = {.kind = UNSET};
    storage *s;
    char *name;
    VQ_TRY(pop(m, &id));
    const value *item = id.tuple.item;
    if (id.kind != TUPLE || id.tuple.n != 5 || !text_is(&item[0], "storage") ||
        item[1].kind != GLOBAL || item[1].global->use != STORAGE_TYPE || item[2].kind != TEXT ||
        item[4].kind != INTEGER)
        return broken(m, "a wrong description of a storage");
    VQ_TRY(vq_arena_array(m->scratch, (int64_t)(strlen(m->prefix) + item[2].text.bytes + 6), 1,
                          (void **)&name));
    sprintf(name, "%sdata/%.*s", m->prefix, (int)item[2].text.bytes, item[2].text.at);
    const entry *e = find_entry(m->archive, name);
    VQ_CHECK(e, VQ_EFILE,
             "%s: the zip has no %s, which a tensor needs: expected all storages in one file. "
             "Download it again",
             m->archive->path, name);
    vq_dtype dtype = item[1].global->dtype;
    int64_t n = item[4].integer;
    VQ_CHECK(n >= 0 && (uint64_t)n <= e->bytes / vq_dtype_bytes(dtype), VQ_EFILE,
             "%s: %s has %llu bytes, expected %lld elements of %s. Download the file again",
             m->archive->path, name, (unsigned long long)e->bytes, (long long)n,
             vq_dtype_name(dtype));
    VQ_TRY(VQ_NEW(m->scratch, 1, &s));
    *s = (storage){e->data, n, dtype};
    return push(m, (value){STORAGE, .storage = s});
}

/* (storage, offset, dims, strides, ...) -> a tensor, all of it inside its storage. */
static vq_status push_tensor(machine *m, const value *args)
{
    const value *item = args->tuple.item;
    vq_tensor *t;
    if (args->tuple.n < 4 || item[0].kind != STORAGE || item[1].kind != INTEGER ||
        item[2].kind != TUPLE || item[3].kind != TUPLE || item[2].tuple.n != item[3].tuple.n)
        return broken(m, "a wrong description of a tensor");
    const storage *s = item[0].storage;
    size_t ndim = item[2].tuple.n;
    VQ_CHECK(ndim <= VQ_MAX_NDIM, VQ_EUNSUPPORTED,
             "%s: a tensor has %zu dims, expected at most %d. Use a model of a supported family",
             m->archive->path, ndim, VQ_MAX_NDIM);
    VQ_TRY(VQ_NEW(m->scratch, 1, &t));
    *t = (vq_tensor){.dtype = s->dtype, .ndim = (int)ndim, .place = VQ_HOST};
    int64_t count = 1, offset = item[1].integer, last = offset;
    bool wrong = offset < 0 || offset > s->n;
    for (size_t i = 0; i < VQ_MAX_NDIM; i++) {
        const value *dim = i < ndim ? &item[2].tuple.item[i] : &(value){INTEGER, .integer = 1};
        const value *stride = i < ndim ? &item[3].tuple.item[i] : dim;
        int64_t span = 0;
        t->dim[i] = dim->integer;
        t->stride[i] = stride->integer;
        wrong = wrong || dim->kind != INTEGER || stride->kind != INTEGER || dim->integer < 0 ||
                stride->integer < 0 || __builtin_mul_overflow(count, dim->integer, &count) ||
                (dim->integer > 1 &&
                 (__builtin_mul_overflow(dim->integer - 1, stride->integer, &span) ||
                  __builtin_add_overflow(last, span, &last)));
    }
    wrong = wrong || count > s->n || (count > 0 && last >= s->n);
    VQ_CHECK(!wrong, VQ_EFILE,
             "%s: the pickle at byte %zu describes a tensor (offset %lld, first dim %lld) outside "
             "its storage of %lld elements, expected one inside. Download the file again",
             m->archive->path, m->at, (long long)offset, (long long)(ndim ? t->dim[0] : 1),
             (long long)s->n);
    t->data = (void *)(uintptr_t)(s->data + (size_t)offset * vq_dtype_bytes(s->dtype));
    return push(m, (value){TENSOR, .tensor = t});
}

static vq_status reduce(machine *m)
{
    value args = {.kind = UNSET}, callable = {.kind = UNSET};
    VQ_TRY(pop(m, &args));
    VQ_TRY(pop(m, &callable));
    if (callable.kind != GLOBAL || args.kind != TUPLE)
        return broken(m, "a call of something that is no function");
    switch (callable.global->use) {
    case MAKES_DICT:
        if (args.tuple.n != 0) return broken(m, "an OrderedDict made from something");
        return push_dict(m);
    case MAKES_TENSOR: return push_tensor(m, &args);
    case MAKES_PARAMETER:
        if (args.tuple.n < 1 || args.tuple.item[0].kind != TENSOR)
            return broken(m, "a parameter that is no tensor");
        return push(m, args.tuple.item[0]);
    case STORAGE_TYPE: break;
    }
    return broken(m, "a call of a storage type");
}

/* One operation other than STOP. */
static vq_status step(machine *m, uint8_t op)
{
    value a = {.kind = UNSET}, b = {.kind = UNSET};
    const value *item = NULL;
    uint64_t n = 0;
    size_t count = 0;
    switch (op) {
    case 0x80: /* PROTO */ return take_number(m, 1, &n);
    case 0x95: /* FRAME */ return take_number(m, 8, &n);
    case '(': return push(m, (value){.kind = MARK});
    case '0': /* POP */ return pop(m, &a);
    case 'N': return push_nothing(m, 0);
    case 'G': /* BINFLOAT */ return push_nothing(m, 8);
    case 'B': /* BINBYTES */ VQ_TRY(take_number(m, 4, &n)); return push_nothing(m, n);
    case 'C': /* SHORT_BINBYTES */ VQ_TRY(take_number(m, 1, &n)); return push_nothing(m, n);
    case 0x88: /* NEWTRUE */ return push(m, (value){INTEGER, .integer = 1});
    case 0x89: /* NEWFALSE */ return push(m, (value){INTEGER, .integer = 0});
    case 'J': /* BININT */ return push_integer(m, 4, true);
    case 'K': /* BININT1 */ return push_integer(m, 1, false);
    case 'M': /* BININT2 */ return push_integer(m, 2, false);
    case 0x8a: /* LONG1 */
        VQ_TRY(take_number(m, 1, &n));
        if (n > 8) return broken(m, "a number of more than 64 bits");
        return push_integer(m, (int)n, true);
    case 'X': /* BINUNICODE */ return push_text(m, 4);
    case 0x8c: /* SHORT_BINUNICODE */ return push_text(m, 1);
    case 0x8d: /* BINUNICODE8 */ return push_text(m, 8);
    case ')': return push_tuple(m, NULL, 0);
    case 0x85: /* TUPLE1 */ return push_last(m, 1);
    case 0x86: /* TUPLE2 */ return push_last(m, 2);
    case 0x87: /* TUPLE3 */ return push_last(m, 3);
    case 't': VQ_TRY(pop_marked(m, &item, &count)); return push_tuple(m, item, count);
    case ']': return push_nothing(m, 0);
    case 'a': VQ_TRY(pop(m, &a)); return drop_appended(m);
    case 'e': VQ_TRY(pop_marked(m, &item, &count)); return drop_appended(m);
    case '}': return push_dict(m);
    case 's': /* SETITEM */
        VQ_TRY(pop(m, &b));
        VQ_TRY(pop(m, &a));
        return set_items(m, (value[]){a, b}, 2);
    case 'u': /* SETITEMS */ VQ_TRY(pop_marked(m, &item, &count)); return set_items(m, item, count);
    case 'q': /* BINPUT */ VQ_TRY(take_number(m, 1, &n)); return remember(m, n);
    case 'r': /* LONG_BINPUT */ VQ_TRY(take_number(m, 4, &n)); return remember(m, n);
    case 0x94: /* MEMOIZE */ return remember(m, m->kept++);
    case 'h': /* BINGET */ VQ_TRY(take_number(m, 1, &n)); return recall(m, n);
    case 'j': /* LONG_BINGET */ VQ_TRY(take_number(m, 4, &n)); return recall(m, n);
    case 'c': /* GLOBAL */
        VQ_TRY(take_line(m, &a));
        VQ_TRY(take_line(m, &b));
        return push_global(m, &a, &b);
    case 0x93: /* STACK_GLOBAL */
        VQ_TRY(pop(m, &b));
        VQ_TRY(pop(m, &a));
        return push_global(m, &a, &b);
    case 'Q': /* BINPERSID */ return push_storage(m);
    case 'R': return reduce(m);
    case 'b': /* BUILD: the attributes of an OrderedDict, such as state_dict's _metadata */
        VQ_TRY(pop(m, &a));
        if (m->depth == 0 || m->stack[m->depth - 1].kind != DICT)
            return broken(m, "attributes of something that is no dictionary");
        return VQ_OK;
    default: return broken(m, "an operation that torch.save does not write");
    }
}

static vq_status run(machine *m, const dict **out)
{
    const uint8_t *op = NULL;
    VQ_TRY(VQ_NEW(m->scratch, (int64_t)m->bytes, &m->stack));
    VQ_TRY(VQ_NEW(m->scratch, (int64_t)m->bytes, &m->memo));
    memset(m->memo, 0, m->bytes * sizeof *m->memo);
    for (;;) {
        VQ_TRY(take(m, 1, &op));
        if (*op == '.') break;
        VQ_TRY(step(m, *op));
    }
    if (m->depth != 1 || m->stack[0].kind != DICT)
        return broken(m, "something other than a dictionary");
    *out = m->stack[0].dict;
    return VQ_OK;
}

/* --- the tensors --- */

static int by_tensor_name(const void *a, const void *b)
{
    return strcmp(((const vq_tensor *)a)->name, ((const vq_tensor *)b)->name);
}

/* The bytes from the first to the last element. */
static size_t span_bytes(const vq_tensor *t)
{
    int64_t last = 0;
    if (vq_tensor_count(t) == 0) return 0;
    for (int i = 0; i < t->ndim; i++) last += (t->dim[i] - 1) * t->stride[i];
    return (size_t)(last + 1) * vq_dtype_bytes(t->dtype);
}

static vq_status keep_tensors(vq_arena *arena, const dict *d, vq_torchbin *out)
{
    int64_t n = 0;
    for (const pair *p = d->first; p; p = p->next) n += p->value.kind == TENSOR;
    VQ_CHECK(n > 0, VQ_EFILE,
             "%s: the saved dictionary has no tensor at its top level, expected a state_dict (name "
             "-> tensor). In Python, save the model's state_dict alone",
             out->path);
    VQ_TRY(VQ_NEW(arena, n, &out->tensor));
    for (const pair *p = d->first; p; p = p->next) {
        if (p->value.kind != TENSOR) continue;
        const value *key = &p->key;
        VQ_CHECK(key->kind == TEXT && key->text.bytes > 0 &&
                     !memchr(key->text.at, '\0', key->text.bytes),
                 VQ_EFILE,
                 "%s: tensor %lld of the saved dictionary has no proper name, expected a text. In "
                 "Python, save the model's state_dict alone",
                 out->path, (long long)out->n);
        vq_tensor *t = &out->tensor[out->n++];
        char *name;
        *t = *p->value.tensor;
        VQ_TRY(vq_arena_text(arena, key->text.at, key->text.bytes, &name));
        t->name = name;
        VQ_TRY(vq_file_align(arena, t->data, span_bytes(t), vq_dtype_bytes(t->dtype), &t->data));
    }
    qsort(out->tensor, (size_t)n, sizeof *out->tensor, by_tensor_name);
    for (int64_t i = 1; i < n; i++)
        VQ_CHECK(strcmp(out->tensor[i - 1].name, out->tensor[i].name) != 0, VQ_EFILE,
                 "%s: %s is there twice, expected unique names. Download the file again", out->path,
                 out->tensor[i].name);
    return VQ_OK;
}

/* The entry of the pickle; *prefix is what stands before "data.pkl". */
static vq_status find_pickle(const archive *a, vq_arena *scratch, const entry **out, char **prefix)
{
    static const char name[] = "data.pkl";
    size_t n = sizeof name - 1;
    for (int64_t i = 0; i < a->n; i++) {
        const char *full = a->entry[i].name;
        size_t m = strlen(full);
        if (m < n || strcmp(full + m - n, name) != 0 || (m > n && full[m - n - 1] != '/')) continue;
        *out = &a->entry[i];
        VQ_CHECK((*out)->bytes <= PICKLE_MAX, VQ_EFILE,
                 "%s: %s has %llu bytes, expected at most %llu. It is no list of tensors: download "
                 "the file again",
                 a->path, full, (unsigned long long)(*out)->bytes, (unsigned long long)PICKLE_MAX);
        return vq_arena_text(scratch, full, m - n, prefix);
    }
    return broken_zip(a, "has no data.pkl");
}

static vq_status check_byte_order(const archive *a, vq_arena *scratch, const char *prefix)
{
    char *name;
    VQ_TRY(vq_arena_array(scratch, (int64_t)strlen(prefix) + 10, 1, (void **)&name));
    sprintf(name, "%sbyteorder", prefix);
    const entry *e = find_entry(a, name);
    VQ_CHECK(!e || e->bytes < 3 || memcmp(e->data, "big", 3) != 0, VQ_EUNSUPPORTED,
             "%s was saved big-endian, expected little-endian. Load it in Python on this machine "
             "and save it again",
             a->path);
    return VQ_OK;
}

static vq_status parse(vq_arena *arena, vq_arena *scratch, archive *a, vq_torchbin *out)
{
    const entry *pickle = NULL;
    const dict *d = NULL;
    char *prefix = NULL;
    VQ_TRY(read_archive(a, scratch));
    VQ_TRY(find_pickle(a, scratch, &pickle, &prefix));
    VQ_TRY(check_byte_order(a, scratch, prefix));
    machine m = {.archive = a,
                 .prefix = prefix,
                 .scratch = scratch,
                 .code = pickle->data,
                 .bytes = (size_t)pickle->bytes};
    VQ_TRY(run(&m, &d));
    return keep_tensors(arena, d, out);
}

vq_status vq_torchbin_parse(vq_arena *arena, const char *path, const uint8_t *data, size_t bytes,
                            vq_torchbin *out)
{
    vq_arena scratch;
    archive a = {.path = path, .data = data, .bytes = bytes};
    *out = (vq_torchbin){.path = path};
    /* Addresses only: the zip's directory and the pickle are a small part of a large file. */
    size_t capacity = VQ_MIN(bytes, (size_t)PICKLE_MAX * 2) * SCRATCH_PER_BYTE + ((size_t)1 << 20);
    VQ_TRY(vq_arena_init(&scratch, "pickle", capacity));
    vq_status status = parse(arena, &scratch, &a, out);
    vq_arena_close(&scratch);
    return status;
}

vq_status vq_torchbin_open(vq_arena *arena, const char *path, vq_torchbin *out)
{
    vq_map map;
    char *kept;
    *out = (vq_torchbin){0};
    VQ_TRY(vq_arena_text(arena, path, strlen(path), &kept));
    VQ_TRY(vq_file_map(path, &map));
    vq_status status = vq_torchbin_parse(arena, kept, map.data, map.bytes, out);
    out->map = map;
    if (status != VQ_OK) vq_torchbin_close(out);
    return status;
}

void vq_torchbin_close(vq_torchbin *t)
{
    vq_file_unmap(&t->map);
    *t = (vq_torchbin){0};
}
