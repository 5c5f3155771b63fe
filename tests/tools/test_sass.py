"""The machine-code reader, on hand-written listings in cuobjdump's format."""

from __future__ import annotations

import pytest

from tools.cuda_check.loops import main_loops
from tools.cuda_check.sass import Instruction, Kernel, parse

HEADER = """
	code for sm_80
	.target	sm_80

		Function : {name}
	.headerflags	@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
"""


def listing(*instructions: str, name: str = "_Z3fwdv") -> str:
    """Instructions at 0x0, 0x10, ... as cuobjdump prints them, encodings included."""
    lines = [HEADER.format(name=name)]
    for index, text in enumerate(instructions):
        lines.append(f"        /*{16 * index:04x}*/    {text} ;    /* 0x00000a0000017a02 */")
        lines.append("                                        /* 0x000fe40000000f00 */")
    return "\n".join(lines)


def read(*instructions: str) -> Kernel:
    (kernel,) = parse(listing(*instructions).splitlines())
    return kernel


def test_parse_keeps_address_predicate_opcode_and_operands() -> None:
    kernel = read(
        "MOV R1, c[0x0][0x28]", "@!P0 LDG.E R0, [R2.64+0x10]", "@!UP1 UIADD3 UR4, UR4, 0x1"
    )
    assert kernel.name == "_Z3fwdv"
    assert kernel.instructions == (
        Instruction(0x00, "MOV", "R1, c[0x0][0x28]"),
        Instruction(0x10, "LDG.E", "R0, [R2.64+0x10]", "@!P0"),
        Instruction(0x20, "UIADD3", "UR4, UR4, 0x1", "@!UP1"),
    )


def test_parse_separates_functions() -> None:
    text = listing("NOP", "EXIT", name="_Z1av") + listing("EXIT", name="_Z1bv")
    assert [(k.name, len(k.instructions)) for k in parse(text.splitlines())] == [
        ("_Z1av", 2),
        ("_Z1bv", 1),
    ]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", "mma"),
        ("HGMMA.64x128x16.F32.BF16 R88, R180, gdesc[UR12].tnspB, R88", "mma"),
        ("HGMMA.64x8x16.F16 RZ, gdesc[URZ], RZ, !UPT, gsb0", "sync"),
        ("HFMA2.MMA R3, -RZ, RZ, 0, 2.384185791015625e-07", "float"),
        ("LDSM.16.MT88.4 R4, [R8]", "ldmatrix"),
        ("LDGSTS.E.BYPASS.LTC128B.128 [R3], [R4.64]", "async_copy"),
        ("LDS.128 R4, [R8]", "shared"),
        ("LDL.LU R4, [R1+0x8]", "local"),
        ("STL.64 [R1], R4", "local"),
        ("MUFU.EX2 R4, R5", "mufu"),
        ("IMAD.WIDE R2, R3, 0x4, R4", "integer"),
    ],
)
def test_kind(text: str, kind: str) -> None:
    assert read(text).instructions[0].kind == kind


@pytest.mark.parametrize(
    ("text", "target", "falls_through"),
    [
        ("BRA 0x90", 0x90, False),
        ("@P0 BRA 0x1f10", 0x1F10, True),
        ("BRA P3, 0x20", 0x20, True),
        ("BRA.DIV UR4, 0x300", 0x300, True),
        ("@!P2 EXIT", None, True),
        ("EXIT", None, False),
        ("BSYNC B0", None, True),
        ("CALL.REL.NOINC 0x40", None, True),
    ],
)
def test_branches(text: str, target: int | None, falls_through: bool) -> None:
    instruction = read(text).instructions[0]
    assert instruction.branch_target == target
    assert instruction.falls_through == falls_through


def test_loop_and_its_mix() -> None:
    kernel = read(
        "MOV R1, R2",
        "LDSM.16.M88.4 R4, [R8]",  # 0x10
        "HMMA.16816.F32 R4, R8, R12, R4",
        "HMMA.16816.F32 R4, R8, R12, R4",
        "ISETP.GE.AND P0, PT, R1, R2, PT",
        "@P0 BRA 0x10",
        "EXIT",
    )
    (loop,) = main_loops(kernel)
    assert (loop.first, loop.last) == (0x10, 0x50)
    assert loop.mix == {"ldmatrix": 1, "mma": 2, "integer": 1, "branch": 1}
    assert loop.instructions_per_mma == 2.5
    assert loop.local_accesses == 0


