"""Draw cartoon faces in twelve styles: `train.parquet` and `test.parquet`, as `resgen train` reads them.

For example:

    npm install --prefix avatar-tools @dicebear/core@9.4.3 @dicebear/collection@9.4.3 @resvg/resvg-js@2.6.2
    python tools/make_avatars.py --packages avatar-tools --out data/avatars64

Needs node 18 or newer and the three npm packages. Every row is one image: image {bytes (lossless WebP), path}, label
(the style), one column for each attribute in `AXES`, and everything else that the style tells as JSON. Attributes are
classes with names, and empty where a style has nothing of the kind or does not tell; a generator takes them as
conditions with `--set data.class_columns=[style=label,background,hair,skin,glasses,mood]`. No drawing occurs twice, so
no image of `test` is in `train`. The same seed and packages give the same files, and other sizes the same drawings.
All styles are CC0 1.0 or CC BY 4.0; `CREDITS.md` beside the images names their designers.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import tyro
from PIL import Image

from resgen.errors import DataError, ResGenError
from resgen.ops.random import derive_seed
from resgen.progress import show_progress

PACKAGES = {"@dicebear/core": "9.4.3", "@dicebear/collection": "9.4.3", "@resvg/resvg-js": "2.6.2"}
LICENCES = ("CC0 1.0", "CC BY 4.0")
MAX_REPEATS = 100
"""Drawings in a row that have been drawn before, after which a style is said to have no more."""

BACKGROUNDS = {
    "blue": "8ecae6",
    "purple": "b79ced",
    "pink": "ffb3c6",
    "yellow": "fdf0a0",
    "green": "a8e6a1",
    "orange": "ffb347",
    "red": "f07f7f",
    "grey": "d9dce3",
    "teal": "5ec4b6",
}
HAIR = {
    "black": "1c1c1c",
    "brown": "6a4328",
    "blond": "e5c26b",
    "red": "c8502a",
    "grey": "b8b8b8",
    "blue": "3b6fd4",
    "green": "3fa34d",
    "pink": "e874a8",
}
SKIN = {"light": "f5d0b0", "tan": "dca577", "brown": "a5683a", "dark": "75492c"}
MOODS = {
    "happy": r"happy|smile|laugh|grin|lol|cheeky|cute|hopeful|kawaii|cheery",
    "unhappy": r"sad|frown|angry|rage|concerned|fear|tired|unimpressed|confused|nervous",
}


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one style is drawn.

    Attributes:
        key: its name in the package.
        hair: option that takes the colour of the hair.
        skin: option that takes the colour of the skin.
        options: passed on as they are.
    """

    key: str
    hair: str | None = "hairColor"
    skin: str | None = "skinColor"
    options: Mapping[str, Any] | None = None


STYLES = {
    "adventurer": Style(key="adventurer"),
    "big-ears": Style(key="bigEars", options={"scale": 135}),
    "big-smile": Style(key="bigSmile"),
    "dylan": Style(key="dylan"),
    "lorelei": Style(key="lorelei"),
    "micah": Style(key="micah", skin="baseColor"),
    "miniavs": Style(key="miniavs"),
    "notionists": Style(key="notionists", hair=None, skin=None),
    "open-peeps": Style(key="openPeeps", hair=None),
    "personas": Style(key="personas", skin=None, options={"scale": 120}),
    "pixel-art": Style(key="pixelArt"),
    "thumbs": Style(key="thumbs", hair=None, skin=None),
}
AXES: dict[str, tuple[str, ...]] = {
    "background": tuple(BACKGROUNDS),
    "hair": tuple(HAIR),
    "skin": tuple(SKIN),
    "glasses": ("none", "glasses"),
    "beard": ("none", "beard"),
    "mood": tuple(MOODS),
}
"""Names of the classes by column."""


