"""Vocoders that were trained elsewhere: folders of Vocos (arXiv:2306.00814) and BigVGAN (arXiv:2206.04658).

Such a folder holds `config.json` (Vocos: or `config.yaml`) and one safetensors file with the generator's weights.
Pickles (`.pt`, `.bin`) are refused: reading one can run any program.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from resgen.checkpoints.format import CONFIG_NAME, read_json
from resgen.checkpoints.tensors import load_state, read_tensors
from resgen.config import load_yaml
from resgen.errors import CheckpointError, ConfigError, unknown
from resgen.ops.mel import MelConfig
from resgen.tokenizers.bigvgan import BigVGAN, BigVGANConfig
from resgen.tokenizers.vocoder import Vocoder, VocoderConfig

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_MEL_FIELDS = ("sample_rate_hz", "fft_size", "window_size", "hop_size", "num_bands", "min_hz", "max_hz")
_LARGEST = 1 << 16  # no size in a configuration is near it; a damaged one must not ask for all memory
# Vocos' names (left) and ours; buffers of its feature extractor and its inverse transform are not weights.
_VOCOS_NAMES = (
    (r"^backbone\.embed\.", "embed.conv."),
    (r"^backbone\.norm\.", "norm."),
    (r"^backbone\.final_layer_norm\.", "final_norm."),
    (r"^backbone\.convnext\.(\d+)\.gamma$", r"blocks.\1.scale"),
    (r"^backbone\.convnext\.(\d+)\.dwconv\.", r"blocks.\1.depthwise."),
    (r"^backbone\.convnext\.(\d+)\.pwconv1\.", r"blocks.\1.up."),
    (r"^backbone\.convnext\.(\d+)\.pwconv2\.", r"blocks.\1.down."),
    (r"^backbone\.convnext\.(\d+)\.norm\.", r"blocks.\1.norm."),
    (r"^head\.out\.", "head."),
)
_VOCOS_UNUSED = ("feature_extractor.", "head.istft.")


def load_external_vocoder(folder: str | Path, mel: MelConfig | None = None) -> nn.Module:
    """A vocoder trained elsewhere, in evaluation mode: `vocoder(log_mels, valid=None)` gives `[B, T * hop]` samples.

    Args:
        folder: with the configuration and one safetensors file.
        mel: what the mels that it is to take are made with; None for whatever it was trained on (its `mel`). The floor
            is not compared: it only changes silence.

    Raises:
        CheckpointError: something is missing, a pickle, damaged, of another kind, or made for other mels than `mel`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"'{folder}' is not a folder with a vocoder")
    config, where = _read_config(folder)
    try:
        if "upsample_rates" in config:
            network, own_mel = "BigVGAN", _bigvgan_mel(config)
        elif {"feature_extractor", "backbone", "head"} <= set(config):
            network, own_mel = "Vocos", _vocos_mel(config, where)
        else:
            raise CheckpointError(
                f"'{where}' describes no known vocoder: BigVGAN has 'upsample_rates', Vocos has 'feature_extractor', "
                f"'backbone' and 'head'"
            )
        if mel is not None:
            _check_mel(own_mel, mel, network, where)
        load = _load_bigvgan if network == "BigVGAN" else _load_vocos
        vocoder: nn.Module = load(config, own_mel, _weights_file(folder))
        return vocoder.eval().requires_grad_(False)
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CheckpointError(f"'{where}' is no usable vocoder configuration: {reason}") from error


# Vocos.


