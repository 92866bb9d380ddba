"""`resgen models`: the models that come with the package."""

from __future__ import annotations

from dataclasses import dataclass

from resgen.cli.common import Json, bundled_models, report, table


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the bundled models; use their names wherever a command takes a model folder.

    For example:

        resgen models --json
    """

    as_json: Json = False

    def run(self) -> None:
        models = bundled_models()
        rows = [(m["name"], m["kind"], f"{m['size_bytes'] / 1e6:.1f}", m["description"]) for m in models]
        text = table([("name", "kind", "MB", "description"), *rows])
        report({"models": models}, as_json=self.as_json, text=text)
