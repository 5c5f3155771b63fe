"""The record of a CPU table as Markdown. Needs nothing but Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Outcome = Mapping[str, Any]
OURS, ITSELF = "flash_attn2", "itself on one thread"
_TEXT = {"what", "against", "case", "float32 error", "extra memory"}


def tables(record: Mapping[str, Any]) -> str:
    """Summary, then every row."""
    machine, versions = record["machine"], record["versions"]
    outcomes = record["results"]
    timed = [outcome for outcome in outcomes if "goals" in outcome]
    parts = [
        f"{machine['cpu']}, {machine['cpus']} CPUs, {record['build']['cpu']['isa']}; torch "
        f"{versions['torch']}, flash_attn2 {versions['flash_attn2']}"
        + ("" if record["complete"] else " (incomplete)")
    ]
    header = ("what", "against", "must", "aim", "1 thread", "2 threads")
    parts += _table(header, _summary(timed))
    header = ("what", "case", "against", "must", "aim", "1 thread", "2 threads", "time, 2 threads")
    parts += _table(header, _details(timed))
    parts += _table(
        ("float32 error", "largest", "SDPA's", "ratio", "at most"),
        [_error(outcome) for outcome in outcomes if "errors" in outcome],
    )
    parts += _table(
        ("extra memory", "results", "flash_attn2: beyond them", "SDPA: beyond them"),
        [_memory(outcome) for outcome in outcomes if "extra_bytes" in outcome],
    )
    parts += [
        f"Failed: {outcome['title']}, {outcome['case']['name']}: {outcome['failed']}"
        for outcome in outcomes
        if "failed" in outcome
    ]
    return "\n\n".join(parts)


def one_line(outcome: Outcome) -> str:
    """The figures of one row, for the progress."""
    if "failed" in outcome:
        return f"FAILED: {outcome['failed']}"
    if "errors" in outcome:
        return f"{outcome['times_as_large']:.2f} times SDPA's"
    if "extra_bytes" in outcome:
        return ", ".join(_memory(outcome)[1:])
    figures = []
    for goal in outcome["goals"]:
        values = " / ".join(_number(one["value"]) for one in goal["figures"].values()) or "n/a"
        figures.append(f"{values} x {goal['against']}")
    return "; ".join(figures)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    if not lines:
        return []
    rows = [header, ["---" if name in _TEXT else "---:" for name in header], *lines]
    return ["\n".join(f"| {' | '.join(row)} |" for row in rows)]


def _summary(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A line per kind of row and peer: the range over its cases."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome, goal in _goals(outcomes):
        against = goal["against"]
        title = "forward and backward at s ≥ 2048" if against == ITSELF else outcome["title"]
        groups.setdefault((title, against), []).append(goal)
    # Last, as it is about several of the others.
    ordered = sorted(groups.items(), key=lambda group: group[0][1] == ITSELF)
    return [
        [title, against, *_wanted(goals[0]), *(_range(goals, threads) for threads in ("1", "2"))]
        for (title, against), goals in ordered
    ]


def _range(goals: Sequence[Outcome], threads: str) -> str:
    values = [goal["figures"][threads]["value"] for goal in goals if threads in goal["figures"]]
    if not values:
        return ""
    low, high = _number(min(values)), _number(max(values))
    missed = sum(value < goals[0]["must"] for value in values)
    below = f" ({missed} of {len(values)} below)" if missed else ""
    return (low if low == high else f"{low} to {high}") + below


def _details(outcomes: Sequence[Outcome]) -> list[list[str]]:
    lines = []
    for outcome, goal in _goals(outcomes):
        against = goal["against"]
        missing = outcome["contenders"].get(against, {}).get("unavailable")
        cells = [outcome["title"], outcome["case"]["name"], against, *_wanted(goal)]
        for threads in ("1", "2"):
            figure = goal["figures"].get(threads)
            cells.append(missing or "" if figure is None else _with_spread(figure))
        seconds = outcome["contenders"][OURS]["2"]["seconds"]
        lines.append([*cells, _time(seconds)])
    return lines


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


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"
