#!/usr/bin/env python3
"""golden_packed - packed linears and models, as the formats' own packages write and read them.

usage: golden_packed.py --vqround build/vqround [--work DIR]
needs: pip install torch transformers safetensors compressed-tensors gptqmodel optimum accelerate

Run by hand; takes about ten minutes on a CPU. Writes packed.safetensors: small linears packed and
unpacked by gptqmodel and compressed-tensors, which the C test compares with ours; and packed.json:
how far the logits and weights of models that vqround packed, loaded by those packages, are from its
dense export, with the packages' versions. make_golden puts the latter into MANIFEST.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
sys.dont_write_bytecode = True

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUT, IN, SEED = 32, 96, 700
PACKAGES = ("torch", "transformers", "compressed-tensors", "gptqmodel", "optimum", "accelerate")

# Model, bits, symmetric, group, and whether columns are scattered over the groups (act-order). The demo model's MLP at 3 bits and tiny-llama's down_proj in groups of 32 stay dense.
MODELS = [("tests/models/tiny-opt", 4, True, -1, False), ("tests/models/tiny-opt", 2, False, 64, False),
          ("tests/models/tiny-qwen3", 4, False, 64, False), ("tests/models/tiny-qwen3", 3, True, -1, False),
          ("tests/models/tiny-llama", 8, True, 32, False), ("configs/demo-model", 3, False, 32, False),
          ("tests/models/tiny-opt", 4, False, 64, True)]


def numbers(bits, symmetric, groups, scale_dtype):
    """Integers [OUT, IN], zeros and scales [OUT, groups]."""
    generator = torch.Generator().manual_seed(SEED + bits)
    q = torch.randint(0, 1 << bits, (OUT, IN), generator=generator)
    scale = (torch.rand(OUT, groups, generator=generator) * 0.01 + 0.001).to(scale_dtype)
    middle = torch.full((OUT, groups), 1 << (bits - 1))
    zero = middle if symmetric else torch.randint(0, 1 << bits, (OUT, groups), generator=generator)
    return q, scale, zero


def by_gptqmodel(bits, symmetric, group, less_one, mixed):
    """The buffers that gptqmodel packs, and the weight that it makes of them in f16."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import FORMAT, QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module
    groups = 1 if group < 0 else IN // group
    q, scale, zero = numbers(bits, symmetric, groups, torch.float16)
    index = torch.arange(IN, dtype=torch.int32) // (IN // groups)
    if mixed:
        index = index[torch.randperm(IN, generator=torch.Generator().manual_seed(SEED))]
    linear = torch.nn.Linear(IN, OUT, bias=False)
    linear.weight.data = scale.float()[:, index] * (q - zero[:, index])
    module = TorchLinear(bits=bits, group_size=group, sym=symmetric, desc_act=mixed, in_features=IN,
                         out_features=OUT, bias=False, format=FORMAT.GPTQ_V2)
    module.pack_original(linear, scale.float(), zero.float(), index)
    module.eval()
    module.post_init()
    weight = module.dequantize_weight().T.contiguous().to(torch.float16)
    if less_one:
        convert_gptq_v2_to_v1_format_module(module, QuantizeConfig(bits=bits, group_size=group))
    buffers = {name: getattr(module, name).clone() for name in ("qweight", "qzeros", "scales", "g_idx")}
    return {**buffers, "q": q.to(torch.uint8), "scale": scale.float(), "zero": zero.float(), "weight": weight}


