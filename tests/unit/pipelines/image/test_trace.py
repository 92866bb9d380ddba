"""A sampler at work: what a trace collects and draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kind_parts import matched_config
from resgen.errors import ConfigError, WriteError
from resgen.kinds import build, get_kind
from resgen.pipelines.image.output import SHEET_CELL
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.pipelines.image.trace import LAST_MS, STEP_MS, SampleTrace, level_map

CELL, PAD = SHEET_CELL, 2


@pytest.fixture
def pipe(model: Path) -> ImagePipeline:
    return ImagePipeline.from_pretrained(model, device="cpu", dtype="float32")


def tile(frame: Image.Image, row: int, column: int, columns: int) -> np.ndarray:
    """A tile of a frame at its own size; the grid lies at the lower right."""
    left = label_width(frame) + column * (CELL + PAD)
    upper = frame.height - (2 - row) * (CELL + PAD)
    assert label_width(frame) + columns * (CELL + PAD) <= frame.width
    return np.asarray(frame.crop((left, upper, left + CELL, upper + CELL)).resize((8, 8), Image.Resampling.NEAREST))


def label_width(frame: Image.Image) -> int:
    """Where the first column begins: in the lower part of the maps there is no text left of it."""
    row = np.asarray(frame)[frame.height - CELL // 4]
    return int((row != 255).any(-1).nonzero()[0][0])


def seen_by(pipe: ImagePipeline, **options) -> tuple[SampleTrace, list[tuple[torch.Tensor, torch.Tensor]]]:
    trace, seen = SampleTrace(pipe), []

    def callback(record, codes, visible) -> None:
        trace(record, codes, visible)
        seen.append((codes.clone(), visible.clone()))

    pipe(callback=callback, **options)
    return trace, seen


def test_frames_show_pictures_and_known_levels(pipe: ImagePipeline) -> None:
    trace, seen = seen_by(pipe, class_ids=[0, 1, 2])
    frames = trace.frames()
    assert len(frames) == len(seen) == 4 and len({frame.size for frame in frames}) == 1
    for frame, (codes, visible) in zip(frames, seen, strict=True):
        for column in range(3):
            # The known levels alone, one position at a time through codes and levels of the tokenizer.
            quantizer = pipe.tokenizer.quantizer
            rows = [
                quantizer.decode(codes[column : column + 1, i], int(visible[column, i]))
                if visible[column, i]
                else torch.zeros(1, 4)
                for i in range(16)
            ]
            with torch.inference_mode():
                decoded = pipe.tokenizer.decoder(torch.stack(rows, -1).view(1, 4, 4, 4))
            expected = ((decoded[0, 0] + 1) * 127.5).round().clamp(0, 255).byte().numpy()
            assert np.abs(tile(frame, 0, column, 3)[..., 1].astype(int) - expected.astype(int)).max() <= 1
            picture = np.asarray(level_map(visible[column], 3, (4, 4), 2))
            assert np.array_equal(tile(frame, 1, column, 3), picture)
    assert (tile(frames[-1], 1, 0, 3) == tile(frames[-1], 1, 2, 3)[0, 0]).all(), "all levels known at the end"


def test_the_map_grows_brighter_with_every_level() -> None:
    image = level_map(torch.tensor([0, 1, 2, 3]), 3, (2, 2), 5)
    assert image.size == (10, 10)
    array = np.asarray(image.convert("L")).astype(int)
    values = [array[0, 0], array[0, 9], array[9, 0], array[9, 9]]
    assert values == sorted(values) and len(set(values)) == 4
    assert (array[:5, :5] == values[0]).all() and (array[5:, 5:] == values[3]).all()


def test_batches_are_shown_beside_each_other(pipe: ImagePipeline) -> None:
    whole, _ = seen_by(pipe, class_ids=[0, 1, 2], num_samples=4)
    parts, _ = seen_by(pipe, class_ids=[0, 1, 2], num_samples=4, batch_size=3)
    assert len(whole.frames()) == len(parts.frames()) == 4
    for first, second in zip(whole.frames(), parts.frames(), strict=True):
        assert np.array_equal(np.asarray(first), np.asarray(second))
    columns = (whole.frames()[0].width - label_width(whole.frames()[0]) + PAD) // (CELL + PAD)
    assert columns == 8, "at most eight are shown"


def test_a_batch_with_fewer_steps_keeps_its_last(pipe: ImagePipeline) -> None:
    trace = SampleTrace(pipe)
    visible = torch.zeros(2, 16, dtype=torch.int64)
    visible[0] = 2
    visible[0, 0] = 3  # 15 codes are left to the first sample, 48 to the second
    pipe([0, 1], codes=torch.zeros(2, 16, 3, dtype=torch.int64), visible=visible, batch_size=1, callback=trace)
    short = SampleTrace(pipe)
    pipe(
        [0], codes=torch.zeros(1, 16, 3, dtype=torch.int64), visible=torch.full((1, 16), 2), num_steps=1, callback=short
    )
    pipe([0], num_steps=3, callback=short)
    assert len(trace.frames()) == 4 and len(short.frames()) == 3
    first, last = short.frames()[0], short.frames()[-1]
    assert np.array_equal(tile(first, 0, 0, 2), tile(last, 0, 0, 2))
    assert not np.array_equal(tile(first, 0, 1, 2), tile(last, 0, 1, 2))


def test_a_kind_that_begins_its_steps_twice(pipe: ImagePipeline) -> None:
    """VALL-E's scheme counts the steps of its two networks apart; they are one batch nevertheless."""
    spec = pipe.tokenizer.spec
    torch.manual_seed(0)
    pipe.generator = build(matched_config(pipe.generator.config, spec, "valle"), spec).eval()
    pipe.generator.set_codebooks(
        pipe.tokenizer.quantizer.codebooks, pipe.tokenizer.quantizer.variances, torch.randint(10, (9, 16, 3))
    )
    pipe.sampling = get_kind("valle").sampling()
    trace, seen = seen_by(pipe, class_ids=[0, 1], batch_size=1)
    frames = trace.frames()
    assert len(seen) == 2 * len(frames) == 2 * (16 + 2)
    for column in (0, 1):
        for frame, (_, visible) in zip(frames, seen[column * len(frames) :], strict=False):
            assert np.array_equal(tile(frame, 1, column, 2), np.asarray(level_map(visible[0], 3, (4, 4), 2)))


