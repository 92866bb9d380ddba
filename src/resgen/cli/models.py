"""`resgen models`: the models that come with the package."""

from __future__ import annotations

from dataclasses import dataclass

from resgen.cli.common import Json, bundled_models, report, table

MAKES = {"pipeline": "images", "speech-pipeline": "speech"}
"""What whole models generate, by kind; the others judge."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the bundled models; use their names wherever a command takes a model folder.

    For example:

        resgen models --json
    """

    as_json: Json = False

    def run(self) -> None:
        models = bundled_models()
        rows = [
            (m["name"], MAKES.get(m["kind"], m["kind"]), f"{m['size_bytes'] / 1e6:.1f}", m["description"])
            for m in models
        ]
        rows.sort(key=lambda row: row[1] not in MAKES.values())
        text = table([("name", "what", "MB", "description"), *rows])
        report({"models": models}, as_json=self.as_json, text=text)
