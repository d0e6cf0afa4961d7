/* shim_fibers - runs a launch: block after block, each thread of a block a fiber.
 *
 * A fiber runs until it waits (at a barrier, in an exchange between lanes) or ends; then the next
 * one does. One that has ended takes up the next thread, so a kernel without barriers needs one
 * stack. Where all that are left wait for one that cannot come, the program ends with a message. */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <new>
#include <vector>

#include "shim.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define STACK_BYTES ((size_t)128 << 10)
#define GUARD_BYTES ((size_t)4096)
#define SHARED_MAX ((size_t)163 << 10) /* of a block, compute capability 8.0 */
#define STATIC_MAX ((size_t)48 << 10)
#define SHARED_GAP 64 /* between two arrays: an overrun is seen */
#define GRID_YZ_MAX 65535u

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace
{

enum wait_kind { READY, AT_BARRIER, AT_EXCHANGE, ENDED };

/* What a switch needs of a stack that does not run. */
struct context {
#if defined(__x86_64__)
    void *stack_pointer;
#else
    ucontext_t machine;
#endif
    void *fake_stack; /* ASan's */
    const void *bottom;
    size_t bytes;
};

struct fiber {
    context state;
    char *stack;
};

/* To shared memory, not made yet. */
struct copy {
    void *to;
    const void *from; /* NULL: zeros */
    size_t bytes;
};

struct thread {
    fiber *on; /* NULL: not begun, or ended */
    uint3 index;
    wait_kind wait;
    const char *what; /* it waits at: a file or an operation */
    int line;
    std::vector<copy> copies;
};

/* Lanes of one warp that exchange under one mask. Values are kept twice: a lane may begin the next
 * exchange while others have not yet read this one's. */
struct exchange {
    unsigned mask;
    unsigned arrived[2];
    uint64_t values[2][32];
    unsigned char turn[32];
    const char *operation;
};

struct array {
    const void *key;
    char *data;
    size_t bytes;
};

shim_launch *now;
char *dynamic_shared;
std::vector<thread> threads;
std::vector<std::vector<exchange>> warps;
std::vector<fiber *> idle;
thread *running;
context scheduler;
int n_waiting; /* at the barrier */

char *shared_memory;
size_t shared_used;
std::vector<array> arrays;

shim_order order = SHIM_UP;
long n_launches;
unsigned long long random_state = 1;

[[noreturn]] void report(const char *found)
{
    fflush(stdout);
    fprintf(stderr, "kernel %s <<<(%u, %u, %u), (%u, %u, %u)>>>, block (%u, %u, %u): %s\n",
            now->kernel, gridDim.x, gridDim.y, gridDim.z, blockDim.x, blockDim.y, blockDim.z,
            blockIdx.x, blockIdx.y, blockIdx.z, found);
    int shown = 0;
    wait_kind last = READY;
    const char *last_what = nullptr;
    int last_line = -1;
    for (const thread &t : threads) {
        if (t.wait == last && t.what == last_what && t.line == last_line) continue;
        last = t.wait;
        last_what = t.what;
        last_line = t.line;
        if (++shown > 16) break;
        fprintf(stderr, "  from thread (%u, %u, %u) on: %s %s:%d\n", t.index.x, t.index.y,
                t.index.z,
                t.wait == READY        ? "runs"
                : t.wait == ENDED      ? "has ended"
                : t.wait == AT_BARRIER ? "waits at the barrier"
                                       : "waits for other lanes in",
                t.wait == READY || t.wait == ENDED ? "" : t.what, t.line);
    }
    abort();
}

/* --- switching ------------------------------------------------------------------------------- */

#if defined(__x86_64__)
/* Keeps what a function call must keep on the stack, its pointer in *from, and goes on at `to`. */
extern "C" void shim_switch(void **from, void *to);
asm(".text\n"
    ".globl shim_switch\n"
    ".type shim_switch, @function\n"
    "shim_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size shim_switch, .-shim_switch\n");
#endif

void go(context *from, context *to)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from->fake_stack, to->bottom, to->bytes);
#endif
#if defined(__x86_64__)
    shim_switch(&from->stack_pointer, to->stack_pointer);
#else
    swapcontext(&from->machine, &to->machine);
#endif
#if defined(__SANITIZE_ADDRESS__)
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(from->fake_stack, &bottom, &bytes);
    if (from != &scheduler) { /* a fiber goes on: it comes from the scheduler */
        scheduler.bottom = bottom;
        scheduler.bytes = bytes;
    }
#endif
}

void fiber_main()
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.bytes);
#endif
    for (;;) {
        now->body(now);
        running->wait = ENDED;
        go(&running->on->state, &scheduler);
    }
}

