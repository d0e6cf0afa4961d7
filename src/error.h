/* error.h - how a function fails: it sets the pending message and returns a code.
 *
 * A message has four parts: where (file, line or key) - what was found - what was expected - what
 * to do. The pending error belongs to the thread; main() or the rank's guard prints it. */
#pragma once
#include "base.h"

/* Sets the pending error and returns code. file and line are the program's own (shown with
 * --verbose only). Local. */
vq_status vq_error_set(vq_status code, const char *file, int line, const char *fmt, ...)
    VQ_PRINTF(4, 5);

/* Puts "fmt: " before the pending message: where the caller was. Returns code, unchanged. */
vq_status vq_error_context(vq_status code, const char *fmt, ...) VQ_PRINTF(2, 3);

/* The pending message, "" if none. Valid until the thread's next vq_error_set. */
const char *vq_error_message(void);

/* Where in the program the pending error was made, "file.c:123". */
const char *vq_error_origin(void);

/* Forgets the pending error (a test, or an alternative that worked). */
void vq_error_clear(void);

/* One word for a code: "usage", "file", "memory"... */
const char *vq_status_name(vq_status code);

/* Fails with code and a message. */
#define VQ_FAIL(code, ...)                                                                         \
    do {                                                                                           \
        vq_error_set((code), __FILE__, __LINE__, __VA_ARGS__);                                     \
        return (code);                                                                             \
    } while (0)

/* Passes a failure on. */
#define VQ_TRY(call)                                                                               \
    do {                                                                                           \
        vq_status try_status_ = (call);                                                            \
        if (try_status_ != VQ_OK) return try_status_;                                              \
    } while (0)

/* The input or the environment is at fault: always on. */
#define VQ_CHECK(cond, code, ...)                                                                  \
    do {                                                                                           \
        if (!(cond)) VQ_FAIL(code, __VA_ARGS__);                                                   \
    } while (0)

/* The program is at fault. Always on too: a check costs nothing beside a matrix product. */
#define VQ_ASSERT(cond)                                                                            \
    do {                                                                                           \
        if (!(cond))                                                                               \
            VQ_FAIL(VQ_EINTERNAL,                                                                  \
                    "%s:%d: expected %s. This is a bug of vqround: please report it", __FILE__,    \
                    __LINE__, #cond);                                                              \
    } while (0)

/* Narrowing with a check, for libraries that take int. what names the number in the message. */
vq_status vq_int(int64_t value, const char *what, int *out);
