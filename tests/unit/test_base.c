/* test_base - errors, arenas, log texts, random numbers, tensors and float conversion. */
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <pty.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "arena.h"
#include "error.h"
#include "log.h"
#include "rng.h"
#include "tensor.h"

/* --- error --------------------------------------------------------------------------------- */

static vq_status read_bits(int bits)
{
    VQ_CHECK(bits == 4, VQ_EUSAGE, "bits = %d: expected 4. Change it", bits);
    return VQ_OK;
}

static vq_status read_config(int bits)
{
    VQ_TRY(read_bits(bits));
    return VQ_OK;
}

static void error_message_and_code_come_out(void **state)
{
    (void)state;
    vq_error_clear();
    assert_int_equal(read_config(4), VQ_OK);
    assert_string_equal(vq_error_message(), "");
    assert_int_equal(read_config(9), VQ_EUSAGE);
    assert_string_equal(vq_error_message(), "bits = 9: expected 4. Change it");
    assert_memory_equal(vq_error_origin(), "test_base.c:", 12);
    vq_error_clear();
    assert_string_equal(vq_error_message(), "");
    assert_string_equal(vq_error_origin(), "");
}

static void error_context_goes_in_front(void **state)
{
    (void)state;
    vq_status status = vq_error_context(read_config(9), "%s:%d", "a.yaml", 14);
    assert_int_equal(status, VQ_EUSAGE);
    assert_string_equal(vq_error_message(), "a.yaml:14: bits = 9: expected 4. Change it");
}

static void error_may_quote_the_old_message(void **state)
{
    (void)state;
    read_config(9);
    assert_int_equal(vq_error_set(VQ_EFILE, "dir/file.c", 7, "again: %s", vq_error_message()),
                     VQ_EFILE);
    assert_string_equal(vq_error_message(), "again: bits = 9: expected 4. Change it");
    assert_string_equal(vq_error_origin(), "file.c:7");
}

static void error_too_long_is_cut(void **state)
{
    (void)state;
    char longer[8192];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    vq_error_set(VQ_EFILE, "f.c", 1, "%s", longer);
    size_t n = strlen(vq_error_message());
    assert_true(n > 1000 && n < sizeof longer - 1);
    vq_error_context(VQ_EFILE, "%s", longer);
    assert_int_equal(strlen(vq_error_message()), n);
}

static void *other_thread(void *arg)
{
    (void)arg;
    return (void *)(uintptr_t)(vq_error_message()[0] == '\0' && read_config(3) == VQ_EUSAGE);
}

static void error_belongs_to_its_thread(void **state)
{
    (void)state;
    read_config(9);
    pthread_t thread;
    void *fine;
    assert_int_equal(pthread_create(&thread, NULL, other_thread, NULL), 0);
    assert_int_equal(pthread_join(thread, &fine), 0);
    assert_non_null(fine);
    assert_string_equal(vq_error_message(), "bits = 9: expected 4. Change it");
}

static void int_narrows_or_fails(void **state)
{
    (void)state;
    int out = 0;
    assert_int_equal(vq_int(INT_MIN, "rows", &out), VQ_OK);
    assert_int_equal(out, INT_MIN);
    assert_int_equal(vq_int(INT_MAX, "rows", &out), VQ_OK);
    assert_int_equal(out, INT_MAX);
    assert_int_equal(vq_int((int64_t)INT_MAX + 1, "rows", &out), VQ_EUNSUPPORTED);
    assert_non_null(strstr(vq_error_message(), "rows = 2147483648"));
    assert_int_equal(out, INT_MAX);
}

static void status_names(void **state)
{
    (void)state;
    const struct {
        vq_status code;
        int exit_code;
        const char *name;
    } all[] = {{VQ_OK, 0, "ok"},
               {VQ_EUSAGE, 2, "usage"},
               {VQ_EFILE, 3, "file"},
               {VQ_EMEM, 4, "memory"},
               {VQ_EINTERNAL, 5, "internal"},
               {VQ_EPEER, 6, "peer"},
               {VQ_ENOTFINITE, 7, "not finite"},
               {VQ_EUNSUPPORTED, 8, "unsupported"},
               {VQ_ESTOPPED, 75, "stopped"}};
    for (int i = 0; i < VQ_COUNT(all); i++) {
        assert_int_equal(all[i].code, all[i].exit_code);
        assert_string_equal(vq_status_name(all[i].code), all[i].name);
    }
}

