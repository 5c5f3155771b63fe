"""`python -m tools.gpu_report`; see the package's docstring."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.environments import ROOT

if TYPE_CHECKING:
    from tools.gpu_report.plan import Plan
    from tools.gpu_report.results import Results
    from tools.gpu_report.sections import Findings, Run, Section

_NEEDED = ("torch", "einops")
_OUTPUTS = {
    "cuda": ROOT / "benchmarks" / "results" / "gpu",
    "emulated": ROOT / "build" / "gpu-report",
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_report",
        description="Builds, checks and measures on the GPU of this machine; needs no network.",
    )
    parser.add_argument("--device", choices=tuple(_OUTPUTS), default="cuda")
    parser.add_argument("--minutes", type=float, default=6.0, help="in all, with the build")
    parser.add_argument("--output", type=Path, help="folder of the JSON, the Markdown, the plots")
    parser.add_argument("--logs", type=Path, help="folder of logs (default: a temporary one)")
    parser.add_argument("--cutlass", type=Path, help="folder of CUTLASS's headers")
    parser.add_argument(
        "--packages", type=Path, help="folder of Python packages that are not installed"
    )
    parser.add_argument("--head-dims", default="", help="only these buckets, such as 64;128")
    parser.add_argument("--no-build", action="store_true", help="use the modules that are there")
    parser.add_argument("--only", nargs="+", metavar="PART", help="some of the parts")
    parser.add_argument(
        "--predicted", type=Path, help="what tools.kernel_time -o wrote, or JSON of TFLOP/s"
    )
    parser.add_argument("--commit", help="what is measured, where git cannot say it")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing: a record again")
    given = parser.parse_args(arguments)
    if given.minutes <= 0:
        parser.error("--minutes must be more than 0")
    return given


def main(arguments: Sequence[str]) -> int:
    """0 where every part did what it should; 1 where one failed or found something wrong; 2 where
    what is asked for is not there: packages, a GPU, or a part of `--only` for this GPU."""
    given = parse(arguments)
    use_packages(given.packages)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"not installed: {', '.join(missing)}; --packages names a folder that has them "
            f"(pip install --target FOLDER {' '.join(missing)})",
            file=sys.stderr,
        )
        return 2
    if given.show:
        return show(given)
    return measure(given)


def use_packages(folder: Path | None) -> None:
    """Has this process and its children find packages there, after what is installed."""
    if folder is not None:
        path = str(folder.resolve())
        sys.path.append(path)
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([*([before] if before else []), path])


def show(given: argparse.Namespace) -> int:
    """Markdown and plots of a record, beside it or in the folder that is named."""
    from flash_attn2.bench.record import read_record
    from tools.gpu_report import markdown, pictures, predicted

    record = read_record(given.show)
    folder = given.output or given.show.parent
    folder.mkdir(parents=True, exist_ok=True)
    predictions = predicted.read(given.predicted, record["machine"]) if given.predicted else {}
    text = markdown.report(record, predictions)
    path = folder / f"{given.show.stem}.md"
    path.write_text(text + plots_of(pictures.write(record, folder, given.show.stem)))
    print(path)
    return 0


def plots_of(paths: Sequence[Path]) -> str:
    return "".join(f"\n![{path.stem}]({path.name})\n" for path in paths)


def measure(given: argparse.Namespace) -> int:
    from tools.gpu_report.machine import NoGpuError
    from tools.gpu_report.plan import Plan
    from tools.gpu_report.sections import SECTIONS, Run

    names = [section.name for section in SECTIONS]
    unknown = [name for name in given.only or () if name not in names]
    if unknown:
        print(f"--only: {unknown[0]!r} is not one of {', '.join(names)}", file=sys.stderr)
        return 2
    wanted = [one for one in SECTIONS if not given.only or one.name in given.only]
    if given.no_build:
        wanted = [one for one in wanted if one.name != "build"]
    plan = Plan(given.minutes, {one.name: one.weight for one in wanted})
    with contextlib.ExitStack() as stack:
        logs = given.logs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        logs.mkdir(parents=True, exist_ok=True)
        run = Run(
            given.device,
            logs.resolve(),
            given.cutlass,
            given.head_dims,
            is_built=not any(one.name == "build" for one in wanted),
            environment=base_environment(given.device),
        )
        try:
            return measure_parts(given, wanted, plan, run)
        except NoGpuError as error:
            print(error, file=sys.stderr)
            return 2


def base_environment(device: str) -> dict[str, str]:
    """Of parts that name no family: the kernels of every GPU, whatever was exported, or is the
    default on this one."""
    if device == "emulated":
        return {
            "FLASH_ATTN2_BACKEND": "sm80-emulated",
            "FLASH_ATTN2_EMULATOR": "races=off,poison=off",
            "OMP_NUM_THREADS": "1",  # so little work is slower with more
        }
    return {"FLASH_ATTN2_CUDA_FAMILY": "sm80"}


def measure_parts(
    given: argparse.Namespace, wanted: Sequence[Section], plan: Plan, run: Run
) -> int:
    from tools.gpu_report import pictures, predicted
    from tools.gpu_report.children import probed
    from tools.gpu_report.results import Results

    machine = probed(run.torch_device, run.folder, run.environment)
    predictions = predicted.read(given.predicted, machine) if given.predicted else {}
    run.arch = str(machine.get("compute_capability", "")).replace(".", "")
    others = [one for one in wanted if not one.applies(run)]
    for section in others:
        plan.leave_out(section.name)
    wanted = [one for one in wanted if one.applies(run)]
    if not wanted:
        say(f"none of these parts is for this GPU, {machine['gpu']}")
        return 2
    options: dict[str, Any] = {
        "device": given.device,
        "minutes": given.minutes,
        "predicted": dict(predictions),
    }
    results = Results(given.output or _OUTPUTS[given.device], machine, options, given.commit)
    failed = False
    missing = others if given.only else []  # nobody asked for the others of all parts
    for section in missing:
        say(f"{section.title}: skipped, {not_for(machine)['reason']}")
        about = {"name": section.name, "title": section.title, "seconds": 0.0}
        results.add({**about, **not_for(machine)}, [])
    with interruptible(results):
        for section in wanted:
            say(f"{section.title} ...")
            about, findings = take(section, run, plan.take(section.name))
            results.add(about, findings.outcomes)
            results.write(complete=section is wanted[-1], predictions=predictions)
            failed |= about["status"] == "failed" or found_wrong(about, findings)
            say(f"{section.title}: {about['status']}, {about['seconds']:.0f} s")
    paths = pictures.write(results.content(complete=True), results.json.parent, results.json.stem)
    with results.markdown.open("a", encoding="utf-8") as text:
        text.write(plots_of(paths))
    say(f"{plan.spent:.0f} s in all. Wrote {results.markdown}, {results.json}")
    return 1 if failed else 2 if missing else 0


def not_for(machine: Mapping[str, Any]) -> dict[str, str]:
    """What the record says of a part that was named, but is about kernels of other GPUs."""
    capability = machine.get("compute_capability", "unknown")
    return {"status": "skipped", "reason": f"not for compute capability {capability}"}


@contextlib.contextmanager
def interruptible(results: Results) -> Iterator[None]:
    """Says where the results are, whatever ends the process."""
    try:
        yield
    except BaseException:
        say(f"Cut short. What there is: {results.markdown}, {results.json}")
        raise


def take(section: Section, run: Run, seconds: float) -> tuple[dict[str, Any], Findings]:
    """One part: what the record says of it, with the traceback if it failed, and its findings."""
    from tools.gpu_report.machine import Clocks
    from tools.gpu_report.sections import Findings
    from tools.gpu_report.suite_run import SkippedError

    start = time.monotonic()
    about: dict[str, Any] = {"name": section.name, "title": section.title, "budget": seconds}
    findings, clocks = Findings([], {}), Clocks()
    try:
        if section.needs_build and not run.is_built:
            raise SkippedError("the build failed")
        with clocks.watched() if run.device == "cuda" else contextlib.nullcontext():
            findings = section.run(run, seconds)
        about |= {**findings.about, "status": "done", "clocks": clocks.summary()}
    except SkippedError as error:
        about |= {"status": "skipped", "reason": str(error)}
    except Exception as error:  # the other parts are not to be lost
        about |= {"status": "failed", "reason": f"{type(error).__name__}", "traceback": _words()}
    about["seconds"] = round(time.monotonic() - start, 1)
    return about, findings


def _words() -> str:
    return traceback.format_exc()


def found_wrong(about: dict[str, Any], findings: Findings) -> bool:
    """Whether a part that went well found something that is not well."""
    from tools.gpu_report.markdown import is_wrong

    if any("failed" in one or is_wrong(one) for one in findings.outcomes):
        return True
    if "exit_status" in about and about["status"] == "done":
        return bool(about["failures"]) or about["exit_status"] not in (0, None)
    tools = about.get("tools", {})
    return any("output" in one for one in tools.values())


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
