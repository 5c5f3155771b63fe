"""The rest of the machine-code check: ptxas's output, the limits, the table."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import nvcc_stand_in
import pytest

from tools.cuda_check import __main__ as cuda_check
from tools.cuda_check.__main__ import Tools, architecture, archs_of, check_group
from tools.cuda_check.compiler import (
    Compilation,
    RegisterShares,
    Resources,
    Unreadable,
    compile_units,
    parse_ptxas,
    parse_register_shares,
    parse_shared_bytes,
)
from tools.cuda_check.limits import (
    CODES_SPLIT_LIMITS,
    LISTED_BACKWARD_LIMITS,
    LISTED_FORWARD_LIMITS,
    PAIR_LIMITS,
    PLAIN_BACKWARD_LIMITS,
    PLAIN_FORWARD_LIMITS,
    WGMMA_STEP_LIMITS,
    instructions_per_mma_limit,
    serves,
    violations,
)
from tools.cuda_check.report import KernelReport, LoopReport, short_name, table
from tools.nvcc.instances import generate_instances
from tools.nvcc.units import instance_of, variant_of_unit

PTXAS = """
ptxas info    : 11 bytes gmem, 88 bytes cmem[4]
ptxas info    : Compiling entry function '_Z1aPf' for 'sm_80'
ptxas info    : Function properties for _Z1aPf
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 16 bytes cumulative stack size, 416 bytes cmem[0]
ptxas info    : Compile time = 115.288 ms
ptxas info    : Function properties for helper
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z1bPf' for 'sm_80'
ptxas info    : Function properties for _Z1bPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 1024 bytes smem, 360 bytes cmem[0]
"""  # noqa: E501

STEADY = LoopReport(
    first_address=0x100,
    last_address=0x200,
    instructions=350,
    mmas=100,
    instructions_per_mma=3.5,
    local_accesses=0,
    mix={"mma": 100, "float": 250},
)
REPORT = KernelReport(
    instance="fwd_hd64_plain_float16",
    arch="80",
    name="fa2::sm80::forward",
    shared_bytes=33792,
    resources=Resources(250, 0, 0, 0),
    main_loops=(STEADY, dataclasses.replace(STEADY, instructions=500, instructions_per_mma=5.0)),
    compile_seconds=4.2,
    compiler_peak_bytes=460_000_000,
)


ROWS = dataclasses.replace(
    REPORT,
    instance="bwd_rows_float16",
    name="void fa2::sm80::rows_entry<fa2::sm80::RowStats<cutlass::half_t>, 64>(fa2::sm80::BwdArgs)",
    shared_bytes=0,
    main_loops=(),
)


WGMMA = dataclasses.replace(
    REPORT,
    instance="sm90_fwd_hd128_plain_short_float16",
    arch="90a",
    resources=Resources(168, 0, 0, 0),
    register_shares=RegisterShares(384, 24, 240),
)


def with_steady(**changes: object) -> KernelReport:
    """REPORT with another steady loop."""
    steady = dataclasses.replace(STEADY, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(REPORT, main_loops=(steady, *REPORT.main_loops[1:]))


SHARING = """
.visible .entry producer(
.param .u64 out
)
.maxntid 384, 1, 1
.minnctapersm 1
{
setmaxnreg.dec.sync.aligned.u32 24;
{
setmaxnreg.inc.sync.aligned.u32 240;
}
setmaxnreg.inc.sync.aligned.u32 240;
}
.visible .entry other(
.param .u64 out
)
.maxntid 128, 1, 1
{
ret;
}
"""


def test_register_shares() -> None:
    assert parse_register_shares(SHARING) == {"producer": RegisterShares(384, 24, 240)}
    assert not violations(with_registers(WGMMA, 168))
    assert violations(with_registers(WGMMA, 160)) == [
        f"{WGMMA.instance} for sm_90a: setmaxnreg asks for 64512 registers of 61440"
    ]


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("240", "232", "setmaxnreg to ['24'] and ['232', '240'] of 384 threads"),
        (".maxntid 384", ".reqntid 384", "setmaxnreg to ['24'] and ['240']"),
        ("setmaxnreg", "regs", "no setmaxnreg was found in its PTX"),
    ],
)
def test_shares_that_cannot_be_told_are_violations(before: str, after: str, fault: str) -> None:
    shares = parse_register_shares(SHARING.replace(before, after, -1 if before != "240" else 1))
    report = dataclasses.replace(WGMMA, register_shares=shares.get("producer"))
    assert violations(report) == [f"{WGMMA.instance} for sm_90a: {fault}"]
    assert not violations(dataclasses.replace(REPORT, register_shares=None))  # which share nothing


def with_registers(report: KernelReport, count: int) -> KernelReport:
    return dataclasses.replace(report, resources=Resources(count, 0, 0, 0))


def test_parse_ptxas() -> None:
    assert parse_ptxas(PTXAS) == {
        "_Z1aPf": Resources(168, 16, 8, 12),
        "_Z1bPf": Resources(32, 0, 0, 0),
    }


def test_products_that_wait_for_each_other() -> None:
    words = (
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
        "serialized due to insufficient register resources in the function '_Z1bPf'\n"
    )
    resources = parse_ptxas(words + PTXAS)
    assert not resources["_Z1aPf"].serialises
    assert resources["_Z1bPf"].serialises


def test_parse_ptxas_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="_Z1cPf"):
        parse_ptxas("ptxas info : Compiling entry function '_Z1cPf' for 'sm_80'\nnothing else\n")


def test_compile_units_reads_what_the_compiler_prints(tmp_path: Path) -> None:
    tools = nvcc_stand_in.make_toolchain(tmp_path)
    (tmp_path / "words").write_text(PTXAS)
    shared = ".visible .global .align 4 .u32 shared_bytes_of_fwd_x = 33792;\n"
    (tmp_path / "ptx").write_text(shared)
    source = tmp_path / "fwd_x.cu"
    source.touch()
    for _ in range(2):  # the second time, it is read from records
        archs_of = {source: ["90", "80"]}
        compiled = list(compile_units(tools, archs_of, tmp_path / "units", ["-O3"]))
        for arch, (unit, done) in zip(["90", "80"], compiled, strict=True):
            assert unit == "fwd_x"
            assert isinstance(done, Compilation)
            assert set(done.resources) == {"_Z1aPf", "_Z1bPf"}
            assert done.shared_bytes == 33792
            assert done.seconds > 0
            assert done.peak_rss_bytes > 0
            assert done.arch == arch
            assert done.cubin.name == f"fwd_x.sm_{arch}.cubin"
            assert done.cubin.is_file()
    front, *to_cubins = nvcc_stand_in.calls(tmp_path)
    assert front.startswith("-gencode=arch=compute_80,code=compute_80 -O3 ")
    assert [call.split()[:2] for call in to_cubins] == [
        ["-arch=sm_90", "-cubin"],
        ["-arch=sm_80", "-cubin"],
    ]


def test_what_cannot_be_read_of_a_unit_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other units of its group go on."""
    tools = nvcc_stand_in.make_toolchain(tmp_path)
    (tmp_path / "words").write_text(PTXAS)
    (tmp_path / "ptx").write_text(".visible .global .align 4 .u32 shared_bytes_of_fwd_y = 1;\n")
    sources = {tmp_path / f"fwd_{name}.cu": ["80", "90"] for name in "xy"}
    for source in sources:
        source.touch()
    folder = tmp_path / "units"
    asked = [{source: archs} for source, archs in sources.items()]
    found = [one for units in asked for one in compile_units(tools, units, folder, [])]
    fault = Unreadable("80", "no shared_bytes_of_fwd_x in the PTX")
    assert found[:2] == [("fwd_x", fault), ("fwd_x", dataclasses.replace(fault, arch="90"))]
    assert [type(done) for _, done in found[2:]] == [Compilation, Compilation]

    monkeypatch.setattr(cuda_check, "compile_units", lambda *_: found)
    monkeypatch.setattr(cuda_check, "reports_of", lambda *_: [REPORT])
    reports, failures = check_group(Tools(tools, Path("cuobjdump")), sources, folder, ())
    assert reports == [REPORT] * 2
    assert failures == [f"fwd_x for sm_{arch}: {fault.reason}" for arch in ("80", "90")]


