"""What goes wrong in a translation."""

from __future__ import annotations


class TranslationError(Exception):
    """PTX that cannot be translated: an unknown instruction, or one with unexpected operands."""
