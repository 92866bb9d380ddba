"""Sampling, training and the mixture loss beside the least that the same work could take: bare matrix products.

python benchmarks/floors.py [--json] [--shape base] [--out floors.json]

All that is compared runs in one process, in turns; seconds are medians over the repetitions, ratios medians of the
ratios within a repetition. Weights and codes are random: the work hardly depends on them. On two cores that takes some
minutes, in which nothing else should run.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import tyro
from jaxtyping import Int
from mixture_memory import mixture_work
from torch import Tensor
from torch.nn import functional

from resgen.cli.common import check_out_file, message
from resgen.cli.main import guard
from resgen.data.codes.cache import CachePlan
from resgen.data.codes.encoding import write_codes
from resgen.devices import choose_dtype, dtype_name
from resgen.errors import ConfigError
from resgen.evaluation.bench.cases import SHAPES, Case, preset, random_network
from resgen.evaluation.bench.memory import extra_peak_bytes, largest_batch
from resgen.evaluation.bench.products import FIRST_OPERAND, Pool, Recorder, record_products
from resgen.evaluation.bench.speed import GIGABYTE, EnoughError, sampling_work
from resgen.evaluation.bench.timing import CPU, interleaved, machine_of, ratio, timed
from resgen.files import write_json, write_text
from resgen.kinds import GeneratorLossConfig, build
from resgen.models.heads import MixtureHead
from resgen.models.resgen import ResGenConfig
from resgen.ops.random import generator
from resgen.quantizers import QuantizerConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from resgen.training.classes import ClassExamples, ClassProduct
from resgen.training.generator_task import GeneratorTask
from resgen.training.image.product import save_sheet
from resgen.training.interface import TrainerConfig
from resgen.training.trainer import Trainer
from resgen.types import CodeSpec

ENCODED = 4096
WARM_UP_STEPS = 2
MEMORY_KINDS = ("resgen", "direct", "rq_transformer")
TARGETS = {
    "sampling over its products": 1.35,
    "sampling over its network passes": 1.05,
    "depth 16 over depth 8": 1.03,
    "mixture loss over its products": 1.5,
    "training step over its products": 1 / 0.7,
    "reading codes over a training step": 0.02,
}
"""The most that each ratio should be."""


def main(
    shape: str = "base",
    batch_size: int = 64,
    num_steps: int = 4,
    depths: tuple[int, int] = (8, 16),
    training_batch: int = 64,
    mixture_rows: int = 4096,
    repetitions: int = 3,
    compiled: bool = False,
    memory: bool = True,
    memory_gb: float = 8.0,
    dtype: str = "auto",
    seed: int = 0,
    out: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Every measurement with its floor, on the CPU; tables, or one JSON document, to standard output.

    The document has `rows` of times (`what`, `setting`, `seconds`, `floor_seconds`, `ratio` with median, min and max,
    and `target` where there is one), `memory`, and `settings`.

    Args:
        shape: networks and codes: paper, base, small or tiny.
        batch_size: samples at a time.
        num_steps: evaluations of a sampling run; without guidance, with the linear schedule, so that none is empty.
        depths: D of the sampling runs, and the one they are compared with.
        training_batch: samples of a training step.
        mixture_rows: positions of the mixture loss.
        repetitions: timed runs of everything, after a first one that is not counted.
        compiled: measure training with compiled blocks, too, which takes a C compiler.
        memory: measure peak memory, too; every figure takes a process of its own.
        memory_gb: what the largest batch is to fit into, in 10^9 bytes.
        dtype: float32, bfloat16 or auto.
        seed: of weights, codes and noise.
        out: JSON file for the report; its tables go beside it as Markdown.
        as_json: write JSON.
    """
    if out is not None:
        check_out_file(out, (".json",))
    counts = {"batch_size": batch_size, "num_steps": num_steps, "training_batch": training_batch}
    for name, value in {**counts, "mixture_rows": mixture_rows, "repetitions": repetitions}.items():
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    data_type = choose_dtype(dtype, CPU)
    case = Case(
        shape=shape,
        kind="resgen",
        iterations=None,
        depth=depths[0],
        batch_size=batch_size,
        num_steps=num_steps,
        guidance=False,
        dtype=dtype_name(data_type),
        seed=seed,
    )
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "sampling": lambda: _sampling(case, depths[1], repetitions),
        "mixture loss": lambda: _mixture(case, mixture_rows, repetitions),
        "training": lambda: _training(case, training_batch, repetitions),
    }
    if compiled:
        parts["compiled training"] = lambda: _training(case, training_batch, repetitions, compiled=True)
    rows: list[dict[str, Any]] = []
    for title, part in parts.items():
        message(title)
        rows += part()
    peaks: list[dict[str, Any]] = []
    if memory:
        message("memory")
        peaks = [*_memory(case, memory_gb), _mixture_memory(case, mixture_rows)]
    result = {
        "rows": rows,
        "memory": peaks,
        "settings": {
            "shape": shape,
            **counts,
            "mixture_rows": mixture_rows,
            "depths": list(depths),
            "repetitions": repetitions,
            "compiled": compiled,
            "memory_gb": memory_gb if memory else None,
            "seed": seed,
            **machine_of(CPU, data_type),
        },
    }
    text = report_markdown(result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
        write_text(out.with_suffix(".md"), text + "\n")
    print(json.dumps(result) if as_json else text)


def _sampling(case: Case, deeper: int, repetitions: int) -> list[dict[str, Any]]:
    """The mixture head and the residual head at the case's depth, and the mixture head at another."""
    cases = [case, dataclasses.replace(case, kind="residual"), dataclasses.replace(case, depth=deeper)]
    pool: Pool = {}
    runs: dict[str, Callable[[], object]] = {}
    for number, one in enumerate(cases):
        network = random_network(one.config, one.spec, CPU, choose_dtype(one.dtype, CPU), one.seed)
        runs[f"{number} sampling"] = partial(one.sample, network)
        with _network_inputs(network) as inputs:
            runs[f"{number} products"] = record_products(network, runs[f"{number} sampling"], pool)
        runs[f"{number} passes"] = partial(_passes, network, inputs)
        runs[f"{number} passes"]()
    times = interleaved(runs, repetitions)
    rows = []
    for number, one in enumerate(cases):
        for floor, name in (("products", "products"), ("passes", "network passes")):
            what, setting = f"sampling over its {name}", f"{one.kind}, depth {one.depth}, batch {one.batch_size}"
            rows.append(_row(what, setting, times[f"{number} sampling"], times[f"{number} {floor}"]))
    title = f"depth {deeper} over depth {case.depth}"
    rows.append(_row(title, f"mixture, batch {case.batch_size}", times["2 sampling"], times["0 sampling"]))
    return rows


@contextmanager
def _network_inputs(network: Any) -> Iterator[list[tuple[Any, ...]]]:
    """What the transformer is given within the block."""
    inputs: list[tuple[Any, ...]] = []

    def keep(_module: Any, arguments: tuple[Any, ...]) -> None:
        inputs.append(tuple(value.clone() if isinstance(value, Tensor) else value for value in arguments))

    handle = network.transformer.register_forward_pre_hook(keep)
    try:
        yield inputs
    finally:
        handle.remove()


@torch.inference_mode()
def _passes(network: Any, inputs: Sequence[tuple[Any, ...]]) -> None:
    for arguments in inputs:
        network.transformer(*arguments)


def _mixture(case: Case, rows: int, repetitions: int) -> list[dict[str, Any]]:
    """`mixture_loss`, forward and backward pass, over the products of the same rows in the same pieces."""
    sizes = _mixture_sizes(case)
    warm_up, work = mixture_work(version="chunked", rows=rows, **sizes)
    warm_up()
    with torch.device("meta"):
        head = MixtureHead(**{name: sizes[name] for name in ("width", "num_components", "code_dim")})
    stream, low = generator("bench", case.seed), choose_dtype(case.dtype, CPU)
    operands = []
    for layer, dtype in ((head.means, low), (head.affine, torch.float32)):
        weight = torch.randn(layer.weight.shape, generator=stream).to(dtype)
        operands.append((weight, torch.randn(min(rows, head.rows_per_chunk), len(weight), generator=stream).to(dtype)))
    hidden = torch.randn(rows, head.width, generator=stream)

    def products() -> None:
        for weight, slope in operands:
            for part in hidden.to(weight.dtype).split(len(slope)):
                functional.linear(part, weight)
                torch.matmul(slope[: len(part)], weight)
                torch.matmul(slope[: len(part)].T, part)

    products()
    times = interleaved({"loss": work, "products": products}, repetitions)
    setting = f"{rows} positions, {sizes['num_components']} components"
    return [_row("mixture loss over its products", setting, times["loss"], times["products"])]


def _mixture_sizes(case: Case) -> dict[str, Any]:
    config = case.config
    assert isinstance(config, ResGenConfig)
    return {
        "num_components": config.num_components,
        "code_dim": case.spec.code_dim,
        "width": config.width,
        "dtype": case.dtype,
        "seed": case.seed,
    }


class _Examples(ClassExamples):
    """Examples that note how long it takes to read them."""

    seconds = 0.0

    def batch(self, samples: Int[Tensor, " B"]) -> Any:
        result: list[Any] = []
        self.seconds = timed(lambda: result.append(ClassExamples.batch(self, samples)))
        return result[0]


class _TimedTrainer(Trainer):
    """A trainer whose steps are timed, each followed by its bare products, and which then gives up."""

    repetitions: int
    examples: _Examples

    def _train_step(self) -> float | None:
        if not hasattr(self, "times"):
            self.times: dict[str, list[float]] = {"step": [], "products": [], "reading": []}
            # A compiler would not let the products be seen.
            with torch.compiler.set_stance("force_eager"):
                self.products = record_products(self.task.module, super()._train_step, recorder=TrainingRecorder)
            for _ in range(WARM_UP_STEPS):
                super()._train_step()
        if len(self.times["step"]) == self.repetitions:
            raise EnoughError
        self.times["step"].append(timed(super()._train_step))
        self.times["reading"].append(self.examples.seconds)
        self.times["products"].append(timed(self.products))
        return None


class TrainingRecorder(Recorder):
    """Every product three times: forward, and for the gradient of either operand.

    `mm` is left out: losses that take their gradients in the forward pass take them by it, and they are counted with
    the product that they belong to.
    """

    operands = {name: first for name, first in FIRST_OPERAND.items() if name != "mm"}
    times = 3

    def note(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        linear = function is functional.linear
        left, right = (self._copy(value, result.dtype) for value in args[:2])
        slope = self._copy(result, result.dtype)
        if linear:
            left, slope, right = left.flatten(0, -2), slope.flatten(0, -2), right.T
        forward = partial(functional.linear, left, right.T) if linear else partial(torch.matmul, left, right)
        to_left = partial(torch.matmul, slope, right.mT)
        # The weight of a linear layer is stored the other way round, and so is its gradient.
        to_right = partial(torch.matmul, slope.mT, left) if linear else partial(torch.matmul, left.mT, slope)
        self.products.calls += [forward, to_left, to_right]

    def _copy(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        value = value.detach()
        return value.to(dtype, copy=True) if self.is_parameter(value) else self.stand_in(value.to(dtype))


def _training(case: Case, batch_size: int, repetitions: int, *, compiled: bool = False) -> list[dict[str, Any]]:
    """Whole steps of the trainer on a cache of codes: reading, loss, gradients, clipping, AdamW, averages."""
    spec, shape = case.spec, SHAPES[case.shape]
    config = dataclasses.replace(preset("residual", shape.preset), num_classes=shape.num_classes)
    tokenizer = ImageTokenizer(
        ImageTokenizerConfig(
            image_size=2 * spec.shape[0],
            channels=1,
            patch_size=2,
            width=8,
            multipliers=(1,),
            code_dim=spec.code_dim,
            quantizer=QuantizerConfig(depth=spec.depth, codebook_size=spec.codebook_size),
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        examples = _Examples(_random_codes(Path(folder) / "codes", spec, case.seed), config.num_classes)
        task = GeneratorTask(
            build(config, spec),
            GeneratorLossConfig(),
            examples,
            examples,
            quantizer=tokenizer.quantizer,
            product=ClassProduct(tokenizer, examples.cache.plan.class_names, save_sheet),
            sampling=SamplingConfig(),
        )
        settings = TrainerConfig(
            batch_size=batch_size,
            precision="bf16" if case.dtype == "bfloat16" else "fp32",
            device="cpu",
            validate_every=0,
            sample_every=0,
            checkpoint_every=0,
            loggers=(),
            compile=compiled,
        )
        trainer = _TimedTrainer(task, settings, Path(folder) / "run")
        trainer.repetitions, trainer.examples = repetitions, examples
        with suppress(EnoughError):
            trainer.run()
    times, setting = trainer.times, f"resgen, batch {batch_size}{', compiled' if compiled else ''}"
    return [
        _row("training step over its products", setting, times["step"], times["products"]),
        _row("reading codes over a training step", setting, times["reading"], times["step"]),
    ]


def _random_codes(folder: Path, spec: CodeSpec, seed: int) -> Any:
    shape = (ENCODED, spec.num_positions, spec.depth)
    codes = torch.randint(spec.codebook_size, shape, generator=generator("bench", seed))
    plan = CachePlan(spec=spec, num_samples=ENCODED, columns={"labels": "number"}, made_from={}, shard_samples=ENCODED)
    return write_codes(folder, plan, codes, {"labels": [0] * ENCODED})


def _memory(case: Case, memory_gb: float) -> list[dict[str, Any]]:
    """Peak memory of sampling and the largest batch, beside the counterparts that predict codes."""
    rows = []
    for kind in MEMORY_KINDS:
        points = []
        for batch_size in (max(1, case.batch_size // 4), case.batch_size + 1):
            one = dataclasses.replace(case, kind=kind, batch_size=batch_size)
            points.append((batch_size, extra_peak_bytes(sampling_work, **dataclasses.asdict(one))))
        with torch.device("meta"):
            network = build(one.config, one.spec)
        size = choose_dtype(case.dtype, CPU).itemsize
        weights = size * sum(parameter.numel() for parameter in network.parameters())
        weights += sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
        rows.append({"what": f"sampling, {kind}", **largest_batch(points, weights, memory_gb * GIGABYTE)})
        rows[-1] |= {"peak_bytes": points[-1][1] + weights, "weight_bytes": weights}
    return rows


def _mixture_memory(case: Case, rows: int) -> dict[str, Any]:
    """By how much the peak of the loss grows per position, beside the K x H means of one."""
    sizes = _mixture_sizes(case)
    counts = (max(1, rows // 2), max(2, rows))
    peaks = [extra_peak_bytes(mixture_work, version="chunked", rows=count, **sizes) for count in counts]
    itemsize = choose_dtype(case.dtype, CPU).itemsize
    return {
        "what": "mixture loss",
        "peak_bytes": peaks[-1],
        "bytes_per_position": (peaks[1] - peaks[0]) / (counts[1] - counts[0]),
        "bytes_of_a_positions_means": itemsize * sizes["num_components"] * sizes["code_dim"],
    }


def _row(what: str, setting: str, seconds: Sequence[float], floor: Sequence[float]) -> dict[str, Any]:
    return {
        "what": what,
        "setting": setting,
        "seconds": median(seconds),
        "floor_seconds": median(floor),
        "ratio": ratio(seconds, floor),
        "target": TARGETS.get(what),
    }


def report_markdown(result: Mapping[str, Any]) -> str:
    """The report as Markdown tables."""
    lines = ["| what | setting | seconds | floor | ratio | at most |", "|---|---|---|---|---|---|"]
    for row in result["rows"]:
        ratios, target = row["ratio"], row["target"]
        spread = f"{ratios['median']:.3g} ({ratios['min']:.3g} to {ratios['max']:.3g})"
        most = "" if target is None else f"{target:.3g}"
        times = f"{row['seconds']:.4g} | {row['floor_seconds']:.4g}"
        lines.append(f"| {row['what']} | {row['setting']} | {times} | {spread} | {most} |")
    sampling = [row for row in result["memory"] if "largest_batch" in row]
    if sampling:
        gigabytes = result["settings"]["memory_gb"]
        lines += [
            "",
            f"| memory | MB in all | kB per sample | largest batch in {gigabytes:g} GB |",
            "|---|---|---|---|",
        ]
    for row in sampling:
        most = row["largest_batch"] or "?"
        lines.append(f"| {row['what']} | {row['peak_bytes'] / 1e6:.0f} | {row['bytes_per_image'] / 1e3:.0f} | {most} |")
    for row in result["memory"]:
        if "bytes_per_position" in row:
            grows, means = row["bytes_per_position"] / 1e3, row["bytes_of_a_positions_means"] / 1e3
            lines += ["", f"{row['what']}: {row['peak_bytes'] / 1e6:.0f} MB at most, {grows:.3g} kB per position more"]
            lines[-1] += f" (the means of a position are {means:.3g} kB)"
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    return "\n".join([*lines, "", settings])


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
