"""Traces of a sampler: after every step, the image decoded so far and the number of known levels per position."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from resgen.data.pictures.grid import save_picture
from resgen.errors import ConfigError
from resgen.files import atomic_path
from resgen.pipelines.image.output import tile_grid
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.samplers.records import StepRecord

MAX_SAMPLES = 8
STEP_MS, LAST_MS = 160, 2400
"""How long the frames of a GIF are shown."""
_COLOURS = ((34, 10, 60), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # none known to all known
_LINE, _BAR, _MARGIN = 14, (64, 8), 4
_STEP_FILE = re.compile(r"step_\d{4,}\.png")


class _Moment(NamedTuple):
    """The shown samples of one batch after one network evaluation."""

    record: StepRecord
    codes: list[Int[Tensor, "_ D"]]
    visible: list[Int[Tensor, " _"]]


class StepTrace(ABC):
    """A sampler's callback that collects what the first samples look like after every step, and draws it at the end.

    Args:
        max_samples: how many are shown.
    """

    def __init__(self, max_samples: int) -> None:
        self.max_samples = max_samples
        self._batches: list[list[_Moment]] = []
        self._num_samples = 0
        self._between = True
        self._lengths: Sequence[int] | None = None

    @abstractmethod
    def draw(self, codes: list[Int[Tensor, "_ D"]], visible: list[Int[Tensor, " _"]]) -> Image.Image:
        """The samples with so many levels of each position known."""

    def begin_batch(self, lengths: Sequence[int]) -> None:
        """A batch of sequences of so many positions follows; what is beyond them is not shown."""
        self._lengths = lengths

    def __call__(self, record: StepRecord, codes: Int[Tensor, "B L D"], visible: Int[Tensor, "B L"]) -> None:
        """Note a step; batches may follow each other."""
        if self._between:  # the last batch is complete: this is the next one's first step
            self._batches.append([])
            self._take = min(len(codes), self.max_samples - self._num_samples)
            self._num_samples += self._take
        if self._take:
            lengths = ([codes.shape[1]] * len(codes) if self._lengths is None else self._lengths)[: self._take]
            parts = [
                [row[:length].cpu().clone() for row, length in zip(whole, lengths, strict=False)]
                for whole in (codes, visible)
            ]
            self._batches[-1].append(_Moment(record, *parts))
        self._between = bool((visible == codes.shape[-1]).all())

    def frames(self) -> list[Image.Image]:
        """One image per step, under a title and a legend.

        Raises:
            ConfigError: there was no step.
        """
        batches = [batch for batch in self._batches if batch]
        if not batches:
            raise ConfigError("no sampling step was taken, so there is nothing to trace")
        # A batch with fewer steps than the others keeps its last.
        last: list[_Moment] = [batch[0] for batch in batches]
        frames = []
        for step in zip_longest(*batches):
            last = [new or old for new, old in zip(step, last, strict=True)]
            record = max((moment.record for moment in last), key=lambda record: record.step)
            codes = [row for moment in last for row in moment.codes]
            visible = [row for moment in last for row in moment.visible]
            frames.append(self._frame(record, codes, visible))
        return frames

    def save(self, path: str | Path) -> list[Path]:
        """Write a GIF (`path` ends in `.gif`; its last frame is held longer), or a folder of step_0001.png, ...

        Files of that name in the folder that belong to later steps, of an earlier and longer run, are removed;
        everything else there stays.

        Returns:
            The files.

        Raises:
            ConfigError: there was no step.
            DataError: the place cannot be written to.
        """
        path, frames = Path(path), self.frames()
        if path.suffix.lower() == ".gif":
            return [save_gif(frames, path)]
        files = [path / f"step_{number:04d}.png" for number in range(1, len(frames) + 1)]
        for frame, file in zip(frames, files, strict=True):
            save_picture(frame, file)
        for file in path.iterdir():
            if _STEP_FILE.fullmatch(file.name) and file not in files and file.is_file():
                file.unlink(missing_ok=True)
        return files

    def _frame(
        self, record: StepRecord, codes: list[Int[Tensor, "_ D"]], visible: list[Int[Tensor, " _"]]
    ) -> Image.Image:
        depth, known = codes[0].shape[-1], sum(int(row.sum()) for row in visible)
        drawing = self.draw(codes, visible)
        font = ImageFont.load_default()
        title = f"step {record.step} of {record.num_steps}: {known} of {sum(row.numel() for row in codes)} codes"
        width = max(drawing.width, int(font.getlength(title)) + 2 * _MARGIN)
        top = 2 * _LINE + _MARGIN
        frame = Image.new("RGB", (width, top + drawing.height), "white")
        frame.paste(drawing, (0, top))
        draw = ImageDraw.Draw(frame)
        draw.text((_MARGIN, 1), title, fill="black", font=font)
        draw.text((_MARGIN, _LINE), "0", fill="black", font=font)
        ramp = np.broadcast_to(level_colours(np.linspace(0, 1, _BAR[0])), (_BAR[1], _BAR[0], 3))
        frame.paste(Image.fromarray(np.ascontiguousarray(ramp)), (_MARGIN + 9, _LINE + 3))
        draw.text((_MARGIN + 13 + _BAR[0], _LINE), f"{depth} levels", fill="black", font=font)
        return frame


class SampleTrace(StepTrace):
    """A trace of images: a column per sample, decoded above and as a map of known levels below.

        trace = SampleTrace(pipe)
        pipe(3, num_samples=4, callback=trace)
        trace.save("steps.gif")

    Args:
        pipe: what is watched; decodes the images.
        max_samples: how many are shown.
    """

    def __init__(self, pipe: ImagePipeline, *, max_samples: int = MAX_SAMPLES) -> None:
        super().__init__(max_samples)
        self.pipe = pipe

    def draw(self, codes: list[Int[Tensor, "_ D"]], visible: list[Int[Tensor, " _"]]) -> Image.Image:
        """See `StepTrace.draw`."""
        depth, config = codes[0].shape[-1], self.pipe.tokenizer.config
        maps = [level_map(v, depth, self.pipe.tokenizer.spec.shape, config.downsampling) for v in visible]
        box = (0, 0, config.image_size, config.image_size)  # positions at the edge may reach beyond the image
        pictures = self.pipe.decode(torch.stack(codes), visible=torch.stack(visible))
        tiles = [*pictures, *(image.crop(box) for image in maps)]
        return tile_grid(tiles, len(codes), row_labels=("image", "levels"))


def level_map(visible: Int[Tensor, " L"], depth: int, shape: tuple[int, ...], side: int) -> Image.Image:
    """How many of `depth` levels are known at each position, as colours (dark: none, bright: all), each position a
    block of `side` x `side` pixels."""
    share = visible.reshape(shape).numpy() / depth
    cells = Image.fromarray(level_colours(share))
    return cells.resize((cells.width * side, cells.height * side), Image.Resampling.NEAREST)


def save_gif(frames: list[Image.Image], path: Path) -> Path:
    """Write an endless GIF atomically.

    Raises:
        WriteError: the place cannot be written to.
    """
    durations = [*[STEP_MS] * (len(frames) - 1), LAST_MS]
    with atomic_path(path, sync=False) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return path


def level_colours(share: np.ndarray) -> np.ndarray:
    """Numbers in 0..1 as colours, uint8 `[..., 3]`."""
    at = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(share, at, values) for values in zip(*_COLOURS, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
