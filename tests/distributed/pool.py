"""Processes that run the same function together, by gloo; used again by case after case."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SIZES = (2, 3, 4, 8)
_LARGEST = max(SIZES)
_TIMEOUT = timedelta(seconds=240)  # of what waits for another rank, on a busy machine, too
_MOST_SECONDS, _SECONDS_AFTER_FAILURE = 600, 30
_HERE = str(Path(__file__).parent)


class Pool:
    """Started when first needed, and again after a case that failed."""

    def __init__(self) -> None:
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._folder: Any = None

    def run(self, count: int, module: str, function: str, *args: Any) -> list[Any]:
        """`module.function(group, *args)` on so many ranks of a group; what each returns.
        AssertionError with what the ranks raised if any did."""
        if not self._processes:
            self._start()
        pipes = self._pipes[:count]
        for pipe in pipes:
            pipe.send((count, module, function, args))
        answers = _answers(pipes)
        wrong = [f"rank {i}:\n{text}" for i, (done, text) in enumerate(answers) if not done]
        if wrong:
            self.stop()
            raise AssertionError("\n".join(wrong))
        return [result for _, result in answers]

    def stop(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        if self._folder is not None:
            self._folder.cleanup()
        self._processes, self._pipes, self._folder = [], [], None

    def _start(self) -> None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "flash_attn2.distributed"])
        for rank in range(_LARGEST):
            ours, theirs = context.Pipe()
            store = f"{self._folder.name}/store"
            process = context.Process(target=_serve, args=(rank, store, theirs), daemon=True)
            process.start()
            self._processes.append(process)
            self._pipes.append(ours)


def _answers(pipes: Sequence[Connection]) -> list[tuple[bool, Any]]:
    """Of all; where one has failed, others may wait for it in vain."""
    found: dict[Connection, tuple[bool, Any]] = {}
    end = time.monotonic() + _MOST_SECONDS
    while len(found) < len(pipes):
        left = [pipe for pipe in pipes if pipe not in found]
        ready = wait(left, max(end - time.monotonic(), 0.0))
        if not ready:
            break
        for pipe in left:
            if pipe in ready:
                found[pipe] = _answer(pipe)
                if not found[pipe][0]:
                    end = min(end, time.monotonic() + _SECONDS_AFTER_FAILURE)
    return [found.get(pipe, (False, "no answer")) for pipe in pipes]


def _answer(pipe: Connection) -> tuple[bool, Any]:
    try:
        return pipe.recv()  # type: ignore[no-any-return]
    except EOFError:
        return False, "the process is gone"


def _serve(rank: int, store: str, pipe: Connection) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    sys.path.insert(0, _HERE)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=_LARGEST, timeout=_TIMEOUT
    )
    groups = {size: dist.new_group(range(size), timeout=_TIMEOUT) for size in SIZES}
    groups[1] = dist.new_group([0], timeout=_TIMEOUT)
    while True:
        count, module, function, args = pipe.recv()
        try:
            torch.manual_seed(1234)
            result = getattr(importlib.import_module(module), function)(groups[count], *args)
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        else:
            pipe.send((True, result))
