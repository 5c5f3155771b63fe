"""ggml: its graphs, over torch's memory. Queries and results are float32 in any case."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ggml
import torch
from torch import Tensor

from peers.interface import Attention, Prepared, aligned_bytes, heads_first, in_turns

_TYPES = {
    torch.float32: ggml.GGML_TYPE_F32,
    torch.float16: ggml.GGML_TYPE_F16,
    torch.bfloat16: ggml.GGML_TYPE_BF16,
}
_CONTEXT_BYTES = 2**21  # of tensors and graph, without their data


def variants(attention: Attention) -> Mapping[str, Callable[[], Prepared]]:
    return {
        "flash_attn_ext": partial(_prepare, attention, _flash),
        "products": partial(_prepare, attention, _products),
    }


class _Graph:
    """Tensors whose memory torch has, and the plan to compute them."""

    def __init__(self) -> None:
        self.context = ggml.ggml_init(
            ggml.ggml_init_params(mem_size=_CONTEXT_BYTES, mem_buffer=None, no_alloc=True)
        )
        self._kept: list[Any] = []

    def __del__(self) -> None:
        ggml.ggml_free(self.context)

    def input(self, tensor: Tensor) -> Any:
        """Its dimensions in reverse order, as ggml counts them."""
        assert tensor.is_contiguous()
        one = ggml.ggml_new_tensor_4d(self.context, _TYPES[tensor.dtype], *reversed(tensor.shape))
        return self.place(one, tensor)

    def place(self, node: Any, tensor: Tensor) -> Any:
        assert ggml.ggml_nbytes(node) == tensor.nbytes
        return self._at(node, tensor.data_ptr(), tensor)

    def place_anywhere(self, node: Any) -> Any:
        memory, address = aligned_bytes(ggml.ggml_nbytes(node))
        return self._at(node, address, memory)

    def _at(self, node: Any, address: int, keeper: Tensor) -> Any:
        node.contents.data = ctypes.c_void_p(address)
        self._kept.append(keeper)
        return node

    def plan(self, result: Any, threads: int) -> None:
        self._graph = ggml.ggml_new_graph(self.context)
        ggml.ggml_build_forward_expand(self._graph, result)
        self._plan = ggml.ggml_graph_plan(self._graph, threads, None)
        memory, address = aligned_bytes(self._plan.work_size)
        self._plan.work_data = ctypes.cast(address, type(self._plan.work_data))
        self._kept.append(memory)

    def compute(self) -> None:
        status = ggml.ggml_graph_compute(self._graph, ctypes.byref(self._plan))
        assert status == 0, status


_Build = Callable[[_Graph, Attention, Any, Tensor, Tensor, Any], tuple[Any, Tensor, bool]]


def _prepare(attention: Attention, build: _Build) -> Prepared:
    q = heads_first(attention.q).float()
    mask = _mask(attention)
    graphs, results = [], []
    for k, v in attention.heads_first:
        graph = _Graph()
        hidden = None if mask is None else graph.input(mask)
        node, out, by_heads = build(graph, attention, graph.input(q), k, v, hidden)
        graph.plan(graph.place(node, out), attention.threads)
        graphs.append(graph)
        results.append(out.transpose(1, 2) if by_heads else out)
    last = [0]

    def run(layer: int) -> None:
        last[0] = layer
        graphs[layer].compute()

    precision = str(attention.q.dtype).removeprefix("torch.")
    return Prepared(in_turns(range(len(graphs)), run), lambda: results[last[0]], precision)


def _flash(
    graph: _Graph, attention: Attention, q: Any, k: Tensor, v: Tensor, mask: Any
) -> tuple[Any, Tensor, bool]:
    node = ggml.ggml_flash_attn_ext(
        graph.context, q, graph.input(k), graph.input(v), mask, attention.scale, 0.0, 0.0
    )
    return node, torch.empty(attention.q.shape, dtype=torch.float32), False


def _products(
    graph: _Graph, attention: Attention, q: Any, k: Tensor, v: Tensor, mask: Any
) -> tuple[Any, Tensor, bool]:
    """Two products and a softmax, in place."""
    scores = graph.place_anywhere(ggml.ggml_mul_mat(graph.context, graph.input(k), q))
    probs = ggml.ggml_soft_max_ext_inplace(graph.context, scores, mask, attention.scale, 0.0)
    probs.contents.data = scores.contents.data
    columns = graph.input(v.transpose(2, 3).contiguous())
    node = ggml.ggml_mul_mat(graph.context, columns, probs)
    batch, seqlen_q, num_heads, head_dim = attention.q.shape
    out = torch.empty(batch, num_heads, seqlen_q, head_dim, dtype=torch.float32)
    return node, out, True


def _mask(attention: Attention) -> Tensor | None:
    if not attention.causal:
        return None
    seqlen_q, seqlen_k = attention.q.shape[1], attention.layers[0][0].shape[1]
    hidden = torch.full((1, 1, seqlen_q, seqlen_k), -torch.inf, dtype=torch.float16)
    return hidden.triu(1 + seqlen_k - seqlen_q).contiguous()
