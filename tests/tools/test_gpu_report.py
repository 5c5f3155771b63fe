"""tools/gpu_report: whole with the emulator in place of the GPU, and its parts where they fail."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import support
import torch

from flash_attn2._impl import backends
from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import Problem
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.suite import UnavailableError
from tools.gpu_report import __main__ as report
from tools.gpu_report import (
    build,
    cases,
    children,
    contenders,
    families,
    machine,
    markdown,
    pictures,
    predicted,
    problems,
    sanitizer,
    sections,
    suite_run,
    worker,
)
from tools.gpu_report.__main__ import found_wrong, main, take, use_packages
from tools.gpu_report.children import Ended
from tools.gpu_report.contenders import FLASH_ATTN, SDPA_FLASH
from tools.gpu_report.plan import Plan
from tools.gpu_report.results import file_name
from tools.gpu_report.sections import SECTIONS, Findings, Run, Section
from tools.gpu_report.suite_run import SkippedError

ROOT = Path(__file__).resolve().parents[2]


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# The whole report.


def test_whole_report_emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    support.require_backend("sm90-emulated")
    folder = tmp_path / "report"
    command = [sys.executable, "-m", "tools.gpu_report", "--device", "emulated", "--minutes", "40"]
    done = subprocess.run(
        [*command, "--output", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "gpu-emulated.json").read_text())
    assert record["complete"]
    assert {one["name"]: one["status"] for one in record["sections"]} == {
        section.name: "skipped" if section.name.startswith(("tests", "sanitizer")) else "done"
        for section in SECTIONS
    }
    for section in record["sections"]:
        assert section.get("cases") == section.get("measured"), section
    assert not [one for one in record["results"] if "failed" in one or "cut" in one]
    text = (folder / "gpu-emulated.md").read_text()
    assert "There was no GPU" in text
    assert "times as fast" not in text
    assert "over SDPA" not in text
    drawn = {path.name for path in folder.glob("*.png")}
    assert {"gpu-emulated-head_dims.png", "gpu-emulated-decode.png"} <= drawn
    assert "gpu-emulated-sm90-head_dims.png" in drawn
    assert "## Head dims by lengths: sm90" in text
    linked = re.findall(r"\((gpu-emulated.*\.png)\)", text)
    assert set(linked) == drawn
    # Shown again, it is the same; what takes long is to draw.
    monkeypatch.setattr(pictures, "write", lambda *_: [tmp_path / name for name in linked])
    assert main(["--show", str(folder / "gpu-emulated.json"), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "gpu-emulated.md").read_text() == text


def test_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["--output", str(tmp_path)]) == 2
    assert "sees no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "sweeps"]) == 2
    assert "'sweeps' is not one of build, problems, problems-sm90, sweep" in capsys.readouterr().err


def test_what_is_not_installed_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "einops" else 1)
    assert main([]) == 2
    assert "pip install --target FOLDER einops" in capsys.readouterr().err


def test_packages_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_there.py").touch()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "/before")
    use_packages(tmp_path)
    assert importlib.util.find_spec("only_there") is not None
    assert children.environment({})["PYTHONPATH"] == f"{ROOT}:/before:{tmp_path}"


# Time.


def test_each_part_gets_its_share_of_what_is_left() -> None:
    now = [0.0]
    plan = Plan(2.0, {"build": None, "a": 1, "b": 3}, lambda: now[0])
    assert plan.take("build") == pytest.approx(110)
    now[0] = 30.0
    assert plan.take("a") == pytest.approx(80 / 4)
    now[0] = 35.0
    assert plan.take("b") == pytest.approx(75)
    assert plan.spent == 35
    late = Plan(0.1, {"a": 1}, lambda: 7.0)
    assert late.take("a") == 2


@pytest.mark.parametrize(
    ("device", "arch", "applies"),
    [("cuda", "90", True), ("cuda", "80", False), ("cuda", "100", False), ("emulated", "", True)],
)
def test_parts_of_a_family_are_for_its_gpus(
    tmp_path: Path, device: str, arch: str, applies: bool
) -> None:
    run = Run(device, tmp_path, arch=arch)
    found = [section for section in SECTIONS if section.family == "sm90"]
    kinds = {section.name.partition("-")[0] for section in found}
    assert kinds == {"problems", "sweep", "masks", "tests", "sanitizer"}
    assert all(section.applies(run) == applies for section in found)
    assert all(section.applies(run) for section in SECTIONS if not section.family)
    name, value = ("CUDA_FAMILY", "sm90") if device == "cuda" else ("BACKEND", "sm90-emulated")
    asked = Run(device, tmp_path, environment={"OTHER": "1"}).with_family("sm90")
    assert asked.environment == {"OTHER": "1", f"FLASH_ATTN2_{name}": value}
    assert asked.folder.is_dir()
    assert asked.family == "sm90"


def test_other_parts_take_the_kernels_of_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was exported: predictions beside them are of those kernels."""
    monkeypatch.setenv("FLASH_ATTN2_CUDA_FAMILY", "sm90")
    runs: list[Run] = []

    def measure_parts(given: Any, wanted: Any, plan: Any, run: Run) -> int:
        runs.append(run)
        return 0

    monkeypatch.setattr(report, "measure_parts", measure_parts)
    assert main(["--no-build"]) == 0
    assert children.environment(runs[0].environment)["FLASH_ATTN2_CUDA_FAMILY"] == "sm80"


