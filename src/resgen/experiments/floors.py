"""Sampling, training and the mixture loss beside the least that the same work could take: bare matrix products.

All that is compared runs in one process, in turns; seconds are medians over the repetitions, ratios medians of the
ratios within a repetition. Weights and codes are random: the work hardly depends on them.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from resgen.data.codes.pictures import open_codes, write_codes
from resgen.devices import choose_device, choose_dtype
from resgen.errors import ConfigError
from resgen.evaluation.bench import interleaved, machine_of, mixture_work
from resgen.evaluation.memory import extra_peak_bytes
from resgen.evaluation.products import BareProducts, Pool, record_products
from resgen.evaluation.speed import GIGABYTE, Advance, EnoughError, largest_batch, memory_work
from resgen.evaluation.speed_cases import SHAPES, Case, preset, random_network
from resgen.kinds import build
from resgen.models.heads import MixtureHead
from resgen.models.resgen import ResGenConfig
from resgen.ops.random import generator
from resgen.quantizers import QuantizerConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from resgen.training.generator_task import GeneratorLossConfig, GeneratorTask
from resgen.training.image.product import ClassExamples, ImageProduct
from resgen.training.interface import TrainerConfig
from resgen.training.trainer import Trainer
from resgen.types import CodeSpec

CPU = torch.device("cpu")
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


def bench_all(
    *,
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
    report_progress: Advance = lambda done, total, title: None,
) -> dict[str, Any]:
    """Every measurement with its floor, on the CPU.

    Args:
        shape: networks and codes, a key of `SHAPES`.
        batch_size: samples at a time.
        num_steps: evaluations of a sampling run; without guidance, with the linear schedule, so that none is empty.
        depths: D of the sampling runs, and the one they are compared with.
        training_batch: samples of a training step.
        mixture_rows: positions of the mixture loss.
        repetitions: timed runs of everything, after a first one that is not counted.
        compiled: measure training with compiled blocks, too, which takes a C compiler.
        memory: measure peak memory, too; every figure takes a process of its own.
        memory_gb: what the largest batch is to fit into, in 10^9 bytes.
        dtype: `float32`, `bfloat16` or `auto`.
        seed: of weights, codes and noise.
        report_progress: called with (done, total, title).

    Returns:
        `rows` of times (`what`, `setting`, `seconds`, `floor_seconds`, `ratio` with median, min and max, and `target`
        where there is one), `memory`, and `settings`.

    Raises:
        ConfigError: a number out of range.
    """
    counts = {"batch_size": batch_size, "num_steps": num_steps, "training_batch": training_batch}
    for name, value in {**counts, "mixture_rows": mixture_rows, "repetitions": repetitions}.items():
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    chosen = str(choose_dtype(dtype, choose_device("cpu"))).removeprefix("torch.")
    case = Case(
        shape=shape,
        kind="resgen",
        iterations=None,
        depth=depths[0],
        batch_size=batch_size,
        num_steps=num_steps,
        guidance=False,
        dtype=chosen,
        seed=seed,
    )
    parts: list[tuple[str, Callable[[], list[dict[str, Any]]]]] = [
        ("sampling", lambda: _sampling(case, depths[1], repetitions)),
        ("mixture loss", lambda: _mixture(case, mixture_rows, repetitions)),
        ("training", lambda: _training(case, training_batch, repetitions)),
    ]
    if compiled:
        parts.append(("compiled training", lambda: _training(case, training_batch, repetitions, compiled=True)))
    rows: list[dict[str, Any]] = []
    for done, (title, part) in enumerate(parts):
        report_progress(done, len(parts) + memory, title)
        rows += part()
    found: list[dict[str, Any]] = []
    if memory:
        report_progress(len(parts), len(parts) + 1, "memory")
        found = [*_memory(case, memory_gb), _mixture_memory(case, mixture_rows)]
    return {
        "rows": rows,
        "memory": found,
        "settings": {
            "shape": shape,
            **counts,
            "mixture_rows": mixture_rows,
            "depths": list(depths),
            "repetitions": repetitions,
            "compiled": compiled,
            "memory_gb": memory_gb if memory else None,
            "seed": seed,
            **machine_of(CPU, choose_dtype(chosen, CPU)),
        },
    }


def _sampling(case: Case, deeper: int, repetitions: int) -> list[dict[str, Any]]:
    """The mixture head and the residual head at the case's depth, and the mixture head at another."""
    cases = [case, dataclasses.replace(case, kind="residual"), dataclasses.replace(case, depth=deeper)]
    pool: Pool = {}
    runs: dict[str, Callable[[], object]] = {}
    for number, one in enumerate(cases):
        network = random_network(one.config, one.spec, CPU, choose_dtype(one.dtype, CPU), one.seed)
        runs[f"{number} sampling"] = lambda one=one, network=network: one.sample(network)  # type: ignore[misc]
        with _network_inputs(network) as inputs:
            runs[f"{number} products"] = record_products(network, runs[f"{number} sampling"], pool)
        runs[f"{number} passes"] = lambda n=network, i=inputs: _passes(n, i)  # type: ignore[misc]
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
    seen: list[tuple[Any, ...]] = []

    def keep(_module: Any, arguments: tuple[Any, ...]) -> None:
        seen.append(tuple(value.clone() if isinstance(value, Tensor) else value for value in arguments))

    handle = network.transformer.register_forward_pre_hook(keep)
    try:
        yield seen
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

    def batch(self, indices: Int[Tensor, " B"], generator: torch.Generator) -> Any:
        begin = time.perf_counter()
        result = super().batch(indices, generator)
        self.seconds = time.perf_counter() - begin
        return result


