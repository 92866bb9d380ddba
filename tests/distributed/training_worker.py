"""A generator's training for the tests of several processes: `training_worker.py OUT [KEY=VALUE ...]` trains in OUT.

With `kill_at=N` the first process kills itself without notice after that many steps.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Bool, Int
from safetensors.torch import save_file
from torch import Tensor

from resgen.errors import ResGenError
from resgen.kinds import AnySampling, GeneratorLossConfig, build
from resgen.models.base import CodeModel
from resgen.models.maskgit import MaskGITConfig
from resgen.models.resgen import ResGenConfig
from resgen.models.rq_transformer import RQTransformerConfig
from resgen.nn.seeding import seeded
from resgen.quantizers import QuantizerConfig, make_quantizer
from resgen.samplers.unmasking import SamplingConfig
from resgen.training.generator_task import Batch, GeneratorTask
from resgen.training.interface import TrainerConfig
from resgen.training.parallel import finalise, initialise
from resgen.training.trainer import Trainer
from resgen.types import CodeSpec

THREADS = Path("/proc/self/task")
SPEC = CodeSpec(shape=(3, 3), depth=3, codebook_size=8, code_dim=4)
CONFIG = TrainerConfig(
    num_steps=6,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=2,
    ema_decay=0.9,
    precision="fp32",
    device="cpu",
    log_every=1,
    validate_every=3,
    sample_every=3,
    checkpoint_every=2,
    loggers=(),
)
SHAPE = {"width": 16, "num_layers": 2, "num_heads": 2, "mlp_width": 32, "condition_width": 16, "num_classes": 3}
MODELS: dict[str, Any] = {
    "mixture": ResGenConfig(num_components=5, **SHAPE),
    "residual": ResGenConfig(head="residual", **SHAPE),
    "maskgit": MaskGITConfig(**SHAPE),
    "rq_transformer": RQTransformerConfig(depth_layers=1, **SHAPE),
}


class Examples:
    """Codes in which each level follows from the class."""

    def __init__(self, count: int, seed: int) -> None:
        stream = torch.Generator().manual_seed(seed)
        self.class_ids = torch.randint(3, (count,), generator=stream)
        noise = torch.randint(2, (count, 9, 3), generator=stream)
        self._codes = (self.class_ids[:, None, None] * 2 + noise + torch.arange(3)) % 8

    def __len__(self) -> int:
        return len(self._codes)

    def codes(self, indices: Int[Tensor, " B"]) -> Int[Tensor, "B L D"]:
        return self._codes[indices]

    def draw(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> tuple[Tensor, Bool[Tensor, "B L"]]:
        return indices, torch.ones(len(indices), 9, dtype=torch.bool)

    def batch(self, samples: Int[Tensor, " B"]) -> Batch:
        return self._codes[samples], self.class_ids[samples], None


class Product:
    """Weights as they are sampled and exported."""

    def to(self, device: torch.device) -> None:
        pass

    def sample(self, path: Path, model: CodeModel, sampling: AnySampling) -> None:
        path.write_bytes(b"sampled" + str(float(next(model.parameters()).sum())).encode())

    def export(self, folder: Path, model: CodeModel, sampling: AnySampling, history: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors"
        )


def make_task(model: str) -> GeneratorTask:
    with seeded("worker", 0):
        quantizer = make_quantizer(QuantizerConfig(depth=3, codebook_size=8), 4)
        with torch.no_grad():
            quantizer.codebooks.copy_(torch.randn(3, 8, 4))
        network = build(MODELS[model], SPEC)
    return GeneratorTask(
        network,
        GeneratorLossConfig(validation_samples=16),
        Examples(40, 1),
        Examples(16, 2),
        quantizer=quantizer,
        product=Product(),
        sampling=SamplingConfig(num_steps=2),
    )


def check_order(task: GeneratorTask) -> None:
    """Fail if the model as a whole is moved to the device before it is divided."""
    moved, shard, to = [], task.shard, task.to

    def noted(device: torch.device) -> None:
        moved.append(device)
        to(device)

    def checked(divide: Any) -> None:
        assert not moved, "the device holds the whole model"
        shard(divide)

    task.to, task.shard = noted, checked  # type: ignore[method-assign]


def train(out: str, *settings: str) -> int:
    values = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in settings)}
    task = make_task(values.pop("model", "mixture"))
    kill_at, resume = values.pop("kill_at", None), values.pop("resume", False)
    config = replace(CONFIG, **values)
    reduce = initialise()
    if kill_at is not None and reduce.rank == 0:

        def die(step: int, *args: Any) -> None:
            if step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        task.after_step = die  # type: ignore[attr-defined]
    if config.shard:
        check_order(task)
    try:
        Trainer(task, config, out, resume=resume, reduce=reduce).run()
    except ResGenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def main(*arguments: str) -> int:
    status = train(*arguments)
    finalise()
    left = [name for name in (task.read_text().strip() for task in THREADS.glob("*/comm")) if "gloo" in name]
    assert not left, f"threads of the group would outlive the interpreter: {left}"
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
