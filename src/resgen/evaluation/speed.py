"""Speed and memory of every kind of generator at the same shape: seconds per image, network passes, peak memory, each
as a ratio to ResGen and to the bare matrix products of the same network (Table 1, Sec. 5.2.1).

All that is compared runs in one process, in turns, so that a change of the machine's load meets all of it. Seconds are
medians over the repetitions; ratios are medians of the ratios within a repetition. Weights are random: the work hardly
depends on them.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resgen.devices import choose_device, choose_dtype
from resgen.errors import ConfigError, unknown
from resgen.evaluation.bench import machine_of
from resgen.evaluation.memory import extra_peak_bytes
from resgen.evaluation.products import BareProducts, Pool, record_products
from resgen.evaluation.speed_cases import GUIDANCE_SCALE, MEASURED, SHAPES, Case, random_network
from resgen.kinds import KINDS, get_kind
from resgen.models.base import CodeModel

MEMORY_EVALUATIONS = 2
MEMORY_FACTOR = 8
GIGABYTE = 10**9
SECOND_NETWORK = {"rq_transformer": "depth_transformer", "ar_resgen": "mlp"}
COUNTED = (
    "seconds: from class ids to finished codes, noise included, the tokenizer's decoder not. "
    "passes: per image, at the network itself, two where guidance runs both branches; `levels` are those of the "
    "network over the levels of one position. steps: evaluations one after the other. "
    "products: every product of an activation with a parameter that this sampling needs, on the same weights in the "
    "same order, as often and with as many rows; not attention between positions, quantization, norms, gelu, softmax, "
    "drawing. memory: the most that sampling adds to a process that holds the weights; the largest batch is a straight "
    "line through two measured batches, weights included, interpreter and libraries not."
)

Advance = Callable[[float, float, str], None]


@dataclass(kw_only=True)
class _Measured:
    """What is known of a case so far."""

    case: Case
    network: CodeModel
    passes: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    products: BareProducts = field(default_factory=BareProducts)
    first_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    products_seconds: list[float] = field(default_factory=list)
    extra_bytes: int | None = None


def bench_speed(
    *,
    shape: str = "paper",
    kinds: Sequence[str] = MEASURED,
    depths: Sequence[int] = (16,),
    batch_sizes: Sequence[int] = (1,),
    iterations: Sequence[int] = (1, 2, 4, 8),
    num_steps: int | None = None,
    guidance: bool = True,
    guidance_start: float = 0.0,
    repetitions: int = 3,
    memory: bool = True,
    memory_gb: float = 8.0,
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
    report_progress: Advance = lambda done, total, title: None,
) -> dict[str, Any]:
    """Every kind at every depth and batch size.

    Args:
        shape: a key of `SHAPES`.
        kinds: of `MEASURED`.
        depths: D, one or more.
        batch_sizes: one or more.
        iterations: of `ar_resgen`, each a variant; those above a depth are left out there.
        num_steps: of `resgen`, `direct` and `maskgit`; the shape's if left out.
        guidance: both branches in every evaluation, or only the conditional one.
        guidance_start: share of the steps before guidance sets in, of the kinds that have this setting.
        repetitions: timed runs of every case, after a first one that is not counted.
        memory: measure peak memory, too; on the CPU every figure takes a process of its own.
        memory_gb: what the largest batch is to fit into, in 10^9 bytes.
        dtype: `float32`, `bfloat16` or `auto`.
        device: see `choose_device`.
        seed: of weights and noise.
        report_progress: called with (done, total, title); the unit is the title's own.

    Returns:
        `rows`, `crossover`, `counted` (in words) and `settings`. `over` of a row holds its seconds over those of every
        other row at the same depth and batch size (by label), over those of its own bare matrix `products`, and over
        its own at the least depth (`shallowest`), all within a repetition. `crossover` says from which batch size on
        an autoregressive kind makes more images a second than ResGen.

    Raises:
        ConfigError: an unknown name, a number out of range, or more steps than codes at the least depth.
    """
    cases, chosen_device = _cases(
        shape, kinds, depths, batch_sizes, iterations, num_steps, guidance, dtype, device, repetitions, memory_gb, seed
    )
    cases = [dataclasses.replace(case, guidance_start=guidance_start) for case in cases]
    measured = _first_runs(cases, chosen_device, report_progress)
    _timed_runs(measured, repetitions, chosen_device, report_progress)
    if memory:
        _measure_memory(measured, chosen_device, memory_gb, report_progress)
    chosen = SHAPES[shape]
    settings = {
        "shape": shape,
        **dataclasses.asdict(chosen),
        "num_steps": cases[0].num_steps,
        "guidance_scale": GUIDANCE_SCALE if guidance else 0.0,
        "mask_schedule": "linear",
        "sampling": {case.label: dataclasses.asdict(case.sampling) for case in cases},
        "repetitions": repetitions,
        "memory_gb": memory_gb if memory else None,
        "seed": seed,
        **machine_of(chosen_device, choose_dtype(dtype, chosen_device)),
    }
    return {
        "rows": [_row(entry, measured, memory_gb) for entry in measured if entry.seconds],
        "crossover": _crossovers(measured),
        "counted": COUNTED,
        "settings": settings,
    }


def count_passes(network: CodeModel, case: Case, run: Callable[[], object]) -> tuple[dict[str, float], int]:
    """Passes per image of each network of a generator while `run` runs, and how many evaluations follow each other."""
    names = {"transformer": "transformer"}
    if case.kind in SECOND_NETWORK:
        names["levels"] = SECOND_NETWORK[case.kind]
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


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of `run`: by events on a GPU, by the clock elsewhere."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            return begin.elapsed_time(end) / 1000
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def largest_batch(points: Sequence[tuple[int, int]], weight_bytes: int, memory_bytes: float) -> dict[str, Any]:
    """The largest batch that fits, by a straight line through two measured (batch size, extra bytes).

    Returns:
        `bytes_per_image`, `batches` (the two) and `largest_batch`, which is None where memory does not grow.
    """
    (small, low), (large, high) = points[0], points[-1]
    slope = (high - low) / (large - small)
    fixed = low - slope * small
    fits = max(0, math.floor((memory_bytes - weight_bytes - fixed) / slope)) if slope > 0 else None
    return {"bytes_per_image": slope, "batches": [small, large], "largest_batch": fits}


def _cases(
    shape: str,
    names: Sequence[str],
    depths: Sequence[int],
    batch_sizes: Sequence[int],
    iterations: Sequence[int],
    num_steps: int | None,
    guidance: bool,
    dtype: str,
    device: str,
    repetitions: int,
    memory_gb: float,
    seed: int,
) -> tuple[list[Case], torch.device]:
    """All rows in the order of the table: what is compared stands side by side."""
    if shape not in SHAPES:
        raise ConfigError(unknown("shape", shape, SHAPES))
    for name in names:
        get_kind(name)
    lists: dict[str, Sequence[Any]] = {"kinds": names, "depths": depths, "batch_sizes": batch_sizes}
    for name, values in {**lists, "iterations": iterations}.items():
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{name}={tuple(values)} must be one or more different values")
        if name != "kinds" and min(values) < 1:
            raise ConfigError(f"{name}={tuple(values)} must be at least 1")
    if repetitions < 1:
        raise ConfigError(f"repetitions={repetitions} must be at least 1")
    if not 0 < memory_gb < math.inf:
        raise ConfigError(f"memory_gb={memory_gb} must be a number above 0")
    chosen_device = choose_device(device)
    chosen_dtype = str(choose_dtype(dtype, chosen_device)).removeprefix("torch.")
    steps = SHAPES[shape].num_steps if num_steps is None else num_steps
    most = math.prod(SHAPES[shape].grid) * min(depths)
    if set(names) & {"resgen", "residual", "direct", "maskgit"} and not 1 <= steps <= most:
        raise ConfigError(f"steps={steps} must lie in 1..{most}: there are no more codes at depth {min(depths)}")
    if "maskgit" in names and steps < max(depths):
        raise ConfigError(f"steps={steps} must be at least {max(depths)} for maskgit: one for every level or more")
    if "ar_resgen" in names and min(iterations) > max(depths):
        raise ConfigError(f"iterations={tuple(iterations)} must be at most the depth, {max(depths)}")
    cases = [
        Case(
            shape=shape,
            kind=name,
            iterations=variant,
            depth=depth,
            batch_size=batch_size,
            num_steps=steps,
            guidance=guidance,
            dtype=chosen_dtype,
            seed=seed,
        )
        for batch_size in sorted(batch_sizes)
        for depth in sorted(depths)
        for name in names
        for variant in (sorted(i for i in iterations if i <= depth) if name == "ar_resgen" else [None])
    ]
    return cases, chosen_device


def _first_runs(cases: Sequence[Case], device: torch.device, advance: Advance) -> list[_Measured]:
    """Build every network, count its passes and record its products; this run warms everything up."""
    weights: dict[Any, Tensor] = {}
    networks: dict[tuple[str, int], CodeModel] = {}
    pool: Pool = {}
    measured = []
    title = "first runs"
    advance(0, len(cases), title)
    for case in cases:
        key = (case.kind, case.depth)
        if key not in networks:
            dtype = choose_dtype(case.dtype, device)
            networks[key] = random_network(case.config, case.spec, device, dtype, case.seed, weights)
        entry = _Measured(case=case, network=networks[key])
        entry.first_seconds = timed(partial(_first_run, entry, pool), device)
        if device.type == "cuda":
            case.sample(entry.network)
            entry.products()
        measured.append(entry)
        advance(len(measured), len(cases), title)
    return measured


def _first_run(entry: _Measured, pool: Pool) -> None:
    case, network = entry.case, entry.network

    def record() -> None:
        entry.products = record_products(network, partial(case.sample, network), pool)

    entry.passes, entry.steps = count_passes(network, case, record)


def _timed_runs(measured: Sequence[_Measured], repetitions: int, device: torch.device, advance: Advance) -> None:
    """Everything once per repetition, in an order that turns round each time."""
    expected = {id(entry): 2 * entry.first_seconds for entry in measured}
    total, done = repetitions * sum(expected.values()), 0.0
    title = "timed runs"
    advance(done, total, title)
    order = list(measured)
    for _ in range(repetitions):
        for entry in order:
            entry.seconds.append(timed(partial(entry.case.sample, entry.network), device))
            entry.products_seconds.append(timed(entry.products, device))
            done += expected[id(entry)]
            advance(done, total, title)
        order.reverse()


def _measure_memory(measured: list[_Measured], device: torch.device, memory_gb: float, advance: Advance) -> None:
    """Fill in the peak of every case; where there is but one batch size, add cases of a larger one, without times."""
    if len({entry.case.batch_size for entry in measured}) == 1:
        measured += [
            _Measured(
                case=dataclasses.replace(entry.case, batch_size=MEMORY_FACTOR * entry.case.batch_size),
                network=entry.network,
            )
            for entry in measured
        ]
    title = "memory"
    for done, entry in enumerate(measured):
        advance(done, len(measured), title)
        if device.type == "cuda":
            entry.extra_bytes = _cuda_peak_bytes(entry, device)
        else:
            entry.extra_bytes = extra_peak_bytes(memory_work, **dataclasses.asdict(entry.case))
    advance(len(measured), len(measured), title)


def _cuda_peak_bytes(entry: _Measured, device: torch.device) -> int:
    """By how much the memory of live tensors rises at most; what the allocator holds in reserve is not counted."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    entry.case.sample(entry.network)
    return torch.cuda.max_memory_allocated(device) - before


