"""Imported before what `pip install ".[examples]"` brings, and says so where it is missing."""

import importlib

for _name in ("matplotlib", "rich"):
    try:
        importlib.import_module(_name)
    except ImportError:
        raise SystemExit(
            f'This example needs {_name}: pip install "flash_attn2[examples]", or ".[examples]" in '
            "a checkout"
        ) from None
