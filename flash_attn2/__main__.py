"""Command line: `python -m flash_attn2 <command>`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; without one, prints the help."""
    from flash_attn2._impl import info
    from flash_attn2._impl.version import __version__
    from flash_attn2.bench import cli as bench
    from flash_attn2.distributed import cli as plan
    from flash_attn2.io import cli as io

    parser = argparse.ArgumentParser(prog="python -m flash_attn2", description=__doc__)
    parser.add_argument("--version", action="version", version=f"flash_attn2 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    info.add_command(commands)
    bench.add_command(commands)
    io.add_command(commands)
    plan.add_command(commands)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    status: int = args.run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
