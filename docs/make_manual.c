/* make_manual - writes what the table of keys knows into a frame: where it says @MARKDOWN@, @ROFF@
 * or
 * @BASH@ stands the reference of all keys in that format.
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
    static const char *const marks[] = {
        [VQ_MARKDOWN] = "@MARKDOWN@\n", [VQ_ROFF] = "@ROFF@\n", [VQ_BASH] = "@BASH@\n"};
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
        int i = 0;
        while (i < VQ_COUNT(marks) && strcmp(line, marks[i]) != 0) i++;
        if (i < VQ_COUNT(marks))
            vq_config_print_reference(out, (vq_reference)i);
        else
            fputs(line, out);
    }
    fclose(frame);
    return fclose(out) == 0 ? 0 : fail(argv[2]);
}