/* --- arena --------------------------------------------------------------------------------- */

static void arena_aligns_and_keeps(void **state)
{
    (void)state;
    vq_arena arena;
    assert_int_equal(vq_arena_init(&arena, "test", (size_t)64 << 20), VQ_OK);
    uint8_t *block[100];
    for (int i = 0; i < 100; i++) {
        size_t bytes = (size_t)i * 1999;
        assert_int_equal(vq_arena_alloc(&arena, bytes, (void **)&block[i]), VQ_OK);
        assert_int_equal((uintptr_t)block[i] % VQ_ALIGN, 0);
        memset(block[i], i, bytes);
    }
    for (int i = 1; i < 100; i++) {
        assert_int_equal(block[i][0], i);
        assert_int_equal(block[i][i * 1999 - 1], i);
    }
    assert_true(arena.committed_bytes <= arena.capacity_bytes);
    assert_true(arena.peak_bytes == arena.used_bytes);
    vq_arena_close(&arena);
    assert_null(arena.base);
    vq_arena_close(&arena);
}

static void arena_reset_takes_back(void **state)
{
    (void)state;
    vq_arena arena;
    assert_int_equal(vq_arena_init(&arena, "test", (size_t)8 << 20), VQ_OK);
    double *kept, *gone, *again;
    assert_int_equal(VQ_NEW(&arena, 10, &kept), VQ_OK);
    for (int i = 0; i < 10; i++) kept[i] = i;
    size_t mark = vq_arena_mark(&arena);
    assert_int_equal(VQ_NEW(&arena, 1000, &gone), VQ_OK);
    memset(gone, 0, 1000 * sizeof *gone);
    size_t peak = arena.peak_bytes;
    vq_arena_reset(&arena, mark);
    assert_int_equal(arena.used_bytes, mark);
    assert_int_equal(arena.peak_bytes, peak);
    vq_arena_reset(&arena, mark + 1000); /* above the top: nothing */
    assert_int_equal(arena.used_bytes, mark);
    assert_int_equal(VQ_NEW(&arena, 1000, &again), VQ_OK);
    assert_ptr_equal(again, gone);
#ifndef NDEBUG
    assert_true(isnan(again[0]) && isnan(again[999]));
#endif
    for (int i = 0; i < 10; i++) assert_true(kept[i] == i);
    vq_arena_close(&arena);
}

static void arena_full_says_so(void **state)
{
    (void)state;
    vq_arena arena;
    void *p;
    assert_int_equal(vq_arena_init(&arena, "step", (size_t)4 << 20), VQ_OK);
    assert_int_equal(vq_arena_alloc(&arena, (size_t)3 << 20, &p), VQ_OK);
    assert_int_equal(vq_arena_alloc(&arena, (size_t)2 << 20, &p), VQ_EMEM);
    assert_non_null(strstr(vq_error_message(), "arena step: 2097152 bytes asked for"));
    assert_non_null(strstr(vq_error_message(), "Lower seqlen"));
    assert_int_equal(vq_arena_alloc(&arena, SIZE_MAX, &p), VQ_EMEM);
    assert_int_equal(vq_arena_alloc(&arena, SIZE_MAX - 63, &p), VQ_EMEM);
    assert_int_equal(vq_arena_alloc(&arena, (size_t)1 << 19, &p), VQ_OK); /* still usable */
    vq_arena_close(&arena);
}

static void arena_array_checks_the_product(void **state)
{
    (void)state;
    vq_arena arena;
    void *p;
    assert_int_equal(vq_arena_init(&arena, "test", (size_t)4 << 20), VQ_OK);
    assert_int_equal(vq_arena_array(&arena, -1, 4, &p), VQ_EMEM);
    assert_int_equal(vq_arena_array(&arena, (int64_t)1 << 62, 8, &p), VQ_EMEM);
    assert_non_null(strstr(vq_error_message(), "more than any memory"));
    assert_int_equal(vq_arena_array(&arena, 0, 8, &p), VQ_OK);
    assert_non_null(p);
    vq_arena_close(&arena);
}

