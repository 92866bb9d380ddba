"""The commands that take images or speech, with small untrained models of speech."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from resgen.checkpoints.artefacts import save_tokenizer
from resgen.checkpoints.format import Folder
from resgen.checkpoints.speech import VoiceConfig, save_speech_pipeline, save_text_model, save_vocoder
from resgen.checkpoints.voices import MAX_VOICE_BYTES, voices_of
from resgen.cli import demo
from resgen.cli.demo import demo_texts
from resgen.cli.main import main
from resgen.cli.speak import read_lines
from resgen.data.codes.cache import open_codes
from resgen.data.sound.decode import read_sound, write_sound
from resgen.errors import CheckpointError, DataError
from resgen.extras import install_command
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.models.text import TextModel, TextModelConfig
from resgen.nn.seeding import seeded
from resgen.ops.mel import MelConfig
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.quantizers import QuantizerConfig
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from resgen.tokenizers.mel import MelTokenizer, MelTokenizerConfig
from resgen.tokenizers.vocoder import Vocoder, VocoderConfig

RATE = 8000
MEL = MelConfig(sample_rate_hz=RATE, fft_size=256, window_size=200, hop_size=50, num_bands=20, max_hz=4000.0)
ALPHABET = " efghinorstuvwxz"


def tone(seconds: float, hz: float = 300.0) -> torch.Tensor:
    return 0.4 * torch.sin(2 * math.pi * hz * torch.arange(int(seconds * RATE)) / RATE)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `mel`, `vocoder`, `text`, `voice` (a pipeline of them) and `pictures` (a tokenizer)."""
    folder = tmp_path_factory.mktemp("models")
    with seeded("tiny speech"):
        quantizer = QuantizerConfig(depth=3, codebook_size=5)
        config = MelTokenizerConfig(mel=MEL, width=8, num_blocks=1, code_dim=4, max_positions=60, quantizer=quantizer)
        tokenizer, vocoder = MelTokenizer(config), Vocoder(VocoderConfig(mel=MEL, width=8, num_layers=1))
        text = TextModel(TextModelConfig(width=8, num_layers=1, num_heads=2, mlp_width=8, num_bands=20, max_tokens=64))
        shape = ResGenConfig(
            width=16, num_layers=1, num_heads=2, mlp_width=16, condition_width=16, num_components=3, feature_width=8,
            feature_stride=8,
        )  # fmt: skip
        generator = ResGen(shape, tokenizer.spec)
        codes = torch.randint(5, (20, 10, 3))
        generator.set_codebooks(tokenizer.quantizer.codebooks, tokenizer.quantizer.variances, codes)
        pictures = ImageTokenizerConfig(
            image_size=8, channels=1, width=8, multipliers=(1, 2), num_res_blocks=1, code_dim=4, quantizer=quantizer
        )
        save_tokenizer(folder / "pictures", ImageTokenizer(pictures))
    save_tokenizer(folder / "mel", tokenizer)
    save_vocoder(folder / "vocoder", vocoder)
    save_text_model(folder / "text", text, alphabet=ALPHABET)
    save_speech_pipeline(
        folder / "voice",
        tokenizer=tokenizer,
        vocoder=vocoder,
        text_model=text,
        alphabet=ALPHABET,
        generator=generator,
        sampling=SamplingConfig(num_steps=2, guidance_scale=0.0),
        voice=VoiceConfig(loudness_db=None, max_prompt_seconds=1.0),
        history={"generator": {"steps": 7}},
    )
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for split, count in (("train", 3), ("test", 2)):
        for row in range(count):
            write_sound(tone(0.6 + 0.1 * row), RATE, folder / split / f"{row}.wav")
        lines = "\n".join(f"{row}.wav|one two|s{row}" for row in range(count))
        (folder / split / "metadata.csv").write_text(lines)
    return folder


