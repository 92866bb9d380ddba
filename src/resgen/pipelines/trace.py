"""Watching a sampler: after every step the decoded pictures, and how many levels of each position are known."""

from __future__ import annotations

import os
import secrets
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from resgen.data.grid import save_picture
from resgen.errors import ConfigError, DataError
from resgen.pipelines.edit import tile_grid
from resgen.pipelines.image import ImagePipeline
from resgen.samplers.unmasking import StepRecord

MAX_SAMPLES = 8
STEP_MS, LAST_MS = 160, 2400
"""How long the frames of a GIF are shown."""
_COLOURS = ((34, 10, 60), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # none known to all known
_LINE, _BAR, _MARGIN = 14, (64, 8), 4


class _Moment(NamedTuple):
    """The shown samples of one batch after one network evaluation."""

    record: StepRecord
    codes: Int[Tensor, "B L D"]
    visible: Int[Tensor, "B L"]


class SampleTrace:
    """A sampler's callback that collects what the first samples look like after every step, and draws it at the end.

        trace = SampleTrace(pipe)
        pipe([3], num=4, callback=trace)
        trace.save("steps.gif")

    Args:
        pipe: what is watched; decodes the pictures.
        max_samples: how many are shown.
    """

    def __init__(self, pipe: ImagePipeline, *, max_samples: int = MAX_SAMPLES) -> None:
        self.pipe = pipe
        self.max_samples = max_samples
        self._batches: list[list[_Moment]] = []
        self._shown = 0
        self._between = True

    def __call__(self, record: StepRecord, codes: Tensor, visible: Tensor) -> None:
        """Note a step; batches may follow each other."""
        if self._between:  # the last batch is complete: this is the next one's first step
            self._batches.append([])
            self._take = min(len(codes), self.max_samples - self._shown)
            self._shown += self._take
        if self._take:
            shown = slice(self._take)
            self._batches[-1].append(_Moment(record, codes[shown].cpu().clone(), visible[shown].cpu().clone()))
        self._between = bool((visible == codes.shape[-1]).all())

    def frames(self) -> list[Image.Image]:
        """One picture per step: a column per sample, decoded above and as a map of known levels below.

        Raises:
            ConfigError: there was no step.
        """
        batches = [batch for batch in self._batches if batch]
        if not batches:
            raise ConfigError("no step was taken, so there is nothing to show in a trace (--trace)")
        # A batch with fewer steps than the others keeps its last.
        steps = zip_longest(*batches)
        last: list[_Moment] = [batch[0] for batch in batches]
        frames = []
        for step in steps:
            last = [new or old for new, old in zip(step, last, strict=True)]
            codes, visible = torch.cat([m.codes for m in last]), torch.cat([m.visible for m in last])
            frames.append(self._frame(max((m.record for m in last), key=lambda r: r.step), codes, visible))
        return frames

    def save(self, path: str | Path) -> list[Path]:
        """Write a GIF (`path` ends in `.gif`; its last frame is held longer), or a folder of step_0001.png, ...

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
        return files

    def _frame(self, record: StepRecord, codes: Int[Tensor, "B L D"], visible: Int[Tensor, "B L"]) -> Image.Image:
        depth, config = codes.shape[-1], self.pipe.tokenizer.config
        maps = [level_map(v, depth, self.pipe.tokenizer.spec.shape, config.downsampling) for v in visible]
        box = (0, 0, config.image_size, config.image_size)  # positions at the edge may reach beyond the picture
        tiles = [*self.pipe.decode(codes, visible=visible), *(image.crop(box) for image in maps)]
        grid = tile_grid(tiles, len(codes), row_labels=("picture", "levels"))
        font = ImageFont.load_default()
        title = f"step {record.step} of {record.num_steps}: {int(visible.sum())} of {visible.numel() * depth} codes"
        width = max(grid.width, int(font.getlength(title)) + 2 * _MARGIN)
        top = 2 * _LINE + _MARGIN
        frame = Image.new("RGB", (width, top + grid.height), "white")
        frame.paste(grid, (0, top))
        draw = ImageDraw.Draw(frame)
        draw.text((_MARGIN, 1), title, fill="black", font=font)
        draw.text((_MARGIN, _LINE), "0", fill="black", font=font)
        ramp = np.broadcast_to(_colour(np.linspace(0, 1, _BAR[0])), (_BAR[1], _BAR[0], 3))
        frame.paste(Image.fromarray(np.ascontiguousarray(ramp)), (_MARGIN + 9, _LINE + 3))
        draw.text((_MARGIN + 13 + _BAR[0], _LINE), f"{depth} levels", fill="black", font=font)
        return frame


def level_map(visible: Int[Tensor, " L"], depth: int, shape: tuple[int, ...], side: int) -> Image.Image:
    """How many of `depth` levels are known at each position, as colours (dark: none, bright: all), each position a
    block of `side` x `side` pixels."""
    share = visible.reshape(shape).numpy() / depth
    cells = Image.fromarray(_colour(share))
    return cells.resize((cells.width * side, cells.height * side), Image.Resampling.NEAREST)


def save_gif(frames: list[Image.Image], path: Path) -> Path:
    """Write an endless GIF to a temporary name beside `path`, then rename it; missing folders are made.

    Raises:
        DataError: the place cannot be written to.
    """
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
    durations = [*[STEP_MS] * (len(frames) - 1), LAST_MS]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error.strerror or error}") from error
    return path


def _colour(share: np.ndarray) -> np.ndarray:
    """Numbers in 0..1 as colours, uint8 `[..., 3]`."""
    at = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(share, at, values) for values in zip(*_COLOURS, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
