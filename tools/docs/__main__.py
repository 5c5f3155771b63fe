"""Builds the site into build/docs: `make docs`.

Pages are gathered in build/docs-pages: those of docs/, files from elsewhere in the repository, and
what is generated from the package (pictures) and from the records of benchmarks. mkdocs, in an
environment of its own, makes the site of them; what it warns of is an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tools import environments
from tools.docs import docstrings, pages, performance, pictures
from tools.environments import ROOT

REQUIREMENTS = ROOT / "requirements-docs.txt"
PAGES = ROOT / "build" / "docs-pages"  # both as in mkdocs.yml
DOCSTRINGS = ROOT / "build" / "docs-docstrings.json"


def requirements(text: str) -> list[str]:
    """Lines of a requirements file, without comments."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def install() -> Path:
    """The interpreter of an environment with mkdocs."""
    return environments.install("docs-env", requirements(REQUIREMENTS.read_text()), ())


def gather(directory: Path) -> None:
    """All pages of the site, and their pictures."""
    pages.gather(directory)
    performance.write(directory / "performance")
    pictures.draw(directory / "pictures")


def main() -> None:
    begin = time.monotonic()
    gather(PAGES)
    docstrings.write(DOCSTRINGS)
    print(f"[docs] pages: {time.monotonic() - begin:.0f} s", flush=True)
    python = install()
    command: list[str | Path] = [python, "-m", "mkdocs", "--quiet", "build", "--strict", "--clean"]
    # The theme would warn of later releases of mkdocs; those here are pinned.
    variables = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    finished = subprocess.run(command, cwd=ROOT, env=variables, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)
    print(f"[docs] build/docs/index.html: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
