"""Rows of a record in which flash_attn2 runs beside every runtime: is it whole, and what is lowest.

Such a row has `contenders`, each with `samples` and, for a peer, its `ratio`, or the reason why it
is `unavailable`; and `missing`, the peers that would have run but for a fault of the measurement:
they are not installed, failed, or their results were wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape

from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.report import Table, format_time, measured
from flash_attn2.bench.suite import Outcome


def rows_of(record: Mapping[str, Any]) -> list[Outcome]:
    """Those that were measured."""
    return [one for one in record["results"] if "missing" in one]


def faults(record: Mapping[str, Any]) -> list[str]:
    """Why nothing may be concluded from a record about all peers; empty where it is whole."""
    found = [] if record["complete"] else ["it was cut short"]
    if record["options"].get("quick"):
        found.append("its problems are tiny")
    rows = rows_of(record)
    if not rows:
        found.append("no row has peers")
    elif len(rows) < (wanted := record["options"].get("peer_rows", len(rows))):
        found.append(f"it has {len(rows)} of {wanted} rows")
    for name, releases in record["options"].get("peers", {}).items():
        wrong = [f"{one} {pin}" for one, (pin, here) in releases.items() if here != pin]
        if wrong:
            found.append(f"{name} was not there ({', '.join(wrong)})")
    for peer in dict.fromkeys(peer for row in rows for peer in row["missing"]):
        cases = [row for row in rows if peer in row["missing"]]
        reason = cases[0]["contenders"][peer]["unavailable"]
        found.append(f"{peer} is missing in {len(cases)} of {len(rows)} rows ({reason})")
    found += [
        f"{one['case']['name']} failed"
        for one in record["results"]
        if one.get("section") == "peers" and "failed" in one
    ]
    return found


def lowest(outcome: Outcome) -> tuple[str, Mapping[str, float]] | None:
    """The fastest peer of a row, and the ratio of its time over flash_attn2's."""
    ratios = {
        name: outcome["contenders"][name]["ratio"]
        for name in measured(outcome)
        if name != FLASH_ATTN2
    }
    if not ratios:
        return None
    name = min(ratios, key=lambda peer: ratios[peer]["value"])
    return name, ratios[name]


def summary(record: Mapping[str, Any]) -> Iterator[str]:
    """The lowest ratios by kind of row, as lines of text; the faults of a record that has some."""
    if found := faults(record):
        yield f"Not beside all peers: {'; '.join(found)}."
    groups: dict[str, list[tuple[float, str]]] = {}
    for outcome in rows_of(record):
        if (fastest := lowest(outcome)) is not None:
            name, ratio = fastest
            groups.setdefault(outcome["title"], []).append((ratio["value"], name))
    for title, ratios in groups.items():
        value, name = min(ratios)
        cases = f"lowest of {len(ratios)} cases" if len(ratios) > 1 else "one case"
        kind = title.removeprefix("peers, ")
        yield f"{kind}: {value:.2f} times as fast as the fastest peer ({cases}, {name})."


def table(record: Mapping[str, Any]) -> Table:
    """A line per row, a column per peer: its time over flash_attn2's."""
    rows = rows_of(record)
    names = [name for name in _names(rows) if name != FLASH_ATTN2]
    header = ("case", "time", *names, "must", "aim", "lowest")
    return Table("", header, [[_cells(row, names) for row in rows]])


def reasons(record: Mapping[str, Any]) -> list[str]:
    """Why peers have no figure, and in how many rows."""
    lines: dict[str, list[str]] = {}
    for row in rows_of(record):
        for name, one in row["contenders"].items():
            if "unavailable" in one:
                said = f"{name}: {escape(one['unavailable'])}"
                lines.setdefault(said, []).append(row["case"]["name"])
    return [f"{said} ({len(cases)} rows)" for said, cases in lines.items()]


def one_line(outcome: Outcome) -> str:
    """For the progress."""
    contenders = outcome["contenders"]
    parts = [format_time(contenders[FLASH_ATTN2]["seconds"])]
    for name in contenders:
        if "ratio" in contenders[name]:
            parts.append(f"{contenders[name]['ratio']['value']:.2f}x {name}")
    if outcome["missing"]:
        parts.append(f"MISSING: {', '.join(outcome['missing'])}")
    return ", ".join(parts)


def _names(rows: Iterable[Outcome]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["contenders"]))


def _cells(row: Outcome, names: Sequence[str]) -> list[str]:
    contenders = row["contenders"]
    cells = [row["case"]["name"], format_time(contenders[FLASH_ATTN2]["seconds"])]
    for name in names:
        ratio = contenders.get(name, {}).get("ratio")
        cells.append("" if ratio is None else f"{ratio['value']:.2f}")
    wanted = ("" if row[one] is None else f"{row[one]:.2f}" for one in ("must", "aim"))
    fastest = lowest(row)
    shown = "" if fastest is None else f"{fastest[1]['value']:.2f}"
    if fastest is not None and fastest[1]["value"] < row["must"]:
        shown += " (below)"
    return [*cells, *wanted, shown]
