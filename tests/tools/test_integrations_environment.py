"""The environment of `make test-integrations`."""

from __future__ import annotations

from flash_attn2.integrations.transformers import TESTED
from tools import test_integrations
from tools.environments import ROOT


def test_pins_leave_libraries_their_choices() -> None:
    pins = "numpy==2.4.6\nsympy==1.14.0\ntorch==2.13.0\npytest==9.2.0\n"
    assert test_integrations.pins(pins) == "numpy==2.4.6\ntorch==2.13.0\npytest==9.2.0\n"


def test_adapter_is_tested_with_what_it_says() -> None:
    name, version = test_integrations.LIBRARIES[0].split("==")
    assert name == "transformers"
    assert ".".join(version.split(".")[:2]) == TESTED[0]


def test_peers_are_those_of_the_extra() -> None:
    found = test_integrations.peers((ROOT / "pyproject.toml").read_text())
    assert {one.split("==")[0] for one in found} >= {"onnxruntime", "openvino", "jax"}
    assert all("==" in one for one in found)
