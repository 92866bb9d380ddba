"""Waveforms to codes and back, whatever the tokenizer works on."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from resgen.errors import ConfigError
from resgen.ops.mel import MelConfig, griffin_lim, log_mel_before_silence
from resgen.ops.random import generator as make_generator
from resgen.tokenizers.codec import CodecTokenizer
from resgen.tokenizers.mel import MelTokenizer
from resgen.tokenizers.waveform import WaveformTokenizer

SoundTokenizer = MelTokenizer | WaveformTokenizer | CodecTokenizer


class SoundCodec:
    """A tokenizer of mels with its vocoder, or a tokenizer of waveforms (ours or somebody else's codec).

    Args:
        tokenizer: tokenizer of either kind.
        vocoder: log-mels `[B, F, T]` and `valid` to samples `[B, T * hop_size]`, for a mel tokenizer; without one the
            phases are found by Griffin-Lim, which is slower and rougher.

    Attributes:
        spec: the shape of the codes.
        sample_rate_hz: rate of the waveforms.
        samples_per_position: samples that one position stands for.

    Raises:
        ConfigError: a vocoder for a waveform tokenizer, which needs none, or one of other mels than the tokenizer's.
    """

    def __init__(self, tokenizer: SoundTokenizer, vocoder: nn.Module | None = None) -> None:
        if vocoder is not None:
            if not isinstance(tokenizer, MelTokenizer):
                raise ConfigError("a waveform tokenizer takes no vocoder: it decodes to samples itself")
            check_mels(tokenizer.config.mel, getattr(vocoder, "mel", None))
        self.tokenizer, self.vocoder = tokenizer, vocoder
        self.spec, self.sample_rate_hz = tokenizer.spec, tokenizer.sample_rate_hz
        self.samples_per_position = tokenizer.samples_per_position

    @property
    def needs_vocoder(self) -> bool:
        """Whether phases are found by Griffin-Lim, for lack of a vocoder."""
        return self.vocoder is None and isinstance(self.tokenizer, MelTokenizer)

    @torch.inference_mode()
    def encode(
        self, samples: Float[Tensor, "B S"], lengths: Int[Tensor, " B"]
    ) -> tuple[Int[Tensor, "B L D"], Bool[Tensor, "B L"]]:
        """Codes, and which positions hold any of a sound.

        Args:
            samples: S a multiple of `samples_per_position`, zero beyond the end of a sound.
            lengths: samples of each sound.
        """
        positions = torch.arange(samples.shape[1] // self.samples_per_position, device=samples.device)
        valid = positions * self.samples_per_position < lengths[:, None]
        if not isinstance(self.tokenizer, MelTokenizer):
            return self.tokenizer.encode(samples, valid), valid
        frames = valid.repeat_interleave(self.tokenizer.frames_per_position, dim=1)
        mels = log_mel_before_silence(samples, self.tokenizer.config.mel)
        return self.tokenizer.encode(mels, frames), valid

    @torch.inference_mode()
    def decode(
        self, codes: Int[Tensor, "B L D"], valid: Bool[Tensor, "B L"] | None = None, num_levels: int | None = None
    ) -> Float[Tensor, "B S"]:
        """Samples in [-1, 1] from the first `num_levels` levels (all by default); 0 where a position is not valid."""
        if not isinstance(self.tokenizer, MelTokenizer):
            return self.tokenizer.decode(codes, num_levels, valid).float().clamp(-1, 1)
        mels = self.tokenizer.decode(codes, num_levels, valid)
        frames = None if valid is None else valid.repeat_interleave(self.tokenizer.frames_per_position, dim=1)
        if self.vocoder is not None:
            return self.vocoder(mels, frames).float().clamp(-1, 1)
        config = self.tokenizer.config.mel
        counts = [mels.shape[2]] * len(mels) if frames is None else frames.sum(1).tolist()
        samples = mels.new_zeros(len(mels), mels.shape[2] * config.hop_size, dtype=torch.float32)
        for row, count in enumerate(counts):  # one by one: phases depend neither on the batch nor on padding
            if count:
                sound = griffin_lim(mels[row : row + 1, :, :count], config, generator=make_generator("griffin-lim"))
                samples[row, : count * config.hop_size] = sound[0]
        return samples.clamp(-1, 1)


def check_mels(tokenizer_mel: MelConfig, vocoder_mel: MelConfig | None) -> None:
    """Reject a vocoder of other mels than the tokenizer's; the floor is not compared, it only changes silence.

    Args:
        tokenizer_mel: what the tokenizer makes.
        vocoder_mel: what the vocoder takes; None if it does not say.

    Raises:
        ConfigError: they differ.
    """
    if vocoder_mel is not None and replace(vocoder_mel, floor=tokenizer_mel.floor) != tokenizer_mel:
        raise ConfigError(
            f"the vocoder takes {vocoder_mel}, but the tokenizer makes {tokenizer_mel}; use a vocoder of the same mels"
        )
