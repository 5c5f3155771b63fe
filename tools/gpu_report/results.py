"""The record of a report, and its Markdown, written anew after every part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flash_attn2 import build_info
from flash_attn2.bench.record import Record
from flash_attn2.bench.suite import Outcome
from tools.gpu_report import markdown
from tools.gpu_report.predicted import Predictions


def file_name(gpu: str) -> str:
    """`gpu-nvidia-h200` for NVIDIA H200."""
    return "gpu-" + (re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") or "unknown")


class Results:
    """Everything that was found so far. Both files can be read whenever the process ends."""

    def __init__(
        self,
        folder: Path,
        machine: Mapping[str, Any],
        options: Mapping[str, Any],
        commit: str | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        emulated = options["device"] == "emulated"
        self.json = folder / f"{file_name('emulated' if emulated else machine['gpu'])}.json"
        self.markdown = self.json.with_suffix(".md")
        # The CPU's, as this process leaves the GPU alone; the machine is what a child found.
        self._record = Record(self.json, "cpu", options)
        self._record.head["machine"] = dict(machine)
        if commit is not None:
            versions: Any = self._record.head["versions"]
            versions["commit"] = commit
        self._sections: list[dict[str, Any]] = []
        self._record.head["sections"] = self._sections
        self._outcomes: list[Outcome] = []

    def add(self, about: Mapping[str, Any], outcomes: list[Outcome]) -> None:
        """A part, and its lines."""
        self._sections.append(dict(about))
        self._outcomes += outcomes
        self._record.head["build"] = build_info()

    def write(self, complete: bool, predictions: Predictions) -> None:
        self._record.write(self._outcomes, complete)
        text = markdown.report(self.content(complete), predictions)
        unfinished = self.markdown.with_name(f".{self.markdown.name}.unfinished")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.markdown)

    def content(self, complete: bool) -> dict[str, Any]:
        """The record as it is read again."""
        return self._record.head | {"complete": complete, "results": self._outcomes}
