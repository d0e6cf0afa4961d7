/* topo - cutting layers into stages. */
#include "topo.h"

#include "error.h"

#define MAX_STAGES 4096

/* A step of training multiplies a layer's weights three times (forward, gradient of the input,
 * gradient of the codes), and so the head's: student, teacher, gradient of the input. */
static double head_in_layers(const vq_model_config *c)
{
    return (double)(c->V * c->E_embed) / (double)vq_layer_weights(c);
}

void vq_topo_cut(const vq_model_config *c, int n_stages, int64_t *cut)
{
    const double head = head_in_layers(c);
    const int64_t others = n_stages - 1;
    int64_t best = c->N; /* layers of the last stage */
    double least = 0;
    for (int64_t n = 1; others && n <= c->N - others; n++) {
        const double slowest = VQ_MAX((double)VQ_CEIL_DIV(c->N - n, others), (double)n + head);
        if (n == 1 || slowest < least) best = n, least = slowest;
    }
    cut[0] = 0;
    for (int64_t s = 0; s < others; s++)
        cut[s + 1] = cut[s] + (c->N - best) / others + (s < (c->N - best) % others);
    cut[n_stages] = c->N;
}

vq_status vq_topo_make(const vq_config *config, const vq_model_config *model, int rank, int size,
                       vq_topo *topo)
{
    int64_t stages = config->stages, replicas = config->replicas;
    if (!stages && !replicas) {
        replicas = 1;
        for (int64_t r = 1; r <= VQ_MIN(config->train.batch, size); r++)
            if (size % r == 0) replicas = r;
    }
    if (!stages) stages = size / replicas;
    if (!replicas) replicas = size / stages;
    VQ_CHECK(stages >= 1 && replicas >= 1 && stages * replicas == size, VQ_EUSAGE,
             "--stages %lld --replicas %lld: the job has %d rank%s: expected stages x replicas = "
             "%d. Leave both out, or start %lld ranks (mpirun -n, srun)",
             (long long)config->stages, (long long)config->replicas, size, size == 1 ? "" : "s",
             size, (long long)(VQ_MAX(config->stages, 1) * VQ_MAX(config->replicas, 1)));
    VQ_CHECK(stages <= model->N && stages <= MAX_STAGES, VQ_EUSAGE,
             "%s%lld%s: the model has %lld layers: expected at most a stage a layer. Start fewer "
             "ranks, or share the batch with --replicas",
             config->stages ? "--stages " : "", (long long)stages,
             config->stages ? "" : " stages, by the ranks", (long long)model->N);
    VQ_CHECK(replicas <= config->train.batch || replicas == 1, VQ_EUSAGE,
             "--replicas %lld: a step has %lld sequences (--batch-size): expected at least one a "
             "replica. Raise --batch-size, or use stages",
             (long long)replicas, (long long)config->train.batch);
    int64_t cut[MAX_STAGES + 1];
    vq_topo_cut(model, (int)stages, cut);
    *topo = (vq_topo){.n_stages = (int)stages,
                      .n_replicas = (int)replicas,
                      .stage = rank % (int)stages,
                      .replica = rank / (int)stages};
    topo->first = cut[topo->stage];
    topo->last = cut[topo->stage + 1];
    return VQ_OK;
}

int vq_topo_rank(const vq_topo *topo, int stage, int replica)
{
    return replica * topo->n_stages + stage;
}

bool vq_topo_is_last(const vq_topo *topo)
{
    return topo->stage == topo->n_stages - 1;
}

void vq_topo_share(const vq_topo *topo, int replica, int64_t count, int64_t *first, int64_t *n)
{
    const int64_t each = count / topo->n_replicas, more = count % topo->n_replicas;
    *first = replica * each + VQ_MIN(replica, more);
    *n = each + (replica < more);
}

int vq_topo_device(int local_rank, int n_devices)
{
    return local_rank % n_devices;
}

bool vq_topo_shares_gpu(const uint64_t *gpu, int n, int *a, int *b)
{
    for (int i = 0; i < n; i++)
        for (int j = i + 1; j < n; j++)
            if (gpu[i] == gpu[j]) {
                *a = i, *b = j;
                return true;
            }
    return false;
}

int vq_topo_pair(const vq_topo *topo, int parity, int *place)
{
    *place = (topo->stage + parity) % 2;
    const int lower = topo->stage - *place;
    if (lower < 0 || lower + 1 >= topo->n_stages) return -1;
    return vq_topo_rank(topo, lower, topo->replica);
}
