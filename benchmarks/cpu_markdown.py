"""The record of a CPU table as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cpu_rows import ONE_THREAD
from rich.markup import escape

from flash_attn2.bench import beside
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.record import hardware, processor_of
from flash_attn2.bench.report import Table, format_time, markdown
from flash_attn2.bench.suite import Outcome


def tables(record: Mapping[str, Any]) -> str:
    """Summary, then every row."""
    outcomes = record["results"]
    timed = [outcome for outcome in outcomes if "goals" in outcome]
    threads = _thread_counts(timed)
    figures = ("must", "aim", *(f"{one} thread{'s' * (one != '1')}" for one in threads))
    shown = (
        Table("", ("what", "against", *figures), [_summary(timed, threads)], texts=2),
        Table(
            "",
            ("what", "case", "against", *figures, f"time, {figures[-1]}"),
            [_details(timed, threads)],
            texts=3,
        ),
        Table(
            "",
            ("float32 error", "largest", "SDPA's", "ratio", "at most"),
            [[_error(outcome) for outcome in outcomes if "errors" in outcome]],
        ),
        Table(
            "",
            ("extra memory", "results", "flash_attn2: beyond them", "SDPA: beyond them"),
            [[_memory(outcome) for outcome in outcomes if "extra_bytes" in outcome]],
        ),
    )
    beside_all = _beside_all(record)
    failed = [
        f"Failed: {outcome['title']}, {outcome['case']['name']}: {outcome['failed']}"
        for outcome in outcomes
        if "failed" in outcome
    ]
    isa = record["build"]["cpu"]["isa"]
    about = f"{hardware(record)}, {isa}{'' if record['complete'] else ' (incomplete)'}"
    in_full = f"Processor: {processor_of(record)}."
    texts = [markdown(table) for table in shown if table.blocks[0]]
    return "\n\n".join([about, in_full, *texts, *beside_all, *failed])


def one_line(outcome: Outcome) -> str:
    """The figures of one row, for the progress."""
    if "failed" in outcome:
        return f"FAILED: {outcome['failed']}"
    if "missing" in outcome:
        return beside.one_line(outcome)
    if "errors" in outcome:
        return f"{outcome['times_as_large']:.2f} times SDPA's"
    if "extra_bytes" in outcome:
        return ", ".join(_memory(outcome)[1:])
    figures = []
    for goal in outcome["goals"]:
        values = " / ".join(_number(one["value"]) for one in goal["figures"].values()) or "n/a"
        figures.append(f"{values} x {goal['against']}")
    return "; ".join(figures)


def _beside_all(record: Mapping[str, Any]) -> list[str]:
    """What runs beside every runtime."""
    if not beside.rows_of(record):
        return []
    lines = [*beside.summary(record), *beside.reasons(record)]
    about = "\n".join(f"- {line}" for line in lines)
    return [markdown(beside.table(record)), about]


def _thread_counts(outcomes: Sequence[Outcome]) -> list[str]:
    """In ascending order; one thread and two where nothing was timed."""
    found = {threads for outcome in outcomes for threads in _own_times(outcome)}
    return sorted(found, key=int) or ["1", "2"]


def _own_times(outcome: Outcome) -> Mapping[str, Any]:
    """By number of threads."""
    times: Mapping[str, Any] = outcome.get("contenders", {}).get(FLASH_ATTN2, {})
    return times


def _summary(outcomes: Sequence[Outcome], threads: Sequence[str]) -> list[list[str]]:
    """A line per kind of row and peer: the range over its cases."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome, goal in _goals(outcomes):
        against = goal["against"]
        title = "forward and backward at s ≥ 2048" if against == ONE_THREAD else outcome["title"]
        groups.setdefault((title, against), []).append(goal)
    # Last, as it is about several of the others.
    ordered = sorted(groups.items(), key=lambda group: group[0][1] == ONE_THREAD)
    return [
        [title, against, *_wanted(goals[0]), *(_range(goals, one) for one in threads)]
        for (title, against), goals in ordered
    ]


def _range(goals: Sequence[Outcome], threads: str) -> str:
    values = [goal["figures"][threads]["value"] for goal in goals if threads in goal["figures"]]
    if not values:
        return ""
    low, high = _number(min(values)), _number(max(values))
    must = goals[0]["must"]
    missed = must is not None and sum(value < must for value in values)
    below = f" ({missed} of {len(values)} below)" if missed else ""
    return (low if low == high else f"{low} to {high}") + below


def _details(outcomes: Sequence[Outcome], threads: Sequence[str]) -> list[list[str]]:
    lines = []
    for outcome, goal in _goals(outcomes):
        against = goal["against"]
        missing = outcome["contenders"].get(against, {}).get("unavailable")
        shown = " by ".join([against, *_variants(outcome, against)])
        cells = [outcome["title"], outcome["case"]["name"], shown, *_wanted(goal)]
        for one in threads:
            figure = goal["figures"].get(one)
            cells.append(escape(missing or "") if figure is None else _with_spread(figure))
        own = _own_times(outcome).get(threads[-1])
        lines.append([*cells, format_time(own["seconds"]) if own else ""])
    return lines


def _variants(outcome: Outcome, against: str) -> list[str]:
    """Which of its ways a peer took."""
    times = outcome["contenders"].get(against, {}).values()
    found = [one["variant"] for one in times if isinstance(one, dict) and "variant" in one]
    return list(dict.fromkeys(found))


def _goals(outcomes: Sequence[Outcome]) -> Iterator[tuple[Outcome, Outcome]]:
    for outcome in outcomes:
        for goal in outcome["goals"]:
            yield outcome, goal


def _wanted(goal: Outcome) -> list[str]:
    return ["" if goal[name] is None else _number(goal[name]) for name in ("must", "aim")]


def _with_spread(figure: Outcome) -> str:
    return f"{_number(figure['value'])} ({_number(figure['low'])} to {_number(figure['high'])})"


def _error(outcome: Outcome) -> list[str]:
    ours, theirs = outcome["errors"].values()
    ratio, most = outcome["times_as_large"], outcome["most"]
    return [outcome["case"]["name"], f"{ours:.1e}", f"{theirs:.1e}", f"{ratio:.2f}", f"{most:g}"]


def _memory(outcome: Outcome) -> list[str]:
    results = outcome["result_bytes"]
    cells = [f"{outcome['mode']} {outcome['case']['name']}", f"{results / 2**20:.2f} MiB"]
    for size in outcome["extra_bytes"].values():
        cells.append("n/a" if size is None else f"{(size - results) / 2**20:.2f} MiB")
    return cells


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.3g}"
