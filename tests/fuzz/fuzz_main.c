/* fuzz_main - runs a fuzz target without libFuzzer: any compiler, the same inputs for a seed.
 *
 *   fuzz_x [-seconds N] [-n N] [-seed N] [-first N] [-dict FILE] SEED_FILE_OR_FOLDER...
 *
 * First every seed file runs as it is, then mutations of them. Mutation i depends on the seed, i
 * and the seed files alone, so "-seed S -first I -n 1" runs one again. A child process runs the
 * inputs and keeps the current one in shared memory: however it dies, the parent can save it. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "log.h"
#include "rng.h"

#define INPUT_MAX ((size_t)4 << 20)
#define HANG_S 30 /* a sanitizer build on a busy machine is slow */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct bytes {
    uint8_t *data;
    size_t size;
} bytes;

typedef struct list {
    bytes *item;
    int count;
} list;

/* What the parent needs to know of the child. */
typedef struct shared {
    int64_t runs;  /* inputs begun */
    int64_t index; /* of the mutation, -1 for a seed as it is */
    bool finished; /* all inputs were run */
    size_t size;
    uint8_t data[INPUT_MAX];
} shared;

typedef struct options {
    double seconds;
    int64_t n, first;
    uint64_t seed;
    list seeds, words;
} options;

static _Noreturn void die(const char *what, const char *name)
{
    fprintf(stderr, "fuzz: %s: %s\n", name, what);
    exit(2);
}

static void *take(size_t size)
{
    void *p = malloc(size ? size : 1);
    if (!p) die("out of memory", "malloc");
    return p;
}

static void append(list *l, const void *data, size_t size)
{
    l->item = realloc(l->item, (size_t)(l->count + 1) * sizeof *l->item);
    if (!l->item) die("out of memory", "realloc");
    bytes *b = &l->item[l->count++];
    *b = (bytes){take(size), size};
    if (size) memcpy(b->data, data, size);
}

static void clear(list *l)
{
    for (int i = 0; i < l->count; i++) free(l->item[i].data);
    free(l->item);
}

static void read_file(list *l, const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) die(strerror(errno), path);
    uint8_t *data = take(INPUT_MAX);
    size_t size = fread(data, 1, INPUT_MAX, f);
    fclose(f);
    append(l, data, size);
    free(data);
}

/* A file, or the files of a folder by name. */
static void read_seeds(list *l, const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) die(strerror(errno), path);
    if (!S_ISDIR(st.st_mode)) {
        read_file(l, path);
        return;
    }
    struct dirent **entry;
    int n = scandir(path, &entry, NULL, alphasort);
    if (n < 0) die(strerror(errno), path);
    for (int i = 0; i < n; i++) {
        char file[4096];
        snprintf(file, sizeof file, "%s/%s", path, entry[i]->d_name);
        if (stat(file, &st) == 0 && S_ISREG(st.st_mode)) read_file(l, file);
        free(entry[i]);
    }
    free(entry);
}

/* libFuzzer's format: lines of "word", where \xNN, \\ and \" are escapes; # begins a comment. */
static void read_dictionary(list *l, const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f) die(strerror(errno), path);
    char line[1024];
    while (fgets(line, sizeof line, f)) {
        uint8_t word[sizeof line];
        size_t n = 0;
        const char *p = line[0] == '#' ? NULL : strchr(line, '"');
        if (!p) continue;
        for (p++; *p && *p != '"'; p++) {
            unsigned code;
            if (sscanf(p, "\\x%2x", &code) == 1) {
                word[n++] = (uint8_t)code;
                p += 3;
            } else {
                if (*p == '\\' && p[1]) p++;
                word[n++] = (uint8_t)*p;
            }
        }
        append(l, word, n);
    }
    fclose(f);
}

/* The random choices of one mutation. */
typedef struct dice {
    uint64_t seed, stream, next;
} dice;

