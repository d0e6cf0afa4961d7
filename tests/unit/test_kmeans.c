/* test_kmeans - assignment, update and whole clusterings against plain loops and FAISS. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "arenas.h"
#include "cpu_backend.h"
#include "cpu_real.h"
#include "error.h"
#include "kmeans.h"
#include "parts.h"
#include "rng.h"

static vq_backend be;

static int setup(void **state)
{
    return open_arenas(state) || vq_cpu_open(&be, 2);
}

static int teardown(void **state)
{
    vq_cpu_close(&be);
    return close_arenas(state);
}

static vq_tensor new_tensor(vq_dtype dtype, int64_t n, int64_t D)
{
    vq_tensor t;
    assert_int_equal(vq_tensor_new(&arena, VQ_HOST, dtype, VQ_DIMS(n, D), &t), VQ_OK);
    return t;
}

static vq_tensor new_list(int64_t n)
{
    vq_tensor t;
    assert_int_equal(vq_tensor_new(&arena, VQ_HOST, VQ_U32, VQ_DIMS(n), &t), VQ_OK);
    return t;
}

/* Uniform in [-2.4, 2.4), as the logits of residuals lie; or whole numbers from -2 to 2. */
static vq_tensor random_vectors(int64_t n, int64_t D, uint64_t stream, bool whole)
{
    vq_tensor t = new_tensor(VQ_F32, n, D);
    for (int64_t i = 0; i < n * D; i++) {
        double u = vq_rng_uniform(3, stream, (uint64_t)i);
        ((float *)t.data)[i] = whole ? (float)floor(5 * u) - 2 : (float)(4.8 * u - 2.4);
    }
    return t;
}

static double distance2(const vq_tensor *x, int64_t i, const vq_tensor *codes, int64_t k)
{
    const float *a = (const float *)x->data + i * x->dim[1];
    const float *b = (const float *)codes->data + k * x->dim[1];
    double sum = 0;
    for (int64_t d = 0; d < x->dim[1]; d++)
        sum += ((double)a[d] - (double)b[d]) * ((double)a[d] - (double)b[d]);
    return sum;
}

static void check_assign(int64_t n, int64_t K, int64_t D, bool whole)
{
    size_t mark = vq_arena_mark(&arena);
    vq_tensor x = random_vectors(n, D, 1, whole), codes = random_vectors(K, D, 2, whole);
    vq_tensor idx = new_list(n);
    double objective, expected = 0;
    const vq_kmeans_part all = {.n = n, .codes = K};
    assert_int_equal(vq_kmeans_assign(&be, &idx, &objective, &x, &codes, &all, 1), VQ_OK);
    for (int64_t i = 0; i < n; i++) {
        int64_t best = 0;
        double least = distance2(&x, i, &codes, 0);
        for (int64_t k = 1; k < K; k++) {
            double d2 = distance2(&x, i, &codes, k);
            if (d2 < least) least = d2, best = k;
        }
        int64_t k = ((uint32_t *)idx.data)[i];
        assert_in_range(k, 0, K - 1);
        if (whole) /* f32 is exact here, and most vectors have several nearest codes */
            assert_int_equal(k, best);
        else
            assert_true(distance2(&x, i, &codes, k) <= least + 1e-5 * (double)D);
        expected += least;
    }
    assert_true(fabs(objective - expected) <= 1e-6 * expected + 1e-5);
    vq_arena_reset(&arena, mark);
}

static void test_assign_equals_brute_force(void **state)
{
    (void)state;
    const int64_t counts[] = {1, 17, 300}, Ks[] = {1, 7, 8, 9, 131}, Ds[] = {1, 3, 8, 13, 64, 70};
    for (int n = 0; n < VQ_COUNT(counts); n++)
        for (int K = 0; K < VQ_COUNT(Ks); K++)
            for (int D = 0; D < VQ_COUNT(Ds); D++) {
                check_assign(counts[n], Ks[K], Ds[D], false);
                check_assign(counts[n], Ks[K], Ds[D], true);
            }
}

