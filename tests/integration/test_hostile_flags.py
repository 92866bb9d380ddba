"""Every option of every command with values that do not belong there: one line and exit code 2, or a result.

Each line of `LINES` is a command that works; a case is a line with one hostile value, in place of an option's own or
besides. A seeded sample runs by default, all of them under `slow`. `compare` is interrupted before its first training.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from PIL import Image

from hostile import check
from image_parts import save_model
from resgen.checkpoints.locate import resolve_model
from resgen.cli.common import option_name
from resgen.cli.main import COMMANDS, EXIT_INTERRUPTED, main
from resgen.data.sound.decode import write_sound
from resgen.experiments.image.compare import Study
from resgen.training import Interrupted
from speech_parts import RATE, save_parts, voice

HOSTILE = [
    "", "-1", "0", "5", "0.5", "1000000000", "9" * 30, "9" * 5000, "1e300", "1e999", "-inf", "nan", "nine",
    "x" * 100_000, "\udcff", "a=b", "a\nb", "[", "-", ".", "..", "{}/other", "{}/other/texts.txt", "/dev/null",
    "/dev/zero",
]  # fmt: skip
SAMPLE = 150
CODES = {"doctor": {1}, "compare": {EXIT_INTERRUPTED}}
"""Of lines that work, besides 0; doctor has something to say of a run of one step."""

STAGE = {"num_steps": 1, "batch_size": 2, "device": "cpu", "warmup_steps": 0}
STAGE |= {"validate_every": 0, "sample_every": 0, "checkpoint_every": 0}
GENERATOR = {"width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 16, "condition_width": 16}
MEL = {"sample_rate_hz": RATE, "fft_size": 256, "window_size": 200, "hop_size": 50, "num_bands": 12, "max_hz": 4000.0}
PICTURES = {
    "tokenizer_training": STAGE,
    "generator_training": STAGE,
    "tokenizer": {"width": 8},
    "generator": GENERATOR,
    "generator_loss": {"validation_samples": 2},
}
SPEECH = {
    **{f"{stage}_training": STAGE for stage in ("tokenizer", "vocoder", "text", "generator")},
    "tokenizer": {"width": 8, "num_blocks": 1, "code_dim": 4, "mel": MEL, "max_positions": 80}
    | {"quantizer": {"depth": 3, "codebook_size": 10}},
    "vocoder": {"width": 8, "num_layers": 1, "mel": MEL},
    "text": {"width": 8, "num_layers": 1, "num_heads": 2, "mlp_width": 16, "num_bands": 12, "prenet_layers": 1}
    | {"max_tokens": 128},
    "generator": GENERATOR,
    "generator_loss": {"validation_samples": 2},
    "tokenizer_loss": {"discriminator_width": 2},
    "vocoder_loss": {"discriminator_width": 2},
    "prompts": {"max_seconds": 0.3},
}

IMAGE_RECIPE = "--recipe digits --config {}/pictures.yaml --data {}/pictures"
SPEECH_RECIPE = "--recipe spoken_digits --config {}/speech.yaml --data {}/speech"
SPEECH_PARTS = "--tokenizer {}/voice --text {}/voice"
JUDGE = "--data {}/large --extractor cifar10-classifier"
LINES = {
    "demo": "--out {}/out",
    "train tokenizer": f"{IMAGE_RECIPE} --out {{}}/out",
    "train tokenizer (speech)": f"{SPEECH_RECIPE} --out {{}}/out",
    "train vocoder": f"{SPEECH_RECIPE} --out {{}}/out",
    "train text": f"{SPEECH_RECIPE} --out {{}}/out",
    "train generator": f"{IMAGE_RECIPE} --tokenizer {{}}/model --out {{}}/out",
    "train generator (speech)": f"{SPEECH_RECIPE} {SPEECH_PARTS} --vocoder {{}}/voice --out {{}}/out",
    "encode": "--tokenizer {}/model --data {}/pictures --out {}/out",
    "encode (speech)": f"{SPEECH_RECIPE} {SPEECH_PARTS} --out {{}}/out",
    "reconstruct": "--tokenizer {}/model --input {}/pictures/a/0.png --out {}/out/a.png",
    "reconstruct (speech)": "--tokenizer {}/voice --input {}/speech/5.wav --out {}/out",
    "generate image": "--model {}/model --steps 1 --out {}/out/a.png",
    "generate speech": "--model {}/voice --steps 1 --text abc --out {}/out/a.wav",
    "edit image": "--model {}/model --steps 1 --class a --input {}/pictures/a/0.png --mask 0,0,4,4 --out {}/out/a.png",
    "edit speech": "--model {}/voice --steps 1 --input {}/speech/5.wav --input-text cab --text ab --from 0 --to 1 "
    "--out {}/out/a.wav",
    "serve": "--model {}/model",
    "serve (speech)": "--model {}/voice",
    "evaluate": f"--model cifar10-8x8 {JUDGE} --split train --num-samples 6 --steps 1 --out {{}}/out/a.json",
    "evaluate (tokenizer)": f"--tokenizer cifar10-8x8 {JUDGE} --split train --num-samples 6 --out {{}}/out/a.json",
    "sweep": f"--model cifar10-8x8 {JUDGE} --grid steps=1 --num-samples 4 --out {{}}/out",
    "compare": "--recipe cifar10 --tokenizer cifar10-8x8 --data {}/large --kinds residual --out {}/out",
    "doctor": "{}/run",
    "plan": "--recipe digits --devices 1 --device-memory 8",
    "inspect": "--recipe digits",
    "models": "",
    "bench": "--shape tiny --kinds resgen --depths 2 --steps 1 --repetitions 1 --iterations 1 --no-memory",
    "completion": "bash",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the lines name."""
    root = tmp_path_factory.mktemp("hostile")
    save_model(root / "model", class_names=("a", "b", "c"))
    save_parts(root / "voice")
    rng = np.random.default_rng(0)
    classes = json.loads((Path(resolve_model("cifar10-8x8")) / "config.json").read_text())["class_names"]
    for name, names, shape in (("pictures", "abc", (8, 8)), ("large", classes, (32, 32, 3))):
        for k in range(20):
            file = root / name / names[k % len(names)] / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(255, size=shape, dtype=np.uint8)).save(file)
    for k in range(6):
        write_sound(voice(0.8 + 0.1 * k), RATE, root / "speech" / f"{k}.wav")
    table = "\n".join(f"{k}.wav|abc ab|{'xy'[k % 2]}" for k in range(6))
    (root / "speech" / "metadata.csv").write_text(table)
    (root / "pictures.yaml").write_text(json.dumps(PICTURES))
    (root / "speech.yaml").write_text(json.dumps(SPEECH))
    command, words = words_of("train tokenizer", root)
    assert main([*command, *words[:-1], str(root / "run")]) == 0
    return root


