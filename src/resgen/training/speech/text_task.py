"""The text model learns which frames each letter or phoneme becomes, and how long they take (Sec. 5.1, App. A.1)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from resgen.checkpoints.speech import save_text_model
from resgen.data.front_ends import front_end
from resgen.data.pictures.grid import save_picture, stacked
from resgen.data.sound.alignment import alignment_picture
from resgen.data.sound.spectrogram import spectrogram_picture
from resgen.data.sound.store import SpeechStore
from resgen.data.spoken import FrontEnd
from resgen.data.text import alphabet_of, is_pause, pad_texts, token_ids
from resgen.errors import ConfigError, DataError
from resgen.models.text import TextModel
from resgen.nn.transformer import Block
from resgen.ops.alignment import alignment_prior, expand
from resgen.ops.mel import MelConfig, log_mel_before_silence
from resgen.progress import show_progress
from resgen.training.interface import LossOf
from resgen.types import LOCAL, Reduce

VALIDATION_BATCH = 32
MEL_BATCH = 16
PARTS = ("mel", "duration", "length")
"""Of the loss."""
PICTURES = 2
PIXELS, GAP = 3, 12


@dataclass(frozen=True, kw_only=True)
class TextLossConfig:
    """Settings of the text model's loss.

    Attributes:
        duration_weight: weight of the squared error of log durations.
        length_weight: weight of the squared error of an utterance's log length (a deviation): durations whose
            logarithm is right on average are too short on average.
        prior_steps: steps over which the two priors fade from the alignment; 0 never uses them. They matter while the
            model knows nothing: what it then learns to expect of a token, it will find.
        prior_weight: weight of `alignment_prior`, an even flow of speech, against scores that are sums over all bands.
        prior_strength: strength of `alignment_prior`; larger is nearer to the diagonal.
        pause_weight: weight of the prior that pauses are quieter than sounds; without it they often become part of
            the next letter.
        validation_samples: held-out utterances that each validation looks at.
    """

    duration_weight: float = 0.1
    length_weight: float = 1.0
    prior_steps: int = 200
    prior_weight: float = 1.0
    prior_strength: float = 1.0
    pause_weight: float = 10.0
    validation_samples: int = 512

    def __post_init__(self) -> None:
        for name in ("duration_weight", "length_weight", "prior_steps", "prior_weight", "pause_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if not self.prior_strength > 0:
            raise ConfigError(f"prior_strength={self.prior_strength} must be above 0")
        if self.validation_samples < 1:
            raise ConfigError(f"validation_samples={self.validation_samples} must be at least 1")


class Utterances(NamedTuple):
    """A batch of whole utterances.

    Attributes:
        tokens: what `token_ids` returned.
        valid: tokens that are not padding.
        mels: natural-log mels.
        frames: frames of each utterance that are not padding.
    """

    tokens: Int[Tensor, "B N"]
    valid: Bool[Tensor, "B N"]
    mels: Float[Tensor, "B F T"]
    frames: Int[Tensor, " B"]


class Sizes(NamedTuple):
    """Counts of a whole batch: utterances, tokens and frames without padding."""

    utterances: int
    tokens: int
    frames: int


class Recordings:
    """Recordings as mels, taken once and kept in memory, with their texts as tokens.

    Args:
        store: decoded recordings with texts; it is not needed afterwards.
        read: front end.
        mel: frames and bands.
        max_tokens: the longest text.

    Raises:
        DataError: no recordings, a text that cannot be said, or one with more tokens than `max_tokens` or than its
            recording has frames.
    """

    def __init__(self, store: SpeechStore, read: FrontEnd, mel: MelConfig, max_tokens: int) -> None:
        if not len(store):
            raise DataError("there are no recordings; the text model needs at least one")
        self.contents = [one.content for one in store.spoken(read)]
        self.tokens = [token_ids(content) for content in self.contents]
        self.frames = -(-store.lengths // mel.hop_size)
        for index, (tokens, frames) in enumerate(zip(self.tokens, self.frames.tolist(), strict=True)):
            most = min(max_tokens, frames)
            if len(tokens) > most:
                raise DataError(
                    f"utterance {index} has {len(tokens)} text tokens, at most {most} fit "
                    f"(max_tokens={max_tokens}, one per frame); leave it out: {store.texts[index][:60]!r}"
                )
        self.mels = _mels(store, mel)

    def __len__(self) -> int:
        return len(self.tokens)

    def sizes(self, indices: Int[Tensor, " B"]) -> Sizes:
        """Counts of a batch."""
        tokens = sum(len(self.tokens[index]) for index in indices.tolist())
        return Sizes(len(indices), tokens, int(self.frames[indices].sum()))

    def batch(self, indices: Int[Tensor, " B"], device: torch.device) -> Utterances:
        """Whole utterances, padded at the end."""
        rows = indices.tolist()
        tokens, valid = pad_texts([self.tokens[row] for row in rows])
        mels = pad_sequence([self.mels[row] for row in rows], batch_first=True)
        frames = self.frames[indices]
        return Utterances(tokens.to(device), valid.to(device), mels.to(device).transpose(1, 2), frames.to(device))


def _mels(store: SpeechStore, mel: MelConfig) -> list[Float[Tensor, "T F"]]:
    """Natural-log mels of all recordings."""
    hop = mel.hop_size
    result: dict[int, Tensor] = {}
    parts = ((len(rows), rows) for rows in store.lengths.argsort(stable=True).split(MEL_BATCH))
    for rows in show_progress(parts, len(store), "mels"):
        samples, lengths = store.batch(rows, multiple=hop)
        mels = log_mel_before_silence(samples, mel).transpose(1, 2)
        for row, frames, padded in zip(rows.tolist(), (-(-lengths // hop)).tolist(), mels, strict=True):
            result[row] = padded[:frames].clone(memory_format=torch.contiguous_format)
    return [result[row] for row in range(len(store))]


class TextTask:
    """Training task of a `TextModel`; see `training.interface.Task`.

    Args:
        model: what is trained.
        config: losses.
        train: recordings with texts.
        held_out: others, to validate on.
        mel: frames and bands, those of the tokenizer.
        alphabet: letters or phonemes that the model knows already.
    """

    name = "text"
    flow = staticmethod(alignment_prior)
    """How speech flows before anything is known; see `TextModel.search`."""

    def __init__(
        self,
        model: TextModel,
        config: TextLossConfig,
        train: SpeechStore,
        held_out: SpeechStore,
        *,
        mel: MelConfig,
        alphabet: str = "",
    ) -> None:
        if mel.num_bands != model.config.num_bands:
            raise ConfigError(
                f"num_bands={mel.num_bands} of the mels must be the text model's num_bands={model.config.num_bands}"
            )
        self.module: nn.Module = model
        self.model, self.config = model, config
        self.read = front_end(model.config.front_end)
        self.train = Recordings(train, self.read, mel, model.config.max_tokens)
        self.held_out = Recordings(held_out, self.read, mel, model.config.max_tokens)
        self._alphabet = alphabet

    @property
    def num_samples(self) -> int:
        """Training utterances."""
        return len(self.train)

    @property
    def lengths(self) -> Int[Tensor, " U"]:
        """Tokens of each recording: a batch holds texts of like length, and little padding."""
        return torch.tensor([len(tokens) for tokens in self.train.tokens])

    @property
    def ema_module(self) -> nn.Module:
        """The whole model."""
        return self.model

    def optimizer_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters in one group."""
        return {"text": list(self.model.parameters())}

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.model.to(device)

    def compile(self) -> None:
        """Compile the blocks of the transformer."""
        for module in self.model.modules():
            if isinstance(module, Block):
                module.compile()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.angles.device

    def losses(
        self,
        indices: Int[Tensor, " B"],
        parts: Sequence[slice],
        step: int,
        generator: torch.Generator,
        reduce: Reduce = LOCAL,
    ) -> list[LossOf]:
        """Distance of mels and expanded hidden states, and the errors of log durations and log lengths."""
        fade = max(0.0, 1.0 - step / self.config.prior_steps) if self.config.prior_steps else 0.0
        sizes = self.train.sizes(indices)

        def loss_of(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            batch = self.train.batch(indices[rows], self.device)
            return self._losses(batch, self.model(batch.tokens, batch.valid), sizes, fade)[:2]

        return [("text", functools.partial(loss_of, rows)) for rows in parts]

    @torch.no_grad()
    def validate(self, module: nn.Module, reduce: Reduce = LOCAL) -> dict[str, float]:
        """Losses without the prior, and how far predicted durations are from those of the alignment.

        `duration_error_frames` is the mean absolute error of a token's duration; `length_error_percent` that of an
        utterance's length, and `length_bias_percent` its mean with sign (predicted less true).
        """
        count = min(len(self.held_out), self.config.validation_samples)
        sizes = self.held_out.sizes(torch.arange(count))
        names = ("val_loss", *PARTS, "length_error_percent", "length_bias_percent")
        sums = torch.zeros(len(names) + 1, dtype=torch.float64)  # and the errors of durations
        for part in torch.arange(count).split(VALIDATION_BATCH)[reduce.rank :: reduce.world_size]:
            batch = self.held_out.batch(part, self.device)
            hidden = self.model(batch.tokens, batch.valid)
            loss, metrics, durations = self._losses(batch, hidden, sizes, 0.0)
            predicted = self.model.durations(hidden, batch.valid)
            ratio = 100 * (predicted.sum(dim=1) / batch.frames - 1) / count
            error = (predicted - durations).abs().sum() / sizes.tokens
            values = [loss, *(metrics[name] for name in PARTS), ratio.abs().sum(), ratio.sum(), error]
            sums += torch.tensor([float(value) for value in values], dtype=torch.float64)
        return dict(zip((*names, "duration_error_frames"), reduce.sum(sums).tolist(), strict=True))

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        """Held-out utterances: the mel; below it the alignment and the predicted durations, text downwards."""
        batch = self.held_out.batch(torch.arange(min(len(self.held_out), PICTURES)), self.device)
        hidden = self.model(batch.tokens, batch.valid)
        durations = self.model.match(hidden, batch.valid, self.model.normalise(batch.mels, batch.frames), batch.frames)
        predicted = self.model.durations(hidden, batch.valid)
        panels = []
        for index, (frames, content) in enumerate(zip(batch.frames.tolist(), self.held_out.contents, strict=False)):
            real = batch.valid[index]
            panels.append(
                alignment_picture(
                    spectrogram_picture(batch.mels[index, :, :frames].cpu(), scale=PIXELS),
                    ["|", *(self.read.symbols(bytes([byte])).replace(" ", "_") for byte in content), "|"],
                    durations[index][real].cpu(),
                    predicted[index][real].cpu(),
                )
            )
        save_picture(stacked(panels, GAP), path)

    def export(self, folder: Path, history: Mapping[str, Any]) -> None:
        """Write the text model's folder, with the letters or phonemes of the training."""
        symbols = map(self.read.symbols, self.train.contents)
        save_text_model(folder, self.model, alphabet=alphabet_of([self._alphabet, *symbols]), history=history)

    def _losses(
        self, batch: Utterances, hidden: Float[Tensor, "B N E"], sizes: Sizes, fade: float
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss and metrics as shares of a batch of these sizes, and the durations of the alignment, with `fade` of the
        priors."""
        model = self.model
        target = model.normalise(batch.mels, batch.frames)
        prior = fade * self._prior(batch) if fade > 0 else None
        logs = model.log_durations(hidden, batch.valid).float()
        durations = model.match(hidden, batch.valid, target, batch.frames, prior, logs)
        # The linear map before the expansion gives the same as after it, for fewer vectors.
        means = expand(model.to_mel(hidden).float(), durations, target.shape[2])
        inside = (torch.arange(target.shape[2], device=target.device) < batch.frames[:, None])[..., None]
        distance = ((target.transpose(1, 2) - means).square() * inside).sum() / 2
        mel_loss = distance / (sizes.frames * target.shape[1])
        error = logs - durations.clamp(min=1).log()
        duration_loss = (error.square() * batch.valid).sum() / sizes.tokens
        length_loss = ((logs.exp() * batch.valid).sum(dim=1) / batch.frames).log().square().sum() / sizes.utterances
        loss = mel_loss + self.config.duration_weight * duration_loss + self.config.length_weight * length_loss
        parts = (mel_loss, duration_loss, length_loss)
        return loss, {name: part.detach() for name, part in zip(PARTS, parts, strict=True)}, durations

    def _prior(self, batch: Utterances) -> Float[Tensor, "B N T"]:
        """What is known of the alignment before training: speech flows evenly, and pauses are quiet."""
        config = self.config
        shape = batch.tokens.shape[1], batch.mels.shape[2]
        even = self.flow(batch.valid.sum(dim=1), batch.frames, *shape, strength=config.prior_strength)
        inside = torch.arange(shape[1], device=self.device) < batch.frames[:, None]
        loudness = batch.mels.double().mean(dim=1) / self.model.config.mel_scale
        loudness = loudness - (loudness * inside).sum(dim=1, keepdim=True) / batch.frames[:, None]
        sign = torch.where(is_pause(batch.tokens), -1.0, 1.0)
        return config.prior_weight * even + config.pause_weight * sign[:, :, None] * loudness[:, None]
