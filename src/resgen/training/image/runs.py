"""The two training stages and the encoding between them, from a recipe and paths to folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from resgen.checkpoints.artefacts import fingerprint, load_tokenizer
from resgen.checkpoints.classifiers import load_classifier
from resgen.checkpoints.format import Folder
from resgen.checkpoints.locate import resolve_model
from resgen.data.announce import announce
from resgen.data.codes.cache import CachePlan, CodeCache, Shard, usual_shard
from resgen.data.codes.encoding import Encoding
from resgen.data.labels import axis_columns
from resgen.data.pictures.sources import ImageSource, available_splits, open_images, readable
from resgen.data.pictures.store import MAX_BYTES_IN_MEMORY, PictureStore
from resgen.data.splits import held_out_split, training_split
from resgen.devices import choose_device
from resgen.errors import ConfigError, DataError
from resgen.losses.perceptual import ClassifierPerceptualLoss, PerceptualLoss, VGGPerceptualLoss
from resgen.nn.seeding import seeded
from resgen.nn.size import build_within_memory
from resgen.ops.images import at_once, from_uint8
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from resgen.training.agreement import check_agreement
from resgen.training.classes import train_classes
from resgen.training.encoding import encode_splits, is_encoded, open_encoded
from resgen.training.generator_task import Evaluate
from resgen.training.image.product import save_sheet
from resgen.training.image.recipe import Recipe
from resgen.training.image.tokenizer_task import TokenizerLossConfig, TokenizerTask
from resgen.training.initial import check_init, start_from
from resgen.training.parallel import first_alone, initialise
from resgen.training.stages import CODE_FOLDERS, Job, Run, run_stage

HELD_OUT_EVERY = 20
MAX_HELD_OUT = 5000
MAX_VALIDATED = 1000
"""Held-out images on which a tokenizer is validated."""
SHARD_SAMPLES = 1 << 14
"""Samples per shard by default; their codes are in memory at a time."""
ENCODE_BATCH = 256


def train_tokenizer(recipe: Recipe, run: Run) -> dict[str, float]:
    """Stage 1: train a tokenizer on images and write `out/model`; returns the final metrics."""

    def prepare() -> Job:
        check_init(recipe.tokenizer_loss.decoder_only, run.init)
        with first_alone(initialise()):  # who finds indices of shards there that the first has built
            splits = open_splits(run.data_path(recipe), recipe.data.class_columns)
        data = recipe.data
        train, held_out = _readable(recipe.tokenizer, splits, data.resize, data.skip_unreadable)
        validated = held_out.subset(np.arange(min(len(held_out), MAX_VALIDATED)))
        with seeded(recipe.tokenizer_training.seed, "tokenizer"):
            tokenizer = build_within_memory(lambda: ImageTokenizer(recipe.tokenizer), "the tokenizer")
            if run.init is not None:
                start_from(tokenizer, run.init, "tokenizer")
            task = TokenizerTask(
                tokenizer,
                recipe.tokenizer_loss,
                _store(tokenizer, train, recipe.data.resize),
                _store(tokenizer, validated, recipe.data.resize).batch(torch.arange(len(validated))),
                class_names=train.class_names,
                perceptual=_perceptual(recipe.tokenizer_loss, recipe.tokenizer.channels),
            )
        about = {"name": train.name, "sha256": train.fingerprint, "resize": recipe.data.resize}
        return Job(task, about, {"tokenizer": recipe.tokenizer, "tokenizer_loss": recipe.tokenizer_loss})

    return run_stage("tokenizer", recipe, run, prepare)


def train_generator(
    recipe: Recipe, run: Run, evaluator: Callable[[ImageTokenizer], Evaluate] | None = None
) -> dict[str, float]:
    """Stage 2: train a generator on codes and write the pipeline `out/model`; returns the final metrics.

    Args:
        recipe: all settings; the shape of the codes is the tokenizer's.
        run: with the model `tokenizer`. Its data are images, encoded into `out/codes` first, or a folder that
            `encode_data` wrote. Classes of `init` are known by their names; others start from scratch.
        evaluator: makes, for the tokenizer, what is called every `evaluate_every` steps.
    """

    def encoded(tokenizer: ImageTokenizer, folder: Folder) -> tuple[CodeCache, CodeCache]:
        path, data = run.data_path(recipe), recipe.data
        made_by = folder.record("tokenizer").get("config", {}).get("recipe")
        ours, its = ((one.image_size, one.channels) for one in (recipe.tokenizer, tokenizer.config))
        if ours != its:
            announce(
                f"tokenizer '{run.models['tokenizer']}' was made by recipe '{made_by}' for images of "
                f"{its[0]}x{its[0]} with {its[1]} channel(s); those of recipe '{recipe.name}' have {ours[0]}x{ours[0]} "
                f"with {ours[1]}"
            )
        if is_encoded(path):
            caches = open_encoded(path, "labels")
            axes = axis_columns(data.class_columns)
            if axes and list(axes) != [axis for axis, _ in caches[0].plan.class_axes]:
                raise DataError(
                    f"data.class_columns={list(data.class_columns)}, but the codes in '{path}' were made with "
                    f"{[axis for axis, _ in caches[0].plan.class_axes]}; encode again, or leave the setting out"
                )
            return caches
        return encode_data(
            tokenizer,
            path,
            Path(run.out) / "codes",
            flip=data.flip,
            resize=data.resize,
            skip_unreadable=data.skip_unreadable,
            class_columns=data.class_columns,
            device=recipe.generator_training.device,
        )

    return train_classes(
        recipe, run, tokenizers=(ImageTokenizer,), encoded=encoded, show=save_sheet, evaluator=evaluator
    )


def encode_data(
    tokenizer: ImageTokenizer | str | Path,
    data: str | Path,
    out: str | Path,
    *,
    flip: bool = False,
    resize: bool = False,
    skip_unreadable: bool = False,
    class_columns: Sequence[str] = (),
    device: str = "auto",
    shard_samples: int | None = None,
) -> tuple[CodeCache, CodeCache]:
    """Encode images; see `encode_splits`.

    Args:
        tokenizer: a tokenizer, or the folder of one (or a bundled model).
        data: images, as `open_images` takes them.
        out: folder for the two caches.
        flip: store every training image mirrored as well.
        resize: cut out and resize images of another size.
        skip_unreadable: leave out images that cannot be read; every process then decodes all, once more.
        class_columns: as `open_images` takes them.
        device: `auto`, `cpu` or `cuda`.
        shard_samples: the most samples of a file; by default `usual_shard`. What is there keeps its division.
    """
    reduce = initialise()  # chooses the GPU of this process
    if not isinstance(tokenizer, ImageTokenizer):
        tokenizer, _ = load_tokenizer(tokenizer)
    tokenizer.to(choose_device(device))
    check_agreement(
        {"tokenizer": fingerprint(tokenizer), "flip": flip, "resize": resize, "shards": shard_samples}, reduce
    )
    with first_alone(reduce):
        sources = open_splits(data, class_columns)
    if skip_unreadable:
        sources = _readable(tokenizer.config, sources, resize, True)

    def plan(source: ImageSource, name: str) -> CachePlan:
        versions = 2 if flip and name == CODE_FOLDERS[0] else 1
        return CachePlan(
            spec=tokenizer.spec,
            num_samples=len(source),
            versions=versions,
            columns={"labels": "number"},
            class_names=tuple(source.class_names),
            class_axes=tuple(source.class_axes.items()),
            made_from={"tokenizer": fingerprint(tokenizer), "data": source.fingerprint},
            shard_samples=shard_samples or usual_shard(len(source), versions, least=SHARD_SAMPLES),
        )

    return encode_splits(
        out,
        sources,
        plan=plan,
        make=partial(_encode_shards, tokenizer, resize),
        title=lambda source: source.name,
        batches=lambda shard: -(-shard.num_samples // at_once(tokenizer.config.image_size, ENCODE_BATCH)),
    )


def open_splits(data: str | Path, class_columns: Sequence[str] = ()) -> tuple[ImageSource, ImageSource]:
    """Training and held-out images: the data's own splits, or every 20th image held out (5,000 at most).

    Arguments are those of `open_images`.

    Raises:
        DataError: the data has no split `train`, or only one image.
    """
    splits = available_splits(data)
    source = open_images(data, split=training_split(splits, data), class_columns=class_columns)
    if name := held_out_split(splits):
        return source, open_images(data, split=name, class_columns=class_columns)
    if len(source) < 2:
        raise DataError(f"'{data}' holds {len(source)} image; at least 2 are needed, one of them for validation")
    every = max(min(HELD_OUT_EVERY, len(source)), -(-len(source) // MAX_HELD_OUT))
    held_out = np.arange(len(source)) % every == every - 1
    announce(f"data '{source.name}' has no held-out split: {held_out.sum()} images (every {every}th) are held out")
    return source.subset(np.flatnonzero(~held_out)), source.subset(np.flatnonzero(held_out))


def _readable(
    config: ImageTokenizerConfig, sources: tuple[ImageSource, ImageSource], resize: bool, skip: bool
) -> tuple[ImageSource, ImageSource]:
    """Images without those that cannot be read or, if these are not to be skipped, all; of data that fits into
    memory, the store sees to that."""
    size, channels = config.image_size, config.channels
    train, held_out = (
        readable(source, size=size, channels=channels, resize=resize, skip=skip)
        if skip or len(source) * channels * size * size > MAX_BYTES_IN_MEMORY
        else source
        for source in sources
    )
    return train, held_out


@torch.inference_mode()
def _encode_shards(
    tokenizer: ImageTokenizer, resize: bool, source: ImageSource, encoding: Encoding, shards: list[Shard]
) -> Iterator[int]:
    """Make shards, in float32 arithmetic: version 0 as it is, version 1 mirrored. Yields the size of every batch."""
    if not shards:
        return
    device = tokenizer.quantizer.codebooks.device
    # Who makes a part only does not decode all images first.
    memory = MAX_BYTES_IN_MEMORY if len(shards) == len(encoding.plan.shards) else 0
    store = _store(tokenizer, source, resize, memory)
    size = at_once(tokenizer.config.image_size, ENCODE_BATCH)
    for shard in shards:
        version, first = divmod(shard.begin, encoding.plan.num_samples)
        codes = []
        parts = torch.arange(first, first + shard.num_samples).split(size)
        for rows, following in zip(parts, [*parts[1:], parts[-1][:0]], strict=True):
            store.prefetch(torch.cat([rows, following]))
            images = from_uint8(store.batch(rows).to(device))
            codes.append(tokenizer.encode(images.flip(-1) if version else images).int().cpu())
            yield len(rows)
        labels = source.labels[first : first + shard.num_samples].tolist()
        encoding.write(shard, torch.cat(codes), {"labels": labels})


def _perceptual(config: TokenizerLossConfig, channels: int) -> PerceptualLoss | None:
    if config.perceptual_file and Path(config.perceptual_file).is_file():
        return VGGPerceptualLoss(config.perceptual_file)
    if config.perceptual_file:
        classifier, _ = load_classifier(resolve_model(config.perceptual_file))
        if classifier.config.channels != channels:
            raise ConfigError(
                f"classifier '{config.perceptual_file}' takes images of {classifier.config.channels} channels, not "
                f"{channels}; set tokenizer_loss.perceptual_file to one made for these images"
            )
        return ClassifierPerceptualLoss(classifier)
    if config.perceptual_weight > 0:
        announce(
            "perceptual loss: off (no weights; set tokenizer_loss.perceptual_file to a safetensors file with VGG-16 "
            "or the folder of a classifier)"
        )
    return None


def _store(
    tokenizer: ImageTokenizer, source: ImageSource, resize: bool, max_bytes: int = MAX_BYTES_IN_MEMORY
) -> PictureStore:
    config = tokenizer.config
    return PictureStore(source, size=config.image_size, channels=config.channels, resize=resize, max_bytes=max_bytes)
