"""What the documentation shows runs, its links lead somewhere, and the site has all pages."""

from __future__ import annotations

import re
from pathlib import Path

import blocks
import pytest
import torch

import flash_attn2
from tools.docs import pages

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]


@pytest.fixture(autouse=True)
def unchanged() -> None:
    torch.manual_seed(0)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "path", [path for path in PAGES if "```python" in path.read_text()], ids=named
)
def test_blocks_run(path: Path) -> None:
    for block in blocks.blocks(path.read_text()):
        compile(block.code, named(path), "exec")  # those that do not run, too
    blocks.run(path)


def test_most_blocks_run() -> None:
    """A reason not to is for what needs a GPU, a download, or another library."""
    found = [block for path in PAGES for block in blocks.blocks(path.read_text())]
    written = [block for block in found if block.skipped and "needs" not in block.skipped]
    assert len(found) > 40
    assert len(written) <= 0.15 * len(found), [block.skipped for block in written]


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    where = pages.sources() | {"README.md": "readme.md"}
    pages.relink(path.read_text(), named(path), where)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = set(re.findall(r"([\w/-]+\.md)", navigation))
    assert set(pages.sources().values()) <= listed


def test_every_public_name_is_in_the_reference() -> None:
    reference = "".join(path.read_text() for path in (ROOT / "docs/reference").glob("*.md"))
    shown = set(re.findall(r"^::: flash_attn2\.(?:\w+\.)*(\w+)$", reference, re.MULTILINE))
    shown |= set(re.findall(r"^ +- (\w+)$", reference, re.MULTILINE))
    public = {name for name in flash_attn2.__all__ if not name.startswith("__")}
    for module in ("distributed", "inference", "masks", "nn"):
        public |= set(__import__(f"flash_attn2.{module}", fromlist=["_"]).__all__)
    assert public <= shown, sorted(public - shown)
