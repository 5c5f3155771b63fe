"""OpenVINO: its ScaledDotProductAttention, with its precision forced and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def variants(attention: Attention) -> Mapping[str, Callable[[], Prepared]]:
    if attention.cache:
        # Its models hold caches as their state, which grows with every call.
        raise UnavailableError("no caches in place")
    return {"": lambda: _prepare(attention)}


def _prepare(attention: Attention) -> Prepared:
    dtype = attention.q.dtype
    name = str(dtype).removeprefix("torch.")
    q = heads_first(attention.q)
    inputs = (q, *attention.heads_first[0])
    out = torch.empty_like(q)
    settings = {
        "INFERENCE_PRECISION_HINT": _TYPES[dtype],
        "INFERENCE_NUM_THREADS": attention.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # which would pin the threads of others
    }
    compiled = openvino.Core().compile_model(_model(attention, inputs), "CPU", settings)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if precision != _TYPES[dtype].to_string():
        raise UnavailableError(f"computes in {precision}")
    if (threads := compiled.get_property("INFERENCE_NUM_THREADS")) != attention.threads:
        raise UnavailableError(f"takes {threads} threads")
    request = compiled.create_infer_request()
    for index, one in enumerate(inputs):
        request.set_input_tensor(index, _shared(one))
    request.set_output_tensor(0, _shared(out))
    ready = [(request, inputs, out)]  # which have to live: only addresses are bound

    def run(layer: Any) -> None:
        layer[0].start_async()
        layer[0].wait()

    return Prepared(in_turns(ready, run), lambda: out.transpose(1, 2), name)


def _model(attention: Attention, inputs: tuple[Tensor, ...]) -> Any:
    kind = _TYPES[attention.q.dtype]
    parameters = [opset13.parameter(list(one.shape), kind) for one in inputs]
    q, k, v = parameters
    group = attention.num_heads // attention.num_heads_kv
    if group > 1:  # its operator has no grouped heads
        k, v = (_repeated(one, group) for one in (k, v))
    out = opset13.scaled_dot_product_attention(q, k, v, causal=attention.causal)
    return openvino.Model([out.output(0)], parameters, "attention")


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
