"""Speaker encoders: who speaks, as a vector of unit length; cosines of such vectors are speaker similarities.

A small network of our own, trained to tell speakers apart, models of the `transformers` library from local folders
(WavLM, x-vectors), and Resemblyzer where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.checkpoints.format import Folder, resgen_version
from resgen.errors import ConfigError, DataError, MissingExtraError
from resgen.evaluation.hearing import MEL, change_speed, fit, hear, hear_changed
from resgen.evaluation.speech_folders import BUILT_IN, find_judge, load_judge, open_transformers, save_judge
from resgen.nn.conv1d import ConvNeXtBlock1d, Downsample1d, zero_invalid
from resgen.ops.mel import MelConfig
from resgen.ops.precision import has_bfloat16
from resgen.ops.random import generator, seeded

KIND = "speaker-encoder"
RESEMBLYZER = "resemblyzer"
STRIDE = 4
MARGIN = 0.2
SPEEDS = (1.0, 0.88, 1.14)
"""A speaker heard at another speed counts as another speaker: three times as many to learn from."""


@runtime_checkable
class SpeakerEncoder(Protocol):
    """What makes an embedding of a voice.

    Attributes:
        name: in reports.
        version: of the software.
        sha256: of the weights, or `built-in`.
        sample_rate_hz: that the sounds must have.
    """

    name: str
    version: str
    sha256: str
    sample_rate_hz: int

    def __call__(self, samples: Float[Tensor, " S"]) -> Float[Tensor, " E"]:
        """Embedding of unit length of a sound in -1..1."""
        ...


@dataclass(frozen=True, kw_only=True)
class SpeakerNetworkConfig:
    """Shape of the speaker encoder; the default has about 1.1M parameters.

    Attributes:
        mel: of the log-mels that it hears; sounds must have its rate.
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
        for name in ("width", "num_blocks", "pooled", "embedding_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")


class SpeakerNetwork(nn.Module):
    """ConvNeXt blocks whose outputs are joined, attentive statistics over time, one linear layer.

    The joining of all blocks and the attention that sees the whole sound are those of ECAPA-TDNN (arXiv:2005.07143).
    """

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
            features: of `hear`.
            valid: True where a frame is no padding; padding changes nothing.
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
        _check_sound(samples)
        device = self.out.weight.device
        features, valid = hear(samples[None].to(device), torch.tensor([len(samples)]), self.config.mel)
        return self(features, valid)[0].cpu()


class NetworkSpeakerEncoder:
    """A `SpeakerNetwork` of a folder as a `SpeakerEncoder`."""

    def __init__(self, folder: str | Path) -> None:
        self.network, saved = load_speaker_network(folder)
        self.name = saved.path.resolve().name
        self.version = f"resgen {resgen_version()}"
        self.sha256 = saved.component(KIND).sha256
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
        _check_sound(samples)
        inputs = self._processor(samples.cpu().numpy(), sampling_rate=self.sample_rate_hz, return_tensors="pt")
        return F.normalize(self._model(**inputs).embeddings[0].float(), dim=0)


class ResemblyzerSpeakerEncoder:
    """The encoder of the Resemblyzer package, whose weights come with it (GE2E, arXiv:1710.10467).

    Raises:
        MissingExtraError: resemblyzer is not installed.
    """

    def __init__(self) -> None:
        try:
            from resemblyzer import VoiceEncoder
        except ImportError as error:
            raise MissingExtraError(RESEMBLYZER, "sim") from error
        self._encoder = VoiceEncoder("cpu", verbose=False)
        self.name, self.version, self.sha256 = RESEMBLYZER, metadata.version("resemblyzer"), BUILT_IN
        self.sample_rate_hz = 16000

    def __call__(self, samples: Float[Tensor, " S"]) -> Float[Tensor, " E"]:
        """Embedding of unit length of a sound in -1..1.

        Raises:
            DataError: no samples.
        """
        _check_sound(samples)
        return F.normalize(torch.from_numpy(self._encoder.embed_utterance(samples.cpu().numpy())).float(), dim=0)


def open_speaker_encoder(name_or_folder: str | Path) -> SpeakerEncoder:
    """A speaker encoder: `resemblyzer`, a bundled one by name, or a folder of ours or of transformers.

    Raises:
        CheckpointError: nothing of that name, or a folder that holds something else.
        MissingExtraError: a package is missing.
    """
    if str(name_or_folder) == RESEMBLYZER:
        return ResemblyzerSpeakerEncoder()
    folder, ours = find_judge(name_or_folder, KIND, (RESEMBLYZER,))
    return NetworkSpeakerEncoder(folder) if ours else TransformersSpeakerEncoder(folder)


def embed_all(encoder: SpeakerEncoder, sounds: Sequence[Tensor]) -> Float[Tensor, "N E"]:
    """Embeddings of several sounds, each `[S]` at the encoder's rate.

    Raises:
        DataError: no sounds, or an embedding that is not finite.
    """
    if not sounds:
        raise DataError("0 sounds given; at least one is needed")
    embeddings = torch.stack([encoder(x) for x in sounds])
    if not bool(embeddings.isfinite().all()):
        raise DataError(f"encoder '{encoder.name}' gave embeddings that are not finite; check the sounds")
    return embeddings


