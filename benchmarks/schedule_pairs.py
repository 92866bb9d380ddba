"""Mask schedules of training and of sampling in the pairs of Table 7: trains a model per schedule, measures the pairs.

python benchmarks/schedule_pairs.py --recipe fashion_mnist --tokenizer fashion-mnist-small --data PATH \\
    --max-minutes 4 --out DIR
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from resgen.checkpoints.artefacts import load_tokenizer
from resgen.checkpoints.format import read_json, write_json_atomic
from resgen.cli.common import load_recipe
from resgen.config import config_to_dict
from resgen.errors import ResGenError
from resgen.experiments.judge import Judge
from resgen.kinds import sampling_with, without_guidance
from resgen.pipelines.image import ImagePipeline
from resgen.training.runs import encode_data, train_generator

PAIRS = (
    ("circle", "exponential", 9.53),
    ("cosine", "exponential", 9.66),
    ("circle", "circle", 10.09),
    ("exponential", "exponential", 12.63),
    ("cosine", "cosine", 15.46),
)
"""Train and sample schedule, and the paper's guided FID (Table 7)."""


def main(
    recipe: str,
    tokenizer: str,
    data: str,
    out: Path,
    max_minutes: float,
    exponential: str = "power",
    num_samples: int = 2000,
    seeds: int = 1,
    kind: str | None = None,
    settings: tuple[str, ...] = (),
    sampling: tuple[str, ...] = (),
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Finished trainings and measurements in `out` are not repeated.

    Args:
        recipe: its generator is trained.
        tokenizer: folder or bundled name.
        data: pictures.
        out: folder of the runs and of pairs.json.
        max_minutes: time of each training.
        exponential: the schedule that stands for the paper's, which it does not define: `power` or `exponential`.
        num_samples: pictures per measurement.
        seeds: trainings of each schedule.
        kind: kind of generator, the recipe's own if left out.
        settings: recipe settings such as generator.width=192.
        sampling: sampling settings such as num_steps=16.
        as_json: write one JSON document to standard output.
    """
    chosen = load_recipe(recipe, None, [settings], kind)
    spec, _ = load_tokenizer(tokenizer)
    encode_data(tokenizer, data, out / "codes", flip=chosen.data.flip, resize=chosen.data.resize)
    config = spec.config
    judge = Judge(data, image_size=config.image_size, channels=config.channels, cache_dir=out / "cache")
    values = {
        key: json.loads(value) if value[0].isdigit() else value
        for key, _, value in (s.partition("=") for s in sampling)
    }
    names = {"exponential": exponential}
    path = out / "pairs.json"
    rows = read_json(path)["rows"] if path.exists() else []
    done = {(row["train"], row["sample"], row["seed"]) for row in rows}
    for seed in range(seeds):
        for train, draw, paper in PAIRS:
            train, draw = names.get(train, train), names.get(draw, draw)
            run = out / f"{train}-{seed}"
            if not (run / "model" / "config.json").exists():
                ready = replace(
                    chosen,
                    generator_loss=replace(chosen.generator_loss, mask_schedule=train),
                    generator_training=replace(chosen.generator_training, seed=seed),
                )
                train_generator(
                    ready,
                    data=str(out / "codes"),
                    tokenizer=tokenizer,
                    out=run,
                    max_minutes=max_minutes,
                    resume=run.exists(),
                )
            if (train, draw, seed) in done:
                continue
            pipe = ImagePipeline.from_pretrained(run / "model")
            guided = sampling_with(pipe.sampling, {**values, "mask_schedule": draw})
            row = {"train": train, "sample": draw, "seed": seed, "paper": paper, "metric": judge.metric}
            for name, settings_ in (("guided", guided), ("unguided", without_guidance(guided))):
                row[name] = judge.score_pipeline(pipe, settings_, num_samples=num_samples, seed=2000).distance
            row["sampling"] = config_to_dict(guided)
            rows.append(row)
            write_json_atomic(path, {"rows": rows})
    if as_json:
        print(json.dumps(rows))
        return
    print(f"| train | sample | {judge.metric} guided | unguided | paper, guided FID |\n|---|---|---|---|---|")
    for train, draw, paper in PAIRS:
        train, draw = names.get(train, train), names.get(draw, draw)
        found = [row for row in rows if (row["train"], row["sample"]) == (train, draw)]
        means = [sum(row[name] for row in found) / len(found) for name in ("guided", "unguided")]
        print(f"| {train} | {draw} | {means[0]:.2f} | {means[1]:.2f} | {paper} |")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except ResGenError as error:
        sys.exit(f"error: {error}")
