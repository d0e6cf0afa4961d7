/* cuda_geometry - how launches are cut. */
#include "cuda_geometry.h"

#define ROW_TURNS 4
#define PACK_BYTES 16

/* Scores of a block of attention: 64 MiB of floats. The first queries of a block see fewer keys
 * than it multiplies, so a block is also at most a quarter of the sequence, and not less than a
 * tile. */
#define SCORES ((int64_t)16 << 20)
#define MIN_QUERIES 128

int vq_cuda_row_threads(int64_t width, int64_t pack)
{
    int64_t threads = VQ_CEIL_DIV(VQ_CEIL_DIV(width, pack), ROW_TURNS);
    threads = VQ_CEIL_DIV(VQ_MAX(threads, 1), VQ_WARP) * VQ_WARP;
    return (int)VQ_MIN(threads, VQ_BLOCK_MAX);
}

unsigned vq_cuda_blocks(int64_t n, int64_t per_block)
{
    return (unsigned)VQ_MAX(VQ_MIN(VQ_CEIL_DIV(n, per_block), VQ_GRID_MAX), 1);
}

int vq_cuda_pack(int64_t width, size_t bytes, uintptr_t align)
{
    int pack = (int)(PACK_BYTES / bytes);
    while (pack > 1 && (width % pack || align % ((uintptr_t)pack * bytes))) pack /= 2;
    return VQ_MAX(pack, 1);
}

int64_t vq_cuda_attention_queries(int64_t T, int64_t T_k, int64_t heads)
{
    int64_t queries = VQ_MIN(SCORES / VQ_MAX(heads * T_k, 1), VQ_CEIL_DIV(T, 4));
    queries = VQ_MAX(queries / 16 * 16, VQ_MIN(MIN_QUERIES, SCORES / VQ_MAX(heads * T_k, 1)));
    return VQ_MAX(VQ_MIN(queries, T), 1);
}