/* Each row of a part is in one block of that part, and no block has more than its size. */
static void test_blocks_have_each_row_once(void **state)
{
    (void)state;
    const vq_kmeans_part lists[][4] = {{{0, 1000, 0, 33}},
                                       {{0, 1, 0, 1}, {1, 1, 1, 1}, {2, 0, 2, 9}, {2, 98, 11, 22}},
                                       {{3, 64, 5, 8}, {90, 7, 14, 1}, {97, 65, 15, 17}}};
    const int64_t n_parts[] = {1, 4, 3}, sizes[] = {1, 7, 8, 64, 2000}, n = 1000;
    for (int list = 0; list < VQ_COUNT(lists); list++)
        for (int s = 0; s < 2 * VQ_COUNT(sizes); s++) {
            const vq_kmeans_part *parts = lists[list];
            const vq_part_rows rows = s % 2 ? VQ_PART_CODES : VQ_PART_VECTORS;
            const int64_t size = sizes[s / 2], P = n_parts[list];
            int owner[1000];
            for (int64_t i = 0; i < n; i++) owner[i] = -1;
            for (int64_t b = 0; b < vq_part_blocks(n, P, size); b++) {
                const vq_part_block of = vq_part_block_at(parts, P, rows, size, b);
                assert_true(of.n <= size);
                for (int64_t i = of.first; i < of.first + of.n; i++) {
                    assert_in_range(i, 0, n - 1);
                    assert_int_equal(owner[i], -1);
                    owner[i] = (int)of.part;
                }
            }
            for (int p = 0; p < P; p++) {
                const int64_t first = rows == VQ_PART_CODES ? parts[p].code : parts[p].first;
                const int64_t count = rows == VQ_PART_CODES ? parts[p].codes : parts[p].n;
                for (int64_t i = first; i < first + count; i++) {
                    assert_int_equal(owner[i], p);
                    owner[i] = -1;
                }
            }
            for (int64_t i = 0; i < n; i++) assert_int_equal(owner[i], -1);
        }
}

static void test_parts_must_stand_in_order(void **state)
{
    (void)state;
    const vq_kmeans_part wrong[][2] = {{{0, 10, 0, 2}, {9, 5, 2, 2}},
                                       {{0, 10, 0, 3}, {10, 5, 2, 2}},
                                       {{0, 10, 0, 2}, {10, 11, 2, 2}},
                                       {{0, 10, 0, 2}, {10, 5, 2, 3}},
                                       {{0, 10, 0, 2}, {10, 5, 2, 0}}};
    vq_arena_reset(&arena, 0);
    vq_tensor x = random_vectors(20, 3, 1, false), codes = random_vectors(4, 3, 2, false);
    vq_tensor idx = new_list(20), counts = new_list(4);
    double objective[2];
    for (int i = 0; i < VQ_COUNT(wrong); i++) {
        assert_int_equal(vq_kmeans_assign(&be, &idx, objective, &x, &codes, wrong[i], 2),
                         VQ_EINTERNAL);
        assert_int_equal(vq_kmeans_update(&be, &codes, &counts, &x, &idx, wrong[i], 2),
                         VQ_EINTERNAL);
        assert_non_null(strstr(vq_error_message(), "parts_fit"));
        vq_error_clear();
    }
}

