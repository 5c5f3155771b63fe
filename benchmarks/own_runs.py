"""flash_attn2 alone on a row of any table, or in a model: what two checkouts are compared by."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import cpu_rows
import limit_rows
import model_rows
import peer_rows
import torch
from cpu_peers import build
from cpu_rows import Row, timed_rows
from limit_rows import DecodeRow
from model_rows import ModelRow
from peer_rows import PeerRow

from flash_attn2.bench import timing
from flash_attn2.bench.contenders import Problem
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.decode.contenders import CONTENDERS as DECODE_CONTENDERS
from flash_attn2.bench.decode.contenders import DecodeProblem
from flash_attn2.bench.race import FLASH_ATTN2

AnyRow = Row | PeerRow | DecodeRow | ModelRow
ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    **cpu_rows.ENVIRONMENT,
    **limit_rows.ENVIRONMENT,
    **peer_rows.ENVIRONMENT,
}


class OwnRun(NamedTuple):
    run: timing.Run
    mode: contextlib.AbstractContextManager[Any]  # in which it runs


def rows() -> list[AnyRow]:
    """In the order in which they run."""
    return [*timed_rows(), *limit_rows.rows(), *peer_rows.rows(), *model_rows.rows()]


def prepare(row: AnyRow) -> OwnRun:
    if isinstance(row, ModelRow):
        from model_cases import prepare as prepare_model  # with all of the examples

        return OwnRun(prepare_model(row, FLASH_ATTN2).run, contextlib.nullcontext())
    if isinstance(row.case, DecodeCase):
        call = DECODE_CONTENDERS[FLASH_ATTN2](DecodeProblem.create(row.case, "cpu"))
        return OwnRun(call.timed(), torch.inference_mode())
    if isinstance(row, PeerRow):
        row = Row(row.section, row.title, row.case, {})
    gradients = row.mode.gradients
    problem = Problem.create(row.case, "cpu", gradients=gradients)
    mode = contextlib.nullcontext() if gradients else torch.inference_mode()
    return OwnRun(build(FLASH_ATTN2, row, problem).run, mode)
