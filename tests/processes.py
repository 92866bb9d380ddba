"""Starting a worker in several processes, as torchrun would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

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