static void test_update_is_the_mean(void **state)
{
    (void)state;
    const int64_t n = 1001, K = 37, Ds[] = {1, 8, 70};
    for (int at = 0; at < VQ_COUNT(Ds); at++) {
        int64_t D = Ds[at];
        size_t mark = vq_arena_mark(&arena);
        vq_tensor x = random_vectors(n, D, 1, false), codes = random_vectors(K, D, 2, false);
        vq_tensor before = random_vectors(K, D, 2, false);
        vq_tensor idx = new_list(n), counts = new_list(K);
        uint32_t *k_of = idx.data;
        for (int64_t i = 0; i < n; i++) /* the last code gets none */
            k_of[i] = (uint32_t)vq_rng_below(5, 5, (uint64_t)i, K - 1);
        const vq_kmeans_part all = {.n = n, .codes = K};
        assert_int_equal(vq_kmeans_update(&be, &codes, &counts, &x, &idx, &all, 1), VQ_OK);
        for (int64_t k = 0; k < K; k++) {
            uint32_t count = 0;
            for (int64_t i = 0; i < n; i++) count += k_of[i] == k;
            assert_int_equal(((uint32_t *)counts.data)[k], count);
            for (int64_t d = 0; d < D; d++) {
                double sum = 0;
                for (int64_t i = 0; i < n; i++)
                    if (k_of[i] == k) sum += (double)((float *)x.data)[i * D + d];
                float expected = count ? (float)(sum / count) : ((float *)before.data)[k * D + d];
                assert_true(((float *)codes.data)[k * D + d] == expected);
            }
        }
        vq_arena_reset(&arena, mark);
    }
}

/* Clusters x, and checks that idx and the objective are those of the codes, and that no more memory
 * was taken than planned. */
static vq_kmeans_result cluster(const vq_backend *with, vq_tensor *codes, vq_tensor *idx,
                                const vq_tensor *x, const vq_tensor *start,
                                const vq_kmeans_config *c)
{
    vq_kmeans_result result;
    size_t before = vq_arena_mark(&arena);
    arena.peak_bytes = before;
    assert_int_equal(vq_kmeans(with, &arena, codes, idx, x, start, c, &result), VQ_OK);
    assert_int_equal(vq_arena_mark(&arena), before);
    assert_true(arena.peak_bytes - before <=
                vq_kmeans_scratch_bytes(c, x->dim[0], codes->dim[0], x->dim[1]) +
                    12 * VQ_ALIGN); /* gaps between the blocks */
    double sum = 0;
    for (int64_t i = 0; i < x->dim[0]; i++)
        sum += distance2(x, i, codes, ((uint32_t *)idx->data)[i]);
    assert_true(fabs(sum - result.objective) <= 1e-5 * sum + 1e-4);
    return result;
}

/* Each call goes on from the codes of the one before, by several iterations beyond the means and a
 * last one to them: no iteration may raise the objective. */
static void test_objective_never_rises(void **state)
{
    (void)state;
    const int64_t n = 3000, Ks[] = {50, 900};
    for (int at = 0; at < VQ_COUNT(Ks); at++) {
        vq_arena_reset(&arena, 0);
        vq_tensor x = random_vectors(n, 8, 1, false), codes = new_tensor(VQ_F32, Ks[at], 8);
        vq_tensor idx = new_list(n);
        vq_kmeans_config c = {.iters = 0, .seed = 1, .max_points_per_centroid = 256};
        double before = cluster(&be, &codes, &idx, &x, NULL, &c).objective, first = before;
        for (int call = 0; call < 12; call++) {
            c.iters = 1 + call % 3;
            vq_kmeans_result r = cluster(&be, &codes, &idx, &x, &codes, &c);
            assert_true(r.objective <= before * (1 + 1e-7));
            assert_in_range(r.iters, 1, c.iters);
            assert_int_equal(r.n_train, n);
            before = r.objective;
        }
        assert_true(before < 0.8 * first);
    }
}

static void test_ends_when_the_gain_is_small(void **state)
{
    (void)state;
    const int64_t n = 3000, K = 50, D = 8;
    vq_arena_reset(&arena, 0);
    vq_tensor x = random_vectors(n, D, 1, false), codes = new_tensor(VQ_F32, K, D);
    vq_tensor idx = new_list(n), next = new_tensor(VQ_F32, K, D);
    vq_kmeans_config c = {
        .iters = 1000, .min_gain = 1e-3, .seed = 1, .max_points_per_centroid = 256};
    vq_kmeans_result early = cluster(&be, &codes, &idx, &x, NULL, &c);
    assert_in_range(early.iters, 2, 100);
    c.min_gain = 0;
    vq_kmeans_result end = cluster(&be, &next, &idx, &x, &codes, &c);
    assert_in_range(end.iters, 1, 999);
    assert_true(end.objective <= early.objective && end.objective > 0.95 * early.objective);
}

