"""Drawing from categorical distributions with given noise."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from resgen.errors import ConfigError

ITEM_BITS = 32
LEAST_TEMPERATURE = 1e-6  # of codes; logits divided by less may not be finite any more
LEAST_TOP_P = 1e-30  # far above what float32 rounds to 0


def nucleus_choice(logits: Float[Tensor, "N K"], uniform: Float[Tensor, " N"], top_p: float) -> Int[Tensor, " N"]:
    """Choose one item per row by nucleus (top-p) sampling (Algorithm 2, step 1).

    The nucleus is the smallest set of most likely items whose mass reaches `top_p`, with all that are as likely as its
    last; it always holds the most likely item. The choice is a function of `uniform` alone.

    Almost no row needs sorting: an item drawn from the whole distribution is kept if it belongs to the nucleus, which
    one pass over the row tells. The few rows where it does not are sorted and drawn again, with what their uniform
    number still holds: its place within the refused item is uniform, too.

    Args:
        logits: unnormalised log probabilities; -inf excludes an item.
        uniform: one number in [0, 1) per row, best in float64.
        top_p: in (0, 1]; 1 keeps every item.

    Raises:
        ConfigError: if `top_p` is outside [1e-30, 1].
    """
    if not LEAST_TOP_P <= top_p <= 1.0:
        raise ConfigError(f"top_p={top_p} must lie in [{LEAST_TOP_P}, 1]")
    probs = (logits if logits.dtype == torch.float64 else logits.float()).softmax(dim=-1)
    choice, inner = _invert(probs, uniform)
    if top_p == 1.0:
        return choice
    threshold = probs.gather(1, choice[:, None])
    above = torch.gt(probs, threshold, out=torch.empty_like(probs)).mul_(probs).sum(dim=-1)
    refused = (above >= top_p).nonzero().squeeze(1)
    if len(refused):
        ordered, order = _descending(probs[refused])
        least = torch.where(ordered.cumsum(dim=-1) - ordered < top_p, ordered, torch.inf).amin(dim=-1, keepdim=True)
        rank, _ = _invert(torch.where(ordered >= least, ordered, 0.0), inner[refused])
        choice[refused] = order.gather(1, rank[:, None]).squeeze(1)
    return choice


def _descending(probs: Float[Tensor, "N K"]) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
    """The probabilities of each row from the largest to the smallest, and their items; of equal ones the first item
    comes first.

    On a CPU every probability and its item are sorted as one integer (the bits of floats that are not negative rise
    with them), by NumPy, whose sort is vectorised: a tenth of the time.
    """
    if probs.device.type != "cpu" or probs.dtype != torch.float32:
        return probs.sort(dim=-1, descending=True, stable=True)
    items = torch.arange(probs.shape[-1] - 1, -1, -1)
    keys = (probs.view(torch.int32).long() << ITEM_BITS) | items
    keys = torch.from_numpy(np.sort(keys.numpy(), axis=-1)).flip(-1)
    return (keys >> ITEM_BITS).int().view(torch.float32), items[keys & (1 << ITEM_BITS) - 1]


def _invert(mass: Float[Tensor, "N K"], uniform: Float[Tensor, " N"]) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """The item in whose share of the row's total mass `uniform` falls, and where within it, in [0, 1)."""
    upto = mass.cumsum(dim=-1)
    total = upto[:, -1:]
    point = uniform[:, None].double() * total.double()
    # Below the total even after rounding: the item found then has mass.
    target = point.to(upto.dtype).minimum(total.nextafter(torch.zeros_like(total)))
    item = torch.searchsorted(upto, target, right=True)
    share = mass.gather(1, item).double()
    inner = (point - upto.gather(1, item).double()) / share + 1.0
    return item.squeeze(1), inner.squeeze(1).clamp(0.0, 1.0 - 2.0**-53)
