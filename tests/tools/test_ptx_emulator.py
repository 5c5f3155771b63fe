"""The translator of PTX to C++ for the kernel emulator: what it reads, and what it refuses.

What the instructions do is tested in C++ (tests/emulator/ptx).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.ptx_emulator import translate
from tools.ptx_emulator.errors import TranslationError
from tools.ptx_emulator.flow import Step, unwritten_reads
from tools.ptx_emulator.module import Module
from tools.ptx_emulator.statements import split_operands, statements
from tools.ptx_emulator.variables import parse_variable, shared_layout

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"


def cpp_of(body: str, before: str = "") -> str:
    text = f"{HEAD}{before}\n.visible .entry kernel(.param .u64 out)\n{{\n{body}\n}}\n"
    return Module(text, "x.ptx").cpp()


def texts(ptx: str) -> list[str]:
    return [s.text for s in statements(ptx)]


def test_statements_are_found_however_they_are_laid_out() -> None:
    assert texts("{ .reg .pred p; setp.ne.b32 p, %r1, 0;\n @p bra L; }") == [
        "{",
        ".reg .pred p",
        "setp.ne.b32 p, %r1, 0",
        "@p bra L",
        "}",
    ]
    assert texts("$L__1: add.s32 %r1,\n  %r2, 1; // rest\nst.v2.u32 [%rd1], {%r1, %r2};") == [
        "$L__1:",
        "add.s32 %r1,\n  %r2, 1",
        "st.v2.u32 [%rd1], {%r1, %r2}",
    ]
    assert texts(".global .b8 a[2] = {1, 2};\n.loc 1 2 3\nret;") == [
        ".global .b8 a[2] = {1, 2}",
        ".loc 1 2 3",
        "ret",
    ]


def test_statements_know_their_lines_and_skip_debug_sections() -> None:
    found = list(statements("/* one\n two */\nret;\n.section .debug\n{\n.b8 1;\n}\nexit;"))
    assert [(s.line, s.text) for s in found] == [(3, "ret"), (8, "exit")]


def test_operands_are_split_outside_of_brackets() -> None:
    assert split_operands("{%f1, %f2}, [%rd1+8], (a, b), 3") == [
        "{%f1, %f2}",
        "[%rd1+8]",
        "(a, b)",
        "3",
    ]
    assert split_operands("") == []


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        ("clusterctarank.u32 %r1, 0;", "clusterctarank.u32: the table of instructions does"),
        ("wgmma.mma_async.sync.aligned.m64n12k16.f32.f16.f16 {%r1}, 0;", "does not have it"),
        ("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r1}, 0;", "2 operands"),
        ("add.s32.rz %r1, %r1, %r1;", "add.s32.rz: the table of instructions does not have it"),
        ("ld.global.evict_never.u32 %r1, [%rd1];", "does not have .evict_never"),
        ("add.s32 %r1, %r1;", "add.s32: 2 operands"),
        ("mbarrier.init.shared.b64 [%r1];", "mbarrier.init.shared.b64: 1 operands"),
        ("mbarrier.init.shared.b64 %r1, 1;", "cannot read the address %r1"),
        ("mbarrier.init.shared::cluster.b64 [%r1], 1;", "does not have it"),
        ("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r1], {%r1};", "does not have it"),
        ("add.s64 %rd1, %rd1, %r1;", "%r1 is u32, not s64"),
        ("add.s32 %r1, %r9, 1;", "unknown operand %r9"),
        ("mov.u32 %r9, 1;", "unknown target %r9"),
        ("bra nowhere;", "no label nowhere"),
        ("call %rd1, ();", "calls through pointers are not emulated"),
        ("call other, ();", "calls other, which is not in this file"),
        ("ld.param.u64 %rd1, [out+8];", "8 bytes at 8 of 8"),
        ("cp.async.cg.shared.global [%r1], [%rd1], 8;", "a copy of 8 bytes"),
        ("atom.global.and.f32 %r1, [%rd1], %r1;", "the table of instructions does not have it"),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1}, [%r1];", "does not have it"),
    ],
)
def test_errors_name_the_instruction_and_its_line(instruction: str, words: str) -> None:
    body = f".reg .b32 %r<2>;\n.reg .b64 %rd<2>;\n\n{instruction}"
    with pytest.raises(TranslationError) as error:
        cpp_of(body)
    opcode = instruction.split()[0].rstrip(";")
    assert str(error.value).startswith(f"x.ptx:10: {opcode}: ")
    assert words in str(error.value)


def test_rows_of_one_spelling_differ_by_their_operands() -> None:
    body = ".reg .b32 %r<2>;\n.reg .b64 %rd<2>;\nmov.u32 %r1, 0;\n"
    arrive = "mbarrier.arrive.shared::cta.b64 %rd1, [%r1+8]{};\n"
    text = cpp_of(body + arrive.format("") + arrive.format(", 3"))
    assert "$rd1 = mbarrier_arrive(sites + 0, $r1 + u32(8), 1u, 0u, true, false);" in text
    assert "$rd1 = mbarrier_arrive(sites + 1, $r1 + u32(8), u32(3u), 0u, true, false);" in text


def test_the_command_writes_the_file_or_says_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ptx, cpp = tmp_path / "a.ptx", tmp_path / "a.cpp"
    ptx.write_text(f"{HEAD}.visible .entry k()\n{{\nret;\n}}\n")
    assert translate.main([str(ptx), "-o", str(cpp), "--opcodes"]) == 0
    assert '{"k", kernel_k' in cpp.read_text()
    assert capsys.readouterr().out == "1 ret\n"
    cpp.unlink()
    ptx.write_text(f"{HEAD}.visible .entry k()\n{{\nunheard.of;\n}}\n")
    assert translate.main([str(ptx), "-o", str(cpp)]) == 1
    assert capsys.readouterr().err.startswith("a.ptx:6: unheard.of: ")
    assert not cpp.exists()


def test_reads_of_registers_that_may_not_be_written_are_found_step_by_step() -> None:
    def step(reads: str, writes: str, **rest: object) -> Step:
        made = Step("", **rest)  # type: ignore[arg-type]
        made.reads, made.writes = set(reads), set(writes)
        return made

    # b is written on one of two paths, c on both, d under a predicate, e in a loop that runs once.
    steps = [
        step("", "a"),
        step("a", "", jumps={"else"}, guard="p"),
        step("", "bc"),
        step("", "", jumps={"end"}),
        Step("", label="else"),
        step("", "c"),
        Step("", label="end"),
        step("a", "d", guard="p"),
        Step("", label="loop"),
        step("", "e"),
        step("e", "", jumps={"loop"}, guard="p"),
        step("abcde", ""),
        step("ad", "", ends=True),
        step("z", ""),  # never comes to it
    ]
    assert unwritten_reads(steps) == [set()] * 11 + [{"b", "d"}, {"d"}, set()]


def test_unwritten_registers_are_poison_and_predicates_are_checked() -> None:
    registers = ".reg .pred %p<3>; .reg .b32 %r<3>;\nsetp.eq.u32 %p1, 1, 1;\n"
    text = cpp_of(registers + "@%p1 setp.eq.u32 %p2, 1, 2;\nselp.u32 %r1, 1, %r2, %p2;")
    assert "u32 $r1, $r2 = u32(-1);" in text
    assert "pred $p1;\nPredicate $p2;" in text
    assert text.count("check_written(") == 1
    assert 'check_written(sites + 0, "%p2", $p2); $r1 =' in text
    assert '#include "ptx/predicate.h"' in text
    certain = cpp_of(registers + "selp.u32 %r1, 1, 2, %p1;")
    assert "redicate" not in certain


def test_registers_of_products_are_asked_once_between_wgmmas() -> None:
    product = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16"
    text = cpp_of(
        ".reg .pred %p<2>; .reg .b32 %r<5>; .reg .b64 %rd<2>; .reg .f32 %f<6>;\n"
        "mov.f32 %f1, 0f00000000; mov.f32 %f2, %f1; @%p1 mov.b32 %r1, 0; mov.b32 %r2, 0;"
        "wgmma.fence.sync.aligned;"
        f"{product} {{%f1, %f2, %f3, %f4}}, {{%r1, %r2, %r3, %r4}}, %rd1, %p1, 1, 1, 0;"
        "mov.f32 %f5, %f4; mov.f32 %f5, %f4;"
    )
    calls = re.findall(r"(use|issue)\(sites \+ \d+, (?:\"(%\w+)\", )?wgmmas, products(\d)\)", text)
    assert calls == [
        *(("use", "%f1", "0"), ("use", "%r1", "1"), ("use", "%r2", "1")),
        *(("issue", "", "0"), ("issue", "", "1"), ("use", "%f4", "0")),
    ]
    assert '#include "ptx/wgmma_registers.h"' in text


def test_scopes_have_registers_and_labels_of_their_own() -> None:
    inner = "{{ .reg .pred p; setp.eq.u32 p, %r1, {n}; @p bra OUT; add.u32 %r1, %r1, 1; OUT: }}"
    text = cpp_of(".reg .b32 %r<2>;\nmov.u32 %r1, 0;\n" + inner.format(n=1) + inner.format(n=2))
    assert text.count("goto LOUT_1;") == text.count("goto LOUT_2;") == 1
    assert "pred $p_2, $p_3;" in text


def test_shared_variables_of_different_kernels_overlap() -> None:
    variables = [
        parse_variable(f".shared .align {align} .b8 {name}[{size}]", "x")
        for name, size, align in (("a", 6, 4), ("b", 16, 16), ("c", 8, 8))
    ]
    users = {"a": {"one"}, "b": {"one", "two"}, "c": {"two"}}
    offsets, ends = shared_layout(variables, users)
    assert offsets == {"a": 0, "b": 16, "c": 32}
    assert ends == {"one": 32, "two": 40}
    offsets, ends = shared_layout(variables, {"a": {"one"}, "b": {"two"}, "c": {"two"}})
    assert offsets == {"a": 0, "b": 0, "c": 16}


def test_a_kernel_has_the_shared_memory_of_what_it_calls() -> None:
    function = """
