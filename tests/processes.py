"""Starting a worker in several processes, as torchrun would; and threads in their place, where that is enough."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

TIMEOUT_S = 600
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "resgen.training.image.runs",
        "resgen.training.speech.runs",
        "resgen.training.sharding",
        "torch._dynamo",  # an optimizer imports it
        "torch.distributed.fsdp",
    ]
)
"""Starts processes that have imported torch and resgen already."""


class Worker:
    """`python script argument ...` in a process of its own.

    The process is forked from a server that has imported torch and resgen once, so it starts in milliseconds.
    """

    def __init__(self, script: Path, *arguments: object, **environment: object) -> None:
        variables = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        variables |= {name: str(value) for name, value in environment.items()}
        descriptor, self._errors = tempfile.mkstemp()
        os.close(descriptor)
        self.process = FORKS.Process(target=_run, args=(script, [*map(str, arguments)], variables, self._errors))
        self.process.start()

    def poll(self) -> int | None:
        """The exit status, `-signal` of a killed process; None while it runs."""
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    def finish(self, timeout_s: float = TIMEOUT_S) -> tuple[int, str]:
        """Wait for the end; exit status and standard error. A process that does not end in time is killed."""
        self.process.join(timeout_s)
        status = self.poll()
        if status is None:
            self.kill()
            self.process.join()
        errors = Path(self._errors).read_text()
        if status is None:
            pytest.fail(f"the process did not finish within {timeout_s} s: {errors}")
        return status, errors


def _run(script: Path, arguments: list[str], environment: dict[str, str], errors: str) -> None:
    """The new process: what an interpreter would have been given."""
    os.environ.clear()
    os.environ.update(environment)
    with open(errors, "wb") as file:
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def run_processes(count: int, script: Path, *arguments: object) -> list[tuple[int, str]]:
    """Exit status and standard error of each process; fails, and ends all, if they wait for each other for ever."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = [Worker(script, *arguments, RANK=rank, LOCAL_RANK=rank, **shared) for rank in range(count)]
    try:
        return [worker.finish() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


@contextmanager
def encoding_as_a_worker(runs: ModuleType) -> Iterator[None]:
    """Threads and batches of the workers that encode, in this process."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "ENCODE_BATCH", 3)
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


class ThreadReduce:
    """`Reduce` of threads that stand for processes."""

    def __init__(self, rank: int, shared: list[Tensor | None], barrier: threading.Barrier) -> None:
        self.rank, self.world_size = rank, len(shared)
        self._shared, self._barrier = shared, barrier

    def sum(self, value: Tensor) -> Tensor:
        return self._all(value).sum(0).to(value.dtype)

    def max(self, value: Tensor) -> Tensor:
        return self._all(value).amax(0)

    def _all(self, value: Tensor) -> Tensor:
        self._shared[self.rank] = value
        self._barrier.wait(TIMEOUT_S)
        values = torch.stack([part for part in self._shared if part is not None])
        self._barrier.wait(TIMEOUT_S)
        return values


def run_threads(count: int, work: Callable[[ThreadReduce], Any]) -> list[Any]:
    """What `work` returns in each of several threads that stand for processes; an exception is returned as it is."""
    shared: list[Tensor | None] = [None] * count
    barrier = threading.Barrier(count)

    def one(rank: int) -> Any:
        try:
            return work(ThreadReduce(rank, shared, barrier))
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