@dataclass(frozen=True, kw_only=True)
class MakeAvatars:
    """Cartoon faces with their styles as classes."""

    packages: Path
    """Folder with node_modules, where npm has installed @dicebear/core@9.4.3, @dicebear/collection@9.4.3 and
    @resvg/resvg-js@2.6.2."""
    out: Path
    """Folder to write; must not exist."""
    train: int = 20_000
    """Images in `train`, all styles alike."""
    test: int = 5_000
    """Images in `test`."""
    size: int = 64
    """Side of the images in pixels."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 1024:
            raise DataError(f"size={self.size} must be from 16 to 1024")
        for name in ("train", "test"):
            if getattr(self, name) < len(STYLES):
                raise DataError(f"{name}={getattr(self, name)} must be at least {len(STYLES)}, one for each style")

    def write(self) -> None:
        """Draw `test` and `train` into a temporary folder beside `out`, then rename it."""
        if self.out.exists():
            raise DataError(f"'{self.out}' is there already; remove it or give another folder")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with (
            Artist(self.packages) as artist,
            tempfile.TemporaryDirectory(dir=self.out.parent, prefix=f".{self.out.name}-") as folder,
        ):
            corpus = Path(folder) / "corpus"
            corpus.mkdir()
            drawings: set[str] = set()
            for split, count in (("test", self.test), ("train", self.train)):
                rows = ((1, row) for row in draw_split(artist, split, count, self.size, self.seed, drawings))
                table = make_table(list(show_progress(rows, count, f"drawing {split}")))
                pyarrow.parquet.write_table(table, corpus / f"{split}.parquet", row_group_size=1000)
            (corpus / "CREDITS.md").write_text(credits_table(artist.meta), encoding="utf-8")
            os.replace(corpus, self.out)


class Artist:
    """The node program that draws, one request at a time.

    Raises:
        DataError: node or a package is missing, or drawing failed.
    """

    def __init__(self, packages: Path) -> None:
        node = shutil.which("node")
        if node is None:
            raise DataError("'node' is not installed; on Debian: apt-get install nodejs npm")
        for name, version in PACKAGES.items():
            try:
                installed = json.loads((packages / "node_modules" / name / "package.json").read_bytes())["version"]
            except (OSError, ValueError, KeyError) as error:
                install = " ".join(f"{name}@{version}" for name, version in PACKAGES.items())
                raise DataError(f"'{packages}' lacks {name}; npm install --prefix {packages} {install}") from error
            if installed.split(".")[:2] != version.split(".")[:2]:
                raise DataError(f"'{packages}' holds {name} {installed}; the drawings are those of {version}")
        self.meta: dict[str, dict[str, Any]] = {}
        script = Path(__file__).with_suffix(".mjs").read_text(encoding="utf-8")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with this object)
        self._node = subprocess.Popen(  # a script that is not a file finds the packages of the current folder
            [node, "--input-type=module", "--eval", script],
            cwd=packages,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Artist:
        return self

    def __exit__(self, *_: object) -> None:
        self._node.communicate()
        self._errors.close()

    def draw(self, style: str, options: Mapping[str, Any], size: int) -> dict[str, Any]:
        """One image: `png`, `attributes` and the digest of the `drawing`, which does not depend on the size."""
        assert self._node.stdin is not None and self._node.stdout is not None
        request = {"style": STYLES[style].key, "options": options, "size": size}
        try:
            self._node.stdin.write(json.dumps(request) + "\n")
            self._node.stdin.flush()
            answer = json.loads(self._node.stdout.readline())
        except (OSError, ValueError) as error:
            self._node.wait(timeout=60)
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").splitlines()
            reason = next((line for line in lines if "Error" in line), "node ended")
            raise DataError(f"style '{style}' cannot be drawn: {reason}") from error
        if style not in self.meta:
            licence = answer["meta"].get("license", {}).get("name")
            if licence not in LICENCES:
                raise DataError(f"style '{style}' is licensed '{licence}'; allowed: {', '.join(LICENCES)}")
            self.meta[style] = answer["meta"]
        return {**answer, "png": base64.b64decode(answer["png"])}


def draw_split(
    artist: Artist, split: str, count: int, size: int, seed: int, drawings: set[str]
) -> Iterator[dict[str, Any]]:
    """`count` rows, the styles in turn; drawings in `drawn` are passed over, new ones are added.

    Raises:
        DataError: a style has no more drawings.
    """
    tries = dict.fromkeys(STYLES, 0)
    for index in range(count):
        label = index % len(STYLES)
        style = list(STYLES)[label]
        for _ in range(MAX_REPEATS):
            rng = random.Random(derive_seed("avatars", seed, split, style, tries[style]))
            options, traits = draw_options(style, rng)
            tries[style] += 1
            answer = artist.draw(style, options, size)
            if answer["drawing"] not in drawings:
                break
        else:
            raise DataError(f"style '{style}' has too few drawings for {count} images in '{split}'")
        drawings.add(answer["drawing"])
        attributes = {k: v for k, v in answer["attributes"].items() if not k.startswith(("primary", "secondary"))}
        classes = {**traits, **read_attributes(attributes)}
        image = {"bytes": to_webp(answer["png"]), "path": f"{split}/{style}-{index // len(STYLES):05d}.webp"}
        codes = {axis: names.index(classes[axis]) if classes[axis] in names else None for axis, names in AXES.items()}
        yield {"image": image, "label": label, **codes, "attributes": json.dumps(attributes, sort_keys=True)}


def draw_options(style: str, rng: random.Random) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Options of the next drawing and the classes of what is chosen here; the style chooses the rest by `seed`."""
    of = STYLES[style]
    options = {**(of.options or {}), "seed": f"{rng.getrandbits(64):016x}"}
    traits: dict[str, str | None] = {}
    palettes = (("background", "backgroundColor", BACKGROUNDS), ("hair", of.hair, HAIR), ("skin", of.skin, SKIN))
    for axis, option, palette in palettes:
        name = rng.choice(list(palette))
        traits[axis] = name if option else None
        if option:
            options[option] = [palette[name]]
    return options, traits


