/* plot.h - figures drawn by gnuplot as SVG text, to stand inside a page.
 *
 * Text and axes have the classes and colours that VQ_PLOT_CSS gives a light and a dark form; data
 * has colours that are clear on both. gnuplot sees no file: script and SVG stay in memory. */
#pragma once
#include "arena.h"

/* Colours are numbers from 0 up: after the palette's last the first comes again, with the next
 * dash. "#2a78c8", "solid" (as CSS has it). */
const char *vq_plot_colour(int number);
const char *vq_plot_dash(int number);

/* Rules for the page; var(--ink) and var(--line) are the page's. */
#define VQ_PLOT_CSS                                                                                \
    "figure svg{display:block;width:100%;height:auto}"                                             \
    "figure svg text{fill:var(--ink);font-family:inherit}"                                         \
    "figure svg .gridline{stroke:var(--line)}"                                                     \
    "figure svg [stroke='rgb(119, 119, 119)']{stroke:var(--ink)}"

typedef struct vq_series {
    const char *label;
    int colour;
    int64_t n;           /* points; of bars: as many as there are bars */
    const double *x, *y; /* y NAN: no point; bars have no x */
    bool marked;         /* points on the line */
} vq_series;

/* Lines over whole numbers x; or, where there are `bars`, rows of stacked bars from the top down.
 */
typedef struct vq_figure {
    const char *title, *x_label; /* with the unit */
    bool log_x, log_y;           /* y only where its values span much, and none is 0 */
    bool each_x;                 /* a mark at each x that occurs */
    bool of_runs; /* the series are runs: the page has one legend for all such figures */
    const vq_series *series;
    int n_series;
    const char **bars; /* [n_bars] their names */
    int64_t n_bars;
    char *svg; /* out */
} vq_figure;

/* Draws all. *why is NULL; or says in a sentence why there are no figures (gnuplot is missing, or
 * failed), and every svg is NULL. Fails: VQ_EMEM. Local. */
vq_status vq_plot_draw(vq_arena *arena, vq_figure *figures, int n, const char **why);
