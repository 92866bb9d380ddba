"""The text side of speech: hidden states per byte, their alignment to a mel spectrogram, and durations (App. A.1).

Paper: a frozen ByT5 encoder, 4 transformer layers and a linear duration regression, trained by monotonic alignment
search to bring the expanded hidden states near the mel spectrogram. Deviations: a byte embedding with a small
convolutional prenet may stand for ByT5 and is the default; mels are matched with their mean over time taken away, so
that voices and microphones differ less; two convolutions precede the regression of durations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from resgen.data.front_ends import check_front_end
from resgen.data.text import NUM_TOKENS
from resgen.errors import CheckpointError, ConfigError, DataError, check_range
from resgen.extras import import_extra
from resgen.nn.conv1d import Conv1d
from resgen.nn.positions import rotary_angles
from resgen.nn.transformer import Transformer
from resgen.ops.alignment import monotonic_alignment, timed_alignment

MAX_TOKEN_FRAMES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class TextModelConfig:
    """Shape of the text model.

    Attributes:
        front_end: what it reads of a text: `bytes`, or phonemes of `english-1`; see `data.front_ends`.
        width: E, of the hidden states.
        num_layers: transformer blocks.
        num_heads: attention heads.
        mlp_width: hidden width of each block's MLP.
        num_bands: F, mel bands.
        prenet_layers: convolutions before the transformer.
        kernel_size: kernel size of the prenet, in tokens; odd.
        duration_kernel_size: kernel size of the two convolutions before the regression of durations; odd.
        max_tokens: the longest text, with its two boundary tokens.
        centre_mels: take each band's mean over the utterance away before mels and hidden states are compared.
        mel_shift: taken from natural-log mels.
        mel_scale: what they are then divided by; both as in `MelTokenizerConfig`.
        timing: weight of the predicted durations in the alignment, see `ops.alignment.timed_alignment`; 0, the paper's,
            aligns by the mels alone.
        byt5_folder: local folder of a pretrained ByT5 (`config.json` and safetensors), whose frozen encoder stands for
            the byte embedding; null for none. Its weights are not part of this model's checkpoints.
    """

    front_end: str = "bytes"
    width: int = 192
    num_layers: int = 4
    num_heads: int = 4
    mlp_width: int = 768
    num_bands: int = 80
    prenet_layers: int = 3
    kernel_size: int = 5
    duration_kernel_size: int = 3
    max_tokens: int = 512
    centre_mels: bool = True
    mel_shift: float = -5.0
    mel_scale: float = 2.5
    timing: float = 0.0
    byt5_folder: str | None = None

    def __post_init__(self) -> None:
        check_front_end(self.front_end)
        if self.byt5_folder is not None and self.front_end != "bytes":
            raise ConfigError(f"front_end={self.front_end} must be bytes with byt5_folder: ByT5 reads nothing else")
        check_range(self, 1, "width", "num_layers", "num_heads", "mlp_width", "num_bands")
        if self.width % (2 * self.num_heads):
            raise ConfigError(f"width={self.width} must be a multiple of 2 num_heads={2 * self.num_heads}")
        if self.prenet_layers < 0:
            raise ConfigError(f"prenet_layers={self.prenet_layers} must not be negative")
        for name in ("kernel_size", "duration_kernel_size"):
            if getattr(self, name) < 1 or getattr(self, name) % 2 == 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be odd and positive")
        if self.max_tokens < 3:
            raise ConfigError(f"max_tokens={self.max_tokens} must be at least 3: a letter between two boundaries")
        if not self.mel_scale > 0:
            raise ConfigError(f"mel_scale={self.mel_scale} must be above 0")
        if not 0 <= self.timing < math.inf:
            raise ConfigError(f"timing={self.timing} must be at least 0 and finite")


PRESETS: dict[str, TextModelConfig] = {
    "small": TextModelConfig(),
    "paper": TextModelConfig(width=1024, num_heads=16, mlp_width=4096, prenet_layers=0, max_tokens=1024),
}
"""`paper` is meant with `byt5_folder` set to ByT5-Large; the widths of its four layers are not in the paper."""


class TextModel(nn.Module):
    """Hidden states of letters or phonemes that are near the mel frames that they become."""

    angles: Tensor
    search = staticmethod(monotonic_alignment)
    timed_search = staticmethod(timed_alignment)
    """Of the durations; where there are no numbers, as in `training.plan`, others take their places."""

    def __init__(self, config: TextModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        # In a list the frozen encoder is no submodule: no optimizer, average or checkpoint takes hold of it.
        self._pretrained = [] if config.byt5_folder is None else [load_byt5_encoder(config.byt5_folder)]
        self.embedding = nn.Embedding(NUM_TOKENS, width) if config.byt5_folder is None else None
        self.projection = nn.Linear(self._pretrained[0].config.d_model, width) if self._pretrained else None
        self.prenet = nn.ModuleList(_ConvBlock(width, config.kernel_size) for _ in range(config.prenet_layers))
        self.transformer = Transformer(
            width=width, num_layers=config.num_layers, num_heads=config.num_heads, mlp_width=config.mlp_width
        )
        for name, parameter in self.transformer.named_parameters():
            if name.endswith("bias") and parameter.shape == (6, width):
                nn.init.ones_(parameter[2::3])  # both gates: there is no condition to open them
        self.mel = nn.Linear(width, config.num_bands)
        self.duration_layers = nn.ModuleList(_ConvBlock(width, config.duration_kernel_size) for _ in range(2))
        self.duration = nn.Linear(width, 1)
        nn.init.constant_(self.duration.bias, math.log(5))  # frames: near the truth, or the first steps are about this
        self.register_buffer("angles", rotary_angles(config.max_tokens, width // config.num_heads), persistent=False)

    def forward(self, tokens: Int[Tensor, "B N"], valid: Bool[Tensor, "B N"]) -> Float[Tensor, "B N E"]:
        """Hidden states of the tokens of `token_ids`; those of padding mean nothing.

        Raises:
            DataError: more tokens than `max_tokens`.
        """
        count = tokens.shape[1]
        if count > self.config.max_tokens:
            raise DataError(
                f"a text of {count} tokens is longer than max_tokens={self.config.max_tokens}; cut it into sentences"
            )
        x = self._embed(tokens, valid)
        for layer in self.prenet:
            x = layer(x, valid)
        unmodulated = x.new_zeros(len(x), 8, x.shape[-1])
        return self.transformer(x, unmodulated, self.angles[:count], valid)

    def to_mel(self, hidden: Float[Tensor, "B N E"]) -> Float[Tensor, "B N F"]:
        """The mel frame that a hidden state stands for, in the units of `normalise`."""
        return self.mel(hidden)

    def normalise(self, mels: Float[Tensor, "B F T"], frames: Int[Tensor, " B"]) -> Float[Tensor, "B F T"]:
        """`(mel - mel_shift) / mel_scale`, less each band's mean over the utterance with `centre_mels`; 0 at padding.

        Args:
            mels: natural-log mels.
            frames: frames of each utterance that are not padding, at least 1.
        """
        valid = (torch.arange(mels.shape[2], device=mels.device) < frames[:, None])[:, None]
        mels = (mels.float() - self.config.mel_shift) / self.config.mel_scale * valid
        if self.config.centre_mels:
            mels = (mels - mels.sum(dim=2, keepdim=True) / frames[:, None, None]) * valid
        return mels

    @torch.no_grad()
    def match(
        self,
        hidden: Float[Tensor, "B N E"],
        valid: Bool[Tensor, "B N"],
        target: Float[Tensor, "B F T"],
        frames: Int[Tensor, " B"],
        prior: Float[Tensor, "B N T"] | None = None,
        log_durations: Float[Tensor, "B N"] | None = None,
    ) -> Int[Tensor, "B N"]:
        """Durations in frames that bring `to_mel(hidden)` nearest to normalised mels: scores are -|mel - mean|^2 / 2.

        With `timing` the predicted durations count as well, at the pace of each utterance.

        Args:
            hidden: what `forward` returned.
            valid: tokens that are not padding.
            target: what `normalise` returned.
            frames: frames of each utterance that are not padding.
            prior: added to the scores.
            log_durations: what the method of this name returned, if it was called before.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            means = F.linear(hidden.float(), self.mel.weight.float(), self.mel.bias.float())
            # The square of the frame is left out: it is the same for all tokens.
            scores = means @ target.float() - means.square().sum(dim=2, keepdim=True) / 2
        scores, texts = scores if prior is None else scores + prior, valid.sum(dim=1)
        if not self.config.timing:
            return self.search(scores, texts, frames)
        logs = (self.log_durations(hidden, valid) if log_durations is None else log_durations).float()
        pace = frames.log() - logs.masked_fill(~valid, -torch.inf).logsumexp(dim=1)
        return self.timed_search(scores, texts, frames, logs + pace[:, None], self.config.timing)

    def align(
        self,
        tokens: Int[Tensor, "B N"],
        valid: Bool[Tensor, "B N"],
        mels: Float[Tensor, "B F T"],
        frames: Int[Tensor, " B"],
    ) -> Int[Tensor, "B N"]:
        """Number of frames of each token in recordings of the texts (monotonic alignment search); 0 at padding.

        Args:
            tokens: what `token_ids` returned.
            valid: tokens that are not padding.
            mels: natural-log mels of the recordings.
            frames: frames of each recording that are not padding, no fewer than its tokens.

        Raises:
            DataError: a text with more tokens than frames.
        """
        return self.match(self(tokens, valid), valid, self.normalise(mels, frames), frames)

    def log_durations(self, hidden: Float[Tensor, "B N E"], valid: Bool[Tensor, "B N"]) -> Float[Tensor, "B N"]:
        """Natural logarithm of the frames per token; no gradient reaches `hidden`."""
        x = hidden.detach()
        for layer in self.duration_layers:
            x = layer(x, valid)
        return self.duration(x).squeeze(2)

    def durations(
        self,
        hidden: Float[Tensor, "B N E"],
        valid: Bool[Tensor, "B N"],
        *,
        speed: float | Float[Tensor, " B"] = 1.0,
    ) -> Int[Tensor, "B N"]:
        """Whole frames per token, at least 1 each and at most `MAX_TOKEN_FRAMES`, 0 at padding.

        Not the durations but the ends of tokens are rounded, so that an utterance keeps its predicted length to half a
        frame (unless tokens shorter than a frame lengthen it).

        Args:
            hidden: what `forward` returned.
            valid: tokens that are not padding.
            speed: above 1 is faster; one number, or one per sample.

        Raises:
            ConfigError: `speed` is not above 0.
        """
        factor = torch.as_tensor(speed, dtype=torch.float64, device=hidden.device).reshape(-1, 1)
        if not bool((factor > 0).all()):
            raise ConfigError(f"speed={speed} must be above 0")
        exact = self.log_durations(hidden, valid).double().exp().div(factor).clamp(max=MAX_TOKEN_FRAMES)
        number = valid.cumsum(dim=1)
        # An end lies at least a frame after the one before it: end - number never falls.
        late = ((exact * valid).cumsum(dim=1).round().long() - number).clamp(min=0).cummax(dim=1).values
        return (late + number).diff(dim=1, prepend=torch.zeros_like(number[:, :1])) * valid

    def _embed(self, tokens: Tensor, valid: Tensor) -> Tensor:
        if self.embedding is not None:
            return self.embedding(tokens)
        assert self.projection is not None
        with torch.no_grad():
            hidden = self._pretrained[0](input_ids=tokens, attention_mask=valid.long()).last_hidden_state
        return self.projection(hidden.to(self.projection.weight.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TextModel:
        for encoder in self._pretrained:
            encoder._apply(fn)  # moves with the model
        return super()._apply(fn, recurse)


class _ConvBlock(nn.Module):
    """`x + gelu(conv(norm(x)))` over tokens; padding is zero to the convolution."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = Conv1d(width, width, kernel_size)

    def forward(self, x: Float[Tensor, "B N E"], valid: Bool[Tensor, "B N"]) -> Float[Tensor, "B N E"]:
        return x + F.gelu(self.conv(self.norm(x).transpose(1, 2), valid).transpose(1, 2))


def load_byt5_encoder(folder: str | Path) -> Any:
    """The encoder of a pretrained ByT5, frozen and in evaluation mode; nothing is downloaded and nothing unpickled.

    Raises:
        MissingExtraError: transformers is not installed.
        CheckpointError: no such folder, no safetensors in it, or no ByT5.
    """
    T5EncoderModel = import_extra("transformers", "pretrained").T5EncoderModel
    if not (Path(folder) / "config.json").is_file() or not any(Path(folder).glob("*.safetensors")):
        raise CheckpointError(f"'{folder}' must be the folder of a ByT5: config.json and *.safetensors are needed")
    try:
        encoder = T5EncoderModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"'{folder}' cannot be read as ByT5: {reason}") from error
    if encoder.config.vocab_size < NUM_TOKENS:
        raise CheckpointError(f"'{folder}' has {encoder.config.vocab_size} tokens; ByT5 has at least {NUM_TOKENS}")
    return encoder.eval().requires_grad_(False)
