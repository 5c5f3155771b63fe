"""What its .pth file runs when an interpreter starts: `import flash_attn` will import flash_attn2.

Nothing of flash_attn2 is imported before it is asked for; `flash_attn2.compat` does the rest.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # every start of an interpreter pays for what is imported here
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from importlib.metadata import Distribution, DistributionFinder
    from types import ModuleType
    from typing import Any

# Both as in flash_attn2.compat.names, which cannot be imported without torch.
TOP_LEVEL = ("flash_attn", "flash_attn_2_cuda", "flash_attn_interface", "flash_attn_3")
DISTRIBUTIONS = (
    ("flash_attn", "2.8.3", ("flash_attn",)),
    ("flash_attn_3", "3.0.0", ("flash_attn_3", "flash_attn_interface")),
)


class Finder:
    """Stands last in sys.meta_path until one of the names is asked for."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """What `flash_attn2.compat` answers, which takes the place of this finder."""
        if fullname not in TOP_LEVEL or not _has("flash_attn2"):
            return None
        import importlib.util

        uninstall()  # so that the finders that are left say what is really installed
        from flash_attn2 import compat

        compat.install()
        return importlib.util.find_spec(fullname)

    def find_distributions(self, context: DistributionFinder.Context) -> Iterator[Distribution]:
        """The metadata that `flash_attn2.compat` would offer: programs that list or look for
        distributions do not import it."""
        if "path" in vars(context) or not _has("flash_attn2"):  # of some directory
            return
        for offered, version, modules in DISTRIBUTIONS:
            if context.name is not None and _normalized(context.name) != _normalized(offered):
                continue
            if not any(map(_has, modules)):
                yield _distribution(offered, version, modules)


def _has(module: str) -> bool:
    """Whether another finder has it."""
    if module in sys.modules:
        return True
    return any(x.find_spec(module, None) for x in sys.meta_path if x is not _finder)


def _distribution(name: str, version: str, modules: Iterable[str]) -> Distribution:
    from importlib.metadata import Distribution
    from pathlib import Path

    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "top_level.txt": "".join(f"{module}\n" for module in modules),
    }

    class Named(Distribution):
        def read_text(self, filename: str) -> str | None:
            return texts.get(filename)

        def locate_file(self, path: Any) -> Path:
            return Path(path)

    return Named()


def _normalized(name: str) -> str:
    import re

    return re.sub(r"[-_.]+", "-", name).lower()


_finder = Finder()


def install() -> None:
    """Once is enough."""
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)


def uninstall() -> None:
    """Undoes `install`."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
