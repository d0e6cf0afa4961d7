/* pretokenize.h - a text to the pieces that byte-pair encoding never joins.
 *
 * Patterns are in Oniguruma's language, as tokenizer.json has them; PCRE2 runs them, after what
 * the two understand differently (white space, word characters) was rewritten. */
#pragma once
#include "normalize.h"

#define VQ_PRETOKEN_STEPS 16

typedef enum vq_prepend {
    VQ_PREPEND_NEVER,
    VQ_PREPEND_FIRST, /* only where the piece starts the whole text */
    VQ_PREPEND_ALWAYS
} vq_prepend;

typedef struct vq_pretoken_step {
    struct pcre2_real_code_8 *regex; /* NULL: this step only puts `mark` in */
    bool keep_matches, keep_gaps;    /* of the regex: which pieces go on */
    vq_prepend prepend;              /* mark, unless the piece starts with it */
    bool replace_spaces;             /* with mark */
    const char *mark;
} vq_pretoken_step;

typedef struct vq_pretokenizer {
    vq_pretoken_step steps[VQ_PRETOKEN_STEPS];
    int n_steps;
    struct pcre2_real_match_data_8 *match;
    struct pcre2_real_match_context_8 *context;
    struct pcre2_real_jit_stack_8 *stack;
} vq_pretokenizer;

/* The pattern of GPT-2: contractions, words, numbers, the rest, each with a space before it. */
extern const char *const vq_gpt2_pattern;

/* No steps. Fails: VQ_EMEM. vq_pretokenizer_close gives the library's memory back. */
vq_status vq_pretokenizer_init(vq_pretokenizer *p);
void vq_pretokenizer_close(vq_pretokenizer *p);

/* Adds a split at the matches of pattern. where names the file in messages; arena is for
 * rewriting. Fails: VQ_EUNSUPPORTED (a pattern that PCRE2 does not take or understands
 * differently, too many steps). */
vq_status vq_pretokenizer_split(vq_pretokenizer *p, vq_arena *arena, const char *where,
                                const char *pattern, bool keep_matches, bool keep_gaps);

/* Adds a step that puts mark before a piece, and optionally in the place of its spaces. mark must
 * live as long as p. Fails: VQ_EUNSUPPORTED (too many steps). */
vq_status vq_pretokenizer_mark(vq_pretokenizer *p, const char *where, const char *mark,
                               vq_prepend prepend, bool replace_spaces);

/* Receives the pieces, none of them empty, from left to right. */
typedef vq_status (*vq_piece_fn)(void *context, const char *piece, size_t n);

typedef struct vq_pretoken_work {
    vq_arena *arena; /* the buffers grow in here */
    vq_buffer buffers[VQ_PRETOKEN_STEPS];
    vq_piece_fn emit;
    void *context;
} vq_pretoken_work;

/* Splits valid UTF-8; is_start says that it is the beginning of the whole text.
 * Fails: VQ_EMEM, VQ_EUNSUPPORTED (a pattern ran out of its limits), whatever emit fails with. */
vq_status vq_pretokenize(const vq_pretokenizer *p, vq_pretoken_work *work, const char *text,
                         size_t n, bool is_start);