static void test_same_bits_for_any_threads(void **state)
{
    (void)state;
    const int64_t n = 20011, K = 60, D = 8;
    vq_kmeans_config c = {.iters = 6, .seed = 9, .max_points_per_centroid = 100};
    vq_arena_reset(&arena, 0);
    vq_tensor x = random_vectors(n, D, 1, false);
    vq_tensor codes[3], idx[3];
    vq_kmeans_result result[3];
    for (int t = 0; t < 3; t++) {
        vq_backend with;
        codes[t] = new_tensor(VQ_F32, K, D), idx[t] = new_list(n);
        assert_int_equal(vq_cpu_open(&with, t + 1), VQ_OK);
        result[t] = cluster(&with, &codes[t], &idx[t], &x, NULL, &c);
        vq_cpu_close(&with);
        assert_int_equal(result[t].n_train, 100 * K);
        assert_memory_equal(codes[t].data, codes[0].data, vq_tensor_bytes(&codes[0]));
        assert_memory_equal(idx[t].data, idx[0].data, vq_tensor_bytes(&idx[0]));
        assert_true(result[t].objective == result[0].objective);
    }
}

/* Nine tenths of the vectors are equal, as in a layer with dead rows: all codes still find work. */
static void test_no_code_stays_empty(void **state)
{
    (void)state;
    const int64_t n = 4000, K = 64, D = 8;
    vq_arena_reset(&arena, 0);
    vq_tensor x = random_vectors(n, D, 1, false), codes = new_tensor(VQ_F32, K, D);
    vq_tensor idx = new_list(n);
    for (int64_t i = 0; i < n; i++)
        if (i % 10) memset((float *)x.data + i * D, 0, (size_t)D * sizeof(float));
    vq_kmeans_config c = {.iters = 200, .seed = 2, .max_points_per_centroid = 256};
    cluster(&be, &codes, &idx, &x, NULL, &c);
    int64_t used = 0;
    for (int64_t k = 0; k < K; k++) {
        bool found = false;
        for (int64_t i = 0; i < n && !found; i++) found = ((uint32_t *)idx.data)[i] == k;
        used += found;
    }
    assert_in_range(used, K - 4, K);
}

static void test_as_many_codes_as_vectors(void **state)
{
    (void)state;
    const int64_t n = 33, D = 8;
    vq_arena_reset(&arena, 0);
    vq_tensor x = random_vectors(n, D, 1, false), codes = new_tensor(VQ_F32, n, D);
    vq_tensor idx = new_list(n);
    vq_kmeans_config c = {.iters = 5, .seed = 2, .max_points_per_centroid = 256};
    vq_kmeans_result r = cluster(&be, &codes, &idx, &x, NULL, &c);
    assert_true(r.objective == 0);
}

static void test_as_good_as_faiss(void **state)
{
    (void)state;
    const int64_t n = 4000, K = 32, D = 8;
    vq_arena_reset(&arena, 0);
    vq_tensor x = random_vectors(n, D, 1, false), codes = new_tensor(VQ_F32, K, D);
    vq_tensor idx = new_list(n);
    vq_kmeans_config c = {.faiss = true, .iters = 50, .seed = 1234, .max_points_per_centroid = 256};
    vq_kmeans_result oracle = cluster(&be, &codes, &idx, &x, NULL, &c);
    c.faiss = false;
    vq_kmeans_result ours = cluster(&be, &codes, &idx, &x, NULL, &c);
    assert_true(ours.objective < 1.01 * oracle.objective);
    assert_true(oracle.objective < 1.05 * ours.objective);
    c.min_gain = VQ_KMEANS_MIN_GAIN;
    ours = cluster(&be, &codes, &idx, &x, NULL, &c);
    assert_true(ours.objective < 1.01 * oracle.objective);
    c.iters = 10;
    vq_kmeans_result shared = cluster(&be, &codes, &idx, &x, &codes, &c);
    assert_true(shared.objective <= ours.objective);
}

