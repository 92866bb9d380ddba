"""Saving and loading classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resgen.checkpoints.format import Component, Folder, load_folder, load_tensors, save_folder
from resgen.checkpoints.tensors import load_state, module_tensors
from resgen.config import config_from_dict, config_to_dict
from resgen.errors import CheckpointError
from resgen.nn.classifier import Classifier, ClassifierConfig

KIND = "classifier"


def save_classifier(
    path: str | Path, model: Classifier, *, class_names: Sequence[str] = (), history: Mapping[str, Any] | None = None
) -> None:
    """Write a classifier folder.

    Raises:
        CheckpointError: the place holds something else or cannot be written.
    """
    part = Component(type=KIND, config=config_to_dict(model.config), tensors=module_tensors(model))
    extra = {"class_names": list(class_names), "history": dict(history or {})}
    save_folder(path, kind=KIND, components={KIND: part}, extra=extra)


def load_classifier(path: str | Path) -> tuple[Classifier, Folder]:
    """The classifier of a folder, in evaluation mode.

    Raises:
        CheckpointError: nothing there, damaged, or not a classifier.
    """
    folder = load_folder(path)
    saved = folder.component(KIND)
    if saved.type != KIND:
        raise CheckpointError(f"'{saved.path}': type '{saved.type}' is not known; this version knows '{KIND}'")
    model = Classifier(config_from_dict(ClassifierConfig, saved.config, where="classifier."))
    load_state(model, load_tensors(saved), str(saved.path))
    return model.eval().requires_grad_(False), folder
