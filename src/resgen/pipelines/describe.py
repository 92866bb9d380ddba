"""What is inside a saved model, as plain data for `resgen inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from resgen.checkpoints.format import load_folder, resolve_model


def describe_artefact(name_or_path: str | Path) -> dict[str, Any]:
    """Configuration, parameters by part, hashes and training history of a saved model; hashes are verified."""
    folder = load_folder(resolve_model(name_or_path))
    components = {}
    for name, saved in folder.components.items():
        parts: dict[str, int] = {}
        with safe_open(str(saved.path), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dictionary)
                count = 1
                for size in file.get_slice(key).get_shape():
                    count *= size
                part = key.partition(".")[0]
                parts[part] = parts.get(part, 0) + count
        components[name] = {
            "type": saved.type,
            "file": saved.path.name,
            "sha256": saved.sha256,
            "bytes": saved.path.stat().st_size,
            "numbers_by_part": parts,
            "numbers": sum(parts.values()),
            "config": saved.config,
        }
    return {
        "path": str(folder.path),
        "kind": folder.kind,
        "resgen_version": folder.resgen_version,
        "components": components,
        **folder.extra,
    }
