/* textio - files as streams of bytes, compressed or not; texts and rows out of them. */
#include "textio.h"

#include <jansson.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "error.h"
#include "fileio.h"
#include "utf8.h"

#define CHUNK_BYTES ((size_t)256 << 10)

/* A file's bytes after decompression. */
typedef struct stream {
    const char *path;
    gzFile gz; /* zlib reads .gz, and files that are not compressed */
    bool is_gz;
    FILE *file; /* .zst */
    ZSTD_DStream *zstd;
    ZSTD_inBuffer input;
    size_t wanted; /* 0 between frames, else what zstd still expects */
} stream;

/* Bytes in the scratch arena that grow. */
typedef struct bytes {
    char *data;
    size_t n, capacity;
} bytes;

static bool ends_with(const char *name, size_t n, const char *suffix)
{
    size_t n_suffix = strlen(suffix);
    return n > n_suffix && memcmp(name + n - n_suffix, suffix, n_suffix) == 0;
}

/* What a file's name says it holds. */
static bool is_text_name(const char *name, bool *rows)
{
    size_t n = strlen(name);
    if (ends_with(name, n, ".gz"))
        n -= 3;
    else if (ends_with(name, n, ".zst"))
        n -= 4;
    *rows = ends_with(name, n, ".jsonl") || ends_with(name, n, ".json");
    return *rows || ends_with(name, n, ".txt");
}

static vq_status open_stream(vq_arena *scratch, const char *path, stream *s)
{
    size_t n = strlen(path);
    *s = (stream){.path = path, .is_gz = ends_with(path, n, ".gz")};
    if (!ends_with(path, n, ".zst")) {
        s->gz = gzopen(path, "rb");
        if (!s->gz) return vq_file_error(path, "opened");
        return VQ_OK;
    }
    char *room;
    VQ_TRY(VQ_NEW(scratch, (int64_t)CHUNK_BYTES, &room));
    s->input.src = room;
    s->file = fopen(path, "rb");
    if (!s->file) return vq_file_error(path, "opened");
    s->zstd = ZSTD_createDStream();
    VQ_CHECK(s->zstd, VQ_EMEM, "%s: zstd has no memory, expected 1 MiB. Give the job more memory",
             path);
    return VQ_OK;
}

static void close_stream(stream *s)
{
    if (s->gz) gzclose(s->gz);
    if (s->file) fclose(s->file);
    ZSTD_freeDStream(s->zstd);
}

static vq_status broken(const stream *s, const char *what)
{
    VQ_FAIL(VQ_EFILE, "%s: %s, expected a whole compressed file. Get the file again", s->path,
            what);
}

static vq_status get_zstd(stream *s, char *out, size_t capacity, size_t *n)
{
    ZSTD_outBuffer output = {out, capacity, 0};
    while (output.pos == 0) {
        if (s->input.pos == s->input.size) {
            s->input.pos = 0;
            s->input.size = fread((void *)(uintptr_t)s->input.src, 1, CHUNK_BYTES, s->file);
            if (ferror(s->file)) return vq_file_error(s->path, "read");
            if (s->input.size == 0) break;
        }
        s->wanted = ZSTD_decompressStream(s->zstd, &output, &s->input);
        if (ZSTD_isError(s->wanted)) return broken(s, ZSTD_getErrorName(s->wanted));
    }
    *n = output.pos;
    return output.pos == 0 && s->wanted > 0 ? broken(s, "it ends too early") : VQ_OK;
}

/* The next bytes; *n = 0 at the end. */
static vq_status get(stream *s, char *out, size_t capacity, size_t *n)
{
    *n = 0;
    if (!s->gz) return get_zstd(s, out, capacity, n);
    int got = gzread(s->gz, out, (unsigned)VQ_MIN(capacity, CHUNK_BYTES)), code;
    if (got > 0 && s->is_gz && gzdirect(s->gz)) return broken(s, "it is not compressed by gzip");
    const char *reason = gzerror(s->gz, &code);
    if (code == Z_ERRNO) return vq_file_error(s->path, "read");
    const size_t n_path = strlen(s->path); /* which zlib puts first, too */
    if (!strncmp(reason, s->path, n_path) && !strncmp(reason + n_path, ": ", 2))
        reason += n_path + 2;
    if (got < 0 || code != Z_OK) return broken(s, *reason ? reason : "it ends too early");
    *n = (size_t)got;
    return VQ_OK;
}

