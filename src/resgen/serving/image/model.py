"""An image model in a server: cheap checks as a request arrives, batches of several requests in the worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from resgen.checkpoints.artefacts import load_pipeline
from resgen.checkpoints.quality import measured
from resgen.data.pictures.decode import pixels
from resgen.data.pictures.grid import from_array, png_bytes
from resgen.errors import ConfigError
from resgen.kinds import AnySampling, sample
from resgen.ops.images import psnr_db
from resgen.pipelines.classes import ClassLike
from resgen.pipelines.image.edit import EditPlan, MaskLike
from resgen.pipelines.image.output import sheet_of
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.pipelines.image.reconstruct import decode_levels
from resgen.samplers.records import StepRecord
from resgen.serving.batching import Ticket, attempt, raise_if_abandoned
from resgen.serving.config import ServerConfig
from resgen.serving.schemas import as_text

DECODED = 64
"""Images that the decoder takes at a time: as many as `ImagePipeline`, whose images are to be the same."""
SAMPLES = 12
"""Most images that show what a model draws."""


class ImageJob(NamedTuple):
    """The images of one request.

    Attributes:
        compute: what computes a batch of such jobs.
        class_ids: the class of each image; 0 for a model without classes.
        seed: image k draws from the stream (seed, k).
        sampling: the same for all jobs of a batch.
        plan: finds what is given of each image, in the worker; None where nothing is.
        blend: take the pixels outside the mask from the image that was given.
        as_sheet: answer one PNG file with all of them, and not one for each.
    """

    compute: Callable[[Sequence[Ticket]], list[Any]]
    class_ids: list[int]
    seed: int
    sampling: AnySampling
    plan: Callable[[], EditPlan] | None = None
    blend: bool = False
    as_sheet: bool = False


class LevelsJob(NamedTuple):
    """An image to be decoded level by level."""

    compute: Callable[[Sequence[Ticket]], list[Any]]
    picture: memoryview


class ServedImages:
    """An image pipeline and what a server says of it.

    Args:
        name: in requests.
        source: folder, bundled name or `owner/model` of the hub.
        config: configuration of the server.
        device: see `ImagePipeline`.
        dtype: see `ImagePipeline`.
    """

    modality = "image"

    def __init__(
        self, name: str, source: str, config: ServerConfig, *, device: str | None = None, dtype: str = "auto"
    ) -> None:
        parts = load_pipeline(source)
        self.name, self.config = name, config
        self.description, self.measured = str(parts.folder.extra.get("description", "")), measured(parts.folder)
        self.pipe = ImagePipeline(parts, device=device, dtype=dtype)

    def describe(self) -> dict[str, Any]:
        """What `GET /v1/models` says of the model."""
        tokenizer, spec = self.pipe.tokenizer.config, self.pipe.generator.spec
        size = tokenizer.image_size
        return {
            "classes": self.pipe.class_names or [str(number) for number in range(self.pipe.num_classes)],
            "axes": [{"name": axis, "classes": names} for axis, names in self.pipe.class_axes.items()],
            "image": {"height": size, "width": size, "channels": tokenizer.channels},
            "sample_rate_hz": None,
            "voices": [],
            "sentences": [],
            "positions": spec.num_positions,
            "levels": spec.depth,
            "measured": self.measured,
            "defaults": dataclasses.asdict(self.pipe.sampling),
        }

    def class_name(self, class_id: int) -> str | None:
        """The name of a class, or its number where classes have no names; None for a model without classes."""
        return self.pipe.class_name(class_id) if self.pipe.num_classes else None

    def images(
        self, class_ids: Sequence[ClassLike] | None, num: int, seed: int, settings: dict[str, Any]
    ) -> tuple[tuple[Any, ...], ImageJob]:
        """The key and job of new images: `num` of each class (of every class without any), next to each other.

        Raises:
            ConfigError: an unknown class, more images than allowed, or a setting out of range.
        """
        pipe = self.pipe
        classes = [pipe.class_id(c) for c in class_ids] if class_ids is not None else range(max(1, pipe.num_classes))
        return self._job([c for c in classes for _ in range(num)], seed, settings)

    def samples(self) -> tuple[tuple[Any, ...], ImageJob]:
        """The key and job of images that show what the model draws, with its own settings and seed 0: one of each
        class, of classes at even distances if there are many."""
        count = min(SAMPLES, self.config.max_samples, self.pipe.num_classes or SAMPLES)
        numbers = [k * self.pipe.num_classes // count for k in range(count)]
        return self._job(numbers, 0, {})

    def edited(
        self,
        picture: memoryview,
        *,
        mask: MaskLike | None,
        keep_levels: int | None,
        class_id: int | str | None,
        num: int,
        seed: int,
        blend: bool,
        settings: dict[str, Any],
    ) -> tuple[tuple[Any, ...], ImageJob]:
        """The key and job of results of an edit, see `ImagePipeline.edit`.

        Raises:
            ConfigError: as `images`. What is wrong with image and mask is found in the worker.
        """
        number = self.pipe.edited_class(class_id)
        key, job = self._job([number or 0] * num, seed, settings)

        def plan() -> EditPlan:
            return self.pipe.plan_edit(picture, mask=mask, keep_levels=keep_levels, blend=blend, resize=True)

        return key, job._replace(plan=plan, blend=blend)

    def levels(self, picture: memoryview) -> tuple[tuple[Any, ...], LevelsJob]:
        """The key and job of an image, decoded level by level."""
        return (self.name, "levels"), LevelsJob(self._decode_levels, picture)

    def answer(self, job: ImageJob, images: list[bytes]) -> dict[str, Any]:
        """The body of an answer, without its time."""
        classes = bool(self.pipe.num_classes)
        return {
            "model": self.name,
            "seed": job.seed,
            "num_steps": getattr(job.sampling, "num_steps", None),
            "guidance_scale": job.sampling.guidance_scale,
            "images": [
                {"class_id": c if classes else None, "class_name": self.class_name(c), "png": as_text(png)}
                for c, png in zip(job.class_ids, images, strict=True)
            ],
        }

    def _job(self, class_ids: list[int], seed: int, settings: dict[str, Any]) -> tuple[tuple[Any, ...], ImageJob]:
        if not 1 <= len(class_ids) <= self.config.max_samples:
            raise ConfigError(f"{len(class_ids)} images were asked for; allowed: 1..{self.config.max_samples}")
        sampling = self.pipe.sampling_with(**settings)
        return (self.name, "images", sampling), ImageJob(self._draw, class_ids, seed, sampling)

    def _draw(self, tickets: Sequence[Ticket]) -> list[Any]:
        """PNG files of every job, or the reason why there are none."""
        plans = [ticket.payload.plan and attempt(ticket.payload.plan) for ticket in tickets]
        jobs: list[ImageJob] = [ticket.payload for ticket in tickets]
        valid = [number for number, plan in enumerate(plans) if not isinstance(plan, Exception)]
        samples = iter(self._sampled([tickets[n] for n in valid], [plans[n] for n in valid]) if valid else ())
        outcomes: list[Any] = []
        for job, plan in zip(jobs, plans, strict=True):
            if isinstance(plan, Exception):
                outcomes.append(plan)
                continue
            # Each request on its own: what the decoder rounds then does not depend on the other requests of the batch.
            codes = next(samples)
            images = [image for part in codes.split(DECODED) for image in self.pipe.decode(part)]
            images = [plan.blend(image) if job.blend else image for image in images]
            outcomes.append(self._sheet(job, images) if job.as_sheet else [png_bytes(image) for image in images])
        return outcomes

    def _sampled(self, tickets: Sequence[Ticket], plans: Sequence[EditPlan | None]) -> list[Tensor]:
        """Codes of the jobs, drawn in one batch."""
        jobs: list[ImageJob] = [ticket.payload for ticket in tickets]
        counts = [len(job.class_ids) for job in jobs]
        start = None
        if any(plan is not None for plan in plans):
            spec = self.pipe.generator.spec
            nothing = torch.zeros(spec.num_positions, spec.depth, dtype=torch.int64)
            parts = [(nothing, nothing[:, 0]) if plan is None else (plan.codes, plan.visible) for plan in plans]
            rows = [part for part, count in zip(parts, counts, strict=True) for _ in range(count)]
            start = (torch.stack([codes for codes, _ in rows]), torch.stack([visible for _, visible in rows]))

        def watch(record: StepRecord, codes: Tensor, visible: Tensor) -> None:
            raise_if_abandoned(tickets)
            parts = zip(tickets, codes.split(counts), visible.split(counts), strict=True)
            for ticket, own_codes, own_visible in parts:
                if ticket.watched:
                    ticket.tell(self._step(record, own_codes, own_visible))

        samples = sample(
            self.pipe.generator,
            torch.tensor([c for job in jobs for c in job.class_ids], device=self.pipe.device),
            seed=[job.seed for job, count in zip(jobs, counts, strict=True) for _ in range(count)],
            indices=[index for count in counts for index in range(count)],
            sampling=jobs[0].sampling,
            start=start,
            callback=watch,
        )
        return list(samples.codes.split(counts))

    def _sheet(self, job: ImageJob, images: list[Image.Image]) -> bytes:
        """One image as it is; several as those of `ImageOutput.sheet`."""
        if len(images) == 1:
            return png_bytes(images[0])
        names = [name for number in job.class_ids if (name := self.class_name(number)) is not None]
        return png_bytes(sheet_of(images, names))

    def _step(self, record: StepRecord, codes: Tensor, visible: Tensor) -> dict[str, Any]:
        images = self.pipe.decode(codes, visible=visible)
        return {
            "event": "step",
            "step": record.step,
            "num_steps": record.num_steps,
            "images": [as_text(png_bytes(image)) for image in images],
            "visible": visible.tolist(),
        }

    def _decode_levels(self, tickets: Sequence[Ticket]) -> list[Any]:
        return [attempt(self._levels_of, ticket.payload.picture) for ticket in tickets]

    def _levels_of(self, picture: memoryview) -> list[dict[str, Any]]:
        config = self.pipe.tokenizer.config
        array = pixels(picture, "the image", config.image_size, config.channels, resize=True)
        source = torch.from_numpy(array.copy())[None].to(self.pipe.device)
        answers = []
        for depth, one in enumerate(decode_levels(self.pipe.tokenizer, source), start=1):
            png = as_text(png_bytes(from_array(one[0].permute(1, 2, 0).cpu().numpy())))
            answers.append({"depth": depth, "png": png, "psnr_db": round(float(psnr_db(one, source)), 4)})
        return answers
