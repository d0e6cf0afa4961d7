/* cuda_geometry - how launches are cut. */
#include "cuda_geometry.h"

#define ROW_TURNS 4
#define PACK_BYTES 16

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
