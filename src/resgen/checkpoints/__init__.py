"""Saved models: a folder with `config.json` and safetensors files, checked on reading."""

from resgen.checkpoints.format import (
    FORMAT_VERSION,
    Component,
    Folder,
    SavedComponent,
    load_folder,
    load_tensors,
    save_folder,
)
from resgen.checkpoints.locate import list_bundled, resolve_model
from resgen.checkpoints.tensors import load_state, module_tensors, sha256_file, sha256_tensor

__all__ = [
    "FORMAT_VERSION",
    "Component",
    "Folder",
    "SavedComponent",
    "list_bundled",
    "load_folder",
    "load_state",
    "load_tensors",
    "module_tensors",
    "resolve_model",
    "save_folder",
    "sha256_file",
    "sha256_tensor",
]
