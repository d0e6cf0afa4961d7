/* cuda_bring - host memory to the device through pinned pieces: the host fills one while the other
 * is on its way, and has its source back when the call returns; and back in the same way.
 *
 * Weights that do not stay on the device come by a stream of their own, into two slots in turn:
 * while the product with one computes, the next one arrives. A slot is written when all that was
 * queued before the call after its own is done. */
#include <string.h>

#include "cuda_ops.h"

#define PIECE ((size_t)8 << 20)
#define PART ((size_t)1 << 20) /* what a thread copies at a time */

enum { N_PINNED = 2, N_SLOTS = 2 };

struct vq_cuda_bring {
    struct {
        void *data;
        cudaEvent_t sent; /* the piece is through */
    } pinned[N_PINNED];
    int piece; /* the next one's turn */
    cudaStream_t stream;
    cudaEvent_t arrived;
    struct {
        void *data;
        cudaEvent_t read; /* queued on the backend's stream: what may read the slot came before */
    } slot[N_SLOTS];
    size_t slot_bytes;
    int next; /* the slot of the next call */
};

vq_status vq_cuda_bring_open(vq_cuda *cuda)
{
    vq_cuda_bring *b;
    VQ_TRY(VQ_NEW(&cuda->memory, 1, &cuda->bring));
    b = cuda->bring;
    memset(b, 0, sizeof *b);
    for (int i = 0; i < N_PINNED; i++) {
        VQ_CUDA(cudaHostAlloc(&b->pinned[i].data, PIECE, cudaHostAllocDefault));
        VQ_CUDA(cudaEventCreateWithFlags(&b->pinned[i].sent, cudaEventDisableTiming));
    }
    for (int i = 0; i < N_SLOTS; i++)
        VQ_CUDA(cudaEventCreateWithFlags(&b->slot[i].read, cudaEventDisableTiming));
    VQ_CUDA(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking));
    VQ_CUDA(cudaEventCreateWithFlags(&b->arrived, cudaEventDisableTiming));
    return VQ_OK;
}

void vq_cuda_bring_close(vq_cuda *cuda)
{
    vq_cuda_bring *b = cuda->bring;
    if (!b) return;
    if (b->stream) (void)cudaStreamSynchronize(b->stream);
    for (int i = 0; i < N_PINNED; i++) {
        if (b->pinned[i].sent) (void)cudaEventDestroy(b->pinned[i].sent);
        if (b->pinned[i].data) (void)cudaFreeHost(b->pinned[i].data);
    }
    for (int i = 0; i < N_SLOTS; i++)
        if (b->slot[i].read) (void)cudaEventDestroy(b->slot[i].read);
    if (b->arrived) (void)cudaEventDestroy(b->arrived);
    if (b->stream) (void)cudaStreamDestroy(b->stream);
    cuda->bring = NULL;
}

/* By several threads: one alone is slower than the bus. */
static void fill(uint8_t *to, const uint8_t *from, size_t bytes)
{
    const int64_t parts = (int64_t)VQ_CEIL_DIV(bytes, PART);
#pragma omp parallel for schedule(static) if (parts > 1)
    for (int64_t i = 0; i < parts; i++) {
        const size_t done = (size_t)i * PART;
        memcpy(to + done, from + done, VQ_MIN(PART, bytes - done));
    }
}

vq_status vq_cuda_send(vq_cuda *cuda, cudaStream_t stream, void *dst, const void *src, size_t bytes)
{
    vq_cuda_bring *b = cuda->bring;
    for (size_t done = 0; done < bytes; done += PIECE) {
        const size_t n = VQ_MIN(PIECE, bytes - done);
        const int piece = b->piece;
        b->piece = (piece + 1) % N_PINNED;
        VQ_CUDA(cudaEventSynchronize(b->pinned[piece].sent));
        fill(b->pinned[piece].data, (const uint8_t *)src + done, n);
        VQ_CUDA(cudaMemcpyAsync((uint8_t *)dst + done, b->pinned[piece].data, n,
                                cudaMemcpyHostToDevice, stream));
        VQ_CUDA(cudaEventRecord(b->pinned[piece].sent, stream));
    }
    return VQ_OK;
}

/* One piece is on its way while the host empties the other. */
vq_status vq_cuda_take(vq_cuda *cuda, void *dst, const void *src, size_t bytes)
{
    vq_cuda_bring *b = cuda->bring;
    const size_t n_pieces = VQ_CEIL_DIV(bytes, PIECE);
    for (size_t i = 0; i <= n_pieces; i++) {
        const size_t piece = i % N_PINNED, before = (i + 1) % N_PINNED;
        if (i < n_pieces) {
            const size_t done = i * PIECE;
            VQ_CUDA(cudaEventSynchronize(b->pinned[piece].sent));
            VQ_CUDA(cudaMemcpyAsync(b->pinned[piece].data, (const uint8_t *)src + done,
                                    VQ_MIN(PIECE, bytes - done), cudaMemcpyDeviceToHost,
                                    cuda->stream));
            VQ_CUDA(cudaEventRecord(b->pinned[piece].sent, cuda->stream));
        }
        if (i == 0) continue;
        const size_t done = (i - 1) * PIECE;
        VQ_CUDA(cudaEventSynchronize(b->pinned[before].sent));
        fill((uint8_t *)dst + done, b->pinned[before].data, VQ_MIN(PIECE, bytes - done));
    }
    return VQ_OK;
}

/* Both slots anew, when nothing reads or writes the old ones. */
static vq_status make_slots(vq_cuda *cuda, size_t bytes)
{
    vq_cuda_bring *b = cuda->bring;
    VQ_TRY(vq_cuda_bring_trim(cuda));
    for (int i = 0; i < N_SLOTS; i++) VQ_TRY(vq_arena_alloc(&cuda->slots, bytes, &b->slot[i].data));
    b->slot_bytes = bytes;
    return VQ_OK;
}

vq_status vq_cuda_bring_trim(vq_cuda *cuda)
{
    vq_cuda_bring *b = cuda->bring;
    VQ_CUDA(cudaStreamSynchronize(cuda->stream));
    VQ_CUDA(cudaStreamSynchronize(b->stream));
    vq_arena_reset(&cuda->slots, 0);
    vq_arena_trim(&cuda->slots);
    b->slot_bytes = 0;
    return VQ_OK;
}

vq_status vq_cuda_bring_weight(void *ctx, const void *src_host, size_t bytes, void **there)
{
    vq_cuda *cuda = ctx;
    vq_cuda_bring *b = cuda->bring;
    if (bytes > b->slot_bytes) VQ_TRY(make_slots(cuda, bytes));
    const int slot = b->next, other = (slot + 1) % N_SLOTS;
    b->next = other;
    VQ_CUDA(cudaEventRecord(b->slot[other].read, cuda->stream));
    VQ_CUDA(cudaStreamWaitEvent(b->stream, b->slot[slot].read, 0));
    VQ_TRY(vq_cuda_send(cuda, b->stream, b->slot[slot].data, src_host, bytes));
    VQ_CUDA(cudaEventRecord(b->arrived, b->stream));
    VQ_CUDA(cudaStreamWaitEvent(cuda->stream, b->arrived, 0));
    *there = b->slot[slot].data;
    return VQ_OK;
}