/* Puts the next chunk behind what is there, and a NUL behind that; *more = false at the end. */
static vq_status append(stream *s, vq_arena *scratch, bytes *b, bool *more)
{
    if (b->capacity - b->n < CHUNK_BYTES + 1) {
        char *old = b->data;
        b->capacity = VQ_MAX(2 * b->capacity, 2 * CHUNK_BYTES);
        VQ_TRY(VQ_NEW(scratch, (int64_t)b->capacity, &b->data));
        if (b->n) memcpy(b->data, old, b->n);
    }
    size_t n;
    VQ_TRY(get(s, b->data + b->n, CHUNK_BYTES, &n));
    b->n += n;
    b->data[b->n] = '\0';
    *more = n > 0;
    return VQ_OK;
}

/* Documents on their way into one list. */
typedef struct collector {
    vq_arena *arena, *scratch;
    vq_text *text;
    int64_t capacity;
} collector;

static vq_status put(collector *c, const char *data, size_t n, const char *path, bool is_row)
{
    vq_text *t = c->text;
    if (t->n == c->capacity) {
        vq_document *old = t->documents;
        c->capacity = VQ_MAX(2 * c->capacity, 16);
        VQ_TRY(VQ_NEW(c->arena, c->capacity, &t->documents));
        if (t->n) memcpy(t->documents, old, (size_t)t->n * sizeof *old);
    }
    char *copy;
    VQ_TRY(vq_arena_text(c->arena, data, n, &copy));
    t->documents[t->n++] = (vq_document){copy, (int64_t)n, path, is_row};
    t->n_bytes += (int64_t)n;
    return VQ_OK;
}

static vq_status read_row(collector *c, const char *path, int64_t line, const char *data, size_t n)
{
    json_error_t error;
    size_t mark = vq_arena_mark(c->scratch);
    if (strspn(data, " \t\r") >= n) return VQ_OK;
    VQ_TRY(vq_utf8_repair(c->scratch, data, n, &data, &n));
    json_t *row = json_loadb(data, n, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &error);
    VQ_CHECK(row, VQ_EFILE, "%s:%lld: %s, expected one JSON object a line. Correct the line", path,
             (long long)line, error.text);
    const json_t *text = json_object_get(row, "text");
    if (!text) text = json_object_get(row, "sentence");
    vq_status status =
        json_is_string(text)
            ? put(c, json_string_value(text), json_string_length(text), path, true)
            : vq_error_set(VQ_EFILE, __FILE__, __LINE__,
                           "%s:%lld: no string \"text\" in the object, expected one in each line. "
                           "Name the column with the text \"text\"",
                           path, (long long)line);
    json_decref(row);
    vq_arena_reset(c->scratch, mark);
    return status;
}

static vq_status read_rows(collector *c, stream *s)
{
    bytes b = {0};
    int64_t line = 0;
    size_t searched = 0;
    for (bool more = true; more;) {
        VQ_TRY(append(s, c->scratch, &b, &more));
        char *from = b.data, *end = b.data + b.n, *newline;
        while ((newline = memchr(from + searched, '\n', (size_t)(end - from) - searched))) {
            *newline = '\0';
            VQ_TRY(read_row(c, s->path, ++line, from, (size_t)(newline - from)));
            from = newline + 1;
            searched = 0;
        }
        b.n = searched = (size_t)(end - from);
        memmove(b.data, from, b.n + 1);
    }
    return read_row(c, s->path, line + 1, b.data, b.n);
}

static vq_status read_whole(collector *c, stream *s)
{
    bytes b = {0};
    for (bool more = true; more;) VQ_TRY(append(s, c->scratch, &b, &more));
    const char *nul = memchr(b.data, '\0', b.n);
    VQ_CHECK(!nul, VQ_EFILE,
             "%s: a NUL at byte %zu, expected text and not binary data. Convert it to UTF-8 text",
             s->path, (size_t)(nul - b.data));
    return put(c, b.data, b.n, s->path, false);
}

static vq_status read_file(collector *c, const char *path, bool rows)
{
    stream s;
    char *name;
    int64_t before = c->text->n_bytes;
    VQ_TRY(vq_arena_text(c->arena, path, strlen(path), &name));
    size_t mark = vq_arena_mark(c->scratch);
    vq_status status = open_stream(c->scratch, name, &s);
    if (status == VQ_OK) status = rows ? read_rows(c, &s) : read_whole(c, &s);
    close_stream(&s);
    vq_arena_reset(c->scratch, mark);
    VQ_TRY(status);
    VQ_CHECK(c->text->n_bytes > before, VQ_EFILE,
             "%s: the text is empty, expected some. Name a file with text in it", path);
    return VQ_OK;
}

