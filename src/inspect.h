/* inspect.h - what a model folder, a run folder, a checkpoint or any .h5 holds, on stdout. */
#pragma once
#include "base.h"

/* Fails: VQ_EFILE (path is none of these, or malformed). json: one JSON object instead of text. */
vq_status vq_inspect(const char *path, bool json);
