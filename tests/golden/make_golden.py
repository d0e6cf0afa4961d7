#!/usr/bin/env python3
"""Writes what the C tests compare with: tests/golden/* and the random models in tests/models/rand-*.

usage: make_golden.py --reference DIR [--demo DIR]
  --reference  a checkout of github zhoustan/VQRound
  --demo       the demo model's folder (default: configs/demo-model); its eval.txt gives the tiny models' ids
needs: pip install torch transformers faiss-cpu numpy safetensors sentencepiece protobuf tokenizers

Run by hand, from anywhere; takes about a minute. The tiny models and torture.txt are inputs.
golden_packed.py, which needs more packages, is run by itself before. All seeds are fixed and one thread is used: the same versions on the same kind of CPU give the same
bytes. MANIFEST tells the versions used and the sha256 of every file; README.md what is in them.
"""
import argparse
import hashlib
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and faiss are loaded
sys.dont_write_bytecode = True  # before our own modules are loaded

import torch

from golden_adam import make_adam
from golden_gptq import make_gptq
from golden_logits import make_logits
from golden_models import make_models
from golden_packed import notes as packed_notes
from golden_tokens import NOTES, make_tokens
from golden_vq import load_reference, make_vq
from golden_windows import make_windows

OUT = Path(__file__).resolve().parent
MODELS = OUT.parent / "models"
PACKAGES = ("torch", "transformers", "tokenizers", "faiss-cpu", "numpy", "safetensors", "sentencepiece")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, type=Path)
    parser.add_argument("--demo", type=Path, default=OUT.parents[1] / "configs" / "demo-model")
    return parser.parse_args()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def made_files(random_models):
    """Every file written here, and torture.txt; MANIFEST itself left out."""
    own = [p for p in OUT.iterdir() if p.suffix in (".safetensors", ".json", ".txt")]
    return sorted(own) + [p for name in random_models for p in sorted((MODELS / name).iterdir())]


def write_manifest(arguments, random_models):
    lines = ["Written by make_golden.py; its header says how to run it, README.md what the files hold.", "",
             "command: make_golden.py --reference DIR",
             f"python: {platform.python_version()}"]
    lines += [f"{package}: {version(package)}" for package in PACKAGES]
    lines += [f"reference: github zhoustan/VQRound, vqround.py sha256 {sha256(arguments.reference / 'vqround.py')}",
              f"demo: model.safetensors sha256 {sha256(arguments.demo / 'model.safetensors')}",
              f"demo: eval.txt sha256 {sha256(arguments.demo / 'eval.txt')}",
              f"cpu: {platform.machine()}, torch uses {torch.backends.cpu.get_cpu_capability()}",
              "seeds: models 101-109, ids 200-208 and 300, adam 400, documents 500, gptq 600-601, k-means 1234",
              "", NOTES, *packed_notes(), "", "sha256, path under tests/:"]
    lines += [f"{sha256(path)}  {path.relative_to(OUT.parent)}" for path in made_files(random_models)]
    (OUT / "MANIFEST").write_text("\n".join(lines) + "\n")


def main():
    args = arguments()
    torch.set_num_threads(1)
    random_models = make_models(MODELS)
    with_text = {name: MODELS / name for name in ("tiny-llama", "tiny-opt", "tiny-qwen3")}
    make_logits(OUT, [MODELS / name for name in random_models], {**with_text, "demo": args.demo},
                (args.demo / "eval.txt").read_text(encoding="utf-8"))
    make_tokens(OUT, MODELS, args.demo)
    make_windows(OUT)
    make_adam(OUT)
    reference = load_reference(args.reference)
    make_vq(OUT, reference, MODELS)
    make_gptq(OUT, reference, MODELS)
    for path in made_files(random_models):
        path.chmod(0o644)
    write_manifest(args, random_models)


if __name__ == "__main__":
    main()