class EnoughError(Exception):
    """Ends a run that has shown what it was started for."""


def memory_work(**arguments: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    """For `extra_peak_bytes`: a network of the same kind at the tiny shape, and the case itself."""
    case = Case(**arguments)
    small = dataclasses.replace(case, shape="tiny", batch_size=1, num_steps=max(2, case.depth))
    return _peak_run(small), _peak_run(case)


def _peak_run(case: Case) -> Callable[[], object]:
    """Sample as far as memory grows: kinds that see all positions at once have most to do in the first evaluations,
    those with a cache in the last."""
    device = torch.device("cpu")
    network = random_network(case.config, case.spec, device, choose_dtype(case.dtype, device), case.seed)
    seen = 0

    def stop(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == MEMORY_EVALUATIONS and case.kind not in SECOND_NETWORK:
            raise EnoughError

    def run() -> None:
        try:
            case.sample(network, stop)
        except EnoughError:
            return

    return run


def _row(entry: _Measured, measured: Sequence[_Measured], memory_gb: float) -> dict[str, Any]:
    case, batch = entry.case, entry.case.batch_size
    seconds = statistics.median(entry.seconds)
    row: dict[str, Any] = {
        "kind": case.kind,
        "title": KINDS[case.kind].title,
        "iterations": case.iterations,
        "label": case.label,
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
        "over": _over(entry, measured),
    }
    if entry.extra_bytes is not None:
        row["memory"] = _memory(entry, measured, memory_gb)
    return row


def _over(entry: _Measured, measured: Sequence[_Measured]) -> dict[str, dict[str, float]]:
    """Ratios of a case's seconds to those of its products, of every kind at its side, and of its least depth."""
    case = entry.case
    over = {"products": _ratio(entry.seconds, entry.products_seconds)}
    timed_cases = [other for other in measured if other.seconds and other.case.batch_size == case.batch_size]
    for other in timed_cases:
        if other.case.depth == case.depth:
            over[other.case.label] = _ratio(entry.seconds, other.seconds)
    same = [other for other in timed_cases if other.case.label == case.label]
    over["shallowest"] = _ratio(entry.seconds, min(same, key=lambda other: other.case.depth).seconds)
    return over


def _memory(entry: _Measured, measured: Sequence[_Measured], memory_gb: float) -> dict[str, Any]:
    tensors = (*entry.network.parameters(), *entry.network.buffers())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    extra = entry.extra_bytes or 0
    points = [
        (e.case.batch_size, e.extra_bytes)
        for e in measured
        if (e.case.label, e.case.depth) == (entry.case.label, entry.case.depth) and e.extra_bytes is not None
    ]
    return {
        "weight_bytes": weights,
        "extra_bytes": extra,
        "total_bytes": weights + extra,
        **largest_batch(points, weights, memory_gb * GIGABYTE),
    }


def _crossovers(measured: Sequence[_Measured]) -> list[dict[str, Any]]:
    """For every autoregressive variant at every depth: the least batch from which on it makes more images a second."""
    found = []
    chosen = [entry for entry in measured if entry.seconds and entry.case.kind in SECOND_NETWORK]
    for label, depth in dict.fromkeys((entry.case.label, entry.case.depth) for entry in chosen):
        ratios = {
            entry.case.batch_size: _ratio(entry.seconds, other.seconds)["median"]
            for entry in chosen
            for other in measured
            if (entry.case.label, entry.case.depth) == (label, depth)
            and (other.case.kind, other.case.depth) == ("resgen", depth)
            and other.seconds
            and other.case.batch_size == entry.case.batch_size
        }
        if len(ratios) < 2:
            continue
        slower = [batch for batch, ratio in ratios.items() if ratio >= 1]
        faster = [batch for batch in ratios if batch > max(slower, default=0)]
        found.append(
            {
                "label": label,
                "depth": depth,
                "throughput_over_resgen": {str(batch): 1 / ratio for batch, ratio in ratios.items()},
                "slower_up_to_batch": max(slower, default=None),
                "faster_from_batch": min(faster, default=None),
            }
        )
    return found


def _ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of the ratios within a repetition."""
    ratios = [n / d for n, d in zip(numerator, denominator, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
