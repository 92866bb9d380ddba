"""Routes of images: new ones, as a stream of steps, edited, and decoded level by level."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from resgen.errors import ConfigError
from resgen.pipelines.image.edit import Box
from resgen.serving import schemas
from resgen.serving.image.model import ImageJob, ServedImages
from resgen.serving.routes import (
    BODILESS,
    JSON,
    LINES,
    WORK,
    Routes,
    as_file,
    as_json,
    as_lines,
    binary,
    documented,
    preferred,
    seconds_of,
    seed_of,
)
from resgen.serving.service import Service
from resgen.serving.uploads import check_picture, read_form

PNG = "image/png"
EDIT_FILES, LEVELS_FILES = {"image": True, "mask": False}, {"image": True}
"""Files of the forms, and whether they must be there."""


class ImageRoutes(Routes):
    """Routes of images."""

    served = ServedImages

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        edit = schemas.form_schema(schemas.EditForm, EDIT_FILES)
        levels = schemas.form_schema(schemas.LevelsForm, LEVELS_FILES)
        pictures, post = documented(schemas.ImagesAnswer, *WORK, 406, content=binary(PNG)), self.router.post
        self.router.get("/images/samples", **documented(schemas.ImagesAnswer, *BODILESS))(self.samples)
        post("/images", **pictures)(self.images)
        post("/images/stream", **documented(None, *WORK, **LINES))(self.stream)
        post("/images/edit", **pictures, openapi_extra=edit)(self.edit)
        post("/images/levels", **documented(schemas.LevelsAnswer, *WORK), openapi_extra=levels)(self.levels)

    def job(self, body: schemas.ImagesRequest) -> tuple[ServedImages, tuple[Any, ...], ImageJob]:
        """The model that a request means, and the key and job of its images."""
        model = self.service.find(body.model, ServedImages)
        return model, *model.images(body.class_ids, body.num_samples, seed_of(body), self.settings(body))

    async def images(self, request: Request, body: schemas.ImagesRequest) -> Response:
        """New images; the same seed gives the same images."""
        return await self.pictures(request, *self.job(body))

    async def samples(self, model: schemas.ModelName = None) -> Response:
        """Samples with the model's default settings, generated once on the first request."""
        found = self.service.find(model, ServedImages)

        async def draw() -> Response:
            key, job = found.samples()
            ticket = self.batcher.submit(key, job, size=len(job.class_ids))
            return as_json({**found.answer(job, await self.service.result(ticket)), "seconds": seconds_of(ticket)})

        return await self.once(found.name, draw)

    async def pictures(self, request: Request, model: ServedImages, key: Any, job: ImageJob) -> Response:
        """Images as JSON, or as one PNG file where the client asks for that: several are then a sheet."""
        if preferred(request, (JSON, PNG)) == JSON:
            return await self.answer(request, model, key, job, len(job.class_ids))
        ticket = self.batcher.submit(key, job._replace(as_sheet=True), size=len(job.class_ids))
        return as_file(await self.result(request, ticket), PNG, job.seed)

    async def stream(self, body: schemas.ImagesRequest) -> Response:
        """New images, step by step: a `step` with images and visible levels after every sampling step, then `done` or
        `error`."""
        model, key, job = self.job(body)
        ticket, steps = self.follow(key, job, size=len(job.class_ids))
        return as_lines(steps, lambda: {**model.answer(job, ticket.future.result()), "seconds": seconds_of(ticket)})

    async def edit(self, request: Request) -> Response:
        """Regenerate part of an image, or its finer levels."""
        form, files = await read_form(request, schemas.EditForm, EDIT_FILES)
        model = self.service.find(form.model, ServedImages)
        for name, content in files.items():
            check_picture(content, f"the {name}", self.config.max_pixels)
        box = None if form.box is None else Box.parse(form.box)
        if form.box is not None and (box is None or "mask" in files):
            raise ConfigError("box must be x0,y0,x1,y1, and comes in place of a mask")
        key, job = model.edited(
            files["image"],
            mask=files.get("mask", box),
            keep_levels=form.keep_levels,
            class_id=form.class_id,
            num=form.num_samples,
            seed=seed_of(form),
            blend=form.blend,
            settings=self.settings(form),
        )
        return await self.pictures(request, model, key, job)

    async def levels(self, request: Request) -> Response:
        """An image decoded from its first level, its first two, ... and all, with the distance from the original."""
        form, files = await read_form(request, schemas.LevelsForm, LEVELS_FILES)
        model = self.service.find(form.model, ServedImages)
        check_picture(files["image"], "the image", self.config.max_pixels)
        ticket = self.batcher.submit(*model.levels(files["image"]))
        return as_json({"levels": await self.result(request, ticket)})
