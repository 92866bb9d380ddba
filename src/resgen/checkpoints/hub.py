"""Models on the Hugging Face Hub: upload and download of folders, through `huggingface_hub`."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resgen.checkpoints.card import CARD_NAME, cut_outside_links, write_card
from resgen.checkpoints.format import CONFIG_NAME, Folder, load_folder, read_json
from resgen.errors import CheckpointError
from resgen.extras import import_extra
from resgen.files import write_json

FILES = ("*.json", "*.safetensors", "*.md", "*.flac", "*.png")
"""What is taken from a repository: nothing that could be code."""
_NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def is_hub_name(name: str) -> bool:
    """Whether a name has the form `owner/model` or, with a branch, tag or commit, `owner/model@revision`.

    Where a local folder is called `owner`, it is a path: that of a model which is not there.
    """
    return _NAME.fullmatch(name) is not None and not Path(name).parent.is_dir()


def download(name: str) -> Path:
    """The folder of a model on the hub, from the local cache if it is there.

    Args:
        name: `owner/model` or `owner/model@revision`; a commit pins it.

    Raises:
        CheckpointError: no such model or revision, no network and not in the cache, or not a resgen model.
        MissingExtraError: huggingface_hub is not installed.
    """
    match = _NAME.fullmatch(name)
    assert match is not None, name
    hub = _hub()
    try:
        folder = hub.snapshot_download(
            match["repository"], revision=match["revision"], allow_patterns=list(FILES), library_name="resgen"
        )
    except Exception as error:  # of the network, of the hub, of the cache: one line for all
        raise CheckpointError(
            f"model '{name}' is no local folder and no bundled model, and cannot be fetched from the hub: "
            f"{_reason(error)}; without a network give the path of a folder"
        ) from error
    path = Path(folder)
    if not (path / CONFIG_NAME).is_file():
        raise CheckpointError(f"'{name}' on the hub holds no {CONFIG_NAME}; it is not a resgen model")
    return path


def push(folder: str | Path, repository: str, *, private: bool = False, **about: Any) -> str:
    """Upload a model's folder with its card; returns the address of the commit. In the uploaded card, links to files
    that stay behind become plain text.

    Args:
        folder: a saved model; a card is written from its record where it has none.
        repository: `owner/model`; made if it is not there.
        private: whether a new repository is private.
        about: `tag`, `usage`, `license`, `datasets` and `origin` of the card, see `write_card`.

    Raises:
        CheckpointError: not a model's folder, a name of another form, or the hub refuses.
        MissingExtraError: huggingface_hub is not installed.
    """
    match = _NAME.fullmatch(repository)
    if match is None or match["revision"]:
        raise CheckpointError(f"'{repository}' must have the form owner/model")
    saved = load_folder(folder)
    hub = _hub()
    with tempfile.TemporaryDirectory() as place:
        copied = Path(place) / "model"
        shutil.copytree(saved.path, copied, ignore=lambda _, names: [n for n in names if not _is_allowed(n)])
        _bring_shared_parts(saved, copied)
        if (copied / CARD_NAME).is_file():
            cut_outside_links(copied / CARD_NAME)
        else:
            write_card(saved, copied, name=repository, **about)
        try:
            api = hub.HfApi(library_name="resgen")
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=str(copied), commit_message="Upload resgen model"
            )
        except Exception as error:
            raise CheckpointError(f"cannot upload to '{repository}': {_reason(error)}") from error
    return str(commit.commit_url)


def _bring_shared_parts(saved: Folder, copied: Path) -> None:
    """Parts that lie in a folder beside the model (`from` in its `config.json`) go with the copy."""
    config = read_json(copied / CONFIG_NAME)
    shared = [entry for entry in config["components"].values() if entry.pop("from", None) is not None]
    for entry in shared:
        source = next(part.path for part in saved.components.values() if part.path.name == entry["file"])
        shutil.copyfile(source, copied / entry["file"])
    if shared:
        write_json(copied / CONFIG_NAME, config)


def push_saved(save: Callable[[Path], None], repository: str, **options: Any) -> str:
    """`push` of what `save` writes into a folder of its own, with a card for the repository; options are those of
    `push`."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        save(folder)
        (folder / CARD_NAME).unlink(missing_ok=True)
        return push(folder, repository, **options)


def _is_allowed(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in FILES)


def _hub() -> Any:
    huggingface_hub = import_extra("huggingface_hub", "hub")
    return huggingface_hub


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
