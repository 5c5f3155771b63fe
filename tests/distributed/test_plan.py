"""Plans: every row once, even work, counted bytes, and what is refused. Nothing communicates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from flash_attn2 import masks
from flash_attn2.distributed import Cluster, ContextPlan, chunks, context_plan
from flash_attn2.distributed.digest import digest
from flash_attn2.distributed.head_shares import head_shares
from flash_attn2.distributed.report import human, max_over_mean
from flash_attn2.distributed.work import ALL, Work

MILLION = 2**20


def plan_of(ranks: Any, seqlen: int, **options: Any) -> ContextPlan:
    return context_plan(ranks, seqlen, **{"num_heads": 32, "num_heads_kv": 8} | options)


def documents(seqlen: int, count: int) -> masks.Pattern:
    """Of random lengths."""
    draw = torch.Generator().manual_seed(seqlen + count)
    cuts = (torch.randperm(seqlen - 1, generator=draw)[: count - 1] + 1).sort().values
    cu_seqlens = torch.cat([torch.tensor([0]), cuts, torch.tensor([seqlen])])
    return masks.documents(cu_seqlens=cu_seqlens) & masks.causal()


# Rows


@pytest.mark.parametrize("seqlen", [1, 5, 1000, 12345])
@pytest.mark.parametrize("ranks", [1, 3, 8, (2, 2), (3, 5)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "ring"},
        {"scheme": "ring", "pattern": None},
        {"scheme": "gather"},
        {"scheme": "gather", "chunk": 17},
        {"scheme": "gather", "balance": "zigzag"},
        {"scheme": "gather", "pattern": masks.global_tokens(3) | masks.window(2, 1)},
        {"scheme": "heads"},
    ],
    ids=str,
)
def test_every_row_is_with_one_rank(ranks: Any, seqlen: int, options: Any) -> None:
    if options["scheme"] == "heads" and isinstance(ranks, tuple):
        ranks = math.prod(ranks)
    plan = plan_of(ranks, seqlen, **options)
    seen = torch.zeros(seqlen, dtype=torch.int64)
    for rank in range(plan.size):
        here = plan.at(rank)
        assert torch.equal(here.shard(torch.arange(seqlen), 0), here.positions)
        assert here.positions.dtype == torch.int64
        assert here.positions.numel() == plan.ranges.rows[rank]
        assert (here.positions.diff() > 0).all()
        seen[here.positions] += 1
    assert (seen == 1).all()
    assert plan._pairs.sum() == pytest.approx(Work(plan.pattern, seqlen).total)


def test_shard() -> None:
    plan = plan_of(3, 100, scheme="ring").at(1)
    x = torch.randn(2, 100, 3, requires_grad=True)
    part = plan.shard(x, -2)
    torch.testing.assert_close(part, x[:, plan.positions])
    part.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[0, :, 0].nonzero().flatten(), plan.positions)
    whole = plan_of(2, 100, scheme="heads").at(1)
    assert whole.shard(x, 1).data_ptr() == x[:, 50:].data_ptr()  # a view


# Balance


def test_zigzag_is_even_under_a_causal_mask() -> None:
    for ranks in (1, 2, 3, 5, 7, 8, 64, 129):
        step = max(1, ranks // 3)
        lengths = [*range(64 * ranks, 67 * ranks, step), *range(67 * ranks, 520 * ranks, 97)]
        for seqlen in lengths:
            ranges = chunks.zigzag(seqlen, ranks)
            assert max_over_mean(ranges.work(Work(masks.causal(), seqlen))) <= 1.01
            assert ranges.rows.max() - ranges.rows.min() <= 2


PATTERNS = {
    "causal": lambda n: masks.causal(),
    "none": lambda n: ALL,
    "window": lambda n: masks.window(1000, 0),
    "documents": lambda n: documents(n, 11),
    "many documents": lambda n: documents(n, 300),
    "bigbird": lambda n: masks.bigbird(),
    "prefix": lambda n: masks.prefix(n // 2) | masks.causal(),
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(("seqlen", "ranks"), [(MILLION // 8, 64), (50000, 7), (3 * 520, 3)])
def test_greedy_is_even(name: str, seqlen: int, ranks: int) -> None:
    pattern = PATTERNS[name](seqlen)
    plan = plan_of(ranks, seqlen, pattern=pattern, scheme="gather")
    assert plan.balance == "greedy"
    assert plan.report().balance <= 1.02
    work = Work(pattern, seqlen)
    ranges = plan.ranges
    if name not in ("none", "window") and ranks > 1:
        # Neighbouring chunks of a rank are one range.
        assert ranges.starts.numel() >= 8 * ranks * 0.8
        contiguous = max_over_mean(chunks.contiguous(seqlen, ranks).work(work))
        assert plan.report().balance <= contiguous


def test_no_chunk_is_too_much_work() -> None:
    """Chunks that are all of a rank's work are cut; equal rows where even chunks do."""
    work = Work(masks.global_tokens(64) | masks.window(64, 64), 2**16)
    limit = work.total / (8 * 16)
    ranges = chunks.greedy(work, 2**16, 16)
    cut = work.before(ranges.ends) - work.before(ranges.starts)
    whole = work.before(torch.arange(0, 2**16 + 1, 64)).diff()
    assert whole.max() > 1.5 * limit
    # Neighbours of one rank are one range.
    assert cut[ranges.starts < 64].max() <= 2 * limit
    assert max_over_mean(ranges.work(work)) <= 1.02
    rows = plan_of(64, MILLION, pattern=documents(MILLION, 49), scheme="gather").ranges.rows
    assert rows.max() == rows.min()


