/* arena - reserved addresses, committed in steps as the stack grows. */
#include "arena.h"

#include <string.h>
#include <sys/mman.h>

#include "error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#endif

#define COMMIT_STEP ((size_t)2 << 20) /* a huge page */
#define PAGE ((size_t)4096)

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

vq_status vq_arena_init(vq_arena *arena, const char *name, size_t capacity_bytes)
{
    size_t capacity = round_up(VQ_MAX(capacity_bytes, (size_t)1), COMMIT_STEP);
    /* PROT_NONE takes addresses only, also where the system does not overcommit memory. */
    void *base =
        mmap(NULL, capacity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    VQ_CHECK(base != MAP_FAILED, VQ_EMEM,
             "arena %s: %zu bytes of addresses could not be reserved. Raise the address space "
             "limit (ulimit -v unlimited)",
             name, capacity);
    *arena = (vq_arena){.name = name, .base = base, .capacity_bytes = capacity};
    return VQ_OK;
}

void vq_arena_close(vq_arena *arena)
{
    if (!arena->base) return;
    UNPOISON(arena->base, arena->committed_bytes);
    munmap(arena->base, arena->capacity_bytes);
    *arena = (vq_arena){0};
}

vq_status vq_arena_alloc(vq_arena *arena, size_t bytes, void **out)
{
    VQ_ASSERT(arena->base);
    /* Under ASan a gap after each block makes an overrun visible. */
#if defined(__SANITIZE_ADDRESS__)
    size_t gap = VQ_ALIGN;
#else
    size_t gap = 0;
#endif
    VQ_CHECK(bytes <= arena->capacity_bytes - arena->used_bytes &&
                 round_up(bytes, VQ_ALIGN) + gap <= arena->capacity_bytes - arena->used_bytes,
             VQ_EMEM,
             "arena %s: %zu bytes asked for, %zu of %zu left. Lower seqlen or the batch, or use "
             "more stages",
             arena->name, bytes, arena->capacity_bytes - arena->used_bytes, arena->capacity_bytes);
    size_t end = arena->used_bytes + round_up(bytes, VQ_ALIGN) + gap;
    if (end > arena->committed_bytes) {
        size_t committed = VQ_MIN(round_up(end, COMMIT_STEP), arena->capacity_bytes);
        uint8_t *from = arena->base + arena->committed_bytes;
        size_t more = committed - arena->committed_bytes;
        VQ_CHECK(mprotect(from, more, PROT_READ | PROT_WRITE) == 0, VQ_EMEM,
                 "arena %s: the system refused %zu more bytes after %zu. Lower seqlen or the "
                 "batch, or use more stages",
                 arena->name, more, arena->committed_bytes);
        POISON(from, more);
        arena->committed_bytes = committed;
    }
    *out = arena->base + arena->used_bytes;
    UNPOISON(*out, bytes);
    arena->used_bytes = end;
    arena->peak_bytes = VQ_MAX(arena->peak_bytes, end);
    return VQ_OK;
}

vq_status vq_arena_array(vq_arena *arena, int64_t count, size_t size, void **out)
{
    VQ_CHECK(count >= 0 && (size == 0 || (uint64_t)count <= SIZE_MAX / size), VQ_EMEM,
             "arena %s: %lld elements of %zu bytes asked for, more than any memory. A size in the "
             "input is wrong",
             arena->name, (long long)count, size);
    return vq_arena_alloc(arena, (size_t)count * size, out);
}

vq_status vq_arena_text(vq_arena *arena, const char *text, size_t n, char **out)
{
    VQ_TRY(VQ_NEW(arena, (int64_t)n + 1, out));
    memcpy(*out, text, n);
    (*out)[n] = '\0';
    return VQ_OK;
}

size_t vq_arena_mark(const vq_arena *arena)
{
    return arena->used_bytes;
}

void vq_arena_reset(vq_arena *arena, size_t mark)
{
    if (mark >= arena->used_bytes) return;
#ifndef NDEBUG
    /* Whoever still reads this gets NaN. */
    UNPOISON(arena->base + mark, arena->used_bytes - mark);
    memset(arena->base + mark, 0xff, arena->used_bytes - mark);
#endif
    POISON(arena->base + mark, arena->used_bytes - mark);
    arena->used_bytes = mark;
}

void vq_arena_trim(vq_arena *arena)
{
    size_t from = round_up(arena->used_bytes, PAGE);
    if (arena->base && from < arena->committed_bytes)
        madvise(arena->base + from, arena->committed_bytes - from, MADV_DONTNEED);
}
