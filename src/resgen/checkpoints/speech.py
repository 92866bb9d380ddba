"""Saving and loading speech models: vocoder, text model, and the pipeline of all four parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from resgen.checkpoints.artefacts import (
    generator_component,
    generator_of,
    published,
    restored,
    tokenizer_component,
    tokenizer_of,
)
from resgen.checkpoints.format import (
    CONFIG_NAME,
    Component,
    Folder,
    SavedComponent,
    load_folder,
    read_json,
    save_folder,
)
from resgen.checkpoints.locate import resolve_model
from resgen.checkpoints.voices import Voice, voice_entries, voices_of
from resgen.config import config_from_dict, config_to_dict
from resgen.errors import CheckpointError, ConfigError, unknown
from resgen.kinds import AnySampling
from resgen.models.base import CodeModel
from resgen.models.text import TextModel, TextModelConfig
from resgen.ops.mel import MelConfig
from resgen.tokenizers.codec import FAMILIES, CodecTokenizer, CodecTokenizerConfig, codec_class, codec_settings
from resgen.tokenizers.mel import MelTokenizer
from resgen.tokenizers.sound import SoundTokenizer, check_mels
from resgen.tokenizers.vocoder import Vocoder, VocoderConfig
from resgen.tokenizers.waveform import WaveformTokenizer

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)

_TOKENIZERS: tuple[type[Any], ...] = (MelTokenizer, WaveformTokenizer, CodecTokenizer)
SOUND_TOKENIZERS = {one.component: one for one in _TOKENIZERS}
VOCODER, TEXT_MODEL = "vocoder", "text-model"
CODEC_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class VoiceConfig:
    """Preparation of recordings in training, which prompts have to match.

    Attributes:
        loudness_db: what they were brought to, in LUFS; null where they were left as they are.
        max_prompt_seconds: the longest prompt.
        mel: what prompts are aligned to their texts with, for a tokenizer of waveforms; null for one of mels, whose own
            it is.
        vocabulary: the words of the training's texts where these are few; else none.
    """

    loudness_db: float | None = -23.0
    max_prompt_seconds: float = 3.0
    mel: MelConfig | None = None
    vocabulary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.max_prompt_seconds > 0:
            raise ConfigError(f"max_prompt_seconds={self.max_prompt_seconds} must be above 0")


@dataclass(frozen=True, kw_only=True)
class SpeechParts:
    """A loaded speech pipeline.

    Attributes:
        tokenizer: a tokenizer of mels or waveforms.
        vocoder: vocoder of a mel tokenizer; None where there is none, or nothing for it to do.
        text_model: reads the text.
        alphabet: letters or phonemes that the text model was trained on.
        generator: generator of codes.
        sampling: its settings.
        voice: how prompts are prepared.
        voices: recordings that speak for named voices.
        folder: what they were loaded from.
    """

    tokenizer: SoundTokenizer
    vocoder: Vocoder | None
    text_model: TextModel
    alphabet: str
    generator: CodeModel
    sampling: AnySampling
    voice: VoiceConfig
    voices: dict[str, Voice]
    folder: Folder


def load_sound_tokenizer(name_or_path: str | Path) -> tuple[SoundTokenizer, Folder]:
    """The sound tokenizer of a tokenizer or speech pipeline folder (or bundled model), in evaluation mode.

    A folder of `transformers` with a codec will do as well: see `open_codec`.

    Raises:
        CheckpointError: nothing there, damaged, or another tokenizer.
    """
    path = resolve_model(name_or_path)
    settings = read_json(path / CONFIG_NAME)
    if "format" not in settings and "model_type" in settings:
        codec = open_codec(path)
        history = {"family": codec.config.family, "folder": path.resolve().name}
        return codec, Folder(path=path, kind="tokenizer", components={}, extra={"history": {"tokenizer": history}})
    folder = load_folder(path)
    return cast(SoundTokenizer, tokenizer_of(folder, _TOKENIZERS)), folder


def open_codec(folder: str | Path, *, num_levels: int | None = None) -> CodecTokenizer:
    """EnCodec, DAC or Mimi from a local folder of `transformers`; nothing is downloaded, no code of the folder runs.

    A sample may last 30 seconds.

    Args:
        folder: as `save_pretrained` writes it, with safetensors files.
        num_levels: how many of the codec's levels are used; all by default.

    Raises:
        CheckpointError: another model, no safetensors files, weights that are missing or unreadable, or a codec whose
            codes alone do not say what the sound is.
        ConfigError: more levels than the codec has, or fewer than 1.
        MissingExtraError: transformers is not installed.
    """
    path = Path(folder)
    family = read_json(path / CONFIG_NAME).get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise CheckpointError(f"'{path}': {unknown('codec', family, FAMILIES)}")
    if not list(path.glob("*.safetensors")):
        raise CheckpointError(f"'{path}' holds no *.safetensors file; save the codec with safe serialization")
    config_class, model = codec_class(family, "Config"), codec_class(family, "Model")
    try:
        settings = codec_settings(config_class.from_pretrained(path, local_files_only=True))
        config = CodecTokenizerConfig(family=cast(Any, family), codec=settings, num_levels=1, max_positions=1)
        network, info = model.from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # what transformers raises for a bad folder has no class in common
        raise CheckpointError(f"'{path}' cannot be read as a codec: {' '.join(str(error).split())}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(f"'{path}' lacks {len(missing)} tensors of the codec, '{missing[0]}' first")
    seconds = config.samples_per_position / config.sample_rate_hz
    config = replace(
        config,
        num_levels=config.most_levels if num_levels is None else num_levels,
        max_positions=math.ceil(CODEC_SECONDS / seconds),
    )
    tokenizer = CodecTokenizer(config, network)
    if not tokenizer.quantizer.codebooks.flatten(1).any(1).all():
        raise CheckpointError(f"'{path}': a codebook is all zero; the codec was not trained")
    return tokenizer


def save_vocoder(path: str | Path, vocoder: Vocoder, *, history: Mapping[str, Any] | None = None) -> None:
    """Write a vocoder folder."""
    extra = {"history": {"vocoder": dict(history or {})}}
    save_folder(path, kind=VOCODER, components={VOCODER: _vocoder_component(vocoder)}, extra=extra)


def load_vocoder(name_or_path: str | Path) -> tuple[Vocoder, Folder]:
    """The vocoder of a vocoder or speech pipeline folder (or bundled model), in evaluation mode.

    Raises:
        CheckpointError: nothing there, damaged, or a folder without a vocoder.
    """
    folder = load_folder(resolve_model(name_or_path))
    return _vocoder_of(folder), folder


def save_text_model(
    path: str | Path, model: TextModel, *, alphabet: str, history: Mapping[str, Any] | None = None
) -> None:
    """Write a text model's folder; `alphabet` holds the letters or phonemes that it was trained on."""
    extra = {"alphabet": alphabet, "history": {"text": dict(history or {})}}
    save_folder(path, kind=TEXT_MODEL, components={"text": _text_component(model)}, extra=extra)


