/* exporter.h - the quantized model written by all ranks: each stage its own tensors, rank 0 what
 * makes the folder complete. */
#pragma once
#include "export.h"
#include "job.h"

/* Writes the dense model folder dir. Collective. Fails: VQ_EFILE, VQ_EMEM (disk full). */
vq_status vq_export_model(vq_job *job, vq_mode mode, const char *dir);
