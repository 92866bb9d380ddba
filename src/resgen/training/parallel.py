"""Where and how the work runs: device, precision and processes. With `sharding` the only file that knows
`torch.distributed`.

For several processes the trainer needs a `Reduce` (made by `initialise()`) and `average_gradients` before the optimizer
step. Each process works on its own micro-batches of the same global batch.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from resgen.devices import has_bfloat16
from resgen.types import LOCAL, Reduce

PRECISIONS = ("auto", "bf16", "fp32")

TIMEOUT = timedelta(hours=2)
"""How long processes wait for each other, while the first one encodes data, say."""

_BUCKET_NUMBERS = 1 << 23

_meshes: list[DeviceMesh] = []


class DistributedReduce:
    """Sums and maxima over the processes of the default group.

    Args:
        rank: number of this process, from 0.
        world_size: how many processes there are.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size

    def sum(self, value: Tensor) -> Tensor:
        """Elementwise sum over processes; `value` itself stays as it is."""
        return self._reduce(value, dist.ReduceOp.SUM)

    def max(self, value: Tensor) -> Tensor:
        """Elementwise maximum over processes; `value` itself stays as it is."""
        return self._reduce(value, dist.ReduceOp.MAX)

    def _reduce(self, value: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        place = torch.device("cuda") if dist.get_backend() == "nccl" else value.device  # NCCL takes nothing else
        result = value.detach().to(place, copy=True).contiguous()
        dist.all_reduce(result, op=operation)
        return result.to(value.device)


def initialise() -> Reduce:
    """Join the processes started by `torchrun`; without `torchrun`, the single process `LOCAL`."""
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ or not dist.is_available():
        return LOCAL
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"  # numbers of the host are summed, too
        dist.init_process_group(backend, timeout=TIMEOUT)
    return DistributedReduce(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def first_alone(reduce: Reduce) -> Iterator[None]:
    """The block is run by the first process, and then by the others, who find what it left."""
    if reduce.rank > 0:
        dist.barrier()
    yield
    if reduce.world_size > 1 and reduce.rank == 0:
        dist.barrier()


def make_mesh(device: torch.device) -> DeviceMesh:
    """All processes in a row, for what is divided over them."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    _meshes.append(mesh)
    return mesh


def finalise() -> None:
    """Leave the group of processes, if there is one; to be called when nothing divided over them is used any more.

    The group's threads end with its last reference. A thread that is still busy with a tensor when the interpreter
    ends aborts the process, whatever it had achieved; so the references go: those of the meshes, which PyTorch's caches
    keep for ever, and those in cycles.
    """
    if dist.is_available() and dist.is_initialized():
        for mesh in _meshes:
            getattr(mesh, "_pg_registry", {}).clear()
        _meshes.clear()
        gc.collect()
        dist.destroy_process_group()


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], reduce: Reduce) -> None:
    """Replace every gradient by its mean over processes, in buckets; a gradient missing here counts as zero."""
    if reduce.world_size == 1:
        return
    parameters = list(parameters)
    # On the host, and once: on a GPU the answer would come after the backward pass, and no bucket begin before it.
    present = reduce.max(torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)).tolist()
    bucket: list[nn.Parameter] = []
    numbers = 0
    for parameter, there in zip(parameters, present, strict=True):
        if not there:
            continue
        bucket.append(parameter)
        numbers += parameter.numel()
        if numbers >= _BUCKET_NUMBERS:
            _average_bucket(bucket, reduce)
            bucket, numbers = [], 0
    if bucket:
        _average_bucket(bucket, reduce)


def _average_bucket(parameters: list[nn.Parameter], reduce: Reduce) -> None:
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().reshape(-1) for p in parameters])
    flat = reduce.sum(flat) / reduce.world_size
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        # Laid out in memory as the parameter is (channels-last, say): the fused AdamW takes that for granted.
        parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(part.view_as(parameter))


def choose_precision(name: str, device: torch.device) -> str:
    """`bf16` or `fp32`; `auto` takes bf16 on a GPU and on a CPU with instructions for it."""
    if name != "auto":
        return name
    return "bf16" if has_bfloat16(device) else "fp32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context in which losses are computed."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
