"""`resgen edit speech`, and `--trace` of both commands that speak."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from resgen.cli.main import main
from resgen.data.sound.decode import read_sound, write_sound
from speech_parts import RATE, UNIT, save_parts, voice

SAID = ["--input", "a.wav", "--input-text", "ab ca bac"]
CHANGE = ["--text", "cab", "--from", "0.5", "--to", "0.7"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_parts(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with recordings that are good, short, silent and none."""
    monkeypatch.chdir(tmp_path)
    write_sound(voice(1.2), RATE, "a.wav")
    write_sound(voice(0.3), RATE, "short.wav")
    write_sound(torch.zeros(8000), RATE, "silent.wav")
    Path("text.wav").write_text("no sound")
    return tmp_path


def command(model: Path, *options: str) -> list[str]:
    return ["edit", "speech", "--model", str(model), "--device", "cpu", *SAID, *options]


def run_json(argv: list[str], capsys: Any) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_words(model: Path, inputs: Path, capsys: Any) -> None:
    before = sorted(inputs.iterdir())
    words = run_json(command(model, "--words"), capsys)["words"]
    assert [word["text"] for word in words] == ["ab", "ca", "bac"]
    assert all(0 <= word["begin_s"] < word["end_s"] <= 1.2 for word in words)
    assert main(command(model, "--words")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "word" and lines[2].split() == [
        "ca",
        f"{words[1]['begin_s']:.2f}",
        f"{words[1]['end_s']:.2f}",
    ]
    assert sorted(inputs.iterdir()) == before


def test_one_result(model: Path, inputs: Path, capsys: Any) -> None:
    document = run_json(command(model, *CHANGE, "--blend", "--out", "new/e.wav", "--trace", "t.gif"), capsys)
    assert document["files"] == ["new/e.wav"] and document["trace"] == ["t.gif"]
    assert Image.open("t.gif").n_frames == 4
    begin, end = (round(time * RATE) for time in document["stretch_s"])
    sound, original = read_sound("new/e.wav", RATE), read_sound("a.wav", RATE)
    assert len(sound) / RATE == pytest.approx(document["duration_s"])
    assert torch.equal(sound[:begin], original[:begin]) and begin <= 0.5 * RATE
    tail = len(original) - end
    assert tail == 0 or torch.equal(sound[-tail:], original[-tail:])
    assert "cab" in document["text"].split() and document["words"][0]["text"] == "ab"
    assert (document["depth"], document["passes"]) == (3, 7), "guidance is off in the first of four steps"
    assert document["positions"] * UNIT == pytest.approx(len(sound), abs=UNIT)
    assert main(command(model, *CHANGE, "--out", "e.flac", "--keep-length", "--steps", "1")) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "positions regenerated" in said and "with 2 network passes: e.flac" in said
    assert len(read_sound("e.flac", RATE)) == len(original)


def test_a_whole_text(model: Path, inputs: Path, capsys: Any) -> None:
    document = run_json(command(model, "--text", "ab cab bac", "--blend", "--out", "e.wav"), capsys)
    assert document["text"] == "ab cab bac" and document["replaced"] == "ca"
    begin = round(document["stretch_s"][0] * RATE)
    assert torch.equal(read_sound("e.wav", RATE)[:begin], read_sound("a.wav", RATE)[:begin]) and begin > 0


def test_several_results(model: Path, inputs: Path, capsys: Any) -> None:
    options = [*CHANGE, "--num-samples", "2", "--seed", "5", "--speed", "0.8"]
    document = run_json(command(model, *options, "--out", "out", "--trace", "steps"), capsys)
    assert document["files"] == ["out/0000_5.wav", "out/0001_5.wav"]
    assert document["trace"] == [f"steps/step_000{k}.png" for k in (1, 2, 3, 4)]
    first, second = (read_sound(file, RATE) for file in document["files"])
    assert first.shape == second.shape and not torch.equal(first, second)
    again = run_json(command(model, *options, "--out", "again", "--batch-size", "1"), capsys)
    torch.testing.assert_close(read_sound(again["files"][1], RATE), second, atol=1e-4, rtol=0)


def test_a_model_without_a_vocoder_says_so(inputs: Path, capsys: Any) -> None:
    path = save_parts(inputs / "model", vocoder=None)
    assert main(command(path, *CHANGE, "--out", "e.wav")) == 0
    assert "Griffin-Lim" in capsys.readouterr().err


def test_traces_of_generated_speech(model: Path, inputs: Path, capsys: Any) -> None:
    argv = ["generate", "speech", "--model", str(model), "--device", "cpu", "--text", "abc cab", "--out", "g.wav"]
    assert run_json(argv, capsys)["trace"] == []
    assert run_json([*argv, "--trace", "g.gif"], capsys)["trace"] == ["g.gif"]
    files = run_json([*argv, "--trace", "steps"], capsys)["trace"]
    assert sorted(str(path) for path in Path("steps").iterdir()) == files and len(files) == 4
    files = run_json([*argv, "--trace", "steps", "--steps", "2"], capsys)["trace"]
    assert sorted(str(path) for path in Path("steps").iterdir()) == files and len(files) == 2, (
        "those of before are gone"
    )
    assert main([*argv, "--trace", "a.mp4"]) == 2
    assert "--trace 'a.mp4' must end in .gif" in capsys.readouterr().err


OUT = ["--out", "e.wav"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "--text, --out missing; --words lists the words"),
        (["--text", "cab", *OUT, "--from", "0.5"], "--to missing"),
        (["--text", "cab", *OUT, "--to", "0.7"], "--from missing"),
        (["--text", "ab, ca bac.", *OUT], "has the words of the recording; change one, or name a stretch"),
        (["--words", *CHANGE], "leave out --text, --from, --to"),
        ([*CHANGE, *OUT, "--from", "0.7"], "the stretch from 0.7 to 0.7 s must have 0 <= from < to <= 1.20 s"),
        ([*CHANGE, *OUT, "--to", "1.3"], "the stretch from 0.5 to 1.3 s"),
        ([*CHANGE, *OUT, "--from", "-1"], "the stretch from -1 to 0.7 s"),
        ([*CHANGE, *OUT, "--text", ""], "has no letters"),
        ([*CHANGE, *OUT, "--text", "dog"], "the model cannot speak 'd'"),
        ([*CHANGE, *OUT, "--input-text", ""], "give what is said in it as --input-text"),
        ([*CHANGE, *OUT, "--input-text", "xyz"], "the model cannot speak 'x'"),
        ([*CHANGE, *OUT, "--input", "silent.wav"], "recording 'silent.wav' is silent"),
        ([*CHANGE, *OUT, "--input", "short.wav"], "recording 'short.wav' is 0.30 s long; it takes at least 0.5 s"),
        ([*CHANGE, *OUT, "--input", "text.wav"], "recording 'text.wav' is not a sound"),
        ([*CHANGE, *OUT, "--input", "none.wav"], "none.wav"),
        ([*CHANGE, *OUT, "--model", "nowhere"], "nowhere"),
        ([*CHANGE, *OUT, "--speed", "0"], "speed=0.0"),
        ([*CHANGE, *OUT, "--speed", "2", "--keep-length"], "--keep-length both say"),
        ([*CHANGE, *OUT, "--num-samples", "0"], "--num-samples 0"),
        ([*CHANGE, *OUT, "--num-samples", "2"], "2 results (--num-samples) need a folder"),
        ([*CHANGE, *OUT, "--batch-size", "0"], "--batch-size 0"),
        ([*CHANGE, *OUT, "--steps", "0"], "--steps=0"),
        ([*CHANGE, "--out", "e.txt"], "--out 'e.txt' must end in .wav"),
        ([*CHANGE, "--out", "text.wav/e"], "--out 'text.wav/e' cannot be written"),
        ([*CHANGE, *OUT, "--trace", "text.wav/t"], "--trace 'text.wav/t' cannot be written"),
    ],
)
def test_what_is_refused_leaves_nothing(options: list[str], named: str, model: Path, inputs: Path, capsys: Any) -> None:
    before = sorted(inputs.iterdir())
    assert main(command(model, *options)) == 2
    captured = capsys.readouterr()
    assert named in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert sorted(inputs.iterdir()) == before
