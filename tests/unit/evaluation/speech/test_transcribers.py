"""Every transcriber keeps the contract; names and folders lead to the right one."""

from __future__ import annotations

import json
import math
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from resgen.data.sound.decode import resample
from resgen.errors import CheckpointError, ConfigError, DataError
from resgen.evaluation.speech.folders import save_judge
from resgen.evaluation.speech.metrics import normalise_transcript
from resgen.evaluation.speech.recognizer import Recognizer, RecognizerConfig
from resgen.evaluation.speech.speakers import SpeakerNetwork, SpeakerNetworkConfig
from resgen.evaluation.speech.transcribers import (
    MoonshineTranscriber,
    PocketsphinxTranscriber,
    RecognizerTranscriber,
    Transcriber,
    TransformersTranscriber,
    check_vocabulary,
    open_transcriber,
)
from resgen.extras import MissingExtraError
from resgen.nn.seeding import seeded


def _babble(seed: int) -> Tensor:
    """A second of a buzz with three moving resonances: near enough to speech to be taken for some word or other."""
    stream, time = torch.Generator().manual_seed(seed), torch.arange(16000) / 16000
    low, high = torch.tensor([250.0, 800.0, 2200.0]), torch.tensor([850.0, 2300.0, 3000.0])
    points = low + (high - low) * torch.rand(7, 3, generator=stream)
    formants = F.interpolate(points.T[None], size=16000, mode="linear", align_corners=True)[0]
    sound = torch.zeros(16000)
    for hz in range(115, 3900, 115):
        gains = [1 / (1 + ((hz - formants[i]) / (60 + 20 * i)) ** 2) / (i + 1) for i in range(3)]
        sound += (gains[0] + gains[1] + gains[2]) * torch.sin(2 * math.pi * hz * time)
    return 0.2 * sound / sound.abs().max() * torch.sin(math.pi * time).sqrt()


@pytest.fixture(scope="module")
def pocketsphinx() -> PocketsphinxTranscriber:
    pytest.importorskip("pocketsphinx")
    return PocketsphinxTranscriber("digits")


def test_pocketsphinx_hears_digits_only_and_forgets(pocketsphinx: PocketsphinxTranscriber) -> None:
    assert isinstance(pocketsphinx, Transcriber)
    assert pocketsphinx.name == "pocketsphinx-digits" and pocketsphinx.sha256 == "built-in"
    assert pocketsphinx.version.startswith("pocketsphinx 5") and pocketsphinx.sample_rate_hz == 16000
    sounds = [_babble(0), 0.05 * torch.randn(16000, generator=torch.Generator().manual_seed(1)), _babble(6), _babble(7)]
    transcripts = [pocketsphinx(x) for x in sounds]
    assert [pocketsphinx(x) for x in reversed(sounds)][::-1] == transcripts
    digits = set("zero one two three four five six seven eight nine".split())
    assert any(transcripts) and set(" ".join(transcripts).split()) <= digits
    assert pocketsphinx(torch.zeros(160)) == ""
    with pytest.raises(DataError, match="0 samples"):
        pocketsphinx(torch.zeros(0))


def test_pocketsphinx_by_name(monkeypatch: pytest.MonkeyPatch, pocketsphinx: PocketsphinxTranscriber) -> None:
    transcriber = open_transcriber("pocketsphinx-digits")
    assert isinstance(transcriber, PocketsphinxTranscriber) and transcriber.name == "pocketsphinx-digits"
    with pytest.raises(ConfigError, match="unknown grammar 'digit' .did you mean 'digits'"):
        PocketsphinxTranscriber("digit")
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(MissingExtraError, match="\\[speech-eval\\]"):
        open_transcriber("pocketsphinx")


def test_our_folder(tmp_path: Path) -> None:
    with seeded("transcriber"):
        model = Recognizer(RecognizerConfig(width=16, front=4, num_blocks=1)).eval()
        model.out.bias.data[3] = 100.0  # always "two"
    save_judge(tmp_path / "ours", model)
    transcriber = open_transcriber(tmp_path / "ours")
    assert isinstance(transcriber, RecognizerTranscriber) and isinstance(transcriber, Transcriber)
    assert (
        transcriber.name == "ours" and transcriber.sample_rate_hz == 16000 and transcriber.version.startswith("resgen ")
    )
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert transcriber.sha256 == config["components"][Recognizer.kind]["sha256"]
    assert transcriber(_babble(0)) == "two"


