/* run.h - the whole job: the phases in order. */
#pragma once
#include "comm.h"
#include "config.h"

/* Quantizes config->model into the folder config->out and prints the closing table. Collective.
 * Phases whose files are there and fit are not done again. Fails: every code; VQ_ESTOPPED means:
 * run again. */
vq_status vq_run(const vq_config *config, vq_comm *comm, int argc, const char *const *argv);
