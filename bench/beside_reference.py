#!/usr/bin/env python3
"""beside_reference - a training step, GPTQ and an evaluation beside the PyTorch reference's, on the same cores.

usage: beside_reference.py --reference DIR --model DIR --calib TEXT --eval TEXT [--steps 6 --seqlen 512 --windows 8
                           --gptq-windows 16 --threads 2 --bits 3 --K 4096 --D 8 --vqround build/vqround]
DIR is a checkout of github zhoustan/VQRound; needs torch, transformers, faiss-cpu, numpy, safetensors.
Both sides run one after the other on a machine that should do nothing else. The reference runs in f32 on the CPU
as tests/golden/golden_vq.py loads it, with one k-means iteration, since only its steps are timed, with its
teacher cache and with gradient checkpointing as its main.py. A step's time is the median without the first one.
GPTQ is that of all linears, on windows of seqlen too: grids, base and rest, as training begins with them.
"""
import argparse
import json
import multiprocessing
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("reference", "model", "calib", "eval"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    for name, default in dict(steps=6, seqlen=512, windows=8, gptq_windows=16, threads=2, bits=3, K=4096, D=8).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--vqround", type=pathlib.Path, default=HERE.parent / "build" / "vqround")
    return parser.parse_args()


def peak_bytes(who):
    return resource.getrusage(who).ru_maxrss * 1024


def run_reference(a, results):
    """In a process of its own, so that its peak memory is its own."""
    sys.path.insert(0, str(HERE.parent / "tests" / "golden"))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import golden_gptq
    import golden_vq

    torch.set_num_threads(a.threads)
    times = []

    class Clock(golden_vq.Recorder):
        def step(self, optimizer):  # without keeping the gradients
            optimizer.step()

        def update(self):
            times.append(time.perf_counter())

    reference = golden_vq.load_reference(a.reference)
    torch.cuda.amp.GradScaler = Clock
    torch.cuda.synchronize = lambda *_: None  # called by its GPTQ on any device
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    student = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()

    def windows(path, n):
        ids = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
        return [ids[None, i * a.seqlen:(i + 1) * a.seqlen] for i in range(n)]

    with torch.no_grad():
        start = time.perf_counter()
        for window in windows(a.eval, a.windows):
            torch.nn.functional.cross_entropy(student(window).logits[0, :-1], window[0, 1:])
        results["eval_s"] = (time.perf_counter() - start) / a.windows
    student.seqlen = a.seqlen
    golden_gptq.hand_rotary(student)
    start = time.perf_counter()
    reference.vqround.gptq_sequential_collect_grid_opt(
        student, [(w, None) for w in windows(a.calib, a.gptq_windows)], golden_vq.CPU, wbits=a.bits, groupsize=-1,
        sym=False)
    results["gptq_s"] = time.perf_counter() - start
    samples = [(w, None) for w in windows(a.calib, a.steps)]
    with tempfile.TemporaryDirectory() as folder:
        cache = folder + "/cache.pt"
        reference.train.build_teacher_cache(samples, student, golden_vq.CPU, 2.0, cache)
        reference.vqround.replace_linear_with_vqround_using_grids(
            student, {}, n_bits=a.bits, D=a.D, K=a.K, kmeans_iters=1, skip_keywords=["lm_head"])
        reference.train.freeze_stochastic_but_keep_train(student)
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        reference.train.train_e2e_kd(student=student, teacher=None, train_loader=samples, steps=a.steps, lr=1e-2,
                                     device=golden_vq.CPU, kd_T=2.0, beta_hi=20.0, beta_lo=2.0, round_weight=0.01,
                                     teacher_cache=cache, log_interval=10**9)
    results["step_s"] = statistics.median(b - a for a, b in zip(times, times[1:]))
    results["peak_bytes"] = peak_bytes(resource.RUSAGE_SELF)


def run_vqround(a):
    with tempfile.TemporaryDirectory() as folder:
        run, common = folder + "/run", [f"--model={a.model}", f"--threads={a.threads}", f"--seqlen={a.seqlen}"]
        evaluation = subprocess.run([a.vqround, "eval", *common, f"--text={a.eval}", f"--max-windows={a.windows}",
                                     "--json", "--quiet"], check=True, capture_output=True, text=True)
        subprocess.run([a.vqround, "quantize", *common, f"--text={a.calib}", f"--bits={a.bits}", f"--K={a.K}",
                        f"--D={a.D}", f"--nsamples={a.steps}", f"--steps={a.steps}", "--kmeans.iters=1", "--no-eval",
                        "--quiet", f"--out={run}"], check=True, capture_output=True)
        subprocess.run([a.vqround, "quantize", *common, f"--text={a.calib}", f"--bits={a.bits}", "--method=gptq",
                        "--gptq.propagate=float", f"--nsamples={a.gptq_windows}", "--no-eval", "--quiet",
                        f"--out={run}-gptq"], check=True, capture_output=True)
        gptq = json.loads(pathlib.Path(run + "-gptq/results.json").read_text())
        lines = [json.loads(line) for line in open(run + "/metrics.jsonl")]
        last = json.loads(evaluation.stdout.splitlines()[-1])
        return {"step_s": statistics.median(row["seconds"] for row in lines[1:]),
                "eval_s": last["seconds"] / last["windows"], "gptq_s": gptq["seconds"]["init"],
                "peak_bytes": peak_bytes(resource.RUSAGE_CHILDREN)}


def main():
    a = arguments()
    ours = run_vqround(a)  # first: RUSAGE_CHILDREN is the largest child's
    theirs = multiprocessing.Manager().dict()
    process = multiprocessing.get_context("spawn").Process(target=run_reference, args=(a, theirs))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit("the reference failed")
    print(f"\n{a.model.name}, {a.seqlen} tokens, {a.threads} threads\n")
    print("| what | vqround | reference | ratio |\n|---|---|---|---|")
    for label, key, unit, scale in (("a training step", "step_s", "s", 1), ("evaluation, a window", "eval_s", "s", 1),
                                    (f"GPTQ, {a.gptq_windows} windows", "gptq_s", "s", 1),
                                    ("peak memory", "peak_bytes", "GB", 1e-9)):
        print(f"| {label} | {ours[key] * scale:.2f} {unit} | {theirs[key] * scale:.2f} {unit} "
              f"| {ours[key] / theirs[key]:.2f} |")


if __name__ == "__main__":
    main()
