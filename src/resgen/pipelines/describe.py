"""What is inside a saved model, as plain data for `resgen inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resgen.checkpoints.format import Folder, load_folder, load_tensors
from resgen.checkpoints.locate import resolve_model
from resgen.checkpoints.speech import SOUND_TOKENIZERS, TEXT_MODEL, VOCODER
from resgen.config import config_from_dict
from resgen.models.text import TextModelConfig
from resgen.tokenizers.codec import CodecTokenizerConfig
from resgen.tokenizers.mel import MelTokenizerConfig
from resgen.tokenizers.vocoder import VocoderConfig
from resgen.tokenizers.waveform import WaveformTokenizerConfig

_BUFFERS = frozenset(
    "codebooks variances shares sums centres axes spreads level_std latent_scale centre log_scale "
    "running_mean running_var num_batches_tracked".split()
)
"""Names of stored tensors that are not parameters."""


def describe_artefact(name_or_path: str | Path) -> dict[str, Any]:
    """Configuration, sizes by part, hashes and training history of a saved model; hashes are verified.

    `numbers` counts everything that is stored, `parameters` what gradients train, without codebooks and
    statistics; `shared_with` names the model beside it that holds the file, if one does. What deals with sound has
    `speech` besides: rates, lengths and the sizes of codes and alphabet.
    """
    folder = load_folder(resolve_model(name_or_path))
    components = {}
    for name, saved in folder.components.items():
        parts: dict[str, int] = {}
        parameters = 0
        for key, tensor in load_tensors(saved).items():
            part = key.partition(".")[0]
            parts[part] = parts.get(part, 0) + tensor.numel()
            parameters += 0 if key.rpartition(".")[2] in _BUFFERS else tensor.numel()
        components[name] = {
            "type": saved.type,
            "file": saved.path.name,
            "sha256": saved.sha256,
            "bytes": saved.path.stat().st_size,
            **({} if saved.path.parent == folder.path else {"shared_with": saved.path.parent.name}),
            "numbers_by_part": parts,
            "numbers": sum(parts.values()),
            "parameters": parameters,
            "config": saved.config,
        }
    speech = _describe_speech(folder)
    return {
        "path": str(folder.path),
        "kind": folder.kind,
        "resgen_version": folder.resgen_version,
        **({"speech": speech} if speech else {}),
        "components": components,
        **folder.extra,
    }


def describe_sound_codes(config: MelTokenizerConfig | WaveformTokenizerConfig | CodecTokenizerConfig) -> dict[str, Any]:
    """Rates and sizes of a sound tokenizer's codes: `depth` codes of `codebook_size` values per position."""
    if isinstance(config, MelTokenizerConfig):
        rate, unit = config.mel.sample_rate_hz, config.frames_per_position * config.mel.hop_size
    else:
        rate, unit = config.sample_rate_hz, config.samples_per_position
    return {
        "sample_rate_hz": rate,
        "samples_per_position": unit,
        "positions_per_second": rate / unit,
        "max_seconds": config.max_positions * unit / rate,
        "depth": config.quantizer.depth,
        "codebook_size": config.quantizer.codebook_size,
    }


def describe_vocoder(config: VocoderConfig) -> dict[str, Any]:
    """Rates of a vocoder."""
    return {"sample_rate_hz": config.mel.sample_rate_hz, "frames_per_second": config.mel.frame_rate_hz}


def _describe_speech(folder: Folder) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for saved in folder.components.values():
        where = f"{saved.name}."
        if saved.type in SOUND_TOKENIZERS:
            config = config_from_dict(SOUND_TOKENIZERS[saved.type].config_class, saved.config, where=where)
            facts["codes"] = describe_sound_codes(config)
        elif saved.type == VOCODER:
            facts["vocoder"] = describe_vocoder(config_from_dict(VocoderConfig, saved.config, where=where))
        elif saved.type == TEXT_MODEL:
            most = config_from_dict(TextModelConfig, saved.config, where=where).max_tokens
            facts["text"] = {"alphabet_size": len(str(folder.extra.get("alphabet", ""))), "max_tokens": most}
    return facts
