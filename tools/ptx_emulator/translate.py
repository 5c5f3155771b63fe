"""Translate PTX into C++ that runs in the kernel emulator (tests/emulator).

Usage: ``python -m tools.ptx_emulator.translate KERNELS.ptx -o KERNELS.cpp``

Fails with the PTX line where a file holds what the table of instructions does not have.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.ptx_emulator.errors import TranslationError
from tools.ptx_emulator.module import Module


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 where the file cannot be translated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ptx", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--opcodes", action="store_true", help="count the instructions by opcode")
    options = parser.parse_args(arguments)
    module = Module(options.ptx.read_text(), options.ptx.name)
    try:
        text = module.cpp()
    except TranslationError as error:
        print(error, file=sys.stderr)
        return 1
    options.output.write_text(text)
    if options.opcodes:
        for opcode, count in module.opcodes.most_common():
            print(count, opcode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
