"""onnxruntime: its own operators and ONNX's, over tensors that are bound once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from flash_attn2.bench.suite import UnavailableError
from peers.interface import Attention, Prepared, heads_first, in_turns

_CONTRIB = "com.microsoft"
_ELEMENTS = {
    torch.float32: (TensorProto.FLOAT, np.float32),
    torch.float16: (TensorProto.FLOAT16, np.float16),
    torch.int32: (TensorProto.INT32, np.int32),
}
_Tensors = Mapping[str, Tensor]


def variants(attention: Attention) -> Mapping[str, Callable[[], Prepared]]:
    if attention.q.dtype not in _ELEMENTS:
        raise UnavailableError(f"no {attention.q.dtype} on CPUs".replace("torch.", ""))
    grouped = {"GroupQueryAttention": partial(_grouped, attention)}
    if attention.cache:
        return grouped
    standard = {
        "Attention": partial(_standard, attention, by_heads=False),
        "Attention, by heads": partial(_standard, attention, by_heads=True),
    }
    if attention.num_heads != attention.num_heads_kv:
        return (grouped if attention.causal else {}) | standard
    own = {
        "MultiHeadAttention": partial(_multi_head, attention, keys_by_heads=False),
        "MultiHeadAttention, keys by heads": partial(_multi_head, attention, keys_by_heads=True),
    }
    return own | (grouped if attention.causal else {}) | standard


def _multi_head(attention: Attention, keys_by_heads: bool) -> Prepared:
    ((k, v),) = attention.heads_first if keys_by_heads else attention.layers
    q = attention.q
    out = torch.empty_like(q)
    inputs = {"q": q.flatten(2), "k": k, "v": v}
    if not keys_by_heads:
        inputs |= {"k": k.flatten(2), "v": v.flatten(2)}
    node = helper.make_node(
        "MultiHeadAttention",
        list(inputs),
        ["out"],
        domain=_CONTRIB,
        num_heads=attention.num_heads,
        unidirectional=int(attention.causal),
    )
    return _prepared(attention, node, [(inputs, {"out": out.flatten(2)})], lambda: out)


def _standard(attention: Attention, by_heads: bool) -> Prepared:
    """The operator of ONNX itself."""
    options: dict[str, Any] = {"is_causal": int(attention.causal)}
    if by_heads:
        q = heads_first(attention.q)
        ((k, v),) = attention.heads_first
    else:
        options |= {"q_num_heads": attention.num_heads, "kv_num_heads": attention.num_heads_kv}
        q, (k, v) = attention.q.flatten(2), (one.flatten(2) for one in attention.layers[0])
    out = torch.empty_like(q)
    node = helper.make_node("Attention", ["q", "k", "v"], ["out"], **options)
    tensors = ({"q": q, "k": k, "v": v}, {"out": out})
    result = (lambda: out.transpose(1, 2)) if by_heads else (lambda: out.view(attention.q.shape))
    return _prepared(attention, node, [tensors], result)


def _grouped(attention: Attention) -> Prepared:
    """Keys and values go into a cache that is input and output: the same memory."""
    q = attention.q
    batch, seqlen_q = q.shape[:2]
    out = torch.empty_like(q)
    seqlen_k = attention.layers[0][0].shape[1]
    lengths = torch.full((batch,), seqlen_k - 1, dtype=torch.int32)
    total = torch.tensor([seqlen_k], dtype=torch.int32)
    ready = []
    for (k, v), caches in zip(attention.layers, attention.heads_first, strict=True):
        new = {"k": _new_rows(k, seqlen_q), "v": _new_rows(v, seqlen_q)}
        inputs = {"q": q.flatten(2), **new, "past_k": caches[0], "past_v": caches[1]}
        inputs |= {"lengths": lengths, "total": total}
        outputs = {"out": out.flatten(2), "present_k": caches[0], "present_v": caches[1]}
        ready.append((inputs, outputs))
    node = helper.make_node(
        "GroupQueryAttention",
        list(ready[0][0]),
        list(ready[0][1]),
        domain=_CONTRIB,
        num_heads=attention.num_heads,
        kv_num_heads=attention.num_heads_kv,
    )
    return _prepared(attention, node, ready, lambda: out)


def _new_rows(rows: Tensor, seqlen_q: int) -> Tensor:
    """The last ones, of which there are as many as queries."""
    return rows[:, -seqlen_q:].flatten(2).contiguous()


def _prepared(
    attention: Attention,
    node: Any,
    layers: list[tuple[_Tensors, _Tensors]],
    result: Callable[[], Tensor],
) -> Prepared:
    session = _session(attention.threads, node, *layers[0])
    # With their tensors, which have to live: only addresses are bound.
    ready = [(_bound(session, *tensors), tensors) for tensors in layers]

    def run(layer: Any) -> None:
        session.run_with_iobinding(layer[0])

    # The operators have no other precision than that of their inputs.
    precision = session.get_outputs()[0].type.removeprefix("tensor(").removesuffix(")")
    return Prepared(in_turns(ready, run), result, "float32" if precision == "float" else precision)


def _session(threads: int, node: Any, inputs: _Tensors, outputs: _Tensors) -> Any:
    def values(tensors: _Tensors) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, _ELEMENTS[one.dtype][0], tuple(one.shape))
            for name, one in tensors.items()
        ]

    graph = helper.make_graph([node], "attention", values(inputs), values(outputs))
    versions = [helper.make_opsetid("", 24), helper.make_opsetid(_CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its threads wait for each other at full speed during a call, and sleep after it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers)


def _bound(session: Any, inputs: _Tensors, outputs: _Tensors) -> Any:
    binding = session.io_binding()
    for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, one in tensors.items():
            bind(name, "cpu", 0, _ELEMENTS[one.dtype][1], tuple(one.shape), one.data_ptr())
    return binding
