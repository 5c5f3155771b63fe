"""Contenders, timing, memory and accuracy: how it is measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn2.bench import accuracy, contenders, memory, modes, timing
from flash_attn2.bench.attention import SelfAttention
from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import CONTENDERS, SDPA, STANDARD, Call, Problem
from flash_attn2.bench.race import FLASH_ATTN2

DENSE = Case("dense", "model", "float32", 4, 2, 16, (33, 33), packed=False, causal=True)
CASES = {
    "dense": DENSE,
    "full": replace(DENSE, causal=False, dtype="bfloat16"),
    "window": replace(DENSE, window_left=9),
    "softcap": replace(DENSE, softcap=5.0),
    "narrow values": replace(DENSE, head_dim_v=8),
    "packed, wide values": replace(DENSE, head_dim_v=24, packed=True, seqlens=(5, 17)),
    "packed": replace(DENSE, packed=True, seqlens=(5, 40, 17)),
    "packed, full": replace(DENSE, packed=True, seqlens=(8, 3), causal=False),
    "packed, window": replace(DENSE, packed=True, seqlens=(30, 20), window_left=4),
}
DROPOUT = replace(DENSE, seqlens=(40,), dropout_p=0.3)


def every_variant(problem: Problem) -> dict[str, Call]:
    calls = {}
    for contender, variants in CONTENDERS.items():
        if contender == SDPA and problem.case.softcap:
            with pytest.raises(contenders.UnavailableError, match="softcap"):
                variants(problem)
            continue
        for name, build in variants(problem).items():
            calls[f"{contender} {name}".strip()] = build()
    return calls


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_variant_computes_attention(case: Case) -> None:
    problem = Problem.create(case, "cpu")
    outputs = {name: call.rows(call.run()) for name, call in every_variant(problem).items()}
    errors = accuracy.measure(problem, outputs)
    assert errors.checked == 1
    for name, output in outputs.items():
        assert output.shape == (case.total, case.num_heads, case.widths.values)
        assert errors.within_tolerance(name), name


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_variant_computes_gradients(case: Case) -> None:
    problem = Problem.create(case, "cpu", gradients=True)
    calls = every_variant(problem)
    errors = accuracy.measure_gradients(problem, calls)
    assert errors.checked == 1
    for name in calls:
        assert errors.contenders[name].keys() == {"grad_q", "grad_k", "grad_v"}
        assert errors.within_tolerance(name), name


@pytest.mark.parametrize("mode", modes.MODES.values(), ids=modes.MODES)
def test_modes_can_be_timed_again_and_again(mode: modes.Mode) -> None:
    for case in (CASES["packed"], CASES["softcap"], DROPOUT):
        problem = Problem.create(case, "cpu", gradients=mode.gradients)
        for call in every_variant(problem).values():
            run = modes.timed(mode, call, problem.grad_out)
            first, second = run(), run()
            if mode == modes.BACKWARD:
                assert len(first) == len(call.leaves)
                for one, other in zip(first, second, strict=True):
                    torch.testing.assert_close(one, other)


def test_gradients_with_dropout_are_checked_where_the_mask_is_known() -> None:
    problem = Problem.create(DROPOUT, "cpu", gradients=True)
    errors = accuracy.measure_gradients(problem, every_variant(problem))
    assert errors.within_tolerance(FLASH_ATTN2)
    assert errors.largest(SDPA) is None


@pytest.mark.parametrize("wrong", ["grad_q", "grad_k", "grad_v"])
def test_accuracy_sees_a_wrong_gradient(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.create(DENSE, "cpu", gradients=True)

    def gradients(call: Call, grad_out: Tensor) -> dict[str, Tensor]:
        found = modes.gradients(call, grad_out)
        found[wrong][40, -1, 3] += 1e-2
        return found

    monkeypatch.setattr(accuracy, "gradients", gradients)
    call = CONTENDERS[STANDARD](problem)[""]()
    errors = accuracy.measure_gradients(problem, {STANDARD: call})
    assert not errors.within_tolerance(STANDARD)
    assert errors.largest(STANDARD) == pytest.approx(1e-2, rel=1e-3)


def test_sdpa_has_two_ways_to_run_packed_sequences() -> None:
    problem = Problem.create(CASES["packed"], "cpu")
    assert len(CONTENDERS[SDPA](problem)) == 2


def test_standard_attention_respects_the_limit() -> None:
    size = 2 * 4 * 33 * 33 * 4
    assert contenders.score_bytes(DENSE) == size
    budget = timing.Budget(1.0, min_rounds=1, max_rounds=1)
    for mode, limit in ((modes.FORWARD, size - 1), (modes.TRAINING, 4 * size - 1)):
        outcome = SelfAttention([], mode, "cpu", budget, limit).measure(DENSE)
        assert outcome["flops"] == mode.flops * DENSE.flops
        assert outcome["contenders"][STANDARD] == {"unavailable": "needs 0.0 GiB"}
        assert outcome["contenders"][SDPA]["ratio"]["value"] > 0


def test_a_peer_that_fails_costs_only_itself() -> None:
    def broken(problem: Problem) -> contenders.Variants:
        raise RuntimeError("no kernel image\nis available")

    budget = timing.Budget(1.0, min_rounds=1, max_rounds=1)

    def measure(**others: Callable[[Problem], contenders.Variants]) -> dict[str, Any]:
        entered = CONTENDERS | others
        suite = SelfAttention([], modes.FORWARD, "cpu", budget, 2**30, entered)
        return suite.measure(DENSE)["contenders"]

    found = measure(**{SDPA: broken})
    assert list(found) == [FLASH_ATTN2, SDPA, STANDARD]
    assert found[SDPA] == {"unavailable": "RuntimeError: no kernel image"}
    assert found[STANDARD]["seconds"] > 0
    with pytest.raises(RuntimeError, match="no kernel image"):
        measure(**{FLASH_ATTN2: broken})


def test_accuracy_sees_a_wrong_element_and_nan() -> None:
    problem = Problem.create(DENSE, "cpu")
    call = CONTENDERS[STANDARD](problem)[""]()
    right = call.rows(call.run()).clone()
    wrong, unset = right.clone(), right.clone()
    wrong[17, 3, 2] += 1e-2
    unset[65, 0, 0] = torch.nan
    errors = accuracy.measure(problem, {"right": right, "wrong": wrong, "unset": unset})
    assert errors.within_tolerance("right")
    assert errors.largest("wrong") == pytest.approx(1e-2, rel=1e-3)
    assert errors.largest("unset") == float("inf")


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


def test_gradients_of_a_sample_match_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "_SCORES", 2000)
    monkeypatch.setattr(accuracy, "_HEADS", 3)
    for small in CASES.values():
        case = replace(small, seqlens=tuple(4 * seqlen for seqlen in small.seqlens))
        problem = Problem.create(case, "cpu", gradients=True)
        call = next(iter(CONTENDERS[STANDARD](problem).values()))()
        errors = accuracy.measure_gradients(problem, {STANDARD: call})
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
    standard = memory.cpu_peak(case, STANDARD, "", modes.FORWARD)
    assert standard is not None
    # Scores and their softmax; the scaled queries and the output come on top or reuse memory.
    assert 2 * scores <= standard <= 2 * scores + 2 * output + slack
    ours = memory.cpu_peak(case, FLASH_ATTN2, "", modes.FORWARD)
    assert ours is not None
    assert output <= ours <= output + 2 * slack
    training = memory.cpu_peak(case, STANDARD, "", modes.TRAINING)
    assert training is not None
    # The probabilities, and the gradients of them and of the scores; freed blocks fit badly.
    assert 3 * scores + 3 * output <= training <= 4.5 * scores + 8 * output + slack


def test_a_lost_child_gives_no_number() -> None:
    assert memory.cpu_peak(DENSE, "nobody", "", modes.FORWARD) is None
