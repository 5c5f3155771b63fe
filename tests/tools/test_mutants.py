"""Faults of PTX instructions, and PTX in which one is chosen at run time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tools.mutants.faults import STRATA, WHOLE_STRATA, faults, parse
from tools.mutants.plugin import Selection
from tools.mutants.record import Record, Run
from tools.mutants.report import summary
from tools.mutants.rewrite import with_faults
from tools.ptx_emulator.module import Module

ROOT = Path(__file__).resolve().parents[2]

BODY = """
\tld.param.u64 \t%rd1, [kernel_param_0];
\tcvta.to.global.u64 \t%rd2, %rd1;
\tmov.u32 \t%r1, %tid.x;
\tadd.s32 \t%r2, %r1, 5;
\tsetp.lt.s32 \t%p1, %r2, 40;
\tselp.b32 \t%r3, %r1, %r2, %p1;
\t@%p1 bra \t$L1;
\t@!%p1 st.global.u32 \t[%rd2+4], %r3;
$L1:
\tld.global.v2.f32 \t{%f1, %f2}, [%rd2+8];
\tfma.rn.f32 \t%f3, %f1, %f2, %f1;
\tcp.async.cg.shared.global [%r1], [%rd2], 16;
\tcp.async.commit_group;
\tcp.async.wait_group 1;
\tbar.sync \t0;
\tadd.f32 \t%f4, %f3, %f1;
\tst.global.f32 \t[%rd2], %f4;
{
.reg .pred complete;
TRY:
mbarrier.try_wait.parity.shared::cta.b64 complete, [%r1], %r2;
@complete bra GO_ON;
bra TRY;
GO_ON:
}
\twgmma.fence.sync.aligned;
\twgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f1,%f2,%f3,%f4}, %rd1, %rd2, %p1, 1,1,0,0;
\twgmma.commit_group.sync.aligned;
\twgmma.wait_group.sync.aligned 0;
\tmbarrier.arrive.shared::cta.b64 _, [%r1];
\tret;
"""
PTX = f"""
.version 8.0
.target sm_80
.address_size 64
.visible .entry kernel(
\t.param .u64 kernel_param_0
)
{{
\t.reg .pred \t%p<2>;
\t.reg .f32 \t%f<5>;
\t.reg .b32 \t%r<4>;
\t.reg .b64 \t%rd<3>;
{BODY}
}}
"""


NEAR = ("%r9", "%rd9", "%f9", "%p9")


def kinds_of(line: str) -> dict[str, Any]:
    instruction = parse(line)
    assert instruction is not None, line
    return {fault.kind: fault.instead for fault in faults(instruction, NEAR)}


@pytest.mark.parametrize(
    ("line", "kind", "instead"),
    [
        ("bar.sync 0;", "dropped order", ()),
        ("@%p1 membar.gl;", "dropped order", ()),
        ("bar.sync 0;", "early order", ()),
        ("cp.async.wait_group 0;", "late order", ()),
        (
            "ld.acquire.gpu.global.s32 %r1, [%rd2];",
            "relaxed order",
            ("ld.relaxed.gpu.global.s32 %r1, [%rd2]",),
        ),
        ("@%p1 bra $L1;", "guard: always", ("bra $L1",)),
        ("@%p1 bra $L1;", "guard: never", ()),
        ("@!%p1 bra $L1;", "guard: negate", ("@%p1 bra $L1",)),
        ("bar.warp.sync -1;", "dropped order", ()),
        ("cp.async.wait_group 1;", "wait for fewer", ("cp.async.wait_group 2",)),
        ("st.shared.v4.b32 [%r1+32], {%r2, %r3, %r4, %r5};", "dropped write", ()),
        ("red.relaxed.gpu.global.add.f32 [%rd1], %f1;", "dropped write", ()),
        (
            "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r1, %r2}, [%r3];",
            "shifted source",
            ("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r1, %r2}, [%r3+16]",),
        ),
        ("st.global.f32 [%rd1+-16], %f1;", "shifted target", ("st.global.f32 [%rd1+0], %f1",)),
        ("setp.ge.s32 %p1, %r1, 3;", "comparison", ("setp.gt.s32 %p1, %r1, 3",)),
        ("setp.ge.s32 %p1, %r1, 3;", "constant", ("setp.ge.s32 %p1, %r1, 4",)),
        ("selp.f32 %f1, %f2, %f3, %p1;", "selection", ("selp.f32 %f1, %f3, %f2, %p1",)),
        ("fma.rn.f32 %f1, %f2, %f3, %f4;", "dropped operation", ("mov.f32 %f1, %f2",)),
        ("max.f32 %f1, %f2, %f3;", "operation", ("min.f32 %f1, %f2, %f3",)),
        ("mov.u32 %r1, 7;", "constant", ("mov.u32 %r1, 8",)),
        ("and.pred %p1, %p2, %p3;", "operation", ("or.pred %p1, %p2, %p3",)),
        ("and.pred %p1, %p2, %p3;", "dropped operation", ("and.pred %p1, %p3, %p3",)),
        ("add.s32 %r1, %r2, %r9;", "other register", ("add.s32 %r1, %r9, %r9",)),
        ("@%p1 st.shared.u32 [%r1], %r2;", "other register", ("@%p1 st.shared.u32 [%r1], %r9",)),
        ("{ cvt.f32.f16 %f1, %rs2;}", "late", ()),
        (
            "wgmma.wait_group.sync.aligned 1;",
            "wait for fewer",
            ("wgmma.wait_group.sync.aligned 2",),
        ),
        ("wgmma.fence.sync.aligned;", "dropped order", ()),
        ("fence.mbarrier_init.release.cluster;", "dropped order", ()),
        (
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 "
            "{%f1, %f2, %f3, %f4}, %rd1, %rd2, %p1, 1, 1, 0, 0;",
            "dropped mma",
            (),
        ),
        (
            "mbarrier.arrive.shared::cta.b64 _, [%r1+8];",
            "other mbarrier",
            ("mbarrier.arrive.shared::cta.b64 _, [%r1+16]",),
        ),
        (
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%r1], %r2;",
            "dropped wait",
            ("setp.eq.u32 done, %r2, %r2",),
        ),
        (
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%r1], %r2;",
            "other parity",
            (
                "xor.b32 %emu1, %r2, 1",
                "mbarrier.try_wait.parity.shared::cta.b64 done, [%r1], %emu1",
            ),
        ),
        (
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%r1], [%rd1, {%r2, %r3}], [%r4];",
            "dropped write",
            (),
        ),
        ("setmaxnreg.dec.sync.aligned.u32 24;", "dropped order", ()),
        (
            "st.shared.v2.f32 [%r1], {%f1, %f2};",
            "swapped items",
            ("st.shared.v2.f32 [%r1], {%f2, %f1}",),
        ),
    ],
)
def test_faults_of(line: str, kind: str, instead: Sequence[str]) -> None:
    assert kinds_of(line)[kind] == instead


def test_equal_items_are_not_swapped() -> None:
    assert "swapped items" not in kinds_of("st.shared.v2.f32 [%r1], {%f1, %f1};")


@pytest.mark.parametrize(
    ("line", "strata"),
    [
        ("bar.sync 0;", {"order"}),
        ("wgmma.fence.sync.aligned;", {"order"}),
        ("red.release.gpu.global.add.s32 [%rd1], 1;", {"order", "accesses"}),
        ("@%p1 st.shared.u32 [%r1], %r2;", {"guards", "accesses"}),
        ("setp.lt.s32 %p1, %r1, %r2;", {"predicates"}),
        ("or.pred %p1, %p2, %p3;", {"predicates"}),
        ("shfl.sync.idx.b32 %r1|%p1, %r2, 0, 31, -1;", {"values"}),
        ("add.s32 %r1, %r2, 1;", {"values"}),
    ],
)
def test_strata_of(line: str, strata: set[str]) -> None:
    instruction = parse(line)
    assert instruction is not None
    assert {fault.stratum for fault in faults(instruction, NEAR)} == strata


@pytest.mark.parametrize(
    "line", ["$L1:", ".reg .pred %p1;", "{", "", "// bar.sync 0;", ".loc 1 2 3"]
)
def test_what_is_no_instruction(line: str) -> None:
    assert parse(line) is None


def test_every_fault_of_a_kernel_translates() -> None:
    seen = set()
    for seed in range(25):
        text, mutants = with_faults(PTX, seed, 50, 1000)
        numbers = [mutant.number for mutant in mutants]
        assert numbers == list(range(1000, 1000 + len(mutants)))
        assert all(mutant.kernel == "kernel" for mutant in mutants)
        cpp = Module(text, "kernel.ptx").cpp()
        assert all(f"is_chosen_fault(u32({number}u))" in cpp for number in numbers)
        seen |= {mutant.kind for mutant in mutants}
    wanted = {fault.kind for line in BODY.splitlines() if (x := parse(line)) for fault in faults(x)}
    assert seen == wanted | {"other register"}


def body_with(line: str, kind: str) -> list[str]:
    """The instructions and labels that the first such fault of a line makes of the kernel."""
    text, mutants = with_faults(PTX, 1, 50, 1)
    number = next(m.number for m in mutants if m.instruction == line and m.kind == kind)
    lines = [x.strip().replace("\t", "") for x in text.splitlines()]
    result, skipping, is_chosen = [], "", False
    for x in lines:  # as a thread runs it for which the fault is the chosen one
        if skipping:
            skipping = "" if x == skipping else skipping
        elif x.startswith("emu.fault"):
            is_chosen = x == f"emu.fault %emu0, {number};"
        elif x.startswith("@!%emu0 bra "):
            skipping = "" if is_chosen else x.removeprefix("@!%emu0 bra ").rstrip(";") + ":"
        elif x.startswith("bra $emu_end"):
            skipping = x.removeprefix("bra ").rstrip(";") + ":"
        elif not x.startswith("$emu"):
            result.append(x)
    return result


COPY = "cp.async.cg.shared.global [%r1], [%rd2], 16;"
COMMIT, WAIT, BARRIER = "cp.async.commit_group;", "cp.async.wait_group 1;", "bar.sync 0;"


@pytest.mark.parametrize(
    ("instruction", "kind", "order"),
    [
        (BARRIER, "dropped order", [COPY, COMMIT, WAIT]),
        (WAIT, "dropped order", [COPY, COMMIT, BARRIER]),
        (WAIT, "wait for fewer", [COPY, COMMIT, "cp.async.wait_group 2;", BARRIER]),
        (WAIT, "late order", [COPY, COMMIT, BARRIER, WAIT]),
        (COMMIT, "early order", [COMMIT, COPY, WAIT, BARRIER]),
        (BARRIER, "early order", [COPY, COMMIT, BARRIER, WAIT]),
    ],
)
def test_order_with_a_fault(instruction: str, kind: str, order: list[str]) -> None:
    body = body_with(instruction.rstrip(";"), kind)
    kept = [line for line in body if line.startswith(("cp.", "bar."))]
    assert kept == order


@pytest.mark.parametrize(
    ("line", "other", "is_ordered"),
    [
        ("bar.sync 0;", "st.shared.u32 [_ZN4smemE+4], %r1;", True),
        ("bar.sync 0;", "ld.shared.u32 %r1, [%r2];", True),
        ("bar.sync 0;", "ld.shared.u32 %r1, [_ZN4smemE+4];", False),
        ("bar.sync 0;", "ld.global.u32 %r1, [%rd2];", False),
        ("bar.sync 0;", "cp.async.wait_group 0;", True),
        ("bar.sync 0;", "cp.async.commit_group;", False),
        ("bar.warp.sync -1;", "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r3];", True),
        ("cp.async.commit_group;", "cp.async.ca.shared.global [%r1], [%rd2], 4;", True),
        ("cp.async.commit_group;", "ld.shared.u32 %r1, [%r2];", False),
        ("cp.async.wait_group 0;", "ld.shared.u32 %r1, [%r2];", False),
        ("membar.gl;", "ld.global.u32 %r1, [%rd2];", True),
    ],
)
def test_what_is_ordered(line: str, other: str, is_ordered: bool) -> None:
    first, second = parse(line), parse(other)
    assert first is not None
    assert second is not None
    assert first.is_ordered_with(second) == is_ordered


def test_order_and_guards_have_all_their_faults() -> None:
    _, mutants = with_faults(PTX, 1, 2, 1)
    by_stratum = {s: [m for m in mutants if m.stratum == s] for s in STRATA}
    assert len(by_stratum["guards"]) == 2 * 3
    # Of the commit, the wait and the barrier, which has nothing to come after; of the wait for an
    # mbarrier, of wgmma's fence, commit and wait, and of the arrival.
    assert len(by_stratum["order"]) == 3 + 4 + 2 + 3 + 2 + 3 + 4 + 3
    assert all(len(by_stratum[s]) <= 2 for s in STRATA if s not in WHOLE_STRATA)
    assert len(by_stratum["values"]) == 2


def test_faults_are_drawn_by_seed() -> None:
    assert with_faults(PTX, 1, 3, 1) == with_faults(PTX, 1, 3, 1)
    assert with_faults(PTX, 1, 3, 1) != with_faults(PTX, 2, 3, 1)


def test_kernels_alike_have_the_same_faults() -> None:
    half = PTX.replace("ld.global.v2.f32", "cvt.rn.f16.f32 %rs1, %f1;\n\tld.global.v2.f32")
    bfloat = half.replace("rn.f16", "rn.bf16").replace("kernel", "other")
    text, mutants = with_faults(half + bfloat, 1, 3, 1)
    assert {m.kernel for m in mutants} == {"kernel"}
    for mutant in mutants:
        assert text.count(f"emu.fault %emu0, {mutant.number};") in (2, 4)
    different = bfloat.replace("add.s32", "sub.s32")
    assert {m.kernel for m in with_faults(half + different, 1, 3, 1)[1]} == {"kernel", "other"}


def test_selection() -> None:
    mutants = {
        n: {"stratum": stratum, "unit": f"unit{n % 3}", "kernel": "fwd" if n % 2 else "bwd"}
        for n, stratum in enumerate(stratum for stratum in STRATA for _ in range(20))
    }
    met = set(range(10, 100))
    of = Selection(1, 5).of(mutants, met)
    strata = [mutants[n]["stratum"] for n in of]
    assert [strata.count(s) for s in STRATA] == [10, 5, 5, 5, 5]
    assert set(of) <= met
    assert Selection(1, 5).of(mutants, met) == of
    assert Selection(2, 5).of(mutants, met) != of
    assert {mutants[n]["kernel"] for n in Selection(1, 5, "f.d").of(mutants, met)} == {"fwd"}
    assert {n % 6 for n in Selection(1, 5, "unit2 f.d").of(mutants, met)} == {5}
    assert sorted(Selection(1, 5, numbers=frozenset({3, 50, 12})).of(mutants, met)) == [12, 50]


def test_record(tmp_path: Path) -> None:
    module, path = tmp_path / "module.so", tmp_path / "record.json"
    module.write_bytes(b"1")
    record = Record(path, module)
    run = Run(True, 0.5, frozenset({1, 2, 3, 7}))
    record.keep_run("test", "hash", run)
    record.keep_noticed(7, {"outcome": "wrong", "test": "test"})
    record.keep_withstood(3, ["test", "another test"])
    record.save()
    again = Record(path, module)
    assert again.run_of("test", "hash") == run
    assert again.run_of("test", "another hash") is None
    assert again.noticed(7, ["test"]) == {"outcome": "wrong", "test": "test"}
    assert again.noticed(7, ["another test"]) is None
    assert again.withstood(3) == {"test", "another test"}
    again.keep_run("test", "another hash", run)
    assert again.withstood(3) == {"another test"}
    assert again.withstood(7) == frozenset()
    module.write_bytes(b"2")
    assert Record(path, module).run_of("test", "hash") is None


def test_summary_has_the_survivors() -> None:
    common = {
        "unit": "u",
        "kernel": "k",
        "line": 3,
        "source": "a.h:7",
        "stratum": "values",
        "instead": "c",
    }
    results = [
        common | {"number": 1, "kind": "constant", "instruction": "a", "outcome": "wrong"},
        common | {"number": 2, "kind": "constant", "instruction": "b", "outcome": "survived"},
    ]
    lines = summary(results).splitlines()
    assert lines[0].split() == ["reported", "wrong", "hangs", "survived", "noticed"]
    assert lines[1].split() == ["u", "0", "1", "0", "1", "50.0%"]
    assert lines[2].split() == ["values", "0", "1", "0", "1", "50.0%"]
    assert lines[3].split() == ["constant", "0", "1", "0", "1", "50.0%"]
    assert lines[4].split() == ["all", "0", "1", "0", "1", "50.0%"]
    assert lines[5:] == ["2 constant, PTX line 3, a.h:7", "    b -> c    k"]


# Tests whose kernels come to faults, as the plugin sees them, in a process of their own.
TRIED = """
import pytest, time, module
def test_quick(): module.come_to(1); module.come_to(3); assert module.chosen != 1
def test_slow(): module.come_to(1); module.come_to(2); module.come_to(4); assert module.chosen != 2
def test_endless():
    module.come_to(4)
    while module.chosen == 4: pass
