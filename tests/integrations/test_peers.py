"""The peers of the CPU table compute what flash_attn2 computes, in every way and precision."""

from __future__ import annotations

import os

import peers
import pytest
import torch
from peers.interface import Attention

from flash_attn2.bench.suite import UnavailableError
from flash_attn2.reference import attention_reference

THREADS = len(os.sched_getaffinity(0))
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
TOLERANCE = {FP32: 1e-5, BF16: 3e-2, FP16: 5e-3}
SEQLEN = 72
# What a peer cannot do, as the record says.
CANNOT = {
    (peers.ONNXRUNTIME, BF16): "no bfloat16 on CPUs",
    (peers.JAX, FP16): "no float16 on CPUs",
}


def installed(name: str) -> pytest.MarkDecorator:
    wrong = peers.wrong_releases(name)
    return pytest.mark.skipif(bool(wrong), reason=f"not installed: {', '.join(wrong)}")


EACH_PEER = [pytest.param(name, marks=installed(name)) for name in peers.NAMES]


def problem(
    dtype: torch.dtype, seqlen_q: int, heads_kv: int, causal: bool, layers: int
) -> Attention:
    generator = torch.Generator().manual_seed(seqlen_q + heads_kv)

    def rows(seqlen: int, heads: int) -> torch.Tensor:
        return torch.randn(2, seqlen, heads, 32, generator=generator).to(dtype)

    q, k, v = rows(seqlen_q, 4), rows(SEQLEN, heads_kv), rows(SEQLEN, heads_kv)
    each = [(k.clone(), v.clone()) for _ in range(layers)]
    return Attention(q, each, causal, THREADS, cache=seqlen_q == 1)


def check(name: str, attention: Attention) -> list[str]:
    """The variants of a peer that run, each of which has to be right on every layer."""
    dtype = attention.q.dtype
    k, v = attention.layers[0]
    exact, *_ = attention_reference(
        attention.q.double(), k.double(), v.double(), causal=attention.causal
    )
    done = []
    for variant, prepare in peers.variants(name, attention).items():
        prepared = prepare()
        assert prepared.precision == str(dtype).removeprefix("torch.")
        for _ in range(2 * len(attention.layers)):
            prepared.run()
            error = (prepared.result().double() - exact).abs().max().item()
            assert error < TOLERANCE[dtype], variant
        done.append(variant)
    for layer in attention.layers:  # nobody writes into the caller's tensors
        assert torch.equal(layer[0], k)
        assert torch.equal(layer[1], v)
    return done


@pytest.mark.parametrize("name", EACH_PEER)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("heads_kv", [4, 2])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attention(name: str, dtype: torch.dtype, heads_kv: int, causal: bool) -> None:
    attention = problem(dtype, SEQLEN, heads_kv, causal, layers=1)
    if (name, dtype) in CANNOT:
        with pytest.raises(UnavailableError, match=CANNOT[name, dtype]):
            peers.variants(name, attention)
        return
    try:
        done = check(name, attention)
    except UnavailableError as reason:  # OpenVINO, on a processor that has no such instructions
        assert name == peers.OPENVINO
        assert dtype != FP32
        pytest.skip(str(reason))
    if name == peers.ONNXRUNTIME:
        assert ("GroupQueryAttention" in done) == causal
        assert ("MultiHeadAttention" in done) == (heads_kv == 4)


@pytest.mark.parametrize("name", EACH_PEER)
@pytest.mark.parametrize("heads_kv", [4, 2])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_decoding_over_several_layers(name: str, dtype: torch.dtype, heads_kv: int) -> None:
    attention = problem(dtype, 1, heads_kv, False, layers=3)
    reason = CANNOT.get((name, dtype))
    if name == peers.OPENVINO:
        reason = "no caches in place"
    if reason:
        with pytest.raises(UnavailableError, match=reason):
            peers.variants(name, attention)
        return
    assert check(name, attention)


@pytest.mark.parametrize("name", [pytest.param(peers.JAX, marks=installed(peers.JAX))])
def test_threads_that_are_not_the_process_s(name: str) -> None:
    """Its number is that of the process."""
    attention = problem(FP32, SEQLEN, 4, False, layers=1)
    other = Attention(attention.q, attention.layers, False, THREADS + 1)
    with pytest.raises(UnavailableError, match=f"takes {THREADS} threads"):
        peers.variants(name, other)