def fake_sections(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    """Two parts, of which one is for compute capability 9.0, on a GPU of another."""

    def run(run: Run, seconds: float) -> Findings:
        return Findings([], {"cases": 0, "measured": 0})

    found = [Section(name, name, 1, run, needs_build=False) for name in ("calls", "calls-sm90")]
    found[1] = dataclasses.replace(found[1], family="sm90")
    monkeypatch.setattr(sections, "SECTIONS", found)
    known = {"gpu": "a GPU", "compute_capability": capability, "cpu": "a CPU", "allowed_cpus": 2}
    monkeypatch.setattr(children, "probed", lambda *_: known)


@pytest.mark.parametrize(
    ("capability", "only", "status", "statuses"),
    [
        ("9.0", ["--only", "calls", "calls-sm90"], 0, {"calls": "done", "calls-sm90": "done"}),
        ("8.0", ["--only", "calls", "calls-sm90"], 2, {"calls": "done", "calls-sm90": "skipped"}),
        ("8.0", [], 0, {"calls": "done"}),
    ],
)
def test_a_part_that_is_asked_for_is_not_left_out_in_silence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    only: list[str],
    status: int,
    statuses: dict[str, str],
) -> None:
    fake_sections(monkeypatch, capability)
    assert main(["--output", str(tmp_path), *only]) == status
    record = json.loads((tmp_path / "gpu-a-gpu.json").read_text())
    assert record["complete"]
    assert {one["name"]: one["status"] for one in record["sections"]} == statuses
    for one in record["sections"]:
        if one["status"] == "skipped":
            assert one["reason"] == "not for compute capability 8.0"


