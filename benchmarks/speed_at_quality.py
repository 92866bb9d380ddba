"""How long does each kind take to make images of the same distance? Distances of several trainings at several numbers
of sampling steps, and seconds per image, all in one process.

python benchmarks/speed_at_quality.py --runs runs/variants --tries tries.json --seeds 3 --data PATH --out speed.json \\
    --steps 2 4 8 16

`--runs` is the folder that benchmarks/variants.py wrote, `--tries` what equal_tries.py found for its trainings. A kind
that has no number of steps is measured once.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import tyro
from times import medians

from resgen.checkpoints.format import read_json
from resgen.cli.main import guard
from resgen.config import config_from_dict
from resgen.errors import ConfigError, unknown
from resgen.evaluation.bench.timing import interleaved
from resgen.experiments.image.judge import Judge
from resgen.files import write_json
from resgen.kinds import AnySampling, kind_of
from resgen.pipelines.image.pipeline import ImagePipeline

SEED = 2000


def main(
    runs: Path,
    tries: Path,
    data: str,
    out: Path,
    trainings: tuple[str, ...] = (),
    steps: tuple[int, ...] = (2, 4, 8, 16),
    seeds: int = 3,
    num_samples: int = 1000,
    batches: tuple[int, ...] = (1, 64),
    repetitions: int = 5,
    extractor: str | None = None,
) -> None:
    """Measure, then print a table.

    Args:
        runs: folder of trainings named NAME-SEED.
        tries: JSON of the settings found for each name.
        data: images.
        out: JSON to write; distances that it has are not measured again.
        trainings: their names; all of `tries` if left out.
        steps: sampling steps, in place of those in `tries`.
        seeds: trainings of each name.
        num_samples: images of each training.
        batches: images made at one time, for the timing.
        repetitions: of the timing; they take turns, and the median counts. 0 for no timing.
        extractor: whose features are compared; the bundled classifier of the same classes if left out.
    """
    known = read_json(tries)["trainings"]
    for name in trainings:
        if name not in known:
            raise ConfigError(unknown("training", name, known))
    best = {name: known[name]["best"] for name in trainings or known}
    pipes = {name: ImagePipeline.from_pretrained(runs / f"{name}-0" / "model") for name in best}
    cases: dict[str, tuple[str, AnySampling]] = {}
    for name, settings in best.items():
        config = kind_of(pipes[name].generator.config).sampling
        for count in steps if "num_steps" in settings else (None,):
            case_settings = settings if count is None else {**settings, "num_steps": count}
            label = name if count is None else f"{name}, {count} steps"
            cases[label] = (name, config_from_dict(config, case_settings, where="sampling."))
    shape = next(iter(pipes.values())).tokenizer.config
    judge = Judge(data, image_size=shape.image_size, channels=shape.channels, extractor=extractor)
    results: dict[str, Any] = read_json(out)["cases"] if out.exists() else {}
    for label, (name, sampling) in cases.items():
        if label not in results:
            distances = []
            for seed in range(seeds):
                pipe = ImagePipeline.from_pretrained(runs / f"{name}-{seed}" / "model")
                distances.append(judge.score_pipeline(pipe, sampling, num_samples=num_samples, seed=SEED).distance)
            results[label] = {"distances": distances}
            print(f"{label}: {' '.join(f'{value:.2f}' for value in distances)}", flush=True)
            write_json(out, {"metric": judge.metric, "num_samples": num_samples, "cases": results})
    for batch in batches if repetitions else ():
        work = {label: partial(_generate, pipes[name], sampling, batch) for label, (name, sampling) in cases.items()}
        interleaved(work, 1)  # warms up
        for label, seconds in medians(interleaved(work, repetitions)).items():
            results[label][f"seconds_{batch}"] = seconds / batch
    document = {
        "metric": judge.metric,
        "num_samples": num_samples,
        "threads": torch.get_num_threads(),
        "cases": results,
    }
    write_json(out, document)
    print(f"| | {judge.metric} | " + " | ".join(f"s per image, {batch} at a time" for batch in batches) + " |")
    print("|---" * (2 + len(batches)) + "|")
    for label in cases:
        row = results[label]
        times = [f"{row[f'seconds_{batch}']:.4f}" if f"seconds_{batch}" in row else "" for batch in batches]
        print(f"| {label} | {mean(row['distances']):.2f} | {' | '.join(times)} |")


def _generate(pipe: ImagePipeline, sampling: AnySampling, batch: int) -> None:
    class_ids = [index % max(pipe.num_classes, 1) for index in range(batch)]
    pipe.generate_pixels(class_ids, first_index=0, seed=0, batch_size=batch, sampling=sampling)


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