static void arena_reserves_more_than_memory(void **state)
{
    (void)state;
    vq_arena arena;
    uint8_t *p;
    assert_int_equal(vq_arena_init(&arena, "test", (size_t)1 << 40), VQ_OK);
    assert_int_equal(vq_arena_alloc(&arena, 100, (void **)&p), VQ_OK);
    p[99] = 1;
    assert_true(arena.committed_bytes < (size_t)64 << 20);
    vq_arena_close(&arena);
    assert_int_equal(vq_arena_init(&arena, "test", (size_t)1 << 62), VQ_EMEM);
    assert_non_null(strstr(vq_error_message(), "ulimit"));
}

static void arena_trim_gives_zero_pages(void **state)
{
    (void)state;
    vq_arena arena;
    uint8_t *small, *large;
    assert_int_equal(vq_arena_init(&arena, "test", (size_t)16 << 20), VQ_OK);
    assert_int_equal(VQ_NEW(&arena, 100, &small), VQ_OK);
    memset(small, 7, 100);
    size_t mark = vq_arena_mark(&arena);
    assert_int_equal(VQ_NEW(&arena, 8 << 20, &large), VQ_OK);
    memset(large, 9, (size_t)8 << 20);
    vq_arena_reset(&arena, mark);
    vq_arena_trim(&arena);
    assert_int_equal(small[99], 7);
    assert_int_equal(VQ_NEW(&arena, 8 << 20, &large), VQ_OK);
    assert_int_equal(large[(8 << 20) - 1], 0);
    vq_arena_close(&arena);
}

static void arena_text_ends_with_nul(void **state)
{
    (void)state;
    vq_arena arena;
    char *text;
    assert_int_equal(vq_arena_init(&arena, "test", 4096), VQ_OK);
    assert_int_equal(vq_arena_text(&arena, "model.layers", 5, &text), VQ_OK);
    assert_string_equal(text, "model");
    assert_int_equal(vq_arena_text(&arena, "", 0, &text), VQ_OK);
    assert_string_equal(text, "");
    vq_arena_close(&arena);
}

/* --- log ----------------------------------------------------------------------------------- */

static void durations_and_bytes_as_text(void **state)
{
    (void)state;
    const struct {
        double seconds;
        const char *text;
    } duration[] = {{0, "0.0s"},      {0.0351, "35ms"},          {0.0996, "0.1s"},
                    {4.24, "4.2s"},   {59.94, "59.9s"},          {60, "1m 00s"},
                    {200, "3m 20s"},  {3599.4, "59m 59s"},       {3600, "1h 00m"},
                    {3720, "1h 02m"}, {3600.0 * 100, "100h 00m"}};
    const struct {
        double bytes;
        const char *text;
    } size[] = {{0, "0 B"},        {1023, "1023 B"},        {1024, "1.0 KiB"},
                {1536, "1.5 KiB"}, {1610612736, "1.5 GiB"}, {0x1p50, "1024.0 TiB"}};
    const struct {
        double count;
        const char *text;
    } count[] = {{0, "0"},
                 {999999, "999999"},
                 {1153024, "1.153 million"},
                 {6738415616, "6.738 billion"},
                 {13015864320, "13.02 billion"}};
    char text[32];
    for (int i = 0; i < VQ_COUNT(count); i++)
        assert_string_equal(vq_count_text(count[i].count, text), count[i].text);
    for (int i = 0; i < VQ_COUNT(duration); i++)
        assert_string_equal(vq_duration_text(duration[i].seconds, text), duration[i].text);
    for (int i = 0; i < VQ_COUNT(size); i++)
        assert_string_equal(vq_bytes_text(size[i].bytes, text), size[i].text);
}

static void clock_goes_forward(void **state)
{
    (void)state;
    double before = vq_seconds();
    for (int i = 0; i < 1000; i++) {
        double now = vq_seconds();
        assert_true(now >= before);
        before = now;
    }
}

