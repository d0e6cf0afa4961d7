/* dashboard.h - runs as one page and one table: report.html and report.csv.
 *
 * The page stands alone: style, figures and a small script are in it, nothing is loaded. One run
 * gets its numbers and curves; of several there is a table that can be sorted, the messages of
 * those that are not done, and figures that compare. */
#pragma once
#include <limits.h>
#include <stdio.h>

#include "runs.h"

typedef struct vq_dashboard {
    int64_t n_runs, n_in_state[VQ_RUN_UNFINISHED + 1];
    char html[PATH_MAX], csv[PATH_MAX]; /* csv "": none was asked for */
    char no_figures[512];               /* why there are none; "" */
} vq_dashboard;

/* Reports on the runs in dirs (as vq_runs_find takes them) in the folder out, which is made.
 * table: where their main numbers are printed as text; NULL: nowhere.
 * Fails: VQ_EFILE (no run in a folder, out cannot be written), VQ_EMEM. Local. */
vq_status vq_dashboard_write(const char *const *dirs, int n_dirs, const char *out, bool with_csv,
                             FILE *table, vq_dashboard *d);
