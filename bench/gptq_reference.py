"""gptq_reference.py REFERENCE_DIR [OUT IN TOKENS]... - the reference's GPTQ on the shapes of bench_gptq.

By hand, with torch and the reference's requirements; OMP_NUM_THREADS sets the threads of both. Times are processor
times, the least of 5 runs: the Hessian (add_batch, a sequence of 512 tokens after the other), then fasterquant; at the
end the peak memory, beside that before the first shape.
"""
import contextlib
import importlib
import io
import resource
import sys
import time
import types

import torch

RUNS, SEQUENCE = 5, 512
SMOLLM2 = [(576, 576, 8192), (192, 576, 8192), (1536, 576, 8192), (576, 1536, 8192)]


def bench(reference, out, columns, tokens):
    hessian, sweep = [], []
    for _ in range(RUNS):
        linear = torch.nn.Linear(columns, out, bias=False)
        gptq = reference.GPTQ(linear)
        gptq.quantizer = reference.Quantizer()
        gptq.quantizer.configure(bits=4, perchannel=True, sym=False, mse=False)
        hessian.append(0)
        for first in range(0, tokens, SEQUENCE):
            x = torch.rand(1, min(SEQUENCE, tokens - first), columns).sub_(0.5)
            start = time.process_time()
            gptq.add_batch(x, None)
            hessian[-1] += time.process_time() - start
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            gptq.fasterquant_return(blocksize=128, percdamp=0.01, groupsize=-1, actorder=False,
                                    static_groups=False)
        sweep.append(time.process_time() - start)
    parts = [1e3 * min(seconds) for seconds in (hessian, sweep)]
    print(f"{out:6} {columns:6} {tokens:6} | hessian {parts[0]:9.2f} ms | factor and sweep {parts[1]:9.2f} ms"
          f" | all {sum(parts):9.2f} ms")


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024e-6


def main():
    sys.dont_write_bytecode = True
    sys.modules["datasets"] = types.SimpleNamespace(load_dataset=None)  # not needed here
    sys.path.insert(0, sys.argv[1])
    vqround = importlib.import_module("vqround")
    torch.cuda.synchronize = lambda *_: None  # called by the reference on any device
    numbers = [int(word) for word in sys.argv[2:]]
    shapes = list(zip(numbers[0::3], numbers[1::3], numbers[2::3])) or SMOLLM2
    print(f"{torch.get_num_threads()} threads")
    start_mb = peak_mb()
    with torch.no_grad():
        for shape in shapes:
            bench(vqround, *shape)
    print(f"peak memory {peak_mb():.0f} MB, {start_mb:.0f} before")


main()
