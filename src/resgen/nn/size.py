"""The size of a network, computed without allocating its memory."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

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
        with torch.device("meta"), _Shapes(), _limited(PARTS_PER_TENSOR * tensors + 1000, 4 * values + (1 << 24), what):
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


class _Shapes(TorchFunctionMode):
    """What constructors compute on the meta device, as shapes alone.

    PyTorch imports its compiler to compute there, for more than a second. What `RULES` does not know still takes that
    way; the result is the same.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule, options = RULES.get(function), kwargs or {}
        if torch.device(options.get("device") or "meta").type != "meta":
            rule = None  # numbers are asked for, as by what a cache keeps for later
        result = None if rule is None else rule(*args, **options)
        return function(*args, **options) if result is None else result


def _drawn(*shape: Any, generator: torch.Generator | None = None, **options: Any) -> Tensor:
    """`torch.randn`."""
    return torch.empty(*shape, **options)


def _counted(*bounds: Any, **options: Any) -> Tensor | None:
    """`torch.arange` of whole numbers."""
    if not all(isinstance(bound, int) for bound in bounds):
        return None
    start, end, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    return torch.empty(max(0, math.ceil((end - start) / step)), **{"dtype": torch.int64, **options})


def _pointwise(*operands: Any, **others: Any) -> Tensor | None:
    """Functions of the numbers at the same place, of one or two operands."""
    tensors = [operand for operand in operands if isinstance(operand, Tensor)]
    if others or len(operands) > 2 or not tensors or not all(tensor.is_meta for tensor in tensors):
        return None
    kind = torch.result_type(*operands) if len(operands) == 2 else tensors[0].dtype
    return torch.empty(torch.broadcast_tensors(*tensors)[0].shape, dtype=kind)


def _real(*operands: Any, **others: Any) -> Tensor | None:
    """Those whose results are not whole."""
    result = _pointwise(*operands, **others)
    return result if result is None or result.is_floating_point() else result.to(torch.get_default_dtype())


def _outer(*vectors: Tensor, **others: Any) -> Tensor | None:
    """`torch.outer`."""
    return None if others else _pointwise(vectors[0][:, None], *vectors[1:])


def _joined(parts: Sequence[Tensor], dim: int = 0, **others: Any) -> Tensor | None:
    """`torch.cat` of one type."""
    if others or not all(part.is_meta and part.dtype == parts[0].dtype for part in parts):
        return None
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return torch.empty(shape, dtype=parts[0].dtype)


def _normalized(tensor: Tensor, **_: Any) -> Tensor | None:
    """`functional.normalize`."""
    return _pointwise(tensor)


_T = torch.Tensor
RULES: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    torch.randn: _drawn,
    torch.arange: _counted,
    torch.hann_window: lambda size, periodic=True, **options: torch.empty(size, **options),
    torch.outer: _outer,
    torch.cat: _joined,
    **dict.fromkeys((_T.normal_, nn.init.normal_), lambda tensor, *_, **__: tensor),
    F.normalize: _normalized,
    **dict.fromkeys((_T.add, _T.sub, _T.mul, _T.neg, _T.__rsub__, _T.__rpow__, _T.square), _pointwise),
    **dict.fromkeys((_T.div, _T.sin, _T.cos), _real),
}


@contextlib.contextmanager
def _limited(parts: int, values: int, what: str) -> Iterator[None]:
    """Reject modules with more parts, or with more numbers in them."""

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
