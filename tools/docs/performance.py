"""Pages of what was measured, from the records in benchmarks/results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from flash_attn2.bench import beside, suites
from flash_attn2.bench.record import hardware, processor_of, read_record
from flash_attn2.bench.report import Report, markdown
from tools.environments import ROOT

RECORDS = ROOT / "benchmarks" / "results"
BENCH = (
    "cpu-amd-epyc-demo",
    "cpu-amd-epyc-full",
    "cpu-amd-epyc-fwd-bwd-demo",
    "cpu-amd-epyc-decode",
    "cpu-intel-xeon-emerald-rapids-sparse-16k",
    "cpu-intel-xeon-emerald-rapids-sparse-16k-bf16",
)
CPU_TABLE = "cpu-amd-epyc-table"
TRAINING = ("train-gpt-cpu", "train-gpt-cpu-float32")
# Beside all other runtimes, on a machine each.
PEERS = "*-peers.json"
# Whole models beside SDPA, likewise.
MODELS = "*-models.json"
# Shares of a processor's own rates, likewise.
LIMITS = "*-limits.json"
# Two commits side by side, for who changes kernels: described with the benchmarks.
CHANGES = re.compile(r"before-after|redesign")
# What a model says of kernels, without a device: in docs/notes/timing.md.
PREDICTIONS = re.compile(r"kernel-time")
# Which faults of kernels the tests notice: in docs/notes/mutants.md.
MUTANTS = re.compile(r"mutants")

_MODES = {"sparse": "Block masks", "decode": "Decoding"}
_INTRODUCTION = """\
# What was measured

All numbers of these pages are records in `benchmarks/results`, with every sample, and the pages are
made of them when the site is built. [How it is measured](../benchmarks.md) says who is compared and
how. Ratios within one run mean more than times. Each page names its machine and releases; a record
may be of an earlier release than this one.

There is no record of a GPU: the CUDA kernels have not been timed on one yet. What can be known
without is [what they move](../io.md) and what their machine code shows (the notes under
*Development*).
"""


def write(directory: Path) -> None:
    """index.md, and a page for each record."""
    directory.mkdir(parents=True, exist_ok=True)
    summaries = []
    for name in BENCH:
        record = read_record(RECORDS / f"{name}.json")
        report = suites.report(record)
        title = _title(report, record)
        (directory / f"{name}.md").write_text(bench_page(title, name, report, record))
        notes = {_plain(note) for note in report.notes()}
        lines = [line for line in _summary(report, record) if line not in notes]
        summaries.append("\n\n".join([f"## [{title}]({name}.md)", *lines]))
    summaries += peer_pages(directory)
    summaries += model_pages(directory)
    summaries += limit_pages(directory)
    (directory / f"{CPU_TABLE}.md").write_text(cpu_table_page())
    (directory / "training.md").write_text(training_page())
    (directory / "index.md").write_text("\n\n".join([_INTRODUCTION, *summaries]) + "\n")


def _title(report: Report, record: Mapping[str, Any]) -> str:
    short = ", short form" if record["options"].get("demo") else ""
    return _MODES.get(record["options"]["mode"], report.title) + short


def bench_page(title: str, name: str, report: Report, record: Mapping[str, Any]) -> str:
    """Everything that a record of `python -m flash_attn2 bench` holds."""
    tables = [f"## {table.title}\n\n{markdown(table)}" for table in report.tables()]
    command = f"    python -m flash_attn2 bench --show benchmarks/results/{name}.json"
    parts = [f"# {title}", *_summary(report, record), *tables, f"Shown by\n\n{command}"]
    return "\n\n".join(parts) + "\n"


def _summary(report: Report, record: Mapping[str, Any]) -> list[str]:
    complete = "" if record["complete"] else ", a selection of the cases"
    return [f"{hardware(record)}{complete}.", *map(_plain, report.summary())]


def _plain(line: str) -> str:
    """Of rich's markup, as text for Markdown."""
    return Text.from_markup(line).plain.replace("*", r"\*").replace("_", r"\_")


def cpu_table_page() -> str:
    """The record of benchmarks/cpu_table.py, by its own command."""
    shown = _shown("cpu_table", RECORDS / f"{CPU_TABLE}.json")
    about = (
        "Ratios of medians, other over flash_attn2: above 1, flash_attn2 is faster. *must* is what "
        "the project requires of itself, *aim* what it aims at. `benchmarks/cpu_table.py` measures."
    )
    return f"# Beside all of PyTorch\n\n{about}\n\n{shown}"