class _TimedTask(GeneratorTask):
    """A task whose steps are timed from loss to loss, each followed by its bare products, and which then gives up."""

    def __init__(self, *arguments: Any, repetitions: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.repetitions, self.warm_up, self.begin = repetitions, WARM_UP_STEPS, 0.0
        self.products = BareProducts()
        self.times: dict[str, list[float]] = {"step": [], "products": [], "reading": []}

    def losses(self, *arguments: Any) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The task's own losses."""
        if not self.products.calls:
            yield from self._recorded(*arguments)
        elif self.warm_up:
            self.warm_up -= 1
            yield from super().losses(*arguments)
        else:
            self._note_times()
            self.begin = time.perf_counter()
            yield from super().losses(*arguments)

    def _recorded(self, *arguments: Any) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The losses of the first step, whose products are noted; a compiler would not let them be seen."""
        found: list[Any] = []
        with torch.compiler.set_stance("force_eager"):
            run = super().losses
            self.products = record_products(self.model, lambda: found.extend(run(*arguments)), gradients=True)
        yield from found

    def _note_times(self) -> None:
        """Of the step before, if it was timed, and of the products that go with the one to come."""
        if self.begin:
            self.times["step"].append(time.perf_counter() - self.begin)
            self.times["reading"].append(self.train.seconds)  # type: ignore[attr-defined]
        if len(self.times["step"]) == self.repetitions:
            raise EnoughError
        begin = time.perf_counter()
        self.products()
        self.times["products"].append(time.perf_counter() - begin)


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
        task = _TimedTask(
            build(config, spec),
            GeneratorLossConfig(),
            examples,
            examples,
            quantizer=tokenizer.quantizer,
            product=ImageProduct(tokenizer, examples.cache.class_names),
            sampling=SamplingConfig(),
            repetitions=repetitions,
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
        with suppress(EnoughError):
            Trainer(task, settings, Path(folder) / "run").run()
    times, setting = task.times, f"resgen, batch {batch_size}{', compiled' if compiled else ''}"
    return [
        _row("training step over its products", setting, times["step"], times["products"]),
        _row("reading codes over a training step", setting, times["reading"], times["step"]),
    ]


def _random_codes(folder: Path, spec: CodeSpec, seed: int) -> Any:
    shape = (ENCODED, spec.num_positions, spec.depth)
    codes = torch.randint(spec.codebook_size, shape, generator=generator("bench", seed))
    write_codes(
        folder,
        [(codes, torch.zeros(ENCODED, dtype=torch.int64))],
        spec=spec,
        num_samples=ENCODED,
        class_names=("0",),
        tokenizer_fingerprint="0" * 64,
        data_fingerprint="0" * 64,
    )
    return open_codes(folder)


def _memory(case: Case, memory_gb: float) -> list[dict[str, Any]]:
    """Peak memory of sampling and the largest batch, beside the counterparts that predict codes."""
    rows = []
    for kind in MEMORY_KINDS:
        points = []
        for batch_size in (max(1, case.batch_size // 4), case.batch_size + 1):
            one = dataclasses.replace(case, kind=kind, batch_size=batch_size)
            points.append((batch_size, extra_peak_bytes(memory_work, **dataclasses.asdict(one))))
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
    ratios = [one / least for one, least in zip(seconds, floor, strict=True)]
    return {
        "what": what,
        "setting": setting,
        "seconds": median(seconds),
        "floor_seconds": median(floor),
        "ratio": {"median": median(ratios), "min": min(ratios), "max": max(ratios)},
        "target": TARGETS.get(what),
    }


def report_markdown(found: Mapping[str, Any]) -> str:
    """The report as Markdown tables."""
    lines = ["| what | setting | seconds | floor | ratio | at most |", "|---|---|---|---|---|---|"]
    for row in found["rows"]:
        ratio, target = row["ratio"], row["target"]
        spread = f"{ratio['median']:.3g} ({ratio['min']:.3g} to {ratio['max']:.3g})"
        most = "" if target is None else f"{target:.3g}"
        times = f"{row['seconds']:.4g} | {row['floor_seconds']:.4g}"
        lines.append(f"| {row['what']} | {row['setting']} | {times} | {spread} | {most} |")
    sampling = [row for row in found["memory"] if "largest_batch" in row]
    if sampling:
        gigabytes = found["settings"]["memory_gb"]
        lines += [
            "",
            f"| memory | MB in all | kB per sample | largest batch in {gigabytes:g} GB |",
            "|---|---|---|---|",
        ]
    for row in sampling:
        most = row["largest_batch"] or "?"
        lines.append(f"| {row['what']} | {row['peak_bytes'] / 1e6:.0f} | {row['bytes_per_image'] / 1e3:.0f} | {most} |")
    for row in found["memory"]:
        if "bytes_per_position" in row:
            grows, means = row["bytes_per_position"] / 1e3, row["bytes_of_a_positions_means"] / 1e3
            lines += ["", f"{row['what']}: {row['peak_bytes'] / 1e6:.0f} MB at most, {grows:.3g} kB per position more"]
            lines[-1] += f" (the means of a position are {means:.3g} kB)"
    settings = ", ".join(f"{name} {value}" for name, value in found["settings"].items())
    return "\n".join([*lines, "", settings])
