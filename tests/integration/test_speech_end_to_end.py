"""The whole path of speech through the command line: recordings, four trainings, new speech; and what is refused.

The "speech" is three letters, each a fixed complex of tones, in two voices. The models are far too small and too
little trained to speak; what counts is that every step runs, what it writes, and that errors are one line and leave
nothing behind.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from resgen.checkpoints.card import write_card
from resgen.checkpoints.format import load_folder
from resgen.cli.main import main
from resgen.data.sound.decode import read_sound, write_sound
from speech_parts import RATE, UNIT, save_parts, voice

MELS = "sample_rate_hz=8000 fft_size=256 window_size=200 hop_size=50 num_bands=20 max_hz=4000".split()
TRAINING = "device=cpu precision=fp32 log_every=2 batch_size=8 validate_every=0 sample_every=0 warmup_steps=1".split()
STEPS = {"tokenizer": 12, "vocoder": 6, "text": 20, "generator": 10}
SETTINGS = [
    *(f"tokenizer.mel.{setting}" for setting in MELS),
    *(f"vocoder.mel.{setting}" for setting in MELS),
    *(f"{stage}_training.{setting}" for stage in STEPS for setting in TRAINING),
    *(f"{stage}_training.num_steps={count}" for stage, count in STEPS.items()),
    *"tokenizer.width=16 tokenizer.num_blocks=1 tokenizer.code_dim=8 tokenizer.max_positions=120".split(),
    *"tokenizer.quantizer.depth=3 tokenizer.quantizer.codebook_size=16 tokenizer_loss.crop_seconds=0.5".split(),
    *"vocoder.width=16 vocoder.num_layers=1 vocoder_loss.crop_seconds=0.4".split(),
    *"text.width=16 text.num_layers=1 text.num_heads=2 text.mlp_width=32 text.num_bands=20 text.max_tokens=64".split(),
    *"generator.width=32 generator.num_layers=2 generator.num_heads=2 generator.mlp_width=64".split(),
    *"generator.condition_width=32 generator_loss.validation_samples=8 generator_training.checkpoint_every=4".split(),
    "text_training.checkpoint_every=4",
    "prompts.max_seconds=1.0",
]
STEPPED = ["--set", "sampling.num_steps=3"]  # not of all kinds
LETTERS = {"a": (300.0, 900.0), "b": (500.0, 1500.0), "c": (700.0, 2600.0)}
SPEAKERS = {"low": 1.0, "high": 1.25}


def say(text: str, speaker: str) -> torch.Tensor:
    """A quarter of a second per letter, with short gaps."""
    times = torch.arange(RATE // 4) / RATE
    envelope = torch.sin(math.pi * times * 4).clamp(min=0.05)
    parts = []
    for letter in text.replace(" ", ""):
        tones = [torch.sin(2 * math.pi * hertz * SPEAKERS[speaker] * times) for hertz in LETTERS[letter]]
        parts.append(0.3 * envelope * sum(tones, start=torch.zeros_like(times)))
    return torch.cat(parts)


def make_corpus(folder: Path) -> Path:
    stream = torch.Generator().manual_seed(0)
    for split, count in (("train", 16), ("test", 4)):
        lines = ["file|text|speaker"]
        for number in range(count):
            speaker = ("low", "high")[number % 2]
            length = int(torch.randint(3, 6, (), generator=stream))
            text = " ".join("abc"[k] for k in torch.randint(3, (length,), generator=stream).tolist())
            write_sound(say(text, speaker), RATE, folder / split / f"{number}.wav")
            lines.append(f"{number}.wav|{text}|{speaker}")
        (folder / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(*argv: object) -> None:
    assert main([str(a) for a in argv]) == 0, argv


def train(stage: str, *argv: object) -> None:
    run("train", stage, "--recipe", "spoken_digits", "--set", *SETTINGS, *argv)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def corpus(work: Path) -> Path:
    return make_corpus(work / "corpus")


@pytest.fixture(scope="module")
def parts(work: Path, corpus: Path) -> dict[str, Path]:
    """Trained tokenizer, vocoder and text model."""
    train("tokenizer", "--data", corpus, "--out", work / "tokenizer")
    tokenizer = work / "tokenizer" / "model"
    train("vocoder", "--data", corpus, "--tokenizer", tokenizer, "--out", work / "vocoder")
    train("text", "--data", corpus, "--out", work / "text")
    return {name: work / name / "model" for name in ("tokenizer", "vocoder", "text")}


@pytest.fixture(scope="module")
def options(parts: dict[str, Path], corpus: Path) -> list[object]:
    """Of `train generator`."""
    return ["--data", corpus, *(word for name, path in parts.items() for word in (f"--{name}", path))]


@pytest.fixture(scope="module")
def model(work: Path, options: list[object]) -> Path:
    train("generator", *options, *STEPPED, "--out", work / "voice")
    return work / "voice" / "model"


@pytest.fixture(scope="module")
def prompt(work: Path) -> Path:
    write_sound(say("abca", "high"), RATE, work / "prompt.wav")
    return work / "prompt.wav"


@pytest.fixture
def speak(model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    def call(*argv: object) -> dict:
        capsys.readouterr()
        run("generate", "speech", "--model", model, "--device", "cpu", *argv, "--json")
        return json.loads(capsys.readouterr().out)

    return call


def test_run_folders(work: Path, parts: dict[str, Path], model: Path) -> None:
    for stage in ("tokenizer", "vocoder", "text", "voice"):
        names = {path.name for path in (work / stage).iterdir()}
        assert {"config.yaml", "env.json", "metrics.jsonl", "checkpoints", "model"} <= names
    assert {path.name for path in model.iterdir()} == {
        "config.json",
        *(f"{name}.safetensors" for name in ("tokenizer", "vocoder", "text", "generator")),
    }
    for name in ("train", "held_out"):
        files = sorted(path.name for path in (work / "voice" / "codes" / name).iterdir())
        assert files == ["codes-00000.safetensors", "meta.json"]
    suffixes = {path.suffix for path in work.rglob("*") if path.is_file()}
    assert not suffixes & {".pt", ".pth", ".bin", ".pkl", ".ckpt", ".tmp"}


def test_the_record_of_every_part_goes_with_the_model(tmp_path: Path, model: Path) -> None:
    folder = load_folder(model)
    assert {stage: folder.record(stage)["steps"] for stage in folder.extra["history"]} == STEPS
    card = write_card(folder, tmp_path, name="voice").read_text()
    assert all(f"| {stage} | {steps} |" in card for stage, steps in STEPS.items())


def test_durations_sum_to_the_frames_and_the_alphabet_is_the_corpus_s(work: Path, model: Path) -> None:
    from resgen.data.codes.cache import open_codes

    codes = open_codes(work / "voice" / "codes" / "train")
    assert len(codes) == 16 and set(codes.texts("speakers")) == {"high", "low"}
    for index in range(len(codes)):
        part = codes.sample(index)
        assert int(part["durations"].sum()) == 8 * len(part["codes"]) and int(part["durations"].min()) >= 1
    assert json.loads((model / "config.json").read_text())["alphabet"] == " abc"


def test_a_sentence_in_the_prompt_s_voice(speak: Callable[..., dict], prompt: Path, tmp_path: Path) -> None:
    argv = ["--text", "a b c", "--prompt", prompt, "--prompt-text", "a b c a", "--seed", 3]
    report = speak(*argv, "--out", tmp_path / "a.wav")
    samples = read_sound(tmp_path / "a.wav", RATE)
    assert report["duration_s"] == pytest.approx(len(samples) / RATE)
    assert 1 <= report["passes"] <= 6 and report["depth"] == 3
    assert report["files"] == [str(tmp_path / "a.wav")] and len(samples) % UNIT == 0
    speak(*argv, "--out", tmp_path / "b.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert speak(*argv, "--steps", 1, "--guidance-scale", 0, "--out", tmp_path / "c.flac")["passes"] == 1


def test_continuation(speak: Callable[..., dict], prompt: Path, model: Path, tmp_path: Path) -> None:
    from resgen.pipelines.speech.pipeline import SpeechPipeline

    argv = ["--task", "continuation", "--prompt", prompt, "--prompt-text", "a b c a", "--out", tmp_path / "a.wav"]
    speak("--text", "b c", *argv)
    start = SpeechPipeline.from_pretrained(model, device="cpu").prepare(prompt, "a b c a").samples
    samples = read_sound(tmp_path / "a.wav", RATE)
    torch.testing.assert_close(samples[: len(start)], start, atol=1 / 32768, rtol=0)
    assert len(samples) > len(start)


def test_a_file_of_texts(speak: Callable[..., dict], tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a b c\n\n  c b a c\na\n")
    report = speak("--texts", tmp_path / "lines.txt", "--out", tmp_path / "out", "--batch-size", 2)
    assert report["files"] == [str(tmp_path / "out" / f"{k:04d}.wav") for k in range(3)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0000.wav", "0001.wav", "0002.wav"]
    speak("--text", "a b c", "--out", tmp_path / "a.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "out" / "0000.wav").read_bytes()


@pytest.mark.parametrize("stage", ["text", "generator"])
def test_a_stage_goes_on_where_it_stopped(
    stage: str, work: Path, corpus: Path, options: list[object], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose newest checkpoints and model are gone repeats the unbroken one."""
    unbroken = {"text": work / "text", "generator": work / "voice"}[stage]
    given = [*options, *STEPPED] if stage == "generator" else ["--data", corpus]
    out = work / f"{stage}-resumed"
    shutil.copytree(unbroken, out)
    shutil.rmtree(out / "model")
    checkpoints = sorted((out / "checkpoints").iterdir())
    assert len(checkpoints) > 1
    for path in checkpoints[1:]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = ["train", stage, "--recipe", "spoken_digits", "--out", out, "--set", *SETTINGS, *given]
    assert main([str(word) for word in again]) == 2, "without --resume the run is left alone"
    assert not (out / "model").exists()
    capsys.readouterr()
    train(stage, *given, "--out", out, "--resume")
    assert "resuming" in capsys.readouterr().err
    for file in (unbroken / "model").glob("*.safetensors"):
        assert (out / "model" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("stage", ["tokenizer", "vocoder", "text", "generator"])
def test_a_training_starts_from_a_model(
    stage: str, work: Path, corpus: Path, parts: dict[str, Path], options: list[object], model: Path
) -> None:
    """One step that learns next to nothing leaves the weights where they were."""
    init = parts.get(stage, model)
    given = [*options, *STEPPED] if stage == "generator" else ["--data", corpus]
    tiny = ["--set", f"{stage}_training.num_steps=1", f"{stage}_training.learning_rate=1e-12"]
    train(stage, *given, *tiny, "--init", init, "--out", work / f"{stage}-again")
    actual, expected = (load_file(path / f"{stage}.safetensors") for path in (work / f"{stage}-again" / "model", init))
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)  # codebooks follow their codes
    assert str(init) in (work / f"{stage}-again" / "config.yaml").read_text()