# Whose kernels run.


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors are computed as on a device of compute capability 9.0 with its own kernels."""
    support.require_backend("sm90-emulated")
    monkeypatch.setattr(backends, "for_cpu_tensors", backends.load("sm90-emulated"))


@pytest.mark.usefixtures("hopper")
def test_a_family_has_the_cases_that_it_serves() -> None:
    sizes = cases.replace(cases.TOY, head_dims=(64, 32))
    found, left_out = worker.served("sweep", sizes, "cpu", 10.0, "sm90")
    assert {name.split("/")[0] for name in left_out} == {"fwd d32", "bwd d32", "fwd+bwd d32"}
    assert {job.name.split("/")[0] for job in found} == {"fwd d64", "bwd d64", "fwd+bwd d64"}
    timed = {job.about["mode"]: job.about["families"] for job in found}
    both = {"forward": "sm90", "backward": "sm90"}
    assert timed == {"fwd": {"forward": "sm90"}, "bwd": {"backward": "sm90"}, "fwd+bwd": both}
    found, left_out = worker.served("sweep", sizes, "cpu", 10.0, "")
    assert (len(found), left_out) == (12, [])
    assert {family for job in found for family in job.about["families"].values()} == {  # type: ignore[attr-defined]
        "sm80",
        "sm90",
    }


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("section", ["problems", "grouped", "decode", "calls", "masks"])
def test_every_kind_of_case_can_be_planned(section: str) -> None:
    found, left_out = worker.served(section, cases.TOY, "cpu", 10.0, "")
    assert not left_out
    for job in found:
        told = job.about["families"]
        assert isinstance(told, dict)
        assert set(told) >= {"backward" if job.name.startswith("bwd ") else "forward"}, job.name


@pytest.mark.usefixtures("hopper")
def test_plans_run_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = backends.Backend.run

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(backends.Backend, "run", fail)
    one = problems.Problem("full", 64, seqlens=(5, 7))
    assert set(families.plans_of(lambda: problems.call(one, "cpu"))) == {"forward", "backward"}
    assert backends.Backend.run is fail
    with pytest.raises(ZeroDivisionError), families.only_planned():
        raise ZeroDivisionError
    assert backends.Backend.run is fail
    assert run is not fail


@pytest.mark.usefixtures("hopper")
def test_problems_of_a_family() -> None:
    """compute-sanitizer sees them: also of wide heads, whose warpgroups meet at named barriers."""
    found = {one.name: one for one in problems.problems(quick=True)}

    def is_served(name: str) -> bool:
        return problems.is_served(found[name], "cpu", "sm90")

    assert not is_served("cache/d64/float16")
    assert is_served("mask/d64/float16")
    plans = [
        families.plans_of(lambda one=one: problems.call(one, "cpu"))["backward"]  # type: ignore[misc]
        for one in found.values()
        if one.head_dim > 128
    ]
    kernels = {plan.removeprefix("backward ").partition(":")[0] for plan in plans}
    assert kernels == {
        "sm90 float16 head_dim<=256 plain",
        "sm90 float16 head_dim<=192 modified",
        "sm90 float16 head_dim<=192 head_dim_v<=128 plain",
    }


def test_problems_are_never_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a tool that looks at them would find nothing wrong."""
    small = problems.Problem("full", 32, seqlens=(5, 7))
    monkeypatch.setattr(problems, "problems", lambda quick: iter([small]))
    monkeypatch.setattr(problems, "is_served", lambda one, device, family: family == "sm80")
    assert problems.main(["--device", "cpu", "--family", "sm80"]) == 0
    assert problems.main(["--device", "cpu", "--family", "sm90"]) == 1


def test_the_time_of_other_families_cases_goes_to_those_that_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def jobs(section: str, sizes: Any, device: str, seconds: float) -> list[worker.Job]:
        asked.append(seconds)
        return [worker.Job(name, dict) for name in "abcd"]

    def told(found: list[worker.Job], device: str) -> list[tuple[worker.Job, dict[str, str]]]:
        of_job = {"a": {"forward": "sm90"}, "b": {"forward": "sm90", "backward": "sm80"}}
        return [(job, of_job.get(job.name, {"forward": "sm80"})) for job in found]

    monkeypatch.setattr(worker, "jobs", jobs)
    monkeypatch.setattr(worker, "with_families", told)
    found, left_out = worker.served("sweep", cases.TOY, "cpu", 10.0, "sm90")
    assert [job.name for job in found] == ["a"]
    assert left_out == ["b", "c", "d"]
    assert asked == [10.0, 40.0]
    some = worker.Job("b", dict, serves_some=True)
    assert worker.is_served(some, {"forward": "sm90", "backward": "sm80"}, "sm90")
    assert not worker.is_served(some, {"forward": "sm80"}, "sm90")


