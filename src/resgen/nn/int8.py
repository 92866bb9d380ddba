"""Linear layers with int8 weights, for sampling on CPUs.

Weights have one scale per output, activations one per row (position), taken from the row alone: a sample does not
depend on what else is in its batch (behind gelu up to rounding, where a width does not fill the processor's vectors).
Products are of whole numbers, exact whatever their order.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resgen.devices import choose_dtype, dtype_name
from resgen.errors import ConfigError
from resgen.nn.transformer import Block

MACHINES = ("x86_64", "AMD64")
PART_ELEMENTS = 1 << 20
FLOATING = "dtype=bfloat16 or float32"
_ZERO, _MOST = 128, 127  # activations are kept as 1..255 around 128: the form that processors multiply


class Int8Weight(Tensor):
    """The matrix of a linear layer. Shape and type are those of the matrix that it was made from; all it can do is
    multiply.

    Args:
        weight: floating `[E, I]`, on the CPU.
    """

    @staticmethod
    def __new__(cls, weight: Float[Tensor, "E I"]) -> Int8Weight:
        return Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)

    def __init__(self, weight: Float[Tensor, "E I"]) -> None:
        exact = weight.detach().float()
        self.scale = exact.abs().amax(1).clamp_(min=torch.finfo(torch.float32).tiny).div_(_MOST)
        whole = (exact / self.scale[:, None]).round_().to(torch.int8)
        self.offset = whole.sum(1, dtype=torch.int32) * self.scale * -_ZERO
        self.zero = torch.zeros(len(whole), dtype=torch.int64)
        self.packed = torch.ops.onednn.qlinear_prepack(whole, None)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Both calls of `ops.linear`; everything else as for any tensor."""
        if getattr(function, "__name__", "") in ("linear", "_linear_pointwise"):
            x, weight, bias, *after = args
            if torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad):
                raise TypeError("int8 weights have no gradients; call the network in torch.inference_mode()")
            return weight.linear(x, bias, gelu=after[:1] == ["gelu"])
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # PyTorch declares it as a variable
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            alias = Tensor._make_wrapper_subclass(cls, args[0].shape, dtype=args[0].dtype)
            alias.__dict__.update(args[0].__dict__)
            return alias
        raise TypeError(
            f"int8 weights can multiply activations, but not {function}; load the model again with {FLOATING}"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refused, before PyTorch looks for numbers where there are none."""
        raise TypeError(f"int8 weights cannot be pickled or saved; load the model again with {FLOATING}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Int8Weight:
        """Itself: nothing changes its numbers."""
        return self

    def share_memory_(self) -> Any:
        """Refused: PyTorch would look for numbers where there are none, and end the process."""
        raise TypeError("int8 weights cannot be shared between processes; load the model in each")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # PyTorch declares no types
        return f"Int8Weight({tuple(self.shape)})"

    def linear(
        self, x: Float[Tensor, "*batch I"], bias: Float[Tensor, " E"], *, gelu: bool = False
    ) -> Float[Tensor, "*batch E"]:
        """What `ops.linear.linear` gives, in the type of `x`; float32 between product and result. A part of the rows at
        a time, which stays in the processor's cache."""
        rows = x.reshape(-1, x.shape[-1])
        out = x.new_empty(len(rows), len(self.scale))
        for part, result in zip(*(t.split(max(1, PART_ELEMENTS // max(self.shape))) for t in (rows, out)), strict=True):
            whole, scale = quantize_rows(part)
            value = self._product(whole).mul_(scale).add_(bias)
            result.copy_(_gelu(value) if gelu else value)
        return out.view(*x.shape[:-1], out.shape[1])

    def _product(self, whole: Tensor) -> Float[Tensor, "N E"]:
        """Of the rows before their scale, in float32."""
        layout = (self.packed, self.scale, self.zero, self.offset)
        return torch.ops.onednn.qlinear_pointwise(whole, 1.0, 0, *layout, 1.0, 0, torch.float32, "none", [], "")


def quantize_rows(rows: Float[Tensor, "N I"]) -> tuple[Tensor, Float[Tensor, "N 1"]]:
    """Whole numbers 1..255 with 128 for zero (uint8 `[N, I]`), and the scale of each row: `(whole - 128) * scale`."""
    rows = rows.float()
    most = torch.maximum(rows.amax(-1, keepdim=True), rows.amin(-1, keepdim=True).neg_())
    scale = most.clamp_(min=torch.finfo(torch.float32).tiny * 256).div_(_MOST)
    return (rows / scale).add_(_ZERO + 0.5).to(torch.uint8), scale


def _gelu(x: Tensor) -> Tensor:
    """The tanh form, by the logistic function: twice as fast as PyTorch's kernel."""
    inner = x.square().mul_(0.044715).add_(1).mul_(x).mul_(2 * (2 / torch.pi) ** 0.5)
    return inner.sigmoid_().mul_(x)


@functools.cache
def has_int8() -> bool:
    """Whether this processor and this build of PyTorch multiply int8 fast and without overflow: older processors add
    pairs of products in 16 bits."""
    if platform.machine() not in MACHINES or not torch.backends.mkldnn.is_available():
        return False
    try:
        value = Int8Weight(torch.ones(32, 64))._product(torch.full((4, 64), 255, dtype=torch.uint8))
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(value, torch.full((), 64.0 * _MOST))


def check_int8(device: torch.device) -> None:
    """Reject what cannot compute with int8 weights.

    Raises:
        ConfigError: a device other than a CPU, or a processor or build of PyTorch without such products.
    """
    if device.type != "cpu":
        raise ConfigError(f"dtype=int8 needs device=cpu, not {device.type}; on a GPU take dtype=bfloat16")
    if not has_int8():
        raise ConfigError(
            f"dtype=int8 needs an x86 processor with VNNI and a PyTorch with oneDNN, which this machine "
            f"({platform.machine()}) lacks; take dtype=auto"
        )


def choose_type(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`devices.choose_dtype`, or int8.

    Raises:
        ConfigError: another type, or int8 where it cannot be computed with.
    """
    if dtype_name(dtype) != "int8":
        return choose_dtype(dtype, device)
    check_int8(device)
    return torch.int8


def floating_type(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type itself; for int8 that of everything but the matrices."""
    return choose_dtype("auto", device) if dtype == torch.int8 else dtype


def is_int8(network: nn.Module) -> bool:
    """Whether a network has int8 weights."""
    return any(isinstance(parameter, Int8Weight) for parameter in network.parameters())


def check_floating(network: nn.Module, purpose: str) -> None:
    """Reject a network with int8 weights, whose own weights are gone.

    Raises:
        ConfigError: it is one; `purpose` begins the message.
    """
    if is_int8(network):
        raise ConfigError(f"{purpose}: this model holds int8 weights; load it again with {FLOATING}")


def to_int8(network: nn.Module) -> None:
    """Replace the matrices of all transformer blocks' linear layers in place, one after the other.

    From then on `network.float()`, `network.to(...)` and the like change nothing or raise TypeError, the network as it
    was; so does `network.load_state_dict(...)`.
    """
    for block in network.modules():
        if isinstance(block, Block):
            for layer in block.modules():
                if isinstance(layer, nn.Linear) and not isinstance(layer.weight, Int8Weight):
                    layer.weight = nn.Parameter(Int8Weight(layer.weight), requires_grad=False)
    for module in network.modules():
        if is_int8(module):
            module._apply = MethodType(_apply, module)  # type: ignore[method-assign]
            module.register_load_state_dict_pre_hook(_refuse_state)


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`Module._apply`, tried on the int8 weights before it changes anything."""
    for parameter in module.parameters():
        if isinstance(parameter, Int8Weight):
            function(parameter)
    return nn.Module._apply(module, function, recurse)


def _refuse_state(*_: object) -> None:
    """Called before `load_state_dict` changes anything."""
    raise TypeError(f"int8 weights cannot be replaced by a state; load the model again with {FLOATING}")