@pytest.fixture(autouse=True)
def place(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder of its own, into which relative paths lead, with a server that ends at once, a short demo and a
    comparison that is interrupted."""
    server = pytest.importorskip("resgen.serving.server")

    async def run(*args: Any, **values: Any) -> None:
        return None

    def interrupted(*args: Any) -> None:
        raise Interrupted(0)

    monkeypatch.setattr(server, "_run", run)
    monkeypatch.setattr(Study, "run", interrupted)
    monkeypatch.setattr("resgen.cli.demo.PER_CLASS", 1)
    (root / "here" / "inner").mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(root / "here" / "inner")


def options(command: type[Any]) -> Iterator[str]:
    """The options of a command that take a value."""
    for name, hint in get_type_hints(command).items():
        if dataclasses.is_dataclass(hint):
            yield from options(hint)
        elif hint is not bool:
            yield option_name(command, name)


def words_of(line: str, root: Path) -> tuple[list[str], list[str]]:
    """The command and its options."""
    return line.partition(" (")[0].split(), [word.replace("{}", str(root)) for word in LINES[line].split()]


def cases(line: str, root: Path) -> list[list[str]]:
    """The line with every hostile value."""
    command, words = words_of(line, root)
    values = [value.replace("{}", str(root)) for value in HOSTILE]
    if words and not words[0].startswith("--"):
        return [[*command, value] for value in values]
    result = []
    for name in options(COMMANDS[" ".join(command)]):
        place = words.index(name) if name in words else len(words)
        result += [[*command, *words[:place], name, value, *words[place + 2 :]] for value in values]
    return result


def run(words: list[str], root: Path, capsys: pytest.CaptureFixture[str], **given: Any) -> None:
    """Run a command where no other has left anything."""
    here = Path.cwd()
    for path in (root / "out", root / "other", *here.iterdir(), *(p for p in here.parent.iterdir() if p != here)):
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(root / "pictures", root / "other")
    (root / "other" / "texts.txt").write_text("abc\n")
    check(words, capsys, **given)


@pytest.mark.parametrize(
    ("line", "words", "message"),
    [
        ("generate image", "--num-samples 1000000000", "--num-samples 1000000000 must lie in -1,000,000..1,000,000"),
        ("generate image", "--steps 1000001", "--steps 1000001 must lie in"),
        ("generate image", f"--seed {1 << 63}", f"--seed {1 << 63} must lie in"),
        ("edit speech", "--from nan", "--from nan must lie in"),
        ("evaluate", f"--seed 1 {'9' * 400}", r"--seed 99\d*\.\.\.9* must lie in"),
        ("serve", "--timeout-s inf", "--timeout-s inf must lie in"),
    ],
)
def test_numbers_have_bounds(
    line: str, words: str, message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, given = words_of(line, root)
    assert main([*command, *given, *words.split()]) == 2
    assert re.match(f"error: {message}", capsys.readouterr().err)


def test_a_sample_of_hostile_options(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = [words for line in LINES for words in cases(line, root)]
    for words in random.Random(0).sample(every, SAMPLE):
        run(words, root, capsys, codes={0, 2} | CODES.get(words[0], set()))


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_all_hostile_options(line: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, words = words_of(line, root)
    run([*command, *words], root, capsys, codes=CODES.get(line, {0}))
    for case in cases(line, root):
        run(case, root, capsys, codes={0, 2} | CODES.get(line, set()))
