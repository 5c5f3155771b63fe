"""A record of the report as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flash_attn2.bench.accuracy import Errors
from flash_attn2.bench.cases import Case
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.modes import MODES
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.report import format_rate, format_time, measured
from flash_attn2.bench.suite import Outcome
from tools.gpu_report import predicted
from tools.gpu_report.cases import mask
from tools.gpu_report.contenders import SDPA_FLASH
from tools.gpu_report.families import in_words
from tools.gpu_report.predicted import Predictions

_AIM, _AIM_SEQLEN = 1.05, 1024  # times as fast as PyTorch's flash backend, from this length on
_NONE = "-"
_EMULATED = """\
> **There was no GPU.** The kernel emulator took its place, at toy sizes. Times are those of the
> emulator: they show that this report works, and nothing else.
"""


def report(record: Mapping[str, Any], predictions: Predictions) -> str:
    """The whole text. Of the emulator's times no ratios are shown."""
    if is_emulated(record):
        record = {**record, "results": [_without_ratios(one) for one in record["results"]]}
    parts = [f"# GPU report: {record['machine']['gpu']}"]
    if is_emulated(record):
        parts.append(_EMULATED)
    if not record["complete"]:
        parts.append("**It was cut short.**")
    parts += [machine(record), parts_table(record)]
    if not is_emulated(record):
        parts += ["## In short", *summary(record)]
    for about in record["sections"]:
        kind, _, family = about["name"].partition("-")
        if kind in _SHOWN and about["status"] == "done":
            found = [one for one in record["results"] if one.get("section") == about["name"]]
            known = {} if family else predictions  # which are of the kernels of every GPU
            parts += [f"## {about['title']}", *_SHOWN[kind](about, found, known)]
            parts += [*others(about, family), *clocks(about)]
    for about in record["sections"]:
        if about["status"] == "failed":
            parts += [f"## {about['title']}: failed", code(about["traceback"])]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def is_emulated(record: Mapping[str, Any]) -> bool:
    return bool(record["options"]["device"] == "emulated")


def _without_ratios(outcome: Outcome) -> Outcome:
    contenders = {
        name: {key: value for key, value in one.items() if key != "ratio"}
        for name, one in outcome.get("contenders", {}).items()
    }
    return {**outcome, "contenders": contenders} if contenders else outcome


