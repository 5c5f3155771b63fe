"""How CUDA units are compiled: what is done again and what is not, and with which compilers."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nvcc_stand_in
import pytest

from tools.nvcc import toolchain
from tools.nvcc.compiler import (
    Front,
    compile_fronts,
    compile_host,
    compile_machine_code,
    compile_program,
)
from tools.nvcc.instances import with_shared_bytes
from tools.nvcc.split import split_ptx
from tools.nvcc.steps import CompileError, listed_inputs, write_depfile
from tools.nvcc.toolchain import Toolchain, ToolchainError, accepted_versions, check_host_compiler
from tools.nvcc.units import variant_of_kernel, variant_of_unit

ROOT = Path(__file__).resolve().parents[2]


def compile_front(
    tools: Toolchain, name: str, text: str, folder: Path, arch: str, flags: list[str]
) -> Front:
    """One unit alone."""
    return compile_fronts(tools, {name: text}, folder, arch, flags)[name]


def compile_twice_around(directory: Path, change: object) -> int:
    """How many calls of nvcc a front and its machine code take after a change; 2 before."""
    tools = nvcc_stand_in.make_toolchain(directory)

    def build() -> None:
        front = compile_front(tools, "fwd", "text", directory / "units", "80", ["-O3"])
        assert front.ptx.is_file()
        assert compile_machine_code(tools, front, "90").cubin.is_file()

    build()
    before = len(nvcc_stand_in.calls(directory))
    assert before == 2
    change()  # type: ignore[operator]
    build()
    return len(nvcc_stand_in.calls(directory)) - before


def test_what_has_not_changed_is_not_compiled_again(tmp_path: Path) -> None:
    def touch() -> None:
        for path in tmp_path.rglob("*"):
            os.utime(path, (0, 0))

    assert compile_twice_around(tmp_path, touch) == 0


def test_a_header_is_what_a_front_depends_on(tmp_path: Path) -> None:
    """The PTX stays the same, and so does the machine code."""
    assert compile_twice_around(tmp_path, lambda: (tmp_path / "header.h").write_text("new")) == 1


def test_a_front_that_comes_out_otherwise_is_compiled_on(tmp_path: Path) -> None:
    def change() -> None:
        (tmp_path / "header.h").write_text("new")
        (tmp_path / "ptx").write_text("new")

    assert compile_twice_around(tmp_path, change) == 2


@pytest.mark.parametrize("name", ["fwd.ptx", "fwd.json"])
def test_what_is_missing_is_made_again(tmp_path: Path, name: str) -> None:
    unit = tmp_path / "units" / "compute_80" / "fwd"
    assert compile_twice_around(tmp_path, (unit / name).unlink) == 1


def test_flags_text_and_versions_are_what_a_front_depends_on(tmp_path: Path) -> None:
    tools = nvcc_stand_in.make_toolchain(tmp_path)

    def compiled(text: str, flags: list[str], version: str) -> bool:
        before = nvcc_stand_in.calls(tmp_path)
        changed = Toolchain(tools.nvcc, version, "g++", "g++ 12.2")
        compile_front(changed, "fwd", text, tmp_path, "80", flags)
        return nvcc_stand_in.calls(tmp_path) != before

    assert compiled("text", ["-O3"], "13.0")
    assert not compiled("text", ["-O3"], "13.0")
    assert compiled("text", ["-O1"], "13.0")
    assert compiled("other text", ["-O1"], "13.0")
    assert compiled("other text", ["-O1"], "13.1")
    assert not compiled("other text", ["-O1"], "13.1")


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    tools = nvcc_stand_in.make_toolchain(tmp_path)
    compile_front(tools, "fwd", "text", tmp_path, "80", [])
    nvcc_stand_in.make_toolchain(tmp_path, "echo 'no such kernel'; exit 2")
    (tmp_path / "header.h").write_text("new")
    for _ in range(2):
        with pytest.raises(CompileError, match="no such kernel"):
            compile_front(tools, "fwd", "text", tmp_path, "80", [])
    # Back to what compiled before: its outputs may be half overwritten.
    (tmp_path / "header.h").write_text("")
    before = len(nvcc_stand_in.calls(tmp_path))
    nvcc_stand_in.make_toolchain(tmp_path)
    compile_front(tools, "fwd", "text", tmp_path, "80", [])
    assert len(nvcc_stand_in.calls(tmp_path)) == before + 1


def test_what_changes_while_it_is_compiled_is_compiled_again(tmp_path: Path) -> None:
    script = nvcc_stand_in.COMPILES + "sleep 0.1; echo new >> {directory}/header.h\n"
    tools = nvcc_stand_in.make_toolchain(tmp_path, script)
    for count in (1, 2):
        compile_front(tools, "fwd", "text", tmp_path, "80", [])
        assert len(nvcc_stand_in.calls(tmp_path)) == count


@pytest.mark.parametrize("missing", ["gemm.o", "gemm.ptx", "gemm.json"])
def test_a_program_is_both_in_one_run(tmp_path: Path, missing: str) -> None:
    tools = nvcc_stand_in.make_toolchain(tmp_path)

    def calls_to_make() -> int:
        program = compile_program(tools, "gemm", "text", tmp_path / "units", "80", ["-O3"])
        assert program.ptx.is_file()
        assert program.host_object.is_file()
        assert not list(program.ptx.parent.glob("*.cudafe1.cpp"))
        return len(nvcc_stand_in.calls(tmp_path))

    assert calls_to_make() == 1
    assert calls_to_make() == 1
    (tmp_path / "units" / "compute_80" / "gemm" / missing).unlink()
    assert calls_to_make() == 2


def test_an_object_of_the_hosts_code(tmp_path: Path) -> None:
    tools = nvcc_stand_in.make_toolchain(tmp_path)
    for _ in range(2):
        made = compile_host(tools, "all", "text", tmp_path / "units", "80", ["-DHOST"])
        assert made == tmp_path / "units" / "compute_80" / "all" / "all.o"
        assert made.is_file()
    (call,) = nvcc_stand_in.calls(tmp_path)
    assert " -DHOST " in call
    assert " -c " in call
    assert "-lineinfo" not in call


def test_architectures_of_ptx_have_folders_of_their_own(tmp_path: Path) -> None:
    tools = nvcc_stand_in.make_toolchain(tmp_path)
    for _ in range(2):
        for arch in ("80", "90"):
            compile_front(tools, "fwd", "text", tmp_path, arch, [])
    assert len(nvcc_stand_in.calls(tmp_path)) == 2


VARIANTS = {"plain": 0, "dropout": 2, "listed": 4}
UNITS = [f"fwd_hd64_{variant}" for variant in VARIANTS]


def together_ptx(variants: dict[str, int] = VARIANTS) -> str:
    """As nvcc has it of units with two kernels each."""
    text = ".version 8.0\n.target sm_80\n"
    for variant in variants:
        text += f".global .align 4 .u32 shared_bytes_of_fwd_hd64_{variant} = 64;\n"
    for variant, number in variants.items():
        for element in "ab":
            text += f".visible .entry _Z{element}7VariantE{number}E(\n\t.param .u32 n\n)\n{{\n"
            text += f"\t// {variant}\n\tret;\n\n}}\n"
    return text + '\t.file 1 "a.h"\n'


@pytest.mark.parametrize("inside", ["ret;", "{sub.f16x2 %r1,%r2,%r3;\n}\n\tret;"])
def test_units_of_one_run_get_their_own_kernels(inside: str) -> None:
    def together(variants: dict[str, int]) -> str:
        return together_ptx(variants).replace("ret;", inside)

    parts = split_ptx(together(VARIANTS), UNITS)
    for variant, number in VARIANTS.items():
        assert parts[f"fwd_hd64_{variant}"] == together({variant: number})


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (UNITS[:2], "7VariantE4E is a kernel of none of fwd_hd64_plain, fwd_hd64_dropout"),
        ([*UNITS, "fwd_hd64_modified"], "no kernel of fwd_hd64_modified"),
        ([*UNITS, "fwd_hd64_plain_small"], "of one variant cannot be told apart"),
    ],
)
def test_kernels_that_no_unit_owns(units: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_ptx(together_ptx(), units)


def test_variants_are_numbered_as_in_the_sources() -> None:
    text = (ROOT / "csrc" / "sm80" / "tiles.h").read_text()
    enumerators = re.search(r"enum class Variant : int32_t \{(.*?)\};", text, re.DOTALL)
    assert enumerators is not None
    for number, name in enumerate(re.findall(r"^  k(\w+),", enumerators[1], re.MULTILINE)):
        unit = f"fwd_hd64_{name.lower()}_small"
        assert variant_of_unit(unit) == variant_of_kernel(f"_Z17VariantE{number}EE") is not None
    assert variant_of_unit("combine") is None
    assert variant_of_kernel("_Z7combine") is None


def test_what_is_not_up_to_date_is_compiled_together(tmp_path: Path) -> None:
    tools = nvcc_stand_in.make_toolchain(tmp_path)
    (tmp_path / "ptx").write_text(together_ptx())
    texts = dict.fromkeys(UNITS, "text")

    def compiled() -> list[str]:
        before = len(nvcc_stand_in.calls(tmp_path))
        fronts = compile_fronts(tools, texts, tmp_path / "units", "80", ["-O3"])
        for variant, number in VARIANTS.items():
            ptx = fronts[f"fwd_hd64_{variant}"].ptx
            assert ptx.read_text() == together_ptx({variant: number})
        return nvcc_stand_in.calls(tmp_path)[before:]

    assert len(compiled()) == 1
    assert compiled() == []
    # What was compiled with others is as good as what was compiled alone.
    for unit in UNITS:
        compile_front(tools, unit, "text", tmp_path / "units", "80", ["-O3"])
    assert compiled() == []
    assert not list((tmp_path / "units").rglob("together*"))
    # Of all of them, and of two.
    (tmp_path / "header.h").write_text("new")
    assert len(compiled()) == 1
    (tmp_path / "ptx").write_text(together_ptx({"plain": 0, "listed": 4}))
    texts["fwd_hd64_plain"] = texts["fwd_hd64_listed"] = "other text"
    assert len(compiled()) == 1
    # One alone.
    (tmp_path / "ptx").write_text(together_ptx({"listed": 4}))
    texts["fwd_hd64_listed"] = "another text"
    (call,) = compiled()
    assert "fwd_hd64_listed.cu" in call


def test_units_that_do_not_compile_together_are_tried_again(tmp_path: Path) -> None:
    tools = nvcc_stand_in.make_toolchain(tmp_path, "echo 'no such kernel'; exit 2")
    for _ in range(2):
        with pytest.raises(CompileError, match="no such kernel"):
            compile_fronts(tools, dict.fromkeys(UNITS, "text"), tmp_path, "80", [])
    assert len(nvcc_stand_in.calls(tmp_path)) == 2


def test_a_rule_of_make_reads_back(tmp_path: Path) -> None:
    inputs = [Path("a.cu"), Path("/usr/include/with blank.h")]
    rule = tmp_path / "new folder" / "rule.d"
    write_depfile(rule, Path("out dir/x.ptx"), inputs)
    assert listed_inputs(rule.read_text()) == inputs


def test_listed_inputs_of_a_rule_of_make() -> None:
    rule = "out dir/x.o : a.cu \\\n    /usr/include/b.h \\\n  with\\ blank.h\n"
    assert listed_inputs(rule) == [Path("a.cu"), Path("/usr/include/b.h"), Path("with blank.h")]


def test_a_unit_says_what_its_launches_take(tmp_path: Path) -> None:
    source = tmp_path / "sm80" / "bwd_hd64_plain.cu"
    source.parent.mkdir()
    source.write_text("#include <x.h>\n")
    added = "shared_bytes_of_bwd_hd64_plain = fa2::sm80::bwd_hd64_plain_float16.smem_bytes;"
    assert with_shared_bytes(source).startswith("#include <x.h>\n")
    assert added in with_shared_bytes(source)
    rows = source.with_name("bwd_rows.cu")
    rows.touch()
    assert "shared_bytes_of_bwd_rows = 0;" in with_shared_bytes(rows)


# --- compilers ------------------------------------------------------------------------------------

HOST_CONFIG = """
#if __GNUC__ > 15
#error -- unsupported GNU version!
#if (__clang_major__ >= 21) || (__clang_major__ < 3)
"""


def test_accepted_versions() -> None:
    assert accepted_versions(HOST_CONFIG) == {"g++": 15, "clang++": 20}
    assert accepted_versions("") == {}


def test_a_host_compiler_that_nvcc_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    tools = nvcc_stand_in.make_toolchain(tmp_path / "bin", "echo 'unsupported GNU'; exit 1")
    header = tmp_path / "include" / "crt" / "host_config.h"
    header.parent.mkdir(parents=True)
    header.write_text(HOST_CONFIG)
    with pytest.raises(ToolchainError) as error:
        check_host_compiler(tools)
    words = str(error.value)
    assert "cannot compile C++20 with g++, g++ 12.2" in words
    assert "it takes g++ up to 15 and clang++ up to 20" in words
    assert "CUDAHOSTCXX" in words
    assert "unsupported GNU" in words
    check_host_compiler(nvcc_stand_in.make_toolchain(tmp_path / "bin"))


def test_the_host_compiler_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDAHOSTCXX", "NVCC_CCBIN"):
        monkeypatch.delenv(name, raising=False)
    assert toolchain.host_compiler() == "g++"
    monkeypatch.setenv("NVCC_CCBIN", "g++-12")
    assert toolchain.host_compiler() == "g++-12"
    monkeypatch.setenv("CUDAHOSTCXX", "clang++")
    assert toolchain.host_compiler() == "clang++"


def test_the_machines_own_nvcc_comes_before_a_fetched_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = tmp_path / "third_party" / "cuda" / "bin", tmp_path / "own" / "bin"
    for place in places:
        place.mkdir(parents=True)
    fetched, own = (nvcc_stand_in.make_toolchain(place).nvcc for place in places)
    monkeypatch.setattr(toolchain.third_party, "THIRD_PARTY", tmp_path / "third_party")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "own"))
    assert toolchain.find_own("nvcc") == toolchain.find("nvcc") == own
    own.unlink()
    monkeypatch.setenv("PATH", "")
    elsewhere = toolchain.find_own("nvcc")  # where toolkits are installed
    assert elsewhere is None or elsewhere.is_relative_to("/usr/local/cuda")
    assert toolchain.find("nvcc") == (elsewhere or fetched)


def test_a_missing_host_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = nvcc_stand_in.make_toolchain(tmp_path, "echo V13.0.88")
    monkeypatch.setattr(toolchain, "find", lambda _: tools.nvcc)
    monkeypatch.setenv("CUDAHOSTCXX", "no-such-compiler")
    with pytest.raises(ToolchainError, match=r"no host compiler 'no-such-compiler'.*CUDAHOSTCXX"):
        toolchain.find_toolchain()


def test_nvcc_that_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_: list[str]) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(toolchain, "find", lambda _: None)
    monkeypatch.setattr(toolchain.third_party, "main", unreachable)
    with pytest.raises(ToolchainError, match="no nvcc on this machine, nor to be fetched: no"):
        toolchain.find_toolchain()


@pytest.mark.skipif(toolchain.find("nvcc") is None, reason="no nvcc on this machine")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_a_real_unit(tmp_path: Path) -> None:
    tools = toolchain.find_toolchain()
    (tmp_path / "header.h").write_text("__global__ void kernel(int* p) { *p = 1; }\n")
    flags = [f"-I{tmp_path}"]
    front = compile_front(tools, "tiny", '#include "header.h"\n', tmp_path, "80", flags)
    assert ".visible .entry _Z6kernelPi" in front.ptx.read_text()
    assert (
        b"_Z6kernelPi"
        in compile_host(tools, "host", '#include "header.h"\n', tmp_path, "80", flags).read_bytes()
    )
    code = compile_machine_code(tools, front, "90")
    assert "Compiling entry function '_Z6kernelPi' for 'sm_90'" in code.taken.output
    assert code.cubin.read_bytes().startswith(b"\x7fELF")
    (tmp_path / "header.h").write_text("__global__ void other(int* p) { *p = 1; }\n")
    front = compile_front(tools, "tiny", '#include "header.h"\n', tmp_path, "80", flags)
    assert ".visible .entry _Z5otherPi" in front.ptx.read_text()
