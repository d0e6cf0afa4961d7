/* test_formats - linears packed by gptqmodel and compressed-tensors
 * (tests/golden/golden_packed.py): our words are theirs, and our weights too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "expect.h"
#include "packed.h"
#include "safetensors.h"

static const char *const parts[][VQ_N_PARTS] = {
    {"qweight", "scales", "qzeros", "g_idx", NULL},
    {"weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"}};

static vq_arena arena;
static vq_safetensors golden;

static const vq_tensor *find(const char *name, const char *part)
{
    char whole[128];
    snprintf(whole, sizeof whole, "%s.%s", name, part);
    return vq_safetensors_find(&golden, whole);
}

/* Theirs gives their weight. */
static void check_reading(const char *name, const vq_packed *theirs)
{
    const vq_tensor *expected = find(name, "weight");
    vq_tensor weight;
    EXPECT_OK(vq_tensor_new(&arena, VQ_HOST, expected->dtype, 2, expected->dim, &weight));
    EXPECT_OK(vq_packed_weight(&arena, theirs, &weight));
    if (memcmp(weight.data, expected->data, vq_tensor_bytes(&weight)) != 0)
        fail_msg("%s: the weights differ", name);
}

/* The same numbers packed by us are their bytes. */
static void check_writing(const char *name, const vq_packed *theirs, const vq_packed *described,
                          bool mixed)
{
    vq_packed ours = *described;
    for (int k = 0; k < VQ_N_PARTS; k++)
        if (ours.part[k].ndim > 0)
            EXPECT_OK(vq_arena_alloc(&arena, vq_tensor_bytes(&ours.part[k]), &ours.part[k].data));
    EXPECT_OK(vq_packed_fill(&arena, &ours, find(name, "q")->data, find(name, "scale")->data,
                             find(name, "zero")->data, mixed ? theirs->part[VQ_GROUPS].data : NULL,
                             name));
    for (int k = 0; k < VQ_N_PARTS; k++)
        if (ours.part[k].ndim > 0 &&
            memcmp(ours.part[k].data, theirs->part[k].data, vq_tensor_bytes(&ours.part[k])) != 0)
            fail_msg("%s: %s differs", name, described->part[k].name);
}

/* "gptq-4-asym-32", "gptq1-...": version 1 of asymmetric grids, "gptq-4-mixed-32": g_idx of
 * act-order; "compressed-4-sym-row". */
static void check_case(const char *name)
{
    const int f = !strncmp(name, "compressed", 10);
    char kind[16], group[16], bits;
    assert_int_equal(sscanf(strchr(name, '-'), "-%c-%15[a-z]-%15s", &bits, kind, group), 3);
    const bool symmetric = !strcmp(kind, "sym"), mixed = !strcmp(kind, "mixed");
    const vq_packing p = {.format = f ? VQ_EXPORT_COMPRESSED_TENSORS : VQ_EXPORT_GPTQ,
                          .bits = bits - '0',
                          .group_size = !strcmp(group, "row") ? -1 : 32,
                          .symmetric = symmetric,
                          .less_one = !f && (symmetric || name[4] == '1'),
                          .scattered = mixed};
    const size_t mark = vq_arena_mark(&arena);
    const vq_tensor *weight = find(name, "weight");
    vq_packed theirs, described;
    vq_packed_describe(&p, weight->dim[0], weight->dim[1], weight->dtype, &described);
    theirs = described;
    for (int k = 0; k < VQ_N_PARTS; k++) {
        const vq_tensor *part = parts[f][k] ? find(name, parts[f][k]) : NULL;
        if ((described.part[k].ndim > 0) != (part != NULL))
            fail_msg("%s: part %d is there in one only", name, k);
        if (!part) continue;
        assert_string_equal(described.part[k].name, parts[f][k]);
        assert_int_equal(part->dtype, described.part[k].dtype);
        assert_true(vq_tensor_same_shape(part, &described.part[k]));
        theirs.part[k] = *part;
    }
    check_reading(name, &theirs);
    /* Version 1 is written of symmetric grids alone. */
    if (symmetric || !p.less_one) check_writing(name, &theirs, &described, mixed);
    vq_arena_reset(&arena, mark);
}

static void packages_agree(void **state)
{
    (void)state;
    int n = 0;
    EXPECT_OK(vq_arena_init(&arena, "test", (size_t)64 << 20));
    EXPECT_OK(vq_safetensors_open(&arena, TESTS_DIR "/golden/packed.safetensors", &golden));
    for (int64_t i = 0; i < golden.n; i++) {
        char name[64];
        const char *dot = strchr(golden.tensor[i].name, '.');
        if (strcmp(dot, ".weight") != 0) continue;
        snprintf(name, sizeof name, "%.*s", (int)(dot - golden.tensor[i].name),
                 golden.tensor[i].name);
        check_case(name);
        n++;
    }
    assert_int_equal(n, 4 * (2 * 2 * 2 + 2));
    vq_safetensors_close(&golden);
    vq_arena_close(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(packages_agree)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
