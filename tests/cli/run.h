/* run.h - running vqround as a user does: arguments in; exit code, stdout and stderr out. And the
 * files that such tests need. Included after cmocka.h; every program works in a folder of its own,
 * which is removed at its end. */
#pragma once
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <jansson.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef DEADLINE_S
#define DEADLINE_S 180
#endif
#define TEXTS 32
#define MODELS TESTS_DIR "/models/"
#define CALIB ROOT_DIR "/configs/demo-model/calib.txt"
#define HELD_OUT ROOT_DIR "/configs/demo-model/eval.txt"

/* --- files ----------------------------------------------------------------------------------- */

/* A formatted text; the last TEXTS of them stay. */
__attribute__((format(printf, 1, 2))) static inline const char *text(const char *fmt, ...)
{
    static char texts[TEXTS][PATH_MAX];
    static int next;
    char *t = texts[next++ % TEXTS];
    va_list args;
    va_start(args, fmt);
    vsnprintf(t, PATH_MAX, fmt, args);
    va_end(args);
    return t;
}

static inline bool exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

/* All of a file with a NUL behind it, from malloc; n may be NULL. */
static inline char *read_file(const char *path, size_t *n)
{
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s cannot be read: %s", path, strerror(errno));
    struct stat st;
    assert_int_equal(fstat(fileno(file), &st), 0);
    char *data = malloc((size_t)st.st_size + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)st.st_size, file), st.st_size);
    fclose(file);
    data[st.st_size] = '\0';
    if (n) *n = (size_t)st.st_size;
    return data;
}