def load_text_model(name_or_path: str | Path) -> tuple[TextModel, str, Folder]:
    """The text model of a text model or speech pipeline folder (or bundled model), in evaluation mode, and its
    alphabet.

    Raises:
        CheckpointError: nothing there, damaged, or a folder without a text model.
    """
    folder = load_folder(resolve_model(name_or_path))
    return _text_of(folder), _alphabet(folder), folder


def save_speech_pipeline(
    path: str | Path,
    *,
    tokenizer: SoundTokenizer,
    vocoder: Vocoder | None,
    text_model: TextModel,
    alphabet: str,
    generator: CodeModel,
    sampling: AnySampling,
    voice: VoiceConfig,
    voices: Mapping[str, Voice] | None = None,
    history: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a speech pipeline's folder; `extra` is what else it says, such as a `description`, and `files` the
    content of its other files, such as its card, by name.

    Raises:
        CheckpointError: the generator has the codebooks of another tokenizer.
    """
    components = {
        "tokenizer": tokenizer_component(tokenizer),
        "text": _text_component(text_model),
        "generator": generator_component(generator, tokenizer),
    }
    if vocoder is not None:
        components[VOCODER] = _vocoder_component(vocoder)
    own = {"sampling": config_to_dict(sampling), "alphabet": alphabet, "voice": config_to_dict(voice)}
    others = {"history": dict(history or {}), **(extra or {})}
    if voices:
        own["voices"] = voice_entries(voices)
    else:
        others.pop("voices", None)
    files = {**(files or {}), **{f"{name}.flac": one.content for name, one in (voices or {}).items()}}
    save_folder(path, kind="speech-pipeline", components=components, extra={**others, **own}, files=files)


def load_speech_pipeline(name_or_path: str | Path) -> SpeechParts:
    """A speech pipeline's folder (or bundled model), all parts in evaluation mode.

    Raises:
        CheckpointError: nothing there, damaged, of images, or its parts do not belong together.
    """
    folder = load_folder(resolve_model(name_or_path))
    if folder.kind == "pipeline":
        raise CheckpointError(f"'{folder.path}' is a model of images, which cannot speak; open it with ImagePipeline")
    if "text" not in folder.components:
        raise CheckpointError(f"'{folder.path}' holds a {folder.kind}, which cannot speak; give a speech pipeline")
    tokenizer = cast(SoundTokenizer, tokenizer_of(folder, _TOKENIZERS))
    generator, sampling = generator_of(folder, tokenizer)
    vocoder = _vocoder_of(folder) if VOCODER in folder.components else None
    if vocoder is not None and isinstance(tokenizer, MelTokenizer):
        try:
            check_mels(tokenizer.config.mel, vocoder.mel)
        except ConfigError as error:
            raise CheckpointError(f"'{folder.path}': {error}") from error
    text_model = _text_of(folder)
    if generator.config.feature_width != text_model.config.width:
        raise CheckpointError(
            f"'{folder.path}': the generator takes features of width {generator.config.feature_width}, "
            f"but the text model gives {text_model.config.width}"
        )
    settings = folder.extra.get("voice", {})
    if not isinstance(settings, dict):
        raise CheckpointError(f"'{folder.path}': voice must be a mapping of settings, not {settings!r}")
    voice = config_from_dict(VoiceConfig, settings, where="voice.")
    if voice.mel is None and not isinstance(tokenizer, MelTokenizer):
        raise CheckpointError(f"'{folder.path}': voice.mel is missing, which a tokenizer of waveforms needs")
    return SpeechParts(
        tokenizer=tokenizer,
        vocoder=vocoder,
        text_model=text_model,
        alphabet=_alphabet(folder),
        generator=generator,
        sampling=sampling,
        voice=voice,
        voices=voices_of(folder),
        folder=folder,
    )


def _vocoder_component(vocoder: Vocoder) -> Component:
    return Component(type=VOCODER, config=config_to_dict(vocoder.config), tensors=published(vocoder))


def _text_component(model: TextModel) -> Component:
    return Component(type=TEXT_MODEL, config=config_to_dict(model.config), tensors=published(model))


def _vocoder_of(folder: Folder) -> Vocoder:
    saved = folder.component(VOCODER)
    return _restored(Vocoder, VocoderConfig, saved, "vocoder.")


def _text_of(folder: Folder) -> TextModel:
    saved = folder.component("text")
    return _restored(TextModel, TextModelConfig, saved, "text.")


def _alphabet(folder: Folder) -> str:
    alphabet = folder.extra.get("alphabet")
    if not isinstance(alphabet, str) or not alphabet:
        raise CheckpointError(f"'{folder.path}': alphabet must be text that is not empty, not {alphabet!r}")
    return alphabet


def _restored(network: Callable[[C], M], config: type[C], saved: SavedComponent, where: str) -> M:
    settings = config_from_dict(config, saved.config, where=where)
    return restored(lambda: network(settings), saved)