def run_json(argv: list[Any], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(argv: list[Any], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(map(str, argv))) == 2
    captured = capsys.readouterr()
    *opened, error = captured.err.splitlines()
    assert named in error and all(line.startswith("data ") for line in opened) and not captured.out


def with_extra(folder: Path, target: Path, **extra: Any) -> Path:
    """A copy of a model folder with more keys in its configuration."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **extra}))
    return target


def test_reconstruct_data_with_a_pipeline(models: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    argv = ["reconstruct", "--tokenizer", models / "voice", "--input", data, "--out", out]
    document = run_json(argv, capsys)
    assert json.loads((out / "report.json").read_text()) == document
    assert [row["num_levels"] for row in document["levels"]] == [1, 2, 3] and document["vocoder"] == "network"
    assert all(row["mel_distance"] > 0 and -1 <= row["stoi"] <= 1 for row in document["levels"])
    assert [(one["name"], one["text"]) for one in document["utterances"]] == [
        ("0.wav", "one two"),
        ("1.wav", "one two"),
    ]
    assert [Path(file).name for file in document["utterances"][1]["files"]][-1] == "02_original.wav"
    assert all(Path(file).is_file() for one in document["utterances"] for file in one["files"])
    assert Image.open(document["sheet"]).format == "PNG" and document["notes"] == []
    assert len(run_json([*argv, "--num", "1"], capsys)["utterances"]) == 1
    text = (out / "report.txt").read_text()
    assert text.startswith("levels  mel distance [nat]  STOI\n1 ") and "1 utterances of 0.6 s" in text


def test_reconstruct_a_file_without_vocoder_and_pystoi(
    models: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pystoi", None)
    write_sound(tone(0.6), RATE, tmp_path / "me.wav")
    argv = ["reconstruct", "--tokenizer", models / "mel", "--input", tmp_path / "me.wav", "--out", tmp_path / "out"]
    assert main(list(map(str, argv))) == 0
    captured = capsys.readouterr()
    assert "Griffin-Lim" in captured.err and "--vocoder" in captured.err and "pystoi" not in captured.err
    assert captured.out.startswith("levels  mel distance [nat]\n") and "STOI left out: 'pystoi'" in captured.out
    document = run_json([*argv, "--vocoder", models / "vocoder"], capsys)
    assert document["vocoder"] == "network" and document["levels"][0]["stoi"] is None
    assert install_command("speech-eval") in document["notes"][0]


@pytest.mark.parametrize(
    ("tokenizer", "options", "named"),
    [
        ("mel", ["--out", "a.png"], "'a.png' names an image"),
        ("mel", ["--out", "file"], "'file' is a file"),
        ("mel", ["--out", "d", "--num", "9"], "num=9 must lie in 1..8"),
        ("mel", ["--out", "d", "--num", "0"], "num=0"),
        ("mel", ["--out", "d", "--resize"], "--resize must be left out: tokenizer '"),
        ("mel", ["--out", "d", "--vocoder", "nowhere"], "nowhere"),
        ("mel", ["--out", "d"], "nothing.wav"),
        ("pictures", ["--out", "d"], "'d' must end in .png"),
        ("pictures", ["--out", "a.png", "--num", "2"], "--num must be left out"),
        ("nowhere", ["--out", "d"], "unknown model"),
        ("nowhere", ["--out", "a.png"], "unknown model"),
        ("vocoder", ["--out", "d"], "without a tokenizer; it holds: "),
    ],
)
def test_reconstruct_refuses(
    tokenizer: str,
    options: list[str],
    named: str,
    models: Path,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    refused(["reconstruct", "--tokenizer", models / tokenizer, "--input", "nothing.wav", *options], named, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_encode_speech(models: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    argv = ["encode", "--tokenizer", models / "mel", "--text", models / "text", "--recipe", "spoken_digits"]
    argv += ["--data", data, "--out", tmp_path / "codes", "--device", "cpu", "--set", "data.max_seconds=0.75"]
    document = run_json(argv, capsys)
    train = open_codes(tmp_path / "codes" / "train")
    assert document["num_samples"] == {"train": 2, "held_out": 2} and len(train) == 2, "one is longer than 0.75 s"
    assert document["spec"]["depth"] == 3 and document["speakers"] == ["s0", "s1"]
    assert document["num_positions"]["train"] == int(train.lengths.sum())
    assert main(list(map(str, argv))) == 0
    said = "2 utterances for training and 2 held out, of 12 to 14 positions and 3 levels"
    assert said in capsys.readouterr().out
    verify = ["encode", "--verify", "--out", str(tmp_path / "codes")]
    made = ["--tokenizer", str(models / "mel"), "--data", str(data)]
    assert main(verify) == 0 and main([*verify, *made]) == 0 and capsys.readouterr().out.count(said) == 2
    table = data / "test" / "metadata.csv"
    table.write_text(table.read_text().replace("one", "six"))
    refused([*verify, *made], "codes/held_out' was made from data", capsys)
    whole = open_codes(tmp_path / "codes" / "train")
    argv += ["--shard-samples", "2", "--out", tmp_path / "shards"]
    run_json(argv, capsys)
    parts = open_codes(tmp_path / "shards" / "train", verify=True)
    assert len(parts.parts) == 2 and parts.texts("texts") == whole.texts("texts")
    for index in range(2):
        for one, other in zip(parts.sample(index).values(), whole.sample(index).values(), strict=True):
            assert torch.equal(one, other)
    shard = tmp_path / "shards" / "train" / "codes-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(
        ["encode", "--verify", "--out", tmp_path / "shards"], "codes-00001.safetensors is truncated or damaged", capsys
    )


@pytest.mark.parametrize(
    ("tokenizer", "options", "named"),
    [
        ("mel", [], "--text and --recipe are needed"),
        ("mel", ["--text", "text"], "--text and --recipe are needed"),
        ("mel", ["--recipe", "spoken_digits"], "--text and --recipe are needed"),
        ("mel", ["--text", "text", "--recipe", "digits"], "is for images"),
        ("mel", ["--text", "text", "--recipe", "sentences", "--flip"], "--flip must be left out"),
        (
            "mel",
            ["--text", "text", "--recipe", "sentences", "--shard-samples", "0"],
            "--shard-samples 0 must be at least",
        ),
        ("mel", ["--text", "text", "--recipe", "sentences"], "nowhere"),
        ("pictures", ["--text", "text", "--recipe", "digits"], "--text and --recipe must be left out"),
        ("pictures", ["--set", "data.trim=false"], "--set must be left out"),
        ("nothing", ["--text", "text"], "unknown model"),
    ],
)
def test_encode_refuses(
    tokenizer: str,
    options: list[str],
    named: str,
    models: Path,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(models)
    argv = ["encode", "--tokenizer", tokenizer, "--data", tmp_path / "nowhere", "--out", tmp_path / "codes", *options]
    refused(argv, named, capsys)
    assert not list(tmp_path.iterdir())


def test_inspect_a_speech_pipeline(models: Path, capsys: Any) -> None:
    document = run_json(["inspect", models / "voice"], capsys)
    assert document["kind"] == "speech-pipeline" and document["history"] == {"generator": {"steps": 7}}
    assert document["speech"]["codes"]["positions_per_second"] == 20.0 and document["speech"]["codes"]["depth"] == 3
    assert document["speech"]["text"]["alphabet_size"] == len(ALPHABET)
    assert document["speech"]["vocoder"]["frames_per_second"] == 160.0
    assert main(["inspect", str(models / "voice")]) == 0
    assert "generator trained: 7 steps" in capsys.readouterr().out.splitlines()
    parts = {name: part["numbers_by_part"] for name, part in document["components"].items()}
    assert set(parts) == {"tokenizer", "vocoder", "text", "generator"}
    assert "duration" in parts["text"] and "head" in parts["vocoder"]


def test_inspect_says_what_is_shared(capsys: Any) -> None:
    assert main(["inspect", "english-small"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    whole, own, shared = map(float, re.findall(r"([\d.]+) MB", first))
    assert first.endswith(" MB shared with spoken-digits-small") and whole == pytest.approx(own + shared, abs=0.2)


def test_inspect_speech_recipes(capsys: Any) -> None:
    state = torch.random.get_rng_state()
    document = run_json(["inspect", "--recipe", "spoken_digits"], capsys)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert document["speech"]["codes"]["positions_per_second"] == 10.0
    assert document["codes"]["shape"] == [256] and document["config"]["text"]["width"] == 192
    totals = {name: parts["total"] for name, parts in document["parameters"].items()}
    assert set(totals) == {"tokenizer", "vocoder", "text", "generator"} and min(totals.values()) > 2e6
    narrow = run_json(["inspect", "--recipe", "spoken_digits", "--set", "text.width=96"], capsys)
    difference = totals["generator"] - narrow["parameters"]["generator"]["total"]
    assert difference == 256 * 96 * 8, "the generator takes 8 frames of the text model's features per position"
    paper = run_json(["inspect", "--recipe", "rvqvae"], capsys)
    assert set(paper["parameters"]) == {"tokenizer", "text", "generator"}, "waveforms need no vocoder"
    assert paper["parameters"]["tokenizer"]["total"] == pytest.approx(185e6, rel=0.01)


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`bundle(path)` puts a speech pipeline beside a pipeline of images."""

    def install(path: Path) -> None:
        models = [{"name": "fashion-mnist-a", "kind": "pipeline"}, {"name": str(path), "kind": "speech-pipeline"}]
        monkeypatch.setattr(demo, "bundled_models", lambda: models)

    return install


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of every call of a speech pipeline."""
    calls: list[dict[str, Any]] = []
    real = SpeechPipeline.__call__

    def call(self: SpeechPipeline, text: str, *, callback: Any = None, **options: Any) -> Any:
        calls.append({"text": text, **options})
        return real(self, text, callback=callback, **options)

    monkeypatch.setattr(SpeechPipeline, "__call__", call)
    return calls


def test_demo_speaks_two_texts(
    pipeline: Any, bundle: Any, spoken: Any, models: Path, tmp_path: Path, capsys: Any
) -> None:
    bundle(models / "voice")
    out = tmp_path / "out"
    document = run_json(["demo", "--seed", "3", "--out", out], capsys)
    assert document["model"] == "fashion-mnist-a" and document["pictures"] == 24
    speech = document["speech"]
    assert spoken == [{"text": "three seven one", "seed": 3}, {"text": "nine zero two five", "seed": 4}]
    assert speech["files"] == [str(out / "demo_1.wav"), str(out / "demo_2.wav")]
    assert speech["spoken"] == ["three seven one (seed 3)", "nine zero two five (seed 4)"]
    assert sorted(path.name for path in out.iterdir()) == ["demo.png", "demo_1.wav", "demo_2.wav", "demo_speech.png"]
    lengths = [len(read_sound(file, RATE)) for file in speech["files"]]
    assert sum(lengths) / RATE == pytest.approx(speech["duration_s"])
    assert speech["real_time_factor"] == pytest.approx(speech["seconds"] / speech["duration_s"])
    assert Image.open(out / "demo_speech.png").size[0] > max(lengths) // MEL.hop_size
    assert main(["demo", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "real-time factor" in captured.out and "demo_2.wav" in captured.out and "depth 8" in captured.out


def test_demo_takes_texts_and_voices_that_come_with_the_model(
    pipeline: Any, bundle: Any, spoken: Any, models: Path, tmp_path: Path, capsys: Any
) -> None:
    voices = {
        "absent": {"file": "absent.flac", "text": "six"},
        "ann": {"file": "ann.flac", "text": "six"},
    }
    model = with_extra(models / "voice", tmp_path / "m", demo_texts=["one two"], voices=voices)
    write_sound(tone(0.8), RATE, model / "ann.flac")
    bundle(model)
    speech = run_json(["demo", "--out", tmp_path / "out"], capsys)["speech"]
    first, second = spoken
    assert first == {"text": "one two", "seed": 0, "voice": "ann"}
    assert second == {"text": "one two", "seed": 1}
    assert speech["spoken"] == ["one two (voice ann)", "one two (seed 1)"]


def test_demo_without_soundfile_still_shows_pictures(
    pipeline: Any, bundle: Any, models: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    bundle(models / "voice")
    document = run_json(["demo", "--out", tmp_path / "out"], capsys)
    assert "speech" not in document and [path.name for path in (tmp_path / "out").iterdir()] == ["demo.png"]
    assert main(["demo", "--out", str(tmp_path / "out")]) == 0
    assert install_command("speech") in capsys.readouterr().err


def folder_with(path: Path, **extra: Any) -> Folder:
    return Folder(path=path, kind="speech-pipeline", components={}, extra=extra)


@pytest.mark.parametrize(
    ("voices", "named"),
    [
        ({"a": {"file": "../a.flac", "text": "x"}}, "../a.flac"),
        ({"a": {"file": "/a.flac", "text": "x"}}, "/a.flac"),
        ({"a": {"file": "b/a.flac", "text": "x"}}, "b/a.flac"),
        ({"a": {"file": "a.flac\n", "text": "x"}}, "a.flac"),
        ({"a": {"file": "a.mp3", "text": "x"}}, "a.mp3"),
        ({"a": {"file": "a.wav", "text": "x"}}, "a.wav"),
        ({"a": {"file": "a.flac"}}, "text=None"),
        ({"a": {"file": "a.flac", "text": ""}}, "text=''"),
        ({"a": "a.flac"}, "file=None"),
        (["a.flac"], "must be a mapping"),
        ({"../a": {"file": "a.flac", "text": "x"}}, "is no name"),
        ({"default": {"file": "a.flac", "text": "x"}}, "is no name"),
        ({"a": {"file": "a.flac", "text": "\ud800"}}, "text="),
        ({"a": {"file": "a.flac", "text": "x" * 1001}}, "text="),
        ({"a": {"file": "a.flac", "text": "x", "prepared": 1}}, "prepared=1"),
        ({"a": {"file": "large.flac", "text": "x"}}, "at most"),
        ({f"v{k}": {"file": "a.flac", "text": "x"} for k in range(65)}, "at most 64"),
    ],
)
def test_voices_of_another_form_are_refused(voices: Any, named: str, tmp_path: Path) -> None:
    (tmp_path / "large.flac").write_bytes(bytes(MAX_VOICE_BYTES + 1))
    with pytest.raises(CheckpointError, match=r"voice") as caught:
        voices_of(folder_with(tmp_path, voices=voices))
    assert named in str(caught.value)


@pytest.mark.parametrize("texts", [[], "one", [1], {"a": "b"}])
def test_demo_texts_of_another_form_are_refused(texts: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="demo_texts=.* must be a list of texts"):
        demo_texts(folder_with(tmp_path, demo_texts=texts))


def test_a_text_is_spoken_several_times(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", "speech", "--model", models / "voice", "--text", "one two", "--num-samples", "2"]
    assert len(run_json([*argv, "--out", tmp_path / "out"], capsys)["files"]) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0000.wav", "0001.wav"]
    refused([*argv[:-1], "0", "--out", tmp_path / "out"], "--num-samples", capsys)
    several = "names one sound, there are several; give the name of a folder"
    refused([*argv, "--out", tmp_path / "a.wav"], several, capsys)


def test_standard_output_takes_a_sound_sentence_by_sentence(
    models: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    argv = ["generate", "speech", "--model", str(models / "voice"), "--text", "one two. three. four", "--seed", "3"]
    assert main([*argv, "--out", "-"]) == 0
    captured = capfdbinary.readouterr()
    assert captured.err.count(b"s of speech after") == 3
    assert main([*argv, "--out", str(tmp_path / "whole.wav")]) == 0
    streamed, whole = read_sound(captured.out, RATE), read_sound(tmp_path / "whole.wav", RATE)
    torch.testing.assert_close(streamed, whole, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--json"], "leave out --texts, --num-samples, --json and --trace"),
        (["--trace", "steps.gif"], "leave out --texts, --num-samples, --json and --trace"),
        (["--batch-size", "2"], "leave out --batch-size"),
    ],
)
def test_what_a_stream_cannot_have(
    models: Path, changes: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["generate", "speech", "--model", models / "voice", "--text", "one", "--out", "-", *changes], named, capsys)


def test_sounds_are_not_sent_to_a_terminal(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    argv = ["generate", "speech", "--model", models / "voice", "--text", "one", "--out", "-"]
    refused(argv, "send it to a player: --out - | aplay", capsys)


def test_a_lexicon_is_for_models_that_read_phonemes(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("Nguyen wˈɪn\n", encoding="utf-8")
    argv = ["generate", "speech", "--model", models / "voice", "--text", "one", "--out", tmp_path / "a.wav"]
    refused([*argv, "--lexicon", tmp_path / "names.txt"], "the front end 'bytes' reads letters", capsys)
    refused([*argv, "--lexicon", tmp_path / "none.txt"], "cannot be read", capsys)


def test_a_named_voice_speaks(models: Path, spoken: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = with_extra(models / "voice", tmp_path / "m", voices={"ann": {"file": "ann.flac", "text": "six"}})
    write_sound(tone(0.8), RATE, model / "ann.flac")
    argv = ["generate", "speech", "--model", model, "--text", "one", "--out", tmp_path / "a.wav"]
    run_json([*argv, "--voice", "ann"], capsys)
    assert spoken[0]["voice"] == "ann" and (tmp_path / "a.wav").exists()
    refused([*argv, "--voice", "ben"], "unknown voice 'ben'", capsys)
    prompted = ["--prompt", model / "ann.flac", "--prompt-text", "six"]
    refused([*argv, "--voice", "ann", *prompted], "voice='ann' and a prompt are two voices", capsys)
    assert run_json(["inspect", model], capsys)["voices"] == {"ann": {"file": "ann.flac", "text": "six"}}


def test_texts_of_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(content: bytes) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return read_lines(Path("-"))

    assert read(b"\xef\xbb\xbfIt is late.\n\n  So it is. \r\n") == ["It is late.", "So it is."]
    long = b"a" * (16 << 20) + b"a"
    wrong = {b" \n": "holds no text", b"\xff": "cannot be read: not UTF-8", long: "cannot be read: more than 16 MB"}
    for content, reason in wrong.items():
        with pytest.raises(DataError, match=f"^--texts '-' {reason}"):
            read(content)


def test_a_file_of_texts_without_an_end_is_refused() -> None:
    with pytest.raises(DataError, match="^--texts '/dev/zero' cannot be read: more than 16 MB of text"):
        read_lines(Path("/dev/zero"))
