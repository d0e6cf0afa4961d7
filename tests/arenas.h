/* arenas.h - the memory that the tests of a program share. Included after cmocka.h. */
#pragma once
#include "arena.h"
#include "expect.h"

static vq_arena arena, scratch;

/* Of a group of tests, or called with NULL. */
static inline int open_arenas(void **state)
{
    (void)state;
    EXPECT_OK(vq_arena_init(&arena, "test", (size_t)1 << 30));
    EXPECT_OK(vq_arena_init(&scratch, "test scratch", (size_t)1 << 30));
    return 0;
}

static inline int close_arenas(void **state)
{
    (void)state;
    vq_arena_close(&arena);
    vq_arena_close(&scratch);
    return 0;
}
