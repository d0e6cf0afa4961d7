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

/* The GPU of a rank: its number on the node modulo the devices that it sees (a launcher may show
 * each rank just one). n_devices >= 1. */
int vq_topo_device(int local_rank, int n_devices);

/* Whether two of n ranks have the same GPU (gpu [n]: a number that names each rank's in the whole
 * job); then *a < *b are the first such ranks. NCCL refuses that; MPI does not. */
bool vq_topo_shares_gpu(const uint64_t *gpu, int n, int *a, int *b);

/* Pairs of neighbouring stages for communicators of two ranks: with parity 0 stages (0, 1), (2, 3)
 * and so on, with parity 1 stages (1, 2), (3, 4)... The number of this rank's pair, the same on
 * both ranks and no other, and its place in it (0: the stage before, 1: the next); -1 if it has
 * none. */
int vq_topo_pair(const vq_topo *topo, int parity, int *place);

/* The part of `count` things that is this replica's: [*first, *first + *n). */
void vq_topo_share(const vq_topo *topo, int replica, int64_t count, int64_t *first, int64_t *n);
