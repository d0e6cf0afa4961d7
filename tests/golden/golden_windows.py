"""golden_windows - which calibration windows Python's random chooses, by the reference's rules.

stream: all texts are one stream of n tokens; each window starts at randint(0, n - seqlen - 1).
documents: a document is drawn with randint(0, documents - 1) until one has more than seqlen tokens,
then its window starts at randint(0, tokens - seqlen - 1). A document of exactly seqlen tokens has no
such start, so it is passed over like a shorter one.
"""
import json
import random

SEEDS = (0, 1, 1234, 1234567890123)
STREAMS = ((1000, 32), (300000, 2048), (2500000, 2048), (33, 32), (2081, 2048), (5000000000, 2048))
SAMPLES = 10


def stream_windows(seed, tokens, seqlen):
    random.seed(seed)
    return [random.randint(0, tokens - seqlen - 1) for _ in range(SAMPLES)]


def document_windows(seed, lengths, seqlen):
    random.seed(seed)
    chosen = []
    for _ in range(SAMPLES):
        document = random.randint(0, len(lengths) - 1)
        while lengths[document] <= seqlen:
            document = random.randint(0, len(lengths) - 1)
        chosen.append([document, random.randint(0, lengths[document] - seqlen - 1)])
    return chosen


def document_lengths(seqlen):
    """Sixty documents: most too short, some of exactly seqlen, one token more, and long ones."""
    random.seed(500)
    kinds = (lambda: random.randint(1, seqlen - 1), lambda: seqlen, lambda: seqlen + 1,
             lambda: random.randint(seqlen + 2, 9 * seqlen))
    return [kinds[random.choice((0, 0, 0, 1, 2, 3, 3))]() for _ in range(60)]


def first_words(seed):
    random.seed(seed)
    return [random.getrandbits(32) for _ in range(4)]


def make_windows(out):
    documents = [{"seqlen": seqlen, "lengths": document_lengths(seqlen)} for seqlen in (32, 2048)]
    value = {
        "first_words": [{"seed": s, "words": first_words(s)} for s in SEEDS],
        "stream": [{"seed": s, "tokens": n, "seqlen": q, "starts": stream_windows(s, n, q)}
                   for s in SEEDS for n, q in STREAMS],
        "documents": [{**d, "seed": s, "windows": document_windows(s, d["lengths"], d["seqlen"])}
                      for s in SEEDS for d in documents]}
    rows = {key: ",\n".join(json.dumps(row) for row in table) for key, table in value.items()}
    text = ",\n".join(f'"{key}": [\n{row}\n]' for key, row in rows.items())
    (out / "windows.json").write_text("{\n" + text + "\n}\n")
