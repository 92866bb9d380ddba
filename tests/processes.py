"""Starting a worker in several processes, as torchrun would; and threads in their place, where that is enough."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
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

TIMEOUT_S = 180


def run_processes(count: int, worker: Path, *arguments: object) -> list[tuple[int, str]]:
    """Exit status and standard error of each process; fails, and ends all, if they wait for each other for ever."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
        settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in settings.items()}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, str(worker), *map(str, arguments)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        found = [process.communicate(timeout=TIMEOUT_S)[1] for process in processes]
        return [(process.returncode, errors) for process, errors in zip(processes, found, strict=True)]
    except subprocess.TimeoutExpired:
        pytest.fail(f"the processes did not finish within {TIMEOUT_S} s")
    finally:
        for process in processes:
            process.kill()
            process.wait()


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
