"""Routes of speech: a text in the voice of a prompt, a recording with other words, and the route that OpenAI's clients
know."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import Response, StreamingResponse

from resgen.data.sound.decode import wav_header
from resgen.errors import DataError
from resgen.serving import schemas
from resgen.serving.gate import CutShortError, log_defect
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
    headers_of,
    preferred,
    seconds_of,
    seed_of,
    unless_gone,
)
from resgen.serving.service import Service
from resgen.serving.speech.edit import SpeechEditJob, SpeechEdits
from resgen.serving.speech.model import ServedSpeech, SpeechJob
from resgen.serving.uploads import Form, check_sound, media_type, read_form, read_json

FILES, EDIT_FILES = {"prompt": False}, {"recording": True}
WAV, PCM = "audio/wav", "audio/pcm"
SUFFIXES = {"audio/flac": ".flac", "audio/mpeg": ".mp3", "audio/ogg": ".opus"}
"""Of files whose answer waits for the whole sound."""
OPENAI = {"wav": WAV, "pcm": PCM, "flac": "audio/flac", "mp3": "audio/mpeg", "opus": "audio/ogg"}
"""Media types by OpenAI's names."""
OPENAI_PCM_HZ = 24_000


class SpeechRoutes(Routes):
    """Routes of speech."""

    served = ServedSpeech

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        form = schemas.form_schema(schemas.SpeechForm, FILES, schemas.SpeechBody)
        answers = documented(schemas.SpeechAnswer, *WORK, 406, content=binary(WAV, *SUFFIXES))
        files = binary(*OPENAI.values())
        steps = documented(None, *WORK, **LINES)
        sounds = documented(None, *WORK, error=schemas.OpenAIError, description="A sound.", content=files)
        self.router.get("/voices", **documented(schemas.VoicesAnswer, 401, 404, 422, 503))(self.voices)
        self.router.get("/speech/samples", **documented(schemas.SpokenSamples, *BODILESS))(self.samples)
        self.router.post("/speech", **answers, openapi_extra=form)(self.speech)
        self.router.post("/speech/stream", **steps, openapi_extra=form)(self.stream)
        edit = schemas.form_schema(schemas.SpeechEditForm, EDIT_FILES, schemas.SpeechEditBody)
        edited = documented(schemas.SpeechEditAnswer, *WORK, 406, content=binary(WAV, *SUFFIXES))
        self.router.post("/speech/edit", **edited, openapi_extra=edit)(self.edit)
        self.router.post("/speech/edit/stream", **steps, openapi_extra=edit)(self.edit_stream)
        self.router.post("/audio/speech", **sounds)(self.openai)

    async def voices(self, model: schemas.ModelName = None) -> Response:
        """The named voices of a model, with their recordings."""
        return as_json({"voices": self.service.find(model, ServedSpeech).voices()})

    async def samples(self, model: schemas.ModelName = None) -> Response:
        """Sample sentences, generated once on the first request."""
        found = self.service.find(model, ServedSpeech)

        async def speak() -> Response:
            answers = []
            for voice, key, job in found.samples():
                ticket = self.batcher.submit(key, job)
                answer = found.answer(job, await self.service.result(ticket))
                answers.append({**answer, "text": job.text, "voice": voice, "seconds": seconds_of(ticket)})
            return as_json({"samples": answers})

        return await self.once(found.name, speak)

    async def speech(self, request: Request) -> Response:
        """Speak a text, in the voice of a prompt if there is one: JSON, or a sound of the type in the Accept header."""
        answer = preferred(request, (JSON, WAV, *SUFFIXES))
        model, key, job = await self.job(request)
        if answer == JSON:
            return await self.answer(request, model, key, job)
        return await self.sound(request, model, key, job, answer)

    async def stream(self, request: Request) -> Response:
        """Speak a text, step by step: a `step` with spectrogram and visible levels, a `sound` with the samples of each
        sentence (16 bits, mono, at the rate in the last line), then `done` or `error`."""
        model, key, job = await self.job(request)
        key, job = model.stepwise(key, job)
        return await self.lines(request, model, key, job)

    async def edit(self, request: Request) -> Response:
        """Replace words of a recording and keep the rest: JSON, or a sound of the type in the Accept header."""
        answer = preferred(request, (JSON, WAV, *SUFFIXES))
        model, key, job = await self.edit_job(request)
        if answer == JSON:
            return await self.answer(request, model, key, job)
        suffix = {WAV: ".wav", **SUFFIXES}[answer]
        content = await self.result(request, self.batcher.submit(key, replace(job, suffix=suffix)))
        return as_file(content, answer, job.seed, job.warnings)

    async def edit_stream(self, request: Request) -> Response:
        """Replace words of a recording, step by step: the `plan` with the words of the recording and its spectrogram,
        every `step`, the whole `sound` (16 bits, mono, at the rate in the last line), then `done` or `error`."""
        model, key, job = await self.edit_job(request)
        return await self.lines(request, model, key, replace(job, stepwise=True))

    async def lines(self, request: Request, model: Any, key: Any, job: Any) -> Response:
        """What is told of a job, one JSON document a line."""
        ticket, events = self.follow(key, job)
        first = await unless_gone(request, anext(events))  # what is wrong is told before it, with a status

        async def all_events() -> AsyncGenerator[Any, None]:
            async with contextlib.aclosing(events):
                yield first
                async for event in events:
                    yield event

        def last() -> dict[str, Any]:
            about = {"model": model.name, "seed": job.seed, "sample_rate_hz": model.sample_rate_hz}
            return {**about, "seconds": seconds_of(ticket)}

        return as_lines(all_events(), last)

    async def edit_job(self, request: Request) -> tuple[SpeechEdits, Any, SpeechEditJob]:
        """The model that an edit means, and its key and job."""
        form, recording = await _asked(request, schemas.SpeechEditForm, schemas.SpeechEditBody, EDIT_FILES)
        self._check_text(form.input_text, form.text)
        model = SpeechEdits(self.service.find(form.model, ServedSpeech))
        assert recording is not None  # the schemas want it
        check_sound(recording, "the recording")
        change = form.model_dump(include={"input_text", "text", "begin_s", "end_s", "speed", "keep_length"})
        key, job = model.job(
            recording,
            change,
            blend=form.blend,
            check_input=form.check_input,
            seed=seed_of(form),
            settings=self.settings(form),
        )
        return model, key, job

    async def job(self, request: Request) -> tuple[ServedSpeech, Any, SpeechJob]:
        """The model that a request means, and the key and job of its text."""
        form, prompt = await _asked(request, schemas.SpeechForm, schemas.SpeechBody, FILES)
        self._check_text(form.text, form.prompt_text or "")
        model = self.service.find(form.model, ServedSpeech)
        if prompt is not None:
            check_sound(prompt, "the prompt")
        key, job = model.spoken(
            form.text,
            prompt=prompt,
            prompt_text=form.prompt_text,
            voice=form.voice,
            check_prompt=form.check_prompt,
            speed=form.speed,
            seed=seed_of(form),
            settings=self.settings(form),
        )
        return model, key, job

    async def openai(self, request: Request, body: schemas.OpenAISpeech) -> Response:
        """Speak a text, as OpenAI's `audio/speech`."""
        self._check_text(body.input)
        model = self.service.find(body.model, ServedSpeech)
        key, job = model.spoken(
            body.input,
            voice=body.voice,
            speed=body.speed,
            seed=seed_of(body),
            settings=self.settings(body),
        )
        return await self.sound(request, model, key, job, OPENAI[body.response_format])

    async def sound(self, request: Request, model: ServedSpeech, key: Any, job: SpeechJob, kind: str) -> Response:
        """A sound of a media type: WAV and bare samples sentence by sentence, while the rest is made."""
        if kind in SUFFIXES:
            ticket = self.batcher.submit(key, replace(job, suffix=SUFFIXES[kind]))
            return as_file(await self.result(request, ticket), kind, job.seed, job.warnings)
        key, job = model.told(key, job, OPENAI_PCM_HZ if kind == PCM else None)
        _, sentences = self.follow(key, job)
        first = await unless_gone(request, anext(sentences))  # what is wrong is told before it, with a status
        begin = wav_header(job.rate_hz) if kind == WAV else b""
        headers = headers_of(job.seed, job.warnings)
        return StreamingResponse(_sound(begin + first, sentences), media_type=kind, headers=headers)

    def _check_text(self, *texts: str) -> None:
        for text in texts:
            if len(text) > self.config.max_text:
                raise DataError(f"a text has {len(text)} characters; at most {self.config.max_text} are allowed")


async def _asked(
    request: Request, fields: type[Form], body: type[Form], files: dict[str, bool]
) -> tuple[Form, memoryview | None]:
    """The fields of a request and its one file, from a form or from JSON."""
    (name,) = files
    match media_type(request):
        case "application/json":
            found = await read_json(request, body)
            content = getattr(found, name)
            return found, schemas.from_text(content, f"the {name}") if content else None
        case "multipart/form-data":
            form, uploads = await read_form(request, fields, files)
            return form, uploads.get(name)
    raise HTTPException(415, "the body must be application/json or multipart/form-data; set the header Content-Type")


async def _sound(first: bytes, rest: AsyncGenerator[Any, None]) -> AsyncIterator[bytes]:
    """What is there, and every further sentence.

    Raises:
        CutShortError: the rest cannot be made.
    """
    async with contextlib.aclosing(rest):
        yield first
        try:
            async for sentence in rest:
                yield sentence
        except TimeoutError as error:
            raise CutShortError(504) from error
        except Exception as error:
            log_defect(error)
            raise CutShortError(500) from error
