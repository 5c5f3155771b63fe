"""What was published of FlashAttention-2, and how far the model was from it.

TFLOP/s at 512, 1k, 2k, 4k, 8k and 16k tokens a sequence, float16, by the protocol of the paper.
docs/notes/timing.md has the comparison.
"""

from __future__ import annotations

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)

# By head dim and whether it is causal. A100 80GB SXM4, forward and backward together.
A100_BOTH = {
    (64, False): (132, 153, 162, 171, 175, 176),
    (64, True): (88, 119, 140, 156, 165, 171),
    (128, False): (151, 173, 187, 196, 201, 203),
    (128, True): (99, 133, 155, 173, 182, 189),
}

# H100 SXM5, as FlashAttention-3's paper has it for comparison.
H100_FORWARD = {
    (64, False): (282, 306, 318, 321, 322, 324),
    (64, True): (180, 229, 262, 284, 295, 299),
    (128, False): (309, 350, 362, 368, 370, 370),
    (128, True): (191, 260, 298, 319, 333, 335),
    (256, False): (275, 313, 321, 323, 324, 326),
    (256, True): (208, 251, 278, 293, 297, 298),
}
H100_BACKWARD = {
    (64, False): (198, 238, 264, 279, 287, 291),
    (128, False): (214, 260, 291, 310, 318, 322),
}

_CHECKED = {
    ("A100", "fwd"): {64, 128},
    ("A100", "bwd"): {64, 128},
    ("H100", "fwd"): {64, 128, 256},
    ("H100", "bwd"): {64, 128},
}
_ERROR = {"A100": "10%", "H100": "15%"}


def checked_error(machine: str, kind: str, head_dim: int, is_plain: bool) -> str:
    """How far off a prediction may be, going by what was published of such kernels."""
    if is_plain and head_dim in _CHECKED.get((machine, kind), ()):
        return _ERROR[machine]
    return "unchecked"
