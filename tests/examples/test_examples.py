"""The examples run and check themselves."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_packed_documents(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "packed_documents.py"))["main"]()
    assert "padding to the longest document" in capsys.readouterr().out


def test_long_context(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "long_context.py"))["main"](2048)
    assert "window of 1024 and a sink" in capsys.readouterr().out


def test_latent_attention(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "latent_attention.py"))["main"](3)
    assert "3 tokens, the same in both forms" in capsys.readouterr().out


NEEDING_EXTRAS = ("finetune_bert", "long_documents", "train_gpt", "train_long")


@pytest.mark.parametrize("name", NEEDING_EXTRAS)
def test_what_is_missing_is_named(name: str) -> None:
    """As without `pip install ".[examples]"`."""
    code = f"import sys; sys.modules['rich'] = None; sys.path.insert(0, '.'); import {name}"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert 'needs rich: pip install "flash_attn2[examples]"' in result.stderr
    assert '"flash_attn2[examples]"' in (EXAMPLES / f"{name}.py").read_text()
