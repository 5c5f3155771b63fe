"""Print why this machine counts as a CUDA machine, or nothing if it does not.

Used by builds with ``FLASH_ATTN2_CUDA=auto``. Nothing is imported: under build isolation torch can
be seen only as files of the environment that the package is being installed into.

With ``--need-gpu`` or ``--need-torch``, as ``make gpu-test`` asks: fail without a GPU, or where the
torch of this environment sees none.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path


def gpu() -> str | None:
    """The first line of ``nvidia-smi -L``, or None without a usable GPU."""
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return None
    answer = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, check=False)
    first, *_ = answer.stdout.splitlines() or [""]
    return first if answer.returncode == 0 and first.startswith("GPU") else None


def cuda_torch(site_packages: Path) -> str | None:
    """``torch for CUDA x.y`` if the torch in ``site_packages`` was built for CUDA, else None."""
    version = site_packages / "torch" / "version.py"
    if not version.is_file():
        return None
    found = re.search(r"^cuda\b[^=]*= '([\d.]+)'", version.read_text(), flags=re.MULTILINE)
    return f"torch for CUDA {found[1]}" if found else None


def need_gpu() -> str:
    """The GPU; SystemExit without one."""
    found = gpu()
    if not found:
        raise SystemExit("There is no GPU here: nvidia-smi -L lists none.")
    return found


def need_torch() -> str:
    """The GPU as torch sees it; SystemExit if it sees none."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch.__version__} sees no GPU: install a torch for CUDA into {sys.prefix}."
        )
    return f"torch {torch.__version__}: {torch.cuda.get_device_name()}"


if __name__ == "__main__":
    wanted = {"--need-gpu": need_gpu, "--need-torch": need_torch}
    if sys.argv[1:]:
        print(wanted[sys.argv[1]]())
    else:
        print(gpu() or cuda_torch(Path(sysconfig.get_path("purelib"))) or "")
