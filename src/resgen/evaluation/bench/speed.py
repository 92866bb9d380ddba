"""Speed and memory of every kind of generator at the same shape: seconds per image, network passes, peak memory, each
as a ratio to every other kind and to the bare matrix products of the same network (Table 1, Sec. 5.2.1).

Weights are random: the work hardly depends on them.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resgen.devices import choose_device, dtype_name
from resgen.errors import ConfigError, unknown
from resgen.evaluation.bench.cases import GUIDANCE_SCALE, MEASURED, SHAPES, Case, random_network
from resgen.evaluation.bench.memory import extra_peak_bytes, largest_batch
from resgen.evaluation.bench.products import BareProducts, Pool, record_products
from resgen.evaluation.bench.timing import interleaved, machine_of, ratio
from resgen.kinds import KINDS, get_kind
from resgen.models.base import CodeModel
from resgen.nn.int8 import choose_type
from resgen.progress import Advance, no_progress

MAX_DEPTH, MAX_BATCH = 1024, 1 << 16
MEMORY_EVALUATIONS = 2
MEMORY_FACTOR = 8
GIGABYTE = 10**9
COUNTED = (
    "seconds: from class ids to finished codes, noise included, the tokenizer's decoder not. "
    "passes: per image, at the network itself, two where guidance runs both branches; `levels` are those of the "
    "network over the levels of one position. steps: evaluations one after the other. "
    "products: every product of an activation with a parameter that this sampling needs, on the same weights in the "
    "same order, as often and with as many rows (int8: with the activations' rounding); not attention between "
    "positions, quantization, norms, gelu, softmax, drawing. memory: the most that sampling adds to a process that "
    "holds the weights; the largest batch is a straight line through two measured batches, weights included, "
    "interpreter and libraries not."
)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Settings of a speed measurement; `resgen bench --help` explains every field."""

    shape: str = "paper"
    kinds: tuple[str, ...] = MEASURED
    depths: tuple[int, ...] = (16,)
    batch_sizes: tuple[int, ...] = (1,)
    iterations: tuple[int, ...] = (1, 2, 4, 8)
    num_steps: int | None = None
    guidance: bool = True
    guidance_start: float = 0.0
    repetitions: int = 3
    memory: bool = True
    memory_gb: float = 8.0
    dtypes: tuple[str, ...] = ("auto",)
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(unknown("shape", self.shape, SHAPES))
        for name in self.kinds:
            get_kind(name)
        for name in ("kinds", "dtypes", "depths", "batch_sizes", "iterations"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name}={values} must be one or more different values")
            if name not in ("kinds", "dtypes") and min(values) < 1:
                raise ConfigError(f"{name}={values} must be at least 1")
        for name, most in (("depths", MAX_DEPTH), ("batch_sizes", MAX_BATCH)):
            if max(getattr(self, name)) > most:
                raise ConfigError(f"{name}={getattr(self, name)} must be at most {most}")
        if self.repetitions < 1:
            raise ConfigError(f"repetitions={self.repetitions} must be at least 1")
        if not 0 < self.memory_gb < math.inf:
            raise ConfigError(f"memory_gb={self.memory_gb} must be a number above 0")
        most, steps = math.prod(SHAPES[self.shape].grid) * min(self.depths), self.steps
        if any(KINDS[kind].level_network is None for kind in self.kinds) and not 1 <= steps <= most:
            raise ConfigError(
                f"steps={steps} must lie in 1..{most}: there are no more codes at depth {min(self.depths)}"
            )
        depth = max(self.depths)
        for kind in map(get_kind, self.kinds):
            if steps < (least := kind.least_steps(depth)):
                raise ConfigError(f"steps={steps} must be at least {least} for {kind.name} at depth {depth}")
            if kind.iterates and min(self.iterations) > depth:
                raise ConfigError(f"iterations={self.iterations} must be at most the depth, {depth}")

    @property
    def steps(self) -> int:
        """Of the kinds that take a number of them."""
        return SHAPES[self.shape].num_steps if self.num_steps is None else self.num_steps

    def cases(self, dtypes: Sequence[torch.dtype]) -> list[Case]:
        """All rows in the order of the table: what is compared stands side by side."""
        return [
            Case(
                shape=self.shape,
                kind=kind,
                iterations=iterations,
                depth=depth,
                batch_size=batch_size,
                num_steps=self.steps,
                guidance=self.guidance,
                guidance_start=self.guidance_start,
                dtype=dtype_name(dtype),
                seed=self.seed,
            )
            for batch_size in sorted(self.batch_sizes)
            for depth in sorted(self.depths)
            for kind in self.kinds
            for iterations in (sorted(i for i in self.iterations if i <= depth) if KINDS[kind].iterates else [None])
            for dtype in dtypes
        ]


