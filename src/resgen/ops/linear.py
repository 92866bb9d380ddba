"""Linear maps with what follows them in the same pass, where the processor has a kernel for that."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

CHUNK_ELEMENTS = 1 << 22


def linear(
    x: Float[Tensor, "*batch I"], weight: Float[Tensor, "E I"], bias: Float[Tensor, " E"], *, gelu: bool = False
) -> Float[Tensor, "*batch E"]:
    """`x W' + b`, and gelu (the tanh form) of it if asked for.

    Without gradients, in bfloat16 on a CPU, one kernel does it all: bias and gelu are applied to the sums before they
    are rounded, and nothing is read twice. The linear map is the same to the last bit; gelu is rounded once in place of
    twice.
    """
    if fuses(x, weight):
        after: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after)
    out = F.linear(x, weight, bias)
    return F.gelu(out, approximate="tanh") if gelu else out


def feed_forward(
    x: Float[Tensor, "*batch I"],
    up: Float[Tensor, "E I"],
    up_bias: Float[Tensor, " E"],
    down: Float[Tensor, "O E"],
    down_bias: Float[Tensor, " O"],
) -> Float[Tensor, "*batch O"]:
    """`gelu(x U' + u) V' + v`.

    Where `linear` fuses, a part of the rows at a time: the wide layer then stays in the processor's cache, and no
    memory is asked for it but that of one part.
    """
    if not fuses(x, up):
        return linear(linear(x, up, up_bias, gelu=True), down, down_bias)
    parts = x.reshape(-1, x.shape[-1]).split(max(1, CHUNK_ELEMENTS // len(up)))
    out = [linear(linear(part, up, up_bias, gelu=True), down, down_bias) for part in parts]
    return (out[0] if len(out) == 1 else torch.cat(out)).view(*x.shape[:-1], len(down))


def fuses(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` runs as one kernel; a compiler fuses for itself."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.bfloat16
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
