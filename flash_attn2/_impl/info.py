"""The `info` command."""

from __future__ import annotations

import argparse
import json
import sys

from flash_attn2._impl.build_info import build_info


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `info` to the subcommands of `python -m flash_attn2`."""
    parser = commands.add_parser("info", help="show what was built, and what would run here")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints `build_info()` as JSON. Status 2 where an environment variable is wrong."""
    try:
        info = build_info()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(info, indent=2))
    return 0
