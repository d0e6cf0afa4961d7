/* parts.h - how the kernels of both backends cut the parts of a k-means into blocks.
 *
 * Blocks of `size` rows, a part's last one being smaller, have numbers that need no table: those of
 * part p begin at ceil(first / size) + p, which leaves room for all blocks of the parts before it,
 * and a few numbers that no block has. Rows are a part's vectors, or its codes. */
#pragma once
#include "backend.h"
#include "element.h"

typedef enum vq_part_rows { VQ_PART_VECTORS, VQ_PART_CODES } vq_part_rows;

/* A number's block: rows [first, first + n) of part `part`; n <= 0: there is none. */
typedef struct vq_part_block {
    int64_t part, first, n;
} vq_part_block;

/* Numbers that blocks may have where there are `rows` rows in all. */
VQ_HD int64_t vq_part_blocks(int64_t rows, int64_t n_parts, int64_t size)
{
    return VQ_CEIL_DIV(rows, size) + n_parts;
}

/* The number of part p's first block. */
VQ_HD int64_t vq_part_first(const vq_kmeans_part *parts, int64_t p, vq_part_rows rows, int64_t size)
{
    return VQ_CEIL_DIV(rows == VQ_PART_CODES ? parts[p].code : parts[p].first, size) + p;
}

VQ_HD vq_part_block vq_part_block_at(const vq_kmeans_part *parts, int64_t n_parts,
                                     vq_part_rows rows, int64_t size, int64_t number)
{
    int64_t p = 0;
    for (int64_t end = n_parts; p + 1 < end;) { /* the last part that begins there or before */
        const int64_t middle = p + (end - p) / 2;
        if (vq_part_first(parts, middle, rows, size) <= number)
            p = middle;
        else
            end = middle;
    }
    const vq_kmeans_part *part = &parts[p];
    const int64_t before = (number - vq_part_first(parts, p, rows, size)) * size;
    const int64_t first = rows == VQ_PART_CODES ? part->code : part->first;
    const int64_t n = (rows == VQ_PART_CODES ? part->codes : part->n) - before;
    const vq_part_block block = {p, first + before, before < 0 ? 0 : VQ_MIN(n, size)};
    return block;
}