def test_what_is_left_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Run("emulated", tmp_path).with_family("sm90")
    part = next(one for one in SECTIONS if one.name == "sweep")

    def measured(total: int) -> Callable[..., children.Measured]:
        return lambda *_: children.Measured([], total, ["fwd d32", "bwd d32"])

    monkeypatch.setattr(children, "case_by_case", measured(0))
    about, _ = take(dataclasses.replace(part, needs_build=False), asked, 1.0)
    assert (about["status"], about["reason"]) == ("skipped", "sm90 serves none of the 2 cases")
    monkeypatch.setattr(children, "case_by_case", measured(3))
    about, _ = take(dataclasses.replace(part, needs_build=False), asked, 1.0)
    text = markdown.report(record_of([], {**about, "name": "sweep-sm90", "title": "Sweep"}), {})
    assert "| 0 of 3 cases; 2 left out |" in text
    assert "Left out, as sm90 does not serve them: fwd d32, bwd d32." in text


def test_the_time_of_what_is_left_out_goes_to_the_others() -> None:
    plan = Plan(1.0, {"a": 1, "b": 1}, lambda: 0.0)
    plan.leave_out("b")
    assert plan.take("a") == pytest.approx(50)


# Parts that fail.


def section_of(run: Callable[[Run, float], Findings], needs_build: bool = False) -> Section:
    return Section("part", "Part", 1, run, needs_build)


def test_a_part_that_fails_leaves_its_traceback(tmp_path: Path) -> None:
    def fail(run: Run, seconds: float) -> Findings:
        raise ValueError("no such thing")

    about, findings = take(section_of(fail), Run("emulated", tmp_path), 1.0)
    assert about["status"] == "failed"
    assert "ValueError: no such thing" in about["traceback"]
    assert findings.outcomes == []


def test_without_a_build_nothing_else_is_run(tmp_path: Path) -> None:
    def run(run: Run, seconds: float) -> Findings:
        raise AssertionError

    about, _ = take(section_of(run, needs_build=True), Run("emulated", tmp_path), 1.0)
    assert (about["status"], about["reason"]) == ("skipped", "the build failed")


def test_a_case_that_kills_its_process_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = [
        (
            [
                {"cases": 4, "left_out": ["e"]},
                {"begins": "a"},
                {"case": {"name": "a"}},
                {"begins": "b"},
            ],
            -11,
        ),
        (
            [
                {"cases": 4, "left_out": ["e"]},
                {"begins": "c"},
                {"case": {"name": "c"}},
                {"begins": "d"},
            ],
            None,
        ),
    ]
    skipped = []

    def run(command: list[str], seconds: float, log: Path, more: Mapping[str, str]) -> Ended:
        lines, status = scripts.pop(0)
        skipped.append(command[command.index("--skip") + 1])
        assert command[command.index("--family") + 1] == "sm90"
        with Path(command[-1]).open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        return Ended(status, "Segmentation fault")

    monkeypatch.setattr(children, "run", run)
    outcomes, total, left_out = children.case_by_case("sweep", "cuda", 60.0, tmp_path, {}, "sm90")
    assert (total, left_out) == (4, ["e"])
    assert skipped == ["0", "2"]
    assert [one["case"]["name"] for one in outcomes] == ["a", "b", "c", "d"]
    assert "status -11:\nSegmentation fault" in outcomes[1]["failed"]
    assert outcomes[3]["cut"] == "the time was over"
    assert not scripts


def test_a_child_that_cannot_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "run", lambda *_: Ended(1, "ImportError: no _cuda"))
    with pytest.raises(RuntimeError, match="ImportError: no _cuda"):
        children.case_by_case("sweep", "cuda", 60.0, tmp_path, {})


def test_a_child_is_killed_with_what_it_started(tmp_path: Path) -> None:
    command = ["sh", "-c", "sleep 600 & echo $!; wait"]
    ended = children.run(command, 1.0, tmp_path / "log", {})
    assert ended.status is None
    pid = int(ended.output)
    for _ in range(100):  # until nobody or a zombie has the number
        file = Path(f"/proc/{pid}/stat")
        if not file.exists() or file.read_text().split()[2] == "Z":
            return
        subprocess.run(["sleep", "0.1"], check=True)
    pytest.fail("it still runs")


