"""Speaker encoders: who speaks, as a vector of unit length; cosines of such vectors are speaker similarities.

A small network of our own, trained to tell speakers apart, models of the `transformers` library from local folders
(WavLM, x-vectors), and Resemblyzer where it is installed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.errors import check_range
from resgen.evaluation.speech.folders import (
    BUILT_IN,
    JudgeNetwork,
    SoundJudge,
    find_judge,
    load_judge,
    names_of,
    open_transformers,
)
from resgen.evaluation.speech.hearing import MEL, check_sound, hear
from resgen.extras import import_extra
from resgen.nn.conv1d import ConvNeXtBlock1d, Downsample1d, zero_invalid
from resgen.ops.mel import MelConfig

RESEMBLYZER = "resemblyzer"
STRIDE = 4


@runtime_checkable
class SpeakerEncoder(SoundJudge, Protocol):
    """A speaker encoder: from speech to an embedding of the voice."""

    def __call__(self, samples: Float[Tensor, " S"]) -> Float[Tensor, " E"]:
        """Embedding of unit length of a sound in -1..1."""
        ...


@dataclass(frozen=True, kw_only=True)
class SpeakerNetworkConfig:
    """Shape of the speaker encoder; the default has about 1.1M parameters.

    Attributes:
        mel: settings of the log-mels that it hears; sounds must have its rate.
        width: channels of the blocks.
        num_blocks: ConvNeXt blocks over time, at a quarter of the frame rate.
        pooled: channels whose mean and deviation over time are taken.
        embedding_size: E, length of the embedding.
    """

    mel: MelConfig = field(default_factory=lambda: MEL)
    width: int = 160
    num_blocks: int = 4
    pooled: int = 384
    embedding_size: int = 128

    def __post_init__(self) -> None:
        check_range(self, 1, "width", "num_blocks", "pooled", "embedding_size")


class SpeakerNetwork(JudgeNetwork):
    """ConvNeXt blocks whose outputs are joined, attentive statistics over time, one linear layer.

    The joining of all blocks and the attention that sees the whole sound are those of ECAPA-TDNN (arXiv:2005.07143).
    """

    kind, config_type = "speaker-encoder", SpeakerNetworkConfig

    def __init__(self, config: SpeakerNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Downsample1d(config.mel.num_bands, config.width, STRIDE)
        self.norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(ConvNeXtBlock1d(config.width) for _ in range(config.num_blocks))
        self.join = nn.Linear(config.num_blocks * config.width, config.pooled)
        self.attend = nn.Sequential(
            nn.Linear(3 * config.pooled, config.embedding_size),
            nn.Tanh(),
            nn.Linear(config.embedding_size, config.pooled),
        )
        self.pooled_norm = nn.LayerNorm(2 * config.pooled)
        self.out = nn.Linear(2 * config.pooled, config.embedding_size)

    def forward(self, features: Float[Tensor, "B F T"], valid: Bool[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """Embeddings of unit length.

        Args:
            features: what `hear` returned.
            valid: True where a frame is not padding; padding changes nothing.
        """
        missing = (0, -features.shape[2] % STRIDE)
        features, valid = F.pad(features, missing), F.pad(valid, missing)
        x = self.norm(self.stem(features, valid).transpose(1, 2)).transpose(1, 2)
        valid = valid[:, ::STRIDE]
        levels = []
        for block in self.blocks:
            x = block(x, valid)
            levels.append(x)
        x = F.gelu(self.join(torch.cat(levels, 1).transpose(1, 2)))
        x = zero_invalid(x.transpose(1, 2), valid).transpose(1, 2).float()
        uniform = (valid / valid.sum(1, keepdim=True))[:, :, None]
        context = torch.cat(_statistics(x, uniform), 1)[:, None].expand(-1, x.shape[1], -1)
        scores = self.attend(torch.cat([x, context], 2)).float()
        weights = scores.masked_fill(~valid[:, :, None], -torch.inf).softmax(1)
        pooled = self.pooled_norm(torch.cat(_statistics(x, weights), 1))
        return F.normalize(self.out(pooled).float(), dim=1)

    @torch.inference_mode()
    def embed(self, samples: Float[Tensor, " S"]) -> Float[Tensor, " E"]:
        """Embedding of unit length of one sound, on the CPU.

        Args:
            samples: -1..1, at the rate of `config.mel`.

        Raises:
            DataError: no samples.
        """
        sounds, lengths = samples[None].to(self.out.weight.device), torch.tensor([len(samples)])
        features, valid = hear(sounds, lengths, self.config.mel)
        return self(features, valid)[0].cpu()


class NetworkSpeakerEncoder:
    """A `SpeakerNetwork` of a folder as a `SpeakerEncoder`."""

    def __init__(self, folder: str | Path) -> None:
        self.network, saved = load_judge(folder, SpeakerNetwork)
        self.name, self.version, self.sha256 = names_of(saved)
        self.sample_rate_hz = self.network.config.mel.sample_rate_hz

    def __call__(self, samples: Float[Tensor, " S"]) -> Float[Tensor, " E"]:
        """See `SpeakerNetwork.embed`."""
        return self.network.embed(samples)


class TransformersSpeakerEncoder:
    """A speaker verification model (WavLM, Wav2Vec2 and the like with an x-vector head) from a local folder.

    Raises:
        CheckpointError: no safetensors weights there, or no such model.
        MissingExtraError: transformers is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        loaded = open_transformers(folder, "AutoModelForAudioXVector", "AutoFeatureExtractor")
        self.name, self.version, self.sha256 = loaded.name, loaded.version, loaded.sha256
        self.sample_rate_hz = loaded.sample_rate_hz
        self._model, self._processor = loaded.model, loaded.processor

    @torch.inference_mode()
    def __call__(self, samples: Float[Tensor, " S"]) -> Float[Tensor, " E"]:
        """Embedding of unit length of a sound in -1..1.

        Raises:
            DataError: no samples.
        """
        check_sound(samples)
        inputs = self._processor(samples.cpu().numpy(), sampling_rate=self.sample_rate_hz, return_tensors="pt")
        return F.normalize(self._model(**inputs).embeddings[0].float(), dim=0)


