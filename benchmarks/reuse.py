"""What reuse of finished positions, and guidance on a part of the steps, cost in quality and save in time.

python benchmarks/reuse.py --model fashion-mnist-small --data PATH --out reuse.json
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from resgen.checkpoints.format import write_json_atomic
from resgen.errors import ResGenError
from resgen.experiments.judge import Judge
from resgen.kinds import sampling_with
from resgen.pipelines.image import ImagePipeline


def main(
    model: str,
    data: str,
    out: Path,
    steps: tuple[int, ...] = (0, 1, 2, 4, 8),
    num_steps: int = 16,
    num_samples: int = 1000,
    repetitions: int = 5,
) -> None:
    """Distances use the same seeds for all settings; times are medians of interleaved batches of 64, whole calls.

    Args:
        model: folder or bundled name.
        data: pictures to compare with.
        out: JSON file of the rows.
        steps: settings of `reuse_steps`.
        num_steps: of the sampler.
        num_samples: pictures per setting.
        repetitions: batches that are timed.
    """
    pipe = ImagePipeline.from_pretrained(model)
    config = pipe.tokenizer.config
    judge = Judge(data, image_size=config.image_size, channels=config.channels)
    settings: dict[str, dict[str, Any]] = {f"reuse {count}": {"reuse_steps": count} for count in steps}
    for begin_at, end_at in ((0.25, 1.0), (0.5, 1.0), (0.0, 0.75), (0.25, 0.75)):
        settings[f"guidance {begin_at:g} to {end_at:g}"] = {"guidance_start": begin_at, "guidance_end": end_at}
    chosen = {name: sampling_with(pipe.sampling, {"num_steps": num_steps, **given}) for name, given in settings.items()}
    class_ids = [index % max(1, pipe.num_classes) for index in range(64)]
    times: dict[str, list[float]] = {name: [] for name in chosen}
    for seed in range(repetitions + 1):
        for name, sampling in chosen.items():
            pipe.sampling = sampling
            begin = time.perf_counter()
            pipe(class_ids, seed=seed, batch_size=64)
            times[name].append(time.perf_counter() - begin)
    rows = []
    for name, sampling in chosen.items():
        score = judge.score_pipeline(pipe, sampling, num_samples=num_samples, seed=2000)
        rows.append(
            {
                "setting": name,
                "distance": score.distance,
                "recognised": score.recognised,
                "time_ratio": median(times[name][1:]) / median(times["reuse 0"][1:]),
                "seconds": median(times[name][1:]),
            }
        )
        print(rows[-1], flush=True)
        write_json_atomic(
            out, {"metric": judge.metric, "num_samples": num_samples, "num_steps": num_steps, "rows": rows}
        )


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except ResGenError as error:
        sys.exit(f"error: {error}")
