/* exporter.h - the quantized model written by all ranks: each stage its own tensors, rank 0 what
 * makes the folder complete. */
#pragma once
#include "export.h"
#include "job.h"

/* Which weights of a job are its result. Pure. */
vq_mode vq_export_mode(const vq_config *config);

/* A model that is read from the place where one is written would be lost.
 * key names the input (NULL: none) in the message. Fails: VQ_EUSAGE. Local. */
vq_status vq_export_check_place(const vq_config *config, const char *dir, const char *key,
                                const char *input);

/* A model in dir that vqround has not written would be lost. Fails: VQ_EUSAGE. Local. */
vq_status vq_export_check_stranger(vq_arena *scratch, const vq_config *config, const char *dir);

/* Whether the format will hold what the settings make of the model: known, and said, before hours
 * are spent. Local, the same on every rank. Fails: VQ_EUSAGE (a scale's type), VQ_EUNSUPPORTED (no
 * linear can be packed). */
vq_status vq_export_check(vq_job *job);

/* Writes the model folder dir in the format of the settings; bytes, out: of all tensors in it.
 * Collective. Fails: VQ_EFILE, VQ_EMEM (disk full), VQ_EUNSUPPORTED (a scale that the format does
 * not hold). */
vq_status vq_export_model(vq_job *job, vq_mode mode, const char *dir, double *bytes);

/* `vqround export`: the model of the finished run config->run into the folder config->out. The run
 * folder stays as it is. Collective. Fails: VQ_EFILE (no run, or not finished), VQ_EUSAGE (another
 * model is in the folder), and as vq_export_check and vq_export_model. */
vq_status vq_export_run(const vq_config *config, vq_comm *comm);
