/* pretokenize - patterns compiled by PCRE2, and the steps applied to each other's pieces. */
#include "pretokenize.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#include "error.h"
#include "utf8.h"

const char *const vq_gpt2_pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

#define JIT_STACK_BYTES ((size_t)32 << 20)
#define MATCH_LIMIT                                                                                \
    (UINT32_C(1) << 28) /* steps: a run of 100 MB of spaces, or a pattern gone wrong */

vq_status vq_pretokenizer_init(vq_pretokenizer *p)
{
    *p = (vq_pretokenizer){0};
    p->match = pcre2_match_data_create(1, NULL);
    p->context = pcre2_match_context_create(NULL);
    p->stack = pcre2_jit_stack_create((size_t)32 << 10, JIT_STACK_BYTES, NULL);
    /* Without just-in-time compilation in the library there is no stack, and none is needed. */
    if (!p->match || !p->context) {
        vq_pretokenizer_close(p);
        VQ_FAIL(VQ_EMEM, "tokenizer: no memory for PCRE2's match data, expected a few hundred "
                         "bytes. Give the job more memory");
    }
    pcre2_set_match_limit(p->context, MATCH_LIMIT);
    if (p->stack) pcre2_jit_stack_assign(p->context, NULL, p->stack);
    return VQ_OK;
}

void vq_pretokenizer_close(vq_pretokenizer *p)
{
    for (int i = 0; i < p->n_steps; i++) pcre2_code_free(p->steps[i].regex);
    pcre2_match_data_free(p->match);
    pcre2_match_context_free(p->context);
    pcre2_jit_stack_free(p->stack);
    *p = (vq_pretokenizer){0};
}

/* White_Space: PCRE2's \s has U+180E as well. */
#define SPACES                                                                                     \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"             \
    "\\x{202f}\\x{205f}\\x{3000}"
#define NOT_SPACES                                                                                 \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-"         \
    "\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}"        \
    "\\x{3001}-\\x{d7ff}\\x{e000}-\\x{10ffff}"

/* Alphabetic, marks, digits and connectors; the ranges are circled and squared letters. */
#define WORD                                                                                       \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{"     \
    "1f169}"                                                                                       \
    "\\x{1f170}-\\x{1f189}"

/* What an escape stands for: as members of a class, and its complement's members if there are
 * any to list. */
static const struct {
    char letter, complement;
    const char *members, *others;
} escapes[] = {
    {'s', 'S', SPACES, NOT_SPACES},
    {'w', 'W', WORD, NULL},
    {'d', 'D', "\\p{Nd}", "\\P{Nd}"},
    {'h', 'H', "0-9A-Fa-f", NULL},
};

/* Rewrites the escape \letter into out. Returns false where it cannot be said. */
static vq_status put_escape(vq_arena *arena, vq_buffer *out, char letter, bool in_class, bool *said)
{
    *said = true;
    for (int i = 0; i < VQ_COUNT(escapes); i++) {
        bool plain = letter == escapes[i].letter;
        if (!plain && letter != escapes[i].complement) continue;
        const char *members = plain ? escapes[i].members : escapes[i].others;
        if (in_class) {
            if ((*said = members != NULL))
                VQ_TRY(vq_buffer_put(out, arena, members, strlen(members)));
            return VQ_OK;
        }
        VQ_TRY(vq_buffer_put(out, arena, "[^", plain ? 1 : 2));
        VQ_TRY(vq_buffer_put(out, arena, escapes[i].members, strlen(escapes[i].members)));
        return vq_buffer_put(out, arena, "]", 1);
    }
    char text[2] = {'\\', letter};
    return vq_buffer_put(out, arena, text, 2);
}

