"""OpenVINO: attention as operator or as products, with its precision forced and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import openvino
import torch
from openvino import opset13
from torch import Tensor

from flash_attn2.bench.suite import UnavailableError
from peers.interface import Attention, Prepared, heads_first, in_turns

_TYPES = {
    torch.float32: openvino.Type.f32,
    torch.bfloat16: openvino.Type.bf16,
    torch.float16: openvino.Type.f16,
}


_COMPUTING = ("Subgraph", "MatMul", "Softmax", "ScaledDotProductAttention")  # of a compiled graph


def variants(attention: Attention) -> Mapping[str, Callable[[], Prepared]]:
    if attention.cache:
        # Its models hold caches as their state, which grows with every call.
        raise UnavailableError("no caches in place")
    return {
        "ScaledDotProductAttention": partial(_prepare, attention, _operator),
        "products": partial(_prepare, attention, _products),
    }


_Build = Callable[[Attention, Sequence[Any]], tuple[Any, list[Any], list[Tensor]]]


def _prepare(attention: Attention, build: _Build) -> Prepared:
    dtype = attention.q.dtype
    q = heads_first(attention.q)
    inputs = [q, *attention.heads_first[0]]
    parameters = [opset13.parameter(list(one.shape), _TYPES[dtype]) for one in inputs]
    result, masks, mask_tensors = build(attention, _heads(attention, parameters))
    model = openvino.Model([result.output(0)], parameters + masks, "attention")
    inputs += mask_tensors
    out = torch.empty_like(q)
    compiled = _compiled(model, attention)
    request = compiled.create_infer_request()
    for index, one in enumerate(inputs):
        request.set_input_tensor(index, _shared(one))
    request.set_output_tensor(0, _shared(out))
    ready = [(request, inputs, out)]  # which have to live: only addresses are bound

    def run(layer: Any) -> None:
        layer[0].start_async()
        layer[0].wait()

    name = str(dtype).removeprefix("torch.")
    return Prepared(in_turns(ready, run), lambda: out.transpose(1, 2), name)


def _compiled(model: Any, attention: Attention) -> Any:
    """With precision and threads as they are asked for, or UnavailableError."""
    wanted = _TYPES[attention.q.dtype]
    settings = {
        "INFERENCE_PRECISION_HINT": wanted,
        "INFERENCE_NUM_THREADS": attention.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # which would pin the threads of others
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    computed = {
        node["runtimePrecision"].value for node in nodes if node["layerType"].value in _COMPUTING
    }
    if computed != {wanted.to_string()}:
        raise UnavailableError(f"computes in {', '.join(sorted(computed))}")
    if (threads := compiled.get_property("INFERENCE_NUM_THREADS")) != attention.threads:
        raise UnavailableError(f"takes {threads} threads")
    return compiled


def _operator(attention: Attention, heads: Sequence[Any]) -> tuple[Any, list[Any], list[Tensor]]:
    return opset13.scaled_dot_product_attention(*heads, causal=attention.causal), [], []


def _products(attention: Attention, heads: Sequence[Any]) -> tuple[Any, list[Any], list[Tensor]]:
    """As models without that operator have it, which leaves K as it is."""
    q, k, v = heads
    dtype = attention.q.dtype
    scale = opset13.convert(opset13.constant(np.float32(attention.scale)), _TYPES[dtype])
    scores = opset13.matmul(opset13.multiply(q, scale), k, False, True)
    if not attention.causal:
        return opset13.matmul(opset13.softmax(scores, -1), v, False, False), [], []
    hidden = torch.full((1, 1, attention.q.shape[1], attention.layers[0][0].shape[1]), -torch.inf)
    hidden = hidden.triu(1 + hidden.shape[3] - hidden.shape[2]).to(dtype)
    mask = opset13.parameter(list(hidden.shape), _TYPES[dtype])
    probs = opset13.softmax(opset13.add(scores, mask), -1)
    return opset13.matmul(probs, v, False, False), [mask], [hidden]


def _heads(attention: Attention, parameters: Sequence[Any]) -> list[Any]:
    """It has no grouped heads."""
    q, k, v = parameters
    group = attention.num_heads // attention.num_heads_kv
    return [q, k, v] if group == 1 else [q, _repeated(k, group), _repeated(v, group)]


def _repeated(heads: Any, group: int) -> Any:
    """(batch, heads, seqlen, head_dim) with each head `group` times, as models write it."""
    batch, num_heads, seqlen, head_dim = heads.get_output_shape(0)
    apart = opset13.unsqueeze(heads, np.int64(2))
    shape = np.array([batch, num_heads, group, seqlen, head_dim], dtype=np.int64)
    together = np.array([batch, num_heads * group, seqlen, head_dim], dtype=np.int64)
    return opset13.reshape(opset13.broadcast(apart, shape), together, special_zero=False)


def _shared(tensor: Tensor) -> Any:
    """The same memory."""
    if tensor.dtype == torch.bfloat16:  # which numpy does not have
        bits = tensor.view(torch.int16).numpy()
        return openvino.Tensor(bits, list(tensor.shape), openvino.Type.bf16)
    return openvino.Tensor(tensor.numpy(), shared_memory=True)
