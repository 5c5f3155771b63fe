"""One model in training, and what is measured of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from common import DTYPES, peak_memory
from torch import Tensor, nn


class Training:
    """A model, its optimizer, and the loss and seconds of each step."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, device: str, dtype: str
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.device = device
        self.dtype = DTYPES[dtype]
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def loss(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def step(self, batch: Any) -> None:
        start = time.perf_counter()
        loss = self.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())  # waits for the device
        self.seconds.append(round(time.perf_counter() - start, 6))

    def peak_memory(self, batch: Any) -> int:
        """Bytes of activations, gradients and workspaces."""
        size = peak_memory(lambda: self.loss(batch).backward(), self.device)
        self.optimizer.zero_grad()
        return size

    @torch.no_grad()
    def validation_loss(self, validation: Sequence[Any]) -> float:
        return statistics.fmean(self.loss(batch).item() for batch in validation)