def test_given_chunks() -> None:
    ranges = chunks.greedy(Work(masks.causal(), 1000), 1000, 2, 129)
    assert (ranges.starts % 129 == 0).all()
    assert set((ranges.ends % 129).tolist()) <= {0, 1000 % 129}


def test_a_million_tokens_on_a_thousand_ranks() -> None:
    plan = plan_of(1024, MILLION, pattern=documents(MILLION, 11), scheme="gather")
    assert plan.report().balance <= 1.02
    assert plan_of((500, 8), MILLION).report().row_balance < 1.01


def test_nothing_to_do() -> None:
    nothing = masks.causal() & ~masks.causal()
    report = plan_of(4, 1000, pattern=nothing, scheme="gather").report()
    assert report.balance == 1 < report.row_balance < 1.03
    assert int(report.forward_flops.sum()) == 0


# Work


@pytest.mark.parametrize(
    "pattern",
    [
        *(masks.causal(), ALL, masks.window(5, 0), masks.window(0, 70), masks.window(None, 9)),
        masks.window(300, 300),
    ],
    ids=repr,
)
def test_pairs_before_a_row(pattern: masks.Pattern) -> None:
    seen = pattern.build(200).to_dense()[0, 0].sum(1)
    expected = torch.cat([seen.new_zeros(1), seen.cumsum(0)]).double()
    assert torch.equal(Work(pattern, 200).before(torch.arange(201)), expected)
    counted = Work(pattern & masks.window(None, None), 200)  # which is no window
    blocks = torch.tensor([0, 64, 128, 192, 200])
    assert torch.equal(counted.before(blocks), expected[blocks])
    assert counted.before(torch.tensor([96]))[0] == expected[64:129:64].mean()


def test_heads_of_a_pattern_count_as_their_mean() -> None:
    mask = torch.rand(2, 4, 100, 100) < 0.5
    mean = mask.double().mean((0, 1)).sum()
    assert Work(masks.dense(mask), 100).total == pytest.approx(float(mean))


# Heads


