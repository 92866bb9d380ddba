"""The text model: padding, alignment, durations, and a pretrained ByT5 in front."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from resgen.config import config_from_dict, config_to_dict
from resgen.data.text import pad_texts, token_ids
from resgen.errors import CheckpointError, ConfigError, DataError
from resgen.models.text import PRESETS, TextModel, TextModelConfig
from resgen.ops.alignment import expand

CONFIG = TextModelConfig(
    width=16, num_layers=2, num_heads=2, mlp_width=32, num_bands=6, prenet_layers=2, kernel_size=3, max_tokens=40
)


def make(config: TextModelConfig = CONFIG) -> TextModel:
    torch.manual_seed(0)
    model = TextModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def texts(*lines: str) -> tuple[Tensor, Tensor]:
    return pad_texts([token_ids(line.encode()) for line in lines])


@pytest.fixture(scope="module")
def byt5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(vocab_size=384, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    folder = tmp_path_factory.mktemp("byt5")
    T5EncoderModel(config).save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bytes", "byt5"])
def test_padding_changes_nothing(kind: str, byt5: Path) -> None:
    model = make(CONFIG if kind == "bytes" else replace(CONFIG, byt5_folder=str(byt5)))
    alone, together = texts("one two"), texts("one two", "a much longer text, see")
    hidden = model(*together)
    torch.testing.assert_close(hidden[:1, :9], model(*alone), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model.log_durations(hidden, together[1])[:1, :9],
        model.log_durations(model(*alone), alone[1]),
        atol=1e-5,
        rtol=1e-5,
    )
    assert model.durations(hidden, together[1])[0, 9:].tolist() == [0] * 16


@torch.no_grad()
def test_hidden_states_know_order_and_context() -> None:
    model = make()
    hidden = model(*texts("abab", "abba"))
    assert not torch.allclose(hidden[0, 1], hidden[0, 3], atol=1e-3)  # two equal letters at two places
    assert not torch.allclose(hidden[0, 1], hidden[1, 1], atol=1e-4)  # what comes later matters


@torch.no_grad()
def test_the_blocks_are_open_from_the_start() -> None:
    torch.manual_seed(0)
    model = TextModel(CONFIG)
    for block in model.transformer.blocks:
        x = torch.randn(1, 5, 16)
        out = block(x, torch.zeros(1, 8, 16))
        attended = x + block.attention(F.layer_norm(x, (16,), eps=1e-6))
        h = F.layer_norm(attended, (16,), eps=1e-6)
        torch.testing.assert_close(out, attended + block.down(F.gelu(block.up(h), approximate="tanh")))


@torch.no_grad()
def test_alignment_finds_the_durations_that_made_the_mel() -> None:
    model = make(replace(CONFIG, centre_mels=False))
    tokens, valid = texts("one two", "ten")
    durations = torch.tensor([[3, 1, 2, 5, 1, 1, 4, 2, 2], [2, 1, 6, 3, 2, 0, 0, 0, 0]])
    mels = expand(model.to_mel(model(tokens, valid)), durations, 24).transpose(1, 2) * 2.5 - 5.0
    frames = durations.sum(dim=1)
    mels[1, :, frames[1] :] = 100.0
    assert torch.equal(model.align(tokens, valid, mels, frames), durations)


@torch.no_grad()
def test_centred_mels_do_not_depend_on_the_colour_of_a_recording() -> None:
    model = make()
    tokens, valid = texts("one two", "ten")
    frames = torch.tensor([20, 11])
    mels = torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(0)) - 5
    target = model.normalise(mels, frames)
    assert target[1, :, :11].mean(dim=1).abs().max() < 1e-5 and not target[1, :, 11:].any()
    coloured = mels + torch.tensor([2.0, -1.0, 0.5, 0.0, 1.0, 3.0])[:, None]
    torch.testing.assert_close(model.normalise(coloured, frames), target, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.align(tokens, valid, coloured, frames), model.align(tokens, valid, mels, frames))
    plain = make(replace(CONFIG, centre_mels=False)).normalise(mels, frames)
    torch.testing.assert_close(plain[0], (mels[0] + 5) / 2.5)
    assert not plain[1, :, 11:].any()


@torch.no_grad()
def test_a_prior_moves_the_alignment() -> None:
    model = make()
    tokens, valid = texts("ab")
    target = model.normalise(torch.randn(1, 6, 9), torch.tensor([9]))
    prior = torch.zeros(1, 4, 9)
    prior[0, 2, 1:8] = 1e4
    durations = model.match(model(tokens, valid), valid, target, torch.tensor([9]), prior)
    assert durations.tolist() == [[1, 1, 6, 1]]


@torch.no_grad()
def test_expected_durations_move_the_alignment_at_the_pace_of_the_utterance() -> None:
    model = make(replace(CONFIG, timing=1e4))
    tokens, valid = texts("abc", "ab")
    frames = torch.tensor([25, 8])
    mels = torch.randn(2, 6, 25)
    # Where the scores are of no weight, all tokens take what is predicted, stretched to the utterance: here as much.
    torch.nn.init.zeros_(model.duration.weight)
    assert model.align(tokens, valid, mels, frames).tolist() == [[5] * 5, [2] * 4 + [0]]
    with pytest.raises(ConfigError, match=r"timing=-1.0 must be at least 0"):
        replace(CONFIG, timing=-1.0)


def test_gradients_of_durations_stop_at_the_hidden_states() -> None:
    model = make().train()
    tokens, valid = texts("one")
    model.log_durations(model(tokens, valid), valid).sum().backward()
    assert model.duration.weight.grad is not None and model.duration_layers[0].conv.conv.weight.grad is not None
    assert model.embedding is not None and model.embedding.weight.grad is None and model.mel.weight.grad is None


@torch.no_grad()
@pytest.mark.parametrize("speed", [0.7, 1.0, 1.6])
def test_durations_keep_the_length(speed: float) -> None:
    model = make()
    torch.nn.init.constant_(model.duration.bias, 1.5)
    tokens, valid = texts("one two three", "ten")
    hidden = model(tokens, valid)
    exact = model.log_durations(hidden, valid).double().exp() * valid / speed
    exact = exact.clamp(max=1e6)
    result = model.durations(hidden, valid, speed=speed)
    assert result.dtype == torch.int64 and (result[valid] >= 1).all() and not result[~valid].any()
    if bool((exact[valid] >= 1).all()):
        assert ((result.sum(dim=1) - exact.sum(dim=1)).abs() <= 0.5).all()
        assert (result - exact).abs().max() <= 1
    each = model.durations(hidden, valid, speed=torch.tensor([speed, 2.0]))
    assert torch.equal(each[0], result[0]) and torch.equal(each[1], model.durations(hidden, valid, speed=2.0)[1])


@torch.no_grad()
def test_durations_of_given_logarithms(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    tokens, valid = texts("abc", "a")
    logs = torch.tensor([[0.1, 2.3, 2.3, 0.2, 3.5], [1.4, 1.4, 1.4, 9.0, 9.0]]).log()
    monkeypatch.setattr(model, "log_durations", lambda hidden, valid: logs)
    # Ends 0.1, 2.4, 4.7, 4.9, 8.4: rounded 0, 2, 5, 5, 8; the first and fourth token lack a frame and get one.
    assert model.durations(torch.zeros(2, 5, 16), valid).tolist() == [[1, 1, 3, 1, 2], [1, 2, 1, 0, 0]]


def test_refused_settings_and_texts() -> None:
    for change, message in (
        ({"width": 18, "num_heads": 2}, "width=18 must be a multiple of 2 num_heads=4"),
        ({"num_bands": 0}, "num_bands=0"),
        ({"kernel_size": 4}, "kernel_size=4 must be odd"),
        ({"duration_kernel_size": 2}, "duration_kernel_size=2"),
        ({"prenet_layers": -1}, "prenet_layers=-1"),
        ({"max_tokens": 2}, "max_tokens=2"),
        ({"mel_scale": 0.0}, "mel_scale=0.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(CONFIG, **change)
    model = make()
    with pytest.raises(DataError, match="42 tokens is longer than max_tokens=40"):
        model(*texts("a" * 40))
    with pytest.raises(ConfigError, match=r"speed=0\.0"):
        model.durations(torch.zeros(1, 3, 16), torch.ones(1, 3, dtype=torch.bool), speed=0.0)


def test_presets_are_configurations() -> None:
    for config in PRESETS.values():
        assert config_from_dict(TextModelConfig, config_to_dict(config)) == config
        with torch.device("meta"):
            assert TextModel(config).to_mel(torch.zeros(1, 2, config.width)).shape == (1, 2, 80)


def test_byt5_is_frozen_and_in_no_checkpoint(byt5: Path) -> None:
    model = make(replace(CONFIG, byt5_folder=str(byt5))).train()
    encoder = model._pretrained[0]
    names = set(model.state_dict())
    assert "projection.weight" in names and not any("encoder" in name or "embedding" in name for name in names)
    assert not encoder.training and not any(parameter.requires_grad for parameter in encoder.parameters())
    model(*texts("one")).sum().backward()
    assert model.projection is not None and model.projection.weight.grad is not None
    model.to(torch.float64)
    assert next(encoder.parameters()).dtype == torch.float64  # the encoder moves with the model


@torch.no_grad()
def test_byt5_hidden_states_are_used(byt5: Path) -> None:
    from transformers import T5EncoderModel

    model = make(replace(CONFIG, byt5_folder=str(byt5), prenet_layers=0))
    tokens, valid = texts("one")
    reference = T5EncoderModel.from_pretrained(byt5, local_files_only=True).eval()(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(model._embed(tokens, valid), model.projection(reference))


def test_byt5_folders_that_do_not_do(tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    with pytest.raises(CheckpointError, match="config.json and .*safetensors are needed"):
        TextModel(replace(CONFIG, byt5_folder=str(tmp_path)))
    small = T5Config(vocab_size=100, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(small).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="100 tokens"):
        TextModel(replace(CONFIG, byt5_folder=str(tmp_path / "other")))
    (tmp_path / "other" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as ByT5"):
        TextModel(replace(CONFIG, byt5_folder=str(tmp_path / "other")))
