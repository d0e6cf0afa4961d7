"""golden_gptq - the reference's GPTQ on one made-up linear in all its modes, and through small models.

Each case of the linear gives the grid, base, both kinds of rest and the dequantized weight. With groups the reference
returns only the last group's scale and zero; base, rest and weight still come from each group's own.
"""
import json
import types

import numpy as np
import torch
from safetensors.numpy import save_file

from golden_logits import load_f32, random_ids

OUT_ROWS, IN_COLUMNS, SEQUENCES, TOKENS, SEED = 24, 48, 6, 40, 600
DEAD_COLUMN = 7
PERCDAMP = 0.01

KEYS = ("name", "bits", "sym", "group_size", "block_size", "act_order", "static_groups", "mse")
CASES = [("asym",                 3, False,   -1,    128,   False,    False,    False),
         ("asym-blocks",          4, False,   -1,     16,   False,    False,    False),
         ("sym",                  3, True,    -1,     16,   False,    False,    False),
         ("asym-act-order",       2, False,   -1,     32,   True,     False,    False),
         ("asym-groups",          3, False,   16,     32,   False,    False,    False),
         ("sym-groups-act-order", 4, True,    16,     32,   True,     False,    False),
         ("asym-static",          3, False,   16,     32,   False,    True,     False),
         ("sym-static-act-order", 3, True,    16,     32,   True,     True,     False),
         ("asym-mse",             3, False,   -1,    128,   False,    False,    True),
         ("sym-groups-mse",       4, True,    20,     32,   False,    False,    True),
         ("asym-static-mse",      2, False,   20,     32,   True,     True,     True)]

# Through whole models. No group divides the widths of two of them.
OPTIONS = [("plain",               3, False,   -1,    128,   False,    False,    False),
           ("sym",                 4, True,    -1,    128,   False,    False,    False),
           ("blocks",              3, False,   -1,     16,   False,    False,    False),
           ("order",               2, False,   -1,    128,   True,     False,    False),
           ("groups",              3, False,   16,     16,   False,    False,    False),
           ("wide-groups",         4, True,    32,    128,   False,    False,    False),
           ("static",              3, False,   20,    128,   False,    True,     False),
           ("static-order",        3, True,    16,    128,   True,     True,     False),
           ("mse",                 3, False,   -1,    128,   False,    False,    True),
           ("groups-mse",          2, False,   24,     16,   False,    False,    True),
           ("static-order-mse",    2, True,    20,    128,   True,     True,     True)]
OPTION_MODELS = ("rand-llama-gqa-tied", "rand-opt-f32", "rand-qwen3-tied")

MODELS = {"rand-opt-f32": dict(bits=3, sym=False), "rand-qwen3-tied": dict(bits=4, sym=True)}


def inputs():
    """Correlated inputs with one dead column; rows of one sign, and a row of zeros."""
    rng = np.random.default_rng(SEED)
    mix = rng.standard_normal((IN_COLUMNS, IN_COLUMNS)) / np.sqrt(IN_COLUMNS)
    x = rng.standard_normal((SEQUENCES, TOKENS, IN_COLUMNS)) @ (mix + np.diag(rng.uniform(0.2, 2, IN_COLUMNS)))
    x[:, :, DEAD_COLUMN] = 0
    weight = 0.2 * rng.standard_normal((OUT_ROWS, IN_COLUMNS))
    weight[3], weight[4] = np.abs(weight[3]) + 0.01, -np.abs(weight[4]) - 0.01
    weight[5] = 0
    return x.astype(np.float32), weight.astype(np.float32)


def sweep(reference, x, weight, case, method):
    """Runs one of the reference's sweeps; returns what it returns, the Hessian and the new weight."""
    _, bits, sym, group, block, act_order, static_groups, mse = case
    linear = torch.nn.Linear(IN_COLUMNS, OUT_ROWS, bias=False)
    linear.weight.data = torch.from_numpy(weight.copy())
    gptq = reference.gptq.GPTQ(linear)
    gptq.quantizer = reference.gptq.Quantizer()
    gptq.quantizer.configure(bits=bits, perchannel=True, sym=sym, mse=mse)
    for sequence in x:
        gptq.add_batch(torch.from_numpy(sequence)[None], None)
    hessian = gptq.H.numpy().copy()
    found = getattr(gptq, method)(blocksize=block, percdamp=PERCDAMP, groupsize=group, actorder=act_order,
                                  static_groups=static_groups)
    return found, hessian, linear.weight.data.numpy().copy()


def one_linear(reference, out):
    x, weight = inputs()
    tensors = {"x": x, "weight": weight}
    for case in CASES:
        name = case[0]
        with torch.no_grad():
            exact, hessian, quantized = sweep(reference, x, weight, case, "fasterquant_return")
            mixed, _, again = sweep(reference, x, weight, case, "fasterquant_return_with_error")
        assert np.array_equal(quantized, again)
        tensors["hessian"] = hessian
        tensors.update({f"{name}.base": exact["base_int"].numpy().astype(np.int8),
                        f"{name}.rest_exact": exact["rest"].numpy().copy(),
                        f"{name}.rest_hessian": mixed["rest"].numpy().copy(), f"{name}.weight": quantized,
                        f"{name}.last_scale": exact["scale"].flatten().numpy().copy(),
                        f"{name}.last_zero": exact["zero"].flatten().numpy().copy()})
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, out / "gptq.safetensors")
    rows, options = (",\n".join(json.dumps(dict(zip(KEYS, case))) for case in cases) for cases in (CASES, OPTIONS))
    models = f'"models": {json.dumps(MODELS)}'
    (out / "gptq.json").write_text(f'{{"percdamp": {PERCDAMP}, {models}, "cases": [\n{rows}\n],\n'
                                   f'"options": [\n{options}\n]}}\n')


