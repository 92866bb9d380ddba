"""Sampling settings by the same search for every variant, then the distance of all its trainings with the best.

python benchmarks/equal_tries.py --runs runs/variants --trainings residual direct --seeds 4 --data PATH \\
    --out tries.json --fixed num_steps=16

`--runs` is the folder that benchmarks/variants.py wrote. The settings are searched on the first training alone, as
`resgen compare` does: as many tries for each kind.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tyro

from resgen.checkpoints.format import read_json
from resgen.cli.main import guard
from resgen.config import config_to_dict, parse_overrides
from resgen.experiments.image.actions import FINAL_SEED, SEARCH_SEED
from resgen.experiments.image.judge import Judge, Score
from resgen.experiments.image.sweep import find_settings
from resgen.files import write_json
from resgen.kinds import AnySampling, kind_of, without_guidance
from resgen.pipelines.image.pipeline import ImagePipeline


def main(
    runs: Path,
    trainings: tuple[str, ...],
    data: str,
    out: Path,
    seeds: int = 4,
    fixed: tuple[str, ...] = (),
    search_samples: int = 500,
    num_samples: int = 1000,
    extractor: str | None = None,
) -> None:
    """Search, then measure, guided and unguided.

    Args:
        runs: folder of trainings named NAME-SEED.
        trainings: their names; those that `out` has are not measured again.
        data: images.
        out: JSON to write, or to go on with.
        seeds: trainings of each name.
        fixed: settings that are not searched, such as num_steps=16.
        search_samples: images of each try.
        num_samples: images of each training, with other noise than the tries'.
        extractor: whose features are compared; the bundled classifier of the same classes if left out.
    """
    config = ImagePipeline.from_pretrained(runs / f"{trainings[0]}-0" / "model").tokenizer.config
    judge = Judge(
        data, image_size=config.image_size, channels=config.channels, extractor=extractor, cache_dir=runs / "cache"
    )

    def score(name: str, seed: int, sampling: AnySampling, samples: int, noise: int) -> Score:
        pipe = ImagePipeline.from_pretrained(runs / f"{name}-{seed}" / "model")
        return judge.score_pipeline(pipe, sampling, num_samples=samples, seed=noise)

    results: dict[str, Any] = read_json(out)["trainings"] if out.exists() else {}
    for name in (name for name in trainings if name not in results):
        pipe = ImagePipeline.from_pretrained(runs / f"{name}-0" / "model")
        best, rows = find_settings(
            lambda sampling, name=name: score(name, 0, sampling, search_samples, SEARCH_SEED),  # type: ignore[misc]
            kind_of(pipe.generator.config).name,
            pipe.sampling,
            depth=pipe.generator.spec.depth,
            fixed=parse_overrides(fixed),
        )
        guided, unguided = (
            [score(name, seed, sampling, num_samples, FINAL_SEED).distance for seed in range(seeds)]
            for sampling in (best, without_guidance(best))
        )
        results[name] = {
            "tried": [{**row.settings, "distance": row.score.distance} for row in rows],
            "best": config_to_dict(best),
            "guided": guided,
            "unguided": unguided,
        }
        print(f"{name}: guided {_list(guided)}; unguided {_list(unguided)}; {config_to_dict(best)}", flush=True)
        write_json(out, {"metric": judge.metric, "num_samples": num_samples, "trainings": results})


def _list(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
