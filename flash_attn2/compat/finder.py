"""The finder behind Python's own: modules of flash-attn's names, and their metadata."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from flash_attn2.compat.names import (
    DISTRIBUTIONS,
    OFFERED,
    TOP_LEVEL,
    VERSION,
    VERSION_3,
    instead_of,
)


class ModuleLoader(Loader):
    """Fills a module with the public names of another one."""

    def create_module(self, spec: ModuleSpec) -> None:
        """A plain one."""

    def exec_module(self, module: ModuleType) -> None:
        source = OFFERED[module.__name__]
        names = importlib.import_module(source).__all__ if source else []
        for name in names:
            setattr(module, name, getattr(importlib.import_module(source), name))
        values: dict[str, Any] = {
            "__all__": list(names),
            "__doc__": f"{module.__name__} as flash_attn2.compat offers it.",
            "__version__": VERSION if module.__name__.startswith("flash_attn.") else VERSION_3,
        }
        if module.__name__ == "flash_attn":
            values["__version__"] = VERSION
        vars(module).update(values)


class Finder(DistributionFinder):
    """Stands last in sys.meta_path, so that it is asked for what nobody else has."""

    def __init__(self) -> None:
        self.loader = ModuleLoader()
        self.hidden: frozenset[str] = frozenset()
        """Top-level modules that are really installed."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """That of what is offered. ImportError for the rest of flash-attn, since the import system
        would only say that there is no such module."""
        top = fullname.partition(".")[0]
        if top == "flash_attn_2_cuda" and "flash_attn" not in self.hidden:
            raise ImportError(instead_of(fullname), name=fullname)
        if top not in TOP_LEVEL or top in self.hidden:
            return None
        if fullname in OFFERED:
            # All are packages, so that `from module import name` asks here for names they lack.
            return ModuleSpec(fullname, self.loader, origin="flash_attn2.compat", is_package=True)
        if is_ours(sys.modules.get(top)):
            raise ImportError(instead_of(fullname), name=fullname)
        return None

    def find_distributions(
        self,
        context: DistributionFinder.Context = DistributionFinder.Context(),  # noqa: B008
    ) -> Iterator[Distribution]:
        """What importlib.metadata.version("flash_attn") and packages_distributions() find."""
        if "path" in vars(context):  # of some directory
            return
        for name, version, modules in DISTRIBUTIONS:
            if context.name is not None and _normalized(context.name) != _normalized(name):
                continue
            if not self.hidden.intersection(modules):
                yield NamedDistribution(name, version, modules)


class NamedDistribution(Distribution):
    """A distribution that consists of its metadata."""

    def __init__(self, name: str, version: str, modules: Iterable[str]) -> None:
        self._texts = {
            "METADATA": (
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
                "Summary: The names of flash-attn, offered by flash_attn2.compat\n"
            ),
            "top_level.txt": "".join(f"{module}\n" for module in modules),
        }

    def read_text(self, filename: Any) -> str | None:
        return self._texts.get(str(filename))

    def locate_file(self, path: Any) -> Path:
        return Path(path)


def is_ours(module: ModuleType | None) -> bool:
    """Whether a finder here has made the module."""
    spec = getattr(module, "__spec__", None)
    return isinstance(getattr(spec, "loader", None), ModuleLoader)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
