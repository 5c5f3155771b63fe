"""The example that trains with a sequence on several ranks, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pool import Pool
from support import TORCH

pytestmark = pytest.mark.skipif(TORCH < (2, 6), reason="fully_shard was elsewhere")
SMALL = "--tokens 1000 --steps 10 --lr 5e-2 --d-model 32 --heads 4 --heads-kv 2 --compare"


@pytest.mark.parametrize(("count", "parameters", "scheme"), [
    (4, "fsdp2", "ring"), (2, "fsdp2", "gather"), (2, "ddp", "heads"),
])  # fmt: skip
def test_losses_are_those_of_one_process(
    pool: Pool, tmp_path: Path, count: int, parameters: str, scheme: str
) -> None:
    options = f"{SMALL} --parameters {parameters} --scheme {scheme} --output {tmp_path}"
    results, *others = pool.run(count, "train_long_cases", "trained", options)
    ranks, one = results[f"{count} ranks"], results["one process"]
    assert all(x == {f"{count} ranks": ranks} for x in others)
    assert one["loss"][0] == pytest.approx(5.5, abs=0.3)  # ln 256: nothing known yet
    assert one["loss"][-1] < one["loss"][0] - 2  # now positions matter
    assert ranks["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert sum(ranks["rows"]) == one["rows"] == 1000
    share = 1 if parameters == "ddp" else 1 / count
    assert max(ranks["state_bytes"]) <= 1.1 * share * one["state_bytes"]
    assert max(ranks["peak_bytes"]) < one["peak_bytes"]
    assert min(ranks["attention_bytes_sent"]) > 0
    of_parameters = one["state_bytes"] / 3
    summed = 2 * (count - 1) / count * of_parameters
    assert min(ranks["parameter_bytes_sent"]) >= 0.99 * summed

    record = json.loads((tmp_path / "train-long.json").read_text())
    assert record["results"] == results
    assert 0 < record["largest_difference"] <= 1e-5
    assert (tmp_path / "train-long.png").read_bytes().startswith(b"\x89PNG")