def test_a_decoder_trained_further_reads_the_same_codes(work: Path, corpus: Path, parts: dict[str, Path]) -> None:
    alone = ["--set", "tokenizer_loss.decoder_only=true", "tokenizer_training.num_steps=2"]
    train("tokenizer", "--data", corpus, *alone, "--init", parts["tokenizer"], "--out", work / "decoder")
    actual, before = (
        load_file(path / "tokenizer.safetensors") for path in (work / "decoder/model", parts["tokenizer"])
    )
    changed = {name.split(".")[0] for name, value in actual.items() if not torch.equal(value, before[name])}
    assert changed == {"decoder"}


def test_training_on_codes_that_are_there(work: Path, parts: dict[str, Path], model: Path) -> None:
    argv = ["--tokenizer", parts["tokenizer"], "--text", parts["text"], "--data", work / "voice" / "codes"]
    train("generator", *argv, "--kind", "valle", "--set", "generator_training.num_steps=1", "--out", work / "valle")
    assert "vocoder.safetensors" not in {path.name for path in (work / "valle" / "model").iterdir()}
    run(
        "generate",
        "speech",
        "--model",
        work / "valle" / "model",
        "--text",
        "a",
        "--device",
        "cpu",
        "--out",
        work / "valle.wav",
    )


# What is refused: exit code 2, one line, nothing left behind.


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained pipeline."""
    return save_parts(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    def call(*argv: object, names: str) -> str:
        capsys.readouterr()
        before = sorted(tmp_path.rglob("*"))
        code = main([str(a) for a in argv])
        captured = capsys.readouterr()
        assert code == 2 and captured.out == "", captured.err
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in captured.err, captured.err
        assert names in errors[0], errors[0]
        assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"
        return errors[0]

    return call


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--text", ""], "no letters"),
        (["--text", "..."], "no letters"),
        (["--text", "abc xd"], "'x' (U+0078), 'd' (U+0064)"),
        (["--text", "a " * 10_001], "20000 bytes"),
        (["--text", "abc", "--speed", "0.01"], "at most 4.0 s"),
        (["--text", "abc", "--speed", "0"], "speed=0"),
        (["--text", "abc", "--steps", "0"], "--steps=0"),
        (["--text", "abc", "--seed", "-1"], "seed=-1"),
        (["--text", "abc", "--batch-size", "0"], "--batch-size 0"),
        (["--text", "abc", "--task", "cross"], "allowed: cross-sentence, continuation"),
        (["--text", "abc", "--task", "continuation"], "a prompt is missing"),
        (["--text", "abc", "--prompt-text", "abc"], "a prompt is missing"),
        (["--text", "abc", "--prompt", "good.wav"], "without its text"),
        (["--text", "abc", "--prompt", "good.wav", "--prompt-text", "xyz"], "cannot speak 'x'"),
        (["--text", "abc", "--prompt", "missing.wav", "--prompt-text", "abc"], "missing.wav"),
        (["--text", "abc", "--prompt", "silent.wav", "--prompt-text", "abc"], "silent"),
        (["--text", "abc", "--prompt", "clipped.wav", "--prompt-text", "abc"], "clipped"),
        (["--text", "abc", "--prompt", "short.wav", "--prompt-text", "abc"], "at least 0.5 s"),
        (["--text", "abc", "--prompt", "corrupt.wav", "--prompt-text", "abc"], "corrupt.wav"),
        ([], "--text TEXT or --texts FILE"),
        (["--text", "abc", "--texts", "empty.txt"], "--text TEXT or --texts FILE"),
        (["--texts", "empty.txt"], "holds no text"),
        (["--texts", "missing.txt"], "missing.txt"),
        (["--texts", "short.wav"], "not UTF-8"),
    ],
)
def test_generate_refuses(
    options: list[str], names: str, small: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    write_sound(voice(1.0), RATE, tmp_path / "good.wav")
    write_sound(torch.zeros(RATE), RATE, tmp_path / "silent.wav")
    write_sound(20 * voice(1.0), RATE, tmp_path / "clipped.wav")
    write_sound(voice(0.3), RATE, tmp_path / "short.wav")
    (tmp_path / "corrupt.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:3000])
    (tmp_path / "empty.txt").write_text("\n \n")
    words = [tmp_path / word if word.endswith((".wav", ".txt")) else word for word in options]
    out = tmp_path / ("folder" if "--texts" in options else "out.wav")
    refused("generate", "speech", "--model", small, "--device", "cpu", *words, "--out", out, names=names)


def test_unusable_outputs(small: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("abc\n")
    argv = ["generate", "speech", "--model", small]
    refused(*argv, "--text", "abc", "--out", tmp_path / "a.aac", names="must end in .wav")
    refused(*argv, "--text", "abc", "--out", tmp_path / "file" / "a.wav", names="cannot be written")
    refused(*argv, "--texts", tmp_path / "file", "--out", tmp_path / "file", names="is a file")


def test_models_of_the_other_kind(small: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    speech, image = ["generate", "speech", "--text", "abc"], ["generate", "image", "--num-samples", "1"]
    refused(
        *speech,
        "--model",
        "fashion-mnist-small",
        "--out",
        tmp_path / "a.wav",
        names="open it with `resgen generate image`",
    )
    refused(*image, "--model", small, "--out", tmp_path / "a.png", names="open it with `resgen generate speech`")
    refused(*speech, "--model", tmp_path / "nowhere", "--out", tmp_path / "a.wav", names="nowhere")


def test_train_refuses(small: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    def generator(*argv: object, names: str) -> None:
        refused("train", "generator", "--out", tmp_path / "run", "--tokenizer", small, *argv, names=names)

    generator("--recipe", "spoken_digits", names="--text is missing")
    generator("--recipe", "spoken_digits", "--text", small, names="no data of its own")
    generator("--recipe", "spoken_digits", "--text", tmp_path / "nowhere", names="nowhere")
    generator("--recipe", "digits", "--text", small, names="--text must be left out: recipe 'digits' is for images")
    generator("--recipe", "spoken_digits", "--text", small, "--evaluate-on", "digits", names="for images")
    generator("--recipe", "spoken_digit", "--text", small, names="did you mean 'spoken_digits'")
    generator("--recipe", "digits", names="mel-tokenizer cannot be used here")
    for recipe in ("digits", "spoken_digits"):
        alone = ["--recipe", recipe, "--set", "tokenizer_loss.decoder_only=true"]
        refused("train", "tokenizer", *alone, "--out", tmp_path / "run", names="give --init")
    for stage in ("vocoder", "text"):
        refused("train", stage, "--recipe", "digits", "--out", tmp_path / "run", names="for images")
        init = ["--init", "fashion-mnist-small", "--data", tmp_path / "nowhere"]  # refused before any data is opened
        refused(
            "train", stage, "--recipe", "spoken_digits", *init, "--out", tmp_path / "run", names=f"without a {stage}"
        )


def test_parts_that_do_not_fit_are_refused_before_the_training(
    work: Path,
    corpus: Path,
    parts: dict[str, Path],
    small: Path,
    model: Path,
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    def generator(*argv: object, names: str) -> None:
        refused(
            "train",
            "generator",
            "--recipe",
            "spoken_digits",
            "--out",
            tmp_path / "run",
            "--set",
            *SETTINGS,
            *argv,
            names=names,
        )

    own = ["--tokenizer", parts["tokenizer"]]
    generator(*own, "--text", parts["text"], "--data", corpus, "--vocoder", small, names="the vocoder takes")
    generator(*own, "--text", small, "--data", corpus, names="12 bands, not of 20")
    codes = work / "voice" / "codes"
    generator("--tokenizer", small, "--text", small, "--data", codes, names="the tokenizer has")
    other = shutil.copytree(codes, tmp_path / "codes") / "held_out" / "codes-00000.safetensors"
    other.write_bytes(other.read_bytes()[:-5])
    generator(*own, "--text", parts["text"], "--data", tmp_path / "codes", names="damaged")
    refused(
        "train",
        "vocoder",
        "--recipe",
        "spoken_digits",
        "--out",
        tmp_path / "run",
        "--set",
        *SETTINGS,
        "--data",
        corpus,
        "--tokenizer",
        small,
        names="the tokenizer makes",
    )
