"""The tools that make the site: links, records, pictures; and how blocks are read."""

from __future__ import annotations

from pathlib import Path

import blocks
import pytest

from flash_attn2.io import balance
from tools.docs import docstrings, pages, performance, pictures

WHERE = {
    "docs/index.md": "index.md",
    "docs/guides/a100.md": "guides/a100.md",
    "SECURITY.md": "security.md",
}


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("docs/index.md", "[a](guides/a100.md)", "[a](guides/a100.md)"),
        ("docs/index.md", "[a](../SECURITY.md#what-is-not)", "[a](security.md#what-is-not)"),
        ("docs/guides/a100.md", "[a](../../SECURITY.md)", "[a](../security.md)"),
        ("SECURITY.md", "[a](docs/index.md)", "[a](index.md)"),
        ("docs/index.md", "[plans](../csrc/sm80/plan.h)", "plans (`csrc/sm80/plan.h`)"),
        ("docs/index.md", "[csrc/sm80/plan.h](../csrc/sm80/plan.h)", "csrc/sm80/plan.h"),
        ("docs/index.md", "[a](https://example.org/x)", "[a](https://example.org/x)"),
        ("docs/index.md", "`[a](no.md)`", "`[a](no.md)`"),
        ("docs/index.md", "![a](pictures/io.svg)", "![a](pictures/io.svg)"),
        ("docs/index.md", "[a](#here)", "[a](#here)"),
    ],
)
def test_links(source: str, text: str, expected: str) -> None:
    assert pages.relink(text, source, WHERE) == expected


def test_a_link_to_nothing() -> None:
    with pytest.raises(ValueError, match=r"docs/index.md: a link leads to no.md"):
        pages.relink("[a](no.md)", "docs/index.md", WHERE)


def test_every_record_has_a_page(tmp_path: Path) -> None:
    names = {path.stem for path in performance.RECORDS.glob("*.json")}
    shown = {*performance.BENCH, performance.CPU_TABLE, *performance.TRAINING}
    for pattern in (performance.PEERS, performance.MODELS, performance.LIMITS):
        shown |= {path.stem for path in performance.RECORDS.glob(pattern)}
    elsewhere = (performance.CHANGES, performance.PREDICTIONS, performance.MUTANTS)
    left = {name for name in names - shown if not any(p.search(name) for p in elsewhere)}
    assert shown <= names
    assert not left, "neither shown nor left out on purpose"


def test_a_page_of_a_record(tmp_path: Path) -> None:
    performance.write(tmp_path)
    index = (tmp_path / "index.md").read_text()
    for name in performance.BENCH:
        assert f"({name}.md)" in index
        text = (tmp_path / f"{name}.md").read_text()
        assert "flash_attn2" in text
        assert text.count("| --- |") >= 1
        assert "[/]" not in text, "rich's markup"
    assert "| sdpa | " in (tmp_path / "training.md").read_text()
    assert "| must | aim |" in (tmp_path / f"{performance.CPU_TABLE}.md").read_text()


def test_docstrings_are_complete() -> None:
    found = docstrings.docstrings()
    text = found["flash_attn2.functional.flash_attn_func"]
    assert "Attention of dense tensors." in text
    assert "softcap = 0.0: " in text, "what is appended when the package is imported"
    assert len(found) >= 12
    assert all(found.values())


@pytest.mark.parametrize("slots", [1, 3, 10])
def test_the_timeline_is_that_of_the_balance(slots: int) -> None:
    costs = [5, 1, 1, 4, 2, 2, 9, 1]
    bars = pictures.timeline(costs, slots)
    last = max(end for _, _, end in bars)
    assert last * slots / sum(costs) == balance.makespan_over_ideal(costs, slots)
    for a in bars:
        for b in bars:
            assert a is b or a[0] != b[0] or a[2] <= b[1] or b[2] <= a[1], "two in one place"


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_pictures(name: str) -> None:
    figure = pictures.PICTURES[name]()
    assert all(axes.has_data() or axes.patches for axes in figure.axes)


PAGE = """
<!-- setup:
x = 1
-->
```python
y = x + 1
```
<!-- not run: needs a GPU -->
```python
no_such_name
```
```sh
not python
```
1. An item
   ```python
   assert y == 2
   ```
<!-- needs: torch, no_such_module -->
```python
no_such_name
```
"""


def test_blocks_of_a_page(tmp_path: Path) -> None:
    found = list(blocks.blocks(PAGE))
    assert [block.code for block in found if not block.skipped] == [
        "x = 1\n",
        "y = x + 1\n",
        "assert y == 2\n",
    ]
    reasons = [block.skipped for block in found if block.skipped]
    assert reasons == ["needs a GPU", "needs no_such_module"]
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert blocks.run(page) == 3
    page.write_text(PAGE.replace("y == 2", "y == 3"))
    with pytest.raises(AssertionError) as failure:
        blocks.run(page)
    line = PAGE.splitlines().index("   assert y == 2") + 1
    assert (failure.traceback[-1].path, failure.traceback[-1].lineno + 1) == (page, line)


def test_a_comment_without_a_block() -> None:
    with pytest.raises(ValueError, match="no block follows"):
        list(blocks.blocks("<!-- not run: why -->\n"))
