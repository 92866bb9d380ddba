"""The stages of a speech model, from a recipe and paths to folders: tokenizer, vocoder, text model, generator."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resgen.checkpoints.artefacts import check_belongs, fingerprint
from resgen.checkpoints.speech import VoiceConfig, load_sound_tokenizer, load_text_model, load_vocoder
from resgen.checkpoints.tensors import module_tensors, sha256_tensor
from resgen.config import config_to_dict
from resgen.data.codes.cache import CachePlan, CodeCache, Shard, usual_shard
from resgen.data.codes.encoding import Encoding
from resgen.data.front_ends import front_end
from resgen.data.sound.held_out import open_speech_splits
from resgen.data.sound.sources import SpeechSource
from resgen.data.sound.store import SpeechStore
from resgen.data.spoken import Spoken
from resgen.data.text import pad_texts, token_ids, words_of
from resgen.devices import choose_device
from resgen.errors import ConfigError, DataError
from resgen.kinds import kind_of
from resgen.models.text import TextModel
from resgen.nn.seeding import seeded
from resgen.nn.size import build_within_memory
from resgen.ops.mel import MelConfig, log_mel_before_silence
from resgen.tokenizers.codec import CodecTokenizerConfig
from resgen.tokenizers.mel import MelTokenizer, MelTokenizerConfig
from resgen.tokenizers.sound import SoundCodec, SoundTokenizer
from resgen.tokenizers.vocoder import Vocoder
from resgen.tokenizers.waveform import WaveformTokenizer
from resgen.training.agreement import check_agreement
from resgen.training.encoding import encode_splits, is_encoded, open_encoded
from resgen.training.generator_task import GeneratorTask
from resgen.training.initial import check_init, new_generator, read_generator_init, start_from
from resgen.training.parallel import first_alone, initialise
from resgen.training.speech.product import COLUMNS, EncodedUtterance, SpeechExamples, SpeechProduct
from resgen.training.speech.recipe import SpeechRecipe, mel_of
from resgen.training.speech.text_task import TextTask
from resgen.training.speech.tokenizer_task import SoundTokenizerTask
from resgen.training.speech.vocoder_task import VocoderTask
from resgen.training.stages import Job, Run, run_stage

SHARD_UTTERANCES = 1 << 11
"""Recordings per shard by default: an hour or more, prepared in memory at a time."""
ENCODE_BATCH = 16
SMALL_VOCABULARY = 100
"""Words, up to which a model notes them: it has learned these words, not to spell."""


def train_sound_tokenizer(recipe: SpeechRecipe, run: Run) -> dict[str, float]:
    """Stage 1: train a sound tokenizer on recordings and write `out/model`; returns the final metrics.

    Raises:
        ConfigError: the recipe's tokenizer is a codec.
    """

    def prepare() -> Job:
        config = recipe.tokenizer
        if isinstance(config, CodecTokenizerConfig):
            raise ConfigError(
                f"tokenizer.family={config.family}: a codec is not trained here; give its folder to the generator's "
                "training as the tokenizer"
            )
        check_init(recipe.tokenizer_loss.decoder_only, run.init)
        with seeded(recipe.tokenizer_training.seed, "tokenizer"):
            network: Any = MelTokenizer if isinstance(config, MelTokenizerConfig) else WaveformTokenizer
            tokenizer: MelTokenizer | WaveformTokenizer = build_within_memory(lambda: network(config), "the tokenizer")
            if run.init is not None:
                start_from(tokenizer, run.init, "tokenizer")
            train, held_out, about = _stores(recipe, run, tokenizer.sample_rate_hz)
            task = SoundTokenizerTask(tokenizer, recipe.tokenizer_loss, train, held_out)
        return Job(task, about, {"tokenizer": config, "tokenizer_loss": recipe.tokenizer_loss})

    return run_stage("tokenizer", recipe, run, prepare)


def train_vocoder(recipe: SpeechRecipe, run: Run) -> dict[str, float]:
    """Train a vocoder and write `out/model`; returns the final metrics.

    Args:
        recipe: all settings.
        run: with the model `tokenizer`, of mels, it also learns to turn this tokenizer's reconstructions into sound.
    """

    def prepare() -> Job:
        name = run.models.get("tokenizer")
        tokenizer = None if name is None else load_sound_tokenizer(name)[0]
        if tokenizer is not None and not isinstance(tokenizer, MelTokenizer):
            raise ConfigError(f"'{name}' is a tokenizer of waveforms, which needs no vocoder")
        with seeded(recipe.vocoder_training.seed, "vocoder"):
            vocoder = build_within_memory(lambda: Vocoder(recipe.vocoder), "the vocoder")
            if run.init is not None:
                start_from(vocoder, run.init, "vocoder")
            train, held_out, about = _stores(recipe, run, recipe.vocoder.mel.sample_rate_hz)
            task = VocoderTask(vocoder, recipe.vocoder_loss, train, held_out, tokenizer=tokenizer)
        return Job(task, about, {"vocoder": recipe.vocoder, "vocoder_loss": recipe.vocoder_loss})

    return run_stage("vocoder", recipe, run, prepare)


def train_text(recipe: SpeechRecipe, run: Run) -> dict[str, float]:
    """Train a text model (alignment and durations) and write `out/model`; returns the final metrics."""

    def prepare() -> Job:
        mel = mel_of(recipe)
        with seeded(recipe.text_training.seed, "text"):
            make: Callable[[], TextModel] = lambda: TextModel(recipe.text)  # noqa: E731
            model = build_within_memory(make, "the text model") if recipe.text.byt5_folder is None else make()
            alphabet = ""
            if run.init is not None:
                start_from(model, run.init, "text")
                alphabet = load_text_model(run.init)[1]
            train, held_out, about = _stores(recipe, run, mel.sample_rate_hz)
            task = TextTask(model, recipe.text_loss, train, held_out, mel=mel, alphabet=alphabet)
        return Job(task, about, {"text": recipe.text, "text_loss": recipe.text_loss})

    return run_stage("text", recipe, run, prepare)


def train_speech_generator(recipe: SpeechRecipe, run: Run) -> dict[str, float]:
    """Stage 2: train a generator on codes and write the speech pipeline `out/model`; returns the final metrics.

    Args:
        recipe: all settings; the shape of the codes is the tokenizer's.
        run: with the models `tokenizer` (a folder of `transformers` with a codec will do), `text` and, for a mel
            tokenizer, `vocoder`; without it samples are made by Griffin-Lim. Its data are recordings, encoded into
            `out/codes` first, or a folder that `encode_speech` wrote.
    """

    def prepare() -> Job:
        tokenizer, tokenizer_folder = load_sound_tokenizer(run.models["tokenizer"])
        text_model, alphabet, text_folder = load_text_model(run.models["text"])
        history = {"tokenizer": tokenizer_folder.record("tokenizer"), "text": text_folder.record("text")}
        vocoder = None
        if run.models.get("vocoder") is not None:
            vocoder, vocoder_folder = load_vocoder(run.models["vocoder"])
            history["vocoder"] = vocoder_folder.record("vocoder")
        codec = SoundCodec(tokenizer, vocoder)
        mel = mel_of(recipe, tokenizer.config)
        stride = tokenizer.samples_per_position // mel.hop_size
        if text_model.config.num_bands != mel.num_bands:
            raise ConfigError(
                f"'{run.models['text']}' takes mels of {text_model.config.num_bands} bands, not of {mel.num_bands}"
            )
        config = replace(recipe.generator, feature_width=text_model.config.width, feature_stride=stride)
        init = read_generator_init(run.init, config, tokenizer)
        caches = _codes(recipe, run, tokenizer, text_model)
        rate = tokenizer.sample_rate_hz / tokenizer.samples_per_position
        train, held_out = (
            SpeechExamples(cache, text_model, recipe.prompts, positions_per_second=rate, stride=stride)
            for cache in caches
        )
        words = sorted(words_of(caches[0].texts("texts")))
        voice = VoiceConfig(
            vocabulary=tuple(words) if len(words) <= SMALL_VOCABULARY else (),
            loudness_db=recipe.data.loudness_db,
            max_prompt_seconds=recipe.prompts.max_seconds,
            mel=None if isinstance(tokenizer, MelTokenizer) else mel,
        )
        task = GeneratorTask(
            new_generator(recipe, config, tokenizer.spec, init),
            recipe.generator_loss,
            train,
            held_out,
            quantizer=tokenizer.quantizer,
            product=SpeechProduct(codec, text_model, alphabet, held_out, mel, voice),
            sampling=recipe.sampling,
            history=history,
        )
        configs = {
            "generator": config,
            "generator_loss": recipe.generator_loss,
            "prompts": recipe.prompts,
            "sampling": recipe.sampling,
        }
        return Job(task, caches[0].plan.made_from, configs, kind_of(config).name)

    return run_stage("generator", recipe, run, prepare)


def _codes(
    recipe: SpeechRecipe, run: Run, tokenizer: SoundTokenizer, text_model: TextModel
) -> tuple[CodeCache, CodeCache]:
    """The run's data, encoded."""
    path = run.data_path(recipe)
    if is_encoded(path):
        train, held_out = open_encoded(path, *COLUMNS)
    else:
        out, device = Path(run.out) / "codes", recipe.generator_training.device
        train, held_out = encode_speech(tokenizer, text_model, path, out, recipe=recipe, device=device)
    for cache in (train, held_out):
        check_belongs(tokenizer, cache.spec, cache.plan.made_from.get("tokenizer"), str(path))
        if cache.plan.made_from.get("text") != _text_fingerprint(text_model):
            raise DataError(f"'{path}' was aligned by another text model than '{run.models['text']}'; encode again")
    return train, held_out


