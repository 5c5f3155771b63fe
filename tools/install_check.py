"""Call the installed package, both ways, and compare with float64. Run it outside the checkout."""

import math
import sys
from pathlib import Path

import torch

import flash_attn2

# Parallel calls of both go through the OpenMP runtime that torch brings, and no other is there.
RUNTIMES = ("libgomp", "libomp", "libiomp")

location = Path(flash_attn2.__file__).resolve()
if not location.is_relative_to(Path(sys.prefix).resolve()):
    sys.exit(f"imported {location}, which is not the installed package")


def standard_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    probs = scores.masked_fill(hidden, -math.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", probs, v)


torch.manual_seed(0)
q, k, v = inputs = tuple(torch.randn(2, 100, 4, 64, requires_grad=True) for _ in range(3))
exact_inputs = tuple(x.detach().double().requires_grad_() for x in inputs)
out = flash_attn2.flash_attn_func(q, k, v, causal=True)
exact_out = standard_attention(*exact_inputs)
assert isinstance(out, torch.Tensor)
grad_out = torch.randn_like(out)
results = [out, *torch.autograd.grad(out, inputs, grad_out)]
exact = [exact_out, *torch.autograd.grad(exact_out, exact_inputs, grad_out.double())]
error = max((x - y).abs().max().item() for x, y in zip(results, exact, strict=True))
print(f"flash_attn2 {flash_attn2.__version__} with torch {torch.__version__}: error {error:.1e}")
if not error < 1e-5:
    sys.exit("the error is too large")
loaded = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines()}
runtimes = {path for path in loaded if path.name.startswith(RUNTIMES)}
if len(runtimes) != 1 or Path(torch.__file__).parent not in next(iter(runtimes)).parents:
    sys.exit(f"the OpenMP runtimes are {sorted(map(str, runtimes))}, not torch's alone")
