/* tokenizer.h - text to token ids, the same ids as Hugging Face's tokenizers give.
 *
 * Read are, in this order, tokenizer.json; vocab.json with merges.txt; tokenizer.model. The model
 * must be a BPE: of bytes (GPT-2, OPT, Qwen, LLaMA-3) or of characters with byte fallback (LLaMA,
 * LLaMA-2). A tokenizer.json stands as it is written, which is what transformers 4 does; special
 * tokens that only tokenizer_config.json or special_tokens_map.json name are added to it. Without
 * a tokenizer.json, tokenizer_config.json says whether bos and eos are added. What is in the files
 * and not supported is an error, not other ids. */
#pragma once
#include "arena.h"

typedef struct vq_tokenizer vq_tokenizer;

/* Reads the tokenizer of a model folder. It lives in the arena, apart from what the regular
 * expression and sentencepiece libraries hold for it: vq_tokenizer_close gives that back.
 *
 * Fails: VQ_EFILE (no tokenizer there, malformed), VQ_EUNSUPPORTED (names the file, the key and
 * what is supported), VQ_EMEM. Local. */
vq_status vq_tokenizer_open(vq_arena *arena, const char *model_dir, vq_tokenizer **out);

/* The same from the bytes of one tokenizer.json; where stands in the messages. */
vq_status vq_tokenizer_parse(vq_arena *arena, const char *where, const char *json, size_t n_bytes,
                             vq_tokenizer **out);

void vq_tokenizer_close(vq_tokenizer *t);

/* Token ids of text, with the special tokens (bos...) that Hugging Face adds by itself. Bytes that
 * are not UTF-8 become U+FFFD first, as with Python's errors="replace".
 *
 * arena    takes the ids, i32 [count], and nothing else
 * scratch  is used up to about 20 times the text, where nothing splits it 150 times, and reset;
 *          another arena than the first
 *
 * One thread at a time per tokenizer. The ids depend on nothing but the text.
 * Fails: VQ_EMEM, VQ_EUNSUPPORTED (a regular expression ran out of its limits). Local. */
vq_status vq_tokenizer_encode(const vq_tokenizer *t, vq_arena *arena, vq_arena *scratch,
                              const char *text, size_t n_bytes, int32_t **ids, int64_t *count);

/* A few words for logs, such as "byte-level BPE, tokenizer.json". */
const char *vq_tokenizer_kind(const vq_tokenizer *t);
