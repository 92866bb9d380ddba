"""Other people's codecs: their own codes, sums and sounds behind the tokenizers' surface."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from codec_parts import FAMILIES, LEVELS, RATE, SIZE, UNITS, WIDTH, make_codec, save_codec
from resgen.checkpoints.artefacts import fingerprint, save_tokenizer
from resgen.checkpoints.speech import load_sound_tokenizer, open_codec
from resgen.config import config_from_dict, config_to_dict
from resgen.data.codes.cache import CachePlan
from resgen.data.codes.encoding import write_codes
from resgen.data.text import token_ids
from resgen.errors import CheckpointError, ConfigError, DataError
from resgen.tokenizers.codec import CodecTokenizer, CodecTokenizerConfig, codec_settings
from resgen.tokenizers.sound import SoundCodec
from speech_parts import make_vocoder, voice

every_family = pytest.mark.parametrize("family", FAMILIES)
COUNT = 25  # positions


def make_tokenizer(family: str, num_levels: int = LEVELS, **changes: Any) -> CodecTokenizer:
    codec = make_codec(family, **changes)
    config = CodecTokenizerConfig(
        family=family,  # type: ignore[arg-type]
        codec=codec_settings(codec.config),
        num_levels=num_levels,
        max_positions=60,
    )
    return CodecTokenizer(config, codec)


def make_sounds(family: str, count: int = COUNT) -> Tensor:
    samples = count * UNITS[family]
    noise = torch.randn(3, samples, generator=torch.Generator().manual_seed(5))
    return torch.stack([2 * voice(samples / RATE, 120.0 * (row + 1)) for row in range(3)]) + 0.1 * noise


def own_codes(tokenizer: CodecTokenizer, samples: Tensor, levels: int | None = None) -> Tensor:
    """What the codec gives when it is asked itself, `[B, D, L]`."""
    codec, family = tokenizer.codec, tokenizer.config.family
    if family == "encodec":
        bandwidth = {None: 6.4, 3: 4.8}[levels]
        return codec.encode(samples[:, None], bandwidth=bandwidth).audio_codes[0]
    if family == "dac":
        return codec.encode(samples[:, None], n_quantizers=levels).audio_codes
    return codec.encode(samples[:, None], num_quantizers=levels).audio_codes


def own_samples(tokenizer: CodecTokenizer, codes: Tensor) -> Tensor:
    codec, family = tokenizer.codec, tokenizer.config.family
    if family == "encodec":
        return codec.decode(codes[None], [None]).audio_values[:, 0]
    if family == "dac":
        return codec.decode(audio_codes=codes).audio_values
    return codec.decode(codes).audio_values[:, 0]


def own_latents(tokenizer: CodecTokenizer, codes: Tensor) -> Tensor:
    """The codec's quantized latents of codes `[B, D, L]`, as `[B, L, H]`."""
    quantizer, family = tokenizer.codec.quantizer, tokenizer.config.family
    if family == "encodec":
        return quantizer.decode(codes.transpose(0, 1)).transpose(1, 2)
    if family == "dac":
        return quantizer.from_codes(codes)[0].transpose(1, 2)
    return quantizer.decode(codes).transpose(1, 2)


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest) -> CodecTokenizer:
    return make_tokenizer(request.param)


@pytest.fixture(scope="module")
def sounds(tokenizer: CodecTokenizer) -> Tensor:
    return make_sounds(tokenizer.config.family)


def test_what_it_says_of_itself(tokenizer: CodecTokenizer) -> None:
    spec, unit = tokenizer.spec, UNITS[tokenizer.config.family]
    assert (spec.depth, spec.codebook_size, spec.code_dim, spec.shape) == (LEVELS, SIZE, WIDTH, (60,))
    assert (tokenizer.sample_rate_hz, tokenizer.samples_per_position) == (RATE, unit)
    assert tokenizer.quantizer.codebooks.shape == (LEVELS, SIZE, WIDTH) and tokenizer.quantizer.depth == LEVELS
    assert (tokenizer.config.quantizer.depth, tokenizer.config.quantizer.codebook_size) == (LEVELS, SIZE)
    assert not tokenizer.train().training and not tokenizer.codec.training, "DAC would drop levels"
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


