/* cpu_loss - the losses over the head's logits, in chunks of tokens: product, softmax, loss and
 * gradient of one chunk before the next, so that all logits at once never exist; and the squared
 * error of a layer's output. */
#include "cpu_real.h"

#include "cpu_ops.h"
#include "element.h"
#include "error.h"

/* Logits that a chunk may hold, teacher's and student's together: 64 MiB of floats. */
#define CHUNK_LOGITS ((int64_t)16 << 20)

#define BLOCK 512 /* of a row: what is summed from the first-level cache */

#pragma GCC diagnostic ignored "-Wpsabi" /* vectors stay inside one function */
typedef real eight __attribute__((vector_size(8 * sizeof(real))));
typedef double eight_f64 __attribute__((vector_size(8 * sizeof(double))));

/* Sum in f64, lanes in a fixed order. */
static double sum_f64(const real *x, int64_t n)
{
    eight_f64 lanes = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        eight v;
        memcpy(&v, x + i, sizeof v);
        lanes += __builtin_convertvector(v, eight_f64);
    }
    double sum = 0;
    for (int j = 0; j < 8; j++) sum += lanes[j];
    for (; i < n; i++) sum += (double)x[i];
    return sum;
}

static real max_of(const real *x, int64_t n)
{
    real top = x[0];
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
    return top;
}

/* KL(p || q) of one row of teacher's and student's logits, both divided by tau;
 * with dlogits, student becomes (q - p) factor. Destroys both rows. */
static double kd_row(real *student, real *teacher, int64_t V, bool grad, double factor)
{
    real top_s = max_of(student, V), top_t = max_of(teacher, V), cross[BLOCK];
    double sum_s = 0, sum_t = 0, sum_cross = 0;
    for (int64_t i = 0; i < V; i += BLOCK) {
        int64_t n = VQ_MIN(V - i, BLOCK);
        real *s = student + i, *t = teacher + i;
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            real a = s[j] - top_s, b = t[j] - top_t;
            s[j] = vq_exp(a);
            t[j] = vq_exp(b);
            cross[j] = t[j] * (b - a);
        }
        sum_s += sum_f64(s, n);
        sum_t += sum_f64(t, n);
        sum_cross += sum_f64(cross, n);
    }
    if (grad) {
        real q = (real)(factor / sum_s), p = (real)(factor / sum_t);
#pragma omp simd
        for (int64_t i = 0; i < V; i++) student[i] = student[i] * q - teacher[i] * p;
    }
    return sum_cross / sum_t + log(sum_s / sum_t);
}

/* -log softmax(logits)[target]; with grad, logits become (softmax - onehot) factor. */
static double nll_row(real *logits, int64_t V, int32_t target, bool grad, double factor)
{
    if (target < 0) {
        if (grad) memset(logits, 0, (size_t)V * sizeof *logits);
        return 0;
    }
    real top = max_of(logits, V), wanted = logits[target];
    double sum = 0;
    for (int64_t i = 0; i < V; i += BLOCK) {
        int64_t n = VQ_MIN(V - i, BLOCK);
        real *s = logits + i;
#pragma omp simd
        for (int64_t j = 0; j < n; j++) s[j] = vq_exp(s[j] - top);
        sum += sum_f64(s, n);
    }
    if (grad) {
        real q = (real)(factor / sum);
#pragma omp simd
        for (int64_t i = 0; i < V; i++) logits[i] *= q;
        logits[target] -= (real)factor;
    }
    return log(sum) + (double)top - (double)wanted;
}

/* Tokens of a chunk, so that all chunks but the last are equal. */
static int64_t chunk_tokens(int64_t n, int64_t logits_per_token)
{
    int64_t most = VQ_MAX(CHUNK_LOGITS / logits_per_token, 16);
    int64_t n_chunks = VQ_CEIL_DIV(n, most);
    return (VQ_CEIL_DIV(n, n_chunks) + 15) / 16 * 16;
}

