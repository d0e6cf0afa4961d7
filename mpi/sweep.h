/* sweep.h - GPTQ through the layers, one after the other; or grids by what the linears read.
 *
 * All calibration windows pass through layer l with its own weights, and what its linears read adds
 * up to their Hessians; then each linear is rounded; then the windows have passed (or, with
 * quantized propagation, pass once more with the new weights) and are layer l + 1's inputs. With a
 * grid in GPTQ's place the variances and means of the inputs do for Hessians, and linears are
 * rounded to nearest. The inputs of the layer at work are kept for all windows, in the host's
 * memory or in a file that goes away with the sweep; all else is at the place of the stage's
 * backend.
 *
 * Among ranks: a stage begins when the one before hands it the inputs of its first layer, so any
 * number of stages gives the same bits. Replicas share the windows, their Hessians are summed
 * (vq_job_sum_replicas), and each rounds its share of the linears (all of them with quantized
 * propagation). */
#pragma once
#include "feed.h"
#include "gptq.h"
#include "grid.h"

/* Takes a linear that was just rounded: its quant has base, scale and zero, ints is set, and where
 * it has an order, that too. rest real [out, in], there too, columns as quant's; error: of its
 * outputs, as vq_gptq_sweep says. Rounded to nearest, it has no ints, and error is 0. */
typedef vq_status (*vq_sweep_fn)(void *ctx, vq_vqlinear *linear, const vq_tensor *rest,
                                 double error);

typedef struct vq_sweep {
    vq_job *job;                  /* borrowed; NULL: there are no other ranks */
    vq_stage *stage;              /* borrowed */
    const vq_gptq_config *config; /* borrowed */
    const vq_grid_config *grid;   /* borrowed; what is rounded to instead, or NULL */
    bool quantized;               /* a layer reads what the quantized layers before it give; only
                                     without a grid */
    vq_sweep_fn take;             /* is called for the linears of which is_mine is true */
    /* Before and after a layer: one that is found, which all replicas agree on, has been rounded
     * before, and its inputs only pass through it. NULL: all are rounded. */
    vq_status (*begin)(void *ctx, int64_t layer, bool *is_found);
    vq_status (*end)(void *ctx, int64_t layer);
    bool (*is_mine)(void *ctx, const vq_vqlinear *linear); /* NULL: all */
    void *ctx;
    vq_arena *arena;  /* borrowed; the inputs, and what a layer needs for a while */
    int64_t n, T;     /* windows of this rank, tokens a window */
    int64_t n_all;    /* windows of all replicas */
    vq_tensor inputs; /* act [n * T, E], host: of the next layer; no data: in the file */
    vq_h5 file;
} vq_sweep;

/* The whole sweep over the calibration windows: all layers of every rank's stage. job, stage,
 * config, quantized, take, begin, end, is_mine, ctx and arena are set by the caller. Collective:
 * with several ranks a failure ends the job. Fails: as vq_sweep_layer, begin, end; VQ_EPEER;
 * VQ_ESTOPPED, as vq_sweep_in_turn. */
vq_status vq_sweep_run(vq_sweep *s, const vq_windows *windows);

/* The layers of the whole model one after the other, each on the ranks that have it: layer(ctx, l,
 * &is_made) there, and between two stages pass_on(ctx, true) on the one and pass_on(ctx, false) on
 * the next. Collective; layer shows its progress, for which the others wait. A failure ends the
 * job, since they may be waiting for what this rank hands on. Fails: VQ_ESTOPPED after a layer, if
 * one of the ranks that have it is asked to stop or, once it has made one, would pass its time
 * limit; on those ranks and on the later stages' alone. */
vq_status vq_sweep_in_turn(vq_job *job, vq_status (*pass_on)(void *ctx, bool on),
                           vq_status (*layer)(void *ctx, int64_t l, bool *is_made), void *ctx);

/* --- its parts, all local but for the sum in vq_sweep_layer ----------------------------------- */

/* Makes room for n windows of T tokens, out of n_all. Inputs of more than memory_bytes are kept in
 * the file path instead of the host's memory. Fails: VQ_EMEM, VQ_EFILE. */
vq_status vq_sweep_open(vq_sweep *s, int64_t n, int64_t n_all, int64_t T, size_t memory_bytes,
                        const char *path);

/* The inputs of the next layer for windows [first, first + count): act [count * T, E] at be's
 * place. Set them for all windows before the first layer; after the last they are the next stage's.
 */
vq_status vq_sweep_set_inputs(vq_sweep *s, int64_t first, const vq_tensor *x);
vq_status vq_sweep_get_inputs(const vq_sweep *s, int64_t first, vq_tensor *x);

/* The inputs of layer 0: embeddings of ids i32 [n, T] (host). */
vq_status vq_sweep_embed(vq_sweep *s, const vq_tensor *ids);

/* What the linears of a layer read: attn_in, attn, mlp_in, act. */
#define VQ_N_READ 4

/* The Hessians of layer `layer` over the windows of all replicas, by what is read, in the arena:
 * f64 [in, in], the lower triangles; no data where nothing that reads it is to be rounded. With
 * s->grid f64 [2, in]: means of squares, and means. Then the inputs are those of the layer after,
 * unless it is to read what the quantized layer gives. Collective over the replicas. */
vq_status vq_sweep_hessians(vq_sweep *s, int64_t layer, vq_tensor hessian[VQ_N_READ]);

/* Rounds the linears of layer `layer` (counted in the model) that are marked quantized, which have
 * room for base, scale and zero, and for `ints` where these are to be kept; then the inputs are
 * those of the layer after. error: summed over this rank's linears. Collective over the replicas.
 * Fails: as vq_gptq_factor_make, vq_gptq_quantize and take. */
vq_status vq_sweep_layer(vq_sweep *s, int64_t layer, double *error);

/* All inputs to the next stage (on) or from the one before, a window at a time. Fails: VQ_EPEER. */
vq_status vq_sweep_pass_on(vq_sweep *s, bool on);

/* All windows through a layer in this mode: its outputs become the inputs. */
vq_status vq_sweep_pass(vq_sweep *s, int64_t layer, vq_mode mode);

void vq_sweep_close(vq_sweep *s);
