"""Call the installed package once and compare with float64. Run it outside the checkout."""

import math
import sys
from pathlib import Path

import torch

import flash_attn2

location = Path(flash_attn2.__file__).resolve()
if not location.is_relative_to(Path(sys.prefix).resolve()):
    sys.exit(f"imported {location}, which is not the installed package")

torch.manual_seed(0)
q, k, v = (torch.randn(2, 100, 4, 64) for _ in range(3))
out = flash_attn2.flash_attn_func(q, k, v, causal=True)
assert isinstance(out, torch.Tensor)

scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / math.sqrt(64)
hidden = torch.ones(100, 100, dtype=torch.bool).triu(1)
probs = scores.masked_fill(hidden, -math.inf).softmax(-1)
error = (out - torch.einsum("bhqk,bkhd->bqhd", probs, v.double())).abs().max().item()
print(f"flash_attn2 {flash_attn2.__version__} with torch {torch.__version__}: error {error:.1e}")
if not error < 1e-5:
    sys.exit("the error is too large")
