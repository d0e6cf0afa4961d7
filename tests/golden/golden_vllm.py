#!/usr/bin/env python3
"""golden_vllm - the perplexity of a packed model in vLLM, to set beside `vqround eval`'s of the same windows.

usage: golden_vllm.py MODEL TEXT [--seqlen 512 --windows 4 --dtype float16]
By hand, with vLLM (on a CPU: its build for CPUs). Windows follow each other in the text's tokens; the loss is that of
each next token, as vqround eval --seqlen T --max-windows N has it.
"""
import argparse
import math
import os
import pathlib

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--dtype", default="float16")
    a = parser.parse_args()
    import vllm
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(a.model)
    ids = tokenizer(a.text.read_text(encoding="utf-8")).input_ids
    windows = [ids[i * a.seqlen:(i + 1) * a.seqlen] for i in range(a.windows)]
    engine = vllm.LLM(a.model, dtype=a.dtype, max_model_len=a.seqlen + 8, max_num_seqs=1, enforce_eager=True,
                      gpu_memory_utilization=0.2)  # on a CPU: a share of its memory
    found = engine.generate([{"prompt_token_ids": w} for w in windows],
                            vllm.SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    losses = [-p[token].logprob for w, f in zip(windows, found) for token, p in zip(w[1:], f.prompt_logprobs[1:])]
    print(f"vllm {vllm.__version__}, {a.dtype}: perplexity {math.exp(sum(losses) / len(losses)):.4f}")


if __name__ == "__main__":
    main()
