/* error - the pending error of a thread. */
#include "error.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MESSAGE_MAX 2048

static _Thread_local char message[MESSAGE_MAX];
static _Thread_local char origin[128];

vq_status vq_error_set(vq_status code, const char *file, int line, const char *fmt, ...)
{
    /* The arguments may point into the old message, so the new one is made beside it. */
    char text[MESSAGE_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    memcpy(message, text, sizeof message);
    const char *slash = strrchr(file, '/');
    snprintf(origin, sizeof origin, "%s:%d", slash ? slash + 1 : file, line);
    return code;
}

vq_status vq_error_context(vq_status code, const char *fmt, ...)
{
    char where[MESSAGE_MAX / 4], text[MESSAGE_MAX + MESSAGE_MAX / 4 + 2];
    va_list args;
    va_start(args, fmt);
    vsnprintf(where, sizeof where, fmt, args);
    va_end(args);
    snprintf(text, sizeof text, "%s: %s", where, message);
    memcpy(message, text, sizeof message - 1);
    return code;
}

const char *vq_error_message(void)
{
    return message;
}

const char *vq_error_origin(void)
{
    return origin;
}

void vq_error_clear(void)
{
    message[0] = origin[0] = '\0';
}

const char *vq_status_name(vq_status code)
{
    switch (code) {
    case VQ_OK: return "ok";
    case VQ_EUSAGE: return "usage";
    case VQ_EFILE: return "file";
    case VQ_EMEM: return "memory";
    case VQ_EINTERNAL: return "internal";
    case VQ_EPEER: return "peer";
    case VQ_ENOTFINITE: return "not finite";
    case VQ_EUNSUPPORTED: return "unsupported";
    case VQ_ESTOPPED: return "stopped";
    }
    return "unknown";
}

vq_status vq_int(int64_t value, const char *what, int *out)
{
    VQ_CHECK(value >= INT_MIN && value <= INT_MAX, VQ_EUNSUPPORTED,
             "%s = %lld: expected a number that fits 32 bits, as the library below takes. Use "
             "smaller windows or a smaller batch",
             what, (long long)value);
    *out = (int)value;
    return VQ_OK;
}