static void test_faiss_takes_no_start(void **state)
{
    (void)state;
    vq_arena_reset(&arena, 0);
    vq_tensor x = random_vectors(100, 8, 1, false), codes = new_tensor(VQ_F32, 4, 8);
    vq_tensor idx = new_list(100);
    vq_kmeans_config c = {.faiss = true, .iters = 2, .seed = 1, .max_points_per_centroid = 256};
    assert_int_equal(vq_kmeans(&be, &arena, &codes, &idx, &x, &codes, &c, NULL), VQ_EUNSUPPORTED);
    assert_non_null(strstr(vq_error_message(), "kmeans.start"));
    assert_non_null(strstr(vq_error_message(), "Set kmeans.start to own"));
    vq_error_clear();
}

/* --- by signs --- */

static uint64_t signs_of(const vq_tensor *x, int64_t i)
{
    uint64_t signs = 0;
    for (int64_t d = 0; d < x->dim[1]; d++)
        signs |= (uint64_t)(((float *)x->data)[i * x->dim[1] + d] >= 0) << d;
    return signs;
}

/* Every vector's code has its signs, and is the nearest of those that do; codes lie in the order of
 * their patterns, each of which has its share of them to within one unless it has fewer vectors. */
static void check_by_sign(vq_tensor *x, int64_t K, const vq_kmeans_config *c)
{
    const int64_t n = x->dim[0];
    vq_tensor codes = new_tensor(VQ_F32, K, x->dim[1]), idx = new_list(n);
    const vq_kmeans_result r = cluster(&be, &codes, &idx, x, NULL, c);
    const uint32_t *code_of = idx.data;
    assert_true(r.patterns >= 1 && r.patterns <= K && r.iters >= 1 && r.iters <= c->iters);
    for (int64_t i = 0; i < n; i++) {
        const int64_t own = code_of[i];
        assert_true(own < K && signs_of(&codes, own) == signs_of(x, i));
        const double near = distance2(x, i, &codes, own);
        for (int64_t k = 0; k < K; k++)
            if (signs_of(&codes, k) == signs_of(x, i))
                assert_true(near <= distance2(x, i, &codes, k) + 1e-5);
    }
    int64_t patterns = 0;
    for (int64_t k = 0, end; k < K; k = end) {
        const uint64_t signs = signs_of(&codes, k);
        int64_t vectors = 0;
        for (end = k; end < K && signs_of(&codes, end) == signs; end++) continue;
        for (int64_t i = 0; i < n; i++) vectors += signs_of(x, i) == signs;
        const double share = 1 + (double)((K - r.patterns) * vectors) / (double)n;
        assert_true(end - k <= vectors && (2 * K > n || fabs((double)(end - k) - share) < 1));
        if (k > 0) assert_true(signs > signs_of(&codes, k - 1));
        patterns++;
    }
    assert_int_equal(patterns, r.patterns);
}

