"""Continuous batching: an engine that generates with the GPT of gpt.py from a paged KV cache.

In each step the model sees the newest token of every sequence that is being continued and, as far
as a budget of tokens goes, pieces of prompts, all of them in one packed call.
"""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from gpt import GPT
from torch import Tensor

from flash_attn2.inference import OutOfPagesError, PagedKVCache, Step, Usage


class CachedGPT:
    """The layers of a GPT, with the keys and values of earlier tokens in a cache."""

    def __init__(self, model: GPT, cache: PagedKVCache) -> None:
        self.model = model
        self.cache = cache

    def logits(self, tokens: Tensor, step: Step) -> Tensor:
        """float32 logits after the last token of each sequence; tokens are those of the step."""
        model = self.model
        x = model.embedding(tokens)
        for block, kv in zip(model.blocks, self.cache.layers, strict=True):
            x = block(x, cache=kv, step=step)
        last = x[step.cu_seqlens_q[1:] - 1]
        return model.head(model.norm(last)).float()


@dataclass
class Request:
    number: int
    prompt: list[int]
    max_new: int
    tokens: list[int] = field(init=False)
    """The prompt, and behind it what has been generated."""
    sequence: int = -1
    """In the cache, while it runs."""

    def __post_init__(self) -> None:
        if not self.prompt or self.max_new < 1:
            raise ValueError(
                "a request must have a prompt and ask for at least one token, "
                f"got {len(self.prompt)} tokens and max_new {self.max_new}"
            )
        self.tokens = list(self.prompt)

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.prompt) :]

    @property
    def finished(self) -> bool:
        return len(self.output) == self.max_new


@dataclass(frozen=True)
class Sampling:
    """How logits become a token; at temperature 0, by the largest (greedy)."""

    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0

    def __call__(self, logits: Tensor, requests: Sequence[Request]) -> list[int]:
        """The next token of each request; chance depends on its number and on nothing beside it."""
        if self.temperature == 0:
            return logits.argmax(-1).tolist()
        logits = logits.cpu() / self.temperature
        if self.top_k is not None:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        return [
            int(torch.multinomial(p, 1, generator=self._random(request)))
            for p, request in zip(logits.softmax(-1), requests, strict=True)
        ]

    def _random(self, request: Request) -> torch.Generator:
        place = (self.seed, request.number, len(request.tokens))
        return torch.Generator().manual_seed(zlib.crc32(repr(place).encode()))


@dataclass
class Counts:
    """What an engine has done."""

    steps: int = 0
    mixed: int = 0
    """Steps with longer pieces and single tokens in one call."""
    computed: int = 0
    """Tokens that went through the model, but for the prefix."""
    shared: int = 0
    """Tokens that did not have to, because the prefix holds them."""
    generated: int = 0
    preempted: int = 0
    """Times that a request lost its pages to older ones."""
    peak: Usage | None = None
    """When most pages were in use."""


