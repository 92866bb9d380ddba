"""Training steps without numbers, on PyTorch's fake tensors, which have shapes, types and devices only.

`trace` runs a step and says what it keeps in memory and how many operations it takes. PyTorch without CUDA
differentiates fake tensors of the CPU only, so these are what it runs on, with the choices that the package makes on an
accelerator: fused attention and large blocks of rows.

How many rows are masked decides how large the tensors of a loss are. `KnownValues` computes such numbers beside the
fake tensors: what follows from given values alone (masks from a random stream, their rows, a length) is known, what
follows from weights or activations is not. `StepCost` counts bytes in use and operations.
"""

from __future__ import annotations

import contextvars
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakTensorKeyDictionary

from resgen.nn.attention import Attention
from resgen.nn.transformer import Block
from resgen.ops.blocks import CPU_BLOCK, DEVICE_BLOCK
from resgen.training.interface import LossOf

CPU = torch.device("cpu")


class KnownValues(TorchDispatchMode):
    """Values of fake tensors, on the CPU whatever the tensors' device; to be entered within a `FakeTensorMode`."""

    def __init__(self) -> None:
        super().__init__()
        self._values: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._lost: dict[int, Tensor] = {}  # kept, so that no other values get their place in memory

    def place(self, values: Tensor, device: torch.device) -> Tensor:
        """A fake tensor on a device whose values are known."""
        tensor = torch.empty_like(values, device=device, requires_grad=False)
        with no_dispatch():
            self._values[tensor] = self._values.get(values, values).detach()
        return tensor

    def of(self, tensor: Tensor) -> Tensor | None:
        """The values of a tensor, where they are known."""
        if not isinstance(tensor, FakeTensor):
            return tensor
        values = self._values.get(tensor)
        return None if values is None or values.untyped_storage().data_ptr() in self._lost else values

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if any(self.of(tensor) is None for tensor in tensors):
            self._lose(function, args)
            return function(*args, **kwargs)
        values = self._compute(function, args, kwargs)
        if values is None or isinstance(values, (bool, int, float)):
            return values  # a number, which no fake tensor has
        shapes = self._shapes(function, args, kwargs, values)
        for tensor, value in zip(tree_leaves(shapes), tree_leaves(values), strict=True):
            if isinstance(tensor, FakeTensor):
                self._values[tensor] = value
        return shapes

    def _compute(self, function: Any, args: Any, kwargs: Any) -> Any:
        with no_dispatch():
            real_args, real_kwargs = tree_map_only(Tensor, self.of, (args, kwargs))
            return function(*real_args, **({**real_kwargs, "device": CPU} if "device" in kwargs else real_kwargs))

    def _shapes(self, function: Any, args: Any, kwargs: Any, values: Any) -> Any:
        """Fake tensors of a call; where shapes depend on numbers, those of the values."""
        if torch.Tag.dynamic_output_shape not in function.tags:
            return function(*args, **kwargs)
        device = next(value.device for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        return tree_map_only(Tensor, lambda value: torch.empty_like(value, device=device), values)

    def _lose(self, function: Any, args: tuple[Any, ...]) -> None:
        """What is overwritten with something unknown is unknown."""
        for argument, declared in zip(args, function._schema.arguments, strict=False):
            if declared.alias_info is not None and declared.alias_info.is_write:
                for tensor in tree_leaves(argument):
                    values = self._values.get(tensor) if isinstance(tensor, FakeTensor) else None
                    if values is not None:
                        self._lost[values.untyped_storage().data_ptr()] = values


class EvenDraws(KnownValues):
    """Known values with one uniform number per sample evenly spaced, so that the masks of few samples are typical."""

    def _compute(self, function: Any, args: Any, kwargs: Any) -> Any:
        values = super()._compute(function, args, kwargs)
        if function is torch.ops.aten.rand.generator and values.ndim == 1:
            with no_dispatch():
                values.copy_((torch.arange(len(values)) + 0.5) / len(values))
        return values


FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
FORMULAS = flop_registry | {
    FUSED: lambda q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape),
    FUSED_BACKWARD: lambda slope, q, k, v, *_, **__: sdpa_backward_flop_count(slope.shape, q.shape, k.shape, v.shape),
}
"""Floating-point operations of a call: PyTorch's own, which know fused attention on other devices only."""


