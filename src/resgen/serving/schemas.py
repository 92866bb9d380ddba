"""Bodies of requests and responses: how they are checked, and how the OpenAPI document describes them."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from resgen.errors import DataError

Name = Annotated[str, Field(max_length=200)]
ModelName = Annotated[Name | None, Query(description="Name of the model; may be left out if only one fits.")]
ClassNumber = Annotated[StrictInt, Field(ge=0, le=1 << 31)]
ClassText = Annotated[str, Field(max_length=400)]
OnAxes = Annotated[dict[Name, ClassNumber | ClassText | None], Field(max_length=64)]
ClassName = ClassNumber | ClassText | OnAxes
Png = Annotated[str, Field(description="PNG in base64")]


class Sampling(BaseModel):
    """Settings of the sampler; what is left out is the model's default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: Name | None = Field(None, description="Name of the model; may be left out if only one fits.")
    num_steps: int | None = Field(None, ge=1, description="Sampling steps; at most `limits.max_steps` of the model.")
    guidance_scale: float | None = Field(None, ge=0, le=1000, description="Strength of guidance; 0 switches it off.")
    seed: int | None = Field(None, ge=0, lt=1 << 63, description="Drawn at random if left out; the response holds it.")


class ImagesRequest(Sampling):
    """New images."""

    class_ids: list[ClassName] | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Names or numbers; if left out, every class (of the first axis) once. With several axes "
        'also objects, `{"style": "lorelei", "background": "blue"}`, or text, `lorelei, background=blue`.',
    )
    num_samples: int = Field(1, ge=1, le=1024, description="Images per class.")


class EditForm(Sampling):
    """Fields of an edit, besides its files."""

    box: str | None = Field(
        None,
        max_length=100,
        description="What to regenerate, in place of a mask: `x0,y0,x1,y1` in pixels of the model's image.",
    )
    keep_levels: int | None = Field(
        None, ge=0, description="Number of coarsest levels to keep there; without mask and box, everywhere."
    )
    class_id: ClassText | None = Field(
        None, description="Name or number; with several axes text, `lorelei, background=blue`."
    )
    num_samples: int = Field(1, ge=1, le=1024, description="Number of results.")
    blend: bool = Field(False, description="Keep the pixels outside the mask as they are.")


class LevelsForm(BaseModel):
    """Fields of the levels of an image, besides its file."""

    model_config = ConfigDict(extra="forbid")

    model: Name | None = None


class SpeechForm(Sampling):
    """Fields of a text to be spoken, besides its file."""

    text: str = Field(min_length=1, max_length=20_000)
    prompt_text: str | None = Field(None, max_length=20_000, description="Transcript of the prompt.")
    voice: Name | None = Field(None, description="One of the model's voices, in place of a prompt.")
    check_prompt: bool = Field(False, description="Warn if the prompt does not seem to match its transcript.")
    speed: float = Field(1.0, ge=0.25, le=4)


class SpeechBody(SpeechForm):
    """The same as JSON, with the prompt's file in base64."""

    prompt: str | None = Field(None, description="A sound file in base64.")


class SpeechEditForm(Sampling):
    """Fields of an edit of a recording, besides its file."""

    input_text: str = Field(min_length=1, max_length=20_000, description="Transcript of the recording.")
    text: str = Field(
        min_length=1,
        max_length=20_000,
        description="What it should say; the words that differ are replaced. With `begin_s` and `end_s`, the words for "
        "that interval alone.",
    )
    begin_s: float | None = Field(None, ge=0, description="Start of an interval to replace, in seconds.")
    end_s: float | None = Field(None, ge=0, description="End of the interval.")
    speed: float = Field(1.0, ge=0.25, le=4, description="1 keeps the pace of the recording.")
    keep_length: bool = Field(False, description="The new words take as long as the old ones.")
    blend: bool = Field(False, description="Keep the sound outside the change as it is.")
    check_input: bool = Field(False, description="Warn if the recording does not seem to match its transcript.")


class SpeechEditBody(SpeechEditForm):
    """The same as JSON, with the recording's file in base64."""

    recording: str = Field(min_length=1, description="A sound file in base64.")


class OpenAISpeech(Sampling):
    """What OpenAI's clients send, and settings of the sampler."""

    input: str = Field(min_length=1, max_length=20_000, description="The text.")
    voice: Name = Field("default", description="One of the model's voices; with `default` the model chooses.")
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = Field(
        "mp3", description="wav and pcm (16 bits, mono, 24 kHz) are sent sentence by sentence as they are generated."
    )
    speed: float = Field(1.0, ge=0.25, le=4)
    stream_format: Literal["audio"] = "audio"


class ErrorAnswer(BaseModel):
    """What is wrong, in one line."""

    error: str


class OpenAIMessage(BaseModel):
    """See `OpenAIError`."""

    message: str


class OpenAIError(BaseModel):
    """What is wrong, where OpenAI's clients look for it."""

    error: OpenAIMessage


