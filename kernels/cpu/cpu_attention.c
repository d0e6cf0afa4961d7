/* cpu_attention - causal attention, forward and backward: blocks of queries against all the keys
 * that they see.
 *
 * A block's scores [queries, keys] are in the thread's slab; block products are BLAS, keys that a
 * whole block cannot see are never multiplied. The backward makes the probabilities again from lse.
 * There a task is one head and every n_chunks-th block of its queries, so that tasks are about
 * equal; each sums the keys' gradients for itself, and they are added in the order of heads and
 * chunks. */
#include "cpu_real.h"

#include "cpu_lanes.h"
#include "cpu_ops.h"
#include "element.h"
#include "error.h"

/* Queries of a block: T / 8, as a block's products also cover what its first queries do not see,
 * but not few, as each block packs all its keys anew. */
#define MIN_QUERIES 64
#define MAX_QUERIES 256
#define TASKS 24

typedef struct shape {
    int64_t T, T_k, H, G, S;
    int64_t prefix;  /* keys before the first query */
    int64_t queries; /* of a block */
    int64_t n_blocks;
} shape;

static vq_status make_shape(const vq_tensor *q, const vq_tensor *k, shape *out)
{
    shape s = {.T = q->dim[1], .T_k = k->dim[1], .H = q->dim[2], .G = k->dim[2], .S = q->dim[3]};
    s.prefix = s.T_k - s.T;
    /* The backward keeps two blocks of scores in a slab. */
    s.queries = VQ_MAX(MIN_QUERIES, VQ_MIN(s.T / 8, MAX_QUERIES));
    s.queries = VQ_MIN(s.queries, VQ_CPU_SLAB / 2 / VQ_MAX(s.T_k, 1));
    VQ_CHECK(s.queries > 0, VQ_EMEM,
             "attention: %lld keys, expected at most %lld in a sequence. Lower seqlen",
             (long long)s.T_k, (long long)(VQ_CPU_SLAB / 2));
    s.n_blocks = VQ_CEIL_DIV(s.T, s.queries);
    *out = s;
    return VQ_OK;
}

/* The queries of a block, and the keys that the last of them sees. */
static int64_t block_rows(const shape *s, int64_t block)
{
    return VQ_MIN(s->queries, s->T - block * s->queries);
}

static int64_t block_keys(const shape *s, int64_t block)
{
    return s->prefix + block * s->queries + block_rows(s, block);
}

/* Where sequence b, position t, head h begins. */
static real *at(const vq_tensor *x, int64_t b, int64_t t, int64_t h)
{
    return (real *)x->data + b * x->stride[0] + (t * x->dim[2] + h) * x->dim[3];
}

vq_status vq_cpu_attention_fwd(void *ctx, vq_tensor *out, vq_tensor *lse, const vq_tensor *q,
                               const vq_tensor *k, const vq_tensor *v, double scale)
{
    vq_cpu *cpu = ctx;
    shape s;
    VQ_TRY(make_shape(q, k, &s));
    int64_t n_tasks = q->dim[0] * s.H * s.n_blocks;
#pragma omp parallel for num_threads(cpu->n_threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < n_tasks; task++) {
        /* Long blocks first: the last to finish is a short one. */
        int64_t block = s.n_blocks - 1 - task / (q->dim[0] * s.H);
        int64_t b = task / s.H % q->dim[0], h = task % s.H, g = h / (s.H / s.G);
        int64_t first = block * s.queries, rows = block_rows(&s, block);
        int64_t keys = block_keys(&s, block), ld = s.H * s.S, ld_k = s.G * s.S;
        real *p = vq_cpu_slab(cpu), total[MAX_QUERIES];

        vq_cpu_blas_gemm(false, true, rows, keys, s.S, (real)scale, at(q, b, first, h), ld,
                         at(k, b, 0, g), ld_k, 0, p, keys);
        for (int64_t i = 0; i < rows; i++) {
            real *row = p + i * keys, top = row[0];
            int64_t seen = s.prefix + first + i + 1;
#pragma omp simd reduction(max : top)
            for (int64_t u = 0; u < seen; u++) top = row[u] > top ? row[u] : top;
#pragma omp simd
            for (int64_t u = 0; u < seen; u++) row[u] = vq_exp(row[u] - top);
            memset(row + seen, 0, (size_t)(keys - seen) * sizeof *row);
            total[i] = lanes_sum(row, seen);
            ((real *)lse->data)[(b * s.H + h) * s.T + first + i] =
                top + (real)log((double)total[i]);
        }
        vq_cpu_blas_gemm(false, false, rows, s.S, keys, 1, p, keys, at(v, b, 0, g), ld_k, 0,
                         at(out, b, first, h), ld);
        for (int64_t i = 0; i < rows; i++) {
            real *o = at(out, b, first + i, h), factor = 1 / total[i];
            for (int64_t j = 0; j < s.S; j++) o[j] *= factor;
        }
    }
    return VQ_OK;
}

