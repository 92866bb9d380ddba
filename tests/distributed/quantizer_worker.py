"""One of two processes: learns every case on its own rows and writes the resulting codebooks.

Run as `quantizer_worker.py OUT` with the variables of `torchrun` in the environment; `test_quantizers.py` runs `learn`
itself, in one process on all rows, and compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from resgen.quantizers import Quantizer, QuantizerConfig, make_quantizer
from resgen.training import parallel
from resgen.types import Reduce

KINDS = ("probabilistic", "ema", "rfsq")
# How many of the 60 rows of the k-means start and of each update the first process holds; the other holds the rest.
SPLITS = {"equal": (30, 30, 30, 30), "unequal": (7, 45, 13, 59), "one empty": (60, 0, 60, 0), "mixed": (0, 60, 22, 60)}
ROWS = 60


def learn(kind: str, split: str, reduce: Reduce) -> dict[str, Tensor]:
    """k-means start (where the kind has one) and three updates with padding and restarts; returns the state."""
    config = QuantizerConfig(
        kind=kind,  # type: ignore[arg-type]
        depth=3,
        codebook_size=12,
        momentum=0.8,
        variance_momentum=0.8,
        dead_threshold=0.5,
    )
    quantizer: Quantizer = make_quantizer(config, 4)
    stream = torch.Generator().manual_seed(11)  # the same in every process
    result, restarted = {}, torch.zeros(3)
    for step, cut in enumerate(SPLITS[split]):
        latents = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(step)) * 2 + 0.5
        valid = torch.rand(ROWS, generator=torch.Generator().manual_seed(100 + step)) < 0.9
        if reduce.world_size > 1:
            mine = slice(0, cut) if reduce.rank == 0 else slice(cut, ROWS)
            latents, valid = latents[mine], valid[mine]
        if step == 0:
            quantizer.initialize(latents, stream, reduce)
            result = {f"start.{name}": value.clone() for name, value in quantizer.state_dict().items()}
            continue
        statistics = quantizer.update(quantizer.quantize(latents, valid), stream, reduce)
        restarted += statistics.get("restarted", 0)
        result[f"variance{step}"] = statistics["variance"]
    before = quantizer.codebooks.clone()
    nothing = torch.zeros(0, 4)
    quantizer.update(quantizer.quantize(nothing), stream, reduce)
    quantizer.initialize(nothing, stream, reduce)
    result["unchanged"] = torch.tensor(torch.equal(before, quantizer.codebooks))
    return result | quantizer.state_dict() | {"restarted": restarted}


def main(out: Path) -> None:
    """Every case, one after the other, in the group of processes."""
    reduce = parallel.initialise()
    tensors = {
        f"{kind}/{split}/{name}": value.contiguous().clone()
        for kind in KINDS
        for split in SPLITS
        for name, value in learn(kind, split, reduce).items()
    }
    save_file(tensors, out / f"rank{reduce.rank}.safetensors")
    parallel.finalise()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