class Engine:
    """Runs requests in the order in which they come, as many at once as there is room for.

    budget   most tokens in a step
    prefix   tokens with which many prompts begin: computed once, their pages shared
    """

    def __init__(
        self,
        model: GPT,
        cache: PagedKVCache,
        budget: int,
        prefix: Sequence[int] = (),
        sampling: Sampling | None = None,
    ) -> None:
        if budget < 1:
            raise ValueError(f"budget must be at least 1, got {budget}")
        self.cache = cache
        self.budget = budget
        self.sampling = sampling or Sampling()
        self.counts = Counts()
        self._model = CachedGPT(model, cache)
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # the oldest first
        self._prefix = list(prefix)
        self._prefix_sequence = cache.allocate()
        for start in range(0, len(self._prefix), budget):
            piece = self._prefix[start : start + budget]
            self._forward(cache.append([self._prefix_sequence], len(piece)), [piece])

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, request: Request) -> None:
        """Puts a request last in line."""
        length = len(request.prompt) + request.max_new
        room = self.cache.num_pages - self._pages(len(self._prefix))
        if self._own_pages(request, length) > room or length > self.cache.max_seqlen:
            raise ValueError(
                f"a request with its output must fit into the cache, got {length} tokens"
            )
        self._waiting.append(request)

    def step(self) -> list[Request]:
        """One call of the model; returns the requests that it has finished."""
        self._admit()
        self.counts.steps += 1
        batch, step = self._schedule()
        if not batch:
            return []
        self._measure(batch)
        logits = self._forward(step, [piece for _, piece in batch])
        # The others are amid their prompts, where the next token is known.
        complete = [i for i, (request, _) in enumerate(batch) if not self._pending(request)]
        requests = [batch[i][0] for i in complete]
        for request, token in zip(requests, self.sampling(logits[complete], requests), strict=True):
            request.tokens.append(token)
        self.counts.generated += len(requests)
        finished = [request for request in requests if request.finished]
        for request in finished:
            self._running.remove(request)
            self.cache.free(request.sequence)
        return finished

    @torch.inference_mode()
    def _forward(self, step: Step, pieces: list[list[int]]) -> Tensor:
        tokens = torch.tensor(list(itertools.chain(*pieces)), device=self.cache.device)
        return self._model.logits(tokens, step)

    def _admit(self) -> None:
        """Starts requests while there are pages for their tokens, and one to spare for each."""
        most = min(self.budget, self.cache.max_batch or self.budget)
        room = self.cache.usage().pages_free
        for request in self._running:
            held = self.cache.length(request.sequence)
            room -= self._pages(len(request.tokens)) - self._pages(held) + 1
        while self._waiting and len(self._running) < most:
            request = self._waiting[0]
            own = self._own_pages(request, len(request.tokens))
            if own > room:
                break
            room -= own + 1
            shared = self._shared(request)
            request.sequence = self.cache.fork(self._prefix_sequence, shared)
            self.counts.shared += shared
            self._running.append(self._waiting.popleft())

    def _schedule(self) -> tuple[list[tuple[Request, list[int]]], Step]:
        """The pieces of the next step, and room for them; if need be, the youngest make it."""
        while True:
            batch = self._pieces()
            sequences = [request.sequence for request, _ in batch]
            try:
                return batch, self.cache.append(sequences, [len(piece) for _, piece in batch])
            except OutOfPagesError:
                # It will begin anew, with what it has generated as part of its prompt.
                request = self._running.pop()
                self.cache.free(request.sequence)
                self._waiting.appendleft(request)
                self.counts.preempted += 1

    def _pieces(self) -> list[tuple[Request, list[int]]]:
        """What of each request goes into the next step: single tokens before prompts."""
        pieces = []
        budget = self.budget
        for request in sorted(self._running, key=lambda request: len(self._pending(request)) > 1):
            if piece := self._pending(request)[:budget]:
                pieces.append((request, piece))
                budget -= len(piece)
        return pieces

    def _pending(self, request: Request) -> list[int]:
        """The tokens that the cache does not hold yet."""
        return request.tokens[self.cache.length(request.sequence) :]

    def _shared(self, request: Request) -> int:
        """How many tokens it has in common with the prefix; its last must go through the model."""
        pairs = zip(self._prefix, request.tokens[:-1], strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _own_pages(self, request: Request, length: int) -> int:
        """Pages of its first `length` tokens that it does not share."""
        return self._pages(length) - self._shared(request) // self.cache.page_size

    def _pages(self, length: int) -> int:
        return -(-length // self.cache.page_size)

    def _measure(self, batch: list[tuple[Request, list[int]]]) -> None:
        lengths = [len(piece) for _, piece in batch]
        self.counts.computed += sum(lengths)
        self.counts.mixed += min(lengths) == 1 < max(lengths)
        usage = self.cache.usage()
        if self.counts.peak is None or usage.pages_used > self.counts.peak.pages_used:
            self.counts.peak = usage