vq_status vq_cpu_head_kd(void *ctx, double *loss, vq_tensor *dx, const vq_tensor *x,
                         const vq_tensor *x_teacher, const vq_tensor *head,
                         const vq_tensor *head_teacher, double tau, double scale)
{
    vq_cpu *cpu = ctx;
    int64_t n = x->dim[0], V = head->dim[0];
    if (n == 0) return VQ_OK;
    int64_t chunk = chunk_tokens(n, 2 * V);
    size_t mark = vq_arena_mark(&cpu->scratch);
    real *student = NULL, *teacher = NULL;
    double *row_loss = NULL;
    VQ_TRY(VQ_NEW(&cpu->scratch, chunk * V, &student));
    VQ_TRY(VQ_NEW(&cpu->scratch, chunk * V, &teacher));
    VQ_TRY(VQ_NEW(&cpu->scratch, chunk, &row_loss));
    for (int64_t first = 0; first < n; first += chunk) {
        int64_t rows = VQ_MIN(n - first, chunk);
        vq_tensor s = vq_tensor_2d(student, VQ_REAL, rows, V);
        vq_tensor t = vq_tensor_2d(teacher, VQ_REAL, rows, V);
        vq_tensor x_rows = vq_tensor_rows(x, first, rows);
        vq_tensor teacher_rows = vq_tensor_rows(x_teacher, first, rows);
        VQ_TRY(vq_cpu_gemm(cpu, &s, &x_rows, false, head, true, 1 / tau, 0));
        VQ_TRY(vq_cpu_gemm(cpu, &t, &teacher_rows, false, head_teacher, true, 1 / tau, 0));
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, rows *V)) schedule(static)
        for (int64_t i = 0; i < rows; i++)
            row_loss[i] = kd_row(student + i * V, teacher + i * V, V, dx != NULL, tau * scale);
        for (int64_t i = 0; i < rows; i++) *loss += tau * tau * scale * row_loss[i];
        if (!dx) continue;
        vq_tensor dx_rows = vq_tensor_rows(dx, first, rows);
        VQ_TRY(vq_cpu_gemm(cpu, &dx_rows, &s, false, head, false, 1, 0));
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

vq_status vq_cpu_head_nll(void *ctx, double *loss, vq_tensor *dx, const vq_tensor *x,
                          const vq_tensor *head, const vq_tensor *targets, double scale)
{
    vq_cpu *cpu = ctx;
    int64_t n = x->dim[0], V = head->dim[0];
    const int32_t *target = targets->data;
    for (int64_t i = 0; i < n; i++)
        VQ_CHECK(target[i] >= -1 && target[i] < V, VQ_EINTERNAL,
                 "head_nll: targets[%lld] is %d, expected -1 to %lld. The tokens do not belong to "
                 "this model: use its own tokenizer",
                 (long long)i, (int)target[i], (long long)V - 1);
    if (n == 0) return VQ_OK;
    int64_t chunk = chunk_tokens(n, V);
    size_t mark = vq_arena_mark(&cpu->scratch);
    real *logits = NULL;
    double *row_loss = NULL;
    VQ_TRY(VQ_NEW(&cpu->scratch, chunk * V, &logits));
    VQ_TRY(VQ_NEW(&cpu->scratch, chunk, &row_loss));
    for (int64_t first = 0; first < n; first += chunk) {
        int64_t rows = VQ_MIN(n - first, chunk);
        vq_tensor l = vq_tensor_2d(logits, VQ_REAL, rows, V);
        vq_tensor x_rows = vq_tensor_rows(x, first, rows);
        VQ_TRY(vq_cpu_gemm(cpu, &l, &x_rows, false, head, true, 1, 0));
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, rows *V)) schedule(static)
        for (int64_t i = 0; i < rows; i++)
            row_loss[i] = nll_row(logits + i * V, V, target[first + i], dx != NULL, scale);
        for (int64_t i = 0; i < rows; i++) *loss += scale * row_loss[i];
        if (!dx) continue;
        vq_tensor dx_rows = vq_tensor_rows(dx, first, rows);
        VQ_TRY(vq_cpu_gemm(cpu, &dx_rows, &l, false, head, false, 1, 0));
    }
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}

/* Rows go to any thread; their sums are added in order. */
vq_status vq_cpu_mse(void *ctx, double *loss, vq_tensor *dy, const vq_tensor *y,
                     const vq_tensor *target, double scale)
{
    vq_cpu *cpu = ctx;
    const int64_t n = y->dim[0], E = y->dim[1];
    const real slope = (real)(2 * scale);
    size_t mark = vq_arena_mark(&cpu->scratch);
    double *row_loss = NULL;
    VQ_TRY(VQ_NEW(&cpu->scratch, n, &row_loss));
#pragma omp parallel for num_threads(vq_cpu_threads(cpu, n *E)) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const real *a = (const real *)y->data + i * E, *b = (const real *)target->data + i * E;
        real *d = dy ? (real *)dy->data + i * E : NULL, square[BLOCK];
        row_loss[i] = 0;
        for (int64_t first = 0; first < E; first += BLOCK) {
            const int64_t size = VQ_MIN(E - first, BLOCK);
            for (int64_t j = 0; j < size; j++) {
                const real error = a[first + j] - b[first + j];
                square[j] = error * error;
                if (d) d[first + j] = slope * error;
            }
            row_loss[i] += sum_f64(square, size);
        }
    }
    for (int64_t i = 0; i < n; i++) *loss += scale * row_loss[i];
    vq_arena_reset(&cpu->scratch, mark);
    return VQ_OK;
}
