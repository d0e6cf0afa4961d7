/* utf8 - decoding, repair and the two character classes that added tokens ask for. */
#include "utf8.h"

#include <string.h>
#include <utf8proc.h>

#include "error.h"

int32_t vq_utf8_decode(const char *text, size_t n, size_t *length)
{
    const uint8_t *s = (const uint8_t *)text;
    if (s[0] < 0x80 || n < 2) return *length = 1, s[0];
    if (s[0] < 0xe0 || n < 3) return *length = 2, (s[0] & 0x1f) << 6 | (s[1] & 0x3f);
    if (s[0] < 0xf0 || n < 4)
        return *length = 3, (s[0] & 0x0f) << 12 | (s[1] & 0x3f) << 6 | (s[2] & 0x3f);
    return *length = 4,
           (s[0] & 0x07) << 18 | (s[1] & 0x3f) << 12 | (s[2] & 0x3f) << 6 | (s[3] & 0x3f);
}

size_t vq_utf8_encode(int32_t code, char out[4])
{
    return (size_t)utf8proc_encode_char(code, (utf8proc_uint8_t *)out);
}

/* How many of the n >= 1 bytes at s make one character, or, negated, belong to one broken
 * sequence: the longest start of a character that could have been (Unicode 15, table 3-7). */
static int sequence(const uint8_t *s, size_t n)
{
    if (s[0] < 0x80) return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4) return -1;
    int length = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    uint8_t low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    uint8_t high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    for (int i = 1; i < length; i++) {
        if ((size_t)i == n || s[i] < low || s[i] > high) return -i;
        low = 0x80, high = 0xbf;
    }
    return length;
}

size_t vq_utf8_valid(const char *text, size_t n)
{
    const uint8_t *s = (const uint8_t *)text;
    for (size_t i = 0; i < n;) {
        uint64_t eight;
        if (n - i >= sizeof eight) {
            memcpy(&eight, s + i, sizeof eight);
            if (!(eight & UINT64_C(0x8080808080808080))) {
                i += sizeof eight;
                continue;
            }
        }
        int length = sequence(s + i, n - i);
        if (length < 0) return i;
        i += (size_t)length;
    }
    return n;
}

vq_status vq_utf8_repair(vq_arena *arena, const char *text, size_t n, const char **out,
                         size_t *n_out)
{
    *out = text;
    *n_out = n;
    size_t good = vq_utf8_valid(text, n);
    if (good == n) return VQ_OK;
    /* A broken byte becomes three. */
    char *copy;
    VQ_TRY(VQ_NEW(arena, (int64_t)(good + 3 * (n - good)), &copy));
    size_t from = 0, to = 0;
    while (from < n) {
        good = vq_utf8_valid(text + from, n - from);
        memcpy(copy + to, text + from, good);
        from += good;
        to += good;
        if (from == n) break;
        from += (size_t)-sequence((const uint8_t *)text + from, n - from);
        to += vq_utf8_encode(0xfffd, copy + to);
    }
    *out = copy;
    *n_out = to;
    return VQ_OK;
}

bool vq_utf8_is_space(int32_t c)
{
    if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool vq_utf8_is_word(int32_t c)
{
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: break;
    }
    /* Join_Control, and the circled and squared letters, which are Alphabetic. */
    return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) ||
           (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) ||
           (c >= 0x1f170 && c <= 0x1f189);
}
