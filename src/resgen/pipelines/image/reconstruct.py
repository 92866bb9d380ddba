"""Images through a tokenizer, level by level."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from resgen.checkpoints.artefacts import load_tokenizer
from resgen.data.pictures.decode import read_image
from resgen.data.pictures.grid import picture_grid, save_picture
from resgen.data.pictures.sources import SUFFIXES, available_splits, open_images
from resgen.data.pictures.store import PictureStore
from resgen.errors import ConfigError
from resgen.ops.images import at_once, from_uint8, psnr_db, to_uint8
from resgen.pipelines.image.output import SHEET_CELL
from resgen.progress import show_progress
from resgen.tokenizers.image import ImageTokenizer

PREVIEW_ROWS = 8
BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """The result of `reconstruct`.

    Attributes:
        levels: numbers of decoded levels.
        psnr_db: for each of them, averaged over the images (8-bit; at most 100).
        num_pictures: how many.
        seconds: for encoding and decoding.
    """

    levels: list[int]
    psnr_db: list[float]
    num_pictures: int
    seconds: float


@torch.inference_mode()
def reconstruct(
    tokenizer: str | Path,
    input_path: str | Path,
    out: str | Path,
    *,
    resize: bool = False,
    levels: Sequence[int] = (),
    device: torch.device | None = None,
) -> Reconstruction:
    """Encode and decode an image or a data set, and write the first images decoded from 1, 2, ... levels.

    Args:
        tokenizer: folder of a tokenizer or pipeline, or a bundled name.
        input_path: an image, or data as `open_images` takes it (its test split if it has one).
        out: image to write: a row per input image (8 at most), a column per number of levels, the original last.
        resize: cut out and resize images of another size, instead of refusing them.
        levels: numbers of levels to decode; 1, 2, ... all of them by default.
        device: where to compute; the CPU by default.

    Raises:
        ConfigError: more levels than the tokenizer has, or fewer than 1.
        DataError: images that do not fit or cannot be read.
    """
    model, _ = load_tokenizer(tokenizer)
    model.to(device or torch.device("cpu"))
    depth = model.spec.depth
    counts = sorted(set(levels)) or list(range(1, depth + 1))
    if not 1 <= counts[0] <= counts[-1] <= depth:
        raise ConfigError(f"levels={list(levels)} must lie in 1..{depth}, the levels of the tokenizer")
    batches = _batches(model, input_path, resize)
    begin = time.perf_counter()
    psnr = torch.zeros(len(counts), dtype=torch.float64)
    count = 0
    rows: list[Tensor] = []
    for pictures in show_progress(((1, batch) for batch in batches), len(batches), "reconstructing"):
        batch = pictures().to(model.quantizer.codebooks.device)
        outputs = decode_levels(model, batch, counts)
        psnr += torch.stack([psnr_db(output, batch).sum() for output in outputs]).cpu()
        count += len(batch)
        if not rows:
            rows = [*(output[:PREVIEW_ROWS].cpu() for output in outputs), batch[:PREVIEW_ROWS].cpu()]
    seconds = time.perf_counter() - begin
    labels = [*map(str, counts), "original"]
    sheet = torch.stack(rows, dim=1).flatten(0, 1)
    scale = max(1, SHEET_CELL // model.config.image_size)
    save_picture(picture_grid(sheet, len(labels), scale=scale, labels=labels), out)
    return Reconstruction(levels=counts, psnr_db=(psnr / count).tolist(), num_pictures=count, seconds=seconds)


@torch.inference_mode()
def decode_levels(
    model: ImageTokenizer, batch: UInt8[Tensor, "B C S S"], levels: Sequence[int] = ()
) -> list[UInt8[Tensor, "B C S S"]]:
    """Images, encoded and decoded again from the first 1, 2, ... levels, or from so many as `levels` says."""
    codes = model.encode(from_uint8(batch))
    return [to_uint8(model.decode(codes, count)) for count in levels or range(1, model.spec.depth + 1)]


def _batches(model: ImageTokenizer, path: str | Path, resize: bool):  # type: ignore[no-untyped-def]
    """Functions that give the batches of images, uint8 `[B, C, S, S]`."""
    size, channels = model.config.image_size, model.config.channels
    if Path(path).is_file() and Path(path).suffix.lower() in SUFFIXES:
        picture = read_image(path, size, channels, resize)
        return [lambda: picture[None]]
    splits = available_splits(path)
    source = open_images(path, split="test" if "test" in splits else splits[0])
    store = PictureStore(source, size=size, channels=channels, resize=resize)
    return [lambda rows=rows: store.batch(rows) for rows in torch.arange(len(store)).split(at_once(size, BATCH))]
