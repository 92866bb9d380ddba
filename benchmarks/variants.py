"""Trains variants of a recipe's generator on the same codes and measures each, guided and unguided.

python benchmarks/variants.py benchmarks/schedule_pairs.yaml --recipe fashion_mnist \\
    --tokenizer fashion-mnist-small --data PATH --max-minutes 4 --out DIR

The file names trainings (a kind of generator, settings of the recipe, a time of its own) and measurements (of which
training, with which sampling settings); without measurements each training is measured once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import tyro

from resgen.checkpoints.artefacts import load_tokenizer
from resgen.checkpoints.format import read_json
from resgen.cli.common import load_recipe
from resgen.cli.main import guard
from resgen.config import config_from_dict, config_to_dict, load_yaml, parse_overrides, replace_nested
from resgen.errors import ConfigError, unknown
from resgen.experiments.claim import note
from resgen.experiments.image.judge import Judge
from resgen.files import write_json
from resgen.kinds import sampling_with, without_guidance
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.training import Run
from resgen.training.image.runs import encode_data, train_generator


@dataclass(frozen=True, kw_only=True)
class Training:
    """A generator to train.

    Attributes:
        kind: of generator; the recipe's own if left out.
        settings: values that replace the recipe's, by dotted key.
        minutes: its time, in place of `--max-minutes`.
    """

    kind: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    minutes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A row of the table.

    Attributes:
        training: name of the model.
        sampling: sampling settings, over those of the command line.
        about: what is known of it, such as the paper's number.
    """

    training: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Variants:
    """A file of variants."""

    trainings: Mapping[str, Training]
    measurements: tuple[Measurement, ...] = ()

    def __post_init__(self) -> None:
        for row in self.measurements:
            if row.training not in self.trainings:
                raise ConfigError(unknown("training", row.training, self.trainings))


def main(
    variants: tyro.conf.Positional[Path],
    recipe: str,
    tokenizer: str,
    data: str,
    out: Path,
    max_minutes: float,
    num_samples: int = 1000,
    seeds: int = 1,
    first_seed: int = 0,
    extractor: str | None = None,
    settings: tuple[str, ...] = (),
    sampling: tuple[str, ...] = (),
) -> None:
    """Finished trainings and measurements in `out` are not repeated; those of other settings are refused.

    Args:
        variants: YAML file of trainings and measurements.
        recipe: whose generator is varied.
        tokenizer: folder or bundled name.
        data: images.
        out: folder of the runs and of variants.json.
        max_minutes: time of each training.
        num_samples: images per measurement.
        seeds: trainings of each variant.
        first_seed: seed of the first training; two processes can share the work, each with a folder of its own.
        extractor: whose features are compared; the bundled classifier of the same classes if left out.
        settings: recipe settings of all, such as generator.width=192.
        sampling: sampling settings of all, such as num_steps=16.
    """
    plan = config_from_dict(Variants, load_yaml(variants))
    measurements = plan.measurements or tuple(Measurement(training=name) for name in plan.trainings)
    loaded, _ = load_tokenizer(tokenizer)
    _, first = load_recipe(recipe, None, [settings])
    common = {"tokenizer": tokenizer, "data": data, "extractor": extractor, "num_samples": num_samples}
    note(out, first, common | {"sampling": parse_overrides(sampling)}, resume=True)
    encode_data(loaded, data, out / "codes", flip=first.data.flip, resize=first.data.resize)
    config = loaded.config
    judge = Judge(
        data, image_size=config.image_size, channels=config.channels, extractor=extractor, cache_dir=out / "cache"
    )
    path = out / "variants.json"
    rows: list[dict[str, Any]] = read_json(path)["rows"] if path.exists() else []
    finished = [(row["training"], row["asked"], row["seed"]) for row in rows]
    for seed in range(first_seed, first_seed + seeds):
        for name, training in plan.trainings.items():
            run = out / f"{name}-{seed}"
            _, base = load_recipe(recipe, None, [settings], training.kind)
            ready = replace_nested(base, training.settings)
            ready = replace(ready, generator_training=replace(ready.generator_training, seed=seed))
            minutes = training.minutes or max_minutes
            note(out / "asked" / run.name, ready, {"minutes": minutes}, resume=True)
            if not (run / "model" / "config.json").exists():
                codes = str(out / "codes")
                train_generator(
                    ready,
                    Run(data=codes, out=run, max_minutes=minutes, resume=run.exists(), models={"tokenizer": tokenizer}),
                )
            for row in measurements:
                if row.training != name or (name, dict(row.sampling), seed) in finished:
                    continue
                pipe = ImagePipeline.from_pretrained(run / "model")
                guided = sampling_with(pipe.sampling, {**parse_overrides(sampling), **row.sampling})
                entry_row: dict[str, Any] = {"training": name, "asked": dict(row.sampling), "seed": seed}
                for title, variant in (("guided", guided), ("unguided", without_guidance(guided))):
                    score = judge.score_pipeline(pipe, variant, num_samples=num_samples, seed=2000)
                    entry_row[title] = score.distance
                    entry_row[f"{title}_precision"], entry_row[f"{title}_recall"] = score.precision, score.recall
                rows.append(entry_row | {"metric": judge.metric, "sampling": config_to_dict(guided), **row.about})
                write_json(path, {"rows": rows})
    print(f"| training | sampling | {judge.metric} guided | unguided | |\n|---|---|---|---|---|")
    for row in measurements:
        same = [entry for entry in rows if (entry["training"], entry["asked"]) == (row.training, dict(row.sampling))]
        numbers = [f"{mean(entry[title] for entry in same):.2f}" for title in ("guided", "unguided")]
        settings_text, about = (", ".join(f"{k}={v}" for k, v in part.items()) for part in (row.sampling, row.about))
        print(f"| {row.training} | {settings_text} | {' | '.join(numbers)} | {about} |")


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
