/* gptq - the order of the columns and the damping; the sweep itself is the backend's. */
#include "gptq.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "grid.h"
#include "log.h"
#include "place.h"

#define TRIES 4
#define DAMP_FACTOR 10

typedef struct column {
    double size;
    int32_t place;
} column;

/* Large ones first; equal ones keep their order, whatever qsort does. */
static int by_falling_size(const void *a, const void *b)
{
    const column *x = a, *y = b;
    if (x->size != y->size) return x->size < y->size ? 1 : -1;
    return x->place - y->place;
}

/* Dead columns get a diagonal of 1; the mean of all. */
static vq_status read_diagonal(const vq_backend *be, vq_arena *arena, column *columns,
                               uint8_t *dead, double *mean, vq_tensor *h, const char *name)
{
    const int64_t n = h->dim[0];
    vq_tensor diagonal = vq_tensor_2d(h->data, VQ_F64, n, 1), there, host;
    double sum = 0;
    diagonal.place = h->place;
    diagonal.stride[0] = n + 1;
    VQ_TRY(vq_tensor_new(arena, be->place, VQ_F64, VQ_DIMS(n, 1), &there));
    VQ_TRY(vq_copy(be, &there, &diagonal));
    VQ_TRY(vq_place_host(be, arena, &there, &host));
    for (int64_t i = 0; i < n; i++) {
        double *at = (double *)host.data + i;
        VQ_CHECK(isfinite(*at), VQ_ENOTFINITE,
                 "%s: column %lld of its inputs has the mean square %g, expected a finite number. "
                 "Check the weights, or leave out the text that does this",
                 name, (long long)i, *at);
        dead[i] = *at == 0;
        if (dead[i]) *at = 1;
        columns[i] = (column){*at, (int32_t)i};
        sum += *at;
    }
    *mean = sum / (double)n;
    VQ_TRY(vq_place_back(be, &host, &there));
    return vq_copy(be, &diagonal, &there);
}

vq_status vq_gptq_factor_make(const vq_backend *be, vq_arena *arena, vq_gptq_factor *f,
                              vq_tensor *h, const char *name, const vq_gptq_config *c)
{
    const int64_t n = h->dim[0];
    column *columns;
    double mean;
    vq_tensor order, dead;
    VQ_ASSERT(n <= INT32_MAX);
    VQ_TRY(vq_tensor_new(arena, be->place, be->real, VQ_DIMS(n, n), &f->u));
    VQ_TRY(vq_tensor_new(arena, be->place, VQ_I32, VQ_DIMS(n), &f->order));
    VQ_TRY(vq_tensor_new(arena, be->place, VQ_U8, VQ_DIMS(n), &f->dead));
    const size_t mark = vq_arena_mark(arena);
    VQ_TRY(vq_place_room(arena, &f->order, &order));
    VQ_TRY(vq_place_room(arena, &f->dead, &dead));
    VQ_TRY(VQ_NEW(arena, n, &columns));
    VQ_TRY(read_diagonal(be, arena, columns, dead.data, &mean, h, name));
    if (c->act_order) qsort(columns, (size_t)n, sizeof *columns, by_falling_size);
    for (int64_t i = 0; i < n; i++) ((int32_t *)order.data)[i] = columns[i].place;
    VQ_TRY(vq_place_back(be, &order, &f->order));
    VQ_TRY(vq_place_back(be, &dead, &f->dead));
    vq_arena_reset(arena, mark);

    bool positive = false;
    double percdamp = c->percdamp;
    for (int i = 0; i < TRIES && !positive; i++) {
        if (i > 0) {
            const double more = percdamp > 0 ? percdamp * DAMP_FACTOR : 1e-4;
            vq_log(VQ_LOG_WARN, "%s: not positive definite with damping %g, now with %g", name,
                   percdamp, more);
            percdamp = more;
        }
        f->damp = percdamp * mean;
        VQ_TRY(vq_inverse_factor(be, &f->u, &positive, h, &f->order, f->damp));
    }
    VQ_CHECK(positive, VQ_EUSAGE,
             "%s: the second moments of its inputs are not positive definite with a damping of %g, "
             "expected them to be. Raise gptq.percdamp, or give more calibration windows",
             name, percdamp);
    return VQ_OK;
}

vq_status vq_gptq_quantize(const vq_backend *be, vq_quant *q, vq_tensor *ints, vq_tensor *rest,
                           double *error, const vq_tensor *w, const vq_gptq_factor *f,
                           const vq_gptq_config *c)
{
    vq_tensor there;
    VQ_ASSERT(q->bits == c->bits);
    VQ_TRY(vq_bring(be, w, &there));
    VQ_TRY(vq_gptq_sweep(be, q, ints, rest, error, &there, &f->u, &f->order, &f->dead, &c->rule));
    if (isfinite(*error)) return VQ_OK;
    VQ_TRY(vq_grid_check_finite(be, q, w, c->rule.scale_dtype));
    VQ_FAIL(VQ_ENOTFINITE,
            "%s: the errors that GPTQ carries along grew beyond any number, expected them to stay "
            "small. Raise gptq.percdamp, or give more calibration windows",
            w->name ? w->name : "weight");
}
