"""Contenders, timing, memory and accuracy: how it is measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from flash_attn2.bench import accuracy, contenders, memory, runner, timing
from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import CONTENDERS, FLASH_ATTN2, SDPA, STANDARD, Problem

DENSE = Case("dense", "model", "float32", 4, 2, 16, (33, 33), packed=False, causal=True)
CASES = {
    "dense": DENSE,
    "full": replace(DENSE, causal=False, dtype="bfloat16"),
    "window": replace(DENSE, window_left=9),
    "softcap": replace(DENSE, softcap=5.0),
    "packed": replace(DENSE, packed=True, seqlens=(5, 40, 17)),
    "packed, full": replace(DENSE, packed=True, seqlens=(8, 3), causal=False),
    "packed, window": replace(DENSE, packed=True, seqlens=(30, 20), window_left=4),
}


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_variant_computes_attention(case: Case, contender: str) -> None:
    problem = Problem.create(case, "cpu")
    if contender == SDPA and case.softcap:
        with pytest.raises(contenders.UnavailableError, match="softcap"):
            CONTENDERS[contender](problem)
        return
    variants = CONTENDERS[contender](problem)
    outputs = {}
    for name, build in variants.items():
        call = build()
        outputs[name] = call.rows(call.run())
        assert outputs[name].shape == (case.total, case.num_heads, case.head_dim)
    errors = accuracy.measure(problem, outputs)
    assert errors.checked == 1
    for name in outputs:
        assert errors.within_tolerance(name), name


def test_sdpa_has_two_ways_to_run_packed_sequences() -> None:
    problem = Problem.create(CASES["packed"], "cpu")
    assert len(CONTENDERS[SDPA](problem)) == 2


def test_standard_attention_respects_the_limit() -> None:
    size = 2 * 4 * 33 * 33 * 4
    assert contenders.score_bytes(DENSE) == size
    budget = timing.Budget(1.0, min_rounds=1, max_rounds=1)
    result = runner.Runner("cpu", budget, standard_limit=size - 1, num_threads=1).run(DENSE)
    assert result.unavailable == {STANDARD: "needs 0.0 GiB"}
    assert result.ratios.keys() == {SDPA}


def test_accuracy_sees_a_wrong_element_and_nan() -> None:
    problem = Problem.create(DENSE, "cpu")
    call = CONTENDERS[STANDARD](problem)[""]()
    right = call.rows(call.run()).clone()
    wrong, unset = right.clone(), right.clone()
    wrong[17, 3, 2] += 1e-2
    unset[65, 0, 0] = torch.nan
    errors = accuracy.measure(problem, {"right": right, "wrong": wrong, "unset": unset})
    assert errors.within_tolerance("right")
    assert errors.contenders["wrong"] == pytest.approx(1e-2, rel=1e-3)
    assert errors.contenders["unset"] == float("inf")


def test_large_cases_are_sampled() -> None:
    case = replace(DENSE, num_heads=32, num_heads_kv=8, seqlens=(20000, 3), packed=True)
    heads, blocks = accuracy.sample(case)
    assert heads == [0, 10, 21, 31]
    assert [block.sequence for block in blocks] == [0, 0, 0, 1]
    assert blocks[0].row_begin == 0
    assert blocks[2].row_end == 20000
    assert blocks[3].rows == slice(20000, 20003)


def test_sampled_rows_match_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "_SCORES", 2000)
    for small in CASES.values():
        case = replace(small, seqlens=tuple(4 * seqlen for seqlen in small.seqlens))
        problem = Problem.create(case, "cpu")
        call = next(iter(CONTENDERS[STANDARD](problem).values()))()
        errors = accuracy.measure(problem, {STANDARD: call.rows(call.run())})
        assert errors.checked < 1
        assert errors.within_tolerance(STANDARD)


class FakeClock:
    """Every call takes as long as its function returns."""

    def measure(self, run: Callable[[], float], calls: int) -> float:
        del calls
        return run()

    def calls_per_sample(self, estimate: float) -> int:
        del estimate
        return 1


def test_rounds_share_the_time() -> None:
    budget = timing.Budget(seconds=3.0, min_rounds=3, max_rounds=50)
    rounds = timing.plan_rounds({"fast": 0.01, "medium": 0.1, "slow": 10.0}, budget)
    counts = {name: sum(name in one for one in rounds) for name in ("fast", "medium", "slow")}
    assert counts == {"fast": 50, "medium": 10, "slow": 3}
    # Spread evenly, and nobody is always first.
    gaps = [index for index, one in enumerate(rounds) if "medium" in one]
    assert {later - earlier for earlier, later in itertools.pairwise(gaps)} == {5}
    assert {one[0] for one in rounds if len(one) > 1} == {"fast", "medium", "slow"}


def test_interleaved_samples_and_ratio() -> None:
    slow = itertools.cycle([0.2, 0.3, 0.4])
    runs = {"ours": lambda: 0.1, "theirs": lambda: next(slow)}
    budget = timing.Budget(seconds=float("inf"), min_rounds=3, max_rounds=3)
    samples = timing.interleave(runs, dict.fromkeys(runs, 0.1), FakeClock(), budget)
    assert samples["ours"] == {0: 0.1, 1: 0.1, 2: 0.1}
    ratio = timing.compare(samples["ours"], samples["theirs"])
    assert ratio.value == pytest.approx(3)
    assert [ratio.low, ratio.high] == pytest.approx([2.5, 3.5])


def test_short_calls_are_repeated_within_a_sample() -> None:
    clock = timing.CpuClock()
    assert clock.calls_per_sample(1e-5) == 100
    assert clock.calls_per_sample(1.0) == 1
    calls: list[None] = []
    clock.measure(lambda: calls.append(None), 7)
    assert len(calls) == 7


@pytest.mark.skipif(not memory.supported(), reason="needs Linux and glibc")
@pytest.mark.parametrize("seqlen", [64, 1024])
def test_peak_memory_of_a_child_process(seqlen: int) -> None:
    case = replace(DENSE, causal=False, num_heads=2, num_heads_kv=2, seqlens=(seqlen,))
    output = case.total * case.num_heads * case.head_dim * 4
    scores = 2 * seqlen**2 * 4
    slack = 2**20  # code and constants that a first call pulls in
    peak = memory.PeakMemory(num_threads=2)
    standard = peak.measure(case, STANDARD, "")
    assert standard is not None
    # Scores and their softmax; the scaled queries and the output come on top or reuse memory.
    assert 2 * scores <= standard <= 2 * scores + 2 * output + slack
    ours = peak.measure(case, FLASH_ATTN2, "")
    assert ours is not None
    assert output <= ours <= output + 2 * slack


def test_a_lost_child_gives_no_number() -> None:
    assert memory.PeakMemory(1).measure(DENSE, "nobody", "") is None
