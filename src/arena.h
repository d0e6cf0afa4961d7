/* arena.h - all memory of the program: four arenas, each a stack in one range of addresses.
 *
 * run (the whole life), model (weights, codes, indices), step (activations kept for the backward,
 * reset each step), scratch (mark and reset inside one function). An arena reserves addresses at
 * once and takes pages as they are needed, so a generous capacity costs nothing and a pointer
 * never moves. Outside libraries excepted, nothing else in the program allocates. Memory of a
 * device comes from arenas too: each of the four has a twin there. */
#pragma once
#include "base.h"

#define VQ_ALIGN ((size_t)64) /* of every allocation: a cache line, an AVX-512 register */

/* Where an arena's addresses and pages come from, if not from the host's system: a device. Sizes
 * are multiples of step_bytes. */
typedef struct vq_pages {
    void *ctx;
    size_t step_bytes;
    vq_status (*reserve)(void *ctx, size_t bytes, void **base); /* addresses alone */
    vq_status (*commit)(void *ctx, void *from, size_t bytes);   /* VQ_EMEM with a message */
    void (*give_back)(void *ctx, void *from, size_t bytes);     /* what was committed */
    void (*release)(void *ctx, void *base, size_t bytes);       /* the addresses */
} vq_pages;

typedef struct vq_arena {
    const char *name;
    uint8_t *base;
    size_t capacity_bytes;  /* reserved addresses */
    size_t committed_bytes; /* of them, usable */
    size_t used_bytes;
    size_t peak_bytes;
    const vq_pages *pages;     /* borrowed; NULL: the host's */
    struct vq_arena *twin;     /* borrowed; on a device, or NULL */
    struct vq_twin_mark *last; /* what the twin's newest block goes back to */
} vq_arena;

/* Reserves capacity_bytes of addresses. name must outlive the arena.
 * Fails: VQ_EMEM. Local. */
vq_status vq_arena_init(vq_arena *arena, const char *name, size_t capacity_bytes);

/* The same with pages of another source; borrowed, must outlive the arena. */
vq_status vq_arena_init_on(vq_arena *arena, const vq_pages *pages, const char *name,
                           size_t capacity_bytes);

/* Gives everything back. An arena that was never initialised (all zero) may be closed. */
void vq_arena_close(vq_arena *arena);

/* bytes of memory, aligned to VQ_ALIGN, not cleared. 0 bytes give a valid pointer.
 * Fails: VQ_EMEM, with the arena's name and the numbers. */
vq_status vq_arena_alloc(vq_arena *arena, size_t bytes, void **out);

/* The same for count things of size bytes; overflow of the product is an error. */
vq_status vq_arena_array(vq_arena *arena, int64_t count, size_t size, void **out);

/* A copy of n bytes of text and a NUL. */
vq_status vq_arena_text(vq_arena *arena, const char *text, size_t n, char **out);

/* The same as vq_arena_array from arena's twin, an arena on a device that arena->twin was set to: a
 * reset of arena to an earlier mark takes this back too. Fails: VQ_EINTERNAL (no twin), VQ_EMEM. */
vq_status vq_arena_array_twin(vq_arena *arena, int64_t count, size_t size, void **out);

/* Everything allocated after mark is gone after reset. */
size_t vq_arena_mark(const vq_arena *arena);
void vq_arena_reset(vq_arena *arena, size_t mark);

/* Gives the pages above what is used, and the twin's, back to the system, after a phase that used
 * many. */
void vq_arena_trim(vq_arena *arena);

/* count elements of type *ptr: VQ_TRY(VQ_NEW(arena, count, &ptr)). */
#define VQ_NEW(arena, count, ptr) vq_arena_array(arena, count, sizeof **(ptr), (void **)(ptr))
