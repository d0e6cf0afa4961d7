/* normalize - canonical composition, prefix and replacement. */
#include "normalize.h"

#include <string.h>
#include <utf8proc.h>

#include "error.h"
#include "utf8.h"

vq_status vq_buffer_reserve(vq_buffer *b, vq_arena *arena, size_t n_bytes)
{
    if (n_bytes <= b->capacity) return VQ_OK;
    size_t capacity = VQ_MAX(n_bytes, VQ_MAX(2 * b->capacity, (size_t)256));
    char *data;
    VQ_TRY(VQ_NEW(arena, (int64_t)capacity, &data));
    if (b->n_bytes) memcpy(data, b->data, b->n_bytes);
    b->data = data;
    b->capacity = capacity;
    return VQ_OK;
}

vq_status vq_buffer_put(vq_buffer *b, vq_arena *arena, const char *data, size_t n)
{
    VQ_TRY(vq_buffer_reserve(b, arena, b->n_bytes + n));
    if (n) memcpy(b->data + b->n_bytes, data, n);
    b->n_bytes += n;
    return VQ_OK;
}

/* Characters below this compose with nothing before them, so a text may be cut before each. */
#define FIRST_COMBINING 0x300

static int combining_class(utf8proc_int32_t code)
{
    return utf8proc_get_property(code)->combining_class;
}

/* Canonical order: stable by combining class within each run of combining characters. A counting
 * sort, as a run can be as long as the text. spare has room for n. */
static void reorder(utf8proc_int32_t *codes, utf8proc_int32_t *spare, int64_t n)
{
    for (int64_t from = 0, to; from < n; from = to) {
        int64_t place[257] = {0};
        for (to = from; to < n && combining_class(codes[to]) > 0; to++)
            place[combining_class(codes[to]) + 1]++;
        if (to - from > 1) {
            for (int c = 1; c < 257; c++) place[c] += place[c - 1];
            for (int64_t i = from; i < to; i++)
                spare[place[combining_class(codes[i])]++] = codes[i];
            memcpy(codes + from, spare, (size_t)(to - from) * sizeof *codes);
        }
        if (to == from) to++;
    }
}

/* The most characters that one decomposes into. */
#define DECOMPOSED_MAX 4

/* Composes a run of characters into out. */
static vq_status compose(vq_arena *arena, const char *text, size_t n, vq_buffer *out)
{
    size_t mark = vq_arena_mark(arena), length;
    utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    utf8proc_int32_t *codes, *spare;
    int64_t count = 0, room = DECOMPOSED_MAX * (int64_t)n;
    VQ_TRY(VQ_NEW(arena, room, &codes));
    VQ_TRY(VQ_NEW(arena, room, &spare));
    for (size_t i = 0; i < n; i += length) {
        int boundary = 0;
        utf8proc_ssize_t more =
            utf8proc_decompose_char(vq_utf8_decode(text + i, n - i, &length), codes + count,
                                    room - count, options, &boundary);
        VQ_ASSERT(more >= 0 && more <= room - count);
        count += more;
    }
    reorder(codes, spare, count);
    count = utf8proc_normalize_utf32(codes, count, options);
    VQ_ASSERT(count >= 0);
    for (int64_t i = 0; i < count; i++)
        out->n_bytes += vq_utf8_encode(codes[i], out->data + out->n_bytes);
    vq_arena_reset(arena, mark);
    return VQ_OK;
}

static vq_status nfc(vq_arena *arena, const char *text, size_t n, vq_buffer *out, bool *changed)
{
    /* i runs over the text; the characters from `done` on are not written yet. Only stretches
     * with a character above FIRST_COMBINING, and the one before them, need a look. */
    size_t i = 0, done = 0, length;
    *changed = false;
    while (i < n) {
        size_t start = i;
        while (i < n && (uint8_t)text[i] < 0xcc) {
            start = i;
            i += (uint8_t)text[i] < 0x80 ? 1 : 2;
        }
        if (i >= n) break;
        while (i < n && vq_utf8_decode(text + i, n - i, &length) >= FIRST_COMBINING) i += length;
        /* Canonical decomposition makes at most three times as many bytes. */
        VQ_TRY(vq_buffer_reserve(out, arena, out->n_bytes + (start - done) + 3 * (i - start)));
        VQ_TRY(vq_buffer_put(out, arena, text + done, start - done));
        VQ_TRY(compose(arena, text + start, i - start, out));
        done = i;
        *changed = true;
    }
    return *changed ? vq_buffer_put(out, arena, text + done, n - done) : VQ_OK;
}

static vq_status replace(vq_arena *arena, const vq_normal_step *step, const char *text, size_t n,
                         vq_buffer *out)
{
    const char *end = text + n, *hit;
    while ((hit = memmem(text, (size_t)(end - text), step->from, step->n_from))) {
        VQ_TRY(vq_buffer_put(out, arena, text, (size_t)(hit - text)));
        VQ_TRY(vq_buffer_put(out, arena, step->to, step->n_to));
        text = hit + step->n_from;
    }
    return vq_buffer_put(out, arena, text, (size_t)(end - text));
}

vq_status vq_normalize(const vq_normal_step *steps, int n_steps, vq_arena *arena,
                       vq_buffer buffers[2], const char *text, size_t n, const char **out,
                       size_t *n_out)
{
    for (int i = 0, next = 0; i < n_steps; i++) {
        vq_buffer *to = &buffers[next];
        bool changed = true;
        to->n_bytes = 0;
        switch (steps[i].kind) {
        case VQ_NORMAL_NFC: VQ_TRY(nfc(arena, text, n, to, &changed)); break;
        case VQ_NORMAL_PREPEND:
            if ((changed = n > 0)) {
                VQ_TRY(vq_buffer_put(to, arena, steps[i].to, steps[i].n_to));
                VQ_TRY(vq_buffer_put(to, arena, text, n));
            }
            break;
        case VQ_NORMAL_REPLACE: VQ_TRY(replace(arena, &steps[i], text, n, to)); break;
        }
        if (!changed) continue;
        text = to->data;
        n = to->n_bytes;
        next = !next;
    }
    *out = text;
    *n_out = n;
    return VQ_OK;
}