static inline void write_file(const char *path, const void *data, size_t n)
{
    FILE *file = fopen(path, "wb");
    if (!file) fail_msg("%s cannot be written: %s", path, strerror(errno));
    assert_int_equal(fwrite(data, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

static inline void write_text(const char *path, const char *data)
{
    write_file(path, data, strlen(data));
}

static inline void copy_file(const char *from, const char *to)
{
    size_t n;
    char *data = read_file(from, &n);
    write_file(to, data, n);
    free(data);
}

static inline void expect_same_files(const char *a, const char *b)
{
    size_t n, m;
    char *x = read_file(a, &n), *y = read_file(b, &m);
    if (n != m || memcmp(x, y, n) != 0) fail_msg("%s and %s differ", a, b);
    free(x);
    free(y);
}

static inline int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static inline void remove_all(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The first name in a folder, in their order, that begins and ends so, or NULL. */
static inline const char *find_name(const char *dir, const char *start, const char *end)
{
    DIR *d = opendir(dir);
    char first[NAME_MAX + 1] = "";
    for (struct dirent *e; d && (e = readdir(d));) {
        const size_t n = strlen(e->d_name), m = strlen(end);
        if (!strncmp(e->d_name, start, strlen(start)) && n >= m &&
            !strcmp(e->d_name + n - m, end) && (!first[0] || strcmp(e->d_name, first) < 0))
            snprintf(first, sizeof first, "%s", e->d_name);
    }
    if (d) closedir(d);
    return first[0] ? text("%s/%s", dir, first) : NULL;
}

/* The file's number, which a file that replaces it does not have. */
static inline ino_t number_of(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) fail_msg("%s is not there", path);
    return st.st_ino;
}

/* Changes n bytes of a file from `at` on. */
static inline void damage(const char *path, size_t at, size_t n)
{
    size_t bytes;
    char *data = read_file(path, &bytes);
    for (size_t i = at; i < at + n && i < bytes; i++) data[i] = (char)(data[i] ^ 0x55);
    write_file(path, data, bytes);
    free(data);
}

/* Copies a folder's files, and those of the folders in it. */
static inline void copy_folder(const char *from, const char *to)
{
    DIR *d = opendir(from);
    if (!d) fail_msg("%s cannot be listed: %s", from, strerror(errno));
    mkdir(to, 0777);
    for (struct dirent *e; (e = readdir(d));) {
        char a[PATH_MAX], b[PATH_MAX];
        struct stat st;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        assert_true(snprintf(a, sizeof a, "%s/%s", from, e->d_name) < PATH_MAX);
        assert_true(snprintf(b, sizeof b, "%s/%s", to, e->d_name) < PATH_MAX);
        assert_int_equal(stat(a, &st), 0);
        if (S_ISDIR(st.st_mode))
            copy_folder(a, b);
        else
            copy_file(a, b);
    }
    closedir(d);
}

/* One number of a JSON file or text, by keys separated by '/'; fails where it is missing. */
static inline double json_number(const json_t *root, const char *keys)
{
    char key[128];
    const json_t *at = root;
    for (const char *k = keys; *k; k += *k == '/') {
        const size_t n = strcspn(k, "/");
        snprintf(key, sizeof key, "%.*s", (int)n, k);
        at = json_object_get(at, key);
        k += n;
    }
    if (!json_is_number(at)) fail_msg("there is no number %s", keys);
    return json_number_value(at);
}

static inline json_t *load_json(const char *path)
{
    json_error_t e;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &e);
    if (!root) fail_msg("%s:%d: %s", path, e.line, e.text);
    return root;
}

/* --- the program ----------------------------------------------------------------------------- */

/* How the last run ended. */
typedef struct outcome {
    int code;        /* exit code, or 128 + the signal that ended it */
    char *out, *err; /* all of it */
} outcome;

static outcome last;

#define ARGS(...) ((const char *const[]){VQROUND, __VA_ARGS__, NULL})

/* Starts the program; its output goes into files. */
static inline pid_t start(const char *const *args)
{
    extern char **environ;
    pid_t pid;
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, "stdout.txt", O_WRONLY | O_CREAT | O_TRUNC, 0666);
    posix_spawn_file_actions_addopen(&files, 2, "stderr.txt", O_WRONLY | O_CREAT | O_TRUNC, 0666);
    int e = posix_spawn(&pid, args[0], &files, NULL, (char *const *)(uintptr_t)args, environ);
    posix_spawn_file_actions_destroy(&files);
    if (e) fail_msg("%s cannot be started: %s", args[0], strerror(e));
    return pid;
}

static inline void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

/* Whether the program has ended; then `last` says how. */
static inline bool has_ended(pid_t pid)
{
    int status;
    if (waitpid(pid, &status, WNOHANG) != pid) return false;
    free(last.out);
    free(last.err);
    last.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    last.out = read_file("stdout.txt", NULL);
    last.err = read_file("stderr.txt", NULL);
    return true;
}

static inline void finish(pid_t pid)
{
    for (int i = 0; i < DEADLINE_S * 500; i++) {
        if (has_ended(pid)) return;
        sleep_ms(2);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    fail_msg("the program did not end in %d s", DEADLINE_S);
}

#define RUN(...) finish(start(ARGS(__VA_ARGS__)))

static inline void expect_code(int code)
{
    if (last.code != code) fail_msg("exit code %d, expected %d: %s", last.code, code, last.err);
}

/* Exit code 0. */
#define RUN_OK(...)                                                                                \
    do {                                                                                           \
        RUN(__VA_ARGS__);                                                                          \
        expect_code(0);                                                                            \
    } while (0)

/* Every text up to NULL is in stderr. */
static inline void expect_words(const char *word, ...)
{
    va_list words;
    va_start(words, word);
    for (; word; word = va_arg(words, const char *))
        if (!strstr(last.err, word)) fail_msg("\"%s\" is not in: %s", word, last.err);
    va_end(words);
}

/* Exit code; nothing on stdout; one error line on stderr, which ends the output and has the words.
 * (Before it there may be progress, unless --quiet was given.) */
#define EXPECT_FAILED(code, ...)                                                                   \
    do {                                                                                           \
        expect_code(code);                                                                         \
        assert_string_equal(last.out, "");                                                         \
        const char *error_ = strstr(last.err, "vqround: error: ");                                 \
        if (!error_) fail_msg("no error line: %s", last.err);                                      \
        if (strchr(error_, '\n') != last.err + strlen(last.err) - 1)                               \
            fail_msg("not one line: %s", error_);                                                  \
        expect_words(__VA_ARGS__, (const char *)NULL);                                             \
    } while (0)

/* The last line of stdout as JSON. */
static inline json_t *last_json(void)
{
    size_t n = strlen(last.out);
    if (n == 0 || last.out[n - 1] != '\n') fail_msg("no whole line on stdout: \"%s\"", last.out);
    char *line = last.out + n - 1;
    while (line > last.out && line[-1] != '\n') line--;
    json_error_t e;
    json_t *root = json_loads(line, JSON_REJECT_DUPLICATES, &e);
    if (!root) fail_msg("%s: %s", e.text, line);
    return root;
}

/* --- a folder for the test, and a model in it ------------------------------------------------ */

static char work_folder[PATH_MAX];

static inline int enter_folder(void **state)
{
    (void)state;
    char name[] = "cli-XXXXXX";
    if (!mkdtemp(name) || chdir(name) != 0 || !getcwd(work_folder, sizeof work_folder)) return -1;
    return 0;
}

static inline int leave_folder(void **state)
{
    (void)state;
    free(last.out);
    free(last.err);
    if (chdir("..") != 0) return -1;
    remove_all(work_folder);
    return 0;
}

/* A byte-level tokenizer without merges: a token a character, ids 0 to 97. */
static inline void write_tokenizer(const char *path)
{
    json_t *vocab = json_object();
    char name[2] = " ";
    json_object_set_new(vocab, "<unk>", json_integer(0));
    json_object_set_new(vocab, "\xc4\xa0", json_integer(1)); /* a space */
    json_object_set_new(vocab, "\xc4\x8a", json_integer(2)); /* a newline */
    for (char c = '!'; c <= '~'; c++) {
        name[0] = c;
        json_object_set_new(vocab, name, json_integer(c - '!' + 3));
    }
    json_t *root = json_pack(
        "{s:s, s:[], s:n, s:{s:s, s:b, s:b, s:b}, s:n, s:{s:s, s:b, s:b, s:b},"
        " s:{s:s, s:n, s:n, s:s, s:s, s:b, s:b, s:o, s:[]}}",
        "version", "1.0", "added_tokens", "normalizer", "pre_tokenizer", "type", "ByteLevel",
        "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 1, "post_processor", "decoder",
        "type", "ByteLevel", "add_prefix_space", 1, "trim_offsets", 1, "use_regex", 1, "model",
        "type", "BPE", "dropout", "unk_token", "continuing_subword_prefix", "",
        "end_of_word_suffix", "", "fuse_unk", 0, "byte_fallback", 0, "vocab", vocab, "merges");
    assert_non_null(root);
    assert_int_equal(json_dump_file(root, path, 0), 0);
    json_decref(root);
}

/* A copy of one of tests/models, with that tokenizer where it has none. */
static inline void make_model(const char *from, const char *to)
{
    remove_all(to);
    copy_folder(text(MODELS "%s", from), to);
    if (!find_name(to, "tokenizer", "") && !find_name(to, "vocab", ".json"))
        write_tokenizer(text("%s/tokenizer.json", to));
}
