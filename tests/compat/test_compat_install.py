"""`compat.install`: what can be imported then, and what is said of the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from flash_attn2 import compat
from flash_attn2.compat.names import TOP_LEVEL

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is not None for name in TOP_LEVEL),
    reason="a flash-attn is installed",
)

# What programs import, by module.
NAMES = {
    "flash_attn": (
        *("flash_attn_func", "flash_attn_kvpacked_func", "flash_attn_qkvpacked_func"),
        *("flash_attn_varlen_func", "flash_attn_varlen_kvpacked_func"),
        *("flash_attn_varlen_qkvpacked_func", "flash_attn_with_kvcache", "__version__"),
    ),
    "flash_attn.bert_padding": (
        *("unpad_input", "pad_input", "index_first_axis", "index_put_first_axis"),
    ),
    "flash_attn.flash_attn_interface": (
        *("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"),
        *("_flash_attn_forward", "_flash_attn_backward", "_flash_attn_varlen_forward"),
        *("_flash_attn_varlen_backward", "_wrapped_flash_attn_forward"),
        *("_wrapped_flash_attn_backward", "_wrapped_flash_attn_varlen_forward"),
        "_wrapped_flash_attn_varlen_backward",
    ),
    "flash_attn.layers.rotary": (
        *("RotaryEmbedding", "apply_rotary_emb", "apply_rotary_emb_func"),
        *("apply_rotary_emb_qkv_", "apply_rotary_emb_kv_"),
    ),
    "flash_attn_interface": (
        *("flash_attn_func", "flash_attn_varlen_func", "flash_attn_qkvpacked_func"),
        *("flash_attn_with_kvcache", "flash_attn_combine", "get_scheduler_metadata"),
    ),
    "flash_attn_3.flash_attn_interface": ("flash_attn_func", "flash_attn_varlen_func"),
}


@pytest.fixture
def installed() -> Iterator[None]:
    compat.install()
    yield
    compat.uninstall()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    module = importlib.import_module(name)
    for attribute in NAMES[name]:
        assert hasattr(module, attribute)
    assert importlib.util.find_spec(name) is module.__spec__
    assert module.__spec__ is not None
    assert module.__spec__.name == module.__name__ == name
    assert not hasattr(module, "no_such_name")
    assert importlib.import_module(name) is module


@pytest.mark.usefixtures("installed")
def test_forms_of_import() -> None:
    namespace: dict[str, object] = {}
    code = """
import flash_attn, flash_attn.layers.rotary as rotary, flash_attn_interface
from flash_attn import bert_padding, flash_attn_interface as two
from flash_attn import *
"""
    exec(code, namespace)
    import flash_attn2

    assert namespace["flash_attn_func"] is flash_attn2.flash_attn_func
    assert namespace["flash_attn_interface"] is not namespace["two"]


@pytest.mark.usefixtures("installed")
def test_metadata() -> None:
    assert importlib.metadata.version("flash-attn") == importlib.metadata.version("flash_attn")
    assert tuple(map(int, importlib.metadata.version("flash_attn").split("."))) >= (2, 8, 0)
    assert importlib.metadata.version("Flash.Attn-3").startswith("3.")
    packages = importlib.metadata.packages_distributions()
    assert packages["flash_attn"] == ["flash_attn"]
    assert packages["flash_attn_interface"] == packages["flash_attn_3"] == ["flash_attn_3"]
    assert importlib.metadata.metadata("flash_attn")["Name"] == "flash_attn"
    assert importlib.metadata.files("flash_attn") is None
    assert list(importlib.metadata.distributions(path=[])) == []
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash-attn-4")
    module = importlib.import_module("flash_attn")
    assert module.__version__ == importlib.metadata.version("flash_attn")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("statement", "advice"),
    [
        ("import flash_attn.losses.cross_entropy", "torch.nn.functional.cross_entropy"),
        ("from flash_attn.losses.cross_entropy import X", "torch.nn.functional.cross_entropy"),
        ("from flash_attn.ops.rms_norm import RMSNorm", "the modules of torch.nn"),
        ("import flash_attn.ops.rms_norm", "the modules of torch.nn"),
        ("from flash_attn.modules.mha import MHA", "flash_attn2.nn.Attention for attention"),
        ("from flash_attn.models.gpt import GPTLMHeadModel", "integrations.transformers"),
        ("import flash_attn_2_cuda", "torch.ops.flash_attn2"),
        ("import flash_attn_3._C", "use flash_attn_interface"),
        ("from flash_attn.flash_attn_interface import FlashAttnFunc", "the functions, which auto"),
        ("from flash_attn import cute", "flash_attn_interface"),
        ("from flash_attn import nonsense", r"no flash_attn.nonsense: see dir\(flash_attn\)"),
    ],
)
def test_what_is_not_offered(statement: str, advice: str) -> None:
    with pytest.raises(ImportError, match=advice):
        exec(statement, {})


def test_undone() -> None:
    compat.install()
    compat.install()
    assert sum(type(x).__name__ == "Finder" for x in sys.meta_path) == 1
    module = importlib.import_module("flash_attn")
    compat.uninstall()
    compat.uninstall()
    assert importlib.util.find_spec("flash_attn") is None
    assert not [name for name in sys.modules if name.split(".")[0] in TOP_LEVEL]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("flash_attn")
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash_attn")
    assert callable(module.flash_attn_func)
    compat.install()  # and again
    assert importlib.import_module("flash_attn") is not module
    compat.uninstall()


def test_a_real_one_stays(tmp_path: Path) -> None:
    """Also its modules, and what it lacks; it is said once."""
    package = tmp_path / "flash_attn"
    package.mkdir()
    (package / "__init__.py").write_text("real = True\n")
    code = f"""
import sys, warnings
sys.path.insert(0, {str(tmp_path)!r})
from flash_attn2 import compat
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    compat.install()
    compat.install()
assert len(caught) == 1 and "flash_attn is installed: it is what programs" in str(caught[0].message)
import flash_attn
assert flash_attn.real
for name in ("flash_attn.losses", "flash_attn_2_cuda"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        assert "compat" not in str(error)
    else:
        raise AssertionError(name)
import importlib.metadata, flash_attn_interface
try:
    importlib.metadata.version("flash_attn")
except importlib.metadata.PackageNotFoundError:
    print("as it should be")
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "as it should be"


def test_nothing_is_said_without_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compat.install()
    compat.uninstall()
