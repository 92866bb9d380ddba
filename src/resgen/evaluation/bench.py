"""Speed and memory: quantization, sampling at several depths and over its bare network passes, the mixture loss.

What is compared runs in one process, in turns, so that a change of the machine's load meets all of it. Seconds are
medians over the repetitions; ratios are medians of the ratios within a repetition.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from resgen.devices import cast_parameters, choose_device, choose_dtype
from resgen.errors import ConfigError, MissingExtraError
from resgen.evaluation.memory import extra_peak_bytes
from resgen.losses.mixture import mixture_loss
from resgen.models.heads import MixtureHead
from resgen.models.resgen import PRESETS, ResGen, ResGenConfig
from resgen.ops.random import generator
from resgen.ops.residual import residual_encode
from resgen.samplers.unmasking import SamplingConfig, draw_noise, sample_codes
from resgen.types import CodeSpec

TIE = 1e-4
WARM_UP_ROWS = 64
Encode = Callable[[Tensor], Tensor]


def bench_quantizer(
    *,
    num_vectors: int = 65_536,
    code_dim: int = 64,
    codebook_size: int = 1024,
    depth: int = 8,
    repetitions: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """`residual_encode` against `vector_quantize_pytorch.ResidualVQ` in evaluation mode, with the same codebooks.

    Returns:
        `speedup`, `seconds` and `extra_memory_bytes` of `ours` and `peer`, `memory_ratio` (ours over the peer's),
        `agreement` (share of vectors with the same codes, ties aside), `ties` (vectors whose codes first differ where
        both are equally near, within 1e-4), `codes_equal` (share of all codes) and `settings`.

    Raises:
        MissingExtraError: vector-quantize-pytorch is not installed.
    """
    _check(repetitions=repetitions, num_vectors=num_vectors)
    sizes = {"num_vectors": num_vectors, "code_dim": code_dim, "codebook_size": codebook_size, "depth": depth}
    vectors, codebooks = _vectors(**sizes, seed=seed)
    encoders = {"ours": _our_encoder(codebooks), "peer": _peer_encoder(codebooks)}
    for encode in encoders.values():
        encode(vectors[:WARM_UP_ROWS])
    codes = {name: encode(vectors) for name, encode in encoders.items()}
    times = interleaved({name: partial(encode, vectors) for name, encode in encoders.items()}, repetitions)
    memory = {name: extra_peak_bytes(_encoding, which=name, seed=seed, **sizes) for name in encoders}
    return {
        "speedup": paired_ratio(times["peer"], times["ours"]),
        "seconds": medians(times),
        "spread": _spread(times),
        "extra_memory_bytes": memory,
        "memory_ratio": memory["ours"] / max(1, memory["peer"]),
        **compare_codes(vectors, codebooks, codes["ours"], codes["peer"]),
        "settings": {
            **sizes,
            "repetitions": repetitions,
            "seed": seed,
            **machine_of(torch.device("cpu"), torch.float32),
        },
    }


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
        chosen = codes[rows].gather(1, level[:, None]).squeeze(1)
        gaps.append((residual - books[level, chosen]).square().sum(1))
    ties = int(((gaps[0] - gaps[1]).abs() <= tie).sum())
    return {
        "agreement": 1 - (len(rows) - ties) / len(vectors),
        "ties": ties,
        "codes_equal": float((~differs).double().mean()),
    }


def bench_depth(
    *,
    depths: Sequence[int] = (1, 4, 8, 16),
    model: ResGenConfig = PRESETS["small"],
    side: int = 8,
    codebook_size: int = 1024,
    code_dim: int = 64,
    num_steps: int = 16,
    batch_size: int = 16,
    repetitions: int = 5,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Network passes and seconds of sampling with guidance at several depths, all else equal.

    The linear schedule reveals the same share in every step, so that no step is empty at any depth. Weights are random:
    the work does not depend on them.

    Returns:
        `passes` (network passes per sample, two per guided step, counted at the network) and `seconds` by depth,
        `ratio_16_over_8` (of the last two depths) and `settings`.

    Raises:
        ConfigError: more steps than codes at the least depth, which would leave steps empty.
    """
    _check(repetitions=repetitions, num_steps=num_steps, batch_size=batch_size)
    if len(depths) < 2:
        raise ConfigError(f"depths={tuple(depths)} must be two or more")
    if num_steps > side**2 * min(depths):
        raise ConfigError(f"num_steps={num_steps} must be at most {side**2 * min(depths)}: there are no more codes")
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    sampling = SamplingConfig(num_steps=num_steps, mask_schedule="linear", guidance_first=2.0, guidance_scale=2.0)
    runs: dict[str, Callable[[], object]] = {}
    passes: dict[str, int] = {}
    for depth in depths:
        spec = CodeSpec(depth=depth, codebook_size=codebook_size, code_dim=code_dim, shape=(side, side))
        network = random_model(model, spec, chosen_device, chosen_dtype, seed)
        runs[str(depth)] = _sampling_run(network, sampling, batch_size, seed)
        passes[str(depth)] = count_passes(network, runs[str(depth)]) // batch_size
    times = interleaved(runs, repetitions, chosen_device)
    last, before = str(depths[-1]), str(depths[-2])
    return {
        "passes": passes,
        "seconds": medians(times),
        "spread": _spread(times),
        f"ratio_{last}_over_{before}": paired_ratio(times[last], times[before]),
        "settings": {
            "num_steps": num_steps,
            "batch_size": batch_size,
            "positions": side**2,
            "codebook_size": codebook_size,
            "code_dim": code_dim,
            "width": model.width,
            "num_layers": model.num_layers,
            "num_components": model.num_components,
            "guidance_scale": sampling.guidance_scale,
            "repetitions": repetitions,
            "seed": seed,
            **machine_of(chosen_device, chosen_dtype),
        },
    }


def bench_sampler(
    *,
    batch_sizes: Sequence[int] = (16, 64),
    model: ResGenConfig = PRESETS["base"],
    side: int = 8,
    depth: int = 8,
    codebook_size: int = 1024,
    code_dim: int = 64,
    num_steps: int = 8,
    repetitions: int = 5,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Seconds from noise to finished codes over the seconds of the bare network passes on the very same inputs.

    Sampling draws the noise, embeds the condition, and in every step runs the network, draws latents, quantizes them
    and reveals codes; the bare passes are the embedding of the codes and the transformer alone. No guidance, no
    decoding.

    Returns:
        `overhead` by batch size, `seconds` of `sampling` and `network` by batch size, `settings`.
    """
    _check(repetitions=repetitions, num_steps=num_steps, batch_size=min(batch_sizes))
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    spec = CodeSpec(depth=depth, codebook_size=codebook_size, code_dim=code_dim, shape=(side, side))
    network = random_model(model, spec, chosen_device, chosen_dtype, seed)
    sampling = SamplingConfig(num_steps=num_steps, guidance_scale=0.0)
    overhead, seconds, spread = {}, {}, {}
    for batch_size in batch_sizes:
        inputs = _recorded_inputs(network, sampling, batch_size, seed)
        runs = {
            "sampling": _sampling_run(network, sampling, batch_size, seed),
            "network": _bare_passes(network, inputs, batch_size),
        }
        runs["network"]()
        times = interleaved(runs, repetitions, chosen_device)
        overhead[str(batch_size)] = paired_ratio(times["sampling"], times["network"])
        seconds[str(batch_size)], spread[str(batch_size)] = medians(times), _spread(times)
    return {
        "overhead": overhead,
        "seconds": seconds,
        "spread": spread,
        "settings": {
            "num_steps": num_steps,
            "positions": side**2,
            "depth": depth,
            "codebook_size": codebook_size,
            "code_dim": code_dim,
            "width": model.width,
            "num_layers": model.num_layers,
            "num_components": model.num_components,
            "repetitions": repetitions,
            "seed": seed,
            **machine_of(chosen_device, chosen_dtype),
        },
    }


def bench_mixture(
    *,
    rows: Sequence[int] = (1024, 2048, 4096),
    num_components: int = 1024,
    code_dim: int = 64,
    width: int = 768,
    repetitions: int = 3,
    dtype: str | torch.dtype = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Forward and backward pass of `mixture_loss` against plain autograd through `MixtureHead.bound`, on the CPU.

    Returns:
        By number of rows: `seconds` and `extra_memory_bytes` of `chunked` and `plain`, `memory_ratio`, `speedup`; and
        `bytes_per_row`, by which the memory of each grows between the fewest and the most rows; `settings`.
    """
    if len(rows) < 2 or sorted(set(rows)) != list(rows):
        raise ConfigError(f"rows={tuple(rows)} must be two or more rising numbers")
    _check(repetitions=repetitions, rows=rows[0])
    device = torch.device("cpu")
    name = "bfloat16" if choose_dtype(dtype, device) == torch.bfloat16 else "float32"
    sizes: dict[str, Any] = {
        "num_components": num_components,
        "code_dim": code_dim,
        "width": width,
        "dtype": name,
        "seed": seed,
    }
    versions = ("chunked", "plain")
    seconds, memory = {}, {}
    for count in rows:
        works = {version: mixture_work(version=version, rows=count, **sizes) for version in versions}
        for warm_up, _ in works.values():
            warm_up()
        times = interleaved({version: work for version, (_, work) in works.items()}, repetitions)
        del works
        seconds[str(count)] = medians(times)
        memory[str(count)] = {v: extra_peak_bytes(mixture_work, version=v, rows=count, **sizes) for v in versions}
    least, most = str(rows[0]), str(rows[-1])
    return {
        "seconds": seconds,
        "speedup": {n: s["plain"] / s["chunked"] for n, s in seconds.items()},
        "extra_memory_bytes": memory,
        "memory_ratio": {n: m["chunked"] / max(1, m["plain"]) for n, m in memory.items()},
        "bytes_per_row": {v: (memory[most][v] - memory[least][v]) / (rows[-1] - rows[0]) for v in versions},
        "settings": {**sizes, "repetitions": repetitions, **machine_of(device, choose_dtype(dtype, device))},
    }


def random_model(config: ResGenConfig, spec: CodeSpec, device: torch.device, dtype: torch.dtype, seed: int) -> ResGen:
    """A generator with random weights and codebooks from a fixed stream, in evaluation mode."""
    stream = generator("bench", seed)
    network = ResGen(config, spec)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.02, generator=stream)
        scale = 0.7 ** torch.arange(spec.depth)[:, None, None]
        network.codebooks.normal_(generator=stream).mul_(scale)
    return cast_parameters(network, dtype).to(device).eval().requires_grad_(False)


def count_passes(network: ResGen, run: Callable[[], object]) -> int:
    """Samples that go through the transformer while `run` runs; a guided step sends every sample twice."""
    passed = 0

    def seen(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal passed
        passed += len(arguments[0])

    handle = network.transformer.register_forward_pre_hook(seen)
    try:
        run()
    finally:
        handle.remove()
    return passed


def _sampling_run(network: ResGen, sampling: SamplingConfig, batch_size: int, seed: int) -> Callable[[], object]:
    return lambda: _sample(network, sampling, batch_size, seed)


@torch.inference_mode()
def _sample(network: ResGen, sampling: SamplingConfig, batch_size: int, seed: int, callback: Any = None) -> object:
    classes = torch.zeros(batch_size, dtype=torch.int64, device=network.codebooks.device)
    noise = draw_noise(seed, range(batch_size), sampling.num_steps, network.spec)
    predict = network.predictor(classes)
    return sample_codes(predict, network.codebooks, network.level_std, noise, sampling, callback=callback)


def _recorded_inputs(
    network: ResGen, sampling: SamplingConfig, batch_size: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Codes and visible levels that every network pass of a sampling run gets."""
    spec, device = network.spec, network.codebooks.device
    codes = torch.zeros(batch_size, spec.num_positions, spec.depth, dtype=torch.int64, device=device)
    inputs = [(codes, codes[..., 0].clone())]
    _sample(network, sampling, batch_size, seed, lambda _, codes, visible: inputs.append((codes, visible)))
    return inputs[:-1]


def _bare_passes(network: ResGen, inputs: list[tuple[Tensor, Tensor]], batch_size: int) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> None:
        for codes, visible in inputs:
            network.transform(network.embed(codes, visible), modulation)

    with torch.inference_mode():
        classes = torch.zeros(batch_size, dtype=torch.int64, device=network.codebooks.device)
        modulation = network.modulation(network.condition(classes))
    return run


def _vectors(
    num_vectors: int, code_dim: int, codebook_size: int, depth: int, seed: int
) -> tuple[Float[Tensor, "N H"], Float[Tensor, "D V H"]]:
    """Standard normal vectors, and random codebooks of falling size."""
    stream = generator("bench", seed)
    vectors = torch.randn(num_vectors, code_dim, generator=stream)
    scale = 0.3 * 0.95 ** torch.arange(depth)[:, None, None]
    return vectors, scale * torch.randn(depth, codebook_size, code_dim, generator=stream)


def _our_encoder(codebooks: Float[Tensor, "D V H"]) -> Encode:
    return lambda vectors: residual_encode(vectors, codebooks).codes


def _peer_encoder(codebooks: Float[Tensor, "D V H"]) -> Encode:
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


def _encoding(which: str, seed: int, **sizes: int) -> tuple[Callable[[], object], Callable[[], object]]:
    vectors, codebooks = _vectors(**sizes, seed=seed)
    encode = _our_encoder(codebooks) if which == "ours" else _peer_encoder(codebooks)
    return lambda: encode(vectors[:WARM_UP_ROWS]), lambda: encode(vectors)


def mixture_work(
    version: str, rows: int, num_components: int, code_dim: int, width: int, dtype: str, seed: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    stream = generator("bench", seed)
    head = MixtureHead(width=width, num_components=num_components, code_dim=code_dim)
    head.reset_parameters(stream)
    hidden = torch.randn(rows, width, generator=stream)
    target = torch.randn(rows, code_dim, generator=stream)

    def run(count: int) -> float:
        head.zero_grad(set_to_none=True)
        inputs = hidden[:count].requires_grad_()
        weight = torch.full((count,), 1 / count)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            if version == "chunked":
                loss = mixture_loss(head, inputs, target[:count], weight).loss
            else:
                loss = (head.bound(inputs, target[:count]).total * weight).sum()
        loss.backward()
        return float(loss.detach())

    def warm_up() -> None:
        run(min(rows, WARM_UP_ROWS))
        head.zero_grad(set_to_none=True)

    return warm_up, lambda: run(rows)


def interleaved(
    runs: Mapping[str, Callable[[], object]], repetitions: int, device: torch.device | None = None
) -> dict[str, list[float]]:
    """Seconds of every run, all of them once per repetition, in an order that turns round each time."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for _ in range(repetitions):
        for name in names:
            _synchronize(device)
            begin = time.perf_counter()
            runs[name]()
            _synchronize(device)
            times[name].append(time.perf_counter() - begin)
        names.reverse()
    return times


def _synchronize(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def _spread(times: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Shortest and longest time."""
    return {name: [min(values), max(values)] for name, values in times.items()}


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    return statistics.median(n / d for n, d in zip(numerator, denominator, strict=True))


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")


def machine_of(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the numbers depend on besides the settings."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": f"{device.type}: {name}",
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": load,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
