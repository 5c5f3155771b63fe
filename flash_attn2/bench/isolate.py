"""Measures in child processes: they can have an environment of their own, and die of a case."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from flash_attn2.bench.suite import Case, Outcome, Suite

_LIMIT = 300.0  # seconds that a case may take


def outcomes(suite: Suite[Case], cases: Sequence[Case], section: str) -> Iterator[Outcome]:
    """The outcome of each case, as it comes, of one section."""
    waiting = list(cases)
    while waiting:  # anew after a case that took its process with it
        for outcome in _in_child(suite, waiting.copy(), suite.environment(section)):
            waiting.pop(0)
            yield outcome


def measure(suite: Suite[Case], case: Case) -> Outcome:
    """The outcome of `case`, or why there is none."""
    try:
        return suite.measure(case)
    except Exception as error:  # the other cases are not to be lost
        return failed(suite, case, f"{type(error).__name__}: {error}")


def failed(suite: Suite[Case], case: Case, reason: str) -> Outcome:
    return suite.describe(case) | {"failed": reason}


def _in_child(
    suite: Suite[Case], cases: Sequence[Case], environment: Mapping[str, str]
) -> Iterator[Outcome]:
    """Outcomes of `cases` up to and including the first that does not come back."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_outcomes, args=(sender, suite, cases))
    with _environment(environment):
        child.start()
    sender.close()
    try:
        for case in cases:
            if not receiver.poll(_LIMIT):
                yield failed(suite, case, f"no result after {_LIMIT:g} s")
                return
            try:
                yield receiver.recv()
            except EOFError:
                yield failed(suite, case, "its process died")
                return
    finally:
        child.kill()
        child.join()


def _send_outcomes(sender: Connection, suite: Suite[Any], cases: Sequence[Any]) -> None:
    for case in cases:
        sender.send(measure(suite, case))


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
