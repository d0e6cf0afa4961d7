/* loss - task loss and regularizer from the backend's ops. */
#include "loss.h"

#include "error.h"

#define REG_START 0.1 /* of the steps: before, the codes follow the task alone */

double vq_loss_beta_of(const vq_config *config, int64_t step, int64_t steps)
{
    const double n = (double)steps, hi = config->train.beta_hi;
    if ((double)step <= n * config->train.beta_hold) return hi;
    return hi - (hi - config->train.beta_lo) * ((double)step / n);
}

double vq_loss_beta(const vq_config *config, int64_t step)
{
    return vq_loss_beta_of(config, step, config->train.steps);
}

bool vq_loss_is_on(int64_t step, int64_t steps)
{
    return (double)step >= (double)steps * REG_START;
}

bool vq_loss_has_reg(const vq_config *config, int64_t step)
{
    return config->train.rounding == VQ_ROUNDING_SOFT && config->train.round_weight > 0 &&
           vq_loss_is_on(step, config->train.steps);
}

vq_status vq_loss_task(const vq_stage *stage, const vq_config *config, const vq_tensor *hidden,
                       const vq_tensor *teacher, const vq_tensor *head_teacher,
                       const vq_tensor *ids, int64_t first, int64_t n_sequences, double *loss,
                       vq_tensor *dhidden)
{
    const vq_backend *be = stage->be;
    const vq_tensor *head = &stage->there->head;
    const int64_t T = vq_tensor_count(ids), n = hidden->dim[0];
    if (config->train.loss == VQ_LOSS_KD)
        return vq_head_kd(be, loss, dhidden, hidden, teacher, head, head_teacher,
                          config->train.kd_temperature,
                          config->train.kd_alpha / (double)n_sequences);
    size_t mark = vq_arena_mark(stage->scratch);
    const int32_t *id = ids->data;
    int32_t *target;
    vq_tensor targets;
    VQ_TRY(VQ_NEW(stage->scratch, n, &target));
    for (int64_t i = 0; i < n; i++) target[i] = first + i + 1 < T ? id[first + i + 1] : -1;
    VQ_TRY(vq_tensor_new(stage->scratch, be->place, VQ_I32, VQ_DIMS(n), &targets));
    VQ_TRY(vq_upload(be, &targets, target));
    VQ_TRY(vq_head_nll(be, loss, dhidden, hidden, head, &targets,
                       1 / (double)(n_sequences * (T - 1))));
    vq_arena_reset(stage->scratch, mark);
    return VQ_OK;
}

vq_status vq_loss_reg(vq_stage *stage, const vq_config *config, int64_t step, double *by_slot)
{
    const double weight = config->train.round_weight, beta = vq_loss_beta(config, step);
    for (int64_t l = stage->first; l < stage->last; l++)
        for (int k = 0; k < VQ_N_KINDS; k++) {
            vq_vqlinear *linear = vq_stage_linear(stage, l, (vq_linear_kind)k);
            if (!linear || !linear->quantized) continue;
            double *value = &by_slot[l * VQ_N_KINDS + k];
            *value = 0;
            VQ_TRY(vq_vqlinear_reg(stage->be, linear, stage->scratch, value, weight, beta));
        }
    return VQ_OK;
}
