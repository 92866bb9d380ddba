"""Images encoded by two processes give the files that one process writes; and killed, they go on where they were."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from processes import encoding_as_a_worker, run_processes
from resgen.checkpoints.artefacts import save_tokenizer
from resgen.cli.main import main
from resgen.data.codes.cache import open_codes
from resgen.nn.seeding import seeded
from resgen.quantizers import QuantizerConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from resgen.training.image import runs

WORKER = Path(__file__).with_name("encode_worker.py")
NUM_TRAIN, NUM_HELD_OUT = 38, 2
SHARDS = 8  # of 10, 10, 10 and 8 images, as they are and mirrored


@pytest.fixture(scope="module", autouse=True)
def as_a_worker() -> Iterator[None]:
    with encoding_as_a_worker(runs):
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, images, and their codes as made by one process."""
    folder = tmp_path_factory.mktemp("encode")
    config = ImageTokenizerConfig(
        image_size=8,
        channels=1,
        patch_size=2,
        width=8,
        multipliers=(1, 2),
        num_res_blocks=1,
        code_dim=4,
        quantizer=QuantizerConfig(depth=2, codebook_size=64),
    )
    with seeded("encode", 0):
        tokenizer = ImageTokenizer(config)
        with torch.no_grad():
            tokenizer.quantizer.codebooks.normal_(std=0.2)
    save_tokenizer(folder / "tokenizer", tokenizer, class_names=("a", "b"))
    pixels = np.random.default_rng(0).integers(256, size=(NUM_TRAIN + NUM_HELD_OUT, 8, 8), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        path = folder / "pictures" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    assert main(["encode", *arguments(folder, folder / "one")]) == 0
    return folder


def arguments(work: Path, out: Path) -> list[str]:
    options = {"tokenizer": work / "tokenizer", "data": work / "pictures", "out": out, "shard-samples": 10}
    return [*(str(part) for name, value in options.items() for part in (f"--{name}", value)), "--flip"]


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_one_process(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [
        *(f"train/codes-{number:05d}.safetensors" for number in range(SHARDS)),
        "held_out/codes-00000.safetensors",
    ]
    assert sorted(content(work / "one")) == sorted([*shards, "train/meta.json", "held_out/meta.json"])
    codes = open_codes(work / "one" / "train").batch(torch.arange(2 * NUM_TRAIN))[0]
    assert len(codes.unique()) > 30 and not torch.equal(codes[:NUM_TRAIN], codes[NUM_TRAIN:])
    for given in ([], ["--tokenizer", str(work / "tokenizer"), "--data", str(work / "pictures")]):
        assert main(["encode", "--verify", "--out", str(work / "one"), *given]) == 0
    assert "76 samples for training and 2 held out" in capsys.readouterr().out


def test_what_was_made_from_something_else_does_not_pass(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        shutil.copytree(work / "pictures" / "a", work / "others" / name)
    for given, named in (
        (["--data", str(work / "others")], "was made from data"),
        (["--tokenizer", "fashion-mnist-small"], "tokenizer"),
    ):
        assert main(["encode", "--verify", "--out", str(work / "one"), *given]) == 2
        errors = capsys.readouterr().err
        (line,) = (line for line in errors.splitlines() if not line.startswith("data "))  # which data was opened
        assert line.startswith("error: ") and named in line


def test_two_processes_encode_as_one(work: Path) -> None:
    for status, errors in run_processes(2, WORKER, 0, *arguments(work, work / "two")):
        assert status == 0, errors
    assert content(work / "two") == content(work / "one")


def test_killed_processes_are_continued(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first process dies in its second shard of 10 images; what both had finished is not made again."""
    out = work / "killed"
    results = run_processes(2, WORKER, 6, *arguments(work, out))
    assert results[0][0] == -signal.SIGKILL and results[1][0] == 2
    assert "error: another process of the group has ended" in results[1][1] and "Traceback" not in results[1][1]
    assert not runs.is_encoded(out) and not (out / "train").exists()
    unfinished = out / ".train.unfinished"
    records = sorted(unfinished.glob("*.sha256"))
    assert 1 <= len(records) < SHARDS and (unfinished / "codes-00000.safetensors.sha256") in records
    kept = {path.stem: (unfinished / path.stem).stat().st_ino for path in records}
    assert main(["encode", "--verify", "--out", str(out)]) == 2
    assert "is not a code cache" in capsys.readouterr().err
    assert main(["encode", *arguments(work, out)]) == 0
    assert f"{len(kept)} of {SHARDS} shards are there" in capsys.readouterr().err
    assert content(out) == content(work / "one")
    assert kept == {name: (out / "train" / name).stat().st_ino for name in kept}


def test_a_changed_shard_is_found_and_made_again(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = work / "one" / "train" / "codes-00005.safetensors"
    before = content(work / "one")
    shard.write_bytes(before["train/codes-00005.safetensors"][:-1] + b"\xff")
    assert main(["encode", "--verify", "--out", str(work / "one")]) == 2
    error = capsys.readouterr().err
    assert "codes-00005.safetensors is damaged" in error and "encode again" in error and error.count("\n") == 1
    assert main(["encode", *arguments(work, work / "one")]) == 0
    assert f"{SHARDS - 1} of {SHARDS} shards are there" in capsys.readouterr().err
    assert content(work / "one") == before
