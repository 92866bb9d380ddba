"""Workers of a comparison."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue

import pytest

from resgen.experiments.image.actions import start_worker

FORK = multiprocessing.get_context("fork")


def work(free: Queue[list[int]], held: Connection) -> None:
    start_worker(free, 1)
    held.send("started")
    time.sleep(600)


def start_and_wait(held: Connection) -> None:
    free: Queue[list[int]] = FORK.Queue()
    free.put([])
    worker = FORK.Process(target=work, args=(free, held))
    worker.start()
    worker.join()


def test_a_worker_whose_parent_is_killed_ends() -> None:
    ours, theirs = FORK.Pipe()
    parent = FORK.Process(target=start_and_wait, args=(theirs,))
    parent.start()
    theirs.close()
    assert ours.recv() == "started"
    parent.kill()
    assert ours.poll(120), "the worker lives on"
    with pytest.raises(EOFError):
        ours.recv()
