"""Monotonic alignment search against the same search as a plain Python loop: both times and their ratio.

python benchmarks/alignment.py [--json] [--batch-size 32] [--num-tokens 60] [--num-frames 400]
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from resgen.cli.main import guard
from resgen.errors import ConfigError
from resgen.ops.alignment import monotonic_alignment
from resgen.ops.random import generator

CALLS = 10
"""Of the fast search in each turn: one alone is too short for the clock."""


def plain_alignment(scores: list[list[list[float]]]) -> list[list[int]]:
    """Durations of whole samples [B, N, T], one cell after the other."""
    result = []
    for sample in scores:
        num_tokens, num_frames = len(sample), len(sample[0])
        best = [[-1e30] * num_frames for _ in range(num_tokens)]
        best[0][0] = sample[0][0]
        for frame in range(1, num_frames):
            for token in range(min(frame + 1, num_tokens)):
                stay = best[token][frame - 1]
                move = best[token - 1][frame - 1] if token else -1e30
                best[token][frame] = (move if move > stay else stay) + sample[token][frame]
        durations = [0] * num_tokens
        token = num_tokens - 1
        for frame in range(num_frames - 1, -1, -1):
            durations[token] += 1
            if frame and token and (token == frame or best[token - 1][frame - 1] > best[token][frame - 1]):
                token -= 1
        result.append(durations)
    return result


def main(
    batch_size: int = 32,
    num_tokens: int = 60,
    num_frames: int = 400,
    repetitions: int = 5,
    seed: int = 0,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Measure processor time on one core, in turns; a line, or one JSON document, to standard output.

    Args:
        batch_size: B.
        num_tokens: N.
        num_frames: T.
        repetitions: of every timing.
        seed: of the scores.
        as_json: write JSON.
    """
    if min(batch_size, num_tokens, repetitions) < 1 or num_frames < num_tokens:
        raise ConfigError(
            f"batch_size={batch_size}, num_tokens={num_tokens} and repetitions={repetitions} must be at least 1, "
            f"and num_frames={num_frames} at least num_tokens"
        )
    torch.set_num_threads(1)
    scores = torch.randn(batch_size, num_tokens, num_frames, generator=generator("alignment", seed))
    texts, frames = torch.full((batch_size,), num_tokens), torch.full((batch_size,), num_frames)
    numbers = scores.double().tolist()
    ours, plain, ratios = [], [], []
    expected: list[list[int]] = []
    durations: Tensor = monotonic_alignment(scores, texts, frames)  # warm up
    for _ in range(repetitions):
        plain_s, expected = _timed(lambda: plain_alignment(numbers))
        many_s, durations = _timed(lambda: [monotonic_alignment(scores, texts, frames) for _ in range(CALLS)][-1])
        plain.append(plain_s)
        ours.append(many_s / CALLS)
        ratios.append(plain_s / ours[-1])
    result: dict[str, Any] = {
        "ratio": statistics.median(ratios),
        "seconds": {"ours": statistics.median(ours), "plain": statistics.median(plain)},
        "equal": durations.tolist() == expected,
        "settings": {"batch_size": batch_size, "num_tokens": num_tokens, "num_frames": num_frames, "threads": 1},
    }
    if as_json:
        print(json.dumps(result))
        return
    seconds = result["seconds"]
    verdict = "equal" if result["equal"] else "DIFFER"
    print(
        f"{seconds['plain'] * 1e3:.0f} ms plain, {seconds['ours'] * 1e3:.1f} ms ours: "
        f"{result['ratio']:.0f} times as fast; durations {verdict}"
    )


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    value = action()
    return time.process_time() - begin, value


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
