"""Pictures through a tokenizer, level by level."""

from __future__ import annotations

import time
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
from resgen.ops.images import at_once, from_uint8, psnr_db, to_uint8
from resgen.progress import show_progress
from resgen.tokenizers.image import ImageTokenizer

PREVIEW_ROWS = 8
BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What `reconstruct` measured.

    Attributes:
        psnr_db: by number of decoded levels, coarse to fine, averaged over the pictures (8-bit; at most 100).
        num_pictures: how many.
        seconds: for encoding and decoding.
    """

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
    device: torch.device | None = None,
) -> Reconstruction:
    """Encode and decode a picture or a data set, and write the first pictures decoded from 1, 2, ... levels.

    Args:
        tokenizer: folder of a tokenizer or pipeline, or a bundled name.
        input_path: a picture, or data as `open_images` takes it (its test split if it has one).
        out: picture to write: a row per input picture (8 at most), a column per number of levels, the original last.
        resize: cut out and resize pictures of another size, instead of refusing them.
        device: where to compute; the CPU by default.
    """
    model, _ = load_tokenizer(tokenizer)
    model.to(device or torch.device("cpu"))
    batches = _batches(model, input_path, resize)
    begin = time.perf_counter()
    depth = model.spec.depth
    psnr = torch.zeros(depth, dtype=torch.float64)
    count = 0
    rows: list[Tensor] = []
    for pictures in show_progress(((1, batch) for batch in batches), len(batches), "reconstructing"):
        batch = pictures().to(model.quantizer.codebooks.device)
        outputs = decode_levels(model, batch)
        psnr += torch.stack([psnr_db(output, batch).sum() for output in outputs]).cpu()
        count += len(batch)
        if not rows:
            rows = [*(output[:PREVIEW_ROWS].cpu() for output in outputs), batch[:PREVIEW_ROWS].cpu()]
    seconds = time.perf_counter() - begin
    labels = [*(str(level + 1) for level in range(depth)), "real"]
    sheet = torch.stack(rows, dim=1).flatten(0, 1)
    scale = max(1, 64 // model.config.image_size)
    save_picture(picture_grid(sheet, len(labels), scale=scale, labels=labels), out)
    return Reconstruction(psnr_db=(psnr / count).tolist(), num_pictures=count, seconds=seconds)


@torch.inference_mode()
def decode_levels(model: ImageTokenizer, batch: UInt8[Tensor, "B C S S"]) -> list[UInt8[Tensor, "B C S S"]]:
    """Pictures, encoded and decoded again from the first level alone, from the first two, ... and from all."""
    codes = model.encode(from_uint8(batch))
    return [to_uint8(model.decode(codes, level + 1)) for level in range(model.spec.depth)]


def _batches(model: ImageTokenizer, path: str | Path, resize: bool):  # type: ignore[no-untyped-def]
    """Functions that give the batches of pictures, uint8 `[B, C, S, S]`."""
    size, channels = model.config.image_size, model.config.channels
    if Path(path).is_file() and Path(path).suffix.lower() in SUFFIXES:
        picture = read_image(path, size, channels, resize)
        return [lambda: picture[None]]
    splits = available_splits(path)
    source = open_images(path, split="test" if "test" in splits else splits[0])
    store = PictureStore(source, size=size, channels=channels, resize=resize)
    return [lambda rows=rows: store.batch(rows) for rows in torch.arange(len(store)).split(at_once(size, BATCH))]
