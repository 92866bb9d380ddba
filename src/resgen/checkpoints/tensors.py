"""Tensors in safetensors files: written with checks, read as if the file were hostile, loaded strictly."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from resgen.errors import CheckpointError

_CHUNK_BYTES = 1 << 22
_WRAPPERS = ("_orig_mod.", "module.")


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a regular file's bytes.

    Raises:
        CheckpointError: the file is missing, unreadable or not a regular file.
    """
    path = Path(path)
    digest = hashlib.sha256()
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"'{path}' is not a regular file")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def sha256_tensor(tensor: Tensor) -> str:
    """Hexadecimal SHA-256 of a tensor's type, shape and values; independent of its device and strides."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def canonical_name(name: str) -> str:
    """A parameter's name without the prefixes that wrappers (compilation, data parallelism) put before it."""
    compiled, parallel = _WRAPPERS
    name = name.replace(compiled, "")
    return name.removeprefix(parallel)


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by canonical name, sharing memory with the module."""
    return {canonical_name(name): tensor for name, tensor in module.state_dict().items()}


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file. Tensors that share memory are written once each.

    Raises:
        OSError: the file cannot be written; the caller names the folder.
    """
    pointers: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        pointer = value.untyped_storage().data_ptr()
        if pointer in pointers or value.untyped_storage().nbytes() != value.numel() * value.element_size():
            value = value.clone()
        pointers.add(value.untyped_storage().data_ptr())
        plain[name] = value
    try:
        save_file(plain, str(path), metadata={"format": "pt"})
    except SafetensorError as error:  # what safetensors makes of a failed system call
        raise OSError(" ".join(str(error).split())) from error
    Path(path).chmod(0o644)  # safetensors lets nobody else read


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file.

    Raises:
        CheckpointError: the file is missing, truncated or not a safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"'{path}' is not a readable safetensors file: {_one_line(error)}") from error


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy `tensors` into the module's parameters and persistent buffers; names and shapes must agree exactly.

    Floating point tensors are converted to the module's type. Nothing is copied unless everything fits.

    Args:
        module: receives the values.
        tensors: by canonical name.
        where: what the tensors are, for the message (a path).

    Raises:
        CheckpointError: a name is missing or unknown, a shape or kind of number differs (both are named), or
            numbers are not finite.
    """
    check_match(module_tensors(module), tensors, where)
    check_finite(tensors, where)
    with torch.no_grad():
        for name, target in module_tensors(module).items():
            target.copy_(tensors[name])


def check_match(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Compare names, shapes and kinds of numbers.

    Raises:
        CheckpointError: for the first tensor that differs, with both shapes.
    """
    for name, target in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{where}: tensor '{name}' of shape {list(target.shape)} is missing")
        value = tensors[name]
        if value.shape != target.shape:
            raise CheckpointError(
                f"{where}: tensor '{name}' has shape {list(value.shape)} but the model needs {list(target.shape)}"
            )
        if value.is_floating_point() != target.is_floating_point():
            raise CheckpointError(f"{where}: tensor '{name}' is {value.dtype} but the model needs {target.dtype}")
    for name, value in tensors.items():
        if name not in expected:
            raise CheckpointError(f"{where}: tensor '{name}' of shape {list(value.shape)} is not part of the model")


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Reject tensors with NaN, infinity, or numbers whose squares are not finite.

    Raises:
        CheckpointError: naming the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().square().sum(dtype=torch.float64).isfinite():
            raise CheckpointError(
                f"{where}: tensor '{name}' holds numbers that are not finite, or near it; its training diverged"
            )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
