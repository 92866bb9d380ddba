"""Where a saved model is: a folder, a run, a bundled name, or a name on the hub."""

from __future__ import annotations

from pathlib import Path

from resgen.checkpoints import hub
from resgen.checkpoints.format import CONFIG_NAME, load_folder
from resgen.errors import CheckpointError, WrongTypeError, unknown
from resgen.files import nearest_path

RUN_FILES = ("config.yaml", "env.json")
"""What `resgen train` writes first into its folder."""
ASSETS = Path(__file__).resolve().parent.parent / "assets"


def list_bundled() -> list[str]:
    """Names of the models that come with the library."""
    return sorted(path.parent.name for path in ASSETS.glob(f"*/{CONFIG_NAME}"))


def resolve_model(name_or_path: str | Path) -> Path:
    """The folder of a model given by path, by run folder (its `model/`), by bundled name, or by its name on the hub
    (`owner/model`, `owner/model@revision`). A folder that has the name of a bundled model but holds no model, such as a
    folder of data, is passed over.

    Raises:
        WrongTypeError: neither.
        CheckpointError: nothing of that name; the message lists the bundled models that generate. Or a run that has not
            finished.
    """
    if not isinstance(name_or_path, str | Path):
        raise WrongTypeError(f"{name_or_path!r} must be the name of a model or the path of a folder")
    path = Path(name_or_path)
    run = path.parent if path.name == "model" else path
    if _is_run(run) and not (run / "model").exists():
        raise CheckpointError(
            f"the training in '{run}' has not finished and left no model yet; go on with the command that began it and "
            "--resume; with --max-minutes 0.001 as well, it ends at its last checkpoint"
        )
    published = path / "model"
    described = (path / CONFIG_NAME).exists()
    if not described and (published / CONFIG_NAME).is_file():
        return published
    if str(name_or_path) in list_bundled() and not described and not any(path.glob("*.safetensors")):
        return ASSETS / str(name_or_path)
    if path.is_dir() and name_or_path != "":
        return path
    if isinstance(name_or_path, str) and hub.is_hub_name(name_or_path):
        return hub.download(name_or_path)
    if path.is_file():
        raise CheckpointError(f"'{path}' is a file, not the folder of a model")
    is_path = len(path.parts) > 1 or path.suffix
    also = f"; no such file or folder: {nearest_path(path)}" if is_path else ""
    bundled = {name: name for name in list_bundled()}
    generators = [name for name in bundled if "generator" in load_folder(ASSETS / name, verify=False).components]
    raise CheckpointError(f"{unknown('model', name_or_path, generators, bundled)}, or the path of a folder{also}")


def _is_run(path: Path) -> bool:
    """Whether a training writes, or wrote, into this folder, and it is no model itself."""
    return all((path / name).is_file() for name in RUN_FILES) and not (path / CONFIG_NAME).exists()