static void progress_counts_from_where_it_resumed(void **state)
{
    (void)state;
    vq_progress p;
    vq_log_init(VQ_LOG_ERROR, 0); /* quiet */
    vq_progress_begin(&p, "train", "steps", 200, 600);
    assert_int_equal(p.done, 200);
    vq_progress_step(&p, 201, "loss %.2f", 1.5);
    assert_int_equal(p.done, 201);
    assert_string_equal(p.note, "loss 1.50");
    vq_progress_step(&p, 600, NULL);
    assert_int_equal(p.done - p.first, 400);
    assert_string_equal(p.note, "loss 1.50");
    vq_progress_end(&p);
    vq_log_init(VQ_LOG_INFO, 0);
}

/* What a phase of 1 of 2 units with that note draws on a terminal of so many columns. */
static void draw(int columns, const char *note, char *drawn, size_t size)
{
    int terminal, there;
    vq_progress p;
    struct winsize window = {.ws_row = 24, .ws_col = (unsigned short)columns};
    assert_int_equal(openpty(&terminal, &there, NULL, NULL, &window), 0);
    const int before = dup(STDERR_FILENO);
    assert_int_equal(dup2(there, STDERR_FILENO), STDERR_FILENO);
    vq_progress_begin(&p, "init", "linears", 0, 2);
    nanosleep(&(struct timespec){.tv_nsec = 150000000}, NULL);
    vq_progress_step(&p, 1, "%s", note);
    const ssize_t n = read(terminal, drawn, size - 1);
    vq_log_init(VQ_LOG_WARN, 0);
    vq_progress_end(&p);
    vq_log_init(VQ_LOG_INFO, 0);
    assert_int_equal(dup2(before, STDERR_FILENO), STDERR_FILENO);
    close(before);
    close(there);
    close(terminal);
    assert_true(n > 0);
    drawn[n] = '\0';
}

static void bars_fit_the_terminal(void **state)
{
    (void)state;
    char drawn[512];
    draw(200, "model.layers.0.mlp.up_proj", drawn, sizeof drawn);
    assert_ptr_equal(strstr(drawn, "\r\033[Kinit     [============            ] 1/2 linears, "),
                     drawn);
    assert_string_equal(drawn + strlen(drawn) - 6, "p_proj");
    draw(60, "model.layers.0.mlp.up_proj", drawn, sizeof drawn);
    assert_int_equal(strlen(drawn), strlen("\r\033[K") + 59);
    assert_ptr_equal(strstr(drawn, "\r\033[Kinit     [============            ] 1/2"), drawn);
}

static void progress_has_parts_of_a_unit(void **state)
{
    (void)state;
    vq_progress p;
    vq_log_init(VQ_LOG_ERROR, 0); /* quiet */
    vq_progress_part(1, 2);       /* of nothing that runs */
    assert_true(vq_progress_units() == 0);
    vq_progress_begin(&p, "eval", "windows", 0, 8);
    vq_progress_span(0, 4);
    vq_progress_part(3, 4);
    assert_true(vq_progress_units() == 3);
    assert_int_equal(p.done, 0);
    vq_progress_step(&p, 4, NULL);
    assert_true(vq_progress_units() == 4);
    vq_progress_span(1, 3);
    assert_true(vq_progress_units() == 4);
    vq_progress_part(1, 2);
    assert_true(vq_progress_units() == 6);
    vq_progress_end(&p);
    vq_progress_part(1, 2);
    assert_true(vq_progress_units() == 0);
    vq_log_init(VQ_LOG_INFO, 0);
}

/* --- rng ----------------------------------------------------------------------------------- */