def test_the_rates_of_published_codecs() -> None:
    from transformers import DacConfig, EncodecConfig, MimiConfig

    result = {}
    for family, made in (("encodec", EncodecConfig()), ("dac", DacConfig()), ("mimi", MimiConfig(frame_rate=12.5))):
        settings = codec_settings(made)
        config = CodecTokenizerConfig(family=family, codec=settings, num_levels=1, max_positions=1)  # type: ignore[arg-type]
        result[family] = (config.samples_per_position, config.most_levels, config.spec.code_dim)
    assert result == {"encodec": (320, 32, 128), "dac": (512, 9, 1024), "mimi": (1920, 32, 512)}


def test_codes_are_the_codec_s_own(tokenizer: CodecTokenizer, sounds: Tensor) -> None:
    codes = tokenizer.encode(sounds)
    assert codes.shape == (3, COUNT, LEVELS) and codes.dtype == torch.int64
    assert torch.equal(codes, own_codes(tokenizer, sounds).transpose(1, 2))
    for level in range(LEVELS):
        assert codes[..., level].unique().numel() > 2, "the test would show nothing"


def test_sums_of_levels_are_the_codec_s_latents(tokenizer: CodecTokenizer, sounds: Tensor) -> None:
    codes = tokenizer.encode(sounds)
    for levels in range(1, LEVELS + 1):
        expected = own_latents(tokenizer, codes[..., :levels].transpose(1, 2))
        result = tokenizer.quantizer.decode(codes, levels)
        assert float((result - expected).abs().max()) < 1e-6 * float(expected.abs().max()) * 4
        assert float(expected.std()) > 0.05


def test_decoding_is_the_codec_s_own(tokenizer: CodecTokenizer, sounds: Tensor) -> None:
    codes = tokenizer.encode(sounds)
    for levels in range(1, LEVELS + 1):
        expected = own_samples(tokenizer, codes[..., :levels].transpose(1, 2)).clamp(-1, 1)
        result = tokenizer.decode(codes, levels)
        assert result.shape == sounds.shape and result.dtype == torch.float32
        assert torch.equal(result[:, : expected.shape[1]], expected[:, : result.shape[1]])
        short = result.shape[1] - expected.shape[1]
        assert short <= (4 if tokenizer.config.family == "dac" else 0), "an odd ratio of DAC's loses samples"
        assert not result[:, expected.shape[1] :].any() and result.std() > 1e-3
    assert torch.equal(tokenizer.decode(codes), tokenizer.decode(codes, LEVELS))
    with pytest.raises(ConfigError, match=r"num_levels=0 must lie in 1..4"):
        tokenizer.decode(codes, 0)


@every_family
def test_fewer_levels_are_the_codec_s_own(family: str) -> None:
    whole, part = make_tokenizer(family), make_tokenizer(family, num_levels=3)
    sounds = make_sounds(family)
    codes = part.encode(sounds)
    assert part.spec.depth == 3 and torch.equal(codes, own_codes(part, sounds, 3).transpose(1, 2))
    assert torch.equal(codes, whole.encode(sounds)[..., :3])
    assert torch.equal(part.quantizer.codebooks, whole.quantizer.codebooks[:3])
    assert torch.equal(part.decode(codes), whole.decode(whole.encode(sounds), 3))


def test_latents_are_what_the_codec_quantizes(tokenizer: CodecTokenizer, sounds: Tensor) -> None:
    latents = tokenizer.latents(sounds)
    assert latents.shape == (3, COUNT, WIDTH)
    quantizer, given = tokenizer.codec.quantizer, latents.transpose(1, 2)
    if tokenizer.config.family == "dac":
        codes = quantizer(given)[1].transpose(1, 2)
    else:
        codes = quantizer.encode(given).permute(1, 2, 0)
    assert torch.equal(codes, tokenizer.encode(sounds))
    if tokenizer.config.family == "encodec":
        assert torch.equal(tokenizer.quantizer.encode(latents), codes), "its rule is the nearest embedding"


@pytest.mark.parametrize("junk", [0.0, 0.5, float("nan")])
def test_padding_changes_nothing(tokenizer: CodecTokenizer, sounds: Tensor, junk: float) -> None:
    unit = tokenizer.samples_per_position
    counts = [COUNT, 4, 0]  # the codecs' convolutions reach further than 4 positions
    valid = torch.arange(COUNT) < torch.tensor(counts)[:, None]
    padded = sounds.masked_fill(~valid.repeat_interleave(unit, dim=1), junk)
    codes, latents = tokenizer.encode(padded, valid), tokenizer.latents(padded, valid)
    samples = tokenizer.decode(codes.masked_fill(~valid[..., None], 1), None, valid)
    for row, count in enumerate(counts):
        assert not codes[row, count:].any() and not latents[row, count:].any()
        assert not samples[row, count * unit :].any()
        if count:
            alone = sounds[row : row + 1, : count * unit]
            assert torch.equal(tokenizer.encode(alone)[0], codes[row, :count])
            torch.testing.assert_close(tokenizer.latents(alone)[0], latents[row, :count])
            torch.testing.assert_close(
                tokenizer.decode(codes[row : row + 1, :count])[0], samples[row, : count * unit], atol=1e-5, rtol=1e-4
            )


