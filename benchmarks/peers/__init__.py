"""Other runtimes that compute attention on a CPU: a module for each, one interface.

What they need is the extra `peers` of this project, at the releases below: another release is
another peer, and figures of two records could not be compared.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping

from peers.interface import Attention, Prepared

ONNXRUNTIME = "onnxruntime"
OPENVINO = "OpenVINO"
JAX = "JAX"
GGML = "ggml"

XLA_THREADS = "NPROC"  # the variable that says how many threads JAX takes in a process

# The ways in which a peer computes a problem; each prepares what it needs.
Variants = Mapping[str, Callable[[], Prepared]]

_MODULES = {
    ONNXRUNTIME: "peers.onnx_runtime",
    OPENVINO: "peers.open_vino",
    JAX: "peers.jax_xla",
    GGML: "peers.ggml_graph",
}
NAMES = tuple(_MODULES)
# As in pyproject.toml: distributions of each peer, and their releases.
PINS: Mapping[str, Mapping[str, str]] = {
    ONNXRUNTIME: {"onnxruntime": "1.32.0", "onnx": "1.23.2"},
    OPENVINO: {"openvino": "2026.4.1"},
    JAX: {"jax": "0.10.2", "jaxlib": "0.10.2"},
    GGML: {"ggml-python": "0.0.45"},
}


class NotInstalledError(Exception):
    """A peer is not here, or not at its pinned release."""


def variants(name: str, attention: Attention) -> Variants:
    """How the peer `name` computes `attention`.

    NotInstalledError where it is not installed, flash_attn2.bench.suite.UnavailableError where it
    cannot.
    """
    if wrong := wrong_releases(name):
        raise NotInstalledError(f"not installed: {', '.join(wrong)}")
    found: Variants = importlib.import_module(_MODULES[name]).variants(attention)
    return found


def wrong_releases(name: str) -> list[str]:
    """The pins of a peer that are not installed."""
    return [
        f"{distribution} {release}"
        for distribution, release in PINS[name].items()
        if _installed(distribution) != release
    ]


def releases() -> dict[str, dict[str, tuple[str, str | None]]]:
    """For a record, by peer and distribution: the release that is pinned, and the one here."""
    return {
        name: {one: (pin, _installed(one)) for one, pin in pins.items()}
        for name, pins in PINS.items()
    }


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