fiber *take_fiber()
{
    if (!idle.empty()) {
        fiber *f = idle.back();
        idle.pop_back();
        return f;
    }
    char *stack = static_cast<char *>(mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (stack == MAP_FAILED || mprotect(stack, GUARD_BYTES, PROT_NONE) != 0) {
        perror("a fiber's stack");
        abort();
    }
    fiber *f = new (stack + GUARD_BYTES) fiber();
    f->stack = stack;
    f->state.bottom = f->stack;
    f->state.bytes = STACK_BYTES;
#if defined(__x86_64__)
    void **top = reinterpret_cast<void **>(f->stack + STACK_BYTES);
    *--top = nullptr; /* as after a call: the stack is aligned to 16 bytes but for 8 */
    *--top = reinterpret_cast<void *>(fiber_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    f->state.stack_pointer = top;
#else
    getcontext(&f->state.machine);
    f->state.machine.uc_stack = {f->stack, 0, STACK_BYTES};
    makecontext(&f->state.machine, fiber_main, 0);
#endif
    return f;
}

/* The running thread waits until its wait is READY. */
void wait_for_others()
{
    go(&running->on->state, &scheduler);
}

void run_thread(thread *t)
{
    if (!t->on) t->on = take_fiber();
    running = t;
    threadIdx = t->index;
    go(&scheduler, &t->on->state);
    if (t->wait != ENDED) return;
    if (!t->copies.empty()) report("a thread has ended and has not waited for its copies");
    idle.push_back(t->on);
    t->on = nullptr;
}

/* --- a block --------------------------------------------------------------------------------- */

void poison_shared(bool poison, const char *from, size_t bytes)
{
#if defined(__SANITIZE_ADDRESS__)
    if (poison)
        ASAN_POISON_MEMORY_REGION(from, bytes);
    else
        ASAN_UNPOISON_MEMORY_REGION(from, bytes);
#else
    (void)poison;
    (void)from;
    (void)bytes;
#endif
}

char *take_shared(size_t bytes)
{
    size_t begin = (shared_used + 127) / 128 * 128;
    char *data = shared_memory + begin;
    poison_shared(false, data, bytes);
    memset(data, 0xff, bytes); /* NaN, for whoever reads before anybody has written */
    shared_used = begin + bytes + SHARED_GAP;
    return data;
}

/* Place i of n in the order in which they run. */
size_t place(size_t i, size_t n)
{
    if (order == SHIM_UP) return i;
    if (order == SHIM_DOWN) return n - 1 - i;
    static size_t step = 1, first;
    if (i == 0) {
        random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
        first = (size_t)(random_state >> 33) % n;
        step = (size_t)(random_state >> 20) % n | 1;
        while (true) { /* a step that visits all */
            size_t a = step, b = n;
            while (b) {
                size_t r = a % b;
                a = b;
                b = r;
            }
            if (a == 1) break;
            step += 2;
        }
    }
    return (first + i * step) % n;
}

void run_block()
{
    size_t n = threads.size();
    for (size_t i = 0; i < n; i++) {
        thread &t = threads[i];
        t.wait = READY;
        t.index = {(unsigned)i % blockDim.x, (unsigned)i / blockDim.x % blockDim.y,
                   (unsigned)i / (blockDim.x * blockDim.y)};
    }
    for (std::vector<exchange> &w : warps) w.clear();
    arrays.clear();
    poison_shared(true, shared_memory, shared_used);
    shared_used = 0;
    dynamic_shared = now->shared_bytes ? take_shared(now->shared_bytes) : nullptr;
    n_waiting = 0;

    for (size_t left = n; left > 0;) {
        bool moved = false;
        for (size_t i = 0; i < n; i++) {
            thread &t = threads[place(i, n)];
            if (t.wait != READY) continue;
            run_thread(&t);
            moved = true;
            if (t.wait == ENDED) left--;
        }
        if (!moved && left > 0)
            report("no thread can go on: some have ended, or wait somewhere else");
    }
}

} // namespace

/* --- for kernels ----------------------------------------------------------------------------- */

void *shim_shared(const void *key, size_t bytes)
{
    for (const array &a : arrays)
        if (a.key == key) return a.data;
    size_t total = bytes;
    for (const array &a : arrays) total += a.bytes;
    if (total > STATIC_MAX) report("more than 48 KiB of VQ_SHARED");
    if (total + now->shared_bytes > SHARED_MAX) report("more than 163 KiB of shared memory");
    arrays.push_back({key, take_shared(bytes), bytes});
    return arrays.back().data;
}

void *shim_dynamic_shared(void)
{
    return dynamic_shared;
}

void shim_barrier(const char *file, int line)
{
    running->wait = AT_BARRIER;
    running->what = file;
    running->line = line;
    if (++n_waiting < (int)threads.size()) {
        wait_for_others();
        return;
    }
    n_waiting = 0;
    for (thread &t : threads) {
        if (t.line != line || strcmp(t.what, file) != 0)
            report("threads stand at different barriers");
        t.wait = READY;
    }
}

void shim_begin_copy(void *shared, const void *from, size_t bytes)
{
    const uintptr_t both = (uintptr_t)shared | (uintptr_t)from;
    if (both % bytes != 0) report("a copy to shared memory is not aligned to its size");
    running->copies.push_back({shared, from, bytes});
}

void shim_wait_copies(void)
{
    for (const copy &c : running->copies)
        if (c.from)
            memcpy(c.to, c.from, c.bytes);
        else
            memset(c.to, 0, c.bytes);
    running->copies.clear();
}

const uint64_t *shim_exchange(unsigned mask, uint64_t value, const char *operation)
{
    size_t mine = (size_t)(running - threads.data()), lane = mine % 32;
    running->what = operation;
    running->line = 0;
    if (!(mask >> lane & 1)) report("a lane takes part in an exchange whose mask leaves it out");
    if (mine / 32 * 32 + 32 - (size_t)__builtin_clz(mask) > threads.size())
        report("an exchange's mask names lanes that the block does not have");
    std::vector<exchange> &w = warps[mine / 32];
    exchange *e = nullptr;
    for (exchange &x : w)
        if (x.mask == mask) e = &x;
    if (!e) {
        w.reserve(64); /* pointers to values stay valid */
        if (w.size() == 64) report("more than 64 different masks in one warp");
        w.push_back({});
        e = &w.back();
        e->mask = mask;
    }
    unsigned side = e->turn[lane]++ & 1;
    if (e->arrived[side] == 0)
        e->operation = operation;
    else if (strcmp(e->operation, operation) != 0)
        report("lanes of a warp stand at different exchanges");
    e->values[side][lane] = value;
    e->arrived[side] |= 1u << lane;
    if (e->arrived[side] != mask) {
        running->wait = AT_EXCHANGE;
        wait_for_others();
        return e->values[side];
    }
    e->arrived[side] = 0;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) threads[mine / 32 * 32 + i].wait = READY;
    return e->values[side];
}