def test_a_case_that_fails_is_followed_by_the_next() -> None:
    def fail() -> dict[str, Any]:
        raise ValueError("too wide")

    jobs = [
        worker.Job("skipped", fail),
        worker.Job("wide", fail, {"mode": "fwd"}),
        worker.Job("narrow", lambda: {"case": {"name": "narrow"}}),
    ]
    lines = list(worker.lines(jobs, "cpu", float("inf"), skip=1))
    assert [line.get("begins") for line in lines] == ["wide", None, "narrow", None]
    assert lines[1]["failed"] == "ValueError: too wide"
    assert "in fail" in lines[1]["traceback"]
    assert lines[1]["mode"] == "fwd"
    assert not list(worker.lines(jobs, "cpu", 0.0, skip=0))


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    one = problems.Problem("full", 32, seqlens=(5, 7))
    assert next(problems.outcomes([one], "cpu"))["wrong"] == []
    attend = problems.flash_attn_func
    monkeypatch.setattr(problems, "flash_attn_func", lambda *qkv, **x: attend(*qkv, **x) * 1.01)
    wrong = next(problems.outcomes([one], "cpu"))["wrong"]
    assert set(wrong) == {"out", "grad_q", "grad_k", "grad_v"}


@pytest.mark.parametrize(
    "one", list(problems.problems(quick=True)), ids=lambda one: one.name.replace("/", "-")
)
def test_problems_on_the_cpu(one: problems.Problem) -> None:
    assert next(problems.outcomes([one], "cpu"))["wrong"] == []


# The build.


def recipe(tmp_path: Path, arch: str | None) -> build.Recipe:
    return build.Recipe(arch, tmp_path / "build", tmp_path / "out", tmp_path / "cutlass", jobs=3)


def test_commands_of_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find", lambda tool: Path("/usr/local/cuda/bin", tool))
    header = tmp_path / "cutlass" / "cute" / "tensor.hpp"
    header.parent.mkdir(parents=True)
    header.touch()
    configure, compile_all = build.commands(recipe(tmp_path, "90"))
    assert "-DFLASH_ATTN2_CUDA=on" in configure
    assert "-DFLASH_ATTN2_CUDA_ARCHS=90" in configure
    assert f"-DFLASH_ATTN2_CUTLASS_INCLUDE_DIR={tmp_path / 'cutlass'}" in configure
    assert f"-DPython_EXECUTABLE={sys.executable}" in configure
    assert compile_all[-4:] == ["--parallel", "3", "--target", "native_modules"]


def test_what_a_build_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find", lambda tool: None)
    with pytest.raises(build.BuildError, match="no nvcc on this machine"):
        build.commands(recipe(tmp_path, "90"))
    monkeypatch.setattr(build, "find", lambda tool: Path(tool))
    with pytest.raises(build.BuildError, match="no CUTLASS headers"):
        build.commands(recipe(tmp_path, "90"))
    with pytest.raises(build.BuildError, match="no such-program on this machine"):
        build.program("such-program")


def test_a_step_that_fails_says_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        log.open("w") as file,
        pytest.raises(build.BuildError, match="failed; its last words:\nfatal error"),
    ):
        build.take(["sh", "-c", "echo fatal error; exit 1"], file.fileno(), None, log)
    with log.open("w") as file, pytest.raises(build.BuildError, match="took more than 1 s"):
        build.take(["sleep", "60"], file.fileno(), 1.0, log)


# Contenders.

CASE = Case("one", "head_dim", "float32", 2, 2, 16, (8, 8), packed=False, causal=True)


