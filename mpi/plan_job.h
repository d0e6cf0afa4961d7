/* plan_job.h - the plan of `vqround plan`, and of a job before it loads anything. */
#pragma once
#include "plan.h"

/* `vqround plan`: reads, measures, prints; on rank 0, for --ranks or the ranks of this job.
 * Fails: VQ_EFILE, VQ_EUNSUPPORTED (config.json), VQ_EUSAGE (ranks, stages and replicas that do not
 * fit), VQ_EMEM. */
vq_status vq_plan_run(const vq_config *config, const vq_comm *comm);

/* Plans an open job, says so in the log, and sets job->keep. Where neither stages nor replicas were
 * given it also sets job->topo: the most replicas, of those that the batch can share, for which
 * every node has the memory. Collective.
 * Fails: VQ_EMEM on every rank when the ranks of a node need more memory than it has free: before
 * anything is loaded, with the number short and the keys that lower it. */
vq_status vq_plan_job(vq_job *job);
