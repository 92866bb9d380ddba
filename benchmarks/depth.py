"""Network passes and seconds of sampling with guidance at several depths, all else equal.

python benchmarks/depth.py [--json] [--depths 1 4 8 16]
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Annotated, Any

import tyro
import yaml
from times import medians, spread

from resgen.cli.main import guard
from resgen.devices import choose_device, choose_dtype
from resgen.errors import ConfigError
from resgen.evaluation.bench.cases import Case, random_network
from resgen.evaluation.bench.speed import BenchConfig, count_passes
from resgen.evaluation.bench.timing import interleaved, machine_of, ratio


def main(
    depths: tuple[int, ...] = (1, 4, 8, 16),
    shape: str = "small",
    num_steps: int = 16,
    batch_size: int = 16,
    repetitions: int = 5,
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """The linear schedule reveals the same share in every step, so that no step is empty at any depth.

    Prints `passes` (network passes per sample, two per guided step, counted at the network) and `seconds` by depth, the
    ratio of the last two depths (`ratio_16_over_8`) and `settings`.

    Args:
        depths: two or more, rising.
        shape: networks and codes: paper, base, small or tiny.
        num_steps: network evaluations.
        batch_size: samples at a time.
        repetitions: of every timing.
        dtype: float32, bfloat16 or auto.
        device: cpu, cuda, cuda:1 or auto.
        seed: of weights and noise.
        as_json: write one JSON document to standard output.
    """
    if len(depths) < 2 or sorted(depths) != list(depths):
        raise ConfigError(f"depths={depths} must be two or more rising numbers")
    config = BenchConfig(
        shape=shape,
        kinds=("resgen",),
        depths=depths,
        batch_sizes=(batch_size,),
        num_steps=num_steps,
        repetitions=repetitions,
        seed=seed,
    )
    place = choose_device(device)
    data_type = choose_dtype(dtype, place)
    cases = {str(case.depth): case for case in config.cases([data_type])}
    networks = {depth: random_network(case.config, case.spec, place, data_type, seed) for depth, case in cases.items()}
    runs = {depth: partial(case.sample, networks[depth]) for depth, case in cases.items()}
    passes = {depth: int(_passes(networks[depth], case)) for depth, case in cases.items()}
    times = interleaved(runs, repetitions, place)
    before, last = list(cases)[-2:]
    network = next(iter(cases.values()))
    result: dict[str, Any] = {
        "passes": passes,
        "seconds": medians(times),
        "spread": spread(times),
        f"ratio_{last}_over_{before}": ratio(times[last], times[before])["median"],
        "settings": {
            "num_steps": num_steps,
            "batch_size": batch_size,
            "positions": network.spec.num_positions,
            "codebook_size": network.spec.codebook_size,
            "code_dim": network.spec.code_dim,
            "width": network.config.width,
            "num_layers": network.config.num_layers,
            "num_components": network.config.num_components,
            "guidance_scale": network.sampling.guidance_scale,
            "repetitions": repetitions,
            "seed": seed,
            **machine_of(place, data_type),
        },
    }
    print(json.dumps(result) if as_json else yaml.safe_dump(result, sort_keys=False).rstrip())


def _passes(network: Any, case: Case) -> float:
    by_network, _ = count_passes(network, case, lambda: case.sample(network))
    return by_network["transformer"]


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
