"""Sounds to codes and back through either tokenizer: lengths, padding, vocoder or Griffin-Lim."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from resgen.errors import ConfigError
from resgen.tokenizers.sound import SoundCodec, SoundTokenizer
from speech_parts import (
    DEPTH,
    HOP,
    MEL,
    OTHER_MEL,
    RATE,
    SIZE,
    STRIDE,
    UNIT,
    make_tokenizer,
    make_vocoder,
    make_waveform_tokenizer,
    voice,
)

LENGTHS = torch.tensor([2000, 850, 1])


class Loud(nn.Module):
    """A vocoder without mels of its own, far out of range."""

    def forward(self, log_mels: Tensor, valid: Tensor | None = None) -> Tensor:
        return 3 * torch.ones(len(log_mels), log_mels.shape[2] * HOP)


def make_codec(name: str) -> SoundCodec:
    if name == "waveform":
        return SoundCodec(make_waveform_tokenizer())
    return SoundCodec(make_tokenizer(), make_vocoder() if name == "vocoder" else None)


@pytest.fixture(scope="module", params=["vocoder", "griffin-lim", "waveform"])
def codec(request: pytest.FixtureRequest) -> SoundCodec:
    return make_codec(request.param)


@pytest.fixture(scope="module")
def batch() -> Tensor:
    samples = torch.zeros(3, 2000)
    for row, length in enumerate(LENGTHS.tolist()):
        samples[row, :length] = voice(0.25, 100.0 + 80 * row)[:length]
    return samples


def test_what_it_says_of_itself(codec: SoundCodec) -> None:
    assert (codec.sample_rate_hz, codec.samples_per_position) == (RATE, UNIT)
    assert (codec.spec.depth, codec.spec.codebook_size, codec.spec.shape) == (DEPTH, SIZE, (80,))


def test_only_mels_without_a_vocoder_need_one() -> None:
    assert [make_codec(name).needs_vocoder for name in ("vocoder", "griffin-lim", "waveform")] == [False, True, False]


def test_codes_do_not_depend_on_padding(codec: SoundCodec, batch: Tensor) -> None:
    codes, valid = codec.encode(batch, LENGTHS)
    assert codes.shape == (3, 5, DEPTH) and valid.sum(1).tolist() == [5, 3, 1]
    assert not codes[~valid].any() and codes[valid].any()
    for row, count in ((1, 3), (2, 1)):
        alone, _ = codec.encode(batch[row : row + 1, : count * UNIT], LENGTHS[row : row + 1])
        assert torch.equal(alone[0], codes[row, :count])


def test_decoded_sound(codec: SoundCodec, batch: Tensor) -> None:
    codes, valid = codec.encode(batch, LENGTHS)
    sound = codec.decode(codes, valid)
    assert sound.shape == batch.shape and sound.dtype == torch.float32 and sound.abs().max() <= 1
    real = valid.repeat_interleave(UNIT, dim=1)
    assert not sound[~real].any() and sound[real].any()
    assert torch.equal(codec.decode(codes, valid), sound), "nothing is drawn from global randomness"
    assert not torch.equal(codec.decode(codes, valid, 1), sound), "fewer levels sound different"
    assert torch.equal(codec.decode(codes, valid, DEPTH), sound)
    assert codec.decode(codes).shape == sound.shape


@pytest.mark.parametrize(("name", "atol"), [("vocoder", 1e-5), ("waveform", 1e-5), ("griffin-lim", 1e-3)])
def test_decoded_sound_depends_neither_on_its_batch_nor_on_padding(name: str, atol: float, batch: Tensor) -> None:
    """Up to rounding, which Griffin-Lim's iterations amplify."""
    codec = make_codec(name)
    codes, valid = codec.encode(batch, LENGTHS)
    together = codec.decode(codes, valid)
    for row, count in enumerate(valid.sum(1).tolist()):
        alone = codec.decode(codes[row : row + 1, :count], valid[row : row + 1, :count])
        torch.testing.assert_close(together[row : row + 1, : count * UNIT], alone, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("tokenizer", [make_tokenizer(), make_waveform_tokenizer()], ids=["mel", "waveform"])
def test_so_many_levels_at_each_position(tokenizer: SoundTokenizer) -> None:
    codes = torch.randint(SIZE, (2, 6, DEPTH), generator=torch.Generator().manual_seed(0))
    visible = torch.tensor([[0, 1, 2, 3, 3, 3], [3, 3, 0, 0, 1, 2]])
    known = torch.arange(DEPTH) < visible[..., None]
    decoded = tokenizer.decode(codes, visible=visible)
    other = torch.where(known, codes, (codes + 1) % SIZE)
    torch.testing.assert_close(tokenizer.decode(other, visible=visible), decoded)
    for number in range(DEPTH + 1):
        alike = tokenizer.decode(codes, visible=torch.full((2, 6), number))
        torch.testing.assert_close(alike, tokenizer.decode(codes, number))
    assert not torch.allclose(decoded, tokenizer.decode(codes), atol=1e-3)


def test_samples_stay_in_range() -> None:
    codec = SoundCodec(make_tokenizer(), Loud())
    sound = codec.decode(torch.zeros(1, 2, DEPTH, dtype=torch.int64))
    assert sound.shape == (1, 2 * UNIT) and (sound == 1).all()


def test_vocoders_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="takes no vocoder"):
        SoundCodec(make_waveform_tokenizer(), make_vocoder())
    with pytest.raises(ConfigError, match="max_hz=3000"):
        SoundCodec(make_tokenizer(), make_vocoder(mel=OTHER_MEL))
    quieter = make_vocoder(mel=replace(MEL, floor=1e-4))
    assert SoundCodec(make_tokenizer(), quieter).vocoder is quieter, "the floor only changes silence"


def test_frames_per_position_are_the_tokenizer_s() -> None:
    assert make_tokenizer().frames_per_position == STRIDE == UNIT // HOP
