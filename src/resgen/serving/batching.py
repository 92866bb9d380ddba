"""Requests in batches: those with the same settings that arrive at about the same time are computed together.

The event loop keeps the queue; a single worker thread computes. Tickets with equal keys may share a batch, in the order
of their arrival; the oldest ticket decides whose turn it is, so that no key starves.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from resgen.errors import ResGenError


class QueueFullError(Exception):
    """No more requests are taken for now."""


class ClosedError(Exception):
    """No more requests are taken at all."""


class AbandonedError(Exception):
    """Raised in the worker where nobody waits for the batch any more."""


UNFINISHED: Final = object()
"""Result of a ticket that is to be computed further: it goes to the end of the queue, so that others come between."""


class Ticket:
    """One request on its way.

    Attributes:
        key: tickets with equal keys may share a batch.
        payload: what the worker needs to know.
        size: samples, counted against `max_batch`.
        since: when it came, by `time.monotonic`.
        left: nobody waits for it any more; read by the worker between its steps.
    """

    def __init__(self, key: Hashable, payload: Any, size: int, notify: Callable[[Any], None] | None) -> None:
        self.key, self.payload, self.size = key, payload, size
        self.since = time.monotonic()
        self.left = False
        self._notify, self._loop = notify, asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def tell(self, event: Any) -> None:
        """Called by the worker: hand `event` to whoever listens, in the event loop."""
        if self._notify is not None and not self.left:
            self._loop.call_soon_threadsafe(self._notify, event)

    @property
    def watched(self) -> bool:
        """Whether anybody listens to what happens before the end."""
        return self._notify is not None and not self.left


def raise_if_abandoned(tickets: Sequence[Ticket]) -> None:
    """Called by the worker between its steps.

    Raises:
        AbandonedError: nobody waits for any of the tickets.
    """
    if all(ticket.left for ticket in tickets):
        raise AbandonedError


Run = Callable[[Sequence[Ticket]], Sequence[Any]]
"""Computes a batch of tickets with one key, in the worker thread: a result, an exception or `UNFINISHED` for each."""


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call, or the error that a user can cause."""
    try:
        return function(*arguments)
    except ResGenError as error:
        return error


class Batcher:
    """A queue, a worker thread and the rule by which batches are made.

    Args:
        run: computes a batch.
        max_batch: most samples in it.
        max_wait_s: how long the oldest ticket waits for others while the worker is free.
        max_queue: most tickets that wait.
        observe: called after every batch with (samples, seconds).
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self._run, self._observe = run, observe
        self.max_batch, self.max_wait_s, self.max_queue = max_batch, max_wait_s, max_queue
        self._waiting: list[Ticket] = []
        self._computing: list[Ticket] = []
        self._arrived, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._closed = False
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Tickets that wait for their batch to begin."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to work; call it in the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def in_worker(self, function: Callable[[], Any]) -> Any:
        """Run a function in the worker thread, between batches."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, function)

    def submit(
        self, key: Hashable, payload: Any, *, size: int = 1, notify: Callable[[Any], None] | None = None
    ) -> Ticket:
        """Put a request into the queue.

        Args:
            key: tickets with equal keys may share a batch.
            payload: for the worker.
            size: samples, at most `max_batch`.
            notify: called in the event loop with what the worker tells before the end.

        Raises:
            ValueError: more samples than fit a batch.
            QueueFullError: as many tickets as allowed wait already.
            ClosedError: the batcher is closing.
        """
        if not 1 <= size <= self.max_batch:
            raise ValueError(f"size={size} must lie in 1..{self.max_batch}")
        if self._closed:
            raise ClosedError
        if len(self._waiting) >= self.max_queue:
            raise QueueFullError
        ticket = Ticket(key, payload, size, notify)
        self._waiting.append(ticket)
        self._idle.clear()
        self._arrived.set()
        return ticket

    async def result(self, ticket: Ticket, timeout_s: float | None = None) -> Any:
        """Wait for a ticket's result; whoever stops waiting, by cancellation or for the time, gives the ticket up.

        Raises:
            TimeoutError: `timeout_s` have passed since the ticket came.
            Exception: what the worker raised or returned for this ticket.
        """
        try:
            left = None if timeout_s is None else max(0.0, ticket.since + timeout_s - time.monotonic())
            async with asyncio.timeout(left):
                return await ticket.future
        finally:
            self.leave(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Give a ticket up; one that still waits will not be computed."""
        ticket.left = True
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self._arrived.set()  # the worker may have waited for it alone
        ticket.future.cancel()

    async def close(self) -> None:
        """Take no more tickets, finish those that are there, and end the worker."""
        self._closed = True
        self._arrived.set()
        await self._idle.wait()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self._worker.shutdown)  # it may still be loading

    def abandon(self) -> None:
        """Give up everything that waits or is being computed."""
        for ticket in [*self._waiting, *self._computing]:
            self.leave(ticket)

    async def _work(self) -> None:
        while True:
            await self._gather()
            if self._waiting:
                self._computing = self._take()
                await self._compute(self._computing)
                self._computing = []
            if not self._waiting:
                self._idle.set()

    async def _gather(self) -> None:
        """Wait until there is a batch to compute (or none any more)."""
        while not self._waiting:
            self._idle.set()
            self._arrived.clear()
            await self._arrived.wait()
        until = self._waiting[0].since + self.max_wait_s
        while self._waiting and not self._closed:
            first = self._waiting[0]
            if sum(ticket.size for ticket in self._waiting if ticket.key == first.key) >= self.max_batch:
                return
            self._arrived.clear()
            left = until - time.monotonic()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrived.wait()

    def _take(self) -> list[Ticket]:
        """The oldest ticket and those after it with its key, as far as they fit; nobody overtakes one that does not."""
        batch: list[Ticket] = []
        size, key = 0, self._waiting[0].key
        for ticket in [ticket for ticket in self._waiting if ticket.key == key]:
            if size + ticket.size > self.max_batch:
                break
            batch.append(ticket)
            size += ticket.size
        self._waiting = [ticket for ticket in self._waiting if ticket not in batch]
        return batch

    async def _compute(self, tickets: list[Ticket]) -> None:
        began = time.monotonic()
        outcomes: Sequence[Any]
        try:
            outcomes = await self.in_worker(functools.partial(self._run, tickets))
        except AbandonedError:
            return
        except Exception as error:
            outcomes = [error] * len(tickets)
        if self._observe is not None:
            self._observe(sum(ticket.size for ticket in tickets), time.monotonic() - began)
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            if ticket.future.done():
                continue
            if outcome is UNFINISHED:
                self._waiting.append(ticket)
            elif isinstance(outcome, Exception):
                ticket.future.set_exception(outcome)
            else:
                ticket.future.set_result(outcome)
