/* cuda_plan - the numbers behind cuda_plan.h, and where they come from. */
#include "cuda_plan.h"

#define SUM_ELEMENTS 4096 /* of a block at least: a thread's four turns */

/* A weight costs about 3 bytes of the device's memory, filling the shared memories of some 130
 * multiprocessors costs 130 tables from the second-level cache, which is several times faster. */
#define WEIGHTS_PER_LOGIT 256

/* Rounding a million codes takes an H100 about a microsecond (30 instructions each), a launch some
 * three, and a part of it goes on while memory is read. */
#define TABLE_WEIGHTS ((int64_t)8 << 20)

/* A chunk reads 13 bytes for half a code's 32 bytes of the table that it leaves. */
#define VECTORS_PER_CODE 0.5

/* Logits of a chunk: 128 MiB of floats. With V = 32,000 that is 512 tokens of teacher and student,
 * which keep all of a device busy in one product. */
#define LOSS_LOGITS ((int64_t)32 << 20)
#define LOSS_TOKENS 64 /* chunks are multiples of this, the tile of a product */

/* With fewer rows a product with the head waits for its weights: an H100 multiplies some 300 times
 * in the time of a byte. */
#define LEAST_TOKENS 256

#define SYRK_COLUMNS 2048

/* Of the GPUs that are planned for: of a block of an A100, and of a B200. */
#define LEAST_SHARED ((size_t)162 << 10)
#define MOST_MULTIPROCESSORS 148

int64_t vq_cuda_sum_blocks(int64_t n)
{
    return VQ_MAX(VQ_MIN(VQ_CEIL_DIV(n, SUM_ELEMENTS), VQ_CUDA_SUM_BLOCKS), 1);
}

bool vq_cuda_round_shares_table(int64_t n_weights, int64_t table_bytes, size_t shared_bytes)
{
    return table_bytes <= (int64_t)shared_bytes &&
           n_weights >= WEIGHTS_PER_LOGIT * (table_bytes / (int64_t)sizeof(float));
}

bool vq_cuda_round_makes_table(int64_t n_weights)
{
    return n_weights >= TABLE_WEIGHTS;
}

vq_cuda_round_plan vq_cuda_plan_round_bwd(int64_t n_weights, int64_t K, int64_t D,
                                          size_t shared_bytes, int multiprocessors)
{
    const int64_t code_bytes = D * (int64_t)sizeof(int32_t);
    const int64_t least = VQ_MAX((int64_t)(VECTORS_PER_CODE * (double)(K * D)), 1);
    vq_cuda_round_plan p = {0};
    p.chunks = VQ_MAX(VQ_MIN(n_weights / least, multiprocessors), 1);
    p.chunk = VQ_CEIL_DIV(VQ_CEIL_DIV(n_weights, p.chunks), VQ_CUDA_ROUND_TURN);
    p.chunk = VQ_MAX(p.chunk, 1) * VQ_CUDA_ROUND_TURN;
    p.chunks = VQ_MAX(VQ_CEIL_DIV(n_weights, p.chunk), 1);
    p.codes = VQ_MIN(K, (int64_t)shared_bytes / code_bytes);
    if (p.codes == 0) return p;
    p.ranges = VQ_CEIL_DIV(K, p.codes);
    p.codes = VQ_CEIL_DIV(K, p.ranges);
    p.shared_bytes = (size_t)(p.codes * code_bytes);
    p.partial = p.chunks * K * D;
    return p;
}

int64_t vq_cuda_loss_tokens(int64_t n, int64_t logits)
{
    const int64_t most = VQ_MAX(LOSS_LOGITS / logits, LEAST_TOKENS);
    const int64_t chunks = VQ_CEIL_DIV(n, most);
    return VQ_CEIL_DIV(VQ_CEIL_DIV(n, chunks), LOSS_TOKENS) * LOSS_TOKENS;
}

/* Both models' logits of a chunk, the gradient, and heads of another type converted. */
static size_t head_bytes(const vq_cuda_pass *p)
{
    const int64_t models = p->has_teacher ? 2 : 1;
    const int64_t logits = vq_cuda_loss_tokens(p->T, models * p->V) * p->V;
    const size_t gradient = p->is_backward ? p->act_bytes : 0;
    return (size_t)logits * (4 * (size_t)models + gradient) + (size_t)p->T * sizeof(double) +
           (p->converts ? (size_t)(p->V * p->E) * p->act_bytes : 0);
}

size_t vq_cuda_pass_bytes(const vq_cuda_pass *p)
{
    size_t most = p->is_backward ? (size_t)(p->T * p->H) * 4 : 0; /* attention's row sums */
    if (p->V > 0) most = VQ_MAX(most, head_bytes(p));
    if (p->converts) most = VQ_MAX(most, (size_t)p->largest * p->act_bytes);
    if (p->K > 0) {
        const vq_cuda_round_plan round =
            vq_cuda_plan_round_bwd(p->largest, p->K, p->D, LEAST_SHARED, MOST_MULTIPROCESSORS);
        const size_t tables = p->is_backward ? (size_t)round.partial * 4 : 0;
        most = VQ_MAX(most, tables + (size_t)(p->K * p->D) * 4);
    }
    return most;
}

int vq_cuda_fixed_bits(int bits, int64_t count)
{
    while (count > 1) count = VQ_CEIL_DIV(count, 2), bits--;
    return bits;
}

int64_t vq_cuda_syrk_columns(int64_t n)
{
    return VQ_MIN(n, SYRK_COLUMNS);
}

size_t vq_cuda_factor_bytes(int64_t n)
{
    return 2 * (size_t)(n * n) * sizeof(double) + (size_t)n * sizeof(double);
}
