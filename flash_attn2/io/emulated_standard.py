"""Standard attention in the kernel emulator, step by step, where its module is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

_Operand = tuple[str, int, int, int, int, int]
Counters = Mapping[str, float]


def load() -> Any:
    """ImportError where it is not built."""
    return importlib.import_module("flash_attn2._standard_emulated")


class Standard:
    """On float16 tensors (batch, seqlen, heads, 64) without gaps.

    `counters` has those of each kernel, by its name in the form.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> None:
        self.batch, self.seqlen, self.heads, self.head_dim = q.shape
        self.causal = causal
        self.tensors = {"q": q, "k": k, "v": v}
        self.counters: dict[str, Counters] = {}
        self._scale = self.head_dim**-0.5
        self._module = load()

    def forward(self) -> Tensor:
        """The output."""
        self._product("S = Q K'", "by_rows", "q", "k", "scores", self._scale)
        self._rows("P = softmax(S)", self._module.softmax, "scores", "probs", causal=self.causal)
        return self._product("O = P V", "by_cols", "probs", "v", "out")

    def backward(self, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, after `forward`."""
        self.tensors["grad_out"] = grad_out
        grad_v = self._product("dV = P' dO", "transposed_a", "probs", "grad_out", "grad_v")
        self._product("dP = dO V'", "by_rows", "grad_out", "v", "grad_probs")
        self._rows(
            "dS = softmax'(P, dP)", self._module.softmax_grad, "probs", "grad_probs", "grad_scores"
        )
        grad_q = self._product("dQ = dS K", "by_cols", "grad_scores", "k", "grad_q", self._scale)
        grad_k = self._product(
            "dK = dS' Q", "transposed_a", "grad_scores", "q", "grad_k", self._scale
        )
        return grad_q, grad_k, grad_v

    def _product(
        self, kernel: str, form: str, a: str, b: str, c: str, scale: float = 1.0
    ) -> Tensor:
        n, d = self.seqlen, self.head_dim
        shape = (n, n, d) if form == "by_rows" else (n, d, n)
        self._new(c, square=form == "by_rows")
        operands = [self._operand(name) for name in (a, b, c)]
        pairs = (self.batch, self.heads)
        self._count(kernel, lambda: self._module.product(form, *operands, pairs, shape, scale))
        return self.tensors[c]

    def _rows(self, kernel: str, function: Any, *names: str, **options: bool) -> None:
        self._new(names[-1], square=True)
        operands = [self._operand(name) for name in names]
        pairs = (self.batch, self.heads)
        self._count(kernel, lambda: function(*operands, pairs, self.seqlen, **options))

    def _count(self, kernel: str, run: Callable[[], None]) -> None:
        self._module.reset_counters()
        run()
        self.counters[kernel] = self._module.counters()

    def _new(self, name: str, square: bool) -> None:
        batch, n, heads, d = self.batch, self.seqlen, self.heads, self.head_dim
        shape = (batch, heads, n, n) if square else (batch, n, heads, d)
        self.tensors[name] = torch.full(shape, torch.nan, dtype=torch.float16)

    def _operand(self, name: str) -> _Operand:
        """Squares are (batch, heads, rows, columns)."""
        tensor = self.tensors[name]
        batch, second, third, _ = tensor.stride()
        square = tensor.shape[1:] == (self.heads, self.seqlen, self.seqlen)
        head, row = (second, third) if square else (third, second)
        return name, tensor.data_ptr(), tensor.nbytes, batch, head, row
