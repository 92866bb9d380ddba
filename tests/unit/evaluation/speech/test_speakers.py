"""The speaker encoder ignores padding, and every encoder keeps the contract."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from resgen.errors import CheckpointError, DataError
from resgen.evaluation.speech import speakers as module
from resgen.evaluation.speech.folders import load_judge, save_judge
from resgen.evaluation.speech.recognizer import Recognizer, RecognizerConfig
from resgen.evaluation.speech.speakers import (
    NetworkSpeakerEncoder,
    ResemblyzerSpeakerEncoder,
    SpeakerEncoder,
    SpeakerNetwork,
    SpeakerNetworkConfig,
    TransformersSpeakerEncoder,
    open_speaker_encoder,
)
from resgen.extras import MissingExtraError
from resgen.nn.seeding import seeded
from resgen.ops.mel import MelConfig

_MEL = MelConfig(sample_rate_hz=8000, fft_size=256, window_size=200, hop_size=80, num_bands=20, max_hz=4000.0)
_SMALL = SpeakerNetworkConfig(mel=_MEL, width=24, num_blocks=2, pooled=32, embedding_size=16)


def _voice(speaker: int, stream: torch.Generator, seconds: float = 0.8) -> Tensor:
    """Noise whose two resonances, unlike its rhythm, are the speaker's."""
    size = int(8000 * seconds)
    hz = torch.fft.rfftfreq(size, 1 / 8000)
    shape = sum(torch.exp(-(((hz - f) / 120) ** 2)) for f in (400 + 330 * speaker, 3500 - 210 * speaker))
    noise = torch.fft.irfft(torch.fft.rfft(torch.randn(size, generator=stream)) * shape, n=size)
    rate = 3 + 4 * float(torch.rand((), generator=stream))
    return (
        0.1
        * F.normalize(noise, dim=0)
        * math.sqrt(size)
        * (0.6 + 0.4 * torch.sin(2 * math.pi * rate * torch.arange(size) / 8000))
    )


def _corpus(speakers: list[int], each: int, seed: int) -> tuple[list[Tensor], Tensor]:
    stream = torch.Generator().manual_seed(seed)
    labels = [s for s in speakers for _ in range(each)]
    return [_voice(s, stream) for s in labels], torch.tensor(labels)


def _network(name: str) -> SpeakerNetwork:
    with seeded(name):
        return SpeakerNetwork(_SMALL).eval()


@pytest.mark.parametrize("frames", [33, 40])
def test_padding_changes_nothing(frames: int) -> None:
    model = _network("padding")
    features = torch.randn(2, 20, 65, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 65, dtype=torch.bool)
    valid[1, frames:] = False
    together = model(features, valid)
    alone = model(features[1:, :, :frames], valid[1:, :frames])
    assert torch.allclose(together[1], alone[0], atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(2), atol=1e-5)


def test_folder_as_encoder(tmp_path: Path) -> None:
    model = _network("folder")
    save_judge(tmp_path / "voices", model, history={"speakers": 2})
    loaded, folder = load_judge(tmp_path / "voices", SpeakerNetwork)
    assert loaded.config == _SMALL and folder.extra["history"] == {"speakers": 2}
    encoder = open_speaker_encoder(tmp_path / "voices")
    assert isinstance(encoder, NetworkSpeakerEncoder) and isinstance(encoder, SpeakerEncoder)
    assert encoder.name == "voices" and encoder.sample_rate_hz == 8000
    assert encoder.sha256 == folder.component(SpeakerNetwork.kind).sha256
    sounds, _ = _corpus([0, 1], 1, 0)
    embeddings = torch.stack([encoder(sound) for sound in sounds])
    assert embeddings.shape == (2, 16)
    assert torch.allclose(embeddings[0], model.embed(sounds[0]), atol=0.03)  # bfloat16
    with pytest.raises(DataError, match="0 samples"):
        encoder(torch.zeros(0))
    file = folder.component(SpeakerNetwork.kind).path
    file.write_bytes(file.read_bytes()[:-2] + b"\x12\x34")
    with pytest.raises(CheckpointError, match="damaged"):
        open_speaker_encoder(tmp_path / "voices")


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown speaker-encoder 'resemblizer'.*resemblyzer"):
        open_speaker_encoder("resemblizer")
    with seeded("other"):
        save_judge(tmp_path / "other", Recognizer(RecognizerConfig(width=8, front=2, num_blocks=1)))
    with pytest.raises(CheckpointError, match="holds a recognizer"):
        open_speaker_encoder(tmp_path / "other")


def test_transformers_folder_as_encoder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.WavLMConfig(
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
        tdnn_dim=(8, 8),
        tdnn_kernel=(3, 1),
        tdnn_dilation=(1, 1),
        xvector_output_dim=12,
    )
    with seeded("wavlm"):
        model = transformers.WavLMForXVector(config).eval()
    folder = tmp_path / "wavlm"
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=16000).save_pretrained(folder)
    encoder = open_speaker_encoder(folder)
    assert isinstance(encoder, TransformersSpeakerEncoder) and isinstance(encoder, SpeakerEncoder)
    assert encoder.name == "wavlm" and len(encoder.sha256) == 64 and encoder.sample_rate_hz == 16000
    sound = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    embedding = encoder(sound)
    scaled = (sound - sound.mean()) / sound.std()
    with torch.inference_mode():
        expected = F.normalize(model(scaled[None]).embeddings[0], dim=0)
    assert embedding.shape == (12,) and torch.allclose(embedding, expected, atol=1e-3)

    headless = tmp_path / "headless"
    model.wavlm.save_pretrained(headless)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=16000).save_pretrained(headless)
    with pytest.raises(CheckpointError, match="lacks .* tensors of AutoModelForAudioXVector"):
        open_speaker_encoder(headless)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no \\*.safetensors"):
        open_speaker_encoder(folder)


def test_resemblyzer_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class VoiceEncoder:
        def __init__(self, device: str, verbose: bool) -> None:
            assert device == "cpu"

        def embed_utterance(self, samples: np.ndarray) -> np.ndarray:
            return np.array([3.0, 4.0 * len(samples)], dtype=np.float32)

    package = types.ModuleType("resemblyzer")
    package.VoiceEncoder = VoiceEncoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "resemblyzer", package)
    monkeypatch.setattr(module.metadata, "version", lambda name: {"resemblyzer": "0.1.4"}[name])
    encoder = open_speaker_encoder("resemblyzer")
    assert isinstance(encoder, ResemblyzerSpeakerEncoder) and isinstance(encoder, SpeakerEncoder)
    assert (encoder.name, encoder.version, encoder.sha256) == ("resemblyzer", "0.1.4", "built-in")
    assert encoder(torch.zeros(1)).tolist() == pytest.approx([0.6, 0.8])
    monkeypatch.setitem(sys.modules, "resemblyzer", None)
    with pytest.raises(MissingExtraError, match="pip install resemblyzer$"):
        open_speaker_encoder("resemblyzer")
