"""How large a network is, found out before memory is taken for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from resgen.errors import ConfigError, ResGenError

M = TypeVar("M", bound=nn.Module)
MOST_TENSORS = 1500
PARTS_PER_TENSOR = 6
"""Modules, shared parameters and the like that a network may have for every tensor of its own."""


@contextlib.contextmanager
def outlining(what: str, *, tensors: int = MOST_TENSORS, values: int = 1 << 50) -> Iterator[None]:
    """Networks that are built in this block lie on the meta device, which holds shapes and no numbers.

    Args:
        what: what to call the networks in an error.
        tensors: about how many tensors they may have.
        values: about how many numbers these may hold.

    Raises:
        ConfigError: they are larger, which is noticed on the way, or cannot be built.
    """
    try:
        with torch.device("meta"), _limited(PARTS_PER_TENSOR * tensors + 1000, 4 * values + (1 << 24), what):
            yield
    except ResGenError:
        raise
    except (RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError, IndexError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"{what} cannot be built as it is configured: {reason}") from error


def build_within_memory(build: Callable[[], M], what: str) -> M:
    """A network whose numbers, in 32 bits, fit into this machine's memory.

    Raises:
        ConfigError: they do not, or it cannot be built; next to no memory was taken.
    """
    known = hasattr(os, "sysconf")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 1 << 40
    with outlining(what, values=memory // 16):
        build()
    return build()


@contextlib.contextmanager
def _limited(parts: int, values: int, what: str) -> Iterator[None]:
    """Refuse modules with more parts, or with more numbers in them."""

    def count(_: nn.Module, name: str, part: object) -> None:
        nonlocal parts, values
        parts -= 1
        values -= part.numel() if isinstance(part, torch.Tensor) else 0
        if parts < 0 or values < 0:
            raise ConfigError(
                f"{what} is larger than it may be ('{name}' is beyond it); check the sizes in its configuration"
            )

    with contextlib.ExitStack() as stack:
        for register in (
            register_module_parameter_registration_hook,
            register_module_buffer_registration_hook,
            register_module_module_registration_hook,
        ):
            stack.callback(register(count).remove)
        yield
