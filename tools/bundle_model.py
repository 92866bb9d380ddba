"""Put a trained pipeline into the package as a bundled model, with its model card.

For example:

    python tools/bundle_model.py --model runs/fashion/model --name fashion-mnist-small \
        --description "Fashion-MNIST, 28x28 grey" --card card.md
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from resgen.checkpoints.format import (
    Component,
    load_folder,
    load_tensors,
    resolve_model,
    save_folder,
    write_text_atomic,
)
from resgen.config import config_from_dict, config_to_dict, parse_overrides, replace_nested
from resgen.samplers.unmasking import SamplingConfig

ASSETS = Path(__file__).resolve().parent.parent / "src" / "resgen" / "assets"
MAX_BYTES = 25_000_000


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Copy a pipeline folder into the package; refuses one that is larger than 25 MB."""

    model: Path
    """Folder of the pipeline."""
    name: str
    """Bundled name; begins with the data set's."""
    description: str
    """One line for `resgen models`."""
    card: Path
    """Markdown file: data, training, measurements, limits."""
    sampling: tuple[str, ...] = ()
    """Sampling settings to change, for example guidance_scale=4; they become the model's own."""

    def run(self) -> None:
        folder = load_folder(resolve_model(self.model))
        size = sum(part.path.stat().st_size for part in folder.components.values())
        if size > MAX_BYTES:
            raise SystemExit(f"{self.model} has {size} bytes; at most {MAX_BYTES} are bundled")
        text = self.card.read_text(encoding="utf-8")
        components = {
            name: Component(type=part.type, config=part.config, tensors=load_tensors(part))
            for name, part in folder.components.items()
        }
        sampling = config_from_dict(SamplingConfig, folder.extra["sampling"])
        sampling = replace_nested(sampling, parse_overrides(self.sampling))
        extra = {**folder.extra, "sampling": config_to_dict(sampling), "description": self.description}
        save_folder(ASSETS / self.name, kind=folder.kind, components=components, extra=extra)
        write_text_atomic(ASSETS / self.name / "README.md", text)
        print(f"{ASSETS.name}/{self.name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    tyro.cli(Bundle).run()