/* The same pattern in PCRE2's language. *refused is what has no equal there, or NULL. */
static vq_status translate(vq_arena *arena, const char *pattern, vq_buffer *out,
                           const char **refused)
{
    const char *members = NULL; /* of the class that s is in */
    bool said;
    *refused = NULL;
    for (const char *s = pattern; *s; s++) {
        if (s[0] == '\\' && s[1]) {
            VQ_TRY(put_escape(arena, out, *++s, members != NULL, &said));
            if (!said) *refused = s - 1;
            /* \p{L} and the like: their braces are no repeat. */
            const char *end = strchr("pPx", *s) && s[1] == '{' ? strchr(s, '}') : NULL;
            if (end) VQ_TRY(vq_buffer_put(out, arena, s + 1, (size_t)(end - s)));
            if (end) s = end;
            continue;
        }
        if (members) {
            /* Oniguruma: a class within a class is a union, && an intersection. */
            if (s[0] == '[' || (s[0] == '&' && s[1] == '&')) *refused = s;
            if (s[0] == ']' && s > members) members = NULL;
        } else if (s[0] == '[') {
            members = s + (s[1] == '^' ? 2 : 1);
        } else if (s[0] == '}' && s[1] == '+') {
            *refused = s; /* a repeat here, possessive in PCRE2 */
        }
        VQ_TRY(vq_buffer_put(out, arena, s, 1));
    }
    return VQ_OK;
}

static vq_status new_step(vq_pretokenizer *p, const char *where, vq_pretoken_step **out)
{
    VQ_CHECK(p->n_steps < VQ_PRETOKEN_STEPS, VQ_EUNSUPPORTED,
             "%s: pre_tokenizer has more than %d steps, expected a handful. Use a model with a "
             "simpler tokenizer",
             where, VQ_PRETOKEN_STEPS);
    *out = &p->steps[p->n_steps];
    **out = (vq_pretoken_step){0};
    return VQ_OK;
}

vq_status vq_pretokenizer_split(vq_pretokenizer *p, vq_arena *arena, const char *where,
                                const char *pattern, bool keep_matches, bool keep_gaps)
{
    vq_pretoken_step *step;
    vq_buffer text = {0};
    const char *refused;
    VQ_TRY(new_step(p, where, &step));
    VQ_TRY(translate(arena, pattern, &text, &refused));
    VQ_CHECK(
        !refused, VQ_EUNSUPPORTED,
        "%s: pattern \"%s\": \"%.16s\" means something else in PCRE2, expected a pattern that both "
        "Oniguruma and PCRE2 understand. Write the pattern in another way",
        where, pattern, refused);
    int error;
    PCRE2_SIZE place;
    pcre2_code *regex =
        pcre2_compile((PCRE2_SPTR)text.data, text.n_bytes, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE,
                      &error, &place, NULL);
    if (!regex) {
        PCRE2_UCHAR reason[256];
        pcre2_get_error_message(error, reason, sizeof reason);
        VQ_FAIL(VQ_EUNSUPPORTED,
                "%s: pattern \"%s\": PCRE2 says \"%s\", expected a regular expression it can run. "
                "Write "
                "the pattern in another way",
                where, pattern, (const char *)reason);
    }
    /* Refused where the library has no such compiler: then pcre2_match interprets. */
    pcre2_jit_compile(regex, PCRE2_JIT_COMPLETE);
    step->regex = regex;
    step->keep_matches = keep_matches;
    step->keep_gaps = keep_gaps;
    p->n_steps++;
    return VQ_OK;
}

vq_status vq_pretokenizer_mark(vq_pretokenizer *p, const char *where, const char *mark,
                               vq_prepend prepend, bool replace_spaces)
{
    vq_pretoken_step *step;
    VQ_TRY(new_step(p, where, &step));
    step->mark = mark;
    step->prepend = prepend;
    step->replace_spaces = replace_spaces;
    p->n_steps++;
    return VQ_OK;
}

