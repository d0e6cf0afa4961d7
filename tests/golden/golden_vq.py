"""golden_vq - what the VQRound reference does with three small models, in f32 on the CPU.

The reference is imported from a checkout and stays as it is; replaced at run time are only
k-means (on the CPU, seed 1234) and the gradient scaler (by one that records and scales nothing).
"""
import importlib
import json
import sys
import types

import numpy as np
import torch
from safetensors.numpy import save_file

from golden_logits import load_f32, random_ids

BITS, K, KMEANS_ITERS = 3, 16, 25
SAMPLES, SEQLEN = 4, 32
LEARNING_RATE, LAMBDA, TAU, STEPS = 1e-2, 0.01, 2.0, 20
REG_BETA = 15.0
CODE_WIDTH = {"rand-llama-gqa-tied": 8, "rand-opt-f32": 4, "rand-qwen3-tied": 8}
CPU = torch.device("cpu")


class Recorder:
    """Stands where the reference has its GradScaler, and keeps each step's loss and gradients."""

    def __init__(self, enabled=True):
        self.losses, self.gradients = [], []
        Recorder.latest = self

    def scale(self, loss):
        self.losses.append(float(loss))
        return loss

    def step(self, optimizer):
        parameters = optimizer.param_groups[0]["params"]
        self.gradients.append([p.grad.clone() for p in parameters])
        optimizer.step()

    def update(self):
        pass


def kmeans_on_cpu(self, x, K, iters=30):
    import faiss
    self.start_logits = x.clone()
    kmeans = faiss.Kmeans(x.shape[1], K, niter=iters, seed=1234)
    kmeans.train(x.numpy())
    return torch.from_numpy(kmeans.centroids), torch.from_numpy(kmeans.index.search(x.numpy(), 1)[1][:, 0])


def load_reference(checkout):
    """The reference's modules; `datasets` is not needed here and gets an empty stand-in."""
    sys.modules.setdefault("datasets", types.SimpleNamespace(load_dataset=None))
    sys.path.insert(0, str(checkout))
    vqround, train, utils = (importlib.import_module(n) for n in ("vqround", "train_utils", "utils"))
    vqround.VQRoundLinear._kmeans = torch.no_grad()(kmeans_on_cpu)
    torch.cuda.amp.GradScaler = Recorder
    record_terms(train)
    return types.SimpleNamespace(vqround=vqround, train=train, utils=utils, terms=train.golden_terms)


def record_terms(train):
    """Notes the task loss and beta of every step, and the regularizer of every linear."""
    terms = train.golden_terms = {"task": [], "reg": [], "beta": []}
    kd_loss, round_reg = train._kd_loss_with_temperature, train._round_reg_checkpointed

    def noted_kd_loss(*args, **kwargs):
        loss = kd_loss(*args, **kwargs)
        terms["task"].append(float(loss))
        return loss

    def noted_round_reg(m, beta_now, step, rnd_loss, amp_dtype):
        value = round_reg(m=m, beta_now=beta_now, step=step, rnd_loss=rnd_loss, amp_dtype=amp_dtype)
        terms["reg"].append((step, float(value)))
        terms["beta"].append((step, float(beta_now)))
        return value

    train._kd_loss_with_temperature, train._round_reg_checkpointed = noted_kd_loss, noted_round_reg


def wrapped_linears(reference, student):
    return [(n, m) for n, m in student.named_modules() if isinstance(m, reference.vqround.VQRoundLinear)]


def make_student(reference, folder, code_width):
    student = load_f32(folder)
    reference.vqround.replace_linear_with_vqround_using_grids(
        student, {}, n_bits=BITS, D=code_width, K=K, kmeans_iters=KMEANS_ITERS, skip_keywords=["lm_head"])
    reference.train.collect_trainable_codebooks(student)  # codebooks become f32
    reference.train.freeze_stochastic_but_keep_train(student)
    return student


def train(reference, student, teacher, samples, **options):
    """Runs the reference's training; returns its recorder. The terms of earlier runs are forgotten."""
    for values in reference.terms.values():
        values.clear()
    reference.train.train_e2e_kd(
        student=student, teacher=teacher, train_loader=[(s, None) for s in samples], lr=LEARNING_RATE,
        device=CPU, kd_T=TAU, beta_hi=20.0, beta_lo=2.0, beta_hold_ratio=0.1, round_weight=LAMBDA,
        log_interval=10**9, teacher_cache=None, **options)
    return Recorder.latest


def first_gradients(reference, student, teacher, samples, use_kd):
    """Loss and codebook gradients of the first step without the regularizer; codebooks stay as they were."""
    linears = wrapped_linears(reference, student)
    before = [m.codebook.detach().clone() for _, m in linears]
    seen = train(reference, student, teacher, samples, steps=1, use_round_reg=False, use_kd=use_kd)
    with torch.no_grad():
        for (_, m), codebook in zip(linears, before):
            m.codebook.copy_(codebook)
    return seen.losses[0], seen.gradients[0]