def _load_vocos(config: Mapping[str, Any], mel: MelConfig, path: Path) -> Vocoder:
    backbone, head = _part(config, "backbone"), _part(config, "head")
    for name, expected in (("backbone", "VocosBackbone"), ("head", "ISTFTHead")):
        actual = str(config[name].get("class_path", expected)).rsplit(".", 1)[-1]
        if actual != expected:
            raise ConfigError(unknown(f"{name} of Vocos", actual, (expected,)))
    width, hidden = _size(backbone, "dim"), _size(backbone, "intermediate_dim")
    if hidden % width:
        raise ConfigError(f"intermediate_dim={hidden} must be a multiple of dim={width}")
    for key, value in (("n_fft", mel.fft_size), ("hop_length", mel.hop_size)):
        if _size(head, key) != value:
            raise ConfigError(f"{key} of the head is {head[key]}, that of the feature extractor {value}")
    vocoder = Vocoder(
        VocoderConfig(mel=mel, width=width, num_layers=_size(backbone, "num_layers"), hidden_multiple=hidden // width)
    )
    tensors = {}
    for name, tensor in read_tensors(path).items():
        if not name.startswith(_VOCOS_UNUSED):
            tensors[_renamed(name)] = tensor
    load_state(vocoder, tensors, str(path))
    return vocoder


def _renamed(name: str) -> str:
    for pattern, ours in _VOCOS_NAMES:
        renamed, count = re.subn(pattern, ours, name)
        if count:
            return renamed
    return name


def _vocos_mel(config: Mapping[str, Any], where: Path) -> MelConfig:
    """The mels of a Vocos; with `center` padding its frames lie half a hop earlier, which a convolution cannot see."""
    features = _part(config, "feature_extractor")
    # torchaudio's defaults, which hold where the configuration says nothing
    scale, norm = features.get("mel_scale", "htk"), features.get("norm")
    if (scale, norm) != ("slaney", "slaney"):
        raise CheckpointError(
            f"'{where}': the vocoder takes mels of mel_scale={scale!r} and norm={norm!r}, resgen makes those of "
            f"mel_scale='slaney' and norm='slaney'; use a vocoder trained on them"
        )
    rate, fft_size = _size(features, "sample_rate", 1 << 20), _size(features, "n_fft")
    highest = features.get("f_max")
    return MelConfig(
        sample_rate_hz=rate,
        fft_size=fft_size,
        window_size=fft_size,
        hop_size=_size(features, "hop_length"),
        num_bands=_size(features, "n_mels"),
        min_hz=float(features.get("f_min", 0.0)),
        max_hz=rate / 2 if highest is None else float(highest),
    )


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config[name]
    arguments = part.get("init_args") if isinstance(part, dict) else None
    if not isinstance(arguments, dict):
        raise ConfigError(f"{name} must have 'init_args'")
    return arguments


# BigVGAN.


def _load_bigvgan(config: Mapping[str, Any], mel: MelConfig, path: Path) -> BigVGAN:
    shape = BigVGANConfig(
        num_mels=_size(config, "num_mels"),
        resblock=str(config["resblock"]),
        upsample_rates=_sizes(config["upsample_rates"]),
        upsample_kernel_sizes=_sizes(config["upsample_kernel_sizes"]),
        upsample_initial_channel=_size(config, "upsample_initial_channel"),
        resblock_kernel_sizes=_sizes(config["resblock_kernel_sizes"]),
        resblock_dilation_sizes=tuple(_sizes(sizes) for sizes in config["resblock_dilation_sizes"]),
        activation=str(config["activation"]),
        snake_logscale=bool(config["snake_logscale"]),
        use_tanh_at_final=bool(config.get("use_tanh_at_final", True)),
        use_bias_at_final=bool(config.get("use_bias_at_final", True)),
    )
    if math.prod(shape.upsample_rates) != mel.hop_size:
        raise ConfigError(f"upsample_rates={shape.upsample_rates} must multiply to hop_size={mel.hop_size}")
    vocoder = BigVGAN(shape, mel)
    load_state(vocoder, _without_weight_norm(read_tensors(path)), str(path))
    return vocoder


def _bigvgan_mel(config: Mapping[str, Any]) -> MelConfig:
    rate, highest = _size(config, "sampling_rate", 1 << 20), config.get("fmax")
    return MelConfig(
        sample_rate_hz=rate,
        fft_size=_size(config, "n_fft"),
        window_size=_size(config, "win_size"),
        hop_size=_size(config, "hop_size"),
        num_bands=_size(config, "num_mels"),
        min_hz=float(config.get("fmin") or 0.0),
        max_hz=rate / 2 if highest is None else float(highest),
    )


def _without_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights `g v / |v|` in place of their two parts, under both of PyTorch's namings; filters are constants."""
    plain: dict[str, Tensor] = {}
    for full, tensor in tensors.items():
        name = full.removeprefix("generator.")
        if name.endswith((".filter", ".weight_g", ".original0")):
            continue
        if not name.endswith((".weight_v", ".original1")):
            plain[name] = tensor
            continue
        other = full[:-1] + ("g" if full.endswith("_v") else "0")
        if other not in tensors:
            raise CheckpointError(f"tensor '{full}' has no '{other}' beside it, which weight normalisation needs")
        norm = tensor.float().flatten(1).norm(dim=1).reshape(-1, *(1,) * (tensor.dim() - 1))
        name = name.removesuffix("_v").replace(".parametrizations.weight.original1", ".weight")
        plain[name] = tensors[other].float() * tensor.float() / norm.clamp(min=1e-12)
    return plain


# Files and settings.


def _read_config(folder: Path) -> tuple[dict[str, Any], Path]:
    path = folder / "config.yaml"
    if (folder / CONFIG_NAME).exists() or not path.is_file():
        return read_json(folder / CONFIG_NAME), folder / CONFIG_NAME
    return load_yaml(path), path


def _weights_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(f"'{folder}' must hold one safetensors file, not {len(files)}: {files[0].name}, ...")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES or path.name.startswith("g_"))
    if pickles:
        raise CheckpointError(
            f"'{folder / pickles[0]}' is a pickle, which is not read because it can run any program; convert it with "
            f"weights_only=True where PyTorch loads it, and safetensors.torch.save_file of the generator's weights"
        )
    raise CheckpointError(f"'{folder}' holds no safetensors file with the vocoder's weights")


def _check_mel(own: MelConfig, mel: MelConfig, network: str, where: Path) -> None:
    for name in _MEL_FIELDS:
        if getattr(own, name) != getattr(mel, name):
            raise CheckpointError(
                f"'{where}': {network} was trained on mels with {name}={getattr(own, name)}, but these have "
                f"{name}={getattr(mel, name)}; use a vocoder with the same mel settings"
            )


def _size(config: Mapping[str, Any], key: str, largest: int = _LARGEST) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= largest:
        raise ConfigError(f"{key}={value!r} must be a number from 1 to {largest}")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    return tuple(_size({"size": value}, "size") for value in values)
