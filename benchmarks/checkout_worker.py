"""A process that imports one checkout's flash_attn2 and times what compare_checkouts.py asks for.

The code that measures is this checkout's in either process: its `flash_attn2.bench` takes the place
of the other's, and needs nothing but the public functions of the package.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch

import flash_attn2


def replace_bench(folder: Path) -> None:
    """Makes the package in `folder` flash_attn2.bench."""
    name = "flash_attn2.bench"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def serve() -> None:
    """Answers questions, a line each."""
    import own_runs

    from flash_attn2.bench import timing

    rows = {row.name: row for row in own_runs.rows()}
    clock = timing.CpuClock()
    run: Any = None
    mode: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    for line in sys.stdin:
        kind, *values = json.loads(line)
        answer: Any = None
        if kind == "package":
            answer = flash_attn2.__file__
        elif kind == "row":
            run, mode = own_runs.prepare(rows[values[0]])
        else:
            threads, calls = values
            torch.set_num_threads(threads)
            with mode:
                answer = clock.measure(run, calls)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    replace_bench(Path(sys.argv[1]))
    serve()