/* dq of one block of queries, and its part of the head's dk, dv [keys, S]: written by the first
 * block (the one that sees most keys), added to by the others. */
static void backward_block(const vq_cpu *cpu, const shape *s, int64_t b, int64_t h, int64_t block,
                           bool first_block, vq_tensor *dq, real *dk, real *dv,
                           const vq_tensor *dout, const vq_tensor *q, const vq_tensor *k,
                           const vq_tensor *v, const vq_tensor *out, const vq_tensor *lse,
                           real scale)
{
    int64_t g = h / (s->H / s->G), first = block * s->queries, rows = block_rows(s, block);
    int64_t keys = block_keys(s, block), ld = s->H * s->S, ld_k = s->G * s->S;
    real *p = vq_cpu_slab(cpu), *ds = p + VQ_CPU_SLAB / 2, keep = first_block ? 0 : 1;
    const real *q_block = at(q, b, first, h), *dout_block = at(dout, b, first, h);

    vq_cpu_blas_gemm(false, true, rows, keys, s->S, scale, q_block, ld, at(k, b, 0, g), ld_k, 0, p,
                     keys);
    vq_cpu_blas_gemm(false, true, rows, keys, s->S, 1, dout_block, ld, at(v, b, 0, g), ld_k, 0, ds,
                     keys);
    for (int64_t i = 0; i < rows; i++) {
        real *p_row = p + i * keys, *ds_row = ds + i * keys;
        int64_t seen = s->prefix + first + i + 1;
        real log_sum = ((const real *)lse->data)[(b * s->H + h) * s->T + first + i];
        /* sum_u p dp = dout . out, without the pass over the keys. */
        real mean = lanes_dot(at(dout, b, first + i, h), at(out, b, first + i, h), s->S);
#pragma omp simd
        for (int64_t u = 0; u < seen; u++) {
            p_row[u] = vq_exp(p_row[u] - log_sum);
            ds_row[u] = p_row[u] * (ds_row[u] - mean);
        }
        memset(p_row + seen, 0, (size_t)(keys - seen) * sizeof *p_row);
        memset(ds_row + seen, 0, (size_t)(keys - seen) * sizeof *ds_row);
    }
    vq_cpu_blas_gemm(true, false, keys, s->S, rows, 1, p, keys, dout_block, ld, keep, dv, s->S);
    vq_cpu_blas_gemm(true, false, keys, s->S, rows, scale, ds, keys, q_block, ld, keep, dk, s->S);
    vq_cpu_blas_gemm(false, false, rows, s->S, keys, scale, ds, keys, at(k, b, 0, g), ld_k, 0,
                     at(dq, b, first, h), ld);
}

vq_status vq_cpu_attention_bwd(void *ctx, vq_tensor *dq, vq_tensor *dk, vq_tensor *dv,
                               const vq_tensor *dout, const vq_tensor *q, const vq_tensor *k,
                               const vq_tensor *v, const vq_tensor *out, const vq_tensor *lse,
                               double scale)
{
    vq_cpu *cpu = ctx;
    shape s;
    VQ_TRY(make_shape(q, k, &s));
    if (s.T == 0) return VQ_OK;
    int64_t n_chunks = VQ_MIN(VQ_CEIL_DIV(TASKS, s.H), s.n_blocks), n_tasks = s.H * n_chunks;
    int64_t head_size = s.T_k * s.S, group = s.H / s.G;
    size_t mark = vq_arena_mark(&cpu->scratch);
    real *partial = NULL; /* [task][dk or dv][T_k, S] */
    VQ_TRY(VQ_NEW(&cpu->scratch, n_tasks * 2 * head_size, &partial));

    for (int64_t b = 0; b < q->dim[0]; b++) {
#pragma omp parallel for num_threads(cpu->n_threads) schedule(dynamic, 1)
        for (int64_t task = 0; task < n_tasks; task++) {
            int64_t h = task / n_chunks, last = s.n_blocks - 1 - task % n_chunks;
            real *mine = partial + task * 2 * head_size;
            for (int64_t block = last; block >= 0; block -= n_chunks)
                backward_block(cpu, &s, b, h, block, block == last, dq, mine, mine + head_size,
                               dout, q, k, v, out, lse, (real)scale);
        }
#pragma omp parallel for num_threads(cpu->n_threads) schedule(static)
        for (int64_t u = 0; u < s.T_k; u++) {
            for (int64_t task = 0; task < n_tasks; task++) {
                if (u >= block_keys(&s, s.n_blocks - 1 - task % n_chunks)) continue;
                int64_t g = task / n_chunks / group;
                real *to_k = at(dk, b, u, g), *to_v = at(dv, b, u, g);
                const real *from = partial + task * 2 * head_size + u * s.S;
                for (int64_t j = 0; j < s.S; j++) to_k[j] += from[j];
                for (int64_t j = 0; j < s.S; j++) to_v[j] += from[head_size + j];
            }
        }
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}
