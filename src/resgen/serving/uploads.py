"""Forms with files from untrusted clients: counted while they are read, kept in memory, recognised by their content."""

from __future__ import annotations

import io
import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from PIL import Image
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

MAX_FIELDS = 32
MAX_FIELD_BYTES = 1 << 17
_PICTURES = ("PNG", "JPEG", "WEBP", "BMP")
_SOUND_STARTS = (b"RIFF", b"RF64", b"riff", b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"caff", b"NIST")
_ALLOWED = {
    "int_parsing_size": "a whole number of fewer digits",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "string_too_short": "text of at least {min_length} character",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "of at least {min_length} entry",
    "too_long": "of at most {max_length} entries",
    "literal_error": "{expected}",
}
"""What is allowed, by the type of pydantic's error or the first word of it."""
_TYPES = ("constrained-", "dict[", "[key]")

Form = TypeVar("Form", bound=BaseModel)


class _InMemory(MultiPartParser):
    """Starlette's parser, whose files would go to the disk from 1 MiB on; here the body's own limit bounds them."""

    spool_max_size = 1 << 62


async def read_form(
    request: Request, fields: type[Form], files: Mapping[str, bool]
) -> tuple[Form, dict[str, memoryview]]:
    """The fields and the files of a form; files that are left out, or empty, are not in the result.

    Args:
        request: its body is limited elsewhere.
        fields: what the text fields must be.
        files: names of the files, and whether they are required.

    Raises:
        HTTPException: 415 for another kind of body, 400 for a damaged one, 422 for fields that are missing, unknown or
            out of range.
    """
    if media_type(request) != "multipart/form-data":
        raise HTTPException(415, "the body must be multipart/form-data; set the header Content-Type")
    parser = _InMemory(
        request.headers,
        request.stream(),
        max_files=len(files),
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the form cannot be read: {error.message}") from error
    texts: dict[str, Any] = {}
    contents: dict[str, memoryview] = {}
    names: set[str] = set()
    for name, value in form.multi_items():
        if name in names:
            raise HTTPException(422, f"{_field_name(name)}: given more than once")
        names.add(name)
        if value == "":
            continue
        if isinstance(value, UploadFile) != (name in files):
            raise HTTPException(
                422, f"{_field_name(name)}: {'a file is expected' if name in files else 'no file is expected'}"
            )
        if isinstance(value, UploadFile):
            content = await value.read()
            if content:
                contents[name] = memoryview(content)
        else:
            texts[name] = value
    await form.close()
    missing = [name for name, needed in files.items() if needed and name not in contents]
    if missing:
        raise HTTPException(422, f"{missing[0]}: the file is missing or empty; send one")
    try:
        return fields.model_validate(texts), contents
    except ValidationError as error:
        raise HTTPException(422, validation_line(error.errors(include_url=False))) from error


async def read_json(request: Request, fields: type[Form]) -> Form:
    """A body of JSON.

    Raises:
        HTTPException: 400 for what is no JSON, 422 for fields that are missing, unknown or out of range.
    """
    try:
        return fields.model_validate_json(await request.body())
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if errors[0]["type"] == "json_invalid":
            raise HTTPException(400, "the body is not valid JSON") from error
        raise HTTPException(422, validation_line(errors)) from error


def media_type(request: Request) -> str:
    """Of a request's body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_picture(content: memoryview, name: str, max_pixels: int) -> None:
    """Refuse, by its header alone, what is no image or would take too much memory.

    Raises:
        HTTPException: 415 or 413.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_PICTURES) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise HTTPException(413, f"{name} has too many pixels; at most {max_pixels} are read") from error
    except Exception as error:  # the decoders raise many types on damaged bytes
        raise HTTPException(415, f"{name} is not an image of a known format ({', '.join(_PICTURES)})") from error
    if width * height > max_pixels:
        raise HTTPException(413, f"{name} has {width}x{height} pixels; at most {max_pixels} are read")


def check_sound(content: memoryview, name: str) -> None:
    """Refuse, by its first bytes, what is no sound.

    Raises:
        HTTPException: 415.
    """
    start = bytes(content[:4])
    is_mp3 = len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0
    if not (start.startswith(_SOUND_STARTS) or is_mp3):
        raise HTTPException(415, f"{name} is not a sound of a known format (WAV, FLAC, OGG, MP3, AIFF, AU, CAF)")


def validation_line(errors: Any) -> str:
    """The first of pydantic's errors in one line: the field, its value and what is allowed."""
    place = _place(errors[0])
    inner = [one for one in errors if _place(one)[: len(place)] == place]  # of a field of several types, one for each
    deepest = max(inner, key=lambda one: len(one["loc"]))["loc"]
    same = [one for one in inner if one["loc"][:-1] == deepest[:-1]]
    same = [one for one in same if not one["type"].endswith("_type")] or same
    first, name = same[0], ".".join(map(_field_name, _place(same[0])))
    if first["type"] == "missing":
        return f"{name or 'the body'} is missing; send it"
    if first["type"] == "extra_forbidden":
        return f"unknown field '{name}'; /docs lists the fields of each route"
    allowed = " or ".join(dict.fromkeys(map(_allowed, same)))
    return f"{name}={reprlib.repr(first['input'])} must be {allowed}" if name else f"the body must be {allowed}"


def _place(error: Any) -> tuple[str, ...]:
    """Where a value is, without pydantic's names of the types that it may have, `constrained-int`."""
    field, *inner = [str(part) for part in error["loc"]] or [""]
    return (field, *(part for part in inner if not part.startswith(_TYPES)))


def _allowed(error: Any) -> str:
    """What pydantic's error asks for."""
    numbers = {
        name: int(n) if isinstance(n, float) and n.is_integer() else n for name, n in error.get("ctx", {}).items()
    }
    words = _ALLOWED.get(error["type"]) or _ALLOWED.get(error["type"].partition("_")[0])
    return words.format(**numbers) if words else f"valid ({error['msg']})"


def _field_name(name: str) -> str:
    """A name that somebody else chose, in an error."""
    return name[:40].encode("ascii", "backslashreplace").decode()