def read_attributes(attributes: Mapping[str, str]) -> dict[str, str | None]:
    """Classes of the attributes that the styles name in different ways."""
    parts = {key: value for key, value in attributes.items() if not key.endswith("Color")}
    values = " ".join(value for value in parts.values() if isinstance(value, str)).lower()
    glasses = "glasses" in parts or "glasses" in values
    beard = any(key in parts for key in ("beard", "facialHair", "mustache")) or "mustache" in values
    expression = " ".join(parts.get(key, "") for key in ("mood", "mouth", "face")).lower()
    mood = next((mood for mood, pattern in reversed(MOODS.items()) if re.search(pattern, expression)), None)
    return {"glasses": "glasses" if glasses else "none", "beard": "beard" if beard else "none", "mood": mood}


def to_webp(png: bytes) -> bytes:
    """The same pixels without transparency, as lossless WebP."""
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(file, "WEBP", lossless=True)
    return file.getvalue()


def make_table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    """Rows in the schema of Hugging Face `datasets`, with the names of all classes."""
    classes = {"label": tuple(STYLES), **AXES}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {name: {"_type": "ClassLabel", "names": list(names)} for name, names in classes.items()}
    features["attributes"] = {"_type": "Value", "dtype": "string"}
    fields = {"image": pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])}
    fields |= dict.fromkeys(classes, pyarrow.int64()) | {"attributes": pyarrow.string()}
    columns = {name: pyarrow.array([row[name] for row in rows], field) for name, field in fields.items()}
    return pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def credits_table(meta: Mapping[str, Mapping[str, Any]]) -> str:
    """Whose drawings these are, as a table in Markdown."""
    lines = ["# Whose drawings these are", "", "| style | designer | source | licence |", "|---|---|---|---|"]
    for style, about in meta.items():
        licence = about["license"]
        source = f"[{about['title']}]({about['source']})"
        lines.append(f"| {style} | {about['creator']} | {source} | [{licence['name']}]({licence['url']}) |")
    changes = "Drawn by DiceBear, with colours of hair, skin and background chosen at random from fixed palettes."
    return "\n".join([*lines, "", changes, ""])


def main() -> int:
    """Draw; say what went wrong in one line."""
    try:
        tyro.cli(MakeAvatars).write()
    except ResGenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
