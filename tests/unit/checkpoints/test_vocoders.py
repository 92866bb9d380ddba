"""Vocoders trained elsewhere, against forward passes written here from the names in their files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from resgen.checkpoints.vocoders import load_external_vocoder
from resgen.errors import CheckpointError, ConfigError
from resgen.ops.mel import MelConfig
from resgen.tokenizers.vocoder import Vocoder

MEL = MelConfig(sample_rate_hz=8000, fft_size=64, window_size=64, hop_size=16, num_bands=8, max_hz=4000.0)
WIDTH, LAYERS = 6, 2


def random(*shape: int, seed: list[int]) -> torch.Tensor:
    seed[0] += 1
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed[0]))


# Vocos.


def vocos_config(**features) -> dict:
    return {
        "feature_extractor": {
            "class_path": "vocos.feature_extractors.MelSpectrogramFeatures",
            "init_args": {"sample_rate": 8000, "n_fft": 64, "hop_length": 16, "n_mels": 8, "padding": "same"}
            | {"f_min": 0, "f_max": 4000, "norm": "slaney", "mel_scale": "slaney"}
            | features,
        },
        "backbone": {
            "class_path": "vocos.models.VocosBackbone",
            "init_args": {"input_channels": 8, "dim": WIDTH, "intermediate_dim": 2 * WIDTH, "num_layers": LAYERS},
        },
        "head": {
            "class_path": "vocos.heads.ISTFTHead",
            "init_args": {"dim": WIDTH, "n_fft": 64, "hop_length": 16, "padding": "same"},
        },
    }


def vocos_tensors() -> dict[str, torch.Tensor]:
    seed = [0]
    tensors = {
        "feature_extractor.mel_spec.spectrogram.window": torch.ones(64),
        "head.istft.window": torch.hann_window(64),
        "backbone.embed.weight": random(WIDTH, 8, 7, seed=seed),
        "backbone.embed.bias": random(WIDTH, seed=seed),
        "head.out.weight": random(66, WIDTH, seed=seed),
        "head.out.bias": random(66, seed=seed),
    }
    for norm in ("backbone.norm", "backbone.final_layer_norm"):
        tensors |= {f"{norm}.weight": random(WIDTH, seed=seed), f"{norm}.bias": random(WIDTH, seed=seed)}
    for layer in range(LAYERS):
        for name, shape in {
            "gamma": (WIDTH,),
            "dwconv.weight": (WIDTH, 1, 7),
            "dwconv.bias": (WIDTH,),
            "norm.weight": (WIDTH,),
            "norm.bias": (WIDTH,),
            "pwconv1.weight": (2 * WIDTH, WIDTH),
            "pwconv1.bias": (2 * WIDTH,),
            "pwconv2.weight": (WIDTH, 2 * WIDTH),
            "pwconv2.bias": (WIDTH,),
        }.items():
            tensors[f"backbone.convnext.{layer}.{name}"] = random(*shape, seed=seed)
    return tensors


def vocos_reference(t: dict[str, torch.Tensor], mels: torch.Tensor) -> torch.Tensor:
    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (WIDTH,), t[f"{name}.weight"], t[f"{name}.bias"], 1e-6)

    x = F.conv1d(mels, t["backbone.embed.weight"], t["backbone.embed.bias"], padding=3)
    x = norm(x.mT, "backbone.norm").mT
    for layer in range(LAYERS):
        name = f"backbone.convnext.{layer}"
        h = F.conv1d(x, t[f"{name}.dwconv.weight"], t[f"{name}.dwconv.bias"], padding=3, groups=WIDTH).mT
        h = F.gelu(F.linear(norm(h, f"{name}.norm"), t[f"{name}.pwconv1.weight"], t[f"{name}.pwconv1.bias"]))
        x = x + (t[f"{name}.gamma"] * F.linear(h, t[f"{name}.pwconv2.weight"], t[f"{name}.pwconv2.bias"])).mT
    x = F.linear(norm(x.mT, "backbone.final_layer_norm"), t["head.out.weight"], t["head.out.bias"]).mT
    magnitude, phase = x.chunk(2, dim=1)
    frames = torch.fft.irfft(magnitude.exp() * torch.exp(1j * phase), 64, dim=1)[0].T
    window = torch.hann_window(64)
    total, weight = torch.zeros(48 + 16 * len(frames)), torch.zeros(48 + 16 * len(frames))
    for index, frame in enumerate(frames):
        total[16 * index : 16 * index + 64] += frame * window
        weight[16 * index : 16 * index + 64] += window**2
    return (total / weight)[None, 24:-24]


# BigVGAN.


def bigvgan_config(**changes) -> dict:
    return {
        "resblock": "1",
        "upsample_rates": [4, 4],
        "upsample_kernel_sizes": [8, 4],
        "upsample_initial_channel": 8,
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [1, 2]],
        "activation": "snakebeta",
        "snake_logscale": True,
        "use_tanh_at_final": False,
        "use_bias_at_final": False,
        "num_mels": 8,
        "n_fft": 64,
        "hop_size": 16,
        "win_size": 64,
        "sampling_rate": 8000,
        "fmin": 0,
        "fmax": None,
        "batch_size": 4,
    } | changes


def bigvgan_tensors(config: dict, naming: str = "old") -> dict[str, torch.Tensor]:
    """Names of the published files: weight norm in two parts, filters as buffers."""
    seed, tensors = [50], {}
    filter_ = torch.ones(1, 1, 12)

    def conv(name: str, *shape: int, bias: int = 0) -> None:
        parts = {
            "old": (".weight_g", ".weight_v"),
            "new": (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
        }
        if naming == "plain":
            tensors[f"{name}.weight"] = random(*shape, seed=seed)
        else:
            tensors[name + parts[naming][0]] = random(shape[0], 1, 1, seed=seed) + 1
            tensors[name + parts[naming][1]] = random(*shape, seed=seed)
        if bias:
            tensors[f"{name}.bias"] = random(bias, seed=seed)

    def activation(name: str, width: int) -> None:
        tensors[f"{name}.act.alpha"] = random(width, seed=seed)
        if config["activation"] == "snakebeta":
            tensors[f"{name}.act.beta"] = random(width, seed=seed)
        tensors[f"{name}.upsample.filter"] = filter_.clone()
        tensors[f"{name}.downsample.lowpass.filter"] = filter_.clone()

    width = config["upsample_initial_channel"]
    conv("conv_pre", width, 8, 7, bias=width)
    index = 0
    for level, kernel in enumerate(config["upsample_kernel_sizes"]):
        conv(f"ups.{level}.0", width, width // 2, kernel, bias=width // 2)
        width //= 2
        for size, dilations in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True):
            groups = ("convs1", "convs2") if config["resblock"] == "1" else ("convs",)
            for group in groups:
                for step in range(len(dilations)):
                    conv(f"resblocks.{index}.{group}.{step}", width, width, size, bias=width)
            for step in range(len(dilations) * len(groups)):
                activation(f"resblocks.{index}.activations.{step}", width)
            index += 1
    activation("activation_post", width)
    conv("conv_post", 1, width, 7, bias=1 if config["use_bias_at_final"] else 0)
    return tensors


def bigvgan_reference(t: dict[str, torch.Tensor], config: dict, mels: torch.Tensor) -> torch.Tensor:
    def weight(name: str) -> torch.Tensor:
        if f"{name}.weight" in t:
            return t[f"{name}.weight"]
        g, v = (t[key] for key in sorted(key for key in t if key.startswith(f"{name}.") and not key.endswith("bias")))
        return torch._weight_norm(v, g, 0)

    def conv(x: torch.Tensor, name: str, dilation: int = 1) -> torch.Tensor:
        w = weight(name)
        pad = (w.shape[2] - 1) * dilation // 2
        return F.conv1d(x, w, t.get(f"{name}.bias"), padding=pad, dilation=dilation)

    taps = np.arange(-6, 6) + 0.5
    low_pass = np.kaiser(12, 0.1102 * (2.285 * 5 * math.pi * 1.2 + 7.95 - 8.7)) * 0.5 * np.sinc(0.5 * taps)
    low_pass = torch.tensor(low_pass / low_pass.sum(), dtype=torch.float32)

    def filtered(row: torch.Tensor) -> torch.Tensor:
        return torch.tensor(np.convolve(row.numpy(), low_pass.numpy(), "valid"))

    def activation(x: torch.Tensor, name: str) -> torch.Tensor:
        alpha = t[f"{name}.act.alpha"]
        beta = t.get(f"{name}.act.beta", alpha)
        if config["snake_logscale"]:
            alpha, beta = alpha.exp(), beta.exp()
        rows = []
        for channel, row in enumerate(x[0].detach()):
            spread = torch.zeros(2 * (len(row) + 10))  # zeros between samples, edges repeated
            spread[::2] = F.pad(row[None, None], (5, 5), mode="replicate")[0, 0]
            up = 2 * filtered(spread)[5 - 1 :][: 2 * len(row)]
            up = up + (up * alpha[channel]).sin() ** 2 / (beta[channel] + 1e-9)
            rows.append(filtered(F.pad(up[None, None], (5, 6), mode="replicate")[0, 0])[::2])
        return torch.stack(rows)[None]

    x = conv(mels, "conv_pre")
    index = 0
    for level, (rate, kernel) in enumerate(zip(config["upsample_rates"], config["upsample_kernel_sizes"], strict=True)):
        name = f"ups.{level}.0"
        x = F.conv_transpose1d(x, weight(name), t[f"{name}.bias"], rate, (kernel - rate) // 2)
        total = torch.zeros_like(x)
        for dilations in config["resblock_dilation_sizes"]:
            y, block = x, f"resblocks.{index}"
            for step, dilation in enumerate(dilations):
                if config["resblock"] == "1":
                    h = conv(activation(y, f"{block}.activations.{2 * step}"), f"{block}.convs1.{step}", dilation)
                    h = conv(activation(h, f"{block}.activations.{2 * step + 1}"), f"{block}.convs2.{step}")
                else:
                    h = conv(activation(y, f"{block}.activations.{step}"), f"{block}.convs.{step}", dilation)
                y = y + h
            total, index = total + y, index + 1
        x = total / len(config["resblock_dilation_sizes"])
    x = conv(activation(x, "activation_post"), "conv_post")[:, 0]
    return x.tanh() if config["use_tanh_at_final"] else x.clamp(-1, 1)


def write(folder: Path, config: dict, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, str(folder / "generator.safetensors"))
    return folder


MELS = 2 * torch.randn(1, 8, 9, generator=torch.Generator().manual_seed(9)) - 4


def test_vocos_computes_what_vocos_computes(tmp_path: Path) -> None:
    tensors = vocos_tensors()
    vocoder = load_external_vocoder(write(tmp_path, vocos_config(), tensors), MEL)
    assert isinstance(vocoder, Vocoder) and not vocoder.training and vocoder.mel == MEL
    samples = vocoder(MELS)
    assert samples.shape == (1, 9 * 16)
    assert torch.allclose(samples, vocos_reference(tensors, MELS), atol=1e-5)


def test_vocos_with_yaml(tmp_path: Path) -> None:
    folder = write(tmp_path, vocos_config(), vocos_tensors())
    expected = load_external_vocoder(folder)(MELS)
    (folder / "config.json").rename(folder / "config.yaml")  # JSON is YAML
    assert torch.equal(load_external_vocoder(folder, MEL)(MELS), expected)


@pytest.mark.parametrize("naming", ["old", "new", "plain"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resblock": "2", "activation": "snake", "use_tanh_at_final": True, "use_bias_at_final": True},
        {"snake_logscale": False, "fmax": 4000},
    ],
)
def test_bigvgan_computes_what_bigvgan_computes(naming: str, changes: dict, tmp_path: Path) -> None:
    config = bigvgan_config(**changes)
    tensors = bigvgan_tensors(config, naming)
    vocoder = load_external_vocoder(write(tmp_path, config, tensors), MEL)
    assert not vocoder.training and vocoder.sample_rate_hz == 8000
    samples = vocoder(MELS)
    assert samples.shape == (1, 9 * 16) and samples.abs().max() <= 1 and samples.std() > 1e-3
    assert torch.allclose(samples, bigvgan_reference(tensors, config, MELS), atol=1e-4)


@pytest.mark.parametrize("kind", ["vocos", "bigvgan"])
def test_padding(kind: str, tmp_path: Path) -> None:
    config = vocos_config() if kind == "vocos" else bigvgan_config()
    tensors = vocos_tensors() if kind == "vocos" else bigvgan_tensors(config)
    vocoder = load_external_vocoder(write(tmp_path, config, tensors))
    lengths = torch.tensor([9, 4, 0])
    output = vocoder(MELS.expand(3, -1, -1), torch.arange(9) < lengths[:, None])
    for row, length in enumerate(lengths.tolist()):
        assert (output[row, 16 * length :] == 0).all()
        if length:
            assert torch.allclose(output[row, : 16 * length], vocoder(MELS[..., :length])[0], atol=1e-5)


def test_bigvgan_with_the_prefix_of_a_training_checkpoint(tmp_path: Path) -> None:
    config = bigvgan_config()
    tensors = bigvgan_tensors(config)
    expected = load_external_vocoder(write(tmp_path / "a", config, tensors))(MELS)
    prefixed = {f"generator.{name}": tensor for name, tensor in tensors.items()}
    assert torch.equal(load_external_vocoder(write(tmp_path / "b", config, prefixed))(MELS), expected)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (vocos_config(), "sample_rate_hz=8000.*sample_rate_hz=22050"),
        (bigvgan_config(), "sample_rate_hz=8000.*sample_rate_hz=22050"),
    ],
)
def test_other_mels_are_refused_with_both_values(config: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_external_vocoder(write(tmp_path, config, {}), MelConfig())


def test_the_highest_frequency_counts(tmp_path: Path) -> None:
    folder = write(tmp_path, bigvgan_config(fmax=3000), {})
    with pytest.raises(CheckpointError, match="max_hz=3000.*max_hz=4000"):
        load_external_vocoder(folder, MEL)


@pytest.mark.parametrize("missing", [{"mel_scale": "htk"}, {"norm": None}])
def test_vocos_with_another_mel_scale(missing: dict, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="mel_scale=.*norm=.*slaney"):
        load_external_vocoder(write(tmp_path, vocos_config(**missing), vocos_tensors()))


@pytest.mark.parametrize("name", ["bigvgan_generator.pt", "pytorch_model.bin", "g_05000000"])
def test_pickles_are_refused(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, bigvgan_config(), {})
    (folder / "generator.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=f"{name}' is a pickle.*convert it") as caught:
        load_external_vocoder(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_half_of_weight_norm(tmp_path: Path) -> None:
    tensors = bigvgan_tensors(bigvgan_config())
    del tensors["conv_pre.weight_g"]
    with pytest.raises(CheckpointError, match="conv_pre.weight_v.*conv_pre.weight_g"):
        load_external_vocoder(write(tmp_path, bigvgan_config(), tensors))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, "no known vocoder"),
        (bigvgan_config(upsample_rates=[4, 2]), "multiply to hop_size=16"),
        (bigvgan_config(upsample_rates=[4]), "as many entries"),
        (bigvgan_config(upsample_kernel_sizes=[8, 5]), "kernel 5.*rate 4"),
        (bigvgan_config(upsample_initial_channel=6), "upsample_initial_channel=6"),
        (bigvgan_config(resblock="3"), "resblock='3'"),
        (bigvgan_config(activation="relu"), "activation 'relu'"),
        (bigvgan_config(num_mels="many"), "num_mels='many'"),
        (bigvgan_config(num_mels=10**12), "num_mels=1000000000000"),
        (bigvgan_config(resblock_dilation_sizes=3), "no usable"),
        ({key: value for key, value in bigvgan_config().items() if key != "n_fft"}, "'n_fft' is missing"),
        (vocos_config() | {"backbone": {"class_path": "vocos.models.VocosResNetBackbone", "init_args": {}}}, "ResNet"),
        (vocos_config() | {"backbone": 3}, "backbone must have 'init_args'"),
        (vocos_config() | {"head": {"init_args": {"n_fft": 32, "hop_length": 16}}}, "n_fft of the head is 32"),
    ],
)
def test_configurations_that_do_not_fit(config: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=named) as caught:
        load_external_vocoder(write(tmp_path, config, {}))
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        load_external_vocoder(tmp_path / "none")
    with pytest.raises(CheckpointError, match="config.json' is missing"):
        load_external_vocoder(tmp_path)
    folder = write(tmp_path, vocos_config(), vocos_tensors())
    save_file({}, str(folder / "other.safetensors"))
    with pytest.raises(CheckpointError, match="one safetensors file, not 2"):
        load_external_vocoder(folder)
    (folder / "other.safetensors").unlink()
    (folder / "generator.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no safetensors"):
        load_external_vocoder(folder)
    (folder / "config.json").unlink()
    for damaged in ("a: [", "a: " + "9" * 5000, "[" * 5000, "a: &a [1]\nb: *a"):
        (folder / "config.yaml").write_text(damaged)
        with pytest.raises(ConfigError, match="not valid YAML"):
            load_external_vocoder(folder)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    tensors = vocos_tensors()
    del tensors["backbone.convnext.1.gamma"]
    with pytest.raises(CheckpointError, match=r"blocks\.1\.scale"):
        load_external_vocoder(write(tmp_path, vocos_config(), tensors))
