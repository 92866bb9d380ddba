"""The route of speech: a text in the voice of a prompt."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

from resgen.errors import DataError
from resgen.serving import schemas
from resgen.serving.routes import WORK, Routes, documented, seed_of
from resgen.serving.service import Service
from resgen.serving.speech.model import ServedSpeech
from resgen.serving.uploads import check_sound, read_form

FILES = {"prompt": False}


class SpeechRoutes(Routes):
    """Routes of speech."""

    served = ServedSpeech

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        form = schemas.form_schema(schemas.SpeechForm, FILES)
        self.router.post("/speech", **documented(schemas.SpeechAnswer, *WORK), openapi_extra=form)(self.speech)

    async def speech(self, request: Request) -> Response:
        """A text spoken, in the voice of a prompt if there is one."""
        form, files = await read_form(request, schemas.SpeechForm, FILES)
        model = self.service.find(form.model, ServedSpeech)
        for text in (form.text, form.prompt_text or ""):
            if len(text) > self.config.max_text:
                raise DataError(f"a text has {len(text)} characters; at most {self.config.max_text} are allowed")
        if "prompt" in files:
            check_sound(files["prompt"], "the prompt")
        key, job = model.spoken(
            form.text,
            prompt=files.get("prompt"),
            prompt_text=form.prompt_text,
            speed=form.speed,
            seed=seed_of(form),
            settings=self.settings(form),
        )
        return await self.answer(request, model, key, job)
