/* maker.h - how a replica makes its share of the linears' grids and codebooks, layer after layer.
 *
 * A layer's linears go into RUN/init-LAYER-REPLICA.h5 as soon as the layer is made; a run from GPTQ
 * or with grids by the inputs that shares (share.h) also leaves grid-LAYER-REPLICA.h5 for runs with
 * other codebooks, or takes another run's. Rank 0 leaves the codebook that k-means starts from,
 * init-start.h5. */
#pragma once
#include "codebook.h"
#include "feed.h"
#include "gptq.h"
#include "grid.h"
#include "shelf.h"

/* The settings in the form that grid and codebook take. */
typedef struct vq_maker_settings {
    vq_grid_config grid;
    vq_gptq_config gptq;
    vq_codebook_config codebook;
} vq_maker_settings;

vq_maker_settings vq_maker_settings_of(const vq_config *c, vq_dtype model_dtype);

/* Calls each(slot's linear) for the quantized linears of the stage in order. */
#define VQ_FOR_EACH_LINEAR(job, slot, l)                                                           \
    for (int64_t slot = (job)->stage.first * VQ_N_KINDS; slot < (job)->stage.last * VQ_N_KINDS;    \
         slot++)                                                                                   \
        if (vq_pool_codes(&(job)->pool, slot) > 0 &&                                               \
            (l = vq_stage_linear(&(job)->stage, slot / VQ_N_KINDS,                                 \
                                 (vq_linear_kind)(slot % VQ_N_KINDS))))

/* The files of this run's layers; job->init_key is set. */
vq_shelf vq_maker_shelf(const vq_job *job);

/* Makes the layers of which missing [N] counts linears. Collective: all ranks fail alike.
 * Fails: VQ_ENOTFINITE (a weight), VQ_EFILE (another run's grids), VQ_EMEM, VQ_ESTOPPED (asked for,
 * after a layer). */
vq_status vq_maker_run(vq_job *job, const vq_maker_settings *set, const vq_data *data,
                       double *missing);

/* Removes the run's own grid files, when all is made: its init files have all but the residuals.
 * Rank 0's. Local. */
vq_status vq_maker_tidy(vq_job *job);
