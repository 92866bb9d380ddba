"""Sampling settings by the same search for every variant, then the distance of all its trainings with the best.

python benchmarks/equal_tries.py --runs runs/variants --trainings residual direct --seeds 4 --data PATH \\
    --guidance 2 3 4 6 --choice-temperature 1 4 8

`--runs` is the folder that benchmarks/variants.py wrote. The settings are searched on the first training alone.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import tyro

from resgen.checkpoints.format import write_json_atomic
from resgen.errors import ResGenError
from resgen.experiments.judge import Judge
from resgen.kinds import sampling_with
from resgen.pipelines.image import ImagePipeline

SEARCH_SEED, FINAL_SEED = 1000, 2000


def main(
    runs: Path,
    trainings: tuple[str, ...],
    data: str,
    out: Path,
    seeds: int = 4,
    guidance: tuple[float, ...] = (2, 3, 4, 6),
    choice_temperature: tuple[float, ...] = (1, 4, 8),
    num_steps: int = 16,
    search_samples: int = 500,
    num_samples: int = 1000,
    extractor: str | None = None,
) -> None:
    """Search, then measure; guided distances.

    Args:
        runs: folder of trainings named NAME-SEED.
        trainings: their names.
        data: pictures.
        out: JSON to write.
        seeds: trainings of each name.
        guidance: weights of the last step to try.
        choice_temperature: to try with each.
        num_steps: network evaluations.
        search_samples: pictures of each try.
        num_samples: pictures of each training, with other noise than the tries'.
        extractor: whose features are compared; the bundled classifier of the same classes if left out.
    """
    config = ImagePipeline.from_pretrained(runs / f"{trainings[0]}-0" / "model").tokenizer.config
    judge = Judge(
        data, image_size=config.image_size, channels=config.channels, extractor=extractor, cache_dir=runs / "cache"
    )

    def distance(name: str, seed: int, settings: dict[str, Any], samples: int, noise: int) -> float:
        pipe = ImagePipeline.from_pretrained(runs / f"{name}-{seed}" / "model")
        sampling = sampling_with(pipe.sampling, {"num_steps": num_steps, **settings})
        return judge.score_pipeline(pipe, sampling, num_samples=samples, seed=noise).distance

    found: dict[str, Any] = {}
    for name in trainings:
        tries = [
            {"guidance_scale": weight, "choice_temperature": choice}
            for weight, choice in itertools.product(guidance, choice_temperature)
        ]
        tried = [
            settings | {"distance": distance(name, 0, settings, search_samples, SEARCH_SEED)} for settings in tries
        ]
        best = min(range(len(tries)), key=lambda index: tried[index]["distance"])
        final = [distance(name, seed, tries[best], num_samples, FINAL_SEED) for seed in range(seeds)]
        found[name] = {"tried": tried, "best": tries[best], "distances": final}
        print(f"{name}: {tries[best]}  {' '.join(f'{value:.2f}' for value in final)}", flush=True)
        write_json_atomic(out, {"metric": judge.metric, "num_samples": num_samples, "trainings": found})


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except ResGenError as error:
        sys.exit(f"error: {error}")
