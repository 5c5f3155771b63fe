"""Generates text with the GPT of train_gpt.py: continuous batching over a paged KV cache.

Requests with prompts of different lengths arrive while others run. All begin with the same lines,
whose keys and values are computed once, in pages that all share. Prompts are computed piece by
piece beside the tokens that are being generated, in one call per layer.

    python examples/generate.py                       # random weights
    python examples/train_gpt.py --save gpt.pt
    python examples/generate.py --model gpt.pt        # and shows some of the text
    python examples/generate.py --model gpt.pt --temperature 0.8 --top-k 40

Greedy output is checked token by token against a model that keeps nothing: attention over all
tokens, without a cache. In float32 it is identical; in bfloat16, the two round differently, and
where two tokens are nearly as likely either may come out first.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import DTYPES, standard_library
from gpt import GPT, Config
from serving import Engine, Request, Sampling

from flash_attn2.inference import PagedKVCache

PREFIX = b'''"""A module of Python's standard library: names in words, lines of at most 79
characters, and a docstring for every public class and function.
"""

import collections
import functools
import os
import re
import sys

'''
SHOWN = 3


@dataclass(frozen=True)
class Difference:
    """Of greedy output from full recomputation."""

    tokens: int
    different: int
    largest_gap: float
    """By which the logit of a token that came out is below the largest."""


def random_model(config: Config) -> GPT:
    """A model whose choices depend on all that comes before.

    With the small weights that training begins with, they hardly depend on attention, and a check
    of it would show little.
    """
    model = GPT(config)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and not name.startswith("embedding"):
            scale = 2.0 if "qkv_proj" in name else 1.0
            torch.nn.init.normal_(weight, std=scale * weight.shape[1] ** -0.5)
    return model


def make_requests(args: argparse.Namespace) -> list[Request]:
    """Prompts that go on with a piece of a real source, of lengths from short to --prompt."""
    chance = random.Random(args.seed)
    sources = [source for source in standard_library().values() if len(source) > args.prompt]
    requests = []
    for number in range(args.requests):
        source = chance.choice(sources)
        length = round(args.prompt ** chance.uniform(0.3, 1))
        start = chance.randrange(len(source) - length)
        prompt = PREFIX + source[start : start + length]
        requests.append(Request(number, list(prompt), chance.randint(args.new // 4 + 1, args.new)))
    return requests


def generate(engine: Engine, requests: Sequence[Request], arrivals: Sequence[int]) -> float:
    """Runs them, each from the step at which it arrives; returns the seconds that it took."""
    coming = deque(zip(requests, arrivals, strict=True))
    start = time.perf_counter()
    while coming or engine.busy:
        while coming and coming[0][1] <= engine.counts.steps:
            engine.add(coming.popleft()[0])
        engine.step()  # what it samples is on the host: the device has finished
    return time.perf_counter() - start


@torch.inference_mode()
def recompute(model: GPT, requests: Sequence[Request]) -> Difference:
    """Compares what was generated with the most likely token after all that is before it."""
    device = model.head.weight.device
    tokens = different = 0
    largest_gap = 0.0
    for request in requests:
        sequence = torch.tensor(request.tokens, device=device)
        logits = model(sequence[None, :-1])[0, len(request.prompt) - 1 :]
        output = sequence[len(request.prompt) :]
        gaps = logits.amax(-1) - logits.gather(1, output[:, None])[:, 0]
        tokens += len(output)
        different += int((logits.argmax(-1) != output).sum())
        largest_gap = max(largest_gap, gaps.max().item())
    return Difference(tokens, different, largest_gap)


def report(engine: Engine, requests: Sequence[Request], seconds: float) -> None:
    counts, cache = engine.counts, engine.cache
    prompts = sum(len(request.prompt) for request in requests)
    print(
        f"{len(requests)} requests, {prompts:,} tokens of prompts, {counts.generated:,} tokens "
        f"generated in {seconds:.2f} s"
    )
    print(
        f"{counts.generated / seconds:,.0f} tokens/s generated, "
        f"{counts.computed / seconds:,.0f} tokens/s through the model, "
        f"{counts.shared:,} tokens taken from shared pages"
    )
    print(
        f"{counts.steps:,} steps of at most {engine.budget} tokens, {counts.mixed:,} with prompts "
        f"and single tokens in one call; {counts.preempted} preemptions"
    )
    if (peak := counts.peak) is not None:
        page = peak.bytes_total / cache.num_pages / 2**20
        print(
            f"At most {peak.pages_used} of {cache.num_pages} pages in use, "
            f"{peak.pages_used * page:.2f} MiB of keys and values; without sharing "
            f"{peak.pages_unshared} pages, {peak.pages_unshared * page:.2f} MiB"
        )


def show(requests: Sequence[Request]) -> None:
    for request in requests[:SHOWN]:
        prompt, output = (
            bytes(tokens).decode(errors="replace") for tokens in (request.prompt, request.output)
        )
        print(f"Request {request.number}: ...{prompt[-40:]!r} goes on with {output!r}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", type=Path, metavar="FILE", help="what train_gpt.py --save wrote")
    model.add_argument("--d-model", type=int, default=Config.d_model, help="of random weights")
    model.add_argument("--layers", type=int, default=Config.num_layers)
    model.add_argument("--heads", type=int, default=Config.num_heads)
    model.add_argument("--heads-kv", type=int, default=Config.num_heads_kv)
    work = parser.add_argument_group("requests")
    work.add_argument("--requests", type=int, default=32)
    work.add_argument("--prompt", type=int, default=400, help="longest prompt, after the prefix")
    work.add_argument("--new", type=int, default=96, help="most tokens to generate for a request")
    work.add_argument("--arrival", type=int, default=3, help="steps between two requests")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    sampling.add_argument("--top-k", type=int)
    sampling.add_argument("--seed", type=int, default=0)
    cache = parser.add_argument_group("cache")
    cache.add_argument("--pages", type=int, default=1024)
    cache.add_argument("--page-size", type=int, default=16)
    cache.add_argument("--budget", type=int, default=256, help="most tokens in a step")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    machine.add_argument("--dtype", choices=DTYPES, help="default: float32, bfloat16 on cuda")
    machine.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare greedy output with full recomputation",
    )
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.model:
        model = GPT.load(args.model, args.device)
    else:
        model = random_model(Config(args.d_model, args.layers, args.heads, args.heads_kv))
    model = model.to(args.device, DTYPES[args.dtype])
    config = model.config
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {args.dtype}, "
        f"pages of {args.page_size} tokens"
    )
    cache = PagedKVCache(
        config.num_layers,
        args.pages,
        args.page_size,
        config.num_heads_kv,
        config.d_model // config.num_heads,
        DTYPES[args.dtype],
        args.device,
    )
    sampling = Sampling(args.temperature, args.top_k, args.seed)
    engine = Engine(model, cache, args.budget, PREFIX, sampling)
    requests = make_requests(args)
    arrivals = [args.arrival * number for number in range(len(requests))]
    seconds = generate(engine, requests, arrivals)
    report(engine, requests, seconds)

    difference = None
    if args.check and args.temperature == 0:
        difference = recompute(model, requests)
        if difference.different == 0:
            print(f"All {difference.tokens:,} tokens are those of full recomputation")
        else:
            print(
                f"{difference.different} of {difference.tokens:,} tokens differ from those of full "
                f"recomputation, whose logits are larger by at most {difference.largest_gap:.2g}"
            )
    if args.model:
        show(requests)
    return {
        "outputs": [request.output for request in requests],
        "counts": asdict(engine.counts),
        "difference": None if difference is None else asdict(difference),
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