class ImageAnswer(BaseModel):
    """One image; models without classes have neither number nor name."""

    class_id: int | None
    class_name: str | None
    png: Png


class ImagesAnswer(BaseModel):
    """Images, and the settings that generate them again."""

    model: str
    seed: int
    num_steps: int | None
    guidance_scale: float
    images: list[ImageAnswer]
    seconds: float


class LevelAnswer(BaseModel):
    """An image decoded from its first `depth` levels."""

    depth: int
    png: Png
    psnr_db: float


class LevelsAnswer(BaseModel):
    """One image per number of levels, coarse to fine."""

    levels: list[LevelAnswer]


class SpeechAnswer(BaseModel):
    """Speech, and the settings that generate it again."""

    model: str
    seed: int
    sample_rate_hz: int
    duration_s: float
    wav: str = Field(description="WAV in base64")
    spectrogram: Png
    seconds: float
    warnings: list[str] = Field([], description="Doubts about a transcript, if `check_prompt` or `check_input` is set.")


class WordAnswer(BaseModel):
    """A word of a recording, and the seconds at which it begins and ends."""

    text: str
    begin_s: float
    end_s: float


class SpeechEditAnswer(SpeechAnswer):
    """An edited recording, and what was changed in it."""

    text: str = Field(description="The whole new text.")
    replaced: str = Field(description="The words that were replaced; empty if words were only inserted.")
    words: list[WordAnswer] = Field(description="Words of the recording.")
    replaced_words: list[int] = Field(description="Range of the replaced words: the first, and the one after the last.")
    new_words: list[int] = Field(description="Range of the new words in `text`, likewise.")
    begin_s: float = Field(description="Start of the change, in seconds of the recording and of the result.")
    end_s: float = Field(description="End of the change in the recording.")
    new_end_s: float = Field(description="End of the change in the result.")


class SpokenSample(SpeechAnswer):
    """A sentence that shows how a model speaks."""

    text: str
    voice: str


class SpokenSamples(BaseModel):
    """Sentences in several voices."""

    samples: list[SpokenSample]


class Limits(BaseModel):
    """Limits of one request."""

    max_steps: int
    max_samples: int
    max_text: int
    max_upload_bytes: int


class ImageSize(BaseModel):
    """Size of a model's images."""

    height: int
    width: int
    channels: int


class ClassAxis(BaseModel):
    """One attribute of a class, such as a style or a background."""

    name: str
    classes: list[str]


class ModelAnswer(BaseModel):
    """One model."""

    name: str
    modality: Literal["image", "speech"]
    description: str
    classes: list[str]
    axes: list[ClassAxis] = Field([], description="Axes, if there are several; `classes` are those of the first.")
    image: ImageSize | None
    sample_rate_hz: int | None
    voices: list[str]
    sentences: list[str] = Field(description="Texts to try with a speech model.")
    positions: int
    levels: int
    measured: list[str] = Field(description="Its measured quality.")
    defaults: dict[str, Any]
    limits: Limits


class ListedModel(BaseModel):
    """A model as OpenAI's interface lists it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsAnswer(BaseModel):
    """All models."""

    models: list[ModelAnswer]
    object: Literal["list"]
    data: list[ListedModel] = Field(description="Their names, as clients of OpenAI's interface read them.")


class VoiceAnswer(BaseModel):
    """A named voice."""

    name: str
    text: str = Field(description="Transcript of its recording.")
    flac: str = Field(description="FLAC in base64")


class VoicesAnswer(BaseModel):
    """Named voices of a speech model."""

    voices: list[VoiceAnswer]


class StatusAnswer(BaseModel):
    """`ok`."""

    status: str


def as_text(content: bytes) -> str:
    """Bytes in base64."""
    return base64.b64encode(content).decode("ascii")


def from_text(text: str, name: str) -> memoryview:
    """The bytes of a field in base64.

    Raises:
        DataError: it is something else.
    """
    try:
        return memoryview(base64.b64decode(text, validate=True))
    except ValueError as error:
        raise DataError(f"{name} is not base64") from error


def form_schema(fields: type[BaseModel], files: dict[str, bool], body: type[BaseModel] | None = None) -> dict[str, Any]:
    """A multipart body for the OpenAPI document.

    Args:
        fields: its text fields.
        files: its files, and whether they are required.
        body: what can be sent as JSON in its place.
    """
    schema = fields.model_json_schema()
    properties = dict(schema["properties"])
    for name, described in properties.items():
        # A form has no null: what is optional is left out.
        choices = [choice for choice in described.get("anyOf", []) if choice.get("type") != "null"]
        if choices:
            rest = {key: value for key, value in described.items() if key not in ("anyOf", "default")}
            properties[name] = {**rest, **choices[0]}
    for name in files:
        properties[name] = {"type": "string", "format": "binary"}
    required = [*schema.get("required", []), *(name for name, needed in files.items() if needed)]
    whole = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    content = {"multipart/form-data": {"schema": whole}}
    if body is not None:
        content["application/json"] = {"schema": body.model_json_schema()}
    return {"requestBody": {"required": True, "content": content}}
