"""golden_logits - the logits that Hugging Face computes in f32 on the CPU for each test model."""
import torch
import numpy as np
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

WITH_HIDDEN = ("rand-llama-gqa-tied", "rand-opt350")  # these also give lm_head's input


def load_f32(folder):
    """The model as the reference runs it on a CPU: f32, no dropout. Fails if a tensor was not found."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    missing = set(info["missing_keys"]) - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    if missing or info["mismatched_keys"]:
        raise SystemExit(f"{folder}: not found in the file: {sorted(missing)}, {info['mismatched_keys']}")
    return model.eval()


@torch.no_grad()
def run(model, ids):
    """Logits [T, V] and lm_head's input [T, E] of one sequence."""
    seen = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    hook.remove()
    return logits.numpy(), seen[0][0].numpy()


def random_ids(seed, count, vocab):
    return np.random.default_rng(seed).integers(0, vocab, count).astype(np.int32)


def text_ids(folder, text, count):
    """The first ids of a text, from its middle on, with what the tokenizer adds in front."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    middle = text[len(text) // 2:][:20 * count]
    return np.array(tokenizer(middle).input_ids[:count], dtype=np.int32)


def write_logits(out, name, ids, logits, positions, hidden=None):
    tensors = {"ids": ids, "positions": positions.astype(np.int32),
               "logits": np.ascontiguousarray(logits[positions], dtype=np.float32)}
    if hidden is not None:
        tensors["hidden"] = np.ascontiguousarray(hidden, dtype=np.float32)
    save_file(tensors, out / f"logits-{name}.safetensors")


def make_logits(out, random_folders, text_folders, text):
    """random_folders: all 48 logits of random ids. text_folders {name: folder}: the last 16 of 64."""
    for number, folder in enumerate(random_folders):
        model = load_f32(folder)
        ids = random_ids(200 + number, 48, model.config.vocab_size)
        logits, hidden = run(model, ids)
        write_logits(out, folder.name, ids, logits, np.arange(48),
                     hidden if folder.name in WITH_HIDDEN else None)
    for name, folder in text_folders.items():
        ids = text_ids(folder, text, 64)
        logits, _ = run(load_f32(folder), ids)
        write_logits(out, name, ids, logits, np.arange(48, 64))
