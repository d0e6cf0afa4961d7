"""golden_adam - five steps of torch's own Adam in f32 on the CPU, its inputs and its state after each.

Two things in torch depend on the machine, so they are fixed here:
- With AVX2 or AVX-512 the moments are computed with fused multiply-adds, without them they are not.
  Both are written: "plain.*" and "fma.*". ATEN_CPU_CAPABILITY chooses, once per process.
- The square root may come from MKL. On the AMD CPU tried it is one ulp off IEEE's for one value in six.
  Here the root is IEEE's; "mkl.param" is what torch gives on this machine with its own root.

usage, by make_golden only: golden_adam.py OUT.safetensors plain|fma|mkl
"""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

COUNT, STEPS, SEED = 1003, 5, 400
CAPABILITY = {"plain": "default", "fma": "avx2", "mkl": "default"}


def inputs():
    """Start parameters and gradients over 14 decades, with zeros, subnormals and a column of zeros only."""
    rng = np.random.default_rng(SEED)
    param = rng.standard_normal(COUNT).astype(np.float32)
    size = 10.0 ** rng.uniform(-12, 2, (STEPS, COUNT))
    grad = (rng.standard_normal((STEPS, COUNT)) * size).astype(np.float32)
    grad[rng.random((STEPS, COUNT)) < 0.1] = 0
    grad[:, :20] = 0
    grad[:, 20:30] = 1e-40
    grad[:, 30:40] = 1e-22  # its square is subnormal
    return param, grad


def run(kind):
    import torch
    if kind != "mkl":
        torch.Tensor.sqrt = lambda t: torch.from_numpy(np.sqrt(t.numpy()))
    start, grads = inputs()
    param = torch.nn.Parameter(torch.from_numpy(start.copy()))
    adam = torch.optim.Adam([param], lr=1e-2, betas=(0.9, 0.99), eps=1e-8, foreach=False)
    rows = {"param": [], "m": [], "v": []}
    for grad in grads:
        param.grad = torch.from_numpy(grad.copy())
        adam.step()
        state = adam.state[param]
        for name, tensor in (("param", param.detach()), ("m", state["exp_avg"]), ("v", state["exp_avg_sq"])):
            rows[name].append(tensor.numpy().copy())
    return {f"{kind}.{name}": np.stack(values) for name, values in rows.items()}


def make_adam(out):
    param, grad = inputs()
    tensors = {"start": param, "grad": grad}
    for kind, capability in CAPABILITY.items():
        part = out / f".adam-{kind}.safetensors"
        subprocess.run([sys.executable, __file__, str(part), kind], check=True,
                       env={**os.environ, "ATEN_CPU_CAPABILITY": capability})
        tensors.update(load_file(part))
        part.unlink()
    for name in ("mkl.m", "mkl.v"):  # the root does not enter these
        del tensors[name]
    save_file(tensors, out / "adam.safetensors")


if __name__ == "__main__":
    save_file(run(sys.argv[2]), Path(sys.argv[1]))
