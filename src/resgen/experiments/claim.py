"""The folder of a comparison, which holds one comparison only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resgen.checkpoints.format import read_json
from resgen.config import config_to_dict
from resgen.errors import ConfigError
from resgen.files import write_json

SETTINGS_NAME = "comparison.json"


def claim(out: Path, recipe: Any, comparison: Mapping[str, Any], *, resume: bool) -> None:
    """Make the folder and note in it what is compared, or go on with a comparison of the same settings.

    Raises:
        ConfigError: the folder holds another comparison, or one and `resume` is False.
    """
    settings = json.loads(json.dumps({"recipe": config_to_dict(recipe), "comparison": dict(comparison)}))
    path = out / SETTINGS_NAME
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        return write_json(path, settings)
    before = read_json(path)
    if not resume:
        raise ConfigError(f"'{out}' already holds a comparison; continue it with --resume or choose another --out")
    if before != settings:
        changes = ", ".join(key for key in settings if before.get(key) != settings[key])
        raise ConfigError(f"'{out}' holds a comparison with other settings ({changes}); choose another --out")
