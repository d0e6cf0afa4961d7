/* added - a trie over bytes, and the rules about what may stand beside a token. */
#include "added.h"

#include <string.h>

#include "error.h"
#include "utf8.h"

/* Node 0 is the root, so 0 also means none. */
typedef struct vq_added_node {
    const vq_added_token *token;
    int32_t child, sibling;
    uint8_t byte;
} node;

static int32_t find_child(const node *nodes, int32_t at, uint8_t byte)
{
    int32_t child = nodes[at].child;
    while (child && nodes[child].byte != byte) child = nodes[child].sibling;
    return child;
}

vq_status vq_added_trie_make(vq_arena *arena, const char *const *texts, const size_t *n_bytes,
                             const vq_added_token *const *tokens, int64_t n, vq_added_trie *out)
{
    size_t total = 1;
    for (int64_t i = 0; i < n; i++) total += n_bytes[i];
    VQ_CHECK(total < INT32_MAX, VQ_EUNSUPPORTED,
             "tokenizer: added tokens of %zu bytes together, expected less than %d. Use a "
             "tokenizer with fewer of them",
             total, INT32_MAX);
    *out = (vq_added_trie){0};
    VQ_TRY(VQ_NEW(arena, (int64_t)total, &out->nodes));
    node *nodes = out->nodes;
    int32_t n_nodes = 1;
    nodes[0] = (node){0};
    for (int64_t i = 0; i < n; i++) {
        int32_t at = 0;
        if (n_bytes[i] == 0) continue;
        out->starts[(uint8_t)texts[i][0]] = true;
        for (size_t k = 0; k < n_bytes[i]; k++) {
            uint8_t byte = (uint8_t)texts[i][k];
            int32_t child = find_child(nodes, at, byte);
            if (!child) {
                child = n_nodes++;
                nodes[child] = (node){.byte = byte, .sibling = nodes[at].child};
                nodes[at].child = child;
            }
            at = child;
        }
        nodes[at].token = tokens[i];
    }
    return VQ_OK;
}

/* The character that ends at text + at, at >= 1. */
static int32_t character_before(const char *text, size_t at, size_t *length)
{
    size_t start = at - 1;
    while (start > 0 && ((uint8_t)text[start] & 0xc0) == 0x80) start--;
    return vq_utf8_decode(text + start, at - start, length);
}

const vq_added_token *vq_added_next(const vq_added_trie *trie, const char *text, size_t n,
                                    size_t done, size_t *from, size_t *start, size_t *end)
{
    size_t length;
    for (size_t i = *from; i < n; i++) {
        if (!trie->starts[(uint8_t)text[i]]) continue;
        const vq_added_token *token = NULL;
        int32_t at = 0;
        for (size_t k = i; k < n && (at = find_child(trie->nodes, at, (uint8_t)text[k])); k++)
            if (trie->nodes[at].token) token = trie->nodes[at].token, *end = k + 1;
        if (!token) continue;
        *start = i;
        if (token->single_word &&
            ((i > 0 && vq_utf8_is_word(character_before(text, i, &length))) ||
             (*end < n && vq_utf8_is_word(vq_utf8_decode(text + *end, n - *end, &length))))) {
            i = *end - 1; /* part of a longer word: pass over it */
            continue;
        }
        *from = *end;
        while (token->lstrip && *start > done &&
               vq_utf8_is_space(character_before(text, *start, &length)))
            *start -= length;
        while (token->rstrip && *end < n &&
               vq_utf8_is_space(vq_utf8_decode(text + *end, n - *end, &length)))
            *end += length;
        return token;
    }
    return NULL;
}
