"""The batcher alone, with a model that only notes what it is given."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from resgen.serving.batching import Batcher, ClosedError, QueueFullError, Ticket, raise_if_abandoned


class Model:
    """Answers `payload * 10`; waits for `gate` before each batch, and can be told to fail."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.threads: set[str] = set()

    def __call__(self, tickets: Sequence[Ticket]) -> list[Any]:
        self.batches.append([ticket.payload for ticket in tickets])
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.gate.wait(10)
        if any(ticket.payload == "fail" for ticket in tickets):
            raise RuntimeError("all")
        return [ValueError("own") if ticket.payload == "bad" else ticket.payload * 10 for ticket in tickets]

    async def hold(self) -> None:
        """Wait until a batch is being computed."""
        assert await asyncio.to_thread(self.entered.wait, 10)


def play(model: Callable[..., Any], scene: Callable[[Batcher], Awaitable[Any]], **changes: Any) -> Any:
    async def run() -> Any:
        batcher = Batcher(model, **{"max_batch": 8, "max_wait_s": 0.05, "max_queue": 100, **changes})
        batcher.start()
        try:
            return await asyncio.wait_for(scene(batcher), 20)
        finally:
            if isinstance(model, Model):
                model.gate.set()
            await batcher.close()

    return asyncio.run(run())


def test_requests_share_batches_and_get_their_own_answers() -> None:
    model = Model()

    async def scene(batcher: Batcher) -> list[Any]:
        tickets = [batcher.submit("a", number) for number in range(20)]
        return list(await asyncio.gather(*(batcher.result(ticket) for ticket in tickets)))

    assert play(model, scene) == [number * 10 for number in range(20)]
    assert model.batches == [list(range(8)), list(range(8, 16)), list(range(16, 20))]
    assert len(model.threads) == 1 and threading.current_thread().name not in model.threads


def test_keys_do_not_mix_and_the_oldest_goes_first() -> None:
    model = Model()

    async def scene(batcher: Batcher) -> None:
        tickets = [batcher.submit(key, number) for number, key in enumerate("abacb")]
        await asyncio.gather(*(batcher.result(ticket) for ticket in tickets))

    play(model, scene)
    assert model.batches == [[0, 2], [1, 4], [3]]


def test_sizes_are_counted_and_nobody_is_overtaken_within_a_key() -> None:
    model = Model()

    async def scene(batcher: Batcher) -> None:
        tickets = [batcher.submit("a", size, size=size) for size in (5, 4, 3, 8, 1)]
        await asyncio.gather(*(batcher.result(ticket) for ticket in tickets))
        for size in (0, 9):
            with pytest.raises(ValueError, match="must lie in 1..8"):
                batcher.submit("a", 0, size=size)

    play(model, scene)
    assert model.batches == [[5], [4, 3], [8], [1]]


def test_a_lone_request_waits_for_others_only_so_long() -> None:
    model, late = Model(), []

    async def scene(batcher: Batcher) -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        first = batcher.submit("a", 1)
        await asyncio.sleep(0.05)
        late.append(batcher.submit("a", 2))
        await batcher.result(first)
        await batcher.result(late[0])
        return loop.time() - began

    assert play(model, scene, max_wait_s=0.4) >= 0.39
    assert model.batches == [[1, 2]], "what comes within the time shares the batch"


def test_a_full_batch_does_not_wait() -> None:
    async def scene(batcher: Batcher) -> None:
        tickets = [batcher.submit("a", number) for number in range(8)]
        await asyncio.wait_for(asyncio.gather(*(batcher.result(ticket) for ticket in tickets)), 5)

    play(Model(), scene, max_wait_s=60.0)


def test_the_queue_is_bounded() -> None:
    model = Model()
    model.gate.clear()

    async def scene(batcher: Batcher) -> None:
        running = batcher.submit("a", 0)
        await model.hold()
        waiting = [batcher.submit("a", number) for number in (1, 2)]
        assert len(batcher) == 2
        with pytest.raises(QueueFullError):
            batcher.submit("a", 3)
        model.gate.set()
        assert await asyncio.gather(*(batcher.result(t) for t in (running, *waiting))) == [0, 10, 20]
        assert await batcher.result(batcher.submit("a", 4)) == 40

    play(model, scene, max_queue=2, max_wait_s=0.0)


