"""The child process that measures a section case by case (`children` starts it).

    python -m tools.gpu_report.worker SECTION --device cuda --deadline T --skip N --output FILE

Appends lines of JSON to FILE: how many cases there are, which one begins, what came of it. Starts
with case N, begins none after the time T, and ends with status 3 where a case broke the device.
With `--family`, cases that another family's kernels serve are left out, and named.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from flash_attn2.bench.attention import SelfAttention
from flash_attn2.bench.cases import Case
from flash_attn2.bench.decode.suite import Decoding
from flash_attn2.bench.modes import BACKWARD, FORWARD, MODES, TRAINING, Mode
from flash_attn2.bench.sparse.suite import SparseAttention
from flash_attn2.bench.suite import Outcome
from flash_attn2.bench.timing import Budget
from tools.gpu_report import calls, cases, probes, problems
from tools.gpu_report.calls import synchronize
from tools.gpu_report.cases import PAPER, TOY, Sizes
from tools.gpu_report.contenders import ATTENTION, DECODING
from tools.gpu_report.families import families, plans_of, runs_cuda_kernels

BROKEN = 3
_STANDARD_LIMIT = 2.0**31
_LONGEST, _SHORTEST = 0.6, 0.02  # seconds of a case
_SHARE = 0.7  # of the time for samples; the rest is for warming up and for errors


class Job(NamedTuple):
    """A case, and what measures it. `call` is what flash_attn2 does there, of which `passes` count;
    a family's own report has the case where it serves all of them, or `serves_some` and any."""

    name: str
    measure: Callable[[], Outcome]
    about: Mapping[str, object] = {}
    call: Callable[[], object] = lambda: None
    passes: Sequence[str] = ("forward", "backward")
    serves_some: bool = False


def attention_jobs(
    found: Sequence[Case], modes: Sequence[Mode], device: str, budget: Budget
) -> list[Job]:
    suites = {
        mode.name: SelfAttention([], mode, device, budget, _STANDARD_LIMIT, ATTENTION)
        for mode in modes
    }
    return [
        Job(
            f"{mode.name} {case.name}",
            lambda mode=mode, case=case: suites[mode.name].measure(case),  # type: ignore[misc]
            {"mode": mode.name},
            functools.partial(probes.attend, case, mode, device),
            probes.passes(mode),
        )
        for case in found
        for mode in modes
    ]


def jobs(section: str, sizes: Sizes, device: str, seconds: float) -> list[Job]:
    """All cases of a section, each with its part of the time."""
    rounds = 5 if device == "cuda" else 1
    if section == "problems":
        found = list(problems.problems(quick=False) if device == "cuda" else problems.toy())
        return [
            Job(
                one.name,
                lambda one=one: next(problems.outcomes([one], device)),  # type: ignore[misc]
                call=functools.partial(problems.call, one, device),
                serves_some=True,
            )
            for one in found
        ]
    if section == "calls":
        return [
            Job(
                f"calls/{mode.name}",
                lambda mode=mode: calls.measure(mode, device),  # type: ignore[misc]
                call=functools.partial(calls.call, mode, device),
            )
            for mode in (FORWARD, TRAINING)
        ]
    if section == "sweep":
        swept = list(cases.sweep(sizes))
        return attention_jobs(
            swept, list(MODES.values()), device, budget(seconds, 3 * len(swept), rounds)
        )
    if section == "grouped":
        mixed = list(cases.grouped_and_packed(sizes))
        modes = (FORWARD, BACKWARD, TRAINING)
        return attention_jobs(mixed, modes, device, budget(seconds, 3 * len(mixed), rounds))
    if section == "decode":
        steps = list(cases.decoding(sizes))
        decoding = Decoding(
            [], device, budget(seconds, len(steps), rounds), DECODING, sizes.cold_bytes
        )
        return [
            Job(
                one.name,
                lambda one=one: decoding.measure(one),  # type: ignore[misc]
                call=functools.partial(probes.decode, one, device, sizes.cold_bytes),
            )
            for one in steps
        ]
    if section == "masks":
        return mask_jobs(sizes, device, seconds, rounds)
    raise ValueError(f"no section {section!r}")


