/* inputs.h - what is said of a model before work is put into it. */
#pragma once
#include "job.h"

/* Logs what the model is, warns where it is hardly the one that is meant, or where a word of `skip`
 * leaves nothing out. Local, the same on every rank. Fails: VQ_EUNSUPPORTED (a packed model), and
 * as vq_export_check. */
vq_status vq_inputs_check(vq_job *job);