def by_compressed_tensors(bits, symmetric, group, dtype):
    """The same of compressed-tensors, in the model's type."""
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    groups = 1 if group < 0 else IN // group
    q, scale, zero = numbers(bits, symmetric, groups, dtype)
    middle = 1 << (bits - 1)
    weights = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="channel" if group < 0 else "group",
                               group_size=None if group < 0 else group)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    wide = lambda t: t.repeat_interleave(IN // groups, 1)
    state = {"weight": wide(scale.float()) * (q - wide(zero)), "weight_scale": scale.float(),
             "weight_zero_point": (zero - middle).to(torch.int8)}
    packed = PackedQuantizationCompressor.compress(state, scheme)
    packed["weight_scale"] = scale
    weight = PackedQuantizationCompressor.decompress(packed, scheme)["weight"].to(dtype)
    packed["weight_shape"] = packed["weight_shape"].to(torch.int64)
    return {**packed, "q": q.to(torch.uint8), "scale": scale.float(), "zero": zero.float(), "weight": weight}


def make_linears():
    tensors, add = {}, lambda case, parts: tensors.update({f"{case}.{k}": v.contiguous() for k, v in parts.items()})
    for bits in (2, 3, 4, 8):
        for symmetric in (True, False):
            sign = "sym" if symmetric else "asym"
            for group in (-1, 32):
                where = "row" if group < 0 else group
                add(f"gptq-{bits}-{sign}-{where}", by_gptqmodel(bits, symmetric, group, symmetric, False))
                dtype = torch.bfloat16 if group < 0 else torch.float16
                add(f"compressed-{bits}-{sign}-{where}", by_compressed_tensors(bits, symmetric, group, dtype))
        add(f"gptq1-{bits}-asym-32", by_gptqmodel(bits, False, 32, True, False))  # ours would be version 2
        add(f"gptq-{bits}-mixed-32", by_gptqmodel(bits, False, 32, False, True))
    save_file(tensors, HERE / "packed.safetensors", metadata={"seed": str(SEED)})


def run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def logits_of(model):
    with torch.no_grad():
        return model(torch.arange(5, 69).reshape(1, -1)).logits.float()


def distance(found, dense):
    """As numbers of a JSON row: the largest difference, beside the largest logit."""
    return {"max_difference": (found - dense).abs().max().item(), "max_logit": dense.abs().max().item()}


def from_compressed_tensors(folder, dense_folder):
    from transformers import AutoModelForCausalLM
    dense = logits_of(AutoModelForCausalLM.from_pretrained(dense_folder).eval())
    try:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
    except RuntimeError as e:  # what the package does then is found without transformers
        return {"fails": str(e).split(",")[0].split("\n")[0]}
    return distance(logits_of(model), dense)


def decompressed(folder, dense_folder):
    """Weights that the package unpacks that differ from the dense export's, of how many."""
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = QuantizationScheme.model_validate(config["config_groups"]["group_0"])
    packed, dense = load_file(folder / "model.safetensors"), load_file(dense_folder / "model.safetensors")
    names = [name.removesuffix(".weight_packed") for name in packed if name.endswith(".weight_packed")]
    differing = 0
    for name in names:
        state = {key.removeprefix(name + "."): value for key, value in packed.items() if key.startswith(name + ".")}
        weight = PackedQuantizationCompressor.decompress(state, scheme)["weight"]
        differing += int((weight != dense[name + ".weight"]).sum())
    return {"linears": len(names), "differing_weights": differing}


def from_gptqmodel(folder, dense_folder):
    from gptqmodel import BACKEND, GPTQModel
    from transformers import AutoModelForCausalLM
    dense = AutoModelForCausalLM.from_pretrained(dense_folder).eval()
    model = GPTQModel.load(str(folder), backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=dense.dtype).model.eval()
    linears = [(n, m) for n, m in model.named_modules() if hasattr(m, "qweight")]
    differing = 0
    for name, module in linears:
        weight = module.dequantize_weight().T
        differing += int((weight != dense.get_submodule(name).weight.to(weight.dtype)).sum())
    return {"linears": len(linears), "differing_weights": differing,
            **distance(logits_of(model), logits_of(dense))}


def from_transformers_gptq(folder, dense_folder):
    from transformers import AutoModelForCausalLM, GPTQConfig
    dense = AutoModelForCausalLM.from_pretrained(dense_folder).eval()
    bits = json.loads((folder / "quantize_config.json").read_text())["bits"]
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=dense.dtype,  # else bf16 on a CPU
                                                 quantization_config=GPTQConfig(bits, backend="gptq_torch"))
    return distance(logits_of(model.eval()), logits_of(dense))


READERS = {"gptq": {"gptqmodel": from_gptqmodel, "transformers": from_transformers_gptq},
           "compressed-tensors": {"compressed-tensors": decompressed, "transformers": from_compressed_tensors}}


