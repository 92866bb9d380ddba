"""Networks whose features are compared: bundled classifiers, folders of classifiers, Inception."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from resgen.checkpoints.classifiers import KIND, load_classifier
from resgen.checkpoints.format import load_folder
from resgen.checkpoints.locate import list_bundled, resolve_model
from resgen.checkpoints.tensors import sha256_file
from resgen.errors import CheckpointError, ConfigError, DataError, unknown
from resgen.evaluation.image.metrics import check_finite
from resgen.evaluation.image.protocol import INCEPTION, INCEPTION_SHA256
from resgen.extras import MissingExtraError
from resgen.ops.images import at_once, from_uint8

WEIGHTS_VARIABLE = "RESGEN_INCEPTION_WEIGHTS"
INCEPTION_FEATURES = 2048
BATCH = 250

Extract = Callable[[Tensor], Tensor | tuple[Tensor, Tensor | None]]


class Features(NamedTuple):
    """Output of an extractor, on the CPU; `logits` is None if it does not classify."""

    features: Float[Tensor, "B F"]
    logits: Float[Tensor, "B classes"] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Extractor:
    """A named function from images to features.

    Attributes:
        name: names the metric.
        sha256: SHA-256 of the weights; empty where they cannot be known, and then nothing is cached.
        num_features: F, width of the features.
        extract: uint8 `[B, C, S, S]` to features, or to features and logits.
        class_names: names of the logits.
        image_size: side of the images it takes; None for any.
        channels: number of channels of the images it takes; None for any.
    """

    name: str
    sha256: str
    num_features: int
    extract: Extract
    class_names: tuple[str, ...] = ()
    image_size: int | None = None
    channels: int | None = None

    def check_pictures(self, image_size: int, channels: int) -> None:
        """Reject images that do not suit the network, before any work.

        Raises:
            ConfigError: naming both shapes.
        """
        if self.image_size not in (None, image_size) or self.channels not in (None, channels):
            raise ConfigError(
                f"extractor '{self.name}' takes images of {self.channels} x {self.image_size} x {self.image_size}, "
                f"not {channels} x {image_size} x {image_size}; take one made for these images"
            )

    @torch.inference_mode()
    def __call__(self, pictures: UInt8[Tensor, "B C S S"]) -> Features:
        """Features and logits of images in 0..255.

        Raises:
            ConfigError: images of another shape than the network's.
            DataError: what comes back is not one row of finite numbers per image.
        """
        self.check_pictures(pictures.shape[-1], pictures.shape[1])
        size = BATCH if self.image_size is None else at_once(self.image_size, BATCH)
        parts = [self._part(part) for part in pictures.split(size)]
        logits = [part.logits for part in parts if part.logits is not None]
        return Features(torch.cat([part.features for part in parts]), torch.cat(logits) if logits else None)

    def _part(self, pictures: Tensor) -> Features:
        result = self.extract(pictures)
        features, logits = result if isinstance(result, tuple) else (result, None)
        shape = (len(pictures), self.num_features)
        if tuple(features.shape) != shape:
            raise DataError(
                f"extractor '{self.name}' gave features of shape {tuple(features.shape)} for {len(pictures)} images; "
                f"{shape} is expected"
            )
        check_finite(features, f"features of extractor '{self.name}'")
        if logits is not None:
            check_finite(logits, f"logits of extractor '{self.name}'")
            logits = logits.float().cpu()
        return Features(features.float().cpu(), logits)


def load_extractor(
    name_or_path: str | Path, device: str | torch.device = "cpu", *, expected_sha256: str | None = None
) -> Extractor:
    """An extractor by name or path.

    Args:
        name_or_path: a bundled classifier, the folder of a classifier, `inception`, or the file of the standard
            Inception weights (for `inception` their file may be named by the variable RESGEN_INCEPTION_WEIGHTS;
            otherwise torch-fidelity downloads it).
        device: where to compute.
        expected_sha256: SHA-256 of the weights, or its first digits (8 or more).

    Raises:
        CheckpointError: nothing there, something else, damaged, or of another hash.
        ConfigError: a hash or a name that is not allowed.
        MissingExtraError: torch-fidelity is needed and not installed.
    """
    if expected_sha256 is not None and len(expected_sha256) < 8:
        raise ConfigError(f"expected_sha256='{expected_sha256}' must have at least 8 hexadecimal digits")
    path = Path(name_or_path)
    if str(name_or_path) == INCEPTION or path.is_file():
        extractor = _inception(path if path.is_file() else None, torch.device(device), expected_sha256)
    else:
        extractor = _classifier(name_or_path, torch.device(device))
    _check_hash(str(name_or_path), extractor.sha256, expected_sha256)
    return extractor


def bundled_classifiers() -> list[str]:
    """Names of the classifiers that come with the package."""
    return [name for name in list_bundled() if load_folder(resolve_model(name), verify=False).kind == KIND]


def default_extractor(class_names: Sequence[str], image_size: int, channels: int) -> str:
    """The bundled classifier that knows these classes at this size.

    Raises:
        ConfigError: there is none.
    """
    for name in bundled_classifiers():
        folder = load_folder(resolve_model(name), verify=False)
        config = folder.component(KIND).config
        shape = (config.get("image_size"), config.get("channels"))
        if folder.extra.get("class_names") == list(class_names) and shape == (image_size, channels):
            return name
    raise ConfigError(
        f"no bundled extractor knows these {len(class_names)} classes at {channels} x {image_size} x {image_size}; "
        f"train one with `python tools/train_classifier.py --data DATA --image-size {image_size} --channels {channels} "
        "--max-minutes 5 --out runs/judge` in a clone of the repository and give it with --extractor runs/judge, or "
        f"give another one: {', '.join([*bundled_classifiers(), INCEPTION])}"
    )


def _classifier(name_or_path: str | Path, device: torch.device) -> Extractor:
    try:
        folder_path = resolve_model(name_or_path)
    except CheckpointError as error:
        allowed = [*bundled_classifiers(), INCEPTION]
        raise CheckpointError(
            f"{unknown('extractor', name_or_path, allowed)}, the folder of a classifier, or the file of the standard "
            "Inception weights"
        ) from error
    kind = load_folder(folder_path, verify=False).kind
    if kind != KIND:
        raise CheckpointError(f"'{folder_path}' holds a {kind}; an extractor is a {KIND}")
    model, folder = load_classifier(folder_path)
    model = model.to(device)
    config, saved = model.config, folder.component(KIND)

    def extract(pictures: Tensor) -> tuple[Tensor, Tensor]:
        # In float32 everywhere: with bfloat16, where there is hardware for it, numbers would depend on the machine.
        features = model.features(from_uint8(pictures.to(device)))
        return features, model.out(features)

    name = folder_path.parent.name if folder_path.name == "model" else folder_path.resolve().name
    return Extractor(
        name=_check_name(name),
        sha256=saved.sha256,
        num_features=model.out.in_features,
        extract=extract,
        class_names=tuple(str(c) for c in folder.extra.get("class_names", ())),
        image_size=config.image_size,
        channels=config.channels,
    )


def _inception(path: Path | None, device: torch.device, expected_sha256: str | None) -> Extractor:
    """The standard Inception network; its weights are read only if their hash is the known one."""
    from_environment = os.environ.get(WEIGHTS_VARIABLE)
    if path is None and from_environment:
        path = Path(from_environment)
    if path is not None:
        sha256 = sha256_file(path)
        _check_hash(str(path), sha256, expected_sha256)
        _check_hash(f"the standard Inception weights in '{path}'", sha256, INCEPTION_SHA256)
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError as error:
        raise MissingExtraError("torch-fidelity", "fid") from error
    if path is None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=INCEPTION_SHA256)
            except (OSError, RuntimeError) as error:
                raise CheckpointError(
                    f"'{path}' is missing and {URL_INCEPTION_V3} cannot be downloaded; get the file and name it with "
                    f"--extractor FILE or {WEIGHTS_VARIABLE}"
                ) from error
        sha256 = sha256_file(path)
        _check_hash(f"the standard Inception weights in '{path}'", sha256, INCEPTION_SHA256)
    network = FeatureExtractorInceptionV3(INCEPTION, [str(INCEPTION_FEATURES), "logits_unbiased"], str(path))
    network = network.to(device).eval()

    def extract(pictures: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(pictures.to(device).expand(-1, 3, -1, -1))
        return features, logits

    return Extractor(name=INCEPTION, sha256=sha256, num_features=INCEPTION_FEATURES, extract=extract)


def _check_name(name: str) -> str:
    if not name or name.lower() in (INCEPTION, "fid"):
        raise ConfigError(
            f"name='{name}' of an extractor must not be empty or '{INCEPTION}', which is the standard network; "
            "give it another name"
        )
    return name


def _check_hash(where: str, actual: str, expected: str | None) -> None:
    if expected is not None and not actual.startswith(expected.lower()):
        raise CheckpointError(
            f"extractor '{where}': its weights have SHA-256 {actual[:12]}..., expected is {expected[:12]}...; "
            "take the file that the protocol was made with"
        )