/* What all patterns at once give is what each by itself does. */
static void test_by_sign_is_each_by_itself(void **state)
{
    (void)state;
    const int64_t n = 3001, K = 70, D = 3;
    vq_kmeans_config c = {
        .iters = 40, .min_gain = 1e-3, .seed = 4, .max_points_per_centroid = 30, .by_sign = true};
    vq_arena_reset(&arena, 0);
    vq_tensor x = random_vectors(n, D, 1, false), codes = new_tensor(VQ_F32, K, D);
    vq_tensor idx = new_list(n);
    for (int64_t i = 0; i < n * D; i++) /* mostly positive: patterns of very different sizes */
        if (i % 3) ((float *)x.data)[i] += 1.2f;
    const vq_kmeans_result all = cluster(&be, &codes, &idx, &x, NULL, &c);
    c.by_sign = false;
    double objective = 0;
    int64_t n_train = 0, code = 0;
    int least = c.iters, most = 0;
    for (uint64_t signs = 0; signs < 8; signs++) {
        const size_t mark = vq_arena_mark(&arena);
        int64_t n_own = 0, n_codes = 0;
        for (int64_t i = 0; i < n; i++) n_own += signs_of(&x, i) == signs;
        for (int64_t k = 0; k < K; k++) n_codes += signs_of(&codes, k) == signs;
        assert_true(n_own > 0 && n_codes > 0);
        vq_tensor own = new_tensor(VQ_F32, n_own, D), own_idx = new_list(n_own);
        vq_tensor own_codes = new_tensor(VQ_F32, n_codes, D);
        for (int64_t i = 0, at = 0; i < n; i++)
            if (signs_of(&x, i) == signs)
                memcpy((float *)own.data + at++ * D, (float *)x.data + i * D,
                       (size_t)D * sizeof(float));
        const vq_kmeans_result r = cluster(&be, &own_codes, &own_idx, &own, NULL, &c);
        const vq_tensor expected = vq_tensor_rows(&codes, code, n_codes);
        assert_memory_equal(own_codes.data, expected.data, vq_tensor_bytes(&expected));
        for (int64_t i = 0, at = 0; i < n; i++)
            if (signs_of(&x, i) == signs)
                assert_int_equal(((uint32_t *)idx.data)[i],
                                 code + ((uint32_t *)own_idx.data)[at++]);
        objective += r.objective, n_train += r.n_train, code += n_codes;
        least = VQ_MIN(least, r.iters), most = VQ_MAX(most, r.iters);
        vq_arena_reset(&arena, mark);
    }
    assert_true(all.objective == objective && all.n_train == n_train && n_train < n);
    assert_true(all.iters == most && least < most); /* some end before others */
}

static void test_by_sign(void **state)
{
    (void)state;
    static const int64_t cases[][3] = {{5000, 100, 3}, {5000, 64, 6},  {300, 290, 2},  {40, 40, 8},
                                       {37, 37, 64},   {600, 600, 13}, {2999, 1000, 9}};
    vq_kmeans_config c = {.iters = 12, .seed = 4, .by_sign = true};
    for (int i = 0; i < VQ_COUNT(cases); i++)
        for (int skew = 0; skew < 3; skew++) {
            c.max_points_per_centroid = (i + skew) % 2 ? 256 : 2; /* 2: parts train on some */
            const int64_t n = cases[i][0], D = cases[i][2];
            vq_arena_reset(&arena, 0);
            vq_tensor x = random_vectors(n, D, 1, false);
            /* Signs of one kind, or mostly so: shares differ widely then. */
            for (int64_t j = 0; j < n * D && skew; j++)
                if (skew == 2 || j % 7 != 3)
                    ((float *)x.data)[j] = fabsf(((float *)x.data)[j]) + 0.01f;
            check_by_sign(&x, cases[i][1], &c);
        }
}

/* Part of the coordinates whose code has the other sign. */
static double flips(const vq_tensor *x, const vq_tensor *codes, const vq_tensor *idx)
{
    int64_t n = 0;
    for (int64_t i = 0; i < x->dim[0]; i++)
        n += __builtin_popcountll(signs_of(x, i) ^
                                  signs_of(codes, ((const uint32_t *)idx->data)[i]));
    return (double)n / (double)vq_tensor_count(x);
}

