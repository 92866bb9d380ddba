"""The start from data, a training step and a sampling run of every kind of generator on fake tensors of an accelerator,
and the same of tokenizers and vocoder, but for the sampling.

`python tests/fake_accelerator.py [KIND ...]` prints one JSON document: by case, null or what went wrong. A tensor that
is made on the wrong device meets one of the right device and fails as on the accelerator itself, but none is needed.

Where there is a GPU the tensors say that they are on `cuda`. Without one PyTorch can neither index nor differentiate
such tensors, even if it is built with CUDA; a device of its own, `gpu`, then stands for the accelerator. It is known to
the whole process, so this is a program and no fixture.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration

from kind_parts import matched_config
from resgen import kinds
from resgen.devices import cast_parameters
from resgen.kinds import KINDS, GeneratorLossConfig, make_objective
from resgen.kinds.objective import targets_of
from resgen.models.base import CodeModel
from resgen.models.resgen import ResGenConfig
from resgen.training.tracing import KnownValues
from resgen.types import CodeSpec, SequenceCondition
from steps import losses
from task_parts import BATCH, MAKERS

LENGTH, SAMPLES = 6, 2
PARTS = ("image tokenizer", "mel tokenizer", "waveform tokenizer", "vocoder")
"""Tasks besides the generators. Not the text model's: its alignment runs on the CPU in NumPy, which knows no fake
tensors."""


class OwnGenerator(TorchFunctionMode):
    """Refuses to draw with a generator of another device, as PyTorch does for real tensors but not for fake ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn, source = func(*args, **(kwargs or {})), (kwargs or {}).get("generator")
        if source is not None and isinstance(drawn, Tensor) and drawn.device.type != source.device.type:
            raise RuntimeError(f"{func.__name__} fills a tensor on {drawn.device} from a generator on {source.device}")
        return drawn


def accelerator() -> torch.device:
    """The device of the fake tensors."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    module = backend_registration._DummyBackendModule()
    type(module).get_amp_supported_dtype = lambda self: [torch.bfloat16]  # so that autocast can be switched off
    backend_registration._setup_privateuseone_for_python_backend("gpu", backend_module=module)
    return torch.device("gpu")


def small_model(kind: str, sequences: bool) -> CodeModel:
    """Random weights on the CPU."""
    spec = CodeSpec(depth=3, codebook_size=16, code_dim=8, shape=(LENGTH,) if sequences else (2, 3))
    config = ResGenConfig(
        width=32, num_layers=2, num_heads=2, mlp_width=64, condition_width=32, num_components=8, num_classes=5
    )
    if sequences:
        config = replace(config, feature_width=4, feature_stride=2, mean_rank=4, metric="triangular")
    torch.manual_seed(0)
    model = kinds.build(matched_config(config, spec, kind), spec)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    model.set_codebooks(torch.randn(3, 16, 8), torch.ones(3), torch.randint(16, (8, LENGTH, 3)))
    return model


def condition(sequences: bool) -> SequenceCondition | None:
    """Of two utterances, the second shorter and the first with a prompt."""
    if not sequences:
        return None
    return SequenceCondition.of([LENGTH, LENGTH - 2], [2, 0], [torch.ones(2 * n, 4) for n in (LENGTH, LENGTH - 2)])


def move(model: nn.Module, known: KnownValues, device: torch.device) -> None:
    """Fake tensors on a device, whose values are known, in place of parameters and buffers."""
    for part in model.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(known.place(parameter, device))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = known.place(buffer, device)


def start(model: CodeModel, known: KnownValues, device: torch.device, sequences: bool) -> None:
    """What is made of the data before the first step."""
    codes = known.place(torch.randint(16, (8, LENGTH, 3)), device)
    make_objective(model, GeneratorLossConfig()).start(codes, torch.Generator().manual_seed(0))
    check(dict(model.named_parameters()), device)


def training_step(model: CodeModel, known: KnownValues, device: torch.device, sequences: bool) -> None:
    """Loss, gradients and an optimizer's step."""
    objective = make_objective(model, GeneratorLossConfig(level_decay=0.9))
    codes = known.place(torch.randint(16, (SAMPLES, LENGTH, 3)), device)
    class_ids = known.place(torch.zeros(SAMPLES, dtype=torch.int64), device)
    sequence = condition(sequences)
    sequence = None if sequence is None else sequence.to(device)
    visible = objective.draw(targets_of(codes, sequence), torch.Generator().manual_seed(0))
    loss, metrics = objective.loss((codes, class_ids, sequence), visible)
    loss.backward()
    check({"loss": loss, **metrics, **{name: p.grad for name, p in model.named_parameters()}}, device)
    torch.optim.AdamW(model.parameters()).step()


