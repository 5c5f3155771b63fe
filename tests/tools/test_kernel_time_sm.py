"""The simulator on hand-made sequences whose times are known."""

from __future__ import annotations

import dataclasses

import pytest
from sass_text import Line, code, steps

from tools.kernel_time.control import ListingError
from tools.kernel_time.costs import cost, reads
from tools.kernel_time.machines import MACHINES, POLICIES, Sm, slots
from tools.kernel_time.simulation import run_steps

# No chance, no start-up, and no limit that a test does not ask for.
CALM = dataclasses.replace(
    Sm(),
    cta_start=0,
    fetch_probability=0.0,
    fetch=1,
    l2_jitter=0,
    registers_per_cycle=100.0,
)
END = Line("EXIT")
MMA = Line("HMMA.16816.F32 R4, R8, R12, R4")
ADD = Line("FADD R4, R5, R6")


def cycles(
    lines: list[Line], repeat: int = 1, warps: int = 1, sm: Sm = CALM, **options: str
) -> int:
    return run_steps([(steps(lines), repeat), (steps([END]), 1)], warps, sm, **options).cycles


@pytest.mark.parametrize("policy", POLICIES)
def test_stall_counts_add_up(policy: str) -> None:
    lines = [Line("MOV R1, R2", stall=stall) for stall in (4, 6, 13)]
    assert cycles(lines, policy=policy) == 4 + 6 + 13 + 1


def test_tensor_instructions_occupy_the_unit() -> None:
    assert cycles([MMA], repeat=100) == 100 * CALM.tensor_busy + 1 - 7
    half = Line("HMMA.1688.F32 R4, R8, R12, R4")
    assert cycles([half], repeat=100) == 100 * CALM.tensor_busy // 2 + 1 - 3


def test_warps_of_different_partitions_do_not_share_units() -> None:
    assert cycles([MMA], repeat=100, warps=4) == cycles([MMA], repeat=100)
    assert cycles([MMA], repeat=100, warps=8) == pytest.approx(2 * 800, abs=8)


def test_a_result_is_waited_for_by_its_scoreboard() -> None:
    load = Line("LDS R4, [R2]", result_at=2)
    use = Line("MOV R1, R4", waits_for=1 << 2)
    begin = CALM.memory_first
    assert cycles([load, use]) == begin + CALM.shared_latency + 2
    assert cycles([load, dataclasses.replace(use, waits_for=1 << 3)]) == 3


def test_operands_are_free_before_the_result_is_there() -> None:
    load = Line("LDS R4, [R2]", operands_at=0)
    overwrite = Line("MOV R2, R1", waits_for=1)
    assert cycles([load, overwrite]) == CALM.memory_first + CALM.operand_read + 2


def test_special_functions_take_their_turn() -> None:
    # The first enters a cycle after it is issued; the queue holds some, so the last one counts.
    exp = Line("MUFU.EX2 R4, R5", result_at=0)
    wait = Line("MOV R1, R4", waits_for=1)
    expected = 1 + 49 * CALM.special_busy + CALM.special_latency + 2
    assert cycles([exp] * 50 + [wait]) == expected


def test_shared_memory_is_bound_by_its_data_path() -> None:
    # Four warps, of a partition each, ask for 512 bytes at a time: 4 cycles of the SM.
    run = run_steps([(steps([Line("LDSM.16.M88.4 R4, [R2]")]), 100), (steps([END]), 1)], 4, CALM)
    assert run.shared_busy == 4 * 100 * 4
    queued = 4 * CALM.memory_queue  # when the last one has been issued
    assert run.cycles == (4 * 100 - queued) * 4


def test_a_barrier_holds_all_warps_until_the_last() -> None:
    barrier = Line("BAR.SYNC.DEFER_BLOCKING 0x0")
    # Five warps: two share a partition, so that one of them is 10 adds of 2 cycles behind.
    alone = cycles([ADD] * 10 + [barrier])
    shared = cycles([ADD] * 10 + [barrier], warps=5)
    assert alone == 10 * CALM.float_busy - 1 + CALM.barrier + 1
    assert shared == 20 * CALM.float_busy - 1 + CALM.barrier + 2  # two of them end


