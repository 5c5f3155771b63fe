"""From turns to launches: which CTAs there are, how they fill a device, what is said of it."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from tools.kernel_time import __main__ as kernel_time
from tools.kernel_time.__main__ import changed, constant, main, serves
from tools.kernel_time.device import (
    Kernel,
    Problem,
    makespan,
    protocol_problem,
    row_kernels_seconds,
    teraflops,
)
from tools.kernel_time.machines import MACHINES
from tools.kernel_time.paths import Paths
from tools.kernel_time.predict import Prediction, Refusal, Subject, bottleneck
from tools.kernel_time.published import LENGTHS, checked_error
from tools.kernel_time.report import table
from tools.kernel_time.tiles import Counts, Tile
from tools.kernel_time.turns import CtaCost, Steady

A100 = MACHINES["A100"]
COST = CtaCost(fixed=1000.0, steady=100.0, masked=150.0, alone=(60.0, 100.0))


def tile(kind: str, block_m: int, block_n: int, head_dim: int = 64) -> Tile:
    return Tile(kind, head_dim, block_m, block_n, 4, Counts(), Counts(), Counts())


def problem(seqlen: int, causal: bool, heads: int = 1, head_dim: int = 64) -> Problem:
    return Problem(1, heads, seqlen, head_dim, causal)


def test_forward_ctas_of_whole_tiles() -> None:
    kernel = Kernel(tile("fwd", 128, 64), COST)
    assert kernel.ctas(problem(512, causal=False)) == [1000 + 8 * 100] * 4


def test_forward_ctas_of_a_ragged_end_have_a_masked_turn() -> None:
    kernel = Kernel(tile("fwd", 128, 96), COST)
    assert kernel.ctas(problem(128, causal=False)) == [1000 + 100 + 150]


def test_causal_forward_ctas_come_from_the_longest() -> None:
    # Of 128 rows the last two tiles of 64 keys are cut by the diagonal.
    kernel = Kernel(tile("fwd", 128, 64), COST)
    expected = [1000 + 2 * 150 + 2 * full * 100 for full in (3, 2, 1, 0)]
    assert kernel.ctas(problem(512, causal=True)) == expected
    by_head = dataclasses.replace(kernel, last_first=False)
    assert by_head.ctas(problem(512, causal=True, heads=2)) == expected[::-1] * 2
    assert kernel.ctas(problem(512, causal=True, heads=2))[:2] == expected[:1] * 2


def test_causal_backward_ctas_see_the_queries_behind() -> None:
    kernel = Kernel(tile("bwd", 64, 128), COST)
    turns = [8, 6, 4, 2]
    assert kernel.ctas(problem(512, causal=True)) == [1000 + 100 * n for n in turns]
    assert kernel.ctas(problem(512, causal=False)) == [1000 + 100 * 8] * 4


def test_turns_of_the_prologue_count_once() -> None:
    kernel = Kernel(tile("fwd", 128, 64), COST, peeled=1.0)
    assert kernel.ctas(problem(128, causal=False)) == [1000 + 100]


def test_makespan_of_one_wave_and_of_two() -> None:
    alone = (60.0, 100.0)
    assert makespan([1000.0] * 4, sms=2, alone=alone) == pytest.approx(1000)
    assert makespan([1000.0] * 8, sms=2, alone=alone) == pytest.approx(2000)


def test_a_cta_alone_on_an_sm_is_faster() -> None:
    alone = (60.0, 100.0)
    assert makespan([1000.0], sms=2, alone=alone) == pytest.approx(600)
    # Two together for 1000 cycles, then the third by itself.
    assert makespan([1000.0] * 3, sms=1, alone=alone) == pytest.approx(1600)
    # The short one ends after 500, the other goes on with 500 left, at its own speed.
    assert makespan([1000.0, 500.0], sms=1, alone=alone) == pytest.approx(500 + 300)


def test_the_protocol_of_the_paper() -> None:
    p = protocol_problem(2048, 128, causal=False)
    assert (p.batch, p.heads) == (8, 16)
    assert p.flop("fwd") == 4 * 2048**2 * 128 * 16 * 8
    assert p.flop("bwd") == 2.5 * p.flop("fwd")
    assert protocol_problem(2048, 128, causal=True).flop("fwd") == p.flop("fwd") / 2


def test_heads_of_a_group_share_keys() -> None:
    """Forward a CTA is of a query head; backward it goes through the queries of all of a group."""
    p = dataclasses.replace(problem(512, causal=True, heads=8), group=4)
    forward = Kernel(tile("fwd", 128, 64), COST)
    assert len(forward.ctas(p)) == 8 * 4
    backward = Kernel(tile("bwd", 64, 128), COST)
    assert backward.ctas(p) == [1000 + 100 * 4 * n for n in (8, 8, 6, 6, 4, 4, 2, 2)]


def test_heads_of_a_group_move_keys_once() -> None:
    single = problem(512, causal=False, heads=8)
    grouped = dataclasses.replace(single, group=4)
    assert [single.bytes_moved(kind) / single.elements for kind in ("fwd", "bwd")] == [8, 16]
    assert [grouped.bytes_moved(kind) / single.elements for kind in ("fwd", "bwd")] == [5, 10]


def test_the_protocol_has_whole_groups() -> None:
    assert protocol_problem(512, 96, causal=False).heads == 21
    assert protocol_problem(512, 96, causal=False, group=4).heads == 20


def test_a_launch_is_not_faster_than_memory() -> None:
    quick = Kernel(tile("fwd", 128, 64), CtaCost(1.0, 1.0, 1.0, (1.0,)))
    p = protocol_problem(512, 64, causal=False)
    moved = 4 * 2 * p.elements
    floor = moved / (A100.memory * A100.memory_share)
    assert quick.launch_seconds(A100, p) == pytest.approx(floor + A100.launch)
    backward = dataclasses.replace(quick, tile=tile("bwd", 64, 128))
    seconds = backward.launch_seconds(A100, p) + row_kernels_seconds(A100, p)
    assert teraflops(A100, backward, p) == pytest.approx(p.flop("bwd") / seconds / 1e12)


STEADY = Steady(
    cycles=200.0,
    busy={"tensor": 0.6, "special": 0.3, "shared": 0.7, "issue": 0.3, "registers": 0.5},
    waits={"empty": 0.6, "barrier": 0.2, "fixed latency": 0.1, "not selected": 0.1},
)


PREDICTION = Prediction(
    instance="fwd_hd64_plain_float16",
    machine="A100",
    policy="greedy",
    slots=2,
    cycles_per_tile=1597.4,
    bottleneck="warps wait: barrier 20%",
    full=tuple(float(100 + index) for index in range(len(LENGTHS))),
    causal=(50.0,) * len(LENGTHS),
    grouped_full=(40.0,) * len(LENGTHS),
    grouped_causal=(30.0,) * len(LENGTHS),
    error="10%",
    cost=COST,
    steady=STEADY,
)


def test_bottleneck_is_a_busy_unit_or_else_what_is_waited_for() -> None:
    assert bottleneck(STEADY) == "warps wait: barrier 20%, fixed latency 10%"
    busy = dataclasses.replace(STEADY, busy=STEADY.busy | {"shared": 0.9})
    assert bottleneck(busy) == "shared 90% busy"


def test_only_what_was_published_is_called_checked() -> None:
    assert checked_error("A100", "fwd", 128, is_plain=True) == "10%"
    assert checked_error("H100", "bwd", 64, is_plain=True) == "15%"
    assert checked_error("A100", "fwd", 96, is_plain=True) == "unchecked"
    assert checked_error("A100", "fwd", 128, is_plain=False) == "unchecked"
    assert checked_error("RTX4090", "fwd", 128, is_plain=True) == "unchecked"


def subject(instance: str, shared_bytes: int, arch: str = "80") -> Subject:
    empty = Paths((), (), None, (), 0.0)
    return Subject(instance, arch, tile("fwd", 128, 64, 192), empty, 128, shared_bytes)


def test_small_tiles_are_for_small_devices() -> None:
    large = subject("fwd_hd192_plain_float16", 120 * 1024)
    small = subject("fwd_hd192_plain_small_float16", 70 * 1024)
    fits_both = subject("fwd_hd64_plain_float16", 50 * 1024)
    every = [large, small, fits_both]
    assert [serves(one, A100, every) for one in every] == [True, False, True]
    assert [serves(one, MACHINES["A10"], every) for one in every] == [False, True, True]
    assert not serves(fits_both, MACHINES["H100"], every)  # other machine code
    # Asked for alone, they are looked at everywhere.
    assert serves(small, A100, [small])


def test_a_twin_that_would_fit_gives_way_on_small_devices() -> None:
    regular = subject("bwd_hd128_plain_float16", 90 * 1024)
    small = subject("bwd_hd128_plain_small_float16", 50 * 1024)
    assert not serves(regular, MACHINES["A10"], [regular, small])


def test_constants_of_the_command_line() -> None:
    assert constant("barrier=40") == ("barrier", 40)
    machine = changed(A100, [constant("reduce_bytes_per_cycle=16"), constant("barrier=10")])
    assert (machine.sm.reduce_bytes_per_cycle, machine.sm.barrier) == (16, 10)
    assert A100.sm.barrier == 20
    with pytest.raises(argparse.ArgumentTypeError, match="no constant 'bar'"):
        constant("bar=1")
    with pytest.raises(argparse.ArgumentTypeError, match="'x' is no value for barrier"):
        constant("barrier=x")


def test_unknown_machines_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--machines", "B200"])
    assert "invalid choice: 'B200'" in capsys.readouterr().err


def test_a_kernel_without_a_prediction_is_said_and_keeps_none_from_theirs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = subject("fwd_hd64_plain_float16", 50 * 1024)
    odd = Refusal("fwd_hd96_plain_float16", "80", "no loop has a turn of 2 MMAs")
    kernels: list[Subject | Refusal] = [odd, fine]
    monkeypatch.setattr(kernel_time, "read_kernels", lambda arguments, pool: iter(kernels))
    monkeypatch.setattr(kernel_time, "predict", lambda subject, *rest: PREDICTION)
    assert main(["--policies", "greedy"]) == 1
    told = capsys.readouterr()
    assert PREDICTION.instance in told.out
    assert told.err == "fwd_hd96_plain_float16 for sm_80: no loop has a turn of 2 MMAs\n"
    kernels.remove(odd)
    assert main(["--policies", "greedy"]) == 0


def test_table_has_a_line_for_each_prediction() -> None:
    head, line, about = table([PREDICTION]).splitlines()
    assert head.split()[:5] == ["kernel", "machine", "policy", "CTAs", "cycles"]
    words = ("1597", "60%", "30%", "70%", "100/101/102/103/104/105", "10%")
    assert all(word in line.split() for word in words)
    assert "512, 1024" in about
    assert PREDICTION.to_json()["cost"] == dataclasses.asdict(COST)