def encode_speech(
    tokenizer: SoundTokenizer,
    text_model: TextModel,
    data: str | Path,
    out: str | Path,
    *,
    recipe: SpeechRecipe,
    device: str = "auto",
    shard_samples: int | None = None,
) -> tuple[CodeCache, CodeCache]:
    """Encode recordings and align their texts; see `encode_splits`.

    Args:
        tokenizer: makes the codes.
        text_model: finds the durations.
        data: recordings, as `open_speech` takes them.
        out: folder for the two caches.
        recipe: how recordings are prepared, and the mels of the alignment.
        device: `auto`, `cpu` or `cuda`.
        shard_samples: the most recordings of a file; by default `usual_shard`. What is there keeps its division.
    """
    reduce = initialise()  # chooses the GPU of this process
    target = choose_device(device)
    tokenizer.to(target)
    text_model.to(target)
    mel = mel_of(recipe, tokenizer.config)
    made_by = {"tokenizer": fingerprint(tokenizer), "text": _text_fingerprint(text_model)}
    check_agreement({**made_by, "data": preparation(recipe), "shards": shard_samples}, reduce)
    with first_alone(reduce):
        sources = open_speech_splits(data)

    def plan(source: SpeechSource, name: str) -> CachePlan:
        return CachePlan(
            spec=tokenizer.spec,
            num_samples=len(source),
            columns=COLUMNS,
            made_from={
                **made_by,
                "data": source.fingerprint,
                "preparation": json.dumps({"data": preparation(recipe), "mel": config_to_dict(mel)}),
            },
            ragged=True,
            shard_samples=shard_samples or usual_shard(len(source), least=SHARD_UTTERANCES),
        )

    return encode_splits(
        out,
        sources,
        plan=plan,
        make=partial(_encode_shards, SoundCodec(tokenizer), text_model, recipe, mel),
        title=lambda source: f"{source.name} {source.split}",
        batches=lambda shard: 1 + -(-shard.num_samples // ENCODE_BATCH),
    )


def _encode_shards(
    codec: SoundCodec,
    text_model: TextModel,
    recipe: SpeechRecipe,
    mel: MelConfig,
    source: SpeechSource,
    encoding: Encoding,
    shards: list[Shard],
) -> Iterator[int]:
    """Make shards; yields how many recordings every batch had, and how many of a shard were left out."""
    read = front_end(text_model.config.front_end)
    for shard in shards:
        part = source.part(shard.begin, shard.begin + shard.num_samples)
        store = _store(part, recipe, codec.sample_rate_hz, may_be_empty=True)
        spoken = store.spoken(read)
        utterances: dict[int, EncodedUtterance] = {}
        order = store.lengths.argsort(stable=True)  # little padding
        for rows in order.split(ENCODE_BATCH) if len(order) else ():
            utterances |= _encode(codec, text_model, store, spoken, mel, rows)
            yield len(rows)
        parts = [utterances[row] for row in range(len(store))]
        columns: dict[str, Sequence[Any]] = {"texts": [one.text for one in spoken], "speakers": store.speakers}
        columns |= {name: [getattr(one, name) for one in parts] for name in ("tokens", "durations")}
        encoding.write(shard, [one.codes for one in parts], columns)
        yield store.num_left_out


@torch.inference_mode()
def _encode(
    codec: SoundCodec, text_model: TextModel, store: SpeechStore, spoken: list[Spoken], mel: MelConfig, rows: Tensor
) -> dict[int, EncodedUtterance]:
    """Rows of a store, in float32 arithmetic."""
    device = codec.tokenizer.quantizer.codebooks.device
    samples, lengths = (part.to(device) for part in store.batch(rows, multiple=codec.samples_per_position))
    codes, valid = codec.encode(samples, lengths)
    tokens, real = pad_texts([token_ids(spoken[row].content) for row in rows.tolist()])
    counts = valid.sum(1)
    frames = counts * (codec.samples_per_position // mel.hop_size)
    durations = text_model.align(tokens.to(device), real.to(device), log_mel_before_silence(samples, mel), frames)
    utterances = {}
    for place, row in enumerate(rows.tolist()):
        positions, symbols = int(counts[place]), int(real[place].sum())
        utterances[row] = EncodedUtterance(
            codes[place, :positions].cpu(), tokens[place, :symbols], durations[place, :symbols].cpu()
        )
    return utterances


def preparation(recipe: SpeechRecipe) -> dict[str, Any]:
    """How recordings are processed, whatever their source."""
    return config_to_dict(recipe.data) | {"path": None}


def _text_fingerprint(model: TextModel) -> str:
    return sha256_tensor(torch.cat([tensor.flatten().float().cpu() for tensor in module_tensors(model).values()]))


def _stores(recipe: SpeechRecipe, run: Run, rate: int) -> tuple[SpeechStore, SpeechStore, dict[str, Any]]:
    train, held_out = open_speech_splits(run.data_path(recipe))
    about = {"name": train.name, "sha256": train.fingerprint, "preparation": preparation(recipe)}
    return _store(train, recipe, rate), _store(held_out, recipe, rate), about


def _store(source: SpeechSource, recipe: SpeechRecipe, rate: int, *, may_be_empty: bool = False) -> SpeechStore:
    data = recipe.data
    return SpeechStore(
        source,
        rate,
        trim=data.trim,
        loudness_db=data.loudness_db,
        max_seconds=data.max_seconds,
        skip_unreadable=data.skip_unreadable,
        may_be_empty=may_be_empty,
    )
