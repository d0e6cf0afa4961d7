"""golden_models - small model folders with random weights, in the shapes that checkpoints come in.

Each recipe is one way in which real folders differ: old and new config.json, dtype, shards,
.bin files, tied heads, rope scaling. All have two layers and weigh less than 300 KB.
Norm weights and biases are random too, so a forgotten one changes the logits.
"""
import json
from collections import OrderedDict

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, OPTConfig, Qwen3Config

VOCAB = 160


def llama_hub_config(**changes):
    """The keys of a LLaMA config.json written by transformers 4: rope_theta at the top level."""
    config = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 48,
        "initializer_range": 0.02, "intermediate_size": 88, "max_position_embeddings": 128,
        "mlp_bias": False, "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.40.0", "use_cache": True, "vocab_size": VOCAB,
    }
    config.update(changes)
    return {key: value for key, value in config.items() if value != "absent"}


def opt_hub_config(**changes):
    """The keys of an OPT config.json on the hub: dropout is 0.1 there, and must not matter."""
    config = {
        "_remove_final_layer_norm": False, "activation_dropout": 0.0, "activation_function": "relu",
        "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2,
        "do_layer_norm_before": True, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 96,
        "hidden_size": 48, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 64,
        "model_type": "opt", "num_attention_heads": 4, "num_hidden_layers": 2, "pad_token_id": 1,
        "prefix": "</s>", "torch_dtype": "float16", "transformers_version": "4.21.0.dev0",
        "use_cache": True, "vocab_size": VOCAB, "word_embed_proj_dim": 48,
    }
    config.update(changes)
    return config


def qwen3_hub_config(**changes):
    """The keys of a Qwen3 config.json on the hub: rope_theta is an integer there."""
    config = {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 157, "eos_token_id": 159, "head_dim": 24, "hidden_act": "silu",
        "hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 72,
        "max_position_embeddings": 128, "max_window_layers": 2, "model_type": "qwen3",
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
        "vocab_size": VOCAB,
    }
    config.update(changes)
    return config


# name: (seed, config: a dict as on the hub or a config object of today, dtype, writer of the weights)
def recipes():
    return {
        "rand-llama-gqa-tied": (
            101, llama_hub_config(tie_word_embeddings=True, torch_dtype="float32"),
            torch.float32, write_one_safetensors),
        "rand-llama3-rope": (
            102, llama_hub_config(
                head_dim=16, hidden_size=64, max_position_embeddings=512, eos_token_id=[2, 3], torch_dtype="bfloat16",
                rope_scaling={"factor": 4.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                              "original_max_position_embeddings": 128, "rope_type": "llama3"}),
            torch.bfloat16, write_one_safetensors),
        "rand-llama-f16-sharded": (103, llama_hub_config(), torch.float16, write_sharded_safetensors),
        "rand-llama2-bin": (
            104, llama_hub_config(attention_bias="absent", mlp_bias="absent", rope_theta="absent",
                                  num_key_value_heads="absent", pad_token_id=0, rms_norm_eps=1e-06),
            torch.float16, write_sharded_bin),
        "rand-opt-bin": (105, opt_hub_config(), torch.float16, write_bin_without_prefix),
        "rand-opt350": (
            106, opt_hub_config(do_layer_norm_before=False, word_embed_proj_dim=32),
            torch.float16, write_one_safetensors),
        "rand-opt-f32": (
            107, OPTConfig(vocab_size=VOCAB, hidden_size=30, num_attention_heads=3, ffn_dim=51,
                           num_hidden_layers=2, max_position_embeddings=64, word_embed_proj_dim=30),
            torch.float32, write_one_safetensors),
        "rand-qwen3-headdim": (108, qwen3_hub_config(), torch.bfloat16, write_one_safetensors),
        "rand-qwen3-tied": (
            109, Qwen3Config(vocab_size=VOCAB, hidden_size=36, intermediate_size=53, head_dim=16,
                             num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
                             max_position_embeddings=128, tie_word_embeddings=True),
            torch.float32, write_one_safetensors_with_tied_head),
    }


