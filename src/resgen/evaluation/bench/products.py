"""The bare matrix products of a network: which ones a run needs, and how long they take with nothing in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from resgen.nn.int8 import Int8Weight

FUSED = "_linear_pointwise"  # `ops.linear` where it is one kernel; as a bare product it is a plain `linear`

# Functions that multiply matrices, by the name they have whichever module they are called from; the operand whose last
# dimension is summed over is the first or, where a third one is added, the second.
FIRST_OPERAND = {
    "linear": 0,
    "mm": 0,
    "bmm": 0,
    "matmul": 0,
    "__matmul__": 0,
    "grouped_mm": 0,
    "_grouped_mm": 0,
    "addmm": 1,
    "baddbmm": 1,
    FUSED: 0,
}

Pool = dict[tuple[tuple[int, ...], torch.dtype, torch.device], Tensor]


class BareProducts:
    """The products of a run with the matrices of a network, to be run again one after the other.

    What is counted: every product of an activation with a parameter (linear layers, the rows of a head's matrix that
    sampling needs, products grouped by component), each as often as it ran, on the same weights in the same order, with
    the bias where the call has one. Activations are noise of the same shape and type. What is not: attention between
    positions, quantization against the codebooks, norms, gelu, softmax, drawing, copies, products with a gathered copy
    of a parameter (only odd widths need those).

    Attributes:
        calls: the products, in order.
        multiply_adds: multiply-adds of all of them together.
    """

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.multiply_adds = 0

    @torch.inference_mode()
    def __call__(self) -> None:
        for call in self.calls:
            call()


def record_products(
    network: nn.Module, run: Callable[[], object], pool: Pool | None = None, recorder: type[Recorder] | None = None
) -> BareProducts:
    """The products with parameters of `network` while `run` runs.

    Args:
        network: whose parameters count.
        run: called once.
        pool: activations by shape, to be shared between recordings.
        recorder: what is noted of every product; the product itself by default.
    """
    products = BareProducts()
    with (recorder or Recorder)(network, products, {} if pool is None else pool):
        run()
    return products


class Recorder(TorchFunctionMode):
    """Notes every product once."""

    operands: ClassVar[Mapping[str, int]] = FIRST_OPERAND
    times: ClassVar[int] = 1

    def __init__(self, network: nn.Module, products: BareProducts, pool: Pool) -> None:
        super().__init__()
        stored = (parameter for parameter in network.parameters() if not isinstance(parameter, Int8Weight))
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in stored}
        self.products = products
        self.pool = pool

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        first = self.operands.get(getattr(function, "__name__", ""))
        if first is not None and any(self._is_weight(value) for value in args) and result.numel():
            if function.__name__ == FUSED:
                function, args = functional.linear, args[:3]
            self.note(function, args, kwargs, result)
            self.products.multiply_adds += self.times * result.numel() * args[first].shape[-1]
        return result

    def note(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """Remember a call and its result."""
        values = [self.stand_in(value) for value in args]
        keywords = {name: self.stand_in(value) for name, value in kwargs.items()}
        self.products.calls.append(partial(function, *values, **keywords))

    def _is_weight(self, value: object) -> bool:
        """A parameter's matrix or a view of one; biases are none."""
        return isinstance(value, Tensor) and value.ndim > 1 and self.is_parameter(value)

    def is_parameter(self, value: Tensor) -> bool:
        """Whether a tensor is a parameter of the network or a view of one."""
        return isinstance(value, Int8Weight) or value.untyped_storage().data_ptr() in self.weights

    def stand_in(self, value: Any) -> Any:
        """Noise in place of an activation, which is not kept: all of a run together would fill the memory."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or self.is_parameter(value):
            return value
        key = (tuple(value.shape), value.dtype, value.device)
        if key not in self.pool:
            stream = torch.Generator(value.device).manual_seed(0)
            noise = torch.empty(value.shape, dtype=value.dtype, device=value.device)
            self.pool[key] = noise.normal_(generator=stream)
        return self.pool[key]
