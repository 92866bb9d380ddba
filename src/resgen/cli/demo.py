"""`resgen demo`: a picture grid of all classes from a bundled model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resgen.cli.common import (
    Json,
    bundled_models,
    check_out_file,
    count_passes,
    message,
    progress_bar,
    report,
    to_pixels,
)
from resgen.errors import CheckpointError

DEFAULT = "fashion-mnist"  # the first bundled pipeline whose name begins so
PER_CLASS = 8


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Write a grid of generated pictures, one row per class, from the bundled model.

    For example:

        resgen demo --out out
    """

    out: Path = Path("out")
    """Folder for demo.png."""
    seed: int = 0
    """Picture k of the grid is drawn from the stream (seed, k)."""
    as_json: Json = False

    def run(self) -> None:
        path = self.out / "demo.png"
        check_out_file(path)
        from resgen.data.grid import picture_grid, save_picture
        from resgen.pipelines.image import ImagePipeline

        name = default_model(bundled_models())
        message(f"generating {PER_CLASS} pictures of every class with '{name}'")
        pipe = ImagePipeline.from_pretrained(name)
        classes = pipe.class_names
        class_ids = [c for c in range(len(classes)) for _ in range(PER_CLASS)]
        begin = time.perf_counter()
        with progress_bar("sampling") as step_done:
            result = pipe(class_ids=class_ids, seed=self.seed, batch_size=len(class_ids), callback=step_done)
        seconds = time.perf_counter() - begin
        grid = picture_grid(to_pixels(result.images), PER_CLASS, scale=2, row_labels=list(classes))
        save_picture(grid, path)
        document = {
            "file": path,
            "model": name,
            "pictures": len(result.images),
            "seconds": seconds,
            "steps": len({step.step for step in result.steps}),
            "passes": count_passes(result.steps),
            "depth": result.codes.shape[-1],
        }
        text = (
            "{pictures} pictures in {seconds:.1f} s: {steps} steps, {passes} network passes, depth {depth}"
            "\nthe grid is in {file}"
        )
        report(document, as_json=self.as_json, text=text.format(**document))


def default_model(bundled: Sequence[dict[str, Any]]) -> str:
    """The bundled pipeline that the demo shows.

    Raises:
        CheckpointError: no pipeline is bundled with this installation.
    """
    names: list[str] = [model["name"] for model in bundled if model["kind"] == "pipeline"]
    if not names:
        raise CheckpointError("no model is bundled with this installation; install resgen from a complete source tree")
    return next((name for name in names if name.startswith(DEFAULT)), names[0])
