"""Speech encoded by two processes gives the files that one writes; killed, they go on where they were."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from processes import encoding_as_a_worker, run_processes
from resgen.checkpoints.artefacts import save_tokenizer
from resgen.checkpoints.speech import save_text_model
from resgen.cli.main import main
from resgen.data.codes.cache import open_codes
from resgen.data.sound.decode import write_sound
from resgen.training.encoding import is_encoded
from resgen.training.speech import runs as speech_runs
from speech_parts import RATE, make_text_model, make_tokenizer

WORKER = Path(__file__).with_name("encode_worker.py")
NUM_TRAIN, NUM_HELD_OUT = 19, 2
SHARDS = 4  # of 5, 5, 5 and 4 recordings, one of the third too long


@pytest.fixture(scope="module", autouse=True)
def as_a_worker() -> Iterator[None]:
    with encoding_as_a_worker(speech_runs):
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a text model, recordings, and their codes as made by one process."""
    folder = tmp_path_factory.mktemp("encode")
    save_tokenizer(folder / "mel", make_tokenizer())
    save_text_model(folder / "text", make_text_model(), alphabet=" abc")
    for split, count in (("train", NUM_TRAIN), ("test", NUM_HELD_OUT)):
        for row in range(count):
            seconds = 0.4 + 0.05 * (row % 7) if row != 12 else 2.0
            at = torch.arange(int(seconds * RATE)) / RATE
            write_sound(0.4 * torch.sin(2 * math.pi * (200 + 37 * row) * at), RATE, folder / split / f"{row}.wav")
        lines = "\n".join(f"{row}.wav|{'abc'[: 1 + row % 3]}|s{row % 2}" for row in range(count))
        (folder / split / "metadata.csv").write_text(lines)
    assert main(arguments(folder, folder / "one")) == 0
    return folder


def arguments(work: Path, out: Path) -> list[str]:
    options = {"tokenizer": work / "mel", "text": work / "text", "recipe": "spoken_digits", "data": work, "out": out}
    options |= {"shard-samples": "5", "set": "data.max_seconds=1"}
    return ["encode", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_one_process(work: Path) -> None:
    files = [f"train/codes-0000{number}.safetensors" for number in range(SHARDS)]
    files += ["held_out/codes-00000.safetensors", "train/meta.json", "held_out/meta.json"]
    assert sorted(content(work / "one")) == sorted(files)
    codes = open_codes(work / "one" / "train", verify=True)
    assert len(codes) == NUM_TRAIN - 1 and [len(part.arrays["lengths"]) for part in codes.parts] == [5, 5, 4, 4]
    assert codes.texts("texts")[:4] == ("a", "ab", "abc", "a") and codes.texts("texts")[12] == "ab"


def test_two_processes_encode_as_one(work: Path) -> None:
    for status, errors in run_processes(2, WORKER, 0, *arguments(work, work / "two")[1:]):
        assert status == 0, errors
    assert content(work / "two") == content(work / "one")


def test_killed_processes_are_continued(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first process dies in its second shard; what was finished is not made again."""
    out = work / "killed"
    results = run_processes(2, WORKER, 3, *arguments(work, out)[1:])
    assert results[0][0] == -signal.SIGKILL and results[1][0] == 2
    assert not is_encoded(out)
    unfinished = out / ".train.unfinished"
    kept = {path.stem: (unfinished / path.stem).stat().st_ino for path in unfinished.glob("*.sha256")}
    assert 1 <= len(kept) < SHARDS and "codes-00000.safetensors" in kept
    assert main(arguments(work, out)) == 0
    assert f"{len(kept)} of {SHARDS} shards are there" in capsys.readouterr().err
    assert content(out) == content(work / "one")
    assert kept == {name: (out / "train" / name).stat().st_ino for name in kept}
