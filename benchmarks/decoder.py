"""Distances of trained models whose samples another decoder of the same codes draws.

python benchmarks/decoder.py --tokenizer runs/decoder/model --data PATH --out decoder.json \\
    --models runs/variants/direct-0/model runs/variants/residual-0/model --sampling num_steps=16

`resgen train tokenizer --init TOKENIZER --set tokenizer_loss.decoder_only=true` trains such a decoder: encoder and
codebooks stay, so that generators of these codes need no further training. The codes are those of `variants.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import tyro

from resgen.checkpoints.artefacts import load_tokenizer
from resgen.checkpoints.format import read_json
from resgen.cli.main import guard
from resgen.config import config_to_dict, parse_overrides
from resgen.errors import ConfigError
from resgen.experiments.image.actions import FINAL_SEED
from resgen.experiments.image.judge import Judge
from resgen.files import write_json
from resgen.kinds import sampling_with, without_guidance
from resgen.pipelines.image.pipeline import ImagePipeline


def main(
    tokenizer: str,
    models: tuple[str, ...],
    data: str,
    out: Path,
    sampling: tuple[str, ...] = (),
    num_samples: int = 1000,
    extractor: str | None = None,
) -> None:
    """Models that `out` has are not measured again; a file of other settings is refused.

    Args:
        tokenizer: folder or bundled name; its encoder and codebooks are those of the models.
        models: folders or bundled names.
        data: images.
        out: JSON to write, or to continue.
        sampling: sampling settings of all, such as num_steps=16, over each model's own.
        num_samples: images per distance.
        extractor: whose features are compared; the bundled classifier of the same classes if left out.
    """
    other, _ = load_tokenizer(tokenizer)
    config = other.config
    judge = Judge(data, image_size=config.image_size, channels=config.channels, extractor=extractor)
    asked: dict[str, Any] = {"tokenizer": tokenizer, "data": data, "num_samples": num_samples, "metric": judge.metric}
    asked["sampling"] = parse_overrides(sampling)
    found = read_json(out) if out.exists() else {**asked, "rows": []}
    rows: list[dict[str, Any]] = found["rows"]
    for name, value in asked.items():
        if found.get(name) != value:
            raise ConfigError(f"'{out}' has {name}={found.get(name)}, not {value}; choose another --out")
    for model in (model for model in models if model not in {row["model"] for row in rows}):
        pipe = ImagePipeline.from_pretrained(model)
        if not torch.equal(pipe.tokenizer.quantizer.codebooks, other.quantizer.codebooks):
            raise ConfigError(f"'{model}' has other codebooks than '{tokenizer}': its codes mean something else")
        guided = sampling_with(pipe.sampling, asked["sampling"])
        pipe.tokenizer = other.to(pipe.device)
        row: dict[str, Any] = {"model": model, "sampling": config_to_dict(guided)}
        for title, variant in (("guided", guided), ("unguided", without_guidance(guided))):
            row[title] = judge.score_pipeline(pipe, variant, num_samples=num_samples, seed=FINAL_SEED).distance
        rows.append(row)
        write_json(out, {**asked, "rows": rows})
    print(f"| decoder of {tokenizer} | {judge.metric} guided | unguided |\n|---|---|---|")
    for row in rows:
        print(f"| {row['model']} | {row['guided']:.2f} | {row['unguided']:.2f} |")


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