def sampling(model: CodeModel, known: KnownValues, device: torch.device, sequences: bool) -> None:
    """Codes, with guidance."""
    settings = kinds.get_kind(kinds.kind_of(model.config).name).sampling()
    settings = replace(settings, guidance_scale=1.0, **({"num_steps": 3} if hasattr(settings, "num_steps") else {}))
    sequence = condition(sequences)
    start = None
    if sequence is not None:
        start = (torch.zeros(SAMPLES, LENGTH, 3, dtype=torch.int64), sequence.prompt * 3)
    samples = kinds.sample(
        model,
        known.place(torch.tensor([0, 3]), device),
        seed=0,
        indices=range(SAMPLES),
        sampling=settings,
        start=start,
        sequence=sequence,
    )
    check({"codes": samples.codes}, device)


def task_start(task: Any) -> None:
    """What a task makes of its data before the first step."""
    if hasattr(task, "before_start"):
        task.before_start(torch.Generator().manual_seed(0))


def task_step(task: Any) -> None:
    """Losses and gradients of all groups."""
    groups = task.optimizer_groups()
    for group, loss, _ in losses(task, torch.arange(BATCH), 3, torch.Generator().manual_seed(0)):
        loss.backward(inputs=groups[group])


def check(tensors: dict[str, Tensor | None], device: torch.device) -> None:
    """Refuse what is on another device."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device.type != device.type:
            raise RuntimeError(f"{name} is on {tensor.device}, not on {device.type}")


def main() -> None:
    """Every case."""
    device = accelerator()
    steps: dict[str, Callable[..., None]] = {"start": start, "training": training_step, "sampling": sampling}
    outcome: dict[str, str | None] = {"device": device.type}
    with FakeTensorMode(), KnownValues() as known:
        try:
            known.place(torch.ones(3), device) + torch.ones(3)
            outcome["a tensor on the CPU"] = None
        except RuntimeError as error:
            outcome["a tensor on the CPU"] = type(error).__name__
    for kind in sys.argv[1:] or KINDS:
        # Sequences differ from grids in what kinds share; VALL-E is of sequences, and made of two other kinds.
        for sequences in {"resgen": (False, True), "valle": (True,)}.get(kind, (False,)):
            for title, run in steps.items():
                name = f"{title} {kind}{' sequences' if sequences else ''}"
                try:
                    model = small_model(kind, sequences)
                    if run is sampling:
                        # As on an accelerator; of products grouped by component PyTorch knows the shapes in no other.
                        model = cast_parameters(model, torch.bfloat16).eval().requires_grad_(False)
                    with OwnGenerator(), FakeTensorMode(allow_non_fake_inputs=True), KnownValues() as known:
                        move(model, known, device)
                        run(model, known, device, sequences)
                    outcome[name] = None
                except Exception:
                    outcome[name] = "".join(traceback.format_exc(limit=-4))
    for part in () if sys.argv[1:] else PARTS:
        for title, work in (("start", task_start), ("training", task_step)):
            task = MAKERS[part](Path())
            try:
                with OwnGenerator(), FakeTensorMode(allow_non_fake_inputs=True), KnownValues() as known:
                    for module in [value for value in vars(task).values() if isinstance(value, nn.Module)]:
                        move(module, known, device)
                    work(task)
                outcome[f"{title} {part}"] = None
            except Exception:
                outcome[f"{title} {part}"] = "".join(traceback.format_exc(limit=-4))
    print(json.dumps(outcome), flush=True)
    os._exit(0)  # the autograd threads of a device of its own may outlive the interpreter, which then aborts


if __name__ == "__main__":
    main()