/* --- for the host ---------------------------------------------------------------------------- */

static bool run_launch(void *argument)
{
    now = static_cast<shim_launch *>(argument);
    blockDim = now->threads;
    gridDim = now->blocks;
    size_t n = (size_t)blockDim.x * blockDim.y * blockDim.z;
    threads.assign(n, thread());
    warps.assign((n + 31) / 32, std::vector<exchange>());
    shim_enter_device();
    size_t n_blocks = (size_t)gridDim.x * gridDim.y * gridDim.z;
    for (size_t i = 0; i < n_blocks; i++) {
        size_t b = order == SHIM_DOWN ? n_blocks - 1 - i : i;
        blockIdx = {(unsigned)(b % gridDim.x), (unsigned)(b / gridDim.x % gridDim.y),
                    (unsigned)(b / gridDim.x / gridDim.y)};
        run_block();
    }
    shim_leave_device();
    return true;
}

cudaError_t shim_run(const shim_launch *launch, size_t bytes, cudaStream_t stream)
{
    const dim3 blocks = launch->blocks, block_threads = launch->threads;
    size_t n = (size_t)block_threads.x * block_threads.y * block_threads.z;
    if (n < 1 || n > 1024 || block_threads.z > 64 || blocks.x < 1 || blocks.y < 1 || blocks.z < 1 ||
        blocks.x > 2147483647u || blocks.y > GRID_YZ_MAX || blocks.z > GRID_YZ_MAX ||
        launch->shared_bytes > SHARED_MAX)
        return cudaErrorInvalidConfiguration;
    if (!shared_memory) {
        shared_memory = static_cast<char *>(mmap(nullptr, 2 * SHARED_MAX, PROT_READ | PROT_WRITE,
                                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (shared_memory == MAP_FAILED) abort();
        poison_shared(true, shared_memory, 2 * SHARED_MAX);
    }
    n_launches++;
    shim_before_kernel(stream);
    shim_queue(stream, run_launch, launch, bytes);
    return cudaSuccess;
}

void shim_set_order(shim_order new_order)
{
    order = new_order;
}

long shim_launches(void)
{
    return n_launches;
}