def test_what_the_codecs_themselves_make_of_padding(tokenizer: CodecTokenizer, sounds: Tensor) -> None:
    """Why sounds are coded without it: silence after the end reaches DAC's last codes, and not those of the others."""
    count, unit = 15, tokenizer.samples_per_position
    padded = sounds.clone()
    padded[:, count * unit :] = 0
    together = own_codes(tokenizer, padded)[..., :count]
    alone = own_codes(tokenizer, sounds[:, : count * unit])
    assert torch.equal(together, alone) == (tokenizer.config.family != "dac")


def test_lengths_that_do_not_fit(tokenizer: CodecTokenizer) -> None:
    unit = tokenizer.samples_per_position
    for length in (0, unit + 1, 61 * unit):
        with pytest.raises(DataError, match=f"of {length} samples given, the tokenizer takes a multiple of {unit}"):
            tokenizer.encode(torch.zeros(1, length))


def test_behind_the_sound_codec(tokenizer: CodecTokenizer, sounds: Tensor) -> None:
    codec, unit = SoundCodec(tokenizer), tokenizer.samples_per_position
    assert not codec.needs_vocoder and codec.spec == tokenizer.spec
    lengths = torch.tensor([COUNT * unit, 7 * unit - 3, 1])
    batch = sounds.masked_fill(torch.arange(sounds.shape[1]) >= lengths[:, None], 0.0)
    codes, valid = codec.encode(batch, lengths)
    assert valid.sum(1).tolist() == [COUNT, 7, 1]
    assert torch.equal(codes, tokenizer.encode(batch, valid))
    torch.testing.assert_close(codec.decode(codes, valid, 2), tokenizer.decode(codes, 2, valid), atol=1e-6, rtol=1e-4)
    with pytest.raises(ConfigError, match="takes no vocoder"):
        SoundCodec(tokenizer, make_vocoder())


def test_codebooks_are_frozen(tokenizer: CodecTokenizer) -> None:
    result = tokenizer.quantizer.quantize(torch.randn(5, WIDTH))
    with pytest.raises(ConfigError, match="frozen"):
        tokenizer.quantizer.update(result, torch.Generator())
    variances = tokenizer.quantizer.variances
    assert (variances > 0).all() and (variances.diff() < 0).all(), "deeper levels leave less"


def test_moved_and_converted(tokenizer: CodecTokenizer, sounds: Tensor) -> None:
    """Mimi's computed codebooks are not left behind, neither with a type nor on a device."""
    moved, expected = copy.deepcopy(tokenizer), tokenizer.encode(sounds)
    assert torch.equal(moved.encode(sounds), expected)
    moved.double()
    assert torch.equal(moved.encode(sounds), expected) and moved.decode(expected).dtype == torch.float32
    assert moved.quantizer.codebooks.dtype == torch.float32
    moved.to("meta")
    assert all(getattr(module, "_embed", None) is None for module in moved.modules())


@every_family
def test_saved_and_loaded(tmp_path: Path, family: str) -> None:
    source = save_codec(tmp_path / "source", family)
    codec = open_codec(source, num_levels=3)
    sounds = make_sounds(family)
    codes = codec.encode(sounds)
    assert torch.equal(codes, make_tokenizer(family, num_levels=3).encode(sounds)), "in float32, exactly"
    assert codec.config.max_positions == 30 * RATE // UNITS[family]
    save_tokenizer(tmp_path / "ours", codec)
    loaded, folder = load_sound_tokenizer(tmp_path / "ours")
    assert isinstance(loaded, CodecTokenizer) and folder.components["tokenizer"].type == "codec-tokenizer"
    assert loaded.config == codec.config and fingerprint(loaded) == fingerprint(codec)
    assert torch.equal(loaded.encode(sounds), codes) and torch.equal(loaded.decode(codes), codec.decode(codes))
    assert torch.equal(loaded.quantizer.variances, codec.quantizer.variances)
    assert str(tmp_path) not in (tmp_path / "ours" / "config.json").read_text(), "no trace of where it lay"
    assert config_from_dict(CodecTokenizerConfig, config_to_dict(codec.config)) == codec.config
    directly, folder = load_sound_tokenizer(source)
    assert directly.spec.depth == LEVELS and folder.extra["history"]["tokenizer"]["family"] == family
    assert torch.equal(directly.encode(sounds)[..., :3], codes)


