"""A model sharded over processes (FSDP2), and saving and loading its tensors.

Checkpoints are written by `torch.distributed.checkpoint` as safetensors, every process its own part; they can be read
as a whole by any number of processes. What PyTorch needs for all this takes seconds to import: only a divided model is
made to wait for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from resgen.checkpoints.tensors import canonical_name
from resgen.errors import CheckpointError, WriteError
from resgen.training.parallel import make_mesh

Shard = Callable[[nn.Module], Any]
"""Divides the parameters of a module, in place, and gathers them whenever it is called."""


def make_shard(device: torch.device) -> Shard:
    """`fully_shard` over all processes."""
    from torch.distributed.fsdp import fully_shard

    mesh = make_mesh(device)
    return lambda module: fully_shard(module, mesh=mesh)


def skeleton_of(module: nn.Module) -> nn.Module:
    """A copy without memory, made before the module is divided, for `whole_copy`."""
    empty: dict[int, Tensor] = {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    for parameter in module.parameters():
        empty[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    return copy.deepcopy(module, empty)  # which does not copy what it finds there


@torch.no_grad()
def whole_copy(skeleton: nn.Module, module: nn.Module, parameters: Mapping[str, Tensor] | None = None) -> nn.Module:
    """An ordinary module with the values of a divided one. All processes must call this together.

    Args:
        skeleton: from `skeleton_of`.
        module: the divided module.
        parameters: values in place of the module's own, by canonical name, such as averages.
    """
    own = {canonical_name(name): value for name, value in module.named_parameters()}
    copied = copy.deepcopy(skeleton)
    buffers = {canonical_name(name): value for name, value in module.named_buffers()}
    device = next(iter(own.values())).device
    copied.to_empty(device=device)
    for name, parameter in copied.named_parameters():
        parameter.copy_(whole((parameters or own)[canonical_name(name)]))
    for name, buffer in copied.named_buffers():
        buffer.copy_(buffers[canonical_name(name)])
    return copied.eval()


def whole(value: Tensor) -> Tensor:
    """A tensor's full value on every process. Of a divided one all processes must ask together."""
    divided = _divided(value)
    return value if divided is None else divided.full_tensor()


def like(value: Tensor, target: Tensor) -> Tensor:
    """A full tensor on the target's device and in its type, divided as the target is, or laid out as it is in memory.

    The order in memory matters: the fused AdamW takes its state to lie as the parameter does (channels-last, say).
    """
    divided = _divided(target)
    if divided is not None:
        from torch.distributed.tensor import distribute_tensor

        value = value.to(device=target.device, dtype=target.dtype, copy=True)
        return distribute_tensor(value, divided.device_mesh, divided.placements, src_data_rank=None)
    return torch.empty_like(target, requires_grad=False).copy_(value)


def wait_for_all() -> None:
    """Go on when every process has come here."""
    dist.barrier()


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write divided tensors, every process its own part. All processes must call this together.

    Raises:
        WriteError: a process cannot write.
    """
    import torch.distributed.checkpoint as dcp

    try:
        dcp.save(dict(tensors), storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except dcp.api.CheckpointException as error:
        raise WriteError(f"cannot write '{folder}': {_reason(error)}") from error


def read_parts(folder: Path) -> dict[str, Tensor]:
    """Full tensors from the parts that `write_parts` wrote; one process is enough.

    Raises:
        CheckpointError: a part is missing or damaged.
    """
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        about = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)  # type: ignore[union-attr]
            for name, entry in about.items()
        }
        dcp.load(dict(tensors), storage_reader=reader, no_dist=True)
    except Exception as error:  # whatever the reader meets in a damaged file
        raise CheckpointError(f"'{folder}' cannot be read: {_reason(error)}") from error
    return tensors


def _divided(value: Tensor) -> Any:
    """The tensor, if it is a `DTensor`; else None."""
    return value if hasattr(value, "full_tensor") else None


def _reason(error: BaseException) -> str:
    failures = getattr(error, "failures", None)  # of a `CheckpointException`
    if failures:
        error = next(iter(failures.values()))[0]
    return " ".join(str(error).split())[:200] or type(error).__name__
