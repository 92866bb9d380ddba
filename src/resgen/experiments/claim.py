"""The folder of a comparison, which holds one comparison only."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from resgen.checkpoints.format import read_json
from resgen.config import config_to_dict, flatten
from resgen.errors import ConfigError
from resgen.files import write_json
from resgen.training.state import lock_folder

SETTINGS_NAME = "comparison.json"


@contextlib.contextmanager
def claim(out: Path, recipe: Any, comparison: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
    """Make the folder and note in it what is compared, or go on with a comparison of the same settings; hold it within
    the block.

    Raises:
        ConfigError: the folder holds another comparison, or one and `resume` is False.
        TrainingError: another process is at work in it.
    """
    with lock_folder(out, "comparing"):
        note(out, recipe, comparison, resume=resume)
        yield


def note(out: Path, recipe: Any, comparison: Mapping[str, Any], *, resume: bool) -> None:
    """What `claim` notes and compares, without holding the folder."""
    settings = json.loads(json.dumps({"recipe": config_to_dict(recipe), "comparison": dict(comparison)}))
    path = out / SETTINGS_NAME
    if not path.exists():
        return write_json(path, settings)
    before = read_json(path)
    if not resume:
        raise ConfigError(f"'{out}' already holds a comparison; continue it with --resume or choose another --out")
    old, new = flatten(before), flatten(settings)
    for key in [*new, *old]:
        if old.get(key) != new.get(key):
            raise ConfigError(
                f"'{out}' holds a comparison with {key}={old.get(key)}, this one has {key}={new.get(key)}; give the "
                "same settings or choose another --out"
            )