def check_models(vqround, work):
    rows = []
    for number, (model, bits, symmetric, group, scattered) in enumerate(MODELS):
        runs = work / f"run-{number}"
        run(vqround, "quantize", "--quiet", "--model", ROOT / model, "--text", ROOT / "configs/demo-model/calib.txt",
            "--no-eval", "--method", "gptq", "--bits", bits, "--sym" if symmetric else "--no-sym", "--group-size", group,
            "--nsamples", 8, "--seqlen", 64, "--out", runs,
            *(("--gptq.act_order", "--gptq.static_groups", "off") if scattered else ()))
        forms = [form for form in READERS if form == "gptq" or not scattered]
        for form in ("dense", *forms):
            run(vqround, "export", "--quiet", "--run", runs, "--format", form, "--out", runs / form)
        for form in forms:
            for name, read in READERS[form].items():
                rows.append({"model": Path(model).name, "bits": bits, "symmetric": symmetric, "group_size": group,
                             "scattered": scattered, "format": form, "reader": name, **read(runs / form, runs / "dense")})
                print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


# What was tried by hand with other versions; every case with 3 bits or an asymmetric grid.
VERSIONS = """- compressed-tensors before 0.18 packs 3 bits without straddling words: another layout.
- transformers 5.23.0 loads asymmetric models with compressed-tensors 0.15.0 to 0.17.1 (logits equal); with 0.18.0 to
  0.20.1 (5.24.0) it expects the zero points unpacked and refuses them, though the package's compressor packs them too. Its
  decompressor reads them: the lines "by compressed-tensors".
- compressed-tensors 0.18.0 reads weight_g_idx, 0.20.0 ignores it: vqround writes none.
- gptqmodel and transformers load in bf16 on a CPU unless they are told the type: f16 scales are rounded then.
- vLLM 0.32.0 in its build for CPUs, which has kernels for 4 bits alone, by golden_vllm.py on SmolLM2-135M rounded to
  nearest, 4 windows of 512, perplexity beside vqround eval's: groups of 64, gptq sym in float16 50.578 (50.575),
  compressed-tensors in bfloat16 sym 50.667 (50.575), asym 44.529 (44.594); rows, --grid mse, gptq sym in float16 81.402
  (81.387), compressed-tensors in bfloat16 sym 80.799 (81.387), asym 78.571 (78.382). It refuses gptq with zero points, and
  with 2 and 3 bits. On torch 2.15.0, with vqround.json in the folders, the same: 50.578, 50.667, 44.529.
- SmolLM2-135M like that in groups of 64 by gptqmodel and compressed-tensors: linears 210, differing weights 0. Its logits
  in bf16 are noise (the dense model's own differ by 3.9 from f32's); the loss of 2 windows of 512 is, by transformers
  in bf16, sym dense 3.7667 and gptq 3.7652, asym 3.6689 and 3.6682."""


def notes():
    """Lines for MANIFEST."""
    found = json.loads((HERE / "packed.json").read_text())
    lines = ["packed models, by golden_packed.py: vqround's exports as others read them, beside its dense export",
             ", ".join(f"{name} {number}" for name, number in found["versions"].items())]
    for row in found["models"]:
        what = f"{row['model']} {row['bits']} bits {'sym' if row['symmetric'] else 'asym'} group {row['group_size']}"
        what += " scattered" if row["scattered"] else ""
        if "fails" in row:
            result = f"cannot be loaded ({row['fails']})"
        else:
            result = ", ".join(f"{key.replace('_', ' ')} {row[key]:.6g}" for key in
                               ("linears", "differing_weights", "max_difference", "max_logit") if key in row)
        lines.append(f"- {what}, {row['format']} by {row['reader']}: {result}")
    return lines + VERSIONS.split("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vqround", required=True, type=Path)
    parser.add_argument("--work", type=Path, help="keep the models there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    make_linears()
    with tempfile.TemporaryDirectory() as folder:
        rows = check_models(args.vqround.resolve(), args.work or Path(folder))
    (HERE / "packed.json").write_text(json.dumps(
        {"versions": {name: version(name) for name in PACKAGES}, "models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
