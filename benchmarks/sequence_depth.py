"""Time and network passes of a sequence at several depths, with random weights: neither should grow with the levels.

For example:

    python benchmarks/sequence_depth.py --depths 8 16 32 72 --seconds 10 --out docs/results/sequence-depth.json
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import tyro
from times import medians

from resgen.devices import cast_parameters
from resgen.evaluation.bench.timing import interleaved
from resgen.files import write_json
from resgen.kinds import build, sample
from resgen.modalities import load_recipe
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.types import CodeSpec, SequenceCondition


@dataclass(frozen=True, kw_only=True)
class SequenceDepth:
    """Interleaved repetitions in one process; medians."""

    depths: tuple[int, ...] = (8, 16, 32, 72)
    """Levels."""
    heads: tuple[str, ...] = ("residual", "mixture")
    """Heads of ResGen."""
    seconds: float = 10.0
    """Of speech, at 10.77 positions per second."""
    steps: int = 25
    """Network evaluations, each guided (the paper's number for speech)."""
    width: int = 512
    """Of the transformer, with 12 layers."""
    repetitions: int = 5
    """Of each case."""
    out: Path
    """JSON to write."""

    def run(self) -> None:
        length = round(self.seconds * 10.77)
        cases = [(head, depth) for head in self.heads for depth in self.depths]
        models = {case: self.model(*case) for case in cases}
        runs = {case: partial(self.generate, model, length) for case, model in models.items()}
        passes = {case: run() for case, run in runs.items()}  # warms up, too
        seconds = medians(interleaved(runs, self.repetitions))
        rows = [
            {"head": head, "depth": depth, "passes": passes[head, depth], "seconds": seconds[head, depth]}
            for head, depth in cases
        ]
        for row in rows:
            first = next(other for other in rows if other["head"] == row["head"])
            row["over_first"] = row["seconds"] / first["seconds"]
            print("{head:9} depth {depth:3}  {passes} passes  {seconds:.2f} s  x{over_first:.2f}".format(**row))
        threads = torch.get_num_threads()
        write_json(self.out, {"length": length, "threads": threads, "rows": rows, "torch": torch.__version__})

    def model(self, head: str, depth: int) -> ResGen:
        """Random weights, bfloat16."""
        spec = CodeSpec(depth=depth, codebook_size=1024, code_dim=64, shape=(256,))
        base = load_recipe("spoken_digits")[1].generator
        assert isinstance(base, ResGenConfig)
        config = replace(
            base,
            head=head,
            width=self.width,
            num_layers=12,
            num_heads=self.width // 64,
            mlp_width=4 * self.width,
            condition_width=self.width,
            num_components=1024,
            feature_width=192,
            feature_stride=8,
        )
        torch.manual_seed(0)
        model = build(config, spec).eval().requires_grad_(False)
        assert isinstance(model, ResGen)
        codes = torch.randint(1024, (1, 64, depth))
        model.set_codebooks(torch.randn(depth, 1024, 64), torch.ones(depth), codes)
        return cast_parameters(model, torch.bfloat16)

    def generate(self, model: ResGen, length: int) -> int:
        """One sequence; returns how many network evaluations it took."""
        sequence = SequenceCondition(
            valid=torch.ones(1, length, dtype=torch.bool),
            prompt=torch.zeros(1, length, dtype=torch.bool),
            features=torch.randn(1, 8 * length, 192, generator=torch.Generator().manual_seed(0)),
        )
        sampling = SamplingConfig(num_steps=self.steps, choice_temperature=1.0, guidance_scale=1.0)
        ids = torch.zeros(1, dtype=torch.int64)
        return len(sample(model, ids, seed=0, indices=[0], sampling=sampling, sequence=sequence).steps)


if __name__ == "__main__":
    tyro.cli(SequenceDepth).run()