/* The next match at or after `from`; *found false where there is none. */
static vq_status next_match(const vq_pretokenizer *p, const pcre2_code *regex, const char *text,
                            size_t n, size_t from, bool *found, size_t *start, size_t *end)
{
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    int rc = pcre2_match(regex, subject, n, from, PCRE2_NO_UTF_CHECK, p->match, p->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter takes its memory from the heap */
        rc = pcre2_match(regex, subject, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, p->match,
                         p->context);
    *found = rc >= 0;
    if (*found) {
        *start = pcre2_get_ovector_pointer(p->match)[0];
        *end = pcre2_get_ovector_pointer(p->match)[1];
    }
    VQ_CHECK(rc >= 0 || rc == PCRE2_ERROR_NOMATCH, VQ_EUNSUPPORTED,
             "text: PCRE2 gave up on %zu bytes (error %d), expected a text that the tokenizer's "
             "pattern can be matched against. Break the text into documents",
             n, rc);
    return VQ_OK;
}

static vq_status run(const vq_pretokenizer *p, vq_pretoken_work *work, int i, const char *text,
                     size_t n, bool is_start);

static vq_status split(const vq_pretokenizer *p, vq_pretoken_work *work, int i, const char *text,
                       size_t n, bool is_start)
{
    const vq_pretoken_step *step = &p->steps[i];
    size_t done = 0, from = 0, start, end;
    while (from < n) {
        bool found;
        VQ_TRY(next_match(p, step->regex, text, n, from, &found, &start, &end));
        if (!found) break;
        if (step->keep_gaps)
            VQ_TRY(run(p, work, i + 1, text + done, start - done, is_start && done == 0));
        if (step->keep_matches)
            VQ_TRY(run(p, work, i + 1, text + start, end - start, is_start && start == 0));
        done = from = end;
        if (start == end && end < n) { /* an empty match: look on behind the next character */
            size_t length;
            vq_utf8_decode(text + end, n - end, &length);
            from += length;
        }
    }
    return step->keep_gaps ? run(p, work, i + 1, text + done, n - done, is_start && done == 0)
                           : VQ_OK;
}

static vq_status put_marks(const vq_pretokenizer *p, vq_pretoken_work *work, int i,
                           const char *text, size_t n, bool is_start)
{
    const vq_pretoken_step *step = &p->steps[i];
    vq_buffer *out = &work->buffers[i];
    size_t n_mark = strlen(step->mark);
    bool starts = (n >= n_mark && memcmp(text, step->mark, n_mark) == 0) ||
                  (step->replace_spaces && text[0] == ' ');
    bool prepend =
        step->prepend == VQ_PREPEND_ALWAYS || (step->prepend == VQ_PREPEND_FIRST && is_start);
    out->n_bytes = 0;
    if (prepend && !starts) VQ_TRY(vq_buffer_put(out, work->arena, step->mark, n_mark));
    const char *end = text + n, *space;
    while (step->replace_spaces && (space = memchr(text, ' ', (size_t)(end - text)))) {
        VQ_TRY(vq_buffer_put(out, work->arena, text, (size_t)(space - text)));
        VQ_TRY(vq_buffer_put(out, work->arena, step->mark, n_mark));
        text = space + 1;
    }
    VQ_TRY(vq_buffer_put(out, work->arena, text, (size_t)(end - text)));
    return run(p, work, i + 1, out->data, out->n_bytes, is_start);
}

/* Steps from i on. Each keeps its own buffer, so a piece lives until it was taken apart. */
static vq_status run(const vq_pretokenizer *p, vq_pretoken_work *work, int i, const char *text,
                     size_t n, bool is_start)
{
    if (n == 0) return VQ_OK;
    if (i == p->n_steps) return work->emit(work->context, text, n);
    return p->steps[i].regex ? split(p, work, i, text, n, is_start)
                             : put_marks(p, work, i, text, n, is_start);
}

vq_status vq_pretokenize(const vq_pretokenizer *p, vq_pretoken_work *work, const char *text,
                         size_t n, bool is_start)
{
    return run(p, work, 0, text, n, is_start);
}