def regularizer(reference, m):
    """One linear's regularizer at REG_BETA, and LAMBDA times its gradient."""
    always_on = reference.train.RoundLoss(1, b_range=(20.0, 2.0), decay_start=0.0, warmup=0.0, p_norm=2.0)
    m.codebook.grad = None
    value = reference.train._round_reg_checkpointed(
        m=m, beta_now=REG_BETA, step=1, rnd_loss=always_on, amp_dtype=torch.bfloat16)
    (LAMBDA * value).backward()
    gradient, m.codebook.grad = m.codebook.grad, None
    return float(value), gradient


@torch.no_grad()
def mean_nll(student, samples):
    losses = [torch.nn.functional.cross_entropy(student(s).logits[0, :-1], s[0, 1:]) for s in samples]
    return float(torch.stack(losses).double().mean())


def nll_by_mode(reference, student, samples):
    values = {}
    for mode in ("soft", "hard"):
        reference.utils.set_quant_mode(student, mode)
        values[mode] = mean_nll(student, samples)
    reference.utils.set_quant_mode(student, "soft")
    return values


@torch.no_grad()
def hard_weight(m):
    """The weight that the linear multiplies with in hard mode, read out through the identity."""
    m.set_quant_mode("hard")
    bias, m.bias = m.bias, None
    weight = m.forward(torch.eye(m.in_features)).t().contiguous()
    m.bias = bias
    m.set_quant_mode("soft")
    return weight


def array(tensor, dtype=np.float32):
    return np.array(tensor.detach().numpy(), dtype=dtype, order="C")


def start_tensors(name, m):
    return {f"{name}.base": array(m.base_int, np.int8), f"{name}.scale": array(m.scale.flatten()),
            f"{name}.zero": array(m.zero.flatten()), f"{name}.idx": array(m.indices, np.int32),
            f"{name}.logits": array(m.start_logits), f"{name}.codebook": array(m.codebook)}


def trajectory(reference, seen):
    """Total, task, regularizer (its sum over the linears, f64) and beta of each step."""
    rows = []
    for step in range(STEPS):
        rows.append({"total": seen.losses[step], "task": reference.terms["task"][step],
                     "reg": sum(v for s, v in reference.terms["reg"] if s == step),
                     "beta": next(b for s, b in reference.terms["beta"] if s == step)})
    return rows


def make_one(reference, out, folder):
    code_width = CODE_WIDTH[folder.name]
    teacher, student = load_f32(folder), make_student(reference, folder, code_width)
    linears = wrapped_linears(reference, student)
    ids = random_ids(300, SAMPLES * SEQLEN, teacher.config.vocab_size).reshape(SAMPLES, SEQLEN)
    samples = [torch.from_numpy(row.astype(np.int64))[None] for row in ids]

    tensors = {"ids": ids}
    for name, m in linears:
        tensors.update(start_tensors(name, m))
    nll = nll_by_mode(reference, student, samples)
    kd_loss, kd_gradients = first_gradients(reference, student, teacher, samples, use_kd=True)
    lm_loss, lm_gradients = first_gradients(reference, student, None, samples, use_kd=False)
    reg = 0.0
    for (name, m), kd_gradient, lm_gradient in zip(linears, kd_gradients, lm_gradients):
        value, reg_gradient = regularizer(reference, m)
        reg += value
        tensors.update({f"{name}.grad": array(kd_gradient), f"{name}.grad_lm": array(lm_gradient),
                        f"{name}.grad_reg": array(reg_gradient)})
    seen = train(reference, student, teacher, samples, steps=STEPS, use_kd=True)
    steps = trajectory(reference, seen)
    for name, m in linears:
        tensors.update({f"{name}.codebook20": array(m.codebook), f"{name}.hard": array(hard_weight(m))})
    save_file(tensors, out / f"vq-{folder.name}.safetensors")
    sidecar = {
        "bits": BITS, "D": code_width, "K": K, "kmeans_iters": KMEANS_ITERS, "lr": LEARNING_RATE, "tau": TAU,
        "lambda": LAMBDA, "reg_beta": REG_BETA, "linears": [name for name, _ in linears],
        "kd_loss": kd_loss, "lm_loss": lm_loss, "reg": reg, "nll_fp": mean_nll(teacher, samples),
        "nll_soft": nll["soft"], "nll_hard": nll["hard"], "steps": steps,
        "nll20": nll_by_mode(reference, student, samples)}
    (out / f"vq-{folder.name}.json").write_text(json.dumps(sidecar, indent=1) + "\n")


def make_vq(out, reference, models):
    faiss.omp_set_num_threads(1)
    for name in CODE_WIDTH:
        make_one(reference, out, models / name)
