"""Faults of PTX instructions, and PTX in which one is chosen at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tools.mutants.faults import faults, parse
from tools.mutants.plugin import summary
from tools.mutants.rewrite import with_faults
from tools.ptx_emulator.module import Module

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


def kinds_of(line: str) -> dict[str, Any]:
    instruction = parse(line)
    assert instruction is not None, line
    return {fault.kind: fault.instead for fault in faults(instruction)}


@pytest.mark.parametrize(
    ("line", "kind", "instead"),
    [
        ("bar.sync 0;", "dropped order", ()),
        ("@%p1 membar.gl;", "dropped order", ()),
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
    ],
)
def test_faults_of(line: str, kind: str, instead: Sequence[str]) -> None:
    assert kinds_of(line)[kind] == instead


def test_guards_have_faults() -> None:
    assert {"guard: negate", "guard: always", "guard: never"} <= set(kinds_of("@%p1 bra $L1;"))
    assert not any(kind.startswith("guard") for kind in kinds_of("bar.sync 0;"))


@pytest.mark.parametrize(
    "line", ["$L1:", ".reg .pred %p1;", "{", "", "// bar.sync 0;", ".loc 1 2 3"]
)
def test_what_is_no_instruction(line: str) -> None:
    assert parse(line) is None


def test_every_fault_of_a_kernel_translates() -> None:
    seen = set()
    for seed in range(40):
        text, mutants = with_faults(PTX, seed, 50, 1000)
        numbers = [mutant.number for mutant in mutants]
        assert numbers == list(range(1000, 1000 + len(mutants)))
        assert all(mutant.kernel == "kernel" for mutant in mutants)
        cpp = Module(text, "kernel.ptx").cpp()
        assert all(f"is_chosen_fault(u32({number}u))" in cpp for number in numbers)
        seen |= {mutant.kind for mutant in mutants}
    wanted = {fault.kind for line in BODY.splitlines() if (x := parse(line)) for fault in faults(x)}
    assert seen == wanted


def test_faults_are_drawn_by_seed() -> None:
    assert with_faults(PTX, 1, 5, 1) == with_faults(PTX, 1, 5, 1)
    assert len(with_faults(PTX, 1, 5, 1)[1]) == 5
    assert with_faults(PTX, 1, 5, 1) != with_faults(PTX, 2, 5, 1)


def test_summary_has_the_survivors() -> None:
    common = {"kernel": "k", "line": 3, "by": ""}
    results = [
        common | {"number": 1, "kind": "constant", "instruction": "a", "outcome": "noticed"},
        common | {"number": 2, "kind": "constant", "instruction": "b", "outcome": "survived"},
    ]
    lines = summary(results).splitlines()
    assert lines[1].split() == ["constant", "1", "1"]
    assert lines[2].split() == ["all", "1", "1"]
    assert lines[3] == "2 constant, PTX line 3: b"
