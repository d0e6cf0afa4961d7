/* pack.h - whole numbers of a few bits packed into words of 32, without gaps.
 *
 * Value i takes the bits [i b, i b + b) of a stream whose bit p is bit p % 32 of word p / 32, so
 * that a value may lie in two words where b does not divide 32. GPTQ's files and
 * compressed-tensors' pack-quantized both have this order. All functions are pure. */
#pragma once
#include "base.h"

/* Words that n values of `bits` take. */
int64_t vq_pack_words(int64_t n, int bits);

/* value [n], each below 2^bits, bits 1 to 8, into word[0], word[stride]... The last word's unused
 * bits are 0. */
void vq_pack(uint32_t *word, int64_t stride, const uint8_t *value, int64_t n, int bits);

/* The other way. */
void vq_unpack(uint8_t *value, const uint32_t *word, int64_t stride, int64_t n, int bits);