def test_sdpa_is_held_to_a_backend() -> None:
    problem = Problem.create(CASE, "cpu")
    flash = contenders.ATTENTION[SDPA_FLASH](problem)[""]()
    ours = contenders.ATTENTION[FLASH_ATTN2](problem)[""]()
    torch.testing.assert_close(flash.rows(flash.run()), ours.rows(ours.run()))
    with pytest.raises(RuntimeError):  # there is none for the CPU
        contenders.ATTENTION["SDPA efficient"](problem)[""]().run()


def test_flash_attn_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.create(CASE, "cpu")
    own = types.ModuleType("flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", own)
    with pytest.raises(UnavailableError, match="flash_attn2's own"):
        contenders.ATTENTION[FLASH_ATTN](problem)
    own.__file__ = "/site-packages/flash_attn/__init__.py"
    functions = importlib.import_module("flash_attn2")
    for name in ("flash_attn_func", "flash_attn_varlen_func"):
        monkeypatch.setattr(own, name, getattr(functions, name), raising=False)
    packed = Problem.create(cases.replace(CASE, packed=True, seqlens=(9, 7)), "cpu")
    for one in (problem, packed):
        theirs, ours = (contenders.ATTENTION[name](one)[""]() for name in (FLASH_ATTN, FLASH_ATTN2))
        torch.testing.assert_close(theirs.rows(theirs.run()), ours.rows(ours.run()))


def test_cases_of_the_paper() -> None:
    swept = list(cases.sweep(cases.PAPER))
    assert len({case.name for case in swept}) == len(swept) == 72
    assert {case.total for case in swept} == {16384}
    assert {case.head_dim * case.num_heads for case in swept} <= set(range(1900, 2049))
    mixed = list(cases.grouped_and_packed(cases.PAPER))
    assert {case.group_size for case in mixed} == {1, 4, 16, 32}
    assert all(case.total == 16384 for case in mixed)


def test_masks_are_measured_before_anything_is_compiled() -> None:
    sizes = cases.replace(cases.TOY, flex_blocks=(64,))
    jobs = worker.mask_jobs(sizes, "cpu", 60.0, rounds=1)
    names = [case.name for case in cases.sparse(sizes)]
    assert [job.name for job in jobs] == [*names, *(f"flex {name}" for name in names)]
    assert [job.about["beside_flex"] for job in jobs] == [False] * 2 + [True] * 2


# Tests and tools of others.


def test_tests_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(
        "import time, pytest\n"
        "def test_a(): pass\n"
        "def test_b(): assert 0\n"
        "@pytest.mark.parametrize('x', range(200))\n"
        "def test_slow(x): time.sleep(0.5)\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", str(file)]
    found = suite_run.run([*words, "-k", "test_a or test_b"], 120.0, tmp_path / "log", {})
    assert found["complete"]
    assert {name: found["counts"][name] for name in ("passed", "failed")} == {
        "passed": 1,
        "failed": 1,
    }
    assert len(found["failures"]) == 1
    assert found["exit_status"] == 1
    cut = suite_run.run([*words, "-k", "test_slow"], 8.0, tmp_path / "log", {})
    assert not cut["complete"]
    assert cut["seconds"] < 30


@pytest.mark.parametrize(
    ("failures", "exit_status", "wrong"),
    [([], 0, False), (["test_b - assert 0"], 1, True), ([], 3, True), ([], None, False)],
)
def test_what_tests_found_is_shown(
    tmp_path: Path, failures: list[str], exit_status: int | None, wrong: bool
) -> None:
    known: dict[str, Any] = {"counts": {"passed": 3}, "complete": True, "failures": failures}
    known |= {"exit_status": exit_status, "status": exit_status}  # which is not the part's own
    found = Findings([], known)
    part = Section("tests", "Tests on the GPU", 1, lambda run, seconds: found, needs_build=False)
    about, findings = take(part, Run("emulated", tmp_path), 1.0)
    assert found_wrong(about, findings) == wrong
    text = markdown.report(record_of([], about), {})
    assert "| Tests on the GPU | done | 0 s |" in text
    assert "## Tests on the GPU\n\n3 passed." in text
    assert all(f"- {line}" in text for line in failures)


