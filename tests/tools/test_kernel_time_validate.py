"""What was published, beside what the model says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.kernel_time import validate
from tools.kernel_time.device import Kernel, protocol_problem, row_kernels_seconds, teraflops
from tools.kernel_time.machines import MACHINES
from tools.kernel_time.published import LENGTHS
from tools.kernel_time.turns import CtaCost

A100 = MACHINES["A100"]
COST = CtaCost(fixed=5000.0, steady=6000.0, masked=6000.0, alone=(4000.0, 6000.0))


def test_rows_have_a_number_for_each_length() -> None:
    for rows in validate.ROWS.values():
        assert all(len(row.published) == len(LENGTHS) for row in rows)
    assert len(validate.ROWS["A100"]) * len(LENGTHS) == 24
    assert len(validate.ROWS["H100"]) * len(LENGTHS) == 48


def test_mmas_of_their_turns() -> None:
    assert validate.their_tile("fwd", 64).turn.mmas == 256
    assert validate.their_tile("fwd", 256).turn.mmas == 256
    assert validate.their_tile("bwd", 128).turn.mmas == 320


def test_passes_count_together() -> None:
    row = validate.Row(("fwd", "bwd"), 64, False, (100,) * len(LENGTHS))
    kernels = [Kernel(validate.their_tile(kind, 64), COST) for kind in row.kinds]
    both = list(validate.together(A100, kernels, row))
    for length, value in zip(LENGTHS, both, strict=True):
        problem = protocol_problem(length, 64, causal=False)
        forward, backward = (teraflops(A100, kernel, problem) for kernel in kernels)
        assert value == pytest.approx(3.5 / (1 / forward + 2.5 / backward))
        assert row_kernels_seconds(A100, problem) > 0


def test_errors_and_their_line() -> None:
    row = validate.Row(("fwd",), 64, True, (100, 100, 200, 200, 400, 400))
    predicted = (110.0, 95.0, 200.0, 220.0, 400.0, 380.0)
    assert validate.errors(predicted, row.published) == pytest.approx(
        [0.1, -0.05, 0.0, 0.1, 0.0, -0.05]
    )
    text = validate.line(row, "greedy", predicted)
    assert text.startswith("fwd 64 causal, greedy: published 100/100/200/200/400/400, model 110/95")
    assert text.endswith("+10.0%/-5.0%/+0.0%/+10.0%/+0.0%/-5.0%")


def test_a_folder_without_kernels_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate.main([str(tmp_path), "--machine", "H100"]) == 1
    assert "no kernel of sm_90" in capsys.readouterr().err
