/* memory.h - what this process may take of the host's memory: what the machine has free, or what
 * its control groups leave of their limits (Slurm's --mem, containers), if that is less. */
#pragma once
#include "base.h"

/* free_bytes counts pages that the system can take back at once (files). root: "", or the folder
 * that stands for /, whose proc and sys/fs/cgroup are read. Local. Fails: VQ_EMEM (no
 * proc/meminfo). */
vq_status vq_memory_info(const char *root, size_t *free_bytes, size_t *total_bytes);
