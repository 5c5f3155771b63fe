"""The pages that are written by hand, with links that lead within the site."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from tools.environments import ROOT

# Pages that do not lie in docs/, because a repository or a folder has them at its top.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "tests/emulator/README.md": "emulator.md",
}
DOCS = "docs"
_LINK = re.compile(r"(?<!!)\[(?P<label>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)


def sources(root: Path = ROOT) -> dict[str, str]:
    """Where each page of the site comes from: path in the repository -> path in the site."""
    found = {
        path.relative_to(root).as_posix(): path.relative_to(root / DOCS).as_posix()
        for path in sorted((root / DOCS).rglob("*.md"))
    }
    return found | ELSEWHERE


def gather(directory: Path, root: Path = ROOT) -> None:
    """Fills `directory` with the pages, anew."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(root / DOCS, directory)
    where = sources(root)
    for source, page in where.items():
        path = directory / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(relink((root / source).read_text(), source, where, root))


def relink(text: str, source: str, where: Mapping[str, str], root: Path = ROOT) -> str:
    """The text of a page with its links to files of the repository made links to pages.

    A link to a file that is no page keeps only its words, with the file's name; a link to nothing
    raises ValueError.
    """

    def replaced(match: re.Match[str]) -> str:
        return _link(match["label"], match["target"], source, where, root)

    parts = _CODE.split(text)  # code has every other place
    parts[::2] = [_LINK.sub(replaced, part) for part in parts[::2]]
    return "".join(parts)


def _link(label: str, target: str, source: str, where: Mapping[str, str], root: Path) -> str:
    path, _, anchor = target.partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return f"[{label}]({target})"
    meant = os.path.normpath(PurePosixPath(source).parent / path)
    page = where.get(meant)
    if page is None:
        generated = meant.startswith((f"{DOCS}/performance/", f"{DOCS}/pictures/"))
        if generated:  # mkdocs says if it is missing
            return f"[{label}]({target})"
        if not (root / meant).exists():
            raise ValueError(f"{source}: a link leads to {target}, which does not exist")
        return label if meant in label else f"{label} (`{meant}`)"
    start = PurePosixPath(where[source]).parent
    relative = os.path.relpath(page, start)
    return f"[{label}]({relative}{'#' if anchor else ''}{anchor})"