def test_failing(): module.come_to(3); assert False
"""
MODULE = """
chosen, met = 0, set()
def come_to(number): met.add(number)
def choose_fault(number): global chosen; chosen = number
def faults_met(): numbers = sorted(met); met.clear(); return numbers
"""
RUN = """
import json, sys
from pathlib import Path
import pytest
import module
from tools.mutants import plugin
plugin._SECONDS_TO_END, plugin._FIRST_SECONDS = 0.3, 0.0
fault = {"stratum": "guards", "unit": "u", "kernel": "k", "kind": "", "line": 1}
fault |= {"instruction": "", "source": ""}
here = Path(__file__).parent
mutants = {n: fault | {"number": n} for n in range(1, 6)}
record = plugin.Record(here / "record.json", Path(module.__file__))
tried = plugin.MutantsPlugin(module, plugin.Selection(1, 5), mutants, record, jobs=2)
pytest.main(["-q", "-s", "-p", "no:cacheprovider", str(here / "test_tried.py")], plugins=[tried])
outcomes = {r["number"]: (r["outcome"], r.get("test", "").split("::")[-1]) for r in tried.results}
(here / "outcomes.json").write_text(json.dumps([sorted(outcomes.items()), tried.not_met]))
"""


def test_faults_are_tried(tmp_path: Path) -> None:
    for name, text in (("test_tried.py", TRIED), ("module.py", MODULE), ("run.py", RUN)):
        (tmp_path / name).write_text(text)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    for _ in range(2):  # the second time from the record
        subprocess.run([sys.executable, "run.py"], cwd=tmp_path, env=environment, check=True)
        assert json.loads((tmp_path / "outcomes.json").read_text()) == [
            [
                [1, ["wrong", "test_quick"]],
                [2, ["wrong", "test_slow"]],
                [3, ["survived", ""]],
                [4, ["hangs", "test_endless"]],
            ],
            [5],
        ]
        (tmp_path / "outcomes.json").unlink()
