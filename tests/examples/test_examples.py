"""The examples run and check themselves."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_packed_documents(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "packed_documents.py"))["main"]()
    assert "padding to the longest document" in capsys.readouterr().out


def test_long_context(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "long_context.py"))["main"](2048)
    assert "window of 1024 and a sink" in capsys.readouterr().out
