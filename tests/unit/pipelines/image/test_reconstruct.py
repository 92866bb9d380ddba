"""Images through a tokenizer, level by level, and what is inside a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from resgen.checkpoints.artefacts import load_tokenizer
from resgen.checkpoints.format import sha256_file
from resgen.data.pictures.grid import PAD
from resgen.errors import CheckpointError, ConfigError, DataError
from resgen.ops.images import from_uint8, to_uint8
from resgen.pipelines.describe import describe_artefact
from resgen.pipelines.image.reconstruct import reconstruct


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, np.ndarray]:
    arrays = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    for k, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / "pictures" / f"{k}.png")
    return tmp_path / "pictures", arrays


def expected_psnr(model: Path, arrays: np.ndarray) -> np.ndarray:
    tokenizer, _ = load_tokenizer(model)
    codes = tokenizer.encode(from_uint8(torch.from_numpy(arrays)[:, None]))
    rows = []
    for level in range(1, 4):
        output = to_uint8(tokenizer.decode(codes, level))[:, 0].numpy().astype(float)
        rows.append(10 * np.log10(255**2 / ((output - arrays) ** 2).mean((1, 2))))
    return np.array(rows)


def test_psnr_of_a_folder_and_of_one_picture(model: Path, pictures: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, arrays = pictures
    psnr = expected_psnr(model, arrays)
    result = reconstruct(model, folder, tmp_path / "all.png")
    assert result.num_pictures == 3 and result.psnr_db == pytest.approx(psnr.mean(1).tolist(), abs=1e-6)
    single = reconstruct(model, folder / "1.png", tmp_path / "one.png")
    assert single.num_pictures == 1 and single.psnr_db == pytest.approx(psnr[:, 1].tolist(), abs=1e-6)
    tall, flat = (Image.open(tmp_path / name) for name in ("all.png", "one.png"))
    assert tall.width == flat.width and tall.height > 2 * flat.height


def test_only_some_numbers_of_levels(model: Path, pictures: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, arrays = pictures
    result = reconstruct(model, folder, tmp_path / "some.png", levels=[3, 1, 3])
    assert result.levels == [1, 3]
    assert result.psnr_db == pytest.approx(expected_psnr(model, arrays).mean(1)[[0, 2]].tolist(), abs=1e-6)
    whole = reconstruct(model, folder, tmp_path / "all.png")
    assert whole.levels == [1, 2, 3]
    some, every = (Image.open(tmp_path / name) for name in ("some.png", "all.png"))
    assert some.height == every.height and (some.width - PAD) * 4 == (every.width - PAD) * 3, "with the originals"
    for wrong in ([0], [1, 4]):
        with pytest.raises(ConfigError, match=r"levels=\[.*must lie in 1\.\.3"):
            reconstruct(model, folder, tmp_path / "wrong.png", levels=wrong)
    assert not (tmp_path / "wrong.png").exists()


def test_pictures_that_do_not_fit(model: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 8)).save(tmp_path / "odd.png")
    with pytest.raises(DataError, match="odd.png"):
        reconstruct(model, tmp_path / "odd.png", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
    assert reconstruct(model, tmp_path / "odd.png", tmp_path / "out.png", resize=True).num_pictures == 1


def test_description_of_a_model(model: Path) -> None:
    document = describe_artefact(model)
    json.dumps(document)
    assert document["kind"] == "pipeline" and document["class_names"] == ["T-shirt/top", "Bag", "1"]
    for name, part in document["components"].items():
        tensors = load_file(model / part["file"])
        assert part["numbers"] == sum(value.numel() for value in tensors.values())
        assert part["sha256"] == sha256_file(model / f"{name}.safetensors")
        assert part["numbers"] == sum(part["numbers_by_part"].values())
        assert part["bytes"] == (model / part["file"]).stat().st_size
    assert {"transformer", "head", "codebooks"} <= set(document["components"]["generator"]["numbers_by_part"])


def test_description_verifies(model: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    data = bytearray((copy / "tokenizer.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "tokenizer.safetensors").write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="tokenizer.safetensors"):
        describe_artefact(copy)


def test_description_of_a_file_without_tensors(model: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    (copy / "tokenizer.safetensors").write_bytes(b"{}")
    document = json.loads((copy / "config.json").read_text())
    document["components"]["tokenizer"]["sha256"] = sha256_file(copy / "tokenizer.safetensors")
    (copy / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"tokenizer\.safetensors' is not a readable safetensors file"):
        describe_artefact(copy)