def test_a_named_barrier_is_for_its_warps_only() -> None:
    pair = Line("BAR.SYNC.DEFER_BLOCKING R2, 0x40")
    (coded,) = code([pair])
    assert cost(coded, CALM).shared_cycles == 2
    assert (
        cycles([ADD] * 10 + [pair], warps=6)
        < cycles([ADD] * 10 + [Line("BAR.SYNC.DEFER_BLOCKING 0x0")], warps=6) + 1
    )


def test_copies_are_waited_for_as_groups() -> None:
    copy = Line("LDGSTS.E.BYPASS.LTC128B.128 [R3], [R4.64]")
    commit, wait = Line("LDGDEPBAR", result_at=0), Line("DEPBAR.LE SB0, 0x0")
    one_left = Line("DEPBAR.LE SB0, 0x1")
    moved = 512 / CALM.l2_bytes_per_cycle
    arrival = CALM.memory_first + CALM.l2_latency + int(moved)
    assert cycles([copy, commit, wait]) == arrival + 2
    assert cycles([copy, commit, copy, commit, one_left]) == arrival + 2
    assert cycles([copy, commit, copy, commit, wait]) > arrival + 2


def test_a_wait_of_another_form_is_refused() -> None:
    (coded,) = code([Line("DEPBAR {5,4}")])
    with pytest.raises(ListingError, match=r"DEPBAR \{5,4\}"):
        cost(coded, CALM)


def test_sums_in_memory_are_bound_by_their_rate() -> None:
    add = Line("RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R4", result_at=0)
    wait = Line("MOV R1, R4", waits_for=1)
    run = run_steps([(steps([add]), 200), (steps([wait, END]), 1)], 4, CALM)
    expected = 4 * 200 * 128 / CALM.reduce_bytes_per_cycle + CALM.l2_latency
    assert run.cycles == pytest.approx(expected, rel=0.01)


def test_a_branch_that_is_taken_costs_more() -> None:
    branch = code([Line("BRA 0x0"), END])
    lines = steps([Line("BRA 0x0")])
    taken = [dataclasses.replace(lines[0], taken=True)]
    assert branch[0] == lines[0].coded
    through = run_steps([(lines, 10), (steps([END]), 1)], 1, CALM).cycles
    assert run_steps([(taken, 10), (steps([END]), 1)], 1, CALM).cycles == through + 10 * CALM.branch


def test_the_register_file_bounds_what_reads_much() -> None:
    narrow = dataclasses.replace(CALM, registers_per_cycle=1.0)
    fma = Line("FFMA R4, R5, R6, R7")
    assert cycles([fma], repeat=100, sm=narrow) == pytest.approx(300, abs=6)
    kept = Line("FFMA R4, R5, R6, R7", reuse=0b011)
    first, second = code([kept, fma])
    assert reads(second, None) == 3
    assert reads(second, first) == 1


def test_policies_differ_where_a_choice_is() -> None:
    # In turn, two warps of a partition end together; greedily, one ends long before the other.
    def idle_share(policy: str) -> float:
        run = run_steps([(steps([ADD]), 200), (steps([END]), 1)], 5, CALM, policy)
        return run.waits["empty"] / run.cycles

    assert idle_share("greedy") > idle_share("in turn") + 0.3


def test_slots_of_an_sm() -> None:
    a100, rtx = MACHINES["A100"], MACHINES["RTX3090"]
    assert slots(a100, warps=4, registers=255, shared_bytes=66432) == 2  # both limits
    assert slots(a100, warps=4, registers=168, shared_bytes=20000) == 3  # registers
    assert slots(a100, warps=8, registers=32, shared_bytes=50_000) == 3  # shared memory
    assert slots(rtx, warps=4, registers=255, shared_bytes=66432) == 1
    assert slots(rtx, warps=8, registers=255, shared_bytes=128 * 1024) == 0


def test_peaks_are_those_of_the_data_sheets() -> None:
    peaks = {name: machine.peak / 1e12 for name, machine in MACHINES.items()}
    assert peaks["A100"] == pytest.approx(312, rel=0.01)
    assert peaks["A10"] == pytest.approx(125, rel=0.01)
    assert peaks["RTX3090"] == pytest.approx(71, rel=0.01)
    assert peaks["RTX4090"] == pytest.approx(165, rel=0.01)
    assert peaks["H100"] == pytest.approx(989 * 2 / 3, rel=0.05)