def test_who_leaves_the_queue_is_not_computed() -> None:
    model = Model()
    model.gate.clear()

    async def scene(batcher: Batcher) -> None:
        running = batcher.submit("a", 0)
        await model.hold()
        tasks = [asyncio.create_task(batcher.result(batcher.submit("a", number))) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        assert len(batcher) == 2
        model.gate.set()
        assert await asyncio.gather(batcher.result(running), tasks[0], tasks[2]) == [0, 10, 30]

    play(model, scene, max_wait_s=0.0)
    assert model.batches == [[0], [1, 3]]


def test_too_long_is_a_timeout_waiting_or_running() -> None:
    model = Model()
    model.gate.clear()

    async def scene(batcher: Batcher) -> None:
        running = batcher.submit("a", 0)
        await model.hold()
        waiting = batcher.submit("a", 1)
        for ticket in (running, waiting):
            with pytest.raises(TimeoutError):
                await batcher.result(ticket, 0.05)
            assert ticket.left
        assert len(batcher) == 0
        model.gate.set()
        assert await batcher.result(batcher.submit("a", 2)) == 20, "the worker goes on"

    play(model, scene, max_wait_s=0.0)
    assert [0] in model.batches and [1] not in model.batches


def test_a_batch_that_all_have_left_ends_between_two_steps() -> None:
    steps, entered, finish = [], threading.Event(), threading.Event()

    def model(tickets: Sequence[Ticket]) -> list[Any]:
        try:
            for step in range(1000):
                raise_if_abandoned(tickets)
                steps.append(step)
                entered.set()
                finish.wait(0.01)
        finally:
            finish.set()
        return [0] * len(tickets)

    async def scene(batcher: Batcher) -> None:
        tasks = [asyncio.create_task(batcher.result(batcher.submit("a", n))) for n in range(2)]
        await asyncio.to_thread(entered.wait, 10)
        tasks[0].cancel()
        await asyncio.sleep(0.05)
        assert not finish.is_set(), "one still waits"
        tasks[1].cancel()
        assert await asyncio.to_thread(finish.wait, 5)

    play(model, scene, max_wait_s=0.01)
    assert 0 < len(steps) < 900


def test_errors_reach_those_whom_they_concern() -> None:
    async def scene(batcher: Batcher) -> None:
        good, bad = batcher.submit("a", 1), batcher.submit("a", "bad")
        with pytest.raises(ValueError, match="own"):
            await batcher.result(bad)
        assert await batcher.result(good) == 10
        tickets = [batcher.submit("a", payload) for payload in (1, "fail")]
        results = await asyncio.gather(*(batcher.result(ticket) for ticket in tickets), return_exceptions=True)
        assert [type(error) for error in results] == [RuntimeError, RuntimeError]
        assert await batcher.result(batcher.submit("a", 3)) == 30

    play(Model(), scene)


def test_closing_finishes_what_was_accepted_and_takes_nothing_new() -> None:
    model = Model()
    model.gate.clear()

    async def scene(batcher: Batcher) -> None:
        tickets = [batcher.submit("a", 0, size=batcher.max_batch)]  # begins at once, the others would wait for more
        await model.hold()
        tickets += [batcher.submit(key, number) for number, key in enumerate("aab", start=1)]
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.01)
        with pytest.raises(ClosedError):
            batcher.submit("a", 9)
        assert not closing.done()
        model.gate.set()
        assert await asyncio.gather(*(batcher.result(ticket) for ticket in tickets)) == [0, 10, 20, 30]
        await closing

    play(model, scene, max_wait_s=60.0)


def test_abandoning_gives_everything_up() -> None:
    model = Model()
    model.gate.clear()

    async def scene(batcher: Batcher) -> None:
        running = asyncio.create_task(batcher.result(batcher.submit("a", 0)))
        await model.hold()
        waiting = asyncio.create_task(batcher.result(batcher.submit("a", 1)))
        await asyncio.sleep(0)
        batcher.abandon()
        await asyncio.gather(running, waiting, return_exceptions=True)
        assert running.cancelled() and waiting.cancelled() and len(batcher) == 0

    play(model, scene, max_wait_s=0.0)


def test_the_worker_tells_listeners_in_order_until_they_leave() -> None:
    records: list[int] = []

    def model(tickets: Sequence[Ticket]) -> list[Any]:
        for step in range(5):
            for ticket in tickets:
                if ticket.watched:
                    ticket.tell(step)
        return ["end"] * len(tickets)

    async def scene(batcher: Batcher) -> None:
        ticket, deaf = batcher.submit("a", 0, notify=records.append), batcher.submit("a", 0)
        assert await asyncio.gather(batcher.result(ticket), batcher.result(deaf)) == ["end", "end"]
        assert records == [0, 1, 2, 3, 4]
        ticket.tell(5)
        await asyncio.sleep(0.01)
        assert records[-1] == 4, "nobody listens any more"

    play(model, scene)