static size_t below(dice *d, size_t n)
{
    return n ? (size_t)vq_rng_below(d->seed, d->stream, d->next++, (int64_t)n) : 0;
}

/* Replaces n bytes at position at by the size bytes of data, as far as there is room. */
static void replace(bytes *b, size_t at, size_t n, const void *data, size_t size)
{
    n = VQ_MIN(n, b->size - at);
    size = VQ_MIN(size, INPUT_MAX - (b->size - n));
    memmove(b->data + at + size, b->data + at + n, b->size - at - n);
    if (size) memmove(b->data + at, data, size);
    b->size += size - n;
}

static void put_integer(bytes *b, dice *d)
{
    static const uint64_t edge[] = {0,
                                    1,
                                    0x7f,
                                    0x80,
                                    0xff,
                                    0x7fff,
                                    0xffff,
                                    0x7fffffff,
                                    0x80000000u,
                                    0xffffffffu,
                                    (uint64_t)1 << 60,
                                    INT64_MAX,
                                    (uint64_t)INT64_MAX + 1,
                                    UINT64_MAX};
    uint64_t value = edge[below(d, VQ_COUNT(edge))];
    if (below(d, 2)) value += below(d, 33) - 16;
    size_t width = (size_t)1 << below(d, 4);
    replace(b, below(d, b->size + 1), width, &value, width);
}

/* Finds a decimal number in the text and writes another in its place. */
static void put_number(bytes *b, dice *d)
{
    static const char *const other[] = {
        "0",    "-1",   "1e999", "9223372036854775807", "1.5",
        "null", "true", "65536", "1152921504606846976", "4294967296"};
    size_t at = below(d, b->size), n = 0;
    while (at < b->size && !isdigit(b->data[at])) at++;
    while (at + n < b->size && isdigit(b->data[at + n])) n++;
    const char *text = other[below(d, VQ_COUNT(other))];
    if (n) replace(b, at, n, text, strlen(text));
}

static void mutate(bytes *b, dice *d, const options *o)
{
    const bytes *seed = &o->seeds.item[below(d, (size_t)o->seeds.count)];
    size_t at = below(d, b->size), n = below(d, VQ_MIN(b->size - at, (size_t)64) + 1);
    switch (below(d, 9)) {
    case 0:
        if (b->size) b->data[at] ^= (uint8_t)(1u << below(d, 8));
        break;
    case 1:
        if (b->size) b->data[at] = (uint8_t)below(d, 256);
        break;
    case 2: put_integer(b, d); break;
    case 3: put_number(b, d); break;
    case 4: replace(b, at, n, NULL, 0); break; /* cut a piece out */
    case 5: b->size = at; break;               /* cut the rest off */
    case 6: {                                  /* a piece of a seed, put in or written over */
        size_t from = below(d, seed->size);
        size_t size = below(d, VQ_MIN(seed->size - from, (size_t)256) + 1);
        replace(b, at, below(d, 2) ? size : 0, seed->data + from, size);
        break;
    }
    case 7: { /* a piece of itself, twice */
        size_t from = below(d, b->size), size = below(d, VQ_MIN(b->size - from, (size_t)64) + 1);
        uint8_t piece[64];
        memcpy(piece, b->data + from, size);
        replace(b, at, 0, piece, size);
        break;
    }
    default:
        if (o->words.count) {
            const bytes *word = &o->words.item[below(d, (size_t)o->words.count)];
            replace(b, at, below(d, 2) ? word->size : 0, word->data, word->size);
        }
    }
}

static void run(shared *now, int64_t index)
{
    /* A block of exactly this size, so that a sanitizer sees the first byte beyond it. */
    uint8_t *data = take(now->size);
    memcpy(data, now->data, now->size);
    now->index = index;
    now->runs++;
    alarm(HANG_S);
    LLVMFuzzerTestOneInput(data, now->size);
    free(data);
}