class StepCost(TorchDispatchMode):
    """Cost of the block: bytes of the storages allocated in it that are still alive, and floating-point operations.

    Attributes:
        largest: bytes alive at any moment since the last `restart`.
        operations: so far.

    Args:
        root: the modules; those with a name in `items` give it to what is made in their forward pass.
        items: names by module.
    """

    def __init__(self, root: nn.Module, items: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.largest = self.operations = 0
        weights = list(root.parameters())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        self._weights = {value.untyped_storage()._cdata for value in weights}
        self._given = self._weights | {value.untyped_storage()._cdata for value in (*gradients, *root.buffers())}
        self._live: dict[int, tuple[str, int]] = {}
        self._total = 0
        self._inside = ["loss"]
        for module, name in items.items():
            module.register_forward_pre_hook(lambda *_, name=name: self._inside.append(name))
            module.register_forward_hook(lambda *_: self._inside.pop() and None)

    def by_item(self) -> Counter[str]:
        """Bytes that are alive."""
        items: Counter[str] = Counter()
        for name, size in self._live.values():
            items[name] += size
        return items

    def restart(self) -> None:
        """Let `largest` start again at what is alive."""
        self.largest = self._total

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if (formula := FORMULAS.get(function._overloadpacket)) is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        name = self._inside[-1]
        if function is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._weights:
            name = "bf16 weights"
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage(), name)
        return result

    def _note(self, storage: torch.UntypedStorage, name: str) -> None:
        key = storage._cdata
        if key not in self._live and key not in self._given:
            self._live[key] = name, storage.nbytes()
            self._total += storage.nbytes()
            self.largest = max(self.largest, self._total)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self._total -= self._live.pop(key)[1]


Number = int | float
Cost = Mapping[str, Number]
"""Bytes by item that are alive when the loss is known, the largest sum before it (`forward`) and after it
(`backward`), and floating-point `operations`."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step.

    Attributes:
        module: all that is trained, on the meta device.
        losses: `(indices, generator) -> losses`, as a task's.
        groups: parameters of each loss.
    """

    module: nn.Module
    losses: Callable[[int, torch.Generator], Sequence[LossOf]]
    groups: Mapping[str, list[nn.Parameter]]


def trace(make: Callable[[], Step], *, samples: int, bf16: bool) -> Cost:
    """The cost of one step with its backward pass.

    Args:
        make: the step; called under the meta device.
        samples: samples of the micro-batch.
        bf16: matrix products in bf16, as autocast has them.
    """
    with torch.device("meta"):
        step = make()
    return contextvars.copy_context().run(_trace, step, samples, bf16)


def _trace(step: Step, samples: int, bf16: bool) -> Cost:
    CPU_BLOCK.set(DEVICE_BLOCK)
    with FakeTensorMode(allow_non_fake_inputs=True):
        parameters = _materialise(step.module)
        groups = {name: [parameters[p] for p in group] for name, group in step.groups.items()}
        live = StepCost(step.module, dict(_items(step.module)))
        cost: dict[str, Number] = {"forward": 0, "backward": 0}
        with EvenDraws(), live:
            for group, compute in step.losses(samples, torch.Generator()):
                live.restart()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss, _ = compute()
                memory = live.by_item()
                if memory.total() >= sum(cost.values()) - cost["forward"] - cost["backward"]:
                    cost = {**memory, "forward": cost["forward"], "backward": cost["backward"]}
                cost["forward"] = max(cost["forward"], live.largest)
                live.restart()
                loss.backward(inputs=groups[group])
                del loss
                cost["backward"] = max(cost["backward"], live.largest)
    return {**cost, "operations": live.operations}


def _materialise(module: nn.Module) -> dict[nn.Parameter, nn.Parameter]:
    """Fake tensors on the CPU in place of parameters, whose gradients are there already, and of buffers."""
    parameters: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        if isinstance(part, Attention):
            part.max_plain_length = 0  # fused, as on an accelerator
        for name, old in part._parameters.items():
            if old is not None:
                if old not in parameters:
                    parameters[old] = nn.Parameter(torch.empty_like(old, device=CPU), requires_grad=old.requires_grad)
                    parameters[old].grad = torch.empty_like(parameters[old]) if old.requires_grad else None
                part._parameters[name] = parameters[old]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device=CPU)
    return parameters


def _items(root: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for name, module in root.named_modules():
        if isinstance(module, Attention):
            yield module, "attention"
        elif isinstance(module, Block):
            yield module, "mlp"
        elif not name:
            yield module, "other"
        elif isinstance(root, nn.ModuleDict) and "." not in name:
            yield module, name
