"""What makes a machine a CUDA machine for builds with FLASH_ATTN2_CUDA=auto."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import detect_cuda

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", "torch for CUDA 12.8"),
        ("cuda = '11.8'\n", "torch for CUDA 11.8"),
        ("cuda: Optional[str] = None\n", None),
    ],
)
def test_cuda_torch(tmp_path: Path, text: str, expected: str | None) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text(text)
    assert detect_cuda.cuda_torch(tmp_path) == expected


def test_no_torch(tmp_path: Path) -> None:
    assert detect_cuda.cuda_torch(tmp_path) is None


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'GPU 0: NVIDIA A100 (UUID: GPU-1)'", "GPU 0: NVIDIA A100 (UUID: GPU-1)"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", None),
        ("exit 0", None),
    ],
)
def test_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str | None
) -> None:
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text(f"#!/bin/sh\n{script}\n")
    nvidia_smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert detect_cuda.gpu() == expected


@pytest.mark.skipif(detect_cuda.gpu() is not None, reason="there is a GPU")
@pytest.mark.parametrize("target", ["gpu-test", "gpu-bench", "gpu-report"])
def test_without_a_gpu_nothing_is_installed_or_built(tmp_path: Path, target: str) -> None:
    folders = [f"VENV={tmp_path / 'venv'}", f"BUILD={tmp_path / 'build'}"]
    command = ["make", target, f"PYTHON={sys.executable}", *folders]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "There is no GPU here" in run.stderr
    assert not list(tmp_path.iterdir())