static void counter_numbers_are_fixed(void **state)
{
    (void)state;
    /* SplitMix64's finaliser applied to the seed, the stream and the counter in turn. */
    assert_true(vq_rng_bits(1, 2, 3) == 0xd0734750fde362b3u);
    assert_true(vq_rng_bits(1, 2, 3) != vq_rng_bits(1, 3, 2));
    assert_true(vq_rng_bits(1, 2, 3) != vq_rng_bits(2, 1, 3));
    double sum = 0, squares = 0;
    int64_t count[7] = {0};
    const int n = 70000;
    for (int i = 0; i < n; i++) {
        double u = vq_rng_uniform(5, 6, (uint64_t)i);
        assert_true(u >= 0 && u < 1);
        sum += u;
        squares += u * u;
        int64_t k = vq_rng_below(5, 7, (uint64_t)i, 7);
        assert_in_range(k, 0, 6);
        count[k]++;
    }
    assert_true(fabs(sum / n - 0.5) < 0.005);
    assert_true(fabs(squares / n - 1.0 / 3) < 0.005);
    for (int k = 0; k < 7; k++) assert_in_range(count[k], 9600, 10400);
    assert_int_equal(vq_rng_below(1, 2, 3, 1), 0);
}

/* Numbers printed by CPython 3.11: for each seed r = random.Random(seed), then
 * randint(0, 99) x 4, randint(0, 2**40) x 3, randint(-5, 5) x 4, randint(0, 2**63 - 2),
 * randint(3, 3), randint(0, 2**32 - 1), randint(0, 2**32). */
static void randint_is_pythons(void **state)
{
    (void)state;
    const struct {
        uint64_t seed;
        int64_t percent[4], large[3], signed_[4], huge, three, word, over;
    } python[] = {
        {0,
         {49, 97, 53, 5},
         {1067347797602, 788025983492, 480641685011},
         {3, -3, -1, -3},
         874659381428118137,
         3,
         631194409,
         1418186270},
        {1,
         {17, 72, 97, 8},
         {258793550908, 1037017667747, 836022225947},
         {-2, -4, 2, -5},
         7708572504577567974,
         3,
         1912923437,
         4059906722},
        {1234,
         {99, 56, 14, 0},
         {183365414236, 521214191144, 64499362338},
         {-5, 0, 5, 4},
         5679897292429560397,
         3,
         638037343,
         4144220671},
        {4294967295u,
         {81, 79, 26, 27},
         {778590199395, 1094776149296, 139201789749},
         {-2, 4, -3, 2},
         4655501323979056760,
         3,
         268178443,
         160615420},
        {4294967296u,
         {14, 44, 53, 2},
         {729123668833, 996409757029, 300707833000},
         {-4, 1, 3, 0},
         6798084798905248738,
         3,
         1985290963,
         2970566286},
        {4611686018427400249u,
         {62, 96, 34, 88},
         {1018303858663, 193632866401, 613063432716},
         {3, -4, -4, -3},
         7346137247478436125,
         3,
         3896290952,
         2875436386},
    };
    for (int i = 0; i < VQ_COUNT(python); i++) {
        vq_py_random r;
        vq_py_random_seed(&r, python[i].seed);
        for (int k = 0; k < 4; k++)
            assert_int_equal(vq_py_randint(&r, 0, 99), python[i].percent[k]);
        for (int k = 0; k < 3; k++)
            assert_int_equal(vq_py_randint(&r, 0, (int64_t)1 << 40), python[i].large[k]);
        for (int k = 0; k < 4; k++)
            assert_int_equal(vq_py_randint(&r, -5, 5), python[i].signed_[k]);
        assert_int_equal(vq_py_randint(&r, 0, INT64_MAX - 1), python[i].huge);
        assert_int_equal(vq_py_randint(&r, 3, 3), python[i].three);
        assert_int_equal(vq_py_randint(&r, 0, UINT32_MAX), python[i].word);
        assert_int_equal(vq_py_randint(&r, 0, (int64_t)UINT32_MAX + 1), python[i].over);
    }
}

/* The 2,000th draw of Random(0).randint(0, 243000): the state was renewed several times. */
static void randint_goes_on(void **state)
{
    (void)state;
    vq_py_random r;
    int64_t last = 0;
    vq_py_random_seed(&r, 0);
    for (int i = 0; i < 2000; i++) last = vq_py_randint(&r, 0, 243000);
    assert_int_equal(last, 114193);
}

/* --- tensor -------------------------------------------------------------------------------- */