static vq_status read_folder(collector *c, const char *path)
{
    char **names, *file;
    bool rows;
    int64_t n, n_read = 0;
    VQ_TRY(vq_folder_list(c->arena, path, "", &names, &n));
    for (int64_t i = 0; i < n; i++) {
        VQ_TRY(vq_path_join(c->arena, path, names[i], &file));
        if (!is_text_name(names[i], &rows) || vq_is_folder(file)) continue;
        VQ_TRY(read_file(c, file, rows));
        n_read++;
    }
    VQ_CHECK(n_read > 0, VQ_EUSAGE,
             "%s: no texts in this folder, expected .txt or .jsonl files, or these with .gz or "
             ".zst. Name another folder or a file",
             path);
    return VQ_OK;
}

vq_status vq_text_read(vq_arena *arena, vq_arena *scratch, const char *const *paths, int n_paths,
                       vq_text *out)
{
    *out = (vq_text){0};
    collector c = {arena, scratch, out, 0};
    VQ_CHECK(n_paths > 0, VQ_EUSAGE,
             "--text: no text given, expected a file or a folder. Name one with --text FILE");
    for (int i = 0; i < n_paths; i++) {
        bool rows;
        if (vq_is_folder(paths[i])) {
            VQ_TRY(read_folder(&c, paths[i]));
            continue;
        }
        VQ_CHECK(is_text_name(paths[i], &rows), VQ_EUSAGE,
                 "%s: not the name of a text, expected .txt or .jsonl, or these with .gz or .zst. "
                 "Rename the file",
                 paths[i]);
        VQ_TRY(read_file(&c, paths[i], rows));
    }
    return VQ_OK;
}

/* Where in a document to cut so that what is before has at least `target` bytes: behind a line
 * end, between characters where no line ends, or at its end. */
static int64_t find_cut(const vq_document *d, int64_t target, bool is_last)
{
    const char *newline = memchr(d->data + target, '\n', (size_t)(d->n_bytes - target));
    int64_t cut = newline ? newline + 1 - d->data : d->n_bytes;
    if (cut < d->n_bytes || !is_last) return cut;
    for (cut = target; cut > 0 && ((uint8_t)d->data[cut] & 0xc0) == 0x80; cut--)
        ;
    return cut;
}

vq_status vq_text_hold_out(vq_arena *arena, const vq_text *text, double ratio, vq_text *calib,
                           vq_text *eval)
{
    int64_t target = (int64_t)((double)text->n_bytes * (1 - ratio)), i = 0;
    *calib = *eval = (vq_text){0};
    VQ_TRY(VQ_NEW(arena, text->n + 1, &calib->documents));
    VQ_TRY(VQ_NEW(arena, text->n + 1, &eval->documents));
    for (; i < text->n && target >= text->documents[i].n_bytes; i++) {
        calib->documents[calib->n++] = text->documents[i];
        target -= text->documents[i].n_bytes;
    }
    if (i < text->n) {
        const vq_document *d = &text->documents[i];
        int64_t cut = target > 0 ? find_cut(d, target, i + 1 == text->n) : 0;
        vq_document head = *d, tail = *d;
        head.n_bytes = cut;
        tail.data += cut;
        tail.n_bytes -= cut;
        if (head.n_bytes > 0) calib->documents[calib->n++] = head;
        if (tail.n_bytes > 0) eval->documents[eval->n++] = tail;
        for (i++; i < text->n; i++) eval->documents[eval->n++] = text->documents[i];
    }
    for (i = 0; i < calib->n; i++) calib->n_bytes += calib->documents[i].n_bytes;
    for (i = 0; i < eval->n; i++) eval->n_bytes += eval->documents[i].n_bytes;
    VQ_CHECK(calib->n_bytes > 0 && eval->n_bytes > 0, VQ_EFILE,
             "--text: %lld bytes cannot be shared out with %g of them for evaluation, expected "
             "some on both sides. Give a longer text, or another one with --eval-text",
             (long long)text->n_bytes, ratio);
    return VQ_OK;
}
