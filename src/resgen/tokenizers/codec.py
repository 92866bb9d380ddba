"""Other people's codecs as tokenizers: EnCodec (arXiv:2210.13438), DAC (arXiv:2306.06546) and Mimi (arXiv:2410.00037).

The networks are those of the `transformers` library. What a generator needs of them is one codebook per level in the
space of the latents, such that the sum of the levels' embeddings is the codec's own quantized latent:

| codec | embedding of entry `v` of level `j` |
|---|---|
| EnCodec | the entry itself |
| DAC | `W_j c_v + b_j`: codes are looked up in a few dimensions, and every level has its own projection back |
| Mimi | `W c_v` with one `W` for the semantic levels and another for the acoustic ones, both without bias |

DAC's biases stay with their levels and are not gathered into one constant: the sum of the first `n` levels is then
the codec's own latent of `n` codebooks. Embeddings are computed in float64 and rounded once, so that the sums differ
from the codec's by float32 rounding only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from resgen.errors import ConfigError, DataError, check_range, unknown
from resgen.extras import import_extra
from resgen.quantizers import Quantization, Quantizer, QuantizerConfig
from resgen.types import LOCAL, CodeSpec, Reduce

FAMILIES = {"encodec": "Encodec", "dac": "Dac", "mimi": "Mimi"}
"""`model_type` of a configuration of `transformers`, and what the names of its classes begin with."""

_NOT_OF_THE_MODEL = ("_name_or_path", "architectures", "id2label", "label2id")


@dataclass(frozen=True, kw_only=True)
class CodecTokenizerConfig:
    """A codec and what is used of it.

    Attributes:
        family: `encodec`, `dac` or `mimi`.
        codec: the configuration of `transformers`, as JSON values.
        num_levels: D, how many of the codec's levels are used, coarse to fine.
        max_positions: the most positions a sample may have.
    """

    tag: ClassVar[str] = "codec"
    family: Literal["encodec", "dac", "mimi"]
    codec: dict[str, Any]
    num_levels: int
    max_positions: int

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConfigError(unknown("family of codecs", self.family, FAMILIES))
        for name in _SIZES[self.family]:
            value = self.codec.get(name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{self.family}: {name}={value!r} must be a whole number of at least 1")
        ratios = self.codec.get(self._ratios)
        if not isinstance(ratios, (list, tuple)) or not ratios or not all(type(r) is int and r > 0 for r in ratios):
            raise ConfigError(f"{self.family}: {self._ratios}={ratios!r} must hold one or more numbers of at least 1")
        self._check_family()
        if not 1 <= self.num_levels <= self.most_levels:
            raise ConfigError(f"num_levels={self.num_levels} must lie in 1..{self.most_levels}, the codec's levels")
        check_range(self, 1, "max_positions")

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the waveforms."""
        return int(self.codec["sampling_rate"])

    @property
    def samples_per_position(self) -> int:
        """Samples that one position stands for."""
        hop = math.prod(self.codec[self._ratios])
        if self.family != "mimi":
            return hop
        # Mimi's codes come at a lower rate than its convolutions give; half of it where nothing is said.
        return hop * (int(self._frames_per_second / self._frame_rate) if self._frame_rate else 2)

    @property
    def most_levels(self) -> int:
        """How many levels the codec has."""
        if self.family != "encodec":
            return int(self.codec[_SIZES[self.family][-1]])
        bits = math.ceil(math.log2(self.codec["codebook_size"])) * self._frames_per_second
        return int(1000 * self.codec["target_bandwidths"][-1] // bits)

    @property
    def spec(self) -> CodeSpec:
        """The shape of the codes; a sample may have fewer positions."""
        if self.family == "dac":
            code_dim = self.codec["encoder_hidden_size"] * 2 ** len(self.codec[self._ratios])
        else:
            code_dim = self.codec["hidden_size"]
        return self.quantizer.spec(code_dim, (self.max_positions,))

    @property
    def quantizer(self) -> QuantizerConfig:
        """Depth and codebook size, where they stand in the other tokenizers' configurations; the rest says nothing."""
        return QuantizerConfig(depth=self.num_levels, codebook_size=self.codec["codebook_size"])

    def _check_family(self) -> None:
        if self.family == "encodec":
            bandwidths = self.codec.get("target_bandwidths")
            if not isinstance(bandwidths, (list, tuple)) or not bandwidths or not all(b > 0 for b in bandwidths):
                raise ConfigError(f"encodec: target_bandwidths={bandwidths!r} must hold one or more numbers above 0")
            if self.codec["codebook_size"] < 2:
                raise ConfigError(f"encodec: codebook_size={self.codec['codebook_size']} must be at least 2")
        if self.family == "mimi":
            for half in ("encoder_config", "decoder_config"):
                if half in self.codec and self.codec[half] is None:
                    raise ConfigError(f"mimi: {half}=None must not be: both halves of the codec are needed")
            if self.samples_per_position < 2 * math.prod(self.codec[self._ratios]):
                raise ConfigError(
                    f"mimi: frame_rate={self._frame_rate} must be at most half of {self._frames_per_second}, the rate "
                    f"of its convolutions"
                )
        for name, expected in _FAMILY_SETTINGS[self.family].items():
            if self.codec.get(name, expected) != expected:
                raise ConfigError(
                    f"{self.family}: {name}={self.codec[name]!r} must be {expected!r}: codes alone have to say what a "
                    f"sound of one channel and any length is"
                )

    @property
    def _frame_rate(self) -> Any:
        return self.codec.get("_frame_rate") or self.codec.get("frame_rate")

    @property
    def _ratios(self) -> str:
        return "downsampling_ratios" if self.family == "dac" else "upsampling_ratios"

    @property
    def _frames_per_second(self) -> int:
        return math.ceil(self.sample_rate_hz / math.prod(self.codec[self._ratios]))


_SIZES = {
    "encodec": ("sampling_rate", "codebook_size", "hidden_size"),
    "dac": ("sampling_rate", "codebook_size", "encoder_hidden_size", "n_codebooks"),
    "mimi": ("sampling_rate", "codebook_size", "hidden_size", "num_semantic_quantizers", "num_quantizers"),
}
# EnCodec at 48 kHz divides each sound by its loudness, which then has to be sent beside the codes, and cuts it in
# overlapping chunks.
_FAMILY_SETTINGS: dict[str, dict[str, Any]] = {
    "encodec": {"audio_channels": 1, "normalize": False, "chunk_length_s": None},
    "dac": {},
    "mimi": {"audio_channels": 1},
}


class CodecQuantizer(Quantizer):
    """The codec's codebooks as a generator and its sampler take them: frozen, in the space of the latents.

    `encode` and `quantize` look for the nearest embedding level by level, which is what sampling needs.
    EnCodec does the same. The codec's own rule, which makes the codes of sounds, is `CodecTokenizer.encode`: DAC
    compares angles in few dimensions, and Mimi's acoustic levels do not see what the semantic ones leave over.
    """

    def __init__(self, spec: CodeSpec) -> None:
        super().__init__(QuantizerConfig(depth=spec.depth, codebook_size=spec.codebook_size), spec.code_dim)
        self.codebooks.zero_()

    @torch.no_grad()
    def take(self, codebooks: Float[Tensor, "D V H"]) -> None:
        """Use these embeddings.

        The running variances, which scale confidence scores, are not part of a codec. They are estimated as if the
        codes were independent and equally frequent: what is left after a level is the energy of the deeper ones, and
        after the last one as much as that had itself.
        """
        self.codebooks.copy_(codebooks)
        centred = self.codebooks.double() - self.codebooks.double().mean(1, keepdim=True)
        energy = centred.square().mean((1, 2))
        deeper = energy.flip(0).cumsum(0).flip(0) - energy
        self.variances.copy_((deeper + energy[-1]).clamp(min=1e-12))

    def update(self, result: Quantization, generator: torch.Generator, reduce: Reduce = LOCAL) -> dict[str, Tensor]:
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("the codebooks of a codec are frozen; train a tokenizer of mels or waveforms instead")


class CodecTokenizer(nn.Module):
    """A codec of `transformers` behind the surface of `WaveformTokenizer`, always in evaluation mode.

    `valid` is over positions (True = not padding), and padding is at the end. None of the codecs masks it: DAC's
    convolutions are not causal, EnCodec and Mimi are, up to how they begin a short sound. Sounds are therefore encoded
    and decoded without their padding, those of one length together, so that padding changes nothing of the real part
    with any of them. Codes and samples at padding are 0.

    Args:
        config: which codec.
        codec: the network with its weights; a new one by default, whose weights and codebooks are to be loaded.

    Raises:
        ConfigError: `transformers` refuses the configuration.
        MissingExtraError: it is not installed.
    """

    component = "codec-tokenizer"
    config_class = CodecTokenizerConfig
    published_exactly = True  # codes have to stay those of the codec

    def __init__(self, config: CodecTokenizerConfig, codec: nn.Module | None = None) -> None:
        super().__init__()
        self.config, self.spec = config, config.spec
        self.sample_rate_hz, self.samples_per_position = config.sample_rate_hz, config.samples_per_position
        self.codec: Any = _new_codec(config) if codec is None else codec
        self.quantizer = CodecQuantizer(config.spec)
        self.eval().requires_grad_(False)
        if codec is not None:
            self.quantizer.take(level_codebooks(codec, config))

    def train(self, mode: bool = True) -> CodecTokenizer:
        """Stays in evaluation mode: DAC drops levels at random in training."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CodecTokenizer:
        """Mimi keeps computed codebooks outside its buffers, where they would be left behind on another device."""
        super()._apply(fn, recurse)
        for module in self.modules():
            if getattr(module, "_embed", None) is not None:
                module._embed = None  # type: ignore[assignment]
        return self

    def latents(
        self, samples: Float[Tensor, "B S"], valid_positions: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L H"]:
        """Encoder outputs before quantization; 0 at positions that are not valid.

        Raises:
            DataError: samples that are not whole positions, or more positions than the tokenizer takes.
        """
        length = self._positions(samples)
        latents = samples.new_zeros(len(samples), length, self.spec.code_dim, dtype=torch.float32)
        for rows, count in _lengths(valid_positions, len(samples), length, samples.device):
            latents[rows, :count] = self._latents(self._part(samples, rows, count)).transpose(1, 2).float()
        return latents

    def encode(
        self, samples: Float[Tensor, "B S"], valid_positions: Bool[Tensor, "B L"] | None = None
    ) -> Int[Tensor, "B L D"]:
        """The codec's own codes of the waveforms; 0 at positions that are not valid.

        Raises:
            DataError: see `latents`.
        """
        length = self._positions(samples)
        codes = torch.zeros(len(samples), length, self.spec.depth, dtype=torch.int64, device=samples.device)
        for rows, count in _lengths(valid_positions, len(samples), length, samples.device):
            codes[rows, :count] = self._codes(self._part(samples, rows, count)).transpose(1, 2)
        return codes

    def decode(
        self, codes: Int[Tensor, "B L D"], num_levels: int | None = None, valid: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B S"]:
        """The codec's own samples from the first `num_levels` levels of the codes (all by default), in [-1, 1].

        DAC gives a few samples less than whole positions where one of its ratios is odd; they are 0.

        Raises:
            ConfigError: `num_levels` below 1: a codec makes no sound of nothing.
        """
        num_levels = self.spec.depth if num_levels is None else min(num_levels, self.spec.depth)
        if num_levels < 1:
            raise ConfigError(f"num_levels={num_levels} must lie in 1..{self.spec.depth}")
        unit = self.samples_per_position
        samples = torch.zeros(len(codes), codes.shape[1] * unit, device=codes.device)
        for rows, count in _lengths(valid, len(codes), codes.shape[1], codes.device):
            sounds = self._samples(codes[rows, :count, :num_levels].transpose(1, 2))[:, : count * unit]
            samples[rows, : sounds.shape[1]] = sounds.float().clamp(-1, 1)
        return samples

    def _positions(self, samples: Tensor) -> int:
        unit, most = self.samples_per_position, self.config.max_positions * self.samples_per_position
        if not 0 < samples.shape[1] <= most or samples.shape[1] % unit:
            raise DataError(
                f"waveforms of {samples.shape[1]} samples given, the tokenizer takes a multiple of {unit} up to {most}"
            )
        return samples.shape[1] // unit

    def _part(self, samples: Tensor, rows: Tensor, count: int) -> Float[Tensor, "N 1 R"]:
        part = samples[rows, None, : count * self.samples_per_position]
        return part.to(next(self.codec.parameters()).dtype)

    def _latents(self, samples: Float[Tensor, "N 1 R"]) -> Float[Tensor, "N H L"]:
        encoded = self.codec.encoder(samples)
        return cast(Tensor, encoded.latents if self.config.family == "mimi" else encoded)

    def _codes(self, samples: Float[Tensor, "N 1 R"]) -> Int[Tensor, "N D L"]:
        family, config, depth = self.config.family, self.codec.config, self.spec.depth
        if family == "encodec":  # takes only some numbers of levels, by their bandwidths
            codes = self.codec.encode(samples, bandwidth=config.target_bandwidths[-1]).audio_codes[0]
        elif family == "dac":
            codes = self.codec.encode(samples, n_quantizers=depth).audio_codes
        else:
            num_levels = max(depth, config.num_semantic_quantizers)
            codes = self.codec.encode(samples, num_quantizers=num_levels).audio_codes
        return codes[:, :depth]

    def _samples(self, codes: Int[Tensor, "N D L"]) -> Float[Tensor, "N R"]:
        if self.config.family == "encodec":
            return self.codec.decode(codes[None], [None]).audio_values.flatten(1)
        return self.codec.decode(audio_codes=codes).audio_values.flatten(1)


def codec_settings(config: Any) -> dict[str, Any]:
    """A configuration of `transformers` as JSON values, without what is not of the model (such as where it lay)."""
    values = dict(config.to_dict())
    return {name: _plain(value) for name, value in sorted(values.items()) if name not in _NOT_OF_THE_MODEL}


@torch.no_grad()
def level_codebooks(codec: nn.Module, config: CodecTokenizerConfig) -> Float[Tensor, "D V H"]:
    """The embeddings of the levels in the space of the latents; see the table above.

    Args:
        codec: the network.
        config: which it is, and how many levels are needed.
    """
    quantizer: Any = codec.quantizer
    if config.family == "encodec":
        books = [layer.codebook.embed.double() for layer in quantizer.layers]
    elif config.family == "dac":
        books = [_projected(part.codebook.weight, part.out_proj) for part in quantizer.quantizers]
    else:
        parts = (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer)
        books = [_projected(layer.codebook.embed, part.output_proj) for part in parts for layer in part.layers]
    return torch.stack(books[: config.num_levels]).float()


def codec_class(family: str, suffix: Literal["Config", "Model"]) -> Any:
    """A class of `transformers`.

    Raises:
        MissingExtraError: it is not installed.
    """
    return getattr(import_extra("transformers", "pretrained"), FAMILIES[family] + suffix)


def _new_codec(config: CodecTokenizerConfig) -> nn.Module:
    config_class, model_class = codec_class(config.family, "Config"), codec_class(config.family, "Model")
    try:
        return cast(nn.Module, model_class(config_class.from_dict(dict(config.codec))))
    except Exception as error:  # what transformers raises for a wrong configuration has no class in common
        raise ConfigError(f"{config.family}: no usable configuration: {' '.join(str(error).split())}") from error


def _projected(codebook: Float[Tensor, "V C"], projection: nn.Module | None) -> Float[Tensor, "V H"]:
    """Entries through a convolution of width 1, or as they are without one; in float64."""
    if projection is None:
        return codebook.double()
    weight, bias = cast(Tensor, projection.weight), cast("Tensor | None", projection.bias)
    rows = codebook.double() @ weight.double().squeeze(-1).T
    return rows if bias is None else rows + bias.double()


def _lengths(
    valid: Bool[Tensor, "B L"] | None, rows: int, length: int, device: torch.device
) -> Iterator[tuple[Int[Tensor, " N"], int]]:
    """The rows of each number of valid positions above 0, and that number."""
    counts = torch.full((rows,), length, device=device) if valid is None else valid.sum(1)
    for count in counts.unique().tolist():
        if count:
            yield (counts == count).nonzero().squeeze(1), count


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
