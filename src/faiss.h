/* faiss.h - k-means by FAISS: the reference's clustering, and the oracle of ours.
 *
 * faiss.c alone includes FAISS. Its C API cannot take start codes. */
#pragma once
#include "tensor.h"

/* FAISS Clustering over IndexFlatL2, then the nearest code of every vector.
 *
 * codes      f32 [K, D], out
 * idx        u32 [n], out
 * objective  sum of squared distances of all n vectors to their codes; out, may be NULL
 * x          f32 [n, D], in; n >= K
 *
 * At most max_points_per_centroid * K of the vectors, drawn by seed, train the codes. Host. Local.
 * FAISS's own bits: they depend on its version and BLAS.
 * Fails: VQ_EMEM or VQ_EINTERNAL with FAISS's text. */
vq_status vq_faiss_kmeans(vq_tensor *codes, vq_tensor *idx, double *objective, const vq_tensor *x,
                          int iters, int seed, int max_points_per_centroid);
