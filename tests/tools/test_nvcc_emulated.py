"""What the build makes of CUDA units for the emulator, and what it says without nvcc."""

from __future__ import annotations

from pathlib import Path

import nvcc_stand_in
import pytest
import support

from tools.nvcc import emulated
from tools.nvcc.steps import listed_inputs
from tools.nvcc.toolchain import Toolchain, ToolchainError

PTX = """.version 8.0
.target sm_80
.address_size 64
.visible .entry nothing(.param .u32 n)
{
    ret;
}
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toolchain:
    stand_in = nvcc_stand_in.make_toolchain(tmp_path)
    (tmp_path / "ptx").write_text(PTX)
    (tmp_path / "rows.cu").touch()
    monkeypatch.setattr(emulated, "find_toolchain", lambda checked=True: stand_in)
    return stand_in


def make(directory: Path, *flags: str, program: bool = False) -> int:
    folder = ["--folder", str(directory / "units")]
    depfile = [] if program else ["--depfile", str(directory / "rows.d")]
    command = "program" if program else "units"
    source = str(directory / "rows.cu")
    return emulated.main([command, source, *folder, *depfile, "--", *flags])


@pytest.mark.usefixtures("tools")
def test_a_unit_is_compiled_and_translated(tmp_path: Path) -> None:
    assert make(tmp_path, "-O3", "-Iinclude") == 0
    unit = tmp_path / "units" / "compute_80" / "rows"
    cpp = unit / "rows.ptx.cpp"
    assert '"nothing"' in cpp.read_text()
    assert " -O3 -Iinclude " in nvcc_stand_in.calls(tmp_path)[0]
    read = listed_inputs((tmp_path / "rows.d").read_text())
    assert read == [unit / "rows.cu", tmp_path / "header.h"]
    before = cpp.stat().st_mtime_ns
    assert make(tmp_path, "-O3", "-Iinclude") == 0
    assert len(nvcc_stand_in.calls(tmp_path)) == 1
    (unit / "rows.ptx.json").unlink()  # translated again, as after a change of the translator
    assert make(tmp_path, "-O3", "-Iinclude") == 0
    assert (unit / "rows.ptx.json").is_file()
    assert cpp.stat().st_mtime_ns == before


@pytest.mark.usefixtures("tools")
def test_a_program_is_compiled_as_it_is_with_its_host_code(tmp_path: Path) -> None:
    (tmp_path / "rows.cu").write_text("int main() {}\n")
    unit = tmp_path / "units" / "compute_80" / "rows"
    assert make(tmp_path) == 0
    assert not (unit / "rows.o").exists()
    assert "shared_bytes_of_rows" in (unit / "rows.cu").read_text()
    assert make(tmp_path, program=True) == 0
    assert (unit / "rows.o").is_file()
    assert (unit / "rows.ptx.cpp").is_file()
    assert (unit / "rows.cu").read_text() == "int main() {}\n"


@pytest.mark.usefixtures("tools")
def test_the_host_code_of_units_is_one_object(tmp_path: Path) -> None:
    sources = [str(tmp_path / f"{name}.cu") for name in "ab"]
    folder = ["--folder", str(tmp_path / "units")]
    assert emulated.main(["host", "all", *sources, *folder, "--", "-DHOST"]) == 0
    unit = tmp_path / "units" / "compute_80" / "all"
    assert (unit / "all.o").is_file()
    assert (unit / "all.cu").read_text() == "".join(f'#include "{s}"\n' for s in sources)


@pytest.mark.usefixtures("tools")
def test_what_cannot_be_translated_fails_with_its_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ptx").write_text(PTX.replace("ret;", "frobnicate.b32 1;"))
    for _ in range(2):
        assert make(tmp_path) == 1
        assert "rows.ptx:6" in capfd.readouterr().err


@pytest.mark.usefixtures("tools")
def test_what_does_not_compile_fails_with_the_compilers_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nvcc_stand_in.make_toolchain(tmp_path, "echo 'no such kernel'; exit 2")
    assert make(tmp_path) == 1
    assert "no such kernel" in capfd.readouterr().err


def test_why_there_is_no_nvcc_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = nvcc_stand_in.make_toolchain(tmp_path)
    found: list[Toolchain] = []

    def find_toolchain(checked: bool) -> Toolchain:
        assert not checked
        if not found:
            raise ToolchainError("no nvcc, nor to be fetched")
        return found[0]

    monkeypatch.setattr(emulated, "find_toolchain", find_toolchain)
    reason = tmp_path / "units" / "unavailable.txt"
    arguments = ["check", "--reason", str(reason)]
    assert emulated.main(arguments) == emulated.NO_NVCC
    assert reason.read_text() == "no nvcc, nor to be fetched\n"
    # Tests of emulated modules are skipped with these words, or fail where they have to run.
    monkeypatch.setattr(support, "NO_NVCC", reason)
    monkeypatch.setattr(support, "EMULATOR_REQUIRED", False)
    with pytest.raises(pytest.skip.Exception, match="no nvcc, nor to be fetched"):
        support.require_module("_no_such_module_emulated")
    monkeypatch.setattr(support, "EMULATOR_REQUIRED", True)
    with pytest.raises(pytest.fail.Exception, match="no nvcc, nor to be fetched"):
        support.require_module("_no_such_module_emulated")
    found.append(tools)
    assert emulated.main(arguments) == 0
    assert not reason.exists()
    # What works is tried once.
    assert len(nvcc_stand_in.calls(tmp_path)) == 1
    assert emulated.main(arguments) == 0
    assert len(nvcc_stand_in.calls(tmp_path)) == 1


def test_a_host_compiler_that_does_not_work_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["check", "--reason", str(tmp_path / "units" / "unavailable.txt")]
    tools = nvcc_stand_in.make_toolchain(tmp_path, "exit 1")
    monkeypatch.setattr(emulated, "find_toolchain", lambda checked: tools)
    assert emulated.main(arguments) == emulated.main(arguments) == emulated.NO_NVCC
    nvcc_stand_in.make_toolchain(tmp_path)
    assert emulated.main(arguments) == 0