def test_shared_bytes_must_be_there() -> None:
    assert parse_shared_bytes(".visible .global .align 4 .u32 shared_bytes_of_x;", "x") == 0
    with pytest.raises(ValueError, match="shared_bytes_of_x"):
        parse_shared_bytes(".visible .entry fwd()", "x")


def test_limits_are_for_plain_and_listed_kernels_of_one_architecture() -> None:
    assert instructions_per_mma_limit("fwd_hd64_plain_float16", "80") == 4.0
    assert instructions_per_mma_limit("fwd_hd64_plain_bfloat16", "90") is None
    assert instructions_per_mma_limit("fwd_hd64_dropout_float16", "80") is None
    assert instructions_per_mma_limit("bwd_hd64_plain_float16", "80") == 3.0
    assert instructions_per_mma_limit("bwd_hd128_plain_small_float16", "80") is None
    assert instructions_per_mma_limit("fwd_hd64_listed_bfloat16", "80") == 3.9
    assert instructions_per_mma_limit("bwd_hd64_listed_float16", "80") == 3.0
    assert instructions_per_mma_limit("fwd_hd64_listeddropout_float16", "80") is None
    assert instructions_per_mma_limit("fwd_hd192v128_plain_float16", "80") == 2.45
    assert instructions_per_mma_limit("fwd_hd192v64_plain_float16", "80") is None


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (REPORT, None),
        (with_steady(local_accesses=2), "2 local-memory accesses in the main loop"),
        (with_steady(instructions_per_mma=4.01), "4.01 instructions per MMA, the limit is 4.0"),
        (dataclasses.replace(with_steady(instructions_per_mma=9.0), arch="90"), None),
        (dataclasses.replace(REPORT, main_loops=()), "no loop with tensor-core instructions"),
        (dataclasses.replace(REPORT, shared_bytes=163 * 1024), None),
        (
            dataclasses.replace(REPORT, arch="120", shared_bytes=100 * 1024),
            "102400 bytes of shared memory, of 99 KiB",
        ),
        (dataclasses.replace(REPORT, arch="999", shared_bytes=1000 * 1024), None),
        (ROWS, None),
        (
            dataclasses.replace(ROWS, resources=Resources(40, 8, 4, 4)),
            "rows_entry<RowStats<half_t>, 64> for sm_80: 8 bytes of local memory",
        ),
    ],
)
def test_violations(report: KernelReport, message: str | None) -> None:
    found = violations(report)
    if message is None:
        assert found == []
    else:
        (violation,) = found
        assert message in violation
        assert report.instance in violation


