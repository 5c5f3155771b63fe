"""Whether the tokens of a step were written in every layer before the next one.

`PagedKVCache.append` inside the loop over layers would make each sequence longer by its tokens once
per layer, and every layer would attend to rows that nothing has written. Nothing else shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flash_attn2._impl.pages import HeldTokens


class WrittenLayers:
    """What was written since the last step, by the versions that autograd counts.

    `writes` are those of a layer to the storage that is looked at, each of which makes a new
    version of it: one of keys, and one of values where they lie there or are part of them.
    """

    def __init__(self, writes: int) -> None:
        self._writes = writes
        self._version = 0
        self._extended: list[HeldTokens] = []

    def anew(self) -> WrittenLayers:
        """For a copy of the storage."""
        return WrittenLayers(self._writes)

    def begin(self, storage: Tensor, held: Sequence[HeldTokens], counts: Sequence[int]) -> None:
        """A step, whose writes come from now on."""
        extended = [x for x, count in zip(held, counts, strict=True) if count > 0]
        if extended:
            self._version, self._extended = storage._version, extended

    def forget(self, sequence: HeldTokens) -> None:
        """Its tokens need not be written any more."""
        self._extended = [x for x in self._extended if x is not sequence]

    def require_all(
        self,
        storage: Tensor,
        sequences: Sequence[int],
        held: Sequence[HeldTokens],
        counts: Sequence[int],
    ) -> None:
        """RuntimeError where one of `held` is to have more tokens, of whose last ones some layers
        but not all have been written.

        None at all is no error: graphs of CUDA write without a trace.
        """
        written, layers = (storage._version - self._version) // self._writes, storage.shape[0]
        if not 0 < written < layers:
            return
        for sequence, tokens, count in zip(sequences, held, counts, strict=True):
            if count > 0 and any(tokens is x for x in self._extended):
                raise RuntimeError(
                    f"append must be called once per step, before its first layer: since the last "
                    f"one, {written} of {layers} layers have been written, and sequence {sequence} "
                    "was to be continued. If a step failed midway, truncate() its sequences to "
                    "their lengths before it"
                )