static void test_by_sign_with_too_few_codes(void **state)
{
    (void)state;
    const int64_t n = 4000, K = 64, D = 8;
    vq_arena_reset(&arena, 0);
    vq_tensor x = random_vectors(n, D, 1, false), codes = new_tensor(VQ_F32, K, D);
    vq_tensor idx = new_list(n);
    vq_kmeans_config c = {.iters = 30, .seed = 2, .max_points_per_centroid = 256};
    const vq_kmeans_result plain = cluster(&be, &codes, &idx, &x, NULL, &c);
    const double before = flips(&x, &codes, &idx);
    assert_int_equal(plain.patterns, 0);
    c.by_sign = true;
    const vq_kmeans_result r = cluster(&be, &codes, &idx, &x, NULL, &c);
    assert_int_equal(r.patterns, 256);
    assert_true(flips(&x, &codes, &idx) < 0.9 * before);
    assert_true(r.objective < 1.1 * plain.objective);
}

static void test_by_sign_same_bits_for_any_threads(void **state)
{
    (void)state;
    const int64_t n = 60011, D = 4, Ks[] = {60, 7};
    const vq_kmeans_config c = {
        .iters = 6, .seed = 9, .max_points_per_centroid = 100, .by_sign = true};
    for (int at = 0; at < VQ_COUNT(Ks); at++) {
        vq_tensor codes[3], idx[3];
        vq_arena_reset(&arena, 0);
        vq_tensor x = random_vectors(n, D, 1, false);
        for (int t = 0; t < 3; t++) {
            vq_backend with;
            codes[t] = new_tensor(VQ_F32, Ks[at], D), idx[t] = new_list(n);
            assert_int_equal(vq_cpu_open(&with, t + 1), VQ_OK);
            cluster(&with, &codes[t], &idx[t], &x, NULL, &c);
            vq_cpu_close(&with);
            assert_memory_equal(codes[t].data, codes[0].data, vq_tensor_bytes(&codes[0]));
            assert_memory_equal(idx[t].data, idx[0].data, vq_tensor_bytes(&idx[0]));
        }
    }
}

static void test_by_sign_with_faiss(void **state)
{
    (void)state;
    vq_arena_reset(&arena, 0);
    vq_tensor x = random_vectors(800, 3, 1, false);
    const vq_kmeans_config c = {
        .faiss = true, .iters = 5, .seed = 1, .max_points_per_centroid = 256, .by_sign = true};
    check_by_sign(&x, 20, &c);
}

static void test_by_sign_takes_no_start(void **state)
{
    (void)state;
    vq_arena_reset(&arena, 0);
    vq_tensor x = random_vectors(100, 8, 1, false), codes = new_tensor(VQ_F32, 4, 8);
    vq_tensor idx = new_list(100);
    vq_kmeans_config c = {.iters = 2, .max_points_per_centroid = 256, .by_sign = true};
    assert_int_equal(vq_kmeans(&be, &arena, &codes, &idx, &x, &codes, &c, NULL), VQ_EUNSUPPORTED);
    assert_non_null(strstr(vq_error_message(), "kmeans.by_sign"));
    assert_non_null(strstr(vq_error_message(), "Set kmeans.start to own"));
    vq_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_assign_equals_brute_force),
        cmocka_unit_test(test_blocks_have_each_row_once),
        cmocka_unit_test(test_parts_must_stand_in_order),
        cmocka_unit_test(test_update_is_the_mean),
        cmocka_unit_test(test_objective_never_rises),
        cmocka_unit_test(test_ends_when_the_gain_is_small),
        cmocka_unit_test(test_same_bits_for_any_threads),
        cmocka_unit_test(test_no_code_stays_empty),
        cmocka_unit_test(test_as_many_codes_as_vectors),
        cmocka_unit_test(test_as_good_as_faiss),
        cmocka_unit_test(test_faiss_takes_no_start),
        cmocka_unit_test(test_by_sign),
        cmocka_unit_test(test_by_sign_is_each_by_itself),
        cmocka_unit_test(test_by_sign_with_too_few_codes),
        cmocka_unit_test(test_by_sign_same_bits_for_any_threads),
        cmocka_unit_test(test_by_sign_with_faiss),
        cmocka_unit_test(test_by_sign_takes_no_start),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