@pytest.mark.parametrize(("heads", "heads_kv"), [(8, 8), (12, 4), (32, 8), (6, 1), (7, 7), (6, 3)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8, 12, 40])
def test_shares_of_heads(heads: int, heads_kv: int, ranks: int) -> None:
    shares = head_shares(heads, heads_kv, ranks)
    assert [h for s in shares for h in range(s.begin, s.end)] == list(range(heads))
    sizes = [share.size for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for share in shares:
        if share.size:
            assert share.size % len(share.kv) == 0
            each = share.size // len(share.kv)
            for head in range(share.size):
                assert share.kv[head // each] == (share.begin + head) // (heads // heads_kv)
    if heads_kv % ranks == 0:
        assert all(share.kv == share.different_kv for share in shares)


# Bytes and the model


@pytest.mark.parametrize(("ring", "shared"), [(4, 1), (4, 2), (8, 4), (1, 8)])
def test_bytes_of_even_rings(ring: int, shared: int) -> None:
    sent = plan_of((ring, shared), 2**15, scheme="ring").report(head_dim=64).traffic
    whole = 2 * 2 * 2**15 * 8 * 64 // shared
    assert set(sent.outer_forward.tolist()) == {whole - whole // ring}
    assert set(sent.outer_backward.tolist()) == {3 * (whole - whole // ring)}
    if shared > 1:
        rows = 2**15 // (ring * shared)
        kept = rows * (32 + 8 + 8 + 32) // shared * 64 * 2
        assert set(sent.exchange_forward.tolist()) == {(shared - 1) * kept}


def test_bytes_of_a_gather_are_those_of_a_ring_in_all() -> None:
    """Where each rank needs all keys."""
    options: dict[str, Any] = {"pattern": None, "balance": "zigzag"}
    for seqlen in (1000, 4099):
        ring, gather = (
            plan_of(3, seqlen, scheme=scheme, **options).report(batch=2, dtype=torch.float64)
            for scheme in ("ring", "gather")
        )
        assert ring.forward_bytes.sum() == gather.forward_bytes.sum()
        assert ring.backward_bytes.sum() == gather.backward_bytes.sum()
        assert ring.forward_bytes.sum() == 2 * seqlen * 2 * 2 * 8 * 128 * 8


def test_bytes_of_replicated_heads() -> None:
    """12 ranks share 8 query heads on 4 KV heads: four ranks have none."""
    plan = plan_of(12, 120, num_heads=8, num_heads_kv=4, scheme="heads")
    report = plan.report(head_dim=1, dtype=torch.float32, with_lse=True)
    busy = [rank for rank, share in enumerate(plan.head_shares) if share.size]
    assert len(busy) == 8
    for rank in range(12):
        own = int(rank in busy)
        assert report.forward_bytes[rank] == 4 * (
            10 * (8 - own) + 2 * 10 * (8 - own) + 2 * 110 * own
        )


def test_where_a_ring_stops_being_hidden() -> None:
    """At 1M tokens, 32 heads on 8, 400 TFLOP/s and 50 GB/s: 262 ranks, 8 times as many where 8
    share heads, and for the backward pass 1,747."""
    cluster = Cluster(400e12, 50e9, 50e9)
    for ranks, hidden in ((256, True), (264, False), ((262, 8), True), ((264, 8), False)):
        timing = plan_of(ranks, MILLION, scheme="ring").report(cluster=cluster).forward
        assert (timing.hidden == 1) == hidden, ranks
    for ranks, hidden in (((217, 8), True), ((220, 8), False)):
        timing = plan_of(ranks, MILLION).report(cluster=cluster).backward
        assert (timing.hidden == 1) == hidden, ranks


def test_auto_takes_what_is_predicted_to_be_fastest() -> None:
    slow = Cluster(400e12, 1e9, 1e9)
    for cluster in (Cluster(), slow):
        for ranks, pattern in ((8, None), (8, documents(2**14, 5)), (64, masks.causal())):
            plans = {
                scheme: plan_of(ranks, 2**14, pattern=pattern, scheme=scheme)
                for scheme in ("heads", "ring", "gather")
                if scheme != "ring" or ranks == 64 or pattern is None
            }
            seconds = {name: p.report(cluster=cluster).both.total for name, p in plans.items()}
            chosen = plan_of(ranks, 2**14, pattern=pattern, cluster=cluster).scheme
            assert seconds[chosen] == min(seconds.values())
    assert plan_of(4, 100, pattern=masks.bigbird()).scheme in ("heads", "gather")
    assert plan_of((1, 4), 100).scheme == "heads"
    assert plan_of((2, 4), 1000, pattern=masks.bigbird()).scheme == "gather"


def test_uneven_heads_are_uneven_work() -> None:
    report = plan_of(3, 3000, num_heads=4, num_heads_kv=4, scheme="heads").report()
    assert report.balance == pytest.approx(2 / (4 / 3))
    assert report.backward_flops.sum() == 2.5 * report.forward_flops.sum()
    assert float(report.forward_flops.sum()) == 4 * 128 * 4 * (3000 * 3001 / 2)


def test_text() -> None:
    plan = plan_of((4, 2), MILLION)
    assert repr(plan) == (
        "ContextPlan(ring of 4 x heads of 2, 1048576 tokens, 32 heads on 8, causal(), zigzag)"
    )
    shown = str(plan.report())
    assert shown.startswith(repr(plan))
    assert "sent, forward" in shown
    assert "of ideal" in shown
    assert repr(plan.at(3)).endswith("zigzag, rank 3)")
    assert "no mask" in repr(plan_of(2, 10, pattern=None))
    assert [human(x, "B") for x in (0, 12.5, 1500, 2e12)] == ["0 B", "12.5 B", "1.5 kB", "2 TB"]


# What ranks agree on


def test_signatures() -> None:
    def one(**changed: Any) -> int:
        given = {"seqlen": 500, "pattern": masks.documents(torch.arange(500) // 90)}
        plan = plan_of(4, **given | {"scheme": "gather"} | changed)
        return plan.signature

    assert (
        one()
        == one()
        == plan_of(4, 500, pattern=masks.documents(torch.arange(500) // 90), scheme="gather")
        .at(2)
        .signature
    )
    others = [
        one(seqlen=500, pattern=masks.documents(torch.arange(500) // 91)),
        one(balance="contiguous"),
        one(num_heads=64),
        one(chunk=64),
        one(scheme="heads"),
    ]
    assert len({one(), *others}) == 6


def test_digests() -> None:
    tensors = [torch.zeros(2), torch.zeros(2).double(), torch.zeros(1, 2), torch.ones(2)]
    parts = [None, 0, 0.0, False, "0", (0,), [0, 0], ((0,), 0), {"a": 0}, *tensors, masks.causal()]
    digests = {digest(part) for part in parts}
    assert len(digests) == len(parts)
    assert all(0 < x < 2**63 for x in digests)
    assert digest(masks.function(torch.add)) != digest(masks.function(torch.sub))


# What is refused


@pytest.mark.parametrize(
    ("kind", "message", "changed"),
    [
        (TypeError, "ranks must be an int, a pair", {"ranks": "4"}),
        (TypeError, "ranks must be an int", {"ranks": 2.0}),
        (ValueError, "ranks must be from 1 to 65536, got 0", {"ranks": 0}),
        (ValueError, "ranks must be a pair", {"ranks": (1, 2, 3)}),
        (ValueError, "heads must be from 1", {"ranks": (2, 0)}),
        (TypeError, "seqlen must be an int", {"seqlen": 2.5}),
        (ValueError, "seqlen must be from 1 to", {"seqlen": 0}),
        (ValueError, "a multiple of num_heads_kv, got 32 and 5", {"num_heads_kv": 5}),
        (ValueError, "num_heads must be at least 1", {"num_heads": 0}),
        (TypeError, "pattern must be made by flash_attn2.masks", {"pattern": "causal"}),
        (
            ValueError,
            "pattern must have 1 head, num_heads_kv, 8, or num_heads, 32, got 3",
            {"pattern": masks.random_blocks(1, seed=0, heads=3)},
        ),
        (ValueError, "auto, ring, gather, heads, got 'ulysses'", {"scheme": "ulysses"}),
        (ValueError, "balance must be one of", {"balance": "even"}),
        (ValueError, "chunk must be at least 1, got 0", {"chunk": 0}),
        (ValueError, "memory_limit must be at least .*, got 9", {"memory_limit": 9}),
        (TypeError, "memory_limit must be an int", {"memory_limit": "1 GB"}),
        (ValueError, "a ring takes masks.causal", {"scheme": "ring", "pattern": masks.bigbird()}),
        (ValueError, 'for a ring, got "greedy"', {"scheme": "ring", "balance": "greedy"}),
        (ValueError, '"contiguous" for scheme "heads"', {"scheme": "heads", "balance": "zigzag"}),
        (ValueError, "for ranks of two dimensions", {"ranks": (2, 2), "scheme": "heads"}),
    ],
)  # fmt: skip
def test_errors(kind: type[Exception], message: str, changed: dict[str, Any]) -> None:
    with pytest.raises(kind, match=message):
        plan_of(**{"ranks": 4, "seqlen": 1000} | changed)


def test_errors_of_plans() -> None:
    plan = plan_of(4, 100, scheme="ring")
    with pytest.raises(ValueError, match="of no rank: use plan"):
        plan.positions  # noqa: B018
    with pytest.raises(ValueError, match="rank must be from 0 to 3, got 4"):
        plan.at(4)
    here = plan.at(0)
    with pytest.raises(ValueError, match="the 100 rows of the sequence in dimension 1, got 99"):
        here.shard(torch.zeros(2, 99), 1)
    with pytest.raises(IndexError, match="dim must be from -2 to 1"):
        here.shard(torch.zeros(2, 99), 2)
    with pytest.raises(TypeError, match="x must be a torch"):
        here.shard([1], 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="made of numbers: unshard needs"):
        here.unshard(torch.zeros(26), 0)
    with pytest.raises(ValueError, match="head_dim must be at least 1"):
        plan.report(head_dim=0)
    for name in ("flops", "node_bandwidth", "network_bandwidth", "node_size"):
        with pytest.raises(ValueError, match=f"{name} must be positive"):
            Cluster(**{name: 0})
    with pytest.raises(ValueError, match="node_size must be an integer"):
        Cluster(node_size=1.5)  # type: ignore[arg-type]