def test_moonshine_hears_sentences() -> None:
    moonshine_voice = pytest.importorskip("moonshine_voice")
    transcriber = open_transcriber("moonshine")
    assert isinstance(transcriber, MoonshineTranscriber) and isinstance(transcriber, Transcriber)
    assert (
        transcriber.name == "moonshine-tiny-en"
        and transcriber.version.startswith("moonshine-voice 0.0.")
        and len(transcriber.sha256) == 64
    )
    samples, rate_hz = moonshine_voice.load_wav_file(moonshine_voice.get_assets_path() / "two_cities.wav")
    sound = resample(torch.tensor(samples[: 6 * rate_hz]), rate_hz, transcriber.sample_rate_hz)
    transcripts = transcriber(sound)
    assert normalise_transcript(transcripts).startswith("it was the best of times it was the worst of times"), (
        transcripts
    )
    assert normalise_transcript(transcriber(torch.zeros(16000))) in ("", "you"), "what it hears in silence"
    assert transcriber(sound) == transcripts, "nothing is kept of what was heard before"
    with pytest.raises(DataError, match="0 samples"):
        transcriber(torch.zeros(0))


def test_moonshine_without_its_package_or_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "moonshine_voice", None)
    with pytest.raises(MissingExtraError, match="\\[moonshine\\]"):
        open_transcriber("moonshine")
    package = ModuleType("moonshine_voice")
    package.transcriber = package.moonshine_api = None  # type: ignore[attr-defined]
    package.utils = SimpleNamespace(get_assets_path=lambda: tmp_path)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "moonshine_voice", package)
    monkeypatch.setattr(metadata, "version", lambda name: "0.1.5")
    with pytest.raises(CheckpointError, match=r"moonshine-voice 0\.1\.5 comes without its weights"):
        open_transcriber("moonshine")


def test_words_beyond_the_vocabulary_are_refused(pocketsphinx: PocketsphinxTranscriber) -> None:
    check_vocabulary(pocketsphinx, ["One, two", "7 zero"])
    with pytest.raises(ConfigError, match=r"'pocketsphinx-digits' hears 10 words only, and 'eleven'.*--transcr"):
        check_vocabulary(pocketsphinx, ["one", "two 11"])
    check_vocabulary(PocketsphinxTranscriber(), ["eleven"])


def test_what_is_no_transcriber_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown recognizer 'pocketsphynx' .did you mean 'pocketsphinx'"):
        open_transcriber("pocketsphynx")
    with seeded("other"):
        save_judge(tmp_path / "voices", SpeakerNetwork(SpeakerNetworkConfig(width=8, num_blocks=1, pooled=8)))
    with pytest.raises(CheckpointError, match="holds a speaker-encoder"):
        open_transcriber(tmp_path / "voices")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json' is missing"):
        open_transcriber(tmp_path / "empty")


def test_ctc_model_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5, "B": 6}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    config = transformers.Wav2Vec2Config(
        vocab_size=7,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(20, 16),
        conv_kernel=(20, 16),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    with seeded("ctc"):
        model = transformers.Wav2Vec2ForCTC(config).eval()
    with torch.no_grad():
        model.lm_head.bias[5] = 100.0  # always "A"
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=16000)
    folder = tmp_path / "ctc"
    model.save_pretrained(folder)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    transcriber = open_transcriber(folder)
    assert isinstance(transcriber, TransformersTranscriber) and isinstance(transcriber, Transcriber)
    assert transcriber.name == "ctc" and transcriber.version == f"transformers {transformers.__version__}"
    assert len(transcriber.sha256) == 64 and transcriber.sample_rate_hz == 16000
    assert transcriber(_babble(0)) == "A"


def test_whisper_model_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        vocab_size=20,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_mel_bins=8,
        max_source_positions=50,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    with seeded("whisper"):
        model = transformers.WhisperForConditionalGeneration(config).eval()
    model.generation_config.max_length = 6
    folder = tmp_path / "whisper"
    model.save_pretrained(folder)

    class Processor:
        """A feature extractor of one second and a tokenizer that names numbers."""

        feature_extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)

        @classmethod
        def from_pretrained(cls, path: Path, **settings: object) -> Processor:
            assert path == folder and settings["local_files_only"]
            return cls()

        def __call__(self, samples: object, **settings: object) -> object:
            return self.feature_extractor(samples, **settings)

        def batch_decode(self, tokens: Tensor, skip_special_tokens: bool) -> list[str]:
            assert skip_special_tokens
            return [" " + " ".join(str(t) for t in row.tolist() if t > 2) for row in tokens]

    monkeypatch.setattr(transformers, "AutoProcessor", Processor)
    transcriber = open_transcriber(folder)
    assert isinstance(transcriber, TransformersTranscriber) and transcriber.sample_rate_hz == 16000
    transcripts = transcriber(_babble(0))
    assert (
        transcripts == transcriber(_babble(0))
        and transcripts == transcripts.strip()
        and all(t.isdigit() for t in transcripts.split())
    )
    with pytest.raises(DataError, match="hears at most 1 s"):
        transcriber(torch.zeros(16001))
