"""The bundled voice model before the bundled judges, through the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import say_sentences

from resgen.checkpoints.locate import resolve_model
from resgen.cli.main import main
from resgen.data.sound.decode import read_sound, write_sound
from resgen.errors import ConfigError
from resgen.evaluation.speech.transcribers import open_transcriber
from resgen.experiments.speech.compare import SpeechComparison, compare_speech
from resgen.modalities import load_recipe
from resgen.pipelines.speech.pipeline import SpeechPipeline

MODEL = "spoken-digits-small"
TEXTS = ("three seven one", "nine zero two five", "six four", "eight one two")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four texts in two voices, spoken by the model itself, as speech data."""
    folder = tmp_path_factory.mktemp("speech")
    pipe = SpeechPipeline.from_pretrained(MODEL, dtype="float32")
    lines = []
    for number, text in enumerate(TEXTS):
        output = pipe(text, seed=number % 2)
        write_sound(output.audio, output.sample_rate_hz, folder / f"{number}.wav")
        lines.append(f"{number}.wav|{text}|{'ab'[number % 2]}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_model_is_understood_by_the_recogniser(recordings: Path) -> None:
    hear = open_transcriber("digit-recognizer")
    transcripts = [hear(read_sound(recordings / f"{number}.wav", 16_000)) for number in range(len(TEXTS))]
    right = sum(
        a == b
        for text, said in zip(TEXTS, transcripts, strict=True)
        for a, b in zip(text.split(), said.split(), strict=False)
    )
    assert right >= 9, transcripts  # of 12 digits


@pytest.mark.parametrize("task", [None, "continuation"])
def test_evaluation_from_the_command_line(
    task: str | None, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model says that it is of speech; --task is one of its options."""
    out = tmp_path / "voice.json"
    argv = ["evaluate", "--model", MODEL, "--data", str(recordings), "--num-samples", "2", "--steps", "4"]
    argv += ["--dtype", "float32"]
    assert main([*argv, *(["--task", task] if task else []), "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert [row["name"] for row in report["scores"]] == ["generated", "recordings", "tokenizer"]
    assert report["protocol"]["sampling"]["dtype"] == "float32"
    assert report["protocol"]["sampling"]["num_steps"] == 4 and report["protocol"]["task"] == (task or "cross-sentence")
    assert report["protocol"]["transcriber"]["name"] == "digit-recognizer"
    assert len(report["protocol"]["transcriber"]["sha256"]) == 64
    assert 0 <= report["scores"][0]["sim_o"]["value"] <= 1 and report["real_time_factor"] > 0
    assert "| recordings |" in capsys.readouterr().out


def test_a_comparison_goes_on_where_it_stopped(recordings: Path, tmp_path: Path) -> None:
    """With the trainings done, what is left is encoding, the search, the evaluation and the report."""
    data = tmp_path / "data"
    for split in ("train", "test"):
        shutil.copytree(recordings, data / split)
    out = tmp_path / "comparison"
    settings = SpeechComparison(
        tokenizer=MODEL,
        text=MODEL,
        vocoder=MODEL,
        data=str(data),
        kinds=("residual",),
        splits=("test",),
        num_samples=2,
        search_samples=1,
        guidance_scales=(0.5, 1.0),
    )
    recipe, said = load_recipe("spoken_digits_small")[1], []
    shutil.copytree(resolve_model(MODEL), out / "runs" / "residual-0" / "model")
    files = compare_speech(recipe, settings, out, resume=False, say=said.append)
    assert [file.name for file in files] == ["report.md", "report.csv", "report.json"]
    row = json.loads(files[2].read_text())["rows"][0]
    assert row["kind"] == "residual" and row["guidance_scale"] in (0.5, 1.0) and row["passes"] >= 12
    assert "| residual |" in files[0].read_text() and files[1].read_text().startswith("kind,seed,split")
    assert len(said) == 3, "two tries and one evaluation"
    said.clear()
    assert compare_speech(recipe, settings, out, resume=True, say=said.append) == files and not said
    with pytest.raises(ConfigError, match="continue it with --resume"):
        compare_speech(recipe, settings, out, resume=False, say=said.append)
    with pytest.raises(ConfigError, match="this one has comparison.num_samples=3"):
        compare_speech(recipe, replace(settings, num_samples=3), out, resume=True, say=said.append)


def test_sentences_are_said_by_every_voice_and_judged_by_kind_and_voice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "lines.txt", tmp_path / "out.json"
    file.write_text("short|two six\nlong|three seven one nine\nshort|five\n\nlong|zero zero four one\n")
    say_sentences.main(MODEL, "digit-recognizer", sentences=file, sampling=("num_steps=8",), json=out)
    result = json.loads(out.read_text())
    assert [row["text"] for row in result["rows"]] == ["two six", "three seven one nine", "five", "zero zero four one"]
    assert {"all", "kind short", "kind long"} < set(result["scores"]) and result["sampling"]["num_steps"] == 8
    assert result["scores"]["all"]["wer"]["value"] <= 0.2 and result["real_time_factor"] > 0
    table = capsys.readouterr().out
    assert "| kind long (2) |" in table and "of real time" in table
    with pytest.raises(ConfigError, match="num_samples=5 must be 1 to 4"):
        say_sentences.main(MODEL, "digit-recognizer", sentences=file, num_samples=5)
    with pytest.raises(ConfigError, match="hears 10 words only"):
        say_sentences.main(MODEL, "digit-recognizer")


def test_other_words_than_the_recogniser_knows_are_refused(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is generated, trained or written."""
    data, out = tmp_path / "data", tmp_path / "out"
    for split in ("train", "test", "test_unseen"):
        shutil.copytree(recordings, data / split)
    lines = (recordings / "metadata.csv").read_text()
    (data / "test_unseen" / "metadata.csv").write_text(lines.replace(f"|{TEXTS[-1]}|", "|one hello|"))
    model = ["--tokenizer", MODEL, "--text", MODEL, "--vocoder", MODEL]
    for argv in (
        [
            "evaluate",
            "--model",
            MODEL,
            "--task",
            "continuation",
            "--split",
            "test_unseen",
            "--out",
            str(out / "a.json"),
        ],
        ["compare", "--recipe", "spoken_digits_small", *model, "--kinds", "residual", "--out", str(out)],
    ):
        assert main([*argv, "--data", str(data)]) == 2
        *opened, error = capsys.readouterr().err.splitlines()
        assert error.startswith("error: 'digit-recognizer' hears 10 words only, and 'hello'")
        assert all(line.startswith("data 'data' split ") for line in opened)
        assert not any(tmp_path.glob("out/**/*.json"))


@pytest.mark.parametrize("option", ["--text", "--vocoder", "--transcriber", "--speaker-encoder"])
def test_a_comparison_of_pictures_takes_no_option_of_speech(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["compare", "--recipe", "digits", "--tokenizer", "none", "--data", "digits", option, "x"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    assert f"{option} must be left out: recipe 'digits' is for images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--task", "singing"], "unknown task 'singing'"),
        (["--extractor", "inception"], f"--extractor must be left out: model '{MODEL}' is for speech"),
        (["--batch-size", "7", "--resize"], "--batch-size and --resize must be left out"),
        (["--task", "continuation", "--split", "nowhere"], "unknown split 'nowhere'"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], line: str, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "voice.json"
    assert main(["evaluate", "--model", MODEL, "--data", str(recordings), *options, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1 and not out.exists()


def test_numbers_and_punctuation_are_read() -> None:
    pipe = SpeechPipeline.from_pretrained(MODEL)
    assert [one.text for one in pipe.sentences("Three, 7 - one! 2")] == ["three seven one", "two"]


def test_the_prompts_of_the_demo_are_there() -> None:
    folder = resolve_model(MODEL)
    voices = json.loads((folder / "config.json").read_text())["voices"]
    assert len(voices) == 2
    for voice in voices.values():
        assert 2.0 < len(read_sound(folder / voice["file"], 16_000)) / 16_000 < 5.0 and voice["text"]