def hand_rotary(model):
    """Gives the decoder layers their rotary embedding when a caller passes only position_ids."""
    rotary = getattr(model.model, "rotary_emb", None)

    def add(_, args, kwargs):
        if "position_embeddings" not in kwargs:
            kwargs["position_embeddings"] = rotary(args[0], kwargs["position_ids"])
        return args, kwargs
    if rotary is not None:
        for layer in model.model.layers:
            layer.register_forward_pre_hook(add, with_kwargs=True)


def collect(reference, model, ids, options, write, groupsize=-1, **more):
    samples = [(torch.from_numpy(row.astype(np.int64))[None], None) for row in ids]
    model.seqlen = ids.shape[1]
    hand_rotary(model)
    return reference.vqround.gptq_sequential_collect_grid_opt(
        model, samples, torch.device("cpu"), wbits=options["bits"], groupsize=groupsize,
        sym=options["sym"], percdamp=PERCDAMP, write_quantized_weights=write, **more)


def whole_model(reference, out, folder, options):
    """Grids found with full-precision inputs to each layer, and the weights of GPTQ proper."""
    model = load_f32(folder)
    ids = random_ids(SEED + 1, 8 * 32, model.config.vocab_size).reshape(8, 32)
    tensors = {"ids": ids}
    for name, grid in collect(reference, model, ids, options, write=False).items():
        tensors.update({f"{name}.scale": grid["scale"].flatten(), f"{name}.zero": grid["zero"].flatten(),
                        f"{name}.base": grid["base_int"].to(torch.int8), f"{name}.rest_hessian": grid["rest"]})
    model = load_f32(folder)
    for name in collect(reference, model, ids, options, write=True):
        tensors[f"{name}.weight"] = model.get_submodule(name).weight.data
    tensors = {n: np.ascontiguousarray(t) for n, t in tensors.items()}
    save_file(tensors, out / f"gptq-{folder.name}.safetensors")


class Notes:
    """Every group's grid and the integers of each sweep, which the reference itself does not keep."""

    def __init__(self, reference):
        self.quantizer, self.gptq = reference.gptq.Quantizer, reference.gptq.GPTQ
        self.grids, self.swept, self.mse = [], [], False
        self.find, self.configure = self.quantizer.find_params, self.quantizer.configure
        self.sweep = self.gptq.fasterquant_return_with_error
        notes = self

        def find(self, x, weight=False):
            notes.find(self, x, weight)
            notes.grids.append((self.scale.flatten().clone(), self.zero.flatten().clone()))

        def configure(self, *args, **kwargs):
            notes.configure(self, *args, **{**kwargs, "mse": notes.mse})

        def sweep(self, **kwargs):
            notes.grids.clear()
            found = notes.sweep(self, **kwargs)
            notes.swept.append(notes.integers(self.layer.weight.data, kwargs["groupsize"]))
            return found
        self.quantizer.find_params, self.quantizer.configure = find, configure
        self.gptq.fasterquant_return_with_error = sweep

    def restore(self):
        self.quantizer.find_params, self.quantizer.configure = self.find, self.configure
        self.gptq.fasterquant_return_with_error = self.sweep

    def integers(self, weight, group):
        """The first grid found is that of whole rows."""
        grids = self.grids[:1] if group == -1 else self.grids[1:]
        scale, zero = (torch.stack([grid[i] for grid in grids], 1) for i in (0, 1))
        of = torch.arange(weight.shape[1]) // (weight.shape[1] if group == -1 else group)
        integers = torch.round(weight / scale[:, of] + zero[:, of])
        assert torch.equal(scale[:, of] * (integers - zero[:, of]), weight)
        return {"scale": scale, "zero": zero, "ints": integers.to(torch.int8)}


def with_options(reference, out, folder):
    """GPTQ proper through a model, two layers of it, with each of the options."""
    tensors, notes = {}, Notes(reference)
    for name, bits, sym, group, block, act_order, static_groups, notes.mse in OPTIONS:
        model = load_f32(folder)
        ids = random_ids(SEED + 1, 8 * 32, model.config.vocab_size).reshape(8, 32)
        notes.swept.clear()
        linears = collect(reference, model, ids, dict(bits=bits, sym=sym), True, groupsize=group, blocksize=block,
                          actorder=act_order, static_groups=static_groups)
        for linear, found in zip(linears, notes.swept, strict=True):
            tensors.update({f"{name}.{linear}.{what}": tensor for what, tensor in found.items()})
    notes.restore()
    tensors["ids"] = ids
    tensors = {n: np.ascontiguousarray(t) for n, t in tensors.items()}
    save_file(tensors, out / f"gptq-options-{folder.name}.safetensors")


def make_gptq(out, reference, models):
    reference.gptq = types.SimpleNamespace(GPTQ=reference.vqround.GPTQ, Quantizer=reference.vqround.Quantizer)
    torch.cuda.synchronize = lambda *_: None  # called by the reference on any device
    one_linear(reference, out)
    for name, options in MODELS.items():
        whole_model(reference, out, models / name, options)
    for name in OPTION_MODELS:
        with_options(reference, out, models / name)