def test_hot_path_leaves_out_a_rare_block_but_its_spills_count() -> None:
    kernel = read(
        "HMMA.16816.F32 R4, R8, R12, R4",
        "@!P1 BRA 0x50",
        "SHFL.BFLY PT, R4, R5, 0x1, 0x1f",  # the rescale that few trips execute
        "LDL R4, [R1]",
        "FMUL R4, R4, R5",
        "HMMA.16816.F32 R4, R8, R12, R4",  # 0x50
        "@P0 BRA 0x0",
        "EXIT",
    )
    (loop,) = main_loops(kernel)
    assert [instruction.address for instruction in loop.hot_path] == [0x00, 0x10, 0x50, 0x60]
    assert loop.local_accesses == 1


@pytest.mark.parametrize("first", range(7))
def test_exponentials_beside_no_product_are_late(first: int) -> None:
    """Wherever in a step the loop begins."""
    step = [
        "HGMMA.64x128x16.F32 R24, gdesc[UR4], R24, gsb0",
        "WARPGROUP.DEPBAR.LE gsb0, 0x1",
        "MUFU.EX2 R8, R8",
        "WARPGROUP.DEPBAR.LE gsb0, 0x0",
        "MUFU.EX2 R9, R9",
        "HGMMA.64x128x16.F32 R24, gdesc[UR4], R24, gsb0",
        "WARPGROUP.DEPBAR.LE gsb0, 0x0",
    ]
    (loop,) = main_loops(read(*step[first:], *step[:first], "@P0 BRA 0x0", "EXIT"))
    assert loop.late_exponentials == 1


def test_hot_path_never_skips_mmas() -> None:
    kernel = read(
        "@!P1 BRA 0x30",
        "HMMA.16816.F32 R4, R8, R12, R4",
        "HMMA.16816.F32 R4, R8, R12, R4",
        "@P0 BRA 0x0",  # 0x30
        "EXIT",
    )
    (loop,) = main_loops(kernel)
    assert len(loop.hot_path) == 4


def test_hot_path_takes_the_shorter_of_two_ways_with_equal_mmas() -> None:
    kernel = read(
        "@P1 BRA 0x40",
        "HMMA.16816.F32 R4, R8, R12, R4",  # masked
        "FSEL R4, R5, R6, P2",
        "BRA 0x50",
        "HMMA.16816.F32 R4, R8, R12, R4",  # 0x40, unmasked
        "@P0 BRA 0x0",  # 0x50
        "EXIT",
    )
    (loop,) = main_loops(kernel)
    assert [instruction.address for instruction in loop.hot_path] == [0x00, 0x40, 0x50]


def test_steady_loop_comes_first_and_outer_loops_are_left_out() -> None:
    kernel = read(
        "FSEL R4, R5, R6, P2",  # 0x0, masked tiles
        "HMMA.16816.F32 R4, R8, R12, R4",
        "@P0 BRA 0x0",
        "HMMA.16816.F32 R4, R8, R12, R4",  # 0x30, full tiles
        "@P0 BRA 0x30",
        "@P1 BRA 0x0",  # both again
        "EXIT",
    )
    steady, masked = main_loops(kernel)
    assert (steady.first, steady.instructions_per_mma) == (0x30, 2)
    assert (masked.first, masked.instructions_per_mma) == (0x00, 3)


def test_a_cold_block_that_jumps_back_is_no_loop() -> None:
    kernel = read(
        "@P2 BRA 0x50",  # to the cold block, before the place it comes back to
        "HMMA.16816.F32 R4, R8, R12, R4",
        "HMMA.16816.F32 R4, R8, R12, R4",
        "@P0 BRA 0x0",
        "EXIT",
        "MOV R1, R2",  # 0x50
        "BRA 0x20",
    )
    (loop,) = main_loops(kernel)
    assert (loop.first, loop.last) == (0x00, 0x30)


def test_waiting_inside_a_main_loop_is_no_loop_of_its_own() -> None:
    kernel = read(
        "HMMA.16816.F32 R4, R8, R12, R4",
        "LDG.E.STRONG.GPU R2, [R6.64]",  # 0x10, until another block has raised the flag
        "@P1 BRA 0x10",
        "@P0 BRA 0x0",
        "EXIT",
    )
    (loop,) = main_loops(kernel)
    assert len(loop.hot_path) == 4


def test_loops_without_mmas_do_not_count() -> None:
    assert main_loops(read("IADD3 R1, R1, 0x1, RZ", "@P0 BRA 0x0", "EXIT", "BRA 0x30")) == []