def angular_margin_loss(
    embeddings: Float[Tensor, "B E"],
    classes: Float[Tensor, "P E"],
    speakers: Int[Tensor, " B"],
    *,
    margin: float = MARGIN,
    scale: float = 30.0,
) -> Float[Tensor, ""]:
    """AAM-softmax (ArcFace, arXiv:1801.07698): the angle to the right class has to be smaller by `margin` radians."""
    cosine = (embeddings @ F.normalize(classes, dim=1).T).clamp(-1 + 1e-6, 1 - 1e-6)
    right = torch.cos(cosine.gather(1, speakers[:, None]).acos() + margin)
    return F.cross_entropy(scale * cosine.scatter(1, speakers[:, None], right), speakers)


def train_speaker_network(
    recordings: Sequence[Tensor],
    speakers: Int[Tensor, " N"],
    config: SpeakerNetworkConfig,
    *,
    num_steps: int | None = None,
    max_minutes: float | None = None,
    batch_size: int = 64,
    crop_seconds: tuple[float, float] = (0.8, 2.0),
    learning_rate: float = 3e-3,
    weight_decay: float = 0.02,
    seed: int = 0,
    device: torch.device | None = None,
    report: Callable[[int, float, float], None] | None = None,
) -> SpeakerNetwork:
    """Train from scratch on crops of recordings; all speakers are heard equally often.

    The margin grows from 0 to its value over the first half.

    With `num_steps` alone the result is reproducible.

    Args:
        recordings: each `[S]`, -1..1, at the rate of `config.mel`.
        speakers: who speaks, 0..P-1, each at least once.
        config: shape of the network.
        num_steps: batches to train on.
        max_minutes: time to spend; with both, the one that is over first ends the training.
        batch_size: crops per step.
        crop_seconds: shortest and longest crop; all of a batch have one length.
        learning_rate: peak; see `fit`.
        weight_decay: of matrices.
        seed: of weights, order and changes.
        device: where to compute; the CPU by default.
        report: called after every step with (step, share of the training that is over, loss).

    Returns:
        The network in evaluation mode.

    Raises:
        ConfigError: neither `num_steps` nor `max_minutes`, or a value out of range.
        DataError: no recordings, not one speaker for each, fewer than two speakers, or a gap in their numbers.
    """
    if not recordings or len(recordings) != len(speakers):
        raise DataError(f"{len(recordings)} recordings and {len(speakers)} speakers given; each needs its speaker")
    low, high = crop_seconds
    if not 0 < low <= high or batch_size < 2:
        raise ConfigError(
            f"crop_seconds={crop_seconds} must be positive and rising, batch_size={batch_size} at least 2"
        )
    rows_of = [torch.nonzero(speakers == p)[:, 0] for p in range(int(speakers.max()) + 1)]
    if len(rows_of) < 2 or not all(len(rows) for rows in rows_of):
        raise DataError("speakers must be numbered 0..P-1 without gaps, and be two at least")
    place = device or torch.device("cpu")
    with seeded(KIND, seed, "weights"):
        model = SpeakerNetwork(config)
        classes = nn.Parameter(torch.randn(len(rows_of) * len(SPEEDS), config.embedding_size))
    trained = nn.ModuleDict({"model": model, "classes": nn.ParameterList([classes])}).to(place)
    stream = generator(KIND, seed, "batches")

    def draw(size: int) -> int:
        return int(torch.randint(size, (), generator=stream))

    def next_loss(share: float) -> Tensor:
        seconds = low + (high - low) * float(torch.rand((), generator=stream))
        size = int(seconds * config.mel.sample_rate_hz)
        crops, wanted = [], []
        for _ in range(batch_size):
            speaker, speed = draw(len(rows_of)), draw(len(SPEEDS))
            whole = recordings[int(rows_of[speaker][draw(len(rows_of[speaker]))])]
            needed = int(size * SPEEDS[speed])
            begin = draw(max(1, len(whole) - needed + 1))
            crops.append(change_speed(whole[begin : begin + needed], SPEEDS[speed]))
            wanted.append(speed * len(rows_of) + speaker)
        features, valid = hear_changed(crops, config.mel, stream, place, speed=False)
        with torch.autocast(place.type, torch.bfloat16, enabled=has_bfloat16(place)):
            embeddings = model(features, valid)
        margin = MARGIN * min(1.0, 2 * share)  # from the start it keeps the classes from being found at all
        return angular_margin_loss(embeddings, classes, torch.tensor(wanted, device=place), margin=margin)

    fit(
        trained,
        next_loss,
        num_steps=num_steps,
        max_minutes=max_minutes,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        report=report,
    )
    return model


def save_speaker_network(path: str | Path, model: SpeakerNetwork, *, history: Mapping[str, Any] | None = None) -> None:
    """Write a speaker encoder's folder; matrices in bfloat16.

    Raises:
        CheckpointError: the place holds something else or cannot be written.
    """
    save_judge(path, KIND, model, model.config, history)


def load_speaker_network(path: str | Path) -> tuple[SpeakerNetwork, Folder]:
    """The network of a folder, in evaluation mode; its file is compared with its hash.

    Raises:
        CheckpointError: nothing there, damaged, or not a speaker encoder.
    """
    return load_judge(path, KIND, SpeakerNetwork, SpeakerNetworkConfig)


def _statistics(x: Float[Tensor, "B T C"], weights: Float[Tensor, "B T C2"]) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over time, each `[B, C]`."""
    mean = (x * weights).sum(1)
    variance = (x.square() * weights).sum(1) - mean.square()
    return mean, variance.clamp(min=1e-5).sqrt()


def _check_sound(samples: Tensor) -> None:
    if not len(samples):
        raise DataError("0 samples given; there is nothing to be recognised")