def _shown(script: str, record: Path) -> str:
    """A record as a script of benchmarks/ shows it."""
    path = ROOT / "benchmarks" / f"{script}.py"
    command: list[str | Path] = [sys.executable, path, "--show", record]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def peer_pages(directory: Path) -> list[str]:
    """A page for each record beside all runtimes, and what the index says of it.

    One that is not whole gets neither: its lowest ratio could be that of the wrong peer.
    """
    summaries = []
    for path in sorted(RECORDS.glob(PEERS)):
        record = read_record(path)
        if faults := beside.faults(record):
            print(f"{path.name} is not shown: {'; '.join(faults)}", file=sys.stderr)
            continue
        title = f"Beside other runtimes: {record['machine']['cpu']}"
        summary = [_plain(line) for line in beside.summary(record)]
        (directory / f"{path.stem}.md").write_text(peer_page(title, path.stem, record, summary))
        summaries.append("\n\n".join([f"## [{title}]({path.stem}.md)", *summary]))
    return summaries


def peer_page(title: str, name: str, record: Mapping[str, Any], summary: Sequence[str]) -> str:
    releases = [
        f"{one} {pin}"
        for pins in record["options"]["peers"].values()
        for one, (pin, _) in pins.items()
    ]
    about = (
        f"{hardware(record)}. {processor_of(record)}. Beside {', '.join(releases)}: ratios of "
        "medians, the peer's time over flash_attn2's; above 1, flash_attn2 is faster."
    )
    reasons = "\n".join(f"- {_plain(reason)}" for reason in beside.reasons(record))
    command = f"    python benchmarks/cpu_table.py --show benchmarks/results/{name}.json"
    parts = [f"# {title}", about, *summary, markdown(beside.table(record)), reasons]
    return "\n\n".join([*parts, f"Shown by\n\n{command}"]) + "\n"


def model_pages(directory: Path) -> list[str]:
    """A page for each record of benchmarks/models.py, and what the index says of it."""
    about = (
        "The models of `examples/` with flash_attn2's attention and with SDPA's, in turns: "
        "medians, and between which ratios the middle half of the rounds lies. "
        "`benchmarks/models.py` measures."
    )
    says = "Tokens per second beside SDPA."
    return _shown_pages(directory, MODELS, "models", ("Whole models", about, says))


def limit_pages(directory: Path) -> list[str]:
    """The same of benchmarks/limits.py."""
    about = (
        "Beside what the processor can do at most, measured in the same rounds: products in "
        "registers, and reading memory; and level x86-64-v3 beside SDPA held to AVX2. "
        "`benchmarks/limits.py` measures."
    )
    says = "Shares of the processor's own rates."
    return _shown_pages(directory, LIMITS, "limits", ("Limits of the processor", about, says))


def _shown_pages(
    directory: Path, pattern: str, script: str, words: tuple[str, str, str]
) -> list[str]:
    """Of records that a script shows: title, what a page and what the index says."""
    summaries = []
    for path in sorted(RECORDS.glob(pattern)):
        title = f"{words[0]}: {read_record(path)['machine']['cpu']}"
        text = f"# {title}\n\n{words[1]}\n\n{_shown(script, path)}"
        (directory / f"{path.stem}.md").write_text(text)
        summaries.append(f"## [{title}]({path.stem}.md)\n\n{words[2]}")
    return summaries


def training_page() -> str:
    """The records of examples/train_gpt.py."""
    parts = [
        "# Training a GPT",
        "`python examples/train_gpt.py --compare`: the same weights and batches with three kinds "
        "of attention, in turns. Speed-up is flash_attn2's tokens per second over the others'.",
    ]
    for name in TRAINING:
        record = json.loads((RECORDS / f"{name}.json").read_text())
        options = record["options"]
        about = (
            f"{hardware(record)}. {options['steps']} steps of {options['tokens']:,} tokens, "
            f"documents of at most {options['max_document']:,}; {options['layers']} layers of "
            f"{options['heads']} query and {options['heads_kv']} key heads, width "
            f"{options['d_model']}."
        )
        parts += [f"## {options['dtype']}", about, _training_table(record["results"])]
    return "\n\n".join(parts) + "\n"


def _training_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    ours = next(iter(results.values()))
    lines: list[Sequence[str]] = [
        ("attention", "last loss", "tokens/s", "speed-up", "peak memory of a step"),
        ("---", "---:", "---:", "---:", "---:"),
    ]
    for name, result in results.items():
        lines.append(
            (
                name,
                f"{result['loss'][-1]:.4f}",
                f"{result['tokens_per_second']:,.0f}",
                f"{ours['tokens_per_second'] / result['tokens_per_second']:.2f}",
                f"{result['peak_bytes'] / 2**20:.0f} MiB",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