def random_tensor(rng, name, shape):
    """Sizes at which activations stay near 1, logits near 2, and every bias is felt."""
    noise = rng.standard_normal(shape)
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.3 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if "embed_positions" in name:
        return 0.1 * noise
    gain = 2.0 if "embed_tokens" in name or "lm_head" in name else 1.0
    return gain / np.sqrt(shape[-1]) * noise


def random_weights(config, seed, dtype):
    """The tensors of the model's state_dict, without a tied head, in the order of their names."""
    rng = np.random.default_rng(seed)
    shapes = {name: tuple(t.shape) for name, t in AutoModelForCausalLM.from_config(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return {name: torch.from_numpy(random_tensor(rng, name, shapes[name]).astype(np.float32)).to(dtype)
            for name in sorted(shapes)}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def split_in_two(weights):
    """(file number, name): layer 0 and the embedding in the first file, the rest in the second."""
    return {name: 1 if "layers.0." in name or "embed" in name else 2 for name in weights}


def write_index(path, weights, file_of):
    total = sum(t.numel() * t.element_size() for t in weights.values())
    write_json(path, {"metadata": {"total_size": total}, "weight_map": {n: file_of[n] for n in sorted(weights)}})


def write_one_safetensors(folder, weights):
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_one_safetensors_with_tied_head(folder, weights):
    """Some hub checkpoints hold lm_head.weight although it is tied."""
    head = weights["model.embed_tokens.weight"].clone()
    write_one_safetensors(folder, {**weights, "lm_head.weight": head})


def write_sharded_safetensors(folder, weights):
    """Two shards, and the rotary buffer that old exports carry in every layer."""
    stray = torch.full((6,), 0.5, dtype=torch.float32)
    weights = {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": stray}
    part = split_in_two(weights)
    for number in (1, 2):
        save_file({n: t for n, t in weights.items() if part[n] == number},
                  folder / f"model-0000{number}-of-00002.safetensors", metadata={"format": "pt"})
    write_index(folder / "model.safetensors.index.json", weights,
                {n: f"model-0000{p}-of-00002.safetensors" for n, p in part.items()})


def as_state_dict(weights):
    """An OrderedDict with _metadata, which is what Module.state_dict gives and torch.save then pickles."""
    state = OrderedDict(weights)
    state._metadata = OrderedDict({"": {"version": 1}})
    return state


def share_storage(weights, names):
    """Makes the tensors views into one storage, so that some start at an offset."""
    joined = torch.cat([weights[name].reshape(-1) for name in names])
    shared, start = dict(weights), 0
    for name in names:
        count = weights[name].numel()
        shared[name] = joined[start:start + count].view(weights[name].shape)
        start += count
    return shared


def write_sharded_bin(folder, weights):
    part = split_in_two(weights)
    weights = share_storage(weights, [f"model.layers.1.self_attn.{p}_proj.weight" for p in "qkv"])
    for number in (1, 2):
        torch.save(as_state_dict({n: t for n, t in weights.items() if part[n] == number}),
                   folder / f"pytorch_model-0000{number}-of-00002.bin")
    write_index(folder / "pytorch_model.bin.index.json", weights,
                {n: f"pytorch_model-0000{p}-of-00002.bin" for n, p in part.items()})


def write_bin_without_prefix(folder, weights):
    """OPT's own files leave out the leading "model."."""
    torch.save(as_state_dict({n.removeprefix("model."): t for n, t in weights.items()}),
               folder / "pytorch_model.bin")


def make_models(root):
    """Writes every folder under root; returns their names."""
    for name, (seed, config, dtype, write_weights) in recipes().items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        if isinstance(config, dict):
            write_json(folder / "config.json", config)
        else:
            config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
            config.dtype = dtype
            config.save_pretrained(folder)
        weights = random_weights(AutoConfig.from_pretrained(folder), seed, dtype)
        write_weights(folder, weights)
    return list(recipes())
