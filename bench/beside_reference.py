#!/usr/bin/env python3
"""beside_reference - a training step, GPTQ and an evaluation beside the PyTorch reference's, on the same cores or GPU.

usage: beside_reference.py --reference DIR --model DIR --calib TEXT --eval TEXT [--device cpu --steps 6 --seqlen 512
                           --windows 8 --gptq-windows 16 --threads 2 --bits 3 --K 4096 --D 8 --vqround build/vqround]
DIR is a checkout of github zhoustan/VQRound; needs torch, transformers, numpy, safetensors. 0 windows leave a row out.
Both sides run one after the other on a machine that should do nothing else. On the CPU the reference runs in f32 as
tests/golden/golden_vq.py loads it, on a GPU as its main.py does: f16 weights, autocast to bf16, its own scaler; its
attention is PyTorch's own. On both it has its teacher cache and gradient checkpointing. Only steps are timed, whose
time does not depend on the codes: its k-means is left out, ours makes one iteration. A step's time is the median
without the first two. GPTQ is that of all linears, on windows of seqlen too: grids, base and rest, as training begins
with them.
"""
import argparse
import importlib.util
import json
import multiprocessing
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types

HERE = pathlib.Path(__file__).resolve().parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("reference", "model", "calib", "eval"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    for name, default in dict(steps=6, seqlen=512, windows=8, gptq_windows=16, threads=2, bits=3, K=4096, D=8).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--vqround", type=pathlib.Path, default=HERE.parent / "build" / "vqround")
    return parser.parse_args()


def peak_bytes(who):
    return resource.getrusage(who).ru_maxrss * 1024


def no_kmeans(self, x, K, iters=30):
    import torch

    return x[:K].clone(), torch.arange(len(x), device=x.device) % K


def run_reference(a, results):
    """In a process of its own, so that its peak memory is its own."""
    sys.path.insert(0, str(HERE.parent / "tests" / "golden"))
    if not importlib.util.find_spec("faiss"):
        sys.modules["faiss"] = types.ModuleType("faiss")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import golden_gptq
    import golden_vq

    device, on_gpu = torch.device(a.device), a.device == "cuda"
    torch.set_num_threads(a.threads)
    times = []

    def wait():
        if on_gpu:
            torch.cuda.current_stream().synchronize()

    def timed(function):
        wait()
        start = time.perf_counter()
        function()
        wait()
        return time.perf_counter() - start

    scaler = torch.cuda.amp.GradScaler if on_gpu else golden_vq.Recorder

    class Clock(scaler):
        if not on_gpu:
            def step(self, optimizer):  # without keeping the gradients
                optimizer.step()

        def update(self):
            super().update()
            wait()
            times.append(time.perf_counter())

    reference = golden_vq.load_reference(a.reference)
    reference.vqround.VQRoundLinear._kmeans = torch.no_grad()(no_kmeans)
    torch.cuda.amp.GradScaler = Clock
    if not on_gpu:
        torch.cuda.synchronize = lambda *_: None  # called by its GPTQ on any device
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    student = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float16 if on_gpu else torch.float32).eval()

    def windows(path, n):
        ids = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
        if len(ids) < n * a.seqlen:
            sys.exit(f"{path}: {len(ids)} tokens: expected {n} windows of {a.seqlen}. Give a longer text")
        return [ids[None, i * a.seqlen:(i + 1) * a.seqlen] for i in range(n)]

    @torch.no_grad()
    def evaluate():
        for window in windows(a.eval, a.windows):
            logits = student(window.to(device)).logits
            torch.nn.functional.cross_entropy(logits[0, :-1].float(), window[0, 1:].to(device))

    student.seqlen = a.seqlen
    if a.gptq_windows:
        golden_gptq.hand_rotary(student)
        results["gptq_s"] = timed(lambda: reference.vqround.gptq_sequential_collect_grid_opt(
            student, [(w, None) for w in windows(a.calib, a.gptq_windows)], device, wbits=a.bits, groupsize=-1,
            sym=False))
    student.to(device)
    if a.windows:
        results["eval_s"] = timed(evaluate) / a.windows
    if a.steps:
        samples = [(w, None) for w in windows(a.calib, a.steps)]
        with tempfile.TemporaryDirectory() as folder:
            cache = folder + "/cache.pt"
            reference.train.build_teacher_cache(samples, student, device, 2.0, cache)
            reference.vqround.replace_linear_with_vqround_using_grids(
                student, {}, n_bits=a.bits, D=a.D, K=a.K, kmeans_iters=1, skip_keywords=["lm_head"])
            reference.train.freeze_stochastic_but_keep_train(student)
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            reference.train.train_e2e_kd(
                student=student, teacher=None, train_loader=samples, steps=a.steps, lr=1e-2, device=device, kd_T=2.0,
                beta_hi=20.0, beta_lo=2.0, round_weight=0.01, teacher_cache=cache, log_interval=10**9)
        results["step_s"] = statistics.median(b - a for a, b in zip(times[1:], times[2:]))
    results["peak_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else peak_bytes(resource.RUSAGE_SELF)


def run_vqround(a):
    results, peaks = {}, []
    common = [f"--model={a.model}", f"--threads={a.threads}", f"--device={a.device}", f"--seqlen={a.seqlen}", "--quiet"]

    def quantize(*options):
        """The run's results and its lines of metrics."""
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([a.vqround, "quantize", *common, f"--text={a.calib}", f"--bits={a.bits}", "--no-eval",
                            f"--out={folder}/run", *options], check=True, stdout=subprocess.DEVNULL)
            found = json.loads(pathlib.Path(folder, "run", "results.json").read_text())
            metrics = pathlib.Path(folder, "run", "metrics.jsonl")
            peaks.append(found.get("peak_gpu_bytes") or 0)
            return found, [json.loads(line) for line in open(metrics)] if metrics.exists() else []

    if a.windows:
        last = json.loads(subprocess.run(
            [a.vqround, "eval", *common, f"--text={a.eval}", f"--max-windows={a.windows}", "--json"], check=True,
            stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        results["eval_s"] = last["seconds"] / last["windows"]
    if a.steps:
        _, lines = quantize(f"--K={a.K}", f"--D={a.D}", f"--nsamples={a.steps}", f"--steps={a.steps}",
                            "--kmeans.iters=1")
        results["step_s"] = statistics.median(line["seconds"] for line in lines[2:])
    if a.gptq_windows:
        found, _ = quantize("--method=gptq", "--gptq.propagate=float", f"--nsamples={a.gptq_windows}")
        results["gptq_s"] = found["seconds"]["init"]
    results["peak_bytes"] = max(peaks, default=0) if a.device == "cuda" else peak_bytes(resource.RUSAGE_CHILDREN)
    return results


def main():
    a = arguments()
    ours = run_vqround(a)  # first: RUSAGE_CHILDREN is the largest child's
    theirs = multiprocessing.Manager().dict()
    process = multiprocessing.get_context("spawn").Process(target=run_reference, args=(a, theirs))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit("the reference failed")
    print(f"\n{a.model.name}, {a.seqlen} tokens, {a.device}, {a.threads} threads\n")
    print("| what | vqround | reference | ratio |\n|---|---|---|---|")
    for label, key, unit, scale in (("a training step", "step_s", "s", 1), ("evaluation, a window", "eval_s", "s", 1),
                                    (f"GPTQ, {a.gptq_windows} windows", "gptq_s", "s", 1),
                                    ("peak memory", "peak_bytes", "GB", 1e-9)):
        if key not in ours:
            continue
        print(f"| {label} | {ours[key] * scale:.2f} {unit} | {theirs[key] * scale:.2f} {unit} "
              f"| {ours[key] / theirs[key]:.2f} |")


if __name__ == "__main__":
    main()