def test_units_of_one_kernel_are_a_group(tmp_path: Path) -> None:
    groups = generate_instances(tmp_path, "").groups
    for group in groups:
        variants = [variant_of_unit(unit.stem) for unit in group]
        assert len(set(variants)) == len(group)
        others = {
            unit.stem.replace(f"_{variant}", "")
            for unit, variant in zip(group, variants, strict=True)
        }
        assert len(others) == 1
    assert max(map(len, groups)) == 5
    plain = generate_instances(tmp_path, "_plain").groups
    assert len(plain) == sum("plain" in unit.stem for group in groups for unit in group)


@pytest.mark.parametrize(
    ("steady", "resources", "message"),
    [
        ({}, {}, None),
        ({"instructions": 395}, {}, "395 instructions a step, the limit is 394"),
        ({"late_exponentials": 3}, {}, "3 exponentials come after the products"),
        ({}, {"stack_bytes": 8}, "8 bytes of local memory"),
        ({}, {"serialises": True}, "its products wait for each other"),
    ],
)
def test_violations_of_asynchronous_products(
    steady: dict[str, int], resources: dict[str, int], message: str | None
) -> None:
    report = dataclasses.replace(
        WGMMA,
        main_loops=(dataclasses.replace(STEADY, **steady),),
        resources=dataclasses.replace(WGMMA.resources, **resources),
    )
    found = violations(report)
    assert len(found) == (message is not None)
    assert all(message is not None and message in violation for violation in found)


def test_kernels_for_one_architecture(tmp_path: Path) -> None:
    instances = generate_instances(tmp_path, "")
    sources = {source.stem: source for source in instances.sources}
    assert set(WGMMA_STEP_LIMITS) == {stem for stem in sources if re.match("sm90_[fb]wd_hd", stem)}
    for stem in WGMMA_STEP_LIMITS:
        assert archs_of(instances, sources[stem], ["80", "90", "120"]) == ["90a"]
        assert archs_of(instances, sources[stem], ["80"]) == []
    assert archs_of(instances, sources["fwd_hd64_plain"], ["80", "90"]) == ["80", "90"]


