"""What a native module needs of the system's libraries: versions of symbols, and who needs them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

# A line of objdump -T for a symbol from elsewhere: its version in brackets, and its name.
_IMPORT = re.compile(r"\*UND\*\s+[0-9a-f]+\s+\((\w+?)_([\d.]+)\)\s+(?:\.hidden )?(\S+)$")

Needs = dict[str, dict[tuple[int, ...], list[str]]]


def parse(dump: str) -> Needs:
    """Names of imported symbols by library's name of versions (GLIBC) and version."""
    needs: Needs = {}
    for line in dump.splitlines():
        if (found := _IMPORT.search(line)) is not None:
            library, version, name = found.groups()
            numbers = tuple(int(number) for number in version.split("."))
            needs.setdefault(library, {}).setdefault(numbers, []).append(name)
    return needs


def needs(modules: Iterable[Path]) -> Needs:
    """What these modules need together."""
    dumps = [
        subprocess.run(["objdump", "-T", path], capture_output=True, text=True, check=True).stdout
        for path in modules
    ]
    return parse("\n".join(dumps))


def binding(needs: Mapping[str, Mapping[tuple[int, ...], list[str]]]) -> list[str]:
    """Of each library, the newest version that is needed, and the symbols that need it."""
    lines = []
    for library, versions in sorted(needs.items()):
        newest = max(versions)
        text = ".".join(map(str, newest))
        lines.append(f"{library}_{text}: {', '.join(sorted(set(versions[newest])))}")
    return lines
