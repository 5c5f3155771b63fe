"""Attention cut into parts of queries and of keys, which are merged, against that of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from support import CPU_FLOAT32, TARGETS, Target, check_gradients, mask_arguments, targets
from torch import Tensor

from flash_attn2 import flash_attn_func, masks
from flash_attn2._impl import backends, launch, parts
from flash_attn2._impl.bias_backward import add_bias_gradients, zeros_for
from flash_attn2._impl.problem import BiasGradient, Gradient, Positions, Problem
from flash_attn2._impl.schema import FORWARD
from flash_attn2.reference import attention_reference

CPU = [target for target in TARGETS if target.backend == "cpu"]
NO_FLOAT16 = [target for target in CPU if target.dtype is not torch.float16]
KERNELS = [target for target in TARGETS if target.backend != "cpu"]
Range = tuple[int, int]


def ranges(length: int, cuts: Sequence[int]) -> list[Range]:
    return list(itertools.pairwise([0, *cuts, length]))


def part_of(
    whole: Problem, rows: Range, keys: Range, out: Tensor | None = None, lse: Tensor | None = None
) -> Problem:
    """The call of these rows and keys."""
    q, k, v = whole.q, whole.k, whole.v
    assert k is not None
    assert v is not None
    options = whole.options
    bias = options.score_mod.bias
    if bias is not None:
        bias = bias[..., slice(*rows), slice(*keys)]
        options = options._replace(score_mod=options.score_mod._replace(bias=bias))
    return Problem(
        *(q[:, slice(*rows)], k[:, slice(*keys)], v[:, slice(*keys)]),
        options=options,
        positions=Positions(rows[0], keys[0], q.shape[1], k.shape[1]),
        out=out,
        lse=lse,
    )


def problem_of(given: dict[str, Any]) -> Problem:
    """Of arguments of flash_attn2::forward, or a block mask."""
    if (mask := given.get("block_mask")) is not None:
        given = given | mask_arguments(mask)
    values = zip(FORWARD.names, FORWARD.defaults, strict=True)
    return FORWARD.unflatten([given.get(name, default) for name, default in values])


class InParts(torch.autograd.Function):
    """`flash_attn_func` by parts, in the order in which a ring brings keys."""

    @staticmethod
    def forward(
        ctx: Any, cuts: Any, rng_state: Any, numbers: Any, names: Any, *tensors: Any
    ) -> Any:
        given = numbers | dict(zip(names, tensors, strict=True)) | {"given_rng_state": rng_state}
        whole = problem_of(given)
        q, k, v = whole.q, whole.k, whole.v
        assert k is not None
        assert v is not None
        dtype = parts.sums_dtype(q.dtype)
        found = []
        ctx.rows, ctx.keys = ranges(q.shape[1], cuts[0]), ranges(k.shape[1], cuts[1])
        for begin, end in ctx.rows:
            if whole.options.block_mask.row_offsets is not None:  # which all keys belong to
                p = part_of(whole, (begin, end), ctx.keys[0])
                found.append(launch.forward(p, over_cache=False)[:2])
                continue
            out = q.new_zeros(q.shape[0], end - begin, q.shape[2], v.shape[3], dtype=dtype)
            shape = q.shape[0], q.shape[2], end - begin
            lse = q.new_full(shape, -torch.inf, dtype=torch.float64)
            for keys in reversed(ctx.keys):
                parts.merge(part_of(whole, (begin, end), keys), out, lse)
            found.append((out.to(q.dtype), lse))
        out, lse = (torch.cat([x[i] for x in found], i + 1) for i in (0, 1))
        ctx.whole, ctx.names = whole, names
        ctx.save_for_backward(out, lse)
        return out, lse.float()

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> Any:
        whole: Problem = ctx.whole
        out, lse = ctx.saved_tensors
        dtype = parts.sums_dtype(whole.q.dtype)
        sums = {x: torch.zeros_like(getattr(whole, x), dtype=dtype) for x in "qkv"}
        _, _, bias, relative_bias = whole.options.score_mod
        sums["bias"], sums["relative_bias"] = (zeros_for(x, whole.q) for x in (bias, relative_bias))
        for rows, keys in itertools.product(ctx.rows, ctx.keys):
            at, of = slice(*rows), slice(*keys)
            p = part_of(whole, rows, keys, out[:, at], lse[..., at].contiguous())
            incoming = grad_out[:, at], grad_lse[..., at]
            parts.add_gradients(
                Gradient(*incoming, p), sums["q"][:, at], sums["k"][:, of], sums["v"][:, of]
            )
            of_bias = None if bias is None else sums["bias"][..., at, of]
            add_bias_gradients(BiasGradient(*incoming, p), (of_bias, sums["relative_bias"]))
        return *[None] * 4, *(
            sums[x].to(getattr(whole.options.score_mod, x, whole.q).dtype) if x in sums else None
            for x in ctx.names
        )


def in_parts(cuts: tuple[Sequence[int], Sequence[int]], **given: Any) -> tuple[Tensor, Tensor]:
    """Given what `flash_attn_func` takes, which draws its state of dropout."""
    given.pop("return_lse", None)
    left, right = given.pop("window_size", (-1, -1))
    numbers = {"window_left": left, "window_right": 0 if given.pop("causal", False) else right}
    rng_state = launch.draw_rng_state(given["q"].device) if given.get("dropout_p") else None
    tensors = {name: x for name, x in given.items() if isinstance(x, Tensor)}
    numbers |= {name: x for name, x in given.items() if name not in tensors}
    result: tuple[Tensor, Tensor] = InParts.apply(  # type: ignore[no-untyped-call]
        cuts, rng_state, numbers, tuple(tensors), *tensors.values()
    )
    return result


def drawn(
    target: Target, seqlen_q: int, seqlen_k: int, heads: int, heads_kv: int, batch: int = 2
) -> Any:
    return {
        "q": target.tensor(batch, seqlen_q, heads, 40),
        "k": target.tensor(batch, seqlen_k, heads_kv, 40),
        "v": target.tensor(batch, seqlen_k, heads_kv, 33),  # rows that CUDA kernels cannot add to
    }


def options_of(kind: str, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Any]:
    batch, seqlen_q, heads, _ = q.shape
    seqlen_k = k.shape[1]
    return {
        "causal": {"causal": True},
        "window": {"window_size": (30, 9), "softcap": 3.0},
        "alibi": {
            "alibi_slopes": torch.rand(heads, device=q.device),
            "causal": True,
            "dropout_p": 0.3,
        },
        "dropout": {"dropout_p": 0.4},
        "bias": {
            "bias": torch.randn(batch, 1, seqlen_q, seqlen_k, device=q.device),
            "causal": True,
        },
        "relative": {
            "relative_bias": torch.randn(heads, seqlen_q + seqlen_k - 1, device=q.device),
            "window_size": (-1, 20),
            "dropout_p": 0.2,
        },
    }[kind]


CUTS = {
    (150, 150): ((17, 90), (1, 64, 131)),
    (70, 131): ((64,), (33, 97)),  # more keys than queries
    (131, 60): ((1, 129), (31,)),  # rows that see nothing
    (3, 300): ((1,), (7, 210)),  # few queries
}


def check_parts(inputs: dict[str, Any], cuts: tuple[Sequence[int], Sequence[int]]) -> None:
    """The gradients, which show results, too."""
    names = tuple(x for x in ("q", "k", "v", "bias", "relative_bias") if x in inputs)
    check_gradients(lambda **x: in_parts(cuts, **x), attention_reference, dict(inputs), names)


KINDS = ["causal", "window", "alibi", "dropout", "bias", "relative"]


@targets(NO_FLOAT16)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", CUTS, ids=str)
def test_gradients_and_results(target: Target, kind: str, lengths: tuple[int, int]) -> None:
    cuts = CUTS[lengths]
    inputs = drawn(target, *lengths, 4, 2)
    inputs |= options_of(kind, **inputs)
    check_parts(inputs, cuts)
    if target.dtype != torch.float64:
        return
    torch.manual_seed(5)
    out, lse = in_parts(cuts, **inputs)
    torch.manual_seed(5)
    whole, whole_lse = flash_attn_func(**inputs, return_lse=True)
    assert (out - whole).abs().max() <= 1e-12
    assert (lse - whole_lse).nan_to_num(neginf=0.0).abs().max() <= 1e-5
    assert torch.equal(lse.isinf(), whole_lse.isinf())


# Few cuts, since an emulator takes its time: between tiles of kernels and inside.
KERNEL_CUTS = {
    "causal": ((150, 150), ((90,), (64, 131))),
    "window": ((70, 131), ((64,), (33,))),
    "alibi": ((131, 60), ((129,), (31,))),
    "dropout": ((40, 200), ((17,), (96,))),
    "bias": ((70, 131), ((33,), (64,))),
    "relative": ((100, 90), ((37,), (41,))),
}


@targets(KERNELS)
@pytest.mark.parametrize("kind", KERNEL_CUTS)
def test_kernels(target: Target, kind: str) -> None:
    lengths, cuts = KERNEL_CUTS[kind]
    inputs = drawn(target, *lengths, 2, 1, batch=1)
    check_parts(inputs | options_of(kind, **inputs), cuts)


@targets(KERNELS)
def test_kernels_in_a_fixed_order(target: Target) -> None:
    inputs = drawn(target, 90, 150, 2, 1, batch=1) | {"causal": True, "deterministic": True}
    check_parts(inputs, ((70,), (64,)))


@targets(KERNELS)
def test_kernels_of_wide_heads(target: Target) -> None:
    """Whose warps have other shares of dK and dV."""
    q = target.tensor(1, 40, 2, 512)
    k, v = (target.tensor(1, 50, 1, 512) for _ in "kv")
    check_parts({"q": q, "k": k, "v": v, "causal": True}, ((20,), (33,)))


@targets(KERNELS)
@pytest.mark.parametrize("widths", [(64, 32), (32, 64)], ids=str)
def test_kernels_of_other_values(target: Target, widths: tuple[int, int]) -> None:
    """Which add to rows of dK and dV of different widths, and to nothing behind them."""
    q, k = (target.tensor(1, seqlen, 2, widths[0]) for seqlen in (40, 50))
    inputs = {"q": q, "k": k, "v": target.tensor(1, 50, 2, widths[1])}
    check_parts(inputs | {"causal": True}, ((20,), (33,)))


@targets([Target("sm90-emulated", torch.bfloat16)])
@pytest.mark.parametrize("width", [72, 128, 256])
def test_kernels_of_hopper(width: int, target: Target) -> None:
    """Which add to sums; what is merged forward is left to sm80."""
    q = target.tensor(1, 90, 2, width)
    k, v = (target.tensor(1, 150, 1, width) for _ in "kv")
    module: Any = backends.load(target.backend).module
    module.reset_counters()
    check_parts({"q": q, "k": k, "v": v, "causal": True}, ((70,), (64,)))
    assert module.counters_by_kernel()["BwdKernel"]["wgmma"] > 0


@targets([*NO_FLOAT16, *KERNELS])
@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_block_masks(target: Target, dropout_p: float) -> None:
    pattern = masks.random_blocks(1, seed=1) | masks.window(9, 0)
    mask = pattern.build(200).to(target.device)
    inputs = drawn(target, 200, 200, 2, 1, batch=1)
    check_parts(inputs | {"block_mask": mask, "dropout_p": dropout_p}, ((64,), ()))


@targets(TARGETS)
def test_large_logits(target: Target) -> None:
    """No rounding of an lse reaches an exponent."""
    inputs = drawn(target, 70, 70, 2, 1)
    inputs["q"] *= 300
    check_parts(inputs | {"causal": True}, ((33,), (20, 40)))


def rows_of(target: Target, seqlen: int, rows: int, given: dict[str, Any]) -> Iterator[Any]:
    """Chunks of so many queries against all keys."""
    whole = problem_of(given)
    for begin in range(0, seqlen, rows):
        p = part_of(whole, (begin, min(seqlen, begin + rows)), (0, seqlen))
        yield launch.forward(p, over_cache=False)[:2]


@targets(CPU)
@pytest.mark.parametrize("rows", [1, 17, 128, 129])
@pytest.mark.parametrize(
    ("seqlen", "kind"),
    [
        *((2, "causal"), (5, "plain"), (127, "causal"), (300, "causal"), (300, "window")),
        *((300, "mask"), (300, "dropout"), (1100, "causal")),
    ],
)
def test_chunks_of_queries_have_the_bits_of_the_whole(
    target: Target, rows: int, seqlen: int, kind: str
) -> None:
    check_bits(target, rows, seqlen, kind)


@targets(KERNELS)
@pytest.mark.parametrize("kind", ["plain", "causal", "window", "mask", "dropout"])
def test_whole_tiles_of_queries_have_the_bits_of_the_whole(target: Target, kind: str) -> None:
    check_bits(target, 128, 300, kind)


def check_bits(target: Target, rows: int, seqlen: int, kind: str) -> None:
    """Of chunks of so many queries."""
    q, k, v = drawn(target, seqlen, seqlen, 2, 2).values()
    given: dict[str, Any] = {"q": q, "k": k, "v": v}
    if kind == "mask":
        rows = -(-rows // 64) * 64  # whole blocks, as neighbours in a tile share what they list
        pattern = masks.random_blocks(1, seed=1) | masks.window(9, 0)
        mask = pattern.build(seqlen).to(target.device)
        expected = flash_attn_func(q, k, v, block_mask=mask, return_lse=True)
        given["block_mask"] = mask
    elif kind == "dropout":
        torch.manual_seed(3)
        given |= {"dropout_p": 0.3, "given_rng_state": launch.draw_rng_state(q.device)}
        torch.manual_seed(3)
        expected = flash_attn_func(q, k, v, dropout_p=0.3, return_lse=True)
    else:
        window = {"causal": (-1, 0), "window": (40, 3), "plain": (-1, -1)}[kind]
        given |= dict(zip(("window_left", "window_right"), window, strict=True))
        expected = flash_attn_func(q, k, v, window_size=window, return_lse=True)
    found = list(rows_of(target, seqlen, rows, given))
    for i, name in enumerate(("out", "lse")):
        assert torch.equal(torch.cat([x[i] for x in found], i + 1), expected[i]), name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q_start": 3}, "8 rows of q from 3 on are no part of 10"),
        ({"k_start": -1}, "5 rows of k from -1 on are no part of 9"),
        ({"seqlen_k": 4}, "5 rows of k from 2 on are no part of 4"),
    ],
)
def test_wrong_positions_are_refused(changed: dict[str, int], message: str) -> None:
    q, k, v = (CPU_FLOAT32.tensor(1, rows, 1, 8) for rows in (8, 5, 5))
    positions = Positions(1, 2, 10, 9)._replace(**changed)
    with pytest.raises(RuntimeError, match=message):
        launch.forward(Problem(q, k, v, positions=positions), over_cache=False)


def test_a_sink_is_no_part() -> None:
    q, k, v = (CPU_FLOAT32.tensor(1, 8, 1, 8) for _ in "qkv")
    p = Problem(q, k, v, positions=Positions(0, 0, 8, 8))
    p = p._replace(options=p.options._replace(sink=torch.zeros(1)))
    out, lse = torch.zeros(1, 8, 1, 8), torch.zeros(1, 1, 8, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="a sink counts once"):
        parts.merge(p, out, lse)


@targets([target for target in KERNELS if target.dtype is torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((17, 90), "begin with one of its blocks of 64, got those from 17 on"),
        ((64, 128), "leaves nothing to be merged"),
    ],
)
def test_what_kernels_refuse_under_a_block_mask(target: Target, rows: Range, message: str) -> None:
    """Before anything is written."""
    inputs = drawn(target, 150, 150, 2, 1, batch=1)
    mask = masks.window(9, 0).build(150).to(target.device)
    p = part_of(problem_of(inputs | {"block_mask": mask}), rows, (0, 150))
    out = inputs["q"].new_zeros(1, rows[1] - rows[0], 2, 33, dtype=torch.float32)
    lse = out.new_zeros(1, 2, rows[1] - rows[0], dtype=torch.float64)
    with pytest.raises(RuntimeError, match=message):
        parts.merge(p, out, lse)
    assert not out.any()
    assert not lse.any()
