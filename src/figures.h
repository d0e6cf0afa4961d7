/* figures.h - what of some runs is shown as a figure: of one run its curves, layers, phases and
 * ranks, of several how they compare. */
#pragma once
#include "plot.h"
#include "runs.h"

#define VQ_FIGURES 14     /* at most */
#define VQ_FIGURE_BARS 40 /* in a figure, at most; the first are shown */

/* Makes the figures of n runs, named by labels, for vq_plot_draw; one without data is left out.
 * Fails: VQ_EMEM. Local. */
vq_status vq_figures_make(vq_arena *arena, const vq_run_info *runs, int64_t n,
                          const char *const *labels, vq_figure figures[VQ_FIGURES], int *n_figures);

/* The colour (vq_plot_colour) of run i in every figure. */
int vq_figures_colour(int64_t i);

/* A unit in which a number of seconds, or of bytes, is easy to read: "min", 60. */
typedef struct vq_unit {
    const char *name;
    double size;
} vq_unit;
vq_unit vq_unit_of_time(double seconds);
vq_unit vq_unit_of_bytes(double bytes);