def test_without_pytest_tests_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SkippedError, match="pytest is not installed"):
        suite_run.command("cuda")


SANITIZER = """
case "$1" in --help) echo "  --kernel-regex arg"; exit 0;; esac
echo "full/d64/float16: ok"
case "$*" in
  *racecheck*) echo "========= RACECHECK SUMMARY: 1 hazard displayed"; exit 7;;
  *"--kernel-regex kns=fa2"*"--family sm90") echo "========= ERROR SUMMARY: 0 errors"; exit 0;;
esac
exit 1
"""


def test_sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "bin" / "compute-sanitizer", SANITIZER)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found = sanitizer.check(60.0, tmp_path, "cuda", {}, "sm90")
    assert {name: one["verdict"] for name, one in found.items()} == {
        "memcheck": "clean",
        "racecheck": "found something",
        "initcheck": "clean",
        "synccheck": "clean",
    }
    assert found["racecheck"]["summary"] == "1 hazard displayed"
    assert found["memcheck"]["problems"] == 1
    assert "output" not in found["memcheck"]


def test_without_a_sanitizer_it_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer, "find", lambda tool: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SkippedError, match="compute-sanitizer is not installed"):
        sanitizer.program()


def test_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "nvidia-smi", "echo '1755, 3201, 61, [N/A]'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "SECONDS", 0.05)
    clocks = machine.Clocks()
    with clocks.watched():
        subprocess.run(["sleep", "1"], check=True)
    assert clocks.summary()["sm_mhz"] == {"low": 1755, "median": 1755, "high": 1755}
    assert clocks.summary().keys() == {"sm_mhz", "memory_mhz", "celsius"}


# What is shown.


def attention_line(mode: str, seqlen: int, ratio: float, error: float = 0.0) -> dict[str, Any]:
    return {
        "section": "sweep",
        "mode": mode,
        "case": {
            **CASE.__dict__,
            "name": f"d128/s{seqlen}",
            "dtype": "float16",
            "head_dim": 128,
            "seqlens": [seqlen],
        },
        "errors": {FLASH_ATTN2: {"out": error}},
        "errors_of_plain_formula": {"out": 1e-3},
        "share_checked": 1.0,
        "contenders": {
            FLASH_ATTN2: {"samples": {"0": 1e-3}, "seconds": 1e-3, "flops_per_second": 2e14},
            SDPA_FLASH: {
                "samples": {"0": 1e-3},
                "seconds": 1e-3 * ratio,
                "flops_per_second": 2e14 / ratio,
                "ratio": {"value": ratio, "low": ratio, "high": ratio},
            },
            FLASH_ATTN: {"unavailable": "not installed"},
        },
    }


def record_of(results: list[dict[str, Any]], *sections: dict[str, Any]) -> dict[str, Any]:
    return {
        "complete": True,
        "time": "now",
        "machine": {"gpu": "NVIDIA H200", "cpu": "a CPU", "allowed_cpus": 16},
        "versions": {"torch": "2.11", "python": "3.12", "flash_attn2": "0.3", "commit": None},
        "build": {"cuda": {"cuda": 13000, "compiler": "g++ 13", "archs": "90"}},
        "options": {"device": "cuda"},
        "sections": [{"seconds": 1.0, "title": one["name"], **one} for one in sections],
        "results": results,
    }


