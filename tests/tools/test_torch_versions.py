"""The environments of `make test-torch`."""

from __future__ import annotations

from tools import test_torch

PINS = """# comment
numpy==2.4.6; python_version >= "3.11"
pytest==9.2.0
pytest-xdist==3.8.0
sympy==1.14.0
torch==2.13.0
"""


def test_pins_leave_torch_its_choices() -> None:
    assert test_torch.pins(PINS) == "pytest==9.2.0\npytest-xdist==3.8.0\n"


def test_selections_exist() -> None:
    for name in test_torch.SHORT_FILES:
        assert (test_torch.ROOT / "tests" / name).is_file()
