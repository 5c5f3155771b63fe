"""A test that does not end fails: a kernel may loop forever, in C++ that no exception reaches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = """
def test_endless():
    while True: pass
"""


def test_a_test_that_does_not_end_fails(tmp_path: Path) -> None:
    (tmp_path / "test_endless.py").write_text(ENDLESS)
    config = ["-c", str(ROOT / "pyproject.toml"), "-o", "faulthandler_timeout=0.5"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *config, "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "in test_endless" in done.stderr
