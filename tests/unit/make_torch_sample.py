# Writes torch_sample.bin, which test_torchbin.c reads: python3 make_torch_sample.py (PyTorch 2).
import os

import torch

shared = torch.arange(24, dtype=torch.float32)
state = torch.nn.Module().state_dict()  # an OrderedDict with _metadata
state["f32"] = shared.reshape(4, 6)
state["row"] = shared[6:12]
state["transposed"] = shared.reshape(4, 6).t()
state["parameter"] = torch.nn.Parameter(torch.tensor([[1.5, -2.5]]))
state["f16"] = torch.tensor([0.5, -1.0, 65504.0], dtype=torch.float16)
state["bf16"] = torch.tensor([[1.0], [-3.0]], dtype=torch.bfloat16)
state["f64"] = torch.tensor([1e300], dtype=torch.float64)
state["i64"] = torch.tensor([1 << 40, -1])
state["u8"] = torch.tensor([0, 255], dtype=torch.uint8)
state["bool"] = torch.tensor([True, False])
state["scalar"] = torch.tensor(7.0)
state["empty"] = torch.zeros(0, 3)
state["step"] = 12345678901
torch.save(state, os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_sample.bin"))