def test_small_tiles_serve_small_devices(tmp_path: Path) -> None:
    units = {source.stem for source in generate_instances(tmp_path, "").sources}
    assert all(serves(unit, arch) for unit in units for arch in ("80", "87", "90", "100", "999"))
    left_out = {unit for unit in units if not serves(unit, "120")}
    replaced = {unit.removesuffix("_small") for unit in units if unit.endswith("_small")}
    listed = {f"{kind}_hd512_listed{more}" for kind in ("fwd", "bwd") for more in ("", "dropout")}
    assert left_out == replaced | listed | {"split_hd576v512_latents_many_large"}
    assert not serves("bwd_hd128_plain_float16", "86")
    assert serves("bwd_hd128_plain_small_float16", "86")


@pytest.mark.parametrize(
    ("direction", "limits"),
    [
        ("fwd", [PLAIN_FORWARD_LIMITS, LISTED_FORWARD_LIMITS]),
        ("bwd", [PLAIN_BACKWARD_LIMITS, LISTED_BACKWARD_LIMITS]),
    ],
    ids=["fwd", "bwd"],
)
def test_every_limit_has_a_kernel(
    tmp_path: Path, direction: str, limits: list[dict[int, float]]
) -> None:
    """The limits go by the names that csrc/instances.cmake gives."""
    sources = generate_instances(tmp_path, f"{direction}_hd").sources
    assert all(source.is_file() for source in sources)
    for kernel, element in {"fwd<half_t>": "float16", "fwd<bfloat16_t>": "bfloat16"}.items():
        instances = [instance_of(source.stem, kernel) for source in sources]
        for source, instance in zip(sources, instances, strict=True):
            assert f" {instance} =" in source.read_text()
            assert instance.endswith(f"_{element}")
        found = [instructions_per_mma_limit(instance, "80") for instance in instances]
        expected = [limit for of_variant in limits for limit in of_variant.values()]
        for of_pair in PAIR_LIMITS.values():
            expected += [limit for (kind, _), limit in of_pair.items() if kind == direction]
        assert sorted(limit for limit in found if limit is not None) == sorted(expected)


def test_latents_have_a_limit(tmp_path: Path) -> None:
    sources = generate_instances(tmp_path, "_latents_").sources
    limit = PAIR_LIMITS["576v512"]["split", "latents"]
    found = [instructions_per_mma_limit(f"{source.stem}_float16", "80") for source in sources]
    assert found == [limit] * 3


def test_codes_have_a_limit(tmp_path: Path) -> None:
    """All of their kernels, whose elements have the same one."""
    sources = generate_instances(tmp_path, "_codes_").sources
    expected = [limit for of_rows in CODES_SPLIT_LIMITS.values() for limit in of_rows.values()]
    for element in ("float16", "bfloat16"):
        found = [instructions_per_mma_limit(f"{x.stem}_{element}", "80") for x in sources]
        assert sorted(limit for limit in found if limit is not None) == sorted(expected)
        assert len(found) == len(expected)
    assert instructions_per_mma_limit("split_hd128_codes_few_float16", "80") == 8.8
    assert instructions_per_mma_limit("split_hd128_codes_few_float16", "86") is None


@pytest.mark.parametrize("text", ["sm_80", "", "-1"])
def test_an_architecture_is_a_number(text: str) -> None:
    assert architecture("80") == "80"
    with pytest.raises(argparse.ArgumentTypeError, match="compute capability such as 80"):
        architecture(text)


def test_short_name() -> None:
    assert short_name(ROWS.name) == "rows_entry<RowStats<half_t>, 64>"
    assert short_name("_Z9bwd_entryv") == "_Z9bwd_entryv"


def test_table_has_a_line_per_kernel() -> None:
    header, line, rows = table([REPORT, ROWS]).splitlines()
    assert header.split()[:3] == ["kernel", "arch", "regs"]
    cells = ["fwd_hd64_plain_float16", "80", "250", "0", "33792", "350", "100", "3.50", "0", "5.00"]
    assert line.split()[: len(cells)] == cells
    assert rows.startswith("bwd_rows_float16: rows_entry<RowStats<half_t>, 64>  ")
    assert len(rows) == len(line) == len(header)