def test_gif(pipe: ImagePipeline, tmp_path: Path) -> None:
    trace, _ = seen_by(pipe, class_ids=[0])
    assert trace.save(tmp_path / "new" / "a.gif") == [tmp_path / "new" / "a.gif"]
    with Image.open(tmp_path / "new" / "a.gif") as gif:
        assert gif.format == "GIF" and gif.n_frames == 4 and gif.info["loop"] == 0
        durations = []
        for number, frame in enumerate(trace.frames()):
            gif.seek(number)
            durations.append(gif.info["duration"])
            difference = np.asarray(gif.convert("RGB")).astype(int) - np.asarray(frame).astype(int)
            assert np.abs(difference).mean() < 4
    assert durations == [STEP_MS] * 3 + [LAST_MS]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.gif"]


def test_folder(pipe: ImagePipeline, tmp_path: Path) -> None:
    trace, _ = seen_by(pipe, class_ids=[0])
    files = trace.save(tmp_path / "steps")
    assert [file.name for file in files] == [f"step_000{k}.png" for k in (1, 2, 3, 4)]
    for file, frame in zip(files, trace.frames(), strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(frame))


def test_a_folder_is_used_again(pipe: ImagePipeline, tmp_path: Path) -> None:
    """Later steps of a longer run go; what no trace has written stays."""
    long, _ = seen_by(pipe, class_ids=[0])
    short, _ = seen_by(pipe, class_ids=[0], num_steps=2)
    long.save(tmp_path)
    kept = ["step_4.png", "step_0009.txt", "mystep_0009.png", "step_0009.png.bak"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / "step_0008.png").mkdir()
    files = short.save(tmp_path)
    assert [file.name for file in files] == ["step_0001.png", "step_0002.png"]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(["step_0001.png", "step_0002.png", "step_0008.png", *kept])
    assert np.array_equal(np.asarray(Image.open(files[1])), np.asarray(short.frames()[1]))


def test_nothing_to_show(pipe: ImagePipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sampling step was taken"):
        SampleTrace(pipe).save(tmp_path / "a.gif")
    (tmp_path / "file").write_text("")
    trace, _ = seen_by(pipe, class_ids=[0])
    with pytest.raises(WriteError, match="cannot write"):
        trace.save(tmp_path / "file" / "a.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