@dataclass(kw_only=True)
class Measurement:
    """The results of a case so far; a case without seconds measures memory only."""

    case: Case
    label: str
    network: CodeModel
    passes: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    products: BareProducts = field(default_factory=BareProducts)
    seconds: list[float] = field(default_factory=list)
    products_seconds: list[float] = field(default_factory=list)
    extra_bytes: int | None = None


def bench(config: BenchConfig, advance: Advance = no_progress) -> dict[str, Any]:
    """Every kind at every depth and batch size.

    Returns:
        `rows`, `counted` (in words) and `settings`. `over` of a row holds its seconds over those of every other row at
        the same depth and batch size (by label: kind, iterations, and the number type if there are several), over those
        of its own bare matrix `products`, and over its own at the least depth (`shallowest`), all within a repetition.

    Raises:
        ConfigError: an unknown device or floating type.
    """
    device = choose_device(config.device)
    dtypes = tuple(dict.fromkeys(choose_type(name, device) for name in config.dtypes))
    cases = config.cases(dtypes)
    measurements = _first_runs(cases, device, advance)
    runs: dict[str, Callable[[], object]] = {}
    for number, entry in enumerate(measurements):
        runs[f"{number}"] = partial(entry.case.sample, entry.network)
        runs[f"{number} products"] = entry.products
    times = interleaved(runs, config.repetitions, device, advance)
    for number, entry in enumerate(measurements):
        entry.seconds, entry.products_seconds = times[f"{number}"], times[f"{number} products"]
    if config.memory:
        _measure_memory(measurements, device, advance)
    settings = {
        **dataclasses.asdict(config),
        **dataclasses.asdict(SHAPES[config.shape]),
        "num_steps": config.steps,
        "guidance_scale": GUIDANCE_SCALE if config.guidance else 0.0,
        "mask_schedule": "linear",
        "sampling": {case.label: dataclasses.asdict(case.sampling) for case in cases},
        "memory_gb": config.memory_gb if config.memory else None,
        **machine_of(device, *dtypes),
    }
    return {
        "rows": [_row(entry, measurements, config.memory_gb) for entry in measurements if entry.seconds],
        "counted": COUNTED,
        "settings": settings,
    }


def count_passes(network: CodeModel, case: Case, run: Callable[[], object]) -> tuple[dict[str, float], int]:
    """Passes per image of each network of a generator while `run` runs, and how many evaluations follow each other."""
    names = {"transformer": "transformer"}
    levels = KINDS[case.kind].level_network
    if levels is not None:
        names["levels"] = levels
    rows, calls = dict.fromkeys(names, 0), dict.fromkeys(names, 0)

    def hook(name: str, _module: nn.Module, arguments: tuple[Any, ...]) -> None:
        rows[name] += len(arguments[0])
        calls[name] += 1

    handles = [
        network.get_submodule(path).register_forward_pre_hook(partial(hook, name)) for name, path in names.items()
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: count / case.batch_size for name, count in rows.items()}, calls[list(names)[-1]]


def _first_runs(cases: Sequence[Case], device: torch.device, advance: Advance) -> list[Measurement]:
    """Build every network, count its passes and record its products; this run warms everything up."""
    weights: dict[Any, Tensor] = {}
    networks: dict[tuple[str, int, str], CodeModel] = {}
    several = len({case.dtype for case in cases}) > 1
    pool: Pool = {}
    measurements = []
    for number, case in enumerate(cases):
        advance(number, len(cases), "first runs")
        key = (case.kind, case.depth, case.dtype)
        if key not in networks:
            dtype = choose_type(case.dtype, device)
            networks[key] = random_network(case.config, case.spec, device, dtype, case.seed, weights)
        label = f"{case.label} {case.dtype}" if several else case.label
        entry = Measurement(case=case, label=label, network=networks[key])
        sample = partial(case.sample, entry.network)

        def record(entry: Measurement = entry, sample: Callable[[], object] = sample) -> None:
            entry.products = record_products(entry.network, sample, pool)

        entry.passes, entry.steps = count_passes(entry.network, case, record)
        if device.type == "cuda":
            sample()
            entry.products()
        measurements.append(entry)
    advance(len(cases), len(cases), "first runs")
    return measurements


