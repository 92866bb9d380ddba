"""`resgen generate image`: new pictures of given classes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from resgen.cli.common import (
    Json,
    check_out_dir,
    check_out_file,
    count_passes,
    flatten,
    option,
    positive,
    progress_bar,
    report,
    slug,
    to_pixels,
)

if TYPE_CHECKING:
    from resgen.pipelines.image import ImagePipeline

Trace = Annotated[
    Path | None,
    arg(
        metavar="FILE.gif|DIR",
        help="Show the sampler at work, step by step: a GIF, or a folder for one picture per step.",
        help_behavior_hint="",
    ),
]
Classes = Annotated[tuple[tuple[str, ...], ...], UseAppendAction, option("NAME_OR_ID ...", name="class")]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Settings of the sampler; the model's own where they are left out."""

    steps: Annotated[int | None, option("N")] = None
    """Network evaluations of the sampler."""
    guidance_scale: Annotated[float | None, option("W")] = None
    """How far to move from the unconditional prediction; 0 is off and halves the time."""
    guidance_start: Annotated[float | None, option("SHARE")] = None
    """Share of the steps before guidance sets in; steps without it take half the time."""
    guidance_end: Annotated[float | None, option("SHARE")] = None
    """Share of the steps after which guidance is off again."""
    reuse_steps: Annotated[int | None, option("N")] = None
    """Steps for which keys and values of finished positions are used again; 0 computes everything in every step."""
    top_p: Annotated[float | None, option("P")] = None
    """Mass of the mixture components to draw from, in (0, 1]."""
    temperature: Annotated[float | None, option("T")] = None
    """Scale of the noise of the chosen component."""
    top_k: Annotated[int | None, option("K")] = None
    """Most likely codes to draw from (kind rq_transformer only)."""
    choice_temperature: Annotated[float | None, option("T")] = None
    """Randomness in the order in which tokens are revealed."""
    schedule: Annotated[str | None, option("NAME")] = None
    """Mask schedule: circle, cosine, linear, exponential or power."""
    batch_size: Annotated[int | None, option("N")] = None
    """Pictures per network evaluation."""

    def settings(self) -> dict[str, Any]:
        """The sampling options that were given, by the pipeline's names."""
        given = {
            "num_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "guidance_start": self.guidance_start,
            "guidance_end": self.guidance_end,
            "reuse_steps": self.reuse_steps,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "temperature": self.temperature,
            "choice_temperature": self.choice_temperature,
            "mask_schedule": self.schedule,
            "batch_size": self.batch_size,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class GenerateImage:
    """Generate new pictures with a trained model.

    What is left out is taken from the model's own settings. For example:

        resgen generate image --model fashion-mnist-small --class bag 9 --num 4 --out bags.png
        resgen generate image --model runs/digits/model --num 10 --steps 16 --guidance-scale 2 --out pictures/
    """

    model: Annotated[str, option("DIR_OR_NAME")]
    """Folder of a pipeline, or a bundled name (see `resgen models`)."""
    classes: Classes = ()
    """Classes by name or number; without them every class of the model."""
    num: Annotated[int, option("N")] = 1
    """Pictures of each class; 1 if left out."""
    sampling: Annotated[SamplingOptions, OmitArgPrefixes] = SamplingOptions()
    seed: int = 0
    """Picture k is drawn from the stream (seed, k), in batches of any size."""
    device: Annotated[str | None, option("NAME")] = None
    """cpu, cuda or cuda:1; without it a GPU if there is one."""
    out: Annotated[Path, option("FILE_OR_DIR")]
    """A picture file such as a.png (several pictures become a grid), or a folder for one file per picture."""
    trace: Trace = None
    as_json: Json = False

    def run(self) -> None:
        positive("--num", self.num)
        to_folder = self.out.is_dir() or not self.out.suffix
        check_out_dir(self.out) if to_folder else check_out_file(self.out)
        check_trace(self.trace)
        from resgen.pipelines.image import ImagePipeline

        pipe = ImagePipeline.from_pretrained(self.model, device=self.device)
        class_ids = self.class_ids(pipe)
        chosen: dict[str, Any] = {"class_ids": class_ids} if class_ids else {"num": self.num}
        begin = time.perf_counter()
        with watched(pipe, self.trace) as (callback, traced):
            result = pipe(seed=self.seed, callback=callback, **chosen, **self.sampling.settings())
            seconds = time.perf_counter() - begin
        names = [name_of(pipe, c) for c in class_ids] if class_ids else ["picture"] * len(result.images)
        files = self.write_folder(result.images, names) if to_folder else self.write_file(result.images)
        passes = count_passes(result.steps)
        document = {
            "files": files,
            "trace": traced,
            "class_ids": class_ids,
            "class_names": names,
            "seconds": seconds,
            "steps": result.steps,
            "passes": passes,
            "depth": result.codes.shape[-1],
        }
        text = f"{len(result.images)} picture(s) in {seconds:.1f} s with {passes} network passes: {self.out}"
        report(document, as_json=self.as_json, text=text)

    def write_file(self, images: list[Any]) -> list[Path]:
        """One picture, or a grid of several: a row per class if each has its own `num` pictures."""
        from resgen.data.grid import picture_grid, save_picture

        columns = self.num if 1 < self.num < len(images) else math.ceil(math.sqrt(len(images)))
        scale = max(1, 64 // images[0].width)  # small pictures are magnified in a grid
        grid = picture_grid(to_pixels(images), columns, scale=scale) if len(images) > 1 else images[0]
        save_picture(grid, self.out)
        return [self.out]

    def write_folder(self, images: list[Any], names: list[str]) -> list[Path]:
        """One file per picture: class, number of the picture, seed."""
        from resgen.data.grid import save_picture

        files = [self.out / f"{slug(name)}_{k:04d}_{self.seed}.png" for k, name in enumerate(names)]
        for image, file in zip(images, files, strict=True):
            save_picture(image, file)
        return files

    def class_ids(self, pipe: ImagePipeline) -> list[int] | None:
        """One class per picture, or None for a model without classes."""
        names = flatten(self.classes)
        chosen = [pipe.class_id(name) for name in names] if names else list(range(len(pipe.class_names)))
        return [c for c in chosen for _ in range(self.num)] or None


def name_of(pipe: ImagePipeline, class_id: int) -> str:
    """The name of a class, or its number for a model without names."""
    return pipe.class_names[class_id] if class_id < len(pipe.class_names) else str(class_id)


def check_trace(path: Path | None) -> None:
    """Refuse a place for a trace that could not be written, before any heavy work.

    Raises:
        ConfigError: a file that is no GIF, or a place that cannot be written to.
    """
    if path is None:
        return
    is_file = path.suffix and not path.is_dir()
    check_out_file(path, (".gif",), name="--trace") if is_file else check_out_dir(path, name="--trace")


@contextlib.contextmanager
def watched(pipe: ImagePipeline, path: Path | None) -> Iterator[tuple[Callable[..., None], list[Path]]]:
    """Sampling under a progress bar, and with a trace if there is a place for one.

    Yields the sampler's callback, and a list that holds the files of the trace when the sampling has ended well.
    """
    files: list[Path] = []
    with progress_bar("sampling") as step_done:
        if path is None:
            yield step_done, files
            return
        from resgen.pipelines.trace import SampleTrace

        trace = SampleTrace(pipe)

        def callback(*step: Any) -> None:
            step_done(*step)
            trace(*step)

        yield callback, files
    files += trace.save(path)