def test_codes_through_the_cache(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("mimi")
    codes = tokenizer.encode(make_sounds("mimi"))
    tokens = token_ids(b"abc")
    durations = torch.tensor([COUNT, *[0] * (len(tokens) - 1)])
    made_from = {"tokenizer": fingerprint(tokenizer)}
    columns = {"tokens": "row", "durations": "row"}
    plan = CachePlan(
        spec=tokenizer.spec, num_samples=3, columns=columns, made_from=made_from, ragged=True, shard_samples=3
    )
    cache = write_codes(tmp_path / "codes", plan, list(codes), {"tokens": [tokens] * 3, "durations": [durations] * 3})
    assert cache.spec == tokenizer.spec and cache.plan.made_from == made_from
    for row in range(3):
        kept = cache.sample(row)["codes"]
        assert torch.equal(kept, codes[row])
        assert torch.equal(tokenizer.decode(kept[None]), tokenizer.decode(codes[row : row + 1]))


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_folders_that_are_no_codec(tmp_path: Path) -> None:
    good = save_codec(tmp_path / "good", "dac")

    def refused(message: str, **changes: Any) -> None:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        for load in (open_codec, load_sound_tokenizer):
            with pytest.raises(CheckpointError, match=message) as caught:
                load(edited(folder, **changes))
            assert "\n" not in str(caught.value)

    refused("unknown codec 'wav2vec2'; allowed: encodec, dac, mimi", model_type="wav2vec2")
    refused("unknown codec", model_type=["dac"])
    refused("n_codebooks", n_codebooks="many")
    refused("lacks 5 tensors of the codec, 'quantizer.quantizers.4", n_codebooks=5)
    refused("cannot be read as a codec", codebook_dim=5)
    refused("codebook_size", codebook_size=0)
    good.joinpath("model.safetensors").write_bytes(b"nonsense")
    refused("cannot be read as a codec")
    good.joinpath("model.safetensors").rename(good / "pytorch_model.bin")
    refused(r"holds no \*\.safetensors file")
    with pytest.raises(CheckpointError, match="config.json' is missing"):
        open_codec(tmp_path)


def test_codecs_whose_codes_do_not_say_all(tmp_path: Path) -> None:
    for changes in ({"normalize": True}, {"chunk_length_s": 1.0, "overlap": 0.01}, {"audio_channels": 2}):
        edited(save_codec(tmp_path / "encodec", "encodec"), **changes)
        with pytest.raises(CheckpointError, match=f"encodec: {next(iter(changes))}=.* must be"):
            open_codec(tmp_path / "encodec")


def test_levels_that_it_does_not_have(tmp_path: Path) -> None:
    folder = save_codec(tmp_path / "mimi", "mimi")
    for levels in (0, 5):
        with pytest.raises(ConfigError, match=f"num_levels={levels} must lie in 1..4"):
            open_codec(folder, num_levels=levels)


def test_a_codec_that_was_not_trained(tmp_path: Path) -> None:
    from transformers import EncodecModel

    EncodecModel(make_codec("encodec").config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="a codebook is all zero"):
        open_codec(tmp_path)


def test_configurations_that_cannot_be() -> None:
    good = {family: codec_settings(make_codec(family).config) for family in FAMILIES}
    for family, change, message in (
        ("dac", {"downsampling_ratios": []}, "downsampling_ratios"),
        ("encodec", {"target_bandwidths": []}, "target_bandwidths"),
        ("encodec", {"codebook_size": 1}, "codebook_size=1"),
        ("mimi", {"decoder_config": None}, "both halves"),
        ("mimi", {"_frame_rate": 400}, "frame_rate=400"),
        ("mimi", {"sampling_rate": None}, "sampling_rate=None"),
    ):
        with pytest.raises(ConfigError, match=message):
            CodecTokenizerConfig(family=family, codec=good[family] | change, num_levels=1, max_positions=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no usable configuration"):
        codec = good["encodec"] | {"norm_type": "none"}
        CodecTokenizer(CodecTokenizerConfig(family="encodec", codec=codec, num_levels=1, max_positions=1))