static void tensor_shapes(void **state)
{
    (void)state;
    float data[24];
    vq_tensor t = vq_tensor_3d(data, VQ_F32, 2, 3, 4);
    assert_int_equal(t.ndim, 3);
    assert_int_equal(vq_tensor_count(&t), 24);
    assert_int_equal(vq_tensor_bytes(&t), 96);
    assert_int_equal(t.stride[0], 12);
    assert_int_equal(t.stride[1], 4);
    assert_int_equal(t.stride[2], 1);
    assert_true(vq_tensor_contiguous(&t));
    char text[96];
    assert_string_equal(vq_tensor_text(&t, text), "f32 [2, 3, 4]");

    vq_tensor rows = vq_tensor_rows(&t, 1, 1);
    assert_ptr_equal(rows.data, data + 12);
    assert_int_equal(vq_tensor_count(&rows), 12);
    vq_tensor flat = vq_tensor_view2(&t, 6, 4);
    assert_int_equal(flat.stride[0], 4);
    vq_tensor four = vq_tensor_view4(&t, 1, 2, 3, 4);
    assert_true(four.ndim == 4 && four.data == data && four.place == VQ_HOST);
    assert_false(vq_tensor_same_shape(&t, &flat));
    assert_true(vq_tensor_same_shape(&flat, &flat));

    vq_tensor turned = flat;
    turned.dim[0] = 4, turned.dim[1] = 6;
    turned.stride[0] = 1, turned.stride[1] = 4;
    assert_false(vq_tensor_contiguous(&turned));
    vq_tensor column = vq_tensor_2d(data, VQ_F32, 24, 1);
    column.stride[1] = 99; /* of a dimension of one: never used */
    assert_true(vq_tensor_contiguous(&column));
    vq_tensor empty = vq_tensor_1d(data, VQ_U8, 0);
    assert_int_equal(vq_tensor_bytes(&empty), 0);
}

static void dtypes_have_names_and_sizes(void **state)
{
    (void)state;
    const struct {
        vq_dtype dtype;
        const char *name;
        size_t bytes;
        bool is_float;
    } all[] = {{VQ_F32, "f32", 4, true},  {VQ_F16, "f16", 2, true},  {VQ_BF16, "bf16", 2, true},
               {VQ_F64, "f64", 8, true},  {VQ_I8, "i8", 1, false},   {VQ_I16, "i16", 2, false},
               {VQ_I32, "i32", 4, false}, {VQ_I64, "i64", 8, false}, {VQ_U8, "u8", 1, false},
               {VQ_U16, "u16", 2, false}, {VQ_U32, "u32", 4, false}, {VQ_BOOL, "bool", 1, false}};
    assert_int_equal(VQ_COUNT(all), VQ_N_DTYPES);
    for (int i = 0; i < VQ_COUNT(all); i++) {
        assert_string_equal(vq_dtype_name(all[i].dtype), all[i].name);
        assert_int_equal(vq_dtype_bytes(all[i].dtype), all[i].bytes);
        assert_int_equal(vq_dtype_is_float(all[i].dtype), all[i].is_float);
    }
}

/* --- f16, bf16 ------------------------------------------------------------------------------ */

/* The value of half bits, from the definition. */
static double half_value(uint16_t h)
{
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double size = exponent == 31  ? (mantissa ? (double)NAN : (double)INFINITY)
                  : exponent == 0 ? ldexp(mantissa, -24)
                                  : ldexp(1024 + mantissa, exponent - 25);
    return h & 0x8000 ? -size : size;
}

static void f16_all_patterns_round_trip(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t h = (uint16_t)i;
        float f = vq_f16_to_f32(h);
        double value = half_value(h);
        if (isnan(value)) {
            assert_true(isnan(f));
            assert_true(isnan(vq_f16_to_f32(vq_f32_to_f16(f))));
        } else {
            assert_true((double)f == value && !signbit(f) == !signbit(value));
            assert_int_equal(vq_f32_to_f16(f), h);
        }
    }
}

