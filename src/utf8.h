/* utf8.h - code points in bytes: reading them, and repairing text that is not UTF-8. */
#pragma once
#include "arena.h"

/* The code point that starts at text[0], n >= 1 bytes being there; *length is its size in bytes.
 * The text must be valid UTF-8. */
int32_t vq_utf8_decode(const char *text, size_t n, size_t *length);

/* Writes the code point into out. Returns its size in bytes, 1 to 4. */
size_t vq_utf8_encode(int32_t code, char out[4]);

/* The end of the valid UTF-8 that text starts with; n when all of it is valid. Surrogates and
 * overlong forms are not valid. */
size_t vq_utf8_valid(const char *text, size_t n);

/* text itself where it is valid, otherwise a copy in the arena in which each longest invalid
 * sequence has become U+FFFD, as Python's bytes.decode("utf-8", errors="replace") does it.
 * Fails: VQ_EMEM. Local. */
vq_status vq_utf8_repair(vq_arena *arena, const char *text, size_t n, const char **out,
                         size_t *n_out);

/* Unicode's White_Space, and what regular expressions call a word character (\w). */
bool vq_utf8_is_space(int32_t code);
bool vq_utf8_is_word(int32_t code);
