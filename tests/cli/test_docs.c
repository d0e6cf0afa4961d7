/* test_docs - what the documentation says is so: the keys, what bash completes, where links lead,
 * and that every message of docs/troubleshooting.md is in the source. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "run.h"

/* A file that the build makes beside the program. */
static const char *built(const char *name)
{
    return text("%.*s/%s", (int)(strrchr(VQROUND, '/') - VQROUND), VQROUND, name);
}

static void keys_are_up_to_date(void **state)
{
    (void)state;
    size_t n, m;
    char *made = read_file(built("keys.md"), &n), *kept = read_file(ROOT_DIR "/docs/keys.md", &m);
    if (n != m || memcmp(made, kept, n) != 0)
        fail_msg(
            "docs/keys.md is not what src/config.c says. Run: cmake --build build --target keys");
    free(made);
    free(kept);
}

/* What bash offers after the words, the last of which is being typed. */
static void expect_completion(const char *words, const char *expected)
{
    const char *script =
        text("source %s; COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _vqround; echo "
             "\"${COMPREPLY[*]}\"",
             built("vqround.bash"), words);
    finish(start((const char *const[]){"/bin/bash", "-c", script, NULL}));
    expect_code(0);
    assert_string_equal(last.err, "");
    if (strcmp(last.out, text("%s\n", expected)) != 0)
        fail_msg("%s: offered %s, expected %s", words, last.out, expected);
}

static void bash_completes(void **state)
{
    (void)state;
    if (!exists("/bin/bash")) skip();
    expect_completion("vqround qu", "quantize");
    expect_completion("vqround quantize --eval-t", "--eval-text");
    expect_completion("vqround quantize --kmeans.engine ''", "vq faiss");
    expect_completion("vqround quantize --method = g", "gptq");
    expect_completion("vqround plan --chec", "--checkpoint-every --checkpoint.keep");
    expect_completion("vqround eval --bits", "");
    assert_int_equal(mkdir("models", 0777), 0);
    write_text("models.txt", "x");
    expect_completion("vqround quantize --model mod", "models");
    expect_completion("vqround quantize --text models.", "models.txt");
    expect_completion("vqround inspect models.", "models.txt");
}

/* Every relative link of a page leads to a file. */
static void check_links(const char *dir, const char *name)
{
    char *page = read_file(text("%s/%s", dir, name), NULL);
    for (const char *at = page; (at = strstr(at, "](")); at++) {
        const int n = (int)strcspn(at + 2, ")#");
        if (n == 0 || strstr(text("%.*s", n, at + 2), "://")) continue;
        if (!exists(text("%s/%.*s", dir, n, at + 2)))
            fail_msg("%s/%s: there is no %.*s", dir, name, n, at + 2);
    }
    free(page);
}

static void links_lead_somewhere(void **state)
{
    (void)state;
    DIR *d = opendir(ROOT_DIR "/docs");
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        if (strstr(e->d_name, ".md")) check_links(ROOT_DIR "/docs", e->d_name);
    closedir(d);
    check_links(ROOT_DIR, "README.md");
    check_links(ROOT_DIR "/bench", "README.md");
}

/* --- messages -------------------------------------------------------------------------------- */

static char *sources; /* all files, their string literals joined */

/* Takes out `" white space "`, which goes on with a literal. */
static void join_literals(char *s)
{
    char *to = s;
    while (*s) {
        const size_t n = *s == '"' ? 1 + strspn(s + 1, " \n") : 0;
        if (n > 1 && s[n] == '"' && memchr(s, '\n', n)) {
            s += n + 1;
            continue;
        }
        *to++ = *s++;
    }
    *to = '\0';
}

static void add_sources(const char *dir)
{
    DIR *d = opendir(text(ROOT_DIR "/%s", dir));
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        size_t n;
        struct stat st;
        const char *path = text(ROOT_DIR "/%s/%s", dir, e->d_name);
        if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) continue;
        char *file = read_file(path, &n);
        const size_t before = strlen(sources);
        sources = realloc(sources, before + n + 2);
        assert_non_null(sources);
        memcpy(sources + before, file, n);
        strcpy(sources + before + n, "\n");
        free(file);
    }
    closedir(d);
}

/* Whether what stands between the message's "..." is in the source, part behind part and near. */
static bool is_message(const char *message, size_t length)
{
    enum { NEAR = 200 };
    char parts[512];
    assert_true(length < sizeof parts);
    const size_t skipped = strncmp(message, "... ", 4) ? 0 : 4; /* else each place begins one */
    length -= skipped;
    memcpy(parts, message + skipped, length);
    parts[length] = '\0';
    char *next = strstr(parts, "...");
    if (next) *next = '\0';
    for (const char *at = sources; (at = strstr(at, parts)); at++) {
        const char *end = at + strlen(parts);
        char rest[512];
        strcpy(rest, next ? next + 3 : "");
        char *part = rest;
        while (part) {
            char *gap = strstr(part, "...");
            if (gap) *gap = '\0';
            const char *found = strstr(end, part);
            if (!found || found > end + NEAR) break;
            end = found + strlen(part);
            part = gap ? gap + 3 : NULL;
        }
        if (!part) return true;
    }
    return false;
}

static void messages_are_in_the_source(void **state)
{
    (void)state;
    static const char *const folders[] = {"src",         "mpi",          "kernels",
                                          "kernels/cpu", "kernels/cuda", "slurm"};
    char *page = read_file(ROOT_DIR "/docs/troubleshooting.md", NULL);
    int n = 0, missing = 0;
    sources = calloc(1, 1);
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) add_sources(folders[i]);
    join_literals(sources);
    for (char *line = page, *end; line; line = end ? end + 1 : NULL) {
        end = strchr(line, '\n');
        if (strncmp(line, "## Of others", 12) == 0) break;
        if (strncmp(line, "- `", 3) != 0) continue;
        const char *message = line + 3;
        const size_t length = strcspn(message, "`");
        n++;
        if (is_message(message, length)) continue;
        print_message("not in the source: %.*s\n", (int)length, message);
        missing++;
    }
    free(page);
    free(sources);
    assert_true(n > 30);
    if (missing) fail_msg("%d of %d messages of docs/troubleshooting.md do not exist", missing, n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_are_up_to_date),
        cmocka_unit_test(bash_completes),
        cmocka_unit_test(links_lead_somewhere),
        cmocka_unit_test(messages_are_in_the_source),
    };
    return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
