"""What `make sanitize` runs."""

from __future__ import annotations

from pathlib import Path

from tools import sanitize


def test_selections_exist() -> None:
    assert set(sanitize.SHORT_FILES) <= set(sanitize.LONG_FILES)
    for name in sanitize.LONG_FILES:
        assert (sanitize.TESTS / name).is_file()


def test_suppressions_name_other_libraries_only() -> None:
    others = ("libtorch", "libc10", "libgomp", "libpython")
    for line in (sanitize.TESTS / "sanitize" / "thread.supp").read_text().splitlines():
        if not line.startswith("#"):
            _, _, pattern = line.partition(":")
            assert pattern.startswith(others)


def test_package_is_linked_anew(tmp_path: Path) -> None:
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    module = tmp_path / "_cpu.so"
    module.write_text("")
    sanitize.link_package(tmp_path)
    assert module.exists()
    assert not (tmp_path / "gone.py").is_symlink()
    assert (tmp_path / "functional.py").resolve() == sanitize.ROOT / "flash_attn2/functional.py"
