"""Encode vectors with this library and with vector-quantize-pytorch: time, memory, agreement.

python benchmarks/quantizer.py [--json] [--num-vectors 65536]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
import tyro
import yaml
from jaxtyping import Float, Int
from times import medians, spread
from torch import Tensor

from resgen.allocator import keep_freed_memory
from resgen.cli.main import guard
from resgen.errors import ConfigError
from resgen.evaluation.bench.memory import extra_peak_bytes
from resgen.evaluation.bench.timing import CPU, interleaved, machine_of, ratio
from resgen.extras import MissingExtraError
from resgen.ops.random import generator
from resgen.ops.residual import residual_encode

TIE = 1e-4
WARM_UP_ROWS = 64
Encode = Callable[[Tensor], Tensor]


def main(
    num_vectors: int = 65_536,
    code_dim: int = 64,
    codebook_size: int = 1024,
    depth: int = 8,
    repetitions: int = 3,
    seed: int = 0,
    keep_freed: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """`residual_encode` against `vector_quantize_pytorch.ResidualVQ` in evaluation mode, with the same codebooks.

    Prints `speedup`, `seconds` and `extra_memory_bytes` of `ours` and `peer`, `memory_ratio` (ours over the peer's),
    `agreement` (share of vectors with the same codes, ties aside), `ties` (vectors whose codes first differ where both
    are equally near, within 1e-4), `codes_equal` (share of all codes) and `settings`.

    Args:
        num_vectors: how many are encoded.
        code_dim: H.
        codebook_size: V.
        depth: D.
        repetitions: of every timing.
        seed: of vectors and codebooks.
        keep_freed: keep freed memory, as the command `resgen` does.
        as_json: write one JSON document to standard output.
    """
    if min(num_vectors, repetitions) < 1:
        raise ConfigError(f"num_vectors={num_vectors} and repetitions={repetitions} must be at least 1")
    if keep_freed:
        keep_freed_memory()
    sizes = {"num_vectors": num_vectors, "code_dim": code_dim, "codebook_size": codebook_size, "depth": depth}
    vectors, codebooks = random_vectors(**sizes, seed=seed)
    encoders = {"ours": our_encoder(codebooks), "peer": peer_encoder(codebooks)}
    for encode in encoders.values():
        encode(vectors[:WARM_UP_ROWS])
    codes = {name: encode(vectors) for name, encode in encoders.items()}
    times = interleaved({name: partial(encode, vectors) for name, encode in encoders.items()}, repetitions)
    memory = {name: extra_peak_bytes(encoding, which=name, seed=seed, **sizes) for name in encoders}
    result: dict[str, Any] = {
        "speedup": ratio(times["peer"], times["ours"])["median"],
        "seconds": medians(times),
        "spread": spread(times),
        "extra_memory_bytes": memory,
        "memory_ratio": memory["ours"] / max(1, memory["peer"]),
        **compare_codes(vectors, codebooks, codes["ours"], codes["peer"]),
        "settings": {
            **sizes,
            "repetitions": repetitions,
            "seed": seed,
            "keep_freed": keep_freed,
            **machine_of(CPU, torch.float32),
        },
    }
    print(json.dumps(result) if as_json else yaml.safe_dump(result, sort_keys=False).rstrip())


def compare_codes(
    vectors: Float[Tensor, "N H"],
    codebooks: Float[Tensor, "D V H"],
    first: Int[Tensor, "N D"],
    second: Int[Tensor, "N D"],
    tie: float = TIE,
) -> dict[str, float]:
    """How far two encodings of the same vectors agree.

    Where a vector's codes differ, only the first differing level counts: up to there both have the same residual. It is
    a tie if the squared distances of the two codes to that residual differ by at most `tie`, in float64.
    """
    differs = first != second
    rows = differs.any(1).nonzero().squeeze(1)
    level = differs[rows].int().argmax(1)
    books = codebooks.double()
    residual = vectors[rows].double()
    for index in range(codebooks.shape[0]):
        before = (index < level)[:, None]
        residual = residual - books[index][first[rows, index]] * before
    gaps = []
    for codes in (first, second):
        own = codes[rows].gather(1, level[:, None]).squeeze(1)
        gaps.append((residual - books[level, own]).square().sum(1))
    ties = int(((gaps[0] - gaps[1]).abs() <= tie).sum())
    return {
        "agreement": 1 - (len(rows) - ties) / len(vectors),
        "ties": ties,
        "codes_equal": float((~differs).double().mean()),
    }


def random_vectors(
    num_vectors: int, code_dim: int, codebook_size: int, depth: int, seed: int
) -> tuple[Float[Tensor, "N H"], Float[Tensor, "D V H"]]:
    """Standard normal vectors, and random codebooks of falling size."""
    stream = generator("bench", seed)
    vectors = torch.randn(num_vectors, code_dim, generator=stream)
    scale = 0.3 * 0.95 ** torch.arange(depth)[:, None, None]
    return vectors, scale * torch.randn(depth, codebook_size, code_dim, generator=stream)


def our_encoder(codebooks: Float[Tensor, "D V H"]) -> Encode:
    return lambda vectors: residual_encode(vectors, codebooks).codes


def peer_encoder(codebooks: Float[Tensor, "D V H"]) -> Encode:
    try:
        from vector_quantize_pytorch import ResidualVQ
    except ImportError as error:
        raise MissingExtraError("vector-quantize-pytorch", "bench") from error
    depth, codebook_size, code_dim = codebooks.shape
    with torch.random.fork_rng(devices=[]):
        peer = ResidualVQ(dim=code_dim, num_quantizers=depth, codebook_size=codebook_size).eval()
    for layer, codebook in zip(peer.layers, codebooks, strict=True):
        layer._codebook.embed.data.copy_(codebook[None])

    @torch.no_grad()
    def encode(vectors: Tensor) -> Tensor:
        return peer(vectors[None])[1][0]

    return encode


def encoding(which: str, seed: int, **sizes: int) -> tuple[Callable[[], object], Callable[[], object]]:
    vectors, codebooks = random_vectors(**sizes, seed=seed)
    encode = our_encoder(codebooks) if which == "ours" else peer_encoder(codebooks)
    return lambda: encode(vectors[:WARM_UP_ROWS]), lambda: encode(vectors)


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
