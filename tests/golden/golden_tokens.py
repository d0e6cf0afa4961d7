"""golden_tokens - token ids of awkward texts, for each way in which a tokenizer comes on disk.

"ids" follow tokenizer.json as it is written, as transformers 4 does, and for tokenizer.model
what its slow tokenizer does (both compared with 4.46.3, except SmolLM2, which it cannot load). transformers 5 builds some tokenizers anew from
vocabulary and class name; where that changes ids they are given as "transformers5".
"""
import json
import re
import shutil
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer

NOTES = """\
tokenizers, as found with transformers 4.46.3 and 5.23.0:
- tokenizer.json of LLaMA (normalizer Prepend and Replace): transformers 4 follows the file, 5 puts a
  Metaspace pre-tokenizer in its place. They differ where a piece starts with a space, so after a special
  token or at the start of a text. "ids" follow the file; version 4's fast and slow tokenizers agree with it.
- tokenizer.model alone: the text is cut at <unk>, <s>, </s>; each piece that is not empty is encoded on its
  own, with its own leading metaspace; bos goes in front. The sentencepiece library alone does not cut.
- bos with tokenizer.json. Version 5: the file's post_processor decides, add_bos_token is not looked at.
  Version 4, LlamaTokenizer(Fast): add_bos_token and add_eos_token decide (default true and false), the
  post_processor is replaced; no tokenizer_class at all counted as LLaMA's, by config.json's model_type.
  Version 4, PreTrainedTokenizerFast and Qwen2TokenizerFast: the post_processor
  decides; other classes were not tried.
- bos without tokenizer.json. OPT (vocab.json, merges.txt): add_bos_token, default false, both versions.
  tokenizer.model: add_bos_token; where it is absent version 4 adds bos and version 5 does not.
- an empty text gives bos where there is one, else nothing.
- special tokens in a text become their ids, also without spaces around them.
"""

LONG_PIECE, LONG_COUNT = "The quick brown fox 12345 jumps; ", 31776  # 1,048,608 bytes, no newline

INVALID_UTF8 = {
    "truncated 2 of 3": "61e28262", "truncated at the end": "6162e282", "truncated 3 of 4": "f09f9861",
    "truncated 4 at the end": "78f09f98", "lone continuation": "6180bf62", "overlong slash": "61c0af62",
    "overlong 3": "e080af", "overlong 4": "f0808080", "surrogate": "61eda08062", "surrogate pair": "eda0bdedb880",
    "above 10ffff": "f4908080", "f5": "61f5808080", "fe ff": "feff41", "lead then ascii": "c361e2",
    "two truncated in a row": "e282e282ac", "valid around": "c3a9ff20c3a9",
}

SHORT = {
    "empty": "", "one space": " ", "spaces": " " * 20, "newlines": "\n\n\n", "tab": "\t", "letter": "a",
    "leading space": " a", "trailing space": "a ", "leading newline": "\na", "nul": "a\0b", "bom first": "\ufeffa",
    "special alone": "</s>", "specials adjacent": "<s></s><unk>", "special after space": "a </s> b",
    "chat": "<|im_start|>user\nhi<|im_end|>\n", "space between specials": "<|endoftext|> <|endoftext|>",
    "decomposed": "e\u0301", "hangul letters": "\u1112\u1161\u11ab", "metaspace": "\u2581a", "emoji": "\U0001f468\u200d\U0001f469",
}


def fnv1a64(data):
    value = 0xcbf29ce484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001b3 & 0xffffffffffffffff
    return f"{value:016x}"


def hash_ids(ids):
    return {"count": len(ids), "fnv1a64": fnv1a64(b"".join(i.to_bytes(4, "little") for i in ids))}


def sentencepiece_with_specials(model_file, specials, bos):
    """Cuts the text at the special tokens and encodes each piece on its own, bos in front."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    cut = re.compile("(" + "|".join(re.escape(s) for s in specials) + ")")

    def encode(text):
        ids = [bos]
        for piece in cut.split(text):
            ids += [specials[piece]] if piece in specials else model.encode(piece)
        return ids
    return encode


def from_json(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: tokenizer.encode(text).ids


def from_transformers(folder, leave_out=()):
    with tempfile.TemporaryDirectory() as copy:
        for file in folder.iterdir():
            if file.suffix in (".json", ".model", ".txt") and file.name not in leave_out:
                shutil.copy(file, copy)
        tokenizer = AutoTokenizer.from_pretrained(copy)
    return lambda text: tokenizer(text).input_ids


def encoders(models, demo):
    """name: (what C must reproduce, what transformers 5 gives)."""
    llama, opt, qwen = (models / f"tiny-{n}" for n in ("llama", "opt", "qwen3"))
    smollm2 = models / "smollm2-tokenizer"
    spm = sentencepiece_with_specials(llama / "tokenizer.model", {"<unk>": 0, "<s>": 1, "</s>": 2}, bos=1)
    return {
        "demo": (from_json(demo), from_transformers(demo)),
        "tiny-llama-json": (from_json(llama), from_transformers(llama)),
        "tiny-llama-model": (spm, from_transformers(llama, leave_out=("tokenizer.json",))),
        "tiny-opt": (from_transformers(opt), from_transformers(opt)),
        "tiny-qwen3": (from_json(qwen), from_transformers(qwen)),
        "smollm2": (from_json(smollm2), from_transformers(smollm2)),
    }


def case(name, data, encoders_of_one):
    """One text, given by its bytes in hex; invalid UTF-8 becomes U+FFFD as Python's decoder does it."""
    encode, encode5 = encoders_of_one
    text = data.decode("utf-8", errors="replace")
    ids, ids5 = encode(text), encode5(text)
    entry = {"name": name, "hex": data.hex(), "ids": ids}
    return entry if ids == ids5 else {**entry, "transformers5": ids5}


def all_cases(torture, encoders_of_one):
    texts = {name: text.encode() for name, text in SHORT.items()}
    texts.update({f"invalid: {name}": bytes.fromhex(h) for name, h in INVALID_UTF8.items()})
    lines = torture.split(b"\n")
    texts.update({f"torture line {i + 1}": line for i, line in enumerate(lines) if line})
    return [case(name, data, encoders_of_one) for name, data in texts.items()]


def dump(value):
    """JSON with one case a line."""
    head = json.dumps({k: v for k, v in value.items() if k != "cases"}, separators=(",", ":"))
    cases = ",\n".join(json.dumps(c, separators=(",", ":")) for c in value["cases"])
    return head[:-1] + ',\n"cases":[\n' + cases + "\n]}\n"


def make_tokens(out, models, demo):
    torture = (out / "torture.txt").read_bytes()
    for name, pair in encoders(models, demo).items():
        whole = case("torture.txt", torture, pair)
        value = {"torture": whole["ids"], "long_line": hash_ids(pair[0](LONG_PIECE * LONG_COUNT)),
                 "long_line_piece": LONG_PIECE, "long_line_repeats": LONG_COUNT}
        if "transformers5" in whole:
            value["torture_transformers5"] = whole["transformers5"]
        value["cases"] = all_cases(torture, pair)
        (out / f"tokens-{name}.json").write_text(dump(value))
