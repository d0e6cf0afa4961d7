/* make_manual - writes the man page: the frame, with the list of all options where it says @KEYS@.
 *
 *   make_manual FRAME OUTPUT */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "config.h"

static int fail(const char *path)
{
    fprintf(stderr, "make_manual: %s: %s\n", path, strerror(errno));
    return 1;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: make_manual FRAME OUTPUT\n");
        return VQ_EUSAGE;
    }
    FILE *frame = fopen(argv[1], "r");
    if (!frame) return fail(argv[1]);
    FILE *out = fopen(argv[2], "w");
    if (!out) return fail(argv[2]);
    char line[1024];
    while (fgets(line, sizeof line, frame)) {
        if (strcmp(line, "@KEYS@\n") == 0)
            vq_config_print_reference(out, VQ_ROFF);
        else
            fputs(line, out);
    }
    fclose(frame);
    return fclose(out) == 0 ? 0 : fail(argv[2]);
}