def _measure_memory(measurements: list[Measurement], device: torch.device, advance: Advance) -> None:
    """Fill in the peak of every case; where there is but one batch size, add cases of a larger one, without times."""
    if len({entry.case.batch_size for entry in measurements}) == 1:
        measurements += [
            Measurement(
                case=dataclasses.replace(entry.case, batch_size=MEMORY_FACTOR * entry.case.batch_size),
                label=entry.label,
                network=entry.network,
            )
            for entry in measurements
        ]
    for number, entry in enumerate(measurements):
        advance(number, len(measurements), "memory")
        if device.type == "cuda":
            # Live tensors; what the allocator holds in reserve is not counted.
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            entry.case.sample(entry.network)
            entry.extra_bytes = torch.cuda.max_memory_allocated(device) - before
        else:
            entry.extra_bytes = extra_peak_bytes(sampling_work, **dataclasses.asdict(entry.case))
    advance(len(measurements), len(measurements), "memory")


class EnoughError(Exception):
    """Ends a run that has shown what it was started for."""


def sampling_work(**arguments: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    """For `extra_peak_bytes`: a network of the same kind at the tiny shape, and the case itself."""
    case = Case(**arguments)
    small = dataclasses.replace(case, shape="tiny", batch_size=1, num_steps=max(2, case.depth))
    return _peak_run(small), _peak_run(case)


def _peak_run(case: Case) -> Callable[[], object]:
    """Sample as far as memory grows: kinds that see all positions at once have most to do in the first evaluations,
    those with a cache in the last."""
    device = torch.device("cpu")
    network = random_network(case.config, case.spec, device, choose_type(case.dtype, device), case.seed)
    count = 0

    def stop(*_: object) -> None:
        nonlocal count
        count += 1
        if count == MEMORY_EVALUATIONS and KINDS[case.kind].level_network is None:
            raise EnoughError

    def run() -> None:
        try:
            case.sample(network, stop)
        except EnoughError:
            return

    return run


def _row(entry: Measurement, measurements: Sequence[Measurement], memory_gb: float) -> dict[str, Any]:
    case, batch = entry.case, entry.case.batch_size
    seconds = statistics.median(entry.seconds)
    row: dict[str, Any] = {
        "kind": case.kind,
        "title": KINDS[case.kind].title,
        "iterations": case.iterations,
        "label": entry.label,
        "dtype": case.dtype,
        "depth": case.depth,
        "batch_size": batch,
        "parameters": sum(parameter.numel() for parameter in entry.network.parameters()),
        "steps": entry.steps,
        "passes": entry.passes,
        "seconds": seconds,
        "spread": [min(entry.seconds), max(entry.seconds)],
        "seconds_per_image": seconds / batch,
        "images_per_second": batch / seconds,
        "products": {
            "calls": len(entry.products.calls),
            "multiply_adds_per_image": entry.products.multiply_adds / batch,
            "seconds": statistics.median(entry.products_seconds),
        },
        "over": _over(entry, measurements),
    }
    if entry.extra_bytes is not None:
        tensors = (*entry.network.parameters(), *entry.network.buffers())
        weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        points = [
            (other.case.batch_size, other.extra_bytes)
            for other in measurements
            if (other.label, other.case.depth) == (entry.label, case.depth) and other.extra_bytes is not None
        ]
        row["memory"] = {
            "weight_bytes": weights,
            "extra_bytes": entry.extra_bytes,
            "total_bytes": weights + entry.extra_bytes,
            **largest_batch(points, weights, memory_gb * GIGABYTE),
        }
    return row


def _over(entry: Measurement, measurements: Sequence[Measurement]) -> dict[str, dict[str, float]]:
    """Ratios of a case's seconds to those of its products, of every kind at its side, and of its least depth."""
    case = entry.case
    over = {"products": ratio(entry.seconds, entry.products_seconds)}
    beside = [other for other in measurements if other.seconds and other.case.batch_size == case.batch_size]
    for other in beside:
        if other.case.depth == case.depth:
            over[other.label] = ratio(entry.seconds, other.seconds)
    same = [other for other in beside if other.label == entry.label]
    over["shallowest"] = ratio(entry.seconds, min(same, key=lambda other: other.case.depth).seconds)
    return over