static void run_all(shared *now, const options *o)
{
    double start = vq_seconds();
    for (int i = 0; i < o->seeds.count && o->first == 0; i++) {
        now->size = o->seeds.item[i].size;
        memcpy(now->data, o->seeds.item[i].data, now->size);
        run(now, -1);
    }
    for (int64_t i = o->first; i - o->first < o->n && vq_seconds() - start < o->seconds; i++) {
        dice d = {o->seed, (uint64_t)i, 0};
        const bytes *seed = &o->seeds.item[below(&d, (size_t)o->seeds.count)];
        bytes b = {now->data, seed->size};
        memcpy(b.data, seed->data, b.size);
        for (size_t times = 1 + below(&d, 8); times > 0; times--) mutate(&b, &d, o);
        now->size = b.size;
        run(now, i);
    }
    now->finished = true;
}

/* Says how the child died, and saves the input that it died of. Returns the exit code. */
static int report(const char *program, const shared *now, uint64_t seed, int status)
{
    if (now->finished) {
        fprintf(stderr,
                "fuzz: a leak, in one of %" PRId64 " inputs (seed %" PRIu64
                "). Run ranges of them with -first and -n\n",
                now->runs, seed);
        return 1;
    }
    const char *slash = strrchr(program, '/');
    char path[256];
    snprintf(path, sizeof path, "crash-%s-%" PRIu64 "-%" PRId64, slash ? slash + 1 : program, seed,
             now->index);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(now->data, 1, now->size, f) != now->size) die(strerror(errno), path);
    fclose(f);
    char folder[4096];
    if (!getcwd(folder, sizeof folder)) die(strerror(errno), "getcwd");
    if (WIFSIGNALED(status))
        fprintf(stderr, "fuzz: killed by signal %d%s\n", WTERMSIG(status),
                WTERMSIG(status) == SIGALRM ? " (an input took too long)" : "");
    else
        fprintf(stderr, "fuzz: exit code %d\n", WEXITSTATUS(status));
    fprintf(stderr,
            "fuzz: the last of %" PRId64 " inputs (seed %" PRIu64 ", mutation %" PRId64
            ") is in %s/%s. Run it again: %s %s/%s -n 0\n",
            now->runs, seed, now->index, folder, path, program, folder, path);
    return 1;
}

static options parse(int argc, char **argv)
{
    options o = {.seconds = 1e9, .n = INT64_MAX, .seed = 1};
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (name[0] != '-') {
            read_seeds(&o.seeds, name);
            continue;
        }
        if (!value) die("expected a value after it", name);
        i++;
        if (!strcmp(name, "-seconds"))
            o.seconds = strtod(value, NULL);
        else if (!strcmp(name, "-n"))
            o.n = strtoll(value, NULL, 10);
        else if (!strcmp(name, "-seed"))
            o.seed = strtoull(value, NULL, 10);
        else if (!strcmp(name, "-first"))
            o.first = strtoll(value, NULL, 10);
        else if (!strcmp(name, "-dict"))
            read_dictionary(&o.words, value);
        else
            die("unknown, expected -seconds, -n, -seed, -first or -dict", name);
    }
    if (!o.seeds.count) die("no seed files, expected some or a folder of them", argv[0]);
    return o;
}

int main(int argc, char **argv)
{
    options o = parse(argc, argv);
    shared *now =
        mmap(NULL, sizeof *now, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (now == MAP_FAILED) die(strerror(errno), "mmap");
    pid_t child = fork();
    if (child < 0) die(strerror(errno), "fork");
    if (child == 0) {
        run_all(now, &o);
        clear(&o.seeds);
        clear(&o.words);
        return 0;
    }
    int status, code = 0;
    if (waitpid(child, &status, 0) != child) die(strerror(errno), "waitpid");
    if (status != 0) code = report(argv[0], now, o.seed, status);
    printf("fuzz: seed %" PRIu64 ", %d seed files, %" PRId64 " inputs\n", o.seed, o.seeds.count,
           now->runs);
    clear(&o.seeds);
    clear(&o.words);
    return code;
}