def table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """The first columns are texts, all others numbers."""
    aligned = ["---" if index < texts else "---:" for index in range(len(header))]
    lines = [header, aligned, *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def code(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def machine(record: Mapping[str, Any]) -> str:
    known, versions = record["machine"], record["versions"]
    lines = {
        "GPU": known["gpu"],
        "compute capability": known.get("compute_capability"),
        "multiprocessors": known.get("gpu_sms"),
        "GPU memory": f"{known['gpu_memory_gib']} GiB" if "gpu_memory_gib" in known else None,
        "driver": known.get("driver"),
        "highest SM clock": f"{known['max_sm_mhz']} MHz" if "max_sm_mhz" in known else None,
        "power limit": f"{known['power_limit_watts']} W" if "power_limit_watts" in known else None,
        "CUDA of torch": known.get("cuda"),
        "cuDNN": known.get("cudnn"),
        "processor": f"{known['cpu']}, {known['allowed_cpus']} threads",
        "torch": versions["torch"],
        "Python": versions["python"],
        "flash_attn2": f"{versions['flash_attn2']}, commit {versions['commit'] or 'unknown'}",
        "built by": _compiler(record),
        "time": record["time"],
    }
    return table(("", ""), [(name, str(value)) for name, value in lines.items() if value])


def _compiler(record: Mapping[str, Any]) -> str | None:
    built = record["build"].get("cuda")
    if not built:
        return None
    cuda = built["cuda"]
    return f"CUDA {cuda // 1000}.{cuda % 1000 // 10}, {built['compiler']}, for {built['archs']}"


def parts_table(record: Mapping[str, Any]) -> str:
    rows = []
    for one in record["sections"]:
        note = one.get("reason") or one.get("done") or ""
        if one.get("cases") is not None:
            note = f"{one['measured']} of {one['cases']} cases"
            note += f"; {len(one['left_out'])} left out" if one.get("left_out") else ""
        rows.append((one["title"], one["status"], f"{one['seconds']:.0f} s", note))
    return "## Parts\n\n" + table(("part", "", "time", ""), rows, texts=2)


def others(about: Mapping[str, Any], family: str) -> list[str]:
    """Which cases are not in a family's part, as its kernels are not all that runs there."""
    names = about.get("left_out", ())
    return [f"Left out, as {family} does not serve them: {', '.join(names)}."] if names else []


def clocks(about: Mapping[str, Any]) -> list[str]:
    """How fast the GPU's clocks ran meanwhile; nothing where nobody said."""
    known = about.get("clocks")
    if not known:
        return []
    words = [
        f"{name} {one['low']:.0f} to {one['high']:.0f} (median {one['median']:.0f})"
        for name, one in known.items()
    ]
    return [f"Clocks meanwhile: {', '.join(words)}."]


def summary(record: Mapping[str, Any]) -> Iterator[str]:
    """What the sweep says against each contender, what is out of tolerance, and what failed."""
    lines = []
    for section in [one["name"] for one in record["sections"]]:
        kind, _, family = section.partition("-")
        swept = [one for one in record["results"] if one.get("section") == section]
        for mode, found in _by_mode(swept if kind == "sweep" else []):
            title = f"{MODES[mode].title}{f', {family}' * bool(family)}"
            lines += [f"- {title}: {_against(found, peer)}" for peer in _compared(found)]
            lines += [f"- {title}: {text}" for text in _below(found)]
    if lines:
        yield "\n".join(lines)
    wrong = [_name_and_family(one) for one in record["results"] if is_wrong(one)]
    yield f"**Wrong results:** {', '.join(wrong)}." if wrong else "No result was out of tolerance."
    if failed := [_name_and_family(one) for one in record["results"] if "failed" in one]:
        yield f"**Failed:** {', '.join(failed)}."


def _against(outcomes: Sequence[Outcome], peer: str) -> str:
    ratios = {_name(one): ratio for one in outcomes if (ratio := _ratio(one, peer)) is not None}
    worst = min(ratios, key=lambda name: ratios[name])
    mean = statistics.geometric_mean(ratios.values())
    return (
        f"{mean:.2f} times as fast as {peer} (geometric mean of {len(ratios)} cases; lowest "
        f"{ratios[worst]:.2f}, {worst})"
    )


def _below(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Which cases are slower than PyTorch's flash backend, or not as much faster as they are to."""
    ratios = {one["case"]["name"]: (one, _ratio(one, SDPA_FLASH)) for one in outcomes}
    slower = [name for name, (_, ratio) in ratios.items() if ratio is not None and ratio < 1]
    if slower:
        yield f"**slower than {SDPA_FLASH}** in {', '.join(slower)}"
    short = [
        name
        for name, (one, ratio) in ratios.items()
        if ratio is not None and 1 <= ratio < _AIM and one["case"]["seqlens"][0] >= _AIM_SEQLEN
    ]
    if short:
        yield f"less than {_AIM} times as fast as {SDPA_FLASH} in {', '.join(short)}"


def _name(outcome: Outcome) -> str:
    mode = f"{outcome['mode']} " if "mode" in outcome and "failed" not in outcome else ""
    return f"{mode}{outcome['case']['name']}"


def _name_and_family(outcome: Outcome) -> str:
    """With whose kernels ran, where that is known or was asked for."""
    asked = outcome.get("section", "").partition("-")[2]
    family = in_words(outcome.get("families", {})) or asked
    return f"{_name(outcome)} ({family})" if family else _name(outcome)


def is_wrong(outcome: Outcome) -> bool:
    """Whether flash_attn2's results break the tolerance rule."""
    if "errors_of_plain_formula" in outcome:
        return not Errors.of(outcome).within_tolerance(FLASH_ATTN2)
    return bool(outcome.get("wrong"))


def _ratio(outcome: Outcome, peer: str) -> float | None:
    ratio = outcome["contenders"].get(peer, {}).get("ratio")
    return None if ratio is None else float(ratio["value"])


def _by_mode(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, list[Outcome]]]:
    """The outcomes that have times, by mode and in the order of their shapes."""
    for mode in MODES:
        found = [one for one in outcomes if one.get("mode") == mode and "contenders" in one]
        if found:
            yield mode, sorted(found, key=_shape)


def _shape(outcome: Outcome) -> tuple[bool, int, int]:
    case = Case.of(outcome)
    return case.causal, case.head_dim, case.seqlens[0]


def _peers(outcomes: Sequence[Outcome]) -> list[str]:
    """Contenders that ran at least once, without flash_attn2."""
    names = dict.fromkeys(name for one in outcomes for name in measured(one))
    return [name for name in names if name != FLASH_ATTN2]


def _compared(outcomes: Sequence[Outcome]) -> list[str]:
    """Those of them whose times are set against flash_attn2's."""
    return [
        name for name in _peers(outcomes) if any(_ratio(one, name) is not None for one in outcomes)
    ]


def _reasons(outcomes: Sequence[Outcome]) -> list[str]:
    """Why contenders did not run."""
    counts: dict[str, int] = {}
    for one in outcomes:
        for name, contender in one.get("contenders", {}).items():
            if "unavailable" in contender:
                text = f"{name}: {contender['unavailable']}"
                counts[text] = counts.get(text, 0) + 1
    lines = [f"- {_cell(text)} ({count} cases)" for text, count in counts.items()]
    return ["Not there:\n\n" + "\n".join(lines)] if lines else []


def _failures(outcomes: Sequence[Outcome]) -> list[str]:
    """What failed, and what was cut off."""
    cut = [_name(one) for one in outcomes if "cut" in one]
    return [
        *(f"Cut off, as the time was over: {name}." for name in cut),
        *(
            f"Failed: {_name(one)}\n\n{code(one.get('traceback') or one['failed'])}"
            for one in outcomes
            if "failed" in one
        ),
    ]


def _teraflops(outcome: Outcome, name: str) -> str:
    if name not in measured(outcome):
        return _NONE
    return f"{outcome['contenders'][name]['flops_per_second'] / 1e12:.3g}"


def _times(ratio: float | None) -> str:
    return _NONE if ratio is None else f"{ratio:.2f}"


def _sweep(
    about: Mapping[str, Any], outcomes: Sequence[Outcome], predictions: Predictions
) -> Iterator[str]:
    yield (
        "TFLOP/s as the FlashAttention papers count them: 4 · head dim for each query and visible "
        "key, half of the square if causal; 2.5 times as many backward, 3.5 times both. Medians of "
        "interleaved rounds. *over*: their time over flash_attn2's; above 1, flash_attn2 is faster."
    )
    for mode, found in _by_mode(outcomes):
        peers = _peers(found)
        says = any(predicted.of(predictions, mode, Case.of(one)) for one in found)
        header = ["mask", "head dim", "length", FLASH_ATTN2, *peers]
        compared = _compared(found)
        header += [f"over {peer}" for peer in compared]
        header += ["predicted", "measured / predicted"] * says
        rows = []
        for one in found:
            case = Case.of(one)
            row = [mask(case.causal), str(case.head_dim), str(case.seqlens[0])]
            row += [_teraflops(one, name) for name in (FLASH_ATTN2, *peers)]
            row += [_times(_ratio(one, peer)) for peer in compared]
            if says:
                row += _beside(predicted.of(predictions, mode, case), one)
            rows.append(row)
        yield f"### {MODES[mode].title}\n\n{table(header, rows)}"
    yield from _reasons(outcomes)
    yield from _failures(outcomes)


def _beside(prediction: float | None, outcome: Outcome) -> list[str]:
    if prediction is None:
        return [_NONE, _NONE]
    found = outcome["contenders"][FLASH_ATTN2]["flops_per_second"] / 1e12
    return [f"{prediction:.3g}", f"{found / prediction:.2f}"]


def _grouped(
    about: Mapping[str, Any], outcomes: Sequence[Outcome], predictions: Predictions
) -> Iterator[str]:
    for mode, found in _by_mode(outcomes):
        peers, compared = _peers(found), _compared(found)
        header = ["case", FLASH_ATTN2, *peers, *(f"over {peer}" for peer in compared)]
        rows = [
            [one["case"]["name"]]
            + [_teraflops(one, name) for name in (FLASH_ATTN2, *peers)]
            + [_times(_ratio(one, peer)) for peer in compared]
            for one in found
        ]
        yield f"### {MODES[mode].title}, TFLOP/s\n\n{table(header, rows)}"
    yield from _reasons(outcomes)
    yield from _failures(outcomes)


def _decode(
    about: Mapping[str, Any], outcomes: Sequence[Outcome], predictions: Predictions
) -> Iterator[str]:
    found = [one for one in outcomes if "contenders" in one]
    peers = _compared(found)
    header = ["case", "heads", "time", "keys and values", "of memory"]
    rows = []
    for one in found:
        case, ours = DecodeCase.of(one), one["contenders"][FLASH_ATTN2]
        rows.append(
            [
                case.name,
                f"{case.num_heads}/{case.num_heads_kv} of {case.head_dim}",
                format_time(ours["seconds"]),
                format_rate(ours["bytes_per_second"], "B/s"),
                f"{ours['share_of_memory']:.0%}",
                *(_times(_ratio(one, peer)) for peer in peers),
            ]
        )
    yield table([*header, *(f"over {peer}" for peer in peers)], rows, texts=2)
    yield (
        "One query per sequence. *of memory*: of the speed of a plain sum, in turn with the others."
    )
    yield from _reasons(found)
    yield from _failures(outcomes)


def _masks(
    about: Mapping[str, Any], outcomes: Sequence[Outcome], predictions: Predictions
) -> Iterator[str]:
    found = [one for one in outcomes if "contenders" in one]
    peers = _compared(found)
    header = ["case", "blocks", "time", "of the dense rate", *(f"over {peer}" for peer in peers)]
    rows = []
    for one in found:
        ours = one["contenders"][FLASH_ATTN2]
        rows.append(
            [
                f"{one['case']['name']}{', again' * one['beside_flex']}",
                f"{one['needed']:.1%}",
                format_time(ours["seconds"]),
                f"{ours['share_of_dense']:.0%}",
                *(_times(_ratio(one, peer)) for peer in peers),
            ]
        )
    yield table(header, rows)
    yield from _reasons(found)
    yield from _failures(outcomes)


def _calls(
    about: Mapping[str, Any], outcomes: Sequence[Outcome], predictions: Predictions
) -> Iterator[str]:
    found = [one for one in outcomes if "seconds" in one]
    names = list(dict.fromkeys(name for one in found for name in one["seconds"]))
    rows = [
        [one["case"]["name"], *(format_time(one["seconds"][name]) for name in names)]
        for one in found
    ]
    yield table(["tiny problem", *names], rows)
    yield "Host's time per call until the work is enqueued (median of rounds)."
    yield from _failures(outcomes)


def _problems(
    about: Mapping[str, Any], outcomes: Sequence[Outcome], predictions: Predictions
) -> Iterator[str]:
    wrong = [one for one in outcomes if one.get("wrong")]
    fine = sum(one.get("wrong") == [] for one in outcomes)
    yield f"{fine} of {len(outcomes)} problems keep to the tolerance rule."
    for one in wrong:
        errors = {name: one["errors"][name] for name in one["wrong"]}
        words = [
            f"{name} is off by {error:.2e}, allowed is {allowed:.2e}"
            for name, (error, allowed) in errors.items()
        ]
        yield f"**Wrong:** {_name_and_family(one)}: {'; '.join(words)}."
    yield from _failures(outcomes)


def _tests(
    about: Mapping[str, Any], outcomes: Sequence[Outcome], predictions: Predictions
) -> Iterator[str]:
    counts = ", ".join(f"{number} {what}" for what, number in about["counts"].items())
    cut = "" if about["complete"] else " The time was not enough for all of them."
    yield f"{counts or 'none was run'}.{cut}"
    if about["failures"]:
        yield "\n".join(f"- {_cell(line)}" for line in about["failures"])


def _sanitizer(
    about: Mapping[str, Any], outcomes: Sequence[Outcome], predictions: Predictions
) -> Iterator[str]:
    tools = about["tools"]
    rows = [
        (name, one["verdict"], one["summary"], str(one["problems"])) for name, one in tools.items()
    ]
    yield table(("tool", "verdict", "summary", "problems"), rows, texts=3)
    for name, one in tools.items():
        if "output" in one:
            yield f"### {name}\n\n{code(one['output'])}"


_Show = Callable[[Mapping[str, Any], Sequence[Outcome], Predictions], Iterator[str]]
_SHOWN: Mapping[str, _Show] = {
    "problems": _problems,
    "sweep": _sweep,
    "grouped": _grouped,
    "decode": _decode,
    "masks": _masks,
    "calls": _calls,
    "tests": _tests,
    "sanitizer": _sanitizer,
}
