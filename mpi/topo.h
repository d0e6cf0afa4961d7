/* topo.h - which rank holds which layers: ranks = stages x replicas.
 *
 * Rank r is stage r % stages of replica r / stages, so the stages of a replica are neighbours and
 * share a node where they can. Pure functions: the same on every rank. */
#pragma once
#include "config.h"
#include "model.h"

typedef struct vq_topo {
    int n_stages, n_replicas;
    int stage, replica;  /* this rank's */
    int64_t first, last; /* its layers */
} vq_topo;

/* This rank's place in a world of `size` ranks. --stages and --replicas 0 are chosen: as many
 * replicas as the batch has sequences to share (they need no pipeline), the rest stages.
 * Fails: VQ_EUSAGE, naming the numbers that would fit. */
vq_status vq_topo_make(const vq_config *config, const vq_model_config *model, int rank, int size,
                       vq_topo *topo);

/* Cuts the layers so that the slowest stage is as fast as it can be; lm_head counts on the last.
 * cut [n_stages + 1], out: stage s has layers [cut[s], cut[s + 1]); 1 <= n_stages <= N. */
void vq_topo_cut(const vq_model_config *model, int n_stages, int64_t *cut);

/* The rank of a stage of a replica. */
int vq_topo_rank(const vq_topo *topo, int stage, int replica);
bool vq_topo_is_last(const vq_topo *topo);

/* The part of `count` things that is this replica's: [*first, *first + *n). */
void vq_topo_share(const vq_topo *topo, int replica, int64_t count, int64_t *first, int64_t *n);
