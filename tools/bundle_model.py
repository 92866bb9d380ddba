"""Put a trained pipeline, classifier or judge into the package as a bundled model, with its model card.

For example:

    python tools/bundle_model.py --model runs/fashion/model --name fashion-mnist-small \
        --description "Fashion-MNIST, 28x28 grey" --card card.md
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from torch import Tensor

from resgen.checkpoints.format import (
    CONFIG_NAME,
    Component,
    SavedComponent,
    load_folder,
    load_tensors,
    read_json,
    save_folder,
)
from resgen.checkpoints.locate import resolve_model
from resgen.checkpoints.parts import with_part
from resgen.checkpoints.voices import Voice, voice_entries
from resgen.cli.main import guard
from resgen.config import config_from_dict, config_to_dict, parse_overrides, replace_nested
from resgen.files import json_text, write_text
from resgen.kinds import KINDS
from resgen.pipelines.speech.pipeline import SpeechPipeline

ASSETS = Path(__file__).resolve().parent.parent / "src" / "resgen" / "assets"
MAX_BYTES = 25_000_000


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Copy a model folder into the package; refuses files larger than 25 MB."""

    model: Path
    """Folder of the pipeline or classifier."""
    name: str
    """Bundled name; begins with the data set's."""
    description: str
    """One line for `resgen models`."""
    card: Path
    """Markdown file: data, training, measurements, limits."""
    sampling: tuple[str, ...] = ()
    """Sampling settings to change, for example guidance_scale=4; they become the model's own."""

    replace: tuple[str, ...] = ()
    """Parts of other folders in place of the model's, with their record: vocoder=runs/vocoder/model. A tokenizer must
    have the codebooks of the one that it replaces."""
    voices: tuple[str, ...] = ()
    """Recordings for the demo of a speech pipeline: NAME=FILE=WHAT IS SAID. The file is stored as NAME.flac."""

    sentences: tuple[str, ...] = ()
    """Texts that the server's page offers to try the model with."""

    demo_texts: tuple[str, ...] = ()
    """What `resgen demo` says with the model."""

    share: str | None = None
    """A bundled model whose files are used for the parts that are the same in both."""

    def run(self) -> None:
        folder = load_folder(resolve_model(self.model))
        for name, other in (part.split("=", 1) for part in self.replace):
            folder = with_part(folder, name, load_folder(resolve_model(other)))
        sizes = [part.path.stat().st_size for part in folder.components.values()]
        if max(sizes) > MAX_BYTES:
            raise SystemExit(f"a file of {self.model} has {max(sizes)} bytes; at most {MAX_BYTES} are bundled")
        text = self.card.read_text(encoding="utf-8")
        extra = {**folder.extra, "description": self.description}
        if "history" in extra:
            extra["history"] = {name: _without_places(record) for name, record in extra["history"].items()}
        if "sampling" in folder.extra:
            kind = KINDS[folder.component("generator").type]
            sampling = config_from_dict(kind.sampling, folder.extra["sampling"])
            extra["sampling"] = config_to_dict(replace_nested(sampling, parse_overrides(self.sampling)))
        for key, texts in (("sentences", self.sentences), ("demo_texts", self.demo_texts)):
            if texts:
                extra[key] = list(texts)
        voices = _prepared(self.model, self.voices) if self.voices else {}
        if voices:
            extra["voices"] = voice_entries(voices)
        components = {
            name: Component(type=part.type, config=part.config, tensors=_published(part))
            for name, part in folder.components.items()
        }
        save_folder(ASSETS / self.name, kind=folder.kind, components=components, extra=extra)
        write_text(ASSETS / self.name / "README.md", text)
        for name, voice in voices.items():
            (ASSETS / self.name / f"{name}.flac").write_bytes(voice.content)
        if self.share is not None:
            _share(ASSETS / self.name, self.share)
        print(f"{ASSETS.name}/{self.name}: {sum(sizes) / 1e6:.1f} MB")


def _prepared(model: Path, voices: Sequence[str]) -> dict[str, Voice]:
    """Recordings as the pipeline uses them, from NAME=FILE=WHAT IS SAID."""
    pipe = SpeechPipeline.from_pretrained(model)
    pipe.voices.clear()
    for name, file, transcript in (voice.split("=", 2) for voice in voices):
        pipe.add_voice(name, file, transcript)
    return pipe.voices


def _without_places(record: Any) -> Any:
    """The record of a training, with the name alone of every run and file that it names by an absolute path."""
    if isinstance(record, dict):
        return {key: _without_places(value) for key, value in record.items()}
    if not isinstance(record, str) or not Path(record).is_absolute():
        return record
    path = Path(record)
    return (path.parent.name if path.name == "model" else "") or path.name


def _share(folder: Path, other: str) -> None:
    """Remove the files that another bundled model has, too."""
    config = read_json(folder / CONFIG_NAME)
    theirs = {part.path.name: part.sha256 for part in load_folder(ASSETS / other).components.values()}
    for entry in config["components"].values():
        if theirs.get(entry["file"]) == entry["sha256"]:
            entry["from"] = other
            (folder / entry["file"]).unlink()
    write_text(folder / CONFIG_NAME, json_text(config, folder / CONFIG_NAME))


def _published(part: SavedComponent) -> dict[str, Tensor]:
    """A classifier's matrices in bfloat16, as those of the other parts already are; its norms as they are."""
    tensors = load_tensors(part)
    if part.type != "classifier":
        return tensors
    return {name: tensor.bfloat16() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(Bundle).run()))