/* Between two neighbours: below the middle down, above it up, the middle to the even one. */
static void f16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint16_t h = 0; h < 0x7c00; h++) {
        double low = half_value(h), high = h == 0x7bff ? 65536 : half_value((uint16_t)(h + 1));
        float middle = (float)((low + high) / 2); /* exact: one bit more */
        uint16_t even = h & 1 ? (uint16_t)(h + 1) : h;
        assert_int_equal(vq_f32_to_f16(middle), even);
        assert_int_equal(vq_f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(vq_f32_to_f16(nextafterf(middle, 1e9f)), h + 1);
        assert_int_equal(vq_f32_to_f16(-middle), even | 0x8000);
    }
    assert_int_equal(vq_f32_to_f16(1e30f), 0x7c00);
    assert_int_equal(vq_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(vq_f32_to_f16(1e-45f), 0);
}

static void bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t h = (uint16_t)i;
        float f = vq_bf16_to_f32(h);
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        assert_int_equal(bits, i << 16);
        if (isnan(f)) {
            assert_true(isnan(vq_bf16_to_f32(vq_f32_to_bf16(f))));
            continue;
        }
        assert_int_equal(vq_f32_to_bf16(f), h);
        if (isinf(f)) continue;
        const struct {
            uint32_t below, expected;
        } step[] = {{0x7fff, i}, {0x8000, i + (i & 1)}, {0x8001, i + 1}};
        for (int k = 0; k < VQ_COUNT(step); k++) {
            uint32_t between = bits + step[k].below;
            float g;
            memcpy(&g, &between, sizeof g);
            assert_int_equal(vq_f32_to_bf16(g), step[k].expected);
        }
    }
    uint32_t low_nan = 0x7f800001; /* its payload would be cut off */
    float f;
    memcpy(&f, &low_nan, sizeof f);
    assert_true(isnan(vq_bf16_to_f32(vq_f32_to_bf16(f))));
}

static void convert_between_all_float_types(void **state)
{
    (void)state;
    const vq_dtype type[] = {VQ_F32, VQ_F16, VQ_BF16, VQ_F64};
    const float source[] = {0, -1.5f, 0.25f, 96, -0x1p-14f, 255}; /* exact in all of them */
    for (int a = 0; a < 4; a++)
        for (int b = 0; b < 4; b++) {
            uint64_t from[6] = {0}, to[6] = {0};
            float back[6];
            assert_int_equal(vq_convert(from, type[a], source, VQ_F32, 6), VQ_OK);
            assert_int_equal(vq_convert(to, type[b], from, type[a], 6), VQ_OK);
            assert_int_equal(vq_convert(back, VQ_F32, to, type[b], 6), VQ_OK);
            assert_memory_equal(back, source, sizeof source);
        }
    int32_t whole = 3;
    float f;
    assert_int_equal(vq_convert(&f, VQ_F32, &whole, VQ_I32, 1), VQ_EINTERNAL);
    assert_non_null(strstr(vq_error_message(), "report it"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_message_and_code_come_out),
        cmocka_unit_test(error_context_goes_in_front),
        cmocka_unit_test(error_may_quote_the_old_message),
        cmocka_unit_test(error_too_long_is_cut),
        cmocka_unit_test(error_belongs_to_its_thread),
        cmocka_unit_test(int_narrows_or_fails),
        cmocka_unit_test(status_names),
        cmocka_unit_test(arena_aligns_and_keeps),
        cmocka_unit_test(arena_reset_takes_back),
        cmocka_unit_test(arena_full_says_so),
        cmocka_unit_test(arena_array_checks_the_product),
        cmocka_unit_test(arena_reserves_more_than_memory),
        cmocka_unit_test(arena_trim_gives_zero_pages),
        cmocka_unit_test(arena_text_ends_with_nul),
        cmocka_unit_test(durations_and_bytes_as_text),
        cmocka_unit_test(clock_goes_forward),
        cmocka_unit_test(progress_counts_from_where_it_resumed),
        cmocka_unit_test(progress_has_parts_of_a_unit),
        cmocka_unit_test(bars_fit_the_terminal),
        cmocka_unit_test(counter_numbers_are_fixed),
        cmocka_unit_test(randint_is_pythons),
        cmocka_unit_test(randint_goes_on),
        cmocka_unit_test(tensor_shapes),
        cmocka_unit_test(dtypes_have_names_and_sizes),
        cmocka_unit_test(f16_all_patterns_round_trip),
        cmocka_unit_test(f16_rounds_to_nearest_even),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(convert_between_all_float_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