class ResemblyzerSpeakerEncoder:
    """The encoder of the Resemblyzer package, whose weights come with it (GE2E, arXiv:1710.10467).

    Raises:
        MissingExtraError: resemblyzer is not installed.
    """

    def __init__(self) -> None:
        self._encoder = import_extra(RESEMBLYZER, None).VoiceEncoder("cpu", verbose=False)
        self.name, self.version, self.sha256 = RESEMBLYZER, metadata.version("resemblyzer"), BUILT_IN
        self.sample_rate_hz = 16000

    def __call__(self, samples: Float[Tensor, " S"]) -> Float[Tensor, " E"]:
        """Embedding of unit length of a sound in -1..1.

        Raises:
            DataError: no samples.
        """
        check_sound(samples)
        return F.normalize(torch.from_numpy(self._encoder.embed_utterance(samples.cpu().numpy())).float(), dim=0)


def open_speaker_encoder(name_or_folder: str | Path) -> SpeakerEncoder:
    """A speaker encoder: `resemblyzer`, a bundled one by name, or a folder of ours or of transformers.

    Raises:
        CheckpointError: nothing of that name, or a folder that holds something else.
        MissingExtraError: a package is missing.
    """
    if str(name_or_folder) == RESEMBLYZER:
        return ResemblyzerSpeakerEncoder()
    folder, ours = find_judge(name_or_folder, SpeakerNetwork.kind, (RESEMBLYZER,))
    return NetworkSpeakerEncoder(folder) if ours else TransformersSpeakerEncoder(folder)


def _statistics(x: Float[Tensor, "B T C"], weights: Float[Tensor, "B T C2"]) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over time, each `[B, C]`."""
    mean = (x * weights).sum(1)
    variance = (x.square() * weights).sum(1) - mean.square()
    return mean, variance.clamp(min=1e-5).sqrt()
