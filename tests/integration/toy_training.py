"""A small task for the tests of training: two groups, a buffer updated without gradients, data in memory.

Run as a program it trains in a folder: `python toy_training.py OUT [--resume] [--steps N] [--slow SECONDS]`.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

from resgen.checkpoints import Component, module_tensors, save_folder
from resgen.errors import ResGenError
from resgen.training import Interrupted, Trainer, TrainerConfig


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.main = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
        self.critic = nn.Linear(6, 1)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        self.register_buffer("codebook", torch.zeros(6))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))


class ToyTask:
    """Denoise six numbers; a critic tells clean from denoised ones."""

    name = "toy"

    def __init__(self, *, nan_at: int | None = None, slow: float = 0.0):
        self.module = Net()
        self.ema_module = self.module.main
        self.data = torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
        self.num_samples = len(self.data)
        self.nan_at, self.slow = nan_at, slow
        self.started = 0
        self.on_loss = lambda step, micro: None
        self.exports = []

    def optimizer_groups(self):
        return {"main": list(self.module.main.parameters()), "critic": list(self.module.critic.parameters())}

    def to(self, device):
        self.module.to(device)
        return self

    def before_start(self, generator, reduce):
        self.started += 1
        with torch.no_grad():
            self.module.codebook.copy_(torch.randn(6, generator=generator))

    def losses(self, indices, parts, step, generator, reduce):
        clean = self.data[indices]
        noisy = clean + torch.randn(clean.shape, generator=generator)
        losses = []
        for rows in parts:
            outputs = []
            losses.append(("main", functools.partial(self.main, clean, noisy, rows, step, outputs)))
            losses.append(("critic", functools.partial(self.critic, clean, rows, outputs)))
        return losses

    def main(self, clean, noisy, rows, step, outputs):
        self.on_loss(step, rows.start)
        time.sleep(self.slow)
        out, scale = self.module.main(noisy[rows]) + self.module.codebook, (rows.stop - rows.start) / len(clean)
        outputs.append(out.detach())
        worth = float("nan") if step == self.nan_at else 1.0
        loss = worth * (out - clean[rows]).square().mean() - 0.01 * self.module.critic(out).mean()
        return scale * loss, {"rms": scale * out.detach().square().mean().sqrt()}

    def critic(self, clean, rows, outputs):
        difference = self.module.critic(outputs.pop()) - self.module.critic(clean[rows])
        return difference.square().sum() / len(clean), {}

    def after_step(self, step, generator, reduce):
        with torch.no_grad():
            self.module.codebook.mul_(0.9).add_(0.01 * torch.randn(6, generator=generator))
            self.module.calls.add_(1)

    def validate(self, module, reduce):
        return {"val_loss": float((module(self.data) - self.data).square().mean())}

    def sample(self, path):
        Path(path).write_bytes(b"picture")

    def export(self, folder, history):
        self.exports.append(history)
        save_folder(
            folder,
            kind="tokenizer",
            components={"tokenizer": Component(type="Toy", config={}, tensors=module_tensors(self.module))},
            extra={"history": history},
        )


def toy_config(**changes) -> TrainerConfig:
    values = {
        "num_steps": 30,
        "batch_size": 8,
        "accumulate": 2,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "warmup_steps": 3,
        "decay_fraction": 0.5,
        "ema_decay": 0.9,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 1,
        "loggers": (),
        "validate_every": 10,
        "sample_every": 0,
        "checkpoint_every": 7,
    }
    return TrainerConfig(**(values | changes))


def metrics(out: Path) -> list[dict]:
    """The lines of `metrics.jsonl` without what depends on the clock."""
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "samples_per_second")} for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--log-every", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = toy_config(num_steps=args.steps, log_every=args.log_every)
    try:
        Trainer(ToyTask(slow=args.slow), config, args.out, resume=args.resume).run()
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 130
    except ResGenError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
