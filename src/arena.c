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

/* --- the host's pages ------------------------------------------------------------------------ */

static vq_status host_reserve(void *ctx, size_t bytes, void **base)
{
    (void)ctx;
    /* PROT_NONE takes addresses only, also where the system does not overcommit memory. */
    *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    VQ_CHECK(*base != MAP_FAILED, VQ_EMEM,
             "%zu bytes of addresses could not be reserved. Raise the address space limit (ulimit "
             "-v unlimited)",
             bytes);
    return VQ_OK;
}

static vq_status host_commit(void *ctx, void *from, size_t bytes)
{
    (void)ctx;
    VQ_CHECK(mprotect(from, bytes, PROT_READ | PROT_WRITE) == 0, VQ_EMEM,
             "the system refused %zu more bytes. Lower seqlen or the batch, or use more stages",
             bytes);
    return VQ_OK;
}

/* They stay usable: the next that touches them takes fresh ones. */
static void host_give_back(void *ctx, void *from, size_t bytes)
{
    (void)ctx;
    madvise(from, bytes, MADV_DONTNEED);
}

static void host_release(void *ctx, void *base, size_t bytes)
{
    (void)ctx;
    munmap(base, bytes);
}

static const vq_pages host_pages = {.step_bytes = COMMIT_STEP,
                                    .reserve = host_reserve,
                                    .commit = host_commit,
                                    .give_back = host_give_back,
                                    .release = host_release};

/* --- the stack ------------------------------------------------------------------------------- */

/* Lies in the arena before the place of a block in its twin. */
struct vq_twin_mark {
    size_t used_bytes; /* of the twin, without the block */
    struct vq_twin_mark *before;
};

static const vq_pages *pages_of(const vq_arena *arena)
{
    return arena->pages ? arena->pages : &host_pages;
}

vq_status vq_arena_init_on(vq_arena *arena, const vq_pages *pages, const char *name,
                           size_t capacity_bytes)
{
    vq_arena a = {.name = name, .pages = pages};
    a.capacity_bytes = round_up(VQ_MAX(capacity_bytes, (size_t)1), pages_of(&a)->step_bytes);
    void *base;
    vq_status status = pages_of(&a)->reserve(pages_of(&a)->ctx, a.capacity_bytes, &base);
    if (status) return vq_error_context(status, "arena %s", name);
    a.base = base;
    *arena = a;
    return VQ_OK;
}

vq_status vq_arena_init(vq_arena *arena, const char *name, size_t capacity_bytes)
{
    return vq_arena_init_on(arena, NULL, name, capacity_bytes);
}

void vq_arena_close(vq_arena *arena)
{
    if (!arena->base) return;
    const vq_pages *pages = pages_of(arena);
    UNPOISON(arena->base, arena->committed_bytes);
    if (arena->committed_bytes) pages->give_back(pages->ctx, arena->base, arena->committed_bytes);
    pages->release(pages->ctx, arena->base, arena->capacity_bytes);
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
        const vq_pages *pages = pages_of(arena);
        size_t committed = VQ_MIN(round_up(end, pages->step_bytes), arena->capacity_bytes);
        uint8_t *from = arena->base + arena->committed_bytes;
        size_t more = committed - arena->committed_bytes;
        vq_status status = pages->commit(pages->ctx, from, more);
        if (status)
            return vq_error_context(status, "arena %s, after %zu bytes", arena->name,
                                    arena->committed_bytes);
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

vq_status vq_arena_array_twin(vq_arena *arena, int64_t count, size_t size, void **out)
{
    VQ_ASSERT(arena->twin);
    struct vq_twin_mark *mark = NULL;
    VQ_TRY(VQ_NEW(arena, 1, &mark));
    *mark = (struct vq_twin_mark){.used_bytes = arena->twin->used_bytes, .before = arena->last};
    arena->last = mark;
    return vq_arena_array(arena->twin, count, size, out);
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
    for (; arena->last && (uint8_t *)arena->last >= arena->base + mark;
         arena->last = arena->last->before)
        vq_arena_reset(arena->twin, arena->last->used_bytes);
#ifndef NDEBUG
    /* Whoever still reads this gets NaN. */
    UNPOISON(arena->base + mark, arena->used_bytes - mark);
    if (!arena->pages) memset(arena->base + mark, 0xff, arena->used_bytes - mark);
#endif
    POISON(arena->base + mark, arena->used_bytes - mark);
    arena->used_bytes = mark;
}

void vq_arena_trim(vq_arena *arena)
{
    if (arena->twin) vq_arena_trim(arena->twin);
    const vq_pages *pages = pages_of(arena);
    size_t from = round_up(arena->used_bytes, arena->pages ? pages->step_bytes : PAGE);
    if (!arena->base || from >= arena->committed_bytes) return;
    pages->give_back(pages->ctx, arena->base + from, arena->committed_bytes - from);
    if (arena->pages) arena->committed_bytes = from;
}