.shared .align 4 .b8 used[12];
.shared .align 4 .b8 unused[400];
.func helper()
{
  .reg .b32 %r<2>;
  ld.shared.u32 %r1, [used];
  ret;
}
"""
    text = cpp_of("call.uni helper, ();\nret;", function)
    assert '{"kernel", kernel_kernel, params0, 1, 12, 0}' in text


def test_initial_values_of_variables() -> None:
    number = parse_variable(".const .align 4 .f32 x[2] = {0f3F800000, 0f40000000}", "x")
    assert number.initial == bytes.fromhex("0000803f00000040")
    signed = parse_variable(".global .s16 y = -2", "x")
    assert (signed.initial, signed.size, signed.align) == (b"\xfe\xff", 2, 2)
    with pytest.raises(TranslationError, match=r"x.ptx:3: an initial value generic\(f\)"):
        parse_variable(".global .u64 z = generic(f)", "x.ptx:3")


def test_places_name_what_a_line_is_inlined_in() -> None:
    files = '.file 1 "a.cu"\n.file 2 "b.h"\n'
    body = """
  .reg .b32 %r<2>;
  .loc 1 10 3
  .loc 2 20 5, function_name $L, inlined_at 1 10 3
  ld.shared.u32 %r1, [cell];
"""
    text = cpp_of(body, files + ".shared .align 4 .b8 cell[4];")
    assert "  {0, 10, -1},\n  {1, 20, 0}," in text
    assert "  {13, 1},\n" in text
