"""Choice of the device and floating-point type."""

from __future__ import annotations

import contextlib
import re
from typing import TypeVar

import torch
from torch import nn

from resgen.errors import ConfigError, unknown

Module = TypeVar("Module", bound=nn.Module)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SHORT = {"fp32": "float32", "bf16": "bfloat16"}
_HALF = ("float16", "fp16", "half")


def choose_device(device: str | torch.device) -> torch.device:
    """A device, by name or as it is: `cpu`, `cuda`, `cuda:N`; `auto` takes a GPU if there is one.

    Raises:
        ConfigError: an unknown name, or a GPU is asked for and there is none.
    """
    name = str(device)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    form = re.fullmatch(r"cpu|cuda(?::(0|[1-9][0-9]*))?", name)
    if form is None:
        raise ConfigError(unknown("device", name, ("auto", "cpu", "cuda", "cuda:N")))
    if name != "cpu" and int(form[1] or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={name} but this machine has {torch.cuda.device_count()} usable GPUs; use device=cpu or device=auto"
        )
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 (elsewhere it is slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    with contextlib.suppress(Exception):  # private functions, which some builds lack
        return any(
            getattr(torch.cpu, check, lambda: False)()
            for check in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        )
    return False


def dtype_name(dtype: str | torch.dtype) -> str:
    """The name of a type of numbers, as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`float32` or `bfloat16`, by name (`fp32` and `bf16` for short) or as it is; `auto` takes bfloat16 where the
    device has instructions for it.

    Raises:
        ConfigError: any other type.
    """
    name = dtype_name(dtype)
    name = _SHORT.get(name, name)
    if name == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise ConfigError(unknown("dtype", name, ("auto", *DTYPES, "int8"), others=dict.fromkeys(_HALF, "bfloat16")))
    return DTYPES[name]


def cast_parameters(module: Module, dtype: torch.dtype) -> Module:
    """Convert the floating parameters in place; buffers (codebooks, statistics) keep their type, and so do the
    parameters of modules with `keeps_float32`."""
    for part in module.modules():
        for parameter in () if getattr(part, "keeps_float32", False) else part.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return module