def test_markdown_says_what_is_slower_and_what_is_wrong() -> None:
    lines = [
        attention_line("fwd", 4096, 1.2),
        attention_line("fwd", 1024, 1.01),
        attention_line("fwd", 512, 0.9, error=1.0),
    ]
    sections = (
        {"name": "sweep", "status": "done", "cases": 3, "measured": 3},
        {"name": "masks", "status": "failed", "traceback": "Traceback:\n  no mask"},
        {"name": "tests", "status": "skipped", "reason": "pytest is not installed"},
    )
    known = {"fwd_hd128_plain_float16": 100.0, "fwd_hd128_plain_float16/4096": 250.0}
    text = markdown.report(record_of(lines, *sections), known)
    assert "1.03 times as fast as SDPA flash (geometric mean of 3 cases; lowest 0.90" in text
    assert "**slower than SDPA flash** in d128/s512" in text
    assert "less than 1.05 times as fast as SDPA flash in d128/s1024" in text
    assert "**Wrong results:** fwd d128/s512." in text
    assert "| causal | 128 | 4096 | 200 | 167 | 1.20 | 250 | 0.80 |" in text
    assert "| causal | 128 | 1024 | 200 | 198 | 1.01 | 100 | 2.00 |" in text
    assert "flash-attn: not installed (3 cases)" in text
    assert "## masks: failed\n\n    Traceback:\n      no mask" in text
    assert "| tests | skipped | 1 s | pytest is not installed |" in text
    assert "CUDA 13.0, g++ 13, for 90" in text


def test_markdown_says_whose_result_is_wrong() -> None:
    mixed = {"forward": "sm90", "backward": "sm80"}
    case = {"case": {"name": "full/d64"}, "errors": {"out": (1.0, 0.1)}, "wrong": ["out"]}
    lines = [
        {**case, "section": "problems", "families": {"forward": "sm80", "backward": "sm80"}},
        {**case, "section": "problems-sm90", "families": mixed},
        {"case": {"name": "cut"}, "section": "problems-sm90", "failed": "its process ended"},
        {"case": {"name": "old"}, "section": "problems", "failed": "it failed"},
    ]
    text = markdown.report(record_of(lines, {"name": "problems-sm90", "status": "done"}), {})
    both = "full/d64 (sm90 forward, sm80 backward)"
    assert f"**Wrong results:** full/d64 (sm80), {both}." in text
    assert "**Failed:** cut (sm90), old." in text
    assert f"**Wrong:** {both}: out is off by 1.00e+00" in text


def test_predictions(tmp_path: Path) -> None:
    file = tmp_path / "predicted.json"
    file.write_text('{"fwd_hd16_plain_float32/causal/8": 3, "about": "x", "ok": true}')
    known = predicted.read(file, {"gpu": ""})
    assert known == {"fwd_hd16_plain_float32/causal/8": 3.0}
    assert predicted.of(known, "fwd", CASE) == 3.0
    assert predicted.of(known, "bwd", CASE) is None
    file.write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        predicted.read(file, {"gpu": ""})


def test_predictions_of_the_model(tmp_path: Path) -> None:
    def prediction(machine: str, policy: str, rate: float) -> dict[str, Any]:
        about = {"instance": "fwd_hd16_plain_float32", "machine": machine, "policy": policy}
        return about | {"full": [1.0, 2.0], "causal": [rate, rate + 1]}

    model = {
        "kind": "kernel_time",
        "lengths": [8, 16],
        "machines": {"A100": {"arch": "80"}, "H100": {"arch": "90"}},
        "predictions": [
            prediction("A100", "in turn", 3.0),
            prediction("A100", "oldest", 5.0),
            prediction("H100", "in turn", 50.0),
        ],
    }
    file = tmp_path / "model.json"
    file.write_text(json.dumps(model))

    def rate(gpu: str, capability: str) -> float | None:
        machine = {"gpu": gpu, "compute_capability": capability}
        return predicted.of(predicted.read(file, machine), "fwd", CASE)

    assert rate("NVIDIA A100-SXM4-80GB", "8.0") == 4.0
    assert rate("NVIDIA H200", "9.0") == 50.0
    assert rate("NVIDIA RTX 5090", "12.0") is None
    assert predicted.is_named("NVIDIA GeForce RTX 3090", "RTX3090")
    assert not predicted.is_named("NVIDIA A100-SXM4-80GB", "A10")


def test_names_of_files() -> None:
    assert file_name("NVIDIA H200") == "gpu-nvidia-h200"
    assert file_name("") == "gpu-unknown"
