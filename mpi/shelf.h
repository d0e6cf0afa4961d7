/* shelf.h - what a run keeps of each layer as soon as it is made: RUN/PREFIX-LAYER-REPLICA.h5 with
 * a replica's share of the layer's linears, whole or not there. A layer is whole when all of its
 * linears are found, whoever made them. */
#pragma once
#include "job.h"

typedef struct vq_shelf {
    const char *kind, *prefix; /* of the files */
    const char *part;          /* what a linear has there in any case */
    const char *settings;      /* what the key is of, for messages */
    int layout;
    uint64_t key;
} vq_shelf;

/* The layer's files in a folder, sorted: full paths in arena. */
vq_status vq_shelf_files(vq_arena *arena, const vq_shelf *s, const char *dir, int64_t layer,
                         char ***paths, int64_t *n);

/* Begins this replica's file of a layer; vq_h5_finish lets it appear. Local. */
vq_status vq_shelf_create(vq_job *job, const vq_shelf *s, int64_t layer, vq_h5 *h);

/* A linear's tensors, those that have data, by its name. Local. */
vq_status vq_shelf_write(vq_job *job, vq_h5 *h, vq_vqlinear *l);
vq_status vq_shelf_read(vq_job *job, vq_h5 *h, vq_vqlinear *l);

/* Notes in `found` which of the layer's linears the run folder has; with `read`, reads those that
 * were not found before. Local. Fails: VQ_EFILE (damaged, or of other settings). */
vq_status vq_shelf_read_layer(vq_job *job, const vq_shelf *s, int64_t layer, bool read,
                              bool found[VQ_N_KINDS]);

/* missing [N]: how many linears of each layer the run folder lacks, added up over the ranks. With
 * `read`, those that are there are read, but with `are_made` not again what this rank makes.
 * Collective. Fails: as vq_shelf_read_layer. */
vq_status vq_shelf_look(vq_job *job, const vq_shelf *s, bool read, bool are_made, double *missing);

/* Whether no layer lacks a linear. Pure. */
bool vq_shelf_is_whole(const vq_job *job, const double *missing);