def mask_jobs(sizes: Sizes, device: str, seconds: float, rounds: int) -> list[Job]:
    """All masks, and then again beside FlexAttention, which takes long to compile."""
    masked = list(cases.sparse(sizes))
    limit = budget(seconds / 6, len(masked), rounds)
    found = []
    for blocks in ((), sizes.flex_blocks) if sizes.flex_blocks else ((),):
        suite = SparseAttention([], device, limit, _STANDARD_LIMIT, blocks)
        found += [
            Job(
                f"{'flex ' if blocks else ''}{one.name}",
                lambda suite=suite, one=one: suite.measure(one),  # type: ignore[misc]
                {"beside_flex": bool(blocks)},
                functools.partial(probes.attend_masked, one, device),
            )
            for one in masked
        ]
    return found


def with_families(found: Iterable[Job], device: str) -> list[tuple[Job, dict[str, str]]]:
    """Each case with the families that serve its passes; none where it cannot be planned, which
    will be said when it is measured."""
    if not runs_cuda_kernels(device):
        return [(job, {}) for job in found]
    told = []
    for job in found:
        try:
            of_passes = families(plans_of(job.call))
        except Exception:
            of_passes = {}
        told.append((job, {one: of_passes[one] for one in job.passes if one in of_passes}))
    return told


def is_served(job: Job, of_passes: Mapping[str, str], family: str) -> bool:
    """Whether a case is one of a family's, which may be empty: of any."""
    if not family or not of_passes:
        return True
    by_family = [one == family for one in of_passes.values()]
    return any(by_family) if job.serves_some else all(by_family)


def served(
    section: str, sizes: Sizes, device: str, seconds: float, family: str
) -> tuple[list[Job], list[str]]:
    """The cases of a section that are a family's, and the names of the others, whose time goes to
    these."""
    told = with_families(jobs(section, sizes, device, seconds), device)
    kept = [is_served(job, of_passes, family) for job, of_passes in told]
    if not all(kept) and any(kept):
        again = jobs(section, sizes, device, seconds * len(kept) / sum(kept))
        told = [(job, of_passes) for job, (_, of_passes) in zip(again, told, strict=True)]
    own = [
        job._replace(about={**job.about, "families": of_passes})
        for (job, of_passes), keep in zip(told, kept, strict=True)
        if keep
    ]
    return own, [job.name for (job, _), keep in zip(told, kept, strict=True) if not keep]


def budget(seconds: float, count: int, rounds: int) -> Budget:
    """The time for samples of each of so many cases. Of one round, as in the emulator, whose times
    mean nothing, there are no more."""
    if rounds == 1:
        return Budget(_SHORTEST, rounds, max_rounds=1)
    each = min(max(_SHARE * seconds / max(count, 1), _SHORTEST), _LONGEST)
    return Budget(each, rounds, max_rounds=50)


def measured(job: Job) -> Outcome:
    """What came of a case, with the traceback if it failed."""
    try:
        return {**job.about, **job.measure()}
    except Exception as error:  # the other cases are not to be lost
        return {
            **job.about,
            "case": {"name": job.name},
            "failed": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }


def lines(found: Sequence[Job], device: str, deadline: float, skip: int) -> Iterator[Outcome]:
    """What is written of the cases from `skip` on. RuntimeError where the device is broken."""
    for job in found[skip:]:
        if time.time() >= deadline:
            return
        yield {"begins": job.name}
        outcome = measured(job)
        yield outcome
        if "failed" in outcome:
            synchronize(device)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools.gpu_report.worker")
    parser.add_argument("section")
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--family", default="", help="only cases that its kernels serve")
    given = parser.parse_args(arguments)
    sizes = PAPER if given.device == "cuda" else TOY
    warm_up(given.device)
    seconds = given.deadline - time.time()
    found, left_out = served(given.section, sizes, given.device, seconds, given.family)
    with given.output.open("a") as file:

        def write(line: Outcome) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        write({"cases": len(found), "left_out": left_out})
        try:
            for line in lines(found, given.device, given.deadline, given.skip):
                write(line if "begins" in line else {"section": given.section, **line})
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return BROKEN
    return 0


def warm_up(device: str) -> None:
    """Has the clocks of a GPU rise."""
    if device == "cuda":
        matrix = torch.randn(4096, 4096, dtype=torch.float16, device=device)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            for _ in range(10):
                matrix @ matrix
            synchronize(device)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
