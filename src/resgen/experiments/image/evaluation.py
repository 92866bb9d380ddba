"""`resgen evaluate` for images: a generator or a tokenizer under a protocol, its own or that of another report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resgen.checkpoints.artefacts import load_tokenizer
from resgen.config import config_from_dict, config_to_dict
from resgen.devices import choose_device
from resgen.errors import ConfigError
from resgen.evaluation.image.checks import generation_protocol, reconstruction_protocol
from resgen.evaluation.image.evaluate import Subject, evaluate_generation, evaluate_reconstruction, folder_sha256
from resgen.evaluation.image.extractors import Extractor, default_extractor, load_extractor
from resgen.evaluation.image.protocol import EvaluationProtocol, check_comparable, load_protocol
from resgen.evaluation.image.reference import Reference, choose_split, open_reference
from resgen.evaluation.image.report import EvaluationReport
from resgen.experiments.image.judge import samples_of, sampling_of, sha256_of
from resgen.ops.images import from_uint8, to_uint8
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.progress import Advance

NUM_SAMPLES = 10_000
OF_GENERATION = ("class_balance", "steps", "guidance_scale", "seed", "dtype")
OF_PROTOCOL = ("split", "num_samples", *OF_GENERATION)
MEASURES = ("kid_subsets", "kid_subset_size", "is_splits", "pr_k", "manifold_size", "bootstrap")


@dataclass(frozen=True, kw_only=True)
class PictureEvaluation:
    """An evaluation of an image model or tokenizer; the fields are the options of `resgen evaluate`.

    Raises:
        ConfigError: an option that a tokenizer does not have, or that the protocol names.
    """

    model: str | None = None
    tokenizer: str | None = None
    data: str
    split: str | None = None
    protocol: Path | None = None
    extractor: str | None = None
    extractor_sha256: str | None = None
    num_samples: int | None = None
    class_balance: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: tuple[int, ...] = ()
    batch_size: int = 100
    resize: bool = False
    dtype: str | None = None
    device: str | None = None
    cache: Path | None = None
    out: Path
    command: str = ""

    def __post_init__(self) -> None:
        for name in OF_GENERATION if self.tokenizer is not None else ():
            self._refuse(name, "is of generated images; leave it out with --tokenizer")
        for name in OF_PROTOCOL if self.protocol is not None else ():
            self._refuse(name, f"is named by the protocol '{self.protocol}'; leave it out")

    def _refuse(self, name: str, why: str) -> None:
        value = getattr(self, name)
        if value is not None and value != ():
            raise ConfigError(f"--{name.replace('_', '-')} {value} {why}")

    def run(self, advance: Advance) -> EvaluationReport:
        """Measure generated images with and without guidance, or reconstructions.

        Raises:
            ConfigError: a value out of range, or a protocol for something else.
        """
        if self.model is not None:
            return self._generation(self.model, advance)
        assert self.tokenizer is not None
        return self._reconstruction(self.tokenizer, advance)

    def _generation(self, model: str, advance: Advance) -> EvaluationReport:
        template = self._template("generation")
        dtype = template.sampling.get("dtype", "auto") if template else self.dtype or "auto"
        pipe = ImagePipeline.from_pretrained(model, device=self.device, dtype=dtype)
        sampling = pipe.sampling_with(num_steps=self.steps, guidance_scale=self.guidance_scale)
        if template:  # a setting that is younger than the report had its default
            settings = {name: value for name, value in template.sampling.items() if name != "dtype"}
            sampling = config_from_dict(type(pipe.sampling), settings, where="protocol.sampling.")
            template = replace(template, sampling={**config_to_dict(sampling), **template.sampling})
        reference = self._reference(template, "train", pipe.tokenizer.config.image_size, pipe.tokenizer.config.channels)
        reference.check_classes(pipe.class_names, pipe.num_classes)
        balance = (self.class_balance or "equal") if pipe.num_classes else "none"
        extractor = self._extractor(template, reference, str(pipe.device))
        protocol = generation_protocol(
            extractor,
            reference,
            num_samples=template.num_samples if template else self.num_samples or NUM_SAMPLES,
            sampling=sampling_of(pipe, sampling),
            class_balance=template.class_balance if template and pipe.num_classes else balance,
            seeds=template.seeds if template else self.seed or (0,),
            **_measures(template),
        )
        if template:
            check_comparable(template, protocol)
        return evaluate_generation(
            samples_of(pipe, sampling, self.batch_size),
            protocol,
            extractor,
            reference,
            self._subject(model, sha256_of(model), pipe.device),
            cache_dir=self._cache_dir,
            chunk_size=max(100, self.batch_size),  # the progress is told after each
            advance=advance,
        )

    def _reconstruction(self, name: str, advance: Advance) -> EvaluationReport:
        template = self._template("reconstruction")
        tokenizer, folder = load_tokenizer(name)
        device = choose_device(self.device or "auto")
        tokenizer = tokenizer.to(device)
        reference = self._reference(template, "test", tokenizer.config.image_size, tokenizer.config.channels)
        extractor = self._extractor(template, reference, str(device))
        num_samples = template.num_samples if template else self.num_samples
        protocol = reconstruction_protocol(extractor, reference, num_samples=num_samples, **_measures(template))
        if template:
            check_comparable(template, protocol)

        @torch.inference_mode()
        def reconstruct(pictures: Tensor) -> tuple[Tensor, Tensor | None]:
            outputs, codes = [], []
            for part in pictures.split(self.batch_size):
                codes.append(tokenizer.encode(from_uint8(part.to(device))))
                outputs.append(to_uint8(tokenizer.decode(codes[-1])).cpu())
            return torch.cat(outputs), torch.cat(codes).cpu()

        return evaluate_reconstruction(
            reconstruct,
            protocol,
            extractor,
            reference,
            self._subject(name, folder_sha256(folder, "tokenizer"), device),
            codebook_size=tokenizer.spec.codebook_size,
            cache_dir=self._cache_dir,
            advance=advance,
        )

    @property
    def _cache_dir(self) -> Path:
        return self.cache or self.out.parent / "evaluation-cache"

    def _subject(self, name: str, sha256: str, device: torch.device) -> Subject:
        return Subject(name=name, sha256=sha256, command=self.command, environment={"device": str(device)})

    def _template(self, purpose: str) -> EvaluationProtocol | None:
        """The protocol of `--protocol`."""
        if self.protocol is None:
            return None
        protocol = load_protocol(self.protocol)
        if protocol.purpose != purpose:
            raise ConfigError(
                f"--protocol '{self.protocol}' is for {protocol.purpose}, and "
                f"--{'model' if self.model else 'tokenizer'} asks for {purpose}: their numbers cannot be compared"
            )
        return protocol

    def _reference(self, template: EvaluationProtocol | None, usual: str, size: int, channels: int) -> Reference:
        split = template.reference_split if template else self.split or choose_split(self.data, usual)
        resize = template.resize != "none" if template else self.resize
        return open_reference(self.data, split=split, image_size=size, channels=channels, resize=resize)

    def _extractor(self, template: EvaluationProtocol | None, reference: Reference, device: str) -> Extractor:
        name = self.extractor or (template.extractor if template else None)
        shape = reference.image_size, reference.channels
        if name is None:
            name = default_extractor(reference.class_names, *shape)
        expected = self.extractor_sha256 or (template.extractor_sha256 if template else None)
        extractor = load_extractor(name, device, expected_sha256=expected)
        extractor.check_pictures(*shape)
        if template and extractor.sha256 == template.extractor_sha256:  # the same network in a folder of another name
            return replace(extractor, name=template.extractor)
        return extractor


def _measures(template: EvaluationProtocol | None) -> dict[str, Any]:
    """The definitions of the measures that a protocol names."""
    return {name: getattr(template, name) for name in MEASURES} if template else {}
