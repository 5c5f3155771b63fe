"""Problems are run in a process of their own, so that one that crashes has a name."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO

import flash_attn2

from .problem import Problem

TESTS = Path(__file__).resolve().parent.parent
PACKAGE = Path(flash_attn2.__file__).parent.parent  # the one that is tested
SECONDS = 120.0  # that a problem may take


class Worker:
    """A child process that runs one problem after another."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def failure(self, problem: Problem) -> str:
        """What is wrong with the results of a problem, or how it crashed; "" if nothing is."""
        if self.process is None:
            self.start()
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(repr(problem), file=process.stdin, flush=True)
            answer = _line_within(process.stdout, SECONDS)
        except BrokenPipeError:
            answer = ""
        if answer is None:
            self.stop()
            return f"hangs: no result after {SECONDS:.0f} s"
        if answer == "":
            code = process.wait()
            self.process = None
            return f"crashes: {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"
        message: str = json.loads(answer)
        return message

    def start(self) -> None:
        path = f"{PACKAGE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = os.environ | {
            "FLASH_ATTN2_BACKEND": self.backend,
            "OMP_WAIT_POLICY": "passive",  # workers share the processor
            "PYTHONPATH": path,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.worker"],
            cwd=TESTS,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _line_within(stream: IO[str], seconds: float) -> str | None:
    """The next line, "" at the end of the stream, None if nothing comes."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return stream.readline() if selector.select(seconds) else None


def serve() -> None:
    """Answers each problem of stdin by a line on stdout: its failure, as JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to stderr
    from . import call, check, layout, problem

    names = vars(problem) | vars(layout) | vars(call)
    for line in sys.stdin:
        message = ""
        try:
            check.check(eval(line, dict(names)))
        except check.WrongResultError as failure:
            message = str(failure)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
        print(json.dumps(message), file=answers, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve()
