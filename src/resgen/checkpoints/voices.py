"""Named voices of a speech pipeline: recordings stored with its parts, and their transcripts.

`config.json` holds `"voices": {NAME: {"file": "NAME.flac", "text": ..., "prepared": ...}}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from resgen.checkpoints.format import Folder
from resgen.config import is_text
from resgen.errors import CheckpointError, ConfigError, WrongTypeError, unknown

DEFAULT_VOICE = "default"
"""The model's own choice, under a name that no recording can have."""
MAX_VOICES, MAX_VOICE_BYTES, MAX_VOICE_TEXT = 64, 1 << 20, 1000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_FILE = re.compile(_NAME.pattern + r"\.flac")


class Voice(NamedTuple):
    """A recording that speaks for a voice.

    Attributes:
        content: content of a sound file.
        text: what is said in it.
        prepared: whether the recording is without silence at its ends and at the model's loudness already, so that it
            need not be prepared at every use.
    """

    content: bytes
    text: str
    prepared: bool = False

    def __repr__(self) -> str:
        return f"Voice({len(self.content):,} bytes, {self.text!r})"


def voices_of(folder: Folder) -> dict[str, Voice]:
    """The voices of a folder, by name; one whose file is not there is left out.

    Raises:
        CheckpointError: `voices` has another form, a file's name leads elsewhere, or there is too much of something.
    """
    entries = folder.extra.get("voices", {})
    if not isinstance(entries, dict) or len(entries) > MAX_VOICES:
        raise CheckpointError(f"'{folder.path}': voices must be a mapping of at most {MAX_VOICES} names")
    voices = {}
    for name, entry in entries.items():
        where = f"'{folder.path}': voice {name[:80]!a}"
        if not _NAME.fullmatch(name) or name == DEFAULT_VOICE:
            raise CheckpointError(f"{where} is no name of letters, digits, '_' and '-' other than {DEFAULT_VOICE}")
        file, text = (entry.get("file"), entry.get("text")) if isinstance(entry, dict) else (None, None)
        if not isinstance(file, str) or not _FILE.fullmatch(file):
            raise CheckpointError(f"{where} has file={file!r}, not a bare name such as 'a.flac'")
        if not isinstance(text, str) or not is_text(text) or not 0 < len(text) <= MAX_VOICE_TEXT:
            raise CheckpointError(f"{where} has text={text!r:.80}; what is said in it is needed")
        prepared = entry.get("prepared", False)
        if not isinstance(prepared, bool):
            raise CheckpointError(f"{where} has prepared={prepared!r:.80}; it must be true or false")
        path = folder.path / file
        if not path.is_file():
            continue
        if path.stat().st_size > MAX_VOICE_BYTES:
            raise CheckpointError(f"{where} has {path.stat().st_size} bytes; at most {MAX_VOICE_BYTES} are read")
        voices[name] = Voice(path.read_bytes(), text, prepared)
    return voices


def sentences_of(folder: Folder) -> list[str]:
    """Texts to try a model with: those of its `config.json`, `"sentences": [...]`, or what its voices say.

    Raises:
        CheckpointError: they are no texts, or too many or too long ones.
    """
    texts = folder.extra.get("sentences", [])
    if not isinstance(texts, list) or len(texts) > MAX_VOICES:
        raise CheckpointError(f"'{folder.path}': sentences must be a list of at most {MAX_VOICES} texts")
    for text in texts:
        if not isinstance(text, str) or not is_text(text) or not 0 < len(text) <= MAX_VOICE_TEXT:
            raise CheckpointError(f"'{folder.path}': sentence {text!r:.80} must have 1 to {MAX_VOICE_TEXT} characters")
    return texts or [voice.text for voice in voices_of(folder).values()]


def voice_entries(voices: Mapping[str, Voice]) -> dict[str, Any]:
    """What `config.json` says of voices that are kept as `NAME.flac`.

    Raises:
        ConfigError: see `check_voice`.
    """
    for name, voice in voices.items():
        check_voice(name, voice, {other: voice for other in voices if other != name})
    return {
        name: {"file": f"{name}.flac", "text": voice.text} | ({"prepared": True} if voice.prepared else {})
        for name, voice in voices.items()
    }


def check_voice(name: str, voice: Voice, voices: Mapping[str, Voice]) -> None:
    """Reject a voice that a folder could not keep beside others.

    Raises:
        WrongTypeError: the name or the transcript is not a str, or the voice is not a `Voice`.
        ConfigError: a name of other characters, one that is told from another by case only (on some disks they would
            be one file), one too many, or too much of something.
    """
    if not (isinstance(name, str) and isinstance(voice, Voice) and isinstance(voice.text, str)):
        raise WrongTypeError(f"voice {name!r:.80}: {voice!r:.80} must be a Voice, its name and text of type str")
    if not _NAME.fullmatch(name) or name.lower() == DEFAULT_VOICE:
        raise ConfigError(f"voice {name!r} must be a name of 1 to 64 letters, digits, '_' and '-', and not 'default'")
    if name not in voices and (same := [other for other in voices if other.lower() == name.lower()]):
        raise ConfigError(f"voice '{name}' differs from '{same[0]}' in upper and lower case only; choose another name")
    if len(voices.keys() | {name}) > MAX_VOICES:
        raise ConfigError(f"voice '{name}' is one too many; at most {MAX_VOICES} are kept")
    if len(voice.content) > MAX_VOICE_BYTES or len(voice.text) > MAX_VOICE_TEXT:
        raise ConfigError(
            f"voice '{name}' is too long: its recording has {len(voice.content)} bytes, its text {len(voice.text)} "
            f"characters; at most {MAX_VOICE_BYTES} and {MAX_VOICE_TEXT} are kept"
        )


def choose_voice(
    name: str | None, prompt: Any, prompt_text: str | None, voices: Mapping[str, Voice]
) -> tuple[Any, str | None, bool]:
    """The prompt of a request, its text, and whether it is prepared (see `Voice`): those of the voice that it names
    (case does not matter), if any, or its own.

    Raises:
        WrongTypeError: a voice that is no text.
        ConfigError: there is no such voice, or a prompt besides.
    """
    if name is None:
        return prompt, prompt_text, False
    if prompt is not None or prompt_text:
        raise ConfigError(f"voice='{name}' and a prompt are two voices; give one of them")
    names = [DEFAULT_VOICE, *voices]
    if not isinstance(name, str):
        raise WrongTypeError(unknown("voice", name, names))
    found = name if name in names else {one.lower(): one for one in names}.get(name.lower())
    if found is None:
        raise ConfigError(unknown("voice", name, names))
    if found == DEFAULT_VOICE:
        return None, None, False
    return voices[found].content, voices[found].text, voices[found].prepared
