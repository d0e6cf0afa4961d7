/* expect.h - asserting on how a function failed, and files for a test. Included after cmocka.h. */
#pragma once
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

/* The status, and every one of the texts (ended by NULL) in the pending message. */
static inline void expect_error(vq_status status, vq_status code, ...)
{
    va_list texts;
    va_start(texts, code);
    if (status != code)
        fail_msg("%s, expected %d: %s", vq_status_name(status), code, vq_error_message());
    for (const char *text; (text = va_arg(texts, const char *));)
        if (!strstr(vq_error_message(), text))
            fail_msg("\"%s\" is not in: %s", text, vq_error_message());
    va_end(texts);
    vq_error_clear();
}

#define EXPECT_ERROR(call, code, ...) expect_error(call, code, __VA_ARGS__, (const char *)NULL)

/* VQ_OK, or the message. */
#define EXPECT_OK(call)                                                                            \
    do {                                                                                           \
        if ((call) != VQ_OK) fail_msg("%s: %s", #call, vq_error_message());                        \
    } while (0)
